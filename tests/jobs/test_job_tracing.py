"""Spans of jobs: who has enqueued one, and each attempt at it, wherever that runs."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as contexts
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, StatusCode

from pysqlx_engine import PySQLXEngine, PySQLXEngineSync, tracing
from pysqlx_engine.workers import Backoff, Cancel, Job, JobQueue
from tests.servers import Database
from tests.spans import Spans, spans
from tests.workers.runs import started

from .serving import ended, looking, served

__all__ = ["spans"]


def about(span: ReadableSpan) -> dict[str, object]:
    return {name.removeprefix("messaging."): value for name, value in (span.attributes or {}).items()}


async def test_each_attempt_is_a_trace_linked_to_who_has_enqueued_the_job(database: Database, spans: Spans) -> None:
    queue = JobQueue(database.uri, queues=["mail"])
    seen: list[object] = []

    @queue.task(max_attempts=2, backoff=Backoff(first=0.001))
    async def send(conn: PySQLXEngine, job: Job, to: str) -> None:
        seen.append(baggage.get_baggage("tenant"))
        await conn.query("SELECT :to AS sent_to", {"to": to})
        if job.attempt == 1:
            raise ValueError("not yet")

    async with served(queue):
        token = contexts.attach(baggage.set_baggage("tenant", "acme"))
        with spans.within("request") as request:
            id_ = await send.enqueue(to="nobody@example.org")
        contexts.detach(token)
        (row,) = await ended(database, id_)

    enqueued = spans.one("enqueue send")
    assert enqueued.kind is SpanKind.PRODUCER
    assert enqueued in spans.of(request)
    assert about(enqueued) == {
        "system": "pysqlx", "destination.name": "mail", "operation.name": "enqueue", "operation.type": "send",
        "message.id": str(id_), "pysqlx.task": "send",
    }  # fmt: skip
    assert any("INSERT INTO pysqlx_jobs" in str(about(span)["db.query.text"]) for span in spans.of(enqueued))
    attempts = spans.all(SpanKind.CONSUMER)
    assert [span.name for span in attempts] == ["run send"] * 2
    for number, (span, outcome) in enumerate(zip(attempts, ["retrying", "completed"], strict=True), start=1):
        assert span.parent is None
        assert [link.context.span_id for link in span.links] == [enqueued.get_span_context().span_id]
        assert [link.context.trace_id for link in span.links] == [request.get_span_context().trace_id]
        failed = {"error.type": "ValueError"} if number == 1 else {}
        assert about(span) == {
            "system": "pysqlx", "destination.name": "mail", "operation.name": "run", "operation.type": "process",
            "message.id": str(id_), "pysqlx.task": "send", "pysqlx.attempt": number, "pysqlx.max_attempts": 2,
            "pysqlx.outcome": outcome, **failed,
        }  # fmt: skip
        checkout, query = spans.of(span)
        assert checkout.name == "db.client.connection.checkout"
        assert query.name.startswith("SELECT ")
        assert query.get_span_context().trace_id == span.get_span_context().trace_id
    assert [span.status.status_code for span in attempts] == [StatusCode.ERROR, StatusCode.UNSET]
    assert seen == ["acme", "acme"]
    assert "nobody@example.org" not in "".join(span.to_json() for span in spans.all())
    assert json.loads(str(row["trace_context"])).keys() == {"traceparent", "baggage"}


@pytest.mark.parametrize("transactional", [False, True])
async def test_queries_of_a_plain_function_are_below_its_attempt(
    sqlite_db: Database, spans: Spans, transactional: bool
) -> None:
    queue = JobQueue(sqlite_db.uri)

    @queue.task(transactional=transactional)
    def send(conn: PySQLXEngineSync) -> None:
        conn.query("SELECT 7 AS a")
        other.enqueue_sync()

    @queue.task
    def other() -> None: ...

    async with served(queue):
        await ended(sqlite_db, await send.enqueue())
    attempt = spans.one("run send")
    assert about(attempt)["pysqlx.outcome"] == "completed"
    texts = [about(span).get("db.query.text") for span in spans.of(attempt)]
    assert "SELECT ? AS a" in texts
    assert ("COMMIT" in texts) is transactional
    assert spans.one("enqueue other") in spans.of(attempt)


async def test_jobs_that_are_enqueued_together_have_one_span(database: Database, spans: Spans) -> None:
    queue = JobQueue(database.uri)

    @queue.task
    async def send(number: int) -> None: ...

    async with served(queue):
        ids = await send.enqueue_many([{"number": number} for number in range(3)])
        await ended(database, *ids)
        assert await send.enqueue_many([]) == []
    (enqueued,) = spans.all(SpanKind.PRODUCER)
    assert about(enqueued)["batch.message_count"] == 3
    assert "message.id" not in about(enqueued)
    attempts = spans.all(SpanKind.CONSUMER)
    assert {about(span)["message.id"] for span in attempts} == {str(id_) for id_ in ids}
    assert {link.context.span_id for span in attempts for link in span.links} == {enqueued.get_span_context().span_id}
    assert len({span.get_span_context().trace_id for span in attempts}) == 3


async def test_the_dispatcher_has_no_spans_and_a_job_that_nobody_traced_has_no_link(
    sqlite_db: Database, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = JobQueue(sqlite_db.uri)

    @queue.task
    async def abandons() -> None:
        raise Cancel("not wanted")

    async with served(queue), looking(sqlite_db) as conn:
        await conn.execute("DELETE FROM pysqlx_jobs")
        spans.clear()
        with monkeypatch.context() as off:
            off.setattr("pysqlx_engine.tracing.on", False)
            id_ = await abandons.enqueue(conn=conn)
        while not (attempts := spans.all(SpanKind.CONSUMER)):
            await asyncio.sleep(0.01)
    (attempt,) = attempts
    assert (attempt.links, about(attempt)["message.id"]) == ((), str(id_))
    assert about(attempt)["pysqlx.outcome"] == "cancelled"
    assert attempt.status.status_code is StatusCode.UNSET  # it was wanted so
    assert spans.all() == [attempt]


@pytest.mark.parametrize(
    "stored",
    [
        "no JSON",
        "[]",
        '{"traceparent": 7}',
        '{"traceparent": "00-0-0-00"}',
        pytest.param("[" * 100_000, id="deep"),
        pytest.param(json.dumps({"traceparent": "00-" + "a" * 1_000_000, "baggage": "a=b," * 250_000}), id="huge"),
        '{"baggage": "a=\\ud800"}',
    ],
)
async def test_what_is_no_trace_context_is_none(sqlite_db: Database, spans: Spans, stored: str) -> None:
    queue = JobQueue(sqlite_db.uri)

    @queue.task
    async def send() -> None: ...

    await queue.migrate()
    id_ = await send.enqueue()
    async with looking(sqlite_db) as conn:
        await conn.execute("UPDATE pysqlx_jobs SET trace_context = :stored", {"stored": stored})
    async with served(queue):
        await ended(sqlite_db, id_)
    assert spans.one("run send").links == ()


class Broken(Sampler, SpanProcessor, TextMapPropagator):
    """Raises where it is told to."""

    @property
    def fields(self) -> set[str]:
        return set()

    def __init__(self, where: str) -> None:
        self._where = where

    def _at(self, where: str) -> None:
        if where == self._where:
            raise RuntimeError(f"broken {where}")

    def should_sample(self, *arguments: Any, **named: Any) -> SamplingResult:
        self._at("should_sample")
        return SamplingResult(Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return self._where

    def on_start(self, span: object, parent_context: object = None) -> None:
        self._at("on_start")

    def on_end(self, span: object) -> None:
        self._at("on_end")

    def inject(self, *arguments: Any, **named: Any) -> None:
        self._at("inject")

    def extract(self, carrier: object, context: contexts.Context | None = None, getter: object = None) -> Any:
        self._at("extract")
        return context


@pytest.mark.parametrize("where", ["should_sample", "on_start", "on_end", "inject", "extract"])
async def test_what_the_program_has_put_into_opentelemetry_breaks_no_job(
    sqlite_db: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    broken = Broken(where)
    provider = TracerProvider(sampler=broken, shutdown_on_exit=False)
    provider.add_span_processor(broken)
    for name, value in {"on": True, "_told": False, "_tracer": provider.get_tracer("test")}.items():
        monkeypatch.setattr(tracing, name, value, raising=False)
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(broken)
    queue = JobQueue(sqlite_db.uri)
    ran: list[int] = []

    @queue.task
    async def send(conn: PySQLXEngine, job: Job) -> None:
        await conn.query("SELECT 1 AS a")
        ran.append(job.attempt)

    try:
        async with served(queue):
            await ended(sqlite_db, await send.enqueue())
    finally:
        propagate.set_global_textmap(before)
    assert ran == [1]
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Tracing:")]
    assert told == [f"Tracing: spans may be missing: broken {where}"]


async def test_an_attempt_that_is_given_up_at_the_end_has_ended(sqlite_db: Database, spans: Spans) -> None:
    queue = JobQueue(sqlite_db.uri)
    begun, go = asyncio.Event(), asyncio.Event()

    @queue.task
    async def waits() -> None:
        begun.set()
        try:
            await go.wait()
        finally:
            await asyncio.sleep(0.5)  # longer than what is cancelled gets

    async with served(queue, grace=0.0):
        await waits.enqueue()
        await begun.wait()
    assert about(spans.one("run waits"))["pysqlx.outcome"] == "available"


WORKER = """
import os, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from pysqlx_engine import PySQLXEngineSync
from pysqlx_engine.workers import Job, JobQueue

