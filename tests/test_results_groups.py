"""Verdicts of `generalization` and `width` follow the data: made-up tables in which each claim holds, and does not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from cca_dynamics.config.models import StageOptions
from cca_dynamics.errors import ConfigError
from cca_dynamics.results import generalization, width
from cca_dynamics.results.claims import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    REVERSED,
)
from cca_dynamics.results.published import combined, published, published_value
from cca_dynamics.results.tables import tidy
from cca_dynamics.study import Study

from tests.builders import changed

LAYERS = ["conv1", "conv2", "conv3", "conv4", "conv5", "softmax"]
NEURONS = [32, 32, 64, 64, 128]
MEASURES = ("pwcca", "pwcca_thresholded", "mean_cca", "svcca", "cosine", "euclidean")


@pytest.fixture
def options(default_config):
    study = Study(default_config)
    return {name: study.options(name) for name in ("generalization", "width")}


def claims_of(module, table, options) -> dict:
    """Name of each claim without that of its result → the claim."""
    claims = module.claims(table, StageOptions(options, "claims", seed=0))
    return {claim.claim.partition(".")[2]: claim for claim in claims}


def verdicts(module, table, options) -> dict[str, str]:
    return {name: claim.verdict for name, claim in claims_of(module, table, options).items()}


# Generalizing against memorizing networks -----------------------------------------------------------------------------


def pairs_of_groups(networks: int, level, noise: float, rng, **columns: object) -> pd.DataFrame:
    """Distances between two groups of so many networks, `level` of a group's name plus noise, and more columns."""
    a, b = np.nonzero(~np.eye(2 * networks, dtype=bool))
    kind = np.repeat(["generalizing", "memorizing"], networks)
    group = np.where(kind[a] == kind[b], kind[a], "inter")
    levels = {name: level(name) for name in np.unique(group)}
    value = np.abs(np.array([levels[name] for name in group]) + noise * rng.normal(size=len(a)))
    return pd.DataFrame({"group": group, "network_a": a, "network_b": b, "value": value, "floor": 0.9, **columns})


def generalization_table(
    means: dict[str, list[float]],
    networks: int = 5,
    noise: float = 0.004,
    gaps: dict[int, float] | None = None,
    accuracy: float = 1.0,
) -> pd.DataFrame:
    """Distances that are a mean per group and layer (and measure and split) plus a little noise.

    Args:
        means: "group" or "group/measure/split" → mean at each layer.
        networks: of each kind.
        noise: standard deviation.
        gaps: training examples → inter minus memorizing distance.
        accuracy: train accuracy of the networks that see 500 examples.
    """
    rng = np.random.default_rng(0)
    tables = []
    for split in ("train", "test"):
        for measure in MEASURES:
            for index, layer in enumerate(LAYERS):

                def level(group, measure=measure, split=split, index=index):
                    return means.get(f"{group}/{measure}/{split}", means[group])[index]

                columns = {"quantity": "distance", "measure": measure, "split": split}
                columns |= {"layer": layer, "layer_index": index}
                tables.append(pairs_of_groups(networks, level, noise, rng, **columns))
    gaps = {500: 0.13, 1000: 0.12, 2000: 0.08, 4000: 0.05} if gaps is None else gaps
    for examples, gap in gaps.items():
        few = networks if examples == max(gaps) else 3
        for index, (layer, neurons) in enumerate(zip(LAYERS, NEURONS, strict=False)):
            columns = {"quantity": "distance_by_size", "measure": "pwcca", "split": "train", "layer": layer}
            columns |= {"layer_index": index, "examples": examples, "neurons": neurons, "n": 500}
            levels = {"generalizing": 0.4, "memorizing": 0.4, "inter": 0.4 + gap}
            tables.append(pairs_of_groups(few, levels.get, noise, rng, **columns))
        for quantity, value in (("train_accuracy", 1.0), ("test_accuracy", 0.9), ("loss", 0.0)):
            value = accuracy if quantity == "train_accuracy" and examples == 500 else value
            rows = {"quantity": quantity, "network": range(few), "value": value, "examples": examples}
            tables += [pd.DataFrame({**rows, "group": group}) for group in ("generalizing", "memorizing")]
    return tidy(tables)


