"""What a layer gives for a batch, as data points × neurons.

A layer may give a tensor or a tuple, dict or dataclass with one in it, once or several times in a forward pass. Feature
maps and sequences of tokens become data points and neurons as the user says; anything else is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

LAST_HIDDEN_STATE = "last_hidden_state"
"""Entry that is taken of outputs that have it, as those of Hugging Face's models."""
OF_MAPS = (
    nn.modules.conv._ConvNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._LPPoolNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)
"""Modules whose outputs have channels before space."""


@dataclass(frozen=True)
class Reading:
    """How outputs are read.

    Attributes:
        output: key, attribute or index of the tensor in a layer's output; None: the output itself, last_hidden_state,
            or the first tensor.
        call: which of several calls of a layer in a forward pass, from 0, or "mean"; None: such layers are refused.
        tokens: of sequences, the "mean" over tokens, the "first" or the "last" token, or "all", each of them a data
            point; None: sequences are refused.
        maps: of feature maps, the "mean" over space, "flatten", each position of each channel a neuron, or "positions",
            each position a data point.
    """

    output: str | None = None
    call: int | Literal["mean"] | None = None
    tokens: Literal["mean", "first", "last", "all"] | None = None
    maps: Literal["mean", "flatten", "positions"] = "mean"


@dataclass(frozen=True)
class Layout:
    """Where the axes of a layer's output are.

    Attributes:
        kind: "neurons" (n, d), "tokens" (n, t, d) or "maps".
        batch: the axis of the inputs.
        channels: the axis of the neurons, of those that are left when the batch is first.
        shape: for one input, as it is.
        calls: how often the layer is called in a forward pass.
    """

    kind: Literal["neurons", "tokens", "maps"]
    batch: int
    channels: int
    shape: tuple[int, ...]
    calls: int = 1

    def describe(self) -> str:
        """The shape for one input, in words where the axes are not obvious."""
        sizes = "×".join(map(str, self.shape))
        if self.kind == "tokens":
            return f"{sizes} (tokens × neurons)"
        return f"{sizes} (channels last)" if self.kind == "maps" and self.channels == len(self.shape) else sizes


def tensor_of(output: object, which: str | None) -> Tensor | None:
    """The tensor in a layer's output that is meant; None if there is none.

    Args:
        output: what the layer returned.
        which: key, attribute or index, or several with dots between them, as 1.0; None: the output itself, its
            last_hidden_state, or the first tensor in it.
    """
    if isinstance(output, Tensor):
        return output if which in (None, "0") else None
    entries = _entries(output)
    if which is not None:
        if which in entries:
            return tensor_of(entries[which], None)
        head, _, rest = which.partition(".")
        return tensor_of(entries[head], rest) if rest and head in entries else None
    if isinstance(entries.get(LAST_HIDDEN_STATE), Tensor):
        return entries[LAST_HIDDEN_STATE]
    return next((found for entry in entries.values() if (found := tensor_of(entry, None)) is not None), None)


