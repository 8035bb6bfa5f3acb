"""`pysqlx-ctl`: look at what runs, run a coordinator for processes that another manager starts, make keys for processes
of other hosts, and look at jobs and change them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import SettingsError
from ..system import need_posix
from .control import Json, ask
from .ctl_jobs import JobsFailure, JobsUsageError, add_jobs, text_of
from .looking import RefusedLookError, look
from .messages import shown
from .rundir import RunDirectory, RunDirectoryError, list_runs, run_directory
from .status import RunStatus, schema

if TYPE_CHECKING:
    from ..settings import RunSettings

DONE = 0
FAILED = 1
USAGE = 2
CANNOT_START = 3
_SHELLS = ("bash", "zsh", "fish")

_EPILOG = """\
examples:
  pysqlx-ctl status                         the only run there is
  pysqlx-ctl status --name api              the run named api
  pysqlx-ctl status --json                  the same for programs: one JSON object
  pysqlx-ctl health --name api              exit status 0 when all workers are up, for probes
  pysqlx-ctl coordinator --max-size 30      one budget of 30 for processes of gunicorn, uvicorn, Celery
  pysqlx-ctl keygen /etc/pysqlx             keys for processes of several hosts, see docs/hosts.md
  pysqlx-ctl scale 8                        eight workers from now on
  pysqlx-ctl resize 40                      a budget of 40 from now on
  pysqlx-ctl jobs stats                     jobs: what waits, how long, and who works

exit status:
  0  done
  1  no such run, or it does not answer; status and health: not all of it is there; a file cannot be written, or is
     there already; nothing done about jobs
  2  wrong usage, also when there are several runs and no --name
  3  the coordinator cannot start: a live run has its name, or its directory cannot be used
"""

_COORDINATOR = """\
Run a coordinator, in the foreground, for processes that another manager starts. However many processes join it, the
connections that their pools have open to one database are never more than --max-size together.

