"""Figure A2: CCA sees that the states of a rotating recurrent network are one representation; raw distances do not.

Protocol (Morcos et al. 2018, A.3). Recurrent networks h' = W_rot h (linear) and h' = W_rot h + α σ(W_rand h) + b
(blended), W_rot a random rotation, W_rand standard normal, σ the sigmoid, run without input from random starts; the
states at every step are compared with those at the last. Unstated, so ours: neurons, starts (standard normal), and b
(standard normal).
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field

from cca_dynamics.config.base import MANY, Count, Integer, Number, each_once
from cca_dynamics.config.cohorts import Cohort
from cca_dynamics.config.models import MEASURES_DESCRIPTION, Measures, ResultOptions, StageOptions, StudyConfig, option
from cca_dynamics.errors import ConfigError
from cca_dynamics.results import figures, statistics
from cca_dynamics.results.claims import ALPHA, Claim, Obstacle, equivalent, mean_claim, too_few
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.tables import CONTROLS, distance_rows, select, tidy

KEY = "results.toy_rnn"


class Options(ResultOptions):
    """The keys of results.toy_rnn."""

    networks: Integer = option(10, "compute", "claims", ge=2, le=1000, description="Random draws of the weights.")
    neurons: Integer = option(50, "compute", ge=2, le=4096, description="Hidden units.")
    starts: Integer = option(500, "compute", ge=6, le=MANY, description="Random starting states.")
    steps: Integer = option(1000, "compute", "claims", ge=2, le=100_000, description="Steps without input.")
    every: Count = option(25, "compute", description="Steps between comparisons.")
    alphas: Annotated[tuple[Annotated[Number, Field(gt=0)], ...], AfterValidator(each_once)] = option(
        (1, 10, 100), "compute", "claims", min_length=1, description="Weights of the non-linear part."
    )
    margin: Number = option(0.05, "claims", gt=0, le=0.5, description='CCA distance below this is "similar".')
    measures: Measures = option(
        ("cosine", "euclidean", "pwcca"), "compute", "claims", "plot", description=MEASURES_DESCRIPTION
    )


def check(config: StudyConfig, options: Options) -> None:
    """Refuse fewer random starts than CCA needs."""
    if options.starts <= 2 * options.neurons + 1:
        raise ConfigError(
            f"{KEY}.starts", f"CCA of {options.neurons} neurons needs more than {2 * options.neurons + 1} starts"
        )


def obstacles(config: StudyConfig, options: Options) -> list[Obstacle]:
    """Settings under which claims could never be reproduced."""
    return too_few(f"{KEY}.networks", options.networks, "networks", statistics.smallest_sign_p)


def cohorts(config: StudyConfig, options: Options) -> list[Cohort]:
    """No network is trained."""
    return []


def comparisons(options: StageOptions) -> list[tuple[int, int, int]]:
    """(how often, data points, neurons) of the comparisons that `compute` makes."""
    kinds = (1 + len(options.alphas)) * len(options.measures)
    return [(options.networks * kinds * (options.steps // options.every), options.starts, options.neurons)]


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """Distances of the states at every `every` steps to those at the last step.

    Returns:
        Tidy rows: network (a random draw of weights), alpha (0 for the linear network), step, measure, quantity
        "distance", value, rank_a, rank_b, n, floor (nan where the measure has none).
    """
    from cca_dynamics.similarity import factorize

    rows = []
    for network in range(options.networks):
        for alpha in [0.0, *options.alphas]:
            rng = np.random.default_rng([options.seed, network])
            factors = {
                step: factorize(states, device=inputs.device)
                for step, states in trajectory(alpha, options, rng)
                if step % options.every == 0 or step == options.steps
            }
            last = factors[options.steps]
            for step, states in factors.items():
                rows += distance_rows(states, last, options.measures, network=network, alpha=alpha, step=step)
    return tidy([pd.DataFrame(rows)])


def trajectory(alpha: float, options: StageOptions, rng: np.random.Generator):
    """(step, states (starts, neurons)) from 0 to `steps` of one random network."""
    neurons = options.neurons
    q, r = np.linalg.qr(rng.normal(size=(neurons, neurons)))
    rotation = q * np.sign(np.diag(r))  # uniform over orthogonal matrices (Mezzadri 2007) ...
    rotation[:, 0] *= np.linalg.det(rotation)  # ... without reflections
    mixing, bias = rng.normal(size=(neurons, neurons)), rng.normal(size=neurons)
    states = rng.normal(size=(options.starts, neurons))
    yield 0, states
    for step in range(1, options.steps + 1):
        drive = alpha / (1 + np.exp(-np.clip(states @ mixing.T, -500, 500))) + bias if alpha else 0.0
        states = states @ rotation.T + drive
        yield step, states


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """The claims of figure A2, for the linear network and for the blended one at its worst α."""
    blended = [float(alpha) for alpha in options.alphas]
    return [
        *_claims_about(table, options, "linear", "a linear recurrent network", [0.0]),
        *_claims_about(table, options, "blended", "a blended linear and non-linear recurrent network", blended),
    ]


def _claims_about(
    table: pd.DataFrame, options: StageOptions, name: str, title: str, alphas: list[float]
) -> list[Claim]:
    rows = table[(table["step"] < options.steps) & table["alpha"].isin(alphas)]
    distances = rows.pivot_table(index=["measure", "alpha"], columns="network", values="value")
    is_blended, margin, networks = name == "blended", options.margin, f"n = {options.networks} networks"
    worst = distances.loc["pwcca"].mean(axis=1).idxmax()
    pwcca = distances.loc[("pwcca", worst)].to_numpy()
    interval = statistics.bootstrap_mean(pwcca, options.seed, 1 - 2 * ALPHA)
    at_worst = f" at α = {worst:g}, the worst of {', '.join(f'{a:g}' for a in alphas)}" if is_blended else ""
    result = [
        Claim(
            claim=f"toy_rnn.{name}_cca",
            figure="A2",
            statement=f"CCA recognizes all states of {title} as one representation.",
            statistic=f"PWCCA distance to the last step{at_worst}, mean over steps (below {margin:g}); {networks}, "
            "two one-sided tests",
            value=float(pwcca.mean()),
            interval=interval,
            paper_value=0.0,
            verdict=equivalent(margin, [interval]),
        )
    ]
    gaps = {
        (measure, alpha): (distances.loc[(measure, alpha)] - distances.loc[("pwcca", alpha)]).to_numpy()
        for measure in CONTROLS
        for alpha in alphas
        if measure in options.measures
    }
    if gaps:
        measure, alpha = min(gaps, key=lambda key: gaps[key].mean())
        gap, at_alpha = gaps[measure, alpha], f" at α = {alpha:g}" if is_blended else ""
        result.append(
            mean_claim(
                margin,
                gap,
                options.seed + 1,
                p_value=statistics.sign_test(gap - margin),
                claim=f"toy_rnn.{name}_raw",
                figure="A2",
                statement=f"Cosine and Euclidean distance fail to recognize that, in {title}.",
                statistic=f"{measure} minus PWCCA distance{at_alpha}, the smallest such gap, mean over steps (over "
                f"{margin:g}); {networks}, sign test",
            )
        )
    return result


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """One panel per measure, one curve per α over steps; bands are one standard deviation over networks."""
    figure, axes = figures.panels(1, len(options.measures), height=2.4)
    alphas = sorted(table["alpha"].unique())
    styles = [figures.SERIES[3], *figures.sequential(len(alphas) - 1)]
    for axis, measure in zip(axes, options.measures, strict=True):
        rows = select(table, measure=measure)
        for style, alpha in zip(styles, alphas, strict=True):
            label = f"blended, α = {alpha:g}" if alpha else "linear"
            figures.network_curves(axis, select(rows, alpha=alpha), "step", *style, label)
        figures.floor_line(axis, rows, "step")
        axis.set(xlabel="Step", ylabel=f"{figures.measure_label(measure)} distance")
        axis.set_ylim(-0.03, max(1.03, 1.1 * float(rows["value"].max())))
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes), key=lambda pair: len(pair[0]))
    figures.legend_outside(figure, handles, labels)
    figures.letters(*axes)
    return figure
