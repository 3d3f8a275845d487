"""Figures 1 and A1: parts of a representation settle early and stay; the rest never settles.

Protocol (Morcos et al. 2018, section 2.2, figure 1). ρ(t, T) are the canonical correlations between a layer at step t
and the same layer at the last step T. For panel d, CCA between the layer at t_early and at T/2 orders the directions
of the layer at t_early; the best converged ones form S, the worst B; each set is then compared with the whole layer
at later steps as 1 − mean(ρ) over the directions of the set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from cca_dynamics.config.base import Count, Number, Text
from cca_dynamics.config.cohorts import Cohort, LayerRequest
from cca_dynamics.config.models import (
    HiddenLayer,
    Networks,
    ResultOptions,
    StageOptions,
    StudyConfig,
    TrainedResultOptions,
    TrainingOverrides,
    option,
)
from cca_dynamics.errors import ConfigError, UserError
from cca_dynamics.results import figures, language_models, statistics
from cca_dynamics.results.claims import Claim, Obstacle, mean_claim, too_few
from cca_dynamics.results.inputs import Inputs, performance
from cca_dynamics.results.layers import require_layer
from cca_dynamics.results.tables import by_network, forced_correlations, select, tidy

KEY = "results.stability"


@dataclass(frozen=True)
class Kind:
    """What differs between the kinds of networks that are followed."""

    cohort: str
    split: str  # of the activations
    train: str  # quantity of performance on training data ...
    held_out: str  # ... and on held-out data, by which it has converged
    performance: str  # in words
    prefix: str = ""  # of the names of claims
    suffix: str = ""  # of their statements


KINDS = {
    "convolutional": Kind("stability", "train", "train_accuracy", "test_accuracy", "accuracy"),
    "recurrent": Kind(
        language_models.SHALLOW, "valid", "loss", "valid_loss", "the loss", "recurrent_", ", in a recurrent network"
    ),
}


class RecurrentOptions(ResultOptions):
    """The keys of results.stability.recurrent: the same in language models."""

    layer: Annotated[Text, Field(pattern="^lstm[1-9][0-9]*$")] = option(
        "lstm3", "compute", "plot", description="lstm1, lstm2, ..."
    )
    early_epoch: Count = option(1, "train", "compute", description="The early time t_early; before half of training.")
    directions: Count = option(15, "compute", "plot", description="Size of the best and of the worst set.")
    converged_within: Number = option(
        0.05, "claims", "plot", gt=0, le=10, description="As below, for the loss, in nats per token."
    )


class Options(TrainedResultOptions):
    """The keys of results.stability."""

    networks: Networks = option(5, "train", description="Networks that differ in their seed.")
    training: TrainingOverrides = option(
        TrainingOverrides(epochs=40, learning_rate=0.05, evaluate_every=1),
        "train",
        description="Keys of the training recipe that differ from the base recipe's.",
    )
    layer: HiddenLayer | None = option(
        "conv5",
        *("activations", "compute", "claims", "plot"),
        description="Of the convolutional networks, not softmax; null: no such networks.",
    )
    checkpoint_every: Number = option(2, "train", ge=0.1, description="Epochs between checkpoints.")
    early_epoch: Number = option(
        2, "train", "compute", gt=0, description="The early time t_early; before half of training."
    )
    directions: Count = option(
        30, "compute", "plot", description="Size of the best and of the worst set of directions."
    )
    converged_within: Number = option(
        0.02,
        *("claims", "plot"),
        gt=0,
        le=0.5,
        description="Accuracy has converged once it stays this close to its final value.",
    )
    unconverged_below: Number = option(
        0.9,
        *("claims", "plot"),
        gt=0,
        lt=1,
        description="A direction has converged when its correlation with the end exceeds this.",
    )
    many: Number = option(0.25, "claims", gt=0, lt=1, description='The share of directions that counts as "many".')
    recurrent: RecurrentOptions | None = option(
        RecurrentOptions(),
        *("train", "activations", "compute", "claims", "plot"),
        description="The same in the language models; null: no such panels.",
    )


ALTERNATIVES = {
    "early_epoch": (4, 6),
    "directions": (15,),
    "unconverged_below": (0.8, 0.95),
    "training.schedule": ("constant",),
}
"""Other values that the paper's words allow, the default of multiverse.stability."""


