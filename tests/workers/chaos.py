"""A run of workers under load, whose processes are killed and stopped at random, and an account of what came of it.

What happens is planned before anything starts, from a seed, so that it can be repeated. A pid may be given again, so
every signal goes through a pidfd.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers import Database, Session

from .runs import Run, started

BUDGET = 12
WORKERS = 6
SETTLE = 45.0
"""Seconds within which everything has to work again after the last fault: more than anybody may wait for a connection,
so that a waiter who was forgotten shows as a failure of its own."""
INTERVAL = 0.002
ROUND = ("kill worker", "kill worker", "stop worker", "stop worker", "stop coordinator", "ambush", "kill coordinator")
"""Faults come in rounds, each in an order of its own, so that a short run has all kinds as well. An ambush kills
workers just before a stopped coordinator goes on: it has not read yet what they told it last, and others wait for what
they held."""
MOST_KILLS = 7
"""Of one process in a run. With each the supervisor waits longer before it starts the next, and gives up at 10."""


@dataclass(frozen=True, order=True)
class Fault:
    at: float
    """Seconds after the beginning."""
    kind: str
    who: str
    lasts: float = 0.0
    """Seconds until a process that was stopped goes on."""


def plan(seed: int, seconds: float) -> list[Fault]:
    """What is done to whom, about once a second; every fifth on the heels of the one before."""
    chance = random.Random(seed)
    faults: list[Fault] = []
    kills: collections.Counter[str] = collections.Counter()
    kinds: list[str] = []

    def add(at: float, action: str, who: str) -> None:
        if action == "kill" and kills[who] < MOST_KILLS:
            kills[who] += 1
            faults.append(Fault(at, action, who))
        else:
            lasts = chance.choice([chance.uniform(0.05, 0.3), chance.uniform(0.05, 3.0)])
            faults.append(Fault(at, "stop", who, lasts))

    at = 0.0
    while True:
        at += chance.uniform(0.0, 0.1) if faults and chance.random() < 0.2 else chance.uniform(0.7, 1.5)
        if at > seconds:
            return sorted(faults)
        if not kinds:
            kinds = chance.sample(ROUND, len(ROUND))
        action, _, whom = kinds.pop().partition(" ")
        if action == "ambush":
            lasts = chance.uniform(0.3, 0.8)
            faults.append(Fault(at, "stop", "coordinator", lasts))
            for worker in chance.sample(range(WORKERS), 2):
                add(at + lasts - chance.uniform(0.005, 0.06), "kill", f"worker {worker}")
            at += lasts
        else:
            add(at, action, whom if whom == "coordinator" else f"worker {chance.randrange(WORKERS)}")


@dataclass
class Watch:
    """What the server said, every few milliseconds."""

    seen: collections.Counter[int] = field(default_factory=collections.Counter)
    changes: list[tuple[float, int]] = field(default_factory=list)
    """Since when there were how many sessions."""
    too_many: list[tuple[float, list[Session]]] = field(default_factory=list)

    _looked: threading.Condition = field(default_factory=threading.Condition)
    _latest: tuple[float, int] = (0.0, -1)
    longest_pause: float = 0.0
    """Seconds between two looks at most: how long the whole machine stood still, or nearly."""

    def add(self, at: float, sessions: list[Session]) -> None:
        """A look that began at `at`."""
        count = len(sessions)
        with self._looked:
            if self._latest[0]:
                self.longest_pause = max(self.longest_pause, at - self._latest[0])
            if count != self._latest[1]:
                self.changes.append((at, count))
            self.seen[count] += 1
            self._latest = at, count
            if count > BUDGET:
                self.too_many.append((at, sessions))
            self._looked.notify_all()

    def count_after(self, moment: float) -> int:
        """How many there were at the first look after `moment`."""
        with self._looked:
            assert self._looked.wait_for(lambda: self._latest[0] >= moment, 10.0), "nobody looks any more"
            return self._latest[1]

    def full_again(self, moment: float) -> float | None:
        """Seconds from `moment` until the whole budget was in use again after less than that was; None where it never
        was less within a second."""
        less = False
        for at, count in self.changes:
            if at < moment or (not less and at > moment + 1.0):
                continue
            if count >= BUDGET and less:
                return at - moment
            less = less or count < BUDGET
        return None


@contextlib.contextmanager
def watching(database: Database) -> Iterator[Watch]:
    watch, stop = Watch(), threading.Event()

    def look() -> None:
        with database.sessions() as sessions:
            while not stop.is_set():
                now = time.monotonic()
                watch.add(now, sessions())
                time.sleep(INTERVAL)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield watch
    finally:
        stop.set()
        watcher.join()


class Target:
    """A process of the run that signals are sent to."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def send(self, number: signal.Signals) -> bool:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        os.close(self._pidfd)


def find(run: Run, who: str) -> Target | None:
    """The living process that is called so; None while there is none."""
    try:
        pid = run.pid_titled(f"pysqlx-run: {who}")
        return Target(pid)
    except (AssertionError, OSError):
        return None