def _entries(output: object) -> dict[str, object]:
    """What a container holds, by key, attribute or index."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    if isinstance(output, (tuple, list)):
        return {str(index): value for index, value in enumerate(output)}
    if dataclasses.is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return {}


def merged(outputs: Sequence[Tensor], call: int | Literal["mean"] | None) -> Tensor:
    """One tensor of those that the calls of a layer gave."""
    if call == "mean" and outputs[0].is_floating_point():
        return torch.stack(list(outputs)).mean(dim=0)
    return outputs[call if isinstance(call, int) else 0]


@dataclass(frozen=True)
class Seen:
    """What the layers of a network gave that says how others are to be read.

    Attributes:
        counts: inputs in each of the two forward passes.
        tokens: lengths of sequences.
        signals: (channels, length) of what one-dimensional convolutions gave.
        maps: (height, width) of what two-dimensional ones gave.
    """

    counts: tuple[int, int]
    tokens: frozenset[int] = frozenset()
    signals: frozenset[tuple[int, ...]] = frozenset()
    maps: frozenset[tuple[int, ...]] = frozenset()


def layout_of(module: nn.Module, calls: Sequence[Sequence[object]], reading: Reading, seen: Seen) -> str | Layout:
    """How the outputs of a layer are laid out, or why they cannot be captured.

    Args:
        module: the layer.
        calls: for each of two forward passes, what each call of the layer returned.
        reading: how outputs are read.
        seen: in the same passes.

    Returns:
        The `Layout`, or the reason.
    """
    if not calls[0]:
        return "never called in a forward pass"
    if len(calls[0]) != len(calls[1]):
        first, second = seen.counts
        return f"called {len(calls[0])} times for {first} inputs and {len(calls[1])} times for {second}"
    if len(calls[0]) > 1 and reading.call is None:
        return f"called {len(calls[0])} times in a forward pass; add --call 0, 1, ... or mean"
    if isinstance(reading.call, int) and reading.call >= len(calls[0]):
        return f"called {len(calls[0])} times in a forward pass, so there is no call {reading.call}"
    tensors_of_calls = [[tensor_of(output, reading.output) for output in outputs] for outputs in calls]
    if any(tensor is None for tensors in tensors_of_calls for tensor in tensors):
        entries = ", ".join(_entries(calls[0][0])) or f"a {type(calls[0][0]).__name__}"
        wanted = f"no tensor {reading.output}" if reading.output else "no tensor"
        return f"gives {wanted} but {entries}"
    if reading.call == "mean" and len({tensor.shape for tensor in tensors_of_calls[0]}) > 1:
        return "its calls give different shapes; add --call 0, 1, ..."
    two, three = (merged(tensors, reading.call) for tensors in tensors_of_calls)
    layout = _layout(module, two, three, seen)
    return layout if isinstance(layout, str) else dataclasses.replace(layout, calls=len(calls[0]))


def _layout(module: nn.Module, two: Tensor, three: Tensor, seen: Seen) -> str | Layout:
    if two.is_nested or two.layout != torch.strided:
        return "gives a nested or sparse tensor; choose a layer of plain ones"
    if two.is_quantized:
        return "gives a quantized tensor; capture the network before it is quantized"
    if not two.is_floating_point():
        return f"gives numbers of type {str(two.dtype).removeprefix('torch.')}; choose a layer of real numbers"
    given = f"gives {_times(two.shape)} for {_inputs(seen.counts[0])} and {_times(three.shape)} for {seen.counts[1]}"
    if two.ndim != three.ndim:
        return f"{given}: it drops the axis of a single input, as squeeze() does; use a larger --batch"
    changed = [axis for axis in range(two.ndim) if two.shape[axis] != three.shape[axis]]
    if len(changed) != 1 or (two.shape[changed[0]], three.shape[changed[0]]) != seen.counts:
        return f"{given}, not a row for each"
    (batch,) = changed
    shape = tuple(size for axis, size in enumerate(three.shape) if axis != batch)
    if not all(shape) or not shape:
        return f"gives {_times(three.shape)}, no number for an input" if shape else "gives a single number for an input"
    if len(shape) == 1:
        return Layout("neurons", batch, 1, shape)
    if len(shape) == 2 and not _holds_channels_first(module) and shape not in seen.signals:
        return Layout("tokens", batch, 2, shape)
    if len(shape) > 3:
        return f"gives {_times(shape)} for an input, more axes than a map has"
    of_tokens = len(shape) == 3 and shape[1] == shape[2] and shape[1] in seen.tokens
    if len(shape) == 3 and (
        _is_attention(three.movedim(batch, 0)) or (of_tokens and not _holds_channels_first(module))
    ):
        return f"gives attention, {_times(shape)} for an input (heads × tokens × tokens); choose the module around it"
    channels_first = _holds_channels_first(module) or shape[1:] in seen.maps
    if len(shape) == 3 and shape[1] != shape[2] and shape[0] != shape[1] and not channels_first:
        return f"gives {_times(shape)} for an input, no square map (heads of attention?); choose the module around it"
    last = len(shape) == 3 and shape[0] == shape[1] != shape[2] and not channels_first
    return Layout("maps", batch, len(shape) if last else 1, shape)


def _holds_channels_first(module: nn.Module) -> bool:
    """Whether a module's own outputs have channels before space, as convolutions give them."""
    return isinstance(module, OF_MAPS)


def is_ambiguous(module: nn.Module, layout: str | Layout) -> bool:
    """Whether any axis of a layer's maps may be that of the channels: all are of one size, and the module says
    nothing."""
    return (
        isinstance(layout, Layout)
        and layout.kind == "maps"
        and len(set(layout.shape)) == 1
        and layout.shape[0] > 1
        and not _holds_channels_first(module)
    )


def found_in_larger(layout: Layout, outputs_of_calls: Sequence[object], reading: Reading) -> str | Layout:
    """The layout of a layer's maps whose sizes do not tell the axes apart: the channels do not grow with the inputs.

    Args:
        layout: as it seems, see `is_ambiguous`.
        outputs_of_calls: what each call of the layer returned for inputs of twice the height and width; fewer where the
            network fails on these.
        reading: how outputs are read.

    Returns:
        The `Layout`, or why it is not known.
    """
    unknown = (
        f"gives {_times(layout.shape)} for an input, and any of these axes may be that of the channels; use inputs of "
        "another size, or choose a convolution or a normalisation next to it"
    )
    tensors = [tensor_of(output, reading.output) for output in outputs_of_calls]
    if len(tensors) != layout.calls or any(tensor is None for tensor in tensors):
        return unknown
    shape = list(merged(tensors, reading.call).shape)
    if len(shape) != len(layout.shape) + 1:
        return unknown
    del shape[layout.batch]
    unchanged = [axis for axis, size in enumerate(shape, start=1) if size == layout.shape[axis - 1]]
    if unchanged == [2] and len(shape) == 2:
        return dataclasses.replace(layout, kind="tokens", channels=2)
    if unchanged not in ([1], [len(shape)]):
        return unknown
    return dataclasses.replace(layout, channels=unchanged[0])


