"""Verdicts of the sweep and of both toys follow the data: tables in which each claim holds, and in which it does not."""

import numpy as np
import pandas as pd
import pytest
from cca_dynamics.config.models import StageOptions
from cca_dynamics.results import clustering, clusters, figures, toy_noise, toy_rnn
from cca_dynamics.results.claims import (
    COLUMNS,
    INCONCLUSIVE,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    REVERSED,
)
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.tables import select, tidy
from cca_dynamics.study import Study

WARD = clustering.Clustering("ward", most=8, smallest=0.05)
RATES = 10.0 ** np.arange(-2, 0.5, 0.5)


@pytest.fixture
def options(default_config):
    study = Study(default_config)
    return {name: study.options(name) for name in ("clusters", "toy_noise", "toy_rnn")}


def compute(module, options) -> pd.DataFrame:
    return module.compute(Inputs.from_paths([], []), StageOptions(options, "compute", seed=0))


def claims_of(module, table, options) -> dict:
    """Name of each claim without that of its result → claim."""
    claims = module.claims(table, StageOptions(options, "claims", seed=0))
    return {claim.claim.partition(".")[2]: claim for claim in claims}


def verdicts(module, table, options) -> dict[str, str]:
    return {name: claim.verdict for name, claim in claims_of(module, table, options).items()}


def high_dimensional(rng, structure: np.ndarray, noise: float = 0.05) -> np.ndarray:
    """Distances of networks (N, d) that also differ in 60 directions, some networks much more than others."""
    size = len(structure)
    lengths = noise * rng.uniform(0.5, 2.0, size=size)
    points = np.hstack([structure, lengths[:, None] * rng.normal(size=(size, 60)) / 60**0.5])
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def five_groups(size: int = 12, far: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """(structure, group): groups at equal distances, but for the last, which is `far` times as far from the centre."""
    groups = np.repeat(np.arange(5), size)
    structure = 0.1 * np.eye(5)[groups]
    structure[groups == 4] *= far
    return structure, groups


def sweep_table(
    distances: np.ndarray,
    groups: np.ndarray,
    plane: np.ndarray,
    *,
    how: clustering.Clustering = WARD,
    reached: bool = True,
    accuracy_of_groups: float = 0.0,
) -> pd.DataFrame:
    """A table as `compute` writes one, of networks whose robustness and generalization error are given (N, 2)."""
    size = len(groups)
    a, b = np.nonzero(~np.eye(size, dtype=bool))
    pairs = {"network_a": a, "network_b": b, "value": distances[a, b]}
    tables = [pd.DataFrame({"quantity": "distance", "measure": "pwcca", **pairs})]
    partition = clustering.cluster(clustering.residual_distances(distances), how)
    train, test = np.ones(size), 0.95 - 0.001 * plane[:, 1] - accuracy_of_groups * groups
    robustness = 0.4 + 0.01 * plane[:, 0]
    in_plane = clustering.cluster(clustering.standardised_distances(np.column_stack([robustness, train - test])), how)
    per_network = {
        "learning_rate": RATES[groups],
        "cluster": partition.labels,
        "place": partition.positions,
        "ablation_cluster": in_plane.labels,
        "train_accuracy": train,
        "test_accuracy": test,
        "robustness": robustness,
        "stopped_after": np.where((np.arange(size) > 0) | reached, 20.0 + groups, np.nan),
    }
    tables += [
        pd.DataFrame({"network": range(size), "quantity": quantity, "value": np.asarray(values, dtype=float)})
        for quantity, values in per_network.items()
    ]
    share = np.linspace(0, 1, 5)
    curves = pd.DataFrame({"network": np.repeat(np.arange(size), 5), "share": np.tile(share, size)})
    tables.append(curves.assign(quantity="ablated_accuracy", value=1 - curves["share"]))
    return tidy(tables)


def in_groups(rng, groups: np.ndarray) -> np.ndarray:
    """(N, 2) positions in the ablation plane that tell the groups."""
    centres = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [2.5, 2.5]])
    return centres[groups] + 0.05 * rng.normal(size=(len(groups), 2))


def planted(rng, **change) -> pd.DataFrame:
    structure, groups = five_groups()
    arguments = {"distances": high_dimensional(rng, structure), "groups": groups, "plane": in_groups(rng, groups)}
    return sweep_table(**{**arguments, **change})


def along_a_line(rng, spread: float = 0.35) -> tuple[np.ndarray, np.ndarray]:
    """(distances, groups): groups at equal steps along a line, between which networks lie, too."""
    groups = np.repeat(np.arange(5), 12)
    return high_dimensional(rng, 0.1 * (groups[:, None] + spread * rng.normal(size=(60, 1)))), groups
