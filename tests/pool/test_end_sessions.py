"""Sessions of processes that are dead, or cannot be reached, are ended through a connection of a pool."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from pysqlx_engine import PySQLXEngine, PySQLXEnginePool, PySQLXEngineSync
from pysqlx_engine.engine.session import open_session
from pysqlx_engine.engine.uri import parse_uri, with_option
from pysqlx_engine.errors import PySQLXError
from pysqlx_engine.pool.budget import OrphanedSession
from tests.servers import Database


@asynccontextmanager
async def lost(uri: str) -> AsyncIterator[tuple[PySQLXEngine, OrphanedSession]]:
    """A connection of somebody else, and how the coordinator would call its session."""
    parsed = parse_uri(uri)
    if parsed.provider == "mysql":
        parsed = with_option(parsed, "prefer_socket", "false")
    engine = PySQLXEngine(parsed.driver_uri)
    session = await open_session(engine, parsed, lambda _: None)
    assert session.server_id is not None
    assert session.address is not None
    try:
        yield engine, OrphanedSession(7, session.server_id, session.address)
    finally:
        await engine.close()


async def works(engine: PySQLXEngine) -> bool:
    try:
        await engine.query_first("SELECT 1 AS a")
    except PySQLXError:
        return False
    return True


@pytest.mark.parametrize("server", ["postgresql", "mysql"])
async def test_a_session_is_ended_and_one_that_is_gone_is_said_to_be(
    server: str, request: pytest.FixtureRequest
) -> None:
    database: Database = request.getfixturevalue(f"{server}_db")
    async with PySQLXEnginePool(database.uri, min_size=1) as pool, lost(database.uri) as (engine, session):
        # The same number with another port is a session of somebody else: the one in question is gone.
        other = OrphanedSession(8, session.server_id, ("192.0.2.1:1", session.address[1]))
        assert await pool._runtime.upkeep.end_sessions([other]) == [8]
        assert await works(engine)
        assert await pool._runtime.upkeep.end_sessions([session]) == [7]
        assert not await works(engine)
        assert await pool._runtime.upkeep.end_sessions([session]) == [7]


@contextlib.contextmanager
def user_without_rights(server_uri: str, database: str) -> Iterator[str]:
    """A user of MySQL or MariaDB who sees nobody's sessions but his own; gives the part of a URI with his name."""
    name = f"pysqlx_{os.getpid()}"
    with PySQLXEngineSync(server_uri) as admin:
        admin.raw_cmd(f"CREATE USER '{name}'@'%' IDENTIFIED BY 'x'")
        try:
            admin.raw_cmd(f"GRANT SELECT ON `{database}`.* TO '{name}'@'%'")
            yield f"{name}:x"
        finally:
            admin.raw_cmd(f"DROP USER '{name}'@'%'")


async def test_a_session_of_another_user_that_mysql_does_not_list_is_not_taken_for_gone(
    mysql_db: Database, mysql_server_uri: str
) -> None:
    scheme, _, rest = mysql_db.uri.partition("://")
    with user_without_rights(mysql_server_uri, rest.rpartition("/")[2]) as user:
        uri = f"{scheme}://{user}@{rest.rpartition('@')[2]}"
        async with PySQLXEnginePool(uri, min_size=1) as pool:
            async with lost(mysql_db.uri) as (engine, session):
                assert await pool._runtime.upkeep.end_sessions([session]) == []
                assert await works(engine)
            assert await pool._runtime.upkeep.end_sessions([session]) == [7]
