"""Activations of classifiers on disk: one safetensors file per checkpoint and split, one tensor per layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cca_dynamics.config.cohorts import LayerRequest, noisy_split
from cca_dynamics.data import datasets
from cca_dynamics.errors import UserError
from cca_dynamics.networks.architectures import ConvNet, Convolution, ConvolutionalArchitecture
from cca_dynamics.networks.convolutional import BATCH, Networks, OnLayerOutput, build
from cca_dynamics.runtime.storage import read_metadata, read_tensors, replacing, stream_tensors, write_contents
from cca_dynamics.training import checkpoints

LABELS = "labels"
"""Name of the tensor of true labels in files of noisy splits."""
MEMORY = 2**25
"""Bytes of activations that are in memory at a time. They are few, because they lie among what passes take and free,
which is then in pieces: with 2**29, extraction from 10,000 images of CIFAR-10 took up to 3.4 GB instead of 1.7."""


def extract(
    networks: Path,
    data: Path,
    out: Path,
    *,
    requests: Sequence[LayerRequest],
    device: str = "cpu",
    report: Callable[[str], None] = print,
) -> None:
    """Run a dataset through stored networks and store their representations.

    Args:
        networks: a folder written by `training.classifiers.train`.
        data: the dataset that they were trained on, written by `datasets.materialise`.
        out: folder to write, which appears whole or not at all: <split>/step-NNNNNN.safetensors with one (networks, n,
            d) float32 tensor per layer, and as metadata step, epoch, cohort, networks, split, examples (on which the
            networks were trained) and the checksums of the checkpoint. Splits with noise lie in the folders that
            `noisy_split` names; their files also hold a tensor `LABELS`, (networks, n, 1), the same for each network.
        requests: which checkpoints, splits and layers; data points are as the first request says.
        device: "cpu" or "cuda".
        report: called with one line per file.

    Raises:
        DamagedFile: the dataset or a checkpoint cannot be read.
        UserError: an epoch or a layer is requested that does not exist, or layers before the ReLU of networks that are
            not of the architecture "convnet".
    """
    dataset = datasets.load(data)
    recipe = checkpoints.load_recipe(networks, dataset.checksum)
    spread = None
    if any(
        request.noise is not None for request in requests
    ):  # of all training inputs, however many networks have seen
        spread = float(dataset.normalised(dataset.train_x).std())
    dataset = dataset.subset(recipe.examples, recipe.seed)
    channels, *space = dataset.train_x.shape[1:]
    normalise = dataset.normalisation and dataset.normalisation.to(device)
    network = build(recipe.network, channels, space, dataset.classes, device, normalise=normalise)
    all_layers = network.layers
    if any(request.before_relu for request in requests):
        if not isinstance(network.architecture, ConvNet):
            raise UserError(
                f"layers before the ReLU are requested of {recipe.cohort}, whose architecture is "
                f"{recipe.network.name}; only convnet has them"
            )
        network = Networks(WithLayersBeforeRelu(network.architecture), device, normalise=normalise)
    points = requests[0].points if requests else None
    inputs = {
        "train": _draw_points(dataset.train_x, points, recipe.seed),
        "test": _draw_points(dataset.test_x, points, recipe.seed),
    }
    labels: dict[str, Tensor] = {}  # of the noisy splits
    files = dict(checkpoints.stored(networks))
    epoch_of_step = {step: read_metadata(file)["epoch"] for step, file in files.items()}
    layers_of_file: dict[tuple[int, str], dict[str, None]] = {}
    for request in requests:
        layers = list(all_layers if request.layers == "all" else request.layers)
        if request.before_relu:
            layers += [before_relu(layer) for layer in layers if layer != "softmax"]
        for step in _requested_steps(request.epochs, epoch_of_step):
            for split in request.splits:
                name = noisy_split(split, request.noise)
                layers_of_file.setdefault((step, name), {}).update(dict.fromkeys(layers))
                if request.noise is not None and name not in inputs:
                    x = dataset.normalised(inputs[split])
                    inputs[name] = _with_noise(x, request.noise * spread, split, recipe.seed)
                    labels[name] = _draw_points(getattr(dataset, f"{split}_y"), points, recipe.seed)
    with replacing(out) as folder:
        for count, ((step, split), layers) in enumerate(sorted(layers_of_file.items()), start=1):
            state, metadata = read_tensors(files[step], device=device)
            path = folder / split / files[step].name
            path.parent.mkdir(parents=True, exist_ok=True)
            size = len(recipe.networks), len(inputs[split])
            shapes = {layer: (*size, width) for layer, width in zip(layers, network.width_of(*layers), strict=True)}
            parts = (
                network.representations(state, x.to(device), list(layers))
                for x in inputs[split].split(_points_at_a_time(shapes))
            )
            if split in labels:
                shapes[LABELS] = (*size, 1)
                parts = _with_labels(parts, labels[split])
            facts = {"split": split, "examples": len(dataset.train_y), "checkpoint": metadata["sha256"]}
            stream_tensors(path, shapes, parts, **{**metadata, **facts})
            report(f"checkpoint {count}/{len(layers_of_file)} · step {step} · {split}")
        write_contents(folder)


BEFORE_RELU = " before ReLU"
"""How the names of layers before the ReLU end. No other layer's name has a space in it."""


