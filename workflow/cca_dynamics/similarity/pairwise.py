"""Distances between all pairs of representations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cca_dynamics.similarity.cca import CCAResult, Factors, cca, factorize


def mean_cca(x, y, *, device: str = "cpu") -> CCAResult:
    """Mean CCA distance, 1 - mean(ρ). Arguments and errors as `cca`."""
    return cca(x, y, device=device)


def svcca(x, y, *, keep: float = 0.99, device: str = "cpu") -> CCAResult:
    """SVCCA distance: mean CCA between the leading directions that hold `keep` of each layer's variance.

    Source: Raghu et al. 2017.
    """
    return cca(factorize(x, device=device, keep=keep), factorize(y, device=device, keep=keep), device=device)


def pwcca(x, y, *, device: str = "cpu") -> CCAResult:
    """Projection-weighted CCA distance from x to y, 1 - Σ α_i ρ_i with α_i ∝ Σ_j |<h_i, x_j>|.

    Not symmetric: the weights are those of x. Source: Morcos et al. 2018, section 2.2.
    """
    result = cca(x, y, device=device)
    return replace(result, distance=float(1 - result.weights_x @ result.correlations))


MEASURES = {"pwcca": pwcca, "mean_cca": mean_cca, "svcca": svcca}


def pairwise(representations, measure: str = "pwcca", *, device: str = "cpu") -> np.ndarray:
    """(N, N) matrix of distances, D[i, j] from i to j, 0 on the diagonal."""
    factors: list[Factors] = [factorize(x, device=device) for x in representations]
    distances = np.zeros((len(factors), len(factors)))
    for i, x in enumerate(factors):
        for j, y in enumerate(factors):
            if i != j:
                distances[i, j] = MEASURES[measure](x, y, device=device).distance
    return distances
