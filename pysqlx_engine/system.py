"""What we use of the operating system that not every system has, and what stands in where it is missing.

`FACILITIES` says it all, and `has` decides it: here, and nowhere else. What stands in needs POSIX at most, so that what
macOS gets is what the tests force on Linux, see docs/platforms.md.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import os
import secrets
import select
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .errors import SettingsError

WITHOUT = "PYSQLX_WITHOUT"
"""For tests: names of facilities, with commas between them, that are to count as missing. A run and all that join it
need the same value: they compare what they know of a process."""

DEATH_POLL = 0.2
"""Seconds between two looks whether a process still lives, where the kernel does not tell."""
CONTROL_POLL = 0.05
"""Seconds between two looks whether somebody asks, where one descriptor cannot stand for many."""
SOCKET_PATH_LIMIT = 107 if sys.platform == "linux" else 103
"""Bytes that the system takes as the path of a socket: sockaddr_un.sun_path without the closing zero."""
NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
"""What the system says when no descriptor is left, to look with or for anything else."""


@dataclass(frozen=True)
class Facility:
    name: str
    what: str
    used_for: str
    stands_in: str
    weaker: str
    """What is not as good where it is missing."""
    found: Callable[[], bool]


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:  # an older kernel, a sandbox that refuses it
        return getattr(error, "errno", None) in NO_DESCRIPTORS
    return True


def _has_seqpacket() -> bool:
    try:
        for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET):
            end.close()
    except (AttributeError, OSError) as error:
        return getattr(error, "errno", None) in NO_DESCRIPTORS
    return True


def _has_ipc() -> bool:
    import zmq  # nobody asks who does not use it

    return bool(zmq.has("ipc"))


FACILITIES = (
    Facility(
        "pidfd", "pidfd_open(2)",
        "the supervisor and the coordinator are told of deaths",
        "a thread that looks at each process, by pid and start time, every 0.2 s",
        "a death is noticed up to 0.2 s later",
        _has_pidfd,
    ),
    Facility(
        "waitid", "waitid(2) with WNOWAIT",
        "what a killed worker had started is killed before the worker's pid can be another's",
        "it is killed right after the worker was reaped",
        "in between, a new process group could have been given that number",
        lambda: hasattr(os, "waitid"),
    ),
    Facility(
        "pdeathsig", "prctl(PR_SET_PDEATHSIG)",
        "workers, dispatchers and the coordinator die with their supervisor",
        "a thread of each that waits for the end of a pipe from the supervisor, and kills its process then",
        "a process that is stopped, or held up by code that keeps Python's lock, dies when it goes on",
        lambda: sys.platform == "linux",
    ),
    Facility(
        "epoll", "epoll(7)",
        "pysqlx-ctl is answered from inside the supervisor's and the coordinator's loop",
        "a thread that polls the clients every 0.05 s",
        "answers come up to 0.1 s later, and the process wakes 20 times a second",
        lambda: hasattr(select, "epoll"),
    ),
    Facility(
        "seqpacket", "socketpair(AF_UNIX, SOCK_SEQPACKET)",
        "supervisor and workers talk in whole messages",
        "a stream with a line for each message",
        "the end of a message to a worker that does not read may have to wait for the next message",
        _has_seqpacket,
    ),
    Facility(
        "abstract", "abstract names of Unix sockets",
        "whoever enqueues tells the dispatchers of this host at once",
        "UDP on 127.0.0.1",
        "nothing that matters: a hint may come from anybody",
        lambda: sys.platform == "linux",
    ),
    Facility(
        "proc", "/proc and sock_diag(7)",
        "start times of processes, which host this is, what became of a connection, descriptors on an SQLite file",
        "psutil for start times; the MAC address; grace times for connections; /dev/fd",
        "a close counts as done after 1 s, a dead process's session after 0.5 s, whether or not the server is done "
        "with it; a host without a MAC address counts its own processes as another host's, with a term",
        lambda: os.path.exists("/proc/self/stat"),
    ),
    Facility(
        "ipc", "ZeroMQ's ipc://",
        "processes of this host join the coordinator",
        "tcp://127.0.0.1 at a port of its own, with CURVE keys in the run's directory, which only its user can enter",
        "the kernel does not vouch for pids; a port that was taken while no coordinator ran keeps one from starting",
        _has_ipc,
    ),
    Facility(
        "posix", "fork, signals, flock, Unix sockets",
        "pysqlx-run, pysqlx-ctl (all but jobs), and joining a coordinator",
        "nothing: these refuse, and say so; on Windows, use WSL",
        "pools have a budget in one process only",
        lambda: hasattr(os, "fork"),
    ),
)  # fmt: skip


@functools.cache
def has(name: str) -> bool:
    """Whether the system has the facility of this name. Raises SettingsError for an unknown name in PYSQLX_WITHOUT."""
    by_name = {facility.name: facility for facility in FACILITIES}
    without = {word.strip() for word in os.environ.get(WITHOUT, "").split(",") if word.strip()}
    for unknown in sorted(without - by_name.keys()):
        raise SettingsError(f"{WITHOUT}: {unknown!r} is none of {', '.join(by_name)}")
    return name not in without and by_name[name].found()


def missing() -> list[Facility]:
    """What the system does not have."""
    return [facility for facility in FACILITIES if not has(facility.name)]


def need_posix(what: str) -> None:
    """Raises SettingsError where `what` cannot be had at all."""
    if not has("posix"):
        raise SettingsError(
            f"{what} needs Linux or another POSIX system (on Windows: WSL); what works here are connections, and pools "
            "within one process"
        )


# Python is told of both when the package is imported, and not when what asks for it is: what a user has registered
# since then comes before us at exit, and behind us in a forked child.
_in_child: list[Callable[[], object]] = []
_at_exit: list[Callable[[], object]] = []


def after_fork_in_child(act: Callable[[], object]) -> None:
    """Have `act` called in each child that this process forks. Where nobody can fork there is nothing to do."""
    _in_child.append(act)


def at_interpreter_exit(act: Callable[[], object]) -> None:
    """Have `act` called when the interpreter exits, before what was registered earlier."""
    _at_exit.append(act)


def _each(acts: Sequence[Callable[[], object]]) -> None:
    """Whatever one of them raises, the others are called as well. Python shows it, here as there."""
    if acts:
        try:
            acts[0]()
        finally:
            _each(acts[1:])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _each(_in_child))
atexit.register(lambda: _each(_at_exit[::-1]))


def nonblocking_pipe() -> tuple[int, int]:
    """A pipe to wake somebody with: neither end blocks, and no child inherits one."""
    reader, writer = os.pipe()  # not pipe2, which macOS does not have
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer


def open_descriptors() -> list[int]:
    """This process's descriptors; none where that cannot be seen."""
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir("/proc/self/fd" if has("proc") else "/dev/fd")]
    return []


