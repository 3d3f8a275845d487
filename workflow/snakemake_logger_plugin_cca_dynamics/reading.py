"""What Snakemake's records and the jobs' log files say, in few words."""

import logging
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PROGRESS = re.compile(r"\w+ (\d+)/(\d+) · (.+)")  # e.g. epoch 12/30 · loss 0.831 · train 0.712 · 3041 s left
LEFT = re.compile(r"(\d+) s left")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x1f\x7f-\x9f]")
ERROR_HEAD = re.compile(r'(\w+)(?: in rule (\S+?))?(?: in file "(.+)", line (\d+))?[:.]')
TRACEBACK_LINE = re.compile(r'Traceback:|\s+File ".*", line \d+, in ')
COMMAND_FAILED = re.compile(r"RuleException:\nCalledProcessError.*(exit status \d+|<Signals\.(\w+))", re.DOTALL)

# What Snakemake says of every run, or the display says better. All else is shown.
CHATTER = re.compile(
    "Assuming unrestricted shared filesystem|Building DAG of jobs|Complete log|Conda environments: ignored"
    "|Config file .* is extended by"
    "|DAG of jobs will be|Elapsed time:|Exiting because a job execution failed|Group jobs: inactive|Reasons:"
    "|Removing temporary output|Rules with provenance triggered jobs|Select jobs to execute|Shutting down"
    "|Singularity containers: ignored|Some jobs were triggered by provenance|This was a dry-run|Touching output"
    "|Updating checkpoint dependencies|Using shell:|Would remove temporary output"
    "|WorkflowError:\nAt least one job did not complete successfully"
)
# Snakemake's reasons to run a job, short enough for a table.
REASONS = {
    "Forced execution": "forced",
    "are always executed": "always runs",
    "Missing output files": "output missing",
    "Incomplete output files": "output incomplete",
    "Updated input files": "input changed",
    "Set of input files has changed": "other input files",
    "Code has changed": "rule changed",
    "Params have changed": "parameters or code changed",
    "Software environment definition has changed": "environment changed",
}


def clean(text: object) -> str:
    """One line without colours, control characters and runs of blanks; empty for None."""
    return " ".join(CONTROL.sub(" ", str(text or "")).split())


def duration(seconds: float) -> str:
    """`12 s`, `1 min 12 s`, `2 h 05 min`."""
    s = round(seconds)
    if s < 60:
        return f"{s} s" if s else "<1 s"
    return f"{s // 60} min {s % 60} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"


def count_jobs(number: int) -> str:
    return f"{number} job" if number == 1 else f"{number} jobs"


def last_lines(path: str, size: int) -> list[str]:
    """The lines in the last `size` bytes of a log, without blank ones; none if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            lines = re.split(r"[\r\n]+", file.read().decode(errors="replace"))
    except OSError:
        return []
    return [line.rstrip() for line in (CONTROL.sub(" ", line) for line in lines) if line.strip()]


def short_reasons(reason: str) -> list[str]:
    """Snakemake's reasons to run a job, shortened; of all others, being downstream of a job of this run comes last."""
    return [short for phrase, short in REASONS.items() if phrase in reason] or ["follows from the above"]


def how_it_ended(message: str) -> str:
    """`exit status 3` or `killed by SIGTERM` if the message is Snakemake's of a failed command, else empty."""
    match = COMMAND_FAILED.match(message)
    if not match or not match[2]:
        return match[1] if match else ""
    return f"killed by {match[2]}" + ", perhaps for want of memory" * (match[2] == "SIGKILL")


def explain(message: str) -> tuple[str, str]:
    """Snakemake's text of an exception as (what happened, where), without traceback.

    A WorkflowError is written for the user: it needs neither its type nor its place.
    """
    lines = [line for line in message.splitlines() if line.strip() and not TRACEBACK_LINE.match(line)]
    head = ERROR_HEAD.fullmatch(lines[0]) if lines else None
    if not head:
        return "\n".join(lines), ""
    kind, rule, file, number = head.groups()
    what = "\n".join(lines[1:])
    if kind == "WorkflowError" and not rule:
        return what, ""
    where = ", ".join([f"rule {rule}"] * bool(rule) + [f"{file}, line {number}"] * bool(file))
    return what if kind == "RuleException" else f"{kind}: {what}", where


def problem_of_configs(message: str, arguments: list[str]) -> str:
    """What is wrong with a config file or key of the command line, if that is what Snakemake's message is about.

    Snakemake reads them before the workflow, and names neither the file nor the line, often in a traceback.
    """
    if "Invalid config definition" in message:
        return "--config takes KEY=VALUE; correct it"
    if "load_configfile" not in message and not re.match("(WorkflowError:\n)?Config file", message):
        return ""
    from cca_dynamics.config import files
    from cca_dynamics.errors import UserError

    for path in map(Path, _values(arguments, ("--configfile", "--configfiles"))):
        try:
            files.read(path)
        except UserError as problem:
            return str(problem)
    return ""


def _values(arguments: list[str], options: tuple[str, ...]) -> list[str]:
    """What follows some options on a command line, up to the next option."""
    values, among = [], False
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in options:
            among, argument = True, value
        elif argument.startswith("-"):
            among = False
        if among and argument:
            values.append(argument)
    return values


@dataclass
class Job:
    """A running job."""

    label: str  # the rule's message, else its name and wildcards
    log: str = ""  # path of the first log file
    is_target: bool = False  # like rule all: nothing to run
    owns_terminal: bool = False  # may write to the terminal itself, which a live display would garble
    started: float = field(default_factory=time.time)
    reminded: float = field(default_factory=time.time)

    @classmethod
    def from_record(cls, record: logging.LogRecord) -> "Job":
        """Of a job-info record."""
        label = clean(record.rule_msg) or " ".join([record.rule_name, *map(str, record.wildcards.values())])
        is_target = not (record.output or record.log or record.shellcmd)
        owns_terminal = not is_target and not (record.log and record.shellcmd)
        return cls(label, next(iter(record.log), ""), is_target, owns_terminal)

    @property
    def seconds(self) -> float:
        return time.time() - self.started

    def progress(self) -> tuple[float, str, str]:
        """(share done, time left, the rest of the last progress line), as far as the log tells."""
        with suppress(OSError):
            if os.stat(self.log).st_mtime > self.started - 1:  # else it is an earlier run's
                lines = last_lines(self.log, 4096)
                for found in filter(None, map(PROGRESS.fullmatch, reversed(lines))):
                    done, total, parts = int(found[1]), int(found[2]), found[3].split(" · ")
                    left = parts.pop() if parts[-1].endswith(" left") else ""
                    left = LEFT.sub(lambda seconds: f"{duration(int(seconds[1]))} left", left)
                    return min(1.0, done / max(1, total)), left, " · ".join(parts)
                return 0.0, "", lines[-1].strip() if lines else ""
        return 0.0, "", ""
