"""Who is a member, what of theirs is heard, and who is taken for dead."""

from __future__ import annotations

import pytest

from pysqlx_engine.pool.budget import Demand
from pysqlx_engine.workers.fleet import LEARNING, LOST_AGAIN, MOST_MESSAGES, RELAX, STRANGERS, TERM, Fleet, Member
from pysqlx_engine.workers.ledger import Ledger
from pysqlx_engine.workers.membership import MARGIN
from pysqlx_engine.workers.messages import (
    VERSION,
    Attach,
    Attached,
    Ceiling,
    CoordinatorPacket,
    FromCoordinator,
    FromPool,
    Granted,
    HeldLease,
    Hello,
    Lost,
    PoolClaim,
    ProcessPacket,
    Refused,
    Report,
    Returned,
    Unwelcome,
    Welcome,
)

SHOP = "postgresql://db.example:5432/shop"
EPOCH = 5
WAITS = Report(1, 0, Demand(0, 0, 0, 1, 1))


def new_fleet(size: int = 4) -> Fleet:
    fleet = Fleet(EPOCH, Ledger(size, first_lease=0))
    fleet.now = 100.0
    return fleet


def hello(session: int = 1, *leases: HeldLease, pid: int = 10, pools: int = 1) -> Hello:
    claims = [PoolClaim(1 + number, "pool", SHOP, 0, 4, False, list(leases)) for number in range(pools)]
    return Hello(VERSION, session, "any", pid, 1, "host", 0, 0, claims)


def packet(number: int, *messages: FromPool, session: int = 1, epoch: int = EPOCH) -> ProcessPacket:
    return ProcessPacket(epoch, session, number, list(messages))


def said(fleet: Fleet, name: str = "a") -> list[FromCoordinator]:
    fleet.ledger.decide()
    return [message for to, message in fleet.say() if to == name]


def joined(*, local: bool = True, size: int = 4) -> Fleet:
    fleet = new_fleet(size)
    assert fleet.hello("a", hello(), local=local)
    said(fleet)
    return fleet


def wait(fleet: Fleet, seconds: float) -> None:
    """Time passes, and every timer is looked at."""
    until = fleet.now + seconds
    while (due := fleet.due()) is not None and due <= until:
        fleet.now = max(due, fleet.now + 0.001)
        fleet.tick()
    fleet.now = until
    fleet.tick()


def test_a_hello_is_answered_by_a_welcome_and_then_by_numbered_packets() -> None:
    fleet = new_fleet()
    fleet.hello("a", hello(3), local=True)
    assert said(fleet) == [Welcome(EPOCH, 3, None), CoordinatorPacket(EPOCH, 3, 1, 0, [Attached(1, 4)])]
    fleet.packet("a", packet(1, WAITS, session=3))
    (answer,) = said(fleet)
    assert isinstance(answer, CoordinatorPacket)
    assert (answer.number, answer.heard) == (2, 1)


def test_who_the_kernel_does_not_tell_of_has_a_term() -> None:
    fleet = new_fleet()
    fleet.hello("a", hello(), local=False)
    assert said(fleet)[0] == Welcome(EPOCH, 1, TERM)


@pytest.mark.parametrize("session", [1, 2])
def test_a_hello_that_is_late_or_a_copy_changes_nothing(session: int) -> None:
    fleet = new_fleet()
    fleet.hello("a", hello(2, HeldLease(1)), local=True)
    said(fleet)
    assert not fleet.hello("a", hello(session), local=True)
    assert said(fleet) == []
    assert fleet.ledger.budgets[SHOP].charged == 1


@pytest.mark.parametrize(
    "late",
    [
        packet(1, WAITS),
        packet(0, WAITS),
        packet(-1, WAITS),
        packet(2, WAITS, epoch=EPOCH - 1),
        packet(2, WAITS, session=0),
    ],
    ids=["twice", "number 0", "number -1", "another epoch", "an earlier session"],
)
def test_a_packet_that_is_late_or_a_copy_is_dropped_in_silence(late: ProcessPacket) -> None:
    fleet = joined()
    fleet.packet("a", packet(1))
    fleet.packet("a", late)
    assert (fleet.dropped, said(fleet)) == (1, [])
    fleet.packet("a", packet(2, WAITS))
    assert len(said(fleet)) == 1


