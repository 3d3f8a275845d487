"""Clusters of networks: how many there are, how far apart, and whether they are those of something else.

As in `statistics`, intervals and tests resample or relabel networks, never pairs.
"""

from __future__ import annotations

from itertools import combinations
from math import nan

import numpy as np
import pandas as pd

from cca_dynamics.results import statistics
from cca_dynamics.results.claims import Interval
from cca_dynamics.results.statistics import Estimate

RESAMPLES = 2_000
"""Bootstrap samples, and permutations of a test."""


def standardised_distances(points: np.ndarray) -> np.ndarray:
    """(N, N) Euclidean distances of points (N, d), each coordinate in units of its standard deviation."""
    scaled = (points - points.mean(axis=0)) / np.maximum(points.std(axis=0), 1e-12)
    return np.linalg.norm(scaled[:, None] - scaled[None], axis=-1)


def cluster(distances: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
    """Average linkage, cut where the mean silhouette is largest.

    Args:
        distances: (N, N), symmetric.
        most: the largest number of clusters to try, from 2.

    Returns:
        Cluster of each network (N,), numbered by size; position of each network in the dendrogram (N,); number of
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
    number = {label: rank for rank, label in enumerate(sizes.index)}
    return np.array([number[label] for label in labels]), np.argsort(leaves_list(tree)), silhouettes


def between_minus_within(distances: np.ndarray, groups: np.ndarray, seed: int) -> Estimate:
    """Mean distance between groups minus within groups.

    Args:
        distances: (N, N), symmetric.
        groups: (N,) group of each network.
        seed: of the bootstrap.

    Returns:
        The difference, and its bootstrap samples.
    """
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


def closer_within_p(distances: np.ndarray, groups: np.ndarray, seed: int) -> statistics.PValue:
    """p that networks of one group are no closer to each other than others: their groups are permuted.

    Args:
        distances: (N, N), symmetric.
        groups: (N,) group of each network.
        seed: of the permutations.
    """
    rng = np.random.default_rng([seed, 1])
    pairs = ~np.eye(len(groups), dtype=bool)

    def within(labels: np.ndarray) -> float:
        return float(distances[(labels[:, None] == labels[None]) & pairs].mean())

    observed = within(groups)
    lower = sum(within(rng.permutation(groups)) <= observed + 1e-12 for _ in range(RESAMPLES))
    sizes = np.unique(groups, return_counts=True)[1]
    return statistics.PValue((1 + lower) / (1 + RESAMPLES), statistics.smallest_grouping_p(sizes.tolist()))


def number_interval(distances: np.ndarray, most: int, seed: int, draws: int = 200) -> tuple[int, int]:
    """2.5 % and 97.5 % quantile of the number of clusters over subsamples of 80 % of the networks.

    Args:
        distances: (N, N), symmetric.
        most: see `cluster`.
        seed: of the subsamples.
        draws: how many subsamples.
    """
    rng = np.random.default_rng([seed, 2])
    size = max(3, round(0.8 * len(distances)))
    numbers = []
    for _ in range(draws):
        drawn = np.sort(rng.choice(len(distances), size=size, replace=False))
        labels, _, _ = cluster(distances[np.ix_(drawn, drawn)], min(most, size - 1))
        numbers.append(len(np.unique(labels)))
    low, high = np.quantile(numbers, [0.025, 0.975], method="inverted_cdf")
    return int(low), int(high)


def outlier_gap(distances: np.ndarray, clusters: np.ndarray, seed: int) -> tuple[float, Interval]:
    """How much farther the farthest cluster is from its nearest than the others are from each other.

    Args:
        distances: (N, N), symmetric.
        clusters: (N,) cluster of each network.
        seed: of the bootstrap.

    Returns:
        The gap, negative without such a cluster, and its bootstrap interval; nan for fewer than three clusters. A
        resample is judged by the clusters that have a network in it, and left out if they are too few.
    """
    names = np.unique(clusters)
    if len(names) < 3:
        return nan, (nan, nan)
    size = len(clusters)
    resampled = np.random.default_rng([seed, 3]).multinomial(size, np.full(size, 1 / size), size=RESAMPLES)
    weights = np.vstack([np.ones(size), resampled])
    parts = [weights * (clusters == name) for name in names]
    means = np.full((len(weights), len(names), len(names)), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        for a, b in combinations(range(len(names)), 2):
            means[:, a, b] = means[:, b, a] = statistics.mean_between(distances, parts[b], parts[a])
    far = int(np.argmax(np.nanmean(means[0], axis=1)))
    others = np.delete(means, far, axis=1)
    nearest, apart = others[:, :, far], np.delete(others, far, axis=2).reshape(len(weights), -1)
    gaps = np.fmin.reduce(nearest, axis=1) - np.fmax.reduce(apart, axis=1)
    return float(gaps[0]), statistics.interval(gaps[1:][~np.isnan(gaps[1:])])


def agreement(a: np.ndarray, b: np.ndarray, seed: int) -> tuple[float, Interval, float]:
    """Whether two partitions agree.

    Args:
        a, b: (N,) part of each network.
        seed: of the bootstrap and the permutations.

    Returns:
        The adjusted Rand index, its bootstrap interval, and the p value of a permutation of the networks.
    """
    a, b = (np.unique(labels, return_inverse=True)[1] for labels in (a, b))
    rng = np.random.default_rng([seed, 4])
    observed = float(adjusted_rand_index(a[None], b[None])[0])
    draws = rng.integers(len(a), size=(RESAMPLES, len(a)))
    samples = adjusted_rand_index(a[draws], b[draws])
    permuted = np.array([rng.permutation(b) for _ in range(RESAMPLES)])
    by_chance = adjusted_rand_index(np.broadcast_to(a, permuted.shape), permuted)
    p = (1 + int((by_chance >= observed - 1e-12).sum())) / (1 + RESAMPLES)
    return observed, statistics.interval(samples), p


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