AS_PUBLISHED = {
    "generalizing": [0.04, 0.18, 0.26, 0.34, 0.30, 0.0],
    "memorizing": [0.04, 0.19, 0.38, 0.58, 0.63, 0.0],
    "inter": [0.04, 0.20, 0.38, 0.59, 0.64, 0.9],
    "generalizing/mean_cca/train": [0.1, 0.2, 0.3, 0.4, 0.5, 0.0],
    "memorizing/svcca/train": [0.3, 0.3, 0.4, 0.5, 0.5, 0.0],
    "memorizing/mean_cca/train": [0.3, 0.3, 0.4, 0.5, 0.5, 0.0],
    "memorizing/pwcca/test": [0.04, 0.19, 0.38, 0.58, 0.63, 0.8],
    **{
        f"{group}/{raw}/train": [0.3] * 6 for group in ("generalizing", "memorizing") for raw in ("cosine", "euclidean")
    },
}


def test_the_published_pattern_is_reproduced(options):
    claims = claims_of(generalization, generalization_table(AS_PUBLISHED), options["generalization"])
    assert {claim.verdict for claim in claims.values()} == {REPRODUCED}, claims
    assert all(claim.source for claim in claims.values())
    assert claims["late_layers"].paper_value == pytest.approx(0.1773, abs=1e-3)
    assert claims["memorizing_as_inter"].paper_value == pytest.approx(0.019)
    assert claims["softmax_inter"].paper_value == 0.355 and claims["softmax_inter"].paper_error == 0.02
    assert "0.90, is to be expected" in claims["softmax_inter"].statistic


