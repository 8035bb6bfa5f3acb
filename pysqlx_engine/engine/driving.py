"""Run the driver's coroutines on a plain thread, without an event loop, and let go of the GIL while they wait.

The driver's own synchronous calls hold the GIL for a whole query. Its asynchronous calls work on threads of the
driver's runtime and ask the running event loop for two things only: a future to wait for, and
`call_soon_threadsafe` to be woken. A stand-in that offers those two is all a thread needs. That is why there is one
implementation of a connection, and why the synchronous face is that implementation, driven from here.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..system import after_fork_in_child, at_interpreter_exit
from .driver import first_call

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

T = TypeVar("T")

EXIT_GRACE = 0.2
"""Seconds that calls in flight get to end by themselves when the interpreter exits."""


class _NoLoop:
    """What an asyncio future asks of its loop when it is made."""

    get_debug = bool


class _Wake(asyncio.Future[None]):
    """What the driver is given to wait for: it yields itself once, unless it is done."""

    __slots__ = ()


class _ThreadLoop:
    """The part of an event loop that the driver uses, for one thread that drives.

    A signal's exception (KeyboardInterrupt) comes up wherever its thread runs Python code, and the driver takes an
    exception from a loop for a panic. So what the driver calls on the thread that drives is written in C: making a
    future and iterating over it. It wakes from its own threads, where no signal arrives.
    """

    create_future = staticmethod(partial(_Wake, loop=_NoLoop()))  # type: ignore[arg-type]
    is_closed = staticmethod(bool)

    def __init__(self) -> None:
        self._woken: SimpleQueue[None] = SimpleQueue()

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object, context: object = None) -> None:
        callback(*args)
        self._woken.put(None)

    def wait_for(self, wake: _Wake) -> None:
        """Wait without the GIL. A signal's exception ends it."""
        while not wake.done():  # else it was a wake that comes late, of one before this
            self._woken.get()


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` on the calling thread until it ends, and return what it returns.

    It may await nothing but the driver's calls. Works on any thread, also inside a running event loop, which it
    blocks meanwhile. What interrupts the wait (KeyboardInterrupt) closes the coroutine and goes on to the caller.
    """
    set_running_loop = asyncio._set_running_loop
    outer_loop = asyncio._get_running_loop()
    thread_loop = _ThreadLoop()
    try:
        while True:
            try:
                set_running_loop(thread_loop)  # type: ignore[arg-type]
                wake = coroutine.send(None)
            except StopIteration as stop:
                stay_if_leaving()
                result: T = stop.value
                return result
            finally:
                # Before the thread blocks: a signal handler that runs meanwhile must find the loop it expects.
                set_running_loop(outer_loop)
            if wake is None:
                continue  # the driver was woken while it was being asked: it wants to be asked again
            if not isinstance(wake, _Wake):
                raise RuntimeError(f"a driven coroutine may await the driver only, not {wake!r}")
            thread_loop.wait_for(wake)
    except BaseException:
        coroutine.close()
        stay_if_leaving()
        raise


_leaving = threading.Event()


def leave() -> None:
    """The interpreter exits. From now on daemon threads that wait here are not resumed."""
    _leaving.set()


def stay_if_leaving() -> None:
    """Never return to the code of a daemon thread while the interpreter exits. What it waited for has been cut off, and
    it would be stopped at some point anyway; if that is while it prints the traceback, the process aborts."""
    if _leaving.is_set() and threading.current_thread().daemon:
        threading.Event().wait()


class DriverCall(Generic[T]):
    """A call of the driver. To await it raises what the driver raises, and RuntimeError in an exit handler that runs
    after the driver's own.

    It survives whoever awaits it: after a cancellation `abandoned` is true, and awaiting it once more, in whatever
    loop, waits for its end.

    An exception that a signal's handler raises can come up between any two steps of Python code, so the flags change
    next to the step that they tell of.
    """

    __slots__ = ("_awaited_in", "_coroutine", "running")

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self.running = False
        """It was handed to the driver, and the driver has not ended it."""
        self._awaited_in: asyncio.AbstractEventLoop | None = None

    @property
    def abandoned(self) -> bool:
        """Whether it runs and nobody awaits it any more (cancelled, interrupted, or the event loop is closed)."""
        return self.running and (self._awaited_in is None or self._awaited_in.is_closed())

    def __await__(self) -> Generator[Any, None, T]:
        # Not `await coroutine`: that would hand a cancellation on to the driver, which then drops its half of the
        # call, and nobody would learn any more when the database has finished with it.
        self._awaited_in = loop = asyncio._get_running_loop()
        try:
            send = calls_in_flight.enter(self)
            while True:
                try:
                    self.running = True
                    wake = send(None)
                except StopIteration as stop:
                    self.running = False
                    result: T = stop.value
                    return result
                except BaseException:  # the driver's, or a signal's after it was asked
                    self.running = not self._has_ended()
                    raise
                yield wake
        finally:
            if self._awaited_in is loop:  # else this is what is left of the wait in a loop that was closed
                self._awaited_in = None
                calls_in_flight.leave(self)

    def _has_ended(self) -> bool:
        try:
            self._coroutine.send(None)  # it does no harm to ask once too often
        except (StopIteration, RuntimeError):  # "cannot reuse already awaited coroutine"
            return True
        return False

    def close(self) -> None:
        """Drop the call. The database goes on with it; nobody learns when it ends."""
        self._coroutine.close()


class _CallsInFlight:
    """The driver's calls that this process waits for, so that they do not end in the midst of interpreter shutdown.

    A driver's thread that has finished a call takes the GIL, and CPython (3.11 to 3.13) terminates a thread that asks a
    finalising interpreter for it: the process aborts, with status 134 in place of its own. So at exit no call is let in
    any more, and those in flight get `EXIT_GRACE` to end; and a driver's thread that has woken whoever waited for a
    call, but is not out of Python again, is waited for as long. What takes longer than that, or was cancelled before,
    could do harm only by ending within the few milliseconds that finalising takes.
    """

    def __init__(self) -> None:
        self._calls: set[DriverCall[Any]] = set()
        self._exiting = False
        self._used = False
        self.left_behind = False
        """Set in a forked child whose parent had used the driver: its threads stayed there, and any call would hang."""
        self._none_left = threading.Event()
        at_interpreter_exit(self._drain)
        after_fork_in_child(self._leave_behind)

    def _leave_behind(self) -> None:
        self._calls.clear()
        self.left_behind = self._used

    def enter(self, call: DriverCall[T]) -> Callable[[None], object]:
        """Let `call` in. Returns what asks the driver for its next step. Raises RuntimeError at exit."""
        # Before the look at `_exiting`: either this thread sees that flag, or `_drain` this call.
        self._calls.add(call)
        if self._exiting:
            if threading.current_thread().daemon:
                threading.Event().wait()  # it would be stopped at its next step anyway
            raise RuntimeError("the interpreter is exiting: no database call can be started any more")
        return call._coroutine.send if self._used else partial(self._send_first, call)

    def leave(self, call: DriverCall[T]) -> None:
        """`call` has ended, or nobody awaits it any more."""
        self._calls.discard(call)
        if self._exiting and not self._calls:
            self._none_left.set()

    def _send_first(self, call: DriverCall[T], value: None) -> object:
        with first_call():
            self._used = True
            return call._coroutine.send(value)

    def _drain(self) -> None:
        self._exiting = True
        deadline = time.monotonic() + EXIT_GRACE
        if self._calls:
            self._none_left.wait(EXIT_GRACE)
        for call in list(self._calls):
            call.close()
        while True:
            time.sleep(0.001)  # first: one that waits for the GIL has no frame yet, and gets it now
            if not _foreign_threads_in_python() or time.monotonic() > deadline:
                return


def _foreign_threads_in_python() -> bool:
    """Whether a thread runs Python code that Python did not start, as the driver's do."""
    own = {thread.ident for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}
    return not own.issuperset(sys._current_frames())


calls_in_flight = _CallsInFlight()
