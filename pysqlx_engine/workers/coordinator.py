"""The coordinator process: the thin shell around `coordinator_core`.

One loop over one poller: messages from processes, the deaths of processes, questions from `pysqlx-ctl`, signals, and
timers. Each event goes into the core, and what comes of it is sent. The coordinator opens no database connection and
knows no password.

Processes of this host come by the socket in the run's directory, which only their user can open. Where the coordinator
listens on tcp:// as well, that is a second ROUTER. One for both would route by the name that a peer gives itself, and
whoever comes by tcp:// could take the place of a process of this host; with two, a name that came by tcp:// is marked
as such, which is also how an answer finds its way back. And each has its own queues, limits and keys: neither junk nor
a flood on one delays the other by more than its turn in the loop.
"""

from __future__ import annotations

import contextlib
import json
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
from zmq.utils import z85

from ..engine import sockets
from ..errors import SettingsError
from ..log_config import part
from ..system import host_identity
from .control import SIZES, ControlServer, Json, Reply, wrong_size
from .coordinator_core import CoordinatorCore
from .deaths import Deaths, deaths
from .endpoints import Listening, listening, local
from .fleet import TERM
from .journal import Journal
from .ledger import Budget, MemberId, PoolKey
from .messages import (
    MAX_MESSAGE,
    VERSION,
    FromCoordinator,
    FromProcess,
    Hello,
    LeaseState,
    ProcessPacket,
    Report,
    decode_from_process,
    encode,
    shown,
    version_of,
)
from .rates import BYTES, LogBound, RateBound, claims, work
from .rundir import DatabaseClaims, RunDirectory, RunDirectoryError
from .status import BudgetStatus, Health, PoolStatus, RunStatus, TotalsStatus, WorkerStatus, numbers

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

logger = part("coordinator")

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
BY_IPC, BY_TCP = b"i", b"t"
"""In front of what the one router or the other calls a connection; and what each is called where ZeroMQ asks. Without
ipc:// the first is at a port of 127.0.0.1, see `endpoints.local`."""
HANDSHAKE = 5_000
"""Milliseconds that a peer has to show that it speaks our protocol and has the keys."""
HEARTBEAT = (1_000, 4_000)
"""Milliseconds between two signs of life of a connection over tcp://, and without any before it counts as broken. TCP
itself would take minutes; with this both sides are rid of it, and a link that heals is connected anew at once."""
REFUSED_AGAIN = 60.0
"""Seconds between two lines about wrong keys at one address."""
MOST_REFUSED = 1000
"""Addresses of which that is remembered."""
_HEALTH = Health(ready=True, coordinator=True)
"""Ours: who can ask is answered."""
_ZAP = "inproc://zeromq.zap.01"
"""Where ZeroMQ asks whether a peer's key is let in (RFC 27)."""


@dataclass(frozen=True)
class CoordinatorConfig:
    directory: str
    """The run's directory, see `rundir`."""
    max_size: int | None
    """The operator's budget for each database; None: what the scripts state."""
    name: str
    supervised: bool = True
    """Whether no process of this host can have joined before who is not in the journal: the supervisor starts us before
    its workers."""
    bind: str | None = None
    """tcp://HOST:PORT where processes of other hosts can join, see `endpoints.listening`."""
    curve_keys: str | None = None
    """The file with the keys that these need, see `keys`."""
    term: float = TERM
    """Seconds without a sign of life after which a process of another host is taken for dead."""


@dataclass
class _Status:
    """A question about the status, while the processes' reports come in."""

    reply: Reply
    deadline: float
    missing: set[PoolKey]


