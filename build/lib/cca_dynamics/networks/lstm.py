"""Recurrent language models, computed many at a time.

As in `convolutional`, every tensor has the network as its first axis. Each layer of each network is PyTorch's own LSTM:
a batched step for all networks is slower than that, on a CPU too (benchmarks/language.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cca_dynamics.config.models import Dropout
from cca_dynamics.networks.architectures import LanguageModel

State = list[tuple[Tensor, Tensor]]
"""Hidden state and cell state of each layer, both (N, batch, units)."""


def awd_lstm(architecture: LanguageModel, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Initialise as awd-lstm-lm does: LSTM layers uniformly on ±1/√units, embedding and head on ±0.1, the head's biases
    with 0.

    This is for wide layers; through several narrow ones too little of the input arrives.

    Source: Merity, Keskar & Socher 2017.
    """
    values = {}
    for name, shape in architecture.shapes().items():
        layer = name.partition(".")[0]
        bound = architecture.widths[layer] ** -0.5 if layer in architecture.widths else 0.1
        values[name] = generator.uniform(-bound, bound, size=shape).astype(np.float32)
    values["head.bias"] = np.zeros_like(values["head.bias"])
    return values


def glorot(architecture: LanguageModel, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Initialise the matrices of each gate and of the head uniformly on ±√(6 / (inputs + outputs)), biases with 0.

    The embedding is normal with standard deviation 1, or 1/√embedding if the head shares it.

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


INITIALIZERS = {"glorot": glorot, "awd_lstm": awd_lstm}
"""Adding a way to draw the initial weights: one function and one line here."""


class LanguageModels:
    """Any number of language models of one architecture; their parameters are passed to each method.

    Args:
        architecture: which layers they have.
    """

    def __init__(self, architecture: LanguageModel):
        self.architecture = architecture

    def initialise(self, generators: Iterable[np.random.Generator], initial: str = "glorot") -> dict[str, Tensor]:
        """Initial parameters of one network per generator, stacked on the first axis.

        Args:
            generators: one per network.
            initial: key of `INITIALIZERS`.
        """
        networks = [INITIALIZERS[initial](self.architecture, generator) for generator in generators]
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
            dropout: rates in training; None: nothing is dropped.
            generators: one per network, which draw the masks.

        Returns:
            Hidden states of each layer (N, positions, batch, units); those of the last layer after dropout, which are
            what the head reads; and the state after the window, detached.
        """
        masks = _Masks(dropout or Dropout(), generators, len(state["embedding.weight"]))
        x = masks.locked(self._embedded(state, tokens, masks), masks.rates.input)
        hidden, after = [], []
        for layer, (h, c) in zip(self.architecture.layers, carried, strict=True):
            if hidden:
                x = masks.locked(x, masks.rates.hidden)
            weight_hh = masks.entries(state[f"{layer}.weight_hh"], masks.rates.weight)
            x, h, c = lstm(x, h, c, state[f"{layer}.weight_ih"], weight_hh, state[f"{layer}.bias"])
            hidden.append(x)
            after.append((h.detach(), c.detach()))
        return hidden, masks.locked(x, masks.rates.output), after

    def _embedded(self, state: dict[str, Tensor], tokens: Tensor, masks: _Masks) -> Tensor:
        weight = masks.rows(state["embedding.weight"], masks.rates.embedding)
        per_network = tokens if tokens.ndim == 3 else [tokens] * len(weight)
        return _stacked([functional.embedding(t, w) for t, w in zip(per_network, weight, strict=True)])

    def logits(self, state: dict[str, Tensor], features: Tensor) -> Tensor:
        """Logits (N, positions, batch, vocabulary) of the features (N, positions, batch, units) that the head reads."""
        weight = state["embedding.weight" if self.architecture.tied else "head.weight"]
        flat = torch.baddbmm(state["head.bias"][:, None], features.flatten(1, 2), weight.transpose(1, 2))
        return flat.view(*features.shape[:3], -1)


class _Masks:
    """Dropout masks: those of each network are drawn by a generator of its own."""

    def __init__(self, rates: Dropout, generators: Sequence[torch.Generator] | None, networks: int):
        self.rates, self.generators, self.networks = rates, generators, networks

    def locked(self, x: Tensor, rate: float) -> Tensor:
        """Drop units of (N, positions, batch, units), the same at all positions."""
        return x * self._mask((1, *x.shape[2:]), rate, x) if rate else x

    def rows(self, weight: Tensor, rate: float) -> Tensor:
        """Drop rows of (N, rows, columns)."""
        return weight * self._mask((weight.shape[1], 1), rate, weight) if rate else weight

    def entries(self, weight: Tensor, rate: float) -> Tensor:
        """Drop entries of (N, rows, columns)."""
        return weight * self._mask(weight.shape[1:], rate, weight) if rate else weight

    def _mask(self, shape: Sequence[int], rate: float, like: Tensor) -> Tensor:
        drawn = torch.stack([torch.rand(*shape, generator=generator) for generator in self.generators])
        return ((drawn >= rate).to(like.dtype) / (1 - rate)).to(like.device)


def lstm(
    x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM layer of N networks, each computed by PyTorch's own layer (on a GPU by cuDNN's).

    Args:
        x: (N, positions, batch, inputs).
        h, c: (N, batch, units) before the first position.
        weight_ih, weight_hh, bias: (N, 4·units, inputs), (N, 4·units, units), (N, 4·units), gates in PyTorch's order:
            input, forget, cell, output.

    Returns:
        Hidden states (N, positions, batch, units), and h, c after the last position.

    Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.
    """
    results = []
    for x_, h_, c_, *weights, bias_ in zip(x, h, c, weight_ih, weight_hh, bias, strict=True):
        weights = [weight.contiguous() for weight in (*weights, bias_, torch.zeros_like(bias_))]
        y, h_, c_ = torch._VF.lstm(
            x_, (h_[None], c_[None]), weights, True, 1, 0.0, torch.is_grad_enabled(), False, False
        )
        results.append((y, h_[0], c_[0]))
    return tuple(map(_stacked, zip(*results, strict=True)))


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors on a new first axis; a single one as a view."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))
