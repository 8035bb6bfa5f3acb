"""Real commands for tests, `pysqlx-run` before all: start one, talk to it, see what it leaves."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

COMMAND = [sys.executable, "-m", "pysqlx_engine.workers.run"]
CTL = [sys.executable, "-m", "pysqlx_engine.workers.ctl"]
JOINS_ANOTHER = "ipc:///nonexistent/coordinator.sock"
"""For scripts without pools: several workers, and no coordinator is started for them."""
TIMEOUT = 20.0


class Run:
    """One `pysqlx-run`, or another command. It leads a session of its own, so that all its descendants can be found."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def line(self) -> str:
        """The next line of its stdout (stderr is in it)."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().rstrip("\n")

    def line_with(self, text: str) -> str:
        while line := self.line():
            if text in line:
                return line
        raise AssertionError(f"the run ended without printing {text!r}")

    def lines_until(self, text: str) -> list[str]:
        """What it prints before a line with this text."""
        lines = []
        while line := self.line():
            if text in line:
                return lines
            lines.append(line)
        raise AssertionError(f"the run ended without printing {text!r}: {lines}")

    def rest(self) -> list[str]:
        """What it prints until its end."""
        output, _ = self.process.communicate(timeout=TIMEOUT)
        return output.decode().splitlines()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(TIMEOUT)

    def pids(self) -> list[int]:
        """Every living process of the run, whatever process group it is in."""
        return session_members(self.process.pid)

    def pid_titled(self, title: str) -> int:
        for pid in self.pids():
            if title in Path(f"/proc/{pid}/cmdline").read_bytes().decode():
                return pid
        raise AssertionError(f"no process is called {title!r}")


def session_members(session: int) -> list[int]:
    pids = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session and fields[0] not in (b"Z", b"X"):
                pids.append(int(entry))
    return pids


def wait_gone(pids: list[int], timeout: float = 5.0) -> None:
    """Wait until each of `pids` has ended."""
    deadline = time.monotonic() + timeout
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"process {pid} is still there: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}"
        finally:
            os.close(descriptor)


@contextmanager
def started(
    cwd: Path,
    *arguments: str,
    command: Sequence[str] = COMMAND,
    shell: str = ":",
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.STDOUT,
    **environment: str,
) -> Iterator[Run]:
    """`command` with `arguments` in `cwd`, begun by a shell that does `shell` first. At the end nothing is left."""
    process = subprocess.Popen(
        ["sh", "-c", f'{shell}; exec "$@"', "sh", *command, *arguments],
        cwd=cwd,
        env=run_environment(cwd, environment),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )
    try:
        yield Run(process)
        process.wait(TIMEOUT)
        wait_gone(session_members(process.pid))
    finally:
        for pid in session_members(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait(TIMEOUT)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def finished(cwd: Path, *arguments: str, shell: str = ":", **environment: str) -> tuple[int, list[str], list[str]]:
    """The exit status, the lines of stdout and the lines of stderr of a run that ends by itself."""
    with started(cwd, *arguments, shell=shell, stderr=subprocess.PIPE, **environment) as run:
        stdout, stderr = run.process.communicate(timeout=TIMEOUT)
        return run.wait(), stdout.decode().splitlines(), stderr.decode().splitlines()


def ctl(directory: Path, *arguments: str, stdout: int = subprocess.PIPE) -> tuple[int, str, str]:
    """The exit status, the output and the errors of `pysqlx-ctl`."""
    environment = run_environment(directory, {"COLUMNS": "300"})
    done = subprocess.run(
        [*CTL, *arguments], env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=20, check=False
    )
    return done.returncode, done.stdout, done.stderr


def nobody_has_joined(directory: Path, name: str) -> Path:
    """The directory of the run `name`, with a journal, which names nobody unless it was there. Without one a
    coordinator would wait for those that it does not know of."""
    run = directory / "pysqlx" / name
    for private in (run.parent, run):
        private.mkdir(mode=0o700, exist_ok=True)
    if not (run / "journal").exists():
        (run / "journal").write_text('["learned",""]\n')
    return run


@contextmanager
def coordinating(directory: Path, *options: str, **environment: str) -> Iterator[tuple[Run, str]]:
    """A `pysqlx-ctl coordinator`, and its address. At the end TERM ends it, unless it has ended."""
    nobody_has_joined(directory, options[options.index("--name") + 1] if "--name" in options else "default")
    with started(directory, "coordinator", *options, command=CTL, **environment) as run:
        variable, _, address = run.line().partition("=")
        assert variable == "PYSQLX_COORDINATOR"
        yield run, address
        if run.process.poll() is None:
            run.process.terminate()
            assert run.wait() == 0, run.rest()


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: a write that crosses it is cut off there, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_environment(cwd: Path, changes: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYSQLX_")}
    return kept | {"XDG_RUNTIME_DIR": str(cwd)} | changes
