"""What a handler can say instead of "done", and how long a job waits that failed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysqlx_engine.workers.jobs.retries import LONGEST, Backoff, Cancel, Outcome, Retry, Snooze

backoffs = st.builds(
    Backoff,
    first=st.floats(0, 1000),
    factor=st.floats(1, 100),
    most=st.floats(0, 10**6),
    jitter=st.floats(0, 0.99),
)


@given(backoffs, st.integers(1, 10**6), st.integers())
def test_a_wait_is_never_longer_than_the_longest_and_its_jitter(backoff: Backoff, attempt: int, seed: int) -> None:
    wait = backoff.delay(attempt, random.Random(seed))
    assert 0 <= wait <= backoff.most * (1 + backoff.jitter)


def test_each_wait_is_a_multiple_of_the_one_before_until_the_longest() -> None:
    backoff = Backoff(first=2, factor=3, most=50, jitter=0)
    assert [backoff.delay(attempt, random.Random()) for attempt in range(1, 6)] == [2, 6, 18, 50, 50]


def test_jobs_that_failed_together_do_not_come_back_together() -> None:
    backoff, chance = Backoff(first=10, jitter=0.2), random.Random(1)
    waits = {backoff.delay(1, chance) for _ in range(100)}
    assert len(waits) == 100
    assert 8 <= min(waits) < 9
    assert 11 < max(waits) <= 12


@pytest.mark.parametrize(
    "wrong", [{"first": -1}, {"first": float("nan")}, {"factor": 0.5}, {"most": LONGEST * 2}, {"jitter": 1.0}]
)
def test_a_backoff_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        Backoff(**wrong)


def test_an_outcome_can_be_returned_or_raised() -> None:
    for outcome in (Retry(after=5, reason="busy"), Retry(), Snooze(60), Cancel("no such order")):
        with pytest.raises(Outcome):
            raise outcome
    assert (Retry(after=5).after, Retry().after, Snooze(60).seconds, Cancel("no").reason) == (5.0, None, 60.0, "no")
    for wrong in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="must be from 0 seconds to 10 years"):
            Retry(after=wrong)
        with pytest.raises(ValueError, match="must be from 0 seconds to 10 years"):
            Snooze(wrong)
