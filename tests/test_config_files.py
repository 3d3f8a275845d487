"""Config files are read as their author meant them, or refused in a line that names the file."""

import re

import pytest
from cca_dynamics import cli
from cca_dynamics.config import files
from cca_dynamics.errors import UserError
from cca_dynamics.study import read_config
from snakemake_logger_plugin_cca_dynamics.reading import problem_of_configs

from tests.builders import ROOT

BROKEN = {
    "a key twice": (b"seed: 1\nstudy: a\nseed: 2\n", "line 3: the key seed stands twice"),
    "a key twice further in": (b"results:\n  width: {networks: 2, networks: 3}\n", "line 2: the key networks stands"),
    "a tab": (b"seed:\t1\n\tstudy: a\n", "line 1: found character"),
    "two documents": (b"seed: 1\n---\nseed: 2\n", "line 2: but found another document"),
    "a tag": (b"seed: !x 1\n", "line 1: could not determine a constructor"),
    "UTF-16": ("seed: 1\n".encode("utf-16"), "it is not UTF-8 text"),
    "Latin-1": (b"# \xe9\nseed: 1\n", "it is not UTF-8 text"),
    "an anchor within itself": (b"a: &a\n  b: *a\n", "an anchor contains itself"),
    "a list": (b"- 1\n", "KEY: VALUE at its top"),
}


@pytest.mark.parametrize(("content", "problem"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_by_name(tmp_path, content, problem):
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"my\.yaml .*{re.escape(problem)}.*; correct"):
        files.read(path)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    for path, problem in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=rf"{path.name} cannot be read \({problem}.*\); correct the path"):
            files.read(path)


def test_a_merged_key_may_be_overridden_and_an_anchor_used_twice(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: *a, x: 4}\nd: *a\n")
    a = {"x": 1, "y": 2}
    assert files.read(path) == {"a": a, "b": {"x": 1, "y": 3}, "c": {"x": 4, "y": 2}, "d": a}
    path.write_text("# nothing\n")
    assert files.read(path) == {}


def test_an_overlay_needs_the_file_that_it_rests_on_before_it():
    studies = ROOT / "studies"
    small, whole, folder = (studies / f"{name}.yaml" for name in ("cifar10-small", "cifar10", "cifar10-folder"))
    for wrong in ([small], [small, whole], [folder, whole]):
        with pytest.raises(UserError, match=r"cifar10-(small|folder)\.yaml is made to come after cifar10\.yaml"):
            read_config(wrong, ROOT / "config.yaml")
    config = read_config([whole, folder, small], ROOT / "config.yaml")
    assert config["study"] == "cifar10-small" and files.ON_TOP_OF not in config
    assert len(files.read_all([studies / "paper.yaml", folder, studies / "paper-figure3.yaml"])) == 3


def test_what_snakemake_says_of_a_config_file_is_said_with_its_name(tmp_path):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("seed: 1\n")
    bad.write_text("seed: 1\nseed: 2\n")
    traceback = "Traceback (most recent call last):\n  update_config(overwrite_config, load_configfile(f))\nOSError"
    arguments = ["snakemake", "-n", "--configfile", str(good), str(bad), "--config", "seed=3"]
    assert "bad.yaml cannot be read (line 2: the key seed" in problem_of_configs(traceback, arguments)
    assert "bad.yaml" in problem_of_configs("Config file is not valid JSON or YAML.", [f"--configfile={bad}"])
    assert problem_of_configs("Invalid config definition: Config entries", arguments).startswith("--config takes KEY=")
    assert problem_of_configs("Traceback: something else", arguments) == ""
    assert problem_of_configs(traceback, ["snakemake", "--configfile", str(good)]) == ""


def test_the_plan_refuses_what_the_workflow_refuses(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.main(["plan", "--configfile", "studies/cifar10-small.yaml", "--device", "cpu"]) == 1
    assert "cifar10-small.yaml is made to come after cifar10.yaml" in capsys.readouterr().err
