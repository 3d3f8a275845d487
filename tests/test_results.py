"""Verdicts follow the data: made-up tables in which each claim holds, and in which it does not."""

import numpy as np
import pandas as pd
import pytest
from cca_dynamics.config.models import StageOptions
from cca_dynamics.results import (
    recurrent_sequence,
    recurrent_training,
    stability,
)
from cca_dynamics.results.claims import COLUMNS, INCONCLUSIVE, NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from cca_dynamics.results.registry import RESULTS
from cca_dynamics.study import Study

from tests.builders import changed
from tests.test_results_groups import AS_PUBLISHED, FALLING, FLAT, RISING, generalization_table, width_table

IN_TEST_RESULTS_SWEEP = ("clusters", "toy_noise", "toy_rnn")


@pytest.fixture
def options(default_config):
    default_config["results"]["stability"]["recurrent"] = None  # its made-up tables have no recurrent networks
    study = Study(default_config)
    return {name: study.options(name) for name in RESULTS}


def claims_of(module, table, options) -> list:
    return module.claims(table, StageOptions(options, "claims", seed=0))


def verdicts(module, table, options) -> dict[str, str]:
    """Name of each claim without that of its result → verdict."""
    return {claim.claim.partition(".")[2]: claim.verdict for claim in claims_of(module, table, options)}


def check(result: dict[str, str], claim: str | None, verdict: str, count: int) -> None:
    """The verdict on one claim, or for None on all `count` of them."""
    if claim is None:
        assert set(result.values()) == {verdict} and len(result) == count, result
    else:
        assert result[claim] == verdict


def test_what_no_data_could_reproduce_is_not_testable_and_says_why(options):
    table = stability_table()
    few = table[table["network"] < 4]
    assert {claim.verdict for claim in claims_of(stability, few, options["stability"])} == {NOT_TESTABLE}
    early = table[~table["epoch"].between(3, 19)]  # nothing between t_early and T/2
    assert verdicts(stability, early, options["stability"])["spike"] == NOT_TESTABLE
    end = table[table["epoch"].isin([0, 2, 40])]  # one checkpoint after t_early: T/2 and the end are the same
    result = verdicts(stability, end, options["stability"])
    assert result["spike"] == NOT_TESTABLE and result["stable_set"] == REPRODUCED


OBSTACLES = {
    "results.width.multipliers": [0.25, 0.5, 1],
    "results.width.networks": 2,
    "results.stability.networks": 4,
    "results.stability.checkpoint_every": 20,
    "results.generalization.networks": 3,
    "results.generalization.data_size_networks": 2,
    "results.generalization.late_layers": ["conv2", "conv3", "conv4", "conv5"],
    "results.clusters.most_clusters": 4,
    "results.clusters.learning_rates": [0.01, 0.03, 0.1, 0.3],
    "results.toy_noise.draws": 2,
    "results.toy_rnn.networks": 2,
    "language_model.networks": 4,
    "results.recurrent_training.deeper_networks": 3,
}


@pytest.mark.parametrize("key", OBSTACLES)
def test_settings_that_no_data_could_reproduce_are_named_beforehand(default_config, key):
    def named(config) -> set[str]:
        study = Study(config)
        return {obstacle.key for result in study.targets for obstacle in study.obstacles(result)}

    default_config["language_training"]["epochs"] = 8  # else no checkpoint lies between t_early and T/2
    default_config["results"]["generalization"]["networks"] = 4
    assert named(default_config) == set()
    expected = {
        "results.stability.checkpoint_every": "results.stability.early_epoch",
        "results.generalization.late_layers": "results.generalization.networks",
    }.get(key, key)
    assert named(changed(default_config, key, OBSTACLES[key])) == {expected}


