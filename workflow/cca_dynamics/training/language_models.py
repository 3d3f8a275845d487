"""Train language models.

Text is laid out in as many columns as a batch has rows. Windows of the columns are read one after the other, and the
hidden state is carried from window to window (truncated backpropagation through time). All networks of a cohort read
the same windows; they differ in initial weights and dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cca_dynamics.config.cohorts import LanguageRecipe
from cca_dynamics.config.models import LanguageTraining
from cca_dynamics.data import corpora
from cca_dynamics.data.corpora import EVALUATION_COLUMNS
from cca_dynamics.errors import UserError
from cca_dynamics.networks.architectures import describe_language_model
from cca_dynamics.networks.lstm import LanguageModels, State
from cca_dynamics.training.optimizers import AVERAGING, OPTIMIZERS, SCHEDULES
from cca_dynamics.training.parameters import StackedParameters
from cca_dynamics.training.randomness import MASKS, WEIGHTS, WINDOWS, generator
from cca_dynamics.training.resume import MINUTES
from cca_dynamics.training.run import training_run


def train(
    recipe: LanguageRecipe,
    data: Path,
    out: Path,
    *,
    device: str = "cpu",
    report: Callable[[str], None] = print,
    save_minutes: float = MINUTES,
    save_steps: int | None = None,
) -> None:
    """Train the language models of one recipe and write them to a folder.

    A run that was killed resumes from its last save and gives the same networks, bit for bit.

    Args:
        recipe: how they are trained.
        data: a corpus, as `corpora.materialise` writes it.
        out: folder to write, whole or not at all: step-NNNNNN.safetensors (stacked parameters, see `checkpoints`),
            history.parquet (step, epoch, network, loss and valid_loss in nats per token; nan once a network has
            diverged), recipe.json.
        device: "cpu" or "cuda".
        report: called with one line per epoch.
        save_minutes, save_steps: the most between two saves, see `resume.Unfinished`.

    Raises:
        UserError: the text is shorter than a window.
        DamagedFile: the corpus cannot be read.
        Interrupted: the process was interrupted; the state is saved beside `out`.
    """
    corpus, options, networks = corpora.load(data), recipe.training, recipe.networks
    text = batchify(corpus.train, options.batch_size, "train").to(device)
    valid = batchify(corpus.valid, EVALUATION_COLUMNS, "valid").to(device)
    if len(text) <= options.window:
        raise UserError(
            f"language_training.window: the training text has {len(corpus.train)} tokens, {len(text)} in each of "
            f"{options.batch_size} columns, which is no longer than a window of {options.window}; lower batch_size or "
            "window"
        )

    models = LanguageModels(describe_language_model(recipe.network, corpus.vocabulary))
    generators = (generator(recipe.seed, recipe.cohort, i, WEIGHTS) for i in networks)
    initial = models.initialise(generators, options.initial)
    parameters = StackedParameters({name: tensor.to(device) for name, tensor in initial.items()})
    optimizer = (OPTIMIZERS | AVERAGING)[options.optimizer](parameters.values, options)
    schedule, epochs_to_store = SCHEDULES[options.schedule], {*recipe.checkpoints, options.epochs}
    carried = models.zero_state(len(networks), options.batch_size, device)
    mask_generators = [torch.Generator() for _ in networks]
    mask_states = torch.stack([masks.get_state() for masks in mask_generators])

    def evaluate(epoch: int, losses: Tensor) -> Tensor:
        state = parameters.by_name(optimizer.values_to_evaluate(parameters.values))
        valid_losses = evaluate_loss(models, state, valid, options.window)
        if epoch in epochs_to_store:
            run.store(state, epoch=epoch)
        run.record(epoch, loss=losses, valid_loss=valid_losses)
        return valid_losses

    tensors = {
        "parameters": {"values": parameters.values},
        "optimizer": optimizer.tensors,
        "carried": {f"{i}": tensor for i, tensor in enumerate(chain(*carried))},
        "masks": {"states": mask_states},
    }
    how = {"device": device, "report": report, "save_minutes": save_minutes, "save_steps": save_steps}
    inputs_of_run = {"data_checksum": corpus.checksum}
    with training_run(recipe, out, tensors, inputs_of_run, entry="training.language_models:train", **how) as run:
        if run.step == 0:
            evaluate(0, torch.full((len(networks),), torch.nan, device=device))
        for epoch in run.epochs():
            if run.steps_of_epoch == 0:
                mask_states.copy_(_draw_mask_states(recipe, epoch))
                for tensor in chain(*carried):
                    tensor.zero_()
            for masks, state in zip(mask_generators, mask_states, strict=True):
                masks.set_state(state.clone())
            for first, last in run.batches(_draw_windows(recipe, epoch, len(text))):
                inputs, targets = text[first:last], text[first + 1 : last + 1]
                losses, gradients, state_after = window_gradients(
                    models, parameters, inputs, targets, carried, options, mask_generators
                )
                run.freeze_diverged(losses, gradients)
                if options.clip is not None:
                    norms = gradients.norm(dim=1, keepdim=True)
                    gradients.mul_((options.clip / (norms + 1e-6)).clamp(max=1))
                rate = options.learning_rate * schedule((epoch + first / (len(text) - 1)) / options.epochs)
                relative_length = (last - first) / options.window if options.vary_windows else 1.0
                optimizer(parameters.values, gradients, rate * relative_length * run.training)
                for before, after in zip(chain(*carried), chain(*state_after), strict=True):
                    before.copy_(after)
                mask_states.copy_(torch.stack([masks.get_state() for masks in mask_generators]))
                run.end_step(losses, weight=last - first)
            valid_losses = evaluate(epoch + 1, run.mean_losses())
            optimizer.after_validation(valid_losses)
            run.end_epoch(valid=valid_losses)


def batchify(tokens: Tensor, columns: int, split: str) -> Tensor:
    """Lay out a text in columns, each of which goes on where the one before it ends; the rest of the text is dropped.

    Args:
        tokens: (tokens,).
        columns: how many.
        split: "train" or "valid", for the message.

    Returns:
        (positions, columns)

    Raises:
        UserError: there are fewer than two tokens per column.
    """
    positions = len(tokens) // columns
    if positions < 2:
        raise UserError(
            f"corpus.{split}: {len(tokens)} tokens are too few for {columns} columns of text; give at least "
            f"{2 * columns}"
        )
    return tokens[: positions * columns].view(columns, positions).T.contiguous()


def split_into_windows(length: int, window: int, rng: np.random.Generator | None) -> Iterator[tuple[int, int]]:
    """(first, last) of the windows of a text with so many positions; targets lie one position later.

    Args:
        length: positions.
        window: positions of a window.
        rng: varies the lengths of windows: normal with standard deviation 5 around `window` (around half of it, one
            time in 20); None: all are `window` long.

    Source: Merity, Keskar & Socher 2017, section 5.
    """
    first = 0
    while first < length - 1:
        size = window
        if rng is not None:
            mean = window if rng.random() < 0.95 else window / 2
            size = max(5, int(rng.normal(mean, 5)))
        last = min(first + size, length - 1)
        yield first, last
        first = last


def _draw_windows(recipe: LanguageRecipe, epoch: int, length: int) -> list[tuple[int, int]]:
    """The windows of an epoch, which all networks of a cohort read."""
    rng = generator(recipe.seed, recipe.cohort, 0, WINDOWS, epoch) if recipe.training.vary_windows else None
    return list(split_into_windows(length, recipe.training.window, rng))


def _draw_mask_states(recipe: LanguageRecipe, epoch: int) -> Tensor:
    """The states in which the generators of the networks' dropout masks begin an epoch: (N, bytes)."""
    seeds = [generator(recipe.seed, recipe.cohort, i, MASKS, epoch).integers(2**62) for i in recipe.networks]
    return torch.stack([torch.Generator().manual_seed(int(seed)).get_state() for seed in seeds])