def options_of(options: StageOptions, kind: str) -> StageOptions:
    """The options of one kind of network: layer, early_epoch, directions, converged_within."""
    return options.recurrent if kind == "recurrent" else options


def kinds(options: Options | StageOptions) -> list[str]:
    """The kinds of networks that a study follows."""
    followed = {"convolutional": options.layer, "recurrent": options.recurrent}
    return [kind for kind in KINDS if followed[kind]]


def check(config: StudyConfig, options: Options) -> None:
    """Refuse directions that do not fit the layer, and early times at or after half of training."""
    if not kinds(options):
        raise ConfigError(f"{KEY}.layer", f"null, and so is {KEY}.recurrent; give a layer of one of them")
    if options.layer:
        neurons = require_layer(f"{KEY}.layer", options.layer, config.network_of("stability"))
        _check_times(KEY, options, neurons, config.training_of("stability").epochs)
    if recurrent := options.recurrent:
        sizes = config.language_model.sizes
        layers = language_models.layer_names(sizes)
        if recurrent.layer not in layers:
            raise ConfigError(f"{KEY}.recurrent.layer", f"the model has no {recurrent.layer}; its layers are {layers}")
        neurons = sizes[layers.index(recurrent.layer)]
        _check_times(f"{KEY}.recurrent", recurrent, neurons, config.language_training.epochs)


def _check_times(key: str, options: Options | RecurrentOptions, neurons: int, epochs: int) -> None:
    if 2 * options.directions > neurons:
        raise ConfigError(
            f"{key}.directions",
            f"two sets of {options.directions} directions do not fit in {options.layer}, which has {neurons} "
            f"neurons; use {neurons // 2} or fewer",
        )
    if options.early_epoch >= epochs / 2:
        raise ConfigError(
            f"{key}.early_epoch",
            f"t_early ({options.early_epoch:g}) is not before T/2 (epoch {epochs / 2:g}); lower it or train longer",
        )


def obstacles(config: StudyConfig, options: Options) -> list[Obstacle]:
    """Settings under which claims could never be reproduced."""
    keys = [(f"{KEY}.networks", f"{KEY}.early_epoch")] if options.layer else []
    if options.recurrent:
        keys.append(("language_model.networks", f"{KEY}.recurrent.early_epoch"))
    found = []
    for cohort, (networks, early) in zip(cohorts(config, options), keys, strict=True):
        found += too_few(networks, cohort.networks, "networks", statistics.smallest_sign_p)
        first = options.recurrent.early_epoch if cohort.data == "corpus" else options.early_epoch
        if not _has_neighbours(*_at_half([epoch for epoch in cohort.stored_epochs if epoch > first])):
            found.append(
                Obstacle(
                    early,
                    f"{NO_SPIKE}, so the claim about T/2 is not testable; train longer, or store more checkpoints",
                )
            )
    return found


NO_SPIKE = "no checkpoint lies between t_early and T/2"


def _at_half(epochs: Sequence[float]) -> tuple[int, int]:
    """Which of the epochs after t_early is T/2, and how many there are."""
    return int(np.abs(np.asarray(epochs) - epochs[-1] / 2).argmin()), len(epochs)


def _has_neighbours(index: int, count: int) -> bool:
    return 0 < index < count - 1


