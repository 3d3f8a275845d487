"""A cohort in lockstep trains the same networks as a plain loop over torch.nn.Module."""

import json
import os
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from cca_dynamics.config.cohorts import AblationRequest, LayerRequest
from cca_dynamics.config.models import ConvNetOptions, ResNetOptions
from cca_dynamics.data import datasets
from cca_dynamics.errors import DamagedFile, UserError
from cca_dynamics.networks.architectures import describe
from cca_dynamics.networks.convolutional import (
    Networks,
    _fold,
    _product,
    _temporary,
    _train_alone,
    _train_in_lockstep,
    _unfold,
    as_matrix,
    build,
    channels_last,
)
from cca_dynamics.representations import ablation, extraction
from cca_dynamics.runtime import storage
from cca_dynamics.runtime.storage import (
    read_metadata,
    read_part,
    read_tensors,
    shape_of,
    stream_tensors,
    write_tensors,
)
from cca_dynamics.training import checkpoints, classifiers
from cca_dynamics.training.parameters import StackedParameters
from cca_dynamics.training.randomness import ORDER, WEIGHTS, generator
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn
from torch.nn import functional

from tests.builders import classifier_recipe, train_classifiers, write_dataset


class Plain(nn.Module):
    """The architecture as anyone would write it; parameter names match the cohort's."""

    def __init__(self, channels, strides, kernel, batch_norm, in_channels, dimensions, classes):
        super().__init__()
        conv = nn.Conv1d if dimensions == 1 else nn.Conv2d
        norm = nn.BatchNorm1d if dimensions == 1 else nn.BatchNorm2d
        self.depth = len(channels)
        for i, (outgoing, stride) in enumerate(zip(channels, strides, strict=True), start=1):
            setattr(self, f"conv{i}", conv(in_channels, outgoing, kernel, stride, kernel // 2, bias=not batch_norm))
            setattr(self, f"norm{i}", norm(outgoing) if batch_norm else nn.Identity())
            in_channels = outgoing
        self.head = nn.Linear(in_channels, classes)

    def forward(self, x, keep=None, mask=None):
        for i in range(1, self.depth + 1):
            x = torch.relu(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x)))
            x = x if mask is None else x * mask[i - 1].view(-1, *(1,) * (x.ndim - 2))
            if keep is not None:
                keep[f"conv{i}"] = x.flatten(2).mean(2)
        logits = self.head(x.flatten(2).mean(2))
        if keep is not None:
            keep["softmax"] = logits.softmax(1)
        return logits


@pytest.fixture
def data_file(tmp_path):
    """A dataset of signals."""
    return write_dataset(tmp_path / "dataset.safetensors", 1)


