"""Any torch.nn.Module: import the code that makes it, and see what its layers return."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType

from torch import Tensor, nn


def import_module(name: str) -> ModuleType:
    """Import a Python module from the working directory, or from wherever Python finds it; raises what it raises."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(name)


@contextmanager
def forward_hooks(
    module: nn.Module, layers: Iterable[str], on_layer_output: Callable[[str, Tensor], Tensor | None]
) -> Iterator[None]:
    """Call on_layer_output(layer, output) whenever one of some submodules has run; what it returns is passed on."""
    handles = [
        module.get_submodule(layer).register_forward_hook(
            lambda _, __, output, layer=layer: on_layer_output(layer, output)
        )
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
