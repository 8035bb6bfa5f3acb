"""A process that only is simulated: the real membership on a socket of its own, with a client that opens nothing."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence

import zmq

from pysqlx_engine.engine.uri import parse_uri
from pysqlx_engine.pool.budget import Demand, Lease, OrphanedSession, PoolRequest
from pysqlx_engine.pool.stats import Counters
from pysqlx_engine.system import host_identity, start_time
from pysqlx_engine.workers.leased_budget import LeasedBudget
from pysqlx_engine.workers.membership import Identity, Membership
from pysqlx_engine.workers.messages import decode_from_coordinator, encode

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


class SimulatedLink(Membership):
    """This process, with one pool that wants `wanted` leases and then keeps them. Its owner polls `socket` and calls
    `turn`."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, wanted: int) -> None:
        pid = os.getpid()
        super().__init__(Identity(pid, start_time(pid) or 0, host_identity(), f"{pid}-simulated"), random.Random())
        self.wanted = wanted
        self.leases: list[Lease] = []
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        request = PoolRequest("simulated", parse_uri(NOWHERE), 0, 1, max_size_stated=False, timeout=60.0)
        self._budget = LeasedBudget(self, request)
        self._budget._client = self
        self.add(self._budget)
        self.connected()
        self._budget.demand_changed(urgent=True)
        self.turn()

    def turn(self) -> None:
        """Take what has come, and say what is to be said."""
        while True:
            try:
                self.receive(decode_from_coordinator(self.socket.recv(zmq.NOBLOCK)))
            except zmq.Again:
                break
        for message in self.outgoing():
            self.socket.send(encode(message))

    # -- the shell ------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        pass  # whoever polls the socket takes a turn

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        pass

    def now(self) -> float:
        return time.monotonic()

    @property
    def where(self) -> str:
        return "nowhere"

    # -- the budget's client --------------------------------------------------------------------------------------

    def granted(self, leases: Sequence[Lease]) -> None:
        self.leases += leases
        self._budget.demand_changed(urgent=True)

    def tell_demand(self) -> Demand:
        in_use = len(self.leases)
        waiting = self.wanted - in_use
        return Demand(in_use, 0, in_use, waiting, waiting)

    def tell_counters(self) -> Counters:
        return Counters()

    def set_ceiling(self, ceiling: int | None) -> None:
        self._budget.demand_changed(urgent=True)

    def refused(self, error: BaseException) -> None:
        raise error

    def denied(self) -> None:
        pass

    def resized(self) -> None:
        pass

    def suspend(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def disown(self, leases: Sequence[Lease]) -> None:
        raise RuntimeError("a process of this host has no term")

    def end_sessions(self, sessions: Sequence[OrphanedSession]) -> None:
        pass
