"""Who is there and whether that is all, as the supervisor tells it: functions of the places and their processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .children import Child
from .counting import Counted
from .formation import Place
from .status import (
    BudgetStatus,
    Crew,
    CrewMember,
    Health,
    PoolLook,
    ProcessState,
    RunStatus,
    TotalsStatus,
    WorkerStatus,
    numbers,
)


def health_of(
    expected: list[Place], children: Mapping[int, Child], now: float, *, coordinator: bool, running: bool
) -> Health:
    """Whether all that is to be there is there. A worker that says neither of a pool nor of a queue is up when it has
    lived for a second. `running`: neither starting nor ending."""
    up = sum(children[place.process].is_up(now) for place in expected if place.process is not None)
    ready = up == len(expected) and coordinator and running
    return Health(ready=ready, workers=len(expected), up=up, coordinator=coordinator)


def crew_of(
    places: Mapping[int, Place], children: Mapping[int, Child], others: Iterable[Child], health: Health, now: float, *,
    stopping: bool,
) -> Crew:  # fmt: skip
    """`others`: processes besides the workers that join the coordinator."""
    workers = []
    for number in sorted(places):
        place = places[number]
        for pid in sorted(place.pids):
            child = children[pid]
            workers.append(
                CrewMember(
                    worker=number, pid=pid, state=_state(place, child, now, stopping=stopping),
                    uptime=round(now - child.started, 3), restarts=place.restarts,
                )
            )  # fmt: skip
        if place.restart_at is not None or place.waits_for_change:
            state = ProcessState.RESTARTING
            workers.append(CrewMember(worker=number, pid=None, state=state, uptime=0.0, restarts=place.restarts))
    return Crew(health=health, workers=workers, others={str(child.pid): child.name for child in others})


def _state(place: Place, child: Child, now: float, *, stopping: bool) -> ProcessState:
    if child.pid == place.successor:
        return ProcessState.TAKING_OVER
    if child.pid in place.former or place.retired or place.leaving or stopping:
        return ProcessState.ENDING
    return ProcessState.UP if child.is_up(now) else ProcessState.STARTING


def status_of(run: str, workers: list[Child], counted: Counted, health: Health, now: float) -> RunStatus:
    """A run that has no coordinator of its own, from what its workers have told of their pools, and from what was
    `counted`, also by those that are no more.

    The pools of a worker that joined nobody share one budget for each database. Of a budget that a coordinator of
    another run has, this is our run's part.
    """
    by_database: dict[str, list[PoolLook]] = {}
    for child in workers:
        for pool in child.pools or []:
            by_database.setdefault(pool.database, []).append(pool)
    budgets = []
    for database, pools in by_database.items():
        sums = numbers(pools)
        totals = TotalsStatus.of(counted.totals(database))
        size = max(pool.max_size for pool in pools)
        budgets.append(BudgetStatus(database=database, size=size, leased=sums.pop("leases"), totals=totals, **sums))
    shown = [
        WorkerStatus(
            worker=child.place.number, pid=child.pid, uptime=round(now - child.started, 3),
            restarts=child.place.restarts, pools=list(child.pools or ()), **numbers(child.pools or ()),
        )
        for child in workers
        if child.place is not None
    ]  # fmt: skip
    return RunStatus(run=run, health=health, budgets=budgets, workers=shown)
