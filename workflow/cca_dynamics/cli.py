"""`cca-dynamics`: one subcommand per stage of the workflow. The Snakemake rules call these; so can you.
`capture` and `compare` are for networks from elsewhere.

A problem with an input ends the program with status 1 and one line, `error: ...`, that names the file or key and the
remedy. A job that is interrupted (SIGTERM, SIGINT) saves its state and ends with status 75. If nobody reads the output
any more, as after `| head`, it ends with status 141.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from cca_dynamics import __version__
from cca_dynamics.errors import Interrupted, UserError, check_not_an_input, check_suffix, operating_system_errors
from cca_dynamics.runtime.machine import use_common_kernels

INTERRUPTED = 75
"""Exit status of a job that was interrupted and saved its state; EX_TEMPFAIL, "try again", of sysexits.h."""
UNREAD = 141
"""Exit status where the reader of the output has gone, as a shell reports it of other programs: 128 + SIGPIPE."""


class OutputPath(type(Path())):
    """A file or folder that a subcommand writes; options of the type Path are those that it reads."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status."""
    from cca_dynamics.runtime.signals import interruptible
    from cca_dynamics.runtime.streams import print_plainly

    # The objects that an import makes stay: a collector that looks for garbage among them takes a seventh of its time,
    # and at the end of the program, which would free them one by one, nearly half a second.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    print_plainly()
    options = _parser().parse_args(arguments)
    use_common_kernels()
    try:
        with interruptible(), operating_system_errors():
            _check_outputs(options)
            options.run(options)
            sys.stdout.flush()  # now, not when Python ends and can only print a traceback
    except BrokenPipeError:
        if not _is_unread(sys.stdout):
            raise
        return UNREAD
    except Interrupted:
        print("interrupted; nothing is half-written, and the same command resumes from the last save", file=sys.stderr)
        return INTERRUPTED
    except UserError as problem:
        print("error: " + " ".join(str(problem).split()), file=sys.stderr)
        return 1
    except ModuleNotFoundError:
        if find_spec("pydantic"):  # every package of the extra is there, so this is a bug
            raise
        remedy = "install the package with its extra, in a clone by pip install '.[workflow]'"
        print(f"error: {options.run.__name__} needs packages that only studies need; {remedy}", file=sys.stderr)
        return 1
    return 0


def _is_unread(stream: TextIO) -> bool:
    """Whether the reader of a stream has gone; what it holds then goes nowhere, so that Python can end in silence."""
    try:
        stream.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return True
    return False


def dataset(options: argparse.Namespace) -> None:
    """Materialise the dataset."""
    from cca_dynamics.config.models import Dataset
    from cca_dynamics.data import datasets

    datasets.materialise(_decoded(Dataset, options.options), options.seed, options.tensors, options.datasheet)


def corpus(options: argparse.Namespace) -> None:
    """Materialise the corpus."""
    from cca_dynamics.config.models import Corpus
    from cca_dynamics.data import corpora

    needed = {"train": options.train_tokens, "valid": options.valid_tokens}
    corpora.materialise(_decoded(Corpus, options.options), options.tensors, options.datasheet, needed)


def train(options: argparse.Namespace) -> None:
    """Train one part of a cohort."""
    device = _device(options, repeats=True)
    from cca_dynamics.config.cohorts import LanguageRecipe, Recipe
    from cca_dynamics.training import classifiers, language_models

    recipe = _decoded(Recipe, options.recipe)
    stage = language_models.train if isinstance(recipe, LanguageRecipe) else classifiers.train
    stage(recipe, options.data, options.out, device=device, report=_report, **_saving(options))


def activations(options: argparse.Namespace) -> None:
    """Extract activations from the checkpoints of one part of a cohort."""
    device = _device(options)
    from cca_dynamics.config.cohorts import LayerRequest, Request
    from cca_dynamics.representations import extraction, language_models

    requests = _decoded(list[Request], options.requests)
    stage = extraction.extract if isinstance(requests[0], LayerRequest) else language_models.extract
    stage(options.networks, options.data, options.out, requests=requests, device=device, report=_report)


