"""Hidden states of language models on disk: one safetensors file per checkpoint and request, one tensor per layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cca_dynamics.config.cohorts import HeldOutRequest, RepeatsRequest, tokens_before
from cca_dynamics.data import corpora
from cca_dynamics.data.corpora import EVALUATION_COLUMNS
from cca_dynamics.errors import UserError
from cca_dynamics.networks.architectures import describe_language_model
from cca_dynamics.networks.lstm import LanguageModels, State
from cca_dynamics.runtime.storage import arrays_on_disk, read_tensors, replacing, write_contents
from cca_dynamics.training import checkpoints

POSITIONS_AT_A_TIME = 32
"""The most positions of all sequences that are read at a time where their states are not stored."""
MEMORY = 2**30
"""Bytes of states and gates that are in memory at a time; longer texts are read in several windows."""

Part = tuple[str, int, Tensor]
"""Name of a tensor of the file, first position, and states from there on (N, positions, columns, units)."""


def extract(
    networks: Path,
    data: Path,
    out: Path,
    *,
    requests: Sequence[HeldOutRequest | RepeatsRequest],
    device: str = "cpu",
    report: Callable[[str], None] = print,
) -> None:
    """Run held-out text through stored language models and store their hidden states.

    Args:
        networks: a folder written by `training.language_models.train`.
        data: the corpus that they were trained on, written by `corpora.materialise`.
        out: folder to write, which appears whole or not at all: <split>/step-NNNNNN.safetensors, laid out as by
            `extraction.extract`. Files of a `HeldOutRequest` hold (networks, points, units) for each layer, see
            `held_out_states`; files of a `RepeatsRequest` hold (networks, sequences·repeats, units) for each
            "layer@start", see `repeated_states`. The positions of a column or of a sequence follow each other.
        requests: which checkpoints, layers and text.
        device: "cpu" or "cuda".
        report: called with one line per file.

    Raises:
        DamagedFile: the corpus or a checkpoint cannot be read.
        UserError: the held-out text is too short.
    """
    corpus = corpora.load(data)
    recipe = checkpoints.load_recipe(networks, corpus.checksum)
    models = LanguageModels(describe_language_model(recipe.network, corpus.vocabulary))
    files = [file for _, file in checkpoints.stored(networks)]
    tokens = corpus.valid.to(device)
    with replacing(out) as folder:
        for request in requests:
            requested_files = files if request.epochs == "all" else files[-1:]
            for count, file in enumerate(requested_files, start=1):
                state, metadata = read_tensors(file, device=device)
                states = repeated_states if isinstance(request, RepeatsRequest) else held_out_states
                path = folder / request.split / file.name
                path.parent.mkdir(parents=True, exist_ok=True)
                layout = layout_of(models, request)
                metadata = {**metadata, "split": request.split, "checkpoint": metadata["sha256"]}
                with arrays_on_disk(path, layout.shapes(len(recipe.networks)), **metadata) as arrays:
                    layout.fill(arrays, states(models, state, tokens, request))
                report(f"checkpoint {count}/{len(requested_files)} · step {metadata['step']} · {request.split}")
        write_contents(folder)


class Layout(NamedTuple):
    """How the states of a request lie in its file: (N, columns·positions, units), the positions of a column together.

    Attributes:
        columns: texts that are read side by side.
        positions: how many states of each are stored.
        units: name of a tensor → units of its layer.
    """

    columns: int
    positions: int
    units: dict[str, int]

    def shapes(self, networks: int) -> dict[str, tuple[int, int, int]]:
        """Shapes of the tensors."""
        return {name: (networks, self.columns * self.positions, units) for name, units in self.units.items()}

    def fill(self, arrays: dict[str, np.ndarray], parts: Iterable[Part]) -> None:
        """Put states where they belong."""
        for name, first, states in parts:
            array = arrays[name].reshape(len(states), self.columns, self.positions, -1)
            array[:, :, first : first + states.shape[1]] = states.transpose(1, 2).cpu().numpy()


def layout_of(models: LanguageModels, request: HeldOutRequest | RepeatsRequest) -> Layout:
    """How the states that are requested of some models are stored."""
    units = {layer: models.architecture.widths[layer] for layer in _requested_layers(models, request)}
    if isinstance(request, HeldOutRequest):
        return Layout(EVALUATION_COLUMNS, _length(request), units)
    names = [*(f"{start:g}" for start in request.starts), "none"]
    units = {f"{layer}@{name}": width for name in names for layer, width in units.items()}
    return Layout(request.sequences, request.repeats, units)


def _length(request: HeldOutRequest) -> int:
    """Positions of each column whose states are stored."""
    return math.ceil(request.points / (EVALUATION_COLUMNS * request.positions)) * request.positions


@torch.no_grad()
def held_out_states(
    models: LanguageModels, state: dict[str, Tensor], tokens: Tensor, request: HeldOutRequest
) -> Iterator[Part]:
    """Hidden states on held-out text, window by window.

    The text is read in columns that begin at regular distances from each other, so that all of it is seen.

    Args:
        models: their architecture.
        state: their stacked parameters, N models.
        tokens: (tokens,) the text.
        request: layers, and the number of positions; it is rounded up to a multiple of `EVALUATION_COLUMNS`, and each
            column has a whole number of groups of `positions`.

    Yields:
        Each layer's states in a window of the columns.

    Raises:
        UserError: the text is too short.
    """
    length = _length(request)
    needed = length * EVALUATION_COLUMNS + request.context
    if len(tokens) < needed:
        raise UserError(
            f"corpus.valid: {len(tokens)} tokens, but {request.points} data points need {needed}; give more text or "
            "compare fewer data points"
        )
    read = request.context + length
    starts = torch.linspace(0, len(tokens) - read, EVALUATION_COLUMNS).long()
    text = torch.stack([tokens[start : start + read] for start in starts], dim=1)
    initial = models.zero_state(len(state["embedding.weight"]), EVALUATION_COLUMNS, tokens.device)
    layers = _requested_layers(models, request)
    for first, hidden, _ in _windows(models, state, text, initial):
        unseen = max(request.context - first, 0)  # positions of the window that belong to the context
        if unseen < len(text[first:]):
            for layer in layers:
                yield layer, first + unseen - request.context, hidden[layer][:, unseen:]


@torch.no_grad()
def repeated_states(
    models: LanguageModels, state: dict[str, Tensor], tokens: Tensor, request: RepeatsRequest
) -> Iterator[Part]:
    """Hidden states while one token is repeated, after part of a sequence of other tokens, window by window.

    Args:
        models: their architecture.
        state: their stacked parameters, N models.
        tokens: (tokens,) held-out text.
        request: sequences, the places where the repetition starts, and how often the token there is read.

    Yields:
        The states of each "layer@start" in a window of the repeats; "layer@none" are as many positions at the end of
        the sequences, without repetition.

    Raises:
        UserError: the text is too short or repeats itself too much.
    """
    repeats = request.repeats
    before = {start: tokens_before(start, request.length) for start in request.starts}
    before[None] = request.length - repeats  # no repetition
    text = _distinct_sequences(tokens, request, min(before.values()) + 1)
    carried, position = models.zero_state(len(state["embedding.weight"]), request.sequences, tokens.device), 0
    requested_layers = _requested_layers(models, request)
    for start in sorted(before, key=lambda start: before[start]):
        for _, _, after in _windows(models, state, text[position : before[start]], carried, POSITIONS_AT_A_TIME):
            carried = after
        position = before[start]
        repeated = text[position:] if start is None else text[position : position + 1].expand(repeats, -1)
        name = "none" if start is None else f"{start:g}"
        for first, hidden, _ in _windows(models, state, repeated[:repeats], carried):
            for layer in requested_layers:
                yield f"{layer}@{name}", first, hidden[layer]


def _windows(
    models: LanguageModels, state: dict[str, Tensor], text: Tensor, carried: State, most: int | None = None
) -> Iterator[tuple[int, dict[str, Tensor], State]]:
    """Read a text (positions, columns) in windows that take about `MEMORY`, and of at most so many positions.

    Yields:
        The first position of the window, the states of each layer there (N, window, columns, units), and the state
        after it.
    """
    networks, columns = len(state["embedding.weight"]), text.shape[1]
    sizes = models.architecture.sizes
    numbers = networks * columns * (sum(sizes) + 4 * max(sizes))  # all layers' states, and the gates of one
    size = max(min(MEMORY // (4 * numbers), most or len(text)), 1)
    for first in range(0, len(text), size):
        hidden, _, carried = models.outputs(state, text[first : first + size], carried)
        yield first, dict(zip(models.architecture.layers, hidden, strict=True)), carried


def _distinct_sequences(tokens: Tensor, request: RepeatsRequest, context: int) -> Tensor:
    """Sequences of a text that differ in their first tokens, so that no two networks' states are equal by construction.

    Args:
        tokens: (tokens,) the text.
        request: how many sequences, and their length.
        context: number of first tokens in which they differ.

    Returns:
        (length, sequences), from places that are spread over the text as evenly as that allows.

    Raises:
        UserError: the text is too short or repeats itself too much.
    """
    places = len(tokens) - request.length + 1
    windows = tokens[: places + context - 1].unfold(0, context, 1).cpu().numpy() if places > 0 else np.empty((0, 1))
    _, first_places = np.unique(windows, axis=0, return_index=True)
    if len(first_places) < request.sequences:
        raise UserError(
            f"corpus.valid: {len(tokens)} tokens hold {len(first_places)} sequences of {request.length} that differ in "
            f"their first {context} tokens, too few for {request.sequences}; give more text or lower "
            "results.recurrent_sequence.sequences"
        )
    chosen = np.sort(first_places)[np.linspace(0, len(first_places) - 1, request.sequences).round().astype(int)]
    return torch.stack([tokens[place : place + request.length] for place in chosen.tolist()], dim=1)


def _requested_layers(models: LanguageModels, request: HeldOutRequest | RepeatsRequest) -> Sequence[str]:
    return models.architecture.layers if request.layers == "all" else request.layers
