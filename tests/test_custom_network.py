"""A user's torch.nn.Module in place of the built-in networks: the same arithmetic, the same workflow."""

import filecmp
import re
import shutil
import sys
import uuid

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from cca_dynamics.config.cohorts import AblationRequest, LayerRequest
from cca_dynamics.config.models import ModuleOptions, Training
from cca_dynamics.cost import training_memory
from cca_dynamics.data import datasets
from cca_dynamics.errors import ConfigError
from cca_dynamics.networks import convolutional
from cca_dynamics.networks.architectures import describe
from cca_dynamics.networks.convolutional import build, channels_last
from cca_dynamics.networks.user_module import measured
from cca_dynamics.representations import ablation, extraction
from cca_dynamics.runtime.fingerprints import definitions, module_fingerprint
from cca_dynamics.runtime.storage import read_tensors
from cca_dynamics.study import Study, read_config
from cca_dynamics.training import classifiers
from torch.nn import functional

from tests.builders import (
    ROOT,
    classifier_recipe,
    copy_workflow,
    snakemake,
    train_classifiers,
    write_dataset,
    write_images,
)

TWIN = '''
from torch import nn


class Mean(nn.Module):
    def forward(self, x):
        return x.flatten(2).mean(2)


def twin(in_channels, classes, space, channels):
    """The built-in network of two layers, as anyone would write it."""
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if len(space) == 1 else (nn.Conv2d, nn.BatchNorm2d)
    network = nn.Sequential()
    for i, outputs in enumerate(channels, start=1):
        parts = conv(in_channels, outputs, 3, i, 1, bias=False), norm(outputs), nn.ReLU(inplace=True)
        network.add_module(f"conv{i}", nn.Sequential(*parts))
        in_channels = outputs
    network.add_module("mean", Mean())
    network.add_module("head", nn.Linear(in_channels, classes))
    return network
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a module of the user's into the working directory; returns options that name it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(
        text: str, function: str = "twin", layers=("conv1", "conv2"), channels=(5, 6), source=""
    ) -> ModuleOptions:
        name = f"mine_{uuid.uuid4().hex}"
        (tmp_path / f"{name}.py").write_text(text)
        return ModuleOptions(module=f"{name}:{function}", layers=layers, channels=channels, source=source)

    return write


def translated(state: dict) -> dict:
    """State of the built-in network under the names of `twin`, without the count of batches."""
    parts = {"conv": "0", "norm": "1"}
    return {
        re.sub(r"^(conv|norm)(\d)", lambda found: f"conv{found[2]}.{parts[found[1]]}", name): tensor
        for name, tensor in state.items()
    }


def same(found: dict, expected: dict, tolerance: float = 1e-4):
    assert {name for name in found if "num_batches" not in name} == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_built_in_network_written_by_a_user_is_the_same(own, tmp_path, dimensions):
    """Loss, gradients, running statistics, representations, evaluation and ablation, from the same weights."""
    data = datasets.load(write_dataset(tmp_path / "dataset.safetensors", dimensions))
    space, options = data.train_x.shape[2:], {"built in": classifier_recipe().network, "own": own(TWIN)}
    networks = {kind: build(network, 2, space, 3) for kind, network in options.items()}
    state = networks["built in"].initialise(np.random.default_rng(i) for i in range(3))
    counts = {f"conv{i}.1.num_batches_tracked": torch.zeros(3, dtype=torch.int64) for i in (1, 2)}
    states = {"built in": state, "own": {k: v.clone() for k, v in (translated(state) | counts).items()}}
    order = torch.stack([torch.randperm(60, generator=torch.Generator().manual_seed(i))[:16] for i in range(3)])
    computed = {}
    for kind, network in networks.items():
        state, names = states[kind], list(network.shapes())
        parameters = [state[name].requires_grad_() for name in names]
        logits = network.logits(state, channels_last(data.train_x)[order])
        losses = functional.cross_entropy(logits.transpose(1, 2), data.train_y[order], reduction="none").mean(1)
        gradients = torch.autograd.grad(losses.sum(), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.1 * gradient
        state = {name: tensor.detach() for name, tensor in state.items()}
        first = {name: tensor[1:2] for name, tensor in state.items()}
        masks = {
            f"conv{i}": (torch.rand(4, c, generator=torch.Generator().manual_seed(i)) > 0.4).float()
            for i, c in ((1, 5), (2, 6))
        }
        rename = translated if kind == "built in" else dict
        computed[kind] = {
            "losses": losses.detach(),
            **rename(dict(zip(names, gradients, strict=True))),
            **{f"after {name}": tensor for name, tensor in rename(state).items()},
            **network.representations(state, data.test_x, ["conv1", "conv2", "softmax"], batch_size=7),
            "evaluation": torch.stack(network.evaluate(state, data.test_x, data.test_y)),
            "ablation": network.accuracy_without(first, data.train_x, data.train_y, masks),
        }
    same(computed["own"], computed["built in"])
    assert states["own"]["conv1.1.num_batches_tracked"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_module_costs_what_the_built_in_network_costs(own, dimensions):
    space = (12,) if dimensions == 1 else (6, 8)
    theirs = describe(classifier_recipe().network, 2, space, 3)
    ours = measured(describe(own(TWIN), 2, space, 3))
    for count in ("parameters", "operations", "training_operations", "widths"):
        assert getattr(theirs, count) == getattr(ours, count)
    assert ours.operations_after("conv1") == ours.operations
    training = Training(batch_size=32, optimizer="adam")
    memory = [training_memory(architecture, training, 1, "cpu", False) for architecture in (theirs, ours)]
    assert 0.5 < memory[0] / memory[1] < 4


@pytest.mark.parametrize("dimensions", [1, 2])
def test_training_gives_what_the_built_in_network_gives(own, tmp_path, monkeypatch, dimensions):
    data = write_dataset(tmp_path / "dataset.safetensors", dimensions)
    expected, history, _ = train_classifiers(classifier_recipe(optimizer="adam"), data, tmp_path / "built in")
    initial, _ = read_tensors(tmp_path / "built in" / "step-000000.safetensors")
    counts = {f"conv{i}.1.num_batches_tracked": torch.zeros(3, dtype=torch.int64) for i in (1, 2)}
    monkeypatch.setattr(
        convolutional.ModuleNetworks, "initialise", lambda self, generators: translated(initial) | counts
    )
    state, ours, _ = train_classifiers(classifier_recipe(optimizer="adam", network=own(TWIN)), data, tmp_path / "own")
    same(state, translated(expected), 1e-3)
    assert ours["loss"].to_numpy() == pytest.approx(history["loss"].to_numpy(), rel=1e-3)
    assert state["conv2.1.num_batches_tracked"].tolist() == [9, 9, 9]


def test_a_network_does_not_depend_on_its_cohort_nor_on_what_was_drawn_before(own, tmp_path):
    data, network = write_dataset(tmp_path / "dataset.safetensors", 2), own(TWIN)
    torch.manual_seed(1)
    together, _, _ = train_classifiers(classifier_recipe(network=network), data, tmp_path / "together")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    alone, _, _ = train_classifiers(classifier_recipe((2,), network=network), data, tmp_path / "alone")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor[0], together[name][2]) for name, tensor in alone.items())
    assert not torch.equal(together["head.weight"][0], together["head.weight"][1])


def test_a_killed_run_ends_as_an_undisturbed_one(own, tmp_path):
    data, recipe = write_dataset(tmp_path / "dataset.safetensors", 2), classifier_recipe((0, 1), network=own(TWIN))
    train_classifiers(recipe, data, tmp_path / "undisturbed")

    def kill(line: str) -> None:
        """At the end of the second epoch, in step 6."""
        if line.startswith("epoch 2/3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classifiers.train(recipe, data, tmp_path / "killed", report=kill, save_steps=1)
    assert not (tmp_path / "killed").exists()
    _, _, lines = train_classifiers(recipe, data, tmp_path / "killed")
    assert lines[0] == "resuming from step 5 (epoch 2 of 3)"
    files = sorted(path.name for path in (tmp_path / "undisturbed").iterdir())
    assert filecmp.cmpfiles(tmp_path / "undisturbed", tmp_path / "killed", files, shallow=False) == (files, [], [])


STATEFUL = """
import torch
from torch import nn


class Stateful(nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.first, self.head = nn.Conv2d(in_channels, 4, 1), nn.Linear(4, classes)
        self.head.bias.requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.calls = self.calls + 1  # not in place
        return self.head(self.first(x).relu().mean((2, 3)))
"""


def test_buffers_are_state_and_frozen_or_unused_parameters_stay(own, tmp_path):
    network = own(STATEFUL, "Stateful", ("first", "head"), (4, 3))
    data = write_dataset(tmp_path / "dataset.safetensors", 2)
    state, _, _ = train_classifiers(classifier_recipe((0, 1), network=network), data, tmp_path / "out")
    initial, _ = read_tensors(tmp_path / "out" / "step-000000.safetensors")
    assert state["calls"].tolist() == [9, 9]
    changed = {name for name in state if not torch.equal(state[name], initial[name])}
    assert changed == {"calls", "first.weight", "first.bias", "head.weight"}


def test_shortcuts_are_ablated_where_they_pass_a_layer_by(own, tmp_path):
    """Activations and ablation of a residual network, whose clamped layer is not all that reaches the next one."""
    source = """
from torch import nn


class Residual(nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(in_channels, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, classes)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.inner(x)
        return self.head(self.pool(x).view(len(x), -1))
"""
    options = own(source, "Residual", ("stem", "inner", "pool", "head"), (4, 4, 4, 3))
    file = write_dataset(tmp_path / "dataset.safetensors", 2)
    state, _, _ = train_classifiers(classifier_recipe((0, 1), network=options), file, tmp_path / "networks")
    request = LayerRequest(epochs="final", splits=("test",), layers="all")
    extraction.extract(tmp_path / "networks", file, tmp_path / "a", requests=[request], report=lambda line: None)
    activations, _ = read_tensors(tmp_path / "a/test/step-000009.safetensors")
    assert {name: tuple(tensor.shape[1:]) for name, tensor in activations.items()} == {
        "stem": (20, 4), "inner": (20, 4), "pool": (20, 4), "head": (20, 3), "softmax": (20, 3)
    }  # fmt: skip
    torch.testing.assert_close(activations["softmax"], activations["head"].softmax(-1))
    request = AblationRequest(layers=("inner",), orders=2, levels=3, points=40)
    ablation.ablate(tmp_path / "networks", file, tmp_path / "a.parquet", request=request, report=lambda line: None)
    table = pd.read_parquet(tmp_path / "a.parquet").set_index(["network", "share"])["accuracy"]
    network, data = build(options, 2, (6, 8), 3), datasets.load(file)
    state["inner.weight"].detach().zero_(), state["inner.bias"].detach().zero_()
    points = np.random.default_rng([3, *b"ablation"]).permutation(60)[:40]
    _, without = network.evaluate(state, data.train_x[points], data.train_y[points])
    for index in range(2):
        assert table.loc[index, 1.0].to_list() == pytest.approx([without[index].item()] * 2)


def test_mixed_precision_is_autocast(own, tmp_path, monkeypatch):
    monkeypatch.setattr(classifiers, "has_bfloat16", lambda device: True)
    data, network = write_dataset(tmp_path / "dataset.safetensors", 2), own(TWIN)
    exact, _, _ = train_classifiers(classifier_recipe((0,), network=network), data, tmp_path / "exact")
    mixed, _, _ = train_classifiers(
        classifier_recipe((0,), network=network, precision="mixed"), data, tmp_path / "mixed"
    )
    assert not torch.equal(exact["head.weight"], mixed["head.weight"])
    torch.testing.assert_close(exact["head.weight"], mixed["head.weight"], rtol=0.1, atol=0.05)


LINEAR = "from torch import nn\ndef net(in_channels, classes):\n"


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (TWIN, {"function": "twins"}, r"network\.module: .+\.py has no function twins; did you mean twin\?"),
        (LINEAR + "    return 3", {"function": "net"}, "net returns int; return a torch.nn.Module"),
        ("import nowhere_to_be_found", {}, r"mine_\w+\.py line 1: ModuleNotFoundError: No module named"),
        (LINEAR + "    return nn.Linear('a')", {"function": "net"}, r"mine_\w+\.py line 3: TypeError"),
        (TWIN.replace("x.flatten(2)", "x.flat(2)"), {}, r"mine_\w+\.py line 7: AttributeError"),
        (TWIN, {"layers": ["conv1", "cnv2"]}, r"network\.layers: .+ has no submodule cnv2; did you mean conv2"),
        (TWIN, {"layers": ["conv1", "x"]}, "no submodule x; there are conv1, conv1.0, conv1.1, conv1.2, conv2"),
        (
            TWIN.replace(", channels):", "):\n    channels = 5, 7"),
            {},
            r"network\.channels: conv2 .+ returns 7 .+ not 6",
        ),
        (TWIN.replace("(in_channels, classes)", "(in_channels, 4)"), {}, r"returns \(2, 4\) .+ of shape \(2, 3\)"),
        (TWIN.replace("nn.Linear(in_channels, classes)", "nn.GRU(6, 3)"), {}, "returns tuple for 2 inputs"),
        (
            LINEAR + "    relu = nn.ReLU()\n    return nn.Sequential(nn.Flatten(), nn.Linear(96, 3), relu, relu)",
            {"function": "net", "layers": ["2", "1"]},
            r"network\.layers: 2 runs 2 times",
        ),
        (
            LINEAR + "    return nn.Sequential(nn.Conv2d(2, 3, (6, 8)), nn.Flatten()).requires_grad_(False)",
            {"function": "net", "layers": ["0", "1"], "channels": [3, 3]},
            "no parameter to train",
        ),
        (TWIN, {"source": "another"}, "has changed since this job was planned; run snakemake again"),
    ],
)
def test_what_is_wrong_with_a_module_is_said_in_one_line(own, text, changes, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        build(own(text, **changes), 2, (6, 8), 3)
    assert "\n" not in str(refusal.value)


TOKENS = """
from torch import nn

class Tokens(nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.patches = nn.Conv2d(in_channels, 8, 2, stride=2)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
"""


def test_tokens_are_averaged_on_demand_and_else_named(own):
    options = own(TOKENS, "Tokens", ("block",), (8,))
    with pytest.raises(
        ConfigError, match=r"network\.tokens: block of .* returns 12 tokens of 8 neurons.*set it to mean"
    ):
        build(options, 2, (6, 8), 3)
    networks = build(options.model_copy(update={"tokens": "mean"}), 2, (6, 8), 3)
    state = networks.initialise([np.random.default_rng(0)])
    x = torch.randn(40, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    found = networks.representations(state, x, ["block"])["block"][0]
    module = networks._make().eval()
    module.load_state_dict({name: tensor[0] for name, tensor in state.items()})
    with torch.no_grad():
        expected = module.block(module.patches(x).flatten(2).transpose(1, 2)).mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    masks = {"block": torch.tensor([[1.0] * 8, [0.0] * 8])}
    y = torch.zeros(40, dtype=torch.int64)
    assert networks.accuracy_without(state, x, y, masks)[1] in (0, 1)  # without tokens, one answer for all


def custom(**network) -> dict:
    config = read_config([ROOT / "studies/custom.yaml"], ROOT / "config.yaml")
    config["network"].update(network)
    return config


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"module": "nowhere:small"}, r"network\.module: there is no nowhere\.py in the working directory"),
        ({"module": "small"}, r"network\.module: 'small' is not allowed; MODULE:FUNCTION"),
        ({"layers": ["conv1", "conv2"]}, r"network\.layers: 2 layers for 4 channels; give one for each"),
        (
            {"layers": ["conv1", "conv2", "conv3", "top"]},
            r"stability\.layer: .+ no conv4; its layers are .+, top and soft",
        ),
        ({"layers": ["conv1", "conv2", "conv3", "softmax"]}, r"network\.layers\.3: 'softmax' is not allowed"),
        ({"modul": 1}, r"network\.modul: unknown key; did you mean module"),
    ],
)
def test_a_bad_network_block_is_refused_before_any_job(network, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=message) as refusal:
        Study(custom(**network))
    assert "\n" not in str(refusal.value)


def test_a_module_needs_its_keys(monkeypatch):
    config = custom()
    del config["network"]["layers"]
    with pytest.raises(ConfigError, match=r"network\.layers: missing; module needs it"):
        Study(config)


def test_a_file_that_is_not_python_is_refused_before_any_job(own):
    with pytest.raises(ConfigError, match=r"network\.module: mine_\w+\.py is not Python"):
        options = own("def twin(:", layers=("conv1", "conv2", "conv3", "conv4"), channels=(16, 32, 32, 64))
        Study(custom(**options.model_dump(mode="json")))


def test_built_in_networks_do_not_depend_on_the_code_behind_those_of_users():
    for entry in (
        "training.classifiers:train",
        "representations.extraction:extract",
        "representations.ablation:ablate",
    ):
        for name in ("convnet", "module"):
            selected = [f"networks.architectures:{name}", f"networks.convolutional:{name}"]
            code = definitions([entry], selected)
            assert any(module == "networks.user_module" for module, _ in code) == (name == "module")


def test_the_fingerprint_follows_imports_in_the_working_directory(tmp_path):
    files = {
        "nets.py": "import torch\nfrom pack import blocks\nfrom pack.more import *\ndef small():\n    return blocks.x",
        "pack/__init__.py": "",
        "pack/blocks.py": "from . import deep\nfrom ..nowhere import y\nx = deep.z",
        "pack/deep.py": "z = 1",
        "pack/more.py": "",
        "other.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = module_fingerprint("nets", tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(f'"""Text."""\n\n{text}  # a comment\n')
    assert module_fingerprint("nets", tmp_path) == before
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\nedited = True\n")
        assert (module_fingerprint("nets", tmp_path) != before) == (name != "other.py"), name
        (tmp_path / name).write_text(text)


NETWORK = """
from torch import nn


def net(in_channels, classes, space):
    body = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
    network = nn.Sequential()
    network.add_module("stem", nn.Sequential(nn.Conv2d(in_channels, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU()))
    network.add_module("body", body)
    network.add_module("flat", nn.Flatten())
    network.add_module("a", nn.Linear(8 * space[0] * space[1] // 4, 5))
    network.add_module("head", nn.Linear(5, classes))
    return network
"""


@pytest.mark.thorough
def test_a_study_of_a_network_and_of_images_of_one_s_own(tmp_path):
    """The figure; layers in the order of the config; an edit of the network trains again, a comment does not."""
    folder, rng = copy_workflow(tmp_path / "new"), np.random.default_rng(0)
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "mine.py").write_text(NETWORK)
    write_images(folder / "data/custom", rng, 9, 9)
    overlay = {
        "study": "tiny",
        "dataset": {"resize": 8, "train_size": 90, "test_size": 60},
        "training": {"batch_size": 30},
        "results": {
            "generalization": {
                "networks": 2,
                "network": {"module": "mine:net", "layers": ["stem", "body.1", "a"], "channels": [6, 8, 5]},
                "training": {"epochs": 3, "evaluate_every": 3},
                "early_layers": ["stem"],
                "late_layers": ["body.1", "a"],
            }
        },
    }
    (folder / "studies/tiny.yaml").write_text(yaml.safe_dump(overlay))
    arguments = ("--configfile", "studies/custom.yaml", "studies/tiny.yaml", "--cores", "2", "generalization")
    done = snakemake(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "figures/tiny/generalization.png").exists()
    table = pd.read_parquet(folder / "results/tiny/generalization.parquet").dropna(subset="layer")
    assert list(table.sort_values("layer_index")["layer"].unique()) == ["stem", "body.1", "a", "softmax"]
    (folder / "mine.py").write_text(NETWORK + "# a comment\n")
    again = snakemake(folder, *arguments, "--dry-run")
    assert "othing to be done" in again.stdout + again.stderr
    (folder / "mine.py").write_text(NETWORK.replace("6, 8, 3, 2, 1", "6, 8, 5, 2, 2"))
    edited = snakemake(folder, *arguments, "--dry-run")
    assert re.search(r"^train\s+2\b", edited.stdout + edited.stderr, re.MULTILINE)
