"""What a finished study consists of and how it was made, in results/<study>/ro-crate-metadata.json.

The file is a Workflow Run RO-Crate of the profile Provenance Run Crate 0.5 (https://w3id.org/ro/wfrun/provenance/0.5):
every job of the workflow is an action, with the files that it read and those that it wrote. It is written by the
package `rocrate`, which only `write` imports, and holds neither random identifiers nor the time of writing, so that the
same files give the same bytes.
"""

from __future__ import annotations

import datetime
import json
import platform
import posixpath
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cca_dynamics import __version__
from cca_dynamics.errors import UserError
from cca_dynamics.report.verification import checksum_of_sources, installed_versions, output_of, outputs, sha256
from cca_dynamics.runtime.machine import commit, hardware
from cca_dynamics.runtime.storage import replacing
from cca_dynamics.study import Study
from cca_dynamics.variants import OUTPUTS, Job, inputs_of

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
"""What the crate conforms to: URI → name; a URI ends in the version."""
LICENSE = "https://spdx.org/licenses/MIT"
RULES = {
    "dataset": ("dataset", "Materialise the dataset, true and permuted labels side by side."),
    "corpus": ("corpus", "Materialise the text that language models read."),
    "train": ("train", "Train one part of a cohort of networks."),
    "activations": ("activations", "Extract activations from the checkpoints of one part of a cohort."),
    "ablation": ("ablation", "Ablate the trained networks of one part of a cohort."),
    "compute": ("compute", "Compute the table of one result."),
    "claims": ("test_claims", "Test the paper's claims on the table of one result."),
    "plot": ("plot", "Draw the figure of one result."),
    "merge": ("claims", "Put the claims of all results into one table."),
}
"""Stage, in the order of the workflow → the rule that runs it, and what it does."""
MEDIA_TYPES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".safetensors": "application/octet-stream",
    ".svg": "image/svg+xml",
}


def write(config: dict, workflow: Sequence[Path], out: Path, protocol: dict | None = None) -> None:
    """Describe a finished study, and keep the workflow's own files in the folder workflow/ beside the description.

    Args:
        config: the validated config as JSON, see `study.Study.config`.
        workflow: the workflow's Snakefile, and the files that it includes.
        out: results/<study>/ro-crate-metadata.json.
        protocol: path, sha256 and date of the study's protocol, and what the run says of it; None if there is none.

    Raises:
        UserError: no file of the workflow is called Snakefile.
        ConfigError: the config cannot be run.
    """
    if "Snakefile" not in [path.name for path in workflow]:
        raise UserError("the files of the workflow lack its Snakefile; name it, and those that it includes")
    copies = out.parent / "workflow"
    with replacing(copies) as temporary:
        (temporary / "rules").mkdir(parents=True)
        for path in workflow:
            shutil.copyfile(path, temporary / ("" if path.name == "Snakefile" else "rules") / path.name)
        shutil.rmtree(copies, ignore_errors=True)
    with warnings.catch_warnings(), replacing(out) as temporary:
        warnings.simplefilter("ignore", DeprecationWarning)  # of packages that rocrate imports
        content = _Crate(Study(config), config, out.parent.parent.parent).content(protocol)
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


