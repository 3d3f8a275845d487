"""The reference pages that follow from the code: every config key from the models, every command from the parser.

`conf.py` writes them when the documentation is built. They are in no commit, so they cannot be out of date.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from cca_dynamics import cli
from cca_dynamics.config.models import STAGES
from cca_dynamics.study import json_schema

ROOT = Path(__file__).parents[1]
BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minItems": "length ≥ {}",
    "maxItems": "length ≤ {}",
    "minLength": "length ≥ {}",
    "maxLength": "length ≤ {}",
    "pattern": "matches `{}`",
}
TYPES = {"object": "block", "array": "list", "null": "`null`"}
ABSENT = object()
"""Stands for a default where there is none; None is a value, `null`."""


def pages() -> dict[str, str]:
    """File name → MyST Markdown of every generated page."""
    return {"reference-config.md": config_page(), "reference-command-line.md": command_page()}


@dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
        name: dotted, e.g. "results.width.filters".
        schema: what the JSON schema says of it, with references followed.
        default: what holds if it is absent; `ABSENT` if it must be given or says nothing then.
        required: whether it must be given.
        stages: the stages that run again when it changes.
        variant: the `name` of the dataset, corpus or network that it belongs to; "": it always exists.
    """

    name: str
    schema: dict
    default: object
    required: bool
    stages: tuple[str, ...]
    variant: str = ""


def keys(schema: dict) -> Iterator[Key]:
    """Every key of a config, in the order of the schema; a key of several variants comes once for each."""
    yield from _keys_of_block(schema, schema, ABSENT, Key("", schema, ABSENT, False, ()))


def _keys_of_block(block: dict, root: dict, defaults: object, parent: Key) -> Iterator[Key]:
    """The keys of a block and of the blocks in it.

    Args:
        block: its schema, with its own reference followed.
        root: the whole schema.
        defaults: the value of the block in a config that does not mention it.
        parent: the key that the block is the value of.
    """
    for variant, alternative in _alternatives(block, root):
        below = defaults if isinstance(defaults, dict) and variant in ("", defaults.get("name")) else {}
        # A block's name is explained before the keys that depend on it.
        for name, described in sorted(alternative["properties"].items(), key=lambda item: item[0] != "name"):
            described = _resolved(described, root)
            if "const" in described:
                described = {"const": described["const"], "description": alternative.get("description", "")}
            dotted = f"{parent.name}.{name}".lstrip(".")
            stages = tuple(described.get("stages", parent.stages))
            default = below.get(name, described.get("default", ABSENT))
            required = name in alternative.get("required", []) and default is ABSENT
            key = Key(dotted, described, default, required, stages, variant or parent.variant)
            yield key
            yield from _keys_of_block(described, root, default, key)


def _alternatives(block: dict, root: dict) -> Iterator[tuple[str, dict]]:
    """(variant, schema) of the blocks that a block can be; ("", itself) where there is no choice."""
    if "properties" in block:
        yield "", block
    for kind in ("oneOf", "anyOf"):
        for described in block.get(kind, []):
            described = _resolved(described, root)
            if "properties" in described:
                yield described["properties"].get("name", {}).get("const", ""), described


def _resolved(schema: dict, root: dict) -> dict:
    """The schema with its `$ref` followed; what stands beside the reference wins. The same for the items of a list."""
    if "items" in schema:
        schema = {**schema, "items": _resolved(schema["items"], root)}
    if "$ref" not in schema:
        return schema
    target = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return {**_resolved(target, root), **{key: value for key, value in schema.items() if key != "$ref"}}


def config_page() -> str:
    """Every key of a config: values, default, the stages that run again when it changes, meaning."""
    comments = _comments((ROOT / "config.yaml").read_text(encoding="utf-8"))
    lines = [
        "# Config keys",
        "",
        "This page was made from the models of the config when the documentation was built. A key that is not here, or",
        "a value out of its range, is refused before any job runs, in one line that names the key. Editors that know",
        "JSON schemas read the same from `workflow/schemas/config.schema.yaml`.",
        "",
        "*Default* is what holds if a key is absent: its value in the default study, `config.yaml`. An overlay",
        "(`--configfile studies/NAME.yaml`) changes single keys. A `network` or `training` block of a result changes",
        "single keys of the block of that name at the top, so its keys have a default only where the result differs.",
        "`1e-3` and `1e3` are numbers, and a date is a name like any other, although YAML reads them differently.",
        "Names in brackets say which datasets, corpora or networks have the key, where not all have it.",
        "",
        "*Runs again* says what a change of the key alone costs: the stages that read it, of the result that it",
        "belongs to, or of all that use the block. What follows from these stages runs again too: after `dataset` or",
        "`corpus` comes `train`, then `activations` (and `ablation`), `compute` (the table), `claims` (the verdicts),",
        "`plot` and `merge` (claims.csv). *Nothing* means that no file is made again, but for the crate, which",
        "records the config. The tests change every key and compare what would run with this column; `snakemake -n`",
        "shows it for yours.",
        "",
    ]
    blocks: dict[str, dict[str, list[Key]]] = {}
    for key in keys(json_schema()):
        parts = key.name.split(".")
        block = ".".join(parts[: 2 if parts[0] == "results" else 1]) if len(parts) > 1 else ""
        blocks.setdefault(block, {}).setdefault(key.name, []).append(key)
    for block, rows in blocks.items():
        lines += [f"## {block or 'Top level'}", ""]
        lines += ["| Key | Values | Default | Runs again | Meaning |", "| --- | --- | --- | --- | --- |"]
        variants = {key.variant for same_name in rows.values() for key in same_name}
        for name, same_name in rows.items():
            for cells in _rows(name, same_name, variants, comments.get(name, "")):
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _rows(name: str, same_name: list[Key], variants: set[str], comment: str) -> Iterator[list[str]]:
    """The rows of one key: one, or several where its values or its meaning differ between variants of its block.

    Args:
        name: the key.
        same_name: the key in each variant.
        variants: all variants of the block.
        comment: what config.yaml says of it.
    """
    if all("const" in key.schema for key in same_name):  # the name by which the block chooses its variant
        values = ", ".join(_value(key.schema["const"]) for key in same_name)
        default = next((_value(key.default) for key in same_name if key.default is not ABSENT), "")
        meaning = " ".join(f"`{key.variant}`: {key.schema['description'].splitlines()[0]}" for key in same_name)
        yield [f"`{name}`", values, default, _stages(same_name[0]), meaning]
        return
    groups: dict[tuple[str, str], list[Key]] = {}
    for key in same_name:
        groups.setdefault((_values(key.schema), key.schema.get("description", comment)), []).append(key)
    for (values, meaning), group in groups.items():
        everywhere = {key.variant for key in group} == variants
        which = "" if everywhere else f"({', '.join(f'`{key.variant}`' for key in group)}) "
        stages = "" if values == "block" else _stages(group[0])
        yield [f"`{name}`", values, _defaults(group), stages, which + _escaped(meaning)]


