"""The lease ledger: who holds what of which budget. The one place where a lease is granted.

A state machine without I/O, clock or thread. Every event is a method, and `decide` draws the conclusions of one or of
several; what has to be sent and what has to be written down first collects in `outbox` and `records`.

The rules:

- A lease is for one connection: `granted`, `connecting`, `open`, `closing`, then returned. It never serves for a second
  one, so that a session that was named is the only one that there can be under its lease.
- A lease is charged from the moment it is granted until the process says that the server has let go of the connection,
  or, when the process is dead, until the server was seen to let go (`quarantined` in between).
- Granted is only what is free: `size - (held + in flight + quarantined)`. Recall first, grant second: a ceiling asks
  for leases back, and only those that came back are granted anew.
- While somebody waits and nothing is free, everybody gets a ceiling from `allocation.allocate`. Idle connections come
  back at once, others with the next check-in.
- Only through a connection can the sessions of a lost host be seen and ended. So where processes of other hosts have
  joined, one lease is kept in reserve. It is lent to nobody but the pool that was asked to end such sessions: lent to
  whoever waits, it would be in use, and with everything else in use as well nobody could ever end them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from ..engine.sockets import Endpoints
from ..pool.budget import Demand, Lease
from .allocation import Claim, allocate
from .messages import (
    MOST_CONNECTIONS,
    MOST_POOLS,
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

DEFAULT_SIZE = 10
PATIENCE = 0.05
"""Seconds that a pool may take to come down to its ceiling before others are asked instead: it may be in the midst of
long queries, or stopped. Also what a server may take to close a connection before others are asked for theirs."""
MOST_WANTED = 100
"""Leases that one pool is granted at a time: it asks for what it can open at once, which is less."""
MOST_BUDGETS = 1_000
"""Each costs memory, a file and a look whenever time passes."""
MOST_CAPPED = 1_000
"""Sizes that are remembered because it was said that they are capped."""

NOTHING_COUNTED = Totals(0)
NOTHING = Demand(in_use=0, idle=0, recent=0, waiting=0, want=0)

MemberId = str
PoolKey = tuple[MemberId, int]


@dataclass(slots=True)
class Pool:
    """One pool of one process, as the coordinator knows it."""

    key: PoolKey
    name: str
    min_size: int
    local: bool = True
    """Whether its process is one of this host."""
    leases: dict[Lease, HeldLease] = field(default_factory=dict)
    closing: dict[Lease, float] = field(default_factory=dict)
    """Since when each of `leases` that is on its way back has been so."""
    demand: Demand = NOTHING
    granted: int = 0
    received: int = 0
    """Leases granted since it was attached, and how many of them it had received when it told its demand."""
    ceiling: int | None = None
    current: bool = False
    """Whether `demand` is up to date: it is while the pool has a ceiling, or lacks something, and in the moment in
    which it was told."""
    since: int = 0
    """When it began to wait, or had its turn last, as a running number."""
    owes_since: float | None = None
    """Since when it has held more than its ceiling."""
    silent: bool = False
    """Known from the journal only: its process lives, but has not reported to this coordinator yet."""
    totals: Totals = NOTHING_COUNTED
    """What it has counted, as it said last."""

    @property
    def held(self) -> int:
        """Leases that it has, and is not about to give back."""
        return len(self.leases) - len(self.closing)

    @property
    def lacks(self) -> int:
        """Leases wanted, less those on their way to it."""
        return max(0, self.demand.want - (self.granted - self.received))

    @property
    def claimed(self) -> int:
        """What it uses, used just now, and waits for. Of a pool that has no reason to keep us up to date: all it
        holds."""
        if self.current:
            return max(self.demand.in_use + self.demand.waiting, self.demand.recent)
        return self.held


@dataclass(slots=True)
class Orphan:
    """A lease whose process is dead, while the server may still have its session."""

    held: HeldLease
    key: PoolKey
    since: float
    local: bool
    """Whether its process was one of this host, whose kernel knows what became of its connections."""
    asked: dict[PoolKey, int] = field(default_factory=dict)
    """How often each pool that is there was asked to end its session, the last one last."""
    asked_at: float | None = None
    seen_at: float = 0.0
    """When somebody looked last and the server still had it."""
    half_closed: bool = False
    """Whether its connection was seen with the server's side still open."""
    vanished_at: float | None = None
    """When its connection was first seen to be missing."""
    closed_at: float | None = None
    """When the server was first seen to have closed its connection, which may not be the end."""


