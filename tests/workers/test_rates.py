"""What one sender may cost, and how much of it is logged."""

from __future__ import annotations

from pysqlx_engine.pool.budget import Demand
from pysqlx_engine.workers.messages import Attach, HeldLease, Hello, PoolClaim, ProcessPacket, Report
from pysqlx_engine.workers.rates import (
    BYTES,
    HELLO,
    LINE_EVERY,
    LINES,
    POOL,
    RATE,
    SAID,
    SENDERS,
    LogBound,
    RateBound,
    claims,
    work,
)


def allowed(bound: RateBound, sender: bytes, now: float, size: int = 0) -> int:
    """How many messages are allowed at one moment."""
    count = 0
    while bound.allows(sender, size, now):
        count += 1
    return count


def test_a_sender_may_send_what_it_has_saved_up_and_then_as_much_as_comes_in() -> None:
    bound = RateBound()
    assert allowed(bound, b"a", now=5.0) == RATE
    assert allowed(bound, b"a", now=5.0) == 0
    assert allowed(bound, b"a", now=5.5) == RATE / 2
    assert allowed(bound, b"a", now=500.0) == RATE  # more cannot be saved up


def test_one_sender_does_not_pay_for_another() -> None:
    bound = RateBound()
    allowed(bound, b"a", now=0.0)
    assert bound.allows(b"b", 0, 0.0)


def test_long_messages_cost_more_and_the_longest_is_allowed_to_who_has_saved_up_all() -> None:
    bound = RateBound()
    assert allowed(bound, b"a", 0.0, size=9 * BYTES) == RATE / 10
    longest = int(2 * RATE * BYTES)
    assert not bound.allows(b"a", longest, 0.5)
    assert bound.allows(b"a", longest, 1.0)
    assert not bound.allows(b"a", 0, 1.5)  # it has to be paid for


def test_what_a_message_has_made_us_do_is_paid_for_before_the_next_is_read() -> None:
    bound = RateBound()
    assert bound.allows(b"a", 0, 0.0)
    bound.charge(b"a", 2 * RATE)
    assert not bound.allows(b"a", 0, 0.9)
    assert bound.allows(b"a", 0, 1.1)


def test_a_refusal_is_the_first_one_once() -> None:
    bound = RateBound()
    allowed(bound, b"a", 0.0)
    assert [bound.first_refusal(b"a") for _ in range(3)] == [True, False, False]


def test_senders_that_have_saved_up_all_are_forgotten_when_there_are_too_many() -> None:
    bound = RateBound()
    for number in range(SENDERS):
        bound.allows(b"%d" % number, 0, 0.0)
    allowed(bound, b"0", 1.0)
    bound.allows(b"new", 0, 1.0)
    assert bound._buckets.keys() == {
        b"0",
        b"new",
    }  # the first has nothing saved up, and gets nothing by being forgotten


def test_a_hello_costs_by_what_it_states_and_a_packet_by_what_is_in_it() -> None:
    claim = PoolClaim(1, "pool", "db", 0, 5, True, [HeldLease(1), HeldLease(2)])
    assert work(Hello(2, 1, "a", 1, 1, "host", None, 0, [claim, claim])) == HELLO + 2 * (POOL + 2)
    report = Report(1, 0, Demand(0, 0, 0, 0, 0))
    assert work(ProcessPacket(1, 1, 1, [Attach(claim), report, report])) == POOL + 2 + 2 * SAID


def test_hellos_and_attaches_state_what_pools_hold() -> None:
    claim = PoolClaim(1, "pool", "db", 0, 5, True, [])
    report = Report(1, 0, Demand(0, 0, 0, 0, 0))
    assert claims(Hello(2, 1, "a", 1, 1, "host", None, 0, []))
    assert claims(ProcessPacket(1, 1, 1, [report, Attach(claim)]))
    assert not claims(ProcessPacket(1, 1, 1, [report]))


def test_lines_of_one_kind_are_bounded_and_what_was_left_out_is_counted() -> None:
    bound = LogBound()
    lines = [bound.line("bad", 0.0) for _ in range(100)]
    assert lines == ["bad"] * int(LINES) + [None] * (100 - int(LINES))
    assert bound.line("bad", LINE_EVERY) == f"bad ({100 - int(LINES)} lines like this one were left out)"
    assert bound.line("bad", LINE_EVERY) is None


def test_nothing_that_is_logged_is_obeyed_by_a_terminal() -> None:
    assert LogBound().line("a\x1b[2J\nb\u202ec", 0.0) == r"a\x1b[2J\nb\u202ec"
