# What all rules share: the validated study, its paths, and how rules name the code they depend on.
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

from snakemake.resources import Resource

from cca_dynamics.config.base import as_argument
from cca_dynamics.errors import UserError
from cca_dynamics.report.captions import caption_of
from cca_dynamics.results.language_models import tokens_needed
from cca_dynamics.study import Study, check_output_folders

try:
    study = Study(config)
    check_output_folders(study)
except UserError as problem:
    raise WorkflowError(str(problem)) from None

STARTED = time.time()
RESULTS = f"results/{study.name}"
FIGURES = f"figures/{study.name}"
LOGS = f"logs/{study.name}"


wildcard_constraints:
    cohort="|".join(map(re.escape, study.cohorts)) or "none",
    part=r"\d+-\d+",
    result="|".join(study.results),


# Whether jobs need a GPU from the scheduler. "auto" asks for one only where this machine has one, so that on a laptop jobs
# run side by side; where the scheduler's machine differs from the workers, say device=cuda.
# On this machine one GPU job runs at a time unless a profile or `--resources gpu=N` says that it has more GPUs.
GPU = int(study.config.device == "cuda" or (study.config.device == "auto" and bool(shutil.which("nvidia-smi"))))
if workflow.local_exec:
    workflow.global_resources.setdefault("gpu", Resource("gpu", 1))


def program():
    """How jobs call cca-dynamics: as it is installed beside this Snakemake, or in the environment made for the job.

    Jobs get it as a resource, because changing a resource reruns nothing.
    """
    beside = Path(sys.executable).with_name("cca-dynamics")
    if workflow.deployment_settings.deployment_method or shutil.which("cca-dynamics") == str(beside):
        return "cca-dynamics"
    return shlex.quote(str(beside)) if beside.exists() else f"{shlex.quote(sys.executable)} -m cca_dynamics.cli"


PROGRAM = program()


def param(stage, name):
    """One of a stage's arguments, or its fingerprint of "code"; a job runs again when its own changes."""
    return lambda wildcards: study.params(stage, **wildcards)[name]


TOLD = set()


def options_of_claims(wildcards):
    """The options that a result's claims are tested with; the user is told, once, what makes them impossible to test."""
    for obstacle in study.obstacles(wildcards.result):
        if workflow.is_main_process and obstacle not in TOLD:
            TOLD.add(obstacle)
            logger.warning(f"config key {obstacle.key}: {obstacle.problem}")
    return study.params("claims", result=wildcards.result)["options"]


TOKENS_NEEDED = tokens_needed(study.config, list(study.cohorts.values()))


def data_of(wildcards):
    """What the networks of a cohort read."""
    return f"{RESULTS}/data/{study.cohorts[wildcards.cohort].data}.safetensors"


def cohorts_of(result):
    """The cohorts of a result; where its options cannot be used, the run ends with their problem."""
    try:
        return study.cohorts_of(result)
    except UserError as problem:
        raise WorkflowError(str(problem)) from None


def folders_of(result, kind):
    """The folders ("networks" or "activations") of all parts of all cohorts of a result."""
    return [f"{RESULTS}/{kind}/{c.name}/{part}" for c in cohorts_of(result) for part in study.parts(c.name)]


def ablations_of(result):
    """The ablation tables of all parts of those cohorts of a result that are ablated."""
    return [
        f"{RESULTS}/ablation/{c.name}/{part}.parquet"
        for c in cohorts_of(result)
        if c.ablation
        for part in study.parts(c.name)
    ]


def figures_of(*results):
    return [f"{FIGURES}/{result}.{suffix}" for result in results for suffix in ("png", "pdf", "svg")]
