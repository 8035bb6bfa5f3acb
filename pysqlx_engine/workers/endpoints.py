"""Addresses of coordinators: where one may listen, and which one may be joined.

The rule: what leaves this machine needs keys. Without them only loopback is listened on and connected to, and what a
name stands for is looked up once, here: what was checked is what is used.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from ..errors import SettingsError
from ..system import has
from .keys import (
    CLIENT_FILE,
    COORDINATOR_FILE,
    VARIABLE,
    ClientKeys,
    CoordinatorKeys,
    client_keys,
    coordinator_keys,
    write_keys,
)
from .rundir import RunDirectory

_KEYGEN = f"make keys with pysqlx-ctl keygen and name them in {VARIABLE}"


@dataclass(frozen=True)
class Listening:
    """Where a coordinator listens, and whom it lets in."""

    endpoint: str
    """As ZeroMQ takes it."""
    ipv6: bool
    keys: CoordinatorKeys | None


@dataclass(frozen=True)
class Joining:
    """Which coordinator is joined."""

    endpoint: str
    """As ZeroMQ takes it."""
    ipv6: bool
    keys: ClientKeys | None


@dataclass(frozen=True)
class Local:
    """Where the processes of this host, and this user, join a run's coordinator."""

    address: str
    listening: Listening | None = None
    """None: at a socket in the run's directory, and whoever may open it may join."""
    client_keys: str | None = None
    """The file with the keys that it takes elsewhere."""

    @property
    def environment(self) -> dict[str, str]:
        """What these processes are told."""
        keys = {} if self.client_keys is None else {VARIABLE: self.client_keys}
        return {"PYSQLX_COORDINATOR": self.address, **keys}


def local(directory: RunDirectory) -> Local:
    """For the coordinator, and, once it listens, for who starts processes. Raises OSError for what cannot be written.

    Without ipc:// anybody on this host may connect to the port, and perhaps take it while no coordinator runs: keys in
    the directory, which only our user can enter, tell who may join, and whom. Both stay as long as the directory: a
    coordinator that was started again has to be where its members look for it.
    """
    if has("ipc"):
        return Local(f"ipc://{directory.socket}")
    if not directory.address.exists():
        for name in (COORDINATOR_FILE, CLIENT_FILE):
            (directory.path / name).unlink(missing_ok=True)
        write_keys(directory.path)
        with socket.socket() as port:
            port.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{port.getsockname()[1]}"
        written = directory.path / "address.new"
        written.write_text(address)
        written.replace(directory.address)
    address = directory.address.read_text()
    return Local(address, listening(address, str(directory.path / COORDINATOR_FILE)), str(directory.path / CLIENT_FILE))


def listening(bind: str, curve_keys: str | None) -> Listening:
    """What the settings of a coordinator mean. Raises SettingsError for what is not safe, or not possible."""
    keys = coordinator_keys(curve_keys) if curve_keys is not None else None
    host, port = _split(bind)
    if host == "*" or _is_interface(host):
        if keys is None:
            raise SettingsError(
                f"{bind} would be reached from other hosts, and without keys by anybody there: {_KEYGEN}, or listen on "
                "127.0.0.1"
            )
        return Listening(f"tcp://{host}:{port}", False, keys)
    addresses = _look_up(host)
    if not addresses:
        raise SettingsError(f"{bind}: {host} is no address, no name of one and no interface of this machine")
    if keys is None and not all(address.is_loopback for address in addresses):
        other = next(address for address in addresses if not address.is_loopback)
        what = f"{host} is {other}, which" if str(other) != host else f"{bind}"
        raise SettingsError(
            f"{what} may be reached from other hosts, and without keys by anybody there: {_KEYGEN}, or listen on "
            "127.0.0.1"
        )
    return Listening(_endpoint(addresses[0], port), addresses[0].version == 6, keys)


def joining(coordinator: str, curve_keys: str | None) -> Joining:
    """What the settings of a process that joins mean. Raises SettingsError for what is not safe."""
    if not coordinator.startswith("tcp://"):
        return Joining(coordinator, False, None)  # whoever may open the socket may join
    keys = client_keys(curve_keys) if curve_keys is not None else None
    host, port = _split(coordinator)
    addresses = _look_up(host)
    if keys is None:
        if not addresses or not all(address.is_loopback for address in addresses):
            raise SettingsError(
                f"PYSQLX_COORDINATOR={coordinator} is not loopback, and without keys anybody on the way could take the "
                f"coordinator's place: {_KEYGEN}"
            )
        return Joining(_endpoint(addresses[0], port), addresses[0].version == 6, None)
    # A name is looked up anew with each connect: it may move, and whoever answers there has to have the keys.
    return Joining(coordinator, bool(addresses) and addresses[0].version == 6, keys)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _endpoint(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> str:
    return f"tcp://[{address}]:{port}" if address.version == 6 else f"tcp://{address}:{port}"


def _is_interface(name: str) -> bool:
    return any(name == known for _, known in socket.if_nameindex())


def _look_up(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses of `host`, IPv4 first: `localhost` is both, and 127.0.0.1 is what everybody has."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    addresses = [ipaddress.ip_address(str(entry[4][0])) for entry in found]
    return sorted(addresses, key=lambda address: address.version)
