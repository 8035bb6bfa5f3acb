"""What is compared with whom, and the ratio that ours may have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    peer: str
    limit: float | None = None
    """The most that ours / peer may be. None: shown without a target."""


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    unit: str
    scale: float
    """What the worker's figure is multiplied with to be in `unit`."""
    comparisons: tuple[Comparison, ...]
    limit: float | None = None
    """The most that our own figure may be, where it is a ratio itself."""
    slow: bool = False
    """Takes long however little is measured: fewer rounds, and the peers, which have no target here, in one only."""

    @property
    def peers(self) -> list[str]:
        return ["ours", *(comparison.peer for comparison in self.comparisons)]


def _case(
    name: str,
    title: str,
    unit: str,
    limit: float | None = None,
    slow: bool = False,
    **peers: float | None,
) -> Case:
    scale = {"us": 1e6, "ms": 1e3, "x the bound": 1.0}[unit]
    comparisons = tuple(Comparison(peer, most) for peer, most in peers.items())
    return Case(name, title, unit, scale, comparisons, limit, slow)


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
)  # fmt: skip
