"""One check-out, as far as it is the same for tasks and threads: what it remembers, and how it ends."""

from __future__ import annotations

import itertools
from types import TracebackType
from typing import Any

from ..log_config import part
from .background import background
from .core import ConnInfo
from .face import PoolFace

logger = part("pool")

ids = itertools.count(1)


class CheckoutBase:
    __slots__ = ("_conn", "_face", "_id", "_pool", "_timeout", "_traced")

    def __init__(self, pool: PoolFace[Any, Any, Any], timeout: float | None) -> None:
        self._id = 0
        """Set when it begins."""
        self._timeout = timeout
        self._pool = pool  # the pool itself, so that it is not collected while one of its connections is in use
        self._conn: ConnInfo | None = None
        self._face: Any = None
        """Keeps `take_back_what_nobody_has` away for as long as this check-out lives, whatever its user keeps."""
        self._traced = False

    def _end(
        self,
        error: type[BaseException] | None,
        value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Check in, at the end of a `with` block that `error` ended. The other two are what such an end is told as
        well: for threads this is `__exit__`, and a call more would show."""
        conn, runtime = self._conn, self._pool._runtime
        if conn is None:
            return
        try:
            if error is GeneratorExit and not runtime.lock_is_free():
                # It may be the garbage collector that closes a generator here, from inside that lock.
                background().call_soon(runtime.reclaim, self._id)
            else:
                runtime.check_in(conn)
            self._conn = self._face = None
        except BaseException:
            self._conn = self._face = None
            runtime.reclaim(self._id)
            raise
        if self._traced:
            logger.debug("Pool: Connection returned to pool: %s", conn)
