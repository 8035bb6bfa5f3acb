"""Settings: what may stand in the environment, in a settings file and on the command line of our commands.

Each level overrides the one after it:

1. the command line of `pysqlx-run` or `pysqlx-ctl coordinator` (in code: an argument of a pool);
2. the environment: `PYSQLX_` and the name in capitals;
3. the settings file: `--settings FILE`, or the file that `PYSQLX_SETTINGS` names;
4. the default.

An empty value counts as not set. This module imports pydantic-settings, which takes longer than the rest of a pool:
import it where a setting is read, not on top of a file.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from dotenv.parser import parse_stream
from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from .errors import SettingsError
from .log_config import DEFAULT_LEVELS, LEVELS, LOG_CONFIG, PARTS, log_levels
from .system import SOCKET_PATH_LIMIT

__all__ = [
    "CoordinatorSettings",
    "PoolSettings",
    "RunSettings",
    "load_pool_settings",
    "load_run_settings",
    "load_standalone_settings",
    "worker_environment",
]

PREFIX = "PYSQLX_"
FILE_VARIABLE = "PYSQLX_SETTINGS"
LOG_SWITCHES = ("PYSQLX_DEV_MODE", "PYSQLX_SQL_LOG", "PYSQLX_USE_COLOR", "PYSQLX_ERROR_JSON_FMT")

# A field's description is the one place that says what is allowed: `--help` and every error text print it.
Uri = Annotated[
    SecretStr | None,
    Field(min_length=1, description="a database URI: postgresql://, mysql://, sqlserver://, sqlite: or file:"),
]
MaxSize = Annotated[int | None, Field(ge=1, le=100_000, description="connections, a whole number from 1 to 100000")]
_RUN_NAME = Field(
    pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$",
    description="1 to 64 letters, digits, '.', '_' or '-', no '.' in front",
)


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)


class PoolSettings(_Settings):
    """What a pool takes from the settings when its constructor was not told."""

    uri: Uri = None
    min_size: Annotated[int, Field(ge=0, le=100_000, description="connections, a whole number from 0 to 100000")] = 1
    max_size: MaxSize = None
    """The operator's value. `None`: what the script states, or 10 where it states nothing."""
    sqlite_wal: Annotated[bool, Field(description="true or false")] = False
    """Switch SQLite files to WAL mode when a pool opens them: readers and the writer do not wait for each other. It is
    a property of the file and stays."""


_TCP = r"tcp://(\[[^\[\]]+\]|[^:/\[\]]+):(?P<port>[0-9]{1,5})"
_COORDINATOR = re.compile(rf"ipc://(?P<path>.+)|{_TCP}")


def _check_coordinator(address: str | None) -> str | None:
    found = _COORDINATOR.fullmatch(address) if address is not None else None
    if address is not None and (
        found is None
        or len(os.fsencode(found["path"] or "")) > SOCKET_PATH_LIMIT
        or not 1 <= int(found["port"] or 1) <= 65535
    ):
        raise ValueError("no address of a coordinator")
    return address


def _check_bind(address: str | None) -> str | None:
    found = re.fullmatch(_TCP, address) if address is not None else None
    if address is not None and (found is None or not 1 <= int(found["port"]) <= 65535):
        raise ValueError("no address to listen on")
    return address


_HTTP = r"(\[[^\[\]]+\]|[^:/\[\]]+):(?P<port>[0-9]{1,5})"


def is_http_address(text: str) -> bool:
    found = re.fullmatch(_HTTP, text)
    return found is not None and int(found["port"]) <= 65535


def _check_http(address: str | None) -> str | None:
    if address is not None and not is_http_address(address):
        raise ValueError("no address to listen on")
    return address


def _check_token(token: SecretStr | None) -> SecretStr | None:
    if token is not None and not re.fullmatch(r"[!-~]{16,200}", token.get_secret_value()):
        raise ValueError("no token")  # it has to fit into a header
    return token


_HttpAddress = Annotated[
    str | None,
    AfterValidator(_check_http),
    Field(description="HOST:PORT, where HOST is an address of this machine, a name of one, or * for all"),
]


class ObserverSettings(_Settings):
    """What shows a run is told."""

    dashboard: _HttpAddress = None
    """Where the web page listens. Elsewhere than on loopback it needs a token."""
    dashboard_token: Annotated[
        SecretStr | None,
        AfterValidator(_check_token),
        Field(description="a secret of 16 to 200 letters, digits and signs, without blanks"),
    ] = None
    """Who has it may see the page and press its buttons. `None`: on loopback nobody needs one, elsewhere one is made at
    each start and printed."""
    metrics: _HttpAddress = None
    """Where metrics can be had, and whether the run is ready, by whoever can reach it."""


