"""Figure 5: networks of one topology fall into clusters of solutions, one per learning rate.

Protocol (Morcos et al. 2018, section 3.3). Many networks of one topology, several learning rates × many
initialisations, true labels; PWCCA distance at one layer between all pairs. Average linkage, the number of clusters by
silhouette. Against it, robustness to cumulative ablation of the last three convolutional layers (the area under the
normalised accuracy curve) and generalization error. The paper does not state its learning rates.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from cca_dynamics import statistics
from cca_dynamics.architectures import layers
from cca_dynamics.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Claim, exceeds
from cca_dynamics.results.inputs import Inputs, final_performance
from cca_dynamics.results.tables import distance_matrix, distance_table, tidy
from cca_dynamics.study import Cohort, ConfigError, Study

KEY = "results.clusters"
COHORT = "sweep"
FITTED = 0.99
"""Train accuracy from which a network counts as having reached near-zero training loss."""
PUBLISHED_CLUSTERS = 5
ABLATED_LAYERS = 3
RESAMPLES = 2_000


def check(study: Study) -> None:
    """Refuse a layer the network does not have, and networks too shallow to ablate."""
    options, network = study.options("clusters"), study.network("clusters")
    study.require_layer(f"{KEY}.layer", options["layer"], network)
    if len(_hidden_layers(network)) < ABLATED_LAYERS:
        raise ConfigError(
            f"{KEY}.network.channels", f"the last {ABLATED_LAYERS} layers are ablated; give the network that many"
        )
    total = options["networks"] * len(options["learning_rates"])
    if options["most_clusters"] >= total:
        raise ConfigError(f"{KEY}.most_clusters", f"{total} networks have fewer than that many clusters; lower it")


def cohorts(study: Study) -> list[Cohort]:
    """One cohort of all networks; the learning rate changes from group to group."""
    options, network = study.options("clusters"), study.network("clusters")
    rates = [rate for rate in options["learning_rates"] for _ in range(options["networks"])]
    return [
        Cohort(
            name=COHORT,
            networks=len(rates),
            network=network,
            training={**study.training("clusters"), "learning_rate": rates},
            activations=({"epochs": "final", "splits": ["train"], "layers": [options["layer"]]},),
            ablation={"layers": _hidden_layers(network)[-ABLATED_LAYERS:], **options["ablation"]},
        )
    ]


def _hidden_layers(network: dict) -> list[str]:
    return [layer for layer in layers(network) if layer != "softmax"]


def compute(inputs: Inputs, options: dict) -> pd.DataFrame:
    """Distances, clusters, robustness and performance.

    Returns:
        Tidy rows. quantity "distance": measure, network_a, network_b, value, rank_a, rank_b, n, floor. Per network:
        "learning_rate", "loss", "train_accuracy", "test_accuracy", "robustness" (area under accuracy / accuracy without
        ablation over the share of clamped feature maps), "cluster" and "ablation_cluster" (0, 1, ... in order of size),
        "place" (in the dendrogram). "ablated_accuracy": network, share, value (mean over orders). "silhouette" and
        "ablation_silhouette": index (number of clusters), value.
    """
    step = inputs.checkpoints(COHORT)[-1][0]
    networks = inputs.representations(COHORT, options["layer"], step)
    distances = distance_table(list(networks), options["measures"], inputs.device, inputs.store)
    matrix = distance_matrix(distances[distances["measure"] == "pwcca"])
    performance = final_performance(inputs, COHORT)
    rates = np.repeat(options["learning_rates"], options["networks"])[inputs.members(COHORT)]

    curves = inputs.ablation(COHORT).pivot_table(index="network", columns="share", values="accuracy")
    robustness = np.trapezoid(curves.div(curves[0.0], axis=0), curves.columns, axis=1)
    accuracy = performance.pivot_table(index="network", columns="quantity", values="value")
    plane = np.column_stack([robustness, accuracy["train_accuracy"] - accuracy["test_accuracy"]])

    tables = [distances, performance, _per_network("learning_rate", rates), _per_network("robustness", robustness)]
    tables.append(curves.melt(ignore_index=False, value_name="value").reset_index().assign(quantity="ablated_accuracy"))
    for prefix, among in (("", (matrix + matrix.T) / 2), ("ablation_", plane_distances(plane))):
        labels, places, silhouettes = cluster(among, options["most_clusters"])
        tables.append(_per_network(f"{prefix}cluster", labels))
        tables.append(_per_network(f"{prefix}place", places))
        scores = pd.DataFrame({"index": list(silhouettes), "value": list(silhouettes.values())})
        tables.append(scores.assign(quantity=f"{prefix}silhouette"))
    return tidy(tables)


def _per_network(quantity: str, values: np.ndarray) -> pd.DataFrame:
    values = np.asarray(values, dtype=float)
    return pd.DataFrame({"network": np.arange(len(values)), "quantity": quantity, "value": values})


def plane_distances(plane: np.ndarray) -> np.ndarray:
    """(N, N) Euclidean distances of points (N, 2), each axis in units of its standard deviation."""
    scaled = (plane - plane.mean(axis=0)) / np.maximum(plane.std(axis=0), 1e-12)
    return np.linalg.norm(scaled[:, None] - scaled[None], axis=-1)


def cluster(distances: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
    """Average linkage, cut where the mean silhouette is largest.

    Args:
        distances: (N, N), symmetric.
        most: the largest number of clusters to try, from 2.

    Returns:
        Cluster of each network (N,), numbered by size; place of each network in the dendrogram (N,); number of
        clusters → mean silhouette.
    """
    from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
    from scipy.spatial.distance import squareform
    from sklearn.metrics import silhouette_score

    tree = linkage(squareform(distances, checks=False), method="average")
    cuts = {count: fcluster(tree, count, criterion="maxclust") for count in range(2, most + 1)}
    silhouettes = {
        count: float(silhouette_score(distances, labels, metric="precomputed"))
        for count, labels in cuts.items()
        if 1 < len(np.unique(labels)) < len(labels)
    }
    labels = cuts[max(silhouettes, key=silhouettes.get)] if silhouettes else np.ones(len(distances), dtype=int)
    sizes = pd.Series(labels).value_counts(sort=True)
    number = {label: place for place, label in enumerate(sizes.index)}
    return np.array([number[label] for label in labels]), np.argsort(leaves_list(tree)), silhouettes


class Sweep:
    """The table's per-network quantities and distance matrix."""

    def __init__(self, table: pd.DataFrame):
        rows = table[(table["quantity"] == "distance") & (table["measure"] == "pwcca")]
        matrix = distance_matrix(rows)
        self.distances = (matrix + matrix.T) / 2
        single = table[table["network"].notna() & (table["quantity"] != "ablated_accuracy")]
        self.values = single.pivot_table(index="network", columns="quantity", values="value")

    def __getitem__(self, quantity: str) -> np.ndarray:
        return self.values[quantity].to_numpy()


