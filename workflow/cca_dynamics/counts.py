"""What the jobs of a study hold and compute, counted from its config: what they ask a scheduler for.

Nothing is measured and PyTorch is not imported, because Snakemake asks while it builds the DAG. `cost` adds how fast a
machine is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from cca_dynamics.config.cohorts import Cohort, HeldOutRequest, LayerRequest
from cca_dynamics.config.models import LanguageTraining, StudyConfig, Training
from cca_dynamics.data import datasets
from cca_dynamics.errors import UserError
from cca_dynamics.networks.architectures import (
    Architecture,
    ConvolutionalArchitecture,
    LanguageModel,
    describe,
    describe_language_model,
)
from cca_dynamics.results.registry import RESULTS
from cca_dynamics.study import Study
from cca_dynamics.variants import Job

MARGIN = 1.5
"""Memory that is asked for, in units of the estimate."""
PROCESS = {"cpu": 1.2e9, "cuda": 4e9}
"""Bytes in the computer's memory of a process with PyTorch that has done nothing yet, and what it frees but keeps."""
LEAST_MEMORY = 2000
"""The least memory that a job asks for, in MB."""
LEAST_MINUTES = {"dataset": 10, "corpus": 10, "train": 240, "activations": 60, "ablation": 120, "compute": 60}
"""Stage → the least time that a job asks for, in minutes."""
MOST_MINUTES = 2880
"""The most time that a job asks for: schedulers refuse weeks, and training that is cut off resumes."""
SPEED = {"cpu": 1e10, "cuda": 2e12}
"""Operations per second that a job reaches on old machines, too."""
PER_PARAMETER = 6
"""Numbers per parameter in training at the most: the parameter, its gradient, an update, and the optimiser's state."""
EVALUATED = 500
"""Data points that are evaluated at a time, as `networks.convolutional.BATCH` says."""
AT_A_TIME = 2**30
"""Bytes of activations at a time at the most, as `MEMORY` of the modules of `representations` says."""
CHARACTERS = 1000
"""Different characters of a text at the most."""
MODULE = 4e9
"""Bytes that a user's module is taken to hold, which is not known before it is run."""


class Extraction(NamedTuple):
    """So many equal files of one network, each with so many (n, d) matrices for each layer's number of neurons d."""

    files: int
    matrices: int
    n: int
    neurons: list[int]
    read: int  # examples or tokens, for one file

    @property
    def numbers(self) -> int:
        """Numbers in one file."""
        return self.matrices * self.n * sum(self.neurons)


def extractions(
    cohort: Cohort, sizes: dict[str, int], architecture: Architecture | LanguageModel
) -> Iterator[Extraction]:
    """What is extracted of each network of a cohort.

    Args:
        cohort: which.
        sizes: split → examples or tokens.
        architecture: of its networks.
    """
    for request in cohort.requests:
        files = {"all": len(cohort.stored_epochs), "final": 1}.get(request.epochs) or len(request.epochs)
        widths = architecture.widths
        layers = list(widths if request.layers == "all" else request.layers)
        if getattr(request, "before_relu", False):
            layers += [layer for layer in layers if layer != "softmax"]  # once more, before the ReLU
        neurons = [widths[layer] for layer in layers]
        if isinstance(request, LayerRequest):
            for split in request.splits:
                size = examples(cohort, sizes) if split == "train" else sizes[split]
                n = min(request.points or math.inf, size)
                yield Extraction(files, 1, n, neurons, read=n)
        elif isinstance(request, HeldOutRequest):
            n = request.points // request.positions
            yield Extraction(files, request.positions, n, neurons, read=request.points)
        else:  # repeats after each of the starts, and none
            starts, n = len(request.starts) + 1, request.sequences
            tokens = request.length + starts * request.repeats  # each sequence is read once, whatever follows a start
            yield Extraction(files, starts * request.repeats, n, neurons, read=n * tokens)


def examples(cohort: Cohort, sizes: dict[str, int]) -> int:
    """Training examples or tokens that a cohort's networks see."""
    return min(cohort.examples or math.inf, sizes["train"])


