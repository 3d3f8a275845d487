"""Convolutional networks, computed many at a time.

A cohort's networks are one computation: every tensor has the network as its first axis. Nothing mixes along that axis;
network i is the same whichever networks it shares a cohort with, up to rounding.

Activations are stored channels last, (networks, batch, *space, channels). There are two ways to compute:

- in lockstep, for small networks: a convolution is a copy that lays the inputs of each output position side by side,
  and one batched matrix product, so that a step of many networks costs one pass through PyTorch, not many;
- one network after the other, where arithmetic outweighs the calls: PyTorch's own convolution and batch norm.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cca_dynamics.config.models import NetworkOptions
from cca_dynamics.errors import UserError
from cca_dynamics.networks import user_module
from cca_dynamics.networks.architectures import Convolution, ConvolutionalArchitecture, Module, describe
from cca_dynamics.networks.hooks import forward_hooks

BATCH = 500
"""Data points at a time where no gradient is needed, at most."""
IN_CACHE = 2**20
"""Numbers that a CPU computes at a time in lockstep: they should be in its cache when they are read again."""
BATCH_NORM_MOMENTUM, BATCH_NORM_EPSILON = 0.1, 1e-5
"""PyTorch's defaults."""


OnLayerOutput = Callable[[str, Tensor], Tensor]
"""(layer, output) → what is passed on to the next layer."""


