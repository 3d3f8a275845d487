"""Figures 3, A5, A9 and A10: networks that generalize converge to more similar solutions than networks that memorize.

Protocol (Morcos et al. 2018, section 3.1). Two groups of networks, one trained on the true labels and one on a fixed
random permutation of them, all to near-zero training loss; distances between all pairs at every layer, within
"Generalizing", within "Memorizing", and between the groups ("Inter").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from cca_dynamics.config.base import Number
from cca_dynamics.config.cohorts import Cohort, LayerRequest
from cca_dynamics.config.models import (
    MEASURES_DESCRIPTION,
    PWCCA_DESCRIPTION,
    Layers,
    Measures,
    Networks,
    Pwcca,
    StageOptions,
    StudyConfig,
    TrainedResultOptions,
    TrainingOverrides,
    option,
)
from cca_dynamics.errors import ConfigError
from cca_dynamics.networks import architectures
from cca_dynamics.results import figures, statistics
from cca_dynamics.results.claims import (
    FITTED,
    INCONCLUSIVE,
    MISSED,
    REPRODUCED,
    Claim,
    Estimate,
    Interval,
    Obstacle,
    all_of,
    equivalence_claim,
    estimate_claim,
    exceeds,
    fitted_claim,
    missed_claims,
    too_few,
)
from cca_dynamics.results.inputs import Inputs, final_performance
from cca_dynamics.results.layers import require_layer
from cca_dynamics.results.tables import CONTROLS, distance_matrix, distance_table, measures_of, select, tidy

KEY = "results.generalization"
GROUPS = ("generalizing", "memorizing")
SPLITS = ("train", "test")
PUBLISHED = pd.DataFrame(
    {
        "layer": [8, 9, 10, 8, 9, 10, 8, 9, 10, 11],
        "group": ["generalizing"] * 3 + ["memorizing"] * 3 + ["inter"] * 4,
        "value": [0.45, 0.42, 0.42, 0.60, 0.615, 0.605, 0.59, 0.61, 0.625, 0.355],
    }
)
"""Read off the published figure 3 (± 0.02): CIFAR-10, 11 convolutional layers numbered from 0, then the softmax."""


class Options(TrainedResultOptions):
    """The keys of results.generalization."""

    networks: Networks = option(5, "train", "claims", description="Networks of each kind.")
    training: TrainingOverrides = option(
        TrainingOverrides(epochs=50, evaluate_every=10), "train", description="Changes of the recipe, for both kinds."
    )
    measures: Measures = option(
        ("pwcca", "mean_cca", "svcca", "cosine", "euclidean"),
        "compute",
        "claims",
        "plot",
        description=MEASURES_DESCRIPTION,
    )
    pwcca: Pwcca = option("pwcca", "compute", "plot", description=PWCCA_DESCRIPTION)
    early_layers: Layers = option(
        ("conv1", "conv2"), "claims", min_length=1, description="Layers that are as similar in all three comparisons."
    )
    late_layers: Layers = option(
        ("conv4", "conv5"), "claims", min_length=2, description="Layers in which generalizing networks are closer."
    )
    margin: Number = option(0.05, "claims", gt=0, le=0.5, description='Distances that differ by less are "alike".')


ALTERNATIVES = {"pwcca": ("pwcca_squared",), "margin": (0.02, 0.1), "dataset": ({"name": "digits"},)}
"""Other values that the paper's words allow, the default of multiverse.generalization."""


def check(config: StudyConfig, options: Options) -> None:
    """Refuse layers the network does not have."""
    network = config.network_of("generalization")
    for key, layers in (("early_layers", options.early_layers), ("late_layers", options.late_layers)):
        for layer in layers:
            if require_layer(f"{KEY}.{key}", layer, network) is None:
                raise ConfigError(f"{KEY}.{key}", "softmax is judged apart; list convolutional layers")


def obstacles(config: StudyConfig, options: Options) -> list[Obstacle]:
    """Settings under which claims could never be reproduced."""
    late = len(options.late_layers)

    def smallest_p(networks: int) -> float:
        return late * statistics.smallest_relabelling_p(networks, networks)

    what = f"networks of each kind and {late} late layers"
    return too_few(f"{KEY}.networks", options.networks, what, smallest_p)


