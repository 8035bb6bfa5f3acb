"""One pool's access to a shared budget: its leases, and what it says and hears about them.

How the messages travel is the link's business: `link.Link` is the thread that talks to a coordinator, `LocalLink` calls
a ledger in the same process.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from ..engine.session import ServerSession
from ..errors import PoolRefusedError, PoolTimeoutError
from ..log_config import part
from ..pool.background import background
from ..pool.budget import RECENT, BudgetClient, Lease, OrphanedSession, PoolRequest
from .ledger import Ledger
from .messages import (
    LONGEST_NAME,
    MOST_CONNECTIONS,
    Ask,
    Attach,
    Attached,
    Ceiling,
    Denied,
    Detach,
    End,
    Ended,
    FromPool,
    Granted,
    HeldLease,
    LeaseState,
    Moved,
    PoolClaim,
    Recall,
    Refused,
    Report,
    Returned,
    ToPool,
    Totals,
)

logger = part("pool")

LOOK_AGAIN = 0.02
"""Seconds between two looks of a process on its own at what time alone changes, while somebody waits."""
SOON = 0.01
"""Seconds that a report may wait which says only that less is needed."""

_pool_ids = itertools.count(1)

Outgoing = FromPool | Callable[[], FromPool]
"""A message, or what makes one at the moment of sending."""


class LinkToLedger(Protocol):
    """What carries a pool's messages."""

    lock: threading.Lock
    """Guards the leases of every pool of this link, so that a `Hello` states all of them at one moment."""

    def add(self, budget: LeasedBudget) -> None: ...
    def remove(self, budget: LeasedBudget) -> None: ...

    def post(self, message: Outgoing) -> None:
        """Queue, in order, for `flush`. Called with `lock` held."""

    def flush(self) -> None:
        """See to it that what was posted is sent. Called without `lock`."""

    def demand_changed(self, budget: LeasedBudget) -> None:
        """Send a fresh report soon."""

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        """Call `callback` in `delay` seconds, in some other thread."""

    def may_open(self) -> bool:
        """Whether connections may be opened under leases that are held."""

    def answers(self) -> bool:
        """Whether whoever grants leases can be heard."""

    def describe(self) -> str: ...

    def label(self, pool: str) -> str:
        """What the server's list of sessions shows for connections of this pool."""

    def full_name(self, pool: str) -> str:
        """The pool's name among those of the other processes."""


