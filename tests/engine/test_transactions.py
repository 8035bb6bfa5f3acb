"""Which statements leave a transaction open."""

from __future__ import annotations

import pytest

from pysqlx_engine.engine.transactions import Effect, effect_of, effect_of_command


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
        "SAVEPOINT a",
        "SET autocommit = 0",
        "SET SESSION autocommit=0",
        "SET IMPLICIT_TRANSACTIONS ON",
        "CALL p()",
        "XA START 'x'",
        "/*!50000 START TRANSACTION */",
        "COMMIT AND CHAIN",
        "ROLLBACK AND CHAIN",
        "ROLLBACK TO a",
        "",
        "ROLLBACK TO SAVEPOINT a",
        "COMMIT PREPARED 'x'",
        "EXEC p",
        "-- " + "x" * 5000 + "\nBEGIN",
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
