"""Verdicts of `calibration` follow the data, and its ways of comparing are what they say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from cca_dynamics.config.models import StageOptions
from cca_dynamics.errors import ConfigError
from cca_dynamics.results import calibration
from cca_dynamics.results.claims import INCONCLUSIVE, NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, REVERSED
from cca_dynamics.study import Study

from tests.builders import changed
from tests.made_up_tables import calibration_table


@pytest.fixture
def options(default_config):
    return Study(default_config).options("calibration")


def verdicts(table: pd.DataFrame, options) -> dict[str, str]:
    """Name of each claim without that of its result → its verdict."""
    claims = calibration.claims(table, StageOptions(options, "claims", seed=0))
    return {claim.claim.partition(".")[2]: claim.verdict for claim in claims}


def test_effects_that_chance_does_not_make_are_reproduced(options):
    assert set(verdicts(calibration_table(), options).values()) == {REPRODUCED}


@pytest.mark.parametrize("way", ["calibrated", "debiased_cka", "equal_neurons"])
def test_each_way_is_judged_by_its_own_distances(options, way):
    flat = verdicts(calibration_table(**{way: (0.4, 0.4, 1.0)}), options)
    assert {claim for claim, verdict in flat.items() if verdict != REPRODUCED} == {f"labels_{way}", f"width_{way}"}
    turned = verdicts(calibration_table(**{way: (0.5, 0.4, 1.6)}), options)
    assert {turned[f"labels_{way}"], turned[f"width_{way}"]} == {REVERSED}


def test_a_fall_that_chance_shares_is_explained_by_it(options):
    """Chance falls by the factor by which raw distances do, in networks of other widths but not of other labels."""
    found = verdicts(calibration_table(chance=(0.8, 0.8, 0.5)), options)
    assert found["width_chance"] == REVERSED and found["labels_chance"] == REPRODUCED


def test_shares_add_up_exactly(options):
    """log(raw ratio) is the sum of log(chance ratio) and of log(ratio of the distances as shares of chance)."""
    table = calibration_table(raw=(0.2, 0.4, 0.5), chance=(0.8, 0.8, 0.5**0.25), noise=0)
    claims = calibration.claims(table, StageOptions(options, "claims", seed=0))
    (share,) = (claim.value for claim in claims if claim.claim == "calibration.width_chance")
    assert share == pytest.approx((options.explained - 0.25) * np.log(2))


def test_two_networks_give_no_verdict(options):
    assert set(verdicts(calibration_table(networks=2), options).values()) == {NOT_TESTABLE}


def test_no_fall_leaves_nothing_to_explain(options):
    found = verdicts(calibration_table(raw=(0.2, 0.4, 1.0), chance=(0.8, 0.8, 1.0)), options)["width_chance"]
    assert found in (INCONCLUSIVE, NOT_REPRODUCED)


def test_unrelated_layers_are_at_distance_1_by_calibration_whatever_their_width(default_config, rng):
    """Raw distances of unrelated layers fall with width, calibrated ones do not."""
    default_config["results"]["calibration"] |= {"points": 300, "draws": 3}
    options = StageOptions(Study(default_config).options("calibration"), "compute", seed=0)

    class Networks:
        """Unrelated layers of any width, in place of trained networks."""

        device = "cpu"

        def __init__(self, width):
            self.width = width

        def checkpoints(self, cohort):
            return [(0, 0.0)]

        def representations(self, cohort, layer, step, split):
            return rng.normal(size=(4, 400, self.width))

    means = {
        width: calibration._in_all_ways(Networks(width), options, "any", "conv5").groupby("way")["value"].mean()
        for width in (16, 64)
    }
    assert means[16]["raw"] - means[64]["raw"] > 0.15
    for width in (16, 64):
        assert means[width]["calibrated"] == pytest.approx(1, abs=0.01)
        assert means[width]["debiased_cka"] == pytest.approx(1, abs=0.02)
        assert means[width][calibration.CHANCE] < means[width]["raw"]
    assert means[16]["equal_neurons"] == pytest.approx(means[16]["raw"])  # all its neurons, in every draw
    assert means[64]["equal_neurons"] == pytest.approx(means[16]["raw"], abs=0.02)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("neurons", 33, "33 neurons are more than the 32 of the narrowest layer"),
        ("points", 256, "256 data points are too few for layers of 128 neurons"),
        ("late_layers", ["softmax"], "softmax is not compared"),
        ("late_layers", ["conv9"], "the network has no conv9"),
    ],
)
def test_bad_options_are_refused_by_key(default_config, key, value, message):
    with pytest.raises(ConfigError, match=message) as found:
        Study(changed(default_config, f"results.calibration.{key}", value) | {"targets": ["calibration"]})
    assert found.value.key == f"results.calibration.{key}"


def test_distances_of_one_network_do_not_count_without_it(options):
    """The jackknife leaves out networks, not pairs: a network that is far from all others widens the interval."""
    table = calibration_table(noise=0)
    far = table["group"].eq("memorizing") & table["way"].eq("calibrated") & np.isin(table["network_a"], [0])
    table.loc[far, "value"] += 0.2
    estimate = calibration.Distances(table[table["figure"] == "3"]).estimate(
        lambda mean: mean("memorizing", "conv5", "calibrated")
    )
    assert estimate.without[5] < estimate.value < estimate.without[6]  # networks are numbered generalizing first
