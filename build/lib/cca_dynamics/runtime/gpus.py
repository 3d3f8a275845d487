"""Which device a job computes on. On a machine with several GPUs no two jobs share one."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cca_dynamics.errors import ConfigError

WAIT = 2.0
"""Seconds between two attempts to find a free GPU."""


def choose(device: str, report: Callable[[str], None] = print) -> str:
    """Resolve the config's `device`, and take a GPU that no other job of this user has.

    The scheduler already runs no more GPU jobs than there are GPUs; this makes sure that two of them, of the same study
    or of different ones, never share a device. GPUs hidden by CUDA_VISIBLE_DEVICES, as SLURM and Kubernetes do it, stay
    hidden.

    Args:
        device: "auto" (cuda if there is a GPU), "cpu" or "cuda".
        report: called with one line if the job has to wait.

    Returns:
        "cpu" or "cuda"; the chosen GPU is PyTorch's current one and stays reserved until this process ends.

    Raises:
        ConfigError: cuda is requested and there is no GPU.
    """
    import torch  # here, because it takes a second

    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise ConfigError("device", "cuda, but PyTorch finds no GPU here; use device=cpu or device=auto")
    identifiers = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
    torch.cuda.set_device(reserve(identifiers, report=report))
    return "cuda"


def reserve(gpus: Sequence[str], folder: Path | None = None, report: Callable[[str], None] = print) -> int:
    """Reserve the first GPU that no other process has; wait for one if all are taken.

    Args:
        gpus: their identifiers, the same in all processes.
        folder: where the lock files are, on a local disk; None: the system's temporary folder, a set of locks per user.
        report: called with one line before waiting.

    Returns:
        Position in `gpus`; reserved until this process ends, however it ends.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"cca-dynamics-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    waiting = False
    while True:
        for i, gpu in enumerate(gpus):
            handle = os.open(folder / f"{gpu}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
            else:
                os.set_inheritable(handle, False)
                return i  # the lock lasts as long as the open handle
        if not waiting:
            report(f"all {len(gpus)} GPUs have a job; waiting for one")
            waiting = True
        time.sleep(WAIT)
