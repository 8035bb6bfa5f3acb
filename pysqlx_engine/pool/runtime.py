"""The shell around the core: takes the lock, lets the core decide, and performs what it decided.

Both faces (asyncio and threads) are a few lines on top of this; everything that talks to a server runs in the
background thread. The lock is held for the core's decisions only: never while something is awaited, sent or logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import ctypes
import itertools
import logging
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

from .. import tracing
from ..engine.connection import FORKED_MESSAGE, PySQLXEngine
from ..engine.driving import calls_in_flight, stay_if_leaving
from ..engine.spans import target_of
from ..errors import (
    ConnectError,
    PoolAlreadyClosedError,
    PoolAlreadyStartedError,
    PoolClosedError,
    PoolError,
    PoolForkedError,
    PoolLoopError,
    PoolTimeoutError,
    PySQLXError,
    SettingsError,
)
from ..log_config import part
from . import registry
from .background import background
from .budget import Budget, BudgetProvider, Demand, Lease, OrphanedSession, PoolRequest, budget_for
from .config import PoolConfig, check_sizes, check_timeout
from .core import OURSELVES, ConnInfo, Effects, PoolCore, State, Waiter
from .hooks import Hooks
from .monitor import run_monitor
from .outage import Outage
from .stats import Counters, PoolStats
from .upkeep import Upkeep

logger = part("pool")

P = ParamSpec("P")
T = TypeVar("T")

_numbers = itertools.count(1)

LOCK_TIMEOUT = 0.5
"""Seconds after which the lock, which is never held for longer than microseconds, is one's own."""
CLOSE_TIMEOUT = 10.0
"""Seconds that `stop` waits for the server to let go of what was closed."""
START_TIMEOUT = 30.0
"""Seconds that `start` waits for connections where check-outs do not wait at all."""
START_FAILED_TIMEOUT = 1.0
"""The same for a `start` that has failed: who waited for it has waited enough."""
STOP_TIMEOUT = 5.0
"""Seconds that `stop` leaves to connections in use before it closes them."""


