"""Run the smoke study on a real SLURM cluster on this machine, break it meanwhile, and compare with a local run.

    make test-slurm        on Debian or Ubuntu, as root: installs slurm-wlm and munge if they are missing

Starts munged, slurmctld and two node daemons with a configuration of its own, and stops them at the end. Then:

1.  the study locally;
2.  through profiles/slurm, undisturbed, grouped and ungrouped, which measures what SLURM costs;
3.  through profiles/slurm, while a running job is cancelled and a node's daemon is killed with its job.

The tables of all must be those of the local run, byte for byte.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.builders import copy_workflow, variables  # noqa: E402

SYSTEM = Path("/etc/slurm/slurm.conf")  # Snakemake's plugin clears SLURM_CONF, so the configuration must be found here
RESULTS = Path("results/smoke")
CONFIGURATION = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
MinJobAge=300
SlurmdParameters=config_overrides
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[16818-16819] CPUs=4 RealMemory=12000
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


class Failed(AssertionError):
    """The cluster did not do what a local run does."""


def run(*command: str, **options) -> str:
    """A command that must succeed; its output."""
    found = subprocess.run(command, capture_output=True, text=True, **options)
    if found.returncode:
        raise Failed(
            f"{' '.join(command)} ended with {found.returncode}:\n{found.stdout[-3000:]}{found.stderr[-3000:]}"
        )
    return found.stdout


def install() -> None:
    """Debian's SLURM and Snakemake's plugin, if they are not there."""
    if shutil.which("slurmctld") is None or shutil.which("munged") is None:
        if os.getuid() or shutil.which("apt-get") is None:
            sys.exit("error: SLURM is missing; install slurm-wlm and munge, and run this as root")
        run("apt-get", "install", "-y", "-qq", "slurm-wlm", "munge")
    if os.getuid():
        sys.exit("error: slurmd needs root; run `make test-slurm` as root, e.g. in a container")
    if SYSTEM.exists():
        sys.exit(f"error: {SYSTEM} is there; this machine has a SLURM of its own, run the tests on another")


class Cluster:
    """A controller and two nodes on this machine."""

    def __init__(self, folder: Path):
        self.folder = folder

    @contextlib.contextmanager
    def running(self) -> Iterator[Cluster]:
        """Start all daemons; stop them and remove every trace at the end."""
        folder = self.folder
        for name in ("state", "spool.n1", "spool.n2"):
            (folder / name).mkdir()
        folder.chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        (folder / "slurm.conf").write_text(CONFIGURATION.format(host=socket.gethostname(), folder=folder))
        SYSTEM.parent.mkdir(exist_ok=True)
        SYSTEM.symlink_to(folder / "slurm.conf")
        try:
            files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
            run("munged", *(f"--{flag}={folder}/munge.{suffix}" for flag, suffix in files.items()))
            run("slurmctld")
            for node in ("n1", "n2"):
                run("slurmd", "-N", node)
            self.await_nodes(2)
            yield self
        finally:
            subprocess.run(["scancel", "--user", "root"], capture_output=True)
            for name in ("slurmd", "slurmstepd", "slurmctld", "munged"):
                subprocess.run(["pkill", "-9" if name == "slurmstepd" else "-15", "-x", name])
            SYSTEM.unlink()

    def await_nodes(self, number: int) -> None:
        """Until so many nodes take jobs."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            states = subprocess.run(["sinfo", "-hN", "-o", "%T"], capture_output=True, text=True).stdout.split()
            if sum(state in ("idle", "mixed", "allocated") for state in states) >= number:
                return
            time.sleep(0.5)
        raise Failed(f"the nodes are not up: {states}\n{(self.folder / 'slurmctld.log').read_text()[-2000:]}")

    def await_job(self, process: subprocess.Popen, node: str = "", seconds: float = 90) -> str:
        """Id of a job that has been computing for a moment, on a node or on any."""
        until = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < until:
            for line in run("squeue", "-h", "-t", "R", "-o", "%i %N %M").splitlines():
                job, where, elapsed = line.split()
                if node in where and int(elapsed.rpartition(":")[2]) >= 3:
                    return job
            time.sleep(0.2)
        output = "" if process.poll() is None else process.communicate()[0]
        raise Failed(f"no job runs on {node or 'any node'}\n{output[-3000:]}")

    def kill_node(self, node: str) -> None:
        """A power cut: its daemon, its steps and all they started."""
        spool = str(self.folder / f"spool.{node}")
        daemon = int((self.folder / f"slurmd.{node}.pid").read_text())
        jobs = run("squeue", "-h", "-t", "R", "-w", node, "-o", "%i").split()
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if line.startswith("slurmstepd") and any(f"[{job}." in line for job in jobs):
                with contextlib.suppress(psutil.Error):
                    for child in [*process.children(recursive=True), process]:
                        child.kill()
        os.kill(daemon, signal.SIGKILL)
        shutil.rmtree(spool)
        Path(spool).mkdir()


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """Snakemake on the smoke study in a working copy."""
    return subprocess.Popen(
        ["snakemake", "--configfile", "studies/smoke.yaml", "--config", "device=cpu", *arguments],
        cwd=folder,
        env=variables(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, what: str) -> str:
    """Wait for snakemake to end well."""
    output, _ = process.communicate(timeout=900)
    if process.returncode:
        raise Failed(f"{what}: snakemake ended with {process.returncode}:\n{output[-5000:]}")
    return output


def tables(folder: Path) -> dict[str, bytes]:
    """The tables, claims and networks of a run."""
    found = [*(folder / RESULTS).glob("*.parquet"), folder / RESULTS / "claims.csv"]
    found += (folder / RESULTS).glob("networks/*/*/*")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def compare(folder: Path, reference: Path, what: str) -> None:
    """Byte for byte."""
    mine, theirs = tables(folder), tables(reference)
    if different := sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name)):
        raise Failed(f"{what}: differs from the local run in {', '.join(different)}")
    print(f"  {what}: {len(mine)} tables and networks are those of the local run", flush=True)