def claims(table: pd.DataFrame, options: dict) -> list[Claim]:
    """The claims of figure 5."""
    sweep, seed = Sweep(table), options["seed"]
    rates, clusters, ablation = sweep["learning_rate"], sweep["cluster"], sweep["ablation_cluster"]
    count = f"n = {len(rates)} networks"
    worst = sweep["train_accuracy"].min()
    fitted = int((sweep["train_accuracy"] >= FITTED).sum())
    found = [
        Claim(
            claim="clusters.fitted",
            figure="5",
            statement="Networks of every learning rate reach near-zero training loss (the comparison's precondition).",
            statistic=f"lowest train accuracy (at least {FITTED:g}); {fitted} of {len(rates)} networks reach it",
            value=float(worst),
            ci_low=math.nan,
            ci_high=math.nan,
            p_value=math.nan,
            paper_value=1.0,
            verdict=REPRODUCED if worst >= FITTED else NOT_REPRODUCED,
        )
    ]

    value, samples = _between_minus_within(sweep.distances, rates, seed)
    interval = statistics.interval(samples)
    p = _block_p(sweep.distances, rates, seed)
    found.append(
        Claim(
            claim="clusters.blocks",
            figure="5",
            statement="The distance matrix has blocks: networks of one learning rate are closer to each other.",
            statistic=f"mean distance between minus within learning rates; {count}, permutation, bootstrap of networks",
            value=value,
            ci_low=interval[0],
            ci_high=interval[1],
            p_value=p,
            paper_value=math.nan,
            verdict=exceeds(0, interval, p),
        )
    )

    number = len(np.unique(clusters))
    low, high = _number_interval(sweep.distances, options["most_clusters"], seed)
    verdict = INCONCLUSIVE
    if low == high == PUBLISHED_CLUSTERS:
        verdict = REPRODUCED
    elif not low <= PUBLISHED_CLUSTERS <= high:
        verdict = NOT_REPRODUCED
    found.append(
        Claim(
            claim="clusters.five",
            figure="5",
            statement="There are five clusters.",
            statistic=f"clusters with the largest silhouette; {count}, interval from subsamples of 80 % of them",
            value=float(number),
            ci_low=float(low),
            ci_high=float(high),
            p_value=math.nan,
            paper_value=float(PUBLISHED_CLUSTERS),
            verdict=verdict,
        )
    )

    gap, interval = _outlier(sweep.distances, clusters, seed)
    found.append(
        Claim(
            claim="clusters.outlier",
            figure="5",
            statement="One cluster is far from the others.",
            statistic="distance of the farthest cluster to its nearest minus the largest distance among the others "
            f"(needs three clusters); {count}, bootstrap of networks",
            value=gap,
            ci_low=interval[0],
            ci_high=interval[1],
            p_value=math.nan,
            paper_value=math.nan,
            verdict=exceeds(0, interval),
        )
    )

    for name, statement, other, what in (
        ("learning_rate", "The clusters are the learning rates.", rates, "learning rates"),
        (
            "ablation",
            "The clusters align with those of ablation robustness.",
            ablation,
            "clusters in the ablation plane",
        ),
    ):
        value, interval, p = agreement(clusters, other, seed)
        found.append(
            Claim(
                claim=f"clusters.{name}",
                figure="5",
                statement=statement,
                statistic=f"adjusted Rand index of clusters and {what} (over {options['agreement']:g}); {count}, "
                "permutation and bootstrap of networks",
                value=value,
                ci_low=interval[0],
                ci_high=interval[1],
                p_value=p,
                paper_value=math.nan,
                verdict=exceeds(options["agreement"], interval, p),
            )
        )
    return found


