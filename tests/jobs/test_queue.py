"""A queue in one process: what is enqueued is run, on every database, and what a handler says is done."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pysqlx_engine import PySQLXEngine, PySQLXEnginePool, PySQLXEnginePoolSync, PySQLXEngineSync
from pysqlx_engine.errors import JobArgumentsError, JobError, JobFailedError, JobSchemaError, RawCmdError
from pysqlx_engine.workers import Backoff, Cancel, Job, JobQueue, Retry, Snooze
from pysqlx_engine.workers.jobs import serving
from pysqlx_engine.workers.jobs.dialects import dialect_of
from pysqlx_engine.workers.jobs.presence import LOST_AFTER, Presence, Register
from pysqlx_engine.workers.jobs.schema import VERSION
from pysqlx_engine.workers.jobs.served import Serving
from pysqlx_engine.workers.jobs.store import store_of
from tests.jobs.serving import ended, errors, looking, served, waiting
from tests.servers import Database

AT_ONCE = Backoff(first=0, jitter=0)


async def test_coroutine_functions_and_plain_functions_run_with_what_their_annotations_ask_for(
    database: Database,
) -> None:
    queue = JobQueue(database.uri)
    seen: dict[str, object] = {}

    @queue.task
    async def in_task(conn: PySQLXEngine, job: Job, text: str, number: int = 7) -> None:
        (row,) = await conn.query_as_dict("SELECT 1 AS one")
        seen["task"] = (text, number, int(row["one"]), job.task, job.attempt, threading.current_thread().name)

    @queue.task
    def in_thread(conn: PySQLXEngineSync, job: Job, when: datetime) -> None:
        (row,) = conn.query_as_dict("SELECT 2 AS two")
        seen["thread"] = (when, int(row["two"]), job.id, threading.current_thread().name.startswith("pysqlx-job"))

    @queue.task
    async def with_pool(pool: PySQLXEnginePool) -> None:
        async with pool.connection() as conn:
            (row,) = await conn.query_as_dict("SELECT 3 AS three")
        seen["pool"] = int(row["three"])

    @queue.task
    def with_thread_pool(pool: PySQLXEnginePoolSync) -> None:
        with pool.connection() as conn:
            (row,) = conn.query_as_dict("SELECT 4 AS four")
        seen["thread pool"] = int(row["four"])

    @queue.task
    async def with_nothing() -> None:
        seen["nothing"] = True

    when = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    async with served(queue):
        first = await in_task.enqueue(text="ünï \0 :name")
        second = await asyncio.to_thread(lambda: in_thread.enqueue_sync(when=when))
        rest = [await task.enqueue() for task in (with_pool, with_thread_pool, with_nothing)]
        rows = await ended(database, first, second, *rest)
    assert seen == {
        "task": ("ünï \0 :name", 7, 1, "in_task", 1, "MainThread"),
        "thread": (when, 2, second, True),
        "pool": 3,
        "thread pool": 4,
        "nothing": True,
    }
    assert {row["state"] for row in rows} == {"completed"}


async def test_what_a_handler_returns_or_raises_decides_what_becomes_of_its_job(database: Database) -> None:
    queue = JobQueue(database.uri)
    attempts: list[int] = []

    @queue.task(max_attempts=3, backoff=AT_ONCE)
    async def fails(job: Job) -> None:
        attempts.append(job.attempt)
        raise ValueError(f"attempt {job.attempt}\0")

    @queue.task(backoff=AT_ONCE)
    def fails_once(job: Job) -> Retry | None:
        return Retry(after=0, reason="not yet") if job.attempt == 1 else None

    @queue.task
    async def cancels() -> None:
        raise Cancel("of no use")

    snoozes: list[int] = []

    @queue.task(max_attempts=1)
    async def snoozes_twice(job: Job) -> Snooze | None:
        snoozes.append(job.attempt)
        return Snooze(0) if len(snoozes) < 3 else None

    async with served(queue):
        ids = [await task.enqueue() for task in (fails, fails_once, cancels, snoozes_twice)]
        rows = await ended(database, *ids)
    assert [(row["state"], row["attempt"]) for row in rows] == [
        ("discarded", 3), ("completed", 2), ("cancelled", 1), ("completed", 1),
    ]  # fmt: skip
    assert attempts == [1, 2, 3]
    assert snoozes == [1, 1, 1]
    assert await errors(database, ids[0]) == [f"ValueError: attempt {number}\\0" for number in (1, 2, 3)]
    assert await errors(database, ids[1]) == ["not yet"]
    assert await errors(database, ids[2]) == ["of no use"]


async def test_what_a_transactional_handler_does_commits_together_with_its_end_or_not_at_all(
    database: Database,
) -> None:
    queue = JobQueue(database.uri)
    async with looking(database) as connection:
        await connection.raw_cmd("CREATE TABLE ledger (n integer)")

    @queue.task(transactional=True, max_attempts=2, backoff=AT_ONCE)
    async def post(conn: PySQLXEngine, job: Job, n: int) -> Cancel | None:
        await conn.execute("INSERT INTO ledger VALUES (:n)", {"n": n})
        if n == 2 and job.attempt == 1:
            raise RuntimeError("after the row was written")
        if n == 3:
            return Cancel()
        return None

    @queue.task(transactional=True, max_attempts=2, backoff=AT_ONCE)
    def post_in_thread(conn: PySQLXEngineSync, job: Job, n: int) -> None:
        conn.execute("INSERT INTO ledger VALUES (:n)", {"n": n})
        if n == 12 and job.attempt == 1:
            raise RuntimeError("after the row was written")

    async with served(queue):
        ids = [await post.enqueue(n=n) for n in (1, 2, 3)] + [await post_in_thread.enqueue(n=n) for n in (11, 12)]
        rows = await ended(database, *ids)
    assert [(row["state"], row["attempt"]) for row in rows] == [
        ("completed", 1), ("completed", 2), ("cancelled", 1), ("completed", 1), ("completed", 2),
    ]  # fmt: skip
    async with looking(database) as connection:
        posted = await connection.query_as_dict("SELECT n FROM ledger ORDER BY n")
    assert [row["n"] for row in posted] == [1, 2, 11, 12]


async def test_an_error_of_which_nothing_can_be_said_is_an_error_all_the_same(sqlite_db: Database) -> None:
    queue = JobQueue(sqlite_db.uri)

    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    @queue.task(max_attempts=1)
    async def fails() -> None:
        raise Unspeakable

    @queue.task(max_attempts=1)
    async def cancels() -> None:
        raise Cancel(ValueError("no text"))  # type: ignore[arg-type]

    async with served(queue):
        ids = [await fails.enqueue(), await cancels.enqueue()]
        rows = await ended(sqlite_db, *ids)
    assert [row["state"] for row in rows] == ["discarded", "cancelled"]
    assert await errors(sqlite_db, ids[0]) == ["Unspeakable, of which nothing can be said: RuntimeError"]


@pytest.mark.parametrize("provider", ["postgresql", "mysql"])  # on SQLite nobody can write meanwhile
async def test_a_transactional_handler_whose_job_was_taken_away_meanwhile_commits_nothing(
    request: pytest.FixtureRequest, provider: str
) -> None:
    database: Database = request.getfixturevalue(f"{provider}_db")
    queue = JobQueue(database.uri)
    async with looking(database) as connection:
        await connection.raw_cmd("CREATE TABLE ledger (n integer)")
    begun, go_on = asyncio.Event(), asyncio.Event()

    @queue.task(transactional=True)
    async def post(conn: PySQLXEngine) -> None:
        begun.set()
        await go_on.wait()
        await conn.execute("INSERT INTO ledger VALUES (1)")

    async with served(queue):
        await post.enqueue()
        await begun.wait()
        async with looking(database) as connection:
            await connection.execute("UPDATE pysqlx_jobs SET owner = owner + 1")
            go_on.set()
            queue.stop()
            await asyncio.sleep(0)
            assert (await connection.query_as_dict("SELECT count(*) AS n FROM ledger"))[0]["n"] == 0
    assert [row["state"] for row in await waiting(database)] == ["running"]


async def test_jobs_are_enqueued_in_the_callers_transaction(database: Database) -> None:
    queue = JobQueue(database.uri)
    ran: list[int] = []

    @queue.task
    async def note(n: int) -> None:
        ran.append(n)

    async with served(queue), looking(database) as connection:
        await connection.begin()
        await note.enqueue(n=1, conn=connection)
        await connection.rollback()
        await connection.begin()
        ids = await note.enqueue_many([{"n": 2}, {"n": 3}], conn=connection)
        await connection.commit()
        await ended(database, *ids)
    assert sorted(ran) == [2, 3]


async def test_a_handler_that_has_a_connection_enqueues_by_it_and_is_refused_a_second_one(database: Database) -> None:
    queue = JobQueue(database.uri, max_size=2)
    refused: list[str] = []

    @queue.task
    async def child(n: int) -> None: ...

    @queue.task(transactional=True, max_attempts=1)
    async def parent(conn: PySQLXEngine, n: int, fail: bool) -> None:
        await child.enqueue(n=n)
        if fail:
            raise RuntimeError

    @queue.task(transactional=True)
    def parent_in_thread(conn: PySQLXEngineSync, n: int) -> None:
        child.enqueue_sync(n=n)

    @queue.task
    async def greedy(conn: PySQLXEngine) -> None:
        try:
            await queue.migrate()
        except JobError as error:
            refused.append(str(error))

    async with served(queue):
        ids = [
            await parent.enqueue(n=1, fail=True), await parent.enqueue(n=2, fail=False),
            await parent_in_thread.enqueue(n=3), await greedy.enqueue(),
        ]  # fmt: skip
        await ended(database, *ids)
        while await waiting(database):
            await asyncio.sleep(0.01)
    async with looking(database) as connection:
        children = await connection.query_as_dict("SELECT args FROM pysqlx_jobs_ended WHERE task = 'child' ORDER BY id")
    assert [row["args"] for row in children] == ['{"n":2}', '{"n":3}']
    assert len(refused) == 1
    assert "was given a connection" in refused[0]


async def test_priority_delay_time_and_queue_are_options(database: Database) -> None:
    queue = JobQueue(database.uri, concurrency=1, queues=["default", "mail"])
    ran: list[str] = []

    @queue.task(priority=1)
    async def note(text: str) -> None:
        ran.append(text)

    await queue.migrate()
    soon = datetime.now(UTC) + timedelta(seconds=0.3)
    ids = [
        await note.options(priority=-1).enqueue(text="last"),
        await note.enqueue(text="second"),
        await note.options(priority=9).enqueue(text="first"),
        await note.options(delay=0.2, queue="mail").enqueue(text="delayed"),
        await note.options(at=soon).enqueue(text="at a time"),
        await note.options(delay=86400, unique_key="one").enqueue(text="tomorrow"),
        await note.options(delay=1, unique_key="one").enqueue(text="the same"),
    ]
    assert ids[-1] == ids[-2]
    async with served(queue):
        await ended(database, *ids[:5])
    assert ran == ["first", "second", "last", "delayed", "at a time"]
    assert datetime.now(UTC) >= soon
    assert [row["state"] for row in await waiting(database)] == ["scheduled"]


async def test_an_attempt_that_takes_too_long_has_failed(database: Database) -> None:
    queue = JobQueue(database.uri)
    go_on = threading.Event()
    asked: list[bool] = []

    @queue.task(timeout=0.05, max_attempts=1)
    async def slow() -> None:
        await asyncio.sleep(60)

    @queue.task(timeout=0.05, max_attempts=1)
    def slow_in_thread(job: Job) -> None:
        go_on.wait(30)
        asked.append(job.cancel_asked)

    @queue.task(max_attempts=1)
    async def own_timeout() -> None:
        raise TimeoutError("my own")

    async with served(queue):
        ids = [await task.enqueue() for task in (slow, slow_in_thread, own_timeout)]
        rows = await ended(database, *ids)
        go_on.set()
        while not asked:
            await asyncio.sleep(0.01)
    assert {row["state"] for row in rows} == {"discarded"}
    too_long = "took longer than its timeout of 0.05 s"
    assert await errors(database, ids[0]) == [f"TooLong: {too_long}"] == await errors(database, ids[1])
    assert await errors(database, ids[2]) == ["TimeoutError: my own"]
    assert asked == [True]


async def test_to_wait_for_a_connection_is_neither_run_time_nor_a_failure(database: Database) -> None:
    queue = JobQueue(database.uri, max_size=2, concurrency=20)
    at_once: list[int] = []
    running = 0

    @queue.task(timeout=5, max_attempts=1)
    async def work(conn: PySQLXEngine) -> None:
        nonlocal running
        running += 1
        at_once.append(running)
        await asyncio.sleep(0.02)
        running -= 1

    async with served(queue):
        ids = await work.enqueue_many([{}] * 20)
        rows = await ended(database, *ids)
    assert {row["state"] for row in rows} == {"completed"}
    assert max(at_once) == 1


async def test_what_needs_no_connection_does_not_wait_behind_what_does(database: Database) -> None:
    queue = JobQueue(database.uri, max_size=2, concurrency=3)
    go_on = asyncio.Event()

    @queue.task
    async def connected(conn: PySQLXEngine) -> None:
        await go_on.wait()

    @queue.task
    async def free() -> None:
        go_on.set()

    await queue.migrate()
    ids = [*await connected.enqueue_many([{}] * 20), await free.enqueue()]
    async with served(queue):
        rows = await ended(database, *ids)
    assert {row["state"] for row in rows} == {"completed"}


async def test_a_result_is_stored_and_waited_for(database: Database) -> None:
    queue = JobQueue(database.uri)

    @queue.task(store_result=True)
    async def answer(n: int) -> dict[str, object]:
        return {"n": n, "at": datetime(2030, 1, 1, tzinfo=UTC)}

    @queue.task(max_attempts=1)
    async def fails() -> None:
        raise RuntimeError("no answer")

    @queue.task(store_result=True, max_attempts=1)
    async def no_json() -> object:
        return object()

    async with served(queue):
        assert await queue.result(await answer.enqueue(n=42), timeout=20) == {"n": 42, "at": "2030-01-01T00:00:00Z"}
        with pytest.raises(JobFailedError, match="was discarded: RuntimeError: no answer"):
            await queue.result(await fails.enqueue(), timeout=20)
        with pytest.raises(JobFailedError, match="its result cannot be written as JSON"):
            await queue.result(await no_json.enqueue(), timeout=20)
        with pytest.raises(JobError, match="there is no job 999999"):
            await queue.result(999999)
        with pytest.raises(TimeoutError):
            await queue.result(await answer.options(delay=60).enqueue(n=1), timeout=0.05)


async def test_progress_can_be_read_while_the_job_runs(database: Database) -> None:
    queue = JobQueue(database.uri)
    go_on = asyncio.Event()

    @queue.task
    async def work(job: Job) -> None:
        job.set_progress("half of it")
        await go_on.wait()

    async with served(queue):
        id_ = await work.enqueue()
        while [row["progress"] for row in await waiting(database)] != ["half of it"]:
            await asyncio.sleep(0.01)
        go_on.set()
        await ended(database, id_)


async def test_arguments_that_do_not_fit_are_refused_without_their_values(sqlite_db: Database) -> None:
    queue = JobQueue(sqlite_db.uri, max_payload=100)

    @queue.task
    async def note(n: int, text: str = "") -> None: ...

    for arguments, complaint in (
        ({"n": "secret"}, "note: n: Input should be a valid integer"),
        ({}, "note: n: Field required"),
        ({"n": 1, "more": "secret"}, "note: more: Extra inputs are not permitted"),
        ({"n": 1, "text": "secret" * 20}, "the arguments are 137 bytes of JSON, and the queue takes up to 100"),
    ):
        with pytest.raises(JobArgumentsError, match=complaint) as raised:
            await note.enqueue(**arguments)
        assert "secret" not in str(raised.value)
    await queue.close()


async def test_a_job_whose_task_nobody_knows_or_whose_arguments_do_not_fit_any_more_is_kept(database: Database) -> None:
    older = JobQueue(database.uri)

    @older.task(name="gone")
    async def gone() -> None: ...

    @older.task(name="changed")
    async def changed(n: str) -> None: ...

    await older.migrate()
    unknown, unfit = await gone.enqueue(), await changed.options(max_attempts=1).enqueue(n="x")
    await older.close()
    newer = JobQueue(database.uri)

    @newer.task(name="changed")
    async def changed_since(n: int) -> None: ...

    async with served(newer):
        (row,) = await ended(database, unfit)
        while [job["state"] for job in await waiting(database)] != ["scheduled"]:
            await asyncio.sleep(0.01)
    assert row["state"] == "discarded"
    (complaint,) = await errors(database, unfit)
    assert complaint.startswith("JobArgumentsError: n: Input should be a valid integer")
    assert await errors(database, unknown) == ["no worker has a task named 'gone'"]
    assert [job["attempt"] for job in await waiting(database)] == [0]


async def test_a_budget_of_one_and_a_database_without_tables_are_refused(postgresql_db: Database) -> None:
    with pytest.raises(JobError, match="a budget of 1 is too small to run jobs"):
        await JobQueue(postgresql_db.uri, max_size=1).serve()
    queue = JobQueue(postgresql_db.uri)
    with pytest.raises(JobSchemaError, match="there are no job tables in this database: run `pysqlx-ctl jobs migrate`"):
        await queue.serve()

    @queue.task
    async def note() -> None: ...

    with pytest.raises(JobSchemaError, match="there are no job tables"):
        await note.enqueue()
    await queue.close()


async def test_who_is_told_to_stop_before_it_could_begin_says_at_once_why_it_could_not(
    postgresql_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "LAST_WORDS", 3600.0)
    queue = JobQueue(postgresql_db.uri)
    trying = asyncio.create_task(queue.serve(grace=0.0))
    await asyncio.sleep(0)
    queue.stop()
    with pytest.raises(JobSchemaError, match="jobs migrate"):
        await trying


async def test_a_supervisor_is_told_that_a_queue_is_served_when_it_claims_and_not_before(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the worker whose place it takes stops claiming."""
    queue = JobQueue(database.uri)
    await queue.migrate()
    said: asyncio.Queue[object] = asyncio.Queue()
    goes_on = asyncio.Event()
    enter = Register.enter

    async def enter_later(self: Register, *arguments: Any) -> Presence:
        await goes_on.wait()
        return await enter(self, *arguments)

    monkeypatch.setattr(Register, "enter", enter_later)
    monkeypatch.setattr(serving, "ask_supervisor", [said.put_nowait])
    async with served(queue):
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert said.empty()
        goes_on.set()
        assert isinstance(await said.get(), Serving)
        async with looking(database) as connection:
            assert await Register(dialect_of(connection)).all(connection)


