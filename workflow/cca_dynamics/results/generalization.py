"""Figures 3, A5, A9 and A10: networks that generalize converge to more similar solutions than networks that memorize.

Protocol (Morcos et al. 2018, section 3.1). Two groups of networks, one trained on the true labels and one on a fixed
random permutation of them, all to near-zero training loss; distances between all pairs at every layer, within
"Generalizing", within "Memorizing", and between the groups ("Inter"). Further groups see fewer training examples: how
far memorizing networks are from generalizing ones, compared with each other, depends on the examples per unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field

from cca_dynamics.config.base import MANY, Integer, Number, each_once
from cca_dynamics.config.cohorts import Cohort
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
from cca_dynamics.results import classifiers, figures, statistics
from cca_dynamics.results.claims import (
    FITTED,
    INCONCLUSIVE,
    MISSED,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Obstacle,
    all_of,
    equivalence_claim,
    estimate_claim,
    exceeds,
    fitted_claim,
    missed_claims,
    provided,
    too_few,
)
from cca_dynamics.results.classifiers import GROUPS, SPLITS
from cca_dynamics.results.inputs import Inputs, final_performance
from cca_dynamics.results.layers import require_layer
from cca_dynamics.results.published import combined, published, published_value
from cca_dynamics.results.statistics import Estimate
from cca_dynamics.results.tables import CONTROLS, distance_matrix, distance_table, measures_of, select, tidy

KEY = "results.generalization"
AGREE = 0.5
"""Outputs of networks "agree" if they are less than this share as far apart as those of networks that share nothing but
their training labels (ours): nearer to 0 than to the distance of memorizing networks."""
EARLY, LATE, SOFTMAX = range(1, 4), range(8, 11), 11
"""Early and late layers in the paper's figure 3, which numbers them from 0, and where it draws the softmax; its value
of generalizing networks at layer 0 is hidden behind others."""
EXAMPLES_PER_UNIT = 50_000 / 512
"""Training examples per unit of the paper's last layers."""


class Options(TrainedResultOptions):
    """The keys of results.generalization."""

    networks: Networks = option(5, "train", "claims", description="Networks of each kind.")
    training: TrainingOverrides = option(
        TrainingOverrides(epochs=50, evaluate_every=10), "train", description="Changes of the recipe, for both kinds."
    )
    measures: Measures = option(
        ("pwcca", "pwcca_thresholded", "mean_cca", "svcca", "cosine", "euclidean"),
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
        ("conv4", "conv5"),
        "claims",
        "plot",
        min_length=2,
        description="Layers in which generalizing networks are closer.",
    )
    margin: Number = option(0.05, "claims", gt=0, le=0.5, description='Distances that differ by less are "alike".')
    train_sizes: Annotated[tuple[Annotated[Integer, Field(ge=10, le=MANY)], ...], AfterValidator(each_once)] = option(
        (500, 1000),
        *("train", "compute"),
        description="Further groups see so many training examples alone, if there are more; empty: no such groups.",
    )
    data_size_networks: Networks = option(
        3, "train", "claims", description="Networks of each kind and each of train_sizes."
    )


ALTERNATIVES = {
    "pwcca": ("pwcca_squared", "pwcca_thresholded"),
    "margin": (0.02, 0.1),
    "dataset": ({"name": "digits"},),
}
"""Other values that the paper's words allow, the default of multiverse.generalization."""


def check(config: StudyConfig, options: Options) -> None:
    """Refuse layers the network does not have, and training sizes too small to train on or to compare layers on."""
    network = config.network_of("generalization")
    for key, layers in (("early_layers", options.early_layers), ("late_layers", options.late_layers)):
        for layer in layers:
            if require_layer(f"{KEY}.{key}", layer, network) is None:
                raise ConfigError(f"{KEY}.{key}", "softmax is judged apart; list convolutional layers")
    batch = config.training_of("generalization").batch_size
    least = max(batch, 2 * max(architectures.widths(network).values()) + 1)
    for size in _sizes(config, options):
        if size < least:
            raise ConfigError(
                f"{KEY}.train_sizes",
                f"{size} training examples are fewer than a batch, or than twice the units of a layer; give {least} or "
                "more, or an empty list",
            )


