"""Named points at which a test has a process die: each is a moment after which something is known to some and not yet
to others. Without PYSQLX_JOB_FAULTS, as in any real run, they are nothing."""

from __future__ import annotations

import contextlib
import os
import random
import signal

POINTS = ("claimed", "dispatched", "started", "committed", "reported")
"""A dispatcher has claimed and committed; it has sent it to a worker; a handler is about to be called; its transaction
is committed; a dispatcher has been told."""


_point, _, _tokens = os.environ.get("PYSQLX_JOB_FAULTS", "").partition(":")
"""`committed:DIRECTORY`: a process dies at that point for each file in the directory, which it removes."""
_CHANCE = 0.2


def reached(point: str) -> None:
    if point != _point or random.random() >= _CHANCE:
        return
    for token in os.listdir(_tokens):
        with contextlib.suppress(FileNotFoundError):  # another process has died for it
            os.unlink(os.path.join(_tokens, token))
            os.kill(os.getpid(), signal.SIGKILL)
