"""What the observer answers by HTTP: its real processes, asked by httpx."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import select
import signal
import socket
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import cast

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from pysqlx_engine.workers import JobQueue
from pysqlx_engine.workers.observer import process
from pysqlx_engine.workers.observer.access import Access
from pysqlx_engine.workers.observer.watch import Watch
from pysqlx_engine.workers.observer.web import dashboard_app
from pysqlx_engine.workers.rundir import run_directory
from tests.servers import Database, free_port
from tests.workers.runs import Run, started

from .waiting import eventually

SCRIPT = """
import time
from pysqlx_engine import PySQLXEnginePoolSync

with PySQLXEnginePoolSync(name="p") as pool:
    print("up", flush=True)
    try:
        time.sleep(1000)
    except KeyboardInterrupt:
        pass
"""
TOKEN = r"""c2VjcmV0==;"%41'+/!@\,"""
SIGNS = "".join(map(chr, range(ord("!"), ord("~") + 1)))
NO_NUMBERS = [f"/api/jobs/{number}" for number in ("0", "x", "1e3", 2**63, "9" * 5000)]
NO_NUMBERS += [f"/api/jobs?before={number}" for number in ("-1", "9" * 5000)]
TAKES_ALL = SCRIPT.replace(
    '    print("up"', '    taken = [pool.connection().__enter__() for _ in range(2)]\n    print("up"'
)


@contextmanager
def serving(
    directory: Path, database: Database, *options: str, text: str = SCRIPT, **environment: str
) -> Iterator[tuple[Run, httpx.Client]]:
    """A run with a page, and somebody who asks it."""
    (directory / "script.py").write_text(text)
    port = free_port()
    arguments = ("-w", "2", "--name", "shop", "--dashboard", f"127.0.0.1:{port}", *options, "script.py")
    with started(directory, *arguments, PYSQLX_URI=database.uri, **environment) as run:
        run.line_with("up")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
            yield run, client
        run.send(signal.SIGQUIT)
        run.wait()


def test_health_and_headers_and_what_makes_no_sense(tmp_path: Path, sqlite_db: Database) -> None:
    queue = JobQueue(sqlite_db.uri)

    @queue.task
    def note(text: str) -> None: ...

    ids = [note.options(queue="a/b").enqueue_sync(text=str(number)) for number in range(3)]
    with serving(tmp_path, sqlite_db) as (_, client):
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/healthz").text == "ok\n"
        page = client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        for answer in (page, client.get("/static/app.js"), client.get("/api/status"), client.get("/nothing")):
            assert "default-src 'self'" in answer.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
        for path in ("/", "/api/status", "/api/jobs", "/metrics", "/static/app.js"):
            assert client.get(path, headers={"Host": "evil.example"}).status_code == 403, path
        assert client.get("/static/../web.py").status_code == 404

        for path in NO_NUMBERS:
            assert client.get(path).status_code == 400, path
        assert client.get("/api/jobs?state=lost").json() == {
            "error": "state 'lost': there are scheduled, available, running, retrying, completed, discarded, cancelled"
        }
        assert client.get("/api/history?after=now").status_code == 400
        assert client.get("/api/jobs?database=another").json() == {"error": "no job queue in another"}
        assert client.get("/api/jobs/4711").status_code == 404
        assert client.post("/api/jobs/4711/retry").json() == {"done": 0, "asked": 0, "reason": "does not exist"}
        assert client.post("/api/queues/%00/pause").status_code == 400
        for path in (f"/api/jobs/{ids[0]}/retry", "/api/queues/mail/pause"):
            assert client.get(path).status_code == 405, path
            for origin in ("http://evil.example", "http://[", "null"):
                assert client.post(path, headers={"Origin": origin}).status_code == 403, path

        assert [job["id"] for job in client.get("/api/jobs").json()["jobs"]] == ids[::-1]
        assert client.get(f"/api/jobs?before={ids[1]}").json() == {
            "jobs": [job for job in client.get("/api/jobs").json()["jobs"] if job["id"] == ids[0]], "before": None
        }  # fmt: skip
        one = client.get(f"/api/jobs/{ids[0]}").json()
        assert (one["queue"], one["args"], one["may"]) == ("a/b", '{"text":"0"}', ["cancel"])
        assert client.post(f"/api/jobs/{ids[0]}/cancel").json() == {"done": 1, "asked": 0, "reason": None}
        assert client.get(f"/api/jobs/{ids[0]}").json()["may"] == ["retry"]
        assert client.post(f"/api/jobs/{ids[0]}/retry").json()["done"] == 1
        assert client.post("/api/queues/a%2Fb/pause").json() == {"queue": "a/b", "paused": True}
        eventually(lambda: [one["name"] for one in client.get("/api/status").json()["jobs"][0]["paused"]] == ["a/b"])
        assert client.post("/api/queues/a%2Fb/resume").json() == {"queue": "a/b", "paused": False}


