"""The captions of the figures, one reStructuredText file per result in the folder captions/."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "captions"


def caption_of(result: str) -> str:
    """The caption below the figure of a result: reStructuredText that is Markdown, too.

    Raises:
        OSError: the result has no caption.
    """
    return (FOLDER / f"{result}.rst").read_text(encoding="utf-8")
