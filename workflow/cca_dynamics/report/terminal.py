"""The end of a run: the table of verdicts on the terminal, and the paths of the figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pandas as pd

from cca_dynamics.errors import named_by_the_user
from cca_dynamics.report import multiverse, replicates
from cca_dynamics.report.summary import (
    MARKS,
    counted_verdicts,
    family_in_words,
    figures_in_words,
    numbers_in_words,
    result_of,
)
from cca_dynamics.results import claims
from cca_dynamics.results.claims import INCONCLUSIVE, NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, REVERSED

COLOURS = {
    REPRODUCED: "green",
    REVERSED: "red",
    NOT_REPRODUCED: "red",
    INCONCLUSIVE: "yellow",
    NOT_TESTABLE: "yellow",
}
STYLE = {"title_justify": "left", "title_style": "bold", "box": None, "pad_edge": False, "padding": (0, 2, 0, 0)}
"""How the tables look."""


def show(
    study: str, since: float | None = None, notes: Sequence[str] = (), notes_of_replicates: Sequence[str] = ()
) -> None:
    """Print a study's claims, one row per claim: figure, statement, value with interval, p, the paper's value, verdict.

    Args:
        study: a study's name, or the path of its claims.csv.
        since: if given, print only claims that were made after this time (in seconds since the epoch), be they of all
            results, of single ones, of replicates or of readings, and nothing if there are none.
        notes: lines to print below the claims, about the protocol.
        notes_of_replicates: lines to print below the claims under fresh seeds.

    Raises:
        DamagedFile: there is no such table, or it cannot be read.
    """
    path = Path(study) if study.endswith(".csv") else Path("results") / study / "claims.csv"
    paths = [path] if since is None else _made_since(path, since)
    if paths:
        with named_by_the_user() if study.endswith(".csv") else nullcontext():
            _show_claims(path.parent.name, paths, notes)
    of_replicates = path.with_name("replicates.csv")
    if since is not None and _is_new(of_replicates, since):
        _show_replicates(path.parent.name, of_replicates, notes_of_replicates)
    of_readings = path.with_name("multiverse.csv")
    if since is not None and _is_new(of_readings, since):
        _show_readings(path.parent.name, of_readings)


def _show_claims(study: str, paths: Sequence[Path], notes: Sequence[str]) -> None:
    """Print tables of claims, how many have which verdict, and where their figures are."""
    from rich.table import Table

    rows = pd.concat([claims.read(path) for path in paths], ignore_index=True)
    title = " ".join(map(str, paths))
    table = Table(title=title, **STYLE)
    table.add_column("Fig.", no_wrap=True)
    table.add_column("Claim of the paper", ratio=1)
    for heading in ("Value [interval]", "p", "Paper"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("Verdict", no_wrap=True)
    for row in rows.itertuples():
        verdict = f"[{COLOURS[row.verdict]}]{MARKS[row.verdict]} {row.verdict}[/]"
        table.add_row(figures_in_words([row.figure]), row.statement, *numbers_in_words(row), verdict)
    console = _console()
    console.print(table)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in counted_verdicts(rows).items())
    console.print(f"{counts} of {len(rows)} claims")
    console.print(family_in_words(rows))
    for result in dict.fromkeys(map(result_of, rows["claim"])):
        figure = Path("figures", study, f"{result}.png")
        if figure.exists():
            console.print(f"  {figure}", soft_wrap=True)
    for note in notes:
        console.print(note, soft_wrap=True, markup=False)


def _show_replicates(study: str, path: Path, notes: Sequence[str]) -> None:
    """Print in how many replicates each claim holds, and where the figure is."""
    from rich.table import Table

    rows = replicates.read(path)
    table = Table(title=str(path), **STYLE)
    table.add_column("Claim", ratio=1, overflow="fold")
    table.add_column("Verdicts", no_wrap=True)
    for heading in ("Holds in", "Mean over seeds [95 %]", "SD between", "Half-width within"):
        table.add_column(heading, no_wrap=True, justify="right")
    for row in replicates.summary(rows).itertuples():
        marks = " ".join(f"[{COLOURS[verdict]}]{MARKS[verdict]}[/]" if verdict else " " for verdict in row.verdicts)
        numbers = map(replicates.number_in_words, (row.between, row.within))
        table.add_row(row.claim, marks, replicates.share_in_words(row), replicates.mean_in_words(row), *numbers)
    console = _console()
    console.print(table)
    console.print(f"fresh seeds, in the order of the verdicts: {', '.join(map(str, sorted(rows['seed'].unique())))}")
    console.print(f"  {Path('figures', study, 'replicates.png')}", soft_wrap=True)
    for note in notes:
        console.print(note, soft_wrap=True, markup=False)


def _show_readings(study: str, path: Path) -> None:
    """Print in how many readings each claim is reproduced, and where the figures are."""
    from rich.table import Table

    table = Table(title=str(path), **STYLE)
    table.add_column("Claim", ratio=1)
    for heading in ("Reproduced in", "This study", "Lowest", "Highest"):
        table.add_column(heading, no_wrap=True, justify="right")
    rows = multiverse.summary(multiverse.read(path))
    for row in rows.to_dict("records"):
        numbers = (multiverse.number_in_words(row[column]) for column in ("own", "lowest", "highest"))
        table.add_row(row["claim"], multiverse.share_in_words(row), *numbers)
    console = _console()
    console.print(table)
    console.print(multiverse.tally_in_words(rows))
    folder = Path("figures", study, "multiverse")
    for figure in (folder.with_suffix(".png"), *sorted(folder.glob("*.png"))):
        console.print(f"  {figure}", soft_wrap=True)


def _console():
    """A console as wide as the terminal, or 120 letters where there is none."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False)


def _is_new(file: Path, since: float) -> bool:
    """Whether a file was made after a time."""
    return file.exists() and file.stat().st_mtime >= since


def _made_since(path: Path, since: float) -> list[Path]:
    """The table of all claims if it is new, otherwise the tables of single results that are new."""
    for candidates in ([path], sorted(path.parent.glob("claims/*.csv"))):
        if new := [file for file in candidates if _is_new(file, since)]:
            return new
    return []
