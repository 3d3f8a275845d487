"""Beyond the paper: does a distance between representations say how much what they can do differs?

Protocol (Ding, Denain & Steinhardt 2021): the rank correlation between the distance of two representations and a
difference in function, by three tests.

Principal components deleted: the reference is a layer of one network; the others are the same layer of other networks,
restricted to its leading principal components, because a layer and its own restriction have canonical correlations of 1
and hence a CCA distance of 0. The functional difference is that in the accuracy of a linear probe.
Layer depth: the reference is the layer of a network with the best probe; the others are all layers of other networks.
Seeds: pairs of networks of the sweep; the functional difference is that in accuracy out of distribution, on test inputs
with Gaussian noise.

Probes find the class by least squares from a layer. They are fitted on training data, where the labels are the
decisions of the network, which fits its labels, and tested on test data with its true labels. Distances are those on
training data, of which there are more, so that chance moves canonical correlations less.

The representations compared have unequal ranks. PWCCA, in its authors' code as in `similarity.pwcca`, then has as many
correlations as the smaller rank, and weights that sum to 1 over these common directions. What the smaller one lacks
does not count, so that a single principal component may be near to everything. (The weights are here those of the
reference, in the authors' code those of the representation of smaller rank.) In the code of Ding et al. the weights sum
to 1 over all directions of the reference, so that those which the other one lacks count as uncorrelated. Where ranks
are equal, both are the same. The table has both, the latter as `ALL_DIRECTIONS`, with which the published values are
compared.

Ours: the networks, the data, the numbers of components, and the noise. Ding et al. compare BERT models, with probes for
SST-2 (deletions) and QNLI (depth), and take as reference the last layers, of the model with the best probe alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cca_dynamics.config.base import Integer, Number
from cca_dynamics.config.cohorts import Cohort, LayerRequest, noisy_split
from cca_dynamics.config.models import (
    MEASURES_DESCRIPTION,
    Layer,
    Measures,
    ResultOptions,
    StageOptions,
    StudyConfig,
    option,
)
from cca_dynamics.errors import ConfigError
from cca_dynamics.networks.architectures import layers
from cca_dynamics.results import classifiers, figures
from cca_dynamics.results.claims import Claim, Obstacle, estimate_claim, fitted_claim, provided, too_few
from cca_dynamics.results.inputs import Inputs, final_performance
from cca_dynamics.results.layers import require_any_width, require_layer
from cca_dynamics.results.statistics import Estimate, pearson
from cca_dynamics.results.tables import forced_correlations, select, tidy

if TYPE_CHECKING:
    from torch import Tensor

    from cca_dynamics.similarity import Factors

KEY = "results.grounding"
NETWORKS_OF = ("generalization", "clusters")
"""Results whose networks are compared."""
COHORT = "generalizing"
ALL_DIRECTIONS = "pwcca_all_directions"
"""What tables call PWCCA with weights over all directions of the reference."""
DELETION, DEPTH, SEEDS = "deletion", "depth", "seeds"
TESTS = {DELETION: "Components deleted", DEPTH: "Layer depth", SEEDS: "Out of distribution"}
"""What tables call the tests → what figures call them."""
PUBLISHED = {
    DELETION: {ALL_DIRECTIONS: 0.87, "procrustes": 0.86, "linear_cka": 0.75},
    DEPTH: {ALL_DIRECTIONS: 0.49, "procrustes": 0.57, "linear_cka": 0.63},
}
"""Test → measure → rank correlation (Spearman) that Ding et al. print."""
BESIDE = 0.42
"""How far published values are drawn from ours, of the distance between two measures."""
PUBLISHED_ERROR = 0.005
"""They print two digits."""
SOURCE = "Ding, Denain & Steinhardt 2021"


class Options(ResultOptions):
    """The keys of results.grounding."""

    components: Integer = option(
        8,
        "compute",
        ge=2,
        le=1000,
        description="So many numbers of leading principal components per layer, from 1 to all, in equal ratios.",
    )
    networks: Integer = option(
        10, "compute", ge=2, le=10_000, description="Networks of each learning rate of the sweep that are compared."
    )
    layer: Layer = option("conv4", "activations", "compute", description="Their layer whose distances are compared.")
    noise: Number = option(
        0.5,
        *("activations", "compute", "claims"),
        gt=0,
        le=100,
        description="Standard deviation of the noise out of distribution, in that of the inputs.",
    )
    measures: Measures = option(
        ("pwcca", "mean_cca", "svcca", "linear_cka", "procrustes"),
        *("compute", "claims", "plot"),
        description=MEASURES_DESCRIPTION,
    )


ALTERNATIVES = {"noise": (0.25, 1.0)}
"""Other values that the choice leaves open, the default of multiverse.grounding."""


def check(config: StudyConfig, options: Options) -> None:
    """Refuse measures for layers of equal width, and a layer or more networks than the sweep has."""
    require_any_width(f"{KEY}.measures", options.measures)
    sweep = config.results.clusters
    if options.networks > sweep.networks:
        raise ConfigError(
            f"{KEY}.networks",
            f"{options.networks} are more than the {sweep.networks} of results.clusters.networks; use that many or "
            "fewer",
        )
    require_layer(f"{KEY}.layer", options.layer, config.network_of("clusters"))


def obstacles(config: StudyConfig, options: Options) -> list[Obstacle]:
    """Settings under which claims could never be reproduced."""
    return [
        *too_few("results.generalization.networks", config.results.generalization.networks, "generalizing networks"),
        *too_few(f"{KEY}.networks", options.networks, "networks of each learning rate"),
    ]


def cohorts(config: StudyConfig, options: Options) -> list[Cohort]:
    """The generalizing networks, and the sweep with its decisions out of distribution."""
    what = {"epochs": "final", "points": config.data_points}
    return [
        classifiers.labelled(config, COHORT, classifiers.final_layers(config, "train", "test")),
        classifiers.sweep(
            config,
            LayerRequest(splits=("train",), layers=(options.layer,), **what),
            LayerRequest(splits=("test",), layers=("softmax",), noise=options.noise, **what),
        ),
    ]


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """The points whose rank correlation is tested: distances, each with its functional difference.

    Returns:
        Tidy rows. quantity "distance": test (one of `TESTS`), measure (of the option, or `ALL_DIRECTIONS`; not in the
        test of seeds, where widths are equal), network_a (the reference), layer (of the reference), network_b, layer_b,
        components (of b; of the test of deletions), value (distance from a to b; of seeds the mean of both directions),
        difference (in accuracy), rank_a, rank_b, n, forced. Per generalizing network: "train_accuracy", "loss",
        "test_accuracy", and with layer "probe" (accuracy of the probe of the whole layer on test data). Per network of
        the sweep: "learning_rate", "noisy_accuracy" (out of distribution).
    """
    labels, of_seeds = _seeds(inputs, options)
    return tidy([*_probes(inputs, options, labels), final_performance(inputs, COHORT), *of_seeds])


def _seeds(inputs: Inputs, options: StageOptions) -> tuple[np.ndarray, list[pd.DataFrame]]:
    """The true labels of the test data (n,), the same for all cohorts of a study, and the tables of the sweep."""
    from cca_dynamics.similarity import MEASURES, factorize, pairwise

    cohort, split = classifiers.SWEEP, noisy_split("test", options.noise)
    step = inputs.checkpoints(cohort)[-1][0]
    labels = inputs.representations(cohort, "labels", step, split)[0, :, 0].astype(int)
    rates = _learning_rates(inputs)
    chosen = np.sort(np.concatenate([np.flatnonzero(rates == rate)[: options.networks] for rate in np.unique(rates)]))
    decisions = inputs.representations(cohort, "softmax", step, split)[chosen].argmax(axis=-1)
    accuracies = (decisions == labels).mean(axis=1)
    factors = [factorize(x, device=inputs.device) for x in inputs.representations(cohort, options.layer, step)[chosen]]
    a, b = np.triu_indices(len(chosen), 1)
    ranks = np.array([layer.rank for layer in factors])
    columns = {
        **{"test": SEEDS, "quantity": "distance", "network_a": a, "network_b": b},
        **{"layer": options.layer, "layer_b": options.layer, "difference": np.abs(accuracies[a] - accuracies[b])},
        **{"rank_a": ranks[a], "rank_b": ranks[b], "n": factors[0].n},
    }
    tables = []
    for measure in options.measures:
        distances = pairwise(factors, measure, device=inputs.device)
        forced = _forced(measure, MEASURES, ranks[a] + ranks[b], factors[0].n)
        values = (distances[a, b] + distances[b, a]) / 2
        tables.append(pd.DataFrame({**columns, "measure": measure, "value": values, "forced": forced}))
    for quantity, values in (("learning_rate", rates[chosen]), ("noisy_accuracy", accuracies)):
        tables.append(pd.DataFrame({"network": np.arange(len(chosen)), "quantity": quantity, "value": values}))
    return labels, tables


def _learning_rates(inputs: Inputs) -> np.ndarray:
    """(N,) learning rate of each network of the sweep that did not diverge."""
    from cca_dynamics.training.checkpoints import load_recipe

    rates = [load_recipe(part).training.learning_rate for part in inputs.networks[classifiers.SWEEP]]
    return np.concatenate([np.atleast_1d(part) for part in rates])[inputs.trained(classifiers.SWEEP)]


def _forced(measure: str, measures: dict, ranks: int | np.ndarray, n: int) -> object:
    """Correlations that are exactly 1 because the sum of two ranks exceeds n - 1; missing where they are not used."""
    uses_all = measure == ALL_DIRECTIONS or measures[measure].uses_all_correlations
    return forced_correlations(ranks, n) if uses_all else pd.NA


def _probes(inputs: Inputs, options: StageOptions, labels: np.ndarray) -> Iterator[pd.DataFrame]:
    """The tables of deletions and of layer depth.

    Args:
        inputs, options: as of `compute`.
        labels: (n,) true labels of the test data.
    """
    from cca_dynamics.training.checkpoints import load_recipe

    step = inputs.checkpoints(COHORT)[-1][0]
    outputs = inputs.representations(COHORT, "softmax", step)
    networks_of, points, accuracies = {}, [], {}
    for name in layers(load_recipe(inputs.networks[COHORT][0]).network):  # more may be stored, for other results
        on_test = inputs.representations(COHORT, name, step, "test")
        states = inputs.representations(COHORT, name, step)
        networks = [
            _Layer(train, test, output, labels, inputs.device)
            for train, test, output in zip(states, on_test, outputs, strict=True)
        ]
        networks_of[name] = networks
        accuracies[name] = [layer.accuracy(layer.factors.rank) for layer in networks]
        points += _deletions(networks, name, accuracies[name], options)
    points += _depths(networks_of, accuracies, options)
    yield pd.DataFrame(points).assign(quantity="distance")
    for name, of_networks in accuracies.items():
        rows = {"network": np.arange(len(of_networks)), "layer": name, "quantity": "probe", "value": of_networks}
        yield pd.DataFrame(rows)


class _Layer:
    """A layer of one network, and linear probes of its leading principal components.

    Args:
        train, test: (n, d) and (m, d), activations on training and on test data.
        output: (n, classes), what the network returns for the training data.
        labels: (m,) true labels of the test data.
        device: "cpu" or "cuda".
    """

    def __init__(self, train: np.ndarray, test: np.ndarray, output: np.ndarray, labels: np.ndarray, device: str):
        from cca_dynamics.similarity import factorize

        self.factors, self._labels = factorize(train, device=device), labels
        self.basis = self.factors.basis()
        targets = np.eye(output.shape[1])[output.argmax(axis=1)]
        mean, to_basis = self.factors.mean.cpu().numpy(), self.factors.to_basis.cpu().numpy()
        self._intercept, self._weights = targets.mean(axis=0), self.basis.cpu().numpy().T @ targets
        self._scores = (test - mean) @ to_basis

    def accuracy(self, components: int) -> float:
        """Share of the test data whose label is found from so many leading components, by least squares.

        The components are orthonormal and centred on training data, so a probe of some of them has those of the
        coefficients of all.
        """
        outputs = self._scores[:, :components] @ self._weights[:components] + self._intercept
        return float((outputs.argmax(axis=1) == self._labels).mean())

    def numbers(self, count: int) -> list[int]:
        """At most so many numbers of components, from 1 to all, in equal ratios."""
        rank = self.factors.rank
        return sorted({round(number) for number in np.geomspace(1, rank, count)}) if rank else []

    def leading(self, components: int) -> Factors:
        """The factors of the layer restricted to its leading principal components."""
        layer = self.factors
        s, v, to_basis = layer.s[:components], layer.v[:, :components], layer.to_basis[:, :components]
        x = (self.basis[:, :components] * s) @ v.T + layer.mean
        return replace(layer, x=x, s=s, v=v, to_basis=to_basis)


def _deletions(networks: list[_Layer], layer: str, accuracies: list[float], options: StageOptions) -> Iterator[dict]:
    """The rows of one layer: from each network's to that of every other one, restricted to some components."""
    for b, other in enumerate(networks):
        crosses = {a: reference.basis.T @ other.basis for a, reference in enumerate(networks) if a != b}
        for components in other.numbers(options.components):
            restricted, accuracy = other.leading(components), other.accuracy(components)
            for a, cross in crosses.items():
                columns = {"test": DELETION, "network_a": a, "layer": layer, "network_b": b, "layer_b": layer}
                columns |= {"components": components, "difference": abs(accuracies[a] - accuracy)}
                yield from _rows(networks[a].factors, restricted, cross[:, :components], options, columns)