class Coordinator:
    """Raises SettingsError for an address where it is not safe to listen, ZMQError and OSError for what the system does
    not allow."""

    def __init__(self, config: CoordinatorConfig) -> None:
        where = listening(config.bind, config.curve_keys) if config.bind is not None else None
        directory = RunDirectory(config.name, Path(config.directory))
        self._config = config
        self._claims = DatabaseClaims(directory)
        self._databases: set[str] = set()
        """Those that had a budget when it was last looked at."""
        self._rates = RateBound()
        self._claim_rates = RateBound()
        """For what pools are stated to hold. Apart, so that a report can follow however much was stated."""
        self._unread = LogBound()
        """Lines about what could not be read."""
        self.identity = host_identity()
        self._routes: dict[MemberId, bytes] = {}
        self._names: dict[bytes, MemberId] = {}
        """The connection of each member, and whose it is. ZeroMQ gives each a name that nobody else can take."""
        self._deaths: Deaths[MemberId] = deaths()
        self._questions: list[_Status] = []
        self._stopping = False
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._router = self._new_router()
        self._tcp_router: zmq.Socket[bytes] | None = None
        self._zap: zmq.Socket[bytes] | None = None
        self._let_in: dict[bytes, frozenset[bytes]] = {}
        """Keys of those that may join by tcp://, by the router's domain."""
        self._refused: dict[bytes, float] = {}
        """When it was said last that somebody at this address has the wrong keys."""
        here = local(directory)
        if here.listening is not None:
            self._listen_on_tcp(self._router, here.listening, BY_IPC)
        else:
            mask = os.umask(0o177)
            try:
                self._router.bind(here.address)
            finally:
                os.umask(mask)
        if where is not None:
            self._tcp_router = self._new_router()
            self._listen_on_tcp(self._tcp_router, where, BY_TCP)
            self._poller.register(self._tcp_router, zmq.POLLIN)
        self._control = ControlServer(directory.control, self._answer)
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._control.fileno(), zmq.POLLIN)
        self._poller.register(self._deaths.fileno(), zmq.POLLIN)
        self._core = CoordinatorCore(
            secrets.randbits(32) | 1,
            config.max_size,
            Journal(directory.journal),
            self,
            time.monotonic(),
            supervised=config.supervised,
            remote=where is not None,
            term=config.term,
        )

    def _new_router(self) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a process that is gone is an error, not silence
        router.setsockopt(zmq.LINGER, 0)
        # More than a process that was stopped for long finds when it goes on. What one that never reads has us keep for
        # it is bounded by that; a lease among it is not lost, see `fleet.Fleet.missed`.
        router.setsockopt(zmq.SNDHWM, UNSENT)
        router.setsockopt(zmq.RCVHWM, UNREAD)
        router.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        return router

    def _listen_on_tcp(self, router: zmq.Socket[bytes], where: Listening, domain: bytes) -> None:
        router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE)
        router.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT[0])
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT[1])
        router.setsockopt(zmq.IPV6, where.ipv6)
        if where.keys is not None:
            # First of all: a server of CURVE that finds nobody to ask lets everybody in, unless it is told to enforce.
            if self._zap is None:
                self._zap = self._context.socket(zmq.ROUTER)
                self._zap.setsockopt(zmq.LINGER, 0)
                self._zap.bind(_ZAP)
                self._poller.register(self._zap, zmq.POLLIN)
            self._let_in[domain] = where.keys.clients
            router.setsockopt(zmq.ZAP_DOMAIN, domain)
            router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
            router.setsockopt(zmq.CURVE_SERVER, 1)
            router.setsockopt(zmq.CURVE_SECRETKEY, where.keys.secret)
        router.bind(where.endpoint)

    # -- the loop -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        self._stopping = True

    def dump(self) -> None:
        """Have the state go to the log, when what goes on is done."""
        self._questions.append(_Status(_log_status, time.monotonic(), set()))

    def run(self, wake_fd: int) -> None:
        """Serve until `stop`; `wake_fd` becomes readable when a signal arrived."""
        self._poller.register(wake_fd, zmq.POLLIN)
        while not self._stopping:
            ready = self._poller.poll(self._timeout())
            self._core.now = time.monotonic()
            deaths = False
            for source, _ in ready:
                if source is self._router:
                    self._receive(self._router, AT_ONCE)
                elif source is self._tcp_router:
                    self._receive(self._tcp_router, AT_ONCE)
                elif source is self._zap:
                    self._let_in_or_not()
                elif source == self._deaths.fileno():
                    deaths = True
                elif source == self._control.fileno():
                    self._control.handle_readable()
                elif source == wake_fd:
                    os.read(wake_fd, 4096)
            if deaths:
                # By name: a descriptor's number may be somebody else's by the time that the messages have been read.
                dead = self._deaths.dead()
                for router in (self._router, self._tcp_router):
                    if router is not None:
                        self._receive(router, UNREAD)  # what they had still said comes first
                for member in dead:
                    self._core.died(member)
            self._flush()
        self._control.close()
        self._deaths.close()
        for socket in (self._router, self._tcp_router, self._zap):
            if socket is not None:
                socket.close()
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
        route = self._routes.get(member) or _route(member)
        router = self._tcp_router if route.startswith(BY_TCP) else self._router
        if router is None or len(route) < 2:
            return  # the journal may name members of a time when we listened there
        try:
            router.send_multipart([route[1:], encode(message)], zmq.NOBLOCK)
        except zmq.Again:
            self._core.missed(member)
        except zmq.ZMQError:
            pass  # it is gone: its death is told, and one that comes back says hello

    # -- processes ------------------------------------------------------------------------------------------------

    def _receive(self, router: zmq.Socket[bytes], most: int) -> None:
        prefix = BY_TCP if router is self._tcp_router else BY_IPC
        for _ in range(most):
            try:
                first, *frames = router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            route, peer = prefix + first.bytes, _peer(frames)
            # By process, where the kernel tells it: connections can be had as many as one likes.
            payer = route if peer is None else b"%d" % peer
            if not self._rates.allows(payer, sum(map(len, frames)) + BYTES * (len(frames) - 1), self._core.now):
                self._drop(route, payer, peer)
                continue
            try:
                (data,) = frames
                message = decode_from_process(data.bytes)
            except (ValueError, msgspec.MsgspecError, RecursionError) as error:
                self._refuse_unread(route, peer, frames, error)
                continue
            if not self._pays(payer, message):
                self._drop(route, payer, peer)
                continue
            member = self._names.get(route) or _stranger(route)
            self._core.received(member, message, peer)
            if isinstance(message, ProcessPacket):
                for question in self._questions:
                    question.missing -= {(member, one.pool) for one in message.messages if isinstance(one, Report)}

    def _pays(self, payer: bytes, message: FromProcess) -> bool:
        """Whether what is in `message` may be done now; it is paid for then."""
        if isinstance(message, Hello) and message.epoch != self._core.fleet.epoch:
            return True  # it is told the epoch, and no more
        rates = self._rates
        if claims(message):
            rates = self._claim_rates
            if not rates.allows(payer, 0, self._core.now):
                return False
        rates.charge(payer, work(message))
        return True

    def _drop(self, route: bytes, payer: bytes, peer: int | None) -> None:
        if self._rates.first_refusal(payer):
            self._say_unread(f"process {peer} sends more than it may: the rest is dropped")
        if route in self._names:
            self._core.missed(self._names[route])

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

    def _let_in_or_not(self) -> None:
        """Answer ZeroMQ, which asks about each peer that has shown to have the secret key of the public key it names.
        Here and not in a thread of its own: then there is nobody to ask only when nobody could join either."""
        assert self._zap is not None
        for _ in range(AT_ONCE):
            try:
                requester, empty, version, request, *rest = self._zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            domain, address, _identity, mechanism, *credentials = rest
            key = z85.encode(credentials[0]) if mechanism == b"CURVE" and len(credentials) == 1 else b""
            let_in = key in self._let_in[domain]
            status = b"200" if let_in else b"400"
            self._zap.send_multipart([requester, empty, version, request, status, b"", b"", b""], zmq.NOBLOCK)
            if not let_in:
                self._say_refused(address)

    def _say_refused(self, address: bytes) -> None:
        """Once in a while: who is refused tries again."""
        now = self._core.now
        if len(self._refused) >= MOST_REFUSED:
            self._refused.clear()
        if now - self._refused.get(address, -REFUSED_AGAIN) >= REFUSED_AGAIN:
            self._refused[address] = now
            logger.warning("refused a process at %r: its key is not one of those that may join", address)

    # -- the host, as the core knows it ---------------------------------------------------------------------------

    def watch(self, name: MemberId, pid: int, started: int) -> bool:
        return self._deaths.watch(name, pid, started)

    def forget(self, name: MemberId) -> None:
        self._deaths.forget(name)
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
        match question:
            case {"op": "status"}:
                self._questions.append(_Status(reply, time.monotonic() + STATUS_WAIT, self._core.ledger.ask_all()))
            case {"op": "resize", "size": int(size)} if size in SIZES:
                self._core.ledger.resize(size)
                logger.warning("the budget of each database is %d from now on", size)
                reply({"size": size})
            case {"op": "recall"}:
                self._core.ledger.recall()
                reply({"databases": len(self._core.ledger.budgets)})
            case {"op": "resize", "size": int(size)}:
                reply({"error": wrong_size(size)})
            case {"op": "health"}:  # whoever asks is answered: nobody else need be asked for that
                reply(msgspec.to_builtins(_HEALTH))
            case _:
                reply({"error": f"unknown question {question!r}"})

    def _status(self) -> Json:
        """Every budget and every process, as plain values."""
        now, ledger = time.monotonic(), self._core.ledger
        pools: dict[MemberId, list[PoolStatus]] = {}
        for budget in ledger.budgets.values():
            for pool in budget.pools.values():
                demand = pool.demand
                pools.setdefault(pool.key[0], []).append(
                    PoolStatus(
                        name=pool.name, database=budget.database, leases=len(pool.leases), in_use=demand.in_use,
                        idle=demand.idle, waiting=demand.waiting,
                    )
                )  # fmt: skip
        members = [item for item in self._core.fleet.members.items() if item[1].session]
        workers = [
            WorkerStatus(
                worker=process.worker, pid=process.pid, uptime=round(now - process.joined, 3),
                restarts=process.restarts, pools=pools.get(name, []), **numbers(pools.get(name, [])),
            )
            for name, process in sorted(members, key=lambda item: (item[1].worker or 0, item[1].pid))
        ]  # fmt: skip
        budgets = [_of_budget(budget) for budget in ledger.budgets.values()]
        status: Json = msgspec.to_builtins(
            RunStatus(run=self._config.name, health=_HEALTH, budgets=budgets, workers=workers, deaths=ledger.deaths)
        )
        return status


