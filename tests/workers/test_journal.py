"""The coordinator's journal, on a disk that fills up."""

from __future__ import annotations

import errno
from io import FileIO
from pathlib import Path

import pytest
from msgspec import structs

from pysqlx_engine.pool.budget import Demand
from pysqlx_engine.workers.coordinator_core import JOURNAL_AGAIN
from pysqlx_engine.workers.journal import Journal, Member
from pysqlx_engine.workers.messages import (
    CoordinatorPacket,
    End,
    HeldLease,
    LeaseState,
    Lost,
    ProcessPacket,
    Report,
)
from pysqlx_engine.workers.orphans import END_AGAIN

from .runs import room_for
from .test_term import core, hello, time_passes


def join(journal: Journal, numbers: range) -> None:
    for number in numbers:
        journal.joined(f"member {number}", Member(number, 1))


def members(path: Path) -> int:
    return len(Journal(path).recovered.members)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal that names 200 members."""
    path = tmp_path / "journal"
    journal = Journal(path)
    join(journal, range(200))
    journal.flush()
    return path


def test_a_journal_that_cannot_be_written_anew_stays_as_it_is_and_goes_on(path: Path, caplog: pytest.LogCaptureFixture):
    with room_for(path.stat().st_size // 2):
        journal = Journal(path)
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot write {path}.new: File too large; going on with the old journal"
    ]
    assert list(path.parent.iterdir()) == [path]
    join(journal, range(200, 210))
    journal.flush()
    assert members(path) == 210


def test_what_could_not_be_written_is_written_with_the_next_attempt_and_spoils_no_line(path: Path):
    journal = Journal(path)
    join(journal, range(200, 210))
    with room_for(path.stat().st_size + 100), pytest.raises(OSError, match="File too large"):
        journal.flush()
    join(journal, range(210, 220))
    journal.flush()
    assert members(path) == 220


class Uncut(FileIO):
    """A file on a disk that shrinks nothing, for a while."""

    def truncate(self, size: int | None = None) -> int:
        raise OSError(errno.EIO, "Input/output error")


def test_half_a_line_that_cannot_be_cut_off_at_once_is_cut_off_before_the_next(path: Path):
    journal = Journal(path)
    join(journal, range(200, 210))
    journal._file, whole = Uncut(path, "ab"), journal._file
    with room_for(path.stat().st_size + 10), pytest.raises(OSError, match=r"File too large|Input/output error"):
        journal.flush()
    journal._file = whole
    journal.flush()
    assert members(path) == 210


def test_a_line_that_a_crash_cut_off_spoils_none_of_those_that_follow(path: Path):
    with path.open("ab") as file:
        file.write(b'["joined","member')
    with room_for(0):  # it cannot be written anew
        journal = Journal(path)
    join(journal, range(200, 201))
    journal.flush()
    assert members(path) == 201


def test_what_cannot_be_said_while_the_disk_is_full_does_not_become_more_and_more(tmp_path: Path):
    coordinator = core(tmp_path, epoch=1, term=6.0, remote=False)
    for name in ("near", "far"):
        coordinator.received(name, hello(coordinator, name, 1))
    with room_for(0):
        for number in range(1, 1000):
            for name, waiting in (("near", number % 5 + 1), ("far", 4)):
                wants = Report(1, 0, Demand(0, 0, 0, waiting, waiting))
                coordinator.received(name, ProcessPacket(1, 1, number, [wants]))
            coordinator.tick()
            assert coordinator.flush() == []
    assert len(coordinator.ledger.outbox) < 20


def test_what_cannot_be_written_while_the_disk_is_full_does_not_become_more_and_more(tmp_path: Path):
    coordinator = core(tmp_path, epoch=1, term=6.0, remote=False)
    with room_for(0):
        for session in range(1, 1000):  # nobody answers
            coordinator.now += JOURNAL_AGAIN
            coordinator.received("near", hello(coordinator, "near", session))
            coordinator.tick()
            assert coordinator.flush() == []
    assert len(coordinator._journal._told) < 20
    coordinator.now += JOURNAL_AGAIN
    assert coordinator.flush() != []
    assert Journal(tmp_path / "journal").recovered == coordinator._journal.recovered
    assert members(tmp_path / "journal") == 1


def test_what_is_asked_for_again_and_again_does_not_become_more_while_the_disk_is_full(tmp_path: Path):
    coordinator = core(tmp_path, epoch=1, term=6.0, remote=True)
    far = hello(coordinator, "far", 1)
    held = HeldLease(1, LeaseState.OPEN, 77, ("10.0.0.1:40000", "10.0.0.2:5432"))
    far.pools[0].leases.append(held)  # its session has to be ended
    for name, one in (("far", far), ("near", hello(coordinator, "near", 1))):
        coordinator.received(name, one)
    coordinator.flush()
    with room_for(0):
        time_passes(coordinator, 10.0)
        assert "far" not in coordinator.fleet.members
        for session in range(1, 1000):
            coordinator.now += 3.0
            # One that knows the epoch of another coordinator only.
            coordinator.received("?1", structs.replace(hello(coordinator, "new", session), epoch=2))
            coordinator.tick()
            assert coordinator.flush() == []
    assert len(coordinator.ledger.outbox) + len(coordinator.fleet._outbox) < 20
    coordinator.now += 3.0
    coordinator.tick()
    assert any(isinstance(one, Lost) and one.session == 999 for _, one in coordinator.flush())
    coordinator.now += END_AGAIN
    coordinator.tick()
    packets = [one for _, one in coordinator.flush() if isinstance(one, CoordinatorPacket)]
    assert [one.sessions for packet in packets for one in packet.messages if isinstance(one, End)] == [[held]]


def test_a_line_that_is_no_text_is_passed_over(path: Path):
    with path.open("ab") as file:
        file.write(b'["joined","member \xff"]\n')
    assert members(path) == 200
