"""Figures 1 and A1: parts of a representation settle early and stay; the rest never settles.

Protocol (Morcos et al. 2018, section 2.2, figure 1). ρ(t, T) are the canonical correlations between a layer at step t
and the same layer at the last step T. For panel d, CCA between the layer at t_early and at T/2 orders the directions
of the layer at t_early; the best converged ones form S, the worst B; each set is then compared with the whole layer
at later steps as 1 − mean(ρ) over the directions of the set. For comparison (ours): as many random directions of the
layer at t_early, and its strongest principal components.

Whether directions "have converged" depends on thresholds and on the learning rate's schedule, so two statistics are
reported: the paper's, with thresholds, and the lag of the mean correlation behind performance, without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from cca_dynamics.config.base import Count, Number, Text
from cca_dynamics.config.cohorts import Cohort, LayerRequest, checkpoint_epochs
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
from cca_dynamics.results import figures, language_models
from cca_dynamics.results.claims import Claim, Obstacle, mean_claim, provided, too_few
from cca_dynamics.results.inputs import Inputs, performance
from cca_dynamics.results.layers import require_layer
from cca_dynamics.results.tables import by_network, forced_correlations, select, tidy

if TYPE_CHECKING:
    from cca_dynamics.similarity import CCAResult, Factors

KEY = "results.stability"


@dataclass(frozen=True)
class Kind:
    """What differs between the kinds of networks that are followed."""

    cohort: str
    split: str  # of the activations
    train: str  # quantity of performance on training data ...
    held_out: str  # ... and on held-out data, by which it has converged
    performance: str  # in words
    has_decisions: bool  # whether the layer softmax is stored, from which the probe learns
    prefix: str = ""  # of the names of claims
    suffix: str = ""  # of their statements


KINDS = {
    "convolutional": Kind("stability", "train", "train_accuracy", "test_accuracy", "accuracy", True),
    "recurrent": Kind(
        language_models.SHALLOW,
        *("valid", "loss", "valid_loss", "the loss", False),
        prefix="recurrent_",
        suffix=", in a recurrent network",
    ),
}
SETS = {"stable": "settled early", "unstable": "the others", "random": "random", "principal": "principal components"}
"""The sets of directions that are followed, and what figures call them."""
RANDOM_SETS = 20
"""Sets of random directions; their distances are averaged."""
FOLDS = 5
"""Parts of the data points; the probe learns from all but one and is tested on that one, in turn."""
STILL = 0.9
"""Mean correlation of T/2 with T above which a layer hardly moves after T/2, so that its sets cannot be told apart."""


class RecurrentOptions(ResultOptions):
    """The keys of results.stability.recurrent: the same in language models."""

    layer: Annotated[Text, Field(pattern="^lstm[1-9][0-9]*$")] = option(
        "lstm3", "compute", "plot", description="lstm1, lstm2, ..."
    )
    early_epoch: Number = option(
        1, "train", "compute", gt=0, description="The early time t_early; before half of training."
    )
    directions: Count = option(4, "compute", "plot", description="Size of the best and of the worst set.")
    converged_within: Number = option(
        0.05, "claims", "plot", gt=0, le=10, description="As below, for the loss, in nats per token."
    )


class Options(TrainedResultOptions):
    """The keys of results.stability."""

    networks: Networks = option(5, "train", description="Networks that differ in their seed.")
    training: TrainingOverrides = option(
        TrainingOverrides(epochs=20, learning_rate=0.02, schedule="constant", evaluate_every=1),
        "train",
        description="Keys of the training recipe that differ from the base recipe's.",
    )
    layer: HiddenLayer | None = option(
        "conv5",
        *("activations", "compute", "claims", "plot"),
        description="Of the convolutional networks, not softmax; null: no such networks.",
    )
    checkpoint_every: Number = option(1, "train", ge=0.1, description="Epochs between checkpoints.")
    checkpoints_in_first_epoch: Count = option(
        4, "train", description="Checkpoints within the first epoch, evenly spaced."
    )
    early_epoch: Number = option(
        2, "train", "compute", gt=0, description="The early time t_early; before half of training."
    )
    directions: Count = option(6, "compute", "plot", description="Size of the best and of the worst set of directions.")
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
    "early_epoch": (1, 4),
    "directions": (15,),
    "unconverged_below": (0.8, 0.95),
    "training.schedule": ("cosine",),
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
    obstacles_found = []
    for cohort, (networks, early) in zip(cohorts(config, options), keys, strict=True):
        obstacles_found += too_few(networks, cohort.networks, "networks")
        first = options.recurrent.early_epoch if cohort.data == "corpus" else options.early_epoch
        if not _has_neighbours(*_at_half([epoch for epoch in cohort.stored_epochs if epoch > first])):
            obstacles_found.append(
                Obstacle(
                    early,
                    f"{NO_SPIKE}, so the claim about T/2 is not testable; train longer, or store more checkpoints",
                )
            )
    return obstacles_found


NO_SPIKE = "no checkpoint lies between t_early and T/2"


def _at_half(epochs: Sequence[float]) -> tuple[int, int]:
    """Which of the epochs after t_early is T/2, and how many there are."""
    return int(np.abs(np.asarray(epochs) - epochs[-1] / 2).argmin()), len(epochs)


def _has_neighbours(index: int, count: int) -> bool:
    return 0 < index < count - 1


def cohorts(config: StudyConfig, options: Options) -> list[Cohort]:
    """One cohort, stored as `checkpoint_epochs` says and at t_early, T/2 and T; and the language models."""
    result = []
    if options.layer:
        training = config.training_of("stability")
        epochs, every = training.epochs, options.checkpoint_every
        regular = checkpoint_epochs(epochs, every, options.checkpoints_in_first_epoch)
        what = {"splits": ("train",), "points": config.data_points}
        layer = LayerRequest(epochs="all", layers=(options.layer,), **what)
        decisions = LayerRequest(epochs="final", layers=("softmax",), **what)
        result.append(
            Cohort(
                name="stability",
                networks=options.networks,
                network=config.network_of("stability"),
                training=training,
                checkpoints=tuple(sorted({*regular, options.early_epoch, epochs / 2})),
                requests=(layer, decisions),
            )
        )
    if options.recurrent:
        result.append(language_models.shallow(config, language_models.curves(config)))
    return result


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """Correlations with the end, distances of the two sets, and performance.

    Returns:
        Tidy rows. quantity "correlation": value is ρ number `index` (1 is the largest) between `step` and T, with
        rank_a, rank_b, n and the floor of 1 − mean(ρ). quantity "distance": value is the distance of `set` (one of
        `SETS`) to the layer at `step`, for steps from t_early. quantity "probe": value is the share of data points on
        which a linear probe of the directions of `set` (or "all" of the layer at t_early) finds the network's final
        decision; convolutional networks only. quantity "train_accuracy", "test_accuracy", "loss" ("valid_loss" of
        recurrent networks). All with kind, network, step, epoch.
    """
    tables = [_dynamics(inputs, KINDS[kind], options_of(options, kind)).assign(kind=kind) for kind in kinds(options)]
    return tidy(tables)


def _dynamics(inputs: Inputs, kind: Kind, options: StageOptions) -> pd.DataFrame:
    from cca_dynamics.similarity import cca, factorize

    steps = inputs.checkpoints(kind.cohort, kind.split)
    early, half, end = _nearest(steps, options.early_epoch), _nearest(steps, steps[-1][1] / 2), steps[-1]

    # Tables are made at the end: made between comparisons, they would keep the memory of these from being used again.
    with_end, of_sets, probes = {}, {}, []
    for network in range(len(inputs.trained(kind.cohort))):  # one after the other: their layers may fill the memory

        def factors_at(step: int, network: int = network) -> Factors:
            layer = inputs.representation(kind.cohort, options.layer, step, network, kind.split)
            return factorize(layer, device=inputs.device)

        final, at_early = factors_at(end[0]), factors_at(early[0])
        sets = _sets(at_early, factors_at(half[0]), network, options, inputs.device)
        for step, epoch in steps:
            layer, index = factors_at(step), {"network": network, "step": step, "epoch": epoch}
            with_end[step, network] = index, cca(layer, final, device=inputs.device)
            if step >= early[0]:
                basis = layer.basis().cpu().numpy()
                of_sets[step, network] = [
                    {**index, "quantity": "distance", "set": name, "value": _distance(directions, basis)}
                    for name, directions in sets.items()
                ]
        if kind.has_decisions:
            decisions = inputs.representation(kind.cohort, "softmax", end[0], network, kind.split).argmax(axis=-1)
            probed = {**sets, "all": [at_early.basis().cpu().numpy()]}
            accuracies = {name: _probe(directions, decisions) for name, directions in probed.items()}
            index = {"network": network, "step": early[0], "epoch": early[1], "quantity": "probe"}
            probes.append({**index, "set": accuracies.keys(), "value": accuracies.values()})
    tables = [_correlations(*with_end[key]) for key in sorted(with_end)]
    tables.append(pd.DataFrame(chain.from_iterable(of_sets[key] for key in sorted(of_sets))))
    tables += map(pd.DataFrame, probes)
    return tidy([*tables, performance(inputs, kind.cohort)])


def _correlations(index: dict[str, object], result: CCAResult) -> pd.DataFrame:
    """One row per canonical correlation of a layer with itself at the end."""
    columns = {
        "index": np.arange(1, len(result.correlations) + 1),
        "value": result.correlations,
        "rank_a": result.rank_x,
        "rank_b": result.rank_y,
        "n": result.n,
        "forced": forced_correlations(result.rank_x + result.rank_y, result.n),
        "floor": result.floor,
    }
    return pd.DataFrame({**index, "quantity": "correlation", **columns})


def _sets(
    early: Factors, half: Factors, network: int, options: StageOptions, device: str = "cpu"
) -> dict[str, list[np.ndarray]]:
    """The sets of directions of the layer at t_early, each (data points, directions) with orthonormal columns.

    Args:
        early, half: the layer at t_early and at T/2.
        network: its number.
        options: of its kind.
        device: "cpu" or "cuda".

    Returns:
        Name in `SETS` → the set; of random directions, `RANDOM_SETS` of them.
    """
    from cca_dynamics.similarity import cca

    size = options.directions
    if early.rank < 2 * size:
        raise UserError(
            f"network {network} has {early.rank} directions in {options.layer} at t_early, too few for two sets of "
            f"{size}; lower {KEY}.directions or raise {KEY}.early_epoch"
        )
    directions, basis = cca(early, half, variates=True, device=device).variates_x, early.basis().cpu().numpy()
    rng = np.random.default_rng([options.seed, network])
    rotations = [np.linalg.qr(rng.normal(size=(early.rank, size)))[0] for _ in range(RANDOM_SETS)]
    return {
        "stable": [directions[:, :size]],
        "unstable": [directions[:, -size:]],
        "random": [basis @ rotation for rotation in rotations],
        "principal": [basis[:, :size]],
    }


def _distance(sets: list[np.ndarray], basis: np.ndarray) -> float:
    """1 − mean(ρ) between directions and a layer, mean over sets.

    Args:
        sets: of directions, (n, k) with orthonormal columns.
        basis: (n, r) of the layer, with orthonormal columns.
    """
    products = (np.hstack(sets).T @ basis).reshape(len(sets), -1, basis.shape[1])
    return float(1 - np.linalg.svd(products, compute_uv=False).clip(0, 1).mean())


def _probe(sets: list[np.ndarray], decisions: np.ndarray) -> float:
    """Share of held-out data points whose class a linear probe finds, by least squares, mean over sets.

    Args:
        sets: of directions, (n, k) with orthonormal columns and mean 0.
        decisions: (n,) class of each data point.
    """
    targets = np.eye(decisions.max() + 1)[decisions]
    fold = np.arange(len(decisions)) % FOLDS
    right = []
    for directions in sets:
        inputs = np.column_stack([directions, np.full(len(directions), len(directions) ** -0.5)])
        for held_out in (fold == number for number in range(FOLDS)):
            weights = np.linalg.lstsq(inputs[~held_out], targets[~held_out], rcond=None)[0]
            right.append(np.mean((inputs[held_out] @ weights).argmax(axis=1) == decisions[held_out]))
    return float(np.mean(right))


def _nearest(steps: list[tuple[int, float]], epoch: float) -> tuple[int, float]:
    """The (step, epoch) of the checkpoint nearest to an epoch."""
    return min(steps, key=lambda pair: abs(pair[1] - epoch))


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


@dataclass(frozen=True)
class Progress:
    """How far performance and representation have come at each checkpoint, each from 0 at the beginning to 1 at T.

    Attributes:
        epochs: (E,)
        performance: (N, E), of N networks; on held-out data.
        representation: (N, E), (mean ρ(t, T) − mean ρ(0, T)) / (1 − mean ρ(0, T)).
    """

    epochs: np.ndarray
    performance: np.ndarray
    representation: np.ndarray

    @classmethod
    def of(cls, table: pd.DataFrame, quantity: str) -> Progress:
        """The progress of one kind of network.

        Args:
            table: its rows.
            quantity: of its performance on held-out data.
        """
        similarity = _mean_similarity(table)
        measured = by_network(select(table, quantity=quantity), "epoch")[similarity.columns].to_numpy()
        values = similarity.to_numpy()
        first, last = measured[:, :1], measured[:, -1:]
        return cls(
            similarity.columns.to_numpy(float),
            (measured - first) / (last - first),
            (values - values[:, :1]) / (1 - values[:, :1]),
        )

    def lags(self) -> np.ndarray:
        """By how much of training the representation lags behind, the area between both curves over T: (N,)."""
        return np.trapezoid(self.performance - self.representation, self.epochs, axis=1) / self.epochs[-1]

    def reached(self, curves: np.ndarray, share: float = 0.95) -> float:
        """The epoch from which the mean of curves (N, E) is at least a share of its end."""
        behind = np.flatnonzero(curves.mean(axis=0) < share)
        return float(self.epochs[min(behind.max() + 1, len(self.epochs) - 1) if len(behind) else 0])


def _mean_similarity(table: pd.DataFrame) -> pd.DataFrame:
    """Mean correlation of each checkpoint with the end: rows networks, columns epochs."""
    return by_network(select(table, quantity="correlation"), "epoch")


def set_distances(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Distances of each of the `SETS`: rows networks, columns epochs after t_early."""
    distances = select(table, quantity="distance")
    return {name: by_network(select(distances, set=name), "epoch").iloc[:, 1:] for name in SETS}


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """The claims of figure 1, each with one value per network."""
    return [claim for kind in kinds(options) for claim in _claims_of_kind(select(table, kind=kind), options, kind)]


