"""docs/other-implementations.md says by how much other formulae for PWCCA differ: here the numbers are made.

Each function is a package's formula, as read in its source in November 2026, for layers without degenerate directions.
"""

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


def centred(*layers):
    return [layer - layer.mean(axis=0) for layer in layers]


def weighted(rho, weights):
    return 1 - weights[: len(rho)] @ rho / weights.sum()


def google_svcca(x, y):
    """Directions without Σ^(-1/2), means added back, weights of activations that are not centred; p <= q."""
    a, b = centred(x, y)
    u, rho, _ = np.linalg.svd(inverse_root(a.T @ a) @ a.T @ b @ inverse_root(b.T @ b))
    directions, _ = np.linalg.qr(a @ u + x.mean(axis=0))
    return weighted(rho, np.abs(directions.T @ x).sum(axis=1))


def anatome_2021(x, y):
    """393b36d: the coefficients are made orthonormal; sums over data points that are not centred."""
    a, b = centred(x, y)
    (qx, rx), (qy, _) = np.linalg.qr(a), np.linalg.qr(b)
    u, rho, _ = np.linalg.svd(qx.T @ qy, full_matrices=False)
    coefficients, _ = np.linalg.qr(np.linalg.solve(rx, u))
    return weighted(rho, np.abs(x @ coefficients).sum(axis=0))


def anatome_before(x, y):
    """015ccc4: the same without that."""
    a, b = centred(x, y)
    (qx, rx), (qy, _) = np.linalg.qr(a), np.linalg.qr(b)
    u, rho, _ = np.linalg.svd(qx.T @ qy, full_matrices=False)
    return weighted(rho, np.abs(x @ np.linalg.solve(rx, u)).sum(axis=0))


def aristotelian(x, y):
    """Sums of the absolute coefficients of the neurons, with a ridge of 1e-6; p <= q."""
    (a, b), n = centred(x, y), len(x)
    white_x, white_y = (inverse_root(c.T @ c / (n - 1) + 1e-6 * np.eye(c.shape[1])) for c in (a, b))
    u, rho, _ = np.linalg.svd(white_x @ (a.T @ b / (n - 1)) @ white_y)
    return weighted(rho, np.abs(white_x @ u).sum(axis=0))


def sim_metric(x, y):
    """Ding et al. 2021: the shares are those of all p directions, also if q < p have a correlation."""
    a, b = centred(x, y)
    white = inverse_root(a.T @ a)
    u, rho, _ = np.linalg.svd(white @ a.T @ b @ inverse_root(b.T @ b))
    return weighted(rho, np.abs((a @ white @ u).T @ a).sum(axis=1))


def contextual_correlation(x, y, keep=0.99):
    """Wu et al. 2020: z-scores, and principal components below a share of their variance."""
    bases = []
    for layer in centred(x, y):
        u, s, _ = np.linalg.svd(layer / layer.std(axis=0, ddof=1), full_matrices=False)
        bases.append(u[:, : int((np.cumsum(s**2) < keep * np.sum(s**2)).sum())])
    u, rho, _ = np.linalg.svd(bases[0].T @ bases[1], full_matrices=False)
    return weighted(rho, np.abs((bases[0] @ u).T @ x).sum(axis=1))


def platonic_universe(x, y):
    """Its C++: squared norms of orthonormal columns."""
    qx, qy = (np.linalg.qr(layer)[0] for layer in centred(x, y))
    u, rho, _ = np.linalg.svd(qx.T @ qy, full_matrices=False)
    return weighted(rho, np.square(qx @ u).sum(axis=0))


def repsim(x, y):
    """The definition, mean of both directions."""
    result = pwcca(x, y)
    return (result.distance + result.reverse) / 2


def ours(x, y):
    return pwcca(x, y).distance


ROWS = {
    "`cca_dynamics.similarity`": ours,
    "[sim_metric](https://github.com/js-d/sim_metric)": sim_metric,
    "[repsim](https://pypi.org/project/repsim/) on PyPI": repsim,
    "[contextual-corr-analysis](https://github.com/johnmwu/contextual-corr-analysis)": contextual_correlation,
    "[google/svcca](https://github.com/google/svcca)": google_svcca,
    "[ReSi](https://github.com/mklabunde/resi)": google_svcca,
    "[similarity-repository](https://github.com/nacloos/similarity-repository), four backends": google_svcca,
    "[anatome](https://github.com/moskomule/anatome) until November 2021": anatome_before,
    "anatome since": anatome_2021,
    "[Aristotelian](https://github.com/mlbio-epfl/Aristotelian)": aristotelian,
    "[platonic-universe](https://github.com/UniverseTBD/platonic-universe), C++": platonic_universe,
}


@pytest.mark.parametrize("package", ROWS)
def test_every_row_of_the_table_is_made_here(package):
    cells = [f"{ROWS[package](*toy(offset)):.3f}" for offset in (0, 10, 1000)]
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {package} |"))
    assert [cell.strip() for cell in row.split("|")[2:5]] == cells


def test_who_gives_the_definition_and_who_does_not():
    x, y = toy()
    assert sim_metric(x[:, :7], y) == pytest.approx(ours(x[:, :7], y), abs=1e-9)
    assert abs(sim_metric(x, y[:, :7]) - ours(x, y[:, :7])) > 0.05  # more neurons in the first layer
    for wrong in (google_svcca, anatome_before, anatome_2021, aristotelian, platonic_universe):
        assert abs(wrong(x, y) - ours(x, y)) > 0.005


def test_coefficients_weigh_weak_neurons_most():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100_000, 4)) * [8, 4, 2, 1]
    rho = np.array([0.9, 0.6, 0.3, 0.1])
    y = rho * x / [8, 4, 2, 1] + np.sqrt(1 - rho**2) * rng.normal(size=x.shape)
    found = f"{ours(x, y):.2f}", f"{aristotelian(x, y):.2f}"
    assert "distance {}, by their formula {}".format(*found) in PAGE


def test_squared_norms_give_the_unweighted_mean_exactly():
    x, y = toy()
    assert platonic_universe(x, y) == pytest.approx(1 - pwcca(x, y).correlations.mean(), abs=1e-12)
    assert f"the unweighted mean, {platonic_universe(x, y):.3f}" in PAGE


def shares_of_singular_values(x, y, keep):
    """anatome: SVCCA keeps directions by their share of the singular values, not of the variance."""
    kept = []
    for layer in centred(x, y):
        s = np.linalg.svd(layer, compute_uv=False)
        count = int((np.cumsum(s) / s.sum() < keep).sum())
        kept.append((np.cumsum(s**2) / np.sum(s**2))[count - 1])
    return kept


def test_shares_of_singular_values_keep_another_number_of_directions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 50)) * np.geomspace(1, 1e-3, 50)
    kept = shares_of_singular_values(x, x, 0.99)[0]
    assert kept > 0.9998 and svcca(x, x).rank_x == 17
