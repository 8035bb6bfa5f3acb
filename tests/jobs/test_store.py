"""What every database has to do with jobs: one suite of behaviours for all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from pysqlx_engine import PySQLXEngine
from pysqlx_engine.workers.jobs import store
from pysqlx_engine.workers.jobs.dialects import dialect_of
from pysqlx_engine.workers.jobs.life import State
from pysqlx_engine.workers.jobs.schema import migrate
from pysqlx_engine.workers.jobs.store import Claimed, Ended, Failure, NewJob, Postponed, Store
from tests.servers import Database

MINUTE = 60_000_000


@asynccontextmanager
async def migrated(database: Database) -> AsyncIterator[tuple[Store, PySQLXEngine]]:
    async with PySQLXEngine(database.uri) as connection:
        await migrate(connection)
        yield Store(dialect_of(connection)), connection


@asynccontextmanager
async def transaction(connection: PySQLXEngine) -> AsyncIterator[None]:
    await connection.begin()
    try:
        yield
    except BaseException:
        await connection.rollback()
        raise
    await connection.commit()


def new(task: str = "t", **options: object) -> NewJob:
    return NewJob(queue="default", task=task, args="{}", **options)  # type: ignore[arg-type]


async def claim(store: Store, connection: PySQLXEngine, most: int = 10, owner: int = 1) -> list[Claimed]:
    async with transaction(connection):
        return await store.claim(connection, "default", most, owner)


async def rows(connection: PySQLXEngine, table: str = "pysqlx_jobs") -> list[dict[str, object]]:
    return await connection.query_as_dict(f"SELECT * FROM {table} ORDER BY id")


async def test_a_batch_is_claimed_in_the_order_of_priority_and_time_and_then_as_it_was_enqueued(
    database: Database,
) -> None:
    async with migrated(database) as (store, connection):
        ids = await store.enqueue(connection, [new(str(number), priority=number % 3) for number in range(9)])
        assert ids == sorted(ids)
        jobs = [*await claim(store, connection, 4, owner=1), *await claim(store, connection, 9, owner=2)]
        assert [job.task for job in jobs] == ["2", "5", "8", "1", "4", "7", "0", "3", "6"]
        assert [job.owner for job in jobs] == [1] * 4 + [2] * 5
        assert {job.attempt for job in jobs} == {1}
        assert await claim(store, connection) == []


async def test_a_job_is_as_it_was_enqueued(database: Database) -> None:
    args = '{"text": "ünï\\u0000cödé \\"quoted\\" :name", "big": 9007199254740993, "nothing": null}'
    async with migrated(database) as (store, connection):
        before = await store.now(connection)
        job = NewJob(queue="default", task="a.b-c", args=args, priority=-7, max_attempts=3)
        (id_,) = await store.enqueue(connection, [job])
        (claimed,) = await claim(store, connection, owner=2**62)
        assert (claimed.id, claimed.task, claimed.args, claimed.priority, claimed.max_attempts, claimed.owner) == (
            id_, "a.b-c", args, -7, 3, 2**62,
        )  # fmt: skip
        # SQLite's clock has milliseconds.
        assert before - 1000 <= claimed.created_at == claimed.run_at <= await store.now(connection) + 1000


async def test_what_is_rolled_back_was_never_enqueued(database: Database) -> None:
    async with migrated(database) as (store, connection):
        await connection.begin()
        await store.enqueue(connection, [new()])
        await connection.rollback()
        assert await claim(store, connection) == []


async def test_a_job_is_not_claimed_before_its_time(database: Database) -> None:
    async with migrated(database) as (store, connection):
        now = await store.now(connection)
        late, past, soon = await store.enqueue(
            connection, [new(delay=MINUTE), new(at=now - MINUTE), new(at=now + 2 * MINUTE)]
        )
        assert [job.id for job in await claim(store, connection)] == [past]
        due = await store.due_in(connection)
        assert due is not None
        assert 55 < due <= 60.1
        assert await store.release(connection, 10) == 0
        await connection.execute(f"UPDATE pysqlx_jobs SET run_at = 1 WHERE id IN ({late}, {soon})")
        assert await store.release(connection, 1) == 1
        assert await store.release(connection, 10) == 1
        assert {job.id for job in await claim(store, connection)} == {late, soon}
        assert await store.due_in(connection) is None


async def test_a_unique_key_is_one_jobs_until_it_has_ended(database: Database) -> None:
    async with migrated(database) as (store, connection):
        first, other, again, plain = await store.enqueue(
            connection, [new(unique_key="a"), new(unique_key="b"), new(unique_key="a"), new()]
        )
        assert first == again
        assert len({first, other, plain}) == 3
        last, same = await store.enqueue(connection, [new(), new(unique_key="a")])
        assert last > plain
        assert same == first
        job = next(job for job in await claim(store, connection) if job.id == first)
        assert await store.enqueue(connection, [new(unique_key="a")]) == [first]
        async with transaction(connection):
            done = Ended(id=first, attempt=job.attempt, owner=job.owner, state=State.COMPLETED)
            assert await store.end(connection, [done]) == 1
        (second,) = await store.enqueue(connection, [new(unique_key="a")])
        assert second not in {first, other, plain}


async def test_what_has_ended_is_history_with_its_result_and_its_errors(database: Database) -> None:
    async with migrated(database) as (store, connection):
        await store.enqueue(connection, [new("good"), new("bad"), new("left")])
        good, bad, _ = await claim(store, connection)
        async with transaction(connection):
            failure = Failure(
                id=bad.id, attempt=1, owner=1, worker="worker 0", error="ValueError: no", traceback="line 1\nline 2"
            )
            assert await store.note(connection, [failure]) == 1
            ended = await store.end(
                connection,
                [
                    Ended(id=good.id, attempt=1, owner=1, state=State.COMPLETED, result='{"a": [1, null]}'),
                    Ended(id=bad.id, attempt=1, owner=1, state=State.DISCARDED),
                ],
            )
            assert ended == 2
        assert [row["task"] for row in await rows(connection)] == ["left"]
        history = await rows(connection, "pysqlx_jobs_ended")
        assert [(row["id"], row["task"], row["state"], row["result"]) for row in history] == [
            (good.id, "good", "completed", '{"a": [1, null]}'),
            (bad.id, "bad", "discarded", None),
        ]
        assert all(row["created_at"] <= row["claimed_at"] <= row["ended_at"] for row in history)  # type: ignore[operator]
        (error,) = await rows(connection, "pysqlx_job_errors")
        assert (error["job_id"], error["attempt"], error["error"], error["traceback"]) == (
            bad.id, 1, "ValueError: no", "line 1\nline 2",
        )  # fmt: skip


async def test_what_a_worker_says_that_was_taken_for_dead_changes_nothing(database: Database) -> None:
    async with migrated(database) as (store, connection):
        await store.enqueue(connection, [new(max_attempts=5)])
        (late,) = await claim(store, connection, owner=1)
        async with transaction(connection):
            lost = Postponed(id=late.id, attempt=1, owner=1, state=State.AVAILABLE, attempt_after=1)
            assert await store.postpone(connection, [lost]) == 1
        (now,) = await claim(store, connection, owner=2)
        assert now.attempt == 2
        before = await rows(connection)
        for attempt, owner in ((1, 1), (2, 1), (1, 2)):
            async with transaction(connection):
                said = {"id": late.id, "attempt": attempt, "owner": owner}
                failure = Failure(**said, worker="w", error="e")  # type: ignore[arg-type]
                assert await store.note(connection, [failure]) == 0
                ended = Ended(**said, state=State.COMPLETED)  # type: ignore[arg-type]
                assert await store.end(connection, [ended]) == 0
                again = Postponed(**said, state=State.RETRYING, attempt_after=1, wait=0)  # type: ignore[arg-type]
                assert await store.postpone(connection, [again]) == 0
        assert await rows(connection) == before
        assert await rows(connection, "pysqlx_jobs_ended") == await rows(connection, "pysqlx_job_errors") == []


async def test_what_was_given_back_keeps_its_place_and_what_failed_waits_as_long_as_it_is_told(
    database: Database,
) -> None:
    async with migrated(database) as (store, connection):
        await store.enqueue(connection, [new("back", max_attempts=2), new("failed", max_attempts=2)])
        back, failed = await claim(store, connection)
        await store.enqueue(connection, [new("later")])
        async with transaction(connection):
            left = Postponed(id=back.id, attempt=1, owner=1, state=State.AVAILABLE, attempt_after=0)
            again = Postponed(id=failed.id, attempt=1, owner=1, state=State.RETRYING, attempt_after=1, wait=5 * MINUTE)
            assert await store.postpone(connection, [left, again]) == 2
        due = await store.due_in(connection)
        assert due is not None
        assert 295 < due <= 300.1
        assert [(job.task, job.attempt) for job in await claim(store, connection)] == [("back", 1), ("later", 1)]


async def test_two_that_claim_at_once_never_get_the_same_job(database: Database) -> None:
    async with migrated(database) as (store, connection), PySQLXEngine(database.uri) as other:
        await store.enqueue(connection, [new() for _ in range(20)])
        if database.provider == "sqlite":  # one writer at a time: the second waits
            first, second = await claim(store, connection, 8, owner=1), await claim(store, other, 8, owner=2)
        else:
            await connection.begin()
            first = await store.claim(connection, "default", 8, 1)
            second = await claim(store, other, 8, owner=2)  # does not wait for the first one's end
            await connection.commit()
        assert len({job.id for job in first} | {job.id for job in second}) == 16


async def test_who_runs_what_is_known_by_the_owner(database: Database) -> None:
    async with migrated(database) as (store, connection):
        await store.enqueue(connection, [new() for _ in range(6)])
        for owner in (10, 11, 20):
            await claim(store, connection, 2, owner)
        found = await store.running(connection, 10, 19)
        assert sorted((job.owner, job.attempt) for job in found) == [(10, 1), (10, 1), (11, 1), (11, 1)]


async def test_what_waits_is_cancelled_and_what_runs_is_asked(database: Database) -> None:
    async with migrated(database) as (store, connection):
        running, waiting, scheduled, _ = await store.enqueue(
            connection, [new(priority=1), new(), new(delay=MINUTE), new()]
        )
        await claim(store, connection, 1)
        async with transaction(connection):
            assert await store.cancel(connection, [running, waiting, scheduled, 12345]) == (2, 1)
        assert [row["id"] for row in await rows(connection, "pysqlx_jobs_ended")] == [waiting, scheduled]
        (row,) = [row for row in await rows(connection) if row["cancel_asked_at"] is not None]
        assert (row["id"], row["state"]) == (running, "running")


async def test_what_is_revived_runs_now_unless_another_one_has_its_key(database: Database) -> None:
    async with migrated(database) as (store, connection):
        keyed, plain, later = await store.enqueue(connection, [new(unique_key="k"), new(), new(delay=MINUTE)])
        jobs = await claim(store, connection)
        async with transaction(connection):
            await store.end(connection, [Ended(id=job.id, attempt=1, owner=1, state=State.DISCARDED) for job in jobs])
        (second,) = await store.enqueue(connection, [new(unique_key="k", delay=MINUTE)])
        async with transaction(connection):
            assert await store.revive(connection, [keyed, plain, later]) == 2
        jobs = await claim(store, connection)
        assert sorted((job.id, job.attempt, job.max_attempts) for job in jobs) == [(plain, 2, 2), (later, 1, 1)]
        assert [row["id"] for row in await rows(connection, "pysqlx_jobs_ended")] == [keyed]
        assert second in {row["id"] for row in await rows(connection)}


@pytest.mark.parametrize("count", [1, 1000])
async def test_a_batch_of_any_size_is_one_statement(database: Database, count: int) -> None:
    async with migrated(database) as (store, connection):
        ids = await store.enqueue(connection, [new(str(number)) for number in range(count)])
        jobs = await claim(store, connection, count)
        assert [(job.id, job.task) for job in jobs] == list(zip(ids, map(str, range(count)), strict=True))
        async with transaction(connection):
            done = [Ended(id=job.id, attempt=1, owner=1, state=State.COMPLETED) for job in jobs]
            assert await store.end(connection, done) == count
        assert await rows(connection) == []


@pytest.mark.parametrize("text", ["", '"\\', "ü", "𝄞", "\n"])
@pytest.mark.parametrize("length", [1, 100, 4_000_000])
def test_no_statement_that_enqueues_is_longer_than_servers_take(text: str, length: int) -> None:
    args = msgspec.json.encode({"text": text * length}).decode()
    job = NewJob(
        queue=text * 9, task=text * 9, args=args, priority=-32_000, max_attempts=1000, delay=1 << 52, at=1 << 52,
        unique_key=text * 9, limit_key=text * 9, limit_max=100_000,
    )  # fmt: skip
    jobs = [job] * max(3, 40_000_000 // len(args) // 10)
    parts = store._parts(jobs)
    assert [job for part in parts for job in part] == jobs
    for part in parts:
        assert len(part) == 1 or len(store._json(part).encode()) <= 15 << 20
