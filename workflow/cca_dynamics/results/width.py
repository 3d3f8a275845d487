"""Figures 4, A6 and A7: wider networks converge to more similar solutions.

Protocol (Morcos et al. 2018, section 3.2). Every layer of the network is scaled by a multiplier; within the group of
networks of each width, distances between all pairs at the final convolutional layer, on the same number of random
filters at every width. The same networks before training are the control for initialisation.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import AfterValidator

from cca_dynamics.config.base import Count, each_once
from cca_dynamics.config.cohorts import Cohort, LayerRequest
from cca_dynamics.config.models import (
    MEASURES_DESCRIPTION,
    PWCCA_DESCRIPTION,
    Layer,
    Measures,
    Multiplier,
    Networks,
    Pwcca,
    StageOptions,
    StudyConfig,
    TrainedResultOptions,
    TrainingOverrides,
    option,
)
from cca_dynamics.errors import ConfigError
from cca_dynamics.results import figures, statistics
from cca_dynamics.results.claims import (
    MISSED,
    Claim,
    Interval,
    Obstacle,
    estimate_claim,
    exceeds,
    missed_claims,
    too_few,
)
from cca_dynamics.results.inputs import Inputs, final_performance
from cca_dynamics.results.layers import require_layer
from cca_dynamics.results.tables import CONTROLS, distance_matrix, distance_table, measures_of, select, tidy

KEY = "results.width"
PUBLISHED_CORRELATION = -0.96
PUBLISHED = pd.DataFrame({"state": ["trained", "trained", "untrained", "untrained"], "value": [0.47, 0.28, 0.67, 0.63]})
"""Distances of the narrowest and of the widest networks in the paper (CIFAR-10, multipliers .25 to 7)."""


class Options(TrainedResultOptions):
    """The keys of results.width."""

    networks: Networks = option(5, "train", "claims", description="Networks of each width.")
    multipliers: Annotated[tuple[Multiplier, ...], AfterValidator(each_once)] = option(
        (0.125, 0.1875, 0.25, 0.5, 1),
        *("train", "compute", "claims"),
        min_length=3,
        description="Each multiplies network.channels.",
    )
    training: TrainingOverrides = option(
        TrainingOverrides(epochs=25, weight_decay=0.005, evaluate_every=25),
        "train",
        description="Keys of the training recipe that differ from the base recipe's.",
    )
    layer: Layer = option("conv5", "activations", "compute", "plot", description="The final convolutional layer.")
    filters: Count = option(16, "compute", description="Random filters of the layer compared at every width.")
    measures: Measures = option(
        ("pwcca", "cosine", "euclidean"), "compute", "claims", "plot", description=MEASURES_DESCRIPTION
    )
    pwcca: Pwcca = option("pwcca", "compute", "plot", description=PWCCA_DESCRIPTION)


ALTERNATIVES = {
    "pwcca": ("pwcca_squared",),
    "filters": (8,),
    "training.weight_decay": (0,),
    "dataset": ({"name": "digits"},),
}
"""Other values that the paper's words allow, the default of multiverse.width."""


def check(config: StudyConfig, options: Options) -> None:
    """Refuse more filters than the narrowest network has."""
    for multiplier in options.multipliers:
        network = config.network_of("width").widened(multiplier)
        filters = require_layer(f"{KEY}.layer", options.layer, network)
        if filters is None:
            raise ConfigError(f"{KEY}.layer", "softmax does not grow with width; choose a convolutional layer")
        if options.filters > filters:
            raise ConfigError(
                f"{KEY}.filters",
                f"{options.filters} filters are more than the {filters} of {options.layer} at multiplier "
                f"{multiplier:g}; use {filters} or fewer, or drop that multiplier",
            )


def obstacles(config: StudyConfig, options: Options) -> list[Obstacle]:
    """Settings under which claims could never be reproduced."""
    return [
        *too_few(f"{KEY}.networks", options.networks, "networks of each width"),
        *too_few(f"{KEY}.multipliers", len(options.multipliers), "widths", statistics.smallest_order_p),
    ]


