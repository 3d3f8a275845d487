"""Verdicts of the results that follow training or a sequence, on made-up tables in which claims hold or do not."""

import numpy as np
import pandas as pd
import pytest
from cca_dynamics.config.cohorts import checkpoint_epochs
from cca_dynamics.config.models import StageOptions
from cca_dynamics.errors import ConfigError, UserError
from cca_dynamics.results import recurrent_sequence, recurrent_training, stability
from cca_dynamics.results.claims import INCONCLUSIVE, NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, REVERSED
from cca_dynamics.similarity import factorize
from cca_dynamics.study import Study
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import changed


@pytest.fixture
def options(default_config):
    default_config["results"]["stability"]["recurrent"] = None  # its made-up tables have no recurrent networks
    study = Study(default_config)
    return {name: study.options(name) for name in ("stability", "recurrent_training", "recurrent_sequence")}


def claims_of(module, table, options) -> dict:
    """Name of each claim without that of its result → the claim."""
    claims = module.claims(table, StageOptions(options, "claims", seed=0))
    return {claim.claim.partition(".")[2]: claim for claim in claims}


def check(module, table, options, claim: str | None, verdict: str) -> None:
    """The verdict on one claim, or for None on all of them."""
    verdicts = {name: found.verdict for name, found in claims_of(module, table, options).items()}
    if claim is None:
        assert set(verdicts.values()) == {verdict}, verdicts
    else:
        assert verdicts[claim] == verdict, verdicts


# Stability ------------------------------------------------------------------------------------------------------------

LAST = 20


def stability_table(
    *, settles=18, at_half=0.5, stable=0.1, unstable=0.8, random=0.5, principal=0.2, spike=0.05, probe=0.3
) -> pd.DataFrame:
    """Accuracy that has converged by epoch 5, and correlations with the end that rise until `settles`."""
    rows, rng = [], np.random.default_rng(2)
    levels = {"stable": stable, "unstable": unstable, "random": random, "principal": principal}
    for network in range(5):
        for epoch in range(LAST + 1):
            columns = {"kind": "convolutional", "network": network, "epoch": float(epoch), "step": 31 * epoch}
            rho = min(1.0, 0.2 + 0.8 * epoch / settles) if epoch != LAST / 2 else at_half
            rho = 1.0 if epoch == LAST else rho + 0.001 * rng.normal()
            rows += [
                {**columns, "quantity": "correlation", "index": i, "value": rho if i > 40 else 1.0}
                for i in range(1, 129)
            ]
            for quantity in ("train_accuracy", "test_accuracy"):
                rows.append({**columns, "quantity": quantity, "value": min(0.95, 0.1 + 0.17 * epoch)})
            for name, level in levels.items() if epoch >= 2 else ():
                peak = spike if name == "unstable" and epoch == LAST / 2 else 0
                value = 0.0 if epoch == 2 else level + peak + 0.001 * rng.normal()
                rows.append({**columns, "quantity": "distance", "set": name, "value": value})
        at_early = {"kind": "convolutional", "network": network, "epoch": 2.0, "step": 62, "quantity": "probe"}
        accuracies = {**dict.fromkeys(("principal", "random", "unstable", "all"), 0.3), "stable": 0.3 + probe}
        rows += [
            {**at_early, "set": name, "value": accuracy + 0.001 * rng.normal()} for name, accuracy in accuracies.items()
        ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("change", "claim", "verdict"),
    [
        ({}, None, REPRODUCED),
        ({"settles": 1}, "lag", REVERSED),
        ({"settles": 2}, "unconverged", NOT_REPRODUCED),
        ({"at_half": 0.99}, "still_moving", NOT_REPRODUCED),
        ({"at_half": 0.99}, "stable_set", NOT_TESTABLE),
        ({"at_half": 0.99}, "spike", NOT_TESTABLE),
        ({"stable": 0.85}, "stable_set", REVERSED),
        ({"stable": 0.6}, "stable_beyond_random", REVERSED),
        ({"stable": 0.3}, "stable_beyond_principal", REVERSED),
        ({"stable": 0.7}, "stable_stays", NOT_REPRODUCED),
        ({"spike": -0.05}, "spike", REVERSED),
        ({"probe": -0.1}, "task_critical", REVERSED),
        ({"probe": 0.0}, "task_critical", INCONCLUSIVE),
    ],
)
def test_stability_claims_follow_the_data(options, change, claim, verdict):
    check(stability, stability_table(**change), options["stability"], claim, verdict)


