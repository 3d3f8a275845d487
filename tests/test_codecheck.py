"""Runs are compared as codecheck.yml says, and what it lists is there."""

import csv
import os
import sys
from itertools import permutations

import pandas as pd
import pytest
import yaml
from cca_dynamics import cli
from cca_dynamics.errors import DamagedFile
from cca_dynamics.report import agreement
from cca_dynamics.results import claims

from tests import codecheck
from tests.builders import ROOT
from tests.codecheck import output_of


def write(path, changed=1, **changes):
    """A file of claims: 29 with intervals and one without; `changes` are of the first ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = [{"value": 0.5, "verdict": "reproduced", "interval": (0.4, 0.6)} for _ in range(10)]
    kinds = [{**kind, **changes} if i < changed else kind for i, kind in enumerate(kinds)]
    kinds += [{"value": 0.01 * i, "verdict": "inconclusive", "interval": (-1, 1)} for i in range(19)]
    kinds.append({"value": 2.0, "verdict": "reproduced", "estimated": False})
    made = [
        claims.Claim(claim=f"width.{i}", figure="4", statement="S.", statistic="s", **kind)
        for i, kind in enumerate(kinds)
    ]
    claims.write(made, path)
    return path


@pytest.mark.parametrize(
    ("changes", "agrees"),
    [
        ({}, "equal"),
        ({"value": 0.45}, "within"),
        ({"value": 0.7, "interval": (0.6, 0.8)}, "beyond"),
        ({"verdict": "inconclusive"}, "turned"),
        ({"value": float("nan")}, "beyond"),
    ],
)
def test_claims_agree_by_verdict_and_published_interval(tmp_path, changes, agrees):
    table = agreement.compare(write(tmp_path / "here.csv", **changes), write(tmp_path / "published.csv"))
    assert list(table["agreement"]) == [agrees, *["equal"] * 29]
    words = "\n".join(agreement.in_words(table))
    assert ("width.0" in words) == (agrees != "equal")


def test_a_claim_without_an_interval_agrees_within_the_margin(tmp_path):
    published = write(tmp_path / "published.csv")
    for shift, expected in ((0.04, "within"), (0.06, "beyond")):
        table = pd.read_csv(published)
        table.loc[29, "value"] += shift
        table.to_csv(tmp_path / "here.csv", index=False)
        assert agreement.compare(tmp_path / "here.csv", published)["agreement"].iloc[29] == expected


def test_rounding_is_not_a_difference_however_narrow_the_interval(tmp_path):
    published = write(tmp_path / "published.csv", value=1.0e-15, interval=(0.9e-15, 1.1e-15))
    here = write(tmp_path / "here.csv", value=1.8e-15, interval=(1.7e-15, 1.9e-15))
    assert agreement.compare(here, published)["agreement"].iloc[0] == "within"


def test_two_seeds_differ_more_than_two_processors_may_in_19_of_20_pairs(tmp_path):
    """What `agreement.MOST_DIFFERING` tells apart, and what it does not."""
    replicates = pd.read_csv(ROOT / "figures/reference/mnist1d/replicates.csv")
    template = claims.read(ROOT / "figures/reference/mnist1d/claims.csv").set_index("claim")
    for seed, of_seed in replicates.groupby("seed"):
        columns = ["value", "ci_low", "ci_high", "p_value", "verdict"]
        table = template.assign(**of_seed.set_index("claim")[columns]).reset_index()
        table[claims.COLUMNS].to_csv(tmp_path / f"{seed}.csv", index=False)
    pairs = list(permutations(tmp_path.glob("*.csv"), 2))
    assert len(pairs) == 20
    assert sum(agreement.agrees_as_a_whole(agreement.compare(one, other)) for one, other in pairs) == 1


def test_several_runs_stand_side_by_side(tmp_path, capsys):
    published = write(tmp_path / "published.csv")
    runs = [write(tmp_path / "epyc.csv", value=0.45), write(tmp_path / "arm.csv", value=0.7, verdict="inconclusive")]
    out = tmp_path / "table.csv"
    cli.main(["agreement", *map(str, runs), str(published), "--table", str(out)])
    said, first = capsys.readouterr().out, pd.read_csv(out).iloc[0]
    assert "epyc.csv:" in said and "width.0: 0.5 → 0.7, reproduced → inconclusive" in said
    assert (first["claim"], first["published_value"], first["epyc_value"], first["arm_value"]) == (
        "width.0",
        0.5,
        0.45,
        0.7,
    )
    assert (first["epyc_verdict"], first["arm_verdict"]) == ("reproduced", "inconclusive")
    assert first["largest_difference"] == pytest.approx(0.2)
    twice = ["agreement", str(runs[0]), str(runs[0]), str(published)]
    assert not cli.main(twice) and cli.main([*twice, "--table", str(out)]) == 1
    assert "rename copies" in capsys.readouterr().err
    assert cli.main(["agreement", str(runs[0]), str(published), "--table", str(tmp_path / "table.txt")]) == 1
    assert "table.txt: its suffix is not .csv" in capsys.readouterr().err and not (tmp_path / "table.txt").exists()


@pytest.mark.parametrize("name", ["2026-11/claims.csv", "colleague.csv"])
@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_the_user_names_is_not_to_be_deleted(tmp_path, monkeypatch, capsys, name, there):
    """It may be a colleague's, or a published one, and no run here would make it again."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "published.csv")
    if there:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("claim,fig")
    for command in (["agreement", name, "published.csv"], ["agreement", "published.csv", name], ["verdicts", name]):
        assert cli.main(command) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {name} is missing or damaged (")
        assert line.endswith("); check the path, or copy it again")


def test_output_that_nobody_reads_ends_quietly_after_the_table(tmp_path, monkeypatch, capsys):
    """As in `cca-dynamics agreement ... | head -1`, which ended in a traceback."""
    here, published = write(tmp_path / "here.csv", value=0.7), write(tmp_path / "published.csv")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        status = cli.main(["agreement", str(here), str(published), "--table", str(tmp_path / "t.csv")])
    assert status == cli.UNREAD and not capsys.readouterr().err
    assert len(pd.read_csv(tmp_path / "t.csv")) == 30


def test_claims_of_one_run_alone_are_named(tmp_path, capsys):
    published = write(tmp_path / "published.csv")
    pd.read_csv(published).iloc[1:].to_csv(tmp_path / "here.csv", index=False)
    table = agreement.compare(tmp_path / "here.csv", published).set_index("claim")
    assert table.loc["width.0", "agreement"] == "turned"
    cli.main(["agreement", str(tmp_path / "here.csv"), str(published)])
    assert "width.0: 0.5 → nan, reproduced → no such claim" in capsys.readouterr().out


def change(path, line: int, column: str, cell: str):
    """One cell of a table, as an editor would change it."""
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    rows[line - 1][rows[0].index(column)] = cell
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.mark.parametrize(
    ("line", "column", "cell", "problem"),
    [
        (3, "claim", "width.0", "width.0 is there twice"),
        (4, "claim", "", "the claim has no name"),
        (2, "value", "0,52", "'0,52' is no number"),
        (9, "ci_low", "True", "'True' is no number"),
        (5, "p_value", "<0.001", "'<0.001' is no number"),
        (2, "verdict", "yes", "'yes' is no verdict"),
    ],
)
def test_a_cell_that_says_nothing_is_named_by_its_line_and_column(tmp_path, capsys, line, column, cell, problem):
    """Once, these ended in tracebacks, or in a wrong count of claims."""
    published, here = write(tmp_path / "published.csv"), write(tmp_path / "here.csv")
    change(here, line, column, cell)
    for command in (["agreement", here, published], ["agreement", published, here], ["verdicts", here]):
        assert cli.main([str(word) for word in command]) == 1
        said, error = capsys.readouterr()
        assert not said and error.count("\n") == 1
        assert f"error: {here} " in error and f"line {line}, column {column}: {problem}" in error


def test_rows_with_more_cells_than_the_header_are_not_shifted(tmp_path):
    path = write(tmp_path / "here.csv")
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(row.replace(",0.", ",0,", 1) for row in rows[:9])]) + "\n")
    with pytest.raises(DamagedFile, match="more cells than its header; quote cells with a comma"):
        claims.read(path)


