"""CCA and its rivals: closed forms, invariances, other formulations, degenerate layers, bad input."""

import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.stats
import torch
from cca_dynamics import similarity
from cca_dynamics.similarity import (
    MEASURES,
    DegenerateCCAWarning,
    Moments,
    angular_shape,
    bartlett,
    cca,
    cosine,
    euclidean,
    factorize,
    linear_cka,
    linear_cka_debiased,
    linear_predictivity,
    mean_cca,
    mutual_neighbours,
    null_floor,
    null_moments,
    procrustes,
    pwcca,
    pwcca_squared,
    pwcca_thresholded,
    rbf_cka,
    rsa,
    svcca,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA as ScikitCCA
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import NearestNeighbors

CCA_FAMILY = (mean_cca, svcca, pwcca, pwcca_squared, bartlett)
BASELINES = tuple(record.function for record in MEASURES.values() if not record.canonical)
SYMMETRIC = tuple(record.function for record in MEASURES.values() if record.symmetric)


def centred(x):
    return x - x.mean(axis=0)


def related(rng, n=300, p=7, q=5, signal=4):
    """Two layers that share some signal, with offsets and unequal scales."""
    shared = rng.normal(size=(n, signal))
    x = shared @ rng.normal(size=(signal, p)) + rng.normal(size=(n, p))
    y = shared @ rng.normal(size=(signal, q)) + rng.normal(size=(n, q))
    return x * rng.uniform(0.1, 10, p) + 3, y - 5


def rotation(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


# Other formulations ---------------------------------------------------------------------------------------------------


def by_eigenproblem(x, y):
    """(ρ, directions of x) from the generalised eigenproblem of the covariance matrices."""
    x, y = centred(x), centred(y)
    p, q = x.shape[1], y.shape[1]
    cross, own = np.zeros((p + q, p + q)), scipy.linalg.block_diag(x.T @ x, y.T @ y)
    cross[:p, p:] = x.T @ y
    values, vectors = scipy.linalg.eigh(cross + cross.T, own)
    order = np.argsort(-values)[: min(p, q)]
    return values[order], vectors[:p, order]


def pwcca_by_eigenproblem(x, y):
    rho, directions = by_eigenproblem(x, y)
    variates = centred(x) @ directions
    variates /= np.linalg.norm(variates, axis=0)
    weights = np.abs(variates.T @ centred(x)).sum(axis=1)
    return 1 - weights @ rho / weights.sum()


@pytest.mark.parametrize("widths", [(7, 5), (5, 7), (6, 6), (1, 4), (12, 3)])
def test_agrees_with_the_generalised_eigenproblem(rng, widths):
    x, y = related(rng, p=widths[0], q=widths[1])
    result = pwcca(x, y)
    np.testing.assert_allclose(result.correlations, by_eigenproblem(x, y)[0], atol=1e-10)
    assert result.distance == pytest.approx(pwcca_by_eigenproblem(x, y), abs=1e-10)
    assert result.reverse == pytest.approx(pwcca_by_eigenproblem(y, x), abs=1e-10)


@pytest.mark.parametrize("condition", [1, 1e3, 1e6])
def test_agrees_with_the_angles_between_subspaces_however_ill_conditioned(rng, condition):
    """The correlations are cosines; subspace_angles orthogonalises the data, so it does not square the condition."""
    x, y = related(rng, n=500, p=30, q=20, signal=15)
    u, _, vt = np.linalg.svd(centred(x), full_matrices=False)
    x = u * np.geomspace(condition, 1, 30) @ vt + 1
    expected = np.cos(scipy.linalg.subspace_angles(centred(x), centred(y)))[::-1]
    result = pwcca(x, y)
    np.testing.assert_allclose(result.correlations, np.sort(expected)[::-1], atol=1e-9)
    # The weights by their definition, with variates from SciPy's orthonormal bases.
    basis_x, basis_y = scipy.linalg.orth(centred(x), rcond=1e-14), scipy.linalg.orth(centred(y))
    left, rho, _ = np.linalg.svd(basis_x.T @ basis_y)
    weights = np.abs((basis_x @ left[:, : len(rho)]).T @ centred(x)).sum(axis=1)
    assert result.distance == pytest.approx(1 - weights @ rho / weights.sum(), abs=1e-7)


def test_agrees_with_scikit_learn(rng):
    x, y = related(rng, n=200, p=4, q=3)
    model = ScikitCCA(n_components=3, max_iter=100_000, tol=1e-16).fit(x, y)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(*(scores.T for scores in model.transform(x, y)), strict=True)]
    np.testing.assert_allclose(cca(x, y).correlations, expected, atol=1e-8)


def test_svcca_truncates_each_layer_by_its_variance(rng):
    x, y = related(rng, p=8, q=6)

    def leading(layer, keep):
        u, s, _ = np.linalg.svd(centred(layer), full_matrices=False)
        return u[:, : np.searchsorted(np.cumsum(s**2) / np.sum(s**2), keep) + 1]

    for keep in (0.5, 0.9, 0.99):
        a, b = leading(x, keep), leading(y, keep)
        result = svcca(x, y, keep=keep)
        assert (result.rank_x, result.rank_y) == (a.shape[1], b.shape[1])
        assert result.distance == pytest.approx(1 - np.linalg.svd(a.T @ b, compute_uv=False).mean(), abs=1e-10)
    assert svcca(x, y, keep=1).distance == pytest.approx(mean_cca(x, y).distance, abs=1e-12)


def test_thresholded_pwcca_is_that_of_layers_without_weak_directions(rng):
    x, y = related(rng, p=8, q=6)

    def strong(layer):
        u, s, vt = np.linalg.svd(centred(layer), full_matrices=False)
        count = np.searchsorted(np.cumsum(s**2) / np.sum(s**2), 0.9) + 1
        return (u[:, :count] * s[:count]) @ vt[:count]

    result, expected = pwcca_thresholded(x, y, keep=0.9), pwcca(strong(x), strong(y))
    assert (result.rank_x, result.rank_y) == (expected.rank_x, expected.rank_y) != (8, 6)
    assert result.distance == pytest.approx(expected.distance, abs=1e-9)
    assert result.reverse == pytest.approx(expected.reverse, abs=1e-9)
    assert pwcca_thresholded(x, y, keep=1).distance == pytest.approx(pwcca(x, y).distance, abs=1e-12)


def test_linear_cka_agrees_with_centred_gram_matrices(rng):
    x, y = related(rng, n=40)
    gram_x, gram_y = (centred(a) @ centred(a).T for a in (x, y))
    expected = (gram_x * gram_y).sum() / np.sqrt((gram_x**2).sum() * (gram_y**2).sum())
    assert linear_cka(x, y).distance == pytest.approx(1 - expected, abs=1e-12)


def test_debiased_cka_agrees_with_the_unbiased_estimator_of_hsic(rng):
    """Song et al. 2012, equation 5, written with the Gram matrices' diagonals set to zero."""
    x, y = related(rng, n=40)

    def hsic(k, m):
        k, m = (a - np.diag(np.diag(a)) for a in (k, m))
        n, ones = len(k), np.ones(len(k))
        cross = ones @ k @ ones * (ones @ m @ ones) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (ones @ k @ m @ ones)
        return (np.trace(k @ m) + cross) / (n * (n - 3))

    grams = [a @ a.T for a in (x, y)]
    expected = hsic(*grams) / np.sqrt(hsic(grams[0], grams[0]) * hsic(grams[1], grams[1]))
    assert linear_cka_debiased(x, y).distance == pytest.approx(1 - expected, abs=1e-9)


def test_debiased_cka_of_unrelated_layers_is_1_on_average_and_the_biased_one_is_not():
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(60, 20)), rng.normal(size=(60, 20))) for _ in range(120)]
    distances = np.array([linear_cka_debiased(x, y).distance for x, y in pairs])
    assert abs(distances.mean() - 1) < 4 * distances.std() / np.sqrt(len(pairs))
    assert np.mean([linear_cka(x, y).distance for x, y in pairs]) < 0.8


