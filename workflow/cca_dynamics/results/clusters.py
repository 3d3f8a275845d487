"""Figure 5: networks of one topology fall into clusters of solutions, one per learning rate.

Protocol (Morcos et al. 2018, section 3.3). Many networks of one topology, several learning rates × many
initialisations, true labels; PWCCA distance at one layer between all pairs. Against it, robustness to cumulative
ablation of the last three convolutional layers (the area under the normalised accuracy curve) and generalization error.

Unstated, so ours: the learning rates, over two decades, each network trained until its loss is small, so that slow and
fast ones have fitted equally well; and how clusters are found. Most of the variance of the distances is what each
network adds to all of its own. It is removed (`clustering.residual_distances`), else single networks are peeled off;
then Ward's linkage, and the number of clusters by silhouette, none smaller than a share of the networks.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field

from cca_dynamics.config.base import MANY, Count, Integer, Number, each_once
from cca_dynamics.config.cohorts import Cohort, LayerRequest
from cca_dynamics.config.models import (
    MEASURES_DESCRIPTION,
    PWCCA_DESCRIPTION,
    TRAIN_SIZE_DESCRIPTION,
    Layer,
    Measures,
    NetworkOverrides,
    Pwcca,
    ResultOptions,
    StageOptions,
    StudyConfig,
    TrainedResultOptions,
    TrainingOverrides,
    TrainSize,
    option,
)
from cca_dynamics.errors import ConfigError
from cca_dynamics.results import classifiers, clustering, figures, statistics
from cca_dynamics.results.claims import (
    ALPHA,
    FITTED,
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Obstacle,
    equivalence_claim,
    estimate_claim,
    fitted_claim,
    provided,
    too_few,
)
from cca_dynamics.results.inputs import Inputs, final_performance
from cca_dynamics.results.layers import require_layer
from cca_dynamics.results.statistics import Estimate, correlation_interval
from cca_dynamics.results.tables import by_network, distance_matrix, distance_table, measures_of, select, tidy

KEY = "results.clusters"
COHORT = classifiers.SWEEP
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
SOURCE = "section 3.3; article"
RESIDUAL_LABEL = "PWCCA distance, residual"
"""Of axes that show `clustering.residual_distances`."""
PUBLISHED_CLUSTERS = 5
REACHED = 0.95
"""Share of the networks of every learning rate that must reach the loss at which they stop."""


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
        RATES, "train", "compute", min_length=2, description="One group of networks for each."
    )
    network: NetworkOverrides = option(
        NetworkOverrides(channels=(8, 8, 16, 16, 32)),
        "train",
        description="Keys of the network that differ from the base network's.",
    )
    training: TrainingOverrides = option(
        TrainingOverrides(schedule="constant", epochs=100, evaluate_every=100, stop_at_loss=0.05),
        "train",
        description="Keys of the training recipe that differ from the base recipe's.",
    )
    train_size: TrainSize = option(None, "train", description=TRAIN_SIZE_DESCRIPTION)
    layer: Layer = option("conv4", "activations", "compute", description="The layer whose distances are clustered.")
    most_clusters: Integer = option(
        10, "compute", "claims", ge=2, le=50, description="The largest number of clusters tried."
    )
    linkage: Literal["ward", "complete", "average"] = option(
        "ward", "compute", "claims", description="How clusters are joined, in the distances and in the ablation plane."
    )
    smallest_cluster: Number = option(
        0.05, "compute", "claims", ge=0, le=0.5, description="The smallest share of the networks that is a cluster."
    )
    agreement: Number = option(
        0.5, "claims", ge=0, lt=1, description="Adjusted Rand index from which two partitions agree."
    )
    similar_accuracy: Number = option(
        0.02, "claims", gt=0, le=1, description="Test accuracies that differ by less than this are similar."
    )
    ablation: Ablation = option(Ablation(), "ablation", description="Of the last three layers.")
    measures: Measures = option(("pwcca",), "compute", description=MEASURES_DESCRIPTION)
    pwcca: Pwcca = option("pwcca", "compute", description=PWCCA_DESCRIPTION)


ALTERNATIVES = {"pwcca": ("pwcca_squared",), "layer": ("conv3", "conv5"), "linkage": ("complete",)}
"""Other values that the paper's words allow, the default of multiverse.clusters."""