def test_a_token_is_needed_where_there_is_one(tmp_path: Path, sqlite_db: Database) -> None:
    with serving(tmp_path, sqlite_db, PYSQLX_DASHBOARD_TOKEN=TOKEN) as (_, client):
        for path in ("/", "/static/app.js", "/api/status", "/metrics"):
            assert client.get(path).status_code == 401, path
            assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401, path
        assert client.post("/api/queues/mail/pause").status_code == 401
        for host in ("x/healthz?", "x/healthz#", "localhost/readyz?"):  # a Host is no path
            assert client.get("/api/status", headers={"Host": host}).status_code == 401, host
        for path in ("/healthz", "/readyz"):
            assert client.get(path).status_code in {200, 503}, "a probe has none"
        assert client.get("/api/status", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200

        answer = client.get("/?token=wrong")
        assert answer.status_code == 401
        assert not client.cookies
        answer = client.get("/", params={"token": TOKEN})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert client.get("/").status_code == 200
        assert client.get("/api/status").json()["run"] == "shop"


@pytest.mark.parametrize("host", ["localhost:8787", "shop.example", "[fd00::5]", "[fd00::5]:8787", "a;b=c"])
async def test_a_token_of_any_signs_is_known_by_its_cookie_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    app = dashboard_app(Watch(run_directory("shop")), Access("::", SIGNS))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop", headers={"Host": host}) as client:
        assert (await client.get("/", params={"token": SIGNS})).status_code == 303
        assert (await client.get("/")).status_code == 200
        client.cookies.clear()
        assert (await client.get("/")).status_code == 401


async def test_why_it_is_not_well_is_for_who_may_see_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    watch = Watch(run_directory("shop"))
    async with watch.watching():
        await watch.looked(1)
    for rule, host, headers, why in (
        (Access("127.0.0.1", None), "localhost", {}, True),
        (Access("127.0.0.1", None), "10.0.0.1", {}, False),
        (Access("0.0.0.0", SIGNS), "shop.example", {}, False),
        (Access("0.0.0.0", SIGNS), "shop.example", {"Authorization": f"Bearer {SIGNS}"}, True),
    ):
        transport = httpx.ASGITransport(dashboard_app(watch, rule))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers) as client:
            for path in ("/healthz", "/readyz"):
                answer = await client.get(path)
                assert answer.status_code == 503
                assert ("the run shop does not answer" in answer.text) is why
                assert why or answer.text == "no\n"


def test_without_job_tables_the_reason_is_said(tmp_path: Path, postgresql_db: Database) -> None:
    with serving(tmp_path, postgresql_db) as (_, client):
        for answer in (client.get("/api/jobs"), client.get("/api/jobs/1"), client.post("/api/queues/mail/pause")):
            assert answer.status_code == 503
            assert "pysqlx-ctl jobs migrate" in answer.json()["error"]
        assert "migrate" in client.get("/api/status").json()["jobs"][0]["error"]


@pytest.mark.thorough
def test_where_the_budget_is_used_up_the_reason_is_said(tmp_path: Path, sqlite_db: Database) -> None:
    Path(sqlite_db.uri.removeprefix("sqlite:")).touch()
    text = TAKES_ALL.replace('name="p"', 'name="p", min_size=0')
    with serving(tmp_path, sqlite_db, "-w", "1", "--coordinator", "--max-size", "2", text=text) as (_, client):
        answer = client.get("/api/jobs")
        assert answer.status_code == 503
        assert "budget 2/2 leased" in answer.json()["error"]


