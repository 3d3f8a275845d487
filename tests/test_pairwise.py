"""All pairs at once give what each pair gives alone, in blocks, after an interruption, and in float32 nearly."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from cca_dynamics.results.block_cache import BlocksInFolder
from cca_dynamics.results.tables import distance_table
from cca_dynamics.similarity import MEASURES, DegenerateCCAWarning, Measure, factorize, mean_cca, pairwise, svcca

SYMMETRIC = {name for name, measure in MEASURES.items() if measure.symmetric}


def cohort(rng, count=6, n=200, d=8, signal=4):
    """Layers that share signal, in float32 as networks give them; one with a duplicate, one with a dead neuron."""
    shared = rng.normal(size=(n, signal))
    members = [shared @ rng.normal(size=(signal, d)) + rng.normal(size=(n, d)) + 1 for _ in range(count)]
    members[1][:, 0] = members[1][:, 1]
    members[2][:, 3] = 0
    return [member.astype(np.float32) for member in members]


def one_by_one(members, measure, **options):
    expected = np.zeros((len(members), len(members)))
    for i, x in enumerate(members):
        for j, y in enumerate(members):
            if i != j:
                expected[i, j] = MEASURES[measure].function(x, y, **options).distance
    return expected


@pytest.mark.parametrize("measure", MEASURES)
def test_every_pair_is_what_the_measure_gives(rng, measure):
    members = cohort(rng, count=4)
    distances = pairwise(members, measure)
    np.testing.assert_allclose(distances, one_by_one(members, measure), atol=1e-10)
    assert distances.dtype == np.float64 and np.all(np.diag(distances) == 0)
    assert np.array_equal(distances, distances.T) == (measure in SYMMETRIC)


@pytest.mark.parametrize("measure", sorted(set(MEASURES) - {"cosine", "euclidean"}))
def test_widths_may_differ(rng, measure):
    members = [member[:, : 3 + i] for i, member in enumerate(cohort(rng, count=4))]
    np.testing.assert_allclose(pairwise(members, measure), one_by_one(members, measure), atol=1e-10)


@pytest.mark.parametrize("block", [1, 2, 4, 9, 100])
@pytest.mark.parametrize("widest", [1, 2048])
def test_neither_blocks_nor_the_products_within_them_change_distances(rng, monkeypatch, block, widest):
    """Of more layers than one product has, of several widths, one of them 0."""
    monkeypatch.setattr(import_module("cca_dynamics.similarity.pairwise"), "WIDEST_TILE", widest)
    members = [member[:, : 3 + i % 5] for i, member in enumerate(cohort(rng, count=11))]
    members[6] = np.zeros_like(members[6])
    done = []
    distances = pairwise(members, block=block, progress=lambda count, of: done.append((count, of)))
    np.testing.assert_allclose(distances, one_by_one(members, "pwcca"), atol=1e-12)
    assert sum(count for count, _ in done) == 55 and {of for _, of in done} == {55}


@pytest.mark.parametrize(
    ("measure", "options"), [("svcca", {"keep": 0.8}), ("pwcca", {"weights": "squared"}), ("bartlett", {"alpha": 0.2})]
)
def test_options_reach_the_measure(rng, measure, options):
    members = cohort(rng, count=4)
    distances = pairwise(members, measure, **options)
    np.testing.assert_allclose(distances, one_by_one(members, measure, **options), atol=1e-10)
    assert np.abs(distances - pairwise(members, measure)).max() > 1e-4


@pytest.mark.parametrize("measure", [name for name, record in MEASURES.items() if record.kernel])
def test_float32_products_are_close(rng, measure):
    members = cohort(rng, count=3, n=2000, d=40, signal=20)
    exact, quick = pairwise(members, measure), pairwise(members, measure, precision="float32")
    error = np.abs(exact - quick).max()
    assert 0 < error < 1e-5


def test_threads_change_nothing(rng):
    members, before = cohort(rng), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(pairwise(members))
            assert torch.get_num_threads() == threads
        np.testing.assert_array_equal(*found)
    finally:
        torch.set_num_threads(before)


def test_factors_and_arrays_mix(rng):
    members = cohort(rng)
    factors = [factorize(member) for member in members]
    np.testing.assert_array_equal(pairwise([*factors[:3], *members[3:]]), pairwise(members))


def test_an_array_of_all_networks_is_a_sequence_of_them(rng):
    members = np.stack(cohort(rng))
    np.testing.assert_array_equal(pairwise(members), pairwise(list(members)))
    np.testing.assert_array_equal(pairwise(torch.from_numpy(members)), pairwise(list(members)))


def test_constant_layers_resemble_nothing(rng):
    members = [*cohort(rng)[:3], np.zeros((200, 8), dtype=np.float32), np.ones((200, 8), dtype=np.float32)]
    for measure in sorted(set(MEASURES) - {"cosine", "euclidean"}):
        distances = pairwise(members, measure)
        assert np.isfinite(distances).all() and distances[3, 4] == pytest.approx(MEASURES[measure].to_constant)
        np.testing.assert_allclose(distances[:3, 3:], MEASURES[measure].to_constant)


def test_the_identity_of_indiscernibles(rng):
    member = cohort(rng)[0]
    for measure in MEASURES:
        np.testing.assert_allclose(pairwise([member, member.copy()], measure), 0, atol=1e-7)


class Killed(BaseException):
    pass


def test_a_killed_run_goes_on_from_its_finished_blocks(rng, tmp_path, monkeypatch):
    members = cohort(rng, count=7)
    solved = []
    kernel = MEASURES["pwcca"].kernel

    def counting(cross, x, others):
        if len(solved) == limit:
            raise Killed
        solved.append(len(others))
        return kernel(cross, x, others)

    monkeypatch.setitem(MEASURES, "pwcca", replace(MEASURES["pwcca"], kernel=counting))
    cache = BlocksInFolder(tmp_path, "pwcca")
    limit = 17
    with pytest.raises(Killed):
        pairwise(members, block=2, cache=cache)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert len(kept) == 3 and all(
        name.endswith(".safetensors") for name in kept
    )  # blocks of pairs 1, 5 and 9: 15 of 21

    solved.clear()
    limit = 100
    distances = pairwise(members, block=2, cache=cache)
    assert sum(solved) == 6
    np.testing.assert_array_equal(distances, pairwise(members, block=2))


def test_stored_blocks_of_other_data_or_options_are_not_used(rng, tmp_path):
    members, cache = cohort(rng), BlocksInFolder(tmp_path, "pwcca")
    pairwise(members, cache=cache)
    other = [member + rng.normal(size=member.shape).astype(np.float32) for member in members]
    np.testing.assert_array_equal(pairwise(other, cache=cache), pairwise(other))
    np.testing.assert_array_equal(pairwise(members, "mean_cca", cache=cache), pairwise(members, "mean_cca"))
    np.testing.assert_array_equal(
        pairwise(members, weights="squared", cache=cache), pairwise(members, weights="squared")
    )


def flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize("damage", [lambda _: b"", lambda _: b"no tensors at all", lambda c: c[:-8], flipped])
def test_a_damaged_block_is_computed_again(rng, tmp_path, damage):
    members, cache = cohort(rng), BlocksInFolder(tmp_path, "pwcca")
    expected = pairwise(members, cache=cache)
    for path in tmp_path.iterdir():
        path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(pairwise(members, cache=cache), expected)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([], {}, "there are no representations to compare"),
        ("good", {"measure": "pcca"}, "measure 'pcca' is not known; choose one of pwcca"),
        ("good", {"precision": "float16"}, "precision is float64 or float32"),
        ("good", {"keep": 0.5}, "pwcca has no option 'keep'; it has weights"),
        ("good", {"block": 0}, "block is the number of representations in memory at once, at least 1, not 0"),
        ("rows", {}, r"representations\[2\] has 199 data points and representations\[0\] 200"),
        ("nan", {}, r"representations\[4\] has 1 values that are NaN or infinite"),
        ("flat", {}, r"representations\[1\] has shape \(1600,\)"),
        ("wide", {}, r"representations\[3\] spans all 199 directions"),
    ],
)
def test_bad_input_names_the_representation(rng, arguments, options, message):
    members = cohort(rng)
    match arguments:
        case "rows":
            members[2] = members[2][1:]
        case "nan":
            members[4][5, 5] = np.nan
        case "flat":
            members[1] = members[1].ravel()
        case "wide":
            members[3] = rng.normal(size=(200, 250))
    with pytest.raises(ValueError, match=message):
        pairwise([] if arguments == [] else members, **options)


def test_forced_correlations_are_warned_of_once(rng):
    members = list(rng.normal(size=(4, 20, 12)))
    with pytest.warns(DegenerateCCAWarning) as caught:
        pairwise(members)
    assert len(caught) == 1


def test_a_measure_is_a_function_and_a_line(rng, monkeypatch):
    """A new measure needs no kernel: it works in pairwise as soon as it is registered."""

    def squared_distance(x, y, *, power: float = 2.0, device: str = "cpu"):
        result = MEASURES["mean_cca"].function(x, y, device=device)
        return replace(result, distance=result.distance**power, reverse=result.reverse**power)

    members, expected = cohort(rng), pairwise(cohort(np.random.default_rng(0)), "mean_cca")
    monkeypatch.setitem(MEASURES, "squared", Measure(squared_distance))
    np.testing.assert_allclose(pairwise(members, "squared"), expected**2, atol=1e-12)
    np.testing.assert_allclose(pairwise(members, "squared", power=3), expected**3, atol=1e-12)


def test_the_floor_of_svcca_is_that_of_the_directions_it_compares(rng):
    x, y = (rng.standard_normal((300, 8)) * np.array([5, 4, 3, 1, 0.01, 0.01, 0.01, 0.01]) for _ in range(2))
    table = distance_table([x, y], ["svcca", "mean_cca"]).set_index(["measure", "network_a"])
    result = svcca(x, y)
    assert result.rank_x < 8 and table.loc[("svcca", 0), "value"] == pytest.approx(result.distance)
    assert table.loc[("svcca", 0), "floor"] == pytest.approx(result.floor)
    assert table.loc[("mean_cca", 0), "floor"] == pytest.approx(mean_cca(x, y).floor) != result.floor
    assert table.loc[("svcca", 0), "rank_a"] == 8
