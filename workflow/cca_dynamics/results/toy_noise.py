"""Figure 2: projection weighting finds the signal that layers share where mean CCA drowns it in noise.

Protocol (Morcos et al. 2018, section 2.2 and A.4). Two layers of 200 neurons on 2,000 data points: k neurons carry
signal, which the second layer holds after a random orthonormal transform; the other 200 - k are noise, drawn anew for
each layer. The paper's N(0, 0.1) does not say whether 0.1 is the standard deviation or the variance: both are drawn.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import AfterValidator

from cca_dynamics.config.base import MANY, Count, Integer, Number, each_once
from cca_dynamics.config.cohorts import Cohort
from cca_dynamics.config.models import (
    MEASURES_DESCRIPTION,
    PWCCA_DESCRIPTION,
    Measures,
    Pwcca,
    ResultOptions,
    StageOptions,
    StudyConfig,
    option,
)
from cca_dynamics.errors import ConfigError
from cca_dynamics.results import figures
from cca_dynamics.results.claims import (
    REPRODUCED,
    REVERSED,
    Claim,
    Obstacle,
    all_of,
    below,
    exceeds,
    too_few,
)
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.statistics import Estimate, holm
from cca_dynamics.results.tables import distance_rows, measures_of, select, tidy

KEY = "results.toy_noise"
READINGS = {"standard deviation": 0.1, "variance": 0.1**0.5}
"""Standard deviation of the noise under both readings of N(0, 0.1)."""


class Options(ResultOptions):
    """The keys of results.toy_noise."""

    neurons: Integer = option(200, "compute", "claims", "plot", ge=4, le=MANY, description="Neurons of each layer.")
    points: Integer = option(2000, "compute", ge=20, le=MANY, description="Data points.")
    signal: Annotated[tuple[Count, ...], AfterValidator(each_once)] = option(
        (20, 50, 70, 80, 100, 120, 140, 160, 180, 199),
        *("compute", "claims"),
        min_length=2,
        description="Numbers of signal neurons.",
    )
    draws: Integer = option(10, "compute", "claims", ge=2, le=1000, description="Random draws of the layers.")
    robust: Number = option(
        0.5, "claims", gt=0, lt=1, description="Robust: PWCCA is below this share of the distance of mean CCA."
    )
    measures: Measures = option(
        ("mean_cca", "svcca", "pwcca"), "compute", "claims", "plot", description=MEASURES_DESCRIPTION
    )
    pwcca: Pwcca = option("pwcca", "compute", "plot", description=PWCCA_DESCRIPTION)


ALTERNATIVES = {"pwcca": ("pwcca_squared", "pwcca_thresholded")}
"""Other values that the paper's words allow, the default of multiverse.toy_noise."""


def check(config: StudyConfig, options: Options) -> None:
    """Refuse more signal than neurons, and neurons that data points do not suffice for."""
    if max(options.signal) >= options.neurons:
        raise ConfigError(
            f"{KEY}.signal",
            f"{max(options.signal)} signal neurons leave no noise among {options.neurons}; lower it",
        )
    if 2 * options.neurons >= options.points:
        raise ConfigError(
            f"{KEY}.points",
            f"two layers of {options.neurons} neurons need more than {2 * options.neurons} data points",
        )


def obstacles(config: StudyConfig, options: Options) -> list[Obstacle]:
    """Settings under which claims could never be reproduced."""
    return too_few(f"{KEY}.draws", options.draws, "draws")


def cohorts(config: StudyConfig, options: Options) -> list[Cohort]:
    """No network is trained."""
    return []


def comparisons(options: StageOptions) -> list[tuple[int, int, int]]:
    """(how often, data points, neurons) of the comparisons that `compute` makes."""
    times = options.draws * len(READINGS) * len(options.signal) * len(options.measures)
    return [(times, options.points, options.neurons)]


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """Distances of all draws.

    Returns:
        Tidy rows: reading (of the noise), draw, signal (number of signal neurons), measure, quantity "distance", value,
        rank_a, rank_b, n, floor.
    """
    from cca_dynamics.similarity import factorize

    rows = []
    for draw in range(options.draws):
        for reading, deviation in READINGS.items():
            for signal in options.signal:
                rng = np.random.default_rng([options.seed, draw, signal, *reading.encode()])
                x, y = (factorize(layer, device=inputs.device) for layer in layers(signal, deviation, options, rng))
                rows += distance_rows(x, y, measures_of(options), reading=reading, draw=draw, signal=signal)
    return tidy([pd.DataFrame(rows)])


