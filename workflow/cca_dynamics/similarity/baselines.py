"""Measures that CCA is compared with, from products of neurons: CKA, Procrustes, linear predictivity and others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cca_dynamics.similarity.errors import RepresentationError
from cca_dynamics.similarity.factors import Factors, factorize_pair

ROUNDING = 1e-14
"""A difference below this share of the numbers that it is taken of is rounding."""
FEWEST_FOR_DEBIASED_CKA = 4
"""Data points below which there is no unbiased estimate of HSIC."""


@dataclass(frozen=True)
class BaselineResult:
    """The result of a measure that CCA is compared with.

    Attributes:
        distance: from x to y; its range is the measure's.
        reverse: from y to x; the same but for `linear_predictivity`.
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
    return symmetric_result(x, y, 1 - _hsic(x, y) / _geometric_mean(_hsic(x, x), _hsic(y, y)))


def linear_cka_debiased(x, y, *, device: str = "cpu") -> BaselineResult:
    """1 minus linear CKA from unbiased estimates of HSIC; unrelated layers have distance 1 on average, whatever n.

    1, too, where the estimate of a layer's similarity to itself is not above 0.

    Arguments and errors as `linear_cka`; n must be at least 4. Source: Song et al. 2012; Nguyen et al. 2021.
    """
    x, y = factorize_pair(x, y, device)
    require_points("debiased CKA", FEWEST_FOR_DEBIASED_CKA, x, y)
    selves = [_hsic_unbiased(layer, layer) for layer in (x, y)]
    if any(unbiased <= ROUNDING * _hsic(layer, layer) for unbiased, layer in zip(selves, (x, y), strict=True)):
        return symmetric_result(x, y, 1.0)  # such as one that is not 0 at a single data point
    return symmetric_result(x, y, 1 - _hsic_unbiased(x, y) / _geometric_mean(*selves))


def procrustes(x, y, *, device: str = "cpu") -> BaselineResult:
    """Orthogonal Procrustes distance of the centred layers scaled to unit norm: min_O ‖X - Y O‖² / 2 = 1 - ‖XᵀY‖_*.

    In [0, 1]. Arguments and errors as `linear_cka`. Source: Schönemann 1966; Ding et al. 2021 without its factor 2.
    """
    x, y = factorize_pair(x, y, device)
    cross = x.s[:, None] * (x.basis().T @ y.basis()) * y.s
    nuclear = torch.linalg.svdvals(cross).sum() if cross.numel() else cross.sum()
    return symmetric_result(x, y, 1 - nuclear / _geometric_mean(x.s.square().sum(), y.s.square().sum()))


def angular_shape(x, y, *, device: str = "cpu") -> BaselineResult:
    """The angle between the centred layers once one is rotated to the other, arccos(‖XᵀY‖_* / (‖X‖ ‖Y‖)), a metric.

    In radians, in [0, π/2]; the cosine is 1 minus the distance of `procrustes`. Arguments and errors as `linear_cka`.
    Source: Williams et al. 2021.
    """
    x, y = factorize_pair(x, y, device)
    return symmetric_result(x, y, math.acos(min(1.0, 1 - procrustes(x, y).distance)))


def linear_predictivity(x, y, *, device: str = "cpu") -> BaselineResult:
    """1 - R² of the linear regression of all neurons of y on x, over the data points that it was fitted to. In [0, 1].

    Not symmetric: `reverse` predicts x from y. In sample: on n data points, x of rank r explains r / (n - 1) of
    unrelated neurons. Arguments and errors as `linear_cka`.
    """
    x, y = factorize_pair(x, y, device)
    cross = x.basis().T @ y.basis()
    forward, backward = ((cross * y.s).square().sum(), (x.s[:, None] * cross).square().sum())
    unexplained = [1 - part / _geometric_mean(*2 * [z.s.square().sum()]) for part, z in ((forward, y), (backward, x))]
    distance, reverse = (max(float(share), 0.0) for share in unexplained)
    return BaselineResult(distance, reverse, x.rank, y.rank, x.n)


def cosine(x, y, *, device: str = "cpu") -> BaselineResult:
    """1 minus the cosine of the angle between the raw activations, each layer flattened to one vector.

    It compares neuron i with neuron i, so the layers need the same width. In [0, 2]. Arguments and errors as
    `linear_cka`.
    """
    x, y = _factorize_equal_widths(x, y, device)
    return symmetric_result(x, y, 1 - _cosine_of_angle(x, y))


def euclidean(x, y, *, device: str = "cpu") -> BaselineResult:
    """Euclidean distance of the raw activations, each layer flattened and scaled to unit length. In [0, 2].

    The paper does not state its scaling; this one has the range of its figures A3, A4 and A8. It compares neuron i
    with neuron i, so the layers need the same width. Arguments and errors as `linear_cka`.
    """
    x, y = _factorize_equal_widths(x, y, device)
    return symmetric_result(x, y, torch.sqrt(torch.clamp(2 - 2 * _cosine_of_angle(x, y), min=0)))


def require_points(measure: str, fewest: int, *layers: Factors) -> None:
    """Refuse fewer data points than a measure needs, and layers of which only second moments are known.

    Raises:
        RepresentationError: as said.
    """
    for layer in layers:
        if layer.n < fewest:
            raise RepresentationError(f"{measure} needs at least {fewest} data points, not {layer.n}")
        if layer.points is not None:
            raise RepresentationError(f"{measure} compares single data points; second moments do not have them")


def _factorize_equal_widths(x, y, device: str) -> tuple[Factors, Factors]:
    x, y = factorize_pair(x, y, device)
    if x.x.shape != y.x.shape:
        raise RepresentationError(
            f"x has {x.x.shape[1]} neurons and y {y.x.shape[1]}; this measure compares neuron by neuron, "
            "use one of the CCA family for layers of different widths"
        )
    return x, y


def symmetric_result(x: Factors, y: Factors, distance) -> BaselineResult:
    """The result of a symmetric measure."""
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
