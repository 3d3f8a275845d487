"""Verdicts follow the data: made-up tables in which each claim holds, and in which it does not."""

import copy

import numpy as np
import pandas as pd
import pytest
from cca_dynamics.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from cca_dynamics.results import RESULTS, generalization, stability, width
from cca_dynamics.study import Study

LAYERS = ["conv1", "conv2", "conv3", "conv4", "conv5", "softmax"]


@pytest.fixture
def options(default_config):
    study = Study(default_config)
    return {name: study.options(name) for name in RESULTS}


def verdicts(module, table, options) -> dict[str, str]:
    return {claim.claim.split(".")[1]: claim.verdict for claim in module.claims(table, options)}


def generalization_table(means: dict[str, list[float]], networks: int = 5, noise: float = 0.004) -> pd.DataFrame:
    """A table whose distances are a mean per group and layer (and measure and split) plus a little noise."""
    rng = np.random.default_rng(0)
    tables = []
    for split in ("train", "test"):
        for measure in ("pwcca", "mean_cca", "svcca"):
            for index, layer in enumerate(LAYERS):
                a, b = np.nonzero(~np.eye(2 * networks, dtype=bool))
                kind = np.repeat(["generalizing", "memorizing"], networks)
                group = np.where(kind[a] == kind[b], kind[a], "inter")
                level = np.array([means.get(f"{g}/{measure}/{split}", means[g])[index] for g in group])
                value = np.abs(level + noise * rng.normal(size=len(a)))
                tables.append(pd.DataFrame({
                    "quantity": "distance", "measure": measure, "split": split, "layer": layer, "layer_index": index,
                    "group": group, "network_a": a, "network_b": b, "value": value, "floor": 0.9,
                }))  # fmt: skip
    for quantity, value in (("train_accuracy", 1.0), ("test_accuracy", 0.9), ("loss", 0.0)):
        tables += [
            pd.DataFrame({"quantity": quantity, "group": g, "network": range(networks), "value": value})
            for g in ("generalizing", "memorizing")
        ]
    return pd.concat(tables, ignore_index=True)


AS_PUBLISHED = {
    "generalizing": [0.04, 0.18, 0.26, 0.34, 0.30, 0.0],
    "memorizing": [0.04, 0.19, 0.38, 0.58, 0.63, 0.0],
    "inter": [0.04, 0.20, 0.38, 0.59, 0.64, 0.9],
    "generalizing/mean_cca/train": [0.1, 0.2, 0.3, 0.4, 0.5, 0.0],
    "memorizing/svcca/train": [0.3, 0.3, 0.4, 0.5, 0.5, 0.0],
    "memorizing/mean_cca/train": [0.3, 0.3, 0.4, 0.5, 0.5, 0.0],
    "memorizing/pwcca/test": [0.04, 0.19, 0.38, 0.58, 0.63, 0.8],
}


def test_the_published_pattern_is_reproduced(options):
    found = verdicts(generalization, generalization_table(AS_PUBLISHED), options["generalization"])
    assert set(found.values()) == {REPRODUCED}, found


@pytest.mark.parametrize(
    ("key", "change", "claim", "verdict"),
    [
        ("memorizing", [0.04, 0.40, 0.38, 0.58, 0.63, 0.0], "early_layers", NOT_REPRODUCED),
        ("memorizing", [0.04, 0.19, 0.26, 0.34, 0.30, 0.0], "late_layers", INCONCLUSIVE),
        ("memorizing", [0.04, 0.19, 0.26, 0.20, 0.20, 0.0], "late_layers", NOT_REPRODUCED),
        ("inter", [0.04, 0.20, 0.38, 0.75, 0.80, 0.9], "memorizing_as_inter", NOT_REPRODUCED),
        ("memorizing", [0.04, 0.19, 0.38, 0.58, 0.63, 0.5], "softmax_train", NOT_REPRODUCED),
        ("generalizing/pwcca/test", [0.04, 0.18, 0.26, 0.34, 0.30, 0.9], "softmax_test", NOT_REPRODUCED),
        ("generalizing", [0.04, 0.18, 0.26, 0.30, 0.36, 0.0], "closer_again", NOT_REPRODUCED),
        ("generalizing/mean_cca/train", [0.1, 0.2, 0.3, 0.5, 0.2, 0.0], "mean_cca_misses_it", NOT_REPRODUCED),
        ("memorizing/svcca/train", [0.0, 0.0, 0.3, 0.5, 0.48, 0.0], "others_overestimate", NOT_REPRODUCED),
        ("generalizing/mean_cca/train", [0.1, 0.2, 0.3, 0.5, 0.48, 0.0], "mean_cca_misses_it", INCONCLUSIVE),
    ],
)
def test_another_pattern_is_not(options, key, change, claim, verdict):
    table = generalization_table({**AS_PUBLISHED, key: change})
    assert verdicts(generalization, table, options["generalization"])[claim] == verdict


def test_one_network_that_did_not_fit_spoils_the_precondition(options):
    table = generalization_table(AS_PUBLISHED)
    table.loc[table["quantity"].eq("train_accuracy").idxmax(), "value"] = 0.97
    assert verdicts(generalization, table, options["generalization"])["fitted"] == NOT_REPRODUCED


def test_two_networks_settle_nothing(options):
    few = {**options["generalization"], "networks": 2}
    found = verdicts(generalization, generalization_table(AS_PUBLISHED, networks=2), few)
    assert {verdict for claim, verdict in found.items() if claim != "fitted"} == {INCONCLUSIVE}