def _between_minus_within(distances: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, np.ndarray]:
    """Mean distance between groups minus within, and its bootstrap samples."""
    weights = statistics.bootstrap_weights(groups, seed, RESAMPLES)
    indicators = [(groups == group).astype(float) for group in np.unique(groups)]

    def difference(weights: np.ndarray) -> np.ndarray:
        within = np.mean([statistics.mean_within(distances, weights * group) for group in indicators], axis=0)
        between = [
            statistics.mean_between(distances, weights * a, weights * b)
            for i, a in enumerate(indicators)
            for b in indicators[:i]
        ]
        return np.mean(between, axis=0) - within

    return float(difference(np.ones((1, len(groups))))[0]), difference(weights)


def _block_p(distances: np.ndarray, groups: np.ndarray, seed: int) -> float:
    """p of "no closer within a group", by permuting the networks' groups."""
    rng = np.random.default_rng([seed, 1])
    pairs = ~np.eye(len(groups), dtype=bool)

    def within(labels: np.ndarray) -> float:
        return float(distances[(labels[:, None] == labels[None]) & pairs].mean())

    observed = within(groups)
    lower = sum(within(rng.permutation(groups)) <= observed + 1e-12 for _ in range(RESAMPLES))
    return (1 + lower) / (1 + RESAMPLES)


def _number_interval(distances: np.ndarray, most: int, seed: int, draws: int = 200) -> tuple[int, int]:
    """2.5 % and 97.5 % quantile of the number of clusters over subsamples of 80 % of the networks."""
    rng = np.random.default_rng([seed, 2])
    size = max(3, round(0.8 * len(distances)))
    found = []
    for _ in range(draws):
        chosen = np.sort(rng.choice(len(distances), size=size, replace=False))
        labels, _, _ = cluster(distances[np.ix_(chosen, chosen)], min(most, size - 1))
        found.append(len(np.unique(labels)))
    low, high = np.quantile(found, [0.025, 0.975], method="inverted_cdf")
    return int(low), int(high)


