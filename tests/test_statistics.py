"""Inference over networks against closed forms, enumeration and SciPy."""

from itertools import combinations

import numpy as np
import pytest
from cca_dynamics.results import claims as claims_
from cca_dynamics.results import clustering, statistics
from cca_dynamics.results.claims import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    REVERSED,
    Claim,
    all_of,
    equivalence_claim,
    equivalent,
    exceeds,
    mean_claim,
    missed_claims,
    provided,
)
from cca_dynamics.results.clustering import adjusted_rand_index
from cca_dynamics.results.statistics import Estimate, pearson
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import adjusted_rand_score


def symmetric(rng, size):
    half = np.triu(rng.random((size, size)), 1)
    return half + half.T


def test_networks_that_do_not_differ_are_tested_by_their_signs():
    """And not with p = 0, as if three networks that agree were proof."""
    for count in (3, 5):
        same = Estimate.of_mean([0.1 + 0.2 - 0.1] * count)
        assert same.p_at_most(0.1) == 0.5**count and same.p_at_most(0.2 + 1e-9) == 1
    difference = Estimate.of(lambda weights: weights[:, 0] * 0 + 0.2, ["a"] * 3 + ["b"] * 3)
    assert difference.p_at_most(0.1) == statistics.smallest_grouping_p([3, 3])
    assert Estimate.of_mean([0.2] * 4 + [0.2 + 1e-9]).p_at_most(0.1) < 1e-6


def test_mean_within_is_the_mean_over_pairs(rng):
    distances = rng.random((5, 5))
    np.fill_diagonal(distances, 0)
    expected = np.mean([distances[i, j] for i in range(5) for j in range(5) if i != j])
    assert statistics.mean_within(distances, np.ones(5)) == pytest.approx(expected)


def test_weights_are_repeated_networks_without_self_pairs(rng):
    distances = symmetric(rng, 4)
    drawn = [0, 0, 2, 3]
    weights = np.bincount(drawn, minlength=4).astype(float)
    pairs = [(a, b) for a, b in combinations(range(4), 2) if drawn[a] != drawn[b]]
    # A pair of two copies of one network is not a pair of networks: it counts in neither sum nor number.
    expected = np.mean([distances[drawn[a], drawn[b]] for a, b in pairs])
    assert statistics.mean_within(distances, weights) == pytest.approx(expected)


def test_mean_between_uses_both_directions(rng):
    distances = rng.random((5, 5))
    first, second = np.array([1.0, 1, 0, 0, 0]), np.array([0.0, 0, 1, 1, 1])
    expected = np.mean([(distances[a, b] + distances[b, a]) / 2 for a in (0, 1) for b in (2, 3, 4)])
    assert statistics.mean_between(distances, first, second) == pytest.approx(expected)


def test_the_interval_of_a_mean_is_student_s(rng):
    values = rng.normal(size=7)
    expected = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
    assert Estimate.of_mean(values).interval() == pytest.approx(expected)
    assert Estimate.of_mean(values).p_at_most(-0.2) == pytest.approx(
        stats.ttest_1samp(values, -0.2, alternative="greater").pvalue
    )


def test_the_interval_of_two_groups_is_welch_s(rng):
    first, second = rng.normal(size=5), 1 + 3 * rng.normal(size=8)
    values, groups = np.concatenate([first, second]), np.repeat(["a", "b"], [5, 8])

    def difference(weights):
        means = [weights[:, part] @ values[part] / weights[:, part].sum(axis=1) for part in (slice(5), slice(5, 13))]
        return means[1] - means[0]

    expected = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert Estimate.of(difference, groups).interval() == pytest.approx(tuple(expected))


def test_groups_of_two_networks_have_no_interval():
    estimate = Estimate.of(lambda weights: weights.sum(axis=1), ["a"] * 5 + ["b"] * 2)
    assert estimate.value == 7 and np.isnan(estimate.interval()).all() and np.isnan(estimate.p_at_most(0))