def submitted() -> int:
    """How many jobs SLURM has been given so far."""
    ids = [int(number) for number in re.findall(r"^JobId=(\d+)", run("scontrol", "show", "jobs"), re.MULTILINE)]
    return max(ids, default=0)


def undisturbed(folder: Path, reference: Path, *flags: str) -> tuple[float, int]:
    """A run through the profile: seconds, and SLURM jobs it took."""
    copy_workflow(folder)
    before, begun = submitted(), time.monotonic()
    finish(start(folder, "--profile", "profiles/slurm", *flags), folder.name)
    seconds, jobs = time.monotonic() - begun, submitted() - before
    compare(folder, reference, folder.name)
    return seconds, jobs


def overhead(folder: Path) -> float:
    """Seconds that a SLURM job of one rule takes beyond the rule itself, from submission to the end seen by SLURM."""
    copy_workflow(folder)
    finish(start(folder, "--", f"{RESULTS}/data/dataset.safetensors"), "dataset")
    target = f"{RESULTS}/networks/width-1/0-1"
    finish(start(folder, "--profile", "profiles/slurm", "--", target), "one job")
    facts = run("scontrol", "show", "job", str(submitted()))
    when = {k: pd.Timestamp(re.search(rf"{k}=(\S+)", facts)[1]) for k in ("SubmitTime", "EndTime")}
    rule = pd.read_table(folder / RESULTS / "benchmarks/train-width-1-0-1.tsv")["s"][0]
    return (when["EndTime"] - when["SubmitTime"]).total_seconds() - rule


def disturbed(cluster: Cluster, folder: Path, reference: Path) -> None:
    """A job is cancelled and a node dies, in the middle."""
    copy_workflow(folder)
    process = start(folder, "--profile", "profiles/slurm", "--group-components", "networks=1", "results=1")
    job = cluster.await_job(process)
    run("scancel", job)
    print(f"  cancelled job {job}", flush=True)
    job = cluster.await_job(process, "n2")
    cluster.kill_node("n2")
    print(f"  killed node n2 under job {job}", flush=True)
    time.sleep(15)  # SlurmdTimeout: the controller gives the node up
    run("slurmd", "-N", "n2")
    finish(process, folder.name)
    compare(folder, reference, folder.name)


def stop(number: int, frame: object) -> None:
    """End as Ctrl-C does, so that the cluster is taken down; once, however often one is told to."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit("stopped")


def main() -> None:
    """All of it; status 1 if a run differs."""
    signal.signal(signal.SIGTERM, stop)
    install()
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as place:
        place = Path(place)
        place.chmod(0o755)  # munge insists
        (place / "cluster").mkdir()
        local = copy_workflow(place / "local")
        begun = time.monotonic()
        finish(start(local), "local")
        seconds = time.monotonic() - begun
        print(f"local run: {seconds:.0f} s", flush=True)
        with Cluster(place / "cluster").running() as cluster:
            single = overhead(place / "one job")
            grouped, few = undisturbed(place / "grouped", local)
            apart, many = undisturbed(place / "apart", local, "--group-components", "networks=1", "results=1")
            disturbed(cluster, place / "disturbed", local)
        print(f"SLURM adds {single:.1f} s to a job of one rule (submission to end, less the rule's own time).")
        print(
            f"The smoke study: {seconds:.0f} s locally, {grouped:.0f} s in {few} SLURM jobs (the profile's grouping),"
        )
        print(f"{apart:.0f} s in {many} (a part, a result each).")


if __name__ == "__main__":
    try:
        main()
    except Failed as problem:
        sys.exit(f"FAILED: {problem}")
