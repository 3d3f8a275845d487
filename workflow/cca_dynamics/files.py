"""Outputs appear whole or not at all, and a damaged input says which file it is and what to do.

Tensors are stored as safetensors files with a checksum of every tensor and of what is said about them, so that a
flipped bit is found when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class DamagedFile(ValueError):
    """A stored file cannot be read: one line that names it and the remedy."""

    def __init__(self, path: Path, problem: object):
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        # A part of a cohort is one output of the workflow: Snakemake remakes the folder, not a file in it.
        part = next((str(folder) for folder in path.parents if re.fullmatch(r"\d+-\d+", folder.name)), "it")
        super().__init__(f"{path} is missing or damaged ({reason}); delete {part} and run snakemake again to remake it")


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes the name `path` when the block ends without an exception.

    Args:
        path: the output, a file or a folder.
        durable: see to it that the file's content is on the disk before its name is, whatever happens to the power.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: dict[str, Tensor], **facts: object) -> None:
    """Write tensors and what there is to say about them (anything JSON) to a safetensors file, byte for byte the same
    each time.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = {**facts, "sha256": {name: _sha256(tensor) for name, tensor in tensors.items()}}
    text = json.dumps(facts, sort_keys=True)
    # Several metadata keys would be written in a random order.
    try:
        save_file(tensors, path, metadata={"facts": f"{hashlib.sha256(text.encode()).hexdigest()} {text}"})
    except SafetensorError as problem:
        raise OSError(f"{path} cannot be written ({problem}); free disk space and run again") from None


def read_tensors(
    path: Path, names: Iterable[str] | None = None, device: str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors (all, or those named) and facts of a file written by `write_tensors`.

    Raises:
        DamagedFile: the file is missing, truncated or corrupt, or lacks a tensor.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = _facts(file)
            tensors = {name: file.get_tensor(name) for name in names or file.keys()}
    except (SafetensorError, OSError, ValueError) as problem:
        raise DamagedFile(path, problem) from None
    for name, tensor in tensors.items():
        if _sha256(tensor) != facts["sha256"].get(name):
            raise DamagedFile(path, f"the checksum of {name} is wrong")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, facts


def read_facts(path: Path) -> dict[str, object]:
    """Facts of a file written by `write_tensors`, tensor names under "tensors"; the tensors are not read.

    Raises:
        DamagedFile: the file is missing, truncated or corrupt.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {**_facts(file), "tensors": list(file.keys())}
    except (SafetensorError, OSError, ValueError) as problem:
        raise DamagedFile(path, problem) from None


def checksum(facts: dict[str, object]) -> str:
    """One checksum of all tensors of a file, from its facts: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts["sha256"], sort_keys=True).encode()).hexdigest()[:16]


def _facts(file) -> dict[str, object]:
    digest, _, text = (file.metadata() or {}).get("facts", "").partition(" ")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ValueError("the checksum of its description is wrong, or it was not written by this workflow")
    facts = json.loads(text)
    if not isinstance(facts, dict) or not isinstance(facts.get("sha256"), dict):
        raise ValueError("it was not written by this workflow")
    return facts


def _sha256(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.numpy())
    return digest.hexdigest()