def _of_budget(budget: Budget) -> BudgetStatus:
    pools = budget.pools.values()
    return BudgetStatus(
        database=budget.database,
        size=budget.size,
        reserved=budget.reserve,
        leased=budget.charged,
        in_use=sum(pool.demand.in_use for pool in pools),
        idle=sum(pool.demand.idle for pool in pools),
        waiting=sum(pool.demand.waiting for pool in pools),
        quarantined=len(budget.quarantined),
        let_go=budget.past.let_go,
        longest_let_go=round(budget.past.longest, 4),
        recalled=budget.past.recalled,
        totals=TotalsStatus.of(budget.totals),
        **_states(budget),
    )


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
    # Two descriptors for each process, one for each database: as many as we may have.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    try:
        coordinator = Coordinator(config)
    except SettingsError as error:
        raise CannotServeError(str(error)) from None
    except zmq.ZMQError as error:
        raise CannotServeError(f"cannot listen on {config.bind or config.directory}: {error.strerror}") from None
    except OSError as error:
        raise CannotServeError(f"cannot use {config.directory}: {error.strerror}") from None
    signal.signal(signal.SIGTERM, _only(coordinator.stop))
    signal.signal(signal.SIGUSR2, _only(coordinator.dump))
    signal.signal(signal.SIGINT, _only(coordinator.stop))
    ready()
    coordinator.run(wake_read)


def _log_status(status: Json) -> None:
    for budget in status["budgets"]:
        logger.answer("budget %s", json.dumps(budget))
    for worker in status["workers"]:
        logger.answer("process %s", json.dumps(worker))


def _only(act: Callable[[], None]) -> Callable[[int, Any], None]:
    return lambda signum, frame: act()
