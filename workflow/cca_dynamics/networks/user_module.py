"""A user's own torch.nn.Module: from `network.module` in the config to a module that can be trained and compared.

Whatever is wrong with it is said in one line before anything is trained, with the line of the user's file where it went
wrong.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cca_dynamics.errors import ConfigError, UserError, as_user_error
from cca_dynamics.networks.architectures import Module
from cca_dynamics.networks.hooks import forward_hooks, import_module
from cca_dynamics.runtime.fingerprints import module_fingerprint

KEY = "network.module"
BATCH = 2
"""Blank inputs that a module is tried on; batch norm needs two."""


class MeasuredModule(Module):
    """A user's module that can be asked what it costs; the module is made and run for that.

    Raises:
        ConfigError: on the first question, see `factory` and `check`.
    """

    @cached_property
    def _counts(self) -> tuple[int, int, int, int]:
        return count(self)

    @property
    def parameters(self) -> int:
        """Numbers that one network holds."""
        return self._counts[0]

    @property
    def operations(self) -> int:
        """Floating-point operations of one example's forward pass."""
        return self._counts[1]

    @property
    def training_operations(self) -> int:
        """Operations of one example's forward and backward pass."""
        return self._counts[2]

    @property
    def activations(self) -> int:
        """Numbers that the submodules with weight matrices or filters return for one example."""
        return self._counts[3]

    def operations_after(self, layer: str) -> int:
        """All operations: an ablation computes the complete network."""
        return self.operations


def measured(architecture: Module) -> MeasuredModule:
    """A user's module that can be asked what it costs."""
    return MeasuredModule(**{field.name: getattr(architecture, field.name) for field in fields(architecture)})


def factory(architecture: Module) -> Callable[[], nn.Module]:
    """The user's function with its arguments; each call draws one network from PyTorch's generator.

    The working directory is put first on the path that Python imports from.

    Raises:
        ConfigError: the module cannot be imported, is not the one that is meant, or has no such function; on a call,
            the function fails or returns something else than a module.
    """
    name, _, function_name = architecture.module.partition(":")
    if architecture.source and architecture.source != module_fingerprint(name):
        raise ConfigError(KEY, f"{name} has changed since this job was planned; run snakemake again")
    with _running_code_of_the_user(f"{name} cannot be imported"):
        module = import_module(name)
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value)]
        raise ConfigError(KEY, f"{module.__file__} has no function {function_name}{_suggestion(function_name, names)}")
    arguments = {key: getattr(architecture, key) for key in ("in_channels", "space", "classes", "channels")}

    def make() -> nn.Module:
        with _running_code_of_the_user(f"{architecture.module} cannot make a network"):
            accepted = inspect.signature(function).parameters
            network = function(**{key: value for key, value in arguments.items() if key in accepted})
        if not isinstance(network, nn.Module):
            raise ConfigError(KEY, f"{architecture.module} returns {type(network).__name__}; return a torch.nn.Module")
        return network

    return make


def check(architecture: Module, module: nn.Module) -> list[str]:
    """Run a network on blank inputs.

    Args:
        architecture: what the config says of it.
        module: the network.

    Returns:
        Names of the parameters that training changes: those that are not frozen and have a part in the output.

    Raises:
        ConfigError: it fails, returns something else than logits or has nothing to train; a layer does not exist, does
            not run exactly once, or has another width than the config says.
    """
    modules = dict(module.named_modules())
    for layer in architecture.layers:
        if layer not in modules:
            raise ConfigError(
                "network.layers", f"{architecture.module} has no submodule {layer}{_suggestion(layer, modules)}"
            )
    x = torch.zeros(BATCH, architecture.in_channels, *architecture.space)
    with _running_code_of_the_user(f"{architecture.module} cannot be trained"):
        module.train()
        logits = module(x)
    expected = (BATCH, architecture.classes)
    if not isinstance(logits, Tensor) or logits.shape != expected:
        returned = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            KEY, f"{architecture.module} returns {returned} for {BATCH} inputs; return logits of shape {expected}"
        )
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not logits.requires_grad or not parameters:
        raise ConfigError(KEY, f"{architecture.module} has no parameter to train; give it some")
    gradients = torch.autograd.grad(logits.sum(), list(parameters.values()), allow_unused=True)
    outputs: dict[str, list[object]] = {layer: [] for layer in architecture.layers}
    with (
        _running_code_of_the_user(f"{architecture.module} cannot be evaluated"),
        torch.no_grad(),
        forward_hooks(module, outputs, lambda layer, output: outputs[layer].append(output)),
    ):
        module.eval()
        module(x)
    for layer, outputs_of_layer in outputs.items():
        _check_output(architecture, layer, outputs_of_layer)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def _check_output(architecture: Module, layer: str, outputs: list[object]) -> None:
    if len(outputs) != 1:
        raise ConfigError(
            "network.layers", f"{layer} runs {len(outputs)} times in a forward pass; name a submodule that runs once"
        )
    (output,) = outputs
    if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != BATCH:
        returned = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(
            "network.layers",
            f"{layer} returns {returned} for {BATCH} inputs; name a submodule that returns (inputs, channels, ...)",
        )
    width = architecture.widths[layer]
    of_tokens = output.ndim == 3 and output.shape[2] == width
    if architecture.tokens and of_tokens:
        return
    if of_tokens and output.shape[1] != width:
        raise ConfigError(
            "network.tokens",
            f"{layer} of {architecture.module} returns {output.shape[1]} tokens of {width} neurons, as transformers "
            "do; set it to mean, to compare their mean",
        )
    if output.shape[1] != width:
        raise ConfigError(
            "network.channels",
            f"{layer} of {architecture.module} returns {output.shape[1]} channels, not {width}; correct it, or let the "
            "function take channels (results.width and network.multiplier scale them)",
        )


def count(architecture: Module) -> tuple[int, int, int, int]:
    """Count what a network costs.

    Returns:
        Numbers that it holds as parameters; operations of one example's forward pass, and of its forward and backward
        pass; numbers that its submodules with weight matrices or filters return for one example.

    Raises:
        ConfigError: see `factory` and `check`.
    """
    outputs: list[object] = []
    with torch.random.fork_rng(devices=[]):
        module = factory(architecture)()
        trained = check(architecture, module)
        module.train()
        weighted = [
            name
            for name, submodule in module.named_modules()
            if any(parameter.ndim > 1 for parameter in submodule.parameters(recurse=False))
        ]
        x = torch.zeros(BATCH, architecture.in_channels, *architecture.space)
        with (
            FlopCounterMode(display=False) as forward,
            forward_hooks(module, weighted, lambda _, output: outputs.append(output)),
        ):
            logits = module(x)
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(logits.sum(), [module.get_parameter(name) for name in trained])
    forward_operations, backward_operations = (counter.get_total_flops() // BATCH for counter in (forward, backward))
    parameters = sum(parameter.numel() for parameter in module.parameters())
    activations = sum(output.numel() for output in outputs if isinstance(output, Tensor)) // BATCH
    return parameters, forward_operations, forward_operations + backward_operations, activations


def _suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a message that says that a name is not there."""
    known = sorted(filter(None, known))
    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(known)}"


@contextmanager
def _running_code_of_the_user(problem: str) -> Iterator[None]:
    """Turn an exception of the user's code into a ConfigError that names the line of the user's file."""
    try:
        with as_user_error(problem, "correct your module", locate=True):
            yield
    except UserError as error:
        raise ConfigError(KEY, str(error)) from None