@dataclass(slots=True)
class Past:
    """What was counted for one database. It outlives the budget: what is counted never becomes less."""

    totals: Totals = NOTHING_COUNTED
    """Of pools that are no more."""
    recalled: int = 0
    """Leases that were asked back."""
    let_go: int = 0
    longest: float = 0.0
    """Sessions of dead processes that the server has let go of, and the most seconds that one took."""


@dataclass(slots=True)
class Budget:
    """One database's budget."""

    database: str
    size: int
    stated_by: str | None
    """Who stated the size: a pool's name, "operator", or None while it is only the default."""
    pools: dict[PoolKey, Pool] = field(default_factory=dict)
    wanting: dict[PoolKey, Pool] = field(default_factory=dict)
    """Those of `pools` that lack something."""
    ceilings: dict[PoolKey, None] = field(default_factory=dict)
    """Those of `pools` that have a ceiling."""
    quarantined: dict[Lease, Orphan] = field(default_factory=dict)
    holders: dict[Lease, PoolKey] = field(default_factory=dict)
    """Who has, or had, each lease of `pools` and `quarantined`: it is in one place only."""
    held: int = 0
    """Leases of all pools together."""
    remote: int = 0
    """How many of `pools` are of other hosts."""
    lost: int = 0
    """How many of `quarantined` are of other hosts."""
    past: Past = field(default_factory=Past)
    helper: PoolKey | None = None
    """The pool that was asked last to end sessions."""
    lent: bool = False
    """Whether the reserve was lent to it for that, once each time that it is asked."""
    exceeded: bool = False
    """Whether more was claimed than there is, and that was said."""
    look_at: float | None = None
    """When the patience with somebody ends, and the parts have to be worked out anew although nothing has happened."""

    @property
    def charged(self) -> int:
        return self.held + len(self.quarantined)

    @property
    def reserve(self) -> int:
        return int((self.remote > 0 or self.lost > 0) and self.size > 1)

    @property
    def usable(self) -> int:
        return self.size - self.reserve

    @property
    def free(self) -> int:
        return self.usable - self.charged

    @property
    def totals(self) -> Totals:
        """What all pools have counted, those that are no more too."""
        return sum((pool.totals for pool in self.pools.values()), self.past.totals)

    @property
    def starving(self) -> bool:
        return any(pool.demand.waiting for pool in self.wanting.values())

    @property
    def short(self) -> bool:
        """Whether leases have to come back: somebody waits, or the budget has become smaller."""
        return self.free < 0 or self.starving

    @property
    def pressed(self) -> bool:
        """Whether ceilings are out."""
        return bool(self.ceilings)

    # Every change of what is charged is one of these.

    def add(self, pool: Pool) -> None:
        self.pools[pool.key] = pool
        self.held += len(pool.leases)
        self.holders.update(dict.fromkeys(pool.leases, pool.key))
        self.remote += not pool.local

    def remove(self, key: PoolKey) -> Pool | None:
        pool = self.pools.pop(key, None)
        if pool is not None:
            self.held -= len(pool.leases)
            for lease in pool.leases:
                del self.holders[lease]
            self.remote -= not pool.local
            self.wanting.pop(key, None)
            self.ceilings.pop(key, None)
        return pool

    def charge(self, pool: Pool, held: HeldLease) -> None:
        pool.leases[held.lease] = held
        self.holders[held.lease] = pool.key
        self.held += 1

    def release(self, pool: Pool, lease: Lease) -> HeldLease | None:
        held = pool.leases.pop(lease, None)
        pool.closing.pop(lease, None)
        if held is not None:
            self.held -= 1
            del self.holders[lease]
        return held

    def quarantine(self, orphan: Orphan) -> None:
        self.quarantined[orphan.held.lease] = orphan
        self.holders[orphan.held.lease] = orphan.key
        self.lost += not orphan.local

    def absolve(self, lease: Lease) -> Orphan | None:
        orphan = self.quarantined.pop(lease, None)
        if orphan is not None:
            self.lost -= not orphan.local
            del self.holders[lease]
        return orphan


