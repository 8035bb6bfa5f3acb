"""How many jobs with the same limit key run at a time, over all hosts.

What is claimed beyond its limit is held: it is given back, and is not claimed again before one with its key has ended.
Whoever counts has the key's row locked, so that no two count at once: one of a few rows that are always there, because
two that make rows for new keys can each wait for what the other one has made. What is held although there is room (its
dispatcher died in between, or another one was late) is found by a look at all that is held, every few seconds.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from .attempts import given_back
from .dialects import Dialect
from .schema import LIMIT_LOCKS
from .store import Claimed, Store, rows_of

if TYPE_CHECKING:
    from ...engine.connection import PySQLXEngine


def beyond(claimed: Iterable[Claimed], running: Mapping[str, int]) -> list[Claimed]:
    """Which of the claimed jobs, the most urgent first, are too many. `running`: by key, with the claimed ones."""
    jobs = [(job.limit_key, job.limit_max, job) for job in claimed]
    limited = [(key, most, job) for key, most, job in jobs if key is not None and most is not None]
    count = Counter(running)
    count.subtract(key for key, _, _ in limited)
    held = []
    for key, most, job in limited:
        if count[key] < most:
            count[key] += 1
        else:
            held.append(job)
    return held


class Limits:
    """The statements about limits. All of them to be called in a transaction."""

    def __init__(self, dialect: Dialect, store: Store) -> None:
        self._store = store
        keys = dialect.rows(name="name")
        self._lock = None
        if dialect.provider != "sqlite":  # where one transaction writes at a time
            numbers = dialect.rows(number="integer")
            self._lock = (
                f"SELECT number FROM pysqlx_job_limits WHERE number IN (SELECT r.number FROM {numbers}) "
                "ORDER BY number FOR UPDATE"
            )
        running = "SELECT limit_key, count(*) AS n FROM pysqlx_jobs WHERE state = 'running' AND limit_key IN"
        self._running = f"{running} (SELECT r.name FROM {keys}) GROUP BY limit_key"
        held = "state = 'available' AND held = 1"
        self._first = (
            f"SELECT id FROM pysqlx_jobs WHERE limit_key = :name AND {held} AND limit_max > :running "
            f"ORDER BY priority DESC, run_at, id LIMIT :most {dialect.lock}"
        )
        self._held = (
            f"SELECT limit_key, max(limit_max) AS most FROM pysqlx_jobs WHERE limit_key IS NOT NULL AND {held} "
            "GROUP BY limit_key"
        )

    async def keep(self, connection: PySQLXEngine, claimed: list[Claimed]) -> list[Claimed]:
        """Hold what is beyond its limit of what was claimed just now. Gives the rest."""
        keys = {job.limit_key for job in claimed if job.limit_key is not None}
        if not keys:
            return claimed
        await self.lock(connection, keys)
        held = beyond(claimed, await self._count(connection, keys))
        if not held:
            return claimed
        postponed = [given_back(job).postponed for job in held]
        await self._store.postpone(
            connection, [msgspec.structs.replace(one, held=1) for one in postponed if one is not None]
        )
        gone = {job.id for job in held}
        return [job for job in claimed if job.id not in gone]

    async def lock(self, connection: PySQLXEngine, keys: Iterable[str]) -> None:
        """To be called before anything with these keys ends, or is counted."""
        if self._lock is not None:
            numbers = {zlib.crc32(key.encode()) % LIMIT_LOCKS for key in keys}
            await connection.query_as_dict(self._lock, {"rows": rows_of("number", sorted(numbers))})

    async def release(self, connection: PySQLXEngine, most: Mapping[str, int]) -> int:
        """Let what is held be claimed as far as there is room: of each key as many as `most` may run. The keys are
        locked. Gives how many."""
        running = await self._count(connection, most.keys())
        released = 0
        for key, limit in most.items():
            count = running.get(key, 0)
            # Of jobs with one key some may have another limit: whoever claims them looks at each one's.
            asked = {"name": key, "running": count, "most": max(1, limit - count)}
            first = await connection.query_as_dict(self._first, asked)
            released += await self._store.unhold(connection, [row["id"] for row in first])
        return released

    async def release_forgotten(self, connection: PySQLXEngine) -> int:
        """`release`, for all that is held."""
        held = {row["limit_key"]: int(row["most"]) for row in await connection.query_as_dict(self._held)}
        if not held:
            return 0
        await self.lock(connection, held.keys())
        return await self.release(connection, held)

    async def _count(self, connection: PySQLXEngine, keys: Iterable[str]) -> dict[str, int]:
        rows = await connection.query_as_dict(self._running, {"rows": rows_of("name", keys)})
        return {row["limit_key"]: int(row["n"]) for row in rows}
