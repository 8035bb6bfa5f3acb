"""What a check-out and check-in of an idle connection costs, on both faces, next to a bare deque of the same kind.

python benchmarks/checkout.py [URI]
"""

from __future__ import annotations

import asyncio
import collections
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable

from pysqlx_engine import PySQLXEnginePool, PySQLXEnginePoolSync

LOOPS = 20_000
ROUNDS = 7


async def asyncio_face(uri: str) -> float:
    async with PySQLXEnginePool(uri=uri, min_size=1, max_size=4) as pool:
        started = time.perf_counter()
        for _ in range(LOOPS):
            async with pool.connection():
                pass
        return (time.perf_counter() - started) / LOOPS


def thread_face(uri: str) -> float:
    with PySQLXEnginePoolSync(uri=uri, min_size=1, max_size=4) as pool:
        started = time.perf_counter()
        for _ in range(LOOPS):
            with pool.connection():
                pass
        return (time.perf_counter() - started) / LOOPS


def bare_deque(_: str) -> float:
    """The floor: a lock and a deque behind a context manager, nothing else."""
    lock, idle = threading.Lock(), collections.deque([object()])

    class Checkout:
        def __enter__(self) -> object:
            with lock:
                self.item = idle.pop()
            return self.item

        def __exit__(self, *_: object) -> None:
            with lock:
                idle.append(self.item)

    started = time.perf_counter()
    for _ in range(LOOPS):
        with Checkout():
            pass
    return (time.perf_counter() - started) / LOOPS


def measure(what: Callable[[str], float | Awaitable[float]], uri: str) -> float:
    result = what(uri)
    return result if isinstance(result, float) else asyncio.run(result)  # type: ignore[arg-type]


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        uri = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:{directory}/bench.db"
        faces = {"asyncio": asyncio_face, "threads": thread_face, "bare deque": bare_deque}
        seconds: dict[str, list[float]] = {name: [] for name in faces}
        for _ in range(ROUNDS):  # in turn, so that a slow moment of the machine hits all of them
            for name, face in faces.items():
                seconds[name].append(measure(face, uri))
    floor = statistics.median(seconds["bare deque"])
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:12} {middle * 1e6:6.2f} us a check-out and check-in   {middle / floor:5.1f} x a bare deque")


if __name__ == "__main__":
    main()
