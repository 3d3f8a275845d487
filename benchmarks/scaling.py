"""How a study grows with its networks: time, memory and disk of every rule, and the time to build the DAG.

Runs the target `clusters` of a study of small networks with 10, 50, 200 and 1,000 of them, 20 networks a job, from
nothing, and fits time ∝ networks^k to the seconds that grow.

    python benchmarks/scaling.py                        about 10 minutes on 2 cores
    python benchmarks/scaling.py --networks 10 50
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.builders import BIN, copy_workflow, variables  # noqa: E402

OUT = ROOT / "benchmarks" / "out"
RULES = ("train", "activations", "ablation", "compute", "test_claims", "plot")


def study(networks: int) -> dict:
    """A sweep of so many networks, on top of studies/smoke.yaml."""
    rates = [0.02, 0.05, 0.1, 0.15, 0.2]
    return {
        "study": "scaling",
        "networks_per_job": 20,
        "targets": ["clusters"],
        "results": {"clusters": {"networks": networks // len(rates), "learning_rates": rates}},
    }


def run(folder: Path, *arguments: str) -> float:
    """Seconds of a snakemake that must succeed: a real one, whose jobs start Python and PyTorch, as a user's do."""
    begun = time.monotonic()
    files = ("--configfile", "studies/smoke.yaml", "studies/scaling.yaml", "--cores", "2")
    command = [str(BIN / "snakemake"), *files, *arguments]
    found = subprocess.run(command, cwd=folder, env=variables(folder), capture_output=True, text=True, timeout=3600)
    if found.returncode:
        sys.exit(f"snakemake ended with {found.returncode}:\n{found.stdout[-3000:]}{found.stderr[-3000:]}")
    return time.monotonic() - begun


def measure(networks: int, folder: Path) -> dict[str, float]:
    """Seconds of the DAG, of the run and of each rule; the largest job's MB and the study's MB on disk."""
    copy_workflow(folder)
    (folder / "studies/scaling.yaml").write_text(yaml.safe_dump(study(networks)))
    row = {"networks": networks, "DAG": run(folder, "--dry-run"), "run": run(folder)}
    results = folder / "results/scaling"
    row["memory"] = 0.0
    for rule in RULES:
        tables = [pd.read_table(path) for path in (results / "benchmarks").glob(f"{rule}-*.tsv")]
        row[rule] = sum(table["s"].sum() for table in tables)
        row[f"{rule} memory"] = max(pd.to_numeric(table["max_rss"], errors="coerce").max() for table in tables)
        row["memory"] = max(row["memory"], row[f"{rule} memory"])
    row["jobs"] = len(list((results / "benchmarks").iterdir()))
    row["disk"] = sum(path.stat().st_size for path in results.rglob("*") if path.is_file()) / 1e6
    return row


def growth(networks: np.ndarray, values: np.ndarray) -> float:
    """k of value = a + b·networks^k: the fixed part of a job (Python, PyTorch) does not count as growth."""
    candidates = np.linspace(0.1, 3, 291)

    def error(k: float) -> float:
        design = np.stack([np.ones_like(networks), networks**k], axis=1) / values[:, None]
        return float(np.linalg.lstsq(design, np.ones_like(values))[1].sum())

    return float(min(candidates, key=error))


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, nargs="+", default=[10, 50, 200, 1000], help="multiples of 5, from 10")
    sizes = parser.parse_args().networks
    rows = []
    for networks in sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(networks, Path(folder) / "copy"))
            print(re.sub(r"\s+", " ", str({k: round(v, 1) for k, v in rows[-1].items()})), file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    OUT.mkdir(exist_ok=True)
    table.to_csv(OUT / "scaling.csv", index=False)
    print("| networks | jobs | DAG | whole run |", *(f"{rule} |" for rule in RULES), "largest job | disk |")
    print("| --- " * (6 + len(RULES)) + "|")
    for _, row in table.iterrows():
        seconds = [f"{row[name]:.1f} s |" for name in ("DAG", "run", *RULES)]
        print(
            f"| {row['networks']:.0f} | {row['jobs']:.0f} |",
            *seconds,
            f"{row['memory']:.0f} MB | {row['disk']:.0f} MB |",
        )
    if len(sizes) > 3:
        n = table["networks"].to_numpy(float)
        laws = [f"{rule} ∝ N^{growth(n, table[rule].to_numpy()):.1f}" for rule in (*RULES[:4], "disk")]
        print("\nGrowth beyond what one job costs: " + ", ".join(laws))


if __name__ == "__main__":
    main()
