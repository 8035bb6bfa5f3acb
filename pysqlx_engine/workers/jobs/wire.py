"""What a dispatcher process and its workers say to each other, over a Unix socket in the run's directory.

A stream, not ZeroMQ: the end of a worker is the end of its stream, after the last byte that it has sent, and so comes
in order with its reports. All of it is msgpack, each message with its length in front.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import msgspec

from .attempts import Report
from .periodic import Schedule
from .store import Claim, Claimed, Progress

_LENGTH = struct.Struct("!I")
LONGEST = 1 << 30
"""Bytes of a message."""


class Join(msgspec.Struct, frozen=True, tag="join"):
    """A worker is there."""

    name: str
    pid: int
    slots: int
    tasks: dict[str, bool]
    """Its tasks, and whether their handlers use connections."""
    schedules: list[Schedule]
    """Its periodic tasks."""
    running: list[Claimed]
    """What it was given by a dispatcher before."""
    reports: list[Report]
    """What it does not know to be written."""


class Reports(msgspec.Struct, frozen=True, tag="reports"):
    reports: list[Report]


class HowFar(msgspec.Struct, frozen=True, tag="progress"):
    progress: list[Progress]


class Retire(msgspec.Struct, frozen=True, tag="retire"):
    """The worker takes no more jobs."""


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """The last message of a worker that has ended, and reported, all that it ran. What has come since has not begun."""


class Run(msgspec.Struct, frozen=True, tag="run"):
    jobs: list[Claimed]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    jobs: list[Claimed]


class Written(msgspec.Struct, frozen=True, tag="written"):
    """What was reported of these is in the database: the worker need not keep it any more."""

    claims: list[Claim]


FromWorker = Join | Reports | HowFar | Retire | Leave
ToWorker = Run | Cancel | Written

M = TypeVar("M")


class Channel(asyncio.Protocol, Generic[M]):
    """One end of a stream of messages of type `M`. The callbacks are called in the event loop."""

    def __init__(
        self, kind: object, heard: Callable[[Channel[M], M], None], lost: Callable[[Channel[M]], None]
    ) -> None:
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(kind)
        self._encoder = msgspec.msgpack.Encoder()
        self._heard, self._lost = heard, lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        begin, end = 0, len(buffer)
        while end - begin >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, begin)
            if length > LONGEST:
                self.close()
                return
            if end - begin - _LENGTH.size < length:
                break
            begin += _LENGTH.size
            try:
                message = self._decoder.decode(memoryview(buffer)[begin : begin + length])
            except (msgspec.DecodeError, RecursionError):  # no one of ours speaks so: it may go on elsewhere
                self.close()
                return
            begin += length
            self._heard(self, message)
        del buffer[:begin]

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._lost(self)

    def send(self, message: FromWorker | ToWorker) -> None:
        """Queue a message. It is lost with the connection."""
        if self._transport is not None:
            data = self._encoder.encode(message)
            self._transport.write(_LENGTH.pack(len(data)) + data)

    def close(self) -> None:
        """Send what is queued, and end the stream."""
        if self._transport is not None:
            self._transport.close()

    @property
    def open(self) -> bool:
        return self._transport is not None
