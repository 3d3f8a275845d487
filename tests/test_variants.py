"""Several studies in one DAG: what a variant shares with its study and with earlier variants, and who makes it."""

import pytest
import yaml
from cca_dynamics.errors import UserError
from cca_dynamics.study import Study
from cca_dynamics.variants import Family, Job, inputs_of

from tests.builders import ROOT, jobs_of

CONFIG = yaml.safe_load((ROOT / "studies/smoke.yaml").read_text())
VARIANTS = {
    "replicates/seed-5": {"seed": 5},
    "replicates/seed-6": {"seed": 6},
    "readings/margin": {"results": {"generalization": {"margin": 0.1}}},
    "readings/filters": {"results": {"width": {"filters": 4}}},
    "readings/momentum": {"training": {"momentum": 0.8}},
    "readings/momentum-and-filters": {"training": {"momentum": 0.8}, "results": {"width": {"filters": 4}}},
}
SWEEP = {"cohort": "sweep", "part": "0-9"}


@pytest.fixture(scope="module")
def family() -> Family:
    return Family(Study(CONFIG), VARIANTS)


def owner(family: Family, variant: str, stage: str, **which: str) -> str:
    return family.owner(f"smoke/{variant}", Job(stage, **which)).removeprefix("smoke").removeprefix("/")


def test_a_seed_shares_the_text_alone(family):
    for variant in ("replicates/seed-5", "replicates/seed-6"):
        assert owner(family, variant, "corpus") == ""
        own = [Job("dataset"), Job("train", **SWEEP), Job("ablation", **SWEEP), Job("compute", result="toy_noise")]
        own += [Job("activations", "lstm", "0-1"), Job("claims", result="width"), Job("merge")]
        for job in own:
            assert family.owner(f"smoke/{variant}", job) == f"smoke/{variant}", job


@pytest.mark.parametrize(
    ("variant", "shared", "own"),
    [
        ("readings/margin", [("compute", "generalization"), ("claims", "width")], [("claims", "generalization")]),
        ("readings/filters", [("compute", "generalization")], [("compute", "width"), ("claims", "width")]),
    ],
)
def test_a_reading_shares_what_its_options_do_not_enter(family, variant, shared, own):
    assert owner(family, variant, "train", **SWEEP) == owner(family, variant, "activations", **SWEEP) == ""
    assert {owner(family, variant, stage, result=result) for stage, result in shared} == {""}
    assert {owner(family, variant, stage, result=result) for stage, result in own} == {variant}
    assert owner(family, variant, "merge") == variant


def test_a_job_that_the_study_lacks_is_shared_with_the_first_variant_that_has_it(family):
    last = "readings/momentum-and-filters"
    assert owner(family, last, "train", **SWEEP) == owner(family, last, "ablation", **SWEEP) == "readings/momentum"
    assert owner(family, last, "compute", result="clusters") == "readings/momentum"
    assert owner(family, last, "compute", result="toy_noise") == ""
    # Its networks are those of one reading and its options those of another, but no other has both.
    assert owner(family, last, "compute", result="width") == last


def test_a_job_reads_where_its_inputs_are_made(family):
    folder = "smoke/readings/momentum-and-filters"
    job = Job("compute", result="width")
    networks, activations = family.inputs(folder, job, "train"), family.inputs(folder, job, "activations")
    assert networks == [f"results/smoke/readings/momentum/networks/width-{m}/0-1" for m in ("0.5", "1", "2")]
    assert activations == [path.replace("/networks/", "/activations/") for path in networks]
    assert family.path(folder, job) == f"results/{folder}/width.parquet"
    models = Job("compute", result="recurrent_training")
    assert all(path.startswith("results/smoke/networks/lstm") for path in family.inputs(folder, models, "train"))


def test_the_jobs_of_a_study_read_each_other_as_the_tests_of_reruns_say():
    study = Study(CONFIG)
    family = Family(study, {})
    for (stage, name), expected in jobs_of(study).items():
        if stage in ("dataset", "corpus", "merge"):
            job = Job(stage)
        else:
            *_, first, second = name.split("/")
            job = Job(stage, result=second) if first == "smoke" else Job(stage, first, second)
        assert {other.stage for other in inputs_of(study, job)} == {other for other, _ in expected.after}, job
        assert len(inputs_of(study, job)) == len(set(expected.after))
        assert family.params("smoke", job) == expected.params


def test_the_origin_of_a_job_changes_with_any_job_before_it_and_with_nothing_else(family):
    """What tells an output that was made of other inputs, whatever the times of the files say."""
    folder, stages = "smoke/readings/momentum", ("train", "activations", "ablation", "compute", "claims", "plot")
    study = family.study(folder)
    cohorts = {
        Job(stage, cohort.name, part)
        for stage in stages[:3]
        for cohort in study.cohorts.values()
        if stage != "ablation" or cohort.ablation
        for part in study.parts(cohort.name)
    }
    jobs = cohorts | {Job(stage, result=result) for stage in stages[3:] for result in study.targets}
    jobs |= {Job("merge"), Job("crate"), Job("report")}

    def before(job):
        return {job, *(earlier for other in inputs_of(study, job) for earlier in before(other))}

    retrained = {job for job in cohorts if job.stage == "train" and not job.cohort.startswith("lstm")}
    follow = {job for job in jobs if retrained & (before(job) - {job})}
    assert Job("claims", result="width") in follow and Job("plot", result="recurrent_sequence") not in follow
    other = {job for job in jobs if family.origin(folder, job) != family.origin("smoke", job)}
    assert other == follow


def test_the_history_of_an_output_has_the_params_of_its_own_job(family):
    job = Job("claims", result="generalization")
    variant = "smoke/readings/margin"
    assert family.origin(variant, job) == family.origin("smoke", job)
    assert family.history((variant, job)) != family.history(("smoke", job))
    assert family.history(("smoke", job), (variant, job)) != family.history((variant, job), ("smoke", job))


def test_what_is_not_there_is_refused_by_name(family):
    with pytest.raises(UserError, match="smoke/readings/other is no variant of the study smoke"):
        family.study("smoke/readings/other")
    with pytest.raises(UserError, match="has no networks sweep/0-3"):
        family.path("smoke", Job("train", "sweep", "0-3"))
    wrong = Family(family.base, {"readings/wrong": {"results": {"width": {"filters": 999}}}})
    with pytest.raises(UserError, match=r"the variant smoke/readings/wrong .* results\.width\.filters: .* or fewer"):
        wrong.study("smoke/readings/wrong")
    assert wrong.study("smoke").name == "smoke"  # a variant is validated when it is asked for