def test_whole_numbers_and_cells_without_text_are_read(tmp_path):
    path = write(tmp_path / "here.csv")
    for line in range(2, 32):
        change(path, line, "value", "1")
    change(path, 2, "statistic", "")
    table = claims.read(path)
    assert table["value"].dtype == float and table["statistic"].iloc[0] == ""


def test_what_is_listed_is_committed_and_made_by_the_workflow():
    listed = [entry["file"] for entry in yaml.safe_load((ROOT / "codecheck.yml").read_text())["manifest"]]
    assert all((ROOT / name).is_file() for name in listed)
    published = {path.stem for path in (ROOT / "figures/reference/mnist1d").glob("*.png")} - {
        "replicates",
        "multiverse",
    }
    assert {name for name in listed if name.endswith(".png")} == {
        f"figures/reference/mnist1d/{name}.png" for name in published
    }
    assert output_of(listed[0]) == "results/mnist1d/claims.csv"
    assert output_of(listed[1]).startswith("figures/mnist1d/")


def test_the_check_fails_where_a_verdict_turns_or_a_figure_differs_alone(tmp_path, monkeypatch):
    listed = [f"figures/reference/small/{name}" for name in ("claims.csv", "width.png")]
    monkeypatch.setattr(codecheck, "ROOT", tmp_path / "root")
    write(tmp_path / "root" / listed[0])
    (tmp_path / "root" / listed[1]).write_bytes(b"figure")
    clone = tmp_path / "clone"
    write(clone / output_of(listed[0]))
    figure = clone / output_of(listed[1])
    figure.parent.mkdir(parents=True)
    for drawn, changes, agree in (
        (b"figure", {}, True),
        (b"other", {}, False),  # the same numbers give the same figure
        (b"other", {"value": 0.45}, True),
        (b"other", {"verdict": "inconclusive", "changed": 3}, True),  # a tenth of all
        (b"other", {"verdict": "inconclusive", "changed": 4}, False),
    ):
        figure.write_bytes(drawn)
        write(clone / output_of(listed[0]), **changes)
        assert codecheck.compared(clone, listed)[1] is agree
