"""Any network, any input: transformers, checkpoints as training writes them, text, arrays; the rest is refused by
name."""

import dataclasses
import json
import sys
import textwrap

import numpy as np
import pytest
import torch
from cca_dynamics import cli
from cca_dynamics.compare import capture, comparison, inputs, outputs, readers, weights
from cca_dynamics.compare.outputs import Reading, tensor_of
from cca_dynamics.similarity import linear_cka
from PIL import Image
from safetensors.torch import save_file
from torch import nn

NETWORKS = """
    import torch
    from torch import nn
    from torch.nn import functional


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, stride=2)
            self.conv2 = nn.Conv2d(8, 8, 3, stride=2)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = self.conv1(x).relu()
            return self.head(self.conv2(x).relu().mean(dim=(2, 3)))


    def net(): return Net()
    def half(): return Net().half()
    def bfloat16(): return Net().bfloat16()
    def double(): return Net().double()
    def parallel(): return nn.DataParallel(Net())
    def scripted(): return torch.jit.trace(Net().eval(), torch.zeros(1, 3, 16, 16))


    class Extra(Net):
        def get_extra_state(self): return {"version": 3}
        def set_extra_state(self, state): pass


    def extra(): return Extra()


    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.LazyConv2d(8, 3)
            self.head = nn.LazyLinear(5)

        def forward(self, x):
            return self.head(self.conv(x).relu().mean(dim=(2, 3)))


    def lazy(): return Lazy()


    class Attention(nn.Module):
        # written out: heads, attention before and after the softmax
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 16, 4, stride=4)
            self.qkv = nn.Linear(16, 48)
            self.norm = nn.LayerNorm(4)
            self.scores = nn.Identity()
            self.shares = nn.Dropout(0.0)
            self.block = nn.MultiheadAttention(16, 4, batch_first=True)
            self.head = nn.Linear(16, 5)

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            b, t, _ = x.shape
            q, k, v = self.qkv(x).view(b, t, 3, 4, 4).permute(2, 0, 3, 1, 4)
            a = self.shares(self.scores(self.norm(q) @ k.transpose(-2, -1)).softmax(-1))
            y = (a @ v).transpose(1, 2).reshape(b, t, 16)
            y, _ = self.block(y, y, y)
            return self.head(y.mean(1))


    def attention(): return Attention()


    class Outputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()
            self.named = Named()
            self.twice = nn.ReLU()
            self.rows = Rows()
            self.squeezed = Squeezed()
            self.whole = Whole()
            self.fourier = Fourier()
            self.last = Last()

        def forward(self, x):
            a, b = self.pair(x)
            self.named(x)
            self.rows(x), self.squeezed(x), self.whole(x), self.fourier(x), self.last(x)
            return self.twice(-self.twice(a))


    class Pair(nn.Module):
        def forward(self, x): return x.mean((2, 3)), x.amax((2, 3))


    class Named(nn.Module):
        def forward(self, x): return {"loss": None, "hidden": x.mean((2, 3)), "last_hidden_state": x.amin((2, 3))}


    class Rows(nn.Module):
        def forward(self, x): return x.flatten(2).mean(2).repeat(4, 1)


    class Squeezed(nn.Module):
        def forward(self, x): return x.mean((2, 3)).squeeze()


    class Whole(nn.Module):
        def forward(self, x): return (x[:, 0, 0] > 0).long()


    class Fourier(nn.Module):
        def forward(self, x): return torch.fft.fft2(x)


    class Last(nn.Module):
        def forward(self, x): return x.permute(0, 2, 3, 1)


    def outputs(): return Outputs()


    class Noisy(Net):
        def forward(self, x):
            return super().forward(functional.dropout(x, 0.5))


    def noisy(): return Noisy()


    class Clips(Net):
        def forward(self, x):
            return super().forward(x.view(-1, 8, *x.shape[1:]).mean(1))


    def clips(): return Clips()


    class Grey(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 8, 3)

        def forward(self, x): return self.conv(x).mean((2, 3))


    def grey(): return Grey()


    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(256, 6)
            self.lstm = nn.LSTM(6, 7)  # time first
            self.head = nn.Linear(7, 256)

        def forward(self, input_ids):
            x, _ = self.lstm(self.embedding(input_ids).transpose(0, 1))
            return self.head(x.transpose(0, 1))


    def language(): return Language()


    class Signal(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 5, 3)
            self.relu = nn.ReLU()

        def forward(self, x): return self.relu(self.conv(x)).mean(2)


    def signal(): return Signal()


    def batches():
        rng = torch.Generator().manual_seed(0)
        for i in range(3):
            yield {"input_ids": torch.randint(0, 256, (9, 12), generator=rng)}, [f"text{9 * i + j}" for j in range(9)]


    class Cubes(nn.Module):
        # for images of 8 × 8, every layer gives 8 × 8 × 8
        def __init__(self, size=None):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.act = nn.ReLU()
            self.last = Last()
            self.norm = nn.LayerNorm(8)
            self.head = nn.Linear(512, 3) if size else None

        def forward(self, x):
            x = self.norm(self.last(self.act(self.conv(x))))
            return self.head(x.flatten(1)) if self.head else x


    def cubes(): return Cubes()
    def cubes_of_one_size(): return Cubes(8)
    def unflattened(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 512), nn.Unflatten(1, (8, 8, 8)), nn.ReLU())


    class Squares(nn.Module):
        # for signals of 12, layers give 8 × 8
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 8, 5)
            self.act = nn.ReLU()
            self.norm = nn.LayerNorm(8)

        def forward(self, x): return self.norm(self.act(self.conv(x)).transpose(1, 2))


    def squares(): return Squares()


    class Changing(Net):
        # its first layer changes the inputs in place, once and for all
        def forward(self, x):
            x.mul_(2).clamp_(max=1)
            return super().forward(x)


    def changing(): return Changing()


    class Batchwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3, track_running_stats=False)

        def forward(self, x): return self.norm(x).amax((2, 3))


    def batchwise(): return Batchwise()


    class Sometimes(Net):
        def forward(self, x):
            y = super().forward(x)
            return self.conv1(x).mean((2, 3)) if len(x) > 5 else y


    def sometimes(): return Sometimes()


    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(256, 6)

        def forward(self, input_ids, attention_mask): return self.embedding(input_ids)


    def masked(): return Masked()


    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(9, 4)
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x): return self.head(self.embedding(x))


    def tied(): return Tied()
    def normed(): return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    class Fused(nn.Module):
        # an encoder that PyTorch computes in one call where nobody looks, then an operation in place

        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(256, 16)
            self.encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
            self.head = nn.Linear(16, 5)

        def forward(self, input_ids): return self.head(self.encoder(self.embedding(input_ids))).relu_()


    def fused():
        torch.manual_seed(0)
        return Fused()


    def on_meta(): return Net().to("meta")
    def flat(): return nn.Linear(4, 3)


    def padded(length):
        rng = torch.Generator().manual_seed(1)
        ids = torch.zeros(12, length, dtype=torch.long)
        mask = torch.zeros(12, length, dtype=torch.long)
        for row in range(12):
            count = 3 + row % 4
            ids[row, :count] = torch.randint(1, 256, (count,), generator=rng)
            mask[row, :count] = 1
        yield {"input_ids": ids, "attention_mask": mask}


    def named():
        for batch in padded(8):
            yield batch, [f"text {row}" for row in range(12)]


    def reversed_():
        for batch, names in named():
            yield {name: x.flip(0) for name, x in batch.items()}, names[::-1]


    def signals():
        layers = {"conv": nn.Conv1d(2, 8, 5), "act": nn.ReLU(), "pool": nn.MaxPool1d(2), "avg": nn.AvgPool1d(2)}
        return nn.Sequential(__import__("collections").OrderedDict(layers))


    def maps():
        layers = {"conv": nn.Conv2d(1, 8, 3), "norm": nn.InstanceNorm2d(8), "act": nn.ReLU(), "pool": nn.MaxPool2d(2)}
        return nn.Sequential(__import__("collections").OrderedDict(layers))


    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(256, 6)
            self.scores = nn.Identity()

        def forward(self, input_ids):
            x = self.embedding(input_ids).unflatten(2, (2, 3)).transpose(1, 2)
            return self.scores(x @ x[:, :, :5].transpose(2, 3)).flatten(1)


    def crossed(): return Crossed()


    def padded8(): return padded(8)
    def padded11(): return padded(11)


    READ = iter([torch.zeros(9, 3, 16, 16)])
    def once(): return READ
    def repeated(): yield {"input_ids": torch.zeros(9, 12, dtype=torch.long)}, ["a"] * 9
    def stops():
        yield {"input_ids": torch.zeros(9, 12, dtype=torch.long)}
        yield None
    def backwards():
        for batch, ids in reversed(list(batches())):
            yield {"input_ids": batch["input_ids"].flip(0)}, ids[::-1]


    def with_empty():
        nothing = {"input_ids": torch.zeros(0, 12, dtype=torch.long)}
        yield nothing
        yield from batches()
        yield nothing, []


    def sparse(): yield torch.eye(9).to_sparse()
    def no_columns(): yield torch.zeros(9, 0)
    def unnamed(): return (batch for batch, _ in batches())
    def words(text): return [len(word) for word in text.split()]
    def empty(): return []
    def wrong(): yield "text"
    def ragged(): yield {"a": torch.ones(5, 2), "b": torch.ones(4, 2)}
    def fails(): raise RuntimeError("no data")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a module of networks and twenty images."""
    folder, rng = tmp_path_factory.mktemp("capture"), np.random.default_rng(0)
    (folder / "capturable.py").write_text(textwrap.dedent(NETWORKS))
    (folder / "images").mkdir()
    np.savez(folder / "several.npz", a=np.ones(9))
    for i in range(20):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{i:02d}.png")
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = cli.main([*map(str, arguments), "--device", "cpu"])
    return (status, *capsys.readouterr())


