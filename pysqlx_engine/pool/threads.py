"""The thread face of a pool."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Self

from ..engine.connection import PySQLXEngineSync
from .core import ConnInfo
from .face import PoolFace
from .runtime import STOP_TIMEOUT, call_in_background, logger


class PySQLXEnginePoolSync(PoolFace):
    """A pool of connections for threads. Parameters and behaviour are those of `PySQLXEnginePool`; a query never holds
    the interpreter lock while it waits for the server."""

    _threads = True

    def start(self) -> None:
        """See `PySQLXEnginePool.start`."""
        call_in_background(self._runtime.start())

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """See `PySQLXEnginePool.stop`."""
        call_in_background(self._runtime.stop(timeout))

    def connection(self) -> Checkout:
        """`with pool.connection() as conn:`, see `PySQLXEnginePool.connection`."""
        return Checkout(self)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.closed:
            self.stop()


class Checkout:
    """One check-out of a thread pool."""

    __slots__ = ("_conn", "_entered", "_pool")

    def __init__(self, pool: PySQLXEnginePoolSync) -> None:
        self._pool = pool  # the pool itself, so that it is not collected while one of its connections is in use
        self._conn: ConnInfo | None = None
        self._entered = False

    def __enter__(self) -> PySQLXEngineSync:
        if self._entered:
            raise RuntimeError("this check-out is in use: call connection() for each")
        self._entered = True
        runtime = self._pool._runtime
        traced = runtime.trace_request() if logger.isEnabledFor(logging.DEBUG) else None
        conn = runtime.try_check_out()
        if conn is None:
            conn = runtime.wait_in_thread(runtime.config.conn_timeout)
        self._conn = conn
        if traced is not None:
            runtime.trace_retrieved(conn, traced)
        face: PySQLXEngineSync = conn.face
        return face

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        conn, self._conn = self._conn, None
        if conn is None:
            return
        self._pool._runtime.check_in_after(conn, exc_type)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("Pool: Connection returned to pool: %s", conn)
