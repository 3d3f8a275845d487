"""Readings of what the paper leaves open: which variants run, which jobs they share, what becomes of their claims."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from cca_dynamics import cli
from cca_dynamics.config.models import StageOptions
from cca_dynamics.errors import ConfigError, DamagedFile
from cca_dynamics.readings import changes_of, in_words, jobs_of_claims, readings
from cca_dynamics.report import multiverse
from cca_dynamics.results import claims, width
from cca_dynamics.results.claims import NOT_TESTABLE, REPRODUCED, VERDICTS
from cca_dynamics.results.tables import distance_table, measures_of
from cca_dynamics.study import Study
from cca_dynamics.variants import Family, Job
from matplotlib.text import Text

from tests.builders import HOSTILE, ROOT, copy_workflow, snakemake

SMOKE = yaml.safe_load((ROOT / "studies/smoke.yaml").read_text())
RESULTS = list(SMOKE["multiverse"])


def study_with(listed: dict, **changes: object) -> Study:
    """The smoke study with these readings and no others."""
    none = {result: {key: [] for key in of_result} for result, of_result in Study({}).config.multiverse}
    return Study(
        {**SMOKE, **changes, "multiverse": {result: {**none[result], **listed.get(result, {})} for result in none}}
    )


def names(study: Study, result: str) -> list[str]:
    """The names of the variants of a result; "" is the study itself."""
    return [reading.name.removeprefix(f"readings/{result}").removeprefix("-") for reading in readings(study)[result]]


def test_values_that_need_no_networks_are_combined_and_others_are_tried_alone():
    study = study_with({"width": {"filters": [2, 3], "measures": [["pwcca"]], "training.weight_decay": [0.1, 0.2]}})
    assert names(study, "width") == [
        *("", "measures-pwcca", "filters-2", "filters-2-measures-pwcca", "filters-3", "filters-3-measures-pwcca"),
        *("weight_decay-0.1", "weight_decay-0.2"),
    ]
    assert names(study, "clusters") == [""]


def test_a_reading_says_what_it_chooses_and_what_it_changes():
    study = study_with(
        {"generalization": {"margin": [0.1], "dataset": [{"name": "digits"}], "training.schedule": ["linear"]}}
    )
    own, margin, digits, schedule = readings(study)["generalization"]
    assert own.choices == {"margin": "0.05", "dataset": "mnist1d", "training.schedule": "cosine"} and own.changes == {}
    assert margin.choices == own.choices | {"margin": "0.1"}
    assert digits.choices == own.choices | {"dataset": "digits"} and digits.changes == {"dataset": {"name": "digits"}}
    assert schedule.changes == {"results": {"generalization": {"training": {"schedule": "linear"}}}}
    assert changes_of(readings(study))["readings/generalization-margin-0.1"] == margin.changes


def test_a_value_that_the_study_has_is_no_reading():
    listed = {
        "generalization": {
            "margin": [0.05, 0.1],
            "dataset": [{"name": "mnist1d"}],
            "early_layers": [["conv1", "conv2"]],
        }
    }
    assert names(study_with(listed), "generalization") == ["", "margin-0.1"]


def test_a_block_reads_as_what_the_readings_state_of_it():
    study = study_with(
        {"recurrent_training": {"language_training": [{"schedule": "constant", "learning_rate": 0.002}]}}
    )
    own, other = readings(study)["recurrent_training"]
    assert own.choices == {"language_training": "schedule constant, learning_rate 0.004"}
    assert other.choices == {"language_training": "schedule constant, learning_rate 0.002"}
    base, variant = (
        Family(study, changes_of(readings(study))).study(folder) for folder in ("smoke", f"smoke/{other.name}")
    )
    assert variant.config.language_training.epochs == base.config.language_training.epochs


@pytest.mark.parametrize("value", [*HOSTILE, "../up", "a/b", ".", "x" * 500])
def test_names_are_safe_folders(value):
    (_, reading) = readings(study_with({"width": {"layer": [value]}}))["width"]
    assert re.fullmatch(r"readings/width-[A-Za-z0-9._-]+", reading.name) and len(reading.name) < 150


def test_values_that_look_alike_have_different_names():
    found = names(study_with({"width": {"layer": ["a/b", "a b", "a-b"]}}), "width")
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("listed", "key", "problem"),
    [
        ({"width": {"filtres": [3]}}, "width.filtres", "width has no such reading; did you mean filters"),
        ({"width": {"early_layers": [["conv1"]]}}, "width.early_layers", "width has no such reading"),
        ({"toy_noise": {"dataset": [{"name": "digits"}]}}, "toy_noise.dataset", "its keys are draws"),
        (
            {"width": {"language_training.schedule": ["constant"]}},
            "width.language_training.schedule",
            "no such reading",
        ),
        ({"width": {"training.learning_rat": [1]}}, "width.training.learning_rat", "did you mean learning_rate"),
        ({"toy_rnn": {"networks": list(range(2, 601))}}, "toy_rnn", "asks for 4,792 readings, more than 500"),
        ({"width": {"filters": 3}}, "width.filters", "3 is not of type array"),
        ({"widht": {}}, "widht", "did you mean width"),
    ],
)
def test_a_reading_that_its_result_does_not_have_is_refused_by_key(listed, key, problem):
    with pytest.raises(ConfigError, match=rf"^config key multiverse\.{re.escape(key)}: .*{problem}"):
        readings(Study({**SMOKE, "multiverse": listed}))


@pytest.mark.parametrize(
    ("value", "problem"), [(99, "99 filters are more than the 8"), ("many", "not of type integer")]
)
def test_a_value_that_cannot_be_used_is_refused_when_it_is_asked_for(value, problem):
    study = study_with({"width": {"filters": [value]}})
    family = Family(study, changes_of(readings(study)))
    with pytest.raises(ConfigError, match=rf"multiverse\.width: the variant .*results\.width\.filters: .*{problem}"):
        jobs_of_claims(family, readings(study))


def test_networks_and_tables_are_shared_wherever_a_value_does_not_enter_them():
    study = study_with(
        {
            "generalization": {"margin": [0.1], "measures": [["pwcca"]], "dataset": [{"name": "digits"}]},
            "width": {"dataset": [{"name": "digits"}]},
        }
    )
    family = Family(study, changes_of(readings(study)))

    def owner(name: str, stage: str, **which: str) -> str:
        return (
            family.owner(f"smoke/readings/{name}", Job(stage, **which)).removeprefix("smoke").removeprefix("/readings/")
        )

    networks = {"cohort": "generalizing", "part": "0-1"}
    for name in (
        "generalization-margin-0.1",
        "generalization-measures-pwcca",
        "generalization-margin-0.1-measures-pwcca",
    ):
        assert owner(name, "train", **networks) == owner(name, "activations", **networks) == ""
        assert owner(name, "claims", result="generalization") == name
    assert owner("generalization-margin-0.1", "compute", result="generalization") == ""
    combined = "generalization-margin-0.1-measures-pwcca"
    assert owner(combined, "compute", result="generalization") == "generalization-measures-pwcca"
    digits = "generalization-dataset-digits"
    assert owner(digits, "train", **networks) == digits
    assert owner("width-dataset-digits", "dataset") == digits
    paths = [family.path(*job) for job in jobs_of_claims(family, readings(study))]
    assert paths.count("results/smoke/claims/clusters.csv") == 1
    assert f"results/smoke/readings/{digits}/claims/generalization.csv" in paths
    assert not any("digits/claims/clusters" in path for path in paths)


def test_the_default_study_s_readings_can_be_run_and_retrain_no_sweep():
    study = Study({})
    listed = readings(study)
    family = Family(study, changes_of(listed))
    paths = [family.path(*job) for job in jobs_of_claims(family, listed)]
    assert len(paths) == len(set(paths)) == sum(map(len, listed.values()))
    retrained = {
        (family.owner(f"mnist1d/{reading.name}", job), job.cohort)
        for result, of_result in listed.items()
        for reading in of_result[1:]
        for cohort in family.study(f"mnist1d/{reading.name}").cohorts_of(result)
        for job in [
            Job("train", cohort.name, part) for part in family.study(f"mnist1d/{reading.name}").parts(cohort.name)
        ][:1]
    }
    assert "sweep" not in {cohort for folder, cohort in retrained if folder != "mnist1d"}


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "none"), (True, "true"), (0.001, "0.001"), (["a", 2], "a, 2"), ({"name": "digits"}, "digits"), ("x", "x")],
)
def test_values_in_words(value, words):
    assert in_words(value) == words


def test_the_target_makes_the_claims_of_each_reading_and_nothing_else(tmp_path):
    folder = copy_workflow(tmp_path / "clone")
    run = snakemake(folder, "multiverse", "--dry-run", "--configfile", "studies/smoke.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    jobs = {
        row[0]: int(row[1])
        for row in (line.split() for line in run.stdout.splitlines())
        if len(row) > 1 and row[1].isdigit()
    }
    study = Study(SMOKE)
    listed = readings(study)
    family = Family(study, changes_of(listed))
    assert jobs["test_claims"] == len({family.path(*job) for job in jobs_of_claims(family, listed)})
    assert jobs["multiverse"] == 1 and "plot" not in jobs and "claims" not in jobs
    assert jobs["dataset"] == 2 and jobs["ablation"] == 1


def test_a_wrong_reading_ends_the_run_before_any_job(tmp_path):
    folder = copy_workflow(tmp_path / "clone")
    wrong = "multiverse={width: {filters: [999]}}"
    run = snakemake(folder, "multiverse", "--configfile", "studies/smoke.yaml", "--config", wrong)
    assert (
        run.returncode and "multiverse.width: the variant smoke/readings/width-filters-999" in run.stdout + run.stderr
    )
    assert not (folder / "results").exists()
    run = snakemake(
        folder, "width", "--configfile", "studies/smoke.yaml", "--config", "multiverse={width: {layr: [conv1]}}"
    )
    assert run.returncode and "multiverse.width.layr: width has no such reading" in run.stdout + run.stderr


def test_another_measure_may_stand_for_pwcca():
    options = width.Options(measures=("pwcca", "cosine"), pwcca="pwcca_squared")
    measures = measures_of(StageOptions(options, "compute"))
    assert measures == {"pwcca": "pwcca_squared", "cosine": "cosine"}
    layers = list(np.random.default_rng(0).normal(size=(3, 60, 5)))
    squared, plain = distance_table(layers, ["pwcca_squared"]), distance_table(layers, ["pwcca"])
    read = distance_table(layers, measures)
    assert list(read["measure"].unique()) == ["pwcca", "cosine"]
    np.testing.assert_array_equal(read.loc[read["measure"] == "pwcca", "value"], squared["value"])
    assert (squared["value"] != plain["value"]).all()


def test_only_readings_of_pwcca_stand_for_it():
    with pytest.raises(
        ConfigError, match=r"results\.width\.pwcca: 'svcca' is not known; choose one of pwcca, pwcca_sq"
    ):
        Study({**SMOKE, "results": {"width": {"pwcca": "svcca"}}})


# The table and the figures.


def made_up_claims(folder, result: str, names: list[str], number: int):
    """A table of claims of one result, as the stage `claims` writes it."""
    rng = np.random.default_rng([number, len(result)])
    path = folder / f"{result}-{number}.csv"
    of_result = []
    for name in names:
        value, half = rng.normal(), abs(rng.normal()) + 0.01
        verdict = VERDICTS[rng.integers(len(VERDICTS))]
        texts = {"claim": f"{result}.{name}", "figure": "1", "statement": "It is so.", "statistic": "a number"}
        of_result.append(claims.Claim(**texts, value=value, interval=(value - half, value + half), verdict=verdict))
    claims.write(of_result, path)
    return path


NAMES = {
    "width": ["fitted", "raw_miss_it_cosine"],
    "toy_noise": ["svcca_over_pwcca.deviation", "svcca_over_pwcca.variance"],
}


@pytest.fixture
def collected(tmp_path):
    study = study_with({"width": {"filters": [2, 3], "training.weight_decay": [0.1]}, "toy_noise": {"points": [300]}})
    listed = [reading for of_result in readings(study).values() for reading in of_result if reading.result in NAMES]
    paths = [made_up_claims(tmp_path, r.result, NAMES[r.result], number) for number, r in enumerate(listed)]
    return multiverse.collect(listed, paths)


def test_the_table_has_a_row_for_each_claim_and_reading(collected):
    assert list(collected.columns) == multiverse.COLUMNS
    assert collected["claim"].value_counts().to_dict() == {
        **{f"width.{name}": 4 for name in NAMES["width"]},
        **{f"toy_noise.{name}": 2 for name in NAMES["toy_noise"]},
    }
    row = collected[collected["variant"] == "readings/width-filters-3"].iloc[0]
    assert json.loads(row["reading"]) == {"filters": "3", "training.weight_decay": "0"}


def test_a_reading_that_changes_nothing_is_left_out(tmp_path):
    own, one, other = readings(study_with({"width": {"filters": [2, 3]}}))["width"]
    paths = [made_up_claims(tmp_path, "width", NAMES["width"], number) for number in (0, 1)]
    table = multiverse.collect([own, one, other], [paths[0], paths[0], paths[1]])
    assert list(table["variant"].unique()) == ["", other.name]


def test_the_last_words_of_a_claim_s_name_are_a_reading_too(collected):
    of_claim = multiverse.by_claim(collected)
    assert list(of_claim) == ["toy_noise.svcca_over_pwcca", "width.fitted", "width.raw_miss_it_cosine"]
    found = [(choices["points"], choices["claim"]) for choices in of_claim["toy_noise.svcca_over_pwcca"]["choices"]]
    assert sorted(found) == [([points], [words]) for points in ("200", "300") for words in ("deviation", "variance")]
    assert all("claim" not in choices for choices in of_claim["width.fitted"]["choices"])


def test_the_summary_counts_readings_that_could_be_tested():
    reading = json.dumps({"a": "1"})
    rows = [
        ("x.y", "", reading, 1.0, 0.5, 1.5, 0.01, REPRODUCED),
        ("x.y", "readings/b", reading, 3.0, 2.0, 4.0, 0.01, REPRODUCED),
        ("x.y", "readings/c", reading, np.nan, np.nan, np.nan, np.nan, NOT_TESTABLE),
        ("x.y", "readings/d", reading, -1.0, -2.0, 0.1, 0.5, "inconclusive"),
    ]
    (row,) = multiverse.summary(pd.DataFrame(rows, columns=multiverse.COLUMNS)).to_dict("records")
    assert (row["holds"], row["readings"], row["own"], row["lowest"], row["highest"]) == (2, 3, 1.0, -1.0, 3.0)
    assert multiverse.share_in_words(row) == "2 of 3"


def test_readings_with_the_same_numbers_count_once():
    def row(claim, variant, value, **choices):
        return claim, variant, json.dumps(choices), value, value - 1, value + 1, 0.01, REPRODUCED

    rows = [
        row("x.y", "", 1.0, a="1", b="1"),
        row("x.y", "readings/a", 1.0, a="2", b="1"),  # a does not enter it
        row("x.y", "readings/b", 2.0, a="1", b="2"),
        row("x.y", "readings/ab", 2.0, a="2", b="2"),
        row("x.z", "", 1.0, a="1", b="1"),
        row("x.z", "readings/b", 1.0, a="1", b="2"),
    ]
    table = pd.DataFrame(rows, columns=multiverse.COLUMNS)
    of_claim = multiverse.by_claim(table)
    assert list(of_claim["x.y"]["choices"]) == [{"a": ["1", "2"], "b": ["1"]}, {"a": ["1", "2"], "b": ["2"]}]
    assert list(of_claim["x.y"]["variant"]) == ["", "readings/b"] and len(of_claim["x.z"]) == 1
    one, other = multiverse.summary(table).to_dict("records")
    assert (one["holds"], one["readings"]) == (2, 2) and (other["holds"], other["readings"]) == (1, 1)
    assert multiverse.tally_in_words(multiverse.summary(table)) == (
        "1 of 2 claims have other numbers under other readings: 1 are reproduced in every reading that can test them, "
        "0 in some, 0 in none"
    )


def test_curves_show_every_reading_in_order_and_what_it_chooses(collected):
    figure = multiverse.draw_curves(collected[collected["claim"].str.startswith("width")])
    curves, matrices = figure.axes[::2], figure.axes[1::2]
    assert len(curves) == len(matrices) == 2
    for curve, matrix, name in zip(curves, matrices, NAMES["width"], strict=True):
        values = {
            x: y
            for line in curve.lines
            if line.get_linestyle() == "None"
            for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
        }
        expected = collected.loc[collected["claim"] == f"width.{name}", "value"]
        np.testing.assert_allclose([values[place] for place in range(4)], sorted(expected))
        marks = np.concatenate([np.asarray(points.get_offsets()) for points in matrix.collections])
        assert sorted(marks[:, 0]) == sorted([*range(4)] * 2)  # two choices each
    labels = {text.get_text().strip() for text in matrices[0].texts}
    assert {"filters", "2", "3", "6", "weight decay", "0.1"} <= labels
    assert multiverse.draw_curves(collected[collected["claim"] == "toy_noise.svcca_over_pwcca.variance"]) is None


def test_no_text_of_the_overview_lies_on_another():
    rng = np.random.default_rng(0)
    values = -(10.0 ** rng.uniform(-5, 3, 60))
    columns = {"claim": [f"width.{'long_name_' * 3}{i // 2}" for i in range(60)], "variant": ["", "readings/a"] * 30}
    rest = {
        "reading": "{}",
        "value": values,
        "ci_low": values,
        "ci_high": values,
        "p_value": 0.5,
        "verdict": REPRODUCED,
    }
    figure = multiverse.draw_overview(pd.DataFrame(columns | rest)[multiverse.COLUMNS])
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts if text.get_text()]
    assert len(boxes) > 100
    lying_on = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b) and abs(a.y0 - b.y0) < 1]
    assert not lying_on and all(box.x1 <= figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e-5, 1.0, 1e4])
def test_no_text_of_the_curves_lies_on_another(collected, scale):
    names = ["stable_beyond_principal_and_random_directions", "late"]
    rows = [
        collected[collected["claim"] == f"width.{name}"].assign(claim=f"width.{other}")
        for name, other in zip(NAMES["width"], names, strict=True)
    ]
    table = pd.concat(rows, ignore_index=True)
    numbers = ["value", "ci_low", "ci_high"]
    table[numbers] = scale * table[numbers] + (0.9 if scale == 1e-5 else 0)  # ticks such as .90001 invite an offset
    figure = multiverse.draw_curves(table)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    beyond = [  # labels of ticks that are not drawn, because they lie beyond the ends of their axis
        tick.label1
        for axes in figure.axes
        for tick in axes.yaxis.get_major_ticks()
        if not axes.get_ylim()[0] <= tick.get_loc() <= axes.get_ylim()[1]
    ]
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    texts = [text for text in texts if text not in beyond]
    boxes = [text.get_window_extent(renderer) for text in texts]
    assert any("\n" in text.get_text() for text in texts)
    lying_on = [
        (one.get_text(), other.get_text())
        for i, (one, box) in enumerate(zip(texts, boxes, strict=True))
        for other, below in zip(texts[:i], boxes[:i], strict=True)
        if min(box.x1, below.x1) - max(box.x0, below.x0) > 1 and min(box.y1, below.y1) - max(box.y0, below.y0) > 1
    ]
    assert not lying_on
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_a_few_wide_intervals_do_not_flatten_the_others():
    values = np.array([0.1, 0.2, 0.3])
    low, high = multiverse._limits(values, values - np.array([0.1, 0.1, 1e6]), values + np.array([0.1, 0.1, 1e6]))
    assert -0.3 < low < 0 and 0.4 < high < 0.7


def test_a_value_that_no_reading_changes_has_a_scale_that_can_be_read():
    same, unknown = np.ones(5), np.full(5, np.nan)
    low, high = multiverse._limits(same, unknown, unknown)
    assert low < 0.999 and high > 1.001  # ticks of a scale of 1e-6 around 1 need an offset, which hides the title


def test_the_command_writes_the_table_the_overview_and_the_curves(tmp_path):
    study = study_with({"width": {"filters": [2, 3]}}, targets=["width", "toy_noise"])
    paths = [made_up_claims(tmp_path, "width", NAMES["width"], number) for number in range(3)]
    paths.append(made_up_claims(tmp_path, "toy_noise", NAMES["toy_noise"], 3))
    outputs = [tmp_path / f"multiverse.{suffix}" for suffix in ("png", "svg")]
    arguments = [
        *map(str, paths),
        "--config",
        study.config.model_dump_json(),
        "--table",
        str(tmp_path / "multiverse.csv"),
    ]
    assert cli.main(["multiverse", *arguments, "--out", *map(str, outputs), "--curves", str(tmp_path / "curves")]) == 0
    table = multiverse.read(tmp_path / "multiverse.csv")
    assert len(table) == 8 and set(table["variant"]) == {"", "readings/width-filters-2", "readings/width-filters-3"}
    assert {path.name for path in tmp_path.glob("curves/*")} == {"width.png", "width.svg"}
    drawn = outputs[1].read_text()
    assert "raw miss it cosine" in drawn and "SVCCA over PWCCA" in drawn
    (tmp_path / "multiverse.csv").write_text("claim\n1\n")
    with pytest.raises(DamagedFile, match=r"multiverse\.csv"):
        multiverse.read(tmp_path / "multiverse.csv")
