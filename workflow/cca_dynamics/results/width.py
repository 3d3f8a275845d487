"""Figures 4, A6 and A7: wider networks converge to more similar solutions.

Protocol (Morcos et al. 2018, section 3.2). Every layer of the network is scaled by a multiplier; within the group of
networks of each width, distances between all pairs at the final convolutional layer, on the same number of random
filters at every width. One draw of few filters of a wide layer is noisy, so distances are means over many draws. The
same networks before training are the control for initialisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import AfterValidator

from cca_dynamics.config.base import Count, Number, each_once
from cca_dynamics.config.cohorts import Cohort
from cca_dynamics.config.models import (
    MEASURES_DESCRIPTION,
    PWCCA_DESCRIPTION,
    TRAIN_SIZE_DESCRIPTION,
    Layer,
    Measures,
    Multiplier,
    Networks,
    Pwcca,
    StageOptions,
    StudyConfig,
    TrainedResultOptions,
    TrainingOverrides,
    TrainSize,
    option,
)
from cca_dynamics.errors import ConfigError
from cca_dynamics.results import classifiers, figures, statistics
from cca_dynamics.results.claims import (
    FITTED,
    MISSED,
    Claim,
    Obstacle,
    equivalence_claim,
    estimate_claim,
    exceeds,
    fitted_claim,
    missed_claims,
    provided,
    too_few,
)
from cca_dynamics.results.inputs import Inputs, final_performance
from cca_dynamics.results.layers import require_layer
from cca_dynamics.results.published import combined, published, published_value
from cca_dynamics.results.statistics import Estimate
from cca_dynamics.results.tables import CONTROLS, distance_matrix, distance_table, measures_of, select, tidy

KEY = "results.width"


class Options(TrainedResultOptions):
    """The keys of results.width."""

    networks: Networks = option(5, "train", "claims", description="Networks of each width.")
    multipliers: Annotated[tuple[Multiplier, ...], AfterValidator(each_once)] = option(
        (0.25, 0.375, 0.5, 0.75, 1),
        *("train", "compute", "claims"),
        min_length=3,
        description="Each multiplies network.channels.",
    )
    training: TrainingOverrides = option(
        TrainingOverrides(epochs=25, evaluate_every=25),
        "train",
        description="Keys of the training recipe that differ from the base recipe's.",
    )
    train_size: TrainSize = option(None, "train", description=TRAIN_SIZE_DESCRIPTION)
    layer: Layer = option("conv5", "activations", "compute", "plot", description="The final convolutional layer.")
    filters: Count = option(16, "compute", description="Random filters of the layer compared at every width.")
    filter_draws: Count = option(20, "compute", "claims", description="Draws of them over which distances are means.")
    margin: Number = option(
        0.05,
        "claims",
        gt=0,
        le=0.5,
        description="Wide untrained networks whose distances differ by less are on a plateau.",
    )
    measures: Measures = option(
        ("pwcca", "cosine", "euclidean"), "compute", "claims", "plot", description=MEASURES_DESCRIPTION
    )
    pwcca: Pwcca = option("pwcca", "compute", "plot", description=PWCCA_DESCRIPTION)


ALTERNATIVES = {
    "pwcca": ("pwcca_squared", "pwcca_thresholded"),
    "filters": (8, 32),
    "training.weight_decay": (0.0005,),
    "dataset": ({"name": "digits"},),
}
"""Other values that the paper's words allow, the default of multiverse.width."""