def _sizes(config: StudyConfig, options: Options) -> list[int]:
    """Those of train_sizes that are smaller than the dataset, as far as its size is known, ascending."""
    full = config.dataset.train_size
    return sorted(size for size in options.train_sizes if full is None or size < full)


def obstacles(config: StudyConfig, options: Options) -> list[Obstacle]:
    """Settings under which claims could never be reproduced."""
    late = len(options.late_layers)

    def smallest_p(networks: int) -> float:
        return late * statistics.smallest_relabelling_p(networks, networks)

    what = f"networks of each kind and {late} late layers"
    sizes = too_few(f"{KEY}.data_size_networks", options.data_size_networks, "networks of each kind")
    return [
        *too_few(f"{KEY}.networks", options.networks, what, smallest_p),
        *(sizes if _sizes(config, options) else []),
    ]


def cohorts(config: StudyConfig, options: Options) -> list[Cohort]:
    """Two cohorts that differ in their labels alone, stored at the end; two more for each number of examples."""
    sizes = _sizes(config, options)
    return [
        *(classifiers.labelled(config, group, classifiers.final_layers(config, *SPLITS)) for group in GROUPS),
        *(
            classifiers.labelled(config, group, classifiers.final_layers(config, "train"), size)
            for size in sizes
            for group in GROUPS
        ),
    ]


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """Distances between all pairs of networks, per layer and split, and how well each network fits.

    Returns:
        Tidy rows. quantity "distance": measure, split, layer, layer_index, group ("generalizing", "memorizing",
        "inter"), network_a, network_b, value, rank_a, rank_b, n, floor; networks are numbered generalizing first.
        quantity "distance_by_size": the same, PWCCA on training data alone, on as many random training examples for
        each number of them, with examples (that the networks were trained on) and neurons (of the layer). quantity
        "loss", "train_accuracy", "test_accuracy": group, examples, network, value.
    """
    from cca_dynamics.training.checkpoints import load_recipe

    names = architectures.layers(load_recipe(inputs.networks[GROUPS[0]][0]).network)
    tables = []
    for split in SPLITS:
        for index, layer in enumerate(names):
            rows = _distances(inputs, _stacked(inputs, None, layer, split), measures_of(options))
            tables.append(rows.assign(split=split, layer=layer, layer_index=index))
    smaller = [size for size in sorted(options.train_sizes) if classifiers.name_of(GROUPS[0], size) in inputs.networks]
    for size in (*smaller, None) if smaller else ():
        for index, layer in enumerate(names[:-1]):
            stacked = _stacked(inputs, size, layer, "train")
            available, neurons = stacked[GROUPS[0]].shape[1:]
            points = np.random.default_rng([options.seed, *b"sizes"]).permutation(available)[: smaller[0]]
            stacked = {group: states[:, np.sort(points)] for group, states in stacked.items()}
            columns = {"split": "train", "layer": layer, "layer_index": index, "neurons": neurons}
            columns |= {
                "quantity": "distance_by_size",
                "examples": inputs.examples(classifiers.name_of(GROUPS[0], size)),
            }
            tables.append(_distances(inputs, stacked, {"pwcca": options.pwcca}).assign(**columns))
    for size in (*smaller, None):
        for group in GROUPS:
            cohort = classifiers.name_of(group, size)
            tables.append(final_performance(inputs, cohort, group=group, examples=inputs.examples(cohort)))
    return tidy(tables)


def _stacked(inputs: Inputs, size: int | None, layer: str, split: str) -> dict[str, np.ndarray]:
    """Group → (networks, data points, neurons) at the end of training."""
    names = {group: classifiers.name_of(group, size) for group in GROUPS}
    return {
        group: inputs.representations(name, layer, inputs.checkpoints(name)[-1][0], split)
        for group, name in names.items()
    }


def _distances(inputs: Inputs, stacked: dict[str, np.ndarray], measures: Mapping[str, str]) -> pd.DataFrame:
    """Distances between all networks of both groups, with the group of each pair."""
    kind = np.repeat(GROUPS, [len(stacked[group]) for group in GROUPS])
    networks = [states for group in GROUPS for states in stacked[group]]
    rows = distance_table(networks, measures, inputs.device, inputs.finished_blocks)
    a, b = kind[rows["network_a"]], kind[rows["network_b"]]
    return rows.assign(group=np.where(a == b, a, "inter"))


