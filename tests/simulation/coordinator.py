"""The coordinator: the real core and the real journal, again and again, and the kernel of its host."""

from __future__ import annotations

import collections
import errno
import os
from collections.abc import Callable, Container
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from pysqlx_engine.engine.sockets import Endpoints, Verdict
from pysqlx_engine.pool.budget import Lease
from pysqlx_engine.workers import journal as real_journal
from pysqlx_engine.workers.coordinator_core import CoordinatorCore
from pysqlx_engine.workers.journal import Journal
from pysqlx_engine.workers.ledger import Ledger, Record
from pysqlx_engine.workers.messages import (
    Ceiling,
    CoordinatorPacket,
    Granted,
    ProcessPacket,
    Report,
    decode_from_process,
    encode,
)

from .process import HERE

if TYPE_CHECKING:
    from .world import World


class SimHost:
    """The kernel of the coordinator's host."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.watched: set[str] = set()

    identity = HERE

    def watch(self, name: str, pid: int, started: int) -> bool:
        process = self.world.processes.get(name)
        if process is None or process.dead:
            return False
        self.watched.add(name)
        return True

    def forget(self, name: str) -> None:
        self.watched.discard(name)

    def bind(self, name: str, sender: str) -> None:
        pass

    unbind = forget

    def server_session(self, address: Endpoints) -> Verdict:
        if address in self.world.in_flight or any(address in server.sessions for server in self.world.servers):
            return Verdict.HELD
        return Verdict.GONE

    def half_closed(self, server_port: int) -> set[Endpoints]:
        found = {address for address, session in self.world.in_flight.items() if session.process.dead}
        for server in self.world.servers:
            found |= {address for address, session in server.sessions.items() if session.process.dead}
        return found


_write_all = real_journal._write_all


class Coordinator:
    def __init__(self, world: World, journal: Path) -> None:
        self.world, self.journal = world, journal
        self.host = SimHost(world)
        self.core: CoordinatorCore | None = None
        self.stopped = False
        self.disk_full_until = 0.0
        self._backlog: collections.deque[Callable[[], None]] = collections.deque()
        self._incarnation = 0
        self._tick_due: float | None = None
        self._flush_due = False
        self._orphans: set[Lease] = set()
        self.freed: set[Lease] = set()
        """Leases that nobody is charged with any more."""
        journal.write_text('["learned",""]\n')  # nobody has joined before: there is nobody to wait for
        real_journal._write_all = self._write

    @property
    def ledger(self) -> Ledger:
        assert self.core is not None
        return self.core.ledger

    def charged(self, database: str) -> Container[Lease] | None:
        """The leases of a database that somebody is charged with; None while nobody knows them all."""
        if self.core is None or not self.core.ledger.granting:
            return None
        budget = self.core.ledger.budgets.get(database)
        return () if budget is None else budget.holders

    def start(self) -> None:
        world = self.world
        self._incarnation += 1
        self._orphans = set()
        world.network.replay_hellos()
        self.host.watched.clear()
        self._tick_due, self._flush_due = None, False
        self.stopped = False
        self._backlog.clear()
        self.core = CoordinatorCore(
            world.chance.getrandbits(31) | 1,
            None,
            Journal(self.journal),
            self.host,
            world.now,
            supervised=True,
            remote=True,
        )
        self._flush()

    def crash(self) -> None:
        """And begin anew a moment later."""
        world = self.world
        self.core = None
        for process in world.processes.values():
            # A remote one may not be told: then the next coordinator finds out.
            if process.local or world.chance.random() < 0.7:
                world.network.disconnect(process)
        world.at(world.now + world.chance.uniform(0.05, 1.5), self.start)

    def _tear(self, whole: int) -> None:
        """It has come to a part of what was to be written last."""
        size = self.journal.stat().st_size
        if size > whole and self.world.chance.random() < 0.5:
            self.world.count("journal torn")
            os.truncate(self.journal, self.world.chance.randrange(whole, size))

    def _write(self, file: FileIO, data: bytes) -> None:
        """To the journal. A disk that is full takes a part of it."""
        if self.world.now < self.disk_full_until:
            self.world.count("disk full")
            _write_all(file, data[: self.world.chance.randrange(len(data))])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _write_all(file, data)

    def stop(self, seconds: float) -> None:
        self.stopped = True
        self._for_this_one(self.world.now + seconds, self._go_on)

    def _go_on(self) -> None:
        self.stopped = False
        while self._backlog and self.core is not None and not self.stopped:
            self._event(self._backlog.popleft())

    def _for_this_one(self, time: float, callback: Callable[[], None]) -> None:
        """Call it then, unless this coordinator is no more by then."""
        incarnation = self._incarnation
        self.world.at(time, lambda: callback() if incarnation == self._incarnation and self.core is not None else None)

    # -- events ---------------------------------------------------------------------------------------------------

    def receive(self, sender: str, data: bytes) -> None:
        def received() -> None:
            assert self.core is not None
            message, dropped = decode_from_process(data), self.core.fleet.dropped
            self.core.received(sender, message)
            if self.core.fleet.dropped > dropped:
                self.world.count("message dropped")
            elif isinstance(message, ProcessPacket):
                self.world.counts["demand reported"] += sum(isinstance(one, Report) for one in message.messages)

        self._event(received)

    def death(self, name: str) -> None:
        """The kernel tells of it whoever is being watched."""

        def died() -> None:
            if name in self.host.watched and self.core is not None:
                self.core.died(name)

        self._event(died)

    def _event(self, event: Callable[[], None]) -> None:
        if self.core is None:
            return
        if self.stopped:
            self._backlog.append(event)
            return
        self.core.now = self.world.now
        event()
        if not self._flush_due:
            self._flush_due = True
            self._for_this_one(self.world.now + 0.0001, self._flush_now)

    def _flush_now(self) -> None:
        self._flush_due = False
        if self.stopped:
            self._backlog.append(lambda: None)
        else:
            self._flush()

    def _flush(self) -> None:
        world, core = self.world, self.core
        assert core is not None
        core.now = world.now
        core.tick()
        self._count(core.ledger)
        crashes = not world.calm and world.chance.random() < 0.0005
        written = self.journal.stat().st_size if crashes else 0
        freed = [record.held.lease for record in core.ledger.records if record.kind == "returned" and record.held]
        messages = core.flush()
        if crashes and messages:
            world.count("crash between journal and network")
            self._tear(written)
            self.crash()
            return
        self.freed.update(freed)
        for name, message in messages:
            process = world.processes.get(name)
            if process is not None:
                world.network.to_process(process, encode(message))
                if isinstance(message, CoordinatorPacket) and any(isinstance(one, Granted) for one in message.messages):
                    world.trouble.granted(process)
        due = core.due()
        if due is not None and (self._tick_due is None or not world.now < self._tick_due <= due):
            self._tick_due = due
            self._for_this_one(due, self._tick)

    def _tick(self) -> None:
        self._tick_due = None
        self._event(lambda: None)

    def _count(self, ledger: Ledger) -> None:
        counts = self.world.counts
        for record in ledger.records:
            counts[_kind(record)] += 1
        counts["ceiling"] += sum(isinstance(message, Ceiling) for _, message in ledger.outbox)
        if self._orphans or ledger.has_orphans:
            quarantined = {orphan.held.lease for _, orphan in ledger.orphans()}
            counts["lease quarantined"] += len(quarantined - self._orphans)
            self._orphans = quarantined


def _kind(record: Record) -> str:
    return record.kind if record.kind != "moved" or record.held is None else f"lease {record.held.state.name.lower()}"
