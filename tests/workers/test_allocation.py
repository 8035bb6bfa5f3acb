"""The properties that `allocate` promises, one by one."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from pysqlx_engine.workers.allocation import Claim, allocate

sizes = st.integers(0, 60)


@st.composite
def claims(draw: st.DrawFn) -> list[Claim]:
    numbers = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), max_size=8))
    order = draw(st.permutations(range(len(numbers))))
    return [
        Claim((f"process-{n}", 1), demand, held, since)
        for n, ((demand, held), since) in enumerate(zip(numbers, order, strict=True))
    ]


@given(sizes, claims())
def test_the_targets_never_add_up_to_more_than_the_size(size: int, asked: list[Claim]) -> None:
    targets = allocate(size, asked)
    assert sum(targets.values()) <= size
    assert all(target >= 0 for target in targets.values())


@given(sizes, claims())
def test_nothing_is_left_while_somebody_lacks_something(size: int, asked: list[Claim]) -> None:
    targets = allocate(size, asked)
    if sum(claim.demand for claim in asked) >= size:
        assert sum(targets.values()) == size
    else:
        assert all(targets[claim.key] >= claim.demand for claim in asked)


@given(sizes, claims())
def test_nobody_gets_less_than_it_needs_while_another_gets_more_than_one_above_it(
    size: int, asked: list[Claim]
) -> None:
    targets = allocate(size, asked)
    for poor in asked:
        for rich in asked:
            if targets[poor.key] < poor.demand:
                assert targets[rich.key] <= targets[poor.key] + 1


@given(sizes, claims())
def test_what_nobody_needs_stays_where_it_is(size: int, asked: list[Claim]) -> None:
    targets = allocate(size, asked)
    held, needed = sum(claim.held for claim in asked), sum(claim.demand for claim in asked)
    if needed <= size and held <= size:
        lacking = sum(max(0, claim.demand - claim.held) for claim in asked)
        given_up = sum(max(0, claim.held - targets[claim.key]) for claim in asked)
        assert given_up == max(0, lacking - (size - held))


@given(sizes, claims(), st.randoms(use_true_random=False))
def test_the_order_of_the_claims_does_not_matter(size: int, asked: list[Claim], shuffle: random.Random) -> None:
    shuffled = list(asked)
    shuffle.shuffle(shuffled)
    assert allocate(size, shuffled) == allocate(size, asked)


@given(sizes, claims())
def test_asking_again_changes_nothing(size: int, asked: list[Claim]) -> None:
    targets = allocate(size, asked)
    settled = [claim._replace(held=targets[claim.key]) for claim in asked]
    demanding = sum(1 for claim in asked if claim.demand > 0)
    if size >= demanding:  # below that the connections go round on purpose
        assert allocate(size, settled) == targets


def test_a_budget_smaller_than_the_number_of_pools_goes_round() -> None:
    holder, waiter = ("holder", 1), ("waiter", 1)
    asked = [Claim(holder, demand=3, held=1, since=1), Claim(waiter, demand=1, held=0, since=2)]
    assert allocate(1, asked) == {holder: 0, waiter: 1}


def test_connections_that_do_not_divide_stay_with_those_that_have_them() -> None:
    a, b, c = ("a", 1), ("b", 1), ("c", 1)
    asked = [Claim(a, 9, 2, 1), Claim(b, 9, 3, 2), Claim(c, 9, 3, 3)]
    assert allocate(8, asked) == {a: 2, b: 3, c: 3}


@given(sizes, claims())
def test_the_richest_gives_first(size: int, asked: list[Claim]) -> None:
    targets = allocate(size, asked)
    if sum(claim.demand for claim in asked) > size:
        return  # then nothing is left over that could stay
    surplus = {claim.key: max(0, claim.held - claim.demand) for claim in asked}
    kept = {claim.key: targets[claim.key] - claim.demand for claim in asked}
    for giver in asked:
        for other in asked:
            if kept[giver.key] < surplus[giver.key]:  # it gives: nobody may keep more than it does, but for the rest
                assert kept[other.key] <= kept[giver.key] + 1


@given(sizes, claims())
def test_nobody_is_given_more_than_it_needs_or_has(size: int, asked: list[Claim]) -> None:
    targets = allocate(size, asked)
    assert all(targets[claim.key] <= max(claim.demand, claim.held) for claim in asked)


@given(st.integers(1, 5), st.integers(2, 9))
def test_a_budget_that_is_too_small_for_all_serves_everybody_in_turn(size: int, pools: int) -> None:
    asked = [Claim((f"process-{number}", 1), demand=1, held=0, since=number) for number in range(pools)]
    served: set[tuple[str, int]] = set()
    for turn in range(pools):
        targets = allocate(size, asked)
        now = {key for key, target in targets.items() if target}
        assert len(now) == min(size, pools)
        served |= now
        # Each of them uses what it got, gives it back and waits again: it has had its turn.
        asked = [claim._replace(since=pools + turn) if claim.key in now else claim for claim in asked]
    assert len(served) == pools
