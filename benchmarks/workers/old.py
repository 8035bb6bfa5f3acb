"""pysqlx-engine 0.3.2's pool, rows as BaseRow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from pysqlx_engine import PySQLXEngine, PySQLXEnginePool, PySQLXEnginePoolSync, PySQLXEngineSync

from .measuring import AsyncCheckOut, AsyncFace, CheckOut, ThreadFace, main

# It wants max_size above min_size, it has no context manager of its own, and its monitor's thread ends only when it
# wakes up next: hence the short check_interval.


@asynccontextmanager
async def open_async(uri: str, min_size: int, max_size: int) -> AsyncIterator[AsyncCheckOut]:
    pool = PySQLXEnginePool(uri=uri, min_size=min_size, max_size=max(max_size, min_size + 1), check_interval=0.5)
    await pool.start()
    try:
        yield pool.connection
    finally:
        await pool.stop()


@contextmanager
def open_sync(uri: str, min_size: int, max_size: int) -> Iterator[CheckOut]:
    pool = PySQLXEnginePoolSync(uri=uri, min_size=min_size, max_size=max(max_size, min_size + 1), check_interval=0.5)
    pool.start()
    try:
        yield pool.connection
    finally:
        pool.stop()


if __name__ == "__main__":
    main(
        AsyncFace(open_async, PySQLXEngine.query_first, PySQLXEngine.query),
        ThreadFace(open_sync, PySQLXEngineSync.query_first, PySQLXEngineSync.query),
    )
