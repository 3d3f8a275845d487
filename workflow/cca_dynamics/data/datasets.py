"""Datasets: options in the config → tensors in one safetensors file, with true and permuted labels."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cca_dynamics.config import models
from cca_dynamics.data import images
from cca_dynamics.errors import UserError
from cca_dynamics.runtime.storage import checksum, read_tensors, replacing, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

Split = tuple[np.ndarray, np.ndarray]
"""Inputs (n, channels, *space) and class indices (n,), int64. Images are uint8; when a batch is read, each channel is
normalised: minus its mean over the training set, over its standard deviation there. Anything else is float32."""


class Shape(NamedTuple):
    """What is known of a dataset before it is made.

    Attributes:
        sizes: examples for training and for testing.
        inputs: shape of one example, (channels, *space).
        classes: how many there are.
    """

    sizes: tuple[int, int]
    inputs: tuple[int, ...]
    classes: int


@dataclass(frozen=True)
class DatasetSource:
    """Where a dataset comes from.

    Attributes:
        make: its options → ((train_x, train_y), (test_x, test_y)).
        shape: its options → its shape, without making it; of all examples, whatever train_size and test_size say.
    """

    make: Callable[[Any], tuple[Split, Split]]
    shape: Callable[[Any], Shape]


@dataclass(frozen=True)
class Normalisation:
    """How the bytes of images become the float32 numbers that networks read.

    The arithmetic is the same on a CPU and on a GPU, to the last bit.

    Attributes:
        largest: the byte that stands for 1; a tensor, because a GPU multiplies by the reciprocal of a number.
        mean, std: (*space, channels) float32, of each channel, repeated at each pixel: PyTorch is slow along an axis as
            short as that of channels.
    """

    largest: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of_channels(cls, mean: list[float], std: list[float], space: tuple[int, ...]) -> Normalisation:
        """Of images of some spatial shape, from the mean and standard deviation of each channel scaled to [0, 1]."""
        import torch  # here, because Snakemake imports this module when it builds the DAG

        return cls(
            torch.tensor(255.0), *(torch.tensor(values).expand(*space, -1).contiguous() for values in (mean, std))
        )

    def to(self, device: str) -> Normalisation:
        """The same on a device, where it stays."""
        return Normalisation(*(tensor.to(device) for tensor in (self.largest, self.mean, self.std)))

    def __call__(self, x: Tensor) -> Tensor:
        """(..., *space, channels) uint8 → float32; numbers that are float32 already are returned as they are."""
        if x.is_floating_point():
            return x
        return x.float().div_(self.largest).sub_(self.mean).div_(self.std)


@dataclass(frozen=True)
class Dataset:
    """A classification dataset in memory, as torch tensors.

    Attributes:
        name: the config's name of it.
        classes: how many there are.
        train_x, test_x: (n, channels, *space). Images are uint8, channels last in memory; anything else is float32.
        train_y, test_y: (n,) int64.
        train_y_permuted: one fixed random permutation of train_y, the labels that memorizing networks are trained on.
        checksum: checksum of the file that it was read from.
        normalisation: of images; None: networks read the numbers as they are.
    """

    name: str
    classes: int
    train_x: object
    train_y: object
    train_y_permuted: object
    test_x: object
    test_y: object
    checksum: str = ""
    normalisation: Normalisation | None = None

    def normalised(self, x: Tensor) -> Tensor:
        """The numbers that networks read of some inputs (n, channels, *space), float32."""
        return x if self.normalisation is None else self.normalisation(x.movedim(1, -1)).movedim(-1, 1).contiguous()

    def subset(self, examples: int | None, seed: int) -> Dataset:
        """The dataset with some of its training examples, in their order; smaller subsets lie within larger ones.

        Args:
            examples: how many; None: all.
            seed: the study's, which draws them.

        Raises:
            UserError: there are fewer.
        """
        if examples is None:
            return self
        if examples > len(self.train_y):
            raise UserError(
                f"{examples} training examples are asked for and the dataset has {len(self.train_y)}; lower train_sizes"
            )
        drawn = np.sort(np.random.default_rng([seed, *b"examples"]).permutation(len(self.train_y))[:examples])
        names = ("train_x", "train_y", "train_y_permuted")
        return replace(self, **{name: take(getattr(self, name), drawn) for name in names})


def take(x: Tensor, indices: np.ndarray) -> Tensor:
    """Some examples of a split, laid out in memory as all of them are."""
    return x[indices] if x.is_contiguous() else x.movedim(1, -1)[indices].movedim(-1, 1)


def mnist1d(options: models.Mnist1d) -> tuple[Split, Split]:
    """MNIST-1D (Greydanus & Kobak 2024): signals of length 40, ten classes, generated by the `mnist1d` package.

    With seed 42 and 4,000 + 1,000 signals it is the dataset as its authors distribute it. They make as many signals of
    each class and shuffle them; of sizes whose sum is no multiple of 10 the last few signals are dropped.
    """
    from mnist1d.data import get_dataset_args, make_dataset  # here, because it imports matplotlib

    arguments = get_dataset_args()
    arguments.num_samples = 10 * math.ceil((options.train_size + options.test_size) / 10)
    arguments.seed = options.seed
    state = np.random.get_state()  # noqa: NPY002 — the package draws from NumPy's global generator; leave it as it was
    try:
        data = make_dataset(arguments)
    finally:
        np.random.set_state(state)  # noqa: NPY002

    x = np.concatenate([data["x"], data["x_test"]])[:, None, :].astype(np.float32)
    y = np.concatenate([data["y"], data["y_test"]]).astype(np.int64)  # the package's own split rounds
    end = options.train_size + options.test_size
    return (x[: options.train_size], y[: options.train_size]), (
        x[options.train_size : end],
        y[options.train_size : end],
    )


def cifar10(options: models.Cifar10) -> tuple[Split, Split]:
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32 × 32 in ten classes, through torchvision.

    A download takes 163 MiB and is checked.
    """
    return tuple(
        _subset(images.torchvision_split("CIFAR10", options.folder, train), size, options.seed, options.folder)
        for train, size in ((True, options.train_size), (False, options.test_size))
    )