def check(config: StudyConfig, options: Options) -> None:
    """Refuse a layer the network does not have, networks too shallow to ablate, and too few training examples."""
    if "learning_rate" in options.training.given():
        raise ConfigError(
            f"{KEY}.training.learning_rate", f"each group of networks has its own; change {KEY}.learning_rates instead"
        )
    network = config.network_of("clusters")
    classifiers.check_train_size(config, "clusters", [network])
    require_layer(f"{KEY}.layer", options.layer, network)
    ablated = classifiers.ABLATED_LAYERS
    if len(classifiers.hidden_layers(network)) < ablated:
        raise ConfigError(
            f"{KEY}.network.channels", f"the last {ablated} layers are ablated; give the network that many"
        )
    total = options.networks * len(options.learning_rates)
    if options.most_clusters >= total:
        raise ConfigError(f"{KEY}.most_clusters", f"{total} networks have fewer than that many clusters; lower it")


def obstacles(config: StudyConfig, options: Options) -> list[Obstacle]:
    """Settings under which claims could never be reproduced."""
    rates = len(options.learning_rates)

    def smallest_p(networks: int) -> float:
        return statistics.smallest_grouping_p([networks] * rates)

    obstacles_found = too_few(
        f"{KEY}.networks", options.networks, f"networks of each of {rates} learning rates", smallest_p
    )
    if 2 * statistics.smallest_order_p(rates) >= ALPHA:
        obstacles_found.append(
            Obstacle(
                f"{KEY}.learning_rates",
                f"{rates} learning rates give no p below {2 * statistics.smallest_order_p(rates):.2g}, so whether "
                "distance grows with their difference is not testable; give 5 or more",
            )
        )
    if problem := _out_of_reach(options, PUBLISHED_CLUSTERS):
        obstacles_found.append(
            Obstacle(
                f"{KEY}.most_clusters", f"{problem}, so a claim is not testable; give {PUBLISHED_CLUSTERS} or more"
            )
        )
    return obstacles_found


def _out_of_reach(options: Options | StageOptions, clusters: int) -> str:
    """Why so many clusters cannot be found; "" if they can."""
    most = options.most_clusters
    return f"with at most {most} clusters, {clusters} cannot be found" if most < clusters else ""


def cohorts(config: StudyConfig, options: Options) -> list[Cohort]:
    """One cohort of all networks; the learning rate changes from group to group."""
    request = LayerRequest(epochs="final", splits=("train",), layers=(options.layer,), points=config.data_points)
    return [classifiers.sweep(config, request)]


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """Distances, clusters, robustness and performance.

    Returns:
        Tidy rows. quantity "distance": measure, network_a, network_b, value, rank_a, rank_b, n, floor. Per network:
        "learning_rate", "loss", "train_accuracy", "test_accuracy", "robustness" (area under accuracy / accuracy without
        ablation over the share of clamped feature maps), "cluster" and "ablation_cluster" (0, 1, ... in order of size),
        "place" (in the dendrogram), and "stopped_after" (epochs) if networks stop at a loss. "ablated_accuracy":
        network, share, value (mean over orders). "silhouette" and "ablation_silhouette": index (number of clusters),
        value, for numbers that leave no cluster too small.
    """
    step = inputs.checkpoints(COHORT)[-1][0]
    networks = inputs.representations(COHORT, options.layer, step)
    distances = distance_table(list(networks), measures_of(options), inputs.device, inputs.finished_blocks)
    matrix = distance_matrix(select(distances, measure="pwcca"))
    performance = final_performance(inputs, COHORT)
    rates = np.repeat(options.learning_rates, options.networks)[inputs.trained(COHORT)]

    curves = inputs.ablation(COHORT).pivot_table(index="network", columns="share", values="accuracy")
    robustness = np.trapezoid(curves.div(curves[0.0], axis=0), curves.columns, axis=1)
    tables = [distances, performance, _per_network("learning_rate", rates), _per_network("robustness", robustness)]
    history = inputs.history(COHORT)
    if "stopped_after" in history:
        final = history[history["step"] == history["step"].max()].sort_values("network")
        tables.append(_per_network("stopped_after", final["stopped_after"]))
    tables.append(curves.melt(ignore_index=False, value_name="value").reset_index().assign(quantity="ablated_accuracy"))
    accuracy = by_network(performance, "quantity")
    plane = _ablation_plane(robustness, accuracy["train_accuracy"], accuracy["test_accuracy"])
    for prefix, clustered in (("", clustering.residual_distances((matrix + matrix.T) / 2)), ("ablation_", plane)):
        partition = clustering.cluster(clustered, _clustering(options))
        tables.append(_per_network(f"{prefix}cluster", partition.labels))
        tables.append(_per_network(f"{prefix}place", partition.positions))
        scores = {"index": list(partition.silhouettes), "value": list(partition.silhouettes.values())}
        tables.append(pd.DataFrame(scores).assign(quantity=f"{prefix}silhouette"))
    return tidy(tables)


