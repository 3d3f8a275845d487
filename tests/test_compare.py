"""Layers of networks from elsewhere: captured with hooks, read from any file, compared as the measures say."""

import errno
import io
import json
import os
import pickle
import re
import shlex
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cca_dynamics import cli
from cca_dynamics.compare import capture, comparison, inputs, readers
from cca_dynamics.compare.outputs import Reading
from cca_dynamics.errors import Interrupted, UserError, as_user_error
from cca_dynamics.runtime.storage import read_tensors, write_tensors
from cca_dynamics.similarity import MEASURES, null_floor, pairwise, pairwise_permutation_test, pwcca, svcca
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from tests.builders import ROOT, Payload

IMAGES = 140  # more than twice the 64 channels of a ResNet's first layer
SMALL = """
    import torch
    from torch import nn


    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3)
            self.relu = nn.ReLU(inplace=True)
            self.fc = nn.Linear(5, 4)
            self.after = nn.ReLU(inplace=True)
            self.tokens = nn.Flatten(2)
            self.lstm = nn.LSTM(4, 2)
            self.unused = nn.Linear(2, 2)
            self.last = nn.Identity()

        def forward(self, x):
            x = self.relu(self.conv(x))
            self.tokens(x)
            x = self.after(self.fc(x.mean(dim=(2, 3))))
            self.lstm(x)
            self.last(x.T)
            return self.relu(x)


    def small():
        return Small()


    def broken():
        return Small(), 1


    def fails():
        raise RuntimeError("no such thing\\nsecond line")


    def demanding():
        return nn.Linear(7, 7)


    def channels_last():
        class Permute(nn.Module):
            def forward(self, x):
                return x.permute(0, 2, 3, 1)

        return nn.Sequential(Permute())


    def infinite():
        net = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
        net(torch.zeros(1, 3, 8, 8))
        net[1].weight.data.fill_(float("inf"))
        return net
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of random images, in subfolders, of unequal shapes."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(IMAGES):
        target = folder / "abc"[i % 3] / f"{i:03d}.{('png', 'jpg')[i % 2]}"
        target.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((20 + i % 4, 18), Image.Resampling.BICUBIC).save(target)
    return folder


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The current folder has a module of networks, under a name of its own; returns the name."""
    name = f"networks_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(SMALL))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