class Networks:
    """Any number of networks of one architecture; their parameters are passed to each method.

    Args:
        architecture: which layers they have.
        device: "cpu" or "cuda".
        mixed: whether convolutions in training compute in bfloat16 (not in lockstep); the rest is float32.
        normalise: (..., *space, channels) inputs as they are stored → float32; None: they are read as they are.

    Attributes:
        lockstep: how they are computed, see the module's text; may be set.
        normalise: as above, called with each batch before it is read.
        recordable: whether a step does the same whatever the numbers, so that a GPU can replay it.
    """

    recordable = True

    def __init__(
        self,
        architecture: ConvolutionalArchitecture,
        device: str = "cpu",
        mixed: bool = False,
        normalise: Callable[[Tensor], Tensor] | None = None,
    ):
        self.architecture, self.mixed, self.normalise = architecture, mixed, normalise or _as_they_are
        self.lockstep = architecture.lockstep(device, mixed)

    @property
    def layers(self) -> list[str]:
        """Names of the representations."""
        return list(self.architecture.widths)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter of one network."""
        return self.architecture.shapes()

    def initialise(self, generators: Iterable[np.random.Generator]) -> dict[str, Tensor]:
        """Initial parameters and batch-norm statistics of one network per generator, stacked on the first axis.

        Weights and biases are uniform on ±1/√fan-in, as PyTorch initialises its layers.
        """
        networks = [self._initial(generator) for generator in generators]
        state = {name: torch.from_numpy(np.stack([network[name] for network in networks])) for name in networks[0]}
        if self.architecture.batch_norm:
            for convolution in self.architecture.convolutions:
                state[f"{convolution.norm}.running_mean"] = torch.zeros(len(networks), convolution.outputs)
                state[f"{convolution.norm}.running_var"] = torch.ones(len(networks), convolution.outputs)
        return state

    def _initial(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        values, shapes = {}, self.shapes()
        for name, shape in shapes.items():
            if "norm" in name:
                values[name] = np.full(shape, float(name.endswith("weight")), dtype=np.float32)
            else:
                fan_in = prod(shapes[name.replace("bias", "weight")][1:])
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
        if not self.lockstep and len(x) > 1:
            return torch.cat([self.logits(_only(state, i), x[i : i + 1]) for i in range(len(x))])
        train = _train_in_lockstep if self.lockstep else _train_alone
        if self.mixed and not self.lockstep:
            x = x.bfloat16()
        x = self.architecture.forward(x, lambda c, x, relu: train(c, state, x, relu), _unchanged)
        return _head(state, _mean_over_space(x))

    def width_of(self, *layers: str) -> list[int]:
        """How many neurons each of some layers has.

        Raises:
            UserError: a layer does not exist.
        """
        widths = self.architecture.widths
        unknown = [layer for layer in layers if layer not in widths]
        if unknown:
            raise UserError(f"the network has no layer {unknown[0]}; its layers are {', '.join(widths)}")
        return [widths[layer] for layer in layers]

    @torch.no_grad()
    def representations(
        self, state: dict[str, Tensor], x: Tensor, layers: Sequence[str], batch_size: int | None = None
    ) -> dict[str, Tensor]:
        """The representations of the same data points in each layer, in evaluation mode.

        Args:
            state: stacked parameters, N networks.
            x: (n, channels, *space).
            layers: names of layers.
            batch_size: data points at a time; None: as many as are quick.

        Returns:
            layer → (N, n, d) float32: the mean over space after the ReLU; for "softmax" the class probabilities.

        Raises:
            UserError: a layer does not exist.
        """
        self.width_of(*layers)
        batches: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        for batch in self._batches(x, batch_size or self._quick_batch_size(state)):
            means: dict[str, Tensor] = {}

            def record_mean(layer: str, x: Tensor, means: dict[str, Tensor] = means) -> Tensor:
                means[layer] = _mean_over_space(x)
                return x

            means["softmax"] = self._evaluate(state, batch, record_mean).softmax(-1)
            for layer in layers:
                batches[layer].append(means[layer])
        return {layer: torch.cat(means_of_batches, dim=1) for layer, means_of_batches in batches.items()}

    @torch.no_grad()
    def evaluate(
        self, state: dict[str, Tensor], x: Tensor, y: Tensor, batch_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy (nats) and accuracy of each network in evaluation mode.

        Args:
            state: stacked parameters, N networks.
            x, y: (n, channels, *space) and (n,) class indices.
            batch_size: data points at a time; None: as many as are quick.

        Returns:
            Two (N,) tensors.
        """
        loss, correct, batch_size = 0, 0, batch_size or self._quick_batch_size(state)
        for inputs, labels in zip(self._batches(x, batch_size), y.split(batch_size), strict=True):
            logits = self._evaluate(state, inputs)
            likelihoods = logits.log_softmax(-1)[:, torch.arange(len(labels), device=labels.device), labels]
            loss = loss - likelihoods.sum(dim=1)
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
            masks: layer → (M, channels) of 1 (stays) and 0 (clamped), M ablations at once.
            batch_size: data points at a time.

        Returns:
            (M,). Layers up to the first one of `masks` are computed once for all M.
        """
        ablations, correct = len(next(iter(masks.values()))), 0

        def clamp(layer: str, x: Tensor) -> Tensor:
            if layer not in masks:
                return x
            x = x[0].unflatten(0, (-1, points))  # (1 or M, batch, *space, channels)
            return (x * masks[layer].view(ablations, *(1,) * (x.ndim - 2), -1)).flatten(0, 1)[None]

        for inputs, labels in zip(self._batches(x, batch_size), y.split(batch_size), strict=True):
            points = len(labels)
            logits = self._evaluate(state, inputs, clamp).view(ablations, points, -1)
            correct = correct + (logits.argmax(-1) == labels).sum(dim=1)
        return correct / len(y)

    def _quick_batch_size(self, state: dict[str, Tensor]) -> int:
        """How many data points are best computed at a time in evaluation mode."""
        weight = state["head.weight"]
        if not self.lockstep or weight.is_cuda:
            return BATCH
        largest = max(convolution.inputs_side_by_side for convolution in self.architecture.convolutions)
        return min(max(IN_CACHE // (len(weight) * largest), 1), BATCH)

    def _batches(self, x: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Inputs (n, channels, *space) in batches, (batch, *space, channels) float32; one is in memory at a time."""
        return (self.normalise(channels_last(batch)) for batch in x.split(batch_size))

    def _evaluate(self, state: dict[str, Tensor], x: Tensor, on_layer_output: OnLayerOutput | None = None) -> Tensor:
        """Logits (N, n, classes) of shared inputs (n, *space, channels) in evaluation mode."""

        def convolve(convolution: Convolution, x: Tensor, relu: bool) -> Tensor:
            weight, bias = self._folded(convolution, state)
            if self.lockstep:
                columns, shape = _unfold(x, convolution.kernel, convolution.stride)
                x = torch.baddbmm(bias[:, None], columns, as_matrix(weight)).view(*shape, -1)
            else:
                x = torch.stack([_convolved(x[i], weight[i], bias[i], convolution.stride) for i in range(len(x))])
            return x.relu_() if relu else x

        x = x.expand(len(state["head.weight"]), *x.shape)
        return _head(state, _mean_over_space(self.architecture.forward(x, convolve, on_layer_output or _unchanged)))

    def _folded(self, convolution: Convolution, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Weight and bias of a convolution with its batch norm folded in."""
        weight = state[f"{convolution.name}.weight"]
        if not self.architecture.batch_norm:
            return weight, state[f"{convolution.name}.bias"]
        gain, bias, mean, variance = _norm(convolution, state)
        scale = gain * torch.rsqrt(variance + BATCH_NORM_EPSILON)
        return weight * scale.view(*scale.shape, *(1,) * (weight.ndim - 2)), bias - mean * scale


class ModuleNetworks(Networks):
    """Networks that are a user's torch.nn.Module, computed one after the other.

    Their parameters and buffers are the state; the module is called with those of one network in their place.
    """

    recordable = False

    def __init__(
        self,
        architecture: Module,
        device: str = "cpu",
        mixed: bool = False,
        normalise: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__(architecture, device, mixed, normalise)
        self._device, self._local = device, threading.local()  # a call changes the module: each thread has a copy
        self._make = user_module.factory(architecture)
        with torch.random.fork_rng(devices=[]):
            self._module = self._make()
            self._trained = user_module.check(architecture, self._module)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each trained parameter of one network."""
        return {name: tuple(self._module.get_parameter(name).shape) for name in self._trained}

    def initialise(self, generators: Iterable[np.random.Generator]) -> dict[str, Tensor]:
        """Parameters and buffers as the user's function draws them, of one network per generator, stacked."""
        networks = [self._drawn(generator) for generator in generators]
        return {name: torch.stack([network[name] for network in networks]) for name in networks[0]}

    def _drawn(self, generator: np.random.Generator) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(generator.integers(2**63)))
            module = self._make()
        return {name: tensor.detach() for name, tensor in (*module.named_parameters(), *module.named_buffers())}

    def logits(self, state: dict[str, Tensor], x: Tensor) -> Tensor:
        """See `Networks.logits`; buffers in `state` are updated."""
        return torch.stack([self._call(_only(state, i), x[i], training=True) for i in range(len(x))])

    @torch.no_grad()
    def representations(
        self, state: dict[str, Tensor], x: Tensor, layers: Sequence[str], batch_size: int | None = None
    ) -> dict[str, Tensor]:
        """See `Networks.representations`: the mean over space of what each submodule returns."""
        count = len(next(iter(state.values())))
        networks = [Networks.representations(self, _only(state, i), x, layers, batch_size) for i in range(count)]
        return {layer: torch.cat([network[layer] for network in networks]) for layer in layers}

    def accuracy_without(
        self, state: dict[str, Tensor], x: Tensor, y: Tensor, masks: dict[str, Tensor], batch_size: int = BATCH
    ) -> Tensor:
        """See `Networks.accuracy_without`; one ablation after the other, because a shortcut may pass by a layer."""
        count = len(next(iter(masks.values())))
        ablations = [{layer: mask[i : i + 1] for layer, mask in masks.items()} for i in range(count)]
        accuracies = [Networks.accuracy_without(self, state, x, y, ablation, batch_size) for ablation in ablations]
        return torch.cat(accuracies)

    def _evaluate(self, state: dict[str, Tensor], x: Tensor, on_layer_output: OnLayerOutput | None = None) -> Tensor:
        count = len(next(iter(state.values())))
        return torch.stack([self._call(_only(state, i), x, False, on_layer_output) for i in range(count)])

    def _call(
        self, state: dict[str, Tensor], x: Tensor, training: bool, on_layer_output: OnLayerOutput | None = None
    ) -> Tensor:
        """Logits (n, classes) of one network.

        Args:
            state: its parameters and buffers.
            x: (n, *space, channels).
            training: whether it is in training mode.
            on_layer_output: called with outputs of shape (1, n, positions, channels).
        """

        def pass_on(layer: str, y: Tensor) -> Tensor:
            if self.architecture.tokens and y.ndim == 3:  # (n, tokens, channels)
                return on_layer_output(layer, y[None])[0]
            flat = y.flatten(2) if y.ndim > 2 else y[..., None]  # (n, channels, positions)
            return on_layer_output(layer, flat.transpose(1, 2)[None])[0].transpose(1, 2).reshape(y.shape)

        before = {name: tensor[0] for name, tensor in state.items()}
        after, module = dict(before), self._copy()
        module.train(training)
        with (
            torch.autocast(self._device, torch.bfloat16, enabled=self.mixed and training),
            forward_hooks(module, self.architecture.layers if on_layer_output else (), pass_on),
        ):
            logits = torch.func.functional_call(module, after, x.movedim(-1, 1).contiguous())
        for name, tensor in after.items():
            if tensor is not before[name]:  # a buffer that the module did not change in place
                before[name].copy_(tensor.detach())
        return logits.float()

    def _copy(self) -> nn.Module:
        """This thread's copy of the module."""
        if not hasattr(self._local, "module"):
            self._local.module = copy.deepcopy(self._module)
        return self._local.module


