"""Tells which processes have died, also such as are not our children."""

from __future__ import annotations

import os
import select
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Generic, TypeVar

from ..system import DEATH_POLL, NO_DESCRIPTORS, has, start_time
from .polling import Looker

Key = TypeVar("Key", bound=Hashable)


class Deaths(ABC, Generic[Key]):
    """Processes, each by a key of the caller's. `fileno()` is readable while one of them is dead."""

    @abstractmethod
    def watch(self, key: Key, pid: int, started: int | None = None) -> bool:
        """Watch process `pid`. False: there is none that started then (see `start_time`). None: it is a child of ours
        that nobody has waited for, so that its pid cannot be another's. Raises OSError when the system does not let us;
        then it is not watched."""

    @abstractmethod
    def forget(self, key: Key) -> None: ...

    @abstractmethod
    def dead(self) -> list[Key]:
        """Those that have died and were not forgotten."""

    @abstractmethod
    def fileno(self) -> int: ...

    @abstractmethod
    def close(self) -> None: ...


class _ByPidfd(Deaths[Key]):
    """Told by the kernel. One epoll, for thousands of descriptors in a poll() would be looked at in each turn."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._pidfds: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}

    def watch(self, key: Key, pid: int, started: int | None = None) -> bool:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            if started is None or error.errno in NO_DESCRIPTORS:
                raise
            return False  # dead
        try:
            found = started is None or start_time(pid) == started
            if found:
                self._epoll.register(pidfd, select.EPOLLIN)
        except OSError:
            os.close(pidfd)
            raise
        if not found:
            os.close(pidfd)
            return False
        self._pidfds[key], self._keys[pidfd] = pidfd, key
        return True

    def forget(self, key: Key) -> None:
        pidfd = self._pidfds.pop(key)
        self._epoll.unregister(pidfd)
        del self._keys[pidfd]
        os.close(pidfd)

    def dead(self) -> list[Key]:
        return [self._keys[pidfd] for pidfd, _ in self._epoll.poll(0)]

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        for key in list(self._pidfds):
            self.forget(key)
        self._epoll.close()


class _ByLooking(Deaths[Key]):
    """Noticed within `DEATH_POLL`."""

    def __init__(self) -> None:
        self._watched: dict[Key, tuple[int, int | None]] = {}
        self._seen: set[Key] = set()
        self._looker = Looker(self._look, DEATH_POLL, "deaths")

    def watch(self, key: Key, pid: int, started: int | None = None) -> bool:
        found = started is None or start_time(pid) == started
        if found:
            self._watched[key] = pid, started
        return found

    def forget(self, key: Key) -> None:
        del self._watched[key]

    def dead(self) -> list[Key]:
        self._looker.seen()
        # Once more: what was seen may have been forgotten since, and another one be watched by the same key.
        return [key for key in self._seen if key in self._watched and _is_dead(*self._watched[key])]

    def fileno(self) -> int:
        return self._looker.fileno()

    def close(self) -> None:
        self._looker.close()

    def _look(self) -> bool:
        self._seen = {key for key, who in self._watched.copy().items() if _is_dead(*who)}
        return bool(self._seen)


def _is_dead(pid: int, started: int | None) -> bool:
    try:
        found = start_time(pid)
    except OSError:  # no descriptor is left to look with: the next look tells
        return False
    return found is None or (started is not None and found != started)


def deaths() -> Deaths[Key]:
    return _ByPidfd() if has("pidfd") else _ByLooking()
