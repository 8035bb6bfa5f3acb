"""Leads every measurement of a job queue, in the environment of who is measured: `python -m workers.jobs PEER CASE`.

Each system has a module `jobs_NAME`: how its workers are started, what they run, and who enqueues. This starts the
workers and looks at the marks of their handlers (`jobs_marks`), and at nothing else: no query slows the database
down. The clock runs from the moment when the first job began until the last one has begun, which for jobs that do
nothing is its end; that every job was run, and run once, is counted after all processes have ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from .leading import free_port, main, percentile, wait_for

FOLDER = Path(__file__).parents[1]
PATIENCE = 20.0
"""Seconds in which no job is run after which the rest counts as lost."""
LOOK = 0.05
"""Seconds between two looks at the marks."""
AFTERWARDS = 0.3
"""Seconds in which a job may turn up a second time."""
BATCH = 1_000
"""Jobs that are enqueued by one call."""
BACKLOG = {"ours": 50_000, "pgqueuer": 30_000, "dramatiq": 10_000, "celery": 3_000, "procrastinate": 1_500}
BACKLOG_SQLITE = {"ours": 50_000, "huey": 6_000}
"""Jobs that there are at first: for who is slower than we are fewer, which take it some seconds as well."""
STEADY = 2_000, 20_000
"""Jobs that wait at first, and at most, while a producer enqueues."""
SETTLED = 6.0
"""Seconds after which a producer knows of a dispatcher that was started after it: it asks every 5 s."""
PR_SET_PDEATHSIG = 1


class Leader:
    """One measurement: a server for it if it needs one, room for the marks of so many jobs, the module of who is
    measured, and the processes that are started. Use it as a context manager."""

    def __init__(self, system: str, uri: str, count: int, server: str | None = None) -> None:
        self._system = system
        self._uri = uri
        self._count = count
        self._server = server
        self.connections = 0
        """The most that there were to the server at one moment, without those of this process and of a producer."""

    def __enter__(self) -> Leader:
        self._stack = contextlib.ExitStack()
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="pysqlx-bench-")))
        (directory / "marks").mkdir()
        os.environ |= {"JOBS_MARKS": str(directory / "marks"), "JOBS_COUNT": str(self._count), "JOBS_URI": self._uri}
        if self._server == "sqlite":
            os.environ["JOBS_URI"] = f"sqlite:{directory / 'jobs.db'}"
        elif self._server == "redis":
            os.environ["JOBS_URI"] = self._redis(directory)
        self._port = urlsplit(os.environ["JOBS_URI"]).port
        self.module: ModuleType = importlib.import_module(f"workers.jobs_{self._system}")
        self.marks: ModuleType = importlib.import_module("workers.jobs_marks")
        asyncio.run(self.module.prepare())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _redis(self, directory: Path) -> str:
        """A server that writes nothing to the disk: nothing is faster."""
        port = free_port()
        options = [
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(directory),
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self._stack.enter_context(running(["redis-server", *options]))
        wait_for(port)
        return f"redis://127.0.0.1:{port}/0"

    @contextlib.contextmanager
    def workers(self, *arguments: Any, **environment: str) -> Iterator[None]:
        """Who runs jobs. At the end of this all of them have ended."""
        with contextlib.ExitStack() as stack:
            for command in self.module.commands(*arguments):
                stack.enter_context(running(command, **environment))
            yield

    @contextlib.contextmanager
    def producer(self, most: int) -> Iterator[subprocess.Popen[bytes]]:
        """Who enqueues jobs, a batch whenever fewer than `most` wait."""
        command = [sys.executable, "-m", "workers.jobs_producer", self._system, str(most)]
        with running(command, stdout=subprocess.PIPE) as process:
            yield process

    def wait(self, jobs: int, until: float = math.inf, pause: float = LOOK, besides: int | None = None) -> None:
        """Until so many jobs have run, or this moment. Raises TimeoutError when nothing happens."""
        seen, since = -1, time.monotonic()
        while (runs := self.marks.runs()) < jobs and (now := time.monotonic()) < until:
            if runs > seen:
                seen, since = runs, now
            elif now - since > PATIENCE:
                if runs == 0:
                    raise TimeoutError("no job was run")
                return
            self.count_connections(besides)
            time.sleep(pause)

    def count_connections(self, besides: int | None = None) -> None:
        if self._port is not None:
            mine = _sockets(os.getpid()) | (set() if besides is None else _sockets(besides))
            self.connections = max(self.connections, len(_connected(self._port) - mine))

    def begun(self) -> list[float]:
        """When jobs have begun, in order."""
        return sorted(moment for marks in self.marks.everybody() for moment in marks.begun if moment)

    def outcome(self, figure: float, enqueued: int) -> dict[str, float]:
        """To be called when all has ended."""
        runs = [0] * self._count
        for marks in self.marks.everybody():
            for number, times in enumerate(bytes(marks.runs)):
                if times:
                    runs[number] += times
        lost = enqueued - sum(times > 0 for times in runs)
        outcome = {"figure": figure, "lost": lost, "twice": sum(times > 1 for times in runs)}
        return outcome if self._port is None else outcome | {"connections": self.connections}


@contextlib.contextmanager
def running(command: Sequence[str], stdout: Any = None, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process, and what it starts itself: ended with TERM at the end, or when this process dies."""
    process = subprocess.Popen(
        command,
        cwd=FOLDER,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if stdout is None else stdout,  # what is printed here is the figure
        start_new_session=True,
        preexec_fn=_end_with_parent,  # noqa: PLW1509 - there are no threads here
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _connected(port: int) -> set[str]:
    """The sockets of this host that are connected to a port, seen from the client's side."""
    found: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "01" and int(fields[2].rpartition(":")[2], 16) == port:
                    found.add(fields[9])
    return found


def _sockets(pid: int) -> set[str]:
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(descriptor.path)
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


# -- the cases --------------------------------------------------------------------------------------------------------


async def _fill(module: ModuleType, count: int) -> None:
    async with module.producer() as producer:
        for first in range(0, count, BATCH):
            await producer.many(range(first, min(first + BATCH, count)))


def drain(system: str, server: str, uri: str, seconds: float) -> dict[str, float]:
    """Jobs per second until a backlog is empty; of half as many jobs where little time is wanted, but of ours."""
    count = (BACKLOG_SQLITE if server == "sqlite" else BACKLOG)[system]
    if seconds < 1.0 and system != "ours":
        count //= 2
    with Leader(system, uri, count, server) as leader:
        asyncio.run(_fill(leader.module, count))
        with leader.workers():
            leader.wait(count)
            time.sleep(AFTERWARDS)
        begun = leader.begun()
        return leader.outcome(len(begun) / (begun[-1] - begun[0]), count)


def produced(system: str, uri: str, seconds: float) -> dict[str, float]:
    """Jobs per second while a producer keeps the queue full, without ever having more than so many wait: what is
    enqueued is as much as is run. The first moments are not counted."""
    warm, window = 1.0, 2.0 + 2.0 * seconds
    with Leader(system, uri, 1_000_000) as leader:
        asyncio.run(_fill(leader.module, STEADY[0]))
        with leader.producer(STEADY[1]) as producer, leader.workers():
            leader.wait(STEADY[0], besides=producer.pid)
            since = time.monotonic() + warm
            leader.wait(1_000_000, until=since + window, besides=producer.pid)
            producer.terminate()
            assert producer.stdout is not None
            enqueued = int(producer.stdout.read())
            leader.wait(enqueued)
            time.sleep(AFTERWARDS)
        rate = sum(since <= moment < since + window for moment in leader.begun()) / window
        return leader.outcome(rate, enqueued)


def enqueue(system: str, uri: str, seconds: float, batch: int) -> dict[str, float]:
    """Jobs per second that one task enqueues, while nobody runs any."""

    async def measure(module: ModuleType) -> float:
        async with module.producer() as producer:
            await producer.one(0)
            done, started = 0, time.monotonic()
            until = started + 2.0 + 2.0 * seconds
            while (now := time.monotonic()) < until:
                if batch > 1:
                    await producer.many(range(done, done + batch))
                else:
                    await producer.one(done)
                done += batch
            return done / (now - started)

    with Leader(system, uri, 1) as leader:
        return {"figure": asyncio.run(measure(leader.module))}


def latency(uri: str, seconds: float, percent: float) -> dict[str, float]:
    """Seconds from the call of `enqueue` until the handler begins, where nothing else happens: one job at a time, at
    irregular intervals. So the INSERT and its COMMIT are in it."""
    warm, count = 20, 300 if seconds < 1.0 else 1_000
    called: list[float] = []

    async def enqueue_all(leader: Leader) -> None:
        chance = random.Random(7)
        async with leader.module.producer() as producer:
            for number in range(warm + count):
                if number == warm:
                    leader.wait(warm)  # by then everybody has started
                    await asyncio.sleep(SETTLED)
                await asyncio.sleep(chance.uniform(0.005, 0.02))
                called.append(time.monotonic())
                await producer.one(number)

    with Leader("ours", uri, warm + count) as leader:
        with leader.workers():
            asyncio.run(enqueue_all(leader))
            leader.wait(warm + count)
            time.sleep(AFTERWARDS)
        begun = [0.0] * (warm + count)
        for marks in leader.marks.everybody():
            begun = [max(one, other) for one, other in zip(begun, marks.begun, strict=True)]
        waits = [end - start for start, end in zip(called, begun, strict=True) if end]
        return leader.outcome(percentile(waits[warm:], percent), warm + count)


def connections(uri: str, seconds: float) -> dict[str, float]:
    """The most connections at one moment, of 8 workers that may each run 50 jobs at a time, each of which queries."""
    count = 2_000 if seconds < 1.0 else 5_000
    with Leader("ours", uri, count) as leader:
        asyncio.run(leader.module.queries(range(count)))
        with leader.workers(8, JOBS_CONCURRENCY="50"):
            leader.wait(count, pause=0.002)
        return leader.outcome(leader.connections, count)


SYSTEMS = {"pgqueuer", "procrastinate", "dramatiq", "celery", "huey"}
SERVERS = {"dramatiq": "redis", "celery": "redis"}
CASES: dict[str, Callable[[str, str, float], dict[str, float]]] = {
    "jobs-drain": lambda peer, uri, seconds: drain(peer, SERVERS.get(peer, "postgresql"), uri, seconds),
    "jobs-producer": produced,
    "jobs-sqlite": lambda peer, uri, seconds: drain(peer, "sqlite", uri, seconds),
    "jobs-enqueue-many": lambda peer, uri, seconds: enqueue(peer, uri, seconds, BATCH),
    "jobs-enqueue-one": lambda peer, uri, seconds: enqueue(peer, uri, seconds, 1),
    "jobs-latency-p50": lambda peer, uri, seconds: latency(uri, seconds, 50.0),
    "jobs-latency-p99": lambda peer, uri, seconds: latency(uri, seconds, 99.0),
    "jobs-connections": lambda peer, uri, seconds: connections(uri, seconds),
}


def measure(peer: str, case: str, uri: str, seconds: float) -> dict[str, float]:
    case = "jobs-drain" if peer == "drained" else case  # the same in another case
    return CASES[case](peer if peer in SYSTEMS else "ours", uri, seconds)


if __name__ == "__main__":
    main(measure)
