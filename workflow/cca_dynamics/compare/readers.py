"""Representations from files that others wrote: NumPy, safetensors and PyTorch.

Nothing in a file is executed: pickled objects are refused, and of PyTorch's files only tensors are read.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cca_dynamics.errors import DamagedFile, UserError, as_user_error
from cca_dynamics.runtime.storage import read_tensors

POINTER = b"version https://git-lfs.github.com/spec"
"""How a pointer of Git LFS begins."""
WRITTEN_HERE = re.compile("[0-9a-f]{64} ")
"""How the metadata "facts" of a file of ours begins; files from elsewhere may say something else under that name."""
DESCRIPTION = "__description__"
"""Entry of an .npz file of ours with what there is to say about its arrays, JSON; safetensors have a place for that.
Files from elsewhere may say something else under that name."""


@dataclass(frozen=True, eq=False)
class Representation:
    """One layer of one network.

    Attributes:
        name: short, and unique among those that were read together: "file:layer".
        source: how messages call it, the file's path first.
        x: (n, d) activations of n data points.
        positions: (height, width) of the feature maps that x is the mean of; None if the file has no maps.
    """

    name: str
    source: str
    x: Tensor
    positions: tuple[int, int] | None


def read(paths: Sequence[Path], paired: bool = False) -> list[Representation]:
    """All representations of some files, in their order.

    Files that were captured from the same images in another order are put into the order of the first one.

    Args:
        paths: .npy, .npz, .safetensors, .pt or .pth. An array is (data points, neurons) or (data points, channels,
            height, width), whose mean over space is taken; in .safetensors that the workflow wrote also (networks, data
            points, neurons), its activations.
        paired: take row i of all files for the same data point, whatever they say of it.

    Returns:
        One representation an array, or one a network where networks are stacked.

    Raises:
        UserError: a file cannot be read or holds something else, numbers of data points differ, or two files were
            captured from different images; in one line that begins with the file's name.
    """
    representations, first = [], None
    for path, label in zip(paths, _labels(paths), strict=True):
        arrays, facts = _arrays(path)
        if not arrays:
            raise UserError(f"{path}: it holds no array; save at least one layer in it")
        points = DataPoints.of(path, facts)
        order = None
        if points is not None and not paired:
            first = first or points
            order = points.order_of(first)
        for key, array in arrays.items():
            stacked = bool(facts) and "layers" not in facts  # what was captured is one network's
            for layer, x, positions in _layers(path, printable(key), array, stacked):
                name = ":".join(part for part in (label if len(paths) > 1 or not layer else "", layer) if part)
                x = x if order is None else _in_order(x, order, facts.get("rows", {}).get(key), f"{path}: {layer}")
                representations.append(Representation(name, f"{path}: {layer or 'the array'}", x, positions))
    names = [representation.name for representation in representations]
    for representation in representations:
        if names.count(representation.name) > 1:
            raise UserError(f"{representation.source} has the same name as another; rename one")
        if len(representation.x) != len(representations[0].x):
            raise UserError(
                f"{representation.source} has {len(representation.x)} data points and {representations[0].source} "
                f"{len(representations[0].x)}; compare activations of the same data points"
            )
    return representations


def _in_order(x: Tensor, order: list[int], rows: list[int] | None, source: str) -> Tensor:
    """Rows in an order of the inputs, each of which may have given several rows: so many if they are not as many."""
    if rows is not None and len(rows) == len(order) and sum(rows) == len(x):
        of_inputs = x.split(rows)
        return torch.cat([of_inputs[i] for i in order])
    if rows is not None or len(x) % len(order):
        raise UserError(
            f"{source} has other numbers of rows for each input, so they cannot be put in order; capture it again"
        )
    return x.unflatten(0, (len(order), -1))[order].flatten(0, 1)


@dataclass(frozen=True)
class DataPoints:
    """What a captured file says of its data points.

    Attributes:
        path: the file.
        checksum: of their names and contents, whatever their order.
        ids: their names, in the order of the rows; () in files of a version that did not store them.
    """

    path: Path
    checksum: str
    ids: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, facts: dict[str, object]) -> DataPoints | None:
        """What a file's facts say; None if it was not captured."""
        checksum, ids = facts.get("files"), facts.get("ids")
        if not isinstance(checksum, str):
            return None
        return cls(path, checksum, tuple(map(str, ids)) if isinstance(ids, list) else ())

    def order_of(self, first: DataPoints) -> list[int] | None:
        """The rows of this file in the order of another's data points; None if it is the same.

        Raises:
            UserError: the data points are others, or have the same names and other contents.
        """
        if self.checksum == first.checksum and self.ids == first.ids:
            return None
        if len(set(self.ids)) < len(self.ids) or len(set(first.ids)) < len(first.ids):
            raise UserError(
                f"{self.path}: some of its data points have the same name, so they cannot be told from those of "
                f"{first.path}; give each a name of its own, or add --paired to compare row by row"
            )
        either = "capture both from the same inputs, with equal --points, or add --paired to compare row by row"
        if not self.ids or sorted(self.ids) != sorted(first.ids):
            raise UserError(f"{self.path}: it was captured from other inputs than {first.path}; {either}")
        if self.checksum != first.checksum:
            raise UserError(
                f"{self.path}: its inputs have the names of those of {first.path}, but other contents; {either}"
            )
        row_of = {name: row for row, name in enumerate(self.ids)}
        return [row_of[name] for name in first.ids]


