"""When the lease of a dead process comes back, by what the kernel says of its connection, or by time."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Sized

import pytest

from pysqlx_engine.engine.sockets import (
    ANSWERED_GRACE,
    CHECKED_GRACE,
    RESET_GRACE,
    Endpoints,
    Verdict,
    half_closed,
    server_session,
)
from pysqlx_engine.pool.budget import Demand
from pysqlx_engine.workers.ledger import Ledger
from pysqlx_engine.workers.messages import End, HeldLease, LeaseState, PoolClaim
from pysqlx_engine.workers.orphans import END_AFTER, END_AGAIN, MOST_SESSIONS, POLL, SLOW_POLL, UNNAMED, Orphans, _port

SHOP = "postgresql://db.example:5432/shop"
FILE = "sqlite:/var/lib/shop.db"
HERE: Endpoints = ("10.0.0.1:40000", "10.0.0.2:5432")


class Kernel:
    """What this host's kernel says is what the test has it say."""

    def __init__(self) -> None:
        self.verdict = Verdict.HELD
        self.closing: set[Endpoints] = set()
        self.asked = 0
        self.error: OSError | None = None

    def server_session(self, address: Endpoints) -> Verdict:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.verdict

    def half_closed(self, server_port: int) -> set[Endpoints]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.closing


def named(lease: int = 1, *, checked: bool = False, address: Endpoints = HERE) -> HeldLease:
    return HeldLease(lease, LeaseState.OPEN, 100 + lease, address, checked)


class Scene:
    """A process that held `leases` and is dead."""

    def __init__(self, *leases: HeldLease, database: str = SHOP, local: bool = True) -> None:
        self.database = database
        self.ledger, self.kernel = Ledger(200, first_lease=1000), Kernel()
        self.orphans = Orphans(self.ledger, self.kernel)
        self.ledger.attach("dead", PoolClaim(1, "dead", database, 0, 200, False, list(leases)), local=local)
        self.ledger.dead("dead", local=local)
        self.orphans.more(0.0)

    def at(self, now: float) -> int:
        """Leases that are still charged after a look at the moment `now`."""
        self.ledger.now = now
        self.orphans.look(now)
        budget = self.ledger.budgets.get(self.database)
        return len(budget.quarantined) if budget is not None else 0

    def lives(self, name: str, *, idle: int = 0, leases: tuple[HeldLease, ...] = ()) -> None:
        """Another process, that can be asked."""
        self.ledger.attach(name, PoolClaim(1, name, self.database, 0, 200, False, list(leases)))
        self.ledger.report((name, 1), 0, Demand(0, idle, 0, 0, 0))

    def ends(self) -> list[tuple[str, list[int]]]:
        """Who was asked to end which sessions."""
        asked = [
            (to, [held.lease for held in said.sessions]) for to, said in self.ledger.outbox if isinstance(said, End)
        ]
        self.ledger.outbox.clear()
        return asked


def test_a_session_counts_as_long_as_the_kernel_sees_the_servers_side_open() -> None:
    scene = Scene(named())
    assert scene.at(0.0) == scene.at(1000.0) == 1
    scene.kernel.verdict = Verdict.GONE
    assert scene.at(1000.1) == 0


@pytest.mark.parametrize(
    ("checked", "grace"),
    [(True, CHECKED_GRACE), (False, RESET_GRACE)],
    ids=["a server that looks", "one that does not"],
)
def test_a_connection_that_was_reset_counts_for_a_grace_time(checked: bool, grace: float) -> None:
    scene = Scene(named(checked=checked))
    scene.kernel.verdict = Verdict.RESET
    assert scene.at(1.0) == scene.at(1.0 + grace - 0.001) == 1
    assert scene.at(1.0 + grace + 0.001) == 0


def test_a_connection_that_was_seen_half_closed_and_vanished_counts_for_a_moment() -> None:
    scene = Scene(named())
    assert scene.at(0.0) == 1
    scene.kernel.verdict = Verdict.RESET
    assert scene.at(1.0) == scene.at(1.0 + ANSWERED_GRACE - 0.001) == 1
    assert scene.at(1.0 + ANSWERED_GRACE + 0.001) == 0