def _claims_of_kind(table: pd.DataFrame, options: StageOptions, name_of_kind: str) -> list[Claim]:
    kind = KINDS[name_of_kind]
    still_moving, *about_sets = _claims_about_sets(table, kind)
    return [
        *_claims_about_convergence(table, options, name_of_kind),
        *provided(still_moving, about_sets),
        *(_claims_about_the_probe(table, kind) if kind.has_decisions else []),
    ]


def _claim(
    kind: Kind, name: str, statement: str, statistic: str, values: np.ndarray, threshold: float = 0.0, **fields: object
) -> Claim:
    """The claim that the mean over networks exceeds a threshold."""
    return mean_claim(
        threshold,
        values,
        claim=f"stability.{kind.prefix}{name}",
        **{"figure": "1", "source": "section 2.2; article", **fields},
        statement=f"{statement}{kind.suffix}.",
        statistic=f"{statistic}; mean of {len(values)} networks, Student's interval",
    )


def _claims_about_convergence(table: pd.DataFrame, options: StageOptions, name_of_kind: str) -> list[Claim]:
    """Does performance converge before the representation does?"""
    kind, within = KINDS[name_of_kind], options_of(options, name_of_kind).converged_within
    epoch, share = unconverged(table, within, options.unconverged_below, kind.held_out)
    progress = Progress.of(table, kind.held_out)
    reached = [progress.reached(curves) for curves in (progress.performance, progress.representation)]
    end = progress.epochs[-1]
    not_before = ", the latter the end, where it is 1 by definition" if reached[1] == end else ""
    return [
        _claim(
            kind,
            "lag",
            f"On the way to the end of training the representation lags behind {kind.performance}",
            "area between the progress of performance and that of the mean correlation with the end, each from 0 to 1, "
            f"as a share of training (95 % are reached at epochs {reached[0]:g} and {reached[1]:g}{not_before})",
            progress.lags(),
        ),
        _claim(
            kind,
            "unconverged",
            f"When {kind.performance} has converged, many directions have not",
            f"share of correlations with the end below {options.unconverged_below:g} at epoch {epoch:g} (many: over "
            f"{options.many:g})",
            share.to_numpy(),
            options.many,
            obstacle=f"{kind.performance} converges no earlier than the end, T" if epoch == end else "",
        ),
    ]


