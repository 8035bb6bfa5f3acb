"""What a run consists of, as the command line and the settings have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .logs import LogSpec

if TYPE_CHECKING:
    from .formation import Restart
    from .observer.spec import Listening
    from .rundir import RunDirectory
    from .worker import Target

_DISPATCHERS = 2
"""That a run is expected to have: one for each queue that it serves."""
_OPEN_FILES = 32
"""Of the supervisor itself, with those that a child has until it is started."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Times are in seconds."""

    name: str
    target: Target
    workers: int
    restart: Restart
    graceful_timeout: float
    prefix: bool
    uvloop: bool
    max_size: int | None
    coordinator: str | None
    """The address of a coordinator to join."""
    start_coordinator: bool
    bind: str | None
    curve_keys: str | None
    term: float
    max_jobs: int | None
    """Jobs after which a worker is replaced."""
    max_memory: int | None
    """MiB that a worker may have before it is replaced."""
    directory: RunDirectory
    script_open_files: int
    """How many files a script may have open (RLIMIT_NOFILE), whatever we need ourselves."""
    environment: Callable[[], dict[str, str]] = field(default=dict, repr=False)
    """Reads what the workers get besides our own environment, also from the settings file. It may hold a password."""
    logs: LogSpec = field(default_factory=LogSpec)
    log_file: str | None = None
    """Where all that is printed goes, opened anew when we are told."""
    listening: Listening | None = None
    """Where the run is shown, if it is."""
    watched: Path | None = None
    """The directory in which a change has the workers replaced, with `watched_too`."""
    watched_too: list[Path] = field(default_factory=list)

    @property
    def open_files(self) -> int:
        """How many files the supervisor may have open at once."""
        replaced = self.max_jobs is not None or self.max_memory is not None
        return self.open_files_of(2 * self.workers if replaced else self.workers)

    def open_files_of(self, workers: int) -> int:
        """The same, with so many workers."""
        per_child = 6 if self.prefix else 4  # pidfd, control, two of multiprocess, and two that we copy from
        others = self.start_coordinator + _DISPATCHERS + (self.listening is not None)
        return _OPEN_FILES + per_child * (workers + others)
