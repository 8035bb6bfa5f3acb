"""`pysqlx-ctl`: what it prints for people and for programs, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from .runs import ctl, started

HOLDS = """
import sys, time
from pysqlx_engine import PySQLXEnginePoolSync
with PySQLXEnginePoolSync(uri=sys.argv[1], min_size=0, max_size=4) as pool, pool.connection():
    print("up", flush=True)
    time.sleep(60)
"""


def script(directory: Path) -> str:
    (directory / "script.py").write_text(HOLDS)
    return "script.py"


def test_a_shell_completes_commands_and_options(tmp_path: Path):
    status, out, err = ctl(tmp_path, "completion", "bash")
    assert (status, err) == (0, "")
    (tmp_path / "completion").write_text(out)

    def completed(*words: str) -> list[str]:
        """What bash offers for the last of these."""
        script = (
            f". ./completion; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}\n"
            f'function=$(complete -p {words[0]} | sed "s/.*-F \\([^ ]*\\).*/\\1/")\n'
            f'"$function" {words[0]}; printf "%s\\n" "${{COMPREPLY[@]}}"\n'
        )
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("pysqlx-ctl", "sca") == ["scale"]
    assert completed("pysqlx-run", "--max-s") == ["--max-size"]
    for shell in ("zsh", "fish"):
        status, out, _ = ctl(tmp_path, "completion", shell)
        assert (status, "recall" in out, "max-size" in out) == (0, True, True)
    assert ctl(tmp_path, "completion", "cmd.exe")[0] == 2


def test_status_shows_a_database_by_its_name_whatever_is_in_it(tmp_path: Path):
    (tmp_path / "m[").mkdir()
    (tmp_path / "m[" / "b]").mkdir()
    with started(tmp_path, script(tmp_path), "sqlite:./m[/b]/x.db") as run:
        run.line_with("up")
        status, out, err = ctl(tmp_path, "status")
        assert (status, err) == (0, "")
        assert "m[/b]/x.db" in out
        run.process.terminate()
        assert run.wait() == 0


@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["tables", "json"])
def test_a_reader_that_has_seen_enough_is_no_failure(tmp_path: Path, arguments: list[str]):
    with started(tmp_path, script(tmp_path), "sqlite::memory:") as run:
        run.line_with("up")
        reader, writer = os.pipe()
        os.close(reader)
        status, _, err = ctl(tmp_path, "status", *arguments, stdout=writer)
        os.close(writer)
        assert (status, err) == (0, "")
        run.process.terminate()
        assert run.wait() == 0


def test_without_a_run_it_says_so(tmp_path: Path):
    assert ctl(tmp_path, "status") == (1, "", "pysqlx-ctl: no run is active\n")
    assert ctl(tmp_path, "status", "--name", "shop") == (1, "", "pysqlx-ctl: no run named shop is active\n")


def test_of_several_runs_one_has_to_be_chosen(tmp_path: Path):
    arguments = (script(tmp_path), "sqlite::memory:")
    with started(tmp_path, "--name", "a", *arguments) as a, started(tmp_path, "--name", "b", *arguments) as b:
        a.line_with("up")
        b.line_with("up")
        line = "pysqlx-ctl: several runs are active, choose one with --name: a, b\n"
        assert ctl(tmp_path, "status") == (2, "", line)
        assert json.loads(ctl(tmp_path, "status", "--json", "--name", "b")[1])["run"] == "b"
        for run in (a, b):
            run.process.terminate()
            assert run.wait() == 0


def test_a_run_that_joined_anothers_coordinator_tells_of_its_own_workers(tmp_path: Path):
    address = f"ipc://{tmp_path}/pysqlx/a/coordinator.sock"
    name = script(tmp_path)
    with (
        started(tmp_path, "--name", "a", "--coordinator", name, "sqlite:./x.db") as a,
        started(tmp_path, "--name", "b", "-w", "2", name, "sqlite:./x.db", PYSQLX_COORDINATOR=address) as b,
    ):
        for run in (a, b, b):
            run.line_with("up")
        workers, leased = shown(tmp_path, "a")
        assert (workers, leased) == ([0, 0, 1], 3)
        workers, leased = shown(tmp_path, "b")
        assert (workers, leased) == ([0, 1], 2)
        for run in (b, a):
            run.process.terminate()
            assert run.wait() == 0


def shown(directory: Path, name: str) -> tuple[list[int], int]:
    """The workers that a run shows, and the leases of its only budget."""
    answer = json.loads(ctl(directory, "status", "--json", "--name", name)[1])
    [budget] = answer["budgets"]
    assert (budget["size"], budget["in_use"]) == (4, budget["leased"])
    return [worker["worker"] for worker in answer["workers"]], budget["leased"]
