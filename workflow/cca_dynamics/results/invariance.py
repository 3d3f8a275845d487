"""Beyond the paper: which changes of a representation each similarity measure ignores, and which it sees.

The data are simulated. A representation is Gaussian, its variance falls along its principal axes by a power law, and
these are turned against the neurons at random. It is compared with a changed copy of itself, by rising strength of the
change; of two further changes both representations are drawn anew. What a measure ignores follows from its definition
(Kornblith et al. 2019); the others have been held against CCA or CKA: subsets of data points that move (Davari et al.
2022), few data points (Murphy et al. 2024, Gröger et al. 2026), and few of the neurons (Kang et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from cca_dynamics.config.base import MANY, Integer, Number
from cca_dynamics.config.cohorts import Cohort
from cca_dynamics.config.models import (
    MEASURES_DESCRIPTION,
    PWCCA_DESCRIPTION,
    Measures,
    Pwcca,
    ResultOptions,
    StageOptions,
    StudyConfig,
    option,
)
from cca_dynamics.errors import ConfigError
from cca_dynamics.results import figures
from cca_dynamics.results.claims import (
    Claim,
    Obstacle,
    all_of,
    below,
    equivalence_claim,
    estimate_claim,
    exceeds,
    too_few,
)
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.statistics import Estimate
from cca_dynamics.results.tables import distance_rows, measures_of, select, tidy

KEY = "results.invariance"
DUPLICATED = 0.2
"""Share of the neurons that are repeated in the copy."""
REVERSE = "reverse distance"
"""Quantity of the distances from the copy to the representation, of measures that are not symmetric."""


class Options(ResultOptions):
    """The keys of results.invariance."""

    neurons: Integer = option(50, "compute", "claims", ge=10, le=1000, description="Neurons of a representation.")
    points: Integer = option(1000, "compute", "claims", ge=20, le=MANY, description="Data points.")
    draws: Integer = option(10, "compute", "claims", ge=2, le=1000, description="Random draws of everything.")
    decay: Number = option(
        1.0, "compute", ge=0, le=4, description="Variance of principal axis i falls as i to minus this power."
    )
    moved: Number = option(
        0.05, "compute", "claims", "plot", gt=0, le=0.5, description="Share of the data points that move."
    )
    margin: Number = option(
        0.05, "claims", gt=0, le=0.5, description="A change that moves the distance by less than this is ignored."
    )
    dissimilar: Number = option(
        0.5, "claims", gt=0, lt=1, description="Similarity (1 minus distance) below which representations are unlike."
    )
    measures: Measures = option(
        ("pwcca", "svcca", "mean_cca", "linear_cka", "linear_cka_debiased", "procrustes", "cosine"),
        *("compute", "claims", "plot"),
        description=MEASURES_DESCRIPTION,
    )
    pwcca: Pwcca = option("pwcca", "compute", "plot", description=PWCCA_DESCRIPTION)


def check(config: StudyConfig, options: Options) -> None:
    """Refuse fewer data points than CCA needs once noise neurons are added, and a subset of less than one point."""
    ranks = 2 * round(options.neurons * (1 + max(CHANGES["noise"].strengths) / 100))
    if options.points <= ranks + 1:
        raise ConfigError(
            f"{KEY}.points", f"with noise neurons added, CCA needs more than {ranks + 1}; raise it or lower neurons"
        )
    if options.moved * options.points < 1:
        raise ConfigError(f"{KEY}.moved", f"less than one of {options.points} data points would move; raise it")


def obstacles(config: StudyConfig, options: Options) -> list[Obstacle]:
    """Settings under which claims could never be reproduced."""
    return too_few(f"{KEY}.draws", options.draws, "draws")


def cohorts(config: StudyConfig, options: Options) -> list[Cohort]:
    """No network is trained."""
    return []


def comparisons(options: StageOptions) -> list[tuple[int, int, int]]:
    """(how often, data points, neurons) of the comparisons that `compute` makes."""
    times = options.draws * len(options.measures)
    fixed = sum(len(change.strengths) for name, change in CHANGES.items() if name != "unrelated")
    ratios = CHANGES["unrelated"].strengths
    return [
        (times * fixed, options.points, options.neurons),
        *((times, _points_at(ratio, options.neurons), options.neurons) for ratio in ratios),
    ]


# What is compared. Each change yields, by rising strength, the strength and two representations (n, p) and (n, q).


Pairs = Iterator[tuple[float, np.ndarray, np.ndarray]]


def representation(points: int, options: StageOptions, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian representation (points, neurons) of which neurons vary by 1 on average; see the option `decay`."""
    variances = np.arange(1, options.neurons + 1) ** -float(options.decay)
    axes, _ = np.linalg.qr(rng.normal(size=(options.neurons, options.neurons)))
    return rng.normal(size=(points, options.neurons)) * np.sqrt(variances / variances.mean()) @ axes.T


