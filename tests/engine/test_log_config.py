"""The four switches: where they come from, what they refuse, what they log."""

from __future__ import annotations

import io
import logging
import logging.config
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pysqlx_engine import PySQLXEngineSync
from pysqlx_engine.errors import SettingsError
from pysqlx_engine.log_config import LOG_CONFIG, PARTS, part

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


# -- parts of the one logger ------------------------------------------------------------------------------------------


@pytest.fixture
def ours() -> Iterator[logging.Logger]:
    """The logger of all parts. It, and their levels, are as before afterwards."""
    logger = logging.getLogger("pysqlx_engine")
    yield logger
    logger.disabled = False
    logger.setLevel(logging.NOTSET)
    for handler in [*logger.handlers]:
        logger.removeHandler(handler)
    for name in PARTS:
        part(name).setLevel(logging.NOTSET)


def written_to(logger: logging.Logger, form: str = "%(levelname)s:%(name)s:%(message)s") -> io.StringIO:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter(form))
    logger.addHandler(handler)
    return text


def test_all_parts_log_as_one_logger(ours: logging.Logger) -> None:
    text = written_to(ours, "%(levelname)s:%(name)s:%(part)s:%(module)s:%(message)s")
    ours.setLevel(logging.INFO)

    def not_that(record: logging.LogRecord) -> bool:
        return record.getMessage() != "refused"

    ours.addFilter(not_that)
    part("pool").debug("not")
    part("pool").info("refused")
    ours.removeFilter(not_that)
    part("jobs").info("said by %s", "me")
    ours.disabled = True
    part("jobs").critical("not")
    assert not part("jobs").isEnabledFor(logging.CRITICAL)
    assert text.getvalue() == "INFO:pysqlx_engine:jobs:test_log_config:said by me\n"


def test_the_level_of_a_part_is_its_own_whatever_is_configured(ours: logging.Logger) -> None:
    part("pool").setLevel(logging.DEBUG)
    part("jobs").setLevel(logging.ERROR)
    logging.config.dictConfig({"version": 1, "incremental": False, "loggers": {"pysqlx_engine": {"level": "WARNING"}}})
    text = written_to(ours)
    for name in ("pool", "jobs", "sql"):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            part(name).log(level, name)
    written = [line.replace(":pysqlx_engine:", " ") for line in text.getvalue().split()]
    assert written == [
        "DEBUG pool",
        "INFO pool",
        "WARNING pool",
        "ERROR pool",
        "ERROR jobs",
        "WARNING sql",
        "ERROR sql",
    ]
    logging.disable(logging.CRITICAL)
    try:
        assert not part("pool").isEnabledFor(logging.CRITICAL)
    finally:
        logging.disable(logging.NOTSET)


def test_an_answer_is_given_at_any_level(ours: logging.Logger) -> None:
    text = written_to(ours)
    part("coordinator").setLevel(logging.CRITICAL)
    part("coordinator").answer("budget %d", 3)
    assert text.getvalue() == "INFO:pysqlx_engine:budget 3\n"


def test_a_traceback_of_ours_shows_no_password_to_any_handler(ours: logging.Logger) -> None:
    text = written_to(ours)
    for problem in ("redis://:geheim@h/0", "no secret"):
        try:
            raise ValueError(problem)
        except ValueError:
            part("pool").exception("failed")
    assert "geheim" not in text.getvalue()
    assert "ValueError: redis://:***@h/0\nERROR" in text.getvalue()
    assert text.getvalue().endswith("ValueError: no secret\n")
