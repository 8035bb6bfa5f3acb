"""Parameters: from Python's values to the ones the driver takes without loss and without panicking.

The driver converts exact types only and ends the call with a panic (a `BaseException`) for some values. So everything
that can go wrong is found here, and subclasses are turned into the type they extend.
"""

from __future__ import annotations

import math
import struct
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias
from uuid import UUID

from ..errors import ParameterInvalidJsonValueError, ParameterInvalidValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .uri import Provider

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Parameters: TypeAlias = "Mapping[str, Any]"

_SUPPORTED = (
    "bool, bytes, date, datetime, Decimal, dict, enum.Enum, float, int, list, str, time, tuple (PostgreSQL), UUID, None"
)


def to_driver(provider: Provider, parameters: Parameters) -> dict[str, Any]:
    """The values of `parameters` as the driver takes them.

    Raises TypeError for what is no dict, has a key that is no str or a value of an unsupported type;
    ParameterInvalidValueError and ParameterInvalidJsonValueError for a value that cannot be sent.
    """
    if not isinstance(parameters, dict):
        raise TypeError(f"parameters must be a dict of names and values, not {type(parameters).__name__}")
    converted: dict[str, Any] = {}
    for name, value in parameters.items():
        if not isinstance(name, str):
            raise TypeError(f"the names of parameters must be str, not {type(name).__name__}: {name!r}")
        if not name:
            raise ParameterInvalidValueError("PYSQLX004", "a parameter has an empty name")
        converted[name] = _convert(provider, name, value)
    return converted


def _convert(provider: Provider, name: str, value: Any) -> object:
    if isinstance(value, Enum):
        return _convert(provider, name, value.value)
    for base in type(value).__mro__:
        converter = _CONVERTERS.get(base)
        if converter is not None:
            return converter(provider, name, value)
    raise TypeError(f"parameter {name!r} has the unsupported type {type(value).__name__}; supported are {_SUPPORTED}")


def _refuse(name: str, reason: str) -> NoReturn:
    raise ParameterInvalidValueError("PYSQLX004", f"parameter {name!r} {reason}")


def _as_is(provider: Provider, name: str, value: object) -> object:
    return value


def _int(provider: Provider, name: str, value: int) -> int:
    if not _fits_64_bits(value):
        _refuse(name, f"is {value:,}, beyond 64 bits: pass it as Decimal")
    return int(value)


def _fits_64_bits(value: int) -> bool:
    return -(2**63) <= value < 2**63


def _float(provider: Provider, name: str, value: float) -> Decimal | float:
    if provider == "mysql":
        if not math.isfinite(value):
            _refuse(name, f"is {value}, which mysql does not know: pass None")
        if _is_single(value):
            return float(value)  # as a Decimal it would be text
    if not math.isfinite(value) or (value == 0 and math.copysign(1, value) < 0):
        return float(value)  # the driver's Decimal cannot be that
    return _exact(value)


def _is_single(value: float) -> bool:
    """Whether single precision loses nothing of `value`."""
    try:
        return bool(struct.unpack("f", struct.pack("f", value))[0] == value)
    except OverflowError:
        return False


def _exact(value: float) -> Decimal:
    """What stands for `value`: the driver sends a float in single precision."""
    return Decimal(float.__repr__(value))