def fashion_mnist(options: models.FashionMnist) -> tuple[Split, Split]:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey images of 28 × 28 in ten classes, through torchvision.

    A download takes 30 MiB and is checked.
    """
    return tuple(
        _subset(images.torchvision_split("FashionMNIST", options.folder, train), size, options.seed, options.folder)
        for train, size in ((True, options.train_size), (False, options.test_size))
    )


def digits(options: models.Digits) -> tuple[Split, Split]:
    """Handwritten digits (Alpaydin & Kaynak 1998): 1,797 grey images of 8 × 8 in ten classes, from scikit-learn.

    They are the test set of the UCI repository's dataset. The seed draws 300 of them to test on, the classes as
    frequent as in the rest.
    """
    from sklearn.datasets import load_digits  # here, because it takes seconds

    data = load_digits()
    x, y = data.images[:, None].astype(np.uint8), data.target.astype(np.int64)  # 17 shades of grey, from 0 to 16
    for_test = np.zeros(len(y), dtype=bool)
    for_test[_stratified(y, DIGITS[1], options.seed)] = True
    return tuple(
        _subset((x[chosen], y[chosen]), size, options.seed, "scikit-learn")
        for chosen, size in ((~for_test, options.train_size), (for_test, options.test_size))
    )


DIGITS = (models.DIGITS - models.TEST_DIGITS, models.TEST_DIGITS)
"""Digits to train and to test on."""


def image_folder(options: models.ImageFolder) -> tuple[Split, Split]:
    """Images in <folder>/{train,test}/<class>/, in colour; says which files are left out."""
    folder, seed = options.folder, options.seed
    train, test = images.image_folder(Path(folder), options.resize, Path(options.cache))
    for line in images.left_out(Path(folder)):
        print(f"note: {line}", file=sys.stderr)
    return (
        _subset(train, options.train_size, seed, f"{folder}/train"),
        _subset(test, options.test_size, seed, f"{folder}/test"),
    )


def _subset(split: Split, size: int | None, seed: int, location: str) -> Split:
    """Draw examples at random, each class as frequent as in the split to within one; they keep their order.

    Args:
        split: all examples.
        size: how many to draw; None: all.
        seed: draws them.
        location: where the split was found, for the message.

    Raises:
        UserError: there are fewer.
    """
    x, y = split
    if size is None or size == len(y):
        return split
    if size > len(y):
        raise UserError(
            f"dataset: {size} images are asked for and {location} has {len(y)}; lower train_size or test_size, or drop "
            "it"
        )
    drawn = _stratified(y, size, seed)
    return x[drawn], y[drawn]


def _stratified(y: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Indices of so many examples, drawn at random, each class as frequent as in the labels to within one, in order."""
    rng = np.random.default_rng([seed, *b"subset"])
    shares = np.bincount(y) * size / len(y)
    counts = np.floor(shares).astype(int)
    order = np.lexsort((rng.permutation(len(shares)), counts - shares))  # the largest remainders first
    counts[order[: size - counts.sum()]] += 1
    drawn = [rng.permutation(np.flatnonzero(y == label))[:count] for label, count in enumerate(counts)]
    return np.sort(np.concatenate(drawn))