@pytest.mark.parametrize(
    ("key", "change", "claim", "verdict"),
    [
        ("memorizing", [0.04, 0.40, 0.38, 0.58, 0.63, 0.0], "early_layers", NOT_REPRODUCED),
        ("memorizing", [0.12, 0.19, 0.38, 0.58, 0.63, 0.0], "early_layers", NOT_REPRODUCED),  # in one layer alone
        ("memorizing", [0.04, 0.40, 0.38, 0.58, 0.63, 0.0], "early_gap", NOT_REPRODUCED),
        ("inter", [0.04, 0.40, 0.38, 0.59, 0.64, 0.9], "early_gap", REPRODUCED),
        ("memorizing", [0.04, 0.19, 0.26, 0.34, 0.63, 0.0], "late_layers", INCONCLUSIVE),  # in one layer alone
        ("memorizing", [0.04, 0.19, 0.26, 0.20, 0.20, 0.0], "late_layers", REVERSED),
        ("memorizing", [0.04, 0.19, 0.26, 0.20, 0.63, 0.0], "late_layers", NOT_REPRODUCED),
        ("memorizing/pwcca/test", [0.04, 0.19, 0.26, 0.20, 0.63, 0.8], "late_layers_test", NOT_REPRODUCED),
        ("memorizing/pwcca_thresholded/train", [0.0, 0.2, 0.2, 0.2, 0.2, 0.0], "late_layers_thresholded", REVERSED),
        ("inter", [0.04, 0.20, 0.38, 0.75, 0.80, 0.9], "memorizing_as_inter", NOT_REPRODUCED),
        ("inter", [0.04, 0.20, 0.38, 0.52, 0.73, 0.9], "memorizing_as_inter", NOT_REPRODUCED),  # though not on average
        ("inter/pwcca/test", [0.04, 0.20, 0.38, 0.58, 0.80, 0.9], "memorizing_as_inter_test", NOT_REPRODUCED),
        (
            *("inter/pwcca_thresholded/train", [0.04, 0.20, 0.38, 0.58, 0.80, 0.9]),
            *("memorizing_as_inter_thresholded", NOT_REPRODUCED),
        ),
        ("memorizing", [0.04, 0.19, 0.38, 0.58, 0.63, 0.5], "softmax_train", NOT_REPRODUCED),
        ("inter", [0.04, 0.20, 0.38, 0.59, 0.64, 0.01], "softmax_inter", NOT_REPRODUCED),
        ("generalizing/pwcca/test", [0.04, 0.18, 0.26, 0.34, 0.30, 0.9], "softmax_test", REVERSED),
        ("generalizing/pwcca/test", [0.04, 0.18, 0.26, 0.34, 0.30, 0.6], "softmax_test", REPRODUCED),
        ("generalizing/pwcca/test", [0.04, 0.18, 0.26, 0.34, 0.30, 0.6], "softmax_test_bound", REVERSED),
        ("generalizing", [0.04, 0.18, 0.26, 0.30, 0.36, 0.0], "closer_again", REVERSED),
        ("generalizing/mean_cca/train", [0.1, 0.2, 0.3, 0.5, 0.2, 0.0], "mean_cca_misses_it", REVERSED),
        ("generalizing/mean_cca/train", [0.1, 0.2, 0.3, 0.5, 0.48, 0.0], "mean_cca_misses_it", NOT_REPRODUCED),
        ("generalizing/mean_cca/train", [0.1, 0.2, 0.3, 0.5, 0.5, 0.0], "mean_cca_misses_it", INCONCLUSIVE),
        ("generalizing", [0.04, 0.18, 0.26, 0.30, 0.36, 0.0], "mean_cca_misses_it", NOT_TESTABLE),
        ("memorizing/svcca/train", [0.0, 0.0, 0.3, 0.5, 0.48, 0.0], "others_overestimate", NOT_REPRODUCED),
        ("memorizing/euclidean/train", [0.3, 0.3, 0.3, 0.5, 0.5, 0.3], "raw_miss_it_euclidean", NOT_REPRODUCED),
        ("memorizing/euclidean/train", [0.3, 0.3, 0.3, 0.5, 0.5, 0.3], "raw_miss_it_cosine", REPRODUCED),
        ("memorizing/cosine/train", [0.3, 0.3, 0.3, 0.2, 0.2, 0.3], "raw_miss_it_cosine", REVERSED),
        ("memorizing", [0.04, 0.19, 0.26, 0.20, 0.20, 0.0], "raw_miss_it_cosine", NOT_TESTABLE),  # nothing to miss
    ],
)
def test_another_pattern_is_not(options, key, change, claim, verdict):
    table = generalization_table({**AS_PUBLISHED, key: change})
    assert verdicts(generalization, table, options["generalization"])[claim] == verdict


def test_no_claim_about_groups_is_tested_unless_both_fit(options):
    table = generalization_table(AS_PUBLISHED)
    full = table["quantity"].eq("train_accuracy") & table["examples"].eq(4000)
    table.loc[full.idxmax(), "value"] = 0.97
    claims = claims_of(generalization, table, options["generalization"])
    assert claims["fitted"].verdict == claims["sizes_fitted"].verdict == NOT_REPRODUCED
    rest = {name: claim for name, claim in claims.items() if not name.endswith("fitted")}
    assert {claim.verdict for claim in rest.values()} == {NOT_TESTABLE}
    assert "fitted is not reproduced" in claims["softmax_test"].statistic


