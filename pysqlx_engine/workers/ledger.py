"""The lease ledger: who holds what of which budget. The one place where a lease is granted.

A state machine without I/O, clock or thread. Every event is a method; what has to be sent and what has to be written
down first collects in `outbox` and `records`, which the coordinator takes after each event.

The rules:

- A lease is charged from the moment it is granted until the process says that the server has let go of the connection,
  or, when the process is dead, until the server was seen to let go (`quarantined` in between).
- Granted is only what is free: `size - (held + in flight + quarantined)`. Recall first, grant second: a ceiling asks
  for leases back, and only those that came back are granted anew.
- While somebody waits and nothing is free, everybody gets a ceiling from `allocation.allocate`. Idle connections come
  back at once, others with the next check-in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from ..engine.sockets import Endpoints
from ..pool.budget import Demand, Lease
from .allocation import Claim, allocate
from .messages import (
    Attach,
    Attached,
    Ceiling,
    Denied,
    Detach,
    FromCoordinator,
    Granted,
    HeldLease,
    Opened,
    PoolClaim,
    Refused,
    Report,
    Returned,
)

DEFAULT_SIZE = 10
PATIENCE = 0.05
"""Seconds that a pool may take to come down to its ceiling before others are asked instead: it may be in the midst of
long queries, or stopped."""
LOOK_AGAIN = 0.02
"""Seconds between two calls of `look_again` while somebody waits."""

NOTHING = Demand(in_use=0, idle=0, recent=0, waiting=0, want=0)

MemberId = str
PoolKey = tuple[MemberId, int]


@dataclass(slots=True)
class Pool:
    """One pool of one process, as the coordinator knows it."""

    key: PoolKey
    name: str
    min_size: int
    leases: dict[Lease, HeldLease]
    demand: Demand = NOTHING
    granted: int = 0
    received: int = 0
    """Leases granted since it was attached, and how many of them it had received when it told its demand."""
    ceiling: int | None = None
    current: bool = False
    """Whether `demand` is up to date: it is while the pool has a ceiling, or lacks something."""
    since: int = 0
    """When it began to wait, or had its turn last, as a running number."""
    owes_since: float | None = None
    """Since when it has held more than its ceiling."""
    silent: bool = False
    """Known from the journal only: its process lives, but has not reported to this coordinator yet."""

    @property
    def lacks(self) -> int:
        """Leases wanted, less those on their way to it."""
        return max(0, self.demand.want - (self.granted - self.received))

    @property
    def starves(self) -> bool:
        return self.demand.waiting > 0 and self.lacks > 0

    @property
    def claimed(self) -> int:
        """What it uses, used just now, and waits for. Of a pool that has no reason to keep us up to date: all it
        holds."""
        if self.current:
            return max(self.demand.in_use + self.demand.waiting, self.demand.recent)
        return len(self.leases)


@dataclass(slots=True)
class Orphan:
    """A lease whose process is dead, while the server may still have its session."""

    held: HeldLease
    key: PoolKey


@dataclass(slots=True)
class Budget:
    """One database's budget."""

    database: str
    size: int
    stated_by: str | None
    """Who stated the size: a pool's name, "operator", or None while it is only the default."""
    pools: dict[PoolKey, Pool] = field(default_factory=dict)
    quarantined: dict[Lease, Orphan] = field(default_factory=dict)

    @property
    def charged(self) -> int:
        return sum(len(pool.leases) for pool in self.pools.values()) + len(self.quarantined)

    @property
    def free(self) -> int:
        return self.size - self.charged

    @property
    def starving(self) -> bool:
        return any(pool.starves for pool in self.pools.values())

    @property
    def short(self) -> bool:
        """Whether leases have to come back: somebody waits, or the budget has become smaller."""
        return self.free < 0 or self.starving

    @property
    def pressed(self) -> bool:
        """Whether ceilings are out."""
        return any(pool.ceiling is not None for pool in self.pools.values())


@dataclass(frozen=True, slots=True)
class Record:
    """A line of the journal, to be written before anything is sent."""

    kind: Literal["attached", "granted", "opened", "returned", "sized", "forgotten"]
    database: str
    key: PoolKey
    held: HeldLease | None = None
    """None for "attached", which forgets what the pool held before, and for what is said of a whole budget."""
    size: int | None = None
    """With "sized"; whose pool stated it is in `key`."""


