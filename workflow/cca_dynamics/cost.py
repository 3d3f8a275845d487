"""Know the cost before paying it: what a study computes, and what that takes on this machine.

The work is counted from the config. How fast this machine is at it is measured: for a few seconds each, steps and
evaluations of the study's own networks, comparisons of layers of their sizes, and the start of a job.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from cca_dynamics.config.cohorts import Cohort, LayerRequest, RepeatsRequest
from cca_dynamics.config.models import LanguageTraining, Training
from cca_dynamics.data.corpora import size_of
from cca_dynamics.data.datasets import shape_of
from cca_dynamics.networks.architectures import Architecture, LanguageModel, Module, describe, describe_language_model
from cca_dynamics.networks.convolutional import Networks, build, channels_last
from cca_dynamics.networks.lstm import LanguageModels
from cca_dynamics.networks.user_module import measured
from cca_dynamics.results.registry import RESULTS
from cca_dynamics.runtime.threads import has_bfloat16, keep_memory
from cca_dynamics.study import Study

CALIBRATION = 20.0
"""Seconds of measuring in all."""
FIRST_GUESS = {"cpu": 5e10, "cuda": 2e13}
"""Operations a second a network trains with at least, only to skip what would take too long to measure."""
OPTIMIZER_STATE = {"sgd": 1, "adam": 2, "nt_asgd": 1}
"""Numbers that an optimiser keeps for each parameter."""


@dataclass
class Work:
    """What one rule does in a study.

    Attributes:
        rule: its name.
        jobs: how many.
        networks: networks it handles, summed over jobs.
        operations: floating-point operations of networks' forward and backward passes.
        seconds: of all jobs, one after the other.
        longest: seconds of the longest job.
        memory: bytes the largest job holds on the device.
        disk: bytes its outputs take.
    """

    rule: str
    jobs: int = 0
    networks: int = 0
    operations: float = 0.0
    seconds: float = 0.0
    longest: float = 0.0
    memory: float = 0.0
    disk: float = 0.0

    def add(self, *, networks: int = 0, operations: float = 0, seconds: float = 0, memory: float = 0, disk: float = 0):
        """One more job."""
        self.jobs += 1
        self.networks += networks
        self.operations += operations
        self.seconds += seconds
        self.longest = max(self.longest, seconds)
        self.memory = max(self.memory, memory)
        self.disk += disk


@dataclass
class Machine:
    """How fast this machine is, measured on what the study computes.

    Attributes:
        device: "cpu" or "cuda".
        start: seconds until a job computes.
        light: seconds until a job that needs no PyTorch does.
        step: (architecture, batch, mixed) → seconds of one network's training step, or None: extrapolate.
        evaluate: architecture → seconds of one network's evaluation of one data point, or None.
        token: (language model, columns, window) → seconds that one network trains on one token.
        compare: seconds of one comparison of two layers for each operation of their cross-product, and for each of the
            eigenproblem.
    """

    device: str
    start: float = 0.0
    light: float = 0.0
    step: dict = field(default_factory=dict)
    evaluate: dict = field(default_factory=dict)
    token: dict = field(default_factory=dict)
    compare: tuple[float, float] = (0.0, 0.0)

    def step_seconds(self, key: tuple[Architecture, int, bool]) -> float:
        """Of one network; beyond what could be measured, by operations from the largest that was."""
        if key in self.step:
            return self.step[key]
        known = max(self.step, key=lambda other: _step_operations(other) * (1 + (other[2] == key[2])))
        return self.step[known] * _step_operations(key) / _step_operations(known)

    def evaluation_seconds(self, architecture: Architecture) -> float:
        """Of one network and data point."""
        if architecture in self.evaluate:
            return self.evaluate[architecture]
        known = max(self.evaluate, key=lambda other: other.operations)
        return self.evaluate[known] * architecture.operations / known.operations


def estimate(study: Study, device: str, report: Callable[[str], None] = print) -> list[Work]:
    """What each rule of a study does and takes.

    Args:
        study: the study.
        device: "cpu" or "cuda", where it would run; measured here.
        report: called with one line.

    Returns:
        One `Work` per rule, in the order of the workflow.

    Raises:
        ValueError: the dataset or the corpus is a folder or a file that is not there.
    """
    names = dict.fromkeys(cohort.name for target in study.targets for cohort in study.cohorts_of(target))
    cohorts = [study.cohorts[name] for name in names]
    counts = _Counts(study, device, cohorts)
    report(f"measuring this machine ({device}), about {CALIBRATION:.0f} s ...")
    counts.machine = measure(device, *counts.to_measure())
    counts.data()
    for cohort in cohorts:
        (counts.convolutional if cohort.data == "dataset" else counts.recurrent)(cohort)
    counts.results()
    return [work for work in counts.works.values() if work.jobs]


RULES = ("dataset", "corpus", "train", "activations", "ablation", "compute", "test_claims, plot, claims")


class _Counts:
    """Adds up what the jobs of a study do, rule by rule in `works`."""

    machine: Machine

    def __init__(self, study: Study, device: str, cohorts: Sequence[Cohort]):
        self.study, self.device, self.cohorts = study, device, cohorts
        self.works = {rule: Work(rule) for rule in RULES}
        self.shape = self.text = None
        read = {cohort.data for cohort in cohorts}
        if "dataset" in read:
            sizes, self.shape, self.classes = shape_of(study.config.dataset)
            points = study.config.data_points or math.inf
            self.sizes = dict(zip(("train", "test"), sizes, strict=True))
            self.seen = {split: min(points, size) for split, size in self.sizes.items()}
            self.pixels = sum(sizes) * math.prod(self.shape)
        if "corpus" in read:
            *self.text, self.vocabulary = size_of(study.config.corpus)

    def architecture(self, cohort: Cohort) -> Architecture | LanguageModel:
        """Of the networks of a cohort."""
        if cohort.data == "corpus":
            return describe_language_model(cohort.network, self.vocabulary)
        network = describe(cohort.network, self.shape[0], self.shape[1:], self.classes)
        return measured(network) if isinstance(network, Module) else network

    def mixed(self, cohort: Cohort) -> bool:
        """Whether it trains in mixed precision here."""
        return cohort.training.precision == "mixed" and has_bfloat16(self.device)

    def to_measure(self) -> tuple[dict, list, list]:
        """Arguments of `measure`."""
        keys, models = {}, []
        for cohort in self.cohorts:
            options, network = cohort.training, self.architecture(cohort)
            if cohort.data == "corpus":
                models.append((network, options.batch_size, options.window))
            else:
                keys[network, options.batch_size, self.mixed(cohort)] = cohort.network
        comparisons = [item for target in self.study.targets for item in self.comparisons(target)]
        return keys, list(dict.fromkeys(models)), comparisons

    def members(self, cohort: Cohort) -> Iterator[int]:
        """Networks of each part of a cohort."""
        for part in self.study.parts(cohort.name):
            first, last = map(int, part.split("-"))
            yield last - first + 1

    def data(self) -> None:
        """The jobs that materialise what networks read."""
        light = self.machine.light
        if self.shape is not None:
            item = 1 if len(self.shape) == 3 else 4
            self.works["dataset"].add(
                seconds=light + self.pixels * 5e-9, disk=self.pixels * item, memory=self.pixels * 4
            )
        if self.text is not None:
            tokens = sum(self.text)
            self.works["corpus"].add(seconds=light + tokens * 1e-6, disk=tokens * 8, memory=tokens * 80)

    def convolutional(self, cohort: Cohort) -> None:
        """Training, extraction and ablation of networks that read the dataset."""
        network, options, machine = self.architecture(cohort), cohort.training, self.machine
        train_size = self.sizes["train"]
        steps = options.epochs * (train_size // options.batch_size)
        evaluated = (2 + options.epochs // options.evaluate_every) * sum(self.sizes.values())
        checkpoints = len(cohort.stored_epochs)
        mixed = self.mixed(cohort)
        step = machine.step_seconds((network, options.batch_size, mixed))
        evaluation = machine.evaluation_seconds(network)
        extracted = {
            (epoch, split): request.layers
            for request in cohort.requests
            for split in request.splits
            for epoch in _epochs(request.epochs, checkpoints)
        }
        seen = sum(self.seen[split] for _, split in extracted)
        kept = sum(
            self.seen[split] * sum(width for layer, width in network.widths.items() if _wanted(layer, layers))
            for (_, split), layers in extracted.items()
        )
        for count in self.members(cohort):
            trained = steps * options.batch_size * network.training_operations
            self.works["train"].add(
                networks=count,
                operations=count * (trained + evaluated * network.operations),
                seconds=machine.start + count * (steps * step + evaluated * evaluation),
                memory=self.pixels * 4 + training_memory(network, options, count, self.device, mixed),
                disk=checkpoints * count * network.parameters * 4,
            )
            if extracted:
                self.works["activations"].add(
                    networks=count,
                    operations=count * seen * network.operations,
                    seconds=machine.start + count * (seen * evaluation + kept * 4e-9),
                    memory=self.pixels * 4 + count * kept / len(extracted) * 4,
                    disk=count * kept * 4,
                )
            if cohort.ablation:
                masked = network.operations_after(cohort.ablation.layers[0])
                ways = cohort.ablation.orders * cohort.ablation.levels * cohort.ablation.points
                self.works["ablation"].add(
                    networks=count,
                    operations=count * ways * masked,
                    seconds=machine.start + count * ways * evaluation * masked / network.operations,
                    memory=self.pixels * 4 + 40 * 50 * network.activations * 4,
                    disk=count * cohort.ablation.orders * cohort.ablation.levels * 8,
                )

    def recurrent(self, cohort: Cohort) -> None:
        """Training and extraction of language models."""
        network, options, machine = self.architecture(cohort), cohort.training, self.machine
        token = machine.token[network, options.batch_size, options.window]
        forward = token * network.operations / network.training_operations
        train_tokens, valid_tokens = self.text
        trained, evaluated = options.epochs * train_tokens, (options.epochs + 1) * valid_tokens
        checkpoints = len(cohort.stored_epochs)
        read, kept, largest = 0, 0, 0
        for request in cohort.requests:
            times = len(_epochs(request.epochs, checkpoints))
            width = sum(width for layer, width in network.widths.items() if _wanted(layer, request.layers))
            if not isinstance(request, RepeatsRequest):
                states, tokens = request.points, request.points
            else:  # repeats, after so many starts and without
                states = (len(request.starts) + 1) * request.sequences * request.repeats
                tokens = (len(request.starts) + 1) * request.sequences * request.length
            read, kept, largest = read + times * tokens, kept + times * states * width, max(largest, states * width)
        for count in self.members(cohort):
            self.works["train"].add(
                networks=count,
                operations=count * (trained * network.training_operations + evaluated * network.operations),
                seconds=machine.start + count * (trained * token + evaluated * forward),
                memory=8 * sum(self.text) + language_memory(network, options, count),
                disk=checkpoints * count * network.parameters * 4,
            )
            self.works["activations"].add(
                networks=count,
                operations=count * read * network.operations,
                seconds=machine.start + count * (read * forward + kept * 4e-9),
                memory=2 * count * largest * 4,
                disk=count * kept * 4,
            )

    def comparisons(self, target: str) -> list[tuple[int, int, int]]:
        """(how often, data points, neurons) of the comparisons of layers that a result makes."""
        options, module = self.study.options(target), RESULTS[target]
        if hasattr(module, "comparisons"):
            return module.comparisons(options)
        measures, filters = len(getattr(options, "measures", ("pwcca",))), getattr(options, "filters", math.inf)
        shapes, groups = [], {}
        for cohort in module.cohorts(self.study.config, options):  # with the requests of this result alone
            groups.setdefault(cohort.network, []).append(cohort)
        for cohorts in groups.values():
            widths, networks = self.architecture(cohorts[0]).widths, sum(cohort.networks for cohort in cohorts)
            for request in cohorts[0].requests:
                wanted = [width for layer, width in widths.items() if _wanted(layer, request.layers)]
                epochs = len(_epochs(request.epochs, len(cohorts[0].stored_epochs)))
                if isinstance(request, LayerRequest):
                    times = measures * networks * (networks - 1) // 2 * epochs
                    sizes = [self.seen[split] for split in request.splits]
                elif isinstance(request, RepeatsRequest):  # each network with itself, at other positions
                    times = measures * networks * request.repeats * (1 + len(request.starts))
                    sizes = [request.sequences]
                else:
                    positions = request.positions
                    times = measures * networks * (epochs if positions == 1 else positions)
                    sizes = [request.points // positions]
                shapes += [(times, size, min(width, filters)) for size in sizes for width in wanted]
        return shapes

    def results(self) -> None:
        """The jobs that compute, judge and draw."""
        gemm, eigen = self.machine.compare
        light = self.works[RULES[-1]]
        for target in self.study.targets:
            own = self.comparisons(target)
            self.works["compute"].add(
                seconds=self.machine.start + sum(count * (n * d * d * gemm + d**3 * eigen) for count, n, d in own),
                memory=max((8 * n * d * 20 for _, n, d in own), default=0),
            )
            light.add(seconds=1.5 * self.machine.light)
            light.add(seconds=2 * self.machine.light)
        light.add(seconds=self.machine.light / 4)


def wall_clock(works: list[Work], parallel: int) -> float:
    """Seconds of the whole run with so many jobs side by side: no shorter than its longest chain of jobs."""
    return max(sum(work.seconds for work in works) / parallel, sum(work.longest for work in works))


def training_memory(architecture: Architecture, options: dict, networks: int, device: str, mixed: bool) -> float:
    """Bytes that training so many networks holds on the device, without the dataset and PyTorch itself: parameters,
    gradients, optimiser, and what the backward pass needs of the networks that are in one pass."""
    from cca_dynamics.training.classifiers import networks_per_pass

    lockstep = architecture.lockstep(device, mixed)
    together = networks_per_pass(networks, device, lockstep)
    parameters = networks * architecture.parameters * 4 * (3 + OPTIMIZER_STATE[options.optimizer])
    kept = 3 * architecture.activations  # convolution, batch norm with ReLU, gradient
    if lockstep:
        kept += sum(2 * math.prod(c.space) * c.inputs * c.kernel ** len(c.space) for c in architecture.convolutions)
    return parameters + together * options.batch_size * kept * (2 if mixed else 4)


def language_memory(model: LanguageModel, options: dict, networks: int) -> float:
    """The same for language models, without the text: the backward pass needs gates, cells and states of each position
    of a window, and the head's logits with their gradient."""
    parameters = networks * model.parameters * 4 * (3 + OPTIMIZER_STATE[options.optimizer])
    kept = sum(16 * units for units in model.sizes) + 3 * model.vocabulary
    return parameters + networks * options.batch_size * options.window * kept * 4


