"""What an attempt came to, as what has to be written. Decided by the job's life, and by nothing else."""

from __future__ import annotations

import functools

import msgspec

from .life import FINAL, Event, Life, State, after
from .store import Attempt, Claimed, Ended, Failure, Postponed


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """That an attempt is over."""

    attempt: Attempt
    ended: Ended | None = None
    postponed: Postponed | None = None
    """Neither: whoever ran it has written that it ended, in a transaction of its own."""
    failure: Failure | None = None
    hurry: bool = False
    """The next attempt may be at once."""


def completed(job: Claimed, result: str | None = None) -> Report:
    return _report(job, Event.COMPLETE, result=result)


def failed(job: Claimed, worker: str, error: str, traceback: str | None = None, *, wait: int = 0) -> Report:
    """`wait`: microseconds until the next attempt, if there is one."""
    return _report(job, Event.FAIL, wait=wait, failure=_failure(job, worker, error, traceback))


def snoozed(job: Claimed, wait: int, worker: str = "", error: str = "") -> Report:
    """`error`: why, where that is of interest to whoever looks at the job."""
    return _report(job, Event.SNOOZE, wait=wait, failure=_failure(job, worker, error) if error else None)


def given_back(job: Claimed) -> Report:
    return _report(job, Event.GIVE_BACK)


def abandoned(job: Claimed, worker: str, reason: str) -> Report:
    return _report(job, Event.ABANDON, failure=_failure(job, worker, reason) if reason else None)


def size_of(report: Report) -> int:
    """Characters of its texts."""
    result = report.ended.result if report.ended is not None else None
    failure = report.failure
    return len(result or "") + (len(failure.error) + len(failure.traceback or "") if failure is not None else 0)


def without_texts(report: Report) -> Report:
    """For a database that does not take them: that it is over, and how."""
    lost = "the database has not taken the result, or the error, of this attempt"
    key = report.attempt
    worker = report.failure.worker if report.failure is not None else "dispatcher"
    ended = msgspec.structs.replace(report.ended, result=None) if report.ended is not None else None
    return msgspec.structs.replace(
        report,
        ended=ended,
        failure=Failure(id=key.id, attempt=key.attempt, owner=key.owner, worker=worker, error=lost),
    )


def _report(
    job: Claimed, event: Event, *, wait: int | None = None, result: str | None = None, failure: Failure | None = None
) -> Report:
    state, attempt_after = _after(event, job.attempt, job.max_attempts)
    key = _attempt(job)
    if state in FINAL:
        ended = Ended(id=job.id, attempt=job.attempt, owner=job.owner, state=state, result=result)
        return Report(attempt=key, ended=ended, failure=failure)
    postponed = Postponed(
        id=job.id, attempt=job.attempt, owner=job.owner, state=state, attempt_after=attempt_after, wait=wait
    )
    return Report(attempt=key, postponed=postponed, failure=failure, hurry=state is State.AVAILABLE or wait == 0)


@functools.lru_cache(maxsize=1000)
def _after(event: Event, attempt: int, max_attempts: int) -> tuple[State, int]:
    life = after(Life(State.RUNNING, attempt, max_attempts, 1), event, attempt=attempt, owner=1)
    return life.state, life.attempt


def _attempt(job: Claimed) -> Attempt:
    return Attempt(id=job.id, attempt=job.attempt, owner=job.owner)


def _failure(job: Claimed, worker: str, error: str, traceback: str | None = None) -> Failure:
    return Failure(id=job.id, attempt=job.attempt, owner=job.owner, worker=worker, error=error, traceback=traceback)