@pytest.mark.thorough
def test_who_asks_for_nothing_keeps_nobody_from_an_answer(tmp_path: Path, sqlite_db: Database) -> None:
    with serving(tmp_path, sqlite_db) as (_, client), contextlib.ExitStack() as connections:
        eventually(lambda: client.get("/readyz").status_code == 200)

        def connected() -> socket.socket:
            where = client.base_url.host, client.base_url.port or 80
            return connections.enter_context(socket.create_connection(where))

        def begins_a_second_request() -> socket.socket:
            one = connected()
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"ok\n"):
                answer += one.recv(4096)
            one.sendall(b"G")
            return one

        oldest = [begins_a_second_request() for _ in range(30)]
        silent = [connected() for _ in range(process.MOST_CONNECTIONS)]
        assert httpx.get(client.base_url.join("/healthz"), timeout=20, trust_env=False).status_code == 200
        eventually(lambda: len(ended(oldest)) == len(oldest))  # because there are too many
        assert len(ended(silent)) <= 2
        newest = begins_a_second_request()
        eventually(lambda: len(ended([*silent, newest])) == len(silent) + 1)  # because no request comes


async def test_who_asks_for_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "REQUEST_WITHIN", 0.2)
    async with listening() as (port, connections):
        request = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for said in (b"", b"G", request, request + b"G"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            answer = await reader.read()
            assert answer.endswith(b"\r\nok\r\n0\r\n\r\n") == (b"/slow" in said)
            writer.close()
        assert not connections


async def test_who_reads_no_answer_keeps_nobody_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MOST_CONNECTIONS", 3)
    async with listening() as (port, connections):
        deaf = [await asking(port, "/large") for _ in range(3)]
        while not (len(connections) == 3 and all(one.flow.write_paused for one in connections)):
            await asyncio.sleep(0.01)
        reader, _ = newcomer = await asking(port, "/slow")
        assert (await reader.read()).endswith(b"\r\nok\r\n0\r\n\r\n")
        for _, writer in [*deaf, newcomer]:
            writer.close()


async def test_who_reads_no_answer_is_sent_away_and_who_reads_slowly_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "REQUEST_WITHIN", 0.1)
    monkeypatch.setattr(process, "READ_WITHIN", 0.3)
    async with listening() as (port, connections):
        began = time.monotonic()
        _, deaf = await asking(port, "/late")  # at first it is being answered
        reader, writer = await asking(port, "/large")
        read = 0
        while data := await reader.read(1_000_000):
            read += len(data)
            await asyncio.sleep(0.05)
        assert read > 20_000_000
        assert time.monotonic() > began + 1
        while connections:
            await asyncio.sleep(0.01)
        deaf.close()
        writer.close()


async def test_who_leaves_in_the_midst_of_an_answer_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "REQUEST_WITHIN", 0.01)
    async with listening() as (port, connections):
        reader, writer = await asking(port, "/slow")
        await reader.read(1)
        [there] = connections
        gone = weakref.ref(there)
        del there
        writer.close()
        while gone() is not None:
            await asyncio.sleep(0.01)
            gc.collect()


async def asking(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The reader's buffer takes a megabyte; of a larger answer the rest stays in the server's."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=500_000)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    return reader, writer


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[int, set[process._Protocol]]]:
    """The port of a server as the observer has it, and its connections."""

    async def megabytes(after: float = 0.0) -> AsyncIterator[bytes]:
        await asyncio.sleep(after)
        for _ in range(20):
            yield bytes(1_000_000)

    async def half_a_second() -> AsyncIterator[bytes]:
        for _ in range(10):
            await asyncio.sleep(0.05)
            yield b"."
        yield b"ok"

    routes = [
        Route("/large", lambda _: StreamingResponse(megabytes())),
        Route("/late", lambda _: StreamingResponse(megabytes(0.5))),
        Route("/slow", lambda _: StreamingResponse(half_a_second())),
    ]
    server = process._Server(process._config(Starlette(routes=routes)))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        yield bound.getsockname()[1], cast("set[process._Protocol]", server.server_state.connections)
        server.should_exit = True
        await serving


def ended(connections: list[socket.socket]) -> list[socket.socket]:
    """Those that the other end has closed."""
    poll = select.poll()
    for one in connections:
        poll.register(one, select.POLLIN)
    closed = {descriptor for descriptor, _ in poll.poll(0)}
    return [one for one in connections if one.fileno() in closed]