def _clustering(options: StageOptions) -> clustering.Clustering:
    return clustering.Clustering(options.linkage, options.most_clusters, options.smallest_cluster)


def _ablation_plane(robustness: np.ndarray, train_accuracy: np.ndarray, test_accuracy: np.ndarray) -> np.ndarray:
    """(N, N) distances in the plane of robustness to ablation and generalization error, in standard deviations."""
    return clustering.standardised_distances(np.column_stack([robustness, train_accuracy - test_accuracy]))


def _per_network(quantity: str, values: np.ndarray) -> pd.DataFrame:
    values = np.asarray(values, dtype=float)
    return pd.DataFrame({"network": np.arange(len(values)), "quantity": quantity, "value": values})


class Sweep:
    """The networks of a table: `distances` (N, N), symmetric, and by their names all quantities that each has one of.

    Args:
        table: written by `compute`.

    Attributes:
        distances: (N, N) PWCCA distances, symmetric.
        residuals: (N, N) those without what each network adds to all of its own.
        plane: (N, N) distances in the ablation plane.
        clusters, ablation_clusters: (N,) cluster of each network in `residuals` and in `plane`, numbered from 0.
    """

    def __init__(self, table: pd.DataFrame):
        matrix = distance_matrix(select(table, quantity="distance", measure="pwcca"))
        one_per_network = table["network"].notna() & (table["quantity"] != "ablated_accuracy")
        self._values = by_network(table[one_per_network], "quantity")
        self.distances = (matrix + matrix.T) / 2
        self.residuals = clustering.residual_distances(self.distances)
        self.plane = _ablation_plane(self["robustness"], self["train_accuracy"], self["test_accuracy"])
        self.clusters, self.ablation_clusters = self["cluster"].astype(int), self["ablation_cluster"].astype(int)

    def __contains__(self, quantity: str) -> bool:
        return quantity in self._values

    def __getitem__(self, quantity: str) -> np.ndarray:
        return self._values[quantity].to_numpy()


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """The claims of figure 5; all but the first need networks that have fitted."""
    sweep = Sweep(table)
    precondition = _fitted_claim(sweep)
    if not _has_groups(sweep["learning_rate"]):
        return [precondition]
    return provided(precondition, [*_rate_claims(sweep, options), *_cluster_claims(sweep, options)])


def _fitted_claim(sweep: Sweep) -> Claim:
    """The precondition: where networks stop at a loss, that they reach it; else that they reach an accuracy."""
    fields = {
        "claim": "clusters.fitted",
        "figure": "5",
        "source": SOURCE,
        "statement": "Networks of every learning rate reach near-zero training loss (the comparison's precondition).",
    }
    accuracies, size = sweep["train_accuracy"], len(sweep.distances)
    if "stopped_after" not in sweep:
        fitted = int((accuracies >= FITTED).sum())
        statistic = f"lowest train accuracy (at least {FITTED:g}); {fitted} of {size} networks reach it"
        return fitted_claim(accuracies, statistic=statistic, **fields)
    epochs, rates = sweep["stopped_after"], sweep["learning_rate"]
    reached = np.isfinite(epochs)
    share = min(float(reached[rates == rate].mean()) for rate in np.unique(rates))
    when = f", after {np.nanmin(epochs):.0f} to {np.nanmax(epochs):.0f} epochs" if reached.any() else ""
    return Claim(
        value=share,
        paper_value=1.0,
        verdict=REPRODUCED if share >= REACHED else NOT_REPRODUCED,
        estimated=False,
        statistic="share of the networks that reach the loss at which they stop, at the learning rate where fewest do "
        f"(at least {REACHED:g}); {reached.sum()} of all {size} do{when}; the loss is that of training, "
        f"with batch statistics; in evaluation {(accuracies >= FITTED).sum()} of {size} have a train accuracy of at "
        f"least {FITTED:g}, the lowest {accuracies.min():.3f}",
        **fields,
    )


