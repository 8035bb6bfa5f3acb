"""A process's link to the coordinator: one thread, one socket, for every pool of the process.

The rest of the process never touches the socket. What has to be said, and what is made of the answers, is decided in
`membership`; here are the thread, the socket and the clock.
"""

from __future__ import annotations

import functools
import os
import random
import secrets
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec
import zmq
import zmq.utils.monitor

from ..log_config import part
from ..pool.background import at_exit, background
from ..pool.budget import PoolRequest
from ..system import after_fork_in_child, host_identity, nonblocking_pipe, start_time
from .endpoints import joining
from .keys import VARIABLE
from .leased_budget import LeasedBudget
from .membership import Identity, Membership
from .messages import MAX_MESSAGE, decode_from_coordinator, encode
from .rates import LogBound

logger = part("pool")

_CONNECTED = zmq.Event.HANDSHAKE_SUCCEEDED
_DISCONNECTED = zmq.Event.DISCONNECTED
_FAILED = zmq.Event.HANDSHAKE_FAILED_AUTH | zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
CONNECT_TIMEOUT = 2_000
"""Milliseconds for one attempt to connect to another host: the kernel's own grow longer and longer."""
HEARTBEAT = (1_000, 4_000)
"""As the coordinator's: milliseconds between two signs of life of a connection over tcp://, and without any before it
counts as broken."""
AGAIN = 0.5
"""Seconds before another attempt, where somebody was there and it did not come to a connection, or the link failed."""
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while the machine is suspended, where there is one: a term does, too."""


class Link(Membership):
    def __init__(self, address: str, curve_keys: str | None = None) -> None:
        """`address` is the coordinator's, `curve_keys` the file with our keys. Raises SettingsError for what is not
        safe, or cannot be read."""
        self._where = joining(address, curve_keys)
        super().__init__(_identity(), random.Random())  # not the module's: what users seed is theirs
        self._address = address
        self._unread = LogBound()
        self._again_at: float | None = None
        """When to try another socket, because this one is of no more use."""
        self._stopping = False
        self._woken = False
        """Whether the thread was told to look, and has not begun to."""
        self._wake_read, self._wake_write = nonblocking_pipe()
        self._thread = threading.Thread(target=self._serve, name="pysqlx-link", daemon=True)
        self._thread.start()

    # -- called by pools, from any thread -------------------------------------------------------------------------

    def flush(self) -> None:
        if self._woken:
            return  # it has not looked yet, and will find what was posted
        is_own = threading.get_ident() == self._thread.ident
        self._woken = True  # nothing is called between here and the write: a signal's handler could raise there
        if not is_own:  # our own thread looks again by itself
            os.write(self._wake_write, b"\0")

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        background().call_later(delay, callback)

    def now(self) -> float:
        return time.clock_gettime(_CLOCK)

    @property
    def where(self) -> str:
        return self._address + ("" if self.joined else _barred(self._address))

    def stop(self) -> None:
        """Send what is queued, then end the thread."""
        self._stopping = True
        os.write(self._wake_write, b"\0")
        self._thread.join(2.0)

    # -- the thread -----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        failures = LogBound()
        while not self._stopping:
            try:
                self.outgoing()  # without a connection nothing is sent, but the term may be over
                self._talk()
            except Exception as error:
                reason = f"the link to the coordinator at {self._address} has failed: {type(error).__name__}: {error}"
                line = failures.line(reason, self.now())
                if line is not None:
                    logger.exception("Pool: %s", line)
                self.disconnected()
                self.failed(reason)
                self._again_at = self.now() + AGAIN  # it may be cured by then: no descriptors were left, perhaps
                self._pause_between()

    def _talk(self) -> None:
        with zmq.Context() as context:
            while not self._stopping:
                self._talk_by(context)

    def _talk_by(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Talk by one socket, until it is of no more use. ZeroMQ connects anew whenever a connection is lost, but gives
        up for ever when the other side has refused us, or speaks something else: it may be another one tomorrow."""
        with context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 200)
            socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a coordinator that is not there
            # No limit: what comes back to a coordinator that is stopped for a while must not be lost.
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
            socket.setsockopt(zmq.RECONNECT_IVL, 20)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
            self._set_up_for_hosts(socket)
            with socket.get_monitor_socket(_CONNECTED | _DISCONNECTED | _FAILED) as monitor:
                socket.connect(self._where.endpoint)
                poller = zmq.Poller()
                for source in (socket, monitor, self._wake_read):
                    poller.register(source, zmq.POLLIN)
                while not self._stopping and self._again_at is None:
                    ready = dict(poller.poll(self._timeout()))
                    if monitor in ready:
                        self._connection_changed(monitor, socket)
                    if self._wake_read in ready:
                        with suppress(BlockingIOError):
                            os.read(self._wake_read, 65536)
                    if socket in ready:
                        self._receive_all(socket)
                    self._woken = False  # before it looks: what is posted from here on wakes it again
                    self._send(socket)
                if self._stopping:
                    self._send(socket)  # what was posted since the last look, but before `stop`
                socket.disable_monitor()
        if not self._stopping:  # else it is us who leave: the coordinator is not gone
            self.disconnected()
            self._pause_between()

    def _set_up_for_hosts(self, socket: zmq.Socket[bytes]) -> None:
        where = self._where
        if not where.endpoint.startswith("tcp://"):
            return
        socket.setsockopt(zmq.IPV6, where.ipv6)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT[0])
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT[1])
        if where.keys is not None:
            socket.setsockopt(zmq.CURVE_SERVERKEY, where.keys.coordinator)
            socket.setsockopt(zmq.CURVE_PUBLICKEY, where.keys.public)
            socket.setsockopt(zmq.CURVE_SECRETKEY, where.keys.secret)

    def _pause_between(self) -> None:
        """Until it is time for another socket, or we are told to stop."""
        poll = select.poll()  # not select(), which takes no descriptor above 1023
        poll.register(self._wake_read, select.POLLIN)
        while self._again_at is not None and not self._stopping:
            left = self._again_at - self.now()
            if left <= 0:
                break
            poll.poll(left * 1000)
            with suppress(BlockingIOError):
                os.read(self._wake_read, 65536)
        self._again_at = None

    def _timeout(self) -> int | None:
        if self._woken:
            return 0
        due = self.due()
        return None if due is None else max(0, round((due - self.now()) * 1000 + 0.5))

    def _connection_changed(self, monitor: zmq.Socket[bytes], socket: zmq.Socket[bytes]) -> None:
        while monitor.poll(0):
            event = zmq.utils.monitor.recv_monitor_message(monitor)["event"]
            if event == _CONNECTED:
                self.obstacle = None
                self.connected()
            elif event == _DISCONNECTED:
                self.disconnected()
                # ZeroMQ connects again by itself, but not where the other side broke its protocol.
                with suppress(zmq.ZMQError):
                    socket.disconnect(self._where.endpoint)
                socket.connect(self._where.endpoint)
            elif event & _FAILED:
                self._failed_at_the_door(event)

    def _failed_at_the_door(self, event: int) -> None:
        """There is somebody at the coordinator's address, and it did not come to a connection."""
        keys, obstacle = self._where.keys, None
        if event == zmq.Event.HANDSHAKE_FAILED_AUTH and keys is not None:
            obstacle = f"refused this process's keys: it knows no client-public of {VARIABLE}={keys.path}"
        elif event == zmq.Event.HANDSHAKE_FAILED_PROTOCOL and keys is None:
            obstacle = f"refused this process, which has no keys: name them in {VARIABLE}"
        elif event == zmq.Event.HANDSHAKE_FAILED_PROTOCOL:
            obstacle = f"does not use keys, and this process does ({VARIABLE}): start it with keys"
        elif keys is not None:
            obstacle = (
                f"did not answer to this process's keys: has it others than {VARIABLE}={keys.path} names, or none?"
            )
        elif self._where.endpoint.startswith("tcp://"):
            obstacle = f"closed the connection: does it want keys? Name them in {VARIABLE}"
        self.obstacle = obstacle
        if event != zmq.Event.HANDSHAKE_FAILED_NO_DETAIL:  # after that one ZeroMQ tries again by itself
            self._again_at = self.now() + AGAIN

    def _receive_all(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                (data,) = frames
                message = decode_from_coordinator(data)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                text = f"a message that is none came from the coordinator: {str(error)[:200]}"
                line = self._unread.line(text, self.now())
                if line is not None:
                    logger.error("Pool: %s", line)
                continue
            self.receive(message)

    def _send(self, socket: zmq.Socket[bytes]) -> None:
        for message in self.outgoing():
            try:
                socket.send(encode(message), zmq.NOBLOCK)
            except zmq.Again:
                return  # the connection is lost: the next Hello says it all


def _identity() -> Identity:
    pid = os.getpid()
    worker = os.environ.get("PYSQLX_WORKER_ID", "")
    restarts = os.environ.get("PYSQLX_WORKER_RESTARTS", "")
    return Identity(
        pid=pid,
        started=start_time(pid) or 0,
        host=host_identity(),
        name=f"{pid}-{secrets.token_hex(8)}",
        worker=int(worker) if worker.isdigit() else None,
        restarts=int(restarts) if restarts.isdigit() else 0,
        run=os.environ.get("PYSQLX_RUN_NAME") or os.environ.get("PYSQLX_RUN_ID") or "",
    )


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
def link_to(address: str, curve_keys: str | None) -> Link:
    """This process's link to the coordinator at `address`."""
    link = Link(address, curve_keys)
    at_exit(link.stop, after_pools=True)
    return link


after_fork_in_child(link_to.cache_clear)


def join(address: str, curve_keys: str | None, request: PoolRequest) -> LeasedBudget:
    """The budget of a pool in a process that belongs to the coordinator at `address`. Raises SettingsError where it
    cannot be joined safely."""
    return LeasedBudget(link_to(address, curve_keys), request)
