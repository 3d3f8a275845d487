"""Figure 2: projection weighting finds the signal that layers share where the plain mean drowns it in noise.

Protocol (Morcos et al. 2018, section 2.2 and A.4). Two layers of 200 neurons on 2,000 data points: k neurons carry
signal, which the second layer holds after a random orthonormal transform; the other 200 - k are noise, drawn anew for
each layer. The paper's N(0, 0.1) does not say whether 0.1 is the standard deviation or the variance: both are drawn.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from cca_dynamics import statistics
from cca_dynamics.claims import Claim, exceeds
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.tables import tidy
from cca_dynamics.study import Cohort, ConfigError, Study

KEY = "results.toy_noise"
READINGS = {"standard deviation": 0.1, "variance": 0.1**0.5}
"""Standard deviation of the noise under both readings of N(0, 0.1)."""


def check(study: Study) -> None:
    """Refuse more signal than neurons, and neurons that data points do not suffice for."""
    options = study.options("toy_noise")
    if max(options["signal"]) >= options["neurons"]:
        raise ConfigError(
            f"{KEY}.signal",
            f"{max(options['signal'])} signal neurons leave no noise among {options['neurons']}; lower it",
        )
    if 2 * options["neurons"] >= options["points"]:
        raise ConfigError(
            f"{KEY}.points",
            f"two layers of {options['neurons']} neurons need more than {2 * options['neurons']} data points",
        )


def cohorts(study: Study) -> list[Cohort]:
    """No network is trained."""
    return []


def comparisons(options: dict) -> list[tuple[int, int, int]]:
    """(how often, data points, neurons) of the comparisons that `compute` makes."""
    times = options["draws"] * len(READINGS) * len(options["signal"]) * len(options["measures"])
    return [(times, options["points"], options["neurons"])]


def compute(inputs: Inputs, options: dict) -> pd.DataFrame:
    """Distances of all draws.

    Returns:
        Tidy rows: reading (of the noise), draw, signal (number of signal neurons), measure, quantity "distance", value,
        rank_a, rank_b, n.
    """
    from cca_dynamics.similarity import MEASURES, factorize

    rows = []
    for draw in range(options["draws"]):
        for reading, deviation in READINGS.items():
            for signal in options["signal"]:
                rng = np.random.default_rng([options["seed"], draw, signal, *reading.encode()])
                x, y = (factorize(layer, device=inputs.device) for layer in layers(signal, deviation, options, rng))
                for measure in options["measures"]:
                    result = MEASURES[measure](x, y)
                    rows.append(
                        {
                            "reading": reading,
                            "draw": draw,
                            "signal": signal,
                            "measure": measure,
                            "quantity": "distance",
                            "value": result.distance,
                            "rank_a": result.rank_x,
                            "rank_b": result.rank_y,
                            "n": result.n,
                        }
                    )
    return tidy([pd.DataFrame(rows)])


def layers(signal: int, deviation: float, options: dict, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two (points, neurons) layers that share `signal` directions up to a rotation."""
    points, noisy = options["points"], options["neurons"] - signal
    shared = rng.normal(size=(points, signal))
    rotation, _ = np.linalg.qr(rng.normal(size=(signal, signal)))
    noise = deviation * rng.normal(size=(2, points, noisy))
    return np.hstack([shared, noise[0]]), np.hstack([shared @ rotation, noise[1]])


def claims(table: pd.DataFrame, options: dict) -> list[Claim]:
    """The claims of figure 2, under both readings of the noise."""
    few = [signal for signal in options["signal"] if signal <= options["neurons"] / 2]
    found = []
    for reading in READINGS:
        rows = table[table["reading"] == reading]
        by_draw = rows.pivot_table(index="draw", columns=["measure", "signal"], values="value")
        pairs = [("mean_cca", "svcca", "SVCCA"), ("svcca", "pwcca", "PWCCA"), ("mean_cca", "pwcca", "PWCCA")]
        for index, (more, less, name) in enumerate(pairs):
            if more not in options["measures"] or less not in options["measures"]:
                continue
            excess = (by_draw[more][few] - by_draw[less][few]).mean(axis=1).to_numpy()
            interval = statistics.bootstrap_mean(excess, options["seed"] + index)
            p = statistics.wilcoxon_p(excess)
            title = {"mean_cca": "the unweighted mean", "svcca": "SVCCA"}[more]
            found.append(
                Claim(
                    claim=f"toy_noise.{more}_over_{less}.{reading.split()[-1]}",
                    figure="2",
                    statement=f"Where little signal is shared, {title} overestimates distance more than {name} "
                    f"(noise read by its {reading}).",
                    statistic=f"excess distance, mean over k ≤ {max(few)} of {options['neurons']} signal neurons, "
                    f"noise of {reading} 0.1; n = {options['draws']} draws, paired Wilcoxon test",
                    value=float(excess.mean()),
                    ci_low=interval[0],
                    ci_high=interval[1],
                    p_value=p,
                    paper_value=math.nan,
                    verdict=exceeds(0, interval, p),
                )
            )
    return found


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: dict):
    """Distance against the share of signal, one panel per reading of the noise; mean ± std over draws."""
    from cca_dynamics import figures

    figure, axes = figures.panels(1, len(READINGS), height=2.6)
    styles = dict(zip(options["measures"], figures.SERIES, strict=False))
    for axis, reading in zip(axes, READINGS, strict=True):
        rows = table[table["reading"] == reading]
        for measure, (colour, marker) in styles.items():
            values = rows[rows["measure"] == measure].pivot_table(index="draw", columns="signal", values="value")
            share = 100 * values.columns.to_numpy(float) / options["neurons"]
            figures.line_with_bars(axis, share, values.mean(), values.std(), colour, marker, figures.MEASURES[measure])
        axis.set(xlabel="Signal neurons (%)", ylabel="Distance", title=f"noise of {reading} 0.1", xlim=(0, 103))
        figures.headroom(axis, 0.0)
    axes[-1].legend(loc="upper right")
    figures.letters(*axes)
    return figure