async def test_tables_of_a_newer_version_are_refused(database: Database) -> None:
    queue = JobQueue(database.uri)
    await queue.migrate()
    async with looking(database) as connection:
        await connection.execute("INSERT INTO pysqlx_job_schema (version, applied_at) VALUES (99, 0)")
    with pytest.raises(JobSchemaError, match=f"version 99, and this program knows versions up to {VERSION}: upgrade"):
        await queue.serve()


async def test_a_stop_gives_back_what_has_not_begun_and_what_does_not_end(database: Database) -> None:
    queue = JobQueue(database.uri, concurrency=2)
    begun: list[int] = []
    go_on = asyncio.Event()

    @queue.task(max_attempts=1)
    async def ends(n: int) -> None:
        begun.append(n)
        await go_on.wait()

    @queue.task(max_attempts=1)
    async def does_not_end(n: int) -> None:
        begun.append(n)
        await asyncio.sleep(3600)

    async with served(queue, grace=1.0):
        first = await ends.enqueue(n=0)
        await does_not_end.enqueue(n=1)
        await ends.enqueue_many([{"n": n} for n in range(2, 10)])
        while len(begun) < 2:
            await asyncio.sleep(0.01)
        queue.stop()
        go_on.set()
        await ended(database, first)
    assert begun == [0, 1]
    left = await waiting(database)
    assert [(row["state"], row["attempt"], row["owner"]) for row in left] == [("available", 0, None)] * 9
    assert await errors(database, int(str(left[0]["id"]))) == []


