"""A user's own torch.nn.Module: from `network.module` in the config to a module that can be trained and compared.

What is wrong with it is said in one line, before anything is trained, with the line of the user's file where it went
wrong.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cca_dynamics.architectures import Module
from cca_dynamics.provenance import module_fingerprint
from cca_dynamics.resume import Interrupted
from cca_dynamics.study import ConfigError

KEY = "network.module"
BATCH = 2
"""Blank inputs that a module is tried on; batch norm needs two."""


def factory(architecture: Module) -> Callable[[], nn.Module]:
    """The user's function with its arguments; each call draws one network from PyTorch's generator.

    The working directory is put first on the path that Python imports from.

    Raises:
        ConfigError: the module cannot be imported, is not the one that is meant, or has no such function; on a call,
            the function fails or makes something else.
    """
    name, _, function_name = architecture.module.partition(":")
    if architecture.source and architecture.source != module_fingerprint(name):
        raise ConfigError(KEY, f"{name} has changed since this job was planned; run snakemake again")
    with _in_one_line():
        found = imported(name)
    function = getattr(found, function_name, None)
    if not callable(function):
        names = [key for key, value in vars(found).items() if callable(value)]
        raise ConfigError(KEY, f"{found.__file__} has no function {function_name}{_closest(function_name, names)}")
    given = {key: getattr(architecture, key) for key in ("in_channels", "space", "classes", "channels")}

    def make() -> nn.Module:
        with _in_one_line():
            takes = inspect.signature(function).parameters
            module = function(**{key: value for key, value in given.items() if key in takes})
        if not isinstance(module, nn.Module):
            raise ConfigError(KEY, f"{architecture.module} returns {type(module).__name__}; return a torch.nn.Module")
        return module

    return make


def imported(name: str) -> ModuleType:
    """A Python module from the working directory, or from wherever Python finds it; raises whatever it raises."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(name)


def check(architecture: Module, module: nn.Module) -> list[str]:
    """Run a network on blank inputs.

    Args:
        architecture: what the config says of it.
        module: the network.

    Returns:
        Names of the parameters that training changes: not those that are frozen or have no part in the output.

    Raises:
        ConfigError: it fails, puts out something else than logits or has nothing to train; a layer does not exist, does
            not run just once, or has another width than the config says.
    """
    modules = dict(module.named_modules())
    for layer in architecture.layers:
        if layer not in modules:
            raise ConfigError(
                "network.layers", f"{architecture.module} has no submodule {layer}{_closest(layer, modules)}"
            )
    x = torch.zeros(BATCH, architecture.in_channels, *architecture.space)
    with _in_one_line():
        module.train()
        logits = module(x)
    expected = (BATCH, architecture.classes)
    if not isinstance(logits, Tensor) or logits.shape != expected:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            KEY, f"{architecture.module} puts out {found} for {BATCH} inputs; return logits of shape {expected}"
        )
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not logits.requires_grad or not parameters:
        raise ConfigError(KEY, f"{architecture.module} has no parameter to train; give it some")
    gradients = torch.autograd.grad(logits.sum(), list(parameters.values()), allow_unused=True)
    outputs: dict[str, list[object]] = {layer: [] for layer in architecture.layers}
    with _in_one_line(), torch.no_grad(), tapped(module, outputs, lambda layer, y: outputs[layer].append(y)):
        module.eval()
        module(x)
    for layer, found in outputs.items():
        _check_output(architecture, layer, found)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def _check_output(architecture: Module, layer: str, outputs: list[object]) -> None:
    if len(outputs) != 1:
        raise ConfigError(
            "network.layers", f"{layer} runs {len(outputs)} times in a forward pass; name a submodule that runs once"
        )
    (y,) = outputs
    if not isinstance(y, Tensor) or y.ndim < 2 or len(y) != BATCH:
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ConfigError(
            "network.layers",
            f"{layer} puts out {shape} for {BATCH} inputs; name a submodule that puts out (inputs, channels, ...)",
        )
    width = architecture.widths[layer]
    if y.shape[1] != width:
        raise ConfigError(
            "network.channels",
            f"{layer} of {architecture.module} puts out {y.shape[1]} channels, not {width}; correct it, or let the "
            "function take channels (results.width and network.multiplier scale them)",
        )


@contextmanager
def tapped(module: nn.Module, layers: Iterable[str], tap: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """While it lasts, tap(layer, output) is called with what submodules put out; what it returns is passed on."""
    handles = [
        module.get_submodule(layer).register_forward_hook(lambda _, __, output, layer=layer: tap(layer, output))
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def costs(architecture: Module) -> tuple[int, int, int, int]:
    """What `Architecture` counts: parameters; operations of one example's forward pass, and of its forward and backward
    pass; numbers that its submodules with weight matrices or filters put out.
    """
    with torch.random.fork_rng(devices=[]):
        module, put_out = factory(architecture)(), []
        trained = check(architecture, module)
        module.train()
        weighted = [
            name
            for name, part in module.named_modules()
            if any(parameter.ndim > 1 for parameter in part.parameters(recurse=False))
        ]
        x = torch.zeros(BATCH, architecture.in_channels, *architecture.space)
        with FlopCounterMode(display=False) as forward, tapped(module, weighted, lambda _, y: put_out.append(y)):
            logits = module(x)
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(logits.sum(), [module.get_parameter(name) for name in trained])
    once, again = (counter.get_total_flops() // BATCH for counter in (forward, backward))
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return parameters, once, once + again, sum(y.numel() for y in put_out if isinstance(y, Tensor)) // BATCH


def _closest(name: str, known: Iterable[str]) -> str:
    """The end of a message that says that something is not there."""
    known = sorted(filter(None, known))
    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(known)}"


@contextmanager
def _in_one_line() -> Iterator[None]:
    """An exception of the user's code as a ConfigError that names where in the working directory it was raised."""
    try:
        yield
    except Interrupted:
        raise
    except Exception as problem:
        here = os.getcwd() + os.sep
        frames = [f for f in traceback.extract_tb(problem.__traceback__) if f.filename.startswith(here)]
        place = f"{frames[-1].filename.removeprefix(here)} line {frames[-1].lineno}: " if frames else ""
        text = " ".join(f"{type(problem).__name__}: {problem}".split())
        raise ConfigError(KEY, f"{place}{text}; correct your module") from problem
