"""The end of a run: the table of verdicts on the terminal, and the paths of the figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from cca_dynamics.report.summary import MARKS, counted_verdicts, family_in_words, numbers_in_words, result_of
from cca_dynamics.results import claims
from cca_dynamics.results.claims import INCONCLUSIVE, NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, REVERSED

COLOURS = {
    REPRODUCED: "green",
    REVERSED: "red",
    NOT_REPRODUCED: "red",
    INCONCLUSIVE: "yellow",
    NOT_TESTABLE: "yellow",
}


def show(study: str, since: float | None = None) -> None:
    """Print a study's claims, one row per claim: figure, statement, value with interval, p, the paper's value, verdict.

    Args:
        study: a study's name, or the path of its claims.csv.
        since: if given, print only claims that were made after this time (in seconds since the epoch), be they of all
            results or of single ones, and nothing if there are none.

    Raises:
        DamagedFile: there is no such table, or it cannot be read.
    """
    from rich.console import Console
    from rich.table import Table

    path = Path(study) if study.endswith(".csv") else Path("results") / study / "claims.csv"
    paths = [path] if since is None else _made_since(path, since)
    if not paths:
        return
    rows = pd.concat([claims.read(path) for path in paths], ignore_index=True)
    title = " ".join(map(str, paths))
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Fig.", no_wrap=True)
    table.add_column("Claim of the paper", ratio=1)
    for heading in ("Value [interval]", "p", "Paper"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("Verdict", no_wrap=True)
    for row in rows.itertuples():
        verdict = f"[{COLOURS[row.verdict]}]{MARKS[row.verdict]} {row.verdict}[/]"
        table.add_row(row.figure, row.statement, *numbers_in_words(row), verdict)
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in counted_verdicts(rows).items())
    console.print(f"{counts} of {len(rows)} claims")
    console.print(family_in_words(rows))
    for result in dict.fromkeys(map(result_of, rows["claim"])):
        figure = Path("figures", path.parent.name, f"{result}.png")
        if figure.exists():
            console.print(f"  {figure}", soft_wrap=True)


def _made_since(path: Path, since: float) -> list[Path]:
    """The table of all claims if it is new, otherwise the tables of single results that are new."""
    for candidates in ([path], sorted(path.parent.glob("claims/*.csv"))):
        if new := [file for file in candidates if file.exists() and file.stat().st_mtime >= since]:
            return new
    return []
