"""How similar are the layers in these files? Distances of all pairs, as a table and as a heatmap.

A distance is the mean of both directions, because PWCCA is not symmetric. Beside it stands the floor: the distance to
expect of unrelated Gaussian layers of the same ranks on as many data points. If asked for, also how often permuted data
points give so small a distance, and an interval.
"""

from __future__ import annotations

import difflib
import itertools
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from cca_dynamics.compare.readers import Representation, read
from cca_dynamics.errors import UserError, check_suffix
from cca_dynamics.results import figures
from cca_dynamics.runtime.storage import replacing
from cca_dynamics.similarity import (
    MEASURES,
    DegenerateCCAWarning,
    Factors,
    Intervals,
    PermutationTest,
    RepresentationError,
    factorize,
    null_floor,
    pairwise,
    pairwise_intervals,
    pairwise_permutation_test,
)
from cca_dynamics.similarity.significance import ALPHA, FEWEST_PERMUTATIONS, GROUPS

FEW = 6
"""Representations of which all pairs are listed; of more a matrix is printed."""
READABLE = 16
"""Representations whose distances are written into the cells of a heatmap of full width."""


@dataclass(frozen=True)
class Inference:
    """What to say of a distance besides its value.

    Attributes:
        permutations: of data points, by which it is tested; 0: no test.
        intervals: whether to give confidence intervals (95 %).
    """

    permutations: int = 0
    intervals: bool = False


NO_INFERENCE = Inference()


@dataclass(frozen=True, eq=False)
class Comparison:
    """Distances between all pairs of N representations.

    Attributes:
        representations: the N.
        ranks: directions in which each varies.
        distances: measure → (N, N), the mean of both directions, 0 on the diagonal.
        floors: measure → (N, N), what unrelated Gaussian layers would give; nan where that is not known.
        tests: measure → against permuted data points; {} if not asked for.
        intervals: measure → confidence intervals; {} if not asked for.
    """

    representations: list[Representation]
    ranks: list[int]
    distances: dict[str, np.ndarray]
    floors: dict[str, np.ndarray]
    tests: dict[str, PermutationTest] = field(default_factory=dict)
    intervals: dict[str, Intervals] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the representations."""
        return [representation.name for representation in self.representations]

    @property
    def n(self) -> int:
        """Number of data points."""
        return len(self.representations[0].x)


def run(
    files: Sequence[Path],
    measures: Sequence[str],
    out: Path,
    table: Path | None,
    device: str,
    inference: Inference = NO_INFERENCE,
    paired: bool = False,
) -> None:
    """Compare all representations in files, print their distances, write a heatmap and, if asked for, a table.

    Args:
        files: see `representations.read`.
        measures: keys of `similarity.MEASURES`.
        out: the heatmap, .png, .pdf or .svg.
        table: None or a .csv, see `pairs`.
        device: "cpu" or "cuda".
        inference: tests and intervals.
        paired: see `readers.read`.

    Raises:
        UserError: something is wrong with a file, a name or what is in it; nothing is written.
        OSError: an output cannot be written.
    """
    check_outputs(out, table)
    comparison = compare(files, measures, device, inference, paired)
    write_outputs(pairs(comparison), table, heatmap(comparison), out)
    show(comparison)
    print(f"Heatmap: {out}" + (f"  Table: {table}" if table is not None else ""))


def check_outputs(out: Path, table: Path | None) -> None:
    """Refuse suffixes that say nothing of a format that can be written, and folders."""
    check_suffix(out, *(f".{suffix}" for suffix in figures.FORMATS))
    if table is not None:
        check_suffix(table, ".csv")


def write_outputs(rows: pd.DataFrame, table: Path | None, figure, out: Path) -> None:
    """Write a table, if asked for, and a heatmap; neither is replaced if either cannot be written.

    Raises:
        OSError: one of them cannot be written.
    """
    if table is None:
        figures.save(figure, [out])
        return
    with replacing(table) as temporary:
        rows.to_csv(temporary, index=False)
        figures.save(figure, [out])


def check_measures(measures: Sequence[str]) -> None:
    """Refuse a measure that is not known."""
    for measure in measures:
        if measure not in MEASURES:
            close = difflib.get_close_matches(measure, MEASURES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(MEASURES)}"
            raise UserError(f"--measure: {measure} is not known; {hint}")


def compare(
    files: Sequence[Path],
    measures: Sequence[str] = ("pwcca",),
    device: str = "cpu",
    inference: Inference = NO_INFERENCE,
    paired: bool = False,
) -> Comparison:
    """Distances between all pairs of the representations in files. Arguments and errors as `run`."""
    check_measures(measures)
    if inference.permutations and inference.permutations < FEWEST_PERMUTATIONS:
        raise UserError(
            f"--permutations: {inference.permutations} give no p below .05; use {FEWEST_PERMUTATIONS} or more, e.g. 200"
        )
    representations = read(files, paired)
    if len(representations) < 2:
        raise UserError(f"{representations[0].source} is all there is; give at least two layers to compare")
    try:
        factors = [factorize(each.x, device=device, name=each.source) for each in representations]
    except RepresentationError as problem:
        raise UserError(str(problem)) from None
    distances, floors, tests, found = {}, {}, {}, {}
    sources = [each.source for each in representations]
    for measure in dict.fromkeys(measures):
        distances[measure], floors[measure] = distances_and_floors(factors, sources, measure, device)
        if inference.intervals:
            _check_left_out(sources, MEASURES[measure].compared(factors), measure)
        if inference.permutations:
            with _progress(measure, "permutations") as progress, refusals_named("--permutations"):
                how = {"permutations": inference.permutations, "device": device, "progress": progress}
                tests[measure] = pairwise_permutation_test(factors, measure, **how)
        if inference.intervals:
            with _progress(measure, "groups left out") as progress, refusals_named("--intervals"):
                found[measure] = pairwise_intervals(factors, measure, device=device, progress=progress)
    return Comparison(representations, [x.rank for x in factors], distances, floors, tests, found)


def _check_left_out(sources: Sequence[str], compared: list[Factors], measure: str) -> None:
    """Refuse by name what intervals, which leave out a group of data points at a time, would refuse by number."""
    n = compared[0].n
    if n < GROUPS:
        raise UserError(f"--intervals: {sources[0]} has {n} data points; they need at least {GROUPS}")
    left = n - -(-n // GROUPS)
    for source, x in zip(sources, compared, strict=True):
        if MEASURES[measure].canonical and x.rank >= left - 1:
            raise UserError(
                f"--intervals: {source} varies in {x.rank} directions, all that {left} data points have once a group "
                f"of {n - left} is left out; use more data points, or --measure linear_cka_debiased"
            )


@contextmanager
def refusals_named(name: str) -> Iterator[None]:
    """What measures and inference refuse, as a problem of the user's with a file or an option, which is named."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateCCAWarning)  # notes say how many pairs, and how bad it is
            yield
    except RepresentationError as problem:
        raise UserError(f"{name}: {problem}") from None


