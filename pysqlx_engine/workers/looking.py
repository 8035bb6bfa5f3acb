"""One look at a run: what `pysqlx-ctl status` and `top`, the dashboard and the metrics show."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TypeVar

import msgspec

from .control import ask
from .rundir import RunDirectory
from .status import Crew, RunStatus, merged

T = TypeVar("T")


class RefusedLookError(Exception):
    """What the run answered instead of its status."""


def look(run: RunDirectory, timeout: float = 5.0) -> RunStatus:
    """Ask the run for its status. While its coordinator does not answer, of its supervisor's workers alone; while its
    supervisor does not, nobody knows whether they are there, and the run is not ready.

    Raises OSError and ValueError when nobody answers, or not within `timeout` seconds, and RefusedLookError.
    """
    crew = None
    supervised = run.supervisor.exists()
    if supervised:
        with contextlib.suppress(OSError, ValueError):  # it ends: the coordinator is there a moment longer
            crew = _answer(run.supervisor, "crew", Crew, timeout)
    try:
        status = _answer(run.control, "status", RunStatus, timeout)
    except (OSError, ValueError):
        if crew is None:
            raise
        crew.health.ready = crew.health.coordinator = False
        status = RunStatus(run=run.name, health=crew.health, budgets=[], workers=[])
    if crew is not None:
        return merged(status, crew)
    if supervised:
        status.health.ready = status.health.supervisor = False
    return status


def _answer(path: Path, question: str, kind: type[T], timeout: float) -> T:
    answer = ask(path, {"op": question}, timeout)
    if "error" in answer:
        raise RefusedLookError(answer["error"])
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{error}: is it of another version?") from None
