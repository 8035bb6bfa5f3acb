"""The thread face of a pool."""

from __future__ import annotations

import sys
from collections.abc import Callable
from logging import DEBUG
from threading import get_ident
from types import TracebackType
from typing import Any, Self

from .. import tracing
from ..engine.connection import PySQLXEngineSync
from .background import call_in_background
from .checkout import CheckoutBase, ids
from .config import check_timeout
from .face import PoolFace
from .leaks import stack_of
from .runtime import STOP_TIMEOUT, logger

_ConnHook = Callable[[PySQLXEngineSync], object]
_PoolHook = Callable[[Any], object]
_UriHook = Callable[[], str]


class PySQLXEnginePoolSync(PoolFace[_ConnHook, _PoolHook, _UriHook]):
    """A pool of connections for threads. Parameters and behaviour are those of `PySQLXEnginePool`; a query never holds
    the interpreter lock while it waits for the server. The functions that it takes run in threads of their own."""

    _threads = True

    def start(self) -> None:
        """See `PySQLXEnginePool.start`."""
        call_in_background(self._runtime.start(self._hooks.started_here()), undo=self._runtime.close_at_once)

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """See `PySQLXEnginePool.stop`."""
        if not self._runtime.stop_later(timeout):
            call_in_background(self._runtime.stop_whatever_comes(timeout))

    def drain(self) -> None:
        """See `PySQLXEnginePool.drain`."""
        call_in_background(self._runtime.replace_all())

    def connection(self, timeout: float | None = None) -> Checkout:
        """`with pool.connection() as conn:`, see `PySQLXEnginePool.connection`."""
        if timeout is not None:
            check_timeout(timeout)
        return Checkout(self, timeout)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._runtime.core.running:
            self.stop()


class Checkout(CheckoutBase):
    """One check-out of a thread pool."""

    __slots__ = ()

    def __enter__(self) -> PySQLXEngineSync:
        if self._id:
            raise RuntimeError("a check-out serves once: call connection() for each")
        self._id = checkout = next(ids)
        runtime = self._pool._runtime
        traced = runtime.trace_request() if logger.isEnabledFor(DEBUG) else None
        span = runtime.span() if tracing.on else None
        holder = get_ident()
        try:
            conn = runtime.try_check_out(holder, checkout)
            if conn is None:
                tracing.waits(span)
                timeout = runtime.config.conn_timeout if self._timeout is None else self._timeout
                conn = runtime.wait_in_thread(timeout, holder, checkout)
            self._conn, self._face = conn, conn.face
            if runtime.traces_stacks:
                conn.stack = stack_of(sys._getframe(1))
            if traced is not None:
                self._traced = True
                runtime.trace_retrieved(conn, traced)
            if span is not None:
                tracing.ended(span)
        except BaseException as error:
            self._conn = self._face = None
            runtime.reclaim(checkout)
            tracing.failed(span, error)
            tracing.ended(span)
            raise
        face: PySQLXEngineSync = conn.face
        return face

    __exit__ = CheckoutBase._end
