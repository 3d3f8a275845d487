"""Canonical correlation analysis of two representations, and the distances built on it.

A representation is an (n, d) matrix: rows are data points, columns neurons. With the thin singular value decomposition
X = Q S Vᵀ of the centred matrix, two representations are compared by the singular values ρ of Q_xᵀ Q_y, their canonical
correlations. Layers may have any widths; see `factors` for how each is decomposed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from math import nan

import numpy as np
import torch
from torch import Tensor

from cca_dynamics.similarity.decompositions import eigh, svdvals
from cca_dynamics.similarity.errors import DegenerateCCAWarning, RepresentationError
from cca_dynamics.similarity.factors import Factors, factorize_pair
from cca_dynamics.similarity.nulls import mean_cca_floor

SMALL = 1e-5
"""Correlation below which the variates of the second layer are not taken from those of the first."""

TIED = 1e-5
"""Correlations that differ by less count as equal: rounding alone would choose their variates."""

SVCCA_KEEP = 0.99
"""Share of a layer's variance whose directions SVCCA compares, as its authors do."""


@dataclass(frozen=True)
class CCAResult:
    """The result of a measure of the CCA family.

    Attributes:
        distance: the measure's distance from x to y, in [0, 1]; 1 if a layer is constant.
        reverse: its distance from y to x.
        correlations: (c,) canonical correlations, descending, in [0, 1]; c is the smaller rank.
        weights_x, weights_y: (c,) share of each layer that its canonical variates account for; each sums to 1. Of equal
            correlations, those of the layer's own `principal_axes`.
        rank_x, rank_y: dimensions of the two layers, as compared.
        n: data points.
        floor: the distance expected of unrelated Gaussian layers of these ranks and n; nan where it is not known.
        significant: number of correlations that Bartlett's test finds significant (measure `bartlett` only).
        variates_x, variates_y: (n, c) canonical variates, orthonormal columns, if asked for; those of equal
            correlations are any rotation of each other.
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


def canonical_directions(cross: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Canonical directions and correlations: the singular value decomposition of Q_xᵀ Q_y, many pairs at once.

    The eigenvectors of the smaller of M Mᵀ and Mᵀ M cost half of a singular value decomposition; the other side's
    vectors follow by one product, unless a correlation is so small that this would amplify rounding.

    Args:
        cross: (..., p, q).

    Returns:
        u (..., p, c), ρ (..., c) descending and clipped to [0, 1], v (..., q, c), with c = min(p, q).
    """
    if cross.shape[-2] > cross.shape[-1]:
        v, rho, u = canonical_directions(cross.mT)
        return u, rho, v
    if cross.shape[-2] == 0:
        return cross.new_zeros((*cross.shape[:-1], 0)), cross.new_zeros(cross.shape[:-1]), cross.mT
    squares, u = eigh(cross @ cross.mT)
    rho, u = squares.clamp(min=0).sqrt().flip(-1), u.flip(-1)
    v = cross.mT @ u / rho.clamp(min=SMALL)[..., None, :]
    small = rho[..., -1] < SMALL
    if small.any():
        exact_u, exact_rho, exact_vt = torch.linalg.svd(cross[small], full_matrices=False)
        u, v = u.clone(), v.clone()
        u[small], rho[small], v[small] = exact_u, exact_rho, exact_vt.mT
    return u, rho.clamp(0, 1), v


def canonical_correlations(cross: Tensor) -> Tensor:
    """The canonical correlations alone: (..., min(p, q)), descending and clipped to [0, 1]."""
    return svdvals(cross).clamp(0, 1)


def tied(correlations: Tensor) -> list[slice]:
    """The runs of two or more equal correlations, all within `TIED` of the first.

    Args:
        correlations: (c,) descending.
    """
    runs, first, values = [], 0, correlations.tolist()
    for index in range(1, len(values) + 1):
        if index == len(values) or values[first] - values[index] >= TIED:
            if index - first > 1:
                runs.append(slice(first, index))
            first = index
    return runs


