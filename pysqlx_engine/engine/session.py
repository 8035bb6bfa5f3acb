"""The server-side end of one connection: who it is there, and when the server has really let go of it.

A budget counts server sessions, and "the driver object is gone" is not "the session is gone": the driver closes in
the background, and a server in mid-query goes on for as long as the query takes. So every pooled connection keeps a
duplicate of its own socket. After the driver has dropped the connection, the duplicate reads end-of-file at the moment
the server closes its side, and not before. Only then does the lease go back.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ipaddress
import os
import socket
import stat
import time
from typing import TYPE_CHECKING
from weakref import WeakSet

from ..errors import ConnectError, QueryError
from ..system import after_fork_in_child, has, open_descriptors
from .files import SqliteFile, sqlite_file
from .sockets import Endpoints, Tcp, connections_to, half_closed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .connection import PySQLXEngine
    from .uri import DatabaseURI

LIVENESS_CHECK = "20ms"
"""How often a PostgreSQL server looks whether its client still lives, in the middle of a query."""

POLITE_CLOSE = 0.05
"""Seconds that an idle connection gets to say goodbye by itself before its socket is shut for writing."""

UNCONFIRMED_CLOSE = 1.0
"""Seconds after which a close counts as done where it cannot be observed (no /proc, a proxy in between)."""

PROXIED_CLOSE = 0.1
"""Seconds from the end of a connection to a proxy until the server behind it has noticed, where it looks for its
client."""

VANISHED_HOST = 30
"""Seconds without a sign of life from the server's host after which a close counts as done."""

LOGIN_LOOK = 0.5
"""Seconds of a failed connect from which on the server may be at work on a login that the driver gave up."""
LOGIN_POLL = 0.02
"""Seconds between two looks whether it still is."""
LOGIN_TIMEOUT = 60.0
"""Seconds that it is waited for: then the kernel forgets a connection whose client is gone."""

# The label and the liveness check go out in one round trip with the question who we are, and how many may be. A value
# that somebody configured is left alone; servers before PostgreSQL 14 do not have the setting and return NULL.
_POSTGRESQL = f"""
SELECT pg_backend_pid() AS server_id, inet_client_port() AS port,
       concat_ws(' ', inet_server_addr(), inet_server_port(), pg_postmaster_start_time()) AS server,
       LEAST(current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
             - COALESCE(current_setting('reserved_connections', true)::int, 0),
             (SELECT NULLIF(rolconnlimit, -1) FROM pg_roles WHERE rolname = session_user),
             (SELECT NULLIF(datconnlimit, -1) FROM pg_database WHERE datname = current_database())) AS server_limit,
       CASE current_setting('client_connection_check_interval', true)
       WHEN '0' THEN set_config('client_connection_check_interval', '{LIVENESS_CHECK}', false)
       ELSE current_setting('client_connection_check_interval', true) END AS liveness
"""
_POSTGRESQL_PLAIN = "SELECT pg_backend_pid() AS server_id, inet_client_port() AS port"
_MYSQL = """
SELECT connection_id() AS server_id,
       LEAST(@@max_connections, IF(@@max_user_connections = 0, @@max_connections, @@max_user_connections))
       AS server_limit,
       CONCAT_WS(' ', @@hostname, @@port, @@server_id, @@datadir) AS server,
       (SELECT host FROM information_schema.processlist WHERE id = connection_id()) AS host
"""

Found = tuple[socket.socket | None, bool]
"""A connection's socket, None where it could not be told from others, and whether it ends at a proxy."""

_TCP = (socket.AF_INET, socket.AF_INET6)
_turns: collections.defaultdict[object, asyncio.Lock] = collections.defaultdict(asyncio.Lock)
"""Of each server, for opens that cannot be told from each other otherwise."""
_direct: dict[tuple[str | None, int | None], bool] = {}
"""Of each server that was connected to: whether it sees our own port, or that of something in between."""


