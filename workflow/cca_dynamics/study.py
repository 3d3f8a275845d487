"""A study: one validated config, and the cohorts of networks its results need.

This module decides everything that is known before a job runs. It imports nothing heavy, because Snakemake runs it each
time it builds the DAG.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import yaml

from cca_dynamics.architectures import missing_keys, widened, widths
from cca_dynamics.provenance import module_fingerprint, registry_keys

SCHEMA = Path(__file__).parents[1] / "schemas" / "config.schema.yaml"


class ConfigError(ValueError):
    """The config cannot be run: one line that names the key and the remedy."""

    def __init__(self, key: str, problem: str):
        super().__init__(f"config key {key}: {problem}")
        self.key = key


@dataclass(frozen=True)
class Cohort:
    """Networks that share an architecture and a recipe and differ in seed (and, in a sweep, in learning rate).

    Attributes:
        name: unique in the study; part of every random stream of its networks and of its path.
        networks: how many.
        network, training: complete recipe blocks; training.learning_rate may be a list with one value per network.
        labels: "true" or "permuted".
        checkpoints: epochs (fractions allowed) after which the networks are stored; the end is always stored.
        activations: what of them is extracted: dicts of epochs, splits, layers.
        ablation: how they are ablated at the end, see `ablation.ablate`; None: not at all.
        data: what they are trained on, the study's "dataset" or its "corpus".
    """

    name: str
    networks: int
    network: dict
    training: dict
    labels: str = "true"
    checkpoints: tuple[float, ...] = ()
    activations: tuple[dict, ...] = ()
    ablation: dict | None = None
    data: str = "dataset"

    def parts(self, networks_per_job: int) -> list[str]:
        """How the cohort is split over jobs: "0-49", "50-99", ... (first and last network of each part)."""
        starts = range(0, self.networks, networks_per_job)
        return [f"{first}-{min(first + networks_per_job, self.networks) - 1}" for first in starts]

    def recipe(self, part: str, seed: int) -> dict:
        """Everything that determines the networks of one part, as `training.train` takes it."""
        first, last = map(int, part.split("-"))
        training = dict(self.training)
        if isinstance(training["learning_rate"], list):
            training["learning_rate"] = training["learning_rate"][first : last + 1]
        return {
            "cohort": self.name,
            "data": self.data,
            "seed": seed,
            "networks": list(range(first, last + 1)),
            "labels": self.labels,
            "network": self.network,
            "training": training,
            "checkpoints": list(self.checkpoints),
        }


class Study:
    """A validated config with its defaults filled in.

    Raises:
        ConfigError: a key is unknown, missing or out of range, or two keys contradict each other.
    """

    def __init__(self, config: dict):
        from cca_dynamics.results import RESULTS

        self.config = validated(config)
        self.name: str = self.config["study"]
        self.seed: int = self.config["seed"]
        self.targets: list[str] = self.config["targets"]
        for target in self.targets:
            if target not in self.config["results"]:
                raise ConfigError("targets", f"{target} is asked for but results.{target} is missing; add that block")
        self._check_network("network", self.config["network"])
        for name in self.configured:
            self._check_network(f"results.{name}.network", self.network(name))
            self._check_training(f"results.{name}.training", self.training(name))
            RESULTS[name].check(self)
        self._check_data_points()
        self._check_language_model()

    @property
    def configured(self) -> list[str]:
        """The results this config describes."""
        return list(self.config["results"])

    def options(self, result: str) -> dict:
        """The config block of one result, with the study's seed, as its compute, claims and plot functions take it."""
        return {**self.config["results"][result], "seed": self.seed}

    def network(self, result: str) -> dict:
        """The architecture of one result: the base with the result's own changes, the multiplier multiplied out.

        A result that names another architecture describes it wholly.

        Raises:
            ConfigError: a key is missing.
        """
        base, own = self.config["network"], self.config["results"][result].get("network", {})
        network = {**base, **own} if own.get("name", base["name"]) == base["name"] else own
        self._require_keys(f"results.{result}.network", network)
        return _sourced(f"results.{result}.network", widened(network))

    def training(self, result: str) -> dict:
        """The training recipe of one result: the base with the result's own changes."""
        return {**self.config["training"], **self.config["results"][result].get("training", {})}

    @cached_property
    def cohorts(self) -> dict[str, Cohort]:
        """All cohorts of the configured results, by name."""
        from cca_dynamics.results import RESULTS

        return {cohort.name: cohort for name in self.configured for cohort in RESULTS[name].cohorts(self)}

    def cohorts_of(self, result: str) -> list[Cohort]:
        """The cohorts one result is computed from."""
        from cca_dynamics.results import RESULTS

        return [self.cohorts[cohort.name] for cohort in RESULTS[result].cohorts(self)]

    def parts(self, cohort: str) -> list[str]:
        """The parts a cohort is trained in."""
        return self.cohorts[cohort].parts(self.config["networks_per_job"])

    def requests(self, cohort: str) -> list[dict]:
        """The activations that are wanted of a cohort, as `activations.extract` takes them."""
        points = {"points": self.config.get("data_points")}
        return [points | request for request in self.cohorts[cohort].activations]

    def selected(self) -> list[str]:
        """Registry keys this study uses: its dataset, networks, optimisers and measures (see `provenance`)."""
        names = {self.config["dataset"]["name"], self.config["corpus"]["name"]}
        for cohort in self.cohorts.values():
            training = cohort.training
            names |= {training["optimizer"], training.get("schedule", "constant"), training.get("augmentation", "none")}
            names |= {training["initial"]} if "initial" in training else set()
            names |= {cohort.network["name"]} if "name" in cohort.network else set()
        for block in self.config["results"].values():
            names |= set(block.get("measures", ["pwcca"]))
        return sorted(names)

    def require_layer(self, key: str, layer: str, network: dict) -> int | None:
        """The number of neurons of a layer, None for softmax.

        Raises:
            ConfigError: the network has no such layer.
        """
        known = widths(network)
        if layer not in known:
            *hidden, _ = known
            names = {"convnet": f"conv1 to {hidden[-1]}", "resnet": f"conv1, block1 to {hidden[-1]}"}
            listed = names.get(network["name"], ", ".join(hidden))
            raise ConfigError(key, f"the network has no {layer}; its layers are {listed} and softmax")
        return None if layer == "softmax" else known[layer]

    def _require_keys(self, key: str, network: dict) -> None:
        missing = missing_keys(network)
        if missing:
            raise ConfigError(f"{key}.{missing[0]}", f"missing; a {network['name']} needs it")

    def _check_network(self, key: str, network: dict) -> None:
        self._require_keys(key, network)
        one_each = {"convnet": "strides", "module": "layers"}.get(network["name"])
        if one_each and len(network["channels"]) != len(network[one_each]):
            raise ConfigError(
                f"{key}.{one_each}",
                f"{len(network[one_each])} {one_each} for {len(network['channels'])} channels; give one for each of "
                f"{key}.channels",
            )
        _sourced(key, network)

    def _check_training(self, key: str, training: dict) -> None:
        size = self.config["dataset"].get("train_size")
        if size is not None and training["batch_size"] > size:
            raise ConfigError(
                f"{key}.batch_size",
                f"{training['batch_size']} is more than the {size} training examples; make it smaller",
            )
        if self.config["dataset"]["name"] == "mnist1d":
            for name, plain in (("precision", "float32"), ("augmentation", "none")):
                if training.get(name, plain) != plain:
                    raise ConfigError(f"{key}.{name}", f"{training[name]} is for images; use {plain} for mnist1d")

    def _check_language_model(self) -> None:
        block = self.config["language_model"]
        if block["tied"] and block["sizes"][-1] != block["embedding"]:
            raise ConfigError(
                "language_model.tied",
                f"the last layer has {block['sizes'][-1]} units and the embedding {block['embedding']} numbers; make "
                "them equal or do not tie them",
            )

    def _check_data_points(self) -> None:
        """Layers as wide as there are data points correlate with everything."""
        sizes = [self.config["dataset"].get("train_size"), self.config.get("data_points")]
        points = min((size for size in sizes if size is not None), default=None)
        key = "data_points" if points == sizes[1] else "dataset.train_size"
        for cohort in self.cohorts.values() if points else ():
            if cohort.data != "dataset":
                continue
            known = widths(cohort.network)
            for request in cohort.activations:
                for layer in known if request["layers"] == "all" else request["layers"]:
                    if known[layer] >= points - 1:
                        raise ConfigError(
                            key,
                            f"{points} data points are too few for {layer} of {cohort.name}, which has {known[layer]} "
                            f"neurons; give more, several times the neurons",
                        )


