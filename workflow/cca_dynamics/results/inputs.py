"""What a result is computed from: trained cohorts and their activations, parts put together again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cca_dynamics.files import DamagedFile, read_facts


@dataclass(frozen=True)
class Inputs:
    """Folders of the cohorts of one result.

    Attributes:
        networks: cohort → folders written by `training.train`, one per part, in order.
        activations: cohort → folders written by `activations.extract`, in the same order.
        ablations: cohort → tables written by `ablation.ablate`, in the same order.
        device: "cpu" or "cuda".
        store: a folder that keeps finished blocks of comparisons, see `similarity.pairwise`.
    """

    networks: dict[str, list[Path]]
    activations: dict[str, list[Path]]
    ablations: dict[str, list[Path]]
    device: str = "cpu"
    store: Path | None = None

    @classmethod
    def from_paths(
        cls,
        networks: list[Path],
        activations: list[Path],
        ablations: list[Path] = (),
        device: str = "cpu",
        store: Path | None = None,
    ) -> Inputs:
        """Group .../<cohort>/<part> folders and files by cohort."""

        def grouped(paths: list[Path]) -> dict[str, list[Path]]:
            cohorts: dict[str, list[Path]] = {}
            for path in paths:
                cohorts.setdefault(path.parent.name, []).append(path)
            return cohorts

        return cls(grouped(networks), grouped(activations), grouped(ablations), device, store)

    def checkpoints(self, cohort: str, split: str = "train") -> list[tuple[int, float]]:
        """(step, epoch) of each checkpoint whose activations are stored, in order."""
        files = sorted((self.activations[cohort][0] / split).glob("step-*.safetensors"))
        return [(facts["step"], facts["epoch"]) for facts in map(read_facts, files)]

    def representations(self, cohort: str, layer: str, step: int, split: str = "train") -> np.ndarray:
        """Activations of one layer at one step: (networks, data points, neurons) float32."""
        from cca_dynamics.activations import load

        files = [part / split / f"step-{step:06d}.safetensors" for part in self.activations[cohort]]
        return np.concatenate([np.asarray(load(file, layer)) for file in files])

    def file(self, cohort: str, step: int, split: str = "train") -> Path:
        """The file of activations of the first part of a cohort."""
        return self.activations[cohort][0] / split / f"step-{step:06d}.safetensors"

    def layers(self, cohort: str, step: int, split: str = "train") -> list[str]:
        """The layers whose activations are stored, in order."""
        from cca_dynamics.activations import layers

        return layers(self.file(cohort, step, split))

    def history(self, cohort: str) -> pd.DataFrame:
        """Columns step, epoch, network, loss, train_accuracy, test_accuracy.

        Raises:
            DamagedFile: a history table cannot be read.
        """
        return _tables([part / "history.parquet" for part in self.networks[cohort]])

    def ablation(self, cohort: str) -> pd.DataFrame:
        """Columns network, order, share, accuracy.

        Raises:
            DamagedFile: a table cannot be read.
        """
        return _tables(self.ablations[cohort])


def _tables(paths: list[Path]) -> pd.DataFrame:
    tables = []
    for path in paths:
        try:
            tables.append(pd.read_parquet(path))
        except (OSError, ValueError) as problem:
            raise DamagedFile(path, problem) from None
    return pd.concat(tables, ignore_index=True)


def final_performance(inputs: Inputs, cohort: str, **columns: object) -> pd.DataFrame:
    """Loss and accuracies of each network at the end of training, as tidy rows.

    Returns:
        Columns network, quantity ("loss", "train_accuracy", "test_accuracy"), value, and `columns` repeated.
    """
    history = inputs.history(cohort)
    final = history[history["step"] == history["step"].max()]
    rows = final.melt(
        id_vars="network",
        value_vars=["loss", "train_accuracy", "test_accuracy"],
        var_name="quantity",
        value_name="value",
    )
    return rows.assign(**columns)
