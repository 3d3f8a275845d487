"""Break a running study in every way that happens, and see that nothing is lost and nothing wrong passes as right.

Each fault hits the real workflow on a small study: processes are killed at random moments, the disk fills, files are
damaged or deleted, two workflows start at once, two users share a folder, the clock jumps, the config changes under a
half-done run. After each, one documented command finishes the study, and its tables are byte for byte those of an
undisturbed run.

    make test-faults                        all of it
    python tests/faults.py --only kill      the scenarios whose name has "kill"
    python tests/faults.py --seed 7         other moments and other files

Ends with a tally, and with status 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.builders import copy_workflow, variables  # noqa: E402

STUDY = {
    "study": "faults",
    "targets": ["width", "clusters", "recurrent_training"],
    "save_minutes": 10,
    "save_steps": 7,
    "network": {"channels": [4, 4, 8, 8, 16]},
    "language_training": {"batch_size": 64, "window": 64, "epochs": 2},
    "results": {
        "stability": {"recurrent": None},
        "width": {"networks": 2, "multipliers": [0.5, 1, 2], "training": {"epochs": 60, "evaluate_every": 30}},
        "clusters": {"training": {"epochs": 40, "evaluate_every": 40}},
        "recurrent_training": {"deeper": None},
    },
}
CONFIG = ("--configfile", "studies/smoke.yaml", "studies/faults.yaml")
WITHOUT_PRIVILEGES = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner,-chown")
"""How root becomes a user like others, whom the owner and the mode of a file bind."""
SOMEBODY = 12345
"""Another user, who owns a working copy."""
LONGEST = 900
"""Seconds that a run may take on a slow machine that does other work as well."""
RESULTS = "results/faults"
PARTS = {"width-0.5": "0-1", "width-1": "0-1", "width-2": "0-1", "sweep": "0-9", "lstm": "0-1"}
EVERYTHING = (*(f"{RESULTS}/networks/{cohort}/{part}" for cohort, part in PARTS.items()), "all")


class Lost(AssertionError):
    """A study did not recover, or something wrong passed as right."""


class Bench:
    """A working copy of the workflow in which a study runs and is broken.

    Args:
        folder: of the copy; must not exist.
        like: a bench to copy, results and all; None: a fresh clone.
        rng: of the moments and files of this bench.
    """

    def __init__(self, folder: Path, like: Bench | None, rng: random.Random):
        self.folder, self.rng = folder, rng
        if like is None:
            copy_workflow(folder)
            (folder / "studies/faults.yaml").write_text(yaml.safe_dump(STUDY))
        else:
            shutil.copytree(like.folder, folder, symlinks=True)
        self.results = folder / RESULTS

    def start(self, *arguments: str, stranger: bool = False) -> subprocess.Popen:
        """Snakemake, in the background; without targets everything, networks that tables no longer need included."""
        targets = () if {"--", "--unlock"} & set(arguments) else ("--", *EVERYTHING)
        return subprocess.Popen(
            [
                *(WITHOUT_PRIVILEGES if stranger else ()),
                *("snakemake", *(CONFIG if "--configfile" not in arguments else ()), "--cores", "1"),
                *(*arguments, *targets),
            ],
            cwd=self.folder,
            env=variables(self.folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, stranger: bool = False) -> tuple[int, str]:
        """Snakemake to its end: status and what it printed."""
        process = self.start(*arguments, stranger=stranger)
        output, _ = process.communicate(timeout=LONGEST)
        return process.returncode, output

    def finish(self, *arguments: str) -> str:
        """The documented command after a crash: `snakemake --unlock`, then the same command again."""
        self.run("--unlock")
        status, output = self.run(*arguments)
        if status:
            raise Lost(f"{self.folder}: snakemake ended with {status}:\n{output[-3000:]}\n{self.logs()}")
        return output

    def logs(self) -> str:
        """Errors and tracebacks in the logs of jobs."""
        lines = [line for log in self.folder.glob("logs/**/*.log") for line in log.read_text().splitlines()]
        return "\n".join(line for line in lines if "rror" in line or "Traceback" in line)

    def command(self, *arguments: str) -> tuple[int, str]:
        """`cca-dynamics` in this copy."""
        found = subprocess.run(
            ["cca-dynamics", *arguments], cwd=self.folder, env=variables(self.folder), capture_output=True, text=True
        )
        return found.returncode, found.stdout + found.stderr

    def outputs(self) -> dict[str, bytes]:
        """The files that a study is about: tables, claims, networks. (Figures and activations follow from them.)"""
        found = [*self.results.glob("*.parquet"), *self.results.glob("claims/*.csv"), self.results / "claims.csv"]
        found += self.results.glob("networks/*/*/*")
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found if path.exists()}

    def compare(self, other: Bench, names: str = "") -> None:
        """Byte for byte, the outputs whose name has a part in it.

        Raises:
            Lost: something differs or is missing, or is left over.
        """
        mine, theirs = ({k: v for k, v in b.outputs().items() if names in k} for b in (self, other))
        if different := sorted(name for name in set(mine) | set(theirs) if mine.get(name) != theirs.get(name)):
            raise Lost(f"{self.folder}: differs from the undisturbed run in {', '.join(different)}")
        if left := [path for path in self.results.rglob(".*.unfinished")]:
            raise Lost(f"{self.folder}: left over: {left}")

    def forget(self, cohort: str) -> None:
        """Delete the networks of a cohort, so that the workflow trains them again."""
        shutil.rmtree(self.results / "networks" / cohort)

    def jobs(self, process: subprocess.Popen, stage: str = "") -> list[psutil.Process]:
        """Processes of jobs of a running snakemake."""
        found = []
        try:
            for child in psutil.Process(process.pid).children(recursive=True):
                line = " ".join(child.cmdline())
                if f"bin/cca-dynamics {stage}" in line and "bash" not in line.partition(" ")[0]:
                    found.append(child)
        except psutil.Error:
            pass
        return found

    def await_job(self, process: subprocess.Popen, stage: str, seconds: float = 60) -> psutil.Process | None:
        """The first job of a stage, as soon as there is one; None if snakemake ends before."""
        until = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < until:
            if found := self.jobs(process, stage):
                return found[0]
            time.sleep(0.05)
        return None

    def kill_everything(self, process: subprocess.Popen) -> None:
        """SIGKILL to snakemake and all that it started, children first or last."""
        try:
            everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        except psutil.Error:
            everyone = []
        self.rng.shuffle(everyone)
        for victim in everyone:
            with contextlib.suppress(psutil.Error):
                victim.kill()
        process.communicate()


class Suite:
    """The undisturbed run, and what was broken so far."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self.tally: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.whole = self.bench("undisturbed", None)
        self.whole.finish()

    def bench(self, name: str, like: Bench | None) -> Bench:
        """A new bench whose random numbers depend on its name alone."""
        return Bench(self.folder / name, like, random.Random(f"{self.seed} {name}"))

    def count(self, fault: str, times: int = 1) -> None:
        """Faults were injected."""
        with self.lock:
            self.tally[fault] += times


