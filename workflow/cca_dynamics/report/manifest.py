"""What a finished study consists of, in results/<study>/manifest.json, and whether its files are still the same."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cca_dynamics.errors import DamagedFile, UserError
from cca_dynamics.results.inputs import extracted_from
from cca_dynamics.runtime.fingerprints import PACKAGE
from cca_dynamics.runtime.machine import commit, hardware
from cca_dynamics.runtime.storage import missing_files, replacing
from cca_dynamics.variants import KINDS

NAME = "manifest.json"
PACKAGES = ("snakemake", "torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "mnist1d")
"""Packages whose version may change a result."""


@dataclass(frozen=True)
class Difference:
    """Something that is not as the manifest says.

    Attributes:
        line: what differs, in words; it begins with the path if it is about a file.
        output: the file or folder to delete and make again; "" if that does not help.
    """

    line: str
    output: str = ""


def write(config: dict, out: Path, protocol: dict | None = None) -> None:
    """Describe a finished study.

    Args:
        config: the validated config as JSON, see `study.Study.config`.
        out: results/<study>/manifest.json. Its keys are study, seed, config, protocol, code (commit, checksum of the
            package's sources), packages (versions), hardware, and files (path → sha256 of every output of the study
            below results/<study> and figures/<study>, without its variants).
        protocol: path, sha256 and date of the study's protocol, and what the run says of it; None if there is none.
    """
    root = out.parent.parent.parent
    content = {
        "study": config["study"],
        "seed": config["seed"],
        "config": config,
        "protocol": protocol,
        "code": {"commit": commit(), "sha256": _checksum_of_sources()},
        "packages": {"python": platform.python_version(), **_installed_versions()},
        "hardware": f"{hardware()}, {platform.system()} {platform.machine()}",
        "files": {name: _sha256(root / name) for name in _outputs(root, config["study"])},
    }
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def show_differences(study: str, root: Path = Path()) -> None:
    """Print what differs between a study and its manifest, and the command that mends it.

    Args:
        study: its name.
        root: the folder that holds results/ and figures/.

    Raises:
        UserError: something differs.
        DamagedFile: there is no manifest of this study, or it cannot be read.
    """
    differences = verify(study, root)
    if not differences:
        print(f"results/{study} and figures/{study} are as in the manifest.")
        return
    for difference in differences:
        print(difference.line)
    outputs = dict.fromkeys(difference.output for difference in differences if difference.output)
    if quoted := shlex.join(outputs):
        print(f"to mend: rm -rf {quoted} && snakemake -- {quoted} all")
    count = f"{len(differences)} difference{'s' if len(differences) > 1 else ''}"
    raise UserError(f"{count} from results/{study}/{NAME}; use the study's own --configfile to mend")


def verify(study: str, root: Path = Path()) -> list[Difference]:
    """Compare a study with its manifest.

    Args:
        study: its name.
        root: the folder that holds results/ and figures/.

    Returns:
        The differences in the study's files, in the package's code and in the versions of other packages.

    Raises:
        DamagedFile: there is no manifest of this study, or it cannot be read.
    """
    path = root / "results" / study / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["study"] != study:
            raise ValueError(f"it is the manifest of the study {content['study']!r}")
        checksums, code, packages = dict(content["files"]), content["code"]["sha256"], dict(content["packages"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DamagedFile(path, problem) from None
    differences = list(_differences_of_files(study, root, checksums))
    if code != _checksum_of_sources():
        line = "the package's code is not that of the run (snakemake -n says what it would make again)"
        differences.append(Difference(line))
    for name, installed in _installed_versions().items():
        if packages.get(name, installed) != installed:
            differences.append(Difference(f"{name} is {installed} here and was {packages[name]} in the run"))
    return differences


def _differences_of_files(study: str, root: Path, checksums: dict[str, str]) -> Iterator[Difference]:
    """Files that are missing, additional, changed, or made from other files, given path → checksum in the manifest."""
    names = set(_outputs(root, study))
    for name in sorted({*checksums, *_missing_from_folders(root, study)} - names):
        yield Difference(f"{name}: missing", _output_of(name, study))
    for name in sorted(names - set(checksums)):
        yield Difference(f"{name}: not in the manifest")
    for name in sorted(names & set(checksums)):
        if _sha256(root / name) != checksums[name]:
            yield Difference(f"{name}: its content has changed", _output_of(name, study))
    for file in sorted((root / "results" / study).glob("activations/*/*/*/step-*.safetensors")):
        cohort, part = file.parts[-4:-2]
        checkpoint = root / "results" / study / "networks" / cohort / part / file.name
        name = file.relative_to(root).as_posix()
        try:
            if not extracted_from(file, checkpoint):
                line = f"{name}: not made from {checkpoint.name} of these networks"
                yield Difference(line, _output_of(name, study))
        except DamagedFile:
            continue  # one of the two is missing or damaged, which its checksum has told


def _output_of(name: str, study: str) -> str:
    """The output of the workflow that a file of the study belongs to: of networks and activations the folder of a part.

    "" for a path outside the study, which only a damaged manifest names.
    """
    parts = name.split("/")  # results, study, kind, cohort, part, ...
    if parts[:2] not in (["results", study], ["figures", study]) or ".." in parts:
        return ""
    return "/".join(parts[:5]) if parts[2] in ("networks", "activations") else name


def _outputs(root: Path, study: str) -> Iterator[str]:
    """Files of a study, relative to root, without unfinished ones (hidden), benchmarks, manifest, report, variants."""
    for folder in (root / "results" / study, root / "figures" / study):
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder).parts
            hidden = any(part.startswith(".") for part in inside)
            of_variants = inside[0].partition(".")[0] in KINDS
            if path.is_file() and not (hidden or of_variants) and inside[0] not in ("benchmarks", NAME, "report.html"):
                yield path.relative_to(root).as_posix()


def _missing_from_folders(root: Path, study: str) -> Iterator[str]:
    """Files that folders of networks and activations have lost, even if that was before the manifest was written."""
    for kind in ("networks", "activations"):
        for folder in (root / "results" / study / kind).glob("[!.]*/[!.]*"):
            yield from (path.relative_to(root).as_posix() for path in missing_files(folder))


def _installed_versions() -> dict[str, str]:
    """Versions of those of `PACKAGES` that are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _checksum_of_sources() -> str:
    """Checksum of the package's source files and of the paper's values."""
    digest = hashlib.sha256()
    for path in sorted((*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.csv"))):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    """Checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
