"""Datasets are what their authors distribute, reproducible, and described truthfully."""

import hashlib
import json

import numpy as np
import pytest
from cca_dynamics.config.base import validate
from cca_dynamics.config.models import Cifar10, Digits, ImageFolder, Mnist1d, StudyConfig
from cca_dynamics.data import datasets
from cca_dynamics.errors import ConfigError, DamagedFile, UserError
from cca_dynamics.networks.architectures import describe
from cca_dynamics.runtime.storage import replacing

OPTIONS = Mnist1d(train_size=400, test_size=100, seed=42)


def materialise(folder, seed=0):
    folder.mkdir(exist_ok=True)
    tensors, sheet = folder / "dataset.safetensors", folder / "datasheet.json"
    datasets.materialise(OPTIONS, seed, tensors, sheet)
    return datasets.load(tensors), json.loads(sheet.read_text()), tensors


def test_mnist1d_is_the_package_s_own(tmp_path):
    from mnist1d.data import get_dataset_args, make_dataset

    arguments = get_dataset_args()
    arguments.num_samples, arguments.train_split = 500, 0.8
    expected = make_dataset(arguments)
    data, _, _ = materialise(tmp_path)
    np.testing.assert_allclose(data.train_x[:, 0], expected["x"], rtol=1e-6)
    np.testing.assert_array_equal(data.test_y, expected["y_test"])


def test_subsets_of_training_examples_are_nested_and_keep_their_order(tmp_path):
    data, _, _ = materialise(tmp_path)
    assert data.subset(None, seed=1) is data
    few, more = data.subset(50, seed=1), data.subset(200, seed=1)

    def rows(subset) -> list[int]:
        matches = (subset.train_x[:, None] == data.train_x[None]).flatten(2).all(dim=2)
        assert (matches.sum(dim=1) == 1).all()
        return matches.int().argmax(dim=1).tolist()

    assert len(few.train_y) == 50 and rows(few) == sorted(rows(few)) and set(rows(few)) < set(rows(more))
    for name in ("train_y", "train_y_permuted"):
        np.testing.assert_array_equal(getattr(few, name), getattr(data, name)[rows(few)])
    assert rows(data.subset(50, seed=2)) != rows(few) and few.test_x is data.test_x
    with pytest.raises(UserError, match="401 training examples are asked for and the dataset has 400"):
        data.subset(401, seed=1)


@pytest.mark.parametrize(("train", "test"), [(1800, 1700), (101, 53), (100, 50)])
def test_mnist1d_has_any_size(train, test):
    (train_x, train_y), (test_x, test_y) = datasets.mnist1d(Mnist1d(train_size=train, test_size=test))
    assert train_x.shape == (train, 1, 40) and test_x.shape == (test, 1, 40)
    assert len(train_y) == train and len(test_y) == test and set(train_y) | set(test_y) == set(range(10))


def test_digits_are_scikit_learn_s_each_on_one_side():
    from sklearn.datasets import load_digits

    (train_x, train_y), (test_x, test_y) = datasets.digits(Digits(seed=3))
    assert train_x.shape == (1497, 1, 8, 8) and test_x.shape == (300, 1, 8, 8) and train_x.dtype == np.uint8
    made = sorted(
        (label, *image.ravel()) for image, label in zip([*train_x, *test_x], [*train_y, *test_y], strict=True)
    )
    data = load_digits()
    assert made == sorted((label, *image) for image, label in zip(data.data, data.target, strict=True))
    expected = 300 * np.bincount(data.target) / 1797
    assert (np.abs(np.bincount(test_y) - expected) < 1).all()


def test_the_dataset_s_seed_draws_which_digits_are_for_testing():
    (_, one), (_, again), (_, other) = (datasets.digits(Digits(seed=seed)) for seed in (1, 1, 2))
    assert (one[0] == again[0]).all() and not (one[0] == other[0]).all()


