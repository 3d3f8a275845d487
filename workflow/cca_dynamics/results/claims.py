"""The paper's statements, tested. A verdict is computed from an interval and a p value; nobody writes one by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isnan, nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cca_dynamics.errors import DamagedFile
from cca_dynamics.results import statistics
from cca_dynamics.results.statistics import Estimate
from cca_dynamics.runtime.storage import replacing

ALPHA = 0.05
FITTED = 0.99
"""Train accuracy from which a network counts as having fitted its labels."""
MISSED = 0.1
"""A control measure misses an effect if it sees less than this, as a share of the distance it starts from (ours)."""

REPRODUCED = "reproduced"
REVERSED = "reversed"
NOT_REPRODUCED = "not reproduced"
INCONCLUSIVE = "inconclusive"
NOT_TESTABLE = "not testable"
VERDICTS = (REPRODUCED, REVERSED, NOT_REPRODUCED, INCONCLUSIVE, NOT_TESTABLE)


Interval = tuple[float, float]
UNKNOWN: Interval = (nan, nan)
EVERYTHING: Interval = (-inf, inf)
SHARES: Interval = (0.0, 1.0)


class Obstacle(NamedTuple):
    """A setting under which claims could never be reproduced, whatever the data.

    Attributes:
        key: of the config.
        problem: what it prevents, and the remedy.
    """

    key: str
    problem: str


def too_few(key: str, count: int, what: str, smallest_p: Callable[[int], float] = lambda count: 0.0) -> list[Obstacle]:
    """The obstacle that a setting is too small for an interval or for a test; none if it is large enough.

    Args:
        key: of the config.
        count: its value.
        what: it counts, in the plural.
        smallest_p: the smallest p value of the test of so many.
    """

    def suffice(count: int) -> bool:
        return count >= statistics.FEWEST and smallest_p(count) < ALPHA

    if suffice(count):
        return []
    least = next(more for more in range(count, count + 100) if suffice(more))
    lack = f"no p below {p:.2g}" if (p := smallest_p(count)) >= ALPHA else "no interval"
    return [Obstacle(key, f"{count} {what} give {lack}, so claims about them are not testable; give {least} or more")]


@dataclass(frozen=True)
class Claim:
    """One statement of the paper and what this study says of it.

    A claim that no data could reproduce, because networks or levels are too few for its interval or its test, or whose
    precondition does not hold, is not testable, and its statistic says why.

    Attributes:
        claim: short name, unique in the study, e.g. "generalization.later_layers".
        figure: figure of the paper, e.g. "3".
        statement: the paper's statement in one sentence, in terms of this study.
        statistic: what `value` is, with n and the test.
        value: the estimate.
        verdict: one of `VERDICTS`.
        interval: of the estimate (95 %; 90 % for equivalence, which matches a 5 % test); nan where there is none.
        p_value: nan where the statement is judged by its interval alone.
        paper_value: the paper's own value of the same quantity (CIFAR-10, Penn Treebank), nan where it gives none.
        paper_error: of that value, because it is read off a figure; nan where the paper prints it.
        source: where it is said, e.g. "section 3.1"; with "article" if the popular article says it, too.
        estimated: whether it is judged by its interval.
        obstacle: why it cannot be tested; found by itself where the interval or the p value shows it.
    """

    claim: str
    figure: str
    statement: str
    statistic: str
    value: float
    verdict: str
    interval: Interval = UNKNOWN
    p_value: float = nan
    paper_value: float = nan
    paper_error: float = nan
    source: str = ""
    estimated: bool = True
    obstacle: str = ""

    def __post_init__(self) -> None:
        """Give the verdict "not testable" where there is an obstacle."""
        obstacle = self.obstacle or self._obstacle()
        if obstacle and self.verdict != NOT_TESTABLE:
            object.__setattr__(self, "verdict", NOT_TESTABLE)
            object.__setattr__(self, "statistic", f"{self.statistic}; not testable: {obstacle}")

    def _obstacle(self) -> str:
        if self.estimated and not isnan(self.value) and any(map(isnan, self.interval)):
            return f"fewer than {statistics.FEWEST} networks give no interval"
        smallest = getattr(self.p_value, "smallest", 0.0)
        return f"its p cannot be below {smallest:.2g}" if smallest >= ALPHA else ""

    @classmethod
    def exceeding(
        cls,
        threshold: float,
        *,
        interval: Interval,
        p_value: float = nan,
        no_effect: float = 0.0,
        p_opposite: float = nan,
        **fields: object,
    ) -> Claim:
        """The claim that a value exceeds a threshold, judged by its interval and p value; see `exceeds`.

        Args:
            threshold: in the unit of the value.
            interval: of the value.
            p_value: of a test of the same statement; nan if there is none.
            no_effect: the value below which the effect is the opposite one.
            p_opposite: of a test of the opposite effect; nan if there is none.
            fields: the other attributes.
        """
        verdict = exceeds(threshold, interval, p_value, no_effect, p_opposite)
        return cls(verdict=verdict, interval=interval, p_value=p_value, **fields)

    def row(self) -> tuple:
        """The values of `COLUMNS`."""
        words = (self.claim, self.figure, self.statement, self.statistic)
        numbers = map(float, (self.value, *self.interval, self.p_value, self.paper_value))
        return (*words, *numbers, self.verdict, float(self.paper_error), self.source)


COLUMNS = [
    "claim",
    "figure",
    "statement",
    "statistic",
    "value",
    "ci_low",
    "ci_high",
    "p_value",
    "paper_value",
    "verdict",
    "paper_error",
    "source",
]
"""Columns of a table of claims."""
NUMBERS = ("value", "ci_low", "ci_high", "p_value", "paper_value", "paper_error")
"""Those that hold numbers; a cell may be empty."""


def exceeds(
    threshold: float, interval: Interval, p_value: float = nan, no_effect: float = 0.0, p_opposite: float = nan
) -> str:
    """Verdict on "the value exceeds a threshold".

    Reproduced: the whole interval does and, if there is a test, p < 0.05. Reversed: the whole interval lies below the
    value of no effect and, if there is a test of the opposite, its p < 0.05. Not reproduced: it lies at or below the
    threshold. Inconclusive otherwise.
    """
    low, high = interval
    if low > threshold and (isnan(p_value) or p_value < ALPHA):
        return REPRODUCED
    if high < min(no_effect, threshold) and (isnan(p_opposite) or p_opposite < ALPHA):
        return REVERSED
    return NOT_REPRODUCED if high <= threshold else INCONCLUSIVE


def equivalent(margin: float, intervals: Sequence[Interval], wider: Sequence[Interval] | None = None) -> str:
    """Verdict on "these differences are all about zero", from their 90 % intervals (TOST at 5 %).

    Reproduced: every interval lies within ±margin. Not reproduced: one lies wholly outside. Inconclusive otherwise.

    Args:
        margin: difference that still counts as none.
        intervals: of each difference.
        wider: intervals that say whether one of several differences lies outside, at a level that makes up for their
            number; default: the same.
    """
    if all(-margin < low and high < margin for low, high in intervals):
        return REPRODUCED
    if any(low >= margin or high <= -margin for low, high in (intervals if wider is None else wider)):
        return NOT_REPRODUCED
    return INCONCLUSIVE


def below(threshold: float, interval: Interval) -> str:
    """Verdict on "the value is below a threshold", by the whole interval, as `exceeds`."""
    low, high = interval
    if high < threshold:
        return REPRODUCED
    return NOT_REPRODUCED if low >= threshold else INCONCLUSIVE


def all_of(verdicts: Sequence[str]) -> str:
    """Verdict on a statement with several parts: reproduced or reversed if all are, not reproduced if one is not."""
    for unanimous in (REPRODUCED, REVERSED):
        if all(verdict == unanimous for verdict in verdicts):
            return unanimous
    if NOT_TESTABLE in verdicts:
        return NOT_TESTABLE
    return NOT_REPRODUCED if {NOT_REPRODUCED, REVERSED} & {*verdicts} else INCONCLUSIVE


def provided(precondition: Claim, claims: Sequence[Claim]) -> list[Claim]:
    """A precondition and the claims that rest on it, which are not testable unless it is reproduced."""
    if precondition.verdict == REPRODUCED:
        return [precondition, *claims]
    obstacle = f"{precondition.claim} is {precondition.verdict}"
    return [precondition, *(replace(claim, obstacle=claim.obstacle or obstacle) for claim in claims)]


def mean_claim(
    threshold: float,
    values: np.ndarray,
    *,
    p_value: float | None = None,
    no_effect: float = 0.0,
    limits: Interval = EVERYTHING,
    p_opposite: float = nan,
    **fields: object,
) -> Claim:
    """The claim that the mean over networks exceeds a threshold, with Student's interval.

    Args:
        threshold: in the unit of the values.
        values: (N,), one per network.
        p_value: of a test of the same statement; default: the one-sided t test that belongs to the interval.
        no_effect: the mean below which the effect is the opposite one.
        limits: between which the mean lies by its definition, as (0, 1) for shares; the interval ends there.
        p_opposite: of a test of the opposite effect; nan if there is none.
        fields: the other attributes of `Claim`.
    """
    how = {"p_value": p_value, "no_effect": no_effect, "limits": limits, "p_opposite": p_opposite}
    return estimate_claim(threshold, Estimate.of_mean(values), **how, **fields)


def estimate_claim(
    threshold: float,
    estimate: Estimate,
    *,
    p_value: float | None = None,
    no_effect: float = 0.0,
    limits: Interval = EVERYTHING,
    p_opposite: float = nan,
    **fields: object,
) -> Claim:
    """The claim that an estimate exceeds a threshold; arguments as of `mean_claim`."""
    p_value = estimate.p_at_most(threshold) if p_value is None else p_value
    interval = tuple(float(end) for end in np.clip(estimate.interval(), *limits))
    how = {"interval": interval, "p_value": p_value, "no_effect": no_effect, "p_opposite": p_opposite}
    return Claim.exceeding(threshold, value=estimate.value, **how, **fields)


def equivalence_claim(margin: float, differences: Sequence[Estimate], **fields: object) -> Claim:
    """The claim that several differences are all about zero; value and interval are those of the largest one.

    Args:
        margin: difference that still counts as none.
        differences: what is about zero.
        fields: claim, figure, statement, statistic and others, as in `Claim`.

    Returns:
        A claim whose p value is the largest of two one-sided tests of each difference. All have to pass, so the number
        of differences calls for no correction there; that one of them lies outside is judged at 5 %
        over all (Bonferroni).
    """
    intervals, wider = (
        [difference.interval(1 - 2 * alpha) for difference in differences]
        for alpha in (ALPHA, ALPHA / len(differences))
    )
    largest = max(range(len(differences)), key=lambda index: abs(differences[index].value))
    return Claim(
        value=differences[largest].value,
        interval=intervals[largest],
        p_value=max(difference.p_outside(margin) for difference in differences),
        verdict=equivalent(margin, intervals, wider),
        **fields,
    )


def fitted_claim(accuracies: np.ndarray, **texts: str) -> Claim:
    """The precondition of a comparison, that every network fits its labels, judged by the worst network.

    Args:
        accuracies: (N,) train accuracy of each network, from 0 to 1.
        texts: claim, figure, statement and statistic, as in `Claim`.
    """
    worst = float(accuracies.min())
    verdict = REPRODUCED if worst >= FITTED else NOT_REPRODUCED
    return Claim(value=worst, paper_value=1.0, verdict=verdict, estimated=False, **texts)


def missed_claims(
    effects: Mapping[str, Estimate], *, claim: str, statement: str, effect: str, details: str, **fields: object
) -> list[Claim]:
    """The claims that control measures do not see an effect, one for each of them.

    They rest on the claim that PWCCA sees the effect, see `provided`: where there is none, nothing is missed.

    Reproduced: the whole interval lies within ±`MISSED`. Reversed: the control sees the opposite effect, with the whole
    interval below -`MISSED`. Not reproduced: the control sees the effect, too. Inconclusive otherwise.

    Args:
        effects: control measure → the effect that it sees, as a share of the distance it starts from.
        claim: name of the claims, to which "_" and the measure are added.
        statement: what the control misses, after the words "... distance does not reveal".
        effect: what the share is; the statistic begins with it.
        details: of the comparison; the statistic ends with them.
        fields: the other attributes of `Claim`.
    """
    return [
        Claim(
            claim=f"{claim}_{measure}",
            statement=f"{measure.capitalize()} distance does not reveal {statement}",
            statistic=f"{effect} under {measure}{details}"
            + ("; it sees the opposite" if _missed(estimate.interval()) == REVERSED else ""),
            value=estimate.value,
            interval=estimate.interval(),
            verdict=_missed(estimate.interval()),
            **fields,
        )
        for measure, estimate in effects.items()
    ]


def _missed(interval: Interval) -> str:
    low, high = interval
    if low >= MISSED:
        return NOT_REPRODUCED
    if high <= -MISSED:
        return REVERSED
    return REPRODUCED if low > -MISSED and high < MISSED else INCONCLUSIVE


def write(claims: Sequence[Claim], path: Path) -> None:
    """Write claims to a CSV file with the columns `COLUMNS`."""
    with replacing(path) as temporary:
        pd.DataFrame([claim.row() for claim in claims], columns=COLUMNS).to_csv(
            temporary, index=False, float_format="%.6g"
        )


def read(path: Path) -> pd.DataFrame:
    """Read a claims file; text columns are str, numbers float.

    Raises:
        DamagedFile: it cannot be read, or is not a table of claims.
    """
    text = ["claim", "figure", "statement", "statistic", "verdict", "source"]
    try:
        table = pd.read_csv(path, dtype={column: str for column in text})
        if list(table.columns) == COLUMNS[: COLUMNS.index("paper_error")]:  # of a version before these were written
            table = table.assign(paper_error=nan, source="")
        if list(table.columns) != COLUMNS:
            raise ValueError("it is not a table of claims")
        return checked_cells(table.fillna(dict.fromkeys(("figure", "statement", "statistic", "source"), "")))
    except (OSError, ValueError) as problem:
        raise DamagedFile(path, problem) from None


def checked_cells(table: pd.DataFrame, *, by: Sequence[str] = ()) -> pd.DataFrame:
    """A table of verdicts that was read from a CSV file, with its numbers as float.

    Args:
        table: has at least the columns claim, verdict and some of `NUMBERS`.
        by: columns that tell rows of one claim apart; none: each claim has one row.

    Raises:
        ValueError: a row has more cells than the header, a claim has no name or two rows, a verdict is not known, or a
            number is none; it names the line and the column.
    """

    def refuse(rows: pd.Series, column: str, problem: str) -> None:
        if rows.any():
            row = int(rows.to_numpy().argmax())
            raise ValueError(f"line {row + 2}, column {column}: {problem.format(table[column].iloc[row])}")

    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first cells for names of the rows
        raise ValueError("its rows have more cells than its header; quote cells with a comma")
    refuse(table["claim"].isna(), "claim", "the claim has no name")
    refuse(~table["verdict"].isin(VERDICTS), "verdict", "{!r} is no verdict")
    refuse(table.duplicated(["claim", *by]), "claim", "{} is there twice")
    numbers = [column for column in NUMBERS if column in table]
    for column in numbers:
        number = pd.to_numeric(table[column], errors="coerce") if table[column].dtype != bool else nan
        refuse(table[column].notna() & pd.isna(number), column, "{!r} is no number")
    return table.astype(dict.fromkeys(numbers, float))


def merge(paths: Sequence[Path], out: Path) -> None:
    """Concatenate the claims of several results in the order given."""
    with replacing(out) as temporary:
        pd.concat([read(path) for path in paths], ignore_index=True).to_csv(temporary, index=False, float_format="%.6g")
