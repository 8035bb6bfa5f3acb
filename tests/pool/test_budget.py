"""A pool, and what its budget may do to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pysqlx_engine import PySQLXEnginePoolSync
from pysqlx_engine.engine.session import ServerSession
from pysqlx_engine.pool.budget import Lease, LocalBudget, PoolRequest, use_provider

from .test_pool import eventually


class Told(LocalBudget):
    """A budget that takes back what the test wants it to, in the moment in which it hears of it."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.disowned: list[Lease] = []

    def opened(self, lease: Lease, session: ServerSession) -> None:
        if not self.disowned:
            self.disowned.append(lease)
            assert self._client is not None
            self._client.disown([lease])


@pytest.fixture
def budgets() -> Iterator[list[Told]]:
    made: list[Told] = []

    def provide(request: PoolRequest) -> Told:
        made.append(Told(request.max_size))
        return made[-1]

    use_provider(provide)
    yield made
    use_provider(None)


def test_a_connection_is_closed_that_is_disowned_in_the_moment_in_which_it_is_open(
    sqlite_uri: str, budgets: list[Told]
) -> None:
    with PySQLXEnginePoolSync(sqlite_uri, min_size=1, max_size=1) as pool:
        eventually(lambda: pool.stats().closed == 1)
        with pool.connection() as conn:
            assert conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}
        assert [len(budget.disowned) for budget in budgets] == [1]