def test_procrustes_agrees_with_the_best_rotation(rng):
    x, y = related(rng, p=5, q=5)
    x, y = (centred(a) / np.linalg.norm(centred(a)) for a in (x, y))
    best, _ = scipy.linalg.orthogonal_procrustes(y, x)
    assert procrustes(x, y).distance == pytest.approx(np.linalg.norm(x - y @ best) ** 2 / 2, abs=1e-12)
    assert procrustes(x, 3 * x @ rotation(rng, 5) + 1).distance == pytest.approx(0, abs=1e-12)


def test_rbf_cka_agrees_with_centred_kernel_matrices(rng):
    x, y = related(rng, n=50)
    kernels = []
    for layer in (x, y):
        distances = scipy.spatial.distance.squareform(scipy.spatial.distance.pdist(layer))
        pairs = np.sort(distances[np.triu_indices(50, 1)])
        sigma = 0.7 * pairs[(len(pairs) - 1) // 2]  # torch's median is the lower of two
        kernels.append(np.exp(-(distances**2) / (2 * sigma**2)))
    centring = np.eye(50) - 1 / 50
    k, m = (centring @ kernel @ centring for kernel in kernels)
    expected = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert rbf_cka(x, y, bandwidth=0.7).distance == pytest.approx(1 - expected, abs=1e-10)
    wide = rbf_cka(x, y, bandwidth=1e4).distance  # a kernel that is nearly quadratic
    assert wide == pytest.approx(linear_cka(x, y).distance, abs=1e-6)


def test_rsa_agrees_with_scipy(rng):
    x, y = related(rng, n=40)
    expected = scipy.stats.spearmanr(*(scipy.spatial.distance.pdist(layer) for layer in (x, y))).statistic
    assert rsa(x, y).distance == pytest.approx(1 - expected, abs=1e-12)


def test_rbf_cka_of_layers_in_which_most_data_points_coincide(rng):
    """Against the formula on exact distances; the median of the distances is 0 there."""
    kernels, layers = [], []
    for _ in range(2):
        x = (rng.random((500, 1)) < 0.2) * np.abs(rng.normal(size=(500, 8))).astype(np.float32)
        squares = scipy.spatial.distance.squareform(scipy.spatial.distance.pdist(x.astype(float), "sqeuclidean"))
        pairs = squares[np.triu_indices(500, 1)]
        kernel = np.exp(-squares / (2 * (np.median(pairs) or pairs.mean())))
        kernels.append(kernel - kernel.mean(axis=0) - kernel.mean(axis=1)[:, None] + kernel.mean())
        layers.append(x)
    expected = 1 - (kernels[0] * kernels[1]).sum() / np.linalg.norm(kernels[0]) / np.linalg.norm(kernels[1])
    assert rbf_cka(*layers).distance == pytest.approx(expected, abs=1e-9)
    assert rbf_cka(layers[0], 3 * layers[0]).distance == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("outlier", "mean"), [(1e7, 0), (1, 1e5), (1e4, 1e3)])
def test_one_large_data_point_or_mean_makes_no_others_coincide(rng, outlier, mean):
    """Against exact distances and angles, in high precision: what is near by is not taken for equal."""
    layers = []
    for _ in range(2):
        x = rng.normal(size=(60, 5)) + mean
        x[0] *= outlier
        layers.append(x)
    exact = [layer.astype(np.longdouble) for layer in layers]
    distances = [np.sqrt(((x[:, None] - x[None]) ** 2).sum(axis=2)) for x in exact]
    upper = np.triu_indices(60, 1)
    expected = scipy.stats.spearmanr(*(each[upper].astype(float) for each in distances)).statistic
    assert rsa(*layers).distance == pytest.approx(1 - expected, abs=1e-9)
    kernels = []
    for each in distances:
        kernel = np.exp(-(each**2) / (2 * np.sort(each[upper] ** 2)[(len(upper[0]) - 1) // 2]))
        kernels.append((kernel - kernel.mean(axis=0) - kernel.mean(axis=1)[:, None] + kernel.mean()).astype(float))
    expected = 1 - (kernels[0] * kernels[1]).sum() / np.linalg.norm(kernels[0]) / np.linalg.norm(kernels[1])
    assert rbf_cka(*layers).distance == pytest.approx(expected, abs=1e-2 if outlier == 1e7 else 1e-5)
    near = []
    for x in exact:
        unit = x / np.sqrt((x**2).sum(axis=1, keepdims=True))
        angles = ((unit[:, None] - unit[None]) ** 2).sum(axis=2)
        np.fill_diagonal(angles, np.inf)
        near.append(np.argsort(angles, axis=1)[:, :10])
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*near, strict=True)])
    assert mutual_neighbours(*layers).distance == pytest.approx(1 - shared, abs=0.01)


