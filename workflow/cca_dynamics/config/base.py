"""What all models of the config share: kinds of values, and errors in one line that names the key and the remedy."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from math import isfinite
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
    model_serializer,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, core_schema

from cca_dynamics.errors import ConfigError
from cca_dynamics.runtime.fingerprints import registry_keys

MANY = 1_000_000_000
"""The largest count of anything."""


class Model(BaseModel):
    """A block of the config, or an argument of a stage; it cannot be changed, and refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    registries: ClassVar[tuple[str, ...]] = ()
    """Registries of the package in which the block's `name` is a key, e.g. ("data.datasets:DATASETS",)."""

    def read_by(self, stage: str) -> dict[str, Any]:
        """The keys that a stage reads, as JSON holds them; keys that name no stages are read by all."""
        values = ((name, getattr(self, name)) for name, field in type(self).model_fields.items() if reads(stage, field))
        return {
            name: value.read_by(stage)
            if isinstance(value, Model) and not isinstance(value, Overrides)
            else as_json(value)
            for name, value in values
        }

    def with_changes(self, changes: Overrides | Mapping[str, Any]) -> Model:
        """The same block with some keys replaced."""
        given = changes.given() if isinstance(changes, Overrides) else dict(changes)
        return type(self)(**{**dict(self), **given})


def option(default: Any = ..., *stages: str, description: str, **bounds: Any) -> Any:
    """A key of the config, with the stages that read it.

    Args:
        default: its value in config.yaml.
        stages: the stages (`models.STAGES`) that run again when it alone changes, and what follows from them; none: a
            change of it makes nothing again.
        description: one line.
        bounds: as pydantic's `Field` takes them.
    """
    return Field(default, description=description, json_schema_extra={"stages": list(stages)}, **bounds)


def reads(stage: str, field: FieldInfo) -> bool:
    """Whether a stage reads a key, as far as the key itself says; without a word of its own it is like its block."""
    extra = field.json_schema_extra
    return not isinstance(extra, dict) or stage in extra["stages"]


def as_json(value: Any) -> Any:
    """Models, in lists and dicts, as JSON holds them."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return {key: as_json(item) for key, item in value.items()} if isinstance(value, dict) else value


def as_argument(value: Any) -> str:
    """JSON in one line, keys in a fixed order: how recipes, requests and options travel on a command line."""
    return json.dumps(as_json(value), sort_keys=True, separators=(",", ":"))


class Overrides(Model):
    """A block of which only some keys are given: those that differ from another block."""

    def given(self) -> dict[str, Any]:
        """The keys that are given, with their values."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set)}

    @model_serializer(mode="wrap")
    def _only_given(self, serialize: Any) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if key in self.model_fields_set}


def overrides_of(*models: type[Model], name: str) -> type[Overrides]:
    """A model with every key of some models, none of which has to be given."""
    fields: dict[str, Any] = {}
    for model in models:
        for key, field in model.model_fields.items():
            kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            if key in fields and fields[key][0] != kind:
                kind = Union[fields[key][0], kind]  # noqa: UP007 — a key whose values differ between models
            fields[key] = kind, Field(None, description=field.description)
    return create_model(name, __base__=Overrides, **fields)


def _as_number(value: object) -> object:
    """YAML and the command line give `1e-3` as text."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "is not a number")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, float) and not isfinite(value):
        raise PydanticCustomError("finite_number", "is not finite")
    return value


def _as_text(value: object) -> object:
    """YAML gives `2026-11-25` as a date and `7` as a number; both may be meant as a name."""
    return str(value) if not isinstance(value, (str, bool, list, dict, type(None))) else value


def _as_boolean(value: object) -> object:
    """`--config key=false` arrives as text."""
    if value in ("true", "false"):
        return value == "true"
    if not isinstance(value, bool):
        raise PydanticCustomError("bool_type", "is not true or false")
    return value


def _as_null(value: object) -> object:
    """`--config key=null` arrives as text."""
    return None if value == "null" else value


def each_once(values: tuple) -> tuple:
    if len(set(values)) < len(values):
        raise PydanticCustomError("repeated", "repeats an entry")
    return values


Integer = Annotated[int, BeforeValidator(_as_number)]
Number = Annotated[float, BeforeValidator(_as_number), Field(allow_inf_nan=False)]
Text = Annotated[str, BeforeValidator(_as_text)]
Boolean = Annotated[bool, BeforeValidator(_as_boolean)]
NULLABLE = BeforeValidator(_as_null)
"""Of a key at the top whose value may be null."""
Count = Annotated[Integer, Field(ge=1, le=MANY)]
Seed = Annotated[Integer, Field(ge=0, le=2**32 - 1)]


class RegistryKey:
    """Annotates text that is a key of a registry of the package, e.g. RegistryKey("training.optimizers:OPTIMIZERS").

    The keys are read from the source, so that a schema does not import PyTorch.
    """

    def __init__(self, *registries: str, prefix: str = ""):
        """Of the registries' keys, those that begin with a prefix."""
        self.registries, self.prefix = registries, prefix

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """A literal of the registry's keys."""
        keys = (key for registry in self.registries for key in registry_keys(registry))
        return core_schema.literal_schema([key for key in keys if key.startswith(self.prefix)])


