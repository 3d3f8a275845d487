"""Keep a finished run: its figures, claims, time and memory in figures/reference/<study>/, and the tables of pages that
show them.
"""

from __future__ import annotations

import datetime
import platform
import re
import shutil
from contextlib import ExitStack
from math import isnan
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cca_dynamics.errors import DamagedFile
from cca_dynamics.report import replicates, verification
from cca_dynamics.report.captions import caption_of
from cca_dynamics.report.summary import (
    WHOLE_RUN,
    claims_of,
    difference_in_words,
    figures_in_words,
    paper_in_words,
    runtime_rows,
    title_of,
    value_in_words,
    verdicts_in_words,
)
from cca_dynamics.results import claims
from cca_dynamics.results.registry import RESULTS
from cca_dynamics.runtime.machine import commit, hardware
from cca_dynamics.runtime.storage import files_below, replacing
from cca_dynamics.variants import KINDS

PAGES = (Path("README.md"), Path("docs/findings.md"))
"""Pages with tables between `<!-- STUDY results -->` or `<!-- STUDY runtime -->` and `<!-- end -->`."""


def publish(study: str, command: str, note: str = "") -> Path:
    """Copy a study's figures, claims and verdicts under fresh seeds, if there are any, to figures/reference/<study>/,
    describe the run there, and bring the tables of `PAGES` up to date.

    Args:
        study: name of a finished study.
        command: the command that made it, quoted in the description.
        note: one more sentence about the run.

    Returns:
        The folder.

    Raises:
        DamagedFile: the study's claims, figures or measurements are missing, or its replicates cannot be read.
        OSError: a file cannot be written, e.g. because the disk is full; all are as they were.
    """
    results = Path("results", study)
    table = claims.read(results / "claims.csv")
    of_seeds = replicates.read_if_made(study)
    figures = sorted(Path("figures", study).glob("*.png"))
    if not figures:
        raise DamagedFile(Path("figures", study), "there is no figure", "run snakemake again to draw them")
    runtime, run = runtime_table(study), _run_of(study)
    out = Path("figures/reference", study)
    tables = [results / "claims.csv"] + ([] if of_seeds is None else [results / "replicates.csv"])
    machine = f"{run.hardware}, Python {run.python}"
    origin = f"`{command}`, {run.commit}, {run.date}, on {machine}. {note}".strip()
    text = [f"# {study}", origin, claims_table(table, of_seeds), "## Time and memory", runtime]
    images = [f"## {figure.stem}\n\n![{figure.stem}]({figure.name})\n\n{_caption(figure.stem)}" for figure in figures]
    texts = {out / "README.md": "\n\n".join([*text, *images]) + "\n"}
    blocks = {
        f"{study} results": results_table(study, table, of_seeds),
        f"{study} runtime": f"{runtime}\n\nMeasured on {run.hardware}, {run.date}.",
    }
    for page in filter(Path.exists, PAGES):
        content = page.read_text(encoding="utf-8")
        for name, block in blocks.items():
            content = replace_block(
                content, name, block.replace("](figures/", f"]({'../' * (len(page.parts) - 1)}figures/")
            )
        texts[page] = content
    with ExitStack() as all_or_none:  # every file is complete on the disk before the first replaces that of another run
        for path in (*figures, *tables):
            shutil.copyfile(path, all_or_none.enter_context(replacing(out / path.name)))
        for path, content in texts.items():
            all_or_none.enter_context(replacing(path)).write_text(content, encoding="utf-8")
    return out


def _caption(figure: str) -> str:
    """What a figure shows; "" of one that somebody has put beside those of the workflow."""
    try:
        return caption_of(figure).strip()
    except FileNotFoundError:
        return ""


class _Run(NamedTuple):
    """Where and when a study ran.

    Attributes:
        commit: of the code, in words.
        hardware, python: of the machine that finished it.
        date: on which it ended.
    """

    commit: str
    hardware: str
    python: str
    date: str


