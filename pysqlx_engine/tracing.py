"""OpenTelemetry spans: the one module that knows OpenTelemetry.

Spans begin by themselves when the program has set a tracer provider, whenever that is. Whoever sets one has imported
OpenTelemetry, so nothing here imports it before somebody else has: without it, or without a provider, a look costs one
question, and the check-out of an idle connection only reads `on`.

Names and attributes are those of OpenTelemetry's conventions for databases and messaging. No span has a value of a
parameter, or an argument of a job, and passwords in URIs are masked.

Samplers, processors and propagators are the program's own: what they raise costs a span, and never what it is of.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from .errors import PySQLXError
from .log_config import part
from .masking import mask_uris

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span as Span  # noqa: PLC0414 - for the annotations of others
    from opentelemetry.trace import SpanKind, Tracer

P = ParamSpec("P")
T = TypeVar("T")
Value = str | int | bool

logger = part("pool")

_SCHEMA = "https://opentelemetry.io/schemas/1.36.0"
"""The version of the conventions."""

on = False
"""Whether spans are made, as far as `look` has found out: all that the check-out of an idle connection looks at."""
_undecided = True
"""No provider was seen yet. It is set but once in a process."""
_named = "OTEL_PYTHON_TRACER_PROVIDER" in os.environ
"""The environment names a provider, which is set when somebody asks for it."""
_tracer: Tracer
_told = False
"""Somebody was told what went wrong here."""
_quiet: ContextVar[bool] = ContextVar("pysqlx_quiet", default=False)
_LONGEST_TRACEBACK = 20_000


@dataclass(frozen=True, slots=True)
class Target:
    """A database, as spans know it."""

    name: str
    """What stands for it in the names of spans: there are few of them."""
    attributes: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Query:
    """One call of a database."""

    target: Target
    operation: str | None
    text: str | None


def _harmless(function: Callable[P, T]) -> Callable[P, T | None]:
    """`function`, which gives None in place of raising: whatever goes wrong is told once."""

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> T | None:
        global _told  # noqa: PLW0603
        try:
            return function(*arguments, **named)
        except Exception as error:
            if _interrupted(error):
                raise
            if not _told:
                _told = True
                logger.warning("Tracing: spans may be missing: %s", _shown(error), exc_info=error)
            return None

    return call


def _interrupted(error: Exception) -> bool:
    """Whether a signal's handler has raised it: then it is for whoever has called us, and only came up here."""
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__))


