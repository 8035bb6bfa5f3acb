"""The ledger's rules, one by one. That they hold together in any order is shown by the simulated fleet."""

from __future__ import annotations

import pytest

from pysqlx_engine.pool.budget import Demand
from pysqlx_engine.workers.ledger import MOST_BUDGETS, MOST_WANTED, NOTHING, PATIENCE, Ledger, Orphan
from pysqlx_engine.workers.messages import (
    MOST_CONNECTIONS,
    MOST_POOLS,
    Attached,
    Ceiling,
    Denied,
    Durations,
    End,
    Ended,
    FromCoordinator,
    Granted,
    HeldLease,
    LeaseState,
    Moved,
    PoolClaim,
    Refused,
    Returned,
    Totals,
)

SHOP = "postgresql://db.example:5432/shop"


def ledger(operator_size: int | None = None) -> Ledger:
    return Ledger(operator_size, first_lease=0)


def claim(name: str, size: int | None = None, *, min_size: int = 0, leases: list[HeldLease] | None = None) -> PoolClaim:
    return PoolClaim(1, name, SHOP, min_size, size or 10, size is not None, leases or [])


def said(book: Ledger, member: str) -> list[FromCoordinator]:
    """What was said to `member` since the last look."""
    book.decide()
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


def two_hold_all_and_a_third_waits() -> Ledger:
    """Of four leases a and b have two each, and c has just said that it wants one."""
    book = ledger()
    for name in "abc":
        book.attach(name, claim(name, 4))
    fill(book, "a", 2)
    fill(book, "b", 2)
    book.report(("c", 1), 0, busy(0, waiting=1))
    return book


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
        book.decide()
    assert sum(len(m.leases) for m in said(book, "a") if isinstance(m, Granted)) == 2


def test_a_lease_that_somebody_claims_before_it_was_granted_is_granted_to_nobody() -> None:
    book = ledger()
    book.attach("liar", claim("liar", 4, leases=[HeldLease(1), HeldLease(2)]))
    book.attach("a", claim("a", 4))
    assert fill(book, "a", 2) == [3, 4]
    for member, leases in (("liar", [1, 2]), ("a", [1, 2, 3, 4])):
        book.take(member, Returned(1, leases))
    assert (book.budgets[SHOP].charged, book.budgets[SHOP].holders) == (0, {})


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
    book = two_hold_all_and_a_third_waits()
    book.decide()
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
        book.decide()
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


def test_what_comes_at_once_is_decided_together() -> None:
    book = ledger()
    for name in "ab":
        book.attach(name, claim(name, 2))
    leases = fill(book, "a", 2)
    book.report(("b", 1), 0, busy(0, waiting=1))
    book.take("a", Returned(1, leases))
    assert [type(m) for m in said(book, "b")] == [Attached, Granted]
    assert not [m for m in said(book, "a") if isinstance(m, Ceiling)], "what came back is enough: nobody owes anything"


def test_of_several_that_report_at_once_who_is_idle_yields() -> None:
    book = two_hold_all_and_a_third_waits()
    book.report(("a", 1), 2, Demand(in_use=0, idle=2, recent=0, waiting=0, want=0))
    book.report(("b", 1), 2, busy(2))
    assert [m.ceiling for m in said(book, "a") if isinstance(m, Ceiling)] == [1]
    assert [m.ceiling for m in said(book, "b") if isinstance(m, Ceiling)] == [2]


def test_who_has_come_down_to_its_ceiling_owes_nothing_from_before() -> None:
    book = ledger()
    for name in "acd":
        book.attach(name, claim(name, 6))
    leases = fill(book, "a", 6)
    book.now = 1.0
    book.report(("c", 1), 0, busy(0, waiting=2))
    assert [m.ceiling for m in said(book, "a") if isinstance(m, Ceiling)] == [4]
    book.now += 4 * PATIENCE
    book.take("a", Returned(1, leases[:2]))
    book.report(("d", 1), 0, busy(0, waiting=3))
    for name in "cd":
        assert [m.ceiling for m in said(book, name) if isinstance(m, Ceiling)][-1] == 2
    assert book.budgets[SHOP].look_at == book.now + PATIENCE


