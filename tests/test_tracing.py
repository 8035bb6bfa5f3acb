"""Spans of queries and check-outs: what they say, whose children they are, and that nobody pays for what nobody has."""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import SpanKind, StatusCode

from pysqlx_engine import PySQLXEngine, PySQLXEnginePool, PySQLXEnginePoolSync, PySQLXEngineSync, tracing
from pysqlx_engine.engine.spans import operation_of, target_of, text_of
from pysqlx_engine.engine.uri import Provider, parse_uri
from pysqlx_engine.errors import PoolTimeoutError, QueryError
from tests.servers import Database
from tests.spans import Spans, spans

__all__ = ["spans"]

CHECKOUT = "db.client.connection.checkout"
PLACEHOLDER = {"postgresql": "$1", "mysql": "?", "sqlite": "?"}
SECRET = "nobody is to see this"


def database_of(span: ReadableSpan) -> dict[str, object]:
    names = ("db.system.name", "db.namespace", "server.address", "server.port")
    return {name: span.attributes[name] for name in names if name in (span.attributes or {})}


def everything(span: ReadableSpan) -> str:
    return span.to_json()


# -- queries ----------------------------------------------------------------------------------------------------------


async def test_a_query_is_a_span_below_the_current_one(database: Database, spans: Spans) -> None:
    uri = parse_uri(database.uri)
    async with PySQLXEngine(database.uri) as conn:
        with spans.within() as parent:
            await conn.query_first("SELECT :v AS v", {"v": SECRET})
        (query,) = spans.of(parent)
    assert query.kind is SpanKind.CLIENT
    assert query.name == f"SELECT {database.uri.rpartition('/')[2]}"
    assert query.status.status_code is StatusCode.UNSET
    assert query.attributes is not None
    assert query.attributes["db.operation.name"] == "SELECT"
    assert query.attributes["db.query.text"] == f"SELECT {PLACEHOLDER[database.provider]} AS v"
    assert database_of(query) == (
        {"db.system.name": "sqlite", "db.namespace": uri.path}
        if database.provider == "sqlite"
        else {
            "db.system.name": database.provider,
            "db.namespace": database.uri.rpartition("/")[2],
            "server.address": "127.0.0.1",
            "server.port": uri.port,
        }
    )
    assert SECRET not in everything(query)


def test_so_is_one_of_a_thread_and_every_other_call_of_the_database(sqlite_db: Database, spans: Spans) -> None:
    with PySQLXEngineSync(sqlite_db.uri) as conn, spans.within() as parent:
        conn.execute("CREATE TABLE t (v text)")
        conn.start_transaction()
        conn.execute("INSERT INTO t VALUES (:v)", {"v": SECRET})
        conn.raw_cmd(f"UPDATE t SET v = '{SECRET}'; DELETE FROM t WHERE v = 5")
        conn.commit()
        conn.query("SELECT v FROM t")
        conn.query_as_dict("SELECT v FROM t")
        conn.query_first_as_dict("SELECT v FROM t")
    made = spans.of(parent)
    assert [span.attributes["db.operation.name"] for span in made if span.attributes] == [
        "CREATE", "BEGIN", "INSERT", "UPDATE", "COMMIT", "SELECT", "SELECT", "SELECT",
    ]  # fmt: skip
    assert made[3].attributes is not None
    assert made[3].attributes["db.query.text"] == "UPDATE t SET v = ?; DELETE FROM t WHERE v = ?"
    assert SECRET not in "".join(map(everything, made))


async def test_what_the_database_refuses_is_an_error_of_its_span(postgresql_db: Database, spans: Spans) -> None:
    async with PySQLXEngine(postgresql_db.uri) as conn:
        with pytest.raises(QueryError):
            await conn.query("SELECT * FROM nowhere WHERE a = :a", {"a": 1})
    (query,) = spans.all(SpanKind.CLIENT)
    assert query.attributes is not None
    assert query.attributes["error.type"] == "pysqlx_engine.errors.QueryError"
    assert query.attributes["db.response.status_code"] == "42P01"
    assert query.status.status_code is StatusCode.ERROR
    assert 'relation "nowhere" does not exist' in str(query.status.description)
    assert [event.name for event in query.events] == ["exception"]


def test_the_code_of_another_error_is_no_status_of_a_database(spans: Spans) -> None:
    class ApiError(Exception):
        code = "invalid_grant"

    for error in (ApiError(), QueryError("PYSQLX012", "of our own"), QueryError("42P01", "of the server")):
        with spans.tracer.start_span(str(error)) as span:
            tracing.failed(span, error)
    codes = [(span.attributes or {}).get("db.response.status_code") for span in spans.all()]
    assert codes == [None, None, "42P01"]


