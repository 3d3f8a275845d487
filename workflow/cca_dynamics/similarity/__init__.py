"""How similar are two representations? Measures, and distances between all pairs of many."""

from cca_dynamics.similarity.baselines import cosine, euclidean, linear_cka, linear_cka_debiased, procrustes
from cca_dynamics.similarity.cca import (
    CCAResult,
    DegenerateCCAWarning,
    Factors,
    bartlett,
    cca,
    factorize,
    mean_cca,
    null_floor,
    null_moments,
    pwcca,
    pwcca_squared,
    svcca,
)
from cca_dynamics.similarity.pairwise import MEASURES, pairwise

__all__ = [
    "MEASURES",
    "CCAResult",
    "DegenerateCCAWarning",
    "Factors",
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
    "svcca",
]
