"""Every Python type a parameter may have, in and out, on each database and each face."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from pysqlx_engine import BaseRow, PySQLXEngineSync
from pysqlx_engine.errors import (
    ExecuteError,
    ParameterInvalidJsonValueError,
    ParameterInvalidValueError,
    QueryError,
)

from ..servers import Database, PostgresServer
from .conftest import Face


class Mood(Enum):
    HAPPY = "happy"


class Number(IntEnum):
    THREE = 3


class Word(StrEnum):
    YES = "yes"


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "not this"


class Integer(int):
    pass


class Moment(datetime):
    pass


class Amount(Decimal):
    pass


class Pair(NamedTuple):
    first: int
    second: int


PARIS = timezone(timedelta(hours=2))
NOON = datetime(2024, 2, 29, 12, 0, 0, 123456)
NOON_UTC = NOON.replace(tzinfo=UTC)
NOON_MS = int(NOON_UTC.timestamp() * 1000)
ID = UUID("ae77f0f3-0313-4ebe-9d1f-319d8fbe94d6")
JSON_IN = {"n": 1, "f": 0.1, "t": None, "b": True, "l": [1, {"x": "é"}], "s": "it's"}

# name of the case: value in, then per database the column's type and the value out.
CASES: dict[str, tuple[Any, tuple[str, Any], tuple[str, Any], tuple[str, Any]]] = {
    # value                                SQLite                      PostgreSQL                    MySQL
    "bool": (True, ("boolean", True), ("boolean", True), ("bit(1)", True)),
    "int": (-(2**63), ("bigint", -(2**63)), ("bigint", -(2**63)), ("bigint", -(2**63))),
    "int, small": (7, ("integer", 7), ("smallint", 7), ("tinyint", 7)),
    "float": (0.1, ("real", 0.1), ("double precision", 0.1), ("double", 0.1)),
    "float, large": (1.7e308, ("real", 1.7e308), ("double precision", 1.7e308), ("double", 1.7e308)),
    "float, small": (5e-324, ("real", 5e-324), ("double precision", 5e-324), ("double", 5e-324)),
    "float, minus zero": (-0.0, ("real", 0.0), ("double precision", -0.0), ("double", 0.0)),
    "float, many digits": (
        123456789.123,
        ("real", 123456789.123),
        ("numeric", Decimal("123456789.123")),
        ("decimal(20,3)", Decimal("123456789.123")),
    ),
    "str": ("it's é\n", ("text", "it's é\n"), ("text", "it's é\n"), ("text", "it's é\n")),
    "bytes": (b"\x00\xff", ("blob", b"\x00\xff"), ("bytea", b"\x00\xff"), ("blob", b"\x00\xff")),
    "bytearray": (bytearray(b"ab"), ("blob", b"ab"), ("bytea", b"ab"), ("blob", b"ab")),
    "memoryview": (memoryview(b"ab"), ("blob", b"ab"), ("bytea", b"ab"), ("blob", b"ab")),
    "Decimal": (
        Decimal("1234.50"),
        ("decimal(10,2)", Decimal("1234.5")),
        ("numeric(10,2)", Decimal("1234.5")),
        ("decimal(10,2)", Decimal("1234.5")),
    ),
    "int beyond 64 bits as Decimal": (
        Decimal(2**70),
        ("real", float(2**70)),
        ("numeric", Decimal(2**70)),
        ("decimal(30,0)", Decimal(2**70)),
    ),
    "date": (
        date(2024, 2, 29),
        ("date", date(2024, 2, 29)),
        ("date", date(2024, 2, 29)),
        ("date", datetime(2024, 2, 29, tzinfo=UTC)),  # the driver gives a MySQL date as a datetime
    ),
    "time": (time(1, 2, 3), ("time", 3723000), ("time", time(1, 2, 3)), ("time", time(1, 2, 3))),
    "time with microseconds": (
        time(1, 2, 3, 456789),
        ("time", 3723000),  # SQLite stores whole seconds, as milliseconds of the day
        ("time", time(1, 2, 3, 456789)),
        ("time(6)", time(1, 2, 3, 456789)),
    ),
    "datetime": (
        NOON,
        ("datetime", NOON_UTC.replace(microsecond=123000)),  # SQLite stores milliseconds
        ("timestamp", NOON_UTC),
        ("datetime(6)", NOON_UTC),
    ),
    "datetime with a zone": (
        NOON_UTC.astimezone(PARIS),
        ("bigint", NOON_MS),
        ("timestamptz", NOON_UTC),
        ("timestamp(6) NULL", NOON_UTC),
    ),
    "UUID": (ID, ("text", str(ID)), ("uuid", ID), ("char(36)", str(ID))),
    "dict": (JSON_IN, ("json", JSON_IN), ("jsonb", JSON_IN), ("json", JSON_IN)),
    "list": ([1, "two", None], ("json", [1, "two", None]), ("json", [1, "two", None]), ("json", [1, "two", None])),
    "None": (None, ("text", None), ("text", None), ("text", None)),
    "Enum": (Mood.HAPPY, ("text", "happy"), ("text", "happy"), ("text", "happy")),
    "IntEnum": (Number.THREE, ("integer", 3), ("integer", 3), ("integer", 3)),
    "StrEnum": (Word.YES, ("text", "yes"), ("text", "yes"), ("text", "yes")),
    "subclass of str": (Text("real"), ("text", "real"), ("text", "real"), ("text", "real")),
    "subclass of int": (Integer(4), ("integer", 4), ("integer", 4), ("integer", 4)),
    "subclass of datetime": (
        Moment(2024, 1, 1, tzinfo=UTC),
        ("datetime", datetime(2024, 1, 1, tzinfo=UTC)),
        ("timestamp", datetime(2024, 1, 1, tzinfo=UTC)),
        ("datetime", datetime(2024, 1, 1, tzinfo=UTC)),
    ),
    "subclass of Decimal": (
        Amount("0.25"),
        ("decimal", Decimal("0.25")),
        ("numeric", Decimal("0.25")),
        ("decimal(4,2)", Decimal("0.25")),
    ),
}


@pytest.fixture
def conn(face: Callable[[str], Face], shared_database: Database) -> Iterator[Face]:
    """An open connection of each class to each database."""
    connection = face(shared_database.uri)
    connection.connect()
    yield connection
    connection.close()


@pytest.mark.parametrize("case", CASES)
def test_a_value_survives_the_way_into_a_column_and_back(conn: Face, shared_database: Database, case: str) -> None:
    value, *columns = CASES[case]
    column, expected = columns[["sqlite", "postgresql", "mysql"].index(shared_database.provider)]
    conn.execute(f"CREATE TEMPORARY TABLE one (v {column})")
    assert conn.execute("INSERT INTO one (v) VALUES (:v)", {"v": value}) == 1
    row = conn.query_first("SELECT v FROM one")
    found = row.v
    if "json" in column and isinstance(found, str):
        found = json.loads(found)  # only PostgreSQL has a JSON type of its own
    assert found == expected
    assert repr(found) == repr(expected) or not isinstance(found, float)
    assert type(found) is type(expected)
    assert conn.query_first_as_dict("SELECT v FROM one") == {"v": row.v}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ((1, 2), "int[]"),
        ((), "int[]"),
        (Pair(1, 2), "bigint[]"),
        (("a", "é"), "text[]"),
        ((0.1, -2.0), "float8[]"),
        ((0.5, float("inf")), "float8[]"),
        ((True, False), "boolean[]"),
        ((Decimal("1.5"), Decimal(2)), "numeric[]"),
        ((date(2024, 2, 29),), "date[]"),
        ((time(1, 2, 3),), "time[]"),
        ((ID,), "uuid[]"),
        ((b"\x00", b"a"), "bytea[]"),
        (({"a": 1}, {"b": [2]}), "jsonb[]"),
    ],
)
def test_a_tuple_is_a_postgresql_array(
    face: Callable[[str], Face], postgres: PostgresServer, value: tuple[object, ...], kind: str
) -> None:
    conn = face(postgres.uri())
    conn.connect()
    row = conn.query_first(f"SELECT CAST(:v AS {kind}) AS v", {"v": value})
    assert row.v == tuple(value)
    assert type(row.v) is tuple
    moments = conn.query_first("SELECT CAST(:v AS timestamptz[]) AS v", {"v": (NOON, NOON_UTC.astimezone(PARIS))})
    assert moments.v == (NOON_UTC, NOON_UTC)
    mixed = conn.query_first("SELECT ARRAY[1, NULL] AS v")
    assert mixed.v == (1, None)


def test_a_postgresql_enum_takes_a_python_enum(postgresql_uri: str) -> None:
    with PySQLXEngineSync(postgresql_uri) as conn:
        conn.raw_cmd("CREATE TYPE mood AS ENUM ('happy', 'sad')")
        row = conn.query_first_as_dict(
            "SELECT CAST(:a AS mood) AS a, CAST(:b AS mood[]) AS b", {"a": Mood.HAPPY, "b": (Mood.HAPPY,)}
        )
    assert row == {"a": "happy", "b": ("happy",)}


def test_json_holds_what_the_documentation_says(postgresql_uri: str) -> None:
    data = {
        "bytes": b"super bytes",
        "uuid": ID,
        "time": time(12, 20, 50),
        "date": date(2023, 1, 15),
        "datetime": datetime(2023, 1, 15, 16, 7, 1, 441234),
        "decimal": Decimal("1.23"),
        "none": None,
        "bool": True,
        "enum": Number.THREE,
        "tuple": (1, 2),
        "subclass": Text("real"),
        7: Mood.HAPPY,
    }
    with PySQLXEngineSync(postgresql_uri) as conn:
        row = conn.query_first_as_dict("SELECT CAST(:v AS jsonb) AS v", {"v": data})
    assert row is not None
    assert row["v"] == {
        "bytes": "7375706572206279746573",
        "uuid": str(ID),
        "time": "12:20:50",
        "date": "2023-01-15",
        "datetime": "2023-01-15 16:07:01.441234",
        "decimal": "1.23",
        "none": None,
        "bool": True,
        "enum": 3,
        "tuple": [1, 2],
        "subclass": "real",
        "7": "happy",
    }


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (2**63, "beyond 64 bits: pass it as Decimal"),
        (-(2**63) - 1, "beyond 64 bits"),
        (Decimal("NaN"), "pass a float or None"),
        (Decimal("Infinity"), "pass a float or None"),
        ("\ud800", "no valid Unicode"),
        (time(1, tzinfo=PARIS), "zone cannot be sent"),
        (datetime.min.replace(tzinfo=PARIS), "out of range in UTC"),
    ],
)
def test_a_value_the_driver_would_choke_on_is_refused_by_name(conn: Face, value: object, says: str) -> None:
    with pytest.raises(ParameterInvalidValueError, match=rf"parameter 'v' .*{says}"):
        conn.query("SELECT :v AS v", {"v": value})
    assert conn.query_first("SELECT 1 AS a").a == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_float_that_is_not_finite_is_what_the_database_makes_of_it(
    conn: Face, shared_database: Database, value: float
) -> None:
    def read() -> object:
        return conn.query_first("SELECT CAST(:v AS double precision) AS v", {"v": value}).v

    if shared_database.provider == "mysql":
        with pytest.raises(ParameterInvalidValueError, match="which mysql does not know"):
            read()
    elif shared_database.provider == "sqlite" and math.isnan(value):
        assert read() is None
    else:
        assert repr(read()) == repr(value)


LOOP: list[object] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": {"b": float("nan")}}, r"v\['a'\]\['b'\] is nan"),
        ([2**63], r"v\[0\] is 9223372036854775808"),
        ({"a": {1, 2}}, r"v\['a'\] has the type set"),
        ({None: 1}, r"v has the key None"),
        (LOOP, "contains itself"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_place(conn: Face, value: object, says: str) -> None:
    with pytest.raises(ParameterInvalidJsonValueError, match=says):
        conn.query("SELECT :v AS v", {"v": value})


@pytest.mark.parametrize(
    "value", [(1, "a"), (1, None), ((1,), (2,)), (1.5, 2)], ids=["mixed", "NULL", "nested", "float and int"]
)
def test_an_array_of_more_than_one_type_is_refused(postgres: PostgresServer, value: tuple[object, ...]) -> None:
    with (
        PySQLXEngineSync(postgres.uri()) as conn,
        pytest.raises(ParameterInvalidValueError, match=r"position [01]"),
    ):
        conn.query("SELECT CAST(:v AS text[]) AS v", {"v": value})


@pytest.mark.parametrize("uri", ["sqlite_uri", "mariadb_uri"])
def test_only_postgresql_has_arrays(request: pytest.FixtureRequest, uri: str) -> None:
    with (
        PySQLXEngineSync(request.getfixturevalue(uri)) as conn,
        pytest.raises(ParameterInvalidValueError, match="arrays are PostgreSQL's"),
    ):
        conn.query("SELECT :v AS v", {"v": (1, 2)})


def test_a_parameter_without_a_name_is_refused(conn: Face) -> None:
    with pytest.raises(ParameterInvalidValueError, match="empty name"):
        conn.query("SELECT :a AS a", {"": 1, "a": 2})


@pytest.mark.parametrize("parameters", [[1], "a", {1: 2}, {"v": object()}, {"v": {1}}])
def test_parameters_of_a_wrong_type_are_a_type_error(conn: Face, parameters: object) -> None:
    with pytest.raises(TypeError, match="parameter"):
        conn.query("SELECT :v AS v", parameters)


def test_a_missing_parameter_is_the_databases_error(conn: Face) -> None:
    with pytest.raises(QueryError):
        conn.query("SELECT :a AS a, :b AS b", {"a": 1})
    with pytest.raises(ExecuteError):
        conn.execute("DELETE FROM nothing WHERE a = :a", {"b": 1})


def test_a_result_python_cannot_express_is_an_error_and_the_connection_goes_on(
    face: Callable[[str], Face], postgres: PostgresServer
) -> None:
    conn = face(postgres.uri())
    conn.connect()
    for call in (conn.query, conn.query_first, conn.query_as_dict, conn.query_first_as_dict):
        with pytest.raises(QueryError, match="cannot convert a value of the result"):
            call("SELECT DATE '20000-01-01' AS v")
    assert conn.query("SELECT 1 AS a") == [conn.query_first("SELECT 1 AS a")]
    assert isinstance(conn.query_first("SELECT 1 AS a"), BaseRow)


def test_a_float_is_a_number_to_mysql_where_single_precision_is_enough(mariadb_uri: str) -> None:
    with PySQLXEngineSync(mariadb_uri) as conn:
        values = {"x": 100.5, "y": 20.5}
        assert conn.query_first_as_dict("SELECT :x < :y AS a", values) == {"a": 0}
        assert conn.query_first_as_dict("SELECT GREATEST(:x, :y) AS a", values) == {"a": 100.5}
        exact = "SELECT CAST(:x AS double) < CAST(:y AS double) AS a"
        assert conn.query_first_as_dict(exact, {"x": 100.1, "y": 20.1}) == {"a": 0}
