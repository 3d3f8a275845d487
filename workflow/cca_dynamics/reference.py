"""Keep a finished run: its figures, claims and what it took, in figures/reference/<study>/, and the README's tables."""

from __future__ import annotations

import datetime
import inspect
import math
import os
import platform
import re
import shutil
import subprocess
from math import isnan
from pathlib import Path

import pandas as pd

from cca_dynamics import claims
from cca_dynamics.files import DamagedFile, replacing

WHOLE = "the whole run"


def publish(study: str, command: str, note: str = "") -> Path:
    """Copy a study's figures and claims to figures/reference/<study>/, describe the run there, and bring the README's
    tables up to date.

    Args:
        study: name of a finished study.
        command: the command that made it, quoted in the description.
        note: one more sentence about the run.

    Returns:
        The folder.

    Raises:
        DamagedFile: the study's claims or figures are missing.
    """
    table = claims.read(Path("results") / study / "claims.csv")
    figures = sorted(Path("figures", study).glob("*.png"))
    if not figures:
        raise DamagedFile(Path("figures") / study, "there is no figure")
    out = Path("figures/reference") / study
    out.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        shutil.copyfile(figure, out / figure.name)
    shutil.copyfile(Path("results") / study / "claims.csv", out / "claims.csv")
    where = f"{hardware()}, Python {platform.python_version()}"
    facts = [f"`{command}`, {commit()}, {datetime.date.today().isoformat()}, on {where}.", note]
    text = [f"# {study}", " ".join(facts).strip(), claims_table(table), "## Time and memory", runtime_table(study)]
    images = [f"## {figure.stem}\n\n![{figure.stem}]({figure.name})" for figure in figures]
    with replacing(out / "README.md") as temporary:
        temporary.write_text("\n\n".join([*text, *images]) + "\n", encoding="utf-8")
    readme = Path("README.md")
    if readme.exists():
        content = readme.read_text(encoding="utf-8")
        runtime = f"{runtime_table(study)}\n\nMeasured on {hardware()}, {datetime.date.today().isoformat()}."
        for name, block in (("results", results_table(study, table)), ("runtime", runtime)):
            content = replace_block(content, f"{study} {name}", block)
        with replacing(readme) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return out


def replace_block(text: str, name: str, block: str) -> str:
    """The text with a new block between `<!-- name -->` and `<!-- end -->`, where it has these marks."""
    pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda found: f"{found[1]}{block}\n{found[2]}", text, flags=re.DOTALL)


def claims_table(table: pd.DataFrame) -> str:
    """Every claim, as Markdown."""
    rows = [
        [
            row.figure,
            row.statement,
            row.statistic,
            f"{row.value:.3g}" + ("" if isnan(row.ci_low) else f" [{row.ci_low:.3g}, {row.ci_high:.3g}]"),
            "" if isnan(row.p_value) else f"{row.p_value:.2g}",
            "" if isnan(row.paper_value) else f"{row.paper_value:.3g}",
            f"**{row.verdict}**",
        ]
        for row in table.itertuples()
    ]
    return _markdown(["Figure", "Claim", "Statistic", "Value [interval]", "p", "Paper", "Verdict"], rows)


def results_table(study: str, table: pd.DataFrame) -> str:
    """One row a result: what it is about, its target, its figure, the paper's figures, its verdicts, as Markdown."""
    from cca_dynamics.results import RESULTS

    rows = []
    for name, module in RESULTS.items():
        own = table[table["claim"].str.startswith(f"{name}.")]
        if own.empty:
            continue
        counts = own["verdict"].value_counts()
        verdicts = ", ".join(f"{counts[v]} {v}" for v in claims.VERDICTS if v in counts)
        about = inspect.getdoc(module).splitlines()[0].partition(": ")[2].rstrip(".")
        figure = f"[figure](figures/reference/{study}/{name}.png)"
        rows.append([about, f"`{name}`", figure, ", ".join(own["figure"].unique()), verdicts])
    return _markdown(["The paper's result", "Target", "Ours", "Paper's figures", "Verdicts of its claims here"], rows)


def runtime_table(study: str) -> str:
    """What each rule took, as Markdown; see `runtime_rows`."""
    rows = [[f"**{name}**" if name == WHOLE else f"`{name}`", *rest] for name, *rest in runtime_rows(study)]
    disk = sum(path.stat().st_size for path in Path("results", study).rglob("*") if path.is_file()) / 1e6
    return _markdown(["Rule", "Jobs", "Time", "Peak memory of a job"], rows) + f"\n\nIts results take {disk:,.0f} MB."


def runtime_rows(study: str, root: Path = Path()) -> list[list]:
    """What each rule took, from the `benchmark:` files, and the whole run.

    Args:
        study: name of a finished study.
        root: the folder that holds results/.

    Returns:
        Rows of rule, jobs, time, peak memory of a job; the last is `WHOLE`.

    Raises:
        DamagedFile: there are no measurements.
    """
    folder = root / "results" / study / "benchmarks"
    jobs = []
    for file in sorted(folder.glob("*.tsv")):
        measured = pd.read_csv(file, sep="\t", na_values="-").iloc[-1]
        end = file.stat().st_mtime
        jobs.append((file.stem.partition("-")[0], measured["s"], measured["max_rss"], end - measured["s"], end))
    if not jobs:
        raise DamagedFile(folder, "it holds no measurements")
    table = pd.DataFrame(jobs, columns=["rule", "seconds", "megabytes", "start", "end"])
    rows = []
    for rule, own in table.groupby("rule", sort=False):
        rows.append([rule, len(own), *_spent(own["seconds"].sum(), own["megabytes"].max())])
    order = table.groupby("rule")["start"].min()
    rows.sort(key=lambda row: order[row[0]])
    wall, reached = (
        0.0,
        -math.inf,
    )  # time in which a job ran: what lies between an interrupted run and its rest is left out
    for start, end in table.sort_values("start")[["start", "end"]].itertuples(index=False):
        wall += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return [*rows, [WHOLE, len(table), *_spent(wall, table["megabytes"].max())]]


def hardware() -> str:
    """The machine in a few words: processor, cores, memory, GPU."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*: (.+)", info.read_text())):
        processor = found[1]
    words = [processor, f"{os.cpu_count()} cores"]
    if hasattr(os, "sysconf"):
        words.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB")
    import torch

    if torch.cuda.is_available():
        words.append(torch.cuda.get_device_name())
    return ", ".join(words)


def commit() -> str:
    """The commit that is checked out, in words."""
    found = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    return f"commit {found.stdout.strip()}" if found.returncode == 0 else "outside git"


def _spent(seconds: float, megabytes: float) -> list[str]:
    time = f"{seconds:.0f} s" if seconds < 90 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return [time, "" if isnan(megabytes) else f"{megabytes:,.0f} MB"]


def _markdown(header: list[str], rows: list[list]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
