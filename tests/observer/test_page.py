"""The web page of a real run, in a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Request, Route, expect

from pysqlx_engine import PySQLXEngineSync
from pysqlx_engine.engine.driving import drive
from pysqlx_engine.workers import JobQueue
from pysqlx_engine.workers.jobs.schema import migrate
from tests.servers import PostgresServer, free_port, postgresql_database
from tests.workers.runs import Run, started

from .waiting import eventually

EVIL = '<img src=x onerror="window.owned=1"><script>window.owned=1</script>'
SCRIPT = f"""
import asyncio, pathlib
from pysqlx_engine import PySQLXEngine
from pysqlx_engine.workers import Backoff, JobQueue

queue = JobQueue(queues={{"default": 1, "mail": 1, "a/b": 1}}, concurrency=4)

async def file(name):
    while not pathlib.Path(name).exists():
        await asyncio.sleep(0.01)

@queue.task
async def holds(conn: PySQLXEngine, name: str) -> None:
    await file(name)

@queue.task(store_result=True)
async def waits(name: str) -> str:
    await file(name)
    return name

@queue.task(max_attempts=2, backoff=Backoff(0.01))
async def fails(text: str) -> None:
    raise ValueError(text)

@queue.task(max_attempts=1)
async def fails_without(name: str) -> None:
    if not pathlib.Path(name).exists():
        raise FileNotFoundError(name)

@queue.task(name={EVIL!r}, max_attempts=1)
async def evil(text: str) -> None:
    raise ValueError(text)

