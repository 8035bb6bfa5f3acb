"""A run that cannot start says why in one line, ends with the documented status, and leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .runs import JOINS_ANOTHER, finished

SCRIPTS = {
    "good.py": "print('it ran')",
    "broken.py": "def f(:\n    pass",
    "nul.py": "a = '\0'",
    "imports.py": "import time\n\nimport no_such_module",
    "breaks_late.py": "import broken",
    "says_much.py": "raise ImportError('\\udcff\\u20ac' * 100_000)",
    "refused.py": "from pysqlx_engine.errors import PoolRefusedError\n"
    "raise PoolRefusedError('max_size 30 here,\\n20 there')",
    "group.py": "from pysqlx_engine.errors import PoolRefusedError\n"
    "raise BaseExceptionGroup('tasks', [PoolRefusedError('30 here, 20 there')] * 2)",
    "unreachable.py": "from pysqlx_engine.errors import PoolTimeoutError\n"
    "raise PoolTimeoutError('no server at h:5432', at_start=True)",
    "setting.py": "import os\nos.environ['PYSQLX_MIN_SIZE'] = 'few'\n"
    "from pysqlx_engine.settings import load_pool_settings\nload_pool_settings()",
}


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    for name, text in SCRIPTS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "bad.env").write_text("PYSQLX_WORKERS=2\nPYSQLX_MAXSIZE=3\n")
    return tmp_path


def refused(scripts: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """The status and the only line of a run that must not have run anything."""
    status, out, err = finished(scripts, *arguments, **environment)
    assert out == []
    assert len(err) == 1, err
    assert not list((scripts / "pysqlx").glob("*")), "it left its directory"
    return status, err[0]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "the following arguments are required: SCRIPT; see pysqlx-run --help"),
        (["--workres", "3", "good.py"], "unrecognized arguments: --workres; see pysqlx-run --help"),
        (["-w", "none", "good.py"], "--workers none is not allowed: processes, a whole number from 1 to 4096"),
        (["--loop", "fast", "good.py"], "--loop fast is not allowed: auto, asyncio or uvloop"),
        (["--name", "a b", "good.py"], "--name a b is not allowed: 1 to 64 letters"),
        (["--settings", "bad.env", "good.py"], "bad.env, line 2: unknown setting PYSQLX_MAXSIZE; did you mean"),
        (["--settings", "none.env", "good.py"], "--settings=none.env: cannot read the settings file: No such file"),
    ],
)
def test_wrong_usage_and_bad_settings_are_2(scripts: Path, arguments: list[str], line: str):
    status, text = refused(scripts, *arguments)
    assert status == 2
    assert text.startswith(f"pysqlx-run: {line}")


def test_a_bad_variable_of_the_environment_is_2(scripts: Path):
    status, text = refused(scripts, "good.py", PYSQLX_MIN_SIZE="few")
    assert (status, text) == (
        2,
        "pysqlx-run: PYSQLX_MIN_SIZE=few is not allowed: connections, a whole number from 0 to 100000",
    )


def test_a_size_that_the_joined_coordinator_would_not_hear_is_2(scripts: Path):
    status, text = refused(scripts, "--max-size", "3", "good.py", PYSQLX_COORDINATOR=JOINS_ANOTHER)
    assert status == 2
    assert text.startswith("pysqlx-run: --max-size 3 would not be heard: PYSQLX_COORDINATOR is set")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["missing.py"], "cannot read the script missing.py: No such file or directory"),
        (["missing"], "no file 'missing' and no module named 'missing' in "),
        (["missing:main"], "no module named 'missing' in "),
        (["."], "cannot read the script .: Is a directory"),
        (["broken.py"], "broken.py, line 1: SyntaxError: "),
        (["nul.py"], "nul.py"),
    ],
)
def test_a_script_that_is_missing_or_broken_is_3_before_any_process_starts(
    scripts: Path, arguments: list[str], line: str
):
    status, text = refused(scripts, "-w", "3", *arguments)
    assert status == 3
    assert text.startswith(f"pysqlx-run: {line}")


def test_a_script_that_can_be_read_only_once_is_3(scripts: Path):
    os.mkfifo(scripts / "pipe.py")
    pipe = os.open(scripts / "pipe.py", os.O_RDWR)  # without a writer the run would wait for one
    try:
        status, text = refused(scripts, "pipe.py")
    finally:
        os.close(pipe)
    assert status == 3
    assert text.startswith("pysqlx-run: pipe.py is no file that each worker could read anew: ")


def test_a_script_that_is_our_stdin_is_3(scripts: Path):
    """It would not be that of the workers."""
    (scripts / "outer.py").write_text(
        "import subprocess, sys\n"
        "inner = subprocess.run([sys.executable, '-m', 'pysqlx_engine.workers.run', '/dev/stdin'],"
        " stdin=open('good.py'), capture_output=True, text=True)\n"
        "print(inner.returncode, inner.stdout + inner.stderr, end='')\n"
    )
    _, [line], _ = finished(scripts, "--no-prefix", "outer.py")
    assert line.startswith("3 pysqlx-run: /dev/stdin is no file that each worker could read anew: ")


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("imports.py", "imports.py: ModuleNotFoundError: No module named 'no_such_module' ({here}/imports.py, line 3)"),
        ("breaks_late.py", "breaks_late.py: SyntaxError: "),
        ("refused.py", "refused.py: PoolRefusedError: max_size 30 here, 20 there"),
        ("group.py", "group.py: PoolRefusedError: 30 here, 20 there"),
        ("unreachable.py", "unreachable.py: PoolTimeoutError: no server at h:5432"),
        ("setting.py", "setting.py: SettingsError: PYSQLX_MIN_SIZE=few is not allowed"),
        ("good:nothing", "good:nothing: ImportError: module 'good' has no 'nothing'"),
        ("good.missing", "good.missing: ModuleNotFoundError: "),
    ],
)
def test_what_no_restart_can_cure_is_3_and_told_once_for_all_workers(scripts: Path, target: str, line: str):
    arguments = ("-w", "2", "--restart", "always", target)
    status, out, err = finished(scripts, *arguments, PYSQLX_COORDINATOR=JOINS_ANOTHER)
    assert status == 3
    assert len(err) == 1, err
    assert err[0].startswith(f"pysqlx-run: {line.format(here=scripts)}")
    assert all("it ran" in line for line in out)


def test_an_error_without_end_is_cut(scripts: Path):
    status, out, [line] = finished(scripts, "says_much.py")
    assert (status, out) == (3, [])
    assert line.startswith("pysqlx-run: says_much.py: ImportError: ?€?€")
    assert line.endswith("?€...")
    assert len(line) == len("pysqlx-run: ") + 1000


def test_a_name_that_is_in_use_is_refused_and_the_other_run_goes_on(scripts: Path):
    (scripts / "outer.py").write_text(
        "import subprocess, sys\n"
        "inner = subprocess.run([sys.executable, '-m', 'pysqlx_engine.workers.run', '--name', 'shop', 'good.py'],"
        " capture_output=True, text=True)\n"
        "print(inner.returncode, inner.stderr, end='')\n"
    )
    status, out, _ = finished(scripts, "--no-prefix", "--name", "shop", "outer.py")
    assert status == 0
    assert len(out) == 1
    assert out[0].startswith("3 pysqlx-run: a run named shop is active (pid ")


def test_a_directory_that_others_can_enter_is_refused(scripts: Path):
    (scripts / "pysqlx").mkdir()
    os.chmod(scripts / "pysqlx", 0o755)
    status, _, err = finished(scripts, "good.py")
    assert status == 3
    assert len(err) == 1
    assert "is open to others (mode 0755, wanted 0700)" in err[0]
