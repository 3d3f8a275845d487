"""Beyond the paper: does a measure find, for a layer of one network, the same layer of another network?

Protocol (Kornblith et al. 2019, section 6.1 and table 2). Networks of one architecture are trained from different
initial weights. For each layer of one network, the nearest layer of another network is looked for; the measure has
identified the layer if that is the corresponding one. Its score is the share of layers that it identifies, over all
ordered pairs of networks; the softmax is left out.

What a layer is differs. Here it has one number per channel, the mean over positions of the feature map after batch norm
and ReLU, so that layers have fewer neurons than there are data points, and unequally many. Kornblith et al. take every
position of every channel as a neuron, so that most of their layers have more neurons than CCA has data points for.

The test is repeated on the same layers before their ReLU. There the mean over positions is a linear function of the
layer below, of its means over positions and of its values at the ends. So the means of the first convolution span the
same few directions in all networks, whatever their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd

from cca_dynamics.config.base import Number
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
from cca_dynamics.networks import architectures
from cca_dynamics.results import classifiers, figures, statistics
from cca_dynamics.results.claims import SHARES, Claim, Obstacle, below, estimate_claim, too_few
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.layers import require_any_width
from cca_dynamics.results.statistics import Estimate
from cca_dynamics.results.tables import CONTROLS, distance_table, measures_of, select, tidy

KEY = "results.layer_identification"
NETWORKS_OF = ("generalization",)
"""Results whose networks are compared."""
COHORT = classifiers.GROUPS[0]
WITH_LAYERS_BEFORE_RELU = "convnet"
"""The architecture whose layers are compared before their ReLU, too. A residual network's ReLU comes after a sum, and
nothing is known of a module's."""
PUBLISHED = {"mean_cca": 0.014, "svcca": 0.099, "pwcca": 0.111, "linear_cka": 0.993}
"""Share of layers that a measure identifies in ten networks on CIFAR-10: Kornblith et al. 2019, table 2."""
NUMBERS_FIT = 10
"""Layers up to which the distance is written into each cell of a matrix."""


class Options(ResultOptions):
    """The keys of results.layer_identification."""

    measures: Measures = option(
        ("mean_cca", "svcca", "pwcca", "procrustes", "linear_cka", "linear_cka_debiased"),
        *("compute", "plot"),
        description=f"{MEASURES_DESCRIPTION} Not {' or '.join(CONTROLS)}, which compare layers of equal width alone; "
        "rbf_cka and rsa take minutes.",
    )
    pwcca: Pwcca = option("pwcca", "compute", "plot", description=PWCCA_DESCRIPTION)
    split: Literal["train", "test"] = option(
        "test",
        *("activations", "compute", "claims"),
        description="The data points on which layers are compared; test: those that no network has fitted.",
    )
    identifies: Number = option(
        0.8,
        "claims",
        "plot",
        gt=0,
        lt=1,
        description="A measure that identifies layers does so for more than this share.",
    )


ALTERNATIVES = {"pwcca": ("pwcca_squared", "pwcca_thresholded")}
"""Other values that the paper's words allow, the default of multiverse.layer_identification."""


def check(config: StudyConfig, options: Options) -> None:
    """Refuse measures of layers of equal width, a network without layers to confuse, and too few test data points."""
    require_any_width(f"{KEY}.measures", options.measures)
    network = config.network_of("generalization")
    widths = architectures.widths(network)
    neurons = [widths[layer] for layer in classifiers.hidden_layers(network)]
    if len(neurons) < 2:
        raise ConfigError(
            "results.generalization.network", "a network with one layer has none to confuse it with; give it more"
        )
    size = config.dataset.test_size
    if options.split == "test" and size is not None and max(neurons) >= size - 1:
        raise ConfigError(
            "dataset.test_size",
            f"{size} data points are too few for a layer of {max(neurons)} neurons; give more, several times the "
            f"neurons, or choose {KEY}.split: train",
        )


def obstacles(config: StudyConfig, options: Options) -> list[Obstacle]:
    """Settings under which claims could never be reproduced."""
    return too_few("results.generalization.networks", config.results.generalization.networks, "networks")


