"""What the wire looks like, for links that are only simulated. The one place here that knows the protocol."""

from __future__ import annotations

import zmq

from pysqlx_engine.pool.budget import Demand, Lease
from pysqlx_engine.workers.messages import (
    VERSION,
    Attached,
    FromCoordinator,
    FromProcess,
    Granted,
    Hello,
    PoolClaim,
    Refused,
    Report,
    Unwelcome,
    Welcome,
    decode_from_coordinator,
    encode,
)
from pysqlx_engine.workers.process import start_time

POOL = 1


class SimulatedLink:
    """A process with one pool that wants `leases` and then keeps them. Its owner polls `socket` and calls `receive`.

    `pid` has to be a living process that nobody else is simulated for: the coordinator watches it.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, pid: int, leases: int) -> None:
        self.wanted = leases
        self.leases: list[Lease] = []
        self._epoch = 0
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.ROUTING_ID, f"{pid}-simulated".encode())
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        claim = PoolClaim(POOL, f"pool of pid {pid}", "postgresql://127.0.0.1:1/nothing", 0, 1, False)
        self._send(Hello(VERSION, pid, start_time(pid) or 0, None, 0, [claim]))

    def receive(self) -> None:
        while True:
            try:
                message = decode_from_coordinator(self.socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            self._take(message)

    def _take(self, message: FromCoordinator) -> None:
        match message:
            case Welcome(epoch=epoch):
                self._epoch = epoch
            case Granted(leases=leases):
                self.leases += leases
                if len(self.leases) == self.wanted:
                    self._report()  # everything that it has is in use now, and nobody waits
            case Unwelcome(reason=reason) | Refused(reason=reason):
                raise RuntimeError(reason)
            case Attached():
                self._report()
            case _:  # a ceiling, or a question
                self._report()

    def _report(self) -> None:
        in_use = len(self.leases)
        waiting = self.wanted - in_use
        self._send(Report(self._epoch, POOL, in_use, Demand(in_use, 0, in_use, waiting, waiting)))

    def _send(self, message: FromProcess) -> None:
        self.socket.send(encode(message))
