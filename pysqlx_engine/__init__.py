"""SQL connections and pools with one hard connection budget for a whole fleet of processes."""

from . import joining as _joining  # noqa: F401 - decides where pools get their budget
from .engine import BaseRow, PySQLXEngine, PySQLXEngineSync
from .log_config import LOG_CONFIG
from .pool import PoolStats, PySQLXEnginePool, PySQLXEnginePoolSync

__all__ = [
    "LOG_CONFIG",
    "BaseRow",
    "PoolStats",
    "PySQLXEngine",
    "PySQLXEnginePool",
    "PySQLXEnginePoolSync",
    "PySQLXEngineSync",
]
