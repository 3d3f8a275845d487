"""Tidy tables of results, and back from a table to the matrices that statistics need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cca_dynamics.results.block_cache import BlocksInFolder

if TYPE_CHECKING:
    from cca_dynamics.config.models import StageOptions
    from cca_dynamics.similarity import Factors, Measure

DIVERGED = "diverged"
"""Quantity of the rows that name networks which are left out."""
CONTROLS = ("cosine", "euclidean")
"""Measures that compare neuron by neuron, with which the paper contrasts CCA."""
COUNTS = (
    "forced",
    "network",
    "network_a",
    "network_b",
    "rank_a",
    "rank_b",
    "n",
    "index",
    "layer_index",
    "filters",
    "signal",
    "draw",
)


def measures_of(options: StageOptions) -> dict[str, str]:
    """What a result calls its measures → the keys of `similarity.MEASURES`, by its options `measures` and `pwcca`."""
    return {name: options.pwcca if name == "pwcca" else name for name in options.measures}


def _by_name(measures: Sequence[str] | Mapping[str, str]) -> Mapping[str, str]:
    return measures if isinstance(measures, Mapping) else {measure: measure for measure in measures}


def distance_table(
    representations: Sequence[np.ndarray],
    measures: Sequence[str] | Mapping[str, str],
    device: str = "cpu",
    finished_blocks: Path | None = None,
) -> pd.DataFrame:
    """Distances between all ordered pairs of different networks.

    Args:
        representations: N arrays (n, d).
        measures: keys of `similarity.MEASURES`; with other names for the table, name → key.
        device: "cpu" or "cuda".
        finished_blocks: a folder from which a killed comparison resumes, see `block_cache`.

    Returns:
        N·(N − 1) rows per measure: network_a, network_b (positions in the argument), quantity "distance", measure,
        value (distance from a to b), rank_a, rank_b (of the centred representations), n, forced (see
        `forced_correlations`; missing where the measure does not use all of them), and floor: the distance expected of
        unrelated Gaussian representations of the ranks that are compared (SVCCA drops some), nan where the measure has
        none.
    """
    from cca_dynamics.similarity import MEASURES, factorize, null_floor, pairwise  # late: PyTorch is slow to import

    factors = [factorize(x, device=device) for x in representations]
    ranks = np.array([factor.rank for factor in factors])
    a, b = np.nonzero(~np.eye(len(factors), dtype=bool))
    tables = []
    for name, measure in _by_name(measures).items():
        seen = [factor.rank for factor in MEASURES[measure].compared(factors)]
        floors = {(p, q): null_floor(p, q, factors[0].n, measure) for p in set(seen) for q in set(seen)}
        cache = BlocksInFolder(finished_blocks, measure) if finished_blocks else None
        distances = pairwise(factors, measure, device=device, cache=cache)
        tables.append(
            pd.DataFrame(
                {
                    "network_a": a,
                    "network_b": b,
                    "quantity": "distance",
                    "measure": name,
                    "value": distances[a, b],
                    "rank_a": ranks[a],
                    "rank_b": ranks[b],
                    "n": factors[0].n,
                    "forced": _forced(ranks[a] + ranks[b], factors[0].n, MEASURES[measure]),
                    "floor": [floors[seen[i], seen[j]] for i, j in zip(a, b, strict=True)],
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def distance_rows(
    x: Factors, reference: Factors, measures: Sequence[str] | Mapping[str, str], **columns: object
) -> list[dict[str, object]]:
    """Distances from one representation to another, one row per measure.

    Args:
        x, reference: the representations.
        measures: keys of `similarity.MEASURES`; with other names for the table, name → key.
        columns: of every row, beside measure, quantity "distance", value, rank_a, rank_b, n, forced and floor (see
            `distance_table`).

    Returns:
        One dict per row.
    """
    from cca_dynamics.similarity import MEASURES, cca, null_floor

    rows, correlations, device = [], None, str(x.x.device)
    for name, measure in _by_name(measures).items():
        if (of_cca := MEASURES[measure].of_cca) is None:
            result = MEASURES[measure].function(x, reference, device=device)
        else:
            correlations = cca(x, reference, device=device) if correlations is None else correlations
            result = of_cca(correlations)
        numbers = {"value": result.distance, "rank_a": result.rank_x, "rank_b": result.rank_y, "n": result.n}
        numbers["forced"] = _forced(result.rank_x + result.rank_y, result.n, MEASURES[measure])
        numbers["floor"] = null_floor(result.rank_x, result.rank_y, result.n, measure)
        rows.append({**columns, "measure": name, "quantity": "distance", **numbers})
    return rows


def forced_correlations(ranks: int | np.ndarray, n: int) -> int | np.ndarray:
    """How many canonical correlations are exactly 1 because the sum of two layers' ranks exceeds n - 1."""
    return np.maximum(ranks - (n - 1), 0)


def _forced(ranks: int | np.ndarray, n: int, measure: Measure) -> object:
    """`forced_correlations` as a measure is concerned: none that it knows of if it does not use them all."""
    return forced_correlations(ranks, n) if measure.uses_all_correlations else pd.NA


def tidy(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table; columns that count or number things stay integers where some rows lack them."""
    table = pd.concat(tables, ignore_index=True)
    return table.astype({column: "Int64" for column in COUNTS if column in table})


def select(table: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows in which each of the columns named has the value given."""
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def by_network(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The values of tidy rows as a matrix: one row per network, one column per value of `column`, in order."""
    return rows.pivot_table(index="network", columns=column, values="value")


def distance_matrix(rows: pd.DataFrame) -> np.ndarray:
    """The (N, N) matrix of the rows of one layer, split and measure; D[i, j] is from i to j, the diagonal 0."""
    a, b = rows["network_a"].to_numpy(int), rows["network_b"].to_numpy(int)
    matrix = np.zeros((a.max() + 1, a.max() + 1))
    matrix[a, b] = rows["value"]
    return matrix


def caveats(table: pd.DataFrame) -> list[str]:
    """What a reader of a result must know: networks that are left out, and layers without variance or with too few
    data points, one note for each of these that occurs.
    """
    notes = []
    diverged = table[table["quantity"] == DIVERGED]
    for cohort, rows in diverged.groupby("cohort", sort=False) if len(diverged) else ():
        numbers = ", ".join(f"{number:.0f}" for number in rows["value"])
        notes.append(f"left out because diverged: network{'s' if len(rows) > 1 else ''} {numbers} of {cohort}")
    if "rank_a" in table:
        compared = table[table["rank_a"].notna()]
        dead = (compared[["rank_a", "rank_b"]] == 0).any(axis=1)
        if dead.any():
            notes.append(f"{dead.sum()} of {len(compared)} comparisons have a layer without variance (dead)")
        forced = compared["forced"].fillna(0)
        if forced.any():
            notes.append(
                f"in {(forced > 0).sum()} of {len(compared)} comparisons up to {forced.max()} correlations are exactly "
                "1 because the ranks exceed n - 1 (too few data points)"
            )
    return notes
