"""Figures 3, A5, A9 and A10: networks that generalize converge to more similar solutions than networks that memorize.

Protocol (Morcos et al. 2018, section 3.1). Two groups of networks, one trained on the true labels and one on a fixed
random permutation of them, all to near-zero training loss; distances between all pairs at every layer, within
"Generalizing", within "Memorizing", and between the groups ("Inter").
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from cca_dynamics import statistics
from cca_dynamics.architectures import layers
from cca_dynamics.claims import (
    ALPHA,
    INCONCLUSIVE,
    MISSED,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    all_of,
    below,
    equivalent,
    exceeds,
)
from cca_dynamics.results.inputs import Inputs, final_performance
from cca_dynamics.results.tables import distance_matrix, distance_table, tidy
from cca_dynamics.study import Cohort, ConfigError, Study

KEY = "results.generalization"
GROUPS = ("generalizing", "memorizing")
SPLITS = ("train", "test")
FITTED = 0.99
"""Train accuracy from which a network counts as having fitted its labels."""

PUBLISHED = pd.DataFrame(
    {
        "layer": [8, 9, 10, 8, 9, 10, 8, 9, 10, 11],
        "group": ["generalizing"] * 3 + ["memorizing"] * 3 + ["inter"] * 4,
        "value": [0.45, 0.42, 0.42, 0.60, 0.615, 0.605, 0.59, 0.61, 0.625, 0.355],
    }
)
"""Read off the published figure 3 (± 0.02): CIFAR-10, 11 convolutional layers numbered from 0, then the softmax."""


def check(study: Study) -> None:
    """Refuse layers the network does not have."""
    options, network = study.options("generalization"), study.network("generalization")
    for key in ("early_layers", "late_layers"):
        for layer in options[key]:
            if study.require_layer(f"{KEY}.{key}", layer, network) is None:
                raise ConfigError(f"{KEY}.{key}", "softmax is judged apart; list convolutional layers")


def cohorts(study: Study) -> list[Cohort]:
    """Two cohorts that differ in their labels alone, stored at the end."""
    return [
        Cohort(
            name=group,
            networks=study.options("generalization")["networks"],
            network=study.network("generalization"),
            training=study.training("generalization"),
            labels="true" if group == "generalizing" else "permuted",
            activations=({"epochs": "final", "splits": list(SPLITS), "layers": "all"},),
        )
        for group in GROUPS
    ]


def compute(inputs: Inputs, options: dict) -> pd.DataFrame:
    """Distances between all pairs of networks, per layer and split, and how well each network fits.

    Returns:
        Tidy rows. quantity "distance": measure, split, layer, layer_index, group ("generalizing", "memorizing",
        "inter"), network_a, network_b, value, rank_a, rank_b, n, floor; networks are numbered generalizing first.
        quantity "loss", "train_accuracy", "test_accuracy": group, network, value.
    """
    from cca_dynamics.checkpoints import load_recipe

    steps = {group: inputs.checkpoints(group)[-1][0] for group in GROUPS}
    names = layers(load_recipe(inputs.networks[GROUPS[0]][0])["network"])
    tables = []
    for split in SPLITS:
        for index, layer in enumerate(names):
            stacked = [inputs.representations(group, layer, steps[group], split) for group in GROUPS]
            kind = np.repeat(GROUPS, [len(networks) for networks in stacked])
            rows = distance_table(list(np.concatenate(stacked)), options["measures"], inputs.device, inputs.store)
            a, b = kind[rows["network_a"]], kind[rows["network_b"]]
            tables.append(rows.assign(split=split, layer=layer, layer_index=index, group=np.where(a == b, a, "inter")))
    tables += [final_performance(inputs, group, group=group) for group in GROUPS]
    return tidy(tables)


class Distances:
    """The table's distance matrices with the two groups' means under any weights."""

    def __init__(self, table: pd.DataFrame, seed: int):
        self.rows = table[table["quantity"] == "distance"]
        pairs = self.rows[self.rows["group"] == GROUPS[0]]
        size = int(pairs["network_a"].max()) + 1
        total = int(self.rows["network_a"].max()) + 1
        self.labels = np.repeat(GROUPS, [size, total - size])
        self.is_group = {group: (self.labels == group).astype(float) for group in GROUPS}
        self.layers = list(self.rows.sort_values("layer_index")["layer"].unique())
        self.weights = statistics.bootstrap_weights(self.labels, seed)

    def matrix(self, layer: str, measure: str = "pwcca", split: str = "train") -> np.ndarray:
        rows = self.rows
        return distance_matrix(rows[(rows["layer"] == layer) & (rows["measure"] == measure) & (rows["split"] == split)])

    def mean(
        self, group: str, layer: str, measure: str = "pwcca", split: str = "train", weights: np.ndarray | None = None
    ):
        """Mean distance of a group at a layer; with weights (B, N), under each resample (B,)."""
        matrix = self.matrix(layer, measure, split)
        weights = np.ones(len(matrix)) if weights is None else weights
        first, second = (weights * self.is_group[name] for name in GROUPS)
        if group == "inter":
            return statistics.mean_between(matrix, first, second)
        return statistics.mean_within(matrix, first if group == GROUPS[0] else second)

    def samples(self, group: str, layer: str, measure: str = "pwcca", split: str = "train") -> np.ndarray:
        """The group's mean under every bootstrap resample of networks."""
        return self.mean(group, layer, measure, split, self.weights)

    def difference(self, first: str, second: str, layers: list[str]) -> tuple[float, np.ndarray]:
        """Mean over layers of the second minus the first group's distance, and its bootstrap samples (B,)."""
        value = np.mean([self.mean(second, layer) - self.mean(first, layer) for layer in layers])
        samples = [self.samples(second, layer) - self.samples(first, layer) for layer in layers]
        return float(value), np.mean(samples, axis=0)

    def closer_p(self, layer: str, split: str = "train") -> float:
        """p that generalizing networks are no closer than memorizing ones: exact relabelling of networks."""
        matrix = self.matrix(layer, split=split)

        def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            return statistics.mean_within(matrix, second) - statistics.mean_within(matrix, first)

        return statistics.relabelling_p(self.labels, GROUPS[0], difference)


