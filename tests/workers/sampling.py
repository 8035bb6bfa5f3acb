"""Watching a server while something else goes on."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Iterator

from tests.servers import Database

INTERVAL = 0.002


class Samples:
    """How often each number of connections was seen."""

    def __init__(self) -> None:
        self.seen: collections.Counter[int] = collections.Counter()
        self._more = threading.Condition()

    def add(self, count: int) -> None:
        with self._more:
            self.seen[count] += 1
            self._more.notify_all()

    def wait_for(self, count: int, timeout: float = 15.0) -> None:
        """Wait until `count` connections were seen at once."""
        with self._more:
            assert self._more.wait_for(lambda: self.seen[count] > 0, timeout), f"never {count}: {self}"

    @property
    def most(self) -> int:
        return max(self.seen)

    def __repr__(self) -> str:
        return f"samples by number of connections: {sorted(self.seen.items())}"


@contextlib.contextmanager
def watching(database: Database) -> Iterator[Samples]:
    """Ask the server every few milliseconds how many connections to `database` it has."""
    samples = Samples()
    stop = threading.Event()

    def watch() -> None:
        with database.sampler() as sample:
            while not stop.is_set():
                samples.add(sample())
                time.sleep(INTERVAL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        stop.set()
        watcher.join()