def _stages(key: Key) -> str:
    """The stages that run again, in words."""
    return "everything" if key.stages == STAGES else ", ".join(key.stages) or "nothing"


def _defaults(group: list[Key]) -> str:
    """The default of a key; where variants differ in it, each with its variants."""
    variants: dict[str, list[str]] = {}
    for key in group:
        text = "required" if key.required else "" if isinstance(key.default, dict) else _value(key.default)
        variants.setdefault(text, []).append(f"`{key.variant}`")
    if len(variants) == 1:
        return next(iter(variants))
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in variants.items())


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*")


def _values(schema: dict) -> str:
    """Type and bounds in words."""
    options = schema.get("oneOf") or schema.get("anyOf")
    if options:
        separator = ", " if all("const" in option for option in options) else " or "
        return separator.join(dict.fromkeys(_values(option) for option in options))
    if "const" in schema:
        return _value(schema["const"])
    if "enum" in schema:
        return ", ".join(_value(value) for value in schema["enum"])
    kind = schema.get("type", "object")
    words = [TYPES.get(kind, kind)]
    if kind == "array":
        words[0] += f" of {_items(schema.get('items', {}))}"
    return ", ".join([*words, *_bounds(schema)])


def _items(schema: dict) -> str:
    """What a list holds, in words."""
    if "type" not in schema or "enum" in schema:
        return _values(schema)
    bounds = _bounds(schema)
    return f"{schema['type']}s" + (f" ({', '.join(bounds)})" if bounds else "")


def _bounds(schema: dict) -> list[str]:
    return [pattern.format(schema[key]) for key, pattern in BOUNDS.items() if key in schema]


def _value(value: object) -> str:
    """A value as it stands in a config file, on one line; "" if there is none."""
    if value is ABSENT:
        return ""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip()
    return f"`{text.removesuffix('...').strip()}`"


def _comments(text: str) -> dict[str, str]:
    """Dotted key → the comment behind it in a config file of nested blocks."""
    comments: dict[str, str] = {}
    path: list[str] = []
    for line in text.splitlines():
        match = re.match(r"( *)([A-Za-z_]+):([^#]*)(?:#\s*(.+))?$", line)
        if match:
            indent, key, _, comment = match.groups()
            path = [*path[: len(indent) // 2], key]
            if comment:
                comments[".".join(path)] = comment
    return comments


def command_page() -> str:
    """Every subcommand of cca-dynamics with its options."""
    parser = cli._parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    lines = [
        "# Command line",
        "",
        "Made from the program's own parser when this page was built. The rules of the workflow call these commands,",
        "one for each stage; `capture`, `compare`, `compare-networks`, `verdicts`, `protocol`, `agreement`, `verify`,",
        "`archive`, `plan`, `publish` and `schema` are for you.",
        "",
        "A problem with an input ends a command with status 1 and one line, `error: ...`, that names the file or key",
        "and the remedy. A job that is interrupted (SIGTERM, Ctrl-C) saves its state and ends with status 75.",
        "",
    ]
    for name, command in commands.choices.items():
        lines += [f"## cca-dynamics {name}", "", " ".join(command.description.split()), ""]
        lines += ["| Argument | Values | Default | Meaning |", "| --- | --- | --- | --- |"]
        for action in command._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            called = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{action.dest}`"
            lines.append(f"| {called} | {_accepts(action)} | {_default(action)} | {action.help or ''} |")
        lines.append("")
    return "\n".join(lines)


def _accepts(action: argparse.Action) -> str:
    if action.choices:
        return ", ".join(f"`{choice}`" for choice in action.choices)
    kind = action.metavar or {"Path": "path", "OutputPath": "path", "int": "integer", "float": "number"}.get(
        getattr(action.type, "__name__", ""), "text"
    )
    return {"*": f"{kind}, any number", "+": f"{kind}, one or more"}.get(action.nargs, kind)


def _default(action: argparse.Action) -> str:
    if action.required:
        return "required"
    if action.dest == "threads":
        return "all cores"
    return "" if action.default in (None, [], "") else f"`{action.default}`"
