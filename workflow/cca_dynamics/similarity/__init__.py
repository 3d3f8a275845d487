"""How similar are two representations? Measures, and distances between all pairs of many.

This room stands on its own: it imports torch, NumPy and SciPy, and nothing else of the project.
"""

from cca_dynamics.similarity.baselines import cosine, euclidean, linear_cka, linear_cka_debiased, procrustes
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
from cca_dynamics.similarity.measures import MEASURES, Measure, null_floor
from cca_dynamics.similarity.nulls import null_moments
from cca_dynamics.similarity.pairwise import BlockCache, pairwise

__all__ = [
    "MEASURES",
    "BlockCache",
    "CCAResult",
    "DegenerateCCAWarning",
    "Factors",
    "Measure",
    "RepresentationError",
    "bartlett",
    "cca",
    "cosine",
    "euclidean",
    "factorize",
    "linear_cka",
    "linear_cka_debiased",
    "mean_cca",
    "null_floor",
    "null_moments",
    "pairwise",
    "procrustes",
    "pwcca",
    "pwcca_squared",
    "pwcca_thresholded",
    "svcca",
]
