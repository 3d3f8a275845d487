"""Figures A3 and A4: how the state of a recurrent network changes along a sequence.

Protocol (Morcos et al. 2018, appendix A.3). A3: the states at all positions equal to j modulo 20 are one
representation O_j; its distance to O_19. A4: one input is repeated 20 times, after some share of a sequence; the state
at each repeat against the last. The paper leaves open how long a sequence is and how many there are; here each of many
sequences of held-out text is one data point, and even the earliest repetition follows `FEWEST_TOKENS` tokens, so that
sequences differ before it.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field

from cca_dynamics.config.base import MANY, Integer, Number, each_once
from cca_dynamics.config.cohorts import Cohort, HeldOutRequest, RepeatsRequest, tokens_before
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
from cca_dynamics.errors import ConfigError, UserError
from cca_dynamics.results import figures, language_models, statistics
from cca_dynamics.results.claims import MISSED, SHARES, Claim, Obstacle, mean_claim, missed_claims, provided, too_few
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.layers import require_data_points
from cca_dynamics.results.statistics import Estimate
from cca_dynamics.results.tables import CONTROLS, distance_rows, measures_of, select, tidy

KEY = "results.recurrent_sequence"
NONE = -1.0
"""The start of the repetition in sequences that have none."""
FEWEST_TOKENS = 20
"""Tokens before the earliest repetition (ours): after a single character of context few states are different."""
LITTLE = 0.5
"""Share of the distance of unrelated representations from which there is "little similarity" (ours)."""


class Options(ResultOptions):
    """The keys of results.recurrent_sequence."""

    positions: Integer = option(
        20, "activations", "compute", "claims", ge=4, le=1000, description="Steps of a sequence that are compared."
    )
    sequences: Integer = option(
        1000, "activations", ge=20, le=MANY, description="Sequences; the data points of a comparison."
    )
    length: Integer = option(
        2000, "activations", ge=4, le=MANY, description="Tokens of a sequence, in which an input is repeated."
    )
    starts: Annotated[tuple[Annotated[Number, Field(gt=0, lt=1)], ...], AfterValidator(each_once)] = option(
        (0.01, 0.08, 0.24, 0.48, 0.81),
        *("activations", "claims", "plot"),
        min_length=2,
        description="Shares of a sequence after which the repetition starts.",
    )
    measures: Measures = option(
        ("pwcca", "cosine", "euclidean"), "compute", "claims", "plot", description=MEASURES_DESCRIPTION
    )
    pwcca: Pwcca = option("pwcca", "compute", "plot", description=PWCCA_DESCRIPTION)


ALTERNATIVES = {"pwcca": ("pwcca_squared", "pwcca_thresholded"), "length": (5000,)}
"""Other values that the paper's words allow, the default of multiverse.recurrent_sequence."""


def check(config: StudyConfig, options: Options) -> None:
    """Refuse fewer sequences than CCA needs, and sequences shorter than what is compared."""
    require_data_points(f"{KEY}.sequences", options.sequences, "sequences", config.language_model.sizes)
    if options.length <= options.positions:
        raise ConfigError(f"{KEY}.length", f"sequences of {options.length} have no {options.positions} positions")
    earliest = min(options.starts)
    if (tokens := tokens_before(earliest, options.length)) < FEWEST_TOKENS:
        raise ConfigError(
            f"{KEY}.length",
            f"only {tokens} tokens come before the earliest start, {earliest:g} of a sequence, too few for sequences "
            f"to differ; give {math.ceil(FEWEST_TOKENS / earliest)} or more, or begin later",
        )


def obstacles(config: StudyConfig, options: Options) -> list[Obstacle]:
    """Settings under which claims could never be reproduced."""
    return too_few("language_model.networks", config.language_model.networks, "networks")


def cohorts(config: StudyConfig, options: Options) -> list[Cohort]:
    """The shallow language models."""
    positions = options.positions
    text = HeldOutRequest(
        epochs="final",
        split="sequence",
        layers="all",
        points=positions * options.sequences,
        positions=positions,
        context=FEWEST_TOKENS,
    )
    repeats = RepeatsRequest(
        epochs="final",
        layers="all",
        sequences=options.sequences,
        length=options.length,
        starts=options.starts,
        repeats=positions,
    )
    return [language_models.shallow(config, text, repeats)]


