"""The wire between a process's link (DEALER) and the coordinator (ROUTER): typed, versioned, bounded; never pickle.

What is said travels in packets. A packet names the coordinator's epoch, the process's session (one more with each
`Hello`) and its place in that session, so that whatever is late, doubled, out of order or of another epoch is seen to
be so and changes nothing. Whoever misses a packet has the process say `Hello` again, which states anew all that it
holds. docs/protocol.md describes the whole.
"""

from __future__ import annotations

import enum
import itertools
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..pool.budget import Demand, Lease
from ..pool.stats import Counters, Histogram

VERSION = 4
MAX_MESSAGE = 1024 * 1024
"""Bytes. A longer message is dropped unread, and its sender's connection with it."""
MOST_CONNECTIONS = 1_000_000
"""A budget's size, and what a process says of its demand, are cut to this."""
MOST_LEASES = 10_000
"""That one process holds."""
MOST_POOLS = 1_000
"""Of one process."""
LONGEST_NAME = 200
"""Characters of what is only shown to people. Names that are longer are cut by whoever has them."""

# What the receiver counts with, keeps or repeats has a range. Whatever is outside is no message.
Positive = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Name = Annotated[str, Meta(max_length=LONGEST_NAME)]
MemberName = Annotated[str, Meta(pattern="^[A-Za-z0-9][!-~]{0,99}$")]
DatabaseName = Annotated[str, Meta(max_length=8192)]
"""As long as a path can be, and more."""
_End = Annotated[str, Meta(max_length=100)]


class LeaseState(enum.IntEnum):
    """How far a lease has come. It ends by being returned, and is then no more."""

    GRANTED = 0
    CONNECTING = 1
    OPEN = 2
    CLOSING = 3
    QUARANTINED = 4
    """Its process is dead, or not to be reached, and the server was not seen to let go. Only the ledger says so."""


class HeldLease(msgspec.Struct, array_like=True, frozen=True):
    """A lease that a pool holds, and, once its connection is open, who that is on the server."""

    lease: Lease
    state: LeaseState = LeaseState.GRANTED
    server_id: int | None = None
    address: tuple[_End, _End] | None = None
    """See `engine.sockets.Endpoints`."""
    liveness_checked: bool = False
    """Whether the server looks in mid-query whether its client still lives."""

    def become(self, state: LeaseState) -> HeldLease:
        return HeldLease(self.lease, state, self.server_id, self.address, self.liveness_checked)

    @property
    def known(self) -> bool:
        """Whether it is known which session it is for. Before that there may be one that nobody has named yet."""
        return self.state in {LeaseState.OPEN, LeaseState.CLOSING}

    @property
    def endable(self) -> bool:
        """Whether another process can see its session on the server, and end it. Not where there is no server (SQLite),
        one that does not say who is who, or a proxy or NAT in between."""
        return self.server_id is not None and self.address is not None


class PoolClaim(msgspec.Struct, array_like=True, frozen=True):
    """A pool and everything it holds."""

    pool: int
    """Chosen by the process, unique in it."""
    name: Name
    database: DatabaseName
    min_size: Natural
    max_size: Positive
    stated: bool
    """Whether the script states `max_size`, or it is only the default."""
    leases: Annotated[list[HeldLease], Meta(max_length=MOST_LEASES)] = []


# -- from a process, about one of its pools --------------------------------------------------------------------------


class Attach(msgspec.Struct, tag="attach", array_like=True, frozen=True):
    claim: PoolClaim


class Report(msgspec.Struct, tag="report", array_like=True, frozen=True):
    pool: int
    received: int
    """Leases received since the pool was attached: what was granted beyond that is still on its way."""
    demand: Demand


class Moved(msgspec.Struct, tag="moved", array_like=True, frozen=True):
    """A lease has come so far: its connection is being opened, is open, or is being closed."""

    pool: int
    held: HeldLease


class Returned(msgspec.Struct, tag="returned", array_like=True, frozen=True):
    """The server has let go of these connections, or they were never opened."""

    pool: int
    leases: list[Lease]


class Detach(msgspec.Struct, tag="detach", array_like=True, frozen=True):
    pool: int