def kill_training(suite: Suite, number: signal.Signals, cohort: str, times: int) -> None:
    """The training job is told to stop, or killed, several times at random moments."""
    bench = suite.bench(f"{number.name} {cohort}", suite.whole)
    bench.forget(cohort)
    target, hit = f"{RESULTS}/networks/{cohort}", 0
    part = PARTS[cohort]
    while hit < times:
        process = bench.start("--", f"{target}/{part}")
        job = bench.await_job(process, "train")
        if job is not None:
            time.sleep(bench.rng.uniform(0, 6))
            try:
                job.send_signal(number)
                hit += 1
                suite.count(f"{number.name} to a training job")
            except psutil.NoSuchProcess:
                pass
        process.communicate(timeout=LONGEST)
        if (bench.folder / target / part).exists():
            bench.compare(suite.whole, f"networks/{cohort}")
            bench.forget(cohort)
        elif "Traceback" in bench.logs():
            raise Lost(f"{bench.folder}: traceback in a log: {bench.logs()}")
    bench.finish()
    bench.compare(suite.whole)


def kill_snakemake(suite: Suite, number: int, times: int) -> None:
    """Snakemake and all of its children are killed, several times in one run from nothing."""
    bench = suite.bench(f"kill snakemake {number}", None)
    for _ in range(times):
        process = bench.start()
        until = time.monotonic() + bench.rng.uniform(2, 14)
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        if process.poll() is not None:
            process.communicate()
            shutil.rmtree(bench.folder / "results")
            continue
        bench.kill_everything(process)
        suite.count("SIGKILL to snakemake and its jobs")
        bench.run("--unlock")
    bench.finish()
    bench.compare(suite.whole)


