"""Pack a finished study into one zip file that is an RO-Crate of its own, as repositories such as Zenodo take it.

The same content gives the same bytes on every machine: files stand in the order of their names, without times, and
nothing is compressed (compressors differ from machine to machine, and tables, pictures and networks are compressed).
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import shutil
import zipfile
from pathlib import Path
from urllib.parse import quote, unquote

from cca_dynamics.errors import UserError, check_suffix
from cca_dynamics.report.verification import NAME, Run, damage_is_named, is_file, read, read_json, verify
from cca_dynamics.runtime.storage import replacing

README = "README.md"
CHECKSUMS = "SHA256SUMS"
ZENODO = ".zenodo.json"
AUTHORS = "The cca-dynamics authors"
LEFT_OUT = ("activations/", "data/corpus.safetensors", "data/dataset.safetensors")
"""What no archive holds: large, made again in minutes, and, of data, not ours to give away."""
ELSEWHERE = "It is not in this archive; a file with this checksum is the one that was used."


def write(study: str, out: Path, networks: bool = False, root: Path = Path()) -> Path:
    """Pack the figures, tables and claims of a study, its crate and a README into a zip file.

    Args:
        study: its name.
        out: the zip file.
        networks: whether to pack the trained networks, too.
        root: the folder that holds results/ and figures/.

    Returns:
        The zip file.

    Raises:
        UserError: `verify` finds differences in the study, or `out` lies in one of its folders or is not a .zip.
        DamagedFile: there is no crate of this study, or it cannot be read.
    """
    check_suffix(out, ".zip")
    folder = root / "results" / study
    for inside in (folder, root / "figures" / study):
        if out.resolve().is_relative_to(inside.resolve()):
            raise UserError(f"{out} lies in {inside}, which it packs; choose a file elsewhere by --out")
    if count := len(verify(study, root)):
        differences = f"{count} difference{'s' if count > 1 else ''}"
        raise UserError(
            f"results/{study} has {differences} from its crate, so it is not packed; `cca-dynamics verify {study}` "
            "lists them and says how to mend them"
        )
    run, content = read(study, root), read_json(study, root)
    sources = {}  # path in the archive → file
    with damage_is_named(study, root):
        for entity in content["@graph"]:
            if is_file(entity) and _is_packed(name := unquote(entity["@id"]), networks):
                sources[_packed_name(name, study)] = root / posixpath.normpath(posixpath.join("results", study, name))
        description = _readme(run, sorted(sources), networks)
        texts = {
            README: description,
            NAME: _as_text(_packed_crate(content, study, networks, description)),
            ZENODO: _as_text(_zenodo(run)),
        }
    checksums = {
        _packed_name(posixpath.relpath(name, f"results/{study}"), study): run.files[name] for name in run.files
    }
    checksums |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    texts[CHECKSUMS] = "".join(f"{checksums[name]}  {name}\n" for name in sorted({*sources, *texts}))
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file:
        for name in sorted({*sources, *texts}):
            entry = zipfile.ZipInfo(name)  # of 1980, as long as nothing else is said
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # as on Unix, everywhere
            if name in texts:
                file.writestr(entry, texts[name])
                continue
            entry.file_size = sources[name].stat().st_size
            with open(sources[name], "rb") as source, file.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    return out


def _is_packed(name: str, networks: bool) -> bool:
    """Whether an archive holds a file, whose path is relative to results/<study>."""
    return not name.startswith(LEFT_OUT) and (networks or not name.startswith("networks/"))


def _packed_name(name: str, study: str) -> str:
    """Path in the archive of a file whose path is relative to results/<study>."""
    outside = f"../../figures/{study}/"
    return f"figures/{name.removeprefix(outside)}" if name.startswith(outside) else name


def _packed_crate(content: dict, study: str, networks: bool, readme: str) -> dict:
    """The crate of an archive: figures lie in it, and what is left out is named with its checksum, but is no part."""
    identifiers, graph = {}, []
    for entity in content["@graph"]:
        name = unquote(entity["@id"])
        is_folder = entity["@type"] == "Dataset" and name != "./"
        if (is_file(entity) or is_folder) and not _is_packed(name, networks):
            entity = {**entity, "@type": "CreativeWork", "description": ELSEWHERE}
            identifiers[entity["@id"]] = f"#{entity['@id']}"
        elif is_file(entity):
            identifiers[entity["@id"]] = quote(_packed_name(name, study))
        graph.append(entity)
    graph = [_renamed(entity, identifiers) for entity in graph]
    (top,) = (entity for entity in graph if entity["@id"] == "./")
    top["hasPart"] = [part for part in top["hasPart"] if not part["@id"].startswith("#")]
    about = {"@id": README, "@type": "File", "about": {"@id": "./"}, "encodingFormat": "text/markdown"}
    about |= {"name": README, "contentSize": str(len(readme.encode()))}
    top["hasPart"].append({"@id": README})
    return {**content, "@graph": [*graph, about]}


def _renamed(value: object, identifiers: dict[str, str]) -> object:
    """JSON-LD with other identifiers."""
    if isinstance(value, list):
        return [_renamed(item, identifiers) for item in value]
    if not isinstance(value, dict):
        return value
    renamed = {key: _renamed(item, identifiers) for key, item in value.items()}
    return {**renamed, "@id": identifiers.get(value["@id"], value["@id"])} if "@id" in value else renamed


def _title(run: Run) -> str:
    return f"Run of the study {run.config['study']} with the seed {run.config['seed']} of cca-dynamics"


def _zenodo(run: Run) -> dict:
    """What Zenodo asks for, in the words of its API."""
    return {
        "title": _title(run),
        "upload_type": "dataset",
        "description": (
            "Figures, tables and claims of a replication of Morcos, Raghu & Bengio, “Insights on representational "
            "similarity in neural networks with canonical correlation” (NeurIPS 2018), as a Workflow Run RO-Crate."
        ),
        "creators": [{"name": AUTHORS}],
        "license": "MIT",
        "publication_date": run.date[:10],
        "version": run.code["version"],
        "related_identifiers": [{"identifier": "arXiv:1806.05759", "relation": "references"}],
    }


def _readme(run: Run, names: list[str], networks: bool) -> str:
    """What the archive is, how to check it and how to make its content again, as Markdown."""
    study, seed = run.config["study"], run.config["seed"]
    protocol = ""
    if run.protocol:
        protocol = (
            f"Its protocol is `{run.protocol['path']}` of {run.protocol['date']}. {' '.join(run.protocol['says'])}\n"
        )
    packages = ", ".join(f"{name} {version}" for name, version in run.packages.items())
    left_out = "activations and data" if networks else "networks, activations and data"
    lines = [
        f"# {_title(run)}\n",
        "A replication of Morcos, Raghu & Bengio, “Insights on representational similarity in neural networks with",
        "canonical correlation” (NeurIPS 2018, https://arxiv.org/abs/1806.05759).\n",
        f"- Study `{study}`, seed {seed}, ended {run.date}.",
        f"- Code: cca-dynamics {run.code['version']}, {run.code['commit']}, sources {run.code['sha256']}.",
        f"- Machine: {run.hardware}.",
        f"- Packages: {packages}.\n",
        protocol,
        "## What is here\n",
        "- `claims.csv`: every claim with its value, interval, p value and verdict; `claims/`: those of each result.",
        "- `figures/`: the figures; `*.parquet`: exactly the data that each draws.",
        f"- `{NAME}`: the config, and of each job what it read and wrote, and when (Workflow Run RO-Crate);",
        f"  the checksums of all files of the run, also of the {left_out} that are not here.",
        "- `workflow/`: the rules of the workflow.",
        "- `.zenodo.json`: title, description and licence, as Zenodo asks for them. Put in your name.\n",
        "## Check it\n",
        f"```sh\nsha256sum --check {CHECKSUMS}\n```\n",
        "## Make it again\n",
        "Write the config into a file, and give it to Snakemake in a clone of the code above:\n",
        "```sh\npython - <<'END'\nimport json\n"
        f'graph = {{e["@id"]: e for e in json.load(open("{NAME}", encoding="utf-8"))["@graph"]}}\n'
        'values = [e for name, e in graph.items() if name.startswith("#config/")]\n'
        'config = {e["name"]: json.loads(e["value"]) if "encodingFormat" in e else e["value"] for e in values}\n'
        f'json.dump(config, open("{study}.yaml", "w", encoding="utf-8"), indent=1)\n'
        f"END\nsnakemake --configfile {study}.yaml\n```\n",
        "Tables are byte for byte the same on the same kind of processor with the same versions.\n",
        "## Files\n",
        *(f"- `{name}`" for name in names),
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _as_text(content: dict) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
