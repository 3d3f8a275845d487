"""Groups of networks in a matrix of distances: whether given ones are visible, whether there are any, and which.

As in `statistics`, intervals and tests leave out or relabel networks, never pairs. A statistic of some of the networks
is a function of their indices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from math import nan
from typing import NamedTuple

import numpy as np

from cca_dynamics.results import statistics
from cca_dynamics.results.statistics import Estimate, PValue

PERMUTATIONS = 1_999
"""Permutations of a test."""
SUBSAMPLES = 200
SHARE = 0.8
"""Share of the networks in a subsample."""
REFERENCES = 199
"""Sets of networks without clusters with which the observed ones are compared."""

Statistic = Callable[[np.ndarray], float]


def standardised_distances(points: np.ndarray) -> np.ndarray:
    """(N, N) Euclidean distances of points (N, d), each coordinate in units of its standard deviation."""
    scaled = (points - points.mean(axis=0)) / np.maximum(points.std(axis=0), 1e-12)
    return np.linalg.norm(scaled[:, None] - scaled[None], axis=-1)


def centred(distances: np.ndarray) -> np.ndarray:
    """Distances without their mean m and without what each network adds to all of its own: d_ij - m - a_i - a_j.

    The a are the least-squares estimates from the pairs of different networks, a_i = (N - 1) / (N - 2) · (m_i - m), m_i
    the mean distance of network i to the others. This is the U-centring of Székely & Rizzo 2014.

    Args:
        distances: (N, N), symmetric, N at least 3.

    Returns:
        (N, N), symmetric; rows sum to 0, the diagonal is 0.
    """
    size = len(distances)
    sums = distances.sum(axis=0) / (size - 2)
    result = distances - sums[:, None] - sums[None] + sums.sum() / (size - 1)
    np.fill_diagonal(result, 0)
    return result


def residual_distances(distances: np.ndarray) -> np.ndarray:
    """Distances without what each network adds to all of its own, d_ij - a_i - a_j (see `centred`), at least 0."""
    off_diagonal = ~np.eye(len(distances), dtype=bool)
    return np.where(off_diagonal, np.maximum(centred(distances) + distances[off_diagonal].mean(), 0), 0)


# Clusters.


class Clustering(NamedTuple):
    """How networks are clustered.

    Attributes:
        linkage: "ward", "complete" or "average".
        most: the largest number of clusters that is tried, from 2.
        smallest: the smallest share of the networks that is a cluster.
    """

    linkage: str
    most: int
    smallest: float


class Partition(NamedTuple):
    """The clusters of N networks.

    Attributes:
        labels: (N,) cluster of each network, numbered by size; all 0 if no number of clusters can be had.
        positions: (N,) of each network in the dendrogram.
        silhouettes: number of clusters → mean silhouette, for the numbers that leave no cluster too small.
    """

    labels: np.ndarray
    positions: np.ndarray
    silhouettes: dict[int, float]

    @property
    def silhouette(self) -> float:
        """The largest one; 0 if no number of clusters can be had."""
        return max(self.silhouettes.values(), default=0.0)


def cluster(distances: np.ndarray, how: Clustering) -> Partition:
    """Cut the dendrogram where the mean silhouette is largest, among the cuts that leave no cluster too small.

    Args:
        distances: (N, N), symmetric.
        how: linkage and bounds.
    """
    from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
    from scipy.spatial.distance import squareform

    size = len(distances)
    tree = linkage(squareform(distances, checks=False), method=how.linkage)
    cuts, silhouettes = {1: np.zeros(size, dtype=int)}, {}
    for count in range(2, min(how.most, size - 1) + 1):
        labels = fcluster(tree, count, criterion="maxclust") - 1
        sizes = np.bincount(labels)
        if len(sizes) == count and sizes.min() >= max(how.smallest * size, 1):
            cuts[count], silhouettes[count] = labels, mean_silhouette(distances, labels)
    labels = cuts[max(silhouettes, key=silhouettes.get, default=1)]
    by_size = np.argsort(-np.bincount(labels), kind="stable")
    return Partition(np.argsort(by_size)[labels], np.argsort(leaves_list(tree)), silhouettes)


def mean_silhouette(distances: np.ndarray, labels: np.ndarray) -> float:
    """Mean over networks of (b - a) / max(a, b): a the mean distance to the own cluster, b to the nearest other one.

    Args:
        distances: (N, N), zero diagonal.
        labels: (N,) cluster of each network, at least two.

    Source: Rousseeuw 1987; a network that is alone in its cluster counts 0.
    """
    members, group_indices = _indicators(labels), np.unique(labels, return_inverse=True)[1]
    sizes, rows = members.sum(axis=0), np.arange(len(labels))
    sums = distances @ members
    within = sums[rows, group_indices] / np.maximum(sizes[group_indices] - 1, 1)
    means = sums / sizes
    means[rows, group_indices] = np.inf
    nearest = means.min(axis=1)
    larger = np.maximum(within, nearest)
    values = np.divide(nearest - within, larger, out=np.zeros(len(labels)), where=larger > 0)
    return float(np.where(sizes[group_indices] > 1, values, 0).mean())


def references(distances: np.ndarray, how: Clustering, seed: int) -> np.ndarray:
    """The largest silhouettes of networks without clusters that vary as much, along as many axes.

    Classical scaling places the networks along principal axes. A reference has the same variance along each axis and
    none between axes, but its coordinates are drawn from uniform distributions: of the distributions without clusters
    those that look most clustered, and what a gradient along a continuous cause looks like.

    Args:
        distances: (N, N), symmetric; of references, as of the networks, what each adds is removed before they are
            clustered.
        how: the networks are clustered.
        seed: of the draws.

    Returns:
        (REFERENCES,).

    Source: Tibshirani, Walther & Hastie 2001, reference (b), for the silhouette.
    """
    size = len(distances)
    squares = distances**2
    means = squares.mean(axis=0)
    products = -(squares - means[:, None] - means[None] + squares.mean()) / 2
    eigenvalues = np.linalg.eigvalsh(products)
    scales = np.sqrt(eigenvalues[eigenvalues > 1e-9 * eigenvalues.max()][::-1][: size - 1])
    rng = np.random.default_rng([seed, 5])
    silhouettes = []
    for _ in range(REFERENCES):
        drawn = rng.uniform(-1, 1, size=(size, len(scales)))
        axes, _ = np.linalg.qr(drawn - drawn.mean(axis=0))
        points = axes * scales
        norms = (points**2).sum(axis=1)
        squares = np.maximum(norms[:, None] + norms[None] - 2 * points @ points.T, 0)
        silhouettes.append(cluster(residual_distances(np.sqrt(squares)), how).silhouette)
    return np.array(silhouettes)


def subsamples(groups: np.ndarray, seed: int) -> list[np.ndarray]:
    """Indices of the networks of each of SUBSAMPLES subsamples, the same share of every group."""
    rng = np.random.default_rng([seed, 2])
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    sizes = [max(1, round(SHARE * len(indices))) for indices in members]
    drawn = [
        [rng.choice(i, size, replace=False) for i, size in zip(members, sizes, strict=True)] for _ in range(SUBSAMPLES)
    ]
    return [np.sort(np.concatenate(indices)) for indices in drawn]


def subsample_interval(
    value: float, values: Sequence[float], lowest: float = -np.inf, highest: float = np.inf
) -> tuple[float, float]:
    """Interval (95 %) of a statistic of all networks, from its values on `subsamples`.

    Leaving out a share of the networks, instead of drawing them with replacement, repeats none: a partition holds
    copies of a network together, so that a bootstrap finds agreement where there is none.

    Args:
        value: of all networks.
        values: of the subsamples.
        lowest, highest: bounds of the statistic.

    Source: the delete-d jackknife, Shao & Wu 1989, which suits statistics that are not smooth, too.
    """
    half = 1.96 * (SHARE / (1 - SHARE)) ** 0.5 * float(np.std(values))
    return max(value - half, lowest), min(value + half, highest)


def number_interval(partitions: Sequence[Partition]) -> tuple[int, int]:
    """2.5 % and 97.5 % quantile of the number of clusters over subsamples."""
    numbers = [len(np.unique(partition.labels)) for partition in partitions]
    low, high = np.quantile(numbers, [0.025, 0.975], method="inverted_cdf")
    return int(low), int(high)


def outlier_gap(distances: np.ndarray, clusters: np.ndarray) -> Estimate:
    """How much farther the farthest cluster is from its nearest than the others are from each other.

    Args:
        distances: (N, N), symmetric.
        clusters: (N,) cluster of each network, taken as given.

    Returns:
        The gap, negative without such a cluster; nan for fewer than three clusters.
    """
    names = np.unique(clusters)
    if len(names) < 3:
        return Estimate(nan, np.full(len(clusters), nan), clusters)
    pairs = list(combinations(range(len(names)), 2))

    def means(weights: np.ndarray) -> np.ndarray:
        parts = [weights * (clusters == name) for name in names]
        means = np.full((len(weights), len(names), len(names)), nan)
        for a, b in pairs:
            means[:, a, b] = means[:, b, a] = statistics.mean_between(distances, parts[a], parts[b])
        return means

    far = int(np.argmax(np.nanmean(means(np.ones((1, len(clusters))))[0], axis=1)))

    def gap(weights: np.ndarray) -> np.ndarray:
        others = np.delete(means(weights), far, axis=1)
        apart = np.delete(others, far, axis=2).reshape(len(weights), -1)
        return others[:, :, far].min(axis=1) - np.fmax.reduce(apart, axis=1)

    return Estimate.of(gap, clusters)


# Given groups.


def explained_variance(distances: np.ndarray, groups: np.ndarray) -> float:
    """R² of PERMANOVA: the share of the sum of squared distances that lies between groups.

    It is about (a - 1) / (N - 1) for a groups that mean nothing.

    Args:
        distances: (N, N), symmetric.
        groups: (N,) group of each network.

    Source: Anderson 2001.
    """
    members = _indicators(groups)
    within = (((distances**2) @ members * members).sum(axis=0) / members.sum(axis=0)).sum()
    total = (distances**2).sum() / len(distances)
    return float(1 - within / total) if total > 0 else 0.0


def adjusted(r_squared: float, size: int, groups: int) -> float:
    """R² less what groups that mean nothing explain: 0 on average for them (Ezekiel 1930)."""
    return 1 - (1 - r_squared) * (size - 1) / (size - groups)


def explained_variance_p(distances: np.ndarray, groups: np.ndarray, seed: int) -> PValue:
    """p that groups explain no more of the distances than networks dealt to them at random.

    Args:
        distances: (N, N), symmetric.
        groups: (N,) group of each network.
        seed: of the permutations.
    """
    names, group_indices, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    rng, squares = np.random.default_rng([seed, 1]), distances**2
    dealt = rng.permuted(np.tile(group_indices, (PERMUTATIONS, 1)), axis=1)
    within = np.zeros(1 + PERMUTATIONS)
    for group, size in zip(range(len(names)), sizes, strict=True):
        members = (np.vstack([group_indices, dealt]) == group).astype(float)
        within += ((members @ squares) * members).sum(axis=1) / size
    lower = int((within[1:] <= within[0] + 1e-12).sum())
    return PValue((1 + lower) / (1 + PERMUTATIONS), statistics.smallest_grouping_p(sizes.tolist()))


def dispersion_p(distances: np.ndarray, groups: np.ndarray, seed: int) -> float:
    """p that networks of all groups are equally far from the centroids of their groups (PERMDISP).

    Where they are not, PERMANOVA's p may be small although the groups lie in the same place.

    Args:
        distances: (N, N), symmetric.
        groups: (N,) group of each network.
        seed: of the permutations.

    Source: Anderson 2006; distances less their group's mean are permuted.
    """
    members, group_indices = _indicators(groups), np.unique(groups, return_inverse=True)[1]
    sizes, squares = members.sum(axis=0), distances**2
    to_own = (squares @ members)[np.arange(len(group_indices)), group_indices] / sizes[group_indices]
    spread = ((squares @ members) * members).sum(axis=0) / (2 * sizes**2)
    radii = np.sqrt(np.maximum(to_own - spread[group_indices], 0))
    group_means = (radii @ members) / sizes
    deviations = radii - group_means[group_indices]

    def between(values: np.ndarray) -> np.ndarray:
        """F of an analysis of variance, of values (B, N)."""
        means = (values @ members) / sizes
        explained = (sizes * (means - values.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
        return explained / np.maximum(((values - means[:, group_indices]) ** 2).sum(axis=1), 1e-300)

    rng = np.random.default_rng([seed, 6])
    permuted = rng.permuted(np.tile(deviations, (PERMUTATIONS, 1)), axis=1)
    higher = int((between(permuted) >= between(radii[None])[0] - 1e-12).sum())
    return (1 + higher) / (1 + PERMUTATIONS)


def nearest_group_accuracy(distances: np.ndarray, groups: np.ndarray) -> float:
    """Share of the networks whose own group is nearest, by the mean distance to the other networks of a group.

    Args:
        distances: (N, N), symmetric, zero diagonal.
        groups: (N,) group of each network.
    """
    members, group_indices = _indicators(groups), np.unique(groups, return_inverse=True)[1]
    means = (distances @ members) / np.maximum(members.sum(axis=0) - members, 1)
    return float((means.argmin(axis=1) == group_indices).mean())


def nearest_group_chance(distances: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, PValue]:
    """`nearest_group_accuracy` of networks dealt to groups at random: its mean, and the p value of the true groups."""
    rng = np.random.default_rng([seed, 7])
    observed = nearest_group_accuracy(distances, groups)
    by_chance = np.array([nearest_group_accuracy(distances, rng.permutation(groups)) for _ in range(PERMUTATIONS)])
    p = (1 + int((by_chance >= observed - 1e-12).sum())) / (1 + PERMUTATIONS)
    sizes = np.unique(groups, return_counts=True)[1].tolist()
    return float(by_chance.mean()), PValue(p, statistics.smallest_grouping_p(sizes))


def gradient(distances: np.ndarray, values: np.ndarray) -> float:
    """Mantel's correlation of distance and difference in a value, over the pairs of networks that differ in it.

    The pairs that do not differ are left out: they would make any visible groups look ordered.

    Args:
        distances: (N, N), symmetric.
        values: (N,).
    """
    first, second = np.triu_indices(len(values), 1)
    differences = np.abs(values[first] - values[second])
    differ = differences > 0
    return float(statistics.pearson(distances[first, second][differ], differences[differ]))


def gradient_p(distances: np.ndarray, values: np.ndarray, seed: int) -> PValue:
    """p that groups of networks of one value are no farther apart if their values are: values are dealt to groups anew.

    The smallest p of a groups is 2 / a!, because an order and its reverse have the same differences, or about the same
    if values are unevenly spaced; then, too, p is no smaller.
    """
    levels, level_indices = np.unique(values, return_inverse=True)
    p = statistics.order_p(levels, lambda dealt: gradient(distances, dealt[level_indices]), seed)
    smallest = min(2 * p.smallest, 1.0)
    return PValue(max(p, smallest), smallest)


def distance_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two matrices of distances between the same networks, without additive effects in either.

    Args:
        a, b: (N, N), symmetric, N at least 4.

    Returns:
        The bias-corrected distance correlation, 0 on average for unrelated distances.

    Source: Székely & Rizzo 2014.
    """
    pairs = np.triu_indices(len(a), 1)
    x, y = centred(a)[pairs], centred(b)[pairs]
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norm if norm > 0 else 0.0