DATASETS: dict[str, DatasetSource] = {
    "mnist1d": DatasetSource(
        mnist1d, shape=lambda options: Shape((options.train_size, options.test_size), (1, 40), 10)
    ),
    "cifar10": DatasetSource(cifar10, shape=lambda options: Shape((50_000, 10_000), (3, 32, 32), 10)),
    "fashion_mnist": DatasetSource(fashion_mnist, shape=lambda options: Shape((60_000, 10_000), (1, 28, 28), 10)),
    "digits": DatasetSource(digits, shape=lambda options: Shape(DIGITS, (1, 8, 8), 10)),
    "image_folder": DatasetSource(
        image_folder, shape=lambda options: Shape(*images.shape_of_folder(Path(options.folder), options.resize))
    ),
}
"""Adding a dataset: its options in config/models.py, one function that makes it, and one record here."""


def materialise(options: models.Dataset, seed: int, tensors: Path, datasheet: Path) -> None:
    """Write a dataset to one safetensors file and describe it in a JSON datasheet.

    Args:
        options: which dataset.
        seed: the study's seed, which draws the label permutation (the data's own seed is among the options).
        tensors: output, keys train_x, train_y, train_y_permuted, test_x, test_y.
        datasheet: output, sizes, class counts, seeds and the sha256 of the tensor file.

    Raises:
        UserError: the dataset is not available, with what to do about it.
    """
    import torch  # here, because Snakemake imports this module when it builds the DAG

    (train_x, train_y), (test_x, test_y) = DATASETS[options.name].make(options)
    classes = int(max(train_y.max(), test_y.max())) + 1
    permuted = np.random.default_rng([seed, *b"labels"]).permutation(train_y)
    scale = images.channel_statistics(train_x) if train_x.dtype == np.uint8 else {}
    with replacing(tensors) as temporary:
        arrays = {
            "train_x": train_x,
            "train_y": train_y,
            "train_y_permuted": permuted,
            "test_x": test_x,
            "test_y": test_y,
        }
        stored = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        write_tensors(temporary, stored, name=options.name, classes=classes, **scale)
    sheet = {
        "name": options.name,
        "made_with": dict(sorted(options.model_dump(mode="json", exclude={"name"}).items())),
        "label_permutation_seed": seed,
        "labels_kept_by_permutation": float(np.mean(permuted == train_y)),
        "classes": classes,
        "input_shape": list(train_x.shape[1:]),
        **scale,
        "train": {"size": len(train_y), "per_class": np.bincount(train_y, minlength=classes).tolist()},
        "test": {"size": len(test_y), "per_class": np.bincount(test_y, minlength=classes).tolist()},
        "sha256": hashlib.sha256(tensors.read_bytes()).hexdigest(),
    }
    with replacing(datasheet) as temporary:
        temporary.write_text(json.dumps(sheet, indent=2) + "\n", encoding="utf-8")


def shape_of(options: models.Dataset) -> Shape:
    """What a dataset will be, without making it.

    Raises:
        UserError: an image folder that is not there.
    """
    (train, test), inputs, classes = DATASETS[options.name].shape(options)
    return Shape((options.train_size or train, options.test_size or test), inputs, classes)


def load(path: Path, device: str = "cpu") -> Dataset:
    """Read a materialised dataset; of images there is one copy, of bytes.

    Raises:
        DamagedFile: the file is missing, truncated or corrupt, or lacks a tensor.
    """
    import torch  # here, because Snakemake imports this module when it builds the DAG

    names = ("train_x", "train_y", "train_y_permuted", "test_x", "test_y")
    tensors, metadata = read_tensors(path, names, device)
    normalisation = None
    if "mean" in metadata:
        space = tuple(tensors["train_x"].shape[2:])
        normalisation = Normalisation.of_channels(metadata["mean"], metadata["std"], space).to(device)
        for name in ("train_x", "test_x"):
            tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last)
    return Dataset(
        name=metadata["name"],
        classes=metadata["classes"],
        checksum=checksum(metadata),
        normalisation=normalisation,
        **tensors,
    )
