"""Canonical correlation analysis of two representations.

A representation is an (n, d) matrix: rows are data points, columns neurons. With the thin singular value decomposition
X = Q S Vᵀ of the centred matrix, two representations are compared by the singular values ρ of Q_xᵀ Q_y, their canonical
correlations. Arithmetic is float64 whatever the input.

Directions whose singular value is rounding noise of the input's dtype are dropped, so duplicated, collinear, constant
and dead neurons change nothing. Layers may have any widths.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from math import exp, lgamma, nan, sqrt

import numpy as np
import torch
from torch import Tensor

NOISE = 8
"""Rounding noise of activations, in units of their dtype's epsilon: a network's layers accumulate several."""

ILL_CONDITIONED = 1e-6
"""Relative eigenvalue of the Gram matrix below which squaring has lost too much: the data are decomposed instead."""

SMALL = 1e-5
"""Correlation below which the variates of the second layer are not taken from those of the first."""


class DegenerateCCAWarning(UserWarning):
    """Two layers together have more directions than data points: some correlations are 1 by counting alone."""


@dataclass(frozen=True, eq=False)
class Factors:
    """What all comparisons of one representation share: X - mean = Q diag(s) Vᵀ, without keeping Q.

    Attributes:
        x: (n, d) the representation as given, on the device of the factors.
        mean: (d,) float64, mean of each neuron.
        s: (r,) float64, singular values, descending; r is the rank.
        v: (d, r) float64, right singular vectors.
    """

    x: Tensor
    mean: Tensor
    s: Tensor
    v: Tensor

    @property
    def rank(self) -> int:
        """Number of directions that are not numerically zero."""
        return len(self.s)

    @property
    def n(self) -> int:
        """Number of data points."""
        return self.x.shape[0]

    def basis(self) -> Tensor:
        """Q, (n, r) float64 with orthonormal columns."""
        return (self.x - self.mean) @ (self.v / self.s)

    def coordinates(self) -> Tensor:
        """R = Qᵀ (X - mean), (r, d): the neurons in the basis."""
        return self.s[:, None] * self.v.T

    def truncated(self, keep: float) -> Factors:
        """The leading directions that hold a share of the variance, as SVCCA uses them.

        Args:
            keep: in (0, 1].

        Raises:
            ValueError: keep is outside (0, 1].
        """
        if not 0 < keep <= 1:
            raise ValueError(f"keep is a share of variance in (0, 1], not {keep}")
        if not self.rank:
            return self
        share = (self.s**2).cumsum(0) / (self.s**2).sum()
        kept = min(int((share < keep - 1e-12).sum()) + 1, self.rank)
        return replace(self, s=self.s[:kept], v=self.v[:, :kept])


@dataclass(frozen=True)
class CCAResult:
    """What a CCA measure found.

    Attributes:
        distance: the measure's distance from x to y, in [0, 1]; 1 if a layer is constant.
        reverse: its distance from y to x.
        correlations: (c,) canonical correlations, descending, in [0, 1]; c is the smaller rank.
        weights_x, weights_y: (c,) share of each layer that its canonical variates account for; each sums to 1.
        rank_x, rank_y: dimensions of the two layers, as compared.
        n: data points.
        floor: the distance expected of unrelated Gaussian layers of these ranks and n; nan where it is not known.
        significant: number of correlations that Bartlett's test finds significant (measure `bartlett` only).
        variates_x, variates_y: (n, c) canonical variates, orthonormal columns, if asked for.
    """

    distance: float
    reverse: float
    correlations: np.ndarray
    weights_x: np.ndarray
    weights_y: np.ndarray
    rank_x: int
    rank_y: int
    n: int
    floor: float
    significant: int | None = None
    variates_x: np.ndarray | None = None
    variates_y: np.ndarray | None = None


def factorize(x, *, device: str = "cpu", name: str = "x") -> Factors:
    """Centre a representation and decompose it once for all its comparisons.

    Args:
        x: (n, d), NumPy array or torch tensor of any real dtype; Factors pass through.
        device: where to compute and keep the factors.
        name: what error messages call it.

    Raises:
        ValueError: x is not a finite matrix with at least 3 rows.
    """
    if isinstance(x, Factors):
        return x
    x = _matrix(x, device, name)
    n, d = x.shape
    epsilon = torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0
    mean = x.mean(dim=0, dtype=torch.float64)
    if not torch.isfinite(mean).all():
        raise ValueError(f"{name} has numbers whose sum is infinite; divide it by a constant")
    centred = x - mean  # float64, as the mean is
    gram = centred.T @ centred if n >= d else centred @ centred.T
    variance = float(gram.trace())
    if not 1e-200 < variance < 1e200 and (variance or centred.any()):
        # Squares of such numbers are none. No measure depends on the scale.
        return factorize(x / x.abs().max(), device=device, name=name)
    # Eigenvectors of the Gram matrix are quick, but squaring loses half of the digits of weak directions.
    eigenvalues, vectors = torch.linalg.eigh(gram) if n >= d else (None, None)
    if eigenvalues is None or float(eigenvalues[0]) < ILL_CONDITIONED * float(eigenvalues[-1]):
        s, v = _decompose(centred)
    else:
        s, v = eigenvalues.flip(0).sqrt(), vectors.flip(1)
    size = torch.hypot(torch.linalg.vector_norm(s), sqrt(n) * torch.linalg.vector_norm(mean))
    noise = NOISE * epsilon * float(size) * (1 / sqrt(n) + 1 / sqrt(d))  # size: Frobenius norm of x, not centred
    rank = int((s > max(noise, float(s[0]) * max(n, d) * torch.finfo(torch.float64).eps)).sum())
    return Factors(x, mean, s[:rank].contiguous(), v[:, :rank].contiguous())


def _decompose(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors without squaring the condition number."""
    r = torch.linalg.qr(centred, mode="r").R if centred.shape[0] > centred.shape[1] else centred
    _, s, vt = torch.linalg.svd(r, full_matrices=False)
    return s, vt.T


