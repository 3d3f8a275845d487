"""What all results have in common: claims that say where they come from, and settings that cannot be tested."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from cca_dynamics import results, similarity
from cca_dynamics.config.models import StageOptions
from cca_dynamics.results import clustering
from cca_dynamics.results.registry import RESULTS
from cca_dynamics.results.tables import distance_table
from cca_dynamics.study import Study

from tests.builders import changed
from tests.made_up_tables import made_up_table, options_of

OBSTACLES = {
    "results.width.multipliers": [0.25, 0.5, 1],
    "results.width.networks": 2,
    "results.stability.networks": 2,
    "results.stability.checkpoint_every": 20,
    "results.generalization.networks": 3,
    "results.generalization.data_size_networks": 2,
    "results.generalization.late_layers": ["conv2", "conv3", "conv4", "conv5"],
    "results.clusters.most_clusters": 4,
    "results.clusters.learning_rates": [0.01, 0.03, 0.1, 0.3],
    "results.toy_noise.draws": 2,
    "results.toy_rnn.networks": 2,
    "language_model.networks": 2,
    "results.recurrent_training.deeper_networks": 2,
}


@pytest.mark.parametrize("key", OBSTACLES)
def test_settings_that_no_data_could_reproduce_are_named_beforehand(default_config, key):
    def named(config) -> set[str]:
        study = Study(config)
        return {obstacle.key for result in study.targets for obstacle in study.obstacles(result)}

    default_config["results"]["generalization"]["networks"] = 4
    assert named(default_config) == set()
    expected = {
        "results.stability.checkpoint_every": "results.stability.early_epoch",
        "results.generalization.late_layers": "results.generalization.networks",
    }.get(key, key)
    assert named(changed(default_config, key, OBSTACLES[key])) == {expected}


@pytest.mark.parametrize("result", list(RESULTS))
def calls_without_device(source: str) -> list[str]:
    """Calls in a module's source that leave it to a function of `similarity` to choose the CPU, as "line: name"."""
    tree = ast.parse(source)
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {
        alias.asname or alias.name: getattr(similarity, alias.name)
        for node in imported
        if node.module == "cca_dynamics.similarity"
        for alias in node.names
    }
    names["distance_table"] = distance_table
    computing = {
        name for name, value in names.items() if callable(value) and "device" in inspect.signature(value).parameters
    }
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        of_measure = isinstance(call.func, ast.Attribute) and name == "function"  # MEASURES[...].function(x, y)
        on_device = any(keyword.arg in ("device", None) for keyword in call.keywords)  # None: **options
        by_position = any(isinstance(a, ast.Attribute) and a.attr == "device" for a in call.args)
        by_position |= any(isinstance(a, ast.Name) and a.id == "device" for a in call.args)
        if (name in computing or of_measure) and not on_device and not by_position:
            found.append(f"{call.lineno}: {name}")
    return found


@pytest.mark.parametrize("path", sorted(Path(results.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_every_comparison_is_computed_on_the_device_that_the_job_was_given(path):
    assert calls_without_device(path.read_text()) == []


def test_a_comparison_without_device_is_found():
    source = (
        "from cca_dynamics.similarity import cca, factorize as f\nf(x)\nf(x, device=d)\ncca(x, y, weights=w)\nlen(x)"
    )
    assert calls_without_device(source) == ["2: f", "4: cca"]
    assert calls_without_device("MEASURES[name].function(x, y)") == ["1: function"]


@pytest.mark.parametrize("result", list(RESULTS))
def test_every_claim_says_where_it_is_made(default_config, result, monkeypatch):
    for name, count in (("PERMUTATIONS", 49), ("REFERENCES", 9), ("SUBSAMPLES", 5)):
        monkeypatch.setattr(clustering, name, count)
    options = options_of(default_config, result)
    claims = RESULTS[result].claims(made_up_table(result, options), StageOptions(options, "claims", seed=0))
    for claim in claims:
        assert claim.claim.startswith(f"{result}.") and claim.statement.endswith(".") and claim.statistic
        of_paper = claim.source.startswith(("section", "appendix", "figure", "ours", "caption"))
        assert of_paper or re.match(r"\w+.* (19|20)\d\d\b", claim.source), (claim.claim, claim.source)
    assert len({claim.claim for claim in claims}) == len(claims)