def test_a_wide_kernel_is_linear_cka(rng):
    x, y = related(rng)
    for bandwidth in (1e4, 1e9, 1e12):
        assert rbf_cka(x, y, bandwidth=bandwidth).distance == pytest.approx(linear_cka(x, y).distance, abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.7, 0.3, 1 / 0.9])
def test_rsa_ranks_equal_distances_equally(rng, scale):
    one_hot = np.eye(10)[rng.integers(0, 10, 150)]
    y = rng.normal(size=(150, 5)) + one_hot @ rng.normal(size=(10, 5))
    expected = scipy.stats.spearmanr(*(scipy.spatial.distance.pdist(layer) for layer in (one_hot, y))).statistic
    assert rsa(scale * one_hot, y).distance == pytest.approx(1 - expected, abs=1e-9)
    assert rsa(scale * one_hot + 0.1, scale * one_hot @ rotation(rng, 10)).distance == pytest.approx(0, abs=1e-9)


def test_neighbours_that_tie_share_their_places(rng):
    """Rows of zeros have no angles, and which of equally near data points comes first says nothing."""
    for width, zeros in ((2, 0.0), (3, 0.3), (8, 0.5)):
        x = np.maximum(rng.normal(size=(300, width)) - 0.5, 0) * (rng.random((300, 1)) >= zeros)
        order = rng.permutation(300)
        y = np.maximum(rng.normal(size=(300, 4)), 0)
        assert mutual_neighbours(x, x @ rotation(rng, width)).distance == pytest.approx(0, abs=1e-9)
        given = mutual_neighbours(x, y).distance
        assert mutual_neighbours(x[order], y[order]).distance == pytest.approx(given, abs=1e-9)
        assert mutual_neighbours(x @ rotation(rng, width), y).distance == pytest.approx(given, abs=1e-9)
    dead = [np.abs(rng.normal(size=(300, 6))) * (np.arange(300) % 2)[:, None] for _ in range(2)]  # the same rows at 0
    assert mutual_neighbours(*dead).distance == pytest.approx(1 - 10 / 149, abs=0.03)
    one = rng.uniform(1, 2, size=(300, 1))  # all in one direction: nobody is nearer than another
    assert mutual_neighbours(one, rng.uniform(1, 2, size=(300, 1))).distance == 1
    with pytest.raises(similarity.RepresentationError, match="data points that are not at 0, not 11"):
        mutual_neighbours(x, y * (np.arange(300) < np.flatnonzero(x.any(1) & y.any(1))[11])[:, None])


def test_debiased_cka_of_a_layer_whose_estimate_is_nothing(rng):
    """Of a layer that is not 0 at one data point alone the unbiased estimate is exactly 0, whatever the scale."""
    x = np.zeros((100, 6))
    x[3] = rng.normal(size=6)
    y = rng.normal(size=(100, 4))
    for scale in (1e-3, 1.0, 7.0, 1e3):
        assert linear_cka_debiased(scale * x, x).distance == 1
        assert linear_cka_debiased(scale * x, y).distance == 1
        assert linear_cka_debiased(scale * np.eye(20), np.eye(20)).distance == 1


def test_numbers_that_pytorch_hardly_computes_with_are_taken(rng):
    x, y = rng.integers(0, 9, size=(60, 3)), rng.normal(size=(60, 4))
    expected = pwcca(x.astype(float), y).distance
    for kind in (np.uint16, np.uint32, np.uint64):
        assert pwcca(x.astype(kind), y).distance == pytest.approx(expected, abs=1e-12)
    z = torch.complex(torch.from_numpy(y), torch.from_numpy(-x[:, [0] * 4].astype(float) - y))
    assert z.conj().imag.is_neg()
    assert pwcca(z.conj().imag, y).distance == pytest.approx(pwcca(-z.imag.numpy(), y).distance, abs=1e-12)


def test_numbers_out_of_range_are_refused(rng):
    x, y = related(rng, n=40)
    for call, message in (
        (lambda: bartlett(x, y, alpha=5), "alpha is a probability"),
        (lambda: bartlett(x, y, alpha=float("nan")), "alpha is a probability"),
        (lambda: mutual_neighbours(x, y, neighbours=2.5), "neighbours is a whole number"),
        (lambda: null_floor(3, 3, 20, "pwca"), "measure 'pwca' is not known"),
        (lambda: similarity.interval(x, y, groups=2.5), "a whole number from 2"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_measures_of_pairs_of_data_points_know_how_much_memory_they_need(rng, monkeypatch):
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 4096}.get)
    x, y = related(rng, n=300)
    for measure in (rbf_cka, rsa, mutual_neighbours):
        with pytest.raises(similarity.RepresentationError, match="of 300 data points needs about 0 GB of memory"):
            measure(x, y)


def test_second_moments_are_compared_with_those_of_the_same_accumulator_alone(rng):
    x, y = related(rng)
    one, other = Moments(), Moments()
    one.update(x, y)
    other.update(2 * x, y)
    for first, second in ((one.factors()[1], other.factors()[1]), (one.factors()[1], y), (x, one.factors()[1])):
        with pytest.raises(similarity.RepresentationError, match="update one with all layers"):
            linear_cka(first, second)
        with pytest.raises(similarity.RepresentationError, match="update one with all layers"):
            similarity.pairwise([first, second], "linear_cka")
    assert pwcca(*one.factors()).distance == pytest.approx(pwcca(x, y).distance, abs=1e-10)
    before = one.factors()[0]
    assert pwcca(before, one.factors()[1]).distance == pwcca(*one.factors()).distance  # called twice, nothing added
    one.update(x, y)
    with pytest.raises(similarity.RepresentationError, match="since its last update"):
        pwcca(before, other.factors()[1])
    merged = Moments()
    merged.merge(one)
    with pytest.raises(similarity.RepresentationError):
        pwcca(merged.factors()[0], one.factors()[1])


def test_merging_into_an_empty_accumulator_leaves_the_other_as_it_is(rng):
    x, y = (layer.astype(np.float32) for layer in related(rng))
    other, empty = Moments(), Moments()
    other.update(x, y)
    before = other._below.clone()
    empty.merge(other)
    for _ in range(3):
        empty.update(1e3 * x, 1e3 * y)
    torch.testing.assert_close(other._below, before, rtol=0, atol=0)
    assert (other.n, empty.n) == (len(x), 4 * len(x))


