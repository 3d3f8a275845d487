"""Train language models, and collect their hidden states.

Text is cut into as many columns as a batch has rows; windows of them are read one after the other and the hidden state
is carried from window to window (truncated backpropagation through time). All networks of a cohort read the same
windows; they differ in initial weights and dropout.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cca_dynamics import checkpoints
from cca_dynamics.architectures import describe_language_model
from cca_dynamics.corpora import STREAMS, Corpus
from cca_dynamics.files import read_tensors, replacing, seal, write_tensors
from cca_dynamics.recurrent import Dropout, LanguageModels, State
from cca_dynamics.resume import MINUTES, key_of, resuming
from cca_dynamics.training import (
    OPTIMIZERS,
    SCHEDULES,
    WEIGHTS,
    History,
    generator,
    hold_diverged,
    kept,
    mean_of_finite,
    restored,
)

MASKS, WINDOWS = 4, 5  # streams of random numbers, beside those of `training`


def train(
    recipe: dict,
    corpus: Corpus,
    out: Path,
    *,
    device: str = "cpu",
    report: Callable[[str], None] = print,
    save_minutes: float = MINUTES,
    save_steps: int | None = None,
) -> None:
    """Train the language models of one recipe and write them to a folder.

    A run that was killed goes on from its last save and gives the same networks, bit for bit.

    Args:
        recipe: as made by `study.Cohort.recipe`.
        corpus: the text.
        out: folder to write, whole or not at all: step-NNNNNN.safetensors (stacked parameters), history.parquet (step,
            epoch, network, loss and valid_loss in nats a token; nan once a network has diverged), recipe.json.
        device: "cpu" or "cuda".
        report: called with one line an epoch.
        save_minutes, save_steps: how often to save, see `resume.Unfinished`.

    Raises:
        ValueError: the text is shorter than a window.
        Interrupted: the process was told to stop; what is done is kept beside `out`.
    """
    options, members = recipe["training"], recipe["networks"]
    networks = LanguageModels(describe_language_model(recipe["network"], corpus.vocabulary))
    batch, window = options["batch_size"], options["window"]
    text, valid = columns(corpus.train, batch, "train").to(device), columns(corpus.valid, STREAMS, "valid").to(device)
    if len(text) <= window:
        raise ValueError(
            f"language_training.window: the training text has {len(corpus.train)} tokens, {len(text)} in each of "
            f"{batch} columns, which is no longer than a window of {window}; lower batch_size or window"
        )
    drawn = (generator(recipe["seed"], recipe["cohort"], i, WEIGHTS) for i in members)
    stacked = networks.initialise(drawn, options.get("initial", "glorot"))
    state = _Parameters({name: tensor.to(device) for name, tensor in stacked.items()})
    update = (OPTIMIZERS | AVERAGING)[options["optimizer"]](state.values, options)
    schedule, dropout = SCHEDULES[options.get("schedule", "constant")], Dropout(**options.get("dropout", {}))
    epochs, stored_after = options["epochs"], {*recipe["checkpoints"], options["epochs"]}
    history, total = History(), torch.zeros(len(members), device=device)
    alive = torch.ones(len(members), 1, dtype=torch.bool, device=device)
    carried = networks.zero_state(len(members), batch, device)
    masks = torch.zeros(len(members), len(torch.Generator().get_state()), dtype=torch.uint8)  # states of generators
    position = torch.zeros(2, dtype=torch.int64)  # epoch, windows of it that are done
    live = {
        "values": state.values,
        "total": total,
        "alive": alive,
        "masks": masks,
        "position": position,
        **update.tensors,
    }
    live |= {f"carried.{layer}.{part}": t for layer, both in enumerate(carried) for part, t in enumerate(both)}

    key = key_of(recipe, device, "language:train", data=corpus.checksum)
    with resuming(out, key, minutes=save_minutes, steps=save_steps, report=report) as work:

        def finish(epoch: int, losses: Tensor) -> Tensor:
            """Evaluate after an epoch, and store what is to be kept."""
            with state.averaged(update):
                held_out = evaluate_loss(networks, state.tensors, valid, window)
                if epoch in stored_after:
                    checkpoints.save(state.tensors, work.output, step=step, epoch=epoch, recipe=recipe)
            columns = {"loss": losses, "valid_loss": held_out}
            columns = {name: own.double().where(alive[:, 0], math.nan).cpu().numpy() for name, own in columns.items()}
            history.add(step=step, epoch=epoch, network=members, **columns)
            return held_out

        def now() -> tuple[dict[str, Tensor], dict]:
            masks.copy_(torch.stack([generator.get_state() for generator in generators]))
            return kept(work, live, history, step)

        step = restored(work, live, history)
        if step is None:
            work.restart()
            work.output.mkdir()
            step = 0
            finish(0, torch.full((len(members),), math.nan))
        else:
            report(f"going on from epoch {position[0]}, step {step}")
        checkpoints.save_recipe({**recipe, "data_checksum": corpus.checksum}, work.output)
        start, begun = time.monotonic(), position.clone()
        for epoch in range(int(position[0]), epochs):
            rng = generator(recipe["seed"], recipe["cohort"], 0, WINDOWS, epoch)
            seeds = [generator(recipe["seed"], recipe["cohort"], i, MASKS, epoch).integers(2**62) for i in members]
            generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
            if position[1]:
                for own, saved in zip(generators, masks, strict=True):
                    own.set_state(saved.clone())
            found = list(windows(len(text), window, rng if options.get("vary_windows") else None))
            for first, last in found[int(position[1]) :]:
                inputs, targets = text[first:last], text[first + 1 : last + 1]
                losses, gradients, after = state.gradients(
                    networks, inputs, targets, carried, options, dropout, generators
                )
                for place in hold_diverged(alive, losses, gradients):
                    report(f"network {members[place]} diverged in step {step} and goes no further")
                for both, own in zip(carried, after, strict=True):
                    for tensor, new in zip(both, own, strict=True):
                        tensor.copy_(new)
                if options.get("clip"):
                    norm = gradients.norm(dim=1, keepdim=True)
                    gradients.mul_((options["clip"] / (norm + 1e-6)).clamp(max=1))
                rate = options["learning_rate"] * schedule((epoch + first / (len(text) - 1)) / epochs)
                longer = (last - first) / window if options.get("vary_windows") else 1.0
                update(state.values, gradients, rate * longer * alive)
                total += losses * (last - first)
                step, position[1] = step + 1, position[1] + 1
                if position[1] < len(found):
                    work.step(now)
            total /= len(text) - 1
            held_out = finish(epoch + 1, total)
            if isinstance(update, NonMonotonicAveraging):
                update.validated(held_out, state.values)
            done = epoch + 1 - float(begun[0]) - float(begun[1]) / len(found)
            left = (time.monotonic() - start) / done * (epochs - epoch - 1)
            report(
                f"epoch {epoch + 1}/{epochs} · loss {mean_of_finite(total.cpu().numpy()):.3f} · "
                f"valid {mean_of_finite(held_out.cpu().numpy()):.3f} · {math.ceil(left)} s left"
            )
            for tensor in (total, *(part for both in carried for part in both)):
                tensor.zero_()
            position.copy_(torch.tensor([epoch + 1, 0]))
            work.step(now)
        history.write(work.output)
        seal(work.output)


def columns(tokens: Tensor, count: int, split: str) -> Tensor:
    """(positions, count): the text in so many columns, each going on where it goes on in the text; the rest is dropped.

    Raises:
        ValueError: there are fewer than two tokens a column.
    """
    positions = len(tokens) // count
    if positions < 2:
        raise ValueError(
            f"corpus.{split}: {len(tokens)} tokens are too few for {count} columns of text; give at least {2 * count}"
        )
    return tokens[: positions * count].view(count, positions).T.contiguous()


def windows(length: int, window: int, rng: np.random.Generator | None) -> Iterator[tuple[int, int]]:
    """(first, last) of the windows of a text of so many positions; targets lie one further on.

    With `rng` their lengths vary: normal around the window (half of it, one time in 20) with standard deviation 5.

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


