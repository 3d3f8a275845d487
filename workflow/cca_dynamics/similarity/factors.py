"""One representation, centred and decomposed once for all its comparisons.

A representation is an (n, d) matrix: rows are data points, columns neurons. Its thin singular value decomposition is
X − mean = Q diag(s) Vᵀ. Arithmetic is float64 whatever the input.

Directions that may be rounding noise of the input are dropped, so duplicated, collinear, constant and dead neurons
change nothing. Rounding errors are relative to the single number: a neuron with a large mean, or a data point far from
all others, has large ones, and they are no noise of the other neurons and data points. So the rank is judged after
neurons, and data points far from all others, have been divided by their size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from cca_dynamics.similarity.errors import RepresentationError
from cca_dynamics.similarity.precision import Precision, precision_of

ILL_CONDITIONED = 1e-6
"""Relative eigenvalue of the Gram matrix below which squaring has lost too much: the data are decomposed instead."""
OUTLYING = 30
"""Size of a data point, in units of the median one, from which it is scaled down before the rank is judged."""
MODERATE = (1e-20, 1e20)
"""Largest magnitudes of layers that are used as they are; eighth powers of all sums then stay in range."""


@dataclass(frozen=True, eq=False)
class Factors:
    """What all comparisons of one representation share: X - mean = Q diag(s) Vᵀ, without storing Q.

    Attributes:
        x: (n, d) the representation as given, on the device of the factors; of extreme scale, times a power of two.
        mean: (d,) float64, mean of each neuron.
        s: (r,) float64, singular values, descending; r is the rank.
        v: (d, r) float64, right singular vectors.
        to_basis: (d, r) float64, the matrix that takes X - mean to Q.
        points: None if the rows of x are data points. Else their number n, and x has other rows with equal second
            moments, as `Moments` makes them: a neuron that is 1 at every data point is √n in the first row, else 0.
        origin: None if the rows of x are data points; else the same object for factors whose rows mean the same,
            those of one accumulator between two updates.
    """

    x: Tensor
    mean: Tensor
    s: Tensor
    v: Tensor
    to_basis: Tensor
    points: int | None = None
    origin: object | None = None

    @property
    def rank(self) -> int:
        """Number of directions that are not numerically zero."""
        return len(self.s)

    @property
    def n(self) -> int:
        """Number of data points."""
        return self.x.shape[0] if self.points is None else self.points

    def basis(self) -> Tensor:
        """Q, (n, r) float64 with orthonormal columns; with as many rows as x."""
        if self.points is None:
            return _copy(self.x).sub_(self.mean) @ self.to_basis
        centred = self.x.clone()
        centred[0] -= sqrt(self.points) * self.mean
        return centred @ self.to_basis

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
        return replace(self, s=self.s[:count], v=self.v[:, :count], to_basis=self.to_basis[:, :count])


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
    x = moderate(as_matrix(x, device, name))
    centred = _copy(x)
    mean = centred.mean(dim=0)
    return Factors(x, mean, *_decompose(x, centred.sub_(mean), mean, precision_of(x)))


def _copy(x: Tensor) -> Tensor:
    """A float64 copy, to be changed in place: quicker than a difference of two formats, which needs more memory."""
    return x.to(torch.float64, copy=True)


def _decompose(x: Tensor, centred: Tensor, mean: Tensor, precision: Precision) -> tuple[Tensor, Tensor, Tensor]:
    """s, v and to_basis of `Factors`.

    Args:
        x: (n, d) as given; its magnitudes say how large rounding errors may be.
        centred: (n, d) float64, x - mean.
        mean: (d,) float64.
        precision: of x.
    """
    if (found := decompose_by_squares(centred, mean, precision, len(x))) is not None:
        return found
    rows, columns = _sizes(x)
    noise = float((precision.error(x) / (rows * columns)).square().mean().sqrt())
    return decompose_scaled(centred, columns, noise, len(x), rows)


def decompose_by_squares(
    centred: Tensor, mean: Tensor, precision: Precision, points: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """s, v and to_basis of `Factors`, from the Gram matrix: quick, but squaring loses half of the digits.

    Args:
        centred: (m, d) float64, with the second moments of the data points.
        mean: (d,) float64.
        precision: of the numbers.
        points: n, the number of data points.

    Returns:
        None if weak directions would be inexact, or may be noise.
    """
    if centred.shape[0] < centred.shape[1]:
        return None
    gram = centred.T @ centred
    squares, vectors = torch.linalg.eigh(gram)
    weakest, strongest = float(squares[0]), float(squares[-1])
    largest_neuron = (gram.diagonal() / points + mean.square()).max().sqrt()  # root mean square, not centred
    error = precision.roundings * precision.epsilon * max(float(largest_neuron), precision.smallest)
    if weakest <= max(ILL_CONDITIONED * strongest, (error * (sqrt(points) + sqrt(len(mean)))) ** 2):
        return None
    s, v = squares.flip(0).sqrt(), vectors.flip(1)
    return s, v, v / s


def decompose_scaled(
    centred: Tensor, columns: Tensor, noise: float, points: int, rows: Tensor | float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """s, v and to_basis of `Factors`; directions are judged after neurons and data points are divided by their sizes.

    Args:
        centred: (m, d) float64, with the second moments of the data points.
        columns: (d,) sizes of neurons.
        noise: root mean square of the rounding errors of the scaled numbers.
        points: n, the number of data points.
        rows: (m, 1) sizes of data points, 1 for usual ones.
    """
    d = centred.shape[1]
    scaled = centred / columns
    s, w = _decompose_without_squaring(scaled / rows)
    # Singular values of noise alone reach the root mean square of its entries times √n + √d.
    least = max(noise * (sqrt(points) + sqrt(d)), float(s[0]) * max(points, d) * torch.finfo(torch.float64).eps)
    w = w[:, s > least]
    triangle = torch.linalg.qr(scaled @ w, mode="r").R
    rotation, s, vt = torch.linalg.svd(triangle @ w.T * columns, full_matrices=False)
    to_basis = (w / columns[:, None]) @ torch.linalg.solve_triangular(triangle, rotation, upper=True)
    return s, vt.T.contiguous(), to_basis


def column_sizes(x: Tensor) -> Tensor:
    """(d,) root mean square of each neuron, not centred; 1 of a dead one."""
    x = x.double()
    largest = x.abs().amax(dim=0)
    largest = torch.where(largest > 0, largest, 1.0)
    sizes = (x / largest).square().mean(dim=0).sqrt()  # of numbers up to 1: squares of very small ones would vanish
    return torch.where(sizes > 0, largest * sizes, 1.0)


def _sizes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sizes of data points (n, 1), at least 1 and more only for outlying ones, and of neurons (d,) divided by these."""
    magnitudes = x.double().abs()
    rows = magnitudes.new_ones(len(x), 1)
    for _ in range(50):  # the sizes of neurons contain the outlying data points at first
        columns = column_sizes(magnitudes / rows)
        sizes = (magnitudes / columns).square().mean(dim=1, keepdim=True).sqrt()
        relative = sizes / sizes[sizes > 0].median() if sizes.any() else sizes
        outlying = torch.where(relative > OUTLYING, relative, 1.0)
        if torch.allclose(outlying, rows, rtol=0.1):
            break
        rows = outlying
    return rows, columns


