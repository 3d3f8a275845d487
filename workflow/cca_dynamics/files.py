"""Outputs appear whole or not at all, and a damaged input says which file it is and what to do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DamagedFile(ValueError):
    """A stored file cannot be read: one line that names it and the remedy."""

    def __init__(self, path: Path, problem: object):
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        super().__init__(f"{path} is missing or damaged ({reason}); delete it and run snakemake again to remake it")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes the name `path` when the block ends without an exception.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