async def test_a_waiting_and_a_running_job_are_cancelled(database: Database) -> None:
    queue = JobQueue(database.uri)
    begun = asyncio.Event()

    @queue.task
    async def endless() -> None:
        begun.set()
        await asyncio.sleep(3600)

    async with served(queue):
        runs = await endless.enqueue()
        waits = await endless.options(delay=3600).enqueue()
        await begun.wait()
        assert await queue.cancel(waits, runs, 999) == (1, 1)
        rows = await ended(database, runs, waits)
    assert {row["state"] for row in rows} == {"cancelled"}


async def test_nothing_of_a_paused_queue_is_begun_until_it_is_resumed(database: Database) -> None:
    queue = JobQueue(database.uri, queues={"default": 1, "other": 1})
    ran: list[str] = []

    @queue.task
    async def note(text: str) -> None:
        ran.append(text)

    await queue.migrate()
    await queue.pause("default")
    async with served(queue):
        paused = await note.enqueue(text="paused")
        other = await note.options(queue="other").enqueue(text="other")
        await ended(database, other)
        assert ran == ["other"]
        await queue.resume("default")
        await ended(database, paused)
    assert ran == ["other", "paused"]


async def test_the_jobs_of_a_process_that_is_gone_are_made_available_at_once(database: Database) -> None:
    queue = JobQueue(database.uri)

    @queue.task
    async def note() -> None: ...

    await queue.migrate()
    lost, last = await note.enqueue(), await note.options(max_attempts=1).enqueue()
    async with looking(database) as connection:
        store, register = store_of(connection), Register(dialect_of(connection))
        gone = await register.enter(connection, "another", None, None)
        await connection.execute("UPDATE pysqlx_job_dispatchers SET started = started + 1")
        async with store.transaction(connection):
            assert len(await store.claim(connection, "default", 10, gone.owners[0] + 1)) == 2
    async with served(queue):
        rows = await ended(database, lost, last)
    assert [(row["state"], row["attempt"]) for row in rows] == [("completed", 2), ("discarded", 1)]
    assert "is gone" in (await errors(database, lost))[0]
    async with looking(database) as connection:
        assert await connection.query_as_dict("SELECT * FROM pysqlx_job_dispatchers") == []


