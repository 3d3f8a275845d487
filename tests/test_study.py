"""A config is refused before any job runs, in one line that names the key and the remedy."""

import os
import re
import subprocess
import time

import pytest
import yaml
from cca_dynamics.config import files
from cca_dynamics.config.base import as_argument, as_json
from cca_dynamics.config.models import ARCHITECTURES, option
from cca_dynamics.data.corpora import CORPORA
from cca_dynamics.data.datasets import DATASETS
from cca_dynamics.errors import ConfigError, UserError
from cca_dynamics.networks.architectures import NETWORKS
from cca_dynamics.study import Config, Study, check_file_times, json_schema, read_config

from tests.builders import ROOT, changed, overlays_of


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
        ("results.width.filters", 33, "results.width.filters", "32 or fewer"),
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
        ("study", "reference", "study", "'reference' is taken by figures/reference, where"),
        ("study", "Reference", "study", "choose another name"),
        ("study", "claims.csv", "study", "choose another name"),
        ("seed", -1, "seed", "the least is 0"),
        ("training.precision", "mixed", "training.precision", "use float32 for mnist1d"),
        ("training.augmentation", "flip_and_shift", "training.augmentation", "use none for mnist1d"),
        ("network.name", "resnet", "results.stability.layer", "conv1, block1 to block15 and softmax"),
        ("results.stability.network", {"name": "resnet"}, "results.stability.network.channels", "resnet needs it"),
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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("seed: 1e3", 1000),
        ("seed: 1000.0", 1000),
        ("seed: '1e3'", 1000),
        ("training: {batch_size: 50.0}", 50),
        ("data_points: 1500.0", 1500),
        ("data_points: 1.5e3", 1500),
        ("dataset: {train_size: 1e3}", 1000),
        ("training: {learning_rate: 1e-3}", 0.001),
        ("training: {learning_rate: 1E-3}", 0.001),
        ("language_training: {clip: 5e-1}", 0.5),
        ("study: 2026-11-25", "2026-11-25"),
        ("study: 7", "7"),
        ("study: 1e3", "1e3"),
        ("corpus: {package: scipy, train_characters: 2e4}", "scipy"),
        ("keep_activations: no", False),
    ],
)
def test_numbers_and_names_are_understood_however_yaml_reads_them(text, value):
    """YAML gives 1e3 as text, 50.0 as a float and a date as a date."""
    config = Study(yaml.safe_load(text)).config
    ((key, inner),) = yaml.safe_load(text).items()
    found = getattr(config, key)
    found = getattr(found, next(iter(inner))) if isinstance(inner, dict) else found
    assert found == value and type(found) is type(value)
    assert yaml.safe_load(as_argument(config)) == as_json(config)  # as stages read it


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("seed: 1.5", "1.5 is not of type integer"),
        ("training: {batch_size: 50.5}", "50.5 is not of type integer"),
        ("seed: '1,000'", "'1,000' is not of type integer"),
        ("study: yes", "true is not of type string; put it in quotes"),
        ("training:", "null is not of type object; give keys below it"),
        ("study: 2026-11-25T10:00:00", "Letters, digits, dots, dashes"),
        ("training: {learning_rate: .nan}", "nan is not of type number"),
    ],
)
def test_what_cannot_be_meant_is_refused_as_yaml_writes_it(text, remedy):
    with pytest.raises(ConfigError, match=re.escape(remedy)):
        Study(yaml.safe_load(text))


@pytest.mark.parametrize("key", ["network.name", "dataset.name", "corpus.name", "results.stability.network.name"])
@pytest.mark.parametrize("name", [[], ["resnet"], {"a": 1}])
def test_a_name_that_is_no_text_is_refused(default_config, key, name):
    """Lists and dicts cannot be looked up in a registry."""
    with pytest.raises(ConfigError, match=rf"config key {key}") as refusal:
        Study(changed(default_config, key, name))
    assert "\n" not in str(refusal.value)


def test_missing_key_is_named(default_config):
    with pytest.raises(ConfigError, match=r"dataset\.folder: missing"):
        Study(changed(default_config, "dataset", {"name": "image_folder"}))


