"""Remake what codecheck.yml lists in a clean clone of the commit that is checked out, and compare it with what is
committed. `make codecheck` calls it; it takes as long as the default study.

On a processor of the same kind the bytes are the same. On another nine of ten claims need the same verdict and a value
in the published interval (see `cca_dynamics.report.agreement`); figures then show other digits and are not compared.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from cca_dynamics.report import agreement

from tests.builders import BIN, ROOT, variables

REFERENCE = "figures/reference/"


def output_of(listed: str) -> str:
    """The output of the workflow that a listed file is a copy of."""
    study, name = listed.removeprefix(REFERENCE).split("/")
    return f"{'figures' if name.endswith('.png') else 'results'}/{study}/{name}"


def compared(clone: Path, listed: list[str]) -> tuple[list[str], bool]:
    """Lines about each listed file, and whether everything agrees.

    Args:
        clone: the folder in which the outputs have been remade.
        listed: paths of published copies, in which `clone` is compared with this repository.
    """
    lines, equal, agree = [], [], True
    for name in listed:
        same = (clone / output_of(name)).read_bytes() == (ROOT / name).read_bytes()
        equal.append(same)
        if not same and name.endswith(".csv"):
            table = agreement.compare(clone / output_of(name), ROOT / name)
            lines += [f"{name}: {line}" for line in agreement.in_words(table)]
            agree = agree and agreement.agrees_as_a_whole(table)
    numbers_equal = all(same for same, name in zip(equal, listed, strict=True) if name.endswith(".csv"))
    agree = agree and (not numbers_equal or all(equal))
    lines.append(f"{sum(equal)} of {len(listed)} files are equal byte for byte")
    return lines, agree


def main() -> int:
    listed = [entry["file"] for entry in yaml.safe_load((ROOT / "codecheck.yml").read_text())["manifest"]]
    with tempfile.TemporaryDirectory(prefix="codecheck") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        command = [BIN / "snakemake", "--cores", "all", *map(output_of, listed)]
        if subprocess.run(command, cwd=clone, env=variables(clone)).returncode:
            return 1
        lines, agree = compared(clone, listed)
    print("\n".join(lines))
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