class _Crate:
    """The crate of a study while it is written.

    Args:
        study: the study.
        config: its whole config as JSON.
        root: the folder that holds results/ and figures/.
    """

    def __init__(self, study: Study, config: dict, root: Path):
        from rocrate.rocrate import ROCrate

        self.study, self.config, self.root = study, config, root
        self.crate = ROCrate(version="1.1")
        self.crate.metadata.extra_terms["sha256"] = "https://w3id.org/ro/terms/workflow-run#sha256"
        self.entities: dict[str, Any] = {}  # path of a file or folder → what describes it
        self.modified = 0.0  # when the newest file of the run was written

    def content(self, protocol: dict | None) -> dict:
        """The whole crate as JSON-LD."""
        self._add_files()
        self._add_software()
        actions = [self._action(job) for job in _jobs(self.study)]
        run = self._add_run(actions, protocol)
        root = self.crate.root_dataset
        study, seed = self.study.name, self.study.seed
        root["name"] = f"Run of the study {study} with the seed {seed}"
        root["description"] = (
            f"Tables, claims, figures, networks and activations of the study {study}, made by cca-dynamics "
            f"{__version__}, a replication of Morcos, Raghu & Bengio (NeurIPS 2018), and how each was made."
        )
        newest = datetime.datetime.fromtimestamp(int(self.modified), datetime.UTC).isoformat()
        root["datePublished"] = max((action["endTime"] for action in actions if "endTime" in action), default=newest)
        root["license"] = self._add(LICENSE, "CreativeWork", name="MIT License", identifier="MIT")
        root["conformsTo"] = [
            self._add(uri, "CreativeWork", name=name, version=uri.rpartition("/")[2]) for uri, name in PROFILES.items()
        ]
        self.crate.metadata["conformsTo"] = [{"@id": uri} for uri in (self.crate.metadata.profile, [*PROFILES][-1])]
        root["mainEntity"] = self.entities[f"results/{study}/workflow/Snakefile"]
        root["mentions"] = [run, *actions]
        return self.crate.metadata.generate()

    def _add(self, identifier: str, kind: str, /, **properties: object) -> Any:
        """A new entity that is no file; properties that are None or empty are left out."""
        from rocrate.model.contextentity import ContextEntity

        given = {name: value for name, value in properties.items() if value not in (None, [], "")}
        return self.crate.add(ContextEntity(self.crate, identifier, {"@type": kind, **given}))

    def _add_files(self) -> None:
        """Every file, those of a folder of networks or activations as parts of that folder."""
        from rocrate.model.dataset import Dataset
        from rocrate.model.file import File

        parts: list[Any] = []
        folders: dict[str, list[Any]] = {}
        for name in outputs(self.root, self.study.name):
            path = self.root / name
            if output_of(name, self.study.name) != f"results/{self.study.name}/workflow":  # copied just now
                self.modified = max(self.modified, path.stat().st_mtime)
            properties = {
                "name": name,
                "sha256": sha256(path),
                "contentSize": str(path.stat().st_size),
                "encodingFormat": MEDIA_TYPES.get(path.suffix, "text/plain"),
            }
            if name == f"results/{self.study.name}/workflow/Snakefile":
                properties["@type"] = ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"]
            self.entities[name] = self.crate.add(
                File(self.crate, dest_path=_relative(name, self.study.name), properties=properties)
            )
            folder = output_of(name, self.study.name)
            (parts if folder == name else folders.setdefault(folder, [])).append(self.entities[name])
        for folder, files in folders.items():
            properties = {"name": folder, "hasPart": _one_or_more(files)}
            self.entities[folder] = self.crate.add(
                Dataset(self.crate, dest_path=_relative(folder, self.study.name), properties=properties)
            )
            parts.append(self.entities[folder])
        self.crate.root_dataset["hasPart"] = parts

    def _add_software(self) -> None:
        """The package, what it needs, the workflow engine, and a tool and a step of the workflow for each stage."""
        packages = {"python": platform.python_version(), **installed_versions()}
        software = [
            self._add(f"#package/{name}", "SoftwareApplication", name=name, softwareVersion=number)
            for name, number in packages.items()
        ]
        language = self._add(
            "https://w3id.org/workflowhub/workflow-ro-crate#snakemake",
            "ComputerLanguage",
            name="Snakemake",
            version=packages.get("snakemake"),
        )
        code = self._add(
            "#code",
            "SoftwareSourceCode",
            name="cca-dynamics",
            version=__version__,
            identifier=commit(),
            sha256=checksum_of_sources(),
            license={"@id": LICENSE},
            softwareRequirements=software,
        )
        stages = dict.fromkeys(job.stage for job in _jobs(self.study))
        self.tools, self.steps = {}, {}
        for position, stage in enumerate(stages, start=1):
            rule, sentence = RULES[stage]
            self.tools[stage] = self._add(
                f"#tool/{stage}",
                "SoftwareApplication",
                name=f"cca-dynamics {stage}",
                description=sentence,
                softwareVersion=__version__,
                isPartOf=code,
            )
            self.steps[stage] = self._add(
                f"#step/{rule}", "HowToStep", name=rule, position=str(position), workExample=self.tools[stage]
            )
        workflow = self.entities[f"results/{self.study.name}/workflow/Snakefile"]
        workflow["name"] = "cca-dynamics, the workflow"
        workflow["version"] = __version__
        workflow["programmingLanguage"] = language
        workflow["isPartOf"] = code
        workflow["hasPart"] = _one_or_more(list(self.tools.values()))
        workflow["step"] = _one_or_more(list(self.steps.values()))

    def _add_run(self, actions: list[Any], protocol: dict | None) -> Any:
        """The whole run: its config, its outputs, and what Snakemake did."""
        study = self.study.name
        workflow = self.entities[f"results/{study}/workflow/Snakefile"]
        inputs, values = [], []
        for key, value in self.config.items():
            kind, properties = _as_property(value)
            given = self._add(f"#config/{key}", "PropertyValue", name=key, **properties)
            names = {"name": key, "additionalType": kind, "workExample": given}
            given["exampleOfWork"] = parameter = self._add(f"#parameter/{key}", "FormalParameter", **names)
            values.append(given)
            inputs.append(parameter)
        workflow["input"] = inputs
        read = [*values]
        if protocol is not None:
            read.append(
                self._add(
                    "#record-of-protocol",
                    "CreativeWork",
                    name=protocol["path"],
                    sha256=protocol["sha256"],
                    dateModified=protocol["date"],
                    description="\n".join(protocol["says"]),
                )
            )
        results = [f"results/{study}/claims.csv"]
        results += [f"figures/{study}/{result}.{end}" for result in self.study.targets for end in ("png", "pdf", "svg")]
        machine = self._add(
            "#machine",
            "PropertyValue",
            name="hardware",
            value=f"{hardware()}, {platform.system()} {platform.machine()}",
            description="The machine on which this description was written.",
        )
        run = self._add(
            "#run",
            "CreateAction",
            name=f"The run of {study}",
            description=f"Every target of the study: {', '.join(self.study.targets)}.",
            instrument=workflow,
            object=_one_or_more(read),
            result=_one_or_more([self._entity(name) for name in results]),
            startTime=min((action["startTime"] for action in actions if "startTime" in action), default=None),
            endTime=max((action["endTime"] for action in actions if "endTime" in action), default=None),
            additionalProperty=machine,
        )
        controls = [
            self._add(
                action["@id"].replace("#job/", "#control/"),
                "ControlAction",
                name=f"Snakemake runs {action['name']}",
                instrument=self.steps[stage],
                object=action,
            )
            for action in actions
            for stage in [action["@id"].split("/")[1]]
        ]
        self._add(
            "#snakemake",
            "OrganizeAction",
            name="Snakemake runs the workflow",
            instrument={"@id": "#package/snakemake"},
            object=_one_or_more(controls),
            result=run,
        )
        return run

    def _action(self, job: Job) -> Any:
        """A job of the workflow with what it read and wrote, and when."""
        study = self.study.name
        rule, sentence = RULES[job.stage]
        words = [word for word in job[1:] if word]
        made = [self._entity(name) for name in _paths(job, study)]
        read = [self._entity(_paths(other, study)[0]) for other in inputs_of(self.study, job)]
        return self._add(
            quote("/".join(["#job", job.stage, *words]), safe="#/"),
            "CreateAction",
            name=" ".join([rule, *words]),
            description=sentence,
            instrument=self.tools[job.stage],
            object=_one_or_more(read),
            result=_one_or_more(made),
            **_times(self.root / "results" / study / "benchmarks" / f"{'-'.join([rule, *words])}.tsv"),
        )

    def _entity(self, name: str) -> Any:
        """What describes a file or folder of the study; if it is not there, that it was made and not kept."""
        if name not in self.entities:
            self.entities[name] = self._add(
                f"#{quote(_relative(name, self.study.name))}", "CreativeWork", name=name, description=NOT_KEPT
            )
        return self.entities[name]


