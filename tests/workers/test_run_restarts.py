"""Which workers `pysqlx-run` starts again, and when the run ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from .runs import JOINS_ANOTHER, finished, started, wait_gone

COUNT = (
    "import os, pathlib, sys\n"
    "restarts = int(os.environ['PYSQLX_WORKER_RESTARTS'])\n"
    "print('start', restarts, flush=True)\n"
)


def script(directory: Path, text: str) -> str:
    (directory / "script.py").write_text(COUNT + text)
    return "script.py"


def test_a_script_that_fails_is_started_again_until_it_ends_with_0(tmp_path: Path):
    name = script(tmp_path, "sys.exit(5 if restarts < 2 else 0)")
    status, out, err = finished(tmp_path, name)
    assert (status, out) == (0, [f"[worker 0] start {number}" for number in range(3)])
    assert [line.split(";")[0] for line in err] == ["pysqlx-run: worker 0 ended with status 5"] * 2


def test_a_failure_is_seen_where_chld_was_ignored_at_the_start(tmp_path: Path):
    script(
        tmp_path,
        "import subprocess\n"
        "print('its own child ended with', subprocess.run(['false']).returncode)\n"
        "sys.exit(5 if restarts == 0 else 0)",
    )
    (tmp_path / "outer.py").write_text(
        "import signal, subprocess, sys\n"
        "command = [sys.executable, '-m', 'pysqlx_engine.workers.run', '--no-prefix', 'script.py']\n"
        "ignore = lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "sys.exit(subprocess.run(command, preexec_fn=ignore).returncode)\n"
    )
    status, out, err = finished(tmp_path, "--no-prefix", "--restart", "never", "outer.py")
    assert [line.split(";")[0] for line in err] == ["pysqlx-run: worker 0 ended with status 5"]
    assert out == ["start 0", "its own child ended with 1", "start 1", "its own child ended with 1"]
    assert status == 0


def test_with_never_a_script_that_fails_stays_ended_and_the_others_go_on(tmp_path: Path):
    name = script(
        tmp_path,
        "import time\n"
        "mark = pathlib.Path('failed')\n"
        "if os.environ['PYSQLX_WORKER_ID'] == '0':\n"
        "    mark.touch(); sys.exit(1)\n"
        "while not mark.exists():\n"
        "    time.sleep(0.01)\n"
        "print('went on')\n",
    )
    arguments = ("-w", "2", "--restart", "never", name)
    status, out, _ = finished(tmp_path, *arguments, PYSQLX_COORDINATOR=JOINS_ANOTHER)
    assert status == 1
    assert sorted(out) == ["[worker 0] start 0", "[worker 1] start 0", "[worker 1] went on"]


def test_with_always_a_script_that_ended_well_is_started_again(tmp_path: Path):
    with started(tmp_path, "--restart", "always", script(tmp_path, "")) as run:
        run.line_with("start 2")
        run.send(signal.SIGTERM)
        assert run.wait() == 0


def test_a_drain_while_a_worker_waits_for_its_restart_ends_with_0(tmp_path: Path):
    with started(tmp_path, script(tmp_path, "sys.exit(1)")) as run:
        while float(run.line_with("starting it again").split()[-2]) < 0.5:
            pass
        run.send(signal.SIGTERM)
        assert run.rest() == []
        assert run.wait() == 0


def test_a_worker_that_is_killed_comes_back_alone(tmp_path: Path):
    name = script(tmp_path, "import time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(60)")
    with started(tmp_path, "-w", "2", name, PYSQLX_COORDINATOR=JOINS_ANOTHER) as run:
        lines = [run.line_with("pid"), run.line_with("pid")]
        pids = {line[8]: int(line.split()[-1]) for line in lines}
        os.kill(pids["0"], signal.SIGKILL)
        assert run.line_with("ended by").startswith("pysqlx-run: worker 0 was ended by signal 9 (SIGKILL); starting")
        assert run.line_with("start").endswith("start 1")
        again = run.line_with("pid")
        assert again.startswith("[worker 0] ")
        assert int(again.split()[-1]) != pids["0"]
        os.kill(pids["1"], 0)
        run.send(signal.SIGTERM)
        assert run.wait() == 0


def test_workers_that_end_while_others_are_started_are_seen_to_end(tmp_path: Path):
    """What is beyond a pipe's 64 KiB makes each start wait until the child reads, so the first end before the last."""
    name = script(tmp_path, "sys.exit(1 if os.environ['PYSQLX_WORKER_ID'] == '0' and not restarts else 0)")
    large = "x" * 100_000
    status, out, err = finished(
        tmp_path, "-w", "12", "--log-level", "supervisor=warning", name, large, large, PYSQLX_COORDINATOR=JOINS_ANOTHER
    )
    assert status == 0
    assert sorted(out) == sorted([f"[worker {number}] start 0" for number in range(12)] + ["[worker 0] start 1"])
    assert [line.split(";")[0] for line in err] == ["pysqlx-run: worker 0 ended with status 1"]


def test_what_a_killed_worker_had_started_ends_with_it(tmp_path: Path):
    name = script(
        tmp_path,
        "import subprocess, time\n"
        "if restarts == 0:\n"
        "    child = subprocess.Popen(['sleep', '60'])\n"
        "    print('pids', os.getpid(), child.pid, flush=True)\n"
        "    time.sleep(60)\n",
    )
    with started(tmp_path, name) as run:
        worker, child = (int(word) for word in run.line_with("pids").split()[-2:])
        os.kill(worker, signal.SIGKILL)
        wait_gone([worker, child])
        run.line_with("start 1")
        assert run.wait() == 0


def test_the_run_ends_although_a_script_left_a_process_with_its_output(tmp_path: Path):
    name = script(tmp_path, "import subprocess\nprint(subprocess.Popen(['sleep', '60'], start_new_session=True).pid)")
    with started(tmp_path, name) as run:
        run.line_with("start")
        left = int(run.line().split()[-1])
        try:
            assert run.wait() == 0
        finally:
            os.kill(left, signal.SIGKILL)