def compute(inputs: Inputs, options: StageOptions) -> pd.DataFrame:
    """Distances of the state at each position to that at the last.

    Returns:
        Tidy rows, quantity "distance": network, layer, layer_index, input ("text": A3, or "repeat": A4), start (share
        of the sequence before the repetition; -1: none), position, measure, value, rank_a, rank_b, n, floor.

    Raises:
        UserError: sequences have equal states, so that the comparison has fewer data points than it seems.
    """
    from cca_dynamics.similarity import factorize

    cohort, tables = language_models.SHALLOW, []
    step = inputs.checkpoints(cohort, "sequence")[-1][0]
    for kind, split in (("text", "sequence"), ("repeat", "repeats")):
        for name in inputs.layers(cohort, step, split):
            layer, _, start = name.partition("@")
            rows = []
            for network in range(len(inputs.trained(cohort))):

                def states_at(position: int, what: tuple = (name, step, network, split)) -> np.ndarray:
                    """(sequences, units); one position is in memory at a time."""
                    rows_of_position = slice(position, None, options.positions)
                    return inputs.representation(cohort, *what, rows=rows_of_position)

                _require_distinct(states_at(0), network, name)
                last = factorize(states_at(options.positions - 1), device=inputs.device)
                for position in range(options.positions - 1):
                    factors = factorize(states_at(position), device=inputs.device)
                    rows += distance_rows(factors, last, measures_of(options), network=network, position=position)
            columns = {"layer": layer, "layer_index": int(layer.removeprefix("lstm")) - 1, "input": kind}
            columns["start"] = float(start) if start not in ("", "none") else NONE
            tables.append(pd.DataFrame(rows).assign(**columns))
    return tidy(tables)


def _require_distinct(states: np.ndarray, network: int, layer: str) -> None:
    """Refuse states (sequences, units) of which some are equal: each should be a data point of its own."""
    if (distinct := len(np.unique(states, axis=0))) < len(states):
        raise UserError(
            f"network {network} has {distinct} different states of {layer} in {len(states)} sequences; make "
            f"{KEY}.length larger, so that more of the sequences is read before an input is repeated"
        )


def claims(table: pd.DataFrame, options: StageOptions) -> list[Claim]:
    """The claims of figures A3 and A4, averaged over layers, each with one value per network."""
    networks, half = table["network"].nunique(), options.positions // 2
    early, late = min(options.starts), max(options.starts)
    text = select(table, measure="pwcca", input="text")
    first = text[text["position"] < half].groupby("network")
    before_last = select(text, position=options.positions - 2).groupby("network")["value"].mean()

    def repeated(measure: str, start: float) -> np.ndarray:
        """Mean distance of each network to the last repeat."""
        rows = select(table, measure=measure, input="repeat")
        return rows[np.isclose(rows["start"], start)].groupby("network")["value"].mean().to_numpy()

    def claim(
        name: str, figure: str, statement: str, statistic: str, values: np.ndarray, threshold: float = 0.0, **fields
    ) -> Claim:
        return mean_claim(
            threshold,
            values,
            claim=f"recurrent_sequence.{name}",
            figure=figure,
            source="appendix A.3",
            statement=statement,
            statistic=f"{statistic}; mean of {networks} networks, Student's interval",
            **fields,
        )

    by_start = np.column_stack([repeated("pwcca", start) for start in sorted(options.starts)])
    result = [
        claim(
            "little_similarity",
            "A3",
            "Even CCA finds little similarity between the states at different positions of a text.",
            f"PWCCA distance to the last position over the first {half}, as a share of that of unrelated Gaussian "
            f"layers (over {LITTLE:g})",
            (first["value"].mean() / first["floor"].mean()).to_numpy(),
            LITTLE,
        ),
        claim(
            "until_late",
            "A3",
            "Similarity comes only late in the sequence.",
            f"PWCCA distance over the first {half} positions minus that of the position before the last",
            (first["value"].mean() - before_last).to_numpy(),
        ),
        claim(
            "early_repeats",
            "A4",
            "Repeated inputs give linearly similar states early in a sequence and less so late.",
            f"PWCCA distance to the last repeat, starting after {late:.0%} minus after {early:.0%} of the sequence",
            by_start[:, -1] - by_start[:, 0],
        ),
        claim(
            "later_is_farther",
            "A4",
            "The later in a sequence an input is repeated, the less similar are the states.",
            f"share of the pairs of starts of which the later one has the larger PWCCA distance (over 0.5), of "
            f"{len(options.starts)} starts, Jonckheere's test",
            statistics.ordered_pairs(by_start),
            0.5,
            no_effect=0.5,
            limits=SHARES,
            p_value=statistics.matched_jonckheere_p(by_start, options.seed),
            p_opposite=statistics.matched_jonckheere_p(-by_start, options.seed),
        ),
    ]
    missed = missed_claims(
        {
            measure: Estimate.of_mean(repeated(measure, late) / repeated(measure, early) - 1)
            for measure in CONTROLS
            if measure in options.measures
        },
        claim="recurrent_sequence.insensitive",
        figure="A4",
        source="appendix A.3",
        statement="that late repeats differ more than early ones.",
        effect=f"distance after {late:.0%} over that after {early:.0%} of the sequence, minus 1,",
        details=f" (within ±{MISSED:g}); mean of {networks} networks, Student's interval",
    )
    early_repeats = next(found for found in result if found.claim.endswith(".early_repeats"))
    return [*result, *provided(early_repeats, missed)[1:]]