NOT_KEPT = "It is not in this crate: activations need not be kept once they have been compared."


def _jobs(study: Study) -> list[Job]:
    """The jobs that make a study's claims and figures, in the order of the workflow."""
    jobs: set[Job] = set()
    pending = [Job("merge"), *(Job("plot", result=result) for result in study.targets)]
    while pending:
        if (job := pending.pop()) not in jobs:
            jobs.add(job)
            pending += inputs_of(study, job)
    order = list(RULES)
    return sorted(jobs, key=lambda job: (order.index(job.stage), job))


def _paths(job: Job, study: str) -> list[str]:
    """The outputs of a job, the one that other jobs read first."""
    path = OUTPUTS[job.stage].format(folder=study, **job._asdict())
    more = {
        "dataset": [f"results/{study}/data/datasheet.json"],
        "corpus": [f"results/{study}/data/corpus.json"],
        "plot": [path.removesuffix("png") + suffix for suffix in ("pdf", "svg")],
    }
    return [path, *more.get(job.stage, [])]


def _times(benchmark: Path) -> dict[str, str]:
    """Start and end of a job, ISO 8601, from the file in which Snakemake measures it; nothing if there is none."""
    try:
        seconds = float(benchmark.read_text(encoding="utf-8").splitlines()[-1].split("\t")[0])
        end = benchmark.stat().st_mtime
    except (OSError, ValueError, IndexError):
        return {}
    times = {"startTime": end - seconds, "endTime": end}
    return {name: datetime.datetime.fromtimestamp(int(at), datetime.UTC).isoformat() for name, at in times.items()}


def _as_property(value: object) -> tuple[str, dict[str, object]]:
    """The type and properties of a value of the config; JSON-LD cannot hold null, and lists and dicts not as such."""
    match value:
        case bool():
            return "Boolean", {"value": value}
        case int():
            return "Integer", {"value": value}
        case float():
            return "Float", {"value": value}
        case str() if value:
            return "Text", {"value": value}
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return "Text", {"value": text, "encodingFormat": "application/json"}


def _one_or_more(items: list) -> Any:
    """JSON-LD in its compact form has no lists of one."""
    return items[0] if len(items) == 1 else items


def _relative(name: str, study: str) -> str:
    """A path as the crate has it: relative to results/<study>."""
    return posixpath.relpath(name, f"results/{study}")
