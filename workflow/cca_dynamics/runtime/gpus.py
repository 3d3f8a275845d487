"""Which device a job computes on. No more jobs share a GPU than the config says, whichever study they are of."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cca_dynamics.errors import ConfigError

WAIT = 2.0
"""Seconds between two attempts to find a free place."""


def choose(device: str, report: Callable[[str], None] = print, jobs_per_gpu: int = 1) -> str:
    """Resolve the config's `device`, and take a place on a GPU that no other job of this user has.

    The scheduler already runs no more GPU jobs than there are places; this makes sure that jobs of the same study or of
    different ones never share one, and spreads them over the GPUs. GPUs hidden by CUDA_VISIBLE_DEVICES, as SLURM and
    Kubernetes do it, stay hidden.

    Args:
        device: "auto" (cuda if there is a GPU), "cpu" or "cuda".
        report: called with one line if the job has to wait.
        jobs_per_gpu: places on each GPU.

    Returns:
        "cpu" or "cuda"; the chosen GPU is PyTorch's current one, and the place stays reserved until this process ends.

    Raises:
        ConfigError: cuda is requested and there is no GPU.
    """
    import torch  # here, because it takes a second

    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise ConfigError("device", "cuda, but PyTorch finds no GPU here; use device=cpu or device=auto")
    compute_reproducibly()
    gpus = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
    places = [f"{gpu}-{place}" if place else gpu for place in range(jobs_per_gpu) for gpu in gpus]
    torch.cuda.set_device(reserve(places, report=report) % len(gpus))
    return "cuda"


def compute_reproducibly() -> None:
    """Have GPUs give the same numbers every time, and float32 where it is asked for.

    PyTorch would otherwise take the quickest convolution, whose sums differ from run to run, and round the inputs of
    float32 convolutions to 10 bits (TF32). Call it before the first product on a GPU.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False


def reserve(places: Sequence[str], folder: Path | None = None, report: Callable[[str], None] = print) -> int:
    """Reserve the first place on a GPU that no other process has; wait for one if all are taken.

    Args:
        places: their identifiers, the same in all processes.
        folder: where the lock files are, on a local disk; None: the system's temporary folder, a set of locks per user.
        report: called with one line before waiting.

    Returns:
        Position in `places`; reserved until this process ends, however it ends.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"cca-dynamics-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    waiting = False
    while True:
        for i, place in enumerate(places):
            handle = os.open(folder / f"{place}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
            else:
                os.set_inheritable(handle, False)
                return i  # the lock lasts as long as the open handle
        if not waiting:
            report(f"all {len(places)} places on GPUs have a job; waiting for one")
            waiting = True
        time.sleep(WAIT)
