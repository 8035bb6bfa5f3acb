"""A coordinator on its own, in the foreground, for processes that another manager starts: `pysqlx-ctl coordinator`.

It owns a run directory as `pysqlx-run` does, but unsupervised: whoever starts it again (systemd, a container's runtime)
does so by its name, and finds in the journal who was a member and what each held. Its members outlive it.
"""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Callable

from setproctitle import setproctitle

from ..settings import StandaloneSettings
from .endpoints import listening, local
from .logs import LogSpec, set_up
from .process import open_standard_streams
from .rundir import OwnCoordinator, RunDirectoryError, run_directory

__all__ = ["CannotStartError", "run_coordinator"]


class CannotStartError(RuntimeError):
    """The coordinator cannot start. The text is one line for the user."""


def run_coordinator(settings: StandaloneSettings, announce: Callable[[dict[str, str]], None]) -> None:
    """Run a coordinator until TERM or INT. `announce` is told what has to be in the environment of who
    joins it, when it can be reached.

    Raises `SettingsError` for an address or keys that cannot be used, and `CannotStartError`, among others when a live
    run has the name.
    """
    open_standard_streams()
    # Until the coordinator takes it, it ends us, without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    setproctitle(f"pysqlx-ctl: coordinator {settings.name}")
    set_up(LogSpec(settings.name, settings.log_format, settings.log_level), "coordinator")
    directory = run_directory(settings.name)
    if settings.bind is not None:
        listening(settings.bind, settings.curve_keys)  # what is not safe is refused before anything is claimed
    try:
        claimed = directory.claim(supervised=False, coordinator=OwnCoordinator())
    except RunDirectoryError as error:
        raise CannotStartError(str(error)) from None
    _allow_open_files()
    from .coordinator import CannotServeError, CoordinatorConfig, serve  # ZeroMQ: not before the name is ours

    config = CoordinatorConfig(
        directory=str(directory.path),
        max_size=settings.max_size,
        name=settings.name,
        supervised=False,
        bind=settings.bind,
        curve_keys=settings.curve_keys,
        term=settings.term,
    )
    try:
        serve(config, lambda: announce(local(directory).environment))
    except CannotServeError as error:
        raise CannotStartError(str(error)) from None
    finally:
        claimed.release()


def _allow_open_files() -> None:
    """Raise our limit as far as we may: each member takes two files, and how many will come is not known."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
