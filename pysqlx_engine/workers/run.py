"""The command `pysqlx-run`: reads the command line, checks what can be checked, and hands over to the supervisor."""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import logging
import os
import re
import signal
import stat
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..errors import SettingsError
from ..system import need_posix

if TYPE_CHECKING:
    from ..settings import RunSettings
    from .observer.spec import Listening
    from .plan import RunPlan
    from .worker import Target

__all__ = ["main"]

_DESCRIPTION = """\
Run a script in several processes whose pools share one budget of database connections.

Each worker runs SCRIPT as python would. However many workers there are, the connections that their pools have open to
one database are never more than --max-size together.

SCRIPT is a file, a module (as with python -m), or module:callable (called without arguments; a coroutine function is
run with asyncio.run). What stands behind SCRIPT belongs to the script: it is in its sys.argv.
"""

_EPILOG = """\
Command line goes before environment, environment before settings file, settings file before default. The settings file
may also hold what a pool takes from the settings (PYSQLX_URI, PYSQLX_MIN_SIZE, PYSQLX_MAX_SIZE).

examples:
  pysqlx-run -w 8 --max-size 30 worker.py
  pysqlx-run -w 4 --settings production.env worker.py --queue mail
  pysqlx-run -w 4 shop.workers:main

signals:
  TERM, INT   drain: the pools hand out no more connections, the scripts are ended (their own TERM handler, or
              KeyboardInterrupt); what still runs after --graceful-timeout is killed
  second INT, QUIT   kill at once
  HUP         reload: every worker is replaced, one after the other, the new one up before the old one ends; the
              settings file is read again. (When the terminal is closed, HUP drains.)
  TTIN, TTOU  one worker more, one less
  USR1        open the log file anew, after it was moved away
  USR2        write the state of everybody to the log, with what each thread does
pysqlx-ctl scale, drain, reload, resize and recall do the same and more, and answer.

exit status:
  0  every worker has ended with 0, or the run was drained in time
  1  a script failed, or had to be killed
  2  wrong usage, or a setting that is not allowed
  3  it could not start: no such script, syntax or import error, refused pool, wrong password
"""


# Each process that opens these gets a file of its own.
_OWN_DESCRIPTORS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


