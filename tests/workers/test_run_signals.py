"""TERM drains, a second INT or a QUIT is at once, and nothing survives a supervisor that is killed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from .runs import JOINS_ANOTHER, Run, finished, started, wait_gone

SLEEPS = "import time\nprint('up', flush=True)\ntime.sleep(60)\n"
SLEEPS_IN_TRY = "import time\ntry:\n    print('up', flush=True)\n    time.sleep(60)\n"
SLEEPS_IN_ASYNCIO = """
import asyncio
async def main():
    try:
        print('up', flush=True)
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print('cancelled')
        raise
    finally:
        await asyncio.sleep(0)
        print('cleaned up')
asyncio.run(main())
"""
COMMITS_AT_ITS_END = """
import os, pathlib, time
try:
    print('up', os.getpid(), flush=True)
    time.sleep(60)
finally:
    print('commit begins')
    while not pathlib.Path('told again').exists():
        time.sleep(0.01)
    print('commit done')
"""
COMMITS_AT_ITS_END_IN_ASYNCIO = """
import asyncio, os, pathlib
async def main():
    try:
        print('up', os.getpid(), flush=True)
        await asyncio.sleep(60)
    finally:
        print('commit begins')
        while not pathlib.Path('told again').exists():
            await asyncio.sleep(0.01)
        print('commit done')
asyncio.run(main())
"""
HAS_A_HANDLER = """
import signal, threading
told = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: told.set())
print('up', flush=True)
told.wait()
print('own handler')
"""
IGNORES_TERM = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\n" + (
    "while True:\n    time.sleep(60)\n"
)


def script(directory: Path, text: str) -> str:
    (directory / "script.py").write_text(text)
    return "script.py"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_script_without_a_handler_gets_keyboard_interrupt_and_the_run_ends_with_0(
    tmp_path: Path, number: signal.Signals
):
    name = script(tmp_path, SLEEPS_IN_TRY + "finally:\n    print('bye')")
    with started(tmp_path, "-w", "2", name, PYSQLX_COORDINATOR=JOINS_ANOTHER) as run:
        run.line_with("up")
        run.line_with("up")
        run.send(number)
        assert sorted(run.rest()) == ["[worker 0] bye", "[worker 1] bye"]
        assert run.wait() == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_asyncio_run_cancels_its_main_task(tmp_path: Path, loop: str):
    pytest.importorskip("uvloop")
    with started(tmp_path, "--loop", loop, "--no-prefix", script(tmp_path, SLEEPS_IN_ASYNCIO)) as run:
        run.line_with("up")
        run.send(signal.SIGTERM)
        assert run.rest() == ["cancelled", "cleaned up"]
        assert run.wait() == 0


TOLD_AS_UVLOOP_MAKES_A_LOOP = """
import asyncio, os, signal, weakref
weakref.WeakValueDictionary.__init__ = lambda self: os.kill(os.getpid(), signal.SIGTERM)
asyncio.run(asyncio.sleep(0))
"""
TOLD_AS_UVLOOP_STOPS = """
import asyncio, os, signal, socket

async def main():
    socket.socket.close = lambda self: os.kill(os.getpid(), signal.SIGTERM)

asyncio.run(main())
"""
TOLD_WITH_A_TASK_THAT_CANNOT_BEGIN = """
import asyncio, gc, os, signal
from pysqlx_engine import PySQLXEnginePool

async def main():
    PySQLXEnginePool(uri='oracle://scott:sesame@db/shop', min_size=1, max_size=2)

async def interrupted():
    asyncio.create_task(main())
    await asyncio.sleep(0)

with asyncio.Runner() as runner:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        runner.run(interrupted())
        gc.collect()
