"""How far long work is: nothing of what is short, a line now and then of what is long, a bar on a terminal.

The supervisor only ever writes lines, on a terminal too: a bar has to be drawn while the loop does something else, and
what children print would run through it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

__all__ = ["Progress", "Report", "reporting"]

FIRST = 1.0
"""Seconds after which work is long."""
EVERY = 2.0
"""Seconds between two lines."""
AGAIN = 30.0
"""Seconds until what has been said is said again, though nothing has moved."""

Report = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and of how much (0: nobody knows). It does not wait for a terminal."""


class Progress:
    """Decides when how far something is has to be said. It knows no clock: times are seconds, and given."""

    def __init__(self, began: float, *, first: float = FIRST, every: float = EVERY, again: float = AGAIN) -> None:
        self.due = began + first
        """When to look."""
        self.said: str | None = None
        """What was said last."""
        self._every = every
        self._again = again
        self._said_at = began

    def says(self, text: str, now: float) -> bool:
        """Whether `text` is to be said now."""
        if now < self.due:
            return False
        self.due = now + self._every
        if text == self.said and now < self._said_at + self._again:
            return False
        self.said, self._said_at = text, now
        return True


@contextlib.contextmanager
def reporting(command: str, *, quiet: bool = False, every: float = EVERY) -> Iterator[Report]:
    """What is reported shows on stderr while this lasts: as a bar on a terminal, which is gone at the end, elsewhere as
    lines of `command`. `quiet`: not at all."""
    if quiet:
        yield lambda what, done, total: None
        return
    shown = _Shown(command, every)
    with shown:
        yield shown.report


class _Shown:
    """Shows the latest report, in a thread of its own: whoever reports may be busy for a long time afterwards."""

    def __init__(self, command: str, every: float) -> None:
        self._command = command
        self._progress = Progress(time.monotonic(), every=every)
        self._latest = ("", 0, 0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, name="pysqlx-progress", daemon=True)

    def report(self, what: str, done: int, total: int) -> None:
        self._latest = what, done, total

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _show(self) -> None:
        if self._over.wait(FIRST):
            return
        terminal = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed: the work goes on
            self._show_bar() if terminal else self._show_lines()

    def _show_lines(self) -> None:
        while True:
            what, done, total = self._latest
            text = f"{what}: {done} of {total}" if total else what
            now = time.monotonic()
            if what and self._progress.says(text, now):
                print(f"{self._command}: {text}", file=sys.stderr, flush=True)  # noqa: T201 - it is a command's voice
            if self._over.wait(max(0.0, self._progress.due - now) or 0.1):
                return

    def _show_bar(self) -> None:
        bar = _bar()
        with bar:
            task = bar.add_task("", total=None)
            while True:
                what, done, total = self._latest
                bar.update(task, description=what, completed=done, total=total or None)
                if self._over.wait(0.5):
                    return


def _bar() -> Bar:
    from rich.console import Console  # only for people
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2)
