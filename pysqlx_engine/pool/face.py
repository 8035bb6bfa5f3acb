"""What both faces of a pool have in common: the parameters, and what can be asked of it."""

from __future__ import annotations

import weakref
from typing import ClassVar, Generic, NoReturn, TypeVar

from . import ending as _ending  # noqa: F401 - what happens at exit and after a fork
from .config import pool_config
from .core import State
from .hooks import Hook, Hooks
from .runtime import PoolRuntime
from .stats import PoolStats

ConnHook = TypeVar("ConnHook", bound=Hook)
PoolHook = TypeVar("PoolHook", bound=Hook)
UriHook = TypeVar("UriHook", bound=Hook)


class PoolFace(Generic[ConnHook, PoolHook, UriHook]):
    """A pool, as its users see it.

    Args:
        uri: database URI, for example `sqlite:./dev.db`, or a function that returns one and is asked before each
            connect, for passwords that change. Left out: the setting PYSQLX_URI.
        min_size: connections opened by `start` and kept open when nobody else needs them; 0 to `max_size`.
            Left out: PYSQLX_MIN_SIZE, else 1.
        max_size: most connections, of this pool or, in a process that joined a coordinator, of all pools of all its
            processes to this database together; at least 1. Left out: PYSQLX_MAX_SIZE, else 10.
        conn_timeout: seconds that a check-out waits for a connection.
        keep_alive: seconds after which a connection is replaced by a new one (up to 5 % earlier).
        check_interval: seconds between two rounds of the monitor, which retires, removes and refills connections.
        monitor_batch_size: idle connections that one round of the monitor looks at.
        name: how logs, statistics and the server's session list call the pool.
        max_idle: seconds that a connection beyond `min_size` may be unused before it is closed.
        check_after: seconds idle after which a connection is tested before it is handed out; 0: always, None: never.
        max_waiting: check-outs that may wait at a time, more get PoolQueueFullError; 0: any number.
        fail_fast: while the server cannot be reached and nothing is open, check-outs fail at once instead of waiting.
        leak_threshold: seconds in use after which a connection is reported, with the stack of its check-out; None:
            never.
        reconnect_timeout: seconds without a connection to be had after which `reconnect_failed` is called.
        configure: called with each new connection before its first use; if it raises, the connection is closed.
        check: called instead of the built-in test; if it raises, the connection is replaced.
        reset: called with a connection that comes back; if it raises, the connection is closed.
        reconnect_failed: called with the pool, once each time the server stays unreachable.

    Raises ValueError or TypeError for a parameter outside its range, ConnectError for a URI that no driver takes.
    """

    _threads: ClassVar[bool]

    def __init__(
        self,
        uri: str | UriHook | None = None,
        min_size: int | None = None,
        max_size: int | None = None,
        conn_timeout: float = 30.0,
        keep_alive: float = 60 * 15,
        check_interval: float = 5.0,
        monitor_batch_size: int = 10,
        *,
        name: str | None = None,
        max_idle: float = 60 * 10,
        check_after: float | None = 0.5,
        max_waiting: int = 0,
        fail_fast: bool = False,
        leak_threshold: float | None = None,
        reconnect_timeout: float = 60 * 5,
        configure: ConnHook | None = None,
        check: ConnHook | None = None,
        reset: ConnHook | None = None,
        reconnect_failed: PoolHook | None = None,
    ) -> None:
        self._hooks = Hooks(uri if callable(uri) else None, configure, check, reset, reconnect_failed)
        if self._threads:
            self._hooks.refuse_coroutine_functions()
        config = pool_config(
            uri=uri,
            min_size=min_size,
            max_size=max_size,
            conn_timeout=conn_timeout,
            keep_alive=keep_alive,
            check_interval=check_interval,
            monitor_batch_size=monitor_batch_size,
            name=name,
            max_idle=max_idle,
            check_after=check_after,
            max_waiting=max_waiting,
            fail_fast=fail_fast,
            leak_threshold=leak_threshold,
            reconnect_timeout=reconnect_timeout,
        )
        self._runtime = PoolRuntime(config, weakref.ref(self), threads=self._threads)
        weakref.finalize(self, self._runtime.collected).atexit = False

    @property
    def name(self) -> str:
        """How logs, statistics and the server's session list call the pool."""
        return self._runtime.config.name

    @property
    def closed(self) -> bool:
        """True before `start` and from `stop` on."""
        return self._runtime.core.state is not State.OPEN

    def resize(self, min_size: int, max_size: int) -> None:
        """Change the sizes of a running pool. Connections above the new `max_size` are closed: idle ones at once, those
        in use when they come back.

        Raises ValueError or TypeError for sizes that cannot be, PoolClosedError, and PoolRefusedError for a `max_size`
        that is the budget of many processes.
        """
        self._runtime.resize(min_size, max_size)

    def stats(self) -> PoolStats:
        """One look at the pool."""
        return self._runtime.stats()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"the pool {self.name} cannot be copied or sent to another process, which has no part in its connections: "
            "make a pool in each process, or at the top of a module that each imports, and start it there"
        )

    def __repr__(self) -> str:
        runtime = self._runtime
        return f"<{type(self).__name__} {self.name!r} {runtime.database} {runtime.describe()}>"
