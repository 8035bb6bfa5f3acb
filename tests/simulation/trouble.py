"""What goes wrong: faults of processes, the coordinator, servers and hosts, as the seed decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .process import HERE, Process
from .server import Server, Session
from .weather import UNNAMED

if TYPE_CHECKING:
    from .world import World


class Trouble:
    def __init__(self, world: World) -> None:
        self.world = world
        self._ambushes = 0
        """How many wait for a process to open a connection."""

    def begin(self) -> None:
        """Now and then a fault."""
        world, chance = self.world, self.world.chance
        if world.calm:
            return
        world.at(world.now + chance.expovariate(1 / world.weather.pause), self.begin)
        fault, processes = chance.random(), list(world.processes.values())
        if fault < 0.2:
            self._ambushes += 1
        elif fault < 0.5:
            self._fault_of_process(chance.choice(processes))
        elif fault < 0.6:
            self._fault_of_coordinator()
        elif fault < 0.7 and len(processes) < 8:
            self._start_process()
        elif fault < 0.85:
            self._fault_of_server()
        elif fault < 0.92:
            self._partition()

    # -- processes ------------------------------------------------------------------------------------------------

    def _start_process(self) -> None:
        if not self.world.calm:
            self.world.count("process starts")
            self.world.spawn()

    def _fault_of_process(self, process: Process) -> None:
        kind = self.world.chance.random()
        if kind < 0.25 and len(self.world.processes) > 1:
            self._kill(process)
        elif kind < 0.7 and not process.stopped:
            self._stop(process)
        elif process.connection:
            self.world.count("connection to coordinator broken")
            self.world.network.disconnect(process)

    def opening(self, process: Process) -> None:
        """A process opens a connection: if somebody has waited for that, something happens to it meanwhile."""
        if self._ambushes and not self.world.calm:
            self._ambushes -= 1
            self.world.at(self.world.now + self.world.chance.uniform(0, 0.01), lambda: self._ambush(process))

    def _ambush(self, process: Process) -> None:
        world, kind = self.world, self.world.chance.random()
        if process.dead or world.calm:
            return
        world.count("ambush")
        if kind < 0.5 and len(world.processes) > 1:
            self._kill(process)
            if kind < 0.2:
                self._kill_coordinator()
        elif kind < 0.75 and not process.stopped:
            self._stop(process)
        elif not process.local and process.host not in world.network.partitioned:
            self._cut(process.host)

    def _kill(self, process: Process) -> None:
        world = self.world
        world.count("process killed")
        process.dead = True
        for server in world.servers:
            for session in list(server.sessions.values()):
                if session.process is process:
                    self.server_notices(server, session)
        del world.processes[process.name]
        for pool in process.pools:
            pool.leave()
        if process.local:
            world.at(world.now + 0.001, lambda: world.coordinator.death(process.name))
        world.at(world.now + world.chance.uniform(0.05, 1), self._start_process)

    def _stop(self, process: Process) -> None:
        world, chance = self.world, self.world.chance
        world.count("process stopped")
        process.stopped = True
        long = chance.random() < 0.3
        lasts = chance.uniform(3, world.weather.stopped) if long else chance.uniform(0.01, 1)
        world.at(world.now + lasts, process.go_on)

    # -- the coordinator ------------------------------------------------------------------------------------------

    def _fault_of_coordinator(self) -> None:
        world, coordinator = self.world, self.world.coordinator
        if world.chance.random() < 0.5:
            self._kill_coordinator()
        elif coordinator.core is not None and not coordinator.stopped:
            world.count("coordinator stopped")
            coordinator.stop(world.chance.uniform(0.01, 3))

    def _kill_coordinator(self) -> None:
        if self.world.coordinator.core is not None:
            self.world.count("coordinator killed")
            self.world.coordinator.crash()

    # -- servers --------------------------------------------------------------------------------------------------

    def _fault_of_server(self) -> None:
        world, chance = self.world, self.world.chance
        server = chance.choice(world.servers)
        if chance.random() < 0.5:
            world.count("sessions ended by the server")
            for session in list(server.sessions.values()):
                if chance.random() < 0.5:
                    server.end(session)
        elif not server.down:
            world.count("server refuses")
            server.down = True
            world.at(world.now + chance.uniform(0.05, 2), lambda: setattr(server, "down", False))

    def server_notices(self, server: Server, session: Session) -> None:
        """Its client is dead: at once where it is idle, at the end of its query elsewhere; where the client's host is
        gone it has to be told, or its keepalive tells it in the end."""
        world, chance = self.world, self.world.chance
        if not session.process.local and chance.random() < 0.5:
            world.count("session lives on")
            delay = chance.uniform(10, UNNAMED)
        else:
            delay = chance.uniform(0.0005, 0.02) if chance.random() < 0.7 else chance.uniform(0.02, 5.0)
        world.at(world.now + delay, lambda: server.end(session))

    # -- hosts ----------------------------------------------------------------------------------------------------

    def _partition(self) -> None:
        partitioned = self.world.network.partitioned
        remote = [host for host in self.world.hosts if host != HERE and host not in partitioned]
        if remote:
            self._cut(self.world.chance.choice(remote))

    def _cut(self, host: str) -> None:
        self.world.network.cut(host, self.world.chance.uniform(0.1, self.world.weather.cut))
