"""ZeroMQ and nothing else: `... fleet_echo LEADER` sends back what `... fleet_echo LEADER ENDPOINT` says.

Sockets, threads and waits are those of the coordinator and the link. Nothing is decided, read or remembered.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress

import zmq

from .fleet import TIMEOUT, join, sleep_until

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
        with suppress(EOFError):
            while True:
                match leader.hear():
                    case {"do": "saturate", "since": since, "until": until}:
                        leader.say(grants=_echoes(dealer, since, until))
                    case {"do": "pace", "since": since, "until": until, "pause": pause}:
                        leader.say(waits=_paced(dealer, since, until, pause))


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
    poller.poll(TIMEOUT * 1000)  # the last one, which would count with what comes next
    dealer.recv_multipart()
    return echoes


def _paced(dealer: zmq.Socket[bytes], since: float, until: float, pause: float) -> list[float]:
    """As a process does it that has a link: one thread asks, another has the socket."""
    wake_read, wake_write = os.pipe()
    count = math.ceil((until - since) / pause)
    due: deque[float] = deque()
    waits: list[float] = []

    def talk() -> None:
        poller = zmq.Poller()
        poller.register(dealer, zmq.POLLIN)
        poller.register(wake_read, zmq.POLLIN)
        while len(waits) < count:
            ready = dict(poller.poll(TIMEOUT * 1000))
            if wake_read in ready:
                for _ in os.read(wake_read, 65536):
                    dealer.send(MESSAGE)
            if dealer in ready:
                with suppress(zmq.Again):
                    while True:
                        dealer.recv_multipart(zmq.NOBLOCK)
                        waits.append(time.monotonic() - due.popleft())

    talking = threading.Thread(target=talk, daemon=True)
    talking.start()
    for number in range(count):
        sleep_until(since + pause * number)
        due.append(since + pause * number)
        os.write(wake_write, b"\0")
    talking.join(TIMEOUT)
    return waits


if __name__ == "__main__":
    (ask if len(sys.argv) > 2 else send_back)(*sys.argv[1:])
