"""Keys for connections over tcp://: CURVE of ZeroMQ, which tells each side who the other is, and encrypts.

`pysqlx-ctl keygen` writes two files. Each holds all that its side needs, so that one setting, PYSQLX_CURVE_KEYS, names
it: `coordinator.keys` has its own pair and the public keys of the clients that it lets in, `client.keys` a client's
pair and the coordinator's public key.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import SettingsError

VARIABLE = "PYSQLX_CURVE_KEYS"
COORDINATOR_FILE = "coordinator.keys"
CLIENT_FILE = "client.keys"

_KEY = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
"""Z85, as ZeroMQ writes keys."""
_NAMES = (b"coordinator-public", b"coordinator-secret", b"client-public", b"client-secret")

_COORDINATOR_TEXT = """\
# The coordinator's keys. Keep this file on the coordinator's host, readable by its user only (mode 0600), and name it
# there in {variable}, or with pysqlx-run --curve-keys.
#
# A client may join if its public key stands here; there may be several lines of client-public.
coordinator-public {coordinator_public}
coordinator-secret {coordinator_secret}
client-public {client_public}
"""
_CLIENT_TEXT = """\
# A client's keys. Copy this file, over a safe way, to each host whose processes join the coordinator, readable by their
# user only (mode 0600), and name it there in {variable}.
coordinator-public {coordinator_public}
client-public {client_public}
client-secret {client_secret}
"""


@dataclass(frozen=True)
class CoordinatorKeys:
    public: bytes
    secret: bytes = field(repr=False)
    clients: frozenset[bytes]
    """The public keys of those that are let in."""


@dataclass(frozen=True)
class ClientKeys:
    path: str
    coordinator: bytes
    """The coordinator's public key."""
    public: bytes
    secret: bytes = field(repr=False)


def coordinator_keys(path: str) -> CoordinatorKeys:
    """What the coordinator needs of the file at `path`. Raises SettingsError, in one line."""
    found = _read(path)
    if b"coordinator-secret" not in found:
        raise SettingsError(
            f"{VARIABLE}={path}: no coordinator-secret in it: the coordinator needs the file {COORDINATOR_FILE} that "
            "pysqlx-ctl keygen has written"
        )
    return CoordinatorKeys(
        _one(path, found, b"coordinator-public"),
        _one(path, found, b"coordinator-secret"),
        frozenset(_some(path, found, b"client-public")),
    )


def client_keys(path: str) -> ClientKeys:
    """What a process that joins needs of the file at `path`. Raises SettingsError, in one line."""
    found = _read(path)
    if b"client-secret" not in found:
        raise SettingsError(
            f"{VARIABLE}={path}: no client-secret in it: a process that joins needs the file {CLIENT_FILE} that "
            "pysqlx-ctl keygen has written"
        )
    return ClientKeys(
        path,
        _one(path, found, b"coordinator-public"),
        _one(path, found, b"client-public"),
        _one(path, found, b"client-secret"),
    )


def write_keys(directory: Path) -> tuple[Path, Path]:
    """Make new keys and write both files into `directory`. Raises FileExistsError for a file that is there already,
    and OSError for what else goes wrong; then neither is left."""
    import zmq  # here: who only reads keys may do without

    coordinator_public, coordinator_secret = zmq.curve_keypair()
    client_public, client_secret = zmq.curve_keypair()
    keys = {
        "coordinator_public": coordinator_public.decode(),
        "coordinator_secret": coordinator_secret.decode(),
        "client_public": client_public.decode(),
        "client_secret": client_secret.decode(),
    }
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        for name, text in ((COORDINATOR_FILE, _COORDINATOR_TEXT), (CLIENT_FILE, _CLIENT_TEXT)):
            path = directory / name
            # Never the file of somebody else's that is there already, nor where a link leads to.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            written.append(path)
            with open(descriptor, "w", encoding="ascii") as stream:
                os.fchmod(descriptor, 0o600)
                stream.write(text.format(variable=VARIABLE, **keys))
    except OSError:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return written[0], written[1]


def _read(path: str) -> dict[bytes, list[bytes]]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            _check_private(path, status)
            lines = stream.read(65536).splitlines()
    except OSError as error:
        raise SettingsError(f"{VARIABLE}={path}: cannot read the keys: {error.strerror}") from None
    found: dict[bytes, list[bytes]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        name, _, key = line.strip().partition(b" ")
        if name not in _NAMES or not _KEY.fullmatch(key.strip()):  # never shown: it may be most of a secret
            raise SettingsError(
                f"{VARIABLE}={path}, line {number}: no key; a line is one of "
                f"{', '.join(known.decode() for known in _NAMES)}, and 40 characters"
            )
        found.setdefault(name, []).append(key.strip())
    return found


def _check_private(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SettingsError(f"{VARIABLE}={path}: no regular file; name a file that pysqlx-ctl keygen has written")
    # Root may hand a file to a service that it starts: whoever is root can read any file.
    if status.st_uid not in {os.geteuid(), 0}:
        raise SettingsError(
            f"{VARIABLE}={path}: the file belongs to user {status.st_uid}, not to {os.geteuid()}: its owner knows the "
            "keys; chown it, or make new ones with pysqlx-ctl keygen"
        )
    if status.st_mode & 0o077:
        raise SettingsError(
            f"{VARIABLE}={path}: others may read the file (mode {stat.S_IMODE(status.st_mode):04o}, wanted 0600): "
            "chmod 600 it, and make new keys with pysqlx-ctl keygen if anybody may have read it"
        )


def _some(path: str, found: dict[bytes, list[bytes]], name: bytes) -> list[bytes]:
    if not found.get(name):
        raise SettingsError(f"{VARIABLE}={path}: no {name.decode()} in it: make new keys with pysqlx-ctl keygen")
    return found[name]


def _one(path: str, found: dict[bytes, list[bytes]], name: bytes) -> bytes:
    keys = _some(path, found, name)
    if len(keys) > 1:
        raise SettingsError(f"{VARIABLE}={path}: {len(keys)} lines of {name.decode()}, of which there can be only one")
    return keys[0]
