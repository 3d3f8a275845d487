"""The three descriptions of the environment agree, and none names a package index."""

import platform
import re
import sys
import tomllib
from importlib.metadata import version

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.conftest import ROOT

LOCK = ROOT / "envs" / "requirements.lock"


def locked(**environment: str) -> dict[str, str]:
    """Package → version of the lock file for a platform."""
    platform = {"python_full_version": "3.11.9", "python_version": "3.11", "extra": "", **environment}
    requirements = [Requirement(line) for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    return {
        re.sub(r"[-_.]+", "-", r.name).lower(): str(r.specifier).removeprefix("==")
        for r in requirements
        if r.marker is None or r.marker.evaluate(platform)
    }


def project() -> list[Requirement]:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in table["dependencies"] + table["optional-dependencies"]["dev"]]


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


def test_lock_holds_names_and_exact_versions_only():
    for line in LOCK.read_text().splitlines():
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
    assert sorted(pip) == sorted(f"{requirement.name}=={versions[requirement.name]}" for requirement in project())
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert version in SpecifierSet(required)
    assert environment["channels"] == ["conda-forge", "nodefaults"]


def test_installed_environment_is_the_locked_one():

    versions = locked(
        sys_platform=sys.platform,
        platform_machine=platform.machine(),
        python_full_version=platform.python_version(),
    )
    assert {name: version(name) for name in versions} == versions