@contextmanager
def _progress(measure: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, where the output is a terminal."""
    from tqdm import tqdm

    with tqdm(desc=figures.measure_label(measure), unit=f" {unit}", disable=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def distances_and_floors(
    factors: list[Factors], sources: Sequence[str], measure: str, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of all pairs, the mean of both directions, and their floors (nan where no law is known): (N, N) each.

    Args:
        factors: of N representations.
        sources: what messages call them.
        measure: key of `MEASURES`.
        device: "cpu" or "cuda".

    Raises:
        UserError: the measure cannot compare one of them.
    """
    compared = MEASURES[measure].compared(factors)
    _check(sources, factors, compared, measure)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateCCAWarning)  # notes say how many pairs, and how bad it is
            both_ways = pairwise(factors, measure, device=device)
    except RepresentationError:
        for (source, x), (other, y) in itertools.combinations(zip(sources, factors, strict=True), 2):
            with refusals_named(f"{source} and {other}"):
                pairwise([x, y], measure, device=device)
        raise
    floors = np.array([[null_floor(x.rank, y.rank, x.n, measure) for y in compared] for x in compared])
    return (both_ways + both_ways.T) / 2, floors


def _check(sources: Sequence[str], factors: list[Factors], compared: list[Factors], measure: str) -> None:
    """Refuse by name what the measure would refuse by number."""
    record = MEASURES[measure]
    for source, x, directions in zip(sources, factors, compared, strict=True):
        if record.canonical and directions.rank >= x.n - 1:
            raise UserError(
                f"{source} spans all {x.n - 1} directions of its {x.n} data points, so that everything "
                "correlates with it perfectly; use more data points than neurons, or --measure linear_cka_debiased"
            )
        if x.n < record.fewest_points:
            label = figures.measure_label(measure)
            raise UserError(f"{source} has {x.n} data points; {label} needs at least {record.fewest_points}")
        width, first = x.x.shape[1], factors[0].x.shape[1]
        if record.neuron_by_neuron and width != first:
            raise UserError(
                f"{source} has {width} neurons and {sources[0]} {first}; {measure} "
                "compares neuron by neuron, use pwcca for layers of different widths"
            )


