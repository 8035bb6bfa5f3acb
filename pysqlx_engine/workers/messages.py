"""The wire between a process's link (DEALER) and the coordinator (ROUTER): typed, versioned, bounded; never pickle.

Every message carries the coordinator's epoch. A restarted coordinator has a new one, so what was sent to or by its
predecessor is recognised and dropped; the `Hello` that opens every connection states anew all that a process holds.
"""

from __future__ import annotations

import msgspec

from ..engine.sockets import Endpoints
from ..pool.budget import Demand, Lease

VERSION = 1
MAX_MESSAGE = 1024 * 1024
"""Bytes. A longer message is dropped unread."""


class HeldLease(msgspec.Struct, array_like=True, frozen=True):
    """A lease that a pool holds, and, once its connection is open, who that is on the server."""

    lease: Lease
    server_id: int | None = None
    address: Endpoints | None = None
    liveness_checked: bool = False
    """Whether the server looks in mid-query whether its client still lives."""


class PoolClaim(msgspec.Struct, array_like=True, frozen=True):
    """A pool and everything it holds."""

    pool: int
    """Chosen by the process, unique in it."""
    name: str
    database: str
    min_size: int
    max_size: int
    stated: bool
    """Whether the script states `max_size`, or it is only the default."""
    leases: list[HeldLease] = []


# -- from a process ------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, tag="hello", array_like=True, frozen=True):
    version: int
    pid: int
    started: int
    """The process's start time as the kernel counts it: a pid alone may have been given to somebody else."""
    worker: int | None
    restarts: int
    pools: list[PoolClaim]


class Attach(msgspec.Struct, tag="attach", array_like=True, frozen=True):
    epoch: int
    claim: PoolClaim


class Report(msgspec.Struct, tag="report", array_like=True, frozen=True):
    epoch: int
    pool: int
    received: int
    """Leases received since the pool was attached: what was granted beyond that is still on its way."""
    demand: Demand


class Opened(msgspec.Struct, tag="opened", array_like=True, frozen=True):
    epoch: int
    pool: int
    held: HeldLease


class Returned(msgspec.Struct, tag="returned", array_like=True, frozen=True):
    epoch: int
    pool: int
    leases: list[Lease]


class Detach(msgspec.Struct, tag="detach", array_like=True, frozen=True):
    epoch: int
    pool: int


FromProcess = Hello | Attach | Report | Opened | Returned | Detach


# -- from the coordinator ------------------------------------------------------------------------------------------


class Welcome(msgspec.Struct, tag="welcome", array_like=True, frozen=True):
    epoch: int


class Unwelcome(msgspec.Struct, tag="unwelcome", array_like=True, frozen=True):
    """The process cannot join: it speaks another version."""

    epoch: int
    reason: str


class Attached(msgspec.Struct, tag="attached", array_like=True, frozen=True):
    """Sent again when the size changes. A ceiling that was set before, perhaps by another coordinator, is void."""

    epoch: int
    pool: int
    size: int


class Refused(msgspec.Struct, tag="refused", array_like=True, frozen=True):
    epoch: int
    pool: int
    reason: str


class Granted(msgspec.Struct, tag="granted", array_like=True, frozen=True):
    epoch: int
    pool: int
    leases: list[Lease]
    leased: int
    """Leases charged to the budget now, by whomever: for error texts."""


class Denied(msgspec.Struct, tag="denied", array_like=True, frozen=True):
    """A warm-up gets no more for now. Waiters are never denied: they are served when a lease comes back."""

    epoch: int
    pool: int


class Ceiling(msgspec.Struct, tag="ceiling", array_like=True, frozen=True):
    """Hold at most so many leases, because somebody else waits; None lifts it."""

    epoch: int
    pool: int
    ceiling: int | None
    leased: int


class Ask(msgspec.Struct, tag="ask", array_like=True, frozen=True):
    """Report at once."""

    epoch: int
    pool: int


FromCoordinator = Welcome | Unwelcome | Attached | Refused | Granted | Denied | Ceiling | Ask

_encoder = msgspec.msgpack.Encoder()
_from_process: msgspec.msgpack.Decoder[FromProcess] = msgspec.msgpack.Decoder(FromProcess)
_from_coordinator: msgspec.msgpack.Decoder[FromCoordinator] = msgspec.msgpack.Decoder(FromCoordinator)


def encode(message: FromProcess | FromCoordinator) -> bytes:
    return _encoder.encode(message)


def decode_from_process(data: bytes) -> FromProcess:
    """Raises msgspec.MsgspecError for anything that is no such message."""
    return _from_process.decode(data)


def decode_from_coordinator(data: bytes) -> FromCoordinator:
    """Raises msgspec.MsgspecError for anything that is no such message."""
    return _from_coordinator.decode(data)
