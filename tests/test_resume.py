"""Killed jobs go on where they stood, and what they make is the same, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from cca_dynamics import ablation, cli, language, resume, training
from cca_dynamics.corpora import Corpus
from cca_dynamics.datasets import Dataset
from cca_dynamics.files import write_tensors
from cca_dynamics.resume import INTERRUPTED, Interrupted, Unfinished, resuming

from tests import test_language, test_training


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
RUNS = {
    "sgd": (training.train, lambda: (test_training.recipe(epochs=8, evaluate_every=3), small())),
    "adam": (training.train, lambda: (test_training.recipe(optimizer="adam", epochs=8), small())),
    "images": (
        training.train,
        lambda: (test_training.recipe((0, 1), epochs=8, augmentation="flip_and_shift"), test_training.dataset(2)),
    ),
    "lstm": (language.train, lambda: (test_language.recipe(**AWD), short_text())),
    "averaging": (
        language.train,
        lambda: (
            test_language.recipe(optimizer="nt_asgd", learning_rate=8.0, patience=1, epochs=4, **AWD),
            short_text(),
        ),
    ),
}


def short_text() -> Corpus:
    return test_language.corpus(1200, 300)


def small() -> Dataset:
    return test_training.dataset(1)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("save_steps", [1, 4])
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, monkeypatch, name, save_steps):
    train, arguments = RUNS[name]
    chosen, data = arguments()
    train(chosen, data, tmp_path / "whole", report=lambda line: None)
    lines, attempt = [], 0
    done = killing_at(monkeypatch, 3, 8, 15, 22)
    while True:
        attempt += 1
        try:
            train(chosen, data, tmp_path / "killed", report=lines.append, save_steps=save_steps)
            break
        except Killed:
            assert not (tmp_path / "killed").exists()
    assert attempt == 5 and done[0] > 22
    assert sum(line.startswith("going on from") for line in lines) == (4 if save_steps == 1 else 3)
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["killed", "whole"]
    if name == "averaging":
        state = language.read_tensors(max((tmp_path / "whole").glob("step-*")))[0]
        assert all(tensor.isfinite().all() for tensor in state.values())


def test_without_a_save_training_begins_anew(tmp_path, monkeypatch):
    chosen, data = test_training.recipe(), small()
    training.train(chosen, data, tmp_path / "whole", report=lambda line: None)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killing_at(patched, 5)
        training.train(chosen, data, tmp_path / "killed", report=lambda line: None)
    training.train(chosen, data, tmp_path / "killed", report=lambda line: None)
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


def test_a_run_that_has_stored_nothing_yet_goes_on_too(tmp_path, monkeypatch):
    """Most cohorts keep their last step alone."""
    chosen, data, lines = test_training.recipe() | {"checkpoints": []}, small(), []
    training.train(chosen, data, tmp_path / "whole", report=lambda line: None)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killing_at(patched, 5)
        training.train(chosen, data, tmp_path / "killed", report=lambda line: None, save_steps=1)
    training.train(chosen, data, tmp_path / "killed", report=lines.append)
    assert lines[0] == "going on from step 5 of 9"
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "checkpoint", "no checkpoint", "no output", "garbage key"])
def test_damaged_saves_are_not_used(tmp_path, monkeypatch, damage):
    chosen, data = test_training.recipe(checkpoints=[0, 1]), small()
    training.train(chosen, data, tmp_path / "whole", report=lambda line: None)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killing_at(patched, 9)
        training.train(chosen, data, tmp_path / "killed", report=lambda line: None, save_steps=1)
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
    lines = []
    training.train(chosen, data, tmp_path / "killed", report=lines.append)
    assert not any("going on" in line for line in lines)
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


@pytest.mark.parametrize("content", [None, b"{}"])
def test_a_damaged_recipe_beside_a_save_is_written_again(tmp_path, monkeypatch, content):
    chosen, data, lines = test_training.recipe(), small(), []
    training.train(chosen, data, tmp_path / "whole", report=lambda line: None)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killing_at(patched, 5)
        training.train(chosen, data, tmp_path / "killed", report=lambda line: None, save_steps=1)
    path = tmp_path / ".killed.unfinished/output/recipe.json"
    path.unlink() if content is None else path.write_bytes(content)
    training.train(chosen, data, tmp_path / "killed", report=lines.append)
    assert lines[0] == "going on from step 5 of 9"
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


def test_what_is_kept_of_other_recipes_data_or_code_is_not_used(tmp_path, monkeypatch):
    chosen, data = test_training.recipe(), small()

    def half(**changes):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            killing_at(patched, 9)
            training.train({**chosen, **changes}, data, tmp_path / "out", report=lambda line: None, save_steps=1)

    def goes_on(recipe, data) -> bool:
        lines = []
        training.train(recipe, data, tmp_path / "out", report=lines.append)
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        (tmp_path / "out").rmdir()
        return any("going on" in line for line in lines)

    half()
    assert goes_on(chosen, data)
    half(seed=2)
    assert not goes_on(chosen, data)
    half()
    from dataclasses import replace

    assert not goes_on(chosen, replace(data, checksum="other"))
    half()
    monkeypatch.setattr(resume, "code_fingerprint", lambda *entries: "edited")
    assert not goes_on(chosen, data)


def test_ablation_goes_on_from_its_finished_networks(tmp_path, monkeypatch):
    data = small()
    test_training.run(test_training.recipe(range(5)), data, tmp_path / "networks")
    request = {"layers": ["conv1", "conv2"], "orders": 3, "levels": 5, "points": 40}

    def ablate(name):
        arguments = {"request": request, "report": lambda line: None, "save_steps": 1}
        ablation.ablate(tmp_path / "networks", data, tmp_path / name, **arguments)

    ablate("whole.parquet")
    computed = []
    networks = ablation.build(test_training.recipe()["network"], 2, (12,), 3)
    accuracy = type(networks).accuracy_without
    monkeypatch.setattr(type(networks), "accuracy_without", lambda *a, **k: computed.append(1) or accuracy(*a, **k))
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killing_at(patched, 3)
        ablate("killed.parquet")
    first = len(computed)
    ablate("killed.parquet")
    assert len(computed) == first / 3 * 5
    assert (tmp_path / "whole.parquet").read_bytes() == (tmp_path / "killed.parquet").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_job_that_is_told_to_stop_saves_and_says_so(tmp_path, number):
    data, chosen = small(), test_training.recipe(epochs=4000, evaluate_every=4000) | {"data": "dataset"}
    names = ("train_x", "train_y", "train_y_permuted", "test_x", "test_y")
    write_tensors(tmp_path / "d", {name: getattr(data, name) for name in names}, name="made", classes=3)
    command = [sys.executable, "-m", "cca_dynamics.cli", "train", "--data", str(tmp_path / "d")]
    command += ["--recipe", json.dumps(chosen), "--out", str(tmp_path / "out"), "--device", "cpu", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while "epoch 3/" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED and error.splitlines()[-1].startswith(
        "interrupted; nothing is half-written"
    )
    assert "Traceback" not in error and not (tmp_path / "out").exists()
    _, facts = Unfinished(tmp_path / ".out.unfinished").load()
    assert facts["step"] >= 3


def test_a_command_that_keeps_nothing_leaves_nothing(tmp_path, capsys, monkeypatch):
    def verdicts(options):
        """Told to stop while it runs."""
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
    monkeypatch.setattr(Unfinished, "save", lambda self, tensors, **facts: saved.append(facts["at"]) or reset(self))

    def reset(work):
        work._saved, work._since = now[0], 0

    def go(work, seconds):
        saved.clear()
        for at in range(12):
            now[0] += seconds
            work.step(lambda at=at: ({}, {"at": at}))
        return list(saved)

    assert go(Unfinished(tmp_path, minutes=1), 25) == [2, 5, 8, 11]
    assert go(Unfinished(tmp_path, minutes=1, steps=5), 1) == [4, 9]
    assert go(Unfinished(tmp_path, minutes=10), 1) == []
    stopping = Unfinished(tmp_path, minutes=10)
    stopping.stopping = True
    with pytest.raises(Interrupted):
        go(stopping, 1)
    assert saved == [0]


def test_state_is_replaced_whole(tmp_path):
    work = Unfinished(tmp_path)
    work.save({"x": torch.arange(3)}, step=1)
    with pytest.raises(TypeError):
        work.save({"x": torch.arange(4)}, step=np)
    tensors, facts = work.load()
    assert facts["step"] == 1 and tensors["x"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
