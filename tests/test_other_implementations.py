"""docs/other-implementations.md says by how much other formulae for PWCCA differ: here the numbers are made."""

import numpy as np
import pytest
from cca_dynamics.similarity import pwcca, svcca

from tests.builders import ROOT

PAGE = (ROOT / "docs/other-implementations.md").read_text(encoding="utf-8")


def toy(offset=0.0):
    """Two layers of 10 rectified neurons on 1,000 data points that share five inputs."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(1000, 5))
    layers = [shared @ rng.normal(size=(5, 10)) + rng.normal(size=(1000, 10)) for _ in range(2)]
    return [np.maximum(layer, 0) * rng.uniform(0.2, 5, 10) + offset for layer in layers]


def inverse_root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors / np.sqrt(values) @ vectors.T


def without_whitening(x, y):
    """google/svcca: directions without Σ^(-1/2), means added back, weights from uncentred activations."""
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    u, rho, _ = np.linalg.svd(inverse_root(a.T @ a) @ a.T @ b @ inverse_root(b.T @ b))
    directions, _ = np.linalg.qr(a @ u + x.mean(axis=0))
    weights = np.abs(directions.T @ x).sum(axis=1)
    return 1 - weights @ rho / weights.sum()


def summed_over_data_points(x, y):
    """anatome: the weight of a variate is the sum of its absolute values over the data points."""
    result = pwcca(x, y, variates=True)
    weights = np.abs(result.variates_x).sum(axis=0)
    return 1 - weights @ result.correlations / weights.sum()


def shares_of_singular_values(x, y, keep):
    """anatome: SVCCA keeps directions by their share of the singular values, not of the variance."""
    kept = []
    for layer in (x, y):
        s = np.linalg.svd(layer - layer.mean(axis=0), compute_uv=False)
        count = int((np.cumsum(s) / s.sum() < keep).sum())
        kept.append((np.cumsum(s**2) / np.sum(s**2))[count - 1])
    return kept


@pytest.mark.parametrize(("offset", "wrong"), [(0, "0.471"), (10, "0.345"), (1000, "0.208")])
def test_means_leak_into_the_weights_without_centring(offset, wrong):
    x, y = toy(offset)
    assert f"{without_whitening(x, y):.3f}" == wrong and f"| +{offset} | {wrong} |" in PAGE
    assert f"{pwcca(x, y).distance:.3f}" == "0.478" and "whose distance is 0.478" in PAGE


def test_sums_over_data_points_are_nearly_the_unweighted_mean():
    x, y = toy()
    wrong, mean = summed_over_data_points(x, y), 1 - pwcca(x, y).correlations.mean()
    assert abs(wrong - mean) < 0.02 < abs(pwcca(x, y).distance - mean)
    assert f"{wrong:.3f} instead of {pwcca(x, y).distance:.3f}; the unweighted mean is {mean:.3f}" in PAGE


def test_shares_of_singular_values_keep_another_number_of_directions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 50)) * np.geomspace(1, 1e-3, 50)
    kept = shares_of_singular_values(x, x, 0.99)[0]
    assert kept > 0.9998 and svcca(x, x).rank_x == 17
