"""A network whose numbers go bad stops alone, is left out everywhere, and is reported."""

import numpy as np
import pandas as pd
import pytest
import torch
from cca_dynamics import cli
from cca_dynamics.config.base import as_argument
from cca_dynamics.config.cohorts import AblationRequest, SweepTraining
from cca_dynamics.errors import UserError
from cca_dynamics.representations import ablation, extraction
from cca_dynamics.results import figures
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.tables import caveats, distance_table, tidy
from cca_dynamics.runtime.storage import write_contents
from cca_dynamics.similarity import DegenerateCCAWarning
from cca_dynamics.study import Study
from cca_dynamics.training import language_models

from tests.builders import (
    classifier_recipe,
    language_recipe,
    train_classifiers,
    train_language_models,
    write_corpus,
    write_dataset,
)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_one_network_that_diverges_touches_no_other(tmp_path, optimizer):
    """Network 1 of three has a learning rate at which its weights overflow; the others are as they are without it."""
    data = write_dataset(tmp_path / "dataset.safetensors", 1)

    def recipe(*rates: float):
        return classifier_recipe(batch_norm=False, optimizer=optimizer, learning_rate=rates, weight_decay=0.0)

    state, history, lines = train_classifiers(recipe(0.05, 1e30, 0.05), data, tmp_path / "three")
    assert sum("network 1 diverged in step" in line for line in lines) == 1
    assert not any("nan" in line for line in lines)
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert history[history["network"] == 1]["loss"].iloc[-1:].isna().all()
    assert history[history["network"] != 1].notna().all().all()
    without, _, _ = train_classifiers(recipe(0.05, 0.05, 0.05), data, tmp_path / "calm")
    for name, tensor in state.items():
        assert torch.equal(tensor[[0, 2]], without[name][[0, 2]]), name


def test_a_language_model_that_diverges_touches_no_other(tmp_path, monkeypatch):
    """The gradient of network 0 becomes nan in the fourth step."""
    data, calls = write_corpus(tmp_path / "corpus.safetensors"), []
    window_gradients = language_models.window_gradients

    def poisoned(*arguments):
        losses, gradients, carried = window_gradients(*arguments)
        calls.append(1)
        if len(calls) >= 4:
            gradients[0, 5] = torch.nan
        return losses, gradients, carried

    calm, _, _ = train_language_models(language_recipe(), data, tmp_path / "calm")
    monkeypatch.setattr(language_models, "window_gradients", poisoned)
    state, history, lines = train_language_models(language_recipe(), data, tmp_path / "bad")
    assert sum("network 0 diverged in step 3" in line for line in lines) == 1
    assert not any("nan" in line for line in lines)
    assert history[(history["network"] == 0) & (history["epoch"] > 0)]["valid_loss"].isna().all()
    for name, tensor in state.items():
        assert torch.equal(tensor[1], calm[name][1]) and tensor[0].isfinite().all()


@pytest.fixture
def width_inputs(tmp_path, default_config):
    """Three widths of five small networks; one of the middle width diverged."""
    config = default_config
    config |= {"targets": ["width"], "results": {"width": config["results"]["width"]}}
    config["network"]["channels"] = [4, 4, 6, 6, 8]
    config["training"] |= {"batch_size": 16, "epochs": 2}
    config["results"]["width"] |= {"filters": 3, "multipliers": [0.5, 1, 2], "networks": 4, "layer": "conv5"}
    config["results"]["width"]["training"] = {"epochs": 2, "evaluate_every": 1}
    study = Study(config)
    data, paths = write_dataset(tmp_path / "dataset.safetensors", 1), {"networks": [], "activations": []}
    for cohort in study.cohorts_of("width"):
        recipe = cohort.recipe("0-3", 0)
        if cohort.name == "width-1":
            training = SweepTraining(**{**dict(recipe.training), "learning_rate": (0.1, 0.1, 1e38, 0.1)})
            network = recipe.network.with_changes({"batch_norm": False})
            recipe = recipe.with_changes({"training": training, "network": network})
        networks, activations = (tmp_path / kind / cohort.name / "0-3" for kind in paths)
        train_classifiers(recipe, data, networks)
        extraction.extract(networks, data, activations, requests=cohort.requests, report=lambda line: None)
        paths["networks"].append(networks)
        paths["activations"].append(activations)
    return study, paths