def pairs(comparison: Comparison) -> pd.DataFrame:
    """A row for each pair and measure: a, b, measure, distance, floor.

    With tests also p_value, p_family and calibrated, see `PermutationTest`; with intervals ci_low and ci_high.
    """
    names, (a, b) = np.array(comparison.names, dtype=object), np.triu_indices(len(comparison.names), k=1)
    tables = []
    for measure, distances in comparison.distances.items():
        columns = {"distance": distances, "floor": comparison.floors[measure]}
        if test := comparison.tests.get(measure):
            columns |= {"p_value": test.p_value, "p_family": test.p_family, "calibrated": test.calibrated}
        if interval := comparison.intervals.get(measure):
            columns |= {"ci_low": interval.low, "ci_high": interval.high}
        values = {column: matrix[a, b] for column, matrix in columns.items()}
        tables.append(pd.DataFrame({"a": names[a], "b": names[b], "measure": measure, **values}))
    return pd.concat(tables, ignore_index=True)


def notes(comparison: Comparison) -> list[str]:
    """What a reader of the distances must know."""
    sentences, measures = [], comparison.distances
    a, b = np.triu_indices(len(comparison.names), k=1)
    if not all(MEASURES[measure].symmetric for measure in measures):
        sentences.append("a distance is the mean of both directions")
    for measure, floors in comparison.floors.items():
        if not np.isnan(floors).all():
            sentences.append(
                f"the floor, what unrelated Gaussian layers of these ranks would give on {comparison.n} data points, "
                f"is {floor_in_words(floors[a, b])}"
                + (f" for {figures.measure_label(measure)}" if len(measures) > 1 else "")
            )
    if averaged := sum(each.positions is not None for each in comparison.representations):
        sentences.append(
            f"feature maps are averaged over space ({averaged} of {len(comparison.names)} representations)"
        )
    if dead := comparison.ranks.count(0):
        sentences.append(f"{dead} of {len(comparison.names)} representations do not vary (rank 0) and resemble nothing")
    ranks = np.array(comparison.ranks)
    forced = np.maximum(ranks[a] + ranks[b] - (comparison.n - 1), 0)
    if forced.any() and any(MEASURES[measure].uses_all_correlations for measure in measures):
        sentences.append(
            f"in {(forced > 0).sum()} of {len(a)} pairs up to {forced.max()} correlations are exactly 1 because the "
            "ranks exceed n - 1 (too few data points)"
        )
    for measure, test in comparison.tests.items():
        of = f" under {figures.measure_label(measure)}" if len(measures) > 1 else ""
        significant = int((test.p_family[a, b] < ALPHA).sum())
        marked = "in brackets" if len(comparison.names) <= READABLE // min(len(measures), 2) else "dotted"
        others = "" if significant == len(a) else f"; the others are {marked} in the heatmap"
        sentences.append(
            f"{significant} of {len(a)} pairs are more alike than permuted data points{of} (p < .05 over all pairs)"
            f"{others}"
        )
    if comparison.tests or comparison.intervals:
        sentences.append("tests and intervals take data points for independent")
    return sentences


def floor_in_words(floors: np.ndarray) -> str:
    """From the lowest to the highest of some floors."""
    low, high = floors.min(), floors.max()
    return f"{low:.3f}" if high - low < 5e-4 else f"{low:.3f} to {high:.3f}"


SHOWN = {"p_value": "p", "p_family": "p (family)", "calibrated": "Calibrated"}
"""Columns of `pairs` that are printed where a test was made → their titles."""


