"""Distances of one representation to several at once, from their cross-products alone.

A kernel takes the cross-products Q_xᵀ Q_y, (b, p, q), of x with b others of one shape (or (p, q) with a single other),
the Factors of x, and those of the others. It returns two tensors, (b,) or without that axis: the distances from x to
the others and back. No rank is 0: `pairwise` deals with layers that do not vary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cca_dynamics.similarity.cca import canonical_correlations, canonical_directions, projection_weights
from cca_dynamics.similarity.decompositions import svdvals
from cca_dynamics.similarity.factors import Factors

Kernel = Callable[[Tensor, Factors, Sequence[Factors]], tuple[Tensor, Tensor]]


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors on a new first axis, without that axis if there is one: single products are quicker than batches."""
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors)


def pwcca_kernel(
    cross: Tensor, x: Factors, others: Sequence[Factors], weights: str = "absolute"
) -> tuple[Tensor, Tensor]:
    """Distances of `pwcca`."""
    u, rho, v = canonical_directions(cross)
    weights_x = projection_weights(u, x.coordinates(), rho, weights)
    weights_y = projection_weights(v, stack([y.coordinates() for y in others]), rho, weights)
    forward, backward = ((1 - (shares * rho).sum(dim=-1)).clamp(0, 1) for shares in (weights_x, weights_y))
    return forward, backward


def mean_cca_kernel(cross: Tensor, x: Factors, others: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    """Distances of `mean_cca`."""
    distance = 1 - canonical_correlations(cross).mean(dim=-1)
    return distance, distance


def linear_cka_kernel(cross: Tensor, x: Factors, others: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    """Distances of `linear_cka`."""
    s = stack([y.s for y in others])
    hsic = (x.s[:, None] * cross * s[..., None, :]).square().sum(dim=(-1, -2))
    distance = (1 - hsic / (x.s.pow(4).sum() * s.pow(4).sum(dim=-1)).sqrt()).clamp(min=0)
    return distance, distance


def procrustes_kernel(cross: Tensor, x: Factors, others: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    """Distances of `procrustes`."""
    s = stack([y.s for y in others])
    nuclear = svdvals(x.s[:, None] * cross * s[..., None, :]).sum(dim=-1)
    distance = (1 - nuclear / (x.s.square().sum() * s.square().sum(dim=-1)).sqrt()).clamp(min=0)
    return distance, distance


def angular_shape_kernel(cross: Tensor, x: Factors, others: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    """Distances of `angular_shape`."""
    distance = (1 - procrustes_kernel(cross, x, others)[0]).clamp(max=1).arccos()
    return distance, distance


def linear_predictivity_kernel(cross: Tensor, x: Factors, others: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    """Distances of `linear_predictivity`."""
    s = stack([y.s for y in others])
    forward = 1 - (cross * s[..., None, :]).square().sum(dim=(-1, -2)) / s.square().sum(dim=-1)
    backward = 1 - (x.s[:, None] * cross).square().sum(dim=(-1, -2)) / x.s.square().sum()
    return forward.clamp(min=0), backward.clamp(min=0)
