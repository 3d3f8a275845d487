"""Recurrent language models that train many at a time.

As in `networks`, every tensor has the network as its first axis. On a CPU the networks' cells advance in lockstep, one
batched product a step, with the backward pass written out; on a GPU each layer is PyTorch's (cuDNN).
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
        return torch.stack([functional.embedding(own, w) for own, w in zip(each, weight, strict=True)])

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
    """One LSTM layer of N networks.

    Args:
        x: (N, positions, batch, inputs).
        h, c: (N, batch, units) before the first position; no gradient flows to them.
        weight_ih, weight_hh, bias: (N, 4·units, inputs), (N, 4·units, units), (N, 4·units), gates in PyTorch's order:
            input, forget, cell, output.

    Returns:
        Hidden states (N, positions, batch, units), and h, c after the last position.

    Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.
    """
    if not x.is_cuda:
        return _LSTM.apply(x, h, c, weight_ih, weight_hh, bias)
    found = []
    for own in zip(x, h, c, weight_ih, weight_hh, bias, strict=True):
        x_, h_, c_, *weights, bias_ = own
        weights = [weight.contiguous() for weight in (*weights, bias_, torch.zeros_like(bias_))]
        y, h_, c_ = torch._VF.lstm(
            x_, (h_[None], c_[None]), weights, True, 1, 0.0, torch.is_grad_enabled(), False, False
        )
        found.append((y, h_[0], c_[0]))
    return tuple(map(torch.stack, zip(*found, strict=True)))


def _sigmoids_first(gates: Tensor) -> Tensor:
    """Rows (N, 4·units, ...) from the order input, forget, cell, output to input, forget, output, cell; or back: the
    exchange is its own inverse."""
    i, f, third, fourth = gates.chunk(4, dim=1)
    return torch.cat([i, f, fourth, third], dim=1)


class _LSTM(torch.autograd.Function):
    """See `lstm`. Inside, gates lie in the order input, forget, output, cell, and time comes first."""

    @staticmethod
    def forward(ctx, x, h, c, weight_ih, weight_hh, bias):
        networks, positions, batch, _ = x.shape
        units = weight_hh.shape[2]
        into, around = _sigmoids_first(weight_ih), _sigmoids_first(weight_hh)
        x = x.reshape(networks, positions * batch, -1)
        driven = torch.baddbmm(_sigmoids_first(bias)[:, None], x, into.transpose(1, 2))
        driven = driven.view(networks, positions, batch, 4 * units)
        gates = x.new_empty(positions, networks, batch, 4 * units)
        cells, hidden = (x.new_empty(positions + 1, networks, batch, units) for _ in range(2))
        squashed = x.new_empty(positions, networks, batch, units)  # tanh of the cells
        hidden[0], cells[0] = h, c
        turned = around.transpose(1, 2)
        for t in range(positions):
            now = gates[t]
            torch.baddbmm(driven[:, t], hidden[t], turned, out=now)
            now[..., : 3 * units].sigmoid_()
            now[..., 3 * units :].tanh_()
            i, f, o, g = now.split(units, dim=-1)
            torch.mul(f, cells[t], out=cells[t + 1])
            cells[t + 1].addcmul_(i, g)
            torch.tanh(cells[t + 1], out=squashed[t])
            torch.mul(o, squashed[t], out=hidden[t + 1])
        ctx.save_for_backward(x, gates, cells, hidden, squashed, into, around)
        ctx.mark_non_differentiable(h, c)
        ctx.set_materialize_grads(True)
        return hidden[1:].transpose(0, 1), hidden[-1].clone(), cells[-1].clone()

    @staticmethod
    def backward(ctx, grad, grad_h, grad_c):
        x, gates, cells, hidden, squashed, into, around = ctx.saved_tensors
        positions, networks, batch, four = gates.shape
        units = four // 4
        i, f, o, g = gates.split(units, dim=-1)
        # What a step's gradients are multiplied with, for all steps at once; the steps then need few operations.
        factors = torch.empty_like(gates)
        of = factors.split(units, dim=-1)
        torch.mul(g * i, 1 - i, out=of[0])
        torch.mul(cells[:-1] * f, 1 - f, out=of[1])
        torch.mul(squashed * o, 1 - o, out=of[2])
        torch.mul(i, 1 - g * g, out=of[3])
        through = o * (1 - squashed * squashed)
        deltas = torch.empty_like(gates)
        grad = grad.transpose(0, 1)
        dh, dc = grad[-1] + grad_h, grad_c
        for t in range(positions - 1, -1, -1):
            dc = torch.addcmul(dc, dh, through[t])
            now = deltas[t]
            torch.mul(factors[t].unflatten(-1, (4, units)), dc[:, :, None], out=now.unflatten(-1, (4, units)))
            torch.mul(factors[t][..., 2 * units : 3 * units], dh, out=now[..., 2 * units : 3 * units])
            if t:
                dc = dc * f[t]
                dh = torch.baddbmm(grad[t - 1], now, around)
        deltas = deltas.transpose(0, 1).reshape(networks, positions * batch, four)
        before = hidden[:-1].transpose(0, 1).reshape(networks, positions * batch, units)
        x_grad = torch.bmm(deltas, into).view(networks, positions, batch, -1) if ctx.needs_input_grad[0] else None
        turned = deltas.transpose(1, 2)
        into_grad, around_grad = (_sigmoids_first(torch.bmm(turned, other)) for other in (x, before))
        return x_grad, None, None, into_grad, around_grad, _sigmoids_first(deltas.sum(dim=1))