def coverage(draw, truth: float, studies: int = 400) -> float:
    """The share of simulated studies whose 95 % interval holds the truth; `draw` makes the interval of one of them."""
    intervals = [draw(np.random.default_rng([7, study])) for study in range(studies)]
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def distances_of_networks(rng, groups, level, network_noise=0.02, pair_noise=0.01):
    """Distances that networks share: a level for each pair of groups, what each network adds, and noise."""
    size = len(groups)
    own = network_noise * rng.normal(size=size)
    noise = np.triu(pair_noise * rng.normal(size=(size, size)), 1)
    distances = np.array([[level(a, b) for b in groups] for a in groups]) + own[:, None] + own[None] + noise + noise.T
    np.fill_diagonal(distances, 0)
    return distances


def test_the_interval_covers_a_mean_distance_of_five_networks():
    def draw(rng):
        distances = distances_of_networks(rng, range(5), lambda a, b: 0.4)
        return Estimate.of(lambda weights: statistics.mean_within(distances, weights), np.zeros(5)).interval()

    assert 0.92 <= coverage(draw, 0.4) <= 0.99


def test_the_interval_covers_a_difference_between_groups_of_five():
    groups = np.repeat([0, 1], 5)

    def draw(rng):
        distances = distances_of_networks(rng, groups, lambda a, b: 0.3 if a == b == 0 else 0.5)

        def difference(weights):
            first, second = (weights * (groups == group) for group in (0, 1))
            return statistics.mean_between(distances, first, second) - statistics.mean_within(distances, first)

        return Estimate.of(difference, groups).interval()

    assert 0.92 <= coverage(draw, 0.2) <= 0.99


def test_the_interval_covers_a_ratio_of_mean_distances():
    groups = np.repeat([0, 1], 5)

    def draw(rng):
        distances = distances_of_networks(rng, groups, lambda a, b: 0.3 if a == b == 0 else 0.5)

        def ratio(weights):
            first, second = (statistics.mean_within(distances, weights * (groups == group)) for group in (0, 1))
            return second / first

        return Estimate.of(ratio, groups).interval()

    assert 0.92 <= coverage(draw, 0.5 / 0.3) <= 0.99


def test_the_interval_covers_a_correlation_over_networks():
    truth, size = -0.8, 25

    def draw(rng):
        x = rng.normal(size=size)
        y = truth * x + (1 - truth**2) ** 0.5 * rng.normal(size=size)

        def correlation(weights):
            kept = weights[:, None] / weights.sum(axis=1)[:, None, None]
            mean_x, mean_y = (kept[:, 0] @ values for values in (x, y))
            spread = [kept[:, 0] @ values**2 - mean**2 for values, mean in ((x, mean_x), (y, mean_y))]
            return (kept[:, 0] @ (x * y) - mean_x * mean_y) / np.sqrt(spread[0] * spread[1])

        return statistics.correlation_interval(Estimate.of(correlation, np.zeros(size)))

    assert 0.92 <= coverage(draw, truth) <= 0.99


def test_percentiles_of_a_bootstrap_of_five_would_not_cover():
    """Why intervals are the jackknife's: resampling five networks loses a tenth of them."""

    def draw(rng):
        values = rng.normal(size=5)
        means = values[rng.integers(5, size=(2000, 5))].mean(axis=1)
        return np.quantile(means, [0.025, 0.975])

    assert coverage(draw, 0.0) < 0.9


def test_relabelling_of_two_separate_groups_is_one_in_252():
    labels = ["a"] * 5 + ["b"] * 5
    distances = np.full((10, 10), 0.9)
    distances[:5, :5], distances[5:, 5:] = 0.1, 0.5
    np.fill_diagonal(distances, 0)

    def difference(first, second):
        return statistics.mean_within(distances, second) - statistics.mean_within(distances, first)

    assert statistics.relabelling_p(labels, "a", difference, seed=0) == pytest.approx(1 / 252)


def test_relabelling_of_exchangeable_groups_is_uniform():
    rng = np.random.default_rng(3)
    p_values = []
    for _ in range(200):
        distances = symmetric(rng, 8)

        def difference(first, second, distances=distances):
            return statistics.mean_within(distances, second) - statistics.mean_within(distances, first)

        p_values.append(statistics.relabelling_p(["a"] * 4 + ["b"] * 4, "a", difference, seed=0))
    assert stats.kstest(p_values, "uniform").pvalue > 0.001