class ServerSession:
    """The server's session behind one connection.

    `server_id` is the PostgreSQL backend's process id or the MySQL connection id, None where there is none or it is not
    known. `own_socket` is a duplicate of the connection's socket, None where it could not be found. `in_process` says
    that there is no server (SQLite), `file` is the database's file then, None for one in memory. `address` names the
    two ends of the TCP connection, None where there is none of our own.

    After a fork the session is the parent's: in the child its methods do nothing.
    """

    __slots__ = (
        "__weakref__",
        "_behind_proxy",
        "_file",
        "_inherited",
        "_socket",
        "address",
        "in_process",
        "liveness_checked",
        "rollback",
        "server",
        "server_id",
        "server_limit",
    )

    def __init__(
        self,
        server_id: int | None,
        own_socket: socket.socket | None,
        *,
        in_process: bool = False,
        file: SqliteFile | None = None,
        liveness_checked: bool = False,
        server_limit: int | None = None,
        behind_proxy: bool = False,
        server: str | None = None,
        rollback: str = "ROLLBACK",
    ) -> None:
        self.server_id = server_id
        self.server_limit = server_limit
        """Connections that the server takes from ordinary users at most, as far as it tells."""
        self.liveness_checked = liveness_checked
        """Whether the server looks in mid-query whether we still live."""
        self.rollback = rollback
        """The command that ends a transaction, and sets again what RESET ALL may have taken away."""
        self.in_process = in_process
        """Whether the database works in this process."""
        self._file = file
        if file is not None:
            file.opened(self)
        self._inherited = False
        self._socket = own_socket
        self._behind_proxy = behind_proxy
        """Whether `own_socket` ends at something that the server's connection begins at."""
        self.server = None if own_socket is None or behind_proxy else server
        """What tells the server from others that the same URI may lead to; None where that is not sure: a proxy may
        pass each query on to another one."""
        self.address: Endpoints | None = None
        if own_socket is not None and own_socket.family in _TCP and not behind_proxy:
            self.address = (_endpoint(own_socket.getsockname()), _endpoint(own_socket.getpeername()))
        _sessions.add(self)

    async def closed_by_server(self, *, busy: bool) -> bool:
        """Wait until the server has closed the session. Call it after the driver has dropped the connection.

        `busy` says that a query may still run: then the server is told at once that nobody waits for the answer.
        A server whose host has vanished counts as done with it after `VANISHED_HOST` seconds.
        Returns False where the close could not be observed and `UNCONFIRMED_CLOSE` passed instead.
        """
        if self._inherited:
            return False
        if self.in_process:
            return await self._file.closed(self) if self._file is not None else True
        if self._socket is None:
            await asyncio.sleep(UNCONFIRMED_CLOSE)
            return False
        with self._socket as own_socket:
            _end_with_its_host(own_socket)
            if not busy:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(_end_of_file(own_socket), POLITE_CLOSE)
                    if self._behind_proxy:
                        await self._end_behind_proxy()
                    return not self._behind_proxy
            # Only the sending side is shut: the server learns that its client is gone, and our side still sees
            # the moment at which the server itself closes. Shutting both would show us an end of our own making.
            with contextlib.suppress(OSError):
                own_socket.shutdown(socket.SHUT_WR)
            if not self._behind_proxy:
                await _end_of_file(own_socket)
                return True
            with contextlib.suppress(TimeoutError):  # the kernel cannot tell of a host behind the proxy
                await asyncio.wait_for(_end_of_file(own_socket), VANISHED_HOST)
            await self._end_behind_proxy()
            return False

    async def _end_behind_proxy(self) -> None:
        await asyncio.sleep(PROXIED_CLOSE if self.liveness_checked else UNCONFIRMED_CLOSE)

    def seems_alive(self) -> bool:
        """False when the server has closed its side, as far as that has arrived here. Asks nobody: a server that has
        vanished, and a session that cannot be observed, seem alive."""
        if self._socket is None:
            return True
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def cut(self) -> None:
        """End the connection on our side at once, whatever the server does: at interpreter exit. The driver's thread
        that still waits for an answer has to be done with it before the interpreter is gone."""
        if self._socket is not None:
            with contextlib.suppress(OSError):  # the server has closed, or `closed_by_server` has seen it
                self._socket.shutdown(socket.SHUT_RDWR)

    def _leave_to_the_parent(self) -> None:
        # Closed, never shut: shutting ends the connection for everybody who has the socket, the parent too.
        self._inherited = True
        if self._socket is not None:
            self._socket.close()
            self._socket = None


