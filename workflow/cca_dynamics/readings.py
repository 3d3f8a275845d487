"""Readings of what the paper leaves open: values of keys that each result lists, and the variants that they ask for.

The config key `multiverse` lists other values of some keys, result by result. Values of keys that no network is trained
with are combined with each other, all with all, because networks are shared; values that need other networks are tried
one at a time. A reading is a variant of the study (see `variants`) of which one result alone is asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

from cca_dynamics.config.base import as_argument, as_json, fields_along, reads
from cca_dynamics.config.models import TrainedResultOptions
from cca_dynamics.errors import ConfigError, UserError
from cca_dynamics.study import Study
from cca_dynamics.variants import Family, Job

KEY = "multiverse"
MOST = 500
"""Readings of one result that can be asked for; more are a mistake."""
NEEDS_NETWORKS = ("dataset", "corpus", "train", "ablation")
"""Stages whose outputs readings share unless a value enters them."""
SHARED_BLOCKS = {"dataset": ("dataset", "data_points"), "corpus": ("corpus", "language_model", "language_training")}
"""What networks are trained on → keys at the top of the config that their results read, beside their own options."""
LONGEST_NAME = 120


class Reading(NamedTuple):
    """One way to read what the paper leaves open.

    Attributes:
        name: of the variant, below the study's folder; "" for the reading of the study itself.
        result: whose claims are tested under it.
        choices: key, as `multiverse` has it → the value in words, of every key that is listed for the result.
        changes: the keys of the config that differ from the study's, nested as in the config.
    """

    name: str
    result: str
    choices: dict[str, str]
    changes: dict[str, Any]


class _Choice(NamedTuple):
    """One key of a result and what it may be."""

    key: str
    path: tuple[str, ...]  # in the config
    given: Any  # by the study
    others: list[Any]
    needs_networks: bool


def readings(study: Study) -> dict[str, list[Reading]]:
    """The readings of every target of a study, its own first.

    Raises:
        ConfigError: a result does not have a key that is listed for it, or the readings are too many.
    """
    listed = {result: getattr(study.config.multiverse, result) for result in study.targets}
    choices = {result: [_choice(study, result, *entry) for entry in listed[result].items()] for result in listed}
    return {
        result: _readings_of_result(result, [choice for choice in of_result if choice.others])
        for result, of_result in choices.items()
    }


def changes_of(of_results: Mapping[str, list[Reading]]) -> dict[str, dict[str, Any]]:
    """Name → changes of every reading that is not the study's own, as `variants.Family` takes them."""
    return {reading.name: reading.changes for of_result in of_results.values() for reading in of_result if reading.name}


def jobs_of_claims(family: Family, of_results: Mapping[str, list[Reading]]) -> list[tuple[str, Job]]:
    """(folder, job) that tests the claims of each reading, result by result.

    Args:
        family: the study and the variants that `changes_of` gives.
        of_results: as `readings` returns them.

    Raises:
        ConfigError: a reading contradicts the rest of the config.
    """
    jobs = []
    for result, of_result in of_results.items():
        for reading in of_result:
            folder = "/".join(filter(None, [family.base.name, reading.name]))
            try:
                family.path(folder, job := Job("claims", result=result))
            except UserError as problem:
                raise ConfigError(f"{KEY}.{result}", str(problem)) from None
            jobs.append((folder, job))
    return jobs


def _readings_of_result(result: str, choices: list[_Choice]) -> list[Reading]:
    """The study's own reading, the grid of what needs no networks, and one reading for each value that does."""
    grid = [[choice.given] if choice.needs_networks else [choice.given, *choice.others] for choice in choices]
    count = 1
    for values in grid:
        count *= len(values)
    if count > MOST:
        raise ConfigError(f"{KEY}.{result}", f"asks for {count:,} readings, more than {MOST}; list fewer values")
    given = tuple(choice.given for choice in choices)
    alone = (
        (*given[:index], value, *given[index + 1 :])
        for index, choice in enumerate(choices)
        if choice.needs_networks
        for value in choice.others
    )
    readings_by_name: dict[str, Reading] = {}
    for values in (*product(*grid), *alone):
        reading = _reading(result, choices, values)
        if reading.name in readings_by_name:  # two values that look alike
            digest = hashlib.sha256(as_argument(reading.changes).encode()).hexdigest()[:8]
            reading = reading._replace(name=f"{reading.name}-{digest}")
        readings_by_name[reading.name] = reading
    return list(readings_by_name.values())


