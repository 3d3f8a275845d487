"""Which device a job computes on. On a machine with several GPUs every job gets one of its own."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

WAIT = 2.0
"""Seconds between two looks for a free GPU."""


def choose(device: str, report: Callable[[str], None] = print) -> str:
    """Resolve what the config says, and take a GPU that no other job of this user has.

    The scheduler already runs no more GPU jobs than there are GPUs; this sees to it that two of them, of one study or
    of two, never meet on one device. GPUs hidden by CUDA_VISIBLE_DEVICES, as SLURM and Kubernetes do it, stay hidden.

    Args:
        device: "auto" (cuda if there is one), "cpu" or "cuda".
        report: called with one line if the job has to wait.

    Returns:
        "cpu" or "cuda"; the chosen GPU is PyTorch's current one and stays this process's until it ends.

    Raises:
        ValueError: cuda is asked for and there is none.
    """
    import torch

    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError("config key device: cuda, but PyTorch finds no GPU here; use device=cpu or device=auto")
    names = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
    torch.cuda.set_device(lease(names, report=report))
    return "cuda"


def lease(names: Sequence[str], folder: Path | None = None, report: Callable[[str], None] = print) -> int:
    """Take the first of several things that no other process has; wait for one if all are taken.

    Args:
        names: of the things, the same in all processes.
        folder: of the lock files, on a local disk; None: the system's temporary folder, one set of locks per user.
        report: called with one line before waiting.

    Returns:
        Position in `names`; taken until this process ends, however it ends.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"cca-dynamics-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    waiting = False
    while True:
        for i, name in enumerate(names):
            handle = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
            else:
                os.set_inheritable(handle, False)
                return i  # the open handle is the lease
        if not waiting:
            report(f"all {len(names)} GPUs have a job; waiting for one")
            waiting = True
        time.sleep(WAIT)
