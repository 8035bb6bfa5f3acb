"""The coordinator process: the thin shell around `coordinator_core`.

One loop over one poller: messages from processes, the deaths of processes, questions from `pysqlx-ctl`, signals, and
timers. Each event goes into the core, and what comes of it is sent. The coordinator opens no database connection and
knows no password.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import secrets
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import zmq

from ..engine import sockets
from .control import ControlServer, Json, Reply
from .coordinator_core import CoordinatorCore
from .journal import Journal
from .ledger import Budget, MemberId, PoolKey
from .membership import host_identity
from .messages import (
    MAX_MESSAGE,
    VERSION,
    FromCoordinator,
    LeaseState,
    ProcessPacket,
    decode_from_process,
    encode,
    shown,
    version_of,
)
from .process import start_time
from .rates import BYTES, LogBound, RateBound, work
from .rundir import DatabaseClaims, RunDirectory, RunDirectoryError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

logger = logging.getLogger("pysqlx_engine")

STATUS_WAIT = 0.25
"""Seconds that a status waits for the processes' latest reports."""
UNREAD = 1000
"""Messages of one process that are taken from its connection before they are looked at: the rest stays with it."""
UNSENT = 10_000
"""Packets that wait for one process that does not read. One that misses any says `Hello` again."""
MOST_CLAIMS = 1_000
"""Databases for which other coordinators are looked for: each takes a descriptor."""
AT_ONCE = 50
"""Messages that are looked at before something is sent, and somebody else gets a turn."""


@dataclass(frozen=True)
class CoordinatorConfig:
    directory: str
    """The run's directory, see `rundir`."""
    max_size: int | None
    """The operator's budget for each database; None: what the scripts state."""
    name: str
    supervised: bool = True
    """Whether nobody can have joined before who is not in the journal: the supervisor starts us before its workers."""


@dataclass
class _Status:
    """A question about the status, while the processes' reports come in."""

    reply: Reply
    deadline: float
    missing: set[PoolKey]


