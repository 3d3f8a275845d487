"""What several test modules build: working copies of the workflow, configs, recipes and small files."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from cca_dynamics.config import files
from cca_dynamics.config.cohorts import ClassifierRecipe, LanguageNetwork, LanguageRecipe, SweepTraining
from cca_dynamics.config.models import ConvNetOptions, LanguageTraining, NetworkOptions
from cca_dynamics.runtime.storage import read_tensors, write_tensors
from cca_dynamics.study import Study

from tests import preloaded

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SMOKE = ("--configfile", "studies/smoke.yaml", "--cores", "2")


def overlays_of(study: Path) -> list[Path]:
    """A file in studies/, after the one that it rests on, if any."""
    rests_on = files.read(study).get(files.ON_TOP_OF, [])
    names = [rests_on] if isinstance(rests_on, str) else rests_on[:1]
    return [*(study.with_name(name) for name in names), study]


HOSTILE = ["$(touch owned)", "`touch owned`", "a; touch owned", "a & touch owned", "a' && touch owned #", 'a"b', "ü ñ"]
"""Names that a shell would act upon."""


@functools.cache
def read_default_study() -> dict:
    """config.yaml, read once; change a copy of it."""
    return yaml.safe_load((ROOT / "config.yaml").read_text())


def changed(config: dict, key: str, value: object) -> dict:
    """A config with another value of a key, such as "results.width.filters"; the config itself is changed."""
    *path, last = key.split(".")
    block = config
    for part in path:
        block = block.setdefault(part, {})
    block[last] = value
    return config


def copy_workflow(folder: Path) -> Path:
    """A working copy of what `snakemake` needs, so that a test can run it and edit it; nothing of it is in git."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("Snakefile", "config.yaml"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("config", "studies", "profiles", "envs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copytree(ROOT / "workflow", folder / "workflow", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return folder


def variables(folder: Path, **more: str) -> dict[str, str]:
    """The environment of processes that use a working copy, with that copy's package."""
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(folder / "workflow"), **more}


def snakemake(folder: Path, *arguments: str, timeout: int = 300, **environment: str) -> subprocess.CompletedProcess:
    """Run snakemake in a working copy, with that copy's package, as one does who has not activated the environment.

    It is that of `preloaded`, which starts at once, as do its jobs.

    Args:
        folder: the working copy.
        arguments: of snakemake.
        timeout: in seconds.
        environment: variables.

    Returns:
        Its stdout and stderr as text, and its status.
    """
    elsewhere = os.pathsep.join(path for path in os.environ["PATH"].split(os.pathsep) if Path(path) != BIN)
    return subprocess.run(
        [preloaded.programs() / "snakemake", *arguments],
        cwd=folder,
        env=variables(folder, **{"PATH": elsewhere, **environment}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def write_images(folder: Path, rng: np.random.Generator, height: int, width: int) -> None:
    """Thirty training and twenty test images of each of three classes, which differ in brightness."""
    from PIL import Image

    for split, size in (("train", 30), ("test", 20)):
        for label in range(3):
            (folder / f"{split}/class {label}").mkdir(parents=True)
            for i in range(size):
                pixels = rng.integers(0, 120, (height, width, 3)) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{split}/class {label}/{i}.png")


def write_dataset(path: Path, dimensions: int, train: int = 60, test: int = 20) -> Path:
    """A dataset of three classes of two channels, signals (1) or images (2), as `datasets.materialise` stores one."""
    rng = np.random.default_rng(5)
    shape = (2, 12) if dimensions == 1 else (2, 6, 8)
    tensors = {}
    for split, size in (("train", train), ("test", test)):
        y = rng.integers(0, 3, size)
        x = rng.normal(size=(size, *shape)) + y.reshape(-1, *[1] * len(shape))
        tensors |= {f"{split}_x": torch.tensor(x, dtype=torch.float32), f"{split}_y": torch.tensor(y)}
    order = torch.randperm(train, generator=torch.Generator().manual_seed(0))
    tensors["train_y_permuted"] = tensors["train_y"][order]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, name="made", classes=3)
    return path


def write_corpus(path: Path, size: int = 3000, valid: int = 1200) -> Path:
    """A text whose next token follows from the last two, most of the time, as `corpora.materialise` stores one."""
    rng = np.random.default_rng(0)
    tokens = [0, 1]
    while len(tokens) < size + valid:
        tokens.append(int((tokens[-1] + 2 * tokens[-2] + 1) % 7) if rng.random() < 0.9 else int(rng.integers(7)))
    tokens = torch.tensor(tokens)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, {"train": tokens[:size], "valid": tokens[size:]}, name="made", vocabulary=7)
    return path


