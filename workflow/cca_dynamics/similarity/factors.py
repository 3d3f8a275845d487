"""One representation, centred and decomposed once for all its comparisons.

A representation is an (n, d) matrix: rows are data points, columns neurons. Its thin singular value decomposition is
X − mean = Q diag(s) Vᵀ. Arithmetic is float64 whatever the input.

Directions whose singular value is rounding noise of the input's dtype are dropped, so duplicated, collinear, constant
and dead neurons change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from cca_dynamics.similarity.errors import RepresentationError

NOISE = 8
"""Rounding noise of activations, in units of their dtype's epsilon: a network's layers accumulate several."""

ILL_CONDITIONED = 1e-6
"""Relative eigenvalue of the Gram matrix below which squaring has lost too much: the data are decomposed instead."""


@dataclass(frozen=True, eq=False)
class Factors:
    """What all comparisons of one representation share: X - mean = Q diag(s) Vᵀ, without storing Q.

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
        count = min(int((share < keep - 1e-12).sum()) + 1, self.rank)
        return replace(self, s=self.s[:count], v=self.v[:, :count])


def factorize(x, *, device: str = "cpu", name: str = "x") -> Factors:
    """Centre a representation and decompose it once for all its comparisons.

    Args:
        x: (n, d), NumPy array or torch tensor of any real dtype; Factors are returned as they are.
        device: where to compute and store the factors.
        name: what error messages call it.

    Raises:
        RepresentationError: x is not a finite matrix with at least 3 rows, or the device is not available.
    """
    if isinstance(x, Factors):
        return x
    x = _as_matrix(x, device, name)
    n, d = x.shape
    epsilon = torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0
    mean = x.mean(dim=0, dtype=torch.float64)
    if not torch.isfinite(mean).all():
        raise RepresentationError(f"{name} has numbers whose sum is infinite; divide it by a constant")
    centred = x - mean  # float64, as the mean is
    gram = centred.T @ centred if n >= d else centred @ centred.T
    variance = float(gram.trace())
    if not 1e-200 < variance < 1e200 and (variance or centred.any()):
        # The squares overflow or underflow. No measure depends on the scale, so divide by it.
        return factorize(x / x.abs().max(), device=device, name=name)
    # Eigenvectors of the Gram matrix are quick, but squaring loses half of the digits of weak directions.
    eigenvalues, vectors = torch.linalg.eigh(gram) if n >= d else (None, None)
    if eigenvalues is None or float(eigenvalues[0]) < ILL_CONDITIONED * float(eigenvalues[-1]):
        s, v = _decompose_without_squaring(centred)
    else:
        s, v = eigenvalues.flip(0).sqrt(), vectors.flip(1)
    # The Frobenius norm of x itself, not of the centred matrix.
    size = torch.hypot(torch.linalg.vector_norm(s), sqrt(n) * torch.linalg.vector_norm(mean))
    noise = NOISE * epsilon * float(size) * (1 / sqrt(n) + 1 / sqrt(d))
    rank = int((s > max(noise, float(s[0]) * max(n, d) * torch.finfo(torch.float64).eps)).sum())
    return Factors(x, mean, s[:rank].contiguous(), v[:, :rank].contiguous())


def factorize_pair(x, y, device: str) -> tuple[Factors, Factors]:
    """Factors of two representations of the same data points.

    Raises:
        RepresentationError: as `factorize`, or the numbers of rows differ.
    """
    x, y = factorize(x, device=device, name="x"), factorize(y, device=device, name="y")
    if x.n != y.n:
        raise RepresentationError(f"x has {x.n} data points and y {y.n}; compare activations of the same data points")
    return x, y


def _decompose_without_squaring(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors without squaring the condition number."""
    r = torch.linalg.qr(centred, mode="r").R if centred.shape[0] > centred.shape[1] else centred
    _, s, vt = torch.linalg.svd(r, full_matrices=False)
    return s, vt.T


def _as_matrix(x, device: str, name: str) -> Tensor:
    """A finite matrix of data points and neurons on the device, in its dtype (bool becomes uint8)."""
    x = x.detach() if isinstance(x, Tensor) else _as_tensor(x, name)
    if x.is_complex():
        raise RepresentationError(f"{name} is complex; give real activations")
    if x.ndim != 2:
        remedy = (
            "take the mean over space, x.mean(axis=(2, 3)) of a (n, channels, height, width) map, or flatten it"
            if x.ndim > 2
            else "use x[:, None] for one neuron"
        )
        raise RepresentationError(f"{name} has shape {tuple(x.shape)}, not (data points, neurons); {remedy}")
    if x.shape[0] < 3 or x.shape[1] < 1:
        raise RepresentationError(f"{name} has shape {tuple(x.shape)}; give at least 3 data points and 1 neuron")
    try:
        x = x.to(device)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0]
        raise RepresentationError(f"device {device!r} cannot be used ({reason}); use cpu") from None
    if x.dtype == torch.bool:
        x = x.to(torch.uint8)
    # The sum of finite numbers may overflow, so they are counted as well.
    if x.is_floating_point() and not torch.isfinite(x.sum()) and (bad := int((~torch.isfinite(x)).sum())):
        raise RepresentationError(
            f"{name} has {bad} values that are NaN or infinite; remove these data points or retrain"
        )
    return x


def _as_tensor(x, name: str) -> Tensor:
    """A tensor of an array or of nested lists: in native byte order, contiguous, with at most 8 bytes per number."""
    try:
        x = np.asarray(x)
    except ValueError as problem:
        raise RepresentationError(f"{name} is not a matrix ({problem}); give equally long rows") from None
    if x.dtype.kind not in "biuf":
        problem = "is complex" if x.dtype.kind == "c" else f"is not numeric but of type {x.dtype}"
        raise RepresentationError(f"{name} {problem}; give real activations")
    native = np.float64 if x.dtype.itemsize > 8 else x.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(x, native, ["C", "W"]))
