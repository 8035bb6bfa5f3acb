"""What a run prints: lines for people, or one JSON object a line; from which level on; and never a password."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pysqlx_engine import PySQLXEngineSync
from pysqlx_engine.engine.driving import drive
from pysqlx_engine.errors import SettingsError
from pysqlx_engine.log_config import log_levels
from pysqlx_engine.settings import load_run_settings
from pysqlx_engine.workers import JobQueue, logs
from pysqlx_engine.workers.jobs.runner import _masked
from pysqlx_engine.workers.jobs.schema import migrate
from pysqlx_engine.workers.logs import LineFormatter, LogSpec, Source, Voice, encode_line, wrap
from pysqlx_engine.workers.output import line_prefix

from ..servers import Database
from .runs import JOINS_ANOTHER, Run, coordinating, ctl, finished, started

Line = dict[str, Any]


def script(directory: Path, text: str) -> str:
    (directory / "script.py").write_text(text)
    return "script.py"


def objects(lines: list[str]) -> list[Line]:
    """Each line has to be one."""
    return [json.loads(line) for line in lines]


def only(lines: list[Line], **wanted: object) -> Line:
    (found,) = [line for line in lines if wanted.items() <= line.items()]
    return found


# -- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("pool=debug", {"": 30, "supervisor": 20, "pool": 10}),
        ("error", {"": 40}),
        ("pool=DEBUG , Info,sql=critical", {"": 20, "pool": 10, "sql": 50}),
        ("warning,supervisor=info", {"": 30, "supervisor": 20}),
    ],
)
def test_a_level_is_for_a_part_or_for_all_that_are_not_named(text: str, levels: dict[str, int]) -> None:
    assert log_levels(text) == levels


@pytest.mark.parametrize("value", ["loud", "info,pol=debug", "pool=", "=info", "info,,", "pool=debug=info"])
def test_an_unknown_level_or_part_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=f"--log-level {value} is not allowed: LEVEL, PART=LEVEL"):
        load_run_settings(log_level=value)


def test_a_refusal_names_the_levels_and_parts_that_there_are(tmp_path: Path) -> None:
    refused = [
        (ctl(tmp_path, "coordinator", "--log-level", "loud"), "--log-level loud"),
        (finished(tmp_path, script(tmp_path, ""), PYSQLX_LOG_LEVEL="pol=info"), "PYSQLX_LOG_LEVEL=pol=info"),
    ]
    for (status, _, errors), said in refused:
        error = errors if isinstance(errors, str) else errors[0]
        assert (status, f": {said} is not allowed: " in error) == (2, True)
        for name in ("debug", "critical", "supervisor", "coordinator", "pool", "jobs", "sql"):
            assert re.search(rf"\b{name}\b", error)


# -- JSON -------------------------------------------------------------------------------------------------------------

SAYS_EVERYTHING = """
import json, logging, sys, threading, warnings
from pysqlx_engine import PySQLXEnginePoolSync
from pysqlx_engine.log_config import part
log = logging.getLogger("shop")
log.info("unseen")
log.warning("out of %s", "é", extra={"order": 5, "odd": {1, 2}, "url": "amqp://me:geheim@q/"})
print("plain \\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
sys.stdout.buffer.write(b"no text: \\xff\\n")
sys.stdout.flush()
print(json.dumps({"event": "paid", "level": "notice"}))
print("{no object}")
warnings.warn("old", DeprecationWarning, stacklevel=1)
with PySQLXEnginePoolSync(min_size=1) as pool:
    with pool.connection() as conn:
        conn.query_as_dict("SELECT 1 AS a")
thread = threading.Thread(target=lambda: {}["k"], name="side")
thread.start(); thread.join()
try:
    [][0]
except IndexError:
    log.exception("no first one")
logging.basicConfig(level=logging.INFO, format="of my own %(message)s")
log.info("after basicConfig")
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("mine %(message)s"))
other = logging.getLogger("other")
other.addHandler(handler)
other.propagate = False
other.warning("by my own handler")
part("supervisor").warning("x" * 5000 + "\\ud800")
raise ValueError("twice\\nas long")
"""


def test_with_json_each_line_is_one_object_whoever_has_said_it(tmp_path: Path, sqlite_uri: str) -> None:
    name = script(tmp_path, SAYS_EVERYTHING)
    options = ("--restart", "never", "--name", "shop", "--log-format", "json", "--log-level", "warning,pool=debug")
    status, out, err = finished(tmp_path, "-w", "2", *options, name, PYSQLX_URI=sqlite_uri, PYTHONWARNINGS="always")
    assert status == 1
    printed, lines = objects(out), objects(err)
    for line in printed + lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert line["run"] == "shop"
        worker = line.get("worker")
        assert line["process"] in (["supervisor", "coordinator"] if worker is None else [f"worker {worker}"])
        assert line["pid"] > 0
    for number in (0, 1):
        said = [line for line in printed if line.get("worker") == number]
        assert [line["stream"] for line in said] == ["stdout"] * 4
        plain, binary, theirs, no_object = said
        assert (plain["message"], binary["message"]) == ("plain \ufffd\ufffd\ufffd", "no text: \ufffd")
        assert (theirs["event"], theirs["level"], "message" in theirs) == ("paid", "notice", False)
        assert no_object["message"] == "{no object}"

        said = [line for line in lines if line.get("worker") == number]
        assert "unseen" not in [line["message"] for line in said]
        warning = only(said, logger="shop", level="warning")
        assert warning["message"] == "out of é"
        assert warning["extra"] == {"order": 5, "odd": [1, 2], "url": "amqp://me:***@q/"}
        assert "DeprecationWarning: old" in only(said, logger="py.warnings")["message"]
        opened = next(line for line in said if line["message"].startswith("Pool: New connection created"))
        assert (opened["logger"], opened["part"], opened["level"]) == ("pysqlx_engine", "pool", "debug")
        in_thread = only(said, message="Exception in thread side: KeyError: 'k'")
        assert in_thread["exception"].startswith("Traceback (most recent call last):\n")
        assert only(said, message="no first one")["exception"].endswith("IndexError: list index out of range")
        assert only(said, message="after basicConfig")["level"] == "info"
        own = only(said, message="mine by my own handler")
        assert (own["stream"], "level" in own) == ("stderr", False)
        assert only(said, message="x" * 5000 + "\\ud800")
        end = only(said, level="critical", message="ValueError: twice\nas long")
        assert end["exception"].startswith('Traceback (most recent call last):\n  File "')
        assert end["exception"].endswith("ValueError: twice\nas long")
        assert only(lines, process="supervisor", message=f"worker {number} ended with status 1")["level"] == "warning"
    assert "geheim" not in "".join(out + err)


def test_an_object_of_ours_is_not_wrapped_and_others_keep_what_they_say() -> None:
    source = Source("shop", "worker 3", 3, 7)
    ours = encode_line(source, "said", at=1.0, level="info")
    assert wrap(ours, source, "stderr", 2.0) is ours
    theirs = json.loads(wrap(b'{"time": "noon", "a": [1, null], "worker": "me"}', source, "stdout", 2.0))
    assert theirs == {
        "time": "noon", "run": "shop", "process": "worker 3", "worker": "me", "pid": 7, "stream": "stdout",
        "a": [1, None],
    }  # fmt: skip
    for line in (
        b'{"a": 0.1000000000000000055511151231257827, "b": 1e400}',
        b'{"a": ' + b'{"a":' * 500 + b"1" + b"}" * 501,
        b' {"a": "\\u00e9 \xc3\xa9"}\r',
    ):
        theirs = wrap(line, source, "stdout", 2.0)
        assert theirs.endswith(line.strip()[1:])
        assert json.loads(theirs).keys() >= {"time", "run", "process", "worker", "pid", "stream", "a"}
    for line in (b"", b"{", b"{}", b"[1]", b"null", b'{"a": ' * 10_000, b"\x00\x1b[31m", b'{"a": "\xff"}'):
        assert json.loads(wrap(line, source, "stdout", 2.0))["pid"] == 7


def test_an_object_of_ours_is_found_behind_something_without_an_end() -> None:
    source = Source("shop", "worker 3", 3, 7)
    ours = encode_line(source, '{"time":1}', at=1.0, level="info", extra={"a": {"time": 1}})
    for before in (b" 50%|##  |\r", b'{"time', b'{"a": 1}', b'{"a": '):
        first, second = wrap(before + ours, source, "stderr", 2.0).split(b"\n")
        assert second == ours
        assert json.loads(first)["stream"] == "stderr"
    assert json.loads(wrap(b'a {"time":1}', source, "stderr", 2.0))["message"] == 'a {"time":1}'


def test_what_no_json_can_hold_is_shown_as_text() -> None:
    loop: dict[Any, Any] = {}
    loop[(1, 2)] = loop
    line = json.loads(encode_line(Source("r", "p"), "a\ud800", at=0.0, extra={"loop": loop, "odd": object}))
    assert line["message"] == "a\\ud800"
    assert set(line["extra"]) == {"loop", "odd"}
    assert line["time"] == "1970-01-01T00:00:00.000Z"


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("geheim")


@dataclass
class Account:
    user: str
    password: str = field(repr=False)


def as_json(monkeypatch: pytest.MonkeyPatch, message: str, **more: Any) -> Line:
    """A record as a process writes it with `--log-format json`."""
    monkeypatch.setattr(logs, "_format", "json")
    record = logging.makeLogRecord({"msg": message, "levelname": "INFO", "name": "shop", **more})
    text = LineFormatter().format(record)
    assert text.isascii()  # a stream of any encoding takes it
    assert len(text) < 1024 * 1024
    assert "geheim" not in text
    line: Line = json.loads(text)
    return line


def test_nothing_that_is_logged_as_extra_shows_a_password_or_loses_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    uri, masked = "redis://:geheim@h/0", "redis://:***@h/0"
    loop: list[Any] = []
    loop.append(loop)
    extra = {
        "nested": {uri: [uri, {"a": (uri, 1, None, 1.5, True)}]},
        "account": Account("me", "geheim"),
        "shows_it": SimpleNamespace(uri=uri),
        "unshowable": [Unshowable()],
        "lone\ud800": {"\ud800": "\ud800"},
        "large": 2**70,
        "at": datetime(2026, 1, 2, tzinfo=UTC),
        "bytes": uri.encode(),
        "loop": loop,
    }
    line = as_json(monkeypatch, "é 𝄞", **extra, levelname="LOUD\ud800")
    assert (line["message"], line["level"]) == ("é 𝄞", "loud\\ud800")
    shown = line["extra"]
    assert "[...]" in json.dumps(shown.pop("loop"))
    assert shown == {
        "nested": {masked: [masked, {"a": [masked, 1, None, 1.5, True]}]},
        "account": "Account(user='me')",
        "shows_it": f"namespace(uri='{masked}')",
        "unshowable": ["<Unshowable that cannot be shown>"],
        "lone\\ud800": {"\\ud800": "\\ud800"},
        "large": str(2**70),
        "at": "2026-01-02T00:00:00+00:00",
        "bytes": f"b'{masked}'",
    }


@pytest.mark.parametrize(
    ("message", "arguments", "shown"),
    [
        ("count %d", ("postgresql://u:geheim@h/db",), "'count %d' cannot be formatted: TypeError"),
        ("%s of redis://:geheim@h", (Unshowable(),), "'%s of redis://:***@h' cannot be formatted: RuntimeError"),
        ("one", ("redis://:geheim@h",), "'one' cannot be formatted: TypeError"),
        (Unshowable(), (), "<Unshowable that cannot be shown> cannot be formatted: RuntimeError"),
    ],
)
def test_a_record_that_cannot_be_formatted_says_so_in_one_piece(
    monkeypatch: pytest.MonkeyPatch, message: Any, arguments: tuple[Any, ...], shown: str
) -> None:
    record = {"name": "shop", "levelname": "INFO", "msg": message, "args": arguments}
    for otherwise in (None, logging.Formatter("mine: %(message)s")):
        assert LineFormatter(otherwise).format(logging.makeLogRecord(record)) == f"INFO shop: {shown}"
    assert as_json(monkeypatch, message, args=arguments)["message"] == shown


def test_nor_does_a_format_of_others_lose_a_record() -> None:
    lines = LineFormatter(logging.Formatter("%(missing)s %(message)s"))
    record = logging.makeLogRecord({"name": "shop", "levelname": "INFO", "msg": "at redis://:geheim@h"})
    assert lines.format(record) == "INFO shop: 'at redis://:***@h' cannot be formatted: ValueError"
    assert record.msg == "at redis://:geheim@h"  # other handlers have it as it is


def test_a_record_that_is_too_long_for_a_line_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    line = as_json(monkeypatch, "𝄞" * 400_000 + "end", exc_text="begin" + "\x01" * 400_000 + "end", a=["é" * 400_000])
    assert line["message"].startswith("𝄞")
    assert line["message"].endswith("...")
    assert line["exception"].startswith("...")
    assert line["exception"].endswith("end")
    assert line["extra"]["cut"].startswith("{'a': ['éé")


def test_what_a_supervisor_says_fits_into_a_pipe_in_one_piece() -> None:
    line = Voice(LogSpec("r", "json"), "supervisor").line("\x01" * 5000, logging.INFO)
    assert line is not None
    assert len(line) <= 4096
    assert json.loads(line)["message"].startswith("\x01")
    quiet = Voice(LogSpec(levels="warning"), "supervisor")
    assert quiet.line("no", logging.INFO) is None
    assert quiet.line("yes", logging.INFO, asked=True) == b"yes\n"


def test_a_run_that_cannot_start_says_so_in_json_too(tmp_path: Path) -> None:
    (error,) = objects(finished(tmp_path, "--log-format", "json", "missing.py")[2])
    assert (error["level"], error["message"].split(":")[0]) == ("error", "cannot read the script missing.py")
    status, _, lines = finished(tmp_path, "--log-format", "json", "--no-prefix", script(tmp_path, ""))
    (error,) = objects(lines)
    assert (status, error["message"].split(":")[0]) == (2, "--no-prefix")
    name = script(tmp_path, "import no_such_module")
    status, _, lines = finished(tmp_path, "-w", "2", "--log-format", "json", name, PYSQLX_COORDINATOR=JOINS_ANOTHER)
    (error,) = objects(lines)  # once, not once for each worker
    assert (status, error["level"]) == (3, "error")
    assert "ModuleNotFoundError" in error["message"]


def test_the_log_file_and_its_successor_hold_nothing_but_objects(tmp_path: Path) -> None:
    log, moved = tmp_path / "run.log", tmp_path / "run.log.1"
    name = script(tmp_path, "import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    arguments = ("-w", "2", "--log-format", "json", "--log-file", "run.log", name)
    with started(tmp_path, *arguments, PYSQLX_COORDINATOR=JOINS_ANOTHER) as run:
        while not log.exists() or log.read_text().count('"up"') < 2:
            time.sleep(0.01)
        log.rename(moved)
        run.send(signal.SIGUSR1)
        while not log.exists():
            time.sleep(0.01)
        run.send(signal.SIGTTIN)
        while '"up"' not in log.read_text():
            time.sleep(0.01)
        run.send(signal.SIGTERM)
        assert run.wait() == 0
        assert run.rest() == []
    assert [line["message"] for line in objects(moved.read_text().splitlines())] == ["up", "up"]
    later = objects(log.read_text().splitlines())
    assert only(later, message="3 workers from now on, where there were 2")["level"] == "info"
    assert only(later, message="up")["worker"] == 2


def test_a_coordinator_alone_logs_as_it_is_told(tmp_path: Path) -> None:
    changed = "the budget of each database is 5 from now on"
    with coordinating(tmp_path, "--name", "alone", "--log-format", "json") as (run, _):
        assert ctl(tmp_path, "resize", "5")[0] == 0
        line = json.loads(run.line())
        assert (line["message"], line["logger"], line["part"]) == (changed, "pysqlx_engine", "coordinator")
        assert line["run"] == "alone"
        assert line["pid"] == run.process.pid
    with coordinating(tmp_path, "--name", "quiet", PYSQLX_LOG_LEVEL="coordinator=error") as (run, _):
        assert ctl(tmp_path, "resize", "5")[0] == 0
        run.send(signal.SIGTERM)
        assert run.rest() == []


# -- jobs -------------------------------------------------------------------------------------------------------------

LOGS_IN_JOBS = """
import logging
from pysqlx_engine.workers import JobQueue, logs
queue = JobQueue(concurrency=4)
log = logging.getLogger("shop")

