"""What runs again when one key of the config or one line of code changes: what depends on it, and nothing else.

A job runs again when its params change, or when one before it runs again. Here the params of all jobs of two studies
are compared; `test_workflow` shows that Snakemake has these jobs with these params, and plans the same for some edits.
"""

import shutil
from copy import deepcopy
from functools import cache

import pytest
import yaml
from cca_dynamics.config.base import as_json
from cca_dynamics.errors import ConfigError
from cca_dynamics.runtime import fingerprints
from cca_dynamics.study import Study, json_schema, on_top_of

from tests.builders import ROOT, changed, docs_generator, jobs_of

SMOKE = yaml.safe_load((ROOT / "studies/smoke.yaml").read_text())
OVERLAYS = {
    "smoke": {"language_training": {"epochs": 6, "checkpoint_every": 3}, "results": {"width": {"filters": 4}}},
    "files": {
        "dataset": {"name": "image_folder", "folder": "images", "train_size": 400, "test_size": 200},
        "network": {"name": "resnet", "channels": [8, 16, 32], "blocks": 1, "multiplier": 0.5},
        "corpus": {"name": "text_folder", "folder": "text", "vocabulary": 100},
        "language_model": {"embedding": 6},
        "results": {
            "stability": {"layer": "block2", "directions": 2},
            "width": {"layer": "block3", "filters": 4},
            "generalization": {"early_layers": ["conv1", "block1"], "late_layers": ["block2", "block3"]},
            "clusters": {"layer": "block3", "network": {"channels": [8, 16, 32]}},
            "grounding": {"layer": "block3"},
            "calibration": {"late_layers": ["block2", "block3"], "neurons": 4},
        },
    },
    "download": {"dataset": {"name": "cifar10", "train_size": None, "test_size": None}},
}
OTHERS = {
    "dataset.name": "fashion_mnist",
    "dataset.train_size": 300,  # still more than results.generalization.train_sizes, else cohorts disappear
    "device": "cuda",
    "networks_per_job": 1,
    "protocol": "protocols/cifar10.yaml",
    "results.generalization.late_layers": ["conv3", "conv5"],
    "results.generalization.train_sizes": [100, 150],
    "results.width.train_size": 150,
    "results.recurrent_sequence.starts": [0.1, 0.5],
    "results.toy_rnn.bias_scales": [0, 1],
    "results.stability.recurrent.early_epoch": 2,
    "results.stability.recurrent.layer": "lstm1",
    "results.calibration.late_layers": ["conv3", "conv5"],
    **{f"results.{result}.layer": "conv3" for result in ("stability", "width", "clusters", "grounding")},
}
"""Other values of keys for which none can be guessed."""
NEVER_ALONE = {"network.name", "corpus.name", "results.clusters.training.learning_rate"}
NEVER_ALONE |= {f"results.{result}.network.name" for result in ("stability", "generalization", "width", "clusters")}
"""Keys that are refused unless others change with them, or always."""
EVERYTHING = "study"
"""The key that names all files."""
OVERRIDDEN = {"training.epochs", "training.evaluate_every"}
"""Keys of the base recipe of which every result of these studies has its own."""


def stages_that_run_again(before: dict, after: dict) -> dict[str, set[str]]:
    """Stage → names of the jobs that are new or have other params, but for those that merely follow from others."""
    other = {job for job in after if job not in before or before[job].params != after[job].params}
    first = {job for job in other if job in before or not other & set(after[job].after)}
    first |= {job for job in after if job in before and set(before[job].after) > set(after[job].after)}
    stages: dict[str, set[str]] = {}
    for stage, name in first:
        stages.setdefault(stage, set()).add(name)
    return stages


def value_at(config: dict, key: str) -> object:
    """The value of a dotted key; of a key that a result inherits, the inherited one; KeyError if there is none."""
    value = config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else {}[part]
    return value


def keys_with_values(config: dict):
    """(key as the documentation has it, its value) for each key that holds a value in a validated config."""
    variants = {block: config[block].get("name") for block in ("dataset", "network", "corpus")}
    for key in docs_generator().keys(json_schema()):
        parts = key.name.split(".")
        if key.variant and variants.get(parts[0], key.variant) != key.variant:
            continue
        try:
            value = value_at(config, key.name)
        except KeyError:
            if len(parts) < 4 or parts[0] != "results":
                continue
            inherited = config[parts[2]] if parts[2] in ("network", "training") else {}
            if parts[3] not in inherited:
                continue
            value = inherited[parts[3]]
        if not isinstance(value, dict):
            yield key, value


