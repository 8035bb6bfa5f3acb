"""What a run does when it is told something while it runs, by a signal or by `pysqlx-ctl`, and what it answers."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pysqlx_engine import PySQLXEngineSync
from tests.servers import Database

from .runs import COMMAND, Run, coordinating, ctl, run_environment, started

WORKS = """
import contextlib, os, threading, time
from pysqlx_engine import PySQLXEnginePoolSync
from pysqlx_engine.errors import PoolClosedError
with PySQLXEnginePoolSync(min_size=1, conn_timeout=60) as pool:
    print("VERSION", os.getpid(), os.environ.get("PYSQLX_MIN_SIZE"), flush=True)
    def work():
        with contextlib.suppress(PoolClosedError):
            while True:
                with pool.connection() as conn:
                    conn.query_first("SELECT 1 AS a")
                time.sleep(0.005)
    for _ in range(THREADS):
        threading.Thread(target=work, daemon=True).start()
    threading.Event().wait()
"""


def write(directory: Path, version: str, threads: int = 2) -> str:
    (directory / "script.py").write_text(WORKS.replace("VERSION", version).replace("THREADS", str(threads)))
    return "script.py"


@contextmanager
def running(directory: Path, uri: str, *options: str, threads: int = 2, **environment: str) -> Iterator[Run]:
    """A run of version one, with as many workers up as there are to be."""
    script = write(directory, "one", threads)
    with started(directory, *options, script, PYSQLX_URI=uri, **environment) as run:
        for _ in range(int(options[options.index("-w") + 1])):
            run.line_with(" one ")
        yield run
        run.send(signal.SIGTERM)
        run.rest()
        assert run.wait() == 0


def status(directory: Path) -> dict[str, Any]:
    code, out, errors = ctl(directory, "status", "--json")
    assert code == 0, errors
    found: dict[str, Any] = json.loads(out)
    return found


def pids(directory: Path) -> dict[int, int]:
    """The process of each worker."""
    return {worker["worker"]: worker["pid"] for worker in status(directory)["workers"]}


# -- reload -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["HUP", "pysqlx-ctl"])
def test_a_reload_replaces_the_workers_within_the_budget(tmp_path: Path, postgresql_db: Database, by: str) -> None:
    options = ("-w", "3", "--max-size", "4", "--settings", "run.env")
    (tmp_path / "run.env").write_text("PYSQLX_MIN_SIZE=1\n")
    with running(tmp_path, postgresql_db.uri, *options) as run:
        before = pids(tmp_path)
        write(tmp_path, "two")
        (tmp_path / "run.env").write_text("PYSQLX_MIN_SIZE=0\n")
        with postgresql_db.sampler("pysqlx") as sample:
            most, done = 0, threading.Event()

            def look() -> None:
                nonlocal most
                while not done.is_set():
                    most = max(most, sample())

            looking = threading.Thread(target=look)
            looking.start()
            if by == "HUP":
                run.send(signal.SIGHUP)
            else:
                code, out, _ = ctl(tmp_path, "reload")
                assert (code, out) == (0, "3 workers are replaced, one after the other\n")
            lines = run.lines_until("reloaded")
            while sum(" two " in line for line in lines) < 3:  # it has a pool before it says so
                lines.append(run.line_with(" two "))
            done.set()
            looking.join()
        new = {int(line.split()[-2]) for line in lines if " two " in line}
        assert [line.split()[-1] for line in lines if " two " in line] == ["0"] * 3, "the settings file was read again"
        while set(pids(tmp_path).values()) != new:
            time.sleep(0.01)
        assert not new & set(before.values())
        assert most == 4


def test_a_script_that_does_not_work_is_not_rolled_out(tmp_path: Path, postgresql_db: Database) -> None:
    with running(tmp_path, postgresql_db.uri, "-w", "2") as run:
        before = pids(tmp_path)
        (tmp_path / "script.py").write_text("raise RuntimeError('this is broken')\n")
        run.send(signal.SIGHUP)
        run.line_with("RuntimeError: this is broken")
        run.line_with("the other one ended with status 1 before it served")
        run.line_with("the reload has failed: the workers that were not replaced go on")
        assert pids(tmp_path) == before
        write(tmp_path, "mended")
        run.send(signal.SIGHUP)
        run.line_with("reloaded")


def test_settings_that_are_not_allowed_are_refused_and_nothing_is_reloaded(tmp_path: Path, sqlite_uri: str) -> None:
    (tmp_path / "run.env").write_text("")
    with running(tmp_path, sqlite_uri, "-w", "2", "--settings", "run.env") as run:
        before = pids(tmp_path)
        (tmp_path / "run.env").write_text("PYSQLX_MIN_SIZ=3\n")
        run.send(signal.SIGHUP)
        assert "did you mean PYSQLX_MIN_SIZE?" in run.line_with("nothing is reloaded")
        code, _, errors = ctl(tmp_path, "reload")
        assert (code, "did you mean PYSQLX_MIN_SIZE?" in errors) == (1, True)
        assert pids(tmp_path) == before


def test_the_only_worker_without_a_coordinator_ends_before_the_next_one_begins(tmp_path: Path, sqlite_uri: str) -> None:
    with running(tmp_path, sqlite_uri, "-w", "1") as run:
        (before,) = pids(tmp_path).values()
        write(tmp_path, "two")
        run.send(signal.SIGHUP)
        new = int(run.line_with(" two ").split()[-2])
        assert before not in run.pids()
        assert list(pids(tmp_path).values()) == [new]
        code, _, errors = ctl(tmp_path, "scale", "2")
        assert (code, "start it with --coordinator" in errors) == (1, True)
        code, _, errors = ctl(tmp_path, "resize", "5")
        assert (code, "this run has no coordinator" in errors) == (1, True)


def test_a_terminal_that_is_closed_ends_the_run(tmp_path: Path, sqlite_uri: str) -> None:
    script = write(tmp_path, "one")
    environment = run_environment(tmp_path, {"PYSQLX_URI": sqlite_uri})
    child, terminal = pty.fork()
    if not child:
        os.chdir(tmp_path)
        os.execvpe(COMMAND[0], [*COMMAND, "-w", "2", "--log-file", "log", script], environment)
    log = tmp_path / "log"
    while not log.exists() or log.read_text().count(" one ") < 2:
        time.sleep(0.01)
    os.close(terminal)
    _, state = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(state) == 0, log.read_text()
    assert "reload" not in log.read_text()


def test_a_worker_that_dies_as_soon_as_it_has_a_pool_ends_the_reload(tmp_path: Path, postgresql_db: Database) -> None:
    with running(tmp_path, postgresql_db.uri, "-w", "2") as run:
        before = pids(tmp_path)
        (tmp_path / "script.py").write_text(
            "import os\nfrom pysqlx_engine import PySQLXEnginePoolSync\nfrom pysqlx_engine.pool import registry\n"
            "registry.on_first_start.append(lambda: os._exit(7))\n"
            "PySQLXEnginePoolSync(min_size=1).start()\n"
        )
        run.send(signal.SIGHUP)
        run.line_with("the other one ended with status 7 before it served")
        run.line_with("the reload has failed")
        assert pids(tmp_path) == before


def test_a_dump_does_a_script_no_harm_that_has_replaced_its_stderr(tmp_path: Path, sqlite_uri: str) -> None:
    with running(tmp_path, sqlite_uri, "-w", "2") as run:
        (tmp_path / "script.py").write_text(
            "import io, sys\nsys.stderr = io.StringIO()\n" + WORKS.replace("VERSION", "two").replace("THREADS", "1")
        )
        run.send(signal.SIGHUP)
        run.line_with("reloaded")
        run.send(signal.SIGUSR2)
        for _ in range(2):
            run.line_with("pool pool-1: ")
        write(tmp_path, "three")
        run.send(signal.SIGHUP)
        run.line_with("reloaded")  # they still hear what they are told


# -- more workers and fewer -------------------------------------------------------------------------------------------


def test_there_are_as_many_workers_as_people_want(tmp_path: Path, postgresql_db: Database) -> None:
    with running(tmp_path, postgresql_db.uri, "-w", "2", "--max-size", "3") as run:
        first = pids(tmp_path)
        run.send(signal.SIGTTIN)
        assert "3 workers from now on, where there were 2" in run.line()
        run.line_with("[worker 2] one ")
        code, out, _ = ctl(tmp_path, "scale", "4")
        assert (code, out) == (0, "4 workers from now on\n")
        run.line_with("[worker 3] one ")
        assert sorted(pids(tmp_path)) == [0, 1, 2, 3]
        code, out, _ = ctl(tmp_path, "drain", "1")
        assert (code, out) == (0, "worker 1 ends, and nobody takes its place\n")
        while sorted(pids(tmp_path)) != [0, 2, 3]:
            time.sleep(0.01)
        code, _, errors = ctl(tmp_path, "drain", "1")
        assert (code, "there is no worker 1; there are 0, 2, 3" in errors) == (1, True)
        assert ctl(tmp_path, "scale", "1")[0] == 0
        while pids(tmp_path) != {0: first[0]}:
            time.sleep(0.01)
        run.send(signal.SIGTTOU)
        run.line_with("0 workers: it has to be from 1 to 4096; TERM ends the run")
        code, _, errors = ctl(tmp_path, "drain", "0")
        assert (code, "is the only one" in errors) == (1, True)
        ctl(tmp_path, "scale", "2")
        run.line_with("[worker 1] one ")


def test_a_run_that_began_with_one_worker_can_have_more_where_there_is_a_coordinator(
    tmp_path: Path, postgresql_db: Database
) -> None:
    with running(tmp_path, postgresql_db.uri, "-w", "1", "--coordinator", "--max-size", "2") as run:
        assert ctl(tmp_path, "scale", "3")[0] == 0
        for _ in range(2):
            run.line_with(" one ")
        (budget,) = status(tmp_path)["budgets"]
        assert budget["size"] == 2


# -- the budget -------------------------------------------------------------------------------------------------------


def test_another_budget_is_kept_from_now_on_also_by_the_next_coordinator(
    tmp_path: Path, postgresql_db: Database
) -> None:
    with (
        running(tmp_path, postgresql_db.uri, "-w", "2", "--max-size", "6", threads=4) as run,
        postgresql_db.sampler("pysqlx") as sample,
    ):
        while sample() < 6:
            time.sleep(0.01)
        code, out, _ = ctl(tmp_path, "resize", "2")
        assert (code, out.startswith("the budget of each database is 2 from now on")) == (0, True)
        while sample() > 2:
            time.sleep(0.01)
        assert max(sample() for _ in range(200)) == 2
        os.kill(run.pid_titled("pysqlx-run: coordinator"), signal.SIGKILL)
        run.line_with("coordinator was ended by signal 9")
        code, out, _ = ctl(tmp_path, "status", "--json")
        while code:
            code, out, _ = ctl(tmp_path, "status", "--json")
        assert json.loads(out)["budgets"][0]["size"] == 2
        assert max(sample() for _ in range(200)) <= 2
        ctl(tmp_path, "resize", "5")
        while sample() < 5:
            time.sleep(0.01)
        assert max(sample() for _ in range(200)) == 5
        for size in ("0", "100001"):
            code, _, errors = ctl(tmp_path, "resize", size)
            assert (code, f"a budget of {size}: it has to be from 1 to 100000" in errors) == (1, True)
        assert status(tmp_path)["budgets"][0]["size"] == 5


def test_a_coordinator_alone_takes_another_size_and_has_no_workers(tmp_path: Path) -> None:
    with coordinating(tmp_path, "--max-size", "5"):
        assert ctl(tmp_path, "resize", "7")[0] == 0
        code, _, errors = ctl(tmp_path, "scale", "3")
        assert (code, "is a coordinator alone" in errors) == (1, True)


def test_a_recall_closes_every_connection_and_new_ones_take_their_place(
    tmp_path: Path, postgresql_db: Database
) -> None:
    with (
        running(tmp_path, postgresql_db.uri, "-w", "2", "--max-size", "4"),
        PySQLXEngineSync(postgresql_db.uri) as look,
    ):

        def sessions() -> set[int]:
            rows = look.query_as_dict(
                "SELECT pid FROM pg_stat_activity "
                "WHERE application_name LIKE 'pysqlx%' AND datname = current_database()"
            )
            return {row["pid"] for row in rows}

        while len(before := sessions()) < 4:
            time.sleep(0.01)
        assert ctl(tmp_path, "recall")[0] == 0
        while before & (now := sessions()) or len(now) < 4:
            time.sleep(0.01)


# -- the log ----------------------------------------------------------------------------------------------------------


def test_the_log_file_is_opened_anew_after_it_was_moved_away(tmp_path: Path, sqlite_uri: str) -> None:
    script = write(tmp_path, "one")
    log = tmp_path / "run.log"
    with started(tmp_path, "-w", "2", "--log-file", "run.log", script, PYSQLX_URI=sqlite_uri) as run:
        while not log.exists() or log.read_text().count(" one ") < 2:
            time.sleep(0.01)
        log.rename(tmp_path / "run.log.1")
        run.send(signal.SIGUSR1)
        while not log.exists():
            time.sleep(0.01)
        write(tmp_path, "two")
        run.send(signal.SIGHUP)
        while "reloaded" not in log.read_text():
            time.sleep(0.01)
        assert log.read_text().count(" two ") == 2
        assert " two " not in (tmp_path / "run.log.1").read_text()
        run.send(signal.SIGTERM)
        assert run.wait() == 0
        assert run.rest() == []


def test_a_dump_tells_of_everybody(tmp_path: Path, sqlite_uri: str) -> None:
    quiet = ("--log-level", "supervisor=warning,coordinator=error")  # what somebody asks for is said all the same
    with running(tmp_path, sqlite_uri, "-w", "2", *quiet) as run:
        run.send(signal.SIGUSR1)
        run.line_with("USR1: there is no log file to open anew")
        run.send(signal.SIGUSR2)
        wanted = ["state of the run", "coordinator (", "worker 0 (", "worker 1 (", '"size": 10', "pool ", "in work"]
        while wanted:
            line = run.line_with("")
            wanted = [text for text in wanted if text not in line]


# -- development ------------------------------------------------------------------------------------------------------


def test_in_development_a_change_is_enough_and_a_broken_script_waits_for_the_next(
    tmp_path: Path, sqlite_uri: str
) -> None:
    with running(tmp_path, sqlite_uri, "-w", "1", "--reload") as run:
        write(tmp_path, "two")
        run.line_with("script.py has changed")
        run.line_with(" two ")
        (tmp_path / "script.py").write_text("this is no Python\n")
        run.line_with("it is started again when a file has changed")
        write(tmp_path, "three")
        run.line_with(" three ")
        (tmp_path / "script.py").unlink()  # as an editor does that puts a new file in its place
        write(tmp_path, "four")
        run.line_with(" four ")
        (tmp_path / "notes.txt").write_text("nobody's business")
        (tmp_path / "module.py").touch()
        run.line_with("module.py has changed")
        run.line_with(" four ")


def test_in_development_the_settings_file_is_looked_at_too_also_when_another_takes_its_place(
    tmp_path: Path, sqlite_uri: str
) -> None:
    (tmp_path / "conf").mkdir()
    settings = tmp_path / "conf" / "run.env"
    settings.write_text("PYSQLX_MIN_SIZE=1\n")
    directory = tmp_path / "app"
    directory.mkdir()
    options = ("-w", "1", "--reload", "--settings", "../conf/run.env")
    with running(directory, sqlite_uri, *options) as run:
        for size in ("0", "2"):
            (tmp_path / "conf" / "new").write_text(f"PYSQLX_MIN_SIZE={size}\n")
            (tmp_path / "conf" / "new").rename(settings)
            run.line_with("run.env has changed")
            assert run.line_with(" one ").endswith(f" {size}")


def test_a_script_that_cannot_begin_waits_for_a_change_from_the_start(tmp_path: Path, sqlite_uri: str) -> None:
    (tmp_path / "script.py").write_text("import a_module_that_is_not_there\n")
    with started(tmp_path, "-w", "1", "--reload", "script.py", PYSQLX_URI=sqlite_uri) as run:
        run.line_with("it is started again when a file has changed")
        write(tmp_path, "one")
        run.line_with(" one ")
        run.send(signal.SIGTERM)
        run.rest()
        assert run.wait() == 0


def test_without_watchfiles_a_reload_says_what_to_install(tmp_path: Path, sqlite_uri: str) -> None:
    hidden = [sys.executable, "-c", "import importlib.util as u; f = u.find_spec\n"
              "u.find_spec = lambda name, *more: None if name == 'watchfiles' else f(name, *more)\n"
              "from pysqlx_engine.workers import run; raise SystemExit(run.main())"]  # fmt: skip
    with started(tmp_path, "--reload", write(tmp_path, "one"), command=hidden, PYSQLX_URI=sqlite_uri) as run:
        assert "pip install 'pysqlx-engine[reload]'" in run.rest()[0]
        assert run.wait() == 2
