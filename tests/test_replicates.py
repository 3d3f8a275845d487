"""The study under fresh seeds, and the protocol that says which seeds are fresh."""

import os
import re
import shutil
import subprocess

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from cca_dynamics.config import protocol
from cca_dynamics.errors import ConfigError, DamagedFile
from cca_dynamics.report import publish, replicates
from cca_dynamics.results import claims, figures
from cca_dynamics.results.claims import VERDICTS
from cca_dynamics.study import Study, read_config
from cca_dynamics.variants import fresh_seeds

from tests.builders import ROOT, SMOKE, copy_workflow, snakemake

PROTOCOL = """
date: 2026-11-20
config: "{checksum}"
chosen_on: [100, 1001]
used_seeds: {{0: 2026-11-18, 3: 2026-11-20, 1003: 2026-11-21}}
choices:
  - {{choice: Small networks., reason: They are quick.}}
"""


@pytest.fixture
def config(tmp_path) -> dict:
    """A config with a protocol that fits it."""
    path = tmp_path / "protocol.yaml"
    content = {"protocol": str(path), "results": {"width": {"filters": 8}}}
    checksum = protocol.config_checksum(Study({**content, "protocol": None}).config)
    path.write_text(PROTOCOL.format(checksum=checksum))
    return content


# Which seeds are fresh.


def test_fresh_seeds_are_counted_past_those_that_are_used_up(config):
    assert fresh_seeds(Study({**config, "seeds": 3})) == (1000, 1002, 1003)
    assert fresh_seeds(Study({**config, "seeds": 2, "seed": 1000})) == (1002, 1003)
    assert fresh_seeds(Study({**config, "seeds": [7, 5]})) == (7, 5)
    assert fresh_seeds(Study({"protocol": None, "seeds": 2})) == (1000, 1001)


def test_the_default_study_has_five_seeds_that_nobody_has_used(default_config):
    study = Study(default_config)
    fresh = fresh_seeds(study)
    assert len(set(fresh)) == 5 and not {*fresh} & {study.seed, *study.protocol.used}
    assert study.protocol.used >= {0, 1, 2, 7, 11, 100, 101}


@pytest.mark.parametrize(
    ("seeds", "remedy"),
    [
        (1, "1 is too small; the least is 2"),
        ([5], "too few entries; give at least 2"),
        ([5, 5], "repeats an entry"),
        ([5, 0], "0 is the study's own seed"),
        ([5, 3], "3 is used up: .*protocol.yaml lists it"),
        ([5, 100], "100 is used up"),
        (2.5, "2.5 is not of type integer"),
        ([5, "x"], "'x' is not of type integer"),
        ("many", "'many' is not of type integer"),
        (None, "null is not of type integer"),
    ],
)
def test_seeds_that_are_no_replicates_are_refused_by_key(config, seeds, remedy):
    with pytest.raises(ConfigError, match=rf"config key seeds(\.1)?: .*{remedy}") as refusal:
        fresh_seeds(Study({**config, "seeds": seeds}))
    assert "\n" not in str(refusal.value)


# What a run says of its protocol.


@pytest.mark.parametrize(
    ("seeds", "line"),
    [
        ([100], r"Seed 100 was used while the protocol of 2026-11-20 .* was being chosen: read its verdicts as explor"),
        ([0], r"Seed 0 was first used on 2026-11-18, before the protocol of 2026-11-20 .* read its verdicts as explor"),
        ([3], r"Seed 3 was first used on 2026-11-20, before"),
        ([1003], r"The protocol of 2026-11-20 \(sha256 [0-9a-f]{8}\) is older than the first use of seed 1003"),
        ([8, 9], r"is older than the first use of the seeds 8, 9"),
        ([8, 0, 3], r"The seeds 0, 3 were first used on 2026-11-18 and 2026-11-20, .* read their verdicts"),
    ],
)
def test_a_run_says_whether_its_protocol_is_older_than_its_seeds(config, seeds, line):
    assert re.search(line, Study(config).protocol.standing(seeds))


