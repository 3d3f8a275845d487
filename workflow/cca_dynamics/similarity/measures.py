"""The registry of measures. Adding one: a function, and its record here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan, pi

from cca_dynamics.similarity.baselines import (
    FEWEST_FOR_DEBIASED_CKA,
    angular_shape,
    cosine,
    euclidean,
    linear_cka,
    linear_cka_debiased,
    linear_predictivity,
    procrustes,
)
from cca_dynamics.similarity.cca import (
    SVCCA_KEEP,
    CCAResult,
    bartlett,
    mean_cca,
    projection_weighted,
    pwcca,
    pwcca_squared,
    pwcca_thresholded,
    svcca,
)
from cca_dynamics.similarity.factors import Factors
from cca_dynamics.similarity.geometry import (
    FEWEST_FOR_NEIGHBOURS,
    FEWEST_FOR_RSA,
    mutual_neighbours,
    rbf_cka,
    rsa,
)
from cca_dynamics.similarity.kernels import (
    Kernel,
    angular_shape_kernel,
    linear_cka_kernel,
    linear_predictivity_kernel,
    mean_cca_kernel,
    procrustes_kernel,
    pwcca_kernel,
)
from cca_dynamics.similarity.nulls import mean_cca_floor


@dataclass(frozen=True)
class Measure:
    """All that the project knows of one measure.

    Attributes:
        function: (x, y, *, device, ...) → a result with `distance`, `reverse`, `rank_x`, `rank_y` and `n`.
        kernel: how `pairwise` computes many pairs at once; without one it calls the function for each pair.
        floor: (rank_x, rank_y, n) → distance expected of unrelated Gaussian layers; None if no law is known.
        symmetric: whether the distance is the same in both directions.
        canonical: whether it rests on canonical correlations. All of them are 1 for a layer that spans all n - 1
            directions of its data points, so such a layer is refused.
        uses_all_correlations: whether it uses all canonical correlations of the layers as given, so that their ranks
            say how many of these are exactly 1 because the ranks exceed n - 1.
        keep: share of the variance of a layer whose leading directions are compared; None compares all directions.
        all_directions: the measure that compares all directions instead, where `keep` is given.
        neuron_by_neuron: whether neuron i is compared with neuron i, so that the layers need equal widths.
        fewest_points: the smallest number of data points it is defined for.
        to_constant: the distance from a layer that does not vary to any other, which it resembles in nothing.
        largest: the largest distance there can be.
        second_moments: whether it is determined by the second moments of the layers, so that `Moments` has it.
        of_cca: its result, from that of `cca` of the same layers, which measures can share; None: it needs more.
    """

    function: Callable
    kernel: Kernel | None = None
    floor: Callable[[int, int, int], float] | None = None
    symmetric: bool = True
    canonical: bool = False
    uses_all_correlations: bool = False
    keep: float | None = None
    all_directions: str = ""
    neuron_by_neuron: bool = False
    fewest_points: int = 3
    to_constant: float = 1.0
    largest: float = 1.0
    second_moments: bool = True
    of_cca: Callable[[CCAResult], CCAResult] | None = None

    def compared(self, layers: Sequence[Factors], keep: float | None = None) -> list[Factors]:
        """Layers as the measure compares them: SVCCA leaves out their weakest directions.

        Args:
            layers: N Factors.
            keep: instead of the measure's share of the variance.

        Raises:
            ValueError: keep is outside (0, 1].
        """
        if self.keep is None:
            return list(layers)
        return [layer.truncated(self.keep if keep is None else keep) for layer in layers]


MEASURES: dict[str, Measure] = {
    "pwcca": Measure(
        function=pwcca,
        kernel=pwcca_kernel,
        floor=mean_cca_floor,
        symmetric=False,
        canonical=True,
        uses_all_correlations=True,
        of_cca=projection_weighted,
    ),
    "pwcca_squared": Measure(
        function=pwcca_squared,
        kernel=partial(pwcca_kernel, weights="squared"),
        floor=mean_cca_floor,
        symmetric=False,
        canonical=True,
        uses_all_correlations=True,
    ),
    "pwcca_thresholded": Measure(
        function=pwcca_thresholded,
        kernel=pwcca_kernel,
        floor=mean_cca_floor,
        symmetric=False,
        canonical=True,
        keep=SVCCA_KEEP,
        all_directions="pwcca",
    ),
    "mean_cca": Measure(
        function=mean_cca,
        kernel=mean_cca_kernel,
        floor=mean_cca_floor,
        canonical=True,
        uses_all_correlations=True,
        of_cca=lambda result: result,
    ),
    "svcca": Measure(
        function=svcca,
        kernel=mean_cca_kernel,
        floor=mean_cca_floor,
        canonical=True,
        keep=SVCCA_KEEP,
        all_directions="mean_cca",
    ),
    "bartlett": Measure(function=bartlett, canonical=True, uses_all_correlations=True),
    "linear_cka": Measure(function=linear_cka, kernel=linear_cka_kernel),
    "linear_cka_debiased": Measure(
        function=linear_cka_debiased,
        fewest_points=FEWEST_FOR_DEBIASED_CKA,
        largest=2.0,
        second_moments=False,
    ),
    "rbf_cka": Measure(function=rbf_cka, second_moments=False),
    "rsa": Measure(function=rsa, fewest_points=FEWEST_FOR_RSA, largest=2.0, second_moments=False),
    "mutual_neighbours": Measure(
        function=mutual_neighbours,
        fewest_points=FEWEST_FOR_NEIGHBOURS,
        second_moments=False,
    ),
    "procrustes": Measure(function=procrustes, kernel=procrustes_kernel),
    "angular_shape": Measure(function=angular_shape, kernel=angular_shape_kernel, to_constant=pi / 2, largest=pi / 2),
    "linear_predictivity": Measure(
        function=linear_predictivity,
        kernel=linear_predictivity_kernel,
        symmetric=False,
    ),
    "cosine": Measure(function=cosine, neuron_by_neuron=True, largest=2.0),
    "euclidean": Measure(function=euclidean, neuron_by_neuron=True, largest=2.0),
}
"""Key in a config → the `Measure`."""


def null_floor(rank_x: int, rank_y: int, n: int, measure: str = "mean_cca") -> float:
    """Distance expected of unrelated Gaussian layers, against which a distance must be read.

    Args:
        rank_x, rank_y: ranks of the two centred layers, as the measure compares them.
        n: data points.
        measure: a key of `MEASURES`. Mean CCA, SVCCA and PWCCA share one floor, because the weights of unrelated layers
            do not depend on their correlations.

    Returns:
        1 - E mean(ρ): exact if a rank is 1, else from the mean of Wachter's limiting law of ρ². nan for measures of
        which no law is known.

    Raises:
        ValueError: the measure is not known.

    Source: Wachter 1980; Muirhead 1982, theorem 11.3.2.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure {measure!r} is not known; choose one of {', '.join(MEASURES)}")
    floor = MEASURES[measure].floor
    return nan if floor is None else floor(rank_x, rank_y, n)