def measure(
    device: str,
    keys: dict[tuple[Architecture, int, bool], dict],
    models: Sequence[tuple[LanguageModel, int, int]],
    comparisons: Sequence[tuple[int, int, int]],
) -> Machine:
    """Time what the study computes, for `CALIBRATION` seconds in all.

    Args:
        device: "cpu" or "cuda".
        keys: (architecture, batch, mixed) → network block.
        models: (language model, columns, window).
        comparisons: (how often, data points, neurons).
    """
    machine = Machine(device, start=_job_start("torch", "pandas"), light=_job_start("pandas", "matplotlib.pyplot"))
    keep_memory()
    each = (CALIBRATION - 4) / (2 * len(keys) + 2 * len(models) + 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the jobs of the workflow
    try:
        for key in sorted(keys, key=_step_operations):
            if machine.step and _step_operations(key) / FIRST_GUESS[device] > each:
                continue
            architecture, batch, mixed = key
            networks = build(
                keys[key], architecture.in_channels, architecture.space, architecture.classes, device, mixed
            )
            machine.step[key] = _time_step(networks, batch, device, each)
            machine.evaluate[architecture] = _time_evaluation(networks, device, each)
        for model, columns, window in models:
            machine.token[model, columns, window] = _time_token(model, columns, window, device, 2 * each)
        sizes = [(n, d) for _, n, d in comparisons]
        machine.compare = _time_comparison(sizes, device, 2 * each) if sizes else (0.0, 0.0)
    finally:
        torch.set_num_threads(threads)
    return machine


def _time_step(networks: Networks, batch: int, device: str, seconds: float) -> float:
    from cca_dynamics.training.classifiers import batch_gradients, stack_parameters
    from cca_dynamics.training.optimizers import Adam

    count = 8 if networks.lockstep else 1
    data = channels_last(torch.randn(batch, networks.architecture.in_channels, *networks.architecture.space))
    labels = torch.randint(networks.architecture.classes, (batch,)).to(device)
    data, order = data.to(device), torch.arange(batch, device=device).expand(count, batch)
    stacked = networks.initialise(np.random.default_rng(i) for i in range(count))
    parameters = stack_parameters(networks, {name: tensor.to(device) for name, tensor in stacked.items()})
    optimizer = Adam(parameters.values, Training())
    rates = torch.full((count, 1), 1e-3, device=device)

    def step() -> None:
        _, gradients = batch_gradients(networks, parameters, data, labels, order)
        optimizer(parameters.values, gradients, rates)

    return _repeated(step, device, seconds) / count


def _time_evaluation(networks: Networks, device: str, seconds: float) -> float:
    points = 100
    data = torch.randn(points, networks.architecture.in_channels, *networks.architecture.space).to(device)
    count = 8 if networks.lockstep else 1
    stacked = networks.initialise(np.random.default_rng(i) for i in range(count))
    state = {name: tensor.to(device) for name, tensor in stacked.items()}
    labels = torch.zeros(points, dtype=torch.long, device=device)
    return _repeated(lambda: networks.evaluate(state, data, labels), device, seconds) / (points * count)


def _time_token(model: LanguageModel, columns: int, window: int, device: str, seconds: float) -> float:
    """Of one network, on a window that is shortened where a whole one would take too long."""
    from cca_dynamics.training.language_models import window_gradients
    from cca_dynamics.training.optimizers import Adam
    from cca_dynamics.training.parameters import StackedParameters

    affordable = int(seconds / 4 * FIRST_GUESS[device] / (model.training_operations * columns))
    positions, count = max(2, min(window, affordable)), 4 if affordable > 4 * window else 1
    networks = LanguageModels(model)
    stacked = networks.initialise(np.random.default_rng(i) for i in range(count))
    parameters = StackedParameters({name: tensor.to(device) for name, tensor in stacked.items()})
    options = LanguageTraining()
    optimizer = Adam(parameters.values, options)
    text = torch.randint(model.vocabulary, (positions + 1, columns)).to(device)
    carried, rate = networks.zero_state(count, columns, device), torch.tensor(1e-3, device=device)

    def step() -> None:
        _, gradients, _ = window_gradients(networks, parameters, text[:-1], text[1:], carried, options)
        optimizer(parameters.values, gradients, rate)

    return _repeated(step, device, seconds) / (count * columns * positions)


def _time_comparison(sizes: list[tuple[int, int]], device: str, seconds: float) -> tuple[float, float]:
    """Seconds for each n·d² and each d³ of a comparison, from a wide and from a narrow shape."""
    from cca_dynamics.similarity import pairwise

    d = min(128, max(d for _, d in sizes))
    found = []
    for n in (4 * d, 16 * d):
        layers = [np.random.default_rng(i).normal(size=(n, d)).astype(np.float32) for i in range(6)]
        found.append(_repeated(lambda layers=layers: pairwise(layers, device=device), device, seconds / 2) / 15)
    slope = max((found[1] - found[0]) / (12 * d**3), 0.0)
    return slope, max(found[0] / d**3 - 4 * slope, 0.0)


def _repeated(work: Callable[[], object], device: str, seconds: float) -> float:
    """Median seconds of a call, after one to warm up, for about so long."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 2 or (time.perf_counter() - begin < seconds and len(times) < 1000):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        if len(times) == 2 and times[1] > seconds:
            break
    return float(np.median(times[1:]))


def _job_start(*modules: str) -> float:
    """Seconds that a fresh Python takes to import what a job does."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {', '.join(modules)}"], check=True)
    return time.perf_counter() - start


