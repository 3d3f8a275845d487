"""The same numbers on a GPU as on a CPU, and the same every time. `benchmarks/gpu.sh tests` runs this module alone."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from cca_dynamics.config.cohorts import LayerRequest
from cca_dynamics.config.models import ConvNetOptions
from cca_dynamics.data import datasets
from cca_dynamics.networks.convolutional import build, channels_last
from cca_dynamics.representations import extraction
from cca_dynamics.runtime import gpus
from cca_dynamics.runtime.storage import read_tensors
from cca_dynamics.similarity import MEASURES, Moments, interval, pairwise, permutation_test, pwcca
from cca_dynamics.training import classifiers, language_models
from cca_dynamics.training.cuda_graphs import CudaGraphs

from tests.builders import (
    SMOKE,
    classifier_recipe,
    copy_workflow,
    language_recipe,
    snakemake,
    write_corpus,
    write_dataset,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU"),
]


@pytest.fixture(scope="module", autouse=True)
def reproducible():
    gpus.compute_reproducibly()


@pytest.fixture(scope="module")
def layers():
    """Layers of unequal widths that share directions, two of them neurons, so that correlations are tied."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(400, 12))
    made = [shared @ rng.normal(size=(12, d)) + rng.normal(size=(400, d)) for d in (20, 20, 33)]
    made[1][:, :3] = made[0][:, :3]
    return made


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_gives_the_same_distances(layers, measure):
    layers = layers[:2] if MEASURES[measure].neuron_by_neuron else layers
    np.testing.assert_allclose(
        pairwise(layers, measure, device="cuda"), pairwise(layers, measure, device="cpu"), atol=1e-9
    )


@pytest.mark.parametrize("threads", [1, 4])
def test_small_decompositions_are_the_same_wherever_they_are_done(threads):
    rng, before = np.random.default_rng(2), torch.get_num_threads()
    many = [rng.normal(size=(300, 20)) @ rng.normal(size=(20, 60)) + rng.normal(size=(300, 60)) for _ in range(8)]
    torch.set_num_threads(threads)
    try:
        for measure in ("pwcca", "mean_cca", "procrustes"):
            np.testing.assert_allclose(pairwise(many, measure, device="cuda"), pairwise(many, measure), atol=1e-9)
    finally:
        torch.set_num_threads(before)


def test_tensors_on_a_gpu_are_read_where_they_are(layers):
    x, y = (torch.tensor(layer, device="cuda") for layer in layers[:2])
    assert pwcca(x, y, device="cuda").distance == pytest.approx(pwcca(*layers[:2]).distance, abs=1e-9)


def test_inference_and_moments_give_the_same(layers):
    x, y = layers[:2]
    for function, names in ((permutation_test, ("p_value", "critical")), (interval, ("low", "high"))):
        there, here = (function(x, y, device=device) for device in ("cuda", "cpu"))
        for name in names:
            assert getattr(there, name) == pytest.approx(getattr(here, name), abs=1e-8)
    moments = Moments("cuda")
    for part in range(0, len(x), 100):
        moments.update(x[part : part + 100], y[part : part + 100])
    assert moments.distance("pwcca") == pytest.approx(pwcca(x, y).distance, abs=1e-8)


def recipes():
    """(name, recipe, dimensions of the data): in lockstep, and one by one as CUDA graphs."""
    stopping = {"learning_rate": (0.05, 0.0005, 0.05), "epochs": 12, "schedule": "constant", "stop_at_loss": 0.7}
    images = ConvNetOptions(channels=(64, 6, 129), strides=(1, 2, 1))  # whose parameters begin at odd addresses
    return [
        pytest.param(classifier_recipe(), 1, id="lockstep"),
        pytest.param(classifier_recipe(optimizer="adam", precision="mixed", network=images), 2, id="graphs"),
        pytest.param(classifier_recipe(network=images), 2, id="graphs-float32"),
        pytest.param(
            classifier_recipe(precision="mixed", network=images, augmentation="flip_and_shift", **stopping),
            2,
            id="graphs-stopping",
        ),
    ]