class LeasedBudget:
    def __init__(self, link: LinkToLedger, request: PoolRequest) -> None:
        self.pool_id = next(_pool_ids)
        self._link = link
        self._request = request
        self._client: BudgetClient | None = None
        self._size = request.max_size
        self._leased = 0
        self._leases: dict[Lease, HeldLease] = {}
        self.named: set[Lease] = set()
        """Leases whose connection the coordinator is known to know of."""
        self._received = 0
        self._pressed = False
        """Whether somebody else waits: a ceiling is set."""
        self._report_due = False
        self._told = self._told_before = Totals(self.pool_id)
        """What had been counted when it was told last, and when it was told last to a coordinator before this one."""
        self._answer: asyncio.Future[None] | None = None

    @property
    def size(self) -> int:
        return self._size

    # -- what the pool calls --------------------------------------------------------------------------------------

    async def attach(self, client: BudgetClient) -> None:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[None] = loop.create_future()
        self._client, self._answer = client, answer
        self._link.add(self)
        try:
            async with asyncio.timeout(self._request.timeout):
                await answer
        except TimeoutError:
            raise PoolTimeoutError(
                f"no answer from the coordinator within {self._request.timeout:.1f} s ({self._link.describe()})",
                at_start=True,
            ) from None

    def demand_changed(self, *, urgent: bool) -> None:
        if urgent:
            self._link.demand_changed(self)
        else:
            self._report_in(SOON)

    def _report_in(self, delay: float) -> None:
        if not self._report_due:
            self._report_due = True
            try:
                self._link.later(delay, self._report_now)
            except BaseException:  # a signal's handler has raised
                self._report_due = False
                raise

    def _report_now(self) -> None:
        self._report_due = False
        self._link.demand_changed(self)

    def resize(self, size: int) -> None:
        raise PoolRefusedError(
            f"the budget of {self._size} connections belongs to every process of the run: one pool cannot resize it to "
            f"{size}"
        )

    def connecting(self, lease: Lease) -> bool:
        if not self._link.may_open():
            # The link may hear that it may before the pool has made anything of this.
            self._link.later(0, self._look_again)
            return False
        self._move(HeldLease(lease, LeaseState.CONNECTING))
        return True

    def _look_again(self) -> None:
        if self._link.may_open():
            self.resume()

    def opened(self, lease: Lease, session: ServerSession) -> None:
        self._move(HeldLease(lease, LeaseState.OPEN, session.server_id, session.address, session.liveness_checked))

    def closing(self, lease: Lease) -> None:
        held = self._leases.get(lease)
        if held is not None:
            self._move(held.become(LeaseState.CLOSING))

    def _move(self, held: HeldLease) -> None:
        with self._link.lock:
            before = self._leases.get(held.lease)
            if before is None or before.state >= held.state:
                return  # another thread was told to close it, before this one could say that it was open
            self._leases[held.lease] = held
            self._link.post(Moved(self.pool_id, held))
        self._link.flush()

    def give_back(self, leases: Sequence[Lease]) -> None:
        back = list(leases)
        with self._link.lock:
            for lease in back:
                self._leases.pop(lease, None)
                self.named.discard(lease)
            self._link.post(Returned(self.pool_id, back))
        self._link.flush()

    def ended(self, leases: Sequence[Lease]) -> None:
        with self._link.lock:
            self._link.post(Ended(self.pool_id, list(leases)))
        self._link.flush()

    def answers(self) -> bool:
        return self._link.answers()

    def detach(self) -> None:
        if self._client is not None:
            totals = self._totals()
            with self._link.lock:
                self._link.post(totals)
        self._link.remove(self)

    def label(self, pool: str) -> str:
        return self._link.label(pool)

    def describe(self) -> str:
        return f"budget {max(self._leased, len(self._leases))}/{self._size} leased, {self._link.describe()}"

    # -- what the link calls --------------------------------------------------------------------------------------

    def claim(self) -> PoolClaim:
        """All that the pool holds; what was received before is settled by it. Called with the link's lock held."""
        request = self._request
        assert request.uri.identity is not None
        self._received = 0
        return PoolClaim(
            self.pool_id,
            self._link.full_name(request.name)[:LONGEST_NAME],
            request.uri.identity,
            min(request.min_size, MOST_CONNECTIONS),
            min(request.max_size, MOST_CONNECTIONS),
            request.max_size_stated,
            list(self._leases.values()),
        )

    def report(self) -> Report:
        assert self._client is not None
        demand = self._client.tell_demand()
        if self._pressed and demand.recent > demand.in_use:
            self._report_in(RECENT)  # if these are still idle then, somebody else may have them
        return Report(self.pool_id, self._received, demand)

    def _totals(self) -> Totals:
        assert self._client is not None
        self._told = Totals.of(self.pool_id, self._client.tell_counters())
        return self._told - self._told_before

    def count_anew(self) -> None:
        """Another coordinator counts from 0: what the one before was told is no news, and all since then is."""
        self._told_before = self._told

    def receive(self, message: ToPool) -> None:
        client = self._client
        assert client is not None
        match message:
            case Granted(leases=leases, leased=leased):
                with self._link.lock:
                    # One that we have already is for the connection that it has.
                    new = [lease for lease in dict.fromkeys(leases) if lease not in self._leases]
                    self._leases.update((lease, HeldLease(lease)) for lease in new)
                    self._received += len(leases)
                self._leased = leased
                client.granted(new)
            case Denied():
                client.denied()
            case Ceiling(ceiling=ceiling, leased=leased):
                self._leased = leased
                self._pressed = ceiling is not None
                client.set_ceiling(ceiling)
            case Ask():
                with self._link.lock:
                    self._link.post(self._totals)
                self._link.demand_changed(self)
            case Attached(size=size):
                self._size = size
                self._pressed = False
                client.resized()
                client.set_ceiling(None)
                self._resolve(None)
            case End(sessions=sessions):
                client.end_sessions(
                    [
                        OrphanedSession(held.lease, held.server_id, held.address)
                        for held in sessions
                        if held.server_id is not None and held.address is not None  # `endable`, for the type checker
                    ]
                )
            case Recall():
                client.recall()
            case Refused(reason=reason):
                self.refuse(reason)

    def refuse(self, reason: str) -> None:
        """No budget can be had any more."""
        assert self._client is not None
        error = PoolRefusedError(reason)
        self._client.refused(error)
        self._resolve(error)

    def heard_of(self, lease: Lease) -> None:
        """The coordinator knows of the connection of `lease`. Called with the link's lock held."""
        if lease in self._leases:  # else it was given back meanwhile
            self.named.add(lease)

    def disown_unnamed(self) -> None:
        """Close what the coordinator does not know of, and what nobody else can end: it will have these leases back."""
        with self._link.lock:
            opened = [held for held in self._leases.values() if held.state is LeaseState.OPEN]
            unnamed = [held.lease for held in opened if held.lease not in self.named or not held.endable]
        if unnamed:
            assert self._client is not None
            self._client.disown(unnamed)

    def suspend(self) -> None:
        """No connection may be opened until `resume`."""
        assert self._client is not None
        self._client.suspend()

    def resume(self) -> None:
        """Connections may be opened again."""
        assert self._client is not None
        self._client.resume()

    def _resolve(self, error: PoolRefusedError | None) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return

        def resolve() -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(None)
            else:
                answer.set_exception(error)

        answer.get_loop().call_soon_threadsafe(resolve)


