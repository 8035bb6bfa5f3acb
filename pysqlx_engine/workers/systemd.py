"""What systemd is told of a run: that it is ready, reloads, ends, and that it still turns (sd_notify(3)).

Without the variables that systemd sets, all of this is nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

_OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Systemd:
    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Takes what is for us out of `environment`: our children do not speak for us."""
        path, interval, pid = (environment.pop(name, "") for name in _OURS)
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self._socket: socket.socket | None = None
        if path[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        self._interval: float | None = None
        if interval.isdigit() and int(interval) and pid in ("", str(os.getpid())):
            self._interval = int(interval) / 2_000_000  # twice as often as it has to be
        self._due = 0.0
        self._said = ""
        self._was_ready = False

    @property
    def listens(self) -> bool:
        return self._socket is not None

    @property
    def due(self) -> float | None:
        """When `alive` is to be called next, by `time.monotonic`; None: never."""
        return self._due if self._interval is not None and self._socket is not None else None

    def alive(self) -> None:
        """The loop turns."""
        if self._interval is not None:
            self._due = time.monotonic() + self._interval
            self._tell("WATCHDOG=1")

    def status(self, text: str, *, ready: bool) -> None:
        """Who was ready once is a service that runs, though not all is there: also after a reload."""
        self._was_ready = self._was_ready or ready
        self._tell_once(f"READY=1\nSTATUS={text}" if self._was_ready else f"STATUS={text}")

    def reloading(self) -> None:
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        self._said = ""

    def stopping(self) -> None:
        self._tell_once("STOPPING=1\nSTATUS=ending")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _tell_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._tell(text)

    def _tell(self, text: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it does not read, or is gone: we go on
                self._socket.sendto(text.encode(), self._address)
