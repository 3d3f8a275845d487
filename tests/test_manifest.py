"""A finished study can be checked: every file, and what it was made from."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from cca_dynamics import cli
from cca_dynamics.errors import DamagedFile, UserError
from cca_dynamics.report import manifest
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.runtime.storage import read_metadata, write_contents, write_tensors
from cca_dynamics.training import checkpoints

from tests.builders import classifier_recipe


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A small study's files, as far as they count here, and its manifest."""
    monkeypatch.chdir(tmp_path)
    networks, seen = tmp_path / "results/s/networks/c/0-1", tmp_path / "results/s/activations/c/0-1/train"
    networks.mkdir(parents=True)
    seen.mkdir(parents=True)
    recipe = classifier_recipe((0, 1)).with_changes({"cohort": "c"})
    checkpoints.save({"w": torch.randn(2, 3)}, networks, step=4, epoch=1.0, recipe=recipe)
    checkpoints.save_recipe(recipe, {"data_checksum": "d"}, networks)
    history = pd.DataFrame({"step": 4, "epoch": 1.0, "network": [0, 1], "loss": 0.5})
    history.to_parquet(networks / "history.parquet")
    metadata = read_metadata(networks / "step-000004.safetensors")
    write_tensors(
        seen / "step-000004.safetensors", {"conv1": torch.randn(2, 5, 3)}, checkpoint=metadata["sha256"], step=4
    )
    write_contents(networks)
    write_contents(seen.parent)
    (tmp_path / "figures/s").mkdir(parents=True)
    (tmp_path / "figures/s/width.png").write_bytes(b"picture")
    (tmp_path / "results/s/benchmarks").mkdir()
    (tmp_path / "results/s/benchmarks/train.tsv").write_text("s\n1\n")
    manifest.write({"study": "s", "seed": 3}, tmp_path / "results/s/manifest.json")
    return tmp_path


def differences(name: str, root: Path = Path()) -> list[str]:
    """What differs between a study and its manifest, one line per difference."""
    return [difference.line for difference in manifest.verify(name, root)]


def test_it_says_what_made_the_study(study):
    content = json.loads((study / "results/s/manifest.json").read_text())
    assert content["seed"] == 3 and content["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert len(content["files"]) == 7 and not any("benchmarks" in name for name in content["files"])
    assert len(content["code"]["sha256"]) == 64 and content["hardware"]


def test_an_untouched_study_is_as_it_was(study, capsys):
    (study / "results/s/benchmarks/plot.tsv").write_text("s\n1\n")
    (study / "results/s/networks/c/.2-3.unfinished").mkdir()
    (study / "results/s/networks/c/.2-3.unfinished/key.json").write_text("{}")
    assert manifest.verify("s") == []
    assert cli.main(["verify", "s"]) == 0 and "as in the manifest" in capsys.readouterr().out


def test_a_study_is_checked_from_another_folder(study, monkeypatch):
    (study / "elsewhere").mkdir()
    monkeypatch.chdir(study / "elsewhere")
    assert manifest.verify("s", study) == []
    (study / "figures/s/width.png").write_bytes(b"edited")
    assert differences("s", study) == ["figures/s/width.png: its content has changed"]


def test_a_damaged_manifest_cannot_make_verify_propose_to_delete_other_files(study, capsys):
    path = study / "results/s/manifest.json"
    content = json.loads(path.read_text())
    content["files"] |= dict.fromkeys(["/etc/hosts", "results/other/a.csv", "figures/s/../../README.md", "x"], "0")
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="4 differences"):
        manifest.show_differences("s")
    printed = capsys.readouterr().out
    assert "/etc/hosts: missing" in printed and "to mend" not in printed


@pytest.mark.parametrize("name", ["networks/c/0-1/recipe.json", "networks/c/0-1/history.parquet"])
@pytest.mark.parametrize("damage", ["gone", "truncated", "flipped"])
def test_damage_is_named(study, name, damage, capsys):
    path = study / "results/s" / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-3])
    else:
        path.write_bytes(content[:4] + bytes([content[4] ^ 1]) + content[5:])
    (line,) = differences("s")
    assert line.startswith(f"results/s/{name}: ") and line.endswith("missing" if damage == "gone" else "has changed")
    assert cli.main(["verify", "s"]) == 1
    printed = capsys.readouterr()
    assert "to mend: rm -rf results/s/networks/c/0-1 && snakemake -- results/s/networks/c/0-1 all" in printed.out
    assert line in printed.out and printed.err.startswith("error: 1 difference from results/s/manifest.json")