def _depths(
    networks_of: dict[str, list[_Layer]], accuracies: dict[str, list[float]], options: StageOptions
) -> Iterator[dict]:
    """The rows of layer depth: from each network's layer with the best probe to all layers of the others."""
    for a in range(len(next(iter(networks_of.values())))):
        best = max(networks_of, key=lambda name: accuracies[name][a])
        reference = networks_of[best][a]
        for name, networks in networks_of.items():
            for b, other in enumerate(networks):
                if a != b:
                    columns = {"test": DEPTH, "network_a": a, "layer": best, "network_b": b, "layer_b": name}
                    columns["difference"] = abs(accuracies[best][a] - accuracies[name][b])
                    cross = reference.basis.T @ other.basis
                    yield from _rows(reference.factors, other.factors, cross, options, columns)


def _rows(reference: Factors, other: Factors, cross: Tensor, options: StageOptions, columns: dict) -> Iterator[dict]:
    """Distances from a representation to another one, one row per measure, with `columns`."""
    from cca_dynamics.similarity import MEASURES

    numbers = {"rank_a": reference.rank, "rank_b": other.rank, "n": reference.n}
    for measure in (*options.measures, ALL_DIRECTIONS):
        if measure == ALL_DIRECTIONS:
            value = pwcca_of_all_directions(reference, cross)
        else:
            value = _distance(measure, reference, other, cross)
        forced = _forced(measure, MEASURES, reference.rank + other.rank, reference.n)
        yield {**columns, "measure": measure, "value": value, **numbers, "forced": forced}


