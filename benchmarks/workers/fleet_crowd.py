"""A thousand processes, as far as the coordinator can tell: `... fleet_crowd LEADER ENDPOINT LINKS LEASES_EACH`.

Each has a pid of its own, a process that does nothing, and a socket of its own; all sockets are served by this one
process. The leader hears of it when every link has its leases.
"""

from __future__ import annotations

import os
import resource
import select
import sys

import zmq

from .fleet import join
from .fleet_wire import SimulatedLink

PAUSE = 0.05
"""Seconds between two looks at those that have not got all they want."""


def idle_processes(count: int) -> list[int]:
    """Their pids. They end with us: what they read from is open as long as we are."""
    reading, writing = os.pipe()
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        pids.append(pid)
    os.close(reading)
    return pids


def main() -> None:
    path, endpoint, count, each = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pids = idle_processes(int(count))  # first: ZeroMQ has threads, which do not survive a fork
    context = zmq.Context()
    context.max_sockets = len(pids) + 8
    poller = select.epoll()
    links = {}
    for pid in pids:
        link = SimulatedLink(context, endpoint, pid, int(each))
        links[link.socket.FD] = link
        poller.register(link.socket.FD, select.EPOLLIN | select.EPOLLET)
    for link in links.values():
        link.turn()  # what came before it was registered, of which nobody tells
    leader = join(path)
    lacking = set(links.values())
    while True:
        for descriptor, _ in poller.poll(PAUSE if lacking else None):
            links[descriptor].turn()
        if lacking:
            for link in lacking:  # what is due by time: to join takes two hellos
                link.turn()
            lacking = {link for link in lacking if len(link.leases) < link.wanted}
            if not lacking:
                leader.say()


if __name__ == "__main__":
    main()
