"""Figures 1 and A1: parts of a representation settle early and stay; the rest never settles.

Protocol (Morcos et al. 2018, section 2.2, figure 1). ρ(t, T) are the canonical correlations between a layer at step t
and the same layer at the last step T. For panel d, CCA between the layer at t_early and at T/2 orders the directions
of the layer at t_early; the best converged ones form S, the worst B; each set is then compared with the whole layer
at later steps as 1 − mean(ρ) over the directions of the set.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from cca_dynamics import statistics
from cca_dynamics.claims import Claim, exceeds
from cca_dynamics.results import recurrent
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.tables import tidy
from cca_dynamics.study import Cohort, ConfigError, Study

KEY = "results.stability"


KINDS = {
    "convolutional": ("stability", "train", "test_accuracy", "Accuracy"),
    "recurrent": (recurrent.SHALLOW, "valid", "valid_loss", "Loss"),
}
"""Kind of network → cohort, split of its activations, the quantity by which its performance has converged."""


def settings(options: dict, kind: str) -> dict:
    """The options of one kind of network: the recurrent block replaces those it has."""
    return {**options, **options["recurrent"]} if kind == "recurrent" else options


def kinds(options: dict) -> list[str]:
    """The kinds of networks a study follows."""
    return [kind for kind in KINDS if options["layer" if kind == "convolutional" else "recurrent"]]


def check(study: Study) -> None:
    """Refuse directions that do not fit the layer, and early times at or after half of training."""
    options = study.options("stability")
    if not kinds(options):
        raise ConfigError(f"{KEY}.layer", f"null, and so is {KEY}.recurrent; give a layer of one of them")
    if options["layer"]:
        neurons = study.require_layer(f"{KEY}.layer", options["layer"], study.network("stability"))
        _check_times(KEY, options, neurons, study.training("stability")["epochs"])
    if options["recurrent"]:
        own, sizes = settings(options, "recurrent"), study.config["language_model"]["sizes"]
        layers = recurrent.layers(sizes)
        if own["layer"] not in layers:
            raise ConfigError(f"{KEY}.recurrent.layer", f"the model has no {own['layer']}; its layers are {layers}")
        epochs = study.config["language_training"]["epochs"]
        _check_times(f"{KEY}.recurrent", own, sizes[layers.index(own["layer"])], epochs)


def _check_times(key: str, options: dict, neurons: int, epochs: int) -> None:
    if 2 * options["directions"] > neurons:
        raise ConfigError(
            f"{key}.directions",
            f"two sets of {options['directions']} directions do not fit in {options['layer']}, which has {neurons} "
            f"neurons; use {neurons // 2} or fewer",
        )
    if options["early_epoch"] >= epochs / 2:
        raise ConfigError(
            f"{key}.early_epoch",
            f"t_early ({options['early_epoch']}) is not before T/2 (epoch {epochs / 2:g}); lower it or train longer",
        )


def cohorts(study: Study) -> list[Cohort]:
    """One cohort, stored every `checkpoint_every` epochs and at t_early, T/2 and T; and the language models."""
    options, training = study.options("stability"), study.training("stability")
    recurrent_ = recurrent.cohorts(study)[:1] if options["recurrent"] else []
    if not options["layer"]:
        return recurrent_
    epochs, every = training["epochs"], options["checkpoint_every"]
    regular = [round(i * every, 6) for i in range(math.floor(epochs / every) + 1)]
    checkpoints = sorted({0, *regular, options["early_epoch"], epochs / 2, epochs})
    convolutional = Cohort(
        name="stability",
        networks=options["networks"],
        network=study.network("stability"),
        training=training,
        checkpoints=tuple(checkpoints),
        activations=({"epochs": "all", "splits": ["train"], "layers": [options["layer"]]},),
    )
    return [convolutional, *recurrent_]


def compute(inputs: Inputs, options: dict) -> pd.DataFrame:
    """Correlations with the end, distances of the two sets, and performance.

    Returns:
        Tidy rows. quantity "correlation": value is ρ number `index` (1 is the largest) between `step` and T, with
        rank_a, rank_b, n and the floor of 1 − mean(ρ). quantity "distance": value is the distance of `set` ("stable",
        "unstable") to the layer at `step`, for steps from t_early. quantity "train_accuracy", "test_accuracy",
        "loss" ("valid_loss" of recurrent networks). Each with kind, network, step, epoch.
    """
    tables = [_dynamics(inputs, kind, settings(options, kind)).assign(kind=kind) for kind in kinds(options)]
    return tidy(tables)


def _dynamics(inputs: Inputs, kind: str, options: dict) -> pd.DataFrame:
    from cca_dynamics.similarity import cca

    cohort, split, _, _ = KINDS[kind]
    steps = inputs.checkpoints(cohort, split)
    early = _nearest(steps, options["early_epoch"])
    half, end = _nearest(steps, steps[-1][1] / 2), steps[-1][0]
    layer, k = options["layer"], options["directions"]

    def states(step: int) -> np.ndarray:
        return inputs.representations(cohort, layer, step, split)

    final, at_early, at_half = states(end), states(early), states(half)
    sets = []
    for network in range(len(final)):
        variates = cca(at_early[network], at_half[network], variates=True).variates_x
        if variates.shape[1] < 2 * k:
            raise ValueError(
                f"network {network} has {variates.shape[1]} directions in {layer} at t_early, too few for two sets "
                f"of {k}; lower {KEY}.directions or raise {KEY}.early_epoch"
            )
        sets.append({"stable": variates[:, :k], "unstable": variates[:, -k:]})

    tables = []
    for step, epoch in steps:
        now = states(step)
        for network in range(len(final)):
            place = {"network": network, "step": step, "epoch": epoch}
            result = cca(now[network], final[network])
            tables.append(
                pd.DataFrame(
                    {
                        **place,
                        "quantity": "correlation",
                        "index": np.arange(1, len(result.correlations) + 1),
                        "value": result.correlations,
                        "rank_a": result.rank_x,
                        "rank_b": result.rank_y,
                        "n": result.n,
                        "floor": result.floor,
                    }
                )
            )
            if step >= early:
                distances = {
                    name: 1 - cca(set_, now[network]).correlations.mean() for name, set_ in sets[network].items()
                }
                tables.append(
                    pd.DataFrame(
                        {**place, "quantity": "distance", "set": distances.keys(), "value": distances.values()}
                    )
                )
    history = inputs.history(cohort)
    tables.append(history.melt(id_vars=["network", "step", "epoch"], var_name="quantity"))
    return tidy(tables)


def _nearest(steps: list[tuple[int, float]], epoch: float) -> int:
    return min(steps, key=lambda pair: abs(pair[1] - epoch))[0]


def convergence_epoch(table: pd.DataFrame, within: float, quantity: str = "test_accuracy") -> float:
    """First epoch from which performance, the median over networks, stays within a distance of its final value."""
    performance = table[table["quantity"] == quantity].groupby("epoch")["value"].median()
    away = (performance - performance.iloc[-1]).abs() > within
    return float(
        performance.index[-1]
        if away.iloc[-1]
        else performance.index[np.flatnonzero(away).max() + 1 if away.any() else 0]
    )


def unconverged(table: pd.DataFrame, options: dict, quantity: str = "test_accuracy") -> tuple[float, pd.Series]:
    """The first checkpoint once performance has converged, and each network's share of ρ below the threshold there."""
    correlations = table[table["quantity"] == "correlation"]
    converged = convergence_epoch(table, options["converged_within"], quantity)
    epoch = min(value for value in correlations["epoch"].unique() if value >= converged)
    there = correlations[correlations["epoch"] == epoch]
    below = there["value"] < options["unconverged_below"]
    return float(epoch), below.groupby(there["network"]).mean()


