"""The socket between the supervisor and a child: whole messages, in order, and an end when one side is gone."""

from __future__ import annotations

import socket
import threading
from typing import Any

from multiprocess.reduction import DupFd
from typing_extensions import Buffer

from ..system import has


def control_pair() -> tuple[socket.socket, socket.socket]:
    """One send is one recv, however much of it there is. Messages hold no end of line, and something else."""
    if has("seqpacket"):
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return _LineSocket(one.detach()), _LineSocket(other.detach())


class _LineSocket(socket.socket):
    """A stream in which each message is a line. Not datagrams: these are small on macOS, and do not tell of the end."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM, fileno=descriptor)
        self._sending = threading.Lock()
        self._unsent = b""
        self._begun = b""
        """What has come of a message that is not complete: the first of it, where it is too long."""

    def __reduce__(self) -> Any:  # as a socket travels to a child that is being started
        return _arrived, (DupFd(self.fileno()),)

    def send(self, data: Buffer, flags: int = 0) -> int:
        """Raises BlockingIOError where nothing is taken now. What is taken in part is taken."""
        line = bytes(data) + b"\n"
        with self._sending:
            self._send_rest()
            self._unsent = line
            try:
                self._send_rest()
            except BlockingIOError:
                if self._unsent == line:
                    self._unsent = b""
                    raise
        return len(line) - 1

    def _send_rest(self) -> None:
        while self._unsent:
            self._unsent = self._unsent[super().send(self._unsent) :]

    def recv(self, limit: int, flags: int = 0) -> bytes:
        """The next message; b"" at the end. One that is longer than `limit` is none."""
        while data := super().recv(limit, socket.MSG_PEEK):
            # No more than one message is taken: the descriptor has to stay readable for what is behind it.
            end = data.find(b"\n") + 1
            self._begun = (self._begun + super().recv(end or len(data)))[: limit + 2]
            if end:
                message, self._begun = self._begun, b""
                if len(message) <= limit + 1:
                    return message[:-1]
        return b""


def _arrived(descriptor: Any) -> _LineSocket:
    return _LineSocket(descriptor.detach())