@dataclass
class Outcome:
    """What came of a run."""

    seed: int
    provider: str
    done: collections.Counter[str] = field(default_factory=collections.Counter)
    """How often each kind of fault was done, or missed because the process was away."""
    killed: dict[int, tuple[str, float]] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)
    queries: int = 0
    cancelled: int = 0
    cut: int = 0
    """Queries whose process was killed under them."""
    lost: list[str] = field(default_factory=list)
    """Queries that neither ended nor failed, of processes that were not killed."""
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    died: list[str] = field(default_factory=list)
    """Processes that came to another end than the drain, and were not killed."""
    longest: float = 0.0
    """Seconds from the begin of a query, before its check-out, to its end: the longest."""
    status: dict[str, Any] = field(default_factory=dict)
    """The run's own, after the load."""
    sessions_after_load: int = -1
    took: list[str] = field(default_factory=list)
    """The workers that had the whole budget after that."""
    exit_status: int | None = None
    said: list[str] = field(default_factory=list)
    """The run's output, but for what it has to say about the faults."""

    def summary(self) -> str:
        again = [took for _, at in self.killed.values() if (took := self.watch.full_again(at)) is not None]
        times = f"median {statistics.median(again) * 1000:.0f} ms, most {max(again) * 1000:.0f} ms" if again else "-"
        lines = [
            f"chaos on {self.provider}, seed {self.seed}: {dict(sorted(self.done.items()))}",
            f"  sessions: at most {max(self.watch.seen, default=0)} of {BUDGET}; {self.watch.seen.total()} looks, "
            f"at most {self.watch.longest_pause:.2f} s apart: {sorted(self.watch.seen.items())}",
            f"  queries: {self.queries} ended, {self.cancelled} cancelled, {self.cut} cut by kills, "
            f"{len(self.failed)} failed, {len(self.wrong)} wrong, {len(self.lost)} lost; "
            f"the longest took {self.longest:.2f} s",
            f"  from a kill until the whole budget was in use again ({len(again)} times seen): {times}",
        ]
        for name in ("failed", "wrong", "lost", "died", "said"):
            lines += [f"  {name}: {line}" for line in getattr(self, name)[:20]]
        for at, sessions in self.watch.too_many[:3]:  # there is one every few milliseconds
            kills = ", ".join(
                f"{who} (pid {pid}) {at - moment:.3f} s before"
                for pid, (who, moment) in self.killed.items()
                if 0 <= at - moment < 5
            )
            lines.append(f"  {len(sessions)} sessions at {at:.4f}; killed: {kills or 'nobody'}")
            lines += ["    " + " ".join(f"{name}={session[name]}" for name in sorted(session)) for session in sessions]
        return "\n".join(lines)


def chaos(directory: Path, database: Database, seed: int, seconds: float) -> Outcome:
    """Run it, and give the account. Raises AssertionError where something is waited for in vain."""
    outcome = Outcome(seed, database.provider)
    name = f"chaos-{database.provider}"
    script = Path(__file__).with_name("chaos_worker.py")
    began = time.monotonic()
    arguments = ("-w", str(WORKERS), "--max-size", str(BUDGET), "--name", name, str(script))
    output = directory / "output"
    with (
        output.open("wb") as stream,
        watching(database) as outcome.watch,
        started(
            directory, *arguments, database.uri, str(BUDGET), str(seed), repr(began), stdout=stream.fileno()
        ) as run,
    ):
        notes = _Notes(directory)
        try:
            _until("every worker has made a query", lambda: len(notes.workers_since(0.0)) == WORKERS)
            _torment(run, plan(seed, seconds), outcome)
            calm = time.monotonic()
            _until("every worker makes queries again", lambda: len(notes.workers_since(calm)) == WORKERS)
            (directory / "enough").touch()
            _until("every user has stopped", lambda: len(notes.resting()) == WORKERS)
            _until("the leases are the connections", lambda: _settled(directory, name, outcome))
            for worker in (0, 1):
                (directory / f"take-{worker}").touch()
                _until(f"worker {worker} has the whole budget", lambda w=worker: notes.took(w))  # type: ignore[misc]
                outcome.took.append(f"worker {worker}")
        except BaseException:
            print(_diagnosis(directory, name, run, output))
            print(outcome.summary())
            raise
        run.send(signal.SIGTERM)
        outcome.exit_status = run.wait()
        _until("the server has no session", lambda: outcome.watch.count_after(time.monotonic()) == 0, 2.0)
    notes.account(outcome)
    outcome.said = _unexpected(output)
    return outcome


