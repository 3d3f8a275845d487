"""How every figure looks: one style, colours that survive colour blindness and grey, and files a journal takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

from cca_dynamics.files import replacing

# Okabe & Ito (2008): distinguishable with any colour vision. Markers differ as well, for print in grey.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6b6b6b"

SERIES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (GREY, "v"))
"""Colour and marker of the curves of a panel."""
SEEN, UNSEEN = SERIES[2], SERIES[3]
"""Colour and marker of performance on training and on held-out data."""

MEASURES = {
    "pwcca": "PWCCA",
    "pwcca_squared": "PWCCA (squared weights)",
    "mean_cca": "Mean CCA",
    "svcca": "SVCCA",
    "bartlett": "Bartlett CCA",
    "linear_cka": "Linear CKA",
    "linear_cka_debiased": "Debiased linear CKA",
    "procrustes": "Procrustes",
    "cosine": "Cosine",
    "euclidean": "Euclidean",
}
"""Names of the measures on axes."""

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
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "cca-dynamics",
}


def panels(rows: int, columns: int, height: float, ratios: Sequence[float] | None = None):
    """A figure of rows × columns panels, each `height` inches high; returns it and its axes in reading order."""
    sns.set_theme(context="paper", style="ticks", rc=STYLE)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height * rows), squeeze=False, width_ratios=ratios)
    return figure, list(axes.flat)


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
    scale = plt.Normalize(-0.08 * max(epochs), max(epochs))
    bar = figure.colorbar(plt.cm.ScalarMappable(scale, "viridis_r"), ax=axis, label="Epoch", pad=0.02)
    bar.ax.set_ylim(0, max(epochs))
    bar.outline.set_visible(False)
    return lambda epoch: plt.get_cmap("viridis_r")(scale(epoch))


def sequential(count: int) -> list:
    """Colours and markers of an ordered variable, from light to dark."""
    colours = sns.color_palette("viridis_r", count + 1)[1:]
    return [(colour, SERIES[i % len(SERIES)][1]) for i, colour in enumerate(colours)]


def many_series() -> list:
    """Colours and markers for a dozen kinds of points: the five of SERIES, then other pairings of them."""
    return [(SERIES[i % 5][0], SERIES[(i + i // 5) % 5][1]) for i in range(15)]


def line_with_bars(axis, x: Sequence, mean: Sequence, std: Sequence, colour: str, marker: str, label: str) -> None:
    """A line with markers and error bars of one standard deviation."""
    axis.errorbar(x, mean, yerr=std, color=colour, marker=marker, label=label, capsize=2, elinewidth=0.9)


def mean_and_std(axis, x: Sequence, values: np.ndarray, colour: str, marker: str, label: str) -> None:
    """A line at the mean over networks (rows of values) in a band of one standard deviation, twelve markers at most."""
    mean, std = values.mean(axis=0), values.std(axis=0, ddof=1)
    axis.plot(x, mean, color=colour, marker=marker, markevery=-(-len(x) // 12), label=label)
    axis.fill_between(x, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)


def footnote(figure, notes: Sequence[str]) -> None:
    """Sentences below the panels; none: nothing."""
    if notes:
        figure.supxlabel("Note: " + "; ".join(notes) + ".", x=0.01, ha="left", fontsize=6.5, color=GREY, wrap=True)


def save(figure, outputs: Sequence[Path]) -> None:
    """Write a figure to each path in the format of its suffix, without dates: equal figures are equal files."""
    for output in map(Path, outputs):
        metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}[output.suffix[1:]]
        with replacing(output) as temporary:
            figure.savefig(temporary, format=output.suffix[1:], metadata=metadata)
    plt.close(figure)
