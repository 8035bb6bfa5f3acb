"""For tests of programs that enqueue jobs: what was enqueued, and have it run here and now.

    async def test_an_order_is_confirmed():
        await place_order(7)
        await assert_enqueued(send_receipt, order_id=7)
        assert await drain(queue) == {"completed": 1}

All of it works on the queue's own database: a test's is best one of its own (an SQLite file in a temporary directory).
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .jobs.dialects import dialect_of
from .jobs.dispatcher import prepare
from .jobs.life import State
from .jobs.queue import JobQueue
from .jobs.store import store_of
from .jobs.tasks import Task

if TYPE_CHECKING:
    from ..engine.connection import PySQLXEngine

__all__ = ["Enqueued", "assert_enqueued", "drain", "enqueued"]

_LOOK = 0.002
"""Seconds between two looks at what is left."""


@dataclass(frozen=True)
class Enqueued:
    """A job that has not ended."""

    id: int
    task: str
    queue: str
    state: State
    arguments: dict[str, Any]
    """As JSON has them: a date is a text."""
    priority: int
    max_attempts: int
    unique_key: str | None


async def enqueued(queue: JobQueue, task: Task[Any, Any] | None = None) -> list[Enqueued]:
    """The jobs of `queue`'s database that have not ended, in the order in which they were enqueued; of one task, or of
    all."""
    async with queue.connection() as connection:
        await prepare(connection, dialect_of(connection))
        rows = await connection.query_as_dict(
            "SELECT id, task, queue, state, args, priority, max_attempts, unique_key FROM pysqlx_jobs ORDER BY id"
        )
    return [
        Enqueued(
            row["id"], row["task"], row["queue"], State(row["state"]), json.loads(row["args"]), row["priority"],
            row["max_attempts"], row["unique_key"],
        )
        for row in rows
        if task is None or row["task"] == task.name
    ]  # fmt: skip


async def assert_enqueued(task: Task[Any, Any], **arguments: Any) -> Enqueued:
    """Give the first job of `task` that was enqueued with these arguments, and perhaps with more. Raises
    AssertionError, and says what was enqueued instead; JobArgumentsError for arguments that the task cannot have."""
    found = await enqueued(task.queue, task)
    for job in found:
        wanted = json.loads(task.signature.encode({**job.arguments, **arguments}))
        if all(name in job.arguments and job.arguments[name] == wanted[name] for name in arguments):
            return job
    others = "\n".join(f"  {job.arguments}" for job in found) or "  none"
    raise AssertionError(f"no job of {task.name} was enqueued with {arguments}; its jobs are:\n{others}")


async def drain(queue: JobQueue, *, scheduled: bool = False) -> dict[str, int]:
    """Run in this process what is available in the queues that `queue` serves, with all that is enqueued by it, and
    give how many jobs have ended how, and how many are to be tried again later ("retrying"). Paused queues, and jobs of
    tasks that `queue` does not have, are left alone.

    `scheduled`: also what waits for its time, or for its next attempt, until every job has ended.
    """
    async with queue.connection() as connection:
        await prepare(connection, dialect_of(connection))
        begun = await store_of(connection).now(connection)
        before = await _retrying(connection)
    serving = asyncio.ensure_future(queue.serve(grace=0))
    try:
        while not serving.done() and await _busy(queue, scheduled=scheduled):
            await asyncio.sleep(_LOOK)
    finally:
        queue.stop()
        await serving
    async with queue.connection() as connection:
        ended = await connection.query_as_dict(
            "SELECT state, count(*) AS n FROM pysqlx_jobs_ended WHERE ended_at >= :begun GROUP BY state",
            # SQLite's clock counts milliseconds.
            {"begun": begun - 1000},
        )
        again = await _retrying(connection) - before
    counted = Counter({row["state"]: int(row["n"]) for row in ended}) + Counter(retrying=len(again))
    await queue.close()
    return dict(counted)


async def _retrying(connection: PySQLXEngine) -> set[tuple[int, int]]:
    """The jobs that are to be tried again, each with the attempts that it has had."""
    rows = await connection.query_as_dict("SELECT id, attempt FROM pysqlx_jobs WHERE state = 'retrying'")
    return {(int(row["id"]), int(row["attempt"])) for row in rows}


async def _busy(queue: JobQueue, *, scheduled: bool) -> bool:
    """Whether something is left to be run."""
    async with queue.connection() as connection:
        rows = await connection.query_as_dict("SELECT id, queue, task, state FROM pysqlx_jobs")
        served = queue.weights.keys() - set(await store_of(connection).paused(connection))
    left = [row for row in rows if row["queue"] in served and row["task"] in queue.tasks]
    waits = [int(row["id"]) for row in left if row["state"] in (State.SCHEDULED, State.RETRYING)]
    if scheduled and waits:
        await queue.retry(*waits)
    return any(row["state"] in (State.AVAILABLE, State.RUNNING) for row in left) or bool(scheduled and waits)
