"""The three descriptions of the environment agree, and none names a package index."""

import platform
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.builders import BIN, ROOT
from tests.container import CONTAINERFILE, instructions

LOCK = ROOT / "envs" / "requirements.lock"
DOCS = ROOT / "envs" / "requirements-docs.lock"
CRATE = ROOT / "envs" / "requirements-crate.lock"
CLUSTER = ROOT / "envs" / "requirements-cluster.lock"


def locked(lock: Path = LOCK, **environment: str) -> dict[str, str]:
    """Package → version of a lock file for a platform."""
    platform = {"python_full_version": "3.11.9", "python_version": "3.11", "extra": "", **environment}
    requirements = [Requirement(line) for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    return {
        re.sub(r"[-_.]+", "-", r.name).lower(): str(r.specifier).removeprefix("==")
        for r in requirements
        if r.marker is None or r.marker.evaluate(platform)
    }


def project(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for, with the extras that extras name."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines, pending = list(table["dependencies"]), list(extras or ("dev",))
    while pending:
        for line in table["optional-dependencies"][pending.pop()]:
            requirement = Requirement(line)
            if requirement.name == table["name"]:
                pending += requirement.extras
            else:
                lines.append(line)
    return [Requirement(line) for line in lines]


PLATFORMS = {
    "linux x86_64": {"sys_platform": "linux", "platform_machine": "x86_64"},
    "linux aarch64": {"sys_platform": "linux", "platform_machine": "aarch64"},
    "macOS arm64": {"sys_platform": "darwin", "platform_machine": "arm64"},
}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_lock_has_every_dependency_at_an_allowed_version(platform):
    versions = locked(**PLATFORMS[platform])
    for requirement in project():
        assert requirement.name in versions, f"{requirement.name} is not in {LOCK.name}; run `make lock`"
        assert versions[requirement.name] in requirement.specifier


@pytest.mark.parametrize("platform", PLATFORMS)
def test_plugins_for_clusters_come_with_the_same_versions(platform):
    versions, plain = locked(CLUSTER, **PLATFORMS[platform]), locked(**PLATFORMS[platform])
    for requirement in project("slurm", "kubernetes"):
        assert versions[requirement.name] in requirement.specifier
    assert not {name: (v, plain[name]) for name, v in versions.items() if plain.get(name, v) != v}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_documentation_needs_nothing_in_another_version(platform):
    versions, plain = locked(DOCS, **PLATFORMS[platform]), locked(**PLATFORMS[platform])
    assert not set(versions) & set(plain)  # what is in both is in the first lock alone
    for requirement in project("docs"):
        assert requirement.name in {**plain, **versions}, f"{requirement.name} is not in {DOCS.name}; run `make lock`"


@pytest.mark.parametrize("lock", [LOCK, CLUSTER, DOCS, CRATE], ids=lambda path: path.name)
def test_locks_hold_names_and_exact_versions_only(lock):
    for line in lock.read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[^ ;]+( ; .+)?", line), line
            assert "://" not in line and not line.startswith("-")


def test_cuda_packages_are_for_linux_only():
    assert not any(name.startswith("nvidia") or name == "triton" for name in locked(**PLATFORMS["macOS arm64"]))


def test_conda_environment_has_the_same_packages_at_the_locked_versions():
    environment = yaml.safe_load((ROOT / "envs" / "environment.yaml").read_text())
    python = next(entry for entry in environment["dependencies"] if str(entry).startswith("python="))
    version = python.removeprefix("python=")
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    versions = locked(**PLATFORMS["linux x86_64"], python_version=version, python_full_version=f"{version}.9")
    assert sorted(pip) == sorted({f"{requirement.name}=={versions[requirement.name]}" for requirement in project()})
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert version in SpecifierSet(required)
    assert environment["channels"] == ["conda-forge", "nodefaults"]


def test_every_file_that_the_image_copies_is_there_and_not_ignored():
    copied = []
    steps = instructions(CONTAINERFILE.read_text())
    for name, arguments in steps:
        copied += arguments.split()[:-1] if name == "COPY" else []
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source.split('/')[0]}" in ignored, f"{source} is ignored by .dockerignore"
    assert steps[0][0] == "FROM" and {"ENTRYPOINT", "WORKDIR"} <= {name for name, _ in steps}


def test_an_unknown_instruction_is_found():
    with pytest.raises(ValueError, match="RUM pip"):
        instructions("FROM x\nRUM pip install y\n")


def test_profiles_say_what_snakemake_knows():
    helped = subprocess.run([BIN / "snakemake", "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"--([a-z][a-z0-9-]+)", helped))
    plugins = (
        "slurm-",
        "kubernetes-",
        "storage-s3-",
        "container-image",
    )  # theirs, in the help where they are installed
    for profile in (ROOT / "profiles").glob("*/config.yaml"):
        for key in yaml.safe_load(profile.read_text()):
            assert key in known or key.startswith(plugins), f"{profile}: {key}"


def test_installed_environment_is_the_locked_one():
    versions = locked(
        sys_platform=sys.platform,
        platform_machine=platform.machine(),
        python_full_version=platform.python_version(),
    )
    assert {name: version(name) for name in versions} == versions
