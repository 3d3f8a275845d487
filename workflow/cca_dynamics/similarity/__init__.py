"""How similar are two representations?"""

from cca_dynamics.similarity.cca import CCAResult, DegenerateCCAWarning, Factors, cca, factorize, null_floor
from cca_dynamics.similarity.pairwise import MEASURES, mean_cca, pairwise, pwcca, svcca

__all__ = [
    "MEASURES",
    "CCAResult",
    "DegenerateCCAWarning",
    "Factors",
    "cca",
    "factorize",
    "mean_cca",
    "null_floor",
    "pairwise",
    "pwcca",
    "svcca",
]
