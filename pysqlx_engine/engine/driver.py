"""The driver, imported quietly.

It writes every lost connection to stderr on its own account, besides raising it. What is raised is enough, so its log
is off unless RUST_LOG says otherwise. It reads that variable once, when it is imported.

Its threads are started with its first call, one for each core unless TOKIO_WORKER_THREADS says otherwise. That is too
few for SQLite: who waits for another writer's lock occupies a thread, and when all are occupied the writer that has the
lock cannot go on to let it go. So there are more.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

THREADS = 64
"""Threads of the driver: calls that may wait for a lock of SQLite at the same time. One that is idle costs some
kilobytes."""
_VARIABLE = "TOKIO_WORKER_THREADS"

_say_nothing = "RUST_LOG" not in os.environ
if _say_nothing:
    os.environ["RUST_LOG"] = "off"

import pysqlx_core  # noqa: E402

if _say_nothing:
    del os.environ["RUST_LOG"]  # it is meant for this process's driver, not for what the process starts

__all__ = ["first_call", "pysqlx_core"]


@contextlib.contextmanager
def first_call() -> Iterator[None]:
    """Around the call with which the driver starts its threads."""
    if os.environ.get(_VARIABLE):
        yield
        return
    os.environ[_VARIABLE] = str(THREADS)
    try:
        yield
    finally:
        os.environ.pop(_VARIABLE, None)  # as above: for this process's driver only
