"""When a worker has had enough: so many jobs, or so much memory. It asks its supervisor for another one in its place,
and goes on until it is told to end.

Each worker has limits of its own, up to a tenth lower or higher, so that they are not replaced all at once.
"""

from __future__ import annotations

import asyncio
import os
import random

import psutil

from .served import MAX_JOBS, MAX_MEMORY, Recycle, ask_supervisor

_LOOK = 1.0
"""Seconds between two looks at the memory."""
_ASK_AGAIN = 30.0
"""Seconds after which it asks once more: the other one may have failed to start."""
_JITTER = 0.1


class Recycling:
    """Has to be told of every job. Used in one event loop."""

    def __init__(self) -> None:
        self._max_jobs = _limit(MAX_JOBS)
        self._max_memory = _limit(MAX_MEMORY)
        self._jobs = 0
        self._asked_at: float | None = None
        self._loop = asyncio.get_running_loop()
        self._look: asyncio.TimerHandle | None = None
        if ask_supervisor and self._max_memory is not None:
            self._process = psutil.Process()
            self._look = self._loop.call_later(_LOOK, self._look_at_memory)

    def job_ended(self) -> None:
        self._jobs += 1
        if self._max_jobs is not None and self._jobs >= self._max_jobs:
            self._ask(f"has run {self._jobs} jobs")

    def stop(self) -> None:
        if self._look is not None:
            self._look.cancel()

    def _look_at_memory(self) -> None:
        assert self._max_memory is not None
        used = self._process.memory_info().rss / (1 << 20)
        if used >= self._max_memory:
            self._ask(f"uses {used:.0f} MiB of memory")
        self._look = self._loop.call_later(_LOOK, self._look_at_memory)

    def _ask(self, reason: str) -> None:
        now = self._loop.time()
        if self._asked_at is None or now - self._asked_at >= _ASK_AGAIN:
            self._asked_at = now
            for ask in ask_supervisor:
                ask(Recycle(reason))


def _limit(variable: str) -> float | None:
    said = os.environ.get(variable)
    return float(said) * random.uniform(1 - _JITTER, 1 + _JITTER) if said else None
