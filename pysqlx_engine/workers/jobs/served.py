"""How a worker that serves a queue comes by a dispatcher: it asks its supervisor, which starts one for all of them.

Imported by the supervisor and by every worker: it is light.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from ..logs import LogSpec

MAX_JOBS = "PYSQLX_MAX_JOBS"
MAX_MEMORY = "PYSQLX_MAX_MEMORY"
DIRECTORY = "PYSQLX_RUN_DIRECTORY"
"""The variable by which a worker knows that its supervisor can start dispatchers, and where they listen."""


class ServedQueue(msgspec.Struct, tag="served_queue", frozen=True):
    """What a worker asks its supervisor to have dispatched. Workers that run the same script ask for the same."""

    socket: str
    """Where the dispatcher is to listen."""
    uri: str | None
    """None: as the settings say."""
    max_size: int | None
    weights: dict[str, int]
    keep: float

    def __repr__(self) -> str:  # the URI may hold a password
        return f"ServedQueue({self.socket!r})"


@dataclass(frozen=True, slots=True)
class DispatcherSpec:
    """What a dispatcher process is started with."""

    name: str
    """As the supervisor calls it."""
    supervisor: int
    run: str
    queue: ServedQueue
    environment: dict[str, str] = field(repr=False)
    workers: Mapping[int, int]
    """Processes that may still run what a dispatcher before this one has given them, and how many queues that share
    its socket each of them serves."""
    workers_died: bool
    """Whether others have died that may have run something."""
    restarted: bool
    uvloop: bool
    logs: LogSpec = field(default_factory=LogSpec)


class Serving(msgspec.Struct, tag="serving", frozen=True):
    """A worker can be given jobs."""


class Recycle(msgspec.Struct, tag="recycle", frozen=True):
    """A worker asks to be replaced."""

    reason: str


class Retired(msgspec.Struct, tag="retired", frozen=True):
    """A worker that was told to retire has ended its last job."""


ask_supervisor: list[Callable[[ServedQueue | Serving | Recycle | Retired], None]] = []
"""What a worker process of a run has to say it by."""


def served_queue(uri: str | None, max_size: int | None, weights: Mapping[str, int], keep: float) -> ServedQueue | None:
    """The question, in a worker of a run with several; None elsewhere: there the dispatcher is in the process."""
    directory = os.environ.get(DIRECTORY)
    if not directory or not ask_supervisor:
        return None
    what = msgspec.json.encode([uri, max_size, sorted(weights.items()), keep])
    name = hashlib.sha256(what).hexdigest()[:8]
    return ServedQueue(os.path.join(directory, f"jobs-{name}.sock"), uri, max_size, dict(weights), keep)
