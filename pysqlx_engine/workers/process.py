"""What the supervisor and its children ask of the operating system. What not every one has is in `system`."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
from io import TextIOWrapper
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from setproctitle import setproctitle

from ..system import has
from .logs import LogSpec, set_up

if TYPE_CHECKING:
    import socket
    from multiprocessing.context import SpawnProcess

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
    "reap",
]

_PR_SET_PDEATHSIG = 1

CHILD_SIGNALS = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
"""Blocked while a child is started, so that none of them hits an interpreter that has no handlers yet."""
STEERING_SIGNALS = frozenset({signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2})
"""What else a supervisor obeys, as gunicorn's does. In its children they are what they are in any program."""


def coordinator_main(
    supervisor: int,
    config: CoordinatorConfig,
    logs: LogSpec,
    ready: Connection,
    stdout: Connection | None,
    stderr: Connection | None,
) -> None:
    """The whole life of a coordinator that a supervisor started."""
    become_child("pysqlx-run: coordinator", supervisor, stdout, stderr)
    set_up(logs, "coordinator")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CHILD_SIGNALS)
    from . import coordinator  # ZeroMQ, which no other child needs before its first pool

    coordinator.main(config, ready)


def dispatcher_main(
    spec: DispatcherSpec, control: socket.socket, stdout: Connection | None, stderr: Connection | None
) -> None:
    """The whole life of a dispatcher of jobs."""
    become_child(f"pysqlx-run: {spec.name}", spec.supervisor, stdout, stderr)
    set_up(spec.logs, spec.name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(spec.environment)
    from .jobs import dispatcher_process  # asyncio and the driver, which the supervisor does not need

    dispatcher_process.main(spec, control)


def observer_main(
    spec: ObserverSpec, control: socket.socket, stdout: Connection | None, stderr: Connection | None
) -> None:
    """The whole life of an observer."""
    become_child("pysqlx-run: observer", spec.supervisor, stdout, stderr)
    set_up(spec.logs, "observer")
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
    """Have this process killed when its `parent`, which has started it by multiprocess, dies; end at once if it is dead
    already."""
    if has("pdeathsig"):
        _have_the_kernel_kill_us()
    else:
        threading.Thread(target=_die_with_parent, name="pysqlx-parent", daemon=True).start()
    # The kernel would not have told us before, so a parent that is gone by now will never be noticed again.
    if os.getppid() != parent:
        os._exit(1)


def _have_the_kernel_kill_us() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_PDEATHSIG): {os.strerror(code)}")


def _die_with_parent() -> None:
    import multiprocess  # it is there: it has started us

    parent = multiprocess.parent_process()
    assert parent is not None
    parent.join()  # until the end of a pipe that it alone has open
    os.kill(os.getpid(), signal.SIGKILL)


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


def reap(process: SpawnProcess) -> int:
    """The exit status of a child that is dead, negative for a signal. Then what it had started, which would never be
    told, is killed too."""
    assert process.pid is not None
    if has("waitid"):
        end = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if end is not None and end.si_code != os.CLD_EXITED:
            kill_group(process.pid)  # until it is reaped nobody else can have its number
        process.join()
    else:
        process.join()
        if (process.exitcode or 0) < 0:
            kill_group(process.pid)
    return process.exitcode or 0


def describe_exit(status: int) -> str:
    """`status` as `multiprocess` gives it (negative: a signal), in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"was ended by signal {-status}"