def captured(
    capsys, tmp_path, model, *arguments, source=("--images", "images", "--size", 16)
) -> dict[str, torch.Tensor]:
    out = tmp_path / "out.safetensors"
    status, _, err = run(capsys, "capture", f"capturable:{model}", *source, *arguments, "--out", out)
    assert status == 0, err
    return {each.name: each.x for each in readers.read([out])}


def refused(capsys, tmp_path, *arguments) -> str:
    status, out, err = run(capsys, *arguments, "--out", tmp_path / "out.npz")
    assert status == 1 and not out and err.count("\n") == 1 and err.startswith("error: ") and ";" in err, err
    assert not list(tmp_path.iterdir())
    return err


def pixels() -> torch.Tensor:
    return inputs.images(inputs.Path("images"), None, inputs.Pixels(16)).few(20)


def module(name) -> nn.Module:
    return capture.build(capture.Origin(f"capturable:{name}"))


# Networks as they are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "tolerance"), [("half", 2e-3), ("bfloat16", 2e-2), ("double", 1e-6), ("parallel", 1e-6)]
)
def test_inputs_are_cast_to_the_network_s_type(capsys, tmp_path, model, tolerance):
    found = captured(capsys, tmp_path, model, "--layers", "conv1", "head")
    network = module("net")
    with torch.no_grad():
        expected = network(pixels())
    torch.testing.assert_close(found["head"], expected, rtol=0, atol=tolerance)


