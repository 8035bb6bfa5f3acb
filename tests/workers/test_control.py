"""The control socket: any question gets an answer, and no question ends who answers."""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from pysqlx_engine.workers.control import ControlServer, Json, Reply, ask


def echo(question: Json, reply: Reply) -> None:
    reply({"asked": question})


@contextmanager
def answering(path: Path) -> Iterator[None]:
    """A server with a loop of its own."""
    stop, stopper = socket.socketpair()
    with closing(ControlServer(path, echo)) as server, stop, stopper:

        def loop() -> None:
            while stop not in (ready := select.select([server, stop], [], [])[0]):
                for each in ready:
                    each.handle_readable()

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield
        finally:
            stopper.send(b"\0")
            thread.join()


def sent(path: Path, line: bytes) -> Json:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        client.sendall(line + b"\n")
        answer: Json = json.loads(client.makefile("rb").readline())
        return answer


def test_a_question_is_answered_and_only_its_user_can_ask(tmp_path: Path):
    path = tmp_path / "control.sock"
    with answering(path):
        assert path.stat().st_mode & 0o777 == 0o600
        assert ask(path, {"op": "status"}) == {"asked": {"op": "status"}}


@pytest.mark.parametrize(
    "line",
    [b"[" * 60_000, b'{"op":' * 9_000, b'{"op":' + b"1" * 50_000 + b"}", b'{"op":"\xff"}', b"null", b"", b"status"],
    ids=["deep list", "deep object", "huge number", "not UTF-8", "no object", "nothing", "no JSON"],
)
def test_what_is_no_question_is_refused_and_the_next_one_is_answered(tmp_path: Path, line: bytes):
    path = tmp_path / "control.sock"
    with answering(path):
        assert sent(path, line) == {"error": "a question is one line with a flat JSON object"}
        assert ask(path, {"op": "status"}) == {"asked": {"op": "status"}}


def test_a_full_backlog_is_given_up_only_after_the_timeout(tmp_path: Path):
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)  # and nobody accepts it
        with pytest.raises(TimeoutError, match=r"not connected within 0\.2 s"):
            ask(Path(path), {"op": "status"}, timeout=0.2)


def test_who_asks_when_no_descriptors_are_left_is_sent_away_and_not_kept_waiting(tmp_path: Path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    path = tmp_path / "control.sock"
    with closing(ControlServer(path, echo)) as server, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.settimeout(5)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, limits[1]))
        taken: list[int] = []
        try:
            with suppress(OSError):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            server.handle_readable()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for descriptor in taken:
                os.close(descriptor)
        assert client.recv(1) == b""
        assert not select.select([server], [], [], 0)[0]  # else its loop would turn and turn


def test_nobody_there_is_told_at_once(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        ask(tmp_path / "control.sock", {"op": "status"})
