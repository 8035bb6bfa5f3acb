"""The server-side end of a connection: whose socket it is, when the server is done with it, and whom it is left to."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import psycopg
import pytest

from pysqlx_engine import PySQLXEngine
from pysqlx_engine.engine import sockets
from pysqlx_engine.engine.session import ServerSession, open_session
from pysqlx_engine.engine.uri import parse_uri
from pysqlx_engine.errors import ConnectError

from ..servers import PostgresServer


def ignore(error: ConnectError) -> None:
    """Nobody wants to know that a login was given up."""


async def opened(uri: str) -> tuple[PySQLXEngine, ServerSession]:
    engine = PySQLXEngine(uri)
    return engine, await open_session(engine, parse_uri(uri), ignore)


async def ended(engine: PySQLXEngine, session: ServerSession, *, busy: bool = False) -> bool:
    await engine.close()
    return await session.closed_by_server(busy=busy)


def unix_uri(postgres: PostgresServer) -> str:
    return postgres.uri(host=str(postgres.directory))


@pytest.fixture
def default_timeout() -> Iterator[None]:
    socket.setdefaulttimeout(10)
    yield
    socket.setdefaulttimeout(None)


@pytest.mark.usefixtures("default_timeout")
@pytest.mark.parametrize("transport", ["tcp", "unix"])
async def test_other_sockets_of_the_process_stay_blocking(postgres: PostgresServer, transport: str) -> None:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(True)
    made: list[socket.socket] = []

    class Meanwhile(PySQLXEngine):
        async def _connect_uri(self, uri: object) -> None:  # another thread's socket that comes in mid-connect
            await super()._connect_uri(uri)  # type: ignore[arg-type]
            made.extend(socket.socketpair())
            for end in made:
                end.setblocking(True)

    uri = postgres.uri() if transport == "tcp" else unix_uri(postgres)
    engine = Meanwhile(uri)
    session = await open_session(engine, parse_uri(uri), ignore)
    assert all(os.get_blocking(end.fileno()) for end in (ours, theirs, *made))
    assert await ended(engine, session) is True
    for end in (ours, theirs, *made):
        end.close()


async def test_a_close_over_a_unix_socket_is_confirmed(postgres: PostgresServer) -> None:
    assert await ended(*await opened(unix_uri(postgres))) is True


PROXY = """
import socket, sys, threading
inside = socket.create_server(("127.0.0.1", 0))
print(inside.getsockname()[1], flush=True)
client, _ = inside.accept()
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", int(sys.argv[1])))
server.connect(("127.0.0.1", int(sys.argv[2])))
def pump(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)
threading.Thread(target=pump, args=(server, client)).start()
pump(client, server)
"""


async def test_behind_a_proxy_a_socket_with_the_same_port_is_not_taken_for_ours(postgres: PostgresServer) -> None:
    """The proxy's port is what the server sees, and here another socket of this process happens to have it too."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as other:
        other.bind(("127.0.0.2", 0))
        other.connect(listener.getsockname())
        peer, _ = listener.accept()
        ports = [str(other.getsockname()[1]), str(postgres.port)]
        with peer, subprocess.Popen([sys.executable, "-c", PROXY, *ports], stdout=subprocess.PIPE, text=True) as proxy:
            assert proxy.stdout is not None
            uri = postgres.uri().replace(f":{postgres.port}/", f":{int(proxy.stdout.readline())}/")
            engine, session = await opened(uri)
            assert session.address is None
            peer.sendall(b"for the other")
            assert await ended(engine, session) is False
            assert other.recv(100) == b"for the other"
            other.sendall(b"it still works")
            assert peer.recv(100) == b"it still works"


