"""Both ends of the wire for tests: strangers who talk to a real coordinator, and a coordinator for a real link.
What they send is what the test says, byte for byte.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq

from pysqlx_engine.system import host_identity, start_time
from pysqlx_engine.workers.control import ask
from pysqlx_engine.workers.messages import (
    VERSION,
    Attach,
    Attached,
    CoordinatorPacket,
    FromCoordinator,
    FromPool,
    FromProcess,
    Granted,
    Hello,
    Lost,
    PoolClaim,
    ProcessPacket,
    Report,
    ToPool,
    Welcome,
    decode_from_coordinator,
    decode_from_process,
    encode,
)

from .runs import run_environment

TIMEOUT = 20.0
COORDINATOR = """
import multiprocessing, sys
from pysqlx_engine.workers.coordinator import CoordinatorConfig, main

size = int(sys.argv[2]) or None
main(CoordinatorConfig(directory=sys.argv[1], max_size=size, name="alone", supervised=True))
"""
# Holds two leases. For each line that it is told, a new pool joins, is granted a lease, and leaves.
HONEST = """
import sys, time
from pysqlx_engine import PySQLXEnginePoolSync
from pysqlx_engine.workers import link

record, encode = open(sys.argv[2], "w"), link.encode

def recorded(message):
    data = encode(message)
    print(data.hex(), file=record, flush=True)
    return data

link.encode = recorded
with PySQLXEnginePoolSync(uri=sys.argv[1], min_size=1) as pool, pool.connection() as a, pool.connection() as b:
    print("joined", flush=True)
    for line in sys.stdin:
        begun = time.monotonic()
        with PySQLXEnginePoolSync(uri=sys.argv[1], min_size=1, conn_timeout=15) as another:
            with another.connection() as conn:
                assert conn.query_first("SELECT 1 AS a").a == 1
        assert a.query_first("SELECT 1 AS a").a == b.query_first("SELECT 1 AS a").a == 1
        print(time.monotonic() - begun, flush=True)
"""
Kind = TypeVar("Kind", bound=ToPool | FromPool)


class Site:
    """A real coordinator, alone in a process, and an honest process that has joined it."""

    def __init__(self, directory: Path, coordinator: subprocess.Popen[str]) -> None:
        self.directory, self.coordinator = directory, coordinator
        self.honest: subprocess.Popen[str]
        self.database = ""
        self.before: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return f"ipc://{self.directory}/coordinator.sock"

    @property
    def name(self) -> str:
        """The honest process's, on the wire."""
        lines = [msgspec.json.decode(line) for line in (self.directory / "journal").read_bytes().splitlines()]
        return next(line[1] for line in lines if line[0] == "joined" and line[5]["pid"] == self.honest.pid)

    def recorded(self) -> list[bytes]:
        """Everything that the honest process has said."""
        return [bytes.fromhex(line) for line in (self.directory / "said").read_text().splitlines()]

    def log(self) -> list[str]:
        """What the coordinator printed."""
        return (self.directory / "log").read_text().split("\n")[:-1]

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.coordinator.pid}/fd"))

    def status(self) -> dict[str, Any]:
        return ask(self.directory / "control.sock", {"op": "status"}, TIMEOUT)

    def of_honest(self) -> dict[str, Any]:
        """What the status says of the honest process."""
        (worker,) = [one for one in self.status()["workers"] if one["pid"] == self.honest.pid]
        return {key: value for key, value in worker.items() if key != "uptime"}

    def serve(self) -> float:
        """Have the honest process be granted one more lease. Gives the seconds that it took."""
        assert self.honest.stdin is not None
        assert self.honest.stdout is not None
        self.honest.stdin.write("\n")
        self.honest.stdin.flush()
        return float(self.honest.stdout.readline() or "nan")

    def is_well(self) -> bool:
        """Whether the coordinator lives, and nothing has changed for the honest process."""
        assert self.coordinator.poll() is None, "\n".join(self.log())
        assert self.serve() < 5
        assert self.of_honest() == self.before
        return True


@contextmanager
def site(directory: Path, uri: str, size: int) -> Iterator[Site]:
    """`size`: the operator's budget, 0 for none."""
    environment = run_environment(directory, {"PYSQLX_COORDINATOR": f"ipc://{directory}/coordinator.sock"})
    pipe = subprocess.PIPE
    with (directory / "log").open("w") as log:
        coordinator = subprocess.Popen(
            [sys.executable, "-c", COORDINATOR, str(directory), str(size)], stderr=log, env=environment, text=True
        )
    try:
        found = Site(directory, coordinator)
        command = [sys.executable, "-c", HONEST, uri, str(directory / "said")]
        with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as found.honest:
            try:
                assert found.honest.stdout is not None
                assert found.honest.stdout.readline() == "joined\n"
                found.serve()
                found.before = found.of_honest()
                (found.database,) = {pool["database"] for pool in found.before["pools"]}
                yield found
            finally:
                found.honest.kill()
    finally:
        coordinator.terminate()
        assert coordinator.wait(TIMEOUT) == 0


