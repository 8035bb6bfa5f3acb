"""Which workers there are, and what becomes of each: the one place where it is decided that a worker starts or ends.

A state machine without processes, signals or a clock. Every event is a method, which gives the steps that follow;
`supervisor` takes them, and tells what came of it. Processes are known by their pids, times are seconds, and given.

A *place* is a worker's number: processes come and go in it. Where all share one budget, a process that is to be
replaced stays until the one that takes its place is *up*. Else two of them would have two budgets, and it ends first.
"""

from __future__ import annotations

import enum
import logging
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Restart = Literal["never", "on-failure", "always"]


class Verdict(enum.Enum):
    FINISHED = "finished"
    RESTART = "restart"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about a child that died. `delay` in seconds, for a restart."""

    verdict: Verdict
    delay: float = 0.0


class RestartPolicy:
    """Whether and when one child is started again.

    A child that fails within `EARLY` seconds of its start died early. Each early death in a row doubles the delay
    before the next start; `LIMIT` of them in a row, and it is given up. A child that lived longer starts afresh. The
    jitter keeps workers that died together from coming back together.
    """

    FIRST_DELAY = 0.1
    EARLY = 60.0
    LIMIT = 10
    JITTER = 0.25

    def __init__(self, mode: Restart, jitter: Callable[[], float] = random.random) -> None:
        """`jitter` gives a number from 0 to 1; a delay is shortened by up to a quarter of itself."""
        self._mode = mode
        self._jitter = jitter
        self._early_deaths = 0

    def died(self, status: int, lived: float) -> Decision:
        """Decide on a child that ended with `status` (negative: the signal that ended it) after `lived` seconds."""
        if self._mode == "never" or (status == 0 and self._mode == "on-failure"):
            return Decision(Verdict.FINISHED)
        if status == 0:
            self._early_deaths = 0
            return Decision(Verdict.RESTART, self._delay(0))
        self._early_deaths = self._early_deaths + 1 if lived < self.EARLY else 1
        if self._early_deaths >= self.LIMIT:
            return Decision(Verdict.GIVE_UP)
        return Decision(Verdict.RESTART, self._delay(self._early_deaths - 1))

    def _delay(self, doublings: int) -> float:
        return float(self.FIRST_DELAY * 2**doublings * (1 - self.JITTER * self._jitter()))


@dataclass
class Place:
    """A worker's number, and the processes that have it."""

    number: int
    policy: RestartPolicy
    process: int | None = None
    """The one that works."""
    successor: int | None = None
    """The one that is to take over, and is not up yet."""
    former: set[int] = field(default_factory=set)
    """Those that were told to end what they do, because another one has taken over."""
    generation: int = 0
    """Which reload `process`, or whoever is started next, belongs to."""
    successor_generation: int = 0
    retired: bool = False
    """`process` was told to end, and the next one starts when it has."""
    leaving: bool = False
    """Nobody takes its place any more."""
    restarts: int = 0
    restart_at: float | None = None
    failed: bool = False
    """The last one ended badly."""
    waits_for_change: bool = False
    """The last one ended badly, and the next one is started when the script has changed."""

    @property
    def pids(self) -> set[int]:
        return {pid for pid in (self.process, self.successor, *self.former) if pid is not None}


# -- steps ------------------------------------------------------------------------------------------------------------


class Start(NamedTuple):
    """Start a process in this place, and tell `started` or `not_started`. `takes_over`: as a successor, to be told
    `up` when it can do what the one before it does."""

    place: Place
    takes_over: bool = False


class Promote(NamedTuple):
    """This process works in its place now: however long it took to get there."""

    pid: int


class Retire(NamedTuple):
    """Tell this process to take on nothing new and to end when it has ended what it does, however long that takes."""

    pid: int


class End(NamedTuple):
    """Tell this process to end, and kill it after the graceful timeout."""

    pid: int


class Say(NamedTuple):
    text: str
    level: int = logging.WARNING


class GiveUp(NamedTuple):
    """End the run: it has failed."""


Step = Start | Promote | Retire | End | Say | GiveUp
Steps = Iterator[Step]


