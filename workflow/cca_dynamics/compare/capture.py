"""What the layers of any PyTorch network answer to a folder of images, in a file that `compare` reads.

Networks come from torchvision or from a function of yours. Activations are taken by forward hooks, in evaluation mode;
feature maps are averaged over space, so that a data point is an image and a neuron a channel.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cca_dynamics.compare.readers import DESCRIPTION, read_safetensors, read_torch
from cca_dynamics.data import pictures
from cca_dynamics.errors import UserError, as_user_error
from cca_dynamics.networks.hooks import forward_hooks, import_module
from cca_dynamics.runtime.storage import replacing, write_tensors

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels, which torchvision's weights expect to be normalised by."""
PROBES = 3
"""Images of the forward pass that finds out what layers give."""
FEWEST = 3
"""Data points that a comparison needs at least."""

Calls = dict[str, list[tuple[int, ...] | str]]
"""Layer → shape of what each call of it gave in one forward pass, or the type of what is no tensor."""


def build(model: str, weights: str, seed: int) -> nn.Module:
    """A network in evaluation mode on the CPU.

    Args:
        model: a name of torchvision's, or "module:function", imported from the current folder too; the function takes
            no arguments and returns a module.
        weights: "none" (as initialised from the seed), "default" (torchvision's, downloaded), or the path of a
            state_dict, .pt, .pth or .safetensors.
        seed: of the initialisation.

    Raises:
        UserError: there is no such network, it cannot be built, or the weights are not there or another network's.
    """
    torch.manual_seed(seed)
    if ":" in model:
        if weights == "default":
            raise UserError(f"--weights: {model} has no default; give none or the path of a state_dict")
        network = _imported(model)
    else:
        network = _from_torchvision(model, weights == "default")
    if weights not in ("none", "default"):
        _fill(network, Path(weights), model)
    return network.eval()


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


def _imported(model: str) -> nn.Module:
    module, _, function = model.partition(":")
    if not module or not function:
        raise UserError(f"{model}: not module:function; name both, as in networks:small")
    with as_user_error(f"{model}: {module} cannot be imported from {os.getcwd()}", "check its name and that it runs"):
        found = import_module(module)
    make = getattr(found, function, None)
    if not callable(make):
        close = difflib.get_close_matches(function, [name for name in dir(found) if name[0] != "_"], n=1)
        raise UserError(
            f"{model}: {module} has no function {function}; "
            + (f"did you mean {close[0]}?" if close else "define it there")
        )
    with as_user_error(f"{model}: {function}() fails", "it must take no arguments and return a torch.nn.Module"):
        network = make()
    if not isinstance(network, nn.Module):
        raise UserError(f"{model}: {function}() returns a {type(network).__name__}; return a torch.nn.Module")
    return network


