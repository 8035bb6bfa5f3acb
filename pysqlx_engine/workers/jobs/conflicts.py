"""Transactions that a server ends because two of them wait for each other: it undoes one, to be begun once more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple, Unpack

from ...errors import PySQLXError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

TIMES = 5
"""How often it is begun."""
_WAITED_FOR_EACH_OTHER = frozenset({"40001", "40P01", "1213"})


async def repeated(act: Callable[[Unpack[Ts]], Awaitable[T]], *args: *Ts) -> T:
    """`act`, which is a transaction, or one statement outside of any: again where the server has undone it."""
    for left in reversed(range(TIMES)):
        try:
            return await act(*args)
        except PySQLXError as error:
            if not left or error.code not in _WAITED_FOR_EACH_OTHER:
                raise
    raise AssertionError