async def test_the_jobs_of_another_host_are_taken_over_when_it_is_not_heard_any_more(database: Database) -> None:
    queue = JobQueue(database.uri)

    @queue.task
    async def note() -> None: ...

    await queue.migrate()
    ids = await note.enqueue_many([{}] * 2)
    async with looking(database) as connection:
        store = store_of(connection)
        register = Register(dialect_of(connection))
        for ago in (1.1, 0.5):
            other = await register.enter(connection, f"run {ago}", None, None)
            await connection.execute(
                "UPDATE pysqlx_job_dispatchers SET host = 'elsewhere', seen_at = seen_at - :ago WHERE id = :id",
                {"ago": round(ago * LOST_AFTER * 1_000_000), "id": other.id},
            )
            async with store.transaction(connection):
                assert len(await store.claim(connection, "default", 1, other.owners[0] + 1)) == 1
    async with served(queue):
        (row,) = await ended(database, ids[0])
    assert (row["state"], row["attempt"]) == ("completed", 2)
    assert "is gone" in (await errors(database, ids[0]))[0]
    (left,) = await waiting(database)
    assert (left["id"], left["state"], left["attempt"]) == (ids[1], "running", 1)


async def test_what_has_ended_is_deleted_when_it_is_old_enough(database: Database) -> None:
    queue = JobQueue(database.uri, keep=3600)

    @queue.task(max_attempts=1)
    async def fails() -> None:
        raise RuntimeError

    await queue.migrate()
    async with served(queue):
        ids = await fails.enqueue_many([{}] * 3)
        await ended(database, *ids)
    async with looking(database) as connection:
        await connection.execute(
            "UPDATE pysqlx_jobs_ended SET ended_at = ended_at - 3700000000 WHERE id <> :id", {"id": ids[-1]}
        )
    async with served(queue):
        async with looking(database) as connection:
            while len(rows := await connection.query_as_dict("SELECT job_id FROM pysqlx_job_errors")) > 1:
                await asyncio.sleep(0.01)
            left = await connection.query_as_dict("SELECT id FROM pysqlx_jobs_ended")
    assert [row["job_id"] for row in rows] == [row["id"] for row in left] == [ids[-1]]


