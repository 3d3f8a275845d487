"""What no data could reproduce under a study's settings is said beforehand, by the key to change."""

import pytest
from cca_dynamics.study import Study

from tests.builders import changed

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