def _outlier(distances: np.ndarray, clusters: np.ndarray, seed: int) -> tuple[float, tuple[float, float]]:
    """How much farther one cluster is from its nearest than the others are from each other; nan with two clusters."""
    names = np.unique(clusters)
    if len(names) < 3:
        return math.nan, (math.nan, math.nan)
    weights = np.vstack([np.ones(len(clusters)), np.random.default_rng([seed, 3]).multinomial(
        len(clusters), np.full(len(clusters), 1 / len(clusters)), size=RESAMPLES
    )])  # fmt: skip
    parts = [weights * (clusters == name) for name in names]
    means = np.full((len(weights), len(names), len(names)), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        for a in range(len(names)):
            for b in range(a):
                means[:, a, b] = means[:, b, a] = statistics.mean_between(distances, parts[a], parts[b])
    far = int(np.argmax(np.nanmean(means[0], axis=1)))
    others = [a for a in range(len(names)) if a != far]
    nearest = np.nanmin(means[:, far, others], axis=1)
    apart = np.array([np.nanmax([row[a, b] for a in others for b in others if a != b]) for row in means])
    gaps = nearest - apart
    return float(gaps[0]), statistics.interval(gaps[1:][~np.isnan(gaps[1:])])


def agreement(a: np.ndarray, b: np.ndarray, seed: int) -> tuple[float, tuple[float, float], float]:
    """Adjusted Rand index of two partitions (0 if one has a single part), its bootstrap interval and permutation p."""
    from sklearn.metrics import adjusted_rand_score

    def index(a: np.ndarray, b: np.ndarray) -> float:
        return float(adjusted_rand_score(a, b)) if len(set(a)) > 1 and len(set(b)) > 1 else 0.0

    a, b = (np.unique(labels, return_inverse=True)[1] for labels in (a, b))
    rng = np.random.default_rng([seed, 4])
    observed = index(a, b)
    draws = rng.integers(len(a), size=(RESAMPLES, len(a)))
    samples = np.array([index(a[draw], b[draw]) for draw in draws])
    larger = sum(index(a, rng.permutation(b)) >= observed - 1e-12 for _ in range(RESAMPLES))
    return observed, statistics.interval(samples), (1 + larger) / (1 + RESAMPLES)


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: dict):
    """The clustered distance matrix with learning-rate bars, the ablation plane, and the ablation curves."""
    from matplotlib.colors import ListedColormap

    from cca_dynamics import figures

    sweep = Sweep(table)
    order = np.argsort(sweep["place"])
    rates = sorted(set(sweep["learning_rate"]))
    rate_index = np.searchsorted(rates, sweep["learning_rate"])
    rate_styles = figures.sequential(len(rates))

    figure, (left, middle, right) = figures.panels(1, 3, height=2.7, ratios=[1.35, 1, 1])
    size = len(order)
    shown = np.where(np.eye(size, dtype=bool), np.nan, sweep.distances)  # the diagonal, 0, would flatten the colours
    image = left.imshow(shown[np.ix_(order, order)], cmap="cividis", interpolation="nearest")
    figure.colorbar(image, ax=left, label="PWCCA distance", shrink=0.8, pad=0.03).outline.set_visible(False)
    bar = np.atleast_2d(rate_index[order])
    for box, values in (([-0.07, 0, 0.05, 1], bar.T), ([0, 1.02, 1, 0.05], bar)):
        strip = left.inset_axes(box)
        strip.imshow(
            values,
            aspect="auto",
            cmap=ListedColormap([colour for colour, _ in rate_styles]),
            vmin=0,
            vmax=len(rates) - 1,
            interpolation="nearest",
        )
        strip.set_axis_off()
    boundaries = np.flatnonzero(np.diff(sweep["cluster"][order])) + 0.5
    for boundary in boundaries:
        left.axhline(boundary, color="white", linewidth=0.7)
        left.axvline(boundary, color="white", linewidth=0.7)
    left.set(xticks=[0, size - 1], xticklabels=[1, size], yticks=[], xlabel=f"{size} networks, by cluster")
    for spine in left.spines.values():
        spine.set_visible(False)

    gap = 100 * (sweep["train_accuracy"] - sweep["test_accuracy"])
    for cluster_, (colour, marker) in zip(np.unique(sweep["cluster"]), figures.many_series(), strict=False):
        own = sweep["cluster"] == cluster_
        middle.scatter(
            sweep["robustness"][own], gap[own], s=9, color=colour, marker=marker, linewidths=0, alpha=0.8,
            label=f"cluster {int(cluster_) + 1} ({own.sum()})",
        )  # fmt: skip
    middle.set(xlabel="Robustness to ablation (AUC)", ylabel="Generalization error (%)")
    middle.set_ylim(top=middle.get_ylim()[1] + 0.1 * len(np.unique(sweep["cluster"])) * np.ptp(gap))
    middle.locator_params(axis="x", nbins=4)
    middle.legend(loc="upper left", handletextpad=0.2)

    curves = table[table["quantity"] == "ablated_accuracy"].pivot_table(
        index="network", columns="share", values="value"
    )
    for index, (rate, style) in enumerate(zip(rates, rate_styles, strict=True)):
        values = 100 * curves.to_numpy()[rate_index == index]
        figures.mean_and_std(right, 100 * curves.columns.to_numpy(float), values, *style, f"{rate:g}")
    right.set(xlabel="Clamped feature maps (%)", ylabel="Train accuracy (%)")
    right.legend(title="Learning rate", loc="upper right")
    figures.letters(left, middle, right)
    left.set_title("a", loc="left", fontweight="bold", y=1.09)
    return figure
