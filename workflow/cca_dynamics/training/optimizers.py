"""Optimisers, which update all networks of a cohort at once, and schedules of the learning rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cca_dynamics.config.models import LanguageTraining, Training


class Optimizer:
    """Updates the parameters of N networks as PyTorch's optimiser of that name would update each.

    Args:
        values: (N, parameters).
        options: how the networks are trained.

    Attributes:
        tensors: what the optimiser remembers from step to step, changed in place.
    """

    tensors: dict[str, Tensor]

    def __init__(self, values: Tensor, options: Training | LanguageTraining):
        raise NotImplementedError

    def __call__(self, values: Tensor, gradients: Tensor, rates: Tensor) -> None:
        """Do one step of every network, in place.

        Args:
            values, gradients: (N, parameters); the gradients may be changed.
            rates: learning rates, (N, 1) or one number; a network whose rate is 0 stays as it is.
        """
        raise NotImplementedError

    def values_to_evaluate(self, values: Tensor) -> Tensor:
        """The parameters by which networks are evaluated, and which are stored: those that are trained, or averages."""
        return values

    def after_validation(self, losses: Tensor) -> None:
        """Take note of the networks' losses on held-out data (N,), after each epoch."""


class SGD(Optimizer):
    """Stochastic gradient descent with momentum and weight decay, as torch.optim.SGD."""

    def __init__(self, values: Tensor, options: Training | LanguageTraining):
        self.momentum, self.weight_decay = options.momentum, options.weight_decay
        self.tensors = {"velocity": torch.zeros_like(values)}

    def __call__(self, values: Tensor, gradients: Tensor, rates: Tensor) -> None:
        """See `Optimizer`."""
        velocity = self.tensors["velocity"]
        if self.weight_decay:
            gradients.add_(values, alpha=self.weight_decay)
        velocity.mul_(self.momentum).add_(gradients)
        values.addcmul_(velocity, rates, value=-1)


class Adam(Optimizer):
    """Adam with β = (0.9, 0.999), ε = 1e-8 and weight decay, as torch.optim.Adam."""

    def __init__(self, values: Tensor, options: Training | LanguageTraining):
        self.weight_decay = options.weight_decay
        moments = {name: torch.zeros_like(values) for name in ("first_moment", "second_moment")}
        self.tensors = {**moments, "updates": torch.zeros((), dtype=torch.int64)}

    def __call__(self, values: Tensor, gradients: Tensor, rates: Tensor) -> None:
        """See `Optimizer`."""
        first, second, updates = self.tensors.values()
        updates += 1
        if self.weight_decay:
            gradients.add_(values, alpha=self.weight_decay)
        first.lerp_(gradients, 0.1)
        second.mul_(0.999).addcmul_(gradients, gradients, value=0.001)
        scale = (second / (1 - 0.999 ** updates.item())).sqrt_().add_(1e-8)
        values.addcdiv_(first * rates, scale, value=-1 / (1 - 0.9 ** updates.item()))


OPTIMIZERS = {"sgd": SGD, "adam": Adam}
"""Adding an optimiser: one class as above, and one line here."""


class NonMonotonicAveraging(Optimizer):
    """Stochastic gradient descent that averages a network's weights once its validation loss no longer falls.

    Source: NT-ASGD, Merity, Keskar & Socher 2017, algorithm 1, with one check per epoch.
    """

    def __init__(self, values: Tensor, options: LanguageTraining):
        self.weight_decay = options.weight_decay
        self.averages = values.detach().clone()
        self.averaged_steps = torch.zeros(len(values), 1, device=values.device)  # 0: the average has not begun
        # The best loss of all epochs but the last `patience` ones, then those.
        self.losses = torch.full((options.patience + 1, len(values)), math.inf, device=values.device)
        self.tensors = {"averages": self.averages, "averaged_steps": self.averaged_steps, "losses": self.losses}

    def __call__(self, values: Tensor, gradients: Tensor, rates: Tensor) -> None:
        """See `Optimizer`."""
        if self.weight_decay:
            gradients.add_(values, alpha=self.weight_decay)
        values.data.add_(-rates * gradients)
        self.averaged_steps += self.averaged_steps > 0
        share = torch.where(self.averaged_steps > 0, 1 / self.averaged_steps.clamp(min=1), 1.0)
        self.averages.lerp_(values.detach(), share.expand_as(values))

    def values_to_evaluate(self, values: Tensor) -> Tensor:
        """The averages; until a network's average begins they are its parameters."""
        return self.averages

    def after_validation(self, losses: Tensor) -> None:
        """Begin to average the networks whose loss exceeds the best one of all but the last `patience` epochs."""
        best, *recent = self.losses
        self.averaged_steps[(losses > best) & (self.averaged_steps[:, 0] == 0)] = 1
        self.losses.copy_(torch.stack([torch.minimum(best, recent[0]), *recent[1:], losses]))


AVERAGING = {"nt_asgd": NonMonotonicAveraging}
"""Optimisers of language models alone, which need a validation loss after each epoch."""


def constant(done: float) -> float:
    """The learning rate stays as it is."""
    return 1.0


def linear(done: float) -> float:
    """The learning rate falls to zero along a straight line."""
    return 1 - done


def cosine(done: float) -> float:
    """The learning rate falls to zero along half a cosine (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * done))


SCHEDULES = {"constant": constant, "linear": linear, "cosine": cosine}
"""Share of the steps that are done → share of the learning rate. Adding a schedule: its function, and one line here."""