@pytest.mark.parametrize("measure", [name for name, record in MEASURES.items() if not record.neuron_by_neuron])
def test_intervals_end_at_the_largest_distance(rng, measure):
    x, y = rng.normal(size=(26, 1)), rng.normal(size=(26, 2))
    assert similarity.interval(x, y, measure).high <= MEASURES[measure].largest


def test_mutual_neighbours_agree_with_scikit_learn(rng):
    x, y = related(rng, n=60)
    near = []
    for layer in (x, y):
        model = NearestNeighbors(n_neighbors=5, metric="cosine").fit(layer)
        near.append(model.kneighbors(return_distance=False))
    shared = np.mean([len(np.intersect1d(a, b)) / 5 for a, b in zip(*near, strict=True)])
    assert mutual_neighbours(x, y, neighbours=5).distance == pytest.approx(1 - shared, abs=1e-12)


def test_linear_predictivity_agrees_with_scikit_learn(rng):
    x, y = related(rng)
    expected = 1 - explained(x, y), 1 - explained(y, x)
    result = linear_predictivity(x, y)
    assert (result.distance, result.reverse) == pytest.approx(expected, abs=1e-12)


def explained(x, y):
    residual = y - LinearRegression().fit(x, y).predict(x)
    return 1 - (residual**2).sum() / (centred(y) ** 2).sum()


def test_angular_shape_is_the_angle_after_the_best_rotation(rng):
    x, y = related(rng, p=5, q=5)
    a, b = (centred(layer) / np.linalg.norm(centred(layer)) for layer in (x, y))
    turned = b @ scipy.linalg.orthogonal_procrustes(b, a)[0]
    assert angular_shape(x, y).distance == pytest.approx(np.arccos((a * turned).sum()), abs=1e-9)


def test_angular_shape_is_a_metric_and_pwcca_is_not(rng):
    """On the way by a layer that has the directions of both, PWCCA is shorter than on the straight one."""
    broken = {"angular_shape": 0, "pwcca": 0}
    for _ in range(20):
        a, b = rng.normal(size=(2, 60, 3))
        layers = [a, np.hstack([a, b]), b]
        for measure in broken:
            d = similarity.pairwise(layers, measure)
            d = (d + d.T) / 2
            broken[measure] += d[0, 2] > d[0, 1] + d[1, 2] + 1e-9
    assert broken["angular_shape"] == 0 and broken["pwcca"] > 10


def test_cosine_and_euclidean_compare_the_raw_activations(rng):
    x, y = rng.normal(size=(20, 3)) + 1, rng.normal(size=(20, 3))
    assert cosine(x, y).distance == pytest.approx(scipy.spatial.distance.cosine(x.ravel(), y.ravel()), abs=1e-12)
    units = [a.ravel() / np.linalg.norm(a) for a in (x, y)]
    assert euclidean(x, y).distance == pytest.approx(np.linalg.norm(units[0] - units[1]), abs=1e-12)
    assert cosine(x, -x).distance == pytest.approx(2) and euclidean(x, -x).distance == pytest.approx(2)


# Closed forms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [*CCA_FAMILY, *BASELINES])
def test_a_layer_is_at_distance_0_from_itself(rng, measure):
    x, _ = related(rng)
    assert measure(x, x).distance == pytest.approx(0, abs=1e-7 if measure in (euclidean, angular_shape) else 1e-10)


def test_affine_images_are_at_distance_0(rng):
    x, _ = related(rng, p=6)
    for measure in (mean_cca, pwcca, pwcca_squared):
        assert measure(x, x @ rng.normal(size=(6, 6)) + rng.normal(size=6)).distance == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("measure", [*CCA_FAMILY, linear_cka, procrustes])
def test_orthogonal_layers_are_at_distance_1(measure):
    basis = centred(np.random.default_rng(0).normal(size=(50, 8)))
    basis = np.linalg.qr(basis)[0]
    x, y = basis[:, :3] @ np.diag([1, 2, 3]), basis[:, 3:]
    assert measure(x, y).distance == pytest.approx(1, abs=1e-10)


def test_two_neurons_are_at_1_minus_their_correlation(rng):
    x, y = rng.normal(size=(2, 30, 1))
    for sign in (1, -1):
        assert pwcca(x, sign * y).distance == pytest.approx(1 - abs(np.corrcoef(x.T, y.T)[0, 1]), abs=1e-12)


def test_one_neuron_against_many_is_multiple_correlation(rng):
    x, y = rng.normal(size=(50, 1)), rng.normal(size=(50, 6))
    y[:, 0] += x[:, 0]
    design = np.column_stack([np.ones(50), y])
    fitted = design @ np.linalg.lstsq(design, x[:, 0], rcond=None)[0]
    multiple_r = np.corrcoef(fitted, x[:, 0])[0, 1]
    assert pwcca(x, y).distance == pytest.approx(1 - multiple_r, abs=1e-12)
    assert pwcca(y, x).reverse == pytest.approx(1 - multiple_r, abs=1e-12)


@pytest.mark.parametrize(
    ("noise", "k", "mean", "weighted"),
    [
        (0.1, 20, 0.67, 0.526),
        (0.1, 50, 0.57, 0.249),
        (0.1, 100, 0.40, 0.070),
        (0.1, 160, 0.175, 0.010),
        (0.1**0.5, 20, 0.67, 0.645),
        (0.1**0.5, 50, 0.57, 0.446),
        (0.1**0.5, 100, 0.40, 0.180),
        (0.1**0.5, 160, 0.175, 0.031),
    ],
)
def test_figure_2_of_the_paper(noise, k, mean, weighted):
    """k of 200 directions are signal that the layers share up to a rotation; the rest is each layer's own noise."""
    rng = np.random.default_rng(k)
    signal = rng.normal(size=(2000, k))
    x = np.hstack([signal, noise * rng.normal(size=(2000, 200 - k))])
    y = np.hstack([signal @ rotation(rng, k), noise * rng.normal(size=(2000, 200 - k))])
    x, y = factorize(x), factorize(y)
    assert mean_cca(x, y).distance == pytest.approx(mean, abs=0.02)
    assert pwcca(x, y).distance == pytest.approx(weighted, abs=0.02)


