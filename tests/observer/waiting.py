"""What a test of the observer waits for."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(true: Callable[[], bool], within: float = 20.0) -> None:
    """Wait until it is: the observer looks once a second, and at jobs every five."""
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