def check(config: StudyConfig, options: Options) -> None:
    """Refuse more filters than the narrowest network has, and too few training examples for the widest."""
    widest = config.network_of("width").widened(max(options.multipliers))
    classifiers.check_train_size(config, "width", [widest])
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
    return [classifiers.of_width(config, multiplier) for multiplier in sorted(options.multipliers)]


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """Distances within each width, before and after training, and how well each network does.

    Returns:
        Tidy rows. quantity "distance": multiplier, filters (neurons of the layer), state ("trained", "untrained"),
        measure, network_a, network_b, value and floor (means over the draws of filters), rank_a, rank_b, n, forced (of
        the first draw). quantity "spread_over_draws": multiplier, filters, state, measure, value (standard deviation
        over draws of the mean distance; 0 where all filters are compared). quantity "loss", "train_accuracy",
        "test_accuracy": multiplier, filters, network, value.
    """
    tables = []
    for multiplier in sorted(options.multipliers):
        cohort = f"width-{multiplier:g}"
        steps = [step for step, _ in inputs.checkpoints(cohort)]
        for state, step in (("untrained", steps[0]), ("trained", steps[-1])):
            networks = inputs.representations(cohort, options.layer, step)
            filters = networks.shape[2]
            rows = _distances_over_draws(inputs, options, multiplier, inputs.trained(cohort), networks)
            tables.append(rows.assign(multiplier=multiplier, filters=filters, state=state))
        tables.append(final_performance(inputs, cohort, multiplier=multiplier, filters=filters))
    return tidy(tables)


def _distances_over_draws(
    inputs: Inputs, options: StageOptions, multiplier: float, numbers: np.ndarray, networks: np.ndarray
) -> pd.DataFrame:
    """Distances between networks of one width, and their spread over draws; rows as those of `compute`."""
    draws = options.filter_draws if options.filters < networks.shape[2] else 1
    of_draws = []
    for draw in range(draws):
        subsets = [
            states[:, _filters(options, multiplier, number, draw, networks.shape[2])]
            for number, states in zip(numbers, networks, strict=True)
        ]
        of_draws.append(distance_table(subsets, measures_of(options), inputs.device, inputs.finished_blocks))
    rows = of_draws[0]
    means = [np.mean([table[column] for table in of_draws], axis=0) for column in ("value", "floor")]
    by_draw = pd.DataFrame([table.groupby("measure", sort=False)["value"].mean() for table in of_draws])
    spread = by_draw.std(ddof=1) if draws > 1 else 0 * by_draw.iloc[0]
    spread_rows = pd.DataFrame(
        {"measure": by_draw.columns, "quantity": "spread_over_draws", "value": spread.to_numpy()}
    )
    return pd.concat([rows.assign(value=means[0], floor=means[1]), spread_rows], ignore_index=True)


def _filters(options: StageOptions, multiplier: float, network: int, draw: int, available: int) -> np.ndarray:
    """The random filters of one network in one draw; the same before and after training."""
    rng = np.random.default_rng([options.seed, round(multiplier * 1e6), network, draw])
    return np.sort(rng.choice(available, size=options.filters, replace=False))


