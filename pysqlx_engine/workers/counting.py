"""What the pools of a run's workers have counted, for a supervisor whose run has no coordinator of its own."""

from __future__ import annotations

from collections.abc import Iterable

from .messages import Totals
from .status import PoolLook

MOST_DATABASES = 1_000
"""With nothing open that are remembered: a script may use files without end."""


class Counted:
    """By database, also of pools and workers that are no more, or do not answer: it never becomes less."""

    def __init__(self) -> None:
        self._last: dict[int, dict[int, PoolLook]] = {}
        """What each worker has told last of each of its pools, by its pid and the pool's number."""
        self._past: dict[str, Totals] = {}
        """Of pools that are no more."""

    def told(self, pid: int, pools: Iterable[PoolLook]) -> None:
        """All pools that a worker has. What it had before, and has no more, stays counted as it was told last."""
        before = self._last.pop(pid, {})
        now = self._last[pid] = {pool.totals.pool: pool for pool in pools}
        for pool in (pool for number, pool in before.items() if number not in now):
            self._past[pool.database] = self._past.pop(pool.database, Totals(0)) + pool.totals  # to the end of them
        if len(self._past) > MOST_DATABASES:
            used = {pool.database for pools in self._last.values() for pool in pools.values()}
            for database in [database for database in self._past if database not in used][:-MOST_DATABASES]:
                del self._past[database]

    def ended(self, pid: int) -> None:
        self.told(pid, ())
        del self._last[pid]

    def totals(self, database: str) -> Totals:
        of_open = (pool.totals for pools in self._last.values() for pool in pools.values() if pool.database == database)
        return sum(of_open, self._past.get(database, Totals(0)))
