"""The pools of a job queue in this process: started when something needs them, one for coroutines of each event loop
and one for threads. All are in the one budget of their database."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

from ...errors import JobError, PoolClosedError
from ...joining import provider_of_one_budget
from ...pool.aio import PySQLXEnginePool
from ...pool.face import PoolFace
from ...pool.threads import PySQLXEnginePoolSync

if TYPE_CHECKING:
    from ...engine.connection import PySQLXEngine, PySQLXEngineSync
    from ...pool.aio import AsyncCheckout
    from ...pool.threads import Checkout


class _Loan:
    def __init__(self, connection: PySQLXEngine | PySQLXEngineSync) -> None:
        self.connection: PySQLXEngine | PySQLXEngineSync | None = connection


_loan: ContextVar[_Loan | None] = ContextVar("loan", default=None)


@contextlib.contextmanager
def lent(connection: PySQLXEngine | PySQLXEngineSync) -> Iterator[None]:
    """Meanwhile `connection` is the handler's that runs here, and of the tasks that it starts."""
    loan = _Loan(connection)
    token = _loan.set(loan)
    try:
        yield
    finally:
        loan.connection = None  # a task that outlives the handler has none: it is somebody else's soon
        _loan.reset(token)


def lent_here() -> PySQLXEngine | PySQLXEngineSync | None:
    """The connection that the handler which runs here was given."""
    loan = _loan.get()
    return loan.connection if loan is not None else None


def _refuse_a_second() -> None:
    """A handler that waits for a second connection while it has one can wait for ever: others do the same, and the
    budget ends."""
    if lent_here() is not None:
        raise JobError(
            "this handler was given a connection and asks its queue's pool for a second one, for which it could wait "
            "for ever: use the one that it has, or take the pool in place of the connection"
        )


class _Pool(PySQLXEnginePool):
    def connection(self, timeout: float | None = None) -> AsyncCheckout:
        _refuse_a_second()
        return super().connection(timeout)


class _PoolSync(PySQLXEnginePoolSync):
    def connection(self, timeout: float | None = None) -> Checkout:
        _refuse_a_second()
        return super().connection(timeout)


class QueuePools:
    """Safe to use from several threads."""

    def __init__(self, **parameters: Any) -> None:
        """`parameters` are a pool's."""
        self._parameters = parameters
        self._provider = provider_of_one_budget()
        self._lock = threading.Lock()
        self._for_loops: dict[asyncio.AbstractEventLoop, tuple[_Pool, asyncio.Task[None]]] = {}
        self._for_threads: _PoolSync | None = None

    async def for_tasks(self) -> PySQLXEnginePool:
        """The pool of the running event loop, started. Raises what `PySQLXEnginePool.start` raises."""
        loop = asyncio.get_running_loop()
        with self._lock:
            for other in [other for other in self._for_loops if other.is_closed()]:
                del self._for_loops[other]
            known = self._for_loops.get(loop)
            if known is None or _useless(known):
                pool = _Pool(**self._parameters)
                pool._runtime.provider = self._provider
                known = self._for_loops[loop] = (pool, loop.create_task(pool.start(), context=Context()))
        pool, started = known
        await asyncio.shield(started)  # whoever comes first starts it, and others wait with him
        return pool

    def for_threads(self) -> PySQLXEnginePoolSync:
        """The pool for threads, started. Raises what `PySQLXEnginePoolSync.start` raises."""
        with self._lock:
            if self._for_threads is None or self._for_threads.closed:
                pool = _PoolSync(**self._parameters)
                pool._runtime.provider = self._provider
                Context().run(pool.start)  # it outlives the job that comes first
                self._for_threads = pool
            return self._for_threads

    async def stop(self) -> None:
        """Close the pool of the running loop, and the one for threads. They are started again when they are needed."""
        with self._lock:
            known = self._for_loops.pop(asyncio.get_running_loop(), None)
            threads, self._for_threads = self._for_threads, None
        with contextlib.suppress(PoolClosedError):
            if known is not None and not known[0].closed:
                await known[0].stop()
        with contextlib.suppress(PoolClosedError):
            if threads is not None and not threads.closed:
                await asyncio.to_thread(threads.stop)


def _useless(known: tuple[PoolFace[Any, Any, Any], asyncio.Task[None]]) -> bool:
    """Whether a pool could not be started, or was stopped."""
    pool, started = known
    return started.done() and (started.cancelled() or started.exception() is not None or pool.closed)
