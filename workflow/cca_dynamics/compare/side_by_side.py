"""Two networks side by side on the same inputs: distances of layers × layers, without storing activations.

Of all layers together the second moments are kept (`similarity.Moments`), so memory does not grow with the inputs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cca_dynamics.compare import capture, outputs
from cca_dynamics.compare.capture import Origin
from cca_dynamics.compare.comparison import (
    READABLE,
    check_measures,
    check_outputs,
    distances_and_floors,
    draw_distances,
    floor_in_words,
    literal,
    refusals_named,
    write_distances,
    write_outputs,
)
from cca_dynamics.compare.inputs import Source
from cca_dynamics.compare.outputs import Reading
from cca_dynamics.compare.readers import printable
from cca_dynamics.errors import UserError
from cca_dynamics.results import figures
from cca_dynamics.similarity import MEASURES, Moments

MOST_NEURONS = 30_000
"""Neurons of all layers together, from which the moments take 7 GB."""


@dataclass(frozen=True)
class Side:
    """One of two networks.

    Attributes:
        origin: see `capture.build`.
        layers: names or globs, see `capture.chosen`.
    """

    origin: Origin
    layers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class LayersByLayers:
    """Distances between the layers of two networks.

    Attributes:
        layers: names of the layers of each network.
        ranks: directions in which each of these layers varies.
        n: data points.
        distances: measure → (layers of the first, layers of the second), the mean of both directions.
        floors: measure → the same shape, what unrelated Gaussian layers would give; nan where that is not known.
    """

    layers: tuple[list[str], list[str]]
    ranks: tuple[list[int], list[int]]
    n: int
    distances: dict[str, np.ndarray]
    floors: dict[str, np.ndarray]


def compare(
    sides: tuple[Side, Side], source: Source, measures: Sequence[str], reading: Reading, batch: int, device: str
) -> LayersByLayers:
    """Run the same inputs through two networks and compare the layers of one with those of the other.

    Args:
        sides: the networks.
        source: of the inputs.
        measures: keys of `MEASURES` that second moments determine.
        reading: how outputs become data points and neurons.
        batch: inputs in a forward pass.
        device: of the networks; "cpu" or "cuda".

    Raises:
        UserError: a measure, a network, a layer or an input is refused, by name.
    """
    check_measures(measures)
    for measure in measures:
        if not MEASURES[measure].second_moments:
            raise UserError(
                f"--measure: {measure} compares single data points, which are not kept; use capture and compare for it"
            )
    networks = [capture.build(side.origin, source).to(device) for side in sides]
    layers = []
    for network, side in zip(networks, sides, strict=True):
        layouts = capture.probe(network, source, side.origin.model, reading, batch)
        layers.append(capture.chosen(side.layers, layouts, side.origin.model, reading))
        capture.refuse_randomness(network, layers[-1], side.origin.model, reading, source)
    every = [layout for side in layers for layout in side.values()]
    if (total := sum(outputs.neurons(layout, reading) for layout in every)) > MOST_NEURONS:
        raise UserError(
            f"--layers: the layers have {total} neurons together, more than the {MOST_NEURONS} whose moments fit into "
            "memory; name fewer layers"
        )
    if len(sizes := {outputs.points_per_input(layout, reading) for layout in every}) > 1:
        raise UserError(
            f"--layers: the layers give {' and '.join(map(str, sorted(sizes)))} data points for one {source.words}; "
            "choose layers of equal size, or --maps mean and --tokens mean"
        )
    moments = Moments(device)
    description = " and ".join(dict.fromkeys(side.origin.model for side in sides))
    for given in capture.passes(source, batch, description):
        values = []
        for network, side, chosen in zip(networks, sides, layers, strict=True):
            values += capture.given(network, given, chosen, side.origin.model, reading, source).values()
        with refusals_named("--layers"):
            moments.update(*values)
    return _compared(moments, tuple(list(chosen) for chosen in layers), sides, measures, device)


def _compared(
    moments: Moments,
    chosen: tuple[list[str], list[str]],
    sides: tuple[Side, Side],
    measures: Sequence[str],
    device: str,
) -> LayersByLayers:
    """The comparison, from the moments of all chosen layers of both networks."""
    with refusals_named("--data"):
        factors = moments.factors()
    first = len(chosen[0])
    named = [f"{side.origin.model}: {name}" for side, names in zip(sides, chosen, strict=True) for name in names]
    ranks = [x.rank for x in factors[:first]], [x.rank for x in factors[first:]]
    distances, floors = {}, {}
    for measure in dict.fromkeys(measures):
        matrices = distances_and_floors(factors, named, measure, device)
        distances[measure], floors[measure] = (matrix[:first, first:] for matrix in matrices)
    return LayersByLayers(chosen, ranks, moments.n, distances, floors)


def table(comparison: LayersByLayers) -> pd.DataFrame:
    """A row for each pair of layers and measure: a, b, measure, distance, floor."""
    first, second = (np.array(names, dtype=object) for names in comparison.layers)
    a, b = (axis.ravel() for axis in np.meshgrid(first, second, indexing="ij"))
    columns = [
        pd.DataFrame({"a": a, "b": b, "measure": measure, "distance": d.ravel(), "floor": floor.ravel()})
        for (measure, d), floor in zip(comparison.distances.items(), comparison.floors.values(), strict=True)
    ]
    return pd.concat(columns, ignore_index=True)


def heatmap(comparison: LayersByLayers, titles: Sequence[str]):
    """A matrix of distances for each measure, layers of the second network over those of the first; returns the figure.

    Args:
        comparison: see there.
        titles: what axes call the networks.
    """
    measures, (first, second) = comparison.distances, comparison.layers
    columns = min(len(measures), 2)
    height = (2.2 if columns == 2 else 3.6) + 0.06 * max(map(len, second))
    figure, axes = figures.panels(math.ceil(len(measures) / columns), columns, height=height)
    for axis, (measure, distances) in zip(axes, measures.items(), strict=False):
        image = draw_distances(axis, distances, measure, aspect="auto")
        for names, place, turned in ((second, axis.set_xticks, 90), (first, axis.set_yticks, 0)):
            step = math.ceil(len(names) / (40 // columns))
            size = min(7.0, 260 / columns / math.ceil(len(names) / step))
            labels = [literal(name if len(name) <= 24 else f"…{name[-23:]}") for name in names[::step]]
            place(range(0, len(names), step), labels, rotation=turned, fontsize=size)
        axis.set(xlabel=literal(titles[1]), ylabel=literal(titles[0]))
        if max(len(first), columns * len(second)) <= READABLE:
            write_distances(axis, image, distances)
    for axis in axes[len(measures) :]:
        axis.set_visible(False)
    if len(measures) > 1:
        figures.letters(*axes[: len(measures)])
    figures.footnote(figure, notes(comparison))
    return figure


def notes(comparison: LayersByLayers) -> list[str]:
    """What a reader of the distances must know."""
    sentences = [f"{comparison.n} data points"]
    if not all(MEASURES[measure].symmetric for measure in comparison.distances):
        sentences.append("a distance is the mean of both directions")
    for measure, floors in comparison.floors.items():
        if not np.isnan(floors).all():
            label = figures.measure_label(measure)
            sentences.append(
                f"the floor of {label}, what unrelated Gaussian layers would give, is {floor_in_words(floors)}"
            )
    worst = max(0, *((r_a + r_b - comparison.n + 1) for r_a in comparison.ranks[0] for r_b in comparison.ranks[1]))
    if worst and any(MEASURES[measure].uses_all_correlations for measure in comparison.distances):
        sentences.append(
            f"up to {worst} correlations of a pair are exactly 1 because the ranks exceed n - 1 (too few data points)"
        )
    return sentences


def run(
    sides: tuple[Side, Side],
    source: Source,
    measures: Sequence[str],
    out: Path,
    table_path: Path | None,
    *,
    reading: Reading,
    batch: int,
    device: str,
) -> None:
    """Compare two networks, print for each layer its nearest one, write a heatmap and, if asked for, a table.

    Arguments and errors as `compare`; out is .png, .pdf or .svg, the table .csv.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not sides[0].layers:
        raise UserError("--layers is missing; it is needed to compare networks")
    check_outputs(out, table_path)
    comparison = compare(sides, source, measures, reading, batch, device)
    write_outputs(table(comparison), table_path, heatmap(comparison, _titles(sides)), out)
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False)
    for measure, distances in comparison.distances.items():
        shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
        for column in (f"Layer of {sides[0].origin.model}", f"Nearest of {sides[1].origin.model}", "Distance", "Floor"):
            shown.add_column(Text(column), overflow="fold")
        nearest = distances.argmin(axis=1)
        for i, (name, j) in enumerate(zip(comparison.layers[0], nearest, strict=True)):
            floor = comparison.floors[measure][i, j]
            cells = f"{distances[i, j]:.3f}", "" if math.isnan(floor) else f"{floor:.3f}"
            shown.add_row(*map(Text, (printable(name), printable(comparison.layers[1][j]), *cells)))
        console.print(f"{figures.measure_label(measure)}:")
        console.print(shown)
        console.print()
    for note in notes(comparison):
        console.print(Text(f"{note[0].upper()}{note[1:]}."))
    print(f"Heatmap: {out}" + (f"  Table: {table_path}" if table_path is not None else ""))


def _titles(sides: tuple[Side, Side]) -> list[str]:
    """What tells the networks apart: the model, and the weights or the seed where these alone differ."""
    first, second = (side.origin for side in sides)
    if first.model != second.model:
        return [first.model, second.model]
    if (first.weights, first.entry) != (second.weights, second.entry):
        return [
            f"{each.model}, weights {Path(each.weights).name} {each.entry or ''}".strip() for each in (first, second)
        ]
    return [f"{each.model}, seed {each.seed}" for each in (first, second)]
