"""The ledger's rules, one by one. That they hold together in any order is shown by the simulated fleet."""

from __future__ import annotations

import pytest

from pysqlx_engine.pool.budget import Demand
from pysqlx_engine.workers.ledger import PATIENCE, Ledger
from pysqlx_engine.workers.messages import (
    Attached,
    Ceiling,
    Denied,
    End,
    FromCoordinator,
    Granted,
    HeldLease,
    LeaseState,
    PoolClaim,
    Refused,
    Returned,
)

SHOP = "postgresql://db.example:5432/shop"


def ledger(operator_size: int | None = None) -> Ledger:
    return Ledger(operator_size, first_lease=0)


def claim(name: str, size: int | None = None, *, min_size: int = 0, leases: list[HeldLease] | None = None) -> PoolClaim:
    return PoolClaim(1, name, SHOP, min_size, size or 10, size is not None, leases or [])


def said(book: Ledger, member: str) -> list[FromCoordinator]:
    """What was said to `member` since the last look."""
    messages, book.outbox = [m for to, m in book.outbox if to == member], [m for m in book.outbox if m[0] != member]
    return messages


def busy(in_use: int, waiting: int = 0) -> Demand:
    return Demand(in_use, 0, in_use, waiting, want=min(waiting, 2))


def fill(book: Ledger, member: str, count: int) -> list[int]:
    """Have `member` take `count` leases, as its tasks begin to wait."""
    taken: list[int] = []
    while len(taken) < count:
        book.report((member, 1), len(taken), Demand(len(taken), 0, len(taken), 1, want=1))
        taken += [lease for m in said(book, member) if isinstance(m, Granted) for lease in m.leases]
    book.report((member, 1), len(taken), busy(count))
    said(book, member)
    return taken


def test_a_waiting_pool_is_granted_what_is_free() -> None:
    book = ledger()
    book.attach("a", claim("a", 3))
    book.report(("a", 1), 0, busy(0, waiting=5))
    attached, granted = said(book, "a")
    assert isinstance(attached, Attached)
    assert isinstance(granted, Granted)
    assert len(granted.leases) == 2  # what it can open at once


def test_a_grant_on_its_way_is_not_granted_again() -> None:
    book = ledger()
    book.attach("a", claim("a", 9))
    for _ in range(3):
        book.report(("a", 1), 0, busy(0, waiting=5))
    assert sum(len(m.leases) for m in said(book, "a") if isinstance(m, Granted)) == 2


def test_nothing_is_granted_beyond_the_size() -> None:
    book = ledger()
    book.attach("a", claim("a", 2))
    fill(book, "a", 2)
    book.report(("a", 1), 2, busy(2, waiting=3))
    assert not [m for m in said(book, "a") if isinstance(m, Granted)]
    assert book.budgets[SHOP].free == 0


def test_who_waits_gets_what_the_richest_gives_back() -> None:
    book = ledger()
    for name in "ab":
        book.attach(name, claim(name, 4))
    leases = fill(book, "a", 4)
    book.report(("b", 1), 0, busy(0, waiting=4))
    assert [m.ceiling for m in said(book, "a") if isinstance(m, Ceiling)] == [2]
    book.take("a", Returned(1, leases[:1]))
    assert [len(m.leases) for m in said(book, "b") if isinstance(m, Granted)] == [1]


def test_idle_connections_are_asked_for_before_those_in_use() -> None:
    book = ledger()
    for name in "abc":
        book.attach(name, claim(name, 4))
    fill(book, "a", 2)
    fill(book, "b", 2)
    book.report(("c", 1), 0, busy(0, waiting=1))
    book.report(("a", 1), 2, Demand(in_use=0, idle=2, recent=0, waiting=0, want=0))
    book.report(("b", 1), 2, busy(2))
    assert [m.ceiling for m in said(book, "a") if isinstance(m, Ceiling)][-1] == 1
    assert [m.ceiling for m in said(book, "b") if isinstance(m, Ceiling)][-1] == 2


def test_a_connection_that_was_in_use_just_now_stays_where_it_is() -> None:
    book = ledger()
    for name in "ab":
        book.attach(name, claim(name, 2))
    fill(book, "a", 1)
    fill(book, "b", 1)
    book.report(("b", 1), 1, busy(1, waiting=1))
    book.report(("a", 1), 1, Demand(in_use=0, idle=1, recent=1, waiting=0, want=0))
    assert [m.ceiling for m in said(book, "a") if isinstance(m, Ceiling)][-1] == 1
    book.report(("a", 1), 1, Demand(in_use=0, idle=1, recent=0, waiting=0, want=0))
    assert [m.ceiling for m in said(book, "a") if isinstance(m, Ceiling)][-1] == 0


def test_who_does_not_yield_is_passed_over_and_the_next_is_asked() -> None:
    book = ledger()
    for name in ("stuck", "brisk", "poor"):
        book.attach(name, claim(name, 4))
    fill(book, "stuck", 3)
    brisk = fill(book, "brisk", 1)
    book.report(("brisk", 1), 1, busy(1, waiting=5))
    book.report(("stuck", 1), 3, busy(3))
    book.report(("poor", 1), 0, busy(0, waiting=1))
    assert [m.ceiling for m in said(book, "brisk") if isinstance(m, Ceiling)][-1] == 1
    book.now += 2 * PATIENCE
    book.look_again()
    assert [m.ceiling for m in said(book, "brisk") if isinstance(m, Ceiling)] == [0]
    book.take("brisk", Returned(1, brisk))
    assert [len(m.leases) for m in said(book, "poor") if isinstance(m, Granted)] == [1]


