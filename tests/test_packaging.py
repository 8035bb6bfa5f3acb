"""What people install: the wheel and the source distribution, in an environment that has nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
USES_A_POOL = """
import asyncio
from pysqlx_engine import PySQLXEnginePool
async def main():
    async with PySQLXEnginePool(uri="sqlite:./x.db", min_size=1) as pool, pool.connection() as conn:
        print((await conn.query_first("SELECT 1 AS a")).a)
asyncio.run(main())
"""


def pip(python: str, *arguments: str) -> None:
    subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments], check=True, timeout=400, cwd=ROOT
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(directory), ".")
    [built] = directory.iterdir()
    return built


def test_the_wheel_has_all_that_is_needed_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [entry_points] = [archive.read(name).decode() for name in names if name.endswith("entry_points.txt")]
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "pysqlx_engine").rglob("*") if path.is_file()}
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == {name for name in sources if "__pycache__" not in name}
    assert "pysqlx_engine/py.typed" in packaged
    assert "pysqlx_engine/workers/observer/static/index.html" in packaged
    assert "pysqlx-run = pysqlx_engine.workers.run:main" in entry_points


def test_every_optional_part_is_told_by_the_command_that_shows_versions() -> None:
    from pysqlx_engine.__main__ import _OPTIONAL

    assert {extra for extra, _ in _OPTIONAL.values()} == PROJECT["optional-dependencies"].keys()


@pytest.fixture
def environment(tmp_path: Path) -> str:
    """The Python of a new environment."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    return str(tmp_path / "venv" / "bin" / "python")


def sdist(directory: Path) -> Iterator[Path]:
    pip(sys.executable, "install", "build")
    subprocess.run([sys.executable, "-m", "build", "--sdist", "--outdir", str(directory), str(ROOT)], check=True)
    return directory.glob("*.tar.gz")


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("extras", ["", ",".join(sorted(PROJECT["optional-dependencies"]))])
def test_the_wheel_works_in_a_clean_environment(wheel: Path, environment: str, tmp_path: Path, extras: str) -> None:
    pip(environment, "install", f"{wheel}[{extras}]" if extras else str(wheel))
    works(environment, tmp_path, everything=bool(extras))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_source_distribution_builds_and_works_in_a_clean_environment(environment: str, tmp_path: Path) -> None:
    [source] = sdist(tmp_path)
    with tarfile.open(source) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "pysqlx_engine/py.typed"} <= set(names)
    pip(environment, "install", str(source))
    works(environment, tmp_path, everything=False)


def works(python: str, directory: Path, *, everything: bool) -> None:
    """A pool, both commands, and types that a checker sees."""
    (directory / "script.py").write_text(USES_A_POOL)
    binaries = Path(python).parent

    def output(*command: str) -> str:
        done = subprocess.run(command, cwd=directory, check=True, timeout=60, capture_output=True, text=True)
        return done.stdout

    assert output(python, "script.py") == "1\n"
    assert sorted(output(str(binaries / "pysqlx-run"), "-w", "2", "script.py").splitlines()) == [
        "[worker 0] 1",
        "[worker 1] 1",
    ]
    assert "--workers" in output(str(binaries / "pysqlx-run"), "--help")
    found = json.loads(output(python, "-m", "pysqlx_engine", "--json"))
    assert found["versions"]["pysqlx-engine"] == PROJECT["version"]
    assert {version is not None for version in found["optional"].values()} == {everything}
    if everything:
        served = output(str(binaries / "pysqlx-run"), "-w", "2", "--dashboard", "127.0.0.1:0", "script.py")
        assert sorted(line for line in served.splitlines() if line.startswith("[worker")) == [
            "[worker 0] 1",
            "[worker 1] 1",
        ]
