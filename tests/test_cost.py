"""What a study costs: counted as the workflow will run it."""

import functools
import json
import re

import pandas as pd
import pytest
import torch
from cca_dynamics import cost
from cca_dynamics.config.cohorts import LanguageNetwork
from cca_dynamics.config.models import ConvNetOptions, Training
from cca_dynamics.data import corpora
from cca_dynamics.study import Study, read_config
from threadpoolctl import threadpool_info, threadpool_limits

from tests.builders import ROOT

SECONDS_TO_IMPORT = functools.cache(cost._seconds_to_import)


@pytest.fixture
def quick(monkeypatch):
    """Measure for a tenth of a second, and only once how long imports take."""
    monkeypatch.setattr(cost, "CALIBRATION", 0.1)
    monkeypatch.setattr(cost, "_seconds_to_import", SECONDS_TO_IMPORT)


def works(config: dict) -> dict[str, pd.Series]:
    """Rule → what it takes."""
    return dict(cost.estimate(Study(config), "cpu", lambda line: None).iterrows())


def step(network, batch_size: int = 16, window: int = 1) -> cost.TrainingStep:
    """The training step of a classifier of 32 × 32 images, or of a language model."""
    if isinstance(network, ConvNetOptions):
        return cost.TrainingStep(network, cost.describe(network, 3, (32, 32), 10), batch_size)
    return cost.TrainingStep(network, cost.describe_language_model(network, 2000), batch_size, window)


def smoke(**training) -> dict:
    config = read_config([ROOT / "studies/smoke.yaml"], ROOT / "config.yaml")
    config["targets"] = ["width", "clusters", "toy_noise"]
    for name in config["targets"][:2]:
        config["results"][name]["training"].update(training)
    return config


def test_jobs_and_networks_are_those_of_the_study(quick):
    config = smoke() | {"networks_per_job": 4}
    study, found = Study(config), works(config)
    cohorts = [cohort for target in study.targets for cohort in study.cohorts_of(target)]
    parts = sum(len(study.parts(cohort.name)) for cohort in cohorts)
    assert parts == 3 + 3  # three widths of 2 networks, a sweep of 10 by 4
    assert found["train"].jobs == found["activations"].jobs == parts and found["ablation"].jobs == 3
    assert found["train"].networks == 16 and found["ablation"].networks == 10
    assert found["compute"].jobs == 3 and found["dataset"].jobs == 1
    assert found["test_claims, plot, claims"].jobs == 7
    for work in found.values():
        assert 0 < work.longest <= work.seconds and work.disk >= 0


def test_operations_and_disk_are_counted(quick):
    once, twice = works(smoke(epochs=2, evaluate_every=100)), works(smoke(epochs=4, evaluate_every=100))
    study = Study(smoke())
    trained = evaluated = disk = 0
    for cohort in (cohort for target in study.targets for cohort in study.cohorts_of(target)):
        network = cost.describe(cohort.network, 1, (40,), 10)
        trained += cohort.networks * 2 * 400 * network.training_operations
        evaluated += cohort.networks * 2 * (400 + 200) * network.operations  # before and after
        disk += cohort.networks * (1 + len(cohort.checkpoints)) * network.parameters * 4
    assert once["train"].operations == trained + evaluated
    assert twice["train"].operations == 2 * trained + evaluated
    assert once["train"].disk == disk


def test_language_models_are_counted(quick):
    config = smoke() | {"targets": ["recurrent_training", "recurrent_sequence"]}
    study, found = Study(config), works(config)
    tokens, held_out, vocabulary = corpora.size_of(study.config.corpus)
    epochs = study.config.language_training.epochs
    trained = evaluated = disk = 0
    for cohort in study.cohorts_of("recurrent_training"):
        model = cost.describe_language_model(cohort.network, vocabulary)
        trained += cohort.networks * epochs * tokens * model.training_operations
        evaluated += cohort.networks * (epochs + 1) * held_out * model.operations
        disk += cohort.networks * len(cohort.checkpoints) * model.parameters * 4
    # The text is read in columns of equal length; the few tokens beyond them are left out.
    assert found["train"].operations == pytest.approx(trained + evaluated, rel=3e-3)
    assert found["train"].disk == disk
    assert found["corpus"].jobs == 1 and "dataset" not in found
    assert found["train"].seconds > 0 and found["compute"].jobs == 2
    # hidden states: 200 tokens at every checkpoint, of which the first epoch has two more,
    # 5 positions of 50 sequences, 5 repeats after two starts and after none
    shallow, deeper = 2 * (6 + 6), 2 * (6 + 6 + 6)
    numbers = (1 + epochs + 2) * 200 * (shallow + deeper) + 250 * shallow + 3 * 250 * shallow
    assert found["activations"].disk == 4 * numbers