def claims(table: pd.DataFrame, options: dict) -> list[Claim]:
    """The claims of figures 3, A5, A9 and A10."""
    distances = Distances(table, options["seed"])
    margin, early, late = options["margin"], options["early_layers"], options["late_layers"]
    per_group = f"n = {options['networks']} + {options['networks']} networks"
    result = [_fitted(table, per_group)]

    differences = [
        distances.difference(first, second, early)
        for first, second in ((GROUPS[0], GROUPS[1]), (GROUPS[0], "inter"), (GROUPS[1], "inter"))
    ]
    result.append(
        _alike(
            "early_layers",
            "3",
            "Early layers are equally similar in all three comparisons.",
            f"largest difference between two groups, mean of {', '.join(early)} (alike: within ±{margin:g})",
            differences,
            margin,
            per_group,
        )
    )

    value, samples = distances.difference(*GROUPS, late)
    p = float(statistics.holm([distances.closer_p(layer) for layer in late]).max())
    intervals = [statistics.interval(distances.difference(*GROUPS, [layer])[1]) for layer in late]
    result.append(
        Claim(
            claim="generalization.late_layers",
            figure="3",
            statement="In late layers generalizing networks are closer to each other than memorizing networks.",
            statistic=f"memorizing minus generalizing distance, mean of {', '.join(late)}; {per_group}, "
            "exact relabelling of networks in each layer, Holm",
            value=value,
            **_bounds(samples),
            p_value=p,
            paper_value=_published_difference(),
            verdict=all_of([exceeds(0, ci, p) for ci in intervals]),
        )
    )

    result.append(
        _alike(
            "memorizing_as_inter",
            "3",
            "Memorizing networks are as far from each other as from generalizing networks.",
            f"inter minus memorizing distance, mean of {', '.join(late)} (alike: within ±{margin:g})",
            [distances.difference(GROUPS[1], "inter", late)],
            margin,
            per_group,
        )
    )

    result.append(_softmax_train(distances, margin, per_group))
    result.append(_softmax_test(distances, margin, per_group))
    result += _closer_again(distances, late, per_group, options["measures"])
    result += _overestimate(distances, early, per_group, options["measures"])
    result += _raw_miss_it(distances, late, per_group, options["measures"])
    return result