def test_two_networks_settle_nothing(options):
    few = options["generalization"].with_changes({"networks": 2})
    result = verdicts(generalization, generalization_table(AS_PUBLISHED, networks=2), few)
    assert {verdict for claim, verdict in result.items() if not claim.endswith("fitted")} == {NOT_TESTABLE}


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ({500: 0.15, 1000: 0.12, 2000: 0.08, 4000: 0.05}, REPRODUCED),
        ({500: 0.1, 1000: 0.1, 2000: 0.1, 4000: 0.1}, INCONCLUSIVE),
        ({500: 0.05, 1000: 0.08, 2000: 0.12, 4000: 0.15}, REVERSED),
    ],
)
def test_the_gap_falls_with_the_training_examples_or_not(options, gaps, verdict):
    table = generalization_table(AS_PUBLISHED, gaps=gaps)
    claim = claims_of(generalization, table, options["generalization"])["data_size"]
    assert claim.verdict == verdict
    slope = np.polyfit(np.log2(list(gaps)), list(gaps.values()), 1)[0]
    assert claim.value == pytest.approx(-slope, abs=0.005)
    per_unit, estimates = generalization.gaps_by_size(table, "conv5")
    assert per_unit == pytest.approx(np.array(list(gaps)) / 128)
    assert [estimate.value for estimate in estimates] == pytest.approx(list(gaps.values()), abs=0.01)


def test_a_size_that_is_not_fitted_leaves_the_other_claims_alone(options):
    table = generalization_table(AS_PUBLISHED, accuracy=0.9)
    result = verdicts(generalization, table, options["generalization"])
    assert result["data_size"] == NOT_TESTABLE and result["sizes_fitted"] == NOT_REPRODUCED
    assert result["late_layers"] == result["fitted"] == REPRODUCED


def test_without_training_sizes_there_is_no_such_claim_and_no_such_panel(options):
    import matplotlib.pyplot as plt

    without = options["generalization"]
    table = generalization_table(AS_PUBLISHED, gaps={4000: 0.1})
    table = table[table["quantity"] != "distance_by_size"]
    assert not {"data_size", "sizes_fitted"} & set(verdicts(generalization, table, without))
    figure = generalization.plot(table, pd.DataFrame(), StageOptions(without, "plot"))
    assert len([axis for axis in figure.axes if axis.get_visible()]) == len(MEASURES) + 1
    plt.close(figure)


def test_training_sizes_that_are_too_small_are_refused_and_those_too_large_left_out(default_config):
    message = "config key results.generalization.train_sizes: 200 .* twice the units of a layer; give 257 or more"
    with pytest.raises(ConfigError, match=message):
        Study(changed(default_config, "results.generalization.train_sizes", [200]))
    study = Study(changed(default_config, "results.generalization.train_sizes", [500, 4000, 8000]))
    names = [cohort.name for cohort in study.cohorts_of("generalization")]
    assert names == ["generalizing", "memorizing", "generalizing-500", "memorizing-500"]
    recipe = study.cohorts["memorizing-500"].recipe("0-2", 0)
    assert recipe.examples == 500 and recipe.labels == "permuted"


# Width ----------------------------------------------------------------------------------------------------------------

WIDTHS = [0.25, 0.375, 0.5, 0.75, 1]


def width_table(distances, untrained, accuracies, networks=5, raw=None, *, within=0.0, fitted=1.0, widths=WIDTHS):
    """Distances and accuracies that are a mean per width plus noise.

    Args:
        distances, untrained, accuracies: means at each width.
        networks: of each width.
        raw: cosine distance of the narrowest networks, which falls with width; None: it does not.
        within: how much farther apart networks are that generalize worse than others of their width.
        fitted: train accuracy.
        widths: multipliers.
    """
    rng = np.random.default_rng(1)
    a, b = np.nonzero(~np.eye(networks, dtype=bool))
    tables = []
    for multiplier, *values, accuracy in zip(widths, distances, untrained, accuracies, strict=True):
        skill = rng.normal(size=networks)
        for state, value in zip(("trained", "untrained"), values, strict=True):
            for measure, level in (("pwcca", value), ("cosine", raw or 0.4), ("euclidean", 0.8)):
                level = level * (1 - multiplier / 2) if raw and measure == "cosine" else level
                value_of_pair = level + 0.003 * rng.normal(size=len(a))
                if state == "trained" and measure == "pwcca":
                    value_of_pair -= within * (skill[a] + skill[b])
                tables.append(pd.DataFrame({
                    "quantity": "distance", "measure": measure, "state": state, "multiplier": multiplier,
                    "network_a": a, "network_b": b, "value": value_of_pair, "filters": 128 * multiplier, "floor": 0.9,
                }))  # fmt: skip
        for quantity, value in (("test_accuracy", accuracy + 0.004 * skill), ("train_accuracy", fitted)):
            columns = {"multiplier": multiplier, "network": range(networks), "filters": 128 * multiplier}
            tables.append(pd.DataFrame({**columns, "quantity": quantity, "value": value}))
    return pd.concat(tables, ignore_index=True)


