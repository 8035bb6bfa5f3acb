"""Where a process's pools get their budget: the one place that wires pools to what many processes share.

With PYSQLX_COORDINATOR set, a pool draws leases from that coordinator; a coordinator that cannot be reached means wait
and then fail, never a budget of one's own. In the only worker of a `pysqlx-run`, the pools of the process share one
budget for each database, in which no other process can take part: what such a worker starts is refused a pool.
Everywhere else each pool has its own `max_size`.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from .errors import PoolRefusedError
from .pool.budget import Budget, BudgetProvider, LocalBudget, PoolRequest, use_provider
from .system import after_fork_in_child, need_posix

if TYPE_CHECKING:
    from .settings import JoinSettings
    from .workers.leased_budget import LocalLink


def shared_budget(request: PoolRequest) -> Budget:
    if request.uri.identity is None:  # a database in memory is each connection's own
        return LocalBudget(request.max_size)
    # Imported when needed: a single process loads neither ZeroMQ nor what speaks it.
    settings = _join_settings()
    if settings is not None and settings.coordinator is not None:
        need_posix("PYSQLX_COORDINATOR")
        from .workers.link import join

        return join(settings.coordinator, settings.curve_keys, request)
    if os.environ.get("PYSQLX_RUN_ID"):
        worker = os.environ.get("PYSQLX_WORKER_PID")
        if worker != str(os.getpid()):  # a child inherits the worker's environment
            raise PoolRefusedError(
                f"process {os.getpid()} is not the worker of its pysqlx-run (that is {worker}), which keeps its budget "
                "to itself: start the run with --coordinator, so that the processes of its script share the budget"
            )
        from .workers.leased_budget import LeasedBudget

        return LeasedBudget(_local_link(), request)
    return LocalBudget(request.max_size)


def provider_of_one_budget() -> BudgetProvider:
    """A provider for pools that share one budget, whether or not others share it too: with those of all processes that
    joined the same coordinator, or with the others of their run's only worker, else among themselves."""
    from .workers.leased_budget import LeasedBudget, LocalLink

    link = LocalLink(operator_size=None)

    def provide(request: PoolRequest) -> Budget:
        if request.uri.identity is None:
            raise PoolRefusedError("a database in memory is each connection's own: jobs need a file")
        budget = shared_budget(request)
        return LeasedBudget(link, request) if isinstance(budget, LocalBudget) else budget

    return provide


def _join_settings() -> JoinSettings | None:
    if not (os.environ.get("PYSQLX_COORDINATOR") or os.environ.get("PYSQLX_SETTINGS")):
        return None
    from .settings import load_join_settings

    return load_join_settings()


@functools.cache
def _local_link() -> LocalLink:
    from .settings import load_pool_settings
    from .workers.leased_budget import LocalLink

    return LocalLink(operator_size=load_pool_settings().max_size)


after_fork_in_child(_local_link.cache_clear)
use_provider(shared_budget)
