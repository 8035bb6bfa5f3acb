"""Where a run is found: one directory per run that only its user can enter.

`$XDG_RUNTIME_DIR/pysqlx/<name>/`, or `/tmp/pysqlx-<uid>/<name>/` where there is no such directory. Whoever holds the
lock on `lock` in it owns the run; the kernel lets go of the lock when the owner dies, however it dies. `owner` says
who that is, for those who only look.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import SettingsError
from ..system import SOCKET_PATH_LIMIT, start_time
from .journal import anybody_lives

__all__ = [
    "ClaimedRun",
    "DatabaseClaims",
    "RunDirectory",
    "RunDirectoryError",
    "default_name",
    "list_runs",
    "run_directory",
]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_SWEEP_TIME = 1.0  # seconds: far more than another run needs to look through a dead run's directory


class RunDirectoryError(RuntimeError):
    """The directory of a run cannot be used. The text says which, why and what to do."""


class OwnCoordinator:
    """The run has one, in its directory."""


@dataclass(frozen=True, slots=True)
class Joined:
    """The run has joined one that somebody else has started."""

    address: str
    curve_keys: str | None

    @staticmethod
    def from_here(address: str, curve_keys: str | None) -> Joined:
        """As settings say it, with paths that are the same in any directory: others look at the run from theirs."""
        path = address.removeprefix("ipc://")
        if path != address and not path.startswith("@"):  # a name of Linux that is no file
            address = f"ipc://{os.path.abspath(path)}"
        return Joined(address, None if curve_keys is None else os.path.abspath(curve_keys))


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The directory of the run `name`. It need not exist."""

    name: str
    path: Path

    @property
    def socket(self) -> Path:
        """Where the coordinator listens to workers."""
        return self.path / "coordinator.sock"

    @property
    def address(self) -> Path:
        """Where that is written, where there can be no such socket. See `endpoints.local`."""
        return self.path / "address"

    @property
    def control(self) -> Path:
        """Where `pysqlx-ctl` asks."""
        return self.path / "control.sock"

    @property
    def supervisor(self) -> Path:
        """Where `pysqlx-ctl` says what becomes of the workers."""
        return self.path / "supervisor.sock"

    @property
    def journal(self) -> Path:
        """What the coordinator writes down before it grants."""
        return self.path / "journal"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def owner(self) -> Path:
        return self.path / "owner"

    def is_live(self) -> bool:
        """True while the process that claimed this directory lives."""
        return self._owner_pid() is not None

    def _owner_pid(self) -> int | None:
        try:
            record = json.loads(self.owner.read_bytes())
            pid = int(record["pid"])
            return pid if start_time(pid) == record["start"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def coordinator(self) -> OwnCoordinator | Joined | None:
        """Where the run's pools get their budgets; None: each process has its own. Raises OSError when nobody owns the
        directory."""
        record = json.loads(self.owner.read_bytes())
        if isinstance(record["coordinator"], dict):
            return Joined(**record["coordinator"])
        return OwnCoordinator() if record["coordinator"] else None

    def claim(self, *, supervised: bool, coordinator: OwnCoordinator | Joined | None = None) -> ClaimedRun:
        """Make this directory ours, with what a dead run of this name left behind cleared away.

        The journal is left: who took part in the dead run may still have sessions on a server. `supervised`: the
        coordinator dies with this process, so that only who joined it may need the directory once we are dead.
        `coordinator`: where the run's pools get their budgets, for others who look at it.
        Raises `RunDirectoryError` when a live run has the name, or when somebody else could get in.
        """
        _check_socket_path(self.socket)
        base = self.path.parent
        _make_private(base)
        _sweep(base, spare=self.path)
        deadline = time.monotonic() + _SWEEP_TIME
        while True:
            _make_private(self.path)
            try:
                lock = _try_lock(self.lock)
            except FileNotFoundError:
                continue  # another run has just swept the directory away
            if lock is None:
                pid = self._owner_pid()
                if pid is None and time.monotonic() < deadline:
                    time.sleep(0.005)  # a run that sweeps has the lock, or one that starts and has not said who it is
                    continue
                raise RunDirectoryError(
                    f"a run named {self.name} is active{f' (pid {pid})' if pid else ''}: "
                    "choose another --name, or stop that run first"
                )
            # Whoever had the lock before us may have removed the file that we opened: then it guards nothing.
            if _is_file(lock, self.lock):
                break
            os.close(lock)
        for leftover in (self.socket, self.control, self.supervisor):
            leftover.unlink(missing_ok=True)
        me = os.getpid()
        written = self.path / "owner.new"
        try:
            record = {"pid": me, "start": start_time(me), "supervised": supervised}
            told = asdict(coordinator) if isinstance(coordinator, Joined) else coordinator is not None
            written.write_text(json.dumps(record | {"coordinator": told}))
            written.replace(self.owner)
        except OSError as error:
            os.close(lock)
            raise RunDirectoryError(f"cannot write {written}: {error.strerror}") from None
        return ClaimedRun(self, lock)


@dataclass(slots=True)
class ClaimedRun:
    """A directory that this process owns, until `release()` or until it dies."""

    directory: RunDirectory
    _lock: int

    def release(self) -> None:
        """Let the name go, and remove the directory unless a process that joined the run still lives.

        Such a process has its sessions without us: the next run of this name learns of it from the journal.
        """
        if self._lock >= 0:
            if not anybody_lives(self.directory.journal):
                _remove(self.directory.path)
            os.close(self._lock)
            self._lock = -1


def run_directory(name: str) -> RunDirectory:
    """The directory of the run `name`. Raises `SettingsError` for a name that is not allowed."""
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"run name {name!r} is not allowed: 1 to 64 letters, digits, '.', '_' or '-', no '.' in front"
        )
    return RunDirectory(name, _base() / name)


