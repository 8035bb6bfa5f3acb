"""What the measurements of several processes have in common: a leader that starts them all, and a word with each.

A leader is run like any other worker, in the environment of this repository. What it starts dies with it, so that
nothing is left when it is ended for taking too long.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pysqlx_engine.workers.process import die_with

from . import leading

TIMEOUT = 60.0
"""Seconds in which a process has to join, and to answer whatever it is asked. Far more than it should take."""
FOLDER = Path(__file__).parents[1]


class Member:
    """A conversation with one process, from either end: a line of JSON each way."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(TIMEOUT)
        self._connection = connection
        self._lines = connection.makefile()

    def say(self, **words: Any) -> None:
        self._connection.sendall(json.dumps(words).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        """What the other end says next. Raises EOFError when it is gone."""
        line = self._lines.readline()
        if not line:
            raise EOFError("the other process is gone")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def ask(self, **words: Any) -> dict[str, Any]:
        self.say(**words)
        return self.hear()

    def fileno(self) -> int:
        """Readable when the other end has said something, or is gone."""
        return self._connection.fileno()

    def close(self) -> None:
        self._lines.close()
        self._connection.close()


def join(path: str, **words: Any) -> Member:
    """Called by a member: reach its leader, and say who it is."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    leader = Member(connection)
    leader.say(pid=os.getpid(), **words)
    return leader


class Leader:
    """Where members join. Use it as a context manager; it has a private directory to itself."""

    def __enter__(self) -> Leader:
        self._stack = contextlib.ExitStack()
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="pysqlx-bench-")))
        self.path = str(self.directory / "leader.sock")
        self._listener = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        self._listener.bind(self.path)
        self._listener.listen(128)
        self._listener.settimeout(TIMEOUT)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a process that is ended with TERM at the end, or that has ended by itself by then."""
        return self._stack.enter_context(running(command, environment))

    def start_module(self, module: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        return self.start(sys.executable, "-m", f"workers.{module}", *arguments, **environment)

    def accept(self) -> tuple[Member, dict[str, Any]]:
        """The next one that joins, and what it says of itself."""
        connection, _ = self._listener.accept()
        member = Member(connection)
        self._stack.callback(member.close)  # before its process is waited for: it ends when nobody speaks to it
        return member, member.hear()

    def members(self, count: int) -> list[Member]:
        return [self.accept()[0] for _ in range(count)]


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: dict[str, str], user: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        cwd=FOLDER,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,  # what the leader prints is its figure
        user=user,
        preexec_fn=functools.partial(die_with, os.getpid()),  # noqa: PLW1509 - a leader has no threads
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Coordinator:
    """A coordinator alone, in a process of its own, for the processes of one leader."""

    def __init__(self, leader: Leader, max_size: int) -> None:
        directory = leader.directory / "run" / "bench"
        directory.mkdir(parents=True, mode=0o700)
        directory.parent.chmod(0o700)
        self.process = leader.start_module("fleet_coordinator", str(directory), str(max_size), leader.path)
        leader.accept()
        self.endpoint = f"ipc://{directory / 'coordinator.sock'}"

    def cpu_seconds(self) -> float:
        """Of all its threads, since it was started."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sleep_until(moment: float) -> None:
    """Until `time.monotonic()`, which is one clock for all processes of a host, says `moment`."""
    time.sleep(max(0.0, moment - time.monotonic()))


def main(measures: dict[tuple[str, str], Callable[[str, float], float]]) -> None:
    """Measure for the peer and in the case that the command line names; print the figure as JSON on the last line."""
    leading.main(lambda peer, case, uri, seconds: {"figure": measures[peer, case](uri, seconds)})
