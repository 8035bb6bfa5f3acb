"""What is between the processes and the coordinator: it loses, delays, doubles, reorders and cuts off."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .process import Process

if TYPE_CHECKING:
    from .world import World


class Network:
    def __init__(self, world: World) -> None:
        self.world = world
        self.partitioned: set[str] = set()
        """Hosts that are cut off."""
        self._overheard: list[Callable[[], None]] = []

    def connect_soon(self, process: Process) -> None:
        self.world.at(self.world.now + self.world.chance.uniform(0.001, 0.05), lambda: self._connect(process))

    def _connect(self, process: Process) -> None:
        if process.dead or process.connection:
            return
        if self.world.coordinator.core is None:
            self.connect_soon(process)
            return
        process.connection = self.world.number()
        process.run(process.connected)

    def disconnect(self, process: Process) -> None:
        if process.connection:
            process.connection = 0
            process.run(process.link.disconnected)
            self.connect_soon(process)

    def cut(self, host: str, seconds: float) -> None:
        self.world.count("partition")
        self.partitioned.add(host)
        self.world.at(self.world.now + seconds, lambda: self.partitioned.discard(host))

    def heal(self) -> None:
        self.partitioned.clear()

    def to_coordinator(self, process: Process, connection: int, data: bytes, *, hello: bool) -> None:
        def deliver() -> None:
            # A remote process's message may be of a connection that is no more: a copy, or one that took long.
            if not process.local or (connection == process.connection and not process.dead):
                self.world.coordinator.receive(process.name, data)

        if hello and not process.local:
            self._overhear(deliver)
            self._echo(process)
        if connection:
            self._carry(process, deliver)

    def to_process(self, process: Process, data: bytes) -> None:
        connection = process.connection
        if connection and not process.dead:
            self._carry(process, lambda: process.run(lambda: process.receive(connection, data)))

    def _carry(self, process: Process, deliver: Callable[[], None]) -> None:
        """One message between a process and the coordinator, in either direction."""
        world = self.world
        chance, weather, now = world.chance, world.weather, world.now
        if process.local:  # in order, and never lost while the connection is there
            world.at(now + 0.0002, deliver)
        elif process.host in self.partitioned:
            world.count("cut off")
        elif world.fair:
            world.at(now + 0.001, deliver)
        elif chance.random() < weather.lost:
            world.count("lost")
        else:
            if len(process.overheard) < 20:
                process.overheard.append(deliver)
            delay = 0.001
            if chance.random() < weather.late:
                world.count("late")
                delay = chance.uniform(0.003, 1.0)
            world.at(now + delay, deliver)
            if chance.random() < weather.doubled:
                world.count("doubled")
                world.at(now + delay + chance.uniform(0, 0.5), deliver)
            if chance.random() < weather.replayed:
                world.count("replayed")
                world.at(now + chance.uniform(1, 60), deliver)

    def _echo(self, process: Process) -> None:
        """What was said in the session before arrives once more, among what is said first in the next."""
        world, chance = self.world, self.world.chance
        time = world.now
        for again in process.overheard if not world.fair and chance.random() < 0.3 else ():
            world.count("replayed")
            time += chance.expovariate(1 / 0.01)
            world.at(time, again)
        process.overheard.clear()

    def _overhear(self, deliver: Callable[[], None]) -> None:
        """An old hello, which states what is not so any more, arrives once more: soon, or at the next coordinator."""
        world, chance = self.world, self.world.chance
        if not world.fair and chance.random() < 0.2:
            world.count("hello replayed")
            world.at(world.now + chance.uniform(0.01, 5.0), deliver)
        if chance.random() < 0.5:
            self._overheard.append(deliver)

    def replay_hellos(self) -> None:
        """There is a new coordinator."""
        world = self.world
        for again in self._overheard if not world.calm else ():
            world.count("hello replayed")
            world.at(world.now + world.chance.uniform(0, 1), again)
        self._overheard.clear()
