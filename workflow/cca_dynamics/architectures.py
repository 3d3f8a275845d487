"""Architectures: what layers a network has, how wide they are and how data flows through them.

Nothing here computes: `networks` brings the weights and does the arithmetic, many networks at a time. So a study can
ask for a layer's width, or for a network's cost, without loading PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import prod

LOCKSTEP_ON_GPU = 64
"""The most channels of networks on images that a GPU computes in lockstep."""


@dataclass(frozen=True)
class Convolution:
    """One convolution with its batch norm.

    Attributes:
        name: of its weight; the batch norm is called the same with "norm" for "conv".
        inputs, outputs: channels.
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
        """Of the weight: (outputs, inputs, *kernel)."""
        return (self.outputs, self.inputs, *(self.kernel,) * len(self.space))

    @property
    def operations(self) -> int:
        """Floating-point operations for one example, a multiply-add counted as two."""
        return 2 * prod(self.shape) * prod(self.space)


class Architecture:
    """What all architectures share: convolutions with ReLU, the mean over space, a linear head.

    A subclass is a frozen dataclass with in_channels, space, classes and its own options; it lists its convolutions and
    says how data flows through them.
    """

    in_channels: int
    space: tuple[int, ...]
    classes: int
    batch_norm = True

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """Every convolution, in the order of `forward`."""
        raise NotImplementedError

    @property
    def widths(self) -> dict[str, int]:
        """Layer → neurons of its representation, from the input on, "softmax" last."""
        raise NotImplementedError

    def forward(self, x, convolve: Callable, tap: Callable):
        """What the head sees the mean over space of.

        Args:
            x: inputs, in whatever layout `convolve` takes.
            convolve: (convolution, x, relu) → its output after batch norm (and ReLU).
            tap: (layer, x) → x, called with each layer's output; what it returns is passed on.
        """
        raise NotImplementedError

    def lockstep(self, device: str, mixed: bool) -> bool:
        """Whether many of them are best computed in lockstep, see `networks`.

        On images, laying inputs side by side moves nine times the data; a CPU always loses by it.
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
        """Floating-point operations of one example's forward pass, convolutions and head."""
        return sum(c.operations for c in self.convolutions) + 2 * prod(self.shapes()["head.weight"])

    @property
    def training_operations(self) -> int:
        """Of one example's forward and backward pass: three forward passes, less the gradient of the input."""
        return 3 * self.operations - self.convolutions[0].operations

    @property
    def activations(self) -> int:
        """Numbers that one example's convolutions put out."""
        return sum(c.outputs * prod(c.space) for c in self.convolutions)

    def operations_after(self, layer: str) -> int:
        """Of one example's forward pass from a layer on: what an ablation of that layer computes."""
        names = [c.name for c in self.convolutions]
        first = max(i for i, name in enumerate(names) if name.partition(".")[0] == layer)
        return sum(c.operations for c in self.convolutions[first + 1 :]) + 2 * self.classes


