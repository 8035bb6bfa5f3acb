"""`pysqlx-ctl`: look at what runs, and make keys for what runs on several hosts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from ..errors import SettingsError
from .control import Json, ask
from .rundir import RunDirectory, RunDirectoryError, list_runs, run_directory

DONE = 0
FAILED = 1
USAGE = 2

_EPILOG = """\
examples:
  pysqlx-ctl status                the only run there is
  pysqlx-ctl status --name api     the run named api
  pysqlx-ctl status --json         the same for programs: one JSON object
  pysqlx-ctl keygen /etc/pysqlx    keys for processes of several hosts, see docs/hosts.md

exit status:
  0  done
  1  no such run, or it does not answer; a file cannot be written, or is there already
  2  wrong usage, also when there are several runs and no --name
"""


class _Failure(Exception):
    """What ends the command: a line for the user, and the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "keygen":
        return _keygen(Path(arguments.directory))
    try:
        answer = _ask_run(arguments.name, {"op": "status"})
    except _Failure as failure:
        print(f"pysqlx-ctl: {failure}", file=sys.stderr)
        return failure.status
    try:
        print(json.dumps(answer, indent=2) if arguments.json else _tables(answer), flush=True)
    except BrokenPipeError:  # who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # at exit Python tries to write the rest again
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pysqlx-ctl",
        description="Look at a run of pysqlx-run: its connection budgets and its workers.",
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
    status.add_argument("--json", action="store_true", help="print one JSON object")
    keygen = commands.add_parser(
        "keygen",
        help="make keys for processes of other hosts",
        description="Write coordinator.keys and client.keys, which connections over tcp:// need. Files that are there "
        "already are left alone.",
    )
    keygen.add_argument("directory", metavar="DIRECTORY", nargs="?", default=".", help="where to (default: here)")
    return parser


def _keygen(directory: Path) -> int:
    from .keys import VARIABLE, write_keys

    try:
        coordinator, client = write_keys(directory)
    except FileExistsError as error:
        print(
            f"pysqlx-ctl: {error.filename} is there already: new keys would shut out everybody who has the old ones; "
            "remove it, or name another directory",
            file=sys.stderr,
        )
        return FAILED
    except OSError as error:
        print(f"pysqlx-ctl: cannot write keys into {directory}: {error.strerror}", file=sys.stderr)
        return FAILED
    print(
        f"{coordinator}\n"
        "    stays on the coordinator's host; start it with\n"
        f"    {VARIABLE}={coordinator} pysqlx-run --bind tcp://ADDRESS:PORT --name NAME ...\n"
        f"{client}\n"
        "    copy it, by scp for example, to each host whose processes join; start these with\n"
        f"    {VARIABLE}={client.name} PYSQLX_COORDINATOR=tcp://ADDRESS:PORT ...\n"
        "Both hold secret keys and have mode 0600: who can read client.keys can join."
    )
    return DONE


def _ask_run(name: str | None, question: Json) -> Json:
    try:
        run = _find_run(name)
    except (SettingsError, RunDirectoryError) as error:
        raise _Failure(str(error), USAGE) from None
    try:
        answer = ask(run.control, question)
    except (OSError, ValueError) as error:
        raise _Failure(
            f"the run {run.name} does not answer ({error}): is it still starting, or gone?", FAILED
        ) from None
    if "error" in answer:
        raise _Failure(f"the run {run.name}: {answer['error']}", FAILED)
    return answer


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


def _tables(answer: Json) -> str:
    from rich.console import Console  # only for people: --json does without it
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    budgets = Table("database", title=f"run {answer['run']}: budgets", title_justify="left")
    for column in ("size", "leased", "in use", "idle", "waiting"):
        budgets.add_column(column, justify="right")
    for row in answer["budgets"]:
        numbers = (row["size"], row["leased"], row["in_use"], row["idle"], row["waiting"])
        budgets.add_row(escape(row["database"]), *map(str, numbers))
    workers = Table("worker", title="workers", title_justify="left")
    for column in ("pid", "uptime", "restarts", "leases", "in use", "idle", "waiting"):
        workers.add_column(column, justify="right")
    for row in answer["workers"]:
        name = "-" if row["worker"] is None else str(row["worker"])
        numbers = (row["restarts"], row["leases"], row["in_use"], row["idle"], row["waiting"])
        workers.add_row(name, str(row["pid"]), _duration(row["uptime"]), *map(str, numbers))
    with console.capture() as text:  # not printed by it: at a closed pipe it ends the process, with status 1
        console.print(budgets)
        console.print(workers)
    return text.get().removesuffix("\n")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


if __name__ == "__main__":
    sys.exit(main())
