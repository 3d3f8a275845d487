"""Decompositions of many small matrices at once, where they are quickest.

A GPU solves eigenproblems of up to 32 rows many at a time, and larger ones one after the other: one of 64 to 128 rows
takes an H100 .8 to 1.6 ms, and sixteen threads of the CPU beside it .15 to .25 ms, copies included
(`benchmarks/similarity.py --eigen`). So these go to the CPU, if it has a few threads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cca_dynamics.similarity.threads import Workers

ROWS_FOR_A_CPU = range(33, 129)
"""Sizes of the matrices of a GPU that a CPU decomposes sooner."""
FEWEST_THREADS = 4
"""With which it does."""


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh` of symmetric matrices (..., p, p): ascending eigenvalues (..., p), vectors (..., p, p)."""
    if not _belong_to_a_cpu(matrices):
        return tuple(torch.linalg.eigh(matrices))
    values, vectors = zip(*_on_a_cpu(torch.linalg.eigh, matrices), strict=True)
    return torch.stack(values).to(matrices.device), torch.stack(vectors).to(matrices.device)


def svdvals(matrices: Tensor) -> Tensor:
    """`torch.linalg.svdvals` of matrices (..., p, q): singular values, descending (..., min(p, q))."""
    if not _belong_to_a_cpu(matrices):
        return torch.linalg.svdvals(matrices)
    return torch.stack(_on_a_cpu(torch.linalg.svdvals, matrices)).to(matrices.device)


def _belong_to_a_cpu(matrices: Tensor) -> bool:
    several = matrices.ndim == 3 and len(matrices) >= FEWEST_THREADS and torch.get_num_threads() >= FEWEST_THREADS
    return matrices.is_cuda and several and min(matrices.shape[1:]) in ROWS_FOR_A_CPU


def _on_a_cpu(decompose: Callable, matrices: Tensor) -> list:
    here = matrices.cpu()
    with Workers("cpu", here.numel()) as workers:
        return workers.run(decompose, [(matrix,) for matrix in here])
