"""The last hour of each budget, from one look a second. Plain arithmetic: moments are given."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from ..status import BudgetStatus, Histogram, RunStatus

STEP = 10.0
"""Seconds that one point stands for."""
SPAN = 3600.0
"""Seconds that are kept."""
MINUTE = 60.0
"""Seconds that `Recent` is about."""
MOST_HOLDERS = 12
"""Processes that a point names; what others hold is one number."""
OTHERS = "others"


class Point(msgspec.Struct, kw_only=True):
    """How a budget stood for `STEP` seconds. Connections and waiters are means, `most_` is the greatest."""

    number: int
    """Greater than that of the point before, also where the clock was set back in between."""
    at: float
    """Seconds since 1970, of its end."""
    size: int
    leased: float
    in_use: float
    idle: float
    waiting: float
    most_leased: int
    most_waiting: int
    requests: int
    """Check-outs that were asked for within it."""
    timeouts: int
    wait: float
    """Seconds that nine of ten of them waited at most; 0 where none waited."""
    holders: dict[str, float]
    """Leases by process: `worker 3`, `dispatcher`, or `pid 4711`."""


class Recent(msgspec.Struct, kw_only=True):
    """What was counted within the last minute."""

    seconds: float
    """How long it really is: less than a minute at first, and after the coordinator was started anew."""
    requests: int
    waited: int
    """Check-outs that found no idle connection."""
    timeouts: int
    wait: float
    hold: float
    """Seconds that nine of ten waited, and held a connection, at most."""


@dataclass
class _Gathering:
    """A point that is not complete."""

    begun: float
    first: BudgetStatus
    """The look before: what is counted since then is this point's."""
    until: float = 0.0
    ended: float = 0.0
    """The last look, by the one clock and by the other."""
    looks: int = 0
    sums: collections.Counter[str] = field(default_factory=collections.Counter)
    holders: collections.Counter[str] = field(default_factory=collections.Counter)
    most_leased: int = 0
    most_waiting: int = 0

    def add(self, now: float, at: float, budget: BudgetStatus, holders: Mapping[str, int]) -> None:
        self.until, self.ended = now, at
        self.looks += 1
        for name in ("leased", "in_use", "idle", "waiting"):
            self.sums[name] += getattr(budget, name)
        self.holders.update(holders)
        self.most_leased = max(self.most_leased, budget.leased)
        self.most_waiting = max(self.most_waiting, budget.waiting)

    def point(self, number: int, last: BudgetStatus) -> Point:
        named = dict(self.holders.most_common(MOST_HOLDERS))
        rest = self.holders.total() - sum(named.values())
        before, after = self.first.totals, last.totals
        return Point(
            number=number,
            at=self.ended,
            size=last.size,
            leased=self._mean(self.sums["leased"]),
            in_use=self._mean(self.sums["in_use"]),
            idle=self._mean(self.sums["idle"]),
            waiting=self._mean(self.sums["waiting"]),
            most_leased=self.most_leased,
            most_waiting=self.most_waiting,
            requests=since(before.requests, after.requests),
            timeouts=since(before.timeouts, after.timeouts),
            wait=quantile(between(before.wait, after.wait), 0.9),
            holders={name: self._mean(count) for name, count in named.items()}
            | ({OTHERS: self._mean(rest)} if rest else {}),
        )

    def _mean(self, total: float) -> float:
        return round(total / self.looks, 2)


class History:
    """Points by database, the oldest first."""

    def __init__(self) -> None:
        self._points: dict[str, collections.deque[tuple[float, Point]]] = {}
        self._gathering: dict[str, _Gathering] = {}
        self._last: dict[str, BudgetStatus] = {}
        self._minute: dict[str, collections.deque[tuple[float, BudgetStatus]]] = {}

    def add(self, now: float, at: float, status: RunStatus) -> None:
        """A look, at `at` seconds since 1970, and at `now` on a clock that only goes forward. Looks come in order."""
        holders = _holders(status)
        for budget in status.budgets:
            name = budget.database
            gathering = self._gathering.get(name)
            if gathering is None:
                gathering = self._gathering[name] = _Gathering(now, self._last.get(name, budget))
            gathering.add(now, at, budget, holders.get(name, {}))
            self._last[name] = budget
            self._remember(now, budget)
        for name, gathering in list(self._gathering.items()):
            if now - gathering.begun >= STEP:
                del self._gathering[name]
                points = self._points.setdefault(name, collections.deque())
                # Seconds since 1970, so that numbers go on where an observer is started anew.
                number = max(int(at), points[-1][1].number + 1 if points else 0)
                points.append((gathering.until, gathering.point(number, self._last[name])))
        for name, points in list(self._points.items()):
            while points and points[0][0] < now - SPAN:
                points.popleft()
            if not points and name not in self._gathering:  # nobody has used it for an hour
                del self._points[name], self._last[name], self._minute[name]

    def _remember(self, now: float, budget: BudgetStatus) -> None:
        minute = self._minute.setdefault(budget.database, collections.deque())
        if minute and budget.totals.requests < minute[-1][1].totals.requests:
            minute.clear()  # the coordinator was started anew: what it counts has nothing to do with what was before
        minute.append((now, budget))
        while minute[0][0] < now - MINUTE:
            minute.popleft()

    def points(self, database: str, after: int = 0) -> list[Point]:
        """Those whose number is greater than `after`; all where none has it, nor a greater one: it is of another
        observer, by whose clock it was later."""
        points = [point for _, point in self._points.get(database, ())]
        if points and points[-1].number < after:
            return points
        return [point for point in points if point.number > after]

    def recent(self) -> dict[str, Recent]:
        """By database, of those that were looked at twice."""
        return {name: _recent(minute) for name, minute in self._minute.items() if len(minute) > 1}


def _recent(minute: collections.deque[tuple[float, BudgetStatus]]) -> Recent:
    (begun, first), (at, last) = minute[0], minute[-1]
    before, now = first.totals, last.totals
    return Recent(
        seconds=round(at - begun, 1),
        requests=since(before.requests, now.requests),
        waited=since(before.requests_waited, now.requests_waited),
        timeouts=since(before.timeouts, now.timeouts),
        wait=quantile(between(before.wait, now.wait), 0.9),
        hold=quantile(between(before.hold, now.hold), 0.9),
    )


def _holders(status: RunStatus) -> dict[str, collections.Counter[str]]:
    """Leases by database and process."""
    held: dict[str, collections.Counter[str]] = {}
    for worker in status.workers:
        for pool in worker.pools:
            if pool.leases:
                held.setdefault(pool.database, collections.Counter())[worker.called] += pool.leases
    return held


def since(before: int, after: int) -> int:
    """What was counted between two looks. A coordinator that was started anew counts from 0."""
    return after - before if after >= before else after


def between(before: Histogram, after: Histogram) -> list[int]:
    """The buckets of what was counted between two looks."""
    if after.count < before.count:
        return after.buckets
    earlier = before.buckets + [0] * (len(after.buckets) - len(before.buckets))
    return [max(0, now - then) for then, now in zip(earlier, after.buckets, strict=False)]


def quantile(buckets: list[int], share: float) -> float:
    """The duration in seconds that `share` of them do not exceed, rounded up to the bucket's bound; 0 where all were
    shorter than a microsecond, or there was none."""
    seen, count = 0, sum(buckets)
    for bucket, number in enumerate(buckets):
        seen += number
        if number and seen >= share * count:
            return float(2**bucket) / 1e6 if bucket else 0.0
    return 0.0
