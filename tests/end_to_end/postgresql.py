"""Start a PostgreSQL server for a test: binaries of Debian's package, a free port, a temporary folder."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
BINARIES = next((folder for folder in reversed(_FOLDERS) if (folder / "initdb").is_file()), None)
WHY_NOT = "needs PostgreSQL's initdb and pg_ctl (Debian: apt-get install postgresql)"


def _run(*command: str) -> None:
    """Run a command, as user postgres if this is root: PostgreSQL refuses to run as root."""
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    subprocess.run([*prefix, *command], check=True, capture_output=True, cwd="/")


@contextmanager
def postgresql(*databases: str) -> Iterator[str]:
    """Run a server with these databases during the block; yields `USER@HOST:PORT`."""
    assert BINARIES is not None
    folder = Path(tempfile.mkdtemp(prefix="qamoe-postgresql-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        _run(f"{BINARIES}/initdb", "-D", f"{folder}/data", "-U", "qamoe", "--auth", "trust", "-E", "UTF8")
        settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        _run(f"{BINARIES}/pg_ctl", "-D", f"{folder}/data", "-l", f"{folder}/log", "-o", settings, "-w", "start")
        try:
            for name in databases:
                _run(f"{BINARIES}/createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "qamoe", name)
            yield f"qamoe@127.0.0.1:{port}"
        finally:
            _run(f"{BINARIES}/pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