class Stranger:
    """A socket that says to a coordinator whatever it is told to say."""

    def __init__(self, address: str, name: str, *, identity: bytes = b"", **hello: Any) -> None:
        self.name = name
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        if identity:
            self.socket.setsockopt(zmq.ROUTING_ID, identity)
        self.socket.setsockopt(zmq.LINGER, 2000)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(address)
        self.session = self.number = self.epoch = 0
        self._coordinators_epoch = 0
        self._hello = hello
        self.heard: list[FromCoordinator] = []

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self._context.term()

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def say(self, *messages: FromPool) -> None:
        """The next packet of the session."""
        self.number += 1
        self.send(encode(ProcessPacket(self.epoch, self.session, self.number, list(messages))))

    def receive(self, timeout: float = TIMEOUT) -> FromCoordinator | None:
        """The next message, None when none comes within `timeout` seconds."""
        if not self.socket.poll(timeout * 1000):
            return None
        self.heard.append(decode_from_coordinator(self.socket.recv()))
        return self.heard[-1]

    def answer(self, message: FromProcess) -> FromCoordinator | None:
        self.send(encode(message))
        return self.receive()

    def hello(self, *pools: PoolClaim, **changes: Any) -> Hello:
        """The next hello of this very process, which has asked for the coordinator's epoch before."""
        deadline = time.monotonic() + TIMEOUT
        while not self._coordinators_epoch:
            self.send(encode(self.make_hello()))
            answer = self.receive(0.5)
            if isinstance(answer, Lost):
                self._coordinators_epoch = answer.epoch
            assert time.monotonic() < deadline, "no epoch was told"
        return self.make_hello(*pools, **changes)

    def make_hello(self, *pools: PoolClaim, **changes: Any) -> Hello:
        """A hello with the epoch that we know, perhaps none."""
        self.session, self.number = self.session + 1, 0
        pid = os.getpid()
        own: dict[str, Any] = {
            "version": VERSION, "session": self.session, "name": self.name, "pid": pid, "started": start_time(pid),
            "host": host_identity(), "worker": None, "restarts": 0, "pools": list(pools),
            "epoch": self._coordinators_epoch,
        }  # fmt: skip
        return Hello(**(own | self._hello | changes))

    def join(self, *pools: PoolClaim, **changes: Any) -> Welcome:
        """Say hello until it is answered, which it is after all that was said before. A coordinator that was told too
        much does not hear us for a while."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            hello = self.hello(*pools, **changes)
            self.send(encode(hello))
            again_at = time.monotonic() + 0.5
            while answer := self.receive(max(0.0, again_at - time.monotonic())):
                if isinstance(answer, Welcome) and answer.session == self.session:
                    self.epoch = answer.epoch
                    return answer
        raise AssertionError("not welcomed")

    def told(self, kind: type[Kind], unless: type[FromCoordinator] | None = None) -> Kind | None:
        """The next message of this kind to one of our pools; None when there is an answer of the kind `unless`."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            packet = self.receive()
            if unless is not None and isinstance(packet, unless):
                return None
            for message in packet.messages if isinstance(packet, CoordinatorPacket) else []:
                if isinstance(message, kind):
                    return message
        raise AssertionError(f"no {kind.__name__} came")


class FakeCoordinator:
    """Says to the link of a real process whatever it is told to say. One process may come."""

    EPOCH = 7

    def __init__(self, directory: Path) -> None:
        self.address = f"ipc://{directory}/fake.sock"
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(self.address)
        self.peer = b""
        self.session = self.number = 0
        self.hellos: list[Hello] = []
        self.heard: list[FromPool] = []

    def __enter__(self) -> FakeCoordinator:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self._context.term()

    def receive(self, timeout: float = TIMEOUT) -> FromProcess | None:
        if not self.socket.poll(timeout * 1000):
            return None
        self.peer, data = self.socket.recv_multipart()
        message = decode_from_process(data)
        if isinstance(message, Hello):
            self.session, self.number = message.session, 0
            self.hellos.append(message)
        else:
            self.heard += message.messages
        return message

    def greeted(self) -> Hello:
        """The next hello."""
        while not isinstance(message := self.receive(), Hello):
            assert message is not None, "no Hello came"
        return message

    def welcome(self, term: float | None = None) -> None:
        self.send(encode(Welcome(self.EPOCH, self.session, term)))

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart([self.peer, *frames])

    def packet(self, *messages: ToPool, **changes: int) -> bytes:
        """The next packet of the session."""
        self.number += 1
        fields = {"epoch": self.EPOCH, "session": self.session, "number": self.number, "heard": 0} | changes
        return encode(CoordinatorPacket(messages=list(messages), **fields))

    def say(self, *messages: ToPool) -> None:
        self.send(self.packet(*messages))

    def told(self, kind: type[Kind]) -> Kind:
        """The next message of this kind from the pool."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            packet = self.receive()
            for message in packet.messages if isinstance(packet, ProcessPacket) else []:
                if isinstance(message, kind):
                    return message
        raise AssertionError(f"no {kind.__name__} came")

    def take_in(self, lease: int, term: float | None = None) -> int:
        """Welcome a process, attach its pool and grant a lease. Gives the pool's number."""
        pools = self.greeted().pools
        self.welcome(term)
        (claim,) = pools or [self.told(Attach).claim]
        self.say(Attached(claim.pool, 5))
        while not self.told(Report).demand.want:
            pass
        self.say(Granted(claim.pool, [lease], 1))
        return claim.pool
