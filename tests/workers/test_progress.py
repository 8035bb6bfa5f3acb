"""How far long work is: said of what is long, and of nothing else; lines without a terminal."""

from __future__ import annotations

import io
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pysqlx_engine.workers.progress import Progress, reporting

from .runs import CTL, JOINS_ANOTHER, TIMEOUT, run_environment, started


def test_nothing_is_said_of_what_is_short_and_then_what_is_new_now_and_then() -> None:
    progress = Progress(10.0, first=1.0, every=2.0, again=30.0)
    assert not progress.says("1 of 9", 10.9)
    assert progress.said is None
    assert progress.says("2 of 9", 11.0)
    assert not progress.says("3 of 9", 12.9)
    assert progress.due == 13.0
    assert progress.says("4 of 9", 13.0)
    assert not progress.says("4 of 9", 15.0)
    assert not progress.says("4 of 9", 42.0)
    assert progress.says("4 of 9", 44.0)
    assert progress.said == "4 of 9"


# -- a run ------------------------------------------------------------------------------------------------------------

WAITS = """
import pathlib, signal, sys, time
def end(*_):
    while not pathlib.Path("end").exists():
        time.sleep(0.01)
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
time.sleep(60)
"""


def test_a_start_of_many_workers_says_how_many_are_up(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import time\ntime.sleep(60)\n")
    # What is beyond a pipe's 64 KiB makes each start wait until the child reads.
    large = "x" * 100_000
    with started(tmp_path, "-w", "8", "script.py", large, PYSQLX_COORDINATOR=JOINS_ANOTHER) as run:
        first = run.line()
        assert first.startswith("pysqlx-run: ")
        assert first.endswith(" of 8 workers are up")
        assert not first.startswith("pysqlx-run: 8 ")
        run.line_with("pysqlx-run: 8 of 8 workers are up")
        run.send(signal.SIGQUIT)
        assert not [line for line in run.rest() if "up" in line]


def test_a_drain_says_who_still_runs(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(WAITS)
    with started(tmp_path, "-w", "2", "script.py", PYSQLX_COORDINATOR=JOINS_ANOTHER) as run:
        assert {run.line(), run.line()} == {"[worker 0] up", "[worker 1] up"}  # and nothing of so few
        run.send(signal.SIGTERM)
        line = run.line()
        assert line.startswith("pysqlx-run: draining: 2 of 2 workers still run (0, 1); they are killed in ")
        (tmp_path / "end").touch()
        # Where the machine is slow, one may end long enough before the other for a line about that.
        assert all(line.startswith("pysqlx-run: draining: 1 of 2 workers still run (") for line in run.rest())
        assert run.wait() == 0


# -- a command --------------------------------------------------------------------------------------------------------

WHAT = "waiting for others to migrate"


@contextmanager
def migrating(directory: Path, *options: str, **streams: int) -> Iterator[subprocess.Popen[bytes]]:
    """The command, which waits for a file that somebody else writes to."""
    environment = run_environment(directory, {"TERM": "xterm", "PYSQLX_URI": f"sqlite:{directory}/jobs.db"})
    command = [*CTL, "jobs", "migrate", *options]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A database that somebody writes to."""
    connection = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    yield connection
    connection.close()


def test_a_migration_that_takes_long_says_what_it_does_in_lines(tmp_path: Path, busy: sqlite3.Connection) -> None:
    with (
        migrating(tmp_path, "--json", stderr=subprocess.PIPE) as silent,
        migrating(tmp_path, stderr=subprocess.PIPE) as process,
    ):
        assert process.stderr is not None
        assert process.stderr.readline().decode() == f"pysqlx-ctl: {WHAT}\n"
        busy.execute("ROLLBACK")
        out, err = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, err) == (0, b"")
        assert b"the job tables have version" in out
        assert silent.communicate(timeout=TIMEOUT)[1] == b""
        assert silent.returncode == 0


def test_on_a_terminal_it_is_a_bar_that_goes_away(tmp_path: Path, busy: sqlite3.Connection) -> None:
    ours, terminal = os.openpty()
    with migrating(tmp_path, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        while WHAT.encode() not in shown:
            shown += os.read(ours, 10_000)
        assert b"\x1b[" in shown
        busy.execute("ROLLBACK")
        assert b"the job tables have version" in process.communicate(timeout=TIMEOUT)[0]
        assert process.returncode == 0
    os.close(ours)


def test_a_report_of_what_is_short_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting("test") as report:
        report("all of it", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_report_is_shown_though_nobody_reports_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    with reporting("test") as report:
        report("the long part", 3, 9)
        while not shown.getvalue().endswith("\n"):
            pass
        report("the end", 9, 9)
    assert shown.getvalue() == "test: the long part: 3 of 9\n"
