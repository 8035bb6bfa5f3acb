"""A pool, and what its budget may do to it."""

from __future__ import annotations

import pytest

from pysqlx_engine import PySQLXEnginePoolSync
from pysqlx_engine.engine.session import ServerSession
from pysqlx_engine.pool.budget import Lease, LocalBudget, PoolRequest
from pysqlx_engine.pool.monitor import look_after

from .test_pool import eventually


class Moody(LocalBudget):
    """A budget that takes a lease back in the moment in which it hears of a connection, or says nothing any more."""

    takes_back = 0
    """How many leases it will take back so."""
    silent = False

    def opened(self, lease: Lease, session: ServerSession) -> None:
        if self.takes_back:
            self.takes_back -= 1
            assert self._client is not None
            self._client.disown([lease])

    def answers(self) -> bool:
        return not self.silent


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> Moody:
    """The one of the pool that is started."""
    budget = Moody(2)

    def provide(_: PoolRequest) -> Moody:
        return budget

    monkeypatch.setattr("pysqlx_engine.pool.budget._provider", provide)  # and no other test's pools
    return budget


def test_a_connection_is_closed_that_is_disowned_in_the_moment_in_which_it_is_open(
    sqlite_uri: str, budget: Moody
) -> None:
    budget.takes_back = 1
    with PySQLXEnginePoolSync(sqlite_uri, min_size=1, max_size=2) as pool:
        eventually(lambda: pool.stats().closed == 1)
        with pool.connection() as conn:
            assert conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}


@pytest.mark.parametrize("limit", ["keep_alive", "max_idle"])
def test_nothing_is_retired_while_it_could_not_be_replaced(sqlite_uri: str, budget: Moody, limit: str) -> None:
    at_once = {"keep_alive": 1e-6} if limit == "keep_alive" else {"max_idle": 1e-6}
    with PySQLXEnginePoolSync(sqlite_uri, min_size=0, max_size=2, check_interval=3600.0, **at_once) as pool:
        budget.silent = True
        with pool.connection():
            with pool.connection():
                pass
            look_after(pool._runtime)  # one is idle and one in use
        look_after(pool._runtime)
        assert (pool.stats().idle, pool.stats().closing, pool.stats().closed) == (2, 0, 0)
        budget.silent = False
        look_after(pool._runtime)
        eventually(lambda: pool.stats().closed == 2)


def test_what_is_dead_is_removed_all_the_same(sqlite_uri: str, budget: Moody) -> None:
    with PySQLXEnginePoolSync(sqlite_uri, min_size=1, max_size=2, check_interval=3600.0) as pool:
        budget.silent = True
        (conn,) = pool._runtime.core.idle
        conn.engine._raw = None
        look_after(pool._runtime)
        eventually(lambda: pool.stats().closed == 1)
