"""The tasks of the import of the world's airports, and the workers that run them: see jobs_import.py."""

from __future__ import annotations

import asyncio
import os
from functools import cache
from typing import Any

import airportsdata

from pysqlx_engine import PySQLXEngine
from pysqlx_engine.workers import JobQueue, Snooze

URI = os.environ.get("PYSQLX_URI", "sqlite:./airports.db")
QUEUE = "airports"
CHUNK = 50
TABLES = (
    "CREATE TABLE IF NOT EXISTS airport (country varchar(2), iata varchar(3), name varchar(100), city varchar(100), "
    "elevation double precision, tz varchar(40), PRIMARY KEY (country, iata))",
    "CREATE TABLE IF NOT EXISTS airport_report (country varchar(2) PRIMARY KEY, airports integer, zones integer, "
    "highest varchar(100), elevation double precision)",
)

queue = JobQueue(URI, queues=[QUEUE])


@cache
def airports() -> list[dict[str, Any]]:
    """Those with an IATA code, in the same order in every process."""
    return list(airportsdata.load("IATA").values())


# Transactional: the rows and "this job is completed" commit together. When a worker is killed, neither is there, and
# another worker begins the chunk anew. So a plain INSERT will do: no row has to be looked for first.
@queue.task(queue=QUEUE, transactional=True, max_attempts=5)
async def import_chunk(conn: PySQLXEngine, first: int) -> None:
    for airport in airports()[first : first + CHUNK]:
        await conn.execute("INSERT INTO airport VALUES (:country, :iata, :name, :city, :elevation, :tz)", airport)


# With less priority than the chunks, and still it may come while the last of them run: then it is called again.
@queue.task(queue=QUEUE, transactional=True, priority=-1)
async def report_all(conn: PySQLXEngine, rows: int) -> Snooze | None:
    (imported,) = await conn.query("SELECT count(*) AS n FROM airport")
    if imported.n < rows:
        return Snooze(0.5)
    countries = await conn.query("SELECT DISTINCT country FROM airport ORDER BY country")
    await report_country.enqueue_many([{"country": row.country} for row in countries])  # by conn: in its transaction
    return None


@queue.task(queue=QUEUE, transactional=True, max_attempts=5)
async def report_country(conn: PySQLXEngine, country: str) -> None:
    await conn.execute(
        "INSERT INTO airport_report (country, airports, zones, highest, elevation) "
        "SELECT country, count(*), count(DISTINCT tz), "
        "(SELECT name FROM airport WHERE country = :country ORDER BY elevation DESC, iata LIMIT 1), max(elevation) "
        "FROM airport WHERE country = :country GROUP BY country",
        {"country": country},
    )


async def work() -> None:
    await queue.migrate()  # whoever comes first makes the job tables
    await queue.serve()


if __name__ == "__main__":
    asyncio.run(work())
