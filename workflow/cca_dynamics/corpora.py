"""Corpora: a name in the config → training and validation text as numbers, in one safetensors file."""

from __future__ import annotations

import ast
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from cca_dynamics.files import checksum, read_tensors, replacing, write_tensors

UNKNOWN, END = "<unk>", "<eos>"
SPLITS = ("train", "valid")
STREAMS = 20
"""Columns that held-out text is read in."""


@dataclass(frozen=True)
class Corpus:
    """A text in memory.

    train, valid: (tokens,) int64 torch tensors of indices into a vocabulary of `vocabulary` entries. checksum: of the
    file it was read from.
    """

    name: str
    vocabulary: int
    train: object
    valid: object
    checksum: str = ""


def documentation(
    *, package: str = "matplotlib", train_characters: int = 420_000, valid_characters: int = 45_000
) -> tuple[list[str], list[str]]:
    """The docstrings in the source of an installed package, character by character, in an order without meaning.

    Its version, which the lock file pins, says which text this is: the same on every machine and Python.

    Args:
        package: its name in an import; it is read, not imported. Tests are left out.
        train_characters, valid_characters: sizes of the two texts, which share no docstring.

    Raises:
        ValueError: it is not installed, or has less documentation.
    """
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not (spec.submodule_search_locations or spec.has_location):
        raise ValueError(f"corpus.package: {package} is not installed; install it or name another package")
    files = [] if spec.submodule_search_locations else [Path(spec.origin)]
    for folder in spec.submodule_search_locations or []:
        files += [path for path in Path(folder).rglob("*.py") if "tests" not in path.relative_to(folder).parts]
    texts = {text for path in files for text in _docstrings(path)}
    documents = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    text = {"valid": "", "train": ""}
    for split, size in (("valid", valid_characters), ("train", train_characters)):
        while len(text[split]) < size:
            if not documents:
                has = sum(map(len, texts)) + len(texts)
                raise ValueError(
                    f"corpus.{split}_characters: {package} has {has:,} characters of documentation in all; "
                    "lower it or name another package"
                )
            text[split] += documents.pop() + "\n"
    return list(text["train"][:train_characters]), list(text["valid"][:valid_characters])


