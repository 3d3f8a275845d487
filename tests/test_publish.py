"""A finished run is kept with what it took, and the README's tables follow it."""

import errno
import os
from math import nan
from types import SimpleNamespace

import pandas as pd
import pytest
from cca_dynamics import cli
from cca_dynamics.errors import DamagedFile
from cca_dynamics.report import publish, verification
from cca_dynamics.report.captions import caption_of
from cca_dynamics.report.summary import (
    difference_in_words,
    family_in_words,
    numbers_in_words,
    paper_in_words,
    value_in_words,
)
from cca_dynamics.results import claims
from cca_dynamics.runtime.machine import hardware


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A folder with the outputs of a study, as far as they count here."""
    monkeypatch.chdir(tmp_path)
    made = [
        claims.Claim(
            claim="width.trend",
            figure="4",
            statement="Wider is closer.",
            statistic="ρ | n = 5",
            value=-0.9,
            verdict="reproduced",
            interval=(-1.0, -0.8),
            p_value=0.008,
        ),
        claims.Claim(
            claim="width.accuracy",
            figure="4",
            statement="Closer is better.",
            statistic="r",
            value=0.1,
            verdict="inconclusive",
            interval=(-0.2, 0.3),
            p_value=0.4,
            paper_value=-0.96,
        ),
        claims.Claim(
            claim="clusters.five",
            figure="5",
            statement="Five.",
            statistic="k",
            value=2,
            verdict="not reproduced",
            interval=(2, 2),
            paper_value=5,
        ),
    ]
    claims.write(made, tmp_path / "results/small/claims.csv")
    (tmp_path / "figures/small").mkdir(parents=True)
    for result in ("width", "clusters"):
        (tmp_path / f"figures/small/{result}.png").write_bytes(b"picture of " + result.encode())
    folder = tmp_path / "results/small/benchmarks"
    folder.mkdir()
    # Two jobs side by side, a break of an hour, one more job.
    for name, seconds, end, megabytes in (
        ("train-a", 60, 1060, 100),
        ("train-b", 50, 1090, 300),
        ("plot-a", 5, 5000, "-"),
    ):
        file = folder / f"{name}.tsv"
        file.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0\t{megabytes}\n")
        os.utime(file, (end, end))
    (tmp_path / "README.md").write_text(
        "before\n<!-- small results -->\nold\n<!-- end -->\nbetween\n<!-- small runtime -->\n<!-- end -->\nafter\n"
    )
    return tmp_path


def test_a_run_on_another_machine_is_published_as_of_that_machine(finished, monkeypatch):
    """What is said of the run comes from its crate, not from where and when it is published."""
    run = verification.Run(
        config={},
        protocol=None,
        code={"commit": "commit 0123456789ab"},
        packages={"python": "3.99"},
        hardware="a far machine, 1,000 cores",
        files={},
        date="2020-02-03T04:05:06+00:00",
    )
    (finished / "results/small" / verification.NAME).write_text("{}")
    monkeypatch.setattr(verification, "read", lambda study: run)
    text = (publish.publish("small", "snakemake") / "README.md").read_text()
    assert "`snakemake`, commit 0123456789ab, 2020-02-03, on a far machine, 1,000 cores, Python 3.99." in text
    assert hardware() not in text


def test_a_figure_of_somebody_else_is_published_without_a_caption(finished):
    (finished / "figures/small/my-heatmap.png").write_bytes(b"picture")
    text = (publish.publish("small", "snakemake") / "README.md").read_text()
    assert "## my-heatmap\n\n![my-heatmap](my-heatmap.png)\n" in text


def test_publish_keeps_figures_claims_and_what_the_run_took(finished):
    out = publish.publish("small", "snakemake", "A note.")
    assert (out / "width.png").read_bytes() == b"picture of width"
    assert (out / "claims.csv").read_bytes() == (finished / "results/small/claims.csv").read_bytes()
    text = (out / "README.md").read_text()
    assert f"## width\n\n![width](width.png)\n\n{caption_of('width').strip()}" in text
    assert "`snakemake`" in text and "A note." in text and hardware() in text
    assert (
        "| 4 | Wider is closer. `width.trend` | ρ \\| n = 5 | -0.9 [-1, -0.8] | 0.008 |  |  | **reproduced** |" in text
    )
    assert "| 0.4 | -0.96 | +1.06 [+0.76, +1.26] | **inconclusive** |" in text
    assert "| `train` | 2 | 1 min 50 s | 300 MB |" in text
    assert "| **the whole run** | 3 | 1 min 35 s | 300 MB |" in text  # from 1000 to 1090, and 5 s


def test_publish_updates_the_marked_tables_of_the_readme_only(finished):
    publish.publish("small", "snakemake")
    readme = (finished / "README.md").read_text()
    assert "old" not in readme
    assert [line for line in readme.splitlines() if line in ("before", "between", "after")] == [
        "before",
        "between",
        "after",
    ]
    figure = "[figure](figures/reference/small/README.md#width)"
    assert f"| `width` | {figure} | 4 | 1 reproduced, 1 inconclusive |" in readme
    again = readme
    publish.publish("small", "snakemake")
    assert (finished / "README.md").read_text() == again


def test_a_full_disk_leaves_what_was_published_before(finished, monkeypatch, capsys):
    """Neither half a figure nor figures of two runs."""
    publish.publish("small", "snakemake")

    def contents():
        return {
            path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and "results" not in path.parts
        }

    for figure in (finished / "figures/small").iterdir():
        figure.write_bytes(b"another picture")
    before, copied = contents(), []

    def copyfile(source, target):
        target.write_bytes(b"anoth")
        copied.append(target)
        if len(copied) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(publish.shutil, "copyfile", copyfile)
    assert cli.main(["publish", "small", "--command", "snakemake"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line and line.endswith("; free disk space and run again")
    assert len(copied) == 3 and contents() == before


def test_what_is_missing_is_named(finished):
    for figure in (finished / "figures/small").iterdir():
        figure.unlink()
    with pytest.raises(DamagedFile, match=r"figures/small is missing or damaged .*; run snakemake again to draw"):
        publish.publish("small", "snakemake")
    assert not (finished / "figures/reference").exists()


def test_the_size_of_a_run_is_told_where_its_networks_lie(finished):
    assert "Its results take" not in publish.runtime_table("small")
    network = finished / "results/small/networks/width/0-4/step-000000.safetensors"
    network.parent.mkdir(parents=True)
    network.write_bytes(bytes(3_000_000))
    assert "Its results take 3 MB." in publish.runtime_table("small")


def test_tables_of_measurements_need_measurements(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results/empty").mkdir(parents=True)
    with pytest.raises(DamagedFile, match="holds no measurements"):
        publish.runtime_table("empty")


def test_p_values_are_counted_together_where_claims_can_be_tested():
    rows = [(0.001, claims.REPRODUCED), (0.03, claims.INCONCLUSIVE), (0.001, claims.NOT_TESTABLE), (nan, "reversed")]
    words = family_in_words(pd.DataFrame(rows, columns=["p_value", "verdict"]))
    assert "2 of 4 claims" in words and "2 are below 0.05, where 0.1 at most" in words and "2 remain" in words


def test_a_claim_without_a_value_has_a_dash():
    """Not "nan": with two clusters, for example, none can be far from the others."""
    claim = SimpleNamespace(value=nan, ci_low=nan, ci_high=nan, p_value=nan, paper_value=5.0)
    assert value_in_words(claim, ".3g") == "–" and numbers_in_words(claim) == ("–", "", "5.00")


def test_the_difference_from_the_paper_allows_for_the_error_of_its_value():
    numbers = {"value": 0.4, "ci_low": 0.3, "ci_high": 0.45, "p_value": nan}
    read_off = SimpleNamespace(**numbers, paper_value=0.25, paper_error=0.02)
    assert difference_in_words(read_off) == "+0.15 [+0.03, +0.22]" and paper_in_words(read_off) == "0.25 ± 0.02"
    printed = SimpleNamespace(**numbers, paper_value=0.25, paper_error=nan)
    assert difference_in_words(printed) == "+0.15 [+0.05, +0.20]" and paper_in_words(printed) == "0.25"
    absent = SimpleNamespace(**numbers, paper_value=nan, paper_error=nan)
    assert difference_in_words(absent) == paper_in_words(absent) == ""
    without_interval = SimpleNamespace(**{**numbers, "ci_low": nan, "ci_high": nan}, paper_value=1.0, paper_error=nan)
    assert difference_in_words(without_interval) == ""