def _run_of(study: str) -> _Run:
    """What the crate of a study says of its run, perhaps on another machine; without one, this machine and today."""
    if not Path("results", study, verification.NAME).exists():
        return _Run(commit(), hardware(), platform.python_version(), datetime.date.today().isoformat())
    run = verification.read(study)
    return _Run(run.code["commit"], run.hardware, run.packages["python"], run.date[:10])


def replace_block(text: str, name: str, block: str) -> str:
    """The text with a new block between `<!-- name -->` and `<!-- end -->`, wherever it has these marks."""
    pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{block}\n{match[2]}", text, flags=re.DOTALL)


def claims_table(table: pd.DataFrame, of_seeds: pd.DataFrame | None = None) -> str:
    """Every claim of a study, as Markdown; with verdicts under fresh seeds (`replicates.read`), how often it holds."""
    holds = {} if of_seeds is None else {row.claim: row for row in replicates.summary(of_seeds).itertuples()}
    rows = [
        [
            figures_in_words([row.figure]),
            f"{row.statement} `{row.claim}`",
            row.statistic,
            value_in_words(row, ".3g"),
            "" if isnan(row.p_value) else f"{row.p_value:.2g}",
            paper_in_words(row),
            difference_in_words(row),
            f"**{row.verdict}**",
            *([] if of_seeds is None else [_under_seeds(holds[row.claim]) if row.claim in holds else "–"]),
        ]
        for row in table.itertuples()
    ]
    header = ["Figure", "Claim", "Statistic", "Value [interval]", "p", "Paper", "Ours − paper", "Verdict"]
    return _markdown(header + ([] if of_seeds is None else ["Under fresh seeds"]), rows)


def _under_seeds(row) -> str:
    """How a claim fares under fresh seeds, of one row of a summary, e.g. "holds in 5 of 5; mean 0.14 [0.12, 0.16]"."""
    return replicates.holds_in_words(row) + (f"; mean {replicates.mean_in_words(row)}" if row.seeds else "")


def results_table(study: str, table: pd.DataFrame, of_seeds: pd.DataFrame | None = None) -> str:
    """One row per result, as Markdown: what it is about, its target, its figure, the paper's figures, its verdicts.

    With verdicts under fresh seeds (`replicates.read`) also how many of its claims hold in how many of the seeds.
    """
    rows = []
    for result in RESULTS:
        claims_of_result = claims_of(result, table)
        if claims_of_result.empty:
            continue
        figure = f"[figure](figures/reference/{study}/README.md#{result})"
        papers = figures_in_words(claims_of_result["figure"])
        row = [title_of(result), f"`{result}`", figure, papers, verdicts_in_words(claims_of_result)]
        if of_seeds is not None:
            row.append(replicates.counts_in_words(claims_of(result, of_seeds)))
        rows.append(row)
    header = ["What the paper says, or we ask", "Target", "Ours", "Paper's figures", "Verdicts of its claims here"]
    if of_seeds is not None:
        count = of_seeds["seed"].nunique()
        header.append(f"[Under {count} fresh seeds](figures/reference/{study}/replicates.png)")
    return _markdown(header, rows)


def runtime_table(study: str) -> str:
    """What each rule took, as Markdown; see `runtime_rows`."""
    rows = [[f"**{name}**" if name == WHOLE_RUN else f"`{name}`", *rest] for name, *rest in runtime_rows(study)]
    folder = Path("results", study)
    files = [path for path in files_below(folder) if path.relative_to(folder).parts[0] not in KINDS]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    table = _markdown(["Rule", "Jobs", "Time", "Peak memory of a job"], rows)
    if not any(path.relative_to(folder).parts[0] == "networks" for path in files):
        return table  # of a run whose networks lie elsewhere, the rest says little
    return f"{table}\n\nIts results take {megabytes:,.0f} MB."


def _markdown(header: list[str], rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
