"""No more jobs of a task, or with a key, run at a time than may, however many dispatchers there are."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from pysqlx_engine.workers import JobQueue
from pysqlx_engine.workers.jobs.limits import beyond
from pysqlx_engine.workers.jobs.store import Claimed
from tests.jobs.serving import ended, looking, served, waiting
from tests.servers import Database


def job(id_: int, key: str | None, most: int | None) -> Claimed:
    return Claimed(id_, "default", "t", 0, 1, 1, "{}", 0, 0, 1, key, most)


def test_what_is_beyond_a_limit_is_the_least_urgent_of_what_was_claimed() -> None:
    jobs = [job(1, "a", 2), job(2, None, None), job(3, "a", 2), job(4, "b", 1), job(5, "a", 2)]
    assert [one.id for one in beyond(jobs, {"a": 3, "b": 1})] == [5]
    assert [one.id for one in beyond(jobs, {"a": 4, "b": 2})] == [3, 4, 5]


def test_each_job_is_held_by_its_own_limit_where_those_with_one_key_differ() -> None:
    jobs = [job(1, "a", 1), job(2, "a", 3), job(3, "a", 1), job(4, "a", 3), job(5, "a", 3)]
    assert [one.id for one in beyond(jobs, {"a": 5})] == [3, 5]
    assert [one.id for one in beyond(jobs, {"a": 6})] == [1, 3, 5]
    assert beyond(jobs, {"a": 1}) == []


async def test_at_most_so_many_run_at_a_time_of_a_task_or_with_a_key_over_two_dispatchers(database: Database) -> None:
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()

    def one() -> JobQueue:
        queue = JobQueue(database.uri, concurrency=20, max_size=3)

        async def run(name: str) -> None:
            running[name] += 1
            most[name] = max(most[name], running[name])
            await asyncio.sleep(0.01)
            running[name] -= 1

        @queue.task(limit=3)
        async def of_task() -> None:
            await run("task")

        @queue.task(limit=1)
        async def with_key(key: str) -> None:
            await run(key)

        @queue.task
        async def free() -> None:
            await run("free")

        return queue

    first, second = one(), one()
    async with served(first), served(second):
        of_task, with_key, free = (first.tasks[name] for name in ("of_task", "with_key", "free"))
        ids = await of_task.enqueue_many([{}] * 30)
        for number in range(20):
            key = "ab"[number % 2]
            ids.append(await with_key.options(limit_key=key).enqueue(key=key))
        ids += await free.enqueue_many([{}] * 30)
        rows = await ended(database, *ids)
    assert {(row["state"], row["attempt"]) for row in rows} == {("completed", 1)}
    assert (most["task"], most["a"], most["b"]) == (3, 1, 1)
    assert most["free"] > 3


async def test_what_is_held_although_there_is_room_is_found(database: Database) -> None:
    queue = JobQueue(database.uri)

    @queue.task(limit=1)
    async def note() -> None: ...

    await queue.migrate()
    ids = await note.enqueue_many([{}] * 3)
    async with looking(database) as connection:
        await connection.execute("UPDATE pysqlx_jobs SET held = 1")
    async with served(queue):
        assert len(await ended(database, *ids)) == 3
    assert await waiting(database) == []


async def test_a_key_without_a_limit_is_refused(sqlite_db: Database) -> None:
    queue = JobQueue(sqlite_db.uri)

    @queue.task
    async def note() -> None: ...

    with pytest.raises(ValueError, match="note has no limit"):
        note.options(limit_key="a")
    with pytest.raises(ValueError, match="limit must be from 1 to 100000, not 0"):
        queue.task(limit=0)
