"""Keys: the files that `pysqlx-ctl keygen` writes, where a coordinator may listen, and who is let in."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from pysqlx_engine import PySQLXEnginePool
from pysqlx_engine.errors import PoolTimeoutError, SettingsError
from pysqlx_engine.workers import ctl
from pysqlx_engine.workers.control import ask
from pysqlx_engine.workers.endpoints import joining, listening
from pysqlx_engine.workers.keys import client_keys, coordinator_keys, write_keys
from pysqlx_engine.workers.messages import VERSION, Hello, encode
from tests.servers import free_port

from .runs import finished, run_environment, started

COORDINATOR = """
import sys
from pysqlx_engine.workers.coordinator import CoordinatorConfig, main

main(CoordinatorConfig(sys.argv[1], 4, "alone", bind=sys.argv[2], curve_keys=sys.argv[3] or None, term=2.0))
"""


@contextmanager
def coordinator(directory: Path, keys: str) -> Iterator[str]:
    """A coordinator that listens on loopback, with the keys of a file or none; gives its tcp address."""
    address = f"tcp://127.0.0.1:{free_port()}"
    with subprocess.Popen([sys.executable, "-c", COORDINATOR, str(directory), address, keys]) as process:
        try:
            yield address
        finally:
            process.terminate()
            assert process.wait(10) == 0


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    """The paths of a coordinator's and a client's keys."""
    coordinators, clients = write_keys(tmp_path / "keys")
    return str(coordinators), str(clients)


# -- the files --------------------------------------------------------------------------------------------------------


def test_keygen_writes_two_private_files_and_says_what_each_is_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = os.umask(0)
    try:
        assert ctl.main(["keygen", str(tmp_path / "new")]) == 0
    finally:
        os.umask(old)
    coordinators, clients = tmp_path / "new/coordinator.keys", tmp_path / "new/client.keys"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (coordinators, clients)] == [0o600, 0o600]
    said = capsys.readouterr().out
    assert f"PYSQLX_CURVE_KEYS={coordinators} pysqlx-run --bind" in said
    assert "PYSQLX_CURVE_KEYS=client.keys PYSQLX_COORDINATOR=tcp://" in said
    ours, theirs = coordinator_keys(str(coordinators)), client_keys(str(clients))
    assert theirs.coordinator == ours.public
    assert ours.clients == {theirs.public}
    assert zmq.curve_public(ours.secret) == ours.public
    assert zmq.curve_public(theirs.secret) == theirs.public
    for secret in (ours.secret.decode(), theirs.secret.decode()):
        assert secret not in said + repr(ours) + repr(theirs)
    assert theirs.secret not in coordinators.read_bytes()
    assert ours.secret not in clients.read_bytes()


@pytest.mark.parametrize("there", ["coordinator.keys", "client.keys"])
def test_keygen_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], there: str) -> None:
    (tmp_path / there).write_text("old")
    assert ctl.main(["keygen", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"pysqlx-ctl: {tmp_path / there} is there already: ")
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "old"


def test_keys_that_others_can_read_are_refused(keys: tuple[str, str]) -> None:
    os.chmod(keys[1], 0o640)
    with pytest.raises(
        SettingsError, match=r"^PYSQLX_CURVE_KEYS=.*: others may read the file \(mode 0640, wanted 0600"
    ):
        client_keys(keys[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_keys_of_somebody_else_are_refused(keys: tuple[str, str]) -> None:
    os.chown(keys[1], 65534, -1)
    with pytest.raises(SettingsError, match=r"the file belongs to user 65534, not to 0"):
        client_keys(keys[1])


def test_a_file_that_holds_no_keys_is_named_and_not_quoted(tmp_path: Path, keys: tuple[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"needs the file client\.keys"):
        client_keys(keys[0])
    with pytest.raises(SettingsError, match=r"needs the file coordinator\.keys"):
        coordinator_keys(keys[1])
    with pytest.raises(SettingsError, match=r"nowhere: cannot read the keys: No such file"):
        client_keys(str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match="no regular file"):
        client_keys("/dev/null")
    secret = client_keys(keys[1]).secret.decode()
    Path(keys[1]).write_text(f"client-secret {secret}x\n")
    with pytest.raises(SettingsError, match="line 1: no key; a line is one of") as caught:
        client_keys(keys[1])
    assert secret not in str(caught.value)


# -- where one may listen, and join -----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "192.0.2.1", "[::]", "[2001:db8::1]", "lo"])
def test_without_keys_no_coordinator_listens_beyond_loopback(host: str, keys: tuple[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"reached from other hosts.* pysqlx-ctl keygen .* PYSQLX_CURVE_KEYS"):
        listening(f"tcp://{host}:5000", None)
    assert listening(f"tcp://{host}:5000", keys[0]).endpoint == f"tcp://{host}:5000"


def test_a_name_counts_as_what_it_stands_for_and_that_is_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"one.example": ["127.0.0.1"], "two.example": ["127.0.0.1", "192.0.2.7"]}

    def look_up(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if host not in where:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in where[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert listening("tcp://one.example:5000", None).endpoint == "tcp://127.0.0.1:5000"
    assert joining("tcp://one.example:5000", None).endpoint == "tcp://127.0.0.1:5000"
    with pytest.raises(SettingsError, match=r"^two\.example is 192\.0\.2\.7, which may be reached from other hosts"):
        listening("tcp://two.example:5000", None)
    with pytest.raises(SettingsError, match="no address, no name of one and no interface"):
        listening("tcp://unknown.example:5000", None)
    for name in ("two.example", "unknown.example"):
        with pytest.raises(SettingsError, match=r"is not loopback, .* make keys with pysqlx-ctl keygen"):
            joining(f"tcp://{name}:5000", None)


async def test_without_keys_a_process_joins_nobody_on_another_host(
    sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYSQLX_COORDINATOR", "tcp://192.0.2.1:5000")
    with pytest.raises(SettingsError, match=r"^PYSQLX_COORDINATOR=tcp://192\.0\.2\.1:5000 is not loopback"):
        await PySQLXEnginePool(sqlite_uri, min_size=1).start()


def test_a_run_that_would_listen_or_join_without_keys_is_refused_before_it_starts(
    tmp_path: Path, keys: tuple[str, str]
) -> None:
    (tmp_path / "script.py").write_text("print('started')")
    status, output, errors = finished(tmp_path, "--bind", "tcp://0.0.0.0:5000", "script.py")
    assert (status, output) == (2, [])
    assert re.match(r"pysqlx-run: tcp://0\.0\.0\.0:5000 would|pysqlx-run: tcp://0\.0\.0\.0:5000 may", errors[0])
    status, output, errors = finished(tmp_path, "script.py", PYSQLX_COORDINATOR="tcp://192.0.2.1:5000")
    assert (status, output) == (2, [])
    assert "keygen" in errors[0]
    os.chmod(keys[0], 0o644)
    status, output, errors = finished(tmp_path, "--bind", "tcp://0.0.0.0:5000", "--curve-keys", keys[0], "script.py")
    assert (status, output) == (2, [])
    assert "mode 0644, wanted 0600" in errors[0]
    assert finished(tmp_path, "--term", "1", "script.py")[2][0].startswith("pysqlx-run: --term 1 is not allowed")


def test_a_port_that_somebody_has_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("print('started')")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        status, output, errors = finished(tmp_path, "--bind", address, "script.py")
    assert (status, output) == (3, [])
    assert any(f"cannot listen on {address}: Address already in use" in line for line in errors)


# -- who is let in ----------------------------------------------------------------------------------------------------


def members(directory: Path) -> list[int]:
    """The pids of the coordinator's members."""
    return [worker["pid"] for worker in ask(directory / "control.sock", {"op": "status"})["workers"]]