def orphan(suite: Suite) -> None:
    """Snakemake alone is killed; its training job goes on as an orphan while the next run wants the same networks."""
    bench = suite.bench("orphan", suite.whole)
    for cohort in ("width-2", "sweep"):
        bench.forget(cohort)
        process = bench.start()
        job = bench.await_job(process, "train")
        time.sleep(bench.rng.uniform(2, 4))
        process.kill()
        suite.count("SIGKILL to snakemake, its job goes on")
        if job is None:
            raise Lost(f"{bench.folder}: no training job")
        bench.finish()
        process.communicate()
    bench.compare(suite.whole)


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "truncated": lambda content, rng: content[: rng.randrange(len(content))],
    "bit-flipped": lambda content, rng: flip(content, rng.randrange(len(content)), rng),
    "removed": lambda content, rng: None,
}


def flip(content: bytes, place: int, rng: random.Random) -> bytes:
    """One bit changed."""
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def damage(path: Path, kind: str, rng: random.Random) -> None:
    """Truncate, flip a bit of, or remove a file."""
    content = DAMAGES[kind](path.read_bytes(), rng)
    if content is None:
        path.unlink()
    else:
        stamp = path.stat()
        path.write_bytes(content)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as bad sectors leave it


def damaged_files(suite: Suite, number: int, times: int) -> None:
    """Files of a finished study are damaged; `verify` names every one, and the command it prints mends them."""
    bench, crate = suite.bench(f"damaged {number}", suite.whole), "ro-crate-metadata.json"
    everything = [
        path
        for path in sorted((bench.folder / "results").rglob("*"))
        if path.is_file() and "benchmarks" not in path.parts and path.name[0] != "." and path.name != crate
    ]
    for path in (chosen := bench.rng.sample(everything, times)):
        kind = bench.rng.choice(list(DAMAGES))
        damage(path, kind, bench.rng)
        suite.count(f"a file of a finished study {kind}")
    status, output = bench.command("verify", "faults")
    for path in chosen:
        if f"{path.relative_to(bench.folder).as_posix()}: " not in output:
            raise Lost(f"verify does not name {path}:\n{output}")
    mend(bench, status, output)
    bench.compare(suite.whole)


def mend(bench: Bench, status: int, output: str) -> None:
    """Do what `verify` says, whose status and output these are; then it is content.

    Raises:
        Lost: it says nothing, or is not content.
    """
    commands = re.findall(r"^to mend: (rm .+) && snakemake (-- .+)$", output, flags=re.MULTILINE)
    if status != 1 or len(commands) != 1 or "Traceback" in output:
        raise Lost(f"verify ended with {status}:\n{output}")
    ((remove, targets),) = commands
    subprocess.run(["bash", "-c", remove], cwd=bench.folder, check=True)
    bench.finish(*targets.split())
    status, output = bench.command("verify", "faults")
    if status:
        raise Lost(f"{bench.folder} is not whole after mending:\n{output}")


