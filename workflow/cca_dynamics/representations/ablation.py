"""Robustness to cumulative ablation: how accuracy falls as more and more feature maps are clamped to zero.

Source: Morcos, Barrett, Rabinowitz & Botvinick, "On the importance of single directions for generalization", ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cca_dynamics.config.cohorts import AblationRequest
from cca_dynamics.data import datasets
from cca_dynamics.networks.convolutional import Networks, build
from cca_dynamics.runtime.storage import checksum, read_tensors
from cca_dynamics.training import checkpoints
from cca_dynamics.training.randomness import ABLATION, generator
from cca_dynamics.training.resume import MINUTES, key_of, resuming

MASKS_AT_A_TIME = 40
"""Masks of one network that are evaluated at once; more no longer fit into the cache."""


def ablate(
    networks: Path,
    data: Path,
    out: Path,
    *,
    request: AblationRequest,
    device: str = "cpu",
    report: Callable[[str], None] = print,
    save_minutes: float = MINUTES,
    save_steps: int | None = None,
) -> None:
    """Clamp growing random sets of feature maps of trained networks and measure their accuracy on training data.

    Args:
        networks: a folder written by `training.classifiers.train`; its last checkpoint is used.
        data: the dataset that they were trained on, written by `datasets.materialise`.
        out: parquet file to write, which appears whole or not at all: network, order, share (of the feature maps that
            are clamped), accuracy.
        request: which feature maps are clamped.
        device: "cpu" or "cuda".
        report: called with one line for every ten networks.
        save_minutes, save_steps: how often to save, see `resume.resuming`; a step is a network.

    Raises:
        DamagedFile: the dataset or a checkpoint cannot be read.
        Interrupted: the process was interrupted; the state is saved beside `out`.
    """
    dataset = datasets.load(data)
    recipe = checkpoints.load_recipe(networks, dataset.checksum)
    dataset = dataset.subset(recipe.examples, recipe.seed)
    channels, *space = dataset.train_x.shape[1:]
    normalise = dataset.normalisation and dataset.normalisation.to(device)
    network = build(recipe.network, channels, space, dataset.classes, device, normalise=normalise)
    state, metadata = read_tensors(checkpoints.stored(networks)[-1][1], device=device)
    labels = dataset.train_y if recipe.labels == "true" else dataset.train_y_permuted
    points = np.random.default_rng([recipe.seed, *b"ablation"]).permutation(len(labels))[: request.points]
    x, y = datasets.take(dataset.train_x, points).to(device), labels[points].to(device)
    shares, network_indices = np.linspace(0, 1, request.levels), recipe.networks
    masks_per_network = request.orders * len(shares)
    accuracy = torch.full((len(network_indices), masks_per_network), torch.nan)
    inputs = {"data": dataset.checksum, "networks": checksum(metadata)}
    key = key_of([request, recipe], device, "representations.ablation:ablate", **inputs)
    with resuming(out, key, minutes=save_minutes, steps=save_steps, report=report) as work:
        if (saved := work.load()) is not None:
            accuracy.copy_(saved[0]["accuracy"])
        for row, index in enumerate(network_indices):
            if not accuracy[row].isnan().any():
                continue
            rng = generator(recipe.seed, recipe.cohort, index, ABLATION)
            masks = _draw_masks(network, request, shares, rng)
            parameters = {name: tensor[row : row + 1] for name, tensor in state.items()}
            for first in range(0, masks_per_network, MASKS_AT_A_TIME):
                batch = slice(first, first + MASKS_AT_A_TIME)
                masks_of_batch = {name: mask[batch].to(device) for name, mask in masks.items()}
                accuracy[row, batch] = network.accuracy_without(parameters, x, y, masks_of_batch).cpu()
            if (row + 1) % 10 == 0 or row + 1 == len(network_indices):
                report(f"network {row + 1}/{len(network_indices)}")
            work.step(lambda: ({"accuracy": accuracy}, {}))
        orders = np.repeat(np.arange(request.orders), len(shares))
        table = pd.DataFrame(
            {
                "network": np.repeat(network_indices, masks_per_network),
                "order": np.tile(orders, len(network_indices)),
                "share": np.tile(shares, request.orders * len(network_indices)),
                "accuracy": accuracy.double().flatten().numpy(),
            }
        )
        table.to_parquet(work.output, index=False)


def _draw_masks(
    network: Networks, request: AblationRequest, shares: np.ndarray, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Layer → (orders·shares, channels) of 1 (stays) and 0 (clamped); the maps of all layers are shuffled together."""
    sizes = network.width_of(*request.layers)
    total = sum(sizes)
    ranks = np.stack([rng.permutation(total) for _ in range(request.orders)])  # the smaller, the earlier it is clamped
    clamped = np.rint(shares * total)
    masks = torch.from_numpy((ranks[:, None, :] >= clamped[:, None]).reshape(-1, total).astype(np.float32))
    return dict(zip(request.layers, masks.split(sizes, dim=1), strict=True))
