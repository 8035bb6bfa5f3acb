"""What is done to one connection of a pool: open it, test it, clean it for the next user, close it.

All of it runs in the background loop, on a connection that no user has; what the outcome means for the pool is the
core's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

from ..engine.connection import PySQLXEngine, PySQLXEngineSync
from ..engine.files import sqlite_file
from ..engine.session import UNCONFIRMED_CLOSE, ServerSession, open_session
from ..engine.spans import target_of
from ..engine.uri import DatabaseURI, parse_uri, with_option
from ..errors import ConnectError, PoolError, PySQLXError, RawCmdError
from ..log_config import part
from .budget import Lease, OrphanedSession
from .config import PoolConfig
from .core import ConnInfo
from .hooks import Hooks, call_hook

logger = part("pool")

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
"""Seconds that telling the server to stop a query may take, and again that the query may take to end, before the
connection is closed instead."""
AS_LONG_AS_IT_TAKES = 30 * 86_400.0
KEEP_ALIVE_JITTER = 0.05
"""Share of `keep_alive` by which connections are replaced earlier, each by another part of it: those that were opened
together are not replaced together."""

_chance = random.Random()  # not the module's: what users seed is theirs

END_PATIENCE = 10.0
"""Seconds that ending a dead process's sessions may wait for a connection."""
END_TIMEOUT = 1.0
"""Seconds that these sessions are then waited for to be gone."""
ROLLBACK_GRACE = 1.0
"""Seconds that a rollback after the close gets where nobody can look whether it is over."""
END_POLL = 0.002
"""Seconds between two looks whether they are."""
HIDDEN_POLL = 0.05
"""The same while some of them can only be asked for one by one."""

_CANCEL = {"postgresql": "SELECT pg_cancel_backend({})", "mysql": "KILL QUERY {}"}
_END = {"postgresql": "SELECT pg_terminate_backend({})", "mysql": "KILL CONNECTION {}"}
_NO_SUCH_THREAD = "1094"
_LISTED = {
    "postgresql": "SELECT pid AS id, client_port::text AS client FROM pg_stat_activity WHERE pid IN ({})",
    "mysql": "SELECT id, host AS client FROM information_schema.processlist WHERE id IN ({})",
}


class Borrow(Protocol):
    """Another connection of the pool, within `patience` seconds; with `first` before anybody who waits already."""

    def __call__(self, patience: float, first: bool = False) -> Awaitable[ConnInfo]: ...


