"""A process's side of its membership at the coordinator: what is said, when, and what is believed.

No socket and no thread of its own: `link.Link` is the shell that gives it both. The life of a membership:

    apart      no connection to a coordinator. What is open goes on working, nothing is sent.
    greeting   `Hello` was sent. It states all that is held; what was queued before is forgotten, it is in there.
    joined     `Welcome` has come. Packets are numbered in both directions; whoever misses one has `Hello` said again.

Where the coordinator cannot see this process (another host), the membership has a term. Each packet that the
coordinator has heard extends it, counted from when that packet was sent. When it has run out, the coordinator may have
our sessions ended, so nothing new is opened until the next `Welcome`.
"""

from __future__ import annotations

import collections
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from ..errors import PoolRefusedError
from ..log_config import part
from ..pool.budget import Lease
from .messages import (
    MOST_POOLS,
    VERSION,
    Attach,
    CoordinatorPacket,
    Detach,
    FromCoordinator,
    FromPool,
    FromProcess,
    HeldLease,
    Hello,
    Lost,
    Moved,
    PoolClaim,
    ProcessPacket,
    Returned,
    Unwelcome,
    Welcome,
    decode_from_process,
    encode,
)

if TYPE_CHECKING:
    from .leased_budget import LeasedBudget, Outgoing

logger = part("pool")

SPREAD = 0.1
"""Seconds over which the processes of a restarted coordinator spread their return."""
GREET_AGAIN = (1.0, 8.0)
"""Seconds without an answer to `Hello` before it is said again: at first, and at most."""
HELLO_APART = 0.1
"""Seconds between two `Hello`s, whatever the coordinator says: each has to state and to read everything."""
MARGIN = 1.0
"""Seconds that a process believes its term to end earlier, and the coordinator later, than it does."""
BEATS = 4
"""Signs of life in each term."""
MOST_MESSAGES = 500
"""In one packet, so that it stays below the size that is accepted."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this process is."""

    pid: int
    started: int
    host: str
    name: str
    worker: int | None = None
    restarts: int = 0
    run: str = ""

    @property
    def shown(self) -> str:
        return f"worker {self.worker}" if self.worker is not None else f"pid {self.pid}"