async def test_passwords_are_masked_wherever_a_span_has_a_text(sqlite_db: Database, spans: Spans) -> None:
    uri = "postgresql://me:hunter2@db/app"
    async with PySQLXEngine(sqlite_db.uri) as conn:
        with pytest.raises(QueryError):
            await conn.query(f"SELECT '{uri}' AS a FROM nowhere WHERE a = :a", {"a": 1})
    with spans.tracer.start_span("mine") as span:
        try:
            raise ValueError(f"cannot connect to {uri}")
        except ValueError as error:
            tracing.failed(span, error)
    for span in spans.all():
        assert "hunter2" not in everything(span)
        assert "postgresql://me:***@db/app" in everything(span)
    (event,) = spans.one("mine").events
    assert event.attributes is not None
    assert event.attributes["exception.type"] == "ValueError"
    assert event.attributes["exception.message"] == "cannot connect to postgresql://me:***@db/app"
    assert str(event.attributes["exception.stacktrace"]).endswith("***@db/app\n")


def test_a_long_traceback_is_cut_between_its_lines(spans: Spans) -> None:
    with spans.tracer.start_span("mine") as span:
        tracing.failed(span, ValueError("\n".join(f"mysql://me:{'hunter2' * 100}@db{n}/" for n in range(100))))
    (event,) = spans.one("mine").events
    assert event.attributes is not None
    trace = str(event.attributes["exception.stacktrace"])
    assert trace.startswith("...\nmysql://me:***@db")
    assert trace.endswith("@db99/\n")
    assert "hunter2" not in trace