It prints one line (two where there is no ipc://) when it can be reached. A process joins when that is in its
environment; one that is there before the coordinator waits for it. A process that cannot reach it gets no connection:
never a pool with a budget of its own.
"""

_COORDINATOR_EPILOG = """\
Command line goes before environment, environment before settings file, settings file before default.

examples, each in its own terminal or unit of systemd:
  pysqlx-ctl coordinator --max-size 30
  PYSQLX_COORDINATOR=ipc:///run/user/1000/pysqlx/default/coordinator.sock gunicorn -w 4 app:app

  pysqlx-ctl coordinator --name shop --settings production.env
  export PYSQLX_COORDINATOR=ipc:///run/user/1000/pysqlx/shop/coordinator.sock
  gunicorn -w 4 --threads 8 shop.web:app
  celery -A shop.tasks worker --concurrency 4

  pysqlx-ctl status --name shop

signals:
  TERM, INT   end. Connections that are open go on working, and no process gets more of them until a coordinator of
              this name is there again. After a kill -9 it is the same: the next one finds in its journal who held what.

exit status:
  0  ended by TERM or INT
  2  wrong usage, or a setting that is not allowed
  3  it cannot start: a live run has its name, or its directory cannot be used
"""


class _Failure(Exception):
    """What ends the command: a line for the user, and the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        _check_system(options.command)
        options.command(options)
    except _Failure as failure:
        print(f"pysqlx-ctl: {failure}", file=sys.stderr)
        return failure.status
    return DONE


def _check_system(command: Callable[[argparse.Namespace], None]) -> None:
    if command not in (_run_jobs, _complete):  # these ask nobody on this host
        try:
            need_posix("this command")
        except SettingsError as error:
            raise _Failure(str(error), USAGE) from None


def _show_status(options: argparse.Namespace) -> None:
    if options.schema:
        _say(json.dumps(schema(), indent=2))
        return
    run = _run_to_ask(options.name)
    try:
        status = look(run)
    except (OSError, ValueError, RefusedLookError) as error:
        raise _no_answer(run, error) from None
    _say(json.dumps(msgspec.to_builtins(status), indent=2) if options.json else _tables(status))
    _check_ready(run, ready=status.health.ready, missing=status.health.missing)


def _complete(options: argparse.Namespace) -> None:
    import shtab  # nothing else needs it

    from . import run

    _say("\n".join(shtab.complete(parser, options.shell) for parser in (run._parser(), _parser())))


def _health(options: argparse.Namespace) -> None:
    run = _run_to_ask(options.name)
    # A coordinator alone has no supervisor.
    answer = _ask(run, run.supervisor if run.supervisor.exists() else run.control, {"op": "health"})
    what = "the coordinator answers"
    if answer["workers"] is not None:
        what = f"{answer['up']} of {answer['workers']} workers are up"
    if not answer["coordinator"]:
        what += "; the coordinator is not there"
    _say(json.dumps(answer, indent=2) if options.json else f"run {run.name}: {what}")
    _check_ready(run, ready=answer["ready"] or options.live)


def _check_ready(run: RunDirectory, *, ready: bool, missing: Sequence[str] = ()) -> None:
    if not ready:
        why = f": {', '.join(missing)}" if missing else ""
        raise _Failure(f"the run {run.name} is not ready{why}", FAILED)


def _dashboard(options: argparse.Namespace) -> None:
    from ..settings import is_http_address
    from .observer.spec import DEFAULT, check_installed, listen

    run, settings = _run_to_look_at(options)
    try:
        check_installed(dashboard=True, metrics=False)
        token = settings.dashboard_token
        address = options.listen or DEFAULT
        if not is_http_address(address):
            raise SettingsError(f"--listen {address} is not allowed: it has to be HOST:PORT")
        listening = listen(address, None, token.get_secret_value() if token is not None else None, "--listen")
    except SettingsError as error:
        raise _Failure(str(error), USAGE) from None
    from .observer.process import observe_alone

    _join(run)
    _say(f"run {run.name}: {listening.url}")
    observe_alone(run, listening, settings.uri.get_secret_value() if settings.uri is not None else None)


def _top(options: argparse.Namespace) -> None:
    if not (options.once or (sys.stdout.isatty() and sys.stdin.isatty())):
        raise _Failure("top needs a terminal: there are top --once, and status --json for programs", USAGE)
    run, settings = _run_to_look_at(options)
    from .observer.top import show

    _join(run)
    text = show(run, settings.uri.get_secret_value() if settings.uri is not None else None, once=options.once)
    if text is not None:
        _say(text)


def _run_to_look_at(options: argparse.Namespace) -> tuple[RunDirectory, RunSettings]:
    from ..settings import load_run_settings

    run = _run_to_ask(options.name)
    try:
        return run, load_run_settings(options.settings, uri=options.uri)
    except SettingsError as error:
        raise _Failure(str(error), USAGE) from None


def _join(run: RunDirectory) -> None:
    from .observer.watch import joining

    try:
        joining(run)
    except (OSError, ValueError, KeyError) as error:
        raise _no_answer(run, error) from None


def _scale(options: argparse.Namespace) -> None:
    answer = _order(options.name, {"op": "scale", "workers": options.workers})
    _say(f"{answer['workers']} workers from now on")


def _drain(options: argparse.Namespace) -> None:
    answer = _order(options.name, {"op": "drain", "worker": options.worker})
    _say(f"worker {answer['worker']} ends, and nobody takes its place")


def _reload(options: argparse.Namespace) -> None:
    answer = _order(options.name, {"op": "reload"})
    _say(f"{answer['workers']} workers are replaced, one after the other")


def _resize(options: argparse.Namespace) -> None:
    question: Json = {"op": "resize", "size": options.size}
    run = _run_to_ask(options.name)
    answer = _ask(run, run.control, question)
    if run.supervisor.exists():  # it starts the next coordinator
        _ask(run, run.supervisor, question)
    _say(
        f"the budget of each database is {answer['size']} from now on; what is open beyond it is closed when it comes "
        "back"
    )


def _recall(options: argparse.Namespace) -> None:
    _ask_run(options.name, {"op": "recall"})
    _say("every connection is closed: idle ones now, others as they come back; new ones are opened as they are needed")


def _order(name: str | None, question: Json) -> Json:
    """Say it to whoever started the workers."""
    run = _run_to_ask(name)
    if not run.supervisor.exists():
        raise _Failure(
            f"the run {run.name} is a coordinator alone: whoever started its processes decides about them",
            FAILED,
        )
    return _ask(run, run.supervisor, question)


def _run_coordinator(options: argparse.Namespace) -> None:
    from ..settings import load_standalone_settings  # takes longer than the rest of a status
    from .standalone import CannotStartError, run_coordinator

    try:
        settings = load_standalone_settings(options.settings, name=options.name, max_size=options.max_size,
            bind=options.bind, curve_keys=options.curve_keys, term=options.term,
            log_format=options.log_format, log_level=options.log_level,
        )  # fmt: skip
        run_coordinator(settings, lambda told: _say("\n".join(map("=".join, told.items()))))
    except SettingsError as error:
        raise _Failure(str(error), USAGE) from None
    except CannotStartError as error:
        raise _Failure(str(error), CANNOT_START) from None


def _run_jobs(options: argparse.Namespace) -> None:
    try:
        _say(text_of(options))
    except JobsUsageError as error:
        raise _Failure(str(error), USAGE) from None
    except JobsFailure as error:
        raise _Failure(str(error), FAILED) from None


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # at exit Python tries to write the rest again


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pysqlx-ctl",
        description="Look at what runs: connection budgets and workers. Run a coordinator for other process managers. "
        "Look at jobs, and change them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('pysqlx-engine')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    status = commands.add_parser(
        "status",
        help="show budgets and workers",
        description="For each budget: size, leased, in use, idle, waiting. For each worker: pid, uptime, restarts, "
        "leases, in use, idle, waiting.",
    )
    status.add_argument("--name", metavar="RUN", help="the run to ask (default: the only one there is)")
    status.add_argument("--json", action="store_true", help="print one JSON object, as --schema describes it")
    status.add_argument("--schema", action="store_true", help="print the JSON Schema of --json, and ask nobody")
    status.set_defaults(command=_show_status)
    coordinator = commands.add_parser(
        "coordinator",
        help="run a coordinator for processes that gunicorn, uvicorn, Celery or others start",
        description=_COORDINATOR,
        epilog=_COORDINATOR_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # What is allowed stands in the settings, and the error quotes it from there.
    coordinator.add_argument(
        "--name",
        metavar="NAME",
        help="what pysqlx-ctl knows it by, a part of its address [PYSQLX_NAME, default default]",
    )
    coordinator.add_argument(
        "--max-size",
        metavar="N",
        help="the budget of each database, whatever pools say: 1 to 100000 connections [PYSQLX_MAX_SIZE, default: what "
        "the pools say]",
    )
    coordinator.add_argument(
        "--bind", metavar="ADDRESS", help="tcp://HOST:PORT where processes of other hosts can join [PYSQLX_BIND]"
    )
    coordinator.add_argument(
        "--curve-keys", metavar="FILE", help="coordinator.keys of pysqlx-ctl keygen [PYSQLX_CURVE_KEYS]"
    )
    coordinator.add_argument(
        "--term",
        metavar="SECONDS",
        help="without a sign of life until a process of another host counts as dead, 2 to 300 [PYSQLX_TERM, default 6]",
    )
    coordinator.add_argument(
        "--log-format", metavar="FORMAT", help="of what it logs, text or json [PYSQLX_LOG_FORMAT, default text]"
    )
    coordinator.add_argument(
        "--log-level", metavar="LEVELS", help="from which on it logs [PYSQLX_LOG_LEVEL, default warning]"
    )
    coordinator.add_argument("--settings", metavar="FILE", help="settings file, lines of NAME=value [PYSQLX_SETTINGS]")
    coordinator.set_defaults(command=_run_coordinator)
    keygen = commands.add_parser(
        "keygen",
        help="make keys for processes of other hosts",
        description="Write coordinator.keys and client.keys, which connections over tcp:// need. Files that are there "
        "already are left alone.",
    )
    keygen.add_argument("directory", metavar="DIRECTORY", nargs="?", default=".", help="where to (default: here)")
    keygen.set_defaults(command=_keygen)
    completion = commands.add_parser(
        "completion",
        help="completion of our commands for a shell",
        description="Print what a shell needs to complete the commands and options of pysqlx-run and pysqlx-ctl.",
        epilog='In ~/.bashrc: eval "$(pysqlx-ctl completion bash)". In ~/.zshrc, behind compinit: eval "$(pysqlx-ctl '
        'completion zsh)". In config.fish: pysqlx-ctl completion fish | source.',
    )
    completion.add_argument("shell", choices=_SHELLS, help=", ".join(_SHELLS))
    completion.set_defaults(command=_complete)
    _add_steering(commands)
    add_jobs(commands, _run_jobs)
    return parser


def _add_steering(commands: Any) -> None:
    def command(name: str, act: Callable[[argparse.Namespace], None], text: str, more: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=more)
        parser.add_argument("--name", metavar="RUN", help="the run (default: the only one there is)")
        parser.set_defaults(command=act)
        return parser

    health = command(
        "health", _health, "whether all is there, for probes",
        "End with 0 when the run answers, every worker is up and the coordinator is there; with 1 otherwise. A worker "
        "is up when it has had a pool or serves a queue; one with neither when it has lived for a second.",
    )  # fmt: skip
    health.add_argument("--live", action="store_true", help="0 as soon as the run answers: whether to restart it")
    health.add_argument("--json", action="store_true", help="print one JSON object")
    top = command(
        "top", _top, "a live view in the terminal",
        "Show budgets as bars, workers, throughput and waits, and with a database the queues, anew each second. The "
        "arrows move through the workers, q quits.",
    )  # fmt: skip
    top.add_argument("--once", action="store_true", help="print it once, after a second, and end")
    dashboard = command(
        "dashboard", _dashboard, "serve a web page that shows a run",
        "Serve a web page, in the foreground, that shows who holds the budget, now and over the last hour, the "
        "workers, the queues and the jobs. It serves /metrics for Prometheus, /healthz and /readyz, too. Elsewhere "
        "than on loopback it needs a token: PYSQLX_DASHBOARD_TOKEN, or one that is made and printed.",
    )  # fmt: skip
    dashboard.add_argument("--listen", metavar="ADDRESS", help="HOST:PORT (default: 127.0.0.1:8787)")
    for parser in (top, dashboard):
        parser.add_argument("--uri", metavar="URI", help="the database that has the jobs [PYSQLX_URI]")
        parser.add_argument("--settings", metavar="FILE", help="settings file, lines of NAME=value [PYSQLX_SETTINGS]")
    scale = command(
        "scale", _scale, "have more workers, or fewer",
        "Have WORKERS workers. Those with the highest numbers end first, as at a TERM: they may take the graceful "
        "timeout. The budget stays.",
    )  # fmt: skip
    scale.add_argument("workers", metavar="WORKERS", type=int, help="1 to 4096")
    drain = command(
        "drain", _drain, "have one worker end",
        "End one worker as at a TERM. Nobody takes its place, until pysqlx-ctl scale.",
    )  # fmt: skip
    drain.add_argument("worker", metavar="WORKER", type=int, help="its number, as pysqlx-ctl status shows it")
    command(
        "reload", _reload, "replace all workers, one after the other",
        "Replace every worker by one that runs the script as it is now, and reads the settings file again; the new one "
        "is up before the old one ends. If the first does not come up, the others stay as they are. HUP does the same.",
    )  # fmt: skip
    resize = command(
        "resize", _resize, "change the budget",
        "Change the budget of each database, for as long as the run, or the coordinator, lasts. A smaller one is there "
        "when so many connections have come back; until then nobody gets another.",
    )  # fmt: skip
    resize.add_argument("size", metavar="SIZE", type=int, help="1 to 100000 connections")
    command(
        "recall", _recall, "have every connection closed and opened anew",
        "Close idle connections at once, others as they come back, and open new ones as they are needed: before "
        "maintenance of the database, or after its address has changed.",
    )  # fmt: skip


def _keygen(options: argparse.Namespace) -> None:
    directory = Path(options.directory)
    from .keys import VARIABLE, write_keys

    try:
        coordinator, client = write_keys(directory)
    except FileExistsError as error:
        raise _Failure(
            f"{error.filename} is there already: new keys would shut out everybody who has the old ones; remove it, or "
            "name another directory",
            FAILED,
        ) from None
    except OSError as error:
        raise _Failure(f"cannot write keys into {directory}: {error.strerror}", FAILED) from None
    _say(
        f"{coordinator}\n"
        "    stays on the coordinator's host; start it with\n"
        f"    {VARIABLE}={coordinator} pysqlx-ctl coordinator --bind tcp://ADDRESS:PORT ...\n"
        f"    or {VARIABLE}={coordinator} pysqlx-run --bind tcp://ADDRESS:PORT --name NAME ...\n"
        f"{client}\n"
        "    copy it, by scp for example, to each host whose processes join; start these with\n"
        f"    {VARIABLE}={client.name} PYSQLX_COORDINATOR=tcp://ADDRESS:PORT ...\n"
        "Both hold secret keys and have mode 0600: who can read client.keys can join."
    )


def _ask_run(name: str | None, question: Json) -> Json:
    run = _run_to_ask(name)
    return _ask(run, run.control, question)


def _run_to_ask(name: str | None) -> RunDirectory:
    try:
        return _find_run(name)
    except (SettingsError, RunDirectoryError) as error:
        raise _Failure(str(error), USAGE) from None


def _ask(run: RunDirectory, path: Path, question: Json) -> Json:
    try:
        answer = ask(path, question)
    except (OSError, ValueError) as error:
        raise _no_answer(run, error) from None
    if "error" in answer:
        raise _Failure(f"the run {run.name}: {answer['error']}", FAILED)
    return answer


def _no_answer(run: RunDirectory, error: Exception) -> _Failure:
    return _Failure(f"the run {run.name} does not answer ({error}): is it still starting, or gone?", FAILED)


def _find_run(name: str | None) -> RunDirectory:
    runs = list_runs()
    if name is not None:
        run = run_directory(name)
        if not run.is_live():
            known = f"; active: {', '.join(run.name for run in runs)}" if runs else ""
            raise _Failure(f"no run named {name} is active{known}", FAILED)
        return run
    if not runs:
        raise _Failure("no run is active", FAILED)
    if len(runs) > 1:
        raise _Failure(f"several runs are active, choose one with --name: {', '.join(run.name for run in runs)}", USAGE)
    return runs[0]


def _tables(status: RunStatus) -> str:
    from rich.console import Console  # only for people: --json does without it
    from rich.markup import escape
    from rich.table import Table

    from .observer.screen import duration

    console = Console(highlight=False)
    budgets = Table("database", title=f"run {status.run}: budgets", title_justify="left")
    for column in ("size", "leased", "in use", "idle", "waiting"):
        budgets.add_column(column, justify="right")
    for budget in status.budgets:
        numbers = (budget.size, budget.leased, budget.in_use, budget.idle, budget.waiting)
        budgets.add_row(escape(shown(budget.database)), *map(str, numbers))
    workers = Table("worker", title="workers", title_justify="left")
    for column in ("pid", "uptime", "restarts", "leases", "in use", "idle", "waiting"):
        workers.add_column(column, justify="right")
    for worker in status.workers:
        name = "-" if worker.worker is None else str(worker.worker)
        numbers = (worker.restarts, worker.leases, worker.in_use, worker.idle, worker.waiting)
        workers.add_row(name, str(worker.pid or "-"), duration(worker.uptime), *map(str, numbers))
    with console.capture() as text:  # not printed by it: at a closed pipe it ends the process, with status 1
        console.print(budgets)
        console.print(workers)
    return text.get().removesuffix("\n")


if __name__ == "__main__":
    sys.exit(main())
