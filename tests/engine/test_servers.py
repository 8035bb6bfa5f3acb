"""The fixtures themselves: what they count is what other tests rely on."""

from __future__ import annotations

from pysqlx_engine import PySQLXEngineSync

from ..servers import Database


def test_a_sampler_counts_the_connections_to_its_database_and_no_others(database: Database) -> None:
    with database.sampler() as sample:
        assert sample() == 0
        with PySQLXEngineSync(database.uri), PySQLXEngineSync(database.uri):
            assert sample() == 2


async def test_an_async_test_is_really_run(sqlite_db: Database) -> None:
    with PySQLXEngineSync(sqlite_db.uri) as conn:
        row = conn.query_first(sqlite_db.sleep_sql(0.01))
    assert row is not None
    assert row.model_dump()["a"] > 0
