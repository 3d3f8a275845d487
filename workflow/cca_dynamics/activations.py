"""Activations on disk: one safetensors file per checkpoint and split, one (networks, n, d) float32 tensor per layer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cca_dynamics import checkpoints
from cca_dynamics.datasets import Dataset
from cca_dynamics.files import DamagedFile, replacing
from cca_dynamics.networks import build


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
        out: folder to write, whole or not at all: <split>/step-NNNNNN.safetensors, with metadata step, epoch, cohort,
            networks, split and the sha256 of the checkpoint.
        requests: dicts of epochs ("all", "final" or a list of stored epochs), splits ("train", "test") and layers
            ("all" or a list).
        device: "cpu" or "cuda".
        report: called with one line a checkpoint.

    Raises:
        DamagedFile: a checkpoint cannot be read.
        ValueError: an epoch or a layer that does not exist is asked for.
    """
    from safetensors.torch import save_file

    recipe = checkpoints.load_recipe(networks)
    network = build(recipe["network"], dataset.train_x.shape[1], dataset.train_x.shape[2:], dataset.classes)
    inputs = {"train": dataset.train_x, "test": dataset.test_x}
    files = dict(checkpoints.stored(networks))
    epoch_of = {step: float(checkpoints.metadata(file)["epoch"]) for step, file in files.items()}
    wanted: dict[tuple[int, str], dict[str, None]] = {}
    for request in requests:
        layers = network.layers if request["layers"] == "all" else request["layers"]
        for step in _steps(request["epochs"], epoch_of):
            for split in request["splits"]:
                wanted.setdefault((step, split), {}).update(dict.fromkeys(layers))
    with replacing(out) as folder:
        for count, ((step, split), layers) in enumerate(sorted(wanted.items()), start=1):
            state, metadata = checkpoints.load(files[step], device)
            found = network.representations(state, inputs[split].to(device), list(layers))
            path = folder / split / files[step].name
            path.parent.mkdir(parents=True, exist_ok=True)
            source = hashlib.sha256(files[step].read_bytes()).hexdigest()
            tensors = {layer: tensor.float().cpu().contiguous() for layer, tensor in found.items()}
            save_file(tensors, path, metadata={**metadata, "split": split, "checkpoint_sha256": source})
            report(f"checkpoint {count}/{len(wanted)} · step {step} · {split}")


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
        DamagedFile: the file is missing, truncated or corrupt.
        ValueError: it has no such layer.
    """
    with _open(path) as file:
        if layer not in file.keys():  # noqa: SIM118
            raise ValueError(f"{path} has no layer {layer}; it has {', '.join(sorted(file.keys()))}")
        return file.get_tensor(layer)


def metadata(path: Path) -> dict[str, str]:
    """What a file of activations says of itself: step, epoch, cohort, networks, split, checkpoint_sha256."""
    with _open(path) as file:
        return file.metadata()


def layers(path: Path) -> list[str]:
    """Layers in a file of activations, conv1, conv2, ..., softmax."""
    with _open(path) as file:
        return sorted(file.keys(), key=lambda name: (name == "softmax", len(name), name))


def _open(path: Path):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as problem:
        raise DamagedFile(path, problem) from None
