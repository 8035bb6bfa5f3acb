"""Every exception of the package. All of them derive from `Exception`, none is raised with a password in its text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "AlreadyConnectedError",
    "ConnectError",
    "ExecuteError",
    "IsoLevelError",
    "JobArgumentsError",
    "JobError",
    "JobFailedError",
    "JobSchemaError",
    "JobSetupError",
    "NotConnectedError",
    "ParameterInvalidJsonValueError",
    "ParameterInvalidProviderError",
    "ParameterInvalidValueError",
    "PoolAlreadyClosedError",
    "PoolAlreadyStartedError",
    "PoolClosedError",
    "PoolError",
    "PoolForkedError",
    "PoolLoopError",
    "PoolQueueFullError",
    "PoolRefusedError",
    "PoolTimeoutError",
    "PySQLXError",
    "QueryError",
    "RawCmdError",
    "SettingsError",
    "StartTransactionError",
]


class JobError(Exception):
    """Base class of everything the job queue raises about itself."""


class JobSetupError(JobError):
    """Jobs cannot be run as things are, and no second attempt cures it: the budget is too small, for instance."""


class JobSchemaError(JobSetupError):
    """The job tables are not there, cannot be made, or are newer than this program."""


class JobArgumentsError(JobError, ValueError):
    """A job's arguments do not fit its task, or are more than the queue takes. The text says which, never their
    values."""


class JobFailedError(JobError):
    """A job whose result was waited for was discarded or cancelled. The text says why."""


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


class PoolForkedError(PoolError):
    """The pool was in use before this process was forked. The driver's threads stayed with the parent, and so do the
    connections: start processes with `spawn`, or create and start pools after the fork."""


class PoolLoopError(PoolError):
    """A pool for asyncio is used in another event loop than the one it was started in, or after that loop was closed:
    start a pool in each loop."""


class PoolQueueFullError(PoolError):
    """As many wait for a connection already as `max_waiting` allows."""


class PoolAlreadyStartedError(PoolError):
    """`start()` was called on a pool that runs."""


class PoolAlreadyClosedError(PoolError):
    """`stop()` was called on a pool that does not run."""


class PoolRefusedError(PoolError):
    """There is no budget for this pool: another one of the run states a different `max_size` for the same database, the
    coordinator cannot take this process, or only the worker that started this process has a budget."""


class SettingsError(ValueError):
    """A setting has a value that is not allowed. The text names the setting, the value and what is allowed."""


class PySQLXError(Exception):
    """Base class of everything about one connection: what the database reported, or why the call never reached it.

    `code` is the database's own code (SQLSTATE, MySQL error number, SQLite result code), "0" where the driver has none,
    or `PYSQLX0xx` for an error of this package. `message` says what happened.

    `str(error)` is `QueryError(code='1', message='...')`; with `LOG_CONFIG.PYSQLX_ERROR_JSON_FMT` it is JSON.
    """

    # Installed by `log_config`, which knows the user's choice of format; this module knows nobody.
    _render: ClassVar[Callable[[PySQLXError], str] | None] = None

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __repr__(self) -> str:
        return f"{type(self).__name__}(code={self.code!r}, message={self.message!r})"

    def __str__(self) -> str:
        render = PySQLXError._render
        return repr(self) if render is None else render(self)


class ConnectError(PySQLXError):
    """No connection: the server could not be reached or refused, or the URI is not usable."""

    @property
    def permanent(self) -> bool:
        """True when waiting cannot cure it: a bad URI, a wrong password, an unknown database, a missing directory."""
        return self.code in _PERMANENT_CODES or (len(self.code) == 5 and self.code.startswith("28"))

    @property
    def at_server_limit(self) -> bool:
        """True when the server has as many connections as it takes, of all users or of this one."""
        return self.code in _LIMIT_CODES


_PERMANENT_CODES = frozenset(
    {
        "PYSQLX006",  # a URI that cannot be used
        "PYSQLX007",  # the driver was used before this process was forked
        "3D000",  # PostgreSQL: the database does not exist (28xxx: no such user, wrong password)
        "42501",  # PostgreSQL: no permission to connect to the database
        "1044",  # MySQL: access to the database denied
        "1045",  # MySQL: access denied, wrong password
        "1049",  # MySQL: unknown database
        "1698",  # MySQL: access denied for this way of logging in
        "14",  # SQLite: unable to open the file
    }
)


_LIMIT_CODES = frozenset({"53300", "1040", "1203", "1226"})  # PostgreSQL; MySQL: of all, of this user, resources


class QueryError(PySQLXError):
    """`query*()` failed."""


class ExecuteError(PySQLXError):
    """`execute()` failed."""


class RawCmdError(PySQLXError):
    """`raw_cmd()`, `begin()`, `commit()` or `rollback()` failed."""


class IsoLevelError(PySQLXError):
    """The database does not know, or cannot set, this isolation level."""


class StartTransactionError(PySQLXError):
    """`start_transaction()` failed."""


class NotConnectedError(PySQLXError):
    """The connection is used before `connect()` or after `close()`."""

    def __init__(
        self, code: str = "PYSQLX002", message: str = "not connected to the database: call connect() first"
    ) -> None:
        super().__init__(code, message)


class AlreadyConnectedError(PySQLXError):
    """`connect()` was called on a connection that is open."""

    def __init__(
        self, code: str = "PYSQLX001", message: str = "already connected to the database: call close() first"
    ) -> None:
        super().__init__(code, message)


class ParameterInvalidProviderError(PySQLXError):
    """The driver does not know the parameter's database."""


class ParameterInvalidValueError(PySQLXError):
    """A parameter has a value that the database or the driver cannot take; the text names it and says what to do."""


class ParameterInvalidJsonValueError(PySQLXError):
    """A dict or list parameter holds something that JSON cannot express; the text says where."""
