"""Figures are complete, legible in grey, and their text finds room, whatever the data."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from cca_dynamics.config.models import StageOptions
from cca_dynamics.results import clustering, figures, recurrent_sequence
from cca_dynamics.results.claims import COLUMNS
from cca_dynamics.results.registry import RESULTS
from cca_dynamics.similarity import MEASURES
from matplotlib import font_manager
from matplotlib.collections import PathCollection
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from tests.builders import read_default_study
from tests.made_up_tables import made_up_table, options_of

DRAWN_OFTEN = ("stability", "generalization", "width", "clusters", "recurrent_training")
"""Results whose figures `make test` draws; `make test-thorough` draws the others as well."""
TOLERANCE = 1.5
"""Pixels, at 100 per inch, by which boxes may touch."""


def visible_texts(figure) -> list[tuple[str, Bbox]]:
    """Every text that is drawn, and its box in pixels."""
    renderer, undrawn, boxes = figure.canvas.get_renderer(), _undrawn_tick_labels(figure), []
    for text in figure.findobj(Text):
        if text in undrawn or not text.get_visible() or not text.get_text().strip() or _is_hidden(text):
            continue
        box = text.get_window_extent(renderer)
        if box.width > 0 and box.height > 0:
            boxes.append((text.get_text(), box))
    return boxes


def _is_hidden(text) -> bool:
    """Whether a text belongs to an axis that is not drawn."""
    return text.axes is not None and not text.axes.get_visible()


def _undrawn_tick_labels(figure) -> set[Text]:
    """Labels of ticks that Matplotlib keeps but does not draw: outside of the limits, or of an axis that is hidden."""
    labels = set()
    for axis in figure.axes:
        for each in (axis.xaxis, axis.yaxis):
            low, high = sorted(each.get_view_interval())
            shown = axis.get_visible() and axis.axison and each.get_visible()
            slack = 1e-9 * (high - low)
            for tick in (*each.get_major_ticks(), *each.get_minor_ticks()):
                if not shown or not low - slack <= tick.get_loc() <= high + slack:
                    labels |= {tick.label1, tick.label2}
    return labels


def markers(axis) -> np.ndarray:
    """(points, 2) places in pixels of all markers of an axis."""
    places = []
    for line in axis.get_lines():
        if line.get_marker() not in (None, "None", "", " ") and line.get_visible():
            points = line.get_transform().transform(np.column_stack(line.get_data()).astype(float))
            every = line.get_markevery()
            places.append(points[:: every if isinstance(every, int) else 1])
    for points in axis.collections:
        if isinstance(points, PathCollection) and len(points.get_offsets()):
            places.append(points.get_offset_transform().transform(np.asarray(points.get_offsets(), dtype=float)))
    found = np.concatenate(places) if places else np.empty((0, 2))
    return found[np.isfinite(found).all(axis=1)]


def collisions(figure) -> list[str]:
    """What covers what."""
    figure.set_dpi(100)
    figure.canvas.draw()
    texts, found = visible_texts(figure), []
    for index, (words, box) in enumerate(texts):
        for other_words, other in texts[:index]:
            if _overlap(box, other):
                found.append(f"text {words!r} covers text {other_words!r}")
    for index, legend in enumerate(_legends(figure)):
        for words, box in texts:
            if _overlap(box, legend) and not _inside(box, legend):
                found.append(f"legend of {index} covers text {words!r}")
    boxes = [*texts, *((f"legend of {i}", box) for i, box in enumerate(_legends(figure)))]
    for axis in figure.axes:
        if axis.get_visible():
            places = [place for place in markers(axis) if axis.bbox.contains(*place)]
            for words, box in boxes:
                inside = [place for place in places if _contains(box, place)]
                if inside:
                    found.append(f"text {words!r} covers {len(inside)} markers")
    return found


def _legends(figure) -> list[Bbox]:
    renderer = figure.canvas.get_renderer()
    legends = [legend for axis in figure.axes if axis.get_visible() and (legend := axis.get_legend())]
    legends += [artist for artist in figure.legends if isinstance(artist, Legend)]
    return [legend.get_window_extent(renderer) for legend in legends]


def _overlap(one: Bbox, other: Bbox) -> bool:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return width > TOLERANCE and height > TOLERANCE


def _inside(box: Bbox, legend: Bbox) -> bool:
    """Whether a text is one of a legend's own."""
    return legend.x0 <= box.x0 and box.x1 <= legend.x1 and legend.y0 <= box.y0 and box.y1 <= legend.y1


