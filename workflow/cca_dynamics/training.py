"""Train a cohort in lockstep: every network its own weights, its own data order, one loop.

Everything random is drawn anew from (seed, cohort, network, epoch), never from a running stream, so that a network is
the same whichever part of its cohort a job trains.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from cca_dynamics import checkpoints
from cca_dynamics.datasets import Dataset
from cca_dynamics.files import DamagedFile, read_tensors, seal
from cca_dynamics.networks import Networks, build, channels_last
from cca_dynamics.resume import MINUTES, Unfinished, key_of, resuming
from cca_dynamics.workers import Workers, has_bfloat16

TOGETHER_ON_CPU = 16
"""Networks in one pass on a CPU: few passes, but what they compute should still be near when it is read again."""

WEIGHTS, ORDER, ABLATION, AUGMENTATION = 0, 1, 2, 3  # streams of random numbers of one network


def generator(seed: int, cohort: str, network: int, *stream: int) -> np.random.Generator:
    """The random numbers of one network for one purpose, whatever else is drawn."""
    return np.random.default_rng([seed, zlib.crc32(cohort.encode()), network, *stream])


def train(
    recipe: dict,
    dataset: Dataset,
    out: Path,
    *,
    device: str = "cpu",
    report: Callable[[str], None] = print,
    save_minutes: float = MINUTES,
    save_steps: int | None = None,
) -> None:
    """Train the networks of one recipe and write them to a folder.

    An epoch visits the training data once in a new random order and drops the last incomplete batch. A run that was
    killed goes on from its last save and gives the same networks, bit for bit.

    Args:
        recipe: as made by `study.Cohort.recipe`.
        dataset: the data; labels "permuted" trains on train_y_permuted.
        out: folder to write, whole or not at all: step-NNNNNN.safetensors (stacked parameters, see `checkpoints`),
            history.parquet (step, epoch, network, loss in nats, train_accuracy against the labels trained on,
            test_accuracy against the true ones; nan once a network has diverged), recipe.json.
        device: "cpu" or "cuda".
        report: called with one line an epoch.
        save_minutes, save_steps: how often to save, see `resume.Unfinished`.

    Raises:
        Interrupted: the process was told to stop; what is done is kept beside `out`.
    """
    options, members = recipe["training"], recipe["networks"]
    x, y = dataset.train_x.to(device), dataset.train_y if recipe["labels"] == "true" else dataset.train_y_permuted
    y, test_x, test_y = y.to(device), dataset.test_x.to(device), dataset.test_y.to(device)
    mixed = options.get("precision") == "mixed" and has_bfloat16(device)
    network = build(recipe["network"], x.shape[1], x.shape[2:], dataset.classes, device, mixed)
    stacked = network.initialise(generator(recipe["seed"], recipe["cohort"], i, WEIGHTS) for i in members)
    state = _Parameters({name: tensor.to(device) for name, tensor in stacked.items()}, network)

    batch, epochs = options["batch_size"], options["epochs"]
    steps_per_epoch = len(x) // batch
    last = epochs * steps_per_epoch
    rates = torch.tensor(options["learning_rate"], dtype=torch.float32, device=device).expand(len(members))[:, None]
    update = OPTIMIZERS[options["optimizer"]](state.values, options)
    schedule = SCHEDULES[options.get("schedule", "constant")]
    augmentation = AUGMENTATIONS[options.get("augmentation", "none")]
    stored_at = {round(epoch * steps_per_epoch) for epoch in recipe["checkpoints"]} | {last}
    inputs, history, total = channels_last(x), History(), torch.zeros(len(members), device=device)
    alive = torch.ones(len(members), 1, dtype=torch.bool, device=device)
    live = {**state.live(), "total": total, "alive": alive, **update.tensors}

    def evaluate(step: int) -> str:
        loss, train_accuracy = network.evaluate(state.tensors, x, y)
        _, test_accuracy = network.evaluate(state.tensors, test_x, test_y)
        columns = {"loss": loss, "train_accuracy": train_accuracy, "test_accuracy": test_accuracy}
        rows = {name: values.double().where(alive[:, 0], torch.nan).cpu().numpy() for name, values in columns.items()}
        history.add(step=step, epoch=step / steps_per_epoch, network=members, **rows)
        train, test = (mean_of_finite(rows[name]) for name in ("train_accuracy", "test_accuracy"))
        return f" · train {train:.3f} · test {test:.3f}"

    key = key_of(recipe, device, "training:train", data=dataset.checksum, mixed=mixed)
    with resuming(out, key, minutes=save_minutes, steps=save_steps, report=report) as work:
        folder = work.output

        def store(step: int) -> None:
            checkpoints.save(state.tensors, folder, step=step, epoch=step / steps_per_epoch, recipe=recipe)

        def now() -> tuple[dict[str, Tensor], dict]:
            return kept(work, live, history, step)

        step = restored(work, live, history)
        if step is None:
            work.restart()
            work.output.mkdir()
            if 0 in stored_at:
                store(0)
            evaluate(0)
            step = 0
        else:
            report(f"going on from step {step} of {last}")
        facts = {"convolutions_in": "bfloat16" if mixed else "float32", "data_checksum": dataset.checksum}
        checkpoints.save_recipe({**recipe, **facts}, folder)
        start, begun = time.monotonic(), step
        for epoch in range(step // steps_per_epoch, epochs):
            orders = [generator(recipe["seed"], recipe["cohort"], i, ORDER, epoch).permutation(len(x)) for i in members]
            order = torch.from_numpy(np.stack(orders)).to(device)
            changes = None
            if augmentation is not None:
                drawn = [generator(recipe["seed"], recipe["cohort"], i, AUGMENTATION, epoch) for i in members]
                changes = torch.from_numpy(np.stack([_changes(rng, len(x)) for rng in drawn])).to(device)
            for chosen in order[:, step % steps_per_epoch * batch : steps_per_epoch * batch].split(batch, dim=1):
                losses, gradients = state.gradients(network, inputs, y, chosen, augmentation, changes)
                for place in hold_diverged(alive, losses, gradients):
                    report(f"network {members[place]} diverged in step {step} and goes no further")
                update(state.values, gradients, rates * alive * schedule(step / last))
                total += losses
                step += 1
                if step in stored_at:
                    store(step)
                if step % steps_per_epoch:
                    work.step(now)
            ended = (epoch + 1) % options["evaluate_every"] == 0 or epoch + 1 == epochs
            accuracies = evaluate(step) if ended else ""
            left = (time.monotonic() - start) / (step - begun) * (last - step)
            loss = mean_of_finite(total.cpu().numpy()) / steps_per_epoch
            report(f"epoch {epoch + 1}/{epochs} · loss {loss:.3f}{accuracies} · {math.ceil(left)} s left")
            total.zero_()
            work.step(now)
        history.write(folder)
        seal(folder)


def hold_diverged(alive: Tensor, losses: Tensor, gradients: Tensor) -> list[int]:
    """Stop the networks whose loss or gradient is not finite; nothing of it reaches the others.

    Args:
        alive: (N, 1), which networks still train; changed in place. An update whose rates are multiplied by it leaves
            the others where they are.
        losses: (N,).
        gradients: (N, parameters); zero afterwards where not alive.

    Returns:
        Places of the networks that stop now.
    """
    finite = (losses.isfinite() & gradients.sum(dim=1).isfinite())[:, None]
    stopped = alive & ~finite
    alive &= finite
    if not alive.all():
        gradients.masked_fill_(~alive, 0)
    return stopped[:, 0].nonzero()[:, 0].tolist() if stopped.any() else []


def mean_of_finite(values: np.ndarray) -> float:
    """Over the networks that have not diverged."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


