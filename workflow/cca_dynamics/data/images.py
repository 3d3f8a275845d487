"""Images: torchvision's datasets and folders of files, as arrays of bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cca_dynamics.data import image_files
from cca_dynamics.errors import DamagedFile, UserError
from cca_dynamics.runtime.storage import read_tensors, replacing, write_tensors

SPLITS = ("train", "test")
VALIDATION = ("val", "valid", "validation")
"""Names of a folder that stands for test/ where there is none."""


def torchvision_split(name: str, folder: str, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """One split of one of torchvision's datasets, downloaded if it is not there.

    Args:
        name: "CIFAR10" or "FashionMNIST".
        folder: where torchvision keeps it.
        train: whether to take the training or the test split.

    Returns:
        (n, channels, height, width) uint8 and (n,) int64.

    Raises:
        UserError: it is neither there nor can it be downloaded, or it is damaged; with what to put where.
    """
    from torchvision import datasets  # here, because it takes seconds

    kind = getattr(datasets, name)
    try:
        data = kind(folder, train=train, download=True)
        x, y = np.asarray(data.data), np.asarray(data.targets, dtype=np.int64)
    except Exception as problem:  # torchvision and what it calls raise many kinds; the remedy depends on what it left
        reason = next(iter(str(problem).strip().splitlines()), "") or type(problem).__name__
        raise UserError(
            f"dataset: {name} is not available from {folder} ({reason}); {_remedy(kind, Path(folder))}"
        ) from None
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(x), y


def _remedy(kind: type, folder: Path) -> str:
    """What to do without a connection to the internet, or with a damaged file."""
    if hasattr(kind, "base_folder"):  # CIFAR: one archive
        existing = [path for path in (folder / kind.filename, folder / kind.base_folder) if path.exists()]
        copy = f"put {kind.filename} (md5 {kind.tgz_md5}) from {kind.url.rpartition('/')[0]} into {folder}"
    else:  # MNIST and its relatives: four files
        raw = folder / kind.__name__ / "raw"
        existing = [raw] if raw.exists() else []
        copy = f"put {', '.join(name for name, _ in kind.resources)} from {kind.mirrors[0]} into {raw}"
    delete = f"delete {' and '.join(map(str, existing))}, " if existing else ""
    return f"{delete}connect to the internet, or {copy}, or set dataset.folder to where it is"


def image_folder(
    folder: Path, resize: int | None, cache: Path
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Images of <folder>/{train,test}/<class>/; classes are numbered in alphabetical order.

    Files are those that `image_files` reads; links are followed. Without test/, val/, valid/ or validation/ is taken.
    They are decoded once, on all cores, and stored as one tensor file in `cache`, whose name is a hash of the names,
    sizes and times of all files.

    Args:
        folder: the root.
        resize: height and width to scale to, or None.
        cache: folder of the tensor file.

    Returns:
        (x, y) of train and of test: (n, 3, height, width) uint8 and (n,) int64.

    Raises:
        UserError: the folder does not exist, a class has no images or is in one split only, a file is not an image, or
            images have different sizes and `resize` is None; the first such problem, with the name of the file.
    """
    files = _listing(folder)
    digest = hashlib.sha256(repr((resize, image_files.READING)).encode())
    for split in SPLITS:
        for label, entries in files[split].items():
            digest.update(repr((split, label, [(name, size, time) for _, name, size, time in entries])).encode())
    cached = cache / f"images-{digest.hexdigest()[:16]}.safetensors"
    tensors = _read_if_intact(cached)
    if tensors is None:
        tensors = _decode_all(files, resize)
        with replacing(cached) as temporary:
            write_tensors(temporary, tensors, folder=str(folder), resize=resize, classes=list(files["train"]))
    return tuple((tensors[f"{split}_x"].numpy(), tensors[f"{split}_y"].numpy()) for split in SPLITS)


def shape_of_folder(folder: Path, resize: int | None) -> tuple[tuple[int, int], tuple[int, ...], int]:
    """((train, test) sizes, (3, height, width), classes) of an image folder, from its file names and its first image.

    Raises:
        UserError: see `image_folder`.
    """
    files = _listing(folder)
    train, test = (sum(map(len, files[split].values())) for split in SPLITS)
    first = next(iter(files["train"].values()))[0][0]
    height, width = (resize, resize) if resize else _decode(first, None).shape[:2]
    return (train, test), (3, height, width), len(files["train"])


def _read_if_intact(path: Path) -> dict | None:
    """The tensors of a file; None if it is missing or damaged."""
    if not path.exists():
        return None
    try:
        return read_tensors(path)[0]
    except DamagedFile:
        return None