def _bounds(samples: np.ndarray, level: float = 0.95) -> dict[str, float]:
    low, high = statistics.interval(samples, level)
    return {"ci_low": low, "ci_high": high}


def _fitted(table: pd.DataFrame, per_group: str) -> Claim:
    accuracy = table[table["quantity"] == "train_accuracy"]["value"]
    worst = float(accuracy.min())
    return Claim(
        claim="generalization.fitted",
        figure="3",
        statement="Both groups fit their training labels (the comparison's precondition).",
        statistic=f"lowest train accuracy of a network (at least {FITTED:g}); {per_group}",
        value=worst,
        ci_low=math.nan,
        ci_high=math.nan,
        p_value=math.nan,
        paper_value=1.0,
        verdict=REPRODUCED if worst >= FITTED else NOT_REPRODUCED,
    )


def _alike(
    name: str,
    figure: str,
    statement: str,
    statistic: str,
    differences: list[tuple[float, np.ndarray]],
    margin: float,
    per_group: str,
) -> Claim:
    """A claim that several differences, each with its bootstrap samples, are all within a margin."""
    value, samples = max(differences, key=lambda pair: abs(pair[0]))
    return Claim(
        claim=f"generalization.{name}",
        figure=figure,
        statement=statement,
        statistic=f"{statistic}; {per_group}, two one-sided tests, bootstrap of networks",
        value=value,
        **_bounds(samples, 1 - 2 * ALPHA),
        p_value=max(statistics.equivalence_p(sample, margin) for _, sample in differences),
        paper_value=math.nan,
        verdict=equivalent(margin, [statistics.interval(sample, 1 - 2 * ALPHA) for _, sample in differences]),
    )


def _softmax_train(distances: Distances, margin: float, per_group: str) -> Claim:
    means = {group: float(distances.mean(group, "softmax")) for group in GROUPS}
    worst = max(means, key=means.get)
    samples = distances.samples(worst, "softmax")
    return Claim(
        claim="generalization.softmax_train",
        figure="3",
        statement="At the softmax, on the training data, both groups agree almost perfectly.",
        statistic=f"the larger of the two groups' distances (below {margin:g}); {per_group}, bootstrap of networks",
        value=means[worst],
        **_bounds(samples, 1 - 2 * ALPHA),
        p_value=statistics.equivalence_p(samples, margin),
        paper_value=0.0,
        verdict=equivalent(
            margin, [statistics.interval(distances.samples(group, "softmax"), 1 - 2 * ALPHA) for group in GROUPS]
        ),
    )


def _softmax_test(distances: Distances, margin: float, per_group: str) -> Claim:
    value = distances.mean(GROUPS[1], "softmax", split="test") - distances.mean(GROUPS[0], "softmax", split="test")
    samples = distances.samples(GROUPS[1], "softmax", split="test") - distances.samples(
        GROUPS[0], "softmax", split="test"
    )
    p = distances.closer_p("softmax", "test")
    return Claim(
        claim="generalization.softmax_test",
        figure="A10",
        statement="At the softmax, on test data, only generalizing networks agree.",
        statistic=f"memorizing minus generalizing distance; {per_group}, exact relabelling of networks",
        value=float(value),
        **_bounds(samples),
        p_value=p,
        paper_value=math.nan,
        verdict=exceeds(0, statistics.interval(samples), p),
    )


