"""How rough it is in a world, and for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Weather:
    """How rough it is. Probabilities are for each message."""

    seconds: float = 20.0
    """How long the trouble lasts."""
    pause: float = 0.3
    """Seconds between two faults, on average."""
    stopped: float = 20.0
    cut: float = 25.0
    """Most seconds that a process is stopped, and that a host is cut off."""
    think: float = 0.01
    """Seconds between two check-outs of a user, on average."""

    lost: float = 0.02
    doubled: float = 0.02
    late: float = 0.05
    """Messages of remote processes that take up to a second, and are overtaken by others."""
    replayed: float = 0.01
    """Old messages of remote processes that arrive once more, much later."""

    forgetful: float = 0.0
    """How many of the coordinators that are killed leave no journal."""


SLOW = Weather(seconds=200.0, pause=2.0, stopped=100.0, cut=100.0, think=0.1)
"""Everything takes longer than a lease that nobody has named is kept for."""
STORM = Weather(lost=0.1, doubled=0.2, late=0.3, replayed=0.05)
"""Hardly a message of a remote process arrives in its time."""
COPIES = Weather(lost=0.0, late=0.0, doubled=0.4, replayed=0.2)
"""All of them do, and many more than once."""
FORGETFUL = Weather(seconds=60.0, stopped=5.0, cut=5.0, forgetful=0.5)
"""Journals are lost."""
UNNAMED = 20.0
"""In place of `orphans.UNNAMED`: to connect takes some milliseconds here."""
