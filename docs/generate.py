"""The reference pages that follow from the code: every config key from the schema, every command from the parser.

`conf.py` writes them when the documentation is built. They are in no commit, so they cannot be out of date.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from cca_dynamics import cli
from cca_dynamics.study import schema_of_configs

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
TYPES = {"object": "block", "array": "list", "null": "null"}


def pages() -> dict[str, str]:
    """File name → MyST Markdown of every generated page."""
    return {"reference-config.md": config_page(), "reference-command-line.md": command_page()}


def keys(schema: dict) -> Iterator[tuple[str, dict, str]]:
    """(dotted key, its schema, the `name` it belongs to or "") of every key, in the order of the schema."""
    yield from _keys(schema, schema, "", "")


def _keys(block: dict, root: dict, prefix: str, condition: str) -> Iterator[tuple[str, dict, str]]:
    for name, found in block.get("properties", {}).items():
        if not found:  # a placeholder: the key is described in the block outside
            continue
        found = _resolved(found, root)
        yield f"{prefix}{name}", found, condition
        yield from _keys(found, root, f"{prefix}{name}.", condition)
    for branch in block.get("allOf", []):
        kind = branch["if"]["properties"]["name"]["const"]
        inner = _resolved(branch["then"], root)
        own = {key: value for key, value in inner["properties"].items() if key not in block["properties"]}
        yield from _keys({"properties": own}, root, prefix, kind)


def _resolved(schema: dict, root: dict) -> dict:
    """The schema with its `$ref` followed; what stands beside the reference wins. The same for the items of a list."""
    if "items" in schema:
        schema = {**schema, "items": _resolved(schema["items"], root)}
    if "$ref" not in schema:
        return schema
    target = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return {**_resolved(target, root), **{key: value for key, value in schema.items() if key != "$ref"}}


def config_page() -> str:
    """Every key of a config: values, default, what config.yaml sets, meaning."""
    schema = schema_of_configs()
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    study, comments = yaml.safe_load(text), _comments(text)
    blocks: dict[str, list[tuple[str, dict, str]]] = {}
    for key, found, condition in keys(schema):
        block = ".".join(key.split(".")[: 2 if key.startswith("results.") else 1]) if "." in key else ""
        blocks.setdefault(block if block != "results" else "", []).append((key, found, condition))
    lines = [
        "# Config keys",
        "",
        "Made from `workflow/schemas/config.schema.yaml` and `config.yaml` when this page was built. A key that is not",
        "here, or a value out of its range, is refused before any job runs, in one line that names the key.",
        "",
        "*Default* is what holds if the key is absent. *Default study* is what `config.yaml` sets; an overlay",
        "(`--configfile studies/NAME.yaml`) changes single keys of it. A `network` or `training` block inside a result",
        "changes single keys of the block of that name at the top.",
        "A name in brackets: the key exists with that `name` only.",
        "",
    ]
    for block, rows in blocks.items():
        lines += [f"## {block or 'Top level'}", ""]
        lines += ["| Key | Values | Default | Default study | Meaning |", "| --- | --- | --- | --- | --- |"]
        for key, found, condition in rows:
            meaning = found.get("description") or comments.get(key, "")
            default = _value(found["default"]) if "default" in found else ""
            here = condition in ("", study[key.split(".")[0]].get("name")) if "." in key else True
            ours = _value(_look_up(study, key)) if here else ""
            cells = [f"`{key}`", _values(found), default, ours, _meaning(meaning, condition)]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _meaning(text: str, condition: str) -> str:
    text = text.replace("<", "&lt;").replace("*", "\\*")
    return f"(`{condition}`) {text}".strip() if condition else text


def _values(found: dict) -> str:
    """Type and bounds in words."""
    if "enum" in found:
        return ", ".join(f"`{value}`" for value in found["enum"])
    kinds = found.get("type", "object")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    words = [" or ".join(TYPES.get(kind, kind) for kind in kinds)]
    words += [pattern.format(found[key]) for key, pattern in BOUNDS.items() if key in found]
    if "contains" in found:
        words.append(f"`{found['contains']['const']}` among them")
    if found.get("uniqueItems"):
        words.append("each once")
    if "array" in kinds:
        words[0] += f" of {_values(found['items'])}" if "enum" in found["items"] else f" of {found['items']['type']}s"
        bounds = [pattern.format(found["items"][key]) for key, pattern in BOUNDS.items() if key in found["items"]]
        words[0] += f" ({', '.join(bounds)})" if bounds else ""
    return ", ".join(words)


def _value(value: object) -> str:
    """As it stands in a config file, on one line."""
    if value is _ABSENT or isinstance(value, dict):
        return "" if value is _ABSENT or not value else f"`{_flow(value)}`"
    return f"`{_flow(value)}`"


def _flow(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip()
    return text.removesuffix("...").strip()


_ABSENT = object()


def _look_up(config: dict, key: str) -> object:
    """The value of a dotted key; a block says nothing, its keys do."""
    found: object = config
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            return _ABSENT
        found = found[part]
    return _ABSENT if isinstance(found, dict) else found


def _comments(text: str) -> dict[str, str]:
    """Dotted key → the comment behind it in a config file of nested blocks."""
    found, place = {}, []
    for line in text.splitlines():
        match = re.match(r"( *)([A-Za-z_]+):([^#]*)(?:#\s*(.+))?$", line)
        if match:
            indent, key, _, comment = match.groups()
            place = [*place[: len(indent) // 2], key]
            if comment:
                found[".".join(place)] = comment
    return found


def command_page() -> str:
    """Every subcommand of cca-dynamics with its options."""
    parser = cli._parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    lines = [
        "# Command line",
        "",
        "Made from the program's own parser when this page was built. The rules of the workflow call these commands,",
        "one for each stage; `verdicts`, `verify`, `plan` and `publish` are for you.",
        "",
        "A problem with an input ends a command with status 1 and one line, `error: ...`, that names the file or key",
        "and the remedy. A job that is told to stop (SIGTERM, Ctrl-C) keeps what it has and ends with status 75.",
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
    kind = action.metavar or {"Path": "path", "int": "integer", "float": "number"}.get(
        getattr(action.type, "__name__", ""), "text"
    )
    return {"*": f"{kind}, any number", "+": f"{kind}, one or more"}.get(action.nargs, kind)


def _default(action: argparse.Action) -> str:
    if action.required:
        return "required"
    if action.dest == "threads":
        return "all cores"
    return "" if action.default in (None, [], "") else f"`{action.default}`"