def default_name(script: str) -> str:
    """The name of a run that was given none: its script and our pid."""
    stem = Path(script.replace(":", ".")).name.removesuffix(".py")
    word = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-") or "run"
    return f"{word[:48]}-{os.getpid()}"


def list_runs() -> list[RunDirectory]:
    """The live runs of this user, by name."""
    try:
        names = sorted(entry.name for entry in os.scandir(_base()) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
    runs = [run_directory(name) for name in names if _NAME.fullmatch(name)]
    return [run for run in runs if run.is_live()]


class DatabaseClaims:
    """Which run's coordinator has a budget for which database, among the runs of this user on this host.

    A claim is a lock on a file: it goes with the process that holds it.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._run = directory.name
        self._directory = directory.path.parent / ".databases"  # no run has a name that starts with a dot
        self._locks: dict[str, int] = {}

    def claim(self, database: str) -> str | None:
        """Claim `database`; the name of the other run that has it already, if one has."""
        if database in self._locks:
            return None
        _make_private(self._directory)
        path = self._directory / hashlib.sha256(database.encode()).hexdigest()[:32]
        lock = _try_lock(path)
        if lock is None:
            return path.read_text() or "another run"
        self._locks[database] = lock  # first: on a full disk it is claimed all the same, only not by name
        os.ftruncate(lock, 0)
        os.write(lock, self._run.encode())
        return None

    def release(self, database: str) -> None:
        lock = self._locks.pop(database, None)
        if lock is not None:
            os.close(lock)


def _base() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime):
        return Path(runtime) / "pysqlx"
    return Path(f"/tmp/pysqlx-{os.geteuid()}")


def _make_private(path: Path) -> None:
    """Make `path`, or check that what is there is a directory that only we can enter.

    In /tmp anybody may have been first with the name: a directory of somebody else's would let its owner listen to
    our workers in the coordinator's place.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise RunDirectoryError(f"cannot make {path}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        problem = "is not a directory"
    elif found.st_uid != os.geteuid():
        problem = f"belongs to user {found.st_uid}, not to {os.geteuid()}"
    elif found.st_mode & 0o077:
        problem = f"is open to others (mode {stat.S_IMODE(found.st_mode):04o}, wanted 0700)"
    else:
        return
    raise RunDirectoryError(f"{path} {problem}: remove it, or point XDG_RUNTIME_DIR to a directory of your own")


def _check_socket_path(path: Path) -> None:
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_LIMIT:
        raise RunDirectoryError(
            f"the socket path {path} has {length} bytes, the system allows {SOCKET_PATH_LIMIT}: "
            "choose a shorter --name or a shorter XDG_RUNTIME_DIR"
        )


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock on `path`, or `None` when another process holds it."""
    import fcntl  # here: who only looks may do without, as pysqlx-ctl jobs on Windows has to

    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _sweep(base: Path, spare: Path) -> None:
    """Remove what dead runs left, where nobody lives who took part. Best effort: this keeps no run from starting."""
    for entry in list(os.scandir(base)):
        path = Path(entry.path)
        if path == spare:
            continue
        with contextlib.suppress(OSError, ValueError, KeyError):
            # A coordinator on its own may be about to be restarted, and needs its journal then.
            if json.loads((path / "owner").read_bytes())["supervised"] is not True:
                continue
            lock = _try_lock(path / "lock")
            if lock is None:
                continue
            try:
                # The file that we opened may be a swept run's, and the directory by now a live run's of that name.
                if _is_file(lock, path / "lock") and not anybody_lives(path / "journal"):
                    _remove(path)
            finally:
                os.close(lock)


def _remove(path: Path) -> None:
    """Remove a run's directory while its lock is held; the lock goes last."""
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(os.scandir(path), key=lambda found: found.name == "lock"):
            os.unlink(entry.path)
        path.rmdir()
