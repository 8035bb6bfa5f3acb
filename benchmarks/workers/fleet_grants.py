"""How many leases one coordinator grants, and how long a grant takes: 8 processes ask for one lease a request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from .fleet import Coordinator, Leader, Member, main
from .leading import percentile

LINKS = 8
POOLS = 4
"""Of each process: a service has several databases, or several pools for one. Each asks for one lease at a time."""
BUDGET = 1000
"""So many that nobody waits for what another has: what is measured is the coordinator, not the sharing."""
MANY_POOLS, SMALL_BUDGET = 25, 64
"""Of each process, and what they all share."""
TARGET = 20_000
WARM_UP = 0.3


def rate(uri: str, seconds: float) -> float:
    return _rate(uri, seconds, POOLS)


def rate_of_one(uri: str, seconds: float) -> float:
    return _rate(uri, seconds, 1)


def rate_of_many(uri: str, seconds: float) -> float:
    """More pools than leases: each gives its lease back at once, and another one waits for it."""
    return _rate(uri, seconds, MANY_POOLS, SMALL_BUDGET)


def echoes(uri: str, seconds: float) -> float:
    """What ZeroMQ alone does: each process sends one message, has it back, and sends the next."""
    with _echoing() as links:
        return _saturate(links, seconds)


def latency_of_echoes(uri: str, seconds: float) -> float:
    with _echoing() as links:
        _saturate(links, WARM_UP)
        return _pace(links, TARGET / 2, seconds)


@contextmanager
def _echoing() -> Iterator[list[Member]]:
    with Leader() as leader:
        leader.start_module("fleet_echo", leader.path)
        router, itself = leader.accept()
        for _ in range(LINKS):
            leader.start_module("fleet_echo", leader.path, itself["endpoint"])
        yield leader.members(LINKS)
        router.say()  # it may end


def _rate(uri: str, seconds: float, pools: int, budget: int = BUDGET) -> float:
    with Leader() as leader:
        _, links = _start(leader, uri, pools, budget)
        return _saturate(links, seconds)


def rate_of_its_own(uri: str, seconds: float) -> float:
    """Grants for each second that the coordinator itself computes, however little of a core the others leave it."""
    with Leader() as leader:
        coordinator, links = _start(leader, uri, POOLS)
        _saturate(links, 0.0)
        grants, before = 0.0, coordinator.cpu_seconds()
        span = max(1.0, seconds)  # the kernel counts hundredths
        grants = _saturate(links, span, warm_up=0.0) * span
        return grants / (coordinator.cpu_seconds() - before)


def latency(uri: str, seconds: float) -> float:
    with Leader() as leader:
        _, links = _start(leader, uri, POOLS)
        _saturate(links, 0.0)
        return _pace(links, TARGET / 2, seconds)


def latency_at_half(uri: str, seconds: float) -> float:
    with Leader() as leader:
        _, links = _start(leader, uri, POOLS)
        return _pace(links, _saturate(links, seconds) / 2, seconds)


def _start(leader: Leader, uri: str, pools: int, budget: int = BUDGET) -> tuple[Coordinator, list[Member]]:
    coordinator = Coordinator(leader, budget)
    for _ in range(LINKS):
        leader.start_module("fleet_thin", leader.path, coordinator.endpoint, str(pools), uri)
    return coordinator, leader.members(LINKS)


def _saturate(links: list[Member], seconds: float, warm_up: float = WARM_UP) -> float:
    since = time.monotonic() + warm_up
    for link in links:
        link.say(do="saturate", since=since, until=since + seconds)
    grants = sum(link.hear()["grants"] for link in links)
    return float(grants / seconds) if seconds else 0.0


def _pace(links: list[Member], per_second: float, seconds: float) -> float:
    """The 99th percentile of the waits in seconds, while all links together ask so often, each in its own rhythm."""
    pause = LINKS / per_second
    start = time.monotonic() + 0.1
    for number, link in enumerate(links):
        since = start + pause * number / LINKS
        link.say(do="pace", since=since, until=since + seconds, pause=pause)
    return percentile([wait for link in links for wait in link.hear()["waits"]], 99)


if __name__ == "__main__":
    main(
        {
            ("ours", "fleet-grants"): rate,
            ("ours", "fleet-grants-one"): rate_of_one,
            ("echo", "fleet-grants-one"): echoes,
            ("ours", "fleet-grants-many"): rate_of_many,
            ("ours", "fleet-grants-cpu"): rate_of_its_own,
            ("ours", "fleet-latency"): latency,
            ("echo", "fleet-latency"): latency_of_echoes,
            ("ours", "fleet-latency-half"): latency_at_half,
        }
    )
