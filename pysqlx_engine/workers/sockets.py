"""Whether a server has let go of a dead process's connection, as the kernel's socket table shows it.

When a process is killed the kernel closes its side of every connection, and then waits for the server to close the
other. That wait can be seen from outside, without a database connection and without a password:

    FIN_WAIT1, FIN_WAIT2   our side is closed, the server's is not: the session still counts
    TIME_WAIT, CLOSING,    the server has closed its side too: the session is gone
    LAST_ACK, CLOSE_WAIT
    not in the table       either gone some time ago, or our side was reset (it was killed with an answer unread)

A reset tells the server at once, but it notices only when it looks, so then the server's own entry (where the server is
on this host) and a grace time decide.
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from pathlib import Path

from .messages import Endpoints

RESET_GRACE = 0.5
"""Seconds that a session stays charged after its connection vanished from the table without a proper end. PostgreSQL
looks every 20 ms whether its client still lives, MySQL when it writes the answer."""


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


_SERVER_CLOSED = {Tcp.TIME_WAIT, Tcp.CLOSE, Tcp.CLOSE_WAIT, Tcp.LAST_ACK, Tcp.CLOSING}


class Verdict(enum.Enum):
    HELD = "held"
    GONE = "gone"
    RESET = "reset"
    """Vanished: gone once `RESET_GRACE` has passed."""


SocketTable = dict[Endpoints, Tcp]


def server_session(address: Endpoints, table: SocketTable) -> Verdict:
    """What the table says of the server's end of the connection that the dead process had at `address`."""
    ours = table.get(address)
    if ours is not None:
        return Verdict.GONE if ours in _SERVER_CLOSED else Verdict.HELD
    theirs = table.get((address[1], address[0]))
    return Verdict.HELD if theirs is not None and theirs != Tcp.TIME_WAIT else Verdict.RESET


def half_closed(server_port: int, table: SocketTable) -> set[Endpoints]:
    """Connections to any server at `server_port` whose client is gone and whose server has not closed yet."""
    return {
        address
        for address, state in table.items()
        if state in {Tcp.FIN_WAIT1, Tcp.FIN_WAIT2} and address[1].rpartition(":")[2] == str(server_port)
    }


def read_socket_table() -> SocketTable:
    """Every TCP connection of this host's network namespace. Empty where there is no /proc."""
    table: SocketTable = {}
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, remote, state, *_ = line.split(maxsplit=4)
            table[_endpoint(local), _endpoint(remote)] = Tcp(int(state, 16)) if int(state, 16) < 12 else Tcp.SYN_RECV
    return table


def _endpoint(text: str) -> str:
    """The kernel's "0100007F:1F90" as "127.0.0.1:8080"."""
    address, port = text.split(":")
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return f"{ipaddress.ip_address(packed)}:{int(port, 16)}"