def principal_axes(projections: Tensor, correlations: Tensor) -> Tensor:
    """Projections of a layer on its canonical variates, those of equal correlations turned to its principal axes.

    Variates of equal correlations are defined up to a rotation, and `projection_weights` depend on it. The paper leaves
    it open, and what a linear algebra library returns differs with hardware and route. The principal axes of the layer
    within the space of these variates are unique, unless the layer varies equally along two of them.

    Args:
        projections: (..., c, d) of d neurons on c variates.
        correlations: (..., c) descending.

    Returns:
        (..., c, d).
    """
    if not bool((correlations[..., :-1] - correlations[..., 1:] < TIED).any()):
        return projections
    projections = projections.clone()
    for pair in np.ndindex(correlations.shape[:-1]):
        for run in tied(correlations[pair]):
            _, s, vt = torch.linalg.svd(projections[(*pair, run)], full_matrices=False)
            projections[(*pair, run)] = s[:, None] * vt
    return projections


def projection_weights(vectors: Tensor, coordinates: Tensor, correlations: Tensor, kind: str = "absolute") -> Tensor:
    """How much of a layer each of its canonical variates accounts for.

    Args:
        vectors: (..., p, c) canonical directions in the layer's basis.
        coordinates: (..., p, d) the layer's neurons in that basis.
        correlations: (..., c); variates of equal ones are turned to `principal_axes` first.
        kind: "absolute", Σ_j |⟨h_i, x_j⟩| as in the paper, or "squared", Σ_j ⟨h_i, x_j⟩², of which the sum over
            variates of equal correlation is the same whatever their axes.

    Returns:
        (..., c), sums to 1 (0 for a layer without directions).

    Raises:
        ValueError: kind is neither.
    """
    if kind not in ("absolute", "squared"):
        raise ValueError(f"weights are absolute or squared, not {kind!r}")
    projections = principal_axes(vectors.mT @ coordinates, correlations)
    sums = (projections.abs() if kind == "absolute" else projections.square()).sum(dim=-1)
    return sums / sums.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(sums.dtype).tiny)


