"""`pysqlx-ctl jobs`: what it says of jobs, what it does to them, and what it says when it cannot, on every database."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pysqlx_engine import PySQLXEngine
from pysqlx_engine.engine.driving import drive
from pysqlx_engine.errors import QueryError
from pysqlx_engine.workers import Job, JobQueue, ctl_jobs
from pysqlx_engine.workers import ctl as ctl_command
from pysqlx_engine.workers.jobs.administration import Administration
from pysqlx_engine.workers.jobs.dialects import dialect_of
from pysqlx_engine.workers.jobs.hints import Listener
from pysqlx_engine.workers.jobs.life import State
from pysqlx_engine.workers.jobs.presence import Register
from pysqlx_engine.workers.jobs.queue import MAX_PAYLOAD
from pysqlx_engine.workers.jobs.schema import VERSION, migrate
from pysqlx_engine.workers.jobs.store import Ended, Failure, NewJob, Postponed, Progress, Store
from tests.jobs.serving import ended, errors, looking, served, waiting
from tests.servers import Database
from tests.workers.runs import CTL, ctl, run_environment

HOUR = 3_600_000_000
NO_TABLES = "pysqlx-ctl: there are no job tables in this database: run `pysqlx-ctl jobs migrate`"
COMMANDS = {
    "list": ["list"],
    "show": ["show", "1"],
    "retry": ["retry", "1"],
    "cancel": ["cancel", "--all", "--queue", "default"],
    "pause": ["pause", "default"],
    "resume": ["resume", "default"],
    "stats": ["stats"],
    "enqueue": ["enqueue", "t"],
}
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Calls `pysqlx-ctl jobs` in this process, and gives its exit status, its output and its errors."""
    for name in [name for name in os.environ if name.startswith("PYSQLX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = ctl_command.main(["jobs", *arguments])
        except SystemExit as stop:  # argparse's
            status = int(str(stop.code))
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def cli(run: Cli, database: Database) -> Cli:
    """The same on a fresh database of each provider in turn."""
    return lambda name, *arguments: run(name, "--uri", database.uri, *arguments)


@pytest.fixture
def said(cli: Cli) -> Callable[..., Any]:
    """What a command that succeeds says with --json."""

    def call(name: str, *arguments: str) -> Any:
        status, out, err = cli(name, *arguments, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    return call


def job(task: str = "t", queue: str = "default", **options: Any) -> NewJob:
    return NewJob(queue=queue, task=task, args=options.pop("args", "{}"), **options)


def enqueued(database: Database, *jobs: NewJob, end: Sequence[tuple[int, State]] = ()) -> list[int]:
    """The ids of jobs in a database that has the tables then. `end`: which of them, by their places, have run once and
    ended how."""

    async def make() -> list[int]:
        async with PySQLXEngine(database.uri) as connection:
            await migrate(connection)
            store = Store(dialect_of(connection))
            async with store.transaction(connection):
                ids = await store.enqueue(connection, jobs)
            for place, state in end:
                await running(connection, ids[place])
                over = Ended(id=ids[place], attempt=1, owner=7, state=state)
                failure = Failure(id=ids[place], attempt=1, owner=7, worker="w", error="ValueError: no")
                async with store.transaction(connection):
                    if state is State.DISCARDED:
                        assert await store.note(connection, [failure]) == 1
                    assert await store.end(connection, [over]) == 1
            return ids

    return drive(make())


async def running(connection: PySQLXEngine, id_: int) -> None:
    now = dialect_of(connection).now
    await connection.execute(
        f"UPDATE pysqlx_jobs SET state = 'running', attempt = 1, owner = 7, claimed_at = {now} WHERE id = :id",
        {"id": id_},
    )


def begun(database: Database, id_: int) -> None:
    """The job runs."""

    async def make() -> None:
        async with PySQLXEngine(database.uri) as connection:
            await running(connection, id_)

    drive(make())


def rows(database: Database, sql: str) -> list[dict[str, Any]]:
    async def look() -> list[dict[str, Any]]:
        async with PySQLXEngine(database.uri) as connection:
            return await connection.query_as_dict(sql)

    return drive(look())


def execute(database: Database, sql: str) -> None:
    async def change() -> None:
        async with PySQLXEngine(database.uri) as connection:
            await connection.execute(sql)

    drive(change())


def states(said: Callable[..., Any]) -> dict[int, str]:
    return {one["id"]: one["state"] for one in said("list")["jobs"]}


# -- migrate, and databases that are not as they should be ------------------------------------------------------------


def test_migrate_makes_the_tables_and_is_safe_twice(cli: Cli, said: Callable[..., Any]) -> None:
    assert cli("migrate") == (0, f"the job tables have version {VERSION} now: there were none\n", "")
    assert cli("migrate") == (0, f"the job tables have version {VERSION} already: nothing to do\n", "")
    assert said("migrate") == {"version": VERSION, "migrations": 0}


def test_migrate_says_which_version_newer_tables_have(cli: Cli, said: Callable[..., Any], database: Database) -> None:
    enqueued(database)
    execute(
        database,
        f"INSERT INTO pysqlx_job_schema (version, applied_at, readable_from) VALUES ({VERSION + 1}, 0, {VERSION})",
    )
    assert cli("migrate") == (0, f"the job tables have version {VERSION + 1} already: nothing to do\n", "")
    assert said("migrate") == {"version": VERSION + 1, "migrations": 0}


@pytest.mark.parametrize("name", COMMANDS)
def test_without_tables_every_command_names_the_one_that_makes_them(name: str, cli: Cli, database: Database) -> None:
    if database.provider == "sqlite":  # a file without tables: none at all is another test
        rows(database, "SELECT 1 AS one")
    status, out, err = cli(*COMMANDS[name])
    assert (status, out) == (1, "")
    assert err.startswith(NO_TABLES)
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", [*COMMANDS, "migrate"])
def test_tables_of_a_newer_version_are_left_alone(name: str, cli: Cli, database: Database) -> None:
    enqueued(database)
    execute(database, f"INSERT INTO pysqlx_job_schema (version, applied_at) VALUES ({VERSION + 1}, 0)")
    status, out, err = cli(*COMMANDS.get(name, [name]))
    assert (status, out) == (1, "")
    assert f"the job tables have version {VERSION + 1}, and this program knows versions up to {VERSION}: upgrade" in err


def test_a_look_does_not_make_a_file(run: Cli, tmp_path: Path) -> None:
    file = tmp_path / "misspelt.db"
    for arguments in COMMANDS.values():
        name, *rest = arguments
        status, out, err = run(name, "--uri", f"sqlite:{file}", *rest)
        assert (status, out) == (1, "")
        assert f"there is no file {file}: `pysqlx-ctl jobs migrate` makes it" in err
    assert not file.exists()
    assert run("migrate", "--uri", f"sqlite:{file}")[0] == 0
    assert run("list", "--uri", f"sqlite:{file}") == (0, "no jobs\n", "")


# -- which database ---------------------------------------------------------------------------------------------------


def test_the_database_is_that_of_the_command_line_else_of_the_environment_else_of_the_settings_file(
    run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("line", "environment", "file"):
        assert run("migrate", "--uri", f"sqlite:{tmp_path}/{name}.db")[0] == 0
        assert run("enqueue", f"of.{name}", "--uri", f"sqlite:{tmp_path}/{name}.db")[0] == 0
    settings = tmp_path / "shop.env"
    settings.write_text(f"PYSQLX_URI=sqlite:{tmp_path}/file.db\n")

    def task(*arguments: str) -> Any:
        return json.loads(run("show", "1", "--json", *arguments)[1])["task"]

    assert task("--settings", str(settings)) == "of.file"
    monkeypatch.setenv("PYSQLX_URI", f"sqlite:{tmp_path}/environment.db")
    assert task("--settings", str(settings)) == "of.environment"
    assert task("--settings", str(settings), "--uri", f"sqlite:{tmp_path}/line.db") == "of.line"


@pytest.mark.parametrize(
    ("uri", "status", "complaint"),
    [
        (None, 2, "which database? Say --uri URI, or PYSQLX_URI=URI"),
        ("", 2, "--uri *** is not allowed: a database URI"),
        ("postgresql://u:s3cret@127.0.0.1:port/x", 2, "cannot be used"),
        ("oracle://u:s3cret@127.0.0.1/x", 2, "unknown database provider"),
        ("sqlserver://127.0.0.1:1;database=x;user=u;password=s3cret", 2, "not on sqlserver"),
        ("postgresql://u:s3cret@127.0.0.1:1/x", 1, "no connection to postgresql at 127.0.0.1:1"),
        ("mysql://u:s3cret@127.0.0.1:1/x", 1, "no connection to mysql at 127.0.0.1:1"),
    ],
)
@pytest.mark.parametrize("name", ["list", "migrate"])
def test_a_database_that_cannot_be_used_is_told_in_a_line_without_its_password(
    run: Cli, name: str, uri: str | None, status: int, complaint: str
) -> None:
    found, out, err = run(name, *([] if uri is None else ["--uri", uri]))
    assert (found, out) == (status, "")
    assert err.startswith("pysqlx-ctl: ")
    assert complaint in err
    assert err.count("\n") == 1
    assert "s3cret" not in err


def test_a_bad_settings_file_is_wrong_usage(run: Cli, tmp_path: Path) -> None:
    status, _, err = run("list", "--settings", str(tmp_path / "none.env"))
    assert status == 2
    assert "cannot read the settings file" in err
    (tmp_path / "bad.env").write_text("PYSQLX_URL=x\n")
    status, _, err = run("list", "--settings", str(tmp_path / "bad.env"))
    assert status == 2
    assert "unknown setting PYSQLX_URL; did you mean PYSQLX_URI?" in err


# -- enqueue ----------------------------------------------------------------------------------------------------------


def test_enqueue_prints_the_id_and_keeps_the_arguments_as_they_were_written(
    cli: Cli, said: Callable[..., Any], database: Database
) -> None:
    enqueued(database)
    args = '{"text": "ünï :name \\u0000", "exact": 1.00000000000000000001, "big": 9007199254740993}'
    status, out, err = cli("enqueue", "mail.send", "--args", args)
    assert (status, err) == (0, "")
    (row,) = rows(database, "SELECT * FROM pysqlx_jobs")
    assert out == f"{row['id']}\n"
    assert (row["task"], row["queue"], row["priority"], row["max_attempts"]) == ("mail.send", "default", 0, 20)
    assert row["args"] == args.replace(": ", ":").replace(", ", ",").replace("ünï:", "ünï :")
    later = said(
        "enqueue", "report", "--queue", "slow", "--priority", "-5", "--delay", "3600.5", "--max-attempts", "2",
        "--unique-key", "k",
    )["id"]  # fmt: skip
    whole = said("show", str(later))
    assert (whole["queue"], whole["priority"], whole["max_attempts"], whole["unique_key"], whole["args"]) == (
        "slow", -5, 2, "k", {},
    )  # fmt: skip
    assert whole["state"] == "scheduled"
    created, run_at = (datetime.fromisoformat(whole[name]) for name in ("created_at", "run_at"))
    assert (run_at - created).total_seconds() == pytest.approx(3600.5, abs=0.001)
    assert said("enqueue", "report", "--unique-key", "k")["id"] == later
    assert len(states(said)) == 2


def test_enqueue_reads_arguments_from_stdin(cli: Cli, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    enqueued(database)

    def given(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))

    given(b'{"a": 1}\n')
    assert cli("enqueue", "t", "--args", "-")[0] == 0
    assert [row["args"] for row in rows(database, "SELECT args FROM pysqlx_jobs")] == ['{"a":1}']
    most = json.dumps({"text": "ü" * (MAX_PAYLOAD // 2 - 6)}, ensure_ascii=False, separators=(",", ":")).encode()
    given(most + b" ")
    assert len(most) == MAX_PAYLOAD - 1
    assert cli("enqueue", "t", "--args", "-")[0] == 0
    given(most.replace(b'"}', b'..."}'))
    status, _, err = cli("enqueue", "t", "--args", "-")
    assert status == 2
    assert f"{MAX_PAYLOAD + 2} bytes of JSON, and a job takes up to {MAX_PAYLOAD}" in err
    assert len(rows(database, "SELECT id FROM pysqlx_jobs")) == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["t", "--args", '["s3cret"]'], "--args: no JSON object: Expected `object`, got `array`"),
        (["t", "--args", '"s3cret"'], "--args: no JSON object"),
        (["t", "--args", '{"s3cret": '], "--args: no JSON object"),
        (["t", "--args", '{"s3cret": NaN}'], "--args: no JSON object"),
        (["t", "--args", ""], "--args: no JSON object"),
        (["t", "--args", '{"a": "\udcff"}'], "--args: no JSON object"),
        (["", "--args", "{}"], "TASK must have 1 to 255 printable characters"),
        (["t" * 256], "TASK must have 1 to 255 printable characters"),
        (["t", "--queue", ""], "queue must have 1 to 255 printable characters"),
        (["t", "--queue", "a\nb"], "queue must have 1 to 255 printable characters"),
        (["t", "--unique-key", ""], "unique_key must have 1 to 255"),
        (["t", "--priority", "1000001"], "priority must be from -1000000 to 1000000, not 1000001"),
        (["t", "--priority", "high"], "--priority high: a whole number is wanted"),
        (["t", "--max-attempts", "0"], "max_attempts must be from 1 to 1000, not 0"),
        (["t", "--delay", "-1"], "delay must be from 0 seconds to 10 years, not -1.0"),
        (["t", "--delay", "nan"], "--delay nan: a number is wanted"),
        (["t", "--delay", "inf"], "delay must be from 0 seconds to 10 years"),
        (["t", "--delay", "1h"], "--delay 1h: a number is wanted"),
    ],
)
def test_what_cannot_be_a_job_is_refused(run: Cli, sqlite_db: Database, arguments: list[str], complaint: str) -> None:
    enqueued(sqlite_db)
    status, out, err = run("enqueue", "--uri", sqlite_db.uri, *arguments)
    assert (status, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1
    assert "s3cret" not in err
    assert rows(sqlite_db, "SELECT id FROM pysqlx_jobs") == []


# -- list -------------------------------------------------------------------------------------------------------------


def test_list_shows_what_waits_and_what_has_ended_the_newest_first(
    cli: Cli, said: Callable[..., Any], database: Database
) -> None:
    ids = enqueued(
        database, job("send", "mail"), job("send", "mail", delay=HOUR), job("cleanup"), job("send"), job("runs"),
        end=[(0, State.DISCARDED), (3, State.COMPLETED)],
    )  # fmt: skip
    begun(database, ids[4])
    discarded, scheduled, available, completed, runs = ids

    def listed(*arguments: str) -> list[int]:
        return [one["id"] for one in said("list", *arguments)["jobs"]]

    assert listed() == sorted(ids, reverse=True)
    assert listed("--queue", "mail") == [scheduled, discarded]
    assert listed("--task", "send") == [completed, scheduled, discarded]
    assert listed("--task", "send", "--queue", "default") == [completed]
    assert listed("--state", "running") == [runs]
    assert listed("--state", "discarded", "--state", "available") == [available, discarded]
    assert listed("--state", "retrying") == []
    assert listed("--queue", "x' OR 'x' = 'x") == []

    first = said("list", "--state", "discarded")["jobs"][0]
    assert (first["attempt"], first["max_attempts"], first["error"]) == (1, 1, "ValueError: no")
    assert datetime.fromisoformat(first["ended_at"]).tzinfo == UTC
    status, out, err = cli("list")
    assert (status, err) == (0, "")
    found = {line.split()[0]: line for line in out.splitlines()[2:]}
    assert list(found) == [str(id_) for id_ in listed()]
    assert "ago" in found[str(discarded)]
    assert "ValueError: no" in found[str(discarded)]
    assert "in 59m" in found[str(scheduled)] or "in 1h" in found[str(scheduled)]
    assert "waits" in found[str(available)]
    assert "runs" in found[str(runs)]
    assert "\x1b" not in out


def test_pages_of_a_list_show_each_job_once(cli: Cli, said: Callable[..., Any], database: Database) -> None:
    ids = enqueued(database, *[job() for _ in range(7)], end=[(place, State.COMPLETED) for place in (0, 2, 3, 6)])
    seen, before = [], None
    while True:
        page = said("list", "--limit", "3", *([] if before is None else ["--before", str(before)]))
        seen.append([one["id"] for one in page["jobs"]])
        before = page["before"]
        if before is None:
            break
    ids.reverse()
    assert seen == [ids[:3], ids[3:6], ids[6:]]
    assert cli("list", "--limit", "3")[1].endswith(f"\nmore: --before {ids[2]}\n")
    assert "more:" not in cli("list", "--limit", "7")[1]


def test_what_others_have_written_is_neither_markup_nor_obeyed_by_a_terminal(
    cli: Cli, said: Callable[..., Any], database: Database
) -> None:
    (id_,) = enqueued(database, job("[bold]t", args='{"text":"\x7f\x9b31m"}'))
    begun(database, id_)

    async def write() -> None:
        async with PySQLXEngine(database.uri) as connection:
            store = Store(dialect_of(connection))
            await store.set_progress(connection, [Progress(id=id_, attempt=1, owner=7, progress="[red]\x1b[31mx\ny")])

    drive(write())
    out = cli("list")[1]
    assert "[bold]t" in out
    assert "[red]\\x1b[31mx y" in out
    shown = cli("show", str(id_))[1]
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert said("show", str(id_))["progress"] == "[red]\x1b[31mx\ny"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--state", "failed"], "--state failed: there is no such state; there are scheduled, available, running,"),
        (["--limit", "0"], "--limit 0: a whole number is wanted, from 1 to 10000"),
        (["--limit", "many"], "--limit many: a whole number is wanted"),
        (["--before", "x"], "--before x: a whole number is wanted"),
        (["--before", str(2**63)], "a whole number is wanted"),
        (["--queue", ""], "--queue must have 1 to 255"),
        (["--task", "a\x1b"], "--task must have 1 to 255"),
    ],
)
def test_what_cannot_be_listed_is_wrong_usage(
    run: Cli, sqlite_db: Database, arguments: list[str], complaint: str
) -> None:
    status, out, err = run("list", "--uri", sqlite_db.uri, *arguments)
    assert (status, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1


def test_a_list_fits_into_80_columns_and_has_colours_only_on_a_terminal_that_wants_them(
    sqlite_db: Database, tmp_path: Path
) -> None:
    enqueued(
        sqlite_db, *[job("shop.tasks.mail.send_invoice_to_customer", "urgent-mail") for _ in range(3)],
        end=[(1, State.DISCARDED)],
    )  # fmt: skip

    def printed(*arguments: str, **changes: str) -> str:
        ours, terminal = os.openpty()
        environment = run_environment(tmp_path, {"COLUMNS": "80", "TERM": "xterm", "PYSQLX_URI": sqlite_db.uri})
        environment.pop("NO_COLOR", None)
        done = subprocess.run(
            [*CTL, "jobs", *arguments], env=environment | changes, stdout=terminal, timeout=20, check=False
        )
        os.close(terminal)
        text = os.read(ours, 100_000).decode()
        os.close(ours)
        assert done.returncode == 0
        return text

    assert "\x1b[31mdiscarded" in printed("list")
    plain = printed("list", NO_COLOR="1")
    assert "\x1b[31m" not in plain
    for line in ctl(tmp_path, "jobs", "list", "--uri", sqlite_db.uri)[1].splitlines():
        assert "\x1b" not in line
    for command in ("list", "stats"):
        for line in printed(command, TERM="dumb").splitlines():
            assert len(line) <= 80, line


# -- show -------------------------------------------------------------------------------------------------------------


def test_show_tells_everything_of_a_job(cli: Cli, said: Callable[..., Any], database: Database) -> None:
    (id_,) = enqueued(database, job("send", "mail", args='{"to":"a@b"}', priority=3, max_attempts=2, unique_key="k"))

    async def fail_and_complete() -> None:
        async with PySQLXEngine(database.uri) as connection:
            store = Store(dialect_of(connection))
            for number, error in ((1, "ValueError: first"), (2, "OSError: second")):
                async with store.transaction(connection):
                    await store.claim(connection, "mail", 1, owner=number)
                key = {"id": id_, "attempt": number, "owner": number}
                trace = f"Traceback:\n  line {number}\n"
                failure = Failure(**key, worker=f"worker-{number}", error=error, traceback=trace)
                async with store.transaction(connection):
                    await store.note(connection, [failure])
                    if number == 1:
                        await store.postpone(
                            connection, [Postponed(**key, state=State.AVAILABLE, attempt_after=1, wait=0)]
                        )
                    else:
                        await store.end(connection, [Ended(**key, state=State.COMPLETED, result='{"n":[1,2]}')])

    drive(fail_and_complete())
    whole = said("show", str(id_))
    at = [datetime.fromisoformat(error.pop("at")) for error in whole["errors"]]
    times = [datetime.fromisoformat(whole.pop(f"{name}_at")) for name in ("created", "run", "claimed", "ended")]
    assert all(one.tzinfo == UTC for one in times + at)
    assert times[0] <= times[3]
    assert whole == {
        "id": id_, "task": "send", "queue": "mail", "state": "completed", "held": False, "priority": 3, "attempt": 2,
        "max_attempts": 2, "cancel_asked_at": None, "progress": None, "unique_key": "k", "limit_key": None,
        "limit_max": None, "args": {"to": "a@b"}, "result": {"n": [1, 2]}, "dispatcher": None,
        "errors": [
            {"attempt": 1, "worker": "worker-1", "error": "ValueError: first", "traceback": "Traceback:\n  line 1\n"},
            {"attempt": 2, "worker": "worker-2", "error": "OSError: second", "traceback": "Traceback:\n  line 2\n"},
        ],
    }  # fmt: skip
    status, out, err = cli("show", str(id_))
    assert (status, err) == (0, "")
    for line in ('arguments      {"to":"a@b"}', 'result         {"n":[1,2]}', "attempt        2 of 2", "      line 2"):
        assert line in out.splitlines()
    assert "Z in worker-1: ValueError: first\n" in out


def test_show_tells_who_runs_a_job(said: Callable[..., Any], cli: Cli, database: Database) -> None:
    (id_,) = enqueued(database, job())

    async def claim() -> int:
        async with PySQLXEngine(database.uri) as connection:
            store = Store(dialect_of(connection))
            presence = await Register(dialect_of(connection)).enter(connection, "run", None, None)
            async with store.transaction(connection):
                await store.claim(connection, "default", 1, presence.owners[0] + 5)
            return presence.id

    dispatcher = drive(claim())
    found = said("show", str(id_))["dispatcher"]
    assert (found["id"], found["pid"]) == (dispatcher, os.getpid())
    assert f"{dispatcher}, for process {os.getpid()}" in cli("show", str(id_))[1]


def test_a_job_that_is_not_there_cannot_be_shown(cli: Cli, database: Database) -> None:
    enqueued(database)
    assert cli("show", "4711") == (1, "", "pysqlx-ctl: there is no job 4711\n")
    assert cli("show", "4711", "--json") == (1, "", "pysqlx-ctl: there is no job 4711\n")
    for wrong in ("x", "0", str(2**63)):
        status, _, err = cli("show", wrong)
        assert status == 2
        assert f"ID {wrong}: a whole number is wanted" in err


# -- cancel and retry -------------------------------------------------------------------------------------------------


def test_cancel_by_id(cli: Cli, said: Callable[..., Any], database: Database) -> None:
    waits, runs, over, later = enqueued(database, *[job()] * 3, job(delay=HOUR), end=[(2, State.COMPLETED)])
    begun(database, runs)
    assert cli("cancel", str(waits), str(runs), str(over), "999", str(waits)) == (
        0, f"1 job cancelled, 1 job asked to stop; job {over} is completed; job 999 does not exist\n", "",
    )  # fmt: skip
    assert states(said) == {waits: "cancelled", runs: "running", over: "completed", later: "scheduled"}
    assert said("show", str(runs))["cancel_asked_at"] is not None
    assert "asked to stop" in cli("list")[1]
    assert said("cancel", str(later), str(over)) == {
        "cancelled": 1, "asked": 0, "unchanged": {str(over): "is completed"},
    }  # fmt: skip
    for json_ in ([], ["--json"]):
        assert cli("cancel", str(over), "999", *json_) == (
            1, "", f"pysqlx-ctl: nothing to cancel: job {over} is completed; job 999 does not exist\n",
        )  # fmt: skip


def test_retry_by_id(cli: Cli, said: Callable[..., Any], database: Database) -> None:
    keyed, failed, done, later, waits, runs = enqueued(
        database, job(unique_key="k"), job(), job(), job(delay=HOUR), job(), job(),
        end=[(0, State.DISCARDED), (1, State.DISCARDED), (2, State.COMPLETED)],
    )  # fmt: skip
    begun(database, runs)
    enqueued(database, job(unique_key="k", delay=HOUR))
    status, out, err = cli("retry", *map(str, (keyed, failed, later, waits, runs, 999)))
    assert (status, err) == (0, "")
    assert out == (
        f"2 jobs to run now; job {waits} is available; job {runs} is running; job 999 does not exist; "
        f"job {keyed} has a unique key that another job has by now\n"
    )
    found = states(said)
    assert [found[id_] for id_ in (keyed, failed, done, later, waits, runs)] == [
        "discarded", "available", "completed", "available", "available", "running",
    ]  # fmt: skip
    assert said("show", str(failed))["max_attempts"] == 2
    assert said("retry", str(done), "999") == {"retried": 1, "unchanged": {"999": "does not exist"}}
    status, out, err = cli("retry", str(runs), str(keyed))
    assert (status, out) == (1, "")
    assert err.startswith(f"pysqlx-ctl: nothing to retry: job {runs} is running; job {keyed} has a unique key")


@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_nothing_is_changed_by_accident(verb: str, cli: Cli, said: Callable[..., Any], database: Database) -> None:
    enqueued(database, job(), job(delay=HOUR), job(), end=[(2, State.DISCARDED)])
    before = states(said)
    for arguments, complaint in (
        ([], f"{verb} which jobs? Say their IDs, or --all with"),
        (["--all"], f"{verb} --all of what? Say --queue, --task or --state, too"),
        (["--queue", "default"], f"{verb} which jobs?"),
        (["1", "--all"], "not by both"),
        (["1", "--task", "t"], "not by both"),
        (["1", "x"], "ID x: a whole number is wanted"),
        (["--all", "--state", "gone"], "--state gone: there is no such state"),
        (["--all", "--state", "completed" if verb == "cancel" else "running"], f"{verb} is for jobs that are"),
        (["--all", "--queue", ""], "--queue must have"),
    ):
        status, out, err = cli(verb, *arguments)
        assert (status, out) == (2, ""), arguments
        assert complaint in err
        assert err.count("\n") == 1
    assert states(said) == before


def test_cancel_all_that_fit(
    cli: Cli, said: Callable[..., Any], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctl_jobs, "_BATCH", 3)
    ids = enqueued(
        database, *[job("send", "mail") for _ in range(8)], job("send"), job("other", "mail"),
        job("send", "mail", delay=HOUR), end=[(0, State.DISCARDED)],
    )  # fmt: skip
    begun(database, ids[1])
    assert cli("cancel", "--all", "--task", "send", "--queue", "mail", "--state", "scheduled") == (
        0, "1 job cancelled\n", "",
    )  # fmt: skip
    assert said("cancel", "--all", "--task", "send", "--queue", "mail") == {
        "cancelled": 6, "asked": 1, "unchanged": {},
    }  # fmt: skip
    found = states(said)
    assert [found[id_] for id_ in ids] == [
        "discarded", "running", *["cancelled"] * 6, "available", "available", "cancelled",
    ]  # fmt: skip
    assert cli("cancel", "--all", "--task", "unknown") == (0, "0 jobs cancelled\n", "")


def test_retry_all_that_fit_means_what_has_failed_for_good_unless_it_says_otherwise(
    cli: Cli, said: Callable[..., Any], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctl_jobs, "_BATCH", 2)
    failed = [(place, State.DISCARDED) for place in range(5)]
    ids = enqueued(
        database, *[job("send") for _ in range(6)], job("other"), job("send", delay=HOUR), job("send"),
        end=[*failed, (5, State.COMPLETED), (6, State.DISCARDED), (8, State.CANCELLED)],
    )  # fmt: skip
    assert cli("retry", "--all", "--task", "send") == (0, "5 jobs to run now\n", "")
    found = states(said)
    assert [found[id_] for id_ in ids] == [
        *["available"] * 5, "completed", "discarded", "scheduled", "cancelled",
    ]  # fmt: skip
    assert said("retry", "--all", "--state", "scheduled", "--state", "cancelled") == {"retried": 2, "unchanged": {}}
    assert said("retry", "--all", "--task", "send") == {"retried": 0, "unchanged": {}}


def test_a_transaction_that_the_server_has_ended_for_another_one_is_made_again(database: Database) -> None:
    enqueued(database)
    codes = ["40P01", "1213", "40001"]

    async def act(connection: PySQLXEngine) -> str:
        if codes:
            raise QueryError(codes.pop(), "deadlock")
        return "done"

    async def change() -> str:
        async with PySQLXEngine(database.uri) as connection:
            return await Administration(connection, dialect_of(connection)).transaction(act, connection)

    assert drive(change()) == "done"
    codes += ["1213"] * 5
    with pytest.raises(QueryError):
        drive(change())
    codes[:] = ["23505"]
    with pytest.raises(QueryError, match="23505"):
        drive(change())


# -- pause, resume, stats ---------------------------------------------------------------------------------------------


def test_a_queue_is_paused_until_it_is_resumed(cli: Cli, said: Callable[..., Any], database: Database) -> None:
    enqueued(database)
    assert said("pause", "mail") == {"queue": "mail", "paused": True}
    status, out, err = cli("pause", "slow")
    assert (status, err) == (0, "")
    assert out.startswith("queue slow is paused")
    first, second = said("stats")["paused"]
    assert (first["name"], second["name"]) == ("mail", "slow")
    assert datetime.fromisoformat(first["paused_at"]).tzinfo == UTC
    assert "paused: queue mail, since " in cli("stats")[1]
    assert said("resume", "mail") == {"queue": "mail", "paused": False}
    assert cli("resume", "slow") == (0, "queue slow goes on\n", "")
    assert cli("resume", "never.paused")[0] == 0
    assert said("stats")["paused"] == []
    for wrong in ("", "a\nb", "q" * 256):
        status, _, err = cli("pause", wrong)
        assert status == 2
        assert "QUEUE must have 1 to 255 printable characters" in err


def test_stats_count_by_queue_task_and_state(cli: Cli, said: Callable[..., Any], database: Database) -> None:
    ids = enqueued(
        database, job("send", "mail"), job("send", "mail"), job("send", "mail"), job("send", "mail", delay=HOUR),
        job("cleanup"), job("send", "mail"), job("send", "mail"),
        end=[(4, State.COMPLETED), (5, State.DISCARDED)],
    )  # fmt: skip
    begun(database, ids[0])

    async def change() -> None:
        async with PySQLXEngine(database.uri) as connection:
            await connection.execute(f"UPDATE pysqlx_jobs SET held = 1, run_at = run_at - {HOUR} WHERE id = {ids[1]}")
            await connection.execute(f"UPDATE pysqlx_jobs SET run_at = run_at - 90000000 WHERE id = {ids[2]}")
            await Register(dialect_of(connection)).enter(connection, "this run", None, None)
            await Register(dialect_of(connection)).enter(connection, "gone", None, None)
            await connection.execute(
                f"UPDATE pysqlx_job_dispatchers SET host = 'elsewhere', seen_at = seen_at - {HOUR} WHERE run = 'gone'"
            )
            await connection.execute(
                f"UPDATE pysqlx_jobs_ended SET ended_at = ended_at - {30 * HOUR} WHERE id = {ids[4]}"
            )

    drive(change())
    stats = said("stats")
    (mail,) = stats["tasks"]
    assert (mail["queue"], mail["task"], mail["held"]) == ("mail", "send", 1)
    assert {state: count for state, count in mail["states"].items() if count} == {
        "running": 1, "available": 3, "scheduled": 1, "discarded": 1,
    }  # fmt: skip
    assert 90 <= mail["oldest_waits"] < 3600
    here, gone = sorted(stats["dispatchers"], key=lambda one: one["id"])
    assert (here["pid"], here["run"], here["here"], here["lost"]) == (os.getpid(), "this run", True, False)
    assert (gone["host"], gone["here"], gone["lost"]) == ("elsewhere", False, True)
    assert gone["seen"] >= 3600
    assert [one["task"] for one in said("stats", "--hours", "31")["tasks"]] == ["cleanup", "send"]
    assert said("stats", "--hours", "0")["tasks"][0]["states"]["discarded"] == 0
    status, out, err = cli("stats")
    assert (status, err) == (0, "")
    assert "1 scheduled, 3 available, 1 running, 1 discarded, 1 of the available ones held by their limit" in out
    assert "1h ago, lost  elsewhere" in out
    for wrong in ("-1", "x", "nan"):
        status, _, err = cli("stats", "--hours", wrong)
        assert status == 2
        assert f"--hours {wrong}: a number is wanted, from 0 to" in err


def test_stats_of_nothing(cli: Cli, said: Callable[..., Any], database: Database) -> None:
    enqueued(database)
    assert cli("stats") == (0, "no jobs\nno dispatcher is known: nobody runs jobs\n", "")
    assert said("stats") == {"hours": 24.0, "tasks": [], "paused": [], "dispatchers": []}


# -- while jobs run ---------------------------------------------------------------------------------------------------


async def called(directory: Path, database: Database, name: str, *arguments: str) -> str:
    """What a command of another process prints, while this one goes on."""
    status, out, err = await asyncio.to_thread(ctl, directory, "jobs", name, "--uri", database.uri, *arguments)
    assert (status, err) == (0, "")
    return out


async def test_a_running_job_is_cancelled(database: Database, tmp_path: Path) -> None:
    queue = JobQueue(database.uri)
    begins = asyncio.Event()

    @queue.task
    async def endless(job: Job) -> None:
        job.set_progress("half of it")
        begins.set()
        await asyncio.Event().wait()

    async with served(queue):
        id_ = await endless.enqueue()
        await begins.wait()
        while [row["progress"] for row in await waiting(database)] != ["half of it"]:
            await asyncio.sleep(0.01)
        assert "half of it" in await called(tmp_path, database, "list")
        assert f"for process {os.getpid()}" in await called(tmp_path, database, "show", str(id_))
        assert await called(tmp_path, database, "cancel", str(id_)) == "0 jobs cancelled, 1 job asked to stop\n"
        (row,) = await ended(database, id_)
    assert row["state"] == "cancelled"


async def test_a_job_is_enqueued_retried_and_held_up_from_outside(database: Database, tmp_path: Path) -> None:
    queue = JobQueue(database.uri)
    ran: list[int] = []

    @queue.task(name="note")
    async def note(n: int) -> None:
        ran.append(n)

    async with served(queue):
        first = int(await called(tmp_path, database, "enqueue", "note", "--args", '{"n": 1}'))
        await ended(database, first)
        later = int(await called(tmp_path, database, "enqueue", "note", "--args", '{"n": 2}', "--delay", "3600"))
        unfit = int(await called(tmp_path, database, "enqueue", "note", "--args", '{"m": 1}', "--max-attempts", "1"))
        assert (await ended(database, unfit))[0]["state"] == "discarded"
        assert await called(tmp_path, database, "retry", str(later)) == "1 job to run now\n"
        await ended(database, later)
        await called(tmp_path, database, "pause", "default")
        waits = await note.enqueue(n=3)
        await called(tmp_path, database, "resume", "default")
        await ended(database, waits)
    assert ran == [1, 2, 3]
    assert (await errors(database, unfit))[0].startswith("JobArgumentsError: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["enqueue", "t"], ["pause", "q"], ["resume", "q"], ["cancel", "1"], ["retry", "1"],
        ["cancel", "--all", "--task", "t"], ["retry", "--all", "--state", "scheduled"],
    ],
    ids=" ".join,
)  # fmt: skip
async def test_the_dispatchers_of_this_host_are_told(database: Database, tmp_path: Path, arguments: list[str]) -> None:
    heard = asyncio.Event()
    listener = Listener(lambda _: heard.set())
    try:
        async with looking(database) as connection:
            await migrate(connection)
            assert await Store(dialect_of(connection)).enqueue(connection, [job(delay=HOUR)]) == [1]
            await Register(dialect_of(connection)).enter(connection, "run", None, listener.name)
        await called(tmp_path, database, "list")
        assert not heard.is_set()
        await called(tmp_path, database, *arguments)
        await asyncio.wait_for(heard.wait(), 20)
    finally:
        listener.close()


@pytest.mark.parametrize("name", [*COMMANDS, "migrate"])
def test_the_help_of_every_command_has_examples(run: Cli, name: str) -> None:
    status, out, err = run(name, "--help")
    assert (status, err) == (0, "")
    assert f"examples:\n  pysqlx-ctl jobs {name}" in out


def test_wrong_usage_has_status_2(run: Cli) -> None:
    for arguments in ([], ["unknown"], ["show"], ["pause"], ["list", "--unknown"]):
        assert run(*arguments)[0] == 2