def test_the_grace_time_begins_anew_when_the_connection_is_seen_again() -> None:
    scene = Scene(named())
    scene.kernel.verdict = Verdict.RESET
    scene.at(0.0)
    scene.kernel.verdict = Verdict.HELD
    scene.at(0.4)
    scene.kernel.verdict = Verdict.RESET
    assert scene.at(10.0) == 1
    assert scene.at(10.0 + ANSWERED_GRACE + 0.001) == 0


def test_a_lease_without_a_name_counts_while_any_half_closed_connection_is_nobodys() -> None:
    scene = Scene(HeldLease(1, LeaseState.CONNECTING), named(2))
    scene.kernel.closing = {HERE, ("10.0.0.1:40001", "10.0.0.2:5432")}
    scene.kernel.verdict = Verdict.GONE
    assert scene.at(0.0) == scene.at(100.0) == 1
    scene.kernel.closing = set()
    assert scene.at(100.1) == 1
    assert scene.at(100.1 + RESET_GRACE) == 0


def test_the_descriptors_of_a_sqlite_database_die_with_the_process() -> None:
    scene = Scene(named(), HeldLease(2), database=FILE)
    assert scene.at(0.0) == 0
    assert scene.kernel.asked == 0


def test_what_a_lost_host_had_named_stays_charged_until_somebody_has_ended_it() -> None:
    scene = Scene(named(), local=False)
    assert scene.at(10_000.0) == 1
    scene.lives("a")
    assert scene.at(10_000.0 + END_AFTER) == 1
    assert scene.ends() == [("a", [1])]
    scene.ledger.ended(("a", 1), [1])
    assert scene.at(10_001.0) == 0
    assert scene.kernel.asked == 0  # it knows nothing of other hosts


def test_what_a_lost_host_had_not_named_comes_back_when_nothing_can_be_opened_under_it_any_more() -> None:
    scene = Scene(HeldLease(1), HeldLease(2, LeaseState.CONNECTING), local=False)
    assert scene.at(UNNAMED - 0.1) == 2
    assert scene.at(UNNAMED) == 0


def test_the_server_may_notice_by_itself_before_it_is_told() -> None:
    scene = Scene(named())
    scene.lives("a")
    scene.at(END_AFTER / 2)
    assert scene.ends() == []
    scene.at(END_AFTER)
    assert scene.ends() == [("a", [1])]


def test_one_with_an_idle_connection_is_asked_and_the_next_when_it_does_not_answer() -> None:
    scene = Scene(named())
    scene.lives("a")
    scene.lives("b", idle=1, leases=(named(7, address=("10.0.0.3:1", "10.0.0.2:5432")),))
    scene.at(END_AFTER)
    scene.at(END_AFTER + END_AGAIN - 0.001)
    assert scene.ends() == [("b", [1])]
    scene.at(END_AFTER + END_AGAIN)
    assert scene.ends() == [("a", [1])]
    scene.at(END_AFTER + 2 * END_AGAIN)
    assert scene.ends() == [("b", [1])]  # in turn, without end


def test_what_nobody_can_end_is_asked_for_without_end_and_without_keeping_more_and_more() -> None:
    scene = Scene(named(), local=False)
    for number in range(100):
        scene.lives("stays")
        scene.lives(f"goes {number}")
        for turn in range(4):
            scene.at((1 + 4 * number + turn) * 2 * END_AGAIN)
        scene.ledger.detach((f"goes {number}", 1))
    asked = [who for who, _ in scene.ends()]
    assert (len(asked), "stays" in asked, "goes 99" in asked) == (400, True, True)
    ((_, orphan),) = scene.ledger.orphans()
    assert len(orphan.asked) <= 2


def test_nothing_is_kept_of_those_that_came_back_while_another_one_stays() -> None:
    scene = Scene(named(), database="mysql://db.example:3306/shop")
    scene.lives("a", leases=(named(7, address=("10.0.0.3:1", "10.0.0.2:3306")),))
    for number in range(8, 108):
        one = named(number, address=(f"10.0.0.4:{number}", "10.0.0.2:3306"))
        scene.ledger.attach("killed", PoolClaim(1, "killed", scene.database, 0, 200, False, [one]))
        scene.ledger.dead("killed", local=True)
        for scene.kernel.verdict in (Verdict.HELD, Verdict.RESET, Verdict.GONE):
            scene.at(number * 0.04 + END_AFTER)
        scene.ledger.ended(("a", 1), [number])
        scene.kernel.verdict = Verdict.HELD
    kept = [value for value in vars(scene.orphans).values() if isinstance(value, Sized)]
    assert sum(map(len, kept)) < 10