def _is_attention(x: Tensor) -> bool:
    """Whether the last axis holds shares: what a softmax over tokens gives."""
    if x.shape[-1] < 2 or x.shape[-1] != x.shape[-2]:
        return False
    sums = x.float().sum(dim=-1)
    return bool((x >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2)


def needs(layout: Layout, reading: Reading) -> str | None:
    """What the user has to say before the layer can be captured; None if nothing."""
    if layout.kind == "tokens" and reading.tokens is None:
        return f"gives {layout.describe()}; add --tokens mean, first, last or all"
    return None


def points(output: Tensor, layout: Layout, reading: Reading, mask: Tensor | None = None) -> Tensor:
    """(data points, neurons) of what a layer gave for a batch of n inputs.

    Args:
        output: of all inputs.
        layout: of the layer.
        reading: of tokens "all" or maps "positions", each input gives as many data points as it has tokens or
            positions, one input after the other.
        mask: (n, t), 0 for tokens that are padding, which do not count; None: no token is.
    """
    x = output.movedim(layout.batch, 0)
    if layout.kind == "neurons":
        return x
    if layout.kind == "tokens":
        return _tokens(x, reading.tokens, mask if mask is not None and mask.shape == x.shape[:2] else None)
    x = x.movedim(layout.channels, -1).flatten(1, -2)  # (n, positions, channels)
    if reading.maps == "mean":
        return x.mean(dim=1)
    return x.flatten(1) if reading.maps == "flatten" else x.flatten(0, 1)


def _tokens(x: Tensor, which: str | None, mask: Tensor | None) -> Tensor:
    """(data points, neurons) of sequences (n, t, neurons), without padding."""
    if mask is None:
        picked = {"mean": lambda: x.mean(dim=1), "first": lambda: x[:, 0], "last": lambda: x[:, -1]}
        return picked[which]() if which in picked else x.flatten(0, 1)
    real = mask.to(x.device, torch.bool)
    if which == "all":
        return x[real]
    if which == "mean":
        wide = x.float() if x.element_size() < 4 else x  # a sum in half precision would overflow
        return ((wide * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1)).to(x.dtype)
    positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    ends = positions.masked_fill(~real, x.shape[1]).amin(dim=1) if which == "first" else (positions * real).amax(dim=1)
    return x[torch.arange(len(x), device=x.device), ends.clamp(max=x.shape[1] - 1)]


def neurons(layout: Layout, reading: Reading) -> int:
    """Number of neurons of a layer as it is read."""
    if layout.kind == "maps" and reading.maps == "flatten":
        return prod(layout.shape)
    return layout.shape[layout.channels - 1]


def drops_padding(layout: Layout, reading: Reading) -> bool:
    """Whether an input gives a data point for each of its tokens but those that a mask calls padding."""
    return layout.kind == "tokens" and reading.tokens == "all"


def points_per_input(layout: Layout, reading: Reading) -> int:
    """Data points that one input gives in a layer."""
    if layout.kind == "tokens" and reading.tokens == "all":
        return layout.shape[0]
    if layout.kind == "maps" and reading.maps == "positions":
        return prod(layout.shape) // layout.shape[layout.channels - 1]
    return 1


def seen_in(network: nn.Module, calls: Mapping[str, tuple[list, list]], counts: tuple[int, int]) -> Seen:
    """What a network's layers gave in two forward passes.

    Args:
        network: whose layers they are.
        calls: layer → what its calls returned in each pass.
        counts: inputs in each pass.
    """
    tokens, signals, maps = set(), set(), set()
    for name, (_, outputs) in calls.items():
        for x in (tensor_of(output, None) for output in outputs):
            if x is None or x.is_nested or x.ndim not in (3, 4) or x.shape[0] != counts[1]:
                continue
            channels_first = _holds_channels_first(network.get_submodule(name))
            if x.ndim == 3:
                signals.add(tuple(x.shape[1:])) if channels_first else tokens.add(x.shape[1])
            elif channels_first:
                maps.add(tuple(x.shape[2:]))
    return Seen(counts, frozenset(tokens), frozenset(signals), frozenset(maps))


def _inputs(count: int) -> str:
    return "1 input" if count == 1 else f"{count} inputs"


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
