"""Networks on disk: a folder per part of a cohort, one safetensors file per stored step."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from cca_dynamics.files import DamagedFile


def save(state: dict[str, Tensor], folder: Path, *, step: int, epoch: float, recipe: dict) -> None:
    """Write step-NNNNNN.safetensors: stacked tensors named as in a plain torch.nn.Module, network first."""
    from safetensors.torch import save_file

    metadata = {
        "step": str(step),
        "epoch": f"{epoch:.6g}",
        "cohort": recipe["cohort"],
        "networks": json.dumps(recipe["networks"]),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / f"step-{step:06d}.safetensors", metadata=metadata)


def save_recipe(recipe: dict, folder: Path) -> None:
    """Write recipe.json, all that determines the networks in the folder."""
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")


def load_recipe(folder: Path) -> dict:
    """Read recipe.json.

    Raises:
        DamagedFile: it is missing or not JSON.
    """
    path = folder / "recipe.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise DamagedFile(path, problem) from None


def load(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a stored step: stacked tensors and metadata (step, epoch, cohort, networks).

    Raises:
        DamagedFile: the file is missing, truncated or corrupt.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=device) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        raise DamagedFile(path, problem) from None


def metadata(path: Path) -> dict[str, str]:
    """What a stored step says of itself; the tensors are not read.

    Raises:
        DamagedFile: the file is missing, truncated or corrupt.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata()
    except (SafetensorError, OSError) as problem:
        raise DamagedFile(path, problem) from None


def stored(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of every stored step, in order.

    Raises:
        DamagedFile: there is none.
    """
    files = sorted(folder.glob("step-*.safetensors"))
    if not files:
        raise DamagedFile(folder, "it holds no checkpoint")
    return [(int(file.stem.removeprefix("step-")), file) for file in files]
