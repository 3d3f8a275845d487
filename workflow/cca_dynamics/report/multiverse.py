"""The claims of a study under every reading of what the paper leaves open: one table, and specification curves.

A reading is a variant of the study (see `cca_dynamics.readings`). The last words of a claim's name, after its second
dot, are a reading, too: "toy_noise.svcca_over_pwcca.variance" is "toy_noise.svcca_over_pwcca" under one of two readings
of the noise.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cca_dynamics.errors import DamagedFile
from cca_dynamics.readings import Reading, readings
from cca_dynamics.report.replicates import name_of
from cca_dynamics.report.summary import read_table, result_of
from cca_dynamics.results import claims, figures
from cca_dynamics.results.claims import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    REVERSED,
    VERDICTS,
)
from cca_dynamics.runtime.storage import replacing
from cca_dynamics.study import Study

COLUMNS = ["claim", "variant", "reading", "value", "ci_low", "ci_high", "p_value", "verdict"]
"""Columns of results/<study>/multiverse.csv: variant is the folder of the reading below the study's, "" for the study's
own; reading is JSON, key → value in words; the others are as in a table of claims."""
WITHIN = "claim"
"""The choice that the last words of a claim's name make."""
FEWEST = 3
"""Readings from which a claim has a specification curve."""
STYLES = {
    REPRODUCED: (figures.GREEN, "o"),
    REVERSED: (figures.ORANGE, "v"),
    NOT_REPRODUCED: (figures.AMBER, "s"),
    INCONCLUSIVE: (figures.SKY, "D"),
    NOT_TESTABLE: ("#a6a6a6", "X"),
}
"""Colour and marker of a verdict (after Okabe & Ito 2008)."""
SHADE = {"color": "#eeeeee", "linewidth": 0, "zorder": 0}
"""What lies behind the study's own reading."""
SMALL = 6.5
"""Points of the letters."""
LONGEST_LABEL = 26
"""Letters of a value that fit beside its row, and of a line of a claim's name above its curve."""
ALIKE = ["value", "ci_low", "ci_high", "p_value", "verdict"]
"""What readings have in common that are one for a claim."""
ROUNDING = 1e-9
"""Values whose spread is below this are one value."""

# Inches of a page of curves.
TICKS, CURVE, MATRIX_ROW, HEADING, LINE, GAP, LEGEND, LETTER = 0.36, 1.05, 0.115, 0.4, 0.11, 0.12, 0.32, 0.047
CELLS_PER_ROW = 3


def write(config: dict, tables: Sequence[Path], table: Path, out: Sequence[Path], folder: Path) -> None:
    """Put the claims under all readings into one table, and draw them.

    Args:
        config: the study's config as JSON.
        tables: claims of one result under each reading, in the order of `readings.readings`.
        table: output, CSV with the columns `COLUMNS`.
        out: the overview's files, .png, .pdf and .svg.
        folder: output, whole or not at all: <result>.{png,pdf,svg}, the curves of each result that has any.

    Raises:
        ConfigError: a reading cannot be tried.
        DamagedFile: a table of claims cannot be read.
    """
    listed = [reading for of_result in readings(Study(config)).values() for reading in of_result]
    collected = collect(listed, tables)
    with replacing(table) as temporary:
        collected.to_csv(temporary, index=False, float_format="%.6g")
    figures.save(draw_overview(collected), out)
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        for result, rows in collected.groupby(collected["claim"].map(result_of), sort=False):
            if (curves := draw_curves(rows)) is not None:
                figures.save(curves, [temporary / f"{result}{path.suffix}" for path in out])


def collect(listed: Sequence[Reading], tables: Sequence[Path]) -> pd.DataFrame:
    """The claims of each reading in one table, with the columns `COLUMNS`.

    A reading whose table of claims is that of an earlier one changes nothing in this study, and is left out.

    Raises:
        DamagedFile: a table of claims cannot be read.
    """
    rows, seen = [], set()
    for reading, path in zip(listed, tables, strict=True):
        if path in seen:
            continue
        seen.add(path)
        text = json.dumps(reading.choices, ensure_ascii=False)
        rows.append(claims.read(path).assign(variant=reading.name, reading=text))
    return pd.concat(rows, ignore_index=True)[COLUMNS]


def read(path: Path) -> pd.DataFrame:
    """Read a table that `write` wrote.

    Raises:
        DamagedFile: it cannot be read, or is no such table.
    """
    table = read_table(path, COLUMNS, "readings").fillna({"variant": ""})
    try:
        objects = [isinstance(json.loads(text), dict) for text in table["reading"].fillna("")]
    except ValueError as problem:
        raise DamagedFile(path, problem) from None
    if not all(objects):
        raise DamagedFile(path, f"line {objects.index(False) + 2}, column reading: it is no JSON object")
    return table


