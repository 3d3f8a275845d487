"""Outputs appear whole or not at all, and a damaged input says which file it is and what to do.

Tensors are stored as safetensors files with a checksum of every tensor and of what is said about them, so that a
flipped bit is found when it is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


CONTENTS = "contents.json"


class DamagedFile(ValueError):
    """A stored file cannot be read: one line that names it and the remedy."""

    def __init__(self, path: Path, problem: object):
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        # A part of a cohort is one output of the workflow: Snakemake remakes the folder, not a file in it.
        part = next((str(folder) for folder in path.parents if re.fullmatch(r"\d+-\d+", folder.name)), "it")
        super().__init__(f"{path} is missing or damaged ({reason}); delete {part} and run snakemake again to remake it")


def seal(folder: Path) -> None:
    """Write down which files a finished folder holds (contents.json), so that one that gets lost is missed."""
    files = [path for path in folder.rglob("[!.]*") if path.is_file() and path.name != CONTENTS]
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    (folder / CONTENTS).write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")


def lost(folder: Path) -> list[Path]:
    """Files of a sealed folder that are no longer there."""
    try:
        names = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        return [folder / name for name in names if not (folder / name).is_file()]
    except (OSError, ValueError, TypeError):
        return [folder / CONTENTS]


def check_whole(folder: Path) -> None:
    """See to it that a sealed folder has all its files.

    Raises:
        DamagedFile: one is gone.
    """
    for path in lost(folder):
        raise DamagedFile(path, "it was there when its folder was made")


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
    # Several metadata keys would be written in a random order.
    try:
        save_file(tensors, path, metadata={"facts": _sealed(facts)})
    except SafetensorError as problem:
        raise OSError(f"{path} cannot be written ({problem}); free disk space and run again") from None


def stream_tensors(
    path: Path, shapes: dict[str, tuple[int, ...]], parts: Iterable[dict[str, Tensor]], **facts: object
) -> None:
    """Write float32 tensors that come in parts and would not fit into memory whole; `read_tensors` reads them.

    Args:
        path: the file.
        shapes: of the whole tensors, (networks, n, d).
        parts: dicts of (networks, some of n, d) tensors in the order of n; together they are the whole.
        facts: as in `write_tensors`.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full.
        ValueError: the parts are not the whole.
    """
    import numpy as np
    import torch

    header = _header(shapes, {**facts, "sha256": dict.fromkeys(shapes, "0" * 64)})
    wholes, offset = {}, len(header)
    with open(path, "wb") as file:
        size = offset + sum(4 * math.prod(shape) for shape in shapes.values())
        # Claim the space first: a memory map of a full disk ends in a signal.
        getattr(os, "posix_fallocate", lambda handle, _, length: os.ftruncate(handle, length))(file.fileno(), 0, size)
    for name, shape in shapes.items():
        wholes[name] = np.memmap(path, np.float32, "r+", offset, shape)
        offset += wholes[name].nbytes
    done = 0
    for part in parts:
        n = next(iter(part.values())).shape[1]
        for name, tensor in part.items():
            wholes[name][:, done : done + n] = tensor.detach().cpu().numpy()
        done += n
    if short := [name for name, shape in shapes.items() if shape[1] != done]:
        raise ValueError(f"{path}: {done} data points came, but {short[0]} has {shapes[short[0]][1]}")
    for whole in wholes.values():
        whole.flush()
    sums = {name: _sha256(torch.from_numpy(whole)) for name, whole in wholes.items()}
    with open(path, "r+b") as file:
        file.write(_header(shapes, {**facts, "sha256": sums}))


def _header(shapes: dict[str, tuple[int, ...]], facts: dict[str, object]) -> bytes:
    """The beginning of a safetensors file of float32 tensors that lie one after the other."""
    offset, content = 0, {"__metadata__": {"facts": _sealed(facts)}}
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        content[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _sealed(facts: dict[str, object]) -> str:
    """Facts as they are stored: their checksum, then they."""
    text = json.dumps(facts, sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()} {text}"


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