def ablation(options: argparse.Namespace) -> None:
    """Ablate the trained networks of one part of a cohort."""
    device = _device(options)
    from cca_dynamics.config.cohorts import AblationRequest
    from cca_dynamics.representations.ablation import ablate

    request = _decoded(AblationRequest, options.request)
    paths = options.networks, options.data, options.out
    ablate(*paths, request=request, device=device, report=_report, **_saving(options))


def compute(options: argparse.Namespace) -> None:
    """Compute the table of one result."""
    device = _device(options)
    from cca_dynamics.config.cohorts import expanded
    from cca_dynamics.results import stages
    from cca_dynamics.similarity import RepresentationError

    inputs = (
        [part for path in paths for part in expanded(path)]
        for paths in (options.networks, options.activations, options.ablations)
    )
    try:
        stages.compute(options.result, _stage_options(options), *inputs, options.out, device=device)
    except RepresentationError as problem:
        raise UserError(str(problem)) from problem


def claims(options: argparse.Namespace) -> None:
    """Test the paper's claims on the table of one result."""
    from cca_dynamics.results import stages

    stages.judge(options.result, _stage_options(options), options.table, options.out)


def plot(options: argparse.Namespace) -> None:
    """Draw the figure of one result."""
    from cca_dynamics.results import stages

    stages.plot(options.result, _stage_options(options), options.table, options.claims, options.out)


def merge(options: argparse.Namespace) -> None:
    """Put the claims of several results into one table."""
    from cca_dynamics.results import claims

    claims.merge(options.tables, options.out)


def replicates(options: argparse.Namespace) -> None:
    """Put the claims of a study's replicates into one table, and draw in how many of them each holds."""
    from cca_dynamics.report import replicates

    replicates.write(options.tables, options.seeds, options.table, options.out)


def multiverse(options: argparse.Namespace) -> None:
    """Put the claims of a study under every reading of what the paper leaves open into one table, and draw them."""
    from cca_dynamics.report import multiverse

    multiverse.write(options.config, options.tables, options.table, options.out, options.curves)


def verdicts(options: argparse.Namespace) -> None:
    """Print the table of claims of a study and where its figures are."""
    from cca_dynamics.report import terminal

    terminal.show(options.study, options.since, options.note, options.note_of_replicates)


def crate(options: argparse.Namespace) -> None:
    """Describe a finished study as an RO-Crate: config, code, versions, hardware, checksums, and what made what."""
    from cca_dynamics.report import crate

    crate.write(options.config, options.workflow, options.out, options.protocol)


def report(options: argparse.Namespace) -> None:
    """Write one page with all verdicts and figures of a finished study."""
    from cca_dynamics.report import page

    page.write(options.config, options.out)


def verify(options: argparse.Namespace) -> None:
    """Check a finished study against its crate and say what differs."""
    from cca_dynamics.report import verification

    verification.show_differences(options.study)


def archive(options: argparse.Namespace) -> None:
    """Pack figures, tables, claims and the crate of a finished study into one zip file, e.g. for Zenodo."""
    from cca_dynamics.report import archive

    print(archive.write(options.study, options.out or Path(f"{options.study}.zip"), options.networks))


def plan(options: argparse.Namespace) -> None:
    """Print what a study will compute and what that takes on this machine, after measuring it for 20 seconds."""
    device = _device(options, repeats=True)
    from cca_dynamics import cost
    from cca_dynamics.study import Study, read_config

    config = options.whole_config
    if config is None:
        config = read_config(options.configfile, entries=options.config)
    cost.show(Study(config), device, cost.parallel_jobs(device, options.cores))


