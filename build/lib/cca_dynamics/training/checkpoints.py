"""Networks on disk: one folder per part of a cohort, one safetensors file per stored step."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from cca_dynamics.config.base import validate
from cca_dynamics.config.cohorts import ClassifierRecipe, LanguageRecipe, Recipe
from cca_dynamics.errors import ConfigError, DamagedFile
from cca_dynamics.runtime.storage import check_complete, replacing, write_tensors


def save(
    state: dict[str, Tensor], folder: Path, *, step: int, epoch: float, recipe: ClassifierRecipe | LanguageRecipe
) -> None:
    """Write step-NNNNNN.safetensors: stacked tensors named as in a plain torch.nn.Module, network first."""
    with replacing(folder / f"step-{step:06d}.safetensors") as path:
        write_tensors(path, state, step=step, epoch=epoch, cohort=recipe.cohort, networks=recipe.networks)


def save_recipe(recipe: ClassifierRecipe | LanguageRecipe, inputs: dict[str, str], folder: Path) -> None:
    """Write recipe.json, everything that determines the networks in a folder.

    Args:
        recipe: which networks, and how they are trained.
        inputs: what determines them besides the recipe: data_checksum (of the dataset or corpus) and, for classifiers,
            convolutions_in (a floating-point format that depends on the machine).
        folder: of the networks.
    """
    content = {**recipe.model_dump(mode="json"), **inputs}
    (folder / "recipe.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_recipe(folder: Path, data_checksum: str | None = None) -> ClassifierRecipe | LanguageRecipe:
    """Read the recipe in recipe.json.

    Args:
        folder: of the networks.
        data_checksum: of the data they are supposed to have been trained on; None: not checked.

    Raises:
        DamagedFile: it is missing or not a recipe, or the networks were trained on other data.
    """
    path = folder / "recipe.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        trained_on, _ = content.pop("data_checksum"), content.pop("convolutions_in", None)
        if data_checksum is not None and trained_on != data_checksum:
            raise ValueError("these networks were trained on other data")
        return validate(Recipe, content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as problem:
        raise DamagedFile(path, problem) from None


def stored(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of every stored step, in order.

    Raises:
        DamagedFile: there is none, or the folder has lost a file.
    """
    check_complete(folder)
    files = sorted(folder.glob("step-*.safetensors"))
    if not files:
        raise DamagedFile(folder, "it holds no checkpoint")
    return [(int(file.stem.removeprefix("step-")), file) for file in files]