def train_plainly(recipe, data: datasets.Dataset, index: int) -> tuple[Plain, list[float]]:
    """Train network `index` alone, with torch.nn and torch.optim: the model, its loss after each epoch."""
    options, network, dimensions = recipe.training, recipe.network, data.train_x.ndim - 2
    shape = network.channels, network.strides, network.kernel, network.batch_norm
    model = Plain(*shape, 2, dimensions, data.classes)
    ours = build(network, 2, data.train_x.shape[2:], data.classes)
    initial = ours.initialise([generator(recipe.seed, recipe.cohort, index, WEIGHTS)])
    missing, unexpected = model.load_state_dict({k: v[0] for k, v in initial.items()}, strict=False)
    assert not unexpected and all("num_batches" in name for name in missing)
    arguments = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), momentum=options.momentum, **arguments)
    else:
        optimizer = torch.optim.Adam(model.parameters(), **arguments)
    batches = len(data.train_x) // options.batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * batches)
    losses = []
    for epoch in range(options.epochs):
        rng = generator(recipe.seed, recipe.cohort, index, ORDER, epoch)
        order = torch.from_numpy(rng.permutation(len(data.train_x)))
        for batch in order[: batches * options.batch_size].split(options.batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.train_x[batch]), data.train_y[batch]).backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            losses.append(nn.functional.cross_entropy(model(data.train_x), data.train_y).item())
        model.train()
    return model, losses


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_lockstep_equals_a_plain_loop(tmp_path, dimensions, batch_norm, optimizer):
    file = write_dataset(tmp_path / "dataset.safetensors", dimensions)
    recipe = classifier_recipe(optimizer=optimizer, batch_norm=batch_norm)
    state, history, _ = train_classifiers(recipe, file, tmp_path / "out")
    for index in range(3):
        model, losses = train_plainly(recipe, datasets.load(file), index)
        ours = history[(history["network"] == index) & (history["epoch"] > 0)]["loss"].to_numpy()
        # Float32 sums in another order, amplified by nine optimiser steps: 1e-4 relative.
        assert ours == pytest.approx(losses, rel=1e-4)
        for name, value in model.state_dict().items():
            if "num_batches" not in name:
                torch.testing.assert_close(state[name][index], value, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_both_ways_to_compute_agree(batch_norm, relu):
    """Convolutions laid side by side against PyTorch's own, gradients and running statistics, on images."""
    networks = build(ConvNetOptions(channels=(5,), strides=(2,), batch_norm=batch_norm), 2, (6, 8), 3)
    (convolution,) = networks.architecture.convolutions
    x = torch.randn(1, 7, 6, 8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = {}
    for compute in (_train_in_lockstep, _train_alone):
        state = {name: v.double() for name, v in networks.initialise([np.random.default_rng(0)]).items()}
        trained = [tensor.requires_grad_() for name, tensor in state.items() if name in networks.shapes()][:-2]
        x.grad = None
        y = compute(convolution, state, x.requires_grad_(), relu)
        gradients = torch.autograd.grad((y.sin() * torch.arange(5)).sum(), [x, *trained])
        running = [state[f"norm1.running_{part}"] for part in ("mean", "var")] if batch_norm else []
        results[compute] = [y, *gradients, *running]
        assert (y < 0).any() != relu
    for ours, theirs in zip(*results.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


class PlainBlock(nn.Module):
    """A residual block as in torchvision, for one or two dimensions."""

    def __init__(self, conv, norm, incoming, outgoing, stride):
        super().__init__()
        self.conv1 = conv(incoming, outgoing, 3, stride, 1, bias=False)
        self.norm1 = norm(outgoing)
        self.conv2 = conv(outgoing, outgoing, 3, 1, 1, bias=False)
        self.norm2 = norm(outgoing)
        self.project = stride > 1 or incoming != outgoing
        if self.project:
            self.conv3 = conv(incoming, outgoing, 1, stride, bias=False)
            self.norm3 = norm(outgoing)

    def forward(self, x):
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + (self.norm3(self.conv3(x)) if self.project else x))


class PlainResNet(nn.Module):
    """ResNet for CIFAR of two stages of two blocks; parameter names match the cohort's."""

    def __init__(self, channels, in_channels, dimensions, classes):
        super().__init__()
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dimensions == 1 else (nn.Conv2d, nn.BatchNorm2d)
        first, second = channels
        self.conv1, self.norm1 = conv(in_channels, first, 3, 1, 1, bias=False), norm(first)
        self.block1, self.block2 = (PlainBlock(conv, norm, first, first, 1) for _ in range(2))
        self.block3 = PlainBlock(conv, norm, first, second, 2)
        self.block4 = PlainBlock(conv, norm, second, second, 1)
        self.head = nn.Linear(second, classes)

    def forward(self, x, keep):
        x = torch.relu(self.norm1(self.conv1(x)))
        keep["conv1"] = x.flatten(2).mean(2)
        for i in range(1, 5):
            x = getattr(self, f"block{i}")(x)
            keep[f"block{i}"] = x.flatten(2).mean(2)
        logits = self.head(x.flatten(2).mean(2))
        keep["softmax"] = logits.softmax(1)
        return logits


@pytest.mark.parametrize("dimensions", [1, 2])
def test_resnet_is_a_plain_resnet(tmp_path, dimensions):
    """Logits, gradients, running statistics and representations."""
    data = datasets.load(write_dataset(tmp_path / "dataset.safetensors", dimensions))
    networks = build(ResNetOptions(channels=(4, 6), blocks=2), 2, data.train_x.shape[2:], 3)
    state = networks.initialise(np.random.default_rng(i) for i in range(2))
    model = PlainResNet([4, 6], 2, dimensions, 3)
    missing, unexpected = model.load_state_dict({k: v[1].clone() for k, v in state.items()}, strict=False)
    assert not unexpected and all("num_batches" in name for name in missing)
    trained = [state[name].requires_grad_() for name in networks.shapes()]
    logits = networks.logits(state, channels_last(data.train_x).expand(2, *channels_last(data.train_x).shape))
    gradients = torch.autograd.grad(functional.cross_entropy(logits[1], data.train_y), trained)
    means = {}
    expected = model(data.train_x, means)
    functional.cross_entropy(expected, data.train_y).backward()
    torch.testing.assert_close(logits[1], expected, rtol=1e-4, atol=1e-5)
    parameters = dict(model.named_parameters())
    for name, gradient in zip(networks.shapes(), gradients, strict=True):
        torch.testing.assert_close(gradient[1], parameters[name].grad, rtol=1e-3, atol=1e-5)
    model.eval()
    representations = networks.representations(state, data.test_x, networks.layers, batch_size=7)
    with torch.no_grad():
        model(data.test_x, means)
    for layer in ("conv1", "block1", "block2", "block3", "block4", "softmax"):
        torch.testing.assert_close(representations[layer][1], means[layer], rtol=1e-4, atol=1e-5)


def test_published_sizes():
    """ResNet-20 has 0.27 million parameters (He et al. 2016, table 6; projections add a few); the paper's network is
    an 11-layer one of 64 to 512 filters, counted by hand."""
    resnet = describe(ResNetOptions(channels=(16, 32, 64), blocks=3), 3, (32, 32), 10)
    assert resnet.parameters == 272_474 and len(resnet.widths) == 11
    channels = (64,) * 2 + (128,) * 3 + (256,) * 3 + (512,) * 3
    options = ConvNetOptions(channels=channels, strides=(1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1))
    network = describe(options, 3, (32, 32), 10)
    incoming = [3, *channels[:-1]]
    weights = sum(9 * a * b for a, b in zip(incoming, channels, strict=True))
    assert network.parameters == weights + 2 * sum(channels) + 512 * 10 + 10
    assert [c.space[0] for c in network.convolutions] == [32] * 2 + [16] * 3 + [8] * 3 + [4] * 3
    quarter = describe(options.with_changes({"multiplier": 0.25}), 3, (32, 32), 10)
    assert quarter.channels == tuple(c // 4 for c in channels)
    by_hand = 3 * 64 * 32**2 + 64 * 64 * 32**2 + (64 * 128 + 2 * 128**2) * 16**2  # stage by stage
    by_hand += (128 * 256 + 2 * 256**2) * 8**2 + (256 * 512 + 2 * 512**2) * 4**2
    assert network.operations == 2 * 9 * by_hand + 2 * 5120


def test_mixed_precision_trains_alike_and_stores_float32(tmp_path, monkeypatch):
    """Convolutions in bfloat16 (3 digits) change a network, but not what it learns."""
    file = write_dataset(tmp_path / "dataset.safetensors", 2)
    mixed_recipe = classifier_recipe(epochs=20, precision="mixed")

    def convolutions_in(folder):
        return json.loads((folder / "recipe.json").read_text())["convolutions_in"]

    exact, history, _ = train_classifiers(classifier_recipe(epochs=20), file, tmp_path / "exact")
    monkeypatch.setattr(classifiers, "has_bfloat16", lambda device: True)
    state, mixed, _ = train_classifiers(mixed_recipe, file, tmp_path / "mixed")
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert not torch.equal(state["conv1.weight"], exact["conv1.weight"])
    final = [table[table["epoch"] == 20]["loss"].mean() for table in (history, mixed)]
    assert final[1] < 0.5 * mixed["loss"].iloc[:3].mean() and abs(final[1] - final[0]) < 0.1
    assert convolutions_in(tmp_path / "mixed") == "bfloat16"
    monkeypatch.setattr(classifiers, "has_bfloat16", lambda device: False)
    without, _, _ = train_classifiers(mixed_recipe, file, tmp_path / "without")
    assert torch.equal(without["conv1.weight"], exact["conv1.weight"])
    assert convolutions_in(tmp_path / "without") == "float32"


def test_augmentation_is_each_network_s_own_and_reproducible(tmp_path):
    file = write_dataset(tmp_path / "dataset.safetensors", 2)
    augmented = classifier_recipe(augmentation="flip_and_shift")
    without, _, _ = train_classifiers(classifier_recipe(), file, tmp_path / "without")
    state, _, _ = train_classifiers(augmented, file, tmp_path / "one")
    again, _, _ = train_classifiers(augmented, file, tmp_path / "two")
    alone, _, _ = train_classifiers(augmented.with_changes({"networks": (2,)}), file, tmp_path / "alone")
    assert torch.equal(state["conv1.weight"], again["conv1.weight"])
    torch.testing.assert_close(alone["conv1.weight"][0], state["conv1.weight"][2], rtol=1e-4, atol=1e-5)
    assert not torch.equal(state["conv1.weight"], without["conv1.weight"])


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_network_does_not_depend_on_its_cohort(tmp_path, dimensions):
    file = write_dataset(tmp_path / "dataset.safetensors", dimensions)
    # More networks than share a pass.
    together, history, _ = train_classifiers(classifier_recipe(range(20)), file, tmp_path / "together")
    alone, history_alone, _ = train_classifiers(classifier_recipe((2,)), file, tmp_path / "alone")
    for name in alone:
        torch.testing.assert_close(alone[name][0], together[name][2], rtol=1e-4, atol=1e-5)
    initial, _ = read_tensors(tmp_path / "together" / "step-000000.safetensors")
    initial_alone, _ = read_tensors(tmp_path / "alone" / "step-000000.safetensors")
    assert all(torch.equal(initial[name][2], initial_alone[name][0]) for name in initial)
    assert history_alone["loss"].to_numpy() == pytest.approx(
        history[history["network"] == 2]["loss"].to_numpy(), rel=1e-4
    )


def test_networks_of_a_cohort_and_of_other_cohorts_differ(tmp_path, data_file):
    state, _, _ = train_classifiers(classifier_recipe((0, 1), epochs=1), data_file, tmp_path / "one")
    assert not torch.equal(state["conv1.weight"][0], state["conv1.weight"][1])
    another = classifier_recipe((0,)).with_changes({"cohort": "another"})
    train_classifiers(another, data_file, tmp_path / "two")
    first, second = (read_tensors(tmp_path / n / "step-000000.safetensors")[0] for n in ("one", "two"))
    assert not torch.equal(first["conv1.weight"][0], second["conv1.weight"][0])


def test_training_twice_is_bit_identical(tmp_path, data_file):
    one, two = (train_classifiers(classifier_recipe(), data_file, tmp_path / name)[0] for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_each_network_has_its_own_learning_rate(tmp_path, data_file):
    recipe = classifier_recipe((0, 1), learning_rate=(0.05, 0.001))
    swept, _, _ = train_classifiers(recipe, data_file, tmp_path / "swept")
    for index, rate in ((0, 0.05), (1, 0.001)):
        recipe = classifier_recipe((index,), learning_rate=rate)
        alone, _, _ = train_classifiers(recipe, data_file, tmp_path / f"alone{index}")
        torch.testing.assert_close(swept["conv2.weight"][index], alone["conv2.weight"][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lockstep", [True, False])
def test_a_network_stops_at_its_loss_and_stays_as_it_is(tmp_path, data_file, lockstep, monkeypatch):
    """Stopped networks are those of runs that end there, running statistics included; the others train on."""
    if not lockstep:
        monkeypatch.setattr(classifiers, "OUTPUTS_OF_A_PASS", 1)
    options = {"learning_rate": (0.05, 0.0005, 0.03), "schedule": "constant", "weight_decay": 0.0}
    recipe = classifier_recipe(epochs=25, stop_at_loss=0.4, **options)
    state, history, lines = train_classifiers(recipe, data_file, tmp_path / "stopping")
    final = history[history["step"] == history["step"].max()].set_index("network")
    stopped = final["stopped_after"]
    assert stopped[1] != stopped[1] and 3 < stopped[0] < stopped[2] < 25
    assert "2 of 3 networks have stopped" in lines[-1]
    ends = {0: int(stopped[0]), 1: 25, 2: int(stopped[2])}
    for network, epochs in ends.items():
        until, complete, _ = train_classifiers(
            classifier_recipe(epochs=epochs, **options), data_file, tmp_path / f"{network}"
        )
        for name, tensor in state.items():
            torch.testing.assert_close(tensor[network], until[name][network], rtol=1e-4, atol=1e-5)
        assert complete["loss"].iloc[-3 + network] == pytest.approx(final["loss"][network], rel=1e-4)
    first = train_classifiers(classifier_recipe(epochs=ends[0], **options), data_file, tmp_path / "first")[0]
    assert all(torch.equal(tensor[0], first[name][0]) for name, tensor in state.items())
    before = history[(history["network"] == 0) & (history["epoch"] < stopped[0])]
    assert before["stopped_after"].isna().all() and (before["loss"] > final["loss"][0] / 2).all()


def test_without_a_loss_at_which_to_stop_nothing_changes(tmp_path, data_file):
    """A loss that no network reaches trains the same networks; the table has one more column."""
    plain, history, _ = train_classifiers(classifier_recipe(), data_file, tmp_path / "plain")
    never, longer, lines = train_classifiers(classifier_recipe(stop_at_loss=1e-6), data_file, tmp_path / "never")
    assert all(torch.equal(plain[name], never[name]) for name in plain)
    pd.testing.assert_frame_equal(longer.drop(columns="stopped_after"), history)
    assert longer["stopped_after"].isna().all() and not any("stopped" in line for line in lines)


def test_when_all_have_stopped_the_rest_is_free(tmp_path, data_file, monkeypatch):
    calls, logits = [], Networks.logits
    monkeypatch.setattr(Networks, "logits", lambda self, *rest: calls.append(1) or logits(self, *rest))
    recipe = classifier_recipe(epochs=30, stop_at_loss=5.0)  # every network, after its first epoch
    _, history, lines = train_classifiers(recipe, data_file, tmp_path / "out")
    assert len(calls) == 3 and (history["stopped_after"].dropna() == 1).all()
    assert lines[-1].startswith("epoch 30/30 · train ") and "nan" not in lines[-1]


def test_history_checkpoints_and_report(tmp_path, data_file):
    recipe = classifier_recipe(labels="permuted")
    _, history, lines = train_classifiers(recipe, data_file, tmp_path / "out")
    assert list(history.columns) == ["step", "epoch", "network", "loss", "train_accuracy", "test_accuracy"]
    assert sorted(history["step"].unique()) == [0, 3, 6, 9]  # 60 examples in batches of 16: 3 steps an epoch
    assert history["train_accuracy"].between(0, 1).all() and history["test_accuracy"].between(0, 1).all()
    assert [step for step, _ in checkpoints.stored(tmp_path / "out")] == [0, 3, 9]
    stored = checkpoints.load_recipe(tmp_path / "out", datasets.load(data_file).checksum)
    assert stored.model_dump() == recipe.model_dump()
    assert len(lines) == 3 and lines[0].startswith("epoch 1/3 · loss ") and lines[0].endswith(" s left")


def test_permuted_labels_are_what_is_fitted(tmp_path, data_file):
    recipe, data = classifier_recipe(labels="permuted", epochs=60, optimizer="adam"), datasets.load(data_file)
    state, history, _ = train_classifiers(recipe, data_file, tmp_path / "out")
    final = history[history["step"] == history["step"].max()]
    network = build(recipe.network, 2, (12,), 3)
    _, true_accuracy = network.evaluate(state, data.train_x, data.train_y)
    assert final["train_accuracy"].mean() > true_accuracy.mean().item() + 0.1


def test_networks_that_see_some_examples_train_and_are_read_on_them_alone(tmp_path, data_file):
    """As on a dataset that has no others; and a recipe that does not say how many reads as it always did."""
    recipe = classifier_recipe(epochs=2)
    assert "examples" not in recipe.model_dump(mode="json")
    few = recipe.model_copy(update={"examples": 40})
    assert few.model_dump(mode="json")["examples"] == 40
    state, history, _ = train_classifiers(few, data_file, tmp_path / "networks")
    assert history["step"].max() == 2 * (40 // 16)
    tensors, metadata = read_tensors(data_file)
    subset = datasets.load(data_file).subset(40, recipe.seed)
    alone = {**tensors, **{name: getattr(subset, name) for name in ("train_x", "train_y", "train_y_permuted")}}
    write_tensors(tmp_path / "alone.safetensors", alone, name="made", classes=metadata["classes"])
    expected, _, _ = train_classifiers(recipe, tmp_path / "alone.safetensors", tmp_path / "expected")
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    extract(tmp_path, data_file, epochs="final")
    path = next((tmp_path / "out/train").glob("*.safetensors"))
    assert extraction.load(path, "conv2").shape == (3, 40, 6) and read_metadata(path)["examples"] == 40
    assert checkpoints.load_recipe(tmp_path / "networks").examples == 40


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_representations_are_those_of_a_plain_module(tmp_path, dimensions, batch_norm):
    file = write_dataset(tmp_path / "dataset.safetensors", dimensions)
    data, recipe = datasets.load(file), classifier_recipe(batch_norm=batch_norm)
    state, _, _ = train_classifiers(recipe, file, tmp_path / "out")
    network = build(recipe.network, 2, data.train_x.shape[2:], 3)
    representations = network.representations(state, data.test_x, network.layers, batch_size=7)
    for index in range(3):
        model = Plain([5, 6], [1, 2], 3, batch_norm, 2, dimensions, 3).eval()
        model.load_state_dict({name: value[index] for name, value in state.items()}, strict=False)
        means = {}
        with torch.no_grad():
            model(data.test_x, means)
        for layer in ("conv1", "conv2", "softmax"):
            torch.testing.assert_close(representations[layer][index], means[layer], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride"), [((2, 3, 7, 2), 3, 2), ((1, 2, 5, 6, 3), 3, 1), ((2, 2, 9, 1), 5, 2)]
)
def test_fold_is_the_transpose_of_unfold(shape, kernel, stride):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    columns, _ = _unfold(x, kernel, stride)
    other = torch.randn(columns.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close((columns * other).sum(), (x * _fold(other, shape, kernel, stride)).sum())


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_unfolded_inputs_times_weights_are_a_convolution(kernel, stride):
    """Signals shorter than the filter among them, parts of others in memory, with channels first, and shared ones."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 4, 3, kernel, dtype=torch.float64, generator=random)
    for length in range(1, 9):
        part = torch.randn(2, 5, length + 1, 3, dtype=torch.float64, generator=random)[:, :, 1:]
        for x in (part, part.mT.contiguous().mT, part[:1].expand(2, -1, -1, -1)):
            columns, shape = _unfold(x, kernel, stride)
            y = (columns @ as_matrix(weight)).view(*shape, 4)
            for network in range(2):
                expected = functional.conv1d(x[network].mT, weight[network], None, stride, kernel // 2)
                torch.testing.assert_close(y[network].mT, expected)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_backward_pass_leaves_the_gradient_that_it_is_given(relu, batch_norm):
    """A shortcut reads the same one."""
    networks = build(ConvNetOptions(channels=(4,), strides=(1,), batch_norm=batch_norm), 2, (7,), 3)
    state = networks.initialise(np.random.default_rng(i) for i in range(2))
    (convolution,) = networks.architecture.convolutions
    x = torch.randn(2, 5, 7, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = _train_in_lockstep(convolution, state, x, relu)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    before = grad.clone()
    torch.autograd.grad(y, x, grad)
    assert torch.equal(grad, before)


def threads_of_numpy() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.mark.parametrize("threads", [1, 2])
def test_training_allows_numpy_one_thread(threads):
    """The rounding of a product depends on the number of threads that compute it."""
    network = build(ConvNetOptions(channels=(3, 2), strides=(2, 1)), 2, (7,), 3)
    before, torch_before = threads_of_numpy(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(2, user_api="blas"):
            with classifiers.mapping_of_passes(network, "cpu") as map_passes:
                assert set.union(*map_passes(lambda _: threads_of_numpy(), range(3))) == {1}
            assert threads_of_numpy() == {2}
    finally:
        torch.set_num_threads(torch_before)
    assert threads_of_numpy() == before


@pytest.mark.parametrize("strided", [True, False])
def test_products_of_diverged_networks_say_nothing(strided, recwarn):
    """Each network's product is its own, whatever the others hold."""
    a = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    b = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1)).transpose(1, 2)
    a[1], b = torch.inf, b if strided else b.contiguous()
    out = torch.empty(3, 5, 6)
    for product in (_product(a, b), _product(a, b, out)):
        torch.testing.assert_close(product[::2], a[::2] @ b[::2])
        assert not product[1].isfinite().any()
    assert product is out and not recwarn.list


def test_temporary_memory_is_the_same_each_time():
    like = torch.empty(0)
    first = _temporary((40, 2), like)
    assert _temporary((5, 7), like).data_ptr() == first.data_ptr()
    double = _temporary((3,), like.double())
    assert double.dtype == torch.float64 and double.shape == (3,)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(_temporary, (3,), like.double()).result().data_ptr() != double.data_ptr()


@pytest.mark.parametrize("together", [1, 2, 5])
def test_weights_lie_in_memory_as_they_are_multiplied(together):
    """Whatever the order in memory, names stand for the same numbers, and a pass of some networks for theirs."""
    network = build(ConvNetOptions(channels=(3, 4), strides=(2, 1)), 2, (7,), 3)
    state = network.initialise(np.random.default_rng(i) for i in range(5))
    plain, ordered = (StackedParameters(state, network.shapes(), together, outputs_last=last) for last in (False, True))
    for name, tensor in state.items():
        assert torch.equal(tensor, plain.tensors[name]) and torch.equal(tensor, ordered.tensors[name])
    weight = ordered.tensors["conv2.weight"]
    assert as_matrix(weight).data_ptr() == weight.data_ptr()
    some = torch.tensor([0, 3])
    for parameters in (plain, ordered):
        for indices, tensors in parameters.passes_of(some):
            assert all(torch.equal(tensors[name], tensor[indices]) for name, tensor in state.items())
            squares = sum(tensors[name].square().sum() / 2 for name in network.shapes())
            gradients = parameters.by_name(parameters.gradients(squares, tensors))
            assert all(torch.equal(gradients[name], state[name][indices]) for name in network.shapes())


def test_gradients_agree_with_finite_differences():
    network = build(ConvNetOptions(channels=(3, 2), strides=(2, 1)), 2, (7,), 3)
    state = {k: v.double() for k, v in network.initialise(np.random.default_rng(i) for i in range(2)).items()}
    x = torch.randn(2, 4, 7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names = list(network.shapes())

    def logits(*parameters):
        fresh = {name: value.clone() for name, value in state.items()}
        return network.logits({**fresh, **dict(zip(names, parameters, strict=True))}, x)

    assert torch.autograd.gradcheck(logits, [state[name].requires_grad_() for name in names])


def extract(tmp_path, data_file, **request):
    request = LayerRequest(**{"epochs": "all", "splits": ("train", "test"), "layers": "all", **request})
    extraction.extract(tmp_path / "networks", data_file, tmp_path / "out", requests=[request], report=lambda line: None)


def test_activations_hold_every_layer_of_every_network(tmp_path, data_file):
    state, _, _ = train_classifiers(classifier_recipe(), data_file, tmp_path / "networks")
    extract(tmp_path, data_file)
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    expected = [f"{s}/step-{n:06d}.safetensors" for s in ("test", "train") for n in (0, 3, 9)]
    assert files == ["contents.json", *expected]
    assert json.loads((tmp_path / "out/contents.json").read_text()) == expected
    path = tmp_path / "out/test/step-000009.safetensors"
    assert extraction.layers(path) == ["conv1", "conv2", "softmax"]
    metadata = read_metadata(path)
    assert (metadata["step"], metadata["epoch"], metadata["split"], metadata["networks"]) == (9, 3, "test", [0, 1, 2])
    assert metadata["checkpoint"] == read_metadata(tmp_path / "networks/step-000009.safetensors")["sha256"]
    network = build(classifier_recipe().network, 2, (12,), 3)
    expected = network.representations(state, datasets.load(data_file).test_x, ["conv2"])["conv2"]
    loaded = extraction.load(path, "conv2")
    assert loaded.dtype == np.float32 and loaded.shape == (3, 20, 6)
    np.testing.assert_allclose(loaded, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_layers_can_be_compared_on_some_data_points(tmp_path, data_file):
    train_classifiers(classifier_recipe(), data_file, tmp_path / "networks")
    extract(tmp_path, data_file)
    all_points = extraction.load(tmp_path / "out/train/step-000009.safetensors", "conv2")
    shutil.rmtree(tmp_path / "out")
    extract(tmp_path, data_file, points=25)
    subset = extraction.load(tmp_path / "out/train/step-000009.safetensors", "conv2")
    assert subset.shape == (3, 25, 6)
    assert extraction.load(tmp_path / "out/test/step-000009.safetensors", "conv2").shape == (3, 20, 6)
    rows = [np.flatnonzero(np.isclose(all_points[0], row).all(axis=1)) for row in subset[0]]
    assert all(len(row) == 1 for row in rows) and (np.diff(np.concatenate(rows)) > 0).all()


def test_activations_come_in_parts_where_they_are_large(tmp_path, data_file, monkeypatch):
    data = datasets.load(data_file)
    train_classifiers(classifier_recipe(), data_file, tmp_path / "networks")
    extract(tmp_path, data_file)
    path = tmp_path / "out/train/step-000009.safetensors"
    whole, metadata = read_tensors(path)
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(extraction, "MEMORY", 1)
    monkeypatch.setattr(extraction, "BATCH", 7)
    parts, representations = [], Networks.representations
    monkeypatch.setattr(
        Networks,
        "representations",
        lambda self, state, x, layers: parts.append(len(x)) or representations(self, state, x, layers),
    )
    extract(tmp_path, data_file)
    assert max(parts) == 7 and sum(parts) == 3 * (len(data.train_x) + len(data.test_x))
    streamed, again = read_tensors(path)
    assert set(streamed) == set(whole) and {**again, "sha256": 0} == {**metadata, "sha256": 0}
    for layer, tensor in whole.items():
        torch.testing.assert_close(streamed[layer], tensor, rtol=1e-5, atol=1e-6)


def test_files_of_tensors_have_the_permissions_of_other_files(tmp_path):
    """A colleague in the same group can read them: safetensors alone would write them for their owner."""
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "new.safetensors", {"x": torch.zeros(3)})
    finally:
        os.umask(before)
    assert (tmp_path / "new.safetensors").stat().st_mode & 0o777 == 0o640
    (tmp_path / "new.safetensors").chmod(0o644)
    write_tensors(tmp_path / "new.safetensors", {"x": torch.ones(3)})
    assert (tmp_path / "new.safetensors").stat().st_mode & 0o777 == 0o644
    with pytest.raises(OSError, match="No such file"):
        write_tensors(tmp_path / "no folder" / "new.safetensors", {"x": torch.zeros(3)})


def test_a_stream_that_ends_early_is_no_file_of_zeros(tmp_path):
    with pytest.raises(ValueError, match="3 data points were given, but conv1 has 4"):
        stream_tensors(tmp_path / "x.safetensors", {"conv1": (2, 4, 5)}, [{"conv1": torch.ones(2, 3, 5)}])


@pytest.mark.parametrize("index", [(1,), (0, slice(2, 5)), (2, slice(1, None, 3)), ()])
def test_part_of_a_tensor_is_what_reading_all_of_it_gives(tmp_path, index):
    made = {"a": torch.randn(3, 7, 4), "b": torch.randn(3, 2, 5)}
    write_tensors(tmp_path / "written.safetensors", made)
    parts = [{name: tensor[:, i : i + 1] for name, tensor in {"a": made["a"]}.items()} for i in range(7)]
    stream_tensors(tmp_path / "streamed.safetensors", {"a": (3, 7, 4)}, parts)
    for name in ("written", "streamed"):
        assert shape_of(tmp_path / f"{name}.safetensors", "a") == (3, 7, 4)
        np.testing.assert_array_equal(read_part(tmp_path / f"{name}.safetensors", "a", *index), made["a"][index])
    np.testing.assert_array_equal(read_part(tmp_path / "written.safetensors", "b", 1), made["b"][1])


def test_part_of_a_damaged_tensor_is_refused_wherever_the_damage_is(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PIECE", 16)
    file = tmp_path / "x.safetensors"
    write_tensors(file, {"a": torch.randn(3, 7, 4)})
    with pytest.raises(DamagedFile, match="it has no tensor b"):
        read_part(file, "b", 0)
    assert read_part(file, "a", 0).shape == (7, 4)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))  # however fast the clock of the file system is
    with pytest.raises(DamagedFile, match="the checksum of a is wrong"):
        read_part(file, "a", 0)
    file.write_bytes(content[:-4])
    with pytest.raises(DamagedFile, match="missing or damaged"):
        read_part(file, "a", 0)


def test_reading_part_of_a_file_takes_memory_for_that_part_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PIECE", 2**16)
    file = tmp_path / "x.safetensors"
    write_tensors(file, {"a": torch.zeros(4, 2**16, 16)})  # 16 MB
    tracemalloc.start()
    try:
        assert read_part(file, "a", 3, slice(5, None, 64)).shape == (2**10, 16)  # the checksum is compared, too
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("request_keys", "message"),
    [
        ({"layers": ("conv7",)}, "no layer conv7; its layers are conv1, conv2, softmax"),
        ({"epochs": (2.0,)}, "epoch 2 are requested, but the stored epochs are 0, 1, 3; choose one"),
    ],
)
def test_requests_for_what_is_not_there_are_refused(tmp_path, data_file, request_keys, message):
    train_classifiers(classifier_recipe(), data_file, tmp_path / "networks")
    with pytest.raises(UserError, match=message):
        extract(tmp_path, data_file, **request_keys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing", "empty", "a flipped bit"])
def test_damaged_checkpoint_is_named_with_its_remedy(tmp_path, data_file, damage):
    train_classifiers(classifier_recipe(), data_file, tmp_path / "networks")
    file = tmp_path / "networks/step-000009.safetensors"
    if damage == "missing":
        for path in (tmp_path / "networks").glob("step-*"):
            path.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content[: {"truncated": 150, "empty": 0}.get(damage)])
    with pytest.raises(DamagedFile) as problem:
        extract(tmp_path, data_file)
    assert "networks" in str(problem.value) and "run snakemake again" in str(problem.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cohort": "c", "data_checksum": "d"}', '{"data_checksum": 1'])
def test_a_damaged_recipe_is_named_with_its_remedy(tmp_path, content):
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(DamagedFile, match=r"recipe\.json is missing or damaged .* run snakemake again"):
        checkpoints.load_recipe(tmp_path)


def test_networks_trained_on_other_data_are_refused(tmp_path, data_file):
    train_classifiers(classifier_recipe(), data_file, tmp_path / "networks")
    with pytest.raises(DamagedFile, match="were trained on other data"):
        checkpoints.load_recipe(tmp_path / "networks", "another checksum")


@pytest.mark.parametrize("dimensions", [1, 2])
def test_clamped_feature_maps_are_zero(tmp_path, dimensions):
    """Against a plain module whose maps are multiplied by the masks."""
    file = write_dataset(tmp_path / "dataset.safetensors", dimensions)
    data, recipe = datasets.load(file), classifier_recipe((0,))
    state, _, _ = train_classifiers(recipe, file, tmp_path / "out")
    network = build(recipe.network, 2, data.train_x.shape[2:], data.classes)
    model = Plain([5, 6], [1, 2], 3, True, 2, dimensions, data.classes)
    model.load_state_dict({name: tensor[0] for name, tensor in state.items()}, strict=False)
    model.eval()
    rng = np.random.default_rng(0)
    masks = {f"conv{i}": torch.from_numpy(rng.integers(0, 2, (7, maps))).float() for i, maps in ((1, 5), (2, 6))}
    accuracies = network.accuracy_without(state, data.train_x, data.train_y, masks, 13)
    for way in range(7):
        with torch.no_grad():
            logits = model(data.train_x, mask=[masks["conv1"][way], masks["conv2"][way]])
        expected = (logits.argmax(-1) == data.train_y).double().mean().item()
        assert accuracies[way].item() == pytest.approx(expected, abs=0.02)
    _, accuracy = network.evaluate(state, data.train_x, data.train_y)
    none = network.accuracy_without(state, data.train_x, data.train_y, {"conv2": torch.ones(1, 6)})
    assert none.item() == pytest.approx(accuracy.item(), abs=1e-6)


def test_ablation_is_cumulative_and_complete(tmp_path, data_file):
    train_classifiers(classifier_recipe(), data_file, tmp_path / "networks")
    request = AblationRequest(layers=("conv1", "conv2"), orders=3, levels=5, points=40)
    arguments = {"request": request, "report": lambda line: None}
    ablation.ablate(tmp_path / "networks", data_file, tmp_path / "a.parquet", **arguments)
    table = pd.read_parquet(tmp_path / "a.parquet")
    assert table.groupby(["network", "order"])["share"].apply(list).map(lambda s: s == [0, 0.25, 0.5, 0.75, 1]).all()
    for share in (0.0, 1.0):  # nothing is clamped, everything is: the order does not matter
        assert table[table["share"] == share].groupby("network")["accuracy"].nunique().eq(1).all()
    network = build(classifier_recipe().network, 2, (12,), 3)
    masks = ablation._draw_masks(network, request, np.linspace(0, 1, 5), np.random.default_rng(0))
    together = torch.cat([masks["conv1"], masks["conv2"]], dim=1).view(3, 5, 11)
    assert (together.diff(dim=1) <= 0).all()
    assert together.sum(dim=2).tolist() == [[11, 8, 5, 3, 0]] * 3
    ablation.ablate(tmp_path / "networks", data_file, tmp_path / "b.parquet", **arguments)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