def cohorts(config: StudyConfig, options: Options) -> list[Cohort]:
    """The generalizing networks of results.generalization, with layers after and, of a convnet, before the ReLU."""
    before = config.network_of("generalization").name == WITH_LAYERS_BEFORE_RELU
    request = classifiers.final_layers(config, options.split).with_changes({"before_relu": before})
    return [classifiers.labelled(config, COHORT, request)]


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """Distances from each layer of each network to all layers of all other networks.

    Returns:
        Tidy rows, quantity "distance": relu ("after", and of convnets "before"), measure, network_a, layer_a,
        network_b, layer_b, value (distance from the layer of network a to that of network b), rank_a, rank_b, n,
        forced, floor; layers in the order of the data flow, without the softmax.
    """
    from cca_dynamics.representations.extraction import before_relu
    from cca_dynamics.training.checkpoints import load_recipe

    network = load_recipe(inputs.networks[COHORT][0]).network
    names = np.array(classifiers.hidden_layers(network))
    step, _ = inputs.checkpoints(COHORT, options.split)[-1]
    stored = {"after": names}
    if network.name == WITH_LAYERS_BEFORE_RELU:
        stored["before"] = [before_relu(name) for name in names]
    tables = []
    for relu, layers in stored.items():
        networks = [inputs.representations(COHORT, layer, step, options.split) for layer in layers]
        representations = [states[i] for i in range(len(networks[0])) for states in networks]
        rows = distance_table(representations, measures_of(options), inputs.device, inputs.finished_blocks)
        (network_a, layer_a), (network_b, layer_b) = (
            np.divmod(rows[position].to_numpy(int), len(names)) for position in ("network_a", "network_b")
        )
        rows = rows.assign(
            relu=relu, network_a=network_a, layer_a=names[layer_a], network_b=network_b, layer_b=names[layer_b]
        )
        tables.append(rows[network_a != network_b])
    return tidy(tables)


class Distances:
    """Distances between the layers of different networks under one measure, on one side of the ReLU.

    Args:
        table: written by `compute`.
        measure: its name in the table.
        relu: "after" or "before".

    Attributes:
        layers: names of the L layers, in the order of the data flow.
        values: (N, N, L, L); values[a, b, i, j] is the distance from layer i of network a to layer j of network b. The
            networks' distances to themselves are 0.
    """

    def __init__(self, table: pd.DataFrame, measure: str, relu: str):
        rows = select(table, quantity="distance", measure=measure, relu=relu)
        self.layers = list(rows["layer_a"].unique())
        number = {layer: i for i, layer in enumerate(self.layers)}
        a, b = rows["network_a"].to_numpy(int), rows["network_b"].to_numpy(int)
        i, j = (rows[column].map(number).to_numpy() for column in ("layer_a", "layer_b"))
        self.values = np.zeros((a.max() + 1, a.max() + 1, len(self.layers), len(self.layers)))
        self.values[a, b, i, j] = rows["value"]

    def identified(self) -> np.ndarray:
        """(N, N): the share of the layers of network a that are nearer to the same layer of b than to any other of b.

        A layer that is as near to another layer is not identified, and a network is not compared with itself: 0.
        """
        same = np.diagonal(self.values, axis1=2, axis2=3)
        others = np.where(np.eye(len(self.layers), dtype=bool), np.inf, self.values).min(axis=3)
        return (same < others).mean(axis=2)

    def share(self) -> Estimate:
        """The share of layers that are identified, over all ordered pairs of networks."""
        identified = self.identified()
        return Estimate.of(partial(statistics.mean_within, identified), np.zeros(len(identified)))

    def mean(self) -> np.ndarray:
        """(L, L): the mean distance over all ordered pairs of networks."""
        return self.values[~np.eye(len(self.values), dtype=bool)].mean(axis=0)


MISSES = {"pwcca": "PWCCA", "svcca": "SVCCA", "mean_cca": "Mean CCA"}
"""The measures that do not identify layers, and their names."""


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """Which measures identify layers after the ReLU, and, where the table has these layers, before it."""
    sides = table["relu"].unique()
    return [claim for relu in sides for claim in _claims_on_one_side(table, relu, options, only_side=len(sides) == 1)]