def moderate(x: Tensor) -> Tensor:
    """A layer times a power of two if its scale is so extreme that powers of it would overflow or underflow."""
    largest = max(abs(float(end)) for end in x.aminmax())
    if largest == 0 or MODERATE[0] < largest < MODERATE[1]:
        return x
    exponent = int(np.frexp(largest)[1])
    half = exponent // 2  # in two steps: the reciprocal of the smallest number is infinite
    return x.double() * 2.0**-half * 2.0 ** (half - exponent)


def factorize_pair(x, y, device: str) -> tuple[Factors, Factors]:
    """Factors of two representations of the same data points.

    Raises:
        RepresentationError: as `factorize`, or the numbers of rows differ.
    """
    x, y = factorize(x, device=device, name="x"), factorize(y, device=device, name="y")
    if x.n != y.n:
        raise RepresentationError(f"x has {x.n} data points and y {y.n}; compare activations of the same data points")
    check_origins(x, y)
    return x, y


def check_origins(x: Factors, y: Factors) -> None:
    """Refuse second moments beside anything that was not accumulated with them.

    Raises:
        RepresentationError: they are of two accumulators, of one before and after an update, or of one and of an array.
    """
    if x.origin is not y.origin:
        raise RepresentationError(
            "factors of an accumulator can be compared only with those of the same one since its last update; "
            "update one with all layers"
        )