def _code_of(handler: object) -> object:
    """None where a signal has no handler, or one that is not written in Python."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not callable(handler):
        return None
    return getattr(handler, "__code__", None) or getattr(type(handler).__call__, "__code__", None)


def look() -> bool:
    """Whether spans are made. True from the first look after somebody has set a tracer provider."""
    return on or (_undecided and _may_be_set() and bool(_find()))


def _may_be_set() -> bool:
    # What get_tracer_provider() returns, without its look at the environment: that takes 2 us, for every query.
    api = sys.modules.get("opentelemetry.trace")
    return api is not None and (_named or getattr(api, "_TRACER_PROVIDER", api) is not None)


@_harmless
def _find() -> bool:
    global on, _undecided, _tracer  # noqa: PLW0603
    from importlib.metadata import PackageNotFoundError, version

    from opentelemetry import trace

    _undecided = False  # also where this fails: it would again, with every query
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        _undecided = True
        return False  # it stands for the one that nobody has set yet
    try:
        ours = version("pysqlx-engine")
    except PackageNotFoundError:  # a program that was frozen, or a directory that was copied
        ours = None
    tracer = trace.get_tracer("pysqlx_engine", ours, schema_url=_SCHEMA)
    if not isinstance(tracer, trace.NoOpTracer):  # which it is with OTEL_SDK_DISABLED
        _tracer, on = tracer, True
    return on


def quiet(context: contextvars.Context) -> contextvars.Context:
    """`context`, in which no spans are made from now on: for what a pool or a dispatcher does on its own account. It is
    no part of what the users do meanwhile, and never ends."""
    context.run(_quiet.set, True)
    return context


def _wanted() -> bool:
    if not look() or _quiet.get():
        return False
    from opentelemetry import context

    # What OpenTelemetry's suppress_instrumentation() sets: an exporter that writes to a database would never end.
    return not context.get_value(getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", ""))


def _kind(name: str) -> SpanKind:
    from opentelemetry.trace import SpanKind

    return SpanKind[name]


@_harmless
def failed(span: Span | None, error: BaseException) -> None:
    """Note in a span what went wrong, unless it has ended."""
    if span is None or not span.is_recording():
        return
    from opentelemetry.trace import Status, StatusCode

    if isinstance(error, GeneratorExit) and error.__context__ is not None:
        error = error.__context__  # what has interrupted the thread that drives a coroutine closes that
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    span.set_attribute("error.type", name)
    if isinstance(error, PySQLXError) and error.code != "0" and not error.code.startswith("PYSQLX"):
        span.set_attribute("db.response.status_code", error.code)
    # Not record_exception(), which shows what there is.
    trace = "".join(traceback.format_exception(error))
    if len(trace) > _LONGEST_TRACEBACK:  # whole lines: of half a URI nobody could tell what is its password
        trace = "...\n" + trace[-_LONGEST_TRACEBACK:].partition("\n")[2]
    span.add_event(
        "exception",
        {"exception.type": name, "exception.message": _shown(error), "exception.stacktrace": mask_uris(trace)},
    )
    span.set_status(Status(StatusCode.ERROR, _shown(getattr(error, "message", error)) or name))


def _shown(error: object) -> str:
    try:
        return mask_uris(str(error))
    except Exception:  # noqa: BLE001 - it is anybody's __str__
        return f"<{type(error).__name__}, of which nothing can be said>"


@_harmless
def ended(span: Span | None) -> None:
    if span is not None and span.is_recording():
        span.end()


@_harmless
def _detach(token: Token[Context]) -> None:
    from opentelemetry import context

    context.detach(token)


# -- connections ------------------------------------------------------------------------------------------------------


@_harmless
def checking_out(pool: str, target: Target | None) -> Span | None:
    """A connection is asked for. There is a convention for the attributes only."""
    if not _wanted():
        return None
    attributes: dict[str, Value] = {"db.client.connection.pool.name": pool, "pysqlx.checkout.waited": False}
    if target is not None:
        attributes |= target.attributes
    return _tracer.start_span("db.client.connection.checkout", kind=_kind("INTERNAL"), attributes=attributes)


@_harmless
def waits(span: Span | None) -> None:
    """None was idle."""
    if span is not None:
        span.set_attribute("pysqlx.checkout.waited", True)


@contextlib.contextmanager
def query(about: Callable[[], Query]) -> Iterator[None]:
    """The database is asked, meanwhile. Not the current span: nobody else's code runs within it."""
    span = _querying(about)
    try:
        yield
    except BaseException as error:
        failed(span, error)
        raise
    finally:
        ended(span)


@_harmless
def _querying(about: Callable[[], Query]) -> Span | None:
    if not _wanted():
        return None
    query = about()
    attributes = dict(query.target.attributes)
    if query.operation is not None:
        attributes["db.operation.name"] = query.operation
    if query.text is not None:
        attributes["db.query.text"] = mask_uris(query.text) if "://" in query.text else query.text
    name = query.target.name if query.operation is None else f"{query.operation} {query.target.name}"
    return _tracer.start_span(name, kind=_kind("CLIENT"), attributes=attributes)


# -- jobs -------------------------------------------------------------------------------------------------------------

# Their names are by the task, as those of Celery's instrumentation are, not by the queue as the convention has it: one
# queue runs tasks of all kinds.


class Sending:
    """What is known of jobs while they are enqueued."""

    def __init__(self, span: Span | None = None, context: str | None = None) -> None:
        self._span = span
        self.context = context
        """What travels with them: JSON, by the names of headers."""

    @_harmless
    def sent(self, ids: Sequence[int]) -> None:
        if self._span is not None and len(ids) == 1:
            self._span.set_attribute("messaging.message.id", str(ids[0]))