def _claims_on_one_side(table: pd.DataFrame, relu: str, options: StageOptions, only_side: bool) -> list[Claim]:
    """The claims on layers after or before the ReLU."""
    measures = select(table, relu=relu)["measure"].unique()
    distances = {measure: Distances(table, measure, relu) for measure in measures}
    shares = {measure: distances[measure].share() for measure in measures}
    networks, chance = len(distances["pwcca"].values), 1 / len(distances["pwcca"].layers)
    points = f"{table['n'].iloc[0]} {options.split} data points"
    after = relu == "after"
    where = "" if after else ", compared before their ReLU"
    details = f"layers {relu} the ReLU{' (the only ones that are compared)' if only_side else ''}, {points}; n = "
    details += f"{networks} networks, {networks * (networks - 1)} ordered pairs, t test, jackknife"
    share_of = "share of layers whose nearest layer is the corresponding one"
    by_chance, threshold = f"chance: {chance:.3g}", f"{options.identifies:g}, ours"

    def fields(name: str, paper: float) -> dict[str, object]:
        # Table 2 has one number per measure, which ours of the layers after the ReLU are compared with.
        return {
            "claim": f"layer_identification.{name}{'' if after else '_before_relu'}",
            "figure": "none",
            "source": "Kornblith et al. 2019, table 2",
            "paper_value": paper if after else np.nan,
        }

    result = []
    if (cka := shares.get("linear_cka")) is not None:
        result += [
            estimate_claim(
                options.identifies,
                cka,
                no_effect=chance,
                limits=SHARES,
                statement=f"Linear CKA identifies corresponding layers of networks trained from other initial weights"
                f"{where}.",
                statistic=f"{share_of} (above {threshold}; {by_chance}), {details}",
                **fields("linear_cka", PUBLISHED["linear_cka"]),
            ),
            estimate_claim(
                chance,
                cka,
                no_effect=chance,
                limits=SHARES,
                statement=f"Linear CKA identifies corresponding layers more often than by chance{where}.",
                statistic=f"{share_of} (above {by_chance}), {details}",
                **fields("linear_cka_chance", PUBLISHED["linear_cka"]),
            ),
        ]
    for measure, name in MISSES.items():
        if measure in shares:
            share = shares[measure]
            interval = tuple(float(end) for end in np.clip(share.interval(), *SHARES))
            result.append(
                Claim(
                    statement=f"{name} does not identify corresponding layers of networks trained from other initial "
                    f"weights{where}.",
                    statistic=f"{share_of} (below {threshold}; {by_chance}), {details}",
                    value=share.value,
                    interval=interval,
                    p_value=share.map(np.negative).p_at_most(-options.identifies),
                    verdict=below(options.identifies, interval),
                    **fields(measure, PUBLISHED[measure]),
                )
            )
    if cka is not None:
        result.append(
            estimate_claim(
                0,
                cka - shares["pwcca"],
                statement=f"Linear CKA identifies more layers than PWCCA{where}.",
                statistic=f"share that linear CKA identifies, minus that of PWCCA; {details}",
                **fields("linear_cka_over_pwcca", PUBLISHED["linear_cka"] - PUBLISHED["pwcca"]),
            )
        )
    return result


SIDES = {"after": (figures.BLUE, "o"), "before": (figures.ORANGE, "s")}
"""Colour and marker of layers after and before the ReLU."""
MAPPED = ("pwcca", "linear_cka")
"""Measures whose mean distances are shown layer by layer."""


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """Share of identified layers per measure with intervals; below, mean distances between layers, one row per side
    of the ReLU and one column for each of `MAPPED`.
    """
    sides = list(table["relu"].unique())
    mapped = [measure for measure in MAPPED if measure in options.measures]
    figure, axes = figures.panels(1 + len(sides), 2, height=2.35)
    shares, unused, *maps = axes
    shares.set_subplotspec(shares.get_gridspec()[0, :])
    unused.remove()
    _draw_shares(shares, table, sides, options)
    shown = []
    for row, relu in enumerate(sides):
        for column, axis in enumerate(maps[2 * row : 2 * row + 2]):
            if column < len(mapped):
                measure = mapped[column]
                name = _label(measure, options)
                _draw_matrix(figure, axis, Distances(table, measure, relu), f"{name}, {relu} the ReLU", name)
                shown.append(axis)
            else:
                axis.set_visible(False)
    handles, labels = shares.get_legend_handles_labels()  # lines and published points come before ours
    figures.legend_outside(figure, *(items[-len(sides) :] + items[: -len(sides)] for items in (handles, labels)))
    figures.letters(shares, *shown)
    return figure