def _decompose_without_squaring(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors without squaring the condition number."""
    r = torch.linalg.qr(centred, mode="r").R if centred.shape[0] > centred.shape[1] else centred
    _, s, vt = torch.linalg.svd(r, full_matrices=False)
    return s, vt.T


def as_matrix(x, device: str, name: str, fewest: int = 3) -> Tensor:
    """A finite matrix of at least some data points on the device, in its dtype (bool becomes uint8)."""
    x = x.detach().resolve_neg() if isinstance(x, Tensor) else _as_tensor(x, name)
    if x.layout != torch.strided:
        raise RepresentationError(f"{name} is sparse; give x.to_dense()")
    if x.is_complex() or x.is_quantized or x.is_meta:
        kind = "complex" if x.is_complex() else "quantized" if x.is_quantized else "without data (device meta)"
        raise RepresentationError(f"{name} is {kind}; give real activations")
    if x.is_floating_point() and torch.finfo(x.dtype).bits < 16:
        raise RepresentationError(f"{name} is of type {x.dtype}, too coarse for a rank; record it in half precision")
    if x.ndim != 2:
        remedy = (
            "take the mean over space, x.mean(axis=(2, 3)) of a (n, channels, height, width) map, or flatten it"
            if x.ndim > 2
            else "use x[:, None] for one neuron"
        )
        raise RepresentationError(f"{name} has shape {tuple(x.shape)}, not (data points, neurons); {remedy}")
    if x.shape[0] < fewest or x.shape[1] < 1:
        few = f"{fewest} data point{'s' if fewest > 1 else ''}"
        raise RepresentationError(f"{name} has shape {tuple(x.shape)}; give at least {few} and 1 neuron")
    try:
        x = x.to(device)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0]
        raise RepresentationError(f"device {device!r} cannot be used ({reason}); use cpu") from None
    if x.dtype == torch.bool:
        x = x.to(torch.uint8)
    elif x.dtype in (torch.uint16, torch.uint32, torch.uint64):  # which PyTorch hardly computes with
        x = x.double()
    # The sum of finite numbers may overflow, so they are counted as well.
    if x.is_floating_point() and not torch.isfinite(x.sum()) and (bad := int((~torch.isfinite(x)).sum())):
        raise RepresentationError(
            f"{name} has {bad} values that are NaN or infinite; remove these data points or retrain"
        )
    return x


def _as_tensor(x, name: str) -> Tensor:
    """A tensor of an array or of nested lists: in native byte order, contiguous, with at most 8 bytes per number."""
    if isinstance(x, np.ma.MaskedArray):
        if np.ma.is_masked(x):
            raise RepresentationError(f"{name} has masked values; leave out these data points in all representations")
        x = x.data
    if isinstance(x, dict):
        raise RepresentationError(f"{name} is a dict; give the array in it")
    try:
        x = np.asarray(x)
    except ValueError as problem:
        raise RepresentationError(f"{name} is not a matrix ({problem}); give equally long rows") from None
    if x.dtype.kind not in "biuf":
        problem = "is complex" if x.dtype.kind == "c" else f"is not numeric but of type {x.dtype}"
        raise RepresentationError(f"{name} {problem}; give real activations")
    native = np.float64 if x.dtype.itemsize > 8 else x.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(x, native, ["C", "W"]))
