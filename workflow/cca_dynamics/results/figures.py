"""How every figure looks: one style, colours that survive colour blindness and grey, and files a journal takes.

Functions import Matplotlib when they are called: Snakemake imports the results, and with them this module, whenever it
builds the DAG.
"""

from __future__ import annotations

import io
import math
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from cca_dynamics.results.tables import by_network
from cca_dynamics.runtime.storage import replacing

# Okabe & Ito (2008): distinguishable with any colour vision. Markers differ as well, for print in grey.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6b6b6b"
SKY, AMBER = "#56B4E9", "#E69F00"

SERIES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (GREY, "v"))
"""Colour and marker of the curves of a panel."""
SEEN, UNSEEN = (AMBER, "P"), (SKY, "X")
"""Colour and marker of performance on training and on held-out data; no curves of `SERIES` look like them."""
FLOOR = {"color": GREY, "linewidth": 0.8, "linestyle": ":"}
"""Line of the distance expected of unrelated Gaussian layers."""
THRESHOLD = {"color": GREY, "linewidth": 0.7, "linestyle": ":"}
"""Line at a value with which curves are to be compared."""

FORMATS = ("png", "pdf", "svg")
WIDTH = 7.0  # inches: two columns of a journal
STYLE = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 6.5,
    "legend.title_fontsize": 6.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "axes.formatter.useoffset": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "cca-dynamics",
}


LABELS = {
    "pwcca": "PWCCA",
    "pwcca_squared": "PWCCA (squared weights)",
    "pwcca_thresholded": "PWCCA (99 %)",
    "mean_cca": "Mean CCA",
    "svcca": "SVCCA",
    "bartlett": "Bartlett CCA",
    "linear_cka": "Linear CKA",
    "linear_cka_debiased": "Debiased linear CKA",
    "rbf_cka": "RBF-CKA",
    "rsa": "RSA",
    "mutual_neighbours": "Mutual nearest neighbours",
}
"""Measures whose names on axes are not their keys: key of `similarity.MEASURES` → name."""

MEASURES = {
    "pwcca": (BLUE, "o"),
    "svcca": (SKY, "s"),
    "mean_cca": (PURPLE, "^"),
    "linear_cka": (ORANGE, "D"),
    "linear_cka_debiased": (AMBER, "v"),
    "procrustes": (GREEN, "P"),
    "cosine": (GREY, "X"),
    "pwcca_squared": (BLUE, "<"),
    "pwcca_thresholded": (BLUE, ">"),
    "bartlett": (BLUE, "*"),
    "rbf_cka": (ORANGE, "p"),
    "angular_shape": (GREEN, "h"),
    "rsa": (GREEN, "<"),
    "mutual_neighbours": (GREEN, ">"),
    "linear_predictivity": (GREEN, "d"),
    "euclidean": (GREY, "8"),
}
"""Colour and marker of measures, the same in all figures; those compared most often have a colour of their own."""
OTHER_MEASURES = "H123"
"""Markers of other measures, a user's own, in grey."""


def measure_label(measure: str) -> str:
    """How a measure is called on axes and in tables, e.g. "Linear CKA".

    The names are not in the records of the measures because these need PyTorch, and importing that takes as long as
    drawing a figure.

    Args:
        measure: key of `similarity.MEASURES`; one without an entry in `LABELS` is called after its key.
    """
    return LABELS.get(measure, measure[:1].upper() + measure[1:].replace("_", " "))


