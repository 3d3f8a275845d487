"""Verdicts follow the data: made-up tables in which each claim holds, and in which it does not."""

import numpy as np
import pandas as pd
import pytest
from cca_dynamics.config.models import StageOptions
from cca_dynamics.results import (
    clustering,
    clusters,
    recurrent_sequence,
    recurrent_training,
    stability,
    toy_noise,
    toy_rnn,
)
from cca_dynamics.results.claims import COLUMNS, INCONCLUSIVE, NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.registry import RESULTS
from cca_dynamics.results.tables import tidy
from cca_dynamics.study import Study

from tests.builders import changed
from tests.test_results_groups import AS_PUBLISHED, FALLING, FLAT, RISING, generalization_table, width_table


@pytest.fixture
def options(default_config):
    default_config["results"]["stability"]["recurrent"] = None  # its made-up tables have no recurrent networks
    study = Study(default_config)
    return {name: study.options(name) for name in RESULTS}


def claims_of(module, table, options) -> list:
    return module.claims(table, StageOptions(options, "claims", seed=0))


def compute(module, options) -> pd.DataFrame:
    return module.compute(Inputs.from_paths([], []), StageOptions(options, "compute", seed=0))


def verdicts(module, table, options) -> dict[str, str]:
    """Name of each claim without that of its result → verdict."""
    return {claim.claim.partition(".")[2]: claim.verdict for claim in claims_of(module, table, options)}


def check(result: dict[str, str], claim: str | None, verdict: str, count: int) -> None:
    """The verdict on one claim, or for None on all `count` of them."""
    if claim is None:
        assert set(result.values()) == {verdict} and len(result) == count, result
    else:
        assert result[claim] == verdict


def test_what_no_data_could_reproduce_is_not_testable_and_says_why(options):
    table = stability_table()
    few = table[table["network"] < 4]
    assert {claim.verdict for claim in claims_of(stability, few, options["stability"])} == {NOT_TESTABLE}
    early = table[~table["epoch"].between(3, 19)]  # nothing between t_early and T/2
    assert verdicts(stability, early, options["stability"])["spike"] == NOT_TESTABLE
    end = table[table["epoch"].isin([0, 2, 40])]  # one checkpoint after t_early: T/2 and the end are the same
    result = verdicts(stability, end, options["stability"])
    assert result["spike"] == NOT_TESTABLE and result["stable_set"] == REPRODUCED


OBSTACLES = {
    "results.width.multipliers": [0.25, 0.5, 1],
    "results.width.networks": 2,
    "results.stability.networks": 4,
    "results.stability.checkpoint_every": 20,
    "results.generalization.networks": 3,
    "results.generalization.data_size_networks": 2,
    "results.generalization.late_layers": ["conv2", "conv3", "conv4", "conv5"],
    "results.clusters.most_clusters": 4,
    "results.toy_noise.draws": 4,
    "results.toy_rnn.networks": 4,
    "language_model.networks": 4,
    "results.recurrent_training.deeper_networks": 3,
}


@pytest.mark.parametrize("key", OBSTACLES)
def test_settings_that_no_data_could_reproduce_are_named_beforehand(default_config, key):
    def named(config) -> set[str]:
        study = Study(config)
        return {obstacle.key for result in study.targets for obstacle in study.obstacles(result)}

    default_config["language_training"]["epochs"] = 8  # else no checkpoint lies between t_early and T/2
    default_config["results"]["generalization"]["networks"] = 4
    assert named(default_config) == set()
    expected = {
        "results.stability.checkpoint_every": "results.stability.early_epoch",
        "results.generalization.late_layers": "results.generalization.networks",
    }.get(key, key)
    assert named(changed(default_config, key, OBSTACLES[key])) == {expected}


