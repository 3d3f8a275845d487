"""The display of a run, `--logger cca-dynamics`: a toy workflow piped and on a terminal, and when things go wrong."""

import io
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import snakemake_logger_plugin_cca_dynamics as plugin
from rich.console import Console
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.tests import MockOutputSettings, TestLogHandlerBase
from snakemake_logger_plugin_cca_dynamics.reading import Job, clean, duration, explain, how_it_ended, short_reasons

from tests.builders import BIN, snakemake

LOGGER = ("--cores", "2", "--logger", "cca-dynamics", "--config")  # a logger's name must not be followed by a target
TOY = r"""
NAMES = ["generalizing", "memorizing"]
print("said while the Snakefile is read", flush=True)
if "sede" in config:
    raise WorkflowError("config key sede: unknown key; did you mean seed?")
onsuccess:
    print("| claim | verdict |", flush=True)
    shell("echo '| width.1 | reproduced |'")
rule all:
    input: expand("plots/{name}", name=NAMES)
rule sources:
    input: "Snakefile"
rule train:
    output: "networks/{name}"
    log: "logs/{name}.log"
    message: "train {wildcards.name} 0-4"
    params: fails=lambda w: int(w.name == config.get("fail")), pause=config.get("pause", 0.1)
    shell:
        '''(for e in 1 2 3 4; do echo "epoch $e/4 · loss 0.7$e · $((4 - e)) s left"; sleep {params.pause}; done
        touch {output}; printf '\\n\\033[31mred\\033[0m\\n'
        if [ {params.fails} = 1 ]; then echo 'error: the loss diverged at epoch 2'; exit 3; fi) &> {log}'''
rule plot:
    input: "networks/{name}"
    output: "plots/{name}"
    log: "logs/plot-{name}.log"
    shell: "cp {input} {output} &> {log}"
"""
STAMP = r"\[\d\d:\d\d:\d\d\] "
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def toy(tmp_path):
    (tmp_path / "Snakefile").write_text(TOY)
    return tmp_path


@pytest.fixture(scope="module")
def piped(tmp_path_factory):
    """A run that succeeds and one in which a job fails, side by side, stdout and stderr piped."""
    commands = {"succeeds": (*LOGGER, "pause=0.05"), "fails": (*LOGGER, "fail=memorizing", "--keep-going")}
    folders = {name: tmp_path_factory.mktemp(name) for name in commands}
    for folder in folders.values():
        (folder / "Snakefile").write_text(TOY)
    with ThreadPoolExecutor(2) as pool:
        started = {n: pool.submit(snakemake, folders[n], *commands[n], FORCE_COLOR="1") for n in commands}
        return {name: run.result() for name, run in started.items()}


@pytest.fixture
def handler():
    """Makes handlers as Snakemake does, and closes them."""
    made = []

    def make(**settings):
        common = MockOutputSettings()
        vars(common).update(printshellcmds=False, **settings)
        made.append(plugin.LogHandler(common, None))
        made[-1].setFormatter(logging.Formatter("as Snakemake says it: %(message)s"))
        return made[-1]

    yield make
    for one in made:
        one.total = 0  # no last words
        one.close()


def record(event=None, message="", level=logging.INFO, **fields) -> logging.LogRecord:
    made = logging.LogRecord("snakemake.logging", level, "", 0, message, (), None)
    vars(made).update(fields, **({"event": event} if event else {}))
    return made


def job_info(jobid=1, **fields) -> logging.LogRecord:
    named = dict(
        rule_name="train", rule_msg="train a", output=["o"], log=["l"], shellcmd="true", wildcards={}, reason=""
    )
    return record(LogEvent.JOB_INFO, jobid=jobid, **(named | fields))


