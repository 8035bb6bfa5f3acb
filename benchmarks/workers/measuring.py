"""What is measured, the same for every peer: a peer says how its pool is opened and how it queries, no more.

Only the standard library, since every peer's environment imports this.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import random
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import Any

ONE_ROW = "SELECT 1 AS a"
MANY_ROWS = (
    "SELECT n AS id, 'name ' || n AS name, n * 0.5::float8 AS price, n % 2 = 0 AS active "
    "FROM generate_series(1, 10000) AS n"
)
SLEEP = "SELECT pg_sleep(0.005)::text AS a"

CONNECTIONS = 10
TASKS = 100
THREADS = 32
BATCH = 0.02
"""Seconds that one timed batch takes at least: far more than the clock's reading costs."""

REQUESTS = 1000
REQUESTS_AT_ONCE = 50
REQUEST_CONNECTIONS = (5, 30)

AsyncCheckOut = Callable[[], AbstractAsyncContextManager[Any]]
CheckOut = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class AsyncFace:
    """A peer for asyncio. `open_pool(uri, min_size, max_size)` gives the function that checks a connection out."""

    open_pool: Callable[[str, int, int], AbstractAsyncContextManager[AsyncCheckOut]]
    one_row: Callable[[Any, str], Awaitable[object]] | None = None
    many_rows: Callable[[Any, str], Awaitable[object]] | None = None


@dataclass(frozen=True)
class ThreadFace:
    """A peer for threads, likewise."""

    open_pool: Callable[[str, int, int], AbstractContextManager[CheckOut]]
    one_row: Callable[[Any, str], object] | None = None
    many_rows: Callable[[Any, str], object] | None = None


class Batches:
    """`for loops in batches:` times each turn, for some seconds; `median` is that of the seconds per loop.

    A median of many short batches, since somebody else's burst of work then spoils a few of them and not the figure.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._figures: list[float] = []

    def __iter__(self) -> Iterator[int]:
        loops, taken = 1, 0.0
        while True:  # the first turns find out how many loops fill a batch, and warm everything up
            started = time.perf_counter()
            yield loops
            taken = time.perf_counter() - started
            if taken >= BATCH:
                break
            loops *= 2
        until = time.perf_counter() + self._seconds
        while (started := time.perf_counter()) < until:
            yield loops
            self._figures.append((time.perf_counter() - started) / loops)

    @property
    def median(self) -> float:
        return statistics.median(self._figures)


# -- one task, one thread ---------------------------------------------------------------------------------------------


async def idle_async(face: AsyncFace, uri: str, seconds: float) -> float:
    async with face.open_pool(uri, CONNECTIONS, CONNECTIONS) as check_out:
        await _warm_async(check_out, CONNECTIONS)
        batches = Batches(seconds)
        for loops in batches:
            for _ in range(loops):
                async with check_out():
                    pass
        return batches.median


def idle_sync(face: ThreadFace, uri: str, seconds: float) -> float:
    with face.open_pool(uri, CONNECTIONS, CONNECTIONS) as check_out:
        _warm_sync(check_out, CONNECTIONS)
        batches = Batches(seconds)
        for loops in batches:
            for _ in range(loops):
                with check_out():
                    pass
        return batches.median


def query_async(face: AsyncFace, uri: str, seconds: float) -> Coroutine[Any, Any, float]:
    return _repeat_async(face, face.one_row, ONE_ROW, uri, seconds)


def query_sync(face: ThreadFace, uri: str, seconds: float) -> float:
    return _repeat_sync(face, face.one_row, ONE_ROW, uri, seconds)


def rows_async(face: AsyncFace, uri: str, seconds: float) -> Coroutine[Any, Any, float]:
    return _repeat_async(face, face.many_rows, MANY_ROWS, uri, seconds)


def rows_sync(face: ThreadFace, uri: str, seconds: float) -> float:
    return _repeat_sync(face, face.many_rows, MANY_ROWS, uri, seconds)


async def _repeat_async(
    face: AsyncFace, query: Callable[[Any, str], Awaitable[object]] | None, sql: str, uri: str, seconds: float
) -> float:
    assert query is not None
    async with face.open_pool(uri, CONNECTIONS, CONNECTIONS) as check_out:
        batches = Batches(seconds)
        for loops in batches:
            for _ in range(loops):
                async with check_out() as conn:
                    await query(conn, sql)
        return batches.median


def _repeat_sync(
    face: ThreadFace, query: Callable[[Any, str], object] | None, sql: str, uri: str, seconds: float
) -> float:
    assert query is not None
    with face.open_pool(uri, CONNECTIONS, CONNECTIONS) as check_out:
        batches = Batches(seconds)
        for loops in batches:
            for _ in range(loops):
                with check_out() as conn:
                    query(conn, sql)
        return batches.median


# -- more tasks or threads than connections ---------------------------------------------------------------------------


async def contended_async(face: AsyncFace, uri: str, seconds: float) -> float:
    """Each holder lets the others run once: without that no task would ever find all connections taken."""
    counts, stop = [0] * TASKS, False

    async def work(number: int) -> None:
        while not stop:
            async with check_out():
                await asyncio.sleep(0)
            counts[number] += 1

    async with face.open_pool(uri, CONNECTIONS, CONNECTIONS) as check_out:
        await _warm_async(check_out, CONNECTIONS)
        tasks = [asyncio.create_task(work(number)) for number in range(TASKS)]
        await asyncio.sleep(seconds / 4)
        done, started = sum(counts), time.perf_counter()
        await asyncio.sleep(seconds)
        figure = (time.perf_counter() - started) / (sum(counts) - done)
        stop = True
        await asyncio.gather(*tasks)
        return figure


def contended_sync(face: ThreadFace, uri: str, seconds: float) -> float:
    """As `contended_async`: each holder lets go of the GIL once."""
    return _in_threads(face, lambda _: time.sleep(0), CONNECTIONS, uri, seconds)


def sleeps_sync(face: ThreadFace, uri: str, seconds: float) -> float:
    """Seconds per query while as many threads as connections run queries of 5 ms."""
    assert face.one_row is not None
    query = face.one_row
    return _in_threads(face, lambda conn: query(conn, SLEEP), THREADS, uri, seconds)


def _in_threads(face: ThreadFace, use: Callable[[Any], object], connections: int, uri: str, seconds: float) -> float:
    counts, stop = [0] * THREADS, False

    def work(number: int) -> None:
        while not stop:
            with check_out() as conn:
                use(conn)
            counts[number] += 1

    with face.open_pool(uri, connections, connections) as check_out:
        _warm_sync(check_out, connections)
        threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        time.sleep(seconds / 4)
        done, started = sum(counts), time.perf_counter()
        time.sleep(seconds)
        figure = (time.perf_counter() - started) / (sum(counts) - done)
        stop = True
        for thread in threads:
            thread.join()
        return figure


# -- the example: 1,000 requests, 50 at a time, that hold a connection for 0.1 to 0.5 s --------------------------------


async def requests_async(face: AsyncFace, uri: str, seconds: float) -> float:
    """From before the pool's start to after its stop, as a multiple of what the sleeps take at best."""
    assert face.one_row is not None
    one_row, draws, gate = face.one_row, list[float](), asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def request() -> None:
        async with gate, check_out() as conn:
            await one_row(conn, ONE_ROW)
            draws.append(random.uniform(0.1, 0.5))
            await asyncio.sleep(draws[-1])

    started = time.perf_counter()
    async with face.open_pool(uri, *REQUEST_CONNECTIONS) as check_out:
        await asyncio.gather(*(request() for _ in range(REQUESTS)))
    return (time.perf_counter() - started) / makespan(draws, REQUEST_CONNECTIONS[1])