class Distances:
    """Mean distances within and between the two groups.

    Args:
        rows: distances, of a table written by `compute`.
        seed: of relabellings, if they are too many to try all.
    """

    def __init__(self, rows: pd.DataFrame, seed: int):
        size = int(select(rows, group=GROUPS[0])["network_a"].max()) + 1
        total = int(rows["network_a"].max()) + 1
        self._labels = np.repeat(GROUPS, [size, total - size])
        self._is_group = {group: (self._labels == group).astype(float) for group in GROUPS}
        self._seed = seed
        self._matrices = {key: distance_matrix(pairs) for key, pairs in rows.groupby(["layer", "measure", "split"])}

    def estimate(self, statistic: Callable[..., np.ndarray]) -> Estimate:
        """A statistic of mean distances.

        Args:
            statistic: takes a function mean(group, layers, measure="pwcca", split="train") → the mean distance (B,) of
                "generalizing", "memorizing" or "inter" at a layer or over several, of which it computes one.
        """
        return Estimate.of(lambda weights: statistic(partial(self._mean, weights)), self._labels)

    def difference(
        self, first: str, second: str, layers: str | Sequence[str], measure: str = "pwcca", split: str = "train"
    ) -> Estimate:
        """The second minus the first group's distance at a layer, or the mean over several."""
        return self.estimate(lambda mean: mean(second, layers, measure, split) - mean(first, layers, measure, split))

    def closer_p(self, layer: str, measure: str = "pwcca", split: str = "train") -> statistics.PValue:
        """p that generalizing networks are no closer than memorizing ones: relabelling of networks."""
        matrix = self._matrices[layer, measure, split]

        def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            return statistics.mean_within(matrix, second) - statistics.mean_within(matrix, first)

        return statistics.relabelling_p(self._labels, GROUPS[0], difference, self._seed)

    def _mean(
        self,
        weights: np.ndarray,
        group: str,
        layers: str | Sequence[str],
        measure: str = "pwcca",
        split: str = "train",
    ) -> np.ndarray:
        if not isinstance(layers, str):
            return np.mean([self._mean(weights, group, layer, measure, split) for layer in layers], axis=0)
        matrix = self._matrices[layers, measure, split]
        first, second = (weights * self._is_group[name] for name in GROUPS)
        if group == "inter":
            return statistics.mean_between(matrix, first, second)
        return statistics.mean_within(matrix, first if group == GROUPS[0] else second)


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """The claims of figures 3, A5, A9 and A10."""
    rows = select(table, quantity="distance")
    distances = Distances(rows, options.seed)
    per_group = f"n = {options.networks} + {options.networks} networks"
    accuracy = select(table, quantity="train_accuracy")
    fitted = fitted_claim(
        select(accuracy, examples=accuracy["examples"].max())["value"].to_numpy(),
        claim="generalization.fitted",
        figure="3",
        statement="Both groups fit their training labels (the comparison's precondition).",
        statistic=f"lowest train accuracy of a network (at least {FITTED:g}); {per_group}",
        source="section 3.1",
    )
    late = _late(distances, options, per_group)
    # Networks that have not fitted permuted labels have not memorized, so all of these rest on it, on either split.
    return [
        *provided(
            fitted,
            [
                *_early(distances, options, per_group),
                *late,
                *_at_the_softmax(distances, rows, options, per_group),
                *_closer_again(distances, options, per_group),
                *_overestimated(distances, options, per_group),
                *provided(late[0], _missed(distances, options, per_group))[1:],
            ],
        ),
        *_data_size(table, options),
    ]


def _paper(curve: str, layers: Sequence[int]) -> pd.DataFrame:
    """The paper's values of one curve of figure 3 at some layers."""
    rows = published("3", curve)
    return rows[rows["x"].isin(layers)]


def _paper_difference(first: str, second: str, layers: Sequence[int]) -> dict[str, float]:
    """The second minus the first group's distance in the paper, mean over layers."""
    return combined((1, _paper(second, layers)), (-1, _paper(first, layers)))


