"""Corpora: options in the config → training and validation text as numbers, in one safetensors file."""

from __future__ import annotations

import ast
import hashlib
import json
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from cca_dynamics.config import models
from cca_dynamics.errors import UserError
from cca_dynamics.runtime.storage import checksum, read_tensors, replacing, write_tensors

UNKNOWN, END = "<unk>", "<eos>"
SPLITS = ("train", "valid")
EVALUATION_COLUMNS = 20
"""Held-out text is cut into so many columns, which are read side by side."""

Texts = tuple[list[str], list[str]]
"""Tokens of the training and of the validation text."""


@dataclass(frozen=True)
class Corpus:
    """A text in memory.

    Attributes:
        name: the config's name of it.
        vocabulary: how many different tokens there are.
        train, valid: (tokens,) int64 torch tensors of indices into the vocabulary.
        checksum: checksum of the file that it was read from.
    """

    name: str
    vocabulary: int
    train: object
    valid: object
    checksum: str = ""


def documentation(options: models.Documentation) -> Texts:
    """The docstrings in the source of an installed package, character by character, in a meaningless order.

    The package is read, not imported, and without its tests. Its version, which the lock file pins, determines the
    text: it is the same on every machine and Python. The training and the validation text share no docstring.

    Raises:
        UserError: the package is not installed, or has less documentation.
    """
    package = options.package
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not (spec.submodule_search_locations or spec.has_location):
        raise UserError(f"corpus.package: {package} is not installed; install it or name another package")
    files = [] if spec.submodule_search_locations else [Path(spec.origin)]
    for folder in spec.submodule_search_locations or []:
        files += [path for path in Path(folder).rglob("*.py") if "tests" not in path.relative_to(folder).parts]
    docstrings = {docstring for path in files for docstring in _docstrings(path)}
    remaining = sorted(docstrings, key=lambda docstring: hashlib.sha256(docstring.encode()).digest())
    sizes = {"valid": options.valid_characters, "train": options.train_characters}
    text = {"valid": "", "train": ""}
    for split, size in sizes.items():
        while len(text[split]) < size:
            if not remaining:
                total = sum(map(len, docstrings)) + len(docstrings)
                raise UserError(
                    f"corpus.{split}_characters: {package} has {total:,} characters of documentation in all; "
                    "lower it or name another package"
                )
            text[split] += remaining.pop() + "\n"
    return list(text["train"][: sizes["train"]]), list(text["valid"][: sizes["valid"]])


