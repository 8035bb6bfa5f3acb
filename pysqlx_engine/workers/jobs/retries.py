"""What a handler can say about its job besides "done" and "failed", and how long a failed one waits."""

from __future__ import annotations

import random
from dataclasses import dataclass


class Outcome(Exception):
    """To be returned or raised by a handler."""


class Retry(Outcome):
    """This attempt failed; the next one is in `after` seconds, if any is left. None: as the task's backoff says."""

    def __init__(self, after: float | None = None, reason: str = "") -> None:
        super().__init__(reason)
        self.after = None if after is None else _seconds("after", after)
        self.reason = str(reason)


class Snooze(Outcome):
    """Call the handler again in so many `seconds`. This was no attempt."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = _seconds("seconds", seconds)


class Cancel(Outcome):
    """The job is of no use any more: no further attempt."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = str(reason)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds before the next attempt: `first` after the first one, then `factor` times as many each time, up to
    `most`; and `jitter` is the part by which each wait is made longer or shorter at random, so that jobs that failed
    together do not come back together."""

    first: float = 2.0
    factor: float = 2.0
    most: float = 3600.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        _seconds("first", self.first)
        _seconds("most", self.most)
        if not 1.0 <= self.factor <= 100.0:
            raise ValueError(f"factor must be from 1 to 100, not {self.factor}")
        if not 0.0 <= self.jitter < 1.0:
            raise ValueError(f"jitter must be at least 0 and below 1, not {self.jitter}")

    def delay(self, attempt: int, chance: random.Random) -> float:
        """Seconds between the failure of `attempt`, which is 1 for the first, and the next one."""
        wait = self.first
        for _ in range(attempt - 1):
            if wait >= self.most:
                break
            wait *= self.factor
        return min(wait, self.most) * chance.uniform(1 - self.jitter, 1 + self.jitter)


LONGEST = 10 * 365 * 86400.0
"""Seconds that anything here can last."""


def _seconds(name: str, value: float) -> float:
    if not 0.0 <= value <= LONGEST:
        raise ValueError(f"{name} must be from 0 seconds to 10 years, not {value}")
    return float(value)
