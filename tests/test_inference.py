"""Significance, intervals and streaming: sizes, coverage, agreement with all data at once, bad input."""

import numpy as np
import pytest
import torch
from cca_dynamics.similarity import (
    MEASURES,
    DegenerateCCAWarning,
    Moments,
    RepresentationError,
    factorize,
    interval,
    pairwise,
    pairwise_intervals,
    pairwise_permutation_test,
    permutation_test,
    pwcca,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def related(rng, n=300, widths=(7, 5), signal=3, noise=1.0):
    """Layers that share some directions, with offsets and unequal scales."""
    shared = rng.normal(size=(n, signal))
    return [
        (shared @ rng.normal(size=(signal, d)) + noise * rng.normal(size=(n, d))) * rng.uniform(0.1, 10, d) + 3
        for d in widths
    ]


# Permutations ---------------------------------------------------------------------------------------------------------

DISTRIBUTIONS = {
    "Gaussian": lambda rng, shape: rng.normal(size=shape),
    "rectified": lambda rng, shape: np.maximum(rng.normal(size=shape) @ rng.normal(size=(shape[1], shape[1])), 0),
    "heavy tails": lambda rng, shape: rng.standard_t(2, size=shape),
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("measure", ["pwcca", pytest.param("linear_cka", marks=pytest.mark.thorough)])
def test_unrelated_layers_are_significant_as_often_as_promised(rng, distribution, measure):
    """Of 40 tests at 5 %, 7 or more are significant once in 300 runs; p is exact, so no tail makes it more."""
    draw = DISTRIBUTIONS[distribution]
    tests = [
        permutation_test(draw(rng, (40, 4)), draw(rng, (40, 3)), measure, permutations=20, seed=seed)
        for seed in range(40)
    ]
    p = np.array([test.p_value for test in tests])
    assert (p <= 0.05).sum() < 7
    assert 0.35 < p.mean() < 0.65
    assert ((p <= 0.05) >= (np.array([test.calibrated for test in tests]) > 0)).all()


def test_the_family_is_one_test_however_many_pairs(rng):
    """Of 10 unrelated pairs some have a small p; corrected for their number hardly any family has."""
    alone, together = 0, 0
    for seed in range(15):
        layers = [rng.normal(size=(40, d)) for d in (2, 3, 4, 5, 2)]
        test = pairwise_permutation_test(layers, permutations=20, seed=seed)
        pairs = np.triu_indices(5, 1)
        alone += test.p_value[pairs].min() <= 0.05
        together += test.p_family[pairs].min() <= 0.05
        assert (test.p_family[pairs] >= test.p_value[pairs] - 0.2).all()
    assert alone > 4 and together <= 4


@pytest.mark.parametrize("measure", MEASURES)
def test_related_layers_are_significant_under_every_measure(rng, measure):
    x, y = related(rng, n=60, widths=(4, 4), noise=0.1)
    test = permutation_test(x, y + 0.5 * x, measure, permutations=39)
    assert test.p_value == 1 / 40 and test.calibrated > 0.2
    assert test.distances < test.critical <= np.median(test.null) and test.null.shape == (39,)
    assert test.distances == pytest.approx(MEASURES[measure].function(x, y + 0.5 * x).distance, abs=1e-9)
    low, middle, high = test.quantiles([0.1, 0.5, 0.9])
    assert low < middle <= high


KEPT_BASES_AND_NOT = ["pwcca", "svcca", "pwcca_thresholded", "linear_cka", "linear_cka_debiased", "cosine"]


@pytest.mark.parametrize("measure", KEPT_BASES_AND_NOT)
def test_the_null_is_that_of_permuted_data_points(rng, measure):
    """Through kept bases, and through permuted rows: the same distances."""
    x, y = related(rng, n=60, widths=(4, 4))
    null = permutation_test(x, y, measure, permutations=20, seed=3).null
    orders, again = np.random.default_rng([3, 2]), []
    for _ in range(20):
        first, second = orders.permutation(60), orders.permutation(60)
        again.append(MEASURES[measure].function(x[first], y[second]).distance)
    np.testing.assert_allclose(null, again, atol=1e-9)


def test_clusters_are_dealt_as_a_whole(rng):
    """Ten tokens of each of 12 texts: what texts have in common by chance is no relation of tokens."""
    texts = np.repeat(np.arange(12), 10)
    wrong = right = 0
    for seed in range(16):
        x, y = (rng.normal(size=(12, 3))[texts] + 0.3 * rng.normal(size=(120, 3)) for _ in range(2))
        wrong += permutation_test(x, y, permutations=20, seed=seed).p_value <= 0.05
        right += permutation_test(x, y, permutations=20, seed=seed, clusters=texts).p_value <= 0.05
    assert wrong > 7 and right < 5


def test_calibration_takes_chance_out_of_width(rng):
    """Wider unrelated layers are nearer to each other; calibrated, none is similar."""
    distances, calibrated = [], []
    for width in (5, 20, 60):
        test = permutation_test(rng.normal(size=(150, width)), rng.normal(size=(150, width)), permutations=39)
        distances.append(test.distances)
        calibrated.append(test.calibrated)
    assert distances[0] > distances[1] + 0.1 > distances[2] + 0.2
    assert max(calibrated) < 0.1
    x = rng.normal(size=(150, 20))
    assert permutation_test(x, x, permutations=39).calibrated == pytest.approx(1, abs=1e-9)


# Intervals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [pytest.param("pwcca", marks=pytest.mark.thorough), "linear_cka"])
def test_intervals_cover_what_is_expected_of_as_many_data_points(measure):
    """At 95 %, 60 intervals miss 9 or more once in 200 runs; a bootstrap, which draws points twice, is biased."""
    mixing = np.random.default_rng(5).normal(size=(2, 3, 4))

    def draw(seed):
        rng = np.random.default_rng(seed)
        shared = rng.normal(size=(150, 3))
        return [np.maximum(shared @ m + 0.5 * rng.normal(size=(150, 4)), 0) for m in mixing]

    function = MEASURES[measure].function
    expected = np.mean([function(*draw([1, seed])).distance for seed in range(300)])
    found = [interval(*draw([2, seed]), measure, seed=seed) for seed in range(60)]
    missed = sum(not each.low <= expected <= each.high for each in found)
    assert missed < 9
    spread = np.std([each.distances for each in found])
    assert np.mean([each.errors for each in found]) == pytest.approx(spread, rel=0.35)
    if measure == "pwcca":
        rng, drawn_twice = np.random.default_rng(0), []
        for seed in range(20):
            x, y = draw([2, seed])
            rows = rng.integers(150, size=(15, 150))
            drawn_twice.append(
                np.mean([function(x[some], y[some]).distance for some in rows]) - function(x, y).distance
            )
        assert np.mean(drawn_twice) < -0.3 * spread  # toward similarity, in nearly every study


def test_all_pairs_agree_with_one_and_levels_nest(rng):
    layers = related(rng, widths=(4, 4, 3))
    found, narrow = pairwise_intervals(layers), pairwise_intervals(layers, level=0.5)
    off = ~np.eye(3, dtype=bool)
    assert (found.low[off] < narrow.low[off]).all() and (narrow.high[off] < found.high[off]).all()
    assert np.isnan(np.diag(found.low)).all()
    one = interval(layers[0], layers[1], "linear_cka")
    all_of_them = pairwise_intervals(layers, "linear_cka")
    assert (one.low, one.high) == pytest.approx((all_of_them.low[0, 1], all_of_them.high[0, 1]), abs=1e-12)


def test_clusters_are_left_out_together(rng):
    texts = np.repeat(np.arange(40), 8)
    x, y = (rng.normal(size=(40, 3))[texts] + 0.1 * rng.normal(size=(320, 3)) for _ in range(2))
    assert interval(x, y, clusters=texts).errors > 2 * interval(x, y).errors


# One pass -------------------------------------------------------------------------------------------------------------


def ill_conditioned(rng, n, d, condition):
    """A layer of a condition number, its means 100 times the spread of its neurons."""
    x = rng.normal(size=(n, d)) * np.geomspace(1, 1 / condition, d) @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    return x + 100 * x.std(axis=0) * rng.choice([-1, 1], d)


def streamed(layers, sizes):
    moments = Moments()
    for rows in np.split(np.arange(len(layers[0])), np.cumsum(sizes)[:-1]):
        moments.update(*(layer[rows] for layer in layers))
    return moments


DETERMINED = [name for name, record in MEASURES.items() if record.second_moments]


@pytest.mark.parametrize("measure", DETERMINED)
@pytest.mark.parametrize("condition", [1, 1e6])
def test_one_pass_gives_the_distance_of_all_data(rng, measure, condition):
    shared = ill_conditioned(rng, 400, 6, condition)
    x, y = shared, ill_conditioned(rng, 400, 6, condition)
    y[:, :3] += x[:, :3]
    moments = streamed([x, y], [1, 7, 100, 92, 200])
    assert moments.n == 400
    assert moments.distance(measure) == pytest.approx(MEASURES[measure].function(x, y).distance, abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_pass_finds_the_same_rank(rng, dtype):
    x = torch.from_numpy(rng.normal(size=(500, 6)) * [1, 1, 1, 1, 1e3, 1] + [0, 0, 0, 10, 0, 0])
    x = torch.cat([x, x[:, :2], x[:, :1] + x[:, 1:2], torch.zeros(500, 1), torch.full((500, 1), 3.3)], dim=1).to(dtype)
    y = torch.from_numpy(rng.normal(size=(500, 4))).to(dtype)
    moments = streamed([x, y], [100] * 5)
    assert [factors.rank for factors in moments.factors()] == [6, 4]
    assert moments.distance() == pytest.approx(pwcca(x, y).distance, abs=1e-8)


def test_accumulators_merge_in_any_order(rng):
    layers = [layer + 1e3 for layer in related(rng, n=300, widths=(5, 4, 3))]
    whole = pairwise(layers)
    parts = [streamed([layer[rows] for layer in layers], [len(rows) // 2, len(rows) - len(rows) // 2])
             for rows in np.array_split(np.arange(300), 3)]  # fmt: skip
    first, second, third = parts
    empty = Moments()
    empty.merge(third)
    empty.merge(Moments())
    empty.merge(first)
    empty.merge(second)
    assert empty.n == 300 and third.n == 100
    np.testing.assert_allclose(empty.pairwise(), whole, atol=1e-9)
    np.testing.assert_allclose(third.pairwise(), pairwise([layer[200:] for layer in layers]), atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 60), st.floats(-150, 150))
def test_batches_and_scales_change_nothing(seed, size, exponent):
    rng = np.random.default_rng(seed)
    x, y = (10.0**exponent * layer for layer in related(rng, n=120, widths=(4, 3)))
    moments = Moments()
    for start in range(0, 120, size):
        moments.update(x[start : start + size], y[start : start + size])
    for measure in ("pwcca", "linear_cka", "procrustes"):
        assert moments.distance(measure) == pytest.approx(MEASURES[measure].function(x, y).distance, abs=1e-8)


def test_what_is_kept_does_not_grow(rng):
    moments = Moments()
    for _ in range(50):
        moments.update(rng.normal(size=(200, 10)), rng.normal(size=(200, 6)))
    kept = sum(tensor.numel() for tensor in (moments._triangle, *moments._waiting))
    assert moments.n == 10_000 and kept <= 2 * 17 * 17


# Bad input ------------------------------------------------------------------------------------------------------------

GOOD = np.random.default_rng(0).normal(size=(2, 40, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: permutation_test(*GOOD, permutations=19), "19 permutations give no p below .05; use 20 or more"),
        (lambda: permutation_test(*GOOD[:, :4, :1]), "4 data points have too few orders for a test; use 5 or more"),
        (lambda: permutation_test(*GOOD, clusters=[0] * 40), "1 clusters of data points have too few orders"),
        (lambda: permutation_test(*GOOD, clusters=[0, *range(39)]), "the clusters differ in their number"),
        (lambda: permutation_test(*GOOD, clusters=[0, 1]), r"clusters has shape \(2,\).*each of the 40 data points"),
        (lambda: permutation_test(*GOOD, "cka"), "measure 'cka' is not known"),
        (lambda: pairwise_permutation_test(GOOD[:1]), "1 representation to compare; give two or more"),
        (lambda: pairwise_permutation_test({"a": GOOD[0]}), r"are a dict; give list\(representations.values\(\)\)"),
        (lambda: pairwise_permutation_test(3), "are of type int; give a list of them"),
        (lambda: interval(*GOOD, level=95), "level is a probability between 0 and 1, not 95"),
        (lambda: interval(*GOOD, groups=1), "use a whole number from 2, not 1"),
        (lambda: interval(*GOOD[:, :12]), "12 data points do not fill 20 groups; use fewer groups"),
        (lambda: interval(GOOD[0], GOOD[1][:30]), "has 30 data points and"),
        (lambda: Moments().distance(), "there are 0 data points so far; update with at least 3"),
        (lambda: Moments().update(GOOD[0]), "1 representation to compare"),
        (lambda: Moments().update(GOOD[0], GOOD[1][:3]), "y has 3 data points and x 40"),
        (lambda: Moments().update(GOOD[0], np.full((40, 3), np.nan)), "y has 120 values that are NaN"),
        (lambda: streamed([*GOOD], [40]).update(GOOD[0][:, :2], GOOD[1]), "has 2 and 3 neurons, earlier ones 3 and 3"),
        (lambda: streamed([*GOOD], [40]).distance("rsa"), "rsa compares single data points, which are not kept"),
        (lambda: streamed([*GOOD], [40]).distance("pca"), "measure 'pca' is not known"),
        (lambda: streamed([*GOOD], [40]).distance("svcca", epsilon=1), "svcca has no option 'epsilon'; it has keep"),
        (lambda: streamed([*GOOD], [40]).merge(streamed([GOOD[0], GOOD[1][:, :2]], [40])), "the others have 3 and 2"),
        (lambda: permutation_test(*streamed([*GOOD], [40]).factors()), "do not have the data points"),
        (lambda: MEASURES["rsa"].function(*streamed([*GOOD], [40]).factors()), "compares single data points"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_refused_batch_changes_nothing(rng):
    moments = streamed([*GOOD], [40])
    before = moments.distance()
    with pytest.raises(RepresentationError):
        moments.update(GOOD[0], np.full((40, 3), np.inf))
    assert moments.n == 40 and moments.distance() == before


def test_too_many_directions_are_warned_of_once(rng):
    layers = [rng.normal(size=(30, 16)) for _ in range(2)]
    with pytest.warns(DegenerateCCAWarning) as warned:
        permutation_test(*layers, permutations=20)
    assert len(warned) == 1


def test_iterables_are_read(rng):
    layers = related(rng, widths=(3, 3))
    np.testing.assert_array_equal(pairwise(layer for layer in layers), pairwise(layers))
    np.testing.assert_array_equal(pairwise({"a": layers[0], "b": layers[1]}.values()), pairwise(layers))
    assert factorize(np.ma.masked_array(layers[0])).rank == 3
