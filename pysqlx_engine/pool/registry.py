"""The pools of this process, for those who look at them or stop them all."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .runtime import PoolRuntime

running: weakref.WeakSet[PoolRuntime] = weakref.WeakSet()
on_first_start: list[Callable[[], None]] = []
"""Called once, in the background thread, when the first pool of this process has started."""
on_drain: list[Callable[[], None]] = []
"""Whoever sees to the end of what runs here, told of a drain in any thread."""
on_retire: list[Callable[[], None]] = []
"""Whoever takes on work here, to be told in any thread to take on no more."""
_stopping = False


def stopping() -> bool:
    """Whether this process is on its way out: no pool may start any more."""
    return _stopping


def started_well() -> None:
    """A pool's `start()` has succeeded."""
    while on_first_start:
        on_first_start.pop()()


def drain() -> None:
    """This process is to end: no pool hands out connections any more, unless somebody who still needs them sees to
    the end."""
    if on_drain:
        for told in list(on_drain):
            told()
    else:
        refuse_check_outs()


def retire() -> bool:
    """Another process takes over: take on nothing new, and see what there is to its end, however long that takes.
    False: nobody here does such work."""
    told = list(on_retire)
    for tell in told:
        tell()
    return bool(told)


def refuse_check_outs() -> None:
    """From now on no pool hands out connections: waiters and new check-outs get PoolClosedError; what is in use may be
    used until it comes back."""
    global _stopping  # noqa: PLW0603
    _stopping = True
    for runtime in list(running):
        runtime.refuse_check_outs()
