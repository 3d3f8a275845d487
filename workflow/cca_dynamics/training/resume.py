"""Long work survives a kill: its state is saved beside the output, and the same call resumes from there.

While a job works on `out`, a hidden folder beside it, `.NAME.unfinished`, holds

- key.json: everything that determines the result; what was saved for another key is deleted;
- state.safetensors: how far the work has come, with checksums, replaced as a whole every few minutes;
- output: the result so far, a file or a folder; it takes the name `out` at the end.

A lock keeps a second process, such as the orphan of a killed workflow, from writing there at the same time.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from cca_dynamics.config.base import Model, as_json, registry_entries
from cca_dynamics.errors import DamagedFile, Interrupted
from cca_dynamics.runtime.fingerprints import code_fingerprint
from cca_dynamics.runtime.signals import stopping_first
from cca_dynamics.runtime.storage import read_tensors, replacing, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

MINUTES = 5.0
"""Minutes between two saves, where nothing else is asked for."""


class Unfinished:
    """Work on one output.

    Args:
        folder: the hidden folder.
        minutes: the most minutes between two saves.
        steps: the most steps between two saves; None: any number.

    Attributes:
        output: the result so far, a file or a folder.
        interrupted: whether the process is to stop after its current step.
    """

    def __init__(self, folder: Path, minutes: float = MINUTES, steps: int | None = None):
        self.folder, self.output, self.interrupted = folder, folder / "output", False
        self._minutes, self._steps = minutes, steps
        self._time_of_save, self._steps_since_save = time.monotonic(), 0

    def load(self) -> tuple[dict[str, Tensor], dict] | None:
        """Tensors and metadata of the last save; None: there is none, or it is damaged."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return None
        try:
            return read_tensors(path)
        except DamagedFile:
            return None

    def save(self, tensors: dict[str, Tensor], **metadata: object) -> None:
        """Replace the saved state."""
        with replacing(self.folder / "state.safetensors", durable=True) as temporary:
            write_tensors(temporary, tensors, **metadata)
        self._time_of_save, self._steps_since_save = time.monotonic(), 0

    def step(self, state: Callable[[], tuple[dict[str, Tensor], dict]]) -> None:
        """Count a finished step, and save the state if it is time to.

        Args:
            state: returns the tensors and the metadata to save.

        Raises:
            Interrupted: the process was interrupted; the state is saved.
        """
        self._steps_since_save += 1
        late = time.monotonic() - self._time_of_save > 60 * self._minutes
        if self.interrupted or late or (self._steps is not None and self._steps_since_save >= self._steps):
            tensors, metadata = state()
            self.save(tensors, **metadata)
        if self.interrupted:
            raise Interrupted

    def interrupt(self) -> None:
        """Let the work stop after its current step."""
        self.interrupted = True

    def restart(self) -> None:
        """Delete the saved state and the result so far."""
        (self.folder / "state.safetensors").unlink(missing_ok=True)
        _remove(self.output)


@contextmanager
def resuming(
    out: Path,
    key: dict,
    *,
    minutes: float = MINUTES,
    steps: int | None = None,
    report: Callable[[str], None] = print,
) -> Iterator[Unfinished]:
    """Work that survives a kill; its output takes the name `out` when the block ends without an exception.

    Args:
        out: the output, a file or a folder; the block writes to `Unfinished.output`.
        key: everything that determines the result, as JSON; see `key_of`.
        minutes, steps: between saves, see `Unfinished`.
        report: called with one line if another process is at work on the output.

    Raises:
        Interrupted: the process was interrupted (see `signals.interruptible`); the state is saved.
        OSError: the folder cannot be written.
    """
    out = Path(out)
    folder = out.with_name(f".{out.name}.unfinished")
    text = json.dumps(key, indent=2, sort_keys=True) + "\n"
    with _locked(out.with_name(f".{out.name}.lock"), report):
        work = Unfinished(folder, minutes, steps)
        key_file = folder / "key.json"
        if not key_file.exists() or key_file.read_text(encoding="utf-8", errors="replace") != text:
            _remove(folder)
            with replacing(key_file, durable=True) as temporary:
                temporary.write_text(text, encoding="utf-8")
        for leftover in folder.rglob(".*.tmp*"):
            leftover.unlink()
        with stopping_first(work.interrupt):
            yield work
        _remove(out)  # if it exists, the orphan of a killed workflow has made it meanwhile
        os.replace(work.output, out)
        _remove(folder)


def _remove(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def key_of(recipe: Sequence[Model], device: str, entry: str, **inputs: object) -> dict:
    """Everything that determines a result bit for bit: recipe, inputs, code, versions and threads.

    Args:
        recipe: what is computed; of registries only the entries that it names count.
        device: "cpu" or "cuda".
        entry: "module:name" of the code, see `fingerprints.code_fingerprint`.
        inputs: checksums of the inputs, and whatever else the result depends on.
    """
    import torch  # here, because commands that compute nothing start faster without it

    return {
        "recipe": as_json(recipe),
        "code": code_fingerprint(entry, selected=registry_entries(recipe)),
        "versions": {name: version(name) for name in ("torch", "numpy")},
        "machine": [platform.machine(), device, torch.get_num_threads()],
        **inputs,
    }


@contextmanager
def _locked(path: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock file; wait until no other process holds it. Where a file system knows no locks, nobody waits."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = False
    while True:
        file = open(path, "a+b")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            if not waiting:
                report(f"another process is at work on {path.with_suffix('').name[1:]}; waiting until it ends")
                waiting = True
            time.sleep(0.5)
            continue
        except OSError:
            break
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # the process that held it has removed it meanwhile
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