def test_a_subset_of_the_digits_is_drawn_from_its_split():
    (all_x, _), (all_test_x, _) = datasets.digits(Digits())
    (x, y), (test_x, _) = datasets.digits(Digits(train_size=200, test_size=100))
    assert x.shape == (200, 1, 8, 8) and test_x.shape == (100, 1, 8, 8) and set(np.bincount(y)) <= {19, 20, 21}
    assert {image.tobytes() for image in x} <= {image.tobytes() for image in all_x}
    assert {image.tobytes() for image in test_x} <= {image.tobytes() for image in all_test_x}
    assert datasets.shape_of(Digits(test_size=100)) == ((1497, 100), (1, 8, 8), 10)


@pytest.mark.parametrize(("key", "size", "most"), [("train_size", 1498, 1497), ("test_size", 301, 300)])
def test_more_digits_than_there_are_are_refused_by_key(key, size, most):
    with pytest.raises(ConfigError, match=rf"dataset\.{key}: {size} is too large; the most is {most}"):
        validate(StudyConfig, {"dataset": {"name": "digits", key: size}})


def test_the_default_network_takes_digits():
    options = StudyConfig()
    described = describe(options.network, 1, (8, 8), 10)
    assert list(described.widths) == ["conv1", "conv2", "conv3", "conv4", "conv5", "softmax"]


def test_generating_leaves_the_global_generator_alone():
    np.random.seed(1)  # noqa: NPY002
    datasets.mnist1d(Mnist1d(train_size=100, test_size=50, seed=42))
    after = np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert after == np.random.random()  # noqa: NPY002


def test_permuted_labels_keep_the_class_counts_and_little_else(tmp_path):
    data, sheet, _ = materialise(tmp_path)
    true, permuted = data.train_y.numpy(), data.train_y_permuted.numpy()
    np.testing.assert_array_equal(np.bincount(true), np.bincount(permuted))
    assert 0.02 < np.mean(true == permuted) < 0.2  # a tenth by chance
    assert sheet["labels_kept_by_permutation"] == pytest.approx(np.mean(true == permuted))


def test_the_study_seed_draws_the_permutation_and_not_the_data(tmp_path):
    one, _, _ = materialise(tmp_path / "one", seed=0)
    two, _, _ = materialise(tmp_path / "two", seed=1)
    assert (one.train_x == two.train_x).all() and (one.train_y == two.train_y).all()
    assert not (one.train_y_permuted == two.train_y_permuted).all()


def test_datasheet_describes_the_file(tmp_path):
    data, sheet, tensors = materialise(tmp_path)
    assert sheet["sha256"] == hashlib.sha256(tensors.read_bytes()).hexdigest()
    assert sheet["train"]["per_class"] == np.bincount(data.train_y, minlength=10).tolist()
    assert sheet["input_shape"] == [1, 40] and sheet["classes"] == data.classes == 10
    assert sheet["test"]["size"] == 100 and sheet["made_with"]["seed"] == 42


def test_the_shape_is_known_before_the_dataset_is_made(tmp_path):
    data, _, _ = materialise(tmp_path)
    made = (len(data.train_x), len(data.test_x)), tuple(data.train_x.shape[1:]), data.classes
    assert datasets.shape_of(OPTIONS) == made
    assert datasets.shape_of(Cifar10(train_size=500)) == ((500, 10_000), (3, 32, 32), 10)
    with pytest.raises(UserError, match=r"dataset\.folder: .*nowhere/train is not a folder"):
        datasets.shape_of(ImageFolder(folder="nowhere"))


def test_twice_is_byte_identical(tmp_path):
    (_, _, one), (_, _, two) = materialise(tmp_path / "one"), materialise(tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("size", [0, 7, 5000])
def test_truncated_file_is_named_with_its_remedy(tmp_path, size):
    _, _, tensors = materialise(tmp_path)
    tensors.write_bytes(tensors.read_bytes()[:size])
    with pytest.raises(DamagedFile, match=r"dataset\.safetensors is missing or damaged .* run snakemake again"):
        datasets.load(tensors)


def test_an_output_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_nothing_until_it_is_complete(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "half").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
