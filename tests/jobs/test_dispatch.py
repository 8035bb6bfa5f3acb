"""Who gets which job, how many are claimed, and what is to be written: the pure decisions."""

from __future__ import annotations

import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from pysqlx_engine.workers.jobs.attempts import Report, completed, failed, given_back
from pysqlx_engine.workers.jobs.dispatch import AHEAD, LONGEST_IN_HAND, Dispatch
from pysqlx_engine.workers.jobs.life import State
from pysqlx_engine.workers.jobs.shares import Shares
from pysqlx_engine.workers.jobs.store import Claimed

TASKS = {"plain": False, "connects": True}


def job(id_: int, task: str = "plain", *, priority: int = 0, attempt: int = 1, max_attempts: int = 5) -> Claimed:
    return Claimed(id_, "default", task, priority, attempt, max_attempts, "{}", 0, 0, 7)


def ids(given: dict[str, list[Claimed]]) -> dict[str, list[int]]:
    return {worker: [job.id for job in jobs] for worker, jobs in given.items()}


def test_as_many_are_claimed_as_there_are_free_slots_and_nobody_gets_more_than_it_can_begin() -> None:
    dispatch = Dispatch(connections=9)
    assert dispatch.wanted(0).jobs == 0
    dispatch.join("a", 2, TASKS)
    dispatch.join("b", 3, TASKS)
    assert dispatch.wanted(0).jobs == 5
    dispatch.claimed([job(number) for number in range(6)], 0)
    assert dispatch.wanted(0).jobs == 0
    assert ids(dispatch.hand_out()) == {"b": [0, 2, 4], "a": [1, 3]}
    assert dispatch.hand_out() == {}
    dispatch.report("a", [completed(job(1))], 1)
    assert ids(dispatch.hand_out()) == {"a": [5]}
    assert dispatch.wanted(1).jobs == 1  # ahead, as one was finished just now
    assert dispatch.wanted(1 + 2 * AHEAD).jobs == 0


def test_the_most_urgent_is_handed_out_first() -> None:
    dispatch = Dispatch(connections=9)
    dispatch.claimed([job(1, priority=1)], 0)
    dispatch.claimed([job(2, priority=5), job(3, priority=5)], 0)
    dispatch.join("a", 2, TASKS)
    assert ids(dispatch.hand_out()) == {"a": [2, 3]}


def test_handlers_that_use_connections_get_no_more_than_there_are() -> None:
    dispatch = Dispatch(connections=2)
    dispatch.join("a", 5, TASKS)
    dispatch.claimed([job(number, "connects") for number in range(4)], 0)
    assert ids(dispatch.hand_out()) == {"a": [0, 1]}
    assert dispatch.wanted(0) == (3, frozenset({"plain"}))
    dispatch.claimed([job(9)], 0)
    assert ids(dispatch.hand_out()) == {"a": [9]}
    dispatch.report("a", [completed(job(0))], 0)
    assert ids(dispatch.hand_out()) == {"a": [2]}


def test_what_a_dead_worker_ran_has_failed_and_may_be_tried_again_at_once_while_attempts_are_left() -> None:
    dispatch = Dispatch(connections=1)
    dispatch.join("a", 5, TASKS)
    dispatch.claimed([job(1), job(2, attempt=5), job(3, "connects")], 0)
    dispatch.hand_out()
    dispatch.leave("a", "killed")
    first, last, _ = dispatch.unwritten
    assert (first.postponed and first.postponed.state, first.postponed and first.postponed.wait) == (State.RETRYING, 0)
    assert last.ended is not None
    assert last.ended.state is State.DISCARDED
    assert first.failure is not None
    assert (first.failure.worker, first.failure.error) == ("a", "killed")
    dispatch.join("b", 1, TASKS)
    dispatch.claimed([job(4, "connects")], 0)
    assert ids(dispatch.hand_out()) == {"b": [4]}  # its connection is free again


def test_what_waits_for_a_worker_too_long_is_given_back_and_costs_no_attempt() -> None:
    dispatch = Dispatch(connections=1)
    dispatch.claimed([job(1, attempt=3)], 0)
    dispatch.give_back_old(LONGEST_IN_HAND / 2)
    assert dispatch.unwritten == []
    dispatch.give_back_old(LONGEST_IN_HAND)
    assert dispatch.unwritten == [given_back(job(1, attempt=3))]
    assert dispatch.unwritten[0].postponed is not None
    assert (dispatch.unwritten[0].postponed.state, dispatch.unwritten[0].postponed.attempt_after) == ("available", 2)