@queue.task(max_attempts=1)
async def in_task() -> None:
    log.warning("in a task")
    raise ValueError("postgresql://me:geheim@db/shop")

@queue.task
def in_thread() -> None:
    log.warning("in a thread")
    logging.basicConfig(format="%(message)s!")
    log.warning("configured")

log.warning("in no job")
queue.run()
"""


def run_jobs(run: Run, database: Database) -> tuple[int, int, list[str]]:
    """Enqueue one of each, and give their numbers and what was printed."""
    with PySQLXEngineSync(database.uri) as connection:
        drive(migrate(connection._engine))
        queue = JobQueue(database.uri)

        @queue.task(max_attempts=1)
        def in_task() -> None: ...
        @queue.task
        def in_thread() -> None: ...

        first = in_task.enqueue_sync(conn=connection)
        second = in_thread.enqueue_sync(conn=connection)
    lines: list[str] = []
    missing = {"in a task", "configured", "failed: "}
    while missing:
        line = run.line()
        assert line, f"the run ended without printing {missing}: {lines}"
        lines.append(line)
        missing = {text for text in missing if text not in line}
    run.send(signal.SIGTERM)
    return first, second, lines + run.rest()


def test_records_of_a_job_carry_it_as_json(tmp_path: Path, sqlite_db: Database) -> None:
    name = script(tmp_path, LOGS_IN_JOBS)
    with started(tmp_path, "-w", "2", "--log-format", "json", name, PYSQLX_URI=sqlite_db.uri) as run:
        first, second, printed = run_jobs(run, sqlite_db)
    lines = objects(printed)
    for message, job, task in (("in a task", first, "in_task"), ("in a thread", second, "in_thread")):
        line = only(lines, message=message)
        assert (line["job"], line["task"], line["attempt"], line["logger"]) == (job, task, 1, "shop")
        assert line["process"] == f"worker {line['worker']}"
    failed = only(lines, part="jobs", job=first)
    assert failed["level"] == "warning"
    assert "postgresql://me:***@db/shop" in failed["message"]
    assert "job" not in next(line for line in lines if line["message"] == "in no job")
    with PySQLXEngineSync(sqlite_db.uri) as connection:  # what stands in the database is shown by pysqlx-ctl
        (row,) = connection.query_as_dict("SELECT error, traceback FROM pysqlx_job_errors")
    assert "***" in row["error"]
    assert "geheim" not in "".join(printed) + row["error"] + row["traceback"]


def test_records_of_a_job_carry_it_in_text(tmp_path: Path, sqlite_db: Database) -> None:
    with started(tmp_path, script(tmp_path, LOGS_IN_JOBS), PYSQLX_URI=sqlite_db.uri) as run:
        first, second, lines = run_jobs(run, sqlite_db)
    assert "[worker 0] WARNING shop: in no job" in lines
    assert f"[worker 0] WARNING shop job {second} in_thread#1: in a thread" in lines
    assert f"[worker 0] job {second} in_thread#1: configured!" in lines
    assert any(f" job {first} in_task#1: " in line and "in a task" in line for line in lines)
    assert any(f" job {first} in_task#1: " in line and "failed: ValueError" in line for line in lines)
    assert "geheim" not in "".join(lines)


# -- nothing secret ---------------------------------------------------------------------------------------------------

WRONG_PASSWORD = """
import logging, os, threading
from pysqlx_engine import PySQLXEnginePoolSync
from pysqlx_engine.log_config import part
PySQLXEnginePoolSync("sqlite:here.db", min_size=0).start()
uri = os.environ["WRONG"]
for name in ("pool", "jobs", "sql"):
    part(name).warning("ours: %s", uri)
