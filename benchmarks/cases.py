"""What is compared with whom, and the ratio, or the figure, that ours may have."""

from __future__ import annotations

from dataclasses import dataclass

SCALES = {
    "us": 1e6,
    "ms": 1e3,
    "x the bound": 1.0,
    "MB": 1e-6,
    "% of a core": 100.0,
    "queries/s": 1.0,
    "grants/s": 1.0,
    "jobs/s": 1.0,
    "connections": 1.0,
}
"""What the worker's figure, in seconds, bytes and the like, is multiplied with to be in a unit."""
RATES = {"queries/s", "grants/s", "jobs/s"}
"""Units of which more is better."""


@dataclass(frozen=True)
class Comparison:
    peer: str
    limit: float | None = None
    """The most that ours / peer may be; the least, where the case is a rate. None: shown without a target."""


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    unit: str
    comparisons: tuple[Comparison, ...]
    limit: float | None = None
    """The most that our own figure may be, in `unit`, where it has a target itself; the least, where it is a rate."""
    slow: bool = False
    """Takes long however little is measured: fewer rounds, and the peers, which have no target here, in one only."""
    module: str | None = None
    """The worker that measures everybody in this case. None: each peer's own."""
    durable: bool = False
    """Measured in a new database of a PostgreSQL that writes to the disk what it has committed. Takes many seconds,
    whoever it is: fewer rounds, of everybody."""

    @property
    def scale(self) -> float:
        return SCALES[self.unit]

    @property
    def rate(self) -> bool:
        """Whether more is better: every limit is a floor."""
        return self.unit in RATES

    @property
    def peers(self) -> list[str]:
        return ["ours", *(comparison.peer for comparison in self.comparisons)]


def _case(
    name: str,
    title: str,
    unit: str,
    limit: float | None = None,
    slow: bool = False,
    module: str | None = None,
    durable: bool = False,
    **peers: float | None,
) -> Case:
    comparisons = tuple(Comparison(peer, limit) for peer, limit in peers.items())
    return Case(name, title, unit, comparisons, limit, slow, module, durable)


def _jobs(name: str, title: str, unit: str, limit: float | None = None, **peers: float | None) -> Case:
    return _case(name, title, unit, limit, module="jobs", durable=True, **peers)


CASES = (
    _case(
        "idle-async", "check-out and check-in, one task", "us",
        bare=5.0, psycopg=0.35, old=None, asyncpg=None, sqlalchemy=None,
    ),
    _case(
        "idle-sync", "check-out and check-in, one thread", "us",
        bare=4.0, psycopg=0.35, old=None, sqlalchemy=None,
    ),
    _case(
        "contended-async", "check-out and check-in, 100 tasks on 10 connections", "us",
        bare=None, psycopg=0.35, old=None, asyncpg=None, sqlalchemy=None,
    ),
    _case(
        "contended-sync", "check-out and check-in, 32 threads on 10 connections", "us",
        bare=None, psycopg=1.0, old=None, sqlalchemy=None,
    ),
    _case(
        "query-async", "one row through the pool, asyncio", "us",
        driver=1.2, old=0.35, psycopg=1.0, asyncpg=1.0, sqlalchemy=None,
    ),
    _case(
        "query-sync", "one row through the pool, threads", "us",
        driver=1.2, old=0.35, psycopg=1.0, sqlalchemy=None,
    ),
    _case("rows-async", "10,000 rows of 4 columns as BaseRow, asyncio", "ms", driver=2.0, old=None),
    _case("rows-sync", "10,000 rows of 4 columns as BaseRow, threads", "ms", driver=2.0, old=None),
    _case(
        "requests-async", "1,000 requests on 30 connections, asyncio", "x the bound",
        limit=1.03, slow=True, old=None,
    ),
    _case(
        "requests-sync", "1,000 requests on 30 connections, threads", "x the bound",
        limit=1.03, slow=True, old=None,
    ),
    _case("sleeps-sync", "a query of 5 ms, 32 threads on 32 connections", "us", old=1 / 20),
    _case("import", "import of the package", "ms", old=0.7),
    _case(
        "fleet-queries", "SELECT 1, 4 processes, 20 connections in all", "queries/s",
        module="fleet_queries", fixed=0.97, pgbouncer=1.3,
    ),
    _case(
        "fleet-takeover", "8 connections taken over from idle processes", "ms",
        module="fleet_takeover", reopening=2.0,
    ),
    _case("fleet-kill", "kill -9 to the leases' re-grant, p99", "ms", limit=50.0, module="fleet_kills"),
    _case(
        "fleet-grants", "leases, one a request, 8 processes with 4 pools each", "grants/s",
        limit=20_000.0, module="fleet_grants",
    ),
    _case("fleet-grants-cpu", "the same in a second of the coordinator's own", "grants/s", module="fleet_grants"),
    _case("fleet-grants-one", "the same with one pool each", "grants/s", module="fleet_grants", echo=None),
    _case("fleet-grants-many", "the same, 200 pools and 64 leases", "grants/s", module="fleet_grants"),
    _case(
        "fleet-latency", "request to grant at 10,000 grants/s, p99", "ms",
        limit=5.0, module="fleet_grants", echo=None,
    ),
    _case("fleet-latency-half", "the same at half of what was reached, p99", "ms", module="fleet_grants"),
    _case(
        "fleet-memory", "coordinator of 1,000 processes, 10,000 leases", "MB",
        limit=200.0, slow=True, module="fleet_scale",
    ),
    _case(
        "fleet-idle", "the same while nothing changes", "% of a core",
        limit=5.0, slow=True, module="fleet_scale",
    ),
    _jobs(
        "jobs-drain", "empty jobs, 2 workers, a backlog", "jobs/s",
        pgqueuer=2.0, dramatiq=5.0, celery=15.0, procrastinate=30.0,
    ),
    _jobs("jobs-producer", "the same while a producer enqueues", "jobs/s", drained=0.7),
    _jobs("jobs-sqlite", "the same backlog on SQLite", "jobs/s", limit=10_000.0, huey=5.0),
    _jobs("jobs-enqueue-many", "jobs enqueued, 1,000 by one call", "jobs/s", pgqueuer=2.0),
    _jobs("jobs-enqueue-one", "jobs enqueued one by one", "jobs/s", procrastinate=1.0),
    _jobs("jobs-latency-p50", "enqueue to the handler's start, p50", "ms", limit=3.0),
    _jobs("jobs-latency-p99", "enqueue to the handler's start, p99", "ms", limit=15.0),
    _jobs("jobs-connections", "8 workers with 50 jobs each, a budget of 10", "connections", limit=10.0),
    _case(
        "jobs-waiting", "claims beside 1,000,000 jobs that wait", "jobs/s",
        module="jobs_claims", durable=True, few=0.8,
    ),
    _case(
        "jobs-ended", "claims beside 1,000,000 jobs that have ended", "jobs/s",
        module="jobs_claims", durable=True, few=0.8,
    ),
)  # fmt: skip