def set_distances(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Distances of each set: rows networks, columns epochs after t_early."""
    distances = table[table["quantity"] == "distance"]
    wide = {
        name: rows.pivot_table(index="network", columns="epoch", values="value")
        for name, rows in distances.groupby("set")
    }
    return {name: rows.iloc[:, 1:] for name, rows in wide.items()}


def claims(table: pd.DataFrame, options: dict) -> list[Claim]:
    """The claims of figure 1, each with one value per network and a sign test over networks."""
    found = []
    for kind in kinds(options):
        found += _claims(table[table["kind"] == kind], settings(options, kind), kind)
    return found


def _claims(table: pd.DataFrame, options: dict, kind: str) -> list[Claim]:
    seed, quantity = options["seed"], KINDS[kind][2]
    performance, prefix, of = {
        "convolutional": ("accuracy", "", ""),
        "recurrent": ("the loss", "recurrent_", ", in a recurrent network"),
    }[kind]
    epoch, share = unconverged(table, options, quantity)
    sets = set_distances(table)
    stable, unstable = sets["stable"], sets["unstable"]
    epochs = np.array(stable.columns)
    half = int(np.abs(epochs - epochs[-1] / 2).argmin())
    elsewhere = np.arange(len(epochs)) != half
    n = len(share)

    gap = (unstable - stable).to_numpy()[:, elsewhere].min(axis=1)
    later = unstable.to_numpy()[:, elsewhere]
    quick = later[:, 0] / later.mean(axis=1)
    drift = stable.to_numpy()[:, -1]
    neighbours = unstable.to_numpy()[:, [half - 1, half + 1]].mean(axis=1) if 0 < half < len(epochs) - 1 else np.nan
    spike = unstable.to_numpy()[:, half] - neighbours

    def claim(name: str, statement: str, statistic: str, values: np.ndarray, threshold: float) -> Claim:
        values = np.asarray(values, dtype=float)
        p, ci = statistics.sign_test(values - threshold), statistics.bootstrap_mean(values, seed)
        return Claim(
            claim=f"stability.{prefix}{name}",
            figure="1",
            statement=f"{statement}{of}.",
            statistic=f"{statistic}; mean of {n} networks, sign test",
            value=float(values.mean()),
            ci_low=ci[0],
            ci_high=ci[1],
            p_value=p,
            paper_value=math.nan,
            verdict=exceeds(threshold, ci, p),
        )

    return [
        claim(
            "unconverged",
            f"When {performance} has converged, many directions have not",
            f"share of correlations with the end below {options['unconverged_below']:g} at epoch {epoch:g} (many: over "
            f"{options['many']:g})",
            share.to_numpy(),
            options["many"],
        ),
        claim(
            "stable_set",
            "Directions that settle early stay closer to the layer than the others at every later step",
            "smallest gap in distance, unstable minus stable set, over all later checkpoints but T/2",
            gap,
            0.0,
        ),
        claim(
            "stable_stays",
            "Directions that settle early are still there at the end",
            "similarity (mean ρ) of the stable set to the layer at T (over 0.5)",
            1 - drift,
            0.5,
        ),
        claim(
            "unstable_set",
            "The other directions decorrelate at once",
            "distance of the unstable set at the first checkpoint after t_early, as a share of its mean later distance "
            "(over 0.5)",
            quick,
            0.5,
        ),
        claim(
            "spike",
            "The unstable set is farthest at T/2, the step it was chosen against",
            "distance at T/2 minus the mean of the checkpoints before and after",
            spike,
            0.0,
        ),
    ]


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: dict):
    """A row a kind of network: correlations with the end over training, distances of the two sets, performance."""
    from cca_dynamics import figures

    rows = kinds(options)
    figure, axes = figures.panels(len(rows), 3, height=2.5, ratios=[1.3, 1, 1])
    for row, kind in enumerate(rows):
        _draw(figure, axes[3 * row : 3 * row + 3], table[table["kind"] == kind], settings(options, kind), kind)
    figures.letters(*axes)
    return figure


def _draw(figure, axes, table: pd.DataFrame, options: dict, kind: str) -> None:
    from cca_dynamics import figures

    left, middle, right = axes
    quantity, name_of = KINDS[kind][2:]
    converged = convergence_epoch(table, options["converged_within"], quantity)
    judged_at = unconverged(table, options, quantity)[0]

    correlations = table[table["quantity"] == "correlation"]
    epochs = sorted(correlations["epoch"].unique())
    shown = _spread(epochs, 7, keep=judged_at)
    curves = correlations[correlations["epoch"].isin(shown)].groupby(["epoch", "index"])["value"].mean()
    colour_of = figures.epoch_bar(figure, left, epochs)
    for epoch, mean in curves.groupby("epoch"):
        at_convergence = epoch == judged_at
        left.plot(
            mean.index.get_level_values("index"),
            mean,
            color=colour_of(epoch),
            linewidth=2.2 if at_convergence else 1.2,
            linestyle="--" if at_convergence else "-",
            label=f"epoch {epoch:g}, {name_of.lower()} converged" if at_convergence else None,
        )
    left.axhline(options["unconverged_below"], color=figures.GREY, linewidth=0.7, linestyle=":")
    left.set(xlabel=f"Direction of {options['layer']} (sorted)", ylabel="Canonical correlation with the end")
    left.legend(loc="upper left")
    figures.headroom(left)

    distances = set_distances(table)
    for name, style in zip(("stable", "unstable"), figures.SERIES, strict=False):
        wide = distances[name]
        label = f"{name} ({options['directions']} directions)"
        figures.mean_and_std(middle, wide.columns, wide.to_numpy(), *style, label)
    half = epochs[-1] / 2
    middle.vlines(half, 0, 1, color=figures.GREY, linewidth=0.7, linestyle=":")
    between = np.mean([wide.mean().iloc[np.abs(wide.columns - half).argmin()] for wide in distances.values()])
    middle.annotate("T/2", (half, between), xytext=(2, 0), textcoords="offset points", color=figures.GREY)
    middle.set(xlabel="Epoch", ylabel="CCA distance to the layer", xlim=(0, None))
    middle.legend(loc="upper left")
    figures.headroom(middle)

    accuracy = kind == "convolutional"
    for measured, style, label in (
        ("train_accuracy" if accuracy else "loss", figures.SEEN, "train"),
        (quantity, figures.UNSEEN, "test" if accuracy else "held out"),
    ):
        wide = table[table["quantity"] == measured].pivot_table(index="network", columns="epoch", values="value")
        figures.mean_and_std(right, wide.columns, wide.to_numpy(), *style, label)
    right.axvline(converged, ymax=0.82, color=figures.GREY, linewidth=0.7, linestyle="--")  # below the legend
    side = {"xytext": (3, 4), "ha": "left"} if converged <= half else {"xytext": (-3, 4), "ha": "right"}
    right.annotate("converged", (converged, 0), textcoords="offset points", color=figures.GREY, **side)
    right.set(xlabel="Epoch", ylabel="Accuracy" if accuracy else "Loss (nats a token)")
    if accuracy:
        right.legend(loc="upper left", ncols=2)
        figures.headroom(right)
    else:
        right.legend(loc="upper right")
        right.set_ylim(0, None)


def _spread(values: list[float], count: int, keep: float) -> list[float]:
    """About `count` of the sorted values, evenly spread, with `keep` among them."""
    positions = np.unique(np.linspace(0, len(values) - 1, count).round().astype(int))
    return sorted({*(values[i] for i in positions), keep})
