"""Beyond the paper: what is left of figures 3 and 4 without the similarity that chance gives.

Unrelated layers look alike to CCA, the more so the more neurons they have for their data points, so networks of other
widths, and networks whose layers use other numbers of directions, are not compared on equal terms. The same networks as
in figures 3 and 4 are compared in four ways, all on the same number of data points:

- raw: PWCCA of all neurons;
- calibrated: PWCCA as a share of the distance below which only 5 % of random orders of the data points lie (Gröger et
  al. 2026);
- debiased CKA, whose expectation for unrelated layers is similarity 0 (Murphy et al. 2024);
- equal neurons: PWCCA of equally many random neurons of every layer, mean over many draws (Kang et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from cca_dynamics.config.base import Count, Integer, Number
from cca_dynamics.config.cohorts import Cohort
from cca_dynamics.config.models import (
    PWCCA_DESCRIPTION,
    Layers,
    Pwcca,
    ResultOptions,
    StageOptions,
    StudyConfig,
    option,
)
from cca_dynamics.errors import ConfigError
from cca_dynamics.networks import architectures
from cca_dynamics.results import classifiers, figures, statistics
from cca_dynamics.results.claims import Claim, Obstacle, estimate_claim, too_few
from cca_dynamics.results.classifiers import GROUPS
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.layers import require_layer
from cca_dynamics.results.statistics import Estimate
from cca_dynamics.results.tables import distance_matrix, distance_table, select, tidy

KEY = "results.calibration"
NETWORKS_OF = ("generalization", "width")
"""Results whose networks are compared."""
WAYS = {
    "raw": "PWCCA",
    "calibrated": "calibrated PWCCA",
    "debiased_cka": "debiased CKA",
    "equal_neurons": "PWCCA of equally many neurons",
}
"""How networks are compared → in words."""
TITLES = {"raw": "PWCCA", "calibrated": "calibrated", "debiased_cka": "debiased CKA", "equal_neurons": "equal neurons"}
"""Of panels."""
SOURCES = {
    "calibrated": "Gröger et al. 2026",
    "debiased_cka": "Murphy et al. 2024",
    "equal_neurons": "Kang et al. 2025",
}
"""Who asks for a way."""
CHANCE = "chance"
"""The way of rows that hold the distance below which only 5 % of random orders of the data points lie."""


class Options(ResultOptions):
    """The keys of results.calibration."""

    points: Integer = option(
        1000, "compute", ge=10, description="Random training data points on which layers are compared."
    )
    permutations: Integer = option(
        40, "compute", "claims", ge=20, le=100_000, description="Random orders of the data points."
    )
    neurons: Count = option(16, "compute", "claims", description="Random neurons of every layer, for equal neurons.")
    draws: Integer = option(20, "compute", "claims", ge=1, le=1000, description="Draws of them.")
    late_layers: Layers = option(
        ("conv4", "conv5"), "claims", min_length=1, description="Layers in which generalizing networks are closer."
    )
    explained: Number = option(
        0.5, "claims", gt=0, lt=1, description="Chance explains little if it explains less than this share."
    )
    pwcca: Pwcca = option("pwcca", "compute", description=PWCCA_DESCRIPTION)


def check(config: StudyConfig, options: Options) -> None:
    """Refuse layers that the networks do not have, more neurons than they have, and too few data points."""
    network = config.network_of("generalization")
    for layer in options.late_layers:
        if require_layer(f"{KEY}.late_layers", layer, network) is None:
            raise ConfigError(f"{KEY}.late_layers", "softmax is not compared; list convolutional layers")
    layer, widest = config.results.width.layer, config.network_of("width")
    networks = [widest.widened(multiplier) for multiplier in config.results.width.multipliers]
    units = [require_layer("results.width.layer", layer, each) for each in networks]
    widths = architectures.widths(network)
    units = [count for count in (*(widths[name] for name in classifiers.hidden_layers(network)), *units) if count]
    fewest, most = min(units), max(units)
    if options.neurons > fewest:
        problem = f"{options.neurons} neurons are more than the {fewest} of the narrowest layer; give {fewest} or fewer"
        raise ConfigError(f"{KEY}.neurons", problem)
    if options.points <= 2 * most:
        problem = f"{options.points} data points are too few for layers of {most} neurons; give more than {2 * most}"
        raise ConfigError(f"{KEY}.points", problem)


def obstacles(config: StudyConfig, options: Options) -> list[Obstacle]:
    """Settings under which claims could never be reproduced."""
    results = config.results
    return [
        *too_few("results.generalization.networks", results.generalization.networks, "networks of each kind"),
        *too_few("results.width.networks", results.width.networks, "networks of each width"),
    ]


def cohorts(config: StudyConfig, options: Options) -> list[Cohort]:
    """Those of figures 3 and 4."""
    request = classifiers.final_layers(config, *classifiers.SPLITS)
    return [
        *(classifiers.labelled(config, group, request) for group in GROUPS),
        *(classifiers.of_width(config, multiplier) for multiplier in sorted(config.results.width.multipliers)),
    ]


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """Distances within each group of networks, in each way.

    Returns:
        Tidy rows, quantity "distance": figure ("3", "4"), group ("generalizing", "memorizing", or "width-" and the
        multiplier), layer, layer_index, filters (neurons of the layer), way (one of `WAYS`, or `CHANCE`), network_a,
        network_b, value (of debiased CKA it may exceed 1), and of the raw distances rank_a, rank_b, n, forced, floor.
        quantity "spread_over_draws": figure, group, layer, layer_index, filters, value (standard deviation over draws
        of the mean distance between networks on equally many neurons).
    """
    from cca_dynamics.training.checkpoints import load_recipe

    tables = []
    names = classifiers.hidden_layers(load_recipe(inputs.networks[GROUPS[0]][0]).network)
    for group in GROUPS:
        for index, layer in enumerate(names):
            rows = _in_all_ways(inputs, options, group, layer)
            tables.append(rows.assign(figure="3", group=group, layer=layer, layer_index=index))
    for cohort in inputs.networks:
        if cohort not in GROUPS:
            step = inputs.checkpoints(cohort)[-1][0]
            (layer,) = inputs.layers(cohort, step)
            rows = _in_all_ways(inputs, options, cohort, layer)
            tables.append(rows.assign(figure="4", group=cohort, layer=layer))
    return tidy(tables)


def _in_all_ways(inputs: Inputs, options: StageOptions, cohort: str, layer: str) -> pd.DataFrame:
    """Distances between the networks of a cohort at a layer at the end of training; rows as those of `compute`."""
    from cca_dynamics.similarity import factorize, pairwise, pairwise_permutation_test

    states = inputs.representations(cohort, layer, inputs.checkpoints(cohort)[-1][0], "train")
    chosen = np.random.default_rng([options.seed, *b"calibration"]).permutation(states.shape[1])[: options.points]
    states = states[:, np.sort(chosen)]
    raw = distance_table(list(states), {"raw": options.pwcca}, inputs.device)
    raw = raw.rename(columns={"measure": "way"})

    factors = [factorize(x, device=inputs.device) for x in states]
    how = {"permutations": options.permutations, "seed": options.seed, "device": inputs.device}
    test = pairwise_permutation_test(factors, options.pwcca, **how)
    rng = np.random.default_rng([options.seed, *cohort.encode(), *layer.encode()])
    draws = np.stack([_of_random_neurons(states, options, rng, inputs.device) for _ in range(options.draws)])
    matrices = {
        "calibrated": 1 - test.calibrated,
        CHANCE: test.critical,
        "debiased_cka": pairwise(factors, "linear_cka_debiased", device=inputs.device),
        "equal_neurons": draws.mean(axis=0),
    }
    a, b = raw["network_a"].to_numpy(int), raw["network_b"].to_numpy(int)
    columns = {"network_a": a, "network_b": b, "quantity": "distance"}
    others = [pd.DataFrame({**columns, "way": way, "value": matrix[a, b]}) for way, matrix in matrices.items()]
    of_draws = draws[:, a, b].mean(axis=1)
    spread = of_draws.std(ddof=1) if len(of_draws) > 1 else 0.0
    spread_row = pd.DataFrame([{"quantity": "spread_over_draws", "value": spread}])
    return pd.concat([raw, *others, spread_row], ignore_index=True).assign(filters=states.shape[2])


def _of_random_neurons(states: np.ndarray, options: StageOptions, rng: np.random.Generator, device: str) -> np.ndarray:
    """(N, N) PWCCA distances of random neurons of each of N networks (N, n, d)."""
    from cca_dynamics.similarity import pairwise

    subsets = [x[:, np.sort(rng.choice(x.shape[1], size=options.neurons, replace=False))] for x in states]
    return pairwise(subsets, options.pwcca, device=device)


class Distances:
    """Mean distances within groups of networks, under weights of all their networks.

    Args:
        rows: of a table written by `compute`, of one figure.
    """

    def __init__(self, rows: pd.DataFrame):
        self.groups = list(dict.fromkeys(rows["group"]))
        rows = select(rows, quantity="distance")
        self._matrices = {key: distance_matrix(pairs) for key, pairs in rows.groupby(["group", "layer", "way"])}
        sizes = [int(select(rows, group=group)["network_a"].max()) + 1 for group in self.groups]
        self._labels = np.repeat(self.groups, sizes)

    def estimate(self, statistic: Callable[[Callable[..., np.ndarray]], np.ndarray]) -> Estimate:
        """A statistic of mean distances; it takes a function mean(group, layer, way) → (B,)."""
        return Estimate.of(lambda weights: statistic(lambda *key: self._mean(weights, *key)), self._labels)

    def _mean(self, weights: np.ndarray, group: str, layer: str, way: str) -> np.ndarray:
        return statistics.mean_within(self._matrices[group, layer, way], weights[:, self._labels == group])


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """What is left of figures 3 and 4 in each way, and what share of either effect chance explains."""
    return [*_claims_about_labels(table, options), *_claims_about_width(table, options)]


def _claims_in_each_way(
    name: str, figure: str, statement: str, effect: Callable[[str], Estimate], statistic: str, options: StageOptions
) -> list[Claim]:
    """The claims that an effect is there in each way but the raw one."""
    settings = {
        "calibrated": f"; {options.permutations} random orders of the data points",
        "equal_neurons": f"; mean over {options.draws} draws of {options.neurons} neurons",
    }
    return [
        estimate_claim(
            0,
            effect(way),
            claim=f"calibration.{name}_{way}",
            figure=figure,
            statement=f"{statement} by {WAYS[way]}, too.",
            statistic=f"{statistic}{settings.get(way, '')}; jackknife of networks",
            source=source,
        )
        for way, source in SOURCES.items()
    ]


def _claims_about_labels(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    distances, late = Distances(select(table, figure="3")), options.late_layers

    def gap(way: str) -> Estimate:
        return distances.estimate(
            lambda mean: np.mean([mean(GROUPS[1], layer, way) - mean(GROUPS[0], layer, way) for layer in late], axis=0)
        )

    def log_ratio(mean: Callable[..., np.ndarray], way: str) -> np.ndarray:
        far, near = (np.mean([mean(group, layer, way) for layer in late], axis=0) for group in reversed(GROUPS))
        return np.log(far / near)

    named = f"mean over {', '.join(late)}"
    statistic = f"memorizing minus generalizing distance, {named}; raw {gap('raw').value:.3f}"
    remain = _claims_in_each_way(
        "labels", "3", "Generalizing networks are closer than memorizing ones", gap, statistic, options
    )
    return [*remain, _claim_about_chance("labels", "3", distances, log_ratio, named, options)]


def _claims_about_width(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    rows = select(table, figure="4")
    distances, (layer,) = Distances(rows), rows["layer"].unique()
    filters = rows.groupby("group")["filters"].first().sort_values()
    groups, doublings = list(filters.index), np.log2(filters.to_numpy(float))

    def fall(way: str) -> Estimate:
        return distances.estimate(
            lambda mean: -statistics.slope(doublings, np.stack([mean(group, layer, way) for group in groups], axis=-1))
        )

    def log_ratio(mean: Callable[..., np.ndarray], way: str) -> np.ndarray:
        return np.log(mean(groups[0], layer, way) / mean(groups[-1], layer, way))

    raw = f"{len(groups)} widths; raw {fall('raw').value:.3f}"
    statistic = f"fall of the mean distance per doubling of the width, {layer}, {raw}"
    remain = _claims_in_each_way(
        "width", "4", "Wider networks converge to more similar solutions", fall, statistic, options
    )
    ends = f"{filters.iloc[0]} to {filters.iloc[-1]} neurons of {layer}"
    return [*remain, _claim_about_chance("width", "4", distances, log_ratio, ends, options)]


def _claim_about_chance(
    name: str,
    figure: str,
    distances: Distances,
    log_ratio: Callable[[Callable[..., np.ndarray], str], np.ndarray],
    where: str,
    options: StageOptions,
) -> Claim:
    """The claim that chance explains little of the ratio of two distances.

    That ratio is the ratio of what chance gives times the ratio of what is left, so that logarithms add up. The share
    itself is no statistic: where the effect is near 0, it is anything.
    """
    effects = {"labels": "generalizing networks are closer", "width": "wide networks are closer"}
    share = f"{100 * options.explained:g} %"
    of_raw, of_chance = (
        distances.estimate(lambda mean, way=way: log_ratio(mean, way)).value for way in ("raw", CHANCE)
    )
    excess = distances.estimate(lambda mean: options.explained * log_ratio(mean, "raw") - log_ratio(mean, CHANCE))
    return estimate_claim(
        0,
        excess,
        claim=f"calibration.{name}_chance",
        figure=figure,
        statement=f"Chance similarity explains less than {share} of why {effects[name]}.",
        statistic=f"{share} of the log ratio of raw distances ({of_raw:.3f}) minus that of the distances "
        f"that chance gives in 5 % of {options.permutations} random orders ({of_chance:.3f}), {where}; jackknife of "
        "networks",
        source="Gröger et al. 2026; ours",
    )


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """Distances over layers (figure 3, above) and over width (figure 4, below), one column per way."""
    figure, axes = figures.panels(2, len(WAYS), height=2.2)
    rows = select(table, quantity="distance")
    labels, widths = select(rows, figure="3"), select(rows, figure="4")
    names = labels.groupby("layer_index")["layer"].first()
    largest = widths[~widths["way"].isin(["raw", CHANCE])]["value"].max()
    styles = dict(zip(GROUPS, (figures.SERIES[0], figures.SERIES[1]), strict=True))
    for (way, words), upper, lower in zip(TITLES.items(), axes[: len(WAYS)], axes[len(WAYS) :], strict=True):
        for group, style in styles.items():
            figures.mean_with_bars(upper, select(labels, way=way, group=group), "layer_index", *style, group)
        figures.mean_with_bars(lower, select(widths, way=way), "filters", figures.GREEN, "^", "networks of one width")
        if way == "raw":
            for axis, of_figure, x in ((upper, labels, "layer_index"), (lower, widths, "filters")):
                chance = select(of_figure, way=CHANCE).groupby(x)["value"].mean()
                axis.plot(chance.index.to_numpy(float), chance, label="chance (5 %)", **figures.FLOOR)
        upper.set_title(words, fontsize=7)
        upper.set_xticks(names.index.to_numpy(int), names, rotation=60)
        upper.set(ylim=(-0.02, 1.02), xlabel="Layer")
        lower.set(ylim=(-0.02, 1.02) if way == "raw" else (0, 1.2 * largest), xlabel="Filters")
        sizes = sorted(widths["filters"].unique())
        lower.set_xscale("log", base=2)
        lower.set_xticks(sizes, [f"{size:g}" for size in sizes], rotation=60)
        lower.minorticks_off()
    for axis in axes[:: len(WAYS)]:
        axis.set_ylabel("Distance")
    handles = [
        *zip(*axes[0].get_legend_handles_labels(), strict=True),
        *zip(*axes[len(WAYS)].get_legend_handles_labels(), strict=True),
    ]
    by_label = {label: handle for handle, label in handles}
    figures.legend_outside(figure, list(by_label.values()), list(by_label))
    figures.letters(*axes)
    return figure