COMPUTED_BY = {"convnet": Networks, "resnet": Networks, "module": ModuleNetworks}
"""Name of an architecture → the class that does its arithmetic; `Networks` for any other."""


def build(
    network: NetworkOptions,
    in_channels: int,
    space: Sequence[int],
    classes: int,
    device: str = "cpu",
    mixed: bool = False,
    normalise: Callable[[Tensor], Tensor] | None = None,
) -> Networks:
    """Networks of the architecture that options describe, for a dataset's inputs.

    Raises:
        ConfigError: something is wrong with a user's module, see `user_module`.
    """
    return COMPUTED_BY.get(network.name, Networks)(
        describe(network, in_channels, space, classes), device, mixed, normalise
    )


def _as_they_are(x: Tensor) -> Tensor:
    """How inputs are normalised that are stored as networks read them."""
    return x


def _unchanged(layer: str, x: Tensor) -> Tensor:
    """What happens to a layer's output where nobody looks at it."""
    return x


def _train_in_lockstep(convolution: Convolution, state: dict[str, Tensor], x: Tensor, relu: bool) -> Tensor:
    weight = state[f"{convolution.name}.weight"]
    if f"{convolution.norm}.weight" in state:
        return _ConvNorm.apply(x, weight, *_norm(convolution, state), convolution.stride, relu)
    return _Conv.apply(x, weight, state[f"{convolution.name}.bias"], convolution.stride, relu)


