"""Fixtures that several test modules use."""

import copy
import fcntl
import os

import numpy as np
import pytest

from tests.builders import SMOKE, copy_workflow, read_default_study, snakemake

IN_PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
if IN_PARALLEL:  # one process per core: threads that spin would take the other's
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

LONGEST = ("test_workflow", "test_figures", "test_reruns", "test_replicates", "test_report", "test_compare")
"""Modules to begin with, so that the other processes have something to do beside them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest modules."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=IN_PARALLEL)
def one_thread():
    """What tests in one process ask of PyTorch does not slow down the other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def default_config() -> dict:
    """A fresh copy of config.yaml."""
    return copy.deepcopy(read_default_study())


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
    """A working copy in which the smoke study has been run once for all processes of pytest."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    folder, report = base / "smoke/a study", base / "smoke/terminal.txt"
    with open(base / "smoke.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not report.exists():
            run = snakemake(copy_workflow(folder), *SMOKE, timeout=900)
            report.write_text(f"{run.returncode}\n{run.stdout}{run.stderr}")
    status, _, text = report.read_text().partition("\n")
    assert status == "0", text
    return folder
