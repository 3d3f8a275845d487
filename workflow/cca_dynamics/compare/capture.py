"""What the layers of any PyTorch network give for inputs of any kind, in a file that `compare` reads.

Networks come from torchvision or from a function of yours. Outputs are taken by forward hooks, in evaluation mode; how
they become data points and neurons is said in `outputs`, where inputs come from in `inputs`.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cca_dynamics.compare import inputs, outputs, weights
from cca_dynamics.compare.inputs import FEWEST, Batch, Source
from cca_dynamics.compare.outputs import Layout, Reading
from cca_dynamics.compare.readers import DESCRIPTION, printable
from cca_dynamics.errors import UserError, as_user_error, check_not_an_input, check_suffix
from cca_dynamics.networks.hooks import forward_hooks, import_module
from cca_dynamics.runtime.storage import replacing, write_tensors

RESERVED = {".npz": {"file", "allow_pickle", DESCRIPTION}, ".safetensors": {"__metadata__"}}
"""Suffix → names that a file of this format cannot give to a layer."""


@dataclass(frozen=True)
class Origin:
    """Which network, and where its weights come from.

    Attributes:
        model: a name of torchvision's, or "module:function", imported from the current folder too; the function takes
            no arguments and returns a module.
        weights: "none" (as initialised from the seed), "default" (torchvision's, downloaded), or the path of a file,
            see `weights`.
        seed: of the initialisation.
        entry: of a file with several sets of weights; None: the one that fits.
    """

    model: str
    weights: str = "none"
    seed: int = 0
    entry: str | None = None


def build(origin: Origin, source: Source | None = None) -> nn.Module:
    """A network in evaluation mode on the CPU.

    Args:
        origin: which network.
        source: inputs, by which lazy modules find out their sizes.

    Raises:
        UserError: there is no such network, it cannot be built, or the weights are not there or another network's.
    """
    model = origin.model
    if not 0 <= origin.seed < 2**63:
        raise UserError(f"--seed is a whole number from 0, below 2^63, not {origin.seed}; choose another")
    if ":" in model:
        if origin.weights == "default":
            raise UserError(f"--weights: {model} has no default; give none or the path of a state_dict")
        network = _made(model, origin.seed)
    else:
        torch.manual_seed(origin.seed)
        network = _from_torchvision(model, origin.weights == "default")
    network = _unwrapped(network)
    if isinstance(network, torch.jit.ScriptModule):
        raise UserError(f"{model}: it is TorchScript, whose layers cannot be watched; give the module it was made from")
    if meta := next((name for name, tensor in network.named_parameters() if tensor.is_meta), None):
        raise UserError(f"{model}: {meta} has no data (device meta); make the network on the CPU")
    lazy = [name for name, tensor in network.named_parameters() if isinstance(tensor, nn.UninitializedParameter)]
    if lazy and source is not None:
        _forward(network.eval(), source.few(FEWEST), (), lambda name, output: None, model, source)
    elif lazy:
        raise UserError(f"{model}: {lazy[0]} has no size before a forward pass; name inputs, e.g. --images")
    if origin.weights not in ("none", "default"):
        weights.fill(network, Path(origin.weights), model, origin.entry)
    return network.eval()


def _unwrapped(network: nn.Module) -> nn.Module:
    """The network inside of torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        inner = getattr(network, "_orig_mod", None)
        if inner is None and isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = network.module
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def _from_torchvision(model: str, pretrained: bool) -> nn.Module:
    from torchvision import models

    name, known = model.lower(), models.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = (
            f"did you mean {' or '.join(close)}?" if close else "give a name of torchvision.models or module:function"
        )
        raise UserError(f"{model}: torchvision has no such model; {hint}")
    if not pretrained:
        with as_user_error(f"{model}: torchvision cannot build it", "choose another model"):
            return models.get_model(name, weights=None)
    address = getattr(getattr(models.get_model_weights(name), "DEFAULT", None), "url", None)
    if address is None:
        raise UserError(f"{model}: torchvision has no weights for it; use --weights none or the path of a state_dict")
    remedy = f"connect to the internet, or download {address} and give its path to --weights"
    with as_user_error(f"{model}: its weights are not available", remedy):
        return models.get_model(name, weights="DEFAULT")


def _made(model: str, seed: int) -> nn.Module:
    """The network that a function of the user's makes from a seed."""
    module, _, function = model.partition(":")
    if not module or not function:
        raise UserError(f"{model}: not module:function; name both, as in networks:small")
    with as_user_error(f"{model}: {module} cannot be imported from {os.getcwd()}", "check its name and that it runs"):
        imported = import_module(module)
    make = getattr(imported, function, None)
    if not callable(make):
        close = difflib.get_close_matches(function, [name for name in dir(imported) if name[0] != "_"], n=1)
        raise UserError(
            f"{model}: {module} has no function {function}; "
            + (f"did you mean {close[0]}?" if close else "define it there")
        )
    torch.manual_seed(seed)  # after the import, which may draw numbers or set a seed, but only once
    with as_user_error(f"{model}: {function}() fails", "it must take no arguments and return a torch.nn.Module"):
        network = make()
    if not isinstance(network, nn.Module):
        raise UserError(f"{model}: {function}() returns a {type(network).__name__}; return a torch.nn.Module")
    return network


def _forward(network: nn.Module, batch: Batch, layers: Sequence[str], note, model: str, source: Source) -> None:
    """One forward pass; note(layer, output) is called whenever one of the layers has given something.

    Inputs are moved to the network's device, and real numbers cast to its type.
    """
    like = next((tensor for tensor in network.parameters() if tensor.is_floating_point()), torch.empty(0))

    def cast(x: Tensor) -> Tensor:
        # A copy: a network may change its input in place, and others read the same.
        return x.to(like.device, like.dtype if x.is_floating_point() else x.dtype, copy=True)

    given = {name: cast(x) for name, x in batch.items()} if isinstance(batch, dict) else cast(batch)
    shapes = " and ".join(
        f"{name} of {_times(x.shape)}" if name else _times(x.shape)
        for name, x in (given.items() if isinstance(given, dict) else [("", given)])
    )
    remedy = {
        "image": "try another --size or --channels, or a smaller --batch if memory is short",
        "sequence": "check the numbers of the tokenizer, try another --length, or a smaller --batch",
    }.get(source.words, "check the shapes and types of the inputs")
    with torch.no_grad(), forward_hooks(network, layers, note), as_user_error(f"{model}: it fails on {shapes}", remedy):
        network(**given) if isinstance(given, dict) else network(given)


def probe(network: nn.Module, source: Source, model: str, reading: Reading, batch: int) -> dict[str, str | Layout]:
    """What every layer gives: its layout, or why it is not available.

    Two small batches are run through the network: the axis that grows with them is that of the inputs. Where all axes
    of a map have one size, larger inputs follow: the axis that does not grow with them is that of the channels.

    Args:
        network: in evaluation mode.
        source: of the inputs.
        model: what messages call the network.
        reading: how outputs are read.
        batch: inputs in a batch; of 1, whether a layer keeps the axis of a single input matters, too.

    Raises:
        UserError: the forward pass fails, or gives other numbers the second time.
    """
    counts = (1 if batch == 1 else 2, FEWEST)
    calls: dict[str, tuple[list, list]] = {name: ([], []) for name, _ in network.named_modules() if name}
    for which, count in enumerate(counts):
        few = source.few(count)
        _forward(network, few, tuple(calls), lambda name, x, which=which: _keep(calls[name][which], x), model, source)
    seen = outputs.seen_in(network, calls, counts)
    modules = {name: network.get_submodule(name) for name in calls}
    layouts = {name: outputs.layout_of(modules[name], calls[name], reading, seen) for name in calls}
    ambiguous = [name for name, layout in layouts.items() if outputs.is_ambiguous(modules[name], layout)]
    larger = _given_for_larger(network, ambiguous, few, model, source) if ambiguous else {}
    return layouts | {name: outputs.found_in_larger(layouts[name], larger[name], reading) for name in ambiguous}


def _given_for_larger(
    network: nn.Module, layers: Sequence[str], batch: Batch, model: str, source: Source
) -> dict[str, list[object]]:
    """What layers give for inputs of twice the height and width, or length; as much as there is where it fails."""

    def doubled(x: Tensor) -> Tensor:
        return x.repeat(1, 1, *[2] * (x.ndim - 2)) if x.ndim > 2 else x

    result: dict[str, list[object]] = {name: [] for name in layers}
    larger = {name: doubled(x) for name, x in batch.items()} if isinstance(batch, dict) else doubled(batch)
    # A network that takes one size alone has mostly run the layers in question before it fails.
    with suppress(UserError):
        _forward(network, larger, tuple(layers), lambda name, x: _keep(result[name], x), model, source)
    return result


def _keep(results: list, output: object) -> None:
    """Keep what a layer gave as it is now: what follows may change it in place."""
    results.append(_copied(output))


def _copied(output: object) -> object:
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, dict):
        return {key: _copied(value) for key, value in output.items()}
    if type(output) in (tuple, list):
        return type(output)(_copied(value) for value in output)
    return output