def damaged_inputs(suite: Suite) -> None:
    """A job that reads a damaged file says which in one line, makes nothing, and goes through once it is deleted."""
    bench = suite.bench("inputs", suite.whole)
    victims = {
        "data/dataset.safetensors": "networks/width-1/0-1",
        "networks/width-1/0-1/step-000480.safetensors": "activations/width-1/0-1",
        "networks/sweep/0-9/step-000320.safetensors": "ablation/sweep/0-9.parquet",
        "activations/width-2/0-1/train/step-000480.safetensors": "width.parquet",
        "ablation/sweep/0-9.parquet": "clusters.parquet",
        "data/corpus.safetensors": "networks/lstm/0-1",
    }
    for (victim, output), kind in zip(victims.items(), ["truncated", "bit-flipped"] * 3, strict=True):
        path, made = bench.results / victim, bench.results / output
        content, stamp = path.read_bytes(), path.stat()
        damage(path, kind, bench.rng)
        suite.count(f"an input of a job {kind}")
        if made.is_dir():
            shutil.rmtree(made)
        else:
            made.unlink()
        for log in bench.folder.glob("logs/**/*.log"):
            log.unlink()
        status, _ = bench.run("--", f"{RESULTS}/{output}")
        errors = [line for line in bench.logs().splitlines() if line.startswith("error: ")]
        if not status or made.exists() or len(errors) != 1 or victim not in errors[0] or "delete" not in errors[0]:
            raise Lost(f"{victim}: status {status}, {errors or bench.logs()}")
        path.write_bytes(content)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        whole = suite.whole.results / output
        made.parent.mkdir(parents=True, exist_ok=True)  # Snakemake removes empty folders
        shutil.copytree(whole, made) if whole.is_dir() else shutil.copy2(whole, made)
        shutil.rmtree(made.with_name(f".{made.name}.unfinished"), ignore_errors=True)  # as the job would, at its end
    bench.finish()
    bench.compare(suite.whole)


def damaged_saves(suite: Suite, cohort: str, times: int) -> None:
    """What a killed training job kept is damaged before it is run again."""
    bench = suite.bench(f"saves {cohort}", suite.whole)
    part = PARTS[cohort]
    target = f"{RESULTS}/networks/{cohort}/{part}"
    done = 0
    while done < times:
        bench.forget(cohort)
        process = bench.start("--", target)
        kept = bench.results / "networks" / cohort / f".{part}.unfinished"
        while process.poll() is None and not (kept / "state.safetensors").exists():
            time.sleep(0.02)
        time.sleep(bench.rng.uniform(0, 0.5))
        bench.kill_everything(process)
        bench.run("--unlock")
        files = [path for path in kept.rglob("*") if path.is_file()]
        if not files:
            continue
        path, kind = bench.rng.choice(files), bench.rng.choice(list(DAMAGES))
        if path.stat().st_size:
            damage(path, kind, bench.rng)
        suite.count(f"the state of a killed job {kind}")
        done += 1
        bench.finish("--", target)
        bench.compare(suite.whole, f"networks/{cohort}")
    bench.finish()
    bench.compare(suite.whole)


def removed_while_running(suite: Suite, times: int) -> None:
    """Networks and activations lose a file while the workflow runs, before or after it is read."""
    for number in range(times):
        bench = suite.bench(f"removed while running {number}", suite.whole)
        bench.forget(bench.rng.choice(list(PARTS)))
        process = bench.start()
        time.sleep(bench.rng.uniform(4, 12))
        stored = [sorted(bench.results.glob(f"{kind}/**/*")) for kind in ("networks", "activations")]
        there = [p for paths in stored for p in paths if p.is_file() and not p.name.startswith(".snakemake")]
        if there and process.poll() is None:
            bench.rng.choice(there).unlink(missing_ok=True)
            suite.count("a file removed while the workflow runs")
        process.communicate(timeout=LONGEST)
        status, _ = bench.run()
        if status:  # a job names the file and what to delete
            errors = re.findall(r"delete (results\S+)", bench.logs())
            for name in {name for name in errors if (bench.folder / name).exists()}:
                shutil.rmtree(bench.folder / name) if (bench.folder / name).is_dir() else os.unlink(bench.folder / name)
            bench.finish()
        status, output = bench.command("verify", "faults")
        if status:
            mend(bench, status, output)
        bench.compare(suite.whole)


