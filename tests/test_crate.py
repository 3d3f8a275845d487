"""A finished study is described as a valid RO-Crate, can be checked (files, and what they were made of), and packed."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from cca_dynamics import __version__, cli
from cca_dynamics.config.base import as_json
from cca_dynamics.errors import DamagedFile, UserError
from cca_dynamics.report import archive, crate, verification
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.runtime.storage import read_metadata, write_contents, write_tensors
from cca_dynamics.study import Study
from cca_dynamics.training import checkpoints

from tests.builders import ROOT, classifier_recipe

WORKFLOW = [ROOT / "workflow/Snakefile", *sorted((ROOT / "workflow/rules").glob("*.smk"))]
CRATE = "ro-crate-metadata.json"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A small study's files, as far as they count here, and its crate."""
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
    crate.write({"study": "s", "seed": 3}, WORKFLOW, tmp_path / "results/s" / CRATE)
    return tmp_path


def differences(name: str, root: Path = Path()) -> list[str]:
    """What differs between a study and its crate, one line per difference."""
    return [difference.line for difference in verification.verify(name, root)]


def test_it_says_what_made_the_study(study):
    run = verification.read("s")
    assert run.config == {"study": "s", "seed": 3} and run.packages["torch"] == torch.__version__.partition("+")[0]
    assert len(run.files) == 7 + len(WORKFLOW) and not any("benchmarks" in name for name in run.files)
    assert len(run.code["sha256"]) == 64 and run.code["version"] == __version__ and run.hardware


def test_an_untouched_study_is_as_it_was(study, capsys):
    (study / "results/s/benchmarks/plot.tsv").write_text("s\n1\n")
    (study / "results/s/networks/c/.2-3.unfinished").mkdir()
    (study / "results/s/networks/c/.2-3.unfinished/key.json").write_text("{}")
    assert verification.verify("s") == []
    assert cli.main(["verify", "s"]) == 0 and "as in the crate" in capsys.readouterr().out


def test_a_study_is_checked_from_another_folder(study, monkeypatch):
    (study / "elsewhere").mkdir()
    monkeypatch.chdir(study / "elsewhere")
    assert verification.verify("s", study) == []
    (study / "figures/s/width.png").write_bytes(b"edited")
    assert differences("s", study) == ["figures/s/width.png: its content has changed"]


def test_a_damaged_crate_cannot_make_verify_propose_to_delete_other_files(study, capsys):
    path = study / "results/s" / CRATE
    content = json.loads(path.read_text())
    names = ["/etc/hosts", "../other/a.csv", "../../figures/s/../../README.md", "../../x", ".", "../../figures/s"]
    content["@graph"] += [{"@id": name, "@type": "File", "sha256": "0"} for name in names]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="6 differences"):
        verification.show_differences("s")
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
    assert line in printed.out and printed.err.startswith("error: 1 difference from results/s/ro-crate-metadata.json")


@pytest.mark.parametrize("name", ["recipe.json", "history.parquet", "step-000004.safetensors", "contents.json"])
def test_what_was_gone_before_the_crate_was_written_is_named(study, name):
    (study / "results/s/networks/c/0-1" / name).unlink()
    crate.write({"study": "s", "seed": 3}, WORKFLOW, study / "results/s" / CRATE)
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
    monkeypatch.setattr(verification, "checksum_of_sources", lambda: "edited")
    monkeypatch.setattr(verification, "installed_versions", lambda: {"torch": "0.1"})
    added, code, package = differences("s")
    assert added == "figures/s/extra.png: not in the crate" and "code is not that of the run" in code
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
        '{"@graph": 1}',
        '{"@graph": [{"@type": "File"}]}',
        '{"@graph": [{"@id": "./", "@type": "Dataset"}]}',
        '{"@graph": ["./"]}',
        "\x00",
    ],
)
def test_a_damaged_crate_is_named(study, content):
    (study / "results/s" / CRATE).write_text(content)
    with pytest.raises(DamagedFile, match=r"results/s/ro-crate-metadata\.json is missing or damaged"):
        verification.verify("s")
    shutil.rmtree(study / "results/s")
    with pytest.raises(DamagedFile, match=r"ro-crate-metadata\.json"):
        verification.verify("s")