def test_a_living_processs_connection_is_never_ended_whoever_claims_to_have_had_it() -> None:
    scene = Scene(named())
    scene.lives("a", idle=1, leases=(named(7),))
    assert scene.at(END_AFTER) == 0  # it is not the dead one's any more
    assert scene.ends() == []


def test_so_many_sessions_are_ended_at_a_time_that_the_message_stays_short() -> None:
    many = [named(number, address=(f"10.0.0.1:{number}", "10.0.0.2:5432")) for number in range(1, 151)]
    scene = Scene(*many)
    scene.lives("a")
    scene.at(END_AFTER)
    scene.at(END_AFTER)
    assert [len(leases) for _, leases in scene.ends()] == [MOST_SESSIONS, 50]


def test_it_looks_often_while_the_kernel_can_tell_and_not_at_all_without_orphans() -> None:
    scene = Scene(named())
    scene.at(0.0)
    assert scene.orphans.due is not None
    assert POLL[0] <= scene.orphans.due <= POLL[1]
    scene.kernel.verdict = Verdict.GONE
    scene.at(0.1)
    assert scene.orphans.due is None
    remote = Scene(named(), local=False)
    remote.at(0.0)
    assert remote.orphans.due == SLOW_POLL


@pytest.mark.parametrize(
    ("database", "port"),
    [
        (SHOP, 5432),
        ("mysql://[::1]:3306/a", 3306),
        ("postgresql://h/a", 0),
        ("postgresql://h:99999/a", 0),
        ("postgresql://h:²/a", 0),
        ("postgresql://h:٣/a", 0),
        ("postgresql://h:" + "9" * 5000, 0),
        ("nonsense", 0),
    ],
)
def test_a_port_is_one_whatever_a_database_is_called(database: str, port: int) -> None:
    assert _port(database) == port


@pytest.mark.parametrize("held", [named(), HeldLease(1)], ids=["named", "not named"])
def test_while_the_kernel_cannot_be_asked_no_lease_comes_back(held: HeldLease) -> None:
    scene = Scene(held)
    scene.kernel.verdict = Verdict.GONE
    scene.kernel.error = OSError(errno.EMFILE, "Too many open files")
    assert [scene.at(now) for now in (0.0, 1.0, 10.0)] == [1, 1, 1]
    scene.kernel.error = None
    assert [scene.at(11.0), scene.at(11.0 + RESET_GRACE)][-1] == 0


@pytest.mark.parametrize("ask", [lambda: server_session(HERE), lambda: half_closed(5432)], ids=["one", "all"])
def test_without_a_descriptor_to_ask_with_the_kernel_was_not_asked(ask: Callable[[], object]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    ask()
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            ask()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_lost_hosts_session_is_looked_for_although_another_connection_has_its_address_now() -> None:
    scene = Scene(named(), local=False)
    scene.lives("a", leases=(named(7),))
    scene.at(END_AFTER)
    assert scene.ends() == [("a", [1])]


def test_what_a_process_of_another_host_calls_its_address_says_nothing_of_ours() -> None:
    scene = Scene(named())
    elsewhere = PoolClaim(1, "far", SHOP, 0, 200, False, [named(7)])
    scene.ledger.attach("far", elsewhere, local=False)
    assert scene.at(0.0) == 1
    scene.kernel.verdict = Verdict.GONE
    assert scene.at(0.1) == 0


def test_what_a_dead_process_of_another_host_called_its_address_says_nothing_of_ours() -> None:
    scene = Scene(HeldLease(1))
    scene.ledger.attach("far", PoolClaim(1, "far", SHOP, 0, 200, False, [named(7)]), local=False)
    scene.ledger.dead("far", local=False)
    scene.kernel.closing = {HERE}
    assert scene.at(0.0) == scene.at(RESET_GRACE) == 2