@pytest.mark.parametrize(("recipe", "dimensions"), recipes())
def test_training_twice_is_bit_identical(tmp_path, recipe, dimensions):
    data = write_dataset(tmp_path / "data" / "dataset.safetensors", dimensions)
    finals = []
    for name in ("first", "second"):
        classifiers.train(recipe, data, tmp_path / name, device="cuda", report=lambda line: None)
        finals.append(read_tensors(max((tmp_path / name).glob("step-*.safetensors")))[0])
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


@pytest.mark.parametrize(("recipe", "dimensions"), recipes())
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, monkeypatch, recipe, dimensions):
    data = write_dataset(tmp_path / "data" / "dataset.safetensors", dimensions)
    classifiers.train(recipe, data, tmp_path / "whole", device="cuda", report=lambda line: None)
    gradients, calls = classifiers.batch_gradients, []

    def killed(*arguments, **more):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return gradients(*arguments, **more)

    monkeypatch.setattr(classifiers, "batch_gradients", killed)
    with pytest.raises(KeyboardInterrupt):
        classifiers.train(recipe, data, tmp_path / "killed", device="cuda", report=lambda line: None, save_steps=1)
    lines = []
    classifiers.train(recipe, data, tmp_path / "killed", device="cuda", report=lines.append, save_steps=1)
    assert lines[0].startswith("resuming from step 5")
    whole, resumed = (
        read_tensors(max((tmp_path / name).glob("step-*.safetensors")))[0] for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_training_is_that_of_a_cpu(tmp_path):
    """Up to rounding, which a few steps do not amplify much."""
    for dimensions in (1, 2):
        data = write_dataset(tmp_path / f"data{dimensions}" / "dataset.safetensors", dimensions)
        finals = []
        for device in ("cpu", "cuda"):
            out = tmp_path / f"{device}{dimensions}"
            classifiers.train(classifier_recipe(epochs=2), data, out, device=device, report=lambda line: None)
            finals.append(read_tensors(max(out.glob("step-*.safetensors")))[0])
        for name in finals[0]:
            torch.testing.assert_close(finals[0][name], finals[1][name], rtol=1e-3, atol=1e-4)


def test_graphs_compute_what_plain_passes_do():
    """Losses, gradients and running statistics over some steps, with other batches in each."""
    options = ConvNetOptions(channels=(8, 8), strides=(1, 2))
    network = build(options, 3, (8, 8), 4, "cuda", mixed=True)
    x = channels_last(torch.randn(64, 3, 8, 8, device="cuda"))
    y = torch.randint(4, (64,), device="cuda")
    results = []
    for map_passes in (map, CudaGraphs()):
        initial = network.initialise(np.random.default_rng(i) for i in range(3))
        parameters = classifiers.stack_parameters(network, {k: v.cuda() for k, v in initial.items()}, 16)
        generator = torch.Generator().manual_seed(0)
        for step in range(5):
            batch = torch.randint(64, (3, 16), generator=generator).cuda()
            only = torch.tensor([0, 2]) if step == 3 else None
            losses, gradients = classifiers.batch_gradients(
                network, parameters, x, y, batch, only=only, map_passes=map_passes
            )
            parameters.values.data.add_(gradients, alpha=-0.1)  # noqa: PD011
        results.append((losses.clone(), parameters.values.clone(), *parameters.statistics.values()))  # noqa: PD011
    for plain, recorded in zip(*results, strict=True):
        assert torch.equal(plain, recorded)


def test_images_are_normalised_on_a_gpu_bit_for_bit_as_on_a_cpu():
    images = torch.arange(256, dtype=torch.uint8).expand(3, -1).T.reshape(16, 4, 4, 3)
    there = datasets.Normalisation.of_channels([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616], (4, 4))
    assert torch.equal(there.to("cuda")(images.cuda()).cpu(), there(images))


@pytest.mark.parametrize("mixed", [False, True])
def test_images_train_as_graphs_as_they_do_by_plain_passes(mixed):
    """The bytes lie on the GPU, and each recorded pass normalises its batch."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (64, 8, 8, 3), dtype=torch.uint8, generator=generator).cuda()
    y = torch.randint(4, (64,), generator=generator).cuda()
    normalise = datasets.Normalisation.of_channels([0.5] * 3, [0.25] * 3, (8, 8)).to("cuda")
    network = build(ConvNetOptions(channels=(8, 129), strides=(1, 2)), 3, (8, 8), 4, "cuda", mixed, normalise)
    results = []
    for map_passes in (map, CudaGraphs()):
        initial = network.initialise(np.random.default_rng(i) for i in range(3))
        parameters = classifiers.stack_parameters(network, {k: v.cuda() for k, v in initial.items()}, 16)
        for step in range(5):
            batch = torch.randint(64, (3, 16), generator=torch.Generator().manual_seed(step)).cuda()
            losses, gradients = classifiers.batch_gradients(network, parameters, x, y, batch, map_passes=map_passes)
            parameters.values.data.add_(gradients, alpha=-0.1)  # noqa: PD011
        results.append((losses.clone(), parameters.values.clone()))  # noqa: PD011
    for plain, recorded in zip(*results, strict=True):
        assert torch.equal(plain, recorded)


def test_a_diverged_network_is_frozen_alone(tmp_path):
    data = write_dataset(tmp_path / "data" / "dataset.safetensors", 2)
    network = ConvNetOptions(channels=(4, 4), strides=(1, 2), batch_norm=False)
    recipe = classifier_recipe(network=network, learning_rate=(0.05, 1e30, 0.05), epochs=4)
    lines = []
    classifiers.train(recipe, data, tmp_path / "out", device="cuda", report=lines.append)
    assert sum("network 1 diverged in step" in line for line in lines) == 1
    history = pd.read_parquet(tmp_path / "out" / "history.parquet").set_index("network")
    assert np.isnan(history.loc[1, "loss"].iloc[-1]) and history.loc[[0, 2], "loss"].notna().all()


def test_language_models_train_as_on_a_cpu(tmp_path):
    data = write_corpus(tmp_path / "data" / "corpus.safetensors")
    losses = []
    for device in ("cpu", "cuda"):
        recipe = language_recipe(epochs=2, dropout={"input": 0.1, "hidden": 0.1, "output": 0.1})
        language_models.train(recipe, data, tmp_path / device, device=device, report=lambda line: None)
        losses.append(pd.read_parquet(tmp_path / device / "history.parquet")["valid_loss"])
    np.testing.assert_allclose(*losses, rtol=5e-3)


def test_activations_are_those_of_a_cpu(tmp_path):
    data = write_dataset(tmp_path / "data" / "dataset.safetensors", 2)
    classifiers.train(classifier_recipe(), data, tmp_path / "networks", report=lambda line: None)
    request = LayerRequest(layers="all", epochs="final", splits=("test",))
    for device in ("cpu", "cuda"):
        extraction.extract(
            tmp_path / "networks", data, tmp_path / device, requests=[request], device=device, report=lambda line: None
        )
    files = [max((tmp_path / device).rglob("step-*.safetensors")) for device in ("cpu", "cuda")]
    here, there = (read_tensors(file)[0] for file in files)
    for name in here:
        torch.testing.assert_close(here[name], there[name], rtol=1e-4, atol=1e-5)


def test_the_smoke_study_runs(tmp_path):
    """Every result, from the data to the claims, by the workflow itself."""
    folder = copy_workflow(tmp_path / "copy")
    run = snakemake(folder, *SMOKE, "results/smoke/claims.csv", "--config", "device=cuda", timeout=500)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    claims = pd.read_csv(folder / "results/smoke/claims.csv")
    assert len(claims) and claims["verdict"].notna().all()
    recipes_found = list(folder.glob("results/smoke/networks/*/*/recipe.json"))
    assert all(json.loads(path.read_text()) for path in recipes_found)