class Ended(msgspec.Struct, tag="ended", array_like=True, frozen=True):
    """The answer to `End`: somebody has looked, the server has none of these sessions any more, and still has the
    others."""

    pool: int
    leases: list[Lease]


class Durations(msgspec.Struct, array_like=True, frozen=True):
    """A histogram as `pool.stats` has it, without the empty buckets at its end."""

    sum: Annotated[float, Meta(ge=0, le=1e15)] = 0.0
    """Seconds, all together."""
    buckets: Annotated[list[Natural], Meta(max_length=Histogram.BUCKETS)] = []

    def __add__(self, other: Durations) -> Durations:
        both = itertools.zip_longest(self.buckets, other.buckets, fillvalue=0)
        return Durations(self.sum + other.sum, [one + another for one, another in both])

    def __sub__(self, other: Durations) -> Durations:
        both = itertools.zip_longest(self.buckets, other.buckets, fillvalue=0)
        return Durations(max(0.0, self.sum - other.sum), [one - another for one, another in both])

    @staticmethod
    def of(histogram: Histogram, zeros: int = 0) -> Durations:
        """What was counted, and `zeros` more that took no time."""
        buckets = [histogram.buckets[0] + zeros, *histogram.buckets[1:]]
        while buckets and not buckets[-1]:
            buckets.pop()
        return Durations(histogram.sum, buckets)


class Totals(msgspec.Struct, tag="totals", array_like=True, frozen=True):
    """What a pool has counted since its start, or since it told it last to the coordinator before this one: `PoolStats`
    says what each is."""

    pool: int
    requests: Natural = 0
    requests_waited: Natural = 0
    timeouts: Natural = 0
    opened: Natural = 0
    open_errors: Natural = 0
    closed: Natural = 0
    found_dead: Natural = 0
    rolled_back: Natural = 0
    wait: Durations = Durations()
    hold: Durations = Durations()
    open: Durations = Durations()
    close: Durations = Durations()

    def __add__(self, other: Totals) -> Totals:
        return Totals(0, *(one + another for one, another in zip(self._counted, other._counted, strict=True)))

    def __sub__(self, other: Totals) -> Totals:
        """What was counted since `other`, which the same pool has said."""
        return Totals(self.pool, *(one - another for one, another in zip(self._counted, other._counted, strict=True)))

    @property
    def _counted(self) -> tuple[Any, ...]:
        return msgspec.structs.astuple(self)[1:]

    @staticmethod
    def of(pool: int, counted: Counters) -> Totals:
        return Totals(
            pool, counted.requests, counted.requests_waited, counted.timeouts, counted.opened, counted.open_errors,
            counted.closed, counted.found_dead, counted.rolled_back,
            Durations.of(counted.wait, counted.found_idle), Durations.of(counted.hold), Durations.of(counted.open),
            Durations.of(counted.close),
        )  # fmt: skip


FromPool = Attach | Report | Moved | Returned | Detach | Ended | Totals


# -- from the coordinator, to one pool --------------------------------------------------------------------------------


class Attached(msgspec.Struct, tag="attached", array_like=True, frozen=True):
    """Sent again when the size changes. A ceiling that was set before, perhaps by another coordinator, is void."""

    pool: int
    size: Positive


class Refused(msgspec.Struct, tag="refused", array_like=True, frozen=True):
    pool: int
    reason: str


class Granted(msgspec.Struct, tag="granted", array_like=True, frozen=True):
    pool: int
    leases: list[Lease]
    leased: int
    """Leases charged to the budget now, by whomever: for error texts."""


class Denied(msgspec.Struct, tag="denied", array_like=True, frozen=True):
    """A warm-up gets no more for now. Waiters are never denied: they are served when a lease comes back."""

    pool: int


class Ceiling(msgspec.Struct, tag="ceiling", array_like=True, frozen=True):
    """Hold at most so many leases, because somebody else waits; None lifts it."""

    pool: int
    ceiling: Natural | None
    leased: int


class Ask(msgspec.Struct, tag="ask", array_like=True, frozen=True):
    """Say `Totals`, and report, at once."""

    pool: int


class End(msgspec.Struct, tag="end", array_like=True, frozen=True):
    """End these sessions on the server, through a connection of yours, and say `Ended` when they are gone: the
    processes that had them are dead, or cannot be reached."""

    pool: int
    sessions: list[HeldLease]


