"""When a process has really closed its connections to an SQLite file.

POSIX drops all of a process's locks on a file when any of its descriptors is closed. So SQLite keeps the descriptor of
a closed connection open for as long as another connection of the process holds a lock on the same file, and a budget
that counts descriptors has to wait for that. Which descriptor belongs to which connection cannot be seen; how many
there are can.

In WAL mode a connection holds such a lock for as long as it is open. There the descriptor of a closed one stays until
the process's next connection to the file takes it over, or the last one is closed: it is no connection, and nothing is
waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from weakref import WeakSet

from ..system import after_fork_in_child, open_descriptors

LOOK = (0.001, 0.05)
"""Seconds between two looks at the descriptors: at first, and growing to the second."""
TIMEOUT = 5.0
"""Seconds after which a descriptor that stays counts as somebody else's: a connection that is not a pool's."""

Inode = tuple[int, int]


class SqliteFile:
    """One database file, and how many connections of this process's pools are open to it."""

    def __init__(self, inode: Inode) -> None:
        self._inode = inode
        self.path = ""
        """Where it was last seen: it may be moved, and its number is given again when it is deleted."""
        self._sessions: WeakSet[object] = WeakSet()
        """Those that are open. One whose pool was lost with its event loop is closed by nobody, and goes by itself."""
        self._closing = 0
        self._foreign = 0
        """Descriptors that belong to nobody we know."""

    def opened(self, session: object) -> None:
        self._sessions.add(session)
        if not self._closing:
            self._foreign = max(0, _descriptors(self._inode) - len(self._sessions))

    async def closed(self, session: object) -> bool:
        """A connection was closed: wait until its descriptor is. False when that was not seen within `TIMEOUT`."""
        self._sessions.discard(session)
        if os.path.exists(f"{self.path}-shm"):  # it is there while somebody uses the file in WAL mode
            return True
        self._closing += 1
        deadline = time.monotonic() + TIMEOUT
        pause, most = LOOK
        try:
            while (open_ := _descriptors(self._inode)) > len(self._sessions) + self._foreign:
                if time.monotonic() > deadline:
                    self._foreign = open_ - len(self._sessions)
                    return False
                await asyncio.sleep(pause)
                pause = min(most, pause * 1.5)
        finally:
            self._closing -= 1
        return True


_files: dict[Inode, SqliteFile] = {}


def sqlite_file(path: str | None) -> SqliteFile | None:
    """The file at `path`; None for a database in memory."""
    if path is None:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    inode = (found.st_dev, found.st_ino)
    file = _files.setdefault(inode, SqliteFile(inode))
    file.path = os.path.realpath(path)
    return file


def _descriptors(inode: Inode) -> int:
    """How many descriptors this process has on the file; 0 where that cannot be seen."""
    count = 0
    for descriptor in open_descriptors():
        with contextlib.suppress(OSError):
            found = os.fstat(descriptor)
            count += (found.st_dev, found.st_ino) == inode
    return count


after_fork_in_child(_files.clear)
