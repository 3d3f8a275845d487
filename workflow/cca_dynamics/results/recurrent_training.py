"""Figures 6 and A8: recurrent networks converge from the bottom up.

Protocol (Morcos et al. 2018, section 4.1). The distance of every layer to its own final state, after every epoch of
training, on held-out text; a model of three layers and a deeper one. A layer that converges early has little area under
its curve.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from cca_dynamics.config.base import MANY, Integer
from cca_dynamics.config.cohorts import Cohort
from cca_dynamics.config.models import (
    MEASURES_DESCRIPTION,
    PWCCA_DESCRIPTION,
    Measures,
    Pwcca,
    ResultOptions,
    StageOptions,
    StudyConfig,
    option,
)
from cca_dynamics.errors import ConfigError
from cca_dynamics.results import figures, language_models, statistics
from cca_dynamics.results.claims import Claim, Obstacle, mean_claim, too_few
from cca_dynamics.results.inputs import Inputs, performance
from cca_dynamics.results.layers import require_data_points
from cca_dynamics.results.tables import CONTROLS, distance_rows, measures_of, select, tidy

KEY = "results.recurrent_training"
TITLES = {language_models.SHALLOW: "", language_models.DEEPER: "deeper "}


class Options(ResultOptions):
    """The keys of results.recurrent_training."""

    deeper: Annotated[Integer, Field(ge=3, le=32)] | None = option(
        5, "train", description="Layers of a deeper model, as wide as the first layer of the other; null: none."
    )
    deeper_networks: Integer = option(4, "train", ge=2, le=10_000, description="Networks of the deeper model.")
    data_points: Integer = option(
        5000, "activations", ge=100, le=MANY, description="Tokens of held-out text on which layers are compared."
    )
    measures: Measures = option(
        ("pwcca", "mean_cca", "cosine", "euclidean"), "compute", "claims", "plot", description=MEASURES_DESCRIPTION
    )
    pwcca: Pwcca = option("pwcca", "compute", "plot", description=PWCCA_DESCRIPTION)


ALTERNATIVES = {"pwcca": ("pwcca_squared", "pwcca_thresholded"), "language_training.schedule": ("constant",)}
"""Other values that the paper's words allow, the default of multiverse.recurrent_training."""


def check(config: StudyConfig, options: Options) -> None:
    """Refuse fewer layers than have an order, and fewer data points than CCA needs."""
    sizes = config.language_model.sizes
    if len(sizes) < 2:
        raise ConfigError("language_model.sizes", "one layer has no order of convergence; give at least two")
    require_data_points(f"{KEY}.data_points", options.data_points, "data points", sizes)


def obstacles(config: StudyConfig, options: Options) -> list[Obstacle]:
    """Settings under which claims could never be reproduced."""
    return [
        obstacle
        for key, networks, layers in (
            ("language_model.networks", config.language_model.networks, len(config.language_model.sizes)),
            (f"{KEY}.deeper_networks", options.deeper_networks, options.deeper),
        )
        if networks and layers
        for obstacle in too_few(
            key,
            networks,
            f"networks of {layers} layers",
            lambda count, layers=layers: statistics.smallest_jonckheere_p(count, layers),
        )
    ]


def cohorts(config: StudyConfig, options: Options) -> list[Cohort]:
    """The language models, shallow and deeper."""
    curves = language_models.curves(config)
    result = [language_models.shallow(config, curves)]
    if options.deeper:
        result.append(language_models.deeper(config, options.deeper, options.deeper_networks, curves))
    return result


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """Distances of each layer to its final state.

    Returns:
        Tidy rows. quantity "distance": cohort, network, layer, layer_index, step, epoch, measure, value, rank_a,
        rank_b, n, floor. quantity "loss", "valid_loss" (nats per token): cohort, network, step, epoch, value.
    """
    from cca_dynamics.similarity import factorize

    tables = []
    for cohort in inputs.activations:
        steps = inputs.checkpoints(cohort, "valid")
        layers = inputs.layers(cohort, steps[-1][0], "valid")
        for index, layer in enumerate(layers):
            final = inputs.representations(cohort, layer, steps[-1][0], "valid")
            last = [factorize(states, device=inputs.device) for states in final]
            rows = []
            for step, epoch in steps:
                for network, states in enumerate(inputs.representations(cohort, layer, step, "valid")):
                    factors, columns = factorize(states, device=inputs.device), {"step": step, "epoch": epoch}
                    rows += distance_rows(factors, last[network], measures_of(options), network=network, **columns)
            tables.append(pd.DataFrame(rows).assign(cohort=cohort, layer=layer, layer_index=index))
        tables.append(performance(inputs, cohort).assign(cohort=cohort))
    return tidy(tables)


