"""What a look at a run is as metrics: one page for the whole run, in the format of Prometheus.

Names and labels are an interface: dashboards and alerts are written against them. docs/metrics.md lists them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import attrgetter

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from ..jobs.life import FINAL, State
from ..status import BudgetStatus, Histogram, RunStatus
from .jobs import JobsStatus

_BOUNDS = range(7, 27)
"""Bounds that are told: 2**7 microseconds (128 us) to 2**26 (67 s). What is shorter or longer is in the first or the
last bucket."""
_GAUGES = {
    "size": "Connections that all processes together may have",
    "leased": "Leases charged now",
    "reserved": "Leases kept for ending the sessions of lost hosts",
    "in_use": "Connections in use",
    "idle": "Connections idle",
    "waiting": "Tasks and threads that wait for a connection",
    "connecting": "Connections being opened",
    "closing": "Connections being closed",
    "quarantined": "Leases of dead processes that the server was not seen to let go of",
}
_COUNTERS = {
    "requests": "Check-outs that were asked for",
    "requests_waited": "Check-outs that found no idle connection",
    "timeouts": "Check-outs that ended without a connection because time was over",
    "opened": "Connections opened",
    "open_errors": "Connections that could not be opened",
    "closed": "Connections closed",
    "found_dead": "Connections that had died while idle and were replaced",
    "rolled_back": "Check-ins that had to roll back a transaction",
}
_OF_LEASES = {
    "pysqlx_leases_recalled": ("Leases that were asked back", "recalled"),
    "pysqlx_leases_let_go": ("Sessions of dead processes that the server has let go of", "let_go"),
}
_HISTOGRAMS = {
    "wait": "From asking for a connection to having it, or to giving up",
    "hold": "From check-out to check-in",
    "open": "From the start of a connect until the connection was ready",
    "close": "From dropping a connection until the server had let go of it",
}


def page(status: RunStatus | None, jobs: Iterable[JobsStatus]) -> bytes:
    """The whole page. `status` is None while the run does not answer."""
    registry = CollectorRegistry()
    registry.register(_Look(status, list(jobs)))
    return generate_latest(registry)


class _Look(Collector):
    def __init__(self, status: RunStatus | None, jobs: list[JobsStatus]) -> None:
        self._status = status
        self._jobs = jobs

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("pysqlx_up", "Whether the run answers")
        up.add_metric([], float(self._status is not None))
        yield up
        if self._status is not None:
            yield from _of_run(self._status)
            yield from _of_budgets(self._status.budgets)
        yield from _of_jobs([one for one in self._jobs if one.error is None])


def _of_run(status: RunStatus) -> Iterator[Metric]:
    health = status.health
    yield GaugeMetricFamily("pysqlx_ready", "Whether all that is to be there is there", value=float(health.ready))
    yield GaugeMetricFamily(
        "pysqlx_coordinator_up",
        "Whether the coordinator is there, if there is to be one",
        value=float(health.coordinator),
    )
    yield GaugeMetricFamily(
        "pysqlx_supervisor_up", "Whether the supervisor answers, if there is one", value=float(health.supervisor)
    )
    if health.workers is not None:
        yield GaugeMetricFamily("pysqlx_workers", "Workers that there are to be", value=health.workers)
        yield GaugeMetricFamily("pysqlx_workers_up", "Workers that are up", value=health.up or 0)
    yield GaugeMetricFamily(
        "pysqlx_processes", "Processes with pools", value=sum(bool(worker.pools) for worker in status.workers)
    )
    if status.deaths is not None:
        yield CounterMetricFamily(
            "pysqlx_deaths", "Processes that died without having closed their pools", value=status.deaths
        )
    restarts = CounterMetricFamily("pysqlx_worker_restarts", "Times a worker was started again", labels=["worker"])
    told: dict[int, int] = {}
    for worker in status.workers:
        if worker.worker is not None and worker.state is not None:
            told[worker.worker] = max(worker.restarts, told.get(worker.worker, 0))
    for number, count in told.items():
        restarts.add_metric([str(number)], count)
    yield restarts


def _of_budgets(budgets: list[BudgetStatus]) -> Iterator[Metric]:
    for name, text in _GAUGES.items():
        gauge = GaugeMetricFamily(f"pysqlx_budget_{name}", text, labels=["database"])
        for budget in budgets:
            gauge.add_metric([budget.database], getattr(budget, name))
        yield gauge
    counted_by = {f"pysqlx_pool_{name}": (text, f"totals.{name}") for name, text in _COUNTERS.items()}
    for name, (text, where) in (counted_by | _OF_LEASES).items():
        counter = CounterMetricFamily(name, text, labels=["database"])
        for budget in budgets:
            counter.add_metric([budget.database], attrgetter(where)(budget))
        yield counter
    for name, text in _HISTOGRAMS.items():
        histogram = HistogramMetricFamily(f"pysqlx_pool_{name}_seconds", text, labels=["database"])
        for budget in budgets:
            counted: Histogram = getattr(budget.totals, name)
            histogram.add_metric([budget.database], _cumulative(counted), counted.sum)
        yield histogram


def _cumulative(counted: Histogram) -> list[tuple[str, float]]:
    told = [(repr(2**bound / 1e6), float(sum(counted.buckets[: bound + 1]))) for bound in _BOUNDS]
    return [*told, ("+Inf", float(counted.count))]


def _of_jobs(jobs: list[JobsStatus]) -> Iterator[Metric]:
    labels = ["database", "queue", "task"]
    waiting = GaugeMetricFamily("pysqlx_jobs", "Jobs that have not ended", labels=[*labels, "state"])
    oldest = GaugeMetricFamily(
        "pysqlx_jobs_oldest_wait_seconds",
        "How long the oldest job has waited that could run: the latency of the queue",
        labels=labels,
    )
    held = GaugeMetricFamily("pysqlx_jobs_held", "Available jobs that wait because of their limit", labels=labels)
    paused = GaugeMetricFamily("pysqlx_queue_paused", "1 for a queue that is paused", labels=["database", "queue"])
    dispatchers = GaugeMetricFamily("pysqlx_dispatchers", "Dispatchers that show signs of life", labels=["database"])
    ran = SummaryMetricFamily(
        "pysqlx_job_run_seconds", "How many jobs have ended, and how long they ran", labels=[*labels, "state"]
    )
    waited = SummaryMetricFamily(
        "pysqlx_job_wait_seconds",
        "How many jobs have ended, and how long they waited from when they could run",
        labels=[*labels, "state"],
    )
    for one in jobs:
        for task in one.tasks:
            names = [one.database, task.queue, task.task]
            for state in State:
                if state not in FINAL:
                    waiting.add_metric([*names, state], task.states.get(state, 0))
            oldest.add_metric(names, task.oldest_waits or 0.0)
            held.add_metric(names, task.held)
        for queue in one.paused:
            paused.add_metric([one.database, queue.name], 1)
        dispatchers.add_metric([one.database], one.dispatchers)
        for ended in one.ended:
            names = [one.database, ended.queue, ended.task, ended.state]
            ran.add_metric(names, count_value=ended.count, sum_value=ended.ran)
            waited.add_metric(names, count_value=ended.count, sum_value=ended.waited)
    yield from (waiting, oldest, held, paused, dispatchers, ran, waited)