def plot(table: pd.DataFrame, claims: pd.DataFrame, options: StageOptions):
    """One column per measure: above text, one line per layer (A3); below repeats, one line per start (A4)."""
    measures, starts = options.measures, sorted(options.starts)
    figure, axes = figures.panels(2, len(measures), height=2.4)
    last = table["layer_index"].max()
    layers = list(table.sort_values("layer_index")["layer"].unique())
    styles = {start: style for start, style in zip(starts, figures.sequential(len(starts)), strict=True)}
    for measure, above, beneath in zip(measures, axes, axes[len(measures) :], strict=False):
        rows = select(table, measure=measure)
        for layer, style in zip(layers, figures.sequential(len(layers)), strict=True):
            label = f"layer {layer.removeprefix('lstm')}"
            figures.network_curves(above, select(rows, input="text", layer=layer), "position", *style, label)
        repeats = select(rows, input="repeat", layer_index=last)
        coincide = "\nall starts coincide" if _coincide(repeats) else ""
        for start, style in {**styles, NONE: (figures.GREY, "X")}.items():
            label = "no repeat" if start == NONE else f"after {start:.0%}"
            figures.network_curves(beneath, repeats[np.isclose(repeats["start"], start)], "position", *style, label)
        top = float(rows["value"].max())
        if measure == "pwcca":
            top = max(top, float(rows["floor"].max()))
            floor = select(rows, input="text")["floor"].mean()
            for axis in (above, beneath):
                axis.axhline(floor, label=UNRELATED, **figures.FLOOR)
        for axis, title in ((above, "text"), (beneath, f"repeats, layer {last + 1}{coincide}")):
            axis.set(ylabel=f"{figures.measure_label(measure)} distance", ylim=(0, 1.1 * top))
            axis.set_title(title, loc="center")
            axis.xaxis.get_major_locator().set_params(integer=True)
        beneath.set_xlabel("Position in the sequence")
    of_text, of_repeats = (figures.handles_of(*panels) for panels in (axes[: len(measures)], axes[len(measures) :]))
    of_repeats.pop(UNRELATED, None)  # it says so above
    figures.legend_in_rows(figure, {"text:": None, **of_text}, {"repeats:": None, **of_repeats})
    figures.letters(*axes)
    return figure


UNRELATED = "unrelated (Gaussian)"
"""What the legend calls the distance expected of unrelated layers."""
COINCIDE = 0.03
"""Curves coincide that are nowhere farther apart than this share of the largest distance in their panel."""


def _coincide(repeats: pd.DataFrame) -> bool:
    """Whether the mean curves of all starts of repeats look like one.

    Args:
        repeats: rows of one measure and one layer, among them those without repeats.
    """
    means = repeats.pivot_table(index="start", columns="position", values="value")
    of_starts = means[~np.isclose(means.index, NONE)]
    apart = (of_starts.max() - of_starts.min()).max()
    return len(of_starts) > 1 and bool(apart < COINCIDE * means.max(axis=None))