def requests_sync(face: ThreadFace, uri: str, seconds: float) -> float:
    """As `requests_async`, in 50 threads."""
    assert face.one_row is not None
    one_row, draws = face.one_row, list[float]()

    def request(_: int) -> None:
        with check_out() as conn:
            one_row(conn, ONE_ROW)
            duration = random.uniform(0.1, 0.5)
            draws.append(duration)
            time.sleep(duration)

    started = time.perf_counter()
    with face.open_pool(uri, *REQUEST_CONNECTIONS) as check_out, ThreadPoolExecutor(REQUESTS_AT_ONCE) as executor:
        list(executor.map(request, range(REQUESTS)))
    return (time.perf_counter() - started) / makespan(draws, REQUEST_CONNECTIONS[1])


def makespan(durations: Iterable[float], machines: int) -> float:
    """Seconds of the list schedule: each of `durations`, in this order, starts on the machine that is free first."""
    free_at = [0.0] * machines
    for duration in durations:
        heapq.heapreplace(free_at, free_at[0] + duration)
    return max(free_at)


# -- the script -------------------------------------------------------------------------------------------------------

ASYNC_CASES: dict[str, Callable[[AsyncFace, str, float], Coroutine[Any, Any, float]]] = {
    "idle-async": idle_async,
    "contended-async": contended_async,
    "query-async": query_async,
    "rows-async": rows_async,
    "requests-async": requests_async,
}
THREAD_CASES: dict[str, Callable[[ThreadFace, str, float], float]] = {
    "idle-sync": idle_sync,
    "contended-sync": contended_sync,
    "query-sync": query_sync,
    "rows-sync": rows_sync,
    "requests-sync": requests_sync,
    "sleeps-sync": sleeps_sync,
}


def main(aio: AsyncFace | None = None, threads: ThreadFace | None = None) -> None:
    """Measure the case that the command line names, and print the figure as JSON on the last line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=[*ASYNC_CASES, *THREAD_CASES])
    parser.add_argument("--uri", required=True)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    if options.case in ASYNC_CASES:
        assert aio is not None, "no asyncio face"
        figure = asyncio.run(ASYNC_CASES[options.case](aio, options.uri, options.seconds))
    else:
        assert threads is not None, "no thread face"
        figure = THREAD_CASES[options.case](threads, options.uri, options.seconds)
    print(json.dumps({"figure": figure}), flush=True)


async def _warm_async(check_out: AsyncCheckOut, connections: int) -> None:
    """Have every connection opened: some pools do so at first use only."""
    async with AsyncExitStack() as stack:
        for _ in range(connections):
            await stack.enter_async_context(check_out())


def _warm_sync(check_out: CheckOut, connections: int) -> None:
    with ExitStack() as stack:
        for _ in range(connections):
            stack.enter_context(check_out())