@pytest.mark.parametrize("how", ["closed", "dead"])
def test_a_budget_that_nobody_uses_any_more_is_no_more_for_who_comes_in_the_same_moment(how: str) -> None:
    book = ledger()
    book.attach("a", claim("a", 3))
    said(book, "a")
    if how == "closed":
        book.detach(("a", 1))
    else:
        book.dead("a", local=True)
    book.attach("b", claim("b"))
    assert said(book, "b") == [Attached(1, 10)]
    assert [record.kind for record in book.records][-2:] == ["forgotten", "attached"]
    book.attach("c", claim("c", 8))
    assert said(book, "c") == [Attached(1, 8)]


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


# -- the life of a lease ----------------------------------------------------------------------------------------------


def moved(book: Ledger, member: str, lease: int, state: LeaseState, **known: object) -> None:
    book.take(member, Moved(1, HeldLease(lease, state, **known)))  # type: ignore[arg-type]


def state_of(book: Ledger, member: str, lease: int) -> LeaseState:
    return book.budgets[SHOP].pools[member, 1].leases[lease].state


def test_a_lease_only_goes_forward() -> None:
    book = ledger()
    book.attach("a", claim("a", 2))
    (lease,) = fill(book, "a", 1)
    steps = [LeaseState.CONNECTING, LeaseState.OPEN, LeaseState.CLOSING]
    for number, state in enumerate(steps):
        for told in (state, *steps[: number + 1], LeaseState.GRANTED, LeaseState.QUARANTINED):
            moved(book, "a", lease, told)
            assert state_of(book, "a", lease) is state
    assert [record.kind for record in book.records].count("moved") == 3


def test_what_is_said_of_a_lease_that_one_does_not_have_is_nothing() -> None:
    book = ledger()
    for name in "ab":
        book.attach(name, claim(name, 2))
    (lease,) = fill(book, "a", 1)
    moved(book, "b", lease, LeaseState.CLOSING)
    book.take("b", Returned(1, [lease]))
    assert state_of(book, "a", lease) is LeaseState.GRANTED
    assert book.budgets[SHOP].charged == 1


def test_a_lease_that_is_on_its_way_back_is_not_asked_for_again() -> None:
    book = ledger()
    for name in "ab":
        book.attach(name, claim(name, 2))
    leases = fill(book, "a", 2)
    moved(book, "a", leases[0], LeaseState.CLOSING)
    book.report(("a", 1), 2, busy(1))
    book.report(("b", 1), 0, busy(0, waiting=1))
    assert [m.ceiling for m in said(book, "a") if isinstance(m, Ceiling)] == [1]  # what it has without that one
    book.take("a", Returned(1, leases[:1]))
    assert [len(m.leases) for m in said(book, "b") if isinstance(m, Granted)] == [1]


def test_a_close_that_takes_long_is_waited_for_elsewhere() -> None:
    book = ledger()
    for name in "abc":
        book.attach(name, claim(name, 2))
    slow, _ = fill(book, "a", 1), fill(book, "b", 1)
    moved(book, "a", slow[0], LeaseState.CLOSING)
    book.report(("a", 1), 1, NOTHING)
    book.report(("b", 1), 1, Demand(0, 1, 0, 0, 0))
    book.report(("c", 1), 0, busy(0, waiting=1))
    assert not [m for m in said(book, "b") if isinstance(m, Ceiling) and m.ceiling == 0]
    book.now += 2 * PATIENCE
    book.look_again()
    assert [m.ceiling for m in said(book, "b") if isinstance(m, Ceiling)][-1] == 0


# -- hosts that can be lost -------------------------------------------------------------------------------------------


def test_one_lease_is_kept_in_reserve_where_a_host_can_be_lost_until_one_is() -> None:
    book = ledger()
    book.attach("near", claim("near", 3))
    book.attach("far", claim("far", 3), local=False)
    fill(book, "near", 2)
    book.report(("near", 1), 2, busy(2, waiting=9))
    book.decide()
    budget = book.budgets[SHOP]
    assert (budget.reserve, budget.charged, budget.free) == (1, 2, 0)
    book.dead("far", local=False)
    book.decide()
    assert (budget.reserve, budget.charged) == (0, 3)  # it had nothing: no host is left that could be lost


def test_a_budget_of_one_has_no_reserve() -> None:
    book = ledger()
    book.attach("far", claim("far", 1), local=False)
    book.report(("far", 1), 0, busy(0, waiting=1))
    book.decide()
    assert book.budgets[SHOP].charged == 1


# -- claims -----------------------------------------------------------------------------------------------------------


def held(*leases: int) -> list[HeldLease]:
    return [HeldLease(lease, LeaseState.OPEN) for lease in leases]