def _sourced(key: str, network: dict) -> dict:
    """A `network` block that names a user's module with the fingerprint of its code; another as it is.

    Raises:
        ConfigError: the module is not there.
    """
    if network["name"] != "module":
        return network
    try:
        source = module_fingerprint(network["module"].partition(":")[0])
    except ValueError as problem:
        raise ConfigError(f"{key}.module", str(problem)) from None
    return {part: network[part] for part in ("name", "module", "layers", "channels")} | {"source": source}


def read_config(overlays: Sequence[Path], base: Path = Path("config.yaml")) -> dict:
    """config.yaml with overlays on top, merged key by key as Snakemake merges them.

    Raises:
        ConfigError: a file is missing or not YAML.
    """
    from snakemake.utils import update_config

    config: dict = {}
    for path in (base, *overlays):
        try:
            update_config(config, yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {})
        except (OSError, UnicodeDecodeError, AttributeError, yaml.YAMLError) as problem:
            raise ConfigError(
                "(file)", f"{path} cannot be read ({' '.join(str(problem).split())}); correct the path or the file"
            ) from None
    return config


def validated(config: dict) -> dict:
    """A copy of the config with the schema's defaults filled in.

    Raises:
        ConfigError: the schema refuses a key or a value; the first problem, with its key.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    schema = schema_of_configs()
    config = copy.deepcopy(dict(config))
    for key, value in config.items():  # `--config key=false` arrives as text
        if schema["properties"].get(key, {}).get("type") == "boolean" and value in ("true", "false"):
            config[key] = value == "true"
    error = best_match(Draft202012Validator(schema).iter_errors(config))
    if error is not None:
        raise _readable(error)
    return _with_defaults(config, schema, schema)


@cache
def schema_of_configs() -> dict:
    """The JSON schema of a config; what is registered in the package is spelled out."""
    return _with_registries(yaml.safe_load(SCHEMA.read_text(encoding="utf-8")))


def _with_registries(schema: object) -> object:
    """The schema with `registry: "module:NAME"` (or several, with " + ") replaced by `enum:`."""
    if isinstance(schema, list):
        return [_with_registries(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    expanded = {key: _with_registries(value) for key, value in schema.items() if key != "registry"}
    if isinstance(schema.get("registry"), str):
        expanded["enum"] = [key for entry in schema["registry"].split(" + ") for key in registry_keys(entry)]
    return expanded


def _readable(error) -> ConfigError:
    path = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        allowed = sorted(error.schema.get("properties", {}))
        unknown = next(key for key in error.instance if key not in allowed)
        close = difflib.get_close_matches(str(unknown), allowed, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys here: {', '.join(allowed)}"
        return ConfigError(f"{path}.{unknown}".lstrip("."), f"unknown key; {hint}")
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return ConfigError(f"{path}.{missing}".lstrip("."), "missing; add it (config.yaml explains every key)")
    remedies = {
        "enum": lambda: f"{error.instance!r} is not known; choose one of {', '.join(map(str, error.validator_value))}",
        "pattern": lambda: (
            f"{error.instance!r} is not allowed; {error.schema.get('description', error.validator_value)}"
        ),
        "minimum": lambda: f"{error.instance} is too small; the least is {error.validator_value}",
        "exclusiveMinimum": lambda: f"{error.instance} is too small; it must exceed {error.validator_value}",
        "maximum": lambda: f"{error.instance} is too large; the most is {error.validator_value}",
        "exclusiveMaximum": lambda: f"{error.instance} is too large; it must be below {error.validator_value}",
        "type": lambda: f"{error.instance!r} is not of type {error.validator_value}; correct the value",
        "contains": lambda: f"{error.instance!r} lacks {error.validator_value.get('const')}; add it",
        "minItems": lambda: f"{error.instance!r} has too few entries; give at least {error.validator_value}",
        "uniqueItems": lambda: f"{error.instance!r} repeats an entry; give each once",
    }
    problem = remedies.get(error.validator, lambda: error.message)()
    return ConfigError(path or "(top level)", " ".join(problem.split()))


def _with_defaults(value: object, schema: dict, root: dict) -> object:
    if "$ref" in schema:
        target = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        value = _with_defaults(value, target, root)
    if isinstance(value, dict):
        for key, sub in schema.get("properties", {}).items():
            default = sub.get(
                "default", root["$defs"][sub["$ref"].rpartition("/")[2]].get("default") if "$ref" in sub else None
            )
            if key not in value and default is not None:
                value[key] = copy.deepcopy(default)
            if key in value:
                value[key] = _with_defaults(value[key], sub, root)
        for branch in schema.get("allOf", []):
            names = branch["if"]["properties"]["name"]
            if value.get("name") == names["const"]:
                value = _with_defaults(value, branch["then"], root)
    return value


def check_output_folders(study: Study, root: Path = Path()) -> None:
    """Fail before any job runs if the study's outputs cannot be written.

    Raises:
        ConfigError: results/<study> or figures/<study> is not a folder, or not writable.
    """
    for name in ("results", "figures"):
        folder = root / name / study.name
        for path in (folder, *folder.parents):
            if path.exists():
                if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
                    raise ConfigError(
                        "study", f"cannot write to {path}; make it a writable folder or choose another study name"
                    )
                break


def as_argument(value: object) -> str:
    """JSON in one line, keys in a fixed order: how recipes and options travel on a command line."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
