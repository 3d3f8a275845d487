"""Build envs/Containerfile; where there is no podman or docker, replay its steps in a plain virtual environment.

make test-container        about 4 minutes and 7 GB
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONTAINERFILE = ROOT / "envs" / "Containerfile"
KNOWN = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"}


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, its arguments) of a Containerfile, in order.

    Raises:
        ValueError: a line is no instruction that is used here.
    """
    joined = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    found = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, arguments = line.partition(" ")
        if name not in KNOWN or not arguments:
            raise ValueError(f"{CONTAINERFILE.name}: not understood: {line}")
        found.append((name, arguments))
    return found


def replay(root: Path) -> None:
    """Do what the Containerfile says in a folder instead of an image.

    Raises:
        CalledProcessError: a step fails.
    """
    venv.create(root / "venv", with_pip=True)
    variables = {**os.environ, "PATH": f"{root / 'venv/bin'}:{os.environ['PATH']}"}
    variables.pop("PYTHONPATH", None)
    here, end = root, []
    for name, arguments in instructions(CONTAINERFILE.read_text()):
        print(name, arguments, flush=True)
        if name == "ENV":
            variables |= dict(pair.split("=", 1) for pair in shlex.split(arguments))
        elif name == "WORKDIR":
            here = root / arguments.lstrip("/")
            here.mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                into = here / target / (Path(source).name if target.endswith("/") else "")
                into.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / source).is_dir():
                    shutil.copytree(
                        ROOT / source,
                        into,
                        dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
                    )
                else:
                    shutil.copy(ROOT / source, into)
        elif name == "RUN":
            subprocess.run(["sh", "-c", arguments], cwd=here, env=variables, check=True, stdout=subprocess.DEVNULL)
        elif name == "ENTRYPOINT":
            end = [part.replace("/opt/", f"{root}/opt/") for part in json.loads(arguments)]
    study = str(root / "opt/cca-dynamics/studies/smoke.yaml")
    subprocess.run([*end, "--cores", "2", "--configfile", study, "--", "toy_rnn"], cwd=here, env=variables, check=True)
    figure = here / "figures/smoke/toy_rnn.png"
    if not figure.exists():
        sys.exit(f"error: {figure} was not made")
    print(f"replayed; the smoke study's toy_rnn was made in {here}")


def main() -> None:
    """Build, or replay."""
    found = filter(None, map(shutil.which, ("podman", "docker")))
    builder = next(
        (name for name in found if subprocess.run([name, "info"], capture_output=True).returncode == 0), None
    )
    if builder:
        tag = "cca-dynamics:test"
        subprocess.run([builder, "build", "--file", CONTAINERFILE, "--tag", tag, ROOT], check=True)
        study = "/opt/cca-dynamics/studies/smoke.yaml"
        subprocess.run(
            [builder, "run", "--rm", tag, "--cores", "2", "--configfile", study, "--", "toy_rnn"], check=True
        )
        return
    print("neither podman nor docker runs here; replaying the steps in a virtual environment")
    with tempfile.TemporaryDirectory() as folder:
        replay(Path(folder))


if __name__ == "__main__":
    main()
