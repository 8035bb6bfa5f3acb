"""The documented methods of a connection, on every database and both faces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from pysqlx_engine import BaseRow, PySQLXEngine, PySQLXEngineSync
from pysqlx_engine.errors import (
    AlreadyConnectedError,
    ConnectError,
    ExecuteError,
    IsoLevelError,
    NotConnectedError,
    QueryError,
    RawCmdError,
    StartTransactionError,
)

from ..servers import Database, PostgresServer, free_port
from .conftest import Face


class User(BaseRow):
    id: int
    name: str = "nobody"


def test_rows_come_as_base_rows_models_or_dicts(conn: Face) -> None:
    sql = "SELECT :id AS id, :name AS name"
    if conn.engine.uri.startswith("postgresql"):
        sql = "SELECT CAST(:id AS int) AS id, :name AS name"
    values = {"id": 1, "name": "Rian"}
    assert repr(conn.query(sql, values)) == "[BaseRow(id=1, name='Rian')]"
    assert repr(conn.query_first(sql, values)) == "BaseRow(id=1, name='Rian')"
    assert conn.query(sql=sql, parameters=values, model=User) == [User(id=1, name="Rian")]
    assert conn.query_first(sql, values, User) == User(id=1, name="Rian")
    assert conn.query(sql, values, BaseRow) == conn.query(sql, values)
    assert conn.query_as_dict(sql, values) == [{"id": 1, "name": "Rian"}]
    assert conn.query_first_as_dict(sql, values) == {"id": 1, "name": "Rian"}


def test_no_rows_are_an_empty_list_or_none(conn: Face) -> None:
    conn.execute("CREATE TABLE empty (id int)")
    sql = "SELECT id FROM empty"
    assert conn.query(sql) == conn.query(sql, model=User) == conn.query_as_dict(sql) == []
    assert conn.query_first(sql) is conn.query_first(sql, model=User) is conn.query_first_as_dict(sql) is None


def test_execute_counts_the_rows_it_affects(conn: Face) -> None:
    assert conn.execute("CREATE TABLE t (id int)") == 0
    assert conn.execute("INSERT INTO t VALUES (1), (2), (3)") == 3
    assert conn.execute("DELETE FROM t WHERE id > :id", {"id": 1}) == 2


def test_raw_cmd_takes_several_statements(conn: Face) -> None:
    conn.raw_cmd("CREATE TABLE a (id int); CREATE TABLE b (id int)")
    assert conn.query("SELECT id FROM a") == conn.query("SELECT id FROM b") == []


def test_each_method_has_its_own_error_with_the_databases_code(conn: Face, database: Database) -> None:
    code = {"sqlite": "1", "postgresql": "42601", "mysql": "1064"}[database.provider]
    for method, kind in [
        (conn.query, QueryError),
        (conn.query_first, QueryError),
        (conn.query_as_dict, QueryError),
        (conn.query_first_as_dict, QueryError),
        (conn.execute, ExecuteError),
        (conn.raw_cmd, RawCmdError),
    ]:
        with pytest.raises(kind) as failed:
            method("SELEC 1")
        assert failed.value.code == code
        assert "SELEC" in failed.value.message
    assert conn.is_healthy()


def test_a_row_that_does_not_fit_the_model_is_a_validation_error(conn: Face) -> None:
    for method in (conn.query, conn.query_first):
        with pytest.raises(ValidationError):
            method("SELECT 'x' AS id", model=User)


def test_arguments_of_a_wrong_type_are_a_type_error(conn: Face) -> None:
    with pytest.raises(TypeError, match="sql must be a str, not int"):
        conn.query(1)
    with pytest.raises(TypeError, match="sql must be a str, not None"):
        conn.raw_cmd(None)
    for model in (int, dict, User(id=1), "User"):
        with pytest.raises(TypeError, match="model must be a class"):
            conn.query("SELECT 1 AS a", model=model)


def test_what_was_rolled_back_is_gone_and_what_was_committed_stays(conn: Face) -> None:
    conn.execute("CREATE TABLE t (id int)")
    for start in (conn.begin, conn.start_transaction, lambda: conn.start_transaction("Serializable")):
        start()
        conn.execute("INSERT INTO t VALUES (1)")
        conn.rollback()
        assert conn.query("SELECT id FROM t") == []
    conn.begin()
    conn.execute("INSERT INTO t VALUES (1)")
    conn.commit()
    assert len(conn.query("SELECT id FROM t")) == 1


def test_an_isolation_level_is_checked_before_and_by_the_database(conn: Face) -> None:
    conn.set_isolation_level("Serializable")
    for method in (conn.set_isolation_level, conn.start_transaction):
        with pytest.raises(ValueError, match="unknown isolation level 'serializable': allowed are ReadUncommitted"):
            method("serializable")
    with pytest.raises(IsoLevelError):
        conn.set_isolation_level("Snapshot")
    with pytest.raises(StartTransactionError):
        conn.start_transaction("Snapshot")


def test_the_connection_knows_when_a_transaction_may_be_open(face: Callable[[str], Face], database: Database) -> None:
    conn = face(database.uri)
    engine = conn.engine if isinstance(conn.engine, PySQLXEngine) else conn.engine._engine
    conn.connect()
    conn.execute("CREATE TABLE t (id int)")
    conn.execute("INSERT INTO t VALUES (1)")
    conn.query("SELECT id FROM t")
    assert not engine._dirty
    for start in (conn.begin, conn.start_transaction, lambda: conn.raw_cmd("BEGIN")):
        for end in (conn.commit, conn.rollback, lambda: conn.raw_cmd("COMMIT")):
            start()
            assert engine._dirty
            end()
            assert not engine._dirty
    conn.begin()
    conn.raw_cmd("SAVEPOINT a")
    conn.raw_cmd("ROLLBACK TO SAVEPOINT a")
    assert engine._dirty
    conn.rollback()
    conn.raw_cmd("SELECT 1; SELECT 2")
    assert engine._dirty


def test_a_transaction_is_known_to_have_ended_whichever_method_ended_it(
    face: Callable[[str], Face], database: Database
) -> None:
    conn = face(database.uri)
    engine = conn.engine if isinstance(conn.engine, PySQLXEngine) else conn.engine._engine
    conn.connect()
    for end in (conn.execute, conn.query, conn.query_first, conn.query_as_dict, conn.query_first_as_dict):
        conn.begin()
        assert engine._in_transaction
        end("COMMIT")
        assert not engine._dirty
        assert not engine._in_transaction


async def test_a_transaction_begun_before_the_commit_in_front_of_it_has_ended_is_known(database: Database) -> None:
    async with PySQLXEngine(database.uri) as conn:
        await conn.begin()
        # On SQLite the second may overtake the first, and fails then.
        await asyncio.gather(conn.commit(), conn.begin(), return_exceptions=True)
        assert conn._dirty
        assert conn._in_transaction


def test_a_connection_is_opened_once_and_closed_as_often_as_wanted(
    face: Callable[[str], Face], database: Database
) -> None:
    conn = face(database.uri)
    assert not conn.connected
    with pytest.raises(NotConnectedError, match="call connect"):
        conn.query("SELECT 1 AS a")
    with pytest.raises(NotConnectedError):
        conn.is_healthy()
    conn.connect()
    with pytest.raises(AlreadyConnectedError):
        conn.connect()
    assert conn.connected
    assert conn.uri == database.uri
    assert conn.is_healthy()
    assert conn.requires_isolation_first() is (database.provider == "mysql")
    conn.close()
    conn.close()
    assert not conn.connected
    conn.connect()
    assert conn.query_first("SELECT 1 AS a").a == 1
    conn.close()


async def test_leaving_the_context_closes_the_connection(database: Database) -> None:
    async with PySQLXEngine(database.uri) as conn:
        assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}
    assert not conn.connected
    with PySQLXEngineSync(database.uri) as sync:
        assert sync.query_first_as_dict("SELECT 1 AS a") == {"a": 1}
    assert not sync.connected


def test_a_password_is_in_the_attribute_only(face: Callable[[str], Face]) -> None:
    uri = f"postgresql://me:hunter2@127.0.0.1:{free_port()}/x?sslpassword=hunter2"
    conn = face(uri)
    assert conn.uri == uri
    assert "hunter2" not in repr(conn.engine)
    with pytest.raises(ConnectError) as failed:
        conn.connect()
    assert "hunter2" not in str(failed.value) + repr(failed.value)
    assert "127.0.0.1" in failed.value.message
    assert not failed.value.permanent


def test_an_unknown_database_user_or_directory_is_permanent(
    face: Callable[[str], Face], postgres: PostgresServer, mysql_server_uri: str
) -> None:
    mysql = mysql_server_uri.partition("://")[2].rpartition("/")[0]
    for uri in (
        postgres.uri("nothing_here"),
        postgres.uri().replace("postgres@", "nobody_here@"),
        f"mysql://{mysql}/nothing_here",
        f"mysql://nobody_here:wrong@{mysql.rpartition('@')[2]}/mysql",
        "sqlite:/nothing/here.db",
        postgres.uri(connect_timeout="soon"),
    ):
        with pytest.raises(ConnectError) as failed:
            face(uri).connect()
        assert failed.value.permanent, failed.value


async def test_a_cancelled_query_stays_counted_and_an_ended_one_does_not(postgresql_db: Database) -> None:
    async with PySQLXEngine(postgresql_db.uri) as conn:
        await conn.query("SELECT 1 AS a")
        with pytest.raises(QueryError):
            await conn.query("SELEC")
        assert conn._calls == 0
        query = asyncio.create_task(conn.query(postgresql_db.sleep_sql(0.2)))
        while not conn._calls:
            await asyncio.sleep(0)
        query.cancel()
        with pytest.raises(asyncio.CancelledError):
            await query
        assert conn._calls == 1
        await conn.query("SELECT 1 AS a")
        assert conn._calls == 1


async def test_an_error_that_is_kept_does_not_keep_the_connection_open(database: Database) -> None:
    conn = PySQLXEngine(database.uri)
    await conn.connect()
    kept: list[BaseException] = []
    for failing in (conn.query("SELECT nothing"), conn.execute("NOTHING"), conn.raw_cmd("NOTHING")):
        try:
            await failing
        except (QueryError, ExecuteError, RawCmdError) as error:
            kept.append(error)
    await conn.close()
    with database.sampler() as sample:
        while sample():
            await asyncio.sleep(0.005)
    assert len(kept) == 3


def test_a_session_ended_by_the_server_is_noticed(face: Callable[[str], Face], postgres: PostgresServer) -> None:
    conn = face(postgres.uri())
    conn.connect()
    pid = conn.query_first("SELECT pg_backend_pid() AS pid").pid
    with postgres.admin() as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
    with pytest.raises(QueryError):
        conn.query("SELECT 1 AS a")
    assert not conn.is_healthy()


def test_a_mysql_session_ended_by_the_server_is_noticed(face: Callable[[str], Face], mariadb_uri: str) -> None:
    conn = face(mariadb_uri)
    conn.connect()
    number = conn.query_first("SELECT connection_id() AS id").id
    with PySQLXEngineSync(mariadb_uri) as admin:
        admin.raw_cmd(f"KILL {number}")
    with pytest.raises(QueryError):
        conn.query("SELECT 1 AS a")
    assert not conn.is_healthy()


def test_a_mysql_connection_that_a_missing_parameter_broke_is_not_healthy(mariadb_uri: str) -> None:
    with PySQLXEngineSync(mariadb_uri) as conn:
        with pytest.raises(QueryError, match="takes 1 parameters"):
            conn.query("SELECT :a AS a")
        assert not conn.is_healthy()


def test_a_connection_whose_prepared_statements_are_of_no_use_is_not_healthy(
    face: Callable[[str], Face], postgresql_db: Database
) -> None:
    forgotten = face(postgresql_db.uri)
    forgotten.connect()
    forgotten.query("SELECT 1 AS a")
    forgotten.raw_cmd("DEALLOCATE ALL")
    with pytest.raises(QueryError, match=r"prepared statement .* does not exist"):
        forgotten.query("SELECT 1 AS a")
    assert not forgotten.is_healthy()
    stale = face(postgresql_db.uri)
    stale.connect()
    stale.execute("CREATE TABLE t (a int)")
    stale.query("SELECT * FROM t")
    stale.execute("ALTER TABLE t ADD COLUMN b int")
    with pytest.raises(QueryError, match="cached plan must not change result type"):
        stale.query("SELECT * FROM t")
    assert not stale.is_healthy()


def test_a_connection_that_a_value_broke_is_not_healthy(face: Callable[[str], Face], postgresql_db: Database) -> None:
    conn = face(postgresql_db.uri)
    conn.connect()
    with pytest.raises(QueryError, match="cannot convert a value of the result, or of the parameters"):
        conn.query("SELECT CAST(:v AS numeric) AS v", {"v": float("inf")})
    assert not conn.is_healthy()


async def test_a_connection_closed_before_its_commit_has_ended_needs_a_closer_look(database: Database) -> None:
    async with PySQLXEngine(database.uri) as conn:
        await conn.begin()
        commit = asyncio.create_task(conn.commit())
        await asyncio.sleep(0)
        await conn.close()
        await asyncio.wait([commit])
        assert conn._dirty


async def test_a_cancelled_call_that_a_value_broke_is_not_healthy(postgresql_db: Database) -> None:
    async def breaks_after_it_was_cancelled() -> bool:
        async with PySQLXEngine(postgresql_db.uri) as conn:
            call = asyncio.create_task(conn.query("SELECT CAST(:v AS numeric) AS v", {"v": float("inf")}))
            while not (conn._calls or call.done()):
                await asyncio.sleep(0)
            if call.done():  # the driver was faster
                assert isinstance(call.exception(), QueryError)
                return False
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
            await conn._finish_calls()
            assert not conn.is_healthy()
            return True

    while not await breaks_after_it_was_cancelled():
        pass