logging.getLogger("shop").warning("theirs: %s", uri)
thread = threading.Thread(target=lambda: os.stat("redis://:geheim@h/0"), name="side")
thread.start(); thread.join()
PySQLXEnginePoolSync("mysql://root:geheim@127.0.0.1:3306/mysql", min_size=1, conn_timeout=5).start()
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_wrong_password_is_nowhere(tmp_path: Path, mysql_server_uri: str, form: str) -> None:
    wrong = mysql_server_uri.replace("//root@", "//root:geheim@")
    assert wrong != mysql_server_uri
    text = WRONG_PASSWORD.replace("mysql://root:geheim@127.0.0.1:3306/mysql", wrong)
    arguments = ("--restart", "never", "--log-format", form, script(tmp_path, text))
    status, out, err = finished(tmp_path, *arguments, WRONG=wrong)
    assert (status, out) == (1, [])
    everything = "\n".join(err)
    assert "ConnectError" in everything
    assert everything.count("mysql://root:***@") >= 6  # in the text of the error too, and in the line of the script
    assert "geheim" not in everything
    assert everything.count("Traceback (most recent call last)") == 2
    assert "Exception in thread side:" in everything
    assert "directory: 'redis://:***@h/0'" in everything


NOBODY_CATCHES_IT = """
import weakref
class Ends:
    def __init__(self, text=""): self.text = text
    def __del__(self):
        if self.text: raise ValueError(self.text)
class Callback:
    def __init__(self, shown): self.shown = shown
    def __repr__(self): return self.shown
    def __call__(self, _): raise ValueError("nothing secret")
Ends("at redis://:geheim@h/0")
for shown in ("<of redis://:geheim@h/1>", None, "<of nothing>"):
    ends = Ends()
    reference = weakref.ref(ends, Callback(shown))
    del ends
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_python_ignores_shows_no_password(tmp_path: Path, form: str) -> None:
    status, _, lines = finished(tmp_path, "--log-format", form, script(tmp_path, NOBODY_CATCHES_IT))
    text = "\n".join(lines)
    assert status == 0
    assert "geheim" not in text
    for shown in ("ValueError: at redis://:***@h/0", ": <of redis://:***@h/1>", ": <of nothing>"):
        assert shown in text
    assert text.count("ValueError: nothing secret") == (3 if form == "text" else 6)


def test_the_error_of_a_job_is_cut_before_it_is_looked_through() -> None:
    text = "postgresql://u:geheim" + "x" * 10_000 + "@h\nlast postgresql://u:geheim@h"
    assert _masked(text, 1000) == "last postgresql://u:***@h"
    assert _masked("a\nb", 1000) == "a\nb"


# -- colours ----------------------------------------------------------------------------------------------------------


def test_a_terminal_gets_colours_if_it_wants_them(tmp_path: Path) -> None:
    ours, terminal = os.openpty()
    name = script(tmp_path, "print('seen')")
    with started(tmp_path, name, stdout=terminal, stderr=terminal, NO_COLOR="") as run:
        assert run.wait() == 0
    assert line_prefix("worker 0", 0, terminal, {"NO_COLOR": "1"}) == b"[worker 0] "
    os.close(terminal)
    assert os.read(ours, 10_000) == b"\x1b[36m[worker 0] \x1b[0mseen\r\n"
    os.close(ours)