def cohorts(config: StudyConfig, options: Options) -> list[Cohort]:
    """Two cohorts that differ in their labels alone, stored at the end."""
    request = LayerRequest(epochs="final", splits=SPLITS, layers="all", points=config.data_points)
    return [
        Cohort(
            name=group,
            networks=options.networks,
            network=config.network_of("generalization"),
            training=config.training_of("generalization"),
            labels="true" if group == "generalizing" else "permuted",
            requests=(request,),
        )
        for group in GROUPS
    ]


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """Distances between all pairs of networks, per layer and split, and how well each network fits.

    Returns:
        Tidy rows. quantity "distance": measure, split, layer, layer_index, group ("generalizing", "memorizing",
        "inter"), network_a, network_b, value, rank_a, rank_b, n, floor; networks are numbered generalizing first.
        quantity "loss", "train_accuracy", "test_accuracy": group, network, value.
    """
    from cca_dynamics.training.checkpoints import load_recipe

    steps = {group: inputs.checkpoints(group)[-1][0] for group in GROUPS}
    names = architectures.layers(load_recipe(inputs.networks[GROUPS[0]][0]).network)
    tables = []
    for split in SPLITS:
        for index, layer in enumerate(names):
            stacked = [inputs.representations(group, layer, steps[group], split) for group in GROUPS]
            kind = np.repeat(GROUPS, [len(networks) for networks in stacked])
            networks = list(np.concatenate(stacked))
            rows = distance_table(networks, measures_of(options), inputs.device, inputs.finished_blocks)
            a, b = kind[rows["network_a"]], kind[rows["network_b"]]
            tables.append(rows.assign(split=split, layer=layer, layer_index=index, group=np.where(a == b, a, "inter")))
    tables += [final_performance(inputs, group, group=group) for group in GROUPS]
    return tidy(tables)


class Distances:
    """Mean distances within and between the two groups, and their bootstrap samples.

    Args:
        table: written by `compute`.
        seed: of the bootstrap of networks.
    """

    def __init__(self, table: pd.DataFrame, seed: int):
        rows = select(table, quantity="distance")
        size = int(select(rows, group=GROUPS[0])["network_a"].max()) + 1
        total = int(rows["network_a"].max()) + 1
        self._labels = np.repeat(GROUPS, [size, total - size])
        self._is_group = {group: (self._labels == group).astype(float) for group in GROUPS}
        self._weights = statistics.bootstrap_weights(self._labels, seed)
        self._seed = seed
        self._matrices = {key: distance_matrix(pairs) for key, pairs in rows.groupby(["layer", "measure", "split"])}

    def estimate(self, statistic: Callable[..., np.ndarray]) -> Estimate:
        """A statistic of mean distances: its value, and its bootstrap samples (B,).

        Args:
            statistic: takes a function mean(group, layers, measure="pwcca", split="train") → the mean distance of
                "generalizing", "memorizing" or "inter" at a layer or over several, a number or (B,), of which it
                computes one of the same shape.
        """
        return float(statistic(self._mean)), statistic(partial(self._mean, weights=self._weights))

    def difference(self, first: str, second: str, layers: Sequence[str]) -> Estimate:
        """Mean over layers of the second minus the first group's distance, and its bootstrap samples (B,)."""
        return self.estimate(lambda mean: np.mean([mean(second, name) - mean(first, name) for name in layers], axis=0))

    def closer_p(self, layer: str, split: str = "train") -> statistics.PValue:
        """p that generalizing networks are no closer than memorizing ones: relabelling of networks."""
        matrix = self._matrices[layer, "pwcca", split]

        def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            return statistics.mean_within(matrix, second) - statistics.mean_within(matrix, first)

        return statistics.relabelling_p(self._labels, GROUPS[0], difference, self._seed)

    def _mean(
        self,
        group: str,
        layers: str | Sequence[str],
        measure: str = "pwcca",
        split: str = "train",
        weights: np.ndarray | None = None,
    ) -> np.ndarray:
        if not isinstance(layers, str):
            return np.mean([self._mean(group, layer, measure, split, weights) for layer in layers], axis=0)
        matrix = self._matrices[layers, measure, split]
        weights = np.ones(len(matrix)) if weights is None else weights
        first, second = (weights * self._is_group[name] for name in GROUPS)
        if group == "inter":
            return statistics.mean_between(matrix, first, second)
        return statistics.mean_within(matrix, first if group == GROUPS[0] else second)


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """The claims of figures 3, A5, A9 and A10."""
    distances = Distances(table, options.seed)
    per_group = f"n = {options.networks} + {options.networks} networks"
    fitted = fitted_claim(
        select(table, quantity="train_accuracy")["value"].to_numpy(),
        claim="generalization.fitted",
        figure="3",
        statement="Both groups fit their training labels (the comparison's precondition).",
        statistic=f"lowest train accuracy of a network (at least {FITTED:g}); {per_group}",
    )
    return [
        fitted,
        *_alike_or_closer(distances, options, per_group),
        *_at_the_softmax(distances, options, per_group),
        *_closer_again(distances, options, per_group),
        *_overestimated(distances, options, per_group),
        *_missed(distances, options, per_group),
    ]