def _distance(measure: str, x: Factors, y: Factors, cross: Tensor) -> float:
    """A measure's distance from x to y, from the product of their bases where it has a kernel."""
    from cca_dynamics.similarity import MEASURES
    from cca_dynamics.similarity.cca import check_pair

    record = MEASURES[measure]
    if record.kernel is None:
        return float(record.function(x, y, device=str(x.x.device)).distance)
    x, y = record.compared([x, y])
    if record.canonical:
        check_pair(x, y)
    if min(x.rank, y.rank) == 0:
        return record.to_constant
    return float(record.kernel(cross[: x.rank, : y.rank], x, [y])[0])


def pwcca_of_all_directions(x: Factors, cross: Tensor) -> float:
    """PWCCA distance from x to a representation, whose weights sum to 1 over all directions of x.

    1 - Σ α_i ρ_i, where α_i ∝ Σ_j |⟨h_i, x_j⟩| as in `similarity.pwcca`, but i counts all directions of x; ρ_i is 0 for
    those that the other one, of smaller rank, lacks. These are the principal axes of x among them.

    Args:
        x: the reference.
        cross: (p, q), the product of the bases of both.

    Source: Ding et al. 2021, the code of `pwcca_dist` in js-d/sim_metric.
    """
    from torch.nn.functional import pad

    from cca_dynamics.similarity.cca import canonical_directions, projection_weights

    if min(cross.shape) == 0:
        return 1.0
    square = pad(cross, (0, max(cross.shape[0] - cross.shape[1], 0)))  # with directions that correlate with nothing
    u, rho, _ = canonical_directions(square)
    weights = projection_weights(u, x.coordinates(), rho)
    return float((1 - weights @ rho).clamp(0, 1))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of two series (P,); ties share their mean rank; 0 where a side is constant."""
    from scipy.stats import rankdata

    return float(pearson(*(rankdata(np.round(values, 12)) for values in (x, y))))


class Points:
    """The points of one test, and rank correlations of distance and functional difference.

    Args:
        table: written by `compute`.
        test: one of `TESTS`.

    Attributes:
        measures: those that the test has.
        count: number of points of each measure.
        groups: (N,) group of each network, for the jackknife: its learning rate, or one group of all.
    """

    def __init__(self, table: pd.DataFrame, test: str):
        rows = select(table, quantity="distance", test=test)
        self._points = dict(iter(rows.groupby("measure", sort=False)))
        self.measures = list(self._points)
        self.count = len(next(iter(self._points.values())))
        self._is_of_seeds = test == SEEDS
        if self._is_of_seeds:
            self.groups = select(table, quantity="learning_rate").sort_values("network")["value"].to_numpy()
        else:
            self.groups = np.zeros(int(rows["network_b"].max()) + 1)

    def correlation(self, measure: str) -> Estimate:
        """Rank correlation of a measure; the mean over references (network and layer), of seeds over all pairs.

        Ranks are not smooth, but the jackknife's interval covers the truth in 94 to 98 % of 200 simulated studies
        (benchmarks/coverage.py).
        """
        return Estimate.of(self._statistic(measure), self.groups)

    def _statistic(self, measure: str) -> Callable[[np.ndarray], np.ndarray]:
        rows = self._points[measure]
        a, b = (rows[column].to_numpy(int) for column in ("network_a", "network_b"))
        distance, difference = (rows[column].to_numpy(float) for column in ("value", "difference"))
        reference = np.zeros(len(rows)) if self._is_of_seeds else rows.groupby(["network_a", "layer"]).ngroup()
        reference = np.asarray(reference)

        def of_networks(counts: np.ndarray) -> float:
            """Of the pairs whose networks both count."""
            both = counts[a] & counts[b]
            groups = [both & (reference == number) for number in np.unique(reference[both])]
            return float(np.mean([spearman(distance[group], difference[group]) for group in groups]))

        return lambda weights: np.array([of_networks(row > 0) for row in weights])


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """The claims of Ding et al. 2021; those about probes need networks whose decisions are the training labels."""
    fitted = fitted_claim(
        select(table, quantity="train_accuracy")["value"].to_numpy(),
        claim="grounding.fitted",
        figure="none",
        source="ours",
        statement="The decisions of the networks on training data, on which probes are fitted, are the labels (the "
        "comparison's precondition).",
        statistic="lowest train accuracy of a generalizing network (at least 0.99)",
    )
    return [*provided(fitted, [*_deletion_claims(table), *_depth_claims(table)]), *_seed_claims(table, options)]


def _claim(name: str, estimate: Estimate, **fields: object) -> Claim:
    """The claim that a rank correlation, or a difference of two, exceeds 0."""
    fields = {"figure": "none", "source": SOURCE, **fields}
    return estimate_claim(0, estimate, claim=f"grounding.{name}", **fields)


def _published(test: str, *measures: str) -> dict[str, float]:
    """The attributes paper_value and paper_error: a published correlation, or the first minus the second."""
    values = [PUBLISHED[test][measure] for measure in measures]
    return {
        "paper_value": round(values[0] - sum(values[1:]), 2),
        "paper_error": PUBLISHED_ERROR * len(values) ** 0.5,
    }


def _deletion_claims(table: pd.DataFrame) -> list[Claim]:
    points = Points(table, DELETION)
    references = (
        f"mean over references; {points.count} points of n = {len(points.groups)} networks, jackknife of networks"
    )
    reference_counts = points.correlation(ALL_DIRECTIONS)
    result = [
        _claim(
            "deletion_pwcca",
            reference_counts,
            limits=(-1, 1),
            statement="When principal components are deleted, PWCCA distance tracks the loss in what a linear probe "
            "can read, if directions that the other layer lacks count as uncorrelated.",
            statistic="rank correlation (Spearman) of PWCCA distance over all directions of the reference and the "
            f"difference in probe accuracy, {references}",
            **_published(DELETION, ALL_DIRECTIONS),
        ),
        _claim(
            "deletion_pwcca_common",
            points.correlation("pwcca"),
            limits=(-1, 1),
            source="ours",
            statement="When principal components are deleted, PWCCA distance tracks that loss if weights sum to 1 over "
            "the directions that both layers have, as in the code of its authors.",
            statistic="rank correlation (Spearman) of PWCCA distance and the difference in probe accuracy, "
            f"{references}",
        ),
    ]
    if "linear_cka" in points.measures:
        result.append(
            _claim(
                "deletion_pwcca_over_cka",
                reference_counts - points.correlation("linear_cka"),
                limits=(-2, 2),
                statement="When principal components are deleted, PWCCA distance tracks the loss better than linear "
                "CKA does.",
                statistic="rank correlation of PWCCA distance over all directions of the reference minus that of "
                f"linear CKA distance (common directions alone: {_minus(points, 'pwcca', 'linear_cka'):.2f}), "
                f"{references}",
                **_published(DELETION, ALL_DIRECTIONS, "linear_cka"),
            )
        )
    return result


def _depth_claims(table: pd.DataFrame) -> list[Claim]:
    points = Points(table, DEPTH)
    if "linear_cka" not in points.measures:
        return []
    best = select(table, quantity="distance", test=DEPTH).groupby("network_a")["layer"].first().value_counts()
    layers = ", ".join(f"{name} of {count}" for name, count in best.items())
    return [
        _claim(
            "depth_cka_over_pwcca",
            points.correlation("linear_cka") - points.correlation(ALL_DIRECTIONS),
            limits=(-2, 2),
            statement="Over the layers of other networks, linear CKA distance from the layer with the best probe "
            "tracks the difference in probe accuracy better than PWCCA distance does.",
            statistic="rank correlation (Spearman) of linear CKA distance and the difference in probe accuracy minus "
            "that of PWCCA distance over all directions of the reference (of common directions alone: "
            f"{_minus(points, 'linear_cka', 'pwcca'):.2f}), mean over references (the best probe is in {layers} "
            f"networks); {points.count} points of n = {len(points.groups)} networks, jackknife of networks",
            **_published(DEPTH, "linear_cka", ALL_DIRECTIONS),
        )
    ]


def _minus(points: Points, first: str, second: str) -> float:
    return points.correlation(first).value - points.correlation(second).value


def _seed_claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    points = Points(table, SEEDS)
    accuracies = select(table, quantity="noisy_accuracy")["value"]
    rates = len(np.unique(points.groups))
    return [
        _claim(
            f"seeds_{measure}",
            points.correlation(measure),
            limits=(-1, 1),
            statement=f"The farther two networks are from each other under {figures.measure_label(measure)} distance, "
            "the more their accuracies out of distribution differ.",
            statistic="rank correlation (Spearman) of distance and difference in accuracy on test inputs with noise of "
            f"{options.noise:g} standard deviations (accuracy {accuracies.min():.2f} to {accuracies.max():.2f}), over "
            f"{points.count} pairs; n = {len(points.groups)} networks of {rates} learning rates, jackknife of networks",
        )
        for measure in ("pwcca", "linear_cka", "procrustes")
        if measure in points.measures
    ]


def _label(measure: str) -> str:
    return "PWCCA, all directions" if measure == ALL_DIRECTIONS else figures.measure_label(measure)


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """An example of the points of deletions, and rank correlations per measure for each of the tests."""
    figure, (example, *axes) = figures.panels(2, 2, height=2.2)
    measures = [ALL_DIRECTIONS, *options.measures]
    _draw_example(example, table, measures)
    for axis, (test, title) in zip(axes, TESTS.items(), strict=True):
        _draw_correlations(axis, Points(table, test), measures, PUBLISHED.get(test, {}))
        axis.set_title(title)
    handles, labels = axes[0].get_legend_handles_labels()
    more, more_labels = example.get_legend_handles_labels()
    figures.legend_outside(figure, [*more, *handles[::-1]], [*more_labels, *labels[::-1]])
    figures.letters(example, *axes)
    return figure


def _draw_example(axis, table: pd.DataFrame, measures: list[str]) -> None:
    """Functional difference against distance, of the last hidden layer's deletions, one network as reference."""
    rows = select(table, quantity="distance", test=DELETION, network_a=0)
    layer = [name for name in rows["layer"].unique() if name != "softmax"][-1]
    rows = select(rows, layer=layer)
    shown = [measure for measure in (ALL_DIRECTIONS, "pwcca", "linear_cka") if measure in measures]
    styles = figures.measure_styles(["pwcca", "linear_cka"]) | {ALL_DIRECTIONS: (figures.GREEN, "^")}
    for measure in shown:
        colour, marker = styles[measure]
        of_measure = select(rows, measure=measure)
        style = {"color": colour, "marker": marker, "s": 12, "linewidths": 0, "alpha": 0.8}
        axis.scatter(of_measure["value"], 100 * of_measure["difference"], label=_label(measure), **style)
    axis.set(xlabel="Distance from the reference", ylabel="Accuracy difference (%)")
    axis.set_title(f"An example of b: {layer}")


