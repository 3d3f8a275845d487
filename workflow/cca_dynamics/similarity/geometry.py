"""Measures that compare the geometry of data points: RBF-CKA, RSA and nearest neighbours. All are symmetric.

They need time and memory of n², 8 bytes for each pair of data points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cca_dynamics.similarity.baselines import BaselineResult, require_points, symmetric_result
from cca_dynamics.similarity.factors import Factors, factorize_pair

NEIGHBOURS = 10
"""Nearest neighbours that are compared, as the measure's authors do."""
FEWEST_FOR_NEIGHBOURS = NEIGHBOURS + 2
FEWEST_FOR_RSA = 4
"""Data points of which 6 distances can be ranked."""


def rbf_cka(x, y, *, bandwidth: float = 1.0, device: str = "cpu") -> BaselineResult:
    """1 minus centred kernel alignment of Gaussian kernels, exp(-‖x_i - x_j‖² / (2σ²)).

    Args:
        x, y: (n, p) and (n, q) activations of the same data points, NumPy, torch, or Factors.
        bandwidth: σ of each layer, in units of the median distance of its data points.
        device: "cpu" or "cuda".

    Raises:
        RepresentationError: rows differ or a value is not finite.
        ValueError: the bandwidth is not positive.

    Source: Kornblith et al. 2019.
    """
    if not bandwidth > 0:
        raise ValueError(f"the bandwidth is a positive multiple of the median distance, not {bandwidth}")
    x, y = factorize_pair(x, y, device)
    require_points("RBF-CKA", 3, x, y)
    if not x.rank or not y.rank:
        return symmetric_result(x, y, 1.0)
    kernel_x, kernel_y = (_centred_kernel(layer, bandwidth) for layer in (x, y))
    norm = torch.linalg.vector_norm(kernel_x) * torch.linalg.vector_norm(kernel_y)
    return symmetric_result(x, y, 1 - float((kernel_x * kernel_y).sum() / norm) if norm > 0 else 1.0)


def _centred_kernel(layer: Factors, bandwidth: float) -> Tensor:
    """HKH of the Gaussian kernel K, (n, n)."""
    centred = layer.x - layer.mean
    squares = centred.square().sum(dim=1)
    distances = (squares[:, None] + squares[None] - 2 * centred @ centred.T).clamp(min=0)
    pairs = distances[torch.ones_like(distances, dtype=torch.bool).triu(1)]
    kernel = torch.exp(-distances / (2 * bandwidth**2 * _median(pairs)))
    kernel -= kernel.mean(dim=0)
    return kernel - kernel.mean(dim=1, keepdim=True)


def _median(squared_distances: Tensor) -> float:
    """The median of them, or the mean where more than half are 0."""
    return float(squared_distances.median()) or float(squared_distances.mean())


def rsa(x, y, *, device: str = "cpu") -> BaselineResult:
    """1 minus Spearman's correlation of the Euclidean distances between data points in x and in y. In [0, 2].

    Arguments and errors as `linear_cka`; n must be at least 4. Source: Kriegeskorte et al. 2008.
    """
    from scipy.spatial.distance import pdist
    from scipy.stats import rankdata

    x, y = factorize_pair(x, y, device)
    require_points("RSA", FEWEST_FOR_RSA, x, y)
    ranks = [torch.from_numpy(rankdata(pdist((layer.x - layer.mean).cpu().numpy()))) for layer in (x, y)]
    a, b = (rank - rank.mean() for rank in ranks)
    norm = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    return symmetric_result(x, y, 1 - float(a @ b / norm) if x.rank and y.rank and norm > 0 else 1.0)


def mutual_neighbours(x, y, *, neighbours: int = NEIGHBOURS, device: str = "cpu") -> BaselineResult:
    """1 minus the share of a data point's nearest neighbours in x that are among its nearest in y, mean over them.

    Near are data points whose activations, not centred, have a small angle. In [0, 1].

    Args:
        x, y: (n, p) and (n, q) activations of the same data points, NumPy, torch, or Factors.
        neighbours: k, how many are compared; unrelated layers share k / (n - 1) of them.
        device: "cpu" or "cuda".

    Raises:
        RepresentationError: rows differ, a value is not finite, or there are fewer than k + 2 data points.
        ValueError: k is less than 1.

    Source: Huh et al. 2024.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours is a number of data points, at least 1, not {neighbours}")
    x, y = factorize_pair(x, y, device)
    require_points("mutual nearest neighbours", neighbours + 2, x, y)
    if not x.rank or not y.rank:
        return symmetric_result(x, y, 1.0)
    near_x, near_y = (_nearest(layer.x.double(), neighbours) for layer in (x, y))
    return symmetric_result(x, y, 1 - int((near_x & near_y).sum()) / int(near_x.sum()))


def _nearest(x: Tensor, neighbours: int) -> Tensor:
    """(n, n): whether the column is one of the row's nearest data points, itself left out."""
    unit = torch.nn.functional.normalize(x, dim=1)
    similarities = unit @ unit.T
    similarities.fill_diagonal_(-torch.inf)
    near = torch.zeros_like(similarities, dtype=torch.bool)
    return near.scatter_(1, similarities.topk(neighbours, dim=1).indices, True)
