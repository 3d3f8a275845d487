"""The paper's statements, tested. A verdict is computed from an interval and a p value; nobody writes one by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cca_dynamics.errors import DamagedFile
from cca_dynamics.results import statistics
from cca_dynamics.runtime.storage import replacing

ALPHA = 0.05
FITTED = 0.99
"""Train accuracy from which a network counts as having fitted its labels."""
MISSED = 0.1
"""A control measure misses an effect if it sees less than this, as a share of the distance it starts from (ours)."""

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
INCONCLUSIVE = "inconclusive"
NOT_TESTABLE = "not testable"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_TESTABLE)


Interval = tuple[float, float]
UNKNOWN: Interval = (nan, nan)
Estimate = tuple[float, np.ndarray]
"""A value and its bootstrap samples (B,)."""


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

    A claim that no data could reproduce, because networks or levels are too few for its interval or its test, is not
    testable, and its statistic says why.

    Attributes:
        claim: short name, unique in the study, e.g. "generalization.later_layers".
        figure: figure of the paper, e.g. "3".
        statement: the paper's statement in one sentence, in terms of this study.
        statistic: what `value` is, with n and the test.
        value: the estimate.
        verdict: reproduced, not reproduced, inconclusive or not testable.
        interval: of the estimate (95 %; 90 % for equivalence, which matches a 5 % test); nan where there is none.
        p_value: nan where the statement is judged by its interval alone.
        paper_value: the paper's own value on CIFAR-10, nan where it gives none.
        estimated: whether it is judged by its interval.
        obstacle: why no data could reproduce it; found by itself where the interval or the p value shows it.
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
    def exceeding(cls, threshold: float, *, interval: Interval, p_value: float = nan, **fields: object) -> Claim:
        """The claim that a value exceeds a threshold, judged by its interval and p value; see `exceeds`.

        Args:
            threshold: in the unit of the value.
            interval: of the value.
            p_value: of a test of the same statement; nan if there is none.
            fields: the other attributes.
        """
        verdict = exceeds(threshold, interval, p_value)
        return cls(verdict=verdict, interval=interval, p_value=p_value, **fields)

    def row(self) -> tuple:
        """The values of `COLUMNS`."""
        words = (self.claim, self.figure, self.statement, self.statistic)
        numbers = map(float, (self.value, *self.interval, self.p_value, self.paper_value))
        return (*words, *numbers, self.verdict)


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
]
"""Columns of a table of claims."""


def exceeds(threshold: float, interval: Interval, p_value: float = nan) -> str:
    """Verdict on "the value exceeds a threshold".

    Reproduced: the whole interval does and, if there is a test, p < 0.05. Not reproduced: the whole interval is at or
    below the threshold. Inconclusive otherwise.
    """
    low, high = interval
    if low > threshold and (isnan(p_value) or p_value < ALPHA):
        return REPRODUCED
    return NOT_REPRODUCED if high <= threshold else INCONCLUSIVE


def equivalent(margin: float, intervals: Sequence[Interval]) -> str:
    """Verdict on "these differences are all about zero", from their 90 % intervals (TOST at 5 %).

    Reproduced: every interval lies within ±margin. Not reproduced: one lies wholly outside. Inconclusive otherwise.
    """
    if all(-margin < low and high < margin for low, high in intervals):
        return REPRODUCED
    if any(low >= margin or high <= -margin for low, high in intervals):
        return NOT_REPRODUCED
    return INCONCLUSIVE


def below(threshold: float, interval: Interval) -> str:
    """Verdict on "the value is below a threshold", by the whole interval, as `exceeds`."""
    low, high = interval
    if high < threshold:
        return REPRODUCED
    return NOT_REPRODUCED if low >= threshold else INCONCLUSIVE


def all_of(verdicts: Sequence[str]) -> str:
    """Verdict on a statement with several parts: reproduced if all are, not reproduced if one is not."""
    if all(verdict == REPRODUCED for verdict in verdicts):
        return REPRODUCED
    return NOT_REPRODUCED if NOT_REPRODUCED in verdicts else INCONCLUSIVE


def mean_claim(threshold: float, values: np.ndarray, seed: int, *, p_value: float = nan, **texts: str) -> Claim:
    """The claim that the mean over networks exceeds a threshold, with a bootstrap interval.

    Args:
        threshold: in the unit of the values.
        values: (N,), one per network.
        seed: of the bootstrap.
        p_value: of a test of the same statement; nan if there is none.
        texts: claim, figure, statement and statistic, as in `Claim`.
    """
    interval = statistics.bootstrap_mean(values, seed)
    return Claim.exceeding(threshold, value=float(np.mean(values)), interval=interval, p_value=p_value, **texts)


def estimate_claim(threshold: float, estimate: Estimate, *, p_value: float = nan, **fields: object) -> Claim:
    """The claim that an estimate exceeds a threshold.

    Args:
        threshold: in the unit of the estimate.
        estimate: its value and bootstrap samples.
        p_value: of a test of the same statement; nan if there is none.
        fields: the other attributes of `Claim`.
    """
    value, samples = estimate
    return Claim.exceeding(
        threshold, value=float(value), interval=statistics.interval(samples), p_value=p_value, **fields
    )


def equivalence_claim(margin: float, differences: Sequence[Estimate], **texts: str) -> Claim:
    """The claim that several differences are all about zero; value and interval are those of the largest one.

    Args:
        margin: difference that still counts as none.
        differences: values and bootstrap samples.
        texts: claim, figure, statement and statistic, as in `Claim`.

    Returns:
        A claim whose p value is the largest of two one-sided tests of each difference.
    """
    intervals = [statistics.interval(samples, 1 - 2 * ALPHA) for _, samples in differences]
    largest = max(range(len(differences)), key=lambda index: abs(differences[index][0]))
    return Claim(
        value=differences[largest][0],
        interval=intervals[largest],
        p_value=max(statistics.equivalence_p(samples, margin) for _, samples in differences),
        verdict=equivalent(margin, intervals),
        **texts,
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
    effects: Mapping[str, tuple[float, Interval]], *, effect: str, details: str, **texts: str
) -> list[Claim]:
    """The claim that no control measure sees an effect, judged by the one that sees most; none without such measures.

    Args:
        effects: control measure → the effect that it sees, as a share of the distance it starts from, and its interval.
        effect: what the share is; the statistic begins with it.
        details: of the comparison; the statistic ends with them.
        texts: claim, figure and statement, as in `Claim`.
    """
    if not effects:
        return []
    largest = max(effects, key=lambda measure: effects[measure][0])
    value, interval = effects[largest]
    return [
        Claim(
            statistic=f"{effect} under {largest}, the larger of {' and '.join(effects)}{details}",
            value=float(value),
            interval=interval,
            verdict=all_of([below(MISSED, interval) for _, interval in effects.values()]),
            **texts,
        )
    ]


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
    text = ["claim", "figure", "statement", "statistic", "verdict"]
    try:
        table = pd.read_csv(path, dtype={column: str for column in text})
        if list(table.columns) != COLUMNS or not table["verdict"].isin(VERDICTS).all():
            raise ValueError("it is not a table of claims")
    except (OSError, ValueError) as problem:
        raise DamagedFile(path, problem) from None
    return table


def merge(paths: Sequence[Path], out: Path) -> None:
    """Concatenate the claims of several results in the order given."""
    with replacing(out) as temporary:
        pd.concat([read(path) for path in paths], ignore_index=True).to_csv(temporary, index=False, float_format="%.6g")
