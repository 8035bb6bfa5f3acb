"""Many processes: the supervisor behind `pysqlx-run`, its workers, and the coordinator that holds their budget; and the
job queue that they work on."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .jobs.job import Job as Job
    from .jobs.queue import JobQueue as JobQueue
    from .jobs.retries import Backoff as Backoff
    from .jobs.retries import Cancel as Cancel
    from .jobs.retries import Retry as Retry
    from .jobs.retries import Snooze as Snooze

__all__ = ["Backoff", "Cancel", "Job", "JobQueue", "Retry", "Snooze"]

_HOMES = {"Job": "job", "JobQueue": "queue", "Backoff": "retries", "Cancel": "retries", "Retry": "retries",
          "Snooze": "retries"}  # fmt: skip


def __getattr__(name: str) -> object:
    # Not imported with the package: the supervisor and the coordinator are in it, too, and need none of this.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f".jobs.{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