@pytest.mark.parametrize("missed", [packet(3), packet(1, session=2)], ids=["a packet", "a hello"])
def test_who_has_missed_something_is_asked_to_say_hello_but_not_all_the_time(missed: ProcessPacket) -> None:
    fleet = joined()
    fleet.packet("a", packet(1))
    for _ in range(10):
        fleet.packet("a", missed)
    assert said(fleet) == [Lost(EPOCH, missed.session)]
    fleet.now += LOST_AGAIN
    fleet.packet("a", missed)
    assert said(fleet) == [Lost(EPOCH, missed.session)]


def test_a_stranger_is_asked_to_say_hello_and_nothing_is_kept_of_it() -> None:
    fleet = new_fleet()
    for number in range(3 * STRANGERS):
        for _ in range(3):
            fleet.packet(f"stranger {number}", packet(1, WAITS, session=9))
        assert said(fleet, f"stranger {number}") == [Lost(EPOCH, 9)]
    assert fleet.members == fleet.ledger.budgets == {}
    assert len(fleet._answered) <= STRANGERS


def test_a_refusal_is_not_said_as_often_as_it_is_asked_for() -> None:
    fleet = new_fleet()
    for _ in range(10):
        fleet.refuse("?1", "no")
    assert said(fleet, "?1") == [Unwelcome(EPOCH, "no")]


def test_what_is_claimed_anew_voids_what_could_not_be_said_yet() -> None:
    fleet = joined()
    fleet.packet("a", packet(1, WAITS))
    fleet.ledger.decide()
    assert fleet.ledger.budgets[SHOP].charged == 1
    fleet.hello("a", hello(2), local=True)  # it had sent this before it could hear of the lease
    assert not [
        one for one in said(fleet) if isinstance(one, CoordinatorPacket) and isinstance(one.messages[0], Granted)
    ]
    assert fleet.ledger.budgets[SHOP].charged == 0


def test_while_nothing_can_be_said_only_the_last_word_of_a_kind_is_kept() -> None:
    fleet = joined(size=2)
    fleet.hello("b", hello(pid=11), local=True)
    fleet.packet("a", packet(1, Report(1, 0, Demand(0, 0, 0, 2, 2))))
    fleet.ledger.decide()
    for number in range(1, 1000):
        fleet.packet("b", packet(number, Report(1, 0, Demand(0, 0, 0, number % 2 + 1, number % 2 + 1))))
        fleet.ledger.decide()
        fleet.packet("a", packet(number + 1, Report(1, 0, Demand(number % 3, 0, 0, 1, 1))))
        fleet.ledger.decide()
        fleet.packet("d", packet(1))
        fleet.now += LOST_AGAIN
        fleet.wait_to_say()
        assert len(fleet.ledger.outbox) + len(fleet._outbox) < 10
    told = [one for packet in said(fleet) if isinstance(packet, CoordinatorPacket) for one in packet.messages]
    assert isinstance(told[0], Granted)
    assert told[-1] == Ceiling(1, fleet.ledger.budgets[SHOP].pools["a", 1].ceiling, 2)


def test_a_long_answer_is_cut_into_packets() -> None:
    fleet = new_fleet()
    fleet.hello("a", hello(1, pools=MOST_MESSAGES + 1), local=True)
    packets = [one for one in said(fleet) if isinstance(one, CoordinatorPacket)]
    assert [(one.number, len(one.messages)) for one in packets] == [(1, MOST_MESSAGES), (2, 1)]


def test_who_has_missed_something_is_told_nothing_more_until_it_has_said_hello() -> None:
    fleet = joined()
    fleet.missed("a")
    fleet.packet("a", packet(1, WAITS))
    wait(fleet, 5 * LOST_AGAIN)
    asked = said(fleet)
    assert asked == [Lost(EPOCH, 1)] * len(asked)
    assert 4 <= len(asked) <= 7
    assert fleet.ledger.budgets[SHOP].charged == 0  # what it says now is of before
    fleet.hello("a", hello(2), local=True)
    fleet.packet("a", packet(1, WAITS, session=2))
    assert isinstance(said(fleet)[-1], CoordinatorPacket)
    assert fleet.due() is None


