"""The one background thread of a process: an event loop in which every pool opens, closes and looks after connections.

It is apart from the user's event loop and threads for a reason: a connection must be closed, and its lease given back,
also when the user's loop is busy, blocked or closed; and what opens and closes is then written once for the asyncio
and the thread face. The driver does its work in threads of its own, so this thread mostly sleeps.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .. import tracing
from ..engine.driving import leave
from ..errors import PoolClosedError
from ..system import after_fork_in_child, at_interpreter_exit

T = TypeVar("T")

EXIT_TIMEOUT = 2.0
"""Seconds that closing all pools may take at interpreter exit."""
UNDO_TIMEOUT = 1.0
"""Seconds that who cancels a start waits until what it has opened is closed: he has waited enough."""


def _own() -> contextvars.Context:
    """The context of what the pools do: not that of whoever came first, whose job would be in it for ever."""
    return tracing.quiet(contextvars.Context())


class Background:
    """The thread and its loop. Everything but `run` may be called from any thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.stopped = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="pysqlx-pool", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run `coroutine` in the background. What it raises is its own business: it must not."""
        if self.is_current_thread:
            self._start(coroutine)
        else:
            self.loop.call_soon_threadsafe(self._start, coroutine)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(coroutine, context=_own())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def call_soon(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call `callback` in the background. Takes no lock: fit for what the garbage collector runs."""
        self.loop.call_soon_threadsafe(callback, *arguments)

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        if self.is_current_thread:
            self.loop.call_later(delay, callback)
        else:
            self.loop.call_soon_threadsafe(self.loop.call_later, delay, callback)

    @property
    def is_current_thread(self) -> bool:
        return threading.get_ident() == self._thread.ident

    def stop(self) -> None:
        self.stopped = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(EXIT_TIMEOUT)


_lock = threading.Lock()
_background: Background | None = None
_at_exit: list[Callable[[], None]] = []


def background() -> Background:
    """The process's background thread, started when it is first needed."""
    global _background  # noqa: PLW0603
    # Without the lock where it can be: a pool that is collected comes here from anywhere, also from inside the lock.
    if _background is not None:
        return _background
    with _lock:
        if _background is None:
            _background = Background()
        return _background


def at_exit(callback: Callable[[], None], *, after_pools: bool = False) -> None:
    """Call `callback` at interpreter exit, before the background thread ends; `after_pools`: after the pools closed."""
    _at_exit.insert(len(_at_exit) if after_pools else 0, callback)


def _shut_down() -> None:
    leave()
    for callback in _at_exit:
        with contextlib.suppress(Exception):  # the thread has to end all the same
            callback()
    if _background is not None:
        _background.stop()


def _forget() -> None:
    """In a forked child there is no such thread."""
    global _background, _lock  # noqa: PLW0603
    _background = None
    _lock = threading.Lock()


at_interpreter_exit(_shut_down)
after_fork_in_child(_forget)


Undo = Callable[[], Coroutine[Any, Any, None]]


async def run_in_background(coroutine: Coroutine[Any, Any, T], undo: Undo | None = None) -> T:
    """From a task of another loop: run `coroutine` in the background loop and await the result here.

    Who is cancelled meanwhile cancels it, and goes on when it has come to its end, after `UNDO_TIMEOUT` at most. Where
    it has succeeded in that very moment, it is undone.
    """
    ended, cancel = _submit(coroutine)
    waiting = asyncio.wrap_future(ended)
    try:
        return await asyncio.shield(waiting)
    except GeneratorExit:
        cancel()
        raise
    except asyncio.CancelledError:
        cancel()
        waiting.add_done_callback(lambda waiting: waiting.cancelled() or waiting.exception())  # nobody is told
        await asyncio.wait([asyncio.wrap_future(_after(ended, undo))], timeout=UNDO_TIMEOUT)
        raise


def call_in_background(coroutine: Coroutine[Any, Any, T], undo: Undo | None = None) -> T:
    """From a plain thread: likewise, for who is interrupted."""
    if background().is_current_thread:
        coroutine.close()
        raise RuntimeError("a pool cannot be started or stopped from its own thread (a finalizer, a log handler)")
    ended, cancel = _submit(coroutine)
    try:
        return ended.result()
    except BaseException:
        cancel()
        concurrent.futures.wait([_after(ended, undo)], timeout=UNDO_TIMEOUT)
        raise


def _submit(coroutine: Coroutine[Any, Any, T]) -> tuple[concurrent.futures.Future[T], Callable[[], object]]:
    """Have `coroutine` run in the background. Gives the future of its end, and what cancels it there: whoever cancelled
    the future would not learn any more when it has ended."""
    if background().stopped:
        coroutine.close()
        raise PoolClosedError("the interpreter is exiting, and the pools of this process have been closed")
    loop, ended = background().loop, concurrent.futures.Future[T]()
    task: asyncio.Task[T] | None = None

    def start() -> None:
        nonlocal task
        task = loop.create_task(coroutine, context=_own())
        task.add_done_callback(tell)

    def tell(task: asyncio.Task[T]) -> None:
        if task.cancelled():
            ended.cancel()
        elif error := task.exception():
            ended.set_exception(error)
        else:
            ended.set_result(task.result())

    def cancel() -> None:
        assert task is not None
        task.cancel()

    loop.call_soon_threadsafe(start)
    return ended, lambda: loop.call_soon_threadsafe(cancel)


def _after(ended: concurrent.futures.Future[Any], undo: Undo | None) -> concurrent.futures.Future[None]:
    """The end of what was cancelled, and of undoing it if it had succeeded all the same."""

    async def wait() -> None:
        succeeded = True
        try:
            await asyncio.wrap_future(ended)
        except BaseException:  # noqa: BLE001 - whatever it was, there is nobody any more to be told
            succeeded = False
        if succeeded and undo is not None:
            await undo()

    return asyncio.run_coroutine_threadsafe(wait(), background().loop)
