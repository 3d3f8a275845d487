"""What jobs ask a scheduler for: more where networks, data or text are larger, and more in each attempt."""

import subprocess
import sys
import time

import pytest
from cca_dynamics.counts import LEAST_MEMORY, LEAST_MINUTES, MOST_MINUTES, Requests
from cca_dynamics.study import Study, read_config
from cca_dynamics.variants import Job, inputs_of

from tests.builders import ROOT

STAGES = ("train", "activations", "ablation")


def study(name: str, **changes) -> Study:
    overlays = [ROOT / f"studies/{overlay}.yaml" for overlay in name.split()]
    return Study({**read_config(overlays, ROOT / "config.yaml"), **changes})


def jobs(of: Study) -> list[Job]:
    """All jobs whose memory is estimated."""
    result = [Job("dataset"), Job("corpus")]
    for name in of.targets:
        job = Job("compute", result=name)
        result += [job, *inputs_of(of, job)]
    return list(dict.fromkeys(result))


def test_small_jobs_ask_for_the_least():
    requests = Requests(study("smoke"), "cpu")
    for job in jobs(study("smoke")):
        assert requests.megabytes(job) == LEAST_MEMORY and requests.minutes(job) == LEAST_MINUTES[job.stage]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["", "paper", "paper-recurrent", "cifar10 cifar10-full", "vit", "custom"])
def test_every_study_has_requests_that_grow_with_attempts(name, device):
    of = study(name)
    requests = Requests(of, device)
    for job in jobs(of):
        first, second = (requests.megabytes(job, attempt) for attempt in (1, 2))
        assert LEAST_MEMORY <= first < 100_000 and second == 2 * first
        minutes = requests.minutes(job)
        assert LEAST_MINUTES[job.stage] <= minutes and requests.minutes(job, 3) == min(3 * minutes, MOST_MINUTES)


def test_larger_jobs_ask_for_more():
    def asked(stage: str, cohort: str = "", device: str = "cpu", **changes) -> tuple[int, int]:
        of = study("paper", **changes)
        job = next(job for job in jobs(of) if job.stage == stage and job.cohort == cohort)
        requests = Requests(of, device)
        return requests.megabytes(job), requests.minutes(job)

    wide, narrow = asked("train", "width-2"), asked("train", "width-0.5")
    assert wide[0] > narrow[0] and asked("activations", "width-2") > asked("activations", "width-1")
    few, many = (asked("activations", "width-1", networks_per_job=number) for number in (1, 5))
    assert few[0] < many[0] and few[1] < many[1]
    assert asked("train", "width-0.25", networks_per_job=1)[1] > asked("train", "width-0.25", "cuda")[1]
    assert asked("compute", targets=["width"])[0] > asked("compute", targets=["width"], data_points=9000)[0]


@pytest.mark.parametrize(
    ("job", "took"), [(Job("train", "stability", "0-4"), 2361), (Job("activations", "memorizing-10000", "0-4"), 1669)]
)
def test_jobs_ask_for_no_less_than_they_took(job, took):
    """MB that the largest jobs of the CIFAR-10 study took on two cores of an AMD EPYC."""
    assert took <= Requests(study("cifar10"), "cpu").megabytes(job)


def test_nothing_heavy_is_imported_and_all_requests_are_quick():
    code = "import sys, cca_dynamics.counts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "workflow")}).returncode == 0
    of = study("", networks_per_job=1)
    all_jobs = jobs(of)
    start = time.process_time()
    requests = Requests(of, "cpu")
    for job in all_jobs:
        requests.megabytes(job), requests.minutes(job)
    assert len(all_jobs) > 500 and time.process_time() - start < 1
