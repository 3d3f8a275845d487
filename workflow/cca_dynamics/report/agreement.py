"""Whether two runs of a study say the same: the same bytes, or numbers that differ less than their intervals are wide.

Runs of the same code on the same kind of processor give the same bytes. Another kind rounds differently, and training
amplifies that, as another seed would.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path

import numpy as np
import pandas as pd

from cca_dynamics.errors import named_by_the_user
from cca_dynamics.results import claims

EQUAL, WITHIN, BEYOND, TURNED = "equal", "within", "beyond", "turned"
TOLERANCE = 0.05
"""What the value of a claim without an interval may differ by: the margin within which distances count as alike."""
ROUNDING = 1e-9
"""A difference that rounding explains: some claims are about errors of this size, and their intervals are as narrow."""
MOST_DIFFERING = 0.1
"""The share of claims that may be beyond or turned on another kind of processor; between two seeds it is larger."""


def compare(here: Path, published: Path) -> pd.DataFrame:
    """Compare two files of claims.

    Args:
        here, published: claims.csv of two runs.

    Returns:
        One row per claim of either: claim, value, published_value, difference, verdict, published_verdict, and
        agreement: "equal", if all that a run writes of it is; "within", if the verdict is the same and the
        value lies in the published 95 % interval (or differs by at most `TOLERANCE`, where there is none) or
        differs by at most `ROUNDING`; "beyond", if the verdict alone is the same; "turned", if the verdict
        differs, or one of the two runs has no such claim.

    Raises:
        DamagedFile: one of them cannot be read.
    """
    with named_by_the_user():
        tables = [claims.read(path).set_index("claim") for path in (here, published)]
    rows = []
    for claim in dict.fromkeys([*tables[1].index, *tables[0].index]):
        mine, theirs = (table.loc[claim] if claim in table.index else None for table in tables)
        row = {"claim": claim}
        for prefix, side in (("", mine), ("published_", theirs)):
            row[f"{prefix}value"] = np.nan if side is None else side["value"]
            row[f"{prefix}verdict"] = "" if side is None else side["verdict"]
        row["difference"] = row["value"] - row["published_value"]
        row["agreement"] = TURNED if mine is None or theirs is None else _agreement(mine, theirs)
        rows.append(row)
    columns = ["claim", "value", "published_value", "difference", "verdict", "published_verdict", "agreement"]
    return pd.DataFrame(rows, columns=columns)


def _agreement(mine: pd.Series, theirs: pd.Series) -> str:
    if mine.equals(theirs):
        return EQUAL
    if mine["verdict"] != theirs["verdict"]:
        return TURNED
    value, low, high = mine["value"], theirs["ci_low"], theirs["ci_high"]
    if isnan(value) or isnan(theirs["value"]):
        return WITHIN if isnan(value) and isnan(theirs["value"]) else BEYOND
    margin = TOLERANCE if isnan(low) or isnan(high) else ROUNDING
    within = low <= value <= high or abs(value - theirs["value"]) <= margin
    return WITHIN if within else BEYOND


def agrees_as_a_whole(table: pd.DataFrame) -> bool:
    """Whether two runs differ by what another kind of processor changes: at most `MOST_DIFFERING` of the claims.

    Args:
        table: as `compare` returns it.
    """
    return bool(table["agreement"].isin([BEYOND, TURNED]).mean() <= MOST_DIFFERING)


def side_by_side(runs: Sequence[Path], published: Path) -> pd.DataFrame:
    """The values and verdicts of several runs beside the published ones.

    Args:
        runs: claims.csv of each, in files of different names, which name the columns.
        published: claims.csv that they are compared with.

    Returns:
        One row per claim of any: claim, published_value, published_verdict, of each run NAME_value and NAME_verdict,
        and largest_difference, that of a run from the published value.

    Raises:
        DamagedFile: one of the files cannot be read.
    """
    columns, differences = [], []
    for run in runs:
        table = compare(run, published).set_index("claim")
        differences.append(table["difference"].abs())
        names = {"published_value": "published_value", "published_verdict": "published_verdict"}
        names |= {"value": f"{run.stem}_value", "verdict": f"{run.stem}_verdict"}
        columns.append(table[list(names)].rename(columns=names))
    merged = pd.concat(columns, axis=1)
    merged = merged.loc[:, ~merged.columns.duplicated()]
    return merged.assign(largest_difference=pd.concat(differences, axis=1).max(axis=1)).reset_index()


def in_words(table: pd.DataFrame) -> list[str]:
    """What `compare` found, in lines: how many claims agree, and each of those that do not.

    Args:
        table: as `compare` returns it.
    """
    counts = table["agreement"].value_counts()
    sentences = {
        EQUAL: "equal to the last digit",
        WITHIN: "with the same verdict and a value in the published interval",
        BEYOND: "with the same verdict and a value outside the published interval",
        TURNED: "with another verdict",
    }
    lines = [f"of {len(table)} claims:"]
    lines += [f"  {counts[kind]} {words}" for kind, words in sentences.items() if kind in counts]
    differing = table[table["agreement"] != EQUAL]
    if len(differing) and differing["difference"].notna().any():
        largest = differing.loc[differing["difference"].abs().idxmax()]
        lines.append(f"largest difference of a value: {largest['difference']:+.3g} ({largest['claim']})")
    for row in table[table["agreement"].isin([BEYOND, TURNED])].itertuples():
        verdicts = [verdict or "no such claim" for verdict in (row.published_verdict, row.verdict)]
        change = verdicts[0] if verdicts[0] == verdicts[1] else " → ".join(verdicts)
        lines.append(f"  {row.claim}: {row.published_value:.3g} → {row.value:.3g}, {change}")
    return lines
