"""Fixtures for every test: real servers, a fresh database per test, and `async def` tests."""

from __future__ import annotations

import asyncio
import inspect
import os
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from pysqlx_engine import PySQLXEngineSync
from pysqlx_engine.errors import ConnectError

from .servers import Database, PostgresServer, mysql_database, postgresql_database, sqlite_database

_serial = count(1)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests, each in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """As pytest's own, but with a short path: sockets are in it, whose paths may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="pysqlx-test-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for this test session."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def mysql_server_uri() -> str:
    """The URI of the MySQL or MariaDB server in PYSQLX_TEST_MYSQL_URI; without a server, tests skip (not in CI)."""
    uri = os.environ.get("PYSQLX_TEST_MYSQL_URI", "mysql://root@127.0.0.1:3306/mysql")
    try:
        PySQLXEngineSync(uri).connect()
    except ConnectError as error:
        reason = f"no MySQL or MariaDB server, set PYSQLX_TEST_MYSQL_URI: {error}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return uri


@pytest.fixture
def sqlite_db(tmp_path: Path) -> Database:
    """A fresh SQLite database."""
    return sqlite_database(tmp_path / "test.db")


@pytest.fixture
def postgresql_db(postgres: PostgresServer) -> Iterator[Database]:
    """A fresh PostgreSQL database."""
    with postgresql_database(postgres, _name()) as database:
        yield database


@pytest.fixture
def mysql_db(mysql_server_uri: str) -> Iterator[Database]:
    """A fresh MySQL or MariaDB database."""
    with mysql_database(mysql_server_uri, _name()) as database:
        yield database


@pytest.fixture(params=["postgresql", "mysql"])
def server_db(request: pytest.FixtureRequest) -> Database:
    fresh: Database = request.getfixturevalue(f"{request.param}_db")
    return fresh


@pytest.fixture
def sqlite_uri(sqlite_db: Database) -> str:
    """The URI of a fresh SQLite database."""
    return sqlite_db.uri


@pytest.fixture
def postgresql_uri(postgresql_db: Database) -> str:
    """The URI of a fresh PostgreSQL database."""
    return postgresql_db.uri


@pytest.fixture
def mariadb_uri(mysql_db: Database) -> str:
    """The URI of a fresh MySQL or MariaDB database."""
    return mysql_db.uri


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def database(request: pytest.FixtureRequest) -> Database:
    """A fresh database of each provider in turn."""
    fresh: Database = request.getfixturevalue(f"{request.param}_db")
    return fresh


def _name() -> str:
    return f"pysqlx_test_{os.getpid()}_{next(_serial)}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With two files at a time, the longest one would run alone at the end. `thorough("mysql")` is for that case of a
    test only."""
    items.sort(key=lambda item: item.path.name != "test_wire.py")
    for item in items:
        case = item.callspec.id.split("-") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else []
        item.own_markers = [
            mark
            for mark in item.own_markers
            if mark.name != "thorough" or not mark.args or not set(mark.args).isdisjoint(case)
        ]
