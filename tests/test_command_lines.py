"""Commands of jobs stay short and safe, however many parts they read and whatever their paths are called."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cca_dynamics import cli
from cca_dynamics.config.cohorts import abbreviated, expanded
from cca_dynamics.results import stages
from cca_dynamics.study import Study
from cca_dynamics.variants import Family, Job

from tests.builders import ROOT

PATHS = {
    "one part": (["a/b/0-49"], ["a/b/0-49"]),
    "equal parts": (["a/b/0-4", "a/b/5-9", "a/b/10-14"], ["a/b/0-14:5"]),
    "a shorter last part": (["a/b/0-4", "a/b/5-9", "a/b/10-11"], ["a/b/0-11:5"]),
    "single networks": (["a/b/0-0", "a/b/1-1"], ["a/b/0-1:1"]),
    "tables": (["a/b/0-4.parquet", "a/b/5-9.parquet"], ["a/b/0-9:5.parquet"]),
    "two cohorts": (["a/b/0-4", "a/b/5-9", "a/c/0-4"], ["a/b/0-9:5", "a/c/0-4"]),
    "of two studies": (["a/b/0-4", "d/b/5-9", "d/b/10-14"], ["a/b/0-4", "d/b/5-14:5"]),
    "a gap": (["a/b/0-4", "a/b/10-14"], ["a/b/0-4", "a/b/10-14"]),
    "a longer part": (["a/b/0-4", "a/b/5-14"], ["a/b/0-4", "a/b/5-14"]),
    "a part after a shorter one": (["a/b/0-4", "a/b/5-6", "a/b/7-11"], ["a/b/0-6:5", "a/b/7-11"]),
    "another order": (["a/b/5-9", "a/b/0-4"], ["a/b/5-9", "a/b/0-4"]),
    "twice": (["a/b/0-4", "a/b/0-4"], ["a/b/0-4", "a/b/0-4"]),
    "no parts": (["a/claims.csv", "a/b"], ["a/claims.csv", "a/b"]),
    "a space": (["s3/my bucket/b/0-4", "s3/my bucket/b/5-9"], ["s3/my bucket/b/0-9:5"]),
}


@pytest.mark.parametrize(("paths", "short"), PATHS.values(), ids=PATHS)
def test_paths_of_parts_are_abbreviated_and_come_back_in_their_order(paths, short):
    assert abbreviated(paths) == short
    assert [str(path) for text in short for path in expanded(text)] == paths


def test_a_table_of_a_thousand_parts_has_a_short_command(monkeypatch):
    study = Study({"networks_per_job": 1, "results": {"width": {"networks": 250}}})
    family, job = Family(study, {}), Job("compute", result="width")
    paths = {stage: family.inputs(study.name, job, stage) for stage in ("train", "activations")}
    assert len(paths["train"]) >= 1000
    short = {stage: abbreviated(of_stage) for stage, of_stage in paths.items()}
    assert len(" ".join(map(" ".join, short.values()))) < 2000
    given = {}
    monkeypatch.setattr(stages, "compute", lambda *arguments, **how: given.update(arguments=arguments))
    folders = ["--networks", *short["train"], "--activations", *short["activations"], "--ablations"]
    command = ["compute", "width", "--options", "{}", "--seed", "0", *folders, "--out", "x.parquet", "--device", "cpu"]
    assert cli.main(command) == 0
    networks, activations, ablations = map(list, given["arguments"][2:5])
    assert networks == list(map(Path, paths["train"])) and activations == list(map(Path, paths["activations"]))
    assert ablations == []


COMMANDS = {
    "capture": "capture nets:base --weights x.safetensors --array a.npy --layers l --out link.safetensors",
    "capture, an index": "capture nets:base --weights x.json --array a.npy --layers l --out x.safetensors",
    "agreement": "agreement a.csv b.csv --table a.csv",
    "agreement, the published": "agreement a.csv b.csv --table ./b.csv",
    "compare": "compare x.safetensors link.csv --table link.csv",
    "compare-networks, a text": "compare-networks nets:a nets:b --text a.csv --layers l --table a.csv",
    "compare-networks, an image": "compare-networks nets:a nets:b --images images --layers l --out images/new.png",
    "merge": "merge a.csv b.csv --out b.csv",
    "train": "train --data x.safetensors --recipe {} --out x.safetensors",
    "one output for two": "dataset --options {} --seed 0 --tensors c.csv --datasheet c.csv",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_an_output_replaces_no_input(command, tmp_path, monkeypatch, capsys):
    """It is refused before anything is read, so that the contents here do not matter."""
    monkeypatch.chdir(tmp_path)
    contents = {"x.safetensors": "1", "a.csv": "2", "b.csv": "3", "x.json": '{"weight_map": {"w": "x.safetensors"}}'}
    for name, content in contents.items():
        Path(name).write_text(content)
    Path("link.safetensors").symlink_to("x.safetensors")
    Path("link.csv").symlink_to("a.csv")
    Path("images").mkdir()
    monkeypatch.setattr("cca_dynamics.cli._device", lambda options, **how: "cpu")
    monkeypatch.setattr("cca_dynamics.compare.inputs.array", lambda path, points: None)
    assert cli.main(command.split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    refusals = ("is an input, which", "lies in images, whose", "is the name of two outputs")
    assert any(refusal in line for refusal in refusals) and "; choose another " in line
    assert {name: Path(name).read_text() for name in contents} == contents
    assert not any(Path("images").iterdir())


def test_every_path_in_a_command_is_quoted():
    """A prefix of paths, of a storage or of a workflow that uses this one as a module, may have spaces."""
    commands = {path.name: path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk")}
    unquoted = [
        f"{name}: {field}"
        for name, text in commands.items()
        for field in re.findall(r"\{(?:input|output|log)[.\w]*\}", text)
    ]
    assert len(commands) >= 8 and unquoted == []


LAST = """
import atexit, gc
atexit.register(lambda: print("frozen:", gc.get_freeze_count() > 0))  # what is registered first is called last
from cca_dynamics.cli import main
main(["--version"])
"""


def test_a_program_does_not_look_for_garbage_as_it_ends():
    ended = subprocess.run([sys.executable, "-c", LAST], capture_output=True, text=True, check=True)
    assert ended.stdout.endswith("frozen: True\n")
