"""The jobs of one database: a look every few seconds, and what people want to know or to change.

All of it goes through one connection at a time, which is one of the budget. When the budget is used up whoever looks
waits a few seconds, and is then told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec

from ...engine.uri import parse_uri
from ...errors import JobError, PoolError, PySQLXError, SettingsError
from ..jobs.administration import Administration
from ..jobs.dialects import dialect_of
from ..jobs.dispatcher import prepare
from ..jobs.life import State
from ..jobs.pools import QueuePools
from ..jobs.presence import LOST_AFTER
from ..jobs.views import Ended, PausedQueue, TaskCounts

EVERY = 5.0
"""Seconds between two looks."""
SHARE = 0.05
"""Of the time that looks may take: where millions of jobs wait, there are fewer looks."""
PATIENCE = 5.0
"""Seconds to wait for a connection of the budget."""
SETTLED = 2_000_000
"""Microseconds after which all that has ended at one moment can be seen: what ends is not committed at once."""
RECENT = 60.0
"""Seconds over which the throughput is worked out."""


class JobsStatus(msgspec.Struct, kw_only=True):
    """How the jobs of a database stand."""

    database: str
    error: str | None = None
    """Why nothing is known."""
    at: float = 0.0
    """Seconds since 1970, of the look."""
    tasks: list[TaskCounts] = []
    paused: list[PausedQueue] = []
    dispatchers: int = 0
    """How many of them show signs of life."""
    ended: list[Ended] = []
    """Since this observer looks."""
    per_second: float = 0.0
    """Jobs that have ended, over the last minute."""


class JobsDatabase:
    """`uri` and `max_size` as the queue's pools have them; None: as the settings say."""

    def __init__(self, uri: str | None, max_size: int | None) -> None:
        parsed = parse_uri(uri if uri is not None else os.environ.get("PYSQLX_URI", ""))
        self.database = parsed.identity or parsed.masked
        self._path = parsed.path
        self._pools = QueuePools(
            uri=uri, min_size=0, max_size=max_size, name="observer", conn_timeout=PATIENCE, max_idle=EVERY * 3
        )
        self._lock = asyncio.Lock()
        self._ended: dict[tuple[str, str, State], Ended] = {}
        self._since: int | None = None
        """Until which moment of the server's clock it was counted what has ended."""
        self._counted: list[tuple[float, int]] = []
        """When how many had ended, of the last minute."""
        self.status = JobsStatus(database=self.database, error="nobody has looked yet")
        self._has_looked = asyncio.Event()

    async def watch(self) -> None:
        """Look again and again."""
        while True:
            begun = time.monotonic()
            try:
                self.status = await self._look()
            except JobsError as error:
                self.status = JobsStatus(database=self.database, error=str(error), at=time.time(), ended=self._totals)
            self._has_looked.set()
            took = time.monotonic() - begun
            await asyncio.sleep(max(EVERY, took / SHARE))

    async def looked(self) -> None:
        """Wait until it was looked once."""
        await self._has_looked.wait()

    async def _look(self) -> JobsStatus:
        async with self.opened() as jobs:
            connection, views = jobs.connection, jobs.views
            until = await jobs.store.now(connection) - SETTLED
            if self._since is not None:
                for one in await views.ended(connection, self._since, until):
                    self._count(one)
            self._since = until
            now = time.monotonic()
            self._counted = [(at, count) for at, count in self._counted if at > now - RECENT]
            self._counted.append((now, sum(one.count for one in self._ended.values())))
            (first_at, first), (last_at, last) = self._counted[0], self._counted[-1]
            dispatchers = await jobs.dispatchers()
            return JobsStatus(
                database=self.database,
                at=time.time(),
                tasks=await views.counts(connection, 0),
                paused=await views.paused(connection),
                dispatchers=sum(one.unseen < LOST_AFTER * 1e6 for one in dispatchers),
                ended=self._totals,
                per_second=round((last - first) / (last_at - first_at), 1) if last_at > first_at else 0.0,
            )

    def _count(self, more: Ended) -> None:
        key = more.queue, more.task, more.state
        before = self._ended.get(key)
        if before is not None:
            more = msgspec.structs.replace(
                more, count=before.count + more.count, ran=before.ran + more.ran, waited=before.waited + more.waited
            )
        self._ended[key] = more

    @property
    def _totals(self) -> list[Ended]:
        return [self._ended[key] for key in sorted(self._ended)]

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Administration]:
        """A connection to look or to change something by. Raises JobsError."""
        if self._path is not None and not os.path.exists(self._path):  # to connect would make it
            raise JobsError(f"there is no file {self._path}")
        try:
            async with self._lock:
                pool = await self._pools.for_tasks()
                async with pool.connection() as connection:
                    dialect = replace(dialect_of(connection), migrates_by_itself=False)
                    await prepare(connection, dialect)
                    yield Administration(connection, dialect)
        except (PySQLXError, PoolError, JobError, SettingsError) as error:
            raise JobsError(str(error)) from None

    async def stop(self) -> None:
        await self._pools.stop()


class JobsError(Exception):
    """Why the jobs cannot be looked at, or changed, now."""
