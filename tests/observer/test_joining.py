"""Whoever looks at a run from outside has its connections from the run's budget."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pysqlx_engine.workers.observer.watch import joining
from pysqlx_engine.workers.rundir import Joined, OwnCoordinator, run_directory
from tests.workers.runs import started


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for variable in ("PYSQLX_COORDINATOR", "PYSQLX_CURVE_KEYS"):
        monkeypatch.setenv(variable, "")  # so that it is put back as it was
        monkeypatch.delenv(variable)


@pytest.mark.parametrize(
    ("coordinator", "address", "keys"),
    [
        (Joined("tcp://db.internal:7117", "client.keys"), "tcp://db.internal:7117", "client.keys"),
        (Joined("ipc:///run/shop.sock", None), "ipc:///run/shop.sock", None),
        (None, None, None),
    ],
)
def test_it_joins_what_the_run_has_joined(coordinator: Joined | None, address: str | None, keys: str | None) -> None:
    run = run_directory("shop")
    claimed = run.claim(supervised=True, coordinator=coordinator)
    joining(run)
    assert (os.environ.get("PYSQLX_COORDINATOR"), os.environ.get("PYSQLX_CURVE_KEYS")) == (address, keys)
    claimed.release()


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("ipc://coordinator.sock", "ipc://{}/coordinator.sock"),
        ("ipc:///run/shop.sock", "ipc:///run/shop.sock"),
        ("ipc://@shop", "ipc://@shop"),
    ],
)
def test_in_any_directory_it_joins_what_the_run_has_joined_in_its_own(tmp_path: Path, said: str, address: str) -> None:
    (tmp_path / "script.py").write_text("import threading\nprint('up', flush=True)\nthreading.Event().wait()\n")
    told = {"PYSQLX_COORDINATOR": said, "PYSQLX_CURVE_KEYS": "client.keys"}
    with started(tmp_path, "--name", "shop", "script.py", **told) as run:
        run.line_with("up")
        joining(run_directory("shop"))
        assert os.environ["PYSQLX_COORDINATOR"] == address.format(tmp_path)
        assert os.environ["PYSQLX_CURVE_KEYS"] == str(tmp_path / "client.keys")
        run.send(signal.SIGTERM)
        run.rest()


def test_it_joins_a_coordinator_that_does_not_listen_yet() -> None:
    run = run_directory("shop")
    claimed = run.claim(supervised=True, coordinator=OwnCoordinator())
    assert not run.socket.exists()
    joining(run)
    assert os.environ["PYSQLX_COORDINATOR"] == f"ipc://{run.socket}"
    claimed.release()
    with pytest.raises(OSError, match="owner"):
        joining(run)