def _alike_or_closer(distances: Distances, options: StageOptions, per_group: str) -> list[Claim]:
    """Where the three comparisons are alike, and where generalizing networks are closer to each other."""
    early, late = options.early_layers, options.late_layers
    tests = f"{per_group}, two one-sided tests, bootstrap of networks"
    alike = f"(alike: within ±{options.margin:g}); {tests}"
    value, samples = distances.difference(*GROUPS, late)
    intervals = [statistics.interval(distances.difference(*GROUPS, [layer])[1]) for layer in late]
    p_values = [distances.closer_p(layer) for layer in late]
    p = statistics.PValue(statistics.holm(p_values).max(), len(late) * p_values[0].smallest)
    return [
        equivalence_claim(
            options.margin,
            [distances.difference(*pair, early) for pair in (GROUPS, (GROUPS[0], "inter"), (GROUPS[1], "inter"))],
            claim="generalization.early_layers",
            figure="3",
            statement="Early layers are equally similar in all three comparisons.",
            statistic=f"largest difference between two groups, mean of {', '.join(early)} {alike}",
        ),
        Claim(
            claim="generalization.late_layers",
            figure="3",
            statement="In late layers generalizing networks are closer to each other than memorizing networks.",
            statistic=f"memorizing minus generalizing distance, mean of {', '.join(late)}; {per_group}, "
            f"{_relabelling(options.networks)} of networks in each layer, Holm",
            value=value,
            interval=statistics.interval(samples),
            p_value=p,
            paper_value=_published_difference(),
            verdict=all_of([exceeds(0, interval, p) for interval in intervals]),
        ),
        equivalence_claim(
            options.margin,
            [distances.difference(GROUPS[1], "inter", late)],
            claim="generalization.memorizing_as_inter",
            figure="3",
            statement="Memorizing networks are as far from each other as from generalizing networks.",
            statistic=f"inter minus memorizing distance, mean of {', '.join(late)} {alike}",
        ),
    ]


def _relabelling(networks: int) -> str:
    """The test, in words."""
    return "exact relabelling" if statistics.is_enumerated(networks, networks) else "random relabelling"


def _at_the_softmax(distances: Distances, options: StageOptions, per_group: str) -> list[Claim]:
    """Whether the outputs of the networks agree, on training and on test data."""
    margin = options.margin
    on_train = [distances.estimate(lambda mean, group=group: mean(group, "softmax")) for group in GROUPS]
    train = equivalence_claim(
        margin,
        on_train,
        claim="generalization.softmax_train",
        figure="3",
        statement="At the softmax, on the training data, both groups agree almost perfectly.",
        statistic=f"the larger of the two groups' distances (below {margin:g}); {per_group}, bootstrap of networks",
    )
    _, samples_of_larger = max(on_train, key=lambda estimate: estimate[0])
    test = estimate_claim(
        0,
        distances.estimate(
            lambda mean: mean(GROUPS[1], "softmax", split="test") - mean(GROUPS[0], "softmax", split="test")
        ),
        claim="generalization.softmax_test",
        figure="A10",
        statement="At the softmax, on test data, only generalizing networks agree.",
        statistic=f"memorizing minus generalizing distance; {per_group}, {_relabelling(options.networks)} of networks",
        p_value=distances.closer_p("softmax", "test"),
    )
    # The p value on training data is that of the larger distance alone, as its statistic says.
    return [replace(train, p_value=statistics.equivalence_p(samples_of_larger, margin), paper_value=0.0), test]


def _closer_again(distances: Distances, options: StageOptions, per_group: str) -> list[Claim]:
    """Do generalizing networks come closer again in the last layers, and does the unweighted mean see it?

    The paper's layer 8 against the mean of layers 9 and 10: here the first of the late layers against the rest.
    """
    first, *rest = options.late_layers
    contrast = f"{first} minus {' and '.join(rest)}"

    def fall(measure: str) -> Estimate:
        return distances.estimate(lambda mean: mean(GROUPS[0], first, measure) - mean(GROUPS[0], rest, measure))

    value, samples = fall("pwcca")
    result = [
        estimate_claim(
            0,
            (value, samples),
            claim="generalization.closer_again",
            figure="3",
            statement="Generalizing networks become more similar again in the last layers.",
            statistic=f"fall of the generalizing distance, {contrast}; {per_group}, bootstrap of networks",
            paper_value=_published_drop(),
        )
    ]
    if "mean_cca" in options.measures:
        mean_value, mean_samples = fall("mean_cca")
        interval = statistics.interval(samples - mean_samples)
        verdict = exceeds(0, interval)
        if verdict == exceeds(0, statistics.interval(mean_samples)) == REPRODUCED:
            verdict = INCONCLUSIVE
        result.append(
            Claim(
                claim="generalization.mean_cca_misses_it",
                figure="A9",
                statement="The unweighted mean of the correlations misses that the last layers come closer.",
                statistic=f"fall under PWCCA minus fall under mean CCA, {contrast}, with no significant fall under "
                f"mean CCA; {per_group}, bootstrap of networks",
                value=value - mean_value,
                interval=interval,
                verdict=verdict,
            )
        )
    return result


