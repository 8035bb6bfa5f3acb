"""The process of a dispatcher: its workers on one side, the supervisor on the other, the database behind.

The supervisor says, one JSON object a message: `{"op": "died", "pid": ..., "how": ...}` of a worker. TERM ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ...errors import ConnectError, JobError, PoolError
from ...log_config import part
from ...system import DEATH_POLL, has
from ..process import CHILD_SIGNALS
from .attempts import Report
from .dispatcher import Dispatcher
from .hints import Listener
from .pools import QueuePools
from .served import DispatcherSpec
from .store import Claim, Claimed
from .wire import Cancel, Channel, FromWorker, HowFar, Join, Leave, Reports, Retire, Run, Written

logger = part("jobs")

MESSAGE_LIMIT = 1 << 16
_ADOPT_WITHIN = 30.0
"""Seconds that workers have to tell what they run, when there was a dispatcher before this one. Those that have died
are known."""
_REASON_WITHIN = 0.05 + (0.0 if has("pidfd") else 2 * DEATH_POLL)
"""Seconds from the end of a worker's stream until it counts as gone, if the supervisor has not said why."""


def main(spec: DispatcherSpec, control: socket.socket) -> NoReturn:
    try:
        with asyncio.Runner(loop_factory=_uvloop() if spec.uvloop else None) as runner:
            runner.run(_DispatcherProcess(spec, control).run())
    except (JobError, ConnectError, PoolError) as error:
        sys.exit(f"the dispatcher cannot serve: {error}")
    sys.exit(0)


