"""Files and names that mean harm, or nothing: nothing of them is executed, and each is refused in one line."""

import ast
import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from cca_dynamics import cli
from cca_dynamics.config.models import TextFolder
from cca_dynamics.data import corpora, datasets, images
from cca_dynamics.errors import ConfigError, DamagedFile, UserError
from cca_dynamics.results import claims
from cca_dynamics.runtime.fingerprints import PACKAGE
from cca_dynamics.runtime.storage import read_metadata, read_tensors, write_tensors
from cca_dynamics.study import Study, read_config
from cca_dynamics.training import checkpoints
from cca_dynamics.training.resume import Unfinished
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.builders import HOSTILE, ROOT, Payload, copy_workflow, snakemake


def test_the_package_never_unpickles():
    """No pickle, no torch.load of more than tensors, no unsafe YAML, no shell: not even where nobody would look."""
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not forbidden & {name.partition(".")[0] for name in names}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("pd.read_pickle", "yaml.load", "eval", "exec", "os.system"), path
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert called != "torch.load" or keywords.get("weights_only") == "True", path
                assert called != "np.load" or keywords.get("allow_pickle") == "False", path
                assert keywords.get("allow_pickle", "False") == "False", path
                assert keywords.get("shell", "False") == "False", path


READERS = {
    "tensors": lambda path: read_tensors(path),
    "metadata": lambda path: read_metadata(path),
    "dataset": lambda path: datasets.load(path),
    "corpus": lambda path: corpora.load(path),
    "recipe": lambda path: checkpoints.load_recipe(path.parent),
    "claims": lambda path: claims.read(path),
    "state": lambda path: Unfinished(path.parent).load(),
    "image": lambda path: images._decode(str(path), 8),
    "config": lambda path: read_config([path], ROOT / "config.yaml"),
    "text": lambda path: corpora.text_folder(TextFolder(folder=str(path.parent), train=path.name, valid=path.name)),
    "table": lambda path: cli.main(
        ["claims", "width", "--options", "{}", "--seed", "0", "--table", str(path), "--out", str(path.parent / "o.csv")]
    ),
}


def place(folder, content: bytes):
    """The same content wherever a reader looks."""
    for name in ("file", "recipe.json", "state.safetensors"):
        (folder / name).write_bytes(content)
    return folder / "file"


def refused(reader, path) -> None:
    """Reading ends well or in a one-line error; anything else is a bug."""
    try:
        READERS[reader](path)
    except (UserError, OSError) as problem:  # what the command line prints as one line
        assert str(problem).strip()


@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_in_place_of_a_file_is_not_executed(tmp_path, reader):
    refused(reader, place(tmp_path, pickle.dumps(Payload(tmp_path / "owned"))))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_random_bytes_never_crash_a_reader(tmp_path, reader, content):
    refused(reader, place(tmp_path, content))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_tensor_files_are_found_out(tmp_path, data):
    """Any change of any byte, any truncation: refused, or the tensors and metadata are what they were."""
    import torch

    path = tmp_path / "t.safetensors"
    write_tensors(path, {"x": torch.arange(12.0).view(3, 4), "y": torch.arange(5)}, step=3)
    good, metadata = read_tensors(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    try:
        tensors, metadata_now = read_tensors(path)
    except DamagedFile as problem:
        assert "t.safetensors" in str(problem) and "run snakemake again" in str(problem)
    else:
        for name, tensor in tensors.items():
            assert torch.equal(tensor, good[name]) and tensor.dtype == good[name].dtype
        assert metadata_now == metadata


@pytest.mark.parametrize("name", [*HOSTILE, "..", ".", "", "/etc", "a/b", "-rf", "a b", "x" * 65, "a\nb", "a\x00b"])
def test_a_study_s_name_stays_inside_its_folder(default_config, name):
    with pytest.raises(ConfigError, match="config key study"):
        Study(default_config | {"study": name})


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_streams_that_lack_characters_get_plain_ones(encoding):
    """Once, a run whose jobs were all done ended with status 1 at the first ✓."""
    plain = {"✓": "+", "·": "|", "…": "...", "ρ": "rho", "é": "e", "漢": "?", "−": "-"}

    def printed(*command: str) -> str:
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        run = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True)
        assert run.returncode == 0, run.stderr
        return run.stdout.decode(encoding)

    def expected(text: str) -> str:
        return "".join(c if c.encode(encoding, "ignore") else plain[c] for c in text)

    table = printed("-m", "cca_dynamics.cli", "verdicts", "figures/reference/mnist1d/claims.csv")
    assert expected("✓ reproduced") in table and "\\u" not in table
    code = "from cca_dynamics.runtime.streams import print_plainly; print_plainly(); print(%r)"
    assert printed("-c", code % "a · b … ρ é 漢 −1").strip() == expected("a · b … ρ é 漢 −1")


def test_names_in_the_config_never_reach_a_shell(tmp_path):
    """Folders and files that are called like commands, through the real workflow."""
    from PIL import Image

    folder = copy_workflow(tmp_path / "new")
    name = " ".join(HOSTILE).replace("/", "") + " {wildcards} $HOME *"
    rng = np.random.default_rng(0)
    for split, label, i in ((s, c, i) for s in ("train", "test") for c in ("$(touch owned)", "b") for i in range(30)):
        target = folder / name / split / label / f"{i}; touch owned.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)).save(target)
    (folder / name / f"{name}.txt").write_text("a b c\n" * 10_000)
    overlay = {
        "study": "hostile",
        "dataset": {
            "name": "image_folder",
            "folder": name,
            "cache": f"cache {name}",
            "train_size": 60,
            "test_size": 50,
        },
        "corpus": {"name": "text_folder", "folder": name, "train": f"{name}.txt", "valid": f"{name}.txt"},
    }
    (folder / "studies/hostile.yaml").write_text(yaml.safe_dump(overlay))
    outputs = [f"results/hostile/data/{kind}.safetensors" for kind in ("dataset", "corpus")]
    arguments = ("--configfile", "studies/smoke.yaml", "studies/hostile.yaml", "--cores", "2", "--", *outputs)
    run = snakemake(folder, *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    assert not list(tmp_path.rglob("owned")) and all((folder / output).exists() for output in outputs)
    assert json.loads((folder / "results/hostile/data/corpus.json").read_text())["vocabulary"] == 5


def test_archives_and_downloads_are_left_to_a_library_that_checks_them():
    """torchvision checks the archive's MD5 before unpacking; this project unpacks and downloads nothing itself."""
    from torchvision.datasets import CIFAR10

    assert CIFAR10.url.startswith("https://") and re.fullmatch("[0-9a-f]{32}", CIFAR10.tgz_md5)
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text()
        assert not re.search(r"\b(urlopen|urlretrieve|extractall|unpack_archive|import (tarfile|requests))", source)
        assert "import zipfile" not in source or (
            path.name == "archive.py" and ".extract" not in source
        )  # it writes one
