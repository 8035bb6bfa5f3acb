"""The examples for process managers do what their first lines say: the commands are taken from there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import Database, free_port

from .loading import get
from .runs import coordinating, run_environment, started
from .sampling import watching
from .test_managers import assert_nothing_is_left, broker, listens, members, until

__all__ = ["broker"]

ROOT = Path(__file__).parents[2]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def commands(example: str) -> tuple[list[str], list[str]]:
    """The options of `pysqlx-ctl coordinator` and the command that joins it, as the example says."""
    first, second = re.findall(r"^    (.+)$", (ROOT / "examples" / example).read_text(), re.MULTILINE)[:2]
    coordinator, joining = first.split(), second.split()
    assert (coordinator[:2], joining[0]) == (["pysqlx-ctl", "coordinator"], "PYSQLX_COORDINATOR=ipc://...")
    return coordinator[2:], joining[1:]


@pytest.mark.parametrize("example", ["gunicorn_app.py", "uvicorn_app.py"])
def test_four_processes_of_a_server_answer(tmp_path: Path, postgresql_db: Database, example: str) -> None:
    options, command = commands(example)
    port = free_port()
    ports = {"GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{port}", "UVICORN_PORT": str(port)}
    with (
        watching(postgresql_db) as samples,
        coordinating(tmp_path, *options) as (_, address),
        started(
            ROOT, command=command, PATH=PATH, PYSQLX_COORDINATOR=address, PYSQLX_URI=postgresql_db.uri, **ports
        ) as run,
    ):
        until(lambda: listens(port))
        until(lambda: len(members(tmp_path)) == 4)
        status, body = get(port)
        text = body.decode()
        answered = re.fullmatch(r"BaseRow\(answer=42\) from process (\d+)\n", text)
        assert status == 200
        assert answered is not None, text
        assert int(answered[1]) in members(tmp_path)
        run.process.terminate()
        assert run.wait() == 0, run.rest()
        assert_nothing_is_left(tmp_path, postgresql_db)
    assert 0 < samples.most <= 10


@pytest.mark.thorough
def test_processes_of_multiprocessing_compute(tmp_path: Path, postgresql_db: Database) -> None:
    options, command = commands("multiprocessing_pool.py")
    with coordinating(tmp_path, *options) as (_, address):
        with started(ROOT, command=command, PATH=PATH, PYSQLX_COORDINATOR=address, PYSQLX_URI=postgresql_db.uri) as run:
            assert run.rest() == [str([number * number for number in range(20)])]
            assert run.wait() == 0
        assert_nothing_is_left(tmp_path, postgresql_db)


@pytest.mark.thorough
def test_tasks_of_celery_are_done(tmp_path: Path, postgresql_db: Database, broker: dict[str, str]) -> None:
    options, command = commands("celery_app.py")
    # A database of Redis that nobody else uses: the example's queue has the name that every queue has.
    uri = re.sub(r"/\d+$", "/13", broker["BROKER"])
    environment = {
        "PATH": PATH,
        "PYSQLX_URI": postgresql_db.uri,
        "CELERY_BROKER_URL": uri,
        "CELERY_RESULT_BACKEND": uri,
    }
    with (
        coordinating(tmp_path, *options) as (_, address),
        started(ROOT, command=command, PYSQLX_COORDINATOR=address, **environment) as run,
    ):
        until(lambda: len(members(tmp_path)) == 4)
        sent = subprocess.run(
            [sys.executable, "examples/celery_app.py"],
            cwd=ROOT, env=run_environment(tmp_path, environment), capture_output=True, text=True, timeout=60,
            check=True,
        )  # fmt: skip
        assert sent.stdout == f"{[number + 1 for number in range(40)]}\n"
        run.process.terminate()
        assert run.wait() == 0, run.rest()
        assert_nothing_is_left(tmp_path, postgresql_db)