def two_at_once(suite: Suite, times: int) -> None:
    """A second snakemake starts in the same folder."""
    for number in range(times):
        bench = suite.bench(f"two at once {number}", suite.whole)
        bench.forget(bench.rng.choice(list(PARTS)))
        first = bench.start()
        time.sleep(bench.rng.uniform(0, 5))
        second = bench.start()
        outputs = [process.communicate(timeout=LONGEST)[0] for process in (first, second)]
        suite.count("a second snakemake in the same folder")
        states = [first.returncode, second.returncode]
        if 0 not in states:
            raise Lost(f"neither of two snakemakes finished: {outputs}")
        for status, output in zip(states, outputs, strict=True):
            if status and not re.search("lock", output, flags=re.IGNORECASE):
                raise Lost(f"the second snakemake does not say why it ended: {output}")
        bench.run()
        bench.compare(suite.whole)


def under_other_config(suite: Suite, name: str, rate: float) -> tuple[Bench, tuple[str, ...]]:
    """The undisturbed run with the width networks trained at another rate, and the arguments that ask for it."""
    training = {"epochs": 60, "evaluate_every": 30, "learning_rate": rate}
    bench, arguments = suite.bench(name, suite.whole), (*CONFIG, "studies/other.yaml")
    (bench.folder / "studies/other.yaml").write_text(yaml.safe_dump({"results": {"width": {"training": training}}}))
    bench.finish(*arguments)
    return bench, arguments


def config_changes(suite: Suite, times: int) -> None:
    """A run is killed half-way, the config changes under it, and the next run must not mix the two."""
    other, arguments = under_other_config(suite, "other config", 0.07)
    for number in range(times):
        bench = suite.bench(f"config {number}", suite.whole)
        shutil.copy(other.folder / "studies/other.yaml", bench.folder / "studies")
        for cohort in ("width-0.5", "width-1", "width-2"):
            bench.forget(cohort)
        process = bench.start()
        bench.await_job(process, "train")
        time.sleep(bench.rng.uniform(1, 9))
        bench.kill_everything(process)
        suite.count("the config changed under a half-done run")
        bench.finish(*arguments)
        bench.compare(other)


