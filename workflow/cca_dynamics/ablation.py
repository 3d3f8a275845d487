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

from cca_dynamics import checkpoints
from cca_dynamics.datasets import Dataset
from cca_dynamics.files import checksum, read_tensors
from cca_dynamics.networks import build
from cca_dynamics.resume import MINUTES, key_of, resuming
from cca_dynamics.training import ABLATION, generator

TOGETHER = 40  # masks of one network evaluated at once; more no longer fit in the cache


def ablate(
    networks: Path,
    dataset: Dataset,
    out: Path,
    *,
    request: dict,
    device: str = "cpu",
    report: Callable[[str], None] = print,
    save_minutes: float = MINUTES,
    save_steps: int | None = None,
) -> None:
    """Clamp growing random sets of feature maps of the trained networks and measure train accuracy.

    Args:
        networks: a folder written by `training.train`; its last checkpoint is used.
        dataset: the data.
        out: parquet file to write, whole or not at all: network, order, share (of the feature maps that are clamped),
            accuracy.
        request: layers (whose feature maps are pooled), orders (random orders a network), levels (shares from 0 to 1,
            both included), points (random training examples, the same for all networks).
        device: "cpu" or "cuda".
        report: called with one line every ten networks.
        save_minutes, save_steps: how often to save, see `resume.Unfinished`; a step is a network.

    Raises:
        DamagedFile: a checkpoint cannot be read.
        Interrupted: the process was told to stop; what is done is kept beside `out`.
    """
    recipe = checkpoints.load_recipe(networks, dataset.checksum)
    network = build(recipe["network"], dataset.train_x.shape[1], dataset.train_x.shape[2:], dataset.classes, device)
    state, facts = read_tensors(checkpoints.stored(networks)[-1][1], device=device)
    labels = dataset.train_y if recipe["labels"] == "true" else dataset.train_y_permuted
    points = np.random.default_rng([recipe["seed"], *b"ablation"]).permutation(len(labels))[: request["points"]]
    x, y = dataset.train_x[points].to(device), labels[points].to(device)
    shares, members = np.linspace(0, 1, request["levels"]), recipe["networks"]
    ways = request["orders"] * len(shares)
    accuracy = torch.full((len(members), ways), torch.nan)
    inputs = {"data": dataset.checksum, "networks": checksum(facts)}
    key = key_of({"request": request, **recipe}, device, "ablation:ablate", **inputs)
    with resuming(out, key, minutes=save_minutes, steps=save_steps, report=report) as work:
        if (found := work.load()) is not None:
            accuracy.copy_(found[0]["accuracy"])
        for place, member in enumerate(members):
            if not accuracy[place].isnan().any():
                continue
            rng = generator(recipe["seed"], recipe["cohort"], member, ABLATION)
            masks = _masks(network, request["layers"], request["orders"], shares, rng)
            alone = {name: tensor[place : place + 1] for name, tensor in state.items()}
            for i in range(0, ways, TOGETHER):
                some = {name: mask[i : i + TOGETHER].to(device) for name, mask in masks.items()}
                accuracy[place, i : i + TOGETHER] = network.accuracy_without(alone, x, y, some).cpu()
            if (place + 1) % 10 == 0 or place + 1 == len(members):
                report(f"network {place + 1}/{len(members)}")
            work.step(lambda: ({"accuracy": accuracy}, {}))
        table = pd.DataFrame(
            {
                "network": np.repeat(members, ways),
                "order": np.tile(np.repeat(np.arange(request["orders"]), len(shares)), len(members)),
                "share": np.tile(shares, request["orders"] * len(members)),
                "accuracy": accuracy.double().flatten().numpy(),
            }
        )
        table.to_parquet(work.output, index=False)


def _masks(network, layers: list[str], orders: int, shares: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
    """Layer → (orders · shares, channels) of 1 and 0: which maps stay. The maps of all layers are shuffled together."""
    sizes = [network.architecture.widths[layer] for layer in layers]
    total = sum(sizes)
    place = np.stack([rng.permutation(total) for _ in range(orders)])  # when a map is clamped
    clamped = np.rint(shares * total)
    masks = torch.from_numpy((place[:, None, :] >= clamped[:, None]).reshape(-1, total).astype(np.float32))
    return dict(zip(layers, masks.split(sizes, dim=1), strict=True))
