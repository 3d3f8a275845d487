"""Figures 6 and A8: recurrent networks converge from the bottom up.

Protocol (Morcos et al. 2018, section 4.1). The distance of every layer to its own final state, after every epoch of
training, on held-out text; a model of three layers and a deeper one. A layer that converges early has little area under
its curve.
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

KEY = "results.recurrent_training"
TITLES = {recurrent.SHALLOW: "", recurrent.DEEPER: "deeper "}
RAW = ("cosine", "euclidean")


def check(study: Study) -> None:
    """Refuse fewer layers than have an order, and fewer data points than CCA needs."""
    options, sizes = study.options("recurrent_training"), study.config["language_model"]["sizes"]
    if len(sizes) < 2:
        raise ConfigError("language_model.sizes", "one layer has no order of convergence; give at least two")
    if options["data_points"] <= 2 * max(sizes):
        raise ConfigError(
            f"{KEY}.data_points",
            f"{options['data_points']} data points are too few for layers of {max(sizes)} units; give more than "
            f"{2 * max(sizes)}, better {10 * max(sizes)}",
        )


def cohorts(study: Study) -> list[Cohort]:
    """The language models, shallow and deeper."""
    return recurrent.cohorts(study)


def compute(inputs: Inputs, options: dict) -> pd.DataFrame:
    """Distances of each layer to its final state.

    Returns:
        Tidy rows. quantity "distance": cohort, network, layer, layer_index, step, epoch, measure, value, rank_a,
        rank_b, n. quantity "loss", "valid_loss" (nats a token): cohort, network, step, epoch, value.
    """
    from cca_dynamics.similarity import MEASURES

    tables = []
    for cohort in inputs.activations:
        steps = inputs.checkpoints(cohort, "valid")
        layers = inputs.layers(cohort, steps[-1][0], "valid")
        for index, layer in enumerate(layers):
            final = inputs.representations(cohort, layer, steps[-1][0], "valid")
            rows = []
            for step, epoch in steps:
                now = inputs.representations(cohort, layer, step, "valid")
                for network in range(len(final)):
                    for measure in options["measures"]:
                        result = MEASURES[measure](now[network], final[network], device=inputs.device)
                        rows.append(
                            {
                                "network": network,
                                "step": step,
                                "epoch": epoch,
                                "measure": measure,
                                "value": result.distance,
                                "rank_a": result.rank_x,
                                "rank_b": result.rank_y,
                                "n": result.n,
                            }
                        )
            place = {"cohort": cohort, "layer": layer, "layer_index": index, "quantity": "distance"}
            tables.append(pd.DataFrame(rows).assign(**place))
        history = inputs.history(cohort).melt(id_vars=["network", "step", "epoch"], var_name="quantity")
        tables.append(history.assign(cohort=cohort))
    return tidy(tables)


def areas(table: pd.DataFrame, cohort: str, measure: str) -> np.ndarray:
    """Area under each layer's curve over training, in units of the distance: (networks, layers)."""
    rows = table[(table["quantity"] == "distance") & (table["cohort"] == cohort) & (table["measure"] == measure)]
    curves = rows.pivot_table(index=["network", "layer_index"], columns="epoch", values="value")
    epochs = curves.columns.to_numpy(float)
    area = np.trapezoid(curves.to_numpy(), epochs, axis=1) / (epochs[-1] - epochs[0])
    return area.reshape(-1, curves.index.get_level_values("layer_index").nunique())


def separation(area: np.ndarray) -> np.ndarray:
    """How much later than the first layer the last one converges, over the mean of all: (networks,)."""
    return (area[:, -1] - area[:, 0]) / area.mean(axis=1)