def test_a_budget_that_becomes_smaller_asks_for_what_is_too_much() -> None:
    book = ledger()
    book.attach("a", claim("a"))
    fill(book, "a", 10)
    book.attach("b", claim("b", 3))
    assert [m.size for m in said(book, "a") if isinstance(m, Attached)] == [3]
    book.report(("a", 1), 10, busy(10))
    assert book.budgets[SHOP].pools["a", 1].ceiling == 3


def test_two_stated_sizes_are_refused_and_both_are_named() -> None:
    book = ledger()
    book.attach("a", claim("orders of worker 0", 20))
    book.attach("b", claim("orders of worker 1", 30))
    (refused,) = said(book, "b")
    assert isinstance(refused, Refused)
    for named in ("orders of worker 0", "orders of worker 1", "20", "30", SHOP):
        assert named in refused.reason


def test_the_operators_size_goes_before_what_scripts_state_and_capping_is_said_once() -> None:
    book = ledger(operator_size=5)
    for name in "abc":
        book.attach(name, claim(name, 30))
    assert book.budgets[SHOP].size == 5
    assert book.notices == [f"max_size=30 is capped to 5, the operator's budget for {SHOP}"]


def test_a_warm_up_is_answered_at_once_and_gets_no_more_than_an_equal_part() -> None:
    book = ledger()
    for name in "ab":
        book.attach(name, claim(name, 4, min_size=4))
    for _ in range(2):
        held = len(book.budgets[SHOP].pools["a", 1].leases)
        book.report(("a", 1), held, Demand(held, 0, held, 0, want=2))
    answers = [m for m in said(book, "a") if not isinstance(m, Attached)]
    assert [type(m) for m in answers] == [Granted, Denied]
    assert len(book.budgets[SHOP].pools["a", 1].leases) == 2


def test_what_a_dead_process_held_stays_charged_until_the_server_let_go() -> None:
    book = ledger()
    for name in "ab":
        book.attach(name, claim(name, 2))
    leases = fill(book, "a", 2)
    book.report(("b", 1), 0, busy(0, waiting=1))
    said(book, "b")
    book.dead("a", local=True)
    assert not [m for m in said(book, "b") if isinstance(m, Granted)]
    book.gone(SHOP, leases[0])
    assert [len(m.leases) for m in said(book, "b") if isinstance(m, Granted)] == [1]


def test_saying_it_twice_changes_nothing() -> None:
    book = ledger()
    book.attach("a", claim("a", 2))
    leases = fill(book, "a", 2)
    for _ in range(2):
        book.take("a", Returned(1, leases[:1]))
        assert book.budgets[SHOP].charged == 1
    book.take("a", Returned(1, [12345]))
    assert book.budgets[SHOP].charged == 1


def test_a_restarted_coordinator_grants_nothing_until_it_has_learnt() -> None:
    book = ledger()
    book.recover_size(SHOP, 3, "a")
    book.recover(SHOP, ("a", 1), "a", [HeldLease(1), HeldLease(2)])
    book.granting = False
    book.attach("b", claim("b"))
    book.report(("b", 1), 0, busy(0, waiting=5))
    assert [m.size for m in said(book, "b") if isinstance(m, Attached)] == [3]
    book.start_granting()
    assert [len(m.leases) for m in said(book, "b") if isinstance(m, Granted)] == [1]
    book.attach("a", claim("a", 3, leases=[HeldLease(1)]))  # what it claims is what it holds
    assert [len(m.leases) for m in said(book, "b") if isinstance(m, Granted)] == [1]
    assert book.budgets[SHOP].charged == 3


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_budget_that_nobody_uses_any_more_is_forgotten(size: int) -> None:
    book = ledger()
    book.attach("a", claim("a", size))
    book.detach(("a", 1))
    assert book.budgets == {}
    book.attach("b", claim("b", size + 1))
    assert book.budgets[SHOP].size == size + 1


def held(lease: int, server_id: int) -> HeldLease:
    return HeldLease(lease, LeaseState.OPEN, server_id, (f"192.0.2.1:{server_id}", "192.0.2.2:5432"))


def test_the_reserve_is_for_whoever_ends_the_sessions_of_a_lost_host_and_not_for_those_who_wait() -> None:
    book = ledger(5)
    book.attach("far", claim("far", leases=[held(901, 1), held(902, 2), held(903, 3)]), local=False)
    book.attach("a", claim("a", leases=[held(904, 4)]))
    book.attach("b", claim("b"))
    for member, in_use in (("a", 1), ("b", 0)):
        book.report((member, 1), 0, busy(in_use, waiting=2))
    book.dead("far", local=False)
    (budget,) = book.budgets.values()
    assert (budget.charged, budget.lost, budget.free) == (4, 3, 0)
    for member in ("a", "b"):
        assert not [message for message in said(book, member) if isinstance(message, Granted)]
    book.have_ended(budget, list(budget.quarantined.values()))
    # `a` has a connection, but it is in use: it hears first what to do, and then gets what it needs for it.
    kinds = [type(message) for message in said(book, "a") if isinstance(message, End | Granted)]
    assert kinds == [End, Granted]
    assert not [message for message in said(book, "b") if isinstance(message, Granted)]
    assert budget.charged == 5
    book.ended(("a", 1), [901, 902, 903])
    assert sum(len(m.leases) for m in said(book, "b") if isinstance(m, Granted)) == 2
    assert budget.reserve == 0