def show(comparison: Comparison) -> None:
    """Print the representations, their distances and what to know about these."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False)
    many = len(comparison.names) > FEW
    shown = _table("#", "Representation", "Neurons", "Rank", "Feature maps", left=("Representation",))
    for i, (each, rank) in enumerate(zip(comparison.representations, comparison.ranks, strict=True), start=1):
        maps = "×".join(map(str, each.positions)) if each.positions else ""
        shown.add_row(f"{i}", Text(each.name), f"{each.x.shape[1]}", f"{rank}", maps)
    console.print(shown)
    console.print()
    for measure in comparison.distances if many else ():
        known = not np.isnan(comparison.floors[measure]).all()
        below = ", below it the floor" if known else ""
        console.print(f"{figures.measure_label(measure)} distance above the diagonal{below}:")
        for block in _matrix(comparison, measure, max(1, (console.width - 4) // 5)):
            console.print(block)
    if not many:
        table = pairs(comparison)
        extra = [column for column in SHOWN if column in table]
        titles = ("a", "b", "Measure", "Distance", "Floor", *(SHOWN[column] for column in extra))
        if comparison.intervals:
            titles += ("95 % interval",)
        listed = _table(*titles, left=("a", "b", "Measure"))
        for row in table.itertuples():
            floor = "" if math.isnan(row.floor) else f"{row.floor:.3f}"
            cells = [f"{getattr(row, column):.3f}" for column in extra]
            if comparison.intervals:
                cells.append(f"{row.ci_low:.3f} to {row.ci_high:.3f}")
            label = figures.measure_label(row.measure)
            listed.add_row(Text(row.a), Text(row.b), label, f"{row.distance:.3f}", floor, *cells)
        console.print(listed)
    console.print()
    for note in notes(comparison):
        console.print(Text(f"{note[0].upper()}{note[1:]}."))


def _matrix(comparison: Comparison, measure: str, columns: int):
    """Tables of all rows and some columns each: distances above the diagonal, floors below."""
    count = len(comparison.names)
    above = np.triu(np.ones((count, count), dtype=bool))
    values = np.where(above, comparison.distances[measure], comparison.floors[measure])
    for start in range(0, count, columns):
        block = range(start, min(start + columns, count))
        table = _table("", *(f"{j + 1}" for j in block), padding=1)
        for i in range(count):
            cells = ["–" if i == j else "" if np.isnan(values[i, j]) else in_two_digits(values[i, j]) for j in block]
            table.add_row(f"{i + 1}", *cells)
        yield table


def in_two_digits(value: float) -> str:
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
        image = draw_distances(axis, distances, measure)
        size = min(7.0, 300 / columns / len(places))
        insignificant = _insignificant(comparison, measure)
        axis.set_xticks(places, names, rotation=90, fontsize=size)
        axis.set_yticks(places, names, fontsize=size)
        axis.set(xlabel="Representation", ylabel="Representation")
        if count <= READABLE // columns:
            write_distances(axis, image, distances, insignificant)
        else:
            rows, places_ = ([pair[side] for pair in insignificant] for side in (0, 1))
            dots = {"marker": "o", "s": min(6.0, (100 / columns / count) ** 2), "linewidths": 0.3}
            axis.scatter(places_, rows, c="black", edgecolors="white", **dots)
    for axis in axes[len(measures) :]:
        axis.set_visible(False)
    if len(measures) > 1:
        figures.letters(*axes[: len(measures)])
    figures.footnote(figure, [literal(note) for note in notes(comparison)])
    figures.lay_out(figure)  # panels that keep their shape are laid out in two passes
    return figure


def draw_distances(axis, distances: np.ndarray, measure: str, aspect: str = "equal"):
    """A matrix of distances as an image with a colour bar; returns the image."""
    top = max(1.0, float(distances.max()))
    image = axis.imshow(distances, cmap="cividis", vmin=0, vmax=top, interpolation="nearest", aspect=aspect)
    label = f"{figures.measure_label(measure)} distance"
    axis.figure.colorbar(image, ax=axis, label=label, shrink=0.8, pad=0.03).outline.set_visible(False)
    return image


def write_distances(axis, image, distances: np.ndarray, in_brackets: Set[tuple[int, int]] = frozenset()) -> None:
    """Write distances into the cells of their image, in black or white, whichever is legible."""
    for i, j in np.ndindex(distances.shape):
        red, green, blue, _ = image.cmap(image.norm(distances[i, j]))
        colour = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
        text = f"({in_two_digits(distances[i, j])})" if (i, j) in in_brackets else in_two_digits(distances[i, j])
        axis.text(j, i, text, color=colour, ha="center", va="center", fontsize=7)


def _insignificant(comparison: Comparison, measure: str) -> set[tuple[int, int]]:
    """The cells of pairs that are no more alike than permuted data points; empty without a test."""
    test = comparison.tests.get(measure)
    return set() if test is None else set(zip(*np.nonzero(test.p_family >= ALPHA), strict=True))


def _on_axis(name: str) -> str:
    """The end of a name, which tells layers apart, where there is no room for the whole."""
    return literal(name if len(name) <= 32 else f"…{name[-31:]}")


def literal(text: str) -> str:
    """Text in which a dollar is a dollar, not mathematics."""
    return text.replace("$", r"\$")
