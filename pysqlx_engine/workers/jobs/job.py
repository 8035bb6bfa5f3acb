"""A job, as its handler sees it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from .store import Claimed


class Job:
    """The job that a handler runs. Times are aware, in UTC, by the database server's clock."""

    def __init__(self, claimed: Claimed, set_progress: Callable[[Claimed, str], None]) -> None:
        self._claimed = claimed
        self._set_progress = set_progress
        self._cancel_asked = False

    @property
    def id(self) -> int:
        return self._claimed.id

    @property
    def task(self) -> str:
        return self._claimed.task

    @property
    def queue(self) -> str:
        return self._claimed.queue

    @property
    def priority(self) -> int:
        return self._claimed.priority

    @property
    def attempt(self) -> int:
        """Which attempt this is: 1 for the first."""
        return self._claimed.attempt

    @property
    def max_attempts(self) -> int:
        return self._claimed.max_attempts

    @property
    def created_at(self) -> datetime:
        return datetime.fromtimestamp(self._claimed.created_at / 1_000_000, UTC)

    @property
    def run_at(self) -> datetime:
        """From when on it could run."""
        return datetime.fromtimestamp(self._claimed.run_at / 1_000_000, UTC)

    @property
    def cancel_asked(self) -> bool:
        """Whether the handler is to stop: somebody cancels the job, its time is over, or its worker ends. A coroutine
        is cancelled besides; a plain function has to look at this where it can stop."""
        return self._cancel_asked

    def set_progress(self, text: str) -> None:
        """Say how far it is, for `pysqlx-ctl jobs show` and the column `progress`; at most 1000 characters. Does not
        wait until it is written."""
        self._set_progress(self._claimed, text[:1000])

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.task!r} attempt {self.attempt}/{self.max_attempts}>"
