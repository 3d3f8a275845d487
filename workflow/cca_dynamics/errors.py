"""Errors that the user can mend.

The command line prints each as one line; any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something is wrong with an input: one line that names the file or key and says what to do."""


class ConfigError(UserError):
    """The config cannot be run: one line that names the key and the remedy."""

    def __init__(self, key: str, problem: str):
        super().__init__(f"config key {key}: {problem}")
        self.key = key


class DamagedFile(UserError):
    """A stored file cannot be read: one line that names it and the remedy.

    Args:
        path: the file.
        problem: why it cannot be read.
        remedy: what to do about it; default: to delete it, or the folder of `PART` that it lies in, and to remake that.

    Attributes:
        path: the file.
        reason: why it cannot be read, in one line.
    """

    def __init__(self, path: Path, problem: object, remedy: str = ""):
        self.path = path
        self.reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        part = PART.fullmatch(path.as_posix())
        remedy = remedy or f"delete {part[1] if part else 'it'} and run snakemake again to remake it"
        super().__init__(f"{path} is missing or damaged ({self.reason}); {remedy}")


PART = re.compile(r"((?:.*/)?results/.+/(?:networks|activations)/[^/]+/\d+-\d+)(?:/[^/]+){1,2}")
"""Path of a file in the networks or activations of a part of a cohort; the part is one output of the workflow, so that
Snakemake remakes the folder, not a file in it."""


@contextmanager
def named_by_the_user() -> Iterator[None]:
    """Read files that the user has named, which may be anybody's: a damaged one is not to be deleted.

    Raises:
        DamagedFile: the code inside raised it; its remedy is to check the path, or to copy the file again.
    """
    try:
        yield
    except DamagedFile as damaged:
        raise DamagedFile(damaged.path, damaged.reason, "check the path, or copy it again") from None


class Interrupted(BaseException):
    """The process was interrupted (SIGTERM, SIGINT). Not an `Exception`, so that code which survives errors stops."""


def check_suffix(out: Path, *suffixes: str) -> None:
    """Refuse a file to be written whose suffix names no format that can be written, or that is a folder.

    Args:
        out: the file.
        suffixes: of the formats, e.g. ".csv".

    Raises:
        UserError: it has none of them, or there is a folder of this name.
    """
    if out.suffix not in suffixes:
        one, two, more = f"not {suffixes[0]}", f"neither {' nor '.join(suffixes)}", f"none of {', '.join(suffixes)}"
        raise UserError(f"{out}: its suffix is {[one, two, more][min(len(suffixes), 3) - 1]}; choose another name")
    if out.is_dir():
        raise UserError(f"{out}: it is a folder; choose another name")


def check_not_an_input(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse a file or folder to be written that is one of those to be read, perhaps under another name.

    Args:
        out: what is to be written.
        inputs: what is to be read.

    Raises:
        UserError: it is one of them.
    """
    for path in inputs:
        if out.exists() and path.exists() and out.samefile(path):
            raise UserError(f"{out} is an input, which the output of that name would replace; choose another name")


REMEDIES = {
    errno.ENOSPC: "free disk space and run again",
    errno.EDQUOT: "free disk space and run again",
    errno.EACCES: "change its permissions or choose another place",
    errno.EPERM: "change its permissions or choose another place",
    errno.EROFS: "choose another place",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EEXIST: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "check the path",
    errno.EIO: "check the disk",
}
"""What a user can do about a failure of the operating system."""


@contextmanager
def operating_system_errors() -> Iterator[None]:
    """Turn failures of the operating system that a user can mend, such as a full disk, into a `UserError`."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in REMEDIES:
            raise
        raise UserError(f"{problem}; {REMEDIES[problem.errno]}") from problem


@contextmanager
def as_user_error(problem: str, remedy: str, *, quote: bool = True, locate: bool = False) -> Iterator[None]:
    """Run code of others; whatever it raises becomes a `UserError`.

    Args:
        problem: what has failed then, beginning with the name of the thing.
        remedy: what to do about it.
        quote: whether to quote what was raised; some libraries give advice that is not safe.
        locate: whether to name the line of the user's own file where it was raised.

    Raises:
        UserError: the code inside raised something, other than `Interrupted`.
    """
    try:
        yield
    except (Exception, SystemExit) as cause:
        first_line = next(iter(str(cause).strip().splitlines()), "")
        location = _line_of_the_user(cause) if locate else ""
        quoted = f" ({location}{type(cause).__name__}{': ' if first_line else ''}{first_line})" if quote else ""
        raise UserError(f"{problem}{quoted}; {remedy}") from None


def _line_of_the_user(cause: BaseException) -> str:
    """The last line in a file of the user's that led to an exception, e.g. "net.py line 3: "; "" if there is none."""
    folder, package = Path.cwd(), Path(__file__).parent
    for frame in reversed(traceback.extract_tb(cause.__traceback__)):
        file = Path(frame.filename)
        installed = file.is_relative_to(package) or "site-packages" in file.parts
        if file.is_relative_to(folder) and not installed:
            return f"{file.relative_to(folder)} line {frame.lineno}: "
    return ""
