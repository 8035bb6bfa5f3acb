"""The PostgreSQL that cases are measured on: the user's, or ones that are started when needed and thrown away."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from functools import cached_property
from urllib.parse import urlsplit

import psycopg

from tests.servers import PostgresServer

from .cases import Case

DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "shared_buffers": "128MB"}
"""PostgreSQL's own defaults."""


class Servers:
    """Use it as a context manager."""

    def __init__(self, uri: str | None) -> None:
        self._uri = uri
        self._numbers = itertools.count(1)

    def __enter__(self) -> Servers:
        self._stack = contextlib.ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def fast(self) -> str:
        """The URI of one that need not write anything to the disk."""
        return self._uri or self._stack.enter_context(PostgresServer()).uri()

    @cached_property
    def durable(self) -> str:
        """The URI of one that does."""
        return self._uri or self._stack.enter_context(PostgresServer(**DURABLE)).uri()

    @contextlib.contextmanager
    def database(self, case: Case) -> Iterator[str]:
        """The URI to measure `case` with, of an empty database if it is a durable one."""
        if not case.durable:
            yield self.fast
            return
        name = f"pysqlx_bench_{os.getpid()}_{next(self._numbers)}"
        self._execute(f'CREATE DATABASE "{name}"')
        try:
            yield urlsplit(self.durable)._replace(path=f"/{name}").geturl()
        finally:
            self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def _execute(self, sql: str) -> None:
        with psycopg.connect(self.durable, autocommit=True) as connection:
            connection.execute(sql)
