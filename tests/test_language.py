"""Language models: text as numbers, an LSTM that is PyTorch's, and what is trained and collected."""

import itertools
import json
import re
import sys
import unicodedata

import numpy as np
import pytest
import torch
from cca_dynamics import cli
from cca_dynamics.config.cohorts import HeldOutRequest, RepeatsRequest
from cca_dynamics.config.models import Documentation, Dropout, LanguageTraining, TextFolder
from cca_dynamics.data import corpora
from cca_dynamics.errors import UserError
from cca_dynamics.networks.architectures import LanguageModel
from cca_dynamics.networks.lstm import LanguageModels, lstm
from cca_dynamics.representations import extraction
from cca_dynamics.representations import language_models as hidden_states
from cca_dynamics.runtime.storage import read_metadata, read_tensors
from cca_dynamics.training import language_models
from cca_dynamics.training.optimizers import NonMonotonicAveraging
from torch import nn

from tests.builders import (
    classifier_recipe,
    language_recipe,
    train_classifiers,
    train_language_models,
    write_corpus,
    write_dataset,
)


def text(folder, **files):
    folder.mkdir()
    for name, content in files.items():
        path = folder / f"{name}.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def materialise(tmp_path, **options):
    tensors, sheet = tmp_path / "corpus.safetensors", tmp_path / "corpus.json"
    corpora.materialise(TextFolder(**options), tensors, sheet)
    return corpora.load(tensors), json.loads(sheet.read_text())


def test_words_are_numbered_by_frequency_and_lines_end(tmp_path):
    folder = text(tmp_path / "text", train="b a b\n\nb c\n", valid="a d b\n")
    corpus, sheet = materialise(tmp_path, folder=str(folder))
    assert sheet["words"] == ["<eos>", "b", "a", "c", "<unk>"] and corpus.vocabulary == 5
    assert corpus.train.tolist() == [1, 2, 1, 0, 0, 1, 3, 0] and corpus.valid.tolist() == [2, 4, 1, 0]
    assert sheet["unknown"] == {"train": 0.0, "valid": 0.25}
    few, sheet = materialise(tmp_path, folder=str(folder), vocabulary=3)
    assert sheet["words"] == ["<eos>", "b", "<unk>"] and few.train.tolist() == [1, 2, 1, 0, 0, 1, 2, 0]
    letters, sheet = materialise(tmp_path, folder=str(folder), level="character")
    assert len(letters.train) == len("b a b\n\nb c\n") and "\n" in sheet["words"]


@pytest.mark.parametrize("level", ["word", "character"])
def test_the_same_text_from_other_systems_has_the_same_tokens(tmp_path, level):
    lines = ["To be, or not", "to bé: that", "is the question"]
    same = {
        "unix": "\n".join(lines) + "\n",
        "windows": "\ufeff" + "\r\n".join(lines) + "\r\n",
        "old": "\r".join(lines) + "\r",
        "joined": "\n".join(lines[:1]) + "\n\ufeff" + "\n".join(lines[1:]) + "\n",
        "decomposed": unicodedata.normalize("NFD", "\n".join(lines)) + "\n",
    }
    for name, text in same.items():
        (tmp_path / name).write_bytes(text.encode())
    tokens = {name: corpora._tokens(tmp_path / name, level, "train") for name in same}
    assert all(each == tokens["unix"] for each in tokens.values())


