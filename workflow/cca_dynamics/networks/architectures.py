"""Architectures: which layers a network has, how wide they are and how data flow through them.

Nothing here computes: `convolutional` and `lstm` bring the weights and do the arithmetic, many networks at a time. So a
study can ask for a layer's width, or for a network's cost, without loading PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from cca_dynamics.config.cohorts import LanguageNetwork
from cca_dynamics.config.models import NetworkOptions

LOCKSTEP_ON_GPU = 64
"""The most channels that networks on images may have to be computed in lockstep on a GPU."""


@dataclass(frozen=True)
class Convolution:
    """One convolution with its batch norm.

    Attributes:
        name: how its weight is called; the batch norm is called the same with "norm" instead of "conv".
        inputs, outputs: numbers of channels.
        kernel: odd width of the filters; the padding keeps the shape at stride 1.
        stride: step between output positions.
        space: shape of the output, (length,) or (height, width).
    """

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int
    space: tuple[int, ...]

    @property
    def norm(self) -> str:
        """Name of its batch norm."""
        return self.name.replace("conv", "norm")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight: (outputs, inputs, *kernel)."""
        return (self.outputs, self.inputs, *(self.kernel,) * len(self.space))

    @property
    def operations(self) -> int:
        """Floating-point operations for one example, a multiply-add counted as two."""
        return 2 * prod(self.shape) * prod(self.space)

    @property
    def inputs_side_by_side(self) -> int:
        """Numbers of one example if the inputs of each output position lie side by side."""
        return prod(self.space) * prod(self.shape[1:])


class Architecture:
    """What all architectures have.

    A subclass is a frozen dataclass with the attributes below and options of its own.

    Attributes:
        in_channels: channels of the input.
        space: spatial shape of the input, (length,) or (height, width).
        classes: outputs.
    """

    in_channels: int
    space: tuple[int, ...]
    classes: int

    @property
    def widths(self) -> dict[str, int]:
        """Layer → neurons of its representation, in the order of the data flow, "softmax" last."""
        raise NotImplementedError

    def lockstep(self, device: str, mixed: bool) -> bool:
        """Whether many of them are best computed in lockstep, see `convolutional`."""
        raise NotImplementedError


class ConvolutionalArchitecture(Architecture):
    """Convolutions with ReLU, the mean over space, a linear head.

    A subclass lists its convolutions and says how data flow through them.
    """

    batch_norm: bool = True

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """Every convolution, in the order of `forward`."""
        raise NotImplementedError

    def forward(self, x, convolve: Callable, on_layer_output: Callable):
        """The features whose mean over space the head reads.

        Args:
            x: inputs, in whatever layout `convolve` takes.
            convolve: (convolution, x, relu) → its output after batch norm (and ReLU).
            on_layer_output: (layer, x) → x, called with each layer's output; what it returns is passed on.
        """
        raise NotImplementedError

    def lockstep(self, device: str, mixed: bool) -> bool:
        """See `Architecture.lockstep`.

        On images, laying inputs side by side moves nine times the data, which is never worth it on a CPU.
        """
        widest = max(convolution.outputs for convolution in self.convolutions)
        return len(self.space) == 1 or (device == "cuda" and widest <= LOCKSTEP_ON_GPU and not mixed)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter of one network, named and laid out as in a plain torch.nn.Module."""
        result: dict[str, tuple[int, ...]] = {}
        for convolution in self.convolutions:
            result[f"{convolution.name}.weight"] = convolution.shape
            if self.batch_norm:
                result[f"{convolution.norm}.weight"] = (convolution.outputs,)
            name = convolution.norm if self.batch_norm else convolution.name
            result[f"{name}.bias"] = (convolution.outputs,)
        result["head.weight"] = (self.classes, self.convolutions[-1].outputs)
        result["head.bias"] = (self.classes,)
        return result

    @property
    def parameters(self) -> int:
        """Trained numbers of one network."""
        return sum(prod(shape) for shape in self.shapes().values())

    @property
    def operations(self) -> int:
        """Floating-point operations of one example's forward pass: convolutions and head."""
        convolutions = sum(convolution.operations for convolution in self.convolutions)
        return convolutions + 2 * prod(self.shapes()["head.weight"])

    @property
    def training_operations(self) -> int:
        """Operations of one example's forward and backward pass: three forward passes, less the input's gradient."""
        return 3 * self.operations - self.convolutions[0].operations

    @property
    def activations(self) -> int:
        """Numbers that the convolutions return for one example."""
        return sum(convolution.outputs * prod(convolution.space) for convolution in self.convolutions)

    def operations_after(self, layer: str) -> int:
        """Operations of one example's forward pass after a layer: what an ablation of that layer computes."""
        names = [convolution.name for convolution in self.convolutions]
        last = max(i for i, name in enumerate(names) if name.partition(".")[0] == layer)
        return sum(convolution.operations for convolution in self.convolutions[last + 1 :]) + 2 * self.classes