def test_a_process_that_replaces_itself_leaves_its_former_image_dead() -> None:
    fleet = new_fleet()
    fleet.hello("first", hello(1, HeldLease(1)), local=True)
    fleet.hello("second", hello(1), local=True)
    assert fleet.members.keys() == {"second"}
    assert (fleet.left, len(fleet.ledger.budgets[SHOP].quarantined)) == (["first"], 1)
    fleet.hello("third", hello(1, pid=11), local=True)
    assert fleet.members.keys() == {"second", "third"}


def test_a_term_is_extended_by_every_packet_and_ends_a_margin_later_than_it_was_told() -> None:
    fleet = joined(local=False)
    wait(fleet, TERM)
    fleet.packet("a", packet(1))
    assert said(fleet) == [CoordinatorPacket(EPOCH, 1, 2, 1, [])]  # it has to hear that it was heard
    wait(fleet, TERM + MARGIN - 0.01)
    assert "a" in fleet.members
    wait(fleet, 0.02)
    assert fleet.members == {}
    assert "was not heard for 7.0 s; counted as dead" in fleet.notices[0]


def test_a_coordinator_that_was_stopped_reads_what_waits_before_it_takes_anybody_for_dead() -> None:
    fleet = joined(local=False)
    fleet.hello("silent", hello(1, pid=12), local=False)
    wait(fleet, 1.0)
    fleet.now += 2 * TERM
    fleet.tick()
    wait(fleet, MARGIN / 2)
    fleet.packet("a", packet(1))
    wait(fleet, MARGIN / 2 + 0.1)
    assert set(fleet.members) == {"a"}


def test_a_coordinator_that_was_stopped_while_it_learned_reads_what_waits_before_it_grants() -> None:
    fleet = new_fleet()
    fleet.learn([], unknown=True, remote=True)
    wait(fleet, 1.0)
    fleet.now += 2 * TERM
    fleet.tick()
    assert not fleet.ledger.granting
    wait(fleet, MARGIN - 0.01)
    assert not fleet.ledger.granting
    wait(fleet, 0.02)
    assert fleet.ledger.granting


def test_who_has_not_said_hello_is_not_heard_whatever_session_it_names() -> None:
    fleet = new_fleet()
    fleet.ledger.recover(SHOP, ("a", 1), "old", [HeldLease(1)])
    fleet.learn([("a", Member(10, 1, local=True, heard=100.0, joined=100.0))], unknown=False, remote=False)
    fleet.packet("a", packet(1, Returned(1, [1]), session=0))
    assert said(fleet) == [Lost(EPOCH, 0)]
    assert fleet.ledger.budgets[SHOP].charged == 1


def test_a_pool_that_is_new_cannot_claim_leases() -> None:
    fleet = joined()
    fleet.packet("a", packet(1, Attach(PoolClaim(2, "more", SHOP, 0, 4, False, [HeldLease(7)]))))
    (answer,) = said(fleet)
    assert isinstance(answer, CoordinatorPacket)
    assert answer.messages == [Refused(2, "a pool that is new holds no leases")]
    assert fleet.ledger.budgets[SHOP].charged == 0


def test_who_joins_beside_one_with_a_longer_term_is_missed_when_its_own_is_over() -> None:
    fleet = new_fleet()
    long, short = (
        Member(number, 1, local=False, heard=100.0, joined=100.0, term=term) for number, term in ((11, 3600.0), (12, 2))
    )
    fleet.learn([("long", long), ("short", short)], unknown=False, remote=True)
    fleet.hello("a", hello(1, HeldLease(1)), local=False)
    wait(fleet, 2 + MARGIN + 0.01)
    assert fleet.members.keys() == {"long", "a"}
    wait(fleet, TERM - 2)
    assert fleet.members.keys() == {"long"}
    assert len(fleet.ledger.budgets[SHOP].quarantined) == 1


def test_who_was_taken_for_dead_comes_back_with_its_leases_but_not_by_an_old_hello() -> None:
    fleet = new_fleet()
    fleet.hello("a", hello(2, HeldLease(1), HeldLease(2)), local=False)
    wait(fleet, TERM + 2 * MARGIN)
    budget = fleet.ledger.budgets[SHOP]
    assert (budget.held, len(budget.quarantined)) == (0, 2)
    assert not fleet.hello("a", hello(2, HeldLease(1)), local=False)
    assert fleet.hello("a", hello(3, HeldLease(1)), local=False)
    assert (budget.held, len(budget.quarantined)) == (1, 0)  # what it does not claim it has given back


