"""Inference over networks.

The pairs that a distance matrix holds share networks, so they are not independent observations; networks are.
Everything here resamples or relabels networks (or seeds), never pairs.

A resample is written as weights: row b of a (B, N) array says how often each of N networks was drawn. Mean distances
under all resamples are then two matrix products, and the mean within a group leaves out the pairs of a network with
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from math import comb, factorial

import numpy as np

from cca_dynamics.errors import UserError

RESAMPLES = 10_000
FEWEST = 4
"""A bootstrap of fewer networks has too few distinct outcomes to mean anything; its interval is nan."""


def bootstrap_weights(groups: Sequence[object], seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Draw networks with replacement, within each group.

    Args:
        groups: (N,) group of each network; a resample has as many networks of each group.
        seed: seed of the draw.
        resamples: B.

    Returns:
        (B, N) float64, times each network was drawn; all nan if a group has fewer than FEWEST networks. In every row
        each group has at least two distinct networks, since a resample of one network has no pairs.

    Raises:
        ValueError: a group has fewer than two networks.
    """
    labels = np.asarray(groups)
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(labels)))
    for group in dict.fromkeys(labels.tolist()):
        in_group = labels == group
        size = int(in_group.sum())
        if size < 2:
            raise ValueError(f"group {group!r} has {size} network; a group needs two or more")
        shares = np.full(size, 1 / size)
        counts = rng.multinomial(size, shares, size=resamples)
        while (without_pairs := (counts > 0).sum(axis=1) < 2).any():
            counts[without_pairs] = rng.multinomial(size, shares, size=without_pairs.sum())
        weights[:, in_group] = counts if size >= FEWEST else np.nan
    return weights