def before_relu(layer: str) -> str:
    """The name under which a convolution's output before its ReLU is stored, "conv3 before ReLU"."""
    return f"{layer}{BEFORE_RELU}"


class WithLayersBeforeRelu(ConvolutionalArchitecture):
    """A convnet in which every convolution is two layers: its output before the ReLU, and after it, as ever.

    Args:
        architecture: the convnet, whose layers after the ReLU and whose outputs stay what they are.
    """

    def __init__(self, architecture: ConvNet):
        self._architecture = architecture
        self.in_channels, self.space, self.classes = architecture.in_channels, architecture.space, architecture.classes
        self.batch_norm = architecture.batch_norm

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """Those of the convnet."""
        return self._architecture.convolutions

    @property
    def widths(self) -> dict[str, int]:
        """The layers of the convnet, then those before the ReLU."""
        before = {before_relu(convolution.name): convolution.outputs for convolution in self.convolutions}
        return self._architecture.widths | before

    def forward(self, x: Tensor, convolve: Callable[..., Tensor], on_layer_output: OnLayerOutput) -> Tensor:
        """See `ConvolutionalArchitecture.forward`."""

        def convolve_in_two_steps(convolution: Convolution, x: Tensor, relu: bool) -> Tensor:
            x = on_layer_output(before_relu(convolution.name), convolve(convolution, x, relu=False))
            return x.relu() if relu else x

        return self._architecture.forward(x, convolve_in_two_steps, on_layer_output)


def _with_noise(x: Tensor, deviation: float, split: str, seed: int) -> Tensor:
    """Inputs plus Gaussian noise of a standard deviation, drawn from the study's seed and the split's name."""
    rng = np.random.default_rng([seed, *b"noise", *split.encode()])
    return x + torch.from_numpy(deviation * rng.standard_normal(x.shape, dtype=np.float32))


def _with_labels(parts: Iterator[dict[str, Tensor]], labels: Tensor) -> Iterator[dict[str, Tensor]]:
    """Parts of activations, (networks, a part of n, d) per layer, with the labels (n,) of their data points."""
    written = 0
    for part in parts:
        count, size = next(iter(part.values())).shape[:2]
        yield {**part, LABELS: labels[written : written + size].float().expand(count, size)[..., None]}
        written += size


def _points_at_a_time(shapes: dict[str, tuple[int, int, int]]) -> int:
    """How many data points have activations of `MEMORY` bytes, in whole batches."""
    numbers_per_point = sum(networks * width for networks, _, width in shapes.values())
    return max(int(MEMORY / (4 * numbers_per_point)) // BATCH, 1) * BATCH


def _draw_points(x: Tensor, points: int | None, seed: int) -> Tensor:
    """Random data points of a split, in the order that they have there."""
    if points is None or points >= len(x):
        return x
    return datasets.take(x, np.sort(np.random.default_rng([seed, *b"points"]).permutation(len(x))[:points]))


def _requested_steps(epochs: Literal["all", "final"] | Sequence[float], epoch_of_step: dict[int, float]) -> list[int]:
    """The stored steps that a request names."""
    if epochs == "all":
        return list(epoch_of_step)
    if epochs == "final":
        return [max(epoch_of_step)]
    steps = []
    for epoch in epochs:
        step = min(epoch_of_step, key=lambda step: abs(epoch_of_step[step] - epoch))
        if abs(epoch_of_step[step] - epoch) > 0.5:
            raise UserError(
                f"activations of epoch {epoch:g} are requested, but the stored epochs are "
                f"{', '.join(f'{stored:g}' for stored in epoch_of_step.values())}; choose one of these"
            )
        steps.append(step)
    return steps


def load(path: Path, layer: str) -> np.ndarray:
    """One layer of a file of activations: (networks, n, d) float32.

    Raises:
        DamagedFile: the file is missing, truncated or corrupt, or has no such layer.
    """
    return read_tensors(path, [layer])[0][layer].numpy()


def layers(path: Path) -> list[str]:
    """Layers in a file of activations: conv1, conv2, ..., softmax, and in one of a noisy split `LABELS`; those before
    the ReLU are left out.

    Raises:
        DamagedFile: the file is missing, truncated or corrupt.
    """
    names = [name for name in read_metadata(path)["tensors"] if not name.endswith(BEFORE_RELU)]
    return sorted(names, key=lambda name: (name == "softmax", len(name), name))
