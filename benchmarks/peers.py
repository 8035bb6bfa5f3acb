"""Who is measured, in which versions, and the virtual environment that each has to itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cases import Case

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
ENVIRONMENTS = ROOT / ".venv-bench"
INSTALL_TIMEOUT = 600.0
WORKER_GRACE = 120.0
"""Seconds that a worker gets beyond those it measures, before it counts as hung."""


class PeerError(Exception):
    """A peer could not be installed, or its worker gave no figure. The text says why, in one line."""


@dataclass(frozen=True)
class Peer:
    name: str
    title: str
    environment: str
    """Its folder under .venv-bench. Those that are part of this repository share one."""
    requirements: tuple[str, ...] = field(repr=False)
    program: str | None = None
    """What else it needs, which pip does not install: the name of a program and of its Debian package."""

    @property
    def python(self) -> Path:
        return ENVIRONMENTS / self.environment / "bin" / "python"

    def install(self) -> None:
        """Build its environment, unless it is there with these very requirements. Raises PeerError."""
        stamp = ENVIRONMENTS / self.environment / ".installed"
        wanted = "\n".join([sys.version, *self.requirements])
        if ROOT.as_posix() in self.requirements:
            wanted += (ROOT / "pyproject.toml").read_text()
        if stamp.exists() and stamp.read_text() == wanted:
            return
        shutil.rmtree(stamp.parent, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(stamp.parent)], INSTALL_TIMEOUT)
        pip = [str(self.python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        _run([*pip, *self.requirements], INSTALL_TIMEOUT)
        stamp.write_text(wanted)

    def find_program(self) -> dict[str, str]:
        """Its program with the version that this states, if it needs one. Raises PeerError when it is not there."""
        if self.program is None:
            return {}
        found = shutil.which(self.program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if found is None:
            raise PeerError(f"there is no {self.program} (apt-get install {self.program})")
        version = re.search(r"\d+(\.\d+)+", _run([found, "--version"], 60.0))
        return {self.program: version.group() if version else "unknown"}

    def versions(self) -> dict[str, str]:
        """What is installed beside the tools that every environment has."""
        listed = _run([str(self.python), "-m", "pip", "--disable-pip-version-check", "list", "--format=json"], 60.0)
        packages = {package["name"].lower(): package["version"] for package in json.loads(listed)}
        return {name: version for name, version in packages.items() if name not in {"pip", "setuptools", "wheel"}}

    def measure(self, case: Case, uri: str, seconds: float) -> tuple[float, dict[str, int]]:
        """Its figure in `case`, from a process of its own, and what has to be seen beside it. Raises PeerError."""
        if case.name == "import":
            command = ["-I", "-c", (HERE / "workers" / "importing.py").read_text()]
        else:
            worker = [f"workers.{case.module}", self.name] if case.module else [f"workers.{self.name}"]
            command = ["-m", *worker, case.name, "--uri", uri, "--seconds", str(seconds)]
        output = _run([str(self.python), *command], seconds + WORKER_GRACE)
        beside: dict[str, Any] = json.loads(output.splitlines()[-1])
        figure: float = beside.pop("figure")
        return figure, beside


_OURS = ("--editable", ROOT.as_posix())
_PSYCOPG = "psycopg[binary]==3.3.9"
_ASYNCPG = "asyncpg==0.32.0"

PEERS = {
    peer.name: peer
    for peer in (
        Peer("ours", "pysqlx_engine, this repository", "ours", _OURS),
        Peer("bare", "bare deque", "ours", _OURS),
        Peer("driver", "the driver alone", "ours", _OURS),
        Peer("fixed", "a fixed part each", "ours", _OURS),
        Peer("pgbouncer", "PgBouncer, session mode", "ours", _OURS, program="pgbouncer"),
        Peer("echo", "ZeroMQ alone, echoes", "ours", _OURS),
        Peer("reopening", "close and connect alone", "ours", _OURS),
        Peer("old", "pysqlx-engine 0.3.2", "old", ("pysqlx-engine==0.3.2",)),
        Peer("psycopg", "psycopg_pool", "psycopg", (_PSYCOPG, "psycopg-pool==3.3.3")),
        Peer("asyncpg", "asyncpg", "asyncpg", (_ASYNCPG,)),
        Peer("sqlalchemy", "SQLAlchemy", "sqlalchemy", ("sqlalchemy[asyncio]==2.1.9", _ASYNCPG, _PSYCOPG)),
        Peer("drained", "the backlog alone", "ours", _OURS),
        Peer("few", "beside 1,000 that wait", "ours", _OURS),
        Peer("pgqueuer", "pgqueuer, batches of 100", "pgqueuer", ("pgqueuer==1.6.0", _ASYNCPG, "uvloop==0.23.0")),
        Peer("procrastinate", "procrastinate", "procrastinate", ("procrastinate==3.10.0", _PSYCOPG)),
        Peer("dramatiq", "dramatiq on Redis", "dramatiq", ("dramatiq[redis]==2.2.1",), program="redis-server"),
        Peer("celery", "Celery on Redis", "celery", ("celery[redis]==5.7.0",), program="redis-server"),
        Peer("huey", "huey on SQLite", "huey", ("huey==3.5.4",)),
    )
}


def _run(command: list[str], timeout: float) -> str:
    """The output of `command`. It sees nothing of our PYTHON... and PYSQLX_... variables: a PYTHONPATH, say, would have
    the old version measured with the new one's code."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYSQLX_"))}
    try:
        done = subprocess.run(
            command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise PeerError(f"gave no answer within {timeout:.0f} s") from None
    except OSError as error:
        raise PeerError(str(error)) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise PeerError(f"status {done.returncode}: {lines[-1]}")
    return done.stdout
