"""How often the observer looks at jobs."""

from __future__ import annotations

import asyncio

import pytest

from pysqlx_engine import PySQLXEngine
from pysqlx_engine.workers import JobQueue
from pysqlx_engine.workers.observer import jobs
from pysqlx_engine.workers.observer.jobs import JobsDatabase, JobsStatus
from tests.servers import Database

LONGEST = 0.3
SHARE = 0.3


class Observed(JobsDatabase):
    """When its looks began and ended."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, 2)
        self.looks: asyncio.Queue[tuple[float, float]] = asyncio.Queue()

    async def _look(self) -> JobsStatus:
        begun = asyncio.get_running_loop().time()
        try:
            return await super()._look()
        finally:
            self.looks.put_nowait((begun, asyncio.get_running_loop().time()))


async def test_a_look_that_gets_no_answer_counts_as_long_as_it_took(
    postgresql_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "EVERY", 0.01)
    monkeypatch.setattr(jobs, "LONGEST", LONGEST)
    monkeypatch.setattr(jobs, "SHARE", SHARE)
    queue = JobQueue(postgresql_db.uri)
    await queue.migrate()
    await queue.close()
    database = Observed(postgresql_db.uri)
    watching = asyncio.ensure_future(database.watch())
    async with asyncio.timeout(20), PySQLXEngine(postgresql_db.uri) as other:
        await database.looks.get()
        await other.begin()
        await other.execute("LOCK TABLE pysqlx_jobs IN ACCESS EXCLUSIVE MODE")
        begun, ended = await database.looks.get()
        while ended - begun < LONGEST * 0.9:
            begun, ended = await database.looks.get()
        next_begun, _ = await database.looks.get()
        assert next_begun - ended > LONGEST / SHARE * 0.7
        assert database.status.error is not None
        assert "no answer within" in database.status.error
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await database.stop()
