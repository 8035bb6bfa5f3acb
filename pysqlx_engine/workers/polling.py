"""Looking again and again, where the kernel does not tell: a thread, and a descriptor that a loop can wait for."""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from collections.abc import Callable

from ..system import CONTROL_POLL, has, nonblocking_pipe


class Looker:
    """Readable when `look` has found something. A thread of its own calls it, every `pause` seconds, also after it has
    raised something."""

    def __init__(self, look: Callable[[], bool], pause: float, name: str) -> None:
        self._look = look
        self._pause = pause
        self._reader, self._writer = nonblocking_pipe()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        return self._reader

    def seen(self) -> None:
        """Not readable any more, until the next look."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 1024)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            # A look that raises is not the last: nobody else would notice. Or the pipe is full, and has told enough.
            with contextlib.suppress(Exception):
                if self._look():
                    os.write(self._writer, b"\0")


class PolledSelector(selectors.PollSelector):
    """A selector that another loop can wait for. It never waits itself."""

    def __init__(self) -> None:
        super().__init__()
        self._polling = threading.Lock()
        self._looker = Looker(lambda: bool(self._ready()), CONTROL_POLL, "control-poll")

    def fileno(self) -> int:
        return self._looker.fileno()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._looker.seen()
        return self._ready()

    def close(self) -> None:
        self._looker.close()
        super().close()

    def _ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        with self._polling:  # one poll object takes one poll() at a time
            return super().select(0)


def nested_selector() -> selectors.EpollSelector | PolledSelector:
    """A selector for use inside another loop: its `fileno()` is readable when something in it is ready."""
    return selectors.EpollSelector() if has("epoll") else PolledSelector()
