"""400,000 events: leases that change their state, demands, and everything that can go wrong in between."""

from __future__ import annotations

import os

import pytest

from .running import run_many

EVENTS = 400_000
FIRST_SEED = 101
"""Soon after it there is a world for each of the rarer kinds."""
KINDS = {
    # the life of a lease
    "attached", "granted", "lease connecting", "lease open", "lease closing", "returned", "lease quarantined",
    "ceiling", "demand reported", "sized", "forgotten",
    # the server's side
    "connect", "session ends", "open failed", "slow close", "connection broken", "found dead", "session lives on",
    "sessions ended by the server", "server refuses",
    # processes and the coordinator
    "process starts", "process killed", "process stopped", "coordinator killed", "coordinator stopped", "disk full",
    "crash between journal and network", "end asked", "end told", "disowned", "open postponed", "ambush",
    "pool starts", "pool closes", "journal lost", "journal torn",
    # the network
    "lost", "late", "doubled", "replayed", "hello replayed", "cut off", "partition", "connection to coordinator broken",
    "message dropped",
    # users
    "waiter gave up", "waiter timed out",
}  # fmt: skip


@pytest.mark.timeout(420)
def test_no_event_breaks_anything() -> None:
    outcome = run_many(FIRST_SEED, events=EVENTS, processes=os.cpu_count() or 1)
    print(f"\n{outcome.table()}")
    assert not outcome.broken
    assert outcome.counts.keys() == KINDS
    assert outcome.events >= EVENTS
