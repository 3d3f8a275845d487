"""The sweep and both toys: tables in which each claim holds, and in which it does not, and the statistics of groups."""

import numpy as np
import pandas as pd
import pytest
from cca_dynamics.config.models import StageOptions
from cca_dynamics.results import clustering, clusters, toy_noise, toy_rnn
from cca_dynamics.results.claims import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    REVERSED,
)
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.tables import select, tidy
from cca_dynamics.study import Study

WARD = clustering.Clustering("ward", most=8, smallest=0.05)
RATES = 10.0 ** np.arange(-2, 0.5, 0.5)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Enough for p < .05; the published numbers take minutes."""
    monkeypatch.setattr(clustering, "PERMUTATIONS", 199)
    monkeypatch.setattr(clustering, "REFERENCES", 39)
    monkeypatch.setattr(clustering, "SUBSAMPLES", 20)


@pytest.fixture
def options(default_config):
    study = Study(default_config)
    return {name: study.options(name) for name in ("clusters", "toy_noise", "toy_rnn")}


def compute(module, options) -> pd.DataFrame:
    return module.compute(Inputs.from_paths([], []), StageOptions(options, "compute", seed=0))


def claims_of(module, table, options) -> dict:
    """Name of each claim without that of its result → claim."""
    claims = module.claims(table, StageOptions(options, "claims", seed=0))
    return {claim.claim.partition(".")[2]: claim for claim in claims}


def verdicts(module, table, options) -> dict[str, str]:
    return {name: claim.verdict for name, claim in claims_of(module, table, options).items()}


def high_dimensional(rng, structure: np.ndarray, noise: float = 0.05) -> np.ndarray:
    """Distances of networks (N, d) that also differ in 60 directions, some networks much more than others."""
    size = len(structure)
    lengths = noise * rng.uniform(0.5, 2.0, size=size)
    points = np.hstack([structure, lengths[:, None] * rng.normal(size=(size, 60)) / 60**0.5])
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def five_groups(size: int = 12, far: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """(structure, group): groups at equal distances, but for the last, which is `far` times as far from the centre."""
    groups = np.repeat(np.arange(5), size)
    structure = 0.1 * np.eye(5)[groups]
    structure[groups == 4] *= far
    return structure, groups


def sweep_table(
    distances: np.ndarray,
    groups: np.ndarray,
    plane: np.ndarray,
    *,
    how: clustering.Clustering = WARD,
    reached: bool = True,
    accuracy_of_groups: float = 0.0,
) -> pd.DataFrame:
    """A table as `compute` writes one, of networks whose robustness and generalization error are given (N, 2)."""
    size = len(groups)
    a, b = np.nonzero(~np.eye(size, dtype=bool))
    pairs = {"network_a": a, "network_b": b, "value": distances[a, b]}
    tables = [pd.DataFrame({"quantity": "distance", "measure": "pwcca", **pairs})]
    partition = clustering.cluster(clustering.residual_distances(distances), how)
    train, test = np.ones(size), 0.95 - 0.001 * plane[:, 1] - accuracy_of_groups * groups
    robustness = 0.4 + 0.01 * plane[:, 0]
    in_plane = clustering.cluster(clustering.standardised_distances(np.column_stack([robustness, train - test])), how)
    per_network = {
        "learning_rate": RATES[groups],
        "cluster": partition.labels,
        "place": partition.positions,
        "ablation_cluster": in_plane.labels,
        "train_accuracy": train,
        "test_accuracy": test,
        "robustness": robustness,
        "stopped_after": np.where((np.arange(size) > 0) | reached, 20.0 + groups, np.nan),
    }
    tables += [
        pd.DataFrame({"network": range(size), "quantity": quantity, "value": np.asarray(values, dtype=float)})
        for quantity, values in per_network.items()
    ]
    share = np.linspace(0, 1, 5)
    curves = pd.DataFrame({"network": np.repeat(np.arange(size), 5), "share": np.tile(share, size)})
    tables.append(curves.assign(quantity="ablated_accuracy", value=1 - curves["share"]))
    return tidy(tables)


def in_groups(rng, groups: np.ndarray) -> np.ndarray:
    """(N, 2) positions in the ablation plane that tell the groups."""
    centres = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [2.5, 2.5]])
    return centres[groups] + 0.05 * rng.normal(size=(len(groups), 2))


def planted(rng, **change) -> pd.DataFrame:
    structure, groups = five_groups()
    arguments = {"distances": high_dimensional(rng, structure), "groups": groups, "plane": in_groups(rng, groups)}
    return sweep_table(**{**arguments, **change})


def along_a_line(rng, spread: float = 0.35) -> tuple[np.ndarray, np.ndarray]:
    """(distances, groups): groups at equal steps along a line, between which networks lie, too."""
    groups = np.repeat(np.arange(5), 12)
    return high_dimensional(rng, 0.1 * (groups[:, None] + spread * rng.normal(size=(60, 1)))), groups


ALL = {"fitted", "blocks", "nearest_rate", "graded", "similar_accuracy", "discrete", "five", "outlier"}
ALL |= {"learning_rate", "ablation", "ablation_distances"}


@pytest.fixture
def few(options):
    return options["clusters"].with_changes({"networks": 12, "most_clusters": 8})


def test_planted_clusters_are_found(rng, few):
    result = verdicts(clusters, planted(rng), few)
    assert set(result) == ALL
    assert {name for name, verdict in result.items() if verdict == REPRODUCED} == ALL - {"graded"}
    assert result["graded"] != REPRODUCED  # groups at equal distances are in no order


def test_the_share_nearest_to_their_own_rate_has_an_interval_from_subsamples(rng, few):
    """It jumps from network to network, and the jackknife suits smooth statistics alone."""
    table = planted(rng)
    claim = claims_of(clusters, table, few)["nearest_rate"]
    sweep = clusters.Sweep(table)
    shares = [
        clustering.nearest_group_accuracy(
            clustering.residual_distances(sweep.distances[np.ix_(some, some)]), sweep["learning_rate"][some]
        )
        for some in clustering.subsamples(sweep["learning_rate"], seed=0)
    ]
    assert claim.interval == clustering.subsample_interval(claim.value, shares, 0, 1)


def test_a_gradient_is_no_clusters(rng, few):
    distances, groups = along_a_line(rng)
    result = verdicts(clusters, sweep_table(distances, groups, rng.normal(size=(60, 2))), few)
    assert {name for name, verdict in result.items() if verdict == REPRODUCED} == {
        *("fitted", "blocks", "nearest_rate", "graded", "similar_accuracy")
    }
    assert result["discrete"] in (INCONCLUSIVE, NOT_REPRODUCED)
    assert {result[name] for name in ("five", "outlier", "learning_rate", "ablation")} == {NOT_TESTABLE}


def test_clusters_on_a_line_are_not_said_to_be_other_than_five(rng, few):
    """Without what each network adds to all of its own, five on a line look like three."""
    groups = np.repeat(np.arange(5), 12)
    places = 0.2 * groups + 0.02 * rng.normal(size=60)
    distances = np.abs(places[:, None] - places[None])
    claims = claims_of(clusters, sweep_table(distances, groups, in_groups(rng, groups)), few)
    assert claims["discrete"].verdict == REPRODUCED and claims["five"].value != 5
    assert claims["five"].verdict == INCONCLUSIVE and "(5 in the distances as they are)" in claims["five"].statistic


def test_clusters_of_another_number_are_not_five(rng, few):
    structure, groups = 0.1 * np.eye(3)[np.repeat(np.arange(3), 20)], np.repeat(np.arange(5), 12)
    claims = claims_of(clusters, sweep_table(high_dimensional(rng, structure), groups, rng.normal(size=(60, 2))), few)
    assert claims["discrete"].verdict == REPRODUCED and claims["five"].value == 3
    assert claims["five"].verdict == NOT_REPRODUCED and claims["learning_rate"].verdict != REPRODUCED


def test_a_gradient_that_runs_backwards_is_reversed(rng, few):
    """Far learning rates are near each other and near ones far."""
    groups = np.repeat(np.arange(5), 12)
    difference = np.abs(groups[:, None] - groups[None])
    distances = np.where(difference > 0, 0.5 - 0.05 * difference, 0.3) + 0.01 * rng.random((60, 60))
    distances = (distances + distances.T) / 2
    np.fill_diagonal(distances, 0)
    assert verdicts(clusters, sweep_table(distances, groups, in_groups(rng, groups)), few)["graded"] == REVERSED


def test_groups_that_mean_nothing_are_not_visible(rng, few):
    groups = five_groups()[1]
    shuffled = rng.permutation(groups)
    result = verdicts(clusters, planted(rng, groups=shuffled, plane=in_groups(rng, rng.permutation(groups))), few)
    assert not {"blocks", "nearest_rate", "graded"} & {name for name, v in result.items() if v == REPRODUCED}
    assert result["discrete"] == result["five"] == REPRODUCED  # there are clusters, but of something else
    assert result["learning_rate"] == result["ablation"] == NOT_REPRODUCED


@pytest.mark.parametrize(
    ("change", "claim", "verdict"),
    [
        ({"accuracy_of_groups": 0.02}, "similar_accuracy", NOT_REPRODUCED),
        ({"reached": False}, "fitted", NOT_REPRODUCED),
        ({"reached": False}, "blocks", NOT_TESTABLE),
        ({"how": WARD._replace(smallest=0.4)}, "discrete", NOT_TESTABLE),
        ({"how": WARD._replace(smallest=0.4)}, "five", NOT_TESTABLE),
        ({"how": WARD._replace(smallest=0.4)}, "ablation", NOT_TESTABLE),
        ({"how": WARD._replace(smallest=0.4)}, "blocks", REPRODUCED),
    ],
)
def test_another_sweep_gets_another_verdict(rng, few, change, claim, verdict):
    if "how" in change:
        few = few.with_changes({"smallest_cluster": change["how"].smallest})
    result = claims_of(clusters, planted(rng, **change), few)
    assert result[claim].verdict == verdict
    if claim == "five" and verdict == NOT_TESTABLE:
        assert "leaves a cluster of fewer than 40% of the networks" in result[claim].statistic


def test_no_far_cluster_is_not_an_outlier(rng, few):
    structure, groups = five_groups(far=1.0)
    table = sweep_table(high_dimensional(rng, structure), groups, in_groups(rng, groups))
    assert verdicts(clusters, table, few)["outlier"] != REPRODUCED


def test_without_a_loss_to_reach_the_accuracy_counts(rng, few):
    table = planted(rng)
    table = table[table["quantity"] != "stopped_after"]
    worse = table["value"].mask((table["quantity"] == "train_accuracy") & (table["network"] == 3), 0.95)
    assert verdicts(clusters, table, few)["fitted"] == REPRODUCED
    assert claims_of(clusters, table.assign(value=worse), few)["fitted"].verdict == NOT_REPRODUCED


def test_centring_removes_what_each_network_adds(rng):
    """And is Székely & Rizzo's U-centring, written out."""
    plain = np.abs(rng.normal(size=(9, 9)))
    plain = plain + plain.T
    np.fill_diagonal(plain, 0)
    added = rng.normal(size=9)
    shifted = plain + added[:, None] + added[None]
    np.fill_diagonal(shifted, 0)
    np.testing.assert_allclose(clustering.centred(shifted), clustering.centred(plain), atol=1e-12)
    np.testing.assert_allclose(clustering.centred(plain).sum(axis=0), 0, atol=1e-12)
    i, j, size = 2, 5, 9
    expected = plain[i, j] - (plain[i].sum() + plain[j].sum()) / (size - 2)
    expected += plain.sum() / ((size - 1) * (size - 2))
    assert clustering.centred(plain)[i, j] == pytest.approx(expected)
    positive = 2 + clustering.centred(plain) - np.diag(np.full(9, 2.0))
    np.testing.assert_allclose(clustering.residual_distances(positive + 0.0), positive, atol=1e-12)


