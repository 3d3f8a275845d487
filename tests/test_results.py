"""What all results have in common: claims that say where they come from, and settings that cannot be tested."""

import pytest
from cca_dynamics.config.models import StageOptions
from cca_dynamics.results import clustering
from cca_dynamics.results.registry import RESULTS
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
def test_every_claim_says_where_it_is_made(default_config, result, monkeypatch):
    for name, count in (("PERMUTATIONS", 49), ("REFERENCES", 9), ("SUBSAMPLES", 5)):
        monkeypatch.setattr(clustering, name, count)
    options = options_of(default_config, result)
    claims = RESULTS[result].claims(made_up_table(result, options), StageOptions(options, "claims", seed=0))
    for claim in claims:
        assert claim.claim.startswith(f"{result}.") and claim.statement.endswith(".") and claim.statistic
        assert claim.source.startswith(("section", "appendix", "figure", "ours", "caption", "Ding")), (
            claim.claim,
            claim.source,
        )
    assert len({claim.claim for claim in claims}) == len(claims)
