"""Leases whose process is dead, while the server may still have their sessions: when each of them comes back.

Of a process of this host the kernel tells what became of its connections. A session that lives on all the same, because
the server is in mid-query, and every session of a process of another host, is ended through a live process.
"""

from __future__ import annotations

from typing import Protocol

from ..engine.sockets import ANSWERED_GRACE, CHECKED_GRACE, RESET_GRACE, Endpoints, Verdict
from .ledger import Budget, Ledger, Orphan

POLL = (0.002, 0.02)
"""Seconds between two looks at the kernel's connections: at first, and growing to the second."""
ROLLBACK_GRACE = 1.0
"""Seconds that a MySQL server gets to roll back where nobody can look whether it has."""
LOOK_PATIENCE = 5.0
"""The same where somebody has a connection, but nobody has looked for so long."""
END_AFTER = 0.01
"""Seconds that the server gets to notice by itself that its client is gone, before it is told."""
MOST_SESSIONS = 100
"""Sessions that one pool is asked to end at a time: what is said has to stay below the size that is accepted."""
UNNAMED = 150.0
"""Seconds after which a lease that a process of another host had been granted, and of whose connection we never heard,
is for none: an attempt to connect has ended by then (75 s, and 60 s for a login that the driver gave up), and what was
opened but not heard of, such a process closes when its term is over. So it does with what nobody else could end, see
`HeldLease.endable`, and the same holds for that."""
SLOW_POLL = 0.25
"""Seconds between two looks when no kernel is to be asked."""
END_AGAIN = 2.5
"""Seconds without an answer, after which another pool is asked to end a session: more than one takes that tries."""


class Kernel(Protocol):
    """What this host knows of its TCP connections, see `engine.sockets`. Both raise OSError where it cannot be asked
    now."""

    def server_session(self, address: Endpoints) -> Verdict: ...

    def half_closed(self, server_port: int) -> set[Endpoints]: ...


class Orphans:
    """Looks after the ledger's quarantined leases whenever `look` is called; `due` says when."""

    def __init__(self, ledger: Ledger, kernel: Kernel) -> None:
        self.due: float | None = None
        self._ledger = ledger
        self._kernel = kernel
        self._pause = POLL[0]

    def more(self, now: float) -> None:
        """A process has died."""
        self._pause = POLL[0]
        self.due = now

    def look(self, now: float) -> None:
        ledger = self._ledger
        orphans = list(ledger.orphans())
        asks_kernel = False
        living = ledger.addresses() if any(orphan.local for _, orphan in orphans) else set()
        dead = {orphan.held.address for _, orphan in orphans if orphan.local}
        for budget, orphan in orphans:
            if not orphan.local:
                gone = not (orphan.held.known and orphan.held.endable) and now - orphan.since >= UNNAMED
            elif budget.database.startswith("sqlite:"):
                gone = True  # its descriptors died with the process
            else:
                asks_kernel = True
                try:
                    gone = self._is_gone(orphan, _port(budget.database), living, dead, now)
                except OSError:
                    gone = False
                if gone and budget.database.startswith("mysql:") and orphan.held.server_id is not None:
                    gone = self._rolled_back(budget, orphan, now)
            if gone:
                ledger.gone(budget.database, orphan.held.lease)
        for budget in list(ledger.budgets.values()):
            self._have_ended(budget, now)
        self._pause = min(POLL[1], self._pause * 1.2)
        pause = self._pause if asks_kernel else SLOW_POLL
        self.due = now + pause if ledger.has_orphans else None

    def _rolled_back(self, budget: Budget, orphan: Orphan, now: float) -> bool:
        """MySQL closes a connection first, and rolls back and ends its session then. That is seen in its list of
        sessions only, by whoever has a connection. Where nobody has one, somebody gets one after a grace time, and
        looks after the rest."""
        if orphan.closed_at is None:
            orphan.closed_at = now
        if not any(pool.held and not pool.silent for pool in budget.pools.values()):
            return now - orphan.closed_at >= ROLLBACK_GRACE
        # `Ended` will tell, unless all connections are in use for so long, perhaps by who waits for this very lease.
        return now - max(orphan.closed_at, orphan.seen_at) >= LOOK_PATIENCE

    def _is_gone(
        self,
        orphan: Orphan,
        server_port: int,
        living: set[Endpoints],
        dead: set[Endpoints | None],
        now: float,
    ) -> bool:
        held = orphan.held
        if held.address is not None:
            # Used again by a process that lives, it is not this connection any more.
            again = held.address in living
            verdict = Verdict.GONE if again else self._kernel.server_session(held.address)
        else:
            # Granted, but its connection was not named yet. Whatever the process had begun to open is among the
            # half-closed connections to that server that nobody has named.
            unnamed = self._kernel.half_closed(server_port) - living - dead
            verdict = Verdict.HELD if unnamed else Verdict.RESET
        if verdict is Verdict.HELD:
            if held.address is not None:  # else it may be somebody else's
                orphan.half_closed = True
            orphan.vanished_at = None
            return False
        if verdict is Verdict.GONE:
            return True
        grace = CHECKED_GRACE if held.liveness_checked else RESET_GRACE
        if orphan.half_closed:
            grace = ANSWERED_GRACE
        if orphan.vanished_at is None:
            orphan.vanished_at = now
        return now - orphan.vanished_at >= grace

    def _have_ended(self, budget: Budget, now: float) -> None:
        """Have a live process end what the server has not let go of by itself."""
        due = [
            orphan
            for orphan in budget.quarantined.values()
            if orphan.held.endable
            and now - orphan.since >= END_AFTER
            and (orphan.asked_at is None or now - orphan.asked_at >= END_AGAIN)
        ]
        if not due:
            return
        # A living process's session is never ended, whoever claims to have had it. Its address alone says nothing: it
        # may have been another session's before.
        living = {(held.server_id, held.address) for pool in budget.pools.values() for held in pool.leases.values()}
        due = [one for one in due if (one.held.server_id, one.held.address) not in living][:MOST_SESSIONS]
        if due:
            self._ledger.have_ended(budget, due)


def _port(database: str) -> int:
    """The server's port in a database's identity."""
    port = database.partition("://")[2].partition("/")[0].rpartition(":")[2]
    # The name came in a message: what the kernel is asked for is a port.
    return int(port) if port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 65536 else 0
