"""A config is refused before any job runs, in one line that names the key and the remedy."""

import pytest
import yaml
from cca_dynamics.study import ConfigError, Study, read_config

from tests.conftest import ROOT


def changed(config: dict, key: str, value: object) -> dict:
    *path, last = key.split(".")
    block = config
    for part in path:
        block = block.setdefault(part, {})
    block[last] = value
    return config


@pytest.mark.parametrize(
    ("key", "value", "named", "remedy"),
    [
        ("sede", 1, "sede", "did you mean seed"),
        ("results.stability.direction", 1, "results.stability.direction", "did you mean directions"),
        ("results.stabilty", {}, "results.stabilty", "did you mean stability"),
        ("training.learning_rate", -1, "training.learning_rate", "exceed 0"),
        ("training.epochs", "many", "training.epochs", "type integer"),
        ("training.batch_size", 5000, "batch_size", "smaller"),
        ("dataset.name", "mnist2d", "dataset.name", "choose one of mnist1d"),
        ("dataset.color", 3, "dataset.color", "known keys"),
        ("results.generalization.networks", 1, "results.generalization.networks", "the least is 2"),
        ("results.stability.directions", 65, "results.stability.directions", "64 or fewer"),
        ("results.stability.early_epoch", 30, "results.stability.early_epoch", "lower it or train longer"),
        ("results.stability.early_epoch", 20, "results.stability.early_epoch", "lower it or train longer"),
        ("results.stability.layer", "conv9", "results.stability.layer", "conv1 to conv5"),
        ("results.width.filters", 17, "results.width.filters", "16 or fewer"),
        ("results.width.layer", "softmax", "results.width.layer", "convolutional"),
        ("results.width.multipliers", [1, 1, 2], "results.width.multipliers", "once"),
        ("results.generalization.late_layers", ["conv4", "conv7"], "late_layers", "conv1 to conv5"),
        ("results.generalization.measures", ["cosine"], "measures", "add it"),
        ("results.generalization.measures", ["pwcca", "cca"], "measures.1", "choose one of"),
        ("network.strides", [1, 2], "network.strides", "one for each"),
        ("device", "gpu", "device", "choose one of auto, cpu, cuda"),
        ("study", "a/b", "study", "Letters, digits"),
        ("study", "../up", "study", "Letters, digits"),
        ("study", "$(touch x)", "study", "Letters, digits"),
        ("seed", -1, "seed", "the least is 0"),
        ("training.precision", "mixed", "training.precision", "use float32 for mnist1d"),
        ("training.augmentation", "flip_and_shift", "training.augmentation", "use none for mnist1d"),
        ("network.name", "resnet", "results.stability.layer", "conv1, block1 to block15 and softmax"),
        ("results.stability.network", {"name": "resnet"}, "results.stability.network.channels", "a resnet needs it"),
        ("dataset", {"name": "image_folder"}, "dataset.folder", "missing"),
        ("dataset", {"name": "cifar10", "resize": 8}, "dataset.resize", "unknown key"),
        ("data_points", 100, "data_points", "100 data points are too few for conv5 of stability"),
        ("targets", ["figure3"], "targets.0", "choose one of"),
    ],
)
def test_bad_value_is_refused_by_name(default_config, key, value, named, remedy):
    with pytest.raises(ConfigError) as refusal:
        Study(changed(default_config, key, value))
    message = str(refusal.value)
    assert named in message and remedy in message and "\n" not in message


def test_missing_key_is_named(default_config):
    del default_config["training"]["epochs"]
    with pytest.raises(ConfigError, match=r"training\.epochs: missing"):
        Study(default_config)


def test_target_without_its_block_is_named(default_config):
    del default_config["results"]["width"]
    with pytest.raises(ConfigError, match=r"targets: width is asked for but results\.width is missing"):
        Study(default_config)


def test_every_key_of_the_default_study_is_in_the_schema_and_explained(default_config):
    Study(default_config)
    lines = (ROOT / "config.yaml").read_text().splitlines()
    bare = [line for line in lines if line.strip() and not line.startswith(" ") and "#" not in line]
    # Blocks are introduced by a comment above them; scalar keys carry theirs on the line.
    assert all(line.rstrip().endswith(":") for line in bare), bare


@pytest.mark.parametrize("overlay", sorted(path.stem for path in (ROOT / "studies").glob("*.yaml")))
def test_overlays_are_valid(default_config, overlay):
    """Alone, or on top of the one they are named after; read as Snakemake reads them."""
    from snakemake.utils import update_config

    others = [path.stem for path in (ROOT / "studies").glob("*.yaml")]
    base = next((other for other in others if overlay.startswith(f"{other}-")), overlay)
    paths = [ROOT / "studies" / f"{name}.yaml" for name in dict.fromkeys([base, overlay])]
    for path in paths:
        update_config(default_config, yaml.safe_load(path.read_text()))
    assert Study(default_config).name == (base if overlay.endswith("-folder") else overlay)
    assert read_config(paths, ROOT / "config.yaml") == default_config


@pytest.mark.parametrize("content", [None, "a: [1", "- 1", b"\xff\xfe"])
def test_an_unreadable_overlay_is_named(tmp_path, content):
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"mine\.yaml cannot be read") as problem:
        read_config([path], ROOT / "config.yaml")
    assert "\n" not in str(problem.value)


def test_defaults_are_filled_in(default_config):
    del default_config["device"], default_config["results"]["width"]["networks"], default_config["dataset"]["seed"]
    study = Study(default_config)
    assert study.config["device"] == "auto"
    assert study.options("width")["networks"] == 5
    assert study.config["dataset"]["seed"] == 42


def test_a_result_overrides_the_base_recipe_alone(default_config):
    study = Study(default_config)
    assert study.training("stability")["learning_rate"] == 0.05
    assert study.training("generalization")["learning_rate"] == default_config["training"]["learning_rate"]


def test_cohorts_split_over_jobs_cover_every_network_once(default_config):
    study = Study(changed(default_config, "networks_per_job", 2))
    for cohort in study.cohorts.values():
        indices = [i for part in study.parts(cohort.name) for i in cohort.recipe(part, 0)["networks"]]
        assert indices == list(range(cohort.networks))


def test_generalizing_and_memorizing_share_one_recipe(default_config):
    study = Study(default_config)
    generalizing, memorizing = (study.cohorts[name].recipe("0-4", 0) for name in ("generalizing", "memorizing"))
    assert {key for key in generalizing if generalizing[key] != memorizing[key]} == {"cohort", "labels"}
