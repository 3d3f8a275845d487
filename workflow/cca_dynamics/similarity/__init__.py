"""How similar are two representations? Measures, and distances between all pairs of many.

This room stands on its own: it imports torch, NumPy and SciPy, and nothing else of the project.
"""

from cca_dynamics.similarity.baselines import (
    angular_shape,
    cosine,
    euclidean,
    linear_cka,
    linear_cka_debiased,
    linear_predictivity,
    procrustes,
)
from cca_dynamics.similarity.cca import (
    CCAResult,
    bartlett,
    cca,
    mean_cca,
    pwcca,
    pwcca_squared,
    pwcca_thresholded,
    svcca,
)
from cca_dynamics.similarity.errors import DegenerateCCAWarning, RepresentationError
from cca_dynamics.similarity.factors import Factors, factorize
from cca_dynamics.similarity.geometry import mutual_neighbours, rbf_cka, rsa
from cca_dynamics.similarity.measures import MEASURES, Measure, null_floor
from cca_dynamics.similarity.moments import Moments
from cca_dynamics.similarity.nulls import null_moments
from cca_dynamics.similarity.pairwise import BlockCache, pairwise
from cca_dynamics.similarity.significance import (
    Intervals,
    PermutationTest,
    interval,
    pairwise_intervals,
    pairwise_permutation_test,
    permutation_test,
)

__all__ = [
    "MEASURES",
    "BlockCache",
    "CCAResult",
    "DegenerateCCAWarning",
    "Factors",
    "Intervals",
    "Measure",
    "Moments",
    "PermutationTest",
    "RepresentationError",
    "angular_shape",
    "bartlett",
    "cca",
    "cosine",
    "euclidean",
    "factorize",
    "interval",
    "linear_cka",
    "linear_cka_debiased",
    "linear_predictivity",
    "mean_cca",
    "mutual_neighbours",
    "null_floor",
    "null_moments",
    "pairwise",
    "pairwise_intervals",
    "pairwise_permutation_test",
    "permutation_test",
    "procrustes",
    "pwcca",
    "pwcca_squared",
    "pwcca_thresholded",
    "rbf_cka",
    "rsa",
    "svcca",
]
