"""Periodic tasks: once for each time, over all dispatchers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from pysqlx_engine.workers import JobQueue
from pysqlx_engine.workers.jobs.dialects import dialect_of
from pysqlx_engine.workers.jobs.periodic import Schedule, Ticks, after, last_due
from pysqlx_engine.workers.jobs.schema import migrate
from pysqlx_engine.workers.jobs.store import Store
from tests.jobs.serving import looking, served, waiting
from tests.servers import Database


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp()) * 1_000_000


def every(cron: str, zone: str = "UTC") -> Schedule:
    return Schedule("sweep", cron, zone, "default", 0, 1)


def test_the_next_time_is_by_the_clock_of_its_zone_also_when_that_is_put_forward_or_back() -> None:
    assert after(every("*/5 * * * *"), at("2026-01-01T00:04:59+00:00")) == at("2026-01-01T00:05:00+00:00")
    assert after(every("*/5 * * * *"), at("2026-01-01T00:05:00+00:00")) == at("2026-01-01T00:10:00+00:00")
    berlin = every("30 2 * * *", "Europe/Berlin")
    assert after(berlin, at("2026-01-01T00:00:00+00:00")) == at("2026-01-01T01:30:00+00:00")
    assert after(berlin, at("2026-07-01T00:00:00+00:00")) == at("2026-07-01T00:30:00+00:00")
    # In that night there is no 2:30: it is made up for, and not twice.
    assert after(berlin, at("2026-03-28T12:00:00+00:00")) == at("2026-03-29T01:00:00+00:00")
    assert after(berlin, at("2026-03-29T01:00:00+00:00")) == at("2026-03-30T00:30:00+00:00")


def test_of_the_times_that_were_missed_the_last_counts_however_many_they_were() -> None:
    minutely = every("* * * * *")
    begin = at("2026-01-01T00:00:00+00:00")
    assert last_due(minutely, begin, begin + 59_000_000) is None
    assert last_due(minutely, begin, begin + 61_000_000) == begin + 60_000_000
    assert last_due(minutely, begin, at("2026-06-01T10:20:30+00:00")) == at("2026-06-01T10:20:00+00:00")
    yearly = every("0 0 1 1 *")
    assert last_due(yearly, begin, at("2029-06-01T00:00:00+00:00")) == at("2029-01-01T00:00:00+00:00")


async def test_each_time_is_enqueued_once_and_a_job_that_is_still_there_does_not_pile_up(database: Database) -> None:
    schedule = every("* * * * *")
    async with looking(database) as connection:
        await migrate(connection)
        store = Store(dialect_of(connection))
        ticks = Ticks(dialect_of(connection), store)

        async def tick() -> tuple[int, float]:
            async with store.transaction(connection):
                return await ticks.enqueue_due(connection, [schedule])

        enqueued, wait = await tick()
        assert enqueued == 0
        assert 0 <= wait <= 60
        await connection.execute("UPDATE pysqlx_job_ticks SET tick = tick - 3600000000")
        assert (await tick())[0] == 1
        assert (await tick())[0] == 0
        await connection.execute("UPDATE pysqlx_job_ticks SET tick = tick - 3600000000")
        await tick()
    assert [(job["task"], job["args"]) for job in await waiting(database)] == [("sweep", "{}")]


async def test_two_dispatchers_enqueue_one_job_for_one_time(database: Database) -> None:
    ran: list[int] = []

    def one(number: int) -> JobQueue:
        queue = JobQueue(database.uri, max_size=2)

        @queue.periodic("* * * * *", zone="Europe/Berlin")
        async def sweep() -> None:
            ran.append(number)

        return queue

    first, second = one(1), one(2)
    await first.migrate()
    async with looking(database) as connection:
        minute = (datetime.now(UTC) - timedelta(minutes=2)).timestamp()
        await connection.execute(
            "INSERT INTO pysqlx_job_ticks (name, tick) VALUES ('sweep', :tick)", {"tick": round(minute * 1_000_000)}
        )
    async with served(first), served(second):
        await until(lambda: bool(ran))
    async with looking(database) as connection:
        (row,) = await connection.query_as_dict("SELECT count(*) AS n FROM pysqlx_jobs_ended")
        (tick,) = await connection.query_as_dict("SELECT tick FROM pysqlx_job_ticks")
    minutes = (int(tick["tick"]) - round(minute * 1_000_000)) // 60_000_000  # a minute may have ended meanwhile
    assert len(ran) == int(row["n"]) <= minutes + 1 <= 4


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("cron", "zone", "complaint"),
    [
        ("* * * *", "UTC", "no line of five fields"),
        ("61 * * * *", "UTC", "no line of five fields"),
        ("0 0 30 2 *", "UTC", "its time never comes|no line"),
        ("* * * * *", "Mars/Olympus", "is no time zone"),
    ],
)
def test_a_line_or_a_zone_that_nobody_understands_is_refused(
    sqlite_db: Database, cron: str, zone: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        JobQueue(sqlite_db.uri).periodic(cron, zone=zone)


def test_a_periodic_task_takes_no_arguments(sqlite_db: Database) -> None:
    queue = JobQueue(sqlite_db.uri)
    with pytest.raises(TypeError, match="sweep takes arguments"):

        @queue.periodic("* * * * *")
        async def sweep(n: int) -> None: ...

    assert queue.tasks == {}
