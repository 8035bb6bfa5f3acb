"""The coordinator process: the thin shell around the lease ledger.

One loop over one poller: messages from processes, the deaths of processes, questions from `pysqlx-ctl`, signals, and a
few timers. Each event goes into the ledger; then what the ledger wants remembered is written to the journal, and then
what it wants said is sent. The coordinator opens no database connection and knows no password.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import zmq

from ..engine.sockets import ANSWERED_GRACE, CHECKED_GRACE, RESET_GRACE, Verdict, half_closed, server_session
from .control import ControlServer, Json, Reply
from .journal import Journal, Member
from .ledger import LOOK_AGAIN, Ledger, MemberId
from .messages import MAX_MESSAGE, VERSION, Ask, Hello, Unwelcome, Welcome, decode_from_process, encode
from .process import start_time
from .rundir import DatabaseClaims, RunDirectory, RunDirectoryError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

logger = logging.getLogger("pysqlx_engine")

LEARNING = 2.0
"""Seconds that a restarted coordinator waits for a member that lives but does not report, before it grants to others.
What the journal says of the silent one stays charged."""
RELAX = 0.05
"""Seconds that ceilings stay after the last waiter was served: moving a connection costs a close and a connect."""
ORPHAN_POLL = (0.002, 0.02)
"""Seconds between two looks at the kernel's sockets while a dead process's sessions are not known to be gone: at first,
and growing to the second."""
JOURNAL_AGAIN = 0.2
"""Seconds between two attempts to write the journal, while the disk is full."""
STATUS_WAIT = 0.25
"""Seconds that a status waits for the processes' latest reports."""


@dataclass(frozen=True)
class CoordinatorConfig:
    directory: str
    """The run's directory, see `rundir`."""
    max_size: int | None
    """The operator's budget for each database; None: what the scripts state."""
    name: str


@dataclass
class _Process:
    """A process that joined, or that the journal names."""

    pid: int
    started: int
    pidfd: int
    worker: int | None = None
    restarts: int = 0
    joined: float = field(default_factory=time.monotonic)


@dataclass
class _Status:
    """A question about the status, while the processes' reports come in."""

    reply: Reply
    deadline: float
    missing: set[tuple[MemberId, int]]


