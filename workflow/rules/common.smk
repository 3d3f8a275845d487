# What all rules share: the validated study and its variants, their paths, and how rules name the code they depend on.
#
# Rules that make a study's data, networks, tables, claims and figures serve its variants, too (the study under another
# seed or with other options, see cca_dynamics.variants): {folder} is the study's name, or a folder below it. What a job
# reads may lie in the folder of another of them, which has the same job.
import hashlib
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

from snakemake.resources import Resource

from cca_dynamics.config import files
from cca_dynamics.config.base import as_argument
from cca_dynamics.config.cohorts import abbreviated
from cca_dynamics.counts import Requests
from cca_dynamics.errors import UserError
from cca_dynamics.report.captions import caption_of
from cca_dynamics.readings import changes_of, jobs_of_claims, readings
from cca_dynamics.results.language_models import tokens_needed
from cca_dynamics.study import Study, check_file_times, check_output_folders
from cca_dynamics.variants import Family, Job, fresh_seeds, replicates

try:
    if workflow.is_main_process:
        files.read_all(workflow.configfiles)  # Snakemake has read them, but for what it does not see
    config.pop(files.ON_TOP_OF, None)
    study = Study(config)
    check_output_folders(study)
    fresh = fresh_seeds(study)
    readings_of = readings(study)
    # Name below the study's folder → the keys of the config that differ.
    family = Family(study, {**replicates(study), **changes_of(readings_of)})
    if workflow.is_main_process:
        check_file_times(family.folders)
except UserError as problem:
    raise WorkflowError(str(problem)) from None

STARTED = time.time()
RESULTS = f"results/{study.name}"  # of the study itself
FIGURES = f"figures/{study.name}"
LOGS = f"logs/{study.name}"
NOTES = study.protocol.lines(study.config, [study.seed]) if study.protocol else []  # the last lines of a run
NOTES_OF_REPLICATES = study.protocol.lines(study.config, fresh) if study.protocol else []


VARIANT_FOLDERS = "|".join(map(re.escape, family.folders[1:])) or "none/"


wildcard_constraints:
    folder="|".join(map(re.escape, family.folders)),
    cohort=r"[A-Za-z0-9][^/]*",
    part=r"\d+-\d+",
    result="|".join(study.results),


# Whether jobs need a GPU from the scheduler. "auto" asks for one only where this machine has one, so that on a laptop jobs
# run side by side; where the scheduler's machine differs from the workers, say device=cuda.
# On this machine one GPU job runs at a time, or `jobs_per_gpu`, unless a profile or `--resources gpu=N` says that more can.
GPU = int(study.config.device == "cuda" or (study.config.device == "auto" and bool(shutil.which("nvidia-smi"))))
if workflow.local_exec:
    workflow.global_resources.setdefault("gpu", Resource("gpu", study.config.jobs_per_gpu))


def program():
    """How jobs call cca-dynamics: as it is installed beside this Snakemake, or in the environment made for the job.

    Jobs get it as a resource, because changing a resource reruns nothing.
    """
    beside = Path(sys.executable).with_name("cca-dynamics")
    if workflow.deployment_settings.deployment_method or shutil.which("cca-dynamics") == str(beside):
        return "cca-dynamics"
    return shlex.quote(str(beside)) if beside.exists() else f"{shlex.quote(sys.executable)} -m cca_dynamics.cli"


PROGRAM = program()


def of_family(method, *arguments):
    """What the family of studies says; where it cannot be run, the run ends with the problem."""
    try:
        return method(*arguments)
    except UserError as problem:
        raise WorkflowError(str(problem)) from None


def job_of(stage, wildcards):
    """The job of a stage that some wildcards name."""
    return Job(stage, **{name: value for name, value in wildcards.items() if name != "folder"})


def param(stage, name):
    """One of a stage's arguments, or its fingerprint of "code"; a job runs again when its own changes."""

    def value(wildcards):
        return of_family(family.params, wildcards.get("folder", study.name), job_of(stage, wildcards))[name]

    return value


def origin(stage):
    """How the inputs of a job are made, as a param: when that changes a job runs again, whatever the times of files say."""
    return lambda wildcards: of_family(family.origin, wildcards.get("folder", study.name), job_of(stage, wildcards))


def read_by(stage, *stages):
    """What a job of a stage reads of others, wherever it is made."""
    return lambda wildcards: of_family(family.inputs, wildcards.folder, job_of(stage, wildcards), *stages)


def variant(wildcards):
    """Ends the message of a job of a variant, e.g. " (seed-1000)"; a resource, because it reruns nothing."""
    return "" if wildcards.folder == study.name else f" ({wildcards.folder.rpartition('/')[2]})"


REQUESTS = {}  # folder → what the jobs of its study ask for


def requests_of(wildcards):
    """What the jobs of a study ask the scheduler for."""
    if wildcards.folder not in REQUESTS:
        reader = of_family(family.study, wildcards.folder)
        REQUESTS[wildcards.folder] = Requests(reader, "cuda" if GPU else "cpu")
    return REQUESTS[wildcards.folder]


def memory(stage):
    """Memory of a stage's jobs in MB; a job that is tried again asks for more."""
    return lambda wildcards, attempt: requests_of(wildcards).megabytes(job_of(stage, wildcards), attempt)


def minutes(stage):
    """Time of a stage's jobs; a job that is tried again asks for more."""
    return lambda wildcards, attempt: requests_of(wildcards).minutes(job_of(stage, wildcards), attempt)


def claims_of_readings(wildcards):
    """The claims of each result under each of its readings."""
    return [family.path(folder, job) for folder, job in of_family(jobs_of_claims, family, readings_of)]


def checksum_if_made(path):
    """Checksum of a file that the report shows if it is there, but that it does not ask for; "" if it is not."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if Path(path).exists() else ""


REPLICATES = [(f"{study.name}/replicates/seed-{seed}", Job("merge")) for seed in fresh]


def claims_of_replicates(wildcards):
    """The tables of claims of the study under each of the fresh seeds."""
    return [of_family(family.path, folder, job) for folder, job in REPLICATES]


TOLD = set()


def options_of_claims(wildcards):
    """The options that a result's claims are tested with; the user is told, once, what makes them impossible to test."""
    for obstacle in of_family(family.study, wildcards.folder).obstacles(wildcards.result):
        if workflow.is_main_process and obstacle not in TOLD:
            TOLD.add(obstacle)
            logger.warning(f"config key {obstacle.key}: {obstacle.problem}")
    return param("claims", "options")(wildcards)


def dataset_options(wildcards):
    """All options of the dataset."""
    return as_argument(of_family(family.study, wildcards.folder).config.dataset)


def tokens(split):
    """How many tokens of a split of the text the language models need."""

    def needed(wildcards):
        reader = of_family(family.study, wildcards.folder)
        return tokens_needed(reader.config, list(reader.cohorts.values()))[split]

    return needed


def figures_of(*results):
    return [f"{FIGURES}/{result}.{suffix}" for result in results for suffix in ("png", "pdf", "svg")]
