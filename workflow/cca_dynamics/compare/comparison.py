"""How similar are the layers in these files? Distances of all pairs, as a table and as a heatmap.

A distance is the mean of both directions, because PWCCA is not symmetric. Beside it stands the floor: the distance to
expect of unrelated Gaussian layers of the same ranks on as many data points.
"""

from __future__ import annotations

import difflib
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cca_dynamics.compare.readers import Representation, read
from cca_dynamics.errors import UserError
from cca_dynamics.results import figures
from cca_dynamics.runtime.storage import replacing
from cca_dynamics.similarity import (
    MEASURES,
    DegenerateCCAWarning,
    Factors,
    RepresentationError,
    factorize,
    null_floor,
    pairwise,
)

FEW = 6
"""Representations of which all pairs are listed; of more a matrix is printed."""
READABLE = 16
"""Representations whose distances are written into the cells of a heatmap of full width."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Distances between all pairs of N representations.

    Attributes:
        representations: the N.
        ranks: directions in which each varies.
        distances: measure → (N, N), the mean of both directions, 0 on the diagonal.
        floors: measure → (N, N), what unrelated Gaussian layers would give; nan where that is not known.
    """

    representations: list[Representation]
    ranks: list[int]
    distances: dict[str, np.ndarray]
    floors: dict[str, np.ndarray]

    @property
    def names(self) -> list[str]:
        """Names of the representations."""
        return [representation.name for representation in self.representations]

    @property
    def n(self) -> int:
        """Number of data points."""
        return len(self.representations[0].x)


def run(files: Sequence[Path], measures: Sequence[str], out: Path, table: Path | None, device: str) -> None:
    """Compare all representations in files, print their distances, write a heatmap and, if asked for, a table.

    Args:
        files: see `representations.read`.
        measures: keys of `similarity.MEASURES`.
        out: the heatmap, .png, .pdf or .svg.
        table: None or a .csv of a, b, measure, distance, floor; one row for each pair and measure.
        device: "cpu" or "cuda".

    Raises:
        UserError: something is wrong with a file, a name or what is in it; nothing is written.
        OSError: an output cannot be written.
    """
    if out.suffix[1:] not in figures.FORMATS:
        raise UserError(f"{out}: its suffix is none of .{', .'.join(figures.FORMATS)}; name the heatmap so")
    if table is not None and table.suffix != ".csv":
        raise UserError(f"{table}: its suffix is not .csv; name the table so")
    comparison = compare(files, measures, device)
    if table is not None:
        with replacing(table) as temporary:
            pairs(comparison).to_csv(temporary, index=False)
    figures.save(heatmap(comparison), [out])
    show(comparison)
    print(f"Heatmap: {out}" + (f"  Table: {table}" if table is not None else ""))


def compare(files: Sequence[Path], measures: Sequence[str] = ("pwcca",), device: str = "cpu") -> Comparison:
    """Distances between all pairs of the representations in files. Arguments and errors as `run`."""
    for measure in measures:
        if measure not in MEASURES:
            close = difflib.get_close_matches(measure, MEASURES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(MEASURES)}"
            raise UserError(f"--measure: {measure} is not known; {hint}")
    representations = read(files)
    if len(representations) < 2:
        raise UserError(f"{representations[0].source} is all there is; give at least two layers to compare")
    try:
        factors = [factorize(each.x, device=device, name=each.source) for each in representations]
    except RepresentationError as problem:
        raise UserError(str(problem)) from None
    distances, floors = {}, {}
    for measure in dict.fromkeys(measures):
        _check(representations, factors, measure)
        compared = MEASURES[measure].compared(factors)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateCCAWarning)  # `notes` says how many pairs, and how bad it is
            both_ways = pairwise(factors, measure, device=device)
        distances[measure] = (both_ways + both_ways.T) / 2
        floors[measure] = np.array([[null_floor(x.rank, y.rank, x.n, measure) for y in compared] for x in compared])
    return Comparison(representations, [x.rank for x in factors], distances, floors)


def _check(representations: list[Representation], factors: list[Factors], measure: str) -> None:
    """Refuse by name what the measure would refuse by number."""
    record = MEASURES[measure]
    for representation, x in zip(representations, factors, strict=True):
        if record.canonical and x.rank >= x.n - 1:
            raise UserError(
                f"{representation.source} spans all {x.n - 1} directions of its {x.n} data points, so that everything "
                "correlates with it perfectly; use more data points than neurons, or --measure linear_cka_debiased"
            )
        if x.n < record.fewest_points:
            raise UserError(
                f"{representation.source} has {x.n} data points; {record.label} needs at least {record.fewest_points}"
            )
        width, first = x.x.shape[1], factors[0].x.shape[1]
        if record.neuron_by_neuron and width != first:
            raise UserError(
                f"{representation.source} has {width} neurons and {representations[0].source} {first}; {measure} "
                "compares neuron by neuron, use pwcca for layers of different widths"
            )


def pairs(comparison: Comparison) -> pd.DataFrame:
    """A row for each pair and measure: a, b, measure, distance, floor."""
    names, (a, b) = np.array(comparison.names, dtype=object), np.triu_indices(len(comparison.names), k=1)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "a": names[a],
                    "b": names[b],
                    "measure": measure,
                    "distance": distances[a, b],
                    "floor": comparison.floors[measure][a, b],
                }
            )
            for measure, distances in comparison.distances.items()
        ],
        ignore_index=True,
    )


