"""Whatever dies or stops in a run, and whenever: the budget holds, nothing is lost, and the living see no error.

`make chaos` runs the long form. The seed of a run is printed; PYSQLX_CHAOS_SEED repeats it.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from tests.servers import Database

from .chaos import BUDGET, chaos

SHORT_SEED = 20
SHORT, LONG = 10.0, 60.0


def check(directory: Path, database: Database, seed: int, seconds: float) -> None:
    print(f"PYSQLX_CHAOS_SEED={seed}")  # also when it does not come to an end
    outcome = chaos(directory, database, seed, seconds)
    summary = outcome.summary()
    print(summary)
    assert max(outcome.watch.seen) == BUDGET, summary
    assert not outcome.lost, summary
    assert not outcome.failed, summary
    assert not outcome.wrong, summary
    assert not outcome.died, summary
    assert not outcome.said, summary
    assert outcome.took == ["worker 0", "worker 1"]
    assert outcome.exit_status == 0


@pytest.fixture(params=["postgresql", "mysql"])
def server_database(request: pytest.FixtureRequest) -> Database:
    found: Database = request.getfixturevalue(f"{request.param}_db")
    return found


def test_what_dies_or_stops_for_ten_seconds_costs_nobody_else_anything(tmp_path: Path, postgresql_db: Database) -> None:
    check(tmp_path, postgresql_db, SHORT_SEED, SHORT)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_what_dies_or_stops_for_a_minute_costs_nobody_else_anything(tmp_path: Path, server_database: Database) -> None:
    seed = int(os.environ.get("PYSQLX_CHAOS_SEED") or secrets.randbelow(1_000_000))
    check(tmp_path, server_database, seed, LONG)
