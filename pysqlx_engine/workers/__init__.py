"""Many processes: the supervisor behind `pysqlx-run`, its workers, and the coordinator that holds their budget; and the
job queue that they work on."""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .jobs.job import Job as Job
    from .jobs.queue import JobQueue as JobQueue
    from .jobs.retries import Backoff as Backoff
    from .jobs.retries import Cancel as Cancel
    from .jobs.retries import Retry as Retry
    from .jobs.retries import Snooze as Snooze

__all__ = ["Backoff", "Cancel", "Job", "JobQueue", "Retry", "Snooze"]

if not TYPE_CHECKING:  # which would take every name for one of ours
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Backoff": "jobs.retries",
            "Cancel": "jobs.retries",
            "Job": "jobs.job",
            "JobQueue": "jobs.queue",
            "Retry": "jobs.retries",
            "Snooze": "jobs.retries",
        },
    )
