"""Cohorts of networks, the recipes by which they are trained, and what is extracted from them.

Recipes and requests travel to the stages as JSON on a command line, and a recipe is stored beside the networks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer

from cca_dynamics.config.base import Model
from cca_dynamics.config.models import LanguageTraining, Network, Training


class SweepTraining(Training):
    """A training recipe in which each network may have a learning rate of its own."""

    learning_rate: float | tuple[float, ...]


class LanguageNetwork(Model):
    """The architecture of a language model, but for the vocabulary of its corpus."""

    embedding: int
    sizes: tuple[int, ...]
    tied: bool


class ClassifierRecipe(Model):
    """Everything that determines the classifiers of one part of a cohort.

    Attributes:
        cohort: its name, part of every random stream.
        data: what they are trained on, "dataset".
        seed: the study's.
        networks: indices of the networks in the cohort.
        labels: "true", or "permuted" (one fixed random permutation of them).
        network, training: what they look like, how they are trained.
        checkpoints: epochs (fractions allowed) after which they are stored; the end is always stored.
        examples: they see so many random training examples alone, see `datasets.Dataset.subset`; None: all.
    """

    cohort: str
    data: Literal["dataset"] = "dataset"
    seed: int
    networks: tuple[int, ...]
    labels: Literal["true", "permuted"]
    network: Network
    training: Training | SweepTraining
    checkpoints: tuple[float, ...]
    examples: int | None = None

    @model_serializer(mode="wrap")
    def _without_default(self, serialize: Any) -> dict[str, Any]:
        """The number of examples is written only where it is given, so that other recipes read as they always did."""
        return {key: value for key, value in serialize(self).items() if key != "examples" or value is not None}


class LanguageRecipe(Model):
    """Everything that determines the language models of one part of a cohort; as `ClassifierRecipe`."""

    cohort: str
    data: Literal["corpus"] = "corpus"
    seed: int
    networks: tuple[int, ...]
    network: LanguageNetwork
    training: LanguageTraining
    checkpoints: tuple[float, ...]


Recipe = Annotated[ClassifierRecipe | LanguageRecipe, Field(discriminator="data")]

Layers = Literal["all"] | tuple[str, ...]


class LayerRequest(Model):
    """Activations of classifiers.

    Attributes:
        epochs: all checkpoints, the final one, or those nearest to some epochs.
        splits: of the dataset, "train" and "test".
        layers: all of them, or their names.
        points: so many random data points of a split, the same for all networks of a study; None: all.
        before_relu: whether the layers that are convolutions are stored as they are before their ReLU, too, under the
            names of `representations.extraction.before_relu`; only the architecture "convnet" has such layers.
        noise: standard deviation of Gaussian noise that is added to the inputs, the same for all networks, in units of
            the standard deviation of the training inputs; None: none. Noisy splits lie in folders of their own, see
            `noisy_split`, and hold the true labels as well.
    """

    kind: Literal["layers"] = "layers"
    epochs: Literal["all", "final"] | tuple[float, ...]
    splits: tuple[Literal["train", "test"], ...]
    layers: Layers
    points: int | None = None
    before_relu: bool = False
    noise: float | None = None

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: Any) -> dict[str, Any]:
        """The last two are written only where they are asked for, so that other requests read as they always did."""
        given = {"before_relu": self.before_relu, "noise": self.noise is not None}
        return {key: value for key, value in serialize(self).items() if given.get(key, True)}


def noisy_split(split: str, noise: float | None) -> str:
    """Name of a split's folder of activations: "test", or with noise in the inputs "test-noise-0.5"."""
    return split if noise is None else f"{split}-noise-{noise:g}"


class HeldOutRequest(Model):
    """Hidden states of language models on held-out text.

    Attributes:
        epochs: all checkpoints, or the final one.
        split: names the folder of the states.
        layers: all of them, or their names.
        points: positions of the text, at least.
        positions: so many that follow each other belong together.
        context: tokens that are read before them, whose states are not stored.
    """

    kind: Literal["held_out"] = "held_out"
    epochs: Literal["all", "final"]
    split: Literal["valid", "sequence"]
    layers: Layers
    points: int
    positions: int = 1
    context: int = 0


class RepeatsRequest(Model):
    """Hidden states of language models while one token is repeated, after some share of a sequence.

    Attributes:
        epochs, layers: as in `HeldOutRequest`.
        sequences: how many, each from its own place in the text.
        length: tokens of each.
        starts: shares of the length after which the repetition starts.
        repeats: how often the token there is read.
    """

    kind: Literal["repeats"] = "repeats"
    epochs: Literal["all", "final"]
    split: Literal["repeats"] = "repeats"
    layers: Layers
    sequences: int
    length: int
    starts: tuple[float, ...]
    repeats: int


def tokens_before(start: float, length: int) -> int:
    """How many tokens of a sequence are read before a token is repeated, after a share of the sequence."""
    return min(max(round(start * length), 1), length - 1)


Request = Annotated[LayerRequest | HeldOutRequest | RepeatsRequest, Field(discriminator="kind")]


class AblationRequest(Model):
    """Which feature maps are clamped to zero.

    Attributes:
        layers: whose feature maps are pooled.
        orders: random orders per network.
        levels: shares of clamped maps from 0 to 1, both included.
        points: random training examples, the same for all networks.
    """

    layers: tuple[str, ...]
    orders: int
    levels: int
    points: int