class Upkeep:
    """`borrow` and `give_back` are how it gets at another connection of the pool, to have a query stopped."""

    def __init__(
        self,
        config: PoolConfig,
        hooks: Callable[[], Hooks],
        *,
        threads: bool,
        borrow: Borrow,
        give_back: Callable[[ConnInfo], None],
    ) -> None:
        self._config = config
        self._hooks = hooks
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
        uri = self._hooks().uri
        return self._config.uri or parse_uri(await self.call(uri) if uri is not None else "")

    async def _uri_to_open(self) -> DatabaseURI:
        assert self._uri is not None
        uri = self._config.uri or await self._current_uri()
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

    async def open(self, lease: Lease, given_up: Callable[[Exception], None]) -> ConnInfo:
        """A new connection, configured. Whatever it raises: no session is left on the server, as far as that can be
        seen. `given_up` is told before, where it takes time to see that."""
        engine: PySQLXEngine | None = None
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                uri = await self._uri_to_open()
                face: Any = (PySQLXEngineSync if self._threads else PySQLXEngine)(uri.driver_uri)
                engine = face._engine if self._threads else face
                engine._target = target_of(uri)  # what the driver is given does not say all of it
                assert engine is not None
                engine._pooled = True
                session = await open_session(engine, uri, given_up)
        except Exception as error:
            if engine is not None:
                await engine.close()
                if not isinstance(error, ConnectError):
                    await self._end_unknown(engine, functools.partial(given_up, error))
            raise
        now = time.monotonic()
        self._names += 1
        lifetime = self._config.keep_alive * _chance.uniform(1 - KEEP_ALIVE_JITTER, 1)
        conn = ConnInfo(f"conn-{self._names}", lease, engine, face, session, now, now + lifetime)
        try:
            if self._config.sqlite_wal and engine._provider == "sqlite":
                await engine.query_as_dict("PRAGMA journal_mode = WAL")
            configure = self._hooks().configure
            if configure is not None:
                await self.call(configure, face)
                if not await self._end_transaction(conn):
                    raise PoolError(f"configure left {conn} unusable")
        except Exception:
            await self.drop(conn)
            raise
        return conn

    async def _end_unknown(self, engine: PySQLXEngine, given_up: Callable[[], None]) -> None:
        """Wait until no session is left of an attempt that ended before it could tell which session it made."""
        if engine._provider != "sqlite":
            await asyncio.sleep(UNCONFIRMED_CLOSE)
            return
        if engine._calls:
            given_up()
        await driver_is_done(engine)
        unknown = ServerSession(None, None, in_process=True, file=sqlite_file(engine._parsed.path))
        await unknown.closed_by_server(busy=False)

    async def drop(self, conn: ConnInfo) -> None:
        """Close `conn`; returns when the server has let go of it, as far as that can be seen."""
        engine: PySQLXEngine = conn.engine
        if engine._provider == "sqlite":
            await driver_is_done(engine)
        rolls_back = engine._provider == "mysql" and not await self._rolled_back(conn)
        busy = engine._calls > 0
        engine._raw = engine._parting = None
        await engine.close()
        await conn.session.closed_by_server(busy=busy)
        engine._forget_calls()
        if rolls_back:
            await self._until_rolled_back(conn)

    # MySQL closes a connection first, and rolls back and ends its session then. So the transaction is ended first;
    # where that cannot be done, the server's list of sessions tells.

    async def _rolled_back(self, conn: ConnInfo) -> bool:
        """See to it that no transaction is open. False when one may be rolled back after the close."""
        engine: PySQLXEngine = conn.engine
        if engine._calls or engine._failed:
            return not (engine._calls or engine._in_transaction)
        if engine._raw is None:
            engine._raw, engine._parting = engine._parting, None
        if engine._raw is None or not engine._dirty:
            return True
        try:
            async with asyncio.timeout(CLEAN_TIMEOUT):
                await self._roll_back(conn)
        except (PySQLXError, TimeoutError):
            return False
        return True

    async def _until_rolled_back(self, conn: ConnInfo) -> None:
        session = conn.session
        assert session.server_id is not None
        orphan = OrphanedSession(conn.lease, session.server_id, session.address or ("", ""))
        while True:
            try:
                if await self.end_sessions([orphan], patience=ROLLBACK_GRACE):
                    return
            except (PoolError, PySQLXError):  # nobody is left to ask through
                await asyncio.sleep(ROLLBACK_GRACE)
                return

    # -- test -----------------------------------------------------------------------------------------------------

    async def is_alive(self, conn: ConnInfo) -> bool:
        """Ask the server, or the user's `check`, whether an idle connection can be used."""
        engine: PySQLXEngine = conn.engine
        try:
            if not engine.is_healthy() or not conn.session.seems_alive():
                return False
            check = self._hooks().check
            if check is not None:
                await self.call(check, conn.face)
                return await self._end_transaction(conn)
            if engine._provider != "sqlite":  # its file cannot go away under an open descriptor
                async with asyncio.timeout(TEST_TIMEOUT):
                    await self._round_trip(conn)
        except Exception as error:  # noqa: BLE001 - whatever it is, this connection is of no use
            logger.debug("Pool: %s is not alive: %s", conn, str(error) or repr(error))
            return False
        return not engine._calls

    # -- clean ----------------------------------------------------------------------------------------------------

    async def clean(self, conn: ConnInfo) -> bool:
        """Make a used connection fit for the next user: no running query, no open transaction, and whatever `reset`
        does. False when it has to be closed instead."""
        engine: PySQLXEngine = conn.engine
        if engine._in_transaction and not engine._failed:
            self._warn_of_open_transaction(conn)
        if engine._provider == "sqlite":
            await driver_is_done(engine)
        elif engine._calls and not await self._stop_query(conn):
            return False
        if not await self._end_transaction(conn):
            return False
        reset = self._hooks().reset
        if reset is not None:
            try:
                await self.call(reset, conn.face)
            except Exception as error:  # noqa: BLE001 - the user's code: whatever it is
                logger.warning("Pool: %s: reset failed on %s, which is closed: %r", self._config.name, conn, error)
                return False
            return await self._end_transaction(conn)
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
        """Roll back what may be open. False when that did not work, or the connection is of no use to anybody else."""
        engine: PySQLXEngine = conn.engine
        if engine._raw is None or engine._calls or engine._failed or engine._tainted:
            return False
        if not engine._dirty:
            return True
        try:
            async with asyncio.timeout(CLEAN_TIMEOUT):
                await self._roll_back(conn)
        except PySQLXError as error:
            # SQLite refuses a ROLLBACK when no transaction is open, which is what is wanted.
            if engine._provider != "sqlite" or "no transaction is active" not in error.message:
                return False
            engine._transaction_ended()
        except TimeoutError:
            return False
        return True

    async def _roll_back(self, conn: ConnInfo) -> None:
        await conn.engine.raw_cmd(conn.session.rollback)
        conn.engine._transaction_ended()

    async def _stop_query(self, conn: ConnInfo) -> bool:
        """A query that nobody waits for any more is still running: have it end. False when that did not work."""
        engine: PySQLXEngine = conn.engine
        try:
            if await _ends_within(FINISH_GRACE, engine):
                return True
            if conn.session.liveness_checked:
                # Such a server is as quickly told by closing the connection: nothing to wait for.
                async with asyncio.timeout(CANCEL_TIMEOUT):
                    await self._tell_server_to_stop(conn, 0.0)
            else:
                # Any other server would go on to the end of the query, whoever closes what.
                await _first_of(self._tell_server_to_stop(conn, AS_LONG_AS_IT_TAKES), driver_is_done(engine))
            async with asyncio.timeout(CANCEL_TIMEOUT):
                await driver_is_done(engine)
                # What was told may arrive when the query has ended, and hit the next one: let that be one of ours.
                # Twice: if it hits the first, the second goes through.
                with contextlib.suppress(RawCmdError):
                    await self._round_trip(conn)
                    return True
                await self._round_trip(conn)
                return True
        except (TimeoutError, PySQLXError, PoolError):
            return False

    async def _round_trip(self, conn: ConnInfo) -> None:
        """Ask the server for what does no harm. In a transaction that has failed, it takes nothing but its end."""
        await (self._roll_back(conn) if conn.engine._dirty else conn.engine.raw_cmd("SELECT 1"))

    async def _tell_server_to_stop(self, conn: ConnInfo, patience: float) -> None:
        """Through another connection of the pool. Raises PoolTimeoutError when none can be had in `patience` seconds,
        and what the database says to it."""
        command, session = _CANCEL.get(conn.engine._provider), conn.session
        if command is None or session.server is None:
            raise PoolError("there is no way to tell this server")
        other = await self._borrow(patience)
        try:
            if other.session.server != session.server:  # the same number is somebody else's there
                raise PoolError("the other connection is one to another server")
            await _to_its_end(other.engine.raw_cmd(command.format(session.server_id)))
        finally:
            self._give_back(other)

    # -- sessions of others ---------------------------------------------------------------------------------------

    async def end_sessions(self, sessions: Sequence[OrphanedSession], patience: float = END_PATIENCE) -> list[Lease]:
        """Have the server end these, through a connection of the pool. Gives the leases of those that it has no more
        when `END_TIMEOUT` has passed, or all are gone. Raises PoolTimeoutError, and what the database says."""
        # Before all users: they may wait for what these sessions keep from them, and have the rest in use meanwhile.
        other = await self._borrow(patience, first=True)
        try:
            listed = _LISTED.get(other.engine._provider)
            if listed is None or not sessions:
                return []
            ids = ", ".join(str(session.server_id) for session in sessions)
            left = {session.server_id: session for session in sessions}
            told: set[int] = set()
            deadline = time.monotonic() + END_TIMEOUT
            while left:
                hidden = False
                rows = await other.engine.query_as_dict(listed.format(ids))
                ports = {int(row["id"]): _port_of(row["client"]) for row in rows}
                for server_id, session in list(left.items()):
                    if server_id not in ports and server_id not in told and await self._is_hidden(other, server_id):
                        hidden = True
                        continue
                    # The same id with another port is somebody else's session, and never ended. One whose port we may
                    # not see may be the one in question.
                    if server_id not in ports or ports[server_id] not in {None, _port_of(session.address[0])}:
                        del left[server_id]
                    elif server_id not in told and ports[server_id] is not None:
                        told.add(server_id)
                        with contextlib.suppress(PySQLXError):  # gone this moment, or not ours to end
                            await other.engine.raw_cmd(_END[other.engine._provider].format(server_id))
                if not left or time.monotonic() > deadline:
                    break
                await asyncio.sleep(HIDDEN_POLL if hidden else END_POLL)
            return [session.lease for session in sessions if session.server_id not in left]
        finally:
            self._give_back(other)

    async def _is_hidden(self, other: ConnInfo, server_id: int) -> bool:
        """Whether a session that is not listed is there all the same: MySQL lists other users' only for who has the
        PROCESS privilege. Such a one it does not end, but says that it is not ours; PostgreSQL lists all."""
        if other.engine._provider != "mysql":
            return False
        try:
            await other.engine.raw_cmd(_END["mysql"].format(server_id))
        except PySQLXError as error:
            return error.code != _NO_SUCH_THREAD
        return False

    async def call(self, hook: Callable[..., Any], *arguments: object) -> Any:
        """Call a function of the user's where it belongs, see `hooks`."""
        loop = None if self._threads else self.user_loop
        return await call_hook(hook, *arguments, loop=loop, context=self._hooks().context)


def _port_of(client: str | None) -> int | None:
    """The port in what a server, or we, say of a session's client; None where the server does not tell."""
    port = (client or "").rpartition(":")[2]
    return int(port) if port.lstrip("-").isdigit() else None


async def _ends_within(seconds: float, engine: PySQLXEngine) -> bool:
    """Whether the calls of `engine` that nobody awaits any more end in time."""
    try:
        async with asyncio.timeout(seconds):
            await driver_is_done(engine)
    except TimeoutError:
        return False
    return True


async def driver_is_done(engine: PySQLXEngine) -> None:
    """Wait for calls that were cancelled, or that somebody else still makes. A server can be told that its client is
    gone, and tells when it is done; the driver's threads that work on an SQLite file can only be waited for."""
    await engine._finish_calls()
    while engine._calls:
        await asyncio.sleep(0.01)
        await engine._finish_calls()


async def _to_its_end(sent: Coroutine[Any, Any, None]) -> None:
    """Await what cannot be taken back once it is sent: who is cancelled meanwhile does not go before it has ended."""
    task = asyncio.create_task(sent)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=CANCEL_TIMEOUT)
        raise
    finally:
        task.cancel()


async def _first_of(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Wait until one of them has ended, and cancel the others. Raises what that one raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
