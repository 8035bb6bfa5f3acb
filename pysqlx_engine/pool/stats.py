"""What a pool tells about itself."""

from __future__ import annotations

from dataclasses import dataclass, field


class Histogram:
    """Counts of durations, in buckets whose bounds double from one microsecond on."""

    __slots__ = ("buckets", "sum")

    BUCKETS = 64
    """More than any duration needs: the last begins at 2**62 microseconds."""

    def __init__(self) -> None:
        self.buckets = [0] * self.BUCKETS
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        # The number of bits of the microseconds is the bucket: no search, this is on the way of every check-in.
        self.buckets[int(seconds * 1e6).bit_length()] += 1
        self.sum += seconds

    def snapshot(self, *, zeros: int = 0) -> Durations:
        """What was counted; `zeros` more durations were too short to be worth it."""
        counts = (self.buckets[0] + zeros, *self.buckets[1:])
        return Durations(sum(counts), self.sum, counts)


@dataclass(frozen=True, slots=True)
class Durations:
    """A histogram of durations in seconds."""

    count: int
    sum: float
    """Seconds, all together."""
    buckets: tuple[int, ...]
    """How many were shorter than 1, 2, 4, ... microseconds, and not than the bound before."""

    @property
    def mean(self) -> float:
        """Seconds; 0 when there was none."""
        return self.sum / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """The duration in seconds that `share` (0 to 1) of them do not exceed, rounded up to a bucket's bound: at most
        twice the true value. 0 when there was none."""
        if not 0 <= share <= 1:
            raise ValueError(f"share={share}: it has to be from 0 to 1")
        seen = 0
        for bucket, count in enumerate(self.buckets):
            seen += count
            if count and seen >= share * self.count:
                return float(2**bucket) / 1e6
        return 0.0


@dataclass(slots=True)
class Counters:
    """What is counted from one `start()` on."""

    requests: int = 0
    requests_waited: int = 0
    timeouts: int = 0
    opened: int = 0
    open_errors: int = 0
    closed: int = 0
    found_dead: int = 0
    rolled_back: int = 0
    wait: Histogram = field(default_factory=Histogram)
    hold: Histogram = field(default_factory=Histogram)
    open: Histogram = field(default_factory=Histogram)
    close: Histogram = field(default_factory=Histogram)

    @property
    def found_idle(self) -> int:
        """Check-outs that found an idle connection: they did not wait, and were not measured."""
        return max(0, self.requests - self.requests_waited)


@dataclass(frozen=True, slots=True)
class PoolStats:
    """One look at a pool: what is now, and counters since `start()`."""

    name: str
    database: str
    """The database's URI without user, password and options."""
    state: str
    """new, open, stopping, closed or forked."""
    min_size: int
    max_size: int
    """Connections that the whole budget allows: for this pool alone, or for every process that shares it."""
    size: int
    """Connections that are open: in use, idle, and being tested."""
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
    """Check-outs that were asked for, but those that were refused: the pool was closed, or its queue full."""
    requests_waited: int
    """Check-outs that found no idle connection, or only ones that had to be tested first."""
    timeouts: int
    """Check-outs that ended with PoolTimeoutError."""
    opened: int
    open_errors: int
    closed: int
    found_dead: int
    """Connections that had died while they were idle, and were replaced before somebody got them."""
    rolled_back: int
    """Check-ins that had to roll a transaction back."""
    wait: Durations
    """From asking for a connection to having it, or to giving up."""
    hold: Durations
    """From check-out to check-in."""
    open: Durations
    """From the start of a connect until the connection was ready."""
    close: Durations
    """From dropping a connection until the server had let go of it."""
