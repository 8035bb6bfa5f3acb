"""`pysqlx-ctl jobs`: look at the jobs of a database, change them, enqueue one, and make the tables.

What is asked of the database stands in `jobs.views`, what is changed in `jobs.store`; here are the words. Everything
but the words is imported where a command needs it: the other commands of `pysqlx-ctl` need none of it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from ..errors import ConnectError, JobError, JobSchemaError, PySQLXError, SettingsError
from .messages import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .jobs.administration import Administration, Changed
    from .jobs.life import State
    from .jobs.presence import Presence
    from .jobs.views import Filter, ListedJob, PausedQueue, TaskCounts, WholeJob

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_BATCH = 500
"""Jobs that one transaction changes: what runs waits meanwhile to be reported as ended."""
_REASONS = 10
"""Jobs that are named with the reason why nothing was done to them; more are counted."""
_SHORTEST_NOTE = 60
"""Characters of a progress or an error that a list shows, however narrow it is."""
_MOST_LISTED = 10_000
_GREATEST_ID = 2**63 - 1
_LONGEST_WINDOW = 24 * 366 * 10


class JobsFailure(Exception):
    """What ends a command: a line for the user."""


class JobsUsageError(JobsFailure):
    """It was called in a way that cannot be meant."""


# -- the command line -------------------------------------------------------------------------------------------------

_JOBS = """\
Look at the jobs of a database, change them, enqueue one, make the tables. It works on the database alone: none of your
code is imported, and nothing needs to be running.
"""

_JOBS_EPILOG = """\
The database is that of --uri, else of PYSQLX_URI, else of the line PYSQLX_URI=... in the settings file. What is on a
command line can be read by every user of the machine: a URI with a password belongs into the environment or the file.

examples:
  export PYSQLX_URI=postgresql://shop@db.internal/shop
  pysqlx-ctl jobs migrate                            once, and after each upgrade
  pysqlx-ctl jobs stats                              what waits, how long, and who works
  pysqlx-ctl jobs list --state discarded             what has failed for good
  pysqlx-ctl jobs show 4711                          all that went wrong with one
  pysqlx-ctl jobs retry 4711
  pysqlx-ctl jobs COMMAND --help                     more about each

exit status:
  0  done
  1  not done: no such job, none that could be changed, no tables, the database cannot be reached
  2  wrong usage, or a setting that is not allowed
"""

_STATES = """\
states:
  scheduled   not before its time         completed   its handler has returned
  available   may be claimed              discarded   failed, and no attempt is left
  running     claimed, perhaps begun      cancelled   a user, or its handler, did not want it any more
  retrying    failed; there is another attempt, at its time
"""

_LIST = (
    """\
List jobs, the newest first: those that wait and run, and those that have ended, as long as they are kept.

"""
    + _STATES
)

_LIST_EPILOG = """\
examples:
  pysqlx-ctl jobs list                                    the newest 50
  pysqlx-ctl jobs list --state discarded --state retrying what fails
  pysqlx-ctl jobs list --queue mail --task send --limit 10
  pysqlx-ctl jobs list --before 4711                      those before that one: the next page
  pysqlx-ctl jobs list --state running --json             for programs: {"jobs": [...], "before": ...}

With --json, "before" is what to say as --before for the next page, null on the last one; an "error" is the beginning of
what went wrong last. Times are UTC.
"""

_SHOW_EPILOG = """\
examples:
  pysqlx-ctl jobs show 4711
  pysqlx-ctl jobs show 4711 --json     one JSON object; arguments and result are JSON in it

Times are UTC, by the clock of the database server.
"""

_RETRY = """\
Have jobs run now: those that have ended, however that was, and those that wait for their time. One more attempt is
allowed where none is left. What runs, or may be claimed already, is left alone; so is a job whose unique key another
one has by now.
"""

_RETRY_EPILOG = """\
Either say which by their ids, or say --all and what they have in common: --all is never without --queue, --task or
--state. Without --state, it means those that have failed for good, the discarded ones. To see which these are, say the
same to `pysqlx-ctl jobs list`.

examples:
  pysqlx-ctl jobs retry 4711 4712
  pysqlx-ctl jobs retry --all --task send                    every discarded job of the task
  pysqlx-ctl jobs retry --all --queue mail --state retrying  do not wait: try again now