@pytest.fixture
def two(rng):
    """Two layers that share some signal, float32."""
    shared = rng.normal(size=(80, 3))
    x, y = (shared @ rng.normal(size=(3, d)) + 0.5 * rng.normal(size=(80, d)) for d in (6, 9))
    return x.astype(np.float32), y.astype(np.float32)


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Status, stdout and stderr of the command line."""
    status = cli.main([*map(str, arguments), "--device", "cpu"])
    return (status, *capsys.readouterr())


def refusal(capsys, *arguments) -> str:
    """The one line that a command is refused with."""
    status, out, err = run(capsys, *arguments)
    assert status == 1 and not out and err.count("\n") == 1 and err.startswith("error: "), err
    assert ";" in err, "a remedy is named"
    return err.removeprefix("error: ")


def symmetric(x, y, measure=pwcca) -> float:
    result = measure(x, y)
    return (result.distance + result.reverse) / 2


@pytest.mark.thorough
def test_two_resnets_from_images_to_heatmap(tmp_path, images, capsys):
    for seed in (0, 1):
        arguments = ("--layers", "layer1", "conv1", "--size", "32", "--batch", IMAGES, "--seed", seed)
        status, out, err = run(
            capsys, "capture", "resnet18", "--images", images, *arguments, "--out", tmp_path / f"seed{seed}.safetensors"
        )
        assert status == 0, err
        assert f"{IMAGES} images" in out and "layer1: 64 neurons, averaged over 8 × 8 positions" in out
    files, heatmap, table = tmp_path.glob("seed*"), tmp_path / "heatmap.png", tmp_path / "new/table.csv"
    status, out, err = run(capsys, "compare", *sorted(files), "--out", heatmap, "--table", table)
    assert status == 0 and not err
    with Image.open(heatmap) as image:
        assert image.width > 1000
    rows = pd.read_csv(table)
    assert list(rows) == ["a", "b", "measure", "distance", "floor"] and len(rows) == 6
    x, y = (read_tensors(tmp_path / f"seed{seed}.safetensors")[0]["layer1"] for seed in (0, 1))
    (row,) = rows[(rows["a"] == "seed0:layer1") & (rows["b"] == "seed1:layer1")].itertuples()
    assert row.distance == pytest.approx(symmetric(x, y), abs=1e-10)
    assert row.floor == pytest.approx(pwcca(x, y).floor, abs=1e-12)
    assert 0 < row.distance < row.floor  # they see the same images
    for text in (f"{row.distance:.3f}", f"{row.floor:.3f}", "mean of both directions", "Gaussian", "seed1:layer1"):
        assert text in out
    assert "\x1b" not in out


def test_what_hooks_store_is_a_forward_pass(tmp_path, images, small, capsys):
    """Averages over space, before anything later changes them in place; files and batches change nothing."""
    model = ("capture", f"{small}:small", "--images", images, "--size", "16", "--layers", "conv", "fc", "after")
    assert run(capsys, *model, "--out", "a.safetensors", "--batch", "7")[0] == 0
    assert run(capsys, *model, "--out", "a.npz", "--batch", "1000")[0] == 0
    found, facts = read_tensors(tmp_path / "a.safetensors")
    torch.manual_seed(0)
    network = sys.modules[small].small().eval()
    paths = sorted(images.rglob("*.*"), key=lambda path: path.relative_to(images).as_posix())
    x = torch.stack([inputs.image(path, inputs.Pixels(16)) for path in paths])
    with torch.no_grad():
        conv = network.conv(x)
        fc = network.fc(conv.relu().mean(dim=(2, 3)))
    for name, expected in (("conv", conv.mean(dim=(2, 3))), ("fc", fc), ("after", fc.relu())):
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)
        assert found[name].dtype == torch.float32
    assert fc.min() < 0
    with np.load("a.npz", allow_pickle=False) as stored:
        described = json.loads(str(stored[readers.DESCRIPTION]))
        np.testing.assert_allclose(stored["fc"], fc, rtol=1e-5, atol=1e-6)
    assert described == {key: value for key, value in facts.items() if key != "sha256"}
    assert facts["model"] == f"{small}:small" and facts["images"] == IMAGES and facts["layers"]["conv"] == [5, 14, 14]
    assert facts["ids"] == [path.relative_to(images).as_posix() for path in paths]
    assert [read.name for read in readers.read([tmp_path / "a.npz"])] == ["conv", "fc", "after"]


def test_an_image_is_cropped_in_the_middle_and_normalised(tmp_path):
    pixels = np.zeros((10, 20, 3), dtype=np.uint8)
    pixels[:, 5:15] = (255, 128, 0)  # the square in the middle
    Image.fromarray(pixels).save(tmp_path / "a.png")
    x = inputs.image(tmp_path / "a.png", inputs.Pixels(10))
    mean, std = map(torch.tensor, inputs.IMAGENET[3])
    expected = (torch.tensor([1, 128 / 255, 0]) - mean) / std
    torch.testing.assert_close(x, expected[:, None, None].expand(3, 10, 10))


def test_seeds_change_the_network_and_not_the_images(images):
    networks = [capture.build(capture.Origin("squeezenet1_1", seed=seed)) for seed in (0, 1, 0)]
    first, second, again = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], second[name]) for name in first)
    every, some = (inputs.images(images, points, inputs.Pixels()) for points in (None, 14))
    assert some.facts()[0] == every.facts()[0][::10]


def test_layers_by_name_and_glob():
    network, reading = capture.build(capture.Origin("resnet18")), Reading()
    layouts = capture.probe(network, inputs.blank(inputs.Pixels(32)), "resnet18", reading, 64)
    found = capture.chosen(["layer*"], layouts, "resnet18", reading)
    assert list(found) == ["layer1", "layer2", "layer3", "layer4"]
    assert list(capture.chosen(["fc", "layer[12].?.conv1", "fc"], layouts, "resnet18", reading)) == [
        "fc",
        *(f"layer{i}.{j}.conv1" for i in (1, 2) for j in (0, 1)),
    ]


def test_list_names_layers_and_what_they_give(small, capsys):
    status, out, _ = run(capsys, "capture", f"{small}:small", "--list", "--size", "16")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert status == 0 and lines["conv"].split() == ["conv", "Conv2d", "5×14×14"]
    for layer, problem in {
        "relu": "called 2 times",
        "unused": "never called",
        "tokens": "5×196 (tokens × neurons)",
    }.items():
        assert problem in lines[layer]


def test_weights_come_from_a_file(tmp_path, images, small, capsys):
    network = capture.build(capture.Origin(f"{small}:small", seed=5))
    torch.save(network.state_dict(), tmp_path / "w.pt")
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    model = ("capture", f"{small}:small", "--images", images, "--points", "9", "--size", "16", "--layers", "fc")
    assert run(capsys, *model, "--seed", "5", "--out", "seed.npz")[0] == 0
    for suffix in ("pt", "safetensors"):
        assert run(capsys, *model, "--weights", f"w.{suffix}", "--out", f"{suffix}.npz")[0] == 0
    x, y, z = (each.x for each in readers.read([tmp_path / f"{name}.npz" for name in ("seed", "pt", "safetensors")]))
    assert torch.equal(x, y) and torch.equal(x, z)


def test_default_weights_are_torchvision_s(monkeypatch, capsys, images, tmp_path):
    from torchvision import models

    state = models.squeezenet1_1(weights=None).state_dict()
    monkeypatch.setattr(models._api, "load_state_dict_from_url", lambda *arguments, **options: state)
    network = capture.build(capture.Origin("squeezenet1_1", "default"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())

    def offline(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(models._api, "load_state_dict_from_url", offline)
    arguments = ("--weights", "default", "--images", images, "--layers", "features", "--out", tmp_path / "a.npz")
    assert "or download https://download.pytorch.org/" in refusal(capsys, "capture", "squeezenet1_1", *arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet19"}, "resnet19: torchvision has no such model; did you mean resnet1"),
        ({"model": "zzz"}, "zzz: torchvision has no such model; give a name"),
        ({"model": "no_such_module:f"}, "no_such_module cannot be imported from"),
        ({"model": "SMALL:smal"}, "has no function smal; did you mean small?"),
        ({"model": "SMALL:"}, "not module:function; name both"),
        ({"model": "SMALL:fails"}, "fails() fails (RuntimeError: no such thing); it must take no arguments"),
        ({"model": "SMALL:broken"}, "broken() returns a tuple; return a torch.nn.Module"),
        ({"model": "SMALL:demanding"}, "it fails on 2 × 3 × 16 × 16"),
        ({"layers": ["cnv"]}, "has no layer cnv; did you mean conv?"),
        ({"layers": ["x*"]}, "has no layer x*; --list names"),
        ({"layers": ["unused"]}, "unused of SMALL:small is not available: it is never called in a forward pass"),
        ({"layers": ["*"]}, "relu of SMALL:small is not available: it is called 2 times in a forward pass; add --call"),
        ({"layers": ["tokens"]}, "tokens of SMALL:small gives 5×196 (tokens × neurons); add --tokens mean"),
        ({"model": "SMALL:infinite", "layers": ["1"], "size": 8}, "1 of SMALL:infinite gives NaN or infinite values"),
        ({"layers": None}, "--layers is missing"),
        ({"images": None}, "--images is missing"),
        ({"images": "nowhere"}, "nowhere: there is no such folder"),
        ({"images": "empty"}, "empty: it holds no image (.png, .jpg, .jpeg, .webp, .bmp, .gif, .tif, .tiff); add"),
        ({"images": "damaged"}, "b.png: not an image, or damaged ("),
        ({"points": 500}, f"it holds {IMAGES} images, fewer than --points 500"),
        ({"points": 2}, "--points is at least 3, not 2"),
        ({"batch": 0}, "--batch is at least 1, not 0"),
        ({"size": -1}, "--size is at least 1, not -1"),
        ({"out": "out.txt"}, "out.txt: its suffix is neither .safetensors nor .npz"),
        ({"weights": "nowhere.pt"}, "nowhere.pt: there is no such file"),
        ({"weights": "best"}, "--weights: best is neither none, default nor"),
        ({"weights": "default"}, "--weights: SMALL:small has no default"),
        ({"weights": "other.pt"}, "other.pt: its weights are not those of SMALL:small (it lacks conv.weight and"),
        ({"weights": "pickle.pt"}, "pickle.pt: damaged, or it holds more than tensors"),
    ],
)
def test_what_cannot_be_captured_is_named(tmp_path, images, small, capsys, change, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    for name in "ac":
        Image.new("RGB", (9, 9)).save(tmp_path / f"damaged/{name}.png")
    (tmp_path / "damaged/b.png").write_bytes((tmp_path / "damaged/a.png").read_bytes()[:40])
    torch.save({"weight": torch.zeros(2)}, "other.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Payload(tmp_path / "owned")))
    base = {"model": "SMALL:small", "images": images, "layers": ["conv"], "out": "out.npz", "size": 16}
    options = {**base, **change}
    model = options.pop("model").replace("SMALL", small)
    given = {key: value if key == "layers" else [value] for key, value in options.items() if value is not None}
    flags = [part for key, values in given.items() for part in (f"--{key}", *values)]
    before = set(tmp_path.iterdir())
    assert message.replace("SMALL", small) in refusal(capsys, "capture", model, *flags)
    assert {path for path in tmp_path.iterdir() if path.name != "__pycache__"} == before - {tmp_path / "__pycache__"}


def write(path, layers: dict):
    """The same layers in the format of the suffix."""
    tensors = {name: torch.from_numpy(x) for name, x in layers.items()}
    if path.suffix == ".npz":
        np.savez(path, **layers)
    elif path.suffix == ".npy":
        (x,) = layers.values()
        np.save(path, x)
    elif path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(next(iter(tensors.values())) if len(tensors) == 1 else tensors, path)
    return path


@pytest.mark.parametrize("suffix", readers.READERS)
def test_every_format_gives_what_the_arrays_give(tmp_path, two, suffix):
    x, y = two
    found = comparison.compare([write(tmp_path / f"{name}{suffix}", {"l": z}) for name, z in (("x", x), ("y", y))])
    assert found.distances["pwcca"][0, 1] == found.distances["pwcca"][1, 0] == pytest.approx(symmetric(x, y), abs=1e-12)
    assert found.floors["pwcca"][0, 1] == pwcca(x, y).floor
    one_file = suffix in (".npz", ".safetensors")
    assert found.names == (["x:l", "y:l"] if one_file else ["x", "y"])
    if suffix != ".npy":
        both = comparison.compare([write(tmp_path / f"both{suffix}", {"x": x, "y": y})])
        assert both.names == ["x", "y"] and both.distances["pwcca"][0, 1] == found.distances["pwcca"][0, 1]


def test_maps_are_averaged_and_networks_taken_apart(tmp_path, rng):
    maps = rng.normal(size=(50, 4, 3, 5)).astype(np.float32)
    (read,) = readers.read([write(tmp_path / "maps.npy", {"x": maps})])
    np.testing.assert_allclose(read.x, maps.mean(axis=(2, 3)), atol=1e-6)
    assert read.positions == (3, 5) and read.x.dtype == torch.float32
    stacked = torch.from_numpy(rng.normal(size=(2, 50, 4)))
    write_tensors(tmp_path / "networks.safetensors", {"conv1": stacked}, cohort="c")
    found = readers.read([tmp_path / "networks.safetensors", tmp_path / "maps.npy"])
    assert [each.name for each in found] == ["networks:conv1[0]", "networks:conv1[1]", "maps"]
    assert torch.equal(found[1].x, stacked[1])
    assert "averaged over space (1 of 3 representations)" in "; ".join(
        comparison.notes(comparison.compare([tmp_path / "networks.safetensors", tmp_path / "maps.npy"]))
    )


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.bool_, np.float16, ">f4", np.longdouble])
def test_numbers_of_any_type(tmp_path, rng, kind):
    x = (rng.normal(size=(60, 4)) * 5).astype(np.int64).clip(0, 9).astype(kind)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", x.astype(np.float64) @ np.diag([1, 2, 3, 4]))
    found = comparison.compare([tmp_path / "x.npy", tmp_path / "y.npy"], ["mean_cca"])
    assert found.distances["mean_cca"][0, 1] == pytest.approx(0, abs=1e-6)


def test_identical_and_rotated_layers_have_no_distance(tmp_path, two, rng):
    """CCA sees no rotation; the raw distances do."""
    x, _ = two
    rotated = x @ np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32)
    files = [write(tmp_path / f"{name}.npy", {"x": z}) for name, z in (("x", x), ("same", x), ("rotated", rotated))]
    found = comparison.compare(files, ["pwcca", "linear_cka", "procrustes", "cosine"])
    for measure in ("pwcca", "linear_cka", "procrustes"):
        assert np.abs(found.distances[measure]).max() < 1e-5
    assert found.distances["cosine"][0, 1] == pytest.approx(0, abs=1e-6) and found.distances["cosine"][0, 2] > 0.1


def test_all_measures_at_once(tmp_path, rng):
    layers = {f"layer{i}": rng.normal(size=(60, 5)) for i in range(4)}
    rows = comparison.pairs(comparison.compare([write(tmp_path / "all.npz", layers)], list(MEASURES)))
    assert len(rows) == 6 * len(MEASURES)
    for measure in MEASURES:
        expected = pairwise(list(layers.values()), measure)
        upper = np.triu_indices(4, k=1)
        np.testing.assert_allclose(rows[rows["measure"] == measure]["distance"], ((expected + expected.T) / 2)[upper])
    floors = rows.groupby("measure")["floor"].apply(lambda floor: floor.notna().all())
    assert set(floors[floors].index) == {"pwcca", "pwcca_squared", "pwcca_thresholded", "mean_cca", "svcca"}
    first = rows[rows["measure"] == "svcca"].iloc[0]
    assert first["floor"] == pytest.approx(svcca(layers["layer0"], layers["layer1"]).floor)


def test_many_layers_are_printed_as_a_matrix_of_each_measure(tmp_path, rng, capsys):
    layers = {f"layer{i}": rng.normal(size=(40, 3)) for i in range(7)}
    arguments = ("--out", tmp_path / "h.svg", "--measure", "pwcca", "linear_cka")
    status, out, err = run(capsys, "compare", write(tmp_path / "all.npz", layers), *arguments)
    assert status == 0, err
    found = comparison.compare([tmp_path / "all.npz"])
    lines = out.partition("floor:\n")[2].splitlines()
    assert lines[0].split() == list("1234567")
    cells = [line.split()[1:] for line in lines[1:8]]
    for i, j in np.ndindex(7, 7):
        value = (found.distances if i < j else found.floors)["pwcca"][i, j]
        assert cells[i][j] == ("–" if i == j else f"{value:.2f}".removeprefix("0"))
    assert "PWCCA distance above the diagonal, below it the floor:" in out
    assert "Linear CKA distance above the diagonal:" in out and "for PWCCA" in out
    assert "<svg" in (tmp_path / "h.svg").read_text()


def test_a_matrix_wider_than_the_terminal_goes_on_below(tmp_path, rng, capsys):
    layers = {f"a layer with a long name {i}": rng.normal(size=(30, 2)) for i in range(40)}
    status, out, _ = run(capsys, "compare", write(tmp_path / "a.npz", layers), "--out", tmp_path / "h.pdf")
    assert status == 0 and max(map(len, out.splitlines())) <= 120
    rows = [line.split() for line in out.partition("floor:")[2].splitlines()]
    heads = [int(word) for words in rows if all(word.isdigit() for word in words) for word in words]
    assert heads == list(range(1, 41))
    assert (tmp_path / "h.pdf").read_bytes().startswith(b"%PDF")


def test_names_are_short_unique_and_harmless(tmp_path, two):
    def names(*paths):
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            write(tmp_path / path, {"x": two[0]})
        return [each.name for each in readers.read([tmp_path / path for path in paths])]

    assert names("a/run.npy", "a/other.npy") == ["run", "other"]
    assert names("a/run.npy", "a/run.pt") == ["run.npy", "run.pt"]
    assert names("a/run.npy", "b/run.npy") == ["a/run", "b/run"]
    hostile = {"[bold]$x$": two[0], "\x1b[31mred": two[1]}
    write(tmp_path / "hostile.npz", hostile)
    found = comparison.compare([tmp_path / "hostile.npz"])
    assert found.names == ["[bold]$x$", "�[31mred"]
    comparison.heatmap(found).canvas.draw()  # no mathematics


def test_other_peoples_metadata_may_be_called_as_ours(tmp_path, two):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.from_numpy(two[0])}, path, metadata={"facts": "ResNet-18, epoch 3"})
    (read,) = readers.read([path])
    np.testing.assert_array_equal(read.x, two[0])


FOREIGN = {
    "JSON": json.dumps({"model": "bert"}),
    "JSON with layers": json.dumps({"model": "bert", "layers": {"encoder": [12]}, "files": "1", "ids": ["a"]}),
    "JSON with rows": json.dumps({"model": "bert", "layers": {"x": [6]}, "files": "1", "rows": [80]}),
    "a list": "[]",
    "nested": "[" * 100_000,
    "words": "ResNet-18, epoch 3",
    "bytes": b"ResNet-18",
    "several": ["a", "b"],
}
"""What others may say of their arrays."""


@pytest.mark.parametrize("said", FOREIGN.values(), ids=FOREIGN)
def test_other_peoples_description_is_no_description_of_ours(tmp_path, two, said, capsys):
    """Once, tokens were taken apart as networks, and a file with a plain description was called damaged."""
    described = {readers.DESCRIPTION: np.array(said)}
    np.savez(tmp_path / "a.npz", x=two[0], **described)
    (read,) = readers.read([tmp_path / "a.npz"])
    np.testing.assert_array_equal(read.x, two[0])
    np.savez(tmp_path / "tokens.npz", a=np.ones((3, 80, 6)), **described)
    assert "tokens.npz: a has shape (3, 80, 6), not (data points, neurons); if it is (inputs, tokens" in refusal(
        capsys, "compare", tmp_path / "tokens.npz", "--out", tmp_path / "h.png"
    )


def test_a_description_of_ours_is_read_after_layers_were_left_out(tmp_path, two):
    """As every version of `capture` has written it; a number under that name is a layer."""
    facts = {"model": "m", "weights": "none", "seed": 0, "torch": "2", "layers": {"x": [6], "y": [9]}, "images": 80}
    described = {readers.DESCRIPTION: np.array(json.dumps({**facts, "files": "1", "ids": list(map(str, range(80)))}))}
    backwards = {"files": "1", "ids": list(map(str, reversed(range(80))))}
    np.savez(tmp_path / "a.npz", x=two[0], **described)
    np.savez(tmp_path / "b.npz", x=two[0][::-1], **{readers.DESCRIPTION: np.array(json.dumps({**facts, **backwards}))})
    first, second = readers.read([tmp_path / "a.npz", tmp_path / "b.npz"])
    assert torch.equal(first.x, second.x)
    np.savez(tmp_path / "c.npz", **{readers.DESCRIPTION: two[0]})
    (read,) = readers.read([tmp_path / "c.npz"])
    assert read.name == readers.DESCRIPTION


def test_dead_layers_and_too_few_points_are_told(tmp_path, rng, capsys):
    layers = {"dead": np.ones((20, 3)), "a": rng.normal(size=(20, 15)), "b": rng.normal(size=(20, 10))}
    status, out, err = run(capsys, "compare", write(tmp_path / "a.npz", layers), "--out", tmp_path / "h.png")
    assert status == 0 and not err
    assert "1 of 3 representations do not vary" in out
    assert "In 1 of 3 pairs up to 6 correlations are exactly 1 because the ranks exceed n - 1" in out.replace("\n", " ")


def test_tests_and_intervals_stand_beside_the_distances(tmp_path, rng, capsys):
    z = rng.normal(size=(120, 3))
    layers = {name: z @ rng.normal(size=(3, 4)) + 0.3 * rng.normal(size=(120, 4)) for name in ("a", "b")}
    layers["other"] = rng.normal(size=(120, 4))
    file, table = write(tmp_path / "all.npz", layers), tmp_path / "t.csv"
    arguments = ("--permutations", 20, "--intervals", "--table", table, "--out", tmp_path / "h.png")
    status, out, err = run(capsys, "compare", file, "--measure", "pwcca", "rsa", *arguments)
    assert status == 0, err
    rows = pd.read_csv(table)
    new = ["p_value", "p_family", "calibrated", "ci_low", "ci_high"]
    assert list(rows) == ["a", "b", "measure", "distance", "floor", *new]
    related = rows[(rows["a"] == "a") & (rows["b"] == "b")]
    assert (related["p_family"] == 1 / 21).all() and (related["calibrated"] > 0.15).all()
    assert (rows[rows["b"] == "other"]["calibrated"] < 0.1).all()
    assert ((rows["ci_low"] < rows["distance"]) & (rows["distance"] < rows["ci_high"])).all()
    x, y = layers["a"], layers["b"]
    assert related.iloc[0]["distance"] == pytest.approx(symmetric(x, y), abs=1e-12)
    test = pairwise_permutation_test(list(layers.values()), permutations=20)
    np.testing.assert_allclose(rows[rows["measure"] == "pwcca"]["p_value"], test.p_value[np.triu_indices(3, 1)])
    assert "p (family)" in out and "95 % interval" in out and "1 of 3 pairs are more alike" in out.replace("\n", " ")
    plain = comparison.pairs(comparison.compare([file]))
    assert list(plain) == ["a", "b", "measure", "distance", "floor"]


@pytest.mark.parametrize("count", [5, 16])
def test_pairs_like_chance_are_marked_in_the_heatmap(tmp_path, rng, count):
    layers = {f"layer{i}": rng.normal(size=(60, 2)) for i in range(count)} | {"x": rng.normal(size=(60, 2))}
    layers["same"] = layers["x"] + 0.1
    inference = comparison.Inference(permutations=20)
    found = comparison.compare([write(tmp_path / "a.npz", layers)], inference=inference)
    alike = found.tests["pwcca"].p_family < 0.05
    assert alike[count, count + 1] and not alike[0, 1]
    axis = comparison.heatmap(found).axes[0]
    texts = [text.get_text() for text in axis.texts]
    if count == 5:
        assert sum(text.startswith("(") for text in texts) == (found.tests["pwcca"].p_family >= 0.05).sum()
    else:
        dots = axis.collections[0].get_offsets()
        assert not texts and len(dots) == (found.tests["pwcca"].p_family >= 0.05).sum()
        assert [count + 1, count] not in dots.tolist()


def test_long_notes_leave_room_for_the_panels_of_a_heatmap(tmp_path, rng):
    layers = {f"a layer with a long name {i}": rng.normal(size=(60, 2)) for i in range(11)}
    file = write(tmp_path / "a.npz", layers)
    found = comparison.compare([file], ["pwcca", "linear_cka"], inference=comparison.Inference(permutations=20))
    figure = comparison.heatmap(found)
    figure.canvas.draw()
    note, panels = figure._supxlabel.get_window_extent(), figure.axes[:2]
    assert note.height > 3 * 6.5 * figure.dpi / 72  # several lines
    for axis in panels:
        assert axis._left_title.get_window_extent().y1 <= figure.bbox.y1
        assert axis.xaxis.label.get_window_extent().y0 >= note.y1


def test_a_measure_is_checked_by_the_directions_it_compares(tmp_path, rng):
    """More neurons than images, and 20 strong directions: SVCCA compares these, PWCCA has nothing to compare."""
    z = rng.normal(size=(100, 20))
    layers = {name: z @ rng.normal(size=(20, 300)) + 0.01 * rng.normal(size=(100, 300)) for name in "ab"}
    file = write(tmp_path / "wide.npz", layers)
    found = comparison.compare([file], ["svcca"])
    assert found.distances["svcca"][0, 1] == pytest.approx(svcca(layers["a"], layers["b"]).distance, abs=1e-9)
    assert not any("exactly 1" in note for note in comparison.notes(found))
    with pytest.raises(UserError, match="spans all 99 directions"):
        comparison.compare([file], ["pwcca"])


def objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}, 1], dtype=object), allow_pickle=True)
    return buffer.getvalue()


BAD = {
    "rows.npy": (lambda path, x: np.save(path, x[:-1]), "the array has 79 data points and"),
    "nan.npy": (lambda path, x: np.save(path, np.where(x > 1, np.nan, x)), "values that are NaN or infinite; remove"),
    "vector.npy": (lambda path, x: np.save(path, x[:, 0]), "the array has shape (80,), not (data points"),
    "cube.npy": (lambda path, x: np.save(path, x[:, :, None]), "the array has shape (80, 6, 1), not (data points"),
    "tokens.npy": (
        lambda path, x: np.save(path, np.ones((80, 5, 6))),
        "(80, 5, 6), not (data points, neurons); if it is (inputs, tokens, neurons), save x.mean(axis=1)",
    ),
    "tokens.safetensors": (
        lambda path, x: save_file({"block": torch.ones(80, 5, 6)}, path),
        "block has shape (80, 5, 6), not (data points, neurons); if it is (inputs, tokens, neurons)",
    ),
    "last.npy": (lambda path, x: np.save(path, np.ones((80, 7, 7, 6))), "save x.transpose(0, 3, 1, 2)"),
    "float8.pt": (lambda path, x: torch.save(torch.ones(80, 3).to(torch.float8_e5m2), path), "too coarse to compare"),
    "text.npy": (lambda path, x: np.save(path, np.array(["a", "b"])), "the array is of type <U1; save real numbers"),
    "complex.npy": (lambda path, x: np.save(path, x + 1j), "the array is of type complex"),
    "objects.npy": (lambda path, x: path.write_bytes(objects()), "or a pickle, which is never loaded; save numbers"),
    "pickle.npy": (lambda path, x: path.write_bytes(pickle.dumps(x)), "or a pickle, which is never loaded"),
    "empty.npz": (lambda path, x: np.savez(path), "it holds no array; save at least one"),
    "wide.npy": (
        lambda path, x: np.save(path, np.random.default_rng(0).normal(size=(80, 99))),
        "spans all 79 directions",
    ),
    "module.pt": (lambda path, x: torch.save(torch.nn.Linear(2, 2), path), "holds more than tensors, which is never"),
    "numbered.pt": (lambda path, x: torch.save({0: torch.ones(2)}, path), "its key 0 is no text"),
    "nested.pt": (lambda path, x: torch.save({"a": {"b": torch.ones(2)}}, path), "its entry 'a' is a dict, no tensor"),
    "list.pt": (lambda path, x: torch.save([torch.ones(2)], path), "it holds a list; save a tensor or a flat dict"),
    "sparse.pt": (lambda path, x: torch.save(torch.eye(80).to_sparse(), path), "the array is sparse"),
    "cut.safetensors": (lambda path, x: path.write_bytes(b"\x08"), "not a safetensors file, or damaged ("),
    "file.txt": (lambda path, x: path.write_text("1 2"), "its suffix is none of .npy, .npz, .safetensors, .pt, .pth"),
    "missing.npy": (lambda path, x: None, "there is no such file; check the path"),
    "folder.npy": (lambda path, x: path.mkdir(), "it is a folder; give the files in it"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_and_nothing_written(tmp_path, two, capsys, name):
    good, bad, out, table = (tmp_path / each for each in ("good.npy", name, "h.png", "t.csv"))
    np.save(good, two[0])
    make, message = BAD[name]
    make(bad, two[0])
    said = refusal(capsys, "compare", good, bad, "--out", out, "--table", table)
    assert said.startswith(f"{bad}: ") and message in said
    assert not out.exists() and not table.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.npy", "./x.npy"], "x.npy: it is given twice"),
        (["x.npy"], "x.npy: the array is all there is; give at least two"),
        (["x.npy", "y.npy", "--measure", "pwca"], "--measure: pwca is not known; did you mean pwcca?"),
        (["x.npy", "y.npy", "--measure", "cosine"], "y.npy: the array has 9 neurons and x.npy: the array 6; cosine"),
        (["x.npy", "y.npy", "--out", "h.jpg"], "h.jpg: its suffix is none of .png, .pdf, .svg"),
        (["x.npy", "y.npy", "--table", "t.txt"], "t.txt: its suffix is not .csv"),
        (["x.npy", "y.npy", "--out", "folder.png"], "folder.png: it is a folder; choose another name"),
        (["x.npy", "y.npy", "--table", "folder.csv"], "folder.csv: it is a folder; choose another name"),
        (["x.npy", "y.npy", "--permutations", "19"], "--permutations: 19 give no p below .05; use 20 or more"),
        (["four.npz", "--permutations", "20"], "4 data points have too few orders for a test; use 5 or more"),
        (["four.npz", "--intervals"], "--intervals: four.npz: a has 4 data points; they need at least 20"),
        (["wide.npz", "--intervals"], "--intervals: wide.npz: a varies in 95 directions, all that 95 data points have"),
        (["x.npy", "y.npy", "--threads", "0"], "--threads is at least 1, not 0"),
        (["few.npz"], "few.npz: a has shape (2, 5); give at least 3 data points"),
        (["clash.npz", "a.npz"], "has the same name as another"),
        (
            ["x.npy", "y.npy", "onepoint.npy", "--measure", "mutual_neighbours"],
            "x.npy: the array and onepoint.npy: the array: mutual nearest neighbours needs at least 12 data points",
        ),
        (
            ["x.npy", "somepoints.npy", "--measure", "mutual_neighbours", "--intervals"],
            "--intervals: mutual nearest neighbours needs at least 12 data points that are not at 0, not 11; use",
        ),
    ],
)
def test_bad_arguments_are_named(tmp_path, two, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name, x in zip("xy", two, strict=True):
        np.save(f"{name}.npy", x)
    for name, points in (("onepoint", 1), ("somepoints", 12)):
        np.save(f"{name}.npy", np.where(np.arange(80)[:, None] < points, two[0], 0))
    for folder in ("folder.png", "folder.csv"):
        Path(folder).mkdir()
    np.savez("four.npz", a=x[:4, :1], b=x[:4, 1:2])
    np.savez("few.npz", a=np.ones((2, 5)), b=np.ones((2, 5)))
    np.savez("wide.npz", a=np.random.default_rng(0).normal(size=(100, 95)), b=np.eye(100)[:, :3])
    write_tensors(Path("clash.safetensors"), {"x": torch.ones(2, 9, 3), "x[0]": torch.ones(9, 3)}, cohort="c")
    arguments = ["clash.safetensors" if each == "clash.npz" else each for each in arguments if each != "a.npz"]
    before = set(tmp_path.iterdir())
    assert message in refusal(capsys, "compare", *arguments)
    assert set(tmp_path.iterdir()) == before


def test_a_table_stays_as_it_was_if_the_heatmap_cannot_be_written(tmp_path, two, capsys, monkeypatch):
    def fails(figure, outputs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(comparison.figures, "save", fails)
    write(tmp_path / "a.npz", dict(zip("xy", two, strict=True)))
    (tmp_path / "t.csv").write_text("earlier")
    said = refusal(capsys, "compare", tmp_path / "a.npz", "--out", tmp_path / "h.png", "--table", tmp_path / "t.csv")
    assert "free disk space" in said and (tmp_path / "t.csv").read_text() == "earlier"
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "t.csv"}


def test_layers_of_different_images_are_not_compared(tmp_path, images, small, capsys):
    model = ("capture", f"{small}:small", "--images", images, "--size", "16", "--layers", "conv")
    assert run(capsys, *model, "--points", "40", "--out", "a.npz")[0] == 0
    (tmp_path / "other").mkdir()
    for i, path in enumerate(sorted(images.rglob("*.png"))[:40]):
        (tmp_path / f"other/{i}.png").write_bytes(path.read_bytes())
    model = ("capture", f"{small}:small", "--images", "other", "--size", "16", "--layers", "conv")
    assert run(capsys, *model, "--out", "b.safetensors")[0] == 0
    assert "b.safetensors: it was captured from other inputs than a.npz" in refusal(
        capsys, "compare", "a.npz", "b.safetensors"
    )


def test_images_in_another_order_are_put_in_order_and_pairs_are_compared_on_demand(tmp_path, rng, capsys):
    names, x = [f"{i}.png" for i in range(40)], rng.normal(size=(40, 3)).astype(np.float32)
    order = rng.permutation(40)

    def captured(name, x, ids, files):
        write_tensors(tmp_path / name, {"layer": torch.from_numpy(np.ascontiguousarray(x))}, ids=ids, files=files)
        return tmp_path / name

    a = captured("a.safetensors", x, names, "1")
    shuffled = captured("b.safetensors", x[order], [names[i] for i in order], "1")
    assert comparison.compare([a, shuffled]).distances["pwcca"][0, 1] == pytest.approx(0, abs=1e-6)
    blurred = captured("c.safetensors", x[order], names, "3")
    said = refusal(capsys, "compare", a, blurred)
    assert (
        "c.safetensors: its inputs have the names of those of" in said and "add --paired to compare row by row" in said
    )
    changed = captured("f.safetensors", x[order], [names[i] for i in order], "6")
    assert "f.safetensors: its inputs have the names of those of" in refusal(capsys, "compare", a, changed)
    others = captured("d.safetensors", x, [f"other{i}" for i in range(40)], "4")
    assert "d.safetensors: it was captured from other inputs than" in refusal(capsys, "compare", a, others)
    old = captured("e.safetensors", x, None, "5")
    assert "e.safetensors: it was captured from other inputs than" in refusal(capsys, "compare", a, old)
    for file, expected in ((others, x), (blurred, x[order])):
        found = comparison.compare([a, file], paired=True).distances["pwcca"][0, 1]
        assert found == pytest.approx(symmetric(x, expected), abs=1e-6)
    arguments = ("compare", a, others, "--paired", "--out", tmp_path / "h.png")
    assert run(capsys, *arguments)[0] == 0


# Networks side by side ------------------------------------------------------------------------------------------------


def test_layers_by_layers_are_what_captured_files_give(tmp_path, images, small, capsys):
    model, table, out = f"{small}:small", tmp_path / "t.csv", tmp_path / "h.png"
    layers = ("--layers", "conv", "fc", "--images", images, "--size", 16, "--batch", 50)
    status, said, err = run(
        capsys,
        *("compare-networks", model, model, "--seed", 0, 1, *layers, "--table", table, "--out", out),
        *("--measure", "pwcca", "linear_cka", "procrustes"),
    )
    assert status == 0, err
    files = [tmp_path / f"seed{seed}.npz" for seed in (0, 1)]
    for seed, file in enumerate(files):
        status, _, err = run(capsys, "capture", model, *layers, "--seed", seed, "--out", file)
        assert status == 0, err
    rows, held = pd.read_csv(table), [dict(np.load(file)) for file in files]
    names = [name for name in held[0] if name != readers.DESCRIPTION]
    assert names == ["conv", "fc"] and len(rows) == 3 * 4
    for row in rows.itertuples():
        x, y = held[0][row.a], held[1][row.b]
        assert row.distance == pytest.approx(symmetric(x, y, MEASURES[row.measure].function), abs=1e-6)
    floor = rows[rows["measure"] == "pwcca"].iloc[0]
    assert floor["floor"] == pytest.approx(pwcca(held[0][floor.a], held[1][floor.b]).floor)
    assert "Nearest of" in said and f"{IMAGES} data points" in said and out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layers", "conv"], "--images is missing"),
        (["--images", "IMAGES"], "--layers is missing"),
        (["--images", "IMAGES", "--layers", "con"], "has no layer con; did you mean conv"),
        (["--images", "IMAGES", "--layers", "conv*", "--measure", "rsa"], "--measure: rsa compares single data points"),
        (["--images", "IMAGES", "--layers", "conv*", "--measure", "pwca"], "did you mean pwcca?"),
        (["--images", "IMAGES", "--layers", "conv*", "--out", "a.gif"], "a.gif: its suffix is none of"),
        (["--images", "IMAGES", "--layers", "conv*", "--batch", "0"], "--batch is at least 1, not 0"),
        (["--images", "IMAGES", "--layers", "conv", "--points", "5"], "spans all"),
    ],
)
def test_networks_that_cannot_be_compared_are_named(tmp_path, images, small, capsys, flags, message):
    flags = [images if flag == "IMAGES" else flag for flag in flags]
    model, before = f"{small}:small", set(tmp_path.iterdir())
    assert message in refusal(capsys, "compare-networks", model, model, "--size", 16, *flags)
    assert {path for path in tmp_path.iterdir() if path.name != "__pycache__"} == before - {tmp_path / "__pycache__"}


def test_the_page_says_what_works(tmp_path, images, monkeypatch, capsys):
    """The network of docs/compare.md and all commands on it; of the others, the arguments."""
    page = (ROOT / "docs/compare.md").read_text(encoding="utf-8")
    (tmp_path / "networks.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    (tmp_path / "photos").symlink_to(images)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    torch.save(capture.build(capture.Origin("networks:small", seed=1)).state_dict(), "trained.pt")
    floors = [f"{null_floor(128, 128, n):.2f}".removeprefix("0") for n in (300, 1000, 5000)]
    assert "floor of {} on 300\nimages, of {} on 1,000 and of {} on 5,000".format(*floors) in page
    commands = re.findall(r"^cca-dynamics (.*?)(?:  +#.*)?$", page, re.MULTILINE)
    assert len(commands) == 15
    for command in commands:
        if any(name in command for name in ("resnet18", "seed0", "epoch1", "lm:make", "step-1000", "first.npy")):
            cli._parser().parse_args(shlex.split(command))
        else:
            assert run(capsys, *shlex.split(command))[0] == 0, command
    found = comparison.compare([tmp_path / "trained.npz", tmp_path / "untrained.npz"])
    assert found.names == [
        f"{file}:{layer}" for file in ("trained", "untrained") for layer in ("conv1", "conv2", "head")
    ]


def test_code_of_others_may_fail_but_not_hide_a_signal():
    with pytest.raises(UserError, match=r"^x \(KeyError: 'a'\); y$"), as_user_error("x", "y"):
        raise KeyError("a")
    with pytest.raises(UserError, match=r"^x; y$"), as_user_error("x", "y", quote=False):
        sys.exit("two\nlines")
    with pytest.raises(Interrupted), as_user_error("x", "y"):
        raise Interrupted


def test_a_changed_byte_of_a_captured_file_is_found(tmp_path, two):
    write_tensors(tmp_path / "a.safetensors", {"x": torch.from_numpy(two[0])}, model="m")
    content = bytearray((tmp_path / "a.safetensors").read_bytes())
    content[-3] ^= 1
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.safetensors: its content is not what the checksums in it say; make"):
        readers.read([tmp_path / "a.safetensors"])


@pytest.mark.parametrize("suffix", readers.READERS)
def test_a_pickle_is_never_executed(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    for content in (pickle.dumps(Payload(tmp_path / "owned")), None):
        if content is None and suffix in (".pt", ".pth"):
            torch.save({"x": Payload(tmp_path / "owned")}, path)
        elif content is None:
            np.savez(path.with_suffix(".npz"), x=np.array([Payload(tmp_path / "owned")], dtype=object))
            path.with_suffix(".npz").replace(path)
        else:
            path.write_bytes(content)
        with pytest.raises(UserError, match=f"a{suffix}: "):
            readers.read([path])
        assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("suffix", readers.READERS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_and_damaged_bytes_never_crash_a_reader(tmp_path, suffix, data):
    path = write(tmp_path / f"a{suffix}", {"x": np.arange(12.0).reshape(4, 3)})
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = data.draw(st.binary(max_size=200))
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    try:
        readers.read([path])
    except UserError as problem:
        assert str(problem).startswith(f"{path}: ") and "\n" not in str(problem)
