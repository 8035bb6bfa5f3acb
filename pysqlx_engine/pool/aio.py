"""The asyncio face of a pool."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

from ..engine.connection import PySQLXEngine
from .core import ConnInfo
from .face import PoolFace
from .runtime import STOP_TIMEOUT, logger, run_in_background


class PySQLXEnginePool(PoolFace):
    """A pool of connections for asyncio. Parameters: see `PoolFace`."""

    _threads = False

    async def start(self) -> None:
        """Open connections towards `min_size` and start the monitor.

        Raises PoolAlreadyStartedError; ConnectError when the database refuses the configuration (wrong password,
        unknown database); PoolTimeoutError when the server, or the coordinator, cannot be reached within
        `conn_timeout`; PoolRefusedError when another script of the run states a different `max_size`.
        """
        await run_in_background(self._runtime.start())
        self._runtime.owner_loop = asyncio.get_running_loop()

    async def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Close the pool: check-outs and waiters get PoolClosedError, connections in use may be used for `timeout`
        seconds, then they are closed too. Returns when the server has let go of them. Raises PoolAlreadyClosedError.
        """
        # Shielded: a stop that somebody is tired of waiting for is still a stop.
        await asyncio.shield(run_in_background(self._runtime.stop(timeout)))

    def connection(self) -> AsyncCheckout:
        """`async with pool.connection() as conn:` checks a connection out and, at the end, in again.

        Raises PoolTimeoutError after `conn_timeout` seconds, PoolClosedError when the pool is not started or closes,
        ConnectError when the database refuses the configuration.
        """
        return AsyncCheckout(self)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.closed:
            await self.stop()


class AsyncCheckout:
    """One check-out of an asyncio pool."""

    __slots__ = ("_conn", "_entered", "_pool")

    def __init__(self, pool: PySQLXEnginePool) -> None:
        self._pool = pool  # the pool itself, so that it is not collected while one of its connections is in use
        self._conn: ConnInfo | None = None
        self._entered = False

    async def __aenter__(self) -> PySQLXEngine:
        if self._entered:
            raise RuntimeError("this check-out is in use: call connection() for each")
        self._entered = True
        runtime = self._pool._runtime
        runtime.owner_loop = asyncio._get_running_loop()
        traced = runtime.trace_request() if logger.isEnabledFor(logging.DEBUG) else None
        conn = runtime.try_check_out()
        if conn is None:
            conn = await runtime.wait_in_task(runtime.config.conn_timeout)
        self._conn = conn
        if traced is not None:
            runtime.trace_retrieved(conn, traced)
        face: PySQLXEngine = conn.face
        return face

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        conn, self._conn = self._conn, None
        if conn is None:
            return
        self._pool._runtime.check_in_after(conn, exc_type)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("Pool: Connection returned to pool: %s", conn)
