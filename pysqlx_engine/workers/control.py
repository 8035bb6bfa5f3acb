"""Questions from `pysqlx-ctl` to whoever runs a budget: one line of JSON each way over a Unix socket.

It is apart from the link on purpose: a question needs neither ZeroMQ nor a place among the members.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ..system import NO_DESCRIPTORS
from .polling import nested_selector

MAX_LINE = 64 * 1024
"""Bytes of one question. Answers may be longer."""

SIZES = range(1, 100_001)
"""What a budget may be, as the settings have it."""

Json = dict[str, Any]
Reply = Callable[[Json], None]
Handler = Callable[[Json, Reply], None]

_QUESTION = msgspec.json.Decoder(dict[str, str | int | float | None])
"""Flat: anybody of this user may ask, and nesting without end would take our stack. Without booleans, which Python
takes for numbers."""


class ControlServer:
    """Answers questions from inside somebody else's loop: whenever `fileno()` is readable, call `handle_readable()`.

    `handler(question, reply)` calls `reply(answer)` once, at once or later. No client can make the loop wait: what a
    client has not sent or not read yet stays with its socket.
    """

    def __init__(self, path: Path, handler: Handler) -> None:
        self._handler = handler
        self._selector = nested_selector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        mask = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(mask)
        self._listener.listen(socket.SOMAXCONN)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._spare: int | None = os.dup(self._listener.fileno())
        """A descriptor for when no other is left: who cannot be answered is sent away, else the loop would turn and
        turn for him."""

    def fileno(self) -> int:
        return self._selector.fileno()

    def handle_readable(self) -> None:
        for key, events in self._selector.select(0):
            if key.fileobj is self._listener:
                self._accept()
            elif events & selectors.EVENT_READ:
                key.data.read()
            else:
                key.data.write()

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()
        if self._spare is not None:
            os.close(self._spare)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                self._send_away()
            return
        with contextlib.suppress(OSError):
            client.setblocking(False)
            self._selector.register(client, selectors.EVENT_READ, _Conversation(client, self._selector, self._handler))

    def _send_away(self) -> None:
        with contextlib.suppress(OSError):  # another thread may take it meanwhile: then it is for the next time
            if self._spare is None:
                self._spare = os.dup(self._listener.fileno())
            spare, self._spare = self._spare, None
            os.close(spare)
            self._listener.accept()[0].close()
            self._spare = os.dup(self._listener.fileno())


class _Conversation:
    """One client: a line in, a line out, end."""

    def __init__(self, client: socket.socket, selector: selectors.BaseSelector, handler: Handler) -> None:
        self._client = client
        self._selector = selector
        self._handler = handler
        self._buffer = b""

    def read(self) -> None:
        try:
            data = self._client.recv(MAX_LINE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._buffer += data
        line, end, _ = self._buffer.partition(b"\n")
        if end:
            self._selector.unregister(self._client)
            self._answer(line)
        elif not data or len(self._buffer) > MAX_LINE:
            self._end()

    def _answer(self, line: bytes) -> None:
        try:
            question = _QUESTION.decode(line)
        except ValueError:  # no JSON, too deep, too large, not UTF-8
            self._reply({"error": "a question is one line with a flat JSON object"})
            return
        self._handler(question, self._reply)

    def _reply(self, answer: Json) -> None:
        self._buffer = json.dumps(answer).encode() + b"\n"
        with contextlib.suppress(ValueError, KeyError):  # the server was closed meanwhile
            self._selector.register(self._client, selectors.EVENT_WRITE, self)
            self.write()

    def write(self) -> None:
        try:
            sent = self._client.send(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            sent = len(self._buffer)
        self._buffer = self._buffer[sent:]
        if not self._buffer:
            self._end()

    def _end(self) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(self._client)
        self._client.close()


def wrong_size(size: int) -> str:
    return f"a budget of {size}: it has to be from {SIZES.start} to {SIZES.stop - 1}"


def ask(path: Path, question: Json, timeout: float = 5.0) -> Json:
    """Ask whoever listens at `path`. Raises OSError when nobody does, or nobody answers within `timeout` seconds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        deadline = time.monotonic() + timeout
        # Python's own timeout would make connect() fail at once while the other side's backlog is full.
        seconds, fraction = divmod(timeout, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(fraction * 1e6)))
        try:
            client.connect(str(path))
        except BlockingIOError:
            raise TimeoutError(f"not connected within {timeout} s: too many others ask") from None
        client.settimeout(max(0.001, deadline - time.monotonic()))
        client.sendall(json.dumps(question).encode() + b"\n")
        with client.makefile("rb") as answer:
            line = answer.readline()
    if not line:
        raise OSError("the connection was closed without an answer")
    found = json.loads(line)
    assert isinstance(found, dict)
    return found
