"""The protocol of a study: the choices it rests on, the seeds they were made on, and the seeds that were used before.

A verdict is a test only on a seed that nobody had looked at when the choices were made. A protocol is a YAML file that
says so, and whose checksum stands in the crate of every run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from cca_dynamics.config.base import Model, Seed, Text, as_argument, validate
from cca_dynamics.config.models import StudyConfig
from cca_dynamics.errors import ConfigError, UserError
from cca_dynamics.runtime.fingerprints import PACKAGE
from cca_dynamics.runtime.storage import replacing

KEY = "protocol"
NOT_CHOICES = {
    "study",
    "seed",
    "seeds",
    "protocol",
    "device",
    "jobs_per_gpu",
    "networks_per_job",
    "save_minutes",
    "save_steps",
    "keep_activations",
    "targets",
    "multiverse",
}
"""Keys of the config that say which runs are made, and where, and change no verdict on a seed."""

Day = Annotated[date, Field(strict=True)]
Sentence = Annotated[Text, Field(min_length=1)]


class Choice(Model):
    """Something that the paper leaves open, or that a study does otherwise."""

    choice: Sentence = Field(description="What was chosen, in words.")
    reason: Sentence = Field(description="Why.")


class ProtocolFile(Model):
    """What a protocol file holds."""

    date: Day = Field(description="The day from which the choices stand.")
    config: Text = Field(pattern=r"^[0-9a-f]{16}$", description="Checksum of the config, see `config_checksum`.")
    chosen_on: tuple[Seed, ...] = Field(description="The seeds on which the choices were made.")
    used_seeds: dict[Seed, Day] = Field(description="Other seeds that were looked at, and the day of their first use.")
    choices: tuple[Choice, ...] = Field(min_length=1, description="The choices, with their reasons.")


@dataclass(frozen=True)
class Protocol:
    """A protocol file that has been read.

    Attributes:
        path: as the config names it.
        sha256: checksum of the file.
        content: what it holds.
    """

    path: str
    sha256: str
    content: ProtocolFile

    @property
    def used(self) -> set[int]:
        """The seeds that were used up when the choices were made: a verdict on them is no test of the protocol."""
        before = {seed for seed, first in self.content.used_seeds.items() if first <= self.content.date}
        return before | {*self.content.chosen_on}

    def standing(self, seeds: Sequence[int]) -> str:
        """Whether the protocol is older than the first use of some seeds of one run, as a sentence.

        A seed that the file does not list was first used after it was written.
        """
        name = f"protocol of {self.content.date} (sha256 {self.sha256[:8]})"
        if chosen := [seed for seed in seeds if seed in self.content.chosen_on]:
            return f"{_seeds(chosen)} used while the {name} was being chosen: {_exploratory(chosen)}."
        if used := [seed for seed in seeds if seed in self.used]:
            days = sorted({self.content.used_seeds[seed].isoformat() for seed in used})
            first = f"first used on {' and '.join(days)}, before the {name} was settled"
            return f"{_seeds(used)} {first}: {_exploratory(used)}."
        plain = f"seed {seeds[0]}" if len(seeds) == 1 else f"the seeds {', '.join(map(str, seeds))}"
        return f"The {name} is older than the first use of {plain}."

    def fits(self, config: StudyConfig) -> bool:
        """Whether the config still makes the choices that the protocol gives reasons for."""
        return self.content.config == config_checksum(config)

    def lines(self, config: StudyConfig, seeds: Sequence[int]) -> list[str]:
        """What a run under some seeds says of its protocol, a sentence each."""
        if self.fits(config):
            return [self.standing(seeds)]
        remedy = "name one of its own in the config key protocol, or say protocol: null"
        return [f"The config differs from its protocol, {self.path}, which speaks for other choices alone; {remedy}."]


def config_checksum(config: StudyConfig) -> str:
    """Checksum of the choices in a config: of all keys but `NOT_CHOICES`, and but where files lie.

    Returns:
        16 hexadecimal digits.
    """
    content = {key: value for key, value in config if key not in NOT_CHOICES}
    content["dataset"] = config.dataset.read_by("dataset")
    return hashlib.sha256(as_argument(content).encode()).hexdigest()[:16]


def read(path: str) -> Protocol:
    """Read a protocol file.

    Args:
        path: as the config names it: from the working directory on, or else from that of the package.

    Raises:
        ConfigError: the file is missing or is no protocol; one line with the remedy.
    """
    try:
        file = _file(path)
        stamp = file.stat()
    except (OSError, ValueError) as problem:
        raise _unreadable(path, getattr(problem, "strerror", problem)) from None
    return _read(path, file, stamp.st_mtime_ns, stamp.st_size)


def renew(path: str, config: StudyConfig) -> bool:
    """Write the checksum of a config into a protocol file, whose other lines stay as they are.

    Returns:
        Whether it was another one.

    Raises:
        ConfigError: the file is missing or is no protocol.
        UserError: its line with the checksum is not of the form `config: 0123456789abcdef`.
    """
    if read(path).fits(config):
        return False
    file = _file(path)
    text, count = re.subn(
        r"^config:[ '\"]+[0-9a-f]{16}['\"]?",
        f'config: "{config_checksum(config)}"',
        file.read_text("utf-8"),
        flags=re.M,
    )
    if count != 1:
        raise UserError(f'{file} has no line of its own for config; write it as config: "{config_checksum(config)}"')
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return True


def _file(path: str) -> Path:
    """Where a protocol is."""
    return Path(path) if Path(path).exists() else PACKAGE / path


@cache
def _read(path: str, file: Path, *_stamp: int) -> Protocol:
    """A protocol file; read once while its time and size do not change, since many studies may name it."""
    try:
        data = file.read_bytes()
        content: Any = yaml.safe_load(data.decode("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise _unreadable(path, problem) from None
    if not isinstance(content, dict):
        raise _unreadable(path, "it holds no keys")
    try:
        parsed = validate(ProtocolFile, content)
    except ConfigError as problem:
        raise ConfigError(KEY, f"{path}, {str(problem).removeprefix('config ')}") from None
    return Protocol(path, hashlib.sha256(data).hexdigest(), parsed)


def _unreadable(path: str, problem: object) -> ConfigError:
    name, reason = path if path.isprintable() else repr(path), " ".join(str(problem).split())
    return ConfigError(KEY, f"{name} cannot be read ({reason}); correct the path or the file, or give null for none")


def _exploratory(seeds: Sequence[int]) -> str:
    return f"read {'its' if len(seeds) == 1 else 'their'} verdicts as exploratory"


def _seeds(seeds: Sequence[int]) -> str:
    """The subject of a sentence, e.g. "Seed 0 was" or "The seeds 0, 1 were"."""
    return f"Seed {seeds[0]} was" if len(seeds) == 1 else f"The seeds {', '.join(map(str, seeds))} were"