def _overestimated(distances: Distances, options: StageOptions, per_group: str) -> list[Claim]:
    """Do mean CCA and SVCCA see more distance in early layers than PWCCA, averaged over the three comparisons?"""
    early, others = options.early_layers, [name for name in ("mean_cca", "svcca") if name in options.measures]
    if not others:
        return []

    def excess(measure: str) -> Estimate:
        compared = [(group, layer) for group in (*GROUPS, "inter") for layer in early]
        return distances.estimate(
            lambda mean: np.mean([mean(*pair, measure) - mean(*pair) for pair in compared], axis=0)
        )

    excesses = {measure: excess(measure) for measure in others}
    intervals = {measure: statistics.interval(samples) for measure, (_, samples) in excesses.items()}
    least = min(others, key=lambda measure: excesses[measure][0])
    return [
        Claim(
            claim="generalization.others_overestimate",
            figure="A9",
            statement="Mean CCA and SVCCA overestimate the distance of early layers.",
            statistic=f"excess over PWCCA of {least}, the smaller of the two, mean of the three comparisons in "
            f"{', '.join(early)}; {per_group}, bootstrap of networks",
            value=excesses[least][0],
            interval=intervals[least],
            verdict=all_of([exceeds(0, interval) for interval in intervals.values()]),
        )
    ]


def _missed(distances: Distances, options: StageOptions, per_group: str) -> list[Claim]:
    """Do cosine and Euclidean distance miss that generalizing networks are closer in late layers?"""
    late = options.late_layers

    def excess(measure: str) -> tuple[float, Interval]:
        """Memorizing minus generalizing distance, as a share of the generalizing, and its interval."""
        value, samples = distances.estimate(
            lambda mean: mean(GROUPS[1], late, measure) / mean(GROUPS[0], late, measure) - 1
        )
        return value, statistics.interval(samples)

    return missed_claims(
        {measure: excess(measure) for measure in CONTROLS if measure in options.measures},
        claim="generalization.raw_miss_it",
        figure="A5",
        statement="Cosine and Euclidean distance do not reveal that difference in late layers.",
        effect="memorizing over generalizing distance, minus 1,",
        details=f", mean of {', '.join(late)} (below {MISSED:g}; PWCCA sees {excess('pwcca')[0]:.2f}); {per_group}, "
        "bootstrap of networks",
    )


def _published_difference() -> float:
    means = PUBLISHED[PUBLISHED["layer"] < 11].groupby("group")["value"].mean()
    return float(means["memorizing"] - means["generalizing"])


def _published_drop() -> float:
    published = select(PUBLISHED, group=GROUPS[0]).set_index("layer")["value"]
    return float(published[8] - published[[9, 10]].mean())


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """PWCCA on training and on test data, then one panel per other measure; mean ± std over pairs, as in the paper."""
    rows = select(table, quantity="distance")
    panels = [(measure, "train") for measure in options.measures]
    panels.insert(1, ("pwcca", "test"))
    figure, axes = figures.panels_in_pairs(len(panels), height=2.4)
    styles = {
        "generalizing": (figures.BLUE, "o", "Generalizing"),
        "memorizing": (figures.ORANGE, "s", "Memorizing"),
        "inter": (figures.GREEN, "^", "Inter"),
    }
    names = list(rows.sort_values("layer_index")["layer"].unique())
    for axis, (measure, split) in zip(axes, panels, strict=True):
        shown = select(rows, measure=measure, split=split)
        for group, style in styles.items():
            figures.mean_with_bars(axis, select(shown, group=group), "layer_index", *style)
        if measure == "pwcca" and split == "train":
            _draw_published(axis, len(names), styles)
        figures.floor_line(axis, shown, "layer_index")
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        top = max(1.03, 1.05 * float(rows[rows["measure"] == measure]["value"].max()))
        axis.set(ylabel=f"{figures.measure_label(measure)} distance", ylim=(-0.03, top), title=f"{split} data")
    handles, labels = axes[0].get_legend_handles_labels()
    handles, labels = (items[-len(styles) :] + items[: -len(styles)] for items in (handles, labels))
    figures.legend_outside(figure, handles, labels)
    figures.letters(*axes)
    return figure


def _draw_published(axis, layers: int, styles: dict[str, tuple[str, str, str]]) -> None:
    """The paper's values, its 12 layers (the last of which is the softmax) squeezed onto ours by relative depth."""
    for group, rows in PUBLISHED.groupby("group"):
        colour, marker, _ = styles[group]
        label = "paper (CIFAR-10)" if group == "generalizing" else None
        figures.published_points(axis, rows["layer"] / 11 * (layers - 1), rows["value"], colour, marker, label, 22)
