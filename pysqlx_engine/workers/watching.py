"""Tells when a file of the script's directory has changed, for `--reload`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import Empty, SimpleQueue

from watchfiles import Change, PythonFilter, watch

from ..system import nonblocking_pipe


class FileWatch:
    """Readable when a Python file below `directory`, or one of `others`, has changed. Threads of its own look."""

    def __init__(self, directory: Path, others: Iterable[Path]) -> None:
        self._names: SimpleQueue[str] = SimpleQueue()
        self._reader, self._writer = nonblocking_pipe()
        self._stop = threading.Event()
        wanted = {os.path.realpath(path) for path in others}
        # By their directories: whoever saves a file may put a new one in its place.
        looks: list[tuple[Path, Callable[[Change, str], bool], bool]] = [(directory, PythonFilter(), True)]
        looks += [(Path(path).parent, _OneOf(wanted), False) for path in sorted(wanted)]
        self._threads = [
            threading.Thread(target=self._look, args=look, name="file-watch", daemon=True) for look in looks
        ]
        for thread in self._threads:
            thread.start()

    def _look(self, directory: Path, wanted: Callable[[Change, str], bool], below: bool) -> None:
        try:
            for changes in watch(
                directory, watch_filter=wanted, stop_event=self._stop, recursive=below, raise_interrupt=False
            ):
                self._tell(name for _, name in changes)
        except Exception as error:  # noqa: BLE001 - no more inotify watches, a directory that is gone
            self._tell([f"{directory} (which cannot be watched any more: {error})"])

    def _tell(self, names: Iterable[str]) -> None:
        for name in names:
            self._names.put(name)
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def fileno(self) -> int:
        return self._reader

    def changed(self) -> list[str]:
        """The files that have changed since the last time. None, when they were told of already."""
        os.read(self._reader, 1024)
        names = set()
        with contextlib.suppress(Empty):
            while True:
                names.add(self._names.get_nowait())
        return sorted(names)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(1.0)
        os.close(self._reader)
        os.close(self._writer)


class _OneOf:
    def __init__(self, wanted: set[str]) -> None:
        self._wanted = wanted

    def __call__(self, change: Change, path: str) -> bool:
        return os.path.realpath(path) in self._wanted
