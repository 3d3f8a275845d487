"""How fast does a cohort train, and what is the limit?

Side by side on all cores, the sweep's networks and recipe, in turns:

- lockstep: `cca_dynamics.training.classifiers`, a process of one thread per core, each with its part of the cohort, as
  the workflow runs it;
- loop: a torch.nn.Module and a torch.optim.SGD per network, one network after the other, own data order each, in one
  process with a thread per core, as one would write it;
- loops: the same loop in a process of one thread per core;
- bound: nothing but the matrix products of forward and backward, by NumPy, as lockstep computes them, in a process of
  one thread per core.

    python benchmarks/training.py                 at the widths of the default study, about 2 minutes on 2 cores
    python benchmarks/training.py --paper         the paper's 11 layers on images, at a quarter and half of their width,
                                                  about 1 minute; there networks are computed one after the other:
                                                  float32 and mixed precision, plain loops, and as the bound bare
                                                  convolutions of PyTorch, forward and backward
    python benchmarks/training.py --device cuda --networks 40
    python benchmarks/training.py --device cuda --paper --networks 5 --multipliers .25 1

Results go to benchmarks/out/.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cca_dynamics.config.models import ConvNetOptions, Training
from cca_dynamics.networks.convolutional import build, channels_last
from cca_dynamics.runtime.machine import hardware
from cca_dynamics.training.classifiers import batch_gradients, stack_parameters
from cca_dynamics.training.cuda_graphs import recorded_on
from cca_dynamics.training.optimizers import SGD
from torch import nn
from turns import Way, in_turns, print_row

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
        self.network, self.parameters = network, stack_parameters(network, tensors, BATCH)
        self.optimizer = SGD(self.parameters.values, Training(momentum=MOMENTUM))
        self.rates, self.map_passes = torch.full((count, 1), RATE, device=device), recorded_on(device, network)

    def step(self, x, y, order) -> None:
        how = {"map_passes": self.map_passes}
        _, gradients = batch_gradients(self.network, self.parameters, x, y, order, **how)
        self.optimizer(self.parameters.values, gradients, self.rates)


class Mixed(Lockstep):
    """The same with convolutions in bfloat16."""

    def __init__(self, network, count: int, device: str):
        network.mixed, network.lockstep = True, False
        super().__init__(network, count, device)


class MixedUnrecorded(Mixed):
    """The same without CUDA graphs: Python starts every operation of every network."""

    def __init__(self, network, count: int, device: str):
        super().__init__(network, count, device)
        self.map_passes = map


class Convolutions:
    """PyTorch's convolutions of one network's step in float32: forward, to the inputs, to the weights."""

    def __init__(self, network, count: int, device: str):
        self.count, self.layers = count, []
        for i, c in enumerate(network.architecture.convolutions):
            space = network.architecture.space if not i else network.architecture.convolutions[i - 1].space
            x, w, g = (
                torch.randn(s, device=device)
                for s in ((PAPER_BATCH, c.inputs, *space), c.shape, (PAPER_BATCH, c.outputs, *c.space))
            )
            x, w, g = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, w, g))
            self.layers.append((x, w, g, c.stride, i > 0))

    def step(self, x, y, order) -> None:
        for _ in range(self.count):
            for inputs, weight, grad, stride, wanted in self.layers:
                nn.functional.conv2d(inputs, weight, None, stride, 1)
                torch.ops.aten.convolution_backward(
                    grad, inputs, weight, None, [stride] * 2, [1] * 2, [1] * 2, False, [0] * 2, 1, [wanted, True, False]
                )


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
            tuple(torch.randn(*shape, device=device) for shape in ((m, k), (k, n), (m, n), (n, k)))
            for m, k, n, _ in self.shapes
        ]
        if device == "cpu":
            self.tensors = [tuple(tensor.numpy() for tensor in tensors) for tensors in self.tensors]
        self.flops = sum(2 * m * k * n * (3 if inputs else 2) for m, k, n, inputs in self.shapes)

    def step(self, x, y, order) -> None:
        for _ in range(self.count):
            for (columns, matrix, grad, transposed), (*_, inputs) in zip(self.tensors, self.shapes, strict=True):
                columns @ matrix
                columns.T @ grad
                if inputs:
                    grad @ transposed


STEPPERS = {"lockstep": Lockstep, "loop": Loop, "loops": Loop, "bound": Products}
PAPER_STEPPERS = {"float32": Lockstep, "mixed": Mixed, "loop": Loop, "loops": Loop, "bound": Convolutions}
PAPER_STEPPERS_ON_GPU = {**PAPER_STEPPERS, "mixed unrecorded": MixedUnrecorded}
PAPER_BATCH = 64
PAPER = ConvNetOptions(
    channels=(64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512), strides=(1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1)
)


def architecture(width: float, paper: bool):
    """The default study's network at a width, on signals of length 40; or the paper's at a multiplier, on images."""
    if paper:
        return build(PAPER.widened(width), 3, (32, 32), 10)
    channels = (width, width, 2 * width, 2 * width, 4 * width)
    return build(ConvNetOptions(channels=channels, strides=(1, 2, 1, 2, 1)), 1, (40,), 10)


def make(name: str, width: float, paper: bool, count: int, device: str):
    """The function that does one step of so many networks."""
    network = architecture(width, paper)
    size, batch = (1000, PAPER_BATCH) if paper else (4000, BATCH)
    x, y = (
        torch.randn(size, network.architecture.in_channels, *network.architecture.space).to(device),
        torch.randint(10, (size,)).to(device),
    )
    kind = (PAPER_STEPPERS_ON_GPU if paper else STEPPERS)[name]
    x = channels_last(x) if issubclass(kind, Lockstep) else x
    order = torch.stack([torch.randperm(size)[:batch] for _ in range(count)]).to(device)
    return partial(kind(network, count, device).step, x, y, order)


def compare(width: float, paper: bool, count: int, cores: int, device: str, rounds: int) -> dict:
    """Median milliseconds a network and step of each way, in turns."""
    ways = {}
    paper_steppers = PAPER_STEPPERS_ON_GPU if device == "cuda" else PAPER_STEPPERS
    for name in paper_steppers if paper else STEPPERS:
        processes = 1 if name == "loop" else cores
        each = partial(make, name, width, paper, count // processes, device)
        ways[name] = Way(processes, cores // processes, each)
    whole = {name: count // way.processes * way.processes for name, way in ways.items()}
    seconds = {name: np.array(times) / whole[name] for name, times in in_turns(ways, device, rounds).items()}
    ours = "float32" if paper else "lockstep"
    row = {"width": width, "networks": count} | {name: 1e3 * statistics.median(v) for name, v in seconds.items()}
    for name in seconds:
        if name in ("loop", "loops"):
            ratios = [a / b for a, b in zip(seconds[name], seconds[ours], strict=True)]
            row[f"{name} / {ours}"] = statistics.median(ratios)
    row[f"{ours} / bound"] = row[ours] / row["bound"]
    operations = architecture(width, paper).architecture.training_operations * (PAPER_BATCH if paper else BATCH)
    row |= {f"GFLOP/s {name}": operations / row[name] / 1e6 for name in seconds if not name.startswith("loop")}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--networks", type=int, help="default: 100, and 2 with --paper")
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--paper", action="store_true", help="the paper's network on images")
    parser.add_argument("--multipliers", type=float, nargs="+", default=[0.25, 0.5], help="of its width")
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    cores = 1 if chosen.device == "cuda" else torch.get_num_threads()
    OUT.mkdir(exist_ok=True)
    name = torch.cuda.get_device_name() if chosen.device == "cuda" else hardware()
    batch = PAPER_BATCH if chosen.paper else BATCH
    print(
        f"{name}, PyTorch {torch.__version__}, {time.strftime('%Y-%m-%d')}; ms a network and step of {batch} examples\n"
    )
    rows, count = [], chosen.networks or (2 if chosen.paper else 100)
    for width in chosen.multipliers if chosen.paper else chosen.widths:
        rows.append(compare(width, chosen.paper, count, cores, chosen.device, chosen.rounds))
        print_row(rows[-1], first=len(rows) == 1)
    kind = "-paper" if chosen.paper else ""
    pd.DataFrame(rows).to_csv(OUT / f"training{kind}-{chosen.device}.csv", index=False)


if __name__ == "__main__":
    main()
