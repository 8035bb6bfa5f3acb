"""How long it takes one process to have all connections of the budget, when others hold them and do not use them."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from pathlib import Path

from pysqlx_engine import PySQLXEnginePool

from .fleet import Leader, main
from .fleet_queries import SCRIPT
from .fleet_script import hold

BUDGET = 8
IDLE = 4
"""Processes that hold the whole budget between them."""
EACH = BUDGET // IDLE
IDLE_FOR = 0.2
"""Seconds that nothing happens before a takeover: what was in use a moment ago is left where it is, on purpose."""
TIMES = 5
"""At least, however short the round."""


def takeover(uri: str, seconds: float) -> float:
    """From the first request of eight to when all eight connections are in use, each having answered a query."""
    with Leader() as leader:
        run = str(Path(sys.executable).with_name("pysqlx-run"))
        options = ["-w", str(IDLE + 1), "--max-size", str(BUDGET), "--restart", "never", "--no-prefix"]
        leader.start(run, *options, "--name", f"bench-{os.getpid()}", SCRIPT, uri, "0", str(BUDGET), leader.path)
        busy, *idle = leader.members(IDLE + 1)
        figures = []
        until = time.monotonic() + 2 * seconds
        while len(figures) < TIMES or time.monotonic() < until:
            for member in idle:
                member.ask(do="hold", connections=EACH)
            for member in idle:
                member.ask(do="release")
            time.sleep(IDLE_FOR)
            figures.append(busy.ask(do="hold", connections=BUDGET)["seconds"])
            busy.ask(do="release")
            time.sleep(IDLE_FOR)
        return statistics.median(figures)


def reopening(uri: str, seconds: float) -> float:
    """What has to be done in any case, as fast as one process without a budget does it: eight connections closed at
    once, until the server has let go of each; and then eight opened at once, each having answered a query."""
    return asyncio.run(_reopening(uri, seconds))


async def _reopening(uri: str, seconds: float) -> float:
    figures = []
    until = time.monotonic() + 2 * seconds
    while len(figures) < TIMES or time.monotonic() < until:
        async with PySQLXEnginePool(uri=uri, min_size=0, max_size=BUDGET) as opening:
            closing = PySQLXEnginePool(uri=uri, min_size=BUDGET, max_size=BUDGET)
            await closing.start()
            await asyncio.sleep(IDLE_FOR)
            started = time.monotonic()
            await closing.stop()
            closed_after = time.monotonic() - started
            opened_after, held = await hold(opening, BUDGET)
            figures.append(closed_after + opened_after)
            await held.aclose()
    return statistics.median(figures)


if __name__ == "__main__":
    main({("ours", "fleet-takeover"): takeover, ("reopening", "fleet-takeover"): reopening})