out = open(f"spans-{os.environ['PYSQLX_WORKER_ID']}", "w")
provider = TracerProvider()
provider.add_span_processor(
    SimpleSpanProcessor(ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + "\\n"))
)
trace.set_tracer_provider(provider)
queue = JobQueue(concurrency=1)

@queue.task
def note(conn: PySQLXEngineSync, job: Job) -> None:
    conn.query("SELECT :id AS id", {"id": job.id})

if __name__ == "__main__":
    queue.run()
"""


def test_the_context_reaches_the_workers_of_a_run(tmp_path: Path, postgresql_db: Database, spans: Spans) -> None:
    queue = JobQueue(postgresql_db.uri)

    @queue.task
    def note() -> None: ...

    async def enqueue() -> dict[str, int]:
        """The traces of two requests, each with the id of its job."""
        requests = {}
        async with PySQLXEngine(postgresql_db.uri) as conn:
            for _ in range(2):
                with spans.within() as request:
                    id_ = await note.enqueue(conn=conn)
                requests[str(id_)] = request.get_span_context().trace_id
        return requests

    async def prepare() -> None:
        await queue.migrate()
        await queue.close()

    asyncio.run(prepare())
    (tmp_path / "worker.py").write_text(WORKER)
    with started(tmp_path, "-w", "2", "worker.py", PYSQLX_URI=postgresql_db.uri) as run:
        requests = asyncio.run(enqueue())
        asyncio.run(_ended(postgresql_db, [int(id_) for id_ in requests]))
        run.send(signal.SIGTERM)
        assert run.rest() == []
        assert run.wait() == 0
    made = [json.loads(line) for file in tmp_path.glob("spans-*") for line in file.read_text().splitlines()]
    attempts = [span for span in made if span["name"] == "run note"]
    linked = {
        span["attributes"]["messaging.message.id"]: int(span["links"][0]["context"]["trace_id"], 16)
        for span in attempts
    }
    assert linked == requests
    for attempt in attempts:
        below = [span for span in made if span["parent_id"] == attempt["context"]["span_id"]]
        assert [span["name"].partition(" ")[0] for span in below] == ["db.client.connection.checkout", "SELECT"]
    assert not trace.get_current_span().get_span_context().is_valid


async def _ended(database: Database, ids: list[int]) -> None:
    await ended(database, *ids)
