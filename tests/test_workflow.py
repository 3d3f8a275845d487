"""The workflow as users run it: the smoke study from nothing, what reruns after an edit, and what bad input says."""

import base64
import json
import os
import re
import shutil
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from cca_dynamics.report import crate, verification
from cca_dynamics.results.claims import COLUMNS
from cca_dynamics.runtime.storage import read_tensors
from cca_dynamics.study import Study
from safetensors import safe_open

from tests import preloaded
from tests.builders import SMOKE, changed, copy_workflow, jobs_of, snakemake, write_images

RESULTS = ("stability", "toy_noise", "generalization", "width", "clusters", "toy_rnn")
RESULTS += (
    "recurrent_training",
    "recurrent_sequence",
    "invariance",
    "layer_identification",
    "grounding",
    "calibration",
)
WIDTH = "results/smoke/width.parquet"
LEAN = ("--cores", "2", "--config", "keep_activations=false")


@pytest.fixture
def edited(finished, tmp_path):
    """A copy of the finished study that a test may edit; file times are kept."""
    return shutil.copytree(finished, tmp_path / "copy", symlinks=True)


def jobs(folder, *arguments: str) -> dict[str, int]:
    """How many jobs of each rule a dry run would start."""
    run = snakemake(folder, *SMOKE, "--dry-run", *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    text = run.stdout + run.stderr
    counts = {name: int(count) for name, count in re.findall(r"^\s*(\w+)\s+(\d+)\b", text, flags=re.MULTILINE)}
    assert counts or "othing to be done" in text, text
    return {name: count for name, count in counts.items() if name not in ("total", "all", "crate", *RESULTS)}


def edit(folder, path: str, old: str, new: str) -> None:
    file = folder / path
    text = file.read_text()
    assert old in text, f"{old!r} is not in {path}"
    file.write_text(text.replace(old, new, 1))


def test_every_promised_output_is_there(finished):
    for result in RESULTS:
        assert len(pd.read_parquet(finished / f"results/smoke/{result}.parquet"))
        for suffix, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
            assert (finished / f"figures/smoke/{result}.{suffix}").read_bytes().startswith(magic)
    claims = pd.read_csv(finished / "results/smoke/claims.csv")
    assert list(claims.columns) == COLUMNS
    assert claims["claim"].is_unique
    assert set(claims["verdict"]) <= {"reproduced", "not reproduced", "reversed", "inconclusive", "not testable"}
    assert {claim.split(".")[0] for claim in claims["claim"]} == set(RESULTS)
    sheet = json.loads((finished / "results/smoke/data/datasheet.json").read_text())
    assert sheet["train"]["size"] == sum(sheet["train"]["per_class"]) == 400


def test_the_run_ends_with_the_table_of_verdicts_and_the_figures(finished):
    ending = (finished.parent / "terminal.txt").read_text()
    assert "Verdict" in ending and "Wider networks converge" in ending
    assert all(f"figures/smoke/{result}.png" in ending for result in RESULTS)


def test_distance_rows_carry_ranks_and_floor(finished):
    table = pd.read_parquet(finished / "results/smoke/generalization.parquet")
    rows = table[(table["quantity"] == "distance") & (table["measure"] == "pwcca")]
    assert rows[["rank_a", "rank_b", "n", "floor", "value"]].notna().all(axis=None)
    assert rows["value"].between(0, 1).all() and rows["floor"].between(0, 1).all()
    assert set(rows["layer"]) == {"conv1", "conv2", "conv3", "conv4", "conv5", "softmax"}
    # Two networks a group: 2 ordered pairs within each, 8 between, at 6 layers and on 2 splits.
    assert rows.groupby("group").size().to_dict() == {"generalizing": 24, "memorizing": 24, "inter": 96}


def test_activations_are_one_float32_matrix_a_network(finished):
    folder = finished / "results/smoke/activations/generalizing/0-1"
    (file,) = (folder / "train").glob("step-*.safetensors")
    with safe_open(file, framework="np") as tensors:
        shapes = {layer: tensors.get_slice(layer).get_shape() for layer in tensors.keys()}  # noqa: SIM118
        assert tensors.get_slice("conv5").get_dtype() == "F32"
    assert shapes == {
        "conv1": [2, 400, 4],
        "conv2": [2, 400, 4],
        "conv3": [2, 400, 8],
        "conv4": [2, 400, 8],
        "conv5": [2, 400, 16],
        "softmax": [2, 400, 10],
    }


def test_jobs_have_the_params_that_the_tests_of_reruns_compare(finished):
    """What Snakemake recorded of each job, against `jobs_of`."""
    study = Study(yaml.safe_load((finished / "studies/smoke.yaml").read_text()))
    places = {"compute": "{}.parquet", "claims": "claims/{}.csv", "merge": "claims.csv"}
    places |= {"dataset": "data/datasheet.json", "corpus": "data/corpus.json", "train": "networks/{}"}
    places |= {"activations": "activations/{}", "ablation": "ablation/{}.parquet"}
    recorded = {}
    for path in (finished / ".snakemake/metadata").iterdir():
        recorded[base64.b64decode(path.name).decode()] = json.loads(path.read_text())
    for (stage, name), job in jobs_of(study).items():
        name = name.removeprefix("smoke/")
        output = f"figures/smoke/{name}.png" if stage == "plot" else f"results/smoke/{places[stage].format(name)}"
        params = recorded.pop(output)["params"]
        assert {repr(value) for value in job.params.values()} <= set(params), output
        origin = stage not in ("dataset", "corpus")
        assert len(params) == len(job.params) + origin + (stage == "plot")  # its caption
    left = {path.removeprefix("results/smoke/") for path in recorded}
    assert {path for path in left if not path.endswith((".svg", ".pdf"))} == {
        *("data/dataset.safetensors", "data/corpus.safetensors", "ro-crate-metadata.json", "workflow")
    }


def test_the_description_of_the_run_names_every_job_and_the_workflow(finished):
    assert verification.verify("smoke", finished) == []
    graph = verification.read_json("smoke", finished)["@graph"]
    timed = {entity["@id"] for entity in graph if entity["@id"].startswith("#job/") and "endTime" in entity}
    measured = {path.stem for path in (finished / "results/smoke/benchmarks").glob("*.tsv")} - {"crate"}
    rules = {stage: rule for stage, (rule, _) in crate.RULES.items()}
    jobs = [name.split("/")[1:] for name in timed]
    assert {"-".join([rules[stage], *words]) for stage, *words in jobs} == measured
    source, copy = finished / "workflow", finished / "results/smoke/workflow"
    for path in (source / "Snakefile", *source.glob("rules/*.smk")):
        assert (copy / path.relative_to(source)).read_bytes() == path.read_bytes(), path


def test_nothing_to_do_afterwards_even_when_files_are_touched(edited):
    assert jobs(edited) == {}
    package = edited / "workflow/cca_dynamics"
    for path in (package / "training/classifiers.py", package / "results/width.py", edited / "config.yaml"):
        path.touch()
    assert jobs(edited) == {}


def test_comments_and_threads_rerun_nothing(edited):
    edit(edited, "workflow/rules/train.smk", "rule train:", "# A comment.\nrule train:")
    edit(edited, "workflow/rules/train.smk", "threads: 1", "threads: 2")
    edit(edited, "workflow/cca_dynamics/training/classifiers.py", "def train(", "# A comment.\ndef train(")
    assert jobs(edited) == {}


def test_an_edited_plot_reruns_plots_alone(edited):
    edit(edited, "workflow/cca_dynamics/results/width.py", 'ylabel="Test accuracy (%)"', 'ylabel="Accuracy (%)"')
    assert jobs(edited) == {"plot": 1}


def test_edited_claims_rerun_claims_and_what_shows_them(edited):
    edit(edited, "workflow/cca_dynamics/results/width.py", "Wider networks converge", "Wide networks converge")
    assert jobs(edited) == {"test_claims": 1, "plot": 1, "claims": 1}


def test_edited_cca_retrains_nothing(edited):
    edit(edited, "workflow/cca_dynamics/similarity/cca.py", "def cca(", "EDITED = True\n\n\ndef cca(")
    assert jobs(edited) == {}
    file = edited / "workflow/cca_dynamics/similarity/cca.py"
    text = file.read_text()
    start = text.index('"""', text.index("def cca(")) + 3
    body = text.index('"""', start) + 3
    file.write_text(text[:body] + "\n    assert x is not None" + text[body:])
    rerun = jobs(edited)
    assert not {"dataset", "train", "activations"} & set(rerun)
    assert rerun["compute"] >= 1 and rerun["plot"] >= 1


def test_another_recipe_reruns_only_its_cohorts(edited):
    edit(edited, "studies/smoke.yaml", "training: {epochs: 2, evaluate_every: 2}", "training: {epochs: 3}")
    assert jobs(edited)["train"] == 3  # the three widths


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("key", "value", "planned", "results"),
    [
        ("width.training.schedule", "constant", {"train": 3, "activations": 3, "compute": 2}, 2),  # and calibration
        ("width.measures", ["pwcca", "procrustes"], {"compute": 1}, 1),
        ("generalization.margin", 0.06, {}, 1),
        ("stability.unconverged_below", 0.8, {}, 1),
        ("clusters.ablation.orders", 3, {"ablation": 1, "compute": 2}, 2),  # and grounding, of the same networks
    ],
)
def test_another_option_reruns_what_reads_it(finished, tmp_path, key, value, planned, results):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(changed({}, f"results.{key}", value)))
    run = snakemake(finished, *SMOKE[:2], overlay, *SMOKE[2:], "--dry-run")
    counts = dict(re.findall(r"^(\w+) +(\d+) ", run.stdout + run.stderr, re.MULTILINE))
    followed = {"test_claims": results, "plot": results, "claims": 1, "crate": 1, "all": 1}
    assert {rule: int(count) for rule, count in counts.items() if rule != "total"} == {**planned, **followed}


