"""An environment in which `cca-dynamics` starts at once, for tests that run many jobs.

Most of a small job's time goes into importing PyTorch. Here one process has imported it, and the `cca-dynamics` of the
environment asks that process for a copy of itself (fork), which runs the job as the real program would: with the same
arguments, folder, environment and streams, and the same code, that of PYTHONPATH. Packages other than ours are shared.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path

PACKAGES = (
    "torch",
    "pandas",
    "pyarrow.parquet",
    "scipy.stats",
    "matplotlib.pyplot",
    "seaborn",
    "pydantic",
    "safetensors",
)
"""What jobs import."""
CLIENT = """#!{python} -SE
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
socket.send_fds(connection, [b"streams"], [0, 1, 2])
job = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
connection.sendall(json.dumps(job).encode())
connection.shutdown(socket.SHUT_WR)
sys.exit(int(connection.recv(16) or 1))
"""
SNAKEMAKE = "#!{python}\nimport sys\nfrom snakemake.cli import main\nsys.exit(main())\n"


def environment(folder: Path) -> tuple[Path, subprocess.Popen]:
    """Make the environment, with the packages of this one, and start its process.

    Args:
        folder: where; its path is short and has no spaces.

    Returns:
        The environment's folder of programs, and the process, to be terminated by the caller.
    """
    programs, address = folder / "bin", folder / "socket"
    programs.mkdir(parents=True)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder)
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    python = programs / "python"
    python.symlink_to(Path(sys.executable).resolve())
    for name, text in (("cca-dynamics", CLIENT), ("snakemake", SNAKEMAKE)):
        (programs / name).write_text(text.format(python=python, address=str(address)))
        (programs / name).chmod(0o755)
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}  # as Snakemake tells jobs of one thread
    process = subprocess.Popen([sys.executable, __file__, address], env=variables, stdout=subprocess.PIPE)
    process.stdout.readline()
    return programs, process


def serve(address: str) -> None:
    """Import what jobs import, then run each job in a copy of this process."""
    for name in PACKAGES:
        import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            run(connection)
        connection.close()


def run(connection: socket.socket) -> None:
    """Run one job and end this process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(connection, len(b"streams"), 3)
    text = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    job = json.loads(text)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.path[:1] = filter(None, [os.environ.get("PYTHONPATH")])
    sys.argv = ["cca-dynamics", *job["arguments"]]
    status = 1
    try:
        from cca_dynamics.cli import main

        status = main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(str(status).encode())
        os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
