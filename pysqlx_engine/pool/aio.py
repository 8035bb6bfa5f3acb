"""The asyncio face of a pool."""

from __future__ import annotations

import asyncio
import sys
from asyncio import current_task, get_running_loop
from collections.abc import Awaitable, Callable
from logging import DEBUG
from types import TracebackType
from typing import Any, Self

from .. import tracing
from ..engine.connection import PySQLXEngine
from .background import background, run_in_background
from .checkout import CheckoutBase, ids
from .config import check_timeout
from .face import PoolFace
from .leaks import stack_of
from .runtime import STOP_TIMEOUT, logger

_ConnHook = Callable[[PySQLXEngine], Awaitable[object]]
_PoolHook = Callable[[Any], object]
_UriHook = Callable[[], str | Awaitable[str]]


class PySQLXEnginePool(PoolFace[_ConnHook, _PoolHook, _UriHook]):
    """A pool of connections for asyncio. Parameters: see `PoolFace`. The functions that it takes are coroutine
    functions (`uri` and `reconnect_failed` may be plain ones) and run in the loop that the pool was started in."""

    _threads = False

    async def start(self) -> None:
        """Open connections towards `min_size` and start the monitor.

        Raises PoolAlreadyStartedError; ConnectError when the database refuses the configuration (wrong password,
        unknown database); PoolTimeoutError when the server, or the coordinator, cannot be reached within
        `conn_timeout`; PoolRefusedError when another script of the run states a different `max_size`.
        """
        runtime = self._runtime
        start = runtime.start(self._hooks.started_here(), asyncio.get_running_loop())
        await run_in_background(start, undo=runtime.close_at_once)

    async def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Close the pool: check-outs and waiters get PoolClosedError, connections in use may be used for `timeout`
        seconds, then they are closed too. Returns when the server has let go of them. Raises PoolAlreadyClosedError.
        """
        if not self._runtime.stop_later(timeout):
            await run_in_background(self._runtime.stop_whatever_comes(timeout))

    async def drain(self) -> None:
        """Replace every connection by a new one while the pool goes on serving: those that are idle one after the
        other, those in use when they come back. Returns when no idle one is left. Raises PoolClosedError."""
        await run_in_background(self._runtime.replace_all())

    def connection(self, timeout: float | None = None) -> AsyncCheckout:
        """`async with pool.connection() as conn:` checks a connection out and, at the end, in again.

        `timeout`: seconds to wait for it, in place of `conn_timeout`. Raises PoolTimeoutError after that time,
        PoolClosedError when the pool is not started or closes, PoolQueueFullError when `max_waiting` wait already,
        PoolLoopError in another event loop, ConnectError when the database refuses the configuration.
        """
        if timeout is not None:
            check_timeout(timeout)
        return AsyncCheckout(self, timeout)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._runtime.core.running:
            await self.stop()


class AsyncCheckout(CheckoutBase):
    """One check-out of an asyncio pool."""

    __slots__ = ()

    async def __aenter__(self) -> PySQLXEngine:
        if self._id:
            raise RuntimeError("a check-out serves once: call connection() for each")
        self._id = checkout = next(ids)
        runtime = self._pool._runtime
        loop = get_running_loop()
        if runtime.owner_loop is not loop and (error := runtime.loop_error(loop)) is not None:
            raise error
        traced = runtime.trace_request() if logger.isEnabledFor(DEBUG) else None
        span = runtime.span() if tracing.on else None
        holder = id(current_task(loop))
        try:
            conn = runtime.try_check_out(holder, checkout)
            if conn is None:
                tracing.waits(span)
                timeout = runtime.config.conn_timeout if self._timeout is None else self._timeout
                conn = await runtime.wait_in_task(timeout, holder, checkout)
            self._conn, self._face = conn, conn.face
            if runtime.traces_stacks:
                conn.stack = stack_of(sys._getframe(1))
            if traced is not None:
                self._traced = True
                runtime.trace_retrieved(conn, traced)
            if span is not None:
                tracing.ended(span)
        except GeneratorExit:  # the garbage collector's work, see `wait_in_task`
            if span is not None:  # whoever exports it may take a lock that is held here
                background().call_soon(tracing.ended, span)
            raise
        except BaseException as error:
            self._conn = self._face = None
            runtime.reclaim(checkout)
            tracing.failed(span, error)
            tracing.ended(span)
            raise
        face: PySQLXEngine = conn.face
        return face

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(exc_type)