class History:
    """The rows of a history table, as they come."""

    def __init__(self) -> None:
        self.tables: list[pd.DataFrame] = []

    def add(self, **columns: object) -> None:
        """One row a network."""
        self.tables.append(pd.DataFrame(columns))

    def write(self, file: Path | BinaryIO) -> None:
        """As parquet: history.parquet in a folder, or to an open file."""
        file = file / "history.parquet" if isinstance(file, Path) else file
        pd.concat(self.tables, ignore_index=True).to_parquet(file, index=False)


def kept(work: Unfinished, live: dict[str, Tensor], history: History, step: int) -> tuple[dict[str, Tensor], dict]:
    """What `resume.Unfinished.step` saves of a training run: its tensors, its history, and where it stands."""
    table = BytesIO()
    history.write(table)
    rows = torch.frombuffer(bytearray(table.getvalue()), dtype=torch.uint8)
    stored = sorted(path.name for path in work.output.glob("step-*.safetensors"))
    return {**live, "history": rows}, {"step": step, "stored": stored}


def restored(work: Unfinished, live: dict[str, Tensor], history: History) -> int | None:
    """Bring a training run to where it was saved: the step, or None if it has to begin anew.

    Args:
        work: what is kept.
        live: tensors to overwrite.
        history: to fill.
    """
    found = work.load()
    if found is None or not work.output.is_dir():
        return None
    tensors, facts = found
    try:
        for name in facts["stored"]:
            read_tensors(work.output / name)
    except DamagedFile:
        return None
    for name, tensor in live.items():
        tensor.data.copy_(tensors[name])
    history.tables.append(pd.read_parquet(BytesIO(tensors["history"].numpy().tobytes())))
    return facts["step"]