_sessions: WeakSet[ServerSession] = WeakSet()


def _leave_all_to_the_parent() -> None:
    for session in list(_sessions):
        session._leave_to_the_parent()


after_fork_in_child(_leave_all_to_the_parent)


async def open_session(
    engine: PySQLXEngine, uri: DatabaseURI, given_up: Callable[[ConnectError], None]
) -> ServerSession:
    """Connect `engine`, ask the server who it is there, and find the connection's socket in this process.

    Raises ConnectError, and not before the server is done with a login that the driver gave up, where that can be seen:
    until then it is a session on the server. `given_up` is told at once. Must run in an event loop.
    """
    if _over_unix_socket(uri):
        # A Unix socket has no port to tell one from another: the new one is the one that was not there before. So opens
        # over Unix sockets take turns in a process.
        async with _turns[None]:
            before = _own_sockets()
            await engine._connect_uri(uri)
            return await _identify(engine, lambda _: _find_new_unix_socket(before))
    known: set[Endpoints] = set()
    started = time.monotonic()
    try:
        # So do opens over TCP that end at a proxy, as the first to each server may.
        server = (uri.host, uri.port)
        async with contextlib.nullcontext() if uri.port is None or _direct.get(server) else _turns[server]:
            if uri.port is not None:
                # What is closed already may have its ports used again.
                known = {seen.address for seen in connections_to(uri.port) if seen.state == Tcp.ESTABLISHED}
            started = time.monotonic()
            await engine._connect_uri(uri)
            return await _identify(engine, lambda port: _find_tcp_socket(uri, port, known))
    except ConnectError as error:
        # With a code of its own the server has answered, and what it refuses it does not keep.
        if uri.port and error.code == "0" and time.monotonic() - started > LOGIN_LOOK:
            given_up(error)
            await _login_ended(uri.port, known)
        raise


