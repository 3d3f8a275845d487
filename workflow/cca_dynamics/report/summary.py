"""What page, terminal and published tables all say of a finished study: verdicts, values, time and memory."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from math import isnan
from pathlib import Path

import pandas as pd

from cca_dynamics.errors import DamagedFile
from cca_dynamics.results.claims import (
    ALPHA,
    INCONCLUSIVE,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    REVERSED,
    VERDICTS,
    checked_cells,
)
from cca_dynamics.results.registry import RESULTS
from cca_dynamics.results.statistics import holm

MARKS = {REPRODUCED: "✓", REVERSED: "⇄", NOT_REPRODUCED: "✗", INCONCLUSIVE: "?", NOT_TESTABLE: "–"}
"""The mark beside each verdict."""
WHOLE_RUN = "the whole run"
"""Name of the last row of `runtime_rows`."""


def title_of(result: str) -> str:
    """What a result is about, from the first line of its module: the part after "Figure 5: "."""
    return inspect.getdoc(RESULTS[result]).splitlines()[0].partition(": ")[2].rstrip(".")


def result_of(claim: str) -> str:
    """The result that a claim belongs to: "width" of "width.trend"."""
    return claim.partition(".")[0]


def claims_of(result: str, claims: pd.DataFrame) -> pd.DataFrame:
    """The claims of one result among those of a study, as `results.claims.read` returns them."""
    return claims[claims["claim"].map(result_of) == result]


def figures_in_words(figures: Iterable[str]) -> str:
    """The figures of the paper that claims name, each once: "3, A5"; "–" for claims beyond the paper."""
    return ", ".join(figure for figure in dict.fromkeys(figures) if figure != "none") or "–"


def verdicts_in_words(claims: pd.DataFrame) -> str:
    """How many claims have which verdict, e.g. "7 reproduced, 1 inconclusive"."""
    counts = claims["verdict"].value_counts()
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts)


def counted_verdicts(claims: pd.DataFrame) -> dict[str, int]:
    """Verdict → how many claims have it; *reversed* and *not testable* only where there are such claims."""
    counts = claims["verdict"].value_counts()
    shown = [verdict for verdict in VERDICTS if verdict not in (REVERSED, NOT_TESTABLE) or verdict in counts]
    return {verdict: int(counts.get(verdict, 0)) for verdict in shown}


def family_in_words(claims: pd.DataFrame) -> str:
    """What the p values of a study's claims say together: how many hold when all of them are counted as one family."""
    p_values = claims[claims["verdict"] != NOT_TESTABLE]["p_value"].dropna().to_numpy()
    if not len(p_values):
        return "No claim that could be tested has a p value."
    small, together = int((p_values < ALPHA).sum()), int((holm(p_values) < ALPHA).sum())
    return (
        f"{len(p_values)} of {len(claims)} claims could be tested and have a p value; {small} are below {ALPHA:g}, "
        f"where {ALPHA * len(p_values):.1f} at most would be expected if no claim were true, and {together} remain "
        "below it when all of them are tested as one family (Holm)."
    )


def value_in_words(claim, digits: str = ".2f") -> str:
    """The value of one row of claims with its interval, each in a format such as ".2f"; "–" if it has no value."""
    interval = "" if isnan(claim.ci_low) else f" [{claim.ci_low:{digits}}, {claim.ci_high:{digits}}]"
    return "–" if isnan(claim.value) else f"{claim.value:{digits}}{interval}"


def numbers_in_words(claim) -> tuple[str, str, str]:
    """The value with its interval, p and the paper's value of one row of claims; the last two are "" if absent."""
    p = "" if isnan(claim.p_value) else f"{claim.p_value:.3f}" if claim.p_value >= 0.001 else "<.001"
    return value_in_words(claim), p, "" if isnan(claim.paper_value) else f"{claim.paper_value:.2f}"


def difference_in_words(claim) -> str:
    """Our value minus the paper's, with the interval in which it lies; "" where the two cannot be compared.

    Args:
        claim: a row of claims. The interval is that of our value, widened on both sides by the error of the paper's,
            which is 0 where the paper prints it.
    """
    if isnan(claim.value - claim.paper_value) or isnan(claim.ci_low):
        return ""
    error = 0.0 if isnan(claim.paper_error) else claim.paper_error
    low, high = claim.ci_low - claim.paper_value - error, claim.ci_high - claim.paper_value + error
    return f"{claim.value - claim.paper_value:+.2f} [{low:+.2f}, {high:+.2f}]"


def paper_in_words(claim) -> str:
    """The paper's value of one row of claims, with its error where it is read off an image; "" if absent."""
    if isnan(claim.paper_value):
        return ""
    return f"{claim.paper_value:.3g}" + ("" if isnan(claim.paper_error) else f" ± {claim.paper_error:.2g}")


def read_table(path: Path, columns: list[str], of: str) -> pd.DataFrame:
    """Read a table of the verdicts of many studies.

    Args:
        path: a CSV file.
        columns: those that it has; "seed" holds integers, claims, verdicts and readings are text, all others numbers.
        of: what it is a table of, for the message.

    Raises:
        DamagedFile: it cannot be read, or is no such table.
    """
    types = {"claim": str, "seed": int, "variant": str, "reading": str, "verdict": str}
    try:
        table = pd.read_csv(path, dtype={column: types[column] for column in columns if column in types})
        if list(table.columns) != columns or table.empty:
            raise ValueError(f"it is not a table of {of}")
        return checked_cells(table, by=[column for column in ("seed", "variant") if column in columns])
    except (OSError, ValueError) as problem:
        raise DamagedFile(path, problem) from None


def runtime_rows(study: str, root: Path = Path()) -> list[list]:
    """What each rule took, from the `benchmark:` files, and the whole run.

    Args:
        study: name of a finished study.
        root: the folder that holds results/.

    Returns:
        Rows of rule, number of jobs, time and peak memory of a job, in the order in which the rules started; the last
        row is `WHOLE_RUN`.

    Raises:
        DamagedFile: there are no measurements.
    """
    folder = root / "results" / study / "benchmarks"
    jobs = []
    for file in sorted(folder.glob("*.tsv")):
        measured = pd.read_csv(file, sep="\t", na_values="-").iloc[-1]
        end = file.stat().st_mtime
        jobs.append((file.stem.partition("-")[0], measured["s"], measured["max_rss"], end - measured["s"], end))
    if not jobs:
        raise DamagedFile(folder, "it holds no measurements", "copy it from where the study was run")
    table = pd.DataFrame(jobs, columns=["rule", "seconds", "megabytes", "start", "end"]).sort_values("start")
    rows = []
    for rule, of_rule in table.groupby("rule", sort=False):
        rows.append([rule, len(of_rule), *_in_words(of_rule["seconds"].sum(), of_rule["megabytes"].max())])
    # The time in which at least one job ran, so that a pause between an interrupted run and the next does not count.
    wall_clock, latest_end = 0.0, -math.inf
    for start, end in table[["start", "end"]].itertuples(index=False):
        wall_clock += max(0.0, end - max(start, latest_end))
        latest_end = max(latest_end, end)
    return [*rows, [WHOLE_RUN, len(table), *_in_words(wall_clock, table["megabytes"].max())]]


def _in_words(seconds: float, megabytes: float) -> list[str]:
    """Time and memory for a reader; "" for memory that was not measured."""
    time = f"{seconds:.0f} s" if seconds < 90 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return [time, "" if isnan(megabytes) else f"{megabytes:,.0f} MB"]