def _has_groups(rates: np.ndarray) -> bool:
    """Whether there are at least two learning rates to compare; networks of the others may all have diverged."""
    return len(np.unique(rates)) > 1


def _rate_claims(sweep: Sweep, options: StageOptions) -> list[Claim]:
    """Whether the learning rate shows in the distances, whatever the clusters."""
    rates, seed = sweep["learning_rate"], options.seed
    names, count = np.unique(rates), f"n = {len(rates)} networks of {len(np.unique(rates))} learning rates"
    r_squared = clustering.explained_variance(sweep.distances, rates)
    visible = clustering.jackknife(
        lambda some: clustering.adjusted(
            clustering.explained_variance(sweep.distances[np.ix_(some, some)], rates[some]), len(some), len(names)
        ),
        rates,
    )
    accuracy = clustering.nearest_group_accuracy(sweep.residuals, rates)
    of_subsamples = [
        clustering.nearest_group_accuracy(
            clustering.residual_distances(sweep.distances[np.ix_(some, some)]), rates[some]
        )
        for some in clustering.subsamples(rates, seed)
    ]
    chance, chance_p = clustering.nearest_group_chance(sweep.residuals, rates, seed)
    logs = np.log10(rates)
    gradient = clustering.jackknife(
        lambda some: clustering.gradient(
            clustering.residual_distances(sweep.distances[np.ix_(some, some)]), logs[some]
        ),
        rates,
    )
    means = {rate: _mean_of(sweep["test_accuracy"], rates, rate) for rate in names}
    differences = [means[a] - means[b] for index, a in enumerate(names) for b in names[:index]]
    by_rate = [sweep["test_accuracy"][rates == rate] for rate in names]
    spread = sum(len(group) * (group.mean() - sweep["test_accuracy"].mean()) ** 2 for group in by_rate)
    share = spread / max(((sweep["test_accuracy"] - sweep["test_accuracy"].mean()) ** 2).sum(), 1e-12)
    return [
        estimate_claim(
            0,
            visible,
            p_value=clustering.explained_variance_p(sweep.distances, rates, seed),
            claim="clusters.blocks",
            figure="5",
            source=SOURCE,
            statement="The distance matrix has blocks: networks of one learning rate are, on average, closer to each "
            "other than to those of others.",
            statistic=f"adjusted R² of PERMANOVA (R² {r_squared:.3f}; permuted networks); {count}; equal dispersion: "
            f"PERMDISP p = {clustering.dispersion_p(sweep.distances, rates, seed):.2g}",
        ),
        Claim.exceeding(
            chance,
            value=accuracy,
            interval=clustering.subsample_interval(accuracy, of_subsamples, 0, 1),
            p_value=chance_p,
            no_effect=chance,
            claim="clusters.nearest_rate",
            figure="5",
            source=SOURCE,
            statement="A network's representation tells its learning rate more often than chance would.",
            statistic="share of the networks that are nearest to the others of their own learning rate, by mean "
            f"distance without what each network adds to all of its own (by chance {chance:.2f}; permuted networks); "
            f"{count}, subsamples of 80 %",
        ),
        Claim.exceeding(
            0,
            value=gradient.value,
            interval=correlation_interval(gradient),
            p_value=clustering.gradient_p(sweep.residuals, logs, seed),
            claim="clusters.graded",
            figure="5",
            source="ours: a question",
            statement="Distance grows with the difference in learning rate: a gradient, beside or instead of clusters.",
            statistic="Mantel correlation of distance, without what each network adds to all of its own, and "
            f"difference in log learning rate, over pairs of different learning rates (permuted learning rates); "
            f"{count}",
        ),
        equivalence_claim(
            options.similar_accuracy,
            differences,
            claim="clusters.similar_accuracy",
            figure="5",
            source=SOURCE,
            statement="Test accuracy is similar at all learning rates, so that it alone would not show groups.",
            statistic=f"largest difference in mean test accuracy between two learning rates (within "
            f"±{options.similar_accuracy:g}; learning rates explain {share:.0%} of its variance, η²); {count}, two "
            "one-sided tests of each pair",
        ),
    ]


