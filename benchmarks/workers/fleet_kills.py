"""How long the leases of a process that is killed are missed: until another process's waiter has been granted them."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator

from .fleet import Coordinator, Leader, main
from .leading import percentile

KILLS = 100
CONNECTIONS = 2
"""Of the process that is killed, one in the midst of a query; they are the whole budget."""


def regrant(uri: str, seconds: float) -> float:
    """The 99th percentile of the seconds from the `kill -9` to the grant of the last lease. What the waiter does with
    them is not in it: it would open connections, which takes longer than all of this."""
    return percentile(kills(uri, KILLS), 99)


def kills(uri: str, times: int) -> Iterator[float]:
    with Leader() as leader:
        coordinator = Coordinator(leader, CONNECTIONS)
        arguments = [leader.path, coordinator.endpoint, uri]
        leader.start_module("fleet_victims", *arguments, str(CONNECTIONS))
        forking, _ = leader.accept()
        leader.start_module("fleet_thin", leader.path, coordinator.endpoint, "1", uri)
        waiter, _ = leader.accept()
        for _ in range(times):
            forking.say()
            victim, itself = leader.accept()
            waiter.ask(do="want", leases=CONNECTIONS)
            # By then the coordinator has heard it, and has asked the victim in vain. The server looks in regular
            # intervals whether a client still lives: the kill falls anywhere in one.
            time.sleep(random.uniform(0.02, 0.06))
            killed = time.monotonic()
            os.kill(itself["pid"], signal.SIGKILL)
            granted_at = waiter.hear()["granted_at"]
            victim.close()
            if len(granted_at) != CONNECTIONS or min(granted_at) < killed:
                sys.exit(f"leases were granted {[at - killed for at in granted_at]} s after the kill")
            yield max(granted_at) - killed


if __name__ == "__main__":
    main({("ours", "fleet-kill"): regrant})