def _step_operations(key: tuple[Architecture, int, bool]) -> float:
    architecture, batch, _ = key
    return architecture.training_operations * batch


def _wanted(layer: str, layers: str | list[str]) -> bool:
    return layers == "all" or layer in layers


def _epochs(epochs: str | list[float], checkpoints: int) -> range:
    return range({"all": checkpoints, "final": 1}.get(epochs, 0) if isinstance(epochs, str) else len(epochs))


def show(study: Study, device: str, parallel: int) -> None:
    """Print what a study computes and what it takes here.

    Args:
        study: the study.
        device: "cpu" or "cuda".
        parallel: jobs side by side.

    Raises:
        ValueError: the dataset or the corpus is a folder or a file that is not there.
    """
    from rich.console import Console
    from rich.table import Table

    from cca_dynamics.runtime.machine import hardware

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False)
    works = estimate(study, device, console.print)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Rule", no_wrap=True)
    memory = "GPU memory" if device == "cuda" else "Memory"
    for name in ("Jobs", "Networks", "PFLOP", "Hours", "Longest job", f"{memory} of a job", "Disk"):
        table.add_column(name, justify="right")
    for work in works:
        table.add_row(
            work.rule,
            f"{work.jobs}",
            f"{work.networks or ''}",
            _figures(work.operations / 1e15),
            _figures(work.seconds / 3600),
            duration(work.longest),
            _size(work.memory),
            _size(work.disk),
        )
    total = Work("the whole run")
    seconds, operations = (sum(getattr(work, name) for work in works) for name in ("seconds", "operations"))
    table.add_section()
    table.add_row(
        total.rule,
        f"{sum(work.jobs for work in works)}",
        "",
        _figures(operations / 1e15),
        _figures(seconds / 3600),
        "",
        _size(max(work.memory for work in works)),
        _size(sum(work.disk for work in works)),
    )
    console.print(table)
    side = f"{parallel} jobs side by side" if parallel > 1 else "one job after the other"
    console.print(
        f"About {duration(wall_clock(works, parallel))} on {hardware()}, {side}. Good within a factor of two."
    )
    console.print(disk_use(works, study.config.keep_activations))
    trained = next((work for work in works if work.rule == "train"), None)
    if trained:
        console.print(f"Training: {trained.operations / trained.seconds / 1e9:,.0f} GFLOP/s a job.")
    if device == "cpu":
        console.print("Memory is without the 0.6 GB of Python with PyTorch.")


def disk_use(works: Sequence[Work], keep_activations: bool) -> str:
    """What the study takes on the disk at its fullest and afterwards, in a sentence."""
    peak = sum(work.disk for work in works)
    if keep_activations:
        return f"Disk: {_size(peak)}, all of which is kept."
    left = sum(work.disk for work in works if work.rule != "activations")
    return f"Disk: at most {_size(peak)} while it runs; {_size(left)} are kept, activations are not."


def _figures(value: float) -> str:
    """Two significant digits, in full."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}" if value >= 0.001 else "0"


def _size(count: float) -> str:
    """Bytes, in MB or GB."""
    return "" if not count else f"{_figures(count / 1e9)} GB" if count >= 1e9 else f"{_figures(count / 1e6)} MB"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever reads best."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"


def parallel_jobs(device: str, cores: int | None) -> int:
    """Jobs side by side: one a core, or one a GPU."""
    return max(torch.cuda.device_count(), 1) if device == "cuda" else cores or os.cpu_count() or 1
