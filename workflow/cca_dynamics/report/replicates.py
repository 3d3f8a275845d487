"""The study under fresh seeds: in how many of them each claim holds, and how far its value varies between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd

from cca_dynamics.report.summary import MARKS, read_table, result_of
from cca_dynamics.results import claims, figures
from cca_dynamics.results.claims import NOT_TESTABLE, REPRODUCED, VERDICTS
from cca_dynamics.results.statistics import Estimate
from cca_dynamics.runtime.storage import replacing

COLUMNS = ["claim", "seed", "value", "ci_low", "ci_high", "p_value", "verdict"]
"""Columns of results/<study>/replicates.csv; all but the seed as in a table of claims."""
COLOURS = {
    "reproduced": "#66C2A5",
    "reversed": "#D55E00",
    "not reproduced": "#E8A33D",
    "inconclusive": "#BDD7EE",
    "not testable": "#EEEEEE",
}
"""Verdict → colour of its cell; the mark in the cell says the same without colour (after Okabe & Ito 2008)."""
ROW, NAMES, RATIO, TOP, BOTTOM = 0.145, 2.1, 1.15, 0.5, 0.5
"""Inches of the figure: height of a claim, widths of its name and of the panel of ratios, space above and below."""
LONGEST_NAME = 38
"""Letters of a claim's name that fit."""
LARGEST_RATIO = 20
"""Ratios beyond it are drawn at the edge of their panel."""
FONT = "DejaVu Sans"
"""Comes with Matplotlib, and has the marks of the verdicts."""


def write(tables: Sequence[Path], seeds: Sequence[int], table: Path, out: Sequence[Path]) -> None:
    """Put the verdicts of all replicates into one table, and draw them.

    Args:
        tables: claims of each replicate, as `results.claims.merge` writes them.
        seeds: of the replicates, in the same order.
        table: output, CSV with the columns `COLUMNS`, a row per claim and seed.
        out: the figure's files, .png, .pdf and .svg.

    Raises:
        DamagedFile: a table of claims cannot be read.
    """
    rows = [claims.read(path).assign(seed=seed) for path, seed in zip(tables, seeds, strict=True)]
    collected = pd.concat(rows, ignore_index=True)[COLUMNS]
    with replacing(table) as temporary:
        collected.to_csv(temporary, index=False, float_format="%.6g")
    figures.save(draw(collected), out)


def read(path: Path) -> pd.DataFrame:
    """Read a table that `write` wrote.

    Raises:
        DamagedFile: it cannot be read, or is no such table.
    """
    return read_table(path, COLUMNS, "replicates")


def read_if_made(study: str, root: Path = Path()) -> pd.DataFrame | None:
    """The table of the replicates of a study; None if none were run.

    Raises:
        DamagedFile: it cannot be read.
    """
    path = root / "results" / study / "replicates.csv"
    return read(path) if path.exists() else None


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """How each claim fares over the seeds.

    Args:
        table: as `read` returns it.

    Returns:
        One row per claim, in the table's order: claim, holds (seeds in which it is reproduced), seeds (in which it
        could be tested; all numbers are of these), mean (of its value over seeds), low and high (Student's 95 %
        interval of that mean, nan with fewer than `statistics.FEWEST` values), between (standard deviation of its value
        over seeds, nan with fewer than two), within (mean half-width of its interval over seeds, nan where there is
        none), and verdicts (of each seed, in the order of the seeds; "" where a seed has no such claim).
    """
    seeds = sorted(table["seed"].unique())
    rows = []
    for claim, of_claim in table.groupby("claim", sort=False):
        verdict = of_claim.set_index("seed")["verdict"].reindex(seeds).fillna("")
        tested = of_claim[of_claim["verdict"] != NOT_TESTABLE]
        half_widths = (tested["ci_high"] - tested["ci_low"]) / 2
        values = tested["value"].dropna()
        low, high = Estimate.of_mean(values).interval() if len(values) else (nan, nan)
        rows.append(
            {
                "claim": claim,
                "holds": int((of_claim["verdict"] == REPRODUCED).sum()),
                "seeds": len(tested),
                "mean": values.mean(),
                "low": low,
                "high": high,
                "between": values.std(ddof=1),
                "within": half_widths.mean(),
                "verdicts": tuple(verdict),
            }
        )
    return pd.DataFrame(rows)


def share_in_words(row) -> str:
    """In how many seeds the claim of one row of a summary holds, e.g. "4 of 5"; "–" if no seed could test it."""
    return f"{row.holds} of {row.seeds}" if row.seeds else "–"


def holds_in_words(row) -> str:
    """The same as part of a sentence, e.g. "holds in 4 of 5"; "not testable" if no seed could test the claim."""
    return f"holds in {share_in_words(row)}" if row.seeds else NOT_TESTABLE


def counts_in_words(table: pd.DataFrame) -> str:
    """How many claims hold in how many seeds, most first, e.g. "6 claims hold in 5 of 5, 1 claim holds in 3 of 5"."""
    rows = summary(table).sort_values(["holds", "seeds"], ascending=False, kind="stable")
    counts = Counter(map(holds_in_words, rows.itertuples()))
    return ", ".join(
        f"1 claim {words}" if count == 1 else f"{count} claims {words.replace('holds', 'hold')}"
        for words, count in counts.items()
    )


def mean_in_words(row) -> str:
    """The mean over seeds of the value of one row of a summary, with its interval, e.g. "0.14 [0.12, 0.16]"."""
    mean, low, high = map(number_in_words, (row.mean, row.low, row.high))
    return mean if low == "–" else f"{mean} [{low}, {high}]"


def number_in_words(value: float, digits: str = ".2g") -> str:
    """A number of a summary in a format such as ".2g"; "–" if there is none."""
    return "–" if np.isnan(value) else f"{value:{digits}}"


