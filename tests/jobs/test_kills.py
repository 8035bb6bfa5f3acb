"""No job is lost and none has its effect twice, whoever is killed at whatever moment. The long form: `make chaos`."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from pysqlx_engine.workers.jobs.faults import POINTS
from tests.servers import Database, PostgresServer, postgresql_database

from . import kills

SEED = int(os.environ.get("PYSQLX_SEED") or random.randrange(10**6))


def check(account: kills.Account, *, kills_at_least: int) -> None:
    print(f"seed {SEED}: {account}")
    assert (account.lost, account.doubled) == (0, 0), account
    assert account.most_connections is None or 0 < account.most_connections <= kills.MAX_SIZE, account
    assert account.kills >= kills_at_least, account


@pytest.mark.thorough("sqlite", "mysql")
def test_killed_at_random(tmp_path: Path, database: Database) -> None:
    pause = 0.02 if database.provider == "sqlite" else 0.05  # one transaction at a time there
    account = kills.run(tmp_path, database, 300, every=1.5, pause=pause, chance=random.Random(SEED))
    check(account, kills_at_least=1)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.thorough("dispatched", "started")
def test_killed_at_each_step(tmp_path: Path, postgresql_db: Database, point: str) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    for number in range(3):
        (tokens / str(number)).touch()
    faults = f"{point}:{tokens}"
    account = kills.run(
        tmp_path, postgresql_db, 200, every=None, pause=0.0, chance=random.Random(SEED), PYSQLX_JOB_FAULTS=faults
    )
    check(account, kills_at_least=0)
    assert not list(tokens.iterdir())
    assert (tmp_path / "log").read_text().count("was ended by signal 9") == 3


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("provider", ["sqlite", "postgresql", "mysql"])
def test_twenty_thousand_jobs(tmp_path: Path, request: pytest.FixtureRequest, provider: str) -> None:
    pause = 0.002 if provider == "sqlite" else 0.012
    database: Database = request.getfixturevalue(f"{provider}_db")
    account = kills.run(tmp_path, database, 20_000, every=1.0, pause=pause, chance=random.Random(SEED), timeout=500)
    check(account, kills_at_least=30)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_twenty_thousand_jobs_while_the_server_restarts(tmp_path: Path) -> None:
    with PostgresServer(fsync="on", synchronous_commit="on", full_page_writes="on") as server:
        with postgresql_database(server, "kills") as database:
            account = kills.run(
                tmp_path, database, 20_000, every=1.0, pause=0.012, chance=random.Random(SEED), timeout=500,
                restart=lambda: server.restart("immediate"),
            )  # fmt: skip
    check(account, kills_at_least=30)
    assert account.restarts >= 3
