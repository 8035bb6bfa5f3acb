"""A process with the real link and clients in the pools' place that open nothing: `... LEADER ENDPOINT POOLS URI`.

A client asks for leases and gives each back the moment it is granted. So what is measured is the way from asking to
the grant, through link, socket, coordinator and journal, and no database.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence

from pysqlx_engine.engine.uri import parse_uri
from pysqlx_engine.pool.budget import Demand, Lease, OrphanedSession, PoolRequest
from pysqlx_engine.pool.stats import Counters
from pysqlx_engine.workers.leased_budget import LeasedBudget
from pysqlx_engine.workers.link import Link

from .fleet import TIMEOUT, Member, join, sleep_until


class ThinClient:
    """A `BudgetClient` whose waiters are the moments at which they began to wait."""

    def __init__(self, link: Link, uri: str) -> None:
        request = PoolRequest("thin", parse_uri(uri), 0, 1, max_size_stated=False, timeout=TIMEOUT)
        self.budget = LeasedBudget(link, request)
        self.keen = False
        """Whether it asks anew for each lease that it was granted."""
        self.waits: list[float] = []
        self.granted_at: list[float] = []
        self.served = threading.Event()
        """Nobody waits."""
        self._waiting: deque[float] = deque()

    def ask(self, since: float, leases: int = 1) -> None:
        self.served.clear()
        self._waiting.extend([since] * leases)
        self.budget.demand_changed(urgent=True)

    # -- what the link calls --------------------------------------------------------------------------------------

    def granted(self, leases: Sequence[Lease]) -> None:
        now = time.monotonic()
        for _ in leases:
            self.waits.append(now - self._waiting.popleft())
            self.granted_at.append(now)
        self.budget.give_back(leases)
        if self.keen:
            self.ask(now, len(leases))
        elif not self._waiting:
            self.served.set()

    def denied(self) -> None:
        pass  # said of what is wanted while nobody waits

    def set_ceiling(self, ceiling: int | None) -> None:
        self.budget.demand_changed(urgent=True)

    def resized(self) -> None:
        pass

    def suspend(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def disown(self, leases: Sequence[Lease]) -> None:
        pass

    def end_sessions(self, sessions: Sequence[OrphanedSession]) -> None:
        pass

    def refused(self, error: BaseException) -> None:
        raise error

    def tell_demand(self) -> Demand:
        waiting = len(self._waiting)
        return Demand(in_use=0, idle=0, recent=0, waiting=waiting, want=waiting)

    def tell_counters(self) -> Counters:
        return Counters()


def serve(leader: Member, clients: list[ThinClient]) -> None:
    while True:
        match leader.hear():
            case {"do": "saturate", "since": since, "until": until}:
                for client in clients:
                    client.keen = True
                    client.ask(time.monotonic())
                sleep_until(since)
                before = sum(len(client.waits) for client in clients)
                sleep_until(until)
                grants = sum(len(client.waits) for client in clients) - before
                for client in clients:
                    client.keen = False
                for client in clients:
                    client.served.wait(TIMEOUT)
                leader.say(grants=grants)
            case {"do": "pace", "since": since, "until": until, "pause": pause}:
                # A wait counts from when its request was due: one that could not even be sent yet has waited, too.
                for client in clients:
                    client.waits.clear()
                asking = itertools.cycle(clients)
                while since < until:
                    sleep_until(since)
                    next(asking).ask(since)
                    since += pause
                for client in clients:
                    client.served.wait(TIMEOUT)
                leader.say(waits=[wait for client in clients for wait in client.waits])
            case {"do": "want", "leases": leases}:
                (client,) = clients
                client.granted_at.clear()
                client.ask(time.monotonic(), leases)
                leader.say()
                client.served.wait(TIMEOUT)
                leader.say(granted_at=client.granted_at)


def main() -> None:
    path, endpoint, pools, uri = sys.argv[1:]
    link = Link(endpoint)
    clients = [ThinClient(link, uri) for _ in range(int(pools))]
    for client in clients:
        asyncio.run(client.budget.attach(client))
    leader = join(path)
    try:
        serve(leader, clients)
    except EOFError:
        for client in clients:
            client.budget.detach()
        link.stop()


if __name__ == "__main__":
    main()