def _mean_of(values: np.ndarray, groups: np.ndarray, group: float) -> Estimate:
    """The mean of the values of one group, as an estimate from the networks of all groups."""
    members = (groups == group).astype(float)
    return Estimate.of(lambda weights: (weights * members) @ values / (weights @ members), groups)


class _Subsample(NamedTuple):
    """Networks, and the clusters found among them alone."""

    networks: np.ndarray
    partition: clustering.Partition
    ablation_partition: clustering.Partition


def _subsamples(sweep: Sweep, options: StageOptions) -> list[_Subsample]:
    how, result = _clustering(options), []
    for some in clustering.subsamples(sweep["learning_rate"], options.seed):
        square = np.ix_(some, some)
        partition = clustering.cluster(clustering.residual_distances(sweep.distances[square]), how)
        plane = _ablation_plane(*(sweep[name][some] for name in ("robustness", "train_accuracy", "test_accuracy")))
        result.append(_Subsample(some, partition, clustering.cluster(plane, how)))
    return result


def _cluster_claims(sweep: Sweep, options: StageOptions) -> list[Claim]:
    """Whether there are clusters; if so, how many, and whether they are those of the rates and of ablation."""
    rates, seed, subsamples = sweep["learning_rate"], options.seed, _subsamples(sweep, options)
    count = f"n = {len(rates)} networks, {options.linkage} linkage"
    no_clusters = _no_clusters(sweep.clusters, options, "the distances")
    fields = {"figure": "5", "source": SOURCE}

    how = _clustering(options)
    silhouette = clustering.cluster(sweep.residuals, how).silhouette
    references = clustering.references(sweep.distances, how, seed)
    higher = int((references >= silhouette - 1e-12).sum())
    excess = silhouette - float(references.mean())
    discrete = Claim.exceeding(
        0,
        value=excess,
        interval=clustering.subsample_interval(excess, [some.partition.silhouette for some in subsamples]),
        p_value=statistics.PValue((1 + higher) / (1 + len(references)), 1 / (1 + len(references))),
        claim="clusters.discrete",
        statement="Networks fall into clusters; they do not merely vary along a gradient.",
        statistic=f"largest silhouette ({silhouette:.3f}) minus that of {len(references)} references without clusters, "
        f"uniform along the same principal axes; {count}, subsamples of 80 %",
        obstacle=no_clusters,
        **fields,
    )
    gap = clustering.outlier_gap(sweep.distances, sweep.clusters)
    outlier = estimate_claim(
        0,
        gap,
        claim="clusters.outlier",
        statement="One cluster is far from the others.",
        statistic="distance of the farthest cluster to its nearest minus the largest distance among the others "
        f"(needs three clusters), for these clusters; {count}",
        obstacle=no_clusters or _out_of_reach(options, 3) or _too_few_clusters(sweep.clusters, 3),
        **fields,
    )
    groups = np.unique(rates, return_inverse=True)[1]
    no_ablation_clusters = no_clusters or _no_clusters(sweep.ablation_clusters, options, "the ablation plane")
    of_these_clusters = [
        _five_claim(sweep, [some.partition for some in subsamples], options, count, no_clusters),
        outlier,
        _agreement_claim(
            sweep.clusters,
            groups,
            [(some.partition.labels, groups[some.networks]) for some in subsamples],
            options,
            claim="clusters.learning_rate",
            statement="The clusters are the learning rates.",
            statistic=f"adjusted Rand index of clusters and learning rates (over {options.agreement:g}); {count}",
            obstacle=no_clusters,
            **fields,
        ),
        _agreement_claim(
            sweep.clusters,
            sweep.ablation_clusters,
            [(some.partition.labels, some.ablation_partition.labels) for some in subsamples],
            options,
            claim="clusters.ablation",
            statement="The clusters align with those of ablation robustness.",
            statistic="adjusted Rand index of clusters in the distances and in the plane of robustness and "
            f"generalization error (over {options.agreement:g}); {count}",
            obstacle=no_ablation_clusters,
            **fields,
        ),
    ]
    return [*provided(discrete, of_these_clusters), _aligned_claim(sweep, options, fields)]


def _no_clusters(labels: np.ndarray, options: StageOptions, where: str) -> str:
    """Why there are no clusters; "" if there are."""
    if len(np.unique(labels)) > 1:
        return ""
    return f"every cut in {where} leaves a cluster of fewer than {options.smallest_cluster:.0%} of the networks"