def test_claims_beyond_the_size_are_charged_and_said_once() -> None:
    book = ledger(operator_size=3)
    book.attach("a", claim("a", leases=held(1, 2)))
    for _ in range(3):
        book.attach("b", claim("b", leases=held(3, 4, 5)))
    budget = book.budgets[SHOP]
    assert (budget.charged, budget.free) == (5, -2)
    assert len(book.notices) == 1
    assert "5 connections are claimed, and the budget is 3; the last claim is of b, which holds 3" in book.notices[0]
    book.report(("a", 1), 0, busy(2, waiting=1))
    book.take("b", Returned(1, [3, 4]))
    assert not [m for m in said(book, "a") if isinstance(m, Granted)]
    book.take("b", Returned(1, [5]))
    assert [len(m.leases) for m in said(book, "a") if isinstance(m, Granted)] == [1]
    book.attach("b", claim("b", leases=held(6, 7)))
    assert len(book.notices) == 2  # it had come down to the size in between


def test_a_lease_stays_with_who_has_it_whoever_else_claims_it() -> None:
    book = ledger()
    for name in "ab":
        book.attach(name, claim(name, 3))
    leases = fill(book, "a", 2)
    book.attach("b", claim("b", 3, leases=held(*leases, 99)))
    assert book.budgets[SHOP].pools["b", 1].leases.keys() == {99}
    assert book.budgets[SHOP].charged == 3
    book.dead("a", local=True)
    book.attach("b", claim("b", 3, leases=held(*leases, 99)))
    assert (book.budgets[SHOP].charged, len(book.budgets[SHOP].quarantined)) == (3, 2)


def test_a_process_may_say_that_a_lease_is_in_another_of_its_pools() -> None:
    book = ledger()
    book.attach("a", claim("a", 3, leases=held(1)))
    book.attach("a", PoolClaim(2, "a", SHOP, 0, 3, True, held(1)))
    budget = book.budgets[SHOP]
    assert (budget.charged, budget.pools["a", 1].leases, list(budget.pools["a", 2].leases)) == (1, {}, [1])
    kinds = [(record.kind, record.key) for record in book.records if record.held or record.leases]
    assert kinds == [("attached", ("a", 1)), ("attached", ("a", 2)), ("returned", ("a", 1))]


def test_quarantine_is_not_for_a_process_to_claim() -> None:
    book = ledger()
    book.attach("a", claim("a", 3, leases=[HeldLease(1, LeaseState.QUARANTINED)]))
    assert state_of(book, "a", 1) is LeaseState.CONNECTING
    moved(book, "a", 1, LeaseState.CLOSING)
    assert state_of(book, "a", 1) is LeaseState.CLOSING


def test_a_pool_that_is_refused_holds_nothing() -> None:
    book = ledger()
    for name in "ab":
        book.attach(name, claim(name, 3))
    fill(book, "a", 2)
    book.attach("a", claim("a", 4))
    assert isinstance(said(book, "a")[-1], Refused)
    assert book.budgets[SHOP].charged == 0
    assert ("a", 1) not in book.budgets[SHOP].pools


def test_there_are_only_so_many_budgets_and_pools_of_one_process() -> None:
    book = ledger()
    for number in range(MOST_BUDGETS + 1):
        book.attach(f"member {number % 2}", PoolClaim(number, "a", f"db {number}", 0, 3, True))
    assert len(book.budgets) == MOST_BUDGETS
    (refused,) = [m for m in said(book, "member 0") if isinstance(m, Refused)]
    assert "budgets for 1000 databases" in refused.reason
    book.attach("member 1", PoolClaim(9999, "a", "one more", 0, 3, True, held(1)))
    assert book.budgets["one more"].charged == 1  # who holds something is counted
    for number in (1, 3):  # there is one too many
        book.detach(("member 1", number))
    book.attach("member 1", PoolClaim(8888, "a", "in its place", 0, 3, True))
    assert "in its place" in book.budgets
    many = ledger()
    for number in range(MOST_POOLS + 1):
        many.attach("a", PoolClaim(number, "a", SHOP, 0, 3, True))
    assert len(many.budgets[SHOP].pools) == MOST_POOLS
    many.attach("b", claim("b", 3))
    assert ("b", 1) in many.budgets[SHOP].pools