def test_grey_images_and_numbers_to_normalise_by(capsys, tmp_path):
    arguments = ("--layers", "conv", "--channels", 1, "--mean", 0, "--std", 1)
    found = captured(capsys, tmp_path, "grey", *arguments)["conv"]
    grey = np.stack([np.asarray(Image.open(f"images/{i:02d}.png").convert("L")) for i in range(20)])
    with torch.no_grad():
        expected = module("grey")(torch.from_numpy(grey[:, None].astype(np.float32) / 255))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_lazy_modules_and_extra_state_are_captured(capsys, tmp_path):
    assert captured(capsys, tmp_path, "lazy", "--layers", "conv")["conv"].shape == (20, 8)
    assert captured(capsys, tmp_path, "extra", "--layers", "conv1")["conv1"].shape == (20, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("scripted", "--layers", "conv1"), "it is TorchScript, whose layers cannot be watched; give the module"),
        (("noisy", "--layers", "head"), "gives other numbers for the same inputs a second time; make it deterministic"),
        (("clips", "--layers", "head"), "capturable:clips: it fails on 2 × 3 × 16 × 16"),
        (("grey", "--layers", "conv"), "it fails on 2 × 3 × 16 × 16"),
        (
            ("batchwise", "--layers", "norm"),
            "gives other numbers for the same inputs in another batch; make it treat each",
        ),
        (
            ("sometimes", "--layers", "conv1"),
            "is called 2 times in this batch and 1 times in the first one; choose a layer",
        ),
        (("on_meta", "--layers", "conv1"), "conv1.weight has no data (device meta); make the network on the CPU"),
        (("net", "--layers", "conv1", "--seed", str(2**64)), "--seed is a whole number from 0, below 2^63"),
        (("net", "--layers", "conv1", "--std", "nan"), "--std has a number that is not finite"),
        (("net", "--layers", "conv1", "--channels", "2"), "--channels is 3, or 1 for grey, not 2"),
        (("net", "--layers", "conv1", "--mean", "1", "2"), "--mean has 2 numbers; give one, or one for each of 3"),
        (("net", "--layers", "conv1", "--std", "0"), "--std has a number that is not positive"),
        (("attention", "--layers", "qkv"), "gives 16×48 (tokens × neurons); add --tokens mean, first, last or all"),
        (("attention", "--layers", "norm"), "no square map (heads of attention?); choose the module around it"),
        (("attention", "--layers", "shares"), "gives attention, 4×16×16 for an input (heads × tokens × tokens)"),
        (("attention", "--layers", "scores"), "gives attention, 4×16×16 for an input (heads × tokens × tokens)"),
        (("outputs", "--layers", "rows"), "gives 8×3 for 2 inputs and 12×3 for 3, not a row for each"),
        (("outputs", "--layers", "squeezed", "--batch", "1"), "it drops the axis of a single input, as squeeze() does"),
        (("outputs", "--layers", "whole"), "gives numbers of type int64; choose a layer of real numbers"),
        (("outputs", "--layers", "fourier"), "gives numbers of type complex64"),
        (("outputs", "--layers", "twice"), "called 2 times in a forward pass; add --call 0, 1, ... or mean"),
        (("outputs", "--layers", "twice", "--call", "2"), "so there is no call 2"),
        (("outputs", "--layers", "twice", "--call", "x"), "--call is a number from 0, or mean, not x"),
        (
            ("outputs", "--layers", "named", "--output", "loss"),
            "gives no tensor loss but loss, hidden, last_hidden_state",
        ),
        (("net", "--layers", "conv1", "--text", "capturable.py"), "--images and --text both name inputs; choose one"),
    ],
)
def test_what_cannot_be_captured_is_said_before_the_first_batch(capsys, tmp_path, arguments, message):
    model, *flags = arguments
    assert message in refused(
        capsys, tmp_path, "capture", f"capturable:{model}", "--images", "images", "--size", 16, *flags
    )


