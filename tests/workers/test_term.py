"""The term of processes of other hosts: a setting, which a coordinator remembers for each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pysqlx_engine.engine.sockets import Endpoints, Verdict
from pysqlx_engine.pool.budget import Demand
from pysqlx_engine.system import host_identity
from pysqlx_engine.workers.coordinator_core import CoordinatorCore
from pysqlx_engine.workers.journal import Journal
from pysqlx_engine.workers.membership import MARGIN
from pysqlx_engine.workers.messages import (
    VERSION,
    CoordinatorPacket,
    Granted,
    Hello,
    PoolClaim,
    ProcessPacket,
    Report,
    Welcome,
)

from .runs import room_for

SHOP = "postgresql://db.example:5432/shop"


class Host:
    identity = "here"

    def watch(self, name: str, pid: int, started: int) -> bool:
        return True

    def forget(self, name: str) -> None: ...
    def bind(self, name: str, sender: str) -> None: ...
    def unbind(self, name: str) -> None: ...

    def server_session(self, address: Endpoints) -> Verdict:
        return Verdict.HELD

    def half_closed(self, server_port: int) -> set[Endpoints]:
        return set()


def core(directory: Path, epoch: int, term: float, *, now: float = 0.0, remote: bool = True) -> CoordinatorCore:
    journal = Journal(directory / "journal")
    return CoordinatorCore(epoch, 5, journal, Host(), now, supervised=True, remote=remote, term=term)


def hello(coordinator: CoordinatorCore, name: str, session: int) -> Hello:
    host = Host.identity if name == "near" else "there"
    claim = PoolClaim(1, "pool", SHOP, 0, 5, False)
    return Hello(VERSION, session, name, 1, 1, host, None, 0, [claim], coordinator.fleet.epoch)


def told_term(coordinator: CoordinatorCore) -> float | None:
    (welcome,) = [message for _, message in coordinator.flush() if isinstance(message, Welcome)]
    return welcome.term


def time_passes(coordinator: CoordinatorCore, now: float) -> None:
    """Until then every timer is looked at."""
    while (due := coordinator.due()) is not None and due < now:
        coordinator.now = max(due, coordinator.now + 0.001)
        coordinator.tick()
    coordinator.now = now
    coordinator.tick()


def lives_at(coordinator: CoordinatorCore, now: float) -> bool:
    time_passes(coordinator, now)
    coordinator.flush()
    return "far" in coordinator.fleet.members


def test_a_coordinator_of_other_hosts_without_a_journal_grants_nothing_for_a_term(tmp_path: Path) -> None:
    # Whoever started it knows the processes of this host only.
    coordinator = core(tmp_path, epoch=1, term=4.0)
    coordinator.received("near", hello(coordinator, "near", 1))
    coordinator.received("near", ProcessPacket(1, 1, 1, [Report(1, 0, Demand(0, 0, 0, 1, want=1))]))

    def granted_at(now: float) -> bool:
        time_passes(coordinator, now)
        said = [message for _, message in coordinator.flush() if isinstance(message, CoordinatorPacket)]
        return any(isinstance(one, Granted) for packet in said for one in packet.messages)

    assert not granted_at(0.0)
    assert not granted_at(4.0 + MARGIN - 0.01)
    assert granted_at(4.0 + MARGIN)


def test_the_setting_is_what_a_process_is_told(tmp_path: Path) -> None:
    coordinator = core(tmp_path, epoch=1, term=4.0)
    coordinator.received("far", hello(coordinator, "far", 1))
    assert told_term(coordinator) == 4.0
    assert lives_at(coordinator, 4.0 + MARGIN - 0.01)
    assert not lives_at(coordinator, 4.0 + MARGIN)


def test_a_term_that_a_former_coordinator_gave_holds_until_the_process_knows_the_new_one(tmp_path: Path) -> None:
    former = core(tmp_path, epoch=1, term=60.0)
    former.received("far", hello(former, "far", 1))
    former.flush()
    for connection in ("silent", "greets", "answers"):
        directory = tmp_path / connection
        directory.mkdir()
        (directory / "journal").write_bytes((tmp_path / "journal").read_bytes())
        coordinator = core(directory, epoch=2, term=4.0, now=100.0)
        if connection != "silent":
            coordinator.received("far", hello(coordinator, "far", 2))
            assert told_term(coordinator) == 4.0
        if connection == "answers":  # only now it is known that it has heard of it
            coordinator.received("far", ProcessPacket(2, 2, 1, []))
        term = 4.0 if connection == "answers" else 60.0
        assert lives_at(coordinator, 100.0 + term + MARGIN - 0.01), connection
        assert not lives_at(coordinator, 100.0 + term + MARGIN), connection
    # And it is remembered.
    again = core(tmp_path / "answers", epoch=3, term=8.0, now=200.0)
    assert again.fleet.members == {}


def test_processes_that_cannot_tell_which_kernel_they_have_are_on_different_hosts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no /proc here")

    assert host_identity() == host_identity()
    with monkeypatch.context() as hidden:
        hidden.setattr("pysqlx_engine.system.open", refuse, raising=False)
        assert host_identity() != host_identity()


def test_one_that_follows_a_coordinator_that_died_while_it_learned_learns_anew(tmp_path: Path) -> None:
    first = core(tmp_path, 1, 6.0)
    assert not first.ledger.granting
    second = core(tmp_path, 3, 6.0, now=100.0)  # there is a journal now, and it names nobody
    time_passes(second, 100.0 + 6.0 + MARGIN - 0.01)
    assert not second.ledger.granting
    time_passes(second, 100.0 + 6.0 + MARGIN)
    second.flush()
    assert second.ledger.granting
    for _ in range(2):  # what was learned stays so
        assert core(tmp_path, 5, 6.0, now=200.0).ledger.granting


def test_one_that_follows_a_coordinator_that_could_write_nothing_learns_anew(tmp_path: Path) -> None:
    with room_for(0):
        assert not core(tmp_path, 1, 6.0).ledger.granting
    assert (tmp_path / "journal").read_bytes() == b""
    assert not core(tmp_path, 3, 6.0, now=100.0).ledger.granting