def _str(provider: Provider, name: str, value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            _refuse(name, f"is no valid Unicode text: {error}")
    return str.__str__(value)


def _bytes(provider: Provider, name: str, value: bytes | bytearray | memoryview) -> bytes:
    return bytes(value)


def _decimal(provider: Provider, name: str, value: Decimal) -> Decimal:
    if not value.is_finite():
        _refuse(name, f"is Decimal({str(value)!r}), which the driver cannot send: pass a float or None")
    return Decimal(value)


def _date(provider: Provider, name: str, value: date) -> date:
    return date(value.year, value.month, value.day)


def _datetime(provider: Provider, name: str, value: datetime) -> datetime:
    # The driver takes a naive datetime for UTC and returns aware ones in UTC: in UTC no instant is lost.
    if value.tzinfo is not None:
        try:
            value = value.astimezone(UTC)
        except OverflowError:
            _refuse(name, f"is {value.isoformat()}, which is out of range in UTC")
    return datetime(value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond)


def _time(provider: Provider, name: str, value: time) -> object:
    if value.tzinfo is not None and value.utcoffset():
        _refuse(name, f"is {value.isoformat()}: a time's zone cannot be sent, pass the time in UTC or a datetime")
    plain = time(value.hour, value.minute, value.second, value.microsecond)
    # The driver sends no fractions of a second in a MySQL TIME; the server reads them from text.
    return plain.isoformat() if provider == "mysql" and plain.microsecond else plain


def _uuid(provider: Provider, name: str, value: UUID) -> UUID:
    return UUID(int=value.int)


def _array(provider: Provider, name: str, value: tuple[object, ...]) -> tuple[object, ...]:
    if provider != "postgresql":
        _refuse(name, f"is a tuple: arrays are PostgreSQL's, for {provider} pass a list, which is sent as JSON")
    if value and all(isinstance(item, float) for item in value):
        floats = [float(item) for item in value]  # type: ignore[arg-type]
        return tuple(map(_exact, floats) if all(map(math.isfinite, floats)) else floats)
    items = tuple(_convert(provider, f"{name}[{index}]", item) for index, item in enumerate(value))
    for index, item in enumerate(items):
        if item is None or isinstance(item, tuple):
            _refuse(name, f"has {item!r} at position {index}: the driver sends neither NULLs nor arrays in an array")
        if type(item) is not type(items[0]):
            kinds = f"{type(items[0]).__name__} at position 0 and {type(item).__name__} at position {index}"
            _refuse(name, f"has {kinds}: all items of an array have one type")
    return items


def _json(provider: Provider, name: str, value: dict[Any, Any] | list[Any]) -> Json:
    try:
        return _to_json(name, value)
    except RecursionError:
        raise ParameterInvalidJsonValueError(
            "PYSQLX005", f"parameter {name!r} is nested too deeply for JSON, or contains itself"
        ) from None


def _to_json(path: str, value: object) -> Json:
    """`value` in JSON's own types; `path` says where it stands, for the error."""
    match value:
        case None | bool():
            return value
        case Enum():
            return _to_json(path, value.value)
        case str():
            return _str("postgresql", path, value)
        case int() if _fits_64_bits(value):
            return int(value)
        case float() if math.isfinite(value):
            return float(value)
        case dict():
            return {_json_key(path, key): _to_json(f"{path}[{key!r}]", item) for key, item in value.items()}
        case list() | tuple():
            return [_to_json(f"{path}[{index}]", item) for index, item in enumerate(value)]
        case bytes() | bytearray() | memoryview():
            return value.hex()
        case datetime() | date() | time() | Decimal() | UUID():
            return str(value)
    if isinstance(value, int | float):
        raise ParameterInvalidJsonValueError(
            "PYSQLX005", f"{path} is {value}: JSON numbers are finite and fit in 64 bits, pass it as Decimal or str"
        )
    raise ParameterInvalidJsonValueError("PYSQLX005", f"{path} has the type {type(value).__name__}, which JSON lacks")


def _json_key(path: str, key: object) -> str:
    plain = key.value if isinstance(key, Enum) else key
    if isinstance(plain, str):
        return _str("postgresql", f"a key of {path}", plain)
    if isinstance(plain, int) and not isinstance(plain, bool):
        return str(int(plain))
    raise ParameterInvalidJsonValueError(
        "PYSQLX005", f"{path} has the key {key!r} of type {type(key).__name__}: the keys of JSON objects are str"
    )


_CONVERTERS: dict[type, Callable[[Provider, str, Any], object]] = {
    type(None): _as_is,
    bool: _as_is,
    int: _int,
    float: _float,
    str: _str,
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _bytes,
    Decimal: _decimal,
    datetime: _datetime,
    date: _date,
    time: _time,
    UUID: _uuid,
    tuple: _array,
    dict: _json,
    list: _json,
}