def test_a_run_says_when_its_config_differs_from_its_protocol(config):
    def lines(changes):
        study = Study({**config, **changes})
        return study.protocol.lines(study.config, [study.seed])

    how = {"device": "cpu", "jobs_per_gpu": 4, "networks_per_job": 2, "keep_activations": False}
    for same in ({"study": "other", "seed": 8, "seeds": 7}, how, {"targets": ["width"]}):
        (told,) = lines(same)
        assert "differs" not in told and "eed 8" in told if "seed" in same else "eed 0" in told
    (told,) = lines({"results": {"width": {"filters": 9}}})  # and nothing of seeds, which it says for other choices
    assert told.startswith(f"The config differs from its protocol, {config['protocol']}")


def test_renewing_a_protocol_changes_its_checksum_alone(config, tmp_path):
    study = Study({**config, "results": {"width": {"filters": 9}}})
    before = (tmp_path / "protocol.yaml").read_text()
    assert protocol.renew(config["protocol"], study.config)
    assert protocol.read(config["protocol"]).fits(study.config)
    after = (tmp_path / "protocol.yaml").read_text()
    assert [a == b for a, b in zip(after.splitlines(), before.splitlines(), strict=True)].count(False) == 1
    assert not protocol.renew(config["protocol"], study.config)


@pytest.mark.parametrize("overlay", [None, "cifar10", "wikitext2"])
def test_the_committed_protocols_fit_their_studies(overlay):
    """After a change of a study's choices: cca-dynamics protocol --renew, with the study's --configfile."""
    overlays = [ROOT / f"studies/{overlay}.yaml"] if overlay else []
    study = Study(read_config(overlays, ROOT / "config.yaml"))
    assert study.protocol.fits(study.config)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "No such file"),
        ("a: [1", "cannot be read"),
        ("- 1", "it holds no keys"),
        (PROTOCOL.replace("date: 2026-11-20", "date: soon"), "key date: "),
        (PROTOCOL.replace("date: 2026-11-20", ""), "key date: missing"),
        (PROTOCOL.replace("chosen_on: [100, 1001]", "chosen_on: [-1]"), r"key chosen_on\.0: -1 is too small"),
        (PROTOCOL.replace("reason:", "because:"), r"key choices\.0\.because: unknown key"),
        (PROTOCOL.replace("config:", "checksum:"), "key checksum: unknown key"),
    ],
)
def test_a_protocol_that_cannot_be_read_is_refused_by_key(tmp_path, text, problem):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text.format(checksum="0" * 16))
    with pytest.raises(ConfigError, match=rf"config key protocol: .*mine\.yaml.*{problem}") as refusal:
        Study({"protocol": str(path)})
    assert "\n" not in str(refusal.value)


# The table and the figure.


def made_up(count: int, seeds: int, rng: np.random.Generator) -> pd.DataFrame:
    """Verdicts of so many claims of five results under so many seeds; some seeds lack some claims."""
    rows = []
    for number in range(count):
        name = f"{('width', 'clusters', 'toy_rnn', 'stability', 'generalization')[5 * number // count]}.claim_{number}"
        for seed in range(1000, 1000 + seeds):
            if rng.random() < 0.95:
                verdict, value = rng.choice(VERDICTS), rng.normal()
                half_width = rng.exponential() if rng.random() < 0.9 else np.nan
                rows.append((name, seed, value, value - half_width, value + half_width, rng.random(), verdict))
    return pd.DataFrame(rows, columns=replicates.COLUMNS)


