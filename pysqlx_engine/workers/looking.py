"""One look at a run: what `pysqlx-ctl status` and `top`, the dashboard and the metrics show."""

from __future__ import annotations

import contextlib

import msgspec

from .control import ask
from .rundir import RunDirectory
from .status import Crew, RunStatus, merged


class RefusedLookError(Exception):
    """What the run answered instead of its status."""


def look(run: RunDirectory, timeout: float = 5.0) -> RunStatus:
    """Ask the run for its status. While its coordinator does not answer, of its supervisor's workers alone.

    Raises OSError and ValueError when nobody answers, or not within `timeout` seconds, and RefusedLookError.
    """
    crew = None
    if run.supervisor.exists():
        with contextlib.suppress(OSError, ValueError):  # it ends: the coordinator is there a moment longer
            crew = msgspec.convert(_answer(run, crew=True, timeout=timeout), Crew)
    try:
        status = msgspec.convert(_answer(run, crew=False, timeout=timeout), RunStatus)
    except (OSError, ValueError):
        if crew is None:
            raise
        crew.health.ready = crew.health.coordinator = False
        status = RunStatus(run=run.name, health=crew.health, budgets=[], workers=[])
    return status if crew is None else merged(status, crew)


def _answer(run: RunDirectory, *, crew: bool, timeout: float) -> object:
    answer = ask(run.supervisor if crew else run.control, {"op": "crew" if crew else "status"}, timeout)
    if "error" in answer:
        raise RefusedLookError(answer["error"])
    return answer
