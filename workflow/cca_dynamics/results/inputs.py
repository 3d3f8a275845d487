"""What a result is computed from: trained cohorts and their activations, parts put together again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cca_dynamics.files import DamagedFile, check_whole, read_facts
from cca_dynamics.results.tables import DIVERGED


@dataclass(frozen=True)
class Inputs:
    """Folders of the cohorts of one result.

    Networks that diverged in training are left out everywhere, and the others numbered anew.

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
        """Group .../<cohort>/<part> folders and files by cohort.

        Raises:
            DamagedFile: a folder has lost a file.
        """
        for folder in (*networks, *activations):
            check_whole(folder)

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
        """Activations of one layer at one step: (networks, data points, neurons) float32.

        Raises:
            DamagedFile: a file cannot be read, or was made from another checkpoint.
        """
        from cca_dynamics.activations import load

        name = f"step-{step:06d}.safetensors"
        files = [part / split / name for part in self.activations[cohort]]
        for file, networks in zip(files, self.networks[cohort], strict=True):
            if read_facts(file).get("checkpoint") != read_facts(networks / name)["sha256"]:
                raise DamagedFile(file, f"it was not made from {networks / name}")
        found = np.concatenate([np.asarray(load(file, layer)) for file in files])
        members = self.members(cohort)
        return found if len(members) == len(found) else found[members]

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
        return self._surviving(cohort, self._whole_history(cohort))

    def members(self, cohort: str) -> np.ndarray:
        """Which networks of a cohort did not diverge, (survivors,).

        Raises:
            ValueError: fewer than two did not.
        """
        history = self._whole_history(cohort)
        final = history[history["step"] == history["step"].max()].sort_values("network")
        members = np.flatnonzero(final["loss"].notna())
        if len(members) < 2:
            gone = len(final) - len(members)
            raise ValueError(f"{gone} of the {len(final)} networks of {cohort} diverged; lower their learning rate")
        return members

    def diverged(self) -> pd.DataFrame:
        """One row for each network that is left out: quantity `DIVERGED`, cohort, value (its number in the cohort)."""
        rows = [
            {"quantity": DIVERGED, "cohort": name, "value": float(i)} for name in self.networks for i in self._out(name)
        ]
        return pd.DataFrame(rows, columns=["quantity", "cohort", "value"])

    def _out(self, cohort: str) -> list[int]:
        everyone = self._whole_history(cohort)["network"].nunique()
        return sorted({*range(everyone)} - set(self.members(cohort).tolist()))

    def _whole_history(self, cohort: str) -> pd.DataFrame:
        return _tables([part / "history.parquet" for part in self.networks[cohort]])

    def _surviving(self, cohort: str, table: pd.DataFrame) -> pd.DataFrame:
        """Without the rows of networks that diverged."""
        number = {old: new for new, old in enumerate(self.members(cohort))}
        if len(number) == table["network"].nunique():
            return table
        table = table[table["network"].isin(number)]
        return table.assign(network=table["network"].map(number)).reset_index(drop=True)

    def ablation(self, cohort: str) -> pd.DataFrame:
        """Columns network, order, share, accuracy.

        Raises:
            DamagedFile: a table cannot be read.
        """
        return self._surviving(cohort, _tables(self.ablations[cohort]))


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