def _claims_about_sets(table: pd.DataFrame, kind: Kind) -> list[Claim]:
    """The precondition, that the layer moves after T/2, and whether directions that settled early stay."""
    sets = set_distances(table)
    epochs = np.array(sets["stable"].columns)
    stable, unstable, random, principal = (sets[name].to_numpy() for name in SETS)
    half, count = _at_half(epochs)
    but_half = np.arange(count) != half if count > 1 else [True]
    later = unstable[:, but_half]
    has_neighbours = _has_neighbours(half, count)
    neighbours = unstable[:, [half - 1, half + 1]].mean(axis=1) if has_neighbours else np.full(len(unstable), np.nan)
    similarity = _mean_similarity(table)
    at_half = similarity[similarity.columns[np.abs(similarity.columns - similarity.columns[-1] / 2).argmin()]]
    return [
        _claim(
            kind,
            "still_moving",
            "After T/2 the layer still moves, without which its directions could not be told apart afterwards",
            f"1 minus the mean correlation of T/2 with T (over {1 - STILL:.2g})",
            1 - at_half.to_numpy(),
            1 - STILL,
            source="ours: a precondition",
        ),
        _claim(
            kind,
            "stable_set",
            "Directions that settle early stay closer to the layer than those that settle least at every later step",
            "smallest gap in distance, unstable minus stable set, over all later checkpoints but T/2",
            (unstable - stable)[:, but_half].min(axis=1),
        ),
        _claim(
            kind,
            "stable_beyond_random",
            "Directions that settle early stay closer to the layer than random directions do",
            "distance to the layer at T, random minus stable directions",
            (random - stable)[:, -1],
        ),
        _claim(
            kind,
            "stable_beyond_principal",
            "Directions that settle early stay closer to the layer than its strongest directions do",
            "distance to the layer at T, principal components minus stable directions",
            (principal - stable)[:, -1],
            source="ours: a baseline",
        ),
        _claim(
            kind,
            "stable_stays",
            "Directions that settle early are still there at the end",
            "similarity (mean ρ) of the stable set to the layer at T (over 0.5)",
            1 - stable[:, -1],
            0.5,
        ),
        _claim(
            kind,
            "unstable_set",
            "The directions that settle least decorrelate at once",
            "distance of the unstable set at the first checkpoint after t_early, as a share of its mean later distance "
            "(over 0.5)",
            later[:, 0] / later.mean(axis=1),
            0.5,
        ),
        _claim(
            kind,
            "spike",
            "The unstable set is farther from the layer at T/2, where it was chosen, than just before and after",
            "distance at T/2 minus the mean of the checkpoints before and after",
            unstable[:, half] - neighbours,
            obstacle="" if has_neighbours else NO_SPIKE,
        ),
    ]