async def start_of(uri: str, monkeypatch: pytest.MonkeyPatch, address: str, keys: str) -> PySQLXEnginePool:
    monkeypatch.setenv("PYSQLX_COORDINATOR", address)
    monkeypatch.setenv("PYSQLX_CURVE_KEYS", keys)
    pool = PySQLXEnginePool(uri, min_size=1, conn_timeout=3.0)
    await pool.start()
    return pool


async def test_who_has_other_keys_or_none_never_joins_and_is_told_why(
    postgresql_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: tuple[str, str]
) -> None:
    _, others = write_keys(tmp_path / "others")
    ours, theirs = Path(keys[1]).read_text(), others.read_text()
    unknown = tmp_path / "unknown.keys"  # the right coordinator, and a client that it does not know
    unknown.touch(0o600)
    right = re.search("coordinator-public .*", ours)
    assert right
    unknown.write_text(re.sub("coordinator-public .*", lambda _: right[0], theirs))
    with coordinator(tmp_path, keys[0]) as address:
        with pytest.raises(PoolTimeoutError, match=rf"the coordinator at {address} refused this process's keys: it kn"):
            await start_of(postgresql_uri, monkeypatch, address, str(unknown))
        with pytest.raises(PoolTimeoutError, match=r"did not answer to this process's keys: has it others than"):
            await start_of(postgresql_uri, monkeypatch, address, str(others))
        with pytest.raises(
            PoolTimeoutError, match=r"refused this process, which has no keys: name them in PYSQLX_CURV"
        ):
            await start_of(postgresql_uri, monkeypatch, address, "")
        assert members(tmp_path) == []


