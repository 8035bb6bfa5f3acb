"""SQL connections and pools with one hard connection budget for a whole fleet of processes."""

from typing import TYPE_CHECKING

from . import joining as _joining  # noqa: F401 - decides where pools get their budget
from .lazy_names import lazy_names
from .log_config import LOG_CONFIG

if TYPE_CHECKING:
    from .engine.connection import PySQLXEngine, PySQLXEngineSync
    from .engine.rows import BaseRow
    from .pool.aio import PySQLXEnginePool
    from .pool.stats import PoolStats
    from .pool.threads import PySQLXEnginePoolSync

__all__ = [
    "LOG_CONFIG",
    "BaseRow",
    "PoolStats",
    "PySQLXEngine",
    "PySQLXEnginePool",
    "PySQLXEnginePoolSync",
    "PySQLXEngineSync",
]

if not TYPE_CHECKING:  # which would take every name for one of ours
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "BaseRow": "engine.rows",
            "PoolStats": "pool.stats",
            "PySQLXEngine": "engine.connection",
            "PySQLXEnginePool": "pool.aio",
            "PySQLXEnginePoolSync": "pool.threads",
            "PySQLXEngineSync": "engine.connection",
        },
    )