def notes(comparison: Comparison) -> list[str]:
    """What a reader of the distances must know."""
    found, measures = [], comparison.distances
    a, b = np.triu_indices(len(comparison.names), k=1)
    if not all(MEASURES[measure].symmetric for measure in measures):
        found.append("a distance is the mean of both directions")
    for measure, floors in comparison.floors.items():
        if not np.isnan(floors).all():
            low, high = floors[a, b].min(), floors[a, b].max()
            spread = f"{low:.3f}" if high - low < 5e-4 else f"{low:.3f} to {high:.3f}"
            found.append(
                f"the floor, what unrelated Gaussian layers of these ranks would give on {comparison.n} data points, "
                f"is {spread}" + (f" for {figures.measure_label(measure)}" if len(measures) > 1 else "")
            )
    if averaged := sum(each.positions is not None for each in comparison.representations):
        found.append(f"feature maps are averaged over space ({averaged} of {len(comparison.names)} representations)")
    if dead := comparison.ranks.count(0):
        found.append(f"{dead} of {len(comparison.names)} representations do not vary (rank 0) and resemble nothing")
    ranks = np.array(comparison.ranks)
    forced = np.maximum(ranks[a] + ranks[b] - (comparison.n - 1), 0)
    if forced.any() and any(MEASURES[measure].canonical for measure in measures):
        found.append(
            f"in {(forced > 0).sum()} of {len(a)} pairs up to {forced.max()} correlations are exactly 1 because the "
            "ranks exceed n - 1 (too few data points)"
        )
    return found


def show(comparison: Comparison) -> None:
    """Print the representations, their distances and what to know about these."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False)
    many = len(comparison.names) > FEW
    shown = _table("#", "Representation", "Neurons", "Rank", "Feature maps", left=("Representation",))
    for i, (each, rank) in enumerate(zip(comparison.representations, comparison.ranks, strict=True), start=1):
        maps = "×".join(map(str, each.positions)) if each.positions else ""
        shown.add_row(f"{i}", escape(each.name), f"{each.x.shape[1]}", f"{rank}", maps)
    console.print(shown)
    console.print()
    for measure in comparison.distances if many else ():
        known = not np.isnan(comparison.floors[measure]).all()
        below = ", below it the floor" if known else ""
        console.print(f"{figures.measure_label(measure)} distance above the diagonal{below}:")
        for block in _matrix(comparison, measure, max(1, (console.width - 4) // 5)):
            console.print(block)
    if not many:
        listed = _table("a", "b", "Measure", "Distance", "Floor", left=("a", "b", "Measure"))
        for row in pairs(comparison).itertuples():
            floor = "" if math.isnan(row.floor) else f"{row.floor:.3f}"
            listed.add_row(
                escape(row.a), escape(row.b), figures.measure_label(row.measure), f"{row.distance:.3f}", floor
            )
        console.print(listed)
    console.print()
    for note in notes(comparison):
        console.print(escape(f"{note[0].upper()}{note[1:]}."))


def _matrix(comparison: Comparison, measure: str, columns: int):
    """Tables of all rows and some columns each: distances above the diagonal, floors below."""
    count = len(comparison.names)
    above = np.triu(np.ones((count, count), dtype=bool))
    values = np.where(above, comparison.distances[measure], comparison.floors[measure])
    for start in range(0, count, columns):
        block = range(start, min(start + columns, count))
        table = _table("", *(f"{j + 1}" for j in block), padding=1)
        for i in range(count):
            cells = ["–" if i == j else "" if np.isnan(values[i, j]) else _short(values[i, j]) for j in block]
            table.add_row(f"{i + 1}", *cells)
        yield table


def _short(value: float) -> str:
    """Two digits, without the zero before the point."""
    return f"{value:.2f}".removeprefix("0")


def _table(*columns: str, left: Sequence[str] = (), padding: int = 2):
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, padding, 0, 0), header_style="")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    return table


def heatmap(comparison: Comparison):
    """A matrix of distances for each measure, with the floor in the note below; returns the figure."""
    count, measures = len(comparison.names), comparison.distances
    columns = min(len(measures), 2)
    figure, axes = figures.panels(math.ceil(len(measures) / columns), columns, height=5.6 if columns == 1 else 3.4)
    step = math.ceil(count / (60 // columns))  # more names than that would overlap
    places = np.arange(0, count, step)
    names = [_on_axis(comparison.names[place]) for place in places]
    for axis, (measure, distances) in zip(axes, measures.items(), strict=False):
        label = f"{figures.measure_label(measure)} distance"
        image = axis.imshow(
            distances, cmap="cividis", vmin=0, vmax=max(1.0, float(distances.max())), interpolation="nearest"
        )
        figure.colorbar(image, ax=axis, label=label, shrink=0.8, pad=0.03).outline.set_visible(False)
        size = min(7.0, 300 / columns / len(places))
        axis.set_xticks(places, names, rotation=90, fontsize=size)
        axis.set_yticks(places, names, fontsize=size)
        axis.set(xlabel="Representation", ylabel="Representation")
        if count <= READABLE // columns:
            for i, j in np.ndindex(distances.shape):
                red, green, blue, _ = image.cmap(image.norm(distances[i, j]))
                colour = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
                axis.text(j, i, _short(distances[i, j]), color=colour, ha="center", va="center", fontsize=7)
    for axis in axes[len(measures) :]:
        axis.set_visible(False)
    if len(measures) > 1:
        figures.letters(*axes[: len(measures)])
    figures.footnote(figure, [_literal(note) for note in notes(comparison)])
    return figure


def _on_axis(name: str) -> str:
    """The end of a name, which tells layers apart, where there is no room for the whole."""
    return _literal(name if len(name) <= 32 else f"…{name[-31:]}")


def _literal(text: str) -> str:
    """Text in which a dollar is a dollar, not mathematics."""
    return text.replace("$", r"\$")
