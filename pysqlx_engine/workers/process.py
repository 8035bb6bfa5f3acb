"""What the supervisor and its children ask of the operating system (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from io import TextIOWrapper
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from setproctitle import setproctitle

if TYPE_CHECKING:
    import socket

    from .coordinator import CoordinatorConfig
    from .jobs.served import DispatcherSpec
    from .observer.spec import ObserverSpec

__all__ = [
    "CHILD_SIGNALS",
    "STEERING_SIGNALS",
    "allow_open_files",
    "become_child",
    "coordinator_main",
    "describe_exit",
    "die_with",
    "dispatcher_main",
    "kill_group",
    "observer_main",
    "open_standard_streams",
    "start_time",
]

_PR_SET_PDEATHSIG = 1

CHILD_SIGNALS = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
"""Blocked while a child is started, so that none of them hits an interpreter that has no handlers yet."""
STEERING_SIGNALS = frozenset({signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2})
"""What else a supervisor obeys, as gunicorn's does. In its children they are what they are in any program."""


def coordinator_main(
    supervisor: int,
    config: CoordinatorConfig,
    ready: Connection,
    stdout: Connection | None,
    stderr: Connection | None,
) -> None:
    """The whole life of a coordinator that a supervisor started."""
    become_child("pysqlx-run: coordinator", supervisor, stdout, stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CHILD_SIGNALS)
    from . import coordinator  # ZeroMQ, which no other child needs before its first pool

    coordinator.main(config, ready)


def dispatcher_main(
    spec: DispatcherSpec, control: socket.socket, stdout: Connection | None, stderr: Connection | None
) -> None:
    """The whole life of a dispatcher of jobs."""
    become_child(f"pysqlx-run: {spec.name}", spec.supervisor, stdout, stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(spec.environment)
    from .jobs import dispatcher_process  # asyncio and the driver, which the supervisor does not need

    dispatcher_process.main(spec, control)


def observer_main(
    spec: ObserverSpec, control: socket.socket, stdout: Connection | None, stderr: Connection | None
) -> None:
    """The whole life of an observer."""
    become_child("pysqlx-run: observer", spec.supervisor, stdout, stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(spec.environment)
    from .observer import process  # the web server, which nobody else needs

    process.main(spec, control)


def become_child(title: str, parent: int, stdout: Connection | None, stderr: Connection | None) -> None:
    """Turn this fresh process into a child of the supervisor `parent`.

    It dies with the supervisor, leads a process group of its own (the terminal's INT does not reach it), reads nothing
    from the terminal, shows `title` in `ps`, and prints into the pipes it was given (`None`: to the terminal itself).
    `CHILD_SIGNALS` stay blocked: unblock them when handlers are in place.
    """
    die_with(parent)
    os.setpgid(0, 0)
    setproctitle(title)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0, inheritable=True)
    os.close(null)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it lives as long as the process
    for pipe, descriptor in ((stdout, 1), (stderr, 2)):
        if pipe is not None:
            os.dup2(pipe.fileno(), descriptor, inheritable=True)
            pipe.close()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in a pipe it would wait for a full block


def open_standard_streams() -> None:
    """Open /dev/null as each of stdin, stdout and stderr that we were started without: the next file that is opened,
    perhaps a pipe to a child, would get that number, and with it what is printed."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            os.set_inheritable(null, True)
            stream = open(null, "r" if name == "stdin" else "w", closefd=False)  # noqa: SIM115 - it stays open
            setattr(sys, name, stream)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies; end at once if it is dead already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_PDEATHSIG): {os.strerror(code)}")
    # Before the call above nobody would have told us, so a parent that is gone by now will never be noticed again.
    if os.getppid() != parent:
        os._exit(1)


def allow_open_files(needed: int) -> int | None:
    """Raise our limit to so many, where it is lower. Gives the hard limit where that does not allow it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        except (ValueError, OSError):
            return hard
    return None


def kill_group(pid: int) -> None:
    """Kill process `pid` and the process group that it leads. `pid` must be a child that was not waited for yet."""
    for kill in (os.kill, os.killpg):  # the group is not there yet while a child starts
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def start_time(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; `None` when there is none.

    A pid alone names nobody: it is given again. A pid with its start time is unique until the machine restarts.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            stat = stream.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name in front may hold blanks and parentheses
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def describe_exit(status: int) -> str:
    """`status` as `multiprocess` gives it (negative: a signal), in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"was ended by signal {-status}"
