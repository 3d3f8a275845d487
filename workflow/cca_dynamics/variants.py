"""Several studies in one DAG: a study, and variants of it that differ in some keys of the config.

A variant is the study under another seed (a replicate) or with other options (a reading). It has a folder below the
study's, and a job that it shares with the study, or with an earlier variant of its kind, runs once. Two jobs are the
same if their params are equal and the jobs before them are the same; the first study that has a job owns its output.
Variants are validated when they are first asked for, so that a run of the study alone does not pay for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

from cca_dynamics.config.base import as_argument, as_json
from cca_dynamics.errors import ConfigError, UserError
from cca_dynamics.study import Study, on_top_of

OUTPUTS = {
    "dataset": "results/{folder}/data/dataset.safetensors",
    "corpus": "results/{folder}/data/corpus.safetensors",
    "train": "results/{folder}/networks/{cohort}/{part}",
    "activations": "results/{folder}/activations/{cohort}/{part}",
    "ablation": "results/{folder}/ablation/{cohort}/{part}.parquet",
    "compute": "results/{folder}/{result}.parquet",
    "claims": "results/{folder}/claims/{result}.csv",
    "plot": "figures/{folder}/{result}.png",
    "merge": "results/{folder}/claims.csv",
}
"""Stage → the output that other stages read, as the rules of the workflow write it."""


KINDS = ("replicates", "readings", "multiverse")
"""First parts of the names of variants, and of the files that tell of all of them; no files of the study itself."""


FIRST_FRESH_SEED = 1000
"""Fresh seeds are counted up from it: small numbers are what people try first."""


class Job(NamedTuple):
    """A job of a study.

    Attributes:
        stage: as in `Study.params`.
        cohort, part: of a job that trains networks or reads one folder of them.
        result: of a job that makes one of its files.
    """

    stage: str
    cohort: str = ""
    part: str = ""
    result: str = ""


class Family:
    """A study and its variants.

    Args:
        base: the study.
        variants: name → the keys that differ, nested as in the config, e.g. {"replicates/seed-1000": {"seed": 1000}}. A
            name is the variant's folder below the study's; what stands before its last slash is its kind.

    Attributes:
        base: the study.
        folders: of the study and of its variants below results/, figures/ and logs/, the study's first.
    """

    def __init__(self, base: Study, variants: Mapping[str, Mapping[str, Any]]):
        self.base = base
        self._changes = {f"{base.name}/{name}": changes for name, changes in variants.items()}
        self._studies: dict[str, Study] = {base.name: base}
        self._identities: dict[tuple[str, Job], str | None] = {}
        self._params: dict[tuple[str, Job], dict[str, str | int]] = {}
        self._owners: dict[tuple[str, Job], dict[str, str]] = {}
        self._compared: dict[tuple[str, Job], int] = {}

    @cached_property
    def folders(self) -> tuple[str, ...]:
        """The folders of the study and of its variants."""
        return (self.base.name, *self._changes)

    def study(self, folder: str) -> Study:
        """The study of a folder.

        Raises:
            UserError: there is no such variant, or its changes contradict the rest of the config.
        """
        if folder not in self._studies:
            if folder not in self._changes:
                raise UserError(f"{folder} is no variant of the study {self.base.name}; correct the name")
            try:
                self._studies[folder] = Study(on_top_of(as_json(self.base.config), self._changes[folder]))
            except ConfigError as problem:
                raise UserError(f"the variant {folder} cannot be run: {problem}") from None
        return self._studies[folder]

    def params(self, folder: str, job: Job) -> dict[str, str | int]:
        """What the output of a job depends on, see `Study.params`.

        Raises:
            UserError: the study of the folder has no such job.
        """
        if (folder, job) not in self._params:
            self._check(folder, job)
            stage, cohort, part, result = job
            self._params[folder, job] = self.study(folder).params(stage, cohort=cohort, part=part, result=result)
        return self._params[folder, job]

    def origin(self, folder: str, job: Job) -> str:
        """Fingerprint of how the inputs of a job are made, which is a param of the job.

        The times of files do not say whether an input is the one that an output was made from: clocks are set back, and
        files are copied with the times they had.

        Raises:
            UserError: the study of the folder has no such job.
        """
        self._check(folder, job)
        return self.history(*((folder, other) for other in inputs_of(self.study(folder), job)))

    def history(self, *jobs: tuple[str, Job]) -> str:
        """Fingerprint of how outputs of jobs, (folder, job), are made: of the params of these and of all jobs before.

        Raises:
            UserError: the study of a folder has no such job.
        """
        for folder, job in jobs:
            self._check(folder, job)
        return _fingerprint([self._identity(folder, job) for folder, job in jobs])

    def inputs(self, folder: str, job: Job, *stages: str) -> list[str]:
        """Paths of what a job reads, each in the folder of the study that owns it.

        Args:
            folder: of the study that has the job.
            job: which.
            stages: only what these made.

        Raises:
            UserError: the study of the folder has no such job.
        """
        self._check(folder, job)
        return [self.path(folder, other) for other in inputs_of(self.study(folder), job) if other.stage in stages]

    def path(self, folder: str, job: Job) -> str:
        """Path of the output of a job of one of the studies, in the folder of the study that owns it.

        Raises:
            UserError: the study of the folder has no such job.
        """
        return OUTPUTS[job.stage].format(folder=self.owner(folder, job), **job._asdict())

    def owner(self, folder: str, job: Job) -> str:
        """The folder of the first study that has the same job: the base, or a variant of this kind, or this one.

        Raises:
            UserError: the study of the folder has no such job.
        """
        self._check(folder, job)
        identity = self._identity(folder, job)
        if folder == self.base.name or identity == self._identity(self.base.name, job):
            return self.base.name
        kind = _kind(folder)
        owners = self._owners.setdefault((kind, job), {})
        of_kind = [other for other in self._changes if _kind(other) == kind]
        while identity not in owners:  # compare with one variant more, up to this one
            position = self._compared.get((kind, job), 0)
            self._compared[kind, job] = position + 1
            if (other := self._identity(of_kind[position], job)) is not None:
                owners.setdefault(other, of_kind[position])
        return owners[identity]

    def _identity(self, folder: str, job: Job) -> str | None:
        """Equal for jobs that are the same; None if the study of the folder has no such job or cannot be run."""
        if (folder, job) not in self._identities:
            try:
                self._check(folder, job)
                before = [self._identity(folder, other) for other in inputs_of(self.study(folder), job)]
                self._identities[folder, job] = _fingerprint([*job, self.params(folder, job), before])
            except UserError:
                self._identities[folder, job] = None
        return self._identities[folder, job]

    def _check(self, folder: str, job: Job) -> None:
        """Fail if the study of a folder has no such job, or its options cannot be used."""
        study = self.study(folder)
        if job.cohort and (job.cohort not in study.cohorts or job.part not in study.parts(job.cohort)):
            raise UserError(f"the study {folder} has no networks {job.cohort}/{job.part}; correct the path")
        if job.result:
            study.cohorts_of(job.result)


def replicates(study: Study) -> dict[str, dict[str, Any]]:
    """The variants of a study under the seeds that its config asks for, see `Family`.

    Raises:
        ConfigError: a seed that is listed is no fresh one.
    """
    return {f"replicates/seed-{seed}": {"seed": seed} for seed in fresh_seeds(study)}


def fresh_seeds(study: Study) -> tuple[int, ...]:
    """The seeds of the replicates: those that the config lists, or the first from `FIRST_FRESH_SEED` on that are fresh.

    A seed is fresh if it is not the study's own, and if its protocol does not say that it was used before.

    Raises:
        ConfigError: a seed that is listed is no fresh one.
    """
    used = {study.seed} | (study.protocol.used if study.protocol else set())
    seeds = study.config.seeds
    if isinstance(seeds, int):
        counted = (seed for seed in range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + seeds + len(used)) if seed not in used)
        return tuple(islice(counted, seeds))
    for seed in seeds:
        if seed == study.seed:
            raise ConfigError("seeds", f"{seed} is the study's own seed, of which it would be a copy; leave it out")
        if seed in used:
            raise ConfigError(
                "seeds", f"{seed} is used up: {study.config.protocol} lists it; give seeds that nobody has looked at"
            )
    return seeds


def inputs_of(study: Study, job: Job) -> list[Job]:
    """The jobs of a study whose outputs one of its jobs reads, in the order in which it reads them."""
    networks = Job("train", job.cohort, job.part)
    match job.stage:
        case "train":
            return [Job(study.cohorts[job.cohort].data)]
        case "activations":
            return [Job(study.cohorts[job.cohort].data), networks]
        case "ablation":
            return [Job("dataset"), networks]
        case "compute":
            return list(_inputs_of_result(study, job.result))
        case "claims":
            return [Job("compute", result=job.result)]
        case "plot":
            return [Job("compute", result=job.result), Job("claims", result=job.result)]
        case "merge":
            return [Job("claims", result=result) for result in study.targets]
        case "crate" | "report":
            return [Job("merge"), *(Job("plot", result=result) for result in study.targets)]
    return []


def _inputs_of_result(study: Study, result: str) -> Iterable[Job]:
    """The jobs whose outputs the table of a result is computed from."""
    for cohort in study.cohorts_of(result):
        for part in study.parts(cohort.name):
            yield Job("train", cohort.name, part)
            yield Job("activations", cohort.name, part)
            if cohort.ablation:
                yield Job("ablation", cohort.name, part)


def _fingerprint(content: list) -> str:
    """32 hexadecimal digits."""
    return hashlib.sha256(as_argument(content).encode()).hexdigest()[:32]


def _kind(folder: str) -> str:
    """The kind of a variant: "mnist1d/replicates" of "mnist1d/replicates/seed-1000"."""
    return folder.rpartition("/")[0]
