"""Figure A2: CCA sees that the states of a rotating recurrent network are one representation; raw distances do not.

Protocol (Morcos et al. 2018, A.3). Recurrent networks h' = W_rot h (linear) and h' = W_rot h + α σ(W_rand h) + b
(blended), W_rot a random rotation, W_rand normal, σ the sigmoid, run without input 1,000 times from random starts; the
states at every step are compared with those at the last. Unstated: the number of steps and of neurons, the scale of
starts and b against that of α σ(...), and whether W_rand's N(0, I) is scaled by the number of neurons. The claim about
the blended networks depends on these, so a grid of readings is tried. With no more runs than neurons every CCA distance
would be 0, whatever the states; that reading is refused.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field

from cca_dynamics.config.base import MANY, Count, Integer, Number, each_once
from cca_dynamics.config.cohorts import Cohort
from cca_dynamics.config.models import MEASURES_DESCRIPTION, Measures, ResultOptions, StageOptions, StudyConfig, option
from cca_dynamics.errors import ConfigError
from cca_dynamics.results import figures
from cca_dynamics.results.claims import REPRODUCED, Claim, Obstacle, all_of, equivalence_claim, exceeds, too_few
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.statistics import Estimate
from cca_dynamics.results.tables import CONTROLS, distance_rows, select, tidy

KEY = "results.toy_rnn"
SOURCE = "appendix A.3"


Scales = Annotated[tuple[Annotated[Number, Field(ge=0)], ...], AfterValidator(each_once)]


class Reading(NamedTuple):
    """One way to read what the paper leaves open; see the keys of `Options`, each of which lists several."""

    mixing: str
    start_scale: float
    bias_scale: float

    def __str__(self) -> str:
        """As a figure and a claim name it."""
        variance = {"unit": "1", "fan_in": "1/n"}[self.mixing]
        starts, bias = (f"{scale:g}α" if scale else "1" for scale in (self.start_scale, self.bias_scale))
        return f"W ~ N(0, {variance}), starts {starts}, b {bias}"


def readings(options: StageOptions) -> list[Reading]:
    """All readings, the main one first."""
    grid = product(options.mixing, options.start_scales, options.bias_scales)
    return [Reading(mixing, float(start), float(bias)) for mixing, start, bias in grid]


class Options(ResultOptions):
    """The keys of results.toy_rnn."""

    networks: Integer = option(5, "compute", "claims", ge=2, le=1000, description="Random draws of the weights.")
    neurons: Integer = option(50, "compute", ge=2, le=4096, description="Hidden units.")
    starts: Integer = option(1000, "compute", ge=6, le=MANY, description="Runs, each from a random starting state.")
    steps: Integer = option(100, "compute", "claims", ge=2, le=100_000, description="Steps without input.")
    every: Count = option(5, "compute", description="Steps between comparisons.")
    alphas: Annotated[tuple[Annotated[Number, Field(gt=0)], ...], AfterValidator(each_once)] = option(
        (1, 10, 100), "compute", "claims", min_length=1, description="Weights of the non-linear part."
    )
    mixing: Annotated[tuple[Literal["unit", "fan_in"], ...], AfterValidator(each_once)] = option(
        ("unit", "fan_in"),
        *("compute", "claims", "plot"),
        min_length=1,
        description="Readings of W_rand: N(0, 1) (unit) or N(0, 1 / neurons) (fan_in).",
    )
    start_scales: Scales = option(
        (0, 10),
        *("compute", "claims", "plot"),
        min_length=1,
        description="Readings of the starts: their standard deviation in multiples of α; 0: 1 whatever α.",
    )
    bias_scales: Scales = option(
        (0, 10),
        *("compute", "claims", "plot"),
        min_length=1,
        description="Readings of b: its standard deviation in multiples of α; 0: 1 whatever α.",
    )
    margin: Number = option(0.05, "claims", "plot", gt=0, le=0.5, description='CCA distance below this is "similar".')
    measures: Measures = option(
        ("cosine", "euclidean", "pwcca"), "compute", "claims", "plot", description=MEASURES_DESCRIPTION
    )


ALTERNATIVES = {"mixing": (["fan_in"],), "start_scales": ([10],), "bias_scales": ([10],)}
"""Other values that the paper's words allow, the default of multiverse.toy_rnn."""


def check(config: StudyConfig, options: Options) -> None:
    """Refuse fewer random starts than CCA needs."""
    if options.starts <= 2 * options.neurons + 1:
        raise ConfigError(
            f"{KEY}.starts", f"CCA of {options.neurons} neurons needs more than {2 * options.neurons + 1} starts"
        )