class JoinSettings(_Settings):
    """What any process is told that may join a coordinator."""

    coordinator: Annotated[
        str | None,
        AfterValidator(_check_coordinator),
        Field(
            description=(
                f"the address of a running coordinator: ipc://PATH (at most {SOCKET_PATH_LIMIT} bytes) "
                "or tcp://HOST:PORT"
            )
        ),
    ] = None
    """The coordinator to join; `None`: `pysqlx-run` starts one where more than one worker needs it."""
    curve_keys: Annotated[
        str | None,
        Field(description="a file that pysqlx-ctl keygen has written, mode 0600: coordinator.keys or client.keys"),
    ] = None
    """The keys of connections over tcp://. Without them a coordinator listens, and is joined, only on loopback."""


def _check_levels(text: str) -> str:
    log_levels(text)
    return text


class CoordinatorSettings(JoinSettings):
    """What a coordinator is told."""

    log_format: Annotated[
        Literal["text", "json"], Field(description="text (for people) or json (one JSON object a line)")
    ] = "text"
    log_level: Annotated[
        str,
        AfterValidator(_check_levels),
        Field(
            description="LEVEL, PART=LEVEL or several of them with commas between, such as info,pool=debug; "
            f"levels are {', '.join(LEVELS)}; parts are {', '.join(PARTS)}"
        ),
    ] = DEFAULT_LEVELS
    """From which level on lines are logged. A level without a part is for all that is not named, scripts' own loggers
    too, as long as the script says nothing else."""

    bind: Annotated[
        str | None,
        AfterValidator(_check_bind),
        Field(
            description=(
                "tcp://HOST:PORT, where HOST is an address of this machine, a name of one, an interface or * for all; "
                "all but loopback need --curve-keys"
            )
        ),
    ] = None
    """Where processes of other hosts can join, besides the socket in the run's directory."""
    term: Annotated[
        float,
        Field(
            ge=2,
            le=300,
            allow_inf_nan=False,
            description="seconds (2 to 300) without a sign of life until a process of another host counts as dead",
        ),
    ] = 6.0


class RunSettings(ObserverSettings, CoordinatorSettings):
    """What `pysqlx-run` is told. Times are in seconds."""

    workers: Annotated[int, Field(ge=1, le=4096, description="processes, a whole number from 1 to 4096")] = 1
    max_size: MaxSize = None
    uri: Uri = None
    restart: Annotated[Literal["never", "on-failure", "always"], Field(description="never, on-failure or always")] = (
        "on-failure"
    )
    graceful_timeout: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="seconds that workers may take to end, 0 or more")
    ] = 30.0
    max_jobs: Annotated[int | None, Field(ge=1, description="jobs, a whole number of at least 1")] = None
    """Jobs of a queue after which a worker is replaced by another one, a tenth more or less."""
    max_memory: Annotated[int | None, Field(ge=1, description="MiB, a whole number of at least 1")] = None
    """Memory (RSS) at which a worker that serves a queue is replaced, a tenth more or less."""
    name: Annotated[str | None, _RUN_NAME] = None
    loop: Annotated[Literal["auto", "asyncio", "uvloop"], Field(description="auto, asyncio or uvloop")] = "auto"
    prefix: Annotated[bool, Field(description="true or false")] = True
    log_file: Annotated[
        str | None, Field(min_length=1, description="a file, made if it is not there; USR1 opens it anew")
    ] = None
    reload: Annotated[bool, Field(description="true or false")] = False
    """For development: replace the workers when a file of the script's directory has changed."""


class StandaloneSettings(CoordinatorSettings):
    """What a coordinator on its own is told."""

    name: Annotated[str, _RUN_NAME] = "default"
    max_size: MaxSize = None
    """The operator's budget for each database. `None`: what the scripts state."""


@dataclass(frozen=True, slots=True)
class _FileEntry:
    value: str
    line: int


_Model = TypeVar("_Model", bound=_Settings)


def load_pool_settings(**arguments: object) -> PoolSettings:
    """The settings of a pool. `arguments` are what code said; one that is `None` was not said.

    Raises `SettingsError` for the first bad value, in one line.
    """
    path, entries = _read_settings_file(os.environ.get(FILE_VARIABLE), FILE_VARIABLE)
    _apply_log_switches(path, entries)
    return _load(PoolSettings, arguments, "{name}={value!r}", path, entries)


def load_run_settings(settings: str | None = None, **options: object) -> RunSettings:
    """The settings of a run. `settings` is the file of `--settings`, `options` what else the command line said.

    What workers will read (the pool's settings, the log switches) is checked too: a bad value is found before any
    process starts. Raises `SettingsError` for the first bad value, in one line.
    """
    path, entries = _settings_file(settings)
    _apply_log_switches(path, entries)
    run = _load(RunSettings, options, "--{option} {value}", path, entries)
    _load(PoolSettings, {}, "", path, entries)
    return run


