"""What a handler's annotations say: which of its parameters are the job's arguments, and what it is given besides."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NotRequired

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from ...engine.connection import PySQLXEngine, PySQLXEngineSync
from ...errors import JobArgumentsError
from ...pool.aio import PySQLXEnginePool
from ...pool.threads import PySQLXEnginePoolSync
from .job import Job

_FOR_COROUTINES = {PySQLXEngine: "connection", PySQLXEnginePool: "pool", Job: "job"}
_FOR_THREADS = {PySQLXEngineSync: "connection", PySQLXEnginePoolSync: "pool", Job: "job"}
_OF_ENQUEUE = frozenset({"conn"})
"""What `enqueue` itself takes."""
_CONFIG = ConfigDict(
    extra="forbid", ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings",
    arbitrary_types_allowed=False,
)  # fmt: skip


@dataclass(frozen=True)
class Signature:
    """What a handler takes."""

    is_async: bool
    connection: str | None
    """The parameter that gets a connection for as long as the handler runs."""
    pool: str | None
    job: str | None
    _arguments: TypeAdapter[Any]

    @property
    def uses_connections(self) -> bool:
        return self.connection is not None or self.pool is not None

    @property
    def fits_nothing(self) -> bool:
        """Whether the handler can be called without any arguments."""
        try:
            self._arguments.validate_python({})
        except ValidationError:
            return False
        return True

    def encode(self, arguments: Mapping[str, object]) -> str:
        """The JSON of a job's arguments. Raises JobArgumentsError for those that do not fit the handler."""
        try:
            return self._arguments.dump_json(self._arguments.validate_python(arguments)).decode()
        except ValidationError as error:
            raise JobArgumentsError(_what_does_not_fit(error)) from None
        except (ValueError, TypeError) as error:  # a value of a type that JSON cannot express
            raise JobArgumentsError(f"the arguments cannot be written as JSON: {error}") from None

    def decode(self, args: str) -> dict[str, Any]:
        """The arguments of a job that was enqueued, perhaps by an older program. Raises JobArgumentsError."""
        try:
            arguments: dict[str, Any] = self._arguments.validate_json(args)
        except ValidationError as error:
            raise JobArgumentsError(_what_does_not_fit(error)) from None
        return arguments


def read_signature(function: Callable[..., object]) -> Signature:
    """Raises TypeError for a function that cannot be a handler; the text says why."""
    name = getattr(function, "__qualname__", repr(function))
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{name} is a generator: a handler is a function or a coroutine function")
    is_async = inspect.iscoroutinefunction(function)
    injectable, foreign = (_FOR_COROUTINES, _FOR_THREADS) if is_async else (_FOR_THREADS, _FOR_COROUTINES)
    try:
        annotations = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(f"{name}: {error}: its annotations must be names that its module has") from None
    injected: dict[str, str] = {}
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise TypeError(f"{name}: a job's arguments have names: {parameter} cannot be given one")
        annotation = annotations.get(parameter.name, Any)
        if annotation in foreign and annotation not in injectable:
            way = "a coroutine function" if is_async else "a plain function, which runs in a thread,"
            wanted = next(kind for kind, what in injectable.items() if what == foreign[annotation])
            raise TypeError(
                f"{name} is {way} and cannot use {annotation.__name__} ({parameter.name}): {wanted.__name__} is for it"
            )
        if annotation in injectable:
            what = injectable[annotation]
            if what in injected:
                raise TypeError(f"{name}: {injected[what]} and {parameter.name} ask for the same: one {what} is given")
            injected[what] = parameter.name
        elif parameter.name in _OF_ENQUEUE:
            raise TypeError(f"{name}: {parameter.name} means something to enqueue(): give this argument another name")
        else:
            optional = parameter.default is not parameter.empty
            fields[parameter.name] = NotRequired[annotation] if optional else annotation
    # No model: a model's own names (`copy`, `json`, ...) are fine names for arguments.
    arguments = TypedDict("Arguments", fields)  # type: ignore[misc]  # its fields are known when it runs
    arguments.__pydantic_config__ = _CONFIG  # type: ignore[attr-defined]
    try:
        adapter = TypeAdapter(arguments)
    except PydanticUserError as error:
        raise TypeError(f"{name}: {str(error).splitlines()[0]}") from None
    return Signature(is_async, injected.get("connection"), injected.get("pool"), injected.get("job"), adapter)


def _what_does_not_fit(error: ValidationError) -> str:
    """Without the values: they may be secrets, and this is logged and stored."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'arguments'}: {one['msg']}" for one in found[:5])
    return wrong + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