@pytest.mark.parametrize("number", [-(2**63), -1, 10**9, 2**64 - 1])
def test_demands_and_sizes_are_cut_to_what_can_be(number: int) -> None:
    book = ledger()
    book.attach("a", PoolClaim(1, "a", SHOP, number, 2**64 - 1, True))
    book.report(("a", 1), number, Demand(number, number, number, number, number))
    book.decide()
    budget = book.budgets[SHOP]
    assert budget.size == MOST_CONNECTIONS
    assert budget.charged == (MOST_WANTED if number > 0 else 0)
    assert all(0 <= one <= MOST_CONNECTIONS for one in budget.pools["a", 1].demand)


# -- the dead ---------------------------------------------------------------------------------------------------------


def orphaned(*others: str) -> tuple[Ledger, list[Orphan]]:
    """A ledger with `others`, and what a dead process has left."""
    book = ledger()
    for name in ("dead", *others):
        book.attach(name, claim(name, 4))
    fill(book, "dead", 2)
    book.dead("dead", local=False)
    book.outbox.clear()
    return book, list(book.budgets[SHOP].quarantined.values())


def asked(book: Ledger) -> list[str]:
    names = [to for to, message in book.outbox if isinstance(message, End)]
    book.outbox.clear()
    return names


def test_when_one_does_not_answer_the_next_is_asked() -> None:
    book, orphans = orphaned("a", "b", "c")
    book.report(("b", 1), 0, Demand(0, 1, 0, 0, 0))
    order = []
    for _ in range(6):
        book.have_ended(book.budgets[SHOP], orphans)
        order += asked(book)
    assert order == ["b", "a", "c", "b", "a", "c"]  # the first has an idle connection


def test_nobody_is_asked_who_has_not_reported_yet() -> None:
    book, orphans = orphaned()
    book.recover(SHOP, ("silent", 1), "silent", [HeldLease(99)])
    book.have_ended(book.budgets[SHOP], orphans)
    assert asked(book) == []
    assert orphans[0].asked_at is None


def test_ended_counts_only_from_who_was_asked() -> None:
    book, orphans = orphaned("a", "b")
    leases = [orphan.held.lease for orphan in orphans]
    book.have_ended(book.budgets[SHOP], orphans[:1])
    (name,) = asked(book)
    other = "b" if name == "a" else "a"
    book.take(other, Ended(1, leases))
    book.take("nobody", Ended(1, leases))
    assert book.budgets[SHOP].charged == 2
    book.take(name, Ended(1, [*leases, 12345]))
    assert list(book.budgets[SHOP].quarantined) == leases[1:]


def test_who_was_taken_for_dead_gets_back_what_it_claims_and_the_rest_is_free() -> None:
    book, orphans = orphaned("a")
    kept, lost = (orphan.held.lease for orphan in orphans)
    book.rejoined("dead", [claim("dead", 4, leases=held(kept))], local=False)
    budget = book.budgets[SHOP]
    assert (budget.held, budget.quarantined, budget.lost) == (1, {}, 0)
    assert [record.held.lease for record in book.records if record.kind == "returned" and record.held] == [lost]


def test_a_pool_that_a_process_does_not_state_any_more_is_no_more() -> None:
    book = ledger()
    book.attach("a", claim("a", 4, leases=held(1)))
    book.attach("a", PoolClaim(2, "a", SHOP, 0, 4, True, held(2)))
    book.rejoined("a", [PoolClaim(2, "a", SHOP, 0, 4, True, held(2))], local=True)
    assert book.budgets[SHOP].pools.keys() == {("a", 2)}
    assert book.budgets[SHOP].charged == 1


def test_a_silent_member_stays_charged_and_the_rest_is_shared() -> None:
    book = ledger(operator_size=4)
    book.granting = False
    book.recover(SHOP, ("silent", 1), "silent", [HeldLease(1), HeldLease(2)])
    book.attach("a", claim("a"))
    book.report(("a", 1), 0, Demand(0, 0, 0, 9, 9))
    book.start_granting()
    assert book.silent_members() == {"silent"}
    assert [len(m.leases) for m in said(book, "a") if isinstance(m, Granted)] == [2]
    assert not [m for m in said(book, "silent") if isinstance(m, Ceiling)]
    book.rejoined("silent", [claim("silent", leases=held(2))], local=True)
    book.decide()
    assert book.silent_members() == set()
    assert book.budgets[SHOP].charged == 4


def test_nothing_is_granted_while_it_is_not_known_who_holds_what() -> None:
    book = ledger()
    book.granting = False
    book.attach("a", claim("a", 3, min_size=3))
    book.report(("a", 1), 0, busy(0, waiting=3))
    book.look_again()
    book.relax()
    book.attach("b", claim("b", 3))
    book.dead("b", local=True)
    book.decide()
    assert book.budgets[SHOP].charged == 0
    book.start_granting()
    book.decide()
    assert book.budgets[SHOP].charged == 2