async def test_what_could_not_begin_costs_no_attempt(sqlite_db: Database) -> None:
    """On SQLite somebody else may have the file locked for longer than a connection waits."""
    queue = JobQueue(sqlite_db.uri)

    @queue.task(transactional=True, max_attempts=1)
    async def post(conn: PySQLXEngine) -> None: ...

    begin = PySQLXEngine.raw_cmd
    refused: list[str] = []

    async def raw_cmd(self: PySQLXEngine, sql: str) -> None:
        if sql == "BEGIN IMMEDIATE" and asyncio.current_task() in attempts() and not refused:
            refused.append(sql)
            raise RawCmdError("5", "database is locked")
        await begin(self, sql)

    def attempts() -> set[asyncio.Task[object]]:
        return {task for task in asyncio.all_tasks() if "Runner._run" in repr(task.get_coro())}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PySQLXEngine, "raw_cmd", raw_cmd)
        async with served(queue):
            id_ = await post.enqueue()
            (row,) = await ended(sqlite_db, id_)
    assert refused
    assert (row["state"], row["attempt"]) == ("completed", 1)
    (reason,) = await errors(sqlite_db, id_)
    assert reason.startswith("not begun: RawCmdError")


async def test_a_task_is_in_the_first_queue_that_is_served(sqlite_db: Database) -> None:
    queue = JobQueue(sqlite_db.uri, queues=["airports", "mail"])

    @queue.task
    async def note() -> None: ...

    @queue.task(queue="mail")
    async def send() -> None: ...

    await queue.migrate()
    await note.enqueue()
    await send.enqueue()
    await queue.close()
    assert [job["queue"] for job in await waiting(sqlite_db)] == ["airports", "mail"]
