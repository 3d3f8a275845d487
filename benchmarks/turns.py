"""Several ways to do the same work, in turns in one run, each in processes of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from cca_dynamics.runtime.threads import keep_memory
from threadpoolctl import threadpool_limits
from torch import multiprocessing


@dataclass(frozen=True)
class Way:
    """How the work is done.

    Attributes:
        processes: side by side.
        threads: of each.
        make: called once in each process; returns the function that does a step. Picklable.
    """

    processes: int
    threads: int
    make: Callable[[], Callable[[], object]]


def in_turns(ways: dict[str, Way], device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each way, once a round, after two rounds to warm up."""
    context = multiprocessing.get_context("spawn")
    barriers, everyone = {}, []
    for name, way in ways.items():
        start, end = (context.Barrier(way.processes + 1) for _ in range(2))
        arguments = (way.make, way.threads, device, start, end)
        barriers[name] = start, end
        everyone += [context.Process(target=_work, args=arguments, daemon=True) for _ in range(way.processes)]
    for process in everyone:
        process.start()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 2):
        for name, (start, end) in barriers.items():
            start.wait()
            begin = time.perf_counter()
            end.wait()
            if turn > 1:
                seconds[name].append(time.perf_counter() - begin)
    for process in everyone:
        process.kill()
    return seconds


def _work(make: Callable, threads: int, device: str, start, end) -> None:
    torch.set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")
    keep_memory(large_blocks=True)  # as training jobs do
    step = make()
    while True:
        start.wait()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        end.wait()


def print_row(row: dict, first: bool) -> None:
    """A row of a table in Markdown, under its header if it is the first."""
    cells = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()]
    if first:
        print("| " + " | ".join(row) + " |\n|" + " --- |" * len(cells))
    print("| " + " | ".join(cells) + " |", flush=True)