def _contains(box: Bbox, place: np.ndarray) -> bool:
    x, y = place
    return box.x0 + TOLERANCE < x < box.x1 - TOLERANCE and box.y0 + TOLERANCE < y < box.y1 - TOLERANCE


def test_collisions_are_found():
    figure, (axis,) = figures.panels(1, 1, height=2)
    axis.plot([0, 1], [0, 1], marker="o")
    axis.set(xlim=(0, 1.2), ylim=(0, 1.2))
    assert collisions(figure) == []
    axis.text(0.98, 1, "on the last point", va="center")
    axis.text(0.97, 1.01, "on the other text", va="center")
    assert len(collisions(figure)) == 3  # each covers the point, and one the other
    plt.close(figure)


def other_data(table: pd.DataFrame, rng) -> pd.DataFrame:
    """A table with distances and accuracies that are larger or smaller, rise where they fell, or hardly differ."""
    values = table["value"].to_numpy(float).copy()
    for quantity in ("distance", "train_accuracy", "test_accuracy", "robustness", "ablated_accuracy", "probe"):
        rows = (table["quantity"] == quantity).to_numpy()
        scale, offset = rng.choice([-1, 1]) * rng.uniform(0.05, 1), rng.uniform(0, 0.9)
        values[rows] = np.clip(np.abs(offset + scale * values[rows]), 0, 1 if quantity != "distance" else None)
    return table.assign(value=values)


@functools.cache
def options_and_table(result: str) -> tuple:
    """The options of a result and its made-up table, which no test may change."""
    options = options_of(read_default_study(), result)
    return options, made_up_table(result, options)


def drawn(module, table: pd.DataFrame, options):
    """The figure of a table, with its claims."""
    claims = module.claims(table, StageOptions(options, "claims", seed=0))
    rows = pd.DataFrame([claim.row() for claim in claims], columns=COLUMNS)
    return module.plot(table, rows, StageOptions(options, "plot"))


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Enough for a figure; the published numbers take minutes."""
    for name, count in (("PERMUTATIONS", 49), ("REFERENCES", 9), ("SUBSAMPLES", 5)):
        monkeypatch.setattr(clustering, name, count)


def assert_no_collisions(figure) -> None:
    found = collisions(figure)
    assert not found, f"{len(found)} collisions, such as: {'; '.join(found[:5])}"


@pytest.mark.thorough
@pytest.mark.parametrize("result", list(RESULTS))
@pytest.mark.parametrize("seed", range(1, 4))
def test_no_text_covers_a_marker_or_another_text(result, seed):
    module, options, table = RESULTS[result], *options_and_table(result)
    figure = drawn(module, other_data(table, np.random.default_rng(seed)), options)
    assert_no_collisions(figure)
    plt.close(figure)


def looks(handle) -> tuple:
    """What tells a legend's curve or points from others in grey: marker, line, lightness in steps of a fifth."""
    from matplotlib.colors import to_rgb

    line = handle.lines[0] if hasattr(handle, "lines") else handle
    if hasattr(line, "get_marker"):
        marker, dashes, colour = line.get_marker(), line.get_linestyle(), line.get_color()
    else:
        marker, dashes, colour = line.get_paths()[0].vertices.tobytes(), "", line.get_edgecolor()[0][:3]
    hollow = hasattr(line, "get_paths") and not len(line.get_facecolor())
    return marker, dashes, hollow, round(5 * np.dot([0.2126, 0.7152, 0.0722], np.square(to_rgb(colour))))


@pytest.mark.parametrize(
    "result", [each if each in DRAWN_OFTEN else pytest.param(each, marks=pytest.mark.thorough) for each in RESULTS]
)
def test_figures_are_complete_and_legible_and_embed_their_fonts(result, tmp_path):
    module, options, table = RESULTS[result], *options_and_table(result)
    before = table.copy()
    figure = drawn(module, table, options)
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert all(axis.get_ylabel() or axis.get_xlabel() for axis in shown)
    words = " ".join(text.get_text() for text in figure.findobj(Text))
    assert ("CIFAR-10" in words) == (result in ("generalization", "width", "layer_identification"))
    assert ("Penn Treebank" in words) == (result == "recurrent_training")
    for axis in shown:
        handles, labels = axis.get_legend_handles_labels()
        styles = [looks(handle) for handle in handles]
        assert len(set(styles)) == len(styles), f"in grey some of {labels} look the same: {styles}"
    assert_no_collisions(figure)
    pdf = tmp_path / "figure.pdf"
    figures.save(figure, [pdf])
    content = pdf.read_bytes()
    assert content.count(b"/FontFile2") == content.count(b"/Type /FontDescriptor") > 0 and b"/Type3" not in content
    pd.testing.assert_frame_equal(table, before)


