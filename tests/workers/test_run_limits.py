"""`pysqlx-run` under the limits of the system: it raises what it may, and says what it cannot have."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

from .runs import JOINS_ANOTHER, finished, started

SHOWS_LIMIT = "import os, resource\nprint(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
GROWS = """
import contextlib, os, pathlib, sys, time
from pysqlx_engine import PySQLXEnginePoolSync

with PySQLXEnginePoolSync(uri="sqlite:./dev.db", min_size=1, max_size=4) as pool:
    print("started", flush=True)
    while not pathlib.Path("more").exists():
        time.sleep(0.01)
    with contextlib.ExitStack() as connections:
        for _ in range(4):
            connections.enter_context(pool.connection())
        print("grown", flush=True)
"""


def script(directory: Path, text: str) -> str:
    (directory / "script.py").write_text(text)
    return "script.py"


def test_every_worker_is_started_where_the_soft_limit_is_too_low_and_scripts_keep_that_limit(tmp_path: Path):
    arguments = ("-w", "12", "--restart", "never", "--log-level", "warning", script(tmp_path, SHOWS_LIMIT))
    status, out, err = finished(tmp_path, *arguments, shell="ulimit -Sn 64")
    assert (status, err) == (0, [])
    assert sorted(out) == sorted(f"[worker {number}] 64" for number in range(12))


def test_more_workers_than_the_hard_limit_allows_is_3_and_says_what_they_need(tmp_path: Path):
    status, out, err = finished(tmp_path, "-w", "12", script(tmp_path, SHOWS_LIMIT), shell="ulimit -n 64")
    assert (status, out) == (3, [])
    assert err == [
        "pysqlx-run: -w 12 needs 122 open files, and the hard limit is 64: raise it (ulimit -n), or start fewer workers"
    ]


def test_a_worker_that_cannot_be_started_again_is_tried_later_and_the_others_go_on(tmp_path: Path):
    name = script(tmp_path, "import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(60)\n")
    with started(tmp_path, "-w", "2", name, PYSQLX_COORDINATOR=JOINS_ANOTHER) as run:
        lines = [run.line_with("pid"), run.line_with("pid")]
        pids = {line[8]: int(line.split()[-1]) for line in lines}
        supervisor = run.process.pid
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (3, 512))
        os.kill(pids["0"], signal.SIGKILL)
        line = run.line_with("could not be started")
        assert line.startswith("pysqlx-run: worker 0 could not be started: Too many open files; starting it again in ")
        run.line_with("could not be started")
        open_files = os.listdir(f"/proc/{supervisor}/fd")
        run.line_with("could not be started")
        assert os.listdir(f"/proc/{supervisor}/fd") == open_files, "an attempt left something open"
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (512, 512))
        assert run.line_with("pid").startswith("[worker 0] ")
        os.kill(pids["1"], 0)
        run.send(signal.SIGTERM)
        assert run.wait() == 0


def test_on_a_full_disk_the_run_says_so_once_and_growth_waits_until_there_is_room(tmp_path: Path):
    with started(tmp_path, "--coordinator", "--name", "full", script(tmp_path, GROWS)) as run:
        run.line_with("started")
        journal = tmp_path / "pysqlx" / "full" / "journal"
        coordinator = run.pid_titled("pysqlx-run: coordinator")
        soft, hard = resource.prlimit(coordinator, resource.RLIMIT_FSIZE)
        resource.prlimit(coordinator, resource.RLIMIT_FSIZE, (journal.stat().st_size + 10, hard))
        (tmp_path / "more").touch()
        assert run.line() == (
            f"[coordinator] WARNING pysqlx_engine: cannot write the journal in {journal.parent}: "
            "File too large; open connections go on working, growth waits until it can be written"
        )
        resource.prlimit(coordinator, resource.RLIMIT_FSIZE, (soft, hard))
        assert sorted([run.line(), run.line()]) == [
            "[coordinator] WARNING pysqlx_engine: the journal can be written again",
            "[worker 0] grown",
        ]
        assert run.rest() == []
        assert run.wait() == 0
