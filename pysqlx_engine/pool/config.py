"""The parameters of a pool: defaults, ranges, and what comes from the settings when it is left out."""

from __future__ import annotations

import itertools
import math
import os
import sys
from dataclasses import dataclass

from ..engine.uri import DatabaseURI, parse_uri
from ..log_config import LOG_CONFIG
from .hooks import Hook

_names = itertools.count(1)


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """Checked parameters; what they mean stands in `PoolFace`."""

    name: str
    uri: DatabaseURI | None
    """None when a function gives it."""
    min_size: int
    max_size: int
    max_size_stated: bool
    conn_timeout: float
    keep_alive: float
    check_interval: float
    monitor_batch_size: int
    max_idle: float
    check_after: float
    max_waiting: int
    fail_fast: bool
    leak_threshold: float | None
    reconnect_timeout: float
    sqlite_wal: bool


def pool_config(
    *,
    uri: str | Hook | None,
    min_size: int | None,
    max_size: int | None,
    conn_timeout: float,
    keep_alive: float,
    check_interval: float,
    monitor_batch_size: int,
    name: str | None,
    max_idle: float,
    check_after: float | None,
    max_waiting: int,
    fail_fast: bool,
    leak_threshold: float | None,
    reconnect_timeout: float,
) -> PoolConfig:
    """Check every parameter. Raises ValueError or TypeError that names parameter, value and range, and ConnectError for
    a URI that no driver takes."""
    LOG_CONFIG.check()
    stated = max_size is not None
    sqlite_wal = False
    if uri is None or min_size is None or max_size is None or _settings_may_say("PYSQLX_SQLITE_WAL"):
        from ..settings import load_pool_settings  # costs a third of the import time, so only when it is needed

        settings = load_pool_settings()
        sqlite_wal = settings.sqlite_wal
        if uri is None:
            if settings.uri is None:
                raise ValueError("no uri: pass uri=..., or set PYSQLX_URI")
            uri = settings.uri.get_secret_value()
        if max_size is None:
            max_size = settings.max_size or 10
        if min_size is None:
            _whole("max_size", max_size, 1)
            min_size = min(settings.min_size, max_size)
    check_sizes(min_size, max_size)
    _seconds("conn_timeout", conn_timeout, zero=True)
    _seconds("keep_alive", keep_alive)
    _seconds("check_interval", check_interval)
    _whole("monitor_batch_size", monitor_batch_size, 1)
    _seconds("max_idle", max_idle)
    if check_after is not None:
        _seconds("check_after", check_after, zero=True)
    _whole("max_waiting", max_waiting, 0)
    if not isinstance(fail_fast, bool):
        raise TypeError(f"fail_fast={fail_fast!r}: True or False is needed")
    if leak_threshold is not None:
        _seconds("leak_threshold", leak_threshold)
    _seconds("reconnect_timeout", reconnect_timeout, zero=True)
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name={name!r}: a string is needed")
    if name is not None and not name.isprintable():
        raise ValueError(f"name={name!r}: it has to be printable")
    return PoolConfig(
        name=name or f"pool-{next(_names)}",
        uri=None if callable(uri) else parse_uri(uri),
        min_size=min_size,
        max_size=max_size,
        max_size_stated=stated,
        conn_timeout=float(conn_timeout),
        keep_alive=float(keep_alive),
        check_interval=float(check_interval),
        monitor_batch_size=monitor_batch_size,
        max_idle=float(max_idle),
        check_after=math.inf if check_after is None else float(check_after),
        max_waiting=max_waiting,
        fail_fast=fail_fast,
        leak_threshold=None if leak_threshold is None else float(leak_threshold),
        reconnect_timeout=float(reconnect_timeout),
        sqlite_wal=sqlite_wal,
    )


def check_sizes(min_size: int, max_size: int) -> None:
    """Raises ValueError or TypeError for a pair of sizes that no pool can have."""
    _whole("max_size", max_size, 1)
    _whole("min_size", min_size, 0)
    if min_size > max_size:
        raise ValueError(f"min_size={min_size} is above max_size={max_size}: it has to be from 0 to max_size")


def check_timeout(timeout: float) -> None:
    """Raises ValueError or TypeError for what nobody can wait."""
    _seconds("timeout", timeout, zero=True)


def _settings_may_say(variable: str) -> bool:
    """Whether the settings can have a value for `variable`, without reading them."""
    return bool(os.environ.get(variable) or os.environ.get("PYSQLX_SETTINGS"))


def _whole(parameter: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{parameter}={value!r}: a whole number of at least {least} is needed")
    if value < least:
        raise ValueError(f"{parameter}={value}: it has to be at least {least}")


def _seconds(parameter: str, value: object, *, zero: bool = False) -> None:
    least = "at least 0" if zero else "above 0"
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{parameter}={value!r}: a number of seconds {least} is needed")
    if not 0 <= value <= sys.float_info.max or (value == 0 and not zero):
        raise ValueError(f"{parameter}={value}: it has to be a finite number of seconds {least}")
