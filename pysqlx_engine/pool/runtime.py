"""The shell around the core: takes the lock, lets the core decide, and performs what it decided.

Both faces (asyncio and threads) are a few lines on top of this; everything that talks to a server runs in the
background thread. The lock is held for the core's decisions only: never while something is awaited, sent or logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import ctypes
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

from ..engine.connection import PySQLXEngine, PySQLXEngineSync
from ..engine.driving import stay_if_leaving
from ..engine.session import UNCONFIRMED_CLOSE, open_session
from ..engine.uri import DatabaseURI, with_option
from ..errors import (
    ConnectError,
    PoolAlreadyClosedError,
    PoolAlreadyStartedError,
    PoolClosedError,
    PoolTimeoutError,
    PySQLXError,
    SettingsError,
)
from . import registry
from .background import EXIT_TIMEOUT, at_exit, background
from .budget import Budget, Demand, Lease, PoolRequest, budget_for
from .config import PoolConfig
from .core import ConnInfo, Effects, PoolCore, State, Waiter
from .stats import Counters, PoolStats

logger = logging.getLogger("pysqlx_engine")

P = ParamSpec("P")
T = TypeVar("T")

OPEN_TIMEOUT = 75.0
"""Seconds after which an attempt to connect is given up: more than the driver's connect_timeout (5 s) and the wait for
a server that is still at work on a login (60 s). A server that accepts and then says nothing must not block the way
for ever."""
CLEAN_TIMEOUT = 15.0
"""Seconds that the ROLLBACK of an open transaction may take at check-in, before the connection is closed instead."""
BACKOFF = (0.05, 2.0)
"""Seconds between attempts to connect after a failure: the first, doubling up to the last, each with jitter."""
CLOSE_TIMEOUT = 10.0
"""Seconds that `stop` waits for the server to let go of what was closed."""
STOP_TIMEOUT = 5.0
"""Seconds that `stop` leaves to connections in use before it closes them."""


class PoolRuntime:
    def __init__(self, config: PoolConfig, *, threads: bool) -> None:
        self.config = config
        self._threads = threads
        self._lock = threading.Lock()
        self.core = PoolCore(config.min_size, config.max_size)
        self._uri = config.uri
        self._budget: Budget | None = None
        self._watchers: set[asyncio.Event] = set()
        """Of those that wait for a change of the state in `start` and `stop`; they live in the background loop."""
        self._monitor: asyncio.Task[None] | None = None
        self.owner_loop: asyncio.AbstractEventLoop | None = None
        """The loop in which an asyncio pool was used last. When it is closed, nobody brings a connection back."""
        self._starting = False
        self._names = 0
        self._failures = 0
        """Attempts to connect that failed since the last that succeeded."""
        self._counters = Counters()

    # -- check-out and check-in: the calling task's or thread's side ---------------------------------------------

    def try_check_out(self) -> ConnInfo | None:
        """An idle connection at once, or None. Raises PoolClosedError."""
        with self._lock:
            self._counters.requests += 1
            return self.core.check_out()

    async def wait_in_task(self, timeout: float) -> ConnInfo:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if asyncio._get_running_loop() is loop:
                _set(future)
            else:
                loop.call_soon_threadsafe(_set, future)

        waiter = Waiter(wake)
        timer = loop.call_later(timeout, _set, future)
        try:
            self._queue(waiter)
            await future
        except GeneratorExit:
            # The garbage collector closes a task that nobody ran to its end, perhaps from inside one of our locks.
            background().call_soon(self._leave, waiter)
            raise
        except BaseException:
            self._leave(waiter)
            raise
        finally:
            timer.cancel()
        return self._settle(waiter, timeout)

    def wait_in_thread(self, timeout: float) -> ConnInfo:
        gate = threading.Lock()
        gate.acquire()
        waiter = Waiter(gate.release)
        try:
            self._queue(waiter)
            gate.acquire(timeout=min(timeout, threading.TIMEOUT_MAX))
        except BaseException:
            self._leave(waiter)
            raise
        stay_if_leaving()
        return self._settle(waiter, timeout)

    def check_in(self, conn: ConnInfo) -> None:
        """Take `conn` back from whoever used it."""
        engine = conn.engine
        if engine._calls or engine._dirty or engine._failed or engine._raw is None:  # tainted is dirty too
            background().spawn(self._clean(conn))
            return
        conn.last_used = time.monotonic()
        with self._lock:  # as `_decide` does: this is the hot path, and saves the call
            effects = self.core.check_in(conn)
        if effects is not None:
            self._perform(effects)

    def check_in_after(self, conn: ConnInfo, error: type[BaseException] | None) -> None:
        """`check_in` at the end of a `with` block that `error` ended."""
        if error is GeneratorExit:  # the garbage collector's work, see `wait_in_task`
            background().call_soon(self.check_in, conn)
        else:
            self.check_in(conn)

    def _leave(self, waiter: Waiter) -> None:
        """`waiter` was cancelled, perhaps in the very moment of the hand-over: then its connection goes to the next."""
        conn = self._give_up(waiter)
        if conn is not None:
            self.check_in(conn)

    def _queue(self, waiter: Waiter) -> None:
        with self._lock:
            self._counters.requests_waited += 1
            effects = self.core.wait(waiter)
        self._perform(effects)

    def _give_up(self, waiter: Waiter) -> ConnInfo | None:
        with self._lock:
            conn, effects = self.core.give_up(waiter)
        if effects is not None:
            self._perform(effects)
        return conn

    def _settle(self, waiter: Waiter, timeout: float) -> ConnInfo:
        """After the wait: a connection, an error, or neither, which means that time is up."""
        # Leaving the queue may still find a connection that was handed over in this very moment: then it is ours.
        conn = waiter.conn or self._give_up(waiter)
        if conn is not None:
            return conn
        if waiter.error is not None:
            # One error may be told to many: each gets a copy, or they would collect each other's tracebacks.
            raise copy.copy(waiter.error).with_traceback(None)
        self._counters.timeouts += 1
        raise PoolTimeoutError(f"no connection within {timeout:.1f} s: {self.describe()}")

    # -- performing what the core decided -------------------------------------------------------------------------

    def _decide(self, event: Callable[P, Effects | None], *arguments: P.args, **named: P.kwargs) -> None:
        """Let the core decide on an event, and perform what it decided."""
        with self._lock:
            effects = event(*arguments, **named)
        if effects is not None:
            self._perform(effects)

    def _perform(self, effects: Effects) -> None:
        for waiter in effects.wake:
            try:
                waiter.wake()
            except RuntimeError:  # its event loop is closed: nobody is there to take the connection
                if waiter.conn is not None:
                    background().call_soon(self.check_in, waiter.conn)  # not here: there may be thousands of them
        for lease in effects.open:
            background().spawn(self._open(lease))
        for conn in effects.close:
            background().spawn(self._close(conn))
        budget = self._budget
        if budget is not None:
            if effects.give_back:
                budget.give_back(effects.give_back)
            if effects.tell:
                budget.demand_changed(urgent=effects.urgent)
            if self.core.state is State.CLOSED and not self.core.held:
                self._detach()
        if self._watchers:
            background().loop.call_soon_threadsafe(self._notify)

    def _notify(self) -> None:
        for watcher in self._watchers:
            watcher.set()

    async def _open(self, lease: Lease) -> None:
        face: Any = (PySQLXEngineSync if self._threads else PySQLXEngine)(self._uri.driver_uri)
        engine: PySQLXEngine = face._engine if self._threads else face
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                session = await open_session(engine, self._uri)
        except Exception as error:  # noqa: BLE001 - whatever it is, the lease must not stay here
            await engine.close()
            self._counters.open_errors += 1
            if not isinstance(error, ConnectError):
                # There may be a session that we do not know: it could not tell us who it is.
                await asyncio.sleep(UNCONFIRMED_CLOSE)
            with self._lock:
                effects = self.core.open_failed(lease, error, permanent=_is_permanent(error))
            # Said once for each time the server is lost; what `start` cannot open it raises itself.
            level = logging.WARNING if self._monitor is not None and not self._failures else logging.DEBUG
            logger.log(level, "Pool: %s could not open a connection: %s", self.config.name, error)
            first, most = BACKOFF
            delay = min(most, first * 2**self._failures)
            self._failures += 1
            background().call_later(delay * random.uniform(0.8, 1.2), self._try_again)
            self._perform(effects)
            return
        self._failures = 0
        self._counters.opened += 1
        self._names += 1
        conn = ConnInfo(f"conn-{self._names}", lease, engine, face, session, time.monotonic())
        if self._budget is not None:
            self._budget.opened(lease, session)
        with self._lock:
            effects = self.core.opened(conn)
            size = self.core.size
        logger.debug("Pool: New connection created: %s PoolSize: %d", conn, size)
        self._perform(effects)

    def _try_again(self) -> None:
        self._decide(self.core.try_again)

    async def _close(self, conn: ConnInfo) -> None:
        if conn.engine._provider == "sqlite":
            await _driver_is_done(conn.engine)
        busy = conn.engine._calls > 0
        await conn.engine.close()
        logger.info("Removed: %s from pool, the conn was open for %.5f secs", conn, time.monotonic() - conn.opened_at)
        await conn.session.closed_by_server(busy=busy)
        self._counters.closed += 1
        self._decide(self.core.closed, conn)

    async def _clean(self, conn: ConnInfo) -> None:
        """Make a used connection fit for the next one, or close it. Nothing carries over: not a running query, not an
        open transaction."""
        engine: PySQLXEngine = conn.engine
        if engine._provider == "sqlite":
            await _driver_is_done(engine)
        reusable = not engine._calls and not engine._failed and not engine._tainted and engine._raw is not None
        if reusable and engine._dirty:
            try:
                async with asyncio.timeout(CLEAN_TIMEOUT):
                    await engine.rollback()
            except PySQLXError as error:
                # SQLite refuses a ROLLBACK when no transaction is open, which is what is wanted.
                reusable = engine._provider == "sqlite" and "no transaction is active" in error.message
            except TimeoutError:
                reusable = False
            engine._dirty = False
        self._decide(self.core.check_in, conn, reusable=reusable)

    # -- the budget's side ----------------------------------------------------------------------------------------

    def granted(self, leases: Sequence[Lease]) -> None:
        self._decide(self.core.granted, leases)

    def denied(self) -> None:
        self._decide(self.core.deny)

    def set_ceiling(self, ceiling: int | None) -> None:
        self._decide(self.core.set_ceiling, ceiling)

    def resized(self, size: int) -> None:
        self.core.budget_size = size

    def refused(self, error: BaseException) -> None:
        self._decide(self.core.fail_waiters, error)

    def tell_demand(self) -> Demand:
        with self._lock:
            return self.core.tell(time.monotonic())

    # -- start and stop -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Attach to the budget, open towards `min_size`, start the monitor. Runs in the background loop."""
        config = self.config
        with self._lock:
            if self.core.state is State.FORKED:
                raise self.core.refusal()
            if self._starting or self.core.state not in {State.NEW, State.CLOSED}:
                logger.error("Pool: Attempted to start an already opened pool.")
                raise PoolAlreadyStartedError(f"the pool {config.name} is already started")
            self._starting = True
        try:
            if registry.draining():
                raise PoolClosedError("this process is shutting down: no pool can be started any more")
            logger.info("Pool: Starting the connection pool.")
            await self._begin()
        finally:
            self._starting = False
        logger.info("Pool: Initialized with %d connections.", self.core.size)
        self._monitor = asyncio.get_running_loop().create_task(self._run_monitor())
        logger.debug("Worker: Worker-1-ConnectionMonitor starting.")
        logger.info("Pool: Workers started.")
        registry.started_well()
        await asyncio.sleep(0)  # the monitor says that it runs before start() returns

    async def _begin(self) -> None:
        config = self.config
        # A pool that is started again begins afresh, but not before the server has let go of what it had.
        if not await self._until(lambda: not self.core.held, config.conn_timeout):
            raise PoolTimeoutError(
                f"the pool {config.name} cannot be started again: {self.core.held} of its former connections are not "
                f"closed by the server after {config.conn_timeout:.1f} s"
            )
        self.core = PoolCore(config.min_size, config.max_size)
        self._counters = Counters()
        self._failures = 0
        request = PoolRequest(
            config.name, config.uri, config.min_size, config.max_size, config.max_size_stated, config.conn_timeout
        )
        budget = budget_for(request)
        self._uri = self._labelled(budget)
        try:
            await budget.attach(self)
        except BaseException:
            budget.detach()
            raise
        self._budget = budget
        try:
            with self._lock:
                self.core.budget_size = budget.size
                self.core.min_size = min(config.min_size, budget.size)
                effects = self.core.start()
            registry.running.add(self)
            self._perform(effects)
            await self._warm_up()
            if self.core.state is not State.OPEN:
                raise PoolClosedError(f"the pool {config.name} was closed while it started")
        except BaseException:
            await self._finish()
            raise

    async def _warm_up(self) -> None:
        """Wait for `min_size`, or for as much of it as the budget has now. The first connection also shows that the
        configuration works."""
        error: BaseException | None = None

        def arrived() -> bool:
            nonlocal error
            error = self.core.last_error
            return not self.core.warming or _is_permanent(error)

        if not await self._until(arrived, self.config.conn_timeout) and not self.core.size:
            raise PoolTimeoutError(
                f"no connection within {self.config.conn_timeout:.1f} s: {self.describe()}", at_start=True
            ) from error
        if error is not None and _is_permanent(error):
            raise error

    async def _until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until `condition` holds; False when `timeout` seconds pass before."""
        changed = asyncio.Event()
        self._watchers.add(changed)  # before the first look, so that no change slips through
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            return condition()
        finally:
            self._watchers.discard(changed)
        return True

    async def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Refuse check-outs, leave `timeout` seconds to connections in use, close everything, and wait until the server
        has let go. Runs in the background loop."""
        if self.core.state not in {State.OPEN, State.DRAINING}:
            raise PoolAlreadyClosedError(f"the pool {self.config.name} is already closed")
        logger.info("Pool: Stopping the connection pool.")
        self.drain()
        await self._until(lambda: not self.core.in_use, timeout)
        await self._finish()
        logger.info("Pool: All workers stopped and connections closed.")

    def drain(self) -> None:
        """No check-outs any more, from any thread."""
        with self._lock:
            effects = self.core.drain() if self.core.state is State.OPEN else Effects()
        self._perform(effects)

    async def _finish(self) -> None:
        self._decide(self.core.close)
        if self._monitor is not None:
            self._monitor.cancel()
            await asyncio.wait([self._monitor])
            self._monitor = None
        if not await self._until(lambda: not self.core.held, CLOSE_TIMEOUT):
            logger.warning(
                "Pool: %s is closed, but the server has not let go of %d connections after %.0f s; they stay charged.",
                self.config.name, self.core.held, CLOSE_TIMEOUT,
            )  # fmt: skip
            return  # the last close gives the budget back: see _perform

    def _detach(self) -> None:
        registry.running.discard(self)
        budget, self._budget = self._budget, None
        if budget is not None:
            budget.detach()

    def forget(self) -> None:
        """In a forked child: nothing of this is ours. The connections are the parent's, and so are their sockets."""
        self._lock = threading.Lock()
        inherited, self.core = self.core, PoolCore(0, 0)
        self.core.state = State.FORKED
        for conn in (*inherited.idle, *inherited.in_use, *inherited.closing):
            # One reference too many, so that it is never dropped: the driver would say goodbye to the server, or wait
            # for its threads, which this process does not have.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(conn.engine._raw))
        self._budget = self._monitor = None
        self._watchers.clear()

    def abandon(self) -> None:
        """Nobody will bring anything back any more (the pool was collected, its event loop is closed): close all."""
        if self.core.state in {State.OPEN, State.DRAINING}:
            # Not `spawn`: this may be the garbage collector's doing, anywhere.
            background().call_soon(lambda: background().spawn(self._abandon()))

    async def _abandon(self) -> None:
        if self.core.state is State.CLOSED:  # closing already: see it through
            await self._until(lambda: not self.core.held, CLOSE_TIMEOUT)
        else:
            await self.stop(timeout=0)

    # -- the monitor ----------------------------------------------------------------------------------------------

    async def _run_monitor(self) -> None:
        how = ("thread", "") if self._threads else ("task", "Async -> ")
        logger.debug("%sStarting %s: ConnectionMonitor", how[1], how[0])
        logger.debug("%sRunning %s: ConnectionMonitor", how[1], how[0])
        logger.info("Monitor: Started monitoring the pool.")
        try:
            while True:
                await asyncio.sleep(self.config.check_interval)
                if self.owner_loop is not None and self.owner_loop.is_closed():
                    self.abandon()
                    return
                self._look_after()
        finally:
            logger.debug("Worker: Worker-1-ConnectionMonitor finishing.")
            logger.info("Monitor: Stopped monitoring the pool.")
            logger.debug("%sStopping %s: ConnectionMonitor", how[1], how[0])

    def _look_after(self) -> None:
        """Retire what is too old, remove what is known to be dead, refill to `min_size`."""
        too_old = time.monotonic() - self.config.keep_alive
        with self._lock:
            idle = self.core.idle[: self.config.monitor_batch_size]
            for conn in self.core.in_use:
                conn.retire = conn.retire or conn.opened_at < too_old
        for conn in idle:
            if conn.opened_at < too_old or not conn.engine.connected or not conn.engine.is_healthy():
                self._decide(self.core.discard_idle, conn)
        self._decide(self.core.replenish)

    # -- what it says about itself --------------------------------------------------------------------------------

    def trace_request(self) -> float:
        """Log that a connection is asked for, in debug mode only. Returns the moment for `trace_retrieved`."""
        logger.debug("Getting a ready connection.")
        logger.debug("Acquired semaphore in %.5f seconds", 0.0)
        logger.debug("Pool: Growing: %s Waiting: %d", bool(self.core.opening), len(self.core.waiters) + 1)
        return time.monotonic()

    def trace_retrieved(self, conn: ConnInfo, since: float) -> None:
        logger.debug("Pool: Connection: %s retrieved in %.5f seconds.", conn, time.monotonic() - since)
        logger.debug("Pool: Growing: %s Waiting: %d", bool(self.core.opening), len(self.core.waiters))

    def describe(self) -> str:
        core = self.core
        budget = self._budget.describe() if self._budget is not None else "no budget yet"
        text = (
            f"{budget} ({core.held} here: {len(core.in_use)} in use, {len(core.idle)} idle), "
            f"{len(core.waiters)} waiting here"
        )
        return (
            f"{text}; last error: {core.last_error or repr(core.last_error)}" if core.last_error is not None else text
        )

    def stats(self) -> PoolStats:
        config, core, counters = self.config, self.core, self._counters
        with self._lock:
            return PoolStats(
                name=config.name,
                database=config.uri.identity or config.uri.masked,
                state=core.state.value,
                min_size=core.min_size,
                max_size=core.budget_size,
                size=core.size,
                in_use=len(core.in_use),
                idle=len(core.idle),
                waiting=len(core.waiters),
                opening=len(core.opening),
                closing=len(core.closing),
                held=core.held,
                requests=counters.requests,
                requests_waited=counters.requests_waited,
                timeouts=counters.timeouts,
                opened=counters.opened,
                open_errors=counters.open_errors,
                closed=counters.closed,
            )

    def _labelled(self, budget: Budget) -> DatabaseURI:
        """The URI to connect with: labelled for whoever looks at the server, and one session a connection."""
        if self._uri.provider == "postgresql":
            return with_option(self.config.uri, "application_name", budget.label(self.config.name))
        if self._uri.provider == "mysql" and "socket=" not in self.config.uri.driver_uri.partition("?")[2]:
            # The driver's default is to connect by TCP, ask for the Unix socket, and connect again: two sessions at
            # once for every connection, which no budget can allow.
            return with_option(self.config.uri, "prefer_socket", "false")
        return self.config.uri


