"""What a run answers when it is asked for its status: the shape that `pysqlx-ctl status --json` prints.

The coordinator answers for budgets and whoever has joined it, a supervisor without one for its worker; `Crew` is what a
supervisor knows of the processes that it has started, and `merged` puts both together. Fields may be added; none is
renamed, and none changes its meaning.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from .messages import Durations, Totals

if TYPE_CHECKING:
    from ..pool.runtime import PoolRuntime

__all__ = [
    "BudgetStatus",
    "Crew",
    "CrewMember",
    "Health",
    "Histogram",
    "PoolLook",
    "PoolStatus",
    "ProcessState",
    "RunStatus",
    "TotalsStatus",
    "WorkerStatus",
    "merged",
    "numbers",
    "schema",
]

Count = Annotated[int, Meta(ge=0)]


class _Numbers(msgspec.Struct, kw_only=True):
    leases: Count
    """Leases held: connections that are open, being opened or being closed, and leases about to be used."""
    in_use: Count
    idle: Count
    waiting: Count
    """Tasks or threads that wait for a connection."""


class PoolStatus(_Numbers, kw_only=True):
    """One pool of one process."""

    name: str
    database: str


def numbers(pools: Iterable[PoolStatus]) -> dict[str, Any]:
    """Those of several pools together."""
    pools = list(pools)
    return {name: sum(getattr(pool, name) for pool in pools) for name in _Numbers.__struct_fields__}


class PoolLook(PoolStatus, kw_only=True):
    """What a worker that has joined nobody tells its supervisor of one pool."""

    max_size: int
    totals: Totals
    """Since the pool was started; another start has another number in it."""

    @staticmethod
    def at(runtime: PoolRuntime) -> PoolLook:
        stats = runtime.stats()
        return PoolLook(
            name=stats.name, database=stats.database, leases=stats.held, in_use=stats.in_use, idle=stats.idle,
            waiting=stats.waiting, max_size=stats.max_size, totals=Totals.of(runtime.number, runtime.tell_counters()),
        )  # fmt: skip


class ProcessState(enum.StrEnum):
    STARTING = "starting"
    UP = "up"
    TAKING_OVER = "taking over"
    """It is to take another one's place, and is not up yet."""
    ENDING = "ending"
    """Told to end, or replaced: it ends what it does."""
    RESTARTING = "restarting"
    """It has died, and the next one has not been started."""


class WorkerStatus(_Numbers, kw_only=True):
    """One process: a worker, or whoever else has joined."""

    worker: int | None
    """Its number in the run; null: it is none, but a dispatcher, or a process that somebody else has started."""
    pid: int | None
    """null while it is restarting."""
    name: str | None = None
    """What the supervisor of this run calls it: worker 3, dispatcher, observer. null: it has not started it."""
    state: ProcessState | None = None
    """null: the supervisor of this run has not started it."""
    uptime: float
    """Seconds since it was started; of one that somebody else has started, since it joined."""
    restarts: Count
    """How often a worker before it has died."""
    pools: list[PoolStatus]

    @property
    def called(self) -> str:
        if self.name is not None:
            return self.name
        return f"pid {self.pid}" if self.worker is None else f"worker {self.worker}"


class CrewMember(msgspec.Struct, kw_only=True):
    """A worker, as its supervisor knows it."""

    worker: int
    pid: int | None
    state: ProcessState
    uptime: float
    restarts: Count


class Health(msgspec.Struct, kw_only=True):
    """Whether all that is to be there is there."""

    ready: bool
    workers: Count | None = None
    """Workers that there are to be; null: a coordinator alone, which knows of none, or the supervisor does not
    answer."""
    up: Count | None = None
    """How many of them are up."""
    coordinator: bool
    """Whether the coordinator is there, if the run has one."""
    supervisor: bool = True
    """Whether the supervisor answers, if the run has one."""

    @property
    def missing(self) -> list[str]:
        """Who is not there, besides workers."""
        said = {"the supervisor does not answer": self.supervisor, "the coordinator is not there": self.coordinator}
        return [text for text, there in said.items() if not there]


class Crew(msgspec.Struct, kw_only=True):
    """What a supervisor knows without asking anybody."""

    health: Health
    workers: list[CrewMember]
    others: dict[str, str]
    """What the others are called that join the coordinator, by their pids."""


