"""Representations too long for memory: second moments of all data points from one pass over batches of them."""

from __future__ import annotations

import inspect
from dataclasses import replace
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from cca_dynamics.similarity.errors import RepresentationError
from cca_dynamics.similarity.factors import (
    Factors,
    as_matrix,
    column_sizes,
    decompose_by_squares,
    decompose_scaled,
    moderate,
)
from cca_dynamics.similarity.measures import MEASURES
from cca_dynamics.similarity.pairwise import pairwise
from cca_dynamics.similarity.precision import Precision, precision_of


class Moments:
    """Two or more representations of the same data points, read batch by batch.

    Its memory does not grow with the data points. It holds the triangle R of a QR decomposition of [1 X Y ...], which
    each batch updates. R has the second moments of the data, RᵀR = [1 X Y ...]ᵀ[1 X Y ...], and unlike these products
    it does not square the condition number: distances agree with those of all data at once to 1e-8, also where the
    strongest and the weakest direction of a layer differ by 1e6 and means are 100 times the spread.

    `distance` has every measure that second moments determine: the CCA family, linear CKA, Procrustes, angular shape
    distance, linear predictivity, cosine and Euclidean distance. Debiased CKA, RBF-CKA, RSA and nearest neighbours
    compare single data points, and are not available. A single data point far from all others is not told from rounding
    noise as well as by `factorize`. ::

        moments = Moments()
        for x_batch, y_batch in batches:
            moments.update(x_batch, y_batch)
        moments.distance("pwcca")

    Memory: (1 + p + q)² float64 numbers, twice that while a batch is worked in.

    Args:
        device: where to compute, "cpu" or "cuda".

    Attributes:
        n: data points so far.
        widths: neurons of each representation; () before the first batch.

    Source: Golub & Van Loan 2013, section 6.5, for the update.
    """

    def __init__(self, device: str = "cpu"):
        self.device = device
        self.n = 0
        self.widths: tuple[int, ...] = ()
        self._triangle: Tensor | None = None  # (k, k) or fewer rows, of [1, layers less their shift]
        self._waiting: list[Tensor] = []  # rows that are not in the triangle yet
        self._shift: Tensor | None = None  # (k - 1,) means of the first batch, so that large means cost no digits
        self._below: Tensor | None = None  # (k - 1,) sum of squares of the powers of two below the numbers
        self._origin = object()  # of the factors until data points are added, which changes the triangle's basis
        self._precisions: list[Precision] = []  # of each representation, the finest of its batches

    def update(self, *batches) -> None:
        """Add data points.

        Args:
            batches: (b, p), (b, q), ...: the same b data points in each representation, NumPy or torch; b may differ
                from call to call.

        Raises:
            RepresentationError: there are fewer than two, numbers of data points differ, a width differs from
                earlier batches, or a value is not finite; nothing is added then.
        """
        if len(batches) < 2:
            raise RepresentationError(f"{len(batches)} representation to compare; give a batch of each of two or more")
        names = "xy" if len(batches) == 2 else [f"batch {index}" for index in range(len(batches))]
        layers = [as_matrix(x, self.device, name, fewest=1) for x, name in zip(batches, names, strict=True)]
        for name, layer in zip(names, layers, strict=True):
            if len(layer) != len(layers[0]):
                raise RepresentationError(
                    f"{name} has {len(layer)} data points and {names[0]} {len(layers[0])}; give the same ones"
                )
        widths = tuple(layer.shape[1] for layer in layers)
        if self.widths and widths != self.widths:
            raise RepresentationError(f"this batch has {_listed(widths)} neurons, earlier ones {_listed(self.widths)}")
        precisions = [precision_of(layer) for layer in layers]
        values = torch.cat([layer.double() for layer in layers], dim=1)
        if self._shift is None:
            self.widths, self._shift = widths, values.mean(dim=0)
            self._below = torch.zeros_like(self._shift)
        self._precisions = _finest(self._precisions or precisions, precisions)
        below = [precision.power_below(layer) for precision, layer in zip(precisions, layers, strict=True)]
        self._below = self._below + torch.cat(below, dim=1).square().sum(dim=0)  # `merge` may share the tensor
        self._origin = object()
        self.n += len(values)
        self._waiting.append(torch.cat([values.new_ones(len(values), 1), values - self._shift], dim=1))
        if sum(map(len, self._waiting)) >= 1 + sum(widths):
            self._work_in()

    def merge(self, other: Moments) -> None:
        """Add the data points of another accumulator of the same representations, for example another process's.

        Raises:
            RepresentationError: its widths differ; nothing is added then.
        """
        if not other.n:
            return
        self._origin = object()
        if not self.n:
            for name, value in other.__dict__.items():
                if name not in ("_waiting", "_origin", "device"):
                    setattr(self, name, value.to(self.device) if isinstance(value, Tensor) else value)
            self._waiting = [rows.to(self.device) for rows in other._waiting]
            return
        if self.widths != other.widths:
            raise RepresentationError(f"the others have {_listed(other.widths)} neurons, not {_listed(self.widths)}")
        rows = torch.cat([*([] if other._triangle is None else [other._triangle]), *other._waiting]).to(self.device)
        rows[:, 1:] += rows[:, :1] * (other._shift.to(self.device) - self._shift)
        self._waiting.append(rows)
        self._precisions = _finest(self._precisions, other._precisions)
        self._below = self._below + other._below.to(self.device)
        self.n += other.n
        self._work_in()

    def _work_in(self) -> None:
        known = [] if self._triangle is None else [self._triangle]
        self._triangle = torch.linalg.qr(torch.cat([*known, *self._waiting]), mode="r").R
        self._waiting = []

    def factors(self) -> list[Factors]:
        """Each representation, ready for `pairwise` and for the functions of the measures named above.

        Raises:
            RepresentationError: fewer than 3 data points so far.
        """
        if self.n < 3:
            raise RepresentationError(f"there are {self.n} data points so far; update with at least 3")
        if self._waiting:
            self._work_in()
        # In the basis of the triangle, 1 is √n in the first row; the other rows are centred.
        triangle = self._triangle * torch.sign(self._triangle[0, 0])
        ends = np.cumsum([1, *self.widths])[1:].tolist()
        layers = zip(ends, self.widths, self._precisions, strict=True)
        return [
            replace(self._factors_of(triangle, end - width, end, precision), origin=self._origin)
            for end, width, precision in layers
        ]

    def _factors_of(self, triangle: Tensor, first: int, end: int, precision: Precision) -> Factors:
        columns, shift = triangle[:, first:end], self._shift[first - 1 : end - 1]
        raw = columns.clone()
        raw[0] += sqrt(self.n) * shift
        sizes = column_sizes(raw) * sqrt(len(raw) / self.n)
        errors = precision.roundings * precision.epsilon * (self._below[first - 1 : end - 1] / (12 * self.n)).sqrt()
        noise = float((errors / sizes).square().mean().sqrt())
        raw = moderate(raw)
        centred, sizes = raw.clone(), column_sizes(raw) * sqrt(len(raw) / self.n)
        centred[0] = 0
        mean = raw[0] / sqrt(self.n)
        decomposition = decompose_by_squares(centred, mean, precision, self.n)
        if decomposition is None:
            decomposition = decompose_scaled(centred, sizes, noise, self.n)
        return Factors(raw, mean, *decomposition, points=self.n)

    def distance(self, measure: str = "pwcca", **options: object) -> float:
        """Distance from the first representation to the second.

        Args:
            measure: key of `MEASURES`, of those named above.
            options: of the measure, e.g. keep for svcca.

        Raises:
            RepresentationError: fewer than 3 data points so far, or what the measure refuses.
            ValueError: second moments do not determine the measure, or it or an option is not known.
        """
        function = MEASURES[_determined(measure)].function
        known = set(inspect.signature(function).parameters) - {"x", "y", "device"}
        if unknown := set(options) - known:
            raise ValueError(f"{measure} has no option {min(unknown)!r}; it has {', '.join(sorted(known)) or 'none'}")
        first, second, *_ = self.factors()
        return function(first, second, **options).distance

    def pairwise(self, measure: str = "pwcca", **options: object) -> np.ndarray:
        """(N, N) distances between all representations; options and errors as `pairwise` and `distance`."""
        return pairwise(self.factors(), _determined(measure), device=self.device, **options)


def _determined(measure: str) -> str:
    """The measure, if second moments determine it."""
    if measure not in MEASURES:
        raise ValueError(f"measure {measure!r} is not known; choose one of {', '.join(MEASURES)}")
    if not MEASURES[measure].second_moments:
        usable = ", ".join(name for name, record in MEASURES.items() if record.second_moments)
        raise ValueError(f"{measure} compares single data points, which are not kept; choose one of {usable}")
    return measure


def _finest(some: list[Precision], others: list[Precision]) -> list[Precision]:
    """The finer precision of each representation."""
    return [min(pair, key=lambda each: each.epsilon) for pair in zip(some, others, strict=True)]


def _listed(widths: tuple[int, ...]) -> str:
    return " and ".join(map(str, widths))
