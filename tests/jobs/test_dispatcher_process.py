"""What a dispatcher's process makes of what workers and the supervisor say, in whatever order it comes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from pysqlx_engine import PySQLXEnginePool
from pysqlx_engine.workers.jobs import dispatcher_process
from pysqlx_engine.workers.jobs.dispatcher import Dispatcher
from pysqlx_engine.workers.jobs.dispatcher_process import _DispatcherProcess
from pysqlx_engine.workers.jobs.served import DispatcherSpec, ServedQueue
from pysqlx_engine.workers.jobs.store import Claimed
from pysqlx_engine.workers.jobs.wire import Join, Leave, Retire

PID, OTHER = 101, 102
JOB = Claimed(1, "default", "note", 0, 1, 3, "{}", 0, 0, 7)


@pytest.fixture
def control() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


def process(control: socket.socket, **workers: int) -> Any:
    """One that takes another one's place, and has not begun to serve."""
    of = {int(pid.removeprefix("pid")): count for pid, count in workers.items()}
    queue = ServedQueue("jobs.sock", None, None, {"default": 1}, 60.0)
    spec = DispatcherSpec("dispatcher", 1, "run", queue, {}, of, workers_died=False, restarted=True, uvloop=False)
    made: Any = _DispatcherProcess(spec, control)
    pool = PySQLXEnginePool("sqlite::memory:", min_size=0, max_size=2)
    made._dispatcher = Dispatcher(pool, {"default": 1}, made, connections=1, keep=60.0, run="run")
    return made


def join(process: Any, name: str, pid: int, *running: Claimed) -> Any:
    channel = process._accept()
    process._hear(channel, Join(name, pid, 5, {"note": False}, [], list(running), []))
    return channel


def reports(process: Any) -> list[tuple[str, str | None]]:
    """What is to be written: how the attempt ended, and what went wrong."""
    return [
        ((report.ended or report.postponed).state.value, report.failure and report.failure.error)
        for report in process._dispatcher._dispatch.unwritten
    ]


async def test_nothing_is_adopted_before_every_queue_of_every_process_has_told_what_it_runs(
    control: socket.socket,
) -> None:
    one = process(control, pid101=2, pid102=1)
    join(one, "worker 0", PID)
    join(one, "worker 1", OTHER)
    join(one, "worker 0", PID)  # once more: its stream was cut
    assert one._dispatcher._adopt_at is None
    join(one, "worker 0 2", PID)
    assert one._dispatcher._adopt_at is not None


@pytest.mark.parametrize("well", [True, False])
async def test_what_a_process_ran_that_ended_before_it_told_counts_as_failed_unless_it_ended_well(
    control: socket.socket, well: bool
) -> None:
    one = process(control, pid101=1)
    one._on_death(PID, well=well)
    assert one._dispatcher._adopt_at is not None
    assert one._dispatcher._workers_died is not well


async def test_the_end_of_a_workers_old_stream_says_nothing_about_its_new_one(control: socket.socket) -> None:
    one = process(control)
    old = join(one, "worker 0", PID, JOB)
    join(one, "worker 0", PID, JOB)
    one._lost(old)
    assert one._dispatcher._dispatch._workers["worker 0"].slots == 5
    one._gone(old)
    assert reports(one) == []


async def test_only_a_worker_that_says_so_has_ended_all(
    control: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was told to retire, and is killed, ran its jobs, however late the supervisor says so."""
    monkeypatch.setattr(dispatcher_process, "_REASON_WITHIN", 0.0)
    one = process(control)
    ended, killed = join(one, "worker 0", PID, JOB), join(one, "worker 1", OTHER, JOB)
    for channel in (ended, killed):
        one._hear(channel, Retire())
    one._hear(ended, Leave())
    one._lost(ended)
    assert reports(one) == [("available", None)]
    one._lost(killed)
    while len(reports(one)) < 2:
        await asyncio.sleep(0)
    assert reports(one)[1:] == [("retrying", "its worker has gone, nobody said why")]
    one._on_death(OTHER, well=False)
    assert len(reports(one)) == 2