class Histogram(msgspec.Struct, kw_only=True):
    """Durations that were counted."""

    count: Count
    sum: float
    """Seconds, all together."""
    buckets: list[Count]
    """How many were shorter than 1, 2, 4, 8, ... microseconds, and not than the bound before. Empty ones at the end are
    left out."""

    @staticmethod
    def of(durations: Durations) -> Histogram:
        return Histogram(count=sum(durations.buckets), sum=round(durations.sum, 6), buckets=durations.buckets)


class TotalsStatus(msgspec.Struct, kw_only=True):
    """What the pools of one database have counted, those that are no more too. It only grows, until the coordinator is
    started anew. Of a process that was killed it has what it said last, when somebody asked for a status."""

    requests: Count
    """Check-outs that were asked for."""
    requests_waited: Count
    """Those that found no idle connection."""
    timeouts: Count
    """Those that ended with PoolTimeoutError."""
    opened: Count
    open_errors: Count
    closed: Count
    found_dead: Count
    """Connections that had died while they were idle, and were replaced before somebody got them."""
    rolled_back: Count
    """Check-ins that had to roll a transaction back."""
    wait: Histogram
    """From asking for a connection to having it, or to giving up."""
    hold: Histogram
    """From check-out to check-in."""
    open: Histogram
    """From the start of a connect until the connection was ready."""
    close: Histogram
    """From dropping a connection until the server had let go of it."""

    @staticmethod
    def of(totals: Totals) -> TotalsStatus:
        counted: dict[str, Any] = msgspec.structs.asdict(totals)
        del counted["pool"]
        for name, one in counted.items():
            if isinstance(one, Durations):
                counted[name] = Histogram.of(one)
        return TotalsStatus(**counted)


class BudgetStatus(msgspec.Struct, kw_only=True):
    """The budget of one database."""

    database: str
    """Its address, without user, password and options."""
    size: Count
    """Connections that all together may have."""
    leased: Count
    """Leases charged now, whatever they are used for. More than `size` only after the budget was made smaller."""
    in_use: Count
    idle: Count
    waiting: Count
    reserved: Count = 0
    """1 where a lease is kept for ending the sessions of lost hosts."""
    granted: Count = 0
    connecting: Count = 0
    open: Count = 0
    closing: Count = 0
    quarantined: Count = 0
    """How far the leases have come: nothing opened yet, being opened, open, being closed, and those of dead processes
    that the server was not seen to let go of. 0 where there is no coordinator."""
    let_go: Count = 0
    """Sessions of dead processes that the server has let go of, until now."""
    longest_let_go: float = 0.0
    """Seconds: the longest time that one took."""
    recalled: Count = 0
    """Leases that were asked back, until now."""
    totals: TotalsStatus

    @property
    def usable(self) -> int:
        return self.size - self.reserved


class RunStatus(msgspec.Struct, kw_only=True):
    """One run, or one coordinator."""

    run: str
    health: Health
    budgets: list[BudgetStatus]
    workers: list[WorkerStatus]
    deaths: Count | None = None
    """Processes that died, or could not be reached any more, without having closed their pools, as the coordinator has
    counted. null: there is none, or it does not answer."""


def merged(status: RunStatus, crew: Crew) -> RunStatus:
    """What the coordinator says of those who have joined it, with what the supervisor says of those it has started."""
    joined = {worker.pid: worker for worker in status.workers}
    workers = []
    for one in crew.workers:
        seen = joined.pop(one.pid, None) if one.pid is not None else None
        pools = seen.pools if seen is not None else []
        workers.append(
            WorkerStatus(
                worker=one.worker, pid=one.pid, name=f"worker {one.worker}", state=one.state, uptime=one.uptime,
                restarts=one.restarts, pools=pools, **numbers(pools),
            )
        )  # fmt: skip
    workers += [
        msgspec.structs.replace(worker, name=crew.others.get(str(worker.pid)))
        for worker in status.workers
        if worker.pid in joined
    ]
    return msgspec.structs.replace(status, health=crew.health, workers=workers)


def schema() -> dict[str, Any]:
    """The JSON Schema of a status."""
    return msgspec.json.schema(RunStatus)