class Formation:
    """Steps are to be taken in order, each before the next is asked for."""

    def __init__(self, count: int, mode: Restart, *, shared_budget: bool, development: bool = False) -> None:
        """`development`: what ends badly waits for the next reload, and does not end the run."""
        self._mode = mode
        self._shared_budget = shared_budget
        self._development = development
        self.places: dict[int, Place] = {}
        for _ in range(count):
            self._add()
        self._generation = 0
        self._reloading = False
        self.stopping = False
        """Nothing is started any more."""

    def _add(self) -> Place:
        number = next(number for number in range(len(self.places) + 1) if number not in self.places)
        place = self.places[number] = Place(number, RestartPolicy(self._mode))
        return place

    @property
    def expected(self) -> list[Place]:
        """Those in which a process is, or is to be: not where a script has come to its end."""
        return [
            place
            for place in self.staying
            if place.process is not None or place.restart_at is not None or place.waits_for_change
        ]

    @property
    def staying(self) -> list[Place]:
        return [self.places[number] for number in sorted(self.places) if not self.places[number].leaving]

    def place_of(self, pid: int) -> Place | None:
        return next((place for place in self.places.values() if pid in place.pids), None)

    # -- processes start and end ----------------------------------------------------------------------------------

    def start(self) -> Steps:
        for place in self.staying:
            yield from self._start(place)

    def due(self) -> float | None:
        """When `tick` has something to do."""
        return min((place.restart_at for place in self.places.values() if place.restart_at is not None), default=None)

    def tick(self, now: float) -> Steps:
        for place in list(self.places.values()):
            if place.restart_at is not None and now >= place.restart_at:
                place.restarts += 1
                yield from self._start(place)

    def _start(self, place: Place) -> Steps:
        if self.stopping:
            return
        place.restart_at, place.generation, place.retired, place.waits_for_change = None, self._generation, False, False
        yield Start(place)

    def started(self, place: Place, pid: int, *, takes_over: bool) -> None:
        if takes_over:
            place.successor, place.successor_generation = pid, self._generation
        else:
            place.process, place.failed = pid, False

    def not_started(self, place: Place, reason: str, now: float, *, takes_over: bool) -> Steps:
        if takes_over:
            yield Say(f"worker {place.number}: the other one could not be started: {reason}")
            yield from self._abandon_reload()
        else:
            yield from self._after_death(place, f"could not be started: {reason}", 1, 0.0, now)

    def ended(self, pid: int, how: str, status: int, lived: float, now: float) -> Steps:
        """A process has ended, after so many seconds. `how`: in words, such as "ended with status 1"."""
        place = self.place_of(pid)
        assert place is not None
        worked, was_to_work = pid == place.process, pid == place.successor
        place.former.discard(pid)
        if worked:
            place.process = None
        if was_to_work:
            place.successor = None
        if self.stopping:
            place.failed = place.failed or status not in (0, -signal.SIGTERM)
            return
        if was_to_work and not place.leaving:
            yield Say(f"worker {place.number}: the other one {how} before it served")
            yield from self._abandon_reload()
        elif not worked or place.leaving or place.successor is not None:
            if status not in (0, -signal.SIGTERM):
                yield Say(f"worker {place.number} ({pid}) {how}")
            if worked and place.successor is not None and not place.leaving:
                yield from self._take_over(place)
        elif place.retired:
            yield from self._start(place)
        else:
            yield from self._after_death(place, how, status, lived, now)
        if place.leaving and not place.pids:
            del self.places[place.number]
        yield from self._roll()

    def _take_over(self, place: Place) -> Steps:
        assert place.successor is not None
        place.process, place.successor = place.successor, None
        place.generation = place.successor_generation
        yield Promote(place.process)

    def _after_death(self, place: Place, how: str, status: int, lived: float, now: float) -> Steps:
        place.failed = status != 0
        if place.failed and self._development:
            place.waits_for_change = True
            yield Say(f"worker {place.number} {how}; it is started again when a file has changed")
            return
        decision = place.policy.died(status, lived)
        if decision.verdict is Verdict.RESTART:
            place.restart_at = now + decision.delay
            yield Say(f"worker {place.number} {how}; starting it again in {decision.delay:.1f} s")
        elif decision.verdict is Verdict.GIVE_UP:
            yield Say(f"worker {place.number} {how}, {too_often()}", logging.ERROR)
            yield GiveUp()
        elif place.failed:
            yield Say(f"worker {place.number} {how}")

    # -- one takes another one's place ----------------------------------------------------------------------------

    def recycle(self, pid: int, reason: str) -> Steps:
        """A process asks to be replaced."""
        place = self.place_of(pid)
        if self.stopping or place is None or place.process != pid or not self._replaceable(place):
            return  # it will ask again
        yield Say(f"worker {place.number} {reason}: another one takes its place", logging.INFO)
        yield from self._replace(place)

    def _replaceable(self, place: Place) -> bool:
        """No more than two at a time: one that works, and one that ends or begins."""
        return place.successor is None and not place.former and not place.retired and not place.leaving

    def _replace(self, place: Place) -> Steps:
        assert place.process is not None
        if self._shared_budget:
            yield Start(place, takes_over=True)
        else:
            place.retired = True
            yield Retire(place.process)

    def up(self, pid: int) -> Steps:
        """A process can do its work now."""
        place = self.place_of(pid)
        if place is None or place.successor != pid or place.leaving or self.stopping:
            return
        before = place.process
        yield from self._take_over(place)
        if before is not None:
            place.former.add(before)
            yield Retire(before)
        yield from self._roll()

    # -- what people want -----------------------------------------------------------------------------------------

    def reload(self) -> Steps:
        """Replace all, one after the other: by processes that run what the script is now."""
        if self.stopping:
            return
        self._generation += 1
        self._reloading = True
        yield Say(f"reloading {len(self.staying)} workers", logging.INFO)
        for place in self.staying:
            if place.restart_at is not None or place.waits_for_change:  # what it waits for may be mended now
                place.policy = RestartPolicy(self._mode)
                yield from self._start(place)
        yield from self._roll()

    def _roll(self) -> Steps:
        """One at a time: what is wrong with the new code shows while most of the old processes are still there."""
        if not self._reloading or self.stopping or any(place.successor is not None for place in self.places.values()):
            return
        old = [place for place in self.staying if place.generation < self._generation and place.process is not None]
        if not old:
            self._reloading = False
            yield Say("reloaded", logging.INFO)
            return
        if not self._shared_budget and any(place.retired for place in old):
            return
        for place in old:
            if self._replaceable(place):
                yield from self._replace(place)
                return

    def _abandon_reload(self) -> Steps:
        if self._reloading:
            self._reloading = False
            yield Say("the reload has failed: the workers that were not replaced go on")

    def scale(self, count: int) -> Steps:
        """Have so many workers at work. Those with the highest numbers leave first; where a script has come to its end
        there is none."""
        if self.stopping:
            return
        expected = self.expected
        for place in expected[count:][::-1]:
            yield from self._leave(place)
        for _ in range(count - len(expected)):
            yield from self._start(self._add())
        yield from self._roll()

    def leave(self, number: int) -> Steps:
        """Have the worker in this place end, and nobody come after it."""
        place = self.places.get(number)
        if not self.stopping and place is not None and not place.leaving:
            yield from self._leave(place)
            yield from self._roll()

    def _leave(self, place: Place) -> Steps:
        place.leaving, place.restart_at = True, None
        pids = place.pids
        if not pids:
            del self.places[place.number]
        for pid in sorted(pids):
            yield End(pid)

    def stop(self) -> None:
        """Nothing is started any more."""
        self.stopping = True
        for place in self.places.values():
            if place.restart_at is not None:
                place.restart_at, place.failed = None, False  # its next process would have made up for the last
            place.waits_for_change = False

    @property
    def failed(self) -> bool:
        return any(place.failed for place in self.places.values())

    @property
    def over(self) -> bool:
        """Whether nobody is there, and nobody will be."""
        return not any(
            place.pids or place.restart_at is not None or place.waits_for_change for place in self.places.values()
        )

    @property
    def reloading(self) -> bool:
        return self._reloading

    @property
    def ever_reloaded(self) -> bool:
        """Whether a process that cannot begin may have been able to before."""
        return self._generation > 0


def too_often() -> str:
    return f"the {RestartPolicy.LIMIT}th failure in a row within {RestartPolicy.EARLY:.0f} s of a start; giving up"
