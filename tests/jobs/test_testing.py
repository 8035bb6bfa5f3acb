"""The help for users' tests."""

from __future__ import annotations

from datetime import date

import pytest

from pysqlx_engine.errors import JobArgumentsError
from pysqlx_engine.workers import Job, JobQueue
from pysqlx_engine.workers.testing import assert_enqueued, drain, enqueued
from tests.servers import Database


async def test_what_was_enqueued_can_be_asserted(database: Database) -> None:
    queue = JobQueue(database.uri)

    @queue.task
    async def send(order: int, on: date = date(2030, 1, 1)) -> None: ...

    await queue.migrate()
    assert await enqueued(queue) == []
    id_ = await send.options(priority=3, delay=60).enqueue(order=7, on=date(2026, 2, 3))
    job = await assert_enqueued(send, order=7)
    assert (job.id, job.state, job.arguments, job.priority) == (id_, "scheduled", {"order": 7, "on": "2026-02-03"}, 3)
    assert await assert_enqueued(send, on=date(2026, 2, 3)) == job
    with pytest.raises(
        AssertionError, match=r"no job of send was enqueued with {'order': 8}; its jobs are:\n  {'order': 7"
    ):
        await assert_enqueued(send, order=8)
    with pytest.raises(JobArgumentsError, match="amount"):
        await assert_enqueued(send, amount=8)
    await queue.close()


async def test_a_drain_runs_what_is_available_and_what_that_enqueues(database: Database) -> None:
    queue = JobQueue(database.uri)
    ran: list[str] = []

    @queue.task
    async def parent(n: int) -> None:
        ran.append(f"parent {n}")
        await child.enqueue(n=n)

    @queue.task
    def child(n: int) -> None:
        ran.append(f"child {n}")

    @queue.task(max_attempts=2)
    async def fails(job: Job) -> None:
        ran.append(f"fails {job.attempt}")
        raise RuntimeError

    await queue.migrate()
    await parent.enqueue_many([{"n": 1}, {"n": 2}])
    await child.options(delay=3600).enqueue(n=3)
    await fails.enqueue()
    assert await drain(queue) == {"completed": 4, "retrying": 1}
    assert sorted(ran) == ["child 1", "child 2", "fails 1", "parent 1", "parent 2"]
    assert await drain(queue, scheduled=True) == {"completed": 1, "discarded": 1}
    assert {"child 3", "fails 2"} <= set(ran)
    assert await drain(queue) == {}