class Recall(msgspec.Struct, tag="recall", array_like=True, frozen=True):
    """Give every lease back: of idle connections at once, of others as they are checked in. What is needed then is
    asked for anew."""

    pool: int


ToPool = Attached | Refused | Granted | Denied | Ceiling | Ask | End | Recall


# -- packets, and what opens a session --------------------------------------------------------------------------------


class Hello(msgspec.Struct, tag="hello", array_like=True, frozen=True):
    """Opens a session, and states all that the process holds: what was said before it is void.

    It counts only if it names the coordinator's epoch, which `Lost` tells: an old one that arrives once more, at a
    coordinator that was restarted meanwhile, knows less than the journal."""

    version: int
    session: Positive
    """One more than the last of this link."""
    name: MemberName
    """Chosen by the link, unique, and the same as long as it lives. It has no other on the wire: what a socket calls
    itself anybody can call himself, and would get what is said to it."""
    pid: Annotated[int, Meta(ge=1, lt=2**31)]
    started: int
    """The process's start time as the kernel counts it: a pid alone may have been given to somebody else."""
    host: Name
    """Where the pid and the connections can be seen: machine, pid namespace and network namespace."""
    worker: int | None
    restarts: int
    pools: Annotated[list[PoolClaim], Meta(max_length=MOST_POOLS)]
    epoch: int = 0
    """The coordinator's, 0 while it is not known."""


class ProcessPacket(msgspec.Struct, tag="said", array_like=True, frozen=True):
    """What a process says at one time; without messages it is a sign of life."""

    epoch: int
    session: int
    number: int
    """1, 2, 3, ... in each session."""
    messages: list[FromPool]


class Welcome(msgspec.Struct, tag="welcome", array_like=True, frozen=True):
    """The answer to `Hello`."""

    epoch: int
    session: int
    term: Annotated[float, Meta(ge=2, le=3600)] | None
    """Seconds without a sign of life after which the coordinator takes the process for dead. None: it does not, the
    kernel tells it."""


class Unwelcome(msgspec.Struct, tag="unwelcome", array_like=True, frozen=True):
    """The process cannot join. Every version of the protocol has this message."""

    epoch: int
    reason: str


class Lost(msgspec.Struct, tag="lost", array_like=True, frozen=True):
    """Something of this session did not arrive, or the coordinator does not know it: say `Hello` again, with this
    epoch."""

    epoch: int
    session: int


class CoordinatorPacket(msgspec.Struct, tag="said", array_like=True, frozen=True):
    """What the coordinator says to one process at one time."""

    epoch: int
    session: int
    number: int
    """1, 2, 3, ... in each session."""
    heard: int
    """The number of the process's last packet that was taken."""
    messages: list[ToPool]


FromProcess = Hello | ProcessPacket
FromCoordinator = Welcome | Unwelcome | Lost | CoordinatorPacket


class _AnyHello(msgspec.Struct, tag="hello", array_like=True, frozen=True):
    """What every version's hello has in front."""

    version: int


_encoder = msgspec.msgpack.Encoder()
_from_process: msgspec.msgpack.Decoder[FromProcess] = msgspec.msgpack.Decoder(FromProcess)
_from_coordinator: msgspec.msgpack.Decoder[FromCoordinator] = msgspec.msgpack.Decoder(FromCoordinator)
_any_hello: msgspec.msgpack.Decoder[_AnyHello] = msgspec.msgpack.Decoder(_AnyHello)


def encode(message: FromProcess | FromCoordinator) -> bytes:
    return _encoder.encode(message)


def decode_from_process(data: bytes) -> FromProcess:
    """Raises msgspec.MsgspecError for anything that is no such message, ValueError for text that is none."""
    return _from_process.decode(data)


def decode_from_coordinator(data: bytes) -> FromCoordinator:
    """Raises msgspec.MsgspecError for anything that is no such message, ValueError for text that is none."""
    return _from_coordinator.decode(data)


def shown(text: str) -> str:
    """What somebody else wrote, for a log or a terminal: nothing in it is obeyed by either."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def version_of(data: bytes) -> int | None:
    """The version that a hello speaks, however it goes on; None for what is no hello."""
    try:
        return _any_hello.decode(data).version
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