class Coordinator:
    def __init__(self, config: CoordinatorConfig) -> None:
        directory = RunDirectory(config.name, Path(config.directory))
        self._config = config
        self._claims = DatabaseClaims(directory)
        self._databases: set[str] = set()
        """Those that had a budget when it was last looked at."""
        self._rates = RateBound()
        self._unread = LogBound()
        """Lines about what could not be read."""
        self.identity = host_identity()
        self._routes: dict[MemberId, bytes] = {}
        self._names: dict[bytes, MemberId] = {}
        """The connection of each member, and whose it is. ZeroMQ gives each a name that nobody else can take."""
        self._pidfds: dict[MemberId, int] = {}
        self._by_pidfd: dict[int, MemberId] = {}
        self._questions: list[_Status] = []
        self._stopping = False
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a process that is gone is an error, not silence
        self._router.setsockopt(zmq.LINGER, 0)
        # More than a process that was stopped for long finds when it goes on. What one that never reads has us keep for
        # it is bounded by that; a lease among it is not lost, see `fleet.Fleet.missed`.
        self._router.setsockopt(zmq.SNDHWM, UNSENT)
        self._router.setsockopt(zmq.RCVHWM, UNREAD)
        self._router.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        mask = os.umask(0o177)
        try:
            self._router.bind(f"ipc://{directory.socket}")
        finally:
            os.umask(mask)
        self._control = ControlServer(directory.control, self._answer)
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._control.fileno(), zmq.POLLIN)
        self._core = CoordinatorCore(
            secrets.randbits(32) | 1,
            config.max_size,
            Journal(directory.journal),
            self,
            time.monotonic(),
            supervised=config.supervised,
            remote=False,
        )

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
            self._core.now = time.monotonic()
            for source, _ in ready:
                if source is self._router:
                    self._receive(AT_ONCE)
                elif source == self._control.fileno():
                    self._control.handle_readable()
                elif source == wake_fd:
                    os.read(wake_fd, 4096)
            if dead:
                self._receive(UNREAD)  # what they had still said comes first
                for member in dead:
                    self._core.died(member)
            self._flush()
        self._control.close()
        self._router.close()
        self._context.term()

    def _timeout(self) -> int | None:
        """Milliseconds until the next timer; None: there is none."""
        due = [question.deadline for question in self._questions]
        core_due = self._core.due()
        if core_due is not None:
            due.append(core_due)
        return max(0, round((min(due) - time.monotonic()) * 1000 + 0.5)) if due else None

    def _flush(self) -> None:
        core = self._core
        core.now = now = time.monotonic()
        core.tick()
        messages = core.flush()
        if self._databases != core.ledger.budgets.keys():
            self._claim_databases()
        for name, message in messages:
            self._send(name, message)
        for question in [question for question in self._questions if not question.missing or now >= question.deadline]:
            self._questions.remove(question)
            question.reply(self._status())

    def _claim_databases(self) -> None:
        """Two coordinators for one database are two budgets, and their sum is what the server sees."""
        databases = set(self._core.ledger.budgets)
        for database in self._databases - databases:
            self._claims.release(database)
        room = max(0, MOST_CLAIMS - len(self._databases & databases))
        for database in sorted(databases - self._databases)[:room]:
            try:
                other = self._claims.claim(database)
            except (OSError, RunDirectoryError) as error:
                logger.warning("cannot look for other runs that use %s: %s", shown(database), error)
                continue
            if other is not None:
                logger.warning(
                    "WARNING: the run %s has a budget for %s too: the two add up. Let its processes join this "
                    "coordinator, or these the other (PYSQLX_COORDINATOR).",
                    other, shown(database),
                )  # fmt: skip
        self._databases = databases

    def _send(self, member: MemberId, message: FromCoordinator) -> None:
        try:
            self._router.send_multipart([self._routes.get(member) or _route(member), encode(message)], zmq.NOBLOCK)
        except zmq.Again:
            self._core.missed(member)
        except zmq.ZMQError:
            pass  # it is gone: its death is told by its pidfd, and one that comes back says hello

    # -- processes ------------------------------------------------------------------------------------------------

    def _receive(self, most: int) -> None:
        for _ in range(most):
            try:
                first, *frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            route, peer = first.bytes, _peer(frames)
            # By process, where the kernel tells it: connections can be had as many as one likes.
            payer = route if peer is None else b"%d" % peer
            if not self._rates.allows(payer, sum(map(len, frames)) + BYTES * (len(frames) - 1), self._core.now):
                if self._rates.first_refusal(payer):
                    self._say_unread(f"process {peer} sends more than it may: the rest is dropped")
                if route in self._names:
                    self._core.missed(self._names[route])
                continue
            try:
                (data,) = frames
                message = decode_from_process(data.bytes)
            except (ValueError, msgspec.MsgspecError, RecursionError) as error:
                self._refuse_unread(route, peer, frames, error)
                continue
            self._rates.charge(payer, work(message))
            member = self._names.get(route) or _stranger(route)
            self._core.received(member, message, peer)
            if isinstance(message, ProcessPacket):
                for question in self._questions:
                    question.missing -= {(member, getattr(one, "pool", 0)) for one in message.messages}

    def _refuse_unread(self, route: bytes, peer: int | None, frames: list[zmq.Frame], error: Exception) -> None:
        """What cannot be read is dropped. One that says hello in another version is told so."""
        version = version_of(frames[0].bytes) if len(frames) == 1 else None
        if version is None or version == VERSION:
            self._say_unread(f"dropped a message of process {peer} that is none: {str(error)[:200]}")
        else:
            self._core.refuse_version(_stranger(route), version)

    def _say_unread(self, text: str) -> None:
        line = self._unread.line(text, self._core.now)
        if line is not None:
            logger.warning("%s", line)

    # -- the host, as the core knows it ---------------------------------------------------------------------------

    def watch(self, name: MemberId, pid: int, started: int) -> bool:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return False  # dead, or we have no descriptors left
        if start_time(pid) != started:
            os.close(pidfd)
            return False
        self._poller.register(pidfd, zmq.POLLIN)
        self._by_pidfd[pidfd] = name
        self._pidfds[name] = pidfd
        return True

    def forget(self, name: MemberId) -> None:
        pidfd = self._pidfds.pop(name)
        self._poller.unregister(pidfd)
        del self._by_pidfd[pidfd]
        os.close(pidfd)
        for question in self._questions:
            question.missing = {key for key in question.missing if key[0] != name}

    def bind(self, name: MemberId, sender: str) -> None:
        if sender != name:  # else it is bound already
            self.unbind(name)
            route = self._routes.pop(sender, None) or _route(sender)  # it may have had another name
            self._routes[name] = route
            self._names[route] = name

    def unbind(self, name: MemberId) -> None:
        route = self._routes.pop(name, None)
        if route is not None:
            self._names.pop(route, None)

    server_session = staticmethod(sockets.server_session)
    half_closed = staticmethod(sockets.half_closed)

    # -- questions ------------------------------------------------------------------------------------------------

    def _answer(self, question: Json, reply: Reply) -> None:
        if question.get("op") != "status":
            reply({"error": f"unknown operation {question.get('op')!r}"})
            return
        self._questions.append(_Status(reply, time.monotonic() + STATUS_WAIT, self._core.ledger.ask_all()))

    def _status(self) -> Json:
        """Every budget and every process, as plain values."""
        now = time.monotonic()
        workers = []
        members = [item for item in self._core.fleet.members.items() if item[1].session]
        for name, process in sorted(members, key=lambda item: (item[1].worker or 0, item[1].pid)):
            pools = [
                {
                    "name": pool.name,
                    "database": budget.database,
                    "leases": len(pool.leases),
                    "in_use": pool.demand.in_use,
                    "idle": pool.demand.idle,
                    "waiting": pool.demand.waiting,
                }
                for budget in self._core.ledger.budgets.values()
                for pool in budget.pools.values()
                if pool.key[0] == name
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
                "reserved": budget.reserve,
                "leased": budget.charged,
                "in_use": sum(pool.demand.in_use for pool in budget.pools.values()),
                "idle": sum(pool.demand.idle for pool in budget.pools.values()),
                "waiting": sum(pool.demand.waiting for pool in budget.pools.values()),
                "quarantined": len(budget.quarantined),
                **_states(budget),
            }
            for budget in self._core.ledger.budgets.values()
        ]
        return {"run": self._config.name, "budgets": budgets, "workers": workers}


