"""What people do about jobs, by `pysqlx-ctl jobs` or by the dashboard: look, retry, cancel, pause.

What is asked of the database stands in `views`, what is changed in `store`; here is what a change of people is: one
transaction, the reasons for what was left alone, and a hint to the dispatchers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple, Unpack

from ...errors import PySQLXError
from .hints import Hints
from .life import FROM, WAITING, Event, State
from .presence import Presence, Register
from .store import store_of
from .views import Views

if TYPE_CHECKING:
    from ...engine.connection import PySQLXEngine
    from .dialects import Dialect

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAY_RETRY = FROM[Event.REVIVE]
MAY_CANCEL = WAITING | {State.RUNNING}
"""States in which a job can be changed so."""


@dataclass
class Changed:
    """What became of jobs."""

    done: int = 0
    asked: int = 0
    """How many run, and were asked to stop."""
    unchanged: dict[int, str] = field(default_factory=dict)
    """The others that were meant, and why nothing was done to them."""


class Administration:
    """A connection, and what can be asked and changed by it. Nobody else may use it meanwhile."""

    def __init__(self, connection: PySQLXEngine, dialect: Dialect) -> None:
        self.connection = connection
        self.store = store_of(connection)
        self.views = Views(dialect)
        self._dialect = dialect

    async def transaction(self, act: Callable[[Unpack[Ts]], Awaitable[T]], *args: *Ts) -> T:
        """See `Store.transact`."""
        return await self.store.transact(self.connection, act, *args)

    async def retry(self, ids: Sequence[int]) -> Changed:
        """Have these run now, within a transaction."""
        before = await self.views.states(self.connection, ids)
        done = await self.store.revive(self.connection, ids)
        after = await self.views.states(self.connection, ids)
        unchanged = {id_: as_it_is(before.get(id_)) for id_ in ids if before.get(id_) not in MAY_RETRY}
        # What could be revived, and was not, had to give way.
        unchanged |= {
            id_: "has a unique key that another job has by now"
            for id_ in ids
            if before.get(id_) in MAY_RETRY and after.get(id_) is not State.AVAILABLE
        }
        return Changed(done, 0, unchanged)

    async def cancel(self, ids: Sequence[int]) -> Changed:
        """Cancel these, or ask them to stop, within a transaction."""
        before = await self.views.states(self.connection, ids)
        done, asked = await self.store.cancel(self.connection, ids)
        return Changed(
            done, asked, {id_: as_it_is(before.get(id_)) for id_ in ids if before.get(id_) not in MAY_CANCEL}
        )

    async def set_paused(self, queue: str, *, pause: bool) -> None:
        """Begin nothing of the queue, or go on with it."""
        await self.transaction(self.store.pause if pause else self.store.resume, self.connection, queue)
        await self.tell()

    async def dispatchers(self) -> list[Presence]:
        return await Register(self._dialect).all(self.connection)

    async def tell(self) -> None:
        """Tell the dispatchers of this host that there is something to do."""
        # It is done and committed: a failure now must not look like one of the change. They look by themselves, too.
        with suppress(PySQLXError, OSError):
            await Hints().tell(self.connection)


def as_it_is(state: State | None) -> str:
    return "does not exist" if state is None else f"is {state}"