def stability_table(*, correlation=0.5, stable=0.1, unstable=0.8, spike=0.05) -> pd.DataFrame:
    rows = []
    rng = np.random.default_rng(2)
    for network in range(5):
        for epoch in range(0, 41, 2):
            columns = {"kind": "convolutional", "network": network, "epoch": float(epoch), "step": 31 * epoch}
            settled = 1.0 if epoch == 40 else correlation
            rows += [
                {**columns, "quantity": "correlation", "index": i, "value": settled if i > 40 else 1.0}
                for i in range(1, 129)
            ]
            rows.append({**columns, "quantity": "test_accuracy", "value": 0.5 if epoch < 10 else 0.95})
            if epoch >= 2:
                noise = 0.001 * rng.normal()
                near = 0.0 if epoch == 2 else stable + noise
                far = 0.0 if epoch == 2 else unstable + noise + (spike if epoch == 20 else 0)
                rows.append({**columns, "quantity": "distance", "set": "stable", "value": near})
                rows.append({**columns, "quantity": "distance", "set": "unstable", "value": far})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("change", "claim", "verdict"),
    [
        ({}, None, REPRODUCED),
        ({"correlation": 0.95}, "unconverged", NOT_REPRODUCED),
        ({"stable": 0.85}, "stable_set", NOT_REPRODUCED),
        ({"stable": 0.7}, "stable_stays", NOT_REPRODUCED),
        ({"spike": -0.05}, "spike", NOT_REPRODUCED),
    ],
)
def test_stability_claims_follow_the_data(options, change, claim, verdict):
    check(verdicts(stability, stability_table(**change), options["stability"]), claim, verdict, count=5)


def test_convergence_is_the_first_epoch_that_stays_close():
    table = stability_table()
    assert stability.convergence_epoch(table, 0.01) == 10
    dip = (table["quantity"] == "test_accuracy") & (table["epoch"] == 16)
    assert stability.convergence_epoch(table.assign(value=table["value"].mask(dip, 0.8)), 0.01) == 18
    one = dip & (table["network"] == 0)
    assert stability.convergence_epoch(table.assign(value=table["value"].mask(one, 0.8)), 0.01) == 10
    epoch, share = stability.unconverged(table, 0.02, 0.9)
    assert epoch == 10 and share.tolist() == pytest.approx([88 / 128] * 5)


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


def test_toy_noise_claims_follow_the_data(options):
    few = options["toy_noise"].with_changes({"draws": 6, "signal": (4, 8, 12), "neurons": 16, "points": 200})
    table = compute(toy_noise, few)
    assert table.groupby(["reading", "measure"]).size().eq(18).all()
    result = verdicts(toy_noise, table, few)
    assert {result[f"mean_cca_over_pwcca.{reading}"] for reading in ("deviation", "variance")} == {REPRODUCED}
    swapped = table.assign(measure=table["measure"].replace({"pwcca": "mean_cca", "mean_cca": "pwcca"}))
    assert verdicts(toy_noise, swapped, few)["mean_cca_over_pwcca.deviation"] == NOT_REPRODUCED


def test_toy_rnn_rotates(options):
    few = StageOptions(options["toy_rnn"].with_changes({"neurons": 6, "starts": 40, "steps": 30}), "compute", seed=0)
    states = dict(toy_rnn.trajectory(0, few, np.random.default_rng(0)))
    np.testing.assert_allclose(np.linalg.norm(states[30], axis=1), np.linalg.norm(states[0], axis=1))
    rotation = np.linalg.lstsq(states[0], states[1], rcond=None)[0]
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(states[30], states[0] @ np.linalg.matrix_power(rotation, 30), atol=1e-9)
    blended = dict(toy_rnn.trajectory(100, few, np.random.default_rng(0)))
    assert np.isfinite(blended[30]).all() and not np.allclose(blended[1], states[1])


