"""What `pysqlx-ctl top` shows, and that it can be left."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console, Group

from pysqlx_engine import PySQLXEngineSync
from pysqlx_engine.workers.jobs.life import State
from pysqlx_engine.workers.jobs.views import Ended, TaskCounts
from pysqlx_engine.workers.messages import Totals
from pysqlx_engine.workers.observer.jobs import JobsStatus
from pysqlx_engine.workers.observer.screen import Seen, screen
from pysqlx_engine.workers.status import (
    BudgetStatus,
    Health,
    Histogram,
    PoolStatus,
    ProcessState,
    RunStatus,
    TotalsStatus,
    WorkerStatus,
)
from tests.workers.runs import CTL, Run, ctl, run_environment, started

SHOP = "postgresql://db.example:5432/shop"
NOTHING = TotalsStatus.of(Totals(0))
USES_SOME = """
import threading
from pysqlx_engine import PySQLXEnginePoolSync
with PySQLXEnginePoolSync(uri="sqlite:./x.db", min_size=1, max_size=3) as pool, pool.connection() as conn:
    conn.query_first("SELECT 1 AS a")
    print("up", flush=True)
    threading.Event().wait()
"""


def budget(**numbers: int) -> BudgetStatus:
    usual = {"size": 10, "leased": 0, "in_use": 0, "idle": 0, "waiting": 0}
    return BudgetStatus(database=SHOP, totals=NOTHING, **(usual | numbers))


def worker(number: int | None, **numbers: int) -> WorkerStatus:
    usual = {"leases": 1, "in_use": 1, "idle": 0, "waiting": 0, "restarts": 0, "uptime": 90}
    state = ProcessState.UP
    return WorkerStatus(worker=number, pid=4_000_000 + (number or 0), state=state, pools=[], **(usual | numbers))


def run(*budgets: BudgetStatus, workers: list[WorkerStatus] | None = None, ready: bool = True) -> RunStatus:
    health = Health(ready=ready, workers=4, up=4 if ready else 3, coordinator=True)
    return RunStatus(run="shop", health=health, budgets=list(budgets), workers=workers or [])


def lines(seen: Seen, width: int = 80, height: int = 40, *, ascii_only: bool = False) -> list[str]:
    console = Console(width=width, height=height, highlight=False, no_color=True)
    with console.capture() as text:
        console.print(Group(*screen(seen, width, height, ascii_only=ascii_only)))
    return text.get().splitlines()


def test_a_bar_shows_every_part_of_the_budget_in_proportion() -> None:
    one = budget(leased=10, size=20, in_use=5, idle=3, connecting=1, quarantined=1)
    bar = lines(Seen("shop", run(one)))[3]
    cells = bar.strip()[1:-1]
    assert len(cells) == 76
    parts = {glyph: cells.count(glyph) for glyph in "█▒░x·"}
    assert parts == {"█": 19, "▒": 11, "░": 4, "x": 4, "·": 38}
    assert cells == "█" * 19 + "▒" * 11 + "░" * 4 + "x" * 4 + "·" * 38


def test_a_part_that_is_less_than_a_cell_is_seen_all_the_same() -> None:
    one = budget(size=10_000, leased=3, in_use=1, idle=1, quarantined=1)
    assert lines(Seen("shop", run(one)))[3].strip().startswith("[█▒x·")


def test_a_bar_ends_where_it_ends_when_more_is_leased_than_there_is() -> None:
    one = budget(size=4, leased=9, in_use=9)
    assert lines(Seen("shop", run(one)))[3].strip() == "[" + "█" * 76 + "]"


def test_what_is_kept_back_is_not_free() -> None:
    one = budget(size=4, leased=3, in_use=3, reserved=1, waiting=2)
    assert lines(Seen("shop", run(one)))[4] == "  3 of 4: 3 in use, 0 idle, 0 free, 1 kept back"


def test_without_unicode_it_is_made_of_letters() -> None:
    one = budget(size=4, leased=2, in_use=1, idle=1)
    text = "\n".join(lines(Seen("shop", run(one)), ascii_only=True))
    assert text.isascii()
    assert "#" * 19 + "=" * 19 in text


def test_what_was_counted_between_two_looks_is_told_as_rates() -> None:
    now = budget(leased=10, in_use=10, waiting=3)
    waits = Histogram(count=200, sum=2.0, buckets=[100] + [0] * 12 + [80, 19, 0, 0, 1])
    now.totals = msgspec.structs.replace(NOTHING, requests=1200, timeouts=2, wait=waits)
    before = budget()
    before.totals = msgspec.structs.replace(NOTHING, requests=200, wait=Histogram(count=100, sum=0, buckets=[100]))
    timeouts, waiting = lines(Seen("shop", run(now), earlier=run(before), seconds=10.0))[5:7]
    assert timeouts == "  2 timeouts in 10 s"
    assert waiting == "  3 waiting   wait p50 8 ms p90 16 ms p99 16 ms   100 check-outs/s"


def test_more_workers_than_there_is_room_for_can_be_scrolled() -> None:
    workers = [worker(number) for number in range(100)]
    for first, shown in ((0, "0 above"), (40, "40 above")):
        text = lines(Seen("shop", run(budget(), workers=workers), first=first), height=24)
        assert len(text) <= 24
        assert shown in text[-1]
        assert any(line.startswith(f"{first} ") for line in text)


def test_what_is_wrong_stands_on_top() -> None:
    assert "NOT READY, 3 of 4 workers up" in lines(Seen("shop", run(ready=False)))[0]
    silent = run()
    silent.health = Health(ready=False, coordinator=True, supervisor=False)
    assert "NOT READY, the supervisor does not answer" in lines(Seen("shop", silent))[0]
    gone = lines(Seen("shop", None, failure="nobody \x1b[2J answers"))
    assert "does not answer" in gone[0]
    assert "\x1b" not in gone[1]  # who has written that has no say over the terminal


def test_jobs_are_shown_by_task_the_busiest_first() -> None:
    tasks = [
        TaskCounts(queue="mail", task="send", states={State.AVAILABLE: 3}, held=0, oldest_waits=2.5),
        TaskCounts(queue="mail", task="x" * 60, states={State.AVAILABLE: 1_200_000}, held=0, oldest_waits=None),
    ]
    ended = Ended(queue="mail", task="send", state=State.COMPLETED, count=2403, ran=0.0, waited=0.0)
    jobs = JobsStatus(database=SHOP, tasks=tasks, recent=[ended], recent_seconds=50.0, dispatchers=1)
    text = lines(Seen("shop", run(budget()), jobs=[jobs]))
    assert "jobs  48.1 ended/s, 1 dispatcher" in text
    assert re.match(r"mail +x+… +1,200,000 +0 +0 +0 +-", text[-2])
    assert re.match(r"mail +send +3 +0 +0 +0 +2.5 s", text[-1])


@pytest.mark.parametrize("width", [80, 60])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    one = budget(leased=100_000, size=100_000, in_use=99_998, idle=1, quarantined=1, waiting=123_456)
    name = "x" * 200
    pool = PoolStatus(name=f"{name} of pid 1", database=SHOP, leases=0, in_use=0, idle=0, waiting=0)
    others = [msgspec.structs.replace(worker(None), pools=[pool]), worker(4095, restarts=12345, uptime=999_999)]
    for line in lines(Seen(name[:64], run(one, workers=others)), width=width):
        assert len(line) <= width


# -- in a terminal ----------------------------------------------------------------------------------------------------


@contextmanager
def serving(directory: Path) -> Iterator[Run]:
    (directory / "script.py").write_text(USES_SOME)
    with started(directory, "-w", "2", "script.py") as run:
        for _ in range(2):
            run.line_with("up")
        yield run
        run.send(signal.SIGTERM)
        run.rest()


@dataclass
class Top:
    """The command, and both ends of its terminal."""

    process: subprocess.Popen[bytes]
    master: int
    slave: int
    before: list[Any]
    """How the terminal was."""

    def rest(self) -> bytes:
        """What it writes until its end."""
        shown = b""
        while select.select([self.master], [], [], 0.05)[0] or self.process.poll() is None:
            if select.select([self.master], [], [], 0)[0]:
                shown += os.read(self.master, 65536)
        return shown


@contextmanager
def top(directory: Path) -> Iterator[Top]:
    """When it shows all that there is."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    before = termios.tcgetattr(slave)
    environment = run_environment(directory, {"TERM": "xterm-256color", "PYSQLX_URI": f"sqlite:{directory}/x.db"})
    # A session's leader that opens a terminal has it as its own: ^C and a terminal that is closed are for it.
    command = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(slave), *CTL, "top"]
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        shown = b""
        deadline = time.monotonic() + 20
        while b": 2 in use" not in shown or b"no job tables" not in shown or b"check-outs/s" not in shown:
            assert select.select([master], [], [], deadline - time.monotonic())[0], shown
            shown += os.read(master, 65536)
        try:
            yield Top(process, master, slave, before)
        finally:
            process.kill()
            for descriptor in (master, slave):
                with contextlib.suppress(OSError):
                    os.close(descriptor)


