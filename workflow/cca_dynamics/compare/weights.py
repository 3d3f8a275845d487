"""Weights of a network as training scripts, wrappers and hubs write them.

Tensors alone are read, never other objects. A file may hold more than one set of weights (a checkpoint with the
optimiser's state, averages beside the weights), and names may begin with what wrappers add.
"""

from __future__ import annotations

import copy
import difflib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from cca_dynamics.compare.readers import load_without_code, read_safetensors, refuse_pointer
from cca_dynamics.errors import UserError, as_user_error

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json")
"""Of files with weights; .json is the index of weights in several files."""
DEPTH = 3
"""Levels of dicts in which weights are looked for."""
COUNTERS = "num_batches_tracked"
"""End of the names of tensors that evaluation does not use; they may be missing, or there without need."""
COMPILED = "_orig_mod."
"""What torch.compile puts into the names of what is compiled."""


@dataclass(frozen=True)
class Candidate:
    """A set of tensors in a file.

    Attributes:
        entry: where in the file, e.g. "state_dict"; "" for the file itself.
        prefix: what all names begin with and the network's do not, e.g. "module."; "" if nothing.
        tensors: name, without the prefix → tensor.
        problems: why they are not the network's; [] if they are.
    """

    entry: str
    prefix: str
    tensors: dict[str, Tensor]
    problems: list[str]


def fill(network: nn.Module, path: Path, model: str, entry: str | None) -> None:
    """Load weights into a network, and say where in the file they were if that is not obvious.

    Args:
        network: is changed.
        path: see `SUFFIXES`.
        model: what messages call the network.
        entry: of the file's sets of weights, the one to take; None: the one that fits.

    Raises:
        UserError: there is no such file or entry, it holds no weights of this network, or several sets of them.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--weights: {path} is neither none, default nor a {', '.join(SUFFIXES)} file; give one")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; check the path of --weights")
    content = _content(path)
    state = {name: tensor for name, tensor in network.state_dict().items() if isinstance(tensor, Tensor)}
    candidates = [_fitted(name, tensors, network, state) for name, tensors in _sets(content, "", DEPTH)]
    if entry is not None:
        named = [candidate for candidate in candidates if candidate.entry == entry]
        if not named:
            known = [candidate.entry for candidate in candidates if candidate.entry]
            close = difflib.get_close_matches(entry, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known) or 'none'}"
            raise UserError(f"--entry: {path} has no weights called {entry}; {hint}")
        candidates = named
    fitting = [candidate for candidate in candidates if not candidate.problems]
    if len(fitting) > 1:
        names = " and ".join(candidate.entry or "the file itself" for candidate in fitting)
        raise UserError(f"{path}: it holds several weights of {model} ({names}); name one by --entry")
    if not fitting:
        raise UserError(_misfit(path, model, candidates))
    (chosen,) = fitting
    parts = [f"its entry {chosen.entry}"] * bool(chosen.entry) + [f"without {chosen.prefix}"] * bool(chosen.prefix)
    if parts:
        print(f"note: {path}: the weights are {', names '.join(parts)}", file=sys.stderr)
    with as_user_error(f"{path}: {model} does not take its weights", f"save {model}'s state_dict()"):
        network.load_state_dict(chosen.tensors, strict=False)  # names and shapes have been compared


def _misfit(path: Path, model: str, candidates: list[Candidate]) -> str:
    """That no set of weights fits, by what the best of them lacks."""
    if not candidates:
        return f"{path}: it holds no tensors; save {model}'s state_dict()"
    best = min(candidates, key=lambda candidate: len(candidate.problems))
    first, *others = best.problems
    more = f" and {len(others)} more" if others else ""
    where = f" in {best.entry}" if best.entry else ""
    return f"{path}: its weights are not those of {model} ({first}{where}{more}); save {model}'s state_dict()"


def files(path: Path) -> list[Path]:
    """The file, and those that it names if it is an index.

    Raises:
        UserError: it is no index of weights, or names a file outside its folder.
    """
    if path.suffix != ".json" or not path.is_file():
        return [path]
    return [path, *(path.parent / name for name in sorted({*_places(path).values()}))]


def _content(path: Path) -> Mapping:
    """Everything in a file, or in all files that an index names."""
    refuse_pointer(path)
    if path.suffix == ".json":
        return _shards(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    return load_without_code(path, "save the network's state_dict() alone")


def _shards(path: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index of Hugging Face's kind names."""
    tensors: dict[str, Tensor] = {}
    for shard in files(path)[1:]:
        if not shard.is_file():
            raise UserError(f"{path}: it names {shard.name}, which is not beside it; copy all files of the weights")
        tensors |= dict(_content(shard))
    missing = sorted(set(_places(path)) - set(tensors))
    if missing:
        raise UserError(f"{path}: the files beside it lack {missing[0]}; copy all files of the weights again")
    return tensors


