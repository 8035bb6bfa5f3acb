"""The four switches: where they come from, what they refuse, what they log."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from pysqlx_engine.engine import PySQLXEngineSync
from pysqlx_engine.errors import SettingsError
from pysqlx_engine.log_config import LOG_CONFIG

SWITCHES = ["PYSQLX_DEV_MODE", "PYSQLX_SQL_LOG", "PYSQLX_USE_COLOR", "PYSQLX_ERROR_JSON_FMT"]


@pytest.mark.parametrize(("word", "value"), [("1", True), ("YES", True), ("on", True), ("False", False), ("", False)])
def test_a_switch_starts_with_its_environment_variable(word: str, value: bool) -> None:
    script = "from pysqlx_engine.log_config import LOG_CONFIG; print(LOG_CONFIG)"
    environment = dict.fromkeys(SWITCHES, word)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"LogConfig({', '.join(f'{name}={value}' for name in SWITCHES)})"


USES = [
    "from pysqlx_engine import LOG_CONFIG; LOG_CONFIG.PYSQLX_SQL_LOG",
    "from pysqlx_engine import PySQLXEngineSync; PySQLXEngineSync('sqlite::memory:').connect()",
    "from pysqlx_engine import PySQLXEnginePoolSync; PySQLXEnginePoolSync('sqlite::memory:', min_size=1)",
]


@pytest.mark.parametrize("script", USES)
def test_a_bad_environment_variable_is_named_by_whatever_uses_it_first(script: str) -> None:
    environment = {"PYSQLX_SQL_LOG": "maybe"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    said = "PYSQLX_SQL_LOG is 'maybe': allowed are 1, true, yes, on and 0, false, no, off"
    assert done.stderr.splitlines()[-1] == f"pysqlx_engine.errors.SettingsError: {said}"


@pytest.mark.parametrize("name", SWITCHES)
def test_a_value_that_is_no_bool_is_refused_by_name(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name} is 'maybe': allowed are 1, true"):
        setattr(LOG_CONFIG, name, "maybe")
    assert getattr(LOG_CONFIG, name) is False


def test_the_sql_log_shows_what_is_sent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sqlite_uri: str
) -> None:
    monkeypatch.setattr(LOG_CONFIG, "PYSQLX_SQL_LOG", True)
    with PySQLXEngineSync(sqlite_uri) as conn, caplog.at_level(logging.INFO, "pysqlx_engine"):
        conn.query("SELECT :a AS a, :b AS b", {"a": 1, "b": "it's"})
    assert [record.getMessage() for record in caplog.records] == [
        '\nSQL: SELECT ? AS a, ? AS b\n\nPARAMS: [1, "it\'s"]'
    ]
    assert caplog.records[0].levelno == logging.INFO


def test_development_mode_shows_the_sql_with_its_parameters_built_in(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sqlite_uri: str
) -> None:
    monkeypatch.setattr(LOG_CONFIG, "PYSQLX_DEV_MODE", True)
    with PySQLXEngineSync(sqlite_uri) as conn, caplog.at_level(logging.DEBUG, "pysqlx_engine"):
        conn.query("SELECT :a AS a, :ab AS b, x'00' AS c, :n AS n", {"a": "it's", "ab": [1], "n": None})
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert "SELECT 'it''s' AS a, '[1]' AS b, x'00' AS c, NULL AS n" in record.getMessage()


def test_nothing_is_logged_when_no_switch_is_on(caplog: pytest.LogCaptureFixture, sqlite_uri: str) -> None:
    with caplog.at_level(logging.DEBUG, "pysqlx_engine"), PySQLXEngineSync(sqlite_uri) as conn:
        conn.query("SELECT 1 AS a")
    assert not caplog.records


def test_logged_sql_is_coloured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sqlite_uri: str
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(LOG_CONFIG, "PYSQLX_SQL_LOG", True)
    monkeypatch.setattr(LOG_CONFIG, "PYSQLX_USE_COLOR", True)
    with PySQLXEngineSync(sqlite_uri) as conn, caplog.at_level(logging.INFO, "pysqlx_engine"):
        conn.query("SELECT 1 AS a")
    assert "\x1b[" in caplog.messages[0]
