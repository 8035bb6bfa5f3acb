"""The processes of a run, as its supervisor knows them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from .formation import Place, RestartPolicy
    from .jobs.served import ServedQueue
    from .status import PoolLook

UP_AFTER = 1.0
"""Seconds that a worker has to live where neither a pool nor a queue tells that it works."""


@dataclass(slots=True)
class Slot:
    """A place for the coordinator, for a queue's dispatcher or for the observer. It stays while its processes come and
    go."""

    name: str
    policy: RestartPolicy
    queue: ServedQueue | None = None  # of a dispatcher
    child: Child | None = None
    restarts: int = 0
    restart_at: float | None = None
    ended_at: float | None = None  # when the last child did


@dataclass(slots=True)
class Child:
    name: str
    process: SpawnProcess
    started: float
    place: Place | None = None  # a worker's
    slot: Slot | None = None  # anybody else's
    control: socket.socket | None = None  # all but the coordinator have one
    ready: Connection | None = None  # the coordinator's, until it has said so
    pools: list[PoolLook] | None = None  # its answer to the question that is open
    retired: bool = False  # told to end, because another one takes its place
    kill_at: float | None = None
    up_at: float | None = None  # when it counts as up, if it has not said so
    had_a_pool: bool = False
    serves: Counter[str] = field(default_factory=Counter)  # its queues, by their sockets
    serving: int = 0  # queues of which it can be given jobs
    told_to_end: bool = False  # who is no worker
    dead: bool = False

    @property
    def pid(self) -> int:
        return int(self.process.pid or 0)

    def is_up(self, now: float) -> bool:
        return bool(self.serving) or self.lives_well(now)

    def lives_well(self, now: float) -> bool:
        """As far as can be told of one that serves no queue."""
        return not self.serves and (self.had_a_pool or now - self.started >= UP_AFTER)

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)  # nobody else's: it was not waited for, else it would not be here

    def tell(self, operation: str, **more: object) -> bool:
        """False: it cannot be told, because it is dead, or does not read."""
        if self.control is None:
            return False
        try:
            self.control.send(json.dumps({"op": operation, **more}).encode())
        except OSError:
            return False
        return True
