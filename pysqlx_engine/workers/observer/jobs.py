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

import msgspec

from ...engine.uri import parse_uri
from ...errors import JobError, JobSchemaError, PoolError, PySQLXError, SettingsError
from ..jobs.administration import Administration
from ..jobs.dialects import dialect_of
from ..jobs.life import State
from ..jobs.pools import QueuePools
from ..jobs.presence import LOST_AFTER
from ..jobs.schema import check_tables
from ..jobs.views import Ended, PausedQueue, TaskCounts

EVERY = 5.0
"""Seconds between two looks."""
EVERY_WITHOUT = 30.0
"""The same, where there are no job tables: PYSQLX_URI is set, and nobody has a queue there."""
SHARE = 0.05
"""Of the time that looks may take: where millions of jobs wait, there are fewer looks."""
LONGEST = 60.0
"""Seconds that a look may take: something is locked, perhaps."""
PATIENCE = 5.0
"""Seconds to wait for a connection of the budget."""
SETTLED = 2_000_000
"""Microseconds after which all that has ended at one moment can be seen: what ends is not committed at once."""
RECENT = 60_000_000
"""Microseconds over which the throughput is worked out."""


class JobsStatus(msgspec.Struct, kw_only=True):
    """How the jobs of a database stand."""

    database: str
    error: str | None = None
    """Why nothing is known."""
    queues: list[str] = []
    """Those that this run serves."""
    at: float = 0.0
    """Seconds since 1970, of the look."""
    tasks: list[TaskCounts] = []
    paused: list[PausedQueue] = []
    dispatchers: int = 0
    """How many of them show signs of life."""
    ended: list[Ended] = []
    """Since this observer looks."""
    recent: list[Ended] = []
    """Within the last minute."""
    recent_seconds: float = 0.0
    """How long that is: less than a minute at first."""

    @property
    def per_second(self) -> float:
        """Jobs that have ended."""
        return sum(one.count for one in self.recent) / self.recent_seconds if self.recent_seconds else 0.0


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
        self._changed = asyncio.Event()
        self._took = 0.0
        """Seconds that the last look took, with an answer or without."""
        self._ended: list[Ended] = []
        self._since: int | None = None
        """Until which moment of the server's clock it was counted what has ended."""
        self._recent: list[tuple[int, list[Ended]]] = []
        """What had ended until which moment of the server's clock, of the last minute."""
        self.queues: set[str] = set()
        """Those that are served."""
        self.status = JobsStatus(database=self.database, error="nobody has looked yet")
        self._has_looked = asyncio.Event()

    async def watch(self) -> None:
        """Look again and again."""
        while True:
            self._changed.clear()
            every = EVERY
            try:
                async with asyncio.timeout(LONGEST):
                    self.status = await self._look()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look may find it mended
                why = str(error) or repr(error)
                if isinstance(error, TimeoutError):
                    pause = max(every, self._took / SHARE)
                    why = f"no answer within {LONGEST:.0f} s; the next look is in {pause:.0f} s"
                self.status = JobsStatus(
                    database=self.database, error=why, queues=sorted(self.queues), at=time.time(), ended=self._ended
                )
                if isinstance(error, NoJobTablesError) and not self.queues:
                    every = EVERY_WITHOUT
            self._has_looked.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(every, self._took / SHARE)):
                    await self._changed.wait()

    def look_soon(self) -> None:
        """Something was changed: whoever did it wants to see it."""
        self._changed.set()

    async def looked(self) -> None:
        """Wait until it was looked once."""
        await self._has_looked.wait()

    async def _look(self) -> JobsStatus:
        self._took = 0.0
        async with self.opened() as jobs:
            begun = time.monotonic()  # from here on: to wait for a connection costs the database nothing
            try:
                return await self._counted(jobs)
            finally:  # also when it was given up: the database has worked for it all the same
                self._took = time.monotonic() - begun

    async def _counted(self, jobs: Administration) -> JobsStatus:
        connection, views = jobs.connection, jobs.views
        until = max(self._since or 0, await jobs.store.now(connection) - SETTLED)  # the clock may be set back
        ended = [] if self._since is None else await views.ended(connection, self._since, until)
        self._ended = _together([*self._ended, *ended])
        self._recent.append((until, ended))
        while len(self._recent) > 2 and self._recent[1][0] <= until - RECENT:
            del self._recent[0]
        self._since = until
        tasks, paused = await views.counts(connection, 0), await views.paused(connection)
        dispatchers = await jobs.dispatchers()
        return JobsStatus(
            database=self.database,
            queues=sorted(self.queues),
            at=time.time(),
            tasks=tasks,
            paused=paused,
            dispatchers=sum(one.unseen < LOST_AFTER * 1e6 for one in dispatchers),
            ended=self._ended,
            # What the first look of them found had ended before.
            recent=_together([one for _, some in self._recent[1:] for one in some]),
            recent_seconds=(until - self._recent[0][0]) / 1e6,
        )

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Administration]:
        """A connection to look or to change something by. Raises JobsError."""
        if self._path is not None and not os.path.exists(self._path):  # to connect would make it
            raise JobsError(f"there is no file {self._path}")
        longest = 2 * PATIENCE  # who is before us may have to wait for a connection, too
        try:
            await asyncio.wait_for(self._lock.acquire(), longest)
        except TimeoutError:
            raise JobsError(self.status.error or f"another look at the jobs takes more than {longest:.0f} s") from None
        try:
            pool = await self._pools.for_tasks()
            async with pool.connection() as connection:
                await check_tables(connection)
                yield Administration(connection, dialect_of(connection))
        except JobSchemaError as error:
            raise NoJobTablesError(str(error)) from None
        except (PySQLXError, PoolError, JobError, SettingsError) as error:
            raise JobsError(str(error)) from None
        finally:
            self._lock.release()

    async def stop(self) -> None:
        await self._pools.stop()


def _together(some: list[Ended]) -> list[Ended]:
    """One for each queue, task and outcome."""
    sums: dict[tuple[str, str, State], Ended] = {}
    for one in some:
        key = one.queue, one.task, one.state
        before = sums.get(key)
        sums[key] = (
            one
            if before is None
            else msgspec.structs.replace(
                one, count=before.count + one.count, ran=before.ran + one.ran, waited=before.waited + one.waited
            )
        )
    return [sums[key] for key in sorted(sums)]


class JobsError(Exception):
    """Why the jobs cannot be looked at, or changed, now."""


class NoJobTablesError(JobsError):
    """There are none, or they are not of this version."""
