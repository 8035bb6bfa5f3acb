"""Every exception of the package. All of them derive from `Exception`, none is raised with a password in its text."""

from __future__ import annotations

from typing import Any

__all__ = [
    "AlreadyConnectedError",
    "ConnectError",
    "ExecuteError",
    "IsoLevelError",
    "NotConnectedError",
    "ParameterInvalidJsonValueError",
    "ParameterInvalidProviderError",
    "ParameterInvalidValueError",
    "PoolAlreadyClosedError",
    "PoolAlreadyStartedError",
    "PoolClosedError",
    "PoolError",
    "PoolRefusedError",
    "PoolTimeoutError",
    "PySQLXError",
    "QueryError",
    "RawCmdError",
    "SettingsError",
    "StartTransactionError",
]


class PoolError(Exception):
    """Base class of everything a pool raises about itself."""


class PoolTimeoutError(PoolError, TimeoutError):
    """No connection within the time allowed.

    `at_start` is true when `start()` gave up because the server could not be reached.
    """

    def __init__(self, message: str, *, at_start: bool = False) -> None:
        super().__init__(message)
        self.at_start = at_start


class PoolClosedError(PoolError):
    """The pool is not started, is closing, or is closed."""


class PoolAlreadyStartedError(PoolError):
    """`start()` was called on a pool that runs."""


class PoolAlreadyClosedError(PoolError):
    """`stop()` was called on a pool that does not run."""


class PoolRefusedError(PoolError):
    """The coordinator refuses this pool: another pool of the run states a different `max_size` for the same database."""


class SettingsError(ValueError):
    """A setting has a value that is not allowed. The text names the setting, the value and what is allowed."""


