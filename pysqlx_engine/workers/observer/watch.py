"""What the observer knows: the last look at the run, the last hour, the jobs of each database that has some."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterable

from ...log_config import part
from ...system import has
from ..endpoints import local
from ..looking import look
from ..rundir import Joined, OwnCoordinator, RunDirectory
from ..status import RunStatus
from .history import History
from .jobs import JobsDatabase

logger = part("observer")

EVERY = 1.0
"""Seconds between two looks."""
POOLS_A_SECOND = 100
"""Each look asks every pool: where there are many, there are fewer looks."""
TIMEOUT = 2.0
"""Seconds to wait for an answer."""


class Watch:
    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.history = History()
        self.status: RunStatus | None = None
        """None: the run does not answer."""
        self.failure = "nobody has looked yet"
        self.databases: dict[str, JobsDatabase] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._looks = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look again and again meanwhile."""
        looking = asyncio.ensure_future(self._watch())
        try:
            yield
        finally:
            tasks = [looking, *self._watching.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for database in self.databases.values():
                with contextlib.suppress(Exception):
                    await database.stop()

    async def looked(self, times: int) -> None:
        """Wait until it was looked so often."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._looks >= times)

    async def _watch(self) -> None:
        while True:
            begun = time.monotonic()
            try:
                status = await asyncio.to_thread(look, self.run, TIMEOUT)
                self.history.add(time.monotonic(), time.time(), status)
                self.status = status
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look may find it mended
                self.status, self.failure = None, f"the run {self.run.name} does not answer: {error or repr(error)}"
            async with self._changed:
                self._looks += 1
                self._changed.notify_all()
            asked = sum(max(1, len(worker.pools)) for worker in self.status.workers) if self.status is not None else 0
            await asyncio.sleep(max(0.0, begun + max(EVERY, asked / POOLS_A_SECOND) - time.monotonic()))

    def describe(self) -> str:
        """A line for a log."""
        run = self.failure if self.status is None else "the run answers"
        jobs = [f"{name}: {one.status.error or 'looked at'}" for name, one in self.databases.items()]
        return "; ".join([run, *jobs])

    def add_jobs(self, uri: str | None, max_size: int | None, queues: Iterable[str] = ()) -> None:
        """There are jobs in this database, or may be; these queues are served."""
        try:
            database = JobsDatabase(uri, max_size)
        except Exception as error:  # noqa: BLE001 - a URI that is none: the workers will say so
            logger.warning("cannot look at jobs: %s", error)
            return
        if database.database not in self.databases:
            self.databases[database.database] = database
            self._watching[database.database] = asyncio.ensure_future(database.watch())
        self.databases[database.database].queues.update(queues)


def joining(run: RunDirectory) -> None:
    """Have pools of this process get their connections from the run's budgets. Raises OSError while that cannot be
    told."""
    match run.coordinator():
        case OwnCoordinator():
            if not has("ipc") and not run.address.exists():
                raise OSError("its coordinator is still starting")
            os.environ.update(local(run).environment)
        case Joined(address=address, curve_keys=keys):
            os.environ["PYSQLX_COORDINATOR"] = address
            if keys is not None:
                os.environ["PYSQLX_CURVE_KEYS"] = keys