"""


@pytest.mark.parametrize(
    "text", [TOLD_AS_UVLOOP_MAKES_A_LOOP, TOLD_AS_UVLOOP_STOPS, TOLD_WITH_A_TASK_THAT_CANNOT_BEGIN]
)
def test_of_what_a_term_leaves_half_done_in_asyncio_nothing_is_said(tmp_path: Path, text: str):
    pytest.importorskip("uvloop")
    assert finished(tmp_path, "--loop", "uvloop", script(tmp_path, text)) == (0, [], [])


LISTENS_IN_ASYNCIO = """
import asyncio, signal

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    print("up", flush=True)
    await stop.wait()
    print("told", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_script_that_listens_for_int_in_its_loop_is_told(tmp_path: Path, loop: str):
    pytest.importorskip("uvloop")
    with started(tmp_path, "--loop", loop, "--no-prefix", script(tmp_path, LISTENS_IN_ASYNCIO)) as run:
        run.line_with("up")
        run.send(signal.SIGTERM)
        assert run.rest() == ["told"]
        assert run.wait() == 0


@pytest.mark.parametrize("text", [COMMITS_AT_ITS_END, COMMITS_AT_ITS_END_IN_ASYNCIO], ids=["plain", "async"])
def test_a_term_to_the_worker_too_leaves_the_script_the_time_for_its_end(tmp_path: Path, text: str):
    """systemd sends it to every process of the service."""
    with started(tmp_path, "--no-prefix", script(tmp_path, text)) as run:
        worker = int(run.line_with("up").split()[-1])
        run.send(signal.SIGTERM)
        run.line_with("commit begins")
        os.kill(worker, signal.SIGTERM)
        (tmp_path / "told again").touch()
        assert run.rest() == ["commit done"]
        assert run.wait() == 0


def test_a_drain_works_where_int_was_ignored_at_the_start(tmp_path: Path):
    script(tmp_path, SLEEPS_IN_ASYNCIO)
    (tmp_path / "outer.py").write_text(
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "run = subprocess.Popen([sys.executable, '-m', 'pysqlx_engine.workers.run', 'script.py'], stdout=-1)\n"
        "run.stdout.readline(); run.terminate(); print(run.stdout.read().decode().split(), run.wait())\n"
    )
    with started(tmp_path, "--no-prefix", "outer.py") as run:
        assert run.rest() == ["['[worker', '0]', 'cancelled', '[worker', '0]', 'cleaned', 'up'] 0"]


def test_a_scripts_own_handler_runs_instead(tmp_path: Path):
    with started(tmp_path, "--no-prefix", script(tmp_path, HAS_A_HANDLER)) as run:
        run.line_with("up")
        run.send(signal.SIGTERM)
        assert run.rest() == ["own handler"]
        assert run.wait() == 0


def test_a_script_that_fails_while_it_is_drained_makes_the_run_fail(tmp_path: Path):
    text = SLEEPS_IN_TRY + "except KeyboardInterrupt:\n    1 / 0"
    with started(tmp_path, script(tmp_path, text)) as run:
        run.line_with("up")
        run.send(signal.SIGTERM)
        assert "[worker 0] ZeroDivisionError: division by zero" in run.rest()
        assert run.wait() == 1


def test_what_runs_on_after_the_graceful_timeout_is_killed_and_the_run_fails(tmp_path: Path):
    with started(tmp_path, "--graceful-timeout", "0.3", script(tmp_path, IGNORES_TERM)) as run:
        run.line_with("up")
        run.send(signal.SIGTERM)
        assert run.rest() == ["pysqlx-run: worker 0 has not ended in time: killing it"]
        assert run.wait() == 1


def test_a_graceful_timeout_of_months_is_as_good_as_none(tmp_path: Path):
    with started(tmp_path, "--graceful-timeout", "3000000", script(tmp_path, HAS_A_HANDLER)) as run:
        run.line_with("up")
        run.send(signal.SIGTERM)
        assert run.rest() == ["[worker 0] own handler"]
        assert run.wait() == 0


def test_one_int_waits_and_the_second_kills_at_once(tmp_path: Path):
    with started(tmp_path, script(tmp_path, HAS_A_HANDLER + "import time\ntime.sleep(60)\n")) as run:
        run.line_with("up")
        run.send(signal.SIGINT)
        run.line_with("own handler")
        assert run.process.poll() is None
        run.send(signal.SIGINT)
        assert run.wait() == 1


def test_quit_kills_at_once(tmp_path: Path):
    with started(tmp_path, script(tmp_path, IGNORES_TERM)) as run:
        run.line_with("up")
        run.send(signal.SIGQUIT)
        assert run.wait() == 1


def test_an_int_of_the_terminal_reaches_the_supervisor_only(tmp_path: Path):
    """The terminal sends it to the whole foreground process group."""
    text = "import signal\nsignal.signal(signal.SIGINT, lambda *_: print('INT'))\n" + SLEEPS
    with started(tmp_path, "--graceful-timeout", "0.3", "--no-prefix", script(tmp_path, text)) as run:
        run.line_with("up")
        os.killpg(run.process.pid, signal.SIGINT)
        # The drain calls the INT handler once, as a TERM would; the terminal's own INT would make it two.
        assert run.rest().count("INT") == 1


def test_an_int_before_the_run_has_begun_ends_it_without_a_traceback(tmp_path: Path):
    os.mkfifo(tmp_path / "slow.env")
    with started(tmp_path, "--settings", "slow.env", script(tmp_path, SLEEPS)) as run:
        with open(tmp_path / "slow.env", "w"):  # opened when the run has begun to read it
            run.send(signal.SIGINT)
            assert run.wait() == -signal.SIGINT
        assert run.rest() == []


def test_a_term_while_workers_start_ends_them_cleanly(tmp_path: Path):
    name = script(tmp_path, SLEEPS)
    with started(tmp_path, "-w", "3", name, PYSQLX_COORDINATOR=JOINS_ANOTHER) as run:
        run.line_with("up")  # the others are just being started
        run.send(signal.SIGTERM)
        assert not any("Traceback" in line for line in run.rest())
        assert run.wait() == 0


def test_nothing_is_left_when_the_supervisor_is_killed(tmp_path: Path):
    name = script(tmp_path, IGNORES_TERM)
    with started(tmp_path, "-w", "3", name, PYSQLX_COORDINATOR=JOINS_ANOTHER) as run:
        for _ in range(3):
            run.line_with("up")
        pids = run.pids()
        assert len(pids) >= 4
        run.send(signal.SIGKILL)
        wait_gone(pids)


def test_a_killed_runs_name_can_be_taken_again(tmp_path: Path):
    name = script(tmp_path, SLEEPS)
    for _ in range(2):
        with started(tmp_path, "--name", "shop", name) as run:
            run.line_with("up")
            pids = run.pids()
            run.send(signal.SIGKILL)
            wait_gone(pids)


@pytest.mark.parametrize("arguments", [[], ["--graceful-timeout", "0.3"]], ids=["drains", "kills"])
def test_output_that_nobody_reads_holds_up_the_script_but_not_the_supervisor(tmp_path: Path, arguments: list[str]):
    text = IGNORES_TERM if arguments else SLEEPS
    text = text.replace(
        "print('up', flush=True)", "import sys\nprint('up', file=sys.stderr)\nwhile True: print('x' * 999)"
    )
    with started(tmp_path, *arguments, script(tmp_path, text), stderr=subprocess.PIPE) as run:
        assert run.process.stderr is not None
        assert run.process.stderr.readline() == b"[worker 0] up\n"
        wait_full(run)
        run.send(signal.SIGTERM)
        assert run.wait() == (1 if arguments else 0)


def wait_full(run: Run) -> None:
    """Wait until nothing more goes into the pipe that is the run's stdout.

    How many bytes it takes before that depends on how the writes fill its pages, so it is full when it has not grown
    for a while.
    """
    assert run.process.stdout is not None
    pipe = run.process.stdout.fileno()
    deadline = time.monotonic() + 15
    seen, unchanged = 0, 0
    while unchanged < 15:
        assert time.monotonic() < deadline, "the output never came to a halt"
        time.sleep(0.02)
        before, seen = seen, int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4), sys.byteorder)
        unchanged = unchanged + 1 if seen == before and seen > 0 else 0