def _listing(folder: Path) -> dict[str, dict[str, list[tuple[str, str, int, int]]]]:
    """split → class → (path, name, bytes, modified) of its images, all sorted."""
    files: dict[str, dict[str, list]] = {}
    for split in SPLITS:
        root = _folder_of(folder, split)
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != ".")
        if not classes:
            raise UserError(f"dataset.folder: {root} has no class folders; put images in {root}/<class>/")
        files[split] = {}
        for label in classes:
            listing = image_files.files_below(root / label, depth=0)
            if not listing.paths:
                suffixes = ", ".join(image_files.SUFFIXES)
                left_out = f" but {note}" if (note := listing.note()) else ""
                raise UserError(
                    f"dataset.folder: {root / label} holds no image ({suffixes}){left_out}; add some or delete it"
                )
            stats = [(path, path.stat()) for path in listing.paths]
            entries = [(str(path), path.name, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
            files[split][label] = sorted(entries)
    train, test = (set(files[split]) for split in SPLITS)
    if train != test:
        label = sorted(train ^ test)[0]
        has, lacks = ("train", "test") if label in train else ("test", "train")
        raise UserError(
            f"dataset.folder: class {label} is in {folder / has} but not in {folder / lacks}; add or delete it"
        )
    return files


def _folder_of(folder: Path, split: str) -> Path:
    """The folder of a split: of test the one that is there, see VALIDATION."""
    root = folder / split
    if split == "test" and not root.is_dir():
        root = next((folder / name for name in VALIDATION if (folder / name).is_dir()), root)
    if not root.is_dir():
        raise UserError(
            f"dataset.folder: {root} is not a folder; images are expected in {folder}/{{train,test}}/<class>/"
        )
    return root


def left_out(folder: Path) -> list[str]:
    """A line for each class folder of `image_folder` with files that are not read, by their suffix."""
    lines = []
    for split in SPLITS:
        root = _folder_of(folder, split)
        for label in sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != "."):
            if note := image_files.files_below(root / label, depth=0).note():
                lines.append(f"{root / label}: {note}")
    return lines


def _decode_all(files: dict[str, dict[str, list]], resize: int | None) -> dict:
    """Tensors train_x, train_y, test_x, test_y of the images in a listing."""
    import torch  # here, because Snakemake imports this module when it builds the DAG

    tensors, size = {}, (resize, resize) if resize else None
    # Decoding lets other threads run; a few more than cores hide the waits for the disk.
    with ThreadPoolExecutor((os.cpu_count() or 1) + 2) as pool:
        for split in SPLITS:
            paths = [entry[0] for entries in files[split].values() for entry in entries]
            first = _decode(paths[0], resize)
            size = size or first.shape[:2]
            x = np.empty((len(paths), 3, *size), dtype=np.uint8)

            def fill(start: int, paths: Sequence[str] = paths, x: np.ndarray = x, size: tuple = size) -> None:
                for index, path in enumerate(paths[start : start + 256], start=start):
                    image = _decode(path, resize)
                    if image.shape[:2] != size:
                        raise UserError(
                            f"dataset.resize: {path} is {image.shape[1]} × {image.shape[0]} pixels and the first image "
                            f"{size[1]} × {size[0]}; set resize to scale them all"
                        )
                    x[index] = image.transpose(2, 0, 1)

            try:
                list(pool.map(fill, range(0, len(paths), 256)))
            except BaseException:  # a damaged image, or an interruption: do not decode the rest first
                pool.shutdown(cancel_futures=True)
                raise
            labels = [len(entries) for entries in files[split].values()]
            tensors[f"{split}_x"] = torch.from_numpy(x)
            tensors[f"{split}_y"] = torch.from_numpy(np.repeat(np.arange(len(labels)), labels))
    return tensors


def _decode(path: str, resize: int | None) -> np.ndarray:
    """One image, (height, width, 3) uint8."""
    from PIL import Image  # here, because Snakemake imports this module when it builds the DAG

    try:
        image = image_files.read(path)
        if resize and image.size != (resize, resize):
            image = image.resize((resize, resize), Image.Resampling.BILINEAR)
        return np.asarray(image)
    except Exception as problem:  # Pillow and what it calls raise many kinds
        reason = next(iter(str(problem).strip().splitlines()), "") or type(problem).__name__
        raise UserError(f"dataset.folder: {path} is not an image or damaged ({reason}); replace or delete it") from None


def channel_statistics(x: np.ndarray) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel over images and pixels, of values scaled to [0, 1].

    Args:
        x: (n, channels, height, width) uint8.
    """
    counts = np.stack([np.bincount(x[:, channel].ravel(), minlength=256) for channel in range(x.shape[1])])
    values, total = np.arange(256) / 255, counts.sum(axis=1)
    mean = counts @ values / total
    std = np.sqrt(counts @ values**2 / total - mean**2)
    return {"mean": mean.tolist(), "std": np.where(std > 0, std, 1.0).tolist()}