async def test_a_connection_that_was_there_before_is_not_taken_for_the_new_one(postgres: PostgresServer) -> None:
    """Through a proxy the server may see a port that another connection to the same proxy has."""
    engine, session = await opened(postgres.uri())
    assert session.address is not None
    address, port = session.address, int(session.address[0].rpartition(":")[2])

    class Older(PySQLXEngine):
        """Claims to be the first connection."""

        async def query_first_as_dict(self, *_: object) -> dict[str, object]:
            return {"server_id": 1, "port": port, "liveness": None}

    second = Older(postgres.uri())
    assert (await open_session(second, parse_uri(postgres.uri()), ignore)).address is None
    assert session.address == address
    await second.close()
    assert await ended(engine, session) is True


async def test_proc_lists_the_same_connections_as_the_kernel_answers(postgres: PostgresServer) -> None:
    """Where sock_diag is refused the list is all there is."""
    engine, session = await opened(postgres.uri())
    asked = [found for found in sockets.connections_to(postgres.port) if found.address == session.address]
    listed = [found for found in sockets._listed() if found.address == session.address]
    assert asked == listed != []
    await ended(engine, session)


async def test_a_login_that_the_driver_gave_up_is_waited_for() -> None:
    """The driver gives up after connect_timeout, and the server works on until its own end of the login."""
    with PostgresServer() as postgres, postgres.admin() as admin:  # what others left at another one is waited for, too
        admin.execute("CREATE ROLE slow LOGIN")
        admin.execute("CREATE DATABASE slow_login")
        with psycopg.connect(
            host="127.0.0.1", port=postgres.port, user="postgres", dbname="slow_login", autocommit=True
        ) as there:
            there.execute(
                "CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS "
                "$$ BEGIN IF session_user = 'slow' THEN PERFORM pg_sleep(2.5); END IF; END $$"
            )
            there.execute("CREATE EVENT TRIGGER slow ON login EXECUTE FUNCTION slow()")
            there.execute("ALTER EVENT TRIGGER slow ENABLE ALWAYS")
        uri = postgres.uri("slow_login", connect_timeout="1").replace("postgres@", "slow@")
        started = time.monotonic()
        with pytest.raises(ConnectError):
            await opened(uri)
        assert time.monotonic() - started > 2
        sessions = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = 'slow'").fetchone()
        assert sessions == (0,)


async def test_a_vanished_host_ends_the_wait_for_a_close(postgres: PostgresServer) -> None:
    """The kernel does that when it is told to; a host that vanishes is more than a test can arrange."""
    engine, session = await opened(postgres.uri())
    assert session._socket is not None
    with session._socket.dup() as same:
        query = asyncio.ensure_future(engine.query("SELECT pg_sleep(1)::text AS a"))
        while not engine._calls:
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(ended(engine, session, busy=True))
        while same.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) != 30_000:
            assert not closing.done()
            await asyncio.sleep(0)
        assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert await closing is True
        query.cancel()


async def test_a_session_that_is_closed_can_still_be_cut(postgres: PostgresServer) -> None:
    engine, session = await opened(postgres.uri())
    assert await ended(engine, session) is True
    session.cut()


def test_a_forked_child_leaves_the_parents_sessions_alone(postgres: PostgresServer) -> None:
    script = f"""
import asyncio, os
from pysqlx_engine import PySQLXEngine
from pysqlx_engine.engine.uri import parse_uri
from pysqlx_engine.engine.session import open_session

async def main():
    engine = PySQLXEngine({postgres.uri()!r})
    session = await open_session(engine, parse_uri(engine.uri), lambda error: None)
    duplicate = session._socket.fileno()
    child = os.fork()
    if not child:
        try:
            os.fstat(duplicate)
        except OSError:
            session.cut()
            try:
                session.closed_by_server(busy=True).send(None)
            except StopIteration as stop:
                os._exit(0 if stop.value is False else 2)
        os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(await engine.query_first_as_dict("SELECT 1 AS a"))
    await engine.close()
    print(await session.closed_by_server(busy=False))

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "0\n{'a': 1}\nTrue\n"