class Coordinator:
    def __init__(self, config: CoordinatorConfig) -> None:
        directory = RunDirectory(config.name, Path(config.directory))
        self._config = config
        self._epoch = secrets.randbits(32) | 1
        self._journal = Journal(directory.journal)
        self._claims = DatabaseClaims(directory)
        self._databases: set[str] = set()
        """Those that had a budget when it was last looked at."""
        self._ledger = Ledger(self._epoch, config.max_size, self._epoch << 31)
        self._processes: dict[MemberId, _Process] = {}
        self._by_pidfd: dict[int, MemberId] = {}
        self._half_closed: set[int] = set()
        """Orphaned leases whose connection was seen with the server's side still open."""
        self._vanished: dict[int, float] = {}
        """When an orphaned lease's connection was first seen to be missing."""
        self._orphans_due: float | None = None
        self._orphan_pause = ORPHAN_POLL[0]
        self._relax_due: float | None = None
        self._look_due: float | None = None
        self._learning_due: float | None = None
        self._journal_due: float | None = None
        """When to try again; None while the journal can be written."""
        self._expected: set[MemberId] = set()
        """Members that the journal names, that live, and that have not said hello yet."""
        self._questions: list[_Status] = []
        self._stopping = False
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a process that is gone is an error, not silence
        self._router.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a process that reconnects is the same process
        self._router.setsockopt(zmq.LINGER, 0)
        # No limit: a lease that is dropped on the way to a stopped process would be lost. What can pile up is bounded,
        # because a process is granted nothing while it does not answer.
        self._router.setsockopt(zmq.SNDHWM, 0)
        self._router.setsockopt(zmq.RCVHWM, 0)
        self._router.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        mask = os.umask(0o177)
        try:
            self._router.bind(f"ipc://{directory.socket}")
        finally:
            os.umask(mask)
        self._control = ControlServer(directory.control, self._answer)
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._control.fileno(), zmq.POLLIN)
        self._recover()

    # -- the loop -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        self._stopping = True

    def run(self, wake_fd: int) -> None:
        """Serve until `stop`; `wake_fd` becomes readable when a signal arrived."""
        self._poller.register(wake_fd, zmq.POLLIN)
        while not self._stopping:
            ready = self._poller.poll(self._timeout())
            # By name: a descriptor's number may be somebody else's by the time that the messages have been read.
            dead = [self._by_pidfd[source] for source, _ in ready if source in self._by_pidfd]
            self._ledger.now = time.monotonic()
            for source, _ in ready:
                if source is self._router:
                    self._receive()
                elif source == self._control.fileno():
                    self._control.handle_readable()
                elif source == wake_fd:
                    os.read(wake_fd, 4096)
            for member in dead:  # after what they had still said
                if member in self._processes:
                    self._died(member)
            self._run_timers()
            self._flush()
        self._control.close()
        self._router.close()
        self._context.term()
        self._journal.close()

    def _timeout(self) -> int | None:
        """Milliseconds until the next timer; None: there is none."""
        timers = (self._orphans_due, self._relax_due, self._look_due, self._learning_due, self._journal_due)
        due = [at for at in timers if at is not None]
        due += [question.deadline for question in self._questions]
        return max(0, round((min(due) - time.monotonic()) * 1000 + 0.5)) if due else None

    def _run_timers(self) -> None:
        now = self._ledger.now = time.monotonic()
        if self._learning_due is not None and (now >= self._learning_due or not self._expected):
            for member in self._ledger.silent_members():
                logger.warning("process %s has not reported; what it held stays charged", member)
            self._learning_due = None
            self._ledger.start_granting()
        if self._orphans_due is not None and now >= self._orphans_due:
            self._look_after_orphans(now)
        if not self._ledger.under_pressure:
            self._look_due = None
        elif self._look_due is None:
            self._look_due = now + LOOK_AGAIN
        elif now >= self._look_due:
            self._look_due = now + LOOK_AGAIN
            self._ledger.look_again()
        if not self._ledger.relaxable:
            self._relax_due = None
        elif self._relax_due is None:
            self._relax_due = now + RELAX
        elif now >= self._relax_due:
            self._relax_due = None
            self._ledger.relax()
        for question in [question for question in self._questions if not question.missing or now >= question.deadline]:
            self._questions.remove(question)
            question.reply(self._status())

    def _flush(self) -> None:
        """First remember, then say. What cannot be remembered waits with all that would be said after it."""
        ledger = self._ledger
        records, ledger.records = ledger.records, []
        self._journal.write(records)
        notices, ledger.notices = ledger.notices, []
        for notice in notices:
            logger.warning("%s", notice)
        if self._databases != ledger.budgets.keys():
            self._claim_databases()
        if not self._remember():
            return
        messages, ledger.outbox = ledger.outbox, []
        for member, message in messages:
            self._send(member, encode(message))

    def _remember(self) -> bool:
        """Write the journal; False when it cannot be written now."""
        now = time.monotonic()
        if self._journal_due is not None and now < self._journal_due:
            return False
        try:
            self._journal.flush()
        except OSError as error:
            if self._journal_due is None:
                logger.warning(
                    "cannot write the journal in %s: %s; open connections go on working, growth waits until it can be "
                    "written",
                    self._config.directory, error.strerror,
                )  # fmt: skip
            self._journal_due = now + JOURNAL_AGAIN
            return False
        if self._journal_due is not None:
            logger.warning("the journal can be written again")
            self._journal_due = None
        return True

    def _claim_databases(self) -> None:
        """Two coordinators for one database are two budgets, and their sum is what the server sees."""
        databases = set(self._ledger.budgets)
        for database in self._databases - databases:
            self._claims.release(database)
        for database in databases - self._databases:
            try:
                other = self._claims.claim(database)
            except (OSError, RunDirectoryError) as error:
                logger.warning("cannot look for other runs that use %s: %s", database, error)
                continue
            if other is not None:
                logger.warning(
                    "WARNING: the run %s has a budget for %s too: the two add up. Let its processes join this "
                    "coordinator, or these the other (PYSQLX_COORDINATOR).",
                    other, database,
                )  # fmt: skip
        self._databases = databases

    def _send(self, member: MemberId, data: bytes) -> None:
        # Fails only for a process that is gone: its death is told by its pidfd, and one that comes back says hello.
        with contextlib.suppress(zmq.ZMQError):
            self._router.send_multipart([member.encode(), data], zmq.NOBLOCK)

    # -- processes ------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        for _ in range(1000):  # then somebody else gets a turn
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                identity, data = frames
                member = identity.decode("ascii")
                message = decode_from_process(data)
            except (ValueError, msgspec.MsgspecError) as error:
                logger.warning("dropped a message that is none: %s", error)
                continue
            if isinstance(message, Hello):
                self._welcome(member, message)
            elif member in self._processes:
                self._ledger.take(member, message)
                for question in self._questions:
                    question.missing.discard((member, getattr(message, "pool", 0)))
            self._flush()

    def _welcome(self, member: MemberId, hello: Hello) -> None:
        if hello.version != VERSION:
            reason = f"the coordinator speaks version {VERSION} of the protocol, this process {hello.version}"
            self._send(member, encode(Unwelcome(self._epoch, reason)))
            return
        process = self._processes.get(member)
        if process is None:
            process = self._watch(member, hello.pid, hello.started)
            if process is None:
                reason = (
                    f"the coordinator sees no process {hello.pid} that started when this one did: "
                    "both have to be in one pid namespace"
                )
                self._send(member, encode(Unwelcome(self._epoch, reason)))
                return
            self._journal.joined(member, Member(hello.pid, hello.started))
            # A process has one link. That its pid has another member means that it has replaced itself (execv): the
            # connections of its former image are closed, and no death will tell.
            for other, its_process in list(self._processes.items()):
                if other != member and (its_process.pid, its_process.started) == (hello.pid, hello.started):
                    self._died(other)
        process.worker, process.restarts = hello.worker, hello.restarts
        self._expected.discard(member)
        # What could not be said yet is of before: what it claims now is what it holds.
        self._ledger.outbox = [(to, message) for to, message in self._ledger.outbox if to != member]
        self._send(member, encode(Welcome(self._epoch)))
        for pool in self._ledger.pools_of(member) - {claim.pool for claim in hello.pools}:
            self._ledger.detach((member, pool))
        for claim in hello.pools:
            self._ledger.attach(member, claim)

    def _watch(self, member: MemberId, pid: int, started: int) -> _Process | None:
        """Have the kernel tell when the process dies. None if it is dead, or the pid is somebody else's by now."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        if start_time(pid) != started:
            os.close(pidfd)
            return None
        self._poller.register(pidfd, zmq.POLLIN)
        self._by_pidfd[pidfd] = member
        process = self._processes[member] = _Process(pid, started, pidfd)
        return process

    def _died(self, member: MemberId) -> None:
        process = self._processes.pop(member)
        self._poller.unregister(process.pidfd)
        del self._by_pidfd[process.pidfd]
        os.close(process.pidfd)
        self._journal.left(member)
        self._expected.discard(member)
        for question in self._questions:
            question.missing = {key for key in question.missing if key[0] != member}
        self._ledger.dead(member)
        self._orphan_pause = ORPHAN_POLL[0]
        self._orphans_due = time.monotonic()

    def _recover(self) -> None:
        """Learn from the journal who may hold what. The living report by themselves; the dead left orphans."""
        recovered = self._journal.recovered
        alive = self._expected
        for database, (size, stated_by) in list(recovered.sizes.items()):
            self._ledger.recover_size(database, size, stated_by)
        for member, process in list(recovered.members.items()):
            if self._watch(member, process.pid, process.started) is not None:
                alive.add(member)
            else:
                self._journal.left(member)
        dead = set()
        for (key, database), leases in recovered.held.items():
            self._ledger.recover(database, key, f"pool {key[1]} of {key[0]}", leases.values())
            if key[0] not in alive:
                dead.add(key[0])
        for member in dead:
            self._ledger.dead(member)
        if dead:
            self._orphans_due = time.monotonic()
        if self._expected:
            self._ledger.granting = False
            self._learning_due = time.monotonic() + LEARNING

    # -- orphans --------------------------------------------------------------------------------------------------

    def _look_after_orphans(self, now: float) -> None:
        orphans = list(self._ledger.orphans())
        self._orphans_due = now + self._orphan_pause if orphans else None
        self._orphan_pause = min(ORPHAN_POLL[1], self._orphan_pause * 1.2)
        if not orphans:
            self._vanished.clear()
            self._half_closed.clear()
            return
        known = self._ledger.addresses()
        for database, orphan in orphans:
            held = orphan.held
            if database.startswith("sqlite:"):
                self._ledger.gone(database, held.lease)  # its descriptors died with the process
                continue
            if held.address is not None:
                verdict = server_session(held.address)
            else:
                # Granted, but its connection was not named yet. Whatever the process had begun to open is among the
                # half-closed connections to that server that nobody has named.
                unnamed = half_closed(_port(database)) - known
                verdict = Verdict.HELD if unnamed else Verdict.RESET
            if verdict is Verdict.HELD:
                self._half_closed.add(held.lease)
                self._vanished.pop(held.lease, None)
            elif verdict is Verdict.RESET:
                grace = CHECKED_GRACE if held.liveness_checked else RESET_GRACE
                if held.lease in self._half_closed:
                    grace = ANSWERED_GRACE
                since = self._vanished.setdefault(held.lease, now)
                verdict = Verdict.GONE if now - since >= grace else Verdict.HELD
            if verdict is Verdict.GONE:
                self._ledger.gone(database, held.lease)

    # -- questions ------------------------------------------------------------------------------------------------

    def _answer(self, question: Json, reply: Reply) -> None:
        if question.get("op") != "status":
            reply({"error": f"unknown operation {question.get('op')!r}"})
            return
        missing = set()
        for budget in self._ledger.budgets.values():
            for key in budget.pools:
                missing.add(key)
                self._send(key[0], encode(Ask(self._epoch, key[1])))
        self._questions.append(_Status(reply, time.monotonic() + STATUS_WAIT, missing))

    def _status(self) -> Json:
        """Every budget and every process, as plain values."""
        now = time.monotonic()
        workers = []
        for member, process in sorted(self._processes.items(), key=lambda item: (item[1].worker or 0, item[1].pid)):
            pools = [
                {
                    "name": pool.name,
                    "database": budget.database,
                    "leases": len(pool.leases),
                    "in_use": pool.demand.in_use,
                    "idle": pool.demand.idle,
                    "waiting": pool.demand.waiting,
                }
                for budget in self._ledger.budgets.values()
                for pool in budget.pools.values()
                if pool.key[0] == member
            ]
            workers.append(
                {
                    "worker": process.worker,
                    "pid": process.pid,
                    "uptime": round(now - process.joined, 3),
                    "restarts": process.restarts,
                    **_sums(pools, "leases", "in_use", "idle", "waiting"),
                    "pools": pools,
                }
            )
        budgets = [
            {
                "database": budget.database,
                "size": budget.size,
                "leased": budget.charged,
                "in_use": sum(pool.demand.in_use for pool in budget.pools.values()),
                "idle": sum(pool.demand.idle for pool in budget.pools.values()),
                "waiting": sum(pool.demand.waiting for pool in budget.pools.values()),
                "quarantined": len(budget.quarantined),
            }
            for budget in self._ledger.budgets.values()
        ]
        return {"run": self._config.name, "budgets": budgets, "workers": workers}


def _sums(rows: list[dict[str, Any]], *columns: str) -> dict[str, int]:
    return {column: sum(row[column] for row in rows) for column in columns}


def _port(database: str) -> int:
    """The server's port in a database's identity."""
    port = database.partition("://")[2].partition("/")[0].rpartition(":")[2]
    return int(port) if port.isdigit() else 0


class CannotServeError(RuntimeError):
    """The coordinator cannot use its directory."""


def main(config: CoordinatorConfig, ready: Connection | None = None) -> None:
    """The life of a coordinator that a supervisor started. `ready` gets b"ready" when it can be reached."""

    def tell() -> None:
        if ready is not None:
            ready.send_bytes(b"ready")
            ready.close()

    try:
        serve(config, tell)
    except CannotServeError as error:
        sys.exit(str(error))
    sys.stdout.flush()


def serve(config: CoordinatorConfig, ready: Callable[[], None]) -> None:
    """Run a coordinator until SIGTERM or SIGINT, and call `ready` when it can be reached.

    Raises `CannotServeError`. To be called from the main thread, for the signals.
    """
    logging.basicConfig(format="%(message)s")
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    try:
        coordinator = Coordinator(config)
    except (OSError, zmq.ZMQError) as error:
        raise CannotServeError(f"cannot use {config.directory}: {error.strerror}") from None
    signal.signal(signal.SIGTERM, _only(coordinator.stop))
    signal.signal(signal.SIGINT, _only(coordinator.stop))
    ready()
    coordinator.run(wake_read)


def _only(act: Callable[[], None]) -> Callable[[int, Any], None]:
    return lambda signum, frame: act()