def chosen(
    patterns: Sequence[str], layouts: dict[str, str | Layout], model: str, reading: Reading
) -> dict[str, Layout]:
    """Layers by name or glob, each once; a star does not match a dot, so that layer* means layer1, not layer1.0.

    Raises:
        UserError: a pattern matches nothing, or a layer that cannot be captured.
    """
    layouts_by_name: dict[str, Layout] = {}
    for pattern in patterns:
        parts = pattern.split(".")
        matching = [name for name in layouts if name == pattern or _matches(name.split("."), parts)]
        if not matching:
            close = difflib.get_close_matches(pattern, layouts, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "--list names its layers"
            raise UserError(f"--layers: {model} has no layer {pattern}; {hint}")
        for name in matching:
            layout = layouts[name]
            if isinstance(layout, str):
                advice = "" if ";" in layout else "; choose another, --list has them"
                raise UserError(f"--layers: {name} of {model} is not available: it {_verb(layout)}{advice}")
            if (need := outputs.needs(layout, reading)) is not None:
                raise UserError(f"--layers: {name} of {model} {need}")
            layouts_by_name[name] = layout
    return layouts_by_name


def _verb(problem: str) -> str:
    """A problem after the word "it"."""
    return f"is {problem}" if problem.startswith(("called", "never")) else problem


def _matches(names: list[str], patterns: list[str]) -> bool:
    pairs = zip(names, patterns, strict=False)
    return len(names) == len(patterns) and all(fnmatch.fnmatchcase(name, pattern) for name, pattern in pairs)


def passes(source: Source, batch: int, description: str) -> Iterator[Batch]:
    """All inputs, batch by batch, with a progress bar where the output is a terminal."""
    from tqdm import tqdm

    with tqdm(total=source.count, desc=description, unit=source.words, disable=None) as bar:
        for given in source.batches(batch):
            yield given
            bar.update(inputs.length(given))


def given(
    network: nn.Module, batch: Batch, layers: dict[str, Layout], model: str, reading: Reading, source: Source
) -> dict[str, Tensor]:
    """What layers give for a batch: name → (data points, neurons) float32.

    Raises:
        UserError: a layer gives another number of rows, or NaN, or the forward pass fails.
    """
    outputs_by_layer: dict[str, list[Tensor]] = {name: [] for name in layers}
    mask = batch.get("attention_mask") if isinstance(batch, dict) else None

    def keep(name: str, output: object) -> None:
        x = outputs.tensor_of(output, reading.output)
        if x is None or not (reading.call in (None, "mean") or len(outputs_by_layer[name]) == reading.call):
            outputs_by_layer[name].append(torch.empty(0))
        else:
            outputs_by_layer[name].append(outputs.points(x, layers[name], reading, mask).to(torch.float32, copy=True))

    _forward(network, batch, tuple(layers), keep, model, source)
    count, result = inputs.length(batch), {}
    for name, calls in outputs_by_layer.items():
        if len(calls) != (usual := layers[name].calls):
            raise UserError(
                f"--layers: {name} of {model} is called {len(calls)} times in this batch and {usual} times in the "
                "first one; choose a layer that runs in every forward pass"
            )
        x = result[name] = outputs.merged(calls, reading.call)
        each = outputs.points_per_input(layers[name], reading)
        of_tokens = mask is not None and outputs.drops_padding(layers[name], reading)
        expected = int(mask.bool().sum()) if of_tokens else count * each
        if len(x) != expected:
            raise UserError(f"--layers: {name} of {model} gives {len(x)} rows for {count} inputs; choose another")
        if not torch.isfinite(x).all():
            given_values = batch.values() if isinstance(batch, dict) else [batch]
            culprit = (
                "weights" if all(torch.isfinite(each).all() for each in given_values) else "inputs, which have some"
            )
            raise UserError(f"--layers: {name} of {model} gives NaN or infinite values; check the {culprit}")
    return result


def refuse_randomness(
    network: nn.Module, layers: dict[str, Layout], model: str, reading: Reading, source: Source
) -> None:
    """Refuse a network that gives other numbers for the same inputs, a second time or in another batch.

    The first is functional.dropout that is never off, the second a batch norm without running statistics.
    """
    few = source.few(FEWEST)
    first, second = (given(network, few, layers, model, reading, source) for _ in range(2))
    fewer = given(network, inputs.first(few, FEWEST - 1), layers, model, reading, source)
    for name, x in first.items():
        if not torch.allclose(x, second[name], rtol=1e-3, atol=1e-5 * float(x.abs().max())):
            raise UserError(
                f"--layers: {name} of {model} gives other numbers for the same inputs a second time; make it "
                "deterministic in evaluation mode, e.g. functional.dropout(..., training=self.training)"
            )
        if not torch.allclose(x[: len(fewer[name])], fewer[name], rtol=1e-2, atol=2e-2 * float(x.abs().max())):
            raise UserError(
                f"--layers: {name} of {model} gives other numbers for the same inputs in another batch; make it treat "
                "each input by itself, e.g. with running statistics in its normalisation"
            )


def store(
    network: nn.Module,
    source: Source,
    patterns: Sequence[str],
    out: Path,
    *,
    reading: Reading,
    batch: int,
    facts: dict[str, object],
) -> dict[str, object]:
    """Run inputs through a network and write what some of its layers give.

    Args:
        network: on its device, in evaluation mode.
        source: of the inputs.
        patterns: names or globs of layers, see `chosen`.
        out: .safetensors or .npz; (data points, neurons) float32 for each layer, and a description: the facts, the
            layers' shapes for one input, the number of inputs, their names, a checksum of names and contents, and of
            layers without the tokens of padding the number of rows of each input.
        reading: how outputs become data points and neurons.
        batch: inputs in a forward pass.
        facts: what else to write into the description, "model" at least.

    Returns:
        The description; its "layers" are name → shape for one input.

    Raises:
        UserError: a layer or an input is refused, by name; nothing is written.
        OSError: the output cannot be written.
    """
    model = str(facts["model"])
    layers = chosen(patterns, probe(network, source, model, reading, batch), model, reading)
    refuse_randomness(network, layers, model, reading, source)
    if taken := RESERVED[out.suffix].intersection(layers):
        raise UserError(f"{out}: such a file cannot hold a layer called {taken.pop()}; choose another layer or format")
    parts: dict[str, list[Tensor]] = {name: [] for name in layers}
    count, tokens = 0, []
    for each in passes(source, batch, model):
        count += inputs.length(each)
        if isinstance(each, dict) and "attention_mask" in each:
            tokens += each["attention_mask"].bool().sum(dim=1).tolist()
        for name, x in given(network, each, layers, model, reading, source).items():
            parts[name].append(x.cpu())
    tensors = {name: torch.cat(part) for name, part in parts.items()}
    shapes = {name: layout.shape for name, layout in layers.items()}
    described = {**facts, "layers": shapes, f"{source.words}s": count}
    if tokens:
        described["rows"] = {name: tokens for name, layout in layers.items() if outputs.drops_padding(layout, reading)}
    ids, checksum = source.facts()
    if checksum:
        described |= {"files": checksum, "ids": ids}
    with replacing(out) as temporary:
        if out.suffix == ".npz":
            np.savez(
                temporary,
                allow_pickle=False,
                **{name: x.numpy() for name, x in tensors.items()},
                **{DESCRIPTION: np.array(json.dumps(described))},
            )
        else:
            write_tensors(temporary, tensors, **described)
    read = {name: (layout, len(tensors[name])) for name, layout in layers.items()}
    return {**described, "inputs": count, "read": read}


def run(
    origin: Origin, source: Source, patterns: Sequence[str], out: Path | None, reading: Reading, batch: int, device: str
) -> None:
    """Capture and say what was captured. Arguments as `build` and `store`; errors too.

    Raises:
        UserError: an argument is missing or makes no sense.
    """
    for name, value in (("--layers", patterns), ("--out", out)):
        if not value:
            raise UserError(f"{name} is missing; it is needed, unless you ask for --list")
    check_suffix(out, ".safetensors", ".npz")
    if origin.weights not in ("none", "default"):
        check_not_an_input(out, weights.files(Path(origin.weights)))
    out = Path(os.path.abspath(out))  # code of the user may change the current folder
    network = build(origin, source).to(device)
    facts = {"model": origin.model, "weights": origin.weights, "seed": origin.seed, "torch": torch.__version__}
    described = store(network, source, patterns, out, reading=reading, batch=batch, facts=facts)
    count = described["inputs"]
    print(f"{os.path.relpath(out)}: {count} {source.words}s of {source.place}")
    for name, (layout, data_points) in described["read"].items():
        width = outputs.neurons(layout, reading)
        print(
            f"  {printable(name)}: {width} neurons{_how(layout, reading, padded=name in described.get('rows', {}))}"
            + (f"; PWCCA needs more than {width + 1} data points for them" if width >= data_points - 1 else "")
        )


def _how(layout: Layout, reading: Reading, padded: bool) -> str:
    """How a layer's outputs became neurons, in words."""
    if layout.kind == "neurons":
        return ""
    if layout.kind == "tokens":
        words = {
            "mean": "averaged over",
            "first": "the first of",
            "last": "the last of",
            "all": "a data point for each of",
        }
        return f", {words[reading.tokens]} {'its' if padded else layout.shape[0]} tokens"
    positions = [length for axis, length in enumerate(layout.shape, start=1) if axis != layout.channels]
    words = {
        "mean": "averaged over",
        "flatten": "one for each channel and each of",
        "positions": "a data point for each of",
    }
    return f", {words[reading.maps]} {' × '.join(map(str, positions))} positions"


def show(origin: Origin, source: Source, reading: Reading, batch: int, device: str) -> None:
    """Print the layers of a network and what they give for one input. Arguments and errors as `build` and `probe`."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    network = build(origin, source).to(device)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for column in ("Layer", "Module", f"For one {source.words}"):
        table.add_column(column, overflow="fold")
    layouts = probe(network, source, origin.model, reading, batch)
    if not layouts:
        raise UserError(f"{origin.model}: it has no submodules to watch; wrap it, as in torch.nn.Sequential(network)")
    for name, layout in layouts.items():
        words = f"not available: {layout}" if isinstance(layout, str) else layout.describe()
        table.add_row(*map(Text, (printable(name), type(network.get_submodule(name)).__name__, words)))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
