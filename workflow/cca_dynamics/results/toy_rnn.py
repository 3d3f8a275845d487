"""Figure A2: CCA sees that the states of a rotating recurrent network are one representation; raw distances do not.

Protocol (Morcos et al. 2018, A.3). Recurrent networks h' = W_rot h (linear) and h' = W_rot h + α σ(W_rand h) + b
(blended), W_rot a random rotation, W_rand standard normal, σ the sigmoid, run without input from random starts; the
states at every step are compared with those at the last. Unstated, so ours: neurons, starts (standard normal), and b
(standard normal).
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from cca_dynamics import statistics
from cca_dynamics.claims import ALPHA, Claim, equivalent, exceeds
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.tables import tidy
from cca_dynamics.study import Cohort, ConfigError, Study

KEY = "results.toy_rnn"
RAW = ("cosine", "euclidean")


def check(study: Study) -> None:
    """Refuse fewer random starts than CCA needs."""
    options = study.options("toy_rnn")
    if options["starts"] <= 2 * options["neurons"] + 1:
        raise ConfigError(
            f"{KEY}.starts", f"CCA of {options['neurons']} neurons needs more than {2 * options['neurons'] + 1} starts"
        )


def cohorts(study: Study) -> list[Cohort]:
    """No network is trained."""
    return []


def comparisons(options: dict) -> list[tuple[int, int, int]]:
    """(how often, data points, neurons) of the comparisons that `compute` makes."""
    kinds = (1 + len(options["alphas"])) * len(options["measures"])
    return [
        (options["networks"] * kinds * (options["steps"] // options["every"]), options["starts"], options["neurons"])
    ]


def compute(inputs: Inputs, options: dict) -> pd.DataFrame:
    """Distances of the states at every `every` steps to those at the last step.

    Returns:
        Tidy rows: network (a random draw of weights), alpha (0 for the linear network), step, measure, quantity
        "distance", value, rank_a, rank_b, n, floor (nan where the measure has none).
    """
    from cca_dynamics.similarity import MEASURES, factorize, null_floor

    rows = []
    for network in range(options["networks"]):
        for alpha in [0, *options["alphas"]]:
            rng = np.random.default_rng([options["seed"], network])
            factors = {
                step: factorize(states, device=inputs.device)
                for step, states in trajectory(alpha, options, rng)
                if step % options["every"] == 0 or step == options["steps"]
            }
            last = factors[options["steps"]]
            for step, states in factors.items():
                for measure in options["measures"]:
                    result = MEASURES[measure](states, last)
                    rows.append(
                        {
                            "network": network,
                            "alpha": float(alpha),
                            "step": step,
                            "measure": measure,
                            "quantity": "distance",
                            "value": result.distance,
                            "rank_a": result.rank_x,
                            "rank_b": result.rank_y,
                            "n": result.n,
                            "floor": null_floor(result.rank_x, result.rank_y, result.n, measure),
                        }
                    )
    return tidy([pd.DataFrame(rows)])


def trajectory(alpha: float, options: dict, rng: np.random.Generator):
    """(step, states (starts, neurons)) from 0 to `steps` of one random network."""
    neurons = options["neurons"]
    q, r = np.linalg.qr(rng.normal(size=(neurons, neurons)))
    rotation = q * np.sign(np.diag(r))  # uniform over orthogonal matrices (Mezzadri 2007) ...
    rotation[:, 0] *= np.linalg.det(rotation)  # ... without reflections
    mixing, bias = rng.normal(size=(neurons, neurons)), rng.normal(size=neurons)
    states = rng.normal(size=(options["starts"], neurons))
    yield 0, states
    for step in range(1, options["steps"] + 1):
        drive = alpha / (1 + np.exp(-np.clip(states @ mixing.T, -500, 500))) + bias if alpha else 0.0
        states = states @ rotation.T + drive
        yield step, states


def claims(table: pd.DataFrame, options: dict) -> list[Claim]:
    """The claims of figure A2, for the linear network and for the blended one at its worst α."""
    before = table[table["step"] < options["steps"]]
    margin, seed = options["margin"], options["seed"]
    raw = [measure for measure in options["measures"] if measure in RAW]
    found = []
    for name, title, alphas in (
        ("linear", "a linear recurrent network", [0.0]),
        ("blended", "a blended linear and non-linear recurrent network", [float(alpha) for alpha in options["alphas"]]),
    ):
        rows = before[before["alpha"].isin(alphas)]
        by_alpha = rows.pivot_table(index=["measure", "alpha"], columns="network", values="value")
        worst = by_alpha.loc["pwcca"].mean(axis=1).idxmax()
        distances = by_alpha.loc[("pwcca", worst)].to_numpy()
        interval = statistics.bootstrap_mean(distances, seed, 1 - 2 * ALPHA)
        at = "" if name == "linear" else f" at α = {worst:g}, the worst of {', '.join(f'{a:g}' for a in alphas)}"
        found.append(
            Claim(
                claim=f"toy_rnn.{name}_cca",
                figure="A2",
                statement=f"CCA recognizes all states of {title} as one representation.",
                statistic=f"PWCCA distance to the last step{at}, mean over steps (below {margin:g}); "
                f"n = {options['networks']} networks, two one-sided tests",
                value=float(distances.mean()),
                ci_low=interval[0],
                ci_high=interval[1],
                p_value=math.nan,
                paper_value=0.0,
                verdict=equivalent(margin, [interval]),
            )
        )
        if raw:
            gaps = {
                (measure, alpha): by_alpha.loc[(measure, alpha)] - by_alpha.loc[("pwcca", alpha)]
                for measure in raw
                for alpha in alphas
            }
            least = min(gaps, key=lambda key: gaps[key].mean())
            gap = gaps[least].to_numpy()
            interval = statistics.bootstrap_mean(gap, seed + 1)
            p = statistics.sign_test(gap - margin)
            at = "" if name == "linear" else f" at α = {least[1]:g}"
            found.append(
                Claim(
                    claim=f"toy_rnn.{name}_raw",
                    figure="A2",
                    statement=f"Cosine and Euclidean distance fail to recognize that, in {title}.",
                    statistic=f"{least[0]} minus PWCCA distance{at}, the smallest such gap, mean over steps "
                    f"(over {margin:g}); n = {options['networks']} networks, sign test",
                    value=float(gap.mean()),
                    ci_low=interval[0],
                    ci_high=interval[1],
                    p_value=p,
                    paper_value=math.nan,
                    verdict=exceeds(margin, interval, p),
                )
            )
    return found


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: dict):
    """One panel a measure, one curve per α over steps; bands are one standard deviation over networks."""
    from cca_dynamics import figures

    figure, axes = figures.panels(1, len(options["measures"]), height=2.4)
    alphas = sorted(table["alpha"].unique())
    styles = [figures.SERIES[3], *figures.sequential(len(alphas) - 1)]
    for axis, measure in zip(axes, options["measures"], strict=True):
        rows = table[table["measure"] == measure]
        for style, alpha in zip(styles, alphas, strict=True):
            values = rows[rows["alpha"] == alpha].pivot_table(index="network", columns="step", values="value")
            label = f"blended, α = {alpha:g}" if alpha else "linear"
            figures.mean_and_std(axis, values.columns, values.to_numpy(), *style, label)
        floor = rows.groupby("step")["floor"].mean()
        if floor.notna().all():
            axis.plot(
                floor.index, floor, color=figures.GREY, linewidth=0.8, linestyle=":", label="unrelated (Gaussian)"
            )
        axis.set(xlabel="Step", ylabel=f"{figures.MEASURES[measure]} distance")
        axis.set_ylim(-0.03, max(1.03, 1.1 * float(rows["value"].max())))
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes), key=lambda pair: len(pair[0]))
    figure.legend(handles, labels, loc="outside upper center", ncols=len(handles))
    figures.letters(*axes)
    return figure