"""

_CANCEL = """\
Cancel jobs that wait, and ask those that run to stop: a coroutine is cancelled, a plain function has to look at
Job.cancel_asked. What has ended is left alone.
"""

_CANCEL_EPILOG = """\
Either say which by their ids, or say --all and what they have in common: --all is never without --queue, --task or
--state. Without --state, it means those that wait and those that run. One that waits and has begun when its turn comes
is asked to stop. To see which these are, say the same to `pysqlx-ctl jobs list`.

examples:
  pysqlx-ctl jobs cancel 4711
  pysqlx-ctl jobs cancel --all --task send
  pysqlx-ctl jobs cancel --all --queue mail --state scheduled --state available --state retrying
"""

_PAUSE = """\
Begin nothing of a queue, on any host, until `pysqlx-ctl jobs resume`. What runs goes on, and jobs are enqueued as
before. It lasts: also over restarts.
"""

_STATS = """\
For each queue and task: how many jobs are in each state, and how long the oldest available one has waited; which queues
are paused; and which dispatchers are known, with the time since each was seen last.
"""

_STATS_EPILOG = """\
What has ended is counted for the last 24 hours, or as --hours says. A dispatcher that is lost is gone, and the next one
makes available what it ran.

examples:
  pysqlx-ctl jobs stats
  pysqlx-ctl jobs stats --hours 1
  pysqlx-ctl jobs stats --hours 0        only what has not ended: of use where history is long
  pysqlx-ctl jobs stats --json           "oldest_waits" in seconds: what to watch
"""

_ENQUEUE = """\
Enqueue a job, without your code. So nobody looks now whether there is such a task and whether the arguments fit it:
that is found when the job runs, and an error of the job then. Nor are the options of the task known, its queue, its
priority, its attempts and its limit: a job is enqueued with what is said here.
"""

_ENQUEUE_EPILOG = """\
It prints the id. With a --unique-key that a job has which has not ended, none is enqueued: the id is that one's.

examples:
  pysqlx-ctl jobs enqueue send --args '{"to": "a@example.org", "count": 3}'
  pysqlx-ctl jobs enqueue cleanup --queue slow --priority -5 --max-attempts 1
  pysqlx-ctl jobs enqueue report --delay 3600 --unique-key report
  pysqlx-ctl jobs enqueue import --args - < arguments.json