def cohorts(config: StudyConfig, options: Options) -> list[Cohort]:
    """One cohort, stored every `checkpoint_every` epochs and at t_early, T/2 and T; and the language models."""
    result = []
    if options.layer:
        training = config.training_of("stability")
        epochs, every = training.epochs, options.checkpoint_every
        regular = [round(i * every, 6) for i in range(math.floor(epochs / every) + 1)]
        request = LayerRequest(epochs="all", splits=("train",), layers=(options.layer,), points=config.data_points)
        result.append(
            Cohort(
                name="stability",
                networks=options.networks,
                network=config.network_of("stability"),
                training=training,
                checkpoints=tuple(sorted({0, *regular, options.early_epoch, epochs / 2, epochs})),
                requests=(request,),
            )
        )
    if options.recurrent:
        result.append(language_models.shallow(config, language_models.curves(config)))
    return result


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """Correlations with the end, distances of the two sets, and performance.

    Returns:
        Tidy rows. quantity "correlation": value is ρ number `index` (1 is the largest) between `step` and T, with
        rank_a, rank_b, n and the floor of 1 − mean(ρ). quantity "distance": value is the distance of `set` ("stable",
        "unstable") to the layer at `step`, for steps from t_early. quantity "train_accuracy", "test_accuracy",
        "loss" ("valid_loss" of recurrent networks). All with kind, network, step, epoch.
    """
    tables = [_dynamics(inputs, KINDS[kind], options_of(options, kind)).assign(kind=kind) for kind in kinds(options)]
    return tidy(tables)


def _dynamics(inputs: Inputs, kind: Kind, options: StageOptions) -> pd.DataFrame:
    from cca_dynamics.similarity import cca

    steps = inputs.checkpoints(kind.cohort, kind.split)
    early, half, end = _nearest(steps, options.early_epoch), _nearest(steps, steps[-1][1] / 2), steps[-1][0]

    def states(step: int) -> np.ndarray:
        return inputs.representations(kind.cohort, options.layer, step, kind.split)

    final = states(end)
    sets = _converged_sets(states(early), states(half), options)
    tables = []
    for step, epoch in steps:
        for network, layer in enumerate(states(step)):
            index = {"network": network, "step": step, "epoch": epoch}
            result = cca(layer, final[network])
            correlations = {
                "index": np.arange(1, len(result.correlations) + 1),
                "value": result.correlations,
                "rank_a": result.rank_x,
                "rank_b": result.rank_y,
                "n": result.n,
                "forced": forced_correlations(result.rank_x + result.rank_y, result.n),
                "floor": result.floor,
            }
            tables.append(pd.DataFrame({**index, "quantity": "correlation", **correlations}))
            if step >= early:
                distances = [1 - cca(directions, layer).correlations.mean() for directions in sets[network].values()]
                tables.append(
                    pd.DataFrame({**index, "quantity": "distance", "set": sets[network].keys(), "value": distances})
                )
    return tidy([*tables, performance(inputs, kind.cohort)])


def _converged_sets(early: np.ndarray, half: np.ndarray, options: StageOptions) -> list[dict[str, np.ndarray]]:
    """Directions at t_early (data points, directions) that have converged best and worst by T/2, of each network."""
    from cca_dynamics.similarity import cca

    size, sets = options.directions, []
    for network, layers in enumerate(zip(early, half, strict=True)):
        directions = cca(*layers, variates=True).variates_x
        if directions.shape[1] < 2 * size:
            raise UserError(
                f"network {network} has {directions.shape[1]} directions in {options.layer} at t_early, too few for "
                f"two sets of {size}; lower {KEY}.directions or raise {KEY}.early_epoch"
            )
        sets.append({"stable": directions[:, :size], "unstable": directions[:, -size:]})
    return sets


def _nearest(steps: list[tuple[int, float]], epoch: float) -> int:
    return min(steps, key=lambda pair: abs(pair[1] - epoch))[0]


def convergence_epoch(table: pd.DataFrame, within: float, quantity: str = "test_accuracy") -> float:
    """First epoch from which performance stays close to its final value.

    Args:
        table: rows of one kind of network.
        within: the largest distance to the final value, in the unit of the performance.
        quantity: the performance; the median over networks is taken.
    """
    median = select(table, quantity=quantity).groupby("epoch")["value"].median()
    away = np.flatnonzero((median - median.iloc[-1]).abs() > within)
    first = away.max() + 1 if len(away) else 0
    return float(median.index[min(first, len(median) - 1)])


