"""Canonical correlation between two representations, and the distances built on it.

A representation is an (n, d) matrix: rows are data points, columns neurons. All arithmetic is float64.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from math import exp, lgamma

import numpy as np
import torch


class DegenerateCCAWarning(UserWarning):
    """Two layers together have more directions than data points: some correlations are 1 by counting alone."""


@dataclass(frozen=True)
class Factors:
    """A centred representation as orthonormal basis times coordinates, X = Q R.

    Attributes:
        q: (n, r) float64, orthonormal columns.
        r: (r, d) float64, QᵀX.
    """

    q: torch.Tensor
    r: torch.Tensor

    @property
    def rank(self) -> int:
        """Number of directions that are not numerically zero."""
        return self.q.shape[1]

    @property
    def n(self) -> int:
        """Number of data points."""
        return self.q.shape[0]


@dataclass(frozen=True)
class CCAResult:
    """What a CCA measure found.

    Attributes:
        distance: the measure's distance from x to y.
        correlations: (c,) canonical correlations, descending, in [0, 1]; c is the smaller rank.
        weights_x, weights_y: (c,) how much of each layer its canonical variates account for; each sums to 1.
        rank_x, rank_y: dimensions of the two layers.
        n: data points.
        floor: the distance expected of unrelated Gaussian layers of these ranks and n.
        variates_x, variates_y: (n, c) orthonormal canonical variates, if asked for.
    """

    distance: float
    correlations: np.ndarray
    weights_x: np.ndarray
    weights_y: np.ndarray
    rank_x: int
    rank_y: int
    n: int
    floor: float
    variates_x: np.ndarray | None = None
    variates_y: np.ndarray | None = None


def factorize(x, *, device: str = "cpu", keep: float | None = None) -> Factors:
    """Centre a representation and find an orthonormal basis of its directions.

    Args:
        x: (n, d), NumPy array or torch tensor of any float type.
        device: where to compute and keep the factors.
        keep: keep only the leading directions that hold this share of the variance (SVCCA uses 0.99).

    Returns:
        Factors; directions below a tolerance that suits the dtype of x are dropped.

    Raises:
        ValueError: x is not a finite matrix with at least 3 rows.
    """
    if isinstance(x, Factors):
        if keep is None:
            return x
        # The right singular directions are those of R, which is small.
        u, s, vt = torch.linalg.svd(x.r, full_matrices=False)
        kept = _leading(s, keep)
        return Factors(x.q @ u[:, :kept], s[:kept, None] * vt[:kept])
    x = torch.as_tensor(np.asarray(x) if not isinstance(x, torch.Tensor) else x)
    if x.ndim != 2:
        raise ValueError(f"a representation is an (n, d) matrix, this one has shape {tuple(x.shape)}")
    if len(x) < 3:
        raise ValueError(f"a representation of {len(x)} data points is too small; CCA needs at least 3")
    source = torch.finfo(x.dtype).eps if x.is_floating_point() else torch.finfo(torch.float64).eps
    x = x.to(device=device, dtype=torch.float64)
    if not torch.isfinite(x).all():
        raise ValueError(f"a representation has {int((~torch.isfinite(x)).sum())} values that are not finite")
    size = x.abs().max()
    x = x - x.mean(dim=0)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    tolerance = max(float(s[0]) * source * max(x.shape) ** 0.5, float(size) * source * x.numel() ** 0.5)
    rank = int((s > tolerance).sum())
    factors = Factors(u[:, :rank], s[:rank, None] * vt[:rank])
    return factorize(factors, keep=keep) if keep is not None else factors


def _leading(s: torch.Tensor, keep: float) -> int:
    share = (s**2).cumsum(0) / (s**2).sum()
    return int((share < keep - 1e-12).sum()) + 1


def cca(x, y, *, variates: bool = False, device: str = "cpu") -> CCAResult:
    """Canonical correlations between two representations; the distance is 1 minus their mean.

    Args:
        x, y: (n, p) and (n, q) activations of the same data points, or Factors of them.
        variates: return the canonical variates too.
        device: "cpu" or "cuda".

    Raises:
        ValueError: the numbers of rows differ, or a layer spans all n - 1 directions.

    Warns:
        DegenerateCCAWarning: the ranks together exceed n - 1.

    Source: Hotelling 1936; Björck & Golub 1973 for the computation by orthonormal bases.
    """
    x, y = factorize(x, device=device), factorize(y, device=device)
    if x.n != y.n:
        raise ValueError(f"x has {x.n} data points and y {y.n}; compare activations of the same data points")
    for name, layer in (("x", x), ("y", y)):
        if layer.rank == layer.n - 1:
            raise ValueError(
                f"{name} spans all {layer.n - 1} directions of {layer.n} data points; use more data points"
            )
    forced = x.rank + y.rank - (x.n - 1)
    if forced > 0:
        warnings.warn(
            f"{forced} correlations are 1 by counting; use more data points", DegenerateCCAWarning, stacklevel=2
        )
    u, s, vt = torch.linalg.svd(x.q.T @ y.q, full_matrices=False)
    correlations = s.clamp(0, 1).cpu().numpy()
    return CCAResult(
        distance=float(1 - correlations.mean()) if len(correlations) else 1.0,
        correlations=correlations,
        weights_x=_weights(u.T @ x.r),
        weights_y=_weights(vt @ y.r),
        rank_x=x.rank,
        rank_y=y.rank,
        n=x.n,
        floor=null_floor(x.rank, y.rank, x.n),
        variates_x=(x.q @ u).cpu().numpy() if variates else None,
        variates_y=(y.q @ vt.T).cpu().numpy() if variates else None,
    )


def _weights(projections: torch.Tensor) -> np.ndarray:
    sums = projections.abs().sum(dim=1)
    return (sums / sums.sum()).cpu().numpy()


@lru_cache(maxsize=4096)
def null_floor(rank_x: int, rank_y: int, n: int, measure: str = "mean_cca") -> float:
    """Distance expected of unrelated Gaussian representations, against which a distance must be read.

    Args:
        rank_x, rank_y: ranks of the two centred layers.
        n: data points.
        measure: of the CCA family (its floor is 1 - E mean ρ); nan for others.

    Returns:
        1 - E mean(ρ): exact for a layer of rank 1, else the mean of Wachter's limiting law of ρ².

    Source: Wachter 1980; Muirhead 1982, theorem 11.3.2 for rank 1.
    """
    if measure not in ("mean_cca", "svcca", "pwcca", "pwcca_squared"):
        return float("nan")
    p, q, total = min(rank_x, rank_y), max(rank_x, rank_y), n - 1
    if p == 0:
        return 1.0
    if q >= total:
        return 0.0
    if p == 1:
        return 1 - exp(lgamma((q + 1) / 2) + lgamma(total / 2) - lgamma(q / 2) - lgamma((total + 1) / 2))
    c, d = p / total, q / total
    low = ((c * (1 - d)) ** 0.5 - (d * (1 - c)) ** 0.5) ** 2
    high = ((c * (1 - d)) ** 0.5 + (d * (1 - c)) ** 0.5) ** 2
    theta = (np.arange(1, 2001) - 0.5) * np.pi / 2000
    x = (high + low) / 2 + (high - low) / 2 * np.cos(theta)
    density = ((high - low) / 2 * np.sin(theta)) ** 2 / (2 * np.pi * c * x * (1 - x))
    forced = max(0.0, (c + d - 1) / c)
    return float(1 - (np.sum(np.sqrt(x) * density) * np.pi / 2000 + forced))
