"""`make demo`: 1,000 requests in four processes that share 30 connections to a new SQLite file.

Runs `pysqlx-run -w 4 --max-size 30 demo_worker.py`, reads what its workers print, and meanwhile counts their open
descriptors on the file. A terminal gets a progress bar, anything else a line now and then.
"""

from __future__ import annotations

import heapq
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

REQUESTS = 1000
WORKERS = 4
CONNECTIONS = 30
SAMPLE_EVERY = 0.01
"""Seconds between two looks at the workers' descriptors."""


class Demo:
    """What the workers said, and the most connections that were seen."""

    def __init__(self, database: Path) -> None:
        self._database = str(database)
        self._pids: dict[int, int] = {}
        self.began: list[tuple[float, float]] = []
        """For each request the moment at which it had a connection, and the seconds that it kept it."""
        self.ended: list[float] = []
        self.requests: Counter[int] = Counter()
        self.errors: Counter[int] = Counter()
        self.reasons: Counter[str] = Counter()
        self.most: Counter[int] = Counter()
        """Connections, per worker."""
        self.most_together = 0

    def take(self, line: str) -> bool:
        """Note one line of a worker. True if it ends a request."""
        facts = json.loads(line)
        if "pid" in facts:
            self._pids = {**self._pids, facts["worker"]: facts["pid"]}
            return False
        self.requests[facts["worker"]] += 1
        if "error" in facts:
            self.errors[facts["worker"]] += 1
            self.reasons[facts["error"]] += 1
        else:
            self.began.append((facts["began"], facts["work"]))
            self.ended.append(facts["ended"])
        return True

    def sample(self, stop: threading.Event) -> None:
        """Count connections until `stop`."""
        while not stop.wait(SAMPLE_EVERY):
            # One process is looked at after the other. Only what was there both times was there at one moment.
            open_now = self._connections() & self._connections()
            self.most_together = max(self.most_together, len(open_now))
            self.most |= Counter(worker for worker, _ in open_now)

    def _connections(self) -> set[tuple[int, str]]:
        """The workers' descriptors on the database, each with its worker."""
        found = set()
        for worker, pid in self._pids.items():
            try:
                found |= {
                    (worker, entry.name) for entry in os.scandir(f"/proc/{pid}/fd") if _leads_to(entry, self._database)
                }
            except OSError:
                continue  # it has ended
        return found

    @property
    def seconds(self) -> float:
        """From the first request that had a connection to the end of the last."""
        return max(self.ended) - min(self.began)[0] if self.ended else 0.0

    @property
    def bound(self) -> float:
        """Seconds of the same requests in the same order, each on the connection that is free first, and no time for
        anything else."""
        free_at = [0.0] * CONNECTIONS
        for _, work in sorted(self.began):
            heapq.heapreplace(free_at, free_at[0] + work)
        return max(free_at)

    def table(self) -> Table:
        table = Table("", "requests", "errors", "seconds", "bound", "connections at most", box=SIMPLE_HEAD)
        for column in table.columns[1:]:
            column.justify = "right"
        for worker, requests in sorted(self.requests.items()):
            table.add_row(f"worker {worker}", str(requests), str(self.errors[worker]), "", "", str(self.most[worker]))
        table.add_section()
        connections = f"{self.most_together} of {CONNECTIONS}"
        totals = [str(self.requests.total()), str(self.errors.total()), f"{self.seconds:.2f}", f"{self.bound:.2f}"]
        table.add_row("all", *totals, connections)
        return table


def _leads_to(descriptor: os.DirEntry[str], path: str) -> bool:
    try:
        return os.readlink(descriptor.path) == path
    except OSError:
        return False  # closed meanwhile


def follow(lines: Iterable[str], demo: Demo, console: Console) -> None:
    """Read the workers' lines to their end and show how far they are."""
    bar = Progress(
        TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("requests", total=REQUESTS)
        for line in lines:
            if not demo.take(line):
                continue
            bar.advance(task)
            done = demo.requests.total()
            if not console.is_terminal and done % (REQUESTS // 4) == 0:
                console.print(f"{done} of {REQUESTS} requests")


def main() -> int:
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="pysqlx-demo-") as directory:
        database = Path(directory).resolve() / "demo.db"
        arguments = ["-w", str(WORKERS), "--max-size", str(CONNECTIONS), "--uri", f"sqlite:{database}", "--no-prefix"]
        script = [str(Path(__file__).with_name("demo_worker.py")), str(REQUESTS)]
        console.print(f"pysqlx-run -w {WORKERS} --max-size {CONNECTIONS} demo_worker.py", style="bold")
        demo, stop = Demo(database), threading.Event()
        sampler = threading.Thread(target=demo.sample, args=[stop])
        command = [sys.executable, "-m", "pysqlx_engine.workers.run", *arguments, *script]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            sampler.start()
            try:
                follow(run.stdout, demo, console)
            except KeyboardInterrupt:
                run.wait()  # the terminal has told it too
            except BaseException:
                run.terminate()
                raise
            finally:
                stop.set()
                sampler.join()
    console.print(demo.table())
    if run.returncode:
        console.print(f"pysqlx-run ended with status {run.returncode}")
    for reason, times in demo.reasons.most_common(5):
        console.print(f"{times} x {reason}")
    return run.returncode or (1 if demo.reasons else 0)


if __name__ == "__main__":
    sys.exit(main())