@pytest.mark.parametrize("name", ["recipe.json", "history.parquet", "step-000004.safetensors", "contents.json"])
def test_what_was_gone_before_the_manifest_was_written_is_named(study, name):
    (study / "results/s/networks/c/0-1" / name).unlink()
    manifest.write({"study": "s", "seed": 3}, study / "results/s/manifest.json")
    assert differences("s") == [f"results/s/networks/c/0-1/{name}: missing"]


@pytest.mark.parametrize(
    "name", ["networks/c/0-1/step-000004.safetensors", "activations/c/0-1/train/step-000004.safetensors"]
)
def test_a_folder_that_has_lost_a_file_is_not_used(study, name):
    """Fewer checkpoints would pass for another study."""
    networks, seen = (study / f"results/s/{kind}/c/0-1" for kind in ("networks", "activations"))
    (study / "results/s" / name).unlink()
    with pytest.raises(DamagedFile, match=f"{name} is missing .*delete .*/c/0-1 and run snakemake again"):
        Inputs.from_paths([networks], [seen])
    if "networks" in name:
        with pytest.raises(DamagedFile, match=name):
            checkpoints.stored(networks)


def test_additions_other_code_and_other_versions_are_named(study, monkeypatch):
    (study / "figures/s/extra.png").write_bytes(b"x")
    monkeypatch.setattr(manifest, "_checksum_of_sources", lambda: "edited")
    monkeypatch.setattr(manifest, "_installed_versions", lambda: {"torch": "0.1"})
    added, code, package = differences("s")
    assert added == "figures/s/extra.png: not in the manifest" and "code is not that of the run" in code
    assert package.startswith("torch is 0.1 here and was ")


def test_activations_of_another_checkpoint_are_found_and_not_used(study):
    """The networks were trained anew and the activations were not extracted again."""
    networks = study / "results/s/networks/c/0-1"
    inputs = Inputs.from_paths([networks], [study / "results/s/activations/c/0-1"])
    assert inputs.representations("c", "conv1", 4).shape == (2, 5, 3)
    recipe = checkpoints.load_recipe(networks)
    checkpoints.save({"w": torch.randn(2, 3)}, networks, step=4, epoch=1.0, recipe=recipe)
    with pytest.raises(DamagedFile, match=r"activations/c/0-1/train/step-000004.*not made from .*networks/c/0-1"):
        inputs.representations("c", "conv1", 4)
    assert any(line.endswith("not made from step-000004.safetensors of these networks") for line in differences("s"))


def test_networks_trained_on_other_data_are_not_used(study):
    networks = study / "results/s/networks/c/0-1"
    assert checkpoints.load_recipe(networks, "d").cohort == "c"
    with pytest.raises(DamagedFile, match=r"recipe\.json .*trained on other data.*delete results/s/networks/c/0-1"):
        checkpoints.load_recipe(networks.relative_to(study), "other")


def test_a_table_of_other_options_is_not_used(study, capsys):
    table = pd.DataFrame({"quantity": ["distance"], "value": [1.0]})
    table.attrs["options"] = {"seed": 1}
    table.to_parquet("width.parquet")
    assert (
        cli.main(["claims", "width", "--options", "{}", "--seed", "2", "--table", "width.parquet", "--out", "c.csv"])
        == 1
    )
    assert "width.parquet is missing or damaged (it was made with other options)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"study": "s", "files": 1}',
        '{"study": "another"}',
        '{"study": "s", "files": {}, "code": 1}',
        "\x00",
    ],
)
def test_a_damaged_manifest_is_named(study, content):
    (study / "results/s/manifest.json").write_text(content)
    with pytest.raises(DamagedFile, match=r"results/s/manifest\.json is missing or damaged"):
        manifest.verify("s")
    shutil.rmtree(study / "results/s")
    with pytest.raises(DamagedFile, match=r"manifest\.json"):
        manifest.verify("s")