def unconverged(
    table: pd.DataFrame, within: float, threshold: float, quantity: str = "test_accuracy"
) -> tuple[float, pd.Series]:
    """The first checkpoint once performance has converged, and how many directions have not converged there.

    Args:
        table: rows of one kind of network.
        within, quantity: see `convergence_epoch`.
        threshold: correlation with the end above which a direction has converged.

    Returns:
        Epoch of the checkpoint, and each network's share of correlations below the threshold.
    """
    correlations = select(table, quantity="correlation")
    converged = convergence_epoch(table, within, quantity)
    epoch = min(value for value in correlations["epoch"].unique() if value >= converged)
    at_epoch = select(correlations, epoch=epoch)
    return float(epoch), (at_epoch["value"] < threshold).groupby(at_epoch["network"]).mean()


def set_distances(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Distances of the sets "stable" and "unstable": rows networks, columns epochs after t_early."""
    distances = select(table, quantity="distance")
    return {name: by_network(rows, "epoch").iloc[:, 1:] for name, rows in distances.groupby("set")}


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """The claims of figure 1, each with one value per network and a sign test over networks."""
    return [claim for kind in kinds(options) for claim in _claims_of_kind(select(table, kind=kind), options, kind)]


def _claims_of_kind(table: pd.DataFrame, options: StageOptions, name_of_kind: str) -> list[Claim]:
    kind, within = KINDS[name_of_kind], options_of(options, name_of_kind).converged_within
    epoch, share = unconverged(table, within, options.unconverged_below, kind.held_out)
    sets = set_distances(table)
    epochs, stable, unstable = np.array(sets["stable"].columns), sets["stable"].to_numpy(), sets["unstable"].to_numpy()
    half, count = _at_half(epochs)
    but_half = np.arange(count) != half if count > 1 else [True]
    later = unstable[:, but_half]
    has_neighbours = _has_neighbours(half, count)
    neighbours = unstable[:, [half - 1, half + 1]].mean(axis=1) if has_neighbours else np.nan

    def claim(
        name: str, statement: str, statistic: str, values: np.ndarray, threshold: float = 0.0, obstacle: str = ""
    ) -> Claim:
        return mean_claim(
            threshold,
            values,
            options.seed,
            p_value=statistics.sign_test(values - threshold),
            claim=f"stability.{kind.prefix}{name}",
            figure="1",
            statement=f"{statement}{kind.suffix}.",
            statistic=f"{statistic}; mean of {len(share)} networks, sign test",
            obstacle=obstacle,
        )

    return [
        claim(
            "unconverged",
            f"When {kind.performance} has converged, many directions have not",
            f"share of correlations with the end below {options.unconverged_below:g} at epoch {epoch:g} (many: over "
            f"{options.many:g})",
            share.to_numpy(),
            options.many,
        ),
        claim(
            "stable_set",
            "Directions that settle early stay closer to the layer than the others at every later step",
            "smallest gap in distance, unstable minus stable set, over all later checkpoints but T/2",
            (unstable - stable)[:, but_half].min(axis=1),
        ),
        claim(
            "stable_stays",
            "Directions that settle early are still there at the end",
            "similarity (mean ρ) of the stable set to the layer at T (over 0.5)",
            1 - stable[:, -1],
            0.5,
        ),
        claim(
            "unstable_set",
            "The other directions decorrelate at once",
            "distance of the unstable set at the first checkpoint after t_early, as a share of its mean later distance "
            "(over 0.5)",
            later[:, 0] / later.mean(axis=1),
            0.5,
        ),
        claim(
            "spike",
            "The unstable set is farthest at T/2, the step it was chosen against",
            "distance at T/2 minus the mean of the checkpoints before and after",
            unstable[:, half] - neighbours,
            obstacle="" if has_neighbours else NO_SPIKE,
        ),
    ]


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """One row of panels per kind of network: correlations with the end, distances of the two sets, performance."""
    followed = kinds(options)
    figure, axes = figures.panels(len(followed), 3, height=2.5, ratios=[1.3, 1, 1])
    for row, kind in enumerate(followed):
        rows, options_of_kind = select(table, kind=kind), options_of(options, kind)
        left, middle, right = axes[3 * row : 3 * row + 3]
        _draw_correlations(figure, left, rows, options_of_kind, options.unconverged_below, KINDS[kind])
        _draw_sets(middle, rows, options_of_kind.directions)
        _draw_performance(right, rows, options_of_kind.converged_within, KINDS[kind])
    figures.letters(*axes)
    return figure


def _draw_correlations(
    figure, axis, table: pd.DataFrame, options: StageOptions, unconverged_below: float, kind: Kind
) -> None:
    """Sorted correlations with the end, one curve per epoch, the one at which performance has converged dashed."""
    judged_at, _ = unconverged(table, options.converged_within, unconverged_below, kind.held_out)
    correlations = select(table, quantity="correlation")
    epochs = sorted(correlations["epoch"].unique())
    colour_of = figures.epoch_bar(figure, axis, epochs)
    for epoch in _spread(epochs, 7, including=judged_at):
        curve = select(correlations, epoch=epoch).groupby("index")["value"].mean()
        style = {"linewidth": 1.2}
        if epoch == judged_at:
            word = kind.performance.removeprefix("the ")
            style = {"linewidth": 2.2, "linestyle": "--", "label": f"epoch {epoch:g}, {word} converged"}
        axis.plot(curve.index, curve, color=colour_of(epoch), **style)
    axis.axhline(unconverged_below, **figures.THRESHOLD)
    axis.set(xlabel=f"Direction of {options.layer} (sorted)", ylabel="Canonical correlation with the end")
    axis.legend(loc="upper left")
    figures.headroom(axis)


def _draw_sets(axis, table: pd.DataFrame, directions: int) -> None:
    distances = set_distances(table)
    for name, style in zip(("stable", "unstable"), figures.SERIES, strict=False):
        curves = distances[name]
        figures.mean_and_std(axis, curves.columns, curves.to_numpy(), *style, f"{name} ({directions} directions)")
    half = _half(table)
    axis.vlines(half, 0, 1, **figures.THRESHOLD)
    between = np.mean([curves.mean().iloc[np.abs(curves.columns - half).argmin()] for curves in distances.values()])
    figures.note(axis, "T/2", (half, between), (2, 0))
    axis.set(xlabel="Epoch", ylabel="CCA distance to the layer", xlim=(0, None))
    axis.legend(loc="upper left")
    figures.headroom(axis)


def _draw_performance(axis, table: pd.DataFrame, within: float, kind: Kind) -> None:
    is_accuracy = kind.performance == "accuracy"
    held_out = "test" if is_accuracy else "held out"
    for quantity, style, label in ((kind.train, figures.SEEN, "train"), (kind.held_out, figures.UNSEEN, held_out)):
        figures.network_curves(axis, select(table, quantity=quantity), "epoch", *style, label)
    converged = convergence_epoch(table, within, kind.held_out)
    axis.axvline(converged, ymax=0.82, **{**figures.THRESHOLD, "linestyle": "--"})  # below the legend
    offset, side = ((3, 4), "left") if converged <= _half(table) else ((-3, 4), "right")
    figures.note(axis, "converged", (converged, 0), offset, ha=side)
    axis.set(xlabel="Epoch", ylabel="Accuracy" if is_accuracy else "Loss (nats per token)")
    if is_accuracy:
        axis.legend(loc="upper left", ncols=2)
        figures.headroom(axis)
    else:
        axis.legend(loc="upper right")
        axis.set_ylim(0, None)


def _half(table: pd.DataFrame) -> float:
    """Epoch T/2."""
    return select(table, quantity="correlation")["epoch"].max() / 2


def _spread(values: list[float], count: int, including: float) -> list[float]:
    """About `count` of the sorted values, evenly spread, and one that must be among them."""
    positions = np.unique(np.linspace(0, len(values) - 1, count).round().astype(int))
    return sorted({*(values[i] for i in positions), including})
