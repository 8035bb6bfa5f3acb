"""The last hour of a budget, from looks at given moments."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysqlx_engine.workers.observer.history import MOST_HOLDERS, OTHERS, SPAN, STEP, History, between, quantile, since
from pysqlx_engine.workers.status import (
    BudgetStatus,
    Health,
    Histogram,
    PoolStatus,
    RunStatus,
    TotalsStatus,
    WorkerStatus,
)

NONE = Histogram(count=0, sum=0.0, buckets=[])


def histogram(*buckets: int) -> Histogram:
    return Histogram(count=sum(buckets), sum=0.0, buckets=list(buckets))


def status(
    leases: dict[int, int] | None = None,
    *,
    waiting: int = 0,
    requests: int = 0,
    timeouts: int = 0,
    wait: Histogram = NONE,
    hold: Histogram = NONE,
    strangers: int = 0,
    size: int = 10,
) -> RunStatus:
    """A look at a run whose workers have so many leases, beside `strangers` with one each. All of them are in use."""
    held = [(worker, 1000 + worker, count) for worker, count in (leases or {}).items()]
    held += [(None, 5000 + number, 1) for number in range(strangers)]
    leased = sum(count for *_, count in held)
    numbers = {"idle": 0, "waiting": 0}
    return RunStatus(
        run="shop",
        health=Health(ready=True, coordinator=True),
        budgets=[
            BudgetStatus(
                database="db", size=size, leased=leased, in_use=leased, idle=0, waiting=waiting,
                totals=TotalsStatus(
                    requests=requests, requests_waited=0, timeouts=timeouts, opened=0, open_errors=0, closed=0,
                    found_dead=0, rolled_back=0, wait=wait, hold=hold, open=NONE, close=NONE,
                ),
            )
        ],
        workers=[
            WorkerStatus(
                worker=worker, pid=pid, uptime=1.0, restarts=0, leases=count, in_use=count, **numbers,
                pools=[PoolStatus(name="p", database="db", leases=count, in_use=count, **numbers)],
            )
            for worker, pid, count in held
        ],
    )  # fmt: skip


def looked(*looks: RunStatus, every: float = 1.0, history: History | None = None) -> History:
    """Looks that follow one another, from the moment 0 on."""
    history = history or History()
    for number, look in enumerate(looks):
        history.add(number * every, number * every, look)
    return history


def test_a_point_is_the_mean_of_its_looks_and_the_greatest() -> None:
    history = looked(*[status({0: number % 3, 1: 2}, waiting=number) for number in range(11)])
    (point,) = history.points("db")
    assert (point.at, point.size) == (STEP, 10)
    assert point.leased == point.in_use == pytest.approx(sum(number % 3 + 2 for number in range(11)) / 11, abs=0.01)
    assert point.holders == {"worker 1": 2.0, "worker 0": pytest.approx(10 / 11, abs=0.01)}
    assert (point.most_leased, point.most_waiting, point.waiting) == (4, 10, 5.0)


def test_what_is_counted_belongs_to_one_point() -> None:
    history = looked(*[status(requests=100 + number, timeouts=number // 10) for number in range(42)])
    points = history.points("db")
    assert len(points) == 3
    assert [point.requests for point in points] == [10, 11, 11], "between the last looks of two points nothing is lost"
    assert sum(point.timeouts for point in points) == 3


def test_a_coordinator_that_was_started_anew_counts_from_0() -> None:
    before = [status(requests=1000, wait=histogram(0, 1000)) for _ in range(11)]
    after = [status(requests=number, wait=histogram(0, 0, number)) for number in range(1, 12)]
    first, second = looked(*before, *after).points("db")
    assert (first.requests, second.requests) == (0, 11)
    assert second.wait == 4e-6


def test_the_wait_of_a_point_is_that_of_those_who_came_within_it() -> None:
    looks = [status(wait=histogram(1000)) for _ in range(11)]
    looks += [status(wait=histogram(1000, *[0] * 20, 5)) for _ in range(11)]
    assert [point.wait for point in looked(*looks).points("db")] == [0.0, 2**21 / 1e6]


def test_many_holders_are_named_as_others() -> None:
    (point,) = looked(*[status({0: 5, 1: 3}, strangers=20) for _ in range(11)]).points("db")
    assert len(point.holders) == MOST_HOLDERS + 1
    assert (point.holders["worker 0"], point.holders[OTHERS]) == (5.0, 22 - MOST_HOLDERS)
    assert sum(point.holders.values()) == point.leased


def test_an_hour_is_kept_and_only_what_is_new_is_told() -> None:
    history = looked(*[status({0: 1})] * 800, every=5.0)
    points = history.points("db")
    assert SPAN - STEP * 2 <= points[-1].at - points[0].at <= SPAN
    assert history.points("db", after=points[-3].number) == points[-2:]
    assert history.points("db", after=points[-1].number) == []
    assert history.points("another") == []


def test_a_database_that_nobody_uses_any_more_is_forgotten() -> None:
    history = looked(*[status({0: 1})] * 30)
    nobody = status()
    nobody.budgets.clear()
    history.add(30 + SPAN + STEP, 30 + SPAN + STEP, nobody)
    assert history.points("db") == []
    assert history.recent() == {}


def test_a_database_that_is_used_for_a_moment_in_an_hour_is_not_forgotten_in_the_midst_of_it() -> None:
    history, nobody = looked(*[status({0: 1})] * 11), status()
    nobody.budgets.clear()
    begun = 10 + SPAN - STEP / 2  # the old point is too old before the new one is complete
    for second in range(20):
        history.add(begun + second, begun + second, status({0: 2}) if second < 3 else nobody)
    [point] = history.points("db")
    assert point.leased == 2


def test_a_clock_that_is_set_back_does_no_harm() -> None:
    history = History()
    for second in range(60):
        history.add(second, 1_000_000 + second - (3600 if second > 30 else 0), status({0: 1}, requests=second))
    points = history.points("db")
    assert len(points) == 5
    assert points[2].at < points[1].at
    assert history.points("db", after=points[1].number) == points[2:]
    assert history.recent()["db"].seconds == 59


def test_who_has_points_of_another_observer_gets_all_of_this_one() -> None:
    before, after = History(), History()
    for second in range(30):
        before.add(second, 1_000_000 + second, status({0: 1}))
        after.add(second, 1_000_030 + second, status({0: 1}))
    for one, other in ((before, after), (after, before)):  # whose clock was put forward, or back
        assert other.points("db", after=one.points("db")[-1].number) == other.points("db")


def test_the_last_minute() -> None:
    looks = [
        status(requests=number * 10, timeouts=number // 50, wait=histogram(0, number), hold=histogram(0, 0, 0, number))
        for number in range(120)
    ]
    recent = looked(*looks).recent()["db"]
    assert (recent.seconds, recent.requests, recent.timeouts) == (60.0, 600, 1)
    assert (recent.wait, recent.hold) == (2e-6, 8e-6)


def test_the_last_minute_begins_anew_with_the_coordinator() -> None:
    looks = [status(requests=900)] * 30 + [status(requests=number) for number in range(0, 2000, 200)]
    recent = looked(*looks).recent()["db"]
    assert (recent.seconds, recent.requests) == (9.0, 1800)
    assert looked(status()).recent() == {}, "one look says nothing of a minute"


counts = st.lists(st.integers(0, 50), max_size=24)


@given(counts, st.floats(0.01, 1.0))
def test_a_quantile_is_a_bound_that_so_many_do_not_exceed(buckets: list[int], share: float) -> None:
    bound = quantile(buckets, share)
    least = [0.0] + [2**bucket / 1e6 for bucket in range(1, len(buckets))]
    within = sum(number for number, upper in zip(buckets, least, strict=False) if upper <= bound)
    below = sum(number for number, upper in zip(buckets, least, strict=False) if upper < bound)
    assert within >= share * sum(buckets)
    assert bound == 0.0 or below < share * sum(buckets), "and it is the least one"


@given(st.lists(counts, min_size=1, max_size=6))
def test_what_lies_between_looks_adds_up(more: list[list[int]]) -> None:
    def both(one: list[int], other: list[int]) -> list[int]:
        return [a + b for a, b in itertools.zip_longest(one, other, fillvalue=0)]

    looks = [histogram(*buckets) for buckets in itertools.accumulate(more, both, initial=[])]
    found: list[int] = []
    for before, after in itertools.pairwise(looks):
        found = both(found, between(before, after))
    assert sum(found) == looks[-1].count
    assert found == looks[-1].buckets


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_no_count_is_negative(before: int, after: int) -> None:
    assert 0 <= since(before, after) <= after
