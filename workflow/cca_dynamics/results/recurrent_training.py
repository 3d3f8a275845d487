"""Figures 6 and A8: recurrent networks converge from the bottom up.

Protocol (Morcos et al. 2018, section 4.1). The distance of every layer to its own final state over training, on
held-out text; a model of three layers and a deeper one. A layer that converges early has little area under its curve.
Layers differ in their distance at initialisation already, and the paper's areas contain it: so checkpoints are densest
in the first epoch, areas begin after initialisation, and curves are judged in units of their first value, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from math import nan
from typing import TYPE_CHECKING, Annotated

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
from cca_dynamics.results.claims import SHARES, Claim, Obstacle, estimate_claim, mean_claim, too_few
from cca_dynamics.results.inputs import Inputs, performance
from cca_dynamics.results.layers import require_data_points
from cca_dynamics.results.published import published
from cca_dynamics.results.statistics import Estimate
from cca_dynamics.results.tables import CONTROLS, distance_rows, measures_of, select, tidy

if TYPE_CHECKING:
    from cca_dynamics.similarity import Factors

KEY = "results.recurrent_training"
TITLES = {language_models.SHALLOW: "", language_models.DEEPER: "deeper "}
PUBLISHED = {language_models.SHALLOW: "6a", language_models.DEEPER: "6c"}
"""The paper's figures of the two models, on Penn Treebank and on WikiText-2."""


class Options(ResultOptions):
    """The keys of results.recurrent_training."""

    deeper: Annotated[Integer, Field(ge=3, le=32)] | None = option(
        5, "train", description="Layers of a deeper model, as wide as the first layer of the other; null: none."
    )
    deeper_networks: Integer = option(4, "train", ge=2, le=10_000, description="Networks of the deeper model.")
    data_points: Integer = option(
        3000, "activations", ge=100, le=MANY, description="Tokens of held-out text on which layers are compared."
    )
    measures: Measures = option(
        ("pwcca", "mean_cca", "cosine", "euclidean"), "compute", "claims", "plot", description=MEASURES_DESCRIPTION
    )
    pwcca: Pwcca = option("pwcca", "compute", "plot", description=PWCCA_DESCRIPTION)


ALTERNATIVES = {"pwcca": ("pwcca_squared", "pwcca_thresholded"), "language_training.schedule": ("linear",)}
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
            rows = {}
            for network in range(len(inputs.trained(cohort))):  # one after the other: their states may fill the memory

                def factors_at(step: int, what: tuple = (cohort, layer), network: int = network) -> Factors:
                    states = inputs.representation(*what, step, network, "valid")
                    return factorize(states, device=inputs.device)

                last = factors_at(steps[-1][0])
                for step, epoch in steps:
                    columns = {"network": network, "step": step, "epoch": epoch}
                    rows[step, network] = distance_rows(factors_at(step), last, measures_of(options), **columns)
            table = pd.DataFrame(chain.from_iterable(rows[key] for key in sorted(rows)))
            tables.append(table.assign(cohort=cohort, layer=layer, layer_index=index))
        tables.append(performance(inputs, cohort).assign(cohort=cohort))
    return tidy(tables)


