"""asyncpg through its own pool, rows as its records. At check-in it resets the session by a message: its default."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from .measuring import AsyncCheckOut, AsyncFace, main


@asynccontextmanager
async def open_async(uri: str, min_size: int, max_size: int) -> AsyncIterator[AsyncCheckOut]:
    async with asyncpg.create_pool(uri, min_size=min_size, max_size=max_size) as pool:
        yield pool.acquire


async def one_row(connection: Any, sql: str) -> object:
    return await connection.fetchrow(sql)


if __name__ == "__main__":
    main(AsyncFace(open_async, one_row))
