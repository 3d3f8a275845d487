"""Many small computations on all cores: one thread each, side by side."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch


class Workers:
    """Threads that do one job after the other, each on one core: as many as torch has on a CPU, one for a GPU.

    A small product or decomposition gains nothing from a second thread; two of them side by side do.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str):
        self.threads = torch.get_num_threads() if device == "cpu" else 1
        self.pool = None
        if self.threads > 1:
            # torch keeps the number of threads per thread.
            self.pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))

    def run(self, work: Callable, jobs: Sequence[tuple], done: Callable = lambda *job: None) -> list:
        """The results of work(*job) in order; done(*job) is called after each."""
        apply = map if self.pool is None else self.pool.map
        results = []
        for job, result in zip(jobs, apply(lambda job: work(*job), jobs), strict=True):
            done(*job)
            results.append(result)
        return results

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *problem: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self.threads)


def keep_memory() -> None:
    """Tell glibc to keep freed memory: asking the system for it again in every step costs a fifth of the time."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return  # another C library, as on macOS
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8
    mallopt(mmap_threshold, 32 * 2**20)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(arena_max, 1)


def has_bfloat16(device: str) -> bool:
    """Whether the hardware computes in bfloat16 itself; emulating it would be slower than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
