"""The example that imports airports does what its first lines say: the commands are taken from there."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import airportsdata
import pytest

from pysqlx_engine import PySQLXEngineSync
from tests.servers import Database, sqlite_database
from tests.workers.runs import Run, started
from tests.workers.sampling import watching

ROOT = Path(__file__).parents[2]
DATA = airportsdata.load("IATA")
COUNTRIES = Counter(airport["country"] for airport in DATA.values())
CHUNKS = -(-len(DATA) // 50)


class Import:
    """The commands of the example, on one database."""

    def __init__(self, directory: Path, database: Database) -> None:
        text = (ROOT / "examples" / "jobs_import.py").read_text()
        self._worker, self._program = (line.split() for line in re.findall(r"^    (.+)$", text, re.MULTILINE)[:2])
        assert (self._worker[0], self._program[0]) == ("pysqlx-run", "python")
        self._directory = directory
        (directory / "examples").symlink_to(ROOT / "examples")
        self.database = database
        self._environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        if database.provider != "sqlite":  # whose file is the one that the example makes
            self._environment["PYSQLX_URI"] = database.uri

    def program(self) -> AbstractContextManager[Run]:
        return started(self._directory, command=self._program, **self._environment)

    @contextmanager
    def workers(self, **environment: str) -> Iterator[Run]:
        """At the end they are told to end."""
        with started(self._directory, command=self._worker, **self._environment, **environment) as run:
            yield run
            run.send(signal.SIGTERM)
            said = run.rest()
            assert run.wait() == 0, said

    def assert_complete(self) -> None:
        with PySQLXEngineSync(self.database.uri) as connection:
            rows = connection.query_as_dict("SELECT iata, country, name FROM airport")
            reports = connection.query_as_dict("SELECT country, airports FROM airport_report")
            states = connection.query_as_dict("SELECT task, state, count(*) AS n FROM pysqlx_jobs_ended GROUP BY 1, 2")
            (left,) = connection.query_as_dict("SELECT count(*) AS n FROM pysqlx_jobs")
        assert sorted((row["iata"], row["country"], row["name"]) for row in rows) == sorted(
            (code, airport["country"], airport["name"]) for code, airport in DATA.items()
        )
        assert {row["country"]: row["airports"] for row in reports} == COUNTRIES
        assert len(reports) == len(COUNTRIES)
        assert {(row["task"], row["state"]): row["n"] for row in states} == {
            ("import_chunk", "completed"): CHUNKS,
            ("report_all", "completed"): 1,
            ("report_country", "completed"): len(COUNTRIES),
        }
        assert left["n"] == 0


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Import:
    if request.param == "sqlite":
        return Import(tmp_path, sqlite_database(tmp_path / "airports.db"))
    return Import(tmp_path, request.getfixturevalue(f"{request.param}_db"))


def summary(lines: list[str]) -> dict[str, str]:
    """Its columns and their values."""
    titles = next(number for number, line in enumerate(lines) if "rows imported" in line)
    return dict(zip(*(re.split(r" {2,}", lines[number].strip()) for number in (titles, titles + 2)), strict=True))


@pytest.mark.thorough("sqlite", "mysql")
def test_every_airport_is_imported_and_every_country_reported(example: Import) -> None:
    with ExitStack() as stack:
        # The file's descriptors are in processes: to look at all of them takes more than the import.
        samples = None if example.database.provider == "sqlite" else stack.enter_context(watching(example.database))
        stack.enter_context(example.workers())
        program = stack.enter_context(example.program())
        lines = program.rest()
        assert program.wait() == 0, lines
    assert (lines[0], f"{len(DATA)} of {len(DATA)} airports" in lines) == ("enqueued", True), lines
    told = summary(lines)
    assert told["rows imported"] == str(len(DATA))
    assert told["jobs"] == str(1 + CHUNKS + len(COUNTRIES))
    assert 0 < int(told["connections at most"]) <= 10
    if samples is not None:
        assert samples.most <= 10 + 1, samples  # the program's own
    example.assert_complete()


@pytest.mark.parametrize("example", ["postgresql"], indirect=True)
def test_a_killed_worker_and_an_interrupted_program_cost_no_row_and_double_none(
    example: Import, tmp_path: Path
) -> None:
    with example.program() as program:
        program.line_with("enqueued")
        program.send(signal.SIGINT)
        assert program.rest()[-1] == "interrupted; the jobs go on"
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "one").touch()
    with example.program() as program:
        program.line_with("an import is going on")
        # One of the workers is ended by signal 9 in a transaction.
        with example.workers(PYSQLX_JOB_FAULTS=f"started:{tmp_path / 'faults'}") as workers:
            workers.line_with("was ended by signal 9 (SIGKILL)")
            lines = program.rest()
            assert program.wait() == 0, lines
    told = summary(lines)
    assert (told["rows imported"], told["jobs"]) == (str(len(DATA)), str(1 + CHUNKS + len(COUNTRIES)))
    assert int(told["retries"]) > 0
    with PySQLXEngineSync(example.database.uri) as connection:
        errors = connection.query_as_dict("SELECT error FROM pysqlx_job_errors WHERE error LIKE '%SIGKILL%'")
    assert errors
    example.assert_complete()
