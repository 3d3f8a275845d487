"""Many small computations on all cores: one thread each, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

FEW = 100_000
"""Numbers up to which all is computed by the calling thread."""


class Workers:
    """A pool of threads for small computations: as many threads as torch would use on a CPU, one for a GPU.

    A small product or decomposition gains nothing from a second thread, but two of them side by side do. Each thread
    therefore tells torch to compute on one core. Use as a context manager, which ends the threads.

    Args:
        device: "cpu" or "cuda".
        numbers: about how many numbers the computations read; for few, starting threads costs more than they save.
    """

    def __init__(self, device: str, numbers: int):
        self.threads = torch.get_num_threads() if device == "cpu" and numbers > FEW else 1
        self.pool = None
        if self.threads > 1:
            # torch remembers its number of threads separately for each thread that calls it.
            self.pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))

    def run(self, function: Callable, jobs: Sequence[tuple], on_result: Callable = lambda *job: None) -> list:
        """Call a function once for each job.

        Args:
            function: called in any of the threads.
            jobs: the arguments of each call.
            on_result: called with the same arguments when the job and all before it are done, in the calling thread.

        Returns:
            What the calls return, in the order of the jobs.
        """
        apply = map if self.pool is None else self.pool.map
        results = []
        for job, result in zip(jobs, apply(lambda job: function(*job), jobs), strict=True):
            on_result(*job)
            results.append(result)
        return results

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self.threads)