class PoolRuntime:
    def __init__(self, config: PoolConfig, face: weakref.ref[Any], *, threads: bool) -> None:
        self.config = config
        self._face = face
        """The pool as its users have it. Not kept alive from here: nobody but them may."""
        self._threads = threads
        self._lock = threading.Lock()
        self.core = self._new_core()
        self.upkeep = Upkeep(config, self._hooks, threads=threads, borrow=self._borrow, give_back=self.check_in)
        self.traces_stacks = config.leak_threshold is not None
        self._needs_cleaning = self._hooks().reset is not None
        self._uri = config.uri
        self._target: tracing.Target | None = None
        self._budget: Budget | None = None
        self._watchers: set[asyncio.Event] = set()
        """Of those that wait for a change of the state in `start` and `stop`; they live in the background loop."""
        self._monitor: asyncio.Task[None] | None = None
        self.provider: BudgetProvider = budget_for
        self.owner_loop: asyncio.AbstractEventLoop | None = None
        """The loop that an asyncio pool was started in. When it is closed, nobody brings a connection back."""
        self._starting = False
        self._compared = False
        """Whether the budget was compared with what the server takes."""
        self._outage = Outage(config.reconnect_timeout)
        self._counters = Counters()
        self.number = 0
        """Of this start of the pool, among all starts of pools in this process: each counts from 0."""

    def _hooks(self) -> Hooks:
        face = self._face()
        hooks: Hooks = Hooks() if face is None else face._hooks
        return hooks

    def _new_core(self) -> PoolCore:
        config = self.config
        return PoolCore(
            config.min_size,
            config.max_size,
            check_after=config.check_after,
            max_waiting=config.max_waiting,
            fail_fast=config.fail_fast,
        )

    # -- check-out and check-in: the calling task's or thread's side ---------------------------------------------

    # `holder` is who asks, a task or thread; `checkout` is for what, one `with` block. Identities, no references.

    def try_check_out(self, holder: int, checkout: int) -> ConnInfo | None:
        """An idle connection at once, or None. Raises PoolClosedError."""
        now = time.monotonic()
        with self._lock:
            conn = self.core.check_out(now, holder, checkout)
            if conn is not None:  # else it is counted by `_queue`
                self._counters.requests += 1
            return conn

    def _try_check_out_untested(self, holder: int, checkout: int) -> ConnInfo | None:
        """For those who cannot wait for a test: an idle connection that shows no sign of being dead, or None."""
        while True:
            with self._lock:
                conn = self.core.check_out_untested(time.monotonic(), holder, checkout)
            if conn is None:
                return None
            if conn.session.seems_alive():
                with self._lock:
                    self._counters.requests += 1
                return conn
            self._decide(self.core.check_in, conn, reusable=False)

    def lock_is_free(self) -> bool:
        """Whether the calling thread can take the lock, which it cannot while it has it."""
        free = self._lock.acquire(blocking=False)
        if free:
            self._lock.release()
        return free

    def reclaim(self, checkout: int) -> None:
        """Check in what a check-out has, if it still has it: it was interrupted, perhaps by a signal's handler, or
        nobody is there any more to do so."""
        with self._lock:
            conn = self.core.reclaim(checkout)
        if conn is not None:
            self.check_in(conn)

    def loop_error(self, loop: asyncio.AbstractEventLoop) -> PoolLoopError | None:
        """What is wrong with using an asyncio pool in `loop`."""
        owner = self.owner_loop
        if owner is loop or owner is None or self.core.state is not State.OPEN:
            return None
        name = self.config.name
        if owner.is_closed():
            return PoolLoopError(
                f"the event loop that the pool {name} was started in is closed, and with it the pool: start() it again "
                "in this one"
            )
        return PoolLoopError(
            f"the pool {name} was started in another event loop, which still runs: start a pool in each loop, or use "
            "PySQLXEnginePoolSync"
        )

    async def wait_in_task(self, timeout: float, owner: int, checkout: int, *, first: bool = False) -> ConnInfo:
        if not timeout and (conn := self._try_check_out_untested(owner, checkout)) is not None:
            return conn
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if asyncio._get_running_loop() is loop:
                _set(future)
            else:
                loop.call_soon_threadsafe(_set, future)

        waiter = Waiter(wake, owner, checkout)
        timer = loop.call_later(timeout, _set, future)
        since = time.monotonic()
        try:
            self._queue(waiter, since, first=first)
            await future
        except GeneratorExit:
            # The garbage collector closes a task that nobody ran to its end, perhaps from inside one of our locks.
            background().call_soon(self._leave, waiter, since)
            raise
        except PoolError:
            raise  # it was refused a place in the queue
        except BaseException:
            self._leave(waiter, since)
            raise
        finally:
            timer.cancel()
        return self._settle(waiter, since, timeout)

    def wait_in_thread(self, timeout: float, owner: int, checkout: int) -> ConnInfo:
        if not timeout and (conn := self._try_check_out_untested(owner, checkout)) is not None:
            return conn
        gate = threading.Lock()
        gate.acquire()
        waiter = Waiter(gate.release, owner, checkout)
        since = time.monotonic()
        try:
            self._queue(waiter, since)
            gate.acquire(timeout=min(timeout, threading.TIMEOUT_MAX))
        except PoolError:
            raise  # it was refused a place in the queue
        except BaseException:
            self._leave(waiter, since)
            raise
        stay_if_leaving()
        return self._settle(waiter, since, timeout)

    def check_in(self, conn: ConnInfo) -> None:
        """Take `conn` back from whoever used it."""
        engine = conn.engine
        if engine._dirty or engine._in_flight or self._needs_cleaning:
            if self.core.state is not State.FORKED:  # in a child it is the parent's
                background().spawn(self._clean(conn, conn.checkout))
            return
        conn.last_used = now = time.monotonic()
        with self._lock:  # as `_decide` does: this is the hot path, and saves the call
            hold, held = self._counters.hold, now - conn.checked_out_at
            hold.buckets[int(held * 1e6).bit_length()] += 1  # `observe`, without the call
            hold.sum += held
            effects = self.core.check_in(conn)
        if effects is None:
            return
        if type(effects) is Waiter:
            self._wake(effects)
            if self._watchers:
                background().loop.call_soon_threadsafe(self._notify)
        else:
            self._perform(effects)  # type: ignore[arg-type]

    def _leave(self, waiter: Waiter, since: float) -> None:
        """`waiter` was cancelled, perhaps in the very moment of the hand-over: then its connection goes to the next."""
        conn = self._give_up(waiter)
        self._count_wait(waiter, since)
        if conn is not None:
            self.check_in(conn)

    def _count_wait(self, waiter: Waiter, since: float, *, timed_out: bool = False) -> None:
        if waiter.owner != OURSELVES:
            with self._lock:
                self._counters.wait.observe(time.monotonic() - since)
                self._counters.timeouts += timed_out

    def _queue(self, waiter: Waiter, now: float, *, first: bool = False) -> None:
        with self._lock:
            effects = self.core.wait(waiter, now, first=first)
            if waiter.owner != OURSELVES:
                self._counters.requests += 1
                self._counters.requests_waited += 1
        if effects is not None:
            self._perform(effects)

    def _give_up(self, waiter: Waiter) -> ConnInfo | None:
        with self._lock:
            conn, effects = self.core.give_up(waiter)
        if effects is not None:
            self._perform(effects)
        return conn

    def _settle(self, waiter: Waiter, since: float, timeout: float) -> ConnInfo:
        """After the wait: a connection, an error, or neither, which means that time is up."""
        # Leaving the queue may still find a connection that was handed over in this very moment: then it is ours.
        conn = waiter.conn or self._give_up(waiter)
        self._count_wait(waiter, since, timed_out=conn is None and waiter.error is None)
        if conn is not None:
            conn.checked_out_at = time.monotonic()
            return conn
        if waiter.error is not None:
            raise _copied(waiter.error)
        diagnosis = self._diagnosis(waiter.owner)
        raise PoolTimeoutError(f"no connection within {timeout:.1f} s: {self.describe()}{diagnosis}")

    def _diagnosis(self, owner: int) -> str:
        with self._lock:
            if not self.core.waits_for_itself(owner):
                return ""
            held = len(self.core.in_use)
        who = "thread" if self._threads else "task"
        return (
            f". This looks like a dead-lock: the {who} holds a connection of this pool while it waits for another"
            + (f", as do all that hold one of the {held} in use" if held > 1 else "")
            + f": use one connection for each {who}, or raise max_size above the number of {who}s that nest check-outs"
        )

    # -- performing what the core decided -------------------------------------------------------------------------

    def _decide(self, event: Callable[P, Effects | Waiter | None], *arguments: P.args, **named: P.kwargs) -> None:
        """Let the core decide on an event, and perform what it decided."""
        with self._lock:
            effects = event(*arguments, **named)
        if isinstance(effects, Waiter):
            effects = Effects(wake=[effects])
        if effects is not None:
            self._perform(effects)

    def _wake(self, waiter: Waiter) -> None:
        try:
            waiter.wake()
        except RuntimeError:  # its event loop is closed: nobody is there to take the connection
            if waiter.conn is not None:
                background().call_soon(self.check_in, waiter.conn)  # not here: there may be thousands of them

    def _perform(self, effects: Effects) -> None:
        for waiter in effects.wake:
            self._wake(waiter)
        for lease in effects.open:
            background().spawn(self._open(lease))
        for conn in effects.test:
            background().spawn(self._test(conn))
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
        budget = self._budget
        if budget is not None and not budget.connecting(lease):
            self._decide(self.core.not_allowed, lease)
            return
        started = time.monotonic()
        try:
            conn = await self.upkeep.open(lease, lambda error: self._open_failed(lease, error, given_up=True))
        except Exception as error:  # noqa: BLE001 - whatever it is, the lease must not stay here
            if lease in self.core.given_up:
                self._decide(self.core.login_ended, lease)
            else:
                self._open_failed(lease, error)
            return
        self._outage.succeeded(at_limit=self.core.server_limit is not None)
        with self._lock:
            self._counters.opened += 1
            self._counters.open.observe(conn.opened_at - started)
            effects = self.core.opened(conn)
            size = self.core.size
        if budget is not None:  # not before: what it disowns from now on is looked for among those that are open
            budget.opened(lease, conn.session)
        logger.debug("Pool: New connection created: %s PoolSize: %d", conn, size)
        if not self._compared:
            self._compare_with_server(conn.session.server_limit)
        self._perform(effects)

    def _open_failed(self, lease: Lease, error: Exception, *, given_up: bool = False) -> None:
        name, at_limit = self.config.name, isinstance(error, ConnectError) and error.at_server_limit
        with self._lock:
            self._counters.open_errors += 1
            effects = self.core.open_failed(
                lease, error, permanent=_is_permanent(error), at_limit=at_limit, given_up=given_up
            )
            limit = self.core.server_limit
        failure = self._outage.failed(time.monotonic(), suffered=not (at_limit and self.core.size))
        if at_limit:
            pause, first = self._outage.refused()
            level = logging.WARNING if first else logging.DEBUG
            logger.log(
                level, "Pool: %s: the server takes no more connections (%s); going on with %d", name, error, limit
            )
            background().call_later(pause, self._lift_limit)
        else:
            # Said once for each time the server is lost; what `start` cannot open it raises itself.
            level = logging.WARNING if self._monitor is not None and failure.first else logging.DEBUG
            logger.log(level, "Pool: %s could not open a connection: %s", name, str(error) or repr(error))
        if failure.retry_in is not None:
            background().call_later(failure.retry_in, self._try_again)
        if failure.lost:
            background().spawn(self._reconnect_failed())
        self._perform(effects)

    async def _reconnect_failed(self) -> None:
        hook, face = self._hooks().reconnect_failed, self._face()
        if hook is not None and face is not None:
            try:
                await self.upkeep.call(hook, face)
            except Exception as error:  # noqa: BLE001 - the user's code: whatever it is
                logger.warning("Pool: %s: reconnect_failed failed: %r", self.config.name, error)

    def _try_again(self) -> None:
        self._decide(self.core.try_again)
        self._outage.tried_again(needed=bool(self.core.opening or self.core.demand().want))

    def _lift_limit(self) -> None:
        self._decide(self.core.lift_limit)

    async def _borrow(self, patience: float, first: bool = False) -> ConnInfo:
        """A connection for the pool's own use. Raises PoolTimeoutError."""
        return await self.wait_in_task(patience, OURSELVES, OURSELVES, first=first)

    async def _test(self, conn: ConnInfo) -> None:
        alive = await self.upkeep.is_alive(conn)
        if not alive:
            self._counters.found_dead += 1
        self._decide(self.core.tested, conn, time.monotonic(), alive=alive)

    async def _close(self, conn: ConnInfo) -> None:
        started = time.monotonic()
        logger.info("Removed: %s from pool, the conn was open for %.5f secs", conn, started - conn.opened_at)
        if self._budget is not None:
            self._budget.closing(conn.lease)
        await self.upkeep.drop(conn)
        with self._lock:
            self._counters.closed += 1
            self._counters.close.observe(time.monotonic() - started)
        self._decide(self.core.closed, conn)

    async def _clean(self, conn: ConnInfo, checkout: int) -> None:
        """What `check_in` does, after making the connection fit for the next one."""
        if conn.checkout != checkout:
            return  # checked in twice: the first time was interrupted, but not before it had come here
        conn.checkout = conn.holder = OURSELVES
        engine: PySQLXEngine = conn.engine
        released = time.monotonic()
        rolled_back = engine._in_transaction
        reusable = await self.upkeep.clean(conn)
        conn.last_used = time.monotonic()
        with self._lock:
            self._counters.hold.observe(released - conn.checked_out_at)
            self._counters.rolled_back += rolled_back
        self._decide(self.core.check_in, conn, reusable=reusable)
        if engine._failed:
            self._decide(self.core.doubt)

    # -- the budget's side ----------------------------------------------------------------------------------------

    def granted(self, leases: Sequence[Lease]) -> None:
        self._decide(self.core.granted, leases)

    def denied(self) -> None:
        self._decide(self.core.deny)

    def set_ceiling(self, ceiling: int | None) -> None:
        self._decide(self.core.set_ceiling, ceiling)

    def resized(self) -> None:
        budget = self._budget
        if budget is not None:
            self._decide(lambda: self.core.resized(budget.size))  # asked with the lock: the last one to come is right

    def refused(self, error: BaseException) -> None:
        self._decide(self.core.fail_waiters, error)

    def suspend(self) -> None:
        self._decide(self.core.suspend)

    def resume(self) -> None:
        self._decide(self.core.resume)

    def disown(self, leases: Sequence[Lease]) -> None:
        self._decide(self.core.disown, leases)

    def end_sessions(self, sessions: Sequence[OrphanedSession]) -> None:
        background().spawn(self._end_sessions(sessions))

    async def _end_sessions(self, sessions: Sequence[OrphanedSession]) -> None:
        budget = self._budget
        try:
            gone = await self.upkeep.end_sessions(sessions)
        except (PoolError, PySQLXError, TimeoutError) as error:  # somebody else is asked then
            logger.debug("Pool: %s could not end sessions of dead processes: %s", self.config.name, error)
            return
        if budget is not None:
            budget.ended(gone)

    def tell_demand(self) -> Demand:
        with self._lock:
            return self.core.tell(time.monotonic())

    def tell_counters(self) -> Counters:
        with self._locked_or_interrupted():
            return copy.deepcopy(self._counters)

    # -- start and stop -------------------------------------------------------------------------------------------

    async def start(self, hooks: Hooks, user_loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Attach to the budget, open towards `min_size`, start the monitor. Runs in the background loop; `user_loop` is
        the one that an asyncio pool is used in, `hooks` are the face's for this time."""
        config = self.config
        if self.owner_loop is not None and self.owner_loop.is_closed():
            await self.close_at_once()
        with self._lock:
            if self.core.state is State.FORKED:
                raise self.core.refusal()
            if calls_in_flight.left_behind:
                raise PoolForkedError(FORKED_MESSAGE)
            if self._starting or self.core.state not in {State.NEW, State.CLOSED}:
                logger.error("Pool: Attempted to start an already opened pool.")
                raise PoolAlreadyStartedError(f"the pool {config.name} is already started")
            self._starting = True
        try:
            if registry.stopping():
                raise PoolClosedError("this process is shutting down: no pool can be started any more")
            logger.info("Pool: Starting the connection pool.")
            self.owner_loop = self.upkeep.user_loop = user_loop
            if (face := self._face()) is not None:
                face._hooks = hooks
            await self._begin()
        finally:
            self._starting = False

    @property
    def _start_timeout(self) -> float:
        return self.config.conn_timeout or START_TIMEOUT

    async def _begin(self) -> None:
        config = self.config
        timeout = self._start_timeout
        # A pool that is started again begins afresh, but not before the server has let go of what it had.
        if not await self._until(lambda: not self.core.held, timeout):
            raise PoolTimeoutError(
                f"the pool {config.name} cannot be started again: {self.core.held} of its former connections are not "
                f"closed by the server after {timeout:.1f} s"
            )
        self.core = self._new_core()
        self._counters, self.number = Counters(), next(_numbers)
        self._outage = Outage(config.reconnect_timeout)
        self._compared = False
        self._uri = uri = await self.upkeep.begin()
        self._target = target_of(uri)
        tracing.look()  # check-outs do not
        request = PoolRequest(config.name, uri, config.min_size, config.max_size, config.max_size_stated, timeout)
        budget = self.provider(request)
        self.upkeep.label(budget.label(config.name))
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
            logger.info("Pool: Initialized with %d connections.", self.core.size)
            self._monitor = asyncio.get_running_loop().create_task(run_monitor(self, threads=self._threads))
            logger.debug("Worker: Worker-1-ConnectionMonitor starting.")
            logger.info("Pool: Workers started.")
            registry.started_well()
            await asyncio.sleep(0)  # the monitor says that it runs before start() returns
        except BaseException:
            await self._finish(START_FAILED_TIMEOUT)
            raise

    async def _warm_up(self) -> None:
        """Wait for `min_size`, or for as much of it as the budget has now. The first connection also shows that the
        configuration works."""
        error: BaseException | None = None

        def arrived() -> bool:
            nonlocal error
            error = self.core.last_error
            return not self.core.warming or _is_permanent(error)

        timeout = self._start_timeout
        if not await self._until(arrived, timeout) and not self.core.size:
            raise PoolTimeoutError(f"no connection within {timeout:.1f} s: {self.describe()}", at_start=True) from error
        if error is not None and _is_permanent(error):
            raise error

    def _compare_with_server(self, limit: int | None) -> None:
        """Warn, with the first connection, of a budget that the server will not carry."""
        self._compared, size = True, self.core.budget_size
        if limit is not None and size > limit:
            logger.warning(
                "Pool: %s: max_size is %d, but the server takes at most %d connections from all its users: what is "
                "asked for beyond that will wait", self.config.name, size, limit,
            )  # fmt: skip

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
        if not self.core.running:
            raise PoolAlreadyClosedError(f"the pool {self.config.name} is already closed")
        logger.info("Pool: Stopping the connection pool.")
        core = self.core  # another one takes its place if the pool is started again meanwhile
        self.refuse_check_outs()
        await self._until(lambda: not core.in_use, timeout)
        if core.state is State.STOPPING:
            await self._finish()
        else:  # somebody else has stopped it meanwhile
            await self._until(lambda: not core.held, CLOSE_TIMEOUT)
        logger.info("Pool: All workers stopped and connections closed.")

    async def stop_whatever_comes(self, timeout: float) -> None:
        """A stop that somebody is tired of waiting for is still a stop."""
        await asyncio.shield(self.stop(timeout))

    def refuse_check_outs(self) -> None:
        """The first half of `stop`: no check-outs any more, from any thread."""
        with self._lock:
            effects = self.core.stop() if self.core.state is State.OPEN else Effects()
        self._perform(effects)

    async def _finish(self, timeout: float = CLOSE_TIMEOUT) -> None:
        core, monitor, self._monitor = self.core, self._monitor, None
        self._decide(core.close)
        if monitor is not None:
            monitor.cancel()
            await asyncio.wait([monitor])
        if not await self._until(lambda: not core.held, timeout):
            logger.warning(
                "Pool: %s is closed, but the server has not let go of %d connections after %.0f s; they stay charged.",
                self.config.name, core.held, timeout,
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
        for conn in (*inherited.idle, *inherited.in_use, *inherited.testing, *inherited.closing):
            # One reference too many, so that it is never dropped: the driver would say goodbye to the server, or wait
            # for its threads, which this process does not have.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(conn.engine._raw))
        self._budget = self._monitor = None
        self._watchers.clear()

    def abandon(self) -> None:
        """Nobody will bring anything back any more (the pool was collected, its event loop is closed): close all."""
        if self.core.running:
            # Not `spawn`: this may be the garbage collector's doing, anywhere.
            background().call_soon(lambda: background().spawn(self.close_at_once()))

    def collected(self) -> None:
        """The pool was garbage-collected."""
        in_use = len(self.core.in_use) if self.core.running else 0
        self.abandon()  # before the warning, which may be an error
        if in_use:
            logger.warning("Pool: %s was collected while %d connections were in use.", self.config.name, in_use)
            warnings.warn(
                f"the pool {self.config.name} was collected while {in_use} of its connections were in use; they are "
                "closed: keep the pool for as long as it is used, and check out by `with pool.connection() as conn:`",
                ResourceWarning,
                stacklevel=2,
            )

    async def close_at_once(self) -> None:
        """Stop without leaving time to anybody; see a stop through that is under way. Runs in the background loop."""
        core = self.core
        if core.state is State.CLOSED:  # closing already: see it through
            await self._until(lambda: not core.held, CLOSE_TIMEOUT)
        elif core.running:
            await self.stop(timeout=0)

    # -- changes while it runs ------------------------------------------------------------------------------------

    def resize(self, min_size: int, max_size: int) -> None:
        """Raises ValueError, TypeError, PoolClosedError, and PoolRefusedError where others share the budget."""
        check_sizes(min_size, max_size)
        budget = self._budget
        if budget is None or self.core.state is not State.OPEN:
            raise self.core.refusal()
        if max_size != budget.size:
            budget.resize(max_size)
        self._decide(self.core.resize, min_size)

    async def replace_all(self) -> None:
        """Replace every connection by a new one. Runs in the background loop; returns when those that were idle have
        been replaced, those in use are when they come back."""
        if self.core.state is not State.OPEN:
            raise self.core.refusal()
        with self._lock:
            idle = self.core.retire_all()
        for conn in reversed(idle):  # one after the other: the rest still serve meanwhile
            self._decide(self.core.discard_idle, conn)
            await self._until(lambda conn=conn: self._replaced(conn), CLOSE_TIMEOUT)  # type: ignore[misc]

    def recall(self) -> None:
        """`BudgetClient.recall`."""
        with self._lock:
            idle = self.core.retire_all()
        for conn in idle:
            self._decide(self.core.discard_idle, conn)

    def _replaced(self, conn: ConnInfo) -> bool:
        core = self.core
        gone = conn not in core.closing
        return core.state is not State.OPEN or (gone and not core.opening and (not core.warming or core.backing_off))

    # -- what it says about itself --------------------------------------------------------------------------------

    def trace_request(self) -> float:
        """Log that a connection is asked for, in debug mode only. Returns the moment for `trace_retrieved`."""
        logger.debug("Getting a ready connection.")
        logger.debug("Acquired semaphore in %.5f seconds", 0.0)
        logger.debug("Pool: Growing: %s Waiting: %d", bool(self.core.opening), len(self.core.waiters) + 1)
        return time.monotonic()

    def span(self) -> tracing.Span | None:
        """Of a check-out that begins, where somebody wants one."""
        return tracing.checking_out(self.config.name, self._target)

    def trace_retrieved(self, conn: ConnInfo, since: float) -> None:
        logger.debug("Pool: Connection: %s retrieved in %.5f seconds.", conn, time.monotonic() - since)
        logger.debug("Pool: Growing: %s Waiting: %d", bool(self.core.opening), len(self.core.waiters))

    def describe(self) -> str:
        core = self.core
        budget = self._budget.describe() if self._budget is not None else "no budget yet"
        passing = {"testing": len(core.testing), "opening": len(core.opening), "closing": core.returning}
        rest = "".join(f", {count} {what}" for what, count in passing.items() if count)
        text = (
            f"{budget} ({core.held} here: {len(core.in_use)} in use, {len(core.idle)} idle{rest}), "
            f"{len(core.waiters)} waiting here"
        )
        return (
            f"{text}; last error: {str(core.last_error) or repr(core.last_error)}"
            if core.last_error is not None
            else text
        )

    def stats(self) -> PoolStats:
        core, counters = self.core, self._counters
        with self._locked_or_interrupted():
            return PoolStats(
                name=self.config.name,
                database=self.database,
                state=core.state.value,
                min_size=core.min_size,
                max_size=core.budget_size,
                size=core.size,
                in_use=len(core.in_use),
                idle=len(core.idle),
                waiting=len(core.waiters),
                opening=len(core.opening),
                closing=core.returning,
                held=core.held,
                requests=counters.requests,
                requests_waited=counters.requests_waited,
                timeouts=counters.timeouts,
                opened=counters.opened,
                open_errors=counters.open_errors,
                closed=counters.closed,
                found_dead=counters.found_dead,
                rolled_back=counters.rolled_back,
                wait=counters.wait.snapshot(zeros=counters.found_idle),
                hold=counters.hold.snapshot(),
                open=counters.open.snapshot(),
                close=counters.close.snapshot(),
            )

    @contextlib.contextmanager
    def _locked_or_interrupted(self) -> Iterator[bool]:
        """With the lock; without it, where a signal's handler has interrupted this very thread while it had the lock,
        and would wait for itself. Gives whether it has the lock."""
        locked = self._lock.acquire(timeout=LOCK_TIMEOUT)
        try:
            yield locked
        finally:
            if locked:
                self._lock.release()

    def stop_later(self, timeout: float) -> bool:
        """Have the pool stopped when a signal's handler has interrupted it, which cannot wait for that. False when none
        has. Raises PoolAlreadyClosedError, ValueError and TypeError."""
        check_timeout(timeout)
        if not self.core.running:
            raise PoolAlreadyClosedError(f"the pool {self.config.name} is already closed")
        with self._locked_or_interrupted() as locked:
            if not locked:
                background().spawn(self.stop(timeout))
            return not locked

    @property
    def database(self) -> str:
        """What may be shown of the URI."""
        if self._uri is None:
            return "(named by a function when the pool starts)"
        return self._uri.identity or self._uri.masked


def _copied(error: BaseException) -> BaseException:
    """One error may be told to many: each gets a copy, or they would collect each other's tracebacks."""
    try:
        return copy.copy(error).with_traceback(None)
    except Exception:  # noqa: BLE001 - a user's exception that cannot be made again from its arguments
        return PoolError(f"no connection: {error!r}")


def _is_permanent(error: BaseException | None) -> bool:
    """Whether waiting cannot cure it."""
    return isinstance(error, SettingsError) or (isinstance(error, ConnectError) and error.permanent)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