class Terminal:
    """`snakemake` on a pseudo-terminal of 80 columns; `shown` is all it has written there."""

    def __init__(self, folder, *arguments: str):
        import fcntl
        import termios

        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        variables = {**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            variables.pop(name, None)
        self.process = subprocess.Popen(
            [BIN / "snakemake", *arguments],
            cwd=folder,
            env=variables,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=lambda: (
                os.setsid(),
                fcntl.ioctl(0, termios.TIOCSCTTY, 0),
                signal.signal(signal.SIGINT, signal.SIG_DFL),  # which whoever runs the tests may ignore
            ),
        )
        os.close(slave)
        self.shown = ""

    def read(self, until: str | None = None) -> None:
        """Read until a text is shown; without one, until the process has ended."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (until is None or until not in self.shown):
            try:
                data = os.read(self.master, 65536)
            except OSError:  # the other end is closed
                data = b""
            if not data:
                break
            self.shown += data.decode(errors="replace")
        if until is None:
            self.process.wait(30)

    def press_ctrl_c(self) -> None:
        os.write(self.master, b"\x03")


def test_plain_lines_where_there_is_no_terminal(piped):
    run = piped["succeeds"]
    assert run.returncode == 0, run.stderr
    # Stdout is what the Snakefile prints, and nothing else.
    said = "said while the Snakefile is read\n| claim | verdict |\n| width.1 | reproduced |\n"
    assert run.stdout == said
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", run.stderr)
    lines = run.stderr.splitlines()
    assert lines[0] == "5 jobs: 2 train, 2 plot, 1 all"
    assert sorted(re.sub(STAMP, "", line) for line in lines if "start" in line) == [
        "start  plot generalizing",
        "start  plot memorizing",
        "start  train generalizing 0-4",
        "start  train memorizing 0-4",
    ]
    done = [line for line in lines if re.match(STAMP + "done ", line)]
    assert [line.split()[-1] for line in done] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    assert all(re.fullmatch(STAMP + r"done   .+ \(\d+ s\)  \d/5", line) for line in done)
    assert re.fullmatch(STAMP + r"end    5 jobs done in (\d+|<1) s", lines[-1])
    assert len(lines) == 1 + 4 + 5 + 1


def test_a_failed_job_is_one_block_that_begins_with_its_error(piped):
    run = piped["fails"]
    assert run.returncode == 1
    block = run.stderr[re.search(STAMP + "failed train memorizing", run.stderr).start() :].splitlines()
    assert block[1:9] == [
        "  error: the loss diverged at epoch 2",
        "  rule train · exit status 3",
        "  log: logs/memorizing.log",
        "  | epoch 1/4 · loss 0.71 · 3 s left",
        "  | epoch 2/4 · loss 0.72 · 2 s left",
        "  | epoch 3/4 · loss 0.73 · 1 s left",
        "  | epoch 4/4 · loss 0.74 · 0 s left",
        "  |  red",  # no blank lines, no colours
    ]
    assert run.stderr.count("the loss diverged") == 1 and "CalledProcessError" not in run.stderr
    assert "  removed, since incomplete: networks/memorizing\n" in run.stderr
    ended = r"end    1 job failed \(train memorizing 0-4\), 2 of 5 jobs done in (\d+|<1) s"
    assert re.fullmatch(STAMP + ended, block[-2])
    assert block[-1].startswith("  finished jobs are kept; to continue: snakemake --cores 2 --logger cca-dynamics")


def test_what_other_commands_print_is_untouched(toy):
    """With the logger in the profile, as in this repository."""
    (toy / "profiles/default").mkdir(parents=True)
    (toy / "profiles/default/config.yaml").write_text("cores: 2\nlogger: cca-dynamics\n")
    commands = (["--dry-run", "-p"], ["--summary"], ["sources"], ["--config", "sede=1"])
    with ThreadPoolExecutor(2) as pool:
        dry, summary, nothing, refused = pool.map(lambda options: snakemake(toy, *options), commands)
    assert "\nplot memorizing\n    cp networks/memorizing plots/memorizing" in dry.stdout
    assert dry.stdout.splitlines()[-7:-2] == [
        "rule   jobs  why",
        "train     2  output missing",
        "plot      2  output missing",
        "all       1  follows from the above",
        "total     5",
    ]
    assert "nothing was done" in dry.stdout and not (toy / "networks").exists()
    assert summary.stdout.splitlines()[1].startswith("output_file\t") and summary.stdout.count("\t") == 5 * 5
    assert "Nothing to be done (all requested files are present and up to date).\n" in nothing.stderr
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[1:] == ["error: config key sede: unknown key; did you mean seed?"]


def test_live_display_on_a_terminal(toy):
    terminal = Terminal(toy, *LOGGER, "pause=0.3")
    terminal.read()
    assert terminal.process.returncode == 0, terminal.shown
    live, _, ending = terminal.shown.partition("| claim")
    shown = ANSI.sub("", live)
    assert re.search(r"  train memorizing 0-4 +━+╸?─* \d s left · loss 0\.7\d *\r?\n", shown)
    assert re.search(r"  0 of 5 jobs +─{10} \d s", shown)
    assert re.search(r"✓ train memorizing 0-4 +[1-9] s", shown)
    assert re.search(r"✓ plot memorizing +<?1 s", shown)
    # The display has ended, and the cursor is there, before onsuccess prints.
    assert ending.startswith(" | verdict |\r\n| width.1 | reproduced |\r\n")
    assert ANSI.sub("", ending).splitlines()[2].startswith("✓ 5 jobs done in ")
    assert terminal.shown.rfind("\x1b[?25h") > terminal.shown.rfind("\x1b[?25l") > 0
    # No line is wider than the terminal.
    assert max(len(line) for line in re.split(r"[\r\n]+", ANSI.sub("", terminal.shown))) <= 80


def test_ctrl_c_stops_in_a_few_lines_and_leaves_a_cursor(toy):
    terminal = Terminal(toy, *LOGGER, "pause=5")
    terminal.read(until="s left")
    terminal.press_ctrl_c()
    terminal.read()
    assert terminal.process.returncode == 1
    shown = ANSI.sub("", terminal.shown)
    for name in ("generalizing", "memorizing"):
        assert shown.count(f"✗ train {name} 0-4 stopped after ") == 1
    last = shown.splitlines()[-2:]
    assert last[0].startswith("✗ interrupted, 0 of 5 jobs done in") and "to continue: snakemake" in last[1]
    assert terminal.shown.rfind("\x1b[?25h") > terminal.shown.rfind("\x1b[?25l") > 0
    assert "Traceback" not in terminal.shown and "RuleException" not in terminal.shown


class TestInterface(TestLogHandlerBase):
    """The interface's own tests of a logger plugin: every event is taken."""

    __test__ = True

    @pytest.fixture(autouse=True)
    def _handlers(self, handler):
        self.make = handler

    def get_log_handler_cls(self):
        return plugin.LogHandler

    def get_log_handler_settings(self):
        return None

    def _create_handler(self):
        return self.make()


def test_each_record_is_shown_once_though_it_comes_twice(handler, capsys):
    """Snakemake's queue hands a copy of each record to the handler after the logger has."""
    one = handler()
    logger = logging.getLogger("snakemake.logging")
    logger.warning("disk almost full")
    copied = record(message="disk almost full", level=logging.WARNING, shown_by_cca_dynamics=True)
    one.handle(copied)
    assert capsys.readouterr().err == "disk almost full\n"
    one.close()
    assert one not in logger.handlers


def test_a_record_that_cannot_be_shown_is_printed_in_snakemakes_format(handler, capsys):
    one = handler()
    one.emit(record(LogEvent.JOB_INFO, " Rule: train, Jobid: 1"))  # without the fields of a job
    one.emit(record(LogEvent.JOB_ERROR, "Error in rule train", level=logging.ERROR))
    assert capsys.readouterr().err.splitlines() == [
        "as Snakemake says it:  Rule: train, Jobid: 1",
        "as Snakemake says it: Error in rule train",
    ]


def test_a_closed_stream_stops_nothing(handler):
    one = handler()
    one.stream = SimpleNamespace(write=lambda text: (_ for _ in ()).throw(BrokenPipeError), flush=lambda: None)
    one.emit(record(LogEvent.RUN_INFO, stats={"train": 1, "total": 1}))
    one.emit(job_info())
    one.emit(record(message="a warning", level=logging.WARNING))
    assert list(one.running) == [1]
    one.close()


def test_live_display_fits_the_screen_and_ends_with_the_run(handler):
    one = handler()
    screen = io.StringIO()
    one.terminal, one.console = True, Console(file=screen, force_terminal=True, width=80, height=10)
    one.emit(record(LogEvent.RUN_INFO, stats={"train": 30, "total": 30}))
    for jobid in range(30):
        one.emit(job_info(jobid, rule_msg=f"train a-cohort-with-a-long-name-{jobid} 0-4"))
    rows = one._render().plain.splitlines()
    assert len(rows) == 8 and max(map(len, rows)) <= 80
    assert rows[0].startswith("  train a-cohort…ng-name-0 0-4 ───") and rows[6] == "  and 24 more"
    assert one.live
    one.emit(job_info(30, log=[]))  # may write to the terminal itself
    assert not one.live
    one.emit(record(LogEvent.JOB_FINISHED, job_id=30))
    assert one.live
    one.close()
    assert not one.live and ANSI.sub("", screen.getvalue()).splitlines()[-2].startswith("✗ stopped, 1 of 30 jobs done")


def test_jobs_that_are_silent_for_long_are_reported(handler, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(plugin, "REMIND", 5.0)
    log = tmp_path / "a.log"
    log.write_text("epoch 12/30 · loss 0.831 · 3041 s left\n")
    one = handler()
    one.emit(job_info(1, log=[str(log)]))
    one.emit(job_info(2, rule_msg="compute width", log=[str(tmp_path / "missing.log")]))
    one._remind()
    for job in one.running.values():
        job.reminded -= 6
        job.started -= 65
    log.touch()
    one._remind()
    one._remind()  # not yet due again
    said = [re.sub(STAMP, "", line) for line in capsys.readouterr().err.splitlines()]
    assert said[2:] == ["runs   train a: loss 0.831 · 50 min 41 s left", "runs   compute width: 1 min 5 s"]


def test_quiet_hides_jobs_but_not_failures(handler, capsys):
    one = handler(quiet=[SimpleNamespace(name="PROGRESS"), SimpleNamespace(name="RULES")])
    assert one.has_filter  # else Snakemake installs its own, which hides failed jobs
    one.emit(record(LogEvent.RUN_INFO, stats={"train": 1, "total": 1}))
    one.emit(job_info())
    assert capsys.readouterr().err == ""
    failure = dict(rule_name="train", rule_msg=None, log=["l"], aux={"external_jobid": 7}, shellcmd="false")
    one.emit(record(LogEvent.JOB_ERROR, jobid=1, **failure))
    one._summarise()
    said = [re.sub(STAMP, "", line) for line in capsys.readouterr().err.splitlines()]
    assert said[:4] == ["failed train a (0 s)", "  rule train · external_jobid 7", "  empty log: l", "  command: false"]
    assert said[4] == "end    1 job failed (train a)"


def test_quiet_all_says_nothing(handler, capsys):
    one = handler(quiet=[SimpleNamespace(name="ALL")])
    one.emit(record(LogEvent.RUN_INFO, stats={"train": 1, "total": 1}))
    one.emit(record(message="a warning", level=logging.WARNING))
    one.close()
    assert capsys.readouterr() == ("", "")
    dry = handler(quiet=[SimpleNamespace(name="ALL")], dryrun=True, stdout=True)  # there is nothing else to ask it for
    dry.emit(record(LogEvent.RUN_INFO, stats={"train": 1, "total": 1}))
    dry.close()
    assert "train     1\n" in capsys.readouterr().out


def test_progress_is_the_last_line_that_tells_it(tmp_path):
    log = tmp_path / "a.log"
    job = Job("train a", str(log))
    assert job.progress() == (0, "", "")  # no log yet
    log.write_bytes(b"epoch 3/4 \xc2\xb7 loss 0.8 \xc2\xb7 train 0.7 \xc2\xb7 1 min 4 s left\n\xff\x1b[1mwarning\n\n")
    assert job.progress() == (0.75, "1 min 4 s left", "loss 0.8 · train 0.7")
    log.write_text("epoch 3/4 · loss 0.8 · 7500 s left\n")  # as `train` says it
    assert job.progress() == (0.75, "2 h 05 min left", "loss 0.8")
    log.write_text("pair 1/9 · conv1\rpair 2/9 · conv2\r")
    assert job.progress() == (pytest.approx(2 / 9), "", "conv2")
    log.write_text("reading checkpoints\n")
    assert job.progress() == (0, "", "reading checkpoints")
    log.write_text("x" * 10_000 + "\nepoch 0/0 · a\n")
    assert job.progress() == (0, "", "a")
    os.utime(log, (job.started - 60,) * 2)  # an earlier run's
    assert job.progress() == (0, "", "")


def test_seconds_as_a_person_says_them():
    assert [duration(s) for s in (0.2, 12.4, 59.6, 72, 3600, 7500)] == [
        "<1 s",
        "12 s",
        "1 min 0 s",
        "1 min 12 s",
        "1 h 00 min",
        "2 h 05 min",
    ]


def test_errors_are_explained_without_traceback():
    traceback = '\n  File "/w/Snakefile", line 3, in <module>'
    refused = 'WorkflowError in file "/w/Snakefile", line 3:\nconfig key a: no' + traceback
    assert explain(refused) == ("config key a: no", "")
    wrong = 'NameError in file "/w/Snakefile", line 3:\nx is not defined' + traceback
    assert explain(wrong) == ("NameError: x is not defined", "/w/Snakefile, line 3")
    missing = 'MissingInputException in rule plot in file "/w/S", line 9:\nMissing input files for rule plot:\n    a'
    assert explain(missing) == (
        "MissingInputException: Missing input files for rule plot:\n    a",
        "rule plot, /w/S, line 9",
    )
    assert explain("Error: no Snakefile") == ("Error: no Snakefile", "")
    assert explain("") == ("", "")


def test_how_a_command_ended():
    failed = "RuleException:\nCalledProcessError in file \"/w/S\", line 9:\nCommand 'set -euo pipefail;  x' "
    assert how_it_ended(failed + "returned non-zero exit status 3.") == "exit status 3"
    assert how_it_ended(failed + f"died with <Signals.SIGINT: {signal.SIGINT:d}>.") == "killed by SIGINT"
    assert "memory" in how_it_ended(failed + "died with <Signals.SIGKILL: 9>.")
    assert how_it_ended("WorkflowError:\nno exit status 3") == ""


def test_reasons_in_few_words():
    assert short_reasons("Missing output files: a; Input files updated by another job: b") == ["output missing"]
    assert short_reasons("Input files updated by another job: b") == ["follows from the above"]
    assert short_reasons("Code has changed since last execution; Params have changed since last execution: x") == [
        "rule changed",
        "parameters or code changed",
    ]


def test_labels_have_no_control_characters():
    assert clean("train\t\x1b[31mred\x1b[0m\n\n a\x07") == "train red a"
    assert clean(None) == ""
    assert Job.from_record(job_info(rule_msg=None, wildcards={"result": "width", "n": 4})).label == "train width 4"