def _places(path: Path) -> dict[str, str]:
    """Name of a tensor → name of the file beside an index of Hugging Face's kind that holds it.

    Raises:
        UserError: it is no such index, or names a file outside its folder.
    """
    with as_user_error(f"{path}: not an index of weights", "give model.safetensors.index.json, or a file of weights"):
        places = {
            name: str(file) for name, file in dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"]).items()
        }
    for name in places.values():
        if (path.parent / name).parent != path.parent:
            raise UserError(f"{path}: it names a file outside its folder, {name}; put all files beside it")
    return places


def _sets(content: Mapping, entry: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(entry, tensors) of each dict, in the file and in what it holds, with tensors in it."""
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield entry, tensors
    for name, value in content.items():
        if depth and isinstance(name, str) and isinstance(value, Mapping):
            yield from _sets(value, f"{entry}.{name}" if entry else name, depth - 1)


def _fitted(entry: str, tensors: dict[str, Tensor], network: nn.Module, own: dict[str, Tensor]) -> Candidate:
    """A set of tensors, without the prefix that all of its names share if they fit better so."""
    compiled = any(COMPILED in name for name in tensors)
    tensors = {name.replace(COMPILED, ""): tensor for name, tensor in tensors.items()}
    best, prefix = Candidate(entry, "", tensors, _differences(tensors, network, own)), ""
    while best.problems and tensors:
        first = {name.partition(".")[0] for name in tensors}
        if len(first) != 1 or any("." not in name for name in tensors):
            break
        prefix += f"{first.pop()}."
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
        stripped = Candidate(entry, prefix, tensors, _differences(tensors, network, own))
        if len(stripped.problems) < len(best.problems):
            best = stripped
    return replace(best, prefix=" and ".join([best.prefix] * bool(best.prefix) + [COMPILED] * compiled))


def _differences(tensors: Mapping[str, Tensor], network: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Why tensors are not the network's; [] if they are."""
    places: dict[tuple, set[str]] = {}
    for name, tensor in state.items():
        places.setdefault((tensor.data_ptr(), tuple(tensor.shape)), set()).add(name)
    tied = {name for names in places.values() if names & tensors.keys() for name in names}  # one tensor, several names
    differences = [
        f"it lacks {name}" for name in state if name not in tensors and name not in tied and not _counts(name)
    ]
    unknown = [name for name in tensors if name not in state and not _counts(name)]
    differences += [f"{name or 'a tensor without a name'} is none of the network's" for name in unknown]
    for name in (each for each in state if each in tensors):
        shapes, types = zip(*((tuple(each.shape), each.dtype) for each in (tensors[name], state[name])), strict=True)
        if shapes[0] != shapes[1]:
            differences.append(f"{name} is {shapes[0]}, not {shapes[1]}")
        elif types[0].is_floating_point != types[1].is_floating_point:
            given, wanted = (str(each).removeprefix("torch.") for each in types)
            differences.append(f"{name} is of type {given}, not {wanted}")
    if differences and _takes(network, tensors):
        return []
    return differences


def _takes(network: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the network itself accepts names that differ, as modules do that were written in an older way."""
    if not any(module._load_state_dict_pre_hooks for module in network.modules()):
        return False
    try:
        copy.deepcopy(network).load_state_dict(dict(tensors))
    except (RuntimeError, TypeError, ValueError):
        return False
    return True


def _counts(name: str) -> bool:
    return name.endswith(COUNTERS)