def obstacles(config: StudyConfig, options: Options) -> list[Obstacle]:
    """Settings under which claims could never be reproduced."""
    return too_few(f"{KEY}.networks", options.networks, "networks")


def cohorts(config: StudyConfig, options: Options) -> list[Cohort]:
    """No network is trained."""
    return []


def comparisons(options: StageOptions) -> list[tuple[int, int, int]]:
    """(how often, data points, neurons) of the comparisons that `compute` makes."""
    kinds = (1 + len(options.alphas) * len(readings(options))) * len(options.measures)
    return [(options.networks * kinds * (options.steps // options.every), options.starts, options.neurons)]


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """Distances of the states at every `every` steps to those at the last step.

    Returns:
        Tidy rows: network (a random draw of weights), alpha (0 for the linear network, in the main reading alone, of
        which it does not depend), mixing, start_scale and bias_scale (the reading), step, measure, quantity "distance",
        value, rank_a, rank_b, n, floor (nan where the measure has none).
    """
    from cca_dynamics.similarity import factorize

    rows, main = [], readings(options)[0]
    kinds = [(0.0, main), *((float(alpha), reading) for reading in readings(options) for alpha in options.alphas)]
    for network in range(options.networks):
        for alpha, reading in kinds:
            rng = np.random.default_rng([options.seed, network])
            factors = {
                step: factorize(states, device=inputs.device)
                for step, states in trajectory(alpha, reading, options, rng)
                if step % options.every == 0 or step == options.steps
            }
            last, columns = factors[options.steps], {"network": network, "alpha": alpha, **reading._asdict()}
            for step, states in factors.items():
                rows += distance_rows(states, last, options.measures, step=step, **columns)
    return tidy([pd.DataFrame(rows)])


def trajectory(alpha: float, reading: Reading, options: StageOptions, rng: np.random.Generator):
    """(step, states (starts, neurons)) from 0 to `steps` of one random network; all readings have the same draws."""
    neurons = options.neurons
    q, r = np.linalg.qr(rng.normal(size=(neurons, neurons)))
    rotation = q * np.sign(np.diag(r))  # uniform over orthogonal matrices (Mezzadri 2007) ...
    rotation[:, 0] *= np.linalg.det(rotation)  # ... without reflections
    mixing, bias = rng.normal(size=(neurons, neurons)), rng.normal(size=neurons)
    states = rng.normal(size=(options.starts, neurons))
    if reading.mixing == "fan_in":
        mixing /= neurons**0.5
    if alpha:
        bias, states = (
            values * (scale * alpha if scale else 1.0)
            for values, scale in ((bias, reading.bias_scale), (states, reading.start_scale))
        )
    yield 0, states
    for step in range(1, options.steps + 1):
        drive = alpha / (1 + np.exp(-np.clip(states @ mixing.T, -500, 500))) + bias if alpha else 0.0
        states = states @ rotation.T + drive
        yield step, states


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """The claims of figure A2, for the linear network and for the blended one at its worst α, in the main reading."""
    blended, main = [float(alpha) for alpha in options.alphas], readings(options)[0]
    return [
        *_claims_about(table, main, options, "linear", "a linear recurrent network", [0.0]),
        *_claims_about(table, main, options, "blended", "a blended linear and non-linear recurrent network", blended),
    ]


def _claims_about(
    table: pd.DataFrame, main: Reading, options: StageOptions, name: str, title: str, alphas: list[float]
) -> list[Claim]:
    networks, margin, fields = f"n = {options.networks} networks", options.margin, {"figure": "A2", "source": SOURCE}
    result = [_similar_claim(table, main, options, name, title, alphas)]
    distances = _means(table, main, options)
    for measure in CONTROLS:
        if measure not in options.measures:
            continue
        gaps = {alpha: Estimate.of_mean(distances[measure, alpha] - distances["pwcca", alpha]) for alpha in alphas}
        smallest = min(gaps, key=lambda alpha: gaps[alpha].value)
        p_values = [gap.p_at_most(margin) for gap in gaps.values()]
        intervals = [gap.interval() for gap in gaps.values()]
        at_alpha = f" at α = {smallest:g}, the smallest such gap, judged at every α" if len(alphas) > 1 else ""
        result.append(
            Claim(
                value=gaps[smallest].value,
                interval=gaps[smallest].interval(),
                p_value=max(p_values),
                verdict=all_of([exceeds(margin, *pair) for pair in zip(intervals, p_values, strict=True)]),
                claim=f"toy_rnn.{name}_{measure}",
                statement=f"{measure.capitalize()} distance finds the states of {title} less alike than CCA does.",
                statistic=f"{measure} minus PWCCA distance{at_alpha}, mean over steps (over {margin:g}); {networks}, "
                "t test",
                **fields,
            )
        )
    return result


def _means(table: pd.DataFrame, reading: Reading, options: StageOptions) -> dict[tuple[str, float], np.ndarray]:
    """(measure, α) → mean distance over steps of each network (N,), in one reading."""
    rows = select(table[table["step"] < options.steps], **reading._asdict())
    means = rows.pivot_table(index=["measure", "alpha"], columns="network", values="value")
    return {key: means.loc[key].to_numpy() for key in means.index}


def _similar_claim(
    table: pd.DataFrame, main: Reading, options: StageOptions, name: str, title: str, alphas: list[float]
) -> Claim:
    """The claim that CCA distances are about zero, at the worst α of the main reading."""

    def judged(reading: Reading) -> Claim:
        distances = _means(table, reading, options)
        worst = max(alphas, key=lambda alpha: distances["pwcca", alpha].mean())
        at_worst = f" at α = {worst:g}, the worst of {', '.join(f'{a:g}' for a in alphas)}" if len(alphas) > 1 else ""
        return equivalence_claim(
            options.margin,
            [Estimate.of_mean(distances["pwcca", alpha]) for alpha in alphas],
            claim=f"toy_rnn.{name}_cca",
            figure="A2",
            source=SOURCE,
            statement=f"CCA recognizes all states of {title} as one representation.",
            statistic=f"PWCCA distance to the last step{at_worst}, mean over steps (below {options.margin:g}); n = "
            f"{options.networks} networks, two one-sided tests",
            paper_value=0.0,
        )

    claim = judged(main)
    if name == "linear":
        return claim
    grid = readings(options)
    holds = [str(reading) for reading in grid if judged(reading).verdict == REPRODUCED]
    where = f" ({'; '.join(holds)})" if holds else ""
    return replace(
        claim,
        statistic=f"{claim.statistic}; judged in the reading {main}; it holds in {len(holds)} of {len(grid)} readings"
        f"{where}",
    )


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """One panel per measure in the main reading, one curve per α over steps, and PWCCA in every reading.

    Bands are one standard deviation over networks.
    """
    figure, axes = figures.panels_in_pairs(len(options.measures) + 1, height=2.3)
    grid, alphas = readings(options), sorted(table["alpha"].unique())
    main = select(table, **grid[0]._asdict())
    styles = [figures.SERIES[3], *figures.sequential(len(alphas) - 1)]
    for axis, measure in zip(axes, options.measures, strict=False):
        rows = select(main, measure=measure)
        for style, alpha in zip(styles, alphas, strict=True):
            label = f"blended, α = {alpha:g}" if alpha else "linear"
            figures.network_curves(axis, select(rows, alpha=alpha), "step", *style, label)
        figures.floor_line(axis, rows, "step")
        axis.set(xlabel="Step", ylabel=f"{figures.measure_label(measure)} distance")
        axis.set_ylim(-0.03, max(1.03, 1.1 * float(rows["value"].max())))
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes), key=lambda pair: len(pair[0]))
    _draw_readings(axes[-1], table, grid, alphas[1:], styles[1:])
    axes[-1].axvline(options.margin, **figures.THRESHOLD)
    figures.legend_outside(figure, handles, labels)
    figures.letters(*axes)
    return figure


def _draw_readings(axis, table: pd.DataFrame, grid: list[Reading], alphas: list[float], styles: list) -> None:
    """Mean PWCCA distance over steps and networks in each reading, one point per α."""
    rows = select(table[table["step"] < table["step"].max()], measure="pwcca")
    for (colour, marker), alpha in zip(styles, alphas, strict=True):
        means = [select(rows, alpha=alpha, **reading._asdict())["value"].mean() for reading in grid]
        axis.plot(means, range(len(grid)), color=colour, marker=marker, linestyle="none")
    names = [str(reading).replace(", starts", "\nstarts") for reading in grid]
    axis.set(xlabel="PWCCA distance, mean over steps", yticks=range(len(grid)), yticklabels=names)
    axis.set_xlim(left=-0.02)
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=5.5)
