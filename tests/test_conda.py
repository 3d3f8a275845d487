"""`--sdm conda` and `--archive`, with a stand-in for conda: what is asked of it, and that an unpacked archive runs.

The stand-in makes an empty environment, so jobs find their programs in this one; what conda installs is not tested.
"""

import subprocess

import pytest

from tests import preloaded
from tests.builders import SMOKE, copy_workflow, snakemake, variables

CONDA = """#!/bin/bash
echo "$@" >> {home}/calls
case "$*" in
  "info --json") echo '{{"conda_prefix": "{home}", "platform": "linux-64"}}' ;;
  "--version") echo "conda 26.1.0" ;;
  "config --get channel_priority --json") echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
  "env create "*)
    while [ "$1" != --file ]; do shift; done
    cp "$2" {home}/environment.yaml
    while [ "$1" != --prefix ]; do shift; done
    mkdir -p "$2/bin"
    printf '#!/bin/bash\\necho "$@" >> {home}/python\\n' > "$2/bin/python"
    chmod +x "$2/bin/python" ;;
  "clean -y --tarballs") ;;
  "list --explicit "*) echo "@EXPLICIT" ;;
  *) echo "the stand-in does not know: $*" >&2; exit 2 ;;
esac
"""
pytestmark = pytest.mark.thorough

TABLE = "results/smoke/toy_noise.parquet"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where the stand-in lives; it writes down what it is asked."""
    folder = tmp_path_factory.mktemp("conda")
    (folder / "bin").mkdir()
    (folder / "bin/conda").write_text(CONDA.format(home=folder))
    (folder / "bin/conda").chmod(0o755)
    (folder / "bin/activate").write_text('export PATH="$1/bin:$PATH"\n')
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A working copy that is under version control; its path has a space."""
    folder = copy_workflow(tmp_path_factory.mktemp("repository") / "cca dynamics")
    (folder / "pyproject.toml").write_text("")
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def with_conda(home, folder, *arguments):
    """Run snakemake; environments go to a path without spaces, as conda and Snakemake's scripts need."""
    path = f"{home}/bin:{preloaded.programs()}:{variables(folder)['PATH']}"
    run = snakemake(folder, *arguments, "--conda-prefix", home / "environments", PATH=path)
    assert run.returncode == 0, run.stdout + run.stderr
    return run


def test_jobs_run_in_the_environment_that_conda_makes(home, repository):
    with_conda(home, repository, "toy_noise", *SMOKE, "--sdm", "conda")
    assert (repository / TABLE).exists()
    assert (home / "environment.yaml").read_bytes() == (repository / "envs/environment.yaml").read_bytes()
    assert [call for call in (home / "calls").read_text().splitlines() if call.startswith("env create")] != []
    (installed,) = (home / "python").read_text().splitlines()
    assert installed == f"-m pip install --no-deps --no-build-isolation --editable {repository}"


def test_an_unpacked_archive_runs(home, repository, tmp_path):
    with_conda(home, repository, *SMOKE, "--archive", "study.tar.gz")
    subprocess.run(["tar", "-xzf", repository / "study.tar.gz", "-C", tmp_path], check=True)
    assert not (tmp_path / TABLE).exists() and list(tmp_path.glob(".snakemake/conda-archive/*/packages.txt"))
    run = snakemake(tmp_path, "toy_noise", *SMOKE)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / TABLE).read_bytes() == (repository / TABLE).read_bytes()
