"""What a process says to its coordinator, when, and what it believes: by virtual time, without a socket."""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import threading
from collections.abc import Callable, Sequence

import pytest

from pysqlx_engine.engine.session import ServerSession
from pysqlx_engine.engine.uri import parse_uri
from pysqlx_engine.errors import PoolRefusedError
from pysqlx_engine.pool.budget import Demand, Lease, OrphanedSession, PoolRequest
from pysqlx_engine.pool.core import Effects, PoolCore, Waiter
from pysqlx_engine.pool.stats import Counters
from pysqlx_engine.workers.leased_budget import LeasedBudget, LinkToLedger, LocalLink
from pysqlx_engine.workers.membership import (
    BEATS,
    GREET_AGAIN,
    HELLO_APART,
    MARGIN,
    MOST_MESSAGES,
    SPREAD,
    Identity,
    Membership,
)
from pysqlx_engine.workers.messages import (
    LONGEST_NAME,
    MOST_CONNECTIONS,
    VERSION,
    Ask,
    Attach,
    Attached,
    Ceiling,
    CoordinatorPacket,
    Detach,
    End,
    FromPool,
    FromProcess,
    Granted,
    HeldLease,
    Hello,
    LeaseState,
    Lost,
    Moved,
    ProcessPacket,
    Report,
    Returned,
    ToPool,
    Totals,
    Unwelcome,
    Welcome,
)

EPOCH = 5
TERM = 6.0


class Here(Membership):
    """A membership whose clock and thread are the test's."""

    def __init__(self) -> None:
        super().__init__(Identity(10, 1, "host", "10-a", run="run"), random.Random(1))
        self.time = 100.0
        self.later_calls: list[Callable[[], None]] = []
        self.number = 0

    def flush(self) -> None:
        pass

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        self.later_calls.append(callback)

    def now(self) -> float:
        return self.time

    @property
    def where(self) -> str:
        return "here"

    def greets(self) -> Hello:
        (hello,) = self.outgoing()
        assert isinstance(hello, Hello)
        return hello

    def join(self, term: float | None = None, epoch: int = EPOCH) -> Hello:
        self.connected()
        self.time += SPREAD
        hello = self.greets()
        self.number = 0
        self.receive(Welcome(epoch, hello.session, term))
        return hello

    def said(self) -> list[FromPool]:
        return [message for packet in self.packets() for message in packet.messages]

    def packets(self) -> list[ProcessPacket]:
        packets: list[FromProcess] = self.outgoing()
        assert all(isinstance(packet, ProcessPacket) for packet in packets)
        return [packet for packet in packets if isinstance(packet, ProcessPacket)]

    def hears(self, *messages: ToPool, heard: int = 0) -> None:
        self.number += 1
        self.receive(CoordinatorPacket(EPOCH, self._session, self.number, heard, list(messages)))