FALLING, FLAT, RISING = [0.23, 0.17, 0.13, 0.1, 0.07], [0.6] * 5, [0.92, 0.94, 0.96, 0.97, 0.99]
ABOUT_WIDTH = ("trend", "accuracy_pairs", "accuracy_widths", "not_initialisation")


def test_width_claims_follow_the_data(options):
    claims = claims_of(width, width_table(FALLING, FLAT, RISING, within=0.003), options["width"])
    assert {name: claim.verdict for name, claim in claims.items()} == dict.fromkeys(claims, REPRODUCED)
    assert len(claims) == 9 and all(claim.source for claim in claims.values())
    assert claims["accuracy_pairs"].paper_value == -0.96 and np.isnan(claims["accuracy_pairs"].paper_error)
    assert "over 50 pairs" in claims["accuracy_pairs"].statistic
    assert claims["not_initialisation"].paper_value == pytest.approx(0.19 / 0.47 - 0.04 / 0.67)
    assert claims["trend"].value == pytest.approx(-np.polyfit(np.log2(WIDTHS), FALLING, 1)[0], abs=0.002)
    assert claims["trend"].paper_value == pytest.approx(0.19 / np.log2(28))

    result = verdicts(width, width_table(FALLING[::-1], FLAT, RISING, raw=0.8), options["width"])
    assert {result[name] for name in ABOUT_WIDTH} == {REVERSED}
    assert result["raw_miss_it_cosine"] == result["raw_miss_it_euclidean"] == NOT_TESTABLE  # there is nothing to miss

    result = verdicts(width, width_table(FALLING, FLAT, RISING, raw=0.8), options["width"])
    assert result["raw_miss_it_cosine"] == NOT_REPRODUCED and result["raw_miss_it_euclidean"] == REPRODUCED

    result = verdicts(width, width_table(FALLING, [0.8, 0.5, 0.3, 0.2, 0.1], RISING), options["width"])
    assert result["trend"] == REPRODUCED and result["not_initialisation"] == REVERSED
    assert result["plateau"] == NOT_REPRODUCED


def test_pairs_of_one_width_are_judged_apart_from_width(options):
    result = verdicts(width, width_table(FALLING, FLAT, RISING, within=-0.003), options["width"])
    assert result["within_width"] == REVERSED and result["accuracy_widths"] == REPRODUCED
    result = verdicts(width, width_table(FALLING, FLAT, RISING), options["width"])
    assert result["within_width"] in (INCONCLUSIVE, NOT_REPRODUCED) and result["accuracy_pairs"] == REPRODUCED


def test_the_correlation_over_pairs_is_the_plain_one(options):
    table = width_table(FALLING, FLAT, RISING)
    pairs = width.Widths(table, WIDTHS).pairs()
    assert len(pairs) == 50
    expected = np.corrcoef(pairs["accuracy"], pairs["distance"])[0, 1]
    centred = pairs.groupby("multiplier")[["accuracy", "distance"]].transform(lambda values: values - values.mean())
    claims = claims_of(width, table, options["width"])
    assert claims["accuracy_pairs"].value == pytest.approx(expected)
    assert claims["within_width"].value == pytest.approx(np.corrcoef(centred.T)[0, 1])


