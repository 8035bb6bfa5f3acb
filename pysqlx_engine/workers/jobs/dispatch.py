"""Which worker gets which job, how many are to be claimed, and what is to be written.

Pure: no clock, no database, no sockets. Times are seconds, and given. `dispatcher` asks and writes.

A worker's credit is its free slots: it is never given more than it can begin, so a job never waits behind another one
in a worker while a second worker is idle. What is claimed beyond that waits in the hand, here, and is as much as was
finished in the last moments: many short jobs are claimed in large batches, and of long ones none is claimed before
somebody is there to run it. What has been in the hand for too long is given back, perhaps to another host.

Jobs whose handlers use connections are handed out, and claimed, up to the number of connections that there are for
them.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .attempts import Report, failed, given_back, snoozed
from .store import Claim, Claimed

AHEAD = 0.1
"""Seconds: as many jobs are claimed ahead as were finished within the last so many."""
MOST_AHEAD = 2000
LONGEST_IN_HAND = 1.0
"""Seconds that a claimed job may wait for a worker."""
UNKNOWN_TASK = 60_000_000
"""Microseconds until a job is tried again whose task no worker knows: a deployment may bring one that does."""
MANY = 50
"""Jobs that make a turn of the dispatcher a large one."""
_TYPICAL = 20
"""Claimed jobs that show what the next ones will be like."""
_MOST_NOTED = 10_000
"""Jobs of unknown tasks that are remembered, so that each is complained of once."""


@dataclass
class _Worker:
    slots: int
    tasks: Mapping[str, bool]
    """The tasks that it can run, and whether their handlers use connections."""
    jobs: dict[Claim, Claimed] = field(default_factory=dict)
    """What it was given, and has not reported yet: it may still run what was taken from it, and be given that again."""

    @property
    def free(self) -> int:
        return self.slots - len(self.jobs)


class Wanted(NamedTuple):
    jobs: int
    tasks: frozenset[str] | None = None
    """Of these tasks only; None: of any."""


NOTHING = Wanted(0)


class Dispatch:
    def __init__(self, connections: int) -> None:
        """`connections`: how many handlers that use connections can run at a time, in all workers together."""
        self._connections = connections
        self._connected = 0
        """Jobs at workers whose handlers use connections."""
        self._workers: dict[str, _Worker] = {}
        self._hand: list[Claimed] = []
        self._since: dict[Claim, float] = {}
        """Since when each job is in the hand."""
        self._finished: collections.deque[tuple[float, int, int]] = collections.deque()
        """When, how many were, and how many of those had used a connection."""
        self._share_with = 1.0
        """How many of the jobs that were claimed of late use a connection, of one."""
        self._noted: dict[int, None] = {}
        """Jobs of unknown tasks that were complained of, the oldest first."""
        self.unwritten: list[Report] = []
        """What has to be written. Whoever has written it takes it out."""
        self._put_aside: list[tuple[float, Report]] = []
        """What the database does not take, and when to try again."""
        self.freed: dict[str, int] = {}
        """Limits, by their keys, of which something may have ended. Whoever has looked takes them out."""
        self.draining = False
        """Nothing is claimed or handed out any more."""

    # -- workers --------------------------------------------------------------------------------------------------

    def join(self, name: str, slots: int, tasks: Mapping[str, bool], running: Collection[Claimed] = ()) -> None:
        """A worker is there. `running`: what it runs already, given to it before: what else it was given has never
        reached it."""
        before = self._workers.get(name)
        if before is not None:
            has = {job.claim for job in running}
            for key, job in list(before.jobs.items()):
                self._take(before, job)
                if key not in has:
                    self.unwritten.append(given_back(job))
        worker = self._workers[name] = _Worker(slots, dict(tasks))
        for job in running:
            self._give(worker, job)

    def leave(self, name: str, reason: str, *, well: bool = False) -> None:
        """A worker is gone, and with it what it ran: failed attempts, each to be made up for at once. `well`: it had
        ended all, and what it was given meanwhile has not begun."""
        worker = self._workers.pop(name, None)
        if worker is None:
            return
        for job in list(worker.jobs.values()):
            self._take(worker, job)
            self.unwritten.append(given_back(job) if well else failed(job, name, reason))

    def retire(self, name: str) -> None:
        """A worker takes no more jobs, and will report those that it has."""
        worker = self._workers.get(name)
        if worker is not None:
            worker.slots = 0

    def report(self, name: str, reports: Sequence[Report], now: float) -> None:
        """A worker has finished these. Of one that was taken for dead, or is not known any more, they are late: what
        they say is written all the same, if the rows still say that it runs."""
        worker = self._workers.get(name)
        connected = self._connected
        for report in reports:
            job = worker.jobs.get(report.attempt.claim) if worker is not None else None
            if worker is not None and job is not None:
                self._take(worker, job)
            if report.ended is not None or report.postponed is not None:
                self.unwritten.append(report)
        self._finished.append((now, len(reports), connected - self._connected))

    # -- jobs -----------------------------------------------------------------------------------------------------

    def wanted(self, now: float) -> Wanted:
        """What to claim."""
        if self.draining or not any(worker.slots for worker in self._workers.values()):
            return NOTHING
        while self._finished and self._finished[0][0] < now - AHEAD:
            self._finished.popleft()
        free = sum(max(0, worker.free) for worker in self._workers.values())
        ahead = min(MOST_AHEAD, sum(count for _, count, _ in self._finished))
        connects = self._connects()
        room = free + ahead - len(self._hand)
        if not any(connects.values()):
            return Wanted(max(0, room))
        # What needs a connection is claimed as far as there are connections, going by how many of the last ones did.
        # What needs none need not wait for it.
        waiting = sum(connects.get(job.task, False) for job in self._hand)
        ahead_with = min(MOST_AHEAD, sum(count for _, _, count in self._finished))
        room_with = self._connections - self._connected + ahead_with - waiting
        if room_with > 0:
            return Wanted(max(0, min(room, max(1, int(room_with / max(self._share_with, 0.001))))))
        others = frozenset(task for task, uses in connects.items() if not uses)
        return Wanted(max(0, room + waiting), others) if others else NOTHING

    def claimed(self, jobs: Sequence[Claimed], now: float, *, of_some: bool = False) -> None:
        """These were claimed, the most urgent first. `of_some`: of some tasks only."""
        if jobs and not of_some:
            connects = self._connects()
            share = sum(connects.get(job.task, False) for job in jobs) / len(jobs)
            self._share_with += (share - self._share_with) * min(1.0, len(jobs) / _TYPICAL)
        if self.draining:  # meanwhile
            self.unwritten += [given_back(job) for job in jobs]
            return
        self._hand += jobs
        if len({job.priority for job in self._hand}) > 1:
            self._hand.sort(key=lambda job: -job.priority)
        self._since.update((job.claim, now) for job in jobs)

    def hand_out(self, *, in_lots: bool = False) -> dict[str, list[Claimed]]:
        """Who gets what now. `in_lots`: only who has half of its slots free. Else, of many short jobs, each that ends
        would bring a message, and the next one, for ever."""
        given: dict[str, list[Claimed]] = {}
        if self.draining or not self._hand:
            return given
        kept: list[Claimed] = []
        free = {
            name: worker
            for name, worker in self._workers.items()
            if worker.free > 0 and (not in_lots or 2 * worker.free >= worker.slots)
        }
        known = self._connects()
        for place, job in enumerate(self._hand):
            if not free:
                kept += self._hand[place:]
                break
            if job.task not in known:
                self._nobody_knows(job)
                continue
            candidates = [name for name, worker in free.items() if self._may_have(worker, job)]
            if not candidates:
                kept.append(job)
                continue
            name = max(candidates, key=lambda name: free[name].free)
            worker = free[name]
            self._give(worker, job)
            given.setdefault(name, []).append(job)
            del self._since[job.claim]
            if worker.free <= 0:
                del free[name]
        self._hand = kept
        return given

    def give_back_old(self, now: float) -> None:
        """Give back what has waited here for too long."""
        old = {job.claim for job in self._hand if now - self._since[job.claim] >= LONGEST_IN_HAND}
        self._give_back(old)

    def give_back_queues(self, queues: Collection[str]) -> None:
        """Give back what has not begun and is of these."""
        self._give_back({job.claim for job in self._hand if job.queue in queues})

    def drop_hand(self) -> None:
        """What has not begun is somebody else's now."""
        self._hand.clear()
        self._since.clear()

    def put_aside(self, until: float) -> Report:
        """The first of what has to be written cannot be: it holds up nothing else until then."""
        report = self.unwritten.pop(0)
        self._put_aside.append((until, report))
        return report

    def take_up(self, now: float) -> None:
        """Have what was put aside written, if its time has come."""
        self.unwritten += [report for until, report in self._put_aside if until <= now]
        self._put_aside = [(until, report) for until, report in self._put_aside if until > now]

    @property
    def well_stocked(self) -> bool:
        """Whether the hand keeps the workers busy for a while, by what they have finished of late."""
        return len(self._hand) >= MANY and 2 * len(self._hand) >= sum(count for _, count, _ in self._finished)

    def drain(self) -> None:
        """Claim and hand out nothing any more, and give back what has not begun."""
        self.draining = True
        self._give_back(set(self._since))
        self.take_up(math.inf)  # a last time

    def holds(self) -> set[Claim]:
        """The claims that are known here: in the hand, at a worker, or on their way to the database."""
        found = {job.claim for job in self._hand}
        for worker in self._workers.values():
            found.update(worker.jobs)
        found.update(report.attempt.claim for report in self.unwritten)
        found.update(report.attempt.claim for _, report in self._put_aside)
        return found

    def who_has(self, ids: Collection[int]) -> dict[str, list[Claimed]]:
        """Which of these jobs run where."""
        found: dict[str, list[Claimed]] = {}
        for name, worker in self._workers.items():
            jobs = [job for job in worker.jobs.values() if job.id in ids]
            if jobs:
                found[name] = jobs
        return found

    def at_workers(self) -> set[Claim]:
        """The claims that workers have."""
        return {claim for worker in self._workers.values() for claim in worker.jobs}

    @property
    def idle(self) -> bool:
        """Whether nothing is claimed, and everything is written."""
        if self._hand or self.unwritten or (self._put_aside and not self.draining):
            return False
        return not any(worker.jobs for worker in self._workers.values())

    # -- the steps ------------------------------------------------------------------------------------------------

    def _connects(self) -> dict[str, bool]:
        """The tasks that any worker can run, and whether their handlers use connections."""
        return {task: uses for worker in self._workers.values() for task, uses in worker.tasks.items()}

    def _may_have(self, worker: _Worker, job: Claimed) -> bool:
        connects = worker.tasks.get(job.task)
        return connects is not None and (not connects or self._connected < self._connections)

    def _give(self, worker: _Worker, job: Claimed) -> None:
        worker.jobs[job.claim] = job
        self._connected += bool(worker.tasks.get(job.task))

    def _take(self, worker: _Worker, job: Claimed) -> None:
        del worker.jobs[job.claim]
        if job.limit_key is not None and job.limit_max is not None:
            self.freed[job.limit_key] = job.limit_max
        self._connected -= bool(worker.tasks.get(job.task))

    def _give_back(self, claims: Collection[Claim]) -> None:
        self.unwritten += [given_back(job) for job in self._hand if job.claim in claims]
        self._hand = [job for job in self._hand if job.claim not in claims]
        for claim in claims:
            del self._since[claim]

    def _nobody_knows(self, job: Claimed) -> None:
        del self._since[job.claim]
        if job.id in self._noted:
            self.unwritten.append(snoozed(job, UNKNOWN_TASK))
            return
        if len(self._noted) >= _MOST_NOTED:
            del self._noted[next(iter(self._noted))]
        self._noted[job.id] = None
        self.unwritten.append(snoozed(job, UNKNOWN_TASK, "dispatcher", f"no worker has a task named {job.task!r}"))
