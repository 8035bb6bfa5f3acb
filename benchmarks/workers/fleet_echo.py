"""ZeroMQ and nothing else: `... fleet_echo LEADER` sends back what `... fleet_echo LEADER ENDPOINT` says.

Sockets, threads and waits are those of the coordinator and the link. Nothing is decided, read or remembered.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import suppress

import zmq

from .fleet import TIMEOUT, join

MESSAGE = bytes(60)
"""About as long as a packet."""


def send_back(path: str) -> None:
    with tempfile.TemporaryDirectory() as directory, zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        endpoint = f"ipc://{directory}/echo.sock"
        router.bind(endpoint)
        leader = join(path, endpoint=endpoint)
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(leader.fileno(), zmq.POLLIN)
        while leader.fileno() not in dict(poller.poll(TIMEOUT * 1000)):
            with suppress(zmq.Again):
                while True:
                    router.send_multipart(router.recv_multipart(zmq.NOBLOCK))


def ask(path: str, endpoint: str) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(endpoint)
        leader = join(path)
        words = leader.hear()
        leader.say(grants=_echoes(dealer, words["since"], words["until"]))
        with suppress(EOFError):
            leader.hear()


def _echoes(dealer: zmq.Socket[bytes], since: float, until: float) -> int:
    poller = zmq.Poller()
    poller.register(dealer, zmq.POLLIN)
    echoes = 0
    dealer.send(MESSAGE)
    while (now := time.monotonic()) < until:
        poller.poll(TIMEOUT * 1000)
        with suppress(zmq.Again):
            while True:
                dealer.recv_multipart(zmq.NOBLOCK)
                dealer.send(MESSAGE)
                echoes += now >= since
    return echoes


if __name__ == "__main__":
    (ask if len(sys.argv) > 2 else send_back)(*sys.argv[1:])