def window_gradients(
    models: LanguageModels,
    parameters: StackedParameters,
    inputs: Tensor,
    targets: Tensor,
    carried: State,
    options: LanguageTraining,
    mask_generators: Sequence[torch.Generator] | None = None,
) -> tuple[Tensor, Tensor, State]:
    """Each network's mean loss on a window (N,), the gradients of all parameters (N, parameters), the state after it.

    One network after the other: what a forward pass leaves for the backward pass should still be in the cache.

    Args:
        models: the architecture.
        parameters: of N networks, one per pass.
        inputs, targets: (positions, batch).
        carried: the state before the window.
        options: dropout and penalties.
        mask_generators: one per network, if there is dropout.
    """
    losses, gradients, states = [], torch.empty_like(parameters.values), []
    for i, tensors in enumerate(parameters.passes):
        before = [(h[i : i + 1], c[i : i + 1]) for h, c in carried]
        masks = mask_generators[i : i + 1] if mask_generators else None
        hidden, outputs, after = models.outputs(tensors, inputs, before, options.dropout, masks)
        loss = _token_losses(models.logits(tensors, outputs), targets).mean()
        objective = loss
        if options.activation_penalty:
            objective = objective + options.activation_penalty * outputs.square().mean()
        if options.change_penalty and len(inputs) > 1:
            objective = objective + options.change_penalty * hidden[-1].diff(dim=1).square().mean()
        gradients[i : i + 1] = parameters.gradients(objective, tensors)
        losses.append(loss.detach())
        states.append(after)
    layers = zip(*states, strict=True)
    return torch.stack(losses), gradients, [tuple(map(torch.cat, zip(*layer, strict=True))) for layer in layers]


@torch.no_grad()
def evaluate_loss(models: LanguageModels, state: dict[str, Tensor], text: Tensor, window: int) -> Tensor:
    """Mean cross-entropy of each network on held-out text, in nats per token.

    Args:
        models: the architecture.
        state: stacked parameters, N networks.
        text: (positions, columns).
        window: positions that are read at a time; the result does not depend on it.

    Returns:
        (N,)
    """
    networks = len(state["embedding.weight"])
    carried = models.zero_state(networks, text.shape[1], text.device)
    total = torch.zeros(networks, device=text.device)
    for first, last in split_into_windows(len(text), window, None):
        _, outputs, carried = models.outputs(state, text[first:last], carried)
        total += _token_losses(models.logits(state, outputs), text[first + 1 : last + 1]).sum(dim=1)
    return total / ((len(text) - 1) * text.shape[1])


def _token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each network on each token (N, tokens)."""
    expanded = targets.flatten().expand(len(logits), -1)
    losses = functional.cross_entropy(logits.flatten(0, 2), expanded.flatten(), reduction="none")
    return losses.view(len(logits), -1)
