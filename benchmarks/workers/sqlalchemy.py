"""SQLAlchemy Core: AsyncAdaptedQueuePool on asyncpg, QueuePool on psycopg; autocommit, as everybody here."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from .measuring import ONE_ROW, AsyncCheckOut, AsyncFace, CheckOut, ThreadFace, main

STATEMENTS = {ONE_ROW: text(ONE_ROW)}


@asynccontextmanager
async def open_async(uri: str, min_size: int, max_size: int) -> AsyncIterator[AsyncCheckOut]:
    engine = create_async_engine(_uri(uri, "asyncpg"), pool_size=max_size, max_overflow=0, isolation_level="AUTOCOMMIT")
    try:
        yield engine.connect
    finally:
        await engine.dispose()


@contextmanager
def open_sync(uri: str, min_size: int, max_size: int) -> Iterator[CheckOut]:
    engine = create_engine(_uri(uri, "psycopg"), pool_size=max_size, max_overflow=0, isolation_level="AUTOCOMMIT")
    try:
        yield engine.connect
    finally:
        engine.dispose()


async def one_row_async(connection: AsyncConnection, sql: str) -> object:
    return (await connection.execute(STATEMENTS[sql])).first()


def one_row(connection: Connection, sql: str) -> object:
    return connection.execute(STATEMENTS[sql]).first()


def _uri(uri: str, driver: str) -> str:
    return uri.replace("postgresql://", f"postgresql+{driver}://", 1)


if __name__ == "__main__":
    main(AsyncFace(open_async, one_row_async), ThreadFace(open_sync, one_row))