@torch.no_grad()
def evaluate_loss(networks: LanguageModels, state: dict[str, Tensor], text: Tensor, window: int) -> Tensor:
    """Mean cross-entropy of each network on held-out text, nats a token.

    Args:
        networks, state: the models, N of them.
        text: (positions, columns).
        window: positions at a time; the result does not depend on it.

    Returns:
        (N,)
    """
    count = len(state["embedding.weight"])
    carried = networks.zero_state(count, text.shape[1], text.device)
    total = torch.zeros(count, device=text.device)
    for first, last in windows(len(text), window, None):
        _, seen, carried = networks.outputs(state, text[first:last], carried)
        total += _losses(networks.logits(state, seen), text[first + 1 : last + 1]).sum(dim=1)
    return total / ((len(text) - 1) * text.shape[1])


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(N, tokens) cross-entropy."""
    flat = targets.flatten().expand(len(logits), -1)
    losses = functional.cross_entropy(logits.flatten(0, 2), flat.flatten(), reduction="none")
    return losses.view(len(logits), -1)


class _Parameters:
    """Stacked parameters that are views of one (N, parameters) matrix, so that the optimiser needs few operations."""

    def __init__(self, state: dict[str, Tensor]):
        self.values = torch.cat([tensor.flatten(1) for tensor in state.values()], dim=1)
        sizes = [tensor[0].numel() for tensor in state.values()]
        views = zip(state.items(), self.values.split(sizes, dim=1), strict=True)
        self.tensors = {name: view.unflatten(1, tensor.shape[1:]) for (name, tensor), view in views}
        # One network after the other: what a pass leaves for the next should still be in the cache.
        self.each = [{name: t[i : i + 1] for name, t in self.tensors.items()} for i in range(len(self.values))]
        for one in self.each:
            for tensor in one.values():
                tensor.requires_grad_()

    def gradients(
        self,
        networks: LanguageModels,
        inputs: Tensor,
        targets: Tensor,
        carried: State,
        options: dict,
        dropout: Dropout,
        generators: Sequence[torch.Generator] | None,
    ) -> tuple[Tensor, Tensor, State]:
        """Each network's mean loss on a window (N,), the gradients of all parameters (N, parameters), state after.

        Args:
            networks: the architecture.
            inputs, targets: (positions, batch).
            carried: the state before the window.
            options: activation_penalty and change_penalty, if any.
            dropout, generators: see `LanguageModels.outputs`.
        """
        losses, gradients, states = [], torch.empty_like(self.values), []
        for i, state in enumerate(self.each):
            before = [(h[i : i + 1], c[i : i + 1]) for h, c in carried]
            own = generators[i : i + 1] if generators else None
            hidden, seen, after = networks.outputs(state, inputs, before, dropout, own)
            loss = _losses(networks.logits(state, seen), targets).mean()
            objective = loss
            if options.get("activation_penalty"):
                objective = objective + options["activation_penalty"] * seen.square().mean()
            if options.get("change_penalty") and len(inputs) > 1:
                objective = objective + options["change_penalty"] * hidden[-1].diff(dim=1).square().mean()
            found = torch.autograd.grad(objective, list(state.values()))
            torch.cat([gradient.flatten() for gradient in found], out=gradients[i])
            losses.append(loss.detach())
            states.append(after)
        layers = zip(*states, strict=True)
        carried = [tuple(map(torch.cat, zip(*layer, strict=True))) for layer in layers]
        return torch.stack(losses), gradients, carried

    def averaged(self, update: Callable) -> _Swapped:
        """While it lasts, the parameters are what the optimiser averaged, if it does."""
        return _Swapped(self.values, getattr(update, "averages", None))


class _Swapped:
    def __init__(self, values: Tensor, others: Tensor | None):
        self.values, self.others = values, others

    def __enter__(self) -> None:
        if self.others is not None:
            self.kept = self.values.clone()
            self.values.data.copy_(self.others)

    def __exit__(self, *problem: object) -> None:
        if self.others is not None:
            self.values.data.copy_(self.kept)


class NonMonotonicAveraging:
    """Stochastic gradient descent that averages a network's weights from when its validation loss no longer falls.

    Source: NT-ASGD, Merity, Keskar & Socher 2017, algorithm 1, checked once an epoch.
    """

    def __init__(self, values: Tensor, options: dict):
        self.decay, patience = options.get("weight_decay", 0.0), options.get("patience", 5)
        self.averages = values.detach().clone()
        self.count = torch.zeros(len(values), 1, device=values.device)  # of averaged updates; 0: not triggered
        self.losses = torch.full((patience + 1, len(values)), math.inf, device=values.device)
        self.tensors = {"averages": self.averages, "averaged": self.count, "losses": self.losses}

    def __call__(self, values: Tensor, gradients: Tensor, rates: Tensor) -> None:
        """One update."""
        if self.decay:
            gradients.add_(values, alpha=self.decay)
        values.data.add_(-rates * gradients)
        self.count += self.count > 0
        step = torch.where(self.count > 0, 1 / self.count.clamp(min=1), 1.0)
        self.averages.lerp_(values.detach(), step.expand_as(values))

    def validated(self, losses: Tensor, values: Tensor) -> None:
        """After an epoch: networks begin to average whose loss exceeds the best of all but the last epochs."""
        best, *recent = self.losses  # of all earlier epochs but the last ones, then those
        self.count[(losses > best) & (self.count[:, 0] == 0)] = 1
        self.losses.copy_(torch.stack([torch.minimum(best, recent[0]), *recent[1:], losses]))


AVERAGING = {"nt_asgd": NonMonotonicAveraging}
"""Optimisers that evaluate and store averages of the weights."""


def extract(
    networks: Path,
    corpus: Corpus,
    out: Path,
    *,
    requests: Sequence[dict],
    device: str = "cpu",
    report: Callable[[str], None] = print,
) -> None:
    """Run held-out text through stored language models and keep their hidden states.

    Args:
        networks: a folder written by `train`.
        corpus: the text.
        out: folder to write, whole or not at all: one file a checkpoint and request, laid out as by
            `activations.extract`: valid/step-NNNNNN.safetensors holds (networks, points, units) for each layer;
            repeats/step-NNNNNN.safetensors holds (networks, sequences·repeats, units) for each "lstmL@START", sequence
            by sequence.
        requests: dicts of splits (["valid"], ["sequence"] or ["repeats"]), epochs ("all" or "final"), layers ("all"
            or a list); points and positions: see `valid_states`; for repeats: see `repeated_states`.
        device: "cpu" or "cuda".
        report: called with one line a checkpoint.

    Raises:
        DamagedFile: a checkpoint cannot be read.
        ValueError: the valid text is too short.
    """
    recipe = checkpoints.load_recipe(networks, corpus.checksum)
    models = LanguageModels(describe_language_model(recipe["network"], corpus.vocabulary))
    files = [file for _, file in checkpoints.stored(networks)]
    with replacing(out) as folder:
        for request in requests:
            (split,) = request["splits"]
            layers = models.architecture.layers if request["layers"] == "all" else request["layers"]
            for count, file in enumerate(chosen := files if request["epochs"] == "all" else files[-1:], start=1):
                state, facts = read_tensors(file, device=device)
                if split == "repeats":
                    found = repeated_states(models, state, corpus.valid.to(device), layers, request)
                else:
                    block = request.get("positions", 1)
                    found = valid_states(models, state, corpus.valid.to(device), layers, request["points"], block)
                path = folder / split / file.name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_tensors(path, found, **{**facts, "split": split, "checkpoint": facts["sha256"]})
                report(f"checkpoint {count}/{len(chosen)} · step {facts['step']} · {split}")
        seal(folder)


@torch.no_grad()
def valid_states(
    networks: LanguageModels,
    state: dict[str, Tensor],
    tokens: Tensor,
    layers: Sequence[str],
    points: int,
    block: int = 1,
) -> dict[str, Tensor]:
    """Hidden states on held-out text.

    Args:
        networks, state: the models, N of them.
        tokens: (tokens,) the text.
        layers: whose.
        points: how many positions; rounded up to a multiple of `STREAMS` and of `block`.
        block: positions that belong together; a column has a whole number of them.

    Returns:
        layer → (N, points, units); the positions of a column follow each other.

    Raises:
        ValueError: the text is too short.
    """
    length = math.ceil(points / (STREAMS * block)) * block
    if len(tokens) < length * STREAMS:
        raise ValueError(
            f"corpus.valid: {len(tokens)} tokens, but {points} data points need {length * STREAMS}; give more text or "
            "compare fewer data points"
        )
    # Each column begins at its own place in the text, so that all of it is seen.
    starts = torch.linspace(0, len(tokens) - length, STREAMS).long()
    text = torch.stack([tokens[start : start + length] for start in starts], dim=1)
    count = len(state["embedding.weight"])
    hidden, _, _ = networks.outputs(state, text, networks.zero_state(count, STREAMS, tokens.device))
    found = dict(zip(networks.architecture.layers, hidden, strict=True))
    return {layer: found[layer].transpose(1, 2).flatten(1, 2) for layer in layers}


@torch.no_grad()
def repeated_states(
    networks: LanguageModels, state: dict[str, Tensor], tokens: Tensor, layers: Sequence[str], request: dict
) -> dict[str, Tensor]:
    """Hidden states while one token is repeated, after so much of a sequence of other tokens.

    Args:
        networks, state: the models, N of them.
        tokens: (tokens,) held-out text.
        layers: whose.
        request: sequences (how many, each from its own place in the text), length (tokens of each), starts (shares of
            the length after which the repetition starts), repeats (how often the token there is read).

    Returns:
        "layer@start" → (N, sequences·repeats, units), the repeats of a sequence following each other; "layer@none" are
        as many positions at the end of the sequences, without repetition.

    Raises:
        ValueError: the text is too short.
    """
    sequences, length, repeats = request["sequences"], request["length"], request["repeats"]
    if len(tokens) < length + sequences:
        raise ValueError(
            f"corpus.valid: {len(tokens)} tokens are too few for {sequences} sequences of {length}; give more text or "
            "lower results.recurrent_sequence.sequences"
        )
    starts = torch.linspace(0, len(tokens) - length, sequences).long()
    text = torch.stack([tokens[start : start + length] for start in starts], dim=1)  # (length, sequences)
    count, found = len(state["embedding.weight"]), {}
    for share in [*request["starts"], None]:
        before = length - repeats if share is None else min(max(round(share * length), 1), length - 1)
        carried = networks.zero_state(count, sequences, tokens.device)
        _, _, carried = networks.outputs(state, text[:before], carried)
        after = text[before:] if share is None else text[before : before + 1].expand(repeats, -1)
        hidden, _, _ = networks.outputs(state, after[:repeats], carried)
        name = "none" if share is None else f"{share:g}"
        for layer, states in zip(networks.architecture.layers, hidden, strict=True):
            if layer in layers:
                found[f"{layer}@{name}"] = states.transpose(1, 2).flatten(1, 2)
    return found