def test_a_line_ends_at_its_end_alone(tmp_path):
    (tmp_path / "t").write_bytes("a\u2028b\x0cc\x85d\n\ne".encode())
    tokens = corpora._tokens(tmp_path / "t", "word", "train")
    assert tokens == ["a", "b", "c", "d", corpora.END, corpora.END, "e", corpora.END]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with documentation, a test, and a file that is not Python."""
    files = {
        "__init__.py": '"""The package."""\ndef f():\n    """First.\n\n    Indented.\n    """\n',
        "inner/a.py": 'class A:\n    """The class \\s."""\n    def g():\n        """First.\n\n        Indented."""\n',
        "inner/broken.py": 'def (:\n    """Not this."""\n',
        "tests/test_a.py": '"""Nor this."""\n',
    }
    for name, content in files.items():
        path = tmp_path / "tests" / "documented" / name  # the environment itself may lie below such a folder
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.syspath_prepend(tmp_path / "tests")
    return "documented"


def test_documentation_is_every_docstring_once(package, recwarn):
    texts = {"The package.", "First.\n\nIndented.", "The class \\s."}
    size = sum(map(len, texts)) + len(texts)
    least = min(map(len, texts))

    def documentation(train: int, valid: int):
        """With fewer characters than a study may ask for."""
        options = {"package": package, "train_characters": train, "valid_characters": valid}
        return corpora.documentation(Documentation.model_construct(**options))

    train, valid = documentation(size - 40, least)
    assert not recwarn.list and package not in sys.modules
    assert len(train) == size - 40 and len(valid) == least
    assert all(any("".join(part).startswith(text[:5]) for text in texts) for part in (train, valid))
    assert (train, valid) == documentation(size - 40, least)
    with pytest.raises(UserError, match=rf"corpus\.train_characters: documented has {size} characters .* lower it"):
        documentation(size, least)


def test_documentation_needs_a_package():
    with pytest.raises(UserError, match=r"corpus\.package: nonesuch is not installed; install it or name another"):
        corpora.documentation(Documentation(package="nonesuch"))


def test_the_default_text_is_prose_of_the_stated_size():
    options = Documentation()
    train, valid = corpora.documentation(options)
    assert (len(train), len(valid)) == (options.train_characters, options.valid_characters)
    assert 80 < len(set(train)) < 200
    assert np.mean([character in set(train) for character in set(valid)]) > 0.95  # <unk> stands for the others
    assert sum(valid.count(character) for character in set(valid) - set(train)) < len(valid) / 1000
    assert "".join(train).count(" the ") > len(train) / 150


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"train": "a b\n"}, {}, r"corpus\.valid: .*valid\.txt cannot be read .*correct corpus\.folder"),
        ({"train": "a b\n", "valid": " \n"}, {}, r"valid\.txt is empty"),
        ({"train": b"a b \xff c", "valid": "a"}, {}, r"train\.txt is not UTF-8 \(byte 4: 0xff\)"),
        ({"train": "a b\n", "valid": "a"}, {"valid": 3}, r"corpus\.valid: 2 tokens are too few, 3 are needed"),
        ({"train": "a b\n", "valid": "a"}, {"train": 9}, r"corpus\.train: 3 tokens .* lower language_training"),
        ({"train": "a b\n", "valid": "a"}, {"vocabulary": 9}, r"corpus\.vocabulary: 9 is more than the 4 distinct"),
    ],
)
def test_bad_text_is_named_with_its_remedy(tmp_path, capsys, files, options, message):
    folder = text(tmp_path / "text", **files)
    few = [f"--{split}-tokens={options.pop(split)}" for split in ("train", "valid") if split in options]
    chosen = TextFolder(folder=str(folder), **options).model_dump_json()
    out = tmp_path / "out"
    arguments = ["--options", chosen, "--tensors", str(out / "c.safetensors"), "--datasheet", str(out / "c.json")]
    assert cli.main(["corpus", *arguments, *few]) == 1 and not out.exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)


def test_lstm_is_pytorch_s(rng):
    """Hidden states, last states and all gradients, of two networks at once."""
    networks, positions, batch, inputs, units = 2, 5, 3, 4, 6
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, h, c = draw(networks, positions, batch, inputs).requires_grad_(), *(draw(networks, batch, units) for _ in "hc")
    theirs = [nn.LSTM(inputs, units).double() for _ in range(networks)]
    stacked = [torch.stack([getattr(m, f"weight_{way}_l0") for m in theirs]).detach() for way in ("ih", "hh")]
    stacked.append(torch.stack([m.bias_ih_l0 + m.bias_hh_l0 for m in theirs]).detach())
    ours = [tensor.requires_grad_() for tensor in stacked]
    y, h_after, c_after = lstm(x, h, c, *ours)
    expected = [m(x[i], (h[i][None], c[i][None])) for i, m in enumerate(theirs)]
    weight = draw(*y.shape)
    for i, (states, (last_h, last_c)) in enumerate(expected):
        for mine, other in ((y[i], states), (h_after[i], last_h[0]), (c_after[i], last_c[0])):
            torch.testing.assert_close(mine, other)
    found = torch.autograd.grad((y * weight).sum() + 2 * h_after.sum() + 3 * c_after.sum(), [x, *ours])
    loss = sum((e[0] * weight[i]).sum() + 2 * e[1][0].sum() + 3 * e[1][1].sum() for i, e in enumerate(expected))
    parts = [[getattr(m, name) for m in theirs] for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")]
    for mine, other in zip(found, [[x], *parts], strict=True):
        gradients = torch.autograd.grad(loss, other, retain_graph=True)
        torch.testing.assert_close(mine, gradients[0] if other[0] is x else torch.stack(gradients))


@pytest.fixture
def corpus_file(tmp_path):
    """A corpus of 3,000 and 1,200 tokens."""
    return write_corpus(tmp_path / "corpus.safetensors")


class Plain(nn.Module):
    """The same model as anyone would write it."""

    def __init__(self, state, index, sizes, tied):
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.layers = nn.ModuleList(nn.LSTM(a, b) for a, b in zip((8, *sizes), sizes, strict=False))
        self.head = nn.Linear(sizes[-1], 7)
        with torch.no_grad():
            self.embedding.weight.copy_(state["embedding.weight"][index])
            for k, layer in enumerate(self.layers, start=1):
                layer.weight_ih_l0.copy_(state[f"lstm{k}.weight_ih"][index])
                layer.weight_hh_l0.copy_(state[f"lstm{k}.weight_hh"][index])
                layer.bias_ih_l0.copy_(state[f"lstm{k}.bias"][index])
                layer.bias_hh_l0.zero_()
            if tied:
                self.head.weight = self.embedding.weight
            else:
                self.head.weight.copy_(state["head.weight"][index])
            self.head.bias.copy_(state["head.bias"][index])
        for layer in self.layers:
            layer.bias_hh_l0.requires_grad_(False)

    def forward(self, tokens, carried):
        x, after = self.embedding(tokens), []
        for layer, state in zip(self.layers, carried, strict=True):
            x, state = layer(x, state)
            after.append(tuple(part.detach() for part in state))
        return self.head(x), after


@pytest.mark.parametrize("tied", [False, True])
def test_a_cohort_trains_as_a_plain_loop_does(tmp_path, corpus_file, tied):
    """Truncated backpropagation with carried state and clipped gradients, against torch.nn and torch.optim."""
    data, recipe = corpora.load(corpus_file), language_recipe(tied=tied, epochs=2)
    state, history, _ = train_language_models(recipe, corpus_file, tmp_path / "out")
    networks = LanguageModels(LanguageModel(7, 8, (8, 8), tied))
    initial, _ = read_tensors(tmp_path / "out/step-000000.safetensors")
    assert set(initial) == set(networks.architecture.shapes())
    for index in range(2):
        model = Plain(initial, index, (8, 8), tied)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
        columns = data.train[:3000].view(10, 300).T
        for _ in range(2):
            carried = [(torch.zeros(1, 10, 8), torch.zeros(1, 10, 8)) for _ in range(2)]
            total = 0.0
            for first in range(0, 299, 16):
                last = min(first + 16, 299)
                logits, carried = model(columns[first:last], carried)
                loss = nn.functional.cross_entropy(logits.flatten(0, 1), columns[first + 1 : last + 1].flatten())
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                total += loss.item() * (last - first) / 299
        ours = history[(history["network"] == index) & (history["epoch"] == 2)]["loss"].item()
        assert ours == pytest.approx(total, rel=1e-4)
        torch.testing.assert_close(state["lstm2.weight_hh"][index], model.layers[1].weight_hh_l0, rtol=1e-3, atol=1e-4)


def test_models_learn_and_do_not_depend_on_their_cohort(tmp_path, corpus_file):
    together, alone = (language_recipe(networks, epochs=6, learning_rate=0.03) for networks in ((0, 1, 2), (2,)))
    state, history, lines = train_language_models(together, corpus_file, tmp_path / "together")
    state_alone, _, _ = train_language_models(alone, corpus_file, tmp_path / "alone")
    final = history[history["epoch"] == 6]["valid_loss"]
    assert final.max() < history[history["epoch"] == 0]["valid_loss"].min() - 0.2
    for name in state_alone:
        torch.testing.assert_close(state_alone[name][0], state[name][2], rtol=1e-3, atol=1e-4)
    assert sorted(history["epoch"].unique()) == list(range(7)) and history["loss"].isna().sum() == 3
    assert len(lines) == 6 and re.fullmatch(r"epoch 1/6 · loss \d\.\d{3} · valid \d\.\d{3} · \d+ s left", lines[0])


def test_dropout_is_each_network_s_own_and_reproducible(tmp_path, corpus_file):
    rates = dict.fromkeys(("embedding", "input", "hidden", "output", "weight"), 0.2)
    changes = {"dropout": rates, "vary_windows": True, "activation_penalty": 2.0, "change_penalty": 1.0}

    def train(recipe, name):
        return train_language_models(recipe, corpus_file, tmp_path / name)[0]["lstm1.weight_hh"]

    one, two = (train(language_recipe(**changes), name) for name in ("one", "two"))
    alone, without = train(language_recipe((1,), **changes), "alone"), train(language_recipe(), "without")
    assert torch.equal(one, two)
    torch.testing.assert_close(alone[0], one[1], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(one, without)


def test_masks_are_locked_over_positions_and_keep_the_mean():
    networks = LanguageModels(LanguageModel(5, 400, (400,)))
    state = networks.initialise(np.random.default_rng(i) for i in range(2))
    state["embedding.weight"].fill_(1)
    tokens, generators = torch.zeros(6, 3, dtype=torch.long), [torch.Generator().manual_seed(i) for i in range(2)]
    from cca_dynamics.networks.lstm import _Masks

    masks = _Masks(Dropout(input=0.25), generators, 2)
    x = masks.locked(networks._embedded(state, tokens, masks), 0.25)
    assert x.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (x == x[:, :1]).all() and not (x[0] == x[1]).all() and x.mean().item() == pytest.approx(1, abs=0.1)


def test_averaging_begins_when_the_validation_loss_no_longer_falls():
    values = torch.zeros(2, 1)
    optimizer = NonMonotonicAveraging(values, LanguageTraining(patience=2))
    path, averages = [], []
    for epoch, losses in enumerate([(5.0, 5.0), (4.0, 4.0), (4.5, 3.0), (4.6, 2.0), (4.7, 1.0), (4.8, 0.5)]):
        optimizer(values, -torch.ones(2, 1) * (epoch + 1), torch.tensor(1.0))
        path.append(values.clone())
        averages.append(optimizer.values_to_evaluate(values).clone())
        optimizer.after_validation(torch.tensor(losses))
    # After the fifth epoch the first network's 4.7 exceeds 4.0, the best of all but the last two; its average then
    # runs over the weights of that moment and those that follow.
    assert optimizer.averaged_steps[1] == 0 and optimizer.averaged_steps[0] > 0
    assert torch.equal(averages[-1][1], path[-1][1])
    assert averages[-1][0].item() == pytest.approx((path[-2][0] + path[-1][0]).item() / 2)


def test_windows_cover_the_text_once():
    for rng in (None, np.random.default_rng(0)):
        windows = list(language_models.split_into_windows(500, 30, rng))
        assert windows[0][0] == 0 and windows[-1][1] == 499
        assert all(a[1] == b[0] for a, b in itertools.pairwise(windows))
    assert {last - first for first, last in language_models.split_into_windows(91, 30, None)} == {30}


def test_held_out_loss_does_not_depend_on_the_window(corpus_file):
    networks = LanguageModels(LanguageModel(7, 4, (5,)))
    state = networks.initialise(np.random.default_rng(i) for i in range(2))
    text = language_models.batchify(corpora.load(corpus_file).valid, 4, "valid")
    losses = [language_models.evaluate_loss(networks, state, text, window) for window in (7, 64, 1000)]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])
    assert losses[0].mean().item() == pytest.approx(np.log(7), abs=0.2)


def test_states_are_collected_where_they_belong(tmp_path, corpus_file):
    """The states of a text, and of repeats after a part of it, against running the model by hand."""
    data = corpora.load(corpus_file)
    state, _, _ = train_language_models(language_recipe(), corpus_file, tmp_path / "networks")
    requests = [
        HeldOutRequest(epochs="all", split="valid", layers="all", points=100),
        HeldOutRequest(epochs="final", split="sequence", layers="all", points=240, positions=6),
        RepeatsRequest(epochs="final", layers=("lstm2",), sequences=12, length=10, starts=(0.1, 0.5), repeats=4),
    ]
    arguments = {"requests": requests, "report": lambda line: None}
    hidden_states.extract(tmp_path / "networks", corpus_file, tmp_path / "out", **arguments)
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.safetensors"))
    assert [file.split("/")[0] for file in files] == ["repeats", "sequence", "valid", "valid", "valid"]
    model = Plain(state, 1, (8, 8), False)

    def states(tokens):
        x = model.embedding(tokens)
        for layer in model.layers:
            x, _ = layer(x)
        return x.detach().numpy()

    sequence = extraction.load(tmp_path / "out" / files[1], "lstm2")[1].reshape(20, 12, 8)
    np.testing.assert_allclose(sequence[0], states(data.valid[:12]), rtol=1e-4, atol=1e-5)
    repeats = extraction.load(tmp_path / "out" / files[0], "lstm2@0.5")[1].reshape(12, 4, 8)
    tokens = torch.cat([data.valid[:5], data.valid[5:6].expand(4)])
    np.testing.assert_allclose(repeats[0], states(tokens)[5:], rtol=1e-4, atol=1e-5)
    none = extraction.load(tmp_path / "out" / files[0], "lstm2@none")[1].reshape(12, 4, 8)
    np.testing.assert_allclose(none[0], states(data.valid[:10])[6:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({"window": 400}, 3000, r"language_training\.window: .*no longer than a window of 400"),
        ({"batch_size": 2000}, 3000, r"corpus\.train: 3000 tokens are too few for 2000 columns .*at least 4000"),
    ],
)
def test_too_little_text_is_named(tmp_path, changes, size, message):
    file = write_corpus(tmp_path / "corpus.safetensors", size)
    with pytest.raises(UserError, match=message):
        train_language_models(language_recipe(**changes), file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_little_held_out_text_for_cca_is_named(tmp_path, corpus_file):
    train_language_models(language_recipe(), corpus_file, tmp_path / "networks")
    requests = [HeldOutRequest(epochs="final", split="valid", layers="all", points=5000)]
    with pytest.raises(UserError, match=r"corpus\.valid: 1200 tokens, but 5000 data points need 5000; give more"):
        hidden_states.extract(tmp_path / "networks", corpus_file, tmp_path / "out", requests=requests)


def stored_epochs(folder) -> list[float]:
    return [read_metadata(path)["epoch"] for path in sorted(folder.glob("step-*.safetensors"))]


def test_models_are_stored_and_evaluated_within_an_epoch(tmp_path, corpus_file):
    """After the windows that come nearest, of the 19 of an epoch; storing them changes nothing of the training."""
    recipe = language_recipe(epochs=2)
    often = recipe.with_changes({"checkpoints": (0.0, 0.25, 0.26, 0.5, 1.0, 1.5)})
    state, history, _ = train_language_models(often, corpus_file, tmp_path / "often")
    expected = [0.0, 5 * 16 / 299, 9 * 16 / 299, 1.0, 1 + 9 * 16 / 299, 2.0]  # .25 and .26 are the same window
    assert stored_epochs(tmp_path / "often") == pytest.approx(expected)
    assert sorted(history["epoch"].unique()) == pytest.approx(expected) and history["valid_loss"].notna().all()
    plain, _, _ = train_language_models(recipe, corpus_file, tmp_path / "seldom")
    assert all(torch.equal(state[name], plain[name]) for name in plain)


def test_classifiers_are_evaluated_where_they_are_stored(tmp_path):
    data = write_dataset(tmp_path / "data.safetensors", 1)
    recipe = classifier_recipe(epochs=2, evaluate_every=2).with_changes({"checkpoints": (0.0, 0.5)})
    _, history, _ = train_classifiers(recipe, data, tmp_path / "networks")
    epochs = stored_epochs(tmp_path / "networks")
    assert len(epochs) == 3 and sorted(history["epoch"].unique()) == epochs


def test_states_begin_after_their_context(tmp_path, corpus_file):
    """The tokens of the context are read and their states dropped, so that no state is that of a first token."""
    _, _, _ = train_language_models(language_recipe(), corpus_file, tmp_path / "networks")
    states = {}
    for context in (0, 7):
        request = HeldOutRequest(
            epochs="final", split="sequence", layers="all", points=240, positions=6, context=context
        )
        out = tmp_path / f"out-{context}"
        hidden_states.extract(tmp_path / "networks", corpus_file, out, requests=[request], report=lambda line: None)
        (file,) = out.rglob("*.safetensors")
        states[context] = extraction.load(file, "lstm2")[1].reshape(20, 12, 8)
    np.testing.assert_allclose(states[7][0][:5], states[0][0][7:], rtol=1e-4, atol=1e-5)  # both begin with the text
    assert len(np.unique(states[7][:, 0], axis=0)) > len(np.unique(states[0][:, 0], axis=0))


def test_states_do_not_depend_on_the_windows_in_which_text_is_read(tmp_path, corpus_file, monkeypatch):
    """Neither where a window ends within the context, nor where the last one is shorter."""
    train_language_models(language_recipe(), corpus_file, tmp_path / "networks")
    requests = [
        HeldOutRequest(epochs="final", split="sequence", layers="all", points=240, positions=6, context=7),
        RepeatsRequest(epochs="final", layers=("lstm2",), sequences=12, length=50, starts=(0.1, 0.9), repeats=4),
    ]
    read, found, outputs = {}, {}, LanguageModels.outputs

    def counted(self, state, tokens, *rest):
        read[memory].append(len(tokens))
        return outputs(self, state, tokens, *rest)

    monkeypatch.setattr(LanguageModels, "outputs", counted)
    per_position = 2 * 20 * (8 + 8 + 4 * 8) * 4  # bytes of two networks' states and gates, in 20 columns
    for memory in (hidden_states.MEMORY, 5 * per_position, 1):
        read[memory] = []
        monkeypatch.setattr(hidden_states, "MEMORY", memory)
        out = tmp_path / f"out-{memory}"
        hidden_states.extract(tmp_path / "networks", corpus_file, out, requests=requests, report=lambda line: None)
        found[memory] = {path.parent.name: read_tensors(path)[0] for path in out.rglob("*.safetensors")}
    at_once, in_windows, one_by_one = read
    assert read[at_once][:1] == [7 + 12] and read[in_windows][:4] == [5, 5, 5, 4] and set(read[one_by_one]) == {1}
    for split, tensors in found[at_once].items():
        for name, tensor in tensors.items():
            for memory in (in_windows, one_by_one):
                torch.testing.assert_close(found[memory][split][name], tensor, rtol=1e-5, atol=1e-6)


def test_repeated_sequences_differ_in_their_first_tokens():
    """In a text that repeats itself, places are chosen at which it differs; too few are named."""
    request = RepeatsRequest(epochs="final", layers="all", sequences=6, length=8, starts=(0.5,), repeats=4)
    tokens = torch.tensor([0, 1, 2, 3] * 10 + [0, 2, 1, 3] * 3)
    chosen = hidden_states._distinct_sequences(tokens, request, 5)
    assert chosen.shape == (8, 6) and len(torch.unique(chosen[:5].T, dim=0)) == 6
    with pytest.raises(UserError, match=r"hold 4 sequences of 8 that differ in their first 5 tokens, too few for 6"):
        hidden_states._distinct_sequences(tokens[:40], request, 5)