def test_a_task_that_no_worker_knows_is_tried_again_later_with_the_reason_and_costs_no_attempt() -> None:
    dispatch = Dispatch(connections=1)
    dispatch.claimed([job(1, "unknown")], 0)
    assert dispatch.hand_out() == {}
    assert dispatch.unwritten == []  # nobody is there: nobody can tell
    dispatch.join("a", 1, TASKS)
    dispatch.hand_out()
    (report,) = dispatch.unwritten
    assert report.failure is not None
    assert report.failure.error == "no worker has a task named 'unknown'"
    assert report.postponed is not None
    assert (report.postponed.state, report.postponed.attempt_after) == (State.SCHEDULED, 0)


def test_each_worker_gets_the_tasks_that_it_has() -> None:
    dispatch = Dispatch(connections=9)
    dispatch.join("old", 9, {"a": False})
    dispatch.join("new", 1, {"a": False, "b": False})
    dispatch.claimed([job(1, "b"), job(2, "b"), job(3, "a")], 0)
    assert ids(dispatch.hand_out()) == {"new": [1], "old": [3]}


def test_a_worker_that_retires_gets_nothing_more_and_its_reports_count() -> None:
    dispatch = Dispatch(connections=9)
    dispatch.join("a", 2, TASKS)
    dispatch.claimed([job(1)], 0)
    dispatch.hand_out()
    dispatch.retire("a")
    dispatch.claimed([job(2)], 0)
    assert dispatch.hand_out() == {}
    assert dispatch.wanted(0).jobs == 0
    dispatch.report("a", [completed(job(1))], 0)
    assert [report.attempt.id for report in dispatch.unwritten] == [1]


def test_a_drain_gives_back_what_is_in_the_hand_and_waits_for_what_runs() -> None:
    dispatch = Dispatch(connections=9)
    dispatch.join("a", 1, TASKS)
    dispatch.claimed([job(1), job(2)], 0)
    dispatch.hand_out()
    dispatch.drain()
    assert dispatch.unwritten == [given_back(job(2))]
    assert dispatch.wanted(0).jobs == 0
    dispatch.unwritten.clear()
    assert not dispatch.idle
    dispatch.report("a", [completed(job(1))], 0)
    dispatch.unwritten.clear()
    assert dispatch.idle


def test_two_claims_of_one_job_are_two_in_the_hand() -> None:
    """The first was taken for lost, and is still on its way to be given back."""
    dispatch = Dispatch(5)
    dispatch.join("w", 1, {"plain": False})
    first, second = job(1), msgspec.structs.replace(job(1), owner=8)
    dispatch.claimed([first], 0.0)
    dispatch.claimed([second], 0.9 * LONGEST_IN_HAND)
    dispatch.give_back_old(LONGEST_IN_HAND)
    assert [report.attempt.claim for report in dispatch.unwritten] == [first.claim]
    assert dispatch.hand_out() == {"w": [second]}


def test_a_report_that_the_database_never_takes_does_not_hold_up_the_end() -> None:
    dispatch = Dispatch(5)
    dispatch.join("w", 1, {"plain": False})
    dispatch.claimed([job(1)], 0.0)
    dispatch.hand_out()
    dispatch.report("w", [completed(job(1))], 0.0)
    dispatch.put_aside(60.0)
    assert not dispatch.idle
    assert dispatch.holds() == {job(1).claim}
    dispatch.drain()
    assert len(dispatch.unwritten) == 1, "once more"
    dispatch.put_aside(60.0)
    assert dispatch.idle


def test_what_a_claim_brings_while_it_drains_is_given_back() -> None:
    dispatch = Dispatch(connections=9)
    dispatch.join("a", 1, TASKS)
    dispatch.drain()
    dispatch.claimed([job(1)], 0)
    assert dispatch.unwritten == [given_back(job(1))]
    assert dispatch.hand_out() == {}