def _after(space: Sequence[int], stride: int) -> tuple[int, ...]:
    """Spatial shape after a padded convolution of odd kernel."""
    return tuple((size - 1) // stride + 1 for size in space)


@dataclass(frozen=True)
class ConvNet(Architecture):
    """Convolutions one after the other.

    Attributes:
        in_channels: channels of the input.
        space: its spatial shape, (length,) or (height, width).
        classes: outputs.
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

    def forward(self, x, convolve: Callable, tap: Callable):
        """See `Architecture.forward`."""
        for convolution in self.convolutions:
            x = tap(convolution.name, convolve(convolution, x, relu=True))
        return x


@dataclass(frozen=True)
class ResNet(Architecture):
    """The residual network for CIFAR: a convolution, then stages of blocks of two convolutions and a shortcut.

    Each stage but the first halves the spatial shape. Where the shape changes the shortcut is a 1 × 1 convolution.

    Attributes:
        in_channels, space, classes: as in ConvNet.
        channels: one per stage; the published network has 16, 32, 64.
        blocks: of each stage; with three stages the depth is 6·blocks + 2, so 3 is ResNet-20.

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
            for place in range(self.blocks):
                name, stride = f"block{len(result) + 1}", 2 if stage and not place else 1
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

    def forward(self, x, convolve: Callable, tap: Callable):
        """See `Architecture.forward`."""
        x = tap("conv1", convolve(self.convolutions[0], x, relu=True))
        for i, (first, second, *shortcut) in enumerate(self._blocks(), start=1):
            inside = convolve(second, convolve(first, x, relu=True), relu=False)
            around = convolve(shortcut[0], x, relu=False) if shortcut else x
            x = tap(f"block{i}", (inside + around).relu())
        return x


@dataclass(frozen=True)
class Module(Architecture):
    """A user's own torch.nn.Module; `modules` imports it.

    Attributes:
        in_channels, space, classes: as in ConvNet.
        module: "file:function", whose call makes one network.
        layers: names of the submodules whose outputs are the representations, in order.
        channels: one per layer.
        source: fingerprint of the user's code that is meant; "": whatever is there.
    """

    in_channels: int
    space: tuple[int, ...]
    classes: int
    module: str
    layers: tuple[str, ...]
    channels: tuple[int, ...]
    source: str = ""

    @property
    def widths(self) -> dict[str, int]:
        """The layers, softmax."""
        return dict(zip(self.layers, self.channels, strict=True)) | {"softmax": self.classes}

    def lockstep(self, device: str, mixed: bool) -> bool:
        """Never."""
        return False

    @cached_property
    def _costs(self) -> tuple[int, int, int, int]:
        from cca_dynamics.modules import costs

        return costs(self)

    @property
    def parameters(self) -> int:
        """See `Architecture`; counted on the module itself, with PyTorch, as the following."""
        return self._costs[0]

    @property
    def operations(self) -> int:
        """See `Architecture`."""
        return self._costs[1]

    @property
    def training_operations(self) -> int:
        """See `Architecture`."""
        return self._costs[2]

    @property
    def activations(self) -> int:
        """See `Architecture`."""
        return self._costs[3]

    def operations_after(self, layer: str) -> int:
        """All: an ablation computes the whole network."""
        return self.operations


@dataclass(frozen=True)
class LanguageModel:
    """Embedded tokens, LSTM layers one on the other, a linear head.

    Attributes:
        vocabulary: tokens it knows.
        embedding: numbers a token is embedded in.
        sizes: units of each layer.
        tied: the head's weights are the embedding's (the last layer has `embedding` units then).
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
        """Of one token's forward and backward pass."""
        return 3 * self.operations


def describe_language_model(block: dict, vocabulary: int) -> LanguageModel:
    """The architecture that a config's `language_model` block describes."""
    return LanguageModel(vocabulary, block["embedding"], tuple(block["sizes"]), block.get("tied", False))


NETWORKS = {"convnet": ConvNet, "resnet": ResNet, "module": Module}
"""Adding an architecture: one class as above, and one line here."""


def describe(network: dict, in_channels: int, space: Sequence[int], classes: int) -> Architecture:
    """The architecture that a config's `network` block describes, for a dataset's inputs.

    The channels are multiplied by `multiplier`, if there is one. Keys of other architectures, which an overlay may
    inherit, are ignored.
    """
    kind = NETWORKS[network["name"]]
    known = {field.name for field in fields(kind)}
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in network.items() if key in known}
    options["channels"] = tuple(widened(network)["channels"])
    return kind(in_channels=in_channels, space=tuple(space), classes=classes, **options)


def widened(network: dict) -> dict:
    """A `network` block with its multiplier multiplied out."""
    multiplier = network.get("multiplier", 1)
    channels = [max(1, round(width * multiplier)) for width in network["channels"]]
    return {**{key: value for key, value in network.items() if key != "multiplier"}, "channels": channels}


def widths(network: dict) -> dict[str, int]:
    """Layer → neurons of the network that a `network` block describes, softmax (of an unknown number) last."""
    return describe(network, 1, (1,), 0).widths


def layers(network: dict) -> list[str]:
    """Its layers, softmax last."""
    return list(widths(network))


def missing_keys(network: dict) -> list[str]:
    """Keys that the named architecture needs and the block lacks."""
    from dataclasses import MISSING

    given = {"in_channels", "space", "classes", *network}
    kind = NETWORKS[network["name"]]
    return [field.name for field in fields(kind) if field.default is MISSING and field.name not in given]
