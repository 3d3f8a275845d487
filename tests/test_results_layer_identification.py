"""Which measures find the same layer of another network: its arithmetic, its claims, and layers before their ReLU."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cca_dynamics import cost, counts
from cca_dynamics.config.base import as_argument, decode
from cca_dynamics.config.cohorts import LayerRequest, Request
from cca_dynamics.config.models import ConvNetOptions, ResNetOptions, StageOptions
from cca_dynamics.data import datasets
from cca_dynamics.errors import ConfigError, UserError
from cca_dynamics.networks.convolutional import Networks, build
from cca_dynamics.representations import extraction
from cca_dynamics.results import generalization, layer_identification
from cca_dynamics.results.claims import INCONCLUSIVE, NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, REVERSED
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.layer_identification import PUBLISHED, Distances
from cca_dynamics.results.tables import CONTROLS, select
from cca_dynamics.runtime.storage import read_tensors
from cca_dynamics.similarity import MEASURES
from cca_dynamics.study import Study
from torch.nn import functional

from tests.builders import changed, classifier_recipe, train_classifiers, write_dataset

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")
AS_PUBLISHED = {"mean_cca": 0.0, "svcca": 0.2, "pwcca": 0.2, "procrustes": 1.0, "linear_cka": 1.0}
AS_PUBLISHED |= {"linear_cka_debiased": 1.0}


def identification_table(
    shares: dict[str, float], networks: int = 5, relus: tuple[str, ...] = ("after", "before"), spread: int = 0
) -> pd.DataFrame:
    """A table as `compute` writes one.

    Args:
        shares: measure → which share of the layers, the first ones, is nearest to the corresponding layer; the others
            are nearest to the one after it.
        networks: how many.
        relus: sides of the ReLU.
        spread: by how many layers more or less the networks with an even or an odd number find.
    """
    rows = []
    for relu in relus:
        for measure, share in shares.items():
            for a, b in zip(*np.nonzero(~np.eye(networks, dtype=bool)), strict=True):
                found = round(share * len(LAYERS)) + spread * (1 if a % 2 else -1)
                for i, layer in enumerate(LAYERS):
                    nearest = i if i < found else (i + 1) % len(LAYERS)
                    for j, other in enumerate(LAYERS):
                        value = 0.1 + 0.05 * abs(j - nearest) + 0.001 * a
                        rows.append((relu, measure, a, layer, b, other, value))
    names = ["relu", "measure", "network_a", "layer_a", "network_b", "layer_b", "value"]
    return pd.DataFrame(rows, columns=names).assign(quantity="distance", rank_a=32, rank_b=32, n=1000, floor=0.9)


@pytest.fixture
def options(default_config):
    return Study(default_config).options("layer_identification")


def claims_of(table: pd.DataFrame, options) -> dict:
    """Name of each claim without that of its result → the claim."""
    claims = layer_identification.claims(table, StageOptions(options, "claims", seed=0))
    return {claim.claim.partition(".")[2]: claim for claim in claims}


def verdicts(table: pd.DataFrame, options) -> dict[str, str]:
    return {name: claim.verdict for name, claim in claims_of(table, options).items()}


# Arithmetic and claims ------------------------------------------------------------------------------------------------


def test_a_layer_is_identified_if_the_same_layer_is_the_nearest_one_in_its_own_direction():
    """Distances from the layer count, not those to it, and a tie is no identification."""
    values = {
        (0, 1): [[0.1, 0.2, 0.3], [0.2, 0.2, 0.3], [0.1, 0.3, 0.2]],  # conv1 alone: conv2 ties with conv1
        (1, 0): [[0.1, 0.2, 0.3], [0.4, 0.3, 0.5], [0.9, 0.8, 0.7]],  # all three
    }
    names = LAYERS[:3]
    rows = [
        {"network_a": a, "layer_a": names[i], "network_b": b, "layer_b": names[j], "value": matrix[i][j]}
        for (a, b), matrix in values.items()
        for i in range(3)
        for j in range(3)
    ]
    table = pd.DataFrame(rows).assign(quantity="distance", measure="pwcca", relu="after")
    distances = Distances(table, "pwcca", "after")
    assert distances.layers == list(names)
    np.testing.assert_allclose(distances.identified(), [[0, 1 / 3], [1, 0]])
    assert distances.share().value == pytest.approx(2 / 3)
    np.testing.assert_allclose(distances.mean(), np.mean(list(values.values()), axis=0))


def test_the_interval_leaves_out_networks():
    """One network finds nothing in any other, and is not found: without it, the share is 1."""
    table = identification_table({"pwcca": 1.0}, relus=("after",))
    odd = (table["network_a"] == 4) | (table["network_b"] == 4)
    same = table["layer_a"] == table["layer_b"]
    share = Distances(table.assign(value=table["value"] + (odd & same)), "pwcca", "after").share()
    assert share.value == pytest.approx(12 / 20)
    np.testing.assert_allclose(share.without, [0.5] * 4 + [1.0])


def test_published_shares_are_reproduced(options):
    assert set(verdicts(identification_table(AS_PUBLISHED), options).values()) == {REPRODUCED}
    claims = claims_of(identification_table(AS_PUBLISHED), options)
    assert {name: claims[name].paper_value for name in ("mean_cca", "svcca", "pwcca", "linear_cka")} == PUBLISHED
    assert claims["linear_cka_over_pwcca"].paper_value == pytest.approx(0.882)
    assert np.isnan(claims["linear_cka_before_relu"].paper_value)


@pytest.mark.parametrize(
    ("change", "claim", "verdict"),
    [
        ({"linear_cka": 0.0}, "linear_cka", REVERSED),  # fewer than by chance
        ({"linear_cka": 0.0}, "linear_cka_chance", REVERSED),
        ({"linear_cka": 0.4}, "linear_cka", NOT_REPRODUCED),
        ({"linear_cka": 0.4}, "linear_cka_chance", REPRODUCED),
        ({"pwcca": 1.0}, "pwcca", NOT_REPRODUCED),
        ({"svcca": 1.0}, "svcca", NOT_REPRODUCED),
        ({"mean_cca": 1.0}, "mean_cca", NOT_REPRODUCED),
        ({"pwcca": 1.0, "linear_cka": 0.4}, "linear_cka_over_pwcca", REVERSED),
        ({"pwcca": 1.0, "linear_cka": 1.0}, "linear_cka_over_pwcca", NOT_REPRODUCED),
    ],
)
def test_other_shares_get_other_verdicts_on_both_sides_of_the_relu(options, change, claim, verdict):
    result = verdicts(identification_table(AS_PUBLISHED | change), options)
    assert result[claim] == result[f"{claim}_before_relu"] == verdict


def test_networks_that_differ_decide_nothing(options):
    result = verdicts(identification_table(AS_PUBLISHED | {"linear_cka": 0.8, "pwcca": 0.8}, spread=1), options)
    assert result["linear_cka"] == result["pwcca"] == INCONCLUSIVE


def test_two_networks_give_no_interval(options):
    assert set(verdicts(identification_table(AS_PUBLISHED, networks=2), options).values()) == {NOT_TESTABLE}


def test_without_layers_before_the_relu_the_claims_say_so(options):
    claims = claims_of(identification_table(AS_PUBLISHED, relus=("after",)), options)
    assert claims and not any(name.endswith("before_relu") for name in claims)
    assert all("the only ones that are compared" in claim.statistic for claim in claims.values())
    both = claims_of(identification_table(AS_PUBLISHED), options)
    assert not any("the only ones" in claim.statistic for claim in both.values())


def test_measures_that_are_left_out_make_no_claims_and_no_panels(options):
    table = identification_table({"pwcca": 0.2, "svcca": 0.2})
    few = options.with_changes({"measures": ("pwcca", "svcca")})
    assert {name.removesuffix("_before_relu") for name in claims_of(table, few)} == {"pwcca", "svcca"}
    figure = layer_identification.plot(table, pd.DataFrame(), StageOptions(few, "plot"))
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible() and axis.get_title()]
    assert titles == ["PWCCA, after the ReLU", "PWCCA, before the ReLU"]


# Config ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "named", "remedy"),
    [
        ("measures", ["pwcca", "cosine"], r"results\.layer_identification\.measures", "cosine compares neuron by"),
        ("measures", ["euclidean", "pwcca"], r"results\.layer_identification\.measures", "drop it"),
        ("measures", ["linear_cka"], r"results\.layer_identification\.measures", "lacks pwcca"),
        ("split", "valid", r"results\.layer_identification\.split", "choose one of train, test"),
        ("identifies", 1, r"results\.layer_identification\.identifies", "must be below 1"),
    ],
)
def test_bad_values_are_refused_by_key(default_config, key, value, named, remedy):
    with pytest.raises(ConfigError, match=rf"{named}.*{remedy}"):
        Study(changed(default_config, f"results.layer_identification.{key}", value)).cohorts_of("layer_identification")


def test_too_few_test_data_points_are_refused_where_they_are_compared(default_config):
    changed(default_config, "dataset.test_size", 120)
    with pytest.raises(ConfigError, match=r"dataset\.test_size: 120 data points are too few for a layer of 128"):
        Study(default_config).cohorts_of("layer_identification")
    changed(default_config, "results.layer_identification.split", "train")
    assert Study(default_config).cohorts_of("layer_identification")


def test_one_layer_has_none_to_confuse_it_with(default_config):
    default_config["results"]["generalization"]["network"] = {"channels": [32], "strides": [1]}
    default_config["targets"] = ["toy_noise"]
    with pytest.raises(ConfigError, match=r"results\.generalization\.network: a network with one layer"):
        Study(default_config).cohorts_of("layer_identification")


def test_the_measures_that_are_refused_are_those_of_layers_of_equal_width():
    assert set(CONTROLS) == {name for name, measure in MEASURES.items() if measure.neuron_by_neuron}


def test_the_cohort_is_that_of_generalization(default_config):
    study = Study(default_config)
    (cohort,) = study.cohorts_of("layer_identification")
    assert cohort in study.cohorts_of("generalization")
    ours = LayerRequest(epochs="final", splits=("test",), layers="all", before_relu=True)
    theirs = LayerRequest(epochs="final", splits=("train", "test"), layers="all")
    assert set(cohort.requests) == {ours, theirs}


def test_a_residual_network_is_compared_after_the_relu_alone(default_config):
    default_config["results"]["generalization"] |= {"early_layers": ["conv1"], "late_layers": ["block3", "block4"]}
    default_config["results"]["generalization"]["network"] = {"name": "resnet", "channels": [8, 16], "blocks": 2}
    default_config["targets"] = ["generalization"]
    (cohort,) = Study(default_config).cohorts_of("layer_identification")
    assert not any(request.before_relu for request in cohort.requests)


def test_requests_without_layers_before_the_relu_read_as_ever():
    request = LayerRequest(epochs="final", splits=("test",), layers="all")
    assert as_argument(request) == '{"epochs":"final","kind":"layers","layers":"all","points":null,"splits":["test"]}'
    with_them = request.with_changes({"before_relu": True})
    assert '"before_relu":true' in as_argument(with_them)
    for each in (request, with_them):
        assert decode(tuple[Request, ...], as_argument([each])) == (each,)


def test_layers_before_the_relu_are_counted_in_the_cost(default_config):
    config = Study(default_config).config
    data = cost._dataset(config)
    request = LayerRequest(epochs="final", splits=("test",), layers="all")
    (cohort,) = Study(default_config).cohorts_of("layer_identification")
    step = cost._training_step(cohort, data, "cpu")
    numbers = {}
    for before in (False, True):
        requests = (request.with_changes({"before_relu": before}),)
        asking = type(cohort)(**{**vars(cohort), "requests": requests})
        (extracted,) = counts.extractions(asking, data.sizes, step.architecture)
        numbers[before] = sum(extracted.neurons)
    widths = sum(cohort.network.channels)
    assert numbers == {False: widths + 10, True: 2 * widths + 10}


# Layers before the ReLU -----------------------------------------------------------------------------------------------

AFTER = LayerRequest(epochs="final", splits=("train", "test"), layers="all")
BEFORE = LayerRequest(epochs="final", splits=("test",), layers="all", before_relu=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """(dataset, networks): three networks of two layers of 5 and 6 neurons."""
    folder = tmp_path_factory.mktemp("identification")
    data = write_dataset(folder / "dataset.safetensors", 1)
    train_classifiers(classifier_recipe(), data, folder / "networks/generalizing/0-2")
    return data, folder / "networks/generalizing/0-2"


def extract(trained: tuple[Path, Path], out: Path, *requests: LayerRequest) -> Path:
    data, networks = trained
    extraction.extract(networks, data, out, requests=requests, report=lambda line: None)
    return out


def test_requests_for_other_layers_of_the_same_data_share_a_file(trained, tmp_path):
    some = LayerRequest(epochs="final", splits=("test",), layers=("conv2",), before_relu=True)
    conv1 = LayerRequest(epochs="final", splits=("test",), layers=("conv1",))
    folder = extract(trained, tmp_path / "out", some, conv1)
    (file,) = folder.rglob("*.safetensors")
    tensors, _ = read_tensors(file)
    assert set(tensors) == {"conv1", "conv2", "conv2 before ReLU"}


def test_layers_after_the_relu_are_the_same_bit_by_bit_and_others_do_not_see_the_new_ones(trained, tmp_path):
    alone, together = extract(trained, tmp_path / "a", AFTER), extract(trained, tmp_path / "b", AFTER, BEFORE)
    for split in ("train", "test"):
        before, after = (read_tensors(folder / split / "step-000009.safetensors")[0] for folder in (alone, together))
        more = {"conv1 before ReLU", "conv2 before ReLU"} if split == "test" else set()
        assert set(after) == set(before) | more
        assert all(torch.equal(after[layer], tensor) for layer, tensor in before.items())
        assert extraction.layers(together / split / "step-000009.safetensors") == ["conv1", "conv2", "softmax"]


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("lockstep", [True, False])
def test_the_relu_of_the_one_is_the_other(dimensions, lockstep):
    network = build(ConvNetOptions(channels=(5, 6), strides=(1, 2)), 2, (12, 8)[:dimensions], 3)
    state = network.initialise(np.random.default_rng(i) for i in range(2))
    with_both = Networks(extraction.WithLayersBeforeRelu(network.architecture))
    with_both.lockstep = lockstep
    maps = {}

    def record(layer, x):
        maps[layer] = x.clone()
        return x

    x = torch.randn(7, *(12, 8)[:dimensions], 2, generator=torch.Generator().manual_seed(0))
    logits = with_both._evaluate(state, x, record)
    torch.testing.assert_close(logits, network._evaluate(state, x))
    for layer in ("conv1", "conv2"):
        before = maps[extraction.before_relu(layer)]
        assert (before < 0).any() and torch.equal(before.relu(), maps[layer])


def test_stored_layers_before_the_relu_are_means_of_the_normalised_convolution(trained, tmp_path):
    """Against PyTorch's own convolution and batch norm, for the first layer of the second network."""
    file = extract(trained, tmp_path / "out", BEFORE) / "test/step-000009.safetensors"
    state, _ = read_tensors(trained[1] / "step-000009.safetensors")
    one = {name: tensor[1] for name, tensor in state.items()}
    x = functional.conv1d(datasets.load(trained[0]).test_x, one["conv1.weight"], padding=1)
    norm = [one[f"norm1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    expected = functional.batch_norm(x, *norm).mean(dim=-1)
    stored = extraction.load(file, extraction.before_relu("conv1"))
    assert stored.shape == (3, 20, 5)
    np.testing.assert_allclose(stored[1], expected, rtol=1e-4, atol=1e-5)


def test_a_residual_network_has_no_layers_before_the_relu(tmp_path):
    data = write_dataset(tmp_path / "dataset.safetensors", 1)
    recipe = classifier_recipe((0,), network=ResNetOptions(channels=(4,), blocks=1), epochs=1)
    train_classifiers(recipe.with_changes({"checkpoints": ()}), data, tmp_path / "networks")
    with pytest.raises(UserError, match="whose architecture is resnet; only convnet has them"):
        extract((data, tmp_path / "networks"), tmp_path / "out", BEFORE)
    assert not (tmp_path / "out").exists()


# From activations to the table ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(trained, tmp_path_factory) -> Inputs:
    """Both groups of results.generalization, which here are the same networks; only one has layers before the ReLU."""
    folder = tmp_path_factory.mktemp("activations")
    others = trained[1].parents[1] / "memorizing/0-2"
    shutil.copytree(trained[1], others)
    paths = [
        extract(trained, folder / "generalizing/0-2", AFTER, BEFORE),
        extract((trained[0], others), folder / "memorizing/0-2", AFTER),
    ]
    return Inputs.from_paths([trained[1], others], paths)


def test_the_table_has_all_layers_of_all_other_networks(inputs, options):
    few = options.with_changes({"measures": ("pwcca", "linear_cka")})
    table = layer_identification.compute(inputs, StageOptions(few, "compute", seed=0))
    index = ["relu", "measure", "network_a", "layer_a", "network_b", "layer_b"]
    assert len(table) == 2 * 2 * 6 * 2 * 2 and not table.duplicated(index).any()
    assert (table["network_a"] != table["network_b"]).all() and set(table["layer_a"]) == {"conv1", "conv2"}
    file = inputs.file("generalizing", 9, "test")
    for relu, name in (("after", "conv2"), ("before", "conv2 before ReLU")):
        x, y = extraction.load(file, name)[2], extraction.load(file, name.replace("2", "1"))[0]
        for measure in ("pwcca", "linear_cka"):
            result = MEASURES[measure].function(x, y)
            rows = select(table, relu=relu, measure=measure)
            (there,) = select(rows, network_a=2, layer_a="conv2", network_b=0, layer_b="conv1").to_dict("records")
            (back,) = select(rows, network_a=0, layer_a="conv1", network_b=2, layer_b="conv2")["value"]
            assert there["value"] == pytest.approx(result.distance, abs=1e-6)
            assert back == pytest.approx(result.reverse, abs=1e-6)
            assert (there["rank_a"], there["rank_b"], there["n"]) == (result.rank_x, result.rank_y, 20)
            assert np.isnan(there["floor"]) == (measure == "linear_cka")


def test_generalization_does_not_see_layers_before_the_relu(inputs, default_config):
    options = Study(default_config).options("generalization")
    options = options.with_changes({"measures": ("pwcca",), "train_sizes": ()})
    table = generalization.compute(inputs, StageOptions(options, "compute", seed=0))
    assert list(select(table, quantity="distance")["layer"].unique()) == ["conv1", "conv2", "softmax"]
    assert inputs.layers("generalizing", 9, "test") == ["conv1", "conv2", "softmax"]