def test_a_worker_that_was_given_jobs_by_a_dispatcher_before_goes_on_with_them() -> None:
    dispatch = Dispatch(connections=1)
    dispatch.join("a", 1, TASKS, running=[job(1, "connects")])
    assert dispatch.holds() == {(1, 7)}
    assert dispatch.wanted(0).jobs == 0
    dispatch.leave("a", "gone")
    assert [report.attempt.id for report in dispatch.unwritten] == [1]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_claim_is_forgotten_or_held_twice_whatever_happens(data: st.DataObject) -> None:
    """Every claimed job is in exactly one place: the hand, one worker, or what is to be written, once."""
    dispatch = Dispatch(connections=data.draw(st.integers(1, 3)))
    held: dict[str, dict[int, Claimed]] = {}
    open_: dict[int, Claimed] = {}
    number = 0
    now = 0.0
    for _ in range(data.draw(st.integers(1, 40))):
        match data.draw(st.sampled_from(["join", "leave", "claim", "hand out", "report", "write", "wait", "retire"])):
            case "join":
                name = f"w{data.draw(st.integers(0, 3))}"
                if name not in held:
                    dispatch.join(name, data.draw(st.integers(1, 4)), TASKS)
                    held[name] = {}
            case "leave" if held:
                name = data.draw(st.sampled_from(sorted(held)))
                dispatch.leave(name, "killed")
                del held[name]
            case "retire" if held:
                dispatch.retire(data.draw(st.sampled_from(sorted(held))))
            case "claim":
                wanted = dispatch.wanted(now)
                tasks = sorted(wanted.tasks) if wanted.tasks is not None else ["plain", "connects", "unknown"]
                jobs = [
                    job(number + place, data.draw(st.sampled_from(tasks)), priority=data.draw(st.integers(0, 2)))
                    for place in range(min(wanted.jobs, data.draw(st.integers(0, 5))))
                ]
                number += len(jobs)
                open_.update((one.id, one) for one in jobs)
                dispatch.claimed(jobs, now)
            case "hand out":
                for name, jobs in dispatch.hand_out().items():
                    held[name].update((one.id, one) for one in jobs)
            case "report" if any(held.values()):
                name = data.draw(st.sampled_from(sorted(name for name in held if held[name])))
                one = held[name].pop(data.draw(st.sampled_from(sorted(held[name]))))
                report = data.draw(st.sampled_from([completed(one), failed(one, name, "x"), given_back(one)]))
                dispatch.report(name, [report], now)
            case "write":
                for report in _written(dispatch):
                    del open_[report.attempt.id]  # a KeyError: it was there twice
            case "wait":
                now += data.draw(st.sampled_from([0.01, LONGEST_IN_HAND]))
                dispatch.give_back_old(now)
        assert {id_ for id_, _ in dispatch.holds()} == set(open_)
        assert sum(one.task == "connects" for jobs in held.values() for one in jobs.values()) <= 3
    for name in list(held):
        dispatch.leave(name, "killed")
    dispatch.drain()
    assert sorted(report.attempt.id for report in dispatch.unwritten) == sorted(open_)


def _written(dispatch: Dispatch) -> list[Report]:
    written, dispatch.unwritten = dispatch.unwritten, []
    return written


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9), min_size=1),
    st.lists(st.integers(1, 20), min_size=1, max_size=50),
)
def test_the_parts_of_queues_are_as_their_weights_say(weights: dict[str, int], claims: list[int]) -> None:
    shares = Shares(weights)
    got = dict.fromkeys(weights, 0)
    for jobs in claims:
        parts = shares.split(jobs, weights.keys())
        assert sum(parts.values()) == jobs
        for queue, part in parts.items():
            got[queue] += part
    for queue, weight in weights.items():
        assert abs(got[queue] - sum(claims) * weight / sum(weights.values())) <= len(weights)


def test_a_queue_that_has_nothing_gets_no_part() -> None:
    shares = Shares({"a": 1, "b": 9})
    assert shares.split(10, {"a"}) == {"a": 10}
    assert shares.split(10, set()) == {}


def test_no_more_is_claimed_than_there_are_connections_for() -> None:
    dispatch = Dispatch(connections=3)
    dispatch.join("a", 50, {"connects": True})
    assert dispatch.wanted(0) == (3, None)
    dispatch.claimed([job(number, "connects") for number in range(3)], 0)
    dispatch.hand_out()
    assert dispatch.wanted(0).jobs == 0
    dispatch.report("a", [completed(job(0, "connects"))], 0)
    assert dispatch.wanted(2 * AHEAD) == (1, None)


def test_how_many_are_claimed_goes_by_how_many_of_the_last_ones_used_a_connection() -> None:
    dispatch = Dispatch(connections=3)
    dispatch.join("a", 100, TASKS)
    assert dispatch.wanted(0) == (3, None)
    dispatch.claimed([job(number, "connects" if number % 10 == 0 else "plain") for number in range(20)], 0)
    dispatch.hand_out()
    assert dispatch.wanted(0) == (10, None)  # one connection is left, and one in ten uses one
    dispatch.claimed([job(100 + number) for number in range(80)], 0)
    dispatch.hand_out()
    dispatch.report("a", [completed(job(number, "connects")) for number in (0, 10)], 0)
    assert dispatch.wanted(2 * AHEAD) == (2, None)


def test_what_a_worker_that_comes_again_does_not_have_has_never_reached_it() -> None:
    dispatch = Dispatch(connections=2)
    dispatch.join("a", 9, TASKS)
    dispatch.claimed([job(1), job(2, "connects"), job(3, "connects")], 0)
    dispatch.hand_out()
    dispatch.join("a", 9, TASKS, running=[job(2, "connects")])
    assert dispatch.unwritten == [given_back(job(1)), given_back(job(3, "connects"))]
    dispatch.claimed([job(4, "connects"), job(5, "connects")], 0)
    assert ids(dispatch.hand_out()) == {"a": [4]}


