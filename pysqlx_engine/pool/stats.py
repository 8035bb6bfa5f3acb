"""What a pool tells about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What is counted from one `start()` on."""

    requests: int = 0
    requests_waited: int = 0
    timeouts: int = 0
    opened: int = 0
    open_errors: int = 0
    closed: int = 0


@dataclass(frozen=True, slots=True)
class PoolStats:
    """One look at a pool: what is now, and counters since `start()`."""

    name: str
    database: str
    """The database's URI without user, password and options."""
    state: str
    """new, open, draining or closed."""
    min_size: int
    max_size: int
    """Connections that the whole budget allows: for this pool alone, or for every process that shares it."""
    size: int
    """Connections that are open: in use and idle."""
    in_use: int
    idle: int
    waiting: int
    """Tasks or threads that wait for a connection."""
    opening: int
    closing: int
    """Dropped here, but not yet gone on the server."""
    held: int
    """Leases held: size, opening, closing, and those about to be used."""
    requests: int
    """Check-outs that were asked for."""
    requests_waited: int
    """Check-outs that found no idle connection."""
    timeouts: int
    """Check-outs that ended with PoolTimeoutError."""
    opened: int
    open_errors: int
    closed: int
