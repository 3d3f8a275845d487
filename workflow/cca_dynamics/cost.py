"""Know the cost before paying it: what a study computes, and what that takes on this machine.

The work is counted from the config. How fast this machine is at it is measured, for a few seconds each: training steps
and evaluations of the study's own networks, comparisons of layers, and the start of a job.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from cca_dynamics import counts
from cca_dynamics.config.cohorts import Cohort, LanguageNetwork
from cca_dynamics.config.models import LanguageTraining, NetworkOptions, StudyConfig, Training
from cca_dynamics.counts import Extraction, examples
from cca_dynamics.counts import extractions as extractions_of
from cca_dynamics.data import corpora, datasets
from cca_dynamics.networks import user_module
from cca_dynamics.networks.architectures import Architecture, LanguageModel, Module, describe, describe_language_model
from cca_dynamics.networks.convolutional import build, channels_last
from cca_dynamics.networks.lstm import LanguageModels
from cca_dynamics.representations import ablation, extraction
from cca_dynamics.results.registry import RESULTS
from cca_dynamics.runtime.machine import hardware
from cca_dynamics.runtime.threads import has_bfloat16
from cca_dynamics.similarity import pairwise
from cca_dynamics.study import Study
from cca_dynamics.training.classifiers import batch_gradients, networks_per_pass, stack_parameters
from cca_dynamics.training.cuda_graphs import recorded_on
from cca_dynamics.training.language_models import window_gradients
from cca_dynamics.training.optimizers import AVERAGING, OPTIMIZERS, Adam
from cca_dynamics.training.parameters import StackedParameters

CALIBRATION = 20.0
"""Seconds of measuring in all."""
FIRST_GUESS = {"cpu": 5e10, "cuda": 2e13}
"""Operations per second at which a network trains at least; only to skip what would take too long to measure."""


class Job(NamedTuple):
    """What a job takes: floating-point operations of networks, bytes that it holds at a time, bytes that it leaves."""

    rule: str
    networks: int = 0
    operations: float = 0.0
    seconds: float = 0.0
    memory: float = 0.0
    disk: float = 0.0


@dataclass(frozen=True)
class Data:
    """What networks read: a dataset, or the text of a corpus."""

    sizes: dict[str, int]  # split → examples or tokens
    evaluated: int  # examples or tokens of an evaluation
    memory: float  # bytes in the jobs that read it
    memory_to_make: float
    disk: float
    describe: Callable[[NetworkOptions | LanguageNetwork], Architecture | LanguageModel]


@dataclass(frozen=True)
class TrainingStep:
    """The training step of a network, on a batch of examples or on a window of so many columns of text."""

    network: NetworkOptions | LanguageNetwork = field(compare=False)
    architecture: Architecture | LanguageModel
    batch_size: int
    window: int = 1
    mixed: bool = False  # in mixed precision

    @property
    def operations(self) -> int:
        """Floating-point operations."""
        return self.architecture.training_operations * self.batch_size * self.window


class Machine(NamedTuple):
    """How fast this machine is, in seconds.

    Attributes:
        device: "cpu" or "cuda".
        start: until a job has started; `start_without_torch`: one that does not need PyTorch.
        speeds: (training, evaluation) of one network on one example or token.
        comparison: for each of the n·d² and each of the d³ operations of a comparison of two (n, d) layers.
    """

    device: str
    start: float
    start_without_torch: float
    speeds: dict[TrainingStep, tuple[float, float]]
    comparison: tuple[float, float]


def estimate(study: Study, device: str, report: Callable[[str], None] = print) -> pd.DataFrame:
    """What each rule of a study does and takes.

    Args:
        study: the study.
        device: "cpu" or "cuda", where it would run; measured here.
        report: called with one line.

    Returns:
        One row per rule that has jobs: jobs (how many), networks (summed over jobs), operations (floating-point, of
        networks), seconds (of all jobs, one after the other), longest (seconds of the longest job), memory (bytes that
        the largest job holds on the device), disk (bytes of all outputs).

    Raises:
        UserError: the dataset or the corpus is a folder or a file that does not exist, or a user's module fails.
    """
    cohorts = {cohort.name: cohort for result in study.targets for cohort in study.cohorts_of(result)}
    kinds = {cohort.data for cohort in cohorts.values()}
    data = {kind: count(study.config) for kind, count in (("dataset", _dataset), ("corpus", _corpus)) if kind in kinds}
    steps = {name: _training_step(cohort, data[cohort.data], device) for name, cohort in cohorts.items()}
    extractions = {
        name: list(extractions_of(cohorts[name], data[cohorts[name].data].sizes, step.architecture))
        for name, step in steps.items()
    }
    comparisons = {result: _comparisons(study, result, steps, extractions) for result in study.targets}
    report(f"measuring this machine ({device}), about {CALIBRATION:.0f} s ...")
    machine = measure(
        device, steps.values(), max((d for pairs in comparisons.values() for _, _, d in pairs), default=1)
    )

    light, (product, decomposition) = machine.start_without_torch, machine.comparison
    jobs = [Job(kind, seconds=light, memory=read.memory_to_make, disk=read.disk) for kind, read in data.items()]
    for name, cohort in cohorts.items():
        jobs += _jobs_of_cohort(study, cohort, data[cohort.data], steps[name], extractions[name], machine)
    for pairs in comparisons.values():
        seconds = sum(count * (n * d**2 * product + d**3 * decomposition) for count, n, d in pairs)
        memory = max((8 * n * d * 20 for _, n, d in pairs), default=0)
        jobs.append(Job("compute", seconds=machine.start + seconds, memory=memory))
    for starts in (*(1.5, 2) * len(comparisons), 0.25):  # test claims and draw for each result; merge all claims
        jobs.append(Job("test_claims, plot, claims", seconds=starts * light))
    rules = pd.DataFrame(jobs).astype({"operations": float}).groupby("rule", sort=False)
    largest = rules.max()
    return rules.sum().assign(jobs=rules.size(), longest=largest["seconds"], memory=largest["memory"])


def _dataset(config: StudyConfig) -> Data:
    (train, test), inputs, classes = datasets.shape_of(config.dataset)
    numbers = (train + test) * math.prod(inputs)
    disk = numbers * (1 if len(inputs) == 3 else 4)  # images are stored, and held, as integers from 0 to 255

    def describe_classifier(network: NetworkOptions) -> Architecture:
        architecture = describe(network, inputs[0], inputs[1:], classes)
        return user_module.measured(architecture) if isinstance(architecture, Module) else architecture

    sizes = {"train": train, "test": test}
    return Data(sizes, train + test, disk, disk, disk, describe_classifier)


def _corpus(config: StudyConfig) -> Data:
    train, valid, vocabulary = corpora.size_of(config.corpus)
    tokens, sizes = train + valid, {"train": train, "valid": valid}
    return Data(sizes, valid, tokens * 8, tokens * 80, tokens * 8, lambda net: describe_language_model(net, vocabulary))


def _training_step(cohort: Cohort, data: Data, device: str) -> TrainingStep:
    network, training = cohort.network, cohort.training
    mixed = getattr(training, "precision", "float32") == "mixed" and has_bfloat16(device)
    window = getattr(training, "window", 1)
    return TrainingStep(network, data.describe(network), training.batch_size, window, mixed)


def _comparisons(
    study: Study, result: str, steps: Mapping[str, TrainingStep], extractions: Mapping[str, list[Extraction]]
) -> list[tuple[int, int, int]]:
    """(how many, n, d) of the pairs of (n, d) layers that a result compares.

    Classifiers are compared with all others of their architecture and number of examples, a language model with itself
    at other times or positions of the text.
    """
    options = study.options(result)
    if hasattr(RESULTS[result], "comparisons"):
        return RESULTS[result].comparisons(options)
    groups: dict[tuple[Architecture | LanguageModel, int | None], list[Cohort]] = {}
    for cohort in study.cohorts_of(result):
        groups.setdefault((steps[cohort.name].architecture, cohort.examples), []).append(cohort)
    comparisons = []
    for cohorts in groups.values():
        networks = sum(cohort.networks for cohort in cohorts)
        pairs = networks if cohorts[0].data == "corpus" else networks * (networks - 1) // 2
        pairs *= len(getattr(options, "measures", ["pwcca"]))
        for files, matrices, n, neurons, _ in extractions[cohorts[0].name]:
            comparisons += [(pairs * files * matrices, n, min(d, getattr(options, "filters", d))) for d in neurons]
    return comparisons


def _jobs_of_cohort(
    study: Study, cohort: Cohort, data: Data, step: TrainingStep, extractions: list[Extraction], machine: Machine
) -> Iterator[Job]:
    """Training, extraction and ablation of the parts of a cohort."""
    training, network = cohort.training, step.architecture
    training_seconds, evaluation_seconds = machine.speeds[step]
    size = examples(cohort, data.sizes)
    trained = training.epochs * (size // training.batch_size) * training.batch_size
    evaluations = 1 + math.ceil(training.epochs / getattr(training, "evaluate_every", 1))  # the first before training
    evaluated = evaluations * (data.evaluated - (data.sizes["train"] - size))
    read = sum(request.files * request.read for request in extractions)
    extracted = sum(request.files * request.numbers for request in extractions)
    for part in study.parts(cohort.name):
        networks = len(cohort.recipe(part, study.seed).networks)
        yield Job(
            "train",
            networks,
            operations=networks * (trained * network.training_operations + evaluated * network.operations),
            seconds=machine.start + networks * (trained * training_seconds + evaluated * evaluation_seconds),
            memory=data.memory + training_memory(network, training, networks, machine.device, step.mixed),
            disk=len(cohort.stored_epochs) * networks * network.parameters * 4,
        )
        if extractions:
            largest_file = networks * 4 * max(request.numbers for request in extractions)
            if cohort.data == "dataset":
                largest_file = min(largest_file, extraction.MEMORY)  # at a time
            yield Job(
                "activations",
                networks,
                operations=networks * read * network.operations,
                seconds=machine.start + networks * (read * evaluation_seconds + extracted * 4e-9),
                memory=data.memory + 2 * largest_file,
                disk=networks * extracted * 4,
            )
        if request := cohort.ablation:
            ablations = request.orders * request.levels
            operations = networks * ablations * request.points * network.operations_after(request.layers[0])
            yield Job(
                "ablation",
                networks,
                operations=operations,
                seconds=machine.start + operations / network.operations * evaluation_seconds,
                memory=data.memory + ablation.MASKS_AT_A_TIME * 50 * network.activations * 4,  # on 50 data points
                disk=networks * ablations * 8,
            )


def training_memory(
    architecture: Architecture | LanguageModel,
    training: Training | LanguageTraining,
    networks: int,
    device: str,
    mixed: bool = False,
) -> float:
    """Bytes that training so many networks holds on the device, without the data and PyTorch itself.

    They are the parameters, gradients and optimiser state of all networks, and what the backward pass needs of those
    that share a pass.
    """
    values = torch.empty(1, 7)
    optimizer = (OPTIMIZERS | AVERAGING)[training.optimizer](values, training)
    per_parameter = 3 + sum(tensor.shape == values.shape for tensor in optimizer.tensors.values())
    lockstep = not isinstance(architecture, LanguageModel) and architecture.lockstep(device, mixed)
    together = networks_per_pass(networks, device, architecture, training.batch_size, lockstep=lockstep)
    how = {"per_parameter": per_parameter, "bytes_per_number": 2 if mixed else 4}
    return counts.training_memory(architecture, training, networks, lockstep=lockstep, together=together, **how)


def measure(device: str, steps: Iterable[TrainingStep], neurons: int) -> Machine:
    """Time what a study computes, for `CALIBRATION` seconds in all.

    A step that would take too long is extrapolated by its operations from a smaller one of the same kind.

    Args:
        device: "cpu" or "cuda".
        steps: of the study's cohorts.
        neurons: of the widest layers that are compared.
    """
    starts = _seconds_to_import("torch", "pandas"), _seconds_to_import("pandas", "matplotlib.pyplot")
    steps = sorted(set(steps), key=lambda step: step.operations)
    seconds, speeds = (CALIBRATION - 4) / (len(steps) + 1), {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the jobs of the workflow
    try:
        with threadpool_limits(1, user_api="blas"):
            for step in steps:
                kind = type(step.architecture), step.mixed
                smaller = [known for known in speeds if (type(known.architecture), known.mixed) == kind]
                if smaller and step.operations > FIRST_GUESS[device] * seconds / 2:
                    known = smaller[-1]
                    factor = step.architecture.training_operations / known.architecture.training_operations
                    speeds[step] = tuple(factor * speed for speed in speeds[known])
                elif isinstance(step.architecture, LanguageModel):
                    speeds[step] = _time_language_model(step, device, seconds)
                else:
                    speeds[step] = _time_classifiers(step, device, seconds)
            return Machine(device, *starts, speeds, _time_comparison(min(128, neurons), device, seconds))
    finally:
        torch.set_num_threads(threads)


def _time_classifiers(step: TrainingStep, device: str, seconds: float) -> tuple[float, float]:
    """Train and evaluate random networks on random inputs."""
    inputs, points = step.architecture, 100
    networks = build(step.network, inputs.in_channels, inputs.space, inputs.classes, device, step.mixed)
    count = 8 if networks.lockstep else 1
    initial = networks.initialise(np.random.default_rng(i) for i in range(count))
    initial = {name: tensor.to(device) for name, tensor in initial.items()}
    parameters = stack_parameters(networks, initial, step.batch_size)
    optimizer = Adam(parameters.values, Training())
    x = torch.randn(max(step.batch_size, points), inputs.in_channels, *inputs.space, device=device)
    y, x_channels_last = torch.randint(inputs.classes, (len(x),), device=device), channels_last(x)
    batch = torch.arange(step.batch_size, device=device).expand(count, -1)

    map_passes = recorded_on(device, networks)

    def train() -> None:
        _, gradients = batch_gradients(networks, parameters, x_channels_last, y, batch, map_passes=map_passes)
        optimizer(parameters.values, gradients, 1e-3)

    def evaluate() -> None:
        networks.evaluate(parameters.tensors, x[:points], y[:points])

    training = _seconds_per_call(train, device, seconds / 2) / (count * step.batch_size)
    return training, _seconds_per_call(evaluate, device, seconds / 2) / (count * points)


def _time_language_model(step: TrainingStep, device: str, seconds: float) -> tuple[float, float]:
    """Train a random model on random text, in a shorter window where the whole one would take too long."""
    model, columns = step.architecture, step.batch_size
    affordable = int(seconds / 4 * FIRST_GUESS[device] / (model.training_operations * columns))
    window, models, options = max(2, min(step.window, affordable)), LanguageModels(model), LanguageTraining()
    initial = models.initialise([np.random.default_rng(0)])
    parameters = StackedParameters({name: tensor.to(device) for name, tensor in initial.items()})
    optimizer, carried = Adam(parameters.values, options), models.zero_state(1, columns, device)
    text = torch.randint(model.vocabulary, (window + 1, columns), device=device)

    def train() -> None:
        _, gradients, _ = window_gradients(models, parameters, text[:-1], text[1:], carried, options)
        optimizer(parameters.values, gradients, 1e-3)

    training = _seconds_per_call(train, device, seconds) / (columns * window)
    return training, training * model.operations / model.training_operations


def _time_comparison(d: int, device: str, seconds: float) -> tuple[float, float]:
    """`Machine.comparison`, from layers with few and with many data points."""
    times = []
    for n in (4 * d, 16 * d):
        layers = [np.random.default_rng(i).normal(size=(n, d)).astype(np.float32) for i in range(6)]
        times.append(_seconds_per_call(lambda layers=layers: pairwise(layers, device=device), device, seconds / 2) / 15)
    product = max((times[1] - times[0]) / (12 * d**3), 0.0)
    return product, max(times[0] / d**3 - 4 * product, 0.0)


def _seconds_per_call(work: Callable[[], object], device: str, seconds: float) -> float:
    """Median time of a call after a first one to warm up; calls go on for about `seconds`."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or (time.perf_counter() < end and len(times) < 1000):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def _seconds_to_import(*modules: str) -> float:
    """Time that a new Python takes to start, to import what a job needs and to end, as `cli.main` does."""
    start = time.perf_counter()
    program = f"import atexit, gc, {', '.join(modules)}; atexit.register(gc.freeze)"
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - start