def test_an_unknown_task_is_complained_of_once() -> None:
    dispatch = Dispatch(connections=1)
    dispatch.join("a", 1, TASKS)
    for _ in range(2):
        dispatch.claimed([job(1, "unknown")], 0)
        dispatch.hand_out()
    first, second = dispatch.unwritten
    assert first.failure is not None
    assert second.failure is None
    assert second.postponed == first.postponed


def test_what_has_not_begun_of_a_paused_queue_is_given_back() -> None:
    dispatch = Dispatch(connections=1)
    dispatch.claimed([job(1), job(2)], 0)
    dispatch.give_back_queues({"another"})
    assert dispatch.unwritten == []
    dispatch.give_back_queues({"default"})
    assert dispatch.unwritten == [given_back(job(1)), given_back(job(2))]


def test_one_short_job_that_ends_brings_no_message_of_its_own() -> None:
    dispatch = Dispatch(connections=1)
    dispatch.join("a", 4, TASKS)
    dispatch.claimed([job(number) for number in range(8)], 0)
    dispatch.hand_out()
    dispatch.report("a", [completed(job(0))], 0)
    assert dispatch.hand_out(in_lots=True) == {}
    dispatch.report("a", [completed(job(1))], 0)
    assert ids(dispatch.hand_out(in_lots=True)) == {"a": [4, 5]}


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 60), st.floats(0, 1), st.randoms())
def test_what_is_claimed_finds_its_connection_soon_whatever_the_jobs_are(
    connections: int, slots: int, share: float, chance: random.Random
) -> None:
    """Once it knows the mixture: what waits in the hand is a few jobs, and not all that a worker has room for."""
    dispatch = Dispatch(connections)
    dispatch.join("a", slots, TASKS)
    running: dict[int, Claimed] = {}
    number = 0
    for now in range(60):
        for _ in range(2):
            wanted = dispatch.wanted(now)
            tasks = [
                "connects" if chance.random() < share and wanted.tasks is None else "plain" for _ in range(wanted.jobs)
            ]
            dispatch.claimed(
                [job(number + place, task) for place, task in enumerate(tasks)], now, of_some=wanted.tasks is not None
            )
            number += wanted.jobs
            for jobs in dispatch.hand_out().values():
                running.update((one.id, one) for one in jobs)
        assert sum(one.task == "connects" for one in running.values()) <= connections
        assert len(running) <= slots
        if now > 30 and share > 0.2:
            waiting = len(dispatch.holds()) - len(running) - len(dispatch.unwritten)
            assert waiting <= 3 * connections / share + 5
        for id_ in chance.sample(sorted(running), len(running) // 2):
            dispatch.report("a", [completed(running.pop(id_))], now)
        dispatch.unwritten.clear()
        dispatch.give_back_old(now)


def test_a_worker_may_be_given_again_what_was_taken_from_it_and_still_runs_there() -> None:
    dispatch = Dispatch(connections=1)
    dispatch.join("a", 5, TASKS)
    first = job(1, "connects")
    again = Claimed(1, "default", "connects", 0, 1, 5, "{}", 0, 0, 8)
    dispatch.claimed([first], 0)
    dispatch.hand_out()
    dispatch.claimed([again], 0)
    assert dispatch.hand_out() == {}  # its connection is still in use
    dispatch.report("a", [completed(first)], 0)
    assert dispatch.hand_out() == {"a": [again]}
    dispatch.report("a", [completed(again)], 0)
    dispatch.unwritten.clear()
    assert dispatch.idle
    dispatch.claimed([job(2, "connects")], 0)
    assert ids(dispatch.hand_out()) == {"a": [2]}


def test_what_was_on_its_way_to_a_worker_that_had_ended_all_has_not_begun() -> None:
    dispatch = Dispatch(connections=1)
    dispatch.join("a", 5, TASKS)
    dispatch.claimed([job(1)], 0)
    dispatch.hand_out()
    dispatch.retire("a")
    dispatch.leave("a", "it is gone", well=True)
    assert dispatch.unwritten == [given_back(job(1))]


def test_the_most_urgent_of_several_claims_is_first_in_the_hand() -> None:
    dispatch = Dispatch(connections=1)
    dispatch.claimed([job(1, priority=5), job(2, priority=1)], 0)
    dispatch.claimed([job(3, priority=5)], 0)
    dispatch.join("a", 2, TASKS)
    assert ids(dispatch.hand_out()) == {"a": [1, 3]}
