"""Config files: YAML in which every key stands once, and overlays that say which file they rest on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cca_dynamics.errors import UserError

ON_TOP_OF = "on_top_of"
"""The key of an overlay that names the files of which one must come before it. It is no key of a study."""


class _Loader(yaml.SafeLoader):
    """Refuses a mapping in which a key stands twice, of which YAML keeps the last without a word."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"the key {key.value} stands twice", key.start_mark)
                seen.add(key.value)
        return node


def read(path: Path) -> dict[str, Any]:
    """The keys of a config file; none if it is empty.

    Raises:
        UserError: it cannot be read, is not YAML with keys at its top, has a key twice or an anchor within itself.
    """
    shown = os.path.relpath(path)
    if len(shown) > len(str(path)):
        shown = path
    try:
        content = _Loader(Path(path).read_text(encoding="utf-8")).get_single_data()
        json.dumps(content, default=str)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise UserError(f"{shown} cannot be read ({_in_a_line(problem)}); correct the path or the file") from None
    except (ValueError, RecursionError):
        raise UserError(f"{shown} cannot be read (an anchor contains itself); correct the file") from None
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{shown} cannot be read (it has no KEY: VALUE at its top); correct the path or the file")
    return content or {}


def _in_a_line(problem: Exception) -> str:
    """What is wrong, and in which line of the file."""
    if isinstance(problem, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if isinstance(problem, yaml.MarkedYAMLError) and problem.problem_mark:
        return f"line {problem.problem_mark.line + 1}: {problem.problem}"
    if isinstance(problem, OSError):
        return problem.strerror or str(problem)
    return " ".join(str(problem).split())


def read_all(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The keys of each of the config files of a run, in their order.

    Raises:
        UserError: see `read`; or an overlay comes without, or before, the file that it rests on.
    """
    contents: list[dict[str, Any]] = []
    before: set[str] = set()
    for path in map(Path, paths):
        content = read(path)
        rests_on = content.pop(ON_TOP_OF, [])
        names = [rests_on] if isinstance(rests_on, str) else list(rests_on)
        if names and not before.intersection(Path(name).name for name in names):
            raise UserError(f"{path.name} is made to come after {' or '.join(names)}; name that before it")
        before.add(path.name)
        contents.append(content)
    return contents
