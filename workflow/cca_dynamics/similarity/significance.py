"""Is a distance smaller than chance gives, and how exact is it? Inference over data points.

Permutations: if data points of one layer are dealt anew, nothing relates the layers but their widths, their spectra and
the number of data points, which alone make layers look alike. A distance is significant if few of these are as small.

Intervals: data points are left out a group at a time. Drawing them with replacement would not do, because data points
that are drawn twice raise canonical correlations.

Both take data points for independent. Tokens of one text or positions of one image are not: give `clusters`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from cca_dynamics.similarity.errors import DegenerateCCAWarning, RepresentationError
from cca_dynamics.similarity.factors import Factors, factorize
from cca_dynamics.similarity.measures import MEASURES
from cca_dynamics.similarity.pairwise import as_list, pairwise

FEWEST_POINTS = 5
"""Data points, or clusters of them, of which there are more than 100 orders."""
FEWEST_PERMUTATIONS = 20
"""Permutations from which p can be below .05."""
GROUPS = 20
"""Groups of data points that are left out in turn."""
ALPHA = 0.05


@dataclass(frozen=True)
class PermutationTest:
    """A distance, or distances between all pairs of N representations, and what chance makes of them.

    Of one pair, from x to y, all are numbers; of N representations (N, N), the mean of both directions.

    Attributes:
        distances: as observed.
        p_value: for each pair, (1 + number of permutations whose distance is as small) / (1 + permutations).
        p_family: the same, corrected for the number of pairs: the smallest distance of any pair is as small.
            Distances are standardised by each pair's mean and standard deviation over permutations. nan on the
            diagonal.
        calibrated: calibrated similarity max(1 - distance / critical, 0): 0 where p is not below .05, 1 for
            equal layers; comparable between widths and numbers of data points, unlike the distance. 1 on the diagonal.
        critical: the largest distance with p at most .05.
        null: (permutations, ...) distances of permuted data points.
    """

    distances: np.ndarray
    p_value: np.ndarray
    p_family: np.ndarray
    calibrated: np.ndarray
    critical: np.ndarray
    null: np.ndarray

    def quantiles(self, shares: Sequence[float] = (0.025, 0.5, 0.975)) -> np.ndarray:
        """(len(shares), ...) quantiles of the distances of permuted data points."""
        return np.quantile(self.null, shares, axis=0)


class _Reordered(Factors):
    """Factors of the same data points in another order; their basis is reordered, not computed again."""

    @classmethod
    def of(cls, factors: Factors, basis: Tensor, order: Tensor) -> _Reordered:
        """Factors in an order.

        Args:
            factors: in the order given.
            basis: theirs.
            order: (n,).
        """
        reordered = cls(**{field.name: getattr(factors, field.name) for field in fields(factors)})
        object.__setattr__(reordered, "basis_and_order", (basis, order))
        return reordered

    def basis(self) -> Tensor:
        """The basis in the new order."""
        basis, order = self.basis_and_order
        return basis[order]


def permutation_test(x, y, measure: str = "pwcca", **how: object) -> PermutationTest:
    """Test the distance from x to y against those of permuted data points.

    Args:
        x, y: (n, p) and (n, q) activations of the same data points, NumPy, torch, or Factors.
        measure: key of `MEASURES`.
        how: permutations and other arguments of `pairwise_permutation_test`; errors are the same, too.

    Returns:
        Numbers p_value, calibrated, ..., and null (permutations,).
    """
    distances, null = _permuted([x, y], measure, **how)
    test = _test(distances, null)
    numbers = {field.name: getattr(test, field.name)[..., 0, 1] for field in fields(test)}
    return PermutationTest(**{**numbers, "p_family": numbers["p_value"]})


def pairwise_permutation_test(representations: Iterable, measure: str = "pwcca", **how: object) -> PermutationTest:
    """Test the distances between all pairs of representations against those of permuted data points.

    Each permutation deals the data points of every representation anew, independently, so that all pairs are unrelated
    at once. Representations are decomposed once; a permutation costs a product and a small eigenproblem for each pair.

    Args:
        representations: N ≥ 2 arrays (n, d) of the same data points, widths may differ, or Factors.
        measure: key of `MEASURES`.
        how: keyword arguments, all optional.
            permutations: at least 20, and 1 / p for the smallest p of interest; 200.
            seed: of the permutations; 0.
            clusters: (n,) labels of data points that are dealt together, equally many of each; default: one by one.
            device, precision: as of `pairwise`; the bases of all representations are kept in memory.
            progress: called with the number of permutations done and of all.
            Others are options of the measure.

    Raises:
        RepresentationError: fewer than two representations, fewer than 5 data points or clusters, or what the measure
            refuses.
        ValueError: fewer than 20 permutations, clusters of unequal size, or as `pairwise`.

    Source: Gröger et al. 2026 for the calibration; Westfall & Young 1993 for the correction.
    """
    distances, null = _permuted(as_list(representations), measure, **how)
    return _test(_symmetric(distances), _symmetric(null))


def _permuted(
    representations: list,
    measure: str,
    *,
    permutations: int = 200,
    seed: int = 0,
    clusters: Sequence | None = None,
    device: str = "cpu",
    precision: str = "float64",
    progress: Callable[[int, int], object] | None = None,
    **options: object,
) -> tuple[np.ndarray, np.ndarray]:
    """(N, N) distances and (permutations, N, N) of permuted data points, in both directions."""
    if permutations < FEWEST_PERMUTATIONS:
        raise ValueError(f"{permutations} permutations give no p below .05; use {FEWEST_PERMUTATIONS} or more")
    factors = _factors(representations, device)
    blocks = _blocks(clusters, factors[0].n)
    if len(blocks) < FEWEST_POINTS:
        what = "data points" if clusters is None else "clusters of data points"
        raise RepresentationError(f"{len(blocks)} {what} have too few orders for a test; use {FEWEST_POINTS} or more")
    if len({len(block) for block in blocks}) > 1:
        raise ValueError("the clusters differ in their number of data points, so they cannot be exchanged")
    how = {"device": device, "precision": precision, **options}
    distances = pairwise(factors, measure, **how)
    record, rng = MEASURES[measure], np.random.default_rng([seed, len(factors)])
    # Kernels need the bases alone, other measures the data points.
    bases = None
    if record.kernel is not None and not options:
        factors = record.compared(factors)
        bases = [x.basis() for x in factors]
        measure = record.all_directions or measure
    null = np.empty((permutations, *distances.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateCCAWarning)  # it has been given for the distances themselves
        for index in range(permutations):
            orders = [np.concatenate([blocks[i] for i in rng.permutation(len(blocks))]) for _ in factors]
            orders = [torch.from_numpy(order).to(factors[0].x.device) for order in orders]
            if bases is None:
                dealt = [replace(x, x=x.x[order]) for x, order in zip(factors, orders, strict=True)]
            else:
                dealt = [_Reordered.of(*each) for each in zip(factors, bases, orders, strict=True)]
            null[index] = pairwise(dealt, measure, **how)
            if progress is not None:
                progress(index + 1, permutations)
    return distances, null


def _test(distances: np.ndarray, null: np.ndarray) -> PermutationTest:
    count, pairs = len(null), np.triu_indices(len(distances), k=1)
    p_value = (1 + (null <= distances + 1e-12).sum(axis=0)) / (1 + count)
    # The observed distances are one of 1 + count draws, in the standardisation, too, so that all are exchangeable.
    draws = np.concatenate([distances[None], null])
    spread = draws.std(axis=0)
    standardised = (draws - draws.mean(axis=0)) / np.where(spread > 0, spread, np.inf)
    smallest = standardised[:, *pairs].min(axis=1)
    p_family = (smallest[:, None, None] <= standardised[0] + 1e-12).mean(axis=0)
    # Of 1 + count equally likely values, the largest rank whose p is at most alpha.
    rank = int(np.floor(ALPHA * (1 + count) + 1e-9)) - 1
    critical = np.sort(null, axis=0)[rank] if rank >= 0 else np.zeros_like(distances)
    calibrated = np.where(critical > 0, 1 - distances / np.where(critical > 0, critical, 1), 0).clip(0, 1)
    for matrix, value in ((p_value, np.nan), (p_family, np.nan), (calibrated, 1.0), (critical, np.nan)):
        np.fill_diagonal(matrix, value)
    return PermutationTest(distances, p_value, p_family, calibrated, critical, null)


@dataclass(frozen=True)
class Intervals:
    """A distance, or distances between all pairs of N representations, and confidence intervals.

    Of one pair, from x to y, all are numbers; of N representations (N, N), the mean of both directions.

    Attributes:
        distances: as observed.
        low, high: ends of the intervals; nan on the diagonal.
        errors: standard errors.
    """

    distances: np.ndarray
    low: np.ndarray
    high: np.ndarray
    errors: np.ndarray


def interval(x, y, measure: str = "pwcca", **how: object) -> Intervals:
    """Confidence interval of the distance from x to y.

    Args:
        x, y: (n, p) and (n, q) activations of the same data points, NumPy, torch, or Factors.
        measure: key of `MEASURES`.
        how: level and other arguments of `pairwise_intervals`; errors are the same, too.

    Returns:
        Numbers low, high, errors.
    """
    level = how.pop("level", 0.95)
    intervals = _intervals(*_left_out([x, y], measure, level, **how), level, MEASURES[measure].largest)
    return Intervals(**{field.name: getattr(intervals, field.name)[0, 1] for field in fields(intervals)})


def pairwise_intervals(
    representations: Iterable, measure: str = "pwcca", *, level: float = 0.95, **how: object
) -> Intervals:
    """Confidence intervals of distances, by leaving out groups of data points in turn (the jackknife).

    They hold the distance that is expected of as many other data points. That is not the distance of infinitely many:
    few data points make layers look alike, see `null_floor`, and no resampling of them says by how much.

    Args:
        representations: N ≥ 2 arrays (n, d) of the same data points, widths may differ, or Factors.
        measure: key of `MEASURES`.
        level: of the intervals, in (0, 1).
        how: keyword arguments, all optional.
            groups: of data points, dealt at random, each left out once; 20.
            seed: of the groups; 0.
            clusters: (n,) labels of data points that belong together, which are left out together.
            device: as of `pairwise`.
            progress: called with the number of groups done and of all.
            Others are options of the measure.

    Raises:
        RepresentationError: fewer than two representations, fewer data points than groups, or what the measure refuses
            of the data points that are left.
        ValueError: the level is outside (0, 1), there are fewer than two groups, or as `pairwise`.

    Source: Quenouille 1956, Tukey 1958; Shao & Wu 1989.
    """
    distances, without = _left_out(as_list(representations), measure, level, **how)
    return _intervals(_symmetric(distances), _symmetric(without), level, MEASURES[measure].largest)


def _left_out(
    representations: list,
    measure: str,
    level: float,
    *,
    groups: int = GROUPS,
    seed: int = 0,
    clusters: Sequence | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], object] | None = None,
    **options: object,
) -> tuple[np.ndarray, np.ndarray]:
    """(N, N) distances and (groups, N, N) without each group of data points, in both directions."""
    if not 0 < level < 1:
        raise ValueError(f"level is a probability between 0 and 1, not {level}")
    if groups < 2 or groups != int(groups):
        raise ValueError(f"groups of data points are left out in turn; use a whole number from 2, not {groups}")
    groups = int(groups)
    factors = _factors(representations, device)
    blocks = _blocks(clusters, factors[0].n)
    if len(blocks) < groups:
        what = "data points" if clusters is None else "clusters of data points"
        raise RepresentationError(f"{len(blocks)} {what} do not fill {groups} groups; use fewer groups")
    distances = pairwise(factors, measure, device=device, **options)
    left_out = np.array_split(np.random.default_rng([seed, 1]).permutation(len(blocks)), groups)
    without = np.empty((groups, *distances.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateCCAWarning)
        for index, out in enumerate(left_out):
            rest = np.sort(np.concatenate([blocks[i] for i in np.setdiff1d(np.arange(len(blocks)), out)]))
            rows = torch.from_numpy(rest).to(factors[0].x.device)
            some = [factorize(x.x[rows], device=device, name=f"representations[{i}]") for i, x in enumerate(factors)]
            without[index] = pairwise(some, measure, device=device, **options)
            if progress is not None:
                progress(index + 1, groups)
    return distances, without


def _intervals(distances: np.ndarray, without: np.ndarray, level: float, largest: float) -> Intervals:
    from scipy.special import stdtrit

    groups = len(without)
    errors = np.sqrt((groups - 1) / groups * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    half = float(stdtrit(groups - 1, (1 + level) / 2)) * errors
    low, high = np.maximum(distances - half, 0), np.minimum(distances + half, largest)
    for matrix in (low, high, errors):
        np.fill_diagonal(matrix, np.nan)
    return Intervals(distances, low, high, errors)


def _factors(representations: list, device: str) -> list[Factors]:
    """Factors of at least two representations, which have their data points."""
    factors = [factorize(x, device=device, name=f"representations[{i}]") for i, x in enumerate(representations)]
    if len(factors) < 2:
        raise RepresentationError(f"{len(factors)} representation to compare; give two or more")
    if any(x.points is not None for x in factors):
        raise RepresentationError("second moments do not have the data points, which are permuted or left out here")
    return factors


def _blocks(clusters: Sequence | None, n: int) -> list[np.ndarray]:
    """Indices of the data points that stay together."""
    if clusters is None:
        return list(np.arange(n)[:, None])
    clusters = np.asarray(clusters)
    if clusters.shape != (n,):
        raise ValueError(f"clusters has shape {clusters.shape}; give one label for each of the {n} data points")
    return [np.flatnonzero(clusters == label) for label in np.unique(clusters)]


def _symmetric(distances: np.ndarray) -> np.ndarray:
    """The mean of both directions."""
    return (distances + np.swapaxes(distances, -1, -2)) / 2