def registry_entries(value: Any) -> set[str]:
    """The entries of registries that a block, or a list of blocks, names.

    Returns:
        "module:key", e.g. "training.optimizers:sgd" (see `fingerprints.code_fingerprint`).
    """
    if isinstance(value, (list, tuple)):
        return {entry for item in value for entry in registry_entries(item)}
    if not isinstance(value, Model):
        return set()
    entries = {f"{_module_of(registry)}:{value.name}" for registry in value.registries}
    for name, modules in _modules_of_keys(type(value)).items():
        given = getattr(value, name)
        keys = given if isinstance(given, tuple) else (given,)
        entries |= {f"{module}:{key}" for module in modules for key in keys if key is not None}
    for name in type(value).model_fields:
        if isinstance(below := getattr(value, name), (Model, tuple)):
            entries |= registry_entries(below)
    return entries


def _module_of(registry: str) -> str:
    return registry.partition(":")[0]


@cache
def _modules_of_keys(model: type[Model]) -> dict[str, tuple[str, ...]]:
    """The fields of a model that hold keys of registries, each with the modules of these registries."""
    fields = {}
    for name, field in model.model_fields.items():
        registries = {registry for key in _registry_keys((field.annotation, *field.metadata)) for registry in key}
        if registries:
            fields[name] = tuple(sorted(map(_module_of, registries)))
    return fields


def _registry_keys(annotations: Iterable[Any]) -> Iterator[tuple[str, ...]]:
    """The registries of each `RegistryKey` in some annotations."""
    for annotation in annotations:
        if isinstance(annotation, RegistryKey):
            yield annotation.registries
        else:
            yield from _registry_keys(getattr(annotation, "__metadata__", ()))
            yield from _registry_keys(get_args(annotation))


def decode(kind: Any, text: str | bytes) -> Any:
    """A value of a type from JSON: how stages read what the workflow passes on a command line.

    Raises:
        ConfigError: it is not JSON, or not of that type.
    """
    try:
        return _adapter(kind).validate_json(text)
    except ValidationError as problem:
        raise first_problem(problem, kind) from None


def validate(kind: Any, value: object, key: str = "") -> Any:
    """A value of a type from what YAML holds.

    Args:
        kind: a model, or an annotated union of models.
        value: dicts, lists, numbers and text.
        key: where in the config it stands, for messages.

    Raises:
        ConfigError: a key is unknown, missing or out of range; the first problem, with its key.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as problem:
        raise first_problem(problem, kind, key) from None


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


def first_problem(problem: ValidationError, kind: Any, key: str = "") -> ConfigError:
    """The problem nearest to the top of the config, as one line with its key and the remedy."""
    errors = [error for error in problem.errors(include_url=False) if not _follows_from_others(error)]
    error = min(errors, key=lambda error: (len(_keys(error["loc"], kind)), error["type"] != "extra_forbidden"))
    parts = _keys(error["loc"], kind)
    if error["type"].startswith("union_tag"):
        parts.append(error["ctx"]["discriminator"].strip("'"))
    path = ".".join(filter(None, [key, *map(str, parts)]))
    return ConfigError(path or "(top level)", " ".join(_remedy(error, kind, parts).split()))


def _follows_from_others(error: dict) -> bool:
    """Whether a list is too short only because its entries are refused."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def _remedy(error: dict, kind: Any, parts: list) -> str:
    """What is wrong with a value and what to do."""
    value, context = error["input"], error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            allowed = sorted(_fields_at(kind, error["loc"][:-1]))
            close = difflib.get_close_matches(str(parts[-1]), allowed, n=1)
            return (
                f"unknown key; did you mean {close[0]}?"
                if close
                else f"unknown key; known keys here: {', '.join(allowed)}"
            )
        case "missing" | "union_tag_not_found":
            named = [part for part, key in zip(error["loc"], _walk(error["loc"], kind), strict=True) if key[0] is None]
            needs = f"{named[-1]} needs it, " if named else ""
            return f"missing; {needs}add it (config.yaml explains every key)"
        case "literal_error" | "union_tag_invalid":
            allowed = context.get("expected") or context["expected_tags"]
            name = context.get("tag", value)
            return f"{name!r} is not known; choose one of {allowed.replace(chr(39), '').replace(' or ', ', ')}"
        case "string_pattern_mismatch":
            return f"{value!r} is not allowed; {_description(kind, error['loc']) or context['pattern']}"
        case "greater_than_equal":
            return f"{value} is too small; the least is {context['ge']:g}"
        case "greater_than":
            return f"{value} is too small; it must exceed {context['gt']:g}"
        case "less_than_equal":
            return f"{value} is too large; the most is {context['le']:g}"
        case "less_than":
            return f"{value} is too large; it must be below {context['lt']:g}"
        case "too_short":
            return f"{value!r} has too few entries; give at least {context['min_length']}"
        case "too_long":
            return f"{value!r} has too many entries; give at most {context['max_length']}"
        case "string_too_short" | "string_too_long":
            return f"{value!r} is not allowed; {_description(kind, error['loc']) or error['msg']}"
        case "repeated":
            return f"{value!r} repeats an entry; give each once"
        case "lacks":
            return f"{value!r} lacks {context['entry']}; add it"
        case "taken":
            return f"{value!r} is taken by {context['what']}; choose another name"
        case "json_invalid":
            return f"not JSON ({context['error']})"
    expected = next((name for start, name in TYPES.items() if error["type"].startswith(start)), "")
    if not expected:
        return f"{error['msg']}; correct the value"
    remedy = {("string", bool): "put it in quotes", ("object", type(None)): "give keys below it, or remove it"}
    written = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)  # true, false and null
    return f"{written} is not of type {expected}; {remedy.get((expected, type(value)), 'correct the value')}"