class Membership(ABC):
    """The pools of this process, as the coordinator has to know them. Methods may be called from any thread, but
    those of the shell from its one thread only."""

    def __init__(self, identity: Identity, chance: random.Random) -> None:
        self.lock = threading.Lock()
        """Guards the leases of every pool, the queue and `_changed`, so that a `Hello` states all at one moment."""
        self._identity = identity
        self._chance = chance
        self._budgets: dict[int, LeasedBudget] = {}
        self._queue: collections.deque[Outgoing] = collections.deque()
        self._changed: dict[LeasedBudget, None] = {}
        self._named: list[LeasedBudget] = []
        """The budgets that the last Hello named."""
        self._connected = False
        self._epoch: int | None = None
        """The coordinator's epoch while we are joined, else None."""
        self._last_epoch = 0
        """That of the last coordinator that we heard of."""
        self._joined_epoch: int | None = None
        """That of the last coordinator that we joined."""
        self._session = 0
        self._sent = 0
        self._taken = 0
        """Numbers of the last packets of this session."""
        self._joined_before = False
        self._hello_at: float | None = None
        """When to say hello, for the first time or again."""
        self._greeted_at = 0.0
        self._pause = GREET_AGAIN[0]
        self._term: float | None = None
        self._beat_at = 0.0
        self._unheard: collections.deque[tuple[int, float, list[Moved]]] = collections.deque()
        """Packets that the coordinator was not heard to have taken: number, when it was sent, what it said of
        leases."""
        self._claimed: list[PoolClaim] = []
        """What the last Hello stated."""
        self._deadline: float | None = None
        """Until when we may open connections; None: as long as we like."""
        self._over = False
        """Whether the term has run out, and the pools were told."""
        self.failure: Unwelcome | None = None
        """Why nobody will ever answer, if it is so."""
        self.obstacle: str | None = None
        """What whoever is at the coordinator's address did, instead of letting us in: for error texts."""

    # -- the shell's part -----------------------------------------------------------------------------------------

    @abstractmethod
    def flush(self) -> None:
        """See to it that `outgoing` is asked soon. Called without `lock`, from any thread."""

    @abstractmethod
    def later(self, delay: float, callback: Callable[[], None]) -> None:
        """Call `callback` in `delay` seconds, in some other thread."""

    @abstractmethod
    def now(self) -> float:
        """A clock that only goes forward, also while the process is stopped."""

    @property
    @abstractmethod
    def where(self) -> str:
        """The coordinator's address, for error texts."""

    # -- called by pools, from any thread -------------------------------------------------------------------------

    def add(self, budget: LeasedBudget) -> None:
        with self.lock:
            claim = budget.claim()
            # Here it costs one pool its start, later all of them the link.
            try:
                decode_from_process(encode(ProcessPacket(0, 1, 1, [Attach(claim)])))
            except UnicodeEncodeError as error:
                raise PoolRefusedError(f"{error.object!a} cannot be told to the coordinator: {error.reason}") from None
            except msgspec.MsgspecError as error:
                raise PoolRefusedError(f"{claim.name} cannot be told to the coordinator: {error}") from None
            if len(self._budgets) >= MOST_POOLS:
                raise PoolRefusedError(f"a process may have {MOST_POOLS} pools with a budget, and not one more")
            self._budgets[budget.pool_id] = budget
            failure = self.failure
            if self._epoch is not None:  # else the next Hello, or what follows its answer, names it
                self.post(Attach(claim))
        self.flush()
        if failure is not None:
            budget.refuse(failure.reason)

    def remove(self, budget: LeasedBudget) -> None:
        with self.lock:
            if self._budgets.pop(budget.pool_id, None) is not None:
                self.post(Detach(budget.pool_id))
            self._changed.pop(budget, None)
        self.flush()

    def post(self, message: Outgoing) -> None:
        """Queue, in order. Called with `lock` held."""
        self._queue.append(message)

    def demand_changed(self, budget: LeasedBudget) -> None:
        with self.lock:
            self._changed[budget] = None
            failure = self.failure
        self.flush()
        if failure is not None:
            self.later(0, lambda: self._answer_alone(budget, failure))

    def may_open(self) -> bool:
        """Whether connections may be opened under leases that we hold."""
        deadline = self._deadline
        return deadline is None or self.now() < deadline

    def answers(self) -> bool:
        """Whether the coordinator can be heard, as far as we know."""
        return self.joined and self.may_open()

    def describe(self) -> str:
        if self.failure is not None:
            return self.failure.reason
        if self._epoch is None:
            return (
                f"coordinator not reachable at {self.where}"
                if self.obstacle is None
                else f"the coordinator at {self.where} {self.obstacle}"
            )
        return "coordinator up" if self.may_open() else f"coordinator at {self.where} does not answer"

    def label(self, pool: str) -> str:
        return f"pysqlx {self._identity.run} {self._identity.shown} {pool}"[:63]

    def full_name(self, pool: str) -> str:
        return f"{pool} of {self._identity.shown}"

    @property
    def joined(self) -> bool:
        return self._epoch is not None

    # -- events, from the shell's thread --------------------------------------------------------------------------

    def connected(self) -> None:
        """There is a connection to a coordinator, perhaps a new one."""
        self._connected, self._epoch, self.failure = True, None, None
        self._pause = GREET_AGAIN[0]
        # Those who were all here before would all come back in the same moment.
        self._hello_at = self.now() + (self._chance.uniform(0, SPREAD) if self._joined_before else 0)

    def disconnected(self) -> None:
        if self._epoch is not None:
            logger.warning("Pool: the coordinator is gone; open connections go on working, growth waits for it.")
        self._connected, self._epoch, self._hello_at, self.failure = False, None, None, None

    def receive(self, message: FromCoordinator) -> None:
        match message:
            case Welcome():
                self._welcomed(message)
            case Unwelcome(reason=reason):
                if self._epoch is None and self._connected:  # else it is late: we have joined since
                    self._hello_at = None
                    self.failed(reason)
            case Lost(epoch=epoch, session=session):
                if session == self._session and (self.joined or self._hello_at is not None):
                    self._last_epoch = epoch
                    self._hello_again()
            case CoordinatorPacket():
                self._take(message)

    def due(self) -> float | None:
        """When `outgoing` has to be asked although nothing happens."""
        times = [self._hello_at if self._connected else None]
        if self._term is not None:
            times.append(self._beat_at if self._epoch is not None else None)
            times.append(self._deadline if not self._over else None)
        return min((time for time in times if time is not None), default=None)

    def outgoing(self) -> list[FromProcess]:
        """What has to be sent now, in order."""
        now = self.now()
        if self._deadline is not None and not self._over and now >= self._deadline:
            self._over = True
            logger.warning("Pool: the coordinator has not been heard for a term; growth waits for it.")
            for budget in self._all():
                budget.suspend()
        if self._over:
            for budget in self._all():
                budget.disown_unnamed()
        if self._connected and self._hello_at is not None and now >= self._hello_at:
            return [self._hello(now)]
        if self._epoch is None:
            return []
        with self.lock:
            queued, self._queue = self._queue, collections.deque()
            changed, self._changed = self._changed, {}
        # Reports last: a pool is attached before it reports. Made now, so that an old one never overtakes a new one.
        messages: list[FromPool] = [message() if callable(message) else message for message in queued]
        messages += [budget.report() for budget in changed]
        beat = self._term is not None and now >= self._beat_at
        packets: list[FromProcess] = []
        while messages or beat:
            self._sent += 1
            packets.append(ProcessPacket(self._epoch, self._session, self._sent, messages[:MOST_MESSAGES]))
            if self._term is not None:
                moved = [message for message in messages[:MOST_MESSAGES] if isinstance(message, Moved)]
                self._unheard.append((self._sent, now, moved))
                self._beat_at = now + self._term / BEATS
            messages, beat = messages[MOST_MESSAGES:], False
        return packets

    # -- what they lead to ----------------------------------------------------------------------------------------

    def _all(self) -> list[LeasedBudget]:
        with self.lock:
            return list(self._budgets.values())

    def _hello_again(self) -> None:
        self._epoch = None
        self._pause = GREET_AGAIN[0]
        self._hello_at = max(self.now(), self._greeted_at + HELLO_APART)

    def _hello(self, now: float) -> Hello:
        with self.lock:
            self._epoch = None
            self._queue.clear()
            self._named = list(self._budgets.values())
            claims = self._claimed = [budget.claim() for budget in self._named]
        self._session += 1
        self._greeted_at = now
        # The answer may be lost, or the question was.
        self._hello_at = now + self._pause * self._chance.uniform(0.5, 1)
        self._pause = min(self._pause * 2, GREET_AGAIN[1])
        who = self._identity
        return Hello(
            VERSION, self._session, who.name, who.pid, who.started, who.host, who.worker, who.restarts, claims,
            self._last_epoch,
        )  # fmt: skip

    def _welcomed(self, welcome: Welcome) -> None:
        if welcome.session != self._session or self._epoch is not None or not self._connected:
            return  # the answer to an earlier one, or twice
        self._joined_before, self._hello_at = True, None
        self._sent = self._taken = 0
        self._unheard.clear()
        self._term = welcome.term
        self._beat_at = self._greeted_at + (welcome.term or 0) / BEATS
        for claim in self._claimed:
            for held in claim.leases:
                self._heard_of(claim.pool, held)
        self._extend(self._greeted_at)
        if self._joined_epoch not in {None, welcome.epoch}:
            for budget in self._all():
                budget.count_anew()
        self._joined_epoch = welcome.epoch
        with self.lock:
            self._epoch = welcome.epoch
            for budget in self._budgets.values():
                if budget not in self._named:  # added since the Hello was sent
                    self.post(Attach(budget.claim()))
            self._changed.update(dict.fromkeys(self._budgets.values()))

    def _extend(self, since: float) -> None:
        """The coordinator has heard what was sent at `since`."""
        # Somebody may have been refused before `outgoing` has noticed that it was over.
        was_over = not self.may_open()
        self._deadline = None if self._term is None else since + self._term - MARGIN
        if was_over and self.may_open():
            self._over = False
            for budget in self._all():
                budget.resume()

    def _take(self, packet: CoordinatorPacket) -> None:
        if packet.epoch != self._epoch or packet.session != self._session or packet.number <= self._taken:
            return  # late, of a coordinator that is no more, or a copy
        if packet.number > self._taken + 1:
            self._hello_again()  # what is between was perhaps a lease
            return
        self._taken = packet.number
        while self._unheard and self._unheard[0][0] <= packet.heard:
            _, sent_at, moved = self._unheard.popleft()
            for message in moved:
                self._heard_of(message.pool, message.held)
            self._extend(sent_at)
        for said in packet.messages:
            budget = self._budgets.get(said.pool)
            if budget is not None:
                budget.receive(said)
            else:  # a lease for a pool that is no more
                self._give_back(said.pool, getattr(said, "leases", []))

    def _heard_of(self, pool: int, held: HeldLease) -> None:
        budget = self._budgets.get(pool)
        if budget is not None and held.known:
            with self.lock:
                budget.heard_of(held.lease)

    def _give_back(self, pool: int, leases: list[Lease]) -> None:
        if leases:
            with self.lock:
                self.post(Returned(pool, leases))

    def _answer_alone(self, budget: LeasedBudget, failure: Unwelcome) -> None:
        """Without an answer no pool grows. Who waits in one that has connections gets one of those."""
        demand = budget.report().demand
        if demand.waiting and not demand.in_use:
            budget.refuse(failure.reason)

    def failed(self, reason: str) -> None:
        """Nobody will answer the pools any more, unless another coordinator comes."""
        with self.lock:
            self._epoch, self.failure = None, Unwelcome(0, reason)
        for budget in self._all():
            budget.refuse(reason)


__all__ = ["Identity", "Membership", "PoolClaim"]
