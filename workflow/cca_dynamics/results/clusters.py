"""Figure 5: networks of one topology fall into clusters of solutions, one per learning rate.

Protocol (Morcos et al. 2018, section 3.3). Many networks of one topology, several learning rates × many
initialisations, true labels; PWCCA distance at one layer between all pairs. Average linkage, the number of clusters by
silhouette. Against it, robustness to cumulative ablation of the last three convolutional layers (the area under the
normalised accuracy curve) and generalization error. The paper does not state its learning rates.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field

from cca_dynamics.config.base import MANY, Count, Integer, Number, each_once
from cca_dynamics.config.cohorts import AblationRequest, Cohort, LayerRequest, SweepTraining
from cca_dynamics.config.models import (
    MEASURES_DESCRIPTION,
    PWCCA_DESCRIPTION,
    Layer,
    Measures,
    NetworkOptions,
    NetworkOverrides,
    Pwcca,
    ResultOptions,
    StageOptions,
    StudyConfig,
    TrainedResultOptions,
    TrainingOverrides,
    option,
)
from cca_dynamics.errors import ConfigError
from cca_dynamics.networks.architectures import layers
from cca_dynamics.results import clustering, figures, statistics
from cca_dynamics.results.claims import (
    FITTED,
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Obstacle,
    estimate_claim,
    fitted_claim,
    too_few,
)
from cca_dynamics.results.inputs import Inputs, final_performance
from cca_dynamics.results.layers import require_layer
from cca_dynamics.results.tables import by_network, distance_matrix, distance_table, measures_of, select, tidy

KEY = "results.clusters"
COHORT = "sweep"
PUBLISHED_CLUSTERS = 5
ABLATED_LAYERS = 3


class Ablation(ResultOptions):
    """The keys of results.clusters.ablation."""

    orders: Count = option(10, "ablation", description="Random orders of the feature maps.")
    levels: Integer = option(
        11, "ablation", ge=3, le=1001, description="Shares of clamped maps from 0 to 1, both included."
    )
    points: Integer = option(
        500, "ablation", ge=10, le=MANY, description="Training examples on which accuracy is measured."
    )


class Options(TrainedResultOptions):
    """The keys of results.clusters."""

    networks: Integer = option(40, "train", "compute", ge=2, le=10_000, description="Networks of each learning rate.")
    learning_rates: Annotated[tuple[Annotated[Number, Field(gt=0, le=10)], ...], AfterValidator(each_once)] = option(
        (0.05, 0.08, 0.12, 0.2, 0.3), "train", "compute", min_length=2, description="One group of networks for each."
    )
    network: NetworkOverrides = option(
        NetworkOverrides(channels=(8, 8, 16, 16, 32)),
        "train",
        description="Keys of the network that differ from the base network's.",
    )
    training: TrainingOverrides = option(
        TrainingOverrides(epochs=30, evaluate_every=30),
        "train",
        description="Keys of the training recipe that differ from the base recipe's.",
    )
    layer: Layer = option("conv4", "activations", "compute", description="The layer whose distances are clustered.")
    most_clusters: Integer = option(
        10, "compute", "claims", ge=2, le=50, description="The largest number of clusters tried."
    )
    agreement: Number = option(
        0.5, "claims", ge=0, lt=1, description="Adjusted Rand index from which two partitions agree."
    )
    ablation: Ablation = option(Ablation(), "ablation", description="Of the last three layers.")
    measures: Measures = option(("pwcca",), "compute", description=MEASURES_DESCRIPTION)
    pwcca: Pwcca = option("pwcca", "compute", description=PWCCA_DESCRIPTION)


ALTERNATIVES = {"pwcca": ("pwcca_squared",), "layer": ("conv3", "conv5")}
"""Other values that the paper's words allow, the default of multiverse.clusters."""


