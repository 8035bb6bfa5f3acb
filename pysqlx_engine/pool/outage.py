"""What a pool knows of a server to which it cannot open connections: when to try again, and what to say of it.

A plain state machine, without clock or timers.
"""

from __future__ import annotations

import random
from typing import NamedTuple

BACKOFF = (0.05, 2.0)
"""Seconds between attempts to connect after a failure: the first, doubling up to the last, each with jitter."""
LIMIT_PAUSE = (5.0, 60.0)
"""Seconds for which the pool makes do with what it has when the server takes no more connections: the first time,
doubling up to the last while the server goes on refusing."""


_chance = random.Random()  # not the module's: what users seed is theirs


class Failure(NamedTuple):
    """What to do about an attempt to connect that failed."""

    retry_in: float | None
    """Seconds until the next attempt; None when it is waited for already, because of another one that failed."""
    first: bool
    """The first since one succeeded: worth a word."""
    lost: bool
    """It has gone on for `reconnect_timeout` now, which is told once."""


class Outage:
    def __init__(self, reconnect_timeout: float) -> None:
        self._reconnect_timeout = reconnect_timeout
        self._failures = 0
        self._retry_due = False
        self._since: float | None = None
        """When the first attempt failed; None when there is none, or when its length was told."""
        self._refusals = 0
        """Times that the server took no more connections, since one was opened above what it had taken."""

    def succeeded(self, *, at_limit: bool) -> None:
        """`at_limit`: while the pool makes do with what it has."""
        self._failures, self._since = 0, None
        if not at_limit:
            self._refusals = 0

    def failed(self, now: float, *, suffered: bool) -> Failure:
        """`suffered`: not when the server took no more connections, and the pool has some."""
        first = not self._failures
        if first and suffered:
            self._since = now
        retry_in = None
        if not self._retry_due:
            self._retry_due = True
            retry_in = _doubled(BACKOFF, self._failures)
            self._failures += 1
        lost = self._since is not None and now - self._since >= self._reconnect_timeout
        if lost:
            self._since = None
        return Failure(retry_in, first, lost)

    def refused(self) -> tuple[float, bool]:
        """The server takes no more connections. Gives the seconds to make do with what there is, and whether it is the
        first time."""
        pause, first = _doubled(LIMIT_PAUSE, self._refusals), not self._refusals
        self._refusals += 1
        return pause, first

    def tried_again(self, *, needed: bool) -> None:
        """The time of `Failure.retry_in` is over. Where nothing is `needed` any more, nobody suffers."""
        self._retry_due = False
        if not needed:
            self._failures, self._since = 0, None


def _doubled(bounds: tuple[float, float], times: int) -> float:
    """The first of `bounds` doubled so many times, at most the second, with jitter: many processes that have lost one
    server do not come back to it all at once."""
    first, most = bounds
    delay: float = min(most, first * 2 ** min(times, 30))
    return delay * _chance.uniform(0.8, 1.2)
