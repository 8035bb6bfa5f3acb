"""The functions that users give to a pool, and where they run.

A hook of an asyncio pool is a coroutine function and runs in the event loop that the pool was started in: it is the
user's code, and what it touches lives there. A hook of a thread pool is a plain function and runs in a thread of its
own: it blocks while it asks the server, and the pool's background loop must not.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

HOOK_TIMEOUT = 15.0
"""Seconds that one call of a hook may take. A connection whose hook takes longer is closed."""


async def call_hook(hook: Callable[..., Any], *arguments: object, loop: asyncio.AbstractEventLoop | None) -> Any:
    """Call `hook` in `loop`, without one in a thread, and return what it returns.

    Raises what the hook raises, and TimeoutError after `HOOK_TIMEOUT`. Must run in the background loop.
    """
    async with asyncio.timeout(HOOK_TIMEOUT):
        if loop is None:
            return await _in_thread(hook, *arguments)

        async def in_users_loop() -> Any:
            result = hook(*arguments)
            return await result if isinstance(result, Awaitable) else result

        coroutine = in_users_loop()
        try:
            call = asyncio.run_coroutine_threadsafe(coroutine, loop)
        except RuntimeError:  # the loop is closed
            coroutine.close()
            raise
        return await asyncio.wrap_future(call)


async def _in_thread(function: Callable[..., Any], *arguments: object) -> Any:
    # Not the loop's executor: the interpreter would wait for its threads at exit, however long a hook hangs.
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def settle(settled: Callable[[Any], None], value: object) -> None:
        if not answer.done():
            settled(value)

    def run() -> None:
        try:
            result = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - it is raised where the hook is waited for
            if isinstance(error, StopIteration):  # a future refuses it
                error = RuntimeError(f"the hook raised {error!r}")
            loop.call_soon_threadsafe(settle, answer.set_exception, error)
        else:
            loop.call_soon_threadsafe(settle, answer.set_result, result)

    threading.Thread(target=run, name="pysqlx-hook", daemon=True).start()
    return await answer
