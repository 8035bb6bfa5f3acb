"""Bad input on the wire hurts nobody: not the coordinator, not who has joined it, and not a process that joins one that
talks nonsense."""

from __future__ import annotations

import itertools
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import zmq

from pysqlx_engine import PySQLXEnginePoolSync
from pysqlx_engine.engine import sockets
from pysqlx_engine.errors import PoolRefusedError
from pysqlx_engine.pool.budget import Demand
from pysqlx_engine.system import start_time
from pysqlx_engine.workers.ledger import MOST_BUDGETS
from pysqlx_engine.workers.link import Link
from pysqlx_engine.workers.messages import (
    MAX_MESSAGE,
    MOST_LEASES,
    MOST_POOLS,
    VERSION,
    Attached,
    Detach,
    Ended,
    Granted,
    HeldLease,
    Hello,
    LeaseState,
    Lost,
    Moved,
    PoolClaim,
    ProcessPacket,
    Refused,
    Report,
    Returned,
    Unwelcome,
    encode,
)
from tests.servers import sqlite_database

from .wire import FakeCoordinator, Site, Stranger, site

serial = itertools.count(1)
LINES = 25
"""More is never logged of one thing at once."""
HUGE = [-(2**63), -1, 0, 1, 2**31, 2**32, 2**53, 2**63, 2**64 - 1]
STRANGE = ["", "\0", "\x1b[2J\n", "\u202e", "x" * 100_000, "sqlite:", "postgresql://:99999/", "postgresql://h:²/d"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A coordinator and an honest process, for all the tests of this file: what one of them breaks stays broken."""
    directory = tmp_path_factory.mktemp("wire")
    with site(directory, sqlite_database(directory / "test.db").uri, size=4) as found:
        yield found


@pytest.fixture
def stranger(here: Site) -> Iterator[Stranger]:
    with Stranger(here.address, f"{os.getpid()}-stranger-{next(serial)}") as found:
        found.join()
        yield found
        found.join()  # what it claimed is given back
    assert here.is_well()


def refused(other: Stranger, hello: Hello) -> str:
    """Why a hello is refused. Who is no member is not answered each time."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        other.send(encode(hello))
        answer = other.receive(0.25)
        if isinstance(answer, Unwelcome):
            return answer.reason
    raise AssertionError("it was not refused")


def claim(database: str = "postgresql://made.up:5432/db", number: int = 1, **changes: object) -> PoolClaim:
    fields: dict[str, object] = {
        "pool": number, "name": "made up", "database": database, "min_size": 0, "max_size": 5, "stated": True,
        "leases": [],
    }  # fmt: skip
    return PoolClaim(**(fields | changes))  # type: ignore[arg-type]


# -- bytes ------------------------------------------------------------------------------------------------------------


def mutated(chance: random.Random, data: bytes) -> bytes:
    """A message that was valid."""
    at = chance.randrange(len(data) + 1)
    match chance.randrange(9):
        case 0:
            return data[:at]
        case 1:
            return data + chance.randbytes(chance.randint(1, 50))
        case 2:
            return data[:at] + chance.randbytes(chance.randint(1, 9)) + data[at:]
        case 3:
            return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        case 4:
            return b"\x91" * chance.randint(1, 50_000) + data
        case 5:
            return data.replace(b"a", b"\xff\xfe")
        case 6:
            return chance.randbytes(chance.randint(0, 200))
        case _:
            return msgspec.msgpack.encode(with_another_value(chance, msgspec.msgpack.decode(data)))


def with_another_value(chance: random.Random, value: object) -> object:
    """One value, somewhere inside, of another type or size."""
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        return [*value[:at], with_another_value(chance, value[at]), *value[at + 1 :]]
    return chance.choice([*HUGE, *STRANGE, None, True, 1.5, float("nan"), b"\xff", [], {}, [[]], {"a": []}])


@pytest.mark.parametrize("seed", range(4))
def test_messages_that_are_none_are_dropped(here: Site, stranger: Stranger, seed: int) -> None:
    chance, lines = random.Random(seed), len(here.log())
    # Under another name, about another database: one of these may be a hello with the highest session that there is, or
    # of a host that is never heard again.
    claimed = claim("postgresql://fuzzed:5432/db", leases=[HeldLease(1)])
    own = encode(stranger.hello(claimed, name=f"{os.getpid()}-fuzzed-{seed}"))
    for _ in range(1000):
        stranger.send(mutated(chance, chance.choice([*here.recorded(), own])))
    stranger.join()
    assert len(here.log()) <= lines + LINES
    assert all(line.isprintable() and len(line) < 1000 for line in here.log())


def test_a_member_that_says_nonsense_is_heard_again_as_soon_as_it_makes_sense(here: Site, stranger: Stranger) -> None:
    chance = random.Random(5)
    stranger.join(claim())
    for _ in range(500):
        packet = ProcessPacket(stranger.epoch, stranger.session, 1, [Report(1, 0, Demand(1, 1, 1, 1, 1)), Detach(2)])
        stranger.send(mutated(chance, encode(packet)))
    # What it said was too much at first.
    granted = None
    while granted is None:
        stranger.join(claim())
        stranger.say(Report(1, 0, Demand(0, 0, 0, 1, 1)))
        granted = stranger.told(Granted, unless=Lost)
    assert len(granted.leases) == 1


@pytest.mark.parametrize("frames", [[b""], [b"", b""], [b"", b"x"], [b"x"] * 5000], ids=len)
def test_a_message_is_one_frame(here: Site, stranger: Stranger, frames: list[bytes]) -> None:
    stranger.send(*frames)
    stranger.send(encode(stranger.hello()), b"")
    stranger.join()


@pytest.mark.parametrize("name", ["", "café", "a\x1b[2Jb", "a\nb", "x" * 255, "?00", " a", "\0"])
def test_a_name_that_is_none_of_ours_cannot_join(here: Site, stranger: Stranger, name: str) -> None:
    stranger.send(encode(stranger.hello(name=name)))
    assert stranger.receive(0.2) is None


@pytest.mark.parametrize("identity", [b"\xff\xfe", b"a\nb", b"x" * 255, b"\0\0\0\0\1"])
def test_what_a_socket_calls_itself_does_not_matter(here: Site, identity: bytes) -> None:
    with Stranger(here.address, f"{os.getpid()}-a", identity=identity) as first:
        first.join()
        with Stranger(here.address, f"{os.getpid()}-b", identity=identity) as second:
            second.send(encode(first.hello(name=second.name)))
            first.join()
    assert here.is_well()


def test_a_message_that_is_too_long_costs_its_sender_the_connection(here: Site, stranger: Stranger) -> None:
    stranger.join()
    for _ in range(5):
        stranger.send(b"\x91" * (MAX_MESSAGE + 1))
    stranger.join()


# -- what was said before, or by somebody else ------------------------------------------------------------------------


def test_what_the_honest_process_has_said_does_nothing_when_somebody_else_says_it(here: Site) -> None:
    for identity in (b"", b"replays", here.name.encode()):
        with Stranger(here.address, "replays", identity=identity) as other:
            for data in here.recorded() * 2:
                other.send(data)
            while not isinstance(other.receive(0.2), Lost | Unwelcome):
                other.send(data)
        assert here.is_well()


def test_who_takes_the_name_of_another_is_not_heard(here: Site) -> None:
    recorded = [message for message in map(msgspec.msgpack.decode, here.recorded()) if message[0] == "said"]
    _, epoch, session, number, _ = recorded[-1]
    with Stranger(here.address, here.name, identity=here.name.encode()) as other:
        for pool in range(1, 5):
            other.send(encode(ProcessPacket(epoch, session, number + pool, [Detach(pool)])))
        while other.receive(0.2) != Lost(epoch, session):
            other.send(encode(ProcessPacket(epoch, session, number + 1, [Detach(1)])))
        honest = {"pid": here.honest.pid, "started": start_time(here.honest.pid)}
        for changes, reason in ((honest, "this is process"), ({}, "is another process's")):
            assert reason in refused(other, other.hello(session=2**62, **changes))
    assert here.is_well()


def test_what_is_late_or_doubled_changes_nothing_and_what_is_missing_is_asked_for(
    here: Site, stranger: Stranger
) -> None:
    stranger.join(claim())
    old = stranger.session
    stranger.join(claim())
    report = [Report(1, 0, Demand(0, 0, 0, 1, 1))]
    for epoch, session, number in (
        (stranger.epoch + 1, stranger.session, 1),
        (stranger.epoch - 1, stranger.session, 1),
        (stranger.epoch, old, 1),
        (stranger.epoch, stranger.session, 0),
        (stranger.epoch, stranger.session, -(2**63)),
    ):
        stranger.send(encode(ProcessPacket(epoch, session, number, list(report))))
    stranger.say(*report)
    granted = stranger.told(Granted)
    assert granted is not None
    copy = encode(ProcessPacket(stranger.epoch, stranger.session, stranger.number, list(report)))
    for _ in range(100):
        stranger.send(copy)
    for number in (3, 2**64 - 1):
        stranger.send(encode(ProcessPacket(stranger.epoch, stranger.session, number, list(report))))
    assert stranger.receive() == Lost(stranger.epoch, stranger.session)
    (budget,) = [one for one in here.status()["budgets"] if one["database"] == claim().database]
    assert budget["leased"] == len(granted.leases) == 1


# -- hellos -----------------------------------------------------------------------------------------------------------


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_nobody_joins_as_a_process_that_it_is_not(here: Site, stranger: Stranger) -> None:
    for changes, reason in (
        ({"pid": here.honest.pid}, "this is process"),
        ({"pid": dead_pid()}, "this is process"),
        ({"pid": 1}, "this is process"),
        ({"started": 1}, "sees no process"),
        ({"started": -1}, "sees no process"),
    ):
        with Stranger(here.address, f"forged-{reason}".replace(" ", "-")) as other:
            assert reason in refused(other, other.hello(**changes))
    stranger.join()


@pytest.mark.parametrize("number", [-(2**63), -1, 0, 2**64 - 1])
def test_numbers_out_of_range_are_no_hello_or_are_only_shown(here: Site, stranger: Stranger, number: int) -> None:
    for field in ("pid", "session", "started", "worker", "restarts"):
        stranger.send(encode(stranger.hello(**{field: number, "name": f"{os.getpid()}-{field}"})))
    for field in ("pool", "min_size", "max_size"):
        stranger.send(encode(stranger.hello(claim(**{field: number}))))


def test_a_connection_has_the_name_that_it_said_last(here: Site, stranger: Stranger) -> None:
    for name in ("first", "second", "first"):
        stranger.session += 10
        stranger.join(claim(), name=f"{os.getpid()}-{name}-of-two")
        stranger.say(Report(1, 0, Demand(0, 0, 0, 1, 1)))
        granted = stranger.told(Granted)
        assert granted is not None
        stranger.say(Returned(1, granted.leases))
    assert len([one for one in here.status()["workers"] if one["pid"] == os.getpid()]) == 1


def test_what_a_demand_says_is_cut_to_what_can_be(here: Site, stranger: Stranger) -> None:
    for number in (-(2**63), -1, 10**9, 2**64 - 1):
        stranger.join(claim(max_size=2**64 - 1, min_size=2**64 - 1), claim("postgresql://other:5432/db", 2))
        for pool in (1, 2):
            stranger.say(Report(pool, number, Demand(number, number, number, number, number)))
            stranger.say(Report(pool, -number // 2, Demand(0, 0, 0, number, number)))
        stranger.say(Report(2, 0, Demand(0, 0, 0, 1, 1)))
        stranger.join()


def test_a_process_cannot_claim_more_than_it_may_hold(here: Site, stranger: Stranger) -> None:
    stranger.join(claim(leases=[HeldLease(number) for number in range(MOST_LEASES)]))
    (budget,) = [one for one in here.status()["budgets"] if one["database"] == claim().database]
    assert budget["leased"] == MOST_LEASES
    half = [HeldLease(number) for number in range(MOST_LEASES // 2 + 1)]
    two = [claim(number=1, leases=half), claim("postgresql://other:5432/db", number=2, leases=half)]
    assert "no process may hold more than" in refused(stranger, stranger.hello(*two))


def test_a_lease_is_counted_once_however_often_it_is_claimed(here: Site, stranger: Stranger) -> None:
    quarantined = HeldLease(3, LeaseState.QUARANTINED, 1, ("1.2.3.4:5", "nonsense"))
    stranger.join(
        claim(number=1, leases=[HeldLease(1), HeldLease(1), HeldLease(2)]),
        claim(number=2, leases=[HeldLease(1), quarantined]),
        claim(number=2, leases=[HeldLease(1), quarantined]),
    )
    (budget,) = [one for one in here.status()["budgets"] if one["database"] == claim().database]
    assert (budget["leased"], budget["quarantined"]) == (3, 0)
    stranger.say(Moved(1, quarantined), Moved(2, quarantined), Returned(1, [1, 3]), Ended(1, [1, 2, 3]))
    stranger.say(Returned(2, [3, 3]), Detach(9), Returned(9, [1]))
    (budget,) = [one for one in here.status()["budgets"] if one["database"] == claim().database]
    assert budget["leased"] == 2


def test_a_lease_that_somebody_else_holds_cannot_be_claimed(here: Site, stranger: Stranger) -> None:
    lines = [msgspec.json.decode(line) for line in (here.directory / "journal").read_bytes().splitlines()]
    granted = [line[4][0] for line in lines if line[0] == "granted"]
    leased = here.status()["budgets"][0]["leased"]
    stranger.join(claim(here.database, leases=[HeldLease(lease, LeaseState.OPEN) for lease in granted[:2]]))
    assert here.status()["budgets"][0]["leased"] == leased
    stranger.say(Returned(1, granted))
    stranger.say(Detach(1))


FORGER = """
import os, signal, sys
from tests.workers.test_wire import STRANGE, claim
from tests.workers.wire import Stranger
from pysqlx_engine.workers.messages import Attach, HeldLease, LeaseState

ADDRESSES = [("", ""), ("1.2.3.4:5", "nonsense"), ("1.2.3.4:99999", "1.2.3.4:5"), ("::1:-5", "1.2.3.4:5"),
             ("1.2.3.4:5", "::1:5"), ("\\0:1", "1.2.3.4:1"), ("1.2.3.4:\\u0662", "1.2.3.4:1"), None]
lease = 2 ** 60
with Stranger(sys.argv[1], "forger") as forger:
    claims = []
    for pool, database in enumerate([*STRANGE, "postgresql://h:" + "9" * 5000 + "/d"]):
        leases = []
        for state in LeaseState:
            for address in ADDRESSES:
                lease += 1
                leases.append(HeldLease(lease, state, -1, address))
        claims.append(claim(database, pool, name=database, leases=leases))
        forger.say(Attach(claims[-1]))
        if len(database) > 200:
            del claims[-1]  # with it the hello could not be read
        forger.join(*claims)
        print(len(leases), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def databases(here: Site) -> set[str]:
    return {budget["database"] for budget in here.status()["budgets"]}


def test_whatever_a_process_claimed_its_death_is_survived(here: Site) -> None:
    before = databases(here)
    forger = subprocess.run([sys.executable, "-c", FORGER, here.address], capture_output=True, text=True, check=False)
    assert forger.returncode == -9, forger.stderr
    assert here.is_well()
    deadline = time.monotonic() + 20
    while not databases(here) <= before:  # the kernel knows of none of these connections
        if sockets.half_closed(0):  # of other tests: where no port is known, it may be one of these
            deadline = time.monotonic() + 20
        assert time.monotonic() < deadline, here.status()["budgets"]
    assert here.is_well()


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1, -1, 2**64 - 1])
@pytest.mark.parametrize("shape", ["the same shape", "another shape", "nothing else"])
def test_another_version_is_told_so(here: Site, version: int, shape: str) -> None:
    with Stranger(here.address, f"version{version}") as other:
        own: list[object] = msgspec.msgpack.decode(encode(other.hello(version=version)))
        rest = {"the same shape": own[2:], "another shape": [{"x": [None]}, "y"], "nothing else": []}[shape]
        answer = None
        while not isinstance(answer, Unwelcome):
            other.send(msgspec.msgpack.encode(["hello", version, *rest]))
            answer = other.receive(0.25)
        assert answer.reason == f"the coordinator speaks version {VERSION} of the protocol, this process {version}"
    assert here.is_well()


# -- too much ---------------------------------------------------------------------------------------------------------


@contextmanager
def flood(here: Site, message: Callable[[Stranger], bytes]) -> Iterator[None]:
    """Somebody sends as fast as it can, meanwhile."""
    stop, sending = threading.Event(), threading.Event()

    def send() -> None:
        with Stranger(here.address, f"{os.getpid()}-flood") as other:
            other.socket.setsockopt(zmq.LINGER, 0)
            other.socket.setsockopt(zmq.SNDHWM, 1000)
            other.join(claim())
            while not stop.is_set():
                for _ in range(100):
                    if other.socket.poll(10, zmq.POLLOUT):
                        other.send(message(other))
                sending.set()

    flooding = threading.Thread(target=send)
    flooding.start()
    try:
        assert sending.wait(20)
        yield
    finally:
        stop.set()
        flooding.join()


def junk(other: Stranger) -> bytes:
    return b"junk"


def reports(other: Stranger) -> bytes:
    other.number += 1
    said = [Report(1, 0, Demand(1, 1, 1, 1, 1))] * 500
    return encode(ProcessPacket(other.epoch, other.session, other.number, list(said)))


def hellos(other: Stranger) -> bytes:
    return encode(other.hello(*(claim(number=number) for number in range(100))))


@pytest.mark.parametrize("message", [junk, reports, hellos], ids=["junk", "reports", "hellos"])
def test_a_flood_does_not_keep_others_from_being_served(
    here: Site, stranger: Stranger, message: Callable[[Stranger], bytes]
) -> None:
    lines = len(here.log())
    with flood(here, message):
        assert max(here.serve() for _ in range(5)) < 5
    assert len(here.log()) <= lines + LINES


def test_who_was_not_heard_because_it_said_too_much_is_asked_to_say_hello(here: Site, stranger: Stranger) -> None:
    stranger.join(claim(leases=[HeldLease(number) for number in range(MOST_LEASES)]))
    for _ in range(20):
        stranger.say(*[Report(1, 0, Demand(0, 0, 0, 1, 1))] * 10_000)  # for which it has to pay
    while (answer := stranger.receive()) != Lost(stranger.epoch, stranger.session):
        assert answer is not None


@pytest.mark.parametrize("number", [1, MOST_POOLS])
def test_a_process_that_has_as_much_as_it_may_is_heard(here: Site, stranger: Stranger, number: int) -> None:
    each = MOST_LEASES // number
    database = f"postgresql://made.up:5432/{number}"
    everything = [
        claim(database, pool, leases=[HeldLease(lease) for lease in range(pool * each, (pool + 1) * each)])
        for pool in range(number)
    ]
    report = Report(0, 0, Demand(0, 0, 0, 77, 1))
    deadline = time.monotonic() + 20
    stranger.join(*everything)
    stranger.say(report)
    while 77 not in [budget["waiting"] for budget in here.status()["budgets"]]:
        assert time.monotonic() < deadline
        if isinstance(stranger.receive(0.05), Lost):
            stranger.join(*everything)
            stranger.say(report)


def test_who_never_reads_does_not_pile_up_answers(here: Site) -> None:
    with Stranger(here.address, "never-reads") as other:
        for number in range(3000):
            other.send(encode(ProcessPacket(1, 1, number, [])))
        for _ in range(3000):
            other.send(encode(other.make_hello(version=1)))
        answers = 0
        while other.receive(1.0):
            answers += 1
        assert 0 < answers < 100
    assert here.is_well()


def test_databases_are_not_made_up_without_end(here: Site, stranger: Stranger) -> None:
    before, lines = here.descriptors(), len(here.log())
    stranger.join()
    stranger.join(*(claim(f"made up {number}", number) for number in range(MOST_POOLS)))
    refused = stranger.told(Refused)
    assert refused is not None
    assert refused.reason == "the coordinator has budgets for 1000 databases, and takes no more"
    assert len(here.status()["budgets"]) <= MOST_BUDGETS
    assert here.descriptors() <= before + MOST_BUDGETS + 10
    assert len(here.log()) <= lines + LINES


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.thorough("1")
def test_who_comes_when_no_descriptors_are_left_joins_when_there_are_some_again(here: Site, left: int) -> None:
    pid = here.coordinator.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with Stranger(here.address, f"{os.getpid()}-{next(serial)}") as other:
        hello = other.hello()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (here.descriptors() + left, limits[1]))
        try:
            lines = len(here.log())
            while len(here.log()) == lines:
                other.send(encode(hello))
                assert other.receive(0.1) is None
                assert here.coordinator.poll() is None, "\n".join(here.log())
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        assert "cannot be watched: Too many open files" in here.log()[-1]
        other.join()
    assert here.is_well()


def test_names_that_come_and_go_leave_nothing_behind(here: Site, stranger: Stranger) -> None:
    with Stranger(here.address, f"{os.getpid()}-first") as first:
        first.join()
    before = here.descriptors()
    for number in range(100):
        with Stranger(here.address, f"{os.getpid()}-{number}") as other:
            other.send(encode(other.hello(session=0)))
            other.send(encode(other.hello(session=-1)))
            if number % 10 == 0:
                other.join()
    stranger.join()
    assert here.is_well()
    assert here.descriptors() <= before + 10
    assert len([one for one in here.status()["workers"] if one["pid"] == os.getpid()]) == 1


# -- the other side: a process and a coordinator that talks nonsense --------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCoordinator]:
    with FakeCoordinator(tmp_path) as coordinator:
        monkeypatch.setenv("PYSQLX_COORDINATOR", coordinator.address)
        yield coordinator


@contextmanager
def started(fake: FakeCoordinator, uri: str, term: float | None = None) -> Iterator[tuple[PySQLXEnginePoolSync, int]]:
    """A pool that has joined and holds the lease 70, and its number."""
    pool = PySQLXEnginePoolSync(uri, min_size=1, conn_timeout=10)
    with ThreadPoolExecutor() as executor:
        start = executor.submit(pool.start)
        number = fake.take_in(70, term)
        while 70 not in moves(fake, LeaseState.OPEN):
            assert fake.receive() is not None, "it opens nothing"
        start.result()
        try:
            yield pool, number
        finally:
            executor.submit(pool.stop).result()


def moves(fake: FakeCoordinator, state: LeaseState) -> list[int]:
    return [said.held.lease for said in fake.heard if isinstance(said, Moved) and said.held.state is state]


def answers(fake: FakeCoordinator, pool: int) -> None:
    """The link is there, joined, and has taken all that was said."""
    fake.say(Attached(pool, 5))
    fake.told(Report)


def test_a_lease_that_is_granted_twice_is_had_once(fake: FakeCoordinator, sqlite_uri: str) -> None:
    with started(fake, sqlite_uri) as (pool, number):
        again = fake.packet(Granted(number, [70, 70], 1))
        for _ in range(3):
            fake.send(again)
        fake.say(Granted(number, [70, 71, 71], 2))
        assert fake.told(Returned).leases == [71]  # nobody needs it
        answers(fake, number)
        assert moves(fake, LeaseState.CONNECTING) == [70]
        assert pool.stats().idle == 1


def test_what_is_of_another_epoch_or_session_or_late_is_dropped(fake: FakeCoordinator, sqlite_uri: str) -> None:
    with started(fake, sqlite_uri) as (_, number):
        last = fake.number
        for changes in (
            {"epoch": fake.EPOCH + 1},
            {"epoch": 0},
            {"session": fake.session + 1},
            {"session": fake.session - 1},
            {"number": last},
            {"number": 0},
            {"number": -(2**63)},
        ):
            fake.send(fake.packet(Granted(number, [99], 1), **changes))
            fake.number = last
        answers(fake, number)
        assert 99 not in moves(fake, LeaseState.CONNECTING)
        assert not [said for said in fake.heard if isinstance(said, Returned)]
        assert len(fake.hellos) == 1


def test_after_a_gap_all_is_stated_anew(fake: FakeCoordinator, sqlite_uri: str) -> None:
    with started(fake, sqlite_uri) as (_, number):
        fake.number += 1
        fake.say(Granted(number, [99], 1))
        (claimed,) = fake.greeted().pools
        assert [(held.lease, held.state) for held in claimed.leases] == [(70, LeaseState.OPEN)]
        fake.welcome()
        answers(fake, number)


def test_a_lease_for_a_pool_that_is_none_goes_back(fake: FakeCoordinator, sqlite_uri: str) -> None:
    with started(fake, sqlite_uri) as (_, number):
        fake.say(Granted(number + 1000, [99], 1), Granted(-1, [98], 1))
        assert [fake.told(Returned), fake.heard[-1]] == [Returned(number + 1000, [99]), Returned(-1, [98])]
        answers(fake, number)


def test_who_uses_an_idle_connection_says_nothing(fake: FakeCoordinator, sqlite_uri: str) -> None:
    with started(fake, sqlite_uri) as (pool, number):
        answers(fake, number)
        before = len(fake.heard)
        for _ in range(100):
            with pool.connection():
                pass
        answers(fake, number)  # after all that was said before
        assert [type(said) for said in fake.heard[before:]] == [Report]


@pytest.mark.parametrize("seed", range(3))
def test_junk_from_a_coordinator_is_dropped(
    fake: FakeCoordinator, sqlite_uri: str, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(seed)
    with started(fake, sqlite_uri) as (pool, number):
        valid = [
            fake.packet(Granted(number, [71], 1)),
            encode(Lost(fake.EPOCH, fake.session + 7)),
            fake.packet(Attached(number, 5), session=fake.session - 1),
        ]
        for _ in range(500):
            data = mutated(chance, chance.choice(valid))
            fake.send(*([data] if chance.random() < 0.9 else [data, b"more"]))
        # Some of it was taken for a packet, of numbers that leave a gap.
        fake.send(fake.packet(Attached(number, 5), number=2**40))
        first = fake.session
        while not (isinstance(message := fake.receive(), ProcessPacket) and message.session > first):
            assert message is not None
            if isinstance(message, Hello):  # it is said again as long as it is not answered
                fake.welcome()
        answers(fake, number)
        with pool.connection() as conn:
            assert conn.query_first("SELECT 1 AS a").a == 1
    lines = [record.getMessage() for record in caplog.records if "a message that is none" in record.getMessage()]
    assert 0 < len(lines) <= LINES
    assert all(line.isprintable() and len(line) < 1000 for line in lines)


@pytest.mark.parametrize("term", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_term_that_is_none_is_no_welcome(fake: FakeCoordinator, sqlite_uri: str, term: float) -> None:
    pool = PySQLXEnginePoolSync(sqlite_uri, min_size=1, conn_timeout=10)
    with ThreadPoolExecutor() as executor:
        start = executor.submit(pool.start)
        fake.greeted()
        fake.welcome(term)
        fake.take_in(70)  # it asks again
        start.result()
        executor.submit(pool.stop).result()


def test_a_message_that_is_too_long_costs_the_connection_and_it_comes_again(
    fake: FakeCoordinator, sqlite_uri: str
) -> None:
    with started(fake, sqlite_uri) as (_, number):
        fake.send(b"\x91" * (MAX_MESSAGE + 1))
        (claimed,) = fake.greeted().pools
        assert [held.lease for held in claimed.leases] == [70]
        fake.welcome()
        answers(fake, number)


def test_a_coordinator_that_never_hears_is_not_greeted_without_end(fake: FakeCoordinator, sqlite_uri: str) -> None:
    with started(fake, sqlite_uri) as (_, number):
        begun = time.monotonic()
        for _ in range(5):
            fake.send(encode(Lost(fake.EPOCH, fake.session)))
            fake.greeted()
            fake.welcome()
        assert time.monotonic() - begun > 0.4
        answers(fake, number)


def test_who_is_unwelcome_says_why_to_every_pool_until_another_coordinator_comes(
    fake: FakeCoordinator, sqlite_uri: str, tmp_path: Path
) -> None:
    first, second = (PySQLXEnginePoolSync(sqlite_uri, min_size=1, conn_timeout=10) for _ in range(2))
    with ThreadPoolExecutor() as executor:
        start = executor.submit(first.start)
        fake.greeted()
        fake.send(encode(Unwelcome(fake.EPOCH, "for a reason")))
        with pytest.raises(PoolRefusedError, match="for a reason"):
            start.result()
        with pytest.raises(PoolRefusedError, match="for a reason"):
            second.start()
    fake.__exit__()
    with FakeCoordinator(tmp_path) as another:
        another.greeted()  # by now it knows, and asks again
        with started(another, sqlite_uri) as (_, number):
            another.send(encode(Unwelcome(another.EPOCH, "late")))
            answers(another, number)


def test_what_is_said_in_the_moment_in_which_the_link_stops_is_sent(tmp_path: Path) -> None:
    class Stopped(Link):
        def _send(self, socket: zmq.Socket[bytes]) -> None:
            super()._send(socket)
            if self.joined and not self._stopping:  # another thread, before this one looks whether it has to stop
                with self.lock:
                    self.post(Detach(9))
                self.flush()
                self._stopping = True

    with FakeCoordinator(tmp_path) as fake:
        link = Stopped(fake.address)
        fake.greeted()
        fake.welcome()
        assert fake.told(Detach).pool == 9
        link.stop()


def test_the_version_is_in_front_of_every_hello() -> None:
    """What every version of the protocol has to keep: else another version could not be told."""
    hello = Hello(VERSION, 1, "name", 1, 1, "host", None, 0, [])
    assert msgspec.msgpack.decode(encode(hello))[:2] == ["hello", VERSION]
    assert msgspec.msgpack.decode(encode(Unwelcome(1, "reason"))) == ["unwelcome", 1, "reason"]
