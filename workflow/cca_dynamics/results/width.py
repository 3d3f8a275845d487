"""Figures 4, A6 and A7: wider networks converge to more similar solutions.

Protocol (Morcos et al. 2018, section 3.2). Every layer of the network is scaled by a multiplier; within the group of
networks of each width, distances between all pairs at the final convolutional layer, on the same number of random
filters at every width. The same networks before training are the control for initialisation.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from cca_dynamics import statistics
from cca_dynamics.architectures import widened
from cca_dynamics.claims import MISSED, Claim, all_of, below, exceeds
from cca_dynamics.results.inputs import Inputs, final_performance
from cca_dynamics.results.tables import distance_matrix, distance_table, tidy
from cca_dynamics.study import Cohort, ConfigError, Study

KEY = "results.width"
PUBLISHED_CORRELATION = -0.96
PUBLISHED = pd.DataFrame({"state": ["trained", "trained", "untrained", "untrained"], "value": [0.47, 0.28, 0.67, 0.63]})
"""Distances of the narrowest and of the widest networks in the paper (CIFAR-10, multipliers .25 to 7)."""


def check(study: Study) -> None:
    """Refuse more filters than the narrowest network has."""
    options = study.options("width")
    for multiplier in options["multipliers"]:
        network = widened({**study.network("width"), "multiplier": multiplier})
        filters = study.require_layer(f"{KEY}.layer", options["layer"], network)
        if filters is None:
            raise ConfigError(f"{KEY}.layer", "softmax does not grow with width; choose a convolutional layer")
        if options["filters"] > filters:
            raise ConfigError(
                f"{KEY}.filters",
                f"{options['filters']} filters are more than the {filters} of {options['layer']} at multiplier "
                f"{multiplier:g}; use {filters} or fewer, or drop that multiplier",
            )


def cohorts(study: Study) -> list[Cohort]:
    """One cohort a width, stored before and after training."""
    options = study.options("width")
    return [
        Cohort(
            name=f"width-{multiplier:g}",
            networks=options["networks"],
            network=widened({**study.network("width"), "multiplier": multiplier}),
            training=study.training("width"),
            checkpoints=(0,),
            activations=({"epochs": "all", "splits": ["train"], "layers": [options["layer"]]},),
        )
        for multiplier in sorted(options["multipliers"])
    ]


def compute(inputs: Inputs, options: dict) -> pd.DataFrame:
    """Distances within each width, before and after training, and how well each network does.

    Returns:
        Tidy rows. quantity "distance": multiplier, filters (neurons of the layer), state ("trained", "untrained"),
        measure, network_a, network_b, value, rank_a, rank_b, n, floor. quantity "loss", "train_accuracy",
        "test_accuracy": multiplier, network, value.
    """
    tables = []
    for multiplier in sorted(options["multipliers"]):
        cohort = f"width-{multiplier:g}"
        steps = [step for step, _ in inputs.checkpoints(cohort)]
        for state, step in (("untrained", steps[0]), ("trained", steps[-1])):
            networks = inputs.representations(cohort, options["layer"], step)
            filters = networks.shape[2]
            chosen = [_filters(options, multiplier, network, filters) for network in inputs.members(cohort)]
            subsets = [network[:, columns] for network, columns in zip(networks, chosen, strict=True)]
            rows = distance_table(subsets, options["measures"], inputs.device, inputs.store)
            tables.append(rows.assign(multiplier=multiplier, filters=filters, state=state))
        tables.append(final_performance(inputs, cohort, multiplier=multiplier, filters=filters))
    return tidy(tables)


def _filters(options: dict, multiplier: float, network: int, available: int) -> np.ndarray:
    """The random filters of one network; the same before and after training."""
    rng = np.random.default_rng([options["seed"], round(multiplier * 1e6), network])
    return np.sort(rng.choice(available, size=options["filters"], replace=False))


def claims(table: pd.DataFrame, options: dict) -> list[Claim]:
    """The claims of figures 4, A6 and A7."""
    seed, multipliers = options["seed"], sorted(options["multipliers"])
    every_measure = table[table["quantity"] == "distance"]
    distance = every_measure[every_measure["measure"] == "pwcca"]
    accuracy = table[table["quantity"] == "test_accuracy"]
    means: dict[str, list[float]] = {"trained": [], "untrained": [], "accuracy": []}
    samples: dict[str, list[np.ndarray]] = {"trained": [], "untrained": [], "accuracy": []}
    for index, multiplier in enumerate(multipliers):
        here = distance[distance["multiplier"] == multiplier]
        test = accuracy[accuracy["multiplier"] == multiplier].sort_values("network")["value"].to_numpy()
        weights = statistics.bootstrap_weights([multiplier] * len(test), seed + index)
        for state in ("trained", "untrained"):
            matrix = distance_matrix(here[here["state"] == state])
            means[state].append(float(statistics.mean_within(matrix, np.ones(len(test)))))
            samples[state].append(statistics.mean_within(matrix, weights))
        means["accuracy"].append(float(test.mean()))
        samples["accuracy"].append(weights @ test / weights.sum(axis=1))
    trained, untrained, test = (np.array(means[key]) for key in ("trained", "untrained", "accuracy"))
    drawn = {key: np.stack(values, axis=1) for key, values in samples.items()}
    groups = f"{len(multipliers)} widths, n = {options['networks']} networks each"

    def fall(distances: np.ndarray) -> np.ndarray:
        """Share of the narrowest networks' distance that the widest have lost."""
        return 1 - distances[..., -1] / distances[..., 0]

    ranks = np.arange(len(multipliers))
    trend = spearman(ranks, trained)
    trend_ci = statistics.interval(spearman(ranks, drawn["trained"]))
    trend_p = statistics.order_p(trained, lambda values: -spearman(ranks, values), seed)
    r = pearson(test, trained)
    r_ci = statistics.interval(pearson(drawn["accuracy"], drawn["trained"]))
    r_p = statistics.order_p(trained, lambda values: -pearson(test, values), seed)
    extra = fall(trained) - fall(untrained)
    extra_ci = statistics.interval(fall(drawn["trained"]) - fall(drawn["untrained"]))
    published = PUBLISHED.groupby("state", sort=False)["value"].apply(lambda ends: 1 - ends.iloc[1] / ends.iloc[0])
    return [
        Claim(
            claim="width.trend",
            figure="4",
            statement="Wider networks converge to more similar solutions.",
            statistic=f"Spearman correlation of width and mean distance; {groups}, permutation of widths, "
            "bootstrap of networks",
            value=float(trend),
            ci_low=trend_ci[0],
            ci_high=trend_ci[1],
            p_value=trend_p,
            paper_value=math.nan,
            verdict=exceeds(0, (-trend_ci[1], -trend_ci[0]), trend_p),
        ),
        Claim(
            claim="width.accuracy",
            figure="4",
            statement="The closer a group's networks are to each other, the better they generalize.",
            statistic=f"Pearson correlation of test accuracy and distance over widths; {groups}, permutation of "
            "widths, bootstrap of networks",
            value=float(r),
            ci_low=r_ci[0],
            ci_high=r_ci[1],
            p_value=r_p,
            paper_value=PUBLISHED_CORRELATION,
            verdict=exceeds(0, (-r_ci[1], -r_ci[0]), r_p),
        ),
        Claim(
            claim="width.not_initialisation",
            figure="A7",
            statement="Training, not initialisation, brings wide networks together.",
            statistic=f"relative fall of distance from narrowest to widest, trained minus untrained; {groups}, "
            "bootstrap of networks",
            value=float(extra),
            ci_low=extra_ci[0],
            ci_high=extra_ci[1],
            p_value=math.nan,
            paper_value=float(published["trained"] - published["untrained"]),
            verdict=exceeds(0, extra_ci),
        ),
        *_raw_miss_it(every_measure, options, groups, float(fall(trained))),
    ]