def areas(table: pd.DataFrame, cohort: str, measure: str) -> np.ndarray:
    """Area under each layer's curve over training, in units of the distance: (networks, layers)."""
    rows = select(table, quantity="distance", cohort=cohort, measure=measure)
    curves = rows.pivot_table(index=["network", "layer_index"], columns="epoch", values="value")
    epochs = curves.columns.to_numpy(float)
    area = np.trapezoid(curves.to_numpy(), epochs, axis=1) / (epochs[-1] - epochs[0])
    return area.reshape(-1, curves.index.get_level_values("layer_index").nunique())


def separation(area: np.ndarray) -> np.ndarray:
    """How much later than the first layer the last one converges, over the mean of all layers.

    Args:
        area: (networks, layers), see `areas`.

    Returns:
        (networks,), without a unit.
    """
    return (area[:, -1] - area[:, 0]) / area.mean(axis=1)


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """The claims of figures 6 and A8."""
    seed, models = options.seed, _models(table)
    controls = [measure for measure in CONTROLS if measure in options.measures]
    result = [
        _bottom_up(table, cohort, "pwcca", "6", f"A {TITLES[cohort]}recurrent network converges", seed)
        for cohort in models
    ]
    for measure in controls:
        statement = f"{measure.capitalize()} distance shows this too: the network converges"
        result.append(_bottom_up(table, models[0], measure, "A8", statement, seed))

    separations = {measure: separation(areas(table, models[-1], measure)) for measure in options.measures}

    def clearer_claim(measure: str, name: str, figure: str, statement: str) -> Claim:
        gap = separations["pwcca"] - separations[measure]
        return mean_claim(
            0,
            gap,
            seed,
            claim=f"recurrent_training.{name}",
            figure=figure,
            statement=statement,
            statistic="how much later the last layer converges than the first (difference of areas over the mean "
            f"area), PWCCA minus {measure}, {TITLES[models[-1]]}model; n = {len(gap)} networks, bootstrap",
        )

    if "mean_cca" in options.measures:
        statement = "The unweighted mean of the correlations blurs this."
        result.append(clearer_claim("mean_cca", "unweighted_blurs", "6", statement))
    if controls:
        clearest = max(controls, key=lambda measure: separations[measure].mean())
        statement = "PWCCA shows it more clearly than cosine or Euclidean distance."
        result.append(clearer_claim(clearest, "clearer_than_raw", "A8", statement))
    return result


def _models(table: pd.DataFrame) -> list[str]:
    """The cohorts in the table, the deeper one last."""
    return [name for name in TITLES if (table["cohort"] == name).any()]


def _bottom_up(table: pd.DataFrame, cohort: str, measure: str, figure: str, subject: str, seed: int) -> Claim:
    area = areas(table, cohort, measure)
    name = "bottom_up" if measure == "pwcca" else f"bottom_up_{measure}"
    return mean_claim(
        0.5,
        statistics.ordered_pairs(area),
        seed,
        p_value=statistics.matched_jonckheere_p(area, seed),
        claim=f"recurrent_training.{name}{'_deeper' if cohort == language_models.DEEPER else ''}",
        figure=figure,
        statement=f"{subject} from the bottom up.",
        statistic=f"share of pairs of layers of which the lower one has the smaller area under its {measure} curve "
        f"(over 0.5); n = {len(area)} networks of {area.shape[1]} layers, Jonckheere's test, bootstrap of networks",
    )


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """One row of panels per model: the distance of each layer to its end, one panel per measure, and perplexity."""
    models, columns = _models(table), len(options.measures) + 1
    distances = select(table, quantity="distance")
    figure, axes = figures.panels(len(models), columns, height=2.0)
    styles = figures.sequential(int(distances["layer_index"].max()) + 1)
    for row, cohort in enumerate(models):
        rows, panels = select(distances, cohort=cohort), axes[row * columns : (row + 1) * columns]
        for axis, measure in zip(panels, options.measures, strict=False):
            for index, layer in select(rows, measure=measure).groupby("layer_index"):
                figures.network_curves(axis, layer, "epoch", *styles[int(index)], f"layer {int(index) + 1}")
            axis.set(title=figures.measure_label(measure), ylim=(0, None))
        panels[0].set_ylabel(f"{rows['layer_index'].nunique()} layers\nDistance to the end")
        _draw_perplexity(panels[-1], select(table, cohort=cohort))
        for axis in panels:
            axis.set(xlabel="Epoch", xlim=(distances["epoch"].min(), distances["epoch"].max()))
            axis.xaxis.get_major_locator().set_params(integer=True)
    figures.legend_outside(figure, *axes[-columns].get_legend_handles_labels())
    figures.letters(*axes)
    return figure


def _draw_perplexity(axis, table: pd.DataFrame) -> None:
    for quantity, style, label in (("loss", figures.SEEN, "train"), ("valid_loss", figures.UNSEEN, "held out")):
        losses = select(table, quantity=quantity)
        figures.network_curves(axis, losses.assign(value=np.exp(losses["value"])), "epoch", *style, label)
    axis.set(title="Perplexity", yscale="log")
    axis.legend(loc="upper right")
