"""The examples of the pool's description, run as their user runs them, and the time that they may take."""

from __future__ import annotations

import heapq
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..servers import Database
from ..workers.runs import COMMAND, run_environment, session_members, wait_gone

HERE = Path(__file__).parent
SCRIPTS = HERE / "scripts"
CONNECTIONS = 30
"""`max_size` of the examples with 1,000 requests."""
TIMEOUT = 100.0


@dataclass(frozen=True)
class Outcome:
    """What became of one example. `seconds` are those that the script logged itself, the longest of its workers."""

    status: int
    output: list[str]
    log: str
    seconds: float
    bound: float
    """Seconds that the sleeps which the script drew take at best on `CONNECTIONS` connections."""

    @property
    def ratio(self) -> float:
        return self.seconds / self.bound


def run_example(script: Path, database: Database, cwd: Path, workers: int | None = None) -> Outcome:
    """Run `script` as `main.py` in `cwd`: with `python`, or with `pysqlx-run -w workers`.

    On SQLite it is used as it stands, on other databases nothing but its URI is replaced. None of its processes
    may be left when it has ended.
    """
    source = script.read_text()
    if database.provider != "sqlite":
        assert "sqlite:./dev.db" in source
        source = source.replace("sqlite:./dev.db", database.uri)
    (cwd / "main.py").write_text(source)
    command = [sys.executable] if workers is None else [*COMMAND, "-w", str(workers)]
    draws, log = cwd / "draws", cwd / "log"
    path = os.pathsep.join(filter(None, [str(HERE / "recorder"), os.environ.get("PYTHONPATH")]))
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "main.py"],
            cwd=cwd,
            env=run_environment(cwd, {"PYTHONPATH": path, "PYSQLX_TEST_DRAWS": str(draws)}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
            wait_gone(session_members(process.pid))
        finally:
            for pid in session_members(process.pid):
                os.kill(pid, 9)
            process.wait()
    text = log.read_text()
    return Outcome(
        status=process.returncode,
        output=output.decode().splitlines(),
        log=text,
        seconds=max(map(float, re.findall(r"Time taken: ([\d.]+) seconds", text)), default=0.0),
        bound=makespan(_drawn(draws), CONNECTIONS),
    )


def makespan(durations: Iterable[float], machines: int) -> float:
    """Seconds of the list schedule: each of `durations`, in this order, starts on the machine that is free first."""
    free_at = [0.0] * machines
    for duration in durations:
        heapq.heapreplace(free_at, free_at[0] + duration)
    return max(free_at)


def _drawn(file: Path) -> list[float]:
    """What `recorder/sitecustomize.py` wrote down, in the order of drawing, which is that of being served."""
    if not file.exists():
        return []
    draws = (line.split() for line in file.read_text().splitlines())
    return [float(value) for _, value in sorted(draws, key=lambda draw: float(draw[0]))]
