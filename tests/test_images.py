"""Images: decoded as they are, cached, drawn by class; whatever is wrong with them is named with its remedy."""

import hashlib
import json
import os
import pickle
import re
import struct
import subprocess
import tarfile

import numpy as np
import pytest
import torch
from cca_dynamics import cli
from cca_dynamics.config.models import Cifar10, ConvNetOptions, ImageFolder
from cca_dynamics.data import datasets, image_files, images
from cca_dynamics.errors import UserError
from cca_dynamics.networks import convolutional
from cca_dynamics.networks.architectures import ConvNet
from cca_dynamics.runtime.storage import read_tensors
from cca_dynamics.training import classifiers
from cca_dynamics.training.augmentation import SHIFT, draw_changes, flip_and_shift
from PIL import Image, ImageOps

CLASSES = ("cat", "dog", "owl")


def make_folder(root, sizes=(6, 3), shape=(8, 10), suffix="png"):
    """A folder of random images; returns split → (n, 3, height, width)."""
    rng = np.random.default_rng(0)
    images_of_split = {}
    for split, size in zip(("train", "test"), sizes, strict=True):
        pixels = rng.integers(0, 256, (len(CLASSES), size, *shape, 3), dtype=np.uint8)
        for label, group in zip(CLASSES, pixels, strict=True):
            (root / split / label).mkdir(parents=True)
            for i, image in enumerate(group):
                Image.fromarray(image).save(root / split / label / f"{i:02d}.{suffix}")
        images_of_split[split] = pixels.reshape(-1, *shape, 3).transpose(0, 3, 1, 2)
    return images_of_split


def options(root, **changes) -> ImageFolder:
    return ImageFolder(**{"folder": str(root / "images"), "cache": str(root / "cache"), **changes})


def materialise(root, seed=0):
    tensors, sheet = root / "dataset.safetensors", root / "datasheet.json"
    datasets.materialise(options(root), seed, tensors, sheet)
    return datasets.load(tensors), json.loads(sheet.read_text())


def test_a_folder_is_read_as_it_is(tmp_path):
    made = make_folder(tmp_path / "images")
    (train_x, train_y), (test_x, test_y) = images.image_folder(tmp_path / "images", None, tmp_path / "cache")
    np.testing.assert_array_equal(train_x, made["train"])
    np.testing.assert_array_equal(test_x, made["test"])
    assert train_y.tolist() == [0] * 6 + [1] * 6 + [2] * 6 and test_y.tolist() == [0] * 3 + [1] * 3 + [2] * 3


