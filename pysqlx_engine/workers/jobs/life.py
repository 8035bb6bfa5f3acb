"""The life of a job: its states, the events, and what each event makes of each state.

A pure state machine; the statements in `store` are checked against it event by event, on every database.

               due              claim             complete
    scheduled ------> available --------> running ----------> completed
                                                  fail, no attempt left
                                                  ----------> discarded
                                                  abandon
                                                  ----------> cancelled

    running    -- fail, attempts left --> retrying -- due --> available
    running    -- snooze ---------------> scheduled
    running    -- give back ------------> available
    scheduled, available, retrying -- cancel --> cancelled
    scheduled, retrying, completed, discarded, cancelled -- revive --> available

A claim counts as an attempt, so that the number of attempts holds for jobs that kill their worker, too. Who works on a
job is known by the attempt's number and its owner together: what an earlier attempt says late changes nothing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


class State(enum.StrEnum):
    SCHEDULED = "scheduled"
    """Not before its time."""
    AVAILABLE = "available"
    """May be claimed."""
    RUNNING = "running"
    """Claimed, and perhaps begun."""
    RETRYING = "retrying"
    """Failed; the next attempt is not before its time."""
    COMPLETED = "completed"
    DISCARDED = "discarded"
    """Failed, and no attempt is left."""
    CANCELLED = "cancelled"


class Event(enum.StrEnum):
    DUE = "due"
    """Its time has come."""
    CLAIM = "claim"
    """Somebody takes it to run it."""
    COMPLETE = "complete"
    """Its handler has returned."""
    FAIL = "fail"
    """Its handler has raised, took longer than it may, or its worker died."""
    SNOOZE = "snooze"
    """Its handler wants to be called again later, and this was no attempt."""
    GIVE_BACK = "give back"
    """It was claimed and never begun: this was no attempt."""
    ABANDON = "abandon"
    """Its handler says that it is of no use any more, or was cancelled because a user does not want it."""
    CANCEL = "cancel"
    """A user does not want it any more, and it does not run."""
    REVIVE = "revive"
    """A user wants it to run now, although it had ended or was to wait."""


FINAL = frozenset({State.COMPLETED, State.DISCARDED, State.CANCELLED})
"""What ends in one of these is moved to the history. Only a revival brings it back."""
WAITING = frozenset({State.SCHEDULED, State.AVAILABLE, State.RETRYING})

_RUNNING = frozenset({State.RUNNING})
FROM: dict[Event, frozenset[State]] = {
    Event.DUE: frozenset({State.SCHEDULED, State.RETRYING}),
    Event.CLAIM: frozenset({State.AVAILABLE}),
    Event.COMPLETE: _RUNNING,
    Event.FAIL: _RUNNING,
    Event.SNOOZE: _RUNNING,
    Event.GIVE_BACK: _RUNNING,
    Event.ABANDON: _RUNNING,
    Event.CANCEL: WAITING,
    Event.REVIVE: FINAL | {State.SCHEDULED, State.RETRYING},
}
"""The states that an event changes. In every other one it is late, and changes nothing."""
OF_AN_ATTEMPT = frozenset({Event.COMPLETE, Event.FAIL, Event.SNOOZE, Event.GIVE_BACK, Event.ABANDON})
"""Events that only whoever runs the job can bring about."""

_TO = {
    Event.DUE: State.AVAILABLE,
    Event.CLAIM: State.RUNNING,
    Event.COMPLETE: State.COMPLETED,
    Event.FAIL: State.RETRYING,  # while attempts are left
    Event.SNOOZE: State.SCHEDULED,
    Event.GIVE_BACK: State.AVAILABLE,
    Event.ABANDON: State.CANCELLED,
    Event.CANCEL: State.CANCELLED,
    Event.REVIVE: State.AVAILABLE,
}


@dataclass(frozen=True, slots=True)
class Life:
    state: State
    attempt: int = 0
    """How many times it was claimed, less those that were no attempt."""
    max_attempts: int = 1
    owner: int | None = None
    """Whose claim it is, while it runs. No two claims have the same."""


def born(*, due: bool, max_attempts: int) -> Life:
    return Life(State.AVAILABLE if due else State.SCHEDULED, max_attempts=max_attempts)


def after(life: Life, event: Event, *, attempt: int = 0, owner: int | None = None) -> Life:
    """What `event` makes of a job. `owner`: with a claim, whose it is; with what is `OF_AN_ATTEMPT`, whose it was,
    together with the number of the `attempt`."""
    if life.state not in FROM[event]:
        return life
    if event in OF_AN_ATTEMPT and (life.attempt, life.owner) != (attempt, owner):
        return life
    to = _TO[event]
    match event:
        case Event.CLAIM:
            return replace(life, state=to, attempt=life.attempt + 1, owner=owner)
        case Event.FAIL if life.attempt >= life.max_attempts:
            return replace(life, state=State.DISCARDED, owner=None)
        case Event.SNOOZE | Event.GIVE_BACK:
            return replace(life, state=to, attempt=life.attempt - 1, owner=None)
        case Event.REVIVE:
            return replace(life, state=to, max_attempts=max(life.max_attempts, life.attempt + 1))
        case _:
            return replace(life, state=to, owner=None)