def _difference(one: object, other: object, key: str = "") -> list[str]:
    """Keys whose values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = [*one, *(name for name in other if name not in one)]
        return [k for name in names for k in _difference(one.get(name), other.get(name), f"{key}.{name}")]
    return [] if one == other else [key]


def test_an_empty_config_is_the_default_study(default_config):
    assert _difference(as_json(Study({}).config), as_json(Study(default_config).config)) == []


def test_every_default_is_written_in_the_default_study(default_config):
    """Key by key: what config.yaml leaves out is optional and means nothing."""
    absent = {"results.*.network", "network.multiplier", "training.precision", "training.augmentation", "data_points"}
    absent |= {f"language_training.{key}" for key in LANGUAGE_EXTRAS}
    absent |= {f"corpus.{key}" for key in ("package", "train_characters", "valid_characters")}

    def missing(full: dict, given: dict, prefix: str = "") -> list[str]:
        keys = []
        for key, value in full.items():
            name = f"{prefix}{key}"
            if key not in given:
                keys += [name] if value != {} else []  # a result without readings has no block under multiverse
            elif isinstance(value, dict) and key not in ("network", "training"):
                keys += missing(value, given[key], f"{name}.")
        return keys

    found = missing(as_json(Config()), default_config)
    assert {name for name in found if not (name.startswith("results.") and name.endswith(".network"))} <= absent


LANGUAGE_EXTRAS = (
    "momentum",
    "weight_decay",
    "vary_windows",
    "patience",
    "activation_penalty",
    "change_penalty",
    "dropout",
)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("training.learning_rate", "1e-3", 0.001),
        ("training.batch_size", 50.0, 50),
        ("seed", "1e3", 1000),
        ("study", 7, "7"),
        ("keep_activations", "false", False),
    ],
)
def test_numbers_and_names_are_understood_as_yaml_and_the_command_line_give_them(default_config, key, value, meant):
    block = Study(changed(default_config, key, value)).config
    for part in key.split("."):
        block = getattr(block, part)
    assert block == meant and type(block) is type(meant)


@pytest.mark.parametrize(("key", "value"), [("seed", True), ("seed", 1.5), ("keep_activations", 1), ("study", None)])
def test_other_kinds_of_values_are_refused(default_config, key, value):
    with pytest.raises(ConfigError, match=f"config key {key}: .* is not of type"):
        Study(changed(default_config, key, value))


def test_a_result_that_is_no_target_is_checked_when_it_is_asked_for(default_config):
    default_config["targets"] = ["stability"]
    study = Study(changed(default_config, "results.width.filters", 33))
    assert "stability" in study.cohorts
    with pytest.raises(ConfigError, match=r"results\.width\.filters: .* 32 or fewer"):
        study.cohorts_of("width")


@pytest.mark.parametrize(
    ("result", "block"),
    [
        *(("layer_identification", "generalization"), ("grounding", "generalization"), ("grounding", "clusters")),
        *(("calibration", "generalization"), ("calibration", "width")),
    ],
)
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("network.strides", [1, 2], "2 strides for 5 channels"), ("training.batch_size", 5000, "4000 training examples")],
)
def test_a_result_checks_the_networks_of_others_that_it_compares(default_config, result, block, key, value, words):
    default_config["targets"] = [result]
    with pytest.raises(ConfigError, match=words) as found:
        Study(changed(default_config, f"results.{block}.{key}", value))
    assert found.value.key == f"results.{block}.{key}"


def test_a_stage_sees_the_options_that_it_declares_to_read():
    from cca_dynamics.config.models import ResultOptions, StageOptions

    class Inner(ResultOptions):
        size: int = option(1, "compute", description="A size.")
        margin: float = option(0.5, "claims", description="A margin.")

    class Options(ResultOptions):
        inner: Inner = option(Inner(), "compute", "claims", description="A block.")
        colour: str = option("red", "plot", description="A colour.")

    assert Options().read_by("compute") == {"inner": {"size": 1}}
    options = StageOptions(Options(), "compute", seed=3)
    assert options.inner.size == 1 and options.seed == 3 and options.given() == {"inner": {"size": 1}, "seed": 3}
    for name in ("colour", "missing"):
        with pytest.raises(AttributeError, match=name):
            getattr(options, name)
    with pytest.raises(AttributeError, match="margin is not declared to be read by compute"):
        _ = options.inner.margin


def test_every_registry_has_the_keys_that_the_config_knows():
    assert set(NETWORKS) == set(ARCHITECTURES)
    properties = json_schema()["properties"]
    for key, registry in (("dataset", DATASETS), ("corpus", CORPORA), ("network", NETWORKS)):
        assert set(properties[key]["discriminator"]["mapping"]) == set(registry)


def test_the_schema_file_is_written_from_the_models():
    text = (ROOT / "workflow/schemas/config.schema.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == json_schema(), "it is stale; run make schema"


def test_the_schema_accepts_what_the_models_accept(default_config):
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(json_schema())
    Draft202012Validator(json_schema()).validate(default_config)
    assert list(Draft202012Validator(json_schema()).iter_errors(changed(default_config, "training.epochs", 0)))


def test_every_key_of_the_default_study_is_in_the_schema_and_explained(default_config):
    Study(default_config)
    lines = (ROOT / "config.yaml").read_text().splitlines()
    bare = [line for line in lines if line.strip() and not line.startswith(" ") and "#" not in line]
    # Blocks are introduced by a comment above them; scalar keys carry theirs on the line.
    assert all(line.rstrip().endswith(":") for line in bare), bare


@pytest.mark.parametrize("overlay", sorted(path.stem for path in (ROOT / "studies").glob("*.yaml")))
def test_overlays_are_valid(default_config, overlay):
    """Alone, or on top of the one they rest on; read as Snakemake reads them."""
    from snakemake.utils import update_config

    paths = overlays_of(ROOT / "studies" / f"{overlay}.yaml")
    for path in paths:
        update_config(default_config, yaml.safe_load(path.read_text()))
    assert json_schema()["properties"].keys() >= default_config.keys()
    default_config.pop(files.ON_TOP_OF, None)
    assert Study(default_config).name == (paths[0].stem if overlay.endswith("-folder") else overlay)
    assert read_config(paths, ROOT / "config.yaml") == default_config


@pytest.mark.parametrize("content", [None, "a: [1", "- 1", b"\xff\xfe"])
def test_an_unreadable_overlay_is_named(tmp_path, content):
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"mine\.yaml cannot be read") as problem:
        read_config([path], ROOT / "config.yaml")
    assert "\n" not in str(problem.value)


def test_defaults_are_filled_in(default_config):
    del default_config["device"], default_config["results"]["width"]["networks"], default_config["dataset"]["seed"]
    study = Study(default_config)
    assert study.config.device == "auto"
    assert study.options("width").networks == 5
    assert study.config.dataset.seed == 42


def test_a_result_overrides_the_base_recipe_alone(default_config):
    own, base = default_config["results"]["stability"]["training"], default_config["training"]
    assert own["learning_rate"] != base["learning_rate"]
    config = Study(default_config).config
    assert config.training_of("stability").learning_rate == own["learning_rate"]
    assert config.training_of("stability").momentum == base["momentum"]
    assert config.training_of("generalization").learning_rate == base["learning_rate"]


def test_another_architecture_ignores_keys_that_an_overlay_inherits(default_config):
    default_config["targets"] = ["generalization"]
    default_config["network"] |= {"name": "resnet", "channels": [8, 16], "blocks": 2}
    default_config["results"]["generalization"] |= {"early_layers": ["conv1"], "late_layers": ["block3", "block4"]}
    network = Study(default_config).config.network_of("generalization")
    assert network.name == "resnet" and network.blocks == 2 and not hasattr(network, "strides")


def test_cohorts_split_over_jobs_cover_every_network_once(default_config):
    study = Study(changed(default_config, "networks_per_job", 2))
    for cohort in study.cohorts.values():
        indices = [i for part in study.parts(cohort.name) for i in cohort.recipe(part, 0).networks]
        assert indices == list(range(cohort.networks))


def test_generalizing_and_memorizing_share_one_recipe(default_config):
    study = Study(default_config)
    generalizing, memorizing = (dict(study.cohorts[name].recipe("0-4", 0)) for name in ("generalizing", "memorizing"))
    assert {key for key in generalizing if generalizing[key] != memorizing[key]} == {"cohort", "labels"}


def test_recipes_and_requests_survive_the_command_line(default_config):
    from cca_dynamics.config.base import decode
    from cca_dynamics.config.cohorts import Recipe, Request

    study = Study(default_config)
    for cohort in study.cohorts.values():
        recipe = cohort.recipe(study.parts(cohort.name)[0], study.seed)
        assert decode(Recipe, as_argument(recipe)) == recipe
        assert decode(tuple[Request, ...], as_argument(cohort.requests)) == cohort.requests


@pytest.mark.parametrize("place", ["mine/data/dataset.safetensors", "mine/networks/w/0-4/.snakemake_timestamp"])
@pytest.mark.parametrize("variant", ["", "/replicates/seed-1001"])
def test_files_of_the_future_are_named_with_the_command_that_mends_them(tmp_path, place, variant):
    file = tmp_path / "results" / place.replace("mine", f"mine{variant}")
    file.parent.mkdir(parents=True)
    file.touch()
    names = ("mine", f"mine{variant}")
    check_file_times(names, tmp_path)
    os.utime(file, (time.time() + 3600, time.time() + 3600))
    with pytest.raises(UserError, match=rf"{re.escape(str(file))} is dated 2.*, in the future") as refused:
        check_file_times(names, tmp_path)
    command = str(refused.value).partition("present time: ")[2]
    assert subprocess.run(["bash", "-c", command]).returncode == 0
    check_file_times(names, tmp_path)


def test_null_on_the_command_line_is_null():
    """`--config key=null` arrives as text."""
    config = Study({"protocol": "null", "data_points": "null"}).config
    assert config.protocol is None and config.data_points is None


def test_the_study_of_the_gpu_benchmarks_is_one():
    (names,) = re.findall(r"--configfile ((?:studies/\S+\.yaml ?)+)", (ROOT / "benchmarks/gpu.sh").read_text())
    study = Study(read_config([ROOT / name for name in names.split()], ROOT / "config.yaml"))
    assert study.name == "paper-figure3" and study.config.network.multiplier == 1


def test_no_profile_has_a_key_that_the_default_profile_overrides():
    keys = {path.parent.name: {*yaml.safe_load(path.read_text())} for path in ROOT.glob("profiles/*/config*.yaml")}
    assert len(keys) >= 5
    shared = {name: keys[name] & keys["default"] for name in keys if name != "default"}
    assert not any(shared.values()), shared