def test_a_summary_counts_seeds_and_measures_spread():
    verdicts = ["reproduced", "reproduced", "inconclusive", "not testable"]
    table = pd.DataFrame(
        {
            "claim": ["width.trend"] * 4 + ["width.five"],
            "seed": [1000, 1001, 1002, 1003, 1001],
            "value": [1.0, 2.0, 3.0, 99.0, 1.0],
            "ci_low": [0.5, 1.0, 2.0, 0.0, np.nan],
            "ci_high": [1.5, 3.0, 4.0, 200.0, np.nan],
            "p_value": np.nan,
            "verdict": [*verdicts, "not testable"],
        }
    )
    trend, five = replicates.summary(table).itertuples()
    assert (trend.holds, trend.seeds, trend.mean, trend.between) == (2, 3, 2.0, 1.0)
    assert (trend.low, trend.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert replicates.mean_in_words(trend) == "2 [-0.48, 4.5]" and replicates.mean_in_words(five) == "–"
    assert trend.within == pytest.approx((0.5 + 1 + 1) / 3) and trend.verdicts == tuple(verdicts)
    assert replicates.holds_in_words(trend) == "holds in 2 of 3" and replicates.holds_in_words(five) == "not testable"
    assert five.verdicts == ("", "not testable", "", "")
    assert [replicates.number_in_words(number) for number in (five.between, trend.within)] == ["–", "0.83"]
    assert replicates.counts_in_words(table) == "1 claim holds in 2 of 3, 1 claim not testable"


@pytest.mark.parametrize(("count", "seeds"), [(3, 2), (70, 10)])
def test_no_two_texts_of_the_figure_overlap(count, seeds, rng):
    figure = replicates.draw(made_up(count, seeds, rng))
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [text for axis in figure.axes for text in axis.texts if text.get_text()]
    boxes = np.array([text.get_window_extent(renderer).extents for text in texts])
    low, high = boxes[:, :2], boxes[:, 2:]
    assert (low >= figure.bbox.min).all() and (high <= figure.bbox.max).all()
    slack = np.array([0.5, 1.5])  # pixels: the boxes of letters of neighbouring lines touch
    overlap = ((low[:, None] + slack < high) & (low + slack < high[:, None])).all(axis=-1)
    pairs = [(texts[i].get_text(), texts[j].get_text()) for i, j in np.argwhere(overlap) if i < j]
    assert not pairs
    plt.close(figure)


def test_every_verdict_has_a_colour_and_a_mark():
    assert set(replicates.COLOURS) == set(replicates.MARKS) == set(VERDICTS)
    assert len(set(replicates.COLOURS.values())) == len(set(replicates.MARKS.values())) == len(VERDICTS)


def test_a_table_that_is_none_of_replicates_is_refused(tmp_path):
    (tmp_path / "replicates.csv").write_text("claim,seed\nwidth.trend,5\n")
    with pytest.raises(DamagedFile, match=r"replicates\.csv"):
        replicates.read(tmp_path / "replicates.csv")


def test_published_tables_say_in_how_many_seeds_claims_hold(rng):
    made = claims.Claim("width.claim_0", "4", "Wider is closer.", "ρ", 0.5, "reproduced", (0.1, 0.9))
    table = pd.DataFrame([made.row()], columns=claims.COLUMNS)
    of_seeds = made_up(10, 5, rng)
    row = next(replicates.summary(of_seeds).itertuples())
    assert publish.claims_table(table, of_seeds).endswith(
        f"| {replicates.holds_in_words(row)}; mean {replicates.mean_in_words(row)} |"
    )
    text = publish.results_table("small", table, of_seeds)
    assert "[Under 5 fresh seeds](figures/reference/small/replicates.png)" in text
    assert re.search(rf"claims? holds? in {row.holds} of {row.seeds}", text)
    assert "fresh" not in publish.results_table("small", table)


# The target.


def planned(folder, *arguments: str) -> dict[str, int]:
    """How many jobs of each rule a dry run of the smoke study would start."""
    run = snakemake(folder, *SMOKE, "--dry-run", *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+) ", run.stdout + run.stderr, re.MULTILINE)}


@pytest.mark.thorough
def test_replicates_share_what_the_seed_does_not_enter_and_nothing_else_pays_for_them(tmp_path):
    folder = copy_workflow(tmp_path)
    one, three = (planned(folder, *arguments) for arguments in ((), ("--config", "seeds=3", "--", "replicates")))
    assert three["corpus"] == one["corpus"] == 1
    of_each_seed = {"dataset", "train", "ablation", "compute", "test_claims", "claims"}
    assert {rule: three[rule] for rule in of_each_seed} == {rule: 3 * one[rule] for rule in of_each_seed}
    assert three["activations_of_variants"] == 3 * one["activations"] and "activations" not in three
    assert three["replicates"] == 1 and "plot" not in three
    assert "activations_of_variants" not in one and "replicates" not in one
    assert planned(folder, "--", "results/smoke/replicates/seed-1001/width.parquet")["train"] == 3


@pytest.mark.parametrize(
    ("seeds", "problem"),
    [
        ("1", "config key seeds: 1 is too small; the least is 2"),
        ("[5,0]", "config key seeds: 0 is the study's own seed"),
        ("[5,5]", "config key seeds: .* repeats an entry"),
    ],
)
def test_snakemake_refuses_seeds_before_any_job(tmp_path, seeds, problem):
    run = snakemake(copy_workflow(tmp_path), *SMOKE, "--config", f"seeds={seeds}", "--", "replicates")
    assert run.returncode != 0 and re.search(problem, run.stdout + run.stderr)
    assert not (tmp_path / "results").exists()


@pytest.fixture(scope="module")
def replicated(finished, tmp_path_factory):
    """A copy of the finished smoke study with two replicates of two of its results, and what the run printed."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("replicates") / "copy", symlinks=True)
    (folder / "few.yaml").write_text(yaml.safe_dump({"seeds": 2, "targets": ["toy_noise", "width"]}))
    run = snakemake(folder, *SMOKE[:2], "few.yaml", *SMOKE[2:], "--", "replicates")
    assert run.returncode == 0, run.stdout + run.stderr
    return folder, run.stdout


@pytest.mark.thorough
def test_replicates_are_the_same_study_under_other_seeds(replicated):
    folder, _ = replicated
    table = replicates.read(folder / "results/smoke/replicates.csv")
    assert set(table["seed"]) == {1000, 1001}
    for seed, of_seed in table.groupby("seed"):
        own = claims.read(folder / f"results/smoke/replicates/seed-{seed}/claims.csv")
        pd.testing.assert_frame_equal(
            of_seed.drop(columns="seed").reset_index(drop=True), own[of_seed.columns.drop("seed")]
        )
    values = table.pivot_table(index="claim", columns="seed", values="value").dropna()
    assert (values[1000] != values[1001]).any()
    for suffix in figures.FORMATS:
        assert (folder / f"figures/smoke/replicates.{suffix}").stat().st_size > 1000


@pytest.mark.thorough
def test_activations_of_replicates_are_dropped_and_the_study_is_untouched(replicated, finished):
    folder, _ = replicated
    assert list((folder / "results/smoke/replicates").glob("seed-*/networks/*/*/step-*.safetensors"))
    assert not list((folder / "results/smoke/replicates").glob("seed-*/activations/*/*/*/*"))
    environment = {**os.environ, "PYTHONPATH": str(folder / "workflow")}
    command = ["cca-dynamics", "verify", "smoke"]
    checked = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    again = snakemake(folder, *SMOKE)
    assert "othing to be done" in again.stdout + again.stderr


@pytest.mark.thorough
def test_the_run_ends_with_how_often_claims_hold(replicated):
    _, printed = replicated
    assert "Holds in" in printed and "width.trend" in printed and "verdicts: 1000, 1001" in printed
    assert "figures/smoke/replicates.png" in printed and "nan" not in printed


@pytest.mark.thorough
def test_the_report_shows_replicates(replicated):
    folder, _ = replicated
    run = snakemake(folder, *SMOKE, "--", "report")
    assert run.returncode == 0, run.stdout + run.stderr
    page = (folder / "figures/smoke/report.html").read_text()
    section = page[page.index('<section id="replicates"') : page.index('<section id="stability"')]
    assert "1000, 1001" in section and "width.trend" in section and ">nan<" not in section
    assert re.search(r">[012] of 2<", section)
