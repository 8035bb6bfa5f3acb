"""Looks at jobs: lists, one job with all that went wrong, counts. None of them changes or locks anything.

Each question about jobs is one statement over what has not ended and what has, so that a job which ends meanwhile is
seen once. History can be long: what is asked of it goes by an index, or ends at a limit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from .dialects import Dialect
from .life import FINAL, State
from .store import rows_of

if TYPE_CHECKING:
    from ...engine.connection import PySQLXEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIMES = frozenset({"created_at", "run_at", "claimed_at", "cancel_asked_at", "ended_at", "at", "paused_at"})
_COLUMNS = (
    "id", "task", "queue", "state", "held", "priority", "attempt", "max_attempts", "created_at", "run_at",
    "claimed_at", "cancel_asked_at", "progress",
)  # fmt: skip
_MORE_COLUMNS = (*_COLUMNS, "owner", "unique_key", "limit_key", "limit_max", "args")
_ERROR_IN_A_LIST = 200
_NOT_ENDED = frozenset(State) - FINAL


class _Job(msgspec.Struct, frozen=True, kw_only=True):
    """What every look at a job shows. Times are aware, in UTC, by the database server's clock."""

    id: int
    task: str
    queue: str
    state: State
    held: bool
    """It is available, but as many jobs with its limit run as may."""
    priority: int
    attempt: int
    max_attempts: int
    created_at: datetime
    run_at: datetime
    """From when on it could run."""
    claimed_at: datetime | None
    """When the attempt began that runs, or was the last."""
    cancel_asked_at: datetime | None
    ended_at: datetime | None
    progress: str | None


class ListedJob(_Job, frozen=True, kw_only=True):
    """A job in a list."""

    error: str | None
    """The beginning of what went wrong last, if anything did."""


