"""A whole fleet in one thread: real pool cores, real leased budgets, the real ledger; messages, connections and deaths
happen in a random order that a seed decides. After every step the server's sessions are counted."""

from __future__ import annotations

import collections
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from pysqlx_engine.engine.session import ServerSession
from pysqlx_engine.engine.uri import parse_uri
from pysqlx_engine.pool.budget import Demand, Lease, PoolRequest
from pysqlx_engine.pool.core import ConnInfo, Effects, PoolCore, Waiter
from pysqlx_engine.workers.leased_budget import LeasedBudget, Outgoing
from pysqlx_engine.workers.ledger import Ledger
from pysqlx_engine.workers.messages import FromCoordinator, HeldLease, Unwelcome, Welcome

URI = parse_uri("postgresql://user@db.example/shop")
STEPS = 1500


class Process:
    """One process with one pool: what `PoolRuntime` and `Link` do, without threads and servers."""

    def __init__(self, fleet: Fleet, name: str, min_size: int) -> None:
        self.fleet, self.name = fleet, name
        self.lock = threading.Lock()
        self.outgoing: collections.deque[Outgoing] = collections.deque()
        self.incoming: collections.deque[FromCoordinator] = collections.deque()
        self.changed = False
        self.timers: list[Callable[[], None]] = []
        self.epoch: int | None = None
        self.core = PoolCore(min_size, fleet.size, check_after=0.05)
        self.to_test: list[ConnInfo] = []
        self.to_open: list[Lease] = []
        self.to_close: list[ConnInfo] = []
        self.users: list[ConnInfo] = []
        self.waiters: list[Waiter] = []
        request = PoolRequest("pool", URI, min_size, fleet.size, True, 1.0)
        self.budget = LeasedBudget(self, request)
        self.budget._client = self
        self.perform(self.core.start())

    # what the budget's link does

    def add(self, budget: LeasedBudget) -> None: ...
    def remove(self, budget: LeasedBudget) -> None: ...
    def flush(self) -> None: ...

    def describe(self) -> str:
        return "simulated"

    def label(self, pool: str) -> str:
        return pool

    def full_name(self, pool: str) -> str:
        return f"{pool} of {self.name}"

    def post(self, message: Outgoing) -> None:
        self.outgoing.append(message)

    def demand_changed(self, budget: LeasedBudget) -> None:
        self.changed = True

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        self.timers.append(callback)

    # what the pool's shell does

    def perform(self, effects: Effects | Waiter | None) -> None:
        if effects is None:
            return
        if isinstance(effects, Waiter):
            effects = Effects(wake=[effects])
        for waiter in effects.wake:
            assert waiter is self.waiters.pop(0), "not first come, first served"
            assert waiter.conn is not None
            self.users.append(waiter.conn)
            self.fleet.served += 1
        self.to_open += effects.open
        self.to_close += effects.close
        self.to_test += effects.test
        if effects.give_back:
            self.budget.give_back(effects.give_back)
        if effects.tell:
            self.budget.demand_changed(urgent=True)

    def granted(self, leases: Sequence[Lease]) -> None:
        self.perform(self.core.granted(leases))

    def denied(self) -> None:
        self.perform(self.core.deny())

    def set_ceiling(self, ceiling: int | None) -> None:
        self.perform(self.core.set_ceiling(ceiling))

    def resized(self) -> None: ...

    def refused(self, error: BaseException) -> None:
        raise AssertionError(error)

    def tell_demand(self) -> Demand:
        return self.core.tell(self.fleet.ledger.now)

    # what can happen here

    def arrive(self) -> None:
        conn = self.core.check_out(self.fleet.ledger.now, 1, 1)
        if conn is not None:
            self.users.append(conn)
            self.fleet.served += 1
        else:
            waiter = Waiter(lambda: None)
            self.waiters.append(waiter)
            self.perform(self.core.wait(waiter, self.fleet.ledger.now))

    def give_up(self) -> None:
        waiter = self.waiters.pop(self.fleet.random.randrange(len(self.waiters)))
        self.perform(self.core.give_up(waiter)[1])

    def check_in(self, broken: bool = False) -> None:
        conn = self.users.pop(self.fleet.random.randrange(len(self.users)))
        conn.last_used = self.fleet.ledger.now
        self.perform(self.core.check_in(conn, reusable=not broken))

    def test_ends(self, *, dead: bool = False) -> None:
        conn = self.to_test.pop(self.fleet.random.randrange(len(self.to_test)))
        self.perform(self.core.tested(conn, self.fleet.ledger.now, alive=not dead))

    def open_ends(self, *, failed: bool = False) -> None:
        lease = self.to_open.pop(0)
        if failed:
            self.perform(self.core.open_failed(lease, OSError(), permanent=False))
            self.perform(self.core.try_again())
            return
        session = ServerSession(1, None)
        self.budget.opened(lease, session)
        self.perform(self.core.opened(ConnInfo("conn", lease, None, None, session, self.fleet.ledger.now)))

    def close_ends(self) -> None:
        self.perform(self.core.closed(self.to_close.pop(0)))

    def send(self) -> None:
        """What the link's thread sends in one go."""
        if self.epoch is None:
            return
        messages, self.outgoing = list(self.outgoing), collections.deque()
        if self.changed:
            self.changed = False
            messages.append(self.budget.report)
        self.fleet.inbox[self.name].extend(message(self.epoch) for message in messages)

    def receive(self) -> None:
        message = self.incoming.popleft()
        if isinstance(message, Welcome | Unwelcome) or message.epoch != self.epoch:
            return
        self.budget.receive(message)

    @property
    def sessions(self) -> int:
        return len(self.to_open) + self.core.size + len(self.to_close)

    @property
    def busy(self) -> bool:
        return bool(self.to_open or self.to_close or self.incoming or self.outgoing or self.changed)


