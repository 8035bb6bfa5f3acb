"""A whole fleet in one thread and one virtual clock: the real pool cores, leased budgets, memberships, coordinator core
and journal; a simulated network, database servers and kernel; and everything that can go wrong, as a seed decides.

After every connect the server counts its sessions. At the end every waiter has been served, or was told, and every
lease is back.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pysqlx_engine.engine.session import ServerSession
from pysqlx_engine.engine.sockets import Endpoints, Verdict
from pysqlx_engine.engine.uri import DatabaseURI, parse_uri
from pysqlx_engine.errors import ConnectError, PoolError
from pysqlx_engine.pool.budget import Demand, Lease, OrphanedSession, PoolRequest
from pysqlx_engine.pool.core import OURSELVES, ConnInfo, Effects, PoolCore, State, Waiter
from pysqlx_engine.workers import leased_budget, membership, orphans
from pysqlx_engine.workers.coordinator_core import CoordinatorCore
from pysqlx_engine.workers.journal import Journal
from pysqlx_engine.workers.leased_budget import LeasedBudget
from pysqlx_engine.workers.ledger import Ledger, Record
from pysqlx_engine.workers.membership import Identity, Membership
from pysqlx_engine.workers.messages import (
    Ceiling,
    FromCoordinator,
    FromProcess,
    Hello,
    ProcessPacket,
    Report,
    decode_from_coordinator,
    decode_from_process,
    encode,
)

HERE = "coordinator's host"
CONN_TIMEOUT = 30.0


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True)
class Weather:
    """How rough it is. Probabilities are for each message."""

    seconds: float = 20.0
    """How long the trouble lasts."""
    pause: float = 0.3
    """Seconds between two faults, on average."""
    stopped: float = 20.0
    cut: float = 25.0
    """Most seconds that a process is stopped, and that a host is cut off."""
    think: float = 0.01
    """Seconds between two check-outs of a user, on average."""

    lost: float = 0.02
    doubled: float = 0.02
    late: float = 0.05
    """Messages of remote processes that take up to a second, and are overtaken by others."""
    replayed: float = 0.01
    """Old messages of remote processes that arrive once more, much later."""


SLOW = Weather(seconds=200.0, pause=2.0, stopped=100.0, cut=100.0, think=0.1)
"""Everything takes longer than a lease that nobody has named is kept for."""
STORM = Weather(lost=0.1, doubled=0.2, late=0.3, replayed=0.05)
"""Hardly a message of a remote process arrives in its time."""
COPIES = Weather(lost=0.0, late=0.0, doubled=0.4, replayed=0.2)
"""All of them do, and many more than once."""
UNNAMED = 20.0
"""In place of `orphans.UNNAMED`: to connect takes some milliseconds here."""
SERVED_IN = 3.0
"""Seconds in which everybody is served when nothing goes wrong any more, however greedy the others are."""


class Session:
    """What a server has for one connection."""

    __slots__ = ("address", "ended", "process", "server_id")

    def __init__(self, server_id: int, process: Process, address: Endpoints) -> None:
        self.server_id, self.process, self.address = server_id, process, address
        self.ended = False


class Server:
    """One database server. It counts, and nobody else does."""

    def __init__(self, world: World, number: int, size: int) -> None:
        self.world, self.size = world, size
        uri = parse_uri(f"postgresql://user@db{number}.example:5432/shop")
        assert uri.identity is not None
        self.uri: DatabaseURI = uri
        self.identity: str = uri.identity
        self.sessions: dict[Endpoints, Session] = {}
        self.most = 0
        self.down = False

    def connect(self, session: Session) -> None:
        self.sessions[session.address] = session
        self.world.count("connect")
        self.most = max(self.most, len(self.sessions))
        if len(self.sessions) > self.size:
            raise Broken(f"{len(self.sessions)} sessions at {self.identity}, a budget of {self.size}")

    def end(self, session: Session) -> None:
        session.ended = True
        if self.sessions.pop(session.address, None) is not None:
            self.world.count("session ends")


class Conn(ConnInfo):
    __slots__ = ("broken", "server_session")

    server_session: Session
    broken: bool


class User:
    """Somebody who wants a connection to `server` again and again, mostly in one process."""

    def __init__(self, world: World, server: Server) -> None:
        self.world, self.server = world, server
        self.pool: SimPool | None = None

    def think(self) -> None:
        """Until the next time."""
        self.world.at(self.world.now + self.world.chance.expovariate(1 / self.world.weather.think), self.ask)

    def ask(self) -> None:
        world, pool = self.world, self.pool
        if world.calm:
            return
        if pool is None or pool.process.dead or world.chance.random() < 0.03:
            able = [
                pool for process in world.processes.values() for pool in process.pools if pool.server is self.server
            ]
            pool = self.pool = world.chance.choice(able) if able else None
        if pool is None:
            self.think()
        else:
            asked = pool
            asked.process.run(lambda: asked.arrive(self))


class Greedy(User):
    """Somebody who wants a connection of one pool so many times, without a pause."""

    def __init__(self, world: World, pool: SimPool, times: float = float("inf"), holds: float = 0.0) -> None:
        super().__init__(world, pool.server)
        self.pool: SimPool = pool
        self.times = times
        self.holds = holds
        self.served = False
        self.think()

    def think(self) -> None:
        self.world.at(self.world.now + 0.001, self.ask)

    def ask(self) -> None:
        if self.times > 0:
            self.times -= 1
            self.pool.process.run(lambda: self.pool.arrive(self))


class SimPool:
    """What `PoolRuntime` and `Upkeep` do, without threads and servers: a client of the real budget with the real
    core."""

    def __init__(self, process: Process, server: Server, min_size: int) -> None:
        self.process, self.server, self.world = process, server, process.world
        request = PoolRequest("pool", server.uri, min_size, server.size, True, CONN_TIMEOUT)
        self.budget = LeasedBudget(process.link, request)
        self.core = PoolCore(min_size, server.size, check_after=0.5)
        self.users: dict[Conn, User] = {}
        self.waiters: dict[Waiter, tuple[User, float]] = {}
        self.budget._client = self
        process.link.add(self.budget)
        self.perform(self.core.start())

    # -- the budget's client --------------------------------------------------------------------------------------

    def granted(self, leases: Sequence[Lease]) -> None:
        self.perform(self.core.granted(leases))

    def denied(self) -> None:
        self.perform(self.core.deny())

    def set_ceiling(self, ceiling: int | None) -> None:
        self.perform(self.core.set_ceiling(ceiling))

    def resized(self) -> None:
        self.perform(self.core.resized(self.budget.size))

    def refused(self, error: BaseException) -> None:
        raise Broken(f"{self.process.name} was refused: {error}")

    def suspend(self) -> None:
        self.perform(self.core.suspend())

    def resume(self) -> None:
        self.perform(self.core.resume())

    def tell_demand(self) -> Demand:
        return self.core.tell(self.world.now)

    def disown(self, leases: Sequence[Lease]) -> None:
        self.world.count("disowned")
        for conn in [conn for conn in self.users if conn.lease in leases]:
            self.users.pop(conn).think()
        self.perform(self.core.disown(leases))

    def end_sessions(self, sessions: Sequence[OrphanedSession]) -> None:
        """As `Upkeep.end_sessions`: through a connection of the pool, if it gets one within a second."""
        self.world.count("end asked")
        waiter = Waiter(lambda: None)
        waiter.wake = lambda: self._end_with(waiter, sessions)
        try:
            conn = self.core.check_out(self.world.now, OURSELVES, OURSELVES)
        except PoolError:
            return
        if conn is not None:
            waiter.conn = conn
            self._end_with(waiter, sessions)
            return
        effects = self.core.wait(waiter, self.world.now, first=True)
        if effects is not None:
            self.perform(effects)
        self.process.after(10.0, lambda: self._leave(waiter))

    def _end_with(self, waiter: Waiter, sessions: Sequence[OrphanedSession]) -> None:
        conn = waiter.conn
        if not isinstance(conn, Conn):
            return

        def look() -> None:
            if conn.server_session.ended:
                self._check_in(conn, broken=True)
                return
            gone = []
            for orphan in sessions:
                found = self.server.sessions.get(orphan.address)
                if found is not None and found.server_id == orphan.server_id:
                    self.world.count("end told")
                    self.server.end(found)
                gone.append(orphan.lease)
            self.budget.ended(gone)
            self._check_in(conn)

        self.process.after(self.world.chance.uniform(0.001, 0.05), look)

    def _leave(self, waiter: Waiter) -> None:
        _, effects = self.core.give_up(waiter)
        if effects is not None:
            self.perform(effects)

    # -- what the core decided ------------------------------------------------------------------------------------

    def perform(self, effects: Effects | Waiter | None) -> None:
        if isinstance(effects, Waiter):
            effects = Effects(wake=[effects])
        if effects is None:
            return
        for waiter in effects.wake:
            self._wake(waiter)
        for lease in effects.open:
            self._open(lease)
        for conn in effects.test:
            self.process.after(self.world.chance.uniform(0.0001, 0.01), lambda conn=conn: self._tested(conn))
        for conn in effects.close:
            self._close(conn)
        if effects.give_back:
            self.budget.give_back(effects.give_back)
        if effects.tell:
            self.budget.demand_changed(urgent=effects.urgent)
        if self.core.state is State.CLOSED and not self.core.held and not self.process.left:
            self.process.left = True
            self.budget.detach()

    def _wake(self, waiter: Waiter) -> None:
        if waiter not in self.waiters:
            waiter.wake()
            return
        first = next(iter(self.waiters))
        user, _ = self.waiters.pop(waiter)
        if waiter.conn is not None and first is not waiter:
            raise Broken("a waiter was overtaken")
        if isinstance(waiter.conn, Conn):
            self._use(waiter.conn, user)
        else:
            user.think()

    def _open(self, lease: Lease) -> None:
        world, chance = self.world, self.world.chance
        if not self.budget.connecting(lease):
            world.count("open postponed")
            self.perform(self.core.not_allowed(lease))
            return
        session = Session(world.number(), self.process, world.address(self.process.host))
        world.in_flight[session.address] = session
        process = self.process

        def arrive() -> None:  # at the server: it comes to this although the process may have died, or be stopped
            if not world.in_flight.pop(session.address, None):
                return
            if self.server.down or (not world.calm and chance.random() < 0.03):
                session.ended = True
            else:
                self.server.connect(session)
                if process.dead:
                    world.server_notices(self.server, session)
            process.after(chance.uniform(0.0005, 0.01), answer)

        def answer() -> None:
            if session.ended:
                world.count("open failed")
                self.perform(self.core.open_failed(lease, ConnectError("0", "refused"), permanent=False))
                process.after(chance.uniform(0.01, 0.2), lambda: self.perform(self.core.try_again()))
                return
            held = ServerSession(session.server_id, None, liveness_checked=True)
            held.address = session.address
            conn = Conn(f"conn-{session.server_id}", lease, None, None, held, world.now)
            conn.server_session, conn.broken = session, False
            self.budget.opened(lease, held)
            self.perform(self.core.opened(conn))

        world.at(world.now + chance.uniform(0.001, 0.02), arrive)

    def _close(self, conn: Any) -> None:
        world, session = self.world, conn.server_session
        self.budget.closing(conn.lease)
        slow = not world.calm and world.chance.random() < 0.05
        delay = world.chance.uniform(0.1, 2.0) if slow else world.chance.uniform(0.0005, 0.005)
        if slow:
            world.count("slow close")
        process = self.process

        def let_go() -> None:
            self.server.end(session)
            process.after(0.0002, lambda: self.perform(self.core.closed(conn)))

        world.at(world.now + delay, let_go)

    def _tested(self, conn: Any) -> None:
        alive = not conn.server_session.ended
        if not alive:
            self.world.count("found dead")
        self.perform(self.core.tested(conn, self.world.now, alive=alive))

    # -- users ----------------------------------------------------------------------------------------------------

    def arrive(self, user: User) -> None:
        """A task wants a connection."""
        if self.core.state is not State.OPEN:
            user.think()
            return
        conn = self.core.check_out(self.world.now, 1, self.world.number())
        if isinstance(conn, Conn):
            self._use(conn, user)
            return
        waiter = Waiter(lambda: None, owner=1, checkout=self.world.number())
        self.waiters[waiter] = (user, self.world.now)
        effects = self.core.wait(waiter, self.world.now)
        if effects is not None:
            self.perform(effects)
        chance = self.world.chance
        patient = self.world.calm or chance.random() < 0.9
        patience = CONN_TIMEOUT if patient else chance.uniform(0.001, 0.5)
        self.process.after(patience, lambda: self._give_up(waiter, patience))

    def _give_up(self, waiter: Waiter, patience: float) -> None:
        if waiter not in self.waiters:
            return
        user, _ = self.waiters.pop(waiter)
        self.world.count("waiter gave up" if patience < CONN_TIMEOUT else "waiter timed out")
        user.think()
        _, effects = self.core.give_up(waiter)
        if effects is not None:
            self.perform(effects)

    def _use(self, conn: Conn, user: User) -> None:
        self.world.served += 1
        self.users[conn] = user
        if isinstance(user, Greedy):
            user.served = True
        chance = self.world.chance
        long = not self.world.calm and chance.random() < 0.02
        duration = chance.uniform(0.1, 2.0) if long else chance.expovariate(1 / 0.01)
        if isinstance(user, Greedy):
            duration = user.holds or duration
        self.process.after(duration, lambda: self._done(conn))

    def _done(self, conn: Conn) -> None:
        user = self.users.pop(conn, None)
        if user is not None:  # else it was taken away
            user.think()
            broken = not self.world.calm and self.world.chance.random() < 0.02
            if broken:
                self.world.count("connection broken")
            self._check_in(conn, broken=broken)

    def _check_in(self, conn: Conn, *, broken: bool = False) -> None:
        broken = broken or conn.server_session.ended
        conn.last_used = self.world.now
        self.perform(self.core.check_in(conn, reusable=not broken))
        if conn.server_session.ended:
            self.perform(self.core.doubt())

    def stop(self) -> None:
        """The process ends in good order."""
        self.users.clear()
        self.perform(self.core.close())

    def leave(self) -> None:
        """The process is dead: its users go elsewhere."""
        for user in (*self.users.values(), *(user for user, _ in self.waiters.values())):
            user.think()


class SimLink(Membership):
    """The thread of `link.Link`: whenever it has something to do, it does it a moment later."""

    def __init__(self, process: Process) -> None:
        self.process = process
        identity = Identity(process.pid, process.pid, process.host, process.name, run=str(process.pid))
        super().__init__(identity, process.world.chance)
        self._woken = False
        self._timer: float | None = None

    def flush(self) -> None:
        if not self._woken:
            self._woken = True
            self.process.after(0.0001, self.wake)

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        self.process.after(delay, callback)

    def now(self) -> float:
        return self.process.world.now

    @property
    def where(self) -> str:
        return "simulated"

    def wake(self) -> None:
        self._woken = False
        for message in self.outgoing():
            self.process.send(message)
        due = self.due()
        if due is not None and (self._timer is None or not self.now() < self._timer <= due):
            self._timer = due
            self.process.at(due, self.wake)


class Process:
    """One process. While it is stopped nothing of it runs; what was to run runs when it goes on."""

    def __init__(self, world: World, host: str, *, everywhere: bool = False) -> None:
        self.world, self.host = world, host
        self.pid = world.number()
        self.name = f"{self.pid}-x"
        self.dead = self.stopped = self.left = False
        self.backlog: collections.deque[Callable[[], None]] = collections.deque()
        self.connection = 0
        """The number of its connection to the coordinator, 0 while there is none."""
        self.link = SimLink(self)
        self.pools = [
            SimPool(self, server, world.chance.randint(0, 2))
            for server in world.servers
            if everywhere or server is world.servers[0] or world.chance.random() < 0.5
        ]
        world.connect_soon(self)

    @property
    def local(self) -> bool:
        return self.host == HERE

    def at(self, time: float, callback: Callable[[], None]) -> None:
        self.world.at(time, lambda: self.run(callback))

    def after(self, delay: float, callback: Callable[[], None]) -> None:
        self.at(self.world.now + delay, callback)

    def run(self, callback: Callable[[], None]) -> None:
        if self.dead:
            return
        if self.stopped:
            self.backlog.append(callback)
        else:
            callback()

    def go_on(self) -> None:
        self.stopped = False
        while self.backlog and not self.stopped and not self.dead:
            self.backlog.popleft()()

    def send(self, message: FromProcess) -> None:
        connection, data = self.connection, encode(message)
        if isinstance(message, Hello) and not self.local:
            self.world.overhear(self, connection, data)
        if connection:
            self.world.carry(self, lambda: self.world.deliver_to_coordinator(self, connection, data))

    def receive(self, connection: int, data: bytes) -> None:
        if connection == self.connection:
            self.link.receive(decode_from_coordinator(data))
            self.link.flush()


class SimHost:
    """The kernel of the coordinator's host."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.watched: set[str] = set()

    identity = HERE

    def watch(self, name: str, pid: int, started: int) -> bool:
        process = self.world.processes.get(name)
        if process is None or process.dead:
            return False
        self.watched.add(name)
        return True

    def forget(self, name: str) -> None:
        self.watched.discard(name)

    def bind(self, name: str, sender: str) -> None:
        pass

    unbind = forget

    def server_session(self, address: Endpoints) -> Verdict:
        if address in self.world.in_flight or any(address in server.sessions for server in self.world.servers):
            return Verdict.HELD
        return Verdict.GONE

    def half_closed(self, server_port: int) -> set[Endpoints]:
        found = {address for address, session in self.world.in_flight.items() if session.process.dead}
        for server in self.world.servers:
            found |= {address for address, session in server.sessions.items() if session.process.dead}
        return found