def width_table(distances, untrained, accuracies, networks=5) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    a, b = np.nonzero(~np.eye(networks, dtype=bool))
    tables = []
    for multiplier, *values, accuracy in zip(
        [0.125, 0.1875, 0.25, 0.5, 1], distances, untrained, accuracies, strict=True
    ):
        for state, value in zip(("trained", "untrained"), values, strict=True):
            tables.append(pd.DataFrame({
                "quantity": "distance", "measure": "pwcca", "state": state, "multiplier": multiplier, "network_a": a,
                "network_b": b, "value": value + 0.003 * rng.normal(size=len(a)), "filters": 128 * multiplier,
            }))  # fmt: skip
        tables.append(pd.DataFrame({
            "quantity": "test_accuracy", "multiplier": multiplier, "network": range(networks),
            "value": accuracy + 0.002 * rng.normal(size=networks), "filters": 128 * multiplier,
        }))  # fmt: skip
    return pd.concat(tables, ignore_index=True)


FALLING, FLAT, RISING = [0.23, 0.17, 0.13, 0.1, 0.07], [0.6] * 5, [0.92, 0.94, 0.96, 0.97, 0.99]


def test_width_claims_follow_the_data(options):
    expected = {"trend": REPRODUCED, "accuracy": REPRODUCED, "not_initialisation": REPRODUCED}
    assert verdicts(width, width_table(FALLING, FLAT, RISING), options["width"]) == expected
    found = verdicts(width, width_table(FALLING[::-1], FLAT, RISING), options["width"])
    assert set(found.values()) == {NOT_REPRODUCED}
    found = verdicts(width, width_table(FALLING, [0.8, 0.5, 0.3, 0.2, 0.1], RISING), options["width"])
    assert found["trend"] == REPRODUCED and found["not_initialisation"] == NOT_REPRODUCED


def stability_table(options, *, correlation=0.5, stable=0.1, unstable=0.8, spike=0.05) -> pd.DataFrame:
    rows = []
    rng = np.random.default_rng(2)
    for network in range(5):
        for epoch in range(0, 41, 2):
            place = {"network": network, "epoch": float(epoch), "step": 31 * epoch}
            settled = 1.0 if epoch == 40 else correlation
            rows += [
                {**place, "quantity": "correlation", "index": i, "value": settled if i > 40 else 1.0}
                for i in range(1, 129)
            ]
            rows.append({**place, "quantity": "test_accuracy", "value": 0.5 if epoch < 10 else 0.95})
            if epoch >= 2:
                noise = 0.001 * rng.normal()
                far = 0.0 if epoch == 2 else unstable + noise + (spike if epoch == 20 else 0)
                rows.append(
                    {**place, "quantity": "distance", "set": "stable", "value": 0 if epoch == 2 else stable + noise}
                )
                rows.append({**place, "quantity": "distance", "set": "unstable", "value": far})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("change", "claim", "verdict"),
    [
        ({}, None, REPRODUCED),
        ({"correlation": 0.95}, "unconverged", NOT_REPRODUCED),
        ({"stable": 0.85}, "stable_set", NOT_REPRODUCED),
        ({"stable": 0.7}, "stable_stays", NOT_REPRODUCED),
        ({"spike": -0.05}, "spike", NOT_REPRODUCED),
    ],
)
def test_stability_claims_follow_the_data(options, change, claim, verdict):
    found = verdicts(stability, stability_table(options["stability"], **change), options["stability"])
    assert (set(found.values()) if claim is None else {found[claim]}) == {verdict}


def test_convergence_is_the_first_epoch_that_stays_close(options):
    table = stability_table(options["stability"])
    assert stability.convergence_epoch(table, 0.01) == 10
    dip = (table["quantity"] == "test_accuracy") & (table["epoch"] == 16)
    assert stability.convergence_epoch(table.assign(value=table["value"].mask(dip, 0.8)), 0.01) == 18
    one = dip & (table["network"] == 0)
    assert stability.convergence_epoch(table.assign(value=table["value"].mask(one, 0.8)), 0.01) == 10
    epoch, share = stability.unconverged(table, options["stability"])
    assert epoch == 10 and share.tolist() == pytest.approx([88 / 128] * 5)


@pytest.mark.parametrize("result", ["generalization", "width", "stability"])
def test_figures_name_their_axes_and_draw_what_the_paper_published(options, result):
    import matplotlib.pyplot as plt

    tables = {
        "generalization": lambda: generalization_table(AS_PUBLISHED),
        "width": lambda: width_table(FALLING, FLAT, RISING).assign(floor=0.9),
        "stability": lambda: stability_table(options["stability"]),
    }
    table, module = tables[result](), RESULTS[result]
    if result == "stability":
        table = pd.concat([table, table[table["quantity"] == "test_accuracy"].assign(quantity="train_accuracy")])
    before = copy.deepcopy(options[result])
    claims = pd.DataFrame([vars(claim) for claim in module.claims(table, options[result])])
    figure = module.plot(table, claims, options[result])
    drawn = [axis for axis in figure.axes if axis.get_visible()]
    assert all(axis.get_ylabel() for axis in drawn)
    words = " ".join(text.get_text() for text in figure.findobj(plt.Text))
    if result != "stability":
        assert "CIFAR-10" in words
    assert options[result] == before
    plt.close(figure)
