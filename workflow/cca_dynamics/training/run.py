"""What the training of classifiers and of language models has in common: where it stands, and how it is resumed.

    with training_run(recipe, out, tensors, ...) as run:
        for epoch in run.epochs():
            for batch in run.batches(batches_of(epoch)):
                losses, gradients = ...
                run.freeze_diverged(losses, gradients)
                ...  # update the parameters of the networks of run.training
                run.end_step(losses)
            run.end_epoch()

Training changes `tensors` in place. They are saved with everything else between two steps; a killed run restores them
and passes over the epochs and batches that are done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cca_dynamics.config.cohorts import ClassifierRecipe, LanguageRecipe
from cca_dynamics.errors import DamagedFile
from cca_dynamics.runtime.storage import read_tensors, write_contents
from cca_dynamics.training import checkpoints
from cca_dynamics.training.resume import Unfinished, key_of, resuming

Batch = TypeVar("Batch")


@contextmanager
def training_run(
    recipe: ClassifierRecipe | LanguageRecipe,
    out: Path,
    tensors: dict[str, dict[str, Tensor]],
    inputs: dict[str, str],
    *,
    entry: str,
    device: str,
    report: Callable[[str], None],
    save_minutes: float,
    save_steps: int | None,
) -> Iterator[TrainingRun]:
    """Begin the training of one part of a cohort, or resume it; at the end of the block its folder is complete.

    Args:
        recipe: which networks, and how they are trained.
        out: folder to write, whole or not at all: step-NNNNNN.safetensors, history.parquet, recipe.json.
        tensors: group → name → everything that training changes, with its initial value; overwritten if the run
            resumes.
        inputs: what determines the networks besides the recipe, see `checkpoints.save_recipe`.
        entry: "module:name" of the function that trains, for its fingerprint.
        device: "cpu" or "cuda", where the networks are.
        report: called with one line per epoch.
        save_minutes, save_steps: the most between two saves, see `resume.Unfinished`.

    Raises:
        Interrupted: the process was interrupted; the state is saved beside `out`.
    """
    key = key_of([recipe], device, entry, **inputs)
    with resuming(out, key, minutes=save_minutes, steps=save_steps, report=report) as work:
        run = TrainingRun(recipe, work, tensors, device, report)
        checkpoints.save_recipe(recipe, inputs, work.output)
        yield run
        run.write_history(work.output / "history.parquet")
        write_contents(work.output)


class TrainingRun:
    """The training of one part of a cohort; made by `training_run`.

    Attributes:
        step: finished steps, in all; 0: the run has just begun.
        steps_of_epoch: finished steps of the current epoch.
        not_diverged: (N, 1), whether the numbers of each network are finite.
        stopped_after: (N,), epochs after which each network had reached the loss at which it stops; nan: it has not.
    """

    def __init__(
        self,
        recipe: ClassifierRecipe | LanguageRecipe,
        work: Unfinished,
        tensors: dict[str, dict[str, Tensor]],
        device: str,
        report: Callable[[str], None],
    ):
        networks = len(recipe.networks)
        self.step = self.steps_of_epoch = 0
        self.not_diverged = torch.ones(networks, 1, dtype=torch.bool, device=device)
        self.stopped_after = torch.full((networks,), math.nan, device=device)
        self._recipe, self._work, self._report = recipe, work, report
        self._epoch, self._history = 0, []
        self._loss_sum, self._loss_weight = torch.zeros(networks, device=device), 0
        self._diverged_in = torch.full((networks,), -1, device=device)  # the step in which each has; -1: it has not
        of_run = {
            "not_diverged": self.not_diverged,
            "diverged_in": self._diverged_in,
            "stopped_after": self.stopped_after,
            "loss_sum": self._loss_sum,
        }
        tensors = {**tensors, "run": of_run}
        self._tensors = {f"{group}.{name}": t for group, members in tensors.items() for name, t in members.items()}
        self._start: tuple[float, float] | None = None  # when the first step began, and epochs that were done by then
        if self._load_training_state():
            report(f"resuming from step {self.step} (epoch {self._epoch + 1} of {recipe.training.epochs})")
        else:
            work.restart()
            work.output.mkdir()

    def epochs(self) -> Iterator[int]:
        """The epochs that are not done yet, from 0."""
        yield from range(self._epoch, self._recipe.training.epochs)

    def batches(self, batches: Sequence[Batch]) -> Iterator[Batch]:
        """The batches of this epoch that are not done yet; between two of them, the state is saved if it is time to.

        Args:
            batches: all batches of the epoch.

        Raises:
            Interrupted: the process was interrupted; the state is saved.
        """
        first = self.steps_of_epoch
        if self._start is None:
            self._start = time.monotonic(), self._epoch + first / len(batches)
        for number in range(first, len(batches)):
            if number > first:
                self._work.step(self._training_state)
            yield batches[number]

    @property
    def stopped(self) -> Tensor:
        """(N,), whether each network has reached the loss at which it stops."""
        return self.stopped_after.isfinite()

    @property
    def training(self) -> Tensor:
        """(N, 1), whether each network still trains: it has neither diverged nor stopped."""
        return self.not_diverged & ~self.stopped[:, None]

    def freeze_diverged(self, losses: Tensor, gradients: Tensor) -> None:
        """Freeze the networks whose loss or gradient is not finite, for good; nothing of it reaches the others.

        An update whose rates are multiplied by `training` leaves frozen networks as they are.

        Args:
            losses: (N,).
            gradients: (N, parameters); set to zero for frozen networks.
        """
        finite = (losses.isfinite() & gradients.sum(dim=1).isfinite())[:, None]
        diverged = self.training & ~finite
        self.not_diverged &= ~diverged
        self._diverged_in.masked_fill_(diverged[:, 0], self.step)
        if gradients.is_cuda or not self.training.all():  # to ask a GPU would be to wait for it
            gradients.masked_fill_(~self.training, 0)

    def end_step(self, losses: Tensor, weight: int = 1) -> None:
        """Count a step.

        Args:
            losses: (N,) mean losses of its batch.
            weight: of the batch in the mean over the epoch.
        """
        self._loss_sum += losses * weight
        self._loss_weight += weight
        self.step += 1
        self.steps_of_epoch += 1

    def mean_losses(self) -> Tensor:
        """Each network's mean loss over the steps of this epoch so far (N,)."""
        return self._loss_sum / self._loss_weight

    def stop_at_loss(self, threshold: float) -> None:
        """Stop the networks whose mean loss over this epoch is at most a threshold, in nats, for good."""
        self.stopped_after[(self.mean_losses() <= threshold) & self.training[:, 0]] = self._epoch + 1

    def store(self, state: dict[str, Tensor], epoch: float) -> None:
        """Store the networks as they are after this step, see `checkpoints.save`."""
        checkpoints.save(state, self._work.output, step=self.step, epoch=epoch, recipe=self._recipe)

    def record(self, epoch: float, **columns: Tensor) -> None:
        """Add one row per network to the history.

        Args:
            epoch: finished epochs.
            columns: name → (N,) values, which become nan for networks that have diverged.
        """
        rows = {"step": self.step, "epoch": epoch, "network": list(self._recipe.networks)}
        self._history.append(pd.DataFrame(rows | {name: self._defined(column) for name, column in columns.items()}))

    def end_epoch(self, **measures: Tensor) -> None:
        """Count an epoch, report it and who has diverged in it, and save the state if it is time to.

        Args:
            measures: name → (N,), reported as means over the networks that have not diverged; the loss, over those that
                trained in this epoch.

        Raises:
            Interrupted: the process was interrupted; the state is saved.
        """
        for network, step in zip(self._recipe.networks, self._diverged_in.tolist(), strict=True):
            if step >= self.step - self.steps_of_epoch:
                self._report(f"network {network} diverged in step {step} and is frozen")
        self._epoch += 1
        begin, epochs_before = self._start
        epochs = self._recipe.training.epochs
        seconds_left = (time.monotonic() - begin) / (self._epoch - epochs_before) * (epochs - self._epoch)
        words = []
        if (trained := ~(self.stopped_after < self._epoch)).any():
            measures = {"loss": self.mean_losses().where(trained, math.nan), **measures}
        words += [f"{name} {_mean_of_finite(self._defined(values)):.3f}" for name, values in measures.items()]
        if stopped := int(self.stopped.sum()):
            words.append(f"{stopped} of {len(self.stopped)} networks have stopped")
        self._report(f"epoch {self._epoch}/{epochs} · {' · '.join(words)} · {math.ceil(seconds_left)} s left")
        self._loss_sum.zero_()
        self._loss_weight = self.steps_of_epoch = 0
        self._work.step(self._training_state)

    def write_history(self, file: Path | BinaryIO) -> None:
        """Write the history as parquet."""
        pd.concat(self._history, ignore_index=True).to_parquet(file, index=False)

    def _defined(self, values: Tensor) -> np.ndarray:
        """(N,), nan for networks that have diverged."""
        return values.double().where(self.not_diverged[:, 0], math.nan).cpu().numpy()

    def _training_state(self) -> tuple[dict[str, Tensor], dict]:
        """Tensors and metadata to save."""
        history = BytesIO()
        self.write_history(history)
        tensors = {**self._tensors, "history": torch.frombuffer(bytearray(history.getvalue()), dtype=torch.uint8)}
        position = {"step": self.step, "epoch": self._epoch, "steps_of_epoch": self.steps_of_epoch}
        stored = sorted(path.name for path in self._work.output.glob("step-*.safetensors"))
        return tensors, {**position, "loss_weight": self._loss_weight, "stored": stored}

    def _load_training_state(self) -> bool:
        """Return to the last save; False: there is none, or a file is missing or damaged."""
        saved = self._work.load()
        if saved is None or not self._work.output.is_dir():
            return False
        tensors, metadata = saved
        try:
            for name in metadata["stored"]:
                read_tensors(self._work.output / name)
        except DamagedFile:
            return False
        for name, tensor in self._tensors.items():
            tensor.copy_(tensors[name])
        self._history.append(pd.read_parquet(BytesIO(tensors["history"].numpy().tobytes())))
        self.step, self._epoch = metadata["step"], metadata["epoch"]
        self.steps_of_epoch, self._loss_weight = metadata["steps_of_epoch"], metadata["loss_weight"]
        return True


def _mean_of_finite(values: np.ndarray) -> float:
    """The mean of the finite values; nan if there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan
