"""What a result is computed from: trained cohorts and their activations, parts put together again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from cca_dynamics.errors import DamagedFile, UserError
from cca_dynamics.results.tables import DIVERGED
from cca_dynamics.runtime.storage import check_complete, read_metadata, read_part, shape_of


@dataclass(frozen=True)
class Inputs:
    """Folders of the cohorts of one result.

    Networks that diverged in training are left out everywhere, and the others are numbered from 0 without gaps.

    Attributes:
        networks: cohort → folders written by the stage `train`, one per part, in order.
        activations: cohort → folders written by the stage `activations`, in the same order.
        ablations: cohort → tables written by the stage `ablation`, in the same order.
        device: "cpu" or "cuda".
        finished_blocks: a folder from which a killed comparison resumes, see `block_cache`.
    """

    networks: dict[str, list[Path]]
    activations: dict[str, list[Path]]
    ablations: dict[str, list[Path]]
    device: str = "cpu"
    finished_blocks: Path | None = None
    _histories: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)  # so that each is read once

    @classmethod
    def from_paths(
        cls,
        networks: list[Path],
        activations: list[Path],
        ablations: list[Path] = (),
        device: str = "cpu",
        finished_blocks: Path | None = None,
    ) -> Inputs:
        """Group .../<cohort>/<part> folders and files by cohort.

        Raises:
            DamagedFile: a file of a folder is missing.
        """
        for folder in (*networks, *activations):
            check_complete(folder)

        def grouped(paths: list[Path]) -> dict[str, list[Path]]:
            cohorts: dict[str, list[Path]] = {}
            for path in paths:
                cohorts.setdefault(path.parent.name, []).append(path)
            return cohorts

        return cls(grouped(networks), grouped(activations), grouped(ablations), device, finished_blocks)

    def checkpoints(self, cohort: str, split: str = "train") -> list[tuple[int, float]]:
        """(step, epoch) of each checkpoint whose activations are stored, in order."""
        files = sorted((self.activations[cohort][0] / split).glob("step-*.safetensors"))
        return [(metadata["step"], metadata["epoch"]) for metadata in map(read_metadata, files)]

    def representations(self, cohort: str, layer: str, step: int, split: str = "train") -> np.ndarray:
        """Activations of one layer at one step, of networks that did not diverge.

        Returns:
            (networks, data points, neurons) float32.

        Raises:
            DamagedFile: a file cannot be read, or was made from another checkpoint.
        """
        from cca_dynamics.representations.extraction import load

        stacked = np.concatenate([load(file, layer) for file in self._files(cohort, step, split)])
        trained = self.trained(cohort)
        return stacked if len(trained) == len(stacked) else stacked[trained]

    def representation(
        self, cohort: str, layer: str, step: int, network: int, split: str = "train", rows: slice = slice(None)
    ) -> np.ndarray:
        """Activations of one layer at one step, of one of the networks that did not diverge.

        Nothing else is read into memory, however many networks and data points there are.

        Args:
            cohort, layer, step, split: as for `representations`.
            network: its number, from 0 without gaps.
            rows: only these data points.

        Returns:
            (data points, neurons) float32.

        Raises:
            DamagedFile: a file cannot be read, or was made from another checkpoint.
        """
        index = int(self.trained(cohort)[network])
        for file in self._files(cohort, step, split):
            networks = shape_of(file, layer)[0]
            if index < networks:
                return read_part(file, layer, index, rows)
            index -= networks
        raise DamagedFile(file, f"it lacks networks of {cohort}")

    def _files(self, cohort: str, step: int, split: str) -> list[Path]:
        """The files of activations of a cohort at one step.

        Raises:
            DamagedFile: one of them cannot be read, or was made from another checkpoint.
        """
        name = f"step-{step:06d}.safetensors"
        files = [part / split / name for part in self.activations[cohort]]
        for file, networks in zip(files, self.networks[cohort], strict=True):
            if not extracted_from(file, networks / name):
                raise DamagedFile(file, f"it was not made from {networks / name}")
        return files

    def examples(self, cohort: str) -> int:
        """On how many training examples the networks of a cohort were trained."""
        file = next(iter(sorted(self.activations[cohort][0].glob("*/step-*.safetensors"))))
        return int(read_metadata(file)["examples"])

    def file(self, cohort: str, step: int, split: str = "train") -> Path:
        """The file of activations of the first part of a cohort."""
        return self.activations[cohort][0] / split / f"step-{step:06d}.safetensors"

    def layers(self, cohort: str, step: int, split: str = "train") -> list[str]:
        """The layers whose activations are stored, in order."""
        from cca_dynamics.representations.extraction import layers

        return layers(self.file(cohort, step, split))

    def history(self, cohort: str) -> pd.DataFrame:
        """How the networks of a cohort did during training.

        Returns:
            Columns step, epoch, network, loss, train_accuracy, test_accuracy; of language models step, epoch, network,
            loss and valid_loss, in nats per token.

        Raises:
            DamagedFile: a history table cannot be read.
        """
        return self._without_diverged(cohort, self._full_history(cohort))

    def trained(self, cohort: str) -> np.ndarray:
        """Indices of the networks of a cohort that did not diverge.

        Raises:
            UserError: they are fewer than two.
        """
        history = self._full_history(cohort)
        final = history[history["step"] == history["step"].max()].sort_values("network")
        indices = np.flatnonzero(final["loss"].notna())
        if len(indices) < 2:
            diverged = len(final) - len(indices)
            raise UserError(f"{diverged} of the {len(final)} networks of {cohort} diverged; lower their learning rate")
        return indices

    def diverged(self) -> pd.DataFrame:
        """One row for each network that is left out: quantity `DIVERGED`, cohort, value (its index in the cohort)."""
        rows = []
        for cohort in self.networks:
            indices = range(self._full_history(cohort)["network"].nunique())
            left_out = sorted({*indices} - set(self.trained(cohort).tolist()))
            rows += [{"quantity": DIVERGED, "cohort": cohort, "value": float(index)} for index in left_out]
        return pd.DataFrame(rows, columns=["quantity", "cohort", "value"])

    def _full_history(self, cohort: str) -> pd.DataFrame:
        if cohort not in self._histories:
            self._histories[cohort] = _read_tables([part / "history.parquet" for part in self.networks[cohort]])
        return self._histories[cohort]

    def _without_diverged(self, cohort: str, table: pd.DataFrame) -> pd.DataFrame:
        """A table of a cohort without the rows of networks that diverged, the others numbered without gaps."""
        number = {old: new for new, old in enumerate(self.trained(cohort))}
        if len(number) == table["network"].nunique():
            return table
        table = table[table["network"].isin(number)]
        return table.assign(network=table["network"].map(number)).reset_index(drop=True)

    def ablation(self, cohort: str) -> pd.DataFrame:
        """Accuracy of the networks of a cohort while more and more feature maps are clamped.

        Returns:
            Columns network, order (in which maps are clamped), share (of clamped maps), accuracy.

        Raises:
            DamagedFile: a table cannot be read.
        """
        return self._without_diverged(cohort, _read_tables(self.ablations[cohort]))


def extracted_from(activations: Path, checkpoint: Path) -> bool:
    """Whether a file of activations was made from a checkpoint, by the checksums of the checkpoint's tensors.

    Raises:
        DamagedFile: one of the two cannot be read.
    """
    return read_metadata(activations).get("checkpoint") == read_metadata(checkpoint)["sha256"]


def _read_tables(paths: list[Path]) -> pd.DataFrame:
    tables = []
    for path in paths:
        try:
            tables.append(pd.read_parquet(path))
        except (OSError, ValueError) as problem:
            raise DamagedFile(path, problem) from None
    return pd.concat(tables, ignore_index=True)


def performance(inputs: Inputs, cohort: str) -> pd.DataFrame:
    """All that was measured of each network in training, as tidy rows: network, step, epoch, quantity, value."""
    return inputs.history(cohort).melt(id_vars=["network", "step", "epoch"], var_name="quantity")


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