async def test_a_coordinator_without_keys_is_not_joined_by_who_expects_some(
    postgresql_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: tuple[str, str]
) -> None:
    with coordinator(tmp_path, "") as address:
        with pytest.raises(
            PoolTimeoutError, match=r"does not use keys|did not answer to this process's keys: has it others .* or none"
        ):
            await start_of(postgresql_uri, monkeypatch, address, keys[1])
        assert members(tmp_path) == []


def test_who_has_no_keys_learns_nothing(tmp_path: Path, keys: tuple[str, str]) -> None:
    # Neither a welcome nor why there is none: what speaks is ZeroMQ, which says that it wants CURVE.
    hello = encode(Hello(VERSION + 1, 1, "name", os.getpid(), 0, "", None, 0, []))
    with coordinator(tmp_path, keys[0]) as address, zmq.Context() as context:
        for mechanism in ("none", "other keys"):
            with context.socket(zmq.DEALER) as peer:
                peer.setsockopt(zmq.LINGER, 0)
                if mechanism == "other keys":
                    public, secret = zmq.curve_keypair()
                    peer.setsockopt(zmq.CURVE_SERVERKEY, coordinator_keys(keys[0]).public)
                    peer.setsockopt(zmq.CURVE_PUBLICKEY, public)
                    peer.setsockopt(zmq.CURVE_SECRETKEY, secret)
                with peer.get_monitor_socket(
                    zmq.Event.HANDSHAKE_FAILED_AUTH | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
                ) as m:
                    peer.connect(address)
                    peer.send(hello)
                    assert m.poll(10_000), "the handshake did not fail"
                    assert not peer.poll(0)
                    peer.disable_monitor()
        host, port = address.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            said = b""
            try:
                while data := plain.recv(4096):
                    said += data
            except ConnectionResetError:
                pass
            assert b"pysqlx" not in said
            assert b"alone" not in said
            assert len(said) <= 64, said  # a greeting of ZMTP


@pytest.mark.parametrize("with_keys", [True, False], ids=["keys", "no keys"])
async def test_a_process_of_this_host_that_comes_by_tcp_is_one_whose_death_the_kernel_tells(
    postgresql_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: tuple[str, str], with_keys: bool
) -> None:
    script = "import sys; from tests.workers.test_keys import hold; hold(*sys.argv[1:])"
    with coordinator(tmp_path, keys[0] if with_keys else "") as address:
        environment = run_environment(
            tmp_path, {"PYSQLX_COORDINATOR": address, "PYSQLX_CURVE_KEYS": keys[1] if with_keys else ""}
        )
        with subprocess.Popen(
            [sys.executable, "-c", script, postgresql_uri], env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            assert members(tmp_path) == [process.pid]
            pool = await start_of(postgresql_uri, monkeypatch, address, keys[1] if with_keys else "")
            budget = ask(tmp_path / "control.sock", {"op": "status"})["budgets"][0]
            assert budget["reserved"] == 0  # nobody of another host
            process.kill()
            process.wait()
            # All four are had at once: without a term to wait for.
            async with pool.connection(), pool.connection(), pool.connection(), pool.connection():
                assert members(tmp_path) == [os.getpid()]
            await pool.stop()


def hold(uri: str) -> None:
    """Have two connections until killed."""
    import threading

    from pysqlx_engine import PySQLXEnginePoolSync

    pool = PySQLXEnginePoolSync(uri, min_size=2, max_size=4)
    pool.start()
    with pool.connection(), pool.connection():
        print("started", flush=True)
        threading.Event().wait()


def test_a_run_that_listens_has_its_workers_by_its_socket_and_others_by_tcp(
    tmp_path: Path, postgresql_uri: str, keys: tuple[str, str]
) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    (tmp_path / "script.py").write_text(
        "import os, sys\nfrom tests.workers.test_keys import hold\n"
        "print(os.environ['PYSQLX_COORDINATOR'][:6], flush=True)\nhold(sys.argv[1])\n"
    )
    root = str(Path(__file__).parents[2])
    options = ("--bind", address, "--curve-keys", keys[0], "--name", "here", "--term", "2", "--max-size", "4")
    with started(tmp_path, *options, "script.py", postgresql_uri, PYTHONPATH=root) as here:
        here.line_with("ipc://")
        here.line_with("started")
        there = {"PYSQLX_COORDINATOR": address, "PYTHONPATH": root}
        with started(tmp_path, "--curve-keys", keys[1], "script.py", postgresql_uri, **there) as other:
            other.line_with("tcp://")
            other.line_with("started")
            assert len(members(tmp_path / "pysqlx/here")) == 2
            other.process.terminate()
            assert other.wait() == 0
        here.process.terminate()
        assert here.wait() == 0
