"""Hidden states of language models on disk: one safetensors file per checkpoint and request, one tensor per layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cca_dynamics.config.cohorts import HeldOutRequest, RepeatsRequest
from cca_dynamics.data import corpora
from cca_dynamics.data.corpora import EVALUATION_COLUMNS
from cca_dynamics.errors import UserError
from cca_dynamics.networks.architectures import describe_language_model
from cca_dynamics.networks.lstm import LanguageModels
from cca_dynamics.runtime.storage import read_tensors, replacing, write_contents, write_tensors
from cca_dynamics.training import checkpoints


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
    if len(tokens) < length * EVALUATION_COLUMNS:
        raise UserError(
            f"corpus.valid: {len(tokens)} tokens, but {request.points} data points need "
            f"{length * EVALUATION_COLUMNS}; give more text or compare fewer data points"
        )
    starts = torch.linspace(0, len(tokens) - length, EVALUATION_COLUMNS).long()
    text = torch.stack([tokens[start : start + length] for start in starts], dim=1)
    initial = models.zero_state(len(state["embedding.weight"]), EVALUATION_COLUMNS, tokens.device)
    hidden, _, _ = models.outputs(state, text, initial)
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
        UserError: the text is too short.
    """
    sequences, length, repeats = request.sequences, request.length, request.repeats
    if len(tokens) < length + sequences:
        raise UserError(
            f"corpus.valid: {len(tokens)} tokens are too few for {sequences} sequences of {length}; give more text or "
            "lower results.recurrent_sequence.sequences"
        )
    starts = torch.linspace(0, len(tokens) - length, sequences).long()
    text = torch.stack([tokens[start : start + length] for start in starts], dim=1)  # (length, sequences)
    requested_layers = _requested_layers(models, request)
    result: dict[str, Tensor] = {}
    for share in [*request.starts, None]:
        before = length - repeats if share is None else min(max(round(share * length), 1), length - 1)
        carried = models.zero_state(len(state["embedding.weight"]), sequences, tokens.device)
        _, _, carried = models.outputs(state, text[:before], carried)
        after = text[before:] if share is None else text[before : before + 1].expand(repeats, -1)
        hidden, _, _ = models.outputs(state, after[:repeats], carried)
        start = "none" if share is None else f"{share:g}"
        for layer, states in zip(models.architecture.layers, hidden, strict=True):
            if layer in requested_layers:
                result[f"{layer}@{start}"] = states.transpose(1, 2).flatten(1, 2)
    return result


def _requested_layers(models: LanguageModels, request: HeldOutRequest | RepeatsRequest) -> Sequence[str]:
    return models.architecture.layers if request.layers == "all" else request.layers
