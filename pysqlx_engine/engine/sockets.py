"""What the kernel knows of TCP connections: which one is ours, and whether a server has let go of one that is closed.

When a process is killed, or the driver gives a connection up, the kernel closes our side of it and then waits for the
server to close the other. That wait can be seen, also from outside, without a database connection and without a
password:

    FIN_WAIT1, FIN_WAIT2   our side is closed, the server's is not: the session still counts
    TIME_WAIT, CLOSING,    the server has closed its side too: the session is gone
    LAST_ACK, CLOSE_WAIT
    not in the table       the server sent something and was answered with a reset, or it was reset from the start
                           (the process was killed with an answer unread)

A server that sends has ended its query, and finds the connection broken at its next look: a moment later the session is
gone. A reset from the start tells the server as well, but in mid-query it notices only when it looks.
"""

from __future__ import annotations

import enum
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..system import NO_DESCRIPTORS, has

Endpoints = tuple[str, str]
"""The two ends of a TCP connection, local then remote, as "host:port"."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

ANSWERED_GRACE = 0.02
"""Seconds that a session stays charged after its connection, seen half-closed before, vanished."""
CHECKED_GRACE = 0.04
"""The same for a connection that was never seen half-closed, on a server that looks every 20 ms whether its client
still lives (PostgreSQL from version 14 on)."""
RESET_GRACE = 0.5
"""The same on a server that finds out when it writes the answer."""


class Tcp(enum.IntEnum):
    """The kernel's numbers for the states of a TCP connection."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12


_HALF_CLOSED = frozenset({Tcp.FIN_WAIT1, Tcp.FIN_WAIT2})
_CONNECTED = _HALF_CLOSED | {Tcp.SYN_SENT, Tcp.ESTABLISHED, Tcp.CLOSE_WAIT}
_SERVER_CLOSED = {Tcp.TIME_WAIT, Tcp.CLOSE, Tcp.CLOSE_WAIT, Tcp.LAST_ACK, Tcp.CLOSING}


class Verdict(enum.Enum):
    HELD = "held"
    GONE = "gone"
    RESET = "reset"
    """Vanished: gone once the grace time has passed."""


def server_session(address: Endpoints) -> Verdict:
    """What the kernel says of the server's end of the connection that the dead process had at `address`. Raises OSError
    where no descriptor is left to ask it with."""
    ours = tcp_state(address)
    if ours is not None:
        return Verdict.GONE if ours in _SERVER_CLOSED else Verdict.HELD
    # Where the server is on this host its own entry is seen too.
    theirs = tcp_state((address[1], address[0]))
    return Verdict.RESET if theirs is None or theirs == Tcp.TIME_WAIT else Verdict.HELD


# What follows asks the kernel by a NETLINK_SOCK_DIAG socket, see sock_diag(7): for one connection that takes some
# microseconds, for all of the host's some hundred, where /proc/net/tcp takes ten times as long.

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_DONE, _NLMSG_ERROR = 3, 2
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ERROR = struct.Struct("=i")
_REQUEST = struct.Struct("=BBBBI")  # family, protocol, extensions, padding, states
_PORTS = struct.Struct("!HH")
_NO_COOKIE = b"\xff" * 8
_ANSWER = struct.Struct("=BBBB")  # family, state, timer, retransmissions
_INODE = struct.Struct("=I")
_INODE_AT = 68


class Connection(NamedTuple):
    """One TCP connection of this network namespace, seen from the end that is called local."""

    state: Tcp
    address: Endpoints
    inode: int
    """The socket's number, 0 when no process has it open any more."""

    @property
    def local_port(self) -> int:
        return _split(self.address[0])[1]

    @property
    def remote(self) -> Address:
        return _split(self.address[1])[0]


def tcp_state(address: Endpoints) -> Tcp | None:
    """The state of the TCP connection between two endpoints of this network namespace; None when there is none, and
    where the kernel does not answer such questions. Raises OSError where no descriptor is left to ask it with."""
    try:
        (local, local_port), (remote, remote_port) = _split(address[0]), _split(address[1])
        for found in _ask(_family(local), 0xFFFFFFFF, _sockid(local, local_port, remote, remote_port), 0):
            # A listening socket is the kernel's next best answer for a server's address.
            return None if found.state == Tcp.LISTEN else found.state
    except OSError as error:
        if error.errno in NO_DESCRIPTORS:
            raise
    except (ValueError, struct.error):  # what a process says of its connection need not be an address
        pass
    return None


