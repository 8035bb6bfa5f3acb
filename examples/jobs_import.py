"""Import the world's airports into a database: a job for each 50 rows, then one for each country.

In two terminals:

    pysqlx-run --name airports -w 4 --max-size 10 examples/jobs_airports.py
    python examples/jobs_import.py

The second enqueues the jobs, shows how far they are, and ends when they have. It may be interrupted and called again,
and a worker may be killed in the middle (kill -9): every row will be there, and none twice. The database is the file
airports.db, or what the environment variable PYSQLX_URI says. The data: pip install airportsdata
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

from jobs_airports import CHUNK, QUEUE, TABLES, URI, airports, import_chunk, queue, report_all
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pysqlx_engine import PySQLXEngine, PySQLXEnginePool

AIRPORTS = len(airports())
COUNTRIES = len({airport["country"] for airport in airports()})


async def start(conn: PySQLXEngine) -> bool:
    """Empty the tables and enqueue the import, all or nothing. False: one is going on, and is left alone."""
    for statement in TABLES:
        await conn.raw_cmd(statement)
    (jobs,) = await conn.query("SELECT count(*) AS n FROM pysqlx_jobs WHERE queue = :queue", {"queue": QUEUE})
    if jobs.n:
        return False
    await conn.begin()
    await conn.execute("DELETE FROM airport")
    await conn.execute("DELETE FROM airport_report")
    await report_all.enqueue(rows=AIRPORTS, conn=conn)  # the first job of an import: all others have a greater id
    await import_chunk.enqueue_many([{"first": first} for first in range(0, AIRPORTS, CHUNK)], conn=conn)
    await conn.commit()
    return True


async def first_job(conn: PySQLXEngine) -> int:
    """Of the latest import, which may have been enqueued by an earlier call."""
    (row,) = await conn.query(
        "SELECT max(id) AS id FROM (SELECT id, task FROM pysqlx_jobs UNION ALL SELECT id, task FROM pysqlx_jobs_ended) "
        "AS j WHERE task = :task",
        {"task": report_all.name},
    )
    return int(row.id)


async def watch(conn: PySQLXEngine, first: int, console: Console) -> bool:
    """Show how far it is until all jobs have ended, or one has failed for good. True: all is there."""
    question = (
        "SELECT (SELECT count(*) FROM airport) AS airports, (SELECT count(*) FROM airport_report) AS countries, "
        "(SELECT count(*) FROM pysqlx_jobs_ended WHERE id >= :first AND queue = :queue AND state <> 'completed') AS bad"
    )
    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    with bars:
        rows, reports = bars.add_task("airports", total=AIRPORTS), bars.add_task("countries", total=COUNTRIES)
        told = 0
        while True:
            (now,) = await conn.query(question, {"first": first, "queue": QUEUE})
            bars.update(rows, completed=now.airports)
            bars.update(reports, completed=now.countries)
            quarters = 4 * now.airports // AIRPORTS
            if not console.is_terminal and quarters > told:
                told = quarters
                console.print(f"{now.airports} of {AIRPORTS} airports")
            if now.countries == COUNTRIES or now.bad:
                return not now.bad
            await asyncio.sleep(0.1)


def connections() -> int:
    """How many all workers of the run have together, as it says itself. 0: there is no such run on this host."""
    status = [sys.executable, "-m", "pysqlx_engine.workers.ctl", "status", "--name", "airports", "--json"]
    answer = subprocess.run(status, capture_output=True, text=True, check=False)
    return sum(budget["leased"] for budget in json.loads(answer.stdout)["budgets"]) if answer.returncode == 0 else 0


async def sample(seen: list[int]) -> None:
    """Note them now and then, until it is cancelled."""
    while True:
        seen.append(await asyncio.to_thread(connections))
        await asyncio.sleep(1)


async def summary(conn: PySQLXEngine, first: int, most: int) -> Table:
    (jobs,) = await conn.query(
        "SELECT count(*) AS n, sum(attempt - 1) AS retries, max(ended_at) - min(created_at) AS microseconds "
        "FROM pysqlx_jobs_ended WHERE id >= :first AND queue = :queue",
        {"first": first, "queue": QUEUE},
    )
    (rows,) = await conn.query("SELECT count(*) AS n FROM airport")
    table = Table("rows imported", "jobs", "retries", "seconds", "connections at most", box=SIMPLE_HEAD)
    table.add_row(str(rows.n), str(jobs.n), str(jobs.retries), f"{int(jobs.microseconds) / 1e6:.1f}", str(most))
    return table


async def main() -> int:
    console = Console(highlight=False)
    await queue.migrate()
    await queue.close()  # one connection is enough here: the next one
    async with PySQLXEnginePool(URI, min_size=0, max_size=1) as pool, pool.connection() as conn:
        console.print("enqueued" if await start(conn) else "an import is going on")
        first = await first_job(conn)
        seen = [0]
        sampling = asyncio.create_task(sample(seen))
        complete = await watch(conn, first, console)
        sampling.cancel()
        console.print(await summary(conn, first, max(*seen, connections())))
    if not complete:
        console.print("some jobs failed for good; pysqlx-ctl jobs list --state discarded shows why")
    return 0 if complete else 1


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except KeyboardInterrupt:
        sys.exit("interrupted; the jobs go on")