def test_additive_effects_do_not_peel_off_networks(rng):
    """Average linkage of the distances as they are takes a network away; without additive effects Ward finds groups."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    groups = np.repeat([0, 1], 20)
    structure, lengths = 0.15 * np.eye(2)[groups], rng.uniform(0.2, 0.6, size=40)
    noise = lengths[:, None] * rng.normal(size=(40, 100)) / 10
    points = np.hstack([structure, noise])
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    raw = fcluster(linkage(squareform(distances), method="average"), 2, criterion="maxclust")
    assert np.bincount(raw).max() > 30
    found = clustering.cluster(clustering.residual_distances(distances), WARD).labels
    assert clustering.adjusted_rand_index(found[None], groups[None])[0] > 0.8


def test_clusters_are_numbered_by_size_and_ordered_by_the_dendrogram(rng):
    points = np.concatenate([rng.normal(0, 0.1, 5), rng.normal(10, 0.1, 12)])[rng.permutation(17)]
    distances = np.abs(points[:, None] - points[None])
    labels, positions, silhouettes = clustering.cluster(distances, WARD)
    assert np.bincount(labels).tolist() == [12, 5] and max(silhouettes, key=silhouettes.get) == 2
    assert sorted(positions) == list(range(17)) and (np.diff(labels[np.argsort(positions)]) != 0).sum() == 1
    none = clustering.cluster(distances, WARD._replace(smallest=0.4))
    assert none.silhouettes == {} and none.silhouette == 0 and not none.labels.any()


def test_silhouettes_are_those_of_scikit_learn(rng):
    from sklearn.metrics import silhouette_score

    points = rng.normal(size=(30, 3))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    labels = rng.integers(4, size=30)
    labels[labels == 3] = 2
    labels[0] = 3  # alone in its cluster
    expected = silhouette_score(distances, labels, metric="precomputed")
    assert clustering.mean_silhouette(distances, labels) == pytest.approx(expected)


def test_explained_variance_is_that_of_an_analysis_of_variance(rng):
    """On a line PERMANOVA is the analysis of variance."""
    groups = np.repeat([0, 1, 2], [5, 8, 6])
    values = groups + rng.normal(size=19)
    within = sum(((values[groups == g] - values[groups == g].mean()) ** 2).sum() for g in range(3))
    distances = np.abs(values[:, None] - values[None])
    expected = 1 - within / ((values - values.mean()) ** 2).sum()
    assert clustering.explained_variance(distances, groups) == pytest.approx(expected)


def test_tests_of_groups_are_calibrated(rng):
    """Of unrelated groups a tenth or so have p < .1, and adjusted R² and the distance correlation are 0 on average."""
    low, r_squared, correlations = [], [], []
    for seed in range(60):
        points, groups = rng.normal(size=(20, 4)), np.repeat([0, 1], 10)
        distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
        other = clustering.standardised_distances(rng.normal(size=(20, 2)))
        p = clustering.explained_variance_p(distances, groups, seed), clustering.dispersion_p(distances, groups, seed)
        low.append([value < 0.1 for value in (*p, clustering.distance_correlation_p(distances, other, seed))])
        r_squared.append(clustering.adjusted(clustering.explained_variance(distances, groups), 20, 2))
        correlations.append(clustering.distance_correlation(distances, other))
    assert (np.mean(low, axis=0) < 0.25).all() and (np.sum(low, axis=0) > 0).all()
    assert abs(np.mean(r_squared)) < 0.02 and abs(np.mean(correlations)) < 0.04


def test_an_order_and_its_reverse_count_twice_however_values_are_spaced():
    values = np.repeat(np.log10(clusters.RATES), 4)
    p = clustering.gradient_p(np.abs(values[:, None] - values), values, seed=0)
    assert p == p.smallest == pytest.approx(2 / 120)


def test_dispersion_is_told_from_location(rng):
    groups = np.repeat([0, 1], 20)
    points = rng.normal(size=(40, 5)) * np.where(groups, 3, 1)[:, None]
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert clustering.dispersion_p(distances, groups, 0) < 0.05
    apart = rng.normal(size=(40, 5)) + 4 * groups[:, None]
    distances = np.linalg.norm(apart[:, None] - apart[None], axis=-1)
    assert clustering.dispersion_p(distances, groups, 0) > 0.05


def test_an_interval_from_subsamples_finds_no_agreement_of_unrelated_partitions(rng):
    """Where a bootstrap finds an index of .1 and more, because copies of a network stay together."""
    a, b = np.repeat(np.arange(5), 10), rng.permutation(np.repeat(np.arange(5), 10))
    indices = [
        clustering.adjusted_rand_index(a[some][None], b[some][None])[0] for some in clustering.subsamples(a, seed=0)
    ]
    assert all(np.bincount(a[some]).tolist() == [8] * 5 for some in clustering.subsamples(a, seed=0))
    value = clustering.adjusted_rand_index(a[None], b[None])[0]
    low, high = clustering.subsample_interval(value, indices, -1, 1)
    assert low < 0 < high < 0.2 and abs(np.mean(indices) - value) < 0.03
    drawn = rng.integers(50, size=(200, 50))
    assert clustering.adjusted_rand_index(a[drawn], b[drawn]).mean() > 0.03 + value


# Toys.


def test_toy_layers_share_what_they_should(rng):
    """k correlations are 1; the rest are those of independent noise of the stated size."""
    from cca_dynamics.similarity import cca

    few = StageOptions(toy_noise.Options(points=3000, neurons=12), "compute", seed=0)
    x, y = toy_noise.layers(5, 0.1, few, rng)
    correlations = cca(x, y).correlations
    np.testing.assert_allclose(correlations[:5], 1, atol=1e-9)
    assert correlations[5] < 0.15
    np.testing.assert_allclose(x[:, 5:].std(axis=0), 0.1, rtol=0.1)
    np.testing.assert_allclose(np.linalg.norm(x[:, :5], axis=1), np.linalg.norm(y[:, :5], axis=1))


def test_toy_noise_has_its_known_answers(options):
    """Distances of the full-size layers, computed independently of this code; within .02."""
    few = options["toy_noise"].with_changes({"draws": 2, "signal": (20, 100)})
    means = compute(toy_noise, few).groupby(["reading", "measure", "signal"])["value"].mean()
    for measure, reading, expected in (
        ("mean_cca", "variance", (0.67, 0.40)),
        ("pwcca", "standard deviation", (0.526, 0.070)),
        ("pwcca", "variance", (0.645, 0.180)),
    ):
        assert means[reading, measure].to_numpy() == pytest.approx(expected, abs=0.02)


def noise_table(signals=(20, 100), **distances) -> pd.DataFrame:
    """Distances per measure and number of signal neurons, with a little noise over draws."""
    rng = np.random.default_rng(0)
    level = {"mean_cca": (0.6, 0.4), "svcca": (0.5, 0.2), "pwcca": (0.2, 0.1)} | distances
    return pd.DataFrame([
        {"reading": reading, "draw": draw, "signal": signal, "measure": measure, "quantity": "distance",
         "value": values[index] + 0.003 * rng.normal()}
        for reading in toy_noise.READINGS for draw in range(6) for measure, values in level.items()
        for index, signal in enumerate(signals)
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("change", "claim", "verdict", "words"),
    [
        ({}, None, REPRODUCED, "it holds at every k"),
        ({"svcca": (0.5, 0.0)}, "svcca_over_pwcca", NOT_REPRODUCED, "it holds at 1 of 2 k (20), the reverse at 100"),
        ({"svcca": (0.1, 0.0)}, "svcca_over_pwcca", REVERSED, "it holds at 0 of 2 k, the reverse at 20, 100"),
        ({"mean_cca": (0.6, 0.2)}, "mean_cca_over_svcca", INCONCLUSIVE, "it holds at 1 of 2 k (20)"),
        ({"pwcca": (0.4, 0.1)}, "pwcca_robust", NOT_REPRODUCED, "at k = 20 of 200 signal neurons"),
    ],
)
def test_toy_noise_claims_are_judged_at_every_k(options, change, claim, verdict, words):
    few = options["toy_noise"].with_changes({"draws": 6, "signal": (20, 100)})
    claims = claims_of(toy_noise, noise_table(**change), few)
    assert len(claims) == 8
    for reading in ("deviation", "variance"):
        for name in {name.partition(".")[0] for name in claims} if claim is None else {claim}:
            assert claims[f"{name}.{reading}"].verdict == verdict
            assert words in claims[f"{name}.{reading}"].statistic


def test_the_crossing_is_where_svcca_stays_below(options):
    table = noise_table((20, 100, 150), svcca=(0.5, 0.05, 0.0), pwcca=(0.2, 0.1, 0.05), mean_cca=(0.6, 0.4, 0.2))
    rows = select(table.assign(share=table["signal"] / 2), reading="variance")
    assert toy_noise._crossing(rows) == 50
    assert toy_noise._crossing(select(rows, signal=20)) is None
    assert toy_noise._crossing(select(rows, measure="pwcca")) is None


MAIN = toy_rnn.Reading("unit", 0.0, 0.0)


def test_toy_rnn_rotates(options):
    few = StageOptions(options["toy_rnn"].with_changes({"neurons": 6, "starts": 40, "steps": 30}), "compute", seed=0)

    def states_of(alpha: float, reading: toy_rnn.Reading = MAIN) -> dict[int, np.ndarray]:
        return dict(toy_rnn.trajectory(alpha, reading, few, np.random.default_rng(0)))

    states = states_of(0)
    np.testing.assert_allclose(np.linalg.norm(states[30], axis=1), np.linalg.norm(states[0], axis=1))
    rotation = np.linalg.lstsq(states[0], states[1], rcond=None)[0]
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(states[30], states[0] @ np.linalg.matrix_power(rotation, 30), atol=1e-9)
    blended = states_of(100)
    assert np.isfinite(blended[30]).all() and not np.allclose(blended[1], states[1])
    np.testing.assert_allclose(states_of(100, MAIN._replace(start_scale=10.0))[0], 1000 * blended[0])
    far = states_of(2, MAIN._replace(bias_scale=10.0))[1] - states_of(2)[1]
    np.testing.assert_allclose(far, np.tile(far[:1], (40, 1)), atol=1e-9)  # the same of every start: 19 times b
    assert not np.allclose(states_of(2, MAIN._replace(mixing="fan_in"))[1], states_of(2)[1])


def rnn_table(grid: list, alphas=(1.0, 10.0), **distances: float) -> pd.DataFrame:
    """Distances per network, α and reading, of three steps."""
    rows = [
        {"network": network, "alpha": alpha, **reading._asdict(), "step": step, "measure": measure, "floor": 0.8,
         "quantity": "distance",
         "value": {"pwcca": 0.0, "cosine": 0.9, "euclidean": 1.2, **distances}[measure] + 0.001 * network}
        for network in range(6) for reading in grid for alpha in (0.0, *alphas) for step in (0, 5, 10)
        for measure in ("pwcca", "cosine", "euclidean")
        if alpha or reading == grid[0]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_toy_rnn_claims_follow_the_data(options):
    few = options["toy_rnn"].with_changes({"networks": 6, "steps": 10, "every": 5, "alphas": (1, 10)})
    grid = toy_rnn.readings(few)
    assert len(grid) == 8 and grid[0] == MAIN
    table = rnn_table(grid)
    result = claims_of(toy_rnn, table, few)
    assert {claim.verdict for claim in result.values()} == {REPRODUCED} and len(result) == 6
    assert "it holds in 8 of 8 readings" in result["blended_cca"].statistic
    in_main = (table[list(MAIN._fields)] == [*MAIN]).all(axis=1)
    worse = table["value"].mask((table["measure"] == "pwcca") & (table["alpha"] == 10) & in_main, 0.4)
    claim = claims_of(toy_rnn, table.assign(value=worse), few)["blended_cca"]
    assert claim.verdict == NOT_REPRODUCED and claim.value == pytest.approx(0.4)
    assert "it holds in 7 of 8 readings" in claim.statistic and f"judged in the reading {MAIN}" in claim.statistic
    other = table["value"].mask((table["measure"] == "pwcca") & ~in_main, 0.4)
    claim = claims_of(toy_rnn, table.assign(value=other), few)["blended_cca"]
    assert claim.verdict == REPRODUCED and f"it holds in 1 of 8 readings ({MAIN})" in claim.statistic
    spread = table["value"] + 10 * (table["measure"].eq("cosine") & table["alpha"].eq(10) & table["network"].eq(5))
    result = claims_of(toy_rnn, table.assign(value=spread), few)  # at α = 10 the gap is larger, and less certain
    assert result["blended_cosine"].verdict == INCONCLUSIVE and result["blended_cosine"].value == pytest.approx(0.9)
    blind = table["value"].mask((table["measure"] == "cosine") & (table["alpha"] == 0), 0.001)
    result = verdicts(toy_rnn, table.assign(value=blind), few)
    assert result["linear_cosine"] == NOT_REPRODUCED
    assert result["linear_euclidean"] == result["blended_cosine"] == REPRODUCED


def test_toy_rnn_computes_every_reading(options):
    few = options["toy_rnn"].with_changes({"networks": 2, "neurons": 4, "starts": 20, "steps": 4, "every": 2})
    table = compute(toy_rnn, few)
    pairs = table[table["measure"] == "pwcca"].groupby(["alpha", *MAIN._fields]).size()
    assert pairs.to_dict() == {
        (0.0, *MAIN): 6,
        **{(float(alpha), *reading): 6 for alpha in few.alphas for reading in toy_rnn.readings(few)},
    }