def distance_correlation_p(a: np.ndarray, b: np.ndarray, seed: int) -> PValue:
    """p that two matrices of distances are no more alike than if the networks of one were exchanged (Mantel 1967)."""
    rng = np.random.default_rng([seed, 8])
    a, b = centred(a), centred(b)
    orders = [rng.permutation(len(a)) for _ in range(PERMUTATIONS)]
    higher = sum(float((a * b[np.ix_(order, order)]).sum()) >= float((a * b).sum()) - 1e-12 for order in orders)
    return PValue((1 + higher) / (1 + PERMUTATIONS), 1 / (1 + PERMUTATIONS))


def jackknife(statistic: Statistic, groups: np.ndarray) -> Estimate:
    """The estimate of a statistic that takes the indices of networks.

    Args:
        statistic: of the networks of these indices.
        groups: (N,) group of each network.
    """
    return Estimate.of(lambda weights: np.array([statistic(np.flatnonzero(row)) for row in weights]), groups)


# Two partitions.


def agreement_p(a: np.ndarray, b: np.ndarray, seed: int) -> PValue:
    """p that two partitions agree no more than if the networks of one were exchanged.

    Args:
        a, b: (N,) part of each network, numbered from 0.
        seed: of the permutations.
    """
    rng = np.random.default_rng([seed, 4])
    permuted = rng.permuted(np.tile(b, (PERMUTATIONS, 1)), axis=1)
    by_chance = adjusted_rand_index(np.broadcast_to(a, permuted.shape), permuted)
    observed = adjusted_rand_index(a[None], b[None])[0]
    return PValue((1 + int((by_chance >= observed - 1e-12).sum())) / (1 + PERMUTATIONS), 1 / (1 + PERMUTATIONS))