def training_memory(
    architecture: Architecture | LanguageModel,
    training: Training | LanguageTraining,
    networks: int,
    *,
    lockstep: bool,
    together: int,
    per_parameter: int = PER_PARAMETER,
    bytes_per_number: int = 4,
) -> float:
    """Bytes that training so many networks holds on the device, without the data and PyTorch itself.

    They are the parameters, gradients and optimiser state of all networks, and what the backward pass needs of those
    that share a pass.

    Args:
        architecture, training, networks: what is trained.
        lockstep: whether classifiers are computed in lockstep, see `networks.convolutional`.
        together: networks that share a pass.
        per_parameter: numbers for each parameter.
        bytes_per_number: of what the backward pass needs.
    """
    if isinstance(architecture, LanguageModel):  # gates, cells and states; logits and their gradient
        together, numbers = 1, training.window * (16 * sum(architecture.sizes) + 3 * architecture.vocabulary)
    else:  # what convolutions and batch norms return, gradients, and the inputs of a convolution, side by side
        numbers = 3 * architecture.activations
        if lockstep:
            side_by_side = max(convolution.inputs_side_by_side for convolution in architecture.convolutions)
            numbers += architecture.activations + side_by_side
    in_pass = together * training.batch_size * numbers * bytes_per_number
    return networks * architecture.parameters * 4 * per_parameter + in_pass


def evaluation_memory(architecture: ConvolutionalArchitecture, networks: int, lockstep: bool) -> float:
    """Bytes that the widest layer of so many classifiers takes in evaluation.

    That is what it reads, what it returns, twice while networks are put together, and what a shortcut takes past it.
    """

    def numbers(c) -> int:
        read = c.inputs_side_by_side if lockstep else math.prod(c.space) * c.inputs
        return 3 * math.prod(c.space) * c.outputs + read

    return networks * EVALUATED * 4 * max(map(numbers, architecture.convolutions))