def rotated(options: StageOptions, rng: np.random.Generator) -> Pairs:
    """Neurons are mixed by a rotation through an angle (degrees) in each of neurons / 2 random orthogonal planes."""
    x = representation(options.points, options, rng)
    quarter = _quarter_turn(options.neurons, rng)
    for degrees in CHANGES["rotation"].strengths:
        angle = np.deg2rad(degrees)  # the matrix exponential of angle · quarter
        rotation = np.eye(options.neurons) + np.sin(angle) * quarter + (1 - np.cos(angle)) * quarter @ quarter
        yield degrees, x, x @ rotation


def _quarter_turn(neurons: int, rng: np.random.Generator) -> np.ndarray:
    """A skew matrix that turns random planes by 90 degrees and maps the direction left of an odd number to 0."""
    axes, _ = np.linalg.qr(rng.normal(size=(neurons, neurons)))
    first, second = axes[:, : neurons // 2], axes[:, neurons // 2 : 2 * (neurons // 2)]
    return first @ second.T - second @ first.T


def scaled(options: StageOptions, rng: np.random.Generator) -> Pairs:
    """Neuron j is multiplied by exp(s z_j), z_j standard normal; s is the strength."""
    x = representation(options.points, options, rng)
    exponents = rng.normal(size=options.neurons)
    for spread in CHANGES["scaling"].strengths:
        yield spread, x, x * np.exp(spread * exponents)


def mixed(options: StageOptions, rng: np.random.Generator) -> Pairs:
    """Neurons are mixed by a matrix that shrinks random directions; its condition number is the strength."""
    x = representation(options.points, options, rng)
    directions, _ = np.linalg.qr(rng.normal(size=(options.neurons, options.neurons)))
    for condition in CHANGES["mixing"].strengths:
        yield condition, x, x @ (directions * np.geomspace(1, 1 / condition, options.neurons)) @ directions.T


def with_noise(options: StageOptions, rng: np.random.Generator) -> Pairs:
    """Noise neurons of variance 1, a number in per cent of the neurons, are appended to each representation anew."""
    x = representation(options.points, options, rng)
    strengths = CHANGES["noise"].strengths
    noise = rng.normal(size=(2, options.points, round(options.neurons * max(strengths) / 100)))
    for percent in strengths:
        count = round(options.neurons * percent / 100)
        yield percent, *(np.hstack([x, of_one[:, :count]]) for of_one in noise)


def duplicated(options: StageOptions, rng: np.random.Generator) -> Pairs:
    """A share `DUPLICATED` of the neurons stands in the copy as often as the strength says."""
    x = representation(options.points, options, rng)
    repeated = x[:, : round(DUPLICATED * options.neurons)]
    for times in CHANGES["duplicates"].strengths:
        yield times, x, np.hstack([x, *[repeated] * (int(times) - 1)])


def moved(options: StageOptions, rng: np.random.Generator) -> Pairs:
    """A share of the data points is moved in one direction, by a multiple of the root mean square size of a point."""
    x = representation(options.points, options, rng)
    direction = rng.normal(size=options.neurons)
    direction *= np.linalg.norm(x) / options.points**0.5 / np.linalg.norm(direction)
    subset = np.arange(options.points) < round(options.moved * options.points)
    for distance in CHANGES["moved"].strengths:
        yield distance, x, x + distance * np.outer(subset, direction)


def unrelated(options: StageOptions, rng: np.random.Generator) -> Pairs:
    """Two independent representations; the strength is the number of data points per neuron."""
    for ratio in CHANGES["unrelated"].strengths:
        points = _points_at(ratio, options.neurons)
        yield ratio, representation(points, options, rng), representation(points, options, rng)


def _points_at(ratio: float, neurons: int) -> int:
    return round(ratio * neurons)


def sampled(options: StageOptions, rng: np.random.Generator) -> Pairs:
    """Some neurons, in per cent, of two networks that hold one signal through random maps, each neuron with noise.

    Signal and noise have the same variance on average.
    """
    signal = representation(options.points, options, rng)
    maps = rng.normal(size=(2, options.neurons, options.neurons)) / options.neurons**0.5
    networks = signal @ maps + rng.normal(size=(2, options.points, options.neurons))
    for percent in CHANGES["sampled"].strengths:
        count = round(options.neurons * percent / 100)  # the first ones, because neurons are drawn independently
        yield percent, *networks[:, :, :count]


class Change(NamedTuple):
    """One panel: how representations are changed.

    Attributes:
        pairs: (options, rng) → pairs of representations by rising strength.
        strengths: of the change.
        title: of the panel.
        label: of the strength, with its unit.
        logarithmic: whether strengths are drawn on a logarithmic scale.
    """

    pairs: Callable[[StageOptions, np.random.Generator], Pairs]
    strengths: tuple[float, ...]
    title: str
    label: str
    logarithmic: bool = False


CHANGES = {
    "rotation": Change(rotated, (0, 30, 60, 90), "Neurons rotated", "Angle (degrees)"),
    "scaling": Change(scaled, (0, 0.5, 1, 1.5, 2), "Neurons scaled", "Spread of log factors (sd)"),
    "mixing": Change(mixed, (1, 10, 100, 1000), "Neurons mixed", "Condition number of the matrix", True),
    "noise": Change(with_noise, (0, 20, 50, 100, 150, 200), "Noise neurons added", "Noise neurons (%)"),
    "duplicates": Change(duplicated, (1, 2, 3, 4, 6, 8), "Neurons duplicated", "Copies of 20 % of neurons"),
    "moved": Change(moved, (0, 1, 2, 3, 5, 10), "Data points moved", "Distance (sizes of a point)"),
    "unrelated": Change(unrelated, (2.2, 3, 5, 10, 20, 40), "Unrelated data", "Data points per neuron", True),
    "sampled": Change(sampled, (10, 20, 40, 60, 80, 100), "Few neurons sampled", "Sampled neurons (%)"),
}
"""Name of a change in tables and claims → the change, in the order of the panels."""


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """Distances under all changes, of all draws.

    Returns:
        Tidy rows: change (a key of `CHANGES`), strength, draw, measure, quantity, value, rank_a, rank_b, n, floor. The
        quantity is "distance", from the representation to the copy; under "moved" there is also `REVERSE`, of measures
        that are not symmetric.
        Measures that compare neuron by neuron have no rows where numbers of neurons differ.
    """
    from cca_dynamics.similarity.threads import Workers

    draws = [(draw, inputs.device, options) for draw in range(options.draws)]
    with Workers(inputs.device, options.draws * options.points * options.neurons) as workers:
        tables = workers.run(_rows_of_draw, draws)
    return tidy([pd.DataFrame(rows) for rows in tables])


def _rows_of_draw(draw: int, device: str, options: StageOptions) -> list[dict[str, object]]:
    """The rows of one draw, see `compute`."""
    from cca_dynamics.similarity import MEASURES, factorize

    measures = measures_of(options)
    one_sided = {name: measure for name, measure in measures.items() if not MEASURES[measure].symmetric}
    any_width = {name: measure for name, measure in measures.items() if not MEASURES[measure].neuron_by_neuron}
    rows = []
    for name, change in CHANGES.items():
        rng = np.random.default_rng([options.seed, draw, *name.encode()])
        for strength, x, y in change.pairs(options, rng):
            comparable = measures if x.shape == y.shape else any_width
            x, y = (factorize(layer, device=device) for layer in (x, y))
            columns = {"change": name, "strength": float(strength), "draw": draw}
            rows += distance_rows(x, y, comparable, **columns)
            if name == "moved":
                rows += [{**row, "quantity": REVERSE} for row in distance_rows(y, x, one_sided, **columns)]
    return rows


# Claims.


NAMES = {
    "pwcca": "PWCCA",
    "mean_cca": "mean CCA",
    "svcca": "SVCCA",
    "linear_cka": "linear CKA",
    "linear_cka_debiased": "debiased linear CKA",
    "procrustes": "Procrustes distance",
}
AFFINE = ("pwcca", "mean_cca")
"""Measures that ignore every invertible linear map of neurons by their definition; SVCCA does not, as it drops weak
directions.
"""
ORTHOGONAL = ("linear_cka", "procrustes")
"""Measures that ignore rotations of neurons, but not every invertible linear map."""
BY_DEFINITION = "ours, after Kornblith et al. 2019, section 2"


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """What measures ignore and see by their definitions, and what critics hold against them."""
    draws = Draws(table, options)
    result = draws.ignored("rotation", "Rotating neurons", (*AFFINE, "svcca", *ORTHOGONAL))
    for change, words in (
        ("mixing", "Mixing neurons by an invertible matrix"),
        ("scaling", "Scaling each neuron by a factor"),
        ("duplicates", "Duplicating neurons"),
    ):
        result += draws.ignored(change, words, AFFINE) + draws.seen(change, words, ORTHOGONAL)
    return [*result, *_moved_claims(draws, options), *_unrelated_claims(draws, options), *_sampled_claims(draws)]


class Draws:
    """The distances of a table, of which each draw gives one.

    Args:
        table: as `compute` returns it.
        options: of the stage `claims`.
    """

    def __init__(self, table: pd.DataFrame, options: StageOptions):
        keys = ["quantity", "change", "measure", "strength"]
        self._by_draw = table.pivot_table(index="draw", columns=keys, values="value")
        self._floors = table.groupby(keys[1:])["floor"].mean()
        self.measures, self.margin = options.measures, options.margin
        self.size = f"n = {options.draws} draws"
        self.sizes = f"{self.size} of {options.points} data points and {options.neurons} neurons"

    def floor(self, change: str, measure: str, strength: float) -> float:
        """Mean distance expected of unrelated representations of these sizes; nan where no law is known."""
        return float(self._floors[change, measure, float(strength)])

    def distance(self, change: str, measure: str, strength: float, quantity: str = "distance") -> Estimate:
        """Mean distance over draws."""
        return Estimate.of_mean(self._by_draw[quantity, change, measure, float(strength)])

    def ignored(
        self,
        change: str,
        words: str,
        measures: tuple[str, ...],
        quantity: str = "distance",
        suffix: str = "ignored",
        source: str = BY_DEFINITION,
    ) -> list[Claim]:
        """The claim that measures ignore a change, whatever its strength; none if the study computes none of them.

        Args:
            change: a key of `CHANGES`.
            words: what is done, as the subject of a sentence.
            measures: that ignore it.
            quantity: of the table.
            suffix: of the claim's name.
            source: of the claim.
        """
        if not (measures := self._computed(measures)):
            return []
        strengths = CHANGES[change].strengths
        distances = {(m, s): self.distance(change, m, s, quantity) for m in measures for s in strengths}
        largest, strength = max(distances, key=lambda key: distances[key].value)
        by_copy = " with the weights of the copy" if quantity == REVERSE else ""
        return [
            equivalence_claim(
                self.margin,
                list(distances.values()),
                claim=f"invariance.{change}_{suffix}",
                figure="none",
                source=source,
                statement=f"{words} does not change {_listed(measures)}{by_copy}.",
                statistic=f"largest mean distance (ignored: within ±{self.margin:g}), of {NAMES[largest]} at "
                f"{_strength(change, strength)}; {self.sizes}, two t tests at each strength",
            )
        ]

    def seen(self, change: str, words: str, measures: tuple[str, ...]) -> list[Claim]:
        """The claim that all of some measures see a change at its full strength; arguments as of `ignored`."""
        if not (measures := self._computed(measures)):
            return []
        strength = CHANGES[change].strengths[-1]
        distances = {measure: self.distance(change, measure, strength) for measure in measures}
        smallest = min(distances, key=lambda measure: distances[measure].value)
        p_values = {measure: distance.p_at_most(self.margin) for measure, distance in distances.items()}
        return [
            Claim(
                claim=f"invariance.{change}_seen",
                figure="none",
                source=BY_DEFINITION,
                statement=f"{words} changes {_listed(measures)}.",
                statistic=f"smallest mean distance at {_strength(change, strength)} (seen: over {self.margin:g}), of "
                f"{NAMES[smallest]}; {self.sizes}, t test of each measure",
                value=distances[smallest].value,
                interval=distances[smallest].interval(),
                p_value=max(p_values.values()),
                verdict=all_of([exceeds(self.margin, distances[m].interval(), p_values[m]) for m in measures]),
            )
        ]

    def _computed(self, measures: tuple[str, ...]) -> list[str]:
        return [measure for measure in measures if measure in self.measures]


def _listed(measures: list[str]) -> str:
    """The names of measures as a sentence lists them."""
    *first, last = [NAMES[measure] for measure in measures]
    return f"{', '.join(first)} and {last}" if first else last


def _strength(change: str, strength: float) -> str:
    """A strength as a sentence names it."""
    label = CHANGES[change].label
    return f"{label[0].lower()}{label[1:]} = {strength:g}"


def _moved_claims(draws: Draws, options: StageOptions) -> list[Claim]:
    """A subset of the data points moves: linear CKA calls the copy dissimilar, and PWCCA may ignore it."""
    words, source = f"Moving {100 * options.moved:g} % of the data points", "ours, after Davari et al. 2022, theorem 1"
    farthest, result = CHANGES["moved"].strengths[-1], []
    if "linear_cka" in options.measures:
        similarity = draws.distance("moved", "linear_cka", farthest).map(lambda distance: 1 - distance)
        result.append(
            Claim(
                claim="invariance.moved_linear_cka",
                figure="none",
                source=source,
                statement=f"{words} in one direction makes linear CKA call a representation and its copy dissimilar, "
                "though every linear read-out at right angles to that direction stays as it is.",
                statistic=f"linear CKA (dissimilar: below {options.dissimilar:g}) at "
                f"{_strength('moved', farthest)}; {draws.sizes}, t test",
                value=similarity.value,
                interval=similarity.interval(),
                p_value=similarity.map(np.negative).p_at_most(-options.dissimilar),
                verdict=below(options.dissimilar, similarity.interval()),
            )
        )
    return [
        *result,
        *draws.ignored("moved", words, ("pwcca",), suffix="pwcca", source=source),
        *draws.ignored("moved", words, ("pwcca",), REVERSE, "pwcca_reverse", source),
    ]


def _unrelated_claims(draws: Draws, options: StageOptions) -> list[Claim]:
    """Unrelated representations look similar where data points are few, but not to debiased CKA."""
    ratios, result = CHANGES["unrelated"].strengths, []
    sources = {"pwcca": "Gröger et al. 2026", "linear_cka": "Murphy et al. 2024 and Gröger et al. 2026"}
    for measure in (measure for measure in sources if measure in options.measures):
        similarity = draws.distance("unrelated", measure, ratios[0]).map(lambda distance: 1 - distance)
        result.append(
            estimate_claim(
                options.margin,
                similarity,
                claim=f"invariance.unrelated_{measure}",
                figure="none",
                source=f"ours, after {sources[measure]}",
                statement=f"Unrelated representations look similar to {NAMES[measure]} where data points are few.",
                statistic=f"1 minus mean distance at {ratios[0]:g} data points per neuron (over {options.margin:g}); "
                f"{draws.size}, t test",
            )
        )
    if "linear_cka_debiased" in options.measures:
        distances = [draws.distance("unrelated", "linear_cka_debiased", ratio) for ratio in ratios]
        result.append(
            equivalence_claim(
                options.margin,
                [distance.map(lambda distance: 1 - distance) for distance in distances],
                claim="invariance.unrelated_linear_cka_debiased",
                figure="none",
                source="ours, after Murphy et al. 2024",
                statement="Unrelated representations look unrelated to debiased linear CKA, however few data points "
                "there are.",
                statistic=f"largest of 1 minus mean distance at {ratios[0]:g} to {ratios[-1]:g} data points per neuron "
                f"(none: within ±{options.margin:g}); {draws.size}, two t tests at each number",
            )
        )
    return result


def _sampled_claims(draws: Draws) -> list[Claim]:
    """Networks look less similar where few of their neurons are sampled."""
    few, *_, every = CHANGES["sampled"].strengths
    result = []
    for measure in (m for m in (*AFFINE, "linear_cka", "linear_cka_debiased") if m in draws.measures):
        excess = draws.distance("sampled", measure, few) - draws.distance("sampled", measure, every)
        chance = draws.floor("sampled", measure, few) - draws.floor("sampled", measure, every)
        of_unrelated = "" if np.isnan(chance) else f", of unrelated representations {chance:.2f}"
        name = NAMES[measure]
        result.append(
            estimate_claim(
                draws.margin,
                excess,
                no_effect=-draws.margin,
                p_opposite=excess.map(np.negative).p_at_most(draws.margin),
                claim=f"invariance.sampled_{measure}",
                figure="none",
                source="ours, after Kang et al. 2025",
                statement=f"{name[0].upper()}{name[1:]} underestimates the similarity of two networks of which few "
                "neurons are sampled.",
                statistic=f"mean distance at {few:g} % of the neurons minus at all of them (over {draws.margin:g}"
                f"{of_unrelated}); {draws.sizes}, t test",
            )
        )
    return result


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """Distance against the strength of a change, one panel per change, one line per measure; mean ± std over draws.

    Equal distances hide each other, so markers of later measures are smaller.
    """
    figure, axes = figures.panels(2, len(CHANGES) // 2, height=2.0)
    styles = dict(zip(options.measures, _styles(options.measures), strict=True))
    for axis, (name, change) in zip(axes, CHANGES.items(), strict=True):
        rows = select(table, change=name)
        for measure, style in styles.items():
            _draw(axis, select(rows, measure=measure, quantity="distance"), figures.measure_label(measure), style)
        if name == "moved":
            reverse = styles["pwcca"] | {"markerfacecolor": "white", "linestyle": ":", "zorder": 3}
            _draw(axis, select(rows, measure="pwcca", quantity=REVERSE), "PWCCA, weights of the copy", reverse)
        title = f"{100 * options.moved:g} % of points moved" if name == "moved" else change.title
        axis.set_title(title, fontsize=7)
        axis.set_xlabel(change.label, fontsize=7)
        top = max(1.08, 1.05 * float(rows["value"].max()))
        axis.set_ylim(-0.05, top)
        if top < 1.4:
            axis.set_yticks(np.linspace(0, 1, 6))
        if change.logarithmic:
            axis.set_xscale("log")
        if change.logarithmic or len(change.strengths) < 6:
            axis.set_xticks(change.strengths, [f"{strength:g}" for strength in change.strengths])
            axis.minorticks_off()
    for axis in axes[:: len(CHANGES) // 2]:
        axis.set_ylabel("Distance")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=min(len(handles), 4))
    figures.letters(*axes)
    return figure


DASHES = ("-", "--", "-.")


def _styles(measures: tuple[str, ...]) -> list[dict[str, object]]:
    """How the line of each measure looks: as in all figures, with markers that show beneath those drawn later."""
    styles = figures.measure_styles(measures).values()
    sizes = np.linspace(7.5, 2.5, len(measures))
    return [
        {"color": colour, "marker": marker, "markersize": size, "linestyle": DASHES[index % len(DASHES)]}
        for index, ((colour, marker), size) in enumerate(zip(styles, sizes, strict=True))
    ]


def _draw(axis, rows: pd.DataFrame, label: str, style: dict[str, object]) -> None:
    """A line at the mean over draws with bars of one standard deviation; nothing of no rows."""
    if len(rows):
        spread = rows.groupby("strength")["value"].agg(["mean", "std"])
        x = spread.index.to_numpy(float)
        axis.errorbar(x, spread["mean"], yerr=spread["std"], label=label, elinewidth=0.8, linewidth=1.1, **style)