def deaths(directory: Path) -> int:
    """Processes that have ended without closing their pools."""
    code, out, _ = ctl(directory, "status", "--json")
    assert code == 0
    return int(json.loads(out)["deaths"])


@pytest.mark.parametrize("told", [b"jq", b"\x03", signal.SIGTERM, signal.SIGHUP], ids=["q", "^C", "TERM", "HUP"])
def test_it_shows_a_run_until_it_is_told_to_end_and_leaves_the_terminal_as_it_was(
    tmp_path: Path, told: bytes | signal.Signals
) -> None:
    with serving(tmp_path):
        with top(tmp_path) as one:
            if isinstance(told, bytes):
                os.write(one.master, told)
            else:
                one.process.send_signal(told)
            shown = one.rest()
            assert one.process.wait(20) == 0
            assert termios.tcgetattr(one.slave) == one.before
            assert shown.endswith(b"\x1b[?25h\x1b[?1049l")  # the cursor is seen again, and what was there before
        assert deaths(tmp_path) == 0


def test_when_its_terminal_is_closed_it_ends_as_well(tmp_path: Path) -> None:
    with serving(tmp_path):
        with top(tmp_path) as one:
            os.close(one.slave)
            os.close(one.master)
            one.process.wait(20)
        assert deaths(tmp_path) == 0


def test_without_a_terminal_it_says_what_to_use_instead(tmp_path: Path) -> None:
    code, out, error = ctl(tmp_path, "top")
    assert (code, out) == (2, "")
    assert "top --once" in error


def test_one_frame_can_be_printed(tmp_path: Path) -> None:
    with serving(tmp_path):
        code, out, error = ctl(tmp_path, "top", "--once", "--uri", f"sqlite:{tmp_path}/x.db")
        assert (code, error) == (0, "")
        assert re.search("[23] of 3: 2 in use", out)  # perhaps with the connection by which it looks at jobs
        assert re.search(r"\d check-outs/s", out)
        assert "there are no job tables in this database" in out
        with PySQLXEngineSync(f"sqlite:{tmp_path}/x.db") as conn:
            (row,) = conn.query_as_dict("PRAGMA journal_mode")
        assert row["journal_mode"] == "delete"  # to look changes nothing