TYPES = {
    "int": "integer",
    "float": "number",
    "number": "number",
    "finite": "number",
    "bool": "boolean",
    "string": "string",
    "tuple": "array",
    "list": "array",
    "model": "object",
    "dict": "object",
    "union": "object",
}
"""How pydantic's kinds of errors begin → the type that was expected, in the words of JSON."""


def _keys(location: Iterable[str | int], kind: Any) -> list[str | int]:
    """Where an error is, without the names by which pydantic tells the members of a union apart."""
    keys: list[str | int] = []
    for part, _ in _walk(location, kind):
        if part is not None:
            keys.append(part)
    return keys


def _fields_at(kind: Any, location: Iterable[str | int]) -> set[str]:
    """Names of the keys of the block at a location."""
    return {name for model in _members(_kind_at(kind, location)) for name in getattr(model, "model_fields", {})}


def _description(kind: Any, location: tuple) -> str | None:
    """The description of the key at a location."""
    *above, last = [part for part in location if isinstance(part, str)]
    fields = (getattr(model, "model_fields", {}).get(last) for model in _members(_kind_at(kind, above)))
    return next((field.description for field in fields if field is not None and field.description), None)


def _kind_at(kind: Any, location: Iterable[str | int]) -> Any:
    """The type at a location."""
    kinds = [kind, *(kind_there for _, kind_there in _walk(location, kind))]
    return kinds[-1]


def fields_along(kind: Any, path: Sequence[str]) -> list[FieldInfo]:
    """The fields of a key and of the blocks around it, from the top of a type on.

    Args:
        kind: a model, or an annotated union of models; of a union, a key of any member will do.
        path: the parts of a dotted key.

    Raises:
        KeyError: there is no such key; its arguments are the keys of the last block, and the closest of them or None.
    """
    fields = []
    for part in path:
        known = {name: field for model in _members(kind) for name, field in getattr(model, "model_fields", {}).items()}
        if part not in known:
            raise KeyError(sorted(known), next(iter(difflib.get_close_matches(part, known, n=1)), None))
        fields.append(known[part])
        kind = known[part].annotation
    return fields


def _walk(location: Iterable[str | int], kind: Any):
    """(key or None, type there) along a location; None for the name of a union's member."""
    for part in location:
        members = _members(kind)
        tagged = [model for model in members if part == _tag(model)]
        if isinstance(part, str) and len(members) > 1 and tagged:
            kind = tagged[0]
            yield None, kind
            continue
        fields = [model.model_fields[part] for model in members if part in getattr(model, "model_fields", {})]
        if fields:
            kind = fields[0].annotation
        elif isinstance(part, int):
            kind = next(iter(get_args(kind)), None)
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif not any(hasattr(model, "model_fields") for model in members):
            yield None, kind  # the branch of a union of plain types
            continue
        yield part, kind


def _members(kind: Any) -> list[Any]:
    """The types that a type, perhaps a union, stands for."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (tuple, list, Literal) or not get_args(kind):
        return [kind]
    return [member for argument in get_args(kind) if argument is not type(None) for member in _members(argument)]


def _tag(model: Any) -> str | None:
    """The name by which a union knows a model."""
    for key in ("name", "kind", "data"):
        field = getattr(model, "model_fields", {}).get(key)
        if field is not None and get_origin(field.annotation) is Literal:
            return get_args(field.annotation)[0]
    return None
