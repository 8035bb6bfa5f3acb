"""`pysqlx-ctl top`: looks once a second and draws `screen`, until somebody presses q."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live

from ..rundir import RunDirectory
from ..status import RunStatus
from .screen import Seen, screen
from .watch import Watch

_SPAN = 10.0
"""Seconds over which throughput and waits are worked out."""
_UP, _DOWN = (b"\x1b[A", b"k"), (b"\x1b[B", b"j")
_QUIT = (b"q", b"Q", b"\x03", b"\x04")


class _Top:
    def __init__(self, run: RunDirectory, uri: str | None) -> None:
        self._watch = Watch(run)
        if uri is not None:
            self._watch.add_jobs(uri, None)
        self._looks: collections.deque[tuple[float, RunStatus]] = collections.deque()
        self._first = 0

    def seen(self) -> Seen:
        watch = self._watch
        looks = self._looks
        if watch.status is not None and (not looks or looks[-1][1] is not watch.status):
            looks.append((time.monotonic(), watch.status))
        while len(looks) > 2 and looks[0][0] < looks[-1][0] - _SPAN:
            looks.popleft()
        known = len(watch.status.workers) if watch.status is not None else 0
        self._first = max(0, min(self._first, known - 1))
        return Seen(
            run=watch.run.name,
            status=watch.status,
            failure=watch.failure,
            earlier=looks[0][1] if len(looks) > 1 else None,
            seconds=looks[-1][0] - looks[0][0] if looks else 0.0,
            jobs=[database.status for database in watch.databases.values()],
            clock=time.strftime("%H:%M:%S"),
            first=self._first,
        )

    async def once(self, console: Console) -> str:
        """One frame, after what it needs to tell throughput and jobs."""
        async with self._watch.watching():
            await self._watch.looked(1)
            self.seen()
            await self._watch.looked(2)
            for database in self._watch.databases.values():
                await database.looked()
            with console.capture() as text:
                console.print(self._drawn(console, height=10_000))
            return text.get().removesuffix("\n")

    async def live(self, console: Console) -> None:
        pressed: asyncio.Queue[bytes] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        with _keys() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
            loop.add_reader(keyboard, lambda: pressed.put_nowait(os.read(keyboard, 64)))
            try:
                async with self._watch.watching():
                    while True:
                        live.update(self._drawn(console, console.height), refresh=True)
                        with contextlib.suppress(TimeoutError):
                            if not self._obey(await asyncio.wait_for(pressed.get(), 0.5)):
                                return
            finally:
                loop.remove_reader(keyboard)

    def _obey(self, keys: bytes) -> bool:
        """False: it is over."""
        if not keys or any(key in keys for key in _QUIT):
            return False
        self._first += sum(keys.count(key) for key in _DOWN) - sum(keys.count(key) for key in _UP)
        return True

    def _drawn(self, console: Console, height: int) -> Group:
        return Group(*screen(self.seen(), console.width, height, ascii_only=not console.encoding.startswith("utf")))


@contextlib.contextmanager
def _keys() -> Iterator[int]:
    """The keyboard, each key at once, and nothing of it on the screen."""
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        yield keyboard
    finally:
        while select.select([keyboard], [], [], 0)[0] and os.read(keyboard, 64):
            pass  # what was pressed meanwhile is not for the shell
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def show(run: RunDirectory, uri: str | None, *, once: bool) -> str | None:
    """Show a run until somebody presses q; `once`: give one frame as text. `uri`: where there are jobs."""
    console = Console(highlight=False)

    async def main() -> str | None:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGTERM, signal.SIGHUP):  # as INT does by itself: the terminal is left as it was
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        top = _Top(run, uri)  # it needs the loop
        if once:
            return await top.once(console)
        await top.live(console)
        return None

    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        return asyncio.run(main())
    return None
