"""What stands in where the system lacks something: forced here, because all of it is there on Linux.

What is forced is what macOS gets; nothing here shows what else is different there. See docs/platforms.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
import zmq.utils.monitor

from pysqlx_engine import system
from pysqlx_engine.workers.control import ask
from pysqlx_engine.workers.control_pair import control_pair
from pysqlx_engine.workers.deaths import Deaths, deaths
from pysqlx_engine.workers.jobs.hints import Listener, _address, _new_socket
from pysqlx_engine.workers.polling import Looker
from tests.jobs.test_runs import running
from tests.servers import Database

from .runs import finished, run_environment, started, wait_gone
from .test_control import answering

TIMEOUT = 20.0
CAN_BE_MISSED = [facility.name for facility in system.FACILITIES if facility.name != "posix"]
ALL = ",".join(CAN_BE_MISSED)
HAVE_A_PART = ["pidfd", "pdeathsig", "seqpacket", "proc", "ipc"]
"""In a run that ends by itself, without jobs, and which nobody asks."""

ENDS = """
from pysqlx_engine import PySQLXEnginePoolSync
with PySQLXEnginePoolSync(uri="sqlite:./dev.db", min_size=1, max_size=2) as pool, pool.connection() as conn:
    print("got", conn.query_first("SELECT 7 AS a").a)
"""
# In its first life worker 0 has a child of its own.
HOLDS = """
import os, subprocess, sys, time
from pysqlx_engine import PySQLXEnginePoolSync
child = 0
if (os.environ.get("PYSQLX_WORKER_ID"), os.environ.get("PYSQLX_WORKER_RESTARTS")) == ("0", "0"):
    child = subprocess.Popen(["sleep", "60"]).pid
