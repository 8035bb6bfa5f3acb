"""The spans of a test: made by the real SDK, kept in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Span, SpanKind

from pysqlx_engine import tracing


class Spans:
    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    @contextmanager
    def within(self, name: str = "test") -> Iterator[Span]:
        """A span of the program's own."""
        with self.tracer.start_as_current_span(name) as span:
            yield span

    def of(self, parent: Span | ReadableSpan) -> list[ReadableSpan]:
        """The spans that have ended and are children of this one."""
        here = parent.get_span_context()
        return [one for one in self.all() if one.parent is not None and one.parent.span_id == here.span_id]

    def all(self, kind: SpanKind | None = None) -> list[ReadableSpan]:
        return [one for one in self._exporter.get_finished_spans() if kind in (None, one.kind)]

    def one(self, name: str) -> ReadableSpan:
        (found,) = [one for one in self.all() if one.name == name]
        return found

    def clear(self) -> None:
        self._exporter.clear()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """As if the program had set a tracer provider; it can be set but once in a process, so it is not the global one."""
    spans = Spans()
    monkeypatch.setattr(tracing, "on", True)
    monkeypatch.setattr(tracing, "_tracer", spans.tracer, raising=False)
    return spans