def test_bartlett_counts_the_correlations_that_are_there():
    """Three of six pairs of directions are related; all six are not at a higher rate than alpha."""
    rng, found = np.random.default_rng(0), []
    for _ in range(120):
        x, y = rng.normal(size=(2, 400, 6))
        y[:, :3] += x[:, :3]
        found.append(bartlett(x, y, alpha=0.05).significant)
    assert np.min(found) == 3 and np.mean(np.array(found) > 3) < 0.1
    unrelated = [bartlett(*rng.normal(size=(2, 400, 6))) for _ in range(120)]
    assert np.mean([result.significant > 0 for result in unrelated]) < 0.1
    assert all(result.distance == 1 for result in unrelated if result.significant == 0)


def correlations_of_unrelated_layers(rng, p, q, n, draws=800):
    """(draws, min(p, q)) canonical correlations of Gaussian layers, of all draws at once."""
    bases = [
        np.linalg.qr(x - x.mean(axis=1, keepdims=True))[0] for x in (rng.normal(size=(draws, n, d)) for d in (p, q))
    ]
    return np.linalg.svd(bases[0].transpose(0, 2, 1) @ bases[1], compute_uv=False)


@pytest.mark.parametrize(("p", "q", "n"), [(3, 5, 40), (10, 10, 60), (1, 8, 30)])
def test_moments_of_the_null_are_exact(p, q, n):
    rng = np.random.default_rng(0)
    sums = np.sum(correlations_of_unrelated_layers(rng, p, q, n) ** 2, axis=1)
    mean, variance = null_moments(p, q, n)
    assert np.mean(sums) == pytest.approx(mean, abs=4 * np.sqrt(variance / len(sums)))
    assert np.var(sums) == pytest.approx(variance, rel=0.2)


@pytest.mark.parametrize(("p", "q", "n"), [(1, 1, 20), (1, 12, 50), (20, 30, 200), (40, 40, 100), (100, 30, 400)])
def test_floor_is_the_distance_of_unrelated_layers(p, q, n):
    rng = np.random.default_rng(1)
    if p == 1:  # one correlation, from which the distance is known
        distances = 1 - correlations_of_unrelated_layers(rng, p, q, n)[:, 0]
    else:
        distances = [pwcca(rng.normal(size=(n, p)), rng.normal(size=(n, q))).distance for _ in range(60)]
    spread = np.std(distances) / np.sqrt(len(distances))
    assert pwcca(rng.normal(size=(n, p)), rng.normal(size=(n, q))).floor == pytest.approx(
        np.mean(distances), abs=4 * spread + 0.004
    )


@pytest.mark.parametrize(("n", "similarity_of_noise"), [(5000, 0.27), (10_000, 0.19), (50_000, 0.086)])
def test_floor_of_wide_layers(n, similarity_of_noise):
    assert 1 - null_floor(512, 512, n) == pytest.approx(similarity_of_noise, abs=0.005)


def test_floor_is_unknown_where_no_law_is_known():
    assert np.isnan(null_floor(5, 5, 100, "procrustes")) and np.isnan(
        bartlett(*np.random.default_rng(0).normal(size=(2, 50, 3))).floor
    )


# Invariances ----------------------------------------------------------------------------------------------------------