def open_at(lease: int, server_id: int) -> HeldLease:
    return HeldLease(lease, LeaseState.OPEN, server_id, (f"192.0.2.1:{server_id}", "192.0.2.2:5432"))


def test_the_reserve_is_for_whoever_ends_the_sessions_of_a_lost_host_and_not_for_those_who_wait() -> None:
    book = ledger(5)
    book.attach("far", claim("far", leases=[open_at(901, 1), open_at(902, 2), open_at(903, 3)]), local=False)
    book.attach("a", claim("a", leases=[open_at(904, 4)]))
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


def test_a_process_that_states_all_it_holds_is_granted_nothing_in_the_midst_of_it() -> None:
    book = ledger(operator_size=2)
    for number, leases in ((1, held(101, 102)), (2, [])):
        book.attach("a", PoolClaim(number, "a", SHOP, 0, 2, True, leases))
    book.report(("a", 2), 0, busy(0, waiting=1))
    said(book, "a")
    # The other pool has given one back, and that it did was lost on the way.
    claims = [PoolClaim(1, "a", SHOP, 0, 2, True, held(101)), PoolClaim(2, "a", SHOP, 0, 2, True)]
    book.rejoined("a", claims, local=True)
    assert not [m for m in said(book, "a") if isinstance(m, Granted)]  # to a pool that claims not to have it
    assert book.budgets[SHOP].charged == 1
    book.report(("a", 2), 0, busy(0, waiting=1))
    assert [len(m.leases) for m in said(book, "a") if isinstance(m, Granted)] == [1]
    assert book.budgets[SHOP].charged == 2


def test_nothing_is_granted_to_another_pool_of_a_process_that_has_just_died() -> None:
    book = ledger(operator_size=2)
    for number, leases in ((1, held(101)), (2, [])):
        book.attach("far", PoolClaim(number, "far", SHOP, 0, 2, True, leases), local=False)
    book.report(("far", 2), 0, busy(0, waiting=1))
    said(book, "far")
    book.dead("far", local=False)  # with it goes the reserve
    assert book.outbox == []
    assert list(book.budgets[SHOP].quarantined) == [101]


def test_a_pool_that_waits_while_the_budget_becomes_smaller_is_granted_its_part_at_once() -> None:
    book = ledger()
    book.attach("a", claim("a"))
    book.decide()
    book.report(("a", 1), 0, Demand(0, 0, 0, 1, want=2))
    book.resize(1)
    assert [len(m.leases) for m in said(book, "a") if isinstance(m, Granted)] == [1]


# -- what is counted --------------------------------------------------------------------------------------------------


def test_what_pools_have_counted_never_becomes_less_when_they_go() -> None:
    book = ledger()
    for name in "ab":
        book.attach(name, claim(name, 4))
        book.take(name, Totals(1, requests=5, wait=Durations(0.5, [1, 4])))
    budget = book.budgets[SHOP]
    book.take("a", Totals(1, requests=7, wait=Durations(0.75, [1, 4, 2])))  # all since its start, not more of it
    assert (budget.totals.requests, budget.totals.wait) == (12, Durations(1.25, [2, 8, 2]))
    book.detach(("a", 1))
    book.attach("b", claim("b", 4))  # its connection to the coordinator was lost, and it says hello again
    assert budget.totals.requests == 12
    book.dead("b", local=True)
    book.decide()
    assert SHOP not in book.budgets  # nobody uses it
    book.attach("c", claim("c", 4))
    assert book.budgets[SHOP].totals.requests == 12


def test_a_process_that_dies_with_a_pool_is_counted_and_one_that_had_closed_it_is_not() -> None:
    book = ledger()
    for name in "ab":
        book.attach(name, claim(name, 4))
    book.detach(("a", 1))
    for name in "ab":
        book.dead(name, local=True)
    assert book.deaths == 1


def test_a_lease_that_is_asked_back_is_counted_once() -> None:
    book = two_hold_all_and_a_third_waits()
    book.decide()
    past = book.budgets[SHOP].past
    assert past.recalled == 1
    for _ in range(2):
        book.report(("c", 1), 0, busy(0, waiting=1))
        book.decide()
    assert past.recalled == 1
    book.recall()
    assert past.recalled == 5
