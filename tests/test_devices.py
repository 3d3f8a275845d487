"""No two jobs share a place on a GPU, whoever started them. The GPUs are simulated; the locks are real."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from cca_dynamics.errors import ConfigError
from cca_dynamics.runtime import gpus, machine

JOB = """
import sys
from pathlib import Path
from cca_dynamics.runtime import gpus
gpus.WAIT = 0.05
print(gpus.reserve(["one", "two"], Path(sys.argv[1]), report=lambda line: print(line, flush=True)), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def job(tmp_path):
    """Start jobs on a machine of two GPUs; all are ended with the test."""
    started = []

    def start() -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", JOB, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_two_jobs_get_two_gpus_and_a_third_waits_for_one(job):
    first, second = job(), job()
    devices_taken = {process.stdout.readline() for process in (first, second)}
    assert devices_taken == {"0\n", "1\n"}
    third = job()
    assert third.stdout.readline() == "all 2 places on GPUs have a job; waiting for one\n"
    second.kill()  # a reservation ends with its process, however that ends
    second.wait()
    freed = third.stdout.readline()
    assert freed in devices_taken
    assert first.poll() is None


def test_the_chosen_gpu_becomes_the_current_one(monkeypatch, tmp_path):
    current = []
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=f"GPU-{i}"))
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert gpus.choose("auto") == gpus.choose("cuda") == "cuda"
    assert current == [0, 1] and gpus.choose("cpu") == "cpu"
    for _ in range(4):  # both have their one job; three each leave two places on each
        gpus.choose("cuda", jobs_per_gpu=3)
    assert current[2:] == [0, 1, 0, 1]


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpus.choose("auto") == "cpu"
    with pytest.raises(ConfigError, match="device: cuda, but PyTorch finds no GPU"):
        gpus.choose("cuda")


FAULTS = """
import resource, sys
import torch
from cca_dynamics.runtime.threads import keep_memory

keep_memory(large_blocks=sys.argv[1] == "kept")
for step in range(40):
    if step == 20:  # by then every place that the block may take is there
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how another C library keeps memory cannot be said")
def test_training_asks_the_system_for_a_large_block_once():
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "given back")
    )
    assert 10 * kept < given_back


def test_a_machine_without_a_gpu_is_described_without_pytorch():
    code = "import sys; from cca_dynamics.runtime import machine; machine.GPU_DRIVERS = (); print(machine.hardware())"
    command = [sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert " cores" in said


@pytest.mark.parametrize("works", [True, False])
def test_a_machine_is_described_with_its_gpu(works, tmp_path, monkeypatch):
    (tmp_path / "driver").touch()
    monkeypatch.setattr(machine, "GPU_DRIVERS", (tmp_path / "missing", tmp_path / "driver"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: works)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert machine.hardware().endswith(", a GPU") == works


KERNEL_OF_A_JOB = """
import sys
from cca_dynamics import cli
assert "numpy" not in sys.modules
cli.main(["verdicts", "nothing"])
from threadpoolctl import threadpool_info
import numpy
print(*{library["architecture"] for library in threadpool_info() if library.get("internal_api") == "openblas"})
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="of x86 processors")
@pytest.mark.parametrize(("chosen", "kernel"), [(None, "Haswell"), ("Nehalem", "Nehalem")])
def test_jobs_multiply_alike_on_every_processor(tmp_path, chosen, kernel):
    """Unless the user has chosen a kernel. OpenBLAS takes another with AVX-512, which rounds differently."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    environment |= {"OPENBLAS_CORETYPE": chosen} if chosen else {}
    command = [sys.executable, "-c", KERNEL_OF_A_JOB]
    job = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert kernel in job.stdout.split()


def test_kernels_that_the_processor_lacks_are_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    cpuinfo = tmp_path / "cpuinfo"
    for content, asked in ((None, None), ("flags : sse2 avx fma\n", None), ("flags : avx avx2 fma\n", "Haswell")):
        if content is not None:
            cpuinfo.write_text(content)
        machine.use_common_kernels(cpuinfo)
        assert os.environ.get("OPENBLAS_CORETYPE") == asked
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    machine.use_common_kernels(cpuinfo)
    assert "OPENBLAS_CORETYPE" not in os.environ
