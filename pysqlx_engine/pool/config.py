"""The parameters of a pool: defaults, ranges, and what comes from the settings when it is left out."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from ..engine.uri import DatabaseURI, parse_uri
from ..log_config import LOG_CONFIG

_names = itertools.count(1)


@dataclass(frozen=True, slots=True)
class PoolConfig:
    name: str
    uri: DatabaseURI
    min_size: int
    max_size: int
    max_size_stated: bool
    conn_timeout: float
    keep_alive: float
    check_interval: float
    monitor_batch_size: int


def pool_config(
    uri: str | None,
    min_size: int | None,
    max_size: int | None,
    conn_timeout: float,
    keep_alive: float,
    check_interval: float,
    monitor_batch_size: int,
    name: str | None,
) -> PoolConfig:
    """Check every parameter. Raises ValueError or TypeError that names parameter, value and range, and ConnectError for
    a URI that no driver takes."""
    LOG_CONFIG.check()
    stated = max_size is not None
    if uri is None or min_size is None or max_size is None:
        from ..settings import load_pool_settings  # costs a third of the import time, so only when it is needed

        settings = load_pool_settings()
        if uri is None:
            if settings.uri is None:
                raise ValueError("no uri: pass uri=..., or set PYSQLX_URI")
            uri = settings.uri.get_secret_value()
        if max_size is None:
            max_size = settings.max_size or 10
        if min_size is None:
            min_size = min(settings.min_size, max_size)
    _whole("max_size", max_size, 1)
    _whole("min_size", min_size, 0)
    if min_size > max_size:
        raise ValueError(f"min_size={min_size} is above max_size={max_size}: it has to be from 0 to max_size")
    _seconds("conn_timeout", conn_timeout, zero=True)
    _seconds("keep_alive", keep_alive)
    _seconds("check_interval", check_interval)
    _whole("monitor_batch_size", monitor_batch_size, 1)
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name={name!r}: a string is needed")
    return PoolConfig(
        name=name or f"pool-{next(_names)}",
        uri=parse_uri(uri),
        min_size=min_size,
        max_size=max_size,
        max_size_stated=stated,
        conn_timeout=float(conn_timeout),
        keep_alive=float(keep_alive),
        check_interval=float(check_interval),
        monitor_batch_size=monitor_batch_size,
    )


def _whole(parameter: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{parameter}={value!r}: a whole number of at least {least} is needed")
    if value < least:
        raise ValueError(f"{parameter}={value}: it has to be at least {least}")


def _seconds(parameter: str, value: object, *, zero: bool = False) -> None:
    least = "at least 0" if zero else "above 0"
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{parameter}={value!r}: a number of seconds {least} is needed")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{parameter}={value}: it has to be a finite number of seconds {least}")
