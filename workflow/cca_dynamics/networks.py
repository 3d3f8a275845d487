"""Networks that train many at a time.

A cohort's networks are one computation: every tensor has the network as its first axis, so a step of fifty small
networks costs one pass through PyTorch, not fifty. Nothing mixes along that axis; network i is the same whichever
networks it shares a cohort with, up to rounding.

Activations are stored channels last, (networks, batch, *space, channels). A convolution is then a copy that lays the
inputs of each output position side by side, and one matrix product per network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import torch
from torch import Tensor

BATCH_NORM_MOMENTUM, BATCH_NORM_EPSILON = 0.1, 1e-5  # PyTorch's defaults


@dataclass(frozen=True)
class ConvNet:
    """Convolutions with batch norm and ReLU, the mean over space, a linear head.

    Attributes:
        in_channels: channels of the input.
        space: its spatial shape, (length,) or (height, width).
        classes: outputs.
        channels, strides: one per convolution.
        kernel: odd width of the filters; the padding keeps the shape at stride 1.
        batch_norm: batch norm after each convolution (which then has no bias).
    """

    in_channels: int
    space: tuple[int, ...]
    classes: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    kernel: int = 3
    batch_norm: bool = True

    @property
    def layers(self) -> list[str]:
        """conv1, conv2, ..., softmax: the names of the representations."""
        return [f"conv{i + 1}" for i in range(len(self.channels))] + ["softmax"]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter of one network, named and laid out as in a plain torch.nn.Module."""
        result: dict[str, tuple[int, ...]] = {}
        incoming = self.in_channels
        for i, outgoing in enumerate(self.channels):
            result[f"conv{i + 1}.weight"] = (outgoing, incoming, *(self.kernel,) * len(self.space))
            if self.batch_norm:
                result[f"norm{i + 1}.weight"] = (outgoing,)
            result[f"{'norm' if self.batch_norm else 'conv'}{i + 1}.bias"] = (outgoing,)
            incoming = outgoing
        result["head.weight"] = (self.classes, incoming)
        result["head.bias"] = (self.classes,)
        return result

    def initialise(self, generators: Iterable[np.random.Generator]) -> dict[str, Tensor]:
        """Initial parameters and batch-norm statistics of one network per generator, stacked on the first axis.

        Weights and biases are uniform on ±1/√fan-in, as PyTorch initialises its layers.
        """
        networks = [self._initial(generator) for generator in generators]
        state = {name: torch.from_numpy(np.stack([network[name] for network in networks])) for name in networks[0]}
        if self.batch_norm:
            for i, outgoing in enumerate(self.channels):
                state[f"norm{i + 1}.running_mean"] = torch.zeros(len(networks), outgoing)
                state[f"norm{i + 1}.running_var"] = torch.ones(len(networks), outgoing)
        return state

    def _initial(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        values = {}
        for name, shape in self.shapes().items():
            if name.startswith("norm"):
                values[name] = np.full(shape, float(name.endswith("weight")), dtype=np.float32)
            else:
                fan_in = prod(self.shapes()[name.replace("bias", "weight")][1:])
                bound = fan_in**-0.5
                values[name] = generator.uniform(-bound, bound, size=shape).astype(np.float32)
        return values

    def logits(self, state: dict[str, Tensor], x: Tensor) -> Tensor:
        """Forward pass in training mode; updates the running statistics in `state`.

        Args:
            state: stacked parameters, N networks.
            x: (N, batch, *space, channels), each network's own batch.

        Returns:
            (N, batch, classes), differentiable.
        """
        for i, stride in enumerate(self.strides):
            name = f"conv{i + 1}"
            if self.batch_norm:
                norm = [state[f"norm{i + 1}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]
                x = _ConvNormReLU.apply(x, state[f"{name}.weight"], *norm, stride)
            else:
                x = _ConvReLU.apply(x, state[f"{name}.weight"], state[f"{name}.bias"], stride)
        return self._head(state, self._mean_over_space(x))

    def representations(
        self, state: dict[str, Tensor], x: Tensor, layers: Sequence[str], batch_size: int = 500
    ) -> dict[str, Tensor]:
        """What each layer makes of the same data points, in evaluation mode.

        Args:
            state: stacked parameters, N networks.
            x: (n, channels, *space).
            layers: names from `layers`.
            batch_size: data points at a time.

        Returns:
            layer → (N, n, d) float32: the mean over space after the ReLU; for "softmax" the class probabilities.

        Raises:
            ValueError: a layer does not exist.
        """
        unknown = [layer for layer in layers if layer not in self.layers]
        if unknown:
            raise ValueError(f"the network has no layer {unknown[0]}; its layers are {', '.join(self.layers)}")
        found: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        for batch in channels_last(x).split(batch_size):
            means, logits = self._evaluate(state, batch)
            for layer in layers:
                found[layer].append(logits.softmax(-1) if layer == "softmax" else means[layer])
        return {layer: torch.cat(parts, dim=1) for layer, parts in found.items()}

    @torch.no_grad()
    def evaluate(self, state: dict[str, Tensor], x: Tensor, y: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy (nats) and accuracy of each network in evaluation mode.

        Args:
            state: stacked parameters, N networks.
            x, y: (n, channels, *space) and (n,) class indices.
            batch_size: data points at a time.

        Returns:
            Two (N,) tensors.
        """
        loss = correct = 0
        for inputs, labels in zip(channels_last(x).split(batch_size), y.split(batch_size), strict=True):
            _, logits = self._evaluate(state, inputs)
            chosen = logits.log_softmax(-1)[:, torch.arange(len(labels), device=labels.device), labels]
            loss = loss - chosen.sum(dim=1)
            correct = correct + (logits.argmax(-1) == labels).sum(dim=1)
        return loss / len(y), correct / len(y)

    @torch.no_grad()
    def accuracy_without(
        self, state: dict[str, Tensor], x: Tensor, y: Tensor, masks: dict[str, Tensor], batch_size: int = 50
    ) -> Tensor:
        """Accuracy of one network in evaluation mode when some of its feature maps are clamped to zero.

        Args:
            state: stacked parameters of one network.
            x, y: (n, channels, *space) and (n,) class indices.
            masks: layer → (M, channels) of 1 (stays) and 0 (clamped), M ways at once.
            batch_size: data points at a time.

        Returns:
            (M,). Layers up to the first one of `masks` are computed once for all M.
        """
        ways, correct = len(next(iter(masks.values()))), 0
        for inputs, labels in zip(channels_last(x).split(batch_size), y.split(batch_size), strict=True):
            hidden = inputs[None]
            for i in range(len(self.channels)):
                hidden = self._layer(state, i, hidden)
                mask = masks.get(f"conv{i + 1}")
                if mask is not None:
                    hidden = hidden.view(-1, len(labels), *hidden.shape[2:])  # (1 or M, batch, *space, channels)
                    hidden = (hidden * mask.view(ways, *(1,) * (hidden.ndim - 2), -1)).flatten(0, 1)[None]
            logits = self._head(state, self._mean_over_space(hidden)).view(ways, len(labels), -1)
            correct = correct + (logits.argmax(-1) == labels).sum(dim=1)
        return correct / len(y)

    @torch.no_grad()
    def _evaluate(self, state: dict[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """(layer → mean over space (N, n, d), logits) of shared inputs (n, *space, channels)."""
        x = x.expand(len(state["head.weight"]), *x.shape)
        means = {}
        for i in range(len(self.channels)):
            x = self._layer(state, i, x)
            means[f"conv{i + 1}"] = self._mean_over_space(x)
        return means, self._head(state, means[f"conv{len(self.channels)}"])

    def _layer(self, state: dict[str, Tensor], i: int, x: Tensor) -> Tensor:
        """Convolution i of (N, n, *space, channels) in evaluation mode, batch norm folded in."""
        weight = _as_matrix(state[f"conv{i + 1}.weight"])
        if self.batch_norm:
            gain, bias, mean, var = (
                state[f"norm{i + 1}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = gain * torch.rsqrt(var + BATCH_NORM_EPSILON)
            weight, bias = weight * scale[:, None], bias - mean * scale
        else:
            bias = state[f"conv{i + 1}.bias"]
        columns, shape = _unfold(x, self.kernel, self.strides[i])
        return torch.baddbmm(bias[:, None], columns, weight).relu_().view(shape + weight.shape[-1:])

    def _mean_over_space(self, x: Tensor) -> Tensor:
        return x.mean(dim=tuple(range(2, x.ndim - 1)))

    def _head(self, state: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.baddbmm(state["head.bias"][:, None], x, state["head.weight"].transpose(1, 2))


NETWORKS = {"convnet": ConvNet}
"""Adding an architecture: one class with ConvNet's public methods, and one line here."""


def build(network: dict, in_channels: int, space: Sequence[int], classes: int) -> ConvNet:
    """The architecture that a config's `network` block describes, for a dataset's inputs."""
    options = {
        key: tuple(value) if isinstance(value, list) else value for key, value in network.items() if key != "name"
    }
    return NETWORKS[network["name"]](in_channels=in_channels, space=tuple(space), classes=classes, **options)


def channels_last(x: Tensor) -> Tensor:
    """(n, channels, *space) → (n, *space, channels), contiguous."""
    return x.movedim(1, -1).contiguous()


def _as_matrix(weight: Tensor) -> Tensor:
    """(N, out, in, *kernel) → (N, kernel·in, out), the order in which `_unfold` lays inputs side by side."""
    return weight.movedim((1, 2), (-1, -2)).flatten(1, -2)


def _as_weight(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `_as_matrix`, for a weight of the given shape."""
    _, _, incoming, *kernel = shape
    return matrix.unflatten(1, (*kernel, incoming)).movedim((-1, -2), (1, 2))


def _unfold(x: Tensor, kernel: int, stride: int) -> tuple[Tensor, tuple[int, ...]]:
    """Lay the inputs of each output position side by side.

    Args:
        x: (N, batch, *space, channels).

    Returns:
        (N, batch·positions, kernel·channels) and the shape (N, batch, *positions).
    """
    networks, batch, *space, channels = x.shape
    margin = kernel // 2
    out = tuple((size + 2 * margin - kernel) // stride + 1 for size in space)
    if margin:
        x = torch.nn.functional.pad(x, (0, 0) + (margin, margin) * len(space))
    elif not x.is_contiguous():
        x = x.contiguous()
    s = x.stride()
    window = x.as_strided(
        (networks, batch, *out, *(kernel,) * len(space), channels),
        (s[0], s[1], *(stride * step for step in s[2:-1]), *s[2:-1], 1),
    )
    return window.reshape(networks, batch * prod(out), kernel ** len(space) * channels), (networks, batch, *out)


def _fold(columns: Tensor, shape: Sequence[int], kernel: int, stride: int) -> Tensor:
    """The transpose of `_unfold`: add up what each input of shape (N, batch, *space, channels) contributed to."""
    networks, batch, *space, channels = shape
    margin = kernel // 2
    out = [(size + 2 * margin - kernel) // stride + 1 for size in space]
    columns = columns.view(networks, batch, *out, *(kernel,) * len(space), channels)
    padded = columns.new_zeros(networks, batch, *(size + 2 * margin for size in space), channels)
    for tap in product(range(kernel), repeat=len(space)):
        places = tuple(slice(k, k + stride * (n - 1) + 1, stride) for k, n in zip(tap, out, strict=True))
        padded[(..., *places, slice(None))] += columns[(..., *tap, slice(None))]
    return padded[(..., *(slice(margin, margin + size) for size in space), slice(None))]


class _ConvReLU(torch.autograd.Function):
    """relu(x ∗ w + b) of each network's own input."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride):
        columns, shape = _unfold(x, weight.shape[3], stride)
        y = torch.baddbmm(bias[:, None], columns, _as_matrix(weight)).relu_()
        ctx.save_for_backward(columns, weight, y)
        ctx.input_shape, ctx.conv_stride = x.shape, stride
        return y.view(*shape, -1)

    @staticmethod
    def backward(ctx, grad):
        columns, weight, y = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad.reshape(y.shape), y, 0)
        matrix = _as_matrix(weight)
        x_grad = None
        if ctx.needs_input_grad[0]:
            shape = ctx.input_shape
            x_grad = _fold(torch.bmm(grad, matrix.transpose(1, 2)), shape, weight.shape[3], ctx.conv_stride)
        matrix_grad = torch.bmm(columns.transpose(1, 2), grad)
        return x_grad, _as_weight(matrix_grad, weight.shape), grad.sum(dim=1), None


class _ConvNormReLU(torch.autograd.Function):
    """relu(batch_norm(x ∗ w)) of each network's own input, with running statistics updated in place.

    PyTorch's batch norm takes one network at a time; calling it for each costs more than the arithmetic of a small one.
    """

    @staticmethod
    def forward(ctx, x, weight, gain, bias, running_mean, running_var, stride):
        columns, shape = _unfold(x, weight.shape[3], stride)
        z = torch.bmm(columns, _as_matrix(weight))
        mean = _mean_of_rows(z)
        z -= mean
        variance = _mean_of_rows(z * z)
        running_mean.lerp_(mean[:, 0], BATCH_NORM_MOMENTUM)
        running_var.lerp_(variance[:, 0] * (z.shape[1] / (z.shape[1] - 1)), BATCH_NORM_MOMENTUM)
        inverse_std = torch.rsqrt(variance + BATCH_NORM_EPSILON)
        y = torch.addcmul(bias[:, None], z, inverse_std * gain[:, None]).relu_()
        ctx.save_for_backward(columns, weight, gain, z, y, inverse_std)
        ctx.input_shape, ctx.conv_stride = x.shape, stride
        return y.view(*shape, -1)

    @staticmethod
    def backward(ctx, grad):
        columns, weight, gain, z, y, inverse_std = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad.reshape(y.shape), y, 0)
        mean, with_z = _mean_of_rows(grad), _mean_of_rows(grad * z)
        gain_grad, bias_grad = (z.shape[1] * sums[:, 0] for sums in (with_z * inverse_std, mean))
        scale = inverse_std * gain[:, None]
        z_grad = torch.addcmul(-scale * mean, z, -scale * inverse_std.square() * with_z).addcmul_(grad, scale)
        x_grad = None
        if ctx.needs_input_grad[0]:
            columns_grad = torch.bmm(z_grad, _as_matrix(weight).transpose(1, 2))
            x_grad = _fold(columns_grad, ctx.input_shape, weight.shape[3], ctx.conv_stride)
        matrix_grad = torch.bmm(columns.transpose(1, 2), z_grad)
        return x_grad, _as_weight(matrix_grad, weight.shape), gain_grad, bias_grad, None, None, None


def _mean_of_rows(x: Tensor) -> Tensor:
    """(N, rows, channels) → (N, 1, channels), as a product: quicker than a reduction over the middle axis."""
    return torch.bmm(x.new_full((1, 1, x.shape[1]), 1 / x.shape[1]).expand(len(x), -1, -1), x)