def classifier_recipe(
    networks: Sequence[int] = (0, 1, 2),
    *,
    network: NetworkOptions | None = None,
    optimizer: str = "sgd",
    batch_norm: bool = True,
    labels: str = "true",
    **training: object,
) -> ClassifierRecipe:
    """A recipe for small networks on the data of `write_dataset`; other keys are those of the training recipe."""
    options = {
        "optimizer": optimizer,
        "learning_rate": 0.05 if optimizer == "sgd" else 0.01,
        "weight_decay": 0.01,
        "batch_size": 16,
        "epochs": 3,
        "evaluate_every": 1,
    }
    return ClassifierRecipe(
        cohort="test",
        seed=3,
        networks=tuple(networks),
        labels=labels,
        network=network or ConvNetOptions(channels=(5, 6), strides=(1, 2), batch_norm=batch_norm),
        training=SweepTraining(**{**options, **training}),
        checkpoints=(0.0, 1.0),
    )


def language_recipe(
    networks: Sequence[int] = (0, 1), sizes: Sequence[int] = (8, 8), tied: bool = False, **training: object
) -> LanguageRecipe:
    """A recipe for small models of the text of `write_corpus`; other keys are those of the training recipe."""
    options = {"learning_rate": 0.01, "batch_size": 10, "window": 16, "schedule": "constant"}
    return LanguageRecipe(
        cohort="test",
        seed=1,
        networks=tuple(networks),
        network=LanguageNetwork(embedding=8, sizes=tuple(sizes), tied=tied),
        training=LanguageTraining(**{**options, **training}),
        checkpoints=(0.0, 2.0),
    )


def train_classifiers(recipe: ClassifierRecipe, data: Path, out: Path) -> tuple[dict, pd.DataFrame, list[str]]:
    """Train on a dataset that `write_dataset` wrote; returns the final state, the history and what was reported."""
    from cca_dynamics.training import classifiers  # here, so that tests that train nothing start sooner

    lines: list[str] = []
    classifiers.train(recipe, data, out, report=lines.append)
    state, _ = read_tensors(max(out.glob("step-*.safetensors")))
    return state, pd.read_parquet(out / "history.parquet"), lines


def train_language_models(recipe: LanguageRecipe, data: Path, out: Path) -> tuple[dict, pd.DataFrame, list[str]]:
    """Train on a corpus that `write_corpus` wrote; returns the final state, the history and what was reported."""
    from cca_dynamics.training import language_models  # here, so that tests that train nothing start sooner

    lines: list[str] = []
    language_models.train(recipe, data, out, report=lines.append)
    state, _ = read_tensors(max(out.glob("step-*.safetensors")))
    return state, pd.read_parquet(out / "history.parquet"), lines


class Job(NamedTuple):
    """What a job of a study depends on: its params, and the jobs whose outputs it reads."""

    params: dict[str, str | int]
    after: tuple[tuple[str, str], ...]


def jobs_of(study: Study) -> dict[tuple[str, str], Job]:
    """(stage, name) → every job that makes a study's figures and claims."""
    jobs: dict[tuple[str, str], Job] = {}
    read_by: dict[str, list[tuple[str, str]]] = {}  # result → jobs that its table is computed from

    def add(stage: str, name: str, *after: tuple[str, str], **wildcards: str) -> tuple[str, str]:
        jobs[stage, f"{study.name}/{name}"] = Job(study.params(stage, **wildcards), after)
        return stage, f"{study.name}/{name}"

    data = {cohort.data for result in study.targets for cohort in study.cohorts_of(result)}
    made = {name: add(name, name) for name in sorted(data)}
    for result in study.targets:
        for cohort in study.cohorts_of(result):
            for part in study.parts(cohort.name):
                which = {"cohort": cohort.name, "part": part}
                name, read = f"{cohort.name}/{part}", made[cohort.data]
                networks = add("train", name, read, **which)
                read_by.setdefault(result, []).extend([networks, add("activations", name, read, networks, **which)])
                if cohort.ablation:
                    read_by[result].append(add("ablation", name, read, networks, **which))
        table = add("compute", result, *read_by.get(result, []), result=result)
        claims = add("claims", result, table, result=result)
        add("plot", result, table, claims, result=result)
    add("merge", "claims", *(("claims", f"{study.name}/{result}") for result in study.targets))
    return jobs


def docs_generator() -> ModuleType:
    """docs/generate.py, which writes the reference of all keys of the config."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    module = sys.modules["generate"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)
