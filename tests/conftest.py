"""Fixtures that several test modules use."""

import numpy as np
import pytest
import yaml

from tests import preloaded
from tests.builders import ROOT, SMOKE, copy_workflow, snakemake


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def default_config() -> dict:
    """A fresh copy of config.yaml."""
    return yaml.safe_load((ROOT / "config.yaml").read_text())


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """The programs of an environment whose jobs start at once, see `preloaded`."""
    programs, process = preloaded.environment(tmp_path_factory.mktemp("env"))
    yield programs
    process.terminate()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A working copy in which the smoke study has been run once, by the real programs."""
    folder = copy_workflow(tmp_path_factory.mktemp("smoke") / "a study")
    run = snakemake(folder, *SMOKE)
    assert run.returncode == 0, run.stdout + run.stderr
    folder.joinpath("terminal.txt").write_text(run.stdout + run.stderr)
    return folder