class AttemptError(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong in an attempt."""

    attempt: int
    at: datetime
    worker: str
    error: str
    traceback: str | None


class WholeJob(_Job, frozen=True, kw_only=True):
    """Everything about a job."""

    owner: int | None
    """Whose claim it is: see `presence`."""
    unique_key: str | None
    limit_key: str | None
    limit_max: int | None
    args: str
    result: str | None
    """JSON, as `args` is."""
    errors: list[AttemptError]
    """Of every attempt, the first one first."""


class TaskCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How the jobs of one task in one queue stand."""

    queue: str
    task: str
    states: dict[State, int]
    """How many are in each state; a state without any is left out."""
    held: int
    """How many of the available ones wait for the end of others with their limit."""
    oldest_waits: float | None
    """Seconds since the first of those that may be claimed could run; None: there is none."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """What has ended of one task in one queue, with one outcome."""

    queue: str
    task: str
    state: State
    count: int
    ran: float
    """Seconds that their last attempts ran, all together."""
    waited: float
    """Seconds from when these could run until they did, all together."""


class PausedQueue(msgspec.Struct, frozen=True):
    name: str
    paused_at: datetime


@dataclass(frozen=True)
class Filter:
    """Which jobs are meant; what it does not say does not matter."""

    states: frozenset[State] = frozenset(State)
    """At least one."""
    queue: str | None = None
    task: str | None = None

    def condition(self, of: frozenset[State]) -> str | None:
        """For a table whose jobs have the states `of`; None: nothing in it is meant. Its parameters are `asked`."""
        states = self.states & of
        if not states:
            return None
        parts = [f"{column} = :{column}" for column in ("queue", "task") if getattr(self, column) is not None]
        if states != of:
            parts.append(f"state IN ({', '.join(repr(str(state)) for state in sorted(states))})")
        return " AND ".join(parts) or "true"

    @property
    def asked(self) -> dict[str, str]:
        return {name: value for name in ("queue", "task") if (value := getattr(self, name)) is not None}


class Views:
    """The questions for one kind of database."""

    def __init__(self, dialect: Dialect) -> None:
        self._now = dialect.now
        self._rows = dialect.rows(id="integer")

    async def jobs(
        self, connection: PySQLXEngine, which: Filter, most: int, before: int | None = None
    ) -> list[ListedJob]:
        """At most so many, the newest first. `before`: only those with a smaller id."""
        bound = "true" if before is None else "id < :before"
        some = _from_both(_COLUMNS, which, bound, "id DESC")
        error = (
            f"(SELECT substr(e.error, 1, {_ERROR_IN_A_LIST}) FROM pysqlx_job_errors e WHERE e.job_id = j.id "
            "ORDER BY e.id DESC LIMIT 1) AS error"
        )
        rows = await connection.query_as_dict(
            f"SELECT j.*, {error} FROM {some} AS j ORDER BY j.id DESC LIMIT :most",
            {**which.asked, "most": most, **({} if before is None else {"before": before})},
        )
        return [msgspec.convert(_in_python(row), ListedJob) for row in rows]

    async def job(self, connection: PySQLXEngine, id_: int) -> WholeJob | None:
        """One job; None: there is none."""
        columns = ", ".join(_MORE_COLUMNS)
        rows = await connection.query_as_dict(
            f"SELECT {columns}, ended_at, result FROM pysqlx_jobs_ended WHERE id = :id UNION ALL "
            f"SELECT {columns}, NULL AS ended_at, NULL AS result FROM pysqlx_jobs WHERE id = :id",
            {"id": id_},
        )
        if not rows:
            return None
        errors = await connection.query_as_dict(
            "SELECT attempt, at, worker, error, traceback FROM pysqlx_job_errors WHERE job_id = :id ORDER BY id",
            {"id": id_},
        )
        return msgspec.convert({**_in_python(rows[0]), "errors": [_in_python(row) for row in errors]}, WholeJob)

    async def states(self, connection: PySQLXEngine, ids: Iterable[int]) -> dict[int, State]:
        """How each of these stands; one that does not exist is left out."""
        rows = await connection.query_as_dict(
            f"SELECT j.id, j.state FROM pysqlx_jobs j JOIN {self._rows} ON r.id = j.id UNION ALL "
            f"SELECT j.id, j.state FROM pysqlx_jobs_ended j JOIN {self._rows} ON r.id = j.id",
            {"rows": rows_of("id", ids)},
        )
        return {int(row["id"]): State(row["state"]) for row in rows}

    async def newest(self, connection: PySQLXEngine) -> int:
        """The greatest id that a job has; 0: there is none."""
        (row,) = await connection.query_as_dict(
            "SELECT coalesce(max(id), 0) AS id FROM "
            "(SELECT max(id) AS id FROM pysqlx_jobs UNION ALL SELECT max(id) AS id FROM pysqlx_jobs_ended) AS j"
        )
        return int(row["id"])

    async def ids(self, connection: PySQLXEngine, which: Filter, most: int, after: int, last: int) -> list[int]:
        """The ids of at most so many, the oldest first, from the one that follows `after` up to `last`."""
        some = _from_both(("id",), which, "id > :after AND id <= :last", "id")
        rows = await connection.query_as_dict(
            f"SELECT j.id FROM {some} AS j ORDER BY j.id LIMIT :most",
            {**which.asked, "most": most, "after": after, "last": last},
        )
        return [int(row["id"]) for row in rows]

    async def counts(self, connection: PySQLXEngine, within: float) -> list[TaskCounts]:
        """By queue and task: what has not ended, and what has ended within so many seconds."""
        rows = await connection.query_as_dict(
            "SELECT queue, task, state, count(*) AS n, sum(held) AS held, "
            f"{self._now} - min(CASE WHEN state = 'available' AND held = 0 THEN run_at END) AS waits "
            "FROM pysqlx_jobs GROUP BY queue, task, state"
        )
        if within > 0:
            rows += await connection.query_as_dict(
                "SELECT queue, task, state, count(*) AS n, 0 AS held, NULL AS waits FROM pysqlx_jobs_ended "
                f"WHERE ended_at >= {self._now} - :within GROUP BY queue, task, state",
                {"within": round(within * 1_000_000)},
            )
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in rows:
            found.setdefault((row["queue"], row["task"]), []).append(row)
        return [
            TaskCounts(
                queue=queue,
                task=task,
                states={State(row["state"]): int(row["n"]) for row in of_task},
                held=sum(int(row["held"]) for row in of_task),
                oldest_waits=next(
                    (max(0, int(row["waits"])) / 1e6 for row in of_task if row["waits"] is not None), None
                ),
            )
            for (queue, task), of_task in sorted(found.items())
        ]

    async def ended(self, connection: PySQLXEngine, since: int, until: int) -> list[Ended]:
        """By queue, task and outcome: what has ended from `since` to before `until`, in microseconds since 1970 by the
        server's clock. By the index of the time: it costs what has ended."""
        ran = "coalesce(sum(CASE WHEN claimed_at > 0 THEN ended_at - claimed_at END), 0)"
        waited = "coalesce(sum(CASE WHEN claimed_at > run_at THEN claimed_at - run_at END), 0)"
        rows = await connection.query_as_dict(
            f"SELECT queue, task, state, count(*) AS n, {ran} AS ran, {waited} AS waited FROM pysqlx_jobs_ended "
            "WHERE ended_at >= :since AND ended_at < :until GROUP BY queue, task, state",
            {"since": since, "until": until},
        )
        return [
            Ended(
                queue=row["queue"], task=row["task"], state=State(row["state"]), count=int(row["n"]),
                ran=int(row["ran"]) / 1e6, waited=int(row["waited"]) / 1e6,
            )
            for row in rows
        ]  # fmt: skip

    async def paused(self, connection: PySQLXEngine) -> list[PausedQueue]:
        rows = await connection.query_as_dict(
            "SELECT name, paused_at FROM pysqlx_job_queues WHERE paused_at IS NOT NULL ORDER BY name"
        )
        return [PausedQueue(**_in_python(row)) for row in rows]


def _from_both(columns: tuple[str, ...], which: Filter, bound: str, order: str) -> str:
    """A table expression: the jobs that are meant, with `ended_at`; of each table the first `:most` in its own order,
    so that neither is read to its end."""
    names = ", ".join(columns)
    parts = []
    ended = which.condition(FINAL)
    if ended is not None:
        first = (
            f"SELECT {names}, ended_at FROM pysqlx_jobs_ended WHERE {bound} AND {ended} ORDER BY {order} LIMIT :most"
        )
        parts.append(f"SELECT e.* FROM ({first}) AS e")
    left = which.condition(_NOT_ENDED)
    if left is not None:
        first = f"SELECT {names} FROM pysqlx_jobs WHERE {bound} AND {left} ORDER BY {order} LIMIT :most"
        # Not within: PostgreSQL would take a NULL of a subquery for a text.
        parts.append(f"SELECT l.*, NULL AS ended_at FROM ({first}) AS l")
    return f"({' UNION ALL '.join(parts)})"


def _in_python(row: dict[str, Any]) -> dict[str, Any]:
    values = {
        name: _EPOCH + timedelta(microseconds=int(value)) if name in _TIMES and value is not None else value
        for name, value in row.items()
    }
    return values | {"held": bool(values["held"])} if "held" in values else values
