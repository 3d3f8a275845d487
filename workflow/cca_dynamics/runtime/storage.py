"""Files that appear whole or not at all; a damaged file is refused with its name and the remedy.

Tensors are stored as safetensors files with a checksum of every tensor and of the metadata, so that a flipped bit is
noticed when the file is read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from cca_dynamics.errors import REMEDIES, DamagedFile, UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


CONTENTS = "contents.json"


def write_contents(folder: Path) -> None:
    """List the files of a finished folder in contents.json, so that a file that is lost later is noticed."""
    files = [path for path in folder.rglob("[!.]*") if path.is_file() and path.name != CONTENTS]
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    (folder / CONTENTS).write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")


def missing_files(folder: Path) -> list[Path]:
    """Files that a folder's contents.json lists and that are no longer there."""
    try:
        names = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        return [folder / name for name in names if not (folder / name).is_file()]
    except (OSError, ValueError, TypeError):
        return [folder / CONTENTS]


def check_complete(folder: Path) -> None:
    """Check that a folder has all the files that its contents.json lists.

    Raises:
        DamagedFile: one is missing.
    """
    for path in missing_files(folder):
        raise DamagedFile(path, "it was there when its folder was made")


def files_below(folder: Path) -> list[Path]:
    """The files in a folder and its subfolders, sorted by path; links are followed, loops are not.

    Args:
        folder: where to look; [] if it is not there.

    Raises:
        OSError: a folder cannot be read.
    """
    return list(_walk(folder, ())) if folder.is_dir() else []


def _walk(folder: Path, around: tuple[str, ...]) -> Iterator[Path]:
    """The files below a folder, given the real paths of the folders that led to it."""
    real = os.path.realpath(folder)
    if real in around:  # a link to a folder that holds it
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _walk(path, (*around, real))
        elif path.is_file():
            yield path


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes the name `path` when the block ends without an exception.

    Args:
        path: the output, a file or a folder.
        durable: make sure that the file's content is on the disk before its name is, in case the power fails.

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