def _label(measure: str, options: StageOptions) -> str:
    """How a measure is called on axes."""
    return figures.measure_label(measures_of(options)[measure])


def _draw_shares(axis, table: pd.DataFrame, sides: Sequence[str], options: StageOptions) -> None:
    """The share of layers that each measure identifies, with its interval, and the published values."""
    places = np.arange(len(options.measures))
    chance = 1 / table["layer_a"].nunique()
    offsets = {"after": -0.2, "before": 0.2} if len(sides) > 1 else {"after": 0.0}
    for relu in sides:
        estimates = [Distances(table, measure, relu).share() for measure in options.measures]
        values = np.array([estimate.value for estimate in estimates])
        intervals = np.clip([estimate.interval() for estimate in estimates], *SHARES)
        colour, marker = SIDES[relu]
        style = {"color": colour, "marker": marker, "linestyle": "none", "capsize": 2, "elinewidth": 0.9}
        bars = np.abs(intervals.T - values)
        axis.errorbar(places + offsets[relu], values, yerr=bars, label=f"{relu} the ReLU", **style)
    published = [
        (place, PUBLISHED[name]) for place, name in zip(places, options.measures, strict=True) if name in PUBLISHED
    ]
    middle = 0.0 if len(sides) > 1 else 0.2
    figures.published_points(
        *(axis, [place + middle for place, _ in published], [share for _, share in published]),
        *(figures.GREY, "D", "published (CIFAR-10)", 28),
    )
    axis.axhline(options.identifies, color=figures.GREY, linewidth=0.7, linestyle="--", label='"identifies" (ours)')
    axis.axhline(chance, label="chance", **figures.THRESHOLD)
    axis.set_xticks(places, [_label(measure, options).replace(" ", "\n", 1) for measure in options.measures])
    axis.set(ylabel="Share of layers\nthat are identified", ylim=(-0.06, 1.06), xlim=(-0.6, len(places) - 0.4))


def _draw_matrix(figure, axis, distances: Distances, title: str, measure: str) -> None:
    """Mean distances, from the layers of rows to those of columns; a frame around the nearest layer of each row."""
    mean, layers = distances.mean(), distances.layers
    image = axis.imshow(mean, cmap="viridis", aspect="auto")
    bar = figure.colorbar(image, ax=axis, pad=0.02, label=f"{measure} distance")
    bar.outline.set_visible(False)
    for i, row in enumerate(mean):
        nearest = int(row.argmin())
        frame = {"fill": False, "edgecolor": figures.ORANGE, "linewidth": 1.6}
        axis.add_patch(_rectangle((nearest - 0.46, i - 0.46), 0.92, 0.92, **frame))
        if len(layers) <= NUMBERS_FIT:
            for j, value in enumerate(row):
                colour = "black" if image.norm(value) > 0.55 else "white"
                weight = "bold" if j == nearest else "normal"
                style = {"ha": "center", "va": "center", "fontsize": 6.5, "color": colour, "fontweight": weight}
                axis.text(j, i, f"{value:.2f}", **style)
    many = len(layers) > NUMBERS_FIT
    axis.set_xticks(range(len(layers)), layers, rotation=90 if many else 0, fontsize=5 if many else 7)
    axis.set_yticks(range(len(layers)), layers, fontsize=5 if many else 7)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set(xlabel="Layer of another network", ylabel="Layer of a network", title=title)


def _rectangle(*arguments: object, **style: object):
    from matplotlib.patches import Rectangle  # here, because building the DAG must not load Matplotlib

    return Rectangle(*arguments, **style)
