"""Forward and backward passes on a GPU, each recorded once as a CUDA graph and then replayed.

A pass of one network is some two hundred kernels of a few microseconds each, and to start them one by one from Python
takes several times as long as to compute them. A graph starts them all at once, and the graphs of several networks run
side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from cca_dynamics.networks.convolutional import Networks

WARM_UP = 2
"""Passes before a recording, in which libraries choose their algorithms and take their memory."""

Tensors = dict[str, Tensor]
Pass = Callable[[Tensors, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""(parameters and statistics, batch, changes) → (losses, gradients), see `classifiers.batch_gradients`."""


def recorded_on(device: str, network: Networks) -> Callable:
    """What computes passes one by one: `CudaGraphs` on a GPU, if networks can be recorded one by one, or `map`."""
    return CudaGraphs() if device == "cuda" and network.recordable and not network.lockstep else map


class CudaGraphs:
    """A `map` over passes that records each of them when it first comes and replays it from then on.

    What a pass reads besides its batch and changes must stay where it is in the GPU's memory, and so must the tensors
    of the pass, which is known by their dictionary. Results are overwritten by the next call.
    """

    def __init__(self) -> None:
        self._recorded: dict[int, _Recording] = {}

    def __call__(
        self, one_pass: Pass, passes: Iterable[Tensors], batches: Iterable[Tensor], changes: Iterable[Tensor | None]
    ) -> list[tuple[Tensor, Tensor]]:
        """Losses and gradients of each pass, computed side by side."""
        running = []
        for tensors, batch, change in zip(passes, batches, changes, strict=True):
            recording = self._recorded.get(id(tensors))
            if recording is None:
                recording = self._recorded[id(tensors)] = _Recording(one_pass, tensors, batch, change)
            recording.start(batch, change)
            running.append(recording)
        return [recording.result() for recording in running]


class _Recording:
    """One pass as a CUDA graph, on a stream of its own."""

    def __init__(self, one_pass: Pass, tensors: Tensors, batch: Tensor, changes: Tensor | None):
        self._tensors = tensors  # so that their memory, and the identity of the dictionary, stay theirs
        self._batch, self._changes = batch.clone(), None if changes is None else changes.clone()
        self._stream, self._graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        statistics = {name: tensor for name, tensor in tensors.items() if not tensor.requires_grad}
        before = {name: tensor.clone() for name, tensor in statistics.items()}
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                one_pass(tensors, self._batch, self._changes)
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._losses, self._gradients = one_pass(tensors, self._batch, self._changes)
        torch.cuda.current_stream().wait_stream(self._stream)
        for name, tensor in statistics.items():
            tensor.copy_(before[name])  # as they were before the passes to warm up

    def start(self, batch: Tensor, changes: Tensor | None) -> None:
        """Compute the pass of a batch, beside what else the GPU does."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._batch.copy_(batch)
            if changes is not None:
                self._changes.copy_(changes)
            self._graph.replay()

    def result(self) -> tuple[Tensor, Tensor]:
        """Losses and gradients, which whatever is computed next waits for."""
        torch.cuda.current_stream().wait_stream(self._stream)
        return self._losses, self._gradients