def test_widths_that_did_not_fit_are_not_compared(options):
    result = verdicts(width, width_table(FALLING, FLAT, RISING, fitted=0.95), options["width"])
    assert result.pop("fitted") == NOT_REPRODUCED and result.pop("plateau") == REPRODUCED
    assert set(result.values()) == {NOT_TESTABLE}


def test_three_widths_have_no_order_that_can_be_tested(options):
    three = options["width"].with_changes({"multipliers": (0.25, 0.5, 1)})
    table = width_table(FALLING[:3], FLAT[:3], RISING[:3], widths=[0.25, 0.5, 1])
    claims = claims_of(width, table, three)
    ordered = ("trend", "accuracy_widths")
    assert {claims[name].verdict for name in ordered} == {NOT_TESTABLE}
    assert all("; not testable: its p cannot be below 0.17" in claims[name].statistic for name in ordered)
    assert claims["not_initialisation"].verdict == REPRODUCED


def test_distances_are_means_over_draws_of_filters(options, rng):
    """Of all filters there is one draw; of few, the mean of many is near that of all of them."""

    class Made:
        device, finished_blocks = "cpu", None

    few = options["width"].with_changes({"filters": 3, "filter_draws": 8, "measures": ("pwcca", "cosine")})
    few = StageOptions(few, "compute", seed=0)
    signal = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 6))
    networks = np.stack([signal + 0.1 * rng.normal(size=(200, 6)) for _ in range(3)])
    rows = width._distances_over_draws(Made(), few, 1.0, np.arange(3), networks)
    spread = rows[rows["quantity"] == "spread_over_draws"].set_index("measure")["value"]
    assert (spread > 0).all() and len(rows[rows["quantity"] == "distance"]) == 2 * 6
    first = width._filters(few, 1.0, 0, 0, 6)
    assert len(set(first)) == 3 and any(list(width._filters(few, 1.0, 0, draw, 6)) != list(first) for draw in (1, 2, 3))
    whole = width._distances_over_draws(Made(), few, 1.0, np.arange(3), networks[:, :, :3])
    assert whole[whole["quantity"] == "spread_over_draws"]["value"].eq(0).all()


# Published values -----------------------------------------------------------------------------------------------------


def test_published_values_are_read_by_figure_and_curve():
    layer = published("6a", "layer 1")
    assert layer["x"].tolist() == [0, 0.2, 0.4, 0.6, 0.8, 0.95] and layer["value"].iloc[0] == 0.456
    assert published("6c")["value"].tolist() == [0.213, 0.247, 0.260, 0.273, 0.286]
    assert set(published("3")["curve"]) == {"generalizing", "memorizing", "inter"} and len(published("3")) == 35
    assert published("3")["provenance"].notna().all()
    value, error = published_value("4", "correlation")
    assert value == -0.96 and np.isnan(error)
    assert published_value("3", "inter", 11) == (0.355, 0.02)
    layer["value"] = 0.0  # a copy
    assert published("6a", "layer 1")["value"].iloc[0] == 0.456


def test_published_values_that_are_not_there_are_an_error():
    with pytest.raises(KeyError, match="figure 7"):
        published("7")
    with pytest.raises(KeyError, match="layer 9"):
        published("6a", "layer 9")
    with pytest.raises(KeyError, match="6 published values"):
        published_value("6a", "layer 1")


def test_errors_of_published_values_are_combined():
    two = published("3", "memorizing").iloc[:2]
    sum_and_error = combined((1, two), (-1, published("3", "inter").iloc[:1]))
    assert sum_and_error["paper_value"] == pytest.approx((0.040 + 0.057) / 2 - 0.036)
    assert sum_and_error["paper_error"] == pytest.approx(0.02 * np.sqrt(1 / 4 + 1 / 4 + 1))
    assert np.isnan(combined((1, published("4", "correlation")))["paper_error"])
