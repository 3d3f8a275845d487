"""How exact the numbers of a representation are: what of their variation may be rounding alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

SAMPLE = 4096
"""Numbers that are looked at before all are."""
LAST_BIT = 0.1
"""Share of the numbers that use the last binary digit of a format from which they count as rounded to it; of numbers
that were rounded, half do."""


@dataclass(frozen=True)
class Precision:
    """How numbers were rounded.

    Attributes:
        epsilon: distance of 1 to the next number of their format.
        smallest: number of their format below which the distance to the next number shrinks no further: below 6e-5 in
            float16, where activations get to.
        roundings: how many independent roundings an error may stem from, in units of the standard deviation of one.
    """

    epsilon: float
    smallest: float
    roundings: float

    @classmethod
    def of(cls, dtype: torch.dtype, roundings: float) -> Precision:
        """The precision of a format."""
        return cls(torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal, roundings)

    def error(self, x: Tensor) -> Tensor:
        """Standard deviation of the rounding error that each number of x may have; in float64, as x in shape.

        A rounded number is off by up to half of the distance to its neighbours, uniformly.
        """
        return self.roundings * self.epsilon / sqrt(12) * self.power_below(x)

    def power_below(self, x: Tensor) -> Tensor:
        """The power of two at or below the magnitude of each number, at least `smallest`, float64; 0 of 0."""
        mantissa, exponent = torch.frexp(x.double())
        powers = torch.ldexp(torch.ones_like(mantissa), exponent - 1).clamp(min=self.smallest)
        return torch.where(mantissa == 0, 0.0, powers)


FORMATS = {
    # Activations are stored in these; they were added up in a wider format and rounded once.
    torch.float16: Precision.of(torch.float16, roundings=2),
    torch.bfloat16: Precision.of(torch.bfloat16, roundings=2),
    # A network that computes in this one adds up many rounded products.
    torch.float32: Precision.of(torch.float32, roundings=32),
}
DOUBLE = Precision.of(torch.float64, roundings=512)
"""People compute further in double precision, and a difference of large numbers has their errors."""


def precision_of(x: Tensor) -> Precision:
    """The precision of numbers, whatever format they are in now: storing rounded numbers in a wider one adds nothing.

    Args:
        x: finite, real.

    Returns:
        The precision of the narrowest format that the numbers were rounded to. Integers are exact, and so are numbers
        that a format holds without using its last digits; all arithmetic on them is in double precision.
    """
    if x.is_floating_point():
        for dtype, precision in FORMATS.items():
            if _rounded_to(dtype, x):
                return precision
    return DOUBLE


def _rounded_to(dtype: torch.dtype, x: Tensor) -> bool:
    """Whether all numbers are of a format, and enough of them use its last digit; False for integers."""
    flat = x.reshape(-1)
    whole = True
    for numbers in (flat[:: max(1, len(flat) // SAMPLE)], flat):
        rounded = numbers.to(dtype)
        if not torch.equal(rounded.to(x.dtype), numbers):
            return False
        whole = whole and torch.equal(numbers, numbers.round())
    last_digits = rounded.view(torch.int32 if dtype == torch.float32 else torch.int16) & 1
    return not whole and int(last_digits.count_nonzero()) >= LAST_BIT * int(rounded.count_nonzero())