def adjusted_rand_index(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Agreement of two partitions, corrected for chance: 1 if they are equal, about 0 if they are unrelated.

    Args:
        a, b: (B, N) part of each network, numbered from 0, in B pairs of partitions.

    Returns:
        (B,); 0 where one of the two partitions has a single part.

    Source: Hubert & Arabie 1985.
    """
    draws, size = a.shape
    counts = np.zeros((draws, a.max() + 1, b.max() + 1), dtype=np.int64)
    np.add.at(counts, (np.arange(draws)[:, None], a, b), 1)
    sizes_a, sizes_b = counts.sum(axis=2), counts.sum(axis=1)
    # Ordered pairs of networks, of a network with itself included, that share a part of both, of a, and of b.
    in_both, in_a, in_b = ((sizes**2).reshape(draws, -1).sum(axis=1) for sizes in (counts, sizes_a, sizes_b))
    # Ordered pairs of different networks that share a part of both, of a alone, of b alone, of neither.
    both, only_a, only_b = in_both - size, in_a - in_both, in_b - in_both
    neither = size**2 - in_a - in_b + in_both
    numerator = 2.0 * (both * neither - only_a * only_b)
    denominator = (both + only_a) * (only_a + neither) + (both + only_b) * (only_b + neither)
    index = np.divide(numerator, denominator, out=np.ones(draws), where=(only_a > 0) | (only_b > 0))
    have_two_parts = ((sizes_a > 0).sum(axis=1) > 1) & ((sizes_b > 0).sum(axis=1) > 1)
    return np.where(have_two_parts, index, 0.0)


def _indicators(groups: np.ndarray) -> np.ndarray:
    """(N, a): which network belongs to which of a groups."""
    return (groups[:, None] == np.unique(groups)[None]).astype(float)