def _too_few_clusters(labels: np.ndarray, needed: int) -> str:
    """Why a statement about so many clusters cannot be tested; "" if it can."""
    clusters = len(np.unique(labels))
    return f"there are {clusters} clusters, not {needed}" if clusters < needed else ""


def _agreement_claim(
    a: np.ndarray,
    b: np.ndarray,
    of_subsamples: list[tuple[np.ndarray, np.ndarray]],
    options: StageOptions,
    *,
    statistic: str,
    **fields: object,
) -> Claim:
    """The claim that two partitions agree; of subsamples, both partitions of the networks in each."""
    value = float(clustering.adjusted_rand_index(a[None], b[None])[0])
    indices = [float(clustering.adjusted_rand_index(x[None], y[None])[0]) for x, y in of_subsamples]
    return Claim.exceeding(
        options.agreement,
        value=value,
        interval=clustering.subsample_interval(value, indices, -1, 1),
        p_value=clustering.agreement_p(a, b, options.seed),
        no_effect=-1.0,  # an index below 0 is chance, not the reverse of agreement
        statistic=f"{statistic}, permuted networks, interval from subsamples of 80 %",
        **fields,
    )


def _aligned_claim(sweep: Sweep, options: StageOptions, fields: dict[str, str]) -> Claim:
    """The claim that distances align with ablation, whatever the clusters."""
    correlation = clustering.jackknife(
        lambda some: clustering.distance_correlation(
            sweep.distances[np.ix_(some, some)], sweep.plane[np.ix_(some, some)]
        ),
        sweep["learning_rate"],
    )
    return Claim.exceeding(
        0,
        value=correlation.value,
        interval=correlation_interval(correlation),
        p_value=clustering.distance_correlation_p(sweep.distances, sweep.plane, options.seed),
        claim="clusters.ablation_distances",
        statement="The farther two networks are from each other, the farther apart they tend to be in robustness to "
        "ablation.",
        statistic="squared distance correlation, bias-corrected, of the distances and those in the plane of robustness "
        f"and generalization error (0: unrelated; permuted networks); n = {len(sweep.distances)} networks",
        **fields,
    )


def _five_claim(
    sweep: Sweep, partitions: list[clustering.Partition], options: StageOptions, count: str, no_clusters: str
) -> Claim:
    """The claim about their number. Clusters on one line are fewer without what each network adds, which is how far out
    it is on the line; so the distances as they are must not have that number either before the claim is dismissed."""
    low, high = clustering.number_interval(partitions)
    as_they_are = len(np.unique(clustering.cluster(sweep.distances, _clustering(options)).labels))
    verdict = INCONCLUSIVE
    if low == high == PUBLISHED_CLUSTERS:
        verdict = REPRODUCED
    elif as_they_are != PUBLISHED_CLUSTERS and not low <= PUBLISHED_CLUSTERS <= high:
        verdict = NOT_REPRODUCED
    return Claim(
        claim="clusters.five",
        figure="5",
        source=SOURCE,
        statement="There are five clusters.",
        statistic="clusters with the largest silhouette, in distances without what each network adds to all of its own "
        f"({as_they_are} in the distances as they are); {count}, interval from subsamples of 80 % of them",
        value=float(len(np.unique(sweep.clusters))),
        interval=(float(low), float(high)),
        paper_value=float(PUBLISHED_CLUSTERS),
        verdict=verdict,
        obstacle=no_clusters or _out_of_reach(options, PUBLISHED_CLUSTERS),
    )


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """The clustered distance matrix, distance against difference in learning rate, the ablation plane and curves."""
    sweep = Sweep(table)
    rates = sorted(set(sweep["learning_rate"]))
    rate_index = np.searchsorted(rates, sweep["learning_rate"])
    styles = figures.sequential(len(rates))
    figure, (matrix, gradient, plane, ablated) = figures.panels(2, 2, height=2.9)
    _draw_matrix(figure, matrix, sweep, rate_index, [colour for colour, _ in styles])
    _draw_gradient(gradient, sweep)
    _draw_plane(plane, sweep)
    curves = by_network(select(table, quantity="ablated_accuracy"), "share")
    shares, accuracies = 100 * curves.columns.to_numpy(float), 100 * curves.to_numpy()
    for index, (rate, style) in enumerate(zip(rates, styles, strict=True)):
        figures.mean_and_std(ablated, shares, accuracies[rate_index == index], *style, f"{rate:.3g}")
    ablated.set(xlabel="Clamped feature maps (%)", ylabel="Train accuracy (%)")
    figures.legend_outside(figure, *ablated.get_legend_handles_labels(), "lower", "Learning rate")
    figures.letters(matrix, gradient, plane, ablated)
    matrix.set_title("a", loc="left", fontweight="bold", y=1.09)
    return figure


