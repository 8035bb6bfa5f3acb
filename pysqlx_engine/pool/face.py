"""What both faces of a pool have in common: the parameters, and what can be asked of it."""

from __future__ import annotations

import weakref
from typing import ClassVar

from .config import pool_config
from .core import State
from .runtime import PoolRuntime
from .stats import PoolStats


class PoolFace:
    """A pool, as its users see it.

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

    _threads: ClassVar[bool]

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
        self._runtime = PoolRuntime(config, threads=self._threads)
        weakref.finalize(self, self._runtime.abandon).atexit = False

    @property
    def closed(self) -> bool:
        """True before `start` and from `stop` on."""
        return self._runtime.core.state is not State.OPEN

    def stats(self) -> PoolStats:
        """One look at the pool."""
        return self._runtime.stats()

    def __repr__(self) -> str:
        config = self._runtime.config
        return f"<{type(self).__name__} {config.name!r} {config.uri.masked} {self._runtime.describe()}>"
