"""A study: one validated config, and the cohorts of networks its results need.

This module decides everything that is known before a job runs. It imports nothing heavy, because Snakemake runs it each
time it builds the DAG.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, create_model

from cca_dynamics.config import files, models, protocol
from cca_dynamics.config.base import as_argument, as_json, registry_entries, validate
from cca_dynamics.config.cohorts import Cohort, merged
from cca_dynamics.config.models import NetworkOptions, StudyConfig, Training, option
from cca_dynamics.errors import ConfigError, UserError
from cca_dynamics.networks.architectures import widths
from cca_dynamics.results.claims import Obstacle
from cca_dynamics.results.registry import RESULTS
from cca_dynamics.runtime.fingerprints import code_fingerprint, texts_fingerprint

Results = create_model(
    "Results",
    __base__=models.Results,
    **{
        name: (module.Options, Field(module.Options(), description=(module.__doc__ or "").splitlines()[0]))
        for name, module in RESULTS.items()
    },
)


Multiverse = create_model(
    "Multiverse",
    __base__=models.Multiverse,
    **{
        name: (
            models.Alternatives,
            Field(getattr(module, "ALTERNATIVES", {}), description=f"Keys of results.{name} → values."),
        )
        for name, module in RESULTS.items()
    },
)

TRAIN = {"dataset": "training.classifiers:train", "corpus": "training.language_models:train"}
EXTRACT = {"dataset": "representations.extraction:extract", "corpus": "representations.language_models:extract"}
"""The functions behind two stages, which differ with what the networks of a cohort read."""


class Config(StudyConfig):
    """A study, key by key."""

    results: Results = Field(Results(), description="The options of each result.")
    multiverse: Multiverse = option(
        Multiverse(), description="Other readings of what the paper leaves open, for the target multiverse."
    )


class Study:
    """A validated config with its defaults filled in.

    Results that are not among the targets are not checked until something is asked of them.

    Args:
        config: what YAML holds; keys that are missing are those of the default study.

    Attributes:
        config: the whole config.
        name, seed, targets: the keys of these names.
        protocol: the file that the key of this name says; None if it is null.

    Raises:
        ConfigError: a key is unknown or out of range, two keys contradict each other, or the protocol cannot be read.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config: Config = validate(Config, on_top_of(as_json(Config()), config))
        self.name: str = self.config.study
        self.seed: int = self.config.seed
        self.targets: tuple[str, ...] = self.config.targets
        self.protocol = None if self.config.protocol is None else protocol.read(self.config.protocol)
        _check_network("network", self.config.network)
        self._problems: dict[str, ConfigError] = {}
        self._cohorts: dict[str, list[Cohort]] = {}
        for name in self.results:
            try:
                self._cohorts[name] = self._checked_cohorts(name)
            except ConfigError as problem:
                if name in self.targets:
                    raise
                self._problems[name] = problem

    @property
    def results(self) -> list[str]:
        """Every result that can be asked for."""
        return list(RESULTS)

    @cached_property
    def cohorts(self) -> dict[str, Cohort]:
        """All cohorts of all results, by name."""
        return merged(cohort for cohorts in self._cohorts.values() for cohort in cohorts)

    def cohorts_of(self, result: str) -> list[Cohort]:
        """The cohorts that one result is computed from.

        Raises:
            ConfigError: the options of the result contradict the rest of the config.
        """
        if result in self._problems:
            raise self._problems[result]
        return [self.cohorts[cohort.name] for cohort in self._cohorts[result]]

    def obstacles(self, result: str) -> list[Obstacle]:
        """Settings under which claims of a result could never be reproduced, whatever the data."""
        find = getattr(RESULTS[result], "obstacles", None)
        return [] if find is None or result in self._problems else find(self.config, self.options(result))

    def parts(self, cohort: str) -> list[str]:
        """The parts a cohort is trained in."""
        return self.cohorts[cohort].parts(self.config.networks_per_job)

    def options(self, result: str) -> Any:
        """The options of one result, of its module's type."""
        return getattr(self.config.results, result)

    def params(self, stage: str, cohort: str = "", part: str = "", result: str = "") -> dict[str, str | int]:
        """What the outputs of a job depend on, beside the contents of its inputs: if any of it changes, it runs again.

        Args:
            stage: a command of `cca-dynamics`, which one rule of the workflow runs.
            cohort, part: of a job that trains networks or reads one folder of them.
            result: of a job that makes one of its files.

        Returns:
            Arguments by name, and under "code" the fingerprint of the code that the job runs. Of registries it counts
            only the entries that the arguments name.

        Raises:
            ConfigError: the options of the result contradict the rest of the config.
        """
        config, networks = self.config, self.cohorts.get(cohort)
        match stage:
            case "dataset":
                arguments = {"options": config.dataset.read_by(stage), "seed": self.seed}
                code = self._code("data.datasets:materialise", names=config.dataset)
            case "corpus":
                arguments = {"options": config.corpus.read_by(stage)}
                code = self._code("data.corpora:materialise", names=config.corpus)
            case "train":
                recipe = networks.recipe(part, self.seed)
                arguments = {"recipe": recipe, "device": config.device}
                code = self._code(TRAIN[networks.data], names=recipe)
            case "activations":
                arguments = {"requests": networks.requests, "device": config.device}
                code = self._code(EXTRACT[networks.data], names=[networks.network, networks.training])
            case "ablation":
                arguments = {"request": networks.ablation, "device": config.device}
                code = self._code("representations.ablation:ablate", names=[networks.network, networks.training])
            case "compute":
                arguments = {**self._options_and_seed(stage, result), "device": config.device}
                code = self._code_of_result(stage, result, "results.stages:compute")
            case "claims":
                arguments = self._options_and_seed(stage, result)
                code = self._code_of_result(stage, result, "results.stages:judge")
            case "plot":
                arguments = {"options": self.options(result).read_by(stage)}
                code = self._code_of_result(stage, result, "results.stages:plot")
            case "multiverse":
                arguments, code = {"config": config}, self._code("report.multiverse:write")
            case "merge":
                arguments, code = {}, self._code("results.claims:merge")
            case "crate":
                arguments = {"config": config, "protocol": self._record_of_protocol()}
                code = self._code("report.crate:write")
            case "replicates":
                arguments, code = {}, self._code("report.replicates:write")
            case "report":
                arguments, code = {"config": config, "texts": texts_fingerprint()}, self._code("report.page:write")
            case _:
                raise ValueError(f"{stage} is not a stage")
        texts = {
            name: value if isinstance(value, (str, int)) else as_argument(value) for name, value in arguments.items()
        }
        return {**texts, "code": code}

    def _record_of_protocol(self) -> dict[str, Any] | None:
        """What the crate says of the protocol."""
        if self.protocol is None:
            return None
        return {
            "path": self.protocol.path,
            "sha256": self.protocol.sha256,
            "date": self.protocol.content.date.isoformat(),
            "says": self.protocol.lines(self.config, [self.seed]),
        }

    def _options_and_seed(self, stage: str, result: str) -> dict[str, Any]:
        return {"options": self.options(result).read_by(stage), "seed": self.seed}

    def _code(self, entry: str, names: Any = ()) -> str:
        """Fingerprint of a function; of registries, with the entries that some blocks name."""
        return code_fingerprint(entry, selected=registry_entries(names))

    def _code_of_result(self, stage: str, result: str, entry: str) -> str:
        """Fingerprint of a stage of a result: of its measures and its networks, and of no others."""
        named = registry_entries([self.options(result), *(cohort.network for cohort in self.cohorts_of(result))])
        return code_fingerprint(entry, f"results.{result}:{stage}", selected={*named, f"results.registry:{result}"})

    def _checked_cohorts(self, result: str) -> list[Cohort]:
        """The cohorts that a result asks for, after all checks of its options."""
        options = self.options(result)
        blocks = [*getattr(RESULTS[result], "NETWORKS_OF", ())]
        if isinstance(options, models.TrainedResultOptions):
            blocks.append(result)
        for block in blocks:
            _check_network(f"results.{block}.network", self.config.network_of(block))
            self._check_training(f"results.{block}.training", self.config.training_of(block))
        RESULTS[result].check(self.config, options)
        cohorts = RESULTS[result].cohorts(self.config, options)
        for cohort in cohorts:
            self._check_data_points(cohort)
            if cohort.data == "corpus":
                self._check_language_model()
        return cohorts

    def _check_training(self, key: str, training: Training) -> None:
        size = self.config.dataset.train_size
        if size is not None and training.batch_size > size:
            raise ConfigError(
                f"{key}.batch_size",
                f"{training.batch_size} is more than the {size} training examples; make it smaller",
            )
        if self.config.dataset.name == "mnist1d":
            for name, plain in (("precision", "float32"), ("augmentation", "none")):
                if getattr(training, name) != plain:
                    value = getattr(training, name)
                    raise ConfigError(f"{key}.{name}", f"{value} is for images; use {plain} for mnist1d")

    def _check_language_model(self) -> None:
        block = self.config.language_model
        if block.tied and block.sizes[-1] != block.embedding:
            raise ConfigError(
                "language_model.tied",
                f"the last layer has {block.sizes[-1]} units and the embedding {block.embedding} numbers; make them "
                "equal or do not tie them",
            )

    def _check_data_points(self, cohort: Cohort) -> None:
        """Layers as wide as there are data points correlate with everything."""
        sizes = {"dataset.train_size": self.config.dataset.train_size, "data_points": self.config.data_points}
        if cohort.examples is not None:  # its result names the key
            return
        known = {key: size for key, size in sizes.items() if size is not None}
        if cohort.data != "dataset" or not known:
            return
        key = min(known, key=lambda key: known[key])
        neurons = widths(cohort.network)
        for request in cohort.requests:
            for layer in neurons if request.layers == "all" else request.layers:
                if neurons[layer] >= known[key] - 1:
                    raise ConfigError(
                        key,
                        f"{known[key]} data points are too few for {layer} of {cohort.name}, which has "
                        f"{neurons[layer]} neurons; give more, several times the neurons",
                    )


