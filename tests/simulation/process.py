"""A simulated process: its link to the coordinator, and its pools."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import TYPE_CHECKING

from pysqlx_engine.workers.membership import Identity, Membership
from pysqlx_engine.workers.messages import FromProcess, Hello, decode_from_coordinator, encode

from .pool import SimPool

if TYPE_CHECKING:
    from .server import Server
    from .world import World

HERE = "coordinator's host"


class SimLink(Membership):
    """The thread of `link.Link`: whenever it has something to do, it does it a moment later."""

    def __init__(self, process: Process) -> None:
        self.process = process
        identity = Identity(process.pid, process.pid, process.host, process.name, run=str(process.pid))
        super().__init__(identity, process.world.chance)
        self._woken = False
        self._timer: float | None = None

    def flush(self) -> None:
        if not self._woken:
            self._woken = True
            self.process.after(0.0001, self.wake)

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        self.process.after(delay, callback)

    def now(self) -> float:
        return self.process.world.now

    @property
    def where(self) -> str:
        return "simulated"

    def wake(self) -> None:
        self._woken = False
        for message in self.outgoing():
            self.process.send(message)
        due = self.due()
        if due is not None and (self._timer is None or not self.now() < self._timer <= due):
            self._timer = due
            self.process.at(due, self.wake)


class Process:
    """One process. While it is stopped nothing of it runs; what was to run runs when it goes on."""

    def __init__(self, world: World, host: str, *, everywhere: bool = False) -> None:
        self.world, self.host = world, host
        self.pid = world.number()
        self.name = f"{self.pid}-x"
        self.local = host == HERE
        self.dead = self.stopped = False
        self.backlog: collections.deque[Callable[[], None]] = collections.deque()
        self.connection = 0
        """The number of its connection to the coordinator, 0 while there is none."""
        self.overheard: list[Callable[[], None]] = []
        """The first messages of its session, in both directions, if it is one of another host."""
        self.link = SimLink(self)
        self.pools: list[SimPool] = []
        for server in world.servers:
            if everywhere or server is world.servers[0] or world.chance.random() < 0.5:
                self.start_pool(server)
            if world.chance.random() < 0.2:
                self.start_pool(server)  # one more for the same database
        world.network.connect_soon(self)

    def start_pool(self, server: Server) -> None:
        self.pools.append(SimPool(self, server, self.world.chance.randint(0, 2)))

    def at(self, time: float, callback: Callable[[], None]) -> None:
        self.world.at(time, callback, self)

    def after(self, delay: float, callback: Callable[[], None]) -> None:
        self.world.at(self.world.now + delay, callback, self)

    def run(self, callback: Callable[[], None]) -> None:
        if self.dead:
            return
        if self.stopped:
            self.backlog.append(callback)
        else:
            callback()

    def go_on(self) -> None:
        self.stopped = False
        while self.backlog and not self.stopped and not self.dead:
            self.backlog.popleft()()

    def connected(self) -> None:
        self.link.connected()
        self.link.flush()

    def send(self, message: FromProcess) -> None:
        self.world.network.to_coordinator(self, self.connection, encode(message), hello=isinstance(message, Hello))

    def receive(self, connection: int, data: bytes) -> None:
        if connection == self.connection:
            self.link.receive(decode_from_coordinator(data))
            self.link.flush()