def _early(distances: Distances, options: StageOptions, per_group: str) -> list[Claim]:
    """Are the comparisons alike in early layers?"""
    early, margin = options.early_layers, options.margin
    pairs = (GROUPS, (GROUPS[0], "inter"), (GROUPS[1], "inter"))
    tests = f"{', '.join(early)} (alike: within ±{margin:g}); {per_group}, two one-sided tests, jackknife"
    return [
        equivalence_claim(
            margin,
            [distances.difference(*pair, layer) for layer in early for pair in pairs],
            claim="generalization.early_layers",
            figure="3",
            statement="Early layers are equally similar in all three comparisons.",
            statistic=f"largest difference between two comparisons in a layer, judged in each of {tests}",
            source="section 3.1; article",
        ),
        equivalence_claim(
            margin,
            [distances.difference(*GROUPS, early)],
            claim="generalization.early_gap",
            figure="3",
            statement="In early layers memorizing networks are as far from each other as generalizing networks.",
            statistic=f"memorizing minus generalizing distance, mean of {tests}",
            source="section 3.1; article",
            **_paper_difference(*GROUPS, EARLY),
        ),
    ]


def _late(distances: Distances, options: StageOptions, per_group: str) -> list[Claim]:
    """Late layers on training data, on test data, and, as the paper's caption says, without low-variance directions."""
    readings = [("", "pwcca", "train", "on the training data"), ("_test", "pwcca", "test", "on test data")]
    if (thresholded := "pwcca_thresholded") in options.measures:
        without = "on the training data, without directions of low variance"
        readings.append(("_thresholded", thresholded, "train", without))
    return [claim for reading in readings for claim in _late_in(*reading, distances, options, per_group)]


def _late_in(
    suffix: str, measure: str, split: str, where: str, distances: Distances, options: StageOptions, per_group: str
) -> list[Claim]:
    """Are generalizing networks closer in each late layer, and memorizing ones as far apart as from the others?"""
    late, margin = options.late_layers, options.margin

    def in_layers(estimates: Sequence[Estimate], level: float) -> str:
        return ", ".join(_in_words(*pair, level) for pair in zip(late, estimates, strict=True))

    gaps = [distances.difference(*GROUPS, layer, measure, split) for layer in late]
    p_values = [distances.closer_p(layer, measure, split) for layer in late]
    p = statistics.PValue(statistics.holm(p_values).max(), len(late) * p_values[0].smallest)
    mean_gap = distances.difference(*GROUPS, late, measure, split)
    excesses = [distances.difference(GROUPS[1], "inter", layer, measure, split) for layer in late]
    # The paper's figure shows training data.
    of_train = split == "train"
    return [
        Claim(
            claim=f"generalization.late_layers{suffix}",
            figure="3",
            statement=f"In late layers generalizing networks are closer together than memorizing ones, {where}.",
            statistic=f"memorizing minus generalizing distance, mean over late layers, judged in each "
            f"({in_layers(gaps, 0.95)}); {per_group}, {_relabelling(options.networks)} in each layer, Holm, jackknife",
            value=mean_gap.value,
            interval=mean_gap.interval(),
            p_value=p,
            verdict=all_of([exceeds(0, gap.interval(), p) for gap in gaps]),
            source="section 3.1; article",
            **(_paper_difference(*GROUPS, LATE) if of_train else {}),
        ),
        equivalence_claim(
            margin,
            excesses,
            claim=f"generalization.memorizing_as_inter{suffix}",
            figure="3",
            statement=f"In late layers memorizing networks are as far from each other as from generalizing networks, "
            f"{where}.",
            statistic=f"inter minus memorizing distance, that of the late layer where it is largest, judged in each "
            f"({in_layers(excesses, 0.9)}; alike: within ±{margin:g}); {per_group}, two one-sided tests, jackknife",
            source="section 3.1; article",
            **(_largest_of_paper() if of_train else {}),
        ),
    ]


def _in_words(layer: str, estimate: Estimate, level: float) -> str:
    """The estimate of one layer, with its interval if it has one."""
    low, high = estimate.interval(level)
    return f"{layer} {estimate.value:.2f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")


def _largest_of_paper() -> dict[str, float]:
    """Inter minus memorizing distance in the paper, in the late layer where it is largest."""
    differences = [_paper_difference(GROUPS[1], "inter", [layer]) for layer in LATE]
    return max(differences, key=lambda difference: abs(difference["paper_value"]))


