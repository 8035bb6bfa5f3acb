"""Every example of the pool's description works as it is written there: alone, in several workers, on each database.

`scripts/` holds the examples, byte for byte; `transcript.txt` is the log that the description shows for the last ones.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ..servers import Database, sqlite_database
from .conftest import Note
from .running import HERE, SCRIPTS, Outcome, makespan, run_example

ROOT = HERE.parents[1]

SHORT = sorted(path.stem for path in SCRIPTS.glob("*.py") if not path.stem.startswith("stress_"))
LONGEST = {"start_async", "start_sync", "complete_async", "complete_sync"}
"""Of these, the ones that never stop their pool and the ones that contain the others."""
FACES = ["async", "sync"]
ALLOWED = 1.05
"""Of the list schedule's makespan: what the examples with 1,000 requests may take."""


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """A fresh database of each provider in turn; on SQLite the one that the examples name."""
    if request.param == "sqlite":
        return sqlite_database(tmp_path / "dev.db")
    fresh: Database = request.getfixturevalue(f"{request.param}_db")
    return fresh


@pytest.fixture(scope="module", params=FACES)
def stress(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, note: Note) -> Outcome:
    """The example with 1,000 requests, run once with `python main.py` on SQLite."""
    cwd = tmp_path_factory.mktemp("stress")
    outcome = run_example(SCRIPTS / f"stress_{request.param}.py", sqlite_database(cwd / "dev.db"), cwd)
    note(f"{request.param}, sqlite, python", outcome)
    return outcome


@pytest.mark.parametrize("name", SHORT)
def test_an_example_runs_as_it_is_written(name: str, database: Database, tmp_path: Path) -> None:
    outcome = run_example(SCRIPTS / f"{name}.py", database, tmp_path)
    assert (outcome.status, outcome.log) == (0, "")
    assert outcome.output == _promised(name)
    with database.sampler() as sessions:
        assert sessions() == 0


@pytest.mark.parametrize(
    "name", [name if name in LONGEST else pytest.param(name, marks=pytest.mark.long) for name in SHORT]
)
def test_an_example_runs_in_two_workers(name: str, database: Database, tmp_path: Path) -> None:
    outcome = run_example(SCRIPTS / f"{name}.py", database, tmp_path, workers=2)
    assert (outcome.status, outcome.log) == (0, "")
    assert sorted(outcome.output) == [f"[worker {number}] {line}" for number in range(2) for line in _promised(name)]
    with database.sampler() as sessions:
        assert sessions() == 0


def test_there_is_an_example_of_everything() -> None:
    """Two faces of each: a glob that finds nothing would let the tests pass."""
    assert len(SHORT) == 8


def test_a_thousand_requests_are_served_without_an_error(stress: Outcome) -> None:
    assert (stress.status, stress.output) == (0, [])
    assert stress.log.count("Pool: Connection returned to pool:") == 1000
    assert "error" not in stress.log.lower()


def test_a_thousand_requests_take_no_longer_than_their_connections_need(stress: Outcome) -> None:
    assert stress.ratio <= ALLOWED


def test_the_log_reads_as_the_transcript(stress: Outcome) -> None:
    transcript = (HERE / "transcript.txt").read_text()
    if "Async -> " not in stress.log:
        transcript = re.sub(r"Async -> (\w+) task:", r"\1 thread:", transcript)
    lines = iter(stress.log.splitlines())
    for expected in filter(lambda line: line != "...", transcript.splitlines()):
        pattern = _any_moment(expected)
        assert any(pattern.fullmatch(line) for line in lines), f"not in the log, or not at its place: {expected}"


@pytest.mark.long
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("workers", [None, 2], ids=["python", "two workers"])
def test_a_thousand_requests_per_process_share_their_connections(
    face: str, workers: int | None, database: Database, tmp_path: Path, note: Note
) -> None:
    outcome = run_example(SCRIPTS / f"stress_{face}.py", database, tmp_path, workers)
    note(f"{face}, {database.provider}, {'python' if workers is None else f'pysqlx-run -w {workers}'}", outcome)
    assert (outcome.status, outcome.output) == (0, [])
    assert outcome.log.count("Pool: Connection returned to pool:") == 1000 * (workers or 1)
    assert "error" not in outcome.log.lower()
    assert outcome.ratio <= ALLOWED
    with database.sampler() as sessions:
        assert sessions() == 0


@pytest.mark.parametrize(
    ("durations", "machines", "seconds"),
    [([2, 1, 1, 3], 2, 5), ([1, 1, 1], 3, 1), ([1, 2, 3], 1, 6), ([], 30, 0)],
)
def test_the_bound_is_that_of_a_list_schedule(durations: list[float], machines: int, seconds: float) -> None:
    assert makespan(durations, machines) == seconds


def _promised(name: str) -> list[str]:
    """The lines that the example itself says it prints."""
    return re.findall(r"# Output: (.*)", (SCRIPTS / f"{name}.py").read_text())


def _any_moment(line: str) -> re.Pattern[str]:
    """A pattern for `line` of the transcript with any connection, address, time and place of the class."""
    pattern = re.escape(line)
    pattern = re.sub(r"<pysqlx_engine\S*\.ConnInfo", r"<pysqlx_engine[\\w.]*\\.ConnInfo", pattern)
    pattern = re.sub(r"conn\\-\d+", r"conn-\\d+", pattern)
    pattern = re.sub(r"0x[0-9a-f]+", "0x[0-9a-f]+", pattern)
    return re.compile(re.sub(r"\d+\\\.\d{5}", r"\\d+\\.\\d{5}", pattern))