def load_standalone_settings(settings: str | None = None, **options: object) -> StandaloneSettings:
    """The settings of a coordinator on its own, with the parameters of `load_run_settings`.

    Raises `SettingsError` for the first bad value, in one line.
    """
    path, entries = _settings_file(settings)
    return _load(StandaloneSettings, options, "--{option} {value}", path, entries)


def load_join_settings() -> JoinSettings:
    """Which coordinator this process is to join, and with which keys. Raises `SettingsError` for a bad value."""
    path, entries = _read_settings_file(os.environ.get(FILE_VARIABLE), FILE_VARIABLE)
    return _load(JoinSettings, {}, "", path, entries)


def worker_environment(settings: str | None = None, **options: object) -> dict[str, str]:
    """The variables that hand the command line and the settings file on to worker processes.

    Workers read the environment only: one that is restarted sees the run's settings although the file has changed.
    """
    _, entries = _settings_file(settings)
    environment = _environment()
    variables = {name: entry.value for name, entry in entries.items() if name not in environment}
    variables.update({f"{PREFIX}{name.upper()}": str(value) for name, value in options.items() if value is not None})
    return variables | {FILE_VARIABLE: ""}


def _settings_file(option: str | None) -> tuple[Path | None, dict[str, _FileEntry]]:
    if option is not None:
        return _read_settings_file(option, "--settings")
    return _read_settings_file(os.environ.get(FILE_VARIABLE), FILE_VARIABLE)


def _read_settings_file(text: str | None, origin: str) -> tuple[Path | None, dict[str, _FileEntry]]:
    """The `PYSQLX_` entries of a settings file, each with its line. Other names are other programs' business."""
    if not text:
        return None, {}
    path = Path(text)
    try:
        with path.open(encoding="utf-8") as stream:
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{origin}={text}: cannot read the settings file: {reason}") from None
    entries: dict[str, _FileEntry] = {}
    for binding in bindings:
        line = binding.original.line + _blank_lines_before(binding.original.string)
        if binding.error:
            raise SettingsError(f"{path}, line {line}: not a setting; write NAME=value")
        name = (binding.key or "").upper()
        if not name.startswith(PREFIX):
            continue
        if name not in _KNOWN:
            raise SettingsError(f"{path}, line {line}: unknown setting {name}{_suggestion(name)}")
        if binding.value:
            entries[name] = _FileEntry(binding.value, line)
    return path, entries


def _environment() -> dict[str, str]:
    """Our variables that are set, by their names in capitals: pydantic-settings, too, takes them in any case."""
    return {name.upper(): value for name, value in os.environ.items() if value and name.upper().startswith(PREFIX)}


def _blank_lines_before(text: str) -> int:
    """How many lines of what the parser took for an entry stand before the entry itself."""
    return text[: len(text) - len(text.lstrip())].count("\n")


_KNOWN = {f"{PREFIX}{field.upper()}" for model in (PoolSettings, RunSettings) for field in model.model_fields}
_KNOWN.update(LOG_SWITCHES)


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, sorted(_KNOWN), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(_KNOWN))}"


def _apply_log_switches(path: Path | None, entries: Mapping[str, _FileEntry]) -> None:
    """Give `LOG_CONFIG` the switches of the file that neither the environment nor code has turned on before."""
    LOG_CONFIG.check()
    for name in LOG_SWITCHES:
        entry = entries.get(name)
        if entry is None or name in _environment() or getattr(LOG_CONFIG, name):
            continue
        try:
            setattr(LOG_CONFIG, name, entry.value)
        except SettingsError as error:
            raise SettingsError(f"{path}, line {entry.line}: {error}") from None


def _load(
    model: type[_Model],
    arguments: Mapping[str, object],
    origin: str,
    path: Path | None,
    entries: Mapping[str, _FileEntry],
) -> _Model:
    said = {name: value for name, value in arguments.items() if value is not None}
    environment = _environment()
    # pydantic-settings can read the file too, but forgets where a value came from and replaces ${...} in passwords.
    filed = {
        name: entries[variable].value
        for name in model.model_fields
        if (variable := f"{PREFIX}{name.upper()}") in entries and variable not in environment
    }
    try:
        return model.model_validate(filed | said)
    except ValidationError as error:
        name = str(error.errors(include_url=False)[0]["loc"][0])
    variable = f"{PREFIX}{name.upper()}"
    if name in said:
        text = origin.format(name=name, option=name.replace("_", "-"), value=_shown(name, str(said[name])))
    elif name in filed:
        text = f"{path}, line {entries[variable].line}: {variable}={_shown(name, filed[name])}"
    else:
        text = f"{variable}={_shown(name, environment[variable])}"
    raise SettingsError(f"{text} is not allowed: {model.model_fields[name].description}")


def _shown(name: str, value: str) -> str:
    """A value as an error may print it: a URI may hold a password."""
    return "***" if name in {"uri", "dashboard_token"} else value