@contextlib.contextmanager
def disk_of(folder: Path, size: int) -> Iterator[bool]:
    """A disk of so many bytes in place of an empty folder; False where this machine lets nobody mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        print("full disk: this machine lets nobody mount a tmpfs; left out", flush=True)
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def says_that_the_disk_is_full(bench: Bench) -> bool:
    """Whether a log of the last run says so."""
    return any("space" in line.lower() or "os error 28" in line for line in bench.logs().splitlines())


def full_disk(suite: Suite, times: int) -> None:
    """The disk has room for a part of the results only; once there is more, the same command finishes the study."""
    size = sum(path.stat().st_size for path in (suite.whole.folder / "results").rglob("*") if path.is_file())
    for number in range(times):
        bench = suite.bench(f"full disk {number}", None)
        disk = bench.folder / "results"
        with disk_of(disk, int(size * bench.rng.uniform(0.1, 0.9))) as mounted:
            if not mounted:
                return
            status, _ = bench.run()
            suite.count("the disk fills up")
            if status and not says_that_the_disk_is_full(bench):
                raise Lost(f"{bench.folder}: nothing says that the disk is full: {bench.logs()}")
            subprocess.run(["mount", "-o", f"remount,size={4 * size}", disk], check=True)
            bench.finish()
            bench.compare(suite.whole)


def full_disk_in_compute(suite: Suite, times: int) -> None:
    """Everything but the tables is there, and there is no room for them; once there is, the same command finishes."""
    for number in range(times):
        bench = suite.bench(f"full disk in compute {number}", suite.whole)
        results, kept = bench.folder / "results", bench.folder / "kept"
        size = sum(path.stat().st_blocks * 512 for path in results.rglob("*"))
        results.rename(kept)
        with disk_of(results, 2 * size) as mounted:
            if not mounted:
                return
            shutil.copytree(kept, results, dirs_exist_ok=True, symlinks=True)
            tables = [*bench.results.glob("*.parquet"), *bench.results.glob("claims/*"), bench.results / "claims.csv"]
            room = bench.rng.randrange(sum(path.stat().st_size for path in tables))
            for path in tables:
                path.unlink()
            filler = results / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            os.truncate(filler, max(0, filler.stat().st_size - room))
            status, _ = bench.run()
            suite.count("the disk is full when tables are computed")
            half = [path for path in tables if path.suffix == ".parquet" and path.exists() and not intact(path)]
            if half or (status and (not says_that_the_disk_is_full(bench) or "Traceback" in bench.logs())):
                raise Lost(f"{bench.folder}: half-written {half}; logs: {bench.logs()}")
            filler.unlink()
            bench.finish()
            bench.compare(suite.whole)


def intact(path: Path) -> bool:
    """Whether a table can be read to its end."""
    import pandas as pd

    try:
        return len(pd.read_parquet(path)) > 0
    except Exception:  # whatever is wrong with it
        return False


def data_deleted(suite: Suite, times: int) -> None:
    """data/ is deleted after its last reader, to save room: nothing runs again until something is to be trained."""
    for number in range(times):
        bench = suite.bench(f"data deleted {number}", suite.whole)
        shutil.rmtree(bench.results / "data")
        suite.count("data/ deleted after its last reader")
        _, output = bench.run("--dry-run")
        if not re.search("othing to be done", output):
            raise Lost(f"{bench.folder}: without data/ this would run again:\n{output}")
        bench.compare(suite.whole)
        bench.forget(bench.rng.choice(list(PARTS)))
        bench.finish()
        bench.compare(suite.whole)


def clock_jumps(suite: Suite, times: int) -> None:
    """The clock is set back and forth in a run of a changed config: new files look older than what they replace."""
    other, arguments = under_other_config(suite, "clock, undisturbed", 0.06)
    widths = [f"{RESULTS}/networks/{cohort}/{part}" for cohort, part in PARTS.items() if cohort.startswith("width")]
    for number in range(times):
        bench = suite.bench(f"clock {number}", suite.whole)
        shutil.copy(other.folder / "studies/other.yaml", bench.folder / "studies")
        readers = [*widths, *(name.replace("/networks/", "/activations/") for name in widths)]
        status, output = bench.run(*arguments, "--", *readers[: bench.rng.randrange(1, len(readers) + 1)])
        if status:
            raise Lost(f"{bench.folder}: snakemake ended with {status}:\n{output[-3000:]}")
        for path in bench.results.rglob("*"):
            jump = bench.rng.choice([-1, 1]) * bench.rng.uniform(60, 1e6)
            new = any(f"{kind}/width" in str(path) for kind in ("networks", "activations"))
            stamp = path.stat().st_mtime - 1e7 if new else path.stat().st_mtime + jump
            os.utime(path, (stamp, stamp))
        suite.count("the clock jumps in a half-done run")
        bench.run("--unlock")
        status, output = bench.run(*arguments)
        if status:  # files dated in the future; the error names the command that mends that
            subprocess.run(["bash", "-c", re.findall(r"find results.* \+", output)[0]], cwd=bench.folder, check=True)
            bench.finish(*arguments)
        bench.compare(other)


def two_users(suite: Suite) -> None:
    """Who may read but not write runs the study in another user's folder, then who may do both."""
    if os.geteuid() or not shutil.which("setpriv"):
        print("two users: only root, with setpriv, can be two users; left out", flush=True)
        return
    bench = suite.bench("two users", suite.whole)
    bench.forget("width-1")
    for path in (bench.folder, *bench.folder.rglob("*")):
        os.chown(path, SOMEBODY, SOMEBODY, follow_symlinks=False)
    before = {path: path.read_bytes() for path in bench.folder.rglob("*") if path.is_file()}
    status, output = bench.run(stranger=True)
    suite.count("a user who may not write runs the study")
    after = {path: path.read_bytes() for path in bench.folder.rglob("*") if path.is_file()}
    lines = [line for line in output.splitlines() if "rror" in line]
    if not status or after != before or "Traceback" in output or len(lines) != 1 or "writ" not in lines[0]:
        raise Lost(f"{bench.folder}: status {status}, said:\n{output[-3000:]}")
    for path in (bench.folder, *bench.folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    status, output = bench.run(stranger=True)
    suite.count("a second user who may write runs the study")
    if status:
        raise Lost(f"{bench.folder}: the second user got {status}:\n{output[-3000:]}\n{bench.logs()}")
    bench.compare(suite.whole)
    bench.forget("sweep")
    bench.finish()
    bench.compare(suite.whole)


def scenarios(suite: Suite) -> dict[str, Callable[[], None]]:
    """Every scenario, long ones first."""
    found: dict[str, Callable[[], None]] = {}
    for number in range(2):
        found[f"kill snakemake {number}"] = lambda number=number: kill_snakemake(suite, number, 8)
    for cohort, times in (("sweep", 8), ("lstm", 7), ("width-2", 7)):
        found[f"kill training {cohort}"] = lambda c=cohort, t=times: kill_training(suite, signal.SIGKILL, c, t)
    found["terminate training"] = lambda: kill_training(suite, signal.SIGTERM, "lstm", 6)
    found["config changes"] = lambda: config_changes(suite, 2)
    found["full disk"] = lambda: full_disk(suite, 2)
    for number in range(4):
        found[f"damaged files {number}"] = lambda number=number: damaged_files(suite, number, 10)
    found["removed while running"] = lambda: removed_while_running(suite, 3)
    found["damaged saves sweep"] = lambda: damaged_saves(suite, "sweep", 4)
    found["damaged saves lstm"] = lambda: damaged_saves(suite, "lstm", 4)
    found["damaged inputs"] = lambda: damaged_inputs(suite)
    found["two at once"] = lambda: two_at_once(suite, 3)
    found["orphan"] = lambda: orphan(suite)
    found["full disk in compute"] = lambda: full_disk_in_compute(suite, 2)
    found["data deleted"] = lambda: data_deleted(suite, 2)
    found["clock jumps"] = lambda: clock_jumps(suite, 2)
    found["two users"] = lambda: two_users(suite)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the moments and files")
    parser.add_argument("--only", nargs="+", default=[""], help="scenarios whose name has one of these in it")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="scenarios side by side")
    chosen = parser.parse_args()
    begin, failed = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        suite = Suite(Path(folder), chosen.seed)
        print(f"{time.monotonic() - begin:4.0f} s  undisturbed run", flush=True)

        def attempt(item: tuple[str, Callable[[], None]]) -> None:
            name, scenario = item
            start = time.monotonic()
            try:
                scenario()
                verdict = "ok"
            except Exception as problem:
                failed.append(name)
                trace = "" if isinstance(problem, Lost) else traceback.format_exc()
                verdict = f"FAILED: {problem}\n{trace}"
            print(
                f"{time.monotonic() - begin:4.0f} s  {name} ({time.monotonic() - start:.0f} s): {verdict}", flush=True
            )

        with ThreadPoolExecutor(chosen.workers) as pool:
            list(
                pool.map(
                    attempt, [(k, v) for k, v in scenarios(suite).items() if any(part in k for part in chosen.only)]
                )
            )
    print(f"\n{'fault':<45} times")
    for fault, times in sorted(suite.tally.items()):
        print(f"{fault:<45} {times:5}")
    print(f"{'in all':<45} {suite.tally.total():5}   {len(failed)} scenarios failed   {time.monotonic() - begin:.0f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
