"""Metrics: one page for a whole run, by a scrape of the real thing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pysqlx_engine import PySQLXEngineSync
from pysqlx_engine.engine.driving import drive
from pysqlx_engine.workers import JobQueue
from pysqlx_engine.workers.jobs.life import State
from pysqlx_engine.workers.jobs.schema import migrate
from pysqlx_engine.workers.jobs.views import Ended, PausedQueue, TaskCounts
from pysqlx_engine.workers.messages import Durations, Totals
from pysqlx_engine.workers.observer.jobs import JobsStatus
from pysqlx_engine.workers.observer.metrics import page
from pysqlx_engine.workers.run import _parser, _with_address
from pysqlx_engine.workers.status import BudgetStatus, Health, ProcessState, RunStatus, TotalsStatus, WorkerStatus
from tests.workers.runs import Run, finished, started, wait_gone

DOCS = Path(__file__).parents[2] / "docs"
SHOP = "postgresql://db.example:5432/shop"
JOBS = """
import sys
from pysqlx_engine.workers import JobQueue

queue = JobQueue(uri="sqlite:./x.db", max_size=6)

@queue.task
async def works(number: int) -> None:
    pass

@queue.task(max_attempts=1)
async def fails(number: int) -> None:
    raise ValueError("no")

if __name__ == "__main__":
    queue.run()
"""
USES_SOME = """
import os, threading
from pysqlx_engine import PySQLXEnginePoolSync
with PySQLXEnginePoolSync(uri="sqlite:./x.db", min_size=1, max_size=6) as pool, pool.connection() as conn:
    conn.query_first("SELECT 1 AS a")
    print("up", os.getpid(), flush=True)
    threading.Event().wait()
