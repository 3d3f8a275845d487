"""Distances and functional differences: probes, restricted layers, rank correlations, and claims on made-up tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from cca_dynamics.config.cohorts import LayerRequest
from cca_dynamics.config.models import StageOptions
from cca_dynamics.data import datasets
from cca_dynamics.errors import ConfigError
from cca_dynamics.networks.convolutional import build
from cca_dynamics.representations import extraction
from cca_dynamics.results import grounding
from cca_dynamics.results.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, REVERSED
from cca_dynamics.results.grounding import ALL_DIRECTIONS, DELETION, DEPTH, SEEDS
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.tables import CONTROLS, select, tidy
from cca_dynamics.similarity import MEASURES, factorize, pwcca
from cca_dynamics.study import Study

from tests.builders import changed, classifier_recipe, train_classifiers, write_dataset

MEASURES_SHOWN = ("pwcca", "mean_cca", "svcca", "linear_cka", "procrustes", ALL_DIRECTIONS)
TRACKS = {
    DELETION: {"pwcca": 0.5, ALL_DIRECTIONS: 0.8, "linear_cka": 0.5},
    DEPTH: {"linear_cka": 0.95, ALL_DIRECTIONS: 0.4},
    SEEDS: {"pwcca": 0.9, "linear_cka": 0.9, "procrustes": 0.9},
}
"""Test → measure → how much of the distance is the functional difference; the rest is noise. 0.7 of others."""


def points_table(tracks: dict = TRACKS, networks: int = 5, accuracy: float = 1.0) -> pd.DataFrame:
    """A table as `compute` writes one, of three layers, and a sweep of twelve networks of three learning rates."""
    rng = np.random.default_rng(0)
    a, b = np.nonzero(~np.eye(networks, dtype=bool))
    pairs = pd.DataFrame({"network_a": a, "network_b": b})
    layers = ("conv1", "conv2", "softmax")
    first, second = np.triu_indices(12, 1)
    sweep = {"network_a": first, "network_b": second, "layer": "conv4", "layer_b": "conv4"}
    points = {
        DELETION: pd.concat(
            [pairs.assign(layer=layer, layer_b=layer, components=k) for layer in layers for k in (1, 2, 4, 8, 16)]
        ),
        DEPTH: pd.concat([pairs.assign(layer="conv2", layer_b=f"conv{depth}") for depth in range(1, 7)]),
        SEEDS: pd.DataFrame(sweep),
    }
    skill = {SEEDS: rng.uniform(size=12)}
    tables = []
    for test, rows in points.items():
        difference = rng.uniform(size=len(rows))
        if test in skill:
            difference = np.abs(skill[test][first] - skill[test][second])
        for measure in MEASURES_SHOWN:
            if test == SEEDS and measure == ALL_DIRECTIONS:
                continue
            share = tracks[test].get(measure, 0.7)
            target = difference if share >= 0 else 1 - difference
            value = abs(share) * target + (1 - abs(share)) * rng.uniform(size=len(rows))
            columns = {"test": test, "quantity": "distance", "measure": measure, "value": value}
            tables.append(rows.assign(difference=difference, rank_a=8, rank_b=8, n=100, **columns))
    for quantity, values in {
        "train_accuracy": np.full(networks, accuracy),
        "learning_rate": np.repeat([0.01, 0.1, 1.0], 4),
        "noisy_accuracy": 0.5 + 0.1 * skill[SEEDS],
    }.items():
        tables.append(pd.DataFrame({"network": np.arange(len(values)), "quantity": quantity, "value": values}))
    return tidy(tables)


def verdicts(table: pd.DataFrame, **changes) -> dict[str, str]:
    options = StageOptions(grounding.Options(**changes), "claims", seed=0)
    return {claim.claim.partition(".")[2]: claim.verdict for claim in grounding.claims(table, options)}


NAMES = {"fitted", "deletion_pwcca", "deletion_pwcca_common", "deletion_pwcca_over_cka", "depth_cka_over_pwcca"}
NAMES |= {"seeds_pwcca", "seeds_linear_cka", "seeds_procrustes"}


def test_claims_hold_where_distances_track_function():
    result = verdicts(points_table())
    assert set(result) == NAMES and set(result.values()) == {REPRODUCED}


@pytest.mark.parametrize(
    ("test", "measure", "share", "claim"),
    [
        (DELETION, ALL_DIRECTIONS, -0.9, "deletion_pwcca"),
        (DELETION, "pwcca", -0.9, "deletion_pwcca_common"),
        (DELETION, "linear_cka", 1.0, "deletion_pwcca_over_cka"),
        (DEPTH, "linear_cka", -0.9, "depth_cka_over_pwcca"),
        (SEEDS, "procrustes", -0.9, "seeds_procrustes"),
    ],
)
def test_claims_are_reversed_where_distances_are(test, measure, share, claim):
    tracks = {name: dict(shares) for name, shares in TRACKS.items()}
    tracks[test][measure] = share
    result = verdicts(points_table(tracks))
    assert result.pop(claim) == REVERSED
    assert claim == "deletion_pwcca" or set(result.values()) == {REPRODUCED}


def test_probes_need_networks_that_fit_their_labels():
    result = verdicts(points_table(accuracy=0.9))
    assert result.pop("fitted") == NOT_REPRODUCED
    assert {verdict for name, verdict in result.items() if not name.startswith("seeds")} == {NOT_TESTABLE}
    assert {verdict for name, verdict in result.items() if name.startswith("seeds")} == {REPRODUCED}


def test_two_networks_give_no_interval():
    result = verdicts(points_table(networks=2))
    assert result["deletion_pwcca"] == result["depth_cka_over_pwcca"] == NOT_TESTABLE


def test_claims_are_about_the_measures_of_the_config():
    table = points_table()
    few = table[~table["measure"].isin(["linear_cka", "procrustes"])]
    assert set(verdicts(few)) == {"fitted", "deletion_pwcca", "deletion_pwcca_common", "seeds_pwcca"}


def test_published_values_stand_beside_the_claims():
    claims = grounding.claims(points_table(), StageOptions(grounding.Options(), "claims", seed=0))
    published = {claim.claim: (claim.paper_value, claim.paper_error) for claim in claims}
    assert published["grounding.deletion_pwcca"] == (0.87, 0.005)
    assert published["grounding.deletion_pwcca_over_cka"] == pytest.approx((0.12, 0.0071), abs=1e-4)
    assert published["grounding.depth_cka_over_pwcca"] == pytest.approx((0.14, 0.0071), abs=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("measures", ["pwcca", "cosine"], "compares neuron by neuron"),
        ("networks", 41, "more than the 40 of results.clusters.networks"),
        ("layer", "conv6", "the network has no conv6"),
    ],
)
def test_impossible_settings_are_refused_by_key(default_config, key, value, words):
    default_config["targets"] = ["grounding"]
    with pytest.raises(ConfigError, match=words) as problem:
        Study(changed(default_config, f"results.grounding.{key}", value))
    assert problem.value.key == f"results.grounding.{key}"


def test_refused_measures_are_those_that_compare_neuron_by_neuron():
    assert {name for name, measure in MEASURES.items() if measure.neuron_by_neuron} == set(CONTROLS)


def test_other_results_have_the_same_cohorts(default_config):
    """But for what is extracted of them."""
    study = Study(default_config)
    alone = {cohort.name: cohort for cohort in grounding.cohorts(study.config, study.options("grounding"))}
    assert set(alone) == {"generalizing", "sweep"}
    for name, cohort in alone.items():
        assert set(cohort.requests) <= set(study.cohorts[name].requests)
        assert replace(study.cohorts[name], requests=cohort.requests) == cohort


def test_rank_correlation_is_that_of_scipy(rng):
    from scipy.stats import spearmanr

    x, y = rng.integers(5, size=40), rng.normal(size=40)
    assert grounding.spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert grounding.spearman(np.ones(4), y[:4]) == 0


def test_directions_that_are_lacking_count_as_uncorrelated(rng):
    """Of uncorrelated neurons each accounts for its own standard deviation."""
    scale = np.array([5.0, 3.0, 2.0, 1.0])
    x = rng.normal(size=(60, 4))
    x = np.linalg.qr(x - x.mean(axis=0))[0] * scale
    reference, other = factorize(x), factorize(x[:, :2])
    cross = reference.basis().T @ other.basis()
    assert pwcca(reference, other).distance == pytest.approx(0, abs=1e-9)
    assert grounding.pwcca_of_all_directions(reference, cross) == pytest.approx(1 - scale[:2].sum() / scale.sum())
    wider = factorize(rng.normal(size=(60, 7)))
    cross = reference.basis().T @ wider.basis()
    assert grounding.pwcca_of_all_directions(reference, cross) == pytest.approx(pwcca(reference, wider).distance)


@pytest.fixture
def layer(rng):
    """A layer of six neurons on 80 training and 50 test data points of three classes."""
    labels = rng.integers(3, size=130)
    x = rng.normal(size=(130, 6)) @ rng.normal(size=(6, 6)) + 2 * np.eye(3, 6)[labels]
    return grounding._Layer(x[:80], x[80:], np.eye(3)[labels[:80]], labels[80:], "cpu"), x, labels


def test_a_probe_is_a_least_squares_fit_of_leading_components(layer):
    probed, x, labels = layer
    mean = x[:80].mean(axis=0)
    _, _, vt = np.linalg.svd(x[:80] - mean, full_matrices=False)
    for k in (1, 3, 6):
        train, test = (np.column_stack([(part - mean) @ vt[:k].T, np.ones(len(part))]) for part in (x[:80], x[80:]))
        weights = np.linalg.lstsq(train, np.eye(3)[labels[:80]], rcond=None)[0]
        expected = np.mean((test @ weights).argmax(axis=1) == labels[80:])
        assert probed.accuracy(k) == pytest.approx(expected)
    assert probed.numbers(3) == [1, 2, 6] and probed.numbers(1000) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("measure", [name for name in MEASURES if name not in CONTROLS])
def test_restricted_layers_are_those_of_their_principal_components(layer, rng, measure):
    """Under every measure, whether it has a kernel or not."""
    probed, x, _ = layer
    reference = factorize(rng.normal(size=(80, 4)) + 0.5 * x[:80, :4])
    mean = x[:80].mean(axis=0)
    u, s, vt = np.linalg.svd(x[:80] - mean, full_matrices=False)
    expected = MEASURES[measure].function(reference, u[:, :3] * s[:3] @ vt[:3] + mean).distance
    cross = (reference.basis().T @ probed.basis)[:, :3]
    assert grounding._distance(measure, reference, probed.leading(3), cross) == pytest.approx(expected, abs=1e-7)


def test_points_of_trained_networks(tmp_path):
    """Their numbers, and accuracies out of distribution computed once more."""
    data = write_dataset(tmp_path / "dataset.safetensors", 1)
    step = "step-000009.safetensors"
    sweep = classifier_recipe((0, 1, 2, 3), learning_rate=(0.05, 0.05, 0.01, 0.01))
    layers = LayerRequest(epochs="final", splits=("train", "test"), layers="all")
    noisy = LayerRequest(epochs="final", splits=("test",), layers=("softmax",), noise=0.5)
    for cohort, recipe in (("generalizing", classifier_recipe()), ("sweep", sweep)):
        networks = tmp_path / "networks" / cohort / "0-3"
        state, _, _ = train_classifiers(recipe, data, networks)
        activations = tmp_path / "activations" / cohort / "0-3"
        extraction.extract(networks, data, activations, requests=[layers, noisy], report=lambda line: None)
    folders = {
        kind: [tmp_path / kind / cohort / "0-3" for cohort in ("generalizing", "sweep")]
        for kind in ("networks", "activations")
    }
    options = grounding.Options(components=3, networks=2, layer="conv2", noise=0.5)
    table = grounding.compute(Inputs.from_paths(**folders), StageOptions(options, "compute", seed=0))

    counts = select(table, quantity="distance").groupby(["test", "measure"]).size()
    assert set(counts[DEPTH]) == {3 * 2 * 3} and set(counts[SEEDS]) == {6}
    assert set(counts[DELETION]) == {3 * 2 * (3 + 3 + 2)}  # the softmax of three classes has two directions
    distances = select(table, quantity="distance")
    assert distances["value"].between(0, 1).all() and distances["difference"].between(0, 1).all()
    kept = select(distances, test=DELETION, measure=ALL_DIRECTIONS, layer="conv2", network_a=0, network_b=1)
    assert kept.sort_values("components")["value"].is_monotonic_decreasing
    assert set(select(table, quantity="learning_rate")["value"]) == {0.01, 0.05}

    dataset = datasets.load(data)
    noise = np.random.default_rng([3, *b"noise", *b"test"]).standard_normal(dataset.test_x.shape, dtype=np.float32)
    x = dataset.test_x + 0.5 * float(dataset.train_x.std()) * torch.from_numpy(noise)
    outputs = build(sweep.network, 2, (12,), 3).representations(state, x, ["softmax"])["softmax"]
    expected = (outputs.argmax(-1) == dataset.test_y).float().mean(dim=1)
    np.testing.assert_allclose(select(table, quantity="noisy_accuracy")["value"], expected)
    path = folders["activations"][1] / "test-noise-0.5" / step
    assert extraction.layers(path) == ["labels", "softmax"]
    assert (extraction.load(path, "labels")[..., 0] == dataset.test_y.numpy()).all()


def test_requests_without_noise_read_as_before():
    request = LayerRequest(epochs="final", splits=("test",), layers=("softmax",))
    assert "noise" not in request.model_dump() and "noise" not in request.model_dump_json()
    assert request.model_copy(update={"noise": 0.5}).model_dump()["noise"] == 0.5
