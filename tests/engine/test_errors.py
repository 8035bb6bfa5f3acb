"""What an error says, and how."""

from __future__ import annotations

import json
import pickle

import pytest

from pysqlx_engine import errors
from pysqlx_engine.log_config import LOG_CONFIG


@pytest.mark.parametrize(
    "kind",
    [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PySQLXError)],
)
def test_an_error_has_code_and_message_and_survives_pickling(kind: type[errors.PySQLXError]) -> None:
    error = kind("42", "it's wrong")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.code, copy.message) == (kind, "42", "it's wrong")
    assert str(copy) == repr(copy) == f"{kind.__name__}(code='42', message=\"it's wrong\")"


def test_the_text_of_an_error_is_json_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOG_CONFIG, "PYSQLX_ERROR_JSON_FMT", True)
    error = errors.QueryError("42P01", "no such table")
    assert json.loads(str(error)) == {"code": "42P01", "message": "no such table", "error": "QueryError"}
    assert repr(error) == "QueryError(code='42P01', message='no such table')"


def test_json_errors_are_coloured_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(LOG_CONFIG, "PYSQLX_ERROR_JSON_FMT", True)
    monkeypatch.setattr(LOG_CONFIG, "PYSQLX_USE_COLOR", True)
    error = errors.QueryError("1", "no")
    assert "\x1b[" in str(error)
    monkeypatch.setenv("NO_COLOR", "1")
    assert json.loads(str(error))["code"] == "1"


@pytest.mark.parametrize("code", ["28000", "28P01", "3D000", "1044", "1045", "1049", "14", "PYSQLX006"])
def test_waiting_does_not_cure_a_wrong_password_or_database(code: str) -> None:
    assert errors.ConnectError(code, "no").permanent


@pytest.mark.parametrize("code", ["0", "53300", "57P03", "1040", "5", "28"])
def test_waiting_may_cure_a_server_that_is_down_or_full(code: str) -> None:
    assert not errors.ConnectError(code, "no").permanent
