"""The functions that users give to a pool, and where they run.

A hook of an asyncio pool is a coroutine function (a plain one will do, too) and runs in the event loop that the pool
was started in: it is the user's code, and what it touches lives there. A hook of a thread pool is a plain function and
runs in a thread of its own: it blocks while it asks the server, and the pool's background loop must not. Either has
the context variables of whoever has started the pool.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .. import tracing
from ..errors import PoolError

Hook = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Hooks:
    """The functions of one pool. They belong to the pool that its users have, and everything else borrows them from
    there: they may be methods of what owns the pool, and what the background keeps would keep the pool from being
    collected."""

    uri: Hook | None = None
    configure: Hook | None = None
    check: Hook | None = None
    reset: Hook | None = None
    reconnect_failed: Hook | None = None
    context: contextvars.Context = field(default_factory=contextvars.Context)
    """What they run in a copy of."""

    def __post_init__(self) -> None:
        for name, hook in self._all():
            if hook is not None and not callable(hook):
                raise TypeError(f"{name}={hook!r}: a function is needed")

    def started_here(self) -> Hooks:
        """With the context of whoever calls this."""
        return replace(self, context=tracing.quiet(contextvars.copy_context()))

    def refuse_coroutine_functions(self) -> None:
        """For a thread pool: nobody would await them."""
        for name, hook in self._all():
            if inspect.iscoroutinefunction(hook):
                raise TypeError(f"{name}={hook!r}: a pool for threads needs a plain function, not a coroutine's")

    def _all(self) -> list[tuple[str, Any]]:
        return [(one.name, getattr(self, one.name)) for one in fields(self) if one.name != "context"]


HOOK_TIMEOUT = 15.0
"""Seconds that one call of a hook may take. A connection whose hook takes longer is closed."""


async def call_hook(
    hook: Callable[..., Any],
    *arguments: object,
    loop: asyncio.AbstractEventLoop | None,
    context: contextvars.Context,
) -> Any:
    """Call `hook` in `loop`, without one in a thread, in a copy of `context`, and return what it returns.

    Raises what the hook raises, TimeoutError after `HOOK_TIMEOUT`, and PoolError in place of what is no Exception: a
    hook that exits or is cancelled with its loop must not take the background loop along. Must run in that loop.
    """
    try:
        return await _call(hook, *arguments, loop=loop, context=context.copy())
    except Exception:
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise  # it is we who are cancelled
        raise PoolError(f"the function {hook!r} ended with {error!r}") from error


async def _call(
    hook: Callable[..., Any],
    *arguments: object,
    loop: asyncio.AbstractEventLoop | None,
    context: contextvars.Context,
) -> Any:
    async with asyncio.timeout(HOOK_TIMEOUT):
        if loop is None:
            return await _in_thread(context, hook, *arguments)

        async def in_users_loop() -> Any:
            result = hook(*arguments)
            return await result if isinstance(result, Awaitable) else result

        coroutine = in_users_loop()
        try:
            call = context.run(asyncio.run_coroutine_threadsafe, coroutine, loop)
        except RuntimeError:  # the loop is closed
            coroutine.close()
            raise
        return await asyncio.wrap_future(call)


async def _in_thread(context: contextvars.Context, function: Callable[..., Any], *arguments: object) -> Any:
    # Not the loop's executor: the interpreter would wait for its threads at exit, however long a hook hangs.
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def settle(settled: Callable[[Any], None], value: object) -> None:
        if not answer.done():
            settled(value)

    def run() -> None:
        try:
            result = function(*arguments)
            if isinstance(result, Awaitable):
                if isinstance(result, Coroutine):
                    result.close()
                raise TypeError(f"{function!r} gave an awaitable to a pool for threads, where nobody awaits it")
        except BaseException as error:  # noqa: BLE001 - it is raised where the hook is waited for
            if isinstance(error, StopIteration) or not isinstance(error, Exception):  # a future refuses these
                error = PoolError(f"the function {function!r} ended with {error!r}")
            loop.call_soon_threadsafe(settle, answer.set_exception, error)
        else:
            loop.call_soon_threadsafe(settle, answer.set_result, result)

    threading.Thread(target=context.run, args=(run,), name="pysqlx-hook", daemon=True).start()
    return await answer