def cohorts(config: StudyConfig, options: Options) -> list[Cohort]:
    """One cohort per width, stored before and after training."""
    request = LayerRequest(epochs="all", splits=("train",), layers=(options.layer,), points=config.data_points)
    return [
        Cohort(
            name=f"width-{multiplier:g}",
            networks=options.networks,
            network=config.network_of("width").widened(multiplier),
            training=config.training_of("width"),
            checkpoints=(0,),
            requests=(request,),
        )
        for multiplier in sorted(options.multipliers)
    ]


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """Distances within each width, before and after training, and how well each network does.

    Returns:
        Tidy rows. quantity "distance": multiplier, filters (neurons of the layer), state ("trained", "untrained"),
        measure, network_a, network_b, value, rank_a, rank_b, n, floor. quantity "loss", "train_accuracy",
        "test_accuracy": multiplier, network, value.
    """
    tables = []
    for multiplier in sorted(options.multipliers):
        cohort = f"width-{multiplier:g}"
        steps = [step for step, _ in inputs.checkpoints(cohort)]
        for state, step in (("untrained", steps[0]), ("trained", steps[-1])):
            networks = inputs.representations(cohort, options.layer, step)
            filters = networks.shape[2]
            subsets = [
                states[:, _filters(options, multiplier, network, filters)]
                for network, states in zip(inputs.trained(cohort), networks, strict=True)
            ]
            rows = distance_table(subsets, measures_of(options), inputs.device, inputs.finished_blocks)
            tables.append(rows.assign(multiplier=multiplier, filters=filters, state=state))
        tables.append(final_performance(inputs, cohort, multiplier=multiplier, filters=filters))
    return tidy(tables)


def _filters(options: StageOptions, multiplier: float, network: int, available: int) -> np.ndarray:
    """The random filters of one network; the same before and after training."""
    rng = np.random.default_rng([options.seed, round(multiplier * 1e6), network])
    return np.sort(rng.choice(available, size=options.filters, replace=False))


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """The claims of figures 4, A6 and A7."""
    seed, multipliers = options.seed, sorted(options.multipliers)
    accuracy, accuracy_samples = _mean_accuracies(table, multipliers, seed)
    trained, trained_samples = _mean_distances(table, multipliers, seed, state="trained")
    untrained, untrained_samples = _mean_distances(table, multipliers, seed, state="untrained")
    ranks = np.arange(len(multipliers))
    published = {state: _fall(rows["value"].to_numpy()) for state, rows in PUBLISHED.groupby("state")}
    groups = f"{len(multipliers)} widths, n = {options.networks} networks each"
    return [
        _negative_claim(
            statistics.spearman(ranks, trained),
            statistics.spearman(ranks, trained_samples),
            statistics.order_p(trained, lambda values: -statistics.spearman(ranks, values), seed),
            claim="width.trend",
            figure="4",
            statement="Wider networks converge to more similar solutions.",
            statistic=f"Spearman correlation of width and mean distance; {groups}, permutation of widths, "
            "bootstrap of networks",
        ),
        _negative_claim(
            statistics.pearson(accuracy, trained),
            statistics.pearson(accuracy_samples, trained_samples),
            statistics.order_p(trained, lambda values: -statistics.pearson(accuracy, values), seed),
            claim="width.accuracy",
            figure="4",
            statement="The closer a group's networks are to each other, the better they generalize.",
            statistic=f"Pearson correlation of test accuracy and distance over widths; {groups}, permutation of "
            "widths, bootstrap of networks",
            paper_value=PUBLISHED_CORRELATION,
        ),
        estimate_claim(
            0,
            (_fall(trained) - _fall(untrained), _fall(trained_samples) - _fall(untrained_samples)),
            claim="width.not_initialisation",
            figure="A7",
            statement="Training, not initialisation, brings wide networks together.",
            statistic=f"relative fall of distance from narrowest to widest, trained minus untrained; {groups}, "
            "bootstrap of networks",
            paper_value=float(published["trained"] - published["untrained"]),
        ),
        *missed_claims(
            {measure: _fall_of_control(table, options, measure) for measure in CONTROLS if measure in options.measures},
            claim="width.raw_miss_it",
            figure="A6",
            statement="Cosine and Euclidean distance do not reveal that wider networks are more similar.",
            effect="relative fall of distance from narrowest to widest",
            details=f" (below {MISSED:g}; PWCCA sees {_fall(trained):.2f}); {groups}, bootstrap of networks",
        ),
    ]


def _negative_claim(value: float, samples: np.ndarray, p_value: float, **fields: object) -> Claim:
    """The claim that a correlation is negative, from its bootstrap samples (B,) and a test."""
    low, high = statistics.interval(samples)
    verdict = exceeds(0, (-high, -low), p_value)
    return Claim(value=float(value), interval=(low, high), p_value=p_value, verdict=verdict, **fields)


def _mean_distances(
    table: pd.DataFrame, multipliers: list[float], seed: int, *, state: str, measure: str = "pwcca"
) -> tuple[np.ndarray, np.ndarray]:
    """Mean distance at each of K widths (K,), and its bootstrap samples (B, K)."""
    rows, means, samples = select(table, quantity="distance", state=state, measure=measure), [], []
    for index, multiplier in enumerate(multipliers):
        matrix = distance_matrix(select(rows, multiplier=multiplier))
        means.append(float(statistics.mean_within(matrix, np.ones(len(matrix)))))
        samples.append(statistics.mean_within(matrix, _resampled(len(matrix), seed + index)))
    return np.array(means), np.stack(samples, axis=1)