def test_of_many_relabellings_some_are_drawn(monkeypatch):
    """11 + 11 networks have 705,432; and where all can be tried, those that are drawn give about the same p."""

    def separation(first, second):
        return second @ values - first @ values

    values = np.repeat([0.0, 1.0], 11)
    assert statistics.relabelling_p(["a"] * 11 + ["b"] * 11, "a", separation, seed=0) == pytest.approx(1 / 10_001)
    rng = np.random.default_rng(0)
    for _ in range(5):
        values = rng.normal(size=10) + np.repeat([0.0, 0.5], 5)
        labels = ["a"] * 5 + ["b"] * 5
        exact = statistics.relabelling_p(labels, "a", separation, seed=0)
        with monkeypatch.context() as patched:
            patched.setattr(statistics, "MOST_ENUMERATED", 0)
            drawn = statistics.relabelling_p(labels, "a", separation, seed=0)
        assert drawn == pytest.approx(exact, abs=0.02) and drawn != exact


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_the_smallest_p_is_that_of_the_most_extreme_data(size):
    order = np.arange(float(size))

    def separation(first, second):
        return second @ np.repeat([0.0, 1.0], size) - first @ np.repeat([0.0, 1.0], size)

    groups = np.repeat([1, 2, 3], size)
    for p in (
        statistics.order_p(order, lambda values: pearson(order, values), seed=0),
        statistics.relabelling_p(["a"] * size + ["b"] * size, "a", separation, seed=0),
        statistics.matched_jonckheere_p(np.tile(np.arange(2.0), (size, 1)), seed=0),
    ):
        assert p == pytest.approx(p.smallest) and 0 < p < 1
    p = clustering.explained_variance_p((groups[:, None] != groups[None]).astype(float), groups, seed=0)
    assert p == pytest.approx(p.smallest, rel=0.2, abs=2e-3)


def test_order_p_of_a_monotone_sequence_is_one_over_factorial():
    p = statistics.order_p(np.array([5.0, 4, 3, 2, 1]), lambda v: -pearson(np.arange(5), v), seed=0)
    assert p == pytest.approx(1 / 120)


def test_order_p_of_many_levels_is_drawn():
    values = np.arange(12.0)
    p = statistics.order_p(values, lambda v: pearson(np.arange(12), v), seed=0)
    assert 0 < p < 0.001


def test_holm_against_a_worked_example():
    # 0.01 × 4, 0.02 × 3, max(0.03 × 2, previous), max(0.04 × 1, previous), in the order given.
    assert statistics.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.9, 0.8]).max() == 1


def test_equivalence_p_is_small_only_inside_the_margin(rng):
    noise = rng.normal(size=20)
    noise = 0.01 * (noise - noise.mean()) / noise.std()
    assert Estimate.of_mean(noise).p_outside(0.05) < 1e-6
    for edge in (0.05, -0.05):
        assert Estimate.of_mean(edge + noise).p_outside(0.05) == pytest.approx(0.5)
    assert Estimate.of_mean(noise - 0.2).p_outside(0.05) > 0.999


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_correlations_agree_with_scipy(seed):
    x, y = np.random.default_rng(seed).normal(size=(2, 6))
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)


def test_correlation_with_a_constant_is_zero():
    assert pearson(np.ones(4), np.arange(4.0)) == 0


@given(st.data(), st.integers(2, 12), st.integers(1, 4))
def test_adjusted_rand_index_agrees_with_scikit_learn(data, size, parts):
    labels = st.lists(st.integers(0, parts - 1), min_size=size, max_size=size)
    a, b = np.array(data.draw(labels)), np.array(data.draw(labels))
    expected = adjusted_rand_score(a, b) if len(set(a)) > 1 and len(set(b)) > 1 else 0
    both = adjusted_rand_index(np.stack([a, a]), np.stack([b, a]))
    assert both.tolist() == [expected, 1 if len(set(a)) > 1 else 0]


@pytest.mark.parametrize(
    ("interval", "p", "verdict"),
    [
        ((0.1, 0.2), 0.01, REPRODUCED),
        ((0.1, 0.2), 0.2, INCONCLUSIVE),
        ((-0.1, 0.2), 0.01, INCONCLUSIVE),
        ((-0.2, -0.1), 0.9, REVERSED),
        ((-0.2, 0.0), 0.9, NOT_REPRODUCED),
        ((float("nan"), float("nan")), 0.01, INCONCLUSIVE),
    ],
)
def test_verdict_on_a_direction(interval, p, verdict):
    assert exceeds(0, interval, p) == verdict