def test_a_restarted_coordinator_waits_for_those_that_the_journal_names_and_no_longer() -> None:
    fleet = new_fleet()
    fleet.ledger.recover(SHOP, ("old", 1), "old", [HeldLease(1)])
    fleet.learn([("old", Member(10, 1, True, 100.0, 100.0))], unknown=False, remote=True)
    fleet.hello("a", hello(1, pid=11), local=True)
    fleet.packet("a", packet(1, WAITS))
    fleet.tick()
    assert not fleet.ledger.granting
    fleet.hello("old", hello(1, HeldLease(1)), local=True)
    fleet.tick()
    assert fleet.ledger.granting
    fleet.ledger.decide()
    assert fleet.ledger.budgets[SHOP].charged == 2
    assert fleet.notices == []


def test_a_member_that_stays_silent_stays_charged_and_the_rest_goes_on() -> None:
    fleet = new_fleet(size=2)
    fleet.ledger.recover(SHOP, ("old", 1), "old", [HeldLease(1)])
    fleet.learn([("old", Member(10, 1, True, 100.0, 100.0))], unknown=False, remote=False)
    fleet.hello("a", hello(1, pid=11), local=True)
    fleet.packet("a", packet(1, Report(1, 0, Demand(0, 0, 0, 2, 2))))
    wait(fleet, LEARNING - 0.01)
    assert not fleet.ledger.granting
    wait(fleet, 0.02)
    assert fleet.ledger.budgets[SHOP].charged == 2
    assert len(fleet.ledger.budgets[SHOP].pools["a", 1].leases) == 1
    assert fleet.notices == ["process old has not reported; what it held stays charged"]


@pytest.mark.parametrize(("remote", "seconds"), [(False, LEARNING), (True, TERM + MARGIN)])
def test_where_the_journal_is_lost_and_nobody_supervises_it_waits_for_whoever_there_may_be(
    remote: bool, seconds: float
) -> None:
    fleet = new_fleet()
    fleet.learn([], unknown=True, remote=remote)
    fleet.hello("a", hello(), local=True)
    fleet.packet("a", packet(1, WAITS))
    wait(fleet, seconds - 0.01)
    assert fleet.ledger.budgets[SHOP].charged == 0
    wait(fleet, 0.02)
    assert fleet.ledger.budgets[SHOP].charged == 1


def test_a_coordinator_that_nobody_can_know_grants_at_once() -> None:
    fleet = new_fleet()
    fleet.learn([], unknown=False, remote=True)
    assert fleet.ledger.granting
    assert fleet.due() is None


def test_the_size_that_somebody_stated_who_is_gone_is_forgotten_at_the_next_start() -> None:
    fleet = new_fleet()
    fleet.ledger.recover_size(SHOP, 3, "gone")
    fleet.learn([], unknown=False, remote=False)
    assert fleet.ledger.budgets == {}
    assert [record.kind for record in fleet.ledger.records] == ["forgotten"]


def test_a_death_while_it_learns_is_waited_for_no_more() -> None:
    fleet = new_fleet()
    fleet.ledger.recover(SHOP, ("old", 1), "old", [HeldLease(1)])
    fleet.learn([("old", Member(10, 1, True, 100.0, 100.0))], unknown=False, remote=False)
    fleet.died("old")
    fleet.tick()
    assert fleet.ledger.granting
    assert len(fleet.ledger.budgets[SHOP].quarantined) == 1


def test_ceilings_stay_for_a_moment_after_the_last_waiter_was_served() -> None:
    fleet = joined(size=1)
    fleet.packet("a", packet(1, WAITS))
    fleet.ledger.decide()
    fleet.packet("a", packet(2, Report(1, 1, Demand(1, 0, 1, 1, 1))))
    fleet.ledger.decide()
    fleet.packet("a", packet(3, Report(1, 1, Demand(1, 0, 1, 0, 0))))
    assert fleet.ledger.budgets[SHOP].pressed
    fleet.tick()
    fleet.now += RELAX
    fleet.tick()
    assert not fleet.ledger.budgets[SHOP].pressed
    assert fleet.due() is None
