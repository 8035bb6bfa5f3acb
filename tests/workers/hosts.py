"""Other hosts for tests: network namespaces, each with one link to the coordinator and another one to the database.

To the kernel a process in one of them is as one of another machine: it has its own addresses and connections, and what
says so in `Hello` differs from ours. A link is cut by taking its end off the bridge: packets are lost both ways, and
neither side is told.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from tests.servers import PostgresServer

NETWORK = "198.18.0.0/15"
"""For tests of networks (RFC 2544): nobody's real addresses."""


class NoNamespacesError(Exception):
    """This system does not let us make network namespaces."""


@dataclass(frozen=True)
class Wire:
    """A bridge in our own namespace, where we have `address`."""

    bridge: str
    address: ipaddress.IPv4Interface

    @property
    def ip(self) -> str:
        return str(self.address.ip)


@dataclass(frozen=True)
class Host:
    """A network namespace. `talk` and `data` are its links' ends at the bridges."""

    namespace: str
    talk: str
    data: str

    @property
    def command(self) -> list[str]:
        """What to put in front of a command that is to run there."""
        return ["ip", "netns", "exec", self.namespace]

    def cut(self, *links: str) -> None:
        for link in links:
            _ip("link", "set", "dev", link, "nomaster")

    def heal(self, *links: str) -> None:
        for link in links:
            _ip("link", "set", "dev", link, "master", link.partition("-")[0])


@dataclass(frozen=True)
class Site:
    """Our own namespace is the coordinator's host, and the database server's."""

    talk: Wire
    data: Wire
    hosts: list[Host]
    server: PostgresServer

    def uri(self, database: str) -> str:
        """The database as all of them name it."""
        return f"postgresql://postgres@{self.data.ip}:{self.server.port}/{database}"


@contextlib.contextmanager
def site(hosts: int) -> Iterator[Site]:
    """A coordinator's host with a database server, and others. Raises NoNamespacesError where that cannot be had."""
    number = os.getpid() % 8000
    base = ipaddress.IPv4Network(NETWORK)[number * 16]
    talk = Wire(f"pxt{number}", ipaddress.IPv4Interface((base + 1, 29)))
    data = Wire(f"pxd{number}", ipaddress.IPv4Interface((base + 9, 29)))
    with contextlib.ExitStack() as undo:
        made = []
        try:
            for wire in (talk, data):
                # By itself a bridge has the hardware address of one of its ends, and that one would still hear when it
                # is taken off.
                _ip("link", "add", wire.bridge, "address", "02:00:00:00:00:01", "type", "bridge")
                undo.callback(_ip, "link", "del", wire.bridge)
                _ip("addr", "add", str(wire.address), "dev", wire.bridge)
                _ip("link", "set", wire.bridge, "up")
            for index in range(hosts):
                made.append(_host(f"px{number}-{index}", index, talk, data, undo))
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            raise NoNamespacesError(f"no network namespaces can be made here: {said.strip()}") from None
        server = PostgresServer(listen_addresses=f"127.0.0.1,{data.ip}")
        with (server.directory / "data/pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {NETWORK} trust\n")
        with server:
            yield Site(talk, data, made, server)


def _host(namespace: str, index: int, talk: Wire, data: Wire, undo: contextlib.ExitStack) -> Host:
    _ip("netns", "add", namespace)
    undo.callback(_ip, "netns", "del", namespace)  # its ends of the links go with it
    _ip("-n", namespace, "link", "set", "lo", "up")
    ends = []
    for wire in (talk, data):
        end = f"{wire.bridge}-{index}"
        _ip("link", "add", end, "type", "veth", "peer", "name", "eth" + end[2], "netns", namespace)
        _ip("link", "set", end, "master", wire.bridge, "up")
        address = wire.address.ip + 1 + index
        _ip("-n", namespace, "addr", "add", f"{address}/29", "dev", "eth" + end[2])
        _ip("-n", namespace, "link", "set", "eth" + end[2], "up")
        ends.append(end)
    return Host(namespace, *ends)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)
