"""Which statements leave a transaction open, or what outlives one."""

from __future__ import annotations

import pytest

from pysqlx_engine import PySQLXEngine
from pysqlx_engine.engine.transactions import Effect, effect_of, effect_of_command
from pysqlx_engine.errors import QueryError

from ..servers import Database


@pytest.mark.parametrize(
    "sql",
    [
        "BEGIN",
        "begin immediate",
        "  START TRANSACTION",
        "-- note\nBEGIN",
        "/* a */ /* b */ begin",
        "# x\nBEGIN",
        ";BEGIN",
        "-- " + "x" * 5000 + "\nBEGIN",
    ],
)
def test_a_statement_that_opens_one_is_seen(sql: str) -> None:
    assert effect_of(sql) is Effect.OPENS
    assert effect_of_command(sql) is (Effect.MAY_OPEN if sql.startswith(";") else Effect.OPENS)


@pytest.mark.parametrize(
    "sql",
    [
        "SAVEPOINT a",
        "CALL p()",
        "XA START 'x'",
        "/*!50000 START TRANSACTION */",
        "LOCK TABLE t IN ACCESS EXCLUSIVE MODE",
        "COMMIT AND CHAIN",
        "ROLLBACK AND CHAIN",
        "ROLLBACK TO a",
        "",
        "ROLLBACK TO SAVEPOINT a",
        "ROLLBACK TO SAVEPOINT a /* and no chain */",
        "COMMIT PREPARED 'x'",
        "EXEC p",
        "START SLAVE",
        "/* was: /* old */ SELECT */ BEGIN",
        "/*/**/SELECT 1;*/ BEGIN",
        "IF 1=1 THEN START TRANSACTION; END IF",
        "CASE WHEN 1 THEN START TRANSACTION; END CASE",
        "/*M! BEGIN */ WORK",
        "FROBNICATE",
        "RESET ALL",
        "SET client_connection_check_interval = 0",
    ],
)
def test_a_statement_that_may_open_one_is_seen(sql: str) -> None:
    assert effect_of(sql) is Effect.MAY_OPEN
    assert effect_of_command(sql) is Effect.MAY_OPEN


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "(SELECT 1) UNION (SELECT 2)",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "INSERT INTO begin VALUES (1)",
        "UPDATE t SET a = 'BEGIN'",
        "SET search_path TO x",
        "VALUES (1)",
        "PRAGMA user_version",
        "RESET search_path",
        "DISCARD TEMP",
        "DEALLOCATE mine",
        "/* BEGIN */ SELECT 1",
    ],
)
def test_an_ordinary_statement_leaves_none_open(sql: str) -> None:
    assert effect_of(sql) is Effect.NONE


@pytest.mark.parametrize(
    "sql", ["COMMIT", "commit;", "ROLLBACK", "END", "ABORT", "ROLLBACK AND NO CHAIN", "/* */ COMMIT"]
)
def test_a_commit_or_rollback_ends_it(sql: str) -> None:
    assert effect_of(sql) is Effect.ENDS
    assert effect_of_command(sql) is Effect.ENDS


@pytest.mark.parametrize("sql", ["CREATE TABLE t (a int)", "DROP TABLE t;", "TRUNCATE t", "ANALYZE"])
def test_a_single_known_command_is_harmless(sql: str) -> None:
    assert effect_of_command(sql) is Effect.NONE


@pytest.mark.parametrize("sql", ["SELECT 1; BEGIN", "COMMIT; BEGIN", "DO $$ BEGIN END $$", "FROBNICATE"])
def test_a_command_that_cannot_be_told_counts_as_one_that_opens(sql: str) -> None:
    assert effect_of_command(sql) is Effect.MAY_OPEN


@pytest.mark.parametrize(
    "sql",
    [
        "LOCK TABLES t WRITE",
        "lock table t read local, u write",
        "/*!40000 LOCK TABLES t WRITE */",
        "LOCK INSTANCE FOR BACKUP",
        "FLUSH TABLES WITH READ LOCK",
        "FLUSH TABLES t FOR EXPORT",
        "BACKUP STAGE START",
        "HANDLER t OPEN",
        "SET autocommit = 0",
        "SET SESSION autocommit=0",
        "SET @@completion_type = 'CHAIN'",
        "SET IMPLICIT_TRANSACTIONS ON",
        "SET ANSI_DEFAULTS ON",
        "PRAGMA locking_mode = EXCLUSIVE",
        "IF 1 THEN SET autocommit=0; END IF",
        "BEGIN NOT ATOMIC SET autocommit=0; END",
        "EXECUTE IMMEDIATE 'SET autocommit=0'",
        "/*M! SET */ autocommit=0",
        "DISCARD ALL",
        "deallocate prepare all",
        "DISCARD/**/ALL",
    ],
)
def test_what_a_rollback_does_not_undo_taints_the_connection(sql: str) -> None:
    assert effect_of(sql) is Effect.TAINTS
    assert effect_of_command(sql) is Effect.TAINTS
    assert effect_of_command(f"SELECT 1; {sql}") is Effect.TAINTS


@pytest.mark.parametrize("sql", ["SELECT 'LOCK TABLES t WRITE'", "INSERT INTO handler VALUES (1)", "UNLOCK TABLES"])
def test_a_word_in_its_data_does_not_taint_a_statement(sql: str) -> None:
    assert effect_of(sql) is Effect.NONE


async def test_a_table_lock_outlives_a_rollback_and_the_connection_knows(mysql_db: Database) -> None:
    async with PySQLXEngine(mysql_db.uri) as locking, PySQLXEngine(mysql_db.uri) as other:
        await other.execute("CREATE TABLE t (a int)")
        assert not locking._tainted
        await locking.raw_cmd("LOCK TABLES t WRITE")
        await locking.rollback()
        await other.execute("SET lock_wait_timeout = 1")
        with pytest.raises(QueryError, match="Lock wait timeout"):
            await other.query("SELECT * FROM t")
        assert locking._tainted
        await locking.close()
        await locking.connect()
        assert not locking._tainted


async def test_autocommit_off_outlives_a_rollback_and_the_connection_knows(mysql_db: Database) -> None:
    async with PySQLXEngine(mysql_db.uri) as quiet, PySQLXEngine(mysql_db.uri) as other:
        await other.execute("CREATE TABLE t (a int) ENGINE=InnoDB")
        await quiet.execute("SET autocommit=0")
        await quiet.rollback()
        await quiet.execute("INSERT INTO t VALUES (1)")
        assert await other.query_as_dict("SELECT * FROM t") == []
        assert quiet._tainted
