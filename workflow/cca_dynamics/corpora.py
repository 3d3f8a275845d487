"""Corpora: a name in the config → training and validation text as numbers, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
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


def pydoc(*, valid_share: float = 0.1) -> tuple[list[str], list[str]]:
    """The reference text that CPython ships for its help system, character by character; which Python says which text.

    Args:
        valid_share: share of the topics, drawn once and for all, that is held out.
    """
    from pydoc_data.topics import topics

    import numpy as np

    names = sorted(topics)
    held_out = set(np.random.default_rng(0).permutation(names)[: max(1, round(valid_share * len(names)))])
    texts = {"train": "", "valid": ""}
    for name in names:
        texts["valid" if name in held_out else "train"] += topics[name] + "\n"
    return list(texts["train"]), list(texts["valid"])


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


CORPORA: dict[str, Callable[..., tuple[list[str], list[str]]]] = {"pydoc": pydoc, "text_folder": text_folder}
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
