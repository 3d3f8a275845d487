"""Networks on disk: a folder per part of a cohort, one safetensors file per stored step."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from cca_dynamics.files import DamagedFile, check_whole, replacing, write_tensors


def save(state: dict[str, Tensor], folder: Path, *, step: int, epoch: float, recipe: dict) -> None:
    """Write step-NNNNNN.safetensors: stacked tensors named as in a plain torch.nn.Module, network first."""
    with replacing(folder / f"step-{step:06d}.safetensors") as path:
        write_tensors(path, state, step=step, epoch=epoch, cohort=recipe["cohort"], networks=recipe["networks"])


def save_recipe(recipe: dict, folder: Path) -> None:
    """Write recipe.json, all that determines the networks in the folder."""
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")


def load_recipe(folder: Path, data_checksum: str | None = None) -> dict:
    """Read recipe.json.

    Args:
        folder: of the networks.
        data_checksum: of the data they are supposed to have been trained on; None: not checked.

    Raises:
        DamagedFile: it is missing or not JSON, or the networks were trained on other data.
    """
    path = folder / "recipe.json"
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
        if data_checksum is not None and recipe["data_checksum"] != data_checksum:
            raise ValueError("these networks were trained on other data")
        return recipe
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DamagedFile(path, problem) from None


def stored(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of every stored step, in order.

    Raises:
        DamagedFile: there is none, or the folder has lost a file.
    """
    check_whole(folder)
    files = sorted(folder.glob("step-*.safetensors"))
    if not files:
        raise DamagedFile(folder, "it holds no checkpoint")
    return [(int(file.stem.removeprefix("step-")), file) for file in files]
