"""A coordinator's memory: one line for each step of a lease, written before anything is sent.

A restarted coordinator reads it to learn who its members were and what they may hold. It is not flushed to the disk:
it has to survive the coordinator, not the host, because with the host every member is gone as well.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

import msgspec

from ..log_config import part
from ..system import start_time
from .ledger import PoolKey, Record
from .messages import HeldLease

logger = part("coordinator")

COMPACT_AFTER = 20_000
"""Lines after which the journal is written anew with what still counts."""


class Member(msgspec.Struct, frozen=True):
    """A process that joined. A pid counts only with its start time."""

    pid: int
    started: int
    remote: bool = False
    """Whether nobody here can tell whether it lives."""
    term: float = 0.0
    """The term that such a process was told, in seconds."""


class _Line(msgspec.Struct, array_like=True, frozen=True):
    kind: str
    member: str
    pool: int = 0
    database: str = ""
    held: HeldLease | None = None
    process: Member | None = None
    size: int | None = None
    leases: tuple[HeldLease, ...] = ()


class Recovered(msgspec.Struct):
    """What a journal says: the members, and which leases each of their pools held."""

    members: dict[str, Member] = {}
    remote: set[str] = set()
    """Members of other hosts, also those that are members no more, while they hold anything."""
    held: dict[tuple[PoolKey, str], dict[int, HeldLease]] = {}
    sizes: dict[str, tuple[int, str]] = {}
    """The sizes that scripts stated, by database, and whose pool said so."""
    learning: bool = True
    """Whether there may be members that nobody knows of: until its coordinator says that it waits for them no more."""


def anybody_lives(path: Path) -> bool:
    """Whether a process that the journal at `path` names as a member still lives."""
    recovered = _read(path)
    holders = {key[0] for key, _ in recovered.held}
    return any(
        name in holders if member.remote else start_time(member.pid) == member.started
        for name, member in recovered.members.items()
    )


class Journal:
    """The journal at `path`. Reading it never fails: a last line cut off by a crash is what was never granted.

    What it is told collects until `flush`; before that nothing may be said that depends on it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._new = path.with_suffix(".new")
        self._encoder = msgspec.json.Encoder()
        self.recovered = _read(path)
        self.lost = self.recovered.learning
        """Whether there was none, or not for long enough: then there may be members that nobody knows of."""
        self._told: list[_Line] = []
        self._lines = 0
        self._compact_after = COMPACT_AFTER
        self._file = path.open("ab", buffering=0)
        os.chmod(path, 0o600)
        self._whole = path.read_bytes()[-1:] in {b"", b"\n"}
        """Whether all that was told is written, and no half a line behind it, which would spoil the next one."""
        self._compact()

    def joined(self, member: str, process: Member) -> None:
        self._told.append(_Line("joined", member, process=process))

    def left(self, member: str) -> None:
        self._told.append(_Line("left", member))

    def learning(self, goes_on: bool) -> None:
        """Whether members that nobody knows of are waited for. A coordinator that dies meanwhile has lost them, too."""
        self._told.append(_Line("learning" if goes_on else "learned", ""))

    def write(self, records: Iterable[Record]) -> None:
        for record in records:
            member, pool = record.key
            line = _Line(
                record.kind, member, pool, record.database, record.held, size=record.size, leases=record.leases
            )
            self._told.append(line)

    def flush(self) -> None:
        """Write down what was told. Raises OSError when that cannot be done; then the next call tries it again, with
        what still counts of it: all that is told meanwhile could become more without end."""
        told, self._told = self._told, []
        for line in told:
            _apply(self.recovered, line)
        self._lines += len(told)
        if told and self._whole:
            self._whole = False
            _write_all(self._file, self._encoded(told))
            self._whole = True
        if not self._whole:
            self._write_anew()
        elif self._lines > self._compact_after:
            self._compact()

    def close(self) -> None:
        self._file.close()

    def _compact(self) -> None:
        """Write anew what still counts. Where that cannot be done the old file goes on: it says the same at length."""
        try:
            self._write_anew()
        except OSError as error:
            logger.warning("cannot write %s: %s; going on with the old journal", self._new, error.strerror)
            self._lines = 0  # try again after as many more

    def _write_anew(self) -> None:
        holders = {key[0] for key, _ in self.recovered.held}
        gone = (self.recovered.remote & holders) - self.recovered.members.keys()
        self.recovered.remote = gone | {name for name, process in self.recovered.members.items() if process.remote}
        lines = [_Line("learning" if self.recovered.learning else "learned", "")]
        lines += [_Line("joined", member, process=process) for member, process in self.recovered.members.items()]
        lines += [_Line("joined", member, process=Member(0, 0, remote=True)) for member in gone]
        lines += [_Line("left", member) for member in gone]
        lines += [
            _Line("sized", stated_by, 0, database, size=size)
            for database, (size, stated_by) in self.recovered.sizes.items()
        ]
        lines += [
            _Line("granted", key[0], key[1], database, held)
            for (key, database), leases in self.recovered.held.items()
            for held in leases.values()
        ]
        file = self._new.open("ab", buffering=0)
        try:
            os.chmod(self._new, 0o600)
            file.truncate(0)
            _write_all(file, self._encoded(lines))
            self._new.replace(self.path)  # only now: a part would be less than what is there
        except OSError:
            file.close()
            with contextlib.suppress(OSError):
                self._new.unlink()
            raise
        self._file.close()
        self._file, self._whole = file, True
        self._lines = len(lines)
        # Where that much counts, not with every line.
        self._compact_after = max(COMPACT_AFTER, 2 * len(lines))

    def _encoded(self, lines: list[_Line]) -> bytes:
        return b"".join(self._encoder.encode(line) + b"\n" for line in lines)


def _write_all(file: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:  # an unbuffered file may take less than all: the error comes with the next write
        left = left[file.write(left) :]


def _read(path: Path) -> Recovered:
    recovered = Recovered()
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return recovered
    decoder = msgspec.json.Decoder(_Line)
    for line in lines:
        try:
            _apply(recovered, decoder.decode(line))
        except (msgspec.MsgspecError, ValueError):  # also what is no text
            continue
    return recovered


def _apply(recovered: Recovered, line: _Line) -> None:
    if line.kind == "joined" and line.process is not None:
        recovered.members[line.member] = line.process
        if line.process.remote:
            recovered.remote.add(line.member)
        return
    if line.kind in {"learning", "learned"}:
        recovered.learning = line.kind == "learning"
        return
    if line.kind == "left":
        recovered.members.pop(line.member, None)
        return
    if line.kind == "sized" and line.size is not None:
        recovered.sizes[line.database] = (line.size, line.member)
        return
    if line.kind == "forgotten":
        recovered.sizes.pop(line.database, None)
        return
    key = ((line.member, line.pool), line.database)
    if line.kind == "attached":
        recovered.held.pop(key, None)
        if line.leases:
            recovered.held[key] = {held.lease: held for held in line.leases}
    elif line.held is not None:
        leases = recovered.held.setdefault(key, {})
        if line.kind == "returned":
            leases.pop(line.held.lease, None)
            if not leases:
                del recovered.held[key]
        else:
            leases[line.held.lease] = line.held