def test_a_small_effect_is_not_a_reversed_one():
    assert exceeds(0.5, (0.1, 0.2)) == NOT_REPRODUCED
    assert exceeds(0.5, (-0.2, -0.1)) == REVERSED
    assert exceeds(0.5, (0.1, 0.2), no_effect=0.5) == REVERSED


def test_claims_rest_on_their_precondition():
    rest = [mean_claim(0, np.array([1, 1.1, 0.9]), claim="a.rest", figure="1", statement="", statistic="s")]
    fitted = {
        verdict: Claim("a.fitted", "1", "", "", value, verdict, estimated=False)
        for value, verdict in ((1.0, REPRODUCED), (0.5, NOT_REPRODUCED))
    }
    assert [claim.verdict for claim in provided(fitted[REPRODUCED], rest)] == [REPRODUCED, REPRODUCED]
    precondition, claim = provided(fitted[NOT_REPRODUCED], rest)
    assert (precondition.verdict, claim.verdict) == (NOT_REPRODUCED, NOT_TESTABLE)
    assert "a.fitted is not reproduced" in claim.statistic and not np.isnan(claim.value)


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ([0.02, 0.03, 0.01], REPRODUCED),
        ([-0.27, -0.25, -0.26], REVERSED),
        ([0.3, 0.31, 0.29], NOT_REPRODUCED),
        ([0.1, -0.1, 0.3], INCONCLUSIVE),
    ],
)
def test_a_control_misses_an_effect_only_if_it_sees_about_nothing(effects, verdict):
    texts = {"claim": "a.miss", "statement": "it.", "effect": "effect", "details": "", "figure": "1"}
    (claim,) = missed_claims({"cosine": Estimate.of_mean(effects)}, **texts)
    assert (claim.claim, claim.verdict) == ("a.miss_cosine", verdict)
    assert claim.statistic.endswith("it sees the opposite") == (verdict == REVERSED)


def test_verdict_on_equivalence():
    assert equivalent(0.05, [(-0.01, 0.02), (0.0, 0.04)]) == REPRODUCED
    assert equivalent(0.05, [(-0.01, 0.02), (0.04, 0.06)]) == INCONCLUSIVE
    assert equivalent(0.05, [(-0.01, 0.02), (0.06, 0.08)]) == NOT_REPRODUCED
    assert equivalent(0.05, [(-0.01, 0.02), (0.06, 0.08)], wider=[(-0.02, 0.03), (0.04, 0.1)]) == INCONCLUSIVE
    assert all_of([REPRODUCED, INCONCLUSIVE]) == INCONCLUSIVE
    assert all_of([REPRODUCED, INCONCLUSIVE, NOT_REPRODUCED]) == NOT_REPRODUCED
    assert all_of([REVERSED, REVERSED]) == REVERSED
    assert all_of([REPRODUCED, REVERSED]) == NOT_REPRODUCED


def test_that_one_of_many_differences_is_not_zero_needs_more_evidence_than_that_one_alone_is_not():
    texts = {"claim": "a.alike", "figure": "1", "statement": "", "statistic": ""}
    near, apart = Estimate.of_mean([-0.01, 0.0, 0.01]), Estimate.of_mean([0.06, 0.07, 0.08])
    assert equivalence_claim(0.05, [apart], **texts).verdict == NOT_REPRODUCED
    assert equivalence_claim(0.05, [apart, near, near, near, near], **texts).verdict == INCONCLUSIVE
    assert equivalence_claim(0.05, [near] * 5, **texts).verdict == REPRODUCED