RGB = np.random.default_rng(1).integers(0, 256, (8, 10, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def saved(tmp_path, image, suffix="png", **how):
    image.save(tmp_path / f"image.{suffix}", **how)
    return np.asarray(image_files.read(tmp_path / f"image.{suffix}"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"])
def test_every_mode_of_pillow_becomes_the_colours_that_it_stands_for(tmp_path, mode):
    grey = np.repeat(GREY[..., None], 3, axis=2)
    made = {
        "1": lambda: (Image.fromarray(GREY > 127), np.where(grey > 127, 255, 0), "png"),
        "L": lambda: (Image.fromarray(GREY), grey, "png"),
        "P": lambda: ((paletted := Image.fromarray(RGB).quantize(64)), np.asarray(paletted.convert("RGB")), "png"),
        "RGB": lambda: (Image.fromarray(RGB), RGB, "bmp"),
        "RGBA": lambda: (Image.fromarray(RGB).convert("RGBA"), RGB, "webp"),
        "LA": lambda: (Image.fromarray(GREY).convert("LA"), grey, "png"),
        "CMYK": lambda: (Image.fromarray(RGB).convert("CMYK"), RGB, "tif"),
        "YCbCr": lambda: (Image.fromarray(RGB).convert("YCbCr"), RGB, "tif"),
        "LAB": lambda: (Image.new("LAB", (10, 8), (255, 128, 128)), np.full_like(RGB, 255), "tif"),
        "I;16": lambda: (Image.fromarray(GREY.astype(np.uint16) * 257), grey, "png"),
        "I": lambda: (Image.fromarray(GREY.astype(np.int32) * 257), grey, "tif"),
        "F": lambda: (Image.fromarray(GREY.astype(np.float32) / 255), grey, "tif"),
    }
    image, expected, suffix = made[mode]()
    assert image.mode == mode
    how = {"lossless": True} if suffix == "webp" else {}
    np.testing.assert_allclose(saved(tmp_path, image, suffix, **how).astype(int), expected, atol=3)


def test_transparent_pixels_are_white_and_photographs_upright(tmp_path):
    clear = Image.fromarray(np.dstack([RGB, np.where(GREY > 99, 255, 0).astype(np.uint8)]))
    expected = np.where(GREY[..., None] > 99, RGB, 255)
    np.testing.assert_array_equal(saved(tmp_path, clear), expected)
    paletted = Image.fromarray(GREY // 128).convert("P")
    assert (saved(tmp_path, paletted, transparency=0)[GREY < 128] == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(RGB), exif=exif), np.rot90(RGB, -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_damaged_exif_data_do_not_spoil_an_image(tmp_path):
    """The orientation is used if it can be read; once, Pillow failed when it wrote the rest of the data anew."""
    width, orientation = struct.pack("<HHI4s", 256, 2, 4, b"abc\0"), struct.pack("<HHIHH", 274, 3, 1, 6, 0)
    header, end = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2), bytes(4)
    image = Image.fromarray(RGB)
    upright = saved(tmp_path, image, exif=header + width + orientation + end)
    np.testing.assert_array_equal(upright, np.rot90(RGB, -1))
    np.testing.assert_array_equal(saved(tmp_path, image, exif=header + orientation[:7]), RGB)
    np.testing.assert_array_equal(saved(tmp_path, image, exif=b"Exif\0\0nonsense"), RGB)
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        found = saved(tmp_path, image, exif=exif)
        with Image.open(tmp_path / "image.png") as opened:
            np.testing.assert_array_equal(found, np.asarray(ImageOps.exif_transpose(opened)))


def test_whatever_a_decoder_raises_names_the_image(monkeypatch):
    def fails(path):
        raise struct.error("required argument is not an integer")

    monkeypatch.setattr(image_files, "read", fails)
    with pytest.raises(UserError, match=r"a\.png is not an image or damaged \(required argument .*; replace or delete"):
        images._decode("a.png", None)


def test_of_animations_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (10, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "image.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(image_files.read(tmp_path / "image.gif"))[0, 0].tolist() == [255, 0, 0]


def test_links_are_followed_loops_are_not_and_the_rest_is_counted(tmp_path):
    store, folder = tmp_path / "store", tmp_path / "folder"
    for path in (store / "deep", folder / ".hidden"):
        path.mkdir(parents=True)
    for path in (store / "b.png", store / "deep/a.WEBP", folder / "c.jpg", folder / ".hidden/x.png", folder / ".y.png"):
        Image.fromarray(RGB).save(path)
    for name in ("notes.txt", "more.txt", "photo.heic", "README"):
        (folder / name).write_text("")
    (folder / "linked").symlink_to(store)
    (store / "loop").symlink_to(folder)
    (folder / "broken.png").symlink_to(tmp_path / "nowhere")
    found = image_files.files_below(folder)
    assert [str(path.relative_to(folder)) for path in found.paths] == ["c.jpg", "linked/b.png", "linked/deep/a.WEBP"]
    assert found.note().startswith("5 files are no images by their suffix and are left out (2 .txt, ")
    assert "1 broken links" in found.note()
    assert image_files.files_below(folder, depth=0).paths == [folder / "c.jpg"]


def test_classes_may_be_links_and_validation_stands_for_test(tmp_path, capsys):
    made = make_folder(tmp_path / "made")
    root = tmp_path / "images"
    (root / "train").mkdir(parents=True)
    for label in CLASSES:
        (root / "train" / label).symlink_to(tmp_path / "made/train" / label)
    os.rename(tmp_path / "made/test", root / "val")
    (root / "val/cat/notes.txt").write_text("")
    (train_x, train_y), (test_x, _) = datasets.image_folder(options(tmp_path))
    np.testing.assert_array_equal(train_x, made["train"])
    np.testing.assert_array_equal(test_x, made["test"])
    assert len(np.unique(train_y)) == 3
    assert "val/cat: 1 files are no images by their suffix and are left out (1 .txt)" in capsys.readouterr().err


def test_training_images_are_normalised_and_test_images_alike(tmp_path):
    made = make_folder(tmp_path / "images")
    data, sheet = materialise(tmp_path)
    mean, std = (made["train"] / 255).mean((0, 2, 3)), (made["train"] / 255).std((0, 2, 3))
    assert sheet["mean"] == pytest.approx(mean) and sheet["std"] == pytest.approx(std)
    expected = (made["test"] / 255 - mean[:, None, None]) / std[:, None, None]
    train_x, test_x = data.normalised(data.train_x), data.normalised(data.test_x)
    np.testing.assert_allclose(test_x.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert train_x.mean((0, 2, 3)).abs().max() < 1e-5
    assert train_x.std((0, 2, 3), correction=0).numpy() == pytest.approx(np.ones(3), abs=1e-5)


def normalised_at_once(folder) -> dict[str, torch.Tensor]:
    """Both splits of a dataset, all images normalised at once."""
    tensors, metadata = read_tensors(folder / "dataset.safetensors")
    mean, std = (torch.tensor(metadata[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return {split: tensors[f"{split}_x"].float().div_(255).sub_(mean).div_(std) for split in ("train", "test")}


def test_images_are_held_once_as_bytes_and_subsets_as_bytes(tmp_path):
    make_folder(tmp_path / "images", sizes=(40, 3))
    data, _ = materialise(tmp_path)
    expected, few = normalised_at_once(tmp_path)["train"], data.subset(50, seed=1)
    assert data.train_x.dtype == data.test_x.dtype == few.train_x.dtype == torch.uint8
    for x in (data.train_x, few.train_x):  # what training reads is no copy
        assert convolutional.channels_last(x).data_ptr() == x.data_ptr()
    rows = [int((data.train_x == image).flatten(1).all(dim=1).nonzero()[0]) for image in few.train_x]
    assert len(set(rows)) == 50 and torch.equal(few.normalised(few.train_x), expected[rows])


@pytest.mark.parametrize("augment", [None, flip_and_shift])
def test_networks_read_each_batch_bit_for_bit_as_if_all_images_had_been_normalised_at_once(
    tmp_path, monkeypatch, augment
):
    make_folder(tmp_path / "images", sizes=(60, 40))
    data, _ = materialise(tmp_path)
    expected = {split: convolutional.channels_last(x) for split, x in normalised_at_once(tmp_path).items()}
    network = convolutional.build(
        ConvNetOptions(channels=(3,), strides=(2,)), 3, (8, 10), 3, normalise=data.normalisation
    )
    state, read = network.initialise(np.random.default_rng(i) for i in range(2)), []
    forward = ConvNet.forward
    monkeypatch.setattr(ConvNet, "forward", lambda self, x, *how: read.append(x) or forward(self, x, *how))

    first = {name: tensor[:1] for name, tensor in state.items()}
    batch, changes = torch.randint(180, (2, 16)), torch.from_numpy(draw_changes(np.random.default_rng(0), 180))
    changes = None if augment is None else changes.expand(2, -1, -1)
    x = convolutional.channels_last(data.train_x)
    classifiers.batch_gradients(
        network, classifiers.stack_parameters(network, state, 16), x, data.train_y, batch, augment, changes
    )
    inputs = expected["train"][batch]
    if augment is not None:
        inputs = augment(inputs, changes.gather(1, batch[..., None].expand(-1, -1, 3)))
    assert torch.equal(torch.cat(read), inputs)

    for run in (
        lambda: network.evaluate(state, data.test_x, data.test_y, batch_size=50),
        lambda: network.representations(state, data.test_x, ["conv1"], batch_size=50),
        lambda: network.accuracy_without(first, data.test_x, data.test_y, {"conv1": torch.ones(2, 3)}, 50),
    ):
        read.clear()
        run()
        assert [x.shape[1] for x in read] == [50, 50, 20]
        assert torch.equal(torch.cat([x[0] for x in read]), expected["test"])


def test_decoding_happens_once_until_the_folder_changes(tmp_path, monkeypatch):
    make_folder(tmp_path / "images")
    first = images.image_folder(tmp_path / "images", None, tmp_path / "cache")
    decoded = []
    decode = images._decode
    monkeypatch.setattr(images, "_decode", lambda *arguments: decoded.append(arguments) or decode(*arguments))
    again = images.image_folder(tmp_path / "images", None, tmp_path / "cache")
    assert not decoded
    np.testing.assert_array_equal(first[0][0], again[0][0])
    Image.new("RGB", (10, 8)).save(tmp_path / "images/train/cat/00.png")
    changed = images.image_folder(tmp_path / "images", None, tmp_path / "cache")
    assert decoded and changed[0][0][0].max() == 0
    assert len(list(tmp_path.glob("cache/*"))) == 2  # both are kept


def test_a_damaged_cache_is_made_again(tmp_path):
    made = make_folder(tmp_path / "images")
    images.image_folder(tmp_path / "images", None, tmp_path / "cache")
    (kept,) = tmp_path.glob("cache/*")
    content = bytearray(kept.read_bytes())
    content[-5] ^= 1
    kept.write_bytes(content)
    (x, _), _ = images.image_folder(tmp_path / "images", None, tmp_path / "cache")
    np.testing.assert_array_equal(x, made["train"])


def test_resize_scales_every_image(tmp_path):
    make_folder(tmp_path / "images", suffix="jpg")
    Image.new("L", (30, 5), 200).save(tmp_path / "images/test/owl/wide.jpeg")
    (train_x, _), (test_x, _) = images.image_folder(tmp_path / "images", 6, tmp_path / "cache")
    assert train_x.shape == (18, 3, 6, 6) and test_x.shape == (10, 3, 6, 6)
    assert np.abs(test_x[-1].astype(int) - 200).max() <= 1  # grey becomes colour


def test_a_subset_keeps_the_shares_of_the_classes(tmp_path):
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [60, 30, 10])
    split = (np.arange(100)[:, None], y)
    x, chosen = datasets._subset(split, 50, 1, "here")
    assert np.bincount(chosen).tolist() == [30, 15, 5] and (np.diff(x[:, 0]) > 0).all()
    np.testing.assert_array_equal(y[x[:, 0]], chosen)
    for size in rng.integers(1, 100, 10):
        _, chosen = datasets._subset(split, int(size), 1, "here")
        assert len(chosen) == size
        assert np.abs(np.bincount(chosen, minlength=3) - np.array([0.6, 0.3, 0.1]) * size).max() < 1
    other, _ = datasets._subset(split, 50, 2, "here")
    assert not np.array_equal(x, other)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("spoil", "changes", "message"),
    [
        (
            lambda root: cut(root / "train/dog/03.png", 60),
            {},
            r"train/dog/03\.png is not an image or damaged .*delete it",
        ),
        (lambda root: (root / "test/owl/01.png").write_text("no"), {}, r"test/owl/01\.png is not an image"),
        (lambda root: (root / "test/owl/01.png").write_bytes(b""), {}, r"test/owl/01\.png is not an image"),
        (
            lambda root: os.rename(root / "test/owl", root / "test/fox"),
            {},
            r"class fox is in .*test but not in .*train",
        ),
        (lambda root: (root / "train/ant").mkdir(), {}, r"train/ant holds no image"),
        (lambda root: os.rename(root / "test", root / "check"), {}, r"test is not a folder; images are expected in"),
        (
            lambda root: [os.rename(path, path.with_suffix(".heic")) for path in (root / "train/dog").iterdir()],
            {},
            r"train/dog holds no image .*but 6 files are no images by their suffix and are left out \(6 \.heic\)",
        ),
        (
            lambda root: Image.fromarray(np.full((8, 10), 7.0, np.float32)).save(root / "test/cat/00.tif"),
            {},
            r"00\.tif is not an image or damaged \(mode F, values from 7 to 7, of which white is not known\)",
        ),
        (lambda root: Image.new("RGB", (4, 4)).save(root / "test/cat/02.png"), {}, r"02\.png is 4 × 4 .* set resize"),
        (lambda root: None, {"train_size": 50}, r"50 images are asked for and .*train has 18; lower train_size"),
        (lambda root: None, {"folder": "/nowhere"}, r"/nowhere/train is not a folder"),
    ],
)
def test_bad_images_are_named_and_nothing_is_left(tmp_path, capsys, spoil, changes, message):
    make_folder(tmp_path / "images")
    spoil(tmp_path / "images")
    arguments = ["--options", options(tmp_path, **changes).model_dump_json(), "--seed", "0"]
    out = tmp_path / "out"
    outputs = ["--tensors", str(out / "dataset.safetensors"), "--datasheet", str(out / "datasheet.json")]
    assert cli.main(["dataset", *arguments, *outputs]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: dataset")
    assert re.search(message, error)
    assert not out.exists() and not list(tmp_path.glob("cache/.*"))


def test_a_full_disk_is_named_and_nothing_half_written_stays(tmp_path):
    """On a file system of its own with no room, where the system lets us have one."""
    make_folder(tmp_path / "images", sizes=(60, 20), shape=(32, 32))
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("no permission to mount a small file system")
    try:
        with pytest.raises((OSError, UserError), match=r"free disk space|No space left"):
            images.image_folder(tmp_path / "images", None, small)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A tiny CIFAR-10 in torchvision's layout, with checksums to match, and no network."""
    from torchvision import datasets as theirs
    from torchvision.datasets import utils

    rng, lists = np.random.default_rng(0), {"train": [], "test": []}
    base = tmp_path / "made" / "cifar-10-batches-py"
    base.mkdir(parents=True)

    def write(name, content) -> str:
        (base / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((base / name).read_bytes()).hexdigest()

    for name, split in (("data_batch_1", "train"), ("test_batch", "test")):
        data = rng.integers(0, 256, (60, 3072), dtype=np.uint8)
        lists[split].append([name, write(name, {"data": data, "labels": [i % 10 for i in range(60)]})])
    meta = write("batches.meta", {"label_names": list("abcdefghij")})
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(base, "cifar-10-batches-py")
    monkeypatch.setattr(theirs.CIFAR10, "train_list", lists["train"])
    monkeypatch.setattr(theirs.CIFAR10, "test_list", lists["test"])
    monkeypatch.setattr(theirs.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta})
    monkeypatch.setattr(theirs.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())

    def offline(*arguments, **options):
        raise OSError("Temporary failure in name resolution")

    monkeypatch.setattr(utils, "_urlretrieve", offline)
    return archive


def test_cifar10_is_unpacked_from_its_archive(tmp_path, cifar):
    folder = tmp_path / "data"
    folder.mkdir()
    os.rename(cifar, folder / cifar.name)
    (train_x, train_y), (test_x, _) = datasets.cifar10(Cifar10(folder=str(folder), train_size=50))
    assert train_x.shape == (50, 3, 32, 32) and train_x.dtype == np.uint8 and len(test_x) == 60
    assert np.bincount(train_y).tolist() == [5] * 10


@pytest.mark.parametrize("damage", ["nothing there", "a broken archive", "a broken batch"])
def test_without_cifar10_the_remedy_is_named(tmp_path, cifar, damage):
    folder = tmp_path / "data"
    folder.mkdir()
    if damage == "a broken archive":
        (folder / cifar.name).write_bytes(cifar.read_bytes()[:-100])
    if damage == "a broken batch":
        os.rename(cifar.parent / "made/cifar-10-batches-py", folder / "cifar-10-batches-py")
        cut(folder / "cifar-10-batches-py/test_batch", 500)
    with pytest.raises(
        UserError, match=r"CIFAR10 is not available from .*put cifar-10-python\.tar\.gz \(md5"
    ) as problem:
        datasets.cifar10(Cifar10(folder=str(folder)))
    assert "\n" not in str(problem.value) and str(folder) in str(problem.value)
    assert ("delete " in str(problem.value)) == (damage != "nothing there")


def test_augmented_images_are_shifted_and_mirrored():
    x = torch.arange(2 * 3 * 6 * 7 * 1, dtype=torch.float32).view(2, 3, 6, 7, 1) + 1
    changes = torch.zeros(2, 3, 3, dtype=torch.long)
    torch.testing.assert_close(flip_and_shift(x, changes), x)
    changes[0, 0] = torch.tensor([1, 0, 0])
    changes[1, 2] = torch.tensor([0, 2, -SHIFT])
    augmented = flip_and_shift(x, changes)
    torch.testing.assert_close(augmented[0, 0], x[0, 0].flip(1))
    torch.testing.assert_close(augmented[1, 2, 2:, : 7 - SHIFT], x[1, 2, :-2, SHIFT:])
    assert (augmented[1, 2, :2] == 0).all() and (augmented[1, 2, :, 7 - SHIFT :] == 0).all()
    torch.testing.assert_close(augmented[0, 1:], x[0, 1:])