def _torment(run: Run, faults: list[Fault], outcome: Outcome) -> None:
    """Do what was planned. Afterwards nobody is stopped any more."""
    began = time.monotonic()
    stopped: list[tuple[float, int, Target]] = []  # a heap, by the moment to go on
    todo = collections.deque(faults)
    while todo or stopped:
        moment = min([began + todo[0].at] if todo else [], default=float("inf"))
        if stopped and stopped[0][0] <= moment:
            at, _, target = heapq.heappop(stopped)
            time.sleep(max(0.0, at - time.monotonic()))
            target.send(signal.SIGCONT)
            target.close()
            continue
        time.sleep(max(0.0, moment - time.monotonic()))
        fault = todo.popleft()
        target = find(run, fault.who)  # type: ignore[assignment]
        number = signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP
        if target is None or not target.send(number):
            outcome.done[f"missed: {fault.kind} {fault.who.split()[0]}"] += 1
            continue
        now = time.monotonic()
        outcome.done[f"{fault.kind} {fault.who.split()[0]}"] += 1
        if fault.kind == "kill":
            outcome.killed[target.pid] = (fault.who, now)
            target.close()
        else:
            heapq.heappush(stopped, (now + fault.lasts, target.pid, target))


def _settled(directory: Path, name: str, outcome: Outcome) -> bool:
    """Whether the coordinator, the processes and the server agree on what there is."""
    outcome.status = status = _status(directory, name)
    outcome.sessions_after_load = outcome.watch.count_after(time.monotonic())
    (budget,) = status["budgets"]
    return (
        len(status["workers"]) == WORKERS
        and budget["quarantined"] == budget["waiting"] == budget["in_use"] == 0
        and budget["leased"] == budget["idle"] == outcome.sessions_after_load
    )


def _status(directory: Path, name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "pysqlx_engine.workers.ctl", "status", "--json", "--name", name]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(directory)}
    answer = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=20)
    assert answer.returncode == 0, answer.stderr.decode()
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


class _Notes:
    """What the workers have written down, see chaos_worker.py."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def workers_since(self, moment: float) -> set[int]:
        """The workers that have had an answer to a query begun after `moment`."""
        found = set()
        for worker, _, path in self._files():
            begun = set()
            for kind, token, at, *_ in _lines(path):
                if kind == "begin" and float(at) >= moment:
                    begun.add(token)
                elif kind == "end" and token in begun:
                    found.add(worker)
                    break
        return found

    def resting(self) -> set[int]:
        return {worker for worker, _, path in self._files() if any(kind == "rest" for kind, *_ in _lines(path))}

    def took(self, worker: int) -> bool:
        return any(kind == "took" for other, _, path in self._files() if other == worker for kind, *_ in _lines(path))

    def account(self, outcome: Outcome) -> None:
        for worker, pid, path in self._files():
            who = f"worker {worker} (pid {pid})"
            open_since: dict[str, float] = {}
            kinds = set()
            for kind, *rest in _lines(path):
                kinds.add(kind)
                if kind in {"rest", "took", "left"}:
                    continue
                token, at = rest[0], float(rest[1])
                if kind == "begin":
                    open_since[token] = at
                    continue
                outcome.longest = max(outcome.longest, at - open_since.pop(token, at))
                if kind in {"end", "cancelled"}:
                    outcome.queries += kind == "end"
                    outcome.cancelled += kind == "cancelled"
                else:
                    (outcome.wrong if kind == "wrong" else outcome.failed).append(" ".join([who, kind, *rest]))
            if pid in outcome.killed:
                outcome.cut += len(open_since)
            else:
                outcome.lost += [f"{who} {token} begun at {at}" for token, at in open_since.items()]
                if "left" not in kinds:
                    outcome.died.append(who)

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        for path in sorted(self._directory.glob("notes-*")):
            _, worker, pid = path.name.split("-")
            yield int(worker), int(pid), path


def _lines(path: Path) -> Iterator[list[str]]:
    """Whole lines, as words."""
    text, _, _ = path.read_text().rpartition("\n")
    return (line.split(" ") for line in text.splitlines())


_EXPECTED = (
    # What the run has to say about the faults themselves.
    "was ended by signal 9 (SIGKILL); starting it again in",
    "draining: ",
    "Pool: the coordinator is gone; open connections go on working",
    "has not reported; what it held stays charged",
    # Stopped for longer than the driver's connect_timeout, in pieces, or with the whole machine. Nobody sees an error.
    "Timed out when connecting to the database",
)


def _unexpected(output: Path) -> list[str]:
    lines = output.read_text(errors="replace").splitlines()
    return [line for line in lines if not any(expected in line for expected in _EXPECTED)]


def _until(what: str, condition: Callable[[], bool], timeout: float = SETTLE) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"it never happened within {timeout:.0f} s that {what}"
        time.sleep(0.05)


def _diagnosis(directory: Path, name: str, run: Run, output: Path) -> str:
    """What can be learnt of a run that hangs."""
    parts = ["output of the run:", output.read_text(errors="replace")]
    with contextlib.suppress(Exception):
        parts.append(json.dumps(_status(directory, name)))
    for worker in range(WORKERS):
        target = find(run, f"worker {worker}")
        if target is not None:
            target.send(signal.SIGUSR1)  # it writes down where its threads are
            time.sleep(0.5)
            stacks = directory / f"stacks-{worker}-{target.pid}"
            parts += [f"worker {worker}:", stacks.read_text() if stacks.exists() else "has not begun"]
            target.close()
    return "\n".join(parts)