def check(config: StudyConfig, options: Options) -> None:
    """Refuse a layer the network does not have, and networks too shallow to ablate."""
    if "learning_rate" in options.training.given():
        raise ConfigError(
            f"{KEY}.training.learning_rate", f"each group of networks has its own; change {KEY}.learning_rates instead"
        )
    network = config.network_of("clusters")
    require_layer(f"{KEY}.layer", options.layer, network)
    if len(_hidden_layers(network)) < ABLATED_LAYERS:
        raise ConfigError(
            f"{KEY}.network.channels", f"the last {ABLATED_LAYERS} layers are ablated; give the network that many"
        )
    total = options.networks * len(options.learning_rates)
    if options.most_clusters >= total:
        raise ConfigError(f"{KEY}.most_clusters", f"{total} networks have fewer than that many clusters; lower it")


def obstacles(config: StudyConfig, options: Options) -> list[Obstacle]:
    """Settings under which claims could never be reproduced."""
    rates = len(options.learning_rates)

    def smallest_p(networks: int) -> float:
        return statistics.smallest_grouping_p([networks] * rates)

    found = too_few(f"{KEY}.networks", options.networks, f"networks of each of {rates} learning rates", smallest_p)
    if problem := _out_of_reach(options, PUBLISHED_CLUSTERS):
        found.append(
            Obstacle(
                f"{KEY}.most_clusters", f"{problem}, so a claim is not testable; give {PUBLISHED_CLUSTERS} or more"
            )
        )
    return found


def _out_of_reach(options: Options | StageOptions, clusters: int) -> str:
    """Why so many clusters cannot be found; "" if they can."""
    most = options.most_clusters
    return f"with at most {most} clusters, {clusters} cannot be found" if most < clusters else ""


def cohorts(config: StudyConfig, options: Options) -> list[Cohort]:
    """One cohort of all networks; the learning rate changes from group to group."""
    network, training = config.network_of("clusters"), config.training_of("clusters")
    rates = tuple(rate for rate in options.learning_rates for _ in range(options.networks))
    request = LayerRequest(epochs="final", splits=("train",), layers=(options.layer,), points=config.data_points)
    ablated = tuple(_hidden_layers(network)[-ABLATED_LAYERS:])
    return [
        Cohort(
            name=COHORT,
            networks=len(rates),
            network=network,
            training=SweepTraining(**{**dict(training), "learning_rate": rates}),
            requests=(request,),
            ablation=AblationRequest(layers=ablated, **dict(options.ablation)),
        )
    ]


def _hidden_layers(network: NetworkOptions) -> list[str]:
    return [layer for layer in layers(network) if layer != "softmax"]


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """Distances, clusters, robustness and performance.

    Returns:
        Tidy rows. quantity "distance": measure, network_a, network_b, value, rank_a, rank_b, n, floor. Per network:
        "learning_rate", "loss", "train_accuracy", "test_accuracy", "robustness" (area under accuracy / accuracy without
        ablation over the share of clamped feature maps), "cluster" and "ablation_cluster" (0, 1, ... in order of size),
        "place" (in the dendrogram). "ablated_accuracy": network, share, value (mean over orders). "silhouette" and
        "ablation_silhouette": index (number of clusters), value.
    """
    step = inputs.checkpoints(COHORT)[-1][0]
    networks = inputs.representations(COHORT, options.layer, step)
    distances = distance_table(list(networks), measures_of(options), inputs.device, inputs.finished_blocks)
    matrix = distance_matrix(select(distances, measure="pwcca"))
    performance = final_performance(inputs, COHORT)
    rates = np.repeat(options.learning_rates, options.networks)[inputs.trained(COHORT)]

    curves = inputs.ablation(COHORT).pivot_table(index="network", columns="share", values="accuracy")
    robustness = np.trapezoid(curves.div(curves[0.0], axis=0), curves.columns, axis=1)
    accuracy = by_network(performance, "quantity")
    plane = np.column_stack([robustness, accuracy["train_accuracy"] - accuracy["test_accuracy"]])

    tables = [distances, performance, _per_network("learning_rate", rates), _per_network("robustness", robustness)]
    tables.append(curves.melt(ignore_index=False, value_name="value").reset_index().assign(quantity="ablated_accuracy"))
    for prefix, clustered in (("", (matrix + matrix.T) / 2), ("ablation_", clustering.standardised_distances(plane))):
        labels, positions, silhouettes = clustering.cluster(clustered, options.most_clusters)
        tables.append(_per_network(f"{prefix}cluster", labels))
        tables.append(_per_network(f"{prefix}place", positions))
        scores = pd.DataFrame({"index": list(silhouettes), "value": list(silhouettes.values())})
        tables.append(scores.assign(quantity=f"{prefix}silhouette"))
    return tidy(tables)