def _states(budget: Budget) -> dict[str, int]:
    states = [held.state for pool in budget.pools.values() for held in pool.leases.values()]
    return {state.name.lower(): states.count(state) for state in LeaseState if state is not LeaseState.QUARANTINED}


def _peer(frames: list[zmq.Frame]) -> int | None:
    """The pid at the other end of a connection. ZeroMQ appends to a local peer's address what the kernel says of it:
    ":uid:gid:pid". None where it does not, and where that process cannot be seen from here."""
    try:
        address = str(frames[-1].get("Peer-Address"))
    except (zmq.ZMQError, KeyError):
        return None
    pid = address.rpartition(":")[2]
    return int(pid) or None if address.startswith("localhost:") and pid.isdigit() else None


def _stranger(route: bytes) -> str:
    """What a sender is called as long as it is no member. No member has such a name."""
    return "?" + route.hex()


def _route(stranger: str) -> bytes:
    return bytes.fromhex(stranger[1:]) if stranger.startswith("?") else b""


def _sums(rows: list[dict[str, Any]], *columns: str) -> dict[str, int]:
    return {column: sum(row[column] for row in rows) for column in columns}


def main(config: CoordinatorConfig, ready: Connection | None = None) -> None:
    """Run a coordinator until SIGTERM. `ready` gets b"ready" when it can be reached."""
    logging.basicConfig(format="%(message)s")
    # Two descriptors for each process, one for each database: as many as we may have.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    try:
        coordinator = Coordinator(config)
    except OSError as error:
        sys.exit(f"cannot use {config.directory}: {error.strerror}")
    signal.signal(signal.SIGTERM, _only(coordinator.stop))
    signal.signal(signal.SIGINT, _only(coordinator.stop))
    if ready is not None:
        ready.send_bytes(b"ready")
        ready.close()
    coordinator.run(wake_read)
    sys.stdout.flush()


def _only(act: Callable[[], None]) -> Callable[[int, Any], None]:
    return lambda signum, frame: act()
