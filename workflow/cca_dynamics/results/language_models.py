"""The language models that the recurrent results share. Each result asks for a cohort by these functions; the study
trains a cohort once, however many results ask for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from cca_dynamics.config.cohorts import (
    Cohort,
    HeldOutRequest,
    LanguageNetwork,
    RepeatsRequest,
    checkpoint_epochs,
)
from cca_dynamics.config.models import StudyConfig
from cca_dynamics.data.corpora import EVALUATION_COLUMNS

SHALLOW, DEEPER = "lstm", "lstm-deeper"


def shallow(config: StudyConfig, *requests: HeldOutRequest | RepeatsRequest) -> Cohort:
    """The cohort of the study's language models, stored as `checkpoint_epochs` says, and when stability needs it.

    They are stored then whether or not that result is made, so that asking for it later trains nothing again.
    """
    model, followed = config.language_model, config.results.stability.recurrent
    epochs = {followed.early_epoch, config.language_training.epochs / 2} if followed else set()
    return _cohort(config, SHALLOW, model.networks, model.sizes, requests, epochs)


def deeper(config: StudyConfig, layers: int, networks: int, *requests: HeldOutRequest | RepeatsRequest) -> Cohort:
    """A cohort of models with another number of layers: the last as wide as the study's, the others as its first."""
    sizes = config.language_model.sizes
    return _cohort(config, DEEPER, networks, (*(sizes[0],) * (layers - 1), sizes[-1]), requests)


def _cohort(
    config: StudyConfig,
    name: str,
    networks: int,
    sizes: tuple[int, ...],
    requests: tuple[HeldOutRequest | RepeatsRequest, ...],
    more_epochs: Iterable[float] = (),
) -> Cohort:
    model, training = config.language_model, config.language_training
    regular = checkpoint_epochs(training.epochs, training.checkpoint_every, training.checkpoints_in_first_epoch)
    return Cohort(
        name=name,
        networks=networks,
        network=LanguageNetwork(embedding=model.embedding, sizes=sizes, tied=model.tied),
        training=training,
        checkpoints=tuple(sorted({*regular, *map(float, more_epochs)})),
        requests=requests,
    )


def curves(config: StudyConfig) -> HeldOutRequest:
    """The states of all layers at all checkpoints, on held-out text."""
    points = config.results.recurrent_training.data_points
    return HeldOutRequest(epochs="all", split="valid", layers="all", points=points)


def tokens_needed(config: StudyConfig, cohorts: list[Cohort]) -> dict[str, int]:
    """The fewest tokens of each split that language models need: one window, and the data points of CCA.

    Args:
        config: of the study.
        cohorts: the study's.
    """
    training, valid = config.language_training, 2 * EVALUATION_COLUMNS
    for request in (request for cohort in cohorts if cohort.data == "corpus" for request in cohort.requests):
        if isinstance(request, RepeatsRequest):
            tokens = request.length + request.sequences
        else:
            block = EVALUATION_COLUMNS * request.positions
            tokens = math.ceil(request.points / block) * block + request.context
        valid = max(valid, tokens)
    return {"train": training.batch_size * (training.window + 1), "valid": valid}


def layer_names(sizes: tuple[int, ...]) -> list[str]:
    """lstm1, lstm2, ..."""
    return [f"lstm{i + 1}" for i in range(len(sizes))]