with PySQLXEnginePoolSync(uri=sys.argv[1], min_size=1, max_size=3, conn_timeout=15) as pool, pool.connection() as conn:
    conn.query_first("SELECT 1 AS a")
    print("up", os.getpid(), child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def force(names: str) -> None:
        monkeypatch.setenv(system.WITHOUT, names)
        system.has.cache_clear()

    yield force
    system.has.cache_clear()


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_without_any_one_of_them_shares_a_budget_and_ends_well(tmp_path: Path) -> None:
    def run(facility: str) -> tuple[int, list[str], list[str]]:
        directory = tmp_path / facility
        directory.mkdir()
        (directory / "script.py").write_text(ENDS)
        return finished(directory, "-w", "2", "--no-prefix", "script.py", PYSQLX_WITHOUT=facility)

    with ThreadPoolExecutor(2) as two:
        results = dict(zip(HAVE_A_PART, two.map(run, HAVE_A_PART), strict=True))
    assert results == dict.fromkeys(HAVE_A_PART, (0, ["got 7", "got 7"], []))


def test_a_run_without_all_of_them_notices_deaths_and_gives_leases_back(tmp_path: Path, postgresql_uri: str) -> None:
    (tmp_path / "script.py").write_text(HOLDS)
    arguments = ("-w", "2", "--name", "shop", "script.py", postgresql_uri)
    with started(tmp_path, *arguments, PYSQLX_WITHOUT=ALL) as run:
        first = {line[8]: [int(word) for word in line.split()[-2:]] for line in (run.line_with("up") for _ in range(2))}
        directory = tmp_path / "pysqlx" / "shop"

        # Who is not of the run needs the keys, and only the run's user can have them.
        address, keys = (directory / "address").read_text(), directory / "client.keys"
        assert address.startswith("tcp://127.0.0.1:")
        assert [path.stat().st_mode & 0o777 for path in (directory, keys, directory / "coordinator.keys")] == [
            0o700, 0o600, 0o600,
        ]  # fmt: skip
        assert handshake(address) & zmq.Event.HANDSHAKE_FAILED_PROTOCOL

        environment = {"PYSQLX_COORDINATOR": address, "PYSQLX_CURVE_KEYS": str(keys), "PYSQLX_WITHOUT": ALL}
        with joined(tmp_path, postgresql_uri, environment) as foreign:
            assert leases(directory).keys() == {*(pid for pid, _ in first.values()), foreign.pid}
            foreign.kill()
            until(lambda: foreign.pid not in leases(directory))

        worker, its_child = first["0"]
        os.kill(worker, signal.SIGKILL)
        assert run.line_with("ended by").startswith("pysqlx-run: worker 0 was ended by signal 9 (SIGKILL); starting")
        again = int(run.line_with("[worker 0] up").split()[-2])
        wait_gone([its_child])
        now = {again: 1, first["1"][0]: 1}
        until(lambda: leases(directory) == now)
        until(lambda: charged(directory) == 2)

        os.kill(run.pid_titled("pysqlx-run: coordinator"), signal.SIGKILL)
        run.line_with("coordinator was ended by signal 9")
        until(lambda: leases(directory) == now)
        run.send(signal.SIGTERM)
        assert run.wait() == 0


def test_a_queue_without_all_of_them_knows_why_a_worker_is_gone_and_a_killed_supervisor_leaves_nobody(
    tmp_path: Path, sqlite_db: Database, without: Callable[[str], None]
) -> None:
    without(ALL)  # who enqueues tells the dispatcher
    with running(tmp_path, sqlite_db, "-w", "2", "--restart", "never", PYSQLX_WITHOUT=ALL) as (run, jobs):
        (id_,) = jobs.add("waits", name="go")
        pid = int(run.line_with("begun go 1").split()[-1])
        os.kill(pid, signal.SIGKILL)
        assert int(run.line_with("begun go 2").split()[-1]) != pid
        (tmp_path / "go").touch()
        (row,) = jobs.ended(id_)
        assert (row["state"], row["attempt"]) == ("completed", 2)
        assert jobs.errors() == ["its worker was ended by signal 9 (SIGKILL), perhaps out of memory"]
        pids = run.pids()
        assert {run.pid_titled(title) for title in ("coordinator", "dispatcher", "worker")} < set(pids)
        run.send(signal.SIGKILL)
        wait_gone(pids)


def joined(directory: Path, uri: str, environment: dict[str, str]) -> Any:
    command = [sys.executable, "script.py", uri]
    process = subprocess.Popen(
        command, cwd=directory, env=run_environment(directory, environment), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("up")
    return process


def status(directory: Path) -> dict[str, Any]:
    return ask(directory / "control.sock", {"op": "status"}, TIMEOUT)


def leases(directory: Path) -> dict[int, int]:
    return {worker["pid"]: worker["leases"] for worker in status(directory)["workers"]}


def charged(directory: Path) -> int:
    """With those of the dead."""
    (budget,) = status(directory)["budgets"]
    return int(budget["leased"]) + int(budget["quarantined"])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while True:
        with suppress(OSError):  # nobody answers while the coordinator is away
            if condition():
                return
        assert time.monotonic() < deadline, "it never happened"


def handshake(address: str) -> int:
    """What becomes of a connection without keys."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        failed = zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_AUTH
        with stranger.get_monitor_socket(failed | zmq.Event.HANDSHAKE_SUCCEEDED) as monitor:
            stranger.connect(address)
            assert monitor.poll(TIMEOUT * 1000)
            event: int = zmq.utils.monitor.recv_monitor_message(monitor)["event"]
            stranger.disable_monitor()
            return event


# -- each of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["", "pidfd", "pidfd,proc"])
def test_the_death_of_a_process_is_told_once_it_is_watched(without: Callable[[str], None], names: str) -> None:
    without(names)
    told: Deaths[str] = deaths()
    with closing(told), sleeper() as process, sleeper() as other:
        start = system.start_time(process.pid)
        assert start is not None
        assert not told.watch("another of that pid", process.pid, start + 1)
        assert told.watch("it", process.pid, start)
        assert told.watch("our child", other.pid)
        assert told.dead() == []
        for number, (child, key) in enumerate(((process, "it"), (other, "our child"))):
            child.kill()  # nobody waits for it here: to us it is dead all the same
            assert select.select([told], [], [], TIMEOUT)[0], number
            assert told.dead() == [key]
            told.forget(key)
        assert not told.watch("it", process.pid, start)


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"])


@pytest.mark.parametrize("names", ["", "seqpacket"])
def test_messages_arrive_whole_and_in_order_and_then_the_end(without: Callable[[str], None], names: str) -> None:
    without(names)
    one, other = control_pair()
    with one, other:
        one.setblocking(False)
        accepted = 0
        with suppress(BlockingIOError):
            while one.send(b"%d " % accepted + b"x" * 1000):
                accepted += 1
        assert accepted > 10
        other.setblocking(False)
        got = [other.recv(1 << 17) for _ in range(accepted - 1)]
        one.send(b"the last")  # which also sends what there was no room for
        got += [other.recv(1 << 17), other.recv(1 << 17)]
        assert got == [b"%d " % number + b"x" * 1000 for number in range(accepted)] + [b"the last"]
        with pytest.raises(BlockingIOError):
            other.recv(1 << 17)

        # One that is larger than the system takes at once, from a side that waits, to one that does not.
        other.setblocking(True)
        large = b"y" * 100_000
        sending = threading.Thread(target=lambda: (other.send(large), other.close()))
        sending.start()
        assert message(one) == large
        assert message(one) == b""
        sending.join()


def test_a_message_that_is_too_long_is_none(without: Callable[[str], None]) -> None:
    without("seqpacket")
    one, other = control_pair()
    with one, other:
        for size in (10, 11, 35, 2):
            one.send(b"x" * size)
        assert [other.recv(10) for _ in range(2)] == [b"x" * 10, b"xx"]


def message(end: socket.socket) -> bytes:
    while True:
        assert select.select([end], [], [], TIMEOUT)[0]
        with suppress(BlockingIOError):
            return end.recv(1 << 17)


def test_many_who_ask_at_once_are_answered_by_a_loop_that_waits_for_one_descriptor(
    tmp_path: Path, without: Callable[[str], None]
) -> None:
    without("epoll")
    path = tmp_path / "control.sock"
    with answering(path), ThreadPoolExecutor(5) as people:
        answers = list(people.map(lambda number: ask(path, {"op": str(number)}, TIMEOUT), range(5)))
    assert answers == [{"asked": {"op": str(number)}} for number in range(5)]


@pytest.mark.parametrize("names", ["", "abstract"])
async def test_a_hint_is_heard(without: Callable[[str], None], names: str) -> None:
    without(names)
    heard: asyncio.Queue[bool] = asyncio.Queue()
    listener = Listener(heard.put_nowait)
    with closing(listener), _new_socket() as sender:
        sender.sendto(b"", _address(listener.name))
        assert await asyncio.wait_for(heard.get(), TIMEOUT)


@pytest.mark.parametrize("names", ["pidfd", "pidfd,proc"])
def test_a_death_is_told_also_when_no_descriptor_was_left_to_look_with(
    without: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    without(names)
    looked_in_vain = threading.Event()

    def start_time(pid: int) -> int | None:
        try:
            return system.start_time(pid)
        except OSError:
            looked_in_vain.set()
            raise

    monkeypatch.setattr("pysqlx_engine.workers.deaths.start_time", start_time)
    told: Deaths[str] = deaths()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(told), sleeper() as process:
        assert told.watch("it", process.pid, system.start_time(process.pid))
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            assert looked_in_vain.wait(TIMEOUT)
            assert told.dead() == []  # nobody knows
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        process.kill()
        assert select.select([told], [], [], TIMEOUT)[0]
        assert told.dead() == ["it"]


def test_a_look_that_raises_is_not_the_last() -> None:
    looks = iter([RuntimeError("nothing to look with"), True])

    def look() -> bool:
        found = next(looks, False)
        if isinstance(found, Exception):
            raise found
        return found

    with closing(Looker(look, 0.001, "looks")) as looker:
        assert select.select([looker], [], [], TIMEOUT)[0]


def test_a_process_about_which_psutil_fails_is_not_dead(
    without: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    without("proc")

    def fails(*_: object) -> str:
        raise psutil.Error("not now")

    monkeypatch.setattr(psutil.Process, "status", fails)
    with pytest.raises(OSError, match="psutil cannot tell"):
        system.start_time(os.getpid())


def test_two_processes_agree_about_a_start_time_and_the_host_without_proc(without: Callable[[str], None]) -> None:
    without("proc")
    script = (
        "import os\nfrom pysqlx_engine import system\n"
        "print(system.start_time(os.getppid()), system.start_time(os.getpid()) is not None)\n"
        "print(system.host_identity())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=TIMEOUT)
    assert done.stdout.splitlines() == [f"{system.start_time(os.getpid())} True", system.host_identity()]
    assert system.start_time(2**22 + 1) is None


# -- where nothing stands in ------------------------------------------------------------------------------------------

HIDES = """
import asyncio, os, runpy, select, signal, socket, sys
import msgspec, psutil, pydantic, pydantic_settings, pysqlx_core, rich.console, setproctitle, zmq, multiprocess  # noqa
pair, family = socket.socketpair, socket.AF_UNIX
socket.socketpair = lambda *_: pair(family)  # Windows has one, of AF_INET; the loop needs it
for module, names in {
    os: "fork register_at_fork forkpty getuid geteuid getppid killpg setpgid pipe2 pidfd_open waitid fchmod chown "
        "O_CLOEXEC O_NOFOLLOW O_NONBLOCK O_NOCTTY set_blocking",
    signal: "SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGTTIN SIGTTOU SIGKILL SIGCHLD pthread_sigmask pidfd_send_signal",
    socket: "AF_UNIX AF_NETLINK MSG_DONTWAIT SOCK_NONBLOCK SOCK_CLOEXEC SO_DOMAIN",
    select: "poll",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
sys.modules["fcntl"] = sys.modules["resource"] = None
"""
POOLS = """
from pysqlx_engine import PySQLXEnginePool, PySQLXEnginePoolSync, PySQLXEngineSync
with PySQLXEngineSync("sqlite:./dev.db") as conn:
    print(conn.query_first("SELECT 1 AS a").a)
with PySQLXEnginePoolSync(uri="sqlite:./dev.db", min_size=1, max_size=2) as pool, pool.connection() as conn:
    print(conn.query_first("SELECT 2 AS a").a)
async def main():
    async with PySQLXEnginePool(uri="sqlite:./dev.db", min_size=1, max_size=2) as pool, pool.connection() as conn:
        print((await conn.query_first("SELECT 3 AS a")).a)
asyncio.run(main())
from pysqlx_engine.errors import SettingsError
os.environ["PYSQLX_COORDINATOR"] = "tcp://127.0.0.1:1"
try:
    PySQLXEnginePoolSync(uri="sqlite:./dev.db").start()
except SettingsError as error:
    print(error)
from pysqlx_engine.workers import ctl, run
print(run.main(["script.py"]), ctl.main(["status"]))
os.environ["PYSQLX_URI"] = "sqlite:./dev.db"
for words in ("migrate", "enqueue mails.send", "list"):
    print("jobs", ctl.main(["jobs", *words.split()]))
for command in (run.main, ctl.main):
    try:
        command(["--help"])
    except SystemExit as error:
        print("help", error.code)
"""


def test_where_there_is_no_posix_pools_work_and_commands_refuse_in_one_line(tmp_path: Path) -> None:
    environment = run_environment(tmp_path, {"PYSQLX_WITHOUT": ALL})
    done = subprocess.run(
        [sys.executable, "-c", HIDES + POOLS],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT,
    )  # fmt: skip
    out, errors = done.stdout.splitlines(), done.stderr.splitlines()
    why = "needs Linux or another POSIX system (on Windows: WSL); what works here are connections, and pools within one"
    assert errors == [f"pysqlx-{name}: this command {why} process" for name in ("run", "ctl")]
    assert out[:5] == ["1", "2", "3", f"PYSQLX_COORDINATOR {why} process", "2 2"]
    assert [line for line in out if line.startswith(("usage", "help", "jobs "))] == [
        *["jobs 0"] * 3,
        "usage: pysqlx-run [options] SCRIPT [ARGS...]", "help 0", "usage: pysqlx-ctl [-h] [--version] COMMAND ...",
        "help 0",
    ]  # fmt: skip
    assert done.returncode == 0


def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    done = finished(tmp_path, "script.py", PYSQLX_WITHOUT="pidfd,pidf")
    assert done == (2, [], [f"pysqlx-run: PYSQLX_WITHOUT: 'pidf' is none of {', '.join(CAN_BE_MISSED)}, posix"])


def test_what_is_missing_is_shown(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pysqlx_engine", "--json"]
    environment = run_environment(tmp_path, {"PYSQLX_WITHOUT": "pidfd,proc"})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=TIMEOUT)
    assert json.loads(done.stdout)["missing"] == ["pidfd", "proc"]


def test_the_documentation_names_each_of_them() -> None:
    text = (Path(__file__).parents[2] / "docs" / "platforms.md").read_text()
    assert [facility.name for facility in system.FACILITIES if f"| `{facility.name}`" not in text] == []