class LocalLink:
    """The pools of one process share budgets without a coordinator: the ledger is called directly.

    Whoever has something to say puts it in the queue; the background thread takes the queue through the ledger and
    delivers the answers, so that they arrive in the order in which they were decided. No other thread does that: in the
    main thread a signal's handler may raise between any two steps, and the ledger is everybody's.
    """

    MEMBER = "local"

    def __init__(self, operator_size: int | None) -> None:
        self.lock = threading.Lock()
        self._ledger = Ledger(operator_size, first_lease=0)
        self._budgets: dict[int, LeasedBudget] = {}
        self._queue: collections.deque[Outgoing | None] = collections.deque()
        self._look_due = False

    def add(self, budget: LeasedBudget) -> None:
        self._budgets[budget.pool_id] = budget
        with self.lock:
            claim = budget.claim()
            self.post(Attach(claim))
        self.flush()

    def remove(self, budget: LeasedBudget) -> None:
        with self.lock:
            self.post(Detach(budget.pool_id))
        self.flush()
        self._budgets.pop(budget.pool_id, None)

    def post(self, message: Outgoing) -> None:
        self._queue.append(message)

    def flush(self) -> None:
        background().call_soon(self._take_all)

    def demand_changed(self, budget: LeasedBudget) -> None:
        self._queue.append(budget.report)
        self.flush()

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        background().call_later(delay, callback)

    def may_open(self) -> bool:
        return True

    def answers(self) -> bool:
        return True

    def describe(self) -> str:
        return "one process"

    def label(self, pool: str) -> str:
        return f"pysqlx {pool}"

    def full_name(self, pool: str) -> str:
        return pool

    def _look_again(self) -> None:
        """What time alone changes: a pool that does not yield is passed over, ceilings that nobody needs are lifted."""
        self._look_due = False
        self._queue.append(None)
        self.flush()

    def _take_all(self) -> None:
        while self._queue:
            self._take(self._queue.popleft())

    def _take(self, message: Outgoing | None) -> None:
        ledger = self._ledger
        ledger.now = time.monotonic()
        if message is not None:
            ledger.take(self.MEMBER, message() if callable(message) else message)
        else:
            ledger.look_again()
            ledger.relax()
        ledger.decide()
        if ledger.under_pressure and not self._look_due:
            self._look_due = True
            background().call_later(LOOK_AGAIN, self._look_again)
        answers, ledger.outbox = ledger.outbox, []
        ledger.records.clear()
        notices, ledger.notices = ledger.notices, []
        for notice in notices:
            logger.warning("Pool: %s", notice)
        for _, answer in answers:
            budget = self._budgets.get(answer.pool)
            if budget is not None:
                budget.receive(answer)
