"""Checks of what options say about layers."""

from __future__ import annotations

from collections.abc import Sequence

from cca_dynamics.config.models import NetworkOptions
from cca_dynamics.errors import ConfigError
from cca_dynamics.networks.architectures import widths
from cca_dynamics.results.tables import CONTROLS


def require_layer(key: str, layer: str, network: NetworkOptions) -> int | None:
    """The number of neurons of a layer, None for softmax.

    Raises:
        ConfigError: the network has no such layer.
    """
    known = widths(network)
    if layer not in known:
        *hidden, _ = known
        names = {"convnet": f"conv1 to {hidden[-1]}", "resnet": f"conv1, block1 to {hidden[-1]}"}
        listed = names.get(network.name, ", ".join(hidden))
        raise ConfigError(key, f"the network has no {layer}; its layers are {listed} and softmax")
    return None if layer == "softmax" else known[layer]


def require_any_width(key: str, measures: Sequence[str]) -> None:
    """Check that measures compare layers of unequal widths.

    Raises:
        ConfigError: one of them compares neuron by neuron.
    """
    for measure in measures:
        if measure in CONTROLS:
            raise ConfigError(key, f"{measure} compares neuron by neuron, and layers differ in width; drop it")


def require_data_points(key: str, count: int, name: str, sizes: Sequence[int]) -> None:
    """Check that CCA of recurrent layers has more data points than the ranks of two layers can add up to.

    Args:
        key: the option that sets the number.
        count: the number of data points.
        name: what they are, in the plural.
        sizes: units of each layer.

    Raises:
        ConfigError: they are too few.
    """
    units = max(sizes)
    if count <= 2 * units:
        advice = f"give more than {2 * units}, better {10 * units}"
        raise ConfigError(key, f"{count} {name} are too few for layers of {units} units; {advice}")
