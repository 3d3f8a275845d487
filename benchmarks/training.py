"""How fast does a cohort train, and what is the limit?

Side by side on all cores, the sweep's networks and recipe, in turns:

- lockstep: `cca_dynamics.training`, a process of one thread per core, each with its part of the cohort, as the workflow
  runs it;
- loop: a torch.nn.Module and a torch.optim.SGD per network, one network after the other, own data order each, in one
  process with a thread per core, as one would write it;
- loops: the same loop in a process of one thread per core;
- bound: nothing but the matrix products of forward and backward, in a process of one thread per core.

    python benchmarks/training.py                 at the widths of the default study, about 2 minutes on 2 cores
    python benchmarks/training.py --dimensions 2  on images of 32 × 32
    python benchmarks/training.py --device cuda --networks 40

Results go to benchmarks/out/.
"""

from __future__ import annotations

import argparse
import statistics
import time
from math import prod
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cca_dynamics import training
from cca_dynamics.networks import build, channels_last
from cca_dynamics.reference import hardware
from cca_dynamics.workers import keep_memory
from torch import multiprocessing, nn

OUT = Path(__file__).parent / "out"
RATE, MOMENTUM, BATCH = 0.1, 0.9, 128


def plain(network) -> nn.Module:
    """The same architecture as a torch.nn.Module."""
    flat = len(network.architecture.space) == 1
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if flat else (nn.Conv2d, nn.BatchNorm2d)
    layers, incoming = [], network.architecture.in_channels
    for outgoing, stride in zip(network.architecture.channels, network.architecture.strides, strict=True):
        layers.append(
            conv(incoming, outgoing, network.architecture.kernel, stride, network.architecture.kernel // 2, bias=False)
        )
        layers += [norm(outgoing), nn.ReLU()]
        incoming = outgoing
    pool = nn.AdaptiveAvgPool1d(1) if flat else nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(incoming, network.architecture.classes))


