"""A worker whose dispatcher is another process: it runs what it is sent, and reports until that is written.

The dispatcher may die and be replaced at any time. What runs goes on; the next dispatcher is told what that is, and of
every report that is not known to be written.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from typing import TYPE_CHECKING

from ...log_config import part
from .attempts import Report, given_back
from .runner import LAST_WORDS, Runner, first_of
from .served import Serving, ask_supervisor
from .store import Claim, Progress
from .wire import Cancel, Channel, FromWorker, HowFar, Join, Leave, Reports, Retire, Run, ToWorker, Written

if TYPE_CHECKING:
    from .pools import QueuePools
    from .queue import JobQueue
    from .serving import Told

logger = part("jobs")

_PROGRESS_EVERY = 0.1
"""Seconds between two messages of how far the jobs are."""
_AGAIN = 0.02, 0.2
"""Seconds between two attempts to reach the dispatcher: at first, and growing to the second."""


_places = itertools.count()


class LinkedWorker:
    def __init__(self, queue: JobQueue, pools: QueuePools, path: str) -> None:
        self._queue = queue
        self._path = path
        self._name = f"worker {os.environ.get('PYSQLX_WORKER_ID', '?')} ({os.getpid()})"
        if place := next(_places):  # a process may serve several queues
            self._name += f" {place + 1}"
        self._runner = Runner(
            self._name,
            queue,
            pools,
            report=self._report,
            set_progress=self._set_progress,
        )
        self._channel: Channel[ToWorker] | None = None
        self._kept: dict[Claim, Report] = {}
        """Reports that are not known to be written."""
        self._unsent: list[Report] = []
        self._progress: dict[int, Progress] = {}
        """How far jobs are, where the dispatcher was not told yet."""
        self._retired = False
        self._cut = asyncio.Event()
        self._all_written = asyncio.Event()
        self._all_written.set()

    async def serve(self, grace: float, told: Told) -> None:
        link = asyncio.ensure_future(self._keep_linked())
        try:
            await told.stop.wait()
            self._retired = True
            self._say(Retire())
            await first_of(self._runner.idle, told.end)
            await self._runner.drain(grace, told.hurry)
            self._flush()
            try:
                await asyncio.wait_for(self._all_written.wait(), LAST_WORDS)
            except TimeoutError:
                logger.warning("Jobs: no dispatcher has written what the last jobs came to: they will run again")
            self._say(Leave())
        finally:
            link.cancel()
            self._runner.recycling.stop()
            if self._channel is not None:
                self._channel.close()

    async def _keep_linked(self) -> None:
        loop = asyncio.get_running_loop()
        pause, most = _AGAIN
        while True:
            self._cut.clear()
            try:
                _, channel = await loop.create_unix_connection(
                    lambda: Channel[ToWorker](ToWorker, self._hear, self._lost), self._path
                )
            except OSError:  # it is not there yet, or not any more
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))
                pause = min(most, pause * 1.5)
                continue
            pause = _AGAIN[0]
            self._join(channel)
            await self._cut.wait()

    def _join(self, channel: Channel[ToWorker]) -> None:
        slots = 0 if self._retired else self._queue.concurrency
        schedules = [] if self._retired else list(self._queue.schedules.values())
        running, kept = self._runner.running, list(self._kept.values())
        channel.send(Join(self._name, os.getpid(), slots, self._queue.abilities, schedules, running, kept))
        self._channel = channel
        self._unsent.clear()
        for say in ask_supervisor:
            say(Serving())

    def _lost(self, channel: Channel[ToWorker]) -> None:
        self._channel = None
        self._cut.set()

    def _hear(self, channel: Channel[ToWorker], message: ToWorker) -> None:
        match message:
            case Run(jobs=jobs) if self._retired:
                for job in jobs:
                    self._report(given_back(job))
            case Run(jobs=jobs):
                self._runner.start(jobs)
            case Cancel(jobs=jobs):
                self._runner.cancel(jobs)
            case Written(claims=claims):
                for claim in claims:
                    self._kept.pop(claim, None)
                if not self._kept:
                    self._all_written.set()

    def _report(self, report: Report) -> None:
        if report.ended is not None or report.postponed is not None:
            self._kept[report.attempt.claim] = report
            self._all_written.clear()
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)  # what ends in the same turn travels together
        self._unsent.append(report)

    def _flush(self) -> None:
        if self._channel is not None and self._unsent:
            self._channel.send(Reports(self._unsent))
            self._unsent = []

    def _set_progress(self, progress: Progress) -> None:
        if not self._progress:
            asyncio.get_running_loop().call_later(_PROGRESS_EVERY, self._say_progress)
        self._progress[progress.id] = progress

    def _say_progress(self) -> None:
        running = {job.id for job in self._runner.running}
        self._say(HowFar([one for one in self._progress.values() if one.id in running]))
        self._progress.clear()

    def _say(self, message: FromWorker) -> None:
        if self._channel is not None:
            self._channel.send(message)
