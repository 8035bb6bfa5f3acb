"""Hints: "there is work", told to the dispatchers of this host, so that they need not be polling fast.

A hint is a datagram to a socket whose name the dispatcher has put into its row. It may be lost, or come from anybody:
then somebody looks in vain, or a second later.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ...system import has, host_identity
from .dialects import dialect_of
from .presence import Register

if TYPE_CHECKING:
    from ...engine.connection import PySQLXEngine

_KNOWN_FOR = 5.0
"""Seconds until the table is asked again who listens."""
_NOBODY_FOR = 0.2
"""The same when nobody did, or somebody does not any more: another one may begin to at any moment."""
_MOST = 16
"""Dispatchers of this host that are told."""


_ENQUEUED = b"j"
"""There are new jobs, committed, and nothing else."""


class Listener:
    """Calls `heard` in the running event loop for hints, until it is closed."""

    def __init__(self, heard: Callable[[bool], None]) -> None:
        """`heard` is told whether there is more to look for than new jobs."""
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._socket = _new_socket()
        if has("abstract"):
            self.name = f"pysqlx-jobs-{secrets.token_hex(8)}"
            self._socket.bind(_address(self.name))
        else:
            self._socket.bind(("127.0.0.1", 0))
            self.name = str(self._socket.getsockname()[1])
        self._loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        more = False
        with suppress(BlockingIOError):
            for _ in range(1000):  # many at once are one
                more |= self._socket.recv(1) != _ENQUEUED
        self._heard(more)


class Hints:
    """Tells who listens. Safe to use from several threads."""

    def __init__(self) -> None:
        self.here: Listener | None = None
        """A listener in this process: it is told, whatever the table says."""
        self._socket: socket.socket | None = None
        self._listeners: list[str] = []
        self._ask_at = 0.0

    async def tell(self, connection: PySQLXEngine, *, enqueued: bool = False) -> None:
        """Tell everybody on this host, by what `connection` says about who that is. `enqueued`: that there are new
        jobs, and nothing else."""
        hint = _ENQUEUED if enqueued and not connection._in_transaction else b""
        now = time.monotonic()
        if now >= self._ask_at:
            host = host_identity()
            everybody = await Register(dialect_of(connection)).all(connection)
            self._listeners = [one.hints for one in everybody if one.hints is not None and one.host == host][:_MOST]
            self._ask_at = now + (_KNOWN_FOR if self._listeners else _NOBODY_FOR)
        if self._socket is None:
            self._socket = _new_socket()
        for name in {*self._listeners, *([self.here.name] if self.here is not None else [])}:
            try:
                self._socket.sendto(hint, _address(name))
            except BlockingIOError:
                continue  # it has hints enough
            except (OSError, ValueError, OverflowError):  # nobody there, or no name of ours
                self._ask_at = min(self._ask_at, now + _NOBODY_FOR)


def _new_socket() -> socket.socket:
    hints = socket.socket(socket.AF_UNIX if has("abstract") else socket.AF_INET, socket.SOCK_DGRAM)
    hints.setblocking(False)
    return hints


def _address(name: str) -> bytes | tuple[str, int]:
    """In no directory: who enqueues may be another user, in another root, than who works."""
    return b"\0" + name.encode() if has("abstract") else ("127.0.0.1", int(name))
