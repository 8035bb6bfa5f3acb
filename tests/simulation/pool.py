"""A pool of a simulated process: the real core and the real budget, without threads and connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pysqlx_engine.engine.session import ServerSession
from pysqlx_engine.errors import ConnectError, PoolError
from pysqlx_engine.pool.budget import Demand, Lease, OrphanedSession, PoolRequest
from pysqlx_engine.pool.core import OURSELVES, ConnInfo, Effects, PoolCore, State, Waiter
from pysqlx_engine.pool.stats import Counters
from pysqlx_engine.workers.leased_budget import LeasedBudget

from .server import Broken, Server, Session
from .users import Greedy, User

if TYPE_CHECKING:
    from .process import Process

CONN_TIMEOUT = 30.0


class Conn(ConnInfo):
    __slots__ = ("broken", "server_session")

    server_session: Session
    broken: bool


class SimPool:
    """What `PoolRuntime` and `Upkeep` do, without threads and servers: a client of the real budget with the real
    core."""

    def __init__(self, process: Process, server: Server, min_size: int) -> None:
        self.process, self.server, self.world = process, server, process.world
        request = PoolRequest("pool", server.uri, min_size, server.size, True, CONN_TIMEOUT)
        self.budget = LeasedBudget(process.link, request)
        self.core = PoolCore(min_size, server.size, check_after=0.5)
        self.counters = Counters()
        self.users: dict[Conn, User] = {}
        self.waiters: dict[Waiter, tuple[User, float]] = {}
        self.budget._client = self
        process.link.add(self.budget)
        self.perform(self.core.start())

    @property
    def is_open(self) -> bool:
        return self.core.state is State.OPEN and not self.process.dead

    @property
    def leases(self) -> set[Lease]:
        """What it holds."""
        return set(self.budget._leases)

    @property
    def unheard_of(self) -> bool:
        """Whether it has connections of which the coordinator may not know."""
        named = self.budget.named
        return bool(self.core.opening) or any(conn.lease not in named for conn in self.core.idle)

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

    def tell_counters(self) -> Counters:
        return self.counters

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
        if self.core.state is State.CLOSED and not self.core.held and self in self.process.pools:
            self.process.pools.remove(self)
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
        session = Session(world.number(), self.process, world.address(self.process.host), lease)
        world.in_flight[session.address] = session
        process = self.process
        world.trouble.opening(process)

        def arrive() -> None:  # at the server: it comes to this although the process may have died, or be stopped
            if not world.in_flight.pop(session.address, None):
                return
            if self.server.down or (not world.calm and chance.random() < 0.03):
                session.ended = True
            else:
                self.server.connect(session)
                if process.dead:
                    world.trouble.server_notices(self.server, session)
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
            effects = self.core.opened(conn)
            self.budget.opened(lease, held)
            self.perform(effects)

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
        if not self.is_open:
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

    def stop(self, grace: float) -> None:
        """The pool is closed in good order: whoever uses it has so many seconds left."""
        self.perform(self.core.stop())
        self.process.after(grace, self._close_all)

    def _close_all(self) -> None:
        for user in self.users.values():
            user.think()
        self.users.clear()
        self.perform(self.core.close())

    def leave(self) -> None:
        """The process is dead: its users go elsewhere."""
        for user in (*self.users.values(), *(user for user, _ in self.waiters.values())):
            user.think()