def start_time(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot (without /proc: since 1970); `None` when there is none.
    Raises OSError when that cannot be seen now, for want of descriptors.

    A pid alone names nobody: it is given again. A pid with its start time is unique until the machine restarts.
    """
    if not has("proc"):
        return _start_time_of_psutil(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            stat = stream.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name in front may hold blanks and parentheses
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _start_time_of_psutil(pid: int) -> int | None:
    import psutil  # takes longer than all else here

    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        return round(process.create_time() * 100)
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:  # somebody else's: it lives, and is not one that we know
        return 0
    except psutil.Error as error:
        raise OSError(f"psutil cannot tell: {error}") from error


def host_identity() -> str:
    """Which kernel, and which part of it: whoever says the same sees our pid, and our connections, as we do."""
    if not has("proc"):
        return _host_of_uuid()
    parts = []
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid", "/proc/self/ns/net"):
        try:
            if path.startswith("/proc/self"):
                parts.append(str(os.stat(path).st_ino))
            else:
                with open(path, "rb") as stream:
                    parts.append(stream.read().decode().strip())
        except OSError:
            return f"unknown:{secrets.token_hex(8)}"  # nobody else's: two that cannot tell need not be on one host
    return ":".join(parts)


@functools.cache
def _host_of_uuid() -> str:
    """Not the host's name, which moves with the network, nor when it was booted, which moves with the clock. Start
    times count from 1970 here, and so tell a process from one before a reboot."""
    import uuid

    # Without a MAC address each process makes up a number: then nobody is on our host, which is slow, but safe.
    return f"{uuid.getnode():012x}"