@st.composite
def layers(draw, largest=7):
    """Two related layers of up to `largest` neurons, and perhaps duplicated, collinear, constant and dead ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(4 * largest, 60))
    shared = rng.normal(size=(n, 3))

    def layer():
        width = draw(st.integers(1, largest))
        x = draw(st.sampled_from([0.0, 0.3, 1.0])) * shared @ rng.normal(size=(3, width)) + rng.normal(size=(n, width))
        x = x * 10.0 ** rng.uniform(-3, 3, width) + draw(st.sampled_from([0.0, 1.0, 100.0]))
        extra = {
            "none": x[:, :0],
            "duplicate": x[:, :1],
            "collinear": (x @ rng.normal(size=width))[:, None],
            "constant": np.full((n, 1), 2.5),
            "dead": np.zeros((n, 2)),
        }
        return np.hstack([x, extra[draw(st.sampled_from(sorted(extra)))]])

    return layer(), layer(), rng


@settings(max_examples=30, deadline=None)
@given(layers())
def test_every_result_is_a_proper_one(drawn):
    x, y, _ = drawn
    for measure in CCA_FAMILY:
        result, mirrored = measure(x, y), measure(y, x)
        c = min(result.rank_x, result.rank_y)
        assert 0 <= result.distance <= 1 and 0 <= result.reverse <= 1
        assert result.distance == pytest.approx(mirrored.reverse, abs=1e-9)
        rho = result.correlations
        assert len(rho) == c and np.all((rho >= 0) & (rho <= 1)) and np.all(np.diff(rho) <= 1e-12)
        np.testing.assert_allclose([result.weights_x.sum(), result.weights_y.sum()], 1, atol=1e-12)
    for measure in SYMMETRIC:
        if measure not in (cosine, euclidean) or x.shape == y.shape:
            result = measure(x, y)
            assert result.distance == pytest.approx(result.reverse, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(layers())
def test_what_must_not_change_pwcca_does_not(drawn):
    x, y, rng = drawn
    distance = pwcca(x, y).distance
    order = rng.permutation(x.shape[1])
    transform = rotation(rng, y.shape[1]) * rng.uniform(0.5, 2, y.shape[1])
    same = {
        "y affine": (x, y @ transform + rng.normal(size=y.shape[1])),
        "y with a duplicate, a collinear, a constant and a dead neuron": (
            x,
            np.column_stack([y, y[:, 0], y @ rng.normal(size=y.shape[1]), np.ones(len(y)), np.zeros(len(y))]),
        ),
        "x permuted": (x[:, order], y),
        "x scaled and shifted": (-3 * x + rng.normal(size=x.shape[1]), y),
        "x with a constant neuron": (np.column_stack([x, np.full(len(x), 7.0)]), y),
        "data points in another order": (x[::-1], y[::-1]),
    }
    for change, pair in same.items():
        assert pwcca(*pair).distance == pytest.approx(distance, abs=1e-6), change


def test_what_must_change_pwcca_does(rng):
    x, y = related(rng)
    distance = pwcca(x, y).distance
    assert abs(pwcca(x @ rotation(rng, x.shape[1]), y).distance - distance) > 1e-3
    assert abs(pwcca(x * np.geomspace(1, 100, x.shape[1]), y).distance - distance) > 1e-3
    assert abs(pwcca(np.hstack([x, x[:, :1], x[:, :1]]), y).distance - distance) > 1e-4
    assert abs(pwcca(x, y).reverse - distance) > 1e-3
    assert pwcca(x, rng.permutation(y)).distance > distance + 0.1


def test_squared_weights_survive_a_rotation_and_ties(rng):
    """With ρ = 1 several times any basis of the tied variates is right; squared weights do not depend on the choice."""
    shared = rng.normal(size=(200, 3))
    x = np.hstack([shared, rng.normal(size=(200, 2))]) * [1, 5, 20, 2, 3]
    y = np.hstack([shared @ rotation(rng, 3), rng.normal(size=(200, 2))])
    x_turned = x @ rotation(rng, 5)
    assert pwcca_squared(x_turned, y).distance == pytest.approx(pwcca_squared(x, y).distance, abs=1e-10)
    u, rho, _ = np.linalg.svd(np.linalg.qr(centred(x))[0].T @ np.linalg.qr(centred(y))[0])
    assert np.sum(rho > 1 - 1e-10) == 3
    u[:, :3] = u[:, :3] @ rotation(rng, 3)
    coordinates = np.linalg.qr(centred(x))[0].T @ centred(x)
    for kind, same in (("squared", True), ("absolute", False)):
        weights = np.abs(u.T @ coordinates) if kind == "absolute" else (u.T @ coordinates) ** 2
        weights = weights.sum(axis=1) / weights.sum()
        ours = pwcca(x, y, weights=kind).distance
        assert (abs(ours - (1 - weights @ rho)) < 1e-9) == same


def test_adding_a_constant_to_the_inputs_changes_nothing(rng):
    """The reference implementation weighs by uncentred activations and moves with the mean."""
    shared = np.maximum(rng.normal(size=(500, 8)), 0)
    x, y = (np.maximum(shared @ rng.normal(size=(8, 6)) + 0.5 * rng.normal(size=(500, 6)), 0) for _ in range(2))
    for offset in (10, 1000):
        assert pwcca(x + offset, y + offset).distance == pytest.approx(pwcca(x, y).distance, abs=1e-9)


def test_variates_are_what_the_definition_says(rng):
    x, y = related(rng)
    result = pwcca(x, y, variates=True)
    identity = np.eye(len(result.correlations))
    np.testing.assert_allclose(result.variates_x.T @ result.variates_x, identity, atol=1e-10)
    np.testing.assert_allclose(result.variates_y.T @ result.variates_y, identity, atol=1e-10)
    np.testing.assert_allclose(result.variates_x.T @ result.variates_y, np.diag(result.correlations), atol=1e-10)
    np.testing.assert_allclose(result.variates_x.mean(axis=0), 0, atol=1e-12)
    weights = np.abs(result.variates_x.T @ centred(x)).sum(axis=1)
    np.testing.assert_allclose(result.weights_x, weights / weights.sum(), atol=1e-10)


# Degenerate layers and types ------------------------------------------------------------------------------------------


def test_rank_ignores_duplicated_collinear_constant_and_dead_neurons(rng):
    x = rng.normal(size=(100, 5))
    copies = np.hstack([x, x, x @ rng.normal(size=(5, 3)), np.zeros((100, 2)), np.full((100, 1), 1e6)])
    result = pwcca(copies, rng.normal(size=(100, 4)))
    assert result.rank_x == 5 and len(result.correlations) == 4


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("offset", [0, 30])
def test_rank_tolerance_suits_the_dtype(rng, dtype, offset):
    """A product of rank 5, rounded to its dtype, has noise in the other 15 directions, and it is not counted."""
    x = (rng.normal(size=(2000, 5)) @ rng.normal(size=(5, 20)) + offset).astype(dtype)
    assert pwcca(x, rng.normal(size=(2000, 3))).rank_x == 5


def test_numpy_torch_and_integers_agree(rng):
    x, y = (rng.integers(0, 9, size=(50, d)) for d in (4, 3))
    expected = pwcca(x.astype(float), y.astype(float)).distance
    assert pwcca(x, y).distance == pytest.approx(expected, abs=1e-12)
    assert pwcca(torch.from_numpy(x), torch.from_numpy(y).to(torch.bfloat16)).distance == pytest.approx(
        expected, abs=1e-9
    )
    assert pwcca(np.asfortranarray(x), y[:, ::-1]).distance == pytest.approx(expected, abs=1e-9)
    foreign = y.astype(">f4"), np.asarray(x, dtype=np.longdouble)
    assert pwcca(foreign[1], foreign[0]).distance == pytest.approx(expected, abs=1e-12)
    frozen = x.astype(float)
    frozen.flags.writeable = False
    assert pwcca(frozen, y).distance == pytest.approx(expected, abs=1e-12)
    tracked = torch.from_numpy(x).double().requires_grad_()
    assert pwcca(tracked, y).distance == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("measure", [*CCA_FAMILY, *BASELINES])
def test_a_layer_that_does_not_vary_is_unlike_any_other(rng, measure):
    x = rng.normal(size=(30, 4))
    for constant in (np.zeros((30, 4)), np.full((30, 4), 0.1, dtype=np.float32)):
        for pair in ((x, constant), (constant, x), (constant, constant)):
            result = measure(*pair)
            assert np.isfinite([result.distance, result.reverse]).all()
            if measure not in (cosine, euclidean):
                record = next(record for record in MEASURES.values() if record.function is measure)
                assert result.distance == pytest.approx(record.to_constant)


def test_more_directions_than_data_points_force_correlations(rng):
    x, y = rng.normal(size=(20, 12)), rng.normal(size=(20, 10))
    with pytest.warns(DegenerateCCAWarning, match="ranks 12 and 10 on 20 data points: 3 correlations are exactly 1"):
        result = cca(x, y)
    np.testing.assert_allclose(result.correlations[:3], 1, atol=1e-10)
    assert result.correlations[3] < 1 - 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cca(x[:, :9], y)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(3, 25),
    st.integers(1, 25),
    st.integers(1, 25),
    st.sampled_from([1e-300, 1e-30, 1e-3, 1.0, 1e30, 1e300]),
    st.sampled_from(["float32", "float64"]),
)
def test_any_finite_input_gives_numbers_or_a_clear_refusal(seed, n, p, q, scale, dtype):
    rng = np.random.default_rng(seed)
    scale = 1.0 if dtype == "float32" and not 1e-40 < scale < 1e40 else scale
    x, y = ((scale * rng.integers(-2, 3, size=(n, d))).astype(dtype) for d in (p, q))
    for measure in MEASURES.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateCCAWarning)
            try:
                result = measure.function(x, y)
            except ValueError as refusal:
                assert any(
                    phrase in str(refusal)
                    for phrase in ("spans all", "different widths", "needs at least 4 data", "needs at least 12 data")
                )
            else:
                assert np.isfinite([result.distance, result.reverse]).all()


# Rounding, scale, ties ------------------------------------------------------------------------------------------------

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def with_quirks(rng, n=600, d=12, mean=0.0, large_neuron=1.0, large_point=1.0):
    """A layer and a rotated copy of it, with a neuron of large mean, a large neuron and a large data point."""
    x = rng.normal(size=(n, d))
    for layer in (x, x @ rotation(rng, d)):
        layer = layer.copy()
        layer[:, 3] += mean
        layer[:, 5] *= large_neuron
        layer[7] *= large_point
        yield torch.from_numpy(layer)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "quirk",
    [{}, {"mean": 100.0}, {"large_neuron": 1e3}, {"large_point": 1e3}, {"large_neuron": 30, "large_point": 1e3}],
)
def test_rounding_of_one_neuron_or_data_point_is_no_noise_in_another(rng, dtype, quirk):
    if dtype == "bfloat16" and "mean" in quirk:
        quirk = {"mean": 10.0}  # at 100 its numbers are half a unit apart
    x, y = (layer.to(DTYPES[dtype]) for layer in with_quirks(rng, **quirk))
    result, exact = pwcca(x, y), pwcca(x.double(), y.double())
    assert (result.rank_x, result.rank_y) == (12, 12)
    assert result.distance < (0.02 if "float16" in dtype else 1e-6)
    assert result.distance == pytest.approx(exact.distance, abs=1e-12)  # the same numbers in a wider format


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quirk", [{}, {"large_neuron": 1e3}, {"large_point": 1e3}, {"mean": 30.0}])
def test_duplicated_collinear_constant_and_dead_neurons_are_found_in_any_precision(rng, dtype, quirk):
    x, y = (layer.to(DTYPES[dtype]) for layer in with_quirks(rng, **quirk))
    redundant = [x, x[:, :4], (x[:, :1].double() + x[:, 1:2].double()).to(x.dtype), torch.full_like(x[:, :1], 3.3)]
    copies = torch.cat([*redundant, torch.zeros_like(x[:, :2])], dim=1)
    for same in (copies, copies.double()):
        result = pwcca(same, y)
        assert result.rank_x == 12
        np.testing.assert_allclose(result.correlations, pwcca(x, y).correlations, atol=1e-2 if "16" in dtype else 1e-5)


@pytest.mark.parametrize("scale", [1, 1e-5, 1e-6])
@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_collinear_neurons_are_found_among_numbers_too_small_for_their_format(rng, scale, stored):
    """Below 6e-5 float16 has equally spaced numbers, so that small ones have fewer digits."""
    free = rng.normal(size=(2000, 6))
    x = (np.hstack([free, free @ rng.normal(size=(6, 4)) / 2]) * scale).astype(np.float16).astype(stored)
    assert factorize(x).rank == 6
    moments = Moments()
    for batch in np.split(x, 4):
        moments.update(batch, free[: len(batch)])
    assert moments.factors()[0].rank == 6


@settings(max_examples=25, deadline=None)
@given(layers(), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_a_wider_format_of_the_same_numbers_gives_the_same_distances(drawn, dtype):
    x, y, _ = drawn
    x, y = (torch.from_numpy(layer).clamp(-6e4, 6e4).to(dtype) for layer in (x, y))
    for measure in (pwcca, svcca, linear_cka, procrustes):
        distances = [measure(x.to(wider), y.to(wider)).distance for wider in (dtype, torch.float32, torch.float64)]
        np.testing.assert_allclose(distances, distances[0], atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(layers(), st.floats(-6, 6), st.integers(0, 2**16))
def test_scaling_one_neuron_changes_no_correlation(drawn, exponent, neuron):
    x, y, _ = drawn
    scaled = x.copy()
    scaled[:, neuron % x.shape[1]] *= 10.0**exponent
    expected, result = cca(x, y), cca(scaled, y)
    assert result.rank_x == expected.rank_x
    np.testing.assert_allclose(result.correlations, expected.correlations, atol=1e-7)


@pytest.mark.parametrize("exponent", [-300, -150, -40, 40, 150, 300])
@pytest.mark.parametrize("measure", MEASURES)
def test_no_measure_depends_on_the_scale(rng, measure, exponent):
    x, y = related(rng, p=5, q=5)
    function, expected = MEASURES[measure].function, MEASURES[measure].function(x, y).distance
    scale = 10.0**exponent
    assert 0.01 < expected < 2
    assert function(x * scale, y).distance == pytest.approx(expected, abs=1e-9)
    assert function(x, y * scale).distance == pytest.approx(expected, abs=1e-9)
    assert function(x * scale, y * scale).distance == pytest.approx(expected, abs=1e-9)
    if MEASURES[measure].kernel:
        assert similarity.pairwise([x * scale, y * scale], measure)[0, 1] == pytest.approx(expected, abs=1e-9)


def test_neurons_of_extreme_scales_are_all_counted(rng):
    x = rng.normal(size=(200, 4))
    for scales in ([1e-170, 1e-100, 1, 1], [1e150, 1, 1, 1e-150]):
        mixed = np.column_stack([x * scales, np.ones(200)])
        assert pwcca(mixed, x).rank_x == 4
        np.testing.assert_allclose(pwcca(mixed, x).correlations, 1, atol=1e-9)


def test_exact_numbers_are_not_taken_for_rounded_ones(rng):
    """Numbers with few digits fit into half precision, but nothing says that they were rounded to it."""
    counts = rng.integers(1000, 1004, size=(300, 5)).astype(np.float32)
    tenths = rng.integers(-8, 9, size=(300, 5)) / 8 + 200.0
    for x in (counts, counts / 4, tenths):
        assert pwcca(x, rng.normal(size=(300, 3))).rank_x == 5


def shared_neurons(rng, shared=3, own=4, n=500):
    """Two layers that share neurons, so that as many correlations are exactly 1."""
    common = rng.normal(size=(n, shared)) * np.linspace(1, 3, shared)
    return [np.hstack([common, rng.normal(size=(n, own))]) for _ in range(2)]


@pytest.mark.parametrize("measure", ["pwcca", "pwcca_squared", "pwcca_thresholded"])
def test_equal_correlations_give_one_number_by_every_route(rng, measure):
    x, y = shared_neurons(rng)
    function, record = MEASURES[measure].function, MEASURES[measure]
    expected = function(x, y)
    assert np.sum(expected.correlations > 1 - 1e-9) == 3
    both = similarity.pairwise([x, y], measure)
    assert (both[0, 1], both[1, 0]) == pytest.approx((expected.distance, expected.reverse), abs=1e-9)
    half = similarity.pairwise([x, y], measure, precision="float32")
    assert half[0, 1] == pytest.approx(expected.distance, abs=2e-5)
    mirrored = similarity.pairwise([y, x], measure)
    assert mirrored[1, 0] == pytest.approx(expected.distance, abs=1e-9)
    order = rng.permutation(x.shape[1])
    assert function(x[:, order], y).distance == pytest.approx(expected.distance, abs=1e-9)
    turned = y @ rotation(rng, y.shape[1])  # another basis of the other layer
    assert function(x, turned if record.keep is None else y).distance == pytest.approx(expected.distance, abs=1e-9)


def test_weights_of_equal_correlations_are_those_of_the_layer_s_principal_axes(rng):
    x, y = shared_neurons(rng)
    result = pwcca(x, y)
    basis = np.linalg.qr(centred(x))[0]
    u, rho, _ = np.linalg.svd(basis.T @ np.linalg.qr(centred(y))[0])
    projections = (basis @ u).T @ centred(x)
    _, s, vt = np.linalg.svd(projections[:3], full_matrices=False)
    projections[:3] = s[:, None] * vt
    weights = np.abs(projections).sum(axis=1)
    np.testing.assert_allclose(result.weights_x, weights / weights.sum(), atol=1e-8)
    assert result.distance == pytest.approx(1 - weights @ rho / weights.sum(), abs=1e-9)


# Bad input ------------------------------------------------------------------------------------------------------------

GOOD = np.random.default_rng(0).normal(size=(20, 3))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (GOOD, GOOD[:19], r"x has 20 data points and y 19; compare activations of the same data points"),
        (GOOD[:2], GOOD[:2], r"x has shape \(2, 3\); give at least 3 data points"),
        (GOOD, np.where(GOOD > 1, np.nan, GOOD), r"y has \d+ values that are NaN or infinite"),
        (np.where(GOOD > 1, -np.inf, GOOD), GOOD, r"x has \d+ values that are NaN or infinite"),
        (GOOD[:, 0], GOOD, r"x has shape \(20,\), not \(data points, neurons\); use x\[:, None\]"),
        (GOOD, np.zeros((20, 3, 4, 4)), r"y has shape \(20, 3, 4, 4\).*mean over space, x\.mean\(axis=\(2, 3\)\)"),
        (GOOD, np.zeros((20, 3, 4)), r"y has shape \(20, 3, 4\).*mean over space"),
        (GOOD, np.zeros((20, 0)), r"y has shape \(20, 0\); give at least 3 data points and 1 neuron"),
        (GOOD + 1j, GOOD, "x is complex"),
        (GOOD, np.array([["a"] * 3] * 20), "y is not numeric"),
        (GOOD, [[1, 2], [3]] * 10, "y is not"),
        (GOOD, np.ma.masked_greater(GOOD, 1), "y has masked values; leave out these data points"),
        (torch.eye(20).to_sparse(), GOOD, r"x is sparse; give x\.to_dense\(\)"),
        (torch.ones(20, 3).to(torch.float8_e4m3fn), GOOD, "x is of type torch.float8_e4m3fn, too coarse"),
        (torch.empty(20, 3, device="meta"), GOOD, "x is without data"),
        ({"conv1": GOOD}, GOOD, "x is a dict; give the array in it"),
    ],
)
@pytest.mark.parametrize("measure", [pwcca, linear_cka, cosine])
def test_bad_input_names_the_argument_and_the_remedy(measure, x, y, message):
    with pytest.raises(ValueError, match=message):
        measure(x, y)


def test_a_layer_that_spans_everything_is_refused(rng):
    wide = rng.normal(size=(20, 30))
    with pytest.raises(ValueError, match=r"y spans all 19 directions of its 20 data points.*use more data points"):
        pwcca(GOOD, wide)
    assert linear_cka(GOOD, wide).distance < 1


@pytest.mark.parametrize("keep", [0, -1, 1.5, float("nan")])
def test_variance_to_keep_is_a_share(keep):
    with pytest.raises(ValueError, match=r"keep is a share of variance in \(0, 1\]"):
        svcca(GOOD, GOOD, keep=keep)


def test_neuron_by_neuron_measures_need_equal_widths():
    for measure in (cosine, euclidean):
        with pytest.raises(ValueError, match="x has 3 neurons and y 2"):
            measure(GOOD, GOOD[:, :2])


def test_options_are_checked():
    with pytest.raises(ValueError, match="absolute or squared, not 'cubed'"):
        pwcca(GOOD, GOOD, weights="cubed")
    with pytest.raises(ValueError, match="device 'tpu'"):
        pwcca(GOOD, GOOD, device="tpu")


def test_public_names_are_documented():
    for name in similarity.__all__:
        assert getattr(similarity, name).__doc__ if name != "MEASURES" else True, name


@pytest.mark.parametrize("measure", [name for name, record in MEASURES.items() if record.of_cca])
@pytest.mark.parametrize("neurons", [7, 30])
def test_measures_that_share_correlations_are_what_they_are_alone(measure, neurons):
    rng = np.random.default_rng(neurons)
    x, y = rng.normal(size=(60, 7)), rng.normal(size=(60, neurons))
    alone, shared = MEASURES[measure].function(x, y), MEASURES[measure].of_cca(cca(x, y))
    for name, value in vars(alone).items():
        np.testing.assert_equal(vars(shared)[name], value)
