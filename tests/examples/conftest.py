"""A table of the long examples' times at the end of the test run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .running import Outcome

_times = pytest.StashKey[list[str]]()

Note = Callable[[str, Outcome], None]


@pytest.fixture(scope="session")
def note(pytestconfig: pytest.Config) -> Note:
    """`note(what, outcome)` adds a line to the table."""
    lines = pytestconfig.stash.setdefault(_times, [])

    def add(what: str, outcome: Outcome) -> None:
        lines.append(f"{what:40} {outcome.seconds:7.2f} {outcome.bound:7.2f} {outcome.ratio:7.3f}")

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(_times, [])
    if lines:
        terminalreporter.section("1,000 requests per process, 0.1 to 0.5 s each, 30 connections")
        terminalreporter.line(f"{'':40} {'seconds':>7} {'bound':>7} {'ratio':>7}")
        for line in lines:
            terminalreporter.line(line)
