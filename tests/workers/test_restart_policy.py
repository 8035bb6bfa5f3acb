"""`RestartPolicy`: what is decided about a child that died, without processes and clocks."""

from __future__ import annotations

import signal

import pytest

from pysqlx_engine.workers.formation import Decision, Restart, RestartPolicy, Verdict

KILLED = -signal.SIGKILL


def policy(mode: Restart = "on-failure", jitter: float = 0.0) -> RestartPolicy:
    return RestartPolicy(mode, lambda: jitter)


@pytest.mark.parametrize("status", [0, 1, KILLED])
def test_never_restarts_nothing(status: int):
    assert policy("never").died(status, 1.0) == Decision(Verdict.FINISHED)


def test_on_failure_leaves_a_script_that_ended_well():
    assert policy().died(0, 1.0) == Decision(Verdict.FINISHED)


@pytest.mark.parametrize("status", [1, 7, KILLED, -signal.SIGSEGV])
@pytest.mark.parametrize("mode", ["on-failure", "always"])
def test_a_failure_is_restarted_after_100_ms(mode: Restart, status: int):
    assert policy(mode).died(status, 1.0) == Decision(Verdict.RESTART, 0.1)


def test_always_restarts_a_script_that_ended_well_and_never_gives_it_up():
    always = policy("always")
    assert {always.died(0, 0.0) for _ in range(100)} == {Decision(Verdict.RESTART, 0.1)}


def test_early_deaths_double_the_delay_and_the_tenth_is_the_last():
    early = policy()
    decisions = [early.died(KILLED, 0.0) for _ in range(10)]
    assert [decision.delay for decision in decisions[:-1]] == pytest.approx([0.1 * 2**n for n in range(9)])
    assert decisions[-1] == Decision(Verdict.GIVE_UP)


def test_a_worker_that_lived_for_60_s_starts_afresh():
    patient = policy()
    for _ in range(9):
        patient.died(1, 59.9)
    assert patient.died(1, 60.0) == Decision(Verdict.RESTART, 0.1)
    assert patient.died(1, 59.9) == Decision(Verdict.RESTART, 0.2)


def test_a_good_end_between_two_failures_starts_afresh():
    always = policy("always")
    always.died(1, 0.0)
    always.died(0, 0.0)
    assert always.died(1, 0.0).delay == pytest.approx(0.1)


def test_jitter_shortens_a_delay_by_a_quarter_at_most():
    assert policy(jitter=1.0).died(1, 0.0).delay == pytest.approx(0.075)
    assert 0.075 <= RestartPolicy("always").died(1, 0.0).delay <= 0.1
