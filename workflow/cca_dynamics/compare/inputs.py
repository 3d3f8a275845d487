"""What networks are run on: images of a folder, arrays, text, or what a function of the user's yields."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cca_dynamics.data import image_files
from cca_dynamics.errors import UserError, as_user_error
from cca_dynamics.networks.hooks import import_module
from cca_dynamics.runtime.storage import files_below

FEWEST = 3
"""Data points that a comparison needs at least."""
IMAGENET = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}
"""Channels → means and standard deviations of ImageNet, which torchvision's weights expect images to be normalised
by."""

Batch = Tensor | dict[str, Tensor]
"""The argument, or the named arguments, of a forward pass."""


@dataclass(frozen=True)
class Source:
    """Inputs of a network, batch by batch.

    Attributes:
        words: what one input is, e.g. "image".
        place: where they are from, for messages.
        count: how many there are; None if that is not known before they are read.
        few: count → the first so many inputs, to find out what layers give.
        batches: size → all inputs, in batches of about that size.
        facts: called after a pass, (names of the inputs, or None; a checksum of names and contents).
    """

    words: str
    place: str
    count: int | None
    few: Callable[[int], Batch]
    batches: Callable[[int], Iterator[Batch]]
    facts: Callable[[], tuple[list[str] | None, str]]


def length(batch: Batch) -> int:
    """Number of inputs in a batch."""
    return len(batch if isinstance(batch, Tensor) else next(iter(batch.values())))


def first(batch: Batch, count: int) -> Batch:
    """The first inputs of a batch."""
    return batch[:count] if isinstance(batch, Tensor) else {name: x[:count] for name, x in batch.items()}


@dataclass(frozen=True)
class Pixels:
    """How images become tensors.

    Attributes:
        size: height and width.
        channels: 3, or 1 for grey.
        mean, std: per channel, or one number for all; None: ImageNet's.
    """

    size: int = 224
    channels: int = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.size < 1:
            raise UserError(f"--size is at least 1, not {self.size}; raise it")
        if self.channels not in IMAGENET:
            raise UserError(f"--channels is 3, or 1 for grey, not {self.channels}; networks of others read --data")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and not np.isfinite(values).all():
                raise UserError(f"--{name} has a number that is not finite; correct it")
            if values is not None and len(values) not in (1, self.channels):
                raise UserError(
                    f"--{name} has {len(values)} numbers; give one, or one for each of {self.channels} channels"
                )
        if self.std is not None and min(self.std) <= 0:
            raise UserError("--std has a number that is not positive; give standard deviations")

    def normalised(self, pixels: np.ndarray) -> Tensor:
        """(channels, size, size) float32 of (size, size, channels) bytes."""
        mean, std = IMAGENET[self.channels]
        mean, std = (np.float32(given or default) for given, default in ((self.mean, mean), (self.std, std)))
        x = (pixels.reshape(self.size, self.size, self.channels).astype(np.float32) / 255 - mean) / std
        return torch.from_numpy(x).permute(2, 0, 1).contiguous()


def checksum(ids: Sequence[str] | None, contents: Iterable[str]) -> str:
    """A checksum of inputs that does not depend on their order if they have names.

    Args:
        ids: names of the inputs; None if they have none.
        contents: a checksum of each input.
    """
    named = list(contents) if ids is None else sorted(zip(ids, contents, strict=True))
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def _checksum_of_row(row: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()


def image(path: Path, pixels: Pixels) -> Tensor:
    """(channels, size, size) float32: the largest square in the middle, scaled and normalised.

    Raises:
        UserError: the file is no image, or damaged.
    """
    from PIL import Image, ImageOps

    with as_user_error(f"{path}: not an image, or damaged", "replace or delete it"):
        square = ImageOps.fit(image_files.read(path), (pixels.size, pixels.size), Image.Resampling.BILINEAR)
        return pixels.normalised(np.asarray(square.convert("L") if pixels.channels == 1 else square))


def images(folder: Path, points: int | None, pixels: Pixels) -> Source:
    """The images in a folder and its subfolders, sorted by path; see `image_files.files_below`.

    Args:
        folder: where they are.
        points: so many images, spread evenly over all of them; None: all. The choice does not depend on a seed, so
            that networks of different seeds see the same images.
        pixels: how they become tensors.

    Raises:
        UserError: there is no such folder, or too few images are in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name one with images")
    listing = image_files.files_below(folder)
    if not listing.paths:
        suffixes = ", ".join(image_files.SUFFIXES)
        raise UserError(f"{folder}: it holds no image ({suffixes}); add some or name another folder")
    if note := listing.note():
        print(f"note: {folder}: {note}", file=sys.stderr)
    paths = _spread(listing.paths, points, folder, "images")
    ids = [path.relative_to(folder).as_posix() for path in paths]

    def decoded(some: Sequence[Path]) -> Tensor:
        return torch.stack([image(path, pixels) for path in some])

    def batches(size: int) -> Iterator[Tensor]:
        # The next batch is decoded while the network computes the last one.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            waiting: list | None = None
            for some in [*_batches(paths, size), None]:
                coming = None if some is None else [pool.submit(image, path, pixels) for path in some]
                if waiting is not None:
                    try:
                        ready = torch.stack([future.result() for future in waiting])
                    except BaseException:  # a damaged image, or an interruption: do not decode the rest first
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise
                    yield ready
                waiting = coming

    def facts() -> tuple[list[str], str]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return ids, checksum(ids, pool.map(_sha256, paths))

    return Source("image", str(folder), len(paths), lambda n: decoded(paths[:n]), batches, facts)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def blank(pixels: Pixels) -> Source:
    """Images of noise, to find out what layers give where no inputs are named."""

    def few(count: int) -> Tensor:
        shape = (count, pixels.channels, pixels.size, pixels.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    place = f"{pixels.channels}×{pixels.size}×{pixels.size}"
    return Source("image", place, FEWEST, few, lambda size: iter([few(FEWEST)]), lambda: (None, ""))


def array(path: Path, points: int | None) -> Source:
    """The rows of a .npy file, as they are.

    Raises:
        UserError: it is no such file, or too short.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; check the path")
    with as_user_error(
        f"{path}: damaged, no NumPy file, or a pickle, which is never loaded", "save it with np.save", quote=False
    ):
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(x, np.ndarray):
        raise UserError(f"{path}: it holds several arrays; save one with np.save")
    if x.dtype.kind not in "biuf" or not x.ndim:
        raise UserError(
            f"{path}: it holds an array of type {x.dtype} and {x.ndim} axes; save real numbers, inputs first"
        )
    rows = _spread(range(len(x)), points, path, "inputs")

    def tensor(some: Sequence[int]) -> Tensor:
        values = np.asarray(x[list(some)])
        whole, single = values.dtype.kind in "biu", values.dtype.itemsize < 8
        return torch.from_numpy(
            np.ascontiguousarray(values, np.int64 if whole else np.float32 if single else np.float64)
        )

    def facts() -> tuple[list[str], str]:
        ids = [str(row) for row in rows]
        return ids, checksum(ids, (_checksum_of_row(x[row]) for row in rows))

    batches = lambda size: map(tensor, _batches(rows, size))  # noqa: E731
    return Source("input", str(path), len(rows), lambda n: tensor(rows[:n]), batches, facts)


def text(path: Path, points: int | None, tokenizer: str | None, tokens: int) -> Source:
    """Sequences of equally many tokens of a text file, or of all .txt files in a folder, one after the other.

    Args:
        path: the file or folder; UTF-8.
        points: so many sequences, spread evenly; None: all.
        tokenizer: "module:function" of text → list of token numbers; None: the bytes of the text.
        tokens: of a sequence.

    Raises:
        UserError: there is no text, too little of it, it is not UTF-8, or the tokenizer fails.
    """
    every = files_below(path) if path.is_dir() else [path]
    files = [each for each in every if each.suffix.lower() == ".txt"] if path.is_dir() else every
    if len(files) < len(every):
        print(f"note: {path}: {len(every) - len(files)} files are no .txt files and are left out", file=sys.stderr)
    if not files or not all(file.is_file() for file in files):
        raise UserError(f"{path}: there is no such text file, and no folder with .txt files; check the path")
    encode = _function("--tokenizer", tokenizer) if tokenizer else lambda string: list(string.encode())
    sequences, ids = [], []
    for file in files:
        try:
            content = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as problem:
            raise UserError(f"{file}: it is not UTF-8 ({problem.reason} at byte {problem.start}); convert it") from None
        with as_user_error(
            f"--tokenizer: {tokenizer} fails on {file}", "it takes a text and returns a list of numbers"
        ):
            numbers = np.asarray(encode(content), dtype=np.int64).ravel()
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        for index in range(len(numbers) // tokens):
            sequences.append(numbers[index * tokens : (index + 1) * tokens])
            ids.append(f"{name}:{index}")
    chosen = _spread(range(len(sequences)), points, path, f"sequences of {tokens} tokens")

    def tensor(some: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack([sequences[index] for index in some]))

    def facts() -> tuple[list[str], str]:
        names = [ids[index] for index in chosen]
        return names, checksum(names, (_checksum_of_row(sequences[index]) for index in chosen))

    batches = lambda size: map(tensor, _batches(chosen, size))  # noqa: E731
    return Source("sequence", str(path), len(chosen), lambda n: tensor(chosen[:n]), batches, facts)


def code(name: str) -> Source:
    """What a function of the user's yields: batches, tensors or dicts of tensors, each maybe in a pair with their ids.

    It is called anew for each pass. Its batches are taken as they are; ids and a checksum are those of the last pass,
    so that files of other inputs, or of inputs in another order, are known as such.

    Raises:
        UserError: there is no such function, it fails, or yields something else, or what can be read only once.
    """
    function = _function("--data", name)
    failing = f"--data: {name}() fails", "it takes no arguments and returns an iterable of batches"
    ids_of_pass: list[str] = []
    contents_of_pass: list[str] = []

    def pairs() -> Iterator[tuple[Batch, Sequence[str] | None]]:
        with as_user_error(*failing):
            iterator = iter(function())
        end = object()
        while True:
            with as_user_error(*failing):
                item = next(iterator, end)
            if item is end:
                return
            batch, ids = _checked(name, item)
            if length(batch):  # slices of an array may end with an empty one
                yield batch, ids

    def batches(size: int) -> Iterator[Batch]:
        ids_of_pass.clear()
        contents_of_pass.clear()
        for batch, ids in pairs():
            if (ids is None) == bool(ids_of_pass) and contents_of_pass:
                raise UserError(f"--data: {name}() names the inputs of some batches only; name all or none")
            ids_of_pass.extend(ids or ())
            parts = list(batch.values()) if isinstance(batch, dict) else [batch]
            rows = [x.detach().cpu().contiguous().reshape(len(x), prod(x.shape[1:])) for x in parts]
            arrays = [x.view(torch.uint8).numpy() for x in rows]
            contents_of_pass.extend(map(_checksum_of_row, np.concatenate(arrays, axis=1)))
            yield batch

    def facts() -> tuple[list[str] | None, str]:
        ids = ids_of_pass or None
        if len(set(ids_of_pass)) < len(ids_of_pass):
            raise UserError(f"--data: {name}() gives several inputs one name; give each its own")
        return ids, checksum(ids, contents_of_pass)

    with as_user_error(*failing):
        first_time, second_time = function(), function()
    if first_time is second_time and isinstance(first_time, Iterator):
        raise UserError(f"--data: {name}() returns an iterator that can be read only once; make it anew at each call")
    batch, _ = next(pairs(), (None, None))
    if batch is None or length(batch) < FEWEST:
        raise UserError(f"--data: the first batch of {name}() has fewer than {FEWEST} inputs; yield larger batches")
    return Source("input", name, None, lambda n: first(batch, n), batches, facts)


def _checked(name: str, item: object) -> tuple[Batch, Sequence[str] | None]:
    ids = None
    if isinstance(item, tuple) and len(item) == 2 and not isinstance(item[1], Tensor):
        item, ids = item
    batch = dict(item) if isinstance(item, Mapping) else item
    tensors = list(batch.values()) if isinstance(batch, dict) else [batch]
    if not tensors or not all(isinstance(x, Tensor) and x.ndim for x in tensors):
        raise UserError(
            f"--data: {name}() yields a {type(item).__name__}; yield tensors, dicts of them, or (batch, ids)"
        )
    if any(x.is_nested or x.layout != torch.strided or x.is_quantized or x.is_meta for x in tensors):
        raise UserError(
            f"--data: {name}() yields a tensor that is sparse, nested, quantized or without data; yield dense ones"
        )
    if len({len(x) for x in tensors}) > 1 or (ids is not None and len(ids) != len(tensors[0])):
        raise UserError(f"--data: a batch of {name}() has entries of different lengths; give each of them all inputs")
    return batch, None if ids is None else [str(each) for each in ids]


def _function(option: str, name: str) -> Callable:
    module, _, function = name.partition(":")
    if not module or not function:
        raise UserError(f"{option}: {name} is not module:function; name both, as in inputs:batches")
    with as_user_error(f"{option}: {module} cannot be imported from {os.getcwd()}", "check its name and that it runs"):
        attribute = getattr(import_module(module), function, None)
    if not callable(attribute):
        raise UserError(f"{option}: {module} has no function {function}; define it there")
    return attribute


def _spread(items: Sequence, points: int | None, place: object, what: str) -> Sequence:
    """So many of the items, spread evenly; None: all."""
    if points is not None and points > len(items):
        raise UserError(f"{place}: it holds {len(items)} {what}, fewer than --points {points}; ask for fewer")
    chosen = items if points is None else [items[i * len(items) // points] for i in range(points)]
    if len(chosen) < FEWEST:
        raise UserError(f"{place}: {len(chosen)} {what} are too few to compare anything; use {FEWEST} or more")
    return chosen


def _batches(items: Sequence, size: int) -> Iterable[Sequence]:
    """Parts of so many items; the last one has more, rather than being a single item, which squeeze() would drop."""
    edges = [*range(0, len(items), size), len(items)]
    if size > 1 and len(edges) > 2 and edges[-1] - edges[-2] == 1:
        del edges[-2]
    return (items[start:end] for start, end in itertools.pairwise(edges))