def test_stability_says_what_cannot_be_tested(options):
    table = stability_table()
    check(stability, table[table["network"] < 2], options["stability"], None, NOT_TESTABLE)
    early = table[~table["epoch"].between(3, 9)]  # nothing between t_early and T/2
    check(stability, early, options["stability"], "spike", NOT_TESTABLE)
    rising = table["value"].mask(table["quantity"] == "test_accuracy", table["epoch"] / LAST)
    check(stability, table.assign(value=rising), options["stability"], "unconverged", NOT_TESTABLE)
    end = table[table["epoch"].isin([0, 2, LAST]) | (table["quantity"] != "distance")]
    check(stability, end, options["stability"], "stable_set", REPRODUCED)  # one checkpoint after t_early


def test_convergence_is_the_first_epoch_that_stays_close():
    table = stability_table()
    assert stability.convergence_epoch(table, 0.01) == 5
    dip = (table["quantity"] == "test_accuracy") & (table["epoch"] == 8)
    assert stability.convergence_epoch(table.assign(value=table["value"].mask(dip, 0.8)), 0.01) == 9
    one = dip & (table["network"] == 0)
    assert stability.convergence_epoch(table.assign(value=table["value"].mask(one, 0.8)), 0.01) == 5
    epoch, share = stability.unconverged(table, 0.02, 0.9)
    assert epoch == 5 and share.tolist() == pytest.approx([88 / 128] * 5)


def test_the_lag_is_the_area_between_two_curves():
    """Performance that is there after half of training, a representation that comes in a straight line."""
    epochs = np.linspace(0, 10, 101)
    progress = stability.Progress(epochs, np.minimum(epochs / 5, 1)[None], epochs[None] / 10)
    assert progress.lags() == pytest.approx([0.25])
    reached = [progress.reached(curves) for curves in (progress.performance, progress.representation)]
    assert reached == pytest.approx([4.8, 9.5])


def test_sets_of_directions_and_their_distances(options, rng):
    """A layer of which three directions stay and the others are drawn anew."""
    options = StageOptions(options["stability"].with_changes({"directions": 3}), "compute", seed=0)
    stays, early, half, later = (rng.normal(size=(500, size)) for size in (3, 7, 7, 7))
    mixing = rng.normal(size=(10, 10))
    layers = [factorize(np.hstack([stays, rest]) @ mixing) for rest in (early, half, later)]
    sets = stability._sets(*layers[:2], 0, options)
    basis = layers[2].basis().numpy()
    distances = {name: stability._distance(directions, basis) for name, directions in sets.items()}
    assert distances["stable"] < 0.02 and distances["unstable"] > 0.7
    assert distances["stable"] < distances["random"] < distances["unstable"]
    assert stability._distance(sets["random"], layers[0].basis().numpy()) == pytest.approx(0, abs=1e-6)
    for directions in (directions for each in sets.values() for directions in each):
        assert directions.T @ directions == pytest.approx(np.eye(3), abs=1e-6)
    with pytest.raises(UserError, match=r"network 0 has 5 directions .* too few for two sets of 3"):
        stability._sets(factorize(early[:, :5]), layers[1], 0, options)


def test_the_probe_finds_what_directions_hold(rng):
    """Directions that separate three classes, and directions that know nothing of them."""
    decisions = np.repeat([0, 1, 2], 200)
    centred = np.eye(3)[decisions] - 1 / 3
    classes, _ = np.linalg.qr(centred[:, :2] + 0.01 * rng.normal(size=(600, 2)))
    noise, _ = np.linalg.qr(rng.normal(size=(600, 2)))
    assert stability._probe([classes - classes.mean(axis=0)], decisions) == 1
    assert stability._probe([noise - noise.mean(axis=0)], decisions) == pytest.approx(1 / 3, abs=0.08)


@given(st.integers(1, 50), st.sampled_from([0.25, 0.5, 1, 3, 100]), st.integers(1, 20))
def test_checkpoints_divide_the_first_epoch_and_end_with_the_last(epochs, every, in_first_epoch):
    stored = sorted(checkpoint_epochs(epochs, every, in_first_epoch))
    assert stored[0] == 0 and stored[-1] == epochs and 1 in stored
    assert {round(i / in_first_epoch, 6) for i in range(in_first_epoch)} <= {*stored}
    assert all(epoch < 1 or epoch % every < 1e-6 or epoch in (1, epochs) for epoch in stored)


# Recurrent networks over training -----------------------------------------------------------------------------------


