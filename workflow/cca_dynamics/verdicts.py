"""The end of a run: the table of verdicts on the terminal, and where the figures are."""

from __future__ import annotations

import sys
from math import isnan
from pathlib import Path

import pandas as pd

from cca_dynamics import claims
from cca_dynamics.files import DamagedFile

MARKS = {claims.REPRODUCED: ("✓", "green"), claims.NOT_REPRODUCED: ("✗", "red"), claims.INCONCLUSIVE: ("?", "yellow")}


def show(study: str, since: float | None = None) -> None:
    """Print a study's claims, one row each: figure, statement, value with interval, the paper's value, verdict.

    Args:
        study: a study's name, or the path of its claims.csv.
        since: if given, only claims made after this time (seconds since the epoch), of single results too; nothing
            if there are none.

    Raises:
        DamagedFile: there is no such table, or it cannot be read.
    """
    from rich.console import Console
    from rich.table import Table

    path = Path(study) if study.endswith(".csv") else Path("results") / study / "claims.csv"
    paths = [path] if since is None else _made_since(path, since)
    if not paths:
        return
    table = pd.concat([read(path) for path in paths], ignore_index=True)
    title = " ".join(map(str, paths))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False)
    shown = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column("Fig.", no_wrap=True)
    shown.add_column("Claim of the paper", ratio=1)
    shown.add_column("Value [interval]", no_wrap=True, justify="right")
    shown.add_column("p", no_wrap=True, justify="right")
    shown.add_column("Paper", no_wrap=True, justify="right")
    shown.add_column("Verdict", no_wrap=True)
    for row in table.itertuples():
        mark, colour = MARKS[row.verdict]
        shown.add_row(
            row.figure,
            row.statement,
            *in_words(row),
            f"[{colour}]{mark} {row.verdict}[/]",
        )
    console.print(shown)
    counts = table["verdict"].value_counts()
    console.print(", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in MARKS) + f" of {len(table)} claims")
    for result in dict.fromkeys(claim.partition(".")[0] for claim in table["claim"]):
        figure = Path("figures", path.parent.name, f"{result}.png")
        if figure.exists():
            console.print(f"  {figure}", soft_wrap=True)


def _made_since(path: Path, since: float) -> list[Path]:
    """The table of all claims if it is new, else those of single results that are."""
    for group in ([path], sorted(path.parent.glob("claims/*.csv"))):
        if new := [file for file in group if file.exists() and file.stat().st_mtime >= since]:
            return new
    return []


def in_words(row) -> tuple[str, str, str]:
    """Value with interval, p, and the paper's value of a row of claims; "" what it does not have."""
    bounds = "" if isnan(row.ci_low) else f" [{row.ci_low:.2f}, {row.ci_high:.2f}]"
    p = "" if isnan(row.p_value) else f"{row.p_value:.3f}" if row.p_value >= 0.001 else "<.001"
    return f"{row.value:.2f}{bounds}", p, "" if isnan(row.paper_value) else f"{row.paper_value:.2f}"


def read(path: Path) -> pd.DataFrame:
    """A table of claims.

    Raises:
        DamagedFile: it cannot be read.
    """
    try:
        return claims.read(path)
    except (OSError, ValueError) as problem:
        raise DamagedFile(path, problem) from None