def _matrix(x, device: str, name: str) -> Tensor:
    x = x.detach() if isinstance(x, Tensor) else _tensor(x, name)
    if x.is_complex():
        raise ValueError(f"{name} is complex; give real activations")
    if x.ndim != 2:
        remedy = (
            "take the mean over space, x.mean(axis=(2, 3)) of a (n, channels, height, width) map, or flatten it"
            if x.ndim > 2
            else "use x[:, None] for one neuron"
        )
        raise ValueError(f"{name} has shape {tuple(x.shape)}, not (data points, neurons); {remedy}")
    if x.shape[0] < 3 or x.shape[1] < 1:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; give at least 3 data points and 1 neuron")
    try:
        x = x.to(device)
    except (RuntimeError, AssertionError) as problem:
        raise ValueError(f"device {device!r} cannot be used ({str(problem).splitlines()[0]}); use cpu") from None
    if x.dtype == torch.bool:
        x = x.to(torch.uint8)
    if x.is_floating_point() and not torch.isfinite(x.sum()) and (bad := int((~torch.isfinite(x)).sum())):
        raise ValueError(f"{name} has {bad} values that are NaN or infinite; remove these data points or retrain")
    return x


def _tensor(x, name: str) -> Tensor:
    try:
        x = np.asarray(x)
    except ValueError as problem:
        raise ValueError(f"{name} is not a matrix ({problem}); give equally long rows") from None
    if x.dtype.kind not in "biuf":
        problem = "is complex" if x.dtype.kind == "c" else f"is not numeric but of type {x.dtype}"
        raise ValueError(f"{name} {problem}; give real activations")
    native = np.float64 if x.dtype.itemsize > 8 else x.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(x, native, ["C", "W"]))