_LIKE_AN_ADDRESS = re.compile(r"[^/]*:\d*|\d+")
"""No file that is a script, no module and no module:callable: a good address, or one that is refused as such."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


class _BootFailureError(Exception):
    """The run cannot start, and could not if it were tried again."""


def main(argv: list[str] | None = None) -> int:
    """Run `pysqlx-run` with the arguments `argv` (default: the process's). Returns the exit status."""
    try:
        need_posix("this command")
    except SettingsError as error:
        _parser().parse_args(argv)  # --help helps everywhere
        return _fail(2, error, "", None)
    from .process import STEERING_SIGNALS, open_standard_streams  # which needs what we have by now

    open_standard_streams()
    signal.pthread_sigmask(signal.SIG_BLOCK, STEERING_SIGNALS)  # until somebody obeys them: logrotate is not to end us
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the supervisor takes it, it ends us, without a traceback
    parser = _parser()
    options = parser.parse_args(_with_address(parser, sys.argv[1:] if argv is None else argv))
    settings: RunSettings | None = None
    try:
        settings = _settings(options)
        return _run(options, settings)
    except SettingsError as error:
        return _fail(2, error, options.script, settings)
    except _BootFailureError as error:
        return _fail(3, error, options.script, settings)


def _fail(status: int, error: Exception, script: str, settings: RunSettings | None) -> int:
    """`settings`: None where it is they that are not right."""
    text = f"pysqlx-run: {error}"
    if settings is not None and settings.log_format == "json":
        from .logs import LogSpec, Voice
        from .rundir import default_name

        logs = LogSpec(settings.name or default_name(script), "json")
        line = Voice(logs, "supervisor").line(str(error), logging.ERROR) or b""
        text = line.decode().rstrip("\n")
    print(text, file=sys.stderr)  # noqa: T201 - this is the command's voice
    return status


def _settings(options: argparse.Namespace) -> RunSettings:
    from ..settings import load_run_settings

    return load_run_settings(
        options.settings,
        workers=options.workers,
        max_size=options.max_size,
        uri=options.uri,
        restart=options.restart,
        graceful_timeout=options.graceful_timeout,
        max_jobs=options.max_jobs,
        max_memory=options.max_memory,
        name=options.name,
        loop=options.loop,
        prefix=options.prefix,
        bind=options.bind,
        curve_keys=options.curve_keys,
        term=options.term,
        log_file=options.log_file,
        log_format=options.log_format,
        log_level=options.log_level,
        reload=options.reload,
        dashboard=options.dashboard,
        metrics=options.metrics,
    )


def _run(options: argparse.Namespace, settings: RunSettings) -> int:
    import resource

    from ..settings import worker_environment

    target = _target(options.script, options.args)
    _check(target)
    uvloop = _wants_uvloop(settings)

    from .logs import LogSpec
    from .plan import RunPlan
    from .rundir import Joined, OwnCoordinator, RunDirectoryError, default_name, run_directory
    from .supervisor import Supervisor

    name = settings.name or default_name(options.script)
    joins = settings.coordinator is not None
    if joins and options.max_size is not None:  # in the environment it may be another run's, whose worker started us
        raise SettingsError(
            f"--max-size {options.max_size} would not be heard: PYSQLX_COORDINATOR is set, and the coordinator that is "
            "joined there has the budget; state the size where that is started, or unset PYSQLX_COORDINATOR"
        )
    if joins and options.bind is not None:
        raise SettingsError(
            f"--bind {options.bind} would not be heard: PYSQLX_COORDINATOR is set, and the coordinator that is joined "
            "there listens where it was told; unset PYSQLX_COORDINATOR to start one here"
        )
    _check_addresses(settings)
    listening = _listening(settings)
    directory = run_directory(name)
    plan = RunPlan(
        name=name,
        target=target,
        workers=settings.workers,
        restart=settings.restart,
        graceful_timeout=settings.graceful_timeout,
        prefix=settings.prefix,
        uvloop=uvloop,
        max_size=settings.max_size,
        coordinator=settings.coordinator,
        # What shows a run has a connection of its own, in the same budget.
        start_coordinator=not joins
        and (settings.workers > 1 or options.coordinator or settings.bind is not None or listening is not None),
        bind=settings.bind,
        curve_keys=settings.curve_keys,
        term=settings.term,
        max_jobs=settings.max_jobs,
        max_memory=settings.max_memory,
        directory=directory,
        script_open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        environment=lambda: worker_environment(
            options.settings,
            uri=options.uri,
            max_size=options.max_size,
            curve_keys=options.curve_keys if joins else None,
        ),
        logs=LogSpec(name, settings.log_format, settings.log_level),
        log_file=settings.log_file,
        listening=listening,
        watched=_watched(target) if settings.reload else None,
        watched_too=[Path(file) for file in (options.settings or os.environ.get("PYSQLX_SETTINGS"),) if file],
    )
    _allow_open_files(plan)
    if not settings.prefix and settings.log_format == "json":
        raise SettingsError("--no-prefix: with --log-format json the lines of all go through one hand that wraps them")
    if settings.log_file is not None:
        _log_to(settings)
    coordinator = (
        Joined.from_here(settings.coordinator, settings.curve_keys)
        if settings.coordinator is not None
        else OwnCoordinator()
        if plan.start_coordinator
        else None
    )
    try:
        claimed = directory.claim(supervised=True, coordinator=coordinator)
    except RunDirectoryError as error:
        raise _BootFailureError(str(error)) from None
    try:
        return Supervisor(plan).run()
    finally:
        claimed.release()


def _with_address(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """The arguments, with the usual address where --dashboard is followed by none: what follows it may be SCRIPT, which
    argparse would take for it."""
    from .observer.spec import DEFAULT

    for at, word in enumerate(words):
        action = parser._option_string_actions.get(word)
        if word == "--dashboard" and not (at + 1 < len(words) and _LIKE_AN_ADDRESS.fullmatch(words[at + 1])):
            return [*words[:at], f"--dashboard={DEFAULT}", *words[at + 1 :]]
        is_value = at > 0 and (before := parser._option_string_actions.get(words[at - 1])) and before.nargs is None
        if action is None and not word.startswith("-") and not is_value:
            break  # SCRIPT, and what follows is its own
    return words


def _listening(settings: RunSettings) -> Listening | None:
    from .observer.spec import check_installed, listen

    if settings.dashboard is None and settings.metrics is None:
        return None
    check_installed(dashboard=settings.dashboard is not None, metrics=settings.metrics is not None)
    token = settings.dashboard_token
    return listen(settings.dashboard, settings.metrics, token.get_secret_value() if token is not None else None)


def _check_addresses(settings: RunSettings) -> None:
    """Find out before any process is started that it is not safe to listen, or to join, there."""
    from .endpoints import joining, listening

    if settings.coordinator is not None:
        joining(settings.coordinator, settings.curve_keys)
    elif settings.bind is not None:
        listening(settings.bind, settings.curve_keys)


def _target(script: str, arguments: list[str]) -> Target:
    from .worker import Target

    if not os.path.isfile(script) and not script.endswith(".py"):
        if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", script):
            return Target("callable", script, tuple(arguments))
        if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", script):
            return Target("module", script, tuple(arguments))
    return Target("script", script, tuple(arguments))


def _check(target: Target) -> None:
    """Find a missing or broken script before any process is started. Nothing of the user's is run here."""
    if target.kind != "script":
        top = re.split(r"[.:]", target.name)[0]
        if importlib.machinery.PathFinder.find_spec(top, [os.getcwd(), *sys.path]) is None:
            also = f"no file {target.name!r} and " if target.kind == "module" else ""
            raise _BootFailureError(f"{also}no module named {top!r} in {os.getcwd()} or on the Python path")
        return
    try:
        with open(target.name, "rb") as stream:
            # A pipe can be read only once.
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode) or target.name.startswith(_OWN_DESCRIPTORS):
                raise _BootFailureError(
                    f"{target.name} is no file that each worker could read anew: give the path of a regular file"
                )
            source = stream.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the workers compile it too, and warn
            compile(source, target.name, "exec", dont_inherit=True)
    except OSError as error:
        raise _BootFailureError(f"cannot read the script {target.name}: {error.strerror}") from None
    except SyntaxError as error:
        raise _BootFailureError(f"{target.name}, line {error.lineno}: {type(error).__name__}: {error.msg}") from None
    except ValueError as error:  # a zero byte
        raise _BootFailureError(f"{target.name} is no Python source: {error}") from None


def _watched(target: Target) -> Path:
    """The directory of a script's file; of a module, where we are."""
    if importlib.util.find_spec("watchfiles") is None:
        raise SettingsError(
            "--reload: watchfiles is not installed; install it with: pip install 'pysqlx-engine[reload]'"
        )
    return Path(target.name).resolve().parent if target.kind == "script" else Path.cwd()


def _log_to(settings: RunSettings) -> None:
    from .output import log_to

    assert settings.log_file is not None
    if not settings.prefix:
        raise SettingsError("--no-prefix: with --log-file the lines of all go through one hand, each with its name")
    try:
        log_to(settings.log_file)
    except OSError as error:
        raise SettingsError(f"--log-file {settings.log_file}: cannot be opened: {error.strerror}") from None


def _allow_open_files(plan: RunPlan) -> None:
    """The coordinator inherits our limit, and has two files open for each worker."""
    from .process import allow_open_files

    hard = allow_open_files(plan.open_files)
    if hard is not None:
        raise _BootFailureError(
            f"-w {plan.workers} needs {plan.open_files} open files, and the hard limit is {hard}: "
            "raise it (ulimit -n), or start fewer workers"
        )


def _wants_uvloop(settings: RunSettings) -> bool:
    installed = importlib.util.find_spec("uvloop") is not None
    if settings.loop == "uvloop" and not installed:
        raise SettingsError(
            "--loop uvloop: uvloop is not installed; install it with: pip install 'pysqlx-engine[uvloop]'"
        )
    return installed and settings.loop != "asyncio"


def _parser() -> _Parser:
    from ..settings import RunSettings

    parser = _Parser(
        prog="pysqlx-run",
        usage="pysqlx-run [options] SCRIPT [ARGS...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def option(*names: str, metavar: str, text: str) -> None:
        """An option whose range and default are those of the setting, so that they are written down once."""
        name = names[-1].removeprefix("--").replace("-", "_")
        field = RunSettings.model_fields[name]
        default = "none" if field.default is None else field.default
        text = f"{text}: {field.description} [PYSQLX_{name.upper()}, default {default}]"
        parser.add_argument(*names, metavar=metavar, help=text)

    parser.add_argument("script", metavar="SCRIPT", help="a file, a module, or module:callable")
    arguments = parser.add_argument("args", metavar="ARGS", nargs=argparse.REMAINDER, help="arguments of the script")
    arguments.required = False  # or a missing SCRIPT would be reported as a missing SCRIPT and ARGS
    option("-w", "--workers", metavar="N", text="how many")
    option("--max-size", metavar="N", text="the budget of each database, whatever scripts say")
    parser.add_argument("--settings", metavar="FILE", help="settings file, lines of NAME=value [PYSQLX_SETTINGS]")
    option("--uri", metavar="URI", text="the database of pools that name none")
    option("--restart", metavar="WHEN", text="start a worker again when it has ended")
    option("--graceful-timeout", metavar="SECONDS", text="between draining and killing")
    option("--max-jobs", metavar="N", text="replace a worker that has run so many jobs of a queue")
    option("--max-memory", metavar="MIB", text="replace a worker of a queue that uses so much memory")
    option("--log-file", metavar="FILE", text="where all that is printed goes, instead of the terminal")
    option("--log-format", metavar="FORMAT", text="how it is written")
    option("--log-level", metavar="LEVELS", text="from which level on")
    parser.add_argument(
        "--reload",
        action="store_true",
        default=None,
        help="for development: reload when a Python file in the script's directory, or the settings file, has changed "
        "[PYSQLX_RELOAD=true]",
    )
    option("--dashboard", metavar="ADDRESS", text="serve a web page that shows the run; 127.0.0.1:8787 if none is said")
    option("--metrics", metavar="ADDRESS", text="serve metrics for Prometheus, and health")
    option("--name", metavar="NAME", text="what pysqlx-ctl knows the run by")
    option("--loop", metavar="LOOP", text="the event loop of asyncio; auto is uvloop when it is installed")
    parser.add_argument(
        "--no-prefix",
        dest="prefix",
        action="store_false",
        default=None,
        help="let workers print to the terminal themselves, without their name in front [PYSQLX_PREFIX=false]",
    )
    parser.add_argument(
        "--coordinator",
        action="store_true",
        help="start a coordinator for a single worker too, so that others can join",
    )
    option("--bind", metavar="ADDRESS", text="where processes of other hosts can join; starts a coordinator too")
    option("--curve-keys", metavar="FILE", text="keys of connections over tcp://")
    option("--term", metavar="SECONDS", text="patience with other hosts")
    parser.add_argument("--version", action="version", version=f"pysqlx-run {_version()}")
    return parser


def _version() -> str:
    try:
        return metadata.version("pysqlx-engine")
    except metadata.PackageNotFoundError:
        return "of a source tree that is not installed"


if __name__ == "__main__":
    sys.exit(main())
