"""The classifiers that results share. Each result asks for a cohort by these functions; the study trains a cohort once,
however many results ask for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cca_dynamics.config.cohorts import AblationRequest, Cohort, LayerRequest, SweepTraining
from cca_dynamics.config.models import NetworkOptions, StudyConfig
from cca_dynamics.errors import ConfigError
from cca_dynamics.networks.architectures import layers, widths

GROUPS = ("generalizing", "memorizing")
"""Networks trained on the true labels, and on a fixed random permutation of them."""
SPLITS = ("train", "test")
"""Of the dataset."""
SWEEP = "sweep"
"""Name of the cohort that `sweep` returns."""
ABLATED_LAYERS = 3
"""Its last hidden layers, of which feature maps are clamped."""


def labelled(config: StudyConfig, group: str, request: LayerRequest, size: int | None = None) -> Cohort:
    """The cohort of generalizing or of memorizing networks, as results.generalization has them, stored at the end.

    Args:
        config: of the study.
        group: one of `GROUPS`.
        request: what is extracted of them.
        size: they see so many random training examples alone; None: all.
    """
    options = config.results.generalization
    return Cohort(
        name=name_of(group, size),
        networks=options.networks if size is None else options.data_size_networks,
        network=config.network_of("generalization"),
        training=config.training_of("generalization"),
        labels="true" if group == "generalizing" else "permuted",
        examples=size,
        requests=(request,),
    )


def name_of(group: str, size: int | None = None) -> str:
    """Name of the cohort that `labelled` returns."""
    return group if size is None else f"{group}-{size}"


def final_layers(config: StudyConfig, *splits: Literal["train", "test"]) -> LayerRequest:
    """All layers at the end of training."""
    return LayerRequest(epochs="final", splits=splits, layers="all", points=config.data_points)


def of_width(config: StudyConfig, multiplier: float) -> Cohort:
    """The cohort of networks of one width, as results.width has them, with its layer before and after training."""
    options = config.results.width
    request = LayerRequest(epochs="all", splits=("train",), layers=(options.layer,), points=config.data_points)
    return Cohort(
        name=f"width-{multiplier:g}",
        networks=options.networks,
        network=config.network_of("width").widened(multiplier),
        training=config.training_of("width"),
        examples=_examples(config, options.train_size),
        checkpoints=(0,),
        requests=(request,),
    )


def sweep(config: StudyConfig, *requests: LayerRequest) -> Cohort:
    """The cohort of networks of several learning rates, as results.clusters has them, and how they are ablated.

    Networks of one learning rate follow each other, in the order of results.clusters.learning_rates.
    """
    options = config.results.clusters
    network, training = config.network_of("clusters"), config.training_of("clusters")
    rates = tuple(rate for rate in options.learning_rates for _ in range(options.networks))
    ablated = tuple(hidden_layers(network)[-ABLATED_LAYERS:])
    return Cohort(
        name=SWEEP,
        networks=len(rates),
        network=network,
        training=SweepTraining(**{**dict(training), "learning_rate": rates}),
        examples=_examples(config, options.train_size),
        requests=requests,
        ablation=AblationRequest(layers=ablated, **dict(options.ablation)),
    )


def _examples(config: StudyConfig, size: int | None) -> int | None:
    """How many random training examples networks see; None: all, as where there are no more."""
    full = config.dataset.train_size
    return None if size is None or (full is not None and size >= full) else size


def check_train_size(config: StudyConfig, result: str, networks: Sequence[NetworkOptions]) -> None:
    """Refuse a train_size of a result on which its networks cannot be trained or compared.

    Args:
        config: of the study.
        result: its name.
        networks: of the result.

    Raises:
        ConfigError: it is smaller than a batch, or than twice the units of a layer.
    """
    size = _examples(config, getattr(config.results, result).train_size)
    batch = config.training_of(result).batch_size
    least = max(batch, *(2 * max(widths(network).values()) + 1 for network in networks))
    if size is not None and size < least:
        raise ConfigError(
            f"results.{result}.train_size",
            f"{size} training examples are fewer than a batch, or than twice the units of a layer; give {least} or "
            "more, or null for all",
        )


def hidden_layers(network: NetworkOptions) -> list[str]:
    """The layers of a network but for softmax, in order."""
    return [layer for layer in layers(network) if layer != "softmax"]
