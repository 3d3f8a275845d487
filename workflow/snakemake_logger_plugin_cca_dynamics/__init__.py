"""A quiet, readable display of a Snakemake run: `snakemake --logger cca-dynamics`.

On a terminal: a live line with a bar for each running job, read from the end of the job's log file, and one for the
whole run; finished jobs scroll away above. Elsewhere (pipe, file, CI): plain lines, when a job starts and when it ends.
A failed job is one block: the `error: ` line of its log first, then the end of the log. Nothing here may stop a run:
a record that cannot be shown is printed in Snakemake's own format.
"""

import logging
import os
import re
import shlex
import sys
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path

from cca_dynamics.runtime.streams import print_plainly
from rich.console import Console
from rich.live import Live
from rich.text import Text
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from .reading import (
    CHATTER,
    Job,
    clean,
    count_jobs,
    duration,
    explain,
    how_it_ended,
    last_lines,
    problem_of_configs,
    short_reasons,
)

REFRESH = 0.5  # seconds between two looks at the logs
REMIND = 30.0  # seconds between two progress lines of one job, where there is no terminal
TAIL_LINES = 15  # of a failed job's log


class LogHandler(LogHandlerBase):
    """Shows Snakemake's log records on stderr (of a dry run on stdout, as Snakemake does)."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = True  # Snakemake's own filter hides failed jobs under --quiet
    has_formatter = False
    needs_rulegraph = False

    def __post_init__(self) -> None:
        settings = self.common_settings
        self.dryrun, self.verbose = settings.dryrun, settings.verbose
        print_plainly()
        self.stream = sys.stdout if settings.stdout else sys.stderr
        capable = os.environ.get("TERM") not in (None, "dumb", "unknown") and "utf" in str(self.stream.encoding).lower()
        self.terminal = self.stream.isatty() and capable
        nocolor = settings.nocolor or None  # None: as NO_COLOR says
        self.console = Console(file=self.stream, force_terminal=self.terminal, no_color=nocolor, highlight=False)
        self.live: Live | None = None
        quiet = {choice.name for choice in settings.quiet or ()}
        self.silent = "ALL" in quiet and not self.dryrun
        self.show_progress, self.show_jobs = "PROGRESS" not in quiet, "RULES" not in quiet
        self.show_reasons = "REASON" not in quiet
        self.born = time.time()
        self.running: dict[int, Job] = {}
        self.failed: dict[int, Job] = {}
        self.endings: dict[int, str] = {}  # how a job's command ended, by the thread that says so
        self.reasons: defaultdict[str, Counter] = defaultdict(Counter)  # of a dry run, by rule
        self.stats: dict[str, int] = {}  # jobs by rule
        self.last_message = ""
        self.done = self.total = 0
        self.interrupted = self.broken = False
        self.closed = threading.Event()
        # Snakemake hands records to plugins later, from a queue in another thread: what an onsuccess handler prints
        # would meet a live display that has not stopped yet. So this handler listens at the source as well.
        logging.getLogger("snakemake.logging").addHandler(self)
        threading.Thread(target=self._beat, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        if not self.silent and not hasattr(record, "shown_by_cca_dynamics"):
            record.shown_by_cca_dynamics = True
            try:
                self._show(record)
                self._start_or_stop_live()
            except Exception:
                self._fall_back(record)

    def close(self) -> None:
        logging.getLogger("snakemake.logging").removeHandler(self)
        with self.lock:
            if not self.closed.is_set():
                self.closed.set()
                try:
                    self._stop_live()
                    self._summarise()
                except Exception:
                    self._fall_back()
        super().close()

    def _fall_back(self, record: logging.LogRecord | None = None) -> None:
        """After an error of the display: no live display any more, and this record as Snakemake formats it."""
        self.terminal = False
        with suppress(Exception):
            self._stop_live()
        with suppress(Exception):  # e.g. a closed pipe: the run matters more than its display
            if record and record.levelno >= logging.INFO:
                self._say(self.format(record))

    # What a record says.

    def _show(self, record: logging.LogRecord) -> None:
        match getattr(record, "event", None):
            case None:
                self._message(record)
            case LogEvent.RUN_INFO:
                self._plan(dict(record.stats))
            case LogEvent.JOB_INFO:
                self._job_starts(record)
            case LogEvent.SHELLCMD if self.common_settings.printshellcmds and self.show_jobs:
                if command := getattr(record, "shellcmd", None) or getattr(record, "cmd", None):
                    self._say(f"    {command.strip()}", "dim")
            case LogEvent.JOB_FINISHED:
                self._job_finishes(record.job_id)
            case LogEvent.PROGRESS:
                self.done, self.total = record.done, record.total
            case LogEvent.JOB_ERROR:
                self._job_fails(record)
            case LogEvent.GROUP_ERROR if record.aux_logs:
                self._say(f"logs of the failed group job: {', '.join(record.aux_logs)}", "red")
            case LogEvent.ERROR:
                self._error(record)
            case LogEvent.DEBUG_DAG if self.common_settings.debug_dag:
                self._say(self.format(record), "dim")

    def _message(self, record: logging.LogRecord) -> None:
        text = record.getMessage().strip("\n")
        again, self.last_message = text == self.last_message, text
        if text.startswith("Terminating processes on user request"):
            self.interrupted = True
        elif text.startswith("Removing output files of failed job"):
            self._say("  removed, since incomplete: " + text.partition("\n")[2], "dim")
        elif self.verbose or (record.levelno >= logging.INFO and not CHATTER.match(text) and not again):
            self._say(text, {"DEBUG": "dim", "INFO": "", "WARNING": "yellow"}.get(record.levelname, "red"))

    def _error(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if ending := how_it_ended(text):  # the job-error record of the same thread comes next and knows the job
            self.endings[record.thread] = ending
            return
        self.broken = True
        if not CHATTER.match(text):
            if job := re.search(r"Job (\d+) +completed successfully, but", text):  # no job-error record comes
                self._headline(self._leave(int(job[1]), failed=True), "failed", "bold red")
            what, where = explain(problem_of_configs(text, sys.argv) or text)
            self._say(f"error: {what}", "bold red")
            if where:
                self._say(f"  {where}", "dim")

    def _plan(self, stats: dict[str, int]) -> None:
        self.total, self.stats = stats.pop("total"), stats
        if self.show_progress and not self.dryrun:
            self._say(f"{count_jobs(self.total)}: " + ", ".join(f"{n} {rule}" for rule, n in stats.items()), "bold")

    def _job_starts(self, record: logging.LogRecord) -> None:
        job = Job.from_record(record)
        shows_command = self.common_settings.printshellcmds and record.shellcmd
        if self.dryrun:
            self.reasons[record.rule_name].update(short_reasons(record.reason))
            if shows_command and self.show_jobs:
                self._say(job.label)
            return
        self.running[record.jobid] = job
        if self.show_jobs and not job.is_target and (shows_command or job.owns_terminal or not self.terminal):
            self._say(f"▸ {job.label}" if self.terminal else self._stamp("start", job.label))

    def _leave(self, jobid: int, failed: bool) -> Job:
        """Take a job from the running ones."""
        job = self.running.pop(jobid, None) or Job(f"job {jobid}")
        self.failed.pop(jobid, None)
        if failed:
            self.failed[jobid] = job
        if self.live:  # what is printed next goes above it
            self.live.refresh()
        return job

    def _job_finishes(self, jobid: int) -> None:
        job = self._leave(jobid, failed=False)
        self.done += 1  # the progress record that follows knows better
        if self.show_jobs and not self.terminal:
            share = f"  {self.done}/{self.total}" if self.show_progress else ""
            self._say(self._stamp("done", f"{job.label} ({job.seconds:.0f} s){share}"))
        elif self.show_jobs and not job.is_target:
            label, bar = self._widths()
            self._say(Text.assemble(("✓ ", "green"), f"{job.label:{label}} {duration(job.seconds):>{bar}}"))

    def _headline(self, job: Job, word: str, style: str) -> None:
        plain = self._stamp(word, f"{job.label} ({job.seconds:.0f} s)")
        self._say(f"✗ {job.label} {word} after {duration(job.seconds)}" if self.terminal else plain, style)

    def _job_fails(self, record: logging.LogRecord) -> None:
        job = self._leave(record.jobid, failed=True)
        ending = self.endings.pop(record.thread, "")
        if self.interrupted or ending == "killed by SIGINT":
            self._headline(job, "stopped", "yellow")
            return
        self._headline(job, "failed", "bold red")
        path, lines = next(((p, lines) for p in record.log if (lines := last_lines(p, 65536))), ("", []))
        errors = [line for line in lines if line.startswith("error: ")]
        if errors:
            self._say(f"  {errors[-1]}", "bold red")
        remote = [f"{key} {clean(value)}" for key, value in record.aux.items()]
        details = [f"rule {record.rule_name}", ending, clean(record.rule_msg), *remote]
        if not lines and not (record.log and record.shellcmd):
            details.append("what it said is above")
        self._say("  " + " · ".join(filter(None, details)), "dim")
        if record.log:
            self._say(f"  log: {path}" if lines else f"  empty log: {', '.join(record.log)}", "dim")
        for line in [line for line in lines if line not in errors][-TAIL_LINES:]:
            self._say(f"  | {line}", "dim")
        if not lines and record.shellcmd:
            self._say(f"  command: {record.shellcmd.strip()}", "dim")

    def _summarise(self) -> None:
        """The last words: what a dry run would do, or what the run did and how to go on."""
        if self.silent or not self.total:
            return
        if self.dryrun:
            self._say(self._table())
            return
        labels = [job.label for job in self.failed.values()]
        counted = self.show_progress  # else Snakemake does not even say which jobs have finished
        succeeded = not (labels or self.interrupted or self.broken or (counted and self.done < self.total))
        if succeeded and not counted:
            return
        text = f"{count_jobs(self.total)} done in {duration(time.time() - self.born)}"
        if not succeeded:
            names = ", ".join(labels[:3]) + f" and {len(labels) - 3} more" * (len(labels) > 3)
            failed = f"{count_jobs(len(labels))} failed ({names})" if labels else "stopped"
            done = f", {self.done} of {text}" if counted else ""
            text = ("interrupted" if self.interrupted else failed) + done
        mark = "✓" if succeeded else "✗"
        self._say(
            f"{mark} {text}" if self.terminal else self._stamp("end", text), "bold green" if succeeded else "bold red"
        )
        if not succeeded:
            name = Path(sys.argv[0]).name
            command = shlex.join([name, *sys.argv[1:]]) if name == "snakemake" else "the same command"
            self._say(f"  finished jobs are kept; to continue: {command}")

    def _table(self) -> str:
        width = max(map(len, [*self.stats, "total"]))
        why = "  why" if self.reasons and self.show_reasons else ""
        lines = [""] * (self.common_settings.printshellcmds and self.show_jobs) + [f"{'rule':{width}}  jobs{why}"]
        for rule, number in self.stats.items():
            reasons = [reason if n == number else f"{reason} ({n})" for reason, n in self.reasons[rule].most_common()]
            lines.append(f"{rule:{width}}  {number:4d}" + (f"  {', '.join(reasons)}" if why else ""))
        lines.append(f"{'total':{width}}  {self.total:4d}")
        return "\n".join([*lines, "", "A dry run (-n): nothing was done. -p shows each job and its command."])

    # How it is said.

    def _say(self, text: str | Text, style: str = "") -> None:
        if self.terminal:
            self.console.print(text if isinstance(text, Text) else Text(text, style), soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)

    def _stamp(self, word: str, text: str) -> str:
        return f"[{time.strftime('%H:%M:%S')}] {word:<6} {text}"

    def _widths(self) -> tuple[int, int]:
        """Columns of a label and of a bar; at 80 columns the rest holds `41 s left · loss 0.831 · train 0.712`."""
        return min(40, self.console.width * 7 // 20), max(10, min(24, self.console.width // 4 - 10))

    def _beat(self) -> None:
        while not self.closed.wait(REFRESH):
            try:
                with self.lock:
                    if self.live:
                        self.live.refresh()
                    elif not self.terminal and self.show_progress and self.show_jobs:
                        self._remind()
            except Exception:
                self._fall_back()

    def _remind(self) -> None:
        """A line of each job that has been silent for long."""
        for job in self.running.values():
            if time.time() - job.reminded >= REMIND:
                job.reminded = time.time()
                _, left, text = job.progress()
                said = " · ".join(filter(None, (text, left))) or duration(job.seconds)
                self._say(self._stamp("runs", f"{job.label}: {said}"))

    def _start_or_stop_live(self) -> None:
        """A live display while jobs run and leave the terminal alone."""
        running = [job for job in self.running.values() if not job.is_target]
        wanted = self.terminal and self.show_progress and running and not any(job.owns_terminal for job in running)
        if wanted and not self.live:
            self.live = Live(
                get_renderable=self._render,
                console=self.console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),
            )
            self.live.start(refresh=True)
            self.console.show_cursor(True)  # so that no way to die leaves a terminal without one
        elif self.live and not wanted:
            self._stop_live()

    def _stop_live(self) -> None:
        live, self.live = self.live, None
        if live:
            live.stop()

    def _render(self) -> Text:
        """One line for each running job that fits on the screen, then one for the whole run."""
        shown = [job for job in list(self.running.values()) if self.show_jobs and not job.is_target]
        room = max(1, self.console.height - 4)
        rows = []
        for job in shown[:room]:
            share, left, text = job.progress()
            rows.append(self._row(job.label, share, "cyan", left or duration(job.seconds), text))
        if len(shown) > room:
            rows.append(Text(f"  and {len(shown) - room} more", "dim"))
        share, took = self.done / max(1, self.total), duration(time.time() - self.born)
        rows.append(self._row(f"{self.done} of {count_jobs(self.total)}", share, "green", took, ""))
        return Text("\n").join(rows)

    def _row(self, label: str, share: float, color: str, when: str, text: str) -> Text:
        width, bar = self._widths()
        if len(label) > width:  # names differ at their ends
            label = f"{label[: width // 2]}…{label[-(width - width // 2 - 1) :]}"
        full, half = divmod(round(2 * bar * share), 2)
        filled, rest = "━" * full + "╸" * half, "─" * (bar - full - half)
        said = f" · {text}" if text else ""
        row = Text.assemble(f"  {label:{width}} ", (filled, color), (rest, "dim"), f" {when}", (said, "dim"))
        row.truncate(self.console.width, overflow="ellipsis")
        return row