class Ledger:
    def __init__(self, epoch: int, operator_size: int | None, first_lease: Lease) -> None:
        self.epoch = epoch
        self.operator_size = operator_size
        self.budgets: dict[str, Budget] = {}
        self.granting = True
        """False while a restarted coordinator learns who holds what."""
        self.now = 0.0
        """The moment of the event, on a clock that only goes forward. Set by the caller before each event."""
        self.outbox: list[tuple[MemberId, FromCoordinator]] = []
        self.records: list[Record] = []
        self.notices: list[str] = []
        """What the operator should read, each said once."""
        self._capped: set[tuple[str, int]] = set()
        self._next_lease = first_lease
        self._arrivals = 0
        self._homes: dict[PoolKey, Budget] = {}

    # -- pools come and go ----------------------------------------------------------------------------------------

    def attach(self, member: MemberId, claim: PoolClaim) -> None:
        """A pool joins, with the leases that it holds already, if it knew another coordinator before."""
        key = (member, claim.pool)
        budget = self._budget(claim.database)
        if claim.stated and budget.stated_by != "operator" and not self._state_size(budget, key, claim):
            return
        if claim.stated and claim.max_size > budget.size and not claim.leases:  # who holds leases was told before
            self._say_capped(budget, claim)
        # Whatever was known of the pool before: what it claims now is what it holds.
        pool = Pool(key, claim.name, claim.min_size, {held.lease: held for held in claim.leases})
        budget.pools[key] = pool
        self._homes[key] = budget
        self.records.append(Record("attached", budget.database, key, None))
        self.records.extend(Record("granted", budget.database, key, held) for held in claim.leases)
        self._send(pool, Attached(self.epoch, claim.pool, budget.size))
        self._balance(budget)

    def _state_size(self, budget: Budget, key: PoolKey, claim: PoolClaim) -> bool:
        """A script states the budget's size. Two that state different ones cannot both be right."""
        if budget.stated_by is None or not any(other != key for other in budget.pools):
            budget.size, budget.stated_by = claim.max_size, claim.name
            self.records.append(Record("sized", budget.database, (claim.name, 0), size=budget.size))
            for pool in budget.pools.values():
                pool.ceiling, pool.current = None, False
                self._send(pool, Attached(self.epoch, pool.key[1], budget.size))
            return True
        if claim.max_size == budget.size or claim.leases:  # who holds leases was accepted before
            return True
        reason = (
            f"{claim.name} states max_size={claim.max_size} for {budget.database}, but {budget.stated_by} of this run "
            f"states max_size={budget.size}: one database has one budget; give both the same, or set --max-size"
        )
        self.outbox.append((key[0], Refused(self.epoch, key[1], reason)))
        return False

    def _say_capped(self, budget: Budget, claim: PoolClaim) -> None:
        what = (budget.database, claim.max_size)
        if what not in self._capped:
            self._capped.add(what)
            self.notices.append(
                f"max_size={claim.max_size} is capped to {budget.size}, the operator's budget for {budget.database}"
            )

    def detach(self, key: PoolKey) -> None:
        """A pool is closed and has given everything back."""
        budget = self._homes.pop(key, None)
        if budget is None:
            return
        pool = budget.pools.pop(key)
        self._record_returned(budget, pool, pool.leases.values())
        self._balance(budget)
        self._forget_if_unused(budget)

    def recover(self, database: str, key: PoolKey, name: str, held: Iterable[HeldLease]) -> None:
        """What the journal of a former coordinator says of a process that may still live: charged, until it reports."""
        budget = self._budget(database)
        budget.pools[key] = Pool(key, name, 0, {one.lease: one for one in held}, silent=True)
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
            budget = self.budgets[database] = Budget(database, size, stated_by)
        return budget

    def start_granting(self) -> None:
        self.granting = True
        for budget in list(self.budgets.values()):
            self._balance(budget)
            self._forget_if_unused(budget)

    def dead(self, member: MemberId) -> None:
        """A process died. Its leases stay charged until the server was seen to let go of each."""
        for key in [key for key in self._homes if key[0] == member]:
            budget = self._homes.pop(key)
            pool = budget.pools.pop(key)
            for lease, held in pool.leases.items():
                budget.quarantined[lease] = Orphan(held, key)
            self._balance(budget)
            self._forget_if_unused(budget)

    def gone(self, database: str, lease: Lease) -> None:
        """The server has let go of a dead process's session."""
        budget = self.budgets.get(database)
        orphan = budget.quarantined.pop(lease, None) if budget is not None else None
        if budget is None or orphan is None:
            return
        self.records.append(Record("returned", database, orphan.key, orphan.held))
        self._balance(budget)
        self._forget_if_unused(budget)

    def _forget_if_unused(self, budget: Budget) -> None:
        if not budget.pools and not budget.quarantined and self.granting:
            del self.budgets[budget.database]
            self.records.append(Record("forgotten", budget.database, ("", 0)))

    def take(self, member: MemberId, message: Attach | Report | Opened | Returned | Detach) -> None:
        """The event that `message` from a process stands for. What belongs to another epoch changes nothing."""
        if message.epoch != self.epoch:
            return
        match message:
            case Attach(claim=claim):
                self.attach(member, claim)
            case Report(pool=pool, received=received, demand=demand):
                self.report((member, pool), received, demand)
            case Opened(pool=pool, held=held):
                self.opened((member, pool), held)
            case Returned(pool=pool, leases=leases):
                self.returned((member, pool), leases)
            case Detach(pool=pool):
                self.detach((member, pool))

    # -- leases ---------------------------------------------------------------------------------------------------

    def report(self, key: PoolKey, received: int, demand: Demand) -> None:
        """A pool says what it uses and what it lacks."""
        found = self._find(key)
        if found is None:
            return
        budget, pool = found
        if demand.waiting and not pool.demand.waiting:
            self._queue_up(pool)
        pool.demand, pool.received = demand, received
        pool.current = pool.ceiling is not None or demand.waiting > 0
        self._balance(budget)

    def opened(self, key: PoolKey, held: HeldLease) -> None:
        found = self._find(key)
        if found is None or held.lease not in found[1].leases:
            return
        budget, pool = found
        pool.leases[held.lease] = held
        self.records.append(Record("opened", budget.database, key, held))

    def returned(self, key: PoolKey, leases: Iterable[Lease]) -> None:
        """The server has let go of these connections, or they were never opened. Saying it twice changes nothing."""
        found = self._find(key)
        if found is None:
            return
        budget, pool = found
        back = [pool.leases.pop(lease) for lease in leases if lease in pool.leases]
        if back and pool.demand.waiting:
            self._queue_up(pool)  # it had its turn; whoever has waited meanwhile comes first
        self._record_returned(budget, pool, back)
        self._balance(budget)

    def _queue_up(self, pool: Pool) -> None:
        self._arrivals += 1
        pool.since = self._arrivals

    def _record_returned(self, budget: Budget, pool: Pool, back: Iterable[HeldLease]) -> None:
        self.records.extend(Record("returned", budget.database, pool.key, held) for held in back)

    def _find(self, key: PoolKey) -> tuple[Budget, Pool] | None:
        budget = self._homes.get(key)
        return (budget, budget.pools[key]) if budget is not None else None

    # -- the decision ---------------------------------------------------------------------------------------------

    def _balance(self, budget: Budget) -> None:
        """Grant what is free to those who lack it; if that is not enough, ask for leases back."""
        if not self.granting:
            return
        if budget.short:
            starving = [pool for pool in budget.pools.values() if pool.starves]
            targets = self._targets(budget)
            if budget.pressed or sum(pool.lacks for pool in starving) > budget.free:
                self._set_ceilings(budget, targets)  # first: a grant above its old ceiling would be given back
            self._grant(budget, starving, lambda pool: targets[pool.key])
        self._warm_up(budget)

    def _targets(self, budget: Budget) -> dict[PoolKey, int]:
        reported = [pool for pool in budget.pools.values() if not pool.silent]
        claims = [Claim(pool.key, pool.claimed, len(pool.leases), pool.since) for pool in reported]
        size = budget.size - len(budget.quarantined)
        size -= sum(len(pool.leases) for pool in budget.pools.values() if pool.silent)
        targets = allocate(size, claims)
        slow = {pool.key for pool in reported if pool.owes_since is not None and self.now - pool.owes_since > PATIENCE}
        if slow:
            # They owe what they hold above their part, and do not give it back: the others share what is left.
            left = size - sum(claim.held for claim in claims if claim.key in slow)
            targets |= allocate(left, [claim for claim in claims if claim.key not in slow])
        return targets

    def _grant(self, budget: Budget, pools: list[Pool], most: Callable[[Pool], int]) -> None:
        """One by one to whoever holds least, the longest waiting first among equals."""
        granted: dict[PoolKey, list[Lease]] = {}
        for _ in range(budget.free):
            able = [pool for pool in pools if pool.lacks > 0 and len(pool.leases) < most(pool)]
            if not able:
                break
            pool = min(able, key=lambda pool: (len(pool.leases), pool.since, pool.key))
            self._next_lease += 1
            held = HeldLease(self._next_lease)
            pool.leases[held.lease] = held
            pool.granted += 1
            self.records.append(Record("granted", budget.database, pool.key, held))
            granted.setdefault(pool.key, []).append(held.lease)
        for (member, pool_id), leases in granted.items():
            self.outbox.append((member, Granted(self.epoch, pool_id, leases, budget.charged)))

    def _set_ceilings(self, budget: Budget, targets: dict[PoolKey, int]) -> None:
        for key, target in targets.items():
            pool = budget.pools[key]
            owes = len(pool.leases) > target
            pool.owes_since = (self.now if pool.owes_since is None else pool.owes_since) if owes else None
            if pool.ceiling != target:
                pool.ceiling = target
                self._send(pool, Ceiling(self.epoch, key[1], target, budget.charged))

    def look_again(self) -> None:
        """What time alone changes: whoever does not come down to its ceiling is passed over. Called every `LOOK_AGAIN`
        seconds while there is pressure."""
        for budget in self.budgets.values():
            if budget.short:
                self._balance(budget)

    def relax(self) -> None:
        """Lift the ceilings where nobody waits any more. Called a moment after that, so that they do not flap."""
        for budget in self.budgets.values():
            if budget.pressed and not budget.short:
                for pool in budget.pools.values():
                    if pool.ceiling is not None:
                        pool.ceiling, pool.current, pool.owes_since = None, False, None
                        self._send(pool, Ceiling(self.epoch, pool.key[1], None, budget.charged))

    def _warm_up(self, budget: Budget) -> None:
        """Opening towards `min_size` is no right: only while nobody waits, from what is free, and not beyond an equal
        part. Whoever asks gets an answer at once, because its `start()` waits for it."""
        asking = [pool for pool in budget.pools.values() if pool.lacks > 0 and not pool.demand.waiting]
        if not asking:
            return
        if not budget.starving:
            part = budget.size // len(budget.pools)
            # The first connection shows that the configuration works, so nobody's part is less than one.
            self._grant(budget, asking, lambda pool: min(pool.min_size, max(1, part)))
        for pool in asking:
            if pool.lacks > 0:
                pool.demand = pool.demand._replace(want=0)
                self._send(pool, Denied(self.epoch, pool.key[1]))

    def _send(self, pool: Pool, message: FromCoordinator) -> None:
        self.outbox.append((pool.key[0], message))

    # -- what is --------------------------------------------------------------------------------------------------

    def silent_members(self) -> set[MemberId]:
        return {key[0] for key, budget in self._homes.items() if budget.pools[key].silent}

    def orphans(self) -> Iterator[tuple[str, Orphan]]:
        for budget in self.budgets.values():
            for orphan in budget.quarantined.values():
                yield budget.database, orphan

    def pools_of(self, member: MemberId) -> set[int]:
        return {key[1] for key in self._homes if key[0] == member}

    def addresses(self) -> set[Endpoints]:
        """Every connection that is known, also those of the living."""
        known = {held.address for b in self.budgets.values() for p in b.pools.values() for held in p.leases.values()}
        known |= {orphan.held.address for _, orphan in self.orphans()}
        return {address for address in known if address is not None}

    @property
    def relaxable(self) -> bool:
        return any(budget.pressed and not budget.short for budget in self.budgets.values())

    @property
    def under_pressure(self) -> bool:
        return any(budget.pressed or budget.short for budget in self.budgets.values())