def _draw_gradient(axis, sweep: Sweep) -> None:
    """Distance of all pairs against their difference in log learning rate; quartiles, and the range of most pairs."""
    first, second = np.triu_indices(len(sweep.residuals), 1)
    logs = np.log10(sweep["learning_rate"])
    differences = np.round(np.abs(logs[first] - logs[second]), 1)  # rates such as .01, .03, .1 are half decades apart
    steps = np.unique(differences)
    width = 0.6 * np.diff(steps).min() if len(steps) > 1 else 0.5
    values = [sweep.residuals[first, second][differences == step] for step in steps]
    boxes = {"color": figures.BLUE, "linewidth": 0.9}
    axis.boxplot(
        values,
        positions=steps,
        widths=width,
        whis=(5, 95),
        showfliers=False,
        manage_ticks=False,
        medianprops={"color": figures.ORANGE},
        **{name: boxes for name in ("boxprops", "whiskerprops", "capprops")},
    )
    axis.set(xlabel="Difference in log₁₀ learning rate", ylabel=RESIDUAL_LABEL)
    if len(steps) <= 10:
        axis.set_xticks(steps, [f"{step:.2g}" for step in steps])


def _draw_matrix(figure, axis, sweep: Sweep, rate_index: np.ndarray, colours: list) -> None:
    """The distances in the order of the dendrogram, its clusters apart, with bars that show the learning rates."""
    from matplotlib.colors import ListedColormap

    order = np.argsort(sweep["place"])
    size = len(order)
    off_diagonal = ~np.eye(size, dtype=bool)
    distances = np.where(off_diagonal, sweep.residuals, np.nan)  # 0 there would flatten the colours
    low, high = np.quantile(sweep.residuals[off_diagonal], [0.005, 0.995])
    image = axis.imshow(distances[np.ix_(order, order)], cmap="cividis", interpolation="nearest", vmin=low, vmax=high)
    figure.colorbar(image, ax=axis, label=RESIDUAL_LABEL, shrink=0.8, pad=0.03).outline.set_visible(False)
    bar = np.atleast_2d(rate_index[order])
    style = {"cmap": ListedColormap(colours), "vmin": 0, "vmax": len(colours) - 1, "interpolation": "nearest"}
    for box, values in (([-0.07, 0, 0.05, 1], bar.T), ([0, 1.02, 1, 0.05], bar)):
        strip = axis.inset_axes(box)
        strip.imshow(values, aspect="auto", **style)
        strip.set_axis_off()
    for boundary in np.flatnonzero(np.diff(sweep.clusters[order])) + 0.5:
        axis.axhline(boundary, color="white", linewidth=0.7)
        axis.axvline(boundary, color="white", linewidth=0.7)
    axis.set(xticks=[0, size - 1], xticklabels=[1, size], yticks=[], xlabel=f"{size} networks, by cluster")
    axis.spines[:].set_visible(False)


def _draw_plane(axis, sweep: Sweep) -> None:
    """Generalization error against robustness to ablation, one point per network, by cluster."""
    gap, robustness = 100 * (sweep["train_accuracy"] - sweep["test_accuracy"]), sweep["robustness"]
    names = np.unique(sweep.clusters)
    for name, (colour, marker) in zip(names, figures.many_series(), strict=False):
        in_cluster = sweep.clusters == name
        style = {"color": colour, "marker": marker, "linewidths": 0, "alpha": 0.8}
        label = f"cluster {int(name) + 1} ({in_cluster.sum()})"
        axis.scatter(robustness[in_cluster], gap[in_cluster], s=9, label=label, **style)
    axis.set(xlabel="Robustness to ablation (AUC)", ylabel="Generalization error (%)")
    axis.set_ylim(top=axis.get_ylim()[1] + 0.1 * len(names) * np.ptp(gap))
    axis.locator_params(axis="x", nbins=4)
    axis.legend(loc="upper left", handletextpad=0.2)