def test_toy_rnn_claims_follow_the_data(options):
    few = options["toy_rnn"].with_changes({"networks": 6, "steps": 10, "every": 5, "alphas": (1, 10)})
    rows = [
        {"network": network, "alpha": alpha, "step": step, "measure": measure, "value": value + 0.001 * network}
        for network in range(6)
        for alpha in (0.0, 1.0, 10.0)
        for step in (0, 5, 10)
        for measure, value in (("pwcca", 0.0), ("cosine", 0.9), ("euclidean", 1.2))
    ]
    table = pd.DataFrame(rows)
    assert set(verdicts(toy_rnn, table, few).values()) == {REPRODUCED}
    worse = table["value"].mask((table["measure"] == "pwcca") & (table["alpha"] == 10), 0.4)
    assert verdicts(toy_rnn, table.assign(value=worse), few)["blended_cca"] == NOT_REPRODUCED
    blind = table["value"].mask((table["measure"] == "cosine") & (table["alpha"] == 0), 0.001)
    result = verdicts(toy_rnn, table.assign(value=blind), few)
    assert result["linear_raw"] == NOT_REPRODUCED and result["blended_raw"] == REPRODUCED


def sweep_table(points: np.ndarray, rates: np.ndarray, ablation: np.ndarray, *, accuracy: float = 1.0) -> pd.DataFrame:
    """A sweep whose networks lie at points (N, 2): their distances, and their clusters as `compute` finds them."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    a, b = np.nonzero(~np.eye(len(points), dtype=bool))
    pairs = {"network_a": a, "network_b": b, "value": distances[a, b]}
    tables = [pd.DataFrame({"quantity": "distance", "measure": "pwcca", **pairs})]
    labels, positions, _ = clustering.cluster(distances, 10)
    per_network = {"learning_rate": rates, "cluster": labels, "place": positions, "ablation_cluster": ablation}
    per_network |= {"train_accuracy": np.full(len(rates), accuracy), "test_accuracy": 0.9 - 0.01 * ablation}
    per_network |= {"robustness": 0.3 + 0.05 * ablation + 0.01 * points[:, 0]}
    tables += [
        pd.DataFrame({"network": range(len(rates)), "quantity": quantity, "value": np.asarray(values, dtype=float)})
        for quantity, values in per_network.items()
    ]
    share = np.linspace(0, 1, 5)
    curves = pd.DataFrame({"network": np.repeat(np.arange(len(rates)), 5), "share": np.tile(share, len(rates))})
    tables.append(curves.assign(quantity="ablated_accuracy", value=1 - curves["share"]))
    return tidy(tables)


def planted(rng, size=8):
    """Five tight groups, one of them far from the others."""
    centres = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [5, 5]])
    groups = np.repeat(np.arange(5), size)
    return centres[groups] + 0.02 * rng.normal(size=(5 * size, 2)), groups


def test_planted_clusters_are_found(rng, options):
    points, groups = planted(rng)
    result = verdicts(clusters, sweep_table(points, 0.1 + groups, groups), options["clusters"])
    assert set(result.values()) == {REPRODUCED}, result


def test_without_clusters_the_claims_fail(rng, options):
    points, groups = planted(rng)
    shuffled = rng.permutation(groups)
    result = verdicts(clusters, sweep_table(points, 0.1 + shuffled, shuffled, accuracy=0.9), options["clusters"])
    assert result["fitted"] == result["learning_rate"] == result["ablation"] == NOT_REPRODUCED
    assert result["blocks"] != REPRODUCED
    points[groups == 4] -= 4.5
    result = verdicts(clusters, sweep_table(points, 0.1 + groups, groups), options["clusters"])
    assert result["outlier"] == NOT_REPRODUCED
    points = np.vstack([rng.normal(size=(20, 2)), 20 + rng.normal(size=(20, 2))])
    result = verdicts(clusters, sweep_table(points, 0.1 + groups, groups), options["clusters"])
    assert result["five"] == NOT_REPRODUCED and result["outlier"] == INCONCLUSIVE


def test_clusters_are_numbered_by_size_and_ordered_by_the_dendrogram(rng):
    points = np.concatenate([rng.normal(0, 0.1, 5), rng.normal(10, 0.1, 12)])[rng.permutation(17)]
    labels, positions, silhouettes = clustering.cluster(np.abs(points[:, None] - points[None]), 6)
    assert np.bincount(labels).tolist() == [12, 5] and max(silhouettes, key=silhouettes.get) == 2
    assert sorted(positions) == list(range(17)) and (np.diff(labels[np.argsort(positions)]) != 0).sum() == 1


def test_resamples_without_a_whole_cluster_are_left_out():
    """A cluster of one network is missing from a third of the resamples; pytest turns warnings of NumPy into errors."""
    points = np.array([0, 0.1, 0.2, 1, 1.1, 1.2, 9])
    distances, labels = np.abs(points[:, None] - points[None]), np.array([0, 0, 0, 1, 1, 1, 2])
    gap, (low, high) = clustering.outlier_gap(distances, labels, seed=0)
    assert gap == pytest.approx(7.9 - 1) and low < gap < high


def planted_rates(rng):
    points, groups = planted(rng)
    return points, 0.1 + groups, groups


def recurrent_training_table(order=1, others=0.5) -> pd.DataFrame:
    """Layers that converge one after the other (order -1: top down), seen as clearly by `others` than by PWCCA."""
    rows, rng = [], np.random.default_rng(3)
    for cohort, networks, depth in (("lstm", 5, 3), ("lstm-deeper", 5, 5)):
        for network in range(networks):
            for epoch in range(7):
                columns = {"cohort": cohort, "network": network, "epoch": float(epoch), "step": 10 * epoch}
                rows += [
                    {**columns, "quantity": quantity, "value": 3.0 - epoch / 6} for quantity in ("loss", "valid_loss")
                ]
                for layer in range(depth):
                    of_layer = {**columns, "quantity": "distance", "layer": f"lstm{layer + 1}", "layer_index": layer}
                    for measure in ("pwcca", "mean_cca", "cosine", "euclidean"):
                        rate = 1 + 0.2 * order * layer * (1 if measure == "pwcca" else others) + 0.001 * rng.normal()
                        rows.append({**of_layer, "measure": measure, "value": rate * (1 - epoch / 6)})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("change", "claim", "verdict"),
    [
        ({}, None, REPRODUCED),
        ({"order": -1}, "bottom_up", NOT_REPRODUCED),
        ({"order": -1}, "bottom_up_deeper", NOT_REPRODUCED),
        ({"others": 1.5}, "unweighted_blurs", NOT_REPRODUCED),
        ({"others": 1.5}, "clearer_than_raw", NOT_REPRODUCED),
        ({"others": 0}, "bottom_up_cosine", INCONCLUSIVE),
    ],
)
def test_recurrent_training_claims_follow_the_data(options, change, claim, verdict):
    table = recurrent_training_table(**change)
    check(verdicts(recurrent_training, table, options["recurrent_training"]), claim, verdict, count=6)
    areas = recurrent_training.areas(recurrent_training_table(), "lstm", "pwcca")
    assert areas.shape == (5, 3) and areas.mean(axis=0) == pytest.approx([0.5, 0.6, 0.7], abs=0.01)


def recurrent_sequence_table(far=0.7, late=0.3, repeats=(0.1, 0.5), raw=(0.5, 0.5)) -> pd.DataFrame:
    rows, rng, starts = [], np.random.default_rng(4), (0.01, 0.08, 0.24, 0.48, 0.81)
    for network in range(5):
        for layer in range(3):
            for position in range(19):
                for measure in ("pwcca", "cosine", "euclidean"):
                    columns = {"network": network, "layer": f"lstm{layer + 1}", "layer_index": layer}
                    columns |= {"measure": measure, "position": position, "quantity": "distance", "floor": 0.9}
                    value = (late if position == 18 else far) + 0.001 * rng.normal()
                    rows.append({**columns, "input": "text", "start": -1.0, "value": value})
                    first, last = repeats if measure == "pwcca" else raw
                    for i, start in enumerate((*starts, -1.0)):
                        value = first + (last - first) * min(i, 4) / 4 + 0.001 * rng.normal()
                        rows.append({**columns, "input": "repeat", "start": start, "value": value})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("change", "claim", "verdict"),
    [
        ({}, None, REPRODUCED),
        ({"far": 0.2, "late": 0.1}, "little_similarity", NOT_REPRODUCED),
        ({"late": 0.8}, "until_late", NOT_REPRODUCED),
        ({"repeats": (0.5, 0.1)}, "early_repeats", NOT_REPRODUCED),
        ({"raw": (0.1, 0.5)}, "raw_insensitive", NOT_REPRODUCED),
    ],
)
def test_recurrent_sequence_claims_follow_the_data(options, change, claim, verdict):
    table = recurrent_sequence_table(**change)
    check(verdicts(recurrent_sequence, table, options["recurrent_sequence"]), claim, verdict, count=4)


def looks(handle) -> tuple:
    """What tells a legend's curve or points from others in grey: marker, line, lightness in steps of a fifth."""
    from matplotlib.colors import to_rgb

    line = handle.lines[0] if hasattr(handle, "lines") else handle
    if hasattr(line, "get_marker"):
        marker, dashes, colour = line.get_marker(), line.get_linestyle(), line.get_color()
    else:
        marker, dashes, colour = line.get_paths()[0].vertices.tobytes(), "", line.get_edgecolor()[0][:3]
    hollow = hasattr(line, "get_paths") and not len(line.get_facecolor())
    return marker, dashes, hollow, round(5 * np.dot([0.2126, 0.7152, 0.0722], np.square(to_rgb(colour))))