def _reading(result: str, choices: list[_Choice], values: tuple) -> Reading:
    """The reading of a result under one value for each of its choices."""
    changes: dict[str, Any] = {}
    slugs = []
    for choice, value in zip(choices, values, strict=True):
        if value == choice.given:
            continue
        block = changes
        for part in choice.path[:-1]:
            block = block.setdefault(part, {})
        block[choice.path[-1]] = value
        slugs.append(f"{choice.key.rpartition('.')[2]}-{in_words(value)}")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join([result, *slugs])).strip("-")
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    in_table = {choice.key: in_words(value) for choice, value in zip(choices, values, strict=True)}
    return Reading(f"readings/{name}" if changes else "", result, in_table, changes)


def _choice(study: Study, result: str, key: str, values: tuple) -> _Choice:
    """A key that is listed for a result: where it stands, what the study has there, and other values.

    Raises:
        ConfigError: the result does not have the key.
    """
    path = _path(study, result, key)
    stages = _stages(study, path)
    given = _given(study, result, path)
    others = [value for value in values if not _is(value, given)]
    if isinstance(given, dict):  # of a block, what the others state
        stated = [name for value in others if isinstance(value, dict) for name in value]
        given = {name: given[name] for name in dict.fromkeys(stated) if name in given}
    return _Choice(key, path, given, others, any(stage in NEEDS_NETWORKS for stage in stages))


def _path(study: Study, result: str, key: str) -> tuple[str, ...]:
    """Where a key of a reading stands in the config: among the options of its result, or in a block that it reads."""
    parts = tuple(key.split("."))
    blocks = list(_shared_blocks(study, result))
    path = parts if parts[0] in blocks else ("results", result, *parts)
    try:
        fields_along(type(study.config), path)
    except KeyError as problem:
        known, close = problem.args
        remedy = f"did you mean {close}?" if close else f"its keys are {', '.join(sorted({*known, *blocks}))}"
        raise ConfigError(f"{KEY}.{result}.{key}", f"{result} has no such reading; {remedy}") from None
    return path


def _shared_blocks(study: Study, result: str) -> Iterator[str]:
    """Keys at the top of the config that a result reads."""
    try:
        kinds = {cohort.data for cohort in study.cohorts_of(result)}
    except ConfigError:  # another key is wrong, which is said when the result is asked for
        kinds = set(SHARED_BLOCKS)
    for kind, blocks in SHARED_BLOCKS.items():
        if kind in kinds:
            yield from blocks


def _stages(study: Study, path: tuple[str, ...]) -> list[str]:
    """The stages that read a key: those that it names, or else those that the block around it names."""
    for field in reversed(fields_along(type(study.config), path)):
        if isinstance(field.json_schema_extra, dict):
            return [stage for stage in field.json_schema_extra["stages"] if reads(stage, field)]
    return list(NEEDS_NETWORKS)


def _given(study: Study, result: str, path: tuple[str, ...]) -> Any:
    """The study's own value of a key, as JSON holds it; what a result's recipe inherits, from the block it changes."""
    value = as_json(study.config)
    if isinstance(study.options(result), TrainedResultOptions) and path[2:3] in (("network",), ("training",)):
        inherited = study.config.network_of(result) if path[2] == "network" else study.config.training_of(result)
        value, path = as_json(inherited), path[3:]
    for part in path:
        value = value[part] if isinstance(value, dict) and part in value else None
    return value


def _is(value: Any, given: Any) -> bool:
    """Whether a value is the study's own; of a block, whether all that is stated is."""
    if isinstance(value, dict) and isinstance(given, dict):
        return all(key in given and _is(inner, given[key]) for key, inner in value.items())
    return (
        list(value) == list(given) if isinstance(value, (list, tuple)) and isinstance(given, list) else value == given
    )


def in_words(value: Any) -> str:
    """A value for a reader: a list by its entries, a block by its name, or else by its keys."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case list() | tuple():
            return ", ".join(map(in_words, value))
        case dict():
            return ", ".join(
                in_words(inner) if key == "name" else f"{key} {in_words(inner)}" for key, inner in value.items()
            )
    return str(value)