def canonical(cross: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular value decomposition of Q_xᵀ Q_y, many pairs at once.

    The eigenvectors of the smaller of M Mᵀ and Mᵀ M cost half of a singular value decomposition; the other side's
    vectors follow by one product, unless a correlation is so small that this would amplify rounding.

    Args:
        cross: (..., p, q).

    Returns:
        u (..., p, c), ρ (..., c) descending and clipped to [0, 1], v (..., q, c), with c = min(p, q).
    """
    if cross.shape[-2] > cross.shape[-1]:
        v, rho, u = canonical(cross.mT)
        return u, rho, v
    if cross.shape[-2] == 0:
        return cross.new_zeros((*cross.shape[:-1], 0)), cross.new_zeros(cross.shape[:-1]), cross.mT
    squares, u = torch.linalg.eigh(cross @ cross.mT)
    rho, u = squares.clamp(min=0).sqrt().flip(-1), u.flip(-1)
    v = cross.mT @ u / rho.clamp(min=SMALL)[..., None, :]
    small = rho[..., -1] < SMALL
    if small.any():
        exact_u, exact_rho, exact_vt = torch.linalg.svd(cross[small], full_matrices=False)
        u, v = u.clone(), v.clone()
        u[small], rho[small], v[small] = exact_u, exact_rho, exact_vt.mT
    return u, rho.clamp(0, 1), v


def correlations(cross: Tensor) -> Tensor:
    """The canonical correlations alone: (..., min(p, q)), descending and clipped to [0, 1]."""
    return torch.linalg.svdvals(cross).clamp(0, 1)


def projection_weights(vectors: Tensor, coordinates: Tensor, kind: str = "absolute") -> Tensor:
    """How much of a layer each of its canonical variates accounts for.

    Args:
        vectors: (..., p, c) canonical directions in the layer's basis.
        coordinates: (..., p, d) the layer's neurons in that basis.
        kind: "absolute", Σ_j |⟨h_i, x_j⟩| as in the paper, or "squared", Σ_j ⟨h_i, x_j⟩², which does not depend on
            the basis that is chosen among variates of equal correlation.

    Returns:
        (..., c), sums to 1 (0 for a layer without directions).
    """
    if kind not in ("absolute", "squared"):
        raise ValueError(f"weights are absolute or squared, not {kind!r}")
    projections = vectors.mT @ coordinates
    sums = (projections.abs() if kind == "absolute" else projections.square()).sum(dim=-1)
    return sums / sums.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(sums.dtype).tiny)


def check_pair(x: Factors, y: Factors) -> None:
    """Refuse layers of different data points or without room to differ, and warn where some correlations are forced.

    Raises:
        ValueError: the numbers of rows differ, or a layer spans all n - 1 directions.

    Warns:
        DegenerateCCAWarning: the ranks together exceed n - 1.
    """
    if x.n != y.n:
        raise ValueError(f"x has {x.n} data points and y {y.n}; compare activations of the same data points")
    for name, layer in (("x", x), ("y", y)):
        if layer.rank >= layer.n - 1:
            raise ValueError(
                f"{name} spans all {layer.n - 1} directions of its {layer.n} data points, "
                "so that everything correlates with it perfectly; use more data points than neurons"
            )
    forced = x.rank + y.rank - (x.n - 1)
    if forced > 0:
        warnings.warn(
            f"ranks {x.rank} and {y.rank} on {x.n} data points: {forced} correlations are 1 by counting alone; "
            "use more data points",
            DegenerateCCAWarning,
            stacklevel=3,
        )


def cca(x, y, *, weights: str = "absolute", variates: bool = False, device: str = "cpu") -> CCAResult:
    """Canonical correlations of two representations; the distance is 1 minus their mean.

    Args:
        x, y: (n, p) and (n, q) activations of the same data points, NumPy, torch, or Factors.
        weights: kind of the projection weights, see `projection_weights`.
        variates: return the canonical variates too.
        device: "cpu" or "cuda".

    Raises:
        ValueError: rows differ, a value is not finite, or a layer spans all n - 1 directions (the distance is 0
            whatever it holds).

    Warns:
        DegenerateCCAWarning: p + q > n - 1, so that some correlations are 1 by counting alone.

    Source: Hotelling 1936; Björck & Golub 1973 for the computation from orthonormal bases.
    """
    x, y = factorize(x, device=device, name="x"), factorize(y, device=device, name="y")
    check_pair(x, y)
    basis_x, basis_y = x.basis(), y.basis()
    u, rho, v = canonical(basis_x.T @ basis_y)
    distance = float(1 - rho.mean()) if len(rho) else 1.0
    return CCAResult(
        distance=distance,
        reverse=distance,
        correlations=rho.cpu().numpy(),
        weights_x=projection_weights(u, x.coordinates(), weights).cpu().numpy(),
        weights_y=projection_weights(v, y.coordinates(), weights).cpu().numpy(),
        rank_x=x.rank,
        rank_y=y.rank,
        n=x.n,
        floor=null_floor(x.rank, y.rank, x.n),
        variates_x=(basis_x @ u).cpu().numpy() if variates else None,
        variates_y=(basis_y @ v).cpu().numpy() if variates else None,
    )


def mean_cca(x, y, *, device: str = "cpu") -> CCAResult:
    """Mean CCA distance, 1 - mean(ρ). Arguments, errors and warnings as `cca`."""
    return cca(x, y, device=device)


def svcca(x, y, *, keep: float = 0.99, device: str = "cpu") -> CCAResult:
    """SVCCA distance: mean CCA of the leading singular directions that hold a share `keep` of each layer's variance.

    Other arguments, errors and warnings as `cca`; ranks and floor are those after truncation. Source: Raghu et al.
    2017.
    """
    x, y = factorize(x, device=device, name="x"), factorize(y, device=device, name="y")
    return cca(x.truncated(keep), y.truncated(keep))


def pwcca(x, y, *, weights: str = "absolute", variates: bool = False, device: str = "cpu") -> CCAResult:
    """Projection-weighted CCA distance from x to y, 1 - Σ α_i ρ_i with α_i ∝ Σ_j |⟨h_i, x_j⟩|.

    Not symmetric: the weights are those of x; `reverse` weighs by y. Affine changes of y change nothing, and neither
    does permuting, scaling all or shifting the neurons of x; rotating x changes the weights.

    Args:
        x: (n, p) activations, rows are data points, columns neurons.
        y: (n, q) activations of the same data points.
        weights: "absolute" is the paper's; "squared" is invariant when correlations tie.
        variates: return the canonical variates too.
        device: "cpu" or "cuda".

    Errors and warnings as `cca`. Source: Morcos et al. 2018, section 2.2.
    """
    result = cca(x, y, weights=weights, variates=variates, device=device)
    if not len(result.correlations):
        return result
    return replace(
        result,
        distance=float(np.clip(1 - result.weights_x @ result.correlations, 0, 1)),
        reverse=float(np.clip(1 - result.weights_y @ result.correlations, 0, 1)),
    )


def pwcca_squared(x, y, *, variates: bool = False, device: str = "cpu") -> CCAResult:
    """PWCCA with squared weights, Σ_j ⟨h_i, x_j⟩²: the distance is unique even when correlations tie."""
    return pwcca(x, y, weights="squared", variates=variates, device=device)


def bartlett(x, y, *, alpha: float = 0.05, device: str = "cpu") -> CCAResult:
    """1 minus the mean of the significant correlations, their number found by Bartlett's sequential test.

    The hypothesis that only the first k correlations are not chance is tested for k = 0, 1, ... by a χ² with (p -
    k)(q - k) degrees of freedom, until it is not rejected at `alpha`. No significant correlation: distance 1.

    Arguments, errors and warnings as `cca`. Source: Bartlett 1941 with Lawley's correction, as in Morcos et al. 2018,
    A.2.
    """
    from scipy.stats import chi2

    result = cca(x, y, device=device)
    rho2, n = np.square(result.correlations), result.n
    # log Π_{i>k} (1 - ρ_i²) for every k; a correlation of exactly 1 is significant whatever n.
    tails = np.cumsum(np.log1p(-np.minimum(rho2, 1 - 1e-15))[::-1])[::-1]
    k = np.arange(len(rho2))
    inverse = np.concatenate([[0.0], np.cumsum(1 / np.maximum(rho2, 1e-300))[:-1]]) if len(rho2) else k
    factor = n - k - (result.rank_x + result.rank_y + 1) / 2 + inverse
    p_values = chi2.sf(-factor * tails, (result.rank_x - k) * (result.rank_y - k))
    accepted = np.flatnonzero(p_values > alpha)
    significant = int(accepted[0]) if len(accepted) else len(rho2)
    distance = float(1 - result.correlations[:significant].mean()) if significant else 1.0
    return replace(result, distance=distance, reverse=distance, significant=significant, floor=nan)


def null_moments(rank_x: int, rank_y: int, n: int) -> tuple[float, float]:
    """Mean and variance of Σ ρ² for unrelated Gaussian layers: exact.

    Source: Pillai 1955; with N = n - 1, mean pq/N and variance 2pq(N - p)(N - q) / (N²(N - 1)(N + 2)).
    """
    p, q, total = rank_x, rank_y, n - 1
    return p * q / total, 2 * p * q * (total - p) * (total - q) / (total**2 * (total - 1) * (total + 2))


@lru_cache(maxsize=65536)
def null_floor(rank_x: int, rank_y: int, n: int, measure: str = "mean_cca") -> float:
    """Distance expected of unrelated Gaussian layers, against which a distance must be read.

    Args:
        rank_x, rank_y: ranks of the two centred layers.
        n: data points.
        measure: mean_cca, svcca, pwcca, pwcca_squared; the weights of unrelated layers do not depend on the
            correlations, so all share one floor. nan for other measures.

    Returns:
        1 - E mean(ρ): exact if a rank is 1, else the mean of Wachter's limiting law of ρ².

    Source: Wachter 1980; Muirhead 1982, theorem 11.3.2.
    """
    if measure not in ("mean_cca", "svcca", "pwcca", "pwcca_squared"):
        return nan
    p, q, total = min(rank_x, rank_y), max(rank_x, rank_y), n - 1
    if p == 0:
        return 1.0
    if q >= total:
        return 0.0
    if p == 1:  # ρ² is Beta(q/2, (N - q)/2)
        return 1 - exp(lgamma((q + 1) / 2) + lgamma(total / 2) - lgamma(q / 2) - lgamma((total + 1) / 2))
    c, d = p / total, q / total
    low, high = ((sqrt(c * (1 - d)) + sign * sqrt(d * (1 - c))) ** 2 for sign in (-1, 1))
    # Chebyshev quadrature of √x √((x - low)(high - x)) / (2π c x (1 - x)); the rest of the mass lies at 1.
    theta = (np.arange(2000) + 0.5) * np.pi / 2000
    x = (high + low) / 2 + (high - low) / 2 * np.cos(theta)
    density = ((high - low) / 2 * np.sin(theta)) ** 2 / (2 * np.pi * c * x * np.maximum(1 - x, 1e-300))
    forced = max(0.0, (c + d - 1) / c)
    return float(1 - (np.sum(np.sqrt(x) * density) * np.pi / 2000 + forced))
