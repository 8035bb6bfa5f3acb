"""Which workers start and end, without processes: the formation, and a supervisor that does what it says."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysqlx_engine.workers.formation import (
    End,
    Formation,
    GiveUp,
    Promote,
    Restart,
    RestartPolicy,
    Retire,
    Say,
    Start,
    Step,
)


class Shell:
    """Does what a formation says, with numbers for processes."""

    def __init__(
        self, count: int, mode: Restart = "on-failure", *, shared: bool = True, development: bool = False
    ) -> None:
        self.formation = Formation(count, mode, shared_budget=shared, development=development)
        self.now = 0.0
        self.alive: dict[int, int] = {}
        """The place of each process."""
        self.told_to_end: set[int] = set()
        self.promoted: set[int] = set()
        self.said: list[str] = []
        self.over = False
        self.no_more_processes = False
        self._pids = 100

    def take(self, steps: Iterable[Step]) -> None:
        for step in steps:
            match step:
                case Start(place=place, takes_over=takes_over) if self.no_more_processes:
                    self.take(self.formation.not_started(place, "no memory", self.now, takes_over=takes_over))
                case Start(place=place, takes_over=takes_over):
                    self._pids += 1
                    self.alive[self._pids] = place.number
                    self.formation.started(place, self._pids, takes_over=takes_over)
                case Promote(pid=pid):
                    assert pid in self.alive
                    self.promoted.add(pid)
                case Retire(pid=pid) | End(pid=pid):
                    assert pid in self.alive
                    self.told_to_end.add(pid)
                case Say(text=text):
                    self.said.append(text)
                case GiveUp():
                    self.over = True
                    self.formation.stop()

    def die(self, pid: int, status: int = 0, lived: float = 1.0) -> None:
        del self.alive[pid]
        self.told_to_end.discard(pid)
        self.take(self.formation.ended(pid, f"ended with status {status}", status, lived, self.now))

    def works(self, number: int) -> int:
        pid = self.formation.places[number].process
        assert pid is not None
        return pid

    def successor(self, number: int) -> int:
        pid = self.formation.places[number].successor
        assert pid is not None
        return pid


def started(count: int, mode: Restart = "on-failure", *, shared: bool = True, development: bool = False) -> Shell:
    shell = Shell(count, mode, shared=shared, development=development)
    shell.take(shell.formation.start())
    return shell


def test_a_reload_replaces_one_after_the_other_and_the_old_one_goes_when_the_new_one_is_up() -> None:
    shell = started(3)
    old = set(shell.alive)
    shell.take(shell.formation.reload())
    for number in range(3):
        assert len(shell.alive) == 4, "one more than before, and not two"
        before = shell.works(number)
        assert before not in shell.told_to_end
        shell.take(shell.formation.up(shell.successor(number)))
        assert before in shell.told_to_end
        shell.die(before)
    assert not old & set(shell.alive)
    assert shell.said == ["reloading 3 workers", "reloaded"]


def test_a_reload_that_does_not_come_up_leaves_the_others_as_they_are() -> None:
    shell = started(3)
    old = set(shell.alive)
    shell.take(shell.formation.reload())
    shell.die(shell.successor(0), 1)
    assert set(shell.alive) == old
    assert "the reload has failed: the workers that were not replaced go on" in shell.said
    shell.take(shell.formation.reload())  # it is mended
    assert shell.successor(0)


def test_a_reload_in_the_midst_of_another_one_begins_anew() -> None:
    shell = started(2)
    shell.take(shell.formation.reload())
    first = shell.successor(0)
    shell.take(shell.formation.reload())
    before = shell.works(0)
    shell.take(shell.formation.up(first))
    shell.die(before)
    assert shell.formation.places[0].successor or shell.formation.places[1].successor
    for _ in range(2):
        (number,) = (place.number for place in shell.formation.staying if place.successor is not None)
        before = shell.works(number)
        shell.take(shell.formation.up(shell.successor(number)))
        shell.die(before)
    assert first not in shell.alive, "it was of the reload before"
    assert shell.said[-1] == "reloaded"


def test_one_that_waits_to_be_started_again_is_started_by_a_reload() -> None:
    shell = started(1)
    shell.die(shell.works(0), 1)
    assert shell.formation.due() is not None
    shell.take(shell.formation.reload())
    assert shell.works(0)
    assert shell.said[-1] == "reloaded"


def test_without_a_shared_budget_the_old_one_ends_before_the_new_one_begins() -> None:
    shell = started(1, shared=False)
    shell.take(shell.formation.reload())
    (old,) = shell.alive
    assert old in shell.told_to_end
    shell.take(shell.formation.recycle(old, "has run 5 jobs"))
    assert set(shell.alive) == {old}, "it is on its way out already"
    shell.die(old)
    assert len(shell.alive) == 1
    assert shell.said == ["reloading 1 workers", "reloaded"]


def test_the_highest_numbers_leave_first_and_their_places_are_used_again() -> None:
    shell = started(3)
    shell.take(shell.formation.scale(5))
    assert sorted(shell.alive.values()) == [0, 1, 2, 3, 4]
    shell.take(shell.formation.scale(2))
    leaving = {shell.works(number) for number in (2, 3, 4)}
    assert shell.told_to_end == leaving
    for pid in leaving:
        shell.die(pid, -15)
    assert sorted(shell.alive.values()) == [0, 1]
    assert sorted(shell.formation.places) == [0, 1]
    shell.take(shell.formation.scale(3))
    assert sorted(shell.alive.values()) == [0, 1, 2]
    assert shell.said == []


def test_nobody_comes_after_one_that_leaves() -> None:
    shell = started(2, "always")
    shell.take(shell.formation.recycle(shell.works(1), "has run 5 jobs"))
    both = {shell.works(1), shell.successor(1)}
    shell.take(shell.formation.leave(1))
    assert shell.told_to_end == both
    for pid in both:
        shell.die(pid)
    assert sorted(shell.formation.places) == [0]
    assert shell.formation.due() is None


def test_a_successor_that_comes_up_while_its_place_leaves_is_to_end_all_the_same() -> None:
    shell = started(2)
    shell.take(shell.formation.reload())
    both = {shell.works(0), shell.successor(0)}
    shell.take(shell.formation.leave(0))
    shell.take(shell.formation.up(shell.successor(0)))
    assert shell.promoted == set(), "its time to end goes on"
    assert shell.told_to_end == both


def test_where_a_script_has_come_to_its_end_there_is_no_worker() -> None:
    shell = started(4)
    shell.die(shell.works(0))
    shell.take(shell.formation.scale(1))
    assert [place.number for place in shell.formation.expected if not place.leaving] == [1]
    shell.take(shell.formation.scale(2))
    assert sum(pid not in shell.told_to_end for pid in shell.alive) == 2


def test_one_that_is_given_up_ends_the_run() -> None:
    shell = started(2)
    for _ in range(RestartPolicy.LIMIT):
        shell.die(shell.works(1), 1)
        shell.now += 1000
        shell.take(shell.formation.tick(shell.now))
    assert shell.over
    assert "giving up" in shell.said[-1]


def test_in_development_what_fails_waits_for_the_next_reload_however_often() -> None:
    shell = started(1, shared=False, development=True)
    for _ in range(3 * RestartPolicy.LIMIT):
        shell.die(shell.works(0), 1)
        assert "when a file has changed" in shell.said[-1]
        assert not shell.formation.over
        shell.take(shell.formation.reload())
    assert shell.works(0)


def test_what_cannot_be_started_is_tried_again_or_left() -> None:
    shell = started(2)
    shell.no_more_processes = True
    shell.take(shell.formation.recycle(shell.works(0), "uses 500 MiB of memory"))
    assert shell.formation.places[0].successor is None
    shell.die(shell.works(1), 1)
    shell.now = 10.0
    shell.take(shell.formation.tick(shell.now))
    assert shell.formation.due() is not None
    shell.no_more_processes = False
    shell.now = 20.0
    shell.take(shell.formation.tick(shell.now))
    assert sorted(shell.alive.values()) == [0, 1]


@pytest.mark.parametrize("shared", [True, False])
@settings(max_examples=300)
@given(data=st.data())
def test_whatever_happens_there_are_as_many_as_there_are_to_be(shared: bool, data: st.DataObject) -> None:
    shell = started(data.draw(st.integers(1, 4)), "always", shared=shared)
    formation = shell.formation
    for _ in range(data.draw(st.integers(1, 40))):
        shell.now += 1000.0
        what = data.draw(st.sampled_from(["die", "up", "recycle", "reload", "scale", "leave", "tick", "no more"]))
        pids = sorted(shell.alive)
        if what == "die" and pids:
            shell.die(data.draw(st.sampled_from(pids)), data.draw(st.sampled_from([0, 1, -9, -15])), lived=100.0)
        elif what == "up" and pids:
            shell.take(formation.up(data.draw(st.sampled_from(pids))))
        elif what == "recycle" and pids:
            shell.take(formation.recycle(data.draw(st.sampled_from(pids)), "has had enough"))
        elif what == "reload":
            shell.take(formation.reload())
        elif what == "scale":
            shell.take(formation.scale(data.draw(st.integers(1, 5))))
        elif what == "leave" and len(formation.staying) > 1:
            shell.take(formation.leave(data.draw(st.integers(0, 5))))
        elif what == "tick":
            shell.take(formation.tick(shell.now))
        shell.no_more_processes = what == "no more"
        for place in formation.places.values():
            assert len(place.pids) <= 2, "one that works, and one that begins or ends"
            assert shared or len(place.pids) <= 1, "two of them would have two budgets"
            assert place.leaving or place.process is not None or place.restart_at is not None
        assert {pid for place in formation.places.values() for pid in place.pids} == set(shell.alive)
    # When it is left alone, all that has to end ends, all that begins comes up, and nothing old is left.
    shell.no_more_processes = False
    of_before = set()
    if data.draw(st.booleans()):
        of_before = set(shell.alive)
        shell.take(formation.reload())
    for _ in range(100):
        shell.now += 1000.0
        shell.take(formation.tick(shell.now))
        for pid in sorted(shell.alive):
            shell.take(formation.up(pid))
        for pid in sorted(shell.told_to_end):
            shell.die(pid)
    assert len(shell.alive) == len(formation.staying)
    assert not of_before & set(shell.alive)
    assert not formation._reloading


def test_nothing_is_started_after_a_stop() -> None:
    shell = started(2, "always")
    shell.die(shell.works(0), 1)
    shell.formation.stop()
    alive = set(shell.alive)
    for steps in (
        shell.formation.scale(5),
        shell.formation.reload(),
        shell.formation.tick(1e9),
        shell.formation.leave(1),
    ):
        shell.take(steps)
    shell.take(shell.formation.recycle(shell.works(1), "has had enough"))
    assert set(shell.alive) == alive
    shell.die(shell.works(1), -15)
    assert shell.formation.over
    assert not shell.formation.failed


def test_a_failure_while_the_others_end_is_one() -> None:
    shell = started(2)
    shell.formation.stop()
    shell.die(shell.works(0), -9)
    assert shell.formation.failed