def test_a_language_model_too_large_to_measure_is_measured_on_a_short_window():
    large = step(LanguageNetwork(embedding=512, sizes=(1024,), tied=False), 64, 10_000)
    seconds, _ = cost._time_language_model(large, "cpu", 0.5)
    model = large.architecture
    assert model.training_operations / 1e13 < seconds < model.training_operations / 1e8


def test_memory_grows_with_networks_and_width():
    def memory(networks: int, width: int, device: str) -> float:
        network = cost.describe(ConvNetOptions(channels=[width] * 2, strides=[1, 1]), 3, (32, 32), 10)
        options = Training(batch_size=32, optimizer="adam")
        return cost.training_memory(network, options, networks, device, False)

    assert memory(1, 128, "cuda") < memory(2, 128, "cuda") < memory(2, 256, "cuda")
    # A CPU holds what the backward pass needs of one network at a time, and all of their parameters.
    parameters = (3 * 64 * 9 + 64 * 64 * 9 + 4 * 64 + 650) * 4 * 5
    assert memory(3, 64, "cpu") - memory(2, 64, "cpu") == pytest.approx(parameters, rel=0.01)


def test_what_cannot_be_measured_in_time_is_extrapolated(monkeypatch):
    monkeypatch.setattr(cost, "CALIBRATION", 5.0)
    measured = []
    time_classifiers = cost._time_classifiers
    monkeypatch.setattr(cost, "_time_classifiers", lambda s, *how: measured.append(s) or time_classifiers(s, *how))
    small, middle, huge = (step(ConvNetOptions(channels=[width] * 2, strides=[1, 1])) for width in (4, 8, 4096))
    speeds = cost.measure("cpu", [small, middle, huge], 10).speeds
    assert measured == [small, middle] and set(speeds) == {small, middle, huge}
    ratio = huge.architecture.training_operations / middle.architecture.training_operations
    assert speeds[huge][0] == pytest.approx(speeds[middle][0] * ratio)
    assert speeds[huge][1] > speeds[middle][1] > 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (600, "10 min"), (7200, "2 h"), (400_000, "4.6 days"), (0.2, "0 s")]
)
def test_durations_read_well(seconds, text):
    assert cost.duration(seconds) == text


def test_the_whole_run_is_no_shorter_than_its_chain():
    works = pd.DataFrame({"seconds": [40, 3], "longest": [25, 3]}, index=["train", "compute"])
    assert cost.wall_clock(works, 1) == 43 and cost.wall_clock(works, 4) == 28


def test_disk_at_its_fullest_and_afterwards():
    works = pd.DataFrame({"disk": [2e9, 5e9, 1e9]}, index=["train", "activations", "compute"])
    assert cost.disk_use(works, True) == "Disk: 8 GB, all of which is kept."
    assert cost.disk_use(works, False).startswith("Disk: at most 8 GB while it runs; 3 GB are kept")


def test_command_and_target_print_the_table(capsys, monkeypatch, quick):
    from cca_dynamics import cli

    monkeypatch.chdir(ROOT)
    assert cli.main(["plan", "--configfile", "studies/smoke.yaml", "--device", "cpu", "--cores", "2"]) == 0
    text = capsys.readouterr().out
    for rule in ("dataset", "train", "activations", "ablation", "compute", "the whole run"):
        assert re.search(rf"^{rule} ", text, re.MULTILINE)
    assert "Networks of clusters and grounding may stop early (stop_at_loss)" in text
    assert "2 jobs side by side" in text and re.search(r"^Disk: .+ all of which is kept", text, re.MULTILINE)
    assert cli.main(["plan", "--whole-config", json.dumps({"sede": 1}), "--device", "cpu"]) == 1
    assert "sede" in capsys.readouterr().err
    smoke = ["plan", "--configfile", "studies/smoke.yaml", "--device", "cpu"]
    assert cli.main([*smoke, "--config", "networks_per_job=1", "targets=[width]"]) == 0
    assert re.search(r"^train +(\d+) +\1 ", capsys.readouterr().out, re.MULTILINE)  # as many jobs as networks
    assert cli.main([*smoke, "--config", "networks_per_job"]) == 1
    assert "--config networks_per_job is not KEY=VALUE" in capsys.readouterr().err
    assert cli.main(["plan", "--configfile", "studies/nowhere.yaml", "--device", "cpu"]) == 1
    assert "studies/nowhere.yaml cannot be read" in capsys.readouterr().err


def test_steps_are_timed_in_one_thread_as_jobs_are(quick, monkeypatch):
    """Those of NumPy's products among them."""
    seen = []

    def threads() -> set[int]:
        numpy = {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}
        return numpy | {torch.get_num_threads()}

    monkeypatch.setattr(cost, "_time_classifiers", lambda *_: seen.append(threads()) or (1.0, 1.0))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threadpool_limits(2, user_api="blas"):
            cost.measure("cpu", [step(ConvNetOptions(channels=(4,), strides=(1,)))], 10)
            assert seen == [{1}] and threads() == {2}
    finally:
        torch.set_num_threads(before)