def _claims_about_the_probe(table: pd.DataFrame, kind: Kind) -> list[Claim]:
    """Do the directions that settle early hold what the network's final decision needs?"""
    accuracies = by_network(select(table, quantity="probe"), "set")
    means = ", ".join(f"{name} {accuracies[name].mean():.2f}" for name in (*SETS, "all"))
    return [
        _claim(
            kind,
            "task_critical",
            "The directions that have settled by T/2 hold more of what the task needs than random directions do",
            "accuracy with which a linear probe of the directions at t_early finds the network's final decisions, "
            f"stable minus random ({means})",
            (accuracies["stable"] - accuracies["random"]).to_numpy(),
        ),
        _claim(
            kind,
            "task_critical_beyond_principal",
            "Directions that have settled by T/2 hold more of what the task needs than the layer's strongest do",
            "the same accuracy, stable minus principal components",
            (accuracies["stable"] - accuracies["principal"]).to_numpy(),
            source="ours: a baseline",
        ),
    ]


ROWS = {"convolutional": "the classifier", "recurrent": "the language model"}
"""What figures call the network of each of the `KINDS`."""
AT_HALF = {**figures.THRESHOLD, "linestyle": "-."}
CONVERGED = {**figures.THRESHOLD, "linestyle": "--"}
"""Lines at T/2 and where performance has converged."""
MEAN, HAS_CONVERGED = "mean ρ", "performance has converged"
"""What the legend calls the mean correlation, and the latter line."""
SEEN, UNSEEN = (figures.SEEN, "performance (train)"), (figures.UNSEEN, "performance (held out)")
"""How curves of performance on training and on held-out data look, and what legends call them."""


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """One row of panels per kind of network: correlations with the end, sets, progress, and probe or loss."""
    followed = kinds(options)
    figure, axes = figures.panels(len(followed), 4, height=2.5, ratios=[1.4, 1.1, 1.1, 0.9])
    for row, kind in enumerate(followed):
        rows, options_of_kind = select(table, kind=kind), options_of(options, kind)
        correlations, sets, progress, last = axes[4 * row : 4 * row + 4]
        _draw_correlations(figure, correlations, rows, options_of_kind, options.unconverged_below, KINDS[kind])
        _draw_sets(sets, rows, options_of_kind.directions)
        _draw_progress(progress, rows, options_of_kind.converged_within, KINDS[kind])
        (_draw_probe if KINDS[kind].has_decisions else _draw_loss)(last, rows)
        correlations.set_ylabel(f"{options_of_kind.layer} of {ROWS[kind]}\nCorrelation with the end")
    everything, of_sets = figures.handles_of(*axes), figures.handles_of(axes[1])
    others = (MEAN, *(label for _, label in (SEEN, UNSEEN)), HAS_CONVERGED, _threshold(options.unconverged_below))
    figures.legend_in_rows(figure, of_sets, {label: everything[label] for label in others})
    figures.letters(*axes)
    return figure