def stability_table(*, correlation=0.5, stable=0.1, unstable=0.8, spike=0.05) -> pd.DataFrame:
    rows = []
    rng = np.random.default_rng(2)
    for network in range(5):
        for epoch in range(0, 41, 2):
            columns = {"kind": "convolutional", "network": network, "epoch": float(epoch), "step": 31 * epoch}
            settled = 1.0 if epoch == 40 else correlation
            rows += [
                {**columns, "quantity": "correlation", "index": i, "value": settled if i > 40 else 1.0}
                for i in range(1, 129)
            ]
            rows.append({**columns, "quantity": "test_accuracy", "value": 0.5 if epoch < 10 else 0.95})
            if epoch >= 2:
                noise = 0.001 * rng.normal()
                near = 0.0 if epoch == 2 else stable + noise
                far = 0.0 if epoch == 2 else unstable + noise + (spike if epoch == 20 else 0)
                rows.append({**columns, "quantity": "distance", "set": "stable", "value": near})
                rows.append({**columns, "quantity": "distance", "set": "unstable", "value": far})
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
    check(verdicts(stability, stability_table(**change), options["stability"]), claim, verdict, count=5)


def test_convergence_is_the_first_epoch_that_stays_close():
    table = stability_table()
    assert stability.convergence_epoch(table, 0.01) == 10
    dip = (table["quantity"] == "test_accuracy") & (table["epoch"] == 16)
    assert stability.convergence_epoch(table.assign(value=table["value"].mask(dip, 0.8)), 0.01) == 18
    one = dip & (table["network"] == 0)
    assert stability.convergence_epoch(table.assign(value=table["value"].mask(one, 0.8)), 0.01) == 10
    epoch, share = stability.unconverged(table, 0.02, 0.9)
    assert epoch == 10 and share.tolist() == pytest.approx([88 / 128] * 5)


def recurrent_training_table(order=1, others=0.5) -> pd.DataFrame:
    """Layers that converge one after the other (order -1: top down), seen as clearly by `others` than by PWCCA."""
    rows, rng = [], np.random.default_rng(3)
    for cohort, networks, depth in (("lstm", 5, 3), ("lstm-deeper", 5, 5)):
        for network in range(networks):
            for epoch in range(7):
                columns = {"cohort": cohort, "network": network, "epoch": float(epoch), "step": 10 * epoch}
                rows += [
                    {**columns, "quantity": quantity, "value": 3.0 - epoch / 6} for quantity in ("loss", "valid_loss")
                ]
                for layer in range(depth):
                    of_layer = {**columns, "quantity": "distance", "layer": f"lstm{layer + 1}", "layer_index": layer}
                    for measure in ("pwcca", "mean_cca", "cosine", "euclidean"):
                        rate = 1 + 0.2 * order * layer * (1 if measure == "pwcca" else others) + 0.001 * rng.normal()
                        rows.append({**of_layer, "measure": measure, "value": rate * (1 - epoch / 6)})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("change", "claim", "verdict"),
    [
        ({}, None, REPRODUCED),
        ({"order": -1}, "bottom_up", NOT_REPRODUCED),
        ({"order": -1}, "bottom_up_deeper", NOT_REPRODUCED),
        ({"others": 1.5}, "unweighted_blurs", NOT_REPRODUCED),
        ({"others": 1.5}, "clearer_than_raw", NOT_REPRODUCED),
        ({"others": 0}, "bottom_up_cosine", INCONCLUSIVE),
    ],
)
def test_recurrent_training_claims_follow_the_data(options, change, claim, verdict):
    table = recurrent_training_table(**change)
    check(verdicts(recurrent_training, table, options["recurrent_training"]), claim, verdict, count=6)
    areas = recurrent_training.areas(recurrent_training_table(), "lstm", "pwcca")
    assert areas.shape == (5, 3) and areas.mean(axis=0) == pytest.approx([0.5, 0.6, 0.7], abs=0.01)