def measure_styles(measures: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each of some measures."""
    others = [measure for measure in measures if measure not in MEASURES]
    own = {measure: (GREY, OTHER_MEASURES[i % len(OTHER_MEASURES)]) for i, measure in enumerate(others)}
    return {measure: (MEASURES | own)[measure] for measure in measures}


def panels(rows: int, columns: int, height: float, ratios: Sequence[float] | None = None):
    """A figure of rows × columns panels, each `height` inches high.

    Args:
        rows, columns: numbers of panels.
        height: of a panel, in inches; the figure is WIDTH wide.
        ratios: relative widths of the columns; default: equal.

    Returns:
        The figure, and its axes in reading order.
    """
    import matplotlib
    import matplotlib.pyplot as plt
    import seaborn as sns

    matplotlib.use("Agg")
    sns.set_theme(context="paper", style="ticks", rc=STYLE)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height * rows), squeeze=False, width_ratios=ratios)
    return figure, list(axes.flat)


def panels_in_pairs(count: int, height: float):
    """A figure of so many panels, two side by side, with none in the last place if the count is odd; see `panels`."""
    figure, axes = panels(math.ceil(count / 2), 2, height)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def letters(*axes) -> None:
    """Name the panels a, b, c, ..."""
    for letter, axis in zip("abcdefghijklmnop", axes, strict=False):
        axis.set_title(letter, loc="left", fontweight="bold")


def headroom(axis, share: float = 0.25) -> None:
    """Scale an axis from 0 to 1 and leave a share of it free above, for the legend."""
    axis.set_ylim(-0.02, 1 + share)
    axis.set_yticks(np.linspace(0, 1, 6))


def epoch_bar(figure, axis, epochs: Sequence[float]):
    """A colour bar for epochs beside a panel; returns the function epoch → colour."""
    import matplotlib.pyplot as plt

    scale = plt.Normalize(-0.08 * max(epochs), max(epochs))
    bar = figure.colorbar(plt.cm.ScalarMappable(scale, "viridis_r"), ax=axis, label="Epoch", pad=0.02)
    bar.ax.set_ylim(0, max(epochs))
    bar.outline.set_visible(False)
    if max(epochs) >= 4:
        bar.ax.yaxis.get_major_locator().set_params(integer=True)
    return lambda epoch: plt.get_cmap("viridis_r")(scale(epoch))


def sequential(count: int) -> list:
    """Colours and markers of so many values of an ordered variable, from light to dark."""
    import seaborn as sns

    colours = sns.color_palette("viridis_r", count + 1)[1:]
    return [(colour, SERIES[i % len(SERIES)][1]) for i, colour in enumerate(colours)]


def many_series() -> list:
    """Colours and markers for a dozen kinds of points: the five of SERIES, then other pairings of them."""
    return [(SERIES[i % 5][0], SERIES[(i + i // 5) % 5][1]) for i in range(15)]


def further_series(count: int) -> list:
    """Colours and markers of so many curves in a panel beside others that have the first three of SERIES."""
    colours, marks = (PURPLE, AMBER, SKY, GREY), "DvPX*"
    return [(colours[i % len(colours)], marks[i % len(marks)]) for i in range(count)]


def mean_with_bars(axis, rows: pd.DataFrame, x: str, colour: str, marker: str, label: str) -> None:
    """A line at the mean of the values of tidy rows over a column x, with error bars of one standard deviation."""
    spread = rows.groupby(x)["value"].agg(["mean", "std"])
    style = {"color": colour, "marker": marker, "capsize": 2, "elinewidth": 0.9}
    axis.errorbar(spread.index.to_numpy(float), spread["mean"], yerr=spread["std"], label=label, **style)


def mean_and_std(axis, x: Sequence, values: np.ndarray, colour: str, marker: str, label: str) -> None:
    """A line at the mean over networks (rows of values) in a band of one standard deviation, twelve markers at most."""
    mean, std = values.mean(axis=0), values.std(axis=0, ddof=1)
    axis.plot(x, mean, color=colour, marker=marker, markevery=-(-len(x) // 12), label=label)
    axis.fill_between(x, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)


def network_curves(axis, rows: pd.DataFrame, x: str, colour: str, marker: str, label: str) -> None:
    """Mean and band, as of `mean_and_std`, of the values of tidy rows over a column x."""
    curves = by_network(rows, x)
    mean_and_std(axis, curves.columns, curves.to_numpy(), colour, marker, label)


def floor_line(axis, rows: pd.DataFrame, x: str) -> None:
    """The mean floor of the distances in tidy rows over a column x; nothing where their measure has none."""
    floor = rows.groupby(x)["floor"].mean()
    if floor.notna().all():
        axis.plot(floor.index, floor, label="unrelated (Gaussian)", **FLOOR)


def published_points(axis, x: Sequence, y: Sequence, colour: str, marker: str, label: str | None, size: float) -> None:
    """Values of the paper, as hollow markers of so many square points, rimmed in white, on top of everything else."""
    from matplotlib.patheffects import withStroke

    style = {"facecolors": "none", "edgecolors": colour, "marker": marker, "linewidths": 1.0, "zorder": 6}
    axis.scatter(x, y, s=size, label=label, path_effects=[withStroke(linewidth=2.0, foreground="white")], **style)


def note(axis, text: str, at: tuple[float, float], offset: tuple[float, float], **style: object) -> None:
    """A word in grey, so many points beside a position of the data."""
    axis.annotate(text, at, xytext=offset, textcoords="offset points", color=GREY, **style)


def legend_outside(
    figure, handles: Sequence, labels: Sequence[str], side: str = "upper", title: str | None = None
) -> None:
    """One legend for all panels, in one row above ("upper") or below ("lower") them."""
    figure.legend(handles, labels, loc=f"outside {side} center", ncols=len(labels), title=title)


def legend_in_rows(figure, *rows: dict[str, object | None]) -> None:
    """One legend for all panels, above them, in several rows.

    Args:
        figure: gets the legend.
        rows: label → handle, from left to right; None: a heading.
    """
    from matplotlib.lines import Line2D

    columns, nothing = max(map(len, rows)), Line2D([], [], linestyle="none")
    padded = [[*row.items(), *[("", None)] * (columns - len(row))] for row in rows]
    entries = [row[column] for column in range(columns) for row in padded]  # legends are filled column by column
    labels, handles = zip(*entries, strict=True)
    handles = [nothing if handle is None else handle for handle in handles]
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, columnspacing=1.4)


def handles_of(*axes) -> dict[str, object]:
    """What the legend of some panels says, each label once: label → handle."""
    return {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}


NOTE_WIDTH = 20
"""Characters of a footnote per inch. Lines are broken here: matplotlib would break them after it has made room."""


def footnote(figure, notes: Sequence[str]) -> None:
    """Sentences below the panels; none: nothing."""
    if notes:
        lines = textwrap.fill(f"Note: {'; '.join(notes)}.", round(NOTE_WIDTH * figure.get_figwidth()))
        figure.supxlabel(lines, x=0.01, ha="left", fontsize=6.5, color=GREY)


def save(figure, outputs: Sequence[Path]) -> None:
    """Write a figure to each path in the format of its suffix, one of FORMATS, and close it.

    Files hold no date, so that equal figures are equal files. All of them have the layout of the first, and each is
    drawn once, where `savefig` would draw it twice and lay it out again: both take as long as all else of a figure.

    Raises:
        OSError: a file cannot be written, e.g. because the disk is full; it is then as it was.
    """
    import matplotlib.pyplot as plt
    from matplotlib.backends import backend_agg, backend_pdf, backend_svg

    dpi = plt.rcParams["savefig.dpi"]
    figure.set_dpi(dpi)  # a layout depends on the size of letters, in whole pixels
    missing = lay_out(figure)
    figure.set_layout_engine("none")
    writers = {
        "png": lambda file: backend_agg.FigureCanvasAgg(figure).print_png(file, metadata={"Software": None}),
        "pdf": lambda file: backend_pdf.FigureCanvasPdf(figure).print_pdf(file, metadata={"CreationDate": None}),
        "svg": lambda file: backend_svg.FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None}),
    }
    for output in map(Path, outputs):
        figure.set_dpi(dpi)  # writers of vectors change it
        content = io.BytesIO()  # on a full disk, the writer of PDFs would hide that behind an error of its own
        with _characters_may_be_missing():
            writers[output.suffix[1:]](content)
        with replacing(output) as temporary:
            temporary.write_bytes(content.getvalue())
    plt.close(figure)
    if missing:
        shown = ", ".join(map(str, outputs))
        remedy = "install one that has, for example Noto Sans CJK for Chinese, Japanese and Korean"
        print(f"note: {shown} shows boxes for {missing}, which no font here has; {remedy}", file=sys.stderr)


def lay_out(figure) -> str:
    """Place what is in a figure, each text in fonts that have its characters.

    Returns:
        The characters that no font of this machine has, which are drawn as boxes; mostly none.
    """
    with _characters_may_be_missing():
        figure.draw_without_rendering()  # names on axes are texts only then
        replaced, missing = _choose_fonts(figure)
        if replaced:
            figure.draw_without_rendering()
    return missing


def _choose_fonts(figure) -> tuple[bool, str]:
    """Let texts take characters that their font lacks from the other fonts of this machine.

    Returns:
        Whether any text does, and the characters that no font has.
    """
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
    from matplotlib.text import Text

    there = get_font(findfont(FontProperties())).get_charmap()
    lacking = {text: {c for c in text.get_text() if c.isprintable()} for text in figure.findobj(Text)}
    lacking = {text: absent for text, of in lacking.items() if (absent := {c for c in of if ord(c) not in there})}
    missing, others = set().union(*lacking.values()), []
    for font in fontManager.ttflist if missing else []:
        # The font of last resort has boxes alone, and one that cannot be scaled no letters of our size.
        if font.style == "normal" and 400 <= font.weight <= 500 and not font.name.startswith("Last Resort"):
            face = get_font(font.fname)
            has = face.get_charmap() if face.scalable else {}
            if found := {c for c in missing if ord(c) in has}:
                missing -= found
                others.append(font.name)
    for text in lacking if others else []:
        families = dict.fromkeys([*text.get_family(), *others])  # each once, though a figure may be laid out twice
        text.set_family(list(families))
    return bool(others), "".join(sorted(missing))


@contextmanager
def _characters_may_be_missing() -> Iterator[None]:
    """Without Matplotlib's warning of each such character each time it is drawn: `save` says it in one line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        yield
