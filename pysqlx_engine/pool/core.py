"""What one process's pool decides: a state machine without I/O, clock, thread or await.

Every event is a method that changes the state and returns the `Effects` somebody else has to perform (wake a waiter,
open under a lease, close a connection, give leases back, tell the budget). The caller holds one lock around each call
and performs the effects after it has let go of the lock, so cancellation and other threads can only come between two
states, never into the middle of one.

The life of a lease here: `spare` (granted, nothing opened yet) -> `opening` -> `idle` <-> `in_use` -> `closing` ->
given back: a lease is for one connection. An idle connection that may be dead goes through `testing` before somebody
gets it; a login that the driver gave up stays in `given_up` until the server has given it up as well. What is held is
the sum of these; it changes only by `granted` and by `Effects.give_back`.
"""

from __future__ import annotations

import enum
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..engine.session import ServerSession
from ..errors import PoolClosedError, PoolError, PoolForkedError, PoolQueueFullError
from .budget import RECENT, Demand, Lease

MAX_OPENING = 2
"""Connections being opened at a time. More would answer a short spike with connections that nobody needs after it:
a connection that comes back serves a waiter sooner than a new one, which takes milliseconds to open."""


OURSELVES = 0
"""Who holds a connection, or waits for one, when it is the pool itself."""


