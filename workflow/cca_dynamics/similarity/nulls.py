"""Canonical correlations of unrelated layers: what a distance must be read against.

For unrelated Gaussian layers of ranks p and q on n data points, the squares of their canonical correlations are
distributed as the eigenvalues of a Jacobi ensemble, with N = n - 1 because the layers are centred.
"""

from __future__ import annotations

from functools import lru_cache
from math import exp, lgamma, sqrt

import numpy as np


def null_moments(rank_x: int, rank_y: int, n: int) -> tuple[float, float]:
    """Mean and variance of Σ ρ² for unrelated Gaussian layers: exact.

    Args:
        rank_x, rank_y: ranks p and q of the two centred layers.
        n: data points.

    Source: Pillai 1955; with N = n - 1, mean pq/N and variance 2pq(N - p)(N - q) / (N²(N - 1)(N + 2)).
    """
    p, q, total = rank_x, rank_y, n - 1
    return p * q / total, 2 * p * q * (total - p) * (total - q) / (total**2 * (total - 1) * (total + 2))


@lru_cache(maxsize=65536)
def mean_cca_floor(rank_x: int, rank_y: int, n: int) -> float:
    """Mean CCA distance expected of unrelated Gaussian layers, 1 - E mean(ρ).

    The weights of unrelated layers do not depend on their correlations, so PWCCA has the same floor.

    Args:
        rank_x, rank_y: ranks of the two centred layers.
        n: data points.

    Returns:
        Exact if a rank is 1, else from the mean of Wachter's limiting law of ρ².

    Source: Wachter 1980; Muirhead 1982, theorem 11.3.2.
    """
    p, q, total = min(rank_x, rank_y), max(rank_x, rank_y), n - 1
    if p == 0:
        return 1.0
    if q >= total:
        return 0.0
    if p == 1:  # ρ² is Beta(q/2, (N - q)/2)
        return 1 - exp(lgamma((q + 1) / 2) + lgamma(total / 2) - lgamma(q / 2) - lgamma((total + 1) / 2))
    c, d = p / total, q / total
    low, high = ((sqrt(c * (1 - d)) + sign * sqrt(d * (1 - c))) ** 2 for sign in (-1, 1))
    # Chebyshev quadrature of √x √((x - low)(high - x)) / (2π c x (1 - x)); the rest of the mass lies at 1.
    theta = (np.arange(2000) + 0.5) * np.pi / 2000
    x = (high + low) / 2 + (high - low) / 2 * np.cos(theta)
    density = ((high - low) / 2 * np.sin(theta)) ** 2 / (2 * np.pi * c * x * np.maximum(1 - x, 1e-300))
    mass_at_1 = max(0.0, (c + d - 1) / c)
    return float(1 - (np.sum(np.sqrt(x) * density) * np.pi / 2000 + mass_at_1))
