"""Settings: four levels, one line for a bad value, and the files in `settings/`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pysqlx_engine.errors import SettingsError
from pysqlx_engine.log_config import LOG_CONFIG
from pysqlx_engine.settings import (
    LOG_SWITCHES,
    load_join_settings,
    load_pool_settings,
    load_run_settings,
    worker_environment,
)

FILES = sorted((Path(__file__).parents[2] / "settings").glob("*.env"))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PYSQLX_"):
            monkeypatch.delenv(name)
    for switch in LOG_SWITCHES:
        monkeypatch.setattr(LOG_CONFIG, switch, False)


def settings_file(path: Path, text: str) -> str:
    file = path / "my.env"
    file.write_text(text)
    return str(file)


def refusal(settings: str | None = None, **options: object) -> str:
    with pytest.raises(SettingsError) as caught:
        load_run_settings(settings, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_said_gives_the_documented_defaults():
    pool = load_pool_settings()
    assert pool.uri is None
    assert (pool.min_size, pool.max_size) == (1, None)
    run = load_run_settings()
    assert (run.workers, run.restart, run.graceful_timeout) == (1, "on-failure", 30)
    assert (run.loop, run.prefix, run.name, run.coordinator) == ("auto", True, None, None)


def test_each_level_overrides_the_one_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = settings_file(tmp_path, "PYSQLX_WORKERS=2\n")
    assert load_run_settings().workers == 1
    assert load_run_settings(file).workers == 2
    monkeypatch.setenv("PYSQLX_WORKERS", "3")
    assert load_run_settings(file).workers == 3
    assert load_run_settings(file, workers="4").workers == 4


def test_an_empty_variable_counts_as_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYSQLX_WORKERS", "")
    assert load_run_settings(settings_file(tmp_path, "PYSQLX_WORKERS=2\nPYSQLX_MAX_SIZE=\n")).workers == 2


def test_a_plain_process_takes_the_file_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYSQLX_SETTINGS", settings_file(tmp_path, "PYSQLX_URI=sqlite:./a.db\nPYSQLX_SQL_LOG=yes\n"))
    settings = load_pool_settings()
    assert settings.uri is not None
    assert settings.uri.get_secret_value() == "sqlite:./a.db"
    assert LOG_CONFIG.PYSQLX_SQL_LOG


def test_a_switch_of_the_environment_beats_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYSQLX_SQL_LOG", "off")
    monkeypatch.setenv("PYSQLX_SETTINGS", settings_file(tmp_path, "PYSQLX_SQL_LOG=on\n"))
    load_pool_settings()
    assert not LOG_CONFIG.PYSQLX_SQL_LOG


def test_a_password_shows_in_no_repr():
    settings = load_pool_settings(uri="postgresql://app:hunter2@db/app")
    assert "hunter2" not in f"{settings!r} {settings}"


def test_a_bad_option_is_named_with_its_value_and_what_is_allowed():
    assert refusal(max_size="0") == "--max-size 0 is not allowed: connections, a whole number from 1 to 100000"
    assert refusal(graceful_timeout="soon").startswith("--graceful-timeout soon is not allowed: seconds")
    assert refusal(restart="maybe") == "--restart maybe is not allowed: never, on-failure or always"
    assert refusal(name="a/b").startswith("--name a/b is not allowed: 1 to 64 letters")


@pytest.mark.parametrize(
    "address", ["ipc:///run/c.sock", f"ipc://{'a' * 107}", "tcp://db.example:65535", "tcp://[::1]:1"]
)
def test_an_address_of_a_coordinator_is_a_path_or_a_host_with_a_port(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYSQLX_COORDINATOR", address)
    assert load_run_settings().coordinator == address
    assert load_join_settings().coordinator == address


@pytest.mark.parametrize(
    "address",
    ["/run/c.sock", "ipc://", f"ipc://{'a' * 108}", "tcp://nonsense", "tcp://:1", "tcp://h:0", "tcp://h:65536"],
)
def test_what_can_be_no_address_of_a_coordinator_is_refused(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYSQLX_COORDINATOR", address)
    assert refusal() == (
        f"PYSQLX_COORDINATOR={address} is not allowed: the address of a running coordinator: "
        "ipc://PATH (at most 107 bytes) or tcp://HOST:PORT"
    )


def test_a_bad_variable_is_named_as_a_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYSQLX_GRACEFUL_TIMEOUT", "nan")
    assert refusal().startswith("PYSQLX_GRACEFUL_TIMEOUT=nan is not allowed: seconds")


def test_a_bad_line_of_the_file_is_named_with_its_number(tmp_path: Path):
    file = settings_file(tmp_path, "# budget\n\nPYSQLX_MAX_SIZE=many # oops\n")
    assert refusal(file).startswith(f"{file}, line 3: PYSQLX_MAX_SIZE=many is not allowed: connections")
    file = settings_file(tmp_path, "\nPYSQLX_SQL_LOG=perhaps\n")
    assert refusal(file).startswith(f"{file}, line 2: PYSQLX_SQL_LOG")


def test_a_misspelt_name_in_the_file_is_refused_with_the_right_one(tmp_path: Path):
    file = settings_file(tmp_path, "DATABASE=theirs\nPYSQLX_MAXSIZE=3\n")
    assert refusal(file) == f"{file}, line 2: unknown setting PYSQLX_MAXSIZE; did you mean PYSQLX_MAX_SIZE?"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    missing = str(tmp_path / "none.env")
    assert refusal(missing) == f"--settings={missing}: cannot read the settings file: No such file or directory"
    monkeypatch.setenv("PYSQLX_SETTINGS", str(tmp_path))
    assert refusal().startswith(f"PYSQLX_SETTINGS={tmp_path}: cannot read the settings file: ")


def test_workers_get_what_the_environment_does_not_say_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYSQLX_MIN_SIZE", "3")
    file = settings_file(tmp_path, "PYSQLX_MIN_SIZE=2\nPYSQLX_WORKERS=2\nPYSQLX_URI=sqlite:${HOME}/a.db\n")
    assert worker_environment(file, max_size="7", uri=None) == {
        "PYSQLX_WORKERS": "2",
        "PYSQLX_URI": "sqlite:${HOME}/a.db",
        "PYSQLX_MAX_SIZE": "7",
        "PYSQLX_SETTINGS": "",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_to_copy_loads_as_it_is_and_shows_the_defaults(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    load_run_settings(str(file))
    without_default = "COORDINATOR|BIND|CURVE_KEYS|LOG_FILE"
    shown = "\n".join(re.findall(rf"^# (PYSQLX_(?!{without_default})\w+=.*)$", file.read_text(), re.MULTILINE))
    assert "PYSQLX_MIN_SIZE" in shown
    defaults = load_run_settings(), load_pool_settings()
    monkeypatch.setenv("PYSQLX_SETTINGS", settings_file(tmp_path, shown))
    assert (load_run_settings(), load_pool_settings()) == defaults


def test_there_is_a_file_to_copy_for_each_database():
    names = {file.name for file in FILES}
    assert names == {"sqlite.env", "postgresql.env", "mysql.env", "sqlserver.env", "production.env"}