async def _login_ended(server_port: int, known: set[Endpoints]) -> None:
    """Wait until the server has closed the connections that the driver has given up, if there are any.

    The driver gives up after its connect_timeout (5 s) and tells nobody; the server works on until it looks.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOGIN_TIMEOUT):
            while _any_half_closed(server_port, known):
                await asyncio.sleep(LOGIN_POLL)


def _any_half_closed(server_port: int, known: set[Endpoints]) -> bool:
    try:
        return bool(half_closed(server_port) - known)
    except OSError:
        return True  # as far as we can see


async def _identify(engine: PySQLXEngine, find: Callable[[int | None], Found]) -> ServerSession:
    provider = engine._provider
    if provider == "postgresql":
        try:
            row = await engine.query_first_as_dict(_POSTGRESQL)
        except QueryError:  # the server's platform cannot check (it refuses any value but 0)
            row = await engine.query_first_as_dict(_POSTGRESQL_PLAIN)
        assert row is not None
        liveness = row.get("liveness")
        reset = f"; SET client_connection_check_interval TO '{LIVENESS_CHECK}'" if liveness == LIVENESS_CHECK else ""
        own_socket, behind_proxy = find(row["port"])
        return ServerSession(
            int(row["server_id"]),
            own_socket,
            liveness_checked=liveness not in {None, "0"},
            server_limit=row.get("server_limit"),
            behind_proxy=behind_proxy,
            server=row.get("server"),
            rollback=f"ROLLBACK{reset}",
        )
    if provider == "mysql":
        row = await engine.query_first_as_dict(_MYSQL)
        assert row is not None
        _, _, port = str(row["host"]).rpartition(":")
        own_socket, behind_proxy = find(int(port) if port.isdigit() else None)
        return ServerSession(
            int(row["server_id"]),
            own_socket,
            server_limit=int(row["server_limit"]),
            behind_proxy=behind_proxy,
            server=row["server"],
        )
    if provider == "sqlite":
        return ServerSession(None, None, in_process=True, file=sqlite_file(engine._parsed.path))
    return ServerSession(None, None)  # SQL Server: not observed


async def _end_of_file(own_socket: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    # The driver has set the socket non-blocking, and that is a property of the socket, not of our descriptor.
    own_socket.setblocking(False)
    try:
        while await loop.sock_recv(own_socket, 65536):
            pass  # the rest of an answer that nobody wants any more
    except OSError:
        pass  # reset: the server's end is gone all the same


def _end_with_its_host(own_socket: socket.socket) -> None:
    """Have the kernel end the connection when the server's host does not answer any more. Otherwise one that vanished
    would be waited for without end."""
    if own_socket.family not in _TCP or not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    with contextlib.suppress(OSError):
        own_socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        own_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, VANISHED_HOST // 3)
        own_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, VANISHED_HOST // 3)
        own_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_HOST * 1000)


# A process may hold thousands of sockets, and all but one belong to somebody else. So the kernel is asked which one it
# is, only that one is duplicated, and none is made a Python socket in a way that changes it: by default Python switches
# a socket that it is given to non-blocking when `socket.setdefaulttimeout` was used, for all who share it.


def _find_tcp_socket(uri: DatabaseURI, port: int | None, known: set[Endpoints]) -> Found:
    """A duplicate of the new connection's socket: to the server of `uri`, not among the `known` connections, and open
    in this process; from the local `port` that the server sees, or, where a proxy or NAT hides it, the only new one."""
    if port is None or uri.port is None:
        return None, False
    connections = connections_to(uri.port)
    new = [
        connection
        for connection in connections
        if connection.state == Tcp.ESTABLISHED
        and connection.address not in known
        and _may_be(uri.host, connection.remote)
    ]
    found = [connection for connection in new if connection.local_port == port]
    _direct[uri.host, uri.port] = direct = any(connection.local_port == port for connection in connections)
    if not direct:
        own = _own_sockets()
        found = [connection for connection in new if connection.inode in own]
    if len(found) != 1:
        return None, False
    family = socket.AF_INET if found[0].remote.version == 4 else socket.AF_INET6
    return _duplicate(found[0].inode, family), not direct


def _find_new_unix_socket(before: set[int]) -> Found:
    """A duplicate of the one Unix socket with a named peer that was not there `before`; None if several came."""
    found = []
    for inode in _own_sockets() - before:
        own_socket = _duplicate(inode, socket.AF_UNIX)
        if own_socket is None:
            continue
        if own_socket.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_UNIX and _has_peer(own_socket):
            found.append(own_socket)
        else:
            own_socket.close()
    if len(found) == 1:
        return found[0], False
    for own_socket in found:
        own_socket.close()
    return None, False


def _has_peer(own_socket: socket.socket) -> bool:
    try:
        return bool(own_socket.getpeername())  # a socket pair's peer has no name, a listening socket has no peer
    except OSError:
        return False


def _may_be(host: str | None, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether a connection to `host` can be one to `address`. A name can be anywhere."""
    try:
        stated = ipaddress.ip_address(host or "")
    except ValueError:
        return True
    # All loopback addresses have become one in `host`.
    return address.is_loopback if stated.is_loopback else address.packed == stated.packed


def _own_sockets() -> set[int]:
    """The inodes of this process's sockets."""
    return {inode for _, inode in _descriptors()}


def _duplicate(inode: int, family: int) -> socket.socket | None:
    for descriptor, found in _descriptors():
        if found != inode:
            continue
        with contextlib.suppress(OSError):  # closed by another thread in between
            duplicate = os.dup(descriptor)
            if _inode(duplicate) == inode:
                # SOCK_NONBLOCK: it is taken as it is, whatever the default timeout.
                return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0, fileno=duplicate)
            os.close(duplicate)
    return None


def _descriptors() -> Iterator[tuple[int, int]]:
    """This process's sockets: descriptor and inode. None at all where there is no /proc: nothing else would tell which
    inode is which connection's."""
    for descriptor in open_descriptors() if has("proc") else ():
        inode = _inode(descriptor)
        if inode is not None:
            yield descriptor, inode


def _inode(descriptor: int) -> int | None:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else None


def _over_unix_socket(uri: DatabaseURI) -> bool:
    if uri.provider == "mysql":
        return "prefer_socket=false" not in uri.driver_uri  # what the driver prefers when nobody says
    return uri.provider == "postgresql" and "host=" in uri.driver_uri.partition("?")[2]


def _endpoint(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"
