"""Whether a server has let go of a dead process's connection, as the kernel shows it.

When a process is killed the kernel closes its side of every connection, and then waits for the server to close the
other. That wait can be seen from outside, without a database connection and without a password:

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
import ipaddress
import socket
import struct
from collections.abc import Iterator

from .messages import Endpoints

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


_SERVER_CLOSED = {Tcp.TIME_WAIT, Tcp.CLOSE, Tcp.CLOSE_WAIT, Tcp.LAST_ACK, Tcp.CLOSING}


class Verdict(enum.Enum):
    HELD = "held"
    GONE = "gone"
    RESET = "reset"
    """Vanished: gone once the grace time has passed."""


def server_session(address: Endpoints) -> Verdict:
    """What the kernel says of the server's end of the connection that the dead process had at `address`."""
    ours = tcp_state(address)
    if ours is not None:
        return Verdict.GONE if ours in _SERVER_CLOSED else Verdict.HELD
    # Where the server is on this host its own entry is seen too.
    theirs = tcp_state((address[1], address[0]))
    return Verdict.RESET if theirs is None or theirs == Tcp.TIME_WAIT else Verdict.HELD


# What follows asks the kernel by a NETLINK_SOCK_DIAG socket, see sock_diag(7): for one connection that takes some
# microseconds, where /proc/net/tcp lists every connection of the host.

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_DONE, _NLMSG_ERROR = 3, 2
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBBBI")  # family, protocol, extensions, padding, states
_PORTS = struct.Struct("!HH")
_NO_COOKIE = b"\xff" * 8
_ANSWER = struct.Struct("=BBBB")  # family, state, timer, retransmissions


def tcp_state(address: Endpoints) -> Tcp | None:
    """The state of the TCP connection between two endpoints of this network namespace; None when there is none."""
    (local, local_port), (remote, remote_port) = _split(address[0]), _split(address[1])
    family = socket.AF_INET if local.version == 4 else socket.AF_INET6
    for state, _ in _ask(family, 0xFFFFFFFF, _sockid(local, local_port, remote, remote_port), 0):
        return None if state == Tcp.LISTEN else state  # the kernel's next best answer for a server's address
    return None


def half_closed(server_port: int) -> set[Endpoints]:
    """Connections to any server at `server_port` whose client is gone and whose server has not closed yet."""
    states = 1 << Tcp.FIN_WAIT1 | 1 << Tcp.FIN_WAIT2
    found = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        anywhere = ipaddress.ip_address(bytes(4 if family == socket.AF_INET else 16))
        for _, address in _ask(family, states, _sockid(anywhere, 0, anywhere, 0), _NLM_F_DUMP):
            if _split(address[1])[1] == server_port:
                found.add(address)
    return found


def _ask(family: int, states: int, sockid: bytes, flags: int) -> Iterator[tuple[Tcp, Endpoints]]:
    """The connections that the kernel names. None at all where it does not answer such questions."""
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, states) + sockid
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | flags, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
            netlink.settimeout(1.0)
            netlink.send(header + body)
            while True:
                answer = netlink.recv(65536)
                at = 0
                while at < len(answer):
                    length, kind, *_ = _HEADER.unpack_from(answer, at)
                    if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                        return
                    yield _parse(answer[at + _HEADER.size : at + length])
                    at += (length + 3) & ~3
                if not flags:
                    return
    except OSError:
        return


def _parse(message: bytes) -> tuple[Tcp, Endpoints]:
    family, state, _, _ = _ANSWER.unpack_from(message)
    local_port, remote_port = _PORTS.unpack_from(message, _ANSWER.size)
    start = _ANSWER.size + _PORTS.size
    size = 4 if family == socket.AF_INET else 16
    local, remote = message[start : start + size], message[start + 16 : start + 16 + size]
    return Tcp(state), (_endpoint(local, local_port), _endpoint(remote, remote_port))


def _sockid(local: Address, local_port: int, remote: Address, remote_port: int) -> bytes:
    ports = _PORTS.pack(local_port, remote_port)
    return ports + local.packed.ljust(16, b"\0") + remote.packed.ljust(16, b"\0") + bytes(4) + _NO_COOKIE


def _split(endpoint: str) -> tuple[Address, int]:
    host, _, port = endpoint.rpartition(":")
    return ipaddress.ip_address(host), int(port)


def _endpoint(packed: bytes, port: int) -> str:
    return f"{ipaddress.ip_address(packed)}:{port}"