def recurrent_sequence_table(far=0.7, late=0.3, repeats=(0.1, 0.5), raw=(0.5, 0.5)) -> pd.DataFrame:
    rows, rng, starts = [], np.random.default_rng(4), (0.01, 0.08, 0.24, 0.48, 0.81)
    for network in range(5):
        for layer in range(3):
            for position in range(19):
                for measure in ("pwcca", "cosine", "euclidean"):
                    columns = {"network": network, "layer": f"lstm{layer + 1}", "layer_index": layer}
                    columns |= {"measure": measure, "position": position, "quantity": "distance", "floor": 0.9}
                    value = (late if position == 18 else far) + 0.001 * rng.normal()
                    rows.append({**columns, "input": "text", "start": -1.0, "value": value})
                    first, last = repeats if measure == "pwcca" else raw
                    for i, start in enumerate((*starts, -1.0)):
                        value = first + (last - first) * min(i, 4) / 4 + 0.001 * rng.normal()
                        rows.append({**columns, "input": "repeat", "start": start, "value": value})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("change", "claim", "verdict"),
    [
        ({}, None, REPRODUCED),
        ({"far": 0.2, "late": 0.1}, "little_similarity", NOT_REPRODUCED),
        ({"late": 0.8}, "until_late", NOT_REPRODUCED),
        ({"repeats": (0.5, 0.1)}, "early_repeats", NOT_REPRODUCED),
        ({"raw": (0.1, 0.5)}, "raw_insensitive", NOT_REPRODUCED),
    ],
)
def test_recurrent_sequence_claims_follow_the_data(options, change, claim, verdict):
    table = recurrent_sequence_table(**change)
    check(verdicts(recurrent_sequence, table, options["recurrent_sequence"]), claim, verdict, count=4)


def looks(handle) -> tuple:
    """What tells a legend's curve or points from others in grey: marker, line, lightness in steps of a fifth."""
    from matplotlib.colors import to_rgb

    line = handle.lines[0] if hasattr(handle, "lines") else handle
    if hasattr(line, "get_marker"):
        marker, dashes, colour = line.get_marker(), line.get_linestyle(), line.get_color()
    else:
        marker, dashes, colour = line.get_paths()[0].vertices.tobytes(), "", line.get_edgecolor()[0][:3]
    hollow = hasattr(line, "get_paths") and not len(line.get_facecolor())
    return marker, dashes, hollow, round(5 * np.dot([0.2126, 0.7152, 0.0722], np.square(to_rgb(colour))))


@pytest.mark.parametrize("result", [result for result in RESULTS if result not in IN_TEST_RESULTS_SWEEP])
def test_figures_are_complete_legible_in_grey_and_embed_their_fonts(options, result, tmp_path):
    import matplotlib.pyplot as plt
    from cca_dynamics.results import figures

    tables = {
        "generalization": lambda: generalization_table(AS_PUBLISHED),
        "width": lambda: width_table(FALLING, FLAT, RISING),
        "stability": stability_table,
        "recurrent_training": recurrent_training_table,
        "recurrent_sequence": recurrent_sequence_table,
    }
    table, module = tables[result](), RESULTS[result]
    if result == "stability":
        table = pd.concat([table, table[table["quantity"] == "test_accuracy"].assign(quantity="train_accuracy")])
    before = table.copy()
    claims = pd.DataFrame([claim.row() for claim in claims_of(module, table, options[result])], columns=COLUMNS)
    figure = module.plot(table, claims, StageOptions(options[result], "plot"))
    drawn = [axis for axis in figure.axes if axis.get_visible()]
    assert all(axis.get_ylabel() or axis.get_xlabel() for axis in drawn)
    words = " ".join(text.get_text() for text in figure.findobj(plt.Text))
    if result in ("generalization", "width"):
        assert "CIFAR-10" in words
    for axis in drawn:
        handles, labels = axis.get_legend_handles_labels()
        styles = [looks(handle) for handle in handles]
        assert len(set(styles)) == len(styles), f"in grey some of {labels} look the same: {styles}"
    pdf = tmp_path / "figure.pdf"
    figures.save(figure, [pdf])
    content = pdf.read_bytes()
    assert content.count(b"/FontFile2") == content.count(b"/Type /FontDescriptor") > 0 and b"/Type3" not in content
    pd.testing.assert_frame_equal(table, before)