class Widths:
    """Distances and accuracies of networks of K widths, under weights of all their networks.

    Args:
        table: written by `compute`.
        multipliers: the K widths.
    """

    def __init__(self, table: pd.DataFrame, multipliers: list[float]):
        self._multipliers = multipliers
        rows = select(table, quantity="distance")
        self._matrices = {
            key: distance_matrix(pairs) for key, pairs in rows.groupby(["multiplier", "state", "measure"])
        }
        accuracy = select(table, quantity="test_accuracy").sort_values(["multiplier", "network"])
        self._groups = accuracy["multiplier"].to_numpy()
        self._accuracies = accuracy["value"].to_numpy()

    def estimate(self, statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        """A statistic that takes weights (B, N) of the networks of all widths."""
        return Estimate.of(statistic, self._groups)

    def distances(self, weights: np.ndarray, state: str = "trained", measure: str = "pwcca") -> np.ndarray:
        """Mean distance within each width, (B, K)."""
        parts = [
            statistics.mean_within(self._matrices[multiplier, state, measure], weights[:, self._groups == multiplier])
            for multiplier in self._multipliers
        ]
        return np.stack(parts, axis=-1)

    def accuracies(self, weights: np.ndarray) -> np.ndarray:
        """Mean test accuracy of each width, (B, K)."""
        is_of_width = np.stack([self._groups == multiplier for multiplier in self._multipliers], axis=1)
        return (weights * self._accuracies) @ is_of_width / (weights @ is_of_width)

    def all_alike(self) -> np.ndarray:
        """Weights (1, N) under which every network counts once."""
        return np.ones((1, len(self._groups)))

    def pairs(self) -> pd.DataFrame:
        """All pairs of networks of one width: first, second (positions among all networks), multiplier, distance (mean
        of both directions), accuracy (mean of both)."""
        tables = []
        for multiplier in self._multipliers:
            matrix, members = self._matrices[multiplier, "trained", "pwcca"], np.flatnonzero(self._groups == multiplier)
            i, j = np.triu_indices(len(members), 1)
            accuracy = (self._accuracies[members[i]] + self._accuracies[members[j]]) / 2
            pairs = {"first": members[i], "second": members[j], "multiplier": multiplier}
            tables.append(pd.DataFrame({**pairs, "distance": (matrix + matrix.T)[i, j] / 2, "accuracy": accuracy}))
        return pd.concat(tables, ignore_index=True)


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """The claims of figures 4, A6 and A7."""
    multipliers = sorted(options.multipliers)
    widths = Widths(table, multipliers)
    groups = f"{len(multipliers)} widths, n = {options.networks} networks each"
    fitted = fitted_claim(
        select(table, quantity="train_accuracy")["value"].to_numpy(),
        claim="width.fitted",
        figure="4",
        statement="Networks of every width fit their training labels (the comparison's precondition).",
        statistic=f"lowest train accuracy of a network (at least {FITTED:g}); {groups}",
        source="section 3.2",
    )
    trend = _trend(widths, multipliers, options, groups)
    return [
        *provided(
            fitted,
            [
                trend,
                *_accuracy(widths, options, groups),
                _not_initialisation(widths, groups),
                *provided(trend, _missed(widths, options, groups))[1:],
            ],
        ),
        _plateau(widths, multipliers, options, groups),
    ]


def _trend(widths: Widths, multipliers: list[float], options: StageOptions, groups: str) -> Claim:
    """Does distance fall with width?"""
    doublings = np.log2(multipliers)
    trained = widths.distances(widths.all_alike())[0]
    ends = published("4", "trained").sort_values("x")
    paper = 1 / np.log2(ends["x"].iloc[-1] / ends["x"].iloc[0])
    return estimate_claim(
        0,
        widths.estimate(lambda weights: -statistics.slope(doublings, widths.distances(weights))),
        p_value=statistics.order_p(trained, lambda values: -statistics.slope(doublings, values), options.seed),
        claim="width.trend",
        figure="4",
        statement="Wider networks converge to more similar solutions.",
        statistic=f"fall of the mean distance per doubling of the width (slope on its logarithm); {groups}, "
        "permutation of widths, jackknife of networks",
        source="section 3.2; article",
        **combined((paper, ends.iloc[:1]), (-paper, ends.iloc[-1:])),
    )


def _accuracy(widths: Widths, options: StageOptions, groups: str) -> list[Claim]:
    """Do closer networks generalize better: over pairs, over the means of widths, and within widths?"""
    pairs = widths.pairs()
    first, second = pairs["first"].to_numpy(), pairs["second"].to_numpy()

    columns = [pairs[column].to_numpy() for column in ("accuracy", "distance")]

    def over_pairs(weights: np.ndarray) -> np.ndarray:
        return statistics.weighted_pearson(*columns, weights[:, first] * weights[:, second])

    def within(weights: np.ndarray) -> np.ndarray:
        """As `over_pairs`, of both numbers minus their mean over those pairs of the same width that count."""
        weights = weights[:, first] * weights[:, second]
        is_of_width = pd.get_dummies(pairs["multiplier"]).to_numpy(dtype=float)
        totals = weights @ is_of_width
        centred = (values - ((weights * values) @ is_of_width / totals) @ is_of_width.T for values in columns)
        return statistics.weighted_pearson(*centred, weights)

    everyone = widths.all_alike()
    accuracy, trained = widths.accuracies(everyone)[0], widths.distances(everyone)[0]
    test = "jackknife of networks"
    return [
        _negative_claim(
            widths.estimate(over_pairs),
            claim="width.accuracy_pairs",
            figure="4",
            statement="Across pairs of networks, the closer two networks are, the better they generalize.",
            statistic=f"Pearson correlation of a pair's mean test accuracy and its distance over {len(pairs)} pairs; "
            f"{groups}, {test}",
            source="section 3.2; article",
            **_paper(published_value("4", "correlation")),
        ),
        _negative_claim(
            widths.estimate(lambda weights: statistics.pearson(widths.accuracies(weights), widths.distances(weights))),
            p_value=statistics.order_p(trained, lambda values: -statistics.pearson(accuracy, values), options.seed),
            claim="width.accuracy_widths",
            figure="4",
            statement="The closer the networks of one width are, the better networks of this width generalize.",
            statistic=f"Pearson correlation of mean test accuracy and mean distance over widths; {groups}, permutation "
            f"of widths, {test}",
            source="section 3.2; article",
        ),
        _negative_claim(
            widths.estimate(within),
            claim="width.within_width",
            figure="4",
            statement="Within one width, closer pairs of networks generalize better (our question; the paper does not "
            "separate it from width).",
            statistic="Pearson correlation of a pair's mean test accuracy and its distance, both minus their mean over "
            f"the pairs of that width; {groups}, {test}",
            source="ours",
        ),
    ]


def _not_initialisation(widths: Widths, groups: str) -> Claim:
    """Does distance fall more in trained networks than in untrained ones?"""
    trained, untrained = (_published_fall(state) for state in ("trained", "untrained"))
    return estimate_claim(
        0,
        widths.estimate(
            lambda weights: _fall(widths.distances(weights)) - _fall(widths.distances(weights, "untrained"))
        ),
        claim="width.not_initialisation",
        figure="A7",
        statement="Training, not initialisation, brings wide networks together.",
        statistic="relative fall of distance from narrowest to widest, trained minus untrained; "
        f"{groups}, jackknife of networks",
        source="section 3.2",
        paper_value=trained[0] - untrained[0],
        paper_error=float(np.hypot(trained[1], untrained[1])),
    )


def _plateau(widths: Widths, multipliers: list[float], options: StageOptions, groups: str) -> Claim:
    """Are untrained networks equally far apart in the wider half of the widths?

    The paper sees no fall beyond about 1,000 filters, which 6 of its 13 widths have.
    """
    wide = max(2, len(multipliers) // 2)

    def difference(index: int) -> Estimate:
        def of(weights: np.ndarray) -> np.ndarray:
            distances = widths.distances(weights, "untrained")
            return distances[:, index] - distances[:, -1]

        return widths.estimate(of)

    names = " and ".join(f"{multiplier:g}" for multiplier in multipliers[-wide:])
    return equivalence_claim(
        options.margin,
        [difference(-index) for index in range(wide, 1, -1)],
        claim="width.plateau",
        figure="A7",
        statement="Before training, beyond some width, wider networks are no more similar to each other.",
        statistic=f"largest difference of the untrained distance from that of the widest, at multipliers {names} (a "
        f"plateau: within ±{options.margin:g}); {groups}, two one-sided tests, jackknife of networks",
        source="appendix, figure A7",
    )


def _missed(widths: Widths, options: StageOptions, groups: str) -> list[Claim]:
    """Do cosine and Euclidean distance miss it?"""

    def fall(measure: str) -> Estimate:
        return widths.estimate(lambda weights: _fall(widths.distances(weights, measure=measure)))

    return missed_claims(
        {measure: fall(measure) for measure in CONTROLS if measure in options.measures},
        claim="width.raw_miss_it",
        figure="A6",
        statement="that wider networks are more similar.",
        effect="relative fall of distance from narrowest to widest",
        details=f" (missed: within ±{MISSED:g}; PWCCA sees {fall('pwcca').value:.2f}); {groups}, jackknife of networks",
        source="appendix, figure A6",
    )


def _negative_claim(correlation: Estimate, p_value: float = np.nan, **fields: object) -> Claim:
    """The claim that a correlation is negative, judged by its interval and, if there is one, by a test."""
    low, high = statistics.correlation_interval(correlation)
    verdict = exceeds(0, (-high, -low), p_value)
    return Claim(value=correlation.value, interval=(low, high), p_value=p_value, verdict=verdict, **fields)


def _paper(value_and_error: tuple[float, float]) -> dict[str, float]:
    value, error = value_and_error
    return {"paper_value": value, "paper_error": error}


def _fall(distances: np.ndarray) -> np.ndarray:
    """Share of the narrowest networks' distance (..., K) that the widest have lost (...,)."""
    return 1 - distances[..., -1] / distances[..., 0]


def _published_fall(state: str) -> tuple[float, float]:
    """The fall in the paper, and its error."""
    rows = published("4", state)
    (narrow, wide), (error_narrow, error_wide) = rows["value"], rows["error"]
    return 1 - wide / narrow, float(np.hypot(error_wide / narrow, error_narrow * wide / narrow**2))


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """Distance over width, trained and untrained (figures 4a, A7), test accuracy against it (4b), controls (A6)."""
    others = [measure for measure in options.measures if measure != "pwcca"]
    figure, axes = figures.panels_in_pairs(2 + len(others), height=2.5)
    left, right, *controls = axes
    distances = select(table, quantity="distance")
    pwcca = select(distances, measure="pwcca")
    styles = {"trained": (figures.BLUE, "o"), "untrained": (figures.GREY, "D")}
    for state, style in styles.items():
        rows = select(pwcca, state=state)
        figures.mean_with_bars(left, rows, "filters", *style, state)
        ends = [rows["filters"].min(), rows["filters"].max()]
        figures.published_points(left, ends, published("4", state)["value"], *style, f"{state}, paper (CIFAR-10)", 45)
    figures.floor_line(left, pwcca, "filters")
    figures.headroom(left, 0.03)
    left.set_ylabel("PWCCA distance")
    _draw_accuracy(figure, right, table, claims, options)
    for axis, measure in zip(controls, others, strict=True):
        rows = select(distances, measure=measure)
        for state, style in styles.items():
            figures.mean_with_bars(axis, select(rows, state=state), "filters", *style, state)
        axis.set_ylabel(f"{figures.measure_label(measure)} distance")
        axis.set_ylim(0, 1.1 * float(rows["value"].max()))
    widths = sorted(pwcca["filters"].unique())
    for axis in (left, *controls):
        axis.set_xscale("log", base=2)
        axis.set_xticks(widths, [f"{width:g}" for width in widths], rotation=0 if len(widths) < 7 else 60)
        axis.minorticks_off()
        axis.set_xlabel(f"Filters in {options.layer}")
    handles, labels = left.get_legend_handles_labels()
    handles, labels = (items[-len(styles) :] + items[: -len(styles)] for items in (handles, labels))
    figures.legend_outside(figure, handles, labels)
    figures.letters(*axes)
    return figure


def _draw_accuracy(figure, axis, table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions) -> None:
    """Test accuracy against PWCCA distance: pairs as small points, means of widths as large ones, r above the panel."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    filters = select(table, quantity="distance").groupby("multiplier")["filters"].first()
    pairs = Widths(table, list(filters.index)).pairs()
    colours = [colour for colour, _ in figures.sequential(len(filters))]
    for colour, (_, rows) in zip(colours, pairs.groupby("multiplier"), strict=True):
        axis.scatter(
            rows["distance"], 100 * rows["accuracy"], s=9, color=colour, edgecolors="white", linewidths=0.3, zorder=3
        )
        means = rows[["distance", "accuracy"]].mean()
        axis.scatter(means["distance"], 100 * means["accuracy"], s=70, color=colour, alpha=0.4, linewidths=0)
    norm = BoundaryNorm(np.arange(len(colours) + 1) - 0.5, len(colours))
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(colours)), ax=axis, pad=0.02)
    bar.set_ticks(range(len(filters)), labels=[f"{count:g}" for count in filters])
    bar.set_label(f"Filters in {options.layer}")
    bar.outline.set_visible(False)
    bar.minorticks_off()
    row = claims.set_index("claim").loc["width.accuracy_pairs"]
    interval = "" if np.isnan(row["ci_low"]) else f" [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
    axis.set_title(
        f"r = {row['value']:.2f}{interval} over {len(pairs)} pairs\npaper (CIFAR-10): r = {row['paper_value']:.2f}",
        fontsize=7,
    )
    axis.set(xlabel="PWCCA distance", ylabel="Test accuracy (%)")
    axis.margins(0.08)
