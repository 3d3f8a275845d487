"""Hidden states of language models on disk: one safetensors file per checkpoint and request, one tensor per layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cca_dynamics.config.cohorts import HeldOutRequest, RepeatsRequest, tokens_before
from cca_dynamics.data import corpora
from cca_dynamics.data.corpora import EVALUATION_COLUMNS
from cca_dynamics.errors import UserError
from cca_dynamics.networks.architectures import describe_language_model
from cca_dynamics.networks.lstm import LanguageModels
from cca_dynamics.runtime.storage import read_tensors, replacing, write_contents, write_tensors
from cca_dynamics.training import checkpoints

POSITIONS_AT_A_TIME = 32
"""Tokens of all sequences that are read at a time where their states are not stored."""


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
            "layer@start", see `repeated_states`.
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
                if isinstance(request, RepeatsRequest):
                    states = repeated_states(models, state, tokens, request)
                else:
                    states = held_out_states(models, state, tokens, request)
                path = folder / request.split / file.name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_tensors(path, states, **{**metadata, "split": request.split, "checkpoint": metadata["sha256"]})
                report(f"checkpoint {count}/{len(requested_files)} · step {metadata['step']} · {request.split}")
        write_contents(folder)


@torch.no_grad()
def held_out_states(
    models: LanguageModels, state: dict[str, Tensor], tokens: Tensor, request: HeldOutRequest
) -> dict[str, Tensor]:
    """Hidden states on held-out text.

    The text is read in columns that begin at regular distances from each other, so that all of it is seen.

    Args:
        models: their architecture.
        state: their stacked parameters, N models.
        tokens: (tokens,) the text.
        request: layers, and the number of positions; it is rounded up to a multiple of `EVALUATION_COLUMNS`, and each
            column has a whole number of groups of `positions`.

    Returns:
        layer → (N, points, units); the positions of a column follow each other.

    Raises:
        UserError: the text is too short.
    """
    length = math.ceil(request.points / (EVALUATION_COLUMNS * request.positions)) * request.positions
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
    hidden, _, _ = models.outputs(state, text, initial)
    hidden = [states[:, request.context :] for states in hidden]
    states = dict(zip(models.architecture.layers, hidden, strict=True))
    return {layer: states[layer].transpose(1, 2).flatten(1, 2) for layer in _requested_layers(models, request)}


@torch.no_grad()
def repeated_states(
    models: LanguageModels, state: dict[str, Tensor], tokens: Tensor, request: RepeatsRequest
) -> dict[str, Tensor]:
    """Hidden states while one token is repeated, after part of a sequence of other tokens.

    Args:
        models: their architecture.
        state: their stacked parameters, N models.
        tokens: (tokens,) held-out text.
        request: sequences, the places where the repetition starts, and how often the token there is read.

    Returns:
        "layer@start" → (N, sequences·repeats, units), the repeats of a sequence following each other; "layer@none" are
        as many positions at the end of the sequences, without repetition.

    Raises:
        UserError: the text is too short or repeats itself too much.
    """
    repeats = request.repeats
    before = {start: tokens_before(start, request.length) for start in request.starts}
    before[None] = request.length - repeats  # no repetition
    text = _distinct_sequences(tokens, request, min(before.values()) + 1)
    carried, position = models.zero_state(len(state["embedding.weight"]), request.sequences, tokens.device), 0
    requested_layers = _requested_layers(models, request)
    result: dict[str, Tensor] = {}
    for start in sorted(before, key=lambda start: before[start]):
        while position < before[start]:
            last = min(position + POSITIONS_AT_A_TIME, before[start])
            _, _, carried = models.outputs(state, text[position:last], carried)
            position = last
        after = text[position:] if start is None else text[position : position + 1].expand(repeats, -1)
        hidden, _, _ = models.outputs(state, after[:repeats], carried)
        name = "none" if start is None else f"{start:g}"
        for layer, states in zip(models.architecture.layers, hidden, strict=True):
            if layer in requested_layers:
                result[f"{layer}@{name}"] = states.transpose(1, 2).flatten(1, 2)
    return result


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