def test_results_leave_it_out_and_say_so(tmp_path, width_inputs, monkeypatch):
    study, paths = width_inputs
    inputs = Inputs.from_paths(paths["networks"], paths["activations"])
    assert inputs.trained("width-1").tolist() == [0, 1, 3] and inputs.trained("width-2").tolist() == [0, 1, 2, 3]
    assert inputs.diverged().to_dict("records") == [{"quantity": "diverged", "cohort": "width-1", "value": 2.0}]
    layer, step = study.options("width").layer, inputs.checkpoints("width-1")[-1][0]
    for network, states in enumerate(inputs.representations("width-1", layer, step)):
        one = inputs.representation("width-1", layer, step, network, rows=slice(1, None, 2))
        np.testing.assert_array_equal(one, states[1::2])
    assert inputs.history("width-1")["network"].unique().tolist() == [0, 1, 2]
    out, claims_file, notes = tmp_path / "width.parquet", tmp_path / "claims.csv", []

    def run(stage: str, *arguments: str) -> int:
        return cli.main([stage, "width", "--options", as_argument(study.options("width").read_by(stage)), *arguments])

    folders = ["--networks", *map(str, paths["networks"]), "--activations", *map(str, paths["activations"])]
    assert run("compute", "--seed", "0", *folders, "--out", str(out), "--device", "cpu") == 0
    table = pd.read_parquet(out)
    pairs = table[(table["quantity"] == "distance") & (table["measure"] == "pwcca") & (table["state"] == "trained")]
    assert pairs.groupby("multiplier").size().tolist() == [12, 6, 12] and pairs["value"].notna().all()
    assert run("claims", "--seed", "0", "--table", str(out), "--out", str(claims_file)) == 0
    claims = pd.read_csv(claims_file)
    assert claims["statistic"].str.endswith("left out because diverged: network 2 of width-1").all()
    monkeypatch.setattr(figures, "footnote", lambda figure, notes_of_figure: notes.append(notes_of_figure))
    assert run("plot", "--table", str(out), "--claims", str(claims_file), "--out", str(tmp_path / "width.png")) == 0
    assert notes == [["left out because diverged: network 2 of width-1"]] and (tmp_path / "width.png").exists()


def test_too_few_survivors_are_refused(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name / "0-2").mkdir(parents=True)
        loss = [np.nan, np.nan, 0.5] if name == "a" else [0.1, 0.2, 0.3]
        table = pd.DataFrame({"step": 5, "epoch": 1.0, "network": range(3), "loss": loss})
        table.to_parquet(tmp_path / name / "0-2/history.parquet")
        write_contents(tmp_path / name / "0-2")
    inputs = Inputs.from_paths([tmp_path / "a/0-2", tmp_path / "b/0-2"], [])
    assert inputs.trained("b").tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="2 of the 3 networks of a diverged; lower their learning rate"):
        inputs.trained("a")


def test_ablation_of_a_cohort_with_a_diverged_network_runs(tmp_path):
    data = write_dataset(tmp_path / "dataset.safetensors", 1)
    recipe = classifier_recipe(batch_norm=False, learning_rate=(0.05, 1e30, 0.05))
    train_classifiers(recipe, data, tmp_path / "c/0-2")
    request = AblationRequest(layers=("conv1",), orders=2, levels=3, points=30)
    ablation.ablate(tmp_path / "c/0-2", data, tmp_path / "c/0-2.parquet", request=request, report=lambda line: None)
    inputs = Inputs({"c": [tmp_path / "c/0-2"]}, {}, {"c": [tmp_path / "c/0-2.parquet"]})
    assert inputs.ablation("c")["network"].unique().tolist() == [0, 1] and inputs.ablation("c").notna().all().all()


def test_dead_layers_and_forced_correlations_are_counted(rng):
    layers = rng.normal(size=(2, 100, 60))
    with pytest.warns(DegenerateCCAWarning):
        table = tidy([distance_table([*layers, np.ones((100, 60))], ["pwcca", "cosine"])])
    forced = table.groupby("measure")["forced"].max()
    assert forced["pwcca"] == 60 + 60 - 99 and pd.isna(forced["cosine"])
    assert caveats(table) == [
        "8 of 12 comparisons have a layer without variance (dead)",
        "in 2 of 12 comparisons up to 21 correlations are exactly 1 because the ranks exceed n - 1 (too few data "
        "points)",
    ]
    assert caveats(tidy([distance_table(list(layers[..., :40]), ["pwcca", "cosine"])])) == []