@dataclass
class Fleet:
    random: random.Random
    size: int
    processes: dict[str, Process] = field(default_factory=dict)
    inbox: dict[str, collections.deque[object]] = field(default_factory=dict)
    ghosts: dict[Lease, bool] = field(default_factory=dict)
    """Leases of dead processes whose sessions the server still has."""
    epoch: int = 1
    started: int = 0
    served: int = 0

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.epoch, None, self.epoch << 31)
        for _ in range(self.random.randint(2, 5)):
            self.spawn()

    def spawn(self) -> None:
        self.started += 1
        name = f"process-{self.started}"
        self.inbox[name] = collections.deque()
        process = self.processes[name] = Process(self, name, self.random.randint(0, 2))
        self.join(process)

    def join(self, process: Process) -> None:
        """The hello of a process, and its answer."""
        process.epoch = self.epoch
        process.outgoing.clear()
        process.incoming.clear()
        self.inbox[process.name].clear()
        self.ledger.attach(process.name, process.budget.claim())
        process.changed = True
        self.deliver()

    def deliver(self) -> None:
        self.ledger.records.clear()
        messages, self.ledger.outbox = self.ledger.outbox, []
        for member, message in messages:
            if member in self.processes:
                self.processes[member].incoming.append(message)

    def kill(self, process: Process) -> None:
        del self.processes[process.name]
        del self.inbox[process.name]
        open_ = (*process.core.idle, *process.core.in_use, *process.core.testing)
        for lease in [*process.to_open, *(conn.lease for conn in open_)]:
            self.ghosts[lease] = True
        for conn in process.to_close:
            self.ghosts[conn.lease] = True
        self.ledger.dead(process.name)
        self.deliver()

    def let_go(self) -> None:
        """The server notices one dead client; or the coordinator sees that a lease never became a session."""
        database, orphan = self.random.choice(list(self.ledger.orphans()))
        self.ghosts.pop(orphan.held.lease, None)
        self.ledger.gone(database, orphan.held.lease)
        self.deliver()

    def restart_coordinator(self) -> None:
        """The next coordinator learns from the journal; then the processes say hello, one after the other."""
        held = {process.name: list(process.budget._leases.values()) for process in self.processes.values()}
        for (
            budget
        ) in self.ledger.budgets.values():  # the journal: what was granted and has not been received counts too
            for pool in budget.pools.values():
                held[pool.key[0]] = list(pool.leases.values())
        orphans = [orphan for _, orphan in self.ledger.orphans()]
        self.epoch += 1
        now = self.ledger.now
        self.ledger = Ledger(self.epoch, None, self.epoch << 31)
        self.ledger.now = now
        assert URI.identity is not None
        for name, leases in held.items():
            key = (name, self.processes[name].budget.pool_id)
            self.ledger.recover(URI.identity, key, "pool", leases)
        for number, orphan in enumerate(orphans):
            key = (f"dead-{number}", 1)
            self.ledger.recover(URI.identity, key, "pool", [HeldLease(orphan.held.lease)])
            self.ledger.dead(key[0])
        self.ledger.granting = False
        for process in self.processes.values():
            process.epoch = None
        for process in list(self.processes.values()):
            self.join(process)
        self.ledger.start_granting()
        self.deliver()

    def step(self) -> None:
        actions: list[Callable[[], None]] = []
        for process in self.processes.values():
            actions += [process.arrive] * (2 if len(process.waiters) < 12 else 0)
            actions += [process.check_in] * (2 * bool(process.users))
            actions += [process.give_up] * bool(process.waiters)
            if self.random.random() < 0.1 and process.users:
                actions.append(lambda process=process: process.check_in(broken=True))  # type: ignore[misc]
            if self.random.random() < 0.1 and process.to_test:
                actions.append(lambda process=process: process.test_ends(dead=True))  # type: ignore[misc]
            if self.random.random() < 0.1 and process.to_open:
                actions.append(lambda process=process: process.open_ends(failed=True))  # type: ignore[misc]
        actions += self.work()
        if self.random.random() < 0.01:
            actions = [self.restart_coordinator]
        elif self.random.random() < 0.01 and len(self.processes) > 1:
            actions = [lambda: self.kill(self.random.choice(list(self.processes.values())))]
        elif self.random.random() < 0.01 and len(self.processes) < 6:
            actions = [self.spawn]
        elif self.random.random() < 0.05:
            actions = [self.time_passes]
        self.random.choice(actions)()
        self.check()

    def work(self) -> list[Callable[[], None]]:
        """What goes on by itself: messages, connections, the coordinator's timers."""
        actions: list[Callable[[], None]] = []
        for name, process in self.processes.items():
            actions += [process.open_ends] * bool(process.to_open)
            actions += [process.close_ends] * bool(process.to_close)
            actions += [process.test_ends] * bool(process.to_test)
            actions += [process.send] * (2 * bool(process.outgoing or process.changed))
            actions += [process.receive] * (2 * bool(process.incoming))
            if process.timers:
                actions.append(lambda process=process: process.timers.pop()())  # type: ignore[misc]
            if self.inbox[name]:
                actions += [lambda name=name: self.take(name)] * 2  # type: ignore[misc]
        actions += [self.let_go] * bool(list(self.ledger.orphans()))
        actions += [self.relax] * self.ledger.relaxable
        return actions + [self.time_passes] * self.ledger.under_pressure

    def take(self, name: str) -> None:
        self.ledger.take(name, self.inbox[name].popleft())  # type: ignore[arg-type]
        self.deliver()

    def relax(self) -> None:
        self.ledger.relax()
        self.deliver()

    def time_passes(self) -> None:
        self.ledger.now += self.random.choice([0.01, 0.06])
        self.ledger.look_again()
        self.deliver()

    def check(self) -> None:
        sessions = len(self.ghosts) + sum(process.sessions for process in self.processes.values())
        assert sessions <= self.size, f"{sessions} sessions, a budget of {self.size}"
        for process in self.processes.values():
            assert set(process.budget._leases) == {
                *process.core.spare,
                *process.core.opening,
                *(conn.lease for conn in (*process.core.idle, *process.core.in_use, *process.core.testing)),
                *(conn.lease for conn in process.core.closing),
            }

    def settle(self) -> None:
        """Nobody new arrives; everybody who has a connection gives it back; then everybody has to have been served."""
        for _ in range(20_000):
            actions = self.work()
            for process in self.processes.values():
                actions += [process.check_in] * bool(process.users)
            if not actions:
                break
            self.random.choice(actions)()
            self.check()
        for process in self.processes.values():
            assert not process.waiters, f"{process.name} still waits: {process.core.demand()} {self.ledger.budgets}"
        assert not self.ghosts
        # Whoever closes now gives everything back.
        for process in self.processes.values():
            process.perform(process.core.close())
        for _ in range(20_000):
            actions = self.work()
            if not actions:
                break
            self.random.choice(actions)()
        assert all(not process.core.held for process in self.processes.values())
        assert sum(budget.charged for budget in self.ledger.budgets.values()) == 0


@pytest.mark.parametrize("seed", range(60))
def test_the_budget_holds_and_everybody_is_served(seed: int) -> None:
    chance = random.Random(seed)
    fleet = Fleet(chance, size=chance.choice([1, 2, 3, 5, 8]))
    for _ in range(STEPS):
        fleet.step()
    fleet.settle()
    assert fleet.served > 0
