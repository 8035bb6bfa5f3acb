"""Both faces of a connection, so that a test says once what both do."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pysqlx_engine import PySQLXEngine, PySQLXEngineSync

from ..servers import Database, mysql_database, postgresql_database, sqlite_database


class Face:
    """A connection whose methods are called alike, whichever class it is."""

    def __init__(self, engine: PySQLXEngine | PySQLXEngineSync, runner: asyncio.Runner) -> None:
        self.engine = engine
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.engine, name)
        return self._waiting(attribute) if inspect.ismethod(attribute) else attribute

    def _waiting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            result = method(*arguments, **keywords)
            return self._runner.run(result) if inspect.iscoroutine(result) else result

        return call


@pytest.fixture(params=[PySQLXEngine, PySQLXEngineSync], ids=["async", "sync"])
def face(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Face]]:
    """A function that makes a connection that is not open yet, of each class in turn."""
    with asyncio.Runner() as runner:
        yield lambda uri: Face(request.param(uri), runner)


@pytest.fixture(scope="session", params=["sqlite", "postgresql", "mysql"])
def shared_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """One database of each provider for tests that leave nothing behind in it."""
    if request.param == "sqlite":
        yield sqlite_database(tmp_path_factory.mktemp("shared") / "test.db")
    elif request.param == "postgresql":
        with postgresql_database(request.getfixturevalue("postgres"), f"pysqlx_shared_{os.getpid()}") as database:
            yield database
    else:
        with mysql_database(request.getfixturevalue("mysql_server_uri"), f"pysqlx_shared_{os.getpid()}") as database:
            yield database


@pytest.fixture
def conn(face: Callable[[str], Face], database: Database) -> Iterator[Face]:
    """An open connection of each class to each database."""
    connection = face(database.uri)
    connection.connect()
    yield connection
    connection.close()