@pytest.mark.parametrize("result", list(RESULTS))
def test_figures_are_complete_legible_in_grey_and_embed_their_fonts(options, result, rng, tmp_path):
    import matplotlib.pyplot as plt
    from cca_dynamics.results import figures

    tables = {
        "generalization": lambda: generalization_table(AS_PUBLISHED),
        "width": lambda: width_table(FALLING, FLAT, RISING),
        "stability": stability_table,
        "clusters": lambda: sweep_table(*planted_rates(rng)),
        "toy_noise": lambda: compute(toy_noise, options["toy_noise"]),
        "toy_rnn": lambda: compute(toy_rnn, options["toy_rnn"]),
        "recurrent_training": recurrent_training_table,
        "recurrent_sequence": recurrent_sequence_table,
    }
    few = {"draws": 2, "signal": (4, 8), "neurons": 16, "points": 100}
    options["toy_noise"] = options["toy_noise"].with_changes(few)
    few = {"networks": 2, "neurons": 4, "starts": 20, "steps": 10, "every": 5}
    options["toy_rnn"] = options["toy_rnn"].with_changes(few)
    options["clusters"] = options["clusters"].with_changes({"most_clusters": 5})
    table, module = tables[result](), RESULTS[result]
    if result == "stability":
        table = pd.concat([table, table[table["quantity"] == "test_accuracy"].assign(quantity="train_accuracy")])
    before = table.copy()
    claims = pd.DataFrame([claim.row() for claim in claims_of(module, table, options[result])], columns=COLUMNS)
    figure = module.plot(table, claims, StageOptions(options[result], "plot"))
    drawn = [axis for axis in figure.axes if axis.get_visible()]
    assert all(axis.get_ylabel() or axis.get_xlabel() for axis in drawn)
    words = " ".join(text.get_text() for text in figure.findobj(plt.Text))
    if result in ("generalization", "width"):
        assert "CIFAR-10" in words
    for axis in drawn:
        handles, labels = axis.get_legend_handles_labels()
        styles = [looks(handle) for handle in handles]
        assert len(set(styles)) == len(styles), f"in grey some of {labels} look the same: {styles}"
    pdf = tmp_path / "figure.pdf"
    figures.save(figure, [pdf])
    content = pdf.read_bytes()
    assert content.count(b"/FontFile2") == content.count(b"/Type /FontDescriptor") > 0 and b"/Type3" not in content
    pd.testing.assert_frame_equal(table, before)
