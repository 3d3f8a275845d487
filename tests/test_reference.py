"""The default study, run from nothing, gives the verdicts and numbers that figures/reference/ shows."""

import pytest

from tests.builders import ROOT, copy_workflow, snakemake


@pytest.mark.slow
def test_the_default_study_gives_the_published_claims(tmp_path):
    folder = copy_workflow(tmp_path / "again")
    run = snakemake(folder, "--cores", "all", "claims", timeout=3600)
    assert run.returncode == 0, run.stdout + run.stderr
    published = (ROOT / "figures/reference/mnist1d/claims.csv").read_bytes()
    assert (folder / "results/mnist1d/claims.csv").read_bytes() == published