def _per_network(quantity: str, values: np.ndarray) -> pd.DataFrame:
    values = np.asarray(values, dtype=float)
    return pd.DataFrame({"network": np.arange(len(values)), "quantity": quantity, "value": values})


class Sweep:
    """The networks of a table: `distances` (N, N), symmetric, and by their names all quantities that each has one of.

    Args:
        table: written by `compute`.
    """

    def __init__(self, table: pd.DataFrame):
        matrix = distance_matrix(select(table, quantity="distance", measure="pwcca"))
        self.distances = (matrix + matrix.T) / 2
        one_per_network = table["network"].notna() & (table["quantity"] != "ablated_accuracy")
        self._values = by_network(table[one_per_network], "quantity")

    def __getitem__(self, quantity: str) -> np.ndarray:
        return self._values[quantity].to_numpy()


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """The claims of figure 5."""
    sweep, seed = Sweep(table), options.seed
    accuracies, rates, clusters = sweep["train_accuracy"], sweep["learning_rate"], sweep["cluster"]
    fitted = int((accuracies >= FITTED).sum())
    count = f"n = {len(rates)} networks"
    gap, gap_interval = clustering.outlier_gap(sweep.distances, clusters, seed)

    def agreement_claim(name: str, statement: str, partition: np.ndarray, title: str) -> Claim:
        value, interval, p = clustering.agreement(clusters, partition, seed)
        return Claim.exceeding(
            options.agreement,
            claim=f"clusters.{name}",
            figure="5",
            statement=statement,
            statistic=f"adjusted Rand index of clusters and {title} (over {options.agreement:g}); {count}, "
            "permutation and bootstrap of networks",
            value=value,
            interval=interval,
            p_value=p,
        )

    return [
        fitted_claim(
            accuracies,
            claim="clusters.fitted",
            figure="5",
            statement="Networks of every learning rate reach near-zero training loss (the comparison's precondition).",
            statistic=f"lowest train accuracy (at least {FITTED:g}); {fitted} of {len(rates)} networks reach it",
        ),
        estimate_claim(
            0,
            clustering.between_minus_within(sweep.distances, rates, seed),
            claim="clusters.blocks",
            figure="5",
            statement="The distance matrix has blocks: networks of one learning rate are closer to each other.",
            statistic=f"mean distance between minus within learning rates; {count}, permutation, bootstrap of networks",
            p_value=clustering.closer_within_p(sweep.distances, rates, seed),
        ),
        _five_claim(sweep, options, count),
        Claim.exceeding(
            0,
            claim="clusters.outlier",
            figure="5",
            statement="One cluster is far from the others.",
            statistic="distance of the farthest cluster to its nearest minus the largest distance among the others "
            f"(needs three clusters); {count}, bootstrap of networks",
            value=gap,
            interval=gap_interval,
            obstacle=_out_of_reach(options, 3),
        ),
        agreement_claim("learning_rate", "The clusters are the learning rates.", rates, "learning rates"),
        agreement_claim(
            "ablation",
            "The clusters align with those of ablation robustness.",
            sweep["ablation_cluster"],
            "clusters in the ablation plane",
        ),
    ]