def wall_clock(works: pd.DataFrame, parallel: int) -> float:
    """Seconds of the whole run with so many jobs side by side: no shorter than its longest chain of jobs."""
    return max(works["seconds"].sum() / parallel, works["longest"].sum())


def parallel_jobs(device: str, cores: int | None) -> int:
    """Jobs side by side: one per core, or one per GPU."""
    return max(torch.cuda.device_count(), 1) if device == "cuda" else cores or os.cpu_count() or 1


def show(study: Study, device: str, parallel: int) -> None:
    """Print what a study computes and what that takes here.

    Args:
        study: the study.
        device: "cpu" or "cuda".
        parallel: jobs side by side.

    Raises:
        UserError: see `estimate`.
    """
    works = estimate(study, device)
    total = works.sum().to_frame("the whole run").T
    rows = pd.concat([works, total.assign(networks=0, longest=works["longest"].max(), memory=works["memory"].max())])
    columns = {
        "Jobs": rows["jobs"].map("{:.0f}".format),
        "Networks": rows["networks"].map(lambda networks: f"{networks:.0f}" if networks else ""),
        "PFLOP": (rows["operations"] / 1e15).map(_two_digits),
        "Hours": (rows["seconds"] / 3600).map(_two_digits),
        "Longest job": rows["longest"].map(duration),
        "GPU memory of a job" if device == "cuda" else "Memory of a job": rows["memory"].map(_size),
        "Disk": rows["disk"].map(_size),
    }
    print(pd.DataFrame(columns).rename_axis(index=None, columns="Rule").to_string())
    side_by_side = f"{parallel} jobs side by side" if parallel > 1 else "one job after the other"
    time_of_run = duration(wall_clock(works, parallel))
    print(f"About {time_of_run} on {hardware()}, {side_by_side}. Good within a factor of two.")
    if stopping := [result for result in study.targets if _stops_early(study.cohorts_of(result))]:
        print(f"Networks of {' and '.join(stopping)} may stop early (stop_at_loss); all their epochs are counted.")
    print(disk_use(works, study.config.keep_activations))
    if "train" in works.index:
        train = works.loc["train"]
        print(f"Training: {train['operations'] / train['seconds'] / 1e9:,.0f} GFLOP/s per job.")
    if device == "cpu":
        print("Memory is without the 0.6 GB of Python with PyTorch.")


def _stops_early(cohorts: Iterable[Cohort]) -> bool:
    """Whether networks may stop before the last epoch."""
    return any(getattr(cohort.training, "stop_at_loss", None) is not None for cohort in cohorts)


def disk_use(works: pd.DataFrame, keep_activations: bool) -> str:
    """What the study takes on the disk at its fullest and afterwards, in a sentence."""
    peak, left = works["disk"].sum(), works["disk"].drop("activations", errors="ignore").sum()
    if keep_activations:
        return f"Disk: {_size(peak)}, all of which is kept."
    return f"Disk: at most {_size(peak)} while it runs; {_size(left)} are kept, activations are not."


def _two_digits(value: float) -> str:
    """Two significant digits, in full."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}" if value >= 0.001 else "0"


def _size(count: float) -> str:
    """Bytes, in MB or GB; nothing for none."""
    return "" if not count else f"{_two_digits(count / 1e9)} GB" if count >= 1e9 else f"{_two_digits(count / 1e6)} MB"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever reads best."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