ABBREVIATIONS = {word.lower(): word for word in ("CCA", "PWCCA", "SVCCA", "CKA", "ReLU")}
"""Words of claims' names that a reader knows in capitals."""


def name_of(claim: str) -> str:
    """A claim's name within its result for a reader: "late layers" of "generalization.late_layers"."""
    words = claim.partition(".")[2].replace("_", " ").replace(".", ", ").split(" ")
    name = " ".join(ABBREVIATIONS.get(word.strip(","), word.strip(",")) + "," * word.endswith(",") for word in words)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def draw(table: pd.DataFrame):
    """The figure of the replicates: claims down, seeds across, a cell's colour and mark its verdict.

    Right of the cells stand how often a claim holds, the mean of its value, the standard deviation of the value between
    seeds, and the mean half-width of its interval within a seed; the points are the ratio of the last two.

    Args:
        table: as `read` returns it.

    Returns:
        The figure.
    """
    from matplotlib.transforms import blended_transform_factory

    rows, seeds = summary(table), sorted(table["seed"].unique())
    results = rows["claim"].map(result_of)
    headings = results != results.shift()
    position = (
        np.arange(len(rows)) + headings.cumsum().to_numpy()
    )  # a line for the name of each result, above its claims
    lines = int(position.max()) + 1
    # All positions are in inches from the upper left, so that letters and cells fit, however many claims and seeds.
    cell = 0.2 if len(seeds) > 6 else 0.28
    end_of_cells = NAMES + cell * len(seeds)
    columns = end_of_cells + np.array([0.42, 0.92, 1.42, 1.98])  # right edges of the numbers
    start, width = columns[-1] + 0.2, columns[-1] + 0.2 + RATIO + 0.1
    height = TOP + ROW * lines + BOTTOM
    figure, (page,) = figures.panels(1, 1, height)
    figure.set_layout_engine("none")
    figure.set_size_inches(width, height)
    page.set_position((0, 0, 1, 1))
    page.set_axis_off()
    page.set(xlim=(0, width), ylim=(height, 0))
    y = TOP + ROW * (position + 0.5)
    text = {"fontsize": 6.5, "va": "center", "family": FONT}

    for row, at, heading in zip(rows.itertuples(), y, headings, strict=True):
        if heading:
            page.text(0.08, at - ROW, result_of(row.claim).replace("_", " "), fontweight="bold", **text)
        page.text(0.16, at, name_of(row.claim), **text)
        for number, verdict in enumerate(row.verdicts):
            if verdict:
                _cell(page, NAMES + cell * number, at, cell, verdict, text)
        numbers = (share_in_words(row), row.mean, row.between, row.within)
        for column, number in zip(columns, numbers, strict=True):
            words = number if isinstance(number, str) else number_in_words(number)
            page.text(column, at, words, ha="right", **text)

    for number, seed in enumerate(seeds):
        page.text(
            NAMES + cell * (number + 0.5), TOP - 0.06, f"{seed}", rotation=90, ha="center", **text | {"va": "bottom"}
        )
    for column, heading in zip(columns, ("holds in", "mean", "SD\nbetween", "half-width\nwithin"), strict=True):
        page.text(column, TOP - 0.06, heading, ha="right", **text | {"va": "bottom"})
    page.text(NAMES - 0.06, TOP - 0.06, "seed", ha="right", **text | {"va": "bottom"})

    shown = [verdict for verdict in VERDICTS if verdict in set(table["verdict"])]
    x = 0.16
    for verdict in shown:
        _cell(page, x, height - 0.15, 0.2, verdict, text)
        page.text(x + 0.26, height - 0.15, verdict, **text)
        x += 0.5 + 0.055 * len(verdict)

    ratio = figure.add_axes((start / width, (BOTTOM - 0.02) / height, RATIO / width, ROW * lines / height))
    _ratios(ratio, y, rows, (TOP + ROW * lines + 0.02, TOP + 0.02))
    ratio.text(
        0.5,
        TOP - 0.06,
        "SD between seeds ÷\nhalf-width within",
        transform=blended_transform_factory(ratio.transAxes, page.transData),
        ha="center",
        **text | {"va": "bottom"},
    )
    return figure


def _cell(page, left: float, middle: float, width: float, verdict: str, text: dict) -> None:
    """A square in the colour of a verdict, with its mark."""
    from matplotlib.patches import Rectangle

    corner = (left + 0.01, middle - ROW / 2 + 0.008)
    page.add_patch(Rectangle(corner, width - 0.02, ROW - 0.016, facecolor=COLOURS[verdict], edgecolor="none"))
    page.text(left + width / 2, middle, MARKS[verdict], ha="center", **text)


def _ratios(axis, y: np.ndarray, rows: pd.DataFrame, limits: tuple[float, float]) -> None:
    """Points at the ratio of the spread between seeds to the half-width within, on a logarithmic axis; 1 is a line."""
    spread = rows["between"] / rows["within"].where(rows["within"] > 0)
    known = spread.notna() & (spread > 0)
    axis.set_xscale("log")
    axis.set_xlim(1 / LARGEST_RATIO, LARGEST_RATIO)
    axis.set_ylim(*limits)
    clipped = spread[known].clip(1 / LARGEST_RATIO, LARGEST_RATIO)
    axis.hlines(y[known], 1, clipped, color=figures.GREY, linewidth=0.6)
    axis.plot(clipped, y[known], "o", color=figures.BLUE, markersize=2.8, clip_on=False)
    axis.axvline(1, **figures.THRESHOLD)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_xticks([0.1, 1, 10], ["0.1", "1", "10"], fontsize=6.5)
    axis.minorticks_off()
