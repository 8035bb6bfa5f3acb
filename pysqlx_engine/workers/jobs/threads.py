"""Threads for handlers that are plain functions: daemons, because one that does not end must not keep the process."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """As many as were ever busy at a time. Not thread-safe: one event loop uses it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._count = 0
        self._busy = 0

    async def run(self, function: Callable[[], T]) -> T:
        """Call `function` in a thread, with this task's context. A cancellation does not end it: whoever is cancelled
        waits for it, or leaves it alone."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def call() -> None:
            try:
                result = context.run(function)
            except BaseException as error:  # noqa: BLE001 - it is handed on
                answer(future.set_exception, _fit(error))
            else:
                answer(future.set_result, result)

        def answer(settle: Callable[[Any], None], what: object) -> None:
            try:
                loop.call_soon_threadsafe(finish, settle, what)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

        def finish(settle: Callable[[Any], None], what: object) -> None:
            self._busy -= 1
            if not future.done():
                settle(what)

        self._busy += 1
        if self._busy > self._count:
            self._count += 1
            threading.Thread(target=self._serve, name=f"{self._name}-{self._count}", daemon=True).start()
        self._work.put(call)
        return await future

    def stop(self) -> None:
        """Let the threads end that have nothing to do."""
        for _ in range(self._count):
            self._work.put(None)
        self._count = 0

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()


def _fit(error: BaseException) -> BaseException:
    """A future takes no StopIteration."""
    if isinstance(error, StopIteration):
        wrapped = RuntimeError("the handler raised StopIteration")
        wrapped.__cause__ = error
        return wrapped
    return error