def _draw_correlations(axis, points: Points, measures: list[str], published: dict[str, float]) -> None:
    """Rank correlations with their intervals, one measure below the other, and published values beside them."""
    shown = [measure for measure in measures if measure in points.measures]
    estimates = [points.correlation(measure) for measure in shown]
    values, places = np.array([estimate.value for estimate in estimates]), np.arange(len(shown))
    low, high = np.clip([estimate.interval() for estimate in estimates], -1, 1).T
    bars = np.nan_to_num([values - low, high - values]).clip(min=0)
    style = {"color": figures.GREY, "marker": "o", "linestyle": "", "capsize": 2, "elinewidth": 0.9}
    axis.axvline(0, **figures.THRESHOLD)
    axis.errorbar(values, places, xerr=bars, label="b–d: this study", **style)
    known = [index for index, measure in enumerate(shown) if measure in published]
    if known:
        values = [published[shown[index]] for index in known]
        style = {"colour": figures.GREY, "marker": "D", "label": "b, c: Ding et al. (BERT)", "size": 20}
        figures.published_points(axis, values, np.array(known) + BESIDE, **style)
    axis.set_yticks(places, [_label(measure).replace(", ", ",\n") for measure in shown])
    axis.set_ylim(len(shown) - 0.3, -0.6)
    axis.set(xlim=(-1.05, 1.05), xticks=np.linspace(-1, 1, 5), xlabel="Rank correlation")
