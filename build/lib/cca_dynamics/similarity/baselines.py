"""Measures that CCA is compared with: CKA, Procrustes, cosine and Euclidean distance. All are symmetric."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cca_dynamics.similarity.errors import RepresentationError
from cca_dynamics.similarity.factors import Factors, factorize_pair

FEWEST_FOR_DEBIASED_CKA = 4
"""Data points below which there is no unbiased estimate of HSIC."""


@dataclass(frozen=True)
class BaselineResult:
    """The result of a measure that CCA is compared with.

    Attributes:
        distance: from x to y; its range is the measure's.
        reverse: from y to x, which is the same.
        rank_x, rank_y: ranks of the two centred layers.
        n: data points.
    """

    distance: float
    reverse: float
    rank_x: int
    rank_y: int
    n: int


def linear_cka(x, y, *, device: str = "cpu") -> BaselineResult:
    """1 minus linear centred kernel alignment, ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖) of the centred layers (Frobenius norms).

    Args:
        x, y: (n, p) and (n, q) activations of the same data points, NumPy, torch, or Factors.
        device: "cpu" or "cuda".

    Raises:
        RepresentationError: rows differ or a value is not finite.

    Source: Kornblith et al. 2019.
    """
    x, y = factorize_pair(x, y, device)
    return _result(x, y, 1 - _hsic(x, y) / _geometric_mean(_hsic(x, x), _hsic(y, y)))


def linear_cka_debiased(x, y, *, device: str = "cpu") -> BaselineResult:
    """1 minus linear CKA from unbiased estimates of HSIC; unrelated layers have distance 1 on average, whatever n.

    Arguments and errors as `linear_cka`; n must be at least 4. Source: Song et al. 2012; Nguyen et al. 2021.
    """
    x, y = factorize_pair(x, y, device)
    if x.n < FEWEST_FOR_DEBIASED_CKA:
        raise RepresentationError(f"debiased CKA needs at least {FEWEST_FOR_DEBIASED_CKA} data points, not {x.n}")
    norm = _geometric_mean(_hsic_unbiased(x, x), _hsic_unbiased(y, y))
    return _result(x, y, 1 - _hsic_unbiased(x, y) / norm)


def procrustes(x, y, *, device: str = "cpu") -> BaselineResult:
    """Orthogonal Procrustes distance of the centred layers scaled to unit norm: min_O ‖X - Y O‖² / 2 = 1 - ‖XᵀY‖_*.

    In [0, 1]. Arguments and errors as `linear_cka`. Source: Schönemann 1966; Ding et al. 2021 without its factor 2.
    """
    x, y = factorize_pair(x, y, device)
    cross = x.s[:, None] * (x.basis().T @ y.basis()) * y.s
    nuclear = torch.linalg.svdvals(cross).sum() if cross.numel() else cross.sum()
    return _result(x, y, 1 - nuclear / _geometric_mean(x.s.square().sum(), y.s.square().sum()))


def cosine(x, y, *, device: str = "cpu") -> BaselineResult:
    """1 minus the cosine of the angle between the raw activations, each layer flattened to one vector.

    It compares neuron i with neuron i, so the layers need the same width. In [0, 2]. Arguments and errors as
    `linear_cka`.
    """
    x, y = _factorize_equal_widths(x, y, device)
    return _result(x, y, 1 - _cosine_of_angle(x, y))


def euclidean(x, y, *, device: str = "cpu") -> BaselineResult:
    """Euclidean distance of the raw activations, each layer flattened and scaled to unit length. In [0, 2].

    The paper does not state its scaling; this one has the range of its figures A3, A4 and A8. It compares neuron i
    with neuron i, so the layers need the same width. Arguments and errors as `linear_cka`.
    """
    x, y = _factorize_equal_widths(x, y, device)
    return _result(x, y, torch.sqrt(torch.clamp(2 - 2 * _cosine_of_angle(x, y), min=0)))


def _factorize_equal_widths(x, y, device: str) -> tuple[Factors, Factors]:
    x, y = factorize_pair(x, y, device)
    if x.x.shape != y.x.shape:
        raise RepresentationError(
            f"x has {x.x.shape[1]} neurons and y {y.x.shape[1]}; this measure compares neuron by neuron, "
            "use one of the CCA family for layers of different widths"
        )
    return x, y


def _result(x: Factors, y: Factors, distance) -> BaselineResult:
    distance = max(float(distance), 0.0)
    return BaselineResult(distance, distance, x.rank, y.rank, x.n)


def _geometric_mean(a, b) -> torch.Tensor:
    """√(a b), or 1 where that is 0: a layer that does not vary has similarity 0."""
    product = torch.as_tensor(a) * torch.as_tensor(b)
    return torch.where(product > 0, product.clamp(min=0).sqrt(), 1.0)


def _hsic(x: Factors, y: Factors) -> torch.Tensor:
    """‖XᵀY‖² of the centred layers: their Hilbert-Schmidt independence criterion up to a factor of n alone."""
    if x is y:
        return x.s.pow(4).sum()
    return (x.s[:, None] * (x.basis().T @ y.basis()) * y.s).square().sum()


def _hsic_unbiased(x: Factors, y: Factors) -> torch.Tensor:
    """The unbiased estimate of HSIC up to a factor of n alone, from the diagonals of the two Gram matrices.

    The formula is shorter than in Song et al. because the rows of a centred Gram matrix sum to 0.
    """
    n = x.n
    diagonal_x, diagonal_y = ((layer.basis() * layer.s).square().sum(dim=1) for layer in (x, y))
    both = (diagonal_x * diagonal_y).sum()
    return _hsic(x, y) - both + diagonal_x.sum() * diagonal_y.sum() / ((n - 1) * (n - 2)) - 2 * both / (n - 2)


def _cosine_of_angle(x: Factors, y: Factors) -> torch.Tensor:
    """Cosine of the angle between the two layers as given, not centred, each flattened to one vector."""
    a, b = x.x.double(), y.x.double()
    return (a * b).sum() / _geometric_mean(a.square().sum(), b.square().sum())
