"""An environment in which `snakemake` and `cca-dynamics` start at once, for tests that run them often.

Most of the time of a dry run and of a small job goes into importing packages. Here one process has imported them, and
the two programs of the environment ask that process for a copy of itself (fork), which runs as the real program would:
with the same arguments, folder, environment and streams, and the same code of ours, that of PYTHONPATH. Packages other
than ours are shared. A signal to such a program does not reach its copy: tests of signals use the real programs.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path

MAIN = {"snakemake": "snakemake.cli", "cca-dynamics": "cca_dynamics.cli"}
"""Program → the module whose function `main` it calls."""
PACKAGES = (
    "snakemake.cli",
    "sqlalchemy.dialects.sqlite",
    "pulp",
    "torch",
    "pandas",
    "pyarrow.parquet",
    "scipy.stats",
    "matplotlib.pyplot",
    "seaborn",
    "pydantic",
    "safetensors",
)
"""What they import."""
CLIENT = """#!{python} -SE
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
socket.send_fds(connection, [b"streams"], [0, 1, 2])
call = {{"program": sys.argv[0], "arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
connection.sendall(json.dumps(call).encode())
connection.shutdown(socket.SHUT_WR)
sys.exit(int(connection.recv(16) or 1))
"""


@functools.cache
def programs() -> Path:
    """Make the environment, with the packages of this one, and start its process, which ends with this one.

    Returns:
        The environment's folder of programs.
    """
    folder = Path(tempfile.mkdtemp(prefix="env"))  # a socket's path is short
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    programs, address = folder / "bin", folder / "socket"
    programs.mkdir(parents=True)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder)
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    python = programs / "python"
    python.symlink_to(Path(sys.executable).resolve())
    for name in MAIN:
        (programs / name).write_text(CLIENT.format(python=python, address=str(address)))
        (programs / name).chmod(0o755)
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}  # as Snakemake tells jobs of one thread
    process = subprocess.Popen([sys.executable, __file__, address], env=variables, stdout=subprocess.PIPE)
    atexit.register(process.terminate)
    process.stdout.readline()
    return programs


def serve(address: str) -> None:
    """Import the packages, then run each call of a program in a copy of this process."""
    for name in PACKAGES:
        import_module(name)
    share_bytecode()
    gc.collect()
    gc.freeze()  # a copy need not look again at what is there already
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


def share_bytecode() -> None:
    """Compile our code once: a module of a working copy with the same text gets the same bytecode."""
    compiled = {}
    for path in (Path(__file__).parents[1] / "workflow").rglob("*.py"):
        text = path.read_bytes()
        compiled[text] = compile(text, path, "exec", dont_inherit=True)
    source_to_code = SourceFileLoader.source_to_code

    def shared(loader, text, path, **options):
        return compiled.get(bytes(text)) or source_to_code(loader, text, path, **options)

    SourceFileLoader.source_to_code = shared


def run(connection: socket.socket) -> None:
    """Run one call and end this process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(connection, len(b"streams"), 3)
    text = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    call = json.loads(text)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["environment"])
    sys.path[:1] = filter(None, [os.environ.get("PYTHONPATH")])
    program = Path(call["program"])
    sys.argv = [str(program), *call["arguments"]]
    sys.executable = str(program.with_name("python"))  # beside which Snakemake looks for our program
    status = 1
    try:
        status = import_module(MAIN[program.name]).main()
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
