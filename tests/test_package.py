"""The package as others install it: imports go one way, a wheel is complete, and `compare` needs no study."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile

import cca_dynamics
import numpy as np
import pytest
import yaml
from cca_dynamics import cli
from cca_dynamics.report import archive

from tests.builders import BIN, ROOT, copy_workflow

WORKFLOW_ONLY = ("pydantic", "snakemake", "yaml", "jinja2", "docutils", "plotly", "sklearn", "mnist1d", "rocrate")
"""Top-level modules that `pip install .` without `[workflow]` does not bring."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """An unpacked wheel of the project."""
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_workflow(folder / "source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [BIN / "python", "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    run = subprocess.run(build, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (archive,) = folder.glob("*.whl")
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder / "unpacked")
    return folder / "unpacked"


def python(folder, code: str, **options) -> subprocess.CompletedProcess:
    """Run code with a copy of the package, from a folder that has nothing else of the project."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, **options)


def test_a_wheel_has_all_that_the_package_reads(wheel, tmp_path):
    code = """
import cca_dynamics
from cca_dynamics.report.captions import caption_of
from pathlib import Path
from cca_dynamics.report import captions
from cca_dynamics.study import Study
print(cca_dynamics.__file__)
study = Study({})
assert all(caption_of(result) for result in study.results)
template = Path(captions.__file__).with_name("template.html")
assert template.read_text(encoding="utf-8").lstrip().startswith("<!")
"""
    run = python(wheel, code, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(wheel))


def test_compare_needs_nothing_that_only_studies_need(wheel, tmp_path, rng):
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(50, 4)))
    code = f"""
import sys
from cca_dynamics.cli import main
import cca_dynamics.compare.capture
status = main(["compare", "a.npy", "b.npy", "--device", "cpu", "--threads", "1"])
loaded = [name for name in {WORKFLOW_ONLY!r} if name in sys.modules]
assert not loaded, loaded
sys.exit(status)
"""
    run = python(wheel, code, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "PWCCA" in run.stdout and (tmp_path / "heatmap.png").exists()


def test_a_command_of_studies_says_what_to_install_without_the_extra(wheel, tmp_path):
    code = """
import importlib.util, sys
find, sys.modules["pydantic"] = importlib.util.find_spec, None  # as if it were not installed
importlib.util.find_spec = lambda name: None if name == "pydantic" else find(name)
from cca_dynamics.cli import main
sys.exit(main(["verdicts", "mnist1d"]))
"""
    run = python(wheel, code, cwd=tmp_path)
    assert run.returncode == 1 and "pip install '.[workflow]'" in run.stderr, run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_similarity_imports_nothing_else_of_the_project(wheel, tmp_path):
    code = """
import sys
import cca_dynamics.similarity
rest = {name for name in sys.modules if name.startswith("cca_dynamics.")}
others = sorted(name for name in rest if not name.startswith("cca_dynamics.similarity"))
assert not others, others
heavy = {"pandas", "matplotlib", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""
    run = python(wheel, code, cwd=tmp_path)
    assert run.returncode == 0, run.stderr


def test_the_dag_is_built_without_pytorch():
    code = "import sys; import cca_dynamics.study; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    run = python(ROOT / "workflow", code)
    assert run.returncode == 0, run.stderr


def test_what_the_package_imports_is_declared():
    """Every third-party module that the code names is a dependency, or is in the standard library."""
    import ast

    names = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "pydantic_core": "pydantic"}
    names |= {"snakemake_interface_logger_plugins": "snakemake"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["workflow"]]
    declared = {line.partition(">")[0].partition("=")[0] for line in lines}
    for path in (ROOT / "workflow").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for module in modules:
                top = module.partition(".")[0]
                if top in sys.stdlib_module_names or top == "cca_dynamics":
                    continue
                assert names.get(top, top) in declared, f"{path.relative_to(ROOT)} imports {top}"


def test_every_description_of_the_project_says_the_same():
    """pyproject.toml, the package, CITATION.cff, codemeta.json and .zenodo.json."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    keys = ("name", "version", "license", "description", "keywords")
    stated = {**{key: project[key] for key in keys}, "authors": [author["name"] for author in project["authors"]]}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    codemeta = json.loads((ROOT / "codemeta.json").read_text(encoding="utf-8"))
    zenodo = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    assert stated == {
        "name": citation["title"].partition(":")[0],
        "version": str(citation["version"]),
        "license": citation["license"],
        "description": citation["abstract"],
        "keywords": citation["keywords"],
        "authors": [author["name"] for author in citation["authors"]],
    }
    assert stated == {
        **{key: codemeta[key] for key in ("name", "version", "description", "keywords")},
        "license": codemeta["license"].removeprefix("https://spdx.org/licenses/"),
        "authors": [author["name"] for author in codemeta["author"]],
    }
    assert stated == {
        "name": zenodo["title"],
        **{key: zenodo[key] for key in ("version", "license", "description", "keywords")},
        "authors": [creator["name"] for creator in zenodo["creators"]],
    }
    assert cca_dynamics.__version__ == stated["version"] and archive.AUTHORS in stated["authors"]


def test_the_version_is_that_of_the_project(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert end.value.code == 0 and capsys.readouterr().out == f"cca-dynamics {version}\n"
