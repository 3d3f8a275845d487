"""The stages of a result, from files to files: compute its table, test its claims, draw its figure."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from cca_dynamics.config.models import StageOptions
from cca_dynamics.errors import DamagedFile
from cca_dynamics.results import claims as claims_
from cca_dynamics.results import figures
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.registry import RESULTS
from cca_dynamics.results.tables import DIVERGED, caveats, tidy
from cca_dynamics.runtime.storage import replacing


def compute(
    result: str,
    options: StageOptions,
    networks: Sequence[Path],
    activations: Sequence[Path],
    ablations: Sequence[Path],
    out: Path,
    *,
    device: str = "cpu",
) -> None:
    """Compute the table of one result.

    Args:
        result: its name.
        options: those that its `compute` reads.
        networks, activations, ablations: outputs of the stages of these names, .../<cohort>/<part>.
        out: parquet file to write, whole or not at all; its attributes hold the options.
        device: "cpu" or "cuda".

    Raises:
        UserError: an input is damaged, or cannot be compared.
    """
    finished_blocks = out.with_name(f".{out.name}.unfinished")  # of a job that was killed
    inputs = Inputs.from_paths(list(networks), list(activations), list(ablations), device, finished_blocks)
    table = RESULTS[result].compute(inputs, options)
    if len(diverged := inputs.diverged()):
        table = tidy([table, diverged])
    table.attrs["options"] = options.given()
    with replacing(out) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd")
    shutil.rmtree(finished_blocks, ignore_errors=True)


def judge(result: str, options: StageOptions, table: Path, out: Path) -> None:
    """Test the paper's claims on the table of one result.

    Args:
        result: its name.
        options: those that its `claims` reads.
        table: written by `compute`.
        out: CSV file to write, whole or not at all.

    Raises:
        DamagedFile: the table cannot be read.
    """
    rows, notes = _read_table(table, options)
    claims = RESULTS[result].claims(rows, options)
    claims_.write([replace(claim, statistic="; ".join([claim.statistic, *notes])) for claim in claims], out)


def plot(result: str, options: StageOptions, table: Path, claims: Path, out: Sequence[Path]) -> None:
    """Draw the figure of one result.

    Args:
        result: its name.
        options: those that its `plot` reads.
        table: written by `compute`.
        claims: written by `judge`.
        out: files to write, .png, .pdf and .svg.

    Raises:
        DamagedFile: the table or the claims cannot be read.
    """
    rows, notes = _read_table(table, options)
    figure = RESULTS[result].plot(rows, claims_.read(claims), options)
    figures.footnote(figure, notes)
    figures.save(figure, out)


def _read_table(path: Path, options: StageOptions) -> tuple[pd.DataFrame, list[str]]:
    """A result's table without the rows of networks that are left out, and what a reader must know."""
    try:
        table = pd.read_parquet(path)
        if not _agree(table.attrs["options"], options.given()):
            raise ValueError("it was made with other options")
        return table[table["quantity"] != DIVERGED].reset_index(drop=True), caveats(table)
    except (OSError, ValueError, KeyError) as problem:
        raise DamagedFile(path, problem) from None


def _agree(options: dict, others: dict) -> bool:
    """Whether the options that two stages share are equal."""
    for key in options.keys() & others.keys():
        one, other = options[key], others[key]
        if not (_agree(one, other) if isinstance(one, dict) and isinstance(other, dict) else one == other):
            return False
    return True
