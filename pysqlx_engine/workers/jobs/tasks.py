"""Tasks: functions whose calls can be enqueued, and with which options."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from ...errors import JobArgumentsError
from .retries import LONGEST, Backoff
from .signature import Signature, read_signature
from .store import NewJob

if TYPE_CHECKING:
    from ...engine.connection import PySQLXEngine, PySQLXEngineSync
    from .queue import JobQueue

P = ParamSpec("P")
R = TypeVar("R")

MOST_ATTEMPTS = 1000
LONGEST_NAME = 255
LONGEST_TASK_NAME = 240
"""Keys are made of it."""
_PRIORITIES = 1_000_000


@dataclass(frozen=True)
class TaskOptions:
    """How the jobs of a task are run. Times are in seconds."""

    queue: str = "default"
    max_attempts: int = 20
    timeout: float | None = None
    """How long one attempt may take, without its wait for a connection; None: as long as it likes."""
    priority: int = 0
    """Higher runs first."""
    backoff: Backoff = field(default_factory=Backoff)
    transactional: bool = False
    """What the handler does by its connection, and that the job is completed, commit together or not at all."""
    store_result: bool = False
    """Keep what the handler returns, for `JobQueue.result`."""
    limit: int | None = None
    """How many of its jobs run at a time, over all hosts: of all, or of those with the same `limit_key`."""

    def __post_init__(self) -> None:
        check_name("queue", self.queue)
        _whole("max_attempts", self.max_attempts, 1, MOST_ATTEMPTS)
        _whole("priority", self.priority, -_PRIORITIES, _PRIORITIES)
        if self.timeout is not None and not 0 < self.timeout <= LONGEST:
            raise ValueError(f"timeout must be more than 0 seconds, not {self.timeout}")
        if self.limit is not None:
            _whole("limit", self.limit, 1, 100_000)


@dataclass(frozen=True)
class EnqueueOptions:
    """When, where and how often a job is to run: what it does not say is the task's."""

    delay: float = 0.0
    at: datetime | None = None
    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    unique_key: str | None = None
    limit_key: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.delay) and 0 <= self.delay <= LONGEST):
            raise ValueError(f"delay must be from 0 seconds to 10 years, not {self.delay}")
        if self.at is not None and self.at.tzinfo is None:
            raise ValueError("at must be a time with a zone: datetime.now(UTC) + ...")
        if self.at is not None and self.delay:
            raise ValueError("at and delay exclude each other")
        if self.queue is not None:
            check_name("queue", self.queue)
        if self.priority is not None:
            _whole("priority", self.priority, -_PRIORITIES, _PRIORITIES)
        if self.max_attempts is not None:
            _whole("max_attempts", self.max_attempts, 1, MOST_ATTEMPTS)
        if self.unique_key is not None:
            check_name("unique_key", self.unique_key)
        if self.limit_key is not None:
            check_name("limit_key", self.limit_key)


