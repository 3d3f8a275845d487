"""How many tokens a second do language models train on, and what is the limit?

Side by side on all cores, in turns, one window for every network of a cohort (forward, backward, clipping, Adam):

- ours: `cca_dynamics.training.language_models`, a process of one thread per core, each with its part of the cohort, as
  the workflow runs it;
- loop: a model of torch.nn.LSTM layers and a torch.optim.Adam per network, one network after the other, in one process
  with a thread per core, as one would write it;
- loops: the same loop in a process of one thread per core;
- bound: nothing but the matrix products of forward and backward, in a process of one thread per core.

    python benchmarks/language.py                 the default study's models and those of studies/wikitext2.yaml
    python benchmarks/language.py --device cuda   and those of awd-lstm-lm

Results go to benchmarks/out/.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cca_dynamics.config.models import LanguageTraining
from cca_dynamics.networks.architectures import LanguageModel
from cca_dynamics.networks.lstm import LanguageModels
from cca_dynamics.runtime.machine import hardware
from cca_dynamics.training.language_models import window_gradients
from cca_dynamics.training.optimizers import Adam
from cca_dynamics.training.parameters import StackedParameters
from torch import nn
from turns import Way, in_turns, print_row

OUT = Path(__file__).parent / "out"
RATE, CLIP = 0.002, 1.0
MODELS = {  # model, columns, window, networks
    "3 × 64, characters": (LanguageModel(100, 32, (64, 64, 64)), 32, 64, 4),
    "5 × 64, characters": (LanguageModel(100, 32, (64,) * 5), 32, 64, 4),
    "3 × 128, 4,000 words": (LanguageModel(4000, 128, (128, 128, 128), True), 20, 35, 4),
    "3 × 1150, 10,000 words": (LanguageModel(10_000, 400, (1150, 1150, 400), True), 20, 70, 1),
}


class Plain(nn.Module):
    """The same model as one would write it."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.embedding = nn.Embedding(model.vocabulary, model.embedding)
        inputs = (model.embedding, *model.sizes)
        self.layers = nn.ModuleList(nn.LSTM(a, b) for a, b in zip(inputs, model.sizes, strict=False))
        self.head = nn.Linear(model.sizes[-1], model.vocabulary)
        if model.tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens, carried):
        x, after = self.embedding(tokens), []
        for layer, state in zip(self.layers, carried, strict=True):
            x, state = layer(x, state)
            after.append(tuple(part.detach() for part in state))
        return self.head(x), after


class Loop:
    """One window of every network, one after the other."""

    def __init__(self, model: LanguageModel, columns: int, count: int, device: str):
        self.models = [Plain(model).to(device) for _ in range(count)]
        self.optimizers = [torch.optim.Adam(each.parameters(), RATE) for each in self.models]
        zero = [tuple(torch.zeros(1, columns, units, device=device) for _ in range(2)) for units in model.sizes]
        self.carried = [zero] * count

    def step(self, text) -> None:
        for i, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
            optimizer.zero_grad()
            logits, self.carried[i] = model(text[:-1], self.carried[i])
            nn.functional.cross_entropy(logits.flatten(0, 1), text[1:].flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()


class Ours:
    """One window of every network, by the code of the workflow."""

    def __init__(self, model: LanguageModel, columns: int, count: int, device: str):
        self.networks = LanguageModels(model)
        stacked = self.networks.initialise(np.random.default_rng(i) for i in range(count))
        self.parameters = StackedParameters({name: tensor.to(device) for name, tensor in stacked.items()})
        self.options = LanguageTraining()
        self.optimizer = Adam(self.parameters.values, self.options)
        self.carried = self.networks.zero_state(count, columns, device)
        self.rate = torch.tensor(RATE, device=device)

    def step(self, text) -> None:
        _, gradients, self.carried = window_gradients(
            self.networks, self.parameters, text[:-1], text[1:], self.carried, self.options
        )
        gradients.mul_((CLIP / (gradients.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1))
        self.optimizer(self.parameters.values, gradients, self.rate)


class Products:
    """The matrix products of one window: of a layer's inputs and of the head at once, the recurrent ones in turn."""

    def __init__(self, model: LanguageModel, columns: int, count: int, device: str):
        def random(*shape):
            return torch.randn(*shape, device=device)

        self.count, self.columns, self.device = count, columns, device
        inputs = (model.embedding, *model.sizes)
        self.whole = [(random(4 * b, a), a, 4 * b) for a, b in zip(inputs, model.sizes, strict=False)]
        self.whole.append((random(model.vocabulary, model.sizes[-1]), model.sizes[-1], model.vocabulary))
        self.turns = [(random(4 * units, units), units) for units in model.sizes]

    def step(self, text) -> None:
        positions = len(text) - 1
        rows = positions * self.columns
        if not hasattr(self, "tensors"):
            self.tensors = [[torch.randn(rows, size, device=self.device) for size in sizes] for _, *sizes in self.whole]
            self.states = [torch.randn(rows, units, device=self.device) for _, units in self.turns]
        for _ in range(self.count):
            for (matrix, *_), (x, grad) in zip(self.whole, self.tensors, strict=True):
                x @ matrix.T
                grad @ matrix
                grad.T @ x
            for (matrix, _), h, (_, grad) in zip(self.turns, self.states, self.tensors, strict=False):
                for t in range(positions):
                    part = slice(t * self.columns, (t + 1) * self.columns)
                    h[part] @ matrix.T
                    grad[part] @ matrix
                grad.T @ h


STEPPERS = {"ours": Ours, "loop": Loop, "loops": Loop, "bound": Products}


def make(name: str, model: LanguageModel, columns: int, window: int, count: int, device: str):
    """The function that does one window of so many networks."""
    text = torch.randint(model.vocabulary, (window + 1, columns)).to(device)
    return partial(STEPPERS[name](model, columns, count, device).step, text)


def compare(name: str, cores: int, device: str, rounds: int) -> dict:
    """Thousands of tokens a second, summed over networks, of each way, medians of turns."""
    model, columns, window, count = MODELS[name]
    cores = min(cores, count)
    ways = {}
    for way in STEPPERS:
        processes = 1 if way == "loop" else cores
        ways[way] = Way(
            processes, cores // processes, partial(make, way, model, columns, window, count // processes, device)
        )
    seconds = in_turns(ways, device, rounds)
    tokens = columns * window * count
    row = {"model": name, "networks": count}
    row |= {f"{way}, k tokens/s": tokens / statistics.median(times) / 1e3 for way, times in seconds.items()}
    for way in ("loop", "loops", "bound"):
        ratios = [a / b for a, b in zip(seconds[way], seconds["ours"], strict=True)]
        row[f"ours / {way}"] = statistics.median(ratios)
    for way in ("ours", "bound"):
        row[f"GFLOP/s {way}"] = tokens * model.training_operations / statistics.median(seconds[way]) / 1e9
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="+", choices=list(MODELS))
    chosen = parser.parse_args()
    cores = 1 if chosen.device == "cuda" else torch.get_num_threads()
    OUT.mkdir(exist_ok=True)
    name = torch.cuda.get_device_name() if chosen.device == "cuda" else hardware()
    print(f"{name}, PyTorch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    rows = []
    for model in chosen.models or list(MODELS)[: None if chosen.device == "cuda" else 3]:
        rows.append(compare(model, cores, chosen.device, chosen.rounds))
        print_row(rows[-1], first=len(rows) == 1)
    pd.DataFrame(rows).to_csv(OUT / f"language-{chosen.device}.csv", index=False)


if __name__ == "__main__":
    main()
