"""What is done to one connection of a pool: open it, test it, clean it for the next user, close it.

All of it runs in the background loop, on a connection that no user has; what the outcome means for the pool is the
core's business.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ..engine.connection import PySQLXEngine, PySQLXEngineSync
from ..engine.session import UNCONFIRMED_CLOSE, open_session
from ..engine.uri import DatabaseURI, parse_uri, with_option
from ..errors import ConnectError, PoolError, PySQLXError, QueryError, RawCmdError
from .budget import Lease
from .config import PoolConfig
from .core import ConnInfo
from .hooks import call_hook

logger = logging.getLogger("pysqlx_engine")

OPEN_TIMEOUT = 75.0
"""Seconds after which an attempt to connect is given up: more than the driver's connect_timeout (5 s) and the wait for
a server that is still at work on a login (60 s). A server that accepts and then says nothing must not block the way
for ever."""
TEST_TIMEOUT = 2.0
"""Seconds that a connection that was idle has to answer before it counts as dead."""
CLEAN_TIMEOUT = 15.0
"""Seconds that the ROLLBACK of an open transaction may take at check-in, before the connection is closed instead."""
FINISH_GRACE = 0.01
"""Seconds that a cancelled query has to end by itself before the server is told to stop it."""
CANCEL_TIMEOUT = 1.0
"""Seconds that telling the server to stop a query may take, all in all, before the connection is closed instead."""
KEEP_ALIVE_JITTER = 0.05
"""Share of `keep_alive` by which connections are replaced earlier, each by another part of it: those that were opened
together are not replaced together."""

_CANCEL = {"postgresql": "SELECT pg_cancel_backend({})", "mysql": "KILL QUERY {}"}

Borrow = Callable[[float], Awaitable[ConnInfo]]
"""Another connection of the pool, within so many seconds."""


class Upkeep:
    """`borrow` and `give_back` are how it gets at another connection of the pool, to have a query stopped."""

    def __init__(
        self, config: PoolConfig, *, threads: bool, borrow: Borrow, give_back: Callable[[ConnInfo], None]
    ) -> None:
        self._config = config
        self._threads = threads
        self._borrow = borrow
        self._give_back = give_back
        self._names = 0
        self._label = ""
        self._uri: DatabaseURI | None = None
        self.user_loop: asyncio.AbstractEventLoop | None = None
        """Where an asyncio pool's hooks run."""

    # -- the URI --------------------------------------------------------------------------------------------------

    async def begin(self) -> DatabaseURI:
        """Learn which database it is. Raises ConnectError for a URI that no driver takes."""
        self._uri = await self._current_uri()
        return self._uri

    def label(self, label: str) -> None:
        """What the server's list of sessions shows from now on."""
        self._label = label

    async def _current_uri(self) -> DatabaseURI:
        uri = self._config.uri
        return uri if isinstance(uri, DatabaseURI) else parse_uri(await self.call(uri))

    async def _uri_to_open(self) -> DatabaseURI:
        assert self._uri is not None
        uri = self._uri if isinstance(self._config.uri, DatabaseURI) else await self._current_uri()
        if uri.identity != self._uri.identity:
            raise PoolError(
                f"the uri function of the pool {self._config.name} named {self._uri.masked} first and names "
                f"{uri.masked} now: a pool has one database"
            )
        if uri.provider == "postgresql":
            return with_option(uri, "application_name", self._label)
        if uri.provider == "mysql" and "socket=" not in uri.driver_uri.partition("?")[2]:
            # The driver's default is to connect by TCP, ask for the Unix socket, and connect again: two sessions at
            # once for every connection, which no budget can allow.
            return with_option(uri, "prefer_socket", "false")
        return uri

    # -- open and close -------------------------------------------------------------------------------------------

    async def open(self, lease: Lease) -> ConnInfo:
        """A new connection, configured. Whatever it raises: no session is left on the server, as far as that can be
        seen."""
        face: Any = None
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                uri = await self._uri_to_open()
                face = (PySQLXEngineSync if self._threads else PySQLXEngine)(uri.driver_uri)
                engine: PySQLXEngine = face._engine if self._threads else face
                session = await open_session(engine, uri)
        except Exception as error:
            if face is not None:
                await (face._engine if self._threads else face).close()
                if not isinstance(error, ConnectError):
                    # There may be a session that we do not know: it could not tell us who it is.
                    await asyncio.sleep(UNCONFIRMED_CLOSE)
            raise
        now = time.monotonic()
        self._names += 1
        lifetime = self._config.keep_alive * random.uniform(1 - KEEP_ALIVE_JITTER, 1)
        conn = ConnInfo(f"conn-{self._names}", lease, engine, face, session, now, now + lifetime)
        try:
            if self._config.sqlite_wal and engine._provider == "sqlite":
                await engine.query_as_dict("PRAGMA journal_mode = WAL")
            if self._config.configure is not None:
                await self.call(self._config.configure, face)
                await self._end_transaction(conn)
        except Exception:
            await self.drop(conn)
            raise
        return conn

    async def drop(self, conn: ConnInfo) -> None:
        """Close `conn`; returns when the server has let go of it, as far as that can be seen."""
        if conn.engine._provider == "sqlite":
            await _driver_is_done(conn.engine)
        busy = conn.engine._calls > 0
        await conn.engine.close()
        await conn.session.closed_by_server(busy=busy)

    # -- test -----------------------------------------------------------------------------------------------------

    async def is_alive(self, conn: ConnInfo) -> bool:
        """Ask the server, or the user's `check`, whether an idle connection can be used."""
        engine: PySQLXEngine = conn.engine
        try:
            if not engine.is_healthy() or not conn.session.seems_alive():
                return False
            if self._config.check is not None:
                await self.call(self._config.check, conn.face)
                return await self._end_transaction(conn)
            if engine._provider != "sqlite":  # its file cannot go away under an open descriptor
                async with asyncio.timeout(TEST_TIMEOUT):
                    await engine.raw_cmd("SELECT 1")
        except Exception as error:  # noqa: BLE001 - whatever it is, this connection is of no use
            logger.debug("Pool: %s is not alive: %s", conn, error or repr(error))
            return False
        return not engine._calls

    # -- clean ----------------------------------------------------------------------------------------------------

    async def clean(self, conn: ConnInfo) -> bool:
        """Make a used connection fit for the next user: no running query, no open transaction, and whatever `reset`
        does. False when it has to be closed instead."""
        engine: PySQLXEngine = conn.engine
        if engine._provider == "sqlite":
            await _driver_is_done(engine)
        elif engine._calls and not await self._stop_query(conn):
            return False
        if engine._in_transaction and not engine._failed:
            self._warn_of_open_transaction(conn)
        if engine._calls or engine._failed or engine._tainted or engine._raw is None:
            return False
        if not await self._end_transaction(conn):
            return False
        if self._config.reset is not None:
            try:
                await self.call(self._config.reset, conn.face)
            except Exception as error:  # noqa: BLE001 - the user's code: whatever it is
                logger.warning("Pool: %s: reset failed on %s, which is closed: %r", self._config.name, conn, error)
                return False
            return not engine._failed and not engine._tainted and await self._end_transaction(conn)
        return True

    def _warn_of_open_transaction(self, conn: ConnInfo) -> None:
        where = (
            f"it was checked out here:\n{''.join(conn.stack.format())}"
            if conn.stack is not None
            else "to see where connections are checked out, give the pool a leak_threshold"
        )
        logger.warning(
            "Pool: %s: %s came back with an open transaction, which is rolled back: commit before the end of the with "
            "block; %s", self._config.name, conn, where,
        )  # fmt: skip

    async def _end_transaction(self, conn: ConnInfo) -> bool:
        """Roll back what may be open. False when that did not work."""
        engine: PySQLXEngine = conn.engine
        if not engine._dirty:
            return not engine._calls
        try:
            async with asyncio.timeout(CLEAN_TIMEOUT):
                await engine.rollback()
        except PySQLXError as error:
            # SQLite refuses a ROLLBACK when no transaction is open, which is what is wanted.
            if engine._provider != "sqlite" or "no transaction is active" not in error.message:
                return False
            engine._transaction_ended()
        except TimeoutError:
            return False
        return True

    async def _stop_query(self, conn: ConnInfo) -> bool:
        """A query that nobody waits for any more is still running: have it end. False when that did not work."""
        engine: PySQLXEngine = conn.engine
        try:
            async with asyncio.timeout(CANCEL_TIMEOUT):
                if await _ends_within(FINISH_GRACE, engine):
                    return True
                # A server that looks for its client in mid-query is as quickly told by closing the connection.
                patience = 0.0 if conn.session.liveness_checked else CANCEL_TIMEOUT
                told = await self._tell_server_to_stop(conn, patience)
                if not told or not await _ends_within(CANCEL_TIMEOUT, engine):
                    return False
                # What was told may arrive when the query has ended, and hit the next one: let that be one of ours.
                for _ in range(2):
                    try:
                        await engine.raw_cmd("SELECT 1")
                    except (QueryError, RawCmdError):
                        continue
                    return True
        except (TimeoutError, PySQLXError, PoolError):
            pass
        return False

    async def _tell_server_to_stop(self, conn: ConnInfo, patience: float) -> bool:
        """Through another connection of the pool, when one can be had within `patience` seconds."""
        engine: PySQLXEngine = conn.engine
        command, server_id = _CANCEL.get(engine._provider), conn.session.server_id
        if command is None or server_id is None:
            return False
        other = await self._borrow(patience)
        try:
            await other.engine.raw_cmd(command.format(server_id))
        finally:
            self._give_back(other)
        return True

    async def call(self, hook: Callable[..., Any], *arguments: object) -> Any:
        """Call a function of the user's where it belongs, see `hooks`."""
        on_loop = not self._threads and (inspect.iscoroutinefunction(hook) or hook is not self._config.uri)
        return await call_hook(hook, *arguments, loop=self.user_loop if on_loop else None)


async def _ends_within(seconds: float, engine: PySQLXEngine) -> bool:
    """Whether the calls of `engine` that nobody awaits any more end in time."""
    try:
        async with asyncio.timeout(seconds):
            await _driver_is_done(engine)
    except TimeoutError:
        return False
    return True


async def _driver_is_done(engine: PySQLXEngine) -> None:
    """Wait for calls that were cancelled, or that somebody else still makes. A server can be told that its client is
    gone, and tells when it is done; the driver's threads that work on an SQLite file can only be waited for."""
    await engine._finish_calls()
    while engine._calls:
        await asyncio.sleep(0.01)
        await engine._finish_calls()
