"""Recurrent language models, any number of one architecture.

As in `networks`, every tensor has the network as its first axis. Each layer of each network is PyTorch's own: batching
the networks' steps is slower than that, on a CPU too (benchmarks/language.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cca_dynamics.architectures import LanguageModel

State = list[tuple[Tensor, Tensor]]
"""Per layer hidden and cell state, each (N, batch, units)."""


@dataclass(frozen=True)
class Dropout:
    """Rates of what is dropped in training. Masks are locked: one for all positions of a window.

    Attributes:
        embedding: whole tokens of the vocabulary.
        input: units of the embedded input.
        hidden: units between layers.
        output: units of the last layer.
        weight: entries of the recurrent matrices (DropConnect).

    Source: Merity, Keskar & Socher 2017, sections 2 and 4.
    """

    embedding: float = 0.0
    input: float = 0.0
    hidden: float = 0.0
    output: float = 0.0
    weight: float = 0.0


def merity(architecture: LanguageModel, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Recurrent layers uniform on ±1/√units, as in PyTorch; embedding and head on ±0.1, biases of the head 0.

    For wide layers; through several narrow ones too little of the input arrives. Source: Merity et al. 2017.
    """
    values = {}
    for name, shape in architecture.shapes().items():
        layer = name.partition(".")[0]
        bound = architecture.widths[layer] ** -0.5 if layer in architecture.widths else 0.1
        values[name] = generator.uniform(-bound, bound, size=shape).astype(np.float32)
    values["head.bias"] = np.zeros_like(values["head.bias"])
    return values


