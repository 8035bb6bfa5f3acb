"""Periodic tasks: enqueued by the clock, once for each of their times, however many hosts there are.

The time at which a task was enqueued last is a row. Whoever moves it on enqueues, in the same transaction; who comes
second finds it moved. Of times that have passed while nobody was there only the last counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from cronsim import CronSim, CronSimError

from .dialects import Dialect
from .store import NewJob, Store

if TYPE_CHECKING:
    from ...engine.connection import PySQLXEngine

_MOST_MISSED = 1000
"""Times that are counted one by one. Of more only those of the last day are looked at."""


class Schedule(msgspec.Struct, frozen=True):
    """When a task is enqueued, and how. By the clock of the database server."""

    task: str
    cron: str
    zone: str
    queue: str
    priority: int
    max_attempts: int

    @property
    def unique_key(self) -> str:
        """While one has not ended, none is enqueued: a slow one does not pile up."""
        return f"periodic:{self.task}"


def check(cron: str, zone: str) -> None:
    """Raises ValueError for a line or a time zone that nobody understands, or a line whose time never comes."""
    try:
        next(CronSim(cron, datetime.now(ZoneInfo(zone))))
    except CronSimError as error:
        raise ValueError(f"{cron!r} is no line of five fields as cron has them: {error}") from None
    except StopIteration:
        raise ValueError(f"{cron!r}: its time never comes") from None
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{zone!r} is no time zone that is known here, such as UTC or Europe/Berlin") from None


def after(schedule: Schedule, moment: int) -> int:
    """Its next time after `moment`; both in microseconds since 1970."""
    local = datetime.fromtimestamp(moment // 1_000_000, UTC).astimezone(ZoneInfo(schedule.zone))
    return round(next(CronSim(schedule.cron, local)).timestamp()) * 1_000_000


def last_due(schedule: Schedule, since: int, now: int) -> int | None:
    """The last of its times after `since` that has come by `now`."""
    due: int | None = None
    for _ in range(_MOST_MISSED):
        following = after(schedule, since)
        if following > now:
            return due
        due = since = following
    return last_due(schedule, max(since, now - round(timedelta(days=1).total_seconds()) * 1_000_000), now) or due


class Ticks:
    """The statements about the times of periodic tasks."""

    def __init__(self, dialect: Dialect, store: Store) -> None:
        self._store = store
        ignored = "ON DUPLICATE KEY UPDATE tick = tick" if dialect.provider == "mysql" else "ON CONFLICT DO NOTHING"
        self._begin = f"INSERT INTO pysqlx_job_ticks (name, tick) VALUES (:name, :tick) {ignored}"
        self._move = "UPDATE pysqlx_job_ticks SET tick = :tick WHERE name = :name AND tick = :last"

    async def enqueue_due(self, connection: PySQLXEngine, schedules: Iterable[Schedule]) -> tuple[int, float]:
        """Enqueue what is due. Gives how many, and the seconds until the next time. To be called in a transaction."""
        now = await self._store.now(connection)
        known = {
            row["name"]: int(row["tick"])
            for row in await connection.query_as_dict("SELECT name, tick FROM pysqlx_job_ticks")
        }
        enqueued = 0
        following = []
        for schedule in schedules:
            last = known.get(schedule.task)
            if last is None:  # it is new: its first time is yet to come
                await connection.execute(self._begin, {"name": schedule.task, "tick": now})
                last = now
            due = last_due(schedule, last, now)
            if due is not None:
                moved = {"name": schedule.task, "tick": due, "last": last}
                if await connection.execute(self._move, moved) == 1:
                    job = NewJob(
                        queue=schedule.queue, task=schedule.task, args="{}", priority=schedule.priority,
                        max_attempts=schedule.max_attempts, unique_key=schedule.unique_key,
                    )  # fmt: skip
                    await self._store.enqueue(connection, [job])
                    enqueued += 1
                last = due
            following.append(after(schedule, max(last, now)))
        return enqueued, max(0.0, (min(following) - now) / 1_000_000)