def _mean_accuracies(table: pd.DataFrame, multipliers: list[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean test accuracy at each of K widths (K,), and its samples (B, K) for the networks of `_mean_distances`."""
    rows, means, samples = select(table, quantity="test_accuracy"), [], []
    for index, multiplier in enumerate(multipliers):
        accuracies = select(rows, multiplier=multiplier).sort_values("network")["value"].to_numpy()
        weights = _resampled(len(accuracies), seed + index)
        means.append(float(accuracies.mean()))
        samples.append(weights @ accuracies / weights.sum(axis=1))
    return np.array(means), np.stack(samples, axis=1)


def _resampled(networks: int, seed: int) -> np.ndarray:
    return statistics.bootstrap_weights(["one width"] * networks, seed)


def _fall(distances: np.ndarray) -> np.ndarray:
    """Share of the narrowest networks' distance (..., K) that the widest have lost (...,)."""
    return 1 - distances[..., -1] / distances[..., 0]


def _fall_of_control(table: pd.DataFrame, options: StageOptions, measure: str) -> tuple[float, Interval]:
    """The fall under another measure than PWCCA, and its interval."""
    ends = [min(options.multipliers), max(options.multipliers)]
    means, samples = _mean_distances(table, ends, options.seed, state="trained", measure=measure)
    return float(_fall(means)), statistics.interval(_fall(samples))


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """Distance over width, trained and untrained (figures 4a, A7), test accuracy against it (4b), controls (A6)."""
    others = [measure for measure in options.measures if measure != "pwcca"]
    figure, axes = figures.panels_in_pairs(2 + len(others), height=2.6)
    left, right, *controls = axes
    distances = select(table, quantity="distance")
    pwcca = select(distances, measure="pwcca")
    styles = {"trained": (figures.BLUE, "o"), "untrained": (figures.GREY, "D")}
    for state, style in styles.items():
        rows = select(pwcca, state=state)
        figures.mean_with_bars(left, rows, "filters", *style, state)
        ends, published = [rows["filters"].min(), rows["filters"].max()], select(PUBLISHED, state=state)["value"]
        figures.published_points(left, ends, published, *style, f"{state}, paper (CIFAR-10)", 24)
    figures.floor_line(left, pwcca, "filters")
    figures.headroom(left, 0.4)
    left.set_ylabel("PWCCA distance")
    _draw_accuracy(right, table, claims)
    for axis, measure in zip(controls, others, strict=True):
        rows = select(distances, measure=measure)
        for state, style in styles.items():
            figures.mean_with_bars(axis, select(rows, state=state), "filters", *style, state)
        axis.set_ylabel(f"{figures.measure_label(measure)} distance")
        axis.set_ylim(0, 1.25 * float(rows["value"].max()))
    widths = sorted(pwcca["filters"].unique())
    for axis in (left, *controls):
        axis.set_xscale("log", base=2)
        axis.set_xticks(widths, [f"{width:g}" for width in widths])
        axis.minorticks_off()
        axis.set_xlabel(f"Filters in {options.layer}")
        axis.legend(loc="upper left", ncols=2)
    figures.letters(*axes)
    return figure


def _draw_accuracy(axis, table: pd.DataFrame, claims: pd.DataFrame) -> None:
    """Test accuracy against PWCCA distance, one point per width, with their correlation."""
    distance, accuracy = (
        rows.groupby("filters")["value"].agg(["mean", "std"])
        for rows in (
            select(table, quantity="distance", measure="pwcca", state="trained"),
            select(table, quantity="test_accuracy"),
        )
    )
    for (colour, marker), filters in zip(figures.sequential(len(distance)), distance.index, strict=True):
        axis.errorbar(
            distance.loc[filters, "mean"],
            100 * accuracy.loc[filters, "mean"],
            xerr=distance.loc[filters, "std"],
            yerr=100 * accuracy.loc[filters, "std"],
            fmt=marker,
            color=colour,
            capsize=2,
            label=f"{filters:g} filters",
        )
    row = claims.set_index("claim").loc["width.accuracy"]
    r = f"r = {row['value']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
    published = f"paper (CIFAR-10): r = {row['paper_value']:.2f}"
    axis.text(0.97, 0.97, f"{r}\n{published}", transform=axis.transAxes, ha="right", va="top")
    axis.set(xlabel="PWCCA distance", ylabel="Test accuracy (%)")
    axis.legend(loc="lower left")