queue.run()
"""


@dataclass
class Shown:
    """A run with a page, and the jobs of its database."""

    run: Run
    url: str
    directory: Path
    database: psycopg.Connection[Any]
    add: Callable[..., int]
    number = count()

    def name(self) -> str:
        """A file that is not there yet."""
        return str(self.directory / f"file{next(self.number)}")

    def job(self, id_: int) -> tuple[str, int]:
        """Its state, and how many attempts it has had."""
        found = self.database.execute(
            "SELECT state, attempt FROM pysqlx_jobs WHERE id = %(id)s UNION ALL "
            "SELECT state, attempt FROM pysqlx_jobs_ended WHERE id = %(id)s",
            {"id": id_},
        ).fetchone()
        assert found is not None
        return found

    def paused(self) -> set[str]:
        return {name for (name,) in self.database.execute("SELECT name FROM pysqlx_job_queues WHERE paused_at > 0")}

    def failed(self, *texts: str) -> list[int]:
        """Jobs whose every attempt has failed."""
        ids = [self.add("fails", text=text) for text in texts]
        for id_ in ids:
            eventually(lambda id_=id_: self.job(id_)[0] == "discarded")
        return ids


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}readyz", trust_env=False, timeout=20).is_success
    except httpx.TransportError:  # nobody listens there yet
        return False


@pytest.fixture(scope="module")
def shown(postgres: PostgresServer) -> Iterator[Shown]:
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(postgresql_database(postgres, f"page_{os.getpid()}"))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pysqlx-test-")))
        (directory / "shop.py").write_text(SCRIPT)
        connection = PySQLXEngineSync(database.uri)
        connection.connect()
        drive(migrate(connection._engine))
        queue = JobQueue(database.uri)

        @queue.task
        def holds(name: str) -> None: ...
        @queue.task(store_result=True)
        def waits(name: str) -> str: ...
        @queue.task(max_attempts=2)
        def fails(text: str) -> None: ...
        @queue.task(max_attempts=1)
        def fails_without(name: str) -> None: ...
        @queue.task(name=EVIL, max_attempts=1)
        def evil(text: str) -> None: ...

        def add(task: str, queue_: str = "default", delay: float = 0.0, **arguments: object) -> int:
            return queue.tasks[task].options(queue=queue_, delay=delay).enqueue_sync(conn=connection, **arguments)

        port = free_port()
        log = stack.enter_context((directory / "log").open("w"))
        run = stack.enter_context(
            started(
                directory, "-w", "4", "--max-size", "9", "--name", "shop", "--dashboard", f"127.0.0.1:{port}",
                "shop.py", PYSQLX_URI=database.uri, stdout=log.fileno(),
            )
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}/"
        eventually(lambda: is_ready(url), 60)
        looker = stack.enter_context(psycopg.connect(database.uri, autocommit=True))
        yield Shown(run, url, directory, looker, add)
        run.send(signal.SIGQUIT)
        run.wait()
        connection.close()


@dataclass
class Seen:
    """A page in the browser, and what went on behind it."""

    page: Page
    requests: list[Request]
    errors: list[str]
    """Of its console, and of its scripts."""

    def posts(self) -> list[str]:
        return [request.url for request in self.requests if request.method == "POST"]


@pytest.fixture
def open_page(browser: Browser, shown: Shown) -> Iterator[Callable[..., Seen]]:
    """`open_page("jobs")`: this view in a new window, with what else a context of Playwright may have."""
    contexts = []

    def opened(view: str = "", *, size: tuple[int, int] = (1280, 900), clock: bool = False, **options: Any) -> Seen:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        contexts.append(context)
        if clock:  # one that the test may put forward
            context.clock.install()
        page = context.new_page()
        page.set_default_timeout(20_000)
        seen = Seen(page, [], [])
        page.on("request", lambda request: seen.requests.append(request))  # noqa: PLW0108 - not a builtin
        page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.goto(f"{shown.url}#/{view}")
        return seen

    expect.set_options(timeout=20_000)
    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def seen(open_page: Callable[..., Seen]) -> Iterator[Seen]:
    """The overview, complete, which has to end without an error."""
    seen = open_page()
    expect(row(seen.page, "mail")).to_be_visible()
    yield seen
    assert seen.errors == []


def row(page: Page, name: str) -> Locator:
    """The row of a table whose heading this is."""
    return page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=name, exact=True))


def in_use(page: Page) -> int:
    return int(page.locator(".budget .legend li", has_text="in use").first.locator("b").inner_text())


def confirm(page: Page, button: str) -> None:
    page.get_by_role("dialog").get_by_role("button", name=button).click()
    expect(page.get_by_role("dialog")).to_be_hidden()


def visit(page: Page, shown: Shown, view: str) -> None:
    """A view, with everything in it."""
    page.goto(f"{shown.url}#/{view}")
    if view == "":
        expect(row(page, "mail")).to_be_visible()
    elif view == "jobs":
        expect(page.locator("tbody tr").first).to_be_visible()
    else:
        expect(page.get_by_role("heading", name=re.compile("Job .*: fails"))).to_be_visible()


def test_nothing_comes_from_elsewhere_and_the_console_stays_empty(seen: Seen, shown: Shown) -> None:
    (job,) = shown.failed("no")
    for view in ("", "jobs", f"job/{job}"):
        visit(seen.page, shown, view)
    assert {request.url.startswith(shown.url) for request in seen.requests} == {True}
    assert {request.resource_type for request in seen.requests} >= {"document", "stylesheet", "script", "fetch"}


def test_the_overview_says_how_the_run_stands(seen: Seen) -> None:
    page = seen.page
    expect(page.get_by_role("heading", level=1)).to_have_text("shop")
    expect(page.locator("#health")).to_have_text("✓ ready: 4 workers")
    for worker in range(4):
        expect(row(page, f"worker {worker}")).to_contain_text("up")
    for queue in ("default", "mail", "a/b"):
        expect(row(page, queue)).to_be_visible()
    expect(page.locator(".budget .legend").first).to_contain_text("budget 9")


def test_numbers_change_without_a_reload(seen: Seen, shown: Shown) -> None:
    page = seen.page
    page.evaluate("window.mark = document.querySelector('.budget .legend b')")
    name = shown.name()
    for _ in range(3):
        shown.add("holds", name=name)
    eventually(lambda: in_use(page) >= 4)  # three, and that of the dispatcher
    expect(row(page, "holds")).to_contain_text("3")
    Path(name).touch()
    eventually(lambda: in_use(page) < 4)
    assert page.evaluate("window.mark.isConnected"), "what is there is changed in place"


def test_waiters_are_what_it_says_first(seen: Seen, shown: Shown) -> None:
    page, name = seen.page, shown.name()
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: Path(name).touch())
        for _ in range(20):
            shown.add("holds", name=name)
        expect(page.locator(".verdict")).to_have_text(re.compile(r"used up: all 9 are leased, \d+ waits?"))
        expect(page).to_have_title(re.compile(r"\(\d+ waiting\) Overview · shop"))
        expect(page.locator("#said")).to_contain_text("used up")
    expect(page.locator(".verdict")).not_to_contain_text("used up")


def test_what_is_kept_back_for_lost_hosts_is_neither_free_nor_for_who_waits(seen: Seen) -> None:
    numbers = {"size": 4, "reserved": 1, "leased": 3, "in_use": 3, "idle": 0, "waiting": 2}

    def told(route: Route) -> None:
        answer = route.fetch()
        said = answer.json()
        said["status"]["budgets"][0] |= numbers
        route.fulfill(response=answer, json=said)

    seen.page.route("**/api/status", told)
    verdict = seen.page.locator(".verdict")
    expect(verdict).to_have_text(re.compile("^used up: all 3 are leased, 1 kept back, 2 wait"))
    numbers |= {"leased": 2, "in_use": 2, "waiting": 0}
    expect(verdict).to_have_text(re.compile("^nobody waits, 1 of 4 are free, 0 idle"))
    seen.page.unroute_all(behavior="wait")


def test_retry_runs_a_job_again_once_it_is_confirmed(seen: Seen, shown: Shown) -> None:
    page, name = seen.page, shown.name()
    job = shown.add("fails_without", name=name)
    eventually(lambda: shown.job(job) == ("discarded", 1))
    Path(name).touch()
    page.goto(f"{shown.url}#/job/{job}")
    retry = page.get_by_role("button", name=f"Retry job {job}")
    retry.click()
    confirm(page, "No, leave it")
    assert seen.posts() == []
    assert shown.job(job) == ("discarded", 1)
    retry.click()
    confirm(page, f"Retry job {job}")
    eventually(lambda: shown.job(job) == ("completed", 2))
    expect(page.locator(".state")).to_contain_text("completed")
    expect(page.locator("#said")).to_have_text(f"Job {job} runs once more.")


def test_cancel_ends_a_job_that_waits_and_one_that_runs(seen: Seen, shown: Shown) -> None:
    page = seen.page
    later, now = shown.add("waits", delay=3600, name="x"), shown.add("waits", name=shown.name())
    eventually(lambda: shown.job(now)[0] == "running")
    for job, said in ((later, "is cancelled"), (now, "was asked to stop")):
        page.goto(f"{shown.url}#/job/{job}")
        page.get_by_role("button", name=f"Cancel job {job}").click()
        confirm(page, f"Cancel job {job}")
        expect(page.locator("#said")).to_have_text(f"Job {job} {said}.")
        eventually(lambda job=job: shown.job(job)[0] == "cancelled")
        expect(page.locator(".state")).to_contain_text("cancelled")
        expect(page.get_by_role("button", name=f"Cancel job {job}")).to_be_hidden()


@pytest.mark.parametrize("queue", ["mail", "a/b"])
def test_a_queue_is_paused_and_resumed(seen: Seen, shown: Shown, queue: str) -> None:
    page = seen.page
    pause, resume = (page.get_by_role("button", name=f"{verb} queue {queue}") for verb in ("Pause", "Resume"))
    pause.click()
    confirm(page, "No, leave it")
    assert seen.posts() == []
    pause.click()
    confirm(page, f"Pause {queue}")
    expect(resume).to_be_visible()
    expect(row(page, f"{queue} paused")).to_be_visible()
    assert shown.paused() == {queue}
    job = shown.add("fails_without", queue_=queue, name=str(shown.directory))
    resume.click()
    confirm(page, f"Resume {queue}")
    expect(pause).to_be_visible()
    assert shown.paused() == set()
    eventually(lambda: shown.job(job)[0] == "completed")


def test_what_was_not_done_is_said(seen: Seen, shown: Shown) -> None:
    page = seen.page
    job = shown.add("waits", delay=3600, name="x")
    page.goto(f"{shown.url}#/job/{job}")
    page.get_by_role("button", name=f"Cancel job {job}").click()
    shown.database.execute("UPDATE pysqlx_jobs SET state = 'running' WHERE id = %s", (job,))
    shown.database.execute("DELETE FROM pysqlx_jobs WHERE id = %s", (job,))
    confirm(page, f"Cancel job {job}")
    expect(page.get_by_role("alert")).to_contain_text(f"Job {job} was not changed: it does not exist")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.get_by_text("There is no such job")).to_be_visible()
    assert [error for error in seen.errors if "404" not in error] == []
    seen.errors.clear()  # the browser's own line of the 404


def test_filters_are_in_the_address(seen: Seen, shown: Shown) -> None:
    page = seen.page
    (job,) = shown.failed("lost")
    page.get_by_role("link", name="Jobs", exact=True).click()
    page.get_by_role("checkbox", name="discarded").check()
    page.get_by_role("combobox", name="Task").fill("fails")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"#/jobs\?task=fails&state=discarded$"))
    expect(page.get_by_role("combobox", name="Task")).to_be_focused()
    expect(row(page, str(job))).to_contain_text("ValueError: lost")
    expect(page.locator("tbody tr", has_not_text="✗ discarded")).to_have_count(0)
    page.reload()
    expect(row(page, str(job))).to_be_visible()
    expect(page.get_by_role("checkbox", name="discarded")).to_be_checked()
    expect(page.get_by_role("combobox", name="Task")).to_have_value("fails")
    page.get_by_role("combobox", name="Queue").fill("mail")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No job is like this.")).to_be_visible()
    page.go_back()
    expect(row(page, str(job))).to_be_visible()
    expect(page.get_by_role("combobox", name="Queue")).to_have_value("")
    row(page, str(job)).get_by_role("link").click()
    expect(page.get_by_role("heading", name=f"Job {job}: fails")).to_be_focused()
    page.go_back()
    expect(page).to_have_url(re.compile(r"#/jobs\?task=fails&state=discarded$"))


def test_a_number_of_the_overview_leads_to_its_jobs(seen: Seen, shown: Shown) -> None:
    page = seen.page
    job = shown.add("waits", queue_="mail", delay=3600, name="x")
    row(page, "mail").get_by_role("link", name="1", exact=True).click()
    expect(page).to_have_url(re.compile("queue=mail&state=scheduled$"))
    expect(row(page, str(job))).to_contain_text("scheduled")


def test_old_jobs_are_on_the_next_page(open_page: Callable[..., Seen], shown: Shown) -> None:
    first, *_, last = [shown.add("waits", queue_="nobody", delay=3600, name=str(number)) for number in range(60)]
    page = open_page("jobs?queue=nobody").page
    expect(row(page, str(last))).to_be_visible()
    expect(page.locator("tbody tr")).to_have_count(50)
    page.get_by_role("link", name="Older").click()
    expect(row(page, str(first))).to_be_visible()
    expect(page.locator("tbody tr")).to_have_count(10)
    page.get_by_role("link", name="Newest").click()
    expect(row(page, str(last))).to_be_visible()


def test_a_list_waits_for_who_reads_it(open_page: Callable[..., Seen], shown: Shown) -> None:
    one = shown.add("waits", queue_="read", delay=3600, name="x")
    page = open_page("jobs?queue=read", clock=True).page
    row(page, str(one)).hover()
    two = shown.add("waits", queue_="read", delay=3600, name="x")
    page.clock.fast_forward(6_000)
    page.get_by_role("button", name="Show the new list").click()
    expect(row(page, str(two))).to_be_visible()
    three = shown.add("waits", queue_="read", delay=3600, name="x")
    page.mouse.move(0, 0)
    page.clock.fast_forward(6_000)
    expect(row(page, str(three))).to_be_visible()


def test_a_job_is_shown_with_each_of_its_errors(open_page: Callable[..., Seen], shown: Shown) -> None:
    (job,) = shown.failed("went wrong")
    page = open_page(f"job/{job}").page
    expect(page.get_by_role("heading", name="Attempt 1")).to_be_visible()
    expect(page.get_by_role("heading", name="Attempt 2")).to_be_visible()
    expect(page.get_by_role("region", name=f"Arguments of job {job}")).to_have_text('{ "text": "went wrong" }')
    tracebacks = page.get_by_role("region", name="Traceback")
    expect(tracebacks).to_have_count(2)
    for traceback in tracebacks.all():
        assert "raise ValueError(text)\nValueError: went wrong" in traceback.inner_text()
    name = shown.name()
    Path(name).touch()
    done = shown.add("waits", name=name)
    eventually(lambda: shown.job(done)[0] == "completed")
    page.goto(f"{shown.url}#/job/{done}")
    expect(page.get_by_role("region", name=f"Result of job {done}")).to_have_text(json.dumps(name))


def test_what_others_have_written_is_text(open_page: Callable[..., Seen], shown: Shown) -> None:
    job = shown.add(EVIL, queue_=EVIL[:40], text=EVIL)
    shown.database.execute("UPDATE pysqlx_jobs SET queue = 'default' WHERE id = %s", (job,))
    eventually(lambda: shown.job(job)[0] == "discarded")
    held = shown.add(EVIL, queue_=EVIL[:40], delay=3600, text=EVIL)
    seen = open_page(f"job/{job}")
    page = seen.page
    expect(page.get_by_role("heading", name=f"Job {job}: {EVIL}")).to_be_visible()
    expect(page.locator(".attempt .error")).to_have_text(f"ValueError: {EVIL}")
    page.goto(f"{shown.url}#/jobs")
    expect(row(page, str(held))).to_contain_text(EVIL)
    expect(row(page, str(job))).to_contain_text(f"ValueError: {EVIL}")
    page.goto(f"{shown.url}#/")
    expect(row(page, EVIL).first).to_be_visible()
    page.get_by_role("button", name=f"Pause queue {EVIL[:40]}").click()
    expect(page.get_by_role("dialog")).to_contain_text(EVIL[:40])
    assert page.locator("main img, main script, dialog img, dialog script").count() == 0
    assert page.evaluate("window.owned") is None
    assert seen.errors == []


def test_a_hidden_page_asks_nobody(open_page: Callable[..., Seen]) -> None:
    seen = open_page(clock=True)
    page = seen.page
    expect(row(page, "mail")).to_be_visible()
    hide = "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });" \
        "document.dispatchEvent(new Event('visibilitychange')) }"  # fmt: skip
    page.evaluate(hide, True)
    page.wait_for_load_state("networkidle")
    before = len(seen.requests)
    page.clock.run_for(60_000)
    assert len(seen.requests) == before
    with page.expect_request("**/api/status"):
        page.evaluate(hide, False)
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_silent_observer_is_seen_and_it_recovers_by_itself(open_page: Callable[..., Seen], shown: Shown) -> None:
    page = open_page(clock=True).page
    expect(row(page, "mail")).to_be_visible()
    before = shown.run.pid_titled("pysqlx-run: observer")
    os.kill(before, signal.SIGSTOP)
    page.clock.run_for(5_000)
    expect(page.locator("#trouble")).to_have_text(re.compile(r"no answer since \d.*: the observer of the run does not"))
    expect(page.locator("#said")).to_contain_text("No answer")
    expect(row(page, "worker 3")).to_be_visible()  # what was known stays
    os.kill(before, signal.SIGKILL)
    expect(page.locator("#trouble")).to_be_hidden()
    expect(page.locator("#said")).to_have_text("The run answers again.")
    assert shown.run.pid_titled("pysqlx-run: observer") != before
    expect(row(page, "mail")).to_be_visible()


@pytest.mark.thorough
def test_a_silent_supervisor_coordinator_and_run_are_seen(open_page: Callable[..., Seen], shown: Shown) -> None:
    page = open_page().page
    expect(page.locator("#health")).to_have_text("✓ ready: 4 workers")
    coordinator, supervisor = (shown.run.pid_titled(f"pysqlx-run: {one}") for one in ("coordinator", "supervisor"))
    try:
        os.kill(supervisor, signal.SIGSTOP)
        expect(page.locator("#health")).to_have_text("✗ not ready: the supervisor does not answer")
        os.kill(supervisor, signal.SIGCONT)
        os.kill(coordinator, signal.SIGSTOP)
        expect(page.locator("#health")).to_have_text("✗ not ready: the coordinator is not there")
        expect(page.locator(".verdict")).to_be_visible()  # what was known stays
        os.kill(supervisor, signal.SIGSTOP)
        expect(page.locator("#trouble")).to_have_text(re.compile("no answer since .*: the run shop does not answer"))
        expect(page.locator(".verdict")).to_be_visible()
    finally:
        os.kill(supervisor, signal.SIGCONT)
        os.kill(coordinator, signal.SIGCONT)
    expect(page.locator("#trouble")).to_be_hidden()
    expect(page.locator("#health")).to_have_text("✓ ready: 4 workers")


def test_the_keyboard_is_enough(seen: Seen, shown: Shown) -> None:
    page = seen.page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    pause = page.get_by_role("button", name="Pause queue mail")
    for _ in range(60):
        page.keyboard.press("Tab")
        if pause.evaluate("button => button === document.activeElement"):
            break
    expect(pause).to_be_focused()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Pause queue mail?")
    expect(dialog.get_by_role("button", name="No, leave it")).to_be_focused()
    for _ in range(4):  # the focus stays within, or goes to the browser's own buttons
        page.keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || document.activeElement.closest('dialog') !== null"
        )
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(pause).to_be_focused()
    assert seen.posts() == []
    assert shown.paused() == set()


def test_the_last_hour_is_a_chart_a_slider_and_a_table(seen: Seen, shown: Shown) -> None:
    page = seen.page
    slider = page.get_by_role("slider")
    expect(slider).to_be_visible()  # from the first ten seconds on
    expect(page.locator(".chart path.size")).to_have_count(1)
    slider.focus()
    page.keyboard.press("Home")
    expect(slider).to_have_attribute("aria-valuenow", "0")
    expect(slider).to_have_attribute("aria-valuetext", re.compile(r"\d\d:\d\d:\d\d: .* of 9 leased"))
    slider.hover(position={"x": 600, "y": 60})
    expect(page.locator(".reading")).to_contain_text("of 9 leased")
    page.get_by_text("by use").click()
    expect(page.locator(".chart path.in-use")).to_have_count(1)
    page.get_by_text("The same as a table").click()
    expect(page.get_by_role("region", name=re.compile("The last hour")).locator("tbody tr").first).to_contain_text("9")


def test_the_chart_goes_on_when_the_clock_is_set_back(open_page: Callable[..., Seen]) -> None:
    page = open_page().page

    def point(number: int, at: int) -> dict[str, Any]:
        counts = dict.fromkeys(("leased", "in_use", "idle", "waiting", "most_leased", "most_waiting", "requests"), 0)
        return {"number": number, "at": at, "size": number, "timeouts": 0, "wait": 0, "holders": {}, **counts}

    def answer(route: Route) -> None:
        after = int(parse_qs(urlsplit(route.request.url).query)["after"][0])
        points = [point(100 + second, 1_000_000 + second - (50 if second > 30 else 0)) for second in range(0, 60, 10)]
        route.fulfill(json={"points": [one for one in points if one["number"] > after][:4]})

    page.route("**/api/history?*", answer)
    page.reload()
    page.get_by_text("The same as a table").click()
    sizes = page.get_by_role("region", name=re.compile("The last hour")).locator("tbody tr td:nth-of-type(1)")
    expect(page.locator(".reading")).to_contain_text("of 150 leased")
    expect(sizes).to_have_text(["150", "140"])  # what has a later moment was before


def contrast(page: Page, selector: str) -> float:
    """That of its text to what is behind, by WCAG 2."""
    return page.locator(selector).first.evaluate(
        """node => {
            const parts = (text) => text.match(/[0-9.]+/g).map(Number);
            const light = (text) => {
                const [red, green, blue] = parts(text).map((value) => value / 255).map(
                    (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
                return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
            };
            let behind = node;
            while (behind && parts(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
            const both = [getComputedStyle(node).color, getComputedStyle(behind ?? document.body).backgroundColor];
            const [less, more] = both.map(light).sort((a, b) => a - b);
            return (more + 0.05) / (less + 0.05);
        }"""
    )


def test_it_is_readable_by_day_and_by_night_and_axe_finds_nothing(open_page: Callable[..., Seen], shown: Shown) -> None:
    (job,) = shown.failed("no")
    pictures = []
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme).page
        # Colours are all that is different in the dark, and the overview has them all.
        for view in ("", "jobs", f"job/{job}", "dialog") if scheme == "light" else ("",):
            if view == "dialog":
                page.get_by_role("button", name=f"Retry job {job}").click()
            else:
                visit(page, shown, view)
            if view == "":
                for selector in ("h1", "#health", ".verdict", ".facts dt", "thead th", "tbody a[href]", "tbody button"):
                    assert contrast(page, selector) >= 4.5, (scheme, selector)
                pictures.append(page.screenshot())
            found = Axe().run(page).response["violations"]
            assert [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found] == [], (scheme, view)
    assert pictures[0] != pictures[1]


def test_a_telephone_is_wide_enough(open_page: Callable[..., Seen], shown: Shown) -> None:
    (job,) = shown.failed("a" * 300)
    page = open_page(size=(360, 740), has_touch=True, is_mobile=True).page
    for view in ("", "jobs", f"job/{job}"):
        visit(page, shown, view)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
        assert page.evaluate("innerWidth") == 360, view