# Outputs ----------------------------------------------------------------------------------------------------------


def test_tokens_and_maps_are_read_as_asked(capsys, tmp_path):
    x, network = pixels(), module("attention")
    with torch.no_grad():
        maps = network.patch(x)
        tokens = network.qkv(maps.flatten(2).transpose(1, 2))
    expected = {
        ("qkv", "--tokens", "mean"): tokens.mean(1),
        ("qkv", "--tokens", "first"): tokens[:, 0],
        ("qkv", "--tokens", "last"): tokens[:, -1],
        ("qkv", "--tokens", "all"): tokens.flatten(0, 1),
        ("patch", "--maps", "mean"): maps.mean((2, 3)),
        ("patch", "--maps", "flatten"): maps.permute(0, 2, 3, 1).flatten(1),
        ("patch", "--maps", "positions"): maps.permute(0, 2, 3, 1).reshape(-1, 16),
    }
    for (layer, *flags), values in expected.items():
        found = captured(capsys, tmp_path, "attention", "--layers", layer, *flags)[layer]
        torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-6)
    assert captured(capsys, tmp_path, "attention", "--layers", "block", "--tokens", "mean")["block"].shape == (20, 16)


@pytest.mark.parametrize("model", ["cubes", "cubes_of_one_size"])
def test_channels_are_found_where_all_axes_have_one_size(capsys, tmp_path, model):
    """Once, channels last were averaged over width and channels."""
    source = ("--images", "images", "--size", 8)
    found = captured(capsys, tmp_path, model, "--layers", "conv", "act", "last", "norm", source=source)
    x, network = inputs.images(inputs.Path("images"), None, inputs.Pixels(8)).few(20), module(model)
    with torch.no_grad():
        conv = network.conv(x)
        last = conv.relu().permute(0, 2, 3, 1)
        maps = {"conv": conv, "act": conv.relu(), "last": conv.relu(), "norm": network.norm(last).permute(0, 3, 1, 2)}
    for layer, values in maps.items():
        torch.testing.assert_close(found[layer], values.mean((2, 3)), rtol=1e-5, atol=1e-6)
    said = run(capsys, "capture", f"capturable:{model}", "--list", *source)[1]
    described = {line.split()[0]: "(channels last)" in line for line in said.splitlines() if "8×8×8" in line}
    assert described == {"conv": False, "act": False, "last": True, "norm": True}


def test_channels_of_square_signals_are_found(capsys, tmp_path, rng):
    np.save(tmp_path / "x.npy", rng.normal(size=(30, 2, 12)).astype(np.float32))
    layers = ("--layers", "act", "norm", "--tokens", "mean")
    found = captured(capsys, tmp_path, "squares", *layers, source=("--array", tmp_path / "x.npy"))
    with torch.no_grad():
        act = module("squares").conv(torch.from_numpy(np.load(tmp_path / "x.npy"))).relu()
        norm = module("squares").norm(act.transpose(1, 2))
    torch.testing.assert_close(found["act"], act.mean(2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["norm"], norm.mean(1), rtol=1e-5, atol=1e-6)


def test_channels_that_cannot_be_found_are_refused(capsys, tmp_path):
    flags = ("--images", "images", "--size", 8, "--layers", "3")
    said = refused(capsys, tmp_path, "capture", "capturable:unflattened", *flags)
    assert "3 of capturable:unflattened is not available: it gives 8×8×8 for an input, and any of these axes" in said


def test_layers_that_are_fused_or_overwritten_give_what_they_compute(capsys, tmp_path):
    source = ("--data", "capturable:batches")
    layers = ("encoder.self_attn", "encoder.linear1", "encoder", "head")
    found = captured(capsys, tmp_path, "fused", "--layers", *layers, "--tokens", "all", source=source)
    ids = torch.cat([batch["input_ids"] for batch, _ in sys.modules["capturable"].batches()])
    network = module("fused").eval()
    with torch.no_grad():
        x = network.embedding(ids)
        attended = network.encoder.self_attn(x, x, x)[0]
        hidden = network.encoder.linear1(network.encoder.norm1(x + attended))
        after = network.encoder(x)
        expected = dict(zip(layers, (attended, hidden, after, network.head(after)), strict=True))
    assert (found["head"] < 0).any()
    for layer, values in expected.items():
        torch.testing.assert_close(found[layer], values.flatten(0, 1), rtol=1e-4, atol=1e-5)


def test_containers_calls_and_axes_are_read_as_asked(capsys, tmp_path):
    x = pixels()
    mean, largest, smallest = x.mean((2, 3)), x.amax((2, 3)), x.amin((2, 3))
    expected = {
        ("pair",): mean,
        ("pair", "--output", "1"): largest,
        ("named",): smallest,
        ("named", "--output", "hidden"): mean,
        ("twice", "--call", "0"): mean.relu(),
        ("twice", "--call", "1"): torch.zeros_like(mean),
        ("twice", "--call", "mean"): mean.relu() / 2,
        ("last",): mean,  # channels last
        ("squeezed", "--batch", "19"): mean,  # not a last batch of one
    }
    for (layer, *flags), values in expected.items():
        found = captured(capsys, tmp_path, "outputs", "--layers", layer, *flags)[layer]
        torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("model", "size", "blocks", "kind"),
    [
        ("vit_b_32", 224, "encoder.layers.*", "EncoderBlock"),
        ("swin_t", 64, "features.*.*", "SwinTransformerBlock"),
        ("convnext_tiny", 64, "features.*.*", "CNBlock"),
    ],
)
def test_every_block_of_torchvision_s_transformers_is_to_be_had(model, size, blocks, kind):
    network, reading = capture.build(capture.Origin(model)), Reading(tokens="mean")
    layouts = capture.probe(network, inputs.blank(inputs.Pixels(size)), model, reading, 64)
    found = capture.chosen([blocks], layouts, model, reading)
    every = [name for name, module in network.named_modules() if type(module).__name__ == kind]
    assert every and set(every) <= set(found)