def _five_claim(sweep: Sweep, options: StageOptions, count: str) -> Claim:
    low, high = clustering.number_interval(sweep.distances, options.most_clusters, options.seed)
    verdict = INCONCLUSIVE
    if low == high == PUBLISHED_CLUSTERS:
        verdict = REPRODUCED
    elif not low <= PUBLISHED_CLUSTERS <= high:
        verdict = NOT_REPRODUCED
    return Claim(
        claim="clusters.five",
        figure="5",
        statement="There are five clusters.",
        statistic=f"clusters with the largest silhouette; {count}, interval from subsamples of 80 % of them",
        value=float(len(np.unique(sweep["cluster"]))),
        interval=(float(low), float(high)),
        paper_value=float(PUBLISHED_CLUSTERS),
        verdict=verdict,
        obstacle=_out_of_reach(options, PUBLISHED_CLUSTERS),
    )


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """The clustered distance matrix with learning-rate bars, the ablation plane, and the ablation curves."""
    sweep = Sweep(table)
    rates = sorted(set(sweep["learning_rate"]))
    rate_index = np.searchsorted(rates, sweep["learning_rate"])
    styles = figures.sequential(len(rates))
    figure, (left, middle, right) = figures.panels(1, 3, height=2.7, ratios=[1.35, 1, 1])
    _draw_matrix(figure, left, sweep, rate_index, [colour for colour, _ in styles])
    _draw_plane(middle, sweep)
    curves = by_network(select(table, quantity="ablated_accuracy"), "share")
    shares, accuracies = 100 * curves.columns.to_numpy(float), 100 * curves.to_numpy()
    for index, (rate, style) in enumerate(zip(rates, styles, strict=True)):
        figures.mean_and_std(right, shares, accuracies[rate_index == index], *style, f"{rate:g}")
    right.set(xlabel="Clamped feature maps (%)", ylabel="Train accuracy (%)")
    right.legend(title="Learning rate", loc="upper right")
    figures.letters(left, middle, right)
    left.set_title("a", loc="left", fontweight="bold", y=1.09)
    return figure


def _draw_matrix(figure, axis, sweep: Sweep, rate_index: np.ndarray, colours: list) -> None:
    """The distances in the order of the dendrogram, its clusters apart, with bars that show the learning rates."""
    from matplotlib.colors import ListedColormap

    order = np.argsort(sweep["place"])
    size = len(order)
    distances = np.where(np.eye(size, dtype=bool), np.nan, sweep.distances)  # 0 there would flatten the colours
    image = axis.imshow(distances[np.ix_(order, order)], cmap="cividis", interpolation="nearest")
    figure.colorbar(image, ax=axis, label="PWCCA distance", shrink=0.8, pad=0.03).outline.set_visible(False)
    bar = np.atleast_2d(rate_index[order])
    style = {"cmap": ListedColormap(colours), "vmin": 0, "vmax": len(colours) - 1, "interpolation": "nearest"}
    for box, values in (([-0.07, 0, 0.05, 1], bar.T), ([0, 1.02, 1, 0.05], bar)):
        strip = axis.inset_axes(box)
        strip.imshow(values, aspect="auto", **style)
        strip.set_axis_off()
    for boundary in np.flatnonzero(np.diff(sweep["cluster"][order])) + 0.5:
        axis.axhline(boundary, color="white", linewidth=0.7)
        axis.axvline(boundary, color="white", linewidth=0.7)
    axis.set(xticks=[0, size - 1], xticklabels=[1, size], yticks=[], xlabel=f"{size} networks, by cluster")
    axis.spines[:].set_visible(False)


def _draw_plane(axis, sweep: Sweep) -> None:
    """Generalization error against robustness to ablation, one point per network, by cluster."""
    gap, robustness = 100 * (sweep["train_accuracy"] - sweep["test_accuracy"]), sweep["robustness"]
    names = np.unique(sweep["cluster"])
    for name, (colour, marker) in zip(names, figures.many_series(), strict=False):
        in_cluster = sweep["cluster"] == name
        style = {"color": colour, "marker": marker, "linewidths": 0, "alpha": 0.8}
        label = f"cluster {int(name) + 1} ({in_cluster.sum()})"
        axis.scatter(robustness[in_cluster], gap[in_cluster], s=9, label=label, **style)
    axis.set(xlabel="Robustness to ablation (AUC)", ylabel="Generalization error (%)")
    axis.set_ylim(top=axis.get_ylim()[1] + 0.1 * len(names) * np.ptp(gap))
    axis.locator_params(axis="x", nbins=4)
    axis.legend(loc="upper left", handletextpad=0.2)