def glorot(architecture: LanguageModel, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Matrices of each gate and of the head uniform on ±√(6 / (inputs + outputs)), biases 0; embedded numbers normal
    with standard deviation 1, or 1/√embedding if the head shares them.

    Source: Glorot & Bengio 2010.
    """
    values = {}
    for name, shape in architecture.shapes().items():
        if name.endswith("bias"):
            values[name] = np.zeros(shape, dtype=np.float32)
        elif name == "embedding.weight":
            spread = shape[1] ** -0.5 if architecture.tied else 1.0
            values[name] = generator.normal(0, spread, size=shape).astype(np.float32)
        else:
            outputs = architecture.widths.get(name.partition(".")[0], shape[0])
            bound = (6 / (shape[1] + outputs)) ** 0.5
            values[name] = generator.uniform(-bound, bound, size=shape).astype(np.float32)
    return values


INITIAL = {"glorot": glorot, "merity": merity}
"""Adding a way to draw initial weights: one function and one line here."""


class LanguageModels:
    """Any number of language models of one architecture; their parameters are passed to each method.

    Args:
        architecture: what they look like.
    """

    def __init__(self, architecture: LanguageModel):
        self.architecture = architecture

    def initialise(self, generators: Iterable[np.random.Generator], initial: str = "glorot") -> dict[str, Tensor]:
        """Initial parameters of one network per generator, stacked on the first axis.

        Args:
            generators: one a network.
            initial: key of `INITIAL`.
        """
        networks = [INITIAL[initial](self.architecture, generator) for generator in generators]
        return {name: torch.from_numpy(np.stack([network[name] for network in networks])) for name in networks[0]}

    def zero_state(self, networks: int, batch: int, device: str = "cpu") -> State:
        """The state before a text begins."""
        widths = self.architecture.widths.values()
        return [tuple(torch.zeros(networks, batch, width, device=device) for _ in range(2)) for width in widths]

    def outputs(
        self,
        state: dict[str, Tensor],
        tokens: Tensor,
        carried: State,
        dropout: Dropout | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> tuple[list[Tensor], Tensor, State]:
        """Run a window of text through all networks.

        Args:
            state: stacked parameters, N networks.
            tokens: (positions, batch), the same for all networks, or (N, positions, batch).
            carried: the state before the window.
            dropout: rates, in training.
            generators: one a network, for the masks.

        Returns:
            Hidden states of each layer (N, positions, batch, units), what the head sees of the last one (after
            dropout), and the state after the window, detached.
        """
        masks = _Masks(dropout or Dropout(), generators, len(state["embedding.weight"]))
        x = masks.locked(self._embedded(state, tokens, masks), masks.rates.input)
        hidden, after = [], []
        for layer, (h, c) in zip(self.architecture.layers, carried, strict=True):
            if hidden:
                x = masks.locked(x, masks.rates.hidden)
            weight_hh = masks.each_entry(state[f"{layer}.weight_hh"], masks.rates.weight)
            x, h, c = lstm(x, h, c, state[f"{layer}.weight_ih"], weight_hh, state[f"{layer}.bias"])
            hidden.append(x)
            after.append((h.detach(), c.detach()))
        return hidden, masks.locked(x, masks.rates.output), after

    def _embedded(self, state: dict[str, Tensor], tokens: Tensor, masks: _Masks) -> Tensor:
        weight = masks.whole_rows(state["embedding.weight"], masks.rates.embedding)
        each = tokens if tokens.ndim == 3 else [tokens] * len(weight)
        return _stacked([functional.embedding(own, w) for own, w in zip(each, weight, strict=True)])

    def logits(self, state: dict[str, Tensor], seen: Tensor) -> Tensor:
        """(N, positions, batch, vocabulary) from what the head sees."""
        weight = state["embedding.weight" if self.architecture.tied else "head.weight"]
        flat = torch.baddbmm(state["head.bias"][:, None], seen.flatten(1, 2), weight.transpose(1, 2))
        return flat.view(*seen.shape[:3], -1)


class _Masks:
    """Dropout masks of each network, by its own generator."""

    def __init__(self, rates: Dropout, generators: Sequence[torch.Generator] | None, networks: int):
        self.rates, self.generators, self.networks = rates, generators, networks

    def locked(self, x: Tensor, rate: float) -> Tensor:
        """Units of (N, positions, batch, units), the same at all positions."""
        return x * self._mask((1, *x.shape[2:]), rate, x) if rate else x

    def whole_rows(self, weight: Tensor, rate: float) -> Tensor:
        """Rows of (N, rows, columns)."""
        return weight * self._mask((weight.shape[1], 1), rate, weight) if rate else weight

    def each_entry(self, weight: Tensor, rate: float) -> Tensor:
        """Entries of (N, rows, columns)."""
        return weight * self._mask(weight.shape[1:], rate, weight) if rate else weight

    def _mask(self, shape: Sequence[int], rate: float, like: Tensor) -> Tensor:
        drawn = torch.stack([torch.rand(*shape, generator=generator) for generator in self.generators])
        return ((drawn >= rate).to(like.dtype) / (1 - rate)).to(like.device)


def lstm(
    x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM layer of N networks, one after the other by PyTorch's own layer (on a GPU cuDNN's).

    Args:
        x: (N, positions, batch, inputs).
        h, c: (N, batch, units) before the first position.
        weight_ih, weight_hh, bias: (N, 4·units, inputs), (N, 4·units, units), (N, 4·units), gates in PyTorch's order:
            input, forget, cell, output.

    Returns:
        Hidden states (N, positions, batch, units), and h, c after the last position.

    Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.
    """
    found = []
    for x_, h_, c_, *weights, bias_ in zip(x, h, c, weight_ih, weight_hh, bias, strict=True):
        weights = [weight.contiguous() for weight in (*weights, bias_, torch.zeros_like(bias_))]
        y, h_, c_ = torch._VF.lstm(
            x_, (h_[None], c_[None]), weights, True, 1, 0.0, torch.is_grad_enabled(), False, False
        )
        found.append((y, h_[0], c_[0]))
    return tuple(map(_stacked, zip(*found, strict=True)))


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """On a new first axis; of one tensor a view."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))