def load_without_code(path: Path, remedy: str) -> Mapping:
    """What torch.save wrote, on the CPU: tensors (one alone under the name ""), numbers, texts and dicts of these.

    Args:
        path: the file.
        remedy: what to save instead where it holds anything else.

    Raises:
        UserError: it holds anything else; nothing of that is executed.
    """
    problem = f"{path}: damaged, or it holds more than tensors, which is never loaded"
    with as_user_error(problem, remedy, quote=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a second opinion on what is refused anyway
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, Tensor):
        return {"": content}
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: it holds a {type(content).__name__}; {remedy}")
    return content


def read_torch(path: Path) -> dict[str, Tensor]:
    """A tensor (under the name "") or a flat dict of tensors that torch.save wrote, on the CPU.

    Raises:
        UserError: it holds anything else; nothing of that is executed.
    """
    remedy = "save a tensor or a flat dict of tensors with torch.save"
    content = load_without_code(path, remedy)
    for name, tensor in content.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: its key {name!r} is no text; {remedy}")
        if not isinstance(tensor, Tensor):
            raise UserError(f"{path}: its entry {name!r} is a {type(tensor).__name__}, no tensor; {remedy}")
    return content


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors of a safetensors file, and what is said about them if this package wrote it.

    Raises:
        UserError: the file is damaged.
    """
    from safetensors import safe_open

    remedy = "make or copy it again"
    with as_user_error(f"{path}: not a safetensors file, or damaged", remedy), safe_open(path, framework="pt") as file:
        if not WRITTEN_HERE.match((file.metadata() or {}).get("facts", "")):
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, {}
    try:
        return read_tensors(path)
    except DamagedFile:
        raise UserError(f"{path}: its content is not what the checksums in it say; {remedy}") from None


def _read_numpy(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    remedy = "save numbers with np.save or np.savez"
    problem = f"{path}: damaged, no NumPy file, or a pickle, which is never loaded"
    with as_user_error(problem, remedy, quote=False):
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            arrays = {"": content}
        else:
            with content:
                arrays = {name: content[name] for name in content.files}
    text = DESCRIPTION in arrays and arrays[DESCRIPTION].dtype.kind in "US"
    facts = _facts_of_capture(str(arrays.pop(DESCRIPTION)), arrays) if text else {}
    return {name: _tensor(path, name, array) for name, array in arrays.items()}, facts


def _facts_of_capture(text: str, names: Collection[str]) -> dict[str, object]:
    """What `capture` said about the arrays of an .npz file; {} if it was not `capture` that wrote the text.

    Args:
        text: JSON, or anything that others write.
        names: of the arrays in the file.
    """
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(facts, dict):
        return {}
    model, layers, rows = facts.get("model"), facts.get("layers"), facts.get("rows", {})
    named = isinstance(model, str) and isinstance(layers, dict) and layers.keys() >= set(names)
    return facts if named and isinstance(rows, dict) else {}


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    return read_torch(path), {}


READERS = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".safetensors": read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
}
"""Readers by suffix: path → named tensors, and what is said about them."""


def _arrays(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: its suffix is none of {', '.join(READERS)}; save it as one of these")
    if not path.is_file():
        problem = "it is a folder; give the files in it" if path.is_dir() else "there is no such file; check the path"
        raise UserError(f"{path}: {problem}")
    refuse_pointer(path)
    return reader(path)


def refuse_pointer(path: Path) -> None:
    """Refuse what Git leaves in place of a large file that was not fetched."""
    with open(path, "rb") as file:  # what cannot be opened says so itself
        if file.read(len(POINTER)) == POINTER:
            raise UserError(f"{path}: it is a pointer of Git LFS, not the file itself; run git lfs pull")


def _tensor(path: Path, name: str, array: object) -> Tensor:
    """A NumPy array in an own dtype of PyTorch that holds as many digits; integers become float64."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise UserError(f"{path}: {printable(name) or 'the array'} is of type {kind}; save real numbers")
    floating = array.dtype.kind == "f" and array.dtype.itemsize <= 8
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("=") if floating else np.float64, ["C", "W"]))