"""
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """The only sample with this name and, among others, these labels."""
    [one] = [number for (of, its), number in found.items() if of == name and {*labels.items()} <= its]
    return one


# -- what a look becomes ----------------------------------------------------------------------------------------------


def status(**of_run: int) -> RunStatus:
    totals = Totals(0, requests=5, opened=2, wait=Durations(0.3, [1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 1]))
    one = BudgetStatus(
        database=SHOP, size=10, leased=3, in_use=2, idle=1, waiting=4, totals=TotalsStatus.of(totals), recalled=9
    )
    workers = [
        WorkerStatus(worker=number, pid=number + 1, state=ProcessState.UP, uptime=1.0, restarts=number, pools=[],
                     leases=0, in_use=0, idle=0, waiting=0)
        for number in range(2)
    ]  # fmt: skip
    health = Health(ready=False, workers=2, up=1, coordinator=True)
    return RunStatus(run="shop", health=health, budgets=[one], workers=workers, **of_run)


def test_a_look_becomes_gauges_counters_and_histograms() -> None:
    found = samples(page(status(deaths=3), []).decode())
    assert value(found, "pysqlx_up") == 1
    assert (value(found, "pysqlx_ready"), value(found, "pysqlx_workers_up")) == (0, 1)
    assert value(found, "pysqlx_budget_in_use", database=SHOP) == 2
    assert value(found, "pysqlx_pool_requests_total", database=SHOP) == 5
    assert value(found, "pysqlx_leases_recalled_total", database=SHOP) == 9
    assert value(found, "pysqlx_deaths_total") == 3
    assert value(found, "pysqlx_worker_restarts_total", worker="1") == 1
    buckets = [
        (float(dict(labels)["le"]), number)
        for (name, labels), number in found.items()
        if name == "pysqlx_pool_wait_seconds_bucket"
    ]
    # 1 below a microsecond, 3 from 128 to 256 microseconds, 1 from 8 to 16 milliseconds
    assert [number for _, number in sorted(buckets)] == [1, *[4] * 6, *[5] * 14]
    assert sorted(buckets)[1][0] == pytest.approx(256e-6)
    assert value(found, "pysqlx_pool_wait_seconds_sum") == pytest.approx(0.3)
    assert value(found, "pysqlx_pool_wait_seconds_count") == 5


@pytest.mark.parametrize(
    ("numbers", "alerted"),
    [
        ({"size": 4, "leased": 4}, True),
        ({"size": 4, "leased": 3}, False),
        ({"size": 4, "leased": 3, "reserved": 1}, True),
        ({"size": 4, "leased": 2, "reserved": 1}, False),
        ({"size": 4, "leased": 3, "reserved": 1, "waiting": 0}, False),
    ],
)
def test_a_budget_is_exhausted_when_who_waits_can_have_no_more(numbers: dict[str, int], alerted: bool) -> None:
    one = status()
    one.budgets = [msgspec.structs.replace(one.budgets[0], **numbers)]
    found = samples(page(one, []).decode())
    [alerts] = yaml.safe_load((DOCS / "grafana" / "alerts.yaml").read_text())["groups"]
    [expression] = [rule["expr"] for rule in alerts["rules"] if rule["alert"] == "PysqlxBudgetExhausted"]
    names = NAME.findall(expression)
    assert eval(expression, {name: value(found, name) for name in names}) is alerted  # it means the same in Python


def test_without_its_coordinator_nobody_knows_how_many_have_died() -> None:
    assert "pysqlx_deaths_total" not in {name for name, _ in samples(page(status(), []).decode())}


def test_a_run_that_does_not_answer_is_down_and_nothing_is_made_up() -> None:
    assert samples(page(None, []).decode()) == {("pysqlx_up", frozenset()): 0.0}


def test_a_coordinator_alone_has_no_numbers_of_workers() -> None:
    alone = status()
    alone.health = Health(ready=True, coordinator=True)
    names = {name for name, _ in samples(page(alone, []).decode())}
    assert "pysqlx_workers" not in names
    assert "pysqlx_processes" in names


def test_jobs_are_told_by_queue_task_and_state() -> None:
    jobs = JobsStatus(
        database=SHOP,
        tasks=[TaskCounts(queue="mail", task="send", states={State.AVAILABLE: 3}, held=1, oldest_waits=2.5)],
        paused=[PausedQueue("slow", datetime(2026, 1, 1, tzinfo=UTC))],
        ended=[Ended(queue="mail", task="send", state=State.COMPLETED, count=4, ran=8.0, waited=2.0)],
        dispatchers=1,
    )
    broken = JobsStatus(database="sqlite:/x", error="cannot be reached")
    found = samples(page(status(), [jobs, broken]).decode())
    assert value(found, "pysqlx_jobs", queue="mail", task="send", state="available") == 3
    assert value(found, "pysqlx_jobs", queue="mail", task="send", state="running") == 0
    assert value(found, "pysqlx_jobs_oldest_wait_seconds", task="send") == 2.5
    assert value(found, "pysqlx_queue_paused", queue="slow") == 1
    assert value(found, "pysqlx_job_run_seconds_count", task="send", state="completed") == 4
    assert value(found, "pysqlx_job_run_seconds_sum", task="send", state="completed") == 8
    assert value(found, "pysqlx_job_wait_seconds_sum", task="send") == 2
    assert not [labels for _, labels in found if ("database", "sqlite:/x") in labels]


# -- a run ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def measured(directory: Path, script: str, *options: str) -> Iterator[tuple[Run, str]]:
    """A run with metrics, and the address that it prints."""
    (directory / "script.py").write_text(script)
    with started(directory, *options, "--metrics", "127.0.0.1:0", "script.py") as run:
        address = run.line_with("metrics at").rpartition(" ")[2]
        yield run, address.removesuffix("/metrics")
        run.send(signal.SIGTERM)
        run.rest()
        assert run.wait() == 0


def get(address: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def scraped_until(address: str, good: Callable[[Samples], bool]) -> Samples:
    """The first scrape that is as it should be: the observer looks once a second."""
    deadline = time.monotonic() + 25
    while True:
        found = samples(get(f"{address}/metrics")[1])
        with contextlib.suppress(ValueError):  # nobody has looked yet
            if good(found):
                return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def test_one_page_is_for_the_whole_run(tmp_path: Path) -> None:
    with measured(tmp_path, USES_SOME, "-w", "3") as (run, address):
        for _ in range(3):
            run.line_with("up")
        found = scraped_until(address, lambda found: value(found, "pysqlx_budget_in_use") == 3)
        assert value(found, "pysqlx_ready") == 1
        assert value(found, "pysqlx_budget_size") == 6
        assert value(found, "pysqlx_pool_opened_total") == 3
        assert value(found, "pysqlx_pool_open_seconds_count") == 3
        assert get(f"{address}/healthz") == get(f"{address}/readyz") == (200, "ok\n")
        assert get(f"{address}/")[0] == 404  # the page is somewhere else, if at all


def test_a_killed_worker_is_counted_and_not_ready_until_another_one_is_up(tmp_path: Path) -> None:
    with measured(tmp_path, USES_SOME, "-w", "2") as (run, address):
        pids = [int(run.line_with("up").rpartition(" ")[2]) for _ in range(2)]
        scraped_until(address, lambda found: value(found, "pysqlx_pool_opened_total") == 2)  # both have told
        os.kill(pids[0], signal.SIGKILL)
        run.line_with("up")
        found = scraped_until(address, lambda found: value(found, "pysqlx_deaths_total") == 1)
        restarts = [number for (name, _), number in found.items() if name == "pysqlx_worker_restarts_total"]
        assert sorted(restarts) == [0, 1]
        assert value(found, "pysqlx_pool_opened_total") in {2, 3}  # what the dead one had told is kept


def test_without_its_coordinator_it_is_alive_and_not_ready(tmp_path: Path) -> None:
    with measured(tmp_path, USES_SOME, "-w", "2") as (run, address):
        for _ in range(2):
            run.line_with("up")
        coordinator = run.pid_titled("coordinator")
        os.kill(coordinator, signal.SIGSTOP)
        scraped_until(address, lambda found: value(found, "pysqlx_coordinator_up") == 0)
        assert get(f"{address}/healthz") == (200, "ok\n")
        assert get(f"{address}/readyz") == (503, "2 of 2 workers are up; the coordinator is not there\n")
        os.kill(coordinator, signal.SIGCONT)
        scraped_until(address, lambda found: value(found, "pysqlx_ready") == 1)


def test_without_an_answer_of_its_supervisor_it_is_not_ready(tmp_path: Path) -> None:
    with measured(tmp_path, USES_SOME, "-w", "2") as (run, address):
        for _ in range(2):
            run.line_with("up")
        scraped_until(address, lambda found: value(found, "pysqlx_ready") == 1)
        run.send(signal.SIGSTOP)
        found = scraped_until(address, lambda found: value(found, "pysqlx_ready") == 0)
        assert (value(found, "pysqlx_supervisor_up"), value(found, "pysqlx_coordinator_up")) == (0, 1)
        assert value(found, "pysqlx_budget_in_use") == 2
        assert get(f"{address}/healthz") == (200, "ok\n")
        assert get(f"{address}/readyz") == (503, "the supervisor does not answer\n")
        run.send(signal.SIGCONT)
        found = scraped_until(address, lambda found: value(found, "pysqlx_ready") == 1)
        assert value(found, "pysqlx_supervisor_up") == 1


def test_jobs_are_counted_as_they_end(tmp_path: Path) -> None:
    connection = PySQLXEngineSync(f"sqlite:{tmp_path}/x.db")
    connection.connect()
    drive(migrate(connection._engine))
    with measured(tmp_path, JOBS, "-w", "2") as (_, address):
        scraped_until(address, lambda found: found.get(("pysqlx_dispatchers", of_file(tmp_path))) == 1)
        queue = JobQueue(f"sqlite:{tmp_path}/x.db")

        @queue.task
        def works(number: int) -> None: ...
        @queue.task(max_attempts=1)
        def fails(number: int) -> None: ...

        works.enqueue_many_sync([{"number": number} for number in range(7)], conn=connection)
        fails.enqueue_sync(number=1, conn=connection)
        works.options(delay=3600).enqueue_sync(number=8, conn=connection)

        def counted(found: Samples) -> bool:
            return sum(number for (name, _), number in found.items() if name == "pysqlx_job_run_seconds_count") == 8

        found = scraped_until(address, counted)
        assert value(found, "pysqlx_job_run_seconds_count", task="works", state="completed") == 7
        assert value(found, "pysqlx_job_run_seconds_count", task="fails", state="discarded") == 1
        assert value(found, "pysqlx_jobs", task="works", state="scheduled") == 1
    connection.close()


def of_file(directory: Path) -> frozenset[tuple[str, str]]:
    return frozenset({("database", f"sqlite:{directory}/x.db")})


# -- the observer's life ----------------------------------------------------------------------------------------------


def test_an_observer_that_is_killed_is_started_again_and_nobody_else_notices(tmp_path: Path) -> None:
    with measured(tmp_path, USES_SOME, "-w", "2") as (run, address):
        pids = {int(run.line_with("up").rpartition(" ")[2]) for _ in range(2)}
        observer = run.pid_titled("observer")
        os.kill(observer, signal.SIGKILL)
        wait_gone([observer])
        # Who asks meanwhile waits: the socket is the supervisor's.
        found = scraped_until(address, lambda found: value(found, "pysqlx_ready") == 1)
        assert value(found, "pysqlx_workers_up") == 2
        assert pids < set(run.pids())


def test_a_reload_with_other_settings_has_an_observer_that_knows_them(tmp_path: Path) -> None:
    settings = tmp_path / "run.env"
    settings.write_text(f"PYSQLX_URI=sqlite:{tmp_path}/one.db\n")
    script = USES_SOME.replace('uri="sqlite:./x.db", ', "")
    with measured(tmp_path, script, "-w", "2", "--settings", "run.env") as (run, address):
        for _ in range(2):
            run.line_with("up")
        before = run.pid_titled("observer")
        settings.write_text(f"PYSQLX_URI=sqlite:{tmp_path}/two.db\n")
        run.send(signal.SIGHUP)
        wait_gone([before])
        scraped_until(address, lambda found: value(found, "pysqlx_ready") == 1)
        run.send(signal.SIGUSR2)
        lines = run.lines_until(f"observer: the run answers; sqlite:{tmp_path}/two.db")
        assert any("the settings have changed: another observer takes the place of this one" in line for line in lines)
        assert not any("starting it again" in line for line in lines)


def test_it_is_there_until_the_last_worker_has_ended(tmp_path: Path) -> None:
    slow = USES_SOME.replace("threading.Event().wait()", WAITS_FOR_A_FILE)
    with measured(tmp_path, slow, "-w", "2") as (run, address):
        for _ in range(2):
            run.line_with("up")
        scraped_until(address, lambda found: any(name == "pysqlx_budget_in_use" for name, _ in found))
        run.send(signal.SIGTERM)
        run.line_with("told")
        found = scraped_until(address, lambda found: value(found, "pysqlx_ready") == 0)
        assert value(found, "pysqlx_budget_in_use") >= 1
        (tmp_path / "go").touch()


WAITS_FOR_A_FILE = """
    import pathlib, time
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("told", flush=True)
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
"""


@pytest.mark.thorough
def test_an_observer_that_does_not_end_is_killed_and_the_run_has_ended_well(tmp_path: Path) -> None:
    with measured(tmp_path, USES_SOME, "-w", "2") as (run, _):
        for _ in range(2):
            run.line_with("up")
        os.kill(run.pid_titled("observer"), signal.SIGSTOP)  # a database that does not answer, for instance
    # `measured` has ended it, and seen it end with 0


def test_an_address_that_somebody_else_has_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(USES_SOME)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        code, out, errors = finished(tmp_path, "--metrics", address, "script.py")
    line = f"pysqlx-run: --metrics {address}: cannot listen there: Address already in use"
    assert (code, out, errors) == (2, [], [line])


@pytest.mark.parametrize("address", ["9100", "localhost:", ":9100", "localhost:65536", "http://localhost:9100"])
def test_what_is_no_address_is_refused(tmp_path: Path, address: str) -> None:
    (tmp_path / "script.py").write_text(USES_SOME)
    code, _, errors = finished(tmp_path, "--metrics", address, "script.py")
    assert code == 2
    assert "HOST:PORT" in errors[0]


def test_the_dashboard_needs_no_address_and_what_follows_it_is_the_script() -> None:
    parser = _parser()
    for words, address, script, rest in (
        (["--dashboard", "script.py", "--dashboard", "x"], "127.0.0.1:8787", "script.py", ["--dashboard", "x"]),
        (["-w", "2", "--dashboard", "[::1]:80", "script.py"], "[::1]:80", "script.py", []),
        (["--dashboard", "-w", "2", "shop.workers:main"], "127.0.0.1:8787", "shop.workers:main", []),
        (["script.py", "--dashboard"], None, "script.py", ["--dashboard"]),
        (["--dashboard", "9000", "script.py"], "9000", "script.py", []),  # is refused, and is no script
        (["--dashboard", "localhost:", "script.py"], "localhost:", "script.py", []),
    ):
        options = parser.parse_args(_with_address(parser, words))
        assert (options.dashboard, options.script, options.args) == (address, script, rest)


# -- what is written against these names ------------------------------------------------------------------------------

NAME = re.compile(r"\bpysqlx_[a-z_]+\b")


def test_the_dashboard_the_alerts_and_the_document_ask_for_metrics_that_there_are(tmp_path: Path) -> None:
    jobs = JobsStatus(
        database=SHOP,
        tasks=[TaskCounts(queue="mail", task="send", states={}, held=0, oldest_waits=None)],
        paused=[PausedQueue("slow", datetime(2026, 1, 1, tzinfo=UTC))],
        ended=[Ended(queue="mail", task="send", state=State.COMPLETED, count=1, ran=1.0, waited=1.0)],
    )
    there = {name for name, _ in samples(page(status(deaths=0), [jobs]).decode())}
    grafana = json.loads((DOCS / "grafana" / "pysqlx.json").read_text())
    asked = {target["expr"] for panel in grafana["panels"] for target in panel.get("targets", [])}
    assert len(asked) >= 12
    for rules in yaml.safe_load((DOCS / "grafana" / "alerts.yaml").read_text())["groups"]:
        for rule in rules["rules"]:
            assert {"alert", "expr", "for", "labels", "annotations"} <= rule.keys()
            asked.add(rule["expr"])
    for expression in asked:
        names = set(NAME.findall(expression))
        assert names, expression
        assert names <= there, expression
    families = {re.sub("_(total|bucket|sum|count)$", "", name) for name in there}
    documented = {re.sub("_total$", "", name) for name in NAME.findall((DOCS / "metrics.md").read_text())}
    assert documented - {"pysqlx_engine"} == families  # that is the package
