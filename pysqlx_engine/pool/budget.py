"""What a pool needs from whoever hands out connections: the `Budget` interface, and the one that is just a number.

A lease is the right to one server-side connection. A pool asks for leases when somebody waits, opens a connection only
under a lease, and gives the lease back when the server has confirmed the close. Which budget a pool gets is decided by
the provider that `use_provider` installs: by default every pool has a number of its own (`LocalBudget`); in a process
that joined a coordinator it is a lease client. The pool itself cannot tell.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ..engine.session import ServerSession
from ..engine.sockets import Endpoints
from ..engine.uri import DatabaseURI
from .stats import Counters

Lease = int

RECENT = 0.05
"""Seconds. An idle connection that was in use so recently will be in use again in a moment: to take it away would cost
a close and a connect, and a moment later the same again the other way round."""


class Demand(NamedTuple):
    """What one pool uses and what it lacks, at one moment."""

    in_use: int
    idle: int
    recent: int
    """Connections used within the last `RECENT` seconds: those in use, and idle ones that were in use just now."""
    waiting: int
    want: int
    """Leases that the pool would use at once, beyond those it holds."""


class OrphanedSession(NamedTuple):
    """A server session whose process is dead, or cannot be reached."""

    lease: Lease
    server_id: int
    """The PostgreSQL backend's process id, or the MySQL connection id."""
    address: Endpoints
    """The two ends of its TCP connection, its client's first: the same id may be somebody else's by now."""


@dataclass(frozen=True, slots=True)
class PoolRequest:
    """What a pool says about itself when it asks for a budget."""

    name: str
    uri: DatabaseURI
    min_size: int
    max_size: int
    max_size_stated: bool
    """False when `max_size` is only the default: then it is no statement about the size of the budget."""
    timeout: float
    """Seconds to wait for whoever decides."""


class BudgetClient(Protocol):
    """The pool's side. All methods may be called from any thread, and do not block."""

    def granted(self, leases: Sequence[Lease]) -> None:
        """Take `leases`."""

    def denied(self) -> None:
        """What was wanted on top of that cannot be had for now."""

    def set_ceiling(self, ceiling: int | None) -> None:
        """Somebody else waits: hold at most `ceiling` leases, from idle connections at once, from others when they
        come back. None lifts the ceiling. The pool answers with a `Budget.demand_changed`."""

    def resized(self) -> None:
        """The budget has another `size` now. What the pool holds above it is given back as it is checked in."""

    def recall(self) -> None:
        """Close every connection and open others as they are needed: idle ones at once, others as they come back."""

    def refused(self, error: BaseException) -> None:
        """No budget can be had any more; waiters fail with `error`."""

    def suspend(self) -> None:
        """No connection may be opened until `resume`; leases under which none is open are given back."""

    def resume(self) -> None:
        """Connections may be opened again, after `suspend`, or after `Budget.connecting` had refused it."""

    def disown(self, leases: Sequence[Lease]) -> None:
        """Close the connections of these leases at once, whoever uses them: the budget may give them to others."""

    def end_sessions(self, sessions: Sequence[OrphanedSession]) -> None:
        """End these on the server, and tell `Budget.ended` which of them it has no more."""

    def tell_demand(self) -> Demand:
        """The demand as it is now. Asked for at the moment of sending, so that an old one never overtakes a new one."""

    def tell_counters(self) -> Counters:
        """What was counted since the start, at this moment."""


class Budget(Protocol):
    """One pool's access to the budget of its database. All methods but `attach` are non-blocking and thread-safe."""

    @property
    def size(self) -> int:
        """Connections that all covered pools together may have to this database."""

    async def attach(self, client: BudgetClient) -> None:
        """Make the client known. Raises PoolRefusedError or PoolTimeoutError."""

    def demand_changed(self, *, urgent: bool) -> None:
        """The client's demand is another one now. Leads to `granted` when something is wanted and can be had.

        `urgent`: more is wanted, or was asked about. That less is needed now can wait some milliseconds."""

    def resize(self, size: int) -> None:
        """Have another size. What is held above it comes back as it is checked in. Raises PoolRefusedError where the
        size is not this pool's to choose."""

    def connecting(self, lease: Lease) -> bool:
        """A connection is about to be opened under `lease`. False: not now, wait for `BudgetClient.resume`."""

    def opened(self, lease: Lease, session: ServerSession) -> None:
        """A connection was opened under `lease`, the only one that ever is: when it is closed, the lease goes back."""

    def closing(self, lease: Lease) -> None:
        """The connection of `lease` is being closed."""

    def give_back(self, leases: Sequence[Lease]) -> None:
        """The server sessions of these leases are gone, or there was none."""

    def ended(self, leases: Sequence[Lease]) -> None:
        """The server has no session any more under these leases, which were somebody else's."""

    def answers(self) -> bool:
        """Whether whoever decides can be heard: else a lease that is given back cannot be had again."""

    def detach(self) -> None:
        """The pool is closed; everything was given back."""

    def label(self, pool: str) -> str:
        """What the server's list of sessions shows for connections of this pool."""

    def describe(self) -> str:
        """One phrase for error messages, for example "budget 10/10 leased, coordinator up"."""


class LocalBudget:
    """A number: `size` connections for one pool."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._leased = 0
        self._names = itertools.count(1)
        self._client: BudgetClient | None = None
        self._owes = False
        """Whether the client was denied something since leases came back last."""

    @property
    def size(self) -> int:
        return self._size

    async def attach(self, client: BudgetClient) -> None:
        self._client = client

    def demand_changed(self, *, urgent: bool) -> None:
        client = self._client
        if client is None:
            return
        want = client.tell_demand().want
        with self._lock:
            count = max(0, min(want, self._size - self._leased))
            self._leased += count
            self._owes = count < want
        if count:
            client.granted([next(self._names) for _ in range(count)])
        if count < want:
            client.denied()

    def resize(self, size: int) -> None:
        with self._lock:
            self._size = size
        if self._client is not None:
            self._client.resized()
            self.demand_changed(urgent=True)

    def connecting(self, lease: Lease) -> bool:
        return True

    def opened(self, lease: Lease, session: ServerSession) -> None:
        pass

    def closing(self, lease: Lease) -> None:
        pass

    def ended(self, leases: Sequence[Lease]) -> None:
        pass

    def give_back(self, leases: Sequence[Lease]) -> None:
        with self._lock:
            self._leased -= len(leases)
            owes = self._owes
        if owes:  # somebody began to wait between the decision to give these back and now
            self.demand_changed(urgent=True)

    def answers(self) -> bool:
        return True

    def detach(self) -> None:
        self._client = None

    def label(self, pool: str) -> str:
        return f"pysqlx {pool}"

    def describe(self) -> str:
        return f"budget {self._leased}/{self._size} leased"


BudgetProvider = Callable[[PoolRequest], Budget]


def _local(request: PoolRequest) -> Budget:
    return LocalBudget(request.max_size)


_provider: BudgetProvider = _local


def use_provider(provider: BudgetProvider | None) -> None:
    """Decide where pools that start from now on get their budget; None restores a number of their own."""
    global _provider  # noqa: PLW0603
    _provider = provider or _local


def budget_for(request: PoolRequest) -> Budget:
    return _provider(request)
