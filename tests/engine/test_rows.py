"""How a result becomes rows."""

from __future__ import annotations

import pickle
import warnings
from decimal import Decimal

import pytest

from pysqlx_engine import BaseRow, PySQLXEngineSync


@pytest.fixture
def sqlite(sqlite_uri: str) -> PySQLXEngineSync:
    conn = PySQLXEngineSync(sqlite_uri)
    conn.connect()
    return conn


@pytest.mark.parametrize(
    "name",
    ["a b", "1a", "é", "class", 'a"b', "self", "_x", "__x", "json", "copy", "dict", "schema", "model_x", "register"],
)
def test_any_column_name_is_an_attribute(sqlite: PySQLXEngineSync, name: str) -> None:
    quoted = name.replace('"', '""')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = sqlite.query_first(f'SELECT 1 AS "{quoted}", 2 AS other')
    assert row is not None
    assert getattr(row, name) == 1
    assert row.model_dump() == {name: 1, "other": 2}
    assert f"{name}=1" in repr(row)


@pytest.mark.parametrize("name", ["model_dump", "model_config", "model_fields", "__class__", "__dict__", "__init__"])
def test_a_name_pydantic_needs_is_found_in_the_dump(sqlite: PySQLXEngineSync, name: str) -> None:
    row = sqlite.query_first(f'SELECT 1 AS "{name}", 2 AS other')
    assert row is not None
    assert row.model_dump() == {name: 1, "other": 2}
    assert row.model_extra == {name: 1}
    assert isinstance(row, BaseRow)


def test_the_class_of_a_result_shape_is_made_once(sqlite: PySQLXEngineSync) -> None:
    first, second = (sqlite.query("SELECT 1 AS a, 'x' AS b") for _ in range(2))
    assert type(first[0]) is type(second[0])
    assert first == second
    assert set(type(first[0]).model_fields) == {"a", "b"}
    assert type(sqlite.query("SELECT 1.5 AS a, 'x' AS b")[0]) is not type(first[0])


def test_a_column_may_hold_values_of_several_types(sqlite: PySQLXEngineSync) -> None:
    rows = sqlite.query("SELECT NULL AS a UNION ALL SELECT 1.5 UNION ALL SELECT 'x' UNION ALL SELECT 2")
    assert {row.a for row in rows} == {None, 1.5, "x", 2}


def test_columns_of_one_name_are_numbered(sqlite: PySQLXEngineSync) -> None:
    assert sqlite.query_as_dict("SELECT 1 AS a, 2 AS a") == [{"a": 1, "a_1": 2}]


def test_rows_survive_pickling_comparing_and_copying(postgresql_uri: str) -> None:
    with PySQLXEngineSync(postgresql_uri) as conn:
        rows = conn.query("SELECT 1 AS a, 1.50 AS b, NULL::text AS c, 4 AS json, 5 AS model_dump")
    assert pickle.loads(pickle.dumps(rows)) == rows
    assert rows[0].model_copy() == rows[0]
    assert BaseRow.model_validate(rows[0]) is rows[0]
    assert rows[0].model_dump() == {"a": 1, "b": Decimal("1.50"), "c": None, "json": 4, "model_dump": 5}


def test_an_attribute_of_a_row_can_be_set_in_that_row_only(sqlite: PySQLXEngineSync) -> None:
    first, second = sqlite.query("SELECT 1 AS a UNION ALL SELECT 2 ORDER BY a")
    first.a = 5  # type: ignore[attr-defined]
    assert (first.model_dump(), second.model_dump()) == ({"a": 5}, {"a": 2})