class Enqueuer:
    """Enqueues the jobs of a task, with some options."""

    def __init__(self, task: Task[Any, Any], options: EnqueueOptions) -> None:
        self._task = task
        self._options = options

    def options(
        self,
        *,
        delay: float | None = None,
        at: datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
        max_attempts: int | None = None,
        unique_key: str | None = None,
        limit_key: str | None = None,
    ) -> Enqueuer:
        """The same with other options.

        Args:
            delay: seconds from now, by the database server's clock.
            at: or when, a time with a zone.
            queue: in place of the task's.
            priority: higher runs first; -1000000 to 1000000.
            max_attempts: 1 to 1000.
            unique_key: while a job with this key has not ended, no second one is enqueued: the id is the first one's.
            limit_key: the task's `limit` counts the jobs with this key, which may be of several tasks, instead of all
                of the task.

        Raises ValueError or TypeError for a value outside its range.
        """
        said: dict[str, Any] = {
            "delay": delay, "at": at, "queue": queue, "priority": priority, "max_attempts": max_attempts,
            "unique_key": unique_key, "limit_key": limit_key,
        }  # fmt: skip
        if limit_key is not None and self._task.task_options.limit is None:
            raise ValueError(f"{self._task.name} has no limit: @queue.task(limit=...) says how many with a key may run")
        changed = {name: value for name, value in said.items() if value is not None}
        return Enqueuer(self._task, replace(self._options, **changed))

    async def enqueue(self, *, conn: PySQLXEngine | None = None, **arguments: Any) -> int:
        """Enqueue one job, and give its id.

        `conn`: enqueue by this connection, and so in its transaction if it has begun one. Without it, a handler that
        was given a connection uses that one, and everybody else the queue's pool. Raises JobArgumentsError for
        arguments that do not fit, and what a query raises.
        """
        (id_,) = await self._task.queue.enqueue(self._jobs([arguments]), conn)
        return id_

    async def enqueue_many(
        self, arguments: Sequence[Mapping[str, Any]], *, conn: PySQLXEngine | None = None
    ) -> list[int]:
        """Enqueue a job for each of the `arguments`, all or none, and give their ids. See `enqueue`.

        By a `conn` of which nobody can tell whether a transaction is open (after CALL, several statements at once or
        SET autocommit) what takes several statements may be enqueued in part, if it fails."""
        return await self._task.queue.enqueue(self._jobs(arguments), conn)

    def enqueue_sync(self, *, conn: PySQLXEngineSync | None = None, **arguments: Any) -> int:
        """`enqueue`, for threads."""
        (id_,) = self._task.queue.enqueue_sync(self._jobs([arguments]), conn)
        return id_

    def enqueue_many_sync(
        self, arguments: Sequence[Mapping[str, Any]], *, conn: PySQLXEngineSync | None = None
    ) -> list[int]:
        """`enqueue_many`, for threads."""
        return self._task.queue.enqueue_sync(self._jobs(arguments), conn)

    def _jobs(self, many: Sequence[Mapping[str, Any]]) -> list[NewJob]:
        task, said = self._task, self._options
        options = task.task_options
        queue = options.queue if said.queue is None else said.queue
        priority = options.priority if said.priority is None else said.priority
        max_attempts = options.max_attempts if said.max_attempts is None else said.max_attempts
        delay = round(said.delay * 1_000_000)
        at = None if said.at is None else round(said.at.timestamp() * 1_000_000)
        limit_key = None
        if options.limit is not None:
            limit_key = f"task:{task.name}" if said.limit_key is None else said.limit_key
        jobs = []
        for arguments in many:
            try:
                args = task.signature.encode(arguments)
            except JobArgumentsError as error:
                raise JobArgumentsError(f"{task.name}: {error}") from None
            size = len(args) if args.isascii() else len(args.encode())
            if size > task.queue.max_payload:
                raise JobArgumentsError(
                    f"{task.name}: the arguments are {size} bytes of JSON, and the queue takes up to "
                    f"{task.queue.max_payload} (JobQueue(max_payload=...)): store what is large elsewhere, and enqueue "
                    "where it is"
                )
            jobs.append(
                NewJob(
                    queue=queue, task=task.name, args=args, priority=priority, max_attempts=max_attempts, delay=delay,
                    at=at, unique_key=said.unique_key, limit_key=limit_key, limit_max=options.limit,
                )
            )  # fmt: skip
        return jobs


class Task(Enqueuer, Generic[P, R]):
    """A function whose calls can be enqueued. To call it runs it here and now, as any function."""

    def __init__(self, queue: JobQueue, name: str, function: Callable[P, R], options: TaskOptions) -> None:
        """Raises TypeError for a function that cannot be a handler, ValueError for options that do not fit it."""
        super().__init__(self, EnqueueOptions())
        self.queue = queue
        self.name = name
        self.function = function
        self.task_options = options
        self.signature: Signature = read_signature(function)
        if options.transactional and self.signature.connection is None:
            raise TypeError(
                f"{name} is transactional, but has no connection: annotate a parameter with "
                + ("PySQLXEngine" if self.signature.is_async else "PySQLXEngineSync")
            )
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name!r}>"


def check_name(what: str, name: str, longest: int = LONGEST_NAME) -> None:
    """Raises ValueError or TypeError for what cannot name a queue, a task or a key."""
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a text, not {name!r}")
    if not 1 <= len(name) <= longest or not name.isprintable():
        raise ValueError(f"{what} must have 1 to {longest} printable characters, not {name!r}")


def _whole(what: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{what} must be a whole number, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{what} must be from {least} to {most}, not {value}")
