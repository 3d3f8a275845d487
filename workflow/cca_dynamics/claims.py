"""The paper's statements, tested. A verdict is computed from an interval and a p value; nobody writes one by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from math import isnan, nan
from pathlib import Path

import pandas as pd

from cca_dynamics.files import replacing

ALPHA = 0.05
MISSED = 0.1
"""A control measure misses an effect if it sees less than this, as a share of the distance it starts from (ours)."""

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
INCONCLUSIVE = "inconclusive"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE)


@dataclass(frozen=True)
class Claim:
    """One statement of the paper and what this study says of it.

    Attributes:
        claim: short name, unique in the study, e.g. "generalization.later_layers".
        figure: figure of the paper, e.g. "3".
        statement: the paper's statement in one sentence, in terms of this study.
        statistic: what `value` is, with n and the test.
        value, ci_low, ci_high: estimate and its interval (95 %; 90 % for equivalence, which matches a 5 % test).
        p_value: nan where the statement is judged by its interval alone.
        paper_value: the paper's own value on CIFAR-10, nan where it gives none.
        verdict: reproduced, not reproduced or inconclusive.
    """

    claim: str
    figure: str
    statement: str
    statistic: str
    value: float
    ci_low: float
    ci_high: float
    p_value: float
    paper_value: float
    verdict: str


def exceeds(threshold: float, interval: tuple[float, float], p_value: float = nan) -> str:
    """Verdict on "the value exceeds a threshold".

    Reproduced: the whole interval does and, if there is a test, p < 0.05. Not reproduced: the whole interval is at or
    below the threshold. Inconclusive otherwise.
    """
    low, high = interval
    if low > threshold and (isnan(p_value) or p_value < ALPHA):
        return REPRODUCED
    return NOT_REPRODUCED if high <= threshold else INCONCLUSIVE


def equivalent(margin: float, intervals: Sequence[tuple[float, float]]) -> str:
    """Verdict on "these differences are all about zero", from their 90 % intervals (TOST at 5 %).

    Reproduced: every interval lies within ±margin. Not reproduced: one lies wholly outside. Inconclusive otherwise.
    """
    if all(-margin < low and high < margin for low, high in intervals):
        return REPRODUCED
    if any(low >= margin or high <= -margin for low, high in intervals):
        return NOT_REPRODUCED
    return INCONCLUSIVE


def below(threshold: float, interval: tuple[float, float]) -> str:
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


COLUMNS = [field.name for field in fields(Claim)]


def write(claims: Sequence[Claim], path: Path) -> None:
    """Write claims to a CSV file with the columns of `Claim`."""
    with replacing(path) as temporary:
        pd.DataFrame([asdict(claim) for claim in claims], columns=COLUMNS).to_csv(
            temporary, index=False, float_format="%.6g"
        )


def read(path: Path) -> pd.DataFrame:
    """Read a claims file; text columns are str, numbers float.

    Raises:
        ValueError: it is not a table of claims.
    """
    text = ["claim", "figure", "statement", "statistic", "verdict"]
    table = pd.read_csv(path, dtype={column: str for column in text})
    if list(table.columns) != list(COLUMNS):
        raise ValueError("it is not a table of claims")
    return table


def merge(paths: Sequence[Path], out: Path) -> None:
    """Concatenate the claims of several results in the order given."""
    with replacing(out) as temporary:
        pd.concat([read(path) for path in paths], ignore_index=True).to_csv(temporary, index=False, float_format="%.6g")