def read_if_made(study: str, root: Path = Path()) -> pd.DataFrame | None:
    """The table of the readings of a study; None if the target was not made.

    Raises:
        DamagedFile: it cannot be read.
    """
    path = root / "results" / study / "multiverse.csv"
    return read(path) if path.exists() else None


def by_claim(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each claim, under the name that it has without readings, with their choices spelled out.

    A claim about a recurrent network does not depend on how the convolutional one is read. Readings that give a claim
    the same numbers are therefore one row, so that nothing is counted as support that could not have spoken against it.

    Args:
        table: as `read` returns it.

    Returns:
        Claim → its rows, which have a column `choices`, key → the values in words that give these numbers; names that
        end with a reading have it under the key `WITHIN`.
    """
    names, choices = [], []
    for claim, reading in zip(table["claim"], table["reading"], strict=True):
        result, name, within = f"{claim}..".split(".", 2)
        names.append(f"{result}.{name}")
        words = within.rstrip(".").replace("_", " ")
        choices.append(json.loads(reading) | ({WITHIN: words} if words else {}))
    spelled_out = table.assign(choices=choices).groupby(np.array(names), sort=False)
    return {claim: _merged(rows) for claim, rows in spelled_out}


def _merged(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for all readings of a claim with the same numbers: the first, with the choices of all of them."""
    alike = rows.groupby(["claim", *ALIKE], dropna=False, sort=False)
    merged = rows.drop_duplicates(["claim", *ALIKE])
    return merged.assign(choices=[_united(of_numbers["choices"]) for _, of_numbers in alike])


def _united(choices: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """Key → the values of several choices, each once, in their order."""
    united: dict[str, list[str]] = {}
    for of_reading in choices:
        for key, value in of_reading.items():
            if value not in (values := united.setdefault(key, [])):
                values.append(value)
    return united


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """How each claim fares over the readings.

    Args:
        table: as `read` returns it.

    Returns:
        One row per claim, in the table's order: claim, holds (readings in which it is reproduced), readings (in which
        it could be tested; those with the same numbers count once, see `by_claim`), own (value under the study's own
        reading, the mean of several), lowest and highest (value over all readings; nan if there is none), and one
        column for each of `VERDICTS`, how many readings have it.
    """
    rows = []
    for claim, of_claim in by_claim(table).items():
        counts = of_claim["verdict"].value_counts()
        rows.append(
            {
                "claim": claim,
                "holds": int(counts.get(REPRODUCED, 0)),
                "readings": int(len(of_claim) - counts.get(NOT_TESTABLE, 0)),
                "own": of_claim.loc[of_claim["variant"] == "", "value"].mean(),
                "lowest": of_claim["value"].min(),
                "highest": of_claim["value"].max(),
                **{verdict: int(counts.get(verdict, 0)) for verdict in VERDICTS},
            }
        )
    return pd.DataFrame(rows)


def share_in_words(row: Mapping[str, object]) -> str:
    """One row of a summary, e.g. "4 of 5"; "–" if no reading could test the claim."""
    return f"{row['holds']} of {row['readings']}" if row["readings"] else "–"


def _read_in_several_ways(rows: pd.DataFrame) -> pd.DataFrame:
    """The claims of a summary to which readings give different numbers."""
    return rows[rows[list(VERDICTS)].sum(axis=1) > 1]


def tally_in_words(rows: pd.DataFrame) -> str:
    """In how many readings the claims of a summary hold, those that several readings give different numbers."""
    read = _read_in_several_ways(rows)
    tested = read[read["readings"] > 0]
    every, none = (tested["holds"] == tested["readings"]).sum(), (tested["holds"] == 0).sum()
    untested = len(read) - len(tested)
    text = (
        f"{len(read)} of {len(rows)} claims have other numbers under other readings: {every} are reproduced in every "
        f"reading that can test them, {len(tested) - every - none} in some, {none} in none"
    )
    return text + f"; {untested} cannot be tested" * bool(untested)


def draw_overview(table: pd.DataFrame):
    """The claims with numbers that depend on the reading: how many readings have which verdict, and the value's range.

    Args:
        table: as `read` returns it.
    """
    rows = _read_in_several_ways(summary(table))
    results = rows["claim"].map(result_of)
    headings = results != results.shift()
    position = np.arange(len(rows)) + headings.cumsum().to_numpy()
    row_height, top, bottom, names, bar = 0.15, 0.35, 0.35, 2.2, 1.85
    lines = int(position.max()) + 1
    height = top + row_height * lines + bottom
    figure, (page,) = figures.panels(1, 1, height)
    figure.set_layout_engine("none")
    page.set_position((0, 0, 1, 1))
    page.set_axis_off()
    page.set(xlim=(0, figures.WIDTH), ylim=(height, 0))
    text = {"fontsize": SMALL, "va": "center"}
    columns = names + bar + np.array([0.85, 1.5, 2.85])
    for column, words in zip(columns, ("reproduced in", "this study", "lowest … highest"), strict=True):
        page.text(column, top - 0.08, words, ha="right", **text)
    page.text(names, top - 0.08, "readings by verdict", ha="left", **text)
    for row, at, heading in zip(rows.to_dict("records"), top + row_height * (position + 0.5), headings, strict=True):
        if heading:
            page.text(0.08, at - row_height, result_of(row["claim"]).replace("_", " "), fontweight="bold", **text)
        page.text(0.16, at, name_of(row["claim"]), **text)
        left, unit = names, bar / max(1, sum(map(row.get, VERDICTS)))
        for verdict in VERDICTS:
            page.barh(
                at,
                row[verdict] * unit,
                row_height * 0.8,
                left,
                color=STYLES[verdict][0],
                edgecolor="white",
                linewidth=0.4,
            )
            left += row[verdict] * unit
        own, lowest, highest = (number_in_words(value) for value in (row["own"], row["lowest"], row["highest"]))
        for column, words in zip(columns, (share_in_words(row), own, f"{lowest} … {highest}"), strict=True):
            page.text(column, at, words, ha="right", **text)
    _legend_of_verdicts(figure, set(table["verdict"]), own=False)
    return figure


def number_in_words(value: float) -> str:
    """Two digits of a value; "–" if there is none."""
    return "–" if np.isnan(value) else f"{value:.2g}".replace("-", "−")


def draw_curves(table: pd.DataFrame):
    """The specification curves of one result; None if no claim has `FEWEST` readings.

    A claim's readings stand in the order of its value, with intervals, in the colour of the verdict; the marks below
    show what each of them chooses. The study's own readings are shaded.

    Args:
        table: rows of one result, as `read` returns them.
    """
    shown = {claim: rows for claim, rows in by_claim(table).items() if rows["value"].notna().sum() >= FEWEST}
    if not shown:
        return None
    levels = _levels(shown)
    lines = sum(map(len, levels.values()))
    across = min(CELLS_PER_ROW, len(shown))
    down = -(-len(shown) // across)
    labels = _width_of_labels(levels)
    cell = (figures.WIDTH - labels - 0.05) / CELLS_PER_ROW
    titles = {claim: textwrap.wrap(name_of(claim), LONGEST_LABEL) for claim in shown}
    heading = HEADING + LINE * (max(map(len, titles.values())) - 1)
    cell_height = heading + CURVE + 0.05 + MATRIX_ROW * lines + GAP
    width, height = figures.WIDTH, cell_height * down + LEGEND
    figure, (first,) = figures.panels(1, 1, height)
    first.remove()
    figure.set_layout_engine("none")

    def axes_at(left: float, top: float, high: float):
        """Axes so many inches from the left and from the top of the page."""
        return figure.add_axes((left / width, 1 - (top + high) / height, (cell - TICKS) / width, high / height))

    for index, (claim, rows) in enumerate(shown.items()):
        row, column = divmod(index, across)
        left, top = labels + cell * column + TICKS, cell_height * row + heading
        curve = axes_at(left, top, CURVE)
        matrix = axes_at(left, top + CURVE + 0.05, MATRIX_ROW * lines)
        ordered = rows.sort_values("value", kind="stable", na_position="last")
        _draw_curve(curve, ordered)
        _draw_matrix(matrix, ordered, levels)
        if column == 0:
            _label_rows(matrix, levels, labels)
        (counted,) = summary(rows.assign(claim=claim)).to_dict("records")
        title = {"fontsize": SMALL, "fontweight": "bold", "va": "bottom", "linespacing": 1.1}
        curve.text(0, 1.15, "\n".join(titles[claim]), transform=curve.transAxes, **title)
        holds = f"reproduced in {share_in_words(counted)}" if counted["readings"] else NOT_TESTABLE
        curve.text(0, 1.05, holds, transform=curve.transAxes, fontsize=SMALL, color=figures.GREY)
    _legend_of_verdicts(figure, set(table["verdict"]))
    return figure


def _levels(shown: dict[str, pd.DataFrame]) -> dict[str, list[str]]:
    """Choice → the values that occur, in their order, of all choices that differ between readings."""
    levels: dict[str, list[str]] = {}
    for rows in shown.values():
        for choices in rows["choices"]:
            for key, values in choices.items():
                known = levels.setdefault(key, [])
                known += [value for value in values if value not in known]
    return {key: values for key, values in levels.items() if len(values) > 1}


def _draw_curve(axis, rows: pd.DataFrame) -> None:
    """The values of a claim in order, with their intervals."""
    places = np.arange(len(rows))
    values, low, high = (rows[column].to_numpy(float) for column in ("value", "ci_low", "ci_high"))
    for place in places[(rows["variant"] == "").to_numpy()]:
        axis.axvspan(place - 0.5, place + 0.5, **SHADE)
    size = float(np.clip(70 / len(rows), 1.6, 3.5))
    for verdict, (colour, marker) in STYLES.items():
        chosen = (rows["verdict"] == verdict).to_numpy()
        axis.vlines(places[chosen], low[chosen], high[chosen], color=colour, linewidth=0.8)
        axis.plot(places[chosen], values[chosen], marker, color=colour, markersize=size)
    axis.set_xlim(-0.7, len(rows) - 0.3)
    axis.set_ylim(*_limits(values, low, high))
    if axis.get_ylim()[0] < 0 < axis.get_ylim()[1]:
        axis.axhline(0, **figures.THRESHOLD)
    axis.set_xticks([])
    axis.tick_params(axis="y", labelsize=6, length=2, pad=1)
    axis.locator_params(axis="y", nbins=4)
    axis.ticklabel_format(axis="y", style="plain", useOffset=False)
    axis.spines["bottom"].set_visible(False)


def _limits(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """From the lowest to the highest end of an interval, unless a few wide ones would flatten all others."""
    least, most = np.nanmin(values), np.nanmax(values)
    widths = (high - low)[np.isfinite(high - low)]
    room = max(most - least, float(np.median(widths)) if len(widths) else 0.0)
    if room < ROUNDING:  # one value in all readings
        room = max(0.1 * max(abs(least), abs(most)), 0.01)
    ends = np.concatenate([values, low, high])
    ends = ends[np.isfinite(ends)].clip(least - room, most + room)
    return float(ends.min() - 0.06 * room), float(ends.max() + 0.06 * room)


def _draw_matrix(axis, rows: pd.DataFrame, levels: dict[str, list[str]]) -> None:
    """One column per reading, one row per value, marks where a reading has the value."""
    lines = [(key, value) for key, values in levels.items() for value in values]
    places = np.arange(len(rows))
    for place in places[(rows["variant"] == "").to_numpy()]:
        axis.axvspan(place - 0.5, place + 0.5, **SHADE)
    colours = np.array([STYLES[verdict][0] for verdict in rows["verdict"]])
    size = float(np.clip(70 / len(rows), 1.8, 3.2)) ** 2
    for number, (key, value) in enumerate(lines):
        chosen = np.array([value in choices.get(key, ()) for choices in rows["choices"]])
        axis.scatter(places[chosen], np.full(chosen.sum(), number), s=size, c=colours[chosen], marker="s", linewidths=0)
        if number and lines[number - 1][0] != key:
            axis.axhline(number - 0.5, color="#cccccc", linewidth=0.4)
    axis.set(xlim=(-0.7, len(rows) - 0.3), ylim=(len(lines) - 0.5, -0.5), xticks=[], yticks=[])
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)


def _label_rows(axis, levels: dict[str, list[str]], width: float) -> None:
    """The names of the choices, so many inches left of the curves, and their values beside the rows."""
    from matplotlib.transforms import ScaledTranslation, blended_transform_factory

    text = {"fontsize": 6, "va": "center", "clip_on": False}
    beside = blended_transform_factory(axis.transAxes, axis.transData)
    edge = beside + ScaledTranslation(0.08 - width - TICKS, 0, axis.figure.dpi_scale_trans)
    number = 0
    for key, values in levels.items():
        axis.text(0, number, _name_of_choice(key), transform=edge, color=figures.GREY, **text)
        for value in values:
            axis.text(0, number, f"{_shortened(value)} ", ha="right", transform=beside, **text)
            number += 1


def _width_of_labels(levels: dict[str, list[str]]) -> float:
    """Inches that the names of the choices and their values need beside each other, without the ticks of the curves."""
    names = (len(_name_of_choice(key)) + len(_shortened(values[0])) + 4 for key, values in levels.items())
    alone = (len(_shortened(value)) + 2 for values in levels.values() for value in values)
    return max(LETTER * max([*names, *alone], default=0) - TICKS, 0.3) + 0.08


def _name_of_choice(key: str) -> str:
    return _shortened(key.rpartition(".")[2].replace("_", " "))


def _shortened(words: str) -> str:
    return words if len(words) <= LONGEST_LABEL else f"{words[: LONGEST_LABEL - 1]}…"


def _legend_of_verdicts(figure, verdicts: set[str], own: bool = True) -> None:
    """The verdicts that occur, at the foot of the page."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], color=colour, marker=marker if own else "s", linestyle="", markersize=3.5, label=verdict)
        for verdict, (colour, marker) in STYLES.items()
        if verdict in verdicts
    ]
    if own:
        handles.append(Patch(facecolor="#e4e4e4", label="this study's reading"))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=SMALL, handletextpad=0.4)
