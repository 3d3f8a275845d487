"""The parameters of many networks as one matrix."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad

from cca_dynamics.networks.convolutional import as_matrix, as_weight

ALIGNMENT = {"cpu": 1, "cuda": 64}
"""Numbers to whose multiples the parameters of a network begin: a GPU reads several at a time, from whole addresses."""


class StackedParameters:
    """The state of N networks whose trained parameters are views of one (N, parameters) matrix.

    An optimiser then updates all parameters of all networks in a few operations.

    Args:
        state: name → (N, ...), the network first.
        trained: names of the trained parameters; None: all of `state`. The rest are running statistics.
        networks_per_pass: networks that share a forward and backward pass.
        outputs_last: whether weights of convolutions, (N, out, in, *kernel), lie in memory as (N, *kernel, in, out),
            the matrices that a convolution in lockstep multiplies by.

    Attributes:
        values: (N, parameters), the trained parameters, on a GPU with zeros between them.
        tensors: name → (N, ...), parameters (views of `values`) and running statistics.
        passes: name → (networks of the pass, ...) for each pass, views of `tensors`; the parameters require gradients.
    """

    def __init__(
        self,
        state: dict[str, Tensor],
        trained: Iterable[str] | None = None,
        networks_per_pass: int = 1,
        outputs_last: bool = False,
    ):
        self._outputs_last = outputs_last
        self._shapes = {name: state[name].shape[1:] for name in trained or state}
        self._alignment = ALIGNMENT[next(iter(state.values())).device.type]
        self.values = self._side_by_side([state[name] for name in self._shapes])
        statistics = {name: x for name, x in state.items() if name not in self._shapes}
        if self._alignment > 1:
            statistics = {n: self._side_by_side([x])[:, : x[0].numel()].view(x.shape) for n, x in statistics.items()}
        self.tensors = {**state, **statistics, **self.by_name(self.values)}
        self.networks_per_pass = networks_per_pass
        self.passes = [
            {name: tensor[first : first + networks_per_pass] for name, tensor in self.tensors.items()}
            for first in range(0, len(self.values), networks_per_pass)
        ]
        for tensors in self.passes:
            for name in self._shapes:
                tensors[name].requires_grad_()

    @property
    def statistics(self) -> dict[str, Tensor]:
        """The tensors that are not trained."""
        return {name: tensor for name, tensor in self.tensors.items() if name not in self._shapes}

    def passes_of(self, networks: Tensor) -> list[tuple[Tensor | slice, dict[str, Tensor]]]:
        """Passes of some networks alone, the others left out.

        Args:
            networks: their indices, in the CPU's memory.

        Returns:
            For each pass the indices of its networks and a dict as in `passes`, of copies where networks share a pass.
        """
        if self.networks_per_pass == 1:
            return [(slice(i, i + 1), self.passes[i]) for i in networks.tolist()]
        result = []
        for indices in networks.to(self.values.device).split(self.networks_per_pass):
            tensors = {name: statistic[indices] for name, statistic in self.statistics.items()}
            tensors |= self.by_name(self.values[indices])
            for name in self._shapes:
                tensors[name].requires_grad_()
            result.append((indices, tensors))
        return result

    def take_statistics(self, networks: Tensor | slice, tensors: dict[str, Tensor]) -> None:
        """Take over the running statistics of one of `passes_of`, where they are copies."""
        if self.networks_per_pass > 1:
            for name, statistic in self.statistics.items():
                statistic[networks] = tensors[name]

    def by_name(self, values: Tensor) -> dict[str, Tensor]:
        """The trained parameters in a matrix like `values`: name → (N, ...), views of it."""
        parts = values.split([self._aligned(shape.numel()) for shape in self._shapes.values()], dim=1)
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: self._shaped(part[:, : shape.numel()], shape) for (name, shape), part in named}

    def gradients(self, objective: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Gradients of a number with respect to the trained parameters of one of `passes`: (networks, parameters)."""
        gradients = torch.autograd.grad(objective, [tensors[name] for name in self._shapes])
        return self._side_by_side(gradients)

    def _aligned(self, size: int) -> int:
        """The next multiple of the alignment."""
        return -(-size // self._alignment) * self._alignment

    def _side_by_side(self, tensors: Iterable[Tensor]) -> Tensor:
        """Tensors (N, ...) as one (N, numbers) matrix, each with zeros up to the next multiple of the alignment."""
        flat = [self._flat(tensor) for tensor in tensors]
        if self._alignment > 1:
            flat = [pad(tensor, (0, self._aligned(tensor.shape[1]) - tensor.shape[1])) for tensor in flat]
        return torch.cat(flat, dim=1)

    def _flat(self, x: Tensor) -> Tensor:
        """(N, *shape) → (N, numbers), in the order in which they lie in memory."""
        return (as_matrix(x) if self._outputs_last and x.ndim > 3 else x).reshape(len(x), -1)

    def _shaped(self, flat: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `_flat`, a view."""
        if self._outputs_last and len(shape) > 2:
            return as_weight(flat.unflatten(1, (-1, shape[0])), (len(flat), *shape))
        return flat.unflatten(1, shape)
