"""What everybody has who leads a measurement, in whichever environment: it needs nothing but Python."""

from __future__ import annotations

import argparse
import json
import math
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing

TIMEOUT = 60.0
"""Seconds in which a server has to listen. Far more than it should take."""


def main(measure: Callable[[str, str, str, float], dict[str, float]]) -> None:
    """Measure for the peer and in the case that the command line names; print the figures as JSON on the last line.
    `measure` gets the peer, the case, the URI of a server and the seconds to measure for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("peer")
    parser.add_argument("case")
    parser.add_argument("--uri", required=True)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("was told to stop"))
    print(json.dumps(measure(options.peer, options.case, options.uri, options.seconds)), flush=True)


def percentile(figures: Iterable[float], percent: float) -> float:
    """The smallest of `figures` that `percent` of them do not exceed."""
    ordered = sorted(figures)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    """Until somebody listens there."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