def _fill(network: nn.Module, path: Path, model: str) -> None:
    """Load a state_dict of the same names and shapes."""
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise UserError(f"--weights: {path} is neither none, default nor a .pt, .pth or .safetensors file; give one")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; check the path of --weights")
    given = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_torch(path)
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
    wrong = [
        *(f"it lacks {name}" for name in own if name not in shapes),
        *(f"{name or 'a tensor without a name'} is none of the network's" for name in shapes if name not in own),
        *(f"{name} is {shapes[name]}, not {own[name]}" for name in own if shapes.get(name, own[name]) != own[name]),
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(f"{path}: its weights are not those of {model} ({wrong[0]}{more}); save {model}'s state_dict()")
    with as_user_error(f"{path}: {model} does not take its weights", f"save {model}'s state_dict()"):
        network.load_state_dict(given)


def probe(network: nn.Module, size: int, model: str) -> Calls:
    """What every layer gives in one forward pass of `PROBES` black images of 3 × size × size.

    Raises:
        UserError: the forward pass fails.
    """
    calls: Calls = {name: [] for name, _ in network.named_modules() if name}

    def note(name: str, output: object) -> None:
        calls[name].append(tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__)

    _forward(network, torch.zeros(PROBES, 3, size, size), calls, note, model)
    return calls


def _forward(network: nn.Module, images: Tensor, layers: Iterable[str], note, model: str) -> None:
    """One forward pass; note(layer, output) is called whenever one of the layers has given something."""
    device = next(iter(network.parameters()), torch.empty(0)).device
    failure = f"{model}: it fails on images of {' × '.join(map(str, images.shape[1:]))}"
    with (
        torch.no_grad(),
        forward_hooks(network, layers, note),
        as_user_error(failure, "try another --size, or a smaller --batch if memory is short"),
    ):
        network(images.to(device))


def unfit(outputs: Sequence[tuple[int, ...] | str]) -> str | None:
    """Why a layer cannot be captured, from what its calls gave in `probe`; None: it can."""
    if not outputs:
        return "never called in a forward pass"
    if len(outputs) > 1:
        return f"called {len(outputs)} times in a forward pass"
    shape = outputs[0]
    if isinstance(shape, str):
        return f"gives a {shape}, not a tensor"
    if len(shape) not in (2, 4) or not all(shape):
        return f"gives {_times(shape)}, neither (images, neurons) nor (images, channels, height, width)"
    if shape[0] != PROBES:
        return f"gives {shape[0]} rows for {PROBES} images"
    if len(shape) == 4 and shape[1] == shape[2] != shape[3]:  # images are square
        return f"gives {_times(shape[1:])} an image, channels last"
    return None


def chosen(patterns: Sequence[str], calls: Calls, model: str) -> list[str]:
    """Layers by name or glob, each once; a star does not match a dot, so that layer* means layer1, not layer1.0.

    Raises:
        UserError: a pattern matches nothing, or a layer that cannot be captured.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        parts = pattern.split(".")
        matching = [name for name in calls if name == pattern or _matches(name.split("."), parts)]
        if not matching:
            close = difflib.get_close_matches(pattern, calls, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "--list names its layers"
            raise UserError(f"--layers: {model} has no layer {pattern}; {hint}")
        found |= dict.fromkeys(matching)
    for name in found:
        if (problem := unfit(calls[name])) is not None:
            raise UserError(
                f"--layers: {name} of {model} is not to be had ({problem}); choose another, --list has them"
            )
    return list(found)


def _matches(names: list[str], patterns: list[str]) -> bool:
    pairs = zip(names, patterns, strict=False)
    return len(names) == len(patterns) and all(fnmatch.fnmatchcase(name, pattern) for name, pattern in pairs)


def listing(folder: Path, points: int | None) -> tuple[list[Path], list[str], str]:
    """The images in a folder and its subfolders, sorted by path.

    Args:
        folder: holds image files at any depth, see `pictures.files_below`.
        points: so many images, spread evenly over all of them; None: all. The choice does not depend on a seed, so
            that networks of different seeds see the same images.

    Returns:
        The paths, their names in the folder, and a checksum of these and of their sizes.

    Raises:
        UserError: there is no such folder, or too few images are in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name one with images")
    found = pictures.files_below(folder)
    paths = found.paths
    if not paths:
        suffixes = ", ".join(pictures.SUFFIXES)
        raise UserError(f"{folder}: it holds no image ({suffixes}); add some or name another folder")
    if note := found.note():
        print(f"note: {folder}: {note}", file=sys.stderr)
    if points is not None and points > len(paths):
        raise UserError(f"{folder}: it holds {len(paths)} images, fewer than --points {points}; ask for fewer")
    if points is not None:
        paths = [paths[i * len(paths) // points] for i in range(points)]
    if len(paths) < FEWEST:
        raise UserError(f"{folder}: {len(paths)} data points are too few to compare anything; use {FEWEST} or more")
    names = [path.relative_to(folder).as_posix() for path in paths]
    listed = [(name, path.stat().st_size) for name, path in zip(names, paths, strict=True)]
    return paths, names, hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def image(path: Path, size: int) -> Tensor:
    """(3, size, size) float32: the largest square in the middle, scaled, normalised as ImageNet is.

    Raises:
        UserError: the file is no image, or damaged.
    """
    from PIL import Image, ImageOps

    with as_user_error(f"{path}: not an image, or damaged", "replace or delete it"):
        square = ImageOps.fit(pictures.read(path), (size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(square, dtype=np.float32) / 255
    return torch.from_numpy((pixels - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1).contiguous()


def store(
    network: nn.Module,
    folder: Path,
    layers: Sequence[str],
    out: Path,
    *,
    size: int,
    points: int | None,
    batch: int,
    facts: dict[str, object],
) -> dict[str, object]:
    """Run the images of a folder through a network and write what some of its layers give.

    Args:
        network: on its device, in evaluation mode.
        folder: of the images, see `listing`.
        layers: names or globs, see `chosen`.
        out: .safetensors or .npz; (n, d) float32 for each layer, and a description: the facts, the layers' shapes, the
            number of images, their names, and the checksum of names and sizes.
        size: height and width of the images.
        points: see `listing`.
        batch: images in a forward pass.
        facts: what else to write into the description, "model" at least.

    Returns:
        The description; its "layers" are name → shape for one image.

    Raises:
        UserError: a layer, an image or the folder is refused, by name; nothing is written.
        OSError: the output cannot be written.
    """
    model = str(facts["model"])
    paths, ids, checksum = listing(folder, points)
    calls = probe(network, size, model)
    names = chosen(layers, calls, model)
    if out.suffix == ".npz" and (taken := {"file", "allow_pickle"}.intersection(names)):
        raise UserError(f"{out}: an .npz file cannot hold a layer called {taken.pop()}; write .safetensors")
    shapes = {name: calls[name][0][1:] for name in names}
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for pixels in batches(paths, size, batch, model):
        for name, x in given(network, pixels, names, model).items():
            parts[name].append(x.cpu())
    tensors = {name: torch.cat(part) for name, part in parts.items()}
    described = {**facts, "size": size, "layers": shapes, "images": len(paths), "files": checksum, "ids": ids}
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
    return described


def batches(paths: Sequence[Path], size: int, batch: int, description: str) -> Iterator[Tensor]:
    """Batches of images, (b, 3, size, size), with a progress bar where the output is a terminal."""
    from tqdm import tqdm

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in tqdm(range(0, len(paths), batch), desc=description, unit="batch", disable=None):
            yield torch.stack(list(pool.map(lambda path: image(path, size), paths[start : start + batch])))


def given(network: nn.Module, pixels: Tensor, names: Sequence[str], model: str) -> dict[str, Tensor]:
    """What layers give for a batch of images: name → (b, d) float32, maps averaged over space.

    Raises:
        UserError: a layer gives another number of rows, or NaN, or the forward pass fails.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        # A copy: what follows may change the output in place.
        x = output.mean(dim=(2, 3)) if output.ndim == 4 else output
        found[name] = x.to(torch.float32, copy=True)

    _forward(network, pixels, names, keep, model)
    for name, x in found.items():
        if len(x) != len(pixels):
            raise UserError(f"--layers: {name} of {model} gives {len(x)} rows for {len(pixels)} images; choose another")
        if not torch.isfinite(x).all():
            raise UserError(f"--layers: {name} of {model} gives NaN or infinite values; check the weights")
    return {name: found[name] for name in names}


def run(
    model: str,
    folder: Path | None,
    layers: Sequence[str],
    out: Path | None,
    *,
    weights: str,
    size: int,
    points: int | None,
    seed: int,
    batch: int,
    device: str,
) -> None:
    """Capture and say what was captured. Arguments as `build` and `store`; errors too.

    Raises:
        UserError: an argument is missing or makes no sense.
    """
    for name, given in (("--images", folder), ("--layers", layers), ("--out", out)):
        if not given:
            raise UserError(f"{name} is missing; it is needed, unless you ask for --list")
    if out.suffix not in (".safetensors", ".npz"):
        raise UserError(f"{out}: its suffix is neither .safetensors nor .npz; name the output so")
    check_numbers(size, batch, points)
    network = build(model, weights, seed).to(device)
    facts = {"model": model, "weights": weights, "seed": seed, "torch": torch.__version__}
    described = store(network, folder, layers, out, size=size, points=points, batch=batch, facts=facts)
    count = described["images"]
    print(f"{out}: {count} images of {folder}")
    for name, shape in described["layers"].items():
        averaged = f", averaged over {shape[1]} × {shape[2]} positions" if len(shape) == 3 else ""
        few = f"; PWCCA needs more than {shape[0] + 1} images for them" if shape[0] >= count - 1 else ""
        print(f"  {name}: {shape[0]} neurons{averaged}{few}")


def check_numbers(size: int, batch: int, points: int | None) -> None:
    """Refuse options that are too small, by name."""
    for name, number, least in (("--size", size, 1), ("--batch", batch, 1), ("--points", points, FEWEST)):
        if number is not None and number < least:
            raise UserError(f"{name} is at least {least}, not {number}; raise it")


def show(model: str, *, weights: str, size: int, seed: int, device: str) -> None:
    """Print the layers of a network and what they give for one image. Arguments and errors as `build` and `probe`."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if size < 1:
        raise UserError(f"--size is at least 1, not {size}; raise it")
    network = build(model, weights, seed).to(device)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for column in ("Layer", "Module", f"For an image of 3×{size}×{size}"):
        table.add_column(column, overflow="fold")
    for name, outputs in probe(network, size, model).items():
        problem = unfit(outputs)
        given = _times(outputs[0][1:]) if problem is None else f"not to be had: {problem}"
        table.add_row(escape(name), type(network.get_submodule(name)).__name__, given)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


def _times(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))