@dataclass(frozen=True)
class Cohort:
    """Networks that share an architecture and a recipe and differ in seed (and, in a sweep, in learning rate).

    Attributes:
        name: unique in the study; part of every random stream of its networks and of its path.
        networks: how many.
        network, training: complete blocks; in a sweep training.learning_rate has one value per network.
        labels: "true" or "permuted".
        examples: they see so many random training examples alone; None: all.
        checkpoints: epochs (fractions allowed) after which the networks are stored; the end is always stored.
        requests: which activations are extracted.
        ablation: how they are ablated at the end; None: not at all.
    """

    name: str
    networks: int
    network: Network | LanguageNetwork
    training: Training | LanguageTraining
    labels: str = "true"
    examples: int | None = None
    checkpoints: tuple[float, ...] = ()
    requests: tuple[LayerRequest | HeldOutRequest | RepeatsRequest, ...] = ()
    ablation: AblationRequest | None = None

    @property
    def data(self) -> str:
        """What the networks are trained on, the study's "dataset" or its "corpus"."""
        return "corpus" if isinstance(self.network, LanguageNetwork) else "dataset"

    @property
    def stored_epochs(self) -> tuple[float, ...]:
        """Epochs of all checkpoints, the end among them, in order."""
        return tuple(sorted({*self.checkpoints, float(self.training.epochs)}))

    def parts(self, networks_per_job: int) -> list[str]:
        """How the cohort is split over jobs: "0-49", "50-99", ... (first and last network of each part)."""
        starts = range(0, self.networks, networks_per_job)
        return [f"{first}-{min(first + networks_per_job, self.networks) - 1}" for first in starts]

    def recipe(self, part: str, seed: int) -> ClassifierRecipe | LanguageRecipe:
        """Everything that determines the networks of one part."""
        first, last = map(int, part.split("-"))
        shared = {"cohort": self.name, "seed": seed, "network": self.network, "checkpoints": self.checkpoints}
        shared["networks"] = tuple(range(first, last + 1))
        if self.data == "corpus":
            return LanguageRecipe(training=self.training, **shared)
        training = self.training
        if isinstance(training.learning_rate, tuple):
            training = training.with_changes({"learning_rate": training.learning_rate[first : last + 1]})
        return ClassifierRecipe(labels=self.labels, examples=self.examples, training=training, **shared)


PART = re.compile(r"(\d+)-(\d+)(\.\w+)?")
PARTS = re.compile(r"(\d+)-(\d+):(\d+)(\.\w+)?")
"""Names of the output of one part, "50-99" or "50-99.parquet", and of those of several, see `abbreviated`."""


def abbreviated(paths: Iterable[str | Path]) -> list[str]:
    """Outputs of the parts of cohorts, in fewer words: a command line has no room for the paths of a thousand parts.

    Paths that follow each other, in one folder, whose parts do so and are equally long are written as one:
    "networks/sweep/0-99:50" are networks/sweep/0-49 and networks/sweep/50-99. The last part may be shorter, as in
    `Cohort.parts`. `expanded` gives the paths back, in their order.
    """
    runs: list[tuple[Path, int, int, int, str]] = []  # folder, first and last network, networks of a part, suffix
    for path in map(Path, paths):
        part = PART.fullmatch(path.name)
        if part is None:
            runs.append((path, 0, -1, 0, ""))
            continue
        first, last, suffix = int(part[1]), int(part[2]), part[3] or ""
        size = last - first + 1
        if runs:
            folder, begin, end, size_of_run, suffix_of_run = runs[-1]
            complete = size_of_run and (end - begin + 1) % size_of_run == 0
            alike = (folder, suffix_of_run, end + 1) == (path.parent, suffix, first)
            if complete and alike and size <= size_of_run:
                runs[-1] = (folder, begin, last, size_of_run, suffix)
                continue
        runs.append((path.parent, first, last, size, suffix))
    return [
        str(folder / f"{first}-{last}{f':{size}' if last - first + 1 > size else ''}{suffix}") if size else str(folder)
        for folder, first, last, size, suffix in runs
    ]


def expanded(path: str | Path) -> list[Path]:
    """The paths that one of `abbreviated` stands for; any other path is returned as it is."""
    path = Path(path)
    if (parts := PARTS.fullmatch(path.name)) is None or int(parts[3]) < 1:
        return [path]
    begin, end, size = (int(number) for number in parts.groups()[:3])
    return [
        path.with_name(f"{first}-{min(first + size - 1, end)}{parts[4] or ''}") for first in range(begin, end + 1, size)
    ]


def checkpoint_epochs(epochs: int, every: float, in_first_epoch: int) -> set[float]:
    """Epochs after which networks are stored: the beginning, so many in the first epoch, then at regular distances.

    Args:
        epochs: of the whole training; the last one is among the result.
        every: epochs between two checkpoints.
        in_first_epoch: how many checkpoints divide the first epoch evenly, its end included.
    """
    early = {round(i / in_first_epoch, 6) for i in range(in_first_epoch)}
    regular = {round(i * every, 6) for i in range(math.floor(epochs / every) + 1)}
    return early | regular | {1.0, float(epochs)}


def merged(cohorts: Iterable[Cohort]) -> dict[str, Cohort]:
    """Cohorts by name; results that name the same cohort share its networks, and all their requests are extracted."""
    by_name: dict[str, Cohort] = {}
    for cohort in cohorts:
        known = by_name.get(cohort.name, cohort)
        checkpoints = tuple(sorted({*known.checkpoints, *cohort.checkpoints}))
        requests = tuple(dict.fromkeys((*known.requests, *cohort.requests)))
        by_name[cohort.name] = replace(known, checkpoints=checkpoints, requests=requests)
    return by_name
