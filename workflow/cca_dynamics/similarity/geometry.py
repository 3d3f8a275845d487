"""Measures that compare the geometry of data points: RBF-CKA, RSA and nearest neighbours. All are symmetric.

They need time and memory of n², 8 bytes for each pair of data points.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from cca_dynamics.similarity.baselines import BaselineResult, require_points, symmetric_result
from cca_dynamics.similarity.errors import RepresentationError
from cca_dynamics.similarity.factors import Factors, factorize_pair

NEIGHBOURS = 10
"""Nearest neighbours that are compared, as the measure's authors do."""
FEWEST_FOR_NEIGHBOURS = NEIGHBOURS + 2
EPSILON = float(np.finfo(np.float64).eps)
DIGITS = 2.0**40
"""Distances that agree in 12 digits have one rank."""
FEWEST_FOR_RSA = 4
"""Data points of which 6 distances can be ranked."""


def _check_points(measure: str, fewest: int, x: Factors, y: Factors) -> None:
    """Refuse too few data points, and more than memory holds the pairs of.

    Raises:
        RepresentationError: as said.
    """
    require_points(measure, fewest, x, y)
    needed = 4 * 8 * x.n**2
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on this system
        return
    if x.x.device.type == "cpu" and needed > memory:
        raise RepresentationError(
            f"{measure} of {x.n} data points needs about {needed / 1e9:.0f} GB of memory, a number for each pair of "
            "them; use fewer data points, or linear CKA"
        )


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
    _check_points("RBF-CKA", 3, x, y)
    if not x.rank or not y.rank:
        return symmetric_result(x, y, 1.0)
    kernel_x, kernel_y = (_centred_kernel(layer, bandwidth) for layer in (x, y))
    norm = torch.linalg.vector_norm(kernel_x) * torch.linalg.vector_norm(kernel_y)
    return symmetric_result(x, y, 1 - float((kernel_x * kernel_y).sum() / norm) if norm > 0 else 1.0)


def _centred_kernel(layer: Factors, bandwidth: float) -> Tensor:
    """HKH of the Gaussian kernel K, (n, n)."""
    centred = layer.x - layer.mean
    squares = centred.square().sum(dim=1)
    sums = squares[:, None] + squares[None]
    distances = sums - 2 * centred @ centred.T
    distances = torch.where(distances > _rounding(layer) * sums, distances, 0.0)  # of data points that coincide
    pairs = distances[torch.ones_like(distances, dtype=torch.bool).triu(1)]
    # Centring takes away the 1 that expm1 leaves out, beside which a wide kernel would vanish.
    kernel = torch.expm1(-distances / (2 * bandwidth**2 * _median(pairs)))
    kernel -= kernel.mean(dim=0)
    return kernel - kernel.mean(dim=1, keepdim=True)


def _rounding(layer: Factors) -> float:
    """Error of a sum of as many products as there are neurons, relative to the sum of their magnitudes."""
    return 8 * EPSILON * layer.x.shape[1] ** 0.5


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
    _check_points("RSA", FEWEST_FOR_RSA, x, y)

    def ranks_of_distances(layer: Factors) -> Tensor:
        points = layer.x.double().cpu().numpy()  # not centred, which would tell equal distances apart
        distances = pdist(points)
        distances[distances <= _rounding(layer) * np.median(np.linalg.norm(points, axis=1))] = 0  # points that coincide
        digits, exponents = np.frexp(distances)
        return torch.from_numpy(rankdata(np.ldexp(np.round(digits * DIGITS), exponents)))

    a, b = (ranks - ranks.mean() for ranks in map(ranks_of_distances, (x, y)))
    norm = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    return symmetric_result(x, y, 1 - float(a @ b / norm) if x.rank and y.rank and norm > 0 else 1.0)


def mutual_neighbours(x, y, *, neighbours: int = NEIGHBOURS, device: str = "cpu") -> BaselineResult:
    """1 minus the share of a data point's nearest neighbours in x that are among its nearest in y, mean over them.

    Near are data points whose activations, not centred, have a small angle. In [0, 1]. This is ours where the authors
    say nothing: a data point at 0 in one of the layers has no angles and is left out of both; data points that tie for
    the last of the k places share what is left of them, and the overlap of two such neighbourhoods is the cosine of the
    shares; a data point to which all others are equally near has no neighbours.

    Args:
        x, y: (n, p) and (n, q) activations of the same data points, NumPy, torch, or Factors.
        neighbours: k, how many are compared; unrelated layers share k / (n - 1) of them, more where angles tie.
        device: "cpu" or "cuda".

    Raises:
        RepresentationError: rows differ, a value is not finite, or fewer than k + 2 data points are not at 0.
        ValueError: k is no whole number from 1.

    Source: Huh et al. 2024.
    """
    if neighbours < 1 or neighbours != int(neighbours):
        raise ValueError(f"neighbours is a whole number of data points, at least 1, not {neighbours}")
    x, y = factorize_pair(x, y, device)
    _check_points("mutual nearest neighbours", neighbours + 2, x, y)
    if not x.rank or not y.rank:
        return symmetric_result(x, y, 1.0)
    directed = x.x.ne(0).any(dim=1) & y.x.ne(0).any(dim=1)
    if (left := int(directed.sum())) < neighbours + 2:
        raise RepresentationError(
            f"mutual nearest neighbours needs at least {neighbours + 2} data points that are not at 0, not {left}; "
            "use linear CKA, or fewer neighbours"
        )
    near_x, near_y = (_nearest(layer.x[directed].double(), int(neighbours), 2 * _rounding(layer)) for layer in (x, y))
    norms = near_x.square().sum(dim=1) * near_y.square().sum(dim=1)
    overlaps = (near_x * near_y).sum(dim=1) / torch.where(norms > 0, norms, 1.0).sqrt()
    return symmetric_result(x, y, 1 - float(overlaps.mean()))


def _nearest(x: Tensor, neighbours: int, rounding: float) -> Tensor:
    """(n, n): which share of the row's neighbourhood the column is, itself left out; see `mutual_neighbours`.

    Args:
        x: (n, d) data points, none at 0.
        neighbours: how many.
        rounding: cosines that differ by no more are equal.
    """
    unit = torch.nn.functional.normalize(x / x.abs().amax(dim=1, keepdim=True), dim=1)
    similarities = unit @ unit.T
    similarities.fill_diagonal_(-torch.inf)
    last = similarities.topk(neighbours, dim=1).values[:, -1:]
    tied = (similarities - last).abs() <= rounding
    nearer = (similarities > last) & ~tied
    places = neighbours - nearer.sum(dim=1, keepdim=True)
    candidates = tied.sum(dim=1, keepdim=True)
    near = nearer.double() + tied * (places / candidates)
    return torch.where(candidates < len(x) - 1, near, 0.0)