def _layers(
    path: Path, name: str, tensor: Tensor, stacked: bool
) -> Iterator[tuple[str, Tensor, tuple[int, int] | None]]:
    """(name, (n, d), positions) of what one array holds; networks are stacked in files of the workflow alone."""
    called = f"{path}: {name or 'the array'}"
    tensor = tensor.detach()
    if (
        tensor.is_nested
        or tensor.layout != torch.strided
        or tensor.is_quantized
        or tensor.is_complex()
        or tensor.is_meta
    ):
        raise UserError(f"{called} is sparse, quantized, complex or without data; save a dense tensor of real numbers")
    if tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < 16:
        raise UserError(f"{called} is of type {tensor.dtype}, too coarse to compare; record it in half precision")
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        tensor = tensor.double()
    shape = tuple(tensor.shape)
    if tensor.ndim == 3 and len(tensor) and stacked:
        for i, x in enumerate(tensor):
            yield f"{name}[{i}]", x, None
    elif tensor.ndim == 3:
        raise UserError(
            f"{called} has shape {shape}, not (data points, neurons); if it is (inputs, tokens, neurons), save "
            f"x.mean(axis=1), one token, or x.reshape(-1, {shape[2]}), which makes tokens data points"
        )
    elif tensor.ndim == 4 and shape[1] == shape[2] != shape[3]:
        raise UserError(
            f"{called} has shape {shape}, which looks like (data points, height, width, channels); save "
            "x.transpose(0, 3, 1, 2), or for maps that are not square its mean over space"
        )
    elif tensor.ndim == 4 and all(shape):
        yield name, tensor.mean(dim=(2, 3), dtype=torch.float64).to(tensor.dtype), shape[2:]
    elif tensor.ndim == 2:
        yield name, tensor, None
    else:
        remedy = "use x[:, None] for one neuron" if tensor.ndim == 1 else "reshape it to a matrix"
        raise UserError(
            f"{called} has shape {shape}, not (data points, neurons) or (data points, channels, height, width); "
            f"{remedy}"
        )


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart, without the suffix if that does."""
    absolute = [Path(os.path.abspath(path)) for path in paths]
    for path in absolute:
        if absolute.count(path) > 1:
            raise UserError(f"{path}: it is given twice; name every file once")
    for depth in range(1, max(len(path.parts) for path in absolute) + 1):
        for ends in ([path.with_suffix("") for path in absolute], absolute):
            labels = [printable("/".join(end.parts[-depth:])) for end in ends]
            if len(set(labels)) == len(labels):
                return labels
    return [printable(str(path)) for path in absolute]


def printable(name: str) -> str:
    """A name out of a file or of a network, without what would command a terminal."""
    return "".join(character if character.isprintable() else "�" for character in name)