def _closer_again(distances: Distances, late: list[str], per_group: str, measures: list[str]) -> list[Claim]:
    """Do generalizing networks come closer again in the last layers, and does the unweighted mean see it?

    The paper's layer 8 against the mean of layers 9 and 10: here the first of the late layers against the rest.
    """

    def drop(measure: str, weights: np.ndarray | None = None):
        means = [distances.mean(GROUPS[0], layer, measure, weights=weights) for layer in late]
        return means[0] - np.mean(means[1:], axis=0)

    where = f"{late[0]} minus {' and '.join(late[1:])}"
    samples = drop("pwcca", distances.weights)
    found = [
        Claim(
            claim="generalization.closer_again",
            figure="3",
            statement="Generalizing networks become more similar again in the last layers.",
            statistic=f"fall of the generalizing distance, {where}; {per_group}, bootstrap of networks",
            value=float(drop("pwcca")),
            **_bounds(samples),
            p_value=math.nan,
            paper_value=_published_drop(),
            verdict=exceeds(0, statistics.interval(samples)),
        )
    ]
    if "mean_cca" in measures:
        mean_samples = drop("mean_cca", distances.weights)
        missed = exceeds(0, statistics.interval(mean_samples))
        verdict = exceeds(0, statistics.interval(samples - mean_samples))
        if verdict == REPRODUCED and missed == REPRODUCED:
            verdict = INCONCLUSIVE
        found.append(
            Claim(
                claim="generalization.mean_cca_misses_it",
                figure="A9",
                statement="The unweighted mean of the correlations misses that the last layers come closer.",
                statistic=f"fall under PWCCA minus fall under mean CCA, {where}, with no significant fall under "
                f"mean CCA; {per_group}, bootstrap of networks",
                value=float(drop("pwcca") - drop("mean_cca")),
                **_bounds(samples - mean_samples),
                p_value=math.nan,
                paper_value=math.nan,
                verdict=verdict,
            )
        )
    return found


def _overestimate(distances: Distances, early: list[str], per_group: str, measures: list[str]) -> list[Claim]:
    """Do mean CCA and SVCCA see more distance in early layers than PWCCA, averaged over the three comparisons?"""
    others = [measure for measure in ("mean_cca", "svcca") if measure in measures]
    if not others:
        return []

    def excess(measure: str, weights: np.ndarray | None = None):
        places = [(group, layer) for group in (*GROUPS, "inter") for layer in early]
        gaps = [
            distances.mean(group, layer, measure, weights=weights) - distances.mean(group, layer, weights=weights)
            for group, layer in places
        ]
        return np.mean(gaps, axis=0)

    least = min(others, key=lambda measure: float(excess(measure)))
    samples = {measure: excess(measure, distances.weights) for measure in others}
    return [
        Claim(
            claim="generalization.others_overestimate",
            figure="A9",
            statement="Mean CCA and SVCCA overestimate the distance of early layers.",
            statistic=f"excess over PWCCA of {least}, the smaller of the two, mean of the three comparisons in "
            f"{', '.join(early)}; {per_group}, bootstrap of networks",
            value=float(excess(least)),
            **_bounds(samples[least]),
            p_value=math.nan,
            paper_value=math.nan,
            verdict=all_of([exceeds(0, statistics.interval(sample)) for sample in samples.values()]),
        )
    ]