def test_jonckheere_counts_rising_pairs_and_permutes_levels_within_networks():
    rising = np.array([[1.0, 2, 3], [0, 5, 9], [2, 3, 4]])
    assert statistics.ordered_pairs(rising).tolist() == [1, 1, 1]
    assert statistics.ordered_pairs(-rising).tolist() == [0, 0, 0]
    assert statistics.ordered_pairs(np.array([[1.0, 1, 2]]))[0] == pytest.approx(2.5 / 3)
    assert statistics.matched_jonckheere_p(rising, 0) == pytest.approx(1 / 216)  # one of (3!)³ orders
    assert statistics.matched_jonckheere_p(-rising, 0) == 1
    many = np.arange(40.0).reshape(5, 8)  # too many orders to enumerate
    assert statistics.matched_jonckheere_p(many, 0) == pytest.approx(1 / 10_001)
    uniform = [statistics.matched_jonckheere_p(np.random.default_rng(i).normal(size=(3, 3)), 0) for i in range(200)]
    assert np.mean(np.array(uniform) <= 0.05) < 0.1


def test_independent_estimates_combine_as_their_values_and_variances(rng):
    """A contrast of the means of three groups: value, standard error, and every network in a group of its own study."""
    samples = [rng.normal(loc, 1, size) for loc, size in ((0, 5), (1, 4), (3, 6))]
    coefficients = [-1.0, 0.5, 2.0]
    combined = statistics.Estimate.of_independent(coefficients, [statistics.Estimate.of_mean(s) for s in samples])
    assert combined.value == pytest.approx(sum(c * s.mean() for c, s in zip(coefficients, samples, strict=True)))
    variance = sum(c**2 * s.var(ddof=1) / len(s) for c, s in zip(coefficients, samples, strict=True))
    assert combined._variance_and_freedom()[0] == pytest.approx(variance)
    assert len(set(combined.groups)) == 3 and len(combined.without) == 15


def test_weighted_correlation_and_slope(rng):
    x, y = rng.normal(size=(2, 7))
    weights = np.array([np.ones(7), [1, 1, 0, 1, 1, 0, 1]])
    seen = weights[1] > 0
    expected = [np.corrcoef(x, y)[0, 1], np.corrcoef(x[seen], y[seen])[0, 1]]
    assert statistics.weighted_pearson(x, y, weights) == pytest.approx(expected)
    assert statistics.weighted_pearson(np.ones(7), y, weights) == pytest.approx([0, 0])
    assert statistics.slope(x, np.stack([y, 2 * y])) == pytest.approx([np.polyfit(x, row, 1)[0] for row in (y, 2 * y)])


def test_the_interval_of_a_share_ends_where_shares_end():
    claim = mean_claim(
        0.5, np.array([1.0, 0.9, 1.0]), limits=(0, 1), claim="a.b", figure="1", statement="", statistic=""
    )
    assert claim.interval[1] == 1 and claim.interval[0] < claim.value


def test_jonckheere_s_exact_distribution_is_that_of_all_orders(rng, monkeypatch):
    """Three networks of three levels, ties among them, by brute force; and what is drawn gives about the same."""
    from itertools import permutations, product

    for _ in range(5):
        values = rng.integers(0, 4, size=(3, 3)).astype(float)
        observed = statistics.ordered_pairs(values).sum()
        orders = list(permutations(range(3)))
        sums = [
            sum(statistics.ordered_pairs(values[i : i + 1, list(order)])[0] for i, order in enumerate(combination))
            for combination in product(orders, repeat=3)
        ]
        exact = statistics.matched_jonckheere_p(values, 0)
        assert exact == pytest.approx(np.mean(np.array(sums) >= observed - 1e-9))
        with monkeypatch.context() as patched:
            patched.setattr(statistics, "MOST_LEVELS", 2)
            assert statistics.matched_jonckheere_p(values, 0) == pytest.approx(exact, abs=0.03)


def test_tables_without_the_newest_columns_are_read(tmp_path):
    claim = mean_claim(
        0, np.array([1.0, 1.1, 0.9]), claim="a.b", figure="1", statement="s.", statistic="t", source="ours"
    )
    claims_.write([claim], tmp_path / "claims.csv")
    new = claims_.read(tmp_path / "claims.csv")
    new[claims_.COLUMNS[:-2]].to_csv(tmp_path / "old.csv", index=False)
    old = claims_.read(tmp_path / "old.csv")
    assert list(old.columns) == list(new.columns) == claims_.COLUMNS
    assert new["source"].tolist() == ["ours"] and old["source"].tolist() == [""] and np.isnan(old["paper_error"]).all()
