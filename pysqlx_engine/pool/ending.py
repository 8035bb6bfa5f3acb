"""What becomes of the pools of this process when the interpreter exits, and when the process is forked."""

from __future__ import annotations

import asyncio
import contextlib
import time

from ..system import after_fork_in_child
from . import registry
from .background import EXIT_TIMEOUT, at_exit, background
from .upkeep import driver_is_done

CUT_TIMEOUT = 0.5
"""Seconds that the driver may take at interpreter exit to see that a connection was cut."""


def _close_all_at_exit() -> None:
    """A script that never calls stop() leaves no session behind."""
    loop = background().loop if registry.running else None
    ends = [
        asyncio.run_coroutine_threadsafe(runtime.close_at_once(), loop) for runtime in list(registry.running) if loop
    ]
    deadline = time.monotonic() + EXIT_TIMEOUT
    for end in ends:
        with contextlib.suppress(Exception):
            end.result(max(0.0, deadline - time.monotonic()))
    # What takes longer than that is cut off on our side, and then waited for: a thread of the driver that comes back
    # while the interpreter ends would abort the process.
    cut = [conn for runtime in list(registry.running) for conn in list(runtime.core.closing)]
    for conn in cut:
        conn.session.cut()
    for conn in cut:
        end = asyncio.run_coroutine_threadsafe(driver_is_done(conn.engine), background().loop)
        with contextlib.suppress(Exception):
            # What runs in this process cannot be cut off, and takes as long as it takes.
            end.result(None if conn.session.in_process else CUT_TIMEOUT)


def _forget_all_in_child() -> None:
    for runtime in list(registry.running):
        runtime.forget()
    registry.running.clear()


at_exit(_close_all_at_exit)
after_fork_in_child(_forget_all_in_child)