class _Parameters:
    """Stacked state whose trained parameters are views of one (N, parameters) matrix.

    The optimiser then updates all parameters of all networks in a few operations.
    """

    def __init__(self, state: dict[str, Tensor], network: Networks):
        trained = list(network.shapes())
        self.values = torch.cat([state[name].flatten(1) for name in trained], dim=1)
        self.trained = trained
        sizes = [state[name][0].numel() for name in trained]
        views = zip(trained, self.values.split(sizes, dim=1), strict=True)
        self.tensors = {**state, **{name: view.unflatten(1, state[name].shape[1:]) for name, view in views}}
        on_cpu = self.values.device.type == "cpu"
        together = (TOGETHER_ON_CPU if network.lockstep else 1) if on_cpu else len(self.values)
        self.groups = [
            {name: tensor[i : i + together] for name, tensor in self.tensors.items()}
            for i in range(0, len(self.values), together)
        ]
        for group in self.groups:
            for name in trained:
                group[name].requires_grad_()
        self.workers = Workers(self.values.device.type)

    def live(self) -> dict[str, Tensor]:
        """The tensors that training changes: all parameters together, and the running statistics."""
        statistics = {name: tensor for name, tensor in self.tensors.items() if name not in self.trained}
        return {"values": self.values, **statistics}

    def gradients(
        self,
        network: Networks,
        x: Tensor,
        y: Tensor,
        order: Tensor,
        augmentation: Callable[[Tensor, Tensor], Tensor] | None = None,
        changes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Each network's mean loss on its own batch (N,), and the gradients of all parameters (N, parameters).

        Args:
            network: the architecture.
            x, y: the training data, channels last.
            order: (N, batch) the data points of each network's batch.
            augmentation: one of `AUGMENTATIONS`.
            changes: (N, n, 3), how it changes each data point for each network.
        """

        def work(group: dict[str, Tensor], chosen: Tensor, changes: Tensor | None) -> tuple[Tensor, Tensor]:
            labels, inputs = y[chosen], x[chosen]
            if augmentation is not None:
                inputs = augmentation(inputs, changes.gather(1, chosen[..., None].expand(-1, -1, 3)))
            logits = network.logits(group, inputs)
            loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            loss = loss.view(labels.shape).mean(dim=1)
            found = torch.autograd.grad(loss.sum(), [group[name] for name in self.trained])
            return loss.detach(), torch.cat([gradient.flatten(1) for gradient in found], dim=1)

        together = len(self.groups[0][self.trained[0]])
        each = [None] * len(self.groups) if changes is None else changes.split(together)
        jobs = list(zip(self.groups, order.split(together), each, strict=True))
        losses, gradients = zip(*self.workers.run(work, jobs), strict=True)
        return torch.cat(losses), torch.cat(gradients)


class SGD:
    """Stochastic gradient descent with momentum, as torch.optim.SGD computes it.

    Args:
        values: (N, parameters).
        options: momentum, weight_decay.

    Attributes:
        tensors: what it remembers between steps, changed in place.
    """

    def __init__(self, values: Tensor, options: dict):
        self.momentum, self.decay = options.get("momentum", 0.0), options.get("weight_decay", 0.0)
        self.tensors = {"velocity": torch.zeros_like(values)}

    def __call__(self, values: Tensor, gradients: Tensor, rates: Tensor) -> None:
        """One step of every network; `rates` is a number or (N, 1), `gradients` may be changed."""
        velocity = self.tensors["velocity"]
        if self.decay:
            gradients.add_(values, alpha=self.decay)
        velocity.mul_(self.momentum).add_(gradients)
        values.addcmul_(velocity, rates, value=-1)


class Adam:
    """Adam with β = (0.9, 0.999) and ε = 1e-8, as torch.optim.Adam computes it; otherwise as `SGD`."""

    def __init__(self, values: Tensor, options: dict):
        self.decay = options.get("weight_decay", 0.0)
        moments = {name: torch.zeros_like(values) for name in ("first_moment", "second_moment")}
        self.tensors = {**moments, "updates": torch.zeros((), dtype=torch.int64)}

    def __call__(self, values: Tensor, gradients: Tensor, rates: Tensor) -> None:
        """One step of every network."""
        first, second, updates = self.tensors.values()
        updates += 1
        if self.decay:
            gradients.add_(values, alpha=self.decay)
        first.lerp_(gradients, 0.1)
        second.mul_(0.999).addcmul_(gradients, gradients, value=0.001)
        scale = (second / (1 - 0.999 ** updates.item())).sqrt_().add_(1e-8)
        values.addcdiv_(first * rates, scale, value=-1 / (1 - 0.9 ** updates.item()))


OPTIMIZERS = {"sgd": SGD, "adam": Adam}
"""(values, options) → an optimiser: called with (values, gradients, rates), it updates the values in place."""


def constant(done: float) -> float:
    """The learning rate stays."""
    return 1.0


def linear(done: float) -> float:
    """It falls to zero in a straight line."""
    return 1 - done


def cosine(done: float) -> float:
    """It falls to zero along half a cosine (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * done))


