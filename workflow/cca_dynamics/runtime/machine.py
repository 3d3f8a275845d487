"""What a run took place on: the machine and the commit, in words."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

GPU_DRIVERS = Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd")
"""Where there is none of these, there is no GPU that PyTorch computes on: NVIDIA's, Windows's for Linux, AMD's."""


def use_common_kernels(cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Let NumPy multiply as every x86 processor of the last ten years can, so that all of them round alike.

    OpenBLAS otherwise takes what suits the processor best. With AVX-512 it adds in another order, and training
    amplifies the difference as it does that of two seeds. To be called before NumPy is imported; OPENBLAS_CORETYPE is
    left as it is where somebody has set it.

    Args:
        cpuinfo: where Linux lists what the processor can.
    """
    if platform.machine() == "x86_64" and cpuinfo.exists() and " avx2 " in cpuinfo.read_text():
        os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")


def hardware() -> str:
    """The machine in a few words: processor, cores, memory, GPU."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (match := re.search(r"model name\s*: (.+)", info.read_text())):
        processor = match[1]
    words = [processor, f"{os.cpu_count()} cores"]
    if hasattr(os, "sysconf"):
        words.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB")
    if any(driver.exists() for driver in GPU_DRIVERS):
        import torch  # takes a second

        if torch.cuda.is_available():
            words.append(torch.cuda.get_device_name())
    return ", ".join(words)


def commit() -> str:
    """The commit that is checked out in the working directory, in words."""
    git = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    return f"commit {git.stdout.strip()}" if git.returncode == 0 else "outside git"
