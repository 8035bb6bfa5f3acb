"""One connection to a database: `PySQLXEngine` for asyncio, `PySQLXEngineSync` for threads.

There is one implementation, the asynchronous one. The synchronous class drives the same coroutines on the calling
thread (see `driving`), so each of its methods is one line.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, overload

from pydantic import BaseModel

from .. import tracing
from ..errors import (
    AlreadyConnectedError,
    ConnectError,
    ExecuteError,
    IsoLevelError,
    NotConnectedError,
    ParameterInvalidValueError,
    PySQLXError,
    QueryError,
    RawCmdError,
    StartTransactionError,
)
from ..log_config import LOG_CONFIG, log_statement
from .driver import pysqlx_core
from .driving import DriverCall, calls_in_flight, drive
from .parameters import Parameters, to_driver
from .rows import BaseRow, base_rows, row_as, rows_as
from .spans import operation_of, target_of, text_of
from .transactions import Effect, effect_of, effect_of_command
from .uri import INVALID_URI, DatabaseURI, Provider, parse_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Self

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

POOLED = "PYSQLX008"
FORKED = "PYSQLX007"
FORKED_MESSAGE = (
    "this process was forked from one that had used the database driver, whose threads stayed there: start processes "
    "with spawn, or open the first connection after the fork (gunicorn: post_fork, Celery: worker_process_init)"
)

IsolationLevel = Literal["ReadUncommitted", "ReadCommitted", "RepeatableRead", "Snapshot", "Serializable"]


class PySQLXEngine:
    """One connection to a database, for asyncio.

    `uri` names the database: `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`, `mysql://...` (MariaDB too),
    `sqlserver://HOST:PORT;database=...;user=...;password=...`, `sqlite:PATH`. Constructing opens nothing; `connect()`
    does, and so does `async with`. One call at a time: a second one waits in the driver until the first has ended.

    Values go in by name, `conn.query("SELECT :id AS id", {"id": 1})`, as the statement's parameters. A `:name` inside
    a quoted literal counts as a parameter too. PostgreSQL takes a parameter in the type that the statement gives it:
    where that is not the value's own, say so with a cast of the value's type (`CAST(:day AS date)`), and pass a float,
    never an int, for a double precision column: the server would take the int's bits for a float's.

    The driver has but single precision for a float, so it goes out as the decimal number of its digits. MySQL takes
    that for text where nothing else has a type: to compare or order such values with each other, or to put one into
    JSON, write `CAST(:share AS double)`. An array of floats with one that is not finite goes out in single precision.

    A datetime without a zone is taken for UTC, and datetimes come back in UTC. SQLite has no types for time: the driver
    stores dates and datetimes as milliseconds since 1970 and times as whole seconds (in milliseconds of the day), and
    gives them back as Python's only from columns declared `date` or `datetime`; integers beyond 32 bits need `bigint`.

    Raises ConnectError for a URI that names no database.
    """

    def __init__(self, uri: str) -> None:
        parsed = parse_uri(uri)
        self.uri = uri
        """The URI as it was given, with its password: not for display. `repr()` masks it."""
        self._parsed = parsed
        self._provider: Provider = parsed.provider
        self._raw: pysqlx_core.Connection | None = None
        self._in_flight: list[DriverCall[Any]] = []
        self._dirty = False
        """A transaction may be open, or it is not fit for anybody else, or closed: a pool has to look closer."""
        self._in_transaction = False
        """A transaction was opened, and not ended by anything we know of."""
        self._openings = 0
        """Counts the statements that made it dirty: one may be sent before a COMMIT in front of it has ended."""
        self._tainted = False
        """There may be what ROLLBACK does not undo (table locks, autocommit off): not fit for anybody else."""
        self._pooled = False
        """A pool counts this connection's session."""
        self._parting: pysqlx_core.Connection | None = None
        """What a user closed in a transaction, for the pool to roll back first: see `Upkeep.drop`."""
        self._failed = False
        """The driver reported an error that means that the connection is gone."""
        self._target: tracing.Target | None = None

    @property
    def connected(self) -> bool:
        """Whether `connect()` succeeded and `close()` was not called since. It asks nobody: see `is_healthy`."""
        return self._raw is not None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._parsed.masked} {'connected' if self.connected else 'not connected'}>"

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Open the connection. Raises ConnectError, or AlreadyConnectedError when it is open. A connection of a pool
        that was closed is not opened again: the pool replaces it."""
        if self._pooled and self._raw is None:
            raise ConnectError(POOLED, "this connection is a pool's: give it back, and the pool replaces it")
        await self._connect_uri(self._parsed)

    async def close(self) -> None:
        """Close the connection; does nothing when it is closed. The driver tells the server in the background."""
        if self._pooled and self._dirty and self._provider == "mysql" and self._raw is not None:
            self._parting = self._raw
        self._raw, self._dirty = None, True

    def is_healthy(self) -> bool:
        """False once a call has found the connection broken; it does not ask the server. Raises NotConnectedError."""
        return self._connection().is_healthy() and not self._failed

    def requires_isolation_first(self) -> bool:
        """Whether this database wants the isolation level set before BEGIN, not after. Raises NotConnectedError."""
        return self._connection().requires_isolation_first()

    @overload
    async def query(self, sql: str, parameters: Parameters | None = None, model: None = None) -> list[BaseRow]: ...
    @overload
    async def query(self, sql: str, parameters: Parameters | None = None, *, model: type[M]) -> list[M]: ...
    @overload
    async def query(self, sql: str, parameters: Parameters | None, model: type[M]) -> list[M]: ...
    async def query(
        self, sql: str, parameters: Parameters | None = None, model: type[BaseModel] | None = None
    ) -> list[Any]:
        """Every row, as instances of `model`, by default of `BaseRow`; an empty list when there is none.

        Raises QueryError, TypeError (`sql`, `parameters` or `model` of the wrong type), ParameterInvalidValueError,
        ParameterInvalidJsonValueError, NotConnectedError, and pydantic's ValidationError when a row does not fit.
        """
        _check_model(model)
        response = await self._call(QueryError, "query_typed", *self._prepare(sql, parameters))
        if not len(response):
            return []
        rows = _read(response.get_all)
        return base_rows(response.get_types(), rows) if model in (None, BaseRow) else rows_as(model, rows)

    @overload
    async def query_first(
        self, sql: str, parameters: Parameters | None = None, model: None = None
    ) -> BaseRow | None: ...
    @overload
    async def query_first(self, sql: str, parameters: Parameters | None = None, *, model: type[M]) -> M | None: ...
    @overload
    async def query_first(self, sql: str, parameters: Parameters | None, model: type[M]) -> M | None: ...
    async def query_first(
        self, sql: str, parameters: Parameters | None = None, model: type[BaseModel] | None = None
    ) -> Any:
        """The first row as an instance of `model`, by default of `BaseRow`; None when there is none.

        The database still produces every row: say LIMIT 1. Raises what `query` raises.
        """
        _check_model(model)
        response = await self._call(QueryError, "query_typed", *self._prepare(sql, parameters))
        if not len(response):
            return None
        row = _read(response.get_first)
        return base_rows(response.get_types(), [row])[0] if model in (None, BaseRow) else row_as(model, row)

    async def query_as_dict(self, sql: str, parameters: Parameters | None = None) -> list[dict[str, Any]]:
        """Every row as a dict; an empty list when there is none. Raises what `query` raises."""
        rows: list[dict[str, Any]] = await self._call(QueryError, "query_all", *self._prepare(sql, parameters))
        return rows

    async def query_first_as_dict(self, sql: str, parameters: Parameters | None = None) -> dict[str, Any] | None:
        """The first row as a dict; None when there is none. Raises what `query` raises."""
        row: dict[str, Any] = await self._call(QueryError, "query_one", *self._prepare(sql, parameters))
        return row or None

    async def execute(self, sql: str, parameters: Parameters | None = None) -> int:
        """Run a statement and return the number of rows it affected.

        Raises ExecuteError, TypeError, ParameterInvalidValueError, ParameterInvalidJsonValueError, NotConnectedError.
        """
        affected: int = await self._call(ExecuteError, "execute", *self._prepare(sql, parameters))
        return affected

    async def raw_cmd(self, sql: str) -> None:
        """Run what cannot be a prepared statement, also several statements at once. No parameters, no result.

        Raises RawCmdError, TypeError, NotConnectedError.
        """
        await self._call(RawCmdError, "raw_cmd", *self._prepare(sql, None, effect_of_command))

    async def begin(self) -> None:
        """Start a transaction. Raises RawCmdError, NotConnectedError."""
        await self.raw_cmd("BEGIN TRANSACTION" if self._provider == "sqlserver" else "BEGIN")

    async def commit(self) -> None:
        """Commit the transaction. Raises RawCmdError, NotConnectedError."""
        await self.raw_cmd("COMMIT")

    async def rollback(self) -> None:
        """Roll the transaction back. Raises RawCmdError, NotConnectedError."""
        await self.raw_cmd("ROLLBACK")

    async def start_transaction(self, isolation_level: IsolationLevel | None = None) -> None:
        """Start a transaction, with an isolation level if one is given.

        Raises StartTransactionError, IsoLevelError (the database does not know the level), ValueError (nobody does),
        NotConnectedError.
        """
        self._connection()
        if isolation_level is not None:
            _check_isolation_level(isolation_level)
        self._expect(Effect.OPENS)
        await self._call(StartTransactionError, "start_transaction", isolation_level)

    async def set_isolation_level(self, isolation_level: IsolationLevel) -> None:
        """Set the isolation level of the next transaction, on SQL Server of the session.

        Raises IsoLevelError (the database does not know the level), ValueError (nobody does), NotConnectedError.
        """
        self._connection()
        _check_isolation_level(isolation_level)
        await self._call(IsoLevelError, "set_isolation_level", isolation_level)

    async def _connect_uri(self, uri: DatabaseURI) -> None:
        """Connect with a prepared URI, e.g. one with a label in its options."""
        if self._raw is not None:
            raise AlreadyConnectedError
        LOG_CONFIG.check()
        if calls_in_flight.left_behind:
            raise ConnectError(FORKED, FORKED_MESSAGE)
        self._in_flight, self._dirty, self._tainted, self._failed = [], False, False, False
        self._in_transaction = False
        call = DriverCall(pysqlx_core.new(uri=uri.driver_uri))
        try:
            self._in_flight.append(call)
            self._raw = await call
        except pysqlx_core.PySQLxError as error:
            raise _connect_error(uri, error) from None
        finally:
            if not call.running:
                self._in_flight.clear()

    def _connection(self) -> pysqlx_core.Connection:
        if self._raw is None:
            raise NotConnectedError
        return self._raw

    def _prepare(
        self, sql: str, parameters: Parameters | None, effect_of: Callable[[str], Effect] = effect_of
    ) -> tuple[pysqlx_core.PySQLxStatement, Effect, bool]:
        """The driver's statement for `sql` with its parameters, logged if that is switched on, its effect, noted
        before the statement is sent, and whether it has parameters."""
        self._connection()
        if not isinstance(sql, str):
            raise TypeError(f"sql must be a str, not {type(sql).__name__}")
        values = None if parameters is None else to_driver(self._provider, parameters) or None
        try:
            statement = pysqlx_core.PySQLxStatement(provider=self._provider, sql=sql, params=values)
        except pysqlx_core.PySQLxInvalidParamError as error:
            raise ParameterInvalidValueError("PYSQLX004", str(error)) from None
        effect = effect_of(sql)
        if effect is not Effect.NONE:
            self._expect(effect)
        if LOG_CONFIG.statements:
            log_statement(statement.sql(), statement.params() or [], sql, values or {})
        return statement, effect, values is not None

    def _expect(self, effect: Effect) -> None:
        """Note what a statement may leave behind."""
        if effect in (Effect.OPENS, Effect.MAY_OPEN, Effect.TAINTS):
            self._dirty = True
            self._openings += 1
        if effect is Effect.OPENS:
            self._in_transaction = True
        if effect is Effect.TAINTS:
            self._tainted = True

    def _transaction_ended(self) -> None:
        self._dirty, self._in_transaction = self._tainted or self._failed or self._raw is None, False

    def _call(
        self,
        failure: type[PySQLXError],
        method: str,
        argument: object,
        effect: Effect = Effect.NONE,
        parameters: bool = False,
    ) -> Coroutine[Any, Any, Any]:
        """One call of the driver, with a span where somebody wants one. Not a coroutine function: while nobody does, it
        would be one more to go through with each step."""
        traced = tracing.look()
        call = self._ask(failure, method, argument, effect)
        return self._traced(call, method, argument, parameters) if traced else call

    async def _traced(self, call: Coroutine[Any, Any, Any], method: str, argument: object, parameters: bool) -> Any:
        with tracing.query(lambda: self._about(method, argument, parameters)):
            return await call

    def _about(self, method: str, argument: object, parameters: bool) -> tracing.Query:
        if self._target is None:
            self._target = target_of(self._parsed)
        if not isinstance(argument, pysqlx_core.PySQLxStatement):
            return tracing.Query(self._target, _OPERATIONS[method], None)
        sql = argument.sql()
        return tracing.Query(self._target, operation_of(sql), text_of(self._provider, sql, parameters=parameters))

    async def _ask(self, failure: type[PySQLXError], method: str, argument: object, effect: Effect) -> Any:
        """Counted while the driver works on it, its errors turned into ours."""
        raw, in_flight, openings = self._connection(), self._in_flight, self._openings
        call = DriverCall(getattr(raw, method)(argument))
        try:
            in_flight.append(call)
            result = await call
        except pysqlx_core.PySQLxError as error:
            raise self._failure(failure, raw, error) from None
        except BaseException as error:
            if call.running or not _is_panic(error):
                raise
            self._panicked(error)
            raise _from_panic(failure, error) from None
        finally:
            if not call.running and call in in_flight:
                in_flight.remove(call)
            # Whoever keeps an error keeps its traceback, and with it what this frame refers to: the driver's connection
            # would stay open for as long. That is also why nobody but this method takes hold of it.
            del raw
        if effect is Effect.ENDS and openings == self._openings:
            self._transaction_ended()
        return result

    @property
    def _calls(self) -> int:
        """Calls that the driver still works on. After a cancelled or interrupted call it stays above 0."""
        return sum(call.running for call in self._in_flight)

    async def _finish_calls(self) -> None:
        """Wait until the driver has ended the calls that were cancelled or interrupted here, however they end."""
        in_flight = self._in_flight
        for call in [call for call in in_flight if call.abandoned]:
            try:
                await call
            except pysqlx_core.PySQLxError as error:
                if self._raw is not None:  # not a name of this frame's: see `_call`
                    self._failure(QueryError, self._raw, error)
            except BaseException as error:
                if call.running:
                    raise
                self._panicked(error)  # else it has ended, and nobody is there any more to be told how
            if call in in_flight:
                in_flight.remove(call)

    def _panicked(self, error: BaseException) -> None:
        if "JoinError" in str(error) and _is_panic(error):
            self._failed = self._dirty = True  # what sends and receives on this connection has come to its end

    def _forget_calls(self) -> None:
        """Drop the calls that nobody awaits any more: each has hold of the driver's connection, and may itself be held
        by an error that somebody keeps."""
        for call in self._in_flight:
            if call.abandoned:
                call.close()
        self._in_flight = []

    def _failure(
        self, failure: type[PySQLXError], raw: pysqlx_core.Connection, error: pysqlx_core.PySQLxError
    ) -> PySQLXError:
        code, message, kind = map(str, error.args)
        if (
            not raw.is_healthy()
            or code in _GONE_CODES
            or message.startswith(_GONE_MESSAGES[self._provider])
            or _STALE_PLAN in message
        ):
            self._failed = self._dirty = True
        if kind.endswith("IsoLevelError"):
            failure = IsoLevelError
        return failure(code, message)


class PySQLXEngineSync:
    """One connection to a database, for threads: `PySQLXEngine` with plain methods.

    A call blocks its thread only: the GIL is free while the database works. It may also be used inside a running event
    loop, which then stands still meanwhile.
    """

    def __init__(self, uri: str) -> None:
        self._engine = PySQLXEngine(uri)

    @property
    def uri(self) -> str:
        """The URI as it was given, with its password: not for display. `repr()` masks it."""
        return self._engine.uri

    @property
    def connected(self) -> bool:
        """See `PySQLXEngine.connected`."""
        return self._engine.connected

    def __repr__(self) -> str:
        return repr(self._engine).replace("PySQLXEngine", "PySQLXEngineSync", 1)

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> None:
        """See `PySQLXEngine.connect`."""
        drive(self._engine.connect())

    def close(self) -> None:
        """See `PySQLXEngine.close`."""
        drive(self._engine.close())

    def is_healthy(self) -> bool:
        """See `PySQLXEngine.is_healthy`."""
        return self._engine.is_healthy()

    def requires_isolation_first(self) -> bool:
        """See `PySQLXEngine.requires_isolation_first`."""
        return self._engine.requires_isolation_first()

    @overload
    def query(self, sql: str, parameters: Parameters | None = None, model: None = None) -> list[BaseRow]: ...
    @overload
    def query(self, sql: str, parameters: Parameters | None = None, *, model: type[M]) -> list[M]: ...
    @overload
    def query(self, sql: str, parameters: Parameters | None, model: type[M]) -> list[M]: ...
    def query(self, sql: str, parameters: Parameters | None = None, model: type[BaseModel] | None = None) -> list[Any]:
        """See `PySQLXEngine.query`."""
        return drive(self._engine.query(sql, parameters, model))

    @overload
    def query_first(self, sql: str, parameters: Parameters | None = None, model: None = None) -> BaseRow | None: ...
    @overload
    def query_first(self, sql: str, parameters: Parameters | None = None, *, model: type[M]) -> M | None: ...
    @overload
    def query_first(self, sql: str, parameters: Parameters | None, model: type[M]) -> M | None: ...
    def query_first(self, sql: str, parameters: Parameters | None = None, model: type[BaseModel] | None = None) -> Any:
        """See `PySQLXEngine.query_first`."""
        return drive(self._engine.query_first(sql, parameters, model))

    def query_as_dict(self, sql: str, parameters: Parameters | None = None) -> list[dict[str, Any]]:
        """See `PySQLXEngine.query_as_dict`."""
        return drive(self._engine.query_as_dict(sql, parameters))

    def query_first_as_dict(self, sql: str, parameters: Parameters | None = None) -> dict[str, Any] | None:
        """See `PySQLXEngine.query_first_as_dict`."""
        return drive(self._engine.query_first_as_dict(sql, parameters))

    def execute(self, sql: str, parameters: Parameters | None = None) -> int:
        """See `PySQLXEngine.execute`."""
        return drive(self._engine.execute(sql, parameters))

    def raw_cmd(self, sql: str) -> None:
        """See `PySQLXEngine.raw_cmd`."""
        drive(self._engine.raw_cmd(sql))

    def begin(self) -> None:
        """See `PySQLXEngine.begin`."""
        drive(self._engine.begin())

    def commit(self) -> None:
        """See `PySQLXEngine.commit`."""
        drive(self._engine.commit())

    def rollback(self) -> None:
        """See `PySQLXEngine.rollback`."""
        drive(self._engine.rollback())

    def start_transaction(self, isolation_level: IsolationLevel | None = None) -> None:
        """See `PySQLXEngine.start_transaction`."""
        drive(self._engine.start_transaction(isolation_level))

    def set_isolation_level(self, isolation_level: IsolationLevel) -> None:
        """See `PySQLXEngine.set_isolation_level`."""
        drive(self._engine.set_isolation_level(isolation_level))


# What the driver reports once a connection is gone. It says "healthy" in some of these cases (measured with 0.2.3):
# with MySQL a killed session reads as a failed reconnect, and a call with the wrong number of parameters leaves the
# connection unusable. The driver prepares each text of a statement once, and never again: a statement that the server
# has forgotten (26000), or whose columns have changed since, would fail on this connection for ever.
_GONE_CODES = frozenset({"57P01", "57P02", "57P03", "57P05", "26000"})
_OPERATIONS = {"start_transaction": "BEGIN", "set_isolation_level": "SET TRANSACTION"}
_STALE_PLAN = "cached plan must not change result type"
_GONE = ("The server terminated the connection.", "Error creating a database connection.")
_GONE_MESSAGES: dict[Provider, tuple[str, ...]] = {
    "postgresql": _GONE,
    "mysql": (*_GONE, "Error querying the database: Statement takes "),
    "sqlserver": _GONE,
    "sqlite": _GONE,
}
_UNUSABLE_URI = (
    "Error parsing connection string",
    "The provided arguments are not supported",
    "Error querying the database: Conversion error",
)


def _connect_error(uri: DatabaseURI, error: pysqlx_core.PySQLxError) -> ConnectError:
    code, message, _ = map(str, error.args)
    if message.startswith(_UNUSABLE_URI):
        return ConnectError(INVALID_URI, f"the database URI {uri.masked!r} cannot be used: {message}")
    if uri.path is not None:
        directory = os.path.dirname(uri.path)
        if not os.path.isdir(directory):
            message = f"the directory {directory} does not exist"
        return ConnectError(code, f"no connection to the SQLite database {uri.path}: {message}")
    where = f"{uri.host}:{uri.port}" if uri.port else uri.host
    return ConnectError(code, f"no connection to {uri.provider} at {where} ({uri.masked}): {message}")


def _is_panic(error: BaseException) -> bool:
    # The driver's class for it cannot be imported.
    return type(error).__name__ == "PanicException"


def _from_panic(failure: type[PySQLXError], panic: BaseException) -> PySQLXError:
    return failure("0", f"the driver cannot convert a value of the result, or of the parameters: {panic}")


def _read(get: Callable[[], T]) -> T:
    """A result's rows in Python's types. Raises QueryError, e.g. for a date after the year 9999."""
    try:
        return get()
    except BaseException as error:
        if not _is_panic(error):
            raise
        raise _from_panic(QueryError, error) from None


def _check_model(model: object) -> None:
    if model is not None and not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise TypeError(f"model must be a class derived from BaseRow or pydantic's BaseModel, not {model!r}")


def _check_isolation_level(level: object) -> None:
    if level not in get_args(IsolationLevel):
        raise ValueError(f"unknown isolation level {level!r}: allowed are {', '.join(get_args(IsolationLevel))}")


def asynchronous(connection: PySQLXEngineSync) -> PySQLXEngine:
    """The connection itself, for coroutines that are driven on the thread that uses it."""
    return connection._engine