SCHEDULES = {"constant": constant, "linear": linear, "cosine": cosine}
"""Share of the learning rate when a share `done` of the steps is done."""


SHIFT = 4  # pixels


def _changes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3): whether an image is flipped, and by how many pixels it is shifted down and right."""
    shifts = rng.integers(-SHIFT, SHIFT, size=(count, 2), endpoint=True)
    return np.concatenate([rng.integers(0, 2, size=(count, 1)), shifts], axis=1)


def flip_and_shift(images: Tensor, changes: Tensor) -> Tensor:
    """Mirror half of the images left to right and shift each by up to 4 pixels, zeros coming in.

    Args:
        images: (N, batch, height, width, channels).
        changes: (N, batch, 3), see `_changes`.

    Source: He et al. 2016, section 4.2.
    """
    networks, batch, height, width, _ = images.shape
    flipped, down, right = (part[..., None] for part in changes.unbind(-1))
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    rows = rows - down + SHIFT  # (N, batch, height), into the padded image
    columns = torch.where(flipped.bool(), width - 1 - columns, columns) - right + SHIFT
    padded = functional.pad(images, (0, 0, SHIFT, SHIFT, SHIFT, SHIFT))
    first = torch.arange(networks, device=images.device).view(-1, 1, 1, 1)
    second = torch.arange(batch, device=images.device).view(-1, 1, 1)
    return padded[first, second, rows[..., None], columns[..., None, :]]


AUGMENTATIONS = {"none": None, "flip_and_shift": flip_and_shift}
"""(inputs, changes) → inputs, drawn anew in each epoch."""
