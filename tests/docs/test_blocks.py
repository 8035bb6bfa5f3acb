"""Every code block of the README and of docs/ does what the page says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysqlx_engine.settings import FILE_VARIABLE, LOG_SWITCHES, PoolSettings, RunSettings
from tests.servers import Database, free_port
from tests.workers.runs import run_environment

from ..workers.test_managers import broker
from .blocks import PAGES, ROOT, blocks, inline_code
from .session import Session
from .unrun import understood

__all__ = ["broker"]

MOST_EXCUSES = 7
"""Blocks that nobody runs. Think twice before you make it more."""


@pytest.fixture
def session(tmp_path: Path, postgresql_db: Database) -> Iterator[Session]:
    """On this machine: its servers, free ports, its own directories."""
    port, web, metrics = f"127.0.0.1:{free_port()}", free_port(), free_port()
    broker_uri = re.sub(r"/\d+$", "/12", os.environ.get("PYSQLX_TEST_REDIS_URI", "redis://127.0.0.1:6379/0"))
    # A coordinator that other hosts may join waits for them for a term at its first start.
    environment = {
        "PYSQLX_TERM": "2",
        "PYSQLX_URI": postgresql_db.uri,
        "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{web}",
        "UVICORN_PORT": str(web),
        "PYTHONWARNINGS": "ignore",
        "COLUMNS": "150",
    }
    replaced = {
        r"postgresql://[^\s\"']+": postgresql_db.uri,
        r"127\.0\.0\.1:8000": f"127.0.0.1:{web}",
        r"(0\.0\.0\.0|127\.0\.0\.1):9100": f"127.0.0.1:{metrics}",
        r"10\.0\.0\.5:7117": port,
        r"redis://[^\s\"']+": broker_uri,
        r"/etc/app": f"{tmp_path}/app",
        r"/run/user/1000|/home/me/shop": str(tmp_path),
    }
    with Session(tmp_path, run_environment(tmp_path, environment), replaced) as session:
        yield session


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _each() -> list[object]:
    """The guides, which start servers of others, are for `make docs`."""
    return [
        pytest.param(page, id=_name(page), marks=[pytest.mark.long] if page.parent.name == "guides" else [])
        for page in PAGES
    ]


@pytest.mark.parametrize("page", _each())
def test_a_page_does_what_it_says(page: Path, session: Session, request: pytest.FixtureRequest) -> None:
    if page.name == "celery.md":
        request.getfixturevalue("broker")
    for block in blocks(page):
        if not block.excuse:
            session.do(block)
    session.finish()


def test_few_blocks_are_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    every = [block for page in PAGES for block in blocks(page)]
    excused = [block for block in every if block.excuse]
    with capsys.disabled():
        print(f"\n{len(every)} code blocks, {len(excused)} of them not run:")
        for block in excused:
            print(f"  {block.place}: {block.excuse}")
    assert len(excused) <= MOST_EXCUSES


def test_files_of_a_page_that_are_examples_are_those() -> None:
    """The README's first one, and whichever else says so by its name."""
    shown = [block for page in PAGES for block in blocks(page) if block.title.startswith("examples/")]
    shown += [block for block in blocks(ROOT / "README.md") if block.title == "worker.py"]
    assert shown
    for block in shown:
        assert (ROOT / "examples" / block.title.removeprefix("examples/")).read_text() == block.text, block.place


_PLACEHOLDERS = {"N": "1", "SIZE": "1", "WORKERS": "1", "WORKER": "1", "ID": "1", "ID...": "1", "...": "x"}
"""What stands for a value in a text."""

OTHERS = {
    *(
        f"PYSQLX_{name}"
        for name in ("RUN_ID", "RUN_NAME", "WORKER_ID", "WORKER_COUNT", "WORKER_RESTARTS", "WORKER_PID")
    ),
    "PYSQLX_TEST_MYSQL_URI",
    "PYSQLX_WITHOUT",
}
"""Variables that are no settings: what workers find in their environment, and those for tests."""


def test_commands_in_the_text_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    refused, seen = [], 0
    for page in PAGES:
        for line, code in inline_code(page):
            words = [_PLACEHOLDERS.get(word, word) for word in code.split()]
            if len(words) < 2 or words[0] not in ("pysqlx-run", "pysqlx-ctl") or set("[|,") & set(code):
                continue
            seen += 1
            try:
                understood(words)
            except SystemExit as end:
                said = capsys.readouterr().err
                # A text may name a part of a command.
                if end.code and "arguments are required" not in said and "expected one argument" not in said:
                    refused.append(f"{page.name}:{line}: {code}: {said.splitlines()[-1]}")
    assert not refused
    assert seen > 30


def test_variables_in_the_text_are_there() -> None:
    known = {f"PYSQLX_{name.upper()}" for model in (RunSettings, PoolSettings) for name in model.model_fields}
    known |= {*LOG_SWITCHES, FILE_VARIABLE, *OTHERS}
    for page in PAGES:
        unknown = set(re.findall(r"\bPYSQLX_[A-Z_]+\b", page.read_text())) - known
        assert not unknown, page
