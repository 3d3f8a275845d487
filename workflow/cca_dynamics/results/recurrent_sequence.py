"""Figures A3 and A4: how the state of a recurrent network changes along a sequence.

Protocol (Morcos et al. 2018, appendix A.3). A3: the states at all positions equal to j modulo 20 are one
representation O_j; its distance to O_19. A4: one input is repeated 20 times, after some share of a sequence; the state
at each repeat against the last. The paper leaves open how many sequences there are; here each of many sequences of
held-out text is one data point.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from cca_dynamics import statistics
from cca_dynamics.claims import MISSED, Claim, all_of, below, exceeds
from cca_dynamics.results import recurrent
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.tables import tidy
from cca_dynamics.study import Cohort, ConfigError, Study

KEY = "results.recurrent_sequence"
NONE = -1.0  # the start of sequences without repetition
LITTLE = 0.5
"""Share of the distance of unrelated representations from which there is "little similarity" (ours)."""


def check(study: Study) -> None:
    """Refuse fewer sequences than CCA needs, and sequences shorter than what is compared."""
    options, sizes = study.options("recurrent_sequence"), study.config["language_model"]["sizes"]
    if options["sequences"] <= 2 * max(sizes):
        raise ConfigError(
            f"{KEY}.sequences",
            f"{options['sequences']} sequences are too few for layers of {max(sizes)} units; give more than "
            f"{2 * max(sizes)}, better {10 * max(sizes)}",
        )
    if options["length"] <= options["positions"]:
        raise ConfigError(f"{KEY}.length", f"sequences of {options['length']} have no {options['positions']} positions")


def cohorts(study: Study) -> list[Cohort]:
    """The shallow language models."""
    return recurrent.cohorts(study)[:1]


def compute(inputs: Inputs, options: dict) -> pd.DataFrame:
    """Distances of the state at each position to that at the last.

    Returns:
        Tidy rows, quantity "distance": network, layer, layer_index, input ("text": A3, or "repeat": A4), start (share
        of the sequence before the repetition; -1: none), position, measure, value, rank_a, rank_b, n, floor.
    """
    from cca_dynamics.activations import layers
    from cca_dynamics.similarity import MEASURES, factorize, null_floor

    cohort, positions, tables = recurrent.SHALLOW, options["positions"], []
    step = inputs.checkpoints(cohort, "sequence")[-1][0]
    groups = [("text", NONE, layer, layer) for layer in inputs.layers(cohort, step, "sequence")]
    for name in layers(inputs.file(cohort, step, "repeats")):
        layer, _, start = name.partition("@")
        groups.append(("repeat", NONE if start == "none" else float(start), layer, name))
    for kind, start, layer, name in groups:
        states = inputs.representations(cohort, name, step, "sequence" if kind == "text" else "repeats")
        rows = []
        for network, own in enumerate(states):
            by_position = own.reshape(-1, positions, own.shape[-1])
            factors = [factorize(by_position[:, j], device=inputs.device) for j in range(positions)]
            for position in range(positions - 1):
                for measure in options["measures"]:
                    result = MEASURES[measure](factors[position], factors[-1])
                    rows.append(
                        {
                            "network": network,
                            "position": position,
                            "measure": measure,
                            "value": result.distance,
                            "rank_a": result.rank_x,
                            "rank_b": result.rank_y,
                            "n": result.n,
                            "floor": null_floor(result.rank_x, result.rank_y, result.n, measure),
                        }
                    )
        place = {"layer": layer, "layer_index": int(layer.removeprefix("lstm")) - 1, "input": kind, "start": start}
        tables.append(pd.DataFrame(rows).assign(quantity="distance", **place))
    return tidy(tables)


def claims(table: pd.DataFrame, options: dict) -> list[Claim]:
    """The claims of figures A3 and A4, averaged over layers, one value a network."""
    seed, networks = options["seed"], table["network"].nunique()
    pwcca = table[table["measure"] == "pwcca"]
    text = pwcca[pwcca["input"] == "text"]
    half = options["positions"] // 2
    first = text[text["position"] < half].groupby("network")
    little = (first["value"].mean() / first["floor"].mean()).to_numpy()
    late = text[text["position"] == options["positions"] - 2].groupby("network")["value"].mean().to_numpy()
    falls = first["value"].mean().to_numpy() - late
    early_start, late_start = min(options["starts"]), max(options["starts"])

    def repeated(measure: str, start: float) -> np.ndarray:
        rows = table[(table["measure"] == measure) & (table["input"] == "repeat") & np.isclose(table["start"], start)]
        return rows.groupby("network")["value"].mean().to_numpy()

    def claim(name: str, figure: str, statement: str, statistic: str, values: np.ndarray, threshold: float) -> Claim:
        ci = statistics.bootstrap_mean(values, seed)
        return Claim(
            claim=f"recurrent_sequence.{name}",
            figure=figure,
            statement=statement,
            statistic=f"{statistic}; mean of {networks} networks, bootstrap",
            value=float(values.mean()),
            ci_low=ci[0],
            ci_high=ci[1],
            p_value=math.nan,
            paper_value=math.nan,
            verdict=exceeds(threshold, ci),
        )

    found = [
        claim(
            "little_similarity",
            "A3",
            "Even CCA finds little similarity between the states at different positions of a text.",
            f"PWCCA distance to the last position over the first {half}, as a share of that of unrelated Gaussian "
            f"layers (over {LITTLE:g})",
            little,
            LITTLE,
        ),
        claim(
            "until_late",
            "A3",
            "Similarity comes only late in the sequence.",
            f"PWCCA distance over the first {half} positions minus that of the position before the last",
            falls,
            0.0,
        ),
        claim(
            "early_repeats",
            "A4",
            "Repeated inputs give linearly similar states early in a sequence and less so late.",
            f"PWCCA distance to the last repeat, starting after {late_start:.0%} minus after {early_start:.0%} of the "
            "sequence",
            repeated("pwcca", late_start) - repeated("pwcca", early_start),
            0.0,
        ),
    ]
    raw = [measure for measure in ("cosine", "euclidean") if measure in options["measures"]]
    if raw:
        changes = {
            measure: np.abs(1 - repeated(measure, early_start) / repeated(measure, late_start)) for measure in raw
        }
        largest = max(changes, key=lambda measure: changes[measure].mean())
        intervals = [statistics.bootstrap_mean(values, seed) for values in changes.values()]
        ci = statistics.bootstrap_mean(changes[largest], seed)
        found.append(
            Claim(
                claim="recurrent_sequence.raw_insensitive",
                figure="A4",
                statement="Cosine and Euclidean distance do not tell early repeats from late ones.",
                statistic=f"relative difference between starts after {early_start:.0%} and {late_start:.0%} under "
                f"{largest}, the larger of {' and '.join(raw)} (below {MISSED:g}); mean of {networks} networks, "
                "bootstrap",
                value=float(changes[largest].mean()),
                ci_low=ci[0],
                ci_high=ci[1],
                p_value=math.nan,
                paper_value=math.nan,
                verdict=all_of([below(MISSED, interval) for interval in intervals]),
            )
        )
    return found


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: dict):
    """Above: text, a line a layer (A3). Below: repeats in the last layer, a line a start (A4). A column a measure."""
    from cca_dynamics import figures

    measures = options["measures"]
    figure, axes = figures.panels(2, len(measures), height=2.4)
    last = table["layer_index"].max()
    layers = list(table.sort_values("layer_index")["layer"].unique())
    starts = sorted(options["starts"])
    for column, measure in enumerate(measures):
        above, beneath = axes[column], axes[len(measures) + column]
        mine = table[table["measure"] == measure]
        for layer, style in zip(layers, figures.sequential(len(layers)), strict=True):
            rows = mine[(mine["input"] == "text") & (mine["layer"] == layer)]
            wide = rows.pivot_table(index="network", columns="position", values="value")
            figures.mean_and_std(above, wide.columns, wide.to_numpy(), *style, f"layer {layer.removeprefix('lstm')}")
        repeats = mine[(mine["input"] == "repeat") & (mine["layer_index"] == last)]
        for start, style in zip([*starts, NONE], [*figures.sequential(len(starts)), (figures.GREY, "X")], strict=True):
            wide = repeats[np.isclose(repeats["start"], start)].pivot_table(
                index="network", columns="position", values="value"
            )
            label = "no repeat" if start == NONE else f"after {start:.0%}"
            figures.mean_and_std(beneath, wide.columns, wide.to_numpy(), *style, label)
        if measure == "pwcca":
            floor = mine[mine["input"] == "text"]["floor"].mean()
            for axis in (above, beneath):
                axis.axhline(floor, color=figures.GREY, linewidth=0.8, linestyle=":")
                axis.annotate(
                    "unrelated",
                    (0, floor),
                    xytext=(2, 2),
                    textcoords="offset points",
                    color=figures.GREY,
                    fontsize=6.5,
                    va="bottom",
                )
        for axis, what in ((above, "text"), (beneath, f"repeats, layer {last + 1}")):
            top = 1.1 * max(float(mine["value"].max()), float(mine["floor"].max()) if measure == "pwcca" else 0)
            axis.set(ylabel=f"{figures.MEASURES[measure]} distance", ylim=(0, top))
            axis.set_title(what, loc="center")
            axis.xaxis.get_major_locator().set_params(integer=True)
        beneath.set_xlabel("Position in the sequence")
    for axis, place in ((axes[0], "upper"), (axes[len(measures)], "lower")):
        handles, labels = axis.get_legend_handles_labels()
        figure.legend(handles, labels, loc=f"outside {place} center", ncols=len(labels))
    figures.letters(*axes)
    return figure