@dataclass(frozen=True)
class Curves:
    """The distance of each layer to its final state over training, of N networks.

    Attributes:
        epochs: (E,) of the checkpoints, from 0 to the end.
        distances: (N, L, E).
    """

    epochs: np.ndarray
    distances: np.ndarray

    @classmethod
    def of(cls, table: pd.DataFrame, cohort: str, measure: str) -> Curves:
        """The curves of one cohort under one measure."""
        rows = select(table, quantity="distance", cohort=cohort, measure=measure)
        curves = rows.pivot_table(index=["network", "layer_index"], columns="epoch", values="value")
        layers = curves.index.get_level_values("layer_index").nunique()
        return cls(curves.columns.to_numpy(float), curves.to_numpy().reshape(-1, layers, curves.shape[1]))

    def normalised(self) -> Curves:
        """The same curves in units of the distance at initialisation."""
        return Curves(self.epochs, self.distances / self.distances[..., :1])

    def areas(self) -> np.ndarray:
        """Mean distance from the first checkpoint after initialisation to the end: (N, L)."""
        epochs, values = self.epochs[1:], self.distances[..., 1:]
        return np.trapezoid(values, epochs, axis=-1) / (epochs[-1] - epochs[0])

    def half_times(self) -> np.ndarray:
        """Epochs until half of the distance at initialisation is gone, interpolated between checkpoints: (N, L)."""
        shares = self.normalised().distances
        first = np.argmax(shares <= 0.5, axis=-1)[..., None]  # there is one: the distance at the end is 0
        after, before = (np.take_along_axis(shares, at, axis=-1)[..., 0] for at in (first, first - 1))
        end, start = self.epochs[first[..., 0]], self.epochs[first[..., 0] - 1]
        return start + (before - 0.5) / (before - after) * (end - start)

    def consistency(self) -> np.ndarray:
        """Share of pairs of layers in bottom-up order, mean over the checkpoints between both ends: (N,)."""
        between = self.distances[..., 1:-1]
        return np.mean([statistics.ordered_pairs(between[..., at]) for at in range(between.shape[-1])], axis=0)

    def separation(self) -> Estimate:
        """How far the last layer's distance lies above the first's, in units of the spread between networks.

        Mean over the checkpoints between both ends; the spread is the square root of the variance between networks,
        mean over layers and checkpoints.
        """
        between = self.distances[..., 1:-1]

        def ratio(weights: np.ndarray) -> np.ndarray:
            total = weights.sum(axis=1)[:, None, None]
            mean = np.einsum("bn,nle->ble", weights, between) / total
            variance = (np.einsum("bn,nle->ble", weights, between**2) / total - mean**2) * total / (total - 1)
            return (mean[:, -1] - mean[:, 0]).mean(axis=-1) / np.sqrt(variance.mean(axis=(1, 2)))

        return Estimate.of(ratio, np.zeros(len(between)))


READINGS = {
    "": ("after initialisation", Curves.areas, "area under its curve, from the first checkpoint after initialisation"),
    "_normalised": (
        "in units of the distance at initialisation",
        lambda curves: curves.normalised().areas(),
        "area under its curve in units of the distance at initialisation",
    ),
    "_half_time": ("by the time at which half of it is gone", Curves.half_times, "time to half of its first distance"),
}
"""Suffix of a claim → what "converges earlier" may mean of a layer's distance to its end, and how it is measured.

The distance at initialisation differs between layers, and the paper's area contains it.
"""


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """The claims of figures 6 and A8."""
    seed, models = options.seed, _models(table)
    curves = {(cohort, measure): Curves.of(table, cohort, measure) for cohort in models for measure in options.measures}
    controls = [measure for measure in CONTROLS if measure in options.measures]
    result = [
        _bottom_up(curves[cohort, "pwcca"], cohort, "pwcca", suffix, seed) for cohort in models for suffix in READINGS
    ]
    result += [_bottom_up(curves[models[0], measure], models[0], measure, "", seed) for measure in controls]
    blurred = [("mean_cca", "unweighted_blurs", "6", "Mean CCA blurs the order of layers")]
    noisier = [
        (
            measure,
            f"clearer_than_{measure}",
            "A8",
            f"PWCCA shows the order of layers more clearly than {measure} distance does",
        )
        for measure in controls
    ]
    for measure, name, figure, statement in [*blurred, *noisier]:
        if measure in options.measures:
            pair = curves[models[-1], "pwcca"], curves[models[-1], measure]
            result += _clearer(*pair, measure, name, figure, statement, TITLES[models[-1]])
    return result


def _clearer(
    pwcca: Curves, other: Curves, measure: str, name: str, figure: str, statement: str, model: str
) -> list[Claim]:
    """Whether another measure orders layers less consistently, and less clearly beside the spread of networks."""
    networks = len(pwcca.distances)
    texts = {"figure": figure, "source": "section 4.1" if figure == "6" else "appendix A.3"}
    details = f"PWCCA minus {measure}, {model}model; n = {networks} networks"
    return [
        mean_claim(
            0,
            pwcca.consistency() - other.consistency(),
            claim=f"recurrent_training.{name}",
            statement=f"{statement} (from checkpoint to checkpoint).",
            statistic="share of pairs of layers in bottom-up order, mean over checkpoints, "
            f"{details}, Student's interval",
            **texts,
        ),
        estimate_claim(
            0,
            pwcca.separation() - other.separation(),
            claim=f"recurrent_training.{name}_separation",
            statement=f"{statement} (beside the spread between networks).",
            statistic="distance of the last minus the first layer over the spread between networks, mean over "
            f"checkpoints, {details}, jackknife",
            **texts,
        ),
    ]


def _models(table: pd.DataFrame) -> list[str]:
    """The cohorts in the table, the deeper one last."""
    return [name for name in TITLES if (table["cohort"] == name).any()]


