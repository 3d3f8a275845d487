"""What several tests share."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SMOKE = ("--configfile", "studies/smoke.yaml", "--cores", "2")
HOSTILE = ["$(touch owned)", "`touch owned`", "a; touch owned", "a & touch owned", "a' && touch owned #", 'a"b', "ü ñ"]
"""Names that a shell would act upon."""


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def default_config() -> dict:
    """A fresh copy of config.yaml."""
    return yaml.safe_load((ROOT / "config.yaml").read_text())


def copy_workflow(folder: Path) -> Path:
    """A working copy of what `snakemake` needs, so that a test can run it and edit it; nothing of it is in git."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("Snakefile", "config.yaml"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("studies", "profiles", "envs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copytree(ROOT / "workflow", folder / "workflow", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return folder


def variables(folder: Path, **more: str) -> dict[str, str]:
    """The environment of processes that use a working copy, with that copy's package."""
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(folder / "workflow"), **more}


def write_images(folder: Path, rng: np.random.Generator, height: int, width: int) -> None:
    """Thirty training and twenty test images of each of three classes, which differ in brightness."""
    from PIL import Image

    for split, size in (("train", 30), ("test", 20)):
        for label in range(3):
            (folder / f"{split}/class {label}").mkdir(parents=True)
            for i in range(size):
                pixels = rng.integers(0, 120, (height, width, 3)) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{split}/class {label}/{i}.png")


def snakemake(folder: Path, *arguments: str, timeout: int = 300, **environment: str) -> subprocess.CompletedProcess:
    """Run snakemake in a working copy, with that copy's package; stdout and stderr as text."""
    return subprocess.run(
        ["snakemake", *arguments],
        cwd=folder,
        env=variables(folder, **environment),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A working copy in which the smoke study has been run once."""
    folder = copy_workflow(tmp_path_factory.mktemp("smoke"))
    run = snakemake(folder, *SMOKE)
    assert run.returncode == 0, run.stdout + run.stderr
    folder.joinpath("terminal.txt").write_text(run.stdout + run.stderr)
    return folder
