"""The floor: a deque of objects behind the same kind of context manager, and nothing else of a pool.

What takes a connection that somebody gives back is the waiter that is first in line, as in a real pool.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from .measuring import AsyncCheckOut, AsyncFace, CheckOut, ThreadFace, main


class BareAsyncPool:
    """For one event loop: no lock, a future for each waiter."""

    def __init__(self, size: int) -> None:
        self.idle = deque(object() for _ in range(size))
        self.waiters: deque[asyncio.Future[object]] = deque()

    def connection(self) -> BareAsyncCheckout:
        return BareAsyncCheckout(self)


class BareAsyncCheckout:
    __slots__ = ("_item", "_pool")

    def __init__(self, pool: BareAsyncPool) -> None:
        self._pool = pool

    async def __aenter__(self) -> object:
        pool = self._pool
        if pool.idle:
            self._item = pool.idle.pop()
        else:
            waiter = asyncio.get_running_loop().create_future()
            pool.waiters.append(waiter)
            self._item = await waiter
        return self._item

    async def __aexit__(self, *_: object) -> None:
        pool = self._pool
        if pool.waiters:
            pool.waiters.popleft().set_result(self._item)
        else:
            pool.idle.append(self._item)


class BarePool:
    """For threads: one lock, and a locked lock for each waiter."""

    def __init__(self, size: int) -> None:
        self.lock = threading.Lock()
        self.idle = deque(object() for _ in range(size))
        self.waiters: deque[BareCheckout] = deque()

    def connection(self) -> BareCheckout:
        return BareCheckout(self)


class BareCheckout:
    __slots__ = ("_pool", "gate", "item")

    def __init__(self, pool: BarePool) -> None:
        self._pool = pool

    def __enter__(self) -> object:
        pool = self._pool
        with pool.lock:
            if pool.idle:
                self.item = pool.idle.pop()
                return self.item
            self.gate = threading.Lock()
            self.gate.acquire()
            pool.waiters.append(self)
        self.gate.acquire()
        return self.item

    def __exit__(self, *_: object) -> None:
        pool = self._pool
        with pool.lock:
            if not pool.waiters:
                pool.idle.append(self.item)
                return
            waiter = pool.waiters.popleft()
        waiter.item = self.item
        waiter.gate.release()


@asynccontextmanager
async def open_async(uri: str, min_size: int, max_size: int) -> AsyncIterator[AsyncCheckOut]:
    yield BareAsyncPool(max_size).connection


@contextmanager
def open_sync(uri: str, min_size: int, max_size: int) -> Iterator[CheckOut]:
    yield BarePool(max_size).connection


if __name__ == "__main__":
    main(AsyncFace(open_async), ThreadFace(open_sync))