def check_pair(x: Factors, y: Factors) -> None:
    """Refuse a layer that correlates perfectly with everything, and warn of correlations that are exactly 1.

    Args:
        x, y: Factors of two layers with the same number of data points.

    Raises:
        RepresentationError: a layer spans all n - 1 directions.

    Warns:
        DegenerateCCAWarning: the ranks together exceed n - 1.
    """
    for name, layer in (("x", x), ("y", y)):
        if layer.rank >= layer.n - 1:
            raise RepresentationError(
                f"{name} spans all {layer.n - 1} directions of its {layer.n} data points, "
                "so that everything correlates with it perfectly; use more data points than neurons"
            )
    excess = x.rank + y.rank - (x.n - 1)
    if excess > 0:
        warnings.warn(
            f"ranks {x.rank} and {y.rank} on {x.n} data points: {excess} correlations are exactly 1 because the ranks "
            "together exceed n - 1; use more data points",
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
        RepresentationError: rows differ, a value is not finite, or a layer spans all n - 1 directions (the distance is
            0 whatever it holds).
        ValueError: the kind of weights is not known.

    Warns:
        DegenerateCCAWarning: the ranks together exceed n - 1, so that some correlations are exactly 1.

    Source: Hotelling 1936; Björck & Golub 1973 for the computation from orthonormal bases.
    """
    x, y = factorize_pair(x, y, device)
    check_pair(x, y)
    basis_x, basis_y = x.basis(), y.basis()
    u, rho, v = canonical_directions(basis_x.T @ basis_y)
    distance = float(1 - rho.mean()) if len(rho) else 1.0
    return CCAResult(
        distance=distance,
        reverse=distance,
        correlations=rho.cpu().numpy(),
        weights_x=projection_weights(u, x.coordinates(), rho, weights).cpu().numpy(),
        weights_y=projection_weights(v, y.coordinates(), rho, weights).cpu().numpy(),
        rank_x=x.rank,
        rank_y=y.rank,
        n=x.n,
        floor=mean_cca_floor(x.rank, y.rank, x.n),
        variates_x=(basis_x @ u).cpu().numpy() if variates else None,
        variates_y=(basis_y @ v).cpu().numpy() if variates else None,
    )


def mean_cca(x, y, *, device: str = "cpu") -> CCAResult:
    """Mean CCA distance, 1 - mean(ρ). Arguments, errors and warnings as `cca`."""
    return cca(x, y, device=device)


def svcca(x, y, *, keep: float = SVCCA_KEEP, device: str = "cpu") -> CCAResult:
    """SVCCA distance: mean CCA of the leading singular directions that hold a share `keep` of each layer's variance.

    Other arguments, errors and warnings as `cca`, and a ValueError if keep is outside (0, 1]; ranks and floor are those
    after truncation. Source: Raghu et al. 2017.
    """
    x, y = factorize_pair(x, y, device)
    return cca(x.truncated(keep), y.truncated(keep))


def pwcca(x, y, *, weights: str = "absolute", variates: bool = False, device: str = "cpu") -> CCAResult:
    """Projection-weighted CCA distance from x to y, 1 - Σ α_i ρ_i with α_i ∝ Σ_j |⟨h_i, x_j⟩|.

    Not symmetric: the weights are those of x; `reverse` weighs by y. Affine changes of y change nothing, and neither
    does permuting, scaling all or shifting the neurons of x; rotating x changes the weights.

    Args:
        x: (n, p) activations, rows are data points, columns neurons.
        y: (n, q) activations of the same data points.
        weights: "absolute" is the paper's, completed by `principal_axes` where correlations are equal; "squared" needs
            no such choice.
        variates: return the canonical variates too.
        device: "cpu" or "cuda".

    Errors and warnings as `cca`. Source: Morcos et al. 2018, section 2.2.
    """
    return projection_weighted(cca(x, y, weights=weights, variates=variates, device=device))


def projection_weighted(result: CCAResult) -> CCAResult:
    """The result of `cca` with the distances of `pwcca`."""
    if not len(result.correlations):
        return result
    return replace(
        result,
        distance=float(np.clip(1 - result.weights_x @ result.correlations, 0, 1)),
        reverse=float(np.clip(1 - result.weights_y @ result.correlations, 0, 1)),
    )


def pwcca_squared(x, y, *, variates: bool = False, device: str = "cpu") -> CCAResult:
    """PWCCA with squared weights, Σ_j ⟨h_i, x_j⟩²: the distance needs no choice of axes when correlations are equal."""
    return pwcca(x, y, weights="squared", variates=variates, device=device)


def pwcca_thresholded(x, y, *, keep: float = SVCCA_KEEP, weights: str = "absolute", device: str = "cpu") -> CCAResult:
    """PWCCA distance of the leading singular directions that hold a share `keep` of each layer's variance.

    Other arguments, errors and warnings as `pwcca`, and a ValueError if keep is outside (0, 1]; ranks and floor are
    those after truncation. Source: Morcos et al. 2018, caption of figure 3, "thresholding to remove low variance
    noise", which does not state the threshold; ours is SVCCA's.
    """
    x, y = factorize_pair(x, y, device)
    return pwcca(x.truncated(keep), y.truncated(keep), weights=weights)


def bartlett(x, y, *, alpha: float = 0.05, device: str = "cpu") -> CCAResult:
    """1 minus the mean of the significant correlations, their number found by Bartlett's sequential test.

    The hypothesis that only the first k correlations are not chance is tested for k = 0, 1, ... by a χ² with (p -
    k)(q - k) degrees of freedom, until it is not rejected at `alpha`. No significant correlation: distance 1.

    Arguments, errors and warnings as `cca`, and ValueError if alpha is outside (0, 1). Source: Bartlett 1941 with
    Lawley's correction, as in Morcos et al. 2018, A.2.
    """
    from scipy.stats import chi2

    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a probability between 0 and 1, not {alpha}")
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
