"""Who claims jobs: each dispatcher has a row, and keeps it fresh. What ran for one that is gone becomes available.

An owner of claims is a dispatcher's number and the number of its claim, so that the jobs of a dispatcher are those of a
range of owners.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import JobError
from ...system import host_identity, start_time
from .dialects import Dialect
from .store import CLAIMS

if TYPE_CHECKING:
    from ...engine.connection import PySQLXEngine

BEAT = 5.0
"""Seconds between two signs of life."""
LOST_AFTER = 20.0
"""Seconds without one after which a dispatcher counts as dead. On its own host its death is seen at once."""


def owners_of(dispatcher: int) -> tuple[int, int]:
    """The first and the last owner that claims of this dispatcher can have."""
    return dispatcher * CLAIMS, (dispatcher + 1) * CLAIMS - 1


@dataclass(frozen=True)
class Presence:
    """A dispatcher, as its row shows it."""

    id: int
    run: str
    """The same for all dispatchers of one run: one after the other."""
    host: str
    pid: int
    """The process with which all end that work on its jobs."""
    started: int
    unseen: int
    """Microseconds since its last sign of life."""
    hints: str | None
    """Where it hears that there is work, on its host."""

    @property
    def owners(self) -> tuple[int, int]:
        return owners_of(self.id)

    def is_lost(self, host: str) -> bool:
        """Whether it is gone, as seen from `host`."""
        if self.host == host:
            return start_time(self.pid) != self.started
        return self.unseen >= LOST_AFTER * 1_000_000


class Register:
    """The statements about dispatchers."""

    def __init__(self, dialect: Dialect) -> None:
        self._returning = dialect.returning
        self._insert = (
            "INSERT INTO pysqlx_job_dispatchers (run, host, pid, started, seen_at, hints) "
            f"VALUES (:run, :host, :pid, :started, {dialect.now}, :hints)"
        )
        self._beat = f"UPDATE pysqlx_job_dispatchers SET seen_at = {dialect.now} WHERE run = :run"
        self._all = (
            f"SELECT id, run, host, pid, started, {dialect.now} - seen_at AS unseen, hints FROM pysqlx_job_dispatchers"
        )

    async def enter(self, connection: PySQLXEngine, run: str, pid: int | None, hints: str | None) -> Presence:
        """`pid`: the process with which all end that work on the jobs; None: this one."""
        pid = os.getpid() if pid is None else pid
        started = start_time(pid)
        if started is None:
            raise JobError(f"process {pid}, for which jobs are to be claimed, is gone")
        row: dict[str, Any] = {"run": run, "host": host_identity(), "pid": pid, "started": started, "hints": hints}
        if self._returning:
            (found,) = await connection.query_as_dict(f"{self._insert} RETURNING id", row)
        else:
            await connection.execute(self._insert, row)
            (found,) = await connection.query_as_dict("SELECT last_insert_id() AS id")
        return Presence(id=int(found["id"]), unseen=0, **row)

    async def beat(self, connection: PySQLXEngine, presence: Presence) -> None:
        """Show that we are there, and that what was begun for a dispatcher of our run before us is seen to."""
        await connection.execute(self._beat, {"run": presence.run})

    async def all(self, connection: PySQLXEngine) -> list[Presence]:
        return [Presence(**row) for row in await connection.query_as_dict(self._all)]

    async def leave(self, connection: PySQLXEngine, presence: Presence) -> None:
        await connection.execute("DELETE FROM pysqlx_job_dispatchers WHERE id = :id", {"id": presence.id})