def claims(table: pd.DataFrame, options: dict) -> list[Claim]:
    """The claims of figures 6 and A8."""
    seed, found = options["seed"], []
    models = [name for name in TITLES if (table["cohort"] == name).any()]
    for cohort in models:
        found.append(_bottom_up(table, cohort, "pwcca", "6", f"A {TITLES[cohort]}recurrent network converges", seed))
    for measure in RAW:
        if measure in options["measures"]:
            statement = f"{measure.capitalize()} distance shows this too: the network converges"
            found.append(_bottom_up(table, models[0], measure, "A8", statement, seed))
    last = models[-1]
    weighted = separation(areas(table, last, "pwcca"))
    others = {"mean_cca": ("unweighted_blurs", "6", "The unweighted mean of the correlations blurs this.")}
    raw = [measure for measure in RAW if measure in options["measures"]]
    if raw:
        clearest = max(raw, key=lambda measure: separation(areas(table, last, measure)).mean())
        statement = "PWCCA shows it more clearly than cosine or Euclidean distance."
        others[clearest] = ("clearer_than_raw", "A8", statement)
    for measure, (name, figure, statement) in others.items():
        if measure not in options["measures"]:
            continue
        gap = weighted - separation(areas(table, last, measure))
        ci = statistics.bootstrap_mean(gap, seed)
        found.append(
            Claim(
                claim=f"recurrent_training.{name}",
                figure=figure,
                statement=statement,
                statistic="how much later the last layer converges than the first (difference of areas over the mean "
                f"area), PWCCA minus {measure}, {TITLES[last]}model; n = {len(gap)} networks, bootstrap",
                value=float(gap.mean()),
                ci_low=ci[0],
                ci_high=ci[1],
                p_value=math.nan,
                paper_value=math.nan,
                verdict=exceeds(0, ci),
            )
        )
    return found


def _bottom_up(table: pd.DataFrame, cohort: str, measure: str, figure: str, subject: str, seed: int) -> Claim:
    area = areas(table, cohort, measure)
    ordered = statistics.ordered_pairs(area)
    ci = statistics.bootstrap_mean(ordered, seed)
    p = statistics.jonckheere_p(area, seed)
    name = "bottom_up" if measure == "pwcca" else f"bottom_up_{measure}"
    return Claim(
        claim=f"recurrent_training.{name}{'_deeper' if cohort == recurrent.DEEPER else ''}",
        figure=figure,
        statement=f"{subject} from the bottom up.",
        statistic=f"share of pairs of layers of which the lower one has the smaller area under its {measure} curve "
        f"(over 0.5); n = {len(area)} networks of {area.shape[1]} layers, Jonckheere's test, bootstrap of networks",
        value=float(ordered.mean()),
        ci_low=ci[0],
        ci_high=ci[1],
        p_value=p,
        paper_value=math.nan,
        verdict=exceeds(0.5, ci, p),
    )


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: dict):
    """A row of panels a model: the distance of each layer to its end, one panel a measure, and perplexity."""
    from cca_dynamics import figures

    models = [name for name in TITLES if (table["cohort"] == name).any()]
    columns, distances = len(options["measures"]) + 1, table[table["quantity"] == "distance"]
    figure, axes = figures.panels(len(models), columns, height=2.0)
    styles = figures.sequential(int(distances["layer_index"].max()) + 1)
    epochs = sorted(distances["epoch"].unique())
    for row, cohort in enumerate(models):
        here, panels = table[table["cohort"] == cohort], axes[row * columns : (row + 1) * columns]
        for axis, measure in zip(panels, options["measures"], strict=False):
            mine = distances[(distances["cohort"] == cohort) & (distances["measure"] == measure)]
            for index, layer in mine.groupby("layer_index"):
                wide = layer.pivot_table(index="network", columns="epoch", values="value")
                label = f"layer {int(index) + 1}"
                figures.mean_and_std(axis, wide.columns, wide.to_numpy(), *styles[int(index)], label)
            axis.set(title=figures.MEASURES[measure], ylim=(0, None), xlim=(epochs[0], epochs[-1]))
        layers = distances[distances["cohort"] == cohort]["layer_index"].nunique()
        panels[0].set_ylabel(f"{layers} layers\nDistance to the end")
        perplexity = panels[-1]
        for quantity, style, label in (("loss", figures.SEEN, "train"), ("valid_loss", figures.UNSEEN, "held out")):
            wide = here[here["quantity"] == quantity].pivot_table(index="network", columns="epoch", values="value")
            figures.mean_and_std(perplexity, wide.columns, np.exp(wide.to_numpy()), *style, label)
        perplexity.set(title="Perplexity", yscale="log", xlim=(epochs[0], epochs[-1]))
        perplexity.legend(loc="upper right")
        for axis in panels:
            axis.set_xlabel("Epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
    last = axes[(len(models) - 1) * columns]
    figure.legend(*last.get_legend_handles_labels(), loc="outside upper center", ncols=len(styles))
    figures.letters(*axes)
    return figure