def _threshold(unconverged_below: float) -> str:
    """What the legend calls the line at the correlation from which a direction counts as converged."""
    return f"ρ = {unconverged_below:g}"


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
        dashed = epoch == judged_at
        style = {"linewidth": 2.2, "linestyle": "--"} if dashed else {"linewidth": 1.2}
        axis.plot(curve.index, curve, color=colour_of(epoch), **style)
    axis.axhline(unconverged_below, label=_threshold(unconverged_below), **figures.THRESHOLD)
    axis.set(xlabel=f"Direction of {options.layer} (sorted)", ylim=(-0.02, 1.03))
    the_end = " (end)" if judged_at == epochs[-1] else ""
    axis.set_title(f"dashed: epoch {judged_at:.3g}{the_end}", loc="right", fontsize=7)


def _draw_sets(axis, table: pd.DataFrame, directions: int) -> None:
    distances = set_distances(table)
    for (name, words), style in zip(SETS.items(), figures.SERIES, strict=False):
        curves = distances[name]
        figures.mean_and_std(axis, curves.columns, curves.to_numpy(), *style, words)
    axis.axvline(_half(table), label="T/2", **AT_HALF)
    _draw_epochs(axis)
    axis.set(ylabel=f"Distance of {directions} directions", ylim=(-0.02, 1.03))