def test_measures_have_names_without_pytorch():
    """Which takes as long to import as drawing a figure."""
    code = (
        "import sys; from cca_dynamics.results.figures import measure_label as name; "
        "print(name('linear_cka'), name('angular_shape'), name('of_my_own'), 'torch' in sys.modules, sep=', ')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "Linear CKA, Angular shape, Of my own, False\n"
    assert set(figures.LABELS) < set(MEASURES)


def test_measures_can_be_told_apart_in_every_figure():
    styles = figures.measure_styles([*MEASURES, "of_my_own"])
    assert set(MEASURES) == set(figures.MEASURES) and len(set(styles.values())) == len(styles)
    cca = [styles[measure][0] for measure in ("pwcca", "svcca", "mean_cca")]
    assert len(set(cca)) == 3


def test_a_legend_in_rows_reads_from_left_to_right():
    figure, (axis,) = figures.panels(1, 1, height=2)
    first, second = ({label: axis.plot([0, 1], [0, 1])[0] for label in labels} for labels in ("abc", "d"))
    figures.legend_in_rows(figure, {"text:": None, **first}, {"repeats:": None, **second})
    figure.draw_without_rendering()
    places = {
        text.get_text(): text.get_window_extent() for text in figure.legends[0].get_texts() if text.get_text().strip()
    }
    assert sorted(places, key=lambda label: (-round(places[label].y0), places[label].x0)) == [
        *("text:", *"abc", "repeats:", "d")
    ]
    plt.close(figure)


@pytest.mark.parametrize(("apart", "coincide"), [(0.01, True), (0.1, False)])
def test_a_panel_says_when_the_curves_of_all_starts_coincide(apart, coincide):
    options, table = options_and_table("recurrent_sequence")
    values = table["position"].rsub(options.positions) / options.positions
    later = np.isclose(table["start"], max(options.starts))
    figure = drawn(recurrent_sequence, table.assign(value=values + apart * later), options)
    titles = [axis.get_title() for axis in figure.axes]
    assert [title.endswith("all starts coincide") for title in titles] == [False] * 3 + [coincide] * 3
    plt.close(figure)


def test_letters_that_the_font_lacks_come_from_another_or_are_named_once(tmp_path, capsys, monkeypatch, recwarn):
    def save(name, *texts):
        figure, (axis,) = figures.panels(1, 1, 2.0)
        axis.set_xticks(range(len(texts)), texts)
        figures.save(figure, [tmp_path / name])
        return (tmp_path / name).read_bytes(), capsys.readouterr().err

    with_letters, said = save("elsewhere.pdf", "conv1", "\u0359\u1d81")  # in STIX, which comes with Matplotlib
    assert not said and b"DejaVuSans" in with_letters and re.search(rb"/FontName /\S*STIX", with_letters)
    assert b"STIX" not in save("plain.pdf", "conv1", "слой $2^x$")[0]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    _, said = save("boxes.png", "conv1", "\u0359\u1d81")
    assert said.count("\n") == 1 and "boxes.png shows boxes for \u0359\u1d81, which no font here has" in said
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a full disk")
@pytest.mark.parametrize("suffix", figures.FORMATS)
def test_a_full_disk_is_said_to_be_full_in_every_format(tmp_path, monkeypatch, suffix):
    """Once, the writer of PDFs hid it behind an AttributeError of its own."""

    @contextmanager
    def on_a_full_disk(path):
        yield Path("/dev/full")

    monkeypatch.setattr(figures, "replacing", on_a_full_disk)
    figure, _ = figures.panels(1, 1, height=2)
    with pytest.raises(OSError, match="No space left"):
        figures.save(figure, [tmp_path / f"a.{suffix}"])
    plt.close(figure)