def _train_alone(convolution: Convolution, state: dict[str, Tensor], x: Tensor, relu: bool) -> Tensor:
    """A step of one network; x is (1, batch, *space, channels), in the precision to compute in."""
    weight = state[f"{convolution.name}.weight"][0].to(x.dtype)
    if f"{convolution.norm}.weight" in state:
        gain, bias, mean, variance = (part[0] for part in _norm(convolution, state))
        y = _convolved(x[0], weight, None, convolution.stride).movedim(-1, 1)
        y = functional.batch_norm(y, mean, variance, gain, bias, True, BATCH_NORM_MOMENTUM, BATCH_NORM_EPSILON)
        y = y.movedim(1, -1)
    else:
        y = _convolved(x[0], weight, state[f"{convolution.name}.bias"][0].to(x.dtype), convolution.stride)
    return (y.relu_() if relu else y)[None]


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """x ∗ w + b of one network: (n, *space, in) with (out, in, *kernel) → (n, *positions, out)."""
    convolution = functional.conv1d if weight.ndim == 3 else functional.conv2d
    if weight.ndim == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    return convolution(x.movedim(-1, 1), weight, bias, stride, weight.shape[2] // 2).movedim(1, -1)


def _norm(convolution: Convolution, state: dict[str, Tensor]) -> list[Tensor]:
    return [state[f"{convolution.norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]


def _only(state: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """The parameters of network i alone, as views."""
    return {name: tensor[i : i + 1] for name, tensor in state.items()}


def _mean_over_space(x: Tensor) -> Tensor:
    dtype = torch.float32 if x.dtype == torch.bfloat16 else None
    return x.mean(dim=tuple(range(2, x.ndim - 1)), dtype=dtype)


def _head(state: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.baddbmm(state["head.bias"][:, None], x, state["head.weight"].transpose(1, 2))


def channels_last(x: Tensor) -> Tensor:
    """(n, channels, *space) → (n, *space, channels), contiguous."""
    return x.movedim(1, -1).contiguous()


def as_matrix(weight: Tensor) -> Tensor:
    """(N, out, in, *kernel) → (N, kernel·in, out), the order in which `_unfold` lays inputs side by side."""
    return weight.movedim((1, 2), (-1, -2)).flatten(1, -2)


def as_weight(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `as_matrix`, for a weight of the given shape."""
    _, _, incoming, *kernel = shape
    return matrix.unflatten(1, (*kernel, incoming)).movedim((-1, -2), (1, 2))


def _unfold(x: Tensor, kernel: int, stride: int) -> tuple[Tensor, tuple[int, ...]]:
    """Lay the inputs of each output position side by side, zeros where they lie outside.

    Args:
        x: (N, batch, *space, channels).

    Returns:
        (N, batch·positions, kernel·channels), in memory that the next `_temporary` takes, and the shape
        (N, batch, *positions).
    """
    networks, batch, *space, channels = x.shape
    margin = kernel // 2
    out = tuple((size + 2 * margin - kernel) // stride + 1 for size in space)
    first, behind, begin = 0, out[0], 0  # the outputs whose inputs all lie inside, and where those of the first begin
    if margin and len(space) == 1:
        first = min(-(-margin // stride), out[0])
        behind = max((space[0] + margin - kernel) // stride + 1, first)
        begin = first * stride - margin
    elif margin:
        x = functional.pad(x, (0, 0) + (margin, margin) * len(space))
    columns = _temporary((networks, batch, *out, *(kernel,) * len(space), channels), x)
    if first < behind:
        inside, s = columns[:, :, first:behind], x.stride()
        steps = (s[0], s[1], *(stride * step for step in s[2:-1]), *s[2:])
        inside.copy_(x.as_strided(inside.shape, steps, x.storage_offset() + begin * s[2]))
    for position in (*range(first), *range(behind, out[0])):
        begin = position * stride - margin
        end = min(begin + kernel, space[0])
        columns[:, :, position] = 0
        columns[:, :, position, max(-begin, 0) : end - begin] = x[:, :, max(begin, 0) : end]
    return columns.view(networks, batch * prod(out), kernel ** len(space) * channels), (networks, batch, *out)


def _fold(columns: Tensor, shape: Sequence[int], kernel: int, stride: int) -> Tensor:
    """The transpose of `_unfold`: each input's sum over all columns that it was copied to.

    Args:
        columns: (N, batch·positions, kernel·channels).
        shape: shape of the input, (N, batch, *space, channels).
        kernel, stride: as in `_unfold`.
    """
    networks, batch, *space, channels = shape
    margin = kernel // 2
    out = [(size + 2 * margin - kernel) // stride + 1 for size in space]
    columns = columns.view(networks, batch, *out, *(kernel,) * len(space), channels)
    if len(space) == 1 and out[0] * stride == space[0] and margin + stride <= kernel:
        # These offsets in the filter reach every input once, so one copy begins the sum.
        x = columns[:, :, :, margin : margin + stride].contiguous().view(shape)
        for offset in {*range(kernel)} - {*range(margin, margin + stride)}:
            first = max(0, -((offset - margin) // stride))  # the first and last output whose offset lies inside
            last = min(out[0], (space[0] - 1 + margin - offset) // stride + 1)
            begin = first * stride + offset - margin
            x[:, :, begin : begin + (last - first - 1) * stride + 1 : stride] += columns[:, :, first:last, offset]
        return x
    padded = columns.new_zeros(networks, batch, *(size + 2 * margin for size in space), channels)
    for offset in product(range(kernel), repeat=len(space)):
        slices = tuple(slice(k, k + stride * (n - 1) + 1, stride) for k, n in zip(offset, out, strict=True))
        padded[(..., *slices, slice(None))] += columns[(..., *offset, slice(None))]
    return padded[(..., *(slice(margin, margin + size) for size in space), slice(None))]


class _Conv(torch.autograd.Function):
    """x ∗ w + b, each network on its own input, and the ReLU of that if `relu`."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, relu):
        columns, shape = _unfold(x, weight.shape[3], stride)
        y, flat = _product(columns, as_matrix(weight)), ChannelsFlattened(shape)
        flat.view(y).add_(flat.repeat(bias[:, None]))
        if relu:
            y.relu_()
        ctx.save_for_backward(x, weight, y)
        ctx.conv_stride, ctx.relu = stride, relu
        return y.view(*shape, -1)

    @staticmethod
    def backward(ctx, grad):
        x, weight, y = ctx.saved_tensors
        grad = grad.reshape(y.shape)
        if ctx.relu:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        columns, _ = _unfold(x, weight.shape[3], ctx.conv_stride)
        matrix_grad = _product(columns.transpose(1, 2), grad)
        x_grad = None
        if ctx.needs_input_grad[0]:
            columns_grad = _columns_gradient(grad, as_matrix(weight))
            x_grad = _fold(columns_grad, x.shape, weight.shape[3], ctx.conv_stride)
        return x_grad, as_weight(matrix_grad, weight.shape), grad.sum(dim=1), None, None


class _ConvNorm(torch.autograd.Function):
    """batch_norm(x ∗ w), each network on its own input, and the ReLU of that if `relu`; updates the running statistics.

    PyTorch's batch norm takes one network at a time; calling it for each costs more than the arithmetic of a small one.
    """

    @staticmethod
    def forward(ctx, x, weight, gain, bias, running_mean, running_var, stride, relu):
        columns, shape = _unfold(x, weight.shape[3], stride)
        z = _product(columns, as_matrix(weight))
        flat = ChannelsFlattened(shape)
        mean = _mean_of_rows(z)
        flat.view(z).sub_(flat.repeat(mean))
        variance = _mean_of_rows(torch.mul(z, z, out=_temporary(z.shape, z)))
        running_mean.lerp_(mean[:, 0], BATCH_NORM_MOMENTUM)
        running_var.lerp_(variance[:, 0] * (z.shape[1] / (z.shape[1] - 1)), BATCH_NORM_MOMENTUM)
        inverse_std = torch.rsqrt(variance + BATCH_NORM_EPSILON)
        y = torch.addcmul(flat.repeat(bias[:, None]), flat.view(z), flat.repeat(inverse_std * gain[:, None]))
        if relu:
            y.relu_()
        y = y.view(z.shape)
        ctx.save_for_backward(x, weight, gain, z, y, inverse_std)
        ctx.conv_stride, ctx.relu, ctx.flat = stride, relu, flat
        return y.view(*shape, -1)

    @staticmethod
    def backward(ctx, grad):
        x, weight, gain, z, y, inverse_std = ctx.saved_tensors
        flat, grad = ctx.flat, grad.reshape(y.shape)
        if ctx.relu:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        mean, with_z = _mean_of_rows(grad), _mean_of_rows(torch.mul(grad, z, out=_temporary(z.shape, z)))
        gain_grad, bias_grad = (z.shape[1] * sums[:, 0] for sums in (with_z * inverse_std, mean))
        # The gradient of z is scale · (grad - mean - z · with_z / variance); the scale is left to the small matrices.
        scale = inverse_std * gain[:, None]
        z_grad = grad if ctx.relu else grad.clone()
        per_z = flat.repeat(inverse_std.square() * with_z)
        flat.view(z_grad).sub_(flat.repeat(mean)).addcmul_(flat.view(z), per_z, value=-1)
        columns, _ = _unfold(x, weight.shape[3], ctx.conv_stride)
        matrix_grad = _product(columns.transpose(1, 2), z_grad) * scale
        x_grad = None
        if ctx.needs_input_grad[0]:
            columns_grad = _columns_gradient(z_grad, as_matrix(weight) * scale)
            x_grad = _fold(columns_grad, x.shape, weight.shape[3], ctx.conv_stride)
        return x_grad, as_weight(matrix_grad, weight.shape), gain_grad, bias_grad, None, None, None, None


class ChannelsFlattened:
    """Rows of few channels with all positions of an example side by side.

    PyTorch runs elementwise operations along the last axis, and a few channels are too short for that to be quick.

    Args:
        shape: (N, batch, *positions).
    """

    def __init__(self, shape: Sequence[int]):
        self.batch, self.positions = shape[1], prod(shape[2:])

    def view(self, x: Tensor) -> Tensor:
        """(N, batch·positions, channels) → (N, batch, positions·channels)."""
        return x.view(len(x), self.batch, -1)

    def repeat(self, x: Tensor) -> Tensor:
        """One number per channel, (N, 1, channels) → (N, 1, positions·channels)."""
        return x.repeat(1, 1, self.positions)


def _columns_gradient(grad: Tensor, matrix: Tensor) -> Tensor:
    """The gradient of the columns of `_unfold`, in memory that the next `_temporary` takes.

    Args:
        grad: (N, batch·positions, out), the gradient of columns @ matrix.
        matrix: (N, kernel·in, out).
    """
    out = _temporary((len(grad), grad.shape[1], matrix.shape[1]), grad)
    return _product(grad, matrix.transpose(1, 2).contiguous(), out)


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """The product of each network's matrices, (N, n, m) with (N, m, p) → (N, n, p).

    On a CPU NumPy computes it, whose BLAS multiplies matrices of a few columns up to four times as fast as PyTorch's.
    Its rounding depends on the number of threads that BLAS may use, so training allows one (`mapping_of_passes`).

    Args:
        a, b: the matrices.
        out: where the product goes; None: into new memory.
    """
    if a.device.type != "cpu":
        return torch.bmm(a, b, out=out)
    out = a.new_empty(len(a), a.shape[1], b.shape[2]) if out is None else out
    with np.errstate(all="ignore"):  # of networks that diverge
        np.matmul(a.detach().numpy(), b.detach().numpy(), out=out.numpy())
    return out


def _temporary(shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory for numbers that have been read before this thread's next call, which gives the same memory again.

    It is still in the processor's cache then, which the tensors of a whole pass do not fit into.
    """
    size, memory = prod(shape), getattr(_of_thread, "memory", None)
    if memory is None or len(memory) < size or memory.dtype != like.dtype or memory.device != like.device:
        memory = _of_thread.memory = like.new_empty(size)
    return memory[:size].view(shape)


_of_thread = threading.local()


def _mean_of_rows(x: Tensor) -> Tensor:
    """(N, rows, channels) → (N, 1, channels)."""
    return x.mean(dim=1, keepdim=True)