class _Peer:
    """A worker's stream."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.pid = 0


class _DispatcherProcess:
    def __init__(self, spec: DispatcherSpec, control: socket.socket) -> None:
        self._spec = spec
        self._control = control
        self._peers: dict[Channel[FromWorker], _Peer] = {}
        self._by_name: dict[str, Channel[FromWorker]] = {}
        self._reporters: dict[Claim, Channel[FromWorker]] = {}
        """Who has reported what is not written yet."""
        self._ends: dict[int, str] = {}
        """How processes ended, by what the supervisor says."""
        self._expected = dict(spec.workers)
        """Of which processes how many have not told what they run."""
        self._told: set[str] = set()
        self._dispatcher: Dispatcher
        self._workers_died = spec.workers_died

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        told = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, told.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, CHILD_SIGNALS)
        queue = self._spec.queue
        pools = QueuePools(uri=queue.uri, min_size=0, max_size=queue.max_size, name="dispatcher")
        pool = await pools.for_tasks()
        listener = Listener(self._hint)
        self._dispatcher = Dispatcher(
            pool,
            queue.weights,
            self,
            connections=max(1, pool.stats().max_size - 1),
            keep=queue.keep,
            run=f"{self._spec.run}:{os.path.basename(queue.socket)}",  # a run may have several, for other queues
            pid=self._spec.supervisor,
            hints=listener.name,
        )
        if self._spec.restarted:
            self._dispatcher.adopt_after(_ADOPT_WITHIN, workers_died=self._workers_died)
            self._adopt_if_complete()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(queue.socket)
        server = await loop.create_unix_server(self._accept, queue.socket)
        self._control.setblocking(False)
        loop.add_reader(self._control, self._hear_supervisor)
        serving = asyncio.ensure_future(self._dispatcher.serve())
        stopping = asyncio.ensure_future(told.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not serving.done():
            await asyncio.wait({serving, self._dispatcher.drain()}, return_when=asyncio.FIRST_COMPLETED)
        await serving
        server.close()
        await pools.stop()

    def _hint(self, more: bool) -> None:
        self._dispatcher.hint(more=more)

    # -- what the dispatcher says ---------------------------------------------------------------------------------

    def send(self, worker: str, jobs: list[Claimed]) -> None:
        self._tell(worker, Run(jobs))

    def cancel(self, worker: str, jobs: list[Claimed]) -> None:
        self._tell(worker, Cancel(jobs))

    def written(self, reports: Sequence[Report]) -> None:
        of: dict[Channel[FromWorker], list[Claim]] = {}
        for report in reports:
            claim = report.attempt.claim
            channel = self._reporters.pop(claim, None)
            if channel is not None:
                of.setdefault(channel, []).append(claim)
        for channel, claims in of.items():
            channel.send(Written(claims))

    def _tell(self, worker: str, message: Run | Cancel) -> None:
        channel = self._by_name.get(worker)
        if channel is not None:  # else it is just going: what it has will have failed
            channel.send(message)

    # -- what the workers say -------------------------------------------------------------------------------------

    def _accept(self) -> Channel[FromWorker]:
        channel: Channel[FromWorker] = Channel(FromWorker, self._hear, self._lost)
        self._peers[channel] = _Peer()
        return channel

    def _hear(self, channel: Channel[FromWorker], message: FromWorker) -> None:
        peer = self._peers[channel]
        match message:
            case Join():
                peer.name, peer.pid = message.name, message.pid
                self._by_name[message.name] = channel
                self._report(channel, message.name, message.reports)  # else it would not have what these are about
                self._dispatcher.join(message.name, message.slots, message.tasks, message.schedules, message.running)
                self._expect_one_less(message)
                self._adopt_if_complete()
            case Reports() if peer.name is not None:
                self._report(channel, peer.name, message.reports)
            case HowFar():
                for progress in message.progress:
                    self._dispatcher.set_progress(progress)
            case Retire() if peer.name is not None:
                self._dispatcher.retire(peer.name)
            case Leave() if peer.name is not None:
                self._leave(channel, peer.name, "it has ended", well=True)

    def _expect_one_less(self, worker: Join) -> None:
        left = self._expected.get(worker.pid)
        if left is None or worker.name in self._told:
            return
        self._told.add(worker.name)
        if left > 1:
            self._expected[worker.pid] = left - 1
        else:
            del self._expected[worker.pid]

    def _report(self, channel: Channel[FromWorker], worker: str, reports: list[Report]) -> None:
        for report in reports:
            if report.ended is not None or report.postponed is not None:
                self._reporters[report.attempt.claim] = channel
        self._dispatcher.report(worker, reports)

    def _lost(self, channel: Channel[FromWorker]) -> None:
        peer = self._peers[channel]
        if peer.name is None or peer.pid in self._ends:
            self._gone(channel)
        else:
            if self._by_name.get(peer.name) is channel:
                self._dispatcher.retire(peer.name)  # what it would be given now would be lost
            asyncio.get_running_loop().call_later(_REASON_WITHIN, self._gone, channel)

    def _gone(self, channel: Channel[FromWorker]) -> None:
        peer = self._peers.pop(channel, None)
        if peer is not None and peer.name is not None:
            self._leave(
                channel, peer.name, self._ends.get(peer.pid, "its worker has gone, nobody said why"), well=False
            )

    def _leave(self, channel: Channel[FromWorker], name: str, reason: str, *, well: bool) -> None:
        if self._by_name.get(name) is channel:  # else it has come again since, or is gone
            del self._by_name[name]
            self._dispatcher.leave(name, reason, well=well)

    # -- what the supervisor says ---------------------------------------------------------------------------------

    def _hear_supervisor(self) -> None:
        while True:
            try:
                data = self._control.recv(MESSAGE_LIMIT)
            except BlockingIOError:
                return
            if not data:  # it is gone, and so are we in a moment
                asyncio.get_running_loop().remove_reader(self._control)
                return
            message = json.loads(data)
            if message["op"] == "died":
                self._ends[message["pid"]] = message["how"]
                self._on_death(message["pid"], well=message["well"])

    def _on_death(self, pid: int, *, well: bool) -> None:
        if self._expected.pop(pid, None) is not None:  # it has not told what it ran
            self._workers_died = self._workers_died or not well
        self._adopt_if_complete()
        for channel, peer in list(self._peers.items()):
            if peer.pid == pid and not channel.open:
                self._gone(channel)

    def _adopt_if_complete(self) -> None:
        if self._spec.restarted and not self._expected:
            self._dispatcher.adopt_after(0.0, workers_died=self._workers_died)


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    return uvloop.new_event_loop
