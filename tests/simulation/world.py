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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pysqlx_engine.engine.sockets import Endpoints
from pysqlx_engine.workers import leased_budget, membership, orphans

from .coordinator import Coordinator
from .network import Network
from .pool import CONN_TIMEOUT, SimPool
from .process import HERE, Process
from .server import Broken, Server, Session
from .trouble import Trouble
from .users import Greedy, User
from .weather import UNNAMED, Weather

SERVED_IN = 3.0
"""Seconds in which everybody is served when nothing goes wrong any more, however greedy the others are."""


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
        self._queue: list[tuple[float, int, Callable[[], None], Process | None]] = []
        self.calm = False
        """Whether the trouble is over."""
        self.fair_until = 0.0
        """Until when nothing new goes wrong, and no message is lost."""
        self.in_flight: dict[Endpoints, Session] = {}
        """Connections that are on their way to a server."""
        self.processes: dict[str, Process] = {}
        self.hosts = [HERE, HERE, *(f"host {number}" for number in range(self.chance.randint(0, 2)))]
        # Of a budget of one, nobody could see what became of a lost host's session.
        sizes = (1, 2, 3, 5, 8, 12) if len(self.hosts) == 2 else (2, 3, 5, 8, 12)
        self.servers = [Server(self, number, self.chance.choice(sizes)) for number in range(self.chance.randint(1, 2))]
        self.network = Network(self)
        self.trouble = Trouble(self)
        self.coordinator = Coordinator(self, self.journal)
        self.coordinator.start()
        for _ in range(self.chance.randint(2, 6)):
            self.spawn()
        for server in self.servers:
            for _ in range(max(3, 2 * server.size)):
                User(self, server).think()

    # -- time -----------------------------------------------------------------------------------------------------

    def at(self, time: float, callback: Callable[[], None], process: Process | None = None) -> None:
        """Call `callback` then: in `process`, if it lives, and as soon as it runs."""
        heapq.heappush(self._queue, (time, next(self._numbers), callback, process))

    def run_until(self, time: float) -> None:
        queue, pop = self._queue, heapq.heappop
        while queue and queue[0][0] <= time:
            due, _, callback, process = pop(queue)
            self.now = max(self.now, due)
            if process is None:
                callback()
            else:
                process.run(callback)
        self.now = time

    # -- what there is --------------------------------------------------------------------------------------------

    def number(self) -> int:
        return next(self._numbers)

    def address(self, host: str) -> Endpoints:
        return (f"{host}:{self.number()}", "server")

    def count(self, kind: str) -> None:
        self.counts[kind] += 1

    @property
    def events(self) -> int:
        return sum(self.counts.values())

    @property
    def fair(self) -> bool:
        return self.calm or self.now < self.fair_until

    def spawn(self) -> None:
        process = Process(self, self.chance.choice(self.hosts))
        self.processes[process.name] = process

    def pools(self, server: Server) -> list[SimPool]:
        return [
            pool
            for process in self.processes.values()
            for pool in process.pools
            if pool.server is server and pool.is_open
        ]

    # -- the whole ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Some time of trouble, then calm until everybody is served and everything is back."""
        self.trouble.begin()
        self.run_until(self.now + self.weather.seconds)
        self.calm = True
        self.settle()

    def settle(self) -> None:
        # Somebody has to be there who can see what became of the sessions of lost hosts.
        last = Process(self, HERE, everywhere=True)
        self.processes[last.name] = last
        # Faults end; waiters are served, or time out.
        self.run_until(self.now + max(self.weather.stopped, self.weather.cut) + CONN_TIMEOUT + 5)
        for process in self.processes.values():
            for pool in process.pools:
                if pool.waiters:
                    raise Broken(f"{process.name} still waits: {pool.core.demand()} {self.coordinator.ledger.budgets}")
                if pool.users:
                    raise Broken(f"{process.name} has users without end")
        self.run_until(self.now + 2 * UNNAMED)  # what was granted to hosts that are lost comes back
        self._compare()
        self._serve_everybody()
        for process in list(self.processes.values()):
            for pool in list(process.pools):
                pool.stop(0)
        self.run_until(self.now + 2 * UNNAMED)
        for process in self.processes.values():
            for pool in process.pools:
                if pool.core.held:
                    raise Broken(f"{process.name} holds {pool.core.held} for ever")
        for budget in self.coordinator.ledger.budgets.values():
            if budget.charged:
                raise Broken(f"{budget.charged} leases of {budget.database} are lost: {budget}")
        for server in self.servers:
            if server.sessions:
                raise Broken(f"{len(server.sessions)} sessions are left at {server.identity}")

    def _compare(self) -> None:
        """What the coordinator believes is so: it charges each pool with what that holds, and nobody else."""
        held = {
            (process.name, pool.budget.pool_id): pool.leases
            for process in self.processes.values()
            for pool in process.pools
        }
        budgets = self.coordinator.ledger.budgets.values()
        charged = {key: set(pool.leases) for budget in budgets for key, pool in budget.pools.items()}
        if charged != held:
            wrong = {key for key in charged.keys() | held.keys() if charged.get(key) != held.get(key)}
            raise Broken(
                f"charged {[(key, charged.get(key)) for key in wrong]}, held {[held.get(key) for key in wrong]}"
            )
        for budget in budgets:
            if budget.quarantined:
                raise Broken(f"{budget.quarantined} are in quarantine for ever")

    def _serve_everybody(self) -> None:
        """One process after the other wants more than there is; so does one that is stopped then, and keeps what it
        has. Everybody else who wants one connection gets it soon."""
        for server in self.servers:
            pools = self.pools(server)
            for greedy in pools[:3]:
                crowd = [Greedy(self, greedy, holds=0.05) for _ in range(2 * server.size)]
                self.run_until(self.now + 1.0)
                others = [pool for pool in pools if pool is not greedy]
                held_up = self.chance.choice(others) if others and server.size > 2 else None
                if held_up is not None:
                    for _ in range(server.size):
                        Greedy(self, held_up, times=1, holds=1.0)
                    self.run_until(self.now + 0.9)
                    held_up.process.stopped = True
                # Each guest keeps what it gets; so there are no more of them than there is to be had, when the one that
                # is stopped has got what it had asked for before.
                budget = self.coordinator.ledger.budgets[server.identity]
                kept = [pool for key, pool in budget.pools.items() if held_up and key[0] == held_up.process.name]
                left = budget.usable - sum(len(pool.leases) + pool.demand.want for pool in kept)
                able = [pool for pool in others if not pool.process.stopped][: max(0, left)]
                guests = [Greedy(self, pool, times=1, holds=2 * SERVED_IN) for pool in able]
                self.run_until(self.now + SERVED_IN)
                late = [guest.pool.process.name for guest in guests if not guest.served]
                if late:
                    raise Broken(f"{late} are not served within {SERVED_IN} s: {self.coordinator.ledger.budgets}")
                if held_up is not None:
                    held_up.process.go_on()
                for one in crowd:
                    one.times = 0
                self.run_until(self.now + CONN_TIMEOUT + 1)


def quiet() -> None:
    """What goes wrong here on purpose is not logged."""
    leased_budget.logger.disabled = True
    membership.logger.disabled = True