def _relabelling(networks: int) -> str:
    """The test, in words."""
    return "exact relabelling" if statistics.is_enumerated(networks, networks) else "random relabelling"


def _at_the_softmax(distances: Distances, rows: pd.DataFrame, options: StageOptions, per_group: str) -> list[Claim]:
    """Do the outputs of the networks agree, on training and on test data?"""
    margin = options.margin
    paper = {group: published_value("3", group, SOFTMAX) for group in (*GROUPS, "inter")}
    larger, error = max(paper[group] for group in GROUPS)
    inter, error_of_inter = paper["inter"]
    outputs = select(rows, measure="pwcca", layer="softmax", split="train", group="inter")
    return [
        equivalence_claim(
            margin,
            [distances.estimate(lambda mean, group=group: mean(group, "softmax")) for group in GROUPS],
            claim="generalization.softmax_train",
            figure="3",
            statement="At the softmax, on the training data, both groups agree almost perfectly.",
            statistic=f"the larger of the two groups' distances (below {margin:g}); {per_group}, jackknife",
            source="section 3.1; article",
            paper_value=larger,
            paper_error=error,
        ),
        estimate_claim(
            margin,
            distances.estimate(lambda mean: mean("inter", "softmax")),
            claim="generalization.softmax_inter",
            figure="3",
            statement="At the softmax, on the training data, memorizing networks differ from generalizing networks.",
            statistic=f"inter distance (above {margin:g}); permuted labels are unrelated to the true ones, so about "
            f"the distance of unrelated outputs, {outputs['floor'].mean():.2f}, is to be expected, and the paper's "
            f"{inter:.3g} does not follow from the protocol that it describes; {per_group}, jackknife",
            source="section 3.1",
            paper_value=inter,
            paper_error=error_of_inter,
        ),
        estimate_claim(
            0,
            distances.difference(*GROUPS, "softmax", split="test"),
            p_value=distances.closer_p("softmax", split="test"),
            claim="generalization.softmax_test",
            figure="A10",
            statement="At the softmax, on test data, generalizing networks are closer than memorizing networks.",
            statistic=f"memorizing minus generalizing distance; {per_group}, {_relabelling(options.networks)} of "
            "networks, jackknife",
            source="appendix, figure A10; article",
        ),
        estimate_claim(
            0,
            distances.estimate(
                lambda mean: AGREE * mean(GROUPS[1], "softmax", split="test") - mean(GROUPS[0], "softmax", split="test")
            ),
            claim="generalization.softmax_test_bound",
            figure="A10",
            statement="At the softmax, on test data, generalizing networks agree.",
            statistic=f"{AGREE:g} times the memorizing distance, minus the generalizing distance: they agree if they "
            f"are less than {AGREE:g} times as far apart as memorizing networks; {per_group}, jackknife",
            source="appendix, figure A10; article",
        ),
    ]


