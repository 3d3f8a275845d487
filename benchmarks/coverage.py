"""How often do 95 % intervals of five networks cover the truth? The jackknife's against percentiles of a bootstrap.

    python benchmarks/coverage.py [--studies 4000]

Each simulated study has five networks (of each of two groups); a distance is a level, what either network adds, and
noise. Prints the share of the studies whose interval holds the truth; of rank correlations, whose truth has no formula,
the mean over all studies.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import pandas as pd
from cca_dynamics.results.grounding import DELETION, SEEDS, Points
from cca_dynamics.results.recurrent_training import Curves
from cca_dynamics.results.statistics import Estimate, mean_between, mean_within

NETWORKS, WITHIN, BETWEEN = 5, 0.3, 0.5
GROUPS = np.repeat([0, 1], NETWORKS)


def distances(rng: np.random.Generator) -> np.ndarray:
    """(10, 10) distances, WITHIN between networks of the first group, BETWEEN between all others."""
    size = len(GROUPS)
    of_network, noise = 0.02 * rng.normal(size=size), np.triu(0.01 * rng.normal(size=(size, size)), 1)
    levels = np.where((GROUPS[:, None] == 0) & (GROUPS[None] == 0), WITHIN, BETWEEN)
    matrix = levels + of_network[:, None] + of_network[None] + noise + noise.T
    np.fill_diagonal(matrix, 0)
    return matrix


def of_distances(statistic: Callable) -> Callable:
    """An interval of a statistic of the distances and the weights of both groups."""

    def interval(rng: np.random.Generator) -> tuple[float, float]:
        matrix = distances(rng)
        groups = [(group == GROUPS).astype(float) for group in (0, 1)]
        return Estimate.of(lambda weights: statistic(matrix, *(weights * g for g in groups)), GROUPS).interval()

    return interval


def bootstrap(rng: np.random.Generator) -> np.ndarray:
    """Percentiles of a bootstrap of the mean of five values."""
    values = rng.normal(size=NETWORKS)
    return np.quantile(values[rng.integers(NETWORKS, size=(2000, NETWORKS))].mean(axis=1), [0.025, 0.975])


def curves(rng: np.random.Generator, slope: float) -> Curves:
    """Distances of five layers of five networks at 17 checkpoints; a layer's rise by a slope, networks differ by 1."""
    of_layer, of_point = rng.normal(size=(NETWORKS, 5, 1)), rng.normal(size=(NETWORKS, 5, 17))
    return Curves(np.arange(17.0), np.linspace(0, slope, 5)[:, None] + 0.7**0.5 * of_layer + 0.3**0.5 * of_point)


def separation(rng: np.random.Generator) -> tuple[float, float]:
    """Of how much more clearly one measure separates layers than another, in figure A8."""
    return (curves(rng, slope=3).separation() - curves(rng, slope=1).separation()).interval()


def deletions(rng: np.random.Generator) -> Estimate:
    """The rank correlation of figure b of `grounding`: five networks, four layers, seven numbers of components.

    A distance is that of the number of components, what either network adds, and noise; so is the difference.
    """
    a, b = np.nonzero(~np.eye(NETWORKS, dtype=bool))
    tables = []
    for layer in range(4):
        columns = {"network_a": np.repeat(a, 7), "network_b": np.repeat(b, 7), "layer": layer}
        values = []
        for power in (1, 3):
            level, noise = np.linspace(1, 0, 7) ** power, 0.1 * rng.normal(size=(len(a), 7))
            of_networks = 0.1 * rng.normal(size=(2, NETWORKS))
            values.append(level + (of_networks[0, a] + of_networks[1, b])[:, None] + noise)
        tables.append(pd.DataFrame({**columns, "value": values[0].ravel(), "difference": values[1].ravel()}))
    table = pd.concat(tables).assign(quantity="distance", test=DELETION, measure="any")
    return Points(table, DELETION).correlation("any")


def seeds(rng: np.random.Generator) -> Estimate:
    """The rank correlation of figure d of `grounding`: ten networks of each of five rates in the plane.

    Accuracies follow one of the two coordinates, with as much noise.
    """
    rates = np.repeat(np.arange(5), 10)
    place = rng.normal(size=(50, 2)) + 0.3 * rates[:, None]
    accuracy = place[:, 0] + rng.normal(size=50)
    a, b = np.triu_indices(50, 1)
    pairs = {"network_a": a, "network_b": b, "layer": 0, "difference": np.abs(accuracy[a] - accuracy[b])}
    rows = pd.DataFrame({**pairs, "value": np.linalg.norm(place[a] - place[b], axis=1), "measure": "any"})
    networks = pd.DataFrame({"quantity": "learning_rate", "network": np.arange(50), "value": rates})
    return Points(pd.concat([rows.assign(quantity="distance", test=SEEDS), networks]), SEEDS).correlation("any")


CASES = {
    "mean of one value per network": (lambda rng: Estimate.of_mean(rng.normal(size=NETWORKS)).interval(), 0.0),
    "mean distance within a group": (of_distances(lambda matrix, first, second: mean_within(matrix, first)), WITHIN),
    "difference of two mean distances": (
        of_distances(lambda matrix, first, second: mean_between(matrix, first, second) - mean_within(matrix, first)),
        BETWEEN - WITHIN,
    ),
    "ratio of two mean distances": (
        of_distances(lambda matrix, first, second: mean_within(matrix, second) / mean_within(matrix, first)),
        BETWEEN / WITHIN,
    ),
    "difference of two separations of layers": (separation, 2.0),
    "mean of one value per network, bootstrap": (bootstrap, 0.0),
}
RANK_CORRELATIONS = {"rank correlation of deletions": deletions, "rank correlation of seeds": seeds}
SLOW = 20
"""A rank correlation takes so many times as long, and fewer studies have to do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=4000, help="simulated studies of each case")
    studies = parser.parse_args().studies
    for name, (interval, truth) in CASES.items():
        intervals = [interval(np.random.default_rng([7, study])) for study in range(studies)]
        covered = np.mean([low <= truth <= high for low, high in intervals])
        print(f"{name:42s} {covered:.3f}")
    for name, estimate in RANK_CORRELATIONS.items():
        estimates = [estimate(np.random.default_rng([7, study])) for study in range(-(-studies // SLOW))]
        truth = np.mean([each.value for each in estimates])
        covered = np.mean([low <= truth <= high for low, high in (each.interval() for each in estimates)])
        print(f"{name:42s} {covered:.3f}   (mean {truth:.2f}, {len(estimates)} studies)")


if __name__ == "__main__":
    main()
