"""Train classifiers, all networks of a part of a cohort at once: each has its own weights and order of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional

from cca_dynamics.config.cohorts import ClassifierRecipe
from cca_dynamics.data import datasets
from cca_dynamics.networks.architectures import Architecture
from cca_dynamics.networks.convolutional import Networks, build, channels_last
from cca_dynamics.runtime.threads import has_bfloat16
from cca_dynamics.training.augmentation import AUGMENTATIONS, draw_changes
from cca_dynamics.training.cuda_graphs import recorded_on
from cca_dynamics.training.optimizers import OPTIMIZERS, SCHEDULES
from cca_dynamics.training.parameters import StackedParameters
from cca_dynamics.training.randomness import AUGMENTATION, ORDER, WEIGHTS, generator
from cca_dynamics.training.resume import MINUTES
from cca_dynamics.training.run import training_run

OUTPUTS_OF_A_PASS = 2**22
"""About how many numbers the layers of networks that share a pass on a CPU give: few passes, but what they compute
should still be in the cache when it is read again."""


def train(
    recipe: ClassifierRecipe,
    data: Path,
    out: Path,
    *,
    device: str = "cpu",
    report: Callable[[str], None] = print,
    save_minutes: float = MINUTES,
    save_steps: int | None = None,
) -> None:
    """Train the classifiers of one recipe and write them to a folder.

    An epoch visits the training data once in a new random order and drops the last incomplete batch. A network that
    has reached `stop_at_loss` stays as it is, and later checkpoints hold it unchanged. A run that was killed resumes
    from its last save and gives the same networks, bit for bit.

    Args:
        recipe: how they are trained; with labels "permuted" on the dataset's permuted labels.
        data: a dataset, as `datasets.materialise` writes it.
        out: folder to write, whole or not at all: step-NNNNNN.safetensors (stacked parameters, see `checkpoints`),
            history.parquet (step, epoch, network, loss in nats, train_accuracy against the labels trained on,
            test_accuracy against the true ones, and, if networks stop at a loss, stopped_after, the epochs after which
            each has stopped, nan until then; all nan once a network has diverged), recipe.json.
        device: "cpu" or "cuda".
        report: called with one line per epoch.
        save_minutes, save_steps: the most between two saves, see `resume.Unfinished`.

    Raises:
        DamagedFile: the dataset cannot be read.
        Interrupted: the process was interrupted; the state is saved beside `out`.
    """
    options, networks = recipe.training, recipe.networks
    dataset = datasets.load(data).subset(recipe.examples, recipe.seed)
    labels = dataset.train_y if recipe.labels == "true" else dataset.train_y_permuted
    x, y = dataset.train_x.to(device), labels.to(device)
    test_x, test_y, inputs = dataset.test_x.to(device), dataset.test_y.to(device), channels_last(x)
    normalise = dataset.normalisation and dataset.normalisation.to(device)

    mixed = options.precision == "mixed" and has_bfloat16(device)
    network = build(recipe.network, x.shape[1], x.shape[2:], dataset.classes, device, mixed, normalise)
    initial = network.initialise(generator(recipe.seed, recipe.cohort, i, WEIGHTS) for i in networks)
    initial = {name: tensor.to(device) for name, tensor in initial.items()}
    parameters = stack_parameters(network, initial, options.batch_size)
    optimizer = OPTIMIZERS[options.optimizer](parameters.values, options)
    schedule, augment = SCHEDULES[options.schedule], AUGMENTATIONS[options.augmentation]
    rates = torch.tensor(options.learning_rate, dtype=torch.float32, device=device).expand(len(networks))[:, None]

    steps_per_epoch = len(x) // options.batch_size
    last_step = options.epochs * steps_per_epoch
    steps_to_store = {round(epoch * steps_per_epoch) for epoch in recipe.checkpoints} | {last_step}

    def evaluate() -> dict[str, Tensor]:
        loss, train_accuracy = network.evaluate(parameters.tensors, x, y)
        _, test_accuracy = network.evaluate(parameters.tensors, test_x, test_y)
        columns = {"loss": loss, "train_accuracy": train_accuracy, "test_accuracy": test_accuracy}
        if options.stop_at_loss is not None:
            columns["stopped_after"] = run.stopped_after
        run.record(run.step / steps_per_epoch, **columns)
        return {"train": train_accuracy, "test": test_accuracy}

    tensors = {
        "parameters": {"values": parameters.values},
        "statistics": parameters.statistics,
        "optimizer": optimizer.tensors,
    }
    inputs_of_run = {"convolutions_in": "bfloat16" if mixed else "float32", "data_checksum": dataset.checksum}
    how = {"device": device, "report": report, "save_minutes": save_minutes, "save_steps": save_steps}
    with (
        training_run(recipe, out, tensors, inputs_of_run, entry="training.classifiers:train", **how) as run,
        mapping_of_passes(network, device) as map_passes,
    ):
        if run.step == 0:
            if 0 in steps_to_store:
                run.store(parameters.tensors, epoch=0.0)
            evaluate()
        for epoch in run.epochs():
            changes = None if augment is None else _draw_changes(recipe, epoch, len(x)).to(device)
            only = (~run.stopped).nonzero()[:, 0].cpu() if run.stopped.any() else None
            for batch in run.batches(_draw_batches(recipe, epoch, len(x), device)):
                losses, gradients = batch_gradients(
                    network, parameters, inputs, y, batch, augment, changes, only=only, map_passes=map_passes
                )
                run.freeze_diverged(losses, gradients)
                optimizer(parameters.values, gradients, rates * run.training * schedule(run.step / last_step))
                run.end_step(losses)
                if run.step in steps_to_store:
                    run.store(parameters.tensors, epoch=run.step / steps_per_epoch)
                    if run.step % steps_per_epoch:  # the end of an epoch is evaluated below
                        evaluate()
            if options.stop_at_loss is not None:
                run.stop_at_loss(options.stop_at_loss)
            evaluated = (epoch + 1) % options.evaluate_every == 0 or run.step in steps_to_store
            run.end_epoch(**evaluate() if evaluated else {})


def _draw_batches(recipe: ClassifierRecipe, epoch: int, examples: int, device: str) -> tuple[Tensor, ...]:
    """The batches of an epoch: (N, batch) indices of training examples, each network's in its own random order."""
    generators = (generator(recipe.seed, recipe.cohort, i, ORDER, epoch) for i in recipe.networks)
    order = torch.from_numpy(np.stack([rng.permutation(examples) for rng in generators])).to(device)
    batch = recipe.training.batch_size
    return order[:, : examples // batch * batch].split(batch, dim=1)


def _draw_changes(recipe: ClassifierRecipe, epoch: int, examples: int) -> Tensor:
    """How each network's augmentation changes each training example in an epoch: (N, examples, 3)."""
    generators = (generator(recipe.seed, recipe.cohort, i, AUGMENTATION, epoch) for i in recipe.networks)
    return torch.from_numpy(np.stack([draw_changes(rng, examples) for rng in generators]))


def stack_parameters(network: Networks, state: dict[str, Tensor], batch_size: int) -> StackedParameters:
    """What `batch_gradients` takes, of the parameters that `Networks.initialise` returns."""
    tensor = next(iter(state.values()))
    together = networks_per_pass(
        len(tensor), tensor.device.type, network.architecture, batch_size, lockstep=network.lockstep
    )
    return StackedParameters(state, network.shapes(), together, outputs_last=network.lockstep)


def networks_per_pass(
    networks: int, device: str, architecture: Architecture, batch_size: int, *, lockstep: bool
) -> int:
    """How many of a job's networks share a forward and backward pass.

    Args:
        networks: of the job.
        device: "cpu" or "cuda".
        architecture: of each.
        batch_size: examples of each in a pass.
        lockstep: whether they are computed in lockstep.
    """
    if not lockstep:
        return 1
    if device == "cuda":
        return networks
    most = max(OUTPUTS_OF_A_PASS // (batch_size * architecture.activations), 1)
    passes = math.ceil(networks / most)
    return math.ceil(networks / passes)


def batch_gradients(
    network: Networks,
    parameters: StackedParameters,
    x: Tensor,
    y: Tensor,
    batch: Tensor,
    augment: Callable[[Tensor, Tensor], Tensor] | None = None,
    changes: Tensor | None = None,
    *,
    only: Tensor | None = None,
    map_passes: Callable = map,
) -> tuple[Tensor, Tensor]:
    """Each network's mean loss on its batch (N,), and the gradients of all parameters (N, parameters).

    Args:
        network: the architecture.
        parameters: of N networks; running statistics are updated.
        x, y: the training data, channels last, and its labels; `network.normalise` is applied to each batch.
        batch: (N, batch) indices of the examples of each network's batch.
        augment: one of `AUGMENTATIONS`.
        changes: (N, n, 3), how it changes each example for each network.
        only: indices of the networks to compute, in the CPU's memory; the losses and gradients of the others are 0, and
            their statistics stay as they are. None: all.
        map_passes: how the passes are computed, see `mapping_of_passes`.
    """

    def one_pass(tensors: dict[str, Tensor], batch: Tensor, changes: Tensor | None) -> tuple[Tensor, Tensor]:
        labels = y[batch]
        inputs = network.normalise(_rows(x, batch))
        if augment is not None:
            inputs = augment(inputs, changes.gather(1, batch[..., None].expand(-1, -1, 3)))
        logits = network.logits(tensors, inputs)
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses = losses.view(labels.shape).mean(dim=1)
        return losses.detach(), parameters.gradients(losses.sum(), tensors)

    if only is None:
        passes, together = parameters.passes, parameters.networks_per_pass
        changes_of_passes = [None] * len(passes) if changes is None else changes.split(together)
        losses, gradients = zip(*map_passes(one_pass, passes, batch.split(together), changes_of_passes), strict=True)
        return torch.cat(losses), torch.cat(gradients)

    all_gradients = torch.zeros_like(parameters.values)
    all_losses = all_gradients.new_zeros(len(batch))
    indices, passes = zip(*parameters.passes_of(only), strict=True) if len(only) else ((), ())
    batches = [batch[of_pass] for of_pass in indices]
    changes_of_passes = [None if changes is None else changes[of_pass] for of_pass in indices]
    computed = map_passes(one_pass, passes, batches, changes_of_passes)
    for of_pass, tensors, (losses, gradients) in zip(indices, passes, computed, strict=True):
        all_losses[of_pass], all_gradients[of_pass] = losses, gradients
        parameters.take_statistics(of_pass, tensors)
    return all_losses, all_gradients


def _rows(x: Tensor, batch: Tensor) -> Tensor:
    """x[batch], example by example instead of number by number, which takes a fraction of the time.

    Args:
        x: (n, ...), each example without gaps in memory.
        batch: (N, batch) indices.

    Returns:
        (N, batch, ...), each example laid out in memory as in x: with a single channel, convolutions go by that.
    """
    examples, size = x.flatten(1).index_select(0, batch.flatten()), x[0].numel()
    return examples.as_strided((*batch.shape, *x.shape[1:]), (batch.shape[1] * size, size, *x.stride()[1:]))


@contextmanager
def mapping_of_passes(network: Networks, device: str) -> Iterator[Callable]:
    """A `map` that computes passes side by side: one on each core of a CPU, or as CUDA graphs.

    A small product gains nothing from a second thread; two of them side by side do.
    """
    threads = torch.get_num_threads()
    with threadpool_limits(1, user_api="blas"):  # of NumPy
        if device == "cuda" or threads == 1:
            yield recorded_on(device, network)
            return
        # PyTorch keeps the number of threads for each thread.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                yield pool.map
            finally:
                torch.set_num_threads(threads)  # threads that are created later take the number that was set last
