"""Concurrent HTTP requests to a server on this host, and what came back."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator


class Load:
    """What was answered so far. Each answer is the pid of the process that gave it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.answered_by: Counter[int] = Counter()
        self.lost = 0
        """Requests whose connection was closed without an answer."""

    def wait_for_processes(self, count: int, *, other_than: set[int] | None = None, timeout: float = 30.0) -> set[int]:
        """Wait until that many processes have answered, none of them one of `other_than`. Returns their pids."""
        with self._changed:
            enough = self._changed.wait_for(lambda: len(self._others(other_than)) >= count, timeout)
            assert enough, f"answered by {self.answered_by}, other than {other_than}; {self}"
            return self._others(other_than)

    def wait_for_more(self, count: int, timeout: float = 30.0) -> None:
        """Wait for `count` more answers."""
        with self._changed:
            wanted = self.statuses.total() + count
            assert self._changed.wait_for(lambda: self.statuses.total() >= wanted, timeout), self

    def _others(self, than: set[int] | None) -> set[int]:
        return set(self.answered_by) - (than or set())

    def _work(self) -> None:
        while not self._stop.is_set():
            status = pid = None
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, body = get(self._port)
                if status == 200:
                    pid = int(body)
            with self._changed:
                if status is None:
                    self.lost += 1
                else:
                    self.statuses[status] += 1
                if pid is not None:
                    self.answered_by[pid] += 1
                self._changed.notify_all()
            if status is None:
                time.sleep(0.01)  # the server may be on its way out: not as fast as we can

    @contextlib.contextmanager
    def running(self, threads: int) -> Iterator[None]:
        workers = [threading.Thread(target=self._work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            self._stop.set()
            for worker in workers:
                worker.join()

    def __repr__(self) -> str:
        return f"answers by status: {dict(self.statuses)}, lost: {self.lost}"


@contextlib.contextmanager
def loading(port: int, threads: int) -> Iterator[Load]:
    """Make requests one after the other in each of `threads` threads, each on a connection of its own."""
    load = Load(port)
    with load.running(threads):
        yield load


def get(port: int) -> tuple[int, bytes]:
    """Status and body of one request. Raises OSError or HTTPException when there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/", headers={"Connection": "close"})
        response = connection.getresponse()
        return response.status, response.read()