def test_the_crate_of_another_study_is_not_used(study):
    shutil.copytree(study / "results/s", study / "results/t")
    with pytest.raises(UserError, match=r"^results/t/ro-crate-metadata\.json is the crate of the study 's'; call res"):
        verification.verify("t")


@pytest.mark.parametrize("name", ["s/", "results/s", "results/s/"])
def test_a_shell_completes_the_name_of_a_study(study, capsys, name):
    """The crate is intact, and must not be called damaged."""
    assert cli.main(["verify", name]) == 0 and "results/s and figures/s are as in the crate" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["verdicts", "2026-11"], ["publish", "2026-11", "--command", "x"]])
def test_a_study_called_like_a_part_of_a_cohort_keeps_its_networks(tmp_path, monkeypatch, capsys, command):
    """Its folder holds all networks; the damaged file alone may go."""
    monkeypatch.chdir(tmp_path)
    path = Path("results/2026-11/claims.csv")
    path.parent.mkdir(parents=True)
    path.write_text("claim,fig")
    assert cli.main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path} is missing or damaged (") and line.endswith(
        "); delete it and run snakemake again to remake it"
    )


@pytest.mark.parametrize(
    ("path", "deleted"),
    [
        ("results/2026-11/ro-crate-metadata.json", "it"),
        ("results/2026-11/networks/c/0-1/recipe.json", "results/2026-11/networks/c/0-1"),
        ("results/s/replicates/seed-1000/activations/c/2-3/train/step-000004.safetensors", None),
        ("/home/networks/theses/2026-11/results/s/claims.csv", "it"),
        ("/home/results/2025/networks/my/2026-11/results/s/claims.csv", "it"),
        ("2026-11/claims.csv", "it"),
    ],
)
def test_only_what_the_workflow_remakes_is_to_be_deleted(path, deleted):
    deleted = deleted or str(Path(path).parents[1])
    assert f"; delete {deleted} and run snakemake again" in str(DamagedFile(Path(path), "cut off"))


def test_a_study_of_an_older_version_is_told_how_to_renew_its_description(study, capsys):
    path = study / "results/s" / CRATE
    path.with_name("manifest.json").write_text("{}")
    assert cli.main(["verify", "s"]) == 0  # one that is left beside a crate does not matter
    path.unlink()
    for command in (["verify", "s"], ["archive", "s"]):
        assert cli.main(command) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: results/s/manifest.json is of an older version")
        assert f"`snakemake -- results/s/{CRATE}`" in line and "--configfile" in line


def test_a_changed_copy_of_the_workflow_is_remade_as_a_whole(study, capsys):
    (study / "results/s/workflow/rules/train.smk").write_text("")
    assert cli.main(["verify", "s"]) == 1
    assert "to mend: rm -rf results/s/workflow && snakemake -- results/s/workflow all" in capsys.readouterr().out


def test_copies_of_the_workflow_are_complete_or_as_they_were(study, monkeypatch):
    copies = study / "results/s/workflow"
    paths = [copies / "Snakefile", *sorted((copies / "rules").iterdir())]
    texts = {path: path.read_text() for path in paths}
    crate.write({"study": "s", "seed": 3}, paths, study / "results/s" / CRATE)  # the copies themselves
    assert {path: path.read_text() for path in paths} == texts
    with pytest.raises(FileNotFoundError):
        crate.write({"study": "s", "seed": 3}, [*WORKFLOW, study / "lost.smk"], study / "results/s" / CRATE)
    assert {path: path.read_text() for path in paths} == texts and verification.verify("s") == []


def test_without_a_snakefile_there_is_no_crate(tmp_path):
    with pytest.raises(UserError, match="lack its Snakefile"):
        crate.write({"study": "s"}, WORKFLOW[1:], tmp_path / "results/s" / CRATE)
    assert not (tmp_path / "results/s").exists()