def _after(space: Sequence[int], stride: int) -> tuple[int, ...]:
    """Spatial shape of the output of a padded convolution with an odd kernel."""
    return tuple((size - 1) // stride + 1 for size in space)


@dataclass(frozen=True)
class ConvNet(ConvolutionalArchitecture):
    """Convolutions one after the other.

    Attributes:
        in_channels, space, classes: see `Architecture`.
        channels, strides: one per convolution.
        kernel: odd width of the filters.
        batch_norm: batch norm after each convolution (which then has no bias).

    Source: Morcos et al. 2018, appendix A.4, with 11 convolutions.
    """

    in_channels: int
    space: tuple[int, ...]
    classes: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    kernel: int = 3
    batch_norm: bool = True

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """conv1, conv2, ..."""
        result, inputs, space = [], self.in_channels, self.space
        for i, (outputs, stride) in enumerate(zip(self.channels, self.strides, strict=True), start=1):
            space = _after(space, stride)
            result.append(Convolution(f"conv{i}", inputs, outputs, self.kernel, stride, space))
            inputs = outputs
        return tuple(result)

    @property
    def widths(self) -> dict[str, int]:
        """conv1, conv2, ..., softmax."""
        return {f"conv{i}": width for i, width in enumerate(self.channels, start=1)} | {"softmax": self.classes}

    def forward(self, x, convolve: Callable, on_layer_output: Callable):
        """See `ConvolutionalArchitecture.forward`."""
        for convolution in self.convolutions:
            x = on_layer_output(convolution.name, convolve(convolution, x, relu=True))
        return x


@dataclass(frozen=True)
class ResNet(ConvolutionalArchitecture):
    """The residual network for CIFAR: a convolution, then stages of blocks with two convolutions and a shortcut each.

    Each stage but the first halves the spatial shape. Where the shape changes the shortcut is a 1 × 1 convolution.

    Attributes:
        in_channels, space, classes: see `Architecture`.
        channels: one per stage; the published network has 16, 32, 64.
        blocks: how many each stage has; with three stages the depth is 6·blocks + 2, so 3 blocks are ResNet-20.

    Source: He, Zhang, Ren & Sun 2016, section 4.2, with their projection shortcuts (option B).
    """

    in_channels: int
    space: tuple[int, ...]
    classes: int
    channels: tuple[int, ...]
    blocks: int = 3

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """conv1, then block1.conv1, block1.conv2, and block1.conv3 where the shortcut is a convolution, ..."""
        result = [Convolution("conv1", self.in_channels, self.channels[0], 3, 1, self.space)]
        for block in self._blocks():
            result += block
        return tuple(result)

    def _blocks(self) -> list[list[Convolution]]:
        result, inputs, space = [], self.channels[0], self.space
        for stage, outputs in enumerate(self.channels):
            for index in range(self.blocks):
                name, stride = f"block{len(result) + 1}", 2 if stage and not index else 1
                space = _after(space, stride)
                block = [
                    Convolution(f"{name}.conv1", inputs, outputs, 3, stride, space),
                    Convolution(f"{name}.conv2", outputs, outputs, 3, 1, space),
                ]
                if stride > 1 or inputs != outputs:
                    block.append(Convolution(f"{name}.conv3", inputs, outputs, 1, stride, space))
                result.append(block)
                inputs = outputs
        return result

    @property
    def widths(self) -> dict[str, int]:
        """conv1, block1, block2, ..., softmax."""
        blocks = {f"block{i}": block[0].outputs for i, block in enumerate(self._blocks(), start=1)}
        return {"conv1": self.channels[0], **blocks, "softmax": self.classes}

    def forward(self, x, convolve: Callable, on_layer_output: Callable):
        """See `ConvolutionalArchitecture.forward`."""
        x = on_layer_output("conv1", convolve(self.convolutions[0], x, relu=True))
        for i, (first, second, *shortcut) in enumerate(self._blocks(), start=1):
            residual = convolve(second, convolve(first, x, relu=True), relu=False)
            identity = convolve(shortcut[0], x, relu=False) if shortcut else x
            x = on_layer_output(f"block{i}", (residual + identity).relu())
        return x


@dataclass(frozen=True)
class Module(Architecture):
    """A user's own torch.nn.Module; `user_module` imports it and counts what it costs.

    Attributes:
        in_channels, space, classes: see `Architecture`.
        module: "file:function", whose call makes one network.
        layers: names of the submodules whose outputs are the representations, in order.
        channels: one per layer.
        tokens: "mean" if layers return (inputs, tokens, channels), else None.
        source: fingerprint of the user's code that is meant; "": whatever it is now.
    """

    in_channels: int
    space: tuple[int, ...]
    classes: int
    module: str
    layers: tuple[str, ...]
    channels: tuple[int, ...]
    tokens: str | None = None
    source: str = ""

    @property
    def widths(self) -> dict[str, int]:
        """The layers, softmax."""
        return dict(zip(self.layers, self.channels, strict=True)) | {"softmax": self.classes}

    def lockstep(self, device: str, mixed: bool) -> bool:
        """A module is always computed one network after the other."""
        return False


@dataclass(frozen=True)
class LanguageModel:
    """Embedded tokens, LSTM layers one on top of the other, a linear head.

    Attributes:
        vocabulary: how many tokens it knows.
        embedding: how many numbers represent a token.
        sizes: units of each layer.
        tied: the head's weights are the embedding's (the last layer then has `embedding` units).
    """

    vocabulary: int
    embedding: int
    sizes: tuple[int, ...]
    tied: bool = False

    @property
    def widths(self) -> dict[str, int]:
        """lstm1, lstm2, ... → units."""
        return {f"lstm{i}": size for i, size in enumerate(self.sizes, start=1)}

    @property
    def layers(self) -> list[str]:
        """Names of the representations."""
        return list(self.widths)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter of one network; a layer's bias is the sum of PyTorch's two."""
        result: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocabulary, self.embedding)}
        inputs = self.embedding
        for layer, units in self.widths.items():
            result[f"{layer}.weight_ih"] = (4 * units, inputs)
            result[f"{layer}.weight_hh"] = (4 * units, units)
            result[f"{layer}.bias"] = (4 * units,)
            inputs = units
        if not self.tied:
            result["head.weight"] = (self.vocabulary, inputs)
        result["head.bias"] = (self.vocabulary,)
        return result

    @property
    def parameters(self) -> int:
        """Trained numbers of one network."""
        return sum(prod(shape) for shape in self.shapes().values())

    @property
    def operations(self) -> int:
        """Floating-point operations of one token's forward pass: the products with every matrix but the embedding."""
        matrices = [shape for name, shape in self.shapes().items() if len(shape) == 2 and name != "embedding.weight"]
        head = [(self.vocabulary, self.embedding)] if self.tied else []
        return sum(2 * prod(shape) for shape in [*matrices, *head])

    @property
    def training_operations(self) -> int:
        """Operations of one token's forward and backward pass."""
        return 3 * self.operations


def describe_language_model(network: LanguageNetwork, vocabulary: int) -> LanguageModel:
    """The architecture that options describe, for a corpus with so many tokens."""
    return LanguageModel(vocabulary, network.embedding, network.sizes, network.tied)


NETWORKS = {"convnet": ConvNet, "resnet": ResNet, "module": Module}
"""Adding an architecture: its options in config/models.py, one class as above, and one line here."""


def describe(network: NetworkOptions, in_channels: int, space: Sequence[int], classes: int) -> Architecture:
    """The architecture that options describe, for a dataset's inputs; the multiplier multiplies its channels."""
    options = dict(network.widened())
    name, _ = options.pop("name"), options.pop("multiplier")
    return NETWORKS[name](in_channels=in_channels, space=tuple(space), classes=classes, **options)


def widths(network: NetworkOptions) -> dict[str, int]:
    """Layer → neurons of the network that options describe, "softmax" last, whose width is not known here."""
    return describe(network, 1, (1,), 0).widths


def layers(network: NetworkOptions) -> list[str]:
    """Names of the layers of the network that options describe, "softmax" last."""
    return list(widths(network))
