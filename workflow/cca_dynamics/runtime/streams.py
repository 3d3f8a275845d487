"""Output on terminals and in logs whose encoding lacks some of the characters that this package prints."""

from __future__ import annotations

import codecs
import sys
import unicodedata

PLAIN = {"✓": "+", "✗": "x", "–": "-", "—": "-", "…": "...", "·": "|", "×": "x", "±": "+-", "≥": ">=", "≤": "<="}
PLAIN |= {"−": "-", "▸": ">", "━": "=", "╸": "-", "─": "-", "█": "#", "“": '"', "”": '"', "’": "'", "α": "alpha"}
PLAIN |= {"ρ": "rho", "→": "->", "↔": "<->"}
"""Characters → what stands for them in ASCII."""


def print_plainly() -> None:
    """From now on, print plain characters instead of those that the encoding of stdout or stderr lacks."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")


def _plain(problem: UnicodeError) -> tuple[str, int]:
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    characters = problem.object[problem.start : problem.end]
    return "".join(map(_in_ascii, characters)), problem.end


def _in_ascii(character: str) -> str:
    letters = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return PLAIN.get(character) or letters or "?"