@pytest.mark.thorough
def test_networks_that_look_older_than_their_activations_are_read_again(edited):
    """Their job ran alone, and then the clock was set back, or they were copied from elsewhere with their times."""
    (edited / "studies/other.yaml").write_text("results: {width: {training: {learning_rate: 0.07}}}")
    config = ("--configfile", "studies/smoke.yaml", "studies/other.yaml", "--cores", "2")
    folders = [f"results/smoke/networks/width-{multiplier}/0-1" for multiplier in ("0.5", "1", "2")]
    run = snakemake(edited, *config, "--", *folders)
    assert run.returncode == 0, run.stdout + run.stderr
    for path in (path for folder in folders for path in ((edited / folder), *(edited / folder).rglob("*"))):
        os.utime(path, (1e9, 1e9))
    plan = snakemake(edited, *config, "--dry-run")
    assert re.search(r"^activations +3 ", plan.stdout + plan.stderr, re.MULTILINE), plan.stdout + plan.stderr
    assert re.search(r"^compute +2 ", plan.stdout + plan.stderr, re.MULTILINE)  # and calibration


@pytest.mark.thorough
def test_a_study_with_files_of_the_future_is_refused(edited):
    os.utime(edited / "results/smoke/data/dataset.safetensors", (time.time() + 3600, time.time() + 3600))
    plan = snakemake(edited, *SMOKE, "--dry-run")
    assert plan.returncode != 0 and "in the future" in plan.stdout + plan.stderr
    subprocess.run(["bash", "-c", re.search(r"find .* \+$", plan.stdout + plan.stderr, re.MULTILINE)[0]], cwd=edited)
    assert snakemake(edited, *SMOKE, "--dry-run").returncode == 0


