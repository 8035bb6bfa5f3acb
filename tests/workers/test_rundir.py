"""Run directories: private, named, and free again when their owner is dead."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pysqlx_engine.errors import SettingsError
from pysqlx_engine.system import start_time
from pysqlx_engine.workers.journal import Journal, Member
from pysqlx_engine.workers.rundir import DatabaseClaims, RunDirectoryError, default_name, list_runs, run_directory

from .runs import room_for


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "pysqlx"


@contextmanager
def another_owner(name: str, *, supervised: bool = True) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the run `name`, with sockets and a journal in its directory. It dies by kill -9."""
    code = (
        "import sys; from pysqlx_engine.workers.rundir import run_directory\n"
        f"run = run_directory({name!r}); held = run.claim(supervised={supervised})\n"
        "for path in (run.socket, run.control, run.journal): path.touch()\n"
        "print('claimed', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


@contextmanager
def joined(journal: Path) -> Iterator[None]:
    """A process that the journal names as one that joined, and that lives meanwhile."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, stderr=-3) as process:
        started = start_time(process.pid)
        assert started is not None
        written = Journal(journal)
        written.joined("member", Member(process.pid, started))
        written.flush()
        try:
            yield
        finally:
            process.kill()


def test_a_directory_is_private_and_gone_when_released(base: Path):
    run = run_directory("shop")
    claimed = run.claim(supervised=True)
    assert run.path == base / "shop"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (base, run.path)] == [0o700, 0o700]
    assert run.is_live()
    claimed.release()
    assert not run.path.exists()


def test_without_a_runtime_directory_it_is_in_tmp(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert run_directory("shop").path == Path(f"/tmp/pysqlx-{os.geteuid()}/shop")


def test_a_live_run_keeps_its_name():
    with (
        another_owner("shop") as owner,
        pytest.raises(RunDirectoryError, match=rf"named shop is active \(pid {owner.pid}\)"),
    ):
        run_directory("shop").claim(supervised=True)


def test_live_runs_are_listed_by_name_and_dead_ones_are_not():
    assert list_runs() == []
    with another_owner("b"), another_owner("a"):
        with another_owner("c"):
            assert [run.name for run in list_runs()] == ["a", "b", "c"]
        assert [run.name for run in list_runs()] == ["a", "b"]


def test_a_dead_runs_name_is_free_its_sockets_are_gone_and_its_journal_is_kept():
    with another_owner("shop"):
        pass
    run = run_directory("shop")
    claimed = run.claim(supervised=True)
    assert not run.socket.exists()
    assert not run.control.exists()
    assert run.journal.exists()
    claimed.release()


def test_dead_runs_are_swept_away_but_not_a_coordinator_that_may_come_back(base: Path):
    with another_owner("dead"), another_owner("alone", supervised=False):
        pass
    with another_owner("live"):
        run_directory("shop").claim(supervised=True).release()
        assert sorted(os.listdir(base)) == ["alone", "live"]


def test_on_a_full_disk_a_name_is_refused_and_stays_free():
    run = run_directory("shop")
    with room_for(0), pytest.raises(RunDirectoryError, match=r"cannot write .*/shop/owner\.new: File too large"):
        run.claim(supervised=True)
    run.claim(supervised=True).release()


def test_a_dead_run_is_not_swept_away_while_somebody_lives_who_joined_it(base: Path):
    with another_owner("dead"):
        pass
    with joined(base / "dead" / "journal"):
        run_directory("shop").claim(supervised=True).release()
        assert (base / "dead" / "journal").exists()
    run_directory("shop").claim(supervised=True).release()
    assert not (base / "dead").exists()


def test_a_run_that_ends_leaves_its_journal_to_who_joined_it(base: Path):
    run = run_directory("shop")
    claimed = run.claim(supervised=True)
    with joined(run.journal):
        claimed.release()
        again = run.claim(supervised=True)
        assert list(Journal(run.journal).recovered.members) == ["member"]
    again.release()
    assert not run.path.exists()


def test_a_run_starts_although_another_is_just_sweeping_its_directory(base: Path):
    with another_owner("shop"):
        pass
    sweeper = os.open(base / "shop" / "lock", os.O_RDWR)
    fcntl.flock(sweeper, fcntl.LOCK_EX)
    done = threading.Timer(0.05, os.close, [sweeper])
    done.start()
    run_directory("shop").claim(supervised=True).release()
    done.join()


def test_a_pid_that_was_given_again_does_not_count_as_the_owner():
    run = run_directory("shop")
    claimed = run.claim(supervised=True)
    run.owner.write_text(json.dumps({"pid": os.getpid(), "start": 1, "supervised": True}))
    assert not run.is_live()
    claimed.release()


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "x" * 65, "ä", "a\n"])
def test_a_name_that_is_no_plain_word_is_refused(name: str):
    with pytest.raises(SettingsError, match="is not allowed: 1 to 64 letters"):
        run_directory(name)


@pytest.mark.parametrize("script", ["worker.py", "../a b/wörker.py", "shop.jobs:main", ".", "-", "x" * 200])
def test_a_default_name_is_always_allowed(script: str):
    assert run_directory(default_name(script)).name.endswith(f"-{os.getpid()}")


def test_a_directory_that_others_can_enter_is_refused(base: Path):
    base.mkdir()
    base.chmod(0o750)
    with pytest.raises(RunDirectoryError, match=r"is open to others \(mode 0750, wanted 0700\)"):
        run_directory("shop").claim(supervised=True)


def test_a_link_in_place_of_the_directory_is_refused(base: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    base.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunDirectoryError, match="is not a directory"):
        run_directory("shop").claim(supervised=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of somebody else's")
def test_somebody_elses_directory_is_refused(base: Path):
    base.mkdir(mode=0o700)
    os.chown(base, 65534, 65534)
    with pytest.raises(RunDirectoryError, match="belongs to user 65534, not to 0"):
        run_directory("shop").claim(supervised=True)


def test_a_path_too_long_for_a_socket_is_refused_with_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with pytest.raises(RunDirectoryError, match=r"has \d+ bytes, the system allows 107: choose a shorter --name"):
        run_directory("shop").claim(supervised=True)


def test_a_database_that_is_claimed_on_a_full_disk_is_free_again_when_it_is_released(base: Path):
    base.mkdir(mode=0o700)
    one, two = DatabaseClaims(run_directory("one")), DatabaseClaims(run_directory("two"))
    with room_for(0), pytest.raises(OSError, match="File too large"):
        one.claim("sqlite:/a.db")
    assert two.claim("sqlite:/a.db") == "another run"
    one.release("sqlite:/a.db")
    assert two.claim("sqlite:/a.db") is None
