"""The asyncio face of a pool."""

from __future__ import annotations

import asyncio
import logging
import weakref
from types import TracebackType
from typing import Self

from ..engine.connection import PySQLXEngine
from .config import pool_config
from .core import ConnInfo, State
from .runtime import STOP_TIMEOUT, PoolRuntime, logger, run_in_background
from .stats import PoolStats


class PySQLXEnginePool:
    """A pool of connections for asyncio.

    Args:
        uri: database URI, for example `sqlite:./dev.db`. Left out: the setting PYSQLX_URI.
        min_size: connections opened by `start` and kept open when nobody else needs them; 0 to `max_size`.
            Left out: PYSQLX_MIN_SIZE, else 1.
        max_size: most connections, of this pool or, in a process that joined a coordinator, of all pools of all its
            processes to this database together; at least 1. Left out: PYSQLX_MAX_SIZE, else 10.
        conn_timeout: seconds that a check-out waits for a connection.
        keep_alive: seconds after which a connection is replaced by a new one.
        check_interval: seconds between two rounds of the monitor, which retires, removes and refills connections.
        monitor_batch_size: idle connections that one round of the monitor looks at.
        name: how logs, statistics and the server's session list call the pool.

    Raises ValueError or TypeError for a parameter outside its range, ConnectError for a URI that no driver takes.
    """

    def __init__(
        self,
        uri: str | None = None,
        min_size: int | None = None,
        max_size: int | None = None,
        conn_timeout: float = 30.0,
        keep_alive: float = 60 * 15,
        check_interval: float = 5.0,
        monitor_batch_size: int = 10,
        *,
        name: str | None = None,
    ) -> None:
        config = pool_config(
            uri, min_size, max_size, conn_timeout, keep_alive, check_interval, monitor_batch_size, name
        )
        self._runtime = PoolRuntime(config, threads=False)
        weakref.finalize(self, self._runtime.abandon).atexit = False

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

    @property
    def closed(self) -> bool:
        """True before `start` and from `stop` on."""
        return self._runtime.core.state is not State.OPEN

    def stats(self) -> PoolStats:
        return self._runtime.stats()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.closed:
            await self.stop()

    def __repr__(self) -> str:
        config = self._runtime.config
        return f"<PySQLXEnginePool {config.name!r} {config.uri.masked} {self._runtime.describe()}>"


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
