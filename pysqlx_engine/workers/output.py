"""What the children print, line by line, each line with the name of who printed it.

One thread per destination (our stdout, our stderr) reads the children's pipes and writes with plain blocking writes.
A terminal that is slow or stopped blocks that thread; the children then fill their pipes and block as they would on the
terminal itself, until the run is being stopped. The supervisor's loop never writes to a terminal, so nothing of this
can delay a signal or a restart.
The pipes are the only buffers: 64 KiB per stream, and `_LINE_LIMIT` for a line that has no end.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import select
import selectors
import threading
import time
from collections.abc import Callable, Mapping

from ..system import nonblocking_pipe

__all__ = ["Pump", "Wrapper", "line_prefix", "log_to"]

_CHUNK = 64 * 1024
_LINE_LIMIT = 1024 * 1024
_PATIENCE = 1.0  # seconds
_LOOK = 200  # milliseconds between two looks whether we are in a hurry, while nobody reads
_PASSES = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}  # of a log file: a line is lost, and not the log
_COLORS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


def log_to(path: str) -> None:
    """Have all that is printed from now on go to the end of this file. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o640)
    try:
        for standard in (1, 2):
            os.dup2(descriptor, standard)
    finally:
        os.close(descriptor)


Wrapper = Callable[[bytes], bytes]
"""Makes a line, without its end, what is written of it."""


def line_prefix(name: str, color: int, destination: int, environment: Mapping[str, str]) -> bytes:
    """`[name] `, coloured when `destination` is a terminal and `NO_COLOR` is not set."""
    text = f"[{name}] "
    if os.isatty(destination) and not environment.get("NO_COLOR"):
        text = f"\x1b[{_COLORS[color % len(_COLORS)]}m{text}\x1b[0m"
    return text.encode()


class _Stream:
    """One child's pipe: bytes in, whole lines out, each with its prefix or wrapped."""

    def __init__(self, descriptor: int, prefix: bytes | Wrapper) -> None:
        self.descriptor = descriptor
        self._prefix = prefix
        self._partial = bytearray()

    def read(self) -> bytes | None:
        """The lines that are complete now, `None` at the end of the stream."""
        try:
            chunk = os.read(self.descriptor, _CHUNK)
        except BlockingIOError:
            return b""
        if not chunk:
            return None
        self._partial += chunk
        end = self._partial.rfind(b"\n") + 1
        if end == 0 and len(self._partial) < _LINE_LIMIT:
            return b""
        lines = bytes(self._partial[: end or None])
        del self._partial[: end or None]
        return self._dressed(lines)

    def rest(self) -> bytes:
        """The last line, which never got its end."""
        return self._dressed(bytes(self._partial)) if self._partial else b""

    def _dressed(self, text: bytes) -> bytes:
        lines, prefix = text.removesuffix(b"\n").split(b"\n"), self._prefix
        if isinstance(prefix, bytes):
            return b"".join(prefix + line + b"\n" for line in lines)
        return b"".join(prefix(line) + b"\n" for line in lines)


class Pump:
    """Copies any number of streams to one destination, in a thread of its own."""

    def __init__(self, destination: int) -> None:
        self._destination = destination
        self._added: collections.deque[_Stream] = collections.deque()
        self._wake, self._waker = nonblocking_pipe()
        self._closing = False
        self._in_a_hurry = False
        self._broken = False
        # A daemon: when nobody reads our output any more, the supervisor must still be able to end.
        self._thread = threading.Thread(target=self._run, name=f"output-{destination}", daemon=True)
        self._thread.start()

    def add(self, descriptor: int, prefix: bytes | Wrapper) -> None:
        """Copy what comes out of `descriptor` until its end. The pump closes it."""
        os.set_blocking(descriptor, False)
        self._added.append(_Stream(descriptor, prefix))
        self._poke()

    def hurry(self) -> None:
        """The run is being stopped. A reader that does not read holds the children up no longer than `_PATIENCE`: a
        child that cannot get rid of its last line could never end. What nobody reads is dropped from then on."""
        self._in_a_hurry = True

    def close(self, timeout: float | None) -> None:
        """Copy what the streams hold now, then stop. A reader that does not read is waited for `timeout` seconds."""
        self._closing = True
        self._poke()
        self._thread.join(timeout)

    def _poke(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: the thread has been told often enough
            os.write(self._waker, b"\0")

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            while True:
                # Once closing, take only what is there: a grandchild may hold a pipe open for ever.
                closing = self._closing
                ready = selector.select(0 if closing else None)
                while self._added:
                    stream = self._added.popleft()
                    selector.register(stream.descriptor, selectors.EVENT_READ, stream)
                copied = False
                for key, _ in ready:
                    if key.data is None:
                        with contextlib.suppress(BlockingIOError):
                            os.read(self._wake, _CHUNK)
                    else:
                        copied = True
                        self._copy(key.data, selector)
                if closing and not copied and not self._is_ready(selector):
                    break
            for key in list(selector.get_map().values()):
                if key.data is not None:
                    self._write(key.data.rest())
                    os.close(key.fd)

    @staticmethod
    def _is_ready(selector: selectors.BaseSelector) -> bool:
        return any(key.data is not None for key, _ in selector.select(0))

    def _copy(self, stream: _Stream, selector: selectors.BaseSelector) -> None:
        lines = stream.read()
        if lines is None:
            lines = stream.rest()
            selector.unregister(stream.descriptor)
            os.close(stream.descriptor)
        self._write(lines)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self._broken:
            if not self._writable():
                self._broken = True
                return
            try:
                view = view[
                    os.write(self._destination, view[: select.PIPE_BUF]) :
                ]  # a pipe takes that without blocking
            except BlockingIOError:  # somebody made our terminal non-blocking, and others write to it too
                continue
            except OSError as error:
                if error.errno in _PASSES:
                    return
                # Nobody reads any more (`| head`): the workers' work matters more than their words.
                self._broken = True

    def _writable(self) -> bool:
        """Wait until the destination takes something; False when it does not and we are in a hurry."""
        poller = select.poll()
        poller.register(self._destination, select.POLLOUT)
        deadline: float | None = None
        while not poller.poll(_LOOK):
            if self._in_a_hurry:
                deadline = deadline or time.monotonic() + _PATIENCE
                if time.monotonic() > deadline:
                    return False
        return True