def protocol(options: argparse.Namespace) -> None:
    """Say what the protocol of a study is, whether its config fits it, and which seeds are fresh."""
    from cca_dynamics.config.protocol import renew
    from cca_dynamics.study import Study, read_config
    from cca_dynamics.variants import fresh_seeds

    config = read_config(options.configfile, entries=options.config)
    study = Study(config)
    if study.protocol is None:
        raise UserError(f"the study {study.name} has no protocol; name one under the config key protocol")
    if options.renew and renew(study.protocol.path, study.config):
        print(
            f"renewed the checksum of the config in {study.protocol.path}; date the file anew, and list the seeds used"
        )
        study = Study(config)
    if not study.protocol.fits(study.config):
        raise UserError(study.protocol.lines(study.config, [study.seed])[-1])
    for seeds in ([study.seed], fresh_seeds(study)):
        print(study.protocol.standing(seeds))


def schema(options: argparse.Namespace) -> None:
    """Write the JSON schema of a config, in which editors and the documentation look up its keys."""
    import yaml

    from cca_dynamics.runtime.storage import replacing
    from cca_dynamics.study import json_schema

    with replacing(options.out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("# Written by `make schema` from the models of the package; edit those.\n")
        yaml.safe_dump(json_schema(), file, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


def publish(options: argparse.Namespace) -> None:
    """Keep a finished study's figures, claims and runtimes in figures/reference/ and the README."""
    from cca_dynamics.report import publish

    print(publish.publish(options.study, options.command, options.note))


def agreement(options: argparse.Namespace) -> None:
    """Compare the claims of two runs of a study: which are equal, which differ, and whether a verdict turns."""
    from cca_dynamics.report import agreement
    from cca_dynamics.runtime.storage import replacing

    if options.table is not None:
        check_suffix(options.table, ".csv")
        if len({run.stem for run in options.claims}) < len(options.claims):
            raise UserError(
                "--table: its columns are called as the files, and two have one name; rename copies of them"
            )
    if options.table is not None:
        with replacing(options.table) as temporary:
            table = agreement.side_by_side(options.claims, options.published)
            table.to_csv(temporary, index=False, float_format="%.6g")
    for run in options.claims:
        lines = agreement.in_words(agreement.compare(run, options.published))
        print("\n".join([f"{run}:", *lines] if len(options.claims) > 1 else lines))


def compare(options: argparse.Namespace) -> None:
    """Compare the layers in files: print the distances of all pairs beside their floors, draw a heatmap."""
    device = _device(options)
    from cca_dynamics.compare import comparison

    inference = comparison.Inference(options.permutations, options.intervals)
    comparison.run(options.files, options.measure, options.out, options.table, device, inference, options.paired)


def capture(options: argparse.Namespace) -> None:
    """Store what layers of a network give for images, text or other inputs, for `compare`."""
    device = _device(options)
    from cca_dynamics.compare import capture

    origin = capture.Origin(options.model, options.weights, options.seed, options.entry)
    source, reading = _inputs(options, listing=options.list), _reading(options)
    if options.list:
        capture.show(origin, source, reading, options.batch, device)
    else:
        capture.run(origin, source, options.layers, options.out, reading, options.batch, device)


def compare_networks(options: argparse.Namespace) -> None:
    """Compare the layers of two networks on the same inputs, without storing activations."""
    device = _device(options)
    from cca_dynamics.compare import capture, side_by_side

    for name in ("weights", "seed", "entry"):
        if len(getattr(options, name) or []) > 2:
            raise UserError(f"--{name} has more than two values; give one for both networks, or one for each")
    sides = []
    for index, model in enumerate((options.first, options.second)):
        # One value of an option is for both networks, of two the second is for the second.
        values = (options.weights, options.seed, options.entry or [None])
        origin = capture.Origin(model, *(each[min(index, len(each) - 1)] for each in values))
        layers = options.second_layers if index and options.second_layers else options.layers
        sides.append(side_by_side.Side(origin, tuple(layers)))
    how = {"reading": _reading(options), "batch": options.batch, "device": device}
    side_by_side.run(tuple(sides), _inputs(options), options.measure, options.out, options.table, **how)


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse outputs that would replace an input or each other, before anything is computed.

    Raises:
        UserError: an output is an input, or two outputs are the same.
    """
    values = [value for given in vars(options).values() for value in (given if isinstance(given, list) else [given])]
    outputs = [value for value in values if isinstance(value, OutputPath)]
    inputs = [value for value in values if isinstance(value, Path) and not isinstance(value, OutputPath)]
    for number, out in enumerate(outputs):
        check_not_an_input(out, inputs)
        if out.resolve() in [other.resolve() for other in outputs[:number]]:
            raise UserError(f"{out} is the name of two outputs; choose another for one of them")


def _inputs(options: argparse.Namespace, listing: bool = False):
    """The inputs of networks that the options name; to list layers, none have to be named."""
    from cca_dynamics.compare import inputs
    from cca_dynamics.data import image_files

    for name, number, least in (
        ("batch", options.batch, 1),
        ("points", options.points, 3),
        ("length", options.length, 1),
    ):
        if number is not None and number < least:
            raise UserError(f"--{name} is at least {least}, not {number}; raise it")
    named = [name for name in ("images", "array", "text", "data") if getattr(options, name) is not None]
    mean, std = (values and tuple(values) for values in (options.mean, options.std))
    pixels = inputs.Pixels(options.size, options.channels, mean, std)
    drawn = (
        options.images is not None and options.out is not None and options.out.suffix.lower() in image_files.SUFFIXES
    )
    if drawn and options.out.resolve().is_relative_to(options.images.resolve()):
        raise UserError(f"{options.out} lies in {options.images}, whose images are inputs; choose another folder")
    if options.data is not None and options.points is not None:
        raise UserError("--points does not choose from --data; yield fewer inputs")
    if len(named) > 1:
        raise UserError(f"--{named[0]} and --{named[1]} both name inputs; choose one")
    if not named and listing:
        return inputs.blank(pixels)
    if not named:
        raise UserError("--images is missing; name it, or other inputs by --array, --text or --data")
    made = {
        "images": lambda: inputs.images(options.images, options.points, pixels),
        "array": lambda: inputs.array(options.array, options.points),
        "text": lambda: inputs.text(options.text, options.points, options.tokenizer, options.length),
        "data": lambda: inputs.code(options.data),
    }
    return made[named[0]]()


def _reading(options: argparse.Namespace):
    """How outputs of layers are read, as the options say."""
    from cca_dynamics.compare.outputs import Reading

    call = options.call
    if call not in (None, "mean"):
        if not call.isdecimal():
            raise UserError(f"--call is a number from 0, or mean, not {call}; correct it")
        call = int(call)
    return Reading(options.output, call, options.tokens, options.maps)


def _decoded(kind: object, text: str) -> object:
    """A typed argument from its JSON; pydantic is imported late, since `compare` and `capture` do without it."""
    from cca_dynamics.config.base import decode

    return decode(kind, text)


def _study_name(text: str) -> str:
    """The name of a study; a shell completes it to the folder below results/."""
    return text.rstrip("/").removeprefix("results/") if not text.endswith(".csv") else text


def _stage_options(options: argparse.Namespace):
    """The options of a result as the stage that is running reads them."""
    from cca_dynamics.config.models import StageOptions
    from cca_dynamics.results.registry import RESULTS

    if options.result not in RESULTS:
        raise UserError(f"{options.result} is not a result; choose one of {', '.join(RESULTS)}")
    decoded = _decoded(RESULTS[options.result].Options, options.options)
    return StageOptions(decoded, options.run.__name__, getattr(options, "seed", None))


def _device(options: argparse.Namespace, *, repeats: bool = False) -> str:
    """The device that this process computes on (see `gpus.choose`), with the threads that the rule was given.

    Args:
        options: of the command line.
        repeats: whether the stage takes the same steps again and again, in memory of the same sizes.
    """
    if options.threads < 1:
        raise UserError(f"--threads is at least 1, not {options.threads}; leave it out for all cores")
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    import torch  # after the number of threads is known

    from cca_dynamics.runtime.gpus import choose
    from cca_dynamics.runtime.threads import keep_memory

    torch.set_num_threads(options.threads)
    keep_memory(large_blocks=repeats)
    return choose(options.device, _report, options.jobs_per_gpu)


def _saving(options: argparse.Namespace) -> dict:
    return {"save_minutes": options.save_minutes, "save_steps": options.save_steps or None}


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cca-dynamics", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(run: Callable, *, device: bool = False, resumes: bool = False) -> Callable:
        command = commands.add_parser(
            run.__name__.replace("_", "-"),
            help=run.__doc__.splitlines()[0],
            description=run.__doc__,
            allow_abbrev=False,
        )
        command.set_defaults(run=run)
        if device:
            command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
            command.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
            command.add_argument("--jobs-per-gpu", type=int, default=1, help="processes like this one that share a GPU")
        if resumes:
            command.add_argument("--save-minutes", type=float, default=5.0, help="at most so long between two saves")
            command.add_argument("--save-steps", type=int, default=0, help="and at most so many steps; 0: any number")
        return command.add_argument

    def add_inputs(argument: Callable) -> None:
        argument("--images", type=Path, metavar="FOLDER", help="inputs: images, in subfolders of any depth")
        argument("--array", type=Path, metavar="FILE", help="inputs: the rows of a .npy file")
        argument(
            "--text", type=Path, metavar="PATH", help="inputs: sequences of a text file, or of a folder's .txt files"
        )
        argument("--data", metavar="MODULE:FUNCTION", help="inputs: batches that your function yields")
        argument("--layers", nargs="+", default=[], metavar="LAYER", help="names or globs, e.g. layer1 'layer*.0'")
        argument("--tokens", choices=["mean", "first", "last", "all"], help="of sequences; all: each is a data point")
        maps = "of feature maps; flatten: each position a neuron, positions: each a data point"
        argument("--maps", choices=["mean", "flatten", "positions"], default="mean", help=maps)
        argument("--output", metavar="KEY", help="key or index of the tensor in a tuple or dict that a layer gives")
        argument("--call", metavar="N", help="which call of a layer that runs several times: 0, 1, ... or mean")
        argument("--size", type=int, default=224, help="height and width that images are scaled and cropped to")
        argument("--channels", type=int, default=3, help="3, or 1 for grey images")
        argument("--mean", type=float, nargs="+", help="subtracted from pixels in [0, 1]; default: ImageNet's")
        argument("--std", type=float, nargs="+", help="pixels are divided by it; default: ImageNet's")
        argument("--tokenizer", metavar="MODULE:FUNCTION", help="text → list of numbers; default: bytes")
        argument("--length", type=int, default=128, help="tokens of a sequence of text")
        argument("--points", type=int, help="so many inputs, spread evenly over all; default: all")
        argument("--batch", type=int, default=64, help="inputs in a forward pass")

    # Arguments that several stages take.
    data = {"type": Path, "required": True, "help": "the materialised dataset or corpus"}
    networks = {"type": Path, "required": True, "help": "a folder written by train"}
    table = {"type": Path, "required": True, "help": "the result's table"}
    options = {"required": True, "metavar": "JSON", "help": "the block of the config, or the keys that the stage reads"}
    seed = {"type": int, "required": True, "help": "the study's seed"}
    config = {"type": json.loads, "required": True, "metavar": "JSON", "help": "the whole validated config"}

    def out(what: str) -> dict:
        return {"type": OutputPath, "required": True, "help": f"output, {what}"}

    argument = add(dataset)
    argument("--options", **options)
    argument("--seed", **seed)
    argument("--tensors", **out("safetensors"))
    argument("--datasheet", **out("JSON"))

    argument = add(corpus)
    argument("--options", **options)
    argument("--tensors", **out("safetensors"))
    argument("--datasheet", **out("JSON"))
    argument("--train-tokens", type=int, default=0, help="the fewest tokens of training text that suffice")
    argument("--valid-tokens", type=int, default=0, help="the fewest tokens of validation text that suffice")

    argument = add(train, device=True, resumes=True)
    argument("--data", **data)
    argument("--recipe", required=True, metavar="JSON", help="see config.cohorts.Recipe")
    argument("--out", **out("a folder"))

    argument = add(activations, device=True)
    argument("--data", **data)
    argument("--networks", **networks)
    argument("--requests", required=True, metavar="JSON", help="a list, see config.cohorts.Request")
    argument("--out", **out("a folder"))

    argument = add(ablation, device=True, resumes=True)
    argument("--data", **data)
    argument("--networks", **networks)
    argument("--request", required=True, metavar="JSON", help="see config.cohorts.AblationRequest")
    argument("--out", **out("parquet"))

    argument = add(compute, device=True)
    several = "COHORT/0-999:50 are COHORT/0-49, COHORT/50-99, ..."
    argument("result")
    argument("--options", **options)
    argument("--seed", **seed)
    argument("--networks", type=Path, nargs="*", default=[], help=f"folders written by train; {several}")
    argument("--activations", type=Path, nargs="*", default=[], help="folders written by activations, likewise")
    argument("--ablations", type=Path, nargs="*", default=[], help="tables written by ablation, likewise")
    argument("--out", **out("parquet"))

    argument = add(claims)
    argument("result")
    argument("--options", **options)
    argument("--seed", **seed)
    argument("--table", **table)
    argument("--out", **out("CSV"))

    argument = add(plot)
    argument("result")
    argument("--options", **options)
    argument("--table", **table)
    argument("--claims", type=Path, required=True, help="the result's claims")
    argument("--out", type=OutputPath, nargs="+", required=True, help="outputs, .png .pdf .svg")

    argument = add(merge)
    argument("tables", type=Path, nargs="+", help="claims of single results")
    argument("--out", **out("CSV"))

    argument = add(replicates)
    argument("tables", type=Path, nargs="+", help="claims of each replicate")
    argument("--seeds", type=int, nargs="+", required=True, help="of the replicates, in the same order")
    argument("--table", **out("CSV"))
    argument("--out", type=OutputPath, nargs="+", required=True, help="outputs, .png .pdf .svg")

    argument = add(multiverse)
    argument("tables", type=Path, nargs="+", help="claims of one result under each reading, in their order")
    argument("--config", **config)
    argument("--table", **out("CSV"))
    argument("--out", type=OutputPath, nargs="+", required=True, help="outputs, .png .pdf .svg, of the overview")
    argument("--curves", **out("a folder with the curves of each result"))

    argument = add(verdicts)
    argument("study", type=_study_name, help="name of a finished study, or the path of its claims.csv")
    argument("--since", type=float, help="only what was made after this time, in seconds since the epoch")
    argument("--note", nargs="*", default=[], metavar="LINE", help="lines to print below the verdicts")
    argument("--note-of-replicates", nargs="*", default=[], metavar="LINE", help="and below those of the replicates")

    argument = add(crate)
    argument("--config", **config)
    argument("--workflow", type=Path, nargs="+", required=True, help="the Snakefile, and the files that it includes")
    argument("--protocol", type=json.loads, metavar="JSON", help="what to record of the protocol; default: null")
    argument("--out", **out("JSON"))

    argument = add(report)
    argument("--config", **config)
    argument("--out", **out("HTML"))

    argument = add(verify)
    argument("study", type=_study_name, help="name of a finished study")

    argument = add(archive)
    argument("study", type=_study_name, help="name of a finished study")
    argument("--out", type=OutputPath, metavar="FILE.zip", help="the archive; default: STUDY.zip")
    argument("--networks", action="store_true", help="with the trained networks")

    def add_config(argument: Callable) -> None:
        argument("--configfile", type=Path, nargs="*", default=[], help="overlays on config.yaml, in order")
        argument("--config", nargs="*", default=[], metavar="KEY=VALUE", help="keys on top of them, as of snakemake")

    add_config(argument := add(plan, device=True))
    argument("--whole-config", type=json.loads, metavar="JSON", help="a whole config instead")
    argument("--cores", type=int, help="jobs side by side on a CPU; default: all cores")

    add_config(argument := add(protocol))
    argument("--renew", action="store_true", help="write the config's checksum into the file")

    argument = add(schema)
    argument("--out", **out("YAML"))

    argument = add(publish)
    argument("study", type=_study_name, help="name of a finished study")
    argument("--command", required=True, help="the command that made it")
    argument("--note", default="", help="a sentence about the run")

    argument = add(agreement)
    argument("claims", type=Path, nargs="+", help="claims.csv of a run, or of several under different names")
    argument("published", type=Path, help="claims.csv of another, such as figures/reference/mnist1d/claims.csv")
    argument(
        "--table", type=OutputPath, help="also write values, verdicts and the largest difference of every claim, .csv"
    )

    argument = add(compare, device=True)
    argument("files", type=Path, nargs="+", metavar="FILE", help=".npy .npz .safetensors .pt .pth")
    argument("--measure", nargs="+", default=["pwcca"], help="pwcca (the default), svcca, linear_cka, ...")
    argument("--out", type=OutputPath, default=OutputPath("heatmap.png"), help="the heatmap, .png .pdf .svg")
    argument("--table", type=OutputPath, help="also write a, b, measure, distance, floor, ... of every pair, .csv")
    argument("--permutations", type=int, default=0, metavar="K", help="test distances against K permutations, e.g. 200")
    argument(
        "--paired", action="store_true", help="compare row by row, though captured images have other names or contents"
    )
    argument("--intervals", action="store_true", help="add confidence intervals over data points")

    argument = add(capture, device=True)
    argument("model", metavar="MODEL", help="a name of torchvision.models, or module:function of your own")
    argument("--list", action="store_true", help="only print the layers and the shapes of their outputs")
    add_inputs(argument)
    argument("--out", type=OutputPath, help="output, .safetensors or .npz")
    weights = "none (the default): initialised; default: torchvision's, downloaded; or a file, .pt .ckpt .safetensors"
    entry = "of a file with several sets of weights, e.g. ema"
    argument("--weights", default="none", help=weights)
    argument("--entry", help=entry)
    argument("--seed", type=int, default=0, help="of the initialisation")

    argument = add(compare_networks, device=True)
    argument("first", metavar="A", help="a name of torchvision.models, or module:function of your own")
    argument("second", metavar="B", help="likewise; the same as A, to compare seeds or weights")
    add_inputs(argument)
    argument("--second-layers", nargs="+", default=[], metavar="LAYER", help="of B; default: those of --layers")
    argument("--weights", nargs="+", default=["none"], help=f"of both networks, or of A and of B; {weights}")
    argument("--entry", nargs="+", help=entry)
    argument("--seed", type=int, nargs="+", default=[0], help="of the initialisation of both, or of A and of B")
    argument("--measure", nargs="+", default=["pwcca"], help="pwcca (the default), svcca, linear_cka, ...")
    argument("--out", type=OutputPath, default=OutputPath("networks.png"), help="the heatmap, .png .pdf .svg")
    argument("--table", type=OutputPath, help="also write a, b, measure, distance, floor of every pair of layers, .csv")
    return parser


if __name__ == "__main__":
    sys.exit(main())
