"""What each event makes of each state."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pysqlx_engine.workers.jobs.life import FINAL, FROM, OF_AN_ATTEMPT, WAITING, Event, Life, State, after, born

EVENTS_OF_DOCS = re.compile(r"^\| `(?P<event>[a-z ]+)` \| (?P<before>.*?) \| (?P<after>.*?) \|", re.MULTILINE)


def in_state(state: State, *, attempt: int = 1, max_attempts: int = 3) -> Life:
    return Life(state, attempt, max_attempts, owner=7 if state is State.RUNNING else None)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_an_event_changes_the_states_that_it_is_for_and_no_other(state: State, event: Event) -> None:
    life = in_state(state)
    changed = after(life, event, attempt=1, owner=7)
    assert (changed != life) == (state in FROM[event])
    assert (changed.owner is not None) == (changed.state is State.RUNNING)


def test_every_state_can_be_left_and_reached() -> None:
    reached = {after(in_state(state, attempt=attempt), event, attempt=attempt, owner=7).state
               for event, states in FROM.items() for state in states for attempt in (1, 3)}  # fmt: skip
    assert reached == set(State)
    assert set().union(*FROM.values()) == set(State)
    assert FINAL | WAITING | {State.RUNNING} == set(State)


@pytest.mark.parametrize("event", sorted(OF_AN_ATTEMPT))
def test_what_an_earlier_attempt_or_another_owner_says_changes_nothing(event: Event) -> None:
    life = in_state(State.RUNNING, attempt=2)
    for attempt, owner in ((1, 7), (2, 8), (3, 7)):
        assert after(life, event, attempt=attempt, owner=owner) == life


def test_a_claim_is_an_attempt_and_after_the_last_one_that_failed_there_is_none() -> None:
    life = born(due=True, max_attempts=2)
    for attempt in (1, 2):
        assert life.state is (State.AVAILABLE if attempt == 1 else State.RETRYING)
        life = after(life, Event.DUE)
        life = after(life, Event.CLAIM, owner=attempt)
        assert (life.state, life.attempt) == (State.RUNNING, attempt)
        life = after(life, Event.FAIL, attempt=attempt, owner=attempt)
    assert life.state is State.DISCARDED


@pytest.mark.parametrize(("event", "state"), [(Event.SNOOZE, State.SCHEDULED), (Event.GIVE_BACK, State.AVAILABLE)])
def test_what_was_no_attempt_is_not_counted_as_one(event: Event, state: State) -> None:
    life = after(born(due=True, max_attempts=1), Event.CLAIM, owner=1)
    assert after(life, event, attempt=1, owner=1) == Life(state, attempt=0, max_attempts=1)


@pytest.mark.parametrize("state", sorted(FROM[Event.REVIVE]))
def test_what_is_revived_has_an_attempt_left(state: State) -> None:
    for attempt in (1, 3):
        revived = after(in_state(state, attempt=attempt), Event.REVIVE)
        assert revived.state is State.AVAILABLE
        assert revived.max_attempts == max(3, attempt + 1)


def test_the_table_in_the_docs_is_what_the_code_does() -> None:
    text = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text()
    table = {
        found["event"]: (set(re.findall("[a-z]+", found["before"])), set(re.findall("`([a-z]+)`", found["after"])))
        for found in EVENTS_OF_DOCS.finditer(text)
    }
    assert table.keys() == set(Event)
    for event in Event:
        before, becomes = table[event]
        assert before == {state.value for state in FROM[event]}
        assert becomes == {
            after(in_state(state, attempt=attempt), event, attempt=attempt, owner=7).state.value
            for state in FROM[event]
            for attempt in (1, 3)
        }
