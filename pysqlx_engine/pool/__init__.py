"""One process's pool. `core` decides, `runtime` performs, `aio` and `threads` are its two faces."""

from .aio import PySQLXEnginePool
from .stats import PoolStats
from .threads import PySQLXEnginePoolSync

__all__ = ["PoolStats", "PySQLXEnginePool", "PySQLXEnginePoolSync"]