def _draw_epochs(axis) -> None:
    """The axis of epochs, from 0, with whole numbers."""
    axis.set(xlabel="Epoch", xlim=(0, None))
    axis.xaxis.get_major_locator().set_params(integer=True, nbins=4)


def _draw_progress(axis, table: pd.DataFrame, within: float, kind: Kind) -> None:
    """How far performance and representation have come; accuracy as it is, loss from its first to its last value."""
    progress = Progress.of(table, kind.held_out)
    figures.mean_and_std(axis, progress.epochs, progress.representation, *figures.SERIES[4], MEAN)
    if kind.has_decisions:
        for quantity, style, label in ((kind.train, *SEEN), (kind.held_out, *UNSEEN)):
            figures.network_curves(axis, select(table, quantity=quantity), "epoch", *style, label)
    else:
        style, label = UNSEEN
        figures.mean_and_std(axis, progress.epochs, progress.performance, *style, label)
    epoch = convergence_epoch(table, within, kind.held_out)
    axis.axvline(epoch, label=HAS_CONVERGED, **CONVERGED)
    _draw_epochs(axis)
    axis.set(ylabel="Progress to the end", ylim=(-0.02, 1.03))


def _draw_probe(axis, table: pd.DataFrame) -> None:
    """Accuracy of the linear probe, one point per network and set."""
    accuracies = by_network(select(table, quantity="probe"), "set")
    names = {"stable": "settled", "principal": "principal", "random": "random", "unstable": "others", "all": "all"}
    colours = {**{name: style for name, style in zip(SETS, figures.SERIES, strict=False)}, "all": figures.SERIES[4]}
    for place, name in enumerate(names):
        colour, marker = colours[name]
        axis.scatter(np.full(len(accuracies), place), accuracies[name], color=colour, marker=marker, s=14)
    axis.set_xticks(range(len(names)), names.values(), rotation=90)
    axis.set(ylabel="Accuracy of a linear probe", ylim=(-0.02, 1.03), xlim=(-0.5, len(names) - 0.5))


def _draw_loss(axis, table: pd.DataFrame) -> None:
    for quantity, style, label in (("loss", *SEEN), ("valid_loss", *UNSEEN)):
        figures.network_curves(axis, select(table, quantity=quantity).dropna(subset="value"), "epoch", *style, label)
    _draw_epochs(axis)
    axis.set(ylabel="Loss (nats per token)", ylim=(0, None))


def _half(table: pd.DataFrame) -> float:
    """Epoch T/2."""
    return select(table, quantity="correlation")["epoch"].max() / 2


def _spread(values: list[float], count: int, including: float) -> list[float]:
    """About `count` of the sorted values, evenly spread, and one that must be among them."""
    positions = np.unique(np.linspace(0, len(values) - 1, count).round().astype(int))
    return sorted({*(values[i] for i in positions), including})
