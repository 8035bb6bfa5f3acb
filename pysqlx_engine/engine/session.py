"""The server-side end of one connection: who it is there, and when the server has really let go of it.

A budget counts server sessions, and "the driver object is gone" is not "the session is gone": the driver closes in
the background, and a server in mid-query goes on for as long as the query takes. So every pooled connection keeps a
duplicate of its own socket. After the driver has dropped the connection, the duplicate reads end-of-file at the moment
the server closes its side, and not before. Only then does the lease go back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING

from ..errors import QueryError

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

# The label and the liveness check go out in one round trip with the question who we are. A value that somebody
# configured is left alone; servers before PostgreSQL 14 do not have the setting and return NULL.
_POSTGRESQL = f"""
SELECT pg_backend_pid() AS server_id, inet_client_port() AS port,
       CASE current_setting('client_connection_check_interval', true)
       WHEN '0' THEN set_config('client_connection_check_interval', '{LIVENESS_CHECK}', false)
       ELSE current_setting('client_connection_check_interval', true) END AS liveness
"""
_POSTGRESQL_PLAIN = "SELECT pg_backend_pid() AS server_id, inet_client_port() AS port"
_MYSQL = """
SELECT connection_id() AS server_id,
       (SELECT host FROM information_schema.processlist WHERE id = connection_id()) AS host
"""

_TCP = (socket.AF_INET, socket.AF_INET6)
_unix_turn = asyncio.Lock()


class ServerSession:
    """The server's session behind one connection.

    `server_id` is the PostgreSQL backend's process id or the MySQL connection id, None for SQLite.
    `address` names the two ends of the TCP connection as the kernel lists them (local, then remote, each
    "host:port"), None where there is no TCP connection of our own.
    """

    __slots__ = ("_socket", "address", "liveness_checked", "server_id")

    def __init__(
        self, server_id: int | None, own_socket: socket.socket | None, *, liveness_checked: bool = False
    ) -> None:
        self.server_id = server_id
        self.liveness_checked = liveness_checked
        """Whether the server looks in mid-query whether we still live."""
        self._socket = own_socket
        self.address: tuple[str, str] | None = None
        if own_socket is not None and own_socket.family in _TCP:
            self.address = (_endpoint(own_socket.getsockname()), _endpoint(own_socket.getpeername()))

    async def closed_by_server(self, *, busy: bool) -> bool:
        """Wait until the server has closed the session. Call it after the driver has dropped the connection.

        `busy` says that a query may still run: then the server is told at once that nobody waits for the answer.
        Returns False where the close could not be observed and `UNCONFIRMED_CLOSE` passed instead.
        """
        if self._socket is None:
            if self.server_id is None:
                return True  # SQLite: the driver has closed the file by the time it has dropped the connection
            await asyncio.sleep(UNCONFIRMED_CLOSE)
            return False
        with self._socket as own_socket:
            if not busy:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(_end_of_file(own_socket), POLITE_CLOSE)
                    return True
            # Only the sending side is shut: the server learns that its client is gone, and our side still sees
            # the moment at which the server itself closes. Shutting both would show us an end of our own making.
            with contextlib.suppress(OSError):
                own_socket.shutdown(socket.SHUT_WR)
            await _end_of_file(own_socket)
            return True

    def cut(self) -> None:
        """End the connection on our side at once, whatever the server does: at interpreter exit. The driver's thread
        that still waits for an answer has to be done with it before the interpreter is gone."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


async def open_session(engine: PySQLXEngine, uri: DatabaseURI) -> ServerSession:
    """Connect `engine`, ask the server who it is there, and find the connection's socket in this process.

    Raises ConnectError. Must run in an event loop of its own thread or under `drive`.
    """
    if not _over_unix_socket(uri):
        await engine._connect_uri(uri)
        return await _identify(engine, lambda port: _find_tcp_socket(port) if port else None)
    # A Unix socket has no port to tell one from another: the new one is the one that was not there before. So opens
    # over Unix sockets take turns in a process.
    async with _unix_turn:
        before = _socket_inodes()
        await engine._connect_uri(uri)
        return await _identify(engine, lambda _: _find_new_unix_socket(before))


async def _identify(engine: PySQLXEngine, find: Callable[[int | None], socket.socket | None]) -> ServerSession:
    provider = engine._provider
    if provider == "postgresql":
        try:
            row = await engine.query_first_as_dict(_POSTGRESQL)
        except QueryError:  # the server's platform cannot check (it refuses any value but 0)
            row = await engine.query_first_as_dict(_POSTGRESQL_PLAIN)
        assert row is not None
        checked = row.get("liveness") not in {None, "0"}
        return ServerSession(int(row["server_id"]), find(row["port"]), liveness_checked=checked)
    if provider == "mysql":
        row = await engine.query_first_as_dict(_MYSQL)
        assert row is not None
        _, _, port = str(row["host"]).rpartition(":")
        return ServerSession(int(row["server_id"]), find(int(port) if port.isdigit() else None))
    if provider == "sqlite":
        return ServerSession(None, None)
    return ServerSession(0, None)  # SQL Server: not observed


async def _end_of_file(own_socket: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    # The driver has set the socket non-blocking, and that is a property of the socket, not of our descriptor.
    own_socket.setblocking(False)
    try:
        while await loop.sock_recv(own_socket, 65536):
            pass  # the rest of an answer that nobody wants any more
    except OSError:
        pass  # reset: the server's end is gone all the same


def _find_tcp_socket(port: int) -> socket.socket | None:
    """A duplicate of this process's TCP socket with the local `port`; None where a proxy or NAT hides it."""
    found = None
    for _, own_socket in _own_sockets():
        if (
            found is None
            and own_socket.family in _TCP
            and own_socket.getsockname()[1] == port
            and _has_peer(own_socket)
        ):
            found = own_socket
        else:
            own_socket.close()
    return found


def _find_new_unix_socket(before: set[str]) -> socket.socket | None:
    """A duplicate of the one Unix socket with a named peer that was not there `before`; None if several came."""
    found = []
    for inode, own_socket in _own_sockets():
        if inode not in before and own_socket.family == socket.AF_UNIX and _has_peer(own_socket):
            found.append(own_socket)
        else:
            own_socket.close()
    if len(found) == 1:
        return found[0]
    for own_socket in found:
        own_socket.close()
    return None


def _has_peer(own_socket: socket.socket) -> bool:
    try:
        return bool(own_socket.getpeername())  # a socket pair's peer has no name, a listening socket has no peer
    except OSError:
        return False


def _own_sockets() -> Iterator[tuple[str, socket.socket]]:
    """Every socket of this process: its inode and a duplicate that the caller closes."""
    try:
        descriptors = os.listdir("/proc/self/fd")
    except OSError:
        return
    for name in descriptors:
        try:
            inode = os.readlink(f"/proc/self/fd/{name}")
            if inode.startswith("socket:"):
                yield inode, socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue  # closed by another thread in between


def _socket_inodes() -> set[str]:
    inodes = set()
    for inode, own_socket in _own_sockets():
        own_socket.close()
        inodes.add(inode)
    return inodes


def _over_unix_socket(uri: DatabaseURI) -> bool:
    if uri.provider == "mysql":
        return "prefer_socket=false" not in uri.driver_uri  # what the driver prefers when nobody says
    return uri.provider == "postgresql" and "host=" in uri.driver_uri.partition("?")[2]


def _endpoint(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"
