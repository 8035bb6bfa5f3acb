"""One process's pool. `core` decides, `runtime` performs, `aio` and `threads` are its two faces."""

from . import ending as _ending  # noqa: F401 - what happens at exit and after a fork
from .aio import PySQLXEnginePool
from .stats import PoolStats
from .threads import PySQLXEnginePoolSync

__all__ = ["PoolStats", "PySQLXEnginePool", "PySQLXEnginePoolSync"]