def _check_network(key: str, network: NetworkOptions) -> None:
    """Refuse a block whose lists do not have one entry per layer, and a module that is not there."""
    other = network.one_entry_per_channel
    if other and len(network.channels) != len(getattr(network, other)):
        raise ConfigError(
            f"{key}.{other}",
            f"{len(getattr(network, other))} {other} for {len(network.channels)} channels; give one for each of "
            f"{key}.channels",
        )
    models.with_source(network, key)


def on_top_of(defaults: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Two configs merged key by key; a block that names another dataset, corpus or network replaces the default's."""
    result = dict(defaults)
    for key, value in changes.items():
        below = defaults.get(key)
        both = isinstance(below, dict) and isinstance(value, Mapping)
        same = both and value.get("name", below.get("name")) == below.get("name")
        result[key] = on_top_of(below, value) if same else value
    return result


def read_config(
    overlays: Sequence[Path], base: Path = Path("config.yaml"), entries: Sequence[str] = ()
) -> dict[str, Any]:
    """config.yaml with overlays on top, merged key by key as Snakemake merges them.

    Args:
        overlays: files, in order.
        base: the file below them.
        entries: KEY=VALUE, on top of all files, as Snakemake reads those after `--config`.

    Raises:
        UserError: a file cannot be read or lacks the one that it rests on (see `config.files.read_all`), or an entry is
            not KEY=VALUE.
    """
    from snakemake.cli import parse_config
    from snakemake.utils import update_config

    config: dict[str, Any] = {}
    for content in files.read_all([base, *overlays]):
        update_config(config, content)
    try:
        update_config(config, parse_config(entries))
    except ValueError:
        raise UserError(f"--config {' '.join(entries)} is not KEY=VALUE; correct it") from None
    return config


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


def check_file_times(names: Sequence[str], root: Path = Path()) -> None:
    """Fail before any job runs if files of a study are dated in the future, as they are when a clock was set back.

    Snakemake would throw away what a job makes of them, because it is older than they are.

    Args:
        names: folders of the study and of its variants below results/ and figures/; the study's first.
        root: where results/ and figures/ are.

    Raises:
        UserError: a file that jobs read is dated more than a minute ahead; with the command that mends it.
    """
    folders = [root / kind / name for name in names for kind in ("results", "figures")]
    patterns = ("*.*", "data/*", "claims/*", "ablation/*/*", "*/*/*/.snakemake_timestamp")  # the last: of whole folders
    outputs = (path for folder in folders if folder.exists() for pattern in patterns for path in folder.glob(pattern))
    times = {path: path.lstat().st_mtime for path in outputs}
    last = max(times, key=times.get, default=None)
    if last is not None and times[last] > time.time() + 60:
        date = datetime.fromtimestamp(times[last]).strftime("%Y-%m-%d %H:%M")
        existing = " ".join(shlex.quote(str(folder)) for folder in folders[:2] if folder.exists())
        raise UserError(
            f"{last} is dated {date}, in the future; if the clock was set back, give all such files the present time: "
            f"find {existing} -newermt now -exec touch -h -t $(date +%Y%m%d%H%M.%S) {{}} +"
        )


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config, which editors and the documentation read."""
    schema = _without_titles(Config.model_json_schema())
    schema["properties"][files.ON_TOP_OF] = {
        "description": "Of an overlay: the file that must come before it, or several of which one must.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _without_titles(schema: Any) -> Any:
    """A schema without titles, which only repeat names, and without null as the default of keys that may be absent."""
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    absent = "default" in schema and schema["default"] is None and {"type": "null"} not in schema.get("anyOf", [])
    dropped = {"default"} if absent else set()
    if isinstance(schema.get("title"), str):
        dropped.add("title")
    return {JSON_NAMES.get(key, key): _without_titles(value) for key, value in schema.items() if key not in dropped}


JSON_NAMES = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""pydantic leaves the names of bounds as they are where another validator comes first."""