@dataclass(frozen=True, slots=True)
class Record:
    """A line of the journal, to be written before anything is sent."""

    kind: Literal["attached", "granted", "moved", "returned", "sized", "forgotten"]
    database: str
    key: PoolKey
    held: HeldLease | None = None
    """None for "attached", and for what is said of a whole budget."""
    leases: tuple[HeldLease, ...] = ()
    """With "attached": all that the pool holds. One line, because a part of it would be less than it holds."""
    size: int | None = None
    """With "sized"; whose pool stated it is in `key`."""


class Ledger:
    def __init__(self, operator_size: int | None, first_lease: Lease) -> None:
        self.operator_size = operator_size
        self.budgets: dict[str, Budget] = {}
        self.granting = True
        """False while a restarted coordinator learns who holds what."""
        self.now = 0.0
        """The moment of the event, on a clock that only goes forward. Set by the caller before each event."""
        self.outbox: list[tuple[MemberId, ToPool]] = []
        self.records: list[Record] = []
        self.notices: list[str] = []
        """What the operator should read, each said once."""
        self._capped: set[tuple[str, int]] = set()
        self._next_lease = first_lease
        self._arrivals = 0
        self._homes: dict[PoolKey, Budget] = {}
        self._undecided: dict[str, Budget] = {}
        """Budgets of which something has changed since the last `decide`."""
        self._reported: list[Pool] = []
        """Pools that have told their demand since then."""
        self.deaths = 0
        """Processes that died, or could not be reached any more, without having closed their pools."""
        self._pasts: dict[str, Past] = {}
        """Of every database that had a budget, at most `MOST_BUDGETS` of those that have none."""

    # -- pools come and go ----------------------------------------------------------------------------------------

    def attach(self, member: MemberId, claim: PoolClaim, *, local: bool = True) -> None:
        """A pool joins, with the leases that it holds already, if it was known before, here or to another
        coordinator."""
        key = (member, claim.pool)
        if not claim.leases and self._is_too_many(key, claim):
            return
        budget = self._budget(claim.database)
        if claim.stated and budget.stated_by != "operator" and not self._state_size(budget, key, claim):
            self.detach(key)  # it claims nothing, so it holds nothing
            return
        if claim.stated and claim.max_size > budget.size and not claim.leases:  # who holds leases was told before
            self._say_capped(budget, claim)
        former = self._homes.get(key)
        if former is not None and former is not budget:
            self.detach(key)
        # Whatever was known of the pool before: what it claims now is what it holds.
        before = budget.remove(key)
        pool = Pool(key, claim.name, claim.min_size, local)
        if before is not None:  # it goes on counting
            pool.totals = before.totals
        elsewhere = []
        for held in claim.leases:
            holder = budget.holders.get(held.lease)
            if holder is not None and holder[0] != member:
                # A lease is granted once, so that of two processes that claim it one is wrong. It is the second: what
                # is granted and what the journal names came first.
                self.notices.append(
                    f"{budget.database}: process {member} claims lease {held.lease} of process {holder[0]}; ignored"
                )
                continue
            if holder is not None:
                if budget.absolve(held.lease) is None:  # else it was taken for dead
                    budget.release(budget.pools[holder], held.lease)
                if holder != key:
                    elsewhere.append(Record("returned", budget.database, holder, held))
            if held.state is LeaseState.QUARANTINED:
                held = held.become(LeaseState.CONNECTING)  # noqa: PLW2901 - it is not for a process to say so
            pool.leases[held.lease] = held
            if held.state is LeaseState.CLOSING:
                pool.closing[held.lease] = self.now
        budget.add(pool)
        self._homes[key] = budget
        self.records.append(Record("attached", budget.database, key, leases=tuple(pool.leases.values())))
        self.records.extend(elsewhere)  # last: what is written by half is charged twice, and not never
        self._send(pool, Attached(claim.pool, budget.size))
        self._say_exceeded(budget, pool)
        self._touch(budget)

    def _is_too_many(self, key: PoolKey, claim: PoolClaim) -> bool:
        """Names can be made up without end. Who holds leases already is counted all the same."""
        if claim.database not in self.budgets and len(self.budgets) >= MOST_BUDGETS:
            reason = f"the coordinator has budgets for {MOST_BUDGETS} databases, and takes no more"
        elif len(self._homes) >= MOST_POOLS and key not in self._homes and self._pools_of(key[0]) >= MOST_POOLS:
            reason = f"this process has {MOST_POOLS} pools, and the coordinator takes no more"
        else:
            return False
        self.outbox.append((key[0], Refused(key[1], reason)))
        return True

    def _pools_of(self, member: MemberId) -> int:
        return sum(key[0] == member for key in self._homes)

    def _state_size(self, budget: Budget, key: PoolKey, claim: PoolClaim) -> bool:
        """A script states the budget's size. Two that state different ones cannot both be right."""
        size = min(claim.max_size, MOST_CONNECTIONS)
        if budget.stated_by is None or not any(other != key for other in budget.pools):
            self.records.append(Record("sized", budget.database, (claim.name, 0), size=size))
            self._set_size(budget, size, claim.name)
            return True
        if size == budget.size or claim.leases:  # who holds leases was accepted before
            return True
        reason = (
            f"{claim.name} states max_size={claim.max_size} for {budget.database}, but {budget.stated_by} of this run "
            f"states max_size={budget.size}: one database has one budget; give both the same, or set --max-size"
        )
        self.outbox.append((key[0], Refused(key[1], reason)))
        return False

    def _set_size(self, budget: Budget, size: int, stated_by: str) -> None:
        budget.size, budget.stated_by = size, stated_by
        for pool in budget.pools.values():
            # Who waits keeps us up to date, also without a ceiling: what it claims is what it waits for.
            pool.ceiling, pool.current, pool.owes_since = None, pool.demand.waiting > 0, None
            self._send(pool, Attached(pool.key[1], size))
        budget.ceilings.clear()

    def resize(self, size: int) -> None:
        """The operator has another size for every budget. What is leased beyond it is asked back: it is charged, and
        nothing is granted, until it has come."""
        self.operator_size = size
        for budget in list(self.budgets.values()):
            self._set_size(budget, size, "operator")
            self._touch(budget)

    def recall(self) -> None:
        """Ask every lease back: others are granted as they are needed."""
        for budget in self.budgets.values():
            for pool in budget.pools.values():
                budget.past.recalled += pool.held
                self._send(pool, Recall(pool.key[1]))

    def _say_capped(self, budget: Budget, claim: PoolClaim) -> None:
        what = (budget.database, claim.max_size)
        if what not in self._capped:
            if len(self._capped) >= MOST_CAPPED:
                self._capped.clear()
            self._capped.add(what)
            self.notices.append(
                f"max_size={claim.max_size} is capped to {budget.size}, the operator's budget for {budget.database}"
            )

    def _say_exceeded(self, budget: Budget, pool: Pool) -> None:
        """Processes may hold more than there is: of a coordinator that had more to give, or whose journal is lost."""
        exceeded = budget.charged > budget.size
        if exceeded and not budget.exceeded:
            self.notices.append(
                f"{budget.database}: {budget.charged} connections are claimed, and the budget is {budget.size}; the "
                f"last claim is of {pool.name}, which holds {len(pool.leases)}. All of them stay charged until the "
                "server has let go of them, and nothing is granted until then"
            )
        budget.exceeded = exceeded

    def rejoined(self, member: MemberId, claims: Iterable[PoolClaim], *, local: bool) -> None:
        """A process states all that it holds."""
        claims = list(claims)
        stated = {claim.pool for claim in claims}
        for key in [key for key in self._homes if key[0] == member]:
            if key[1] not in stated:
                self.detach(key)
        for claim in claims:
            self.attach(member, claim, local=local)
        # It was taken for dead: what it does not claim it has given back.
        for budget in list(self.budgets.values()):
            back = [lease for lease, orphan in budget.quarantined.items() if orphan.key[0] == member]
            for lease in back:
                self.gone(budget.database, lease)

    def detach(self, key: PoolKey) -> None:
        """A pool is closed and has given everything back."""
        budget = self._homes.pop(key, None)
        if budget is None:
            return
        pool = budget.remove(key)
        if pool is not None:
            budget.past.totals += pool.totals
            self._record_returned(budget, key, pool.leases.values())
        self._touch(budget)

    def recover(self, database: str, key: PoolKey, name: str, held: Iterable[HeldLease], *, local: bool = True) -> None:
        """What the journal of a former coordinator says of a process that may still live: charged, until it reports."""
        budget = self._budget(database)
        leases = {one.lease: one for one in held if one.lease not in budget.holders}
        budget.add(Pool(key, name, 0, local, leases, silent=True))
        self._homes[key] = budget

    def recover_size(self, database: str, size: int, stated_by: str) -> None:
        """What a script stated to the former coordinator: it holds although that script has not reported yet."""
        budget = self._budget(database)
        if budget.stated_by != "operator":
            budget.size, budget.stated_by = size, stated_by

    def _budget(self, database: str) -> Budget:
        budget = self.budgets.get(database)
        if budget is None:
            size, stated_by = (self.operator_size, "operator") if self.operator_size else (DEFAULT_SIZE, None)
            budget = self.budgets[database] = Budget(database, size, stated_by, past=self._past(database))
        return budget

    def _past(self, database: str) -> Past:
        if len(self._pasts) >= 2 * MOST_BUDGETS:
            self._pasts = {name: past for name, past in self._pasts.items() if name in self.budgets}
        return self._pasts.setdefault(database, Past())

    def start_granting(self) -> None:
        self.granting = True
        for budget in list(self.budgets.values()):
            self._touch(budget)

    def dead(self, member: MemberId, *, local: bool) -> None:
        """A process died, or cannot be reached. Its leases stay charged until the server was seen to let go of
        each."""
        keys = [key for key in self._homes if key[0] == member]
        self.deaths += bool(keys)
        for key in keys:
            budget = self._homes.pop(key)
            pool = budget.remove(key)
            if pool is not None:
                budget.past.totals += pool.totals
                for held in pool.leases.values():
                    budget.quarantine(Orphan(held, key, self.now, local))
            self._touch(budget)

    def gone(self, database: str, lease: Lease) -> None:
        """The server has let go of a dead process's session."""
        budget = self.budgets.get(database)
        orphan = budget.absolve(lease) if budget is not None else None
        if budget is None or orphan is None:
            return
        budget.past.let_go += 1
        budget.past.longest = max(budget.past.longest, self.now - orphan.since)
        self._record_returned(budget, orphan.key, [orphan.held])
        self._touch(budget)

    def take(self, member: MemberId, message: FromPool, *, local: bool = True) -> None:
        """The event that `message` from a process stands for."""
        match message:
            case Attach(claim=claim) if claim.leases:  # made up: what a process holds it says when it says hello
                self.outbox.append((member, Refused(claim.pool, "a pool that is new holds no leases")))
            case Attach(claim=claim):
                self.attach(member, claim, local=local)
            case Report(pool=pool, received=received, demand=demand):
                self.report((member, pool), received, demand)
            case Moved(pool=pool, held=held):
                self.moved((member, pool), held)
            case Returned(pool=pool, leases=leases):
                self.returned((member, pool), leases)
            case Detach(pool=pool):
                self.detach((member, pool))
            case Ended(pool=pool, leases=leases):
                self.ended((member, pool), leases)
            case Totals(pool=pool):
                found = self._find((member, pool))
                if found is not None:
                    found[1].totals = message

    # -- leases ---------------------------------------------------------------------------------------------------

    def report(self, key: PoolKey, received: int, demand: Demand) -> None:
        """A pool says what it uses and what it lacks."""
        found = self._find(key)
        if found is None:
            return
        budget, pool = found
        if demand.waiting and not pool.demand.waiting:
            self._queue_up(pool)
        pool.received = max(0, min(received, pool.granted))
        self._set_demand(budget, pool, _bounded(demand))
        pool.current = True
        self._reported.append(pool)
        self._touch(budget)

    def _set_demand(self, budget: Budget, pool: Pool, demand: Demand) -> None:
        pool.demand = demand
        if pool.lacks:
            budget.wanting[pool.key] = pool
        else:
            budget.wanting.pop(pool.key, None)

    def moved(self, key: PoolKey, held: HeldLease) -> None:
        """A lease has come further in its life, and may be known better now."""
        found = self._find(key)
        if found is None or held.lease not in found[1].leases or held.state is LeaseState.QUARANTINED:
            return
        budget, pool = found
        if held.state <= pool.leases[held.lease].state:
            return  # it never goes back
        pool.leases[held.lease] = held
        self.records.append(Record("moved", budget.database, key, held))
        if held.state is LeaseState.CLOSING:
            pool.closing[held.lease] = self.now
            _settle(pool)
            self._touch(budget)

    def returned(self, key: PoolKey, leases: Iterable[Lease]) -> None:
        """The server has let go of these connections, or they were never opened. Saying it twice changes nothing."""
        found = self._find(key)
        if found is None:
            return
        budget, pool = found
        back = [held for held in (budget.release(pool, lease) for lease in leases) if held is not None]
        if back and pool.demand.waiting:
            self._queue_up(pool)  # it had its turn; whoever has waited meanwhile comes first
        _settle(pool)
        self._record_returned(budget, key, back)
        self._touch(budget)

    def _queue_up(self, pool: Pool) -> None:
        self._arrivals += 1
        pool.since = self._arrivals

    def _record_returned(self, budget: Budget, key: PoolKey, back: Iterable[HeldLease]) -> None:
        self.records.extend(Record("returned", budget.database, key, held) for held in back)
        budget.exceeded = budget.exceeded and budget.charged > budget.size

    def _find(self, key: PoolKey) -> tuple[Budget, Pool] | None:
        budget = self._homes.get(key)
        return (budget, budget.pools[key]) if budget is not None else None

    # -- orphans --------------------------------------------------------------------------------------------------

    def have_ended(self, budget: Budget, orphans: list[Orphan]) -> None:
        """Ask a pool to end the sessions of `orphans` on the server: one that was not asked yet, if there is one."""
        able = [pool for pool in budget.pools.values() if not pool.silent]
        if not able:
            return
        # One with an idle connection can do it at once.
        asked: dict[PoolKey, int] = {}
        for orphan in orphans:
            orphan.asked = {key: times for key, times in orphan.asked.items() if key in budget.pools}
            for key, times in orphan.asked.items():
                asked[key] = asked.get(key, 0) + times
        pool = min(able, key=lambda pool: (asked.get(pool.key, 0), not pool.demand.idle, not pool.held, pool.key))
        for orphan in orphans:
            orphan.asked[pool.key] = orphan.asked.pop(pool.key, 0) + 1
            orphan.asked_at = self.now
        budget.helper, budget.lent = pool.key, False
        self._send(pool, End(pool.key[1], [orphan.held for orphan in orphans]))
        self._touch(budget)  # it may have the reserve now, and hears of that after it has heard what for

    def ended(self, key: PoolKey, leases: Iterable[Lease]) -> None:
        """A pool that was asked has looked: of those it was asked about the server has none of `leases` any more, and
        still has the others."""
        found = self._find(key)
        gone = set(leases)
        for orphan in list(found[0].quarantined.values()) if found is not None else ():
            if key not in orphan.asked:
                continue
            if orphan.held.lease in gone:
                assert found is not None
                self.gone(found[0].database, orphan.held.lease)
            elif key == next(reversed(orphan.asked)):
                orphan.seen_at = self.now

    # -- the decision ---------------------------------------------------------------------------------------------

    def _touch(self, budget: Budget) -> None:
        """Something about it has changed. One that nobody uses any more is forgotten at once: who comes next begins
        anew."""
        if budget.pools or budget.quarantined or not self.granting:
            self._undecided[budget.database] = budget
        else:
            del self.budgets[budget.database]
            self._undecided.pop(budget.database, None)
            self.records.append(Record("forgotten", budget.database, ("", 0)))

    def decide(self) -> None:
        """What follows from all that has happened since the last time: what is granted, and who gets a ceiling. To be
        called after each event, or after several: however many reports come in at once, the parts are worked out once.
        In between nothing is granted, which could be to a pool that is about to be no more, or about to claim what it
        held before, and then nobody would count it."""
        undecided, self._undecided = self._undecided, {}
        for budget in undecided.values():
            self._balance(budget)
        reported, self._reported = self._reported, []
        for pool in reported:
            pool.current = pool.ceiling is not None or pool.demand.waiting > 0

    def _balance(self, budget: Budget) -> None:
        """Grant what is free to those who lack it; if that is not enough, ask for leases back."""
        budget.look_at = None
        if not self.granting or not (budget.wanting or budget.ceilings or budget.free < 0):
            return
        starving = [pool for pool in budget.wanting.values() if pool.demand.waiting]
        if not budget.pressed and 0 <= sum(pool.lacks for pool in starving) <= budget.free:
            # The usual case: there is enough for everybody.
            self._grant(budget, starving, _as_many_as_wanted, budget.free)
        elif budget.short:
            helper = self._helper(budget)
            targets = self._targets(budget, helper)
            if budget.pressed or sum(pool.lacks for pool in starving) > budget.free:
                self._set_ceilings(budget, targets)  # first: a grant above its old ceiling would be given back
            self._grant(budget, starving, lambda pool: targets[pool.key], budget.free)
            if helper is not None and helper.lacks and not budget.lent and budget.charged < budget.size:
                budget.lent = True
                self._grant(budget, [helper], lambda pool: targets[pool.key], 1)
            budget.look_at = self._patience_ends(budget)
        self._warm_up(budget)

    def _helper(self, budget: Budget) -> Pool | None:
        """The pool that was asked last to end sessions of other hosts, while there are any: the reserve is for it."""
        return budget.pools.get(budget.helper) if budget.lost and budget.helper is not None else None

    def _targets(self, budget: Budget, helper: Pool | None) -> dict[PoolKey, int]:
        reported = [pool for pool in budget.pools.values() if not pool.silent]
        claims = [Claim(pool.key, pool.claimed, pool.held, pool.since) for pool in reported]
        size = budget.usable - len(budget.quarantined)
        size -= sum(len(pool.leases) for pool in budget.pools.values() if pool.silent)
        # What is being closed comes back in a moment; where it does not, it cannot be shared now.
        size -= sum(self._took_long(since) for pool in reported for since in pool.closing.values())
        targets = allocate(size, claims)
        slow = {pool.key for pool in reported if pool.owes_since is not None and self._took_long(pool.owes_since)}
        if slow:
            # They owe what they hold above their part, and do not give it back: the others share what is left.
            left = size - sum(claim.held for claim in claims if claim.key in slow)
            targets |= allocate(left, [claim for claim in claims if claim.key not in slow])
        if helper is not None:  # until it has done that, or another one is asked, it keeps what it has for it
            targets[helper.key] = max(targets[helper.key], helper.held + (not budget.lent))
        return targets

    def _took_long(self, since: float) -> bool:
        return self.now >= since + PATIENCE

    def _patience_ends(self, budget: Budget) -> float | None:
        pools = budget.pools.values()
        waited_for = [pool.owes_since for pool in pools if pool.owes_since is not None]
        waited_for += [since for pool in pools for since in pool.closing.values()]
        return min((since + PATIENCE for since in waited_for if not self._took_long(since)), default=None)

    def _grant(self, budget: Budget, pools: list[Pool], most: Callable[[Pool], int], count: int) -> None:
        """At most `count`, one by one to whoever holds least, the longest waiting first among equals."""
        granted: dict[PoolKey, list[Lease]] = {}
        for _ in range(count):
            able = [pool for pool in pools if pool.lacks > 0 and pool.held < most(pool)]
            if not able:
                break
            pool = min(able, key=lambda pool: (pool.held, pool.since, pool.key))
            self._next_lease += 1
            while self._next_lease in budget.holders:  # somebody who was never granted it claims it
                self._next_lease += 1
            held = HeldLease(self._next_lease)
            budget.charge(pool, held)
            pool.granted += 1
            self.records.append(Record("granted", budget.database, pool.key, held))
            granted.setdefault(pool.key, []).append(held.lease)
            if not pool.lacks:
                budget.wanting.pop(pool.key, None)
        for (member, pool_id), leases in granted.items():
            self.outbox.append((member, Granted(pool_id, leases, budget.charged)))

    def _set_ceilings(self, budget: Budget, targets: dict[PoolKey, int]) -> None:
        for key, target in targets.items():
            pool = budget.pools[key]
            owes = pool.held > target
            pool.owes_since = (self.now if pool.owes_since is None else pool.owes_since) if owes else None
            if pool.ceiling != target:
                # What an earlier ceiling has asked back is asked back once.
                before = pool.held if pool.ceiling is None else min(pool.held, pool.ceiling)
                budget.past.recalled += max(0, before - target)
                pool.ceiling = target
                budget.ceilings[key] = None
                self._send(pool, Ceiling(key[1], target, budget.charged))

    def look_again(self) -> None:
        """What time alone changes: at `look_at` whoever does not come down to its ceiling is passed over, by the next
        `decide`."""
        for budget in self.budgets.values():
            if budget.look_at is not None and self.now >= budget.look_at:
                self._touch(budget)

    @property
    def look_at(self) -> float | None:
        return min((budget.look_at for budget in self.budgets.values() if budget.look_at is not None), default=None)

    def relax(self) -> None:
        """Lift the ceilings where nobody waits any more. Called a moment after that, so that they do not flap."""
        for budget in self.budgets.values():
            if budget.pressed and not budget.short:
                for key in budget.ceilings:
                    pool = budget.pools[key]
                    pool.ceiling, pool.current, pool.owes_since = None, False, None
                    self._send(pool, Ceiling(key[1], None, budget.charged))
                budget.ceilings.clear()

    def _warm_up(self, budget: Budget) -> None:
        """Opening towards `min_size` is no right: only while nobody waits, from what is free, and not beyond an equal
        part. Whoever asks gets an answer at once, because its `start()` waits for it."""
        asking = [pool for pool in budget.wanting.values() if not pool.demand.waiting]
        if not asking:
            return
        if not budget.starving:
            part = budget.usable // len(budget.pools)
            # The first connection shows that the configuration works, so nobody's part is less than one.
            self._grant(budget, asking, lambda pool: min(pool.min_size, max(1, part)), budget.free)
        for pool in asking:
            if pool.lacks > 0:
                self._set_demand(budget, pool, pool.demand._replace(want=0))
                self._send(pool, Denied(pool.key[1]))

    def _send(self, pool: Pool, message: ToPool) -> None:
        self.outbox.append((pool.key[0], message))

    # -- what is --------------------------------------------------------------------------------------------------

    def ask_all(self) -> set[PoolKey]:
        """Have every pool report. Gives those that are asked."""
        pools = [pool for budget in self.budgets.values() for pool in budget.pools.values() if not pool.silent]
        for pool in pools:
            self._send(pool, Ask(pool.key[1]))
        return {pool.key for pool in pools}

    def silent_members(self) -> set[MemberId]:
        return {key[0] for key, budget in self._homes.items() if budget.pools[key].silent}

    def orphans(self) -> Iterator[tuple[Budget, Orphan]]:
        for budget in list(self.budgets.values()):
            for orphan in list(budget.quarantined.values()):
                yield budget, orphan

    @property
    def has_orphans(self) -> bool:
        return any(budget.quarantined for budget in self.budgets.values())

    def addresses(self) -> set[Endpoints]:
        """Every connection of the living that is known, of this host: another may have the same private addresses."""
        pools = [pool for budget in self.budgets.values() for pool in budget.pools.values() if pool.local]
        return {held.address for pool in pools for held in pool.leases.values() if held.address is not None}

    @property
    def relaxable(self) -> bool:
        return any(budget.pressed and not budget.short for budget in self.budgets.values())

    @property
    def under_pressure(self) -> bool:
        return any(budget.pressed or budget.short for budget in self.budgets.values())


def _settle(pool: Pool) -> None:
    """It may owe nothing any more: then what it will owe next is no old debt."""
    if pool.ceiling is not None and pool.held <= pool.ceiling:
        pool.owes_since = None


def _as_many_as_wanted(pool: Pool) -> int:
    return MOST_CONNECTIONS


def _bounded(demand: Demand) -> Demand:
    in_use, idle, recent, waiting, want = (max(0, min(number, MOST_CONNECTIONS)) for number in demand)
    return Demand(in_use, idle, recent, waiting, min(want, MOST_WANTED))