@dataclasses.dataclass
class Output:
    loss: None
    hidden: torch.Tensor


def test_a_dataclass_is_a_container(rng):
    hidden = torch.zeros(2, 3)
    output = Output(None, hidden)
    assert tensor_of(output, None) is hidden and tensor_of(output, "hidden") is hidden
    assert tensor_of(output, "loss") is None and tensor_of(output, "other") is None
    assert tensor_of(((None, [hidden]),), None) is hidden and tensor_of("text", None) is None


def test_signals_are_maps_with_channels_first(capsys, tmp_path, rng):
    x = rng.normal(size=(30, 2, 11)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    found = captured(capsys, tmp_path, "signal", "--layers", "conv", "relu", source=("--array", tmp_path / "x.npy"))
    with torch.no_grad():
        expected = module("signal").conv(torch.from_numpy(x)).mean(2)
    torch.testing.assert_close(found["conv"], expected, rtol=1e-5, atol=1e-6)
    assert found["relu"].shape == (30, 5)


# Inputs -----------------------------------------------------------------------------------------------------------


def test_text_is_cut_into_sequences_and_states_are_aligned(capsys, tmp_path):
    for name, text in (("b.txt", "é" + "to be or not to be " * 20), ("a.txt", "that is the question " * 20)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    source = ("--text", tmp_path, "--length", 10)
    found = captured(capsys, tmp_path, "language", "--layers", "lstm", "--tokens", "all", source=source)["lstm"]
    content = [(tmp_path / name).read_bytes() for name in ("a.txt", "b.txt")]
    sequences = [list(text[i : i + 10]) for text in content for i in range(0, len(text) // 10 * 10, 10)]
    assert len(found) == 10 * len(sequences)
    with torch.no_grad():
        network = module("language")
        expected, _ = network.lstm(network.embedding(torch.tensor(sequences)).transpose(0, 1))
    torch.testing.assert_close(found, expected.transpose(0, 1).flatten(0, 1), rtol=1e-4, atol=1e-5)
    source = ("--text", tmp_path / "a.txt", "--length", 4, "--tokenizer", "capturable:words", "--points", 7)
    assert captured(capsys, tmp_path, "language", "--layers", "lstm", "--tokens", "last", source=source)[
        "lstm"
    ].shape == (7, 7)


def test_a_function_yields_dicts_with_ids(capsys, tmp_path):
    arguments = ("--layers", "head", "--tokens", "mean")
    assert captured(capsys, tmp_path, "language", *arguments, source=("--data", "capturable:batches"))[
        "head"
    ].shape == (27, 256)
    _, facts = readers.read_safetensors(tmp_path / "out.safetensors")
    assert facts["ids"] == [f"text{i}" for i in range(27)] and facts["inputs"] == 27


def test_empty_batches_count_for_nothing(capsys, tmp_path):
    """As slices of an array may give at its end; once, this was a traceback."""
    found = []
    for name in ("batches", "with_empty"):
        flags = ("--layers", "head", "--tokens", "mean")
        head = captured(capsys, tmp_path, "language", *flags, source=("--data", f"capturable:{name}"))["head"]
        found.append((head.tolist(), readers.read_safetensors(tmp_path / "out.safetensors")[1]))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data", "capturable:sparse"), "capturable:sparse() yields a tensor that is sparse, nested, quantized or"),
        (("--data", "capturable:no_columns"), "capturable:language: it fails on 2 × 0"),
        (("--data", "capturable:empty"), "the first batch of capturable:empty() has fewer than 3 inputs"),
        (("--data", "capturable:wrong"), "capturable:wrong() yields a str; yield tensors, dicts of them"),
        (("--data", "capturable:ragged"), "has entries of different lengths"),
        (("--data", "capturable:fails"), "capturable:fails() fails (RuntimeError: no data)"),
        (("--data", "capturable:once"), "returns an iterator that can be read only once; make it anew at each call"),
        (("--data", "capturable:repeated", "--tokens", "mean"), "gives several inputs one name; give each its own"),
        (("--data", "capturable:stops", "--tokens", "mean"), "capturable:stops() yields a NoneType; yield tensors"),
        (("--data", "capturable:batches", "--points", "5"), "--points does not choose from --data"),
        (("--array", "several.npz"), "several.npz: it holds several arrays; save one with np.save"),
        (("--data", "capturable:none"), "capturable has no function none"),
        (("--data", "capturable"), "capturable is not module:function"),
        (("--array", "none.npy"), "none.npy: there is no such file"),
        (("--array", "capturable.py"), "capturable.py: damaged, no NumPy file, or a pickle"),
        (("--text", "nowhere"), "nowhere: there is no such text file"),
        (("--text", "capturable.py", "--length", "4000"), "sequences of 4000 tokens are too few"),
        (("--text", "images/00.png"), "images/00.png: it is not UTF-8"),
        (("--text", "capturable.py", "--length", "0"), "--length is at least 1, not 0"),
        ((), "--images is missing; name it, or other inputs by --array, --text or --data"),
    ],
)
def test_inputs_that_are_wrong_are_named(capsys, tmp_path, flags, message):
    assert message in refused(capsys, tmp_path, "capture", "capturable:language", "--layers", "head", *flags)


@pytest.mark.parametrize("tokens", ["mean", "first", "last", "all"])
def test_padding_does_not_count(capsys, tmp_path, tokens):
    flags = ("--layers", "embedding", "--tokens", tokens)
    sources = [("--data", f"capturable:padded{length}") for length in (8, 11)]
    short, long = (captured(capsys, tmp_path, "masked", *flags, source=each)["embedding"] for each in sources)
    torch.testing.assert_close(short, long)
    assert len(short) == (sum(3 + row % 4 for row in range(12)) if tokens == "all" else 12)


def test_tokens_of_inputs_in_another_order_are_put_in_order(capsys, tmp_path):
    """Inputs of unequal lengths, a data point for each token: their rows are found by how many each input gave."""
    files = []
    for name in ("named", "reversed_"):
        flags = ("--layers", "embedding", "--tokens", "all", "--data", f"capturable:{name}")
        status, out, err = run(capsys, "capture", "capturable:masked", *flags, "--out", tmp_path / f"{name}.npz")
        assert status == 0, err
        assert "a data point for each of its tokens" in out
        files.append(tmp_path / f"{name}.npz")
    assert comparison.compare(files, ["linear_cka"]).distances["linear_cka"][0, 1] == pytest.approx(0, abs=1e-6)


def test_a_masked_mean_in_half_precision_does_not_overflow():
    x = torch.full((2, 40, 3), 5000.0, dtype=torch.float16)
    mask = torch.ones(2, 40)
    mask[:, 30:] = 0
    layout = outputs.Layout("tokens", 0, 2, (40, 3))
    mean = outputs.points(x, layout, outputs.Reading(tokens="mean"), mask)
    assert mean.dtype == torch.float16 and (mean == 5000).all()


def test_a_seed_counts_from_after_the_import(capsys, tmp_path, monkeypatch):
    """What a module draws or seeds while it is imported changes no network, the first time or later."""
    code = "import torch\nfrom torch import nn\n{}\ndef make(): return nn.Sequential(nn.Linear(4, 3))\n"
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.syspath_prepend(tmp_path)
    found = {}
    for name, line in (("draws", "example = nn.Linear(3, 3)"), ("seeds", "torch.manual_seed(42)"), ("plain", "")):
        (tmp_path / f"made_{name}.py").write_text(code.format(line))
        for seed in (0, 0, 1):
            network = capture.build(capture.Origin(f"made_{name}:make", seed=seed))
            found.setdefault(seed, []).append(network[0].weight.detach())
    assert all(torch.equal(weight, found[0][0]) for weight in found[0])
    assert all(torch.equal(weight, found[1][0]) for weight in found[1]) and not torch.equal(found[0][0], found[1][0])


def test_pooled_signals_and_maps_that_are_not_square_have_channels_first(capsys, tmp_path, rng):
    np.save(tmp_path / "signals.npy", rng.normal(size=(30, 2, 64)).astype(np.float32))
    np.save(tmp_path / "maps.npy", rng.normal(size=(30, 1, 32, 16)).astype(np.float32))
    for name, layers in (("signals", ("conv", "act", "pool", "avg")), ("maps", ("conv", "norm", "act", "pool"))):
        found = captured(capsys, tmp_path, name, "--layers", *layers, source=("--array", tmp_path / f"{name}.npy"))
        assert {layer: found[layer].shape[1] for layer in layers} == dict.fromkeys(layers, 8)
        torch.testing.assert_close(found["act"].relu(), found["act"])
    assert status_of_attention(capsys) == 1


def status_of_attention(capsys):
    """Attention of other queries than keys is no map, whatever its shape."""
    flags = ("--layers", "scores", "--data", "capturable:batches", "--out", "a.npz")
    return run(capsys, "capture", "capturable:crossed", *flags)[0]


def test_a_network_that_changes_its_inputs_leaves_those_of_others(capsys, tmp_path):
    """Side by side in either order, and captured one by one."""
    found, files = [], ("--table", tmp_path / "t.csv", "--out", tmp_path / "h.png")
    common = ("--images", "images", "--size", 16, "--layers", "head", "--measure", "linear_cka")
    for pair in (("changing", "net"), ("net", "changing")):
        models = [f"capturable:{name}" for name in pair]
        assert run(capsys, "compare-networks", *models, *common, *files)[0] == 0
        found.append(float((tmp_path / "t.csv").read_text().splitlines()[1].split(",")[3]))
    heads = [captured(capsys, tmp_path, name, "--layers", "head")["head"] for name in ("changing", "net")]
    assert found == pytest.approx([linear_cka(*heads).distance] * 2, abs=1e-5)


def test_other_pictures_of_equal_names_and_sizes_are_known_as_such(capsys, tmp_path):
    for folder, colour in (("a", 1), ("b", 200)):
        (tmp_path / folder).mkdir()
        for i in range(20):
            Image.new("RGB", (16, 16), (colour, i, 7)).save(tmp_path / folder / f"{i:02d}.bmp")
        flags = ("--layers", "head", "--images", tmp_path / folder, "--size", 16, "--out", tmp_path / f"{folder}.npz")
        assert run(capsys, "capture", "capturable:net", *flags)[0] == 0
    status, _, err = run(capsys, "compare", tmp_path / "a.npz", tmp_path / "b.npz", "--out", tmp_path / "h.png")
    assert status == 1 and "its inputs have the names of those of" in err


def test_the_checksum_of_inputs_knows_their_contents_and_not_their_order():
    a = inputs.checksum(["x", "y", "z"], ["1", "2", "3"])
    assert inputs.checksum(["z", "x", "y"], ["3", "1", "2"]) == a
    assert inputs.checksum(["x", "y", "z"], ["1", "3", "2"]) != a
    assert inputs.checksum(None, ["1", "2"]) != inputs.checksum(None, ["2", "1"])


def test_inputs_of_a_function_in_another_order_are_put_in_order(capsys, tmp_path):
    """The same texts forwards and backwards: equal layers; backwards without names: refused."""
    for name in ("batches", "backwards", "unnamed"):
        flags = (
            "--layers",
            "head",
            "--tokens",
            "mean",
            "--data",
            f"capturable:{name}",
            "--out",
            tmp_path / f"{name}.npz",
        )
        status, _, err = run(capsys, "capture", "capturable:language", *flags)
        assert status == 0, err
    files = [tmp_path / f"{name}.npz" for name in ("batches", "backwards")]
    assert comparison.compare(files, ["linear_cka"]).distances["linear_cka"][0, 1] == pytest.approx(0, abs=1e-6)
    with pytest.raises(inputs.UserError, match=r"unnamed\.npz: it was captured from other inputs than"):
        comparison.compare([files[0], tmp_path / "unnamed.npz"], ["linear_cka"])


def test_nested_outputs_are_named_by_a_path(capsys, tmp_path):
    source, flags = ("--text", "capturable.py", "--length", 8, "--points", 20), ("--output", "1.0", "--tokens", "last")
    found = captured(capsys, tmp_path, "language", "--layers", "lstm", *flags, source=source)["lstm"]
    assert found.shape == (20, 7)  # the last state, (layers, n, units), one layer


def test_tied_and_reparametrised_weights_are_taken(tmp_path):
    tied = module("tied")
    save_file({"embedding.weight": tied.embedding.weight.detach()}, tmp_path / "w.safetensors")
    weights.fill(tied, tmp_path / "w.safetensors", "tied", None)
    old = {"0.bias": torch.ones(3), "0.weight_g": torch.ones(3, 1), "0.weight_v": torch.ones(3, 4)}
    torch.save(old, tmp_path / "w.pt")
    normed = module("normed")
    weights.fill(normed, tmp_path / "w.pt", "normed", None)
    torch.testing.assert_close(normed[0].weight, torch.full((3, 4), 0.5))


def test_two_networks_read_text_side_by_side(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be " * 60)
    table, out = tmp_path / "t.csv", tmp_path / "h.png"
    common = ("--text", tmp_path / "a.txt", "--length", 8, "--tokens", "mean", "--layers", "lstm", "embedding")
    arguments = ("capturable:language", "capturable:language", "--seed", 0, 1, *common, "--table", table, "--out", out)
    status, _, err = run(capsys, "compare-networks", *arguments)
    assert status == 0, err
    for seed in (0, 1):
        run(capsys, "capture", "capturable:language", "--seed", seed, *common, "--out", tmp_path / f"{seed}.npz")
    found = comparison.compare([tmp_path / "0.npz", tmp_path / "1.npz"])
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    for a, b, _, distance, _ in rows:
        i, j = found.names.index(f"0:{a}"), found.names.index(f"1:{b}")
        assert float(distance) == pytest.approx(found.distances["pwcca"][i, j], abs=1e-6)


# Weights ----------------------------------------------------------------------------------------------------------


def written(tmp_path, kind):
    """The weights of the network of seed 5 as people write them; returns what to give to --weights, and what is
    said."""
    state = capture.build(capture.Origin("capturable:net", seed=5)).state_dict()
    other = capture.build(capture.Origin("capturable:net", seed=6)).state_dict()
    prefixed = lambda prefix: {f"{prefix}{name}": tensor for name, tensor in state.items()}  # noqa: E731
    path = tmp_path / {"ckpt": "w.ckpt", "bin": "w.bin"}.get(kind, "w.pt")
    files = {
        "plain": (state, ""),
        "ckpt": ({"epoch": 3, "state_dict": prefixed("model."), "optimizer_states": [{"lr": 0.1}]}, "state_dict"),
        "bin": (prefixed("net."), "without net."),
        "DataParallel": (prefixed("module."), "without module."),
        "compiled": (prefixed("module._orig_mod."), "without module. and _orig_mod."),
        "partly": (
            {name.replace("conv1.", "conv1._orig_mod."): x for name, x in state.items()},
            "without _orig_mod.",
        ),
        "counters": (state | {"norm.num_batches_tracked": torch.ones(1)}, ""),
        "nested": ({"model": {"weights": state}, "step": 7}, "its entry model.weights"),
        "optimizer": ({"model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, "its entry model"),
        "entry": ({"model": other, "ema": state}, "its entry ema"),
    }
    if kind == "sharded":
        names = sorted(state)
        for index, part in enumerate((names[:2], names[2:])):
            save_file({name: state[name] for name in part}, tmp_path / f"part{index}.safetensors")
        places = {name: f"part{int(name not in names[:2])}.safetensors" for name in names}
        (tmp_path / "w.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        return tmp_path / "w.safetensors.index.json", "", state
    content, said = files[kind]
    torch.save(content, path)
    return path, said, state


KINDS = [
    "counters",
    "partly",
    "plain",
    "ckpt",
    "bin",
    "DataParallel",
    "compiled",
    "nested",
    "optimizer",
    "entry",
    "sharded",
]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_found_as_training_writes_them(tmp_path, capsys, kind):
    path, said, state = written(tmp_path, kind)
    entry = "ema" if kind == "entry" else None
    network = capture.build(capture.Origin("capturable:net", str(path), entry=entry))
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    note = capsys.readouterr().err
    assert said in note and bool(said) == bool(note)


def spoilt(tmp_path, kind):
    state = capture.build(capture.Origin("capturable:net")).state_dict()
    index = tmp_path / "w.index.json"
    if kind == "several":
        torch.save({"model": state, "ema": state}, tmp_path / "w.pt")
    elif kind == "none":
        torch.save({"epoch": 3}, tmp_path / "w.pt")
    elif kind == "wrong":
        torch.save({"state_dict": {f"model.{name}": torch.ones(1) for name in state}}, tmp_path / "w.pt")
    elif kind == "int8":
        torch.save({name: x.to(torch.int8) for name, x in state.items()}, tmp_path / "w.pt")
    elif kind == "pointer":
        (tmp_path / "w.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    elif kind == "missing":
        index.write_text(json.dumps({"weight_map": {"head.bias": "no.safetensors"}}))
    elif kind == "outside":
        index.write_text(json.dumps({"weight_map": {"head.bias": "../w.safetensors"}}))
    else:
        index.write_text("[]")
    return index if index.exists() else tmp_path / "w.pt"


@pytest.mark.parametrize(
    ("kind", "entry", "message"),
    [
        ("several", None, r"holds several weights of capturable:net \(model and ema\); name one by --entry"),
        ("several", "emma", "has no weights called emma; did you mean ema"),
        ("none", None, "it holds no tensors; save"),
        ("wrong", None, r"conv1.weight is \(1,\), not \(8, 3, 3, 3\) in state_dict and 5 more"),
        ("int8", None, "conv1.weight is of type int8, not float32 and 5 more"),
        ("pointer", None, "it is a pointer of Git LFS, not the file itself; run git lfs pull"),
        ("missing", None, "it names no.safetensors, which is not beside it"),
        ("outside", None, "it names a file outside its folder"),
        ("index", None, "not an index of weights"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, kind, entry, message):
    with pytest.raises(inputs.UserError, match=message):
        weights.fill(module("net"), spoilt(tmp_path, kind), "capturable:net", entry)