"""

_MIGRATE = """\
Make the job tables, or bring those that are there to what this version needs. Safe to call twice, and from several
hosts at once. It needs a user who may create tables; the jobs themselves do not.
"""


def add_jobs(commands: argparse._SubParsersAction[argparse.ArgumentParser], command: Callable[..., None]) -> None:
    """Add `jobs` to the commands. `command` is called with the options; what it is to print is `text_of` them."""
    jobs = commands.add_parser(
        "jobs",
        help="look at jobs, change them, enqueue one, make their tables",
        description=_JOBS,
        epilog=_JOBS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = jobs.add_subparsers(required=True, metavar="COMMAND", dest="jobs_command")

    def add(name: str, text: Callable[[Any], str], summary: str, about: str, epilog: str) -> argparse.ArgumentParser:
        parser = kinds.add_parser(
            name,
            help=summary,
            description=about,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--uri", metavar="URI", help="the database [PYSQLX_URI]")
        parser.add_argument("--settings", metavar="FILE", help="settings file, lines of NAME=value [PYSQLX_SETTINGS]")
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        parser.set_defaults(command=command, text=text)
        return parser

    def add_filter(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--state", metavar="STATE", action="append", help="in this state; more than once: in any")
        parser.add_argument("--queue", metavar="QUEUE", help="of this queue")
        parser.add_argument("--task", metavar="TASK", help="of this task")

    listing = add("list", _list, "list jobs, the newest first", _LIST, _LIST_EPILOG)
    add_filter(listing)
    listing.add_argument("--limit", metavar="N", default="50", help=f"how many, 1 to {_MOST_LISTED} (default: 50)")
    listing.add_argument("--before", metavar="ID", help="only those that were enqueued before this one")

    show = add(
        "show", _show, "show all about a job",
        "Show all about a job: its arguments, its times, how far it is, its result, and what went wrong in each "
        "attempt.",
        _SHOW_EPILOG,
    )  # fmt: skip
    show.add_argument("id", metavar="ID")

    for name, text, summary, about, epilog in (
        ("retry", _retry, "have jobs run now that have failed, ended, or wait", _RETRY, _RETRY_EPILOG),
        ("cancel", _cancel, "cancel jobs that wait, ask those that run to stop", _CANCEL, _CANCEL_EPILOG),
    ):
        change = add(name, text, summary, f"{about}\n{_STATES}", epilog)
        change.add_argument("ids", metavar="ID", nargs="*")
        change.add_argument("--all", action="store_true", help="all jobs that fit --queue, --task and --state")
        add_filter(change)

    pause = add(
        "pause", _pause, "begin nothing of a queue any more", _PAUSE,
        "examples:\n  pysqlx-ctl jobs pause mail\n  pysqlx-ctl jobs stats          which queues are paused\n",
    )  # fmt: skip
    pause.add_argument("queue", metavar="QUEUE")
    resume = add(
        "resume", _resume, "go on with a queue that was paused", "Go on with a queue that was paused.",
        "examples:\n  pysqlx-ctl jobs resume mail\n",
    )  # fmt: skip
    resume.add_argument("queue", metavar="QUEUE")

    stats = add("stats", _stats, "count jobs; paused queues, dispatchers", _STATS, _STATS_EPILOG)
    stats.add_argument(
        "--hours", metavar="N", default="24", help="count what has ended in the last N hours (default: 24)"
    )

    enqueue = add("enqueue", _enqueue, "enqueue a job", _ENQUEUE, _ENQUEUE_EPILOG)
    enqueue.add_argument("task", metavar="TASK")
    enqueue.add_argument(
        "--args", metavar="JSON", default="{}", help="the arguments, a JSON object; -: read it from stdin (default: {})"
    )
    enqueue.add_argument("--queue", metavar="QUEUE", default="default", help="(default: default)")
    enqueue.add_argument("--priority", metavar="N", default="0", help="higher runs first (default: 0)")
    enqueue.add_argument("--delay", metavar="SECONDS", default="0", help="not before so many from now (default: 0)")
    enqueue.add_argument("--max-attempts", metavar="N", help="1 to 1000 (default: 20)")
    enqueue.add_argument("--unique-key", metavar="KEY", help="not a second one with this key at a time")

    add(
        "migrate", _migrate, "make the job tables, or bring them to this version", _MIGRATE,
        "examples:\n  pysqlx-ctl jobs migrate --uri sqlite:shop.db\n  PYSQLX_URI=... pysqlx-ctl jobs migrate\n",
    )  # fmt: skip


def text_of(options: argparse.Namespace) -> str:
    """Do what the options say. Gives what is to be printed; raises JobsFailure."""
    text: str = options.text(options)
    return text


# -- the commands -----------------------------------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> str:
    which = _filter(options)
    limit = _whole("--limit", options.limit, 1, _MOST_LISTED)
    before = None if options.before is None else _whole("--before", options.before, 1, _GREATEST_ID)

    async def look(database: Administration) -> tuple[int, list[ListedJob]]:
        now = await database.store.now(database.connection)
        return now, await database.views.jobs(database.connection, which, limit + 1, before)

    now, jobs = _with_database(options, look)
    more = jobs[limit - 1].id if len(jobs) > limit else None
    del jobs[limit:]
    if options.json:
        return _json({"jobs": [_plain(job) for job in jobs], "before": more})
    if not jobs:
        return "no jobs"
    return _job_table(jobs, now) + ("" if more is None else f"\nmore: --before {more}")


def _show(options: argparse.Namespace) -> str:
    id_ = _whole("ID", options.id, 1, _GREATEST_ID)

    async def look(database: Administration) -> tuple[WholeJob | None, list[Presence]]:
        job = await database.views.job(database.connection, id_)
        return job, await database.dispatchers() if job is not None and job.owner is not None else []

    job, dispatchers = _with_database(options, look)
    if job is None:
        raise JobsFailure(f"there is no job {id_}")
    runs_for = next((one for one in dispatchers if _owns(one, job.owner)), None)
    facts = _plain(job) | {
        "args": _parsed(job.args),
        "result": _parsed(job.result),
        "dispatcher": None if runs_for is None else {"id": runs_for.id, "host": runs_for.host, "pid": runs_for.pid},
    }
    del facts["owner"]
    return _json(facts) if options.json else _job_text(job, runs_for)


def _retry(options: argparse.Namespace) -> str:
    from .jobs.administration import MAY_RETRY, Administration
    from .jobs.life import State

    changed = _change(options, "retry", MAY_RETRY, frozenset({State.DISCARDED}), Administration.retry)
    if options.json:
        return _json({"retried": changed.done, "unchanged": changed.unchanged})
    return f"{_count(changed.done)} to run now{_unchanged(changed)}"


def _cancel(options: argparse.Namespace) -> str:
    from .jobs.administration import MAY_CANCEL, Administration

    changed = _change(options, "cancel", MAY_CANCEL, MAY_CANCEL, Administration.cancel)
    if options.json:
        return _json({"cancelled": changed.done, "asked": changed.asked, "unchanged": changed.unchanged})
    asked = f", {_count(changed.asked)} asked to stop" if changed.asked else ""
    return f"{_count(changed.done)} cancelled{asked}{_unchanged(changed)}"


def _pause(options: argparse.Namespace) -> str:
    _set_paused(options, pause=True)
    if options.json:
        return _json({"queue": options.queue, "paused": True})
    return f"queue {options.queue} is paused: nothing of it begins before `pysqlx-ctl jobs resume`"


def _resume(options: argparse.Namespace) -> str:
    _set_paused(options, pause=False)
    if options.json:
        return _json({"queue": options.queue, "paused": False})
    return f"queue {options.queue} goes on"


def _set_paused(options: argparse.Namespace, *, pause: bool) -> None:
    from .jobs.tasks import check_name

    _check(partial(check_name, "QUEUE", options.queue))

    _with_database(options, lambda database: database.set_paused(options.queue, pause=pause))


def _stats(options: argparse.Namespace) -> str:
    hours = _number("--hours", options.hours, 0, _LONGEST_WINDOW)

    async def look(database: Administration) -> tuple[list[TaskCounts], list[PausedQueue], list[Presence]]:
        counts = await database.views.counts(database.connection, hours * 3600)
        return counts, await database.views.paused(database.connection), await database.dispatchers()

    counts, paused, dispatchers = _with_database(options, look)
    if options.json:
        from ..system import host_identity
        from .jobs.life import State

        here = host_identity()
        return _json(
            {
                "hours": hours,
                "tasks": [
                    _plain(one) | {"states": {state: one.states.get(state, 0) for state in State}} for one in counts
                ],
                "paused": [_plain(one) for one in paused],
                "dispatchers": [
                    {
                        "id": one.id, "run": one.run, "host": one.host, "pid": one.pid, "here": one.host == here,
                        "seen": max(0, one.unseen) / 1e6, "lost": one.is_lost(here),
                    }
                    for one in dispatchers
                ],
            }
        )  # fmt: skip
    return _stats_text(counts, paused, dispatchers)


def _enqueue(options: argparse.Namespace) -> str:
    from .jobs.store import NewJob
    from .jobs.tasks import EnqueueOptions, TaskOptions, check_name

    _check(partial(check_name, "TASK", options.task))
    usual = TaskOptions()
    least, most = -(2**63), 2**63 - 1  # the ranges themselves are those of any other job
    said = _check(
        lambda: EnqueueOptions(
            delay=_number("--delay", options.delay),
            queue=options.queue,
            priority=_whole("--priority", options.priority, least, most),
            max_attempts=usual.max_attempts
            if options.max_attempts is None
            else _whole("--max-attempts", options.max_attempts, least, most),
            unique_key=options.unique_key,
        )
    )
    job = NewJob(
        queue=options.queue,
        task=options.task,
        args=_arguments(options.args),
        priority=said.priority or 0,
        max_attempts=said.max_attempts or usual.max_attempts,
        delay=round(said.delay * 1_000_000),
        unique_key=said.unique_key,
    )

    async def change(database: Administration) -> int:
        (id_,) = await database.transaction(database.store.enqueue, database.connection, [job])
        await database.tell()
        return id_

    id_ = _with_database(options, change)
    return _json({"id": id_}) if options.json else str(id_)


def _migrate(options: argparse.Namespace) -> str:
    from .jobs.schema import migrate, version_of
    from .progress import reporting

    async def sleep(seconds: float) -> None:
        time.sleep(seconds)

    async def change(database: Administration) -> tuple[int, int]:
        took = await migrate(database.connection, report, sleep)
        return took, await version_of(database.connection)

    with reporting("pysqlx-ctl", quiet=options.json) as report:
        took, version = _with_database(options, change, tables=False)
    if options.json:
        return _json({"version": version, "migrations": took})
    if not took:
        return f"the job tables have version {version} already: nothing to do"
    before = "there were none" if took == version else f"they had version {version - took}"
    return f"the job tables have version {version} now: {before}"


# -- the database -----------------------------------------------------------------------------------------------------


def _with_database(
    options: argparse.Namespace, act: Callable[[Administration], Awaitable[T]], *, tables: bool = True
) -> T:
    """What `act` gives, on a connection to a database that has the tables, or (not `tables`) may have them."""
    from ..engine.connection import PySQLXEngine
    from ..engine.driving import drive
    from ..engine.uri import INVALID_URI, parse_uri
    from .jobs.administration import Administration
    from .jobs.dialects import dialect_of

    uri = _uri(options)

    async def run() -> T:
        async with connection:
            if tables:
                from .jobs.schema import check_tables

                await check_tables(connection)
            return await act(Administration(connection, dialect))

    try:
        connection = PySQLXEngine(uri)
        try:
            dialect = dialect_of(connection)
        except JobSchemaError as error:
            raise JobsUsageError(str(error)) from None
        path = parse_uri(uri).path
        if tables and path is not None and not os.path.exists(path):  # to connect would make it
            raise JobsFailure(f"there is no file {path}: `pysqlx-ctl jobs migrate` makes it, with the job tables")
        return drive(run())
    except ConnectError as error:
        raise (JobsUsageError if error.code == INVALID_URI else JobsFailure)(_line(error.message)) from None
    except PySQLXError as error:
        raise JobsFailure(_line(error.message)) from None
    except (JobError, SettingsError) as error:
        raise JobsFailure(_line(str(error))) from None


def _uri(options: argparse.Namespace) -> str:
    from ..settings import load_run_settings

    try:
        uri = load_run_settings(options.settings, uri=options.uri).uri
    except SettingsError as error:
        raise JobsUsageError(_line(str(error))) from None
    if uri is None:
        raise JobsUsageError(
            "which database? Say --uri URI, or PYSQLX_URI=URI in the environment or in the file of --settings"
        )
    return uri.get_secret_value()


def _change(
    options: argparse.Namespace,
    verb: str,
    may: Collection[State],
    usual: frozenset[State],
    change: Callable[[Administration, list[int]], Awaitable[Changed]],
) -> Changed:
    """Change the jobs that the options name. `may`: states in which it can be done; `usual`: those that are meant where
    --all does not say any."""
    from .jobs.administration import Changed
    from .jobs.life import State

    ids = list(dict.fromkeys(_whole("ID", text, 1, _GREATEST_ID) for text in options.ids))
    filtered = any(value is not None for value in (options.queue, options.task, options.state))
    if ids and (options.all or filtered):
        raise JobsUsageError(f"{verb} by ID, or by --all with --queue, --task or --state, not by both")
    if not ids and not options.all:
        raise JobsUsageError(
            f"{verb} which jobs? Say their IDs, or --all with --queue, --task or --state for all that fit these"
        )
    if not ids and not filtered:
        raise JobsUsageError(f"{verb} --all of what? Say --queue, --task or --state, too")
    which = _filter(options, usual)
    wrong = sorted(which.states - set(may))
    if wrong:
        fit = ", ".join(state for state in State if state in may)
        raise JobsUsageError(f"--state {wrong[0]}: {verb} is for jobs that are {fit}")

    async def all_at_once(database: Administration) -> Changed:
        changed = await database.transaction(change, database, ids)
        if not changed.done + changed.asked:
            raise JobsFailure(f"nothing to {verb}: {_reasons(changed) or 'somebody else was first'}")
        await database.tell()
        return changed

    async def by_and_by(database: Administration) -> Changed:
        changed, after, last = Changed(), 0, await database.views.newest(database.connection)
        try:
            while found := await database.views.ids(database.connection, which, _BATCH, after, last):
                after = found[-1]
                some = await database.transaction(change, database, found)
                changed.done += some.done
                changed.asked += some.asked
                changed.unchanged |= some.unchanged
        except PySQLXError as error:
            raise JobsFailure(
                f"{_line(error.message)} (after {_count(changed.done + changed.asked)}: call it again for the rest)"
            ) from None
        await database.tell()
        return changed

    return _with_database(options, all_at_once if ids else by_and_by)


# -- what was said ----------------------------------------------------------------------------------------------------


def _filter(options: argparse.Namespace, usual: frozenset[State] | None = None) -> Filter:
    from .jobs.life import State
    from .jobs.tasks import check_name
    from .jobs.views import Filter

    states = frozenset(State) if usual is None else usual
    if options.state is not None:
        unknown = [name for name in options.state if name not in set(State)]
        if unknown:
            raise JobsUsageError(f"--state {shown(unknown[0])}: there is no such state; there are {', '.join(State)}")
        states = frozenset(State(name) for name in options.state)
    for name in ("queue", "task"):
        if (value := getattr(options, name)) is not None:
            _check(partial(check_name, f"--{name}", value))
    return Filter(states, options.queue, options.task)


def _whole(name: str, text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = None
    if number is None or not least <= number <= most:
        raise JobsUsageError(f"{name} {shown(text)}: a whole number is wanted, from {least} to {most}")
    return number


def _number(name: str, text: str, least: float = float("-inf"), most: float = float("inf")) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        wanted = "a number is wanted" + (f", from {least:g} to {most:g}" if most < float("inf") else "")
        raise JobsUsageError(f"{name} {shown(text)}: {wanted}")
    return number


def _arguments(text: str) -> str:
    """The JSON of a job's arguments: each number and each text as it was written."""
    import msgspec

    from .jobs.queue import MAX_PAYLOAD

    try:
        data = sys.stdin.buffer.read() if text == "-" else text.encode()
        msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        args = msgspec.json.format(data, indent=-1).decode()
    except (UnicodeError, msgspec.DecodeError) as error:
        raise JobsUsageError(f"--args: no JSON object: {error}") from None  # without the text: it may hold secrets
    size = len(args.encode())
    if size > MAX_PAYLOAD:
        raise JobsUsageError(
            f"--args: {size} bytes of JSON, and a job takes up to {MAX_PAYLOAD}: store what is large elsewhere, and "
            "enqueue where it is"
        )
    return args