def _bottom_up(curves: Curves, cohort: str, measure: str, suffix: str, seed: int) -> Claim:
    words, quantity, description = READINGS[suffix]
    values = quantity(curves)
    networks, layers = values.shape
    subject = f"A {TITLES[cohort]}recurrent network converges from the bottom up"
    if measure != "pwcca":
        subject = f"{measure.capitalize()} distance shows it, too: a recurrent network converges from the bottom up"
    name = "bottom_up" if measure == "pwcca" else f"bottom_up_{measure}"
    of_paper = published(PUBLISHED[cohort], "mean over training")["value"].to_numpy()
    comparable = measure == "pwcca" and not suffix and len(of_paper) == layers
    return mean_claim(
        0.5,
        statistics.ordered_pairs(values),
        no_effect=0.5,
        limits=SHARES,
        p_value=statistics.matched_jonckheere_p(values, seed),
        p_opposite=statistics.matched_jonckheere_p(-values, seed),
        claim=f"recurrent_training.{name}{suffix}{'_deeper' if cohort == language_models.DEEPER else ''}",
        figure="6" if measure == "pwcca" else "A8",
        source="section 4.1" if measure == "pwcca" else "appendix A.3",
        paper_value=float(statistics.ordered_pairs(of_paper[None])[0]) if comparable else nan,
        statement=f"{subject} ({words}).",
        statistic=f"share of pairs of layers of which the lower one has the smaller value (over 0.5) of: "
        f"{description}, {measure}; n = {networks} networks of {layers} layers, Jonckheere's test, Student's interval",
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
            if cohort == language_models.SHALLOW and measure == "pwcca":
                _draw_published(axis, styles, rows["epoch"].max())
            axis.set(title=figures.measure_label(measure), ylim=(0, None))
        panels[0].set_ylabel(f"{rows['layer_index'].nunique()} layers\nDistance to the end")
        _draw_perplexity(panels[-1], select(table, cohort=cohort))
        for axis in panels:
            axis.set_xscale("function", functions=(_signed_root, _signed_square))  # most checkpoints are in epoch 1
            axis.set(xlabel="Epoch", xlim=_with_margins(distances["epoch"].max()))
            axis.set_xticks(_few_epochs(int(distances["epoch"].max())))
    by_label = figures.handles_of(axes[-columns], axes[0])  # more layers, and the paper's values
    figures.legend_outside(figure, by_label.values(), by_label.keys())
    figures.letters(*axes)
    return figure


def _signed_root(values: np.ndarray) -> np.ndarray:
    """The square root, and of what is left of 0 its mirror image, which leaves room for markers at 0."""
    return np.sign(values) * np.sqrt(np.abs(values))


def _signed_square(values: np.ndarray) -> np.ndarray:
    """The inverse of `_signed_root`."""
    return np.sign(values) * np.square(values)


def _with_margins(last: float, share: float = 0.07) -> tuple[float, float]:
    """Limits of an axis of square roots from 0 to the last epoch, with room for whole markers at both ends."""
    return -last * share**2, last * (1 + share) ** 2


def _draw_published(axis, styles: list, last: float) -> None:
    """The paper's curves of three layers, at the same shares of training."""
    of_paper = published(PUBLISHED[language_models.SHALLOW])
    for index, style in enumerate(styles[:3]):
        rows = select(of_paper, curve=f"layer {index + 1}")
        label = "paper (Penn Treebank)" if index == 0 else None
        figures.published_points(axis, last * rows["x"], rows["value"], *style, label, 13)


def _few_epochs(last: int) -> list[int]:
    """Epochs to write on an axis of square roots: 0, 1, the last, and one between them."""
    return sorted({0, 1, round(last / 2.5), last})


def _draw_perplexity(axis, table: pd.DataFrame) -> None:
    for quantity, style, label in (("loss", figures.SEEN, "train"), ("valid_loss", figures.UNSEEN, "held out")):
        losses = select(table, quantity=quantity)
        figures.network_curves(axis, losses.assign(value=np.exp(losses["value"])), "epoch", *style, label)
    axis.set(title="Perplexity", yscale="log")
    low, high = axis.get_ylim()
    ticks = [digit * 10.0**power for power in range(7) for digit in (1, 2, 5)]
    axis.set_yticks([tick for tick in ticks if low <= tick <= high], minor=False)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    axis.set_ylim(low, high * (high / low) ** 0.4)  # room for the legend
    axis.legend(loc="upper right", borderaxespad=0, handlelength=1.4)