def test_another_seed_reruns_everything(edited):
    assert jobs(edited, "--config", "seed=7")["train"] == 13


@pytest.fixture(scope="module")
def elsewhere(finished, tmp_path_factory):
    """The smoke study run a second time: as a module of another workflow, which does not keep activations.

    The Snakefile is what snakedeploy writes, with an overlay, a prefix and a rule of its own.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    copy = copy_workflow(folder / "cca-dynamics")
    mine = folder / "mine"
    mine.mkdir()
    (mine / "Snakefile").write_text(
        f"""
configfile: "{copy}/config/config.yaml"
configfile: "{copy}/studies/smoke.yaml"

module cca:
    snakefile: "{copy}/workflow/Snakefile"
    config: config

use rule * from cca as cca_*

rule bytes:
    default_target: True
    input: "results/smoke/claims.csv", rules.cca_width.input
    output: "bytes.txt"
    shell: "wc -c {{input}} > {{output}}"
"""
    )
    run = snakemake(mine, *LEAN, PYTHONPATH=str(copy / "workflow"))
    assert run.returncode == 0, run.stdout + run.stderr
    return mine


@pytest.mark.thorough
def test_two_runs_give_identical_tables(finished, elsewhere):
    for result in RESULTS:
        table = f"results/smoke/{result}.parquet"
        assert (elsewhere / table).read_bytes() == (finished / table).read_bytes(), table
    assert (elsewhere / "results/smoke/claims.csv").read_bytes() == (finished / "results/smoke/claims.csv").read_bytes()


@pytest.mark.thorough
def test_another_workflow_can_use_this_one_as_a_module(elsewhere):
    assert "figures/smoke/width.png" in (elsewhere / "bytes.txt").read_text()


@pytest.mark.thorough
def test_a_module_with_an_empty_config_is_the_default_study(tmp_path):
    copy = copy_workflow(tmp_path / "cca-dynamics")
    (tmp_path / "Snakefile").write_text(
        f'module cca:\n    snakefile: "{copy}/workflow/Snakefile"\n    config: {{}}\nuse rule * from cca\n'
    )
    plans = snakemake(tmp_path, "--dry-run", PYTHONPATH=str(copy / "workflow")), snakemake(copy, "--dry-run")
    module, clone = (set(re.findall(r"^(\w+) +(\d+)\b", run.stdout + run.stderr, re.MULTILINE)) for run in plans)
    study = Study({})
    parts = sum(len(study.parts(cohort)) for cohort in study.cohorts)
    assert ("train", str(parts)) in module and module >= clone


@pytest.mark.thorough
def test_activations_need_not_be_kept(elsewhere):
    assert list((elsewhere / "logs/smoke/activations").rglob("*.log"))  # they were made
    assert not [path for path in (elsewhere / "results/smoke/activations").rglob("*") if path.is_file()]
    again = snakemake(elsewhere, *LEAN, PYTHONPATH=str(elsewhere.parent / "cca-dynamics/workflow"))
    assert "othing to be done" in again.stdout + again.stderr


@pytest.mark.thorough
def test_cohorts_split_over_jobs_give_the_same_distances(finished, tmp_path):
    split = copy_workflow(tmp_path / "split")
    run = snakemake(split, *SMOKE, "width", "--config", "networks_per_job=1")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Wider networks converge" in run.stdout and "Early layers" not in run.stdout
    one, other = (pd.read_parquet(folder / "results/smoke/width.parquet") for folder in (finished, split))
    columns = ["quantity", "multiplier", "state", "network_a", "network_b", "network"]
    pd.testing.assert_frame_equal(one[columns], other[columns])
    # Batched and single matrix products round differently; training amplifies that a little in two epochs.
    assert (one["value"] - other["value"]).abs().max() < 1e-3
    networks = "results/smoke/networks/width-1"
    first, *_, last = sorted(path.name for path in (finished / networks / "0-1").glob("step-*"))
    for name, tolerance in (
        (first, 0),
        (last, 1e-4),
    ):  # initial weights: bit for bit; another data order would be far off
        together, _ = read_tensors(finished / networks / "0-1" / name)
        apart = [read_tensors(split / networks / part / name)[0] for part in ("0-0", "1-1")]
        for key, tensor in together.items():
            merged = torch.cat([state[key] for state in apart])
            torch.testing.assert_close(merged, tensor, rtol=tolerance, atol=tolerance)


def test_truncated_checkpoint_is_named_and_the_remedy_works(finished, edited):
    networks = edited / "results/smoke/networks/width-0.5/0-1"
    last = max(networks.glob("step-*.safetensors"))
    last.write_bytes(last.read_bytes()[:200])
    shutil.rmtree(edited / "results/smoke/activations/width-0.5")
    run = snakemake(edited, *SMOKE, "--forcerun", "activations", "--", "results/smoke/activations/width-0.5/0-1")
    log = (edited / "logs/smoke/activations/width-0.5/0-1.log").read_text()
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    assert run.returncode != 0
    assert len(errors) == 1 and last.name in errors[0]
    assert "delete results/smoke/networks/width-0.5/0-1 and run snakemake again" in errors[0]
    assert not list((edited / "results/smoke/activations").glob("width-0.5/*"))
    shutil.rmtree(networks)
    assert snakemake(edited, *SMOKE).returncode == 0
    assert (edited / WIDTH).read_bytes() == (finished / WIDTH).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", "sede=1"), "config key sede: unknown key; did you mean seed?"),
        (("--config", "study=a/b"), "config key study"),
        (("--config", "device=tpu"), "config key device: 'tpu' is not known"),
    ],
)
def test_bad_config_is_refused_before_any_job(tmp_path, arguments, message):
    folder = copy_workflow(tmp_path / "new")
    run = snakemake(folder, "--cores", "1", *arguments)
    text = run.stdout + run.stderr
    assert run.returncode != 0 and message in text and "Traceback" not in text
    assert not (folder / "results").exists()


def test_unwritable_output_folder_is_named(tmp_path):
    folder = copy_workflow(tmp_path / "new")
    (folder / "results").write_text("not a folder")
    run = snakemake(folder, "--cores", "1", "--dry-run")
    assert run.returncode != 0 and "cannot write to results" in run.stdout + run.stderr


def test_cuda_without_a_gpu_is_refused_in_one_line(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    folder = copy_workflow(tmp_path / "new")
    run = snakemake(folder, *SMOKE, "results/smoke/networks/width-1/0-1", "--config", "device=cuda")
    log = (folder / "logs/smoke/train/width-1/0-1.log").read_text()
    assert run.returncode != 0 and "error: config key device: cuda, but PyTorch finds no GPU here" in log
    assert not (folder / "results/smoke/networks/width-1/0-1").exists()


@pytest.mark.thorough
def test_images_from_a_folder_through_the_whole_chain(tmp_path):
    """A residual network and a convnet in mixed precision, on images decoded from files."""
    folder, rng = copy_workflow(tmp_path / "new"), np.random.default_rng(0)
    write_images(folder / "images", rng, 10, 12)
    overlay = {
        "study": "images",
        "targets": ["stability", "generalization"],
        "networks_per_job": 2,
        "data_points": 60,
        "dataset": {"name": "image_folder", "folder": "images", "train_size": 90, "test_size": 60},
        "network": {"multiplier": 1},
        "training": {"batch_size": 30, "precision": "mixed", "augmentation": "none"},
        "results": {
            "stability": {
                "layer": "block2",
                "network": {"name": "resnet", "channels": [4, 8], "blocks": 1},
                "recurrent": None,
            },
            "generalization": {"networks": 2},
        },
    }
    (folder / "studies/images.yaml").write_text(yaml.safe_dump(overlay))
    run = snakemake(folder, *SMOKE[:2], "studies/images.yaml", *SMOKE[2:])
    assert run.returncode == 0, run.stdout + run.stderr
    table = pd.read_parquet(folder / "results/images/generalization.parquet")
    assert set(table["layer"].dropna()) == {"conv1", "conv2", "conv3", "conv4", "conv5", "softmax"}
    assert table["n"].dropna().max() == 60
    assert list(folder.glob("data/cache/images-*.safetensors"))
    for result in ("stability", "generalization"):
        assert (folder / f"figures/images/{result}.png").exists()


@pytest.mark.thorough
def test_plan_says_what_a_run_leaves(finished, edited):
    """The target prints; disk, which does not depend on the measurement, is within a factor of two of what is there."""
    edit(edited, "workflow/cca_dynamics/cost.py", "CALIBRATION = 20.0", "CALIBRATION = 0.5")
    run = snakemake(edited, *SMOKE, "plan")
    assert run.returncode == 0 and "Good within a factor of two" in run.stdout, run.stdout + run.stderr
    for rule, name in (("train", "networks"), ("activations", "activations")):
        (row,) = re.findall(rf"^{rule} .*?([\d.]+) MB$", run.stdout, flags=re.MULTILINE)
        files = (finished / f"results/smoke/{name}").rglob("*.safetensors")
        assert 0.5 < sum(path.stat().st_size for path in files) / 1e6 / float(row) < 2


def test_recurrent_results_share_their_models(finished):
    """Language models on text of a package; both results and the recurrent panels use one cohort."""
    assert set(pd.read_parquet(finished / "results/smoke/stability.parquet")["kind"]) == {"convolutional", "recurrent"}
    assert len(list((finished / "results/smoke/networks").glob("lstm*"))) == 2


@pytest.mark.thorough
def test_verify_finds_a_flipped_bit_and_its_command_mends_it(finished, edited):
    """`cca-dynamics verify` on the finished study, then on a damaged copy."""

    def verify(folder):
        environment = {**os.environ, "PYTHONPATH": str(folder / "workflow")}
        command = [preloaded.programs() / "cca-dynamics", "verify", "smoke"]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    assert verify(edited).returncode == 0, verify(edited).stdout
    path = max((edited / "results/smoke/networks/width-1/0-1").glob("step-*.safetensors"))
    content, stamp = bytearray(path.read_bytes()), path.stat()
    content[-7] ^= 16
    path.write_bytes(bytes(content))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    found = verify(edited)
    assert found.returncode == 1 and f"{path.relative_to(edited)}: its content has changed" in found.stdout
    (mend,) = re.findall(r"^to mend: (.+)$", found.stdout, flags=re.MULTILINE)
    remove, _, targets = mend.partition(" && snakemake ")
    assert subprocess.run(remove.split(), cwd=edited).returncode == 0
    assert snakemake(edited, *SMOKE, *targets.split()).returncode == 0
    assert verify(edited).returncode == 0, verify(edited).stdout
    assert (edited / WIDTH).read_bytes() == (finished / WIDTH).read_bytes()