def _docstrings(path: Path) -> list[str]:
    """The docstrings of a Python file; none if it is not Python."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        with warnings.catch_warnings(action="ignore"):  # later versions of Python warn of invalid escapes
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return []
    return [text for node in ast.walk(tree) if isinstance(node, documented) and (text := ast.get_docstring(node))]


def text_folder(options: models.TextFolder) -> Texts:
    """Text files, as Penn Treebank and WikiText-2 are distributed.

    By word, a token is what white space separates, and <eos> ends each line; by character, every character is a token.
    Line ends of all systems are one, letters with accents have one form (Unicode's NFC), and byte-order marks are
    dropped, so that files from different sources share their vocabulary.

    Raises:
        UserError: a file is missing, empty, or not UTF-8 (with the position of the first invalid byte).
    """
    folder = Path(options.folder)
    train = _tokens(folder / options.train, options.level, "train")
    return train, _tokens(folder / options.valid, options.level, "valid")


def _tokens(path: Path, level: str, key: str) -> list[str]:
    """The tokens of a text file; `key` is the config's for it."""
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise UserError(
            f"corpus.{key}: {path} cannot be read ({problem.strerror}); correct corpus.folder or corpus.{key}"
        ) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise UserError(
            f"corpus.{key}: {path} is not UTF-8 (byte {problem.start}: 0x{content[problem.start]:02x}); convert it"
        ) from None
    if not text.strip():
        raise UserError(f"corpus.{key}: {path} is empty; give a file with text")
    text = unicodedata.normalize("NFC", text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n"))
    if level == "character":
        return list(text)
    lines = text.removesuffix("\n").split("\n")  # splitlines() would also split at form feeds and U+2028
    return list(chain.from_iterable([*line.split(), END] for line in lines))


CORPORA: dict[str, Callable[[Any], Texts]] = {
    "documentation": documentation,
    "text_folder": text_folder,
}
"""Adding a corpus: its options in config/models.py, one function that returns its tokens, and one line here."""


def materialise(options: models.Corpus, tensors: Path, datasheet: Path, needed: dict[str, int] | None = None) -> None:
    """Write a corpus to one safetensors file and describe it in a JSON datasheet.

    Args:
        options: which corpus.
        tensors: output, keys train, valid.
        datasheet: output, sizes, vocabulary, share of <unk>, sha256 of the tensor file.
        needed: split → the fewest tokens that suffice.

    Raises:
        UserError: a file cannot be read, the vocabulary is larger than the text's, or there are too few tokens.
    """
    import numpy as np  # here, because Snakemake imports this module when it builds the DAG
    import torch

    train, valid = CORPORA[options.name](options)
    for split, tokens in zip(SPLITS, (train, valid), strict=True):
        if len(tokens) < (needed or {}).get(split, 0):
            remedy = {"train": "lower language_training.batch_size or window", "valid": "compare fewer data points"}
            raise UserError(
                f"corpus.{split}: {len(tokens)} tokens are too few, {needed[split]} are needed; give more text or "
                f"{remedy[split]}"
            )
    words = vocabulary(train, options.vocabulary)
    number_of = {word: i for i, word in enumerate(words)}
    unknown = number_of[UNKNOWN]
    coded = {
        split: np.array([number_of.get(token, unknown) for token in tokens], dtype=np.int64)
        for split, tokens in zip(SPLITS, (train, valid), strict=True)
    }
    with replacing(tensors) as temporary:
        stored = {split: torch.from_numpy(tokens) for split, tokens in coded.items()}
        write_tensors(temporary, stored, name=options.name, vocabulary=len(words))
    sheet = {
        "name": options.name,
        "made_with": dict(sorted(options.model_dump(mode="json", exclude={"name", "vocabulary"}).items())),
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


def size_of(options: models.Corpus) -> tuple[int, int, int]:
    """Tokens of the training and of the validation text, and entries of the vocabulary; the text is read for that.

    Raises:
        UserError: see `materialise`.
    """
    train, valid = CORPORA[options.name](options)
    return len(train), len(valid), len(vocabulary(train, options.vocabulary))


def vocabulary(tokens: list[str], size: int | None = None) -> list[str]:
    """The distinct tokens, most frequent first (ties in alphabetical order), <unk> among them.

    Args:
        tokens: the training text.
        size: how many to keep, <unk> and the most frequent ones; None: all.

    Raises:
        UserError: there are fewer.
    """
    counts = Counter(tokens)
    counts.setdefault(UNKNOWN, 0)
    words = sorted(counts, key=lambda word: (-counts[word], word))
    if size is None:
        return words
    if size > len(words):
        raise UserError(
            f"corpus.vocabulary: {size} is more than the {len(words)} distinct tokens of the training text; "
            f"use {len(words)} or fewer, or null for all"
        )
    most_frequent = [word for word in words if word != UNKNOWN][: size - 1]
    return [*most_frequent, UNKNOWN]


def load(path: Path) -> Corpus:
    """Read a materialised corpus.

    Raises:
        DamagedFile: the file is missing, truncated or corrupt, or lacks a tensor.
    """
    tensors, metadata = read_tensors(path, SPLITS)
    return Corpus(name=metadata["name"], vocabulary=metadata["vocabulary"], checksum=checksum(metadata), **tensors)