def _check(made: Callable[[], T]) -> T:
    try:
        return made()
    except (ValueError, TypeError) as error:
        raise JobsUsageError(_line(str(error))) from None


# -- what is printed --------------------------------------------------------------------------------------------------


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, indent=2)


def _plain(thing: object) -> dict[str, Any]:
    """With times as ISO 8601, in UTC."""
    import msgspec

    plain: dict[str, Any] = msgspec.to_builtins(thing)
    return plain


def _parsed(text: str | None) -> object:
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:  # somebody has written it by hand
        return text


def _line(text: str) -> str:
    return shown(" ".join(text.split()))


def _count(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"


def _reasons(changed: Changed) -> str:
    if len(changed.unchanged) > _REASONS:
        return f"{_count(len(changed.unchanged))} left alone"
    return "; ".join(f"job {id_} {why}" for id_, why in changed.unchanged.items())


def _unchanged(changed: Changed) -> str:
    return f"; {_reasons(changed)}" if changed.unchanged else ""


def _owns(dispatcher: Presence, owner: int | None) -> bool:
    first, last = dispatcher.owners
    return owner is not None and first <= owner <= last


def _short(seconds: float) -> str:
    """`12s`, `3m`, `5h`, `2d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def _time(moment: datetime) -> str:
    return moment.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")


def _job_table(jobs: Iterable[ListedJob], now: int) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), expand=True)
    table.add_column("id", justify="right", no_wrap=True)
    for name, part in (("task", 4), ("queue", 8)):  # folded, not cut: whoever copies one needs all of it
        table.add_column(name, overflow="fold", max_width=console.width // part)
    table.add_column("state", no_wrap=True)
    table.add_column("tries", justify="right", no_wrap=True)
    table.add_column("when", no_wrap=True)
    table.add_column("progress or error", overflow="fold", ratio=1)
    for job in jobs:
        table.add_row(
            str(job.id),
            Text(shown(job.task)),
            Text(shown(job.queue)),
            Text(job.state, _STYLES.get(job.state, "")),
            f"{job.attempt}/{job.max_attempts}",
            _when(job, now),
            Text(_cut(shown(_note(job)), max(_SHORTEST_NOTE, console.width // 2))),
        )
    return _printed(console, table)


_STYLES = {"running": "cyan", "retrying": "yellow", "discarded": "red", "cancelled": "magenta", "completed": "green"}


def _when(job: ListedJob, now: int) -> str:
    def ago(moment: datetime) -> float:
        return now / 1e6 - moment.timestamp()

    if job.ended_at is not None:
        return f"{_short(ago(job.ended_at))} ago"
    if job.state == "running":
        return "runs" if job.claimed_at is None else f"runs {_short(ago(job.claimed_at))}"
    wait = -ago(job.run_at)
    return f"in {_short(wait)}" if wait > 0 else f"waits {_short(-wait)}"


def _note(job: ListedJob) -> str:
    last = job.progress if job.state == "running" and job.progress is not None else job.error or job.progress
    asked = job.state == "running" and job.cancel_asked_at is not None
    parts = ("asked to stop" if asked else None, "held by its limit" if job.held else None, last)
    return "; ".join(" ".join(part.split()) for part in parts if part)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _job_text(job: WholeJob, runs_for: Presence | None) -> str:
    facts = {
        "id": job.id,
        "task": job.task,
        "queue": job.queue,
        "state": f"{job.state}, held by its limit" if job.held else job.state,
        "attempt": f"{job.attempt} of {job.max_attempts}",
        "priority": job.priority,
        "unique key": job.unique_key,
        "limit": None if job.limit_key is None else f"{job.limit_max} with {job.limit_key}",
        "created": _time(job.created_at),
        "to run": _time(job.run_at),
        "began": job.claimed_at and _time(job.claimed_at),
        "asked to stop": job.cancel_asked_at and _time(job.cancel_asked_at),
        "ended": job.ended_at and _time(job.ended_at),
        "dispatcher": None if runs_for is None else f"{runs_for.id}, for process {runs_for.pid}",
        "progress": job.progress,
        "arguments": job.args,
        "result": job.result,
    }
    width = max(map(len, facts)) + 2
    lines = [f"{name:{width}}{shown(str(value))}" for name, value in facts.items() if value is not None]
    for error in job.errors:
        where = f" in {shown(error.worker)}" if error.worker else ""
        lines += ["", f"attempt {error.attempt}, {_time(error.at)}{where}: {shown(error.error)}"]
        lines += [f"    {shown(line)}" for line in (error.traceback or "").splitlines()]
    return "\n".join(lines)


def _stats_text(
    counts: Collection[TaskCounts], paused: Iterable[PausedQueue], dispatchers: Collection[Presence]
) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..system import host_identity
    from .jobs.life import State

    console = Console(highlight=False)
    here = host_identity()
    tasks = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("queue", "task"):
        tasks.add_column(name, overflow="fold")
    tasks.add_column("oldest", justify="right", no_wrap=True)
    tasks.add_column("jobs")
    for one in counts:
        numbers = [f"{one.states[state]} {state}" for state in State if state in one.states]
        if one.held:
            numbers.append(f"{one.held} of the available ones held by their limit")
        waits = "-" if one.oldest_waits is None else _short(one.oldest_waits)
        tasks.add_row(Text(shown(one.queue)), Text(shown(one.task)), waits, ", ".join(numbers))
    parts = [_printed(console, tasks) if counts else "no jobs"]
    parts += [f"paused: queue {shown(one.name)}, since {_time(one.paused_at)}" for one in paused]
    if not dispatchers:
        return "\n".join([*parts, "no dispatcher is known: nobody runs jobs"])
    known = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("dispatcher", "pid", "seen"):
        known.add_column(name, justify="right", no_wrap=True)
    known.add_column("host", overflow="fold")
    for presence in dispatchers:
        seen = f"{_short(presence.unseen / 1e6)} ago" + (", lost" if presence.is_lost(here) else "")
        host = "this one" if presence.host == here else presence.host
        known.add_row(str(presence.id), str(presence.pid), seen, Text(shown(host)))
    return "\n".join([*parts, _printed(console, known)])


def _printed(console: Console, table: Table) -> str:
    with console.capture() as text:  # see `_tables` of `ctl`
        console.print(table)
    return "\n".join(line.rstrip() for line in text.get().splitlines())
