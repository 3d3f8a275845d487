"""Which changes measures ignore: the changes are what they are called, distances have closed forms, verdicts follow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from cca_dynamics.config.models import StageOptions
from cca_dynamics.errors import ConfigError
from cca_dynamics.results import invariance
from cca_dynamics.results.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, REVERSED
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.tables import select, tidy
from cca_dynamics.study import Study

from tests.builders import changed

MEASURES = ("pwcca", "svcca", "mean_cca", "linear_cka", "linear_cka_debiased", "procrustes", "cosine")
SMALL = {"neurons": 11, "points": 100, "draws": 3}


def of_stage(stage: str = "compute", **keys: object) -> StageOptions:
    return StageOptions(invariance.Options(**{**SMALL, **keys}), stage, seed=0)


def pairs(change: str, rng, **keys: object) -> list:
    return list(invariance.CHANGES[change].pairs(of_stage(**keys), rng))


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return invariance.compute(Inputs.from_paths([], []), of_stage(measures=MEASURES))


# The changes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", invariance.CHANGES)
def test_changes_have_the_strengths_of_their_panel_and_the_first_changes_nothing(change, rng):
    found = pairs(change, rng)
    assert [strength for strength, *_ in found] == list(invariance.CHANGES[change].strengths)
    if change not in ("unrelated", "sampled"):
        np.testing.assert_allclose(found[0][1], found[0][2], atol=1e-9)


def test_representations_have_the_spectrum_that_is_asked_for(rng):
    x = invariance.representation(100_000, of_stage(neurons=10, decay=2), rng)
    variances = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    np.testing.assert_allclose(variances / variances[0], np.arange(1, 11) ** -2.0, rtol=0.05)
    assert variances.mean() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("neurons", [10, 11])
def test_rotations_turn_every_plane_by_the_angle(neurons, rng):
    from scipy.linalg import expm

    quarter = invariance._quarter_turn(neurons, rng)
    np.testing.assert_allclose(quarter.T, -quarter, atol=1e-12)
    for degrees, x, y in pairs("rotation", rng, neurons=neurons):
        rotation = np.linalg.lstsq(x, y, rcond=None)[0]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(neurons), atol=1e-9)
        angles = np.sort(np.rad2deg(np.abs(np.angle(np.linalg.eigvals(rotation)))))
        np.testing.assert_allclose(angles[neurons % 2 :], degrees, atol=1e-5)
    np.testing.assert_allclose(
        expm(0.3 * quarter), np.eye(neurons) + np.sin(0.3) * quarter + (1 - np.cos(0.3)) * quarter @ quarter, atol=1e-12
    )


def test_the_other_changes_are_what_they_are_called(rng):
    for condition, x, y in pairs("mixing", rng):
        assert np.linalg.cond(np.linalg.lstsq(x, y, rcond=None)[0]) == pytest.approx(condition)
    for spread, x, y in pairs("scaling", rng, neurons=300, points=20):
        factors = np.log(y[0] / x[0])
        assert np.ptp(np.log(y / x), axis=0).max() < 1e-9 and factors.std() == pytest.approx(spread, rel=0.15)
    for times, _, y in pairs("duplicates", rng):  # a fifth of 11 neurons are 2
        assert y.shape[1] == 11 + 2 * (times - 1) and np.linalg.matrix_rank(y) == 11
    for percent, x, y in pairs("noise", rng):
        assert x.shape[1] == y.shape[1] == 11 + round(0.11 * percent)
        np.testing.assert_array_equal(x[:, :11], y[:, :11])
        assert not (x[:, 11:] == y[:, 11:]).any()
    for distance, x, y in pairs("moved", rng):
        moved = np.linalg.norm(y - x, axis=1)
        np.testing.assert_allclose(moved[:5], distance * np.sqrt((x**2).sum(axis=1).mean()))
        assert not moved[5:].any() and np.linalg.matrix_rank(y - x) == (distance > 0)
    assert [x.shape for _, x, _ in pairs("unrelated", rng)] == [(round(r * 11), 11) for r in (2.2, 3, 5, 10, 20, 40)]
    *_, (percent, x, y) = pairs("sampled", rng, points=20_000)
    assert percent == 100 and x.shape == y.shape == (20_000, 11)
    assert x.var(axis=0).mean() == pytest.approx(2, rel=0.5)  # signal and noise


# Distances ------------------------------------------------------------------------------------------------------------


def test_distances_have_their_closed_forms(table, rng):
    values = table[table["quantity"] == "distance"].groupby(["change", "measure", "strength"])["value"].mean()
    angles = np.deg2rad(invariance.CHANGES["rotation"].strengths)
    # A rotation by J = -Jᵀ has ⟨X, X exp(θJ)⟩ = cos θ ‖X‖², but for the direction that an odd number of neurons leaves.
    cosine = pd.Series({r["strength"]: r["value"] for r in
                        invariance._rows_of_draw(0, "cpu", of_stage(neurons=10, measures=("pwcca", "cosine")))
                        if (r["change"], r["measure"]) == ("rotation", "cosine")})  # fmt: skip
    np.testing.assert_allclose(cosine.to_numpy(), 1 - np.cos(angles), atol=1e-9)
    for change in ("rotation", "scaling", "mixing", "duplicates"):
        for measure in ("pwcca", "mean_cca"):
            np.testing.assert_allclose(values[change, measure], 0, atol=1e-7)
    for measure in ("linear_cka", "linear_cka_debiased", "procrustes"):
        np.testing.assert_allclose(values["rotation", measure], 0, atol=1e-9)
        assert min(values[change, measure].iloc[-1] for change in ("scaling", "mixing", "duplicates", "moved")) > 0.02
    floors = select(table, change="unrelated", measure="pwcca").groupby("strength")["floor"].mean()
    np.testing.assert_allclose(values["unrelated", "mean_cca"], floors, atol=0.07)


def test_biased_cka_of_unrelated_data_is_dimensions_over_points_and_dimensions(rng):
    """d / (n + d) for d neurons of equal variance, which for d = 8 are the values of Murphy et al. 2024."""
    from cca_dynamics.similarity import linear_cka, linear_cka_debiased

    options = of_stage(neurons=10, decay=0)
    for points in (32, 128):
        layers = [[invariance.representation(points, options, rng) for _ in range(2)] for _ in range(40)]
        biased, debiased = (
            np.mean([1 - m(x, y).distance for x, y in layers]) for m in (linear_cka, linear_cka_debiased)
        )
        assert biased == pytest.approx(10 / (points + 10), rel=0.1) and abs(debiased) < 0.02


def test_cka_of_a_subset_far_away_knows_only_the_subset(rng):
    """The limit of Davari et al. 2022, theorem 1: the copy's Gram matrix is that of the subset's indicator."""
    from cca_dynamics.similarity import linear_cka

    *_, (_, x, y) = pairs("moved", rng)
    indicator = (np.arange(100) < 5) - 0.05
    centred = x - x.mean(axis=0)
    limit = np.sum((indicator @ centred) ** 2) / (indicator @ indicator) / np.linalg.norm(centred.T @ centred)
    assert 1 - linear_cka(x, x + 1e6 * (y - x)).distance == pytest.approx(limit, rel=1e-3)


def test_tables_have_rows_where_measures_are_defined(table):
    assert {*table["change"]} == {*invariance.CHANGES} and table["value"].notna().all()
    sizes = table.groupby(["quantity", "measure", "change"]).size()
    assert not (table["measure"].eq("cosine") & table["change"].eq("duplicates") & table["strength"].gt(1)).any()
    assert [*sizes[invariance.REVERSE].index] == [("pwcca", "moved")]
    assert sizes["distance", "pwcca", "moved"] == sizes[invariance.REVERSE, "pwcca", "moved"] == 3 * 6
    again = invariance.compute(Inputs.from_paths([], []), of_stage(measures=("pwcca",)))
    pd.testing.assert_frame_equal(again, select(table, measure="pwcca").reset_index(drop=True))


def test_every_measure_of_the_registry_is_computed_and_drawn():
    import matplotlib.pyplot as plt
    from cca_dynamics.similarity import MEASURES as REGISTRY

    table = tidy([pd.DataFrame(invariance._rows_of_draw(0, "cpu", of_stage(measures=tuple(REGISTRY))))])
    assert {*table["measure"]} == {*REGISTRY}
    figure = invariance.plot(table, pd.DataFrame(), of_stage("plot", measures=tuple(REGISTRY)))
    assert len(figure.legends[0].get_texts()) == len(REGISTRY) + 1
    plt.close(figure)


# Claims ---------------------------------------------------------------------------------------------------------------


EXPECTED = {
    "rotation": {"cosine": 1.0},
    "scaling": {"svcca": 0.02, "linear_cka": 0.5, "linear_cka_debiased": 0.5, "procrustes": 0.4, "cosine": 0.6},
    "mixing": {"svcca": 0.02, "linear_cka": 0.4, "linear_cka_debiased": 0.4, "procrustes": 0.3, "cosine": 0.5},
    "noise": {"pwcca": 0.5, "svcca": 0.5, "mean_cca": 0.5, "linear_cka": 0.3, "procrustes": 0.5, "cosine": 0.7},
    "duplicates": {"linear_cka": 0.2, "linear_cka_debiased": 0.2, "procrustes": 0.1},
    "moved": {"pwcca": 0.015, "linear_cka": 0.9, "linear_cka_debiased": 0.9, "procrustes": 0.6, "cosine": 0.6},
}
"""Change → measure → distance at its full strength, with which it rises in proportion; others are 0."""
UNRELATED = {"pwcca": 0.4, "svcca": 0.4, "mean_cca": 0.4, "linear_cka": 0.9, "procrustes": 0.6}
"""Distances of unrelated representations at few data points; they rise to 1."""


def invariance_table(measures: Sequence[str] = MEASURES, noise: float = 0.001, **distances: float) -> pd.DataFrame:
    """A table in which all claims hold but for changes, such as pwcca_mixing=0.3, the distance at full strength.

    Of unrelated representations and of sampled neurons it is the distance at the first strength.
    """
    rows = []
    for change, (_, strengths, *_) in invariance.CHANGES.items():
        shares = np.linspace(0, 1, len(strengths))
        for measure in measures:
            asked = distances.get(f"{measure}_{change}")
            first, last = 0.0, EXPECTED.get(change, {}).get(measure, 0.0) if asked is None else asked
            if change in ("unrelated", "sampled"):
                default = UNRELATED.get(measure, 1.0) if change == "unrelated" else 0.9
                first, last = default if asked is None else asked, 1.0 if change == "unrelated" else 0.5
            quantities = {"distance": last}
            if (measure, change) == ("pwcca", "moved"):
                quantities[invariance.REVERSE] = distances.get("reverse", 0.01)
            rows += [
                {"change": change, "strength": float(strength), "draw": draw, "measure": measure, "quantity": quantity,
                 "value": first + share * (last - first) + noise * (draw - 3.5) * (-1) ** index,
                 "floor": 0.9 - 0.1 * share}
                for quantity, last in quantities.items() for draw in range(8)
                for index, (strength, share) in enumerate(zip(strengths, shares, strict=True))
            ]  # fmt: skip
    table = tidy([pd.DataFrame(rows)])
    return table.assign(floor=table["floor"].where(table["measure"].str.contains("cca")))


def claims_of(table: pd.DataFrame, **keys: object) -> dict:
    claims = invariance.claims(table, of_stage("claims", draws=8, **keys))
    return {claim.claim.partition(".")[2]: claim for claim in claims}


def test_claims_hold_in_a_table_of_what_is_expected():
    claims = claims_of(invariance_table())
    assert {claim.verdict for claim in claims.values()} == {REPRODUCED}
    assert len(claims) == 17 and not any(np.isnan(claim.interval).any() for claim in claims.values())
    assert claims["mixing_ignored"].statement == (
        "Mixing neurons by an invertible matrix does not change PWCCA and mean CCA."
    )
    assert "of unrelated representations 0.10" in claims["sampled_pwcca"].statistic
    assert "of unrelated" not in claims["sampled_linear_cka"].statistic  # of which no law is known


@pytest.mark.parametrize(
    ("change", "claim", "verdict"),
    [
        ({"procrustes_rotation": 0.2}, "rotation_ignored", NOT_REPRODUCED),
        ({"mean_cca_mixing": 0.2}, "mixing_ignored", NOT_REPRODUCED),
        ({"pwcca_scaling": 0.05}, "scaling_ignored", INCONCLUSIVE),
        ({"pwcca_duplicates": 0.3}, "duplicates_ignored", NOT_REPRODUCED),
        ({"linear_cka_mixing": 0.0}, "mixing_seen", NOT_REPRODUCED),
        ({"procrustes_scaling": 0.05}, "scaling_seen", INCONCLUSIVE),
        ({"procrustes_duplicates": 0.01}, "duplicates_seen", NOT_REPRODUCED),
        ({"linear_cka_moved": 0.3}, "moved_linear_cka", NOT_REPRODUCED),
        ({"linear_cka_moved": 0.5}, "moved_linear_cka", INCONCLUSIVE),
        ({"pwcca_moved": 0.2}, "moved_pwcca", NOT_REPRODUCED),
        ({"reverse": 0.2}, "moved_pwcca_reverse", NOT_REPRODUCED),
        ({"pwcca_unrelated": 0.99}, "unrelated_pwcca", NOT_REPRODUCED),
        ({"linear_cka_unrelated": 1.0}, "unrelated_linear_cka", NOT_REPRODUCED),
        ({"linear_cka_debiased_unrelated": 0.8}, "unrelated_linear_cka_debiased", NOT_REPRODUCED),
        ({"pwcca_sampled": 0.52}, "sampled_pwcca", NOT_REPRODUCED),
        ({"linear_cka_sampled": 0.3}, "sampled_linear_cka", REVERSED),
    ],
)
def test_another_table_gets_another_verdict(change, claim, verdict):
    claims = claims_of(invariance_table(noise=0.0003, **change))
    assert claims[claim].verdict == verdict
    assert {name for name, found in claims.items() if found.verdict != REPRODUCED} == {claim}


def test_claims_are_about_the_measures_that_are_asked_for():
    claims = claims_of(invariance_table(("pwcca",)), measures=("pwcca",))
    assert {*claims} == {
        *("rotation_ignored", "mixing_ignored", "scaling_ignored", "duplicates_ignored"),
        *("moved_pwcca", "moved_pwcca_reverse", "unrelated_pwcca", "sampled_pwcca"),
    }
    assert claims["rotation_ignored"].statement == "Rotating neurons does not change PWCCA."


@pytest.mark.parametrize(
    ("key", "value"), [("points", 301), ("moved", 0.0005), ("draws", 1), ("measures", ["linear_cka"]), ("neurons", 9)]
)
def test_bad_configs_are_refused_by_key(default_config, key, value):
    config = changed(default_config, f"results.invariance.{key}", value)
    with pytest.raises(ConfigError, match=rf"results\.invariance\.{key}"):
        Study(changed(config, "targets", ["invariance"]))


def test_too_few_draws_are_named_beforehand(default_config):
    study = Study(changed(default_config, "results.invariance.draws", 2))
    assert [obstacle.key for obstacle in study.obstacles("invariance")] == ["results.invariance.draws"]
