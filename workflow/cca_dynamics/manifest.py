"""What a finished study consists of: results/<study>/manifest.json, and whether the files are still those."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cca_dynamics.files import DamagedFile, lost, read_facts, replacing
from cca_dynamics.provenance import PACKAGE

NAME = "manifest.json"
PACKAGES = ("snakemake", "torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "mnist1d")
"""Whose versions may change a result."""


def write(config: dict, out: Path) -> None:
    """Describe a finished study.

    Args:
        config: the validated config, see `study.Study.config`.
        out: results/<study>/manifest.json: config (with the seed), code (commit and checksum of the package's sources),
            packages (versions), hardware, and files: path → sha256 of every output below results/<study> and
            figures/<study>.
    """
    from cca_dynamics.reference import commit, hardware

    content = {
        "study": config["study"],
        "seed": config["seed"],
        "config": config,
        "code": {"commit": commit(), "sha256": _sources()},
        "packages": {"python": platform.python_version(), **dict(_versions())},
        "hardware": f"{hardware()}, {platform.system()} {platform.machine()}",
        "files": {path.as_posix(): _sha256(path) for path in _outputs(out.parent.parent.parent, config["study"])},
    }
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def verify(study: str, root: Path = Path()) -> list[str]:
    """What differs between a study's files and its manifest, a line each; nothing if all is well.

    Args:
        study: its name.
        root: the folder that holds results/ and figures/.

    Raises:
        DamagedFile: there is no manifest, or it cannot be read.
    """
    path = root / "results" / study / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        recorded, config = dict(content["files"]), content["config"]
        code, packages = content["code"]["sha256"], dict(content["packages"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DamagedFile(path, problem) from None
    here = {file.as_posix(): file for file in _outputs(root, study)}
    needed = {*recorded, *_lost(root, study)}
    found = [f"{name}: missing" for name in sorted(needed - set(here))]
    found += [f"{name}: not in the manifest" for name in sorted(set(here) - set(recorded))]
    changed = [name for name in sorted(set(here) & set(recorded)) if _sha256(here[name]) != recorded[name]]
    found += [f"{name}: its content has changed" for name in changed]
    found += _stale(root / "results" / study, root)
    if config.get("study") != study:
        found.append(f"{path}: it is the manifest of the study {config.get('study')!r}")
    if code != _sources():
        found.append("the package's code is not that of the run (snakemake -n says what it would make again)")
    for name, there in _versions():
        if packages.get(name, there) != there:
            found.append(f"{name} is {there} here and was {packages[name]} in the run")
    return found


def remedy(differences: list[str], study: str) -> str | None:
    """The command that makes again what is missing, damaged or stale; None if that mends nothing."""
    outputs: dict[str, None] = {}
    for line in differences:
        if line.endswith(": not in the manifest"):
            continue
        name = line.partition(": ")[0]
        inside = name.removeprefix(f"results/{study}/").split("/")
        if name.startswith(f"results/{study}/") and inside[0] in ("networks", "activations"):
            name = "/".join(name.split("/")[:5])  # the workflow makes the whole folder
        elif not name.startswith((f"results/{study}/", f"figures/{study}/")):
            continue
        outputs[name] = None
    quoted = shlex.join(outputs)
    return f"rm -rf {quoted} && snakemake -- {quoted} all" if outputs else None


def _stale(results: Path, root: Path) -> list[str]:
    """Activations that were not made from the checkpoint that lies beside them."""
    found = []
    for file in sorted(results.glob("activations/*/*/*/step-*.safetensors")):
        cohort, part = file.parts[-4:-2]
        checkpoint = results / "networks" / cohort / part / file.name
        if not checkpoint.exists():
            continue  # named as missing
        try:
            if read_facts(file).get("checkpoint") != read_facts(checkpoint)["sha256"]:
                found.append(f"{file.relative_to(root).as_posix()}: not made from {checkpoint.name} of these networks")
        except DamagedFile as problem:
            found.append(str(problem))
    return found


def _outputs(root: Path, study: str) -> Iterator[Path]:
    """Files of a study, relative to root; not what describes a run (benchmarks, manifest, report) or is unfinished."""
    for folder in (root / "results" / study, root / "figures" / study):
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder).parts
            hidden = any(part.startswith(".") for part in inside)
            if path.is_file() and not hidden and inside[0] not in ("benchmarks", NAME, "report.html"):
                yield path.relative_to(root)


def _lost(root: Path, study: str) -> Iterator[str]:
    """What folders of networks and activations have lost, be it before the manifest was written."""
    for kind in ("networks", "activations"):
        for folder in (root / "results" / study / kind).glob("[!.]*/[!.]*"):
            yield from (path.relative_to(root).as_posix() for path in lost(folder))


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _sources() -> str:
    """Checksum of the package's source files."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
