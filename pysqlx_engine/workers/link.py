"""A process's link to the coordinator: one thread, one socket, for every pool of the process.

The rest of the process never touches the socket. It puts messages into a queue, or marks a pool whose demand changed,
and wakes the thread. Reports are made at the moment of sending, so that however often a demand changes meanwhile, one
message with the latest is sent.

When the coordinator goes away, connections that are open go on working and nothing is sent. As soon as the socket is
connected again, `Hello` states everything that is held, and what was queued before is forgotten: it is in there.
"""

from __future__ import annotations

import collections
import functools
import logging
import os
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress

import msgspec
import zmq
import zmq.utils.monitor

from ..errors import PoolRefusedError
from ..pool.background import at_exit, background
from ..pool.budget import PoolRequest
from .leased_budget import LeasedBudget, Outgoing
from .messages import (
    MAX_MESSAGE,
    VERSION,
    Attach,
    Detach,
    FromCoordinator,
    Hello,
    Returned,
    Unwelcome,
    Welcome,
    decode_from_coordinator,
    encode,
)
from .process import start_time

logger = logging.getLogger("pysqlx_engine")

_CONNECTED = zmq.Event.HANDSHAKE_SUCCEEDED
_DISCONNECTED = zmq.Event.DISCONNECTED


class Link:
    def __init__(self, endpoint: str) -> None:
        self.lock = threading.Lock()
        self._endpoint = endpoint
        self._run = os.environ.get("PYSQLX_RUN_NAME") or os.environ.get("PYSQLX_RUN_ID") or ""
        worker = os.environ.get("PYSQLX_WORKER_ID", "")
        self._worker = int(worker) if worker.isdigit() else None
        self._budgets: dict[int, LeasedBudget] = {}
        self._queue: collections.deque[Outgoing] = collections.deque()
        self._changed: set[LeasedBudget] = set()
        self._epoch: int | None = None
        """The coordinator's epoch, None while there is no coordinator."""
        self._named: set[LeasedBudget] = set()
        """The budgets that the last Hello named."""
        self._failure: Unwelcome | None = None
        """Why the thread has ended, if it should not have."""
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._thread = threading.Thread(target=self._serve, name="pysqlx-link", daemon=True)
        self._thread.start()

    # -- called by pools, from any thread -------------------------------------------------------------------------

    def add(self, budget: LeasedBudget) -> None:
        with self.lock:
            try:
                encode(Attach(0, budget.claim()))
            except UnicodeEncodeError as error:  # here it costs one pool its start, in the thread all of them the link
                raise PoolRefusedError(f"{error.object!a} cannot be told to the coordinator: {error.reason}") from None
            self._budgets[budget.pool_id] = budget
            failure = self._failure
            if self._epoch is not None:  # else the next Hello, or what follows its answer, names it
                self._post_attach(budget)
        self.flush()
        if failure is not None:
            budget.receive(failure)

    def remove(self, budget: LeasedBudget) -> None:
        with self.lock:
            if self._budgets.pop(budget.pool_id, None) is not None:
                self.post(lambda epoch: Detach(epoch, budget.pool_id))
            self._changed.discard(budget)
        self.flush()

    def _post_attach(self, budget: LeasedBudget) -> None:
        claim = budget.claim()
        self.post(lambda epoch: Attach(epoch, claim))

    def post(self, message: Outgoing) -> None:
        self._queue.append(message)

    def flush(self) -> None:
        with suppress(BlockingIOError):  # full: then the thread has reason enough to wake
            os.write(self._wake_write, b"\0")

    def demand_changed(self, budget: LeasedBudget) -> None:
        with self.lock:
            self._changed.add(budget)
            failure = self._failure
        self.flush()
        if failure is not None:
            self.later(0, lambda: self._answer_alone(budget, failure))

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        background().call_later(delay, callback)

    def describe(self) -> str:
        if self._failure is not None:
            return self._failure.reason
        if self._epoch is not None:
            return "coordinator up"
        return f"coordinator not reachable at {self._endpoint}{_barred(self._endpoint)}"

    def label(self, pool: str) -> str:
        return f"pysqlx {self._run} {self._who()} {pool}"[:63]

    def full_name(self, pool: str) -> str:
        return f"{pool} of {self._who()}"

    def _who(self) -> str:
        return f"worker {self._worker}" if self._worker is not None else f"pid {os.getpid()}"

    def stop(self) -> None:
        """Send what is queued, then end the thread."""
        self._stopping = True
        self.flush()
        self._thread.join(2.0)

    # -- the thread -----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            self._talk()
        except Exception as error:
            reason = f"the link to the coordinator at {self._endpoint} has failed: {type(error).__name__}: {error}"
            logger.exception("Pool: %s", reason)
            with self.lock:
                self._epoch, self._failure = None, Unwelcome(0, reason)
                budgets = list(self._budgets.values())
            for budget in budgets:  # nobody will answer them any more
                budget.receive(self._failure)

    def _answer_alone(self, budget: LeasedBudget, failure: Unwelcome) -> None:
        """Without the thread no pool grows. Who waits in one that has connections gets one of those."""
        demand = budget.report(0).demand
        if demand.waiting and not demand.in_use:
            budget.receive(failure)

    def _talk(self) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.ROUTING_ID, f"{os.getpid()}-{secrets.token_hex(8)}".encode())
            socket.setsockopt(zmq.LINGER, 200)
            socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a coordinator that is not there
            # No limit: what comes back to a coordinator that is stopped for a while must not be lost.
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
            socket.setsockopt(zmq.RECONNECT_IVL, 20)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
            with socket.get_monitor_socket(_CONNECTED | _DISCONNECTED) as monitor:
                socket.connect(self._endpoint)
                poller = zmq.Poller()
                for source in (socket, monitor, self._wake_read):
                    poller.register(source, zmq.POLLIN)
                while not self._stopping:
                    ready = dict(poller.poll())
                    if monitor in ready:
                        self._connection_changed(socket, monitor)
                    if self._wake_read in ready:
                        with suppress(BlockingIOError):
                            os.read(self._wake_read, 65536)
                    if socket in ready:
                        self._receive(socket)
                    self._send(socket)
                socket.disable_monitor()

    def _connection_changed(self, socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
        while monitor.poll(0):
            event = zmq.utils.monitor.recv_monitor_message(monitor)["event"]
            if event == _CONNECTED:
                self._say_hello(socket)
            elif event == _DISCONNECTED and self._epoch is not None:
                logger.warning("Pool: the coordinator is gone; open connections go on working, growth waits for it.")
                self._epoch = None

    def _say_hello(self, socket: zmq.Socket[bytes]) -> None:
        with self.lock:
            self._epoch = None
            self._queue.clear()
            self._named = set(self._budgets.values())
            claims = [budget.claim() for budget in self._named]
        restarts = os.environ.get("PYSQLX_WORKER_RESTARTS", "0")
        pid = os.getpid()
        hello = Hello(VERSION, pid, start_time(pid) or 0, self._worker, int(restarts), claims)
        with suppress(zmq.Again):  # gone again: the next connection says hello
            socket.send(encode(hello), zmq.NOBLOCK)

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                message = decode_from_coordinator(socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            except msgspec.MsgspecError as error:
                logger.error("Pool: a message that is none came from the coordinator: %s", error)
                continue
            self._take(message)

    def _take(self, message: FromCoordinator) -> None:
        if isinstance(message, Welcome):
            with self.lock:
                self._epoch = message.epoch
                for budget in self._budgets.values():
                    if budget not in self._named:  # added since the Hello was sent
                        self._post_attach(budget)
                self._changed.update(self._budgets.values())
            return
        if isinstance(message, Unwelcome):
            for budget in list(self._budgets.values()):
                budget.receive(message)
            return
        if message.epoch != self._epoch:
            return  # of a coordinator that is no more
        addressed = self._budgets.get(message.pool)
        if addressed is not None:
            addressed.receive(message)
        else:
            leases = getattr(message, "leases", [])
            if leases:
                with self.lock:
                    self.post(lambda epoch: Returned(epoch, message.pool, leases))

    def _send(self, socket: zmq.Socket[bytes]) -> None:
        """What is queued, then a report of every pool whose demand changed: a pool is attached before it reports."""
        epoch = self._epoch
        if epoch is None:
            return
        with self.lock:
            outgoing, self._queue = self._queue, collections.deque()
            changed, self._changed = self._changed, set()
        outgoing.extend(budget.report for budget in changed)
        for message in outgoing:
            try:
                socket.send(encode(message(epoch)), zmq.NOBLOCK)
            except zmq.Again:
                return  # the connection is lost: the next Hello says it all


def _barred(endpoint: str) -> str:
    """What to add about a coordinator that this user may not reach: its directory is its user's alone."""
    try:
        os.stat(endpoint.removeprefix("ipc://"))
    except PermissionError:
        return f", which user {os.geteuid()} may not enter: run the coordinator and its processes as one user"
    except OSError:
        pass  # it is not there yet, or not on this host
    return ""


@functools.cache
def link_to(endpoint: str) -> Link:
    """This process's link to the coordinator at `endpoint`."""
    link = Link(endpoint)
    at_exit(link.stop, after_pools=True)
    return link


os.register_at_fork(after_in_child=link_to.cache_clear)


def join(endpoint: str, request: PoolRequest) -> LeasedBudget:
    """The budget of a pool in a process that belongs to the coordinator at `endpoint`."""
    return LeasedBudget(link_to(endpoint), request)