def other_values(key, value: object):
    """Values that a key might have instead."""
    if key.name in OTHERS:
        yield OTHERS[key.name]
    enumerated = key.schema.get("enum", []) or [
        option["const"] for option in key.schema.get("anyOf", []) if "const" in option
    ]
    yield from (other for other in enumerated if other != value)
    match value:
        case bool():
            yield not value
        case int() | float():
            yield from (value + 1, value - 1, 2 * value, value // 2, value * 0.9, value / 2, value + 0.1)
        case str():
            yield from ("other", f"{value}x")
        case list():
            items = key.schema.get("items", {}).get("enum", [])
            yield from ([*value, item] for item in items if item not in value)
            yield from (value[:-1], value[1:], [*value[:-1], *(2 * last for last in value[-1:])])
        case None:
            yield from (50, 0.5, "other")


def test_each_key_says_which_stages_run_again_when_it_changes():
    tested, never, wrong = set(), set(), []
    for overlay in OVERLAYS.values():
        base = on_top_of(SMOKE, overlay)
        study = Study(base)
        before = jobs_of(study)
        for key, value in keys_with_values(as_json(study.config)):
            after = next(studies_with_another_value(base, key, value, study), None)
            if after is None:
                never.add(key.name)
                continue
            tested.add(key.name)
            jobs = jobs_of(after)
            if key.name == EVERYTHING:
                assert not set(jobs) & set(before)
                continue
            again = stages_that_run_again(before, jobs)
            expected = set() if key.name in OVERRIDDEN else set(key.stages)
            if not expected <= set(again) <= following(expected) or not owned(key.name, again, after):
                wrong.append(f"{key.name} ({value}): {', '.join(expected) or 'none'} expected, but there are {again}")
    assert not wrong, "\n".join(wrong)
    assert never - tested == NEVER_ALONE


def studies_with_another_value(base: dict, key, value: object, before: Study):
    """Studies in which one key has another value than before."""
    for other in other_values(key, value):
        try:
            study = Study(changed(deepcopy(base), key.name, other))
        except ConfigError:
            continue
        if study.config != before.config:
            yield study


def following(stages: set[str]) -> set[str]:
    """These stages, and those that read the networks they make again: their params may name the same key."""
    return stages | ({"activations", "ablation"} if "train" in stages else set())


def owned(key: str, again: dict[str, set[str]], study: Study) -> bool:
    """Whether all jobs that run again are of the result that a key belongs to."""
    _, result, *_ = *key.split("."), "", ""
    if result not in study.results:
        return True
    cohorts = {cohort.name for cohort in study.cohorts_of(result)}
    names = {name.split("/")[1] for jobs in again.values() for name in jobs}
    return names <= {result, *cohorts}


@cache
def before_edits() -> dict:
    """The jobs of the smoke study."""
    return jobs_of(Study(SMOKE))


MODULES: dict[tuple[str, bytes], fingerprints._Module] = {}
"""(name, text) → each module of the package that a test has read."""


def read_once(name: str) -> fingerprints._Module:
    """A module as `fingerprints` reads it, from the text that it has now; most tests edit one of them."""
    path = fingerprints.PACKAGE.joinpath(*name.split(".")) if name else fingerprints.PACKAGE
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = file.read_bytes() if file.exists() else b""
    if (name, text) not in MODULES:
        MODULES[name, text] = fingerprints._Module(name)
    return MODULES[name, text]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package that a test may edit; the fingerprints are those of the copy."""
    before_edits()
    fingerprints.forget()
    monkeypatch.setattr(fingerprints, "_module", cache(read_once))
    folder = shutil.copytree(fingerprints.PACKAGE, tmp_path / "cca_dynamics")
    monkeypatch.setattr(fingerprints, "PACKAGE", folder)
    yield folder
    fingerprints.forget()


CLASSIFIERS = {"stability/0-1", "generalizing/0-1", "memorizing/0-1", "width-0.5/0-1", "width-1/0-1", "width-2/0-1"}
CLASSIFIERS |= {f"{group}-{size}/0-1" for group in ("generalizing", "memorizing") for size in (100, 200)}
CLASSIFIERS |= {"sweep/0-9"}
MODELS = {"lstm/0-1", "lstm-deeper/0-1"}
RESULTS = set(Study(SMOKE).results)
COSINE = {"width", "generalization", "toy_rnn", "recurrent_training", "recurrent_sequence", "invariance"}
PAPERS_CURVES = {"width", "generalization", "recurrent_training"}
EDITS = {
    "normalisation of images": (
        *("data/datasets.py", "torch.tensor(255.0)", "torch.tensor(256.0)"),
        {"train": CLASSIFIERS, "activations": CLASSIFIERS, "ablation": {"sweep/0-9"}},
    ),
    "generator of signals": ("data/datasets.py", ".seed = options.seed", ".seed = 1", {"dataset": {"dataset"}}),
    "another dataset": ("data/datasets.py", "np.floor(shares)", "np.ceil(shares)", {}),
    "update of SGD": (
        "training/optimizers.py",
        "value=-1)\n\n\nclass Adam",
        "value=-2)\n\n\nclass Adam",
        {"train": CLASSIFIERS},
    ),
    "update of Adam": ("training/optimizers.py", "lerp_(gradients, 0.1)", "lerp_(gradients, 0.2)", {"train": MODELS}),
    "a network of another study": ("networks/architectures.py", "class ResNet(", "class ResNet(object, ", {}),
    "initial weights of language models": (
        "networks/lstm.py",
        "def glorot(",
        "@cache\ndef glorot(",
        {"train": MODELS, "activations": MODELS},
    ),
    "a log line of training": ("training/run.py", "diverged in step", "went wrong in step", {}),
    "the words of an error": ("errors.py", "{path}", "the file {path}", {}),
    "ablation": ("representations/ablation.py", "np.linspace(0, 1", "np.linspace(0, 0.9", {"ablation": {"sweep/0-9"}}),
    "a kernel": (
        *("similarity/kernels.py", "def pwcca_kernel(", "@cache\ndef pwcca_kernel("),
        {"compute": RESULTS - {"stability"}},
    ),
    "a control measure": (
        *("similarity/baselines.py", "def cosine(", "@cache\ndef cosine("),
        {"compute": COSINE},
    ),
    "a measure of another study": (
        "similarity/geometry.py",
        "def mutual_neighbours(",
        "@cache\ndef mutual_neighbours(",
        {},
    ),
    "note on networks left out": (
        "results/tables.py",
        "because diverged",
        "as diverged",
        {"claims": RESULTS, "plot": RESULTS},
    ),
    "rows of networks left out": ("results/inputs.py", "float(index)", "float(index + 1)", {"compute": RESULTS}),
    "level of all tests": ("results/claims.py", "ALPHA = 0.05", "ALPHA = 0.01", {"claims": RESULTS}),
    "a value of the paper": (
        *("results/published.csv", "0.47,0.02", "0.48,0.02"),
        {"claims": PAPERS_CURVES, "plot": PAPERS_CURVES},
    ),
    "statement of a claim": ("results/width.py", "Wider networks", "Wide networks", {"claims": {"width"}}),
    "colour of figures": ("results/figures.py", '"#0072B2"', '"#0072B3"', {"plot": RESULTS}),
    "a docstring": ("similarity/cca.py", "Args:", "Arguments:", {}),
    "a comment": ("training/classifiers.py", "\n\n\n", "\n\n\n# A comment.\n", {}),
    "a description of a key": ("config/models.py", "Number of training signals", "Signals", {}),
    "a description of an option": ("results/stability.py", "Epochs between checkpoints", "Epochs between", {}),
    "the command line": ("cli.py", "INTERRUPTED = 75", "INTERRUPTED = 76", {}),
    "the estimate of costs": ("cost.py", "CALIBRATION = 20.0", "CALIBRATION = 2.0", {}),
}


@pytest.mark.parametrize(("file", "old", "new", "expected"), EDITS.values(), ids=EDITS)
def test_an_edit_makes_again_what_depends_on_it(package, file, old, new, expected):
    path = package / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    fingerprints.forget()
    again = stages_that_run_again(before_edits(), jobs_of(Study(SMOKE)))
    assert {stage: {name.removeprefix("smoke/") for name in names} for stage, names in again.items()} == expected