class ConnInfo:
    """One connection of the pool."""

    __slots__ = (
        "checked_out_at",
        "checkout",
        "engine",
        "expires_at",
        "face",
        "holder",
        "last_used",
        "lease",
        "name",
        "opened_at",
        "retire",
        "session",
        "stack",
    )

    def __init__(
        self,
        name: str,
        lease: Lease,
        engine: Any,
        face: Any,
        session: ServerSession,
        opened_at: float,
        expires_at: float = math.inf,
    ) -> None:
        self.name = name
        self.lease = lease
        self.engine = engine
        self.face = face
        """What the user gets: the engine itself, or its thread face."""
        self.session = session
        self.opened_at = opened_at
        self.expires_at = expires_at
        self.last_used = opened_at
        """When it came back last, or was found alive."""
        self.checked_out_at = opened_at
        self.checkout = OURSELVES
        """Which check-out has it, or had it last: an identity, no reference."""
        self.holder = OURSELVES
        """Which task or thread has it, or had it last: an identity, no reference."""
        self.stack: Any = None
        """Where it was checked out, while that is recorded; None once it was reported."""
        self.retire = False
        """Set when the connection is too old: it is closed when it comes back."""

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} '{self.name}' at {id(self):#x}>"


class Waiter:
    """Somebody who waits for a connection. Exactly one of `conn` and `error` is set before `wake` is called."""

    __slots__ = ("checkout", "conn", "error", "face", "owner", "wake")

    def __init__(self, wake: Callable[[], None], owner: int = OURSELVES, checkout: int = OURSELVES) -> None:
        self.wake = wake
        self.checkout = checkout
        self.owner = owner
        """Which task or thread it is: an identity, no reference."""
        self.conn: ConnInfo | None = None
        self.face: Any = None
        """Of `conn`: as long as this reference lives, somebody has the connection, or will have it."""
        self.error: BaseException | None = None


class State(enum.Enum):
    NEW = "new"
    OPEN = "open"
    STOPPING = "stopping"
    """No check-outs any more; connections in use may be used until they come back."""
    CLOSED = "closed"
    FORKED = "forked"
    """In a forked child: the connections are the parent's."""


# The hot path asks for it often, and a member of an enumeration takes its time.
_OPEN = State.OPEN


@dataclass(slots=True)
class Effects:
    """What has to be performed, in this order."""

    wake: list[Waiter] = field(default_factory=list)
    open: list[Lease] = field(default_factory=list)
    test: list[ConnInfo] = field(default_factory=list)
    close: list[ConnInfo] = field(default_factory=list)
    give_back: list[Lease] = field(default_factory=list)
    tell: bool = False
    """Set when the budget has to hear of a new demand."""
    urgent: bool = False
    """Set with `tell`, when it has to hear of it at once."""


class PoolCore:
    """The state, and the events that change it.

    `check_after`: seconds idle after which a connection is tested before somebody gets it.
    `max_waiting`: most waiters, 0 for any number.
    `fail_fast`: while nothing can be opened and nothing is open, nobody waits, but for one at a time who finds out.
    """

    def __init__(
        self,
        min_size: int,
        budget_size: int,
        *,
        check_after: float = math.inf,
        max_waiting: int = 0,
        fail_fast: bool = False,
    ) -> None:
        self.min_size = min_size
        self.budget_size = budget_size
        self.check_after = check_after
        self.max_waiting = max_waiting
        self.fail_fast = fail_fast
        self.state = State.NEW
        self.idle: list[ConnInfo] = []
        """A stack: the connection used last is used next, so that what is not needed gets old and can be closed."""
        self.in_use: set[ConnInfo] = set()
        self.testing: set[ConnInfo] = set()
        self.waiters: dict[Waiter, None] = {}
        """In order of arrival. A dictionary, so that one who gives up leaves at once, wherever he stands."""
        self.spare: list[Lease] = []
        self.opening: set[Lease] = set()
        self._retired_opening: set[Lease] = set()
        """Those of them that were begun before all were to be replaced."""
        self.closing: set[ConnInfo] = set()
        self.given_up: set[Lease] = set()
        self.ceiling: int | None = None
        self.shrinking = False
        """Set while more is held than the budget has since it was resized."""
        self.server_limit: int | None = None
        """Leases that are of use while the server refuses more connections; None while it does not."""
        self.backing_off = False
        """Set while opening is put off after a failure."""
        self.suspended = False
        """Set while the budget does not let us open anything under the leases we hold."""
        self.suspicious = False
        """Set when a connection was found dead, until one is found alive: the others may be dead as well."""
        self.denied = False
        """Set when the budget gave less than was wanted for `min_size`; lifted by `replenish`."""
        self.last_error: BaseException | None = None
        self._now = 0.0
        self._told = Demand(0, 0, 0, 0, 0)
        """What the budget knows of our demand, less what it has granted since."""

    # -- what is --------------------------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """Leases this pool holds."""
        return self.kept + self.returning

    @property
    def kept(self) -> int:
        """Those of them that are not on their way back."""
        return len(self.spare) + len(self.opening) + self.size

    @property
    def returning(self) -> int:
        """Leases whose connection is closed on our side, but not on the server's."""
        return len(self.closing) + len(self.given_up)

    @property
    def size(self) -> int:
        """Connections that are open."""
        return len(self.idle) + len(self.in_use) + len(self.testing)

    @property
    def running(self) -> bool:
        """Whether connections may be in use."""
        return self.state in {State.OPEN, State.STOPPING}

    @property
    def warming(self) -> bool:
        """Whether connections towards `min_size` are still on their way."""
        if self.state is not _OPEN:
            return False
        at_limit = self.server_limit is not None and self.size >= self.server_limit
        more_may_come = not self.denied and self.ceiling is None and not at_limit
        return bool(self.opening or self.spare) or (self.size < self.min_size and more_may_come)

    def demand(self) -> Demand:
        """Wanted is only what can be opened at once: a lease that lies about here is missing elsewhere."""
        want = max(0, min(self._missing(), self._most_opening) - len(self.opening) - len(self.spare))
        if self.server_limit is not None:
            want = max(0, min(want, self.server_limit - self.held))
        if self.backing_off or self.suspended or self.shrinking or self.state is not _OPEN:
            want = 0
        in_use = len(self.in_use)
        return Demand(in_use, len(self.idle) + len(self.testing), in_use, len(self.waiters), want)

    @property
    def _most_opening(self) -> int:
        """Connections that may be opened at a time: one, while it is not known that any can be."""
        return MAX_OPENING if self.last_error is None else 1

    def _missing(self) -> int:
        """Connections that should be opened: for those who wait, or towards `min_size` when nobody does."""
        if self.waiters:
            # One that is tested will serve a waiter in a moment, unless there is reason to doubt it.
            return len(self.waiters) - (0 if self.suspicious else len(self.testing))
        if self.state is not _OPEN or self.ceiling is not None or self.shrinking:
            return 0
        return self.min_size - self.size

    def tell(self, now: float) -> Demand:
        """The demand as it is at the moment `now`, for the budget."""
        recent = len(self.in_use)
        for conn in reversed(self.idle):  # those used last are on top
            if conn.last_used <= now - RECENT:
                break
            recent += 1
        self._told = self.demand()._replace(recent=recent)
        return self._told

    def waits_for_itself(self, owner: int) -> bool:
        """Whether `owner`, who waits or has just given up, holds a connection, everybody else who holds one waits for
        another as well, and there will be no more of them: then nobody will ever bring one back."""
        if self.spare or self.opening or self.testing or self.returning or self.last_error is not None:
            return False
        if self.size < self.budget_size and not self.denied:
            return False
        holders = {conn.holder for conn in self.in_use}
        return (
            owner != OURSELVES and owner in holders and holders <= {waiter.owner for waiter in self.waiters} | {owner}
        )

    # -- check-out and check-in -----------------------------------------------------------------------------------

    # A signal's handler may raise between any two calls of the main thread. So a connection is put where it goes before
    # it is taken from where it was, and `reclaim` finds what was on its way.

    def check_out(self, now: float, holder: int, checkout: int) -> ConnInfo | None:
        """An idle connection, or None: then the caller may wait. Raises PoolClosedError or PoolForkedError."""
        if self.state is not _OPEN:
            raise self.refusal()
        idle = self.idle
        if not idle:
            return None
        conn = idle[-1]
        if now - conn.last_used > self.check_after:
            return None
        conn.holder = holder
        conn.checkout = checkout
        conn.checked_out_at = now
        self.in_use.add(conn)
        idle.pop()
        return conn

    def check_out_untested(self, now: float, holder: int, checkout: int) -> ConnInfo | None:
        """For those who cannot wait for a test. An idle connection, or None."""
        if self.state is not _OPEN or not self.idle or self.waiters:
            return None
        self.idle[-1].last_used = now
        return self.check_out(now, holder, checkout)

    def reclaim(self, checkout: int) -> ConnInfo | None:
        """The connection of a check-out, or of a check-in, that was interrupted; it has to be checked in."""
        for conn in self.in_use:
            if conn.checkout == checkout:
                if conn not in self.idle:
                    return conn
                self.in_use.remove(conn)
                return None
        return None

    def wait(self, waiter: Waiter, now: float, *, first: bool = False) -> Effects | None:
        """Queue `waiter`, with `first` in front of all others. Raises PoolClosedError, PoolForkedError or
        PoolQueueFullError."""
        if self.state is not _OPEN:
            raise self.refusal()
        if self.max_waiting and waiter.owner != OURSELVES and len(self.waiters) >= self.max_waiting:
            users = sum(waiter.owner != OURSELVES for waiter in self.waiters)
            # Those who get one of these need not wait for anybody.
            if users - len(self.idle) - len(self.testing) >= self.max_waiting:
                raise PoolQueueFullError(f"{users} wait for a connection already, and max_waiting allows no more")
        self._now = now
        if first:
            self.waiters = {waiter: None} | self.waiters
        else:
            self.waiters[waiter] = None
        if self._told_all and not self.idle and not self.spare and not self.fail_fast:
            return None  # a plan would come to the same end: one more in a queue that everybody knows of
        return self._plan()

    @property
    def _told_all(self) -> bool:
        """Whether one more waiter is no news for the budget, see `_is_news`."""
        told = self._told
        return told.want + len(self.opening) >= MAX_OPENING and told.in_use + told.waiting >= self._enough

    @property
    def _enough(self) -> int:
        """More than the whole budget, or more than one above our ceiling, makes no difference to the budget."""
        return self.budget_size if self.ceiling is None else self.ceiling + 1

    def refusal(self) -> PoolError:
        """Why nobody gets a connection."""
        return PoolForkedError(_FORKED) if self.state is State.FORKED else PoolClosedError(_CLOSED[self.state])

    def give_up(self, waiter: Waiter) -> tuple[ConnInfo | None, Effects | None]:
        """`waiter` waits no longer (timeout, cancellation). If a connection had been handed to it in this very
        moment, it is returned: the caller has to check it in."""
        if waiter in self.waiters:
            del self.waiters[waiter]
            return None, self._plan()
        conn, waiter.conn, waiter.face = waiter.conn, None, None
        return conn, None

    def check_in(self, conn: ConnInfo, *, reusable: bool = True) -> Effects | Waiter | None:
        """A connection comes back. Not `reusable`: it is broken, or may still be working on something. Where waking a
        waiter is all that has to be done, gives that waiter."""
        if conn not in self.in_use:
            return None  # closed by force meanwhile
        if reusable and not conn.retire and self.state is _OPEN and self.ceiling is None and not self.shrinking:
            # The usual case, kept free of everything else.
            if not self.waiters:
                self.idle.append(conn)
                self.in_use.remove(conn)
                return None
            waiter = self._hand_over(conn)
            return waiter if self.waiters or not self._told.want else self._plan(Effects(wake=[waiter]))
        keep = reusable and not self._holds_too_many()
        if keep and self.waiters and not conn.retire and self.state is _OPEN and not self.spare:
            waiter = self._hand_over(conn)
            # Under a ceiling, too, a plan would come to the same end where it is known already how many wait.
            waiting = len(self.waiters)
            many = waiting >= MAX_OPENING and len(self.in_use) + waiting >= self._enough
            return waiter if many and self._told_all else self._plan(Effects(wake=[waiter]))
        self.in_use.remove(conn)
        return self._keep_or_close(conn, keep=keep)

    def doubt(self) -> Effects:
        """A connection was found dead while it was used: those that are idle may be dead as well."""
        self.suspicious = True
        return self._plan()

    def tested(self, conn: ConnInfo, now: float, *, alive: bool) -> Effects:
        """The test of a connection that nobody has has ended."""
        self.suspicious = not alive
        over = self._holds_too_many()
        self.testing.remove(conn)
        conn.last_used = self._now = now
        return self._keep_or_close(conn, keep=alive and not over)

    @property
    def _allowed(self) -> int:
        """Leases that may be held, as far as anybody has said so."""
        ceiling = sys.maxsize if self.ceiling is None else self.ceiling
        return min(ceiling, self.budget_size) if self.shrinking else ceiling

    def _holds_too_many(self) -> bool:
        return self.kept > self._allowed

    def _keep_or_close(self, conn: ConnInfo, *, keep: bool) -> Effects:
        if keep and not conn.retire and self.state is _OPEN:
            self.idle.append(conn)
            return self._plan()
        self.closing.add(conn)
        return self._plan(Effects(close=[conn]))

    def _hand_over(self, conn: ConnInfo) -> Waiter:
        waiter = next(iter(self.waiters))
        del self.waiters[waiter]
        waiter.conn, waiter.face = conn, conn.face
        conn.holder, conn.checkout = waiter.owner, waiter.checkout
        conn.checked_out_at = conn.last_used  # until the waiter runs and has it
        return waiter

    # -- leases and connections -----------------------------------------------------------------------------------

    def granted(self, leases: Sequence[Lease]) -> Effects:
        self.spare.extend(leases)
        self.shrinking = self.shrinking or self.held > self.budget_size  # granted before a resize, and come after it
        self._told = self._told._replace(want=max(0, self._told.want - len(leases)))
        return self._plan()

    def deny(self) -> Effects:
        """There is no more for now."""
        self.denied = True
        return self._plan()

    def resized(self, size: int) -> Effects:
        """The budget has another size now. What is held above it is closed: idle ones at once, others as they come
        back."""
        self.budget_size = size
        self.shrinking = self.held > size
        return self._plan()

    def set_ceiling(self, ceiling: int | None) -> Effects:
        self.ceiling = ceiling
        effects = self._plan()
        effects.tell = effects.urgent = True  # whoever recalls wants to know, changed or not
        return effects

    def opened(self, conn: ConnInfo) -> Effects:
        self.opening.remove(conn.lease)
        if conn.lease in self._retired_opening:
            self._retired_opening.discard(conn.lease)
            conn.retire = True
        self.last_error = None
        self.suspicious = False
        if self.state is not _OPEN:
            self.closing.add(conn)
            return self._plan(Effects(close=[conn]))
        self.idle.append(conn)
        return self._plan()

    def open_failed(
        self,
        lease: Lease,
        error: BaseException,
        *,
        permanent: bool,
        at_limit: bool = False,
        given_up: bool = False,
    ) -> Effects:
        """Nothing is opened until `try_again`. Waiters keep their places, unless it is `permanent`: what waiting cannot
        cure is told at once. `at_limit`: the server takes no more connections; until `lift_limit` the pool makes do
        with what it has. `given_up`: the server may be at work on the login until `login_ended`."""
        if given_up:
            self.given_up.add(lease)
        else:
            self.spare.append(lease)
        self.opening.remove(lease)
        self.last_error = error
        self.backing_off = True
        if at_limit:
            self.server_limit = max(1, self.size + len(self.opening))
        return self._plan(self._fail_waiters(error) if permanent else None)

    def login_ended(self, lease: Lease) -> Effects:
        """The server is done with a login that had been given up."""
        self.spare.append(lease)
        self.given_up.remove(lease)
        return self._plan()

    def lift_limit(self) -> Effects:
        self.server_limit = None
        return self._plan()

    def try_again(self) -> Effects:
        self.backing_off = False
        return self._plan()

    def suspend(self) -> Effects:
        """Nothing can be opened until `resume`. Leases under which nothing is open go back: they may be somebody else's
        by then."""
        self.suspended = True
        return self._plan()

    def not_allowed(self, lease: Lease) -> Effects:
        """The budget does not let us open anything under `lease` now, nor under others."""
        self.spare.append(lease)
        self.opening.remove(lease)
        return self.suspend()

    def resume(self) -> Effects:
        """Connections may be opened again. Those that are open may have been ended meanwhile."""
        self.suspended = False
        self.suspicious = True
        return self._plan()

    def closed(self, conn: ConnInfo) -> Effects:
        """The server has let go of `conn`."""
        self.closing.remove(conn)
        return self._plan(Effects(give_back=[conn.lease]))

    # -- housekeeping ---------------------------------------------------------------------------------------------

    def discard_idle(self, conn: ConnInfo) -> Effects | None:
        """Close `conn` unless somebody has just taken it."""
        if conn not in self.idle:
            return None
        self.idle.remove(conn)
        self.closing.add(conn)
        return self._plan(Effects(close=[conn]))

    def disown(self, leases: Sequence[Lease]) -> Effects:
        """Close the connections of `leases` now, also those in use."""
        effects = Effects()
        for group in (self.idle, self.in_use, self.testing):
            for conn in sorted((conn for conn in group if conn.lease in leases), key=lambda conn: conn.lease):
                if conn in self.testing:
                    conn.retire = True  # its test will end, and then it is closed
                    continue
                group.remove(conn)
                self.closing.add(conn)
                effects.close.append(conn)
        return self._plan(effects)

    def replenish(self) -> Effects:
        """Open towards `min_size` again, whatever was denied before."""
        self.denied = False
        self._told = self._told._replace(want=0)
        return self._plan()

    def resize(self, min_size: int) -> Effects:
        self.min_size = min_size
        return self.replenish()

    def retire_all(self) -> list[ConnInfo]:
        """Have every connection replaced: those in use when they come back, those that are being opened when they were
        used. Gives the idle ones, which still serve until somebody discards them."""
        self._retired_opening = set(self.opening)
        for conn in (*self.idle, *self.in_use, *self.testing):
            conn.retire = True
        return list(self.idle)

    # -- start and stop -------------------------------------------------------------------------------------------

    def start(self) -> Effects:
        self.state = State.OPEN
        return self._plan()

    def stop(self) -> Effects:
        """No check-outs any more, waiters fail, idle connections are closed; others when they come back."""
        self.state = State.STOPPING
        effects = self._fail_waiters(PoolClosedError(_CLOSED[State.STOPPING]))
        effects.close, self.idle = self.idle, []
        self.closing.update(effects.close)
        return self._plan(effects)

    def close(self) -> Effects:
        """Stop, and close what is still in use."""
        effects = self.stop()
        self.state = State.CLOSED
        effects.close.extend(sorted(self.in_use, key=lambda conn: conn.lease))
        self.closing |= self.in_use
        self.in_use.clear()
        return effects

    def fail_waiters(self, error: BaseException) -> Effects:
        return self._plan(self._fail_waiters(error))

    def _fail_waiters(self, error: BaseException, keep: int = 0) -> Effects:
        """All but the first `keep` of them."""
        failed = list(self.waiters)[keep:]
        for waiter in failed:
            waiter.error = error
            del self.waiters[waiter]
        return Effects(wake=failed)

    # -- the decision ---------------------------------------------------------------------------------------------

    def _plan(self, effects: Effects | None = None) -> Effects:
        """Bring idle connections, leases and waiters together. Every event but the usual check-in ends here."""
        effects = effects or Effects()
        while self.idle and not self.suspicious and self.waiters and not self._stale(self.idle[-1]):
            conn = self.idle.pop()
            self.in_use.add(conn)
            effects.wake.append(self._hand_over(conn))
        # What is idle now, nobody may have untested: as many as are waited for, and all where one was found dead.
        while self.idle and (self.suspicious or len(self.testing) < len(self.waiters)):
            conn = self.idle.pop()
            self.testing.add(conn)
            effects.test.append(conn)
        if self.fail_fast and self.last_error is not None and not self.size:
            # One has to find out whether the server is back; nobody else waits for that.
            can_open = self.spare or (self.held < self.budget_size and not self.denied)
            probing = self.opening or (can_open and not self.backing_off)
            effects.wake += self._fail_waiters(self.last_error, keep=1 if probing else 0).wake
        if self.state is _OPEN and not self.backing_off and not self.suspended:
            while self.spare and len(self.opening) < self._most_opening and self._short():
                lease = self.spare.pop()
                self.opening.add(lease)
                effects.open.append(lease)
        # Leases that nobody needs any more go back at once. While opening is put off, waiters keep theirs; but not
        # where it is suspended: then they may be free meanwhile, and a connection under one would be one too many.
        keep = min(len(self.spare), len(self.waiters)) if self.backing_off and not self.suspended else 0
        for limit in (self._allowed, self.server_limit):
            if limit is not None:
                keep = max(0, min(keep, limit - (self.kept - len(self.spare))))
        if self.shrinking:  # what is being closed counts as well, until it is
            keep = max(0, min(keep, self.budget_size - (self.held - len(self.spare))))
        effects.give_back.extend(self.spare[keep:])
        del self.spare[keep:]
        # The oldest of the idle ones first; those that are closing already are on their way back.
        while self.idle and self._holds_too_many():
            conn = self.idle.pop(0)
            self.closing.add(conn)
            effects.close.append(conn)
        self.shrinking = self.shrinking and self.held > self.budget_size
        demand = self.demand()
        effects.tell = self._is_news(demand)
        effects.urgent = demand.want > self._told.want
        return effects

    def _stale(self, conn: ConnInfo) -> bool:
        return self._now - conn.last_used > self.check_after

    def _short(self) -> bool:
        if self._holds_too_many():
            return False
        if self.server_limit is not None and self.size + len(self.opening) >= self.server_limit:
            return False
        return self._missing() > len(self.opening)

    def _is_news(self, demand: Demand) -> bool:
        """A budget is told only what can change its mind; a busy pool would otherwise send a message per query."""
        told = self._told
        if demand.want > told.want:
            return True
        if told.want and not demand.want:
            return True
        if told.want or self.ceiling is not None:
            most = self._enough
            return min(most, demand.in_use + demand.waiting) != min(most, told.in_use + told.waiting)
        return False


_FORKED = (
    "this pool was in use before the process was forked, and its connections belong to the parent: start processes "
    "with spawn, or start the pool after the fork (gunicorn: post_fork, Celery: worker_process_init)"
)
_CLOSED = {
    State.NEW: "the pool is not started: call start() first, or use it as a context manager",
    State.STOPPING: "the pool is closing",
    State.CLOSED: "the pool is closed",
}
