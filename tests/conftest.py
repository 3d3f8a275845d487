"""Fixtures that several test modules use."""

import os

import numpy as np
import pytest
import yaml
from filelock import FileLock

from tests.builders import ROOT, SMOKE, copy_workflow, snakemake


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def default_config() -> dict:
    """A fresh copy of config.yaml."""
    return yaml.safe_load((ROOT / "config.yaml").read_text())


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A working copy in which the smoke study has been run, once for all processes that test side by side."""
    side_by_side = "PYTEST_XDIST_WORKER" in os.environ
    temporary = tmp_path_factory.getbasetemp().parent if side_by_side else tmp_path_factory.getbasetemp()
    folder = temporary / "smoke"
    with FileLock(temporary / "smoke.lock"):
        if not (folder / "terminal.txt").exists():
            copy_workflow(folder)
            run = snakemake(folder, *SMOKE)
            assert run.returncode == 0, run.stdout + run.stderr
            (folder / "terminal.txt").write_text(run.stdout + run.stderr)
    return folder