def connections_to(server_port: int) -> list[Connection]:
    """Every connection to any server at `server_port`, whoever's it is, unless its server has closed it already."""
    try:
        return _connections(server_port, _CONNECTED)
    except OSError:
        return []


def half_closed(server_port: int) -> set[Endpoints]:
    """Connections to any server at `server_port` whose client is gone and whose server has not closed yet. Raises
    OSError where no descriptor is left to ask with: none that is seen is not none."""
    return {found.address for found in _connections(server_port, _HALF_CLOSED)}


def _connections(server_port: int, states: frozenset[Tcp]) -> list[Connection]:
    try:
        return list(_ask_for_all(server_port, states))
    except OSError as error:  # refused, as in some containers
        if error.errno in NO_DESCRIPTORS:
            raise
        return [found for found in _listed() if found.state in states and _split(found.address[1])[1] == server_port]


def _ask_for_all(server_port: int, states: frozenset[Tcp]) -> Iterator[Connection]:
    mask = sum(1 << state for state in states)
    for anywhere in (ipaddress.IPv4Address(0), ipaddress.IPv6Address(0)):
        yield from _ask(_family(anywhere), mask, _sockid(anywhere, 0, anywhere, server_port), _NLM_F_DUMP)


def _ask(family: int, states: int, sockid: bytes, flags: int) -> Iterator[Connection]:
    """The connections that the kernel names. Raises OSError where it does not answer such questions."""
    if not has("proc"):
        raise OSError(errno.EAFNOSUPPORT, "this system does not tell")
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, states) + sockid
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(1.0)
        netlink.send(header + body)
        while True:
            answer = netlink.recv(65536)
            at = 0
            while at < len(answer):
                length, kind, *_ = _HEADER.unpack_from(answer, at)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    (number,) = _ERROR.unpack_from(answer, at + _HEADER.size)
                    if -number == errno.ENOENT:
                        return  # there is no such connection
                    raise OSError(-number, os.strerror(-number))
                yield _parse(answer[at + _HEADER.size : at + length])
                at += (length + 3) & ~3
            if not flags:
                return


def _parse(message: bytes) -> Connection:
    family, state, _, _ = _ANSWER.unpack_from(message)
    local_port, remote_port = _PORTS.unpack_from(message, _ANSWER.size)
    start = _ANSWER.size + _PORTS.size
    size = 4 if family == socket.AF_INET else 16
    local, remote = message[start : start + size], message[start + 16 : start + 16 + size]
    (inode,) = _INODE.unpack_from(message, _INODE_AT)
    return Connection(Tcp(state), (_endpoint(local, local_port), _endpoint(remote, remote_port)), inode)


def _sockid(local: Address, local_port: int, remote: Address, remote_port: int) -> bytes:
    ports = _PORTS.pack(local_port, remote_port)
    return ports + local.packed.ljust(16, b"\0") + remote.packed.ljust(16, b"\0") + bytes(4) + _NO_COOKIE


def _listed() -> Iterator[Connection]:
    """Every TCP connection of this network namespace as /proc lists them; none at all where there is no /proc."""
    for name in ("tcp", "tcp6") if has("proc") else ():
        try:
            lines = Path("/proc/self/net", name).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, remote, state, _, _, _, _, _, inode, *_ = line.split()
            yield Connection(Tcp(int(state, 16)), (_from_hex(local), _from_hex(remote)), int(inode))


def _from_hex(endpoint: str) -> str:
    address, _, port = endpoint.partition(":")
    # The address is printed as 32-bit words in the machine's byte order.
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    return _endpoint(struct.pack(f"={len(words)}I", *words), int(port, 16))


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _split(endpoint: str) -> tuple[Address, int]:
    host, _, port = endpoint.rpartition(":")
    return ipaddress.ip_address(host), int(port)


def _endpoint(packed: bytes, port: int) -> str:
    return f"{ipaddress.ip_address(packed)}:{port}"