def mean_within(distances: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean distance over the ordered pairs of different networks, under weights.

    Args:
        distances: (N, N), zero diagonal.
        weights: (B, N) or (N,); networks of weight 0 do not count.

    Returns:
        (B,) or scalar.
    """
    total = weights.sum(axis=-1)
    pairs = total**2 - (weights**2).sum(axis=-1)
    return ((weights @ distances) * weights).sum(axis=-1) / pairs


def mean_between(distances: np.ndarray, weights_a: np.ndarray, weights_b: np.ndarray) -> np.ndarray:
    """Mean of both directions' distances between two disjoint sets of networks, under weights.

    Args:
        distances: (N, N).
        weights_a, weights_b: (B, N) or (N,) of each set; 0 for the networks that are not in it.

    Returns:
        (B,) or scalar.
    """
    symmetric = (distances + distances.T) / 2
    return ((weights_a @ symmetric) * weights_b).sum(axis=-1) / (weights_a.sum(axis=-1) * weights_b.sum(axis=-1))


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap samples (B,)."""
    tail = (1 - level) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_mean(values: np.ndarray, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of one value per network (N,); nan for fewer than FEWEST networks."""
    values = np.asarray(values, dtype=float)
    if len(values) < FEWEST:
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    return interval(values[draws].mean(axis=1), level)


def relabelling_p(
    labels: Sequence[object], first: object, statistic: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> float:
    """Exact one-sided permutation test: networks exchange their group labels in every possible way.

    Args:
        labels: (N,) of two values.
        first: the label of the first group.
        statistic: takes the indicator weights (B, N) of the first and of the second group, returns (B,); large is
            extreme.

    Returns:
        Share of the relabellings, the true one included, whose statistic is at least the true one's. With 5 + 5
        networks the smallest possible value is 1/252.

    Raises:
        UserError: there are more than 200,000 relabellings.
    """
    is_first = np.asarray([label == first for label in labels], dtype=float)
    size, count = len(is_first), int(is_first.sum())
    if comb(size, count) > 200_000:
        raise UserError(f"{comb(size, count)} relabellings are too many to enumerate; compare fewer networks")
    relabelled = np.zeros((comb(size, count), size))
    for row, network_indices in enumerate(combinations(range(size), count)):
        relabelled[row, network_indices] = 1
    values = statistic(relabelled, 1 - relabelled)
    observed = statistic(is_first[None], 1 - is_first[None])[0]
    return float(np.mean(values >= observed - 1e-12))


def order_p(values: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int) -> float:
    """One-sided permutation test of an order: values are permuted over the levels.

    Args:
        values: (K,) one per level (for example the mean distance at each width).
        statistic: takes (K,), returns a number; large is extreme.
        seed: of the Monte Carlo draw used when K! exceeds 50,000 (K > 8); smaller K are enumerated.

    Returns:
        Share of the orders whose statistic is at least the true one's.
    """
    values = np.asarray(values)
    if factorial(len(values)) <= 50_000:
        orders = [list(order) for order in permutations(range(len(values)))]
    else:
        rng = np.random.default_rng(seed)
        orders = [list(range(len(values)))] + [rng.permutation(len(values)).tolist() for _ in range(RESAMPLES)]
    observed = statistic(values)
    return float(np.mean([statistic(values[order]) >= observed - 1e-12 for order in orders]))


def ordered_pairs(values: np.ndarray) -> np.ndarray:
    """For each network, the share of the pairs of levels between which its value rises; ties count half.

    Args:
        values: (N, K), one value per network and level.

    Returns:
        (N,) in [0, 1]; ½ without a trend. Their sum is Jonckheere's statistic for blocks of one observation per level.
    """
    values = np.asarray(values, dtype=float)
    first, second = np.triu_indices(values.shape[1], 1)
    difference = values[:, second] - values[:, first]
    return ((difference > 0) + 0.5 * (difference == 0)).mean(axis=1)


def matched_jonckheere_p(values: np.ndarray, seed: int) -> float:
    """One-sided permutation test that values rise from level to level; levels are permuted within each network.

    Args:
        values: (N, K), one value per network and level.
        seed: of the Monte Carlo draw used when (K!)^N exceeds 50,000.

    Returns:
        Share of the permutations whose mean share of rising pairs is at least the true one.

    Source: Jonckheere 1954, for matched groups.
    """
    values = np.asarray(values, dtype=float)
    networks, levels = values.shape
    observed = ordered_pairs(values).mean()
    if factorial(levels) ** networks <= 50_000:
        shares = [ordered_pairs(values[:, list(order)]) for order in permutations(range(levels))]
        sums = np.zeros(1)
        for network in range(networks):
            shares_of_network = np.array([share[network] for share in shares])
            sums = (sums[:, None] + shares_of_network).ravel()
        return float(np.mean(sums / networks >= observed - 1e-12))
    rng = np.random.default_rng(seed)
    drawn = [ordered_pairs(rng.permuted(values, axis=1)).mean() for _ in range(RESAMPLES)]
    return float((1 + np.sum(np.array(drawn) >= observed - 1e-12)) / (1 + RESAMPLES))


def sign_test(values: np.ndarray) -> float:
    """One-sided exact sign test that values (N,), one per network, tend to be positive; zeros count against."""
    values = np.asarray(values)
    positive = int((values > 0).sum())
    return sum(comb(len(values), k) for k in range(positive, len(values) + 1)) / 2 ** len(values)


def wilcoxon_p(values: np.ndarray) -> float:
    """One-sided Wilcoxon signed-rank test that paired differences (N,) tend to be positive."""
    from scipy.stats import wilcoxon

    values = np.asarray(values, dtype=float)
    return float(wilcoxon(values, alternative="greater").pvalue) if np.any(values) else 1.0


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment of the p values of several hypotheses, in the order given.

    Source: Holm 1979.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    result = np.empty_like(p)
    result[order] = np.minimum(adjusted, 1)
    return result


def equivalence_p(samples: np.ndarray, margin: float) -> float:
    """Two one-sided tests from bootstrap samples (B,) of a difference: p that it lies outside ±margin; nan for nan."""
    if np.isnan(samples).any():
        return float("nan")
    above = (1 + np.sum(samples >= margin)) / (1 + len(samples))
    below = (1 + np.sum(samples <= -margin)) / (1 + len(samples))
    return float(max(above, below))


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation over the last axis of arrays that broadcast; 0 where a side is constant, nan where a value is."""
    x, y = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
    x, y = (values - values.mean(axis=-1, keepdims=True) for values in (x, y))
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return np.divide((x * y).sum(axis=-1), norms, out=np.zeros_like(norms), where=norms != 0)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rank correlation over the last axis of arrays that broadcast; ties share their mean rank."""
    from scipy.stats import rankdata

    return pearson(rankdata(x, axis=-1), rankdata(y, axis=-1))
