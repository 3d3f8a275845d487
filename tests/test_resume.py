"""Killed jobs resume where they stood, and what they make is the same, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from cca_dynamics import cli
from cca_dynamics.cli import INTERRUPTED
from cca_dynamics.config.cohorts import AblationRequest
from cca_dynamics.errors import Interrupted
from cca_dynamics.networks.convolutional import Networks
from cca_dynamics.representations import ablation
from cca_dynamics.runtime.storage import read_tensors
from cca_dynamics.training import classifiers, language_models, resume
from cca_dynamics.training.resume import Unfinished, resuming

from tests.builders import classifier_recipe, language_recipe, write_corpus, write_dataset


class Killed(Exception):
    """Stands for SIGKILL: nothing after it runs."""


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def killing_at(monkeypatch, *steps):
    """From now on work is killed when so many steps were done in all, after each save."""
    done, step = [0], Unfinished.step

    def counting(self, state):
        step(self, state)
        done[0] += 1
        if done[0] in steps:
            raise Killed

    monkeypatch.setattr(Unfinished, "step", counting)
    return done


ALL = dict.fromkeys(("embedding", "input", "hidden", "output", "weight"), 0.2)
AWD = {"dropout": ALL, "vary_windows": True, "activation_penalty": 2.0, "change_penalty": 1.0}
SIGNALS, IMAGES = (partial(write_dataset, dimensions=dimensions) for dimensions in (1, 2))
TEXT = partial(write_corpus, size=1200, valid=300)
RUNS = {
    "sgd": (classifiers.train, classifier_recipe(epochs=8, evaluate_every=3), SIGNALS),
    "adam": (classifiers.train, classifier_recipe(optimizer="adam", epochs=8), SIGNALS),
    "images": (classifiers.train, classifier_recipe((0, 1), epochs=8, augmentation="flip_and_shift"), IMAGES),
    "stopping": (
        classifiers.train,
        classifier_recipe(learning_rate=(0.05, 0.0005, 0.05), epochs=8, schedule="constant", stop_at_loss=0.9),
        SIGNALS,
    ),
    "lstm": (language_models.train, language_recipe(**AWD), TEXT),
    "averaging": (
        language_models.train,
        language_recipe(optimizer="nt_asgd", learning_rate=8.0, patience=1, epochs=4, **AWD),
        TEXT,
    ),
}
"""The function that trains, the recipe, and the function that writes the data."""


@pytest.fixture
def data(tmp_path_factory):
    """A dataset of signals, in a folder of its own."""
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset.safetensors", 1)


def train(recipe, data, out, **arguments) -> list[str]:
    """Train classifiers; returns what was reported."""
    lines = []
    classifiers.train(recipe, data, out, report=lines.append, **arguments)
    return lines


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("save_steps", [1, 4])
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, tmp_path_factory, monkeypatch, name, save_steps):
    train, recipe, write = RUNS[name]
    data = write(tmp_path_factory.mktemp("data") / "data.safetensors")
    train(recipe, data, tmp_path / "whole", report=lambda line: None)
    lines, attempt = [], 0
    done = killing_at(monkeypatch, 3, 8, 15, 22)
    while True:
        attempt += 1
        try:
            train(recipe, data, tmp_path / "killed", report=lines.append, save_steps=save_steps)
            break
        except Killed:
            assert not (tmp_path / "killed").exists()
    assert attempt == 5 and done[0] > 22
    assert sum(line.startswith("resuming from step") for line in lines) == (4 if save_steps == 1 else 3)
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["killed", "whole"]
    if name == "averaging":
        state = read_tensors(max((tmp_path / "whole").glob("step-*")))[0]
        assert all(tensor.isfinite().all() for tensor in state.values())


def test_without_a_save_training_begins_anew(tmp_path, data, monkeypatch):
    train(classifier_recipe(), data, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killing_at(patched, 5)
        train(classifier_recipe(), data, tmp_path / "killed")
    train(classifier_recipe(), data, tmp_path / "killed")
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


def test_a_run_that_has_stored_nothing_yet_resumes_too(tmp_path, data, monkeypatch):
    """Most cohorts keep their last step alone."""
    recipe = classifier_recipe().with_changes({"checkpoints": ()})
    train(recipe, data, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killing_at(patched, 5)
        train(recipe, data, tmp_path / "killed", save_steps=1)
    assert train(recipe, data, tmp_path / "killed")[0] == "resuming from step 5 (epoch 2 of 3)"
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "checkpoint", "no checkpoint", "no output", "garbage key"])
def test_damaged_saves_are_not_used(tmp_path, data, monkeypatch, damage):
    train(classifier_recipe(), data, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killing_at(patched, 9)
        train(classifier_recipe(), data, tmp_path / "killed", save_steps=1)
    folder = tmp_path / ".killed.unfinished"
    state = folder / "state.safetensors"
    content = state.read_bytes()
    if damage == "truncated":
        state.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        state.write_bytes(content[:-20] + bytes([content[-20] ^ 4]) + content[-19:])
    elif damage == "checkpoint":
        stored = folder / "output/step-000000.safetensors"
        stored.write_bytes(stored.read_bytes()[:-9])
    elif damage == "no checkpoint":
        (folder / "output/step-000000.safetensors").unlink()
    elif damage == "no output":
        shutil.rmtree(folder / "output")
    else:
        (folder / "key.json").write_bytes(b"\xff{")
    lines = train(classifier_recipe(), data, tmp_path / "killed")
    assert not any("resuming" in line for line in lines)
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


@pytest.mark.parametrize("content", [None, b"{}"])
def test_a_damaged_recipe_beside_a_save_is_written_again(tmp_path, data, monkeypatch, content):
    train(classifier_recipe(), data, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killing_at(patched, 5)
        train(classifier_recipe(), data, tmp_path / "killed", save_steps=1)
    path = tmp_path / ".killed.unfinished/output/recipe.json"
    path.unlink() if content is None else path.write_bytes(content)
    assert train(classifier_recipe(), data, tmp_path / "killed")[0] == "resuming from step 5 (epoch 2 of 3)"
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


def test_saves_of_other_recipes_data_or_code_are_not_used(tmp_path, data, monkeypatch):
    def train_half(**changes):
        recipe = classifier_recipe().with_changes(changes)
        with monkeypatch.context() as patched, pytest.raises(Killed):
            killing_at(patched, 9)
            train(recipe, data, tmp_path / "out", save_steps=1)

    def resumes(data=data) -> bool:
        lines = train(classifier_recipe(), data, tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
        return any("resuming" in line for line in lines)

    train_half()
    assert resumes()
    train_half(seed=2)
    assert not resumes()
    train_half()
    assert not resumes(write_dataset(data.with_name("other.safetensors"), 1, train=61))
    train_half()
    monkeypatch.setattr(resume, "code_fingerprint", lambda *entries, **selected: "edited")
    assert not resumes()


def test_ablation_resumes_from_its_finished_networks(tmp_path, data, monkeypatch):
    train(classifier_recipe(range(5)), data, tmp_path / "networks")
    request = AblationRequest(layers=("conv1", "conv2"), orders=3, levels=5, points=40)

    def ablate(name):
        arguments = {"request": request, "report": lambda line: None, "save_steps": 1}
        ablation.ablate(tmp_path / "networks", data, tmp_path / name, **arguments)

    ablate("whole.parquet")
    computed, accuracy = [], Networks.accuracy_without
    monkeypatch.setattr(Networks, "accuracy_without", lambda *a, **k: computed.append(1) or accuracy(*a, **k))
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killing_at(patched, 3)
        ablate("killed.parquet")
    first = len(computed)
    ablate("killed.parquet")
    assert len(computed) == first / 3 * 5
    assert (tmp_path / "whole.parquet").read_bytes() == (tmp_path / "killed.parquet").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_job_that_is_interrupted_saves_and_says_so(tmp_path, data, number):
    recipe = classifier_recipe(epochs=4000, evaluate_every=4000).model_dump_json()
    command = [sys.executable, "-m", "cca_dynamics.cli", "train", "--data", str(data), "--recipe", recipe]
    command += ["--out", str(tmp_path / "out"), "--device", "cpu", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while "epoch 3/" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED and error.splitlines()[-1].startswith(
        "interrupted; nothing is half-written"
    )
    assert "Traceback" not in error and not (tmp_path / "out").exists()
    _, metadata = Unfinished(tmp_path / ".out.unfinished").load()
    assert metadata["step"] >= 3


def test_a_command_that_keeps_nothing_leaves_nothing(tmp_path, capsys, monkeypatch):
    def verdicts(options):
        """Interrupted while it runs."""
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(cli, "verdicts", verdicts)
    assert cli.main(["verdicts", "x"]) == INTERRUPTED
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_process_waits_for_the_first(tmp_path):
    events = []

    def work(name, seconds):
        with resuming(tmp_path / "out", {}, report=lambda line: events.append(line)) as mine:
            events.append(f"{name} begins")
            time.sleep(seconds)
            mine.output.write_text(name)
            events.append(f"{name} ends")

    first = threading.Thread(target=work, args=("first", 1.2))
    first.start()
    time.sleep(0.3)
    work("second", 0)
    first.join()
    assert events[0] == "first begins" and events[-3:] == ["first ends", "second begins", "second ends"]
    assert any("another process is at work on out" in event for event in events)
    assert (tmp_path / "out").read_text() == "second" and len(list(tmp_path.iterdir())) == 1


def test_saves_follow_time_and_steps(tmp_path, monkeypatch):
    now, saved = [0.0], []
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        Unfinished, "save", lambda self, tensors, **metadata: saved.append(metadata["at"]) or reset(self)
    )

    def reset(work):
        work._time_of_save, work._steps_since_save = now[0], 0

    def go(work, seconds):
        saved.clear()
        for at in range(12):
            now[0] += seconds
            work.step(lambda at=at: ({}, {"at": at}))
        return list(saved)

    assert go(Unfinished(tmp_path, minutes=1), 25) == [2, 5, 8, 11]
    assert go(Unfinished(tmp_path, minutes=1, steps=5), 1) == [4, 9]
    assert go(Unfinished(tmp_path, minutes=10), 1) == []
    interrupted = Unfinished(tmp_path, minutes=10)
    interrupted.interrupt()
    with pytest.raises(Interrupted):
        go(interrupted, 1)
    assert saved == [0]


def test_state_is_replaced_whole(tmp_path):
    work = Unfinished(tmp_path)
    work.save({"x": torch.arange(3)}, step=1)
    with pytest.raises(TypeError):
        work.save({"x": torch.arange(4)}, step=np)
    tensors, metadata = work.load()
    assert metadata["step"] == 1 and tensors["x"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