def write_tensors(path: Path, tensors: dict[str, Tensor], **metadata: object) -> None:
    """Write tensors and their metadata (anything JSON) to a safetensors file, byte for byte the same each time.

    Raises:
        OSError: the folder is missing, or the user may not write there.
        UserError: the file cannot be written, e.g. because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {**metadata, "sha256": {name: _sha256(tensor) for name, tensor in tensors.items()}}
    Path(path).touch()  # with the permissions that the user's files have; safetensors would let nobody else read it
    mode = os.stat(path).st_mode
    # A single key: safetensors would write several in a random order.
    try:
        save_file(tensors, path, metadata={"facts": _checksummed(metadata)})
    except SafetensorError as problem:
        code = re.search(r"os error (\d+)", str(problem))
        remedy = REMEDIES.get(int(code[1]) if code else errno.ENOSPC, "check the disk")
        raise UserError(f"{path} cannot be written ({problem}); {remedy}") from None
    os.chmod(path, mode)


def stream_tensors(
    path: Path, shapes: dict[str, tuple[int, ...]], parts: Iterable[dict[str, Tensor]], **metadata: object
) -> None:
    """Write float32 tensors that arrive in parts and would not fit into memory at once; `read_tensors` reads them.

    Args:
        path: the file.
        shapes: shapes of the complete tensors, (networks, n, d).
        parts: dicts of tensors of shape (networks, a part of n, d), in the order of n.
        metadata: as in `write_tensors`.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full.
        ValueError: the parts do not add up to the shapes.
    """
    written = 0
    with arrays_on_disk(path, shapes, **metadata) as arrays:
        for part in parts:
            n = next(iter(part.values())).shape[1]
            for name, tensor in part.items():
                arrays[name][:, written : written + n] = tensor.detach().cpu().numpy()
            written += n
        if incomplete := [name for name, shape in shapes.items() if shape[1] != written]:
            name = incomplete[0]
            raise ValueError(f"{path}: {written} data points were given, but {name} has {shapes[name][1]}")


@contextmanager
def arrays_on_disk(
    path: Path, shapes: dict[str, tuple[int, ...]], **metadata: object
) -> Iterator[dict[str, np.ndarray]]:
    """The float32 tensors of a file, to be filled in any order within the block; at its end, the file is complete.

    What is filled is written to the disk as memory is needed, so that tensors may be larger than it. `read_tensors` and
    `read_part` read the file.

    Args:
        path: the file.
        shapes: name → shape.
        metadata: as in `write_tensors`.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full.
    """
    import numpy as np

    header = _header(shapes, {**metadata, "sha256": dict.fromkeys(shapes, "0" * 64)})
    arrays, offset = {}, len(header)
    with open(path, "wb") as file:
        size = offset + sum(4 * math.prod(shape) for shape in shapes.values())
        # Claim the space first: writing to a memory map of a full disk ends the process with a signal.
        getattr(os, "posix_fallocate", lambda handle, _, length: os.ftruncate(handle, length))(file.fileno(), 0, size)
        file.write(header)  # without checksums, as long as the final one
    for name, shape in shapes.items():
        arrays[name] = np.memmap(path, np.float32, "r+", offset, shape)
        offset += arrays[name].nbytes
    yield arrays
    for array in arrays.values():
        array.flush()
    arrays.clear()
    checksums = {name: _sha256_of_file(path, *place) for name, place in _places(path).items()}
    with open(path, "r+b") as file:
        file.write(_header(shapes, {**metadata, "sha256": checksums}))


def _header(shapes: dict[str, tuple[int, ...]], metadata: dict[str, object]) -> bytes:
    """The beginning of a safetensors file of float32 tensors that lie one after the other."""
    offset, content = 0, {"__metadata__": {"facts": _checksummed(metadata)}}
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        content[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _checksummed(metadata: dict[str, object]) -> str:
    """Metadata as they are stored: a checksum, a space, JSON."""
    text = json.dumps(metadata, sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()} {text}"


def read_tensors(
    path: Path, names: Iterable[str] | None = None, device: str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors (all, or those named) and metadata of a file written by `write_tensors`.

    Raises:
        DamagedFile: the file is missing, truncated or corrupt, or lacks a tensor.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = _metadata(file)
            tensors = {name: file.get_tensor(name) for name in names or file.keys()}
    except (SafetensorError, OSError, ValueError) as problem:
        raise DamagedFile(path, problem) from None
    for name, tensor in tensors.items():
        if _sha256(tensor) != metadata["sha256"].get(name):
            raise DamagedFile(path, f"the checksum of {name} is wrong")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, metadata


def read_part(path: Path, name: str, *index: int | slice) -> np.ndarray:
    """Part of a float32 tensor of a file, without reading the rest of it into memory.

    The first time that a process reads of a tensor, its checksum is verified, in pieces.

    Args:
        path: written by `write_tensors`, `stream_tensors` or `arrays_on_disk`.
        name: of the tensor.
        index: along its first axes, as in NumPy; slices may have a step.

    Raises:
        DamagedFile: the file is missing, truncated or corrupt, or lacks the tensor.
    """
    import numpy as np

    dtype, shape, begin, _ = _place(path, name)
    if dtype != "F32":
        raise ValueError(f"{name} of {path} is {dtype}; only float32 is read in parts")
    return np.array(np.memmap(path, np.float32, "r", begin, shape)[index])


def shape_of(path: Path, name: str) -> tuple[int, ...]:
    """Shape of a tensor of a file; its checksum is verified as by `read_part`.

    Raises:
        DamagedFile: see `read_part`.
    """
    return _place(path, name)[1]


def _place(path: Path, name: str) -> tuple[str, tuple[int, ...], int, int]:
    """Where a tensor lies in a file, see `_places`.

    Raises:
        DamagedFile: the file is missing, truncated or corrupt, or lacks the tensor.
    """
    try:
        status = Path(path).stat()
        return _verified(Path(path), name, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError) as problem:
        raise DamagedFile(path, problem) from None


@lru_cache(maxsize=4096)
def _verified(path: Path, name: str, modified: int, size: int) -> tuple[str, tuple[int, ...], int, int]:
    """Where a tensor lies in a file, see `_places`, after its checksum has been compared, once for a state of a file.

    Raises:
        DamagedFile, OSError, ValueError: the file is truncated or corrupt, or lacks the tensor.
    """
    metadata = read_metadata(path)
    if name not in metadata["tensors"]:
        raise ValueError(f"it has no tensor {name}")
    place = _places(path)[name]
    if _sha256_of_file(path, *place) != metadata["sha256"].get(name):
        raise ValueError(f"the checksum of {name} is wrong")
    return place


def _places(path: Path) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """Name → (type, shape, first byte, byte after the last) of each tensor of a safetensors file."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        content = json.loads(file.read(length))
    content.pop("__metadata__", None)
    return {
        name: (entry["dtype"], tuple(entry["shape"]), *(8 + length + offset for offset in entry["data_offsets"]))
        for name, entry in content.items()
    }


def _sha256_of_file(path: Path, dtype: str, shape: tuple[int, ...], begin: int, end: int) -> str:
    """`_sha256` of a float32 tensor that lies in a file, read in pieces."""
    digest = hashlib.sha256(f"{DTYPES.get(dtype, dtype)} {shape}".encode())
    with open(path, "rb") as file:
        file.seek(begin)
        remaining = end - begin
        while remaining and (piece := file.read(min(PIECE, remaining))):
            digest.update(piece)
            remaining -= len(piece)
    return digest.hexdigest()


PIECE = 2**24
"""Bytes that are read of a file at a time to compute its checksum."""
DTYPES = {"F32": "torch.float32"}
"""The name of a type in a safetensors file → its name in checksums."""


def read_metadata(path: Path) -> dict[str, object]:
    """Metadata of a file written by `write_tensors`, names of the tensors under "tensors"; the tensors are not read.

    Raises:
        DamagedFile: the file is missing, truncated or corrupt.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {**_metadata(file), "tensors": list(file.keys())}
    except (SafetensorError, OSError, ValueError) as problem:
        raise DamagedFile(path, problem) from None


def checksum(metadata: dict[str, object]) -> str:
    """One checksum of all tensors of a file, from its metadata: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(metadata["sha256"], sort_keys=True).encode()).hexdigest()[:16]


def _metadata(file) -> dict[str, object]:
    digest, _, text = (file.metadata() or {}).get("facts", "").partition(" ")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ValueError("the checksum of its description is wrong, or it was not written by this workflow")
    metadata = json.loads(text)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("sha256"), dict):
        raise ValueError("it was not written by this workflow")
    return metadata


def _sha256(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.numpy())
    return digest.hexdigest()
