"""The values that the paper prints or draws, with which ours are compared.

They stand in published.csv: the paper's figure, curve, x (see `quantity`), value, its error, and where it comes from.
Printed numbers have no error. A stage that names `published` runs again when that file changes (see
`runtime.fingerprints`).
"""

from __future__ import annotations

from functools import cache
from math import nan, sqrt
from pathlib import Path

import pandas as pd

FILE = "published.csv"


@cache
def _table() -> pd.DataFrame:
    return pd.read_csv(Path(__file__).with_name(FILE), dtype={"figure": str, "curve": str})


def published(figure: str, curve: str | None = None) -> pd.DataFrame:
    """The paper's values of one figure, or of one of its curves.

    Args:
        figure: of the paper, e.g. "6a".
        curve: e.g. "layer 1"; None: all curves of the figure.

    Returns:
        Rows of figure, curve, x (nan for single numbers), quantity (what value and x are), value, error (largest that
        is to be expected of a value read off an image; nan: printed), provenance; in the order of x.

    Raises:
        KeyError: the file has no such values.
    """
    table = _table()
    rows = table[table["figure"].eq(figure) & (table["curve"].eq(curve) if curve else True)]
    if rows.empty:
        raise KeyError(f"no published values of figure {figure}{f', {curve}' if curve else ''}")
    return rows.sort_values(["curve", "x"]).reset_index(drop=True)


def published_value(figure: str, curve: str, x: float | None = None) -> tuple[float, float]:
    """One value and its error; x may be left out where a curve has a single value.

    Raises:
        KeyError: the file has no such value, or several.
    """
    rows = published(figure, curve)
    rows = rows if x is None else rows[rows["x"] == x]
    if len(rows) != 1:
        raise KeyError(f"{len(rows)} published values of figure {figure}, {curve}, at {x}")
    return float(rows["value"].iloc[0]), float(rows["error"].iloc[0])


def combined(*terms: tuple[float, pd.DataFrame]) -> dict[str, float]:
    """A sum of means of published values, for example the difference between two curves.

    Args:
        terms: (coefficient, rows of `published`) whose mean is multiplied by it.

    Returns:
        The attributes paper_value and paper_error of a claim; values are taken to be read off with independent errors,
        and the error is nan if one of them has none.
    """
    value = sum(coefficient * rows["value"].mean() for coefficient, rows in terms)
    variance = sum(
        (coefficient / len(rows)) ** 2 * (rows["error"] ** 2).sum(skipna=False) for coefficient, rows in terms
    )
    return {"paper_value": float(value), "paper_error": sqrt(variance) if variance == variance else nan}
