# What all rules share: the validated study, its paths, and how rules name the code they depend on.
import re
import shutil
import time

from snakemake.resources import Resource

from cca_dynamics.provenance import TEXTS, code_fingerprint, texts_fingerprint
from cca_dynamics.results.recurrent import tokens_needed
from cca_dynamics.study import ConfigError, Study, as_argument, check_output_folders

try:
    study = Study(config)
    check_output_folders(study)
except ConfigError as problem:
    raise WorkflowError(str(problem)) from None

STARTED = time.time()
RESULTS = f"results/{study.name}"
FIGURES = f"figures/{study.name}"
LOGS = f"logs/{study.name}"


wildcard_constraints:
    cohort="|".join(map(re.escape, study.cohorts)) or "none",
    part=r"\d+-\d+",
    result="|".join(study.configured) or "none",


# Whether jobs need a GPU from the scheduler. "auto" asks for one only where this machine has one, so that on a laptop jobs
# run side by side; where the scheduler's machine differs from the workers, say device=cuda.
# On this machine one GPU job runs at a time unless a profile or `--resources gpu=N` says that it has more GPUs.
GPU = int(study.config["device"] == "cuda" or (study.config["device"] == "auto" and bool(shutil.which("nvidia-smi"))))
if workflow.local_exec:
    workflow.global_resources.setdefault("gpu", Resource("gpu", 1))


def code(*entries):
    """Fingerprint of the package code a rule depends on; as a param it reruns the rule when that code changes."""
    return code_fingerprint(*entries, selected=study.selected())


# The functions behind training and extraction, which differ with what the networks of a cohort read.
CODE_OF = {
    ("dataset", "train"): "training:train",
    ("dataset", "extract"): "activations:extract",
    ("corpus", "train"): "language:train",
    ("corpus", "extract"): "language:extract",
}


TOKENS_NEEDED = tokens_needed(study)


def data_of(wildcards):
    """What the networks of a cohort read."""
    return f"{RESULTS}/data/{study.cohorts[wildcards.cohort].data}.safetensors"


def folders_of(result, kind):
    """The folders ("networks" or "activations") of all parts of all cohorts of a result."""
    return [f"{RESULTS}/{kind}/{c.name}/{part}" for c in study.cohorts_of(result) for part in study.parts(c.name)]


def ablations_of(result):
    """The ablation tables of all parts of those cohorts of a result that are ablated."""
    return [
        f"{RESULTS}/ablation/{c.name}/{part}.parquet"
        for c in study.cohorts_of(result)
        if c.ablation
        for part in study.parts(c.name)
    ]


def caption_of(result):
    """What stands below a result's figure."""
    return (TEXTS / f"{result}.rst").read_text(encoding="utf-8")


def figures_of(*results):
    return [f"{FIGURES}/{result}.{suffix}" for result in results for suffix in ("png", "pdf", "svg")]
