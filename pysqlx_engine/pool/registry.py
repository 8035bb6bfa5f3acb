"""The pools of this process, for those who look at them or stop them all."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runtime import PoolRuntime

running: weakref.WeakSet[PoolRuntime] = weakref.WeakSet()
on_first_start: list[Callable[[], None]] = []
"""Called once, in the background thread, when the first pool of this process has started."""
_draining = False


def draining() -> bool:
    """Whether this process is on its way out: no pool may start any more."""
    return _draining


def started_well() -> None:
    """A pool's `start()` has succeeded."""
    while on_first_start:
        on_first_start.pop()()


def snapshot() -> list[dict[str, Any]]:
    """The statistics of every running pool, as plain values."""
    return [dataclasses.asdict(runtime.stats()) for runtime in list(running)]


def drain() -> None:
    """From now on no pool hands out connections: waiters and new check-outs get PoolClosedError; what is in use may be
    used until it comes back."""
    global _draining  # noqa: PLW0603
    _draining = True
    for runtime in list(running):
        runtime.drain()
