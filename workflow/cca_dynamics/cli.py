"""`cca-dynamics`: one subcommand per stage of the workflow. The Snakemake rules call these; so can you.
`capture` and `compare` are for networks from elsewhere.

A problem with an input ends the program with status 1 and one line, `error: ...`, that names the file or key and the
remedy. A job that is told to stop (SIGTERM, SIGINT) keeps what it has and ends with status 75.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status."""
    from cca_dynamics.resume import INTERRUPTED, Interrupted, told_to_stop

    options = _parser().parse_args(arguments)
    try:
        with told_to_stop():
            options.run(options)
    except Interrupted:
        print("interrupted; nothing is half-written, and the same command goes on from what is kept", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as problem:
        remedy = "; free disk space and run again" if getattr(problem, "errno", None) == errno.ENOSPC else ""
        print("error: " + " ".join(str(problem).split()) + remedy, file=sys.stderr)
        return 1
    return 0


def dataset(options: argparse.Namespace) -> None:
    """Materialise the dataset."""
    from cca_dynamics import datasets

    datasets.materialise(options.options, options.seed, options.tensors, options.datasheet)


def corpus(options: argparse.Namespace) -> None:
    """Materialise the corpus."""
    from cca_dynamics import corpora

    needed = {"train": options.train_tokens, "valid": options.valid_tokens}
    corpora.materialise(options.options, options.tensors, options.datasheet, needed)


def train(options: argparse.Namespace) -> None:
    """Train one part of a cohort."""
    arguments = {"device": _device(options), "report": _report, **_saving(options)}
    recipe = options.recipe
    if recipe["data"] == "corpus":
        from cca_dynamics import corpora, language

        language.train(recipe, corpora.load(options.data), options.out, **arguments)
    else:
        from cca_dynamics import datasets, training

        training.train(recipe, datasets.load(options.data), options.out, **arguments)


def activations(options: argparse.Namespace) -> None:
    """Extract activations from the checkpoints of one part of a cohort."""
    device = _device(options)
    from cca_dynamics import activations, checkpoints, corpora, datasets, language

    arguments = {"requests": options.requests, "device": device, "report": _report}
    if checkpoints.load_recipe(options.networks)["data"] == "corpus":
        language.extract(options.networks, corpora.load(options.data), options.out, **arguments)
    else:
        activations.extract(options.networks, datasets.load(options.data), options.out, **arguments)


def ablation(options: argparse.Namespace) -> None:
    """Ablate the trained networks of one part of a cohort."""
    arguments = {"request": options.request, "device": _device(options), "report": _report, **_saving(options)}
    from cca_dynamics import ablation, datasets

    ablation.ablate(options.networks, datasets.load(options.data), options.out, **arguments)


def compute(options: argparse.Namespace) -> None:
    """Compute the table of one result."""
    device = _device(options)
    from cca_dynamics.files import replacing
    from cca_dynamics.results import RESULTS
    from cca_dynamics.results.inputs import Inputs
    from cca_dynamics.results.tables import tidy

    kept = options.out.with_name(f".{options.out.name}.unfinished")  # finished blocks of comparisons, of a killed job
    inputs = Inputs.from_paths(options.networks, options.activations, options.ablations, device, kept)
    table = RESULTS[options.result].compute(inputs, options.options)
    if len(diverged := inputs.diverged()):
        table = tidy([table, diverged])
    table.attrs["options"] = options.options
    with replacing(options.out) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd")
    shutil.rmtree(kept, ignore_errors=True)


def claims(options: argparse.Namespace) -> None:
    """Test the paper's claims on the table of one result."""
    from cca_dynamics import claims
    from cca_dynamics.results import RESULTS

    table, notes = _table(options)
    found = RESULTS[options.result].claims(table, options.options)
    claims.write([replace(claim, statistic="; ".join([claim.statistic, *notes])) for claim in found], options.out)


def plot(options: argparse.Namespace) -> None:
    """Draw the figure of one result."""
    from cca_dynamics import claims, figures
    from cca_dynamics.results import RESULTS

    table, notes = _table(options)
    figure = RESULTS[options.result].plot(table, claims.read(options.claims), options.options)
    figures.footnote(figure, notes)
    figures.save(figure, options.out)


def merge(options: argparse.Namespace) -> None:
    """Put the claims of several results into one table."""
    from cca_dynamics import claims

    claims.merge(options.tables, options.out)


def verdicts(options: argparse.Namespace) -> None:
    """Print the table of claims of a study and where its figures are."""
    from cca_dynamics.verdicts import show

    show(options.study, options.since)


def manifest(options: argparse.Namespace) -> None:
    """Record what a finished study consists of: config, code, versions, hardware, checksums."""
    from cca_dynamics import manifest

    manifest.write(options.config, options.out)


def report(options: argparse.Namespace) -> None:
    """Write one page with all verdicts and figures of a finished study."""
    from cca_dynamics import report

    report.write(options.config, options.out)


def verify(options: argparse.Namespace) -> None:
    """Check a finished study against its manifest and say what differs."""
    from cca_dynamics import manifest

    differences = manifest.verify(options.study)
    for line in differences:
        print(line)
    if differences:
        if command := manifest.remedy(differences, options.study):
            print(f"to mend: {command}")
        count = f"{len(differences)} difference{'s' if len(differences) > 1 else ''}"
        raise ValueError(
            f"{count} from results/{options.study}/manifest.json; use the study's own --configfile to mend"
        )
    print(f"results/{options.study} and figures/{options.study} are as in the manifest.")


def plan(options: argparse.Namespace) -> None:
    """Print what a study will compute and what that takes on this machine, after measuring it for 20 seconds."""
    device = _device(options)
    from cca_dynamics import plan
    from cca_dynamics.study import Study, read_config

    config = options.config if options.config is not None else read_config(options.configfile)
    plan.show(Study(config), device, plan.parallel_jobs(device, options.cores))


def publish(options: argparse.Namespace) -> None:
    """Keep a finished study's figures, claims and runtimes in figures/reference/ and the README."""
    from cca_dynamics import reference

    print(reference.publish(options.study, options.command, options.note))


def compare(options: argparse.Namespace) -> None:
    """Compare the layers in files: print the distances of all pairs beside their floors, draw a heatmap."""
    device = _device(options)
    from cca_dynamics import compare

    compare.run(options.files, options.measure, options.out, options.table, device)


def capture(options: argparse.Namespace) -> None:
    """Store what layers of a network give for a folder of images, for `compare`."""
    device = _device(options)
    from cca_dynamics import capture

    how = {"weights": options.weights, "size": options.size, "seed": options.seed, "device": device}
    if options.list:
        capture.show(options.model, **how)
    else:
        arguments = (options.model, options.images, options.layers, options.out)
        capture.run(*arguments, points=options.points, batch=options.batch, **how)


def _table(options: argparse.Namespace):
    """A result's table without the rows of networks that are left out, and what a reader must know."""
    import pandas as pd

    from cca_dynamics.files import DamagedFile
    from cca_dynamics.results.tables import DIVERGED, caveats

    try:
        table = pd.read_parquet(options.table)
        if table.attrs.get("options") != options.options:
            raise ValueError("it was made with other options")
        return table[table["quantity"] != DIVERGED].reset_index(drop=True), caveats(table)
    except (OSError, ValueError, KeyError) as problem:
        raise DamagedFile(options.table, problem) from None


def _device(options: argparse.Namespace) -> str:
    """The device that this process computes on (see `devices.choose`), with the threads that the rule was given."""
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    import torch

    from cca_dynamics.devices import choose
    from cca_dynamics.workers import keep_memory

    torch.set_num_threads(options.threads)
    keep_memory()
    return choose(options.device, _report)


def _saving(options: argparse.Namespace) -> dict:
    return {"save_minutes": options.save_minutes, "save_steps": options.save_steps or None}


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    from cca_dynamics.resume import MINUTES

    parser = argparse.ArgumentParser(prog="cca-dynamics", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run, *, device: bool = False, resumes: bool = False) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__, help=run.__doc__.splitlines()[0], description=run.__doc__)
        added.set_defaults(run=run)
        if device:
            added.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
            added.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
        if resumes:
            added.add_argument("--save-minutes", type=float, default=MINUTES, help="at most so long between two saves")
            added.add_argument("--save-steps", type=int, default=0, help="and at most so many steps; 0: any number")
        return added

    added = command(dataset)
    added.add_argument("--options", type=json.loads, required=True, metavar="JSON", help="the config's dataset block")
    added.add_argument("--seed", type=int, required=True, help="the study's seed, for the label permutation")
    added.add_argument("--tensors", type=Path, required=True, help="output, safetensors")
    added.add_argument("--datasheet", type=Path, required=True, help="output, JSON")

    added = command(corpus)
    added.add_argument("--options", type=json.loads, required=True, metavar="JSON", help="the config's corpus block")
    added.add_argument("--tensors", type=Path, required=True, help="output, safetensors")
    added.add_argument("--datasheet", type=Path, required=True, help="output, JSON")
    added.add_argument("--train-tokens", type=int, default=0, help="the fewest tokens of training text that do")
    added.add_argument("--valid-tokens", type=int, default=0, help="the fewest tokens of validation text that do")

    added = command(train, device=True, resumes=True)
    added.add_argument("--data", type=Path, required=True, help="the materialised dataset or corpus")
    added.add_argument("--recipe", type=json.loads, required=True, metavar="JSON", help="see study.Cohort.recipe")
    added.add_argument("--out", type=Path, required=True, help="output folder")

    added = command(activations, device=True)
    added.add_argument("--data", type=Path, required=True, help="the materialised dataset or corpus")
    added.add_argument("--networks", type=Path, required=True, help="a folder written by train")
    added.add_argument("--requests", type=json.loads, required=True, metavar="JSON", help="epochs, splits, layers")
    added.add_argument("--out", type=Path, required=True, help="output folder")

    added = command(ablation, device=True, resumes=True)
    added.add_argument("--data", type=Path, required=True, help="the materialised dataset or corpus")
    added.add_argument("--networks", type=Path, required=True, help="a folder written by train")
    added.add_argument(
        "--request", type=json.loads, required=True, metavar="JSON", help="layers, orders, levels, points"
    )
    added.add_argument("--out", type=Path, required=True, help="output, parquet")

    added = command(compute, device=True)
    added.add_argument("result")
    added.add_argument("--options", type=json.loads, required=True, metavar="JSON", help="the result's config block")
    added.add_argument("--networks", type=Path, nargs="*", default=[], help="folders written by train")
    added.add_argument("--activations", type=Path, nargs="*", default=[], help="folders written by activations")
    added.add_argument("--ablations", type=Path, nargs="*", default=[], help="tables written by ablation")
    added.add_argument("--out", type=Path, required=True, help="output, parquet")

    added = command(claims)
    added.add_argument("result")
    added.add_argument("--options", type=json.loads, required=True, metavar="JSON", help="the result's config block")
    added.add_argument("--table", type=Path, required=True, help="the result's table")
    added.add_argument("--out", type=Path, required=True, help="output, CSV")

    added = command(plot)
    added.add_argument("result")
    added.add_argument("--options", type=json.loads, required=True, metavar="JSON", help="the result's config block")
    added.add_argument("--table", type=Path, required=True, help="the result's table")
    added.add_argument("--claims", type=Path, required=True, help="the result's claims")
    added.add_argument("--out", type=Path, nargs="+", required=True, help="outputs, .png .pdf .svg")

    added = command(merge)
    added.add_argument("tables", type=Path, nargs="+", help="claims of single results")
    added.add_argument("--out", type=Path, required=True, help="output, CSV")

    added = command(verdicts)
    added.add_argument("study", help="name of a finished study, or the path of its claims.csv")
    added.add_argument("--since", type=float, help="only what was made after this time, in seconds since the epoch")

    added = command(manifest)
    added.add_argument("--config", type=json.loads, required=True, metavar="JSON", help="the whole validated config")
    added.add_argument("--out", type=Path, required=True, help="output, JSON")

    added = command(report)
    added.add_argument("--config", type=json.loads, required=True, metavar="JSON", help="the whole validated config")
    added.add_argument("--out", type=Path, required=True, help="output, HTML")

    added = command(verify)
    added.add_argument("study", help="name of a finished study")

    added = command(plan, device=True)
    added.add_argument("--configfile", type=Path, nargs="*", default=[], help="overlays on config.yaml, in order")
    added.add_argument("--config", type=json.loads, metavar="JSON", help="a whole config instead")
    added.add_argument("--cores", type=int, help="jobs side by side on a CPU; default: all cores")

    added = command(publish)
    added.add_argument("study", help="name of a finished study")
    added.add_argument("--command", required=True, help="the command that made it")
    added.add_argument("--note", default="", help="a sentence about the run")

    added = command(compare, device=True)
    added.add_argument("files", type=Path, nargs="+", metavar="FILE", help=".npy .npz .safetensors .pt .pth")
    added.add_argument("--measure", nargs="+", default=["pwcca"], help="pwcca (the default), svcca, linear_cka, ...")
    added.add_argument("--out", type=Path, default=Path("heatmap.png"), help="the heatmap, .png .pdf .svg")
    added.add_argument("--table", type=Path, help="also write a, b, measure, distance, floor of every pair, .csv")

    added = command(capture, device=True)
    added.add_argument("model", metavar="MODEL", help="a name of torchvision.models, or module:function of your own")
    added.add_argument("--list", action="store_true", help="only print the layers and the shapes of what they give")
    added.add_argument("--images", type=Path, metavar="FOLDER", help="images, in subfolders of any depth")
    added.add_argument(
        "--layers", nargs="+", default=[], metavar="LAYER", help="names or globs, e.g. layer1 'layer*.0'"
    )
    added.add_argument("--out", type=Path, help="output, .safetensors or .npz")
    weights = "none (the default): initialised; default: torchvision's, downloaded; or a state_dict, .pt .safetensors"
    added.add_argument("--weights", default="none", help=weights)
    added.add_argument("--size", type=int, default=224, help="height and width that images are scaled and cropped to")
    added.add_argument("--points", type=int, help="so many images, spread evenly over all; default: all")
    added.add_argument("--seed", type=int, default=0, help="of the initialisation")
    added.add_argument("--batch", type=int, default=64, help="images in a forward pass")
    return parser


if __name__ == "__main__":
    sys.exit(main())
