"""Figure 2: projection weighting finds the signal that layers share where the plain mean drowns it in noise.

Protocol (Morcos et al. 2018, section 2.2 and A.4). Two layers of 200 neurons on 2,000 data points: k neurons carry
signal, which the second layer holds after a random orthonormal transform; the other 200 - k are noise, drawn anew for
each layer. The paper's N(0, 0.1) does not say whether 0.1 is the standard deviation or the variance: both are drawn.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import AfterValidator

from cca_dynamics.config.base import MANY, Count, Integer, each_once
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
from cca_dynamics.results import figures, statistics
from cca_dynamics.results.claims import Claim, Obstacle, mean_claim, too_few
from cca_dynamics.results.inputs import Inputs
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
    draws: Integer = option(20, "compute", "claims", ge=2, le=1000, description="Random draws of the layers.")
    measures: Measures = option(
        ("mean_cca", "svcca", "pwcca"), "compute", "claims", "plot", description=MEASURES_DESCRIPTION
    )
    pwcca: Pwcca = option("pwcca", "compute", "plot", description=PWCCA_DESCRIPTION)


ALTERNATIVES = {"pwcca": ("pwcca_squared",)}
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
    return too_few(f"{KEY}.draws", options.draws, "draws", statistics.smallest_sign_p)


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


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """The claims of figure 2, under both readings of the noise."""
    names = {"mean_cca": "the unweighted mean", "svcca": "SVCCA", "pwcca": "PWCCA"}
    pairs = [("mean_cca", "svcca"), ("svcca", "pwcca"), ("mean_cca", "pwcca")]
    few = [signal for signal in options.signal if signal <= options.neurons / 2]
    result = []
    for reading in READINGS:
        rows = select(table, reading=reading)
        by_draw = rows.pivot_table(index="draw", columns=["measure", "signal"], values="value")
        for index, (more, less) in enumerate(pairs):
            if not {more, less} <= {*options.measures}:
                continue
            excess = (by_draw[more][few] - by_draw[less][few]).mean(axis=1).to_numpy()
            result.append(
                mean_claim(
                    0,
                    excess,
                    options.seed + index,
                    p_value=statistics.wilcoxon_p(excess),
                    claim=f"toy_noise.{more}_over_{less}.{reading.split()[-1]}",
                    figure="2",
                    statement=f"Where little signal is shared, {names[more]} overestimates distance more than "
                    f"{names[less]} (noise read by its {reading}).",
                    statistic=f"excess distance, mean over k ≤ {max(few)} of {options.neurons} signal neurons, "
                    f"noise of {reading} 0.1; n = {options.draws} draws, paired Wilcoxon test",
                )
            )
    return result


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """Distance against the share of signal, one panel per reading of the noise; mean ± std over draws."""
    figure, axes = figures.panels(1, len(READINGS), height=2.6)
    rows = table.assign(share=100 * table["signal"] / options.neurons)
    for axis, reading in zip(axes, READINGS, strict=True):
        for measure, style in zip(options.measures, figures.SERIES, strict=False):
            shown = select(rows, reading=reading, measure=measure)
            figures.mean_with_bars(axis, shown, "share", *style, figures.measure_label(measure))
        axis.set(xlabel="Signal neurons (%)", ylabel="Distance", title=f"noise of {reading} 0.1", xlim=(0, 103))
        figures.headroom(axis, 0.0)
    axes[-1].legend(loc="upper right")
    figures.letters(*axes)
    return figure