CONFIG = {
    "study": "w",
    "targets": ["width", "clusters"],
    "networks_per_job": 3,
    "protocol": None,
    "results": {"clusters": {"networks": 5, "learning_rates": [0.02, 0.1], "most_clusters": 4}},
}


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """The folder of a study that has every output and every measurement, with made-up contents, and its crate."""
    monkeypatch.chdir(tmp_path)
    made = Study(CONFIG)
    for number, job in enumerate(crate._jobs(made)):
        for name in crate._paths(job, "w"):
            path = tmp_path / name
            if path.suffix in (".safetensors", ".json", ".parquet", ".csv", ".png", ".pdf", ".svg"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(name)
            else:
                path.mkdir(parents=True)
                (path / "step-000001.safetensors").write_text(name)
                write_contents(path)
        words = "-".join([crate.RULES[job.stage][0], *filter(None, job[1:])])
        measured = tmp_path / f"results/w/benchmarks/{words}.tsv"
        measured.parent.mkdir(exist_ok=True)
        measured.write_text("s\th:m:s\n2.5\t0:00:02\n")
        os.utime(measured, (1_800_000_000 + 10 * number,) * 2)
    describe(tmp_path)
    return tmp_path


def describe(folder: Path) -> dict[str, dict]:
    """Write the crate of the study w anew; returns its entities by their identifiers."""
    says = {"path": "p.yaml", "sha256": "0" * 64, "date": "2026-01-01", "says": ["It is older.", "It fits."]}
    crate.write(as_json(Study(CONFIG).config), WORKFLOW, folder / "results/w" / CRATE, says)
    return entities(folder / "results/w" / CRATE)


def entities(path: Path) -> dict[str, dict]:
    """The entities of a crate by their identifiers, of which each occurs once."""
    graph = json.loads(path.read_text(encoding="utf-8"))["@graph"]
    assert len(graph) == len({entity["@id"] for entity in graph})
    return {entity["@id"]: entity for entity in graph}


def identifiers(value: dict | list[dict]) -> list[str]:
    """What a property of an entity refers to."""
    return [reference["@id"] for reference in (value if isinstance(value, list) else [value])]


def references(value: object):
    """Every identifier that an entity refers to."""
    if isinstance(value, dict):
        yield from [value["@id"]] if set(value) == {"@id"} else references(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def moved(folder: Path, elsewhere: Path) -> None:
    """Move a folder to another disk, and leave a link in its place."""
    elsewhere.parent.mkdir(exist_ok=True)
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere, target_is_directory=True)


@pytest.mark.parametrize(
    "name", ["results/s/networks", "results/s/networks/c/0-1", "results/s", "results", "figures/s"]
)
def test_folders_may_be_links_to_another_disk(study, name):
    moved(study / name, study / "scratch/there")
    assert verification.verify("s") == []
    before = verification.read("s").files
    crate.write({"study": "s", "seed": 3}, WORKFLOW, study / "results/s" / CRATE)
    assert verification.read("s").files == before


def test_networks_on_a_disk_that_is_not_mounted_are_not_trained_again(study, capsys):
    moved(study / "results/s/networks", study / "scratch/there")
    (study / "scratch/there").rename(study / "scratch/away")
    with pytest.raises(UserError, match="differences"):
        verification.show_differences("s")
    printed = capsys.readouterr().out
    assert f"/recipe.json: missing, as results/s/networks is a link to {study}/scratch/there, which is not" in printed
    assert "to mend" not in printed


def test_a_link_to_the_folder_around_it_is_not_followed(study):
    (study / "results/s/again").symlink_to(study / "results/s")
    assert verification.verify("s") == []


@pytest.mark.parametrize("name", ["results", "results/w", "results/w/networks", "figures/w"])
def test_a_study_behind_a_link_is_packed_whole(whole, name):
    expected = archive.write("w", whole / "before.zip", networks=True).read_bytes()
    moved(whole / name, whole / "scratch/there")
    assert archive.write("w", Path("after.zip"), networks=True, root=Path()).read_bytes() == expected


def test_what_is_written_is_read(whole):
    run = verification.read("w")
    assert run.config == as_json(Study(CONFIG).config)
    says = {"path": "p.yaml", "sha256": "0" * 64, "date": "2026-01-01", "says": ["It is older.", "It fits."]}
    assert run.protocol == says
    path = whole / "figures/w/width.png"
    assert run.files["figures/w/width.png"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert run.files.keys() == set(verification.outputs(whole, "w"))


def test_each_job_has_what_it_read_and_wrote_and_when(whole):
    graph = entities(whole / "results/w" / CRATE)
    assert {name.split("/")[1] for name in graph if name.startswith("#job/")} == set(crate.RULES) - {"corpus"}
    cohort = next(name for name in Study(CONFIG).cohorts if name.startswith("width"))
    train = graph[f"#job/train/{cohort}/0-2"]
    assert identifiers(train["object"]) == ["data/dataset.safetensors"]
    assert identifiers(train["result"]) == [f"networks/{cohort}/0-2/"]
    parts = identifiers(graph[f"networks/{cohort}/0-2/"]["hasPart"])
    assert f"networks/{cohort}/0-2/step-000001.safetensors" in parts
    activations = graph[f"#job/activations/{cohort}/0-2"]
    assert identifiers(activations["object"]) == ["data/dataset.safetensors", f"networks/{cohort}/0-2/"]
    table = graph["#job/compute/width"]
    assert {f"networks/{cohort}/0-2/", f"activations/{cohort}/0-2/"} <= set(identifiers(table["object"]))
    assert identifiers(graph["#job/plot/width"]["object"]) == ["width.parquet", "claims/width.csv"]
    figures = [f"../../figures/w/width.{kind}" for kind in ("png", "pdf", "svg")]
    assert identifiers(graph["#job/plot/width"]["result"]) == figures
    assert identifiers(graph["#job/merge"]["object"]) == ["claims/width.csv", "claims/clusters.csv"]
    data = graph["#job/dataset"]
    assert (data["startTime"], data["endTime"]) == ("2027-01-15T07:59:57+00:00", "2027-01-15T08:00:00+00:00")
    assert graph["#run"]["startTime"] == data["startTime"]
    assert graph["#run"]["endTime"] == graph["./"]["datePublished"] > data["endTime"]


def test_the_crate_refers_to_nothing_that_it_lacks(whole):
    graph = entities(whole / "results/w" / CRATE)
    profile = graph[CRATE]["conformsTo"][0]["@id"]  # RO-Crate itself, which needs no entity
    assert {name for entity in graph.values() for name in references(list(entity.values()))} - set(graph) == {profile}


def test_the_same_run_gives_the_same_bytes(whole):
    before = (whole / "results/w" / CRATE).read_bytes()
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.test_crate import describe
describe(Path({str(whole)!r}))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert (whole / "results/w" / CRATE).read_bytes() == before


def test_activations_that_were_not_kept_and_times_that_nobody_measured(whole):
    shutil.rmtree(whole / "results/w/activations")
    shutil.rmtree(whole / "results/w/benchmarks")
    for path in whole.rglob("*"):
        os.utime(path, (1, 1))
    graph = describe(whole)
    cohort = next(name for name in Study(CONFIG).cohorts if name.startswith("width"))
    (made,) = identifiers(graph[f"#job/activations/{cohort}/0-2"]["result"])
    assert made == f"#activations/{cohort}/0-2" and "sha256" not in graph[made]
    assert made in identifiers(graph["#job/compute/width"]["object"])
    assert not any("endTime" in entity for entity in graph.values())
    assert graph["./"]["datePublished"] == "1970-01-01T00:00:01+00:00"
    assert verification.verify("w") == []


VALIDATOR = ROOT / "build/roc-validator/bin/python"


@pytest.fixture(scope="module")
def required(tmp_path_factory):
    """What the profile Provenance Run Crate requires and a crate in a folder lacks, as lines."""
    here = importlib.util.find_spec("rocrate_validator") is not None
    if not here and not VALIDATOR.exists():
        pytest.skip("roc-validator is not installed; `make test-crate` installs it in an environment of its own")
    from rocrate.vocabs import RO_CRATE

    # What https://w3id.org/ro/crate/1.1/context says where rocrate's copy of version 1.3 differs, of what we use.
    terms = {name: f"https://bioschemas.org/{name}" for name in ("ComputationalWorkflow", "FormalParameter")}
    terms |= {name: f"https://bioschemas.org/ComputationalWorkflow#{name}" for name in ("input", "output")}
    context = {name: term for name, term in {**RO_CRATE["@context"], **terms}.items() if name != "sha256"}
    file = tmp_path_factory.mktemp("context") / "context.json"
    file.write_text(json.dumps({"@context": context}))

    def lines(folder: Path) -> list[str]:
        command = [sys.executable if here else VALIDATOR, ROOT / "tests/crate_validator.py", folder, file]
        run = subprocess.run([*command, "provenance-run-crate"], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout.splitlines()

    return lines


def test_the_crate_is_a_valid_provenance_run_crate(whole, required):
    assert required(whole / "results/w") == []
    path = whole / "results/w" / CRATE
    content = json.loads(path.read_text())
    for entity in content["@graph"]:
        if entity["@id"] == "#snakemake":
            del entity["instrument"]
    path.write_text(json.dumps(content))
    (line,) = required(whole / "results/w")
    assert "An OrganizeAction must reference an entity representing the workflow engine" in line


@pytest.mark.parametrize("networks", [False, True])
def test_an_archive_is_a_valid_crate_of_its_own(whole, required, networks):
    archive.write("w", whole / "w.zip", networks)
    shutil.unpack_archive(whole / "w.zip", whole / "unpacked")
    assert required(whole / "unpacked") == []


@pytest.fixture
def packed(whole, capsys):
    """The study w, packed by the command line, and its names."""
    assert cli.main(["archive", "w"]) == 0 and capsys.readouterr().out == "w.zip\n"
    with zipfile.ZipFile("w.zip") as file:
        return whole, file.namelist()


def test_an_archive_has_tables_figures_claims_crate_and_readme(packed):
    folder, names = packed
    assert names == sorted(names)
    assert {"README.md", CRATE, ".zenodo.json", "SHA256SUMS", "workflow/Snakefile"} <= set(names)
    assert {"claims.csv", "claims/width.csv", "width.parquet", "figures/width.svg", "data/datasheet.json"} <= set(names)
    assert not [name for name in names if name.startswith(("networks", "activations")) or "dataset.saf" in name]
    shutil.unpack_archive("w.zip", "unpacked")
    for line in Path("unpacked/SHA256SUMS").read_text().splitlines():
        checksum, name = line.split("  ")
        assert hashlib.sha256(Path("unpacked", name).read_bytes()).hexdigest() == checksum
        names.remove(name)
    assert names == ["SHA256SUMS"]
    metadata = json.loads(Path("unpacked/.zenodo.json").read_text())
    assert metadata["publication_date"] == "2027-01-15" and metadata["version"] == __version__
    assert (folder / "figures/w/width.png").read_bytes() == Path("unpacked/figures/width.png").read_bytes()


def test_the_crate_of_an_archive_speaks_of_what_is_in_it(packed):
    _, names = packed
    shutil.unpack_archive("w.zip", "unpacked")
    graph = entities(Path("unpacked", CRATE))
    files = {name for name, entity in graph.items() if verification.is_file(entity)}
    assert files == set(names) - {CRATE, ".zenodo.json", "SHA256SUMS"}
    parts = {name for entity in graph.values() for name in identifiers(entity.get("hasPart", []))}
    assert files <= parts
    cohort = next(name for name in Study(CONFIG).cohorts if name.startswith("width"))
    (networks,) = identifiers(graph[f"#job/train/{cohort}/0-2"]["result"])
    checkpoint = f"{networks}step-000001.safetensors"
    assert networks == f"#networks/{cohort}/0-2/" and networks not in parts - {checkpoint}
    run = verification.read("w")
    assert graph[checkpoint]["sha256"] == run.files[f"results/w/networks/{cohort}/0-2/step-000001.safetensors"]
    assert graph[checkpoint]["@type"] == "CreativeWork"


def test_the_readme_of_an_archive_tells_how_to_make_it_again(packed):
    """Its commands give the config of the run."""
    shutil.unpack_archive("w.zip", "unpacked")
    text = Path("unpacked/README.md").read_text(encoding="utf-8")
    code = text.partition("python - <<'END'\n")[2].partition("\nEND\n")[0]
    subprocess.run([sys.executable, "-c", code], cwd="unpacked", check=True)
    assert json.loads(Path("unpacked/w.yaml").read_text(encoding="utf-8")) == as_json(Study(CONFIG).config)
    assert f"cca-dynamics {__version__}" in text and "p.yaml` of 2026-01-01. It is older. It fits." in text


def test_networks_come_on_request(whole):
    archive.write("w", whole / "w.zip", networks=True)
    cohort = next(name for name in Study(CONFIG).cohorts if name.startswith("width"))
    with zipfile.ZipFile("w.zip") as file:
        names = file.namelist()
        assert f"networks/{cohort}/0-2/step-000001.safetensors" in names
        assert json.loads(file.read(CRATE)) and not [name for name in names if name.startswith("activations")]


def test_the_same_content_gives_the_same_archive(whole):
    first = archive.write("w", whole / "first.zip").read_bytes()
    for path in whole.rglob("*"):
        if "benchmarks" not in path.parts:
            os.utime(path, (1, 1))
            path.chmod(0o700)
    assert archive.write("w", whole / "second.zip").read_bytes() == first


def test_a_study_that_differs_is_not_packed(whole, capsys):
    (whole / "results/w/claims.csv").write_text("edited")
    assert cli.main(["archive", "w", "--out", "w.zip"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: results/w has 1 difference from its crate") and "`cca-dynamics verify w`" in line
    assert not Path("w.zip").exists()


def lose_a_part(graph: dict) -> None:
    graph["./"]["hasPart"][3] = {}


def name_a_part_that_is_not_described(graph: dict) -> None:
    graph["./"]["hasPart"][3]["@id"] = "nowhere.csv"


def number_an_identifier(graph: dict) -> None:
    graph["#step/train"]["@id"] = 5


def list_an_identifier(graph: dict) -> None:
    graph["#run"]["result"][0]["@id"] = ["a.csv"]


@pytest.mark.parametrize(
    ("damage", "verified"),
    [
        (lose_a_part, 1),
        (name_a_part_that_is_not_described, 1),
        (number_an_identifier, 0),
        (list_an_identifier, 0),
    ],
)
def test_a_study_whose_crate_has_a_damaged_entry_is_not_packed(whole, capsys, damage, verified):
    path = whole / "results/w" / CRATE
    content = json.loads(path.read_text(encoding="utf-8"))
    damage({entity["@id"]: entity for entity in content["@graph"]})
    path.write_text(json.dumps(content))
    assert cli.main(["verify", "w"]) == verified
    capsys.readouterr()
    assert cli.main(["archive", "w"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: results/w/{CRATE} is missing or damaged (") and "; delete it and run" in line
    assert not Path("w.zip").exists() and not list(whole.glob(".*tmp*"))


@pytest.mark.parametrize("out", ["results/w/w.zip", "figures/w/sub/w.zip"])
def test_an_archive_does_not_pack_itself(whole, capsys, out):
    assert cli.main(["archive", "w", "--out", out]) == 1
    assert f"{out} lies in" in capsys.readouterr().err and not Path(out).exists()


def test_an_archive_is_called_a_zip(whole, capsys):
    assert cli.main(["archive", "w", "--out", "w.tar"]) == 1
    assert "w.tar: its suffix is not .zip" in capsys.readouterr().err and not Path("w.tar").exists()