class Loop:
    """One step of every network, one after the other."""

    def __init__(self, network, count: int, device: str):
        self.models = [plain(network).to(device) for _ in range(count)]
        self.optimizers = [torch.optim.SGD(model.parameters(), RATE, MOMENTUM) for model in self.models]

    def step(self, x, y, order) -> None:
        for model, optimizer, chosen in zip(self.models, self.optimizers, order, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()


class Lockstep:
    """One step of every network, by the code of the workflow."""

    def __init__(self, network, count: int, device: str):
        stacked = network.initialise(np.random.default_rng(i) for i in range(count))
        tensors = {name: tensor.to(device) for name, tensor in stacked.items()}
        self.network, self.state = network, training._Parameters(tensors, network)
        self.update = training.sgd(self.state.values, {"momentum": MOMENTUM})
        self.rates = torch.full((count, 1), RATE, device=device)

    def step(self, x, y, order) -> None:
        _, gradients = self.state.gradients(self.network, x, y, order)
        self.update(self.state.values, gradients, self.rates)


class Products:
    """The matrix products of one network's step: forward, to the inputs, to the weights."""

    def __init__(self, network, count: int, device: str):
        self.count, self.shapes, space, incoming = (
            count,
            [],
            network.architecture.space,
            network.architecture.in_channels,
        )
        for i, (outgoing, stride) in enumerate(
            zip(network.architecture.channels, network.architecture.strides, strict=True)
        ):
            space = tuple((size - 1) // stride + 1 for size in space)
            rows, inner = BATCH * prod(space), incoming * network.architecture.kernel ** len(space)
            self.shapes.append((rows, inner, outgoing, i > 0))
            incoming = outgoing
        self.tensors = [
            tuple(torch.randn(*shape, device=device) for shape in ((m, k), (k, n), (m, n)))
            for m, k, n, _ in self.shapes
        ]
        self.flops = sum(2 * m * k * n * (3 if inputs else 2) for m, k, n, inputs in self.shapes)

    def step(self, x, y, order) -> None:
        for _ in range(self.count):
            for (columns, matrix, grad), (*_, inputs) in zip(self.tensors, self.shapes, strict=True):
                columns @ matrix
                columns.T @ grad
                if inputs:
                    grad @ matrix.T


STEPPERS = {"lockstep": Lockstep, "loop": Loop, "loops": Loop, "bound": Products}


def architecture(width: int, dimensions: int):
    """The default study's network at a width, on signals of length 40 or images of 32 × 32."""
    blocks = {
        "name": "convnet",
        "channels": [width, width, 2 * width, 2 * width, 4 * width],
        "strides": [1, 2, 1, 2, 1],
    }
    return build(blocks, 1 if dimensions == 1 else 3, (40,) if dimensions == 1 else (32, 32), 10)


def work(name: str, width: int, dimensions: int, count: int, threads: int, device: str, start, end) -> None:
    """A process: one step of its networks each time the parent says so."""
    torch.set_num_threads(threads)
    keep_memory()
    network = architecture(width, dimensions)
    size = 4000 if dimensions == 1 else 1000
    x, y = (
        torch.randn(size, network.architecture.in_channels, *network.architecture.space).to(device),
        torch.randint(10, (size,)).to(device),
    )
    x = channels_last(x) if name == "lockstep" else x
    order = torch.stack([torch.randperm(size)[:BATCH] for _ in range(count)]).to(device)
    stepper = STEPPERS[name](network, count, device)
    while True:
        start.wait()
        stepper.step(x, y, order)
        if device == "cuda":
            torch.cuda.synchronize()
        end.wait()


def compare(width: int, dimensions: int, count: int, cores: int, device: str, rounds: int) -> dict:
    """Median milliseconds a network and step of each way, in turns."""
    context = multiprocessing.get_context("spawn")
    groups, everyone = {}, []
    for name in STEPPERS:
        processes = 1 if name == "loop" else cores
        start, end = context.Barrier(processes + 1), context.Barrier(processes + 1)
        arguments = (name, width, dimensions, count // processes, cores // processes, device, start, end)
        members = [context.Process(target=work, args=arguments, daemon=True) for _ in range(processes)]
        groups[name] = (start, end, count // processes * processes)
        everyone += members
        for member in members:
            member.start()
    seconds: dict[str, list[float]] = {name: [] for name in groups}
    for turn in range(rounds + 2):
        for name, (start, end, networks) in groups.items():
            start.wait()
            begin = time.perf_counter()
            end.wait()
            if turn > 1:  # the first ones warm up
                seconds[name].append((time.perf_counter() - begin) / networks)
    for member in everyone:
        member.kill()
    row = {"width": width, "networks": count, "dimensions": dimensions}
    row |= {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    for name in ("loop", "loops"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["lockstep"], strict=True)]
        row[f"{name} / lockstep"] = statistics.median(ratios)
    row["lockstep / bound"] = row["lockstep"] / row["bound"]
    row["GFLOP/s"] = Products(architecture(width, dimensions), 1, "cpu").flops / row["lockstep"] / 1e6
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--networks", type=int, default=100)
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--dimensions", type=int, choices=[1, 2], default=1)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    cores = 1 if chosen.device == "cuda" else torch.get_num_threads()
    OUT.mkdir(exist_ok=True)
    name = torch.cuda.get_device_name() if chosen.device == "cuda" else hardware()
    print(
        f"{name}, PyTorch {torch.__version__}, {time.strftime('%Y-%m-%d')}; ms a network and step of {BATCH} examples\n"
    )
    rows = []
    for width in chosen.widths:
        rows.append(compare(width, chosen.dimensions, chosen.networks, cores, chosen.device, chosen.rounds))
        cells = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in rows[-1].values()]
        if width == chosen.widths[0]:
            print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(cells))
        print("| " + " | ".join(cells) + " |", flush=True)
    pd.DataFrame(rows).to_csv(OUT / f"training-{chosen.device}-{chosen.dimensions}d.csv", index=False)


if __name__ == "__main__":
    main()