def recurrent_training_table(order=1, others=0.5, first=0.0, noise=0.001) -> pd.DataFrame:
    """Layers that converge one after the other (order -1: top down), seen as clearly by `others` than by PWCCA.

    Args:
        order: 1 for bottom up.
        others: how clearly the other measures see the order, in units of how PWCCA does.
        first: how much farther from its end each layer is at initialisation than the one below it.
        noise: between networks; twice as much for the other measures.
    """
    rows, rng = [], np.random.default_rng(3)
    for cohort, networks, depth in (("lstm", 5, 3), ("lstm-deeper", 5, 5)):
        for network in range(networks):
            for layer in range(depth):
                for measure in ("pwcca", "mean_cca", "cosine", "euclidean"):
                    clear = 1 if measure == "pwcca" else others
                    shift = noise * rng.normal() * (1 if measure == "pwcca" else 2)
                    for epoch in range(7):
                        end = 1 - epoch / 6
                        value = (1 + first * layer) * end ** (2 - 0.2 * order * layer * clear)
                        columns = {"cohort": cohort, "network": network, "epoch": float(epoch), "step": 10 * epoch}
                        rows.append({
                            **columns, "quantity": "distance", "layer": f"lstm{layer + 1}", "layer_index": layer,
                            "measure": measure, "value": value + (shift + 1e-5 * rng.normal()) * (0 < epoch < 6),
                        })  # fmt: skip
            rows += [
                {
                    "cohort": cohort,
                    "network": network,
                    "epoch": float(epoch),
                    "step": 10 * epoch,
                    "value": 3 - epoch / 6,
                }
                | {"quantity": quantity}
                for quantity in ("loss", "valid_loss")
                for epoch in range(7)
            ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("change", "claim", "verdict"),
    [
        ({}, "bottom_up", REPRODUCED),
        ({}, "bottom_up_normalised", REPRODUCED),
        ({}, "bottom_up_half_time", REPRODUCED),
        ({}, "bottom_up_deeper", REPRODUCED),
        ({}, "bottom_up_cosine", REPRODUCED),
        ({}, "clearer_than_cosine_separation", REPRODUCED),
        ({}, "unweighted_blurs_separation", REPRODUCED),
        ({"others": 0}, "unweighted_blurs", REPRODUCED),
        ({"others": 0}, "clearer_than_euclidean", REPRODUCED),
        ({"others": -1}, "bottom_up_euclidean", REVERSED),
        ({"order": -1}, "bottom_up", REVERSED),
        ({"order": -1}, "bottom_up_deeper", REVERSED),
        ({"order": -1, "first": 0.5}, "bottom_up", REPRODUCED),
        ({"order": -1, "first": 0.5}, "bottom_up_normalised", REVERSED),
        ({"order": -1, "first": 0.5}, "bottom_up_half_time", REVERSED),
        ({"order": 0, "others": 1}, "unweighted_blurs_separation", INCONCLUSIVE),
    ],
)
def test_recurrent_training_claims_follow_the_data(options, change, claim, verdict):
    check(recurrent_training, recurrent_training_table(**change), options["recurrent_training"], claim, verdict)


def test_areas_and_half_times_of_known_curves():
    """Two layers, one of which falls in a straight line, one of which is half as far and falls twice as fast."""
    epochs = np.array([0.0, 1, 2, 3, 4])
    curves = recurrent_training.Curves(epochs, np.array([[[0.4, 0.2, 0.0, 0.0, 0.0], [0.8, 0.6, 0.4, 0.2, 0.0]]]))
    assert curves.areas() == pytest.approx(np.array([[0.1 / 3, 0.9 / 3]]))  # from epoch 1 to 4
    assert curves.normalised().areas() == pytest.approx(np.array([[0.25 / 3, 1.125 / 3]]))
    assert curves.half_times() == pytest.approx(np.array([[1, 2]]))
    assert curves.consistency() == pytest.approx([1])


# Recurrent networks over a sequence ---------------------------------------------------------------------------------


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
        ({"late": 0.8}, "until_late", REVERSED),
        ({"repeats": (0.5, 0.1)}, "early_repeats", REVERSED),
        ({"repeats": (0.5, 0.1)}, "later_is_farther", REVERSED),
        ({"repeats": (0.3, 0.3)}, "later_is_farther", INCONCLUSIVE),
        ({"raw": (0.1, 0.5)}, "insensitive_cosine", NOT_REPRODUCED),
        ({"repeats": (0.3, 0.3)}, "insensitive_cosine", NOT_TESTABLE),  # there is nothing to be sensitive to
        ({"raw": (0.5, 0.1)}, "insensitive_euclidean", REVERSED),
    ],
)
def test_recurrent_sequence_claims_follow_the_data(options, change, claim, verdict):
    check(recurrent_sequence, recurrent_sequence_table(**change), options["recurrent_sequence"], claim, verdict)


def test_sequences_need_tokens_before_the_earliest_start(default_config):
    with pytest.raises(ConfigError, match=r"only 10 tokens come before the earliest start, 0.01 .* give 2000 or more"):
        Study(changed(default_config, "results.recurrent_sequence.length", 1000))


def test_equal_states_are_refused():
    states = np.arange(12.0).reshape(4, 3)
    recurrent_sequence._require_distinct(states, 0, "lstm1")
    with pytest.raises(
        UserError, match=r"network 2 has 4 different states of lstm1@0.01 in 5 sequences; make .*length"
    ):
        recurrent_sequence._require_distinct(np.vstack([states, states[:1]]), 2, "lstm1@0.01")