def _raw_miss_it(distances: Distances, late: list[str], per_group: str, measures: list[str]) -> list[Claim]:
    """Do cosine and Euclidean distance miss that generalizing networks are closer in late layers?"""
    raw = [measure for measure in ("cosine", "euclidean") if measure in measures]
    if not raw:
        return []

    def excess(measure: str, weights: np.ndarray | None = None):
        """Memorizing minus generalizing distance, as a share of the generalizing."""
        first, second = (
            np.mean([distances.mean(group, layer, measure, weights=weights) for layer in late], axis=0)
            for group in GROUPS
        )
        return second / first - 1

    values = {measure: float(excess(measure)) for measure in raw}
    samples = {measure: excess(measure, distances.weights) for measure in raw}
    largest = max(values, key=values.get)
    return [
        Claim(
            claim="generalization.raw_miss_it",
            figure="A5",
            statement="Cosine and Euclidean distance do not reveal that difference in late layers.",
            statistic=f"memorizing over generalizing distance, minus 1, under {largest}, the larger of "
            f"{' and '.join(raw)}, mean of {', '.join(late)} (below {MISSED:g}; PWCCA sees "
            f"{float(excess('pwcca')):.2f}); {per_group}, bootstrap of networks",
            value=values[largest],
            **_bounds(samples[largest]),
            p_value=math.nan,
            paper_value=math.nan,
            verdict=all_of([below(MISSED, statistics.interval(sample)) for sample in samples.values()]),
        )
    ]


def _published_difference() -> float:
    means = PUBLISHED[PUBLISHED["layer"] < 11].groupby("group")["value"].mean()
    return float(means["memorizing"] - means["generalizing"])


def _published_drop() -> float:
    published = PUBLISHED[PUBLISHED["group"] == GROUPS[0]].set_index("layer")["value"]
    return float(published[8] - published[[9, 10]].mean())


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: dict):
    """PWCCA on training and on test data, then a panel per other measure; mean ± std over pairs, as in the paper."""
    from cca_dynamics import figures

    rows = table[table["quantity"] == "distance"]
    panels = [(measure, "train") for measure in options["measures"]]
    panels.insert(1, ("pwcca", "test"))
    count = len(panels)
    figure, axes = figures.panels(math.ceil(count / 2), 2, height=2.4)
    styles = {
        "generalizing": (figures.BLUE, "o", "Generalizing"),
        "memorizing": (figures.ORANGE, "s", "Memorizing"),
        "inter": (figures.GREEN, "^", "Inter"),
    }
    names = list(rows.sort_values("layer_index")["layer"].unique())
    for axis, (measure, split) in zip(axes, panels, strict=False):
        for group, (colour, marker, label) in styles.items():
            chosen = rows[(rows["measure"] == measure) & (rows["split"] == split) & (rows["group"] == group)]
            spread = chosen.groupby("layer_index")["value"].agg(["mean", "std"])
            figures.line_with_bars(axis, spread.index, spread["mean"], spread["std"], colour, marker, label)
        if measure == "pwcca" and split == "train":
            _draw_published(axis, len(names), styles)
        floor = rows[(rows["measure"] == measure) & (rows["split"] == split)].groupby("layer_index")["floor"].mean()
        if floor.notna().all():
            axis.plot(
                floor.index, floor, color=figures.GREY, linewidth=0.8, linestyle=":", label="unrelated (Gaussian)"
            )
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        top = max(1.03, 1.05 * float(rows[rows["measure"] == measure]["value"].max()))
        axis.set(ylabel=f"{figures.MEASURES[measure]} distance", ylim=(-0.03, top), title=f"{split} data")
    handles, labels = axes[0].get_legend_handles_labels()
    order = [*range(len(handles) - len(styles), len(handles)), *range(len(handles) - len(styles))]
    figure.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside upper center", ncols=len(order))
    for axis in axes[count:]:
        axis.set_visible(False)
    figures.letters(*axes[:count])
    return figure


def _draw_published(axis, layers: int, styles: dict) -> None:
    """The paper's values, its 12 places (11 layers and softmax) squeezed onto ours by relative depth."""
    for group, rows in PUBLISHED.groupby("group"):
        axis.scatter(
            rows["layer"] / 11 * (layers - 1),
            rows["value"],
            s=22,
            facecolors="none",
            edgecolors=styles[group][0],
            marker=styles[group][1],
            linewidths=0.8,
            label="paper (CIFAR-10)" if group == "generalizing" else None,
            zorder=1,
        )
