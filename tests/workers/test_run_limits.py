"""`pysqlx-run` under the limits of the system: it raises what it may, and says what it cannot have."""

from __future__ import annotations

from pathlib import Path

from .runs import finished

SHOWS_LIMIT = "import os, resource\nprint(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"


def script(directory: Path, text: str) -> str:
    (directory / "script.py").write_text(text)
    return "script.py"


def test_every_worker_is_started_where_the_soft_limit_is_too_low_and_scripts_keep_that_limit(tmp_path: Path):
    status, out, err = finished(
        tmp_path, "-w", "12", "--restart", "never", script(tmp_path, SHOWS_LIMIT), shell="ulimit -Sn 64"
    )
    assert (status, err) == (0, [])
    assert sorted(out) == sorted(f"[worker {number}] 64" for number in range(12))


def test_more_workers_than_the_hard_limit_allows_is_3_and_says_what_they_need(tmp_path: Path):
    status, out, err = finished(tmp_path, "-w", "12", script(tmp_path, SHOWS_LIMIT), shell="ulimit -n 64")
    assert (status, out) == (3, [])
    assert err == [
        "pysqlx-run: -w 12 needs 110 open files, and the hard limit is 64: raise it (ulimit -n), or start fewer workers"
    ]