class Requests:
    """The memory and time that the jobs of a study ask a scheduler for.

    Args:
        study: the study.
        device: "cpu" or "cuda", where its jobs run.
    """

    def __init__(self, study: Study, device: str):
        self._study, self._device = study, device
        self._estimates: dict[tuple, tuple[float, float]] = {}

    def megabytes(self, job: Job, attempt: int = 1) -> int:
        """Memory of a job in MB; more in each attempt, since a job may have been killed for want of it."""
        memory, _ = self._estimate(job)
        return attempt * max(LEAST_MEMORY, math.ceil((PROCESS[self._device] + MARGIN * memory) / 1e6))

    def minutes(self, job: Job, attempt: int = 1) -> int:
        """Time of a job in minutes; more in each attempt, up to `MOST_MINUTES`."""
        _, operations = self._estimate(job)
        estimate = math.ceil(operations / SPEED[self._device] / 60)
        return min(attempt * max(LEAST_MINUTES[job.stage], estimate), MOST_MINUTES)

    def _estimate(self, job: Job) -> tuple[float, float]:
        """Bytes that a job holds, and operations."""
        networks = 0
        if job.part:
            first, last = map(int, job.part.split("-"))
            networks = last - first + 1
        key = job.stage, job.cohort, networks, job.result
        if key not in self._estimates:
            self._estimates[key] = self._counted(job, networks)
        return self._estimates[key]

    def _counted(self, job: Job, networks: int) -> tuple[float, float]:
        if job.stage in ("dataset", "corpus"):
            return 5 * self._memory_of[job.stage], 0.0  # as it is downloaded, decoded and written
        if job.stage == "compute":
            return self._of_result(job.result)
        cohort = self._study.cohorts[job.cohort]
        data, sizes, architecture = self._memory_of[cohort.data], self._sizes[cohort.data], self._architecture(cohort)
        if not hasattr(architecture, "parameters"):
            return data + MODULE, 0.0
        lockstep = cohort.data == "dataset" and architecture.lockstep(self._device, False)
        together = networks if lockstep else 1
        evaluation = 0.0 if cohort.data == "corpus" else evaluation_memory(architecture, networks, lockstep)
        memory = training_memory(architecture, cohort.training, networks, lockstep=lockstep, together=together)
        if self._device == "cuda":  # what a scheduler counts is the computer's memory; passes take the GPU's
            evaluation, memory = 0.0, networks * architecture.parameters * 4.0 * PER_PARAMETER
        if job.stage == "train":
            training = cohort.training
            trained = training.epochs * examples(cohort, sizes) * architecture.training_operations
            evaluated = training.epochs * sum(sizes.values()) * architecture.operations
            return data + memory + evaluation, networks * (trained + evaluated)
        if job.stage == "ablation":
            request = cohort.ablation
            operations = request.orders * request.levels * request.points * architecture.operations
            return data + evaluation + 40 * 50 * architecture.activations * 4, networks * operations
        files = list(extractions(cohort, sizes, architecture))
        largest = networks * 4 * max((file.numbers for file in files), default=0)
        read = sum(file.files * file.read for file in files)
        return data + evaluation + 2 * min(largest, AT_A_TIME), networks * read * architecture.operations

    def _of_result(self, result: str) -> tuple[float, float]:
        """What the table of a result holds and computes: all layers that are compared, and a few in float64."""
        options, memory, operations = self._study.options(result), 0.0, 0.0
        if hasattr(RESULTS[result], "comparisons"):
            for count, n, d in RESULTS[result].comparisons(options):
                memory, operations = max(memory, 160.0 * n * d), operations + count * (n * d**2 + 30 * d**3)
            return memory, operations
        cohorts = self._study.cohorts_of(result)
        networks = sum(cohort.networks for cohort in cohorts)
        for cohort in cohorts:
            at_once = 1 if cohort.data == "corpus" else 4 * networks  # all networks of a layer, twice, and factors
            pairs = cohort.networks if cohort.data == "corpus" else networks * cohort.networks
            pairs *= len(getattr(options, "measures", ["pwcca"]))
            for file in extractions(cohort, self._sizes[cohort.data], self._architecture(cohort)):
                for d in file.neurons:
                    memory = max(memory, file.n * d * (4.0 * at_once + 160))
                    operations += pairs * file.files * file.matrices * (file.n * d**2 + 30 * d**3)
        return memory, operations

    def _architecture(self, cohort: Cohort) -> Architecture | LanguageModel:
        if cohort.data == "corpus":
            return describe_language_model(cohort.network, self._vocabulary)
        _, (channels, *space), classes = self._dataset
        return describe(cohort.network, channels, space, classes)

    @cached_property
    def _dataset(self) -> datasets.Shape:
        try:
            return datasets.shape_of(self._study.config.dataset)
        except UserError:  # the job that makes it will say what is wrong
            return datasets.Shape((1, 1), (1, 1), 1)

    @cached_property
    def _corpus(self) -> tuple[int, int]:
        return tokens_at_most(self._study.config)

    @property
    def _vocabulary(self) -> int:
        """Entries at the most: Heaps' law, with constants above those of English text."""
        corpus = self._study.config.corpus
        if getattr(corpus, "level", "character") == "character":
            return CHARACTERS
        return corpus.vocabulary or math.ceil(30 * self._corpus[0] ** 0.5)

    @property
    def _sizes(self) -> dict[str, dict[str, int]]:
        (train, test), (train_tokens, valid) = self._dataset.sizes, self._corpus
        return {"dataset": {"train": train, "test": test}, "corpus": {"train": train_tokens, "valid": valid}}

    @property
    def _memory_of(self) -> dict[str, float]:
        """Bytes of the data in the jobs that read it: images twice, while they are laid out channels last."""
        (train, test), inputs, _ = self._dataset
        return {
            "dataset": (train + test) * math.prod(inputs) * (2.0 if len(inputs) == 3 else 8.0),
            "corpus": sum(self._corpus) * 16.0,
        }


def tokens_at_most(config: StudyConfig) -> tuple[int, int]:
    """Tokens of the training and of the validation text, from the sizes of the files; the text is not read."""
    corpus = config.corpus
    if hasattr(corpus, "train_characters"):
        return corpus.train_characters, corpus.valid_characters
    try:
        sizes = [(Path(corpus.folder) / name).stat().st_size for name in (corpus.train, corpus.valid)]
    except OSError:  # the job that reads them will say what is wrong
        return 1, 1
    return tuple(size // (4 if corpus.level == "word" else 1) + 1 for size in sizes)
