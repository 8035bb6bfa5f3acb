"""When the leases come back of those that are dead, or cannot be reached."""

from __future__ import annotations

import threading
from typing import cast

import pytest

from pysqlx_engine.engine.session import ServerSession
from pysqlx_engine.engine.sockets import Endpoints, Verdict
from pysqlx_engine.engine.uri import parse_uri
from pysqlx_engine.pool.budget import BudgetClient, Lease, PoolRequest
from pysqlx_engine.workers.leased_budget import LeasedBudget, LinkToLedger
from pysqlx_engine.workers.ledger import Ledger
from pysqlx_engine.workers.messages import HeldLease, LeaseState, PoolClaim
from pysqlx_engine.workers.orphans import UNNAMED, Orphans

ADDRESS = ("192.0.2.1:40000", "192.0.2.2:5432")


class NoKernel:
    """One that knows nothing of the other host's connections."""

    def server_session(self, address: Endpoints) -> Verdict:
        raise AssertionError("the connection is not one of this host")

    def half_closed(self, server_port: int) -> set[Endpoints]:
        raise AssertionError("the connection is not one of this host")


@pytest.mark.parametrize(
    ("database", "held"),
    [
        ("postgresql://db.example:5432/shop", HeldLease(1, LeaseState.CONNECTING)),
        ("postgresql://db.example:5432/shop", HeldLease(1, LeaseState.OPEN, 77, None)),
        ("sqlite:/var/lib/shop.db", HeldLease(1, LeaseState.OPEN)),
        ("sqlserver://db.example:1433/shop", HeldLease(1, LeaseState.OPEN)),
    ],
    ids=["never named", "behind NAT", "a file", "no ids"],
)
def test_a_lost_hosts_connection_that_nobody_can_see_counts_until_it_must_be_closed(
    database: str, held: HeldLease
) -> None:
    book = Ledger(5, first_lease=100)
    book.attach("far", PoolClaim(1, "far", database, 0, 5, False, [held]), local=False)
    orphans = Orphans(book, NoKernel())
    book.dead("far", local=False)
    (budget,) = book.budgets.values()
    for now in (0.0, 1.0, UNNAMED - 1):
        orphans.look(now)
        assert budget.charged == 1
    orphans.look(UNNAMED)
    assert budget.charged == 0


def test_a_lost_hosts_connection_that_can_be_seen_counts_until_somebody_has_seen_it_gone() -> None:
    book = Ledger(5, first_lease=100)
    held = HeldLease(1, LeaseState.OPEN, 77, ADDRESS)
    book.attach("far", PoolClaim(1, "far", "postgresql://db.example:5432/shop", 0, 5, False, [held]), local=False)
    orphans = Orphans(book, NoKernel())
    book.dead("far", local=False)
    (budget,) = book.budgets.values()
    orphans.look(100 * UNNAMED)
    assert budget.charged == 1


class Link:
    lock = threading.Lock()

    def post(self, message: object) -> None: ...
    def flush(self) -> None: ...


class Client:
    disowned: list[Lease]

    def disown(self, leases: list[Lease]) -> None:
        self.disowned = leases


def test_a_process_whose_term_is_over_closes_what_nobody_else_could_end() -> None:
    uri = parse_uri("postgresql://user@db.example:5432/shop")
    budget = LeasedBudget(cast(LinkToLedger, Link()), PoolRequest("pool", uri, 0, 5, True, 1.0))
    budget._client = cast(BudgetClient, client := Client())
    for lease, server_id, address in ((1, 77, ADDRESS), (2, 78, None), (3, 79, ADDRESS)):
        session = ServerSession(server_id, None)
        session.address = address
        budget._leases[lease] = HeldLease(lease)
        budget.opened(lease, session)
    budget.named |= {1, 2}
    budget.disown_unnamed()
    assert client.disowned == [2, 3]  # through NAT; and not known to the coordinator
