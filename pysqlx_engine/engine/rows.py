"""Result rows: dictionaries from the driver become `BaseRow` objects or the user's own model."""

from __future__ import annotations

import datetime
import decimal
import uuid
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

M = TypeVar("M", bound=BaseModel)

KNOWN_SHAPES = 512
"""Result shapes (column names with their types) and models whose machinery is kept."""

_PYTHON_TYPES: dict[str, Any] = {
    "bool": bool,
    "bytes": bytes,
    "date": datetime.date,
    "datetime": datetime.datetime,
    "decimal": decimal.Decimal,
    "float": float,
    "int": int,
    "json": Any,
    "str": str,
    "time": datetime.time,
    "uuid": uuid.UUID,
}


class BaseRow(BaseModel):
    """A row of a result; a pydantic model with one attribute per column.

    Inherit from it to state a result's columns and pass the class as `model`. Without `model` a query returns
    instances of a subclass made for the result's shape, with every value as the database gave it: nothing is
    converted or checked a second time.

    Any column name works. A column called like one of pydantic's old methods ("json", "copy", "dict", "schema") is the
    column, not the method. Names that pydantic keeps for itself (its own "model_..." methods and names that start with
    two underscores) are found in `model_extra` and `model_dump()` only. Columns come in no particular order.
    """

    # Built at the first use: that takes longer than importing the rest of the package.
    model_config = ConfigDict(protected_namespaces=(), defer_build=True)

    def __str__(self) -> str:
        return repr(self)


class _ShapedRow(BaseRow):
    """Base of the classes made for one result shape."""

    _columns: ClassVar[frozenset[tuple[str, str]]]

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return sorted(super().__repr_args__(), key=lambda column: column[0] or "")

    def __reduce__(self) -> tuple[Any, ...]:
        # The class exists in this process only; another one makes its own from the shape.
        return _restore, (self._columns, self.__dict__ | (self.__pydantic_extra__ or {}))


class _OddShapedRow(_ShapedRow):
    """With columns that pydantic does not take as fields.

    They stand beside the fields, as pydantic's extra values, and among the instance's attributes, which win over
    methods. Only where pydantic needs its own method they are extra values alone.
    """

    model_config = ConfigDict(extra="allow")


def rows_as(model: type[M], rows: list[dict[str, Any]]) -> list[M]:
    """`rows` as instances of the user's `model`. Raises pydantic's ValidationError where they do not fit it."""
    return _adapter(model).validate_python(rows)


def row_as(model: type[M], row: dict[str, Any]) -> M:
    """One row as an instance of the user's `model`. Raises pydantic's ValidationError where it does not fit it."""
    return model.model_validate(row)


def base_rows(types: Mapping[str, str], rows: list[dict[str, Any]]) -> list[BaseRow]:
    """`rows` as BaseRow objects; `types` are the driver's names for the columns' types. The dicts are used up."""
    return _construct(_shape(frozenset(types.items())), rows)


class _Shape(NamedTuple):
    """What all rows with the same columns and types have in common."""

    # Not attributes of the class of rows: pydantic's metaclass makes looking those up slow.
    row_class: type[_ShapedRow]
    fields_set: set[str]
    odd_columns: tuple[str, ...]
    reserved_columns: tuple[str, ...]


# The attributes that pydantic keeps for every model. Set through their descriptors: this is the inner loop of a query.
_put_values = BaseModel.__dict__["__dict__"].__set__
_put_fields_set = BaseModel.__dict__["__pydantic_fields_set__"].__set__
_put_extra = BaseModel.__dict__["__pydantic_extra__"].__set__
_put_private = BaseModel.__dict__["__pydantic_private__"].__set__


def _construct(shape: _Shape, rows: list[dict[str, Any]]) -> list[BaseRow]:
    # `model_construct` without what it looks up for every row: the driver's values are complete and of the right types.
    row_class, fields_set, odd_columns, reserved_columns = shape
    new = object.__new__
    made: list[BaseRow] = []
    for values in rows:
        extra = None
        if odd_columns:
            extra = {name: values[name] for name in odd_columns}
            for name in reserved_columns:
                del values[name]
        row = new(row_class)
        _put_values(row, values)
        _put_fields_set(row, fields_set)
        _put_extra(row, extra)
        _put_private(row, None)
        made.append(row)
    return made


@lru_cache(maxsize=KNOWN_SHAPES)
def _adapter(model: type[M]) -> TypeAdapter[list[M]]:
    return TypeAdapter(list[model])  # type: ignore[valid-type]


@lru_cache(maxsize=KNOWN_SHAPES)
def _shape(columns: frozenset[tuple[str, str]]) -> _Shape:
    types = dict(columns)
    odd = tuple(name for name in types if name.startswith("_") or hasattr(BaseModel, name))
    fields: dict[str, Any] = {
        name: (_python_type(kind) | None, None) for name, kind in types.items() if name not in odd
    }
    base: type[_ShapedRow] = _OddShapedRow if odd else _ShapedRow
    row_class = create_model("BaseRow", __base__=base, **fields)
    row_class._columns = columns
    return _Shape(row_class, set(types), odd, tuple(name for name in odd if name.startswith(("__", "model_"))))


def _python_type(kind: str) -> Any:
    """The annotation for the driver's name of a type, e.g. "int" or "array_int"."""
    if kind == "array" or kind.startswith("array_"):
        item = _PYTHON_TYPES.get(kind.removeprefix("array").removeprefix("_"), Any)
        return tuple[item | None, ...]  # type: ignore[valid-type]
    return _PYTHON_TYPES.get(kind, Any)


def _restore(columns: frozenset[tuple[str, str]], values: dict[str, Any]) -> BaseRow:
    return _construct(_shape(columns), [values])[0]