def _closer_again(distances: Distances, options: StageOptions, per_group: str) -> list[Claim]:
    """Do generalizing networks come closer again in the last layers, and does mean CCA see it?

    The paper's layer 8 against the mean of layers 9 and 10: here the first of the late layers against the rest.
    """
    first, *rest = options.late_layers
    contrast = f"{first} minus {' and '.join(rest)}"

    def fall(measure: str) -> Estimate:
        return distances.estimate(lambda mean: mean(GROUPS[0], first, measure) - mean(GROUPS[0], rest, measure))

    weighted = fall("pwcca")
    result = [
        estimate_claim(
            0,
            weighted,
            claim="generalization.closer_again",
            figure="3",
            statement="Generalizing networks become more similar again in the last layers.",
            statistic=f"fall of the generalizing distance, {contrast}; {per_group}, jackknife",
            source="section 3.1",
            **combined((1, _paper(GROUPS[0], LATE[:1])), (-1, _paper(GROUPS[0], LATE[1:]))),
        )
    ]
    if "mean_cca" in options.measures:
        unweighted = fall("mean_cca")
        difference = weighted - unweighted
        verdict, (low, high) = exceeds(0, difference.interval()), unweighted.interval()
        if verdict == REPRODUCED:  # unless mean CCA sees a fall, if a smaller one, or may see one
            of_unweighted = exceeds(0, (low, high))
            verdict = {REPRODUCED: NOT_REPRODUCED, INCONCLUSIVE: INCONCLUSIVE}.get(of_unweighted, REPRODUCED)
        result = provided(
            result[0],
            [
                Claim(
                    claim="generalization.mean_cca_misses_it",
                    figure="A9",
                    statement="Mean CCA misses that the last layers come closer.",
                    statistic=f"fall under PWCCA minus fall under mean CCA, {contrast}; it misses the fall if "
                    f"the whole interval of its own, {unweighted.value:.3f} [{low:.3f}, {high:.3f}], is at most 0; "
                    f"{per_group}, jackknife",
                    value=difference.value,
                    interval=difference.interval(),
                    verdict=verdict,
                    source="appendix, figure A9",
                )
            ],
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
    least = min(others, key=lambda measure: excesses[measure].value)
    return [
        Claim(
            claim="generalization.others_overestimate",
            figure="A9",
            statement="Mean CCA and SVCCA overestimate the distance of early layers.",
            statistic=f"excess over PWCCA of {least}, the smaller of the two, mean of the three comparisons in "
            f"{', '.join(early)}; {per_group}, jackknife",
            value=excesses[least].value,
            interval=excesses[least].interval(),
            verdict=all_of([exceeds(0, estimate.interval()) for estimate in excesses.values()]),
            source="appendix, figure A9",
        )
    ]


def _missed(distances: Distances, options: StageOptions, per_group: str) -> list[Claim]:
    """Do cosine and Euclidean distance miss that generalizing networks are closer in late layers?"""
    late = options.late_layers

    def excess(measure: str) -> Estimate:
        """Memorizing minus generalizing distance, as a share of the generalizing."""
        return distances.estimate(lambda mean: mean(GROUPS[1], late, measure) / mean(GROUPS[0], late, measure) - 1)

    return missed_claims(
        {measure: excess(measure) for measure in CONTROLS if measure in options.measures},
        claim="generalization.raw_miss_it",
        figure="A5",
        statement="that generalizing networks are closer in late layers.",
        effect="memorizing over generalizing distance, minus 1,",
        details=f", mean of {', '.join(late)} (missed: within ±{MISSED:g}; PWCCA sees {excess('pwcca').value:.2f}); "
        f"{per_group}, jackknife",
        source="appendix, figure A5",
    )


def gaps_by_size(table: pd.DataFrame, layer: str, seed: int = 0) -> tuple[np.ndarray, list[Estimate]]:
    """Inter minus memorizing distance of one layer for each number of training examples.

    Returns:
        Training examples per unit of the layer (K,), ascending, and the K estimates, of different networks.
    """
    rows = select(table, quantity="distance_by_size", layer=layer)
    sizes = sorted(rows["examples"].unique())
    of_sizes = [select(rows, examples=size) for size in sizes]
    per_unit = np.array(
        [float(size / of_size["neurons"].iloc[0]) for size, of_size in zip(sizes, of_sizes, strict=True)]
    )
    return per_unit, [Distances(of_size, seed).difference(GROUPS[1], "inter", layer) for of_size in of_sizes]


def _data_size(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """Do memorizing networks come to be as far from each other as from generalizing ones as training data grow?"""
    rows = select(table, quantity="distance_by_size")
    if rows.empty:
        return []
    late, falls = options.late_layers, []
    for layer in late:
        per_unit, gaps = gaps_by_size(table, layer, options.seed)
        falls.append(Estimate.of_independent(-statistics.slope_coefficients(np.log2(per_unit)), gaps))
    # The layers are of the same networks.
    fall = Estimate(
        float(np.mean([one.value for one in falls])), np.mean([one.without for one in falls], axis=0), falls[0].groups
    )
    accuracy = select(table, quantity="train_accuracy")
    sizes = sorted(accuracy["examples"].unique())
    groups = f"{', '.join(f'{size:g}' for size in sizes)} training examples, n = {options.data_size_networks} + "
    groups += f"{options.data_size_networks} networks each ({options.networks} + {options.networks} for the last)"
    fitted = fitted_claim(
        accuracy["value"].to_numpy(),
        claim="generalization.sizes_fitted",
        figure="3",
        statement="Both groups fit their training labels whatever the number of examples (the precondition).",
        statistic=f"lowest train accuracy of a network (at least {FITTED:g}); {groups}",
        source="ours",
    )
    growing = estimate_claim(
        0,
        fall,
        claim="generalization.data_size",
        figure="3",
        statement="The more training examples per unit, the smaller the gap by which memorizing networks are farther "
        "from generalizing networks than from each other (our question; the paper has one size).",
        statistic=f"fall of inter minus memorizing distance per doubling of the training examples, mean of "
        f"{', '.join(late)}, on {rows['n'].iloc[0]} training examples each; {groups}, jackknife",
        source="ours",
    )
    return provided(fitted, [growing])


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """PWCCA on training and on test data, one panel per other measure, and the gap against the training examples.

    Mean ± std over pairs, as in the paper; in the last panel the interval of the gap.
    """
    rows = select(table, quantity="distance")
    panels = [(measure, "train") for measure in options.measures]
    panels.insert(1, ("pwcca", "test"))
    of_sizes = table["quantity"].eq("distance_by_size").any()
    figure, axes = figures.panels_in_pairs(len(panels) + of_sizes, height=2.3)
    styles = {
        "generalizing": (figures.BLUE, "o", "Generalizing"),
        "memorizing": (figures.ORANGE, "s", "Memorizing"),
        "inter": (figures.GREEN, "^", "Between the groups"),
    }
    names = list(rows.sort_values("layer_index")["layer"].unique())
    for axis, (measure, split) in zip(axes, panels, strict=False):
        shown = select(rows, measure=measure, split=split)
        for group, style in styles.items():
            figures.mean_with_bars(axis, select(shown, group=group), "layer_index", *style)
        if split == "train" and measure in ("pwcca", "pwcca_thresholded"):
            _draw_published(axis, len(names), styles)
        figures.floor_line(axis, shown, "layer_index")
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        top = max(1.03, 1.05 * float(rows[rows["measure"] == measure]["value"].max()))
        axis.set(ylabel=f"{figures.measure_label(measure)} distance", ylim=(-0.03, top), title=f"{split} data")
    if of_sizes:
        _draw_sizes(axes[-1], table, options.late_layers)
    handles, labels = axes[0].get_legend_handles_labels()
    handles, labels = (items[-len(styles) :] + items[: -len(styles)] for items in (handles, labels))
    figures.legend_outside(figure, handles, labels)
    figures.letters(*axes)
    return figure


def _draw_published(axis, layers: int, styles: dict[str, tuple[str, str, str]]) -> None:
    """The paper's values, its layers squeezed onto ours by relative depth, and its softmax at ours.

    The values of a layer are drawn side by side, because many of them are equal.
    """
    step = (layers - 1) / SOFTMAX
    for (group, (colour, marker, _)), aside in zip(styles.items(), (-0.28, 0, 0.28), strict=True):
        rows = published("3", group)
        label = "paper (CIFAR-10)" if group == "generalizing" else None
        figures.published_points(axis, step * (rows["x"] + aside), rows["value"], colour, marker, label, 16)


def _draw_sizes(axis, table: pd.DataFrame, layers: Sequence[str]) -> None:
    """Inter minus memorizing distance against the training examples per unit, one curve per layer."""
    for (colour, marker), layer in zip(figures.further_series(len(layers)), layers, strict=True):
        per_unit, gaps = gaps_by_size(table, layer)
        values = np.array([gap.value for gap in gaps])
        bars = np.abs(np.array([gap.interval() for gap in gaps]).T - values)
        axis.errorbar(per_unit, values, yerr=bars, color=colour, marker=marker, capsize=2, elinewidth=0.9, label=layer)
    paper = [_paper_difference(GROUPS[1], "inter", [layer])["paper_value"] for layer in LATE]
    figures.published_points(axis, [EXAMPLES_PER_UNIT] * len(paper), paper, figures.GREY, "o", "paper", 20)
    axis.axhline(0, **figures.THRESHOLD)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set(xlabel="Training examples per unit", ylabel="Between groups\n− memorizing")
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, ncols=len(layers) + 1, columnspacing=1.4)
