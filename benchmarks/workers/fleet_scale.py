"""What one coordinator costs when a thousand processes have joined it and hold ten thousand leases."""

from __future__ import annotations

import time

from .fleet import Coordinator, Leader, main

LINKS = 1000
LEASES = 10_000
SETTLE = 1.0
SPAN = 10.0
"""Seconds: the kernel counts a process's time in hundredths of one."""


def memory(uri: str, seconds: float) -> float:
    """Resident bytes."""
    with Leader() as leader:
        return float(_crowd(leader).resident_bytes())


def idle(uri: str, seconds: float) -> float:
    """The part of a core that it takes while nothing changes."""
    with Leader() as leader:
        coordinator = _crowd(leader)
        started, before = time.monotonic(), coordinator.cpu_seconds()
        time.sleep(SPAN)
        return (coordinator.cpu_seconds() - before) / (time.monotonic() - started)


def _crowd(leader: Leader) -> Coordinator:
    coordinator = Coordinator(leader, LEASES)
    leader.start_module("fleet_crowd", leader.path, coordinator.endpoint, str(LINKS), str(LEASES // LINKS))
    crowd, _ = leader.accept()
    crowd.hear()
    time.sleep(SETTLE)
    return coordinator


if __name__ == "__main__":
    main({("ours", "fleet-memory"): memory, ("ours", "fleet-idle"): idle})