@dataclass
class World:
    seed: int
    journal: Path
    weather: Weather = field(default_factory=Weather)

    def __post_init__(self) -> None:
        leased_budget._pool_ids = itertools.count(1)
        orphans.UNNAMED = UNNAMED
        self.chance = random.Random(self.seed)
        self.now = 1000.0
        self.counts: collections.Counter[str] = collections.Counter()
        self.served = 0
        self._numbers = itertools.count(1)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self.calm = False
        self.in_flight: dict[Endpoints, Session] = {}
        """Connections that are on their way to a server."""
        self.processes: dict[str, Process] = {}
        self.hosts = [HERE, HERE, *(f"host {number}" for number in range(self.chance.randint(0, 2)))]
        # Of a budget of one, nobody could see what became of a lost host's session.
        sizes = (1, 2, 3, 5, 8, 12) if len(self.hosts) == 2 else (2, 3, 5, 8, 12)
        self.servers = [Server(self, number, self.chance.choice(sizes)) for number in range(self.chance.randint(1, 2))]
        self.partitioned: set[str] = set()
        self.journal.unlink(missing_ok=True)
        self.host = SimHost(self)
        self.core: CoordinatorCore | None = None
        self.coordinator_stopped = False
        self.coordinator_backlog: collections.deque[Callable[[], None]] = collections.deque()
        self._incarnation = 0
        self._tick_due: float | None = None
        self._flush_due = False
        self._orphans: set[Lease] = set()
        self._overheard: list[Callable[[], None]] = []
        self.start_coordinator()
        for _ in range(self.chance.randint(2, 6)):
            self.spawn()
        for server in self.servers:
            for _ in range(max(3, 2 * server.size)):
                User(self, server).think()

    # -- time -----------------------------------------------------------------------------------------------------

    def at(self, time: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (time, next(self._numbers), callback))

    def number(self) -> int:
        return next(self._numbers)

    def address(self, host: str) -> Endpoints:
        return (f"{host}:{self.number()}", "server")

    def count(self, kind: str) -> None:
        self.counts[kind] += 1

    def step(self) -> bool:
        if not self._queue:
            return False
        time, _, callback = heapq.heappop(self._queue)
        self.now = max(self.now, time)
        callback()
        return True

    # -- the network ----------------------------------------------------------------------------------------------

    def carry(self, process: Process, deliver: Callable[[], None]) -> None:
        """One message between a process and the coordinator, in either direction."""
        chance = self.chance
        if process.local:  # in order, and never lost while the connection is there
            self.at(self.now + 0.0002, deliver)
            return
        if process.host in self.partitioned:
            self.count("cut off")
            return
        weather = self.weather
        if not self.calm and chance.random() < weather.lost:
            self.count("lost")
            return
        delay = 0.001
        if not self.calm and chance.random() < weather.late:
            self.count("late")
            delay = chance.uniform(0.003, 1.0)
        self.at(self.now + delay, deliver)
        if not self.calm and chance.random() < weather.doubled:
            self.count("doubled")
            self.at(self.now + delay + chance.uniform(0, 0.5), deliver)
        if not self.calm and chance.random() < weather.replayed:
            self.count("replayed")
            self.at(self.now + chance.uniform(1, 60), deliver)

    def overhear(self, process: Process, connection: int, hello: bytes) -> None:
        """An old hello, which states what is not so any more, arrives once more: soon, or at the next coordinator."""
        if not self.calm and self.chance.random() < 0.2:
            self.count("hello replayed")
            delay = self.chance.uniform(0.01, 5.0)
            self.at(self.now + delay, lambda: self.deliver_to_coordinator(process, connection, hello))
        if self.chance.random() < 0.5:
            self._overheard.append(lambda: self.deliver_to_coordinator(process, connection, hello))

    def connect_soon(self, process: Process) -> None:
        self.at(self.now + self.chance.uniform(0.001, 0.05), lambda: self._connect(process))

    def _connect(self, process: Process) -> None:
        if process.dead or process.connection:
            return
        if self.core is None:
            self.connect_soon(process)
            return
        process.connection = self.number()
        process.run(self._connected(process))

    def _connected(self, process: Process) -> Callable[[], None]:
        def connected() -> None:
            process.link.connected()
            process.link.flush()

        return connected

    def deliver_to_coordinator(self, process: Process, connection: int, data: bytes) -> None:
        # A remote process's message may be of a connection that is no more: a copy, or one that took long.
        if process.local and (connection != process.connection or process.dead):
            return

        def received() -> None:
            assert self.core is not None
            message, dropped = decode_from_process(data), self.core.fleet.dropped
            self.core.received(process.name, message)
            if self.core.fleet.dropped > dropped:
                self.count("message dropped")
            elif isinstance(message, ProcessPacket):
                self.counts["demand reported"] += sum(isinstance(one, Report) for one in message.messages)

        self.in_coordinator(received)

    # -- the coordinator ------------------------------------------------------------------------------------------

    def start_coordinator(self) -> None:
        self._incarnation += 1
        self._orphans = set()
        for again in self._overheard if not self.calm else ():
            self.count("hello replayed")
            self.at(self.now + self.chance.uniform(0, 1), again)
        self._overheard.clear()
        self.host.watched.clear()
        self._tick_due, self._flush_due = None, False
        self.coordinator_stopped = False
        self.coordinator_backlog.clear()
        self.core = CoordinatorCore(
            self.chance.getrandbits(31) | 1,
            None,
            Journal(self.journal),
            self.host,
            self.now,
            supervised=True,
            remote=True,
        )
        self._flush()

    def crash_coordinator(self) -> None:
        self.core = None
        for process in self.processes.values():
            # A remote one may not be told: then the next coordinator finds out.
            if process.connection and (process.local or self.chance.random() < 0.7):
                process.connection = 0
                process.run(process.link.disconnected)
                self.connect_soon(process)

    def in_coordinator(self, event: Callable[[], None]) -> None:
        if self.core is None:
            return
        if self.coordinator_stopped:
            self.coordinator_backlog.append(event)
            return
        self.core.now = self.now
        event()
        if not self._flush_due:
            self._flush_due = True
            incarnation = self._incarnation
            self.at(self.now + 0.0001, lambda: self._flush_if(incarnation))

    def _flush_if(self, incarnation: int) -> None:
        if incarnation != self._incarnation or self.core is None:
            return
        self._flush_due = False
        if self.coordinator_stopped:
            self.coordinator_backlog.append(lambda: None)
            return
        self._flush()

    def _flush(self) -> None:
        core = self.core
        assert core is not None
        core.now = self.now
        core.tick()
        self.counts.update(_kind(record) for record in core.ledger.records)
        self.counts["ceiling"] += sum(isinstance(message, Ceiling) for _, message in core.ledger.outbox)
        quarantined = {orphan.held.lease for _, orphan in core.ledger.orphans()}
        self.counts["lease quarantined"] += len(quarantined - self._orphans)
        self._orphans = quarantined
        messages = core.flush()
        if not self.calm and messages and self.chance.random() < 0.0005:
            self.count("crash between journal and network")
            self.crash_coordinator()
            self.at(self.now + self.chance.uniform(0.05, 0.5), self.start_coordinator)
            return
        for name, message in messages:
            self._say(name, message)
        due = core.due()
        if due is not None and (self._tick_due is None or not self.now < self._tick_due <= due):
            self._tick_due = due
            incarnation = self._incarnation
            self.at(due, lambda: self._tick_if(incarnation))

    def _tick_if(self, incarnation: int) -> None:
        if incarnation == self._incarnation:
            self._tick_due = None
            self.in_coordinator(lambda: None)

    def _say(self, name: str, message: FromCoordinator) -> None:
        process = self.processes.get(name)
        if process is None or process.dead or not process.connection:
            return
        connection, data = process.connection, encode(message)
        self.carry(process, lambda: process.run(lambda: process.receive(connection, data)))

    # -- what happens to processes --------------------------------------------------------------------------------

    def spawn(self) -> None:
        process = Process(self, self.chance.choice(self.hosts))
        self.processes[process.name] = process

    def kill(self, process: Process) -> None:
        process.dead = True
        for server in self.servers:
            for session in list(server.sessions.values()):
                if session.process is process:
                    self.server_notices(server, session)
        del self.processes[process.name]
        for pool in process.pools:
            pool.leave()
        if process.local:
            self.at(self.now + 0.001, lambda: self.in_coordinator(lambda: self._death(process.name)))

    def _death(self, name: str) -> None:
        if name in self.host.watched and self.core is not None:
            self.core.died(name)

    def server_notices(self, server: Server, session: Session) -> None:
        """Its client is dead: at once where it is idle, at the end of its query elsewhere; where the client's host is
        gone it has to be told, or its keepalive tells it in the end."""
        if not session.process.local and self.chance.random() < 0.5:
            self.count("session lives on")
            self.at(self.now + self.chance.uniform(10, UNNAMED), lambda: server.end(session))
            return
        delay = self.chance.uniform(0.0005, 0.02) if self.chance.random() < 0.7 else self.chance.uniform(0.02, 5.0)
        self.at(self.now + delay, lambda: server.end(session))

    # -- what goes wrong ------------------------------------------------------------------------------------------

    def disturb(self) -> None:
        """Now and then a fault."""
        if self.calm:
            return
        chance, processes = self.chance, list(self.processes.values())
        self.at(self.now + chance.expovariate(1 / self.weather.pause), self.disturb)
        fault = chance.random()
        if fault < 0.2:
            self._ambush()
        elif fault < 0.5:
            self._fault(chance.choice(processes))
        elif fault < 0.6:
            self._fault_of_coordinator()
        elif fault < 0.7 and len(processes) < 8:
            self.count("process starts")
            self.spawn()
        elif fault < 0.85:
            self._fault_of_server()
        elif fault < 0.92:
            self._partition()

    def _fault(self, process: Process) -> None:
        kind = self.chance.random()
        if kind < 0.25 and len(self.processes) > 1:
            self.count("process killed")
            self.kill(process)
            self.at(self.now + self.chance.uniform(0.05, 1), self._respawn)
        elif kind < 0.7 and not process.stopped:
            self._stop(process)
        elif process.connection:
            self.count("connection to coordinator broken")
            process.connection = 0
            process.run(process.link.disconnected)
            self.connect_soon(process)

    def _ambush(self) -> None:
        """Something happens to a process in the very moment in which it opens a connection."""
        opening = [process for process in self.processes.values() if any(pool.core.opening for pool in process.pools)]
        if not opening:
            self.at(self.now + 0.002, lambda: None if self.calm else self._ambush())
            return
        process, kind = self.chance.choice(opening), self.chance.random()
        self.count("ambush")
        if kind < 0.5 and len(self.processes) > 1:
            self.count("process killed")
            self.kill(process)
            self.at(self.now + self.chance.uniform(0.05, 1), self._respawn)
            if kind < 0.2 and self.core is not None:
                self.count("coordinator killed")
                self.crash_coordinator()
                self.at(self.now + self.chance.uniform(0.05, 1.5), self.start_coordinator)
        elif kind < 0.75 and not process.stopped:
            self._stop(process)
        elif process.host != HERE and process.host not in self.partitioned:
            self._cut(process.host)

    def _stop(self, process: Process) -> None:
        self.count("process stopped")
        process.stopped = True
        long = self.chance.random() < 0.3
        lasts = self.chance.uniform(3, self.weather.stopped) if long else self.chance.uniform(0.01, 1)
        self.at(self.now + lasts, process.go_on)

    def _respawn(self) -> None:
        if not self.calm:
            self.count("process starts")
            self.spawn()

    def _fault_of_coordinator(self) -> None:
        if self.core is None:
            return
        if self.chance.random() < 0.5:
            self.count("coordinator killed")
            self.crash_coordinator()
            self.at(self.now + self.chance.uniform(0.05, 1.5), self.start_coordinator)
        elif not self.coordinator_stopped:
            self.count("coordinator stopped")
            self.coordinator_stopped = True
            incarnation = self._incarnation
            self.at(self.now + self.chance.uniform(0.01, 3), lambda: self.coordinator_goes_on(incarnation))

    def coordinator_goes_on(self, incarnation: int) -> None:
        if incarnation != self._incarnation or not self.coordinator_stopped:
            return
        self.coordinator_stopped = False
        while self.coordinator_backlog and self.core is not None and not self.coordinator_stopped:
            self.in_coordinator(self.coordinator_backlog.popleft())

    def _fault_of_server(self) -> None:
        server = self.chance.choice(self.servers)
        if self.chance.random() < 0.5:
            self.count("sessions ended by the server")
            for session in list(server.sessions.values()):
                if self.chance.random() < 0.5:
                    server.end(session)
        elif not server.down:
            self.count("server refuses")
            server.down = True
            self.at(self.now + self.chance.uniform(0.05, 2), lambda: setattr(server, "down", False))

    def _partition(self) -> None:
        remote = [host for host in self.hosts if host != HERE and host not in self.partitioned]
        if remote:
            self._cut(self.chance.choice(remote))

    def _cut(self, host: str) -> None:
        self.count("partition")
        self.partitioned.add(host)
        self.at(self.now + self.chance.uniform(0.1, self.weather.cut), lambda: self.partitioned.discard(host))

    # -- the whole ------------------------------------------------------------------------------------------------

    @property
    def events(self) -> int:
        return sum(self.counts.values())

    def run(self) -> None:
        """Some time of trouble, then calm until everybody is served and everything is back."""
        self.disturb()
        until = self.now + self.weather.seconds
        while self.now < until and self.step():
            pass
        self.calm = True
        self.settle()

    def settle(self) -> None:
        # Somebody has to be there who can see what became of the sessions of lost hosts.
        last = Process(self, HERE, everywhere=True)
        self.processes[last.name] = last
        # Faults end; waiters are served, or time out.
        self._run_until(self.now + max(self.weather.stopped, self.weather.cut) + CONN_TIMEOUT + 5)
        for process in self.processes.values():
            for pool in process.pools:
                if pool.waiters:
                    raise Broken(f"{process.name} still waits: {pool.core.demand()} {self._ledger.budgets}")
                if pool.users:
                    raise Broken(f"{process.name} has users without end")
        self._run_until(self.now + 2 * UNNAMED)  # what was granted to hosts that are lost comes back
        self._serve_everybody()
        for process in list(self.processes.values()):
            for pool in process.pools:
                pool.stop()
        self._run_until(self.now + 2 * UNNAMED)
        for process in self.processes.values():
            for pool in process.pools:
                if pool.core.held:
                    raise Broken(f"{process.name} holds {pool.core.held} for ever")
        for budget in self._ledger.budgets.values():
            if budget.charged:
                raise Broken(f"{budget.charged} leases of {budget.database} are lost: {budget}")
        for server in self.servers:
            if server.sessions:
                raise Broken(f"{len(server.sessions)} sessions are left at {server.identity}")

    def _serve_everybody(self) -> None:
        """One process after the other wants more than there is; so does one that is stopped then, and keeps what it
        has. Everybody else who wants one connection gets it soon."""
        for server in self.servers:
            pools = [pool for process in self.processes.values() for pool in process.pools if pool.server is server]
            for greedy in pools[:3]:
                crowd = [Greedy(self, greedy) for _ in range(2 * server.size)]
                self._run_until(self.now + 1.0)
                others = [pool for pool in pools if pool is not greedy]
                held_up = self.chance.choice(others) if others and server.size > 2 else None
                if held_up is not None:
                    for _ in range(server.size):
                        Greedy(self, held_up, times=1, holds=1.0)
                    self._run_until(self.now + 0.9)
                    held_up.process.stopped = True
                # Each guest keeps what it gets; so there are no more of them than there is to be had, when the one that
                # is stopped has got what it had asked for before.
                budget = self._ledger.budgets[server.identity]
                kept = [pool for key, pool in budget.pools.items() if held_up and key[0] == held_up.process.name]
                left = budget.usable - sum(len(pool.leases) + pool.demand.want for pool in kept)
                able = [pool for pool in others if not pool.process.stopped][: max(0, left)]
                guests = [Greedy(self, pool, times=1, holds=2 * SERVED_IN) for pool in able]
                self._run_until(self.now + SERVED_IN)
                late = [guest.pool.process.name for guest in guests if not guest.served]
                if late:
                    raise Broken(f"{late} are not served within {SERVED_IN} s: {self._ledger.budgets}")
                if held_up is not None:
                    held_up.process.go_on()
                for one in crowd:
                    one.times = 0
                self._run_until(self.now + CONN_TIMEOUT + 1)

    @property
    def _ledger(self) -> Ledger:
        assert self.core is not None
        return self.core.ledger

    def _run_until(self, time: float) -> None:
        self.at(time, lambda: None)
        while self.now < time and self.step():
            pass


def _kind(record: Record) -> str:
    return record.kind if record.kind != "moved" or record.held is None else f"lease {record.held.state.name.lower()}"


def quiet() -> None:
    """What goes wrong here on purpose is not logged."""
    leased_budget.logger.disabled = True
    membership.logger.disabled = True
