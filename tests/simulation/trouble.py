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
        self._at_grants = self._at_opening = 0
        """How many ambushes wait for a lease to be granted, and for a connection to be opened."""

    def begin(self) -> None:
        """Now and then a fault."""
        world, chance = self.world, self.world.chance
        if world.calm:
            return
        world.at(world.now + chance.expovariate(1 / world.weather.pause), self.begin)
        fault, processes = chance.random(), list(world.processes.values())
        if world.fair:
            return
        if fault < 0.1:
            self._at_grants += 1
        elif fault < 0.2:
            self._at_opening += 1
        elif fault < 0.45:
            self._fault_of_process(chance.choice(processes))
        elif fault < 0.55:
            self._fault_of_coordinator()
        elif fault < 0.65 and len(processes) < 8:
            self._start_process()
        elif fault < 0.75:
            self._fault_of_server()
        elif fault < 0.82:
            self._partition()
        else:
            self._change_pools(chance.choice(processes))

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

    def _change_pools(self, process: Process) -> None:
        """A pool is closed, or one more is started."""
        world, chance = self.world, self.world.chance
        if process.pools and chance.random() < 0.5:
            world.count("pool closes")
            pool, grace = chance.choice(process.pools), chance.uniform(0, 1)
            process.run(lambda: pool.stop(grace) if pool.is_open else None)
        elif len(process.pools) < 4:
            world.count("pool starts")
            server = chance.choice(world.servers)
            process.run(lambda: process.start_pool(server))

    def granted(self, process: Process) -> None:
        """A lease is on its way: if somebody has waited for that, something happens to the process meanwhile."""
        if self._at_grants:
            self._at_grants -= 1
            self._ambush(process, long=0.8)

    def opening(self, process: Process) -> None:
        """The same when it opens a connection."""
        if self._at_opening:
            self._at_opening -= 1
            self.world.at(self.world.now + self.world.chance.uniform(0, 0.01), lambda: self._ambush(process))

    def _ambush(self, process: Process, *, long: float = 0.3) -> None:
        world, kind = self.world, self.world.chance.random()
        if process.dead or world.fair:
            return
        world.count("ambush")
        if kind < 0.5 and len(world.processes) > 1:
            self._kill(process)
            if kind < 0.2:
                self._kill_coordinator()
        elif kind < 0.75 and not process.stopped:
            self._stop(process, long=long)
        elif not process.local and process.host not in world.network.partitioned:
            self._cut(process.host)
            if kind < 0.85:
                self._kill_coordinator()

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

    def _stop(self, process: Process, *, long: float = 0.3) -> None:
        world, chance = self.world, self.world.chance
        world.count("process stopped")
        process.stopped = True
        lasts = chance.uniform(3, world.weather.stopped) if chance.random() < long else chance.uniform(0.01, 1)
        if any(pool.unheard_of for pool in process.pools):
            lasts = min(lasts, UNNAMED)  # docs/hosts.md: a longer stop may be over the budget by these
        world.at(world.now + lasts, process.go_on)

    # -- the coordinator ------------------------------------------------------------------------------------------

    def _fault_of_coordinator(self) -> None:
        world, coordinator = self.world, self.world.coordinator
        if world.chance.random() < 0.5:
            self._kill_coordinator()
            if world.chance.random() < world.weather.forgetful:
                self._lose_journal()
        elif world.chance.random() < 0.3:
            self._fill_disk()
        elif coordinator.core is not None and not coordinator.stopped:
            world.count("coordinator stopped")
            coordinator.stop(world.chance.uniform(0.01, 3))

    def _fill_disk(self) -> None:
        """The journal cannot be written for a while. Somebody says hello meanwhile, perhaps more than once."""
        world, chance = self.world, self.world.chance
        lasts = chance.uniform(0.05, 3)
        world.coordinator.disk_full_until = world.now + lasts
        process = chance.choice(list(world.processes.values()))
        for _ in range(chance.randrange(3)):
            world.at(world.now + chance.uniform(0, lasts), lambda: world.network.disconnect(process))

    def _kill_coordinator(self) -> None:
        if self.world.coordinator.core is not None:
            self.world.count("coordinator killed")
            self.world.coordinator.crash()

    def _lose_journal(self) -> None:
        """Nobody knows any more what the dead had, and those who are away for longer than a term. So there are none of
        these, and until the next coordinator has heard everybody nothing goes wrong, but that it may be killed too."""
        world, chance = self.world, self.world.chance
        sessions = [*world.in_flight.values(), *(one for server in world.servers for one in server.sessions.values())]
        if any(session.process.dead for session in sessions):
            return
        world.count("journal lost")
        world.coordinator.journal.unlink(missing_ok=True)
        world.coordinator.disk_full_until = 0.0
        world.network.heal()
        for process in world.processes.values():
            process.go_on()
        world.fair_until = world.now + 12
        if chance.random() < 0.3:
            world.fair_until += 8
            world.at(world.now + chance.uniform(1.5, 8), self._kill_coordinator)

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
