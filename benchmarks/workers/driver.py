"""The driver alone, pysqlx-core on one connection: a statement made and sent, the rows as the driver's dictionaries.

For threads it is driven as our thread face drives it: its own synchronous calls hold the GIL for a whole query.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext

from pysqlx_engine.engine.driver import pysqlx_core
from pysqlx_engine.engine.driving import drive

from .measuring import AsyncCheckOut, AsyncFace, CheckOut, ThreadFace, main


@asynccontextmanager
async def open_async(uri: str, min_size: int, max_size: int) -> AsyncIterator[AsyncCheckOut]:
    connection = nullcontext(await pysqlx_core.new(uri=uri))  # there is no pool, and this costs 0.1 us
    yield lambda: connection


@contextmanager
def open_sync(uri: str, min_size: int, max_size: int) -> Iterator[CheckOut]:
    connection = nullcontext(drive(pysqlx_core.new(uri=uri)))
    yield lambda: connection


def statement(sql: str) -> pysqlx_core.PySQLxStatement:
    return pysqlx_core.PySQLxStatement(provider="postgresql", sql=sql, params=None)


async def one_row(connection: pysqlx_core.Connection, sql: str) -> object:
    return await connection.query_one(statement(sql))


async def many_rows(connection: pysqlx_core.Connection, sql: str) -> object:
    return await connection.query_all(statement(sql))


def drive_one_row(connection: pysqlx_core.Connection, sql: str) -> object:
    return drive(connection.query_one(statement(sql)))


def drive_many_rows(connection: pysqlx_core.Connection, sql: str) -> object:
    return drive(connection.query_all(statement(sql)))


if __name__ == "__main__":
    main(AsyncFace(open_async, one_row, many_rows), ThreadFace(open_sync, drive_one_row, drive_many_rows))
