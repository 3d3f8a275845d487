"""Whether the files of a finished study are still those that its crate describes, see `crate`."""

from __future__ import annotations

import hashlib
import json
import posixpath
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cca_dynamics.errors import DamagedFile, UserError
from cca_dynamics.results.inputs import extracted_from
from cca_dynamics.runtime.fingerprints import PACKAGE
from cca_dynamics.runtime.storage import files_below, missing_files
from cca_dynamics.variants import KINDS

NAME = "ro-crate-metadata.json"
OLD_NAME = "manifest.json"
"""What versions before the crate wrote in its place."""
PACKAGES = ("snakemake", "torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "mnist1d")
"""Packages whose version may change a result."""
UNCHECKED = ("benchmarks", NAME, OLD_NAME, "report.html")
"""Files and folders in a study's folders that are not among its outputs."""


@dataclass(frozen=True)
class Difference:
    """Something that is not as the crate says.

    Attributes:
        line: what differs, in words; it begins with the path if it is about a file.
        output: the file or folder to delete and make again; "" if that does not help.
    """

    line: str
    output: str = ""


@dataclass(frozen=True)
class Run:
    """What a crate says of a run.

    Attributes:
        config: the whole validated config as JSON; `study` and `seed` are keys of it.
        protocol: path, sha256 and date of the study's protocol, and what the run says of it; None if there is none.
        code: commit, version of the package, and checksum of its sources (sha256).
        packages: name → version of Python and of the packages that may change a result.
        hardware: the machine in words.
        files: path → sha256 of every output of the study below results/<study> and figures/<study>.
        date: when the last job of the study ended, ISO 8601.
    """

    config: dict[str, Any]
    protocol: dict[str, Any] | None
    code: dict[str, str]
    packages: dict[str, str]
    hardware: str
    files: dict[str, str]
    date: str


def show_differences(study: str, root: Path = Path()) -> None:
    """Print what differs between a study and its crate, and the command that mends it.

    Args:
        study: its name.
        root: the folder that holds results/ and figures/.

    Raises:
        UserError: something differs.
        DamagedFile: there is no crate of this study, or it cannot be read.
    """
    differences = verify(study, root)
    if not differences:
        print(f"results/{study} and figures/{study} are as in the crate.")
        return
    for difference in differences:
        print(difference.line)
    outputs = dict.fromkeys(difference.output for difference in differences if difference.output)
    if quoted := shlex.join(outputs):
        print(f"to mend: rm -rf {quoted} && snakemake -- {quoted} all")
    count = f"{len(differences)} difference{'s' if len(differences) > 1 else ''}"
    raise UserError(f"{count} from results/{study}/{NAME}; use the study's own --configfile to mend")


def verify(study: str, root: Path = Path()) -> list[Difference]:
    """Compare a study with its crate.

    Args:
        study: its name.
        root: the folder that holds results/ and figures/.

    Returns:
        The differences in the study's files, in the package's code and in the versions of other packages.

    Raises:
        DamagedFile: there is no crate of this study, or it cannot be read.
    """
    run = read(study, root)
    differences = list(_differences_of_files(study, root, run.files))
    if run.code["sha256"] != checksum_of_sources():
        line = "the package's code is not that of the run (snakemake -n says what it would make again)"
        differences.append(Difference(line))
    for name, installed in installed_versions().items():
        if run.packages.get(name, installed) != installed:
            differences.append(Difference(f"{name} is {installed} here and was {run.packages[name]} in the run"))
    return differences


def read(study: str, root: Path = Path()) -> Run:
    """What the crate of a study says.

    Args:
        study: its name.
        root: the folder that holds results/ and figures/.

    Raises:
        UserError: the study was described by an older version, or the crate is that of another study.
        DamagedFile: there is no crate of this study, or it cannot be read.
    """
    content = read_json(study, root)
    with damage_is_named(study, root):
        return _run(content, study)


@contextmanager
def damage_is_named(study: str, root: Path = Path()) -> Iterator[None]:
    """Take from the crate of a study what one that is intact has.

    Raises:
        DamagedFile: the code inside did not find it.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        problem = f"it lacks {problem}" if isinstance(problem, KeyError) else problem
        raise DamagedFile(root / "results" / study / NAME, problem) from None


def read_json(study: str, root: Path = Path()) -> dict:
    """The crate of a study as JSON-LD.

    Raises:
        UserError: the study was described by an older version.
        DamagedFile: there is no crate of this study, or it cannot be read.
    """
    path = root / "results" / study / NAME
    old = path.with_name(OLD_NAME)
    if old.exists() and not path.exists():
        renewal = f"snakemake -- results/{study}/{NAME}"
        raise UserError(
            f"{old} is of an older version of cca-dynamics; renew it by `{renewal}`, with the study's own --configfile"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise DamagedFile(path, problem) from None


def _run(content: dict, study: str) -> Run:
    """What a crate says; an error of Python's if it is none."""
    entities = {entity["@id"]: entity for entity in content["@graph"]}
    for part in entities["./"]["hasPart"]:
        if part["@id"] not in entities:
            raise ValueError(f"it does not describe its part {part['@id']}")
    parameters = [entity for entity in entities.values() if str(entity["@id"]).startswith("#parameter/")]
    config = {}
    for parameter in parameters:
        value = entities[parameter["workExample"]["@id"]]
        is_json = value.get("encodingFormat") == "application/json"
        config[parameter["name"]] = json.loads(value["value"]) if is_json else value["value"]
    if config["study"] != study:
        folder = f"results/{study}"
        raise UserError(
            f"{folder}/{NAME} is the crate of the study {config['study']!r}; call {folder} and figures/{study} so again"
        )
    files = {
        posixpath.normpath(posixpath.join("results", study, unquote(entity["@id"]))): entity["sha256"]
        for entity in entities.values()
        if is_file(entity)
    }
    protocol, code = entities.get("#record-of-protocol"), entities["#code"]
    packages = [entity for entity in entities.values() if str(entity["@id"]).startswith("#package/")]
    return Run(
        config=config,
        protocol=protocol
        and {
            "path": protocol["name"],
            "sha256": protocol["sha256"],
            "date": protocol["dateModified"],
            "says": protocol.get("description", "").splitlines(),
        },
        code={"commit": code["identifier"], "version": code["version"], "sha256": code["sha256"]},
        packages={entity["name"]: entity["softwareVersion"] for entity in packages},
        hardware=entities["#machine"]["value"],
        files=files,
        date=entities["./"]["datePublished"],
    )


def is_file(entity: dict) -> bool:
    """Whether an entity of a crate is one of its files."""
    kind = entity["@type"]
    return "File" in (kind if isinstance(kind, list) else [kind])


def _differences_of_files(study: str, root: Path, checksums: dict[str, str]) -> Iterator[Difference]:
    """Files that are missing, additional, changed, or made from other files, given path → checksum in the crate."""
    names = set(outputs(root, study))
    for name in sorted({*checksums, *_missing_from_folders(root, study)} - names):
        if link := _broken_link(root / name):
            yield Difference(f"{name}: missing, as {link} is a link to {link.readlink()}, which is not there")
        else:
            yield Difference(f"{name}: missing", output_of(name, study))
    for name in sorted(names - set(checksums)):
        yield Difference(f"{name}: not in the crate")
    for name in sorted(names & set(checksums)):
        if sha256(root / name) != checksums[name]:
            yield Difference(f"{name}: its content has changed", output_of(name, study))
    for file in sorted((root / "results" / study).glob("activations/*/*/*/step-*.safetensors")):
        cohort, part = file.parts[-4:-2]
        checkpoint = root / "results" / study / "networks" / cohort / part / file.name
        name = file.relative_to(root).as_posix()
        try:
            if not extracted_from(file, checkpoint):
                line = f"{name}: not made from {checkpoint.name} of these networks"
                yield Difference(line, output_of(name, study))
        except DamagedFile:
            continue  # one of the two is missing or damaged, which its checksum has told


def _broken_link(path: Path) -> Path | None:
    """The file, or the folder around it, that is a link to nothing, such as a disk that is not mounted."""
    return next((part for part in (path, *path.parents) if part.is_symlink() and not part.exists()), None)


def output_of(name: str, study: str) -> str:
    """The output of the workflow that a file of the study belongs to.

    It may be a folder: of networks, of activations, or of the workflow's own files. "" for a path outside the study,
    which only a damaged crate names.
    """
    parts = name.split("/")  # results, study, kind, cohort, part, ...
    if parts[:2] not in (["results", study], ["figures", study]) or ".." in parts or len(parts) < 3:
        return ""
    depth = {"networks": 5, "activations": 5, "workflow": 3}.get(parts[2]) if parts[0] == "results" else None
    return "/".join(parts[:depth])


def outputs(root: Path, study: str) -> Iterator[str]:
    """Files of a study, relative to root, without unfinished ones (hidden), benchmarks, crate, report, variants."""
    for folder in (root / "results" / study, root / "figures" / study):
        for path in files_below(folder):
            inside = path.relative_to(folder).parts
            hidden = any(part.startswith(".") for part in inside)
            of_variants = inside[0].partition(".")[0] in KINDS
            if not (hidden or of_variants) and inside[0] not in UNCHECKED:
                yield path.relative_to(root).as_posix()


def _missing_from_folders(root: Path, study: str) -> Iterator[str]:
    """Files that folders of networks and activations have lost, even if that was before the crate was written."""
    for kind in ("networks", "activations"):
        for folder in (root / "results" / study / kind).glob("[!.]*/[!.]*"):
            yield from (path.relative_to(root).as_posix() for path in missing_files(folder))


def installed_versions() -> dict[str, str]:
    """Versions of those of `PACKAGES` that are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def checksum_of_sources() -> str:
    """Checksum of the package's source files and of the paper's values."""
    digest = hashlib.sha256()
    for path in sorted((*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.csv"))):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