def run_in_background(coroutine: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
    """From a task of another loop: run `coroutine` in the background loop and await the result here. Who is cancelled
    meanwhile cancels it."""
    return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, background().loop))


def call_in_background(coroutine: Coroutine[Any, Any, T]) -> T:
    """From a plain thread: run `coroutine` in the background loop and wait for the result. Who is interrupted meanwhile
    cancels it."""
    if background().is_current_thread:
        coroutine.close()
        raise RuntimeError("a pool cannot be started or stopped from its own thread (a finalizer, a log handler)")
    future = asyncio.run_coroutine_threadsafe(coroutine, background().loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def _driver_is_done(engine: PySQLXEngine) -> None:
    """Wait for calls that were cancelled, or that somebody else still makes. A server can be told that its client is
    gone, and tells when it is done; the driver's threads that work on an SQLite file can only be waited for."""
    while engine._calls:
        await engine._finish_calls()
        await asyncio.sleep(0.01)


def _is_permanent(error: BaseException | None) -> bool:
    """Whether waiting cannot cure it."""
    return isinstance(error, SettingsError) or (isinstance(error, ConnectError) and error.permanent)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _close_all_at_exit() -> None:
    """A script that never calls stop() leaves no session behind."""
    loop = background().loop if registry.running else None
    ends = [asyncio.run_coroutine_threadsafe(runtime._abandon(), loop) for runtime in list(registry.running) if loop]
    deadline = time.monotonic() + EXIT_TIMEOUT
    for end in ends:
        with contextlib.suppress(Exception):
            end.result(max(0.0, deadline - time.monotonic()))
    # What takes longer than that is cut off on our side, and then waited for: a thread of the driver that comes back
    # while the interpreter ends would abort the process.
    cut = [conn for runtime in list(registry.running) for conn in list(runtime.core.closing)]
    for conn in cut:
        conn.session.cut()
    for conn in cut:
        end = asyncio.run_coroutine_threadsafe(conn.engine._finish_calls(), background().loop)
        with contextlib.suppress(Exception):
            end.result(0.5)


def _forget_all_in_child() -> None:
    for runtime in list(registry.running):
        runtime.forget()
    registry.running.clear()


at_exit(_close_all_at_exit)
os.register_at_fork(after_in_child=_forget_all_in_child)

__all__ = ["PoolClosedError", "PoolRuntime", "call_in_background", "run_in_background"]
