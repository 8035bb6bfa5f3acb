"""A thousand processes: `... fleet_crowd LEADER ENDPOINT PROCESSES LEASES_EACH`.

Each is forked from this one and has a simulated link, which opens nothing, with a socket of its own.
The kernel tells the coordinator who is at the other end of a socket, so that one process could not speak for them all.
The leader hears of it when every link has its leases.
"""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress

import zmq

from .fleet import TIMEOUT, join
from .fleet_wire import SimulatedLink

PAUSE = 0.05
"""Seconds between two looks at what is due, as long as a link has not got all it wants."""


def simulate(endpoint: str, wanted: int, told: int, end: int) -> None:
    """The life of one process: it says a byte to `told` when it has all it wants, and ends when `end` is closed."""
    with zmq.Context() as context:
        link = SimulatedLink(context, endpoint, wanted)
        poller = zmq.Poller()
        poller.register(link.socket, zmq.POLLIN)
        poller.register(end, zmq.POLLIN)
        lacks = True
        while end not in dict(poller.poll(PAUSE * 1000 if lacks else None)):
            link.turn()
            if lacks and len(link.leases) >= wanted:
                lacks = False
                os.write(told, b".")
        link.socket.close()


def main() -> None:
    path, endpoint, count, each = sys.argv[1:]
    told, telling = os.pipe()
    end, ours = os.pipe()
    for _ in range(int(count)):
        if os.fork() == 0:
            os.close(ours)  # what they read from ends with us
            simulate(endpoint, int(each), telling, end)
            os._exit(0)
    leader = join(path)
    satisfied = 0
    while satisfied < int(count):
        if not select.select([told], [], [], TIMEOUT)[0]:
            sys.exit(f"{satisfied} of {count} have their leases")
        satisfied += len(os.read(told, 65536))
    leader.say()
    with suppress(EOFError):
        leader.hear()


if __name__ == "__main__":
    main()
