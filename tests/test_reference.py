"""The default study, run from nothing, gives the numbers and verdicts that figures/reference/ shows."""

import pandas as pd
import pytest

from tests.builders import ROOT, copy_workflow, snakemake

COMPARED = ["value", "ci_low", "ci_high", "verdict"]


@pytest.mark.slow
def test_the_default_study_gives_the_published_claims(tmp_path):
    """Byte by byte; a processor of another maker rounds differently, and training amplifies that."""
    folder = copy_workflow(tmp_path / "again")
    run = snakemake(folder, "--cores", "all", "claims", timeout=3600)
    assert run.returncode == 0, run.stdout + run.stderr
    here, published = folder / "results/mnist1d/claims.csv", ROOT / "figures/reference/mnist1d/claims.csv"
    one, other = (pd.read_csv(path).set_index("claim") for path in (here, published))
    assert list(one.index) == list(other.index)
    differing = one.compare(other, result_names=("here", "published")).reindex(columns=COMPARED, level=0)
    assert here.read_bytes() == published.read_bytes(), f"{len(differing)} claims differ:\n{differing.to_string()}"
