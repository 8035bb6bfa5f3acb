"""Whether a run is well: for probes, and for systemd."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysqlx_engine.workers.systemd import Systemd

from .runs import coordinating, ctl, started

WAITS_FOR_A_FILE = """
import pathlib, threading, time
from pysqlx_engine import PySQLXEnginePoolSync
while not pathlib.Path("go").exists():
    time.sleep(0.01)
with PySQLXEnginePoolSync(min_size=1) as pool:
    print("up", flush=True)
    threading.Event().wait()
"""


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receives:
        receives.bind(str(tmp_path / "notify"))
        receives.settimeout(20)
        yield receives


def heard(systemd: socket.socket, what: str) -> str:
    """The next message with this in it."""
    while what not in (text := systemd.recv(4096).decode()):
        pass
    return text


def script(directory: Path) -> str:
    (directory / "script.py").write_text(WAITS_FOR_A_FILE)
    return "script.py"


def test_a_run_is_ready_when_every_worker_is_up(tmp_path: Path, sqlite_uri: str) -> None:
    (tmp_path / "go").touch()
    with started(tmp_path, "-w", "2", "--name", "api", script(tmp_path), PYSQLX_URI=sqlite_uri) as run:
        for _ in range(2):
            run.line_with("up")
        code, out, _ = ctl(tmp_path, "health")
        assert (code, out) == (0, "run api: 2 of 2 workers are up\n")
        (tmp_path / "go").unlink()
        os.kill(run.pid_titled("worker 1"), signal.SIGKILL)
        run.line_with("starting it again")
        code, out, errors = ctl(tmp_path, "health", "--json")
        assert (code, errors) == (1, "pysqlx-ctl: the run api is not ready\n")
        assert json.loads(out) == {"ready": False, "workers": 2, "up": 1, "coordinator": True, "supervisor": True}
        assert ctl(tmp_path, "health", "--live")[0] == 0
        (tmp_path / "go").touch()
        run.line_with("[worker 1] up")
        assert ctl(tmp_path, "health")[0] == 0
        run.send(signal.SIGTERM)
        run.rest()
    assert ctl(tmp_path, "health", "--live")[0] == 1


def test_a_coordinator_alone_is_ready_when_it_answers(tmp_path: Path) -> None:
    with coordinating(tmp_path):
        assert ctl(tmp_path, "health")[:2] == (0, "run default: the coordinator answers\n")


def test_systemd_hears_that_it_is_ready_alive_reloads_and_ends(
    tmp_path: Path, sqlite_uri: str, systemd: socket.socket
) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
    with started(tmp_path, "-w", "2", script(tmp_path), PYSQLX_URI=sqlite_uri, **environment) as run:
        assert heard(systemd, "STATUS") == "STATUS=0 of 2 workers"
        for _ in range(3):
            heard(systemd, "WATCHDOG=1")
        (tmp_path / "go").touch()
        assert heard(systemd, "READY=1") == "READY=1\nSTATUS=2 of 2 workers"
        for pid in run.pids():
            if pid != run.process.pid:
                assert b"NOTIFY_SOCKET=/" not in Path(f"/proc/{pid}/environ").read_bytes()
        run.send(signal.SIGHUP)
        assert heard(systemd, "RELOADING=1").startswith("RELOADING=1\nMONOTONIC_USEC=")
        heard(systemd, "READY=1")
        run.send(signal.SIGTERM)
        heard(systemd, "STOPPING=1")
        run.rest()
        assert run.wait() == 0


def test_a_watchdog_of_another_process_and_no_systemd_are_nothing() -> None:
    nobody = Systemd({"WATCHDOG_USEC": "1000000"})
    assert nobody.due is None
    nobody.alive()
    nobody.stopping()
    another = Systemd({"NOTIFY_SOCKET": "/nonexistent", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"})
    assert another.due is None
    another.status("nobody reads this", ready=True)
    another.close()
    begin = time.monotonic()
    ours = Systemd({"NOTIFY_SOCKET": "@pysqlx-nobody", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": f"{os.getpid()}"})
    ours.alive()
    assert ours.due is not None
    assert begin + 0.5 <= ours.due <= time.monotonic() + 0.5
    ours.close()


def test_a_worker_whose_script_has_come_to_its_end_is_not_missed(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, threading\n"
        "print('up', flush=True)\n"
        "if os.environ['PYSQLX_WORKER_ID'] == '0': threading.Event().wait()\n"
    )
    with started(tmp_path, "-w", "2", "--name", "api", "script.py") as run:
        while ctl(tmp_path, "health")[:2] != (0, "run api: 1 of 1 workers are up\n"):
            pass
        run.send(signal.SIGTERM)
        run.rest()
        assert run.wait() == 0


def test_before_the_workers_are_started_a_run_is_not_ready_and_takes_no_orders(tmp_path: Path) -> None:
    slow = "import time, pysqlx_engine.workers.coordinator as c; s = c.serve\n"
    (tmp_path / "sitecustomize.py").write_text(
        f"import os\nif os.path.exists('slow'):\n    import sys\n    {slow.strip()}\n"
        "    def serve(*a):\n"
        "        while os.path.exists('slow'):\n"
        "            time.sleep(0.01)\n"
        "        s(*a)\n"
        "    c.serve = serve\n"
    )
    (tmp_path / "slow").touch()
    (tmp_path / "script.py").write_text("import threading\nprint('up', flush=True)\nthreading.Event().wait()\n")
    with started(tmp_path, "-w", "2", "--name", "api", "script.py", PYTHONPATH=str(tmp_path)) as run:
        while "still starting" not in (answer := ctl(tmp_path, "scale", "3"))[2]:
            assert answer[0] == 1
        assert ctl(tmp_path, "health")[:2] == (1, "run api: 0 of 2 workers are up\n")
        (tmp_path / "slow").unlink()
        for _ in range(2):
            run.line_with("up")
        run.send(signal.SIGTERM)
        run.rest()
        assert run.wait() == 0