def _docstrings(path: Path) -> list[str]:
    """The docstrings of a Python file; none if it is not Python."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        with warnings.catch_warnings(action="ignore"):  # escapes that later versions of Python frown upon
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return []
    return [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node))]


def text_folder(
    *, folder: str, level: str = "word", train: str = "train.txt", valid: str = "valid.txt"
) -> tuple[list[str], list[str]]:
    """Text files, as Penn Treebank and WikiText-2 are distributed.

    Args:
        folder: holds the files.
        level: "word": what white space separates, and <eos> at the end of each line; "character": every character.
        train, valid: names of the files.

    Raises:
        ValueError: a file is missing, empty, or not UTF-8 (with the place of the first bad byte).
    """
    return tuple(_tokens(Path(folder) / name, level, key) for name, key in ((train, "train"), (valid, "valid")))


def _tokens(path: Path, level: str, key: str) -> list[str]:
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise ValueError(
            f"corpus.{key}: {path} cannot be read ({problem.strerror}); correct corpus.folder or corpus.{key}"
        ) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ValueError(
            f"corpus.{key}: {path} is not UTF-8 (byte {problem.start}: 0x{content[problem.start]:02x}); convert it"
        ) from None
    if not text.strip():
        raise ValueError(f"corpus.{key}: {path} is empty; give a file with text")
    if level == "character":
        return list(text)
    return list(chain.from_iterable([*line.split(), END] for line in text.splitlines()))


CORPORA: dict[str, Callable[..., tuple[list[str], list[str]]]] = {
    "documentation": documentation,
    "text_folder": text_folder,
}
"""Adding a corpus: one function that returns the tokens of (train, valid), and one line here."""


def materialise(options: dict, tensors: Path, datasheet: Path, needed: dict[str, int] | None = None) -> None:
    """Write a corpus to one safetensors file and describe it in a JSON datasheet.

    Args:
        options: the config's `corpus` block: `name`, `vocabulary` (the most frequent tokens of the training text that
            are kept, the rest is <unk>; None: all) and the keyword arguments of that corpus.
        tensors: output, keys train, valid.
        datasheet: output, sizes, vocabulary, share of <unk>, sha256 of the tensor file.
        needed: split → the fewest tokens that do.

    Raises:
        ValueError: a file cannot be read, the vocabulary is larger than the text's, or there are too few tokens.
    """
    import numpy as np
    import torch

    train, valid, arguments = _read(options)
    for split, tokens in zip(SPLITS, (train, valid), strict=True):
        if len(tokens) < (needed or {}).get(split, 0):
            fewer = {"train": "lower language_training.batch_size or window", "valid": "compare fewer data points"}
            raise ValueError(
                f"corpus.{split}: {len(tokens)} tokens are too few, {needed[split]} are needed; give more text or "
                f"{fewer[split]}"
            )
    words = vocabulary(train, options.get("vocabulary"))
    place = {word: i for i, word in enumerate(words)}
    unknown = place[UNKNOWN]
    coded = {
        split: np.array([place.get(token, unknown) for token in tokens], dtype=np.int64)
        for split, tokens in zip(SPLITS, (train, valid), strict=True)
    }
    with replacing(tensors) as temporary:
        stored = {split: torch.from_numpy(tokens) for split, tokens in coded.items()}
        write_tensors(temporary, stored, name=options["name"], vocabulary=len(words))
    sheet = {
        "name": options["name"],
        "made_with": arguments,
        "vocabulary": len(words),
        "tokens": {split: len(tokens) for split, tokens in coded.items()},
        "unknown": {split: float(np.mean(tokens == unknown)) for split, tokens in coded.items()},
        "text_sha256": {
            split: hashlib.sha256("\x00".join(tokens).encode()).hexdigest()
            for split, tokens in zip(SPLITS, (train, valid), strict=True)
        },
        "words": words,
        "sha256": hashlib.sha256(tensors.read_bytes()).hexdigest(),
    }
    with replacing(datasheet) as temporary:
        temporary.write_text(json.dumps(sheet, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def size_of(options: dict) -> tuple[int, int, int]:
    """Tokens of the training and of the validation text, and entries of the vocabulary.

    Args:
        options: the config's `corpus` block.

    Raises:
        ValueError: as `materialise`.
    """
    train, valid, _ = _read(options)
    return len(train), len(valid), len(vocabulary(train, options.get("vocabulary")))


def _read(options: dict) -> tuple[list[str], list[str], dict]:
    """Training text, validation text, and what the corpus was made with."""
    arguments = {key: value for key, value in options.items() if key not in ("name", "vocabulary")}
    return *CORPORA[options["name"]](**arguments), arguments


def vocabulary(tokens: list[str], size: int | None = None) -> list[str]:
    """The distinct tokens, most frequent first (ties in order of the alphabet), <unk> among them.

    Args:
        tokens: the training text.
        size: keep so many; None: all.

    Raises:
        ValueError: there are fewer.
    """
    counts = Counter(tokens)
    counts.setdefault(UNKNOWN, 0)
    words = sorted(counts, key=lambda word: (-counts[word], word))
    if size is None:
        return words
    if size > len(words):
        raise ValueError(
            f"corpus.vocabulary: {size} is more than the {len(words)} distinct tokens of the training text; "
            f"use {len(words)} or fewer, or null for all"
        )
    kept = [word for word in words if word != UNKNOWN][: size - 1]
    return [*kept, UNKNOWN]


def load(path: Path) -> Corpus:
    """Read a materialised corpus.

    Raises:
        DamagedFile: the file is missing, truncated or corrupt, or lacks a tensor.
    """
    tensors, facts = read_tensors(path, SPLITS)
    return Corpus(name=facts["name"], vocabulary=facts["vocabulary"], checksum=checksum(facts), **tensors)