class Client:
    """A pool, as its budget sees it: it does nothing by itself, and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.demand = Demand(0, 0, 0, 0, 0)
        self.counters = Counters()

    def granted(self, leases: Sequence[Lease]) -> None:
        self.told.append(("granted", list(leases)))

    def denied(self) -> None:
        self.told.append("denied")

    def set_ceiling(self, ceiling: int | None) -> None:
        self.told.append(("ceiling", ceiling))

    def resized(self) -> None:
        self.told.append("resized")

    def refused(self, error: BaseException) -> None:
        self.told.append(("refused", str(error)))

    def suspend(self) -> None:
        self.told.append("suspend")

    def resume(self) -> None:
        self.told.append("resume")

    def disown(self, leases: Sequence[Lease]) -> None:
        self.told.append(("disown", list(leases)))

    def end_sessions(self, sessions: Sequence[OrphanedSession]) -> None:
        self.told.append(("end", list(sessions)))

    def tell_demand(self) -> Demand:
        return self.demand

    def tell_counters(self) -> Counters:
        return self.counters


def pool(here: LinkToLedger, name: str = "pool", max_size: int = 4) -> tuple[LeasedBudget, Client]:
    uri = parse_uri("postgresql://user@db.example:5432/shop")
    budget, client = LeasedBudget(here, PoolRequest(name, uri, 1, max_size, True, 30.0)), Client()
    budget._client = client
    here.add(budget)
    return budget, client


def opened(budget: LeasedBudget, lease: int) -> None:
    session = ServerSession(100 + lease, None, liveness_checked=True)
    session.address = (f"10.0.0.1:{lease}", "10.0.0.2:5432")
    assert budget.connecting(lease)
    budget.opened(lease, session)


def test_a_connection_that_was_given_back_before_it_was_said_to_be_open_is_not_held_again() -> None:
    """The pool may hand it out, and another thread close it, before the thread that opened it says so."""
    here = Here()
    budget, _ = pool(here)
    here.join()
    here.hears(Granted(budget.pool_id, [7, 8], 2))
    here.said()
    for lease in (7, 8):
        assert budget.connecting(lease)
        budget.closing(lease)
    budget.give_back([7])
    for lease in (7, 8):
        budget.opened(lease, ServerSession(100 + lease, None, liveness_checked=True))
    here.disconnected()
    (claim,) = here.join().pools
    assert [(held.lease, held.state) for held in claim.leases] == [(8, LeaseState.CLOSING)]


# -- apart, greeting, joined ------------------------------------------------------------------------------------------


def test_nothing_is_sent_without_a_connection_and_nothing_is_due() -> None:
    here = Here()
    pool(here)
    assert here.outgoing() == []
    assert here.due() is None
    assert here.describe() == "coordinator not reachable at here"


def test_a_hello_states_who_we_are_and_all_that_we_hold() -> None:
    here = Here()
    budget, _ = pool(here)
    hello = here.join()
    assert (hello.version, hello.session, hello.pid, hello.name) == (VERSION, 1, 10, "10-a")
    here.hears(Granted(budget.pool_id, [7, 8], 2))
    opened(budget, 7)
    here.disconnected()
    (claim,) = here.join().pools
    assert [(held.lease, held.state) for held in claim.leases] == [(7, LeaseState.OPEN), (8, LeaseState.GRANTED)]
    assert (claim.name, claim.database, claim.max_size) == (
        "pool of pid 10", "postgresql://db.example:5432/shop", 4,
    )  # fmt: skip


def test_a_welcome_counts_once_and_only_for_the_present_session() -> None:
    here = Here()
    here.connected()
    session = here.greets().session
    here.receive(Welcome(EPOCH + 1, session - 1, None))
    assert not here.joined
    here.receive(Welcome(EPOCH, session, None))
    here.receive(Welcome(EPOCH + 1, session, None))
    assert (here.joined, here._epoch) == (True, EPOCH)


def test_an_unanswered_hello_is_said_again_less_and_less_often() -> None:
    here = Here()
    here.connected()
    pauses = []
    for _ in range(8):
        before = here.time
        here.greets()
        assert here.outgoing() == []
        due = here.due()
        assert due is not None
        here.time = due
        pauses.append(due - before)
    assert GREET_AGAIN[0] / 2 <= pauses[0] <= GREET_AGAIN[0]
    assert GREET_AGAIN[1] / 2 <= pauses[-1] <= GREET_AGAIN[1]


def test_those_who_were_all_here_before_do_not_all_come_back_in_the_same_moment() -> None:
    here = Here()
    here.connected()
    assert here.due() == here.time
    here.join()
    here.disconnected()
    here.connected()
    due = here.due()
    assert due is not None
    assert here.time < due <= here.time + SPREAD


def test_what_was_queued_before_a_hello_is_in_the_hello() -> None:
    here = Here()
    budget, _ = pool(here)
    here.join()
    here.hears(Granted(budget.pool_id, [7], 1))
    opened(budget, 7)
    here.receive(Lost(EPOCH, 1))
    here.time += HELLO_APART
    assert [held.state for held in here.greets().pools[0].leases] == [LeaseState.OPEN]
    here.receive(Welcome(EPOCH, 2, None))
    assert [type(message) for message in here.said()] == [Report]


def test_a_pool_that_comes_while_we_greet_is_attached_after_the_welcome() -> None:
    here = Here()
    here.connected()
    hello = here.greets()
    budget, _ = pool(here)
    here.receive(Welcome(EPOCH, hello.session, None))
    attach, report = here.said()
    assert isinstance(attach, Attach)
    assert attach.claim.pool == budget.pool_id
    assert isinstance(report, Report)


def test_packets_are_numbered_and_not_too_long() -> None:
    here = Here()
    budget, _ = pool(here)
    here.join()
    here.said()
    for lease in range(MOST_MESSAGES + 1):
        budget.give_back([lease])
    packets = here.packets()
    assert [(packet.number, len(packet.messages)) for packet in packets] == [(2, MOST_MESSAGES), (3, 1)]


def test_reports_come_last_and_are_made_when_they_are_sent() -> None:
    here = Here()
    budget, client = pool(here)
    here.join()
    here.said()
    budget.demand_changed(urgent=True)
    client.demand = Demand(1, 0, 1, 2, 2)
    budget.give_back([3])
    returned, report = here.said()
    assert returned == Returned(budget.pool_id, [3])
    assert report == Report(budget.pool_id, 0, client.demand)


def test_a_pool_that_goes_says_what_it_has_counted_and_is_not_reported() -> None:
    here = Here()
    budget, client = pool(here)
    here.join()
    client.counters.requests = 7
    budget.demand_changed(urgent=True)
    budget.detach()
    totals, detach = here.said()
    assert isinstance(totals, Totals)
    assert (totals.requests, totals.wait.buckets) == (7, [7])  # none of them waited
    assert detach == Detach(budget.pool_id)


def test_another_coordinator_hears_only_what_the_one_before_was_not_told() -> None:
    here = Here()
    budget, client = pool(here)
    here.join()
    client.counters.requests = 7
    here.hears(Ask(budget.pool_id))
    assert [one.requests for one in here.said() if isinstance(one, Totals)] == [7]
    here.disconnected()
    here.join()  # the same one: its connection was lost
    here.hears(Ask(budget.pool_id))
    assert [one.requests for one in here.said() if isinstance(one, Totals)] == [7]
    here.disconnected()
    client.counters.requests = client.counters.timeouts = 100  # while nobody is there
    started_meanwhile, its_client = pool(here, "other")
    its_client.counters.requests = 3
    here.join(epoch=EPOCH + 2)
    client.counters.requests = 102
    asks = [Ask(budget.pool_id), Ask(started_meanwhile.pool_id)]
    here.receive(CoordinatorPacket(EPOCH + 2, here._session, 1, 0, asks))
    told = [one for one in here.said() if isinstance(one, Totals)]
    assert [(one.requests, one.timeouts) for one in told] == [(95, 100), (3, 0)]


def test_who_is_asked_says_what_was_counted_and_then_reports() -> None:
    here = Here()
    budget, client = pool(here)
    here.join()
    client.counters.hold.observe(0.000_005)
    here.hears(Ask(budget.pool_id))
    totals, report = here.said()
    assert isinstance(totals, Totals)
    assert totals.hold.buckets == [0, 0, 0, 1]  # from 4 to 8 microseconds; nothing follows
    assert isinstance(report, Report)


# -- what is heard ----------------------------------------------------------------------------------------------------


def test_a_packet_counts_once_in_order_and_of_this_epoch_and_session() -> None:
    here = Here()
    budget, client = pool(here)
    here.join()
    grant: list[ToPool] = [Granted(budget.pool_id, [7], 1)]
    for epoch, session, number in ((EPOCH - 1, 1, 1), (EPOCH, 0, 1), (EPOCH, 2, 1), (EPOCH, 1, 0), (EPOCH, 1, -5)):
        here.receive(CoordinatorPacket(epoch, session, number, 0, grant))
    assert client.told == []
    for _ in range(2):
        here.receive(CoordinatorPacket(EPOCH, 1, 1, 0, grant))
    assert client.told == [("granted", [7])]
    assert here.joined


def test_a_gap_is_a_reason_to_say_hello_again() -> None:
    here = Here()
    budget, client = pool(here)
    here.join()
    here.receive(CoordinatorPacket(EPOCH, 1, 2, 0, [Granted(budget.pool_id, [7], 1)]))
    assert client.told == []
    assert here.outgoing() == []
    here.time += HELLO_APART
    assert here.greets().session == 2


def test_lost_counts_only_for_the_present_session() -> None:
    here = Here()
    here.join()
    here.receive(Lost(EPOCH, 0))
    assert here.joined
    here.receive(Lost(EPOCH, 1))
    assert not here.joined


def test_a_lease_that_is_had_already_is_not_had_again() -> None:
    here = Here()
    budget, client = pool(here)
    here.join()
    here.hears(Granted(budget.pool_id, [7, 7], 1))
    here.hears(Granted(budget.pool_id, [7, 8], 2))
    assert client.told == [("granted", [7]), ("granted", [8])]


def test_a_lease_for_a_pool_that_is_no_more_goes_back() -> None:
    here = Here()
    here.join()
    here.hears(Granted(99, [7], 1), Ceiling(99, 0, 1), End(99, [HeldLease(3, LeaseState.OPEN)]))
    assert here.said() == [Returned(99, [7])]


def test_sessions_that_nobody_could_find_are_not_asked_for() -> None:
    here = Here()
    budget, client = pool(here)
    here.join()
    found = HeldLease(1, LeaseState.OPEN, 101, ("10.0.0.3:1", "10.0.0.2:5432"))
    here.hears(End(budget.pool_id, [HeldLease(2), found, HeldLease(3, LeaseState.OPEN, 103)]))
    assert client.told == [("end", [OrphanedSession(1, 101, ("10.0.0.3:1", "10.0.0.2:5432"))])]


def test_who_is_unwelcome_fails_at_once_and_so_do_pools_that_come_later_until_the_next_coordinator() -> None:
    here = Here()
    _, client = pool(here)
    here.connected()
    here.greets()
    here.receive(Unwelcome(EPOCH, "too old"))
    assert client.told == [("refused", "too old")]
    assert here.describe() == "too old"
    _, second = pool(here)
    assert second.told == [("refused", "too old")]
    assert here.outgoing() == []
    here.disconnected()
    _, third = pool(here)
    assert third.told == []


def test_unwelcome_is_no_answer_to_one_who_has_joined() -> None:
    here = Here()
    _, client = pool(here)
    here.join()
    here.receive(Unwelcome(EPOCH, "late"))
    assert (client.told, here.joined) == ([], True)


def test_who_is_interrupted_while_a_report_is_put_off_may_put_off_the_next_one() -> None:
    here = Here()
    budget, _ = pool(here)
    here.join()
    here.said()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt  # as a signal's handler may

    with pytest.MonkeyPatch.context() as signalled:
        signalled.setattr(here, "later", interrupted)
        with pytest.raises(KeyboardInterrupt):
            budget.demand_changed(urgent=False)
    budget.demand_changed(urgent=False)
    (report_now,) = here.later_calls
    report_now()
    assert [type(message) for message in here.said()] == [Report]


class Interrupt(BaseException):
    pass


def test_whoever_is_interrupted_the_ledger_of_one_process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    granted = threading.Event()
    link, chance = LocalLink(1), random.Random(1)
    budget, client = pool(link)
    monkeypatch.setattr(client, "granted", lambda _: granted.set())

    def interrupt(*_: object) -> None:
        raise Interrupt

    gc.disable()  # what is raised in a finalizer, or in a callback of the collector, comes to nobody
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(300):
            with contextlib.suppress(Interrupt):
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00002, 0.0003))
                for _ in range(10_000):
                    budget.demand_changed(urgent=True)
    finally:
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    client.demand = Demand(0, 0, 0, 1, 1)
    budget.demand_changed(urgent=True)
    assert granted.wait(10.0)


# -- the term ---------------------------------------------------------------------------------------------------------


def test_without_a_term_no_sign_of_life_is_due_and_connections_may_always_be_opened() -> None:
    here = Here()
    pool(here)
    here.join()
    here.said()
    assert here.due() is None
    here.time += 1e6
    assert here.may_open()


def test_with_a_term_a_sign_of_life_is_sent_several_times_in_it() -> None:
    here = Here()
    here.join(TERM)
    sent = []
    while (due := here.due()) is not None and due <= 100.0 + SPREAD + TERM:
        here.time = due
        sent += here.packets()
    assert len(sent) >= BEATS
    assert all(packet.messages == [] for packet in sent)


def test_a_term_counts_from_when_that_was_sent_which_was_heard_and_ends_a_margin_early() -> None:
    here = Here()
    budget, client = pool(here)
    here.join(TERM)
    here.time += 2.0
    here.packets()  # number 1, sent two seconds after the hello
    sent_at = here.time
    here.time += 1.0
    here.hears(heard=1)
    here.time = sent_at + TERM - MARGIN - 0.01
    assert here.may_open()
    assert budget.connecting(7)
    here.time += 0.02
    assert not here.may_open()
    assert not budget.connecting(8)
    here.outgoing()
    assert here.describe() == "coordinator at here does not answer"
    here.hears(heard=2)  # what was sent meanwhile
    assert here.may_open()
    assert client.told[-1] == "resume"


def test_the_coordinator_answers_while_we_have_joined_and_the_term_is_not_over() -> None:
    here = Here()
    budget, _ = pool(here)
    assert not budget.answers()
    here.join(TERM)
    assert budget.answers()
    here.time += TERM
    assert not budget.answers()
    here.join(TERM)
    here.disconnected()
    assert not budget.answers()


def refused_and_extended() -> tuple[Here, Client]:
    """A process that was stopped goes on: one thread sees that the term is over before the other reads what came."""
    here = Here()
    budget, client = pool(here)
    here.join(TERM)
    here.time += 2.0
    here.packets()
    here.time += TERM - MARGIN - 1.0
    assert not budget.connecting(7)
    here.hears(heard=1)
    return here, client


def test_who_was_refused_while_the_end_of_the_term_was_not_noticed_may_open_again_when_it_is_extended() -> None:
    here, client = refused_and_extended()
    assert here.may_open()
    assert client.told[-1:] == ["resume"]


def test_who_was_refused_just_before_the_term_was_extended_is_told_once_more() -> None:
    here, client = refused_and_extended()
    client.told.clear()  # it came before the pool had made anything of the refusal
    for callback in here.later_calls:
        callback()
    assert client.told == ["resume"]


def test_when_the_term_is_over_what_the_coordinator_does_not_know_of_is_closed() -> None:
    here = Here()
    budget, client = pool(here)
    here.join(TERM)
    here.hears(Granted(budget.pool_id, [7, 8], 2))
    opened(budget, 7)
    (packet,) = here.packets()
    assert any(isinstance(message, Moved) for message in packet.messages)
    here.hears(heard=packet.number)
    opened(budget, 8)
    here.packets()  # which is not heard
    here.time += TERM
    here.outgoing()
    assert client.told[-1] == ("disown", [8])


def test_a_lease_under_which_nothing_is_open_goes_back_when_the_term_is_over() -> None:
    # The coordinator gives it to somebody else after a while: a process that came back and opened a connection under it
    # would be over the budget.
    here = Here()
    budget, client = pool(here)
    core = PoolCore(0, 4)
    core.start()

    def perform(effects: Effects) -> None:
        if effects.give_back:
            budget.give_back(effects.give_back)

    client.suspend = lambda: perform(core.suspend())  # type: ignore[method-assign]
    here.join(TERM)
    here.hears(Granted(budget.pool_id, [7], 1))
    core.wait(Waiter(lambda: None), here.time)  # somebody waits all the time
    assert core.granted([7]).open == [7]
    assert budget.connecting(7)
    perform(core.open_failed(7, OSError("no server"), permanent=False))
    assert core.spare == [7]
    here.time += TERM
    here.outgoing()
    here.disconnected()
    (claim,) = here.join(TERM).pools
    assert claim.leases == []
    assert core.try_again().open == core.resume().open == []


def test_nothing_is_kept_of_a_connection_that_was_closed_before_the_coordinator_was_heard_to_know_of_it() -> None:
    here = Here()
    budget, _ = pool(here)
    here.join(TERM)
    here.hears(Granted(budget.pool_id, [7], 1))
    opened(budget, 7)
    (packet,) = here.packets()
    budget.closing(7)
    budget.give_back([7])
    here.hears(heard=packet.number)
    assert budget.named == set()


def test_what_a_hello_has_named_is_known_when_it_is_answered() -> None:
    here = Here()
    budget, client = pool(here)
    here.join(TERM)
    here.hears(Granted(budget.pool_id, [7], 1))
    opened(budget, 7)
    here.disconnected()
    here.join(TERM)
    here.time += TERM
    here.outgoing()
    assert ("disown", [7]) not in client.told


# -- what can be told -------------------------------------------------------------------------------------------------


def test_what_cannot_be_told_costs_its_pool_the_start() -> None:
    here = Here()
    uri = parse_uri("postgresql://user@db.example:5432/" + "x" * 9000)
    with pytest.raises(PoolRefusedError, match="cannot be told to the coordinator: Expected `str` of length <= 8192"):
        here.add(LeasedBudget(here, PoolRequest("pool", uri, 1, 4, True, 30.0)))
    pool(here)
    assert len(here.join().pools) == 1


def test_long_names_and_large_numbers_are_cut() -> None:
    here = Here()
    pool(here, "x" * 1000, max_size=10**30)
    (claim,) = here.join().pools
    assert (len(claim.name), claim.max_size) == (LONGEST_NAME, MOST_CONNECTIONS)


def test_a_size_that_is_told_lifts_an_old_ceiling() -> None:
    here = Here()
    budget, client = pool(here)
    here.join()
    here.hears(Ceiling(budget.pool_id, 1, 4), Attached(budget.pool_id, 9))
    assert client.told == [("ceiling", 1), "resized", ("ceiling", None)]
    assert budget.size == 9
