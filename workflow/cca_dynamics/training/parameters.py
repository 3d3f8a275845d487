"""The parameters of many networks as one matrix."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class StackedParameters:
    """The state of N networks whose trained parameters are views of one (N, parameters) matrix.

    An optimiser then updates all parameters of all networks in a few operations.

    Args:
        state: name → (N, ...), the network first.
        trained: names of the trained parameters; None: all of `state`. The rest are running statistics.
        networks_per_pass: networks that share a forward and backward pass.

    Attributes:
        values: (N, parameters), the trained parameters.
        tensors: name → (N, ...), parameters (views of `values`) and running statistics.
        passes: name → (networks of the pass, ...) for each pass, views of `tensors`; the parameters require gradients.
    """

    def __init__(self, state: dict[str, Tensor], trained: Iterable[str] | None = None, networks_per_pass: int = 1):
        self._shapes = {name: state[name].shape[1:] for name in trained or state}
        self.values = torch.cat([state[name].flatten(1) for name in self._shapes], dim=1)
        self.tensors = {**state, **self.by_name(self.values)}
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

    def passes_of(self, networks: Tensor) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Passes of some networks alone, the others left out.

        Args:
            networks: their indices.

        Returns:
            For each pass the indices of its networks and a dict as in `passes`, of copies where networks share a pass.
        """
        result = []
        for indices in networks.split(self.networks_per_pass):
            if self.networks_per_pass == 1:
                result.append((indices, self.passes[int(indices)]))
                continue
            tensors = {name: tensor.detach()[indices] for name, tensor in self.tensors.items()}
            for name in self._shapes:
                tensors[name].requires_grad_()
            result.append((indices, tensors))
        return result

    def take_statistics(self, networks: Tensor, tensors: dict[str, Tensor]) -> None:
        """Take over the running statistics of one of `passes_of`, where they are copies."""
        if self.networks_per_pass > 1:
            for name, statistic in self.statistics.items():
                statistic[networks] = tensors[name]

    def by_name(self, values: Tensor) -> dict[str, Tensor]:
        """The trained parameters in a matrix like `values`: name → (N, ...), views of it."""
        parts = values.split([shape.numel() for shape in self._shapes.values()], dim=1)
        return {name: part.unflatten(1, shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def gradients(self, objective: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Gradients of a number with respect to the trained parameters of one of `passes`: (networks, parameters)."""
        gradients = torch.autograd.grad(objective, [tensors[name] for name in self._shapes])
        return torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)