def _raw_miss_it(rows: pd.DataFrame, options: dict, groups: str, seen: float) -> list[Claim]:
    """Do cosine and Euclidean distance miss that wider networks are closer?"""
    raw = [measure for measure in ("cosine", "euclidean") if measure in options["measures"]]
    if not raw:
        return []
    trained = rows[rows["state"] == "trained"]
    ends = min(options["multipliers"]), max(options["multipliers"])
    values, samples = {}, {}
    for measure in raw:
        matrices = [
            distance_matrix(trained[(trained["measure"] == measure) & (trained["multiplier"] == end)]) for end in ends
        ]
        ones = [np.ones(len(matrix)) for matrix in matrices]
        draws = [statistics.bootstrap_weights(["a"] * len(m), options["seed"] + i) for i, m in enumerate(matrices)]
        for found, weights in ((values, ones), (samples, draws)):
            narrow, wide = (statistics.mean_within(m, w) for m, w in zip(matrices, weights, strict=True))
            found[measure] = 1 - wide / narrow
    largest = max(values, key=values.get)
    low, high = statistics.interval(samples[largest])
    return [
        Claim(
            claim="width.raw_miss_it",
            figure="A6",
            statement="Cosine and Euclidean distance do not reveal that wider networks are more similar.",
            statistic=f"relative fall of distance from narrowest to widest under {largest}, the larger of "
            f"{' and '.join(raw)} (below {MISSED:g}; PWCCA sees {seen:.2f}); {groups}, bootstrap of networks",
            value=float(values[largest]),
            ci_low=low,
            ci_high=high,
            p_value=math.nan,
            paper_value=math.nan,
            verdict=all_of([below(MISSED, statistics.interval(sample)) for sample in samples.values()]),
        )
    ]


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation over the last axis, batched; 0 where a side is constant, nan where a value is."""
    x, y = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
    x, y = (values - values.mean(axis=-1, keepdims=True) for values in (x, y))
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return np.divide((x * y).sum(axis=-1), norms, out=np.zeros_like(norms), where=norms != 0)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rank correlation over the last axis, batched."""
    from scipy.stats import rankdata

    return pearson(rankdata(x, axis=-1), rankdata(y, axis=-1))


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: dict):
    """Distance over width, trained and untrained (figures 4a, A7), test accuracy against it (4b), controls (A6)."""
    from cca_dynamics import figures

    raw = [measure for measure in options["measures"] if measure != "pwcca"]
    figure, axes = figures.panels(1 + math.ceil(len(raw) / 2), 2, height=2.6)
    left, right, *controls = axes
    distance = table[(table["quantity"] == "distance") & (table["measure"] == "pwcca")]
    for state, colour, marker in (("trained", figures.BLUE, "o"), ("untrained", figures.GREY, "D")):
        rows = distance[distance["state"] == state].groupby("filters")["value"].agg(["mean", "std"])
        figures.line_with_bars(left, rows.index, rows["mean"], rows["std"], colour, marker, state)
        ends = PUBLISHED[PUBLISHED["state"] == state]["value"].to_numpy()
        left.scatter(
            [rows.index.min(), rows.index.max()],
            ends,
            s=24,
            facecolors="none",
            edgecolors=colour,
            marker=marker,
            linewidths=0.8,
            label=f"{state}, paper (CIFAR-10)",
        )
    floor = distance.groupby("filters")["floor"].mean()
    left.plot(floor.index, floor, color=figures.GREY, linewidth=0.8, linestyle=":", label="unrelated (Gaussian)")
    left.set_xscale("log", base=2)
    widths = sorted(distance["filters"].unique())
    left.set_xticks(widths, [f"{width:g}" for width in widths])
    left.minorticks_off()
    left.set(xlabel=f"Filters in {options['layer']}", ylabel="PWCCA distance")
    left.legend(loc="upper left", ncols=2)
    figures.headroom(left, 0.4)

    trained = distance[distance["state"] == "trained"].groupby("filters")["value"].agg(["mean", "std"])
    test = table[table["quantity"] == "test_accuracy"].groupby("filters")["value"].agg(["mean", "std"])
    for (colour, marker), filters in zip(figures.sequential(len(trained)), trained.index, strict=True):
        right.errorbar(
            trained.loc[filters, "mean"],
            100 * test.loc[filters, "mean"],
            xerr=trained.loc[filters, "std"],
            yerr=100 * test.loc[filters, "std"],
            fmt=marker,
            color=colour,
            capsize=2,
            label=f"{filters:g} filters",
        )
    row = claims.set_index("claim").loc["width.accuracy"]
    right.text(
        0.97,
        0.97,
        f"r = {row['value']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]\n"
        f"paper (CIFAR-10): r = {row['paper_value']:.2f}",
        transform=right.transAxes,
        ha="right",
        va="top",
    )
    right.set(xlabel="PWCCA distance", ylabel="Test accuracy (%)")
    right.legend(loc="lower left")
    for axis, measure in zip(controls, raw, strict=False):
        rows = table[(table["quantity"] == "distance") & (table["measure"] == measure)]
        for state, colour, marker in (("trained", figures.BLUE, "o"), ("untrained", figures.GREY, "D")):
            spread = rows[rows["state"] == state].groupby("filters")["value"].agg(["mean", "std"])
            figures.line_with_bars(axis, spread.index, spread["mean"], spread["std"], colour, marker, state)
        axis.set_xscale("log", base=2)
        axis.set_xticks(widths, [f"{width:g}" for width in widths])
        axis.minorticks_off()
        axis.set(xlabel=f"Filters in {options['layer']}", ylabel=f"{figures.MEASURES[measure]} distance")
        axis.set_ylim(0, 1.25 * float(rows["value"].max()))
        axis.legend(loc="upper left", ncols=2)
    for axis in controls[len(raw) :]:
        axis.set_visible(False)
    figures.letters(left, right, *controls[: len(raw)])
    return figure