def test_a_span_that_has_ended_is_left_alone(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    span = spans.tracer.start_span("given back, while its handler runs on")
    tracing.attempt_ended(span, "available")
    tracing.failed(span, ValueError("too late"))
    with trace.use_span(span):
        tracing.came_to("completed")
    tracing.ended(span)
    assert not caplog.records
    (ended,) = spans.all()
    assert ended.attributes == {"messaging.pysqlx.outcome": "available"}
    assert not ended.events


async def test_a_cancelled_query_has_ended(postgresql_db: Database, spans: Spans) -> None:
    async with PySQLXEngine(postgresql_db.uri) as conn:
        with spans.within() as parent:
            query = asyncio.create_task(conn.query("SELECT pg_sleep(:s)::text", {"s": 0.05}))
            with postgresql_db.sessions() as sessions:
                while not any(session["state"] == "active" for session in sessions()):
                    await asyncio.sleep(0)
            query.cancel()
            await asyncio.wait([query])
        (span,) = spans.of(parent)
        assert span.attributes is not None
        assert span.attributes["error.type"] == "asyncio.exceptions.CancelledError"
        await conn._finish_calls()


def test_an_interrupted_one_of_a_thread_says_what_has_interrupted_it(postgresql_db: Database, spans: Spans) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def interrupt_when_it_runs() -> None:
        with postgresql_db.sessions() as sessions:
            while not any(session["state"] == "active" for session in sessions()):
                pass
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with PySQLXEngineSync(postgresql_db.uri) as conn:
            other = threading.Thread(target=interrupt_when_it_runs)
            other.start()
            with pytest.raises(KeyboardInterrupt):
                conn.query("SELECT pg_sleep(:s)::text", {"s": 10.0})
            other.join()
    finally:
        signal.signal(signal.SIGALRM, before)
    (span,) = spans.all()
    assert span.attributes is not None
    assert span.attributes["error.type"] == "KeyboardInterrupt"
    assert span.status.status_code is StatusCode.ERROR


async def test_who_suppresses_instrumentation_has_no_spans(sqlite_db: Database, spans: Spans) -> None:
    async with PySQLXEngine(sqlite_db.uri) as conn:
        token = contexts.attach(contexts.set_value(contexts._SUPPRESS_INSTRUMENTATION_KEY, True))
        await conn.query("SELECT 1 AS a")
        contexts.detach(token)
        assert not spans.all()
        await conn.query("SELECT 1 AS a")
    assert spans.all()


@pytest.mark.parametrize(
    ("provider", "sql", "shown"),
    [
        ("postgresql", "SELECT 1 AS a", "SELECT ? AS a"),
        ("postgresql", "SELECT a1, t.b2 FROM t3 LIMIT 10", "SELECT a1, t.b2 FROM t3 LIMIT ?"),
        ("postgresql", "SELECT -1.5e-3, .5, 0xFF", "SELECT -?, ?, ?"),
        ("postgresql", "ALTER USER u PASSWORD 'it''s'", "ALTER USER u PASSWORD ?"),
        ("postgresql", """SELECT 'a' AS "it's" -- it's\n, 'b' """, """SELECT ? AS "it's"  \n, ?"""),
        ("postgresql", "SELECT $$it's$$, $x$a$$b$x$, 'c'", "SELECT ?, ?, ?"),
        ("postgresql", "SELECT /* it's */ 'a'", "SELECT   ?"),
        ("postgresql", "SELECT /* /* it's */ it's */ 'a'", None),
        ("postgresql", r"SELECT E'it\'s', 'a'", None),
        ("postgresql", "SELECT 'left open", None),
        ("postgresql", "SELECT ARRAY[1, 'a']", "SELECT ARRAY[?, ?]"),
        ("mysql", "SELECT \"it's\", 'a' # it's\n, `it's`", "SELECT ?, ?  \n, `it's`"),
        ("mysql", "SELECT 5--3, 'a'", "SELECT ?--?, ?"),
        ("mysql", "SELECT 5 -- it's\n, 'a' --", "SELECT ?  \n, ?"),
        ("postgresql", "SELECT 1_000_000, 0b1011, 0o17, a[1:27], 1_0.0_1", "SELECT ?, ?, ?, a[?:?], ?"),
        ("sqlite", "SELECT [a'b], 'secret', [c'd]", "SELECT [a'b], ?, [c'd]"),
        ("sqlite", "SELECT [a, 'secret'", None),
        ("sqlserver", "SELECT $1234.56, $1,000", "SELECT ?, ?"),
        ("sqlite", "SELECT \"a\" FROM `b` WHERE c = x'00'", "SELECT ? FROM `b` WHERE c = x?"),
        ("sqlserver", "SELECT [it's] FROM t WHERE a = N'b'", "SELECT [it's] FROM t WHERE a = N?"),
        ("sqlserver", "SELECT [a]]b'c], 'geheim', [d]]e'f]", "SELECT [a]]b'c], ?, [d]]e'f]"),
        ("sqlserver", "SELECT [a]]b'c, 'geheim'", None),
        ("sqlite", "SELECT [a]]b, 'geheim'", "SELECT [a]]b, ?"),
        ("mysql", "SELECT 1 --\x01it's\n, 'geheim' --\x7fit's", "SELECT ?  \n, ?"),
        ("sqlite", "SELECT " + "1, " * 10_000, None),
    ],
)
def test_values_in_a_statement_without_parameters_are_not_shown(
    provider: Provider, sql: str, shown: str | None
) -> None:
    assert text_of(provider, sql, parameters=False) == shown
    assert text_of(provider, sql, parameters=True) == sql


def test_a_statement_that_leaves_much_open_does_not_take_long() -> None:
    def takes(provider: Provider, sql: str) -> float:
        begun = time.process_time()
        assert text_of(provider, sql, parameters=False) is None
        return time.process_time() - begun

    tags = " ".join(f"$t{number}$" for number in range(1_500))
    assert min(takes("postgresql", tags) for _ in range(3)) < 0.05  # it were 0.5 s if each was looked for to the end
    assert min(takes("sqlserver", "[" * 10_000) for _ in range(3)) < 0.05


def test_a_span_names_the_database_and_never_its_password() -> None:
    def target(uri: str) -> tuple[str, dict[str, object]]:
        found = target_of(parse_uri(uri))
        return found.name, {name.rpartition(".")[2]: value for name, value in found.attributes.items()}

    assert target("postgres://me:secret@DB.example./app") == (
        "app",
        {"name": "postgresql", "namespace": "app", "address": "db.example", "port": 5432},
    )
    assert target("mariadb://me:secret@[::2]:3307/app")[1] == {
        "name": "mariadb", "namespace": "app", "address": "::2", "port": 3307,
    }  # fmt: skip
    assert target("sqlserver://h:1433;database=app;user=me;password=secret") == (
        "app",
        {"name": "microsoft.sql_server", "namespace": "app", "address": "h", "port": 1433},
    )
    assert target("sqlite::memory:") == (":memory:", {"name": "sqlite", "namespace": ":memory:"})
    assert operation_of(" /* c */ (select 1)") == "SELECT"
    assert operation_of("/*!40000 LOCK */") is None


# -- check-outs -------------------------------------------------------------------------------------------------------


async def check_out_and_in(pool: PySQLXEnginePool) -> None:
    async with pool.connection():
        pass


async def test_a_check_out_is_a_span_that_says_whether_it_waited(database: Database, spans: Spans) -> None:
    async with PySQLXEnginePool(database.uri, max_size=1, name="mine") as pool:
        with spans.within() as parent:
            async with pool.connection() as conn:
                second = asyncio.create_task(check_out_and_in(pool))
                while not pool.stats().waiting:
                    await asyncio.sleep(0)
                await conn.raw_cmd("BEGIN")  # the rollback that it costs is the pool's
            await second
        first, begin, second_span = spans.of(parent)
        assert (first.name, first.kind, begin.name.split()[0]) == (CHECKOUT, SpanKind.INTERNAL, "BEGIN")
        assert first.attributes is not None
        assert second_span.attributes is not None
        assert first.attributes["db.client.connection.pool.name"] == "mine"
        assert first.attributes["pysqlx.checkout.waited"] is False
        assert second_span.attributes["pysqlx.checkout.waited"] is True
        assert database_of(first) == database_of(begin)
    # Nothing of what the pool does by itself: connecting, testing, rolling back.
    assert len(spans.all()) == 4


def test_a_check_out_that_gives_up_is_an_error(sqlite_db: Database, spans: Spans) -> None:
    with PySQLXEnginePoolSync(sqlite_db.uri, max_size=1) as pool, pool.connection() as conn:
        conn.query("SELECT 1 AS a")
        with spans.within() as parent, pytest.raises(PoolTimeoutError):
            pool.connection(timeout=0).__enter__()
        (span,) = spans.of(parent)
    assert span.attributes is not None
    assert span.attributes["error.type"] == "pysqlx_engine.errors.PoolTimeoutError"
    assert span.status.status_code is StatusCode.ERROR
    assert [one.name for one in spans.all()].count(CHECKOUT) == 2


async def test_a_cancelled_check_out_has_ended(sqlite_db: Database, spans: Spans) -> None:
    async with PySQLXEnginePool(sqlite_db.uri, max_size=1) as pool, pool.connection():
        spans.clear()
        waits = asyncio.create_task(check_out_and_in(pool))
        while not pool.stats().waiting:
            await asyncio.sleep(0)
        waits.cancel()
        await asyncio.wait([waits])
    (span,) = spans.all()
    assert span.attributes is not None
    assert span.attributes["error.type"] == "asyncio.exceptions.CancelledError"


async def test_so_has_one_that_the_garbage_collector_ends(sqlite_db: Database, spans: Spans) -> None:
    async with PySQLXEnginePool(sqlite_db.uri, max_size=1) as pool, pool.connection():
        spans.clear()
        waits = check_out_and_in(pool)
        waits.send(None)
        waits.close()
        while not spans.all():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("threads", [False, True])
async def test_hooks_have_no_spans_nor_those_of_who_waits_for_them(
    sqlite_db: Database, spans: Spans, threads: bool
) -> None:
    async def configure(conn: PySQLXEngine) -> None:
        await conn.raw_cmd("PRAGMA foreign_keys = ON")

    def use() -> None:
        with PySQLXEnginePoolSync(sqlite_db.uri, configure=lambda conn: conn.raw_cmd("PRAGMA foreign_keys = ON")):
            pass

    if threads:
        await asyncio.to_thread(use)
    else:
        async with PySQLXEnginePool(sqlite_db.uri, configure=configure):
            pass
    assert not spans.all()


# -- on, and off ------------------------------------------------------------------------------------------------------


def python(script: str, uri: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYSQLX_URI": uri, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


PROGRAM = """
import asyncio, sys
from pysqlx_engine import PySQLXEngine, PySQLXEnginePool, PySQLXEngineSync
from pysqlx_engine.workers import JobQueue
from pysqlx_engine.workers.testing import drain

queue = JobQueue()

@queue.task
async def add(conn: PySQLXEngine, a: int) -> None:
    await conn.query("SELECT :a + 1 AS a", {"a": a})

async def main():
    await add.enqueue(a=1)
    print(await drain(queue))

asyncio.run(main())
"""


def test_everything_works_without_opentelemetry_which_nobody_imports(sqlite_db: Database) -> None:
    blocked = "import sys\nsys.modules['opentelemetry'] = None\n"
    assert python(blocked + PROGRAM, sqlite_db.uri) == ["{'completed': 1}"]
    seen = "\nprint([name for name in sys.modules if name.startswith('opentelemetry')])"
    assert python(PROGRAM + seen, sqlite_db.uri) == ["{'completed': 1}", "[]"]


def test_a_program_without_a_record_of_this_package_has_spans(
    sqlite_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    spans = Spans()
    for name, value in {"on": False, "_undecided": True, "_tracer": None}.items():
        monkeypatch.setattr(tracing, name, value, raising=False)
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", spans.provider)
    with PySQLXEngineSync(sqlite_db.uri) as conn:
        conn.query("SELECT 1 AS a")
    assert [span.name.split()[0] for span in spans.all()] == ["SELECT"]


async def test_a_provider_that_cannot_be_had_costs_the_spans_only(
    sqlite_db: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {"on": False, "_undecided": True, "_named": True, "_told": False}.items():
        monkeypatch.setattr(tracing, name, value)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", "nobody_knows_it")
    async with PySQLXEnginePool(sqlite_db.uri) as pool, pool.connection() as conn:
        await conn.query("SELECT 1 AS a")
        await conn.query("SELECT 1 AS a")
    assert [record.getMessage().partition(": ")[0] for record in caplog.records if "pysqlx" in record.name] == [
        "Tracing"
    ]


LATE = """
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, ConsoleSpanExporter
from pysqlx_engine import PySQLXEnginePoolSync, tracing

with PySQLXEnginePoolSync() as pool:
    with pool.connection() as conn:
        conn.query("SELECT 1 AS a")
    print("before", tracing.on)
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: span.name + "\\n")))
    trace.set_tracer_provider(provider)
    for _ in range(2):
        with pool.connection() as conn:
            conn.query("SELECT 1 AS a")
    print("after", tracing.on)
"""


def test_spans_begin_when_a_provider_is_set_also_after_the_pool_has_started(sqlite_db: Database) -> None:
    # The check-out before the first query that sees the provider has none.
    expected = ["before False", "SELECT test.db", CHECKOUT, "SELECT test.db", "after True"]
    assert python(LATE, sqlite_db.uri) == expected


def test_an_sdk_that_is_switched_off_is_no_provider(sqlite_db: Database) -> None:
    assert python(LATE, sqlite_db.uri, OTEL_SDK_DISABLED="true") == ["before False", "after False"]


def test_the_hot_path_asks_nobody_anything_while_there_is_no_provider(
    sqlite_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check-out and check-in of an idle connection call nothing of `tracing`."""
    from pysqlx_engine import tracing

    called: list[str] = []

    def note(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **named: Any) -> Any:
            called.append(name)
            return function(*arguments, **named)

        return noted

    with PySQLXEnginePoolSync(sqlite_db.uri, check_after=None) as pool:
        assert tracing.on is False
        for name in ("look", "quiet", "checking_out", "waits", "failed", "ended", "query"):
            monkeypatch.setattr(tracing, name, note(name, getattr(tracing, name)))
        with pool.connection() as conn:
            pass
        assert called == []
        with pool.connection() as conn:
            conn.query("SELECT 1 AS a")
        assert called == ["look"]


class Refuses(Sampler):
    def should_sample(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("cannot connect to redis://:geheim@h/0")

    def get_description(self) -> str:
        return "refuses"


def test_what_a_sampler_raises_is_a_warning_without_a_password(
    sqlite_db: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {"on": True, "_told": False}.items():
        monkeypatch.setattr(tracing, name, value)
    provider = TracerProvider(sampler=Refuses(), shutdown_on_exit=False)
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"), raising=False)
    with PySQLXEngineSync(sqlite_db.uri) as conn:
        assert conn.query_as_dict("SELECT 1 AS a") == [{"a": 1}]
    (record,) = caplog.records
    assert record.getMessage() == "Tracing: spans may be missing: cannot connect to redis://:***@h/0"
    assert (record.name, getattr(record, "part", None)) == ("pysqlx_engine", "pool")
    assert "RuntimeError: cannot connect to redis://:***@h/0" in caplog.text
    assert "geheim" not in caplog.text


class Alarm(Exception):
    pass


def interrupt(*_: object) -> None:
    raise Alarm


class Interrupts:
    def __call__(self, *_: object) -> None:
        raise Alarm

    def method(self, *_: object) -> None:
        raise Alarm


@pytest.mark.parametrize(
    "handler",
    [
        interrupt,
        Interrupts().method,
        Interrupts(),
        functools.partial(interrupt, 1),
        functools.partial(functools.partial(Interrupts(), 1), 2),
        functools.partial(Interrupts().method, 1),
    ],
    ids=["function", "method", "object", "partial", "partial of an object", "partial of a method"],
)
def test_what_a_signal_has_raised_comes_out_whatever_was_going_on(handler: Callable[..., None]) -> None:
    @tracing._harmless
    def makes_a_span() -> None:
        signal.raise_signal(signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(Alarm):
            makes_a_span()
    finally:
        signal.signal(signal.SIGALRM, before)