@contextlib.contextmanager
def enqueuing(queue: str, task: str, count: int) -> Iterator[Sending]:
    """So many jobs of a task are enqueued, meanwhile: one span, whose context all of them have."""
    begun = _enqueuing(queue, task, count)
    if begun is None:
        yield Sending()
        return
    span, token = begun
    try:
        yield Sending(span, _sent())
    except BaseException as error:
        failed(span, error)
        raise
    finally:
        _detach(token)
        ended(span)


@_harmless
def _enqueuing(queue: str, task: str, count: int) -> tuple[Span, Token[Context]] | None:
    if not _wanted():
        return None
    from opentelemetry import context, trace

    attributes = _of_a_job(queue, task, "enqueue", "send")
    if count != 1:
        attributes["messaging.batch.message_count"] = count
    span = _tracer.start_span(f"enqueue {task}", kind=_kind("PRODUCER"), attributes=attributes)
    return span, context.attach(trace.set_span_in_context(span))


@_harmless
def _sent() -> str | None:
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return json.dumps(carrier) if carrier else None


@contextlib.contextmanager
def attempt(
    queue: str, task: str, job: int, attempt: int, max_attempts: int, context: str | None
) -> Iterator[Span | None]:
    """An attempt at a job runs, meanwhile, and its span is the current one. It is ended by `attempt_ended`.

    It is a trace of its own, linked to the one that has enqueued the job. The conventions want the link; that one is
    besides the other's child they only allow, for a single message, and Celery's instrumentation does so. A job may run
    days after whoever enqueued it has ended, again and again, and thousands may have been enqueued at once: all that
    would be one trace.
    """
    begun = _attempting(queue, task, job, attempt, max_attempts, context)
    if begun is None:
        yield None
        return
    span, token = begun
    try:
        yield span
    finally:
        _detach(token)


@_harmless
def _attempting(
    queue: str, task: str, job: int, attempt: int, max_attempts: int, context: str | None
) -> tuple[Span, Token[Context]] | None:
    if not _wanted():
        return None
    from opentelemetry import context as contexts
    from opentelemetry import trace

    sender = _received(context) or contexts.Context()
    link = trace.get_current_span(sender).get_span_context()
    attributes = _of_a_job(queue, task, "run", "process") | {
        "messaging.message.id": str(job),
        "messaging.pysqlx.attempt": attempt,
        "messaging.pysqlx.max_attempts": max_attempts,
    }
    span = _tracer.start_span(
        f"run {task}",
        context=contexts.Context(),
        kind=_kind("CONSUMER"),
        attributes=attributes,
        links=[trace.Link(link)] if link.is_valid else [],
    )
    # With the baggage of whoever has enqueued it.
    return span, contexts.attach(trace.set_span_in_context(span, sender))


@_harmless
def came_to(outcome: str) -> None:
    """Say of the attempt that runs here what it came to, where its end does not say it."""
    if _wanted():
        from opentelemetry import trace

        span = trace.get_current_span()
        if span.is_recording():  # else it was given back, and has ended
            span.set_attribute("messaging.pysqlx.outcome", outcome)


@_harmless
def _set_outcome(span: Span, outcome: str) -> None:
    span.set_attribute("messaging.pysqlx.outcome", outcome)


def attempt_ended(span: Span | None, outcome: str | None) -> None:
    if span is not None:
        if outcome is not None:
            _set_outcome(span, str(outcome))  # exporters do not know enumerations
        ended(span)


@_harmless
def _received(context: str | None) -> Context:
    from opentelemetry import propagate
    from opentelemetry.context import Context

    try:
        carrier = json.loads(context) if context is not None else {}
    except (ValueError, RecursionError):  # it is a row in a database: anybody may have written it
        carrier = {}
    if not isinstance(carrier, dict) or not all(isinstance(value, str) for value in carrier.values()):
        carrier = {}
    return propagate.extract(carrier, Context())


def _of_a_job(queue: str, task: str, operation: str, kind: str) -> dict[str, Value]:
    return {
        "messaging.system": "pysqlx",
        "messaging.destination.name": queue,
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.pysqlx.task": task,
    }
