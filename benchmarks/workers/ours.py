"""This repository's pool, rows as BaseRow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from pysqlx_engine import PySQLXEngine, PySQLXEnginePool, PySQLXEnginePoolSync, PySQLXEngineSync

from .measuring import AsyncCheckOut, AsyncFace, CheckOut, ThreadFace, main


@asynccontextmanager
async def open_async(uri: str, min_size: int, max_size: int) -> AsyncIterator[AsyncCheckOut]:
    async with PySQLXEnginePool(uri=uri, min_size=min_size, max_size=max_size) as pool:
        yield pool.connection


@contextmanager
def open_sync(uri: str, min_size: int, max_size: int) -> Iterator[CheckOut]:
    with PySQLXEnginePoolSync(uri=uri, min_size=min_size, max_size=max_size) as pool:
        yield pool.connection


if __name__ == "__main__":
    main(
        AsyncFace(open_async, PySQLXEngine.query_first, PySQLXEngine.query),
        ThreadFace(open_sync, PySQLXEngineSync.query_first, PySQLXEngineSync.query),
    )
