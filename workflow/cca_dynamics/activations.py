"""Activations on disk: one safetensors file per checkpoint and split, one (networks, n, d) float32 tensor per layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from cca_dynamics import checkpoints
from cca_dynamics.datasets import Dataset
from cca_dynamics.files import read_facts, read_tensors, replacing, seal, stream_tensors
from cca_dynamics.networks import BATCH, build

MEMORY = 2**29
"""Bytes of activations that are held at a time; the file grows by as much."""


def extract(
    networks: Path,
    dataset: Dataset,
    out: Path,
    *,
    requests: Sequence[dict],
    device: str = "cpu",
    report: Callable[[str], None] = print,
) -> None:
    """Run a dataset through stored networks and keep what their layers make of it.

    Args:
        networks: a folder written by `training.train`.
        dataset: the data.
        out: folder to write, whole or not at all: <split>/step-NNNNNN.safetensors, with facts step, epoch, cohort,
            networks, split and the checksums of the checkpoint.
        requests: dicts of epochs ("all", "final" or a list of stored epochs), splits ("train", "test") and layers
            ("all" or a list), and points (so many random data points of a split, the same for all networks of a study;
            None or absent: all).
        device: "cpu" or "cuda".
        report: called with one line a checkpoint.

    Raises:
        DamagedFile: a checkpoint cannot be read.
        ValueError: an epoch or a layer that does not exist is asked for.
    """
    recipe = checkpoints.load_recipe(networks, dataset.checksum)
    network = build(recipe["network"], dataset.train_x.shape[1], dataset.train_x.shape[2:], dataset.classes, device)
    points = requests[0].get("points") if requests else None
    inputs = {
        split: _chosen(x, points, recipe["seed"]) for split, x in (("train", dataset.train_x), ("test", dataset.test_x))
    }
    files = dict(checkpoints.stored(networks))
    epoch_of = {step: read_facts(file)["epoch"] for step, file in files.items()}
    wanted: dict[tuple[int, str], dict[str, None]] = {}
    for request in requests:
        layers = network.layers if request["layers"] == "all" else request["layers"]
        for step in _steps(request["epochs"], epoch_of):
            for split in request["splits"]:
                wanted.setdefault((step, split), {}).update(dict.fromkeys(layers))
    with replacing(out) as folder:
        for count, ((step, split), layers) in enumerate(sorted(wanted.items()), start=1):
            state, facts = read_tensors(files[step], device=device)
            path = folder / split / files[step].name
            path.parent.mkdir(parents=True, exist_ok=True)
            size = len(recipe["networks"]), len(inputs[split])
            shapes = {layer: (*size, width) for layer, width in zip(layers, network.width_of(*layers), strict=True)}
            parts = (
                network.representations(state, some.to(device), list(layers))
                for some in inputs[split].split(_at_a_time(shapes))
            )
            stream_tensors(path, shapes, parts, **{**facts, "split": split, "checkpoint": facts["sha256"]})
            report(f"checkpoint {count}/{len(wanted)} · step {step} · {split}")
        seal(folder)


def _at_a_time(shapes: dict[str, tuple[int, int, int]]) -> int:
    """Data points whose activations take `MEMORY`, in whole batches."""
    numbers = sum(networks * width for networks, _, width in shapes.values())
    return max(int(MEMORY / (4 * numbers)) // BATCH, 1) * BATCH


def _chosen(x: Tensor, points: int | None, seed: int) -> Tensor:
    """Random data points of a split, in the order they had."""
    if points is None or points >= len(x):
        return x
    return x[np.sort(np.random.default_rng([seed, *b"points"]).permutation(len(x))[:points])]


def _steps(epochs: str | Sequence[float], epoch_of: dict[int, float]) -> list[int]:
    """The stored steps a request names."""
    if epochs == "all":
        return list(epoch_of)
    if epochs == "final":
        return [max(epoch_of)]
    steps = []
    for epoch in epochs:
        step = min(epoch_of, key=lambda step: abs(epoch_of[step] - epoch))
        if abs(epoch_of[step] - epoch) > 0.5:
            raise ValueError(
                f"activations of epoch {epoch:g} are asked for, but the stored epochs are "
                f"{', '.join(f'{stored:g}' for stored in epoch_of.values())}"
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
    """Layers in a file of activations, conv1, conv2, ..., softmax."""
    return sorted(read_facts(path)["tensors"], key=lambda name: (name == "softmax", len(name), name))
