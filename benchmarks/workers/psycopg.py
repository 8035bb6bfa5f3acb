"""psycopg 3 with its C speed-ups through psycopg_pool: autocommit, as everybody here, and rows as dictionaries.

Without autocommit it would send BEGIN and COMMIT around each query, which nobody else does.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from psycopg import AsyncConnection, Connection
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from .measuring import AsyncCheckOut, AsyncFace, CheckOut, ThreadFace, main

OPTIONS = {"autocommit": True, "row_factory": dict_row}


@asynccontextmanager
async def open_async(uri: str, min_size: int, max_size: int) -> AsyncIterator[AsyncCheckOut]:
    async with AsyncConnectionPool(uri, min_size=min_size, max_size=max_size, open=False, kwargs=OPTIONS) as pool:
        await pool.wait()
        yield pool.connection


@contextmanager
def open_sync(uri: str, min_size: int, max_size: int) -> Iterator[CheckOut]:
    with ConnectionPool(uri, min_size=min_size, max_size=max_size, open=False, kwargs=OPTIONS) as pool:
        pool.wait()
        yield pool.connection


async def one_row_async(connection: AsyncConnection[Any], sql: str) -> object:
    return await (await connection.execute(sql)).fetchone()


def one_row(connection: Connection[Any], sql: str) -> object:
    return connection.execute(sql).fetchone()


if __name__ == "__main__":
    main(AsyncFace(open_async, one_row_async), ThreadFace(open_sync, one_row))