def layers(
    signal: int, deviation: float, options: StageOptions, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Two (points, neurons) layers that share `signal` directions up to a rotation."""
    points, noisy = options.points, options.neurons - signal
    shared = rng.normal(size=(points, signal))
    rotation, _ = np.linalg.qr(rng.normal(size=(signal, signal)))
    noise = deviation * rng.normal(size=(2, points, noisy))
    return np.hstack([shared, noise[0]]), np.hstack([shared @ rotation, noise[1]])


NAMES = {"mean_cca": "mean CCA", "svcca": "SVCCA", "pwcca": "PWCCA"}
PAIRS = (("mean_cca", "svcca"), ("svcca", "pwcca"), ("mean_cca", "pwcca"))
"""(overestimates more, less)."""


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """The claims of figure 2, under both readings of the noise; each is judged at every number of signal neurons."""
    result = []
    for reading in READINGS:
        rows = select(table, reading=reading)
        by_draw = rows.pivot_table(index="draw", columns=["measure", "signal"], values="value")
        result += [
            _excess_claim(by_draw, more, less, reading, options)
            for more, less in PAIRS
            if {more, less} <= {*options.measures}
        ]
        if "mean_cca" in options.measures:
            result.append(_robust_claim(by_draw, reading, options))
    return result


def _excess_claim(by_draw: pd.DataFrame, more: str, less: str, reading: str, options: StageOptions) -> Claim:
    """The claim that one measure overestimates distance more than another, whatever the number of signal neurons."""
    excess = {signal: Estimate.of_mean(by_draw[more, signal] - by_draw[less, signal]) for signal in options.signal}
    p_values = holm([estimate.p_at_most(0) for estimate in excess.values()])
    verdicts = {
        signal: exceeds(0, estimate.interval(), p)
        for (signal, estimate), p in zip(excess.items(), p_values, strict=True)
    }
    smallest = min(excess, key=lambda signal: excess[signal].value)
    return Claim(
        claim=f"toy_noise.{more}_over_{less}.{reading.split()[-1]}",
        figure="2",
        source="section 2.2",
        statement=f"Whatever the share of signal, {NAMES[more]} overestimates distance more than {NAMES[less]} (noise "
        f"read by its {reading}).",
        statistic=f"smallest mean excess distance, at k = {smallest} of {options.neurons} signal neurons; "
        f"{_where(verdicts)}; noise of {reading} 0.1; n = {options.draws} draws, t test at each k, Holm",
        value=excess[smallest].value,
        interval=excess[smallest].interval(),
        p_value=float(max(p_values)),
        verdict=all_of(list(verdicts.values())),
    )


def _robust_claim(by_draw: pd.DataFrame, reading: str, options: StageOptions) -> Claim:
    """The claim that PWCCA is robust to noise, whatever the number of signal neurons."""
    share = {
        signal: Estimate.of_mean(by_draw["pwcca", signal] / by_draw["mean_cca", signal]) for signal in options.signal
    }
    p_values = holm([estimate.map(np.negative).p_at_most(-options.robust) for estimate in share.values()])
    verdicts = {signal: below(options.robust, estimate.interval()) for signal, estimate in share.items()}
    largest = max(share, key=lambda signal: share[signal].value)
    return Claim(
        claim=f"toy_noise.pwcca_robust.{reading.split()[-1]}",
        figure="2",
        source="section 2.2",
        statement=f"PWCCA is largely robust to noise, whatever the share of signal (noise read by its {reading}).",
        statistic=f"largest PWCCA distance as a share of that of mean CCA (below {options.robust:g}), at k = "
        f"{largest} of {options.neurons} signal neurons; {_where(verdicts)}; noise of {reading} 0.1; n = "
        f"{options.draws} draws, t test at each k, Holm",
        value=share[largest].value,
        interval=share[largest].interval(),
        p_value=float(max(p_values)),
        verdict=all_of(list(verdicts.values())),
    )


def _where(verdicts: dict[int, str]) -> str:
    """At which numbers of signal neurons a statement holds, and at which the reverse does."""
    holds, reverse = (
        [str(signal) for signal, verdict in verdicts.items() if verdict == wanted] for wanted in (REPRODUCED, REVERSED)
    )
    if len(holds) == len(verdicts):
        return "it holds at every k"
    words = f"it holds at {len(holds)} of {len(verdicts)} k" + (f" ({', '.join(holds)})" if holds else "")
    return words + (f", the reverse at {', '.join(reverse)}" if reverse else "")


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """Distance against the share of signal, one panel per reading of the noise; mean ± std over draws.

    A line marks the share from which on SVCCA is below PWCCA.
    """
    figure, axes = figures.panels(1, len(READINGS), height=2.6)
    rows = table.assign(share=100 * table["signal"] / options.neurons)
    for axis, reading in zip(axes, READINGS, strict=True):
        for measure, style in figures.measure_styles(options.measures).items():
            shown = select(rows, reading=reading, measure=measure)
            figures.mean_with_bars(axis, shown, "share", *style, figures.measure_label(measure))
        axis.set(xlabel="Signal neurons (%)", ylabel="Distance", title=f"noise of {reading} 0.1", xlim=(0, 103))
        figures.headroom(axis, 0.12)
        if (crossing := _crossing(select(rows, reading=reading))) is not None:
            axis.axvline(crossing, **figures.THRESHOLD)
            beyond_middle = crossing > 60
            side = {"ha": "right" if beyond_middle else "left", "fontsize": 6.5}
            figures.note(axis, "SVCCA below PWCCA", (crossing, 1.03), (-3 if beyond_middle else 3, 0), **side)
    figures.legend_outside(figure, *axes[0].get_legend_handles_labels())
    figures.letters(*axes)
    return figure


def _crossing(rows: pd.DataFrame) -> float | None:
    """The smallest share of signal from which on SVCCA's mean distance is below PWCCA's; None: there is none."""
    means = rows.pivot_table(index="share", columns="measure", values="value").sort_index()
    if not {"svcca", "pwcca"} <= {*means}:
        return None
    above = means.index[means["svcca"] >= means["pwcca"]]
    from_there = means.index[means.index > above.max()] if len(above) else means.index
    return float(from_there[0]) if len(from_there) else None
