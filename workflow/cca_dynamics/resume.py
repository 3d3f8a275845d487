"""Long work survives a kill: what is done so far is kept beside the output, and the same call goes on from there.

While a job works on `out`, a hidden folder beside it, `.NAME.unfinished`, holds

- key.json: all that determines the result; what is kept for another key is thrown away;
- state.safetensors: where the work stands, with checksums, replaced as a whole every few minutes;
- output: the result, a file or a folder with the files so far; it takes the name `out` at the end.

A lock keeps a second process, such as the orphan of a killed workflow, from writing there at the same time.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from cca_dynamics.files import DamagedFile, read_tensors, replacing, write_tensors
from cca_dynamics.provenance import code_fingerprint

if TYPE_CHECKING:
    from torch import Tensor

INTERRUPTED = 75
"""Exit status of a job that was told to stop and kept what it had; EX_TEMPFAIL, "try again", of sysexits.h."""

MINUTES = 5.0


class Interrupted(Exception):
    """The process was told to stop (SIGTERM, SIGINT)."""


class Unfinished:
    """The state of work on one output.

    Args:
        folder: the hidden folder.
        minutes: at most so long between two saves ...
        steps: ... and at most so many steps; None: any number.

    Attributes:
        output: the result, a file or a folder.
        stopping: whether the process was told to stop.
    """

    def __init__(self, folder: Path, minutes: float = MINUTES, steps: int | None = None):
        self.folder, self.output, self.stopping = folder, folder / "output", False
        self._minutes, self._steps = minutes, steps
        self._saved, self._since = time.monotonic(), 0

    def load(self) -> tuple[dict[str, Tensor], dict] | None:
        """Tensors and facts of the last save; None: there is none, or it is damaged."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return None
        try:
            return read_tensors(path)
        except DamagedFile:
            return None

    def save(self, tensors: dict[str, Tensor], **facts: object) -> None:
        """Replace the state."""
        with replacing(self.folder / "state.safetensors", durable=True) as temporary:
            write_tensors(temporary, tensors, **facts)
        self._saved, self._since = time.monotonic(), 0

    def step(self, state: Callable[[], tuple[dict[str, Tensor], dict]]) -> None:
        """Tell that a step is done; the state is saved if it is time to.

        Args:
            state: returns the tensors and the facts to save.

        Raises:
            Interrupted: the process was told to stop; the state is saved.
        """
        self._since += 1
        late = time.monotonic() - self._saved > 60 * self._minutes
        if self.stopping or late or (self._steps is not None and self._since >= self._steps):
            tensors, facts = state()
            self.save(tensors, **facts)
        if self.stopping:
            raise Interrupted

    def restart(self) -> None:
        """Forget what is kept."""
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
    """Work that a kill does not lose; its output takes the name `out` when the block ends without an exception.

    Args:
        out: the output, a file or a folder, that the block writes to `output`.
        key: all that determines the result, as JSON; see `key_of`.
        minutes, steps: between saves, see `Unfinished`.
        report: called with one line if there is something to wait for or to go on from.

    Raises:
        Interrupted: the process was told to stop (see `told_to_stop`), after a save.
        OSError: the folder cannot be written.
    """
    out = Path(out)
    folder = out.with_name(f".{out.name}.unfinished")
    text = json.dumps(key, indent=2, sort_keys=True) + "\n"
    with _alone(out.with_name(f".{out.name}.lock"), report):
        work = Unfinished(folder, minutes, steps)
        kept = folder / "key.json"
        if not kept.exists() or kept.read_text(encoding="utf-8", errors="replace") != text:
            _remove(folder)
            with replacing(kept, durable=True) as temporary:
                temporary.write_text(text, encoding="utf-8")
        for leftover in folder.rglob(".*.tmp*"):
            leftover.unlink()
        _AT_WORK.append(work)
        try:
            yield work
        finally:
            _AT_WORK.remove(work)
        _remove(out)  # if there, the orphan of a killed workflow has made it meanwhile
        os.replace(work.output, out)
        _remove(folder)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def key_of(recipe: dict, device: str, *entries: str, **facts: object) -> dict:
    """All that determines a result bit for bit: recipe, code, versions and threads.

    Args:
        recipe: what is computed.
        device: "cpu" or "cuda".
        entries: "module:name" of the code, see `provenance.code_fingerprint`.
        facts: more of it, such as checksums of the inputs.
    """
    import torch

    return {
        "recipe": recipe,
        "code": code_fingerprint(*entries),
        "versions": {name: version(name) for name in ("torch", "numpy")},
        "machine": [platform.machine(), device, torch.get_num_threads()],
        **facts,
    }


_AT_WORK: list[Unfinished] = []
"""What is to be saved before the process stops."""


@contextmanager
def told_to_stop() -> Iterator[None]:
    """While it lasts, SIGTERM and SIGINT raise `Interrupted`, at once or after the next step of what is in work.

    A second signal does what it did before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        restore()
        for work in _AT_WORK:
            work.stopping = True
        if not _AT_WORK:
            raise Interrupted

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    try:
        yield
    finally:
        restore()


@contextmanager
def _alone(path: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process holds the lock file. Where a file system knows no locks, nobody waits."""
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
        file.close()  # who held it has removed it
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
