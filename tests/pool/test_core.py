"""The pool's decisions, in every order of events that can happen."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pysqlx_engine.engine.session import ServerSession
from pysqlx_engine.errors import PoolClosedError, PoolQueueFullError
from pysqlx_engine.pool.core import MAX_OPENING, OURSELVES, ConnInfo, Effects, PoolCore, State, Waiter

BUDGET = 6
MAX_WAITING = 8


def connection(lease: int, now: float = 0.0) -> ConnInfo:
    return ConnInfo(f"conn-{lease}", lease, None, None, ServerSession(None, None), now)


class PoolMachine(RuleBasedStateMachine):
    """A core, a budget that is a set of free leases, and whatever the effects left to be done."""

    fail_fast = False

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.core = PoolCore(
            min_size=2, budget_size=BUDGET, check_after=1.0, max_waiting=MAX_WAITING, fail_fast=self.fail_fast
        )
        self.free = list(range(BUDGET))
        self.to_open: list[int] = []
        self.logins: list[int] = []
        """That were given up, and are not over on the server."""
        self.to_close: list[ConnInfo] = []
        self.to_test: list[ConnInfo] = []
        self.users: list[ConnInfo] = []
        self.queue: list[Waiter] = []
        """Those that wait, in order of arrival."""
        self.told = False
        self.size = BUDGET
        """Of the budget, now."""
        self.perform(self.core.start())

    def perform(self, effects: Effects | Waiter | None) -> None:
        if effects is None:
            return
        if isinstance(effects, Waiter):
            effects = Effects(wake=[effects])
        for waiter in effects.wake:
            assert (waiter.conn is None) != (waiter.error is None)
            if waiter.conn is not None:
                assert waiter is self.queue.pop(0), "not first come, first served"
                self.users.append(waiter.conn)
            else:
                self.queue.remove(waiter)
        self.to_open += effects.open
        self.to_close += effects.close
        self.to_test += effects.test
        self.free += effects.give_back
        if effects.tell:
            self.told = True

    @rule()
    def check_out(self) -> None:
        if self.core.state is not State.OPEN:
            with pytest.raises(PoolClosedError):
                self.core.check_out(self.now, 1, 1)
            return
        conn = self.core.check_out(self.now, 1, 1)
        if conn is not None:
            assert self.now - conn.last_used <= self.core.check_after, "handed out without a test"
            self.users.append(conn)
            return
        waiter = Waiter(lambda: None, owner=1)
        if len(self.queue) - len(self.core.idle) - len(self.core.testing) >= MAX_WAITING:
            with pytest.raises(PoolQueueFullError):
                self.core.wait(waiter, self.now)
            return
        self.queue.append(waiter)
        self.perform(self.core.wait(waiter, self.now))

    @rule(seconds=st.sampled_from([0.3, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.to_test)
    @rule(data=st.data(), alive=st.booleans())
    def test_ends(self, data: st.DataObject, alive: bool) -> None:
        conn = self.to_test.pop(data.draw(st.integers(0, len(self.to_test) - 1)))
        self.perform(self.core.tested(conn, self.now, alive=alive))

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.queue))
        self.queue.remove(waiter)
        conn, effects = self.core.give_up(waiter)
        assert conn is None
        self.perform(effects)

    @precondition(lambda self: self.users)
    @rule(data=st.data(), reusable=st.booleans())
    def check_in(self, data: st.DataObject, reusable: bool) -> None:
        conn = self.users.pop(data.draw(st.integers(0, len(self.users) - 1)))
        conn.last_used = self.now
        self.perform(self.core.check_in(conn, reusable=reusable))

    @precondition(lambda self: self.to_open)
    @rule(data=st.data(), ending=st.sampled_from(["ok", "error", "permanent", "at limit", "given up"]))
    def open_ends(self, data: st.DataObject, ending: str) -> None:
        lease = self.to_open.pop(data.draw(st.integers(0, len(self.to_open) - 1)))
        if ending == "ok":
            self.perform(self.core.opened(connection(lease, self.now)))
            return
        permanent, at_limit, given_up = ending == "permanent", ending == "at limit", ending == "given up"
        if given_up:
            self.logins.append(lease)
        error = OSError("no server")
        self.perform(self.core.open_failed(lease, error, permanent=permanent, at_limit=at_limit, given_up=given_up))

    @precondition(lambda self: self.to_open)
    @rule()
    def open_has_to_wait(self) -> None:
        self.perform(self.core.not_allowed(self.to_open.pop()))

    @rule()
    def suspend(self) -> None:
        self.perform(self.core.suspend())
        assert not self.core.spare

    @precondition(lambda self: self.core.suspended)
    @rule()
    def resume(self) -> None:
        self.perform(self.core.resume())

    @rule(leases=st.sets(st.integers(0, BUDGET - 1)))
    def disown(self, leases: set[int]) -> None:
        self.users = [conn for conn in self.users if conn.lease not in leases]
        self.perform(self.core.disown(sorted(leases)))
        assert not any(conn.lease in leases for conn in (*self.core.idle, *self.core.in_use))

    @precondition(lambda self: self.logins)
    @rule()
    def login_ends(self) -> None:
        self.perform(self.core.login_ended(self.logins.pop()))

    @rule()
    def lift_limit(self) -> None:
        self.perform(self.core.lift_limit())

    @rule()
    def doubt(self) -> None:
        self.perform(self.core.doubt())

    @rule(min_size=st.integers(0, BUDGET))
    def resize(self, min_size: int) -> None:
        self.perform(self.core.resize(min_size))

    @rule(size=st.integers(1, BUDGET))
    def resize_budget(self, size: int) -> None:
        self.size = size
        self.perform(self.core.resized(size))

    @rule()
    def retire_all(self) -> None:
        assert self.core.retire_all() == self.core.idle

    @rule()
    def try_again(self) -> None:
        self.perform(self.core.try_again())

    @precondition(lambda self: self.to_close)
    @rule(data=st.data())
    def close_ends(self, data: st.DataObject) -> None:
        self.perform(self.core.closed(self.to_close.pop(data.draw(st.integers(0, len(self.to_close) - 1)))))

    @precondition(lambda self: self.told)
    @rule()
    def budget_answers(self) -> None:
        self.told = False
        want = self.core.tell(0.0).want
        assert not want or self.core.held <= self.size
        leases = [self.free.pop() for _ in range(max(0, min(want, self.size - self.core.held)))]
        self.perform(self.core.granted(leases))
        if len(leases) < want:
            self.perform(self.core.deny())

    @rule(ceiling=st.one_of(st.none(), st.integers(0, BUDGET)))
    def ceiling(self, ceiling: int | None) -> None:
        self.perform(self.core.set_ceiling(ceiling))

    @rule()
    def replenish(self) -> None:
        self.perform(self.core.replenish())

    @precondition(lambda self: self.core.idle)
    @rule()
    def retire(self) -> None:
        self.perform(self.core.discard_idle(self.core.idle[0]))

    @precondition(lambda self: self.core.state is State.OPEN)
    @rule(by_force=st.booleans(), really=st.integers(0, 9))
    def stop(self, by_force: bool, really: int) -> None:
        if really:  # now and then only, or nothing else would be tried
            return
        self.perform(self.core.close() if by_force else self.core.stop())

    @invariant()
    def every_lease_is_somewhere(self) -> None:
        core = self.core
        assert core.held + len(self.free) == BUDGET
        leases = [*core.spare, *core.opening, *core.given_up, *self.free]
        leases += [conn.lease for conn in (*core.idle, *core.in_use, *core.testing, *core.closing)]
        assert sorted(leases) == list(range(BUDGET))

    @invariant()
    def more_than_the_budget_is_held_only_while_it_is_in_use(self) -> None:
        core = self.core
        if core.held > self.size and core.state is State.OPEN:
            assert core.shrinking
            assert not core.idle or core.held - core.returning <= self.size
            assert not core.spare

    @invariant()
    def what_is_open_is_where_the_core_says(self) -> None:
        assert set(self.to_open) == self.core.opening
        assert set(self.to_close) == self.core.closing
        assert set(self.to_test) == self.core.testing
        assert len(self.core.opening) <= MAX_OPENING

    @invariant()
    def nobody_waits_beside_an_idle_connection(self) -> None:
        assert list(self.core.waiters) == self.queue
        # What is idle now has to be tested first, and as many are being tested as are waited for.
        assert not (self.core.idle and len(self.core.testing) < len(self.core.waiters))

    @invariant()
    def nobody_waits_without_something_on_its_way(self) -> None:
        """Somebody uses a connection, one is being tested, opened or closed, or the budget knows that one is wanted."""
        core = self.core
        busy = core.in_use or core.testing or core.opening or core.returning
        if core.waiters and not core.backing_off and not core.suspended and not busy:
            assert self.told or core._told.want > 0 or core.ceiling is not None

    def teardown(self) -> None:
        """Whatever happened before: after a close everything comes back."""
        self.perform(self.core.close())
        self.users.clear()
        while self.to_open:
            self.perform(self.core.opened(connection(self.to_open.pop())))
        while self.to_test:
            self.perform(self.core.tested(self.to_test.pop(), self.now, alive=True))
        while self.to_close:
            self.perform(self.core.closed(self.to_close.pop()))
        while self.logins:
            self.perform(self.core.login_ended(self.logins.pop()))
        assert sorted(self.free) == list(range(BUDGET))
        assert not self.queue


class FailFastMachine(PoolMachine):
    fail_fast = True

    @invariant()
    def one_at_most_waits_where_nothing_can_be_opened(self) -> None:
        core = self.core
        if core.last_error is not None and not core.size:
            assert len(core.waiters) <= (0 if core.backing_off and not core.opening else 1)


TestPoolMachine = PoolMachine.TestCase
TestFailFastMachine = FailFastMachine.TestCase


def test_the_pools_own_waiters_take_nobodys_place_in_the_queue() -> None:
    core = PoolCore(0, 1, max_waiting=1)
    core.start()
    for owner in (OURSELVES, OURSELVES, 7):
        core.wait(Waiter(lambda: None, owner), 0.0)
    with pytest.raises(PoolQueueFullError, match="1 wait"):
        core.wait(Waiter(lambda: None, 8), 0.0)
    core.wait(Waiter(lambda: None, OURSELVES), 0.0)


def test_a_grant_that_comes_after_the_budget_was_made_smaller_goes_back() -> None:
    core = PoolCore(0, 4)
    core.start()
    core.wait(Waiter(lambda: None, 1), 0.0)
    core.resized(1)
    effects = core.granted([1, 2])
    assert core.held <= 1
    assert not core.shrinking
    assert core.opening or effects.tell, "who waits is not forgotten"


def test_no_lease_is_kept_for_later_above_a_budget_that_was_made_smaller() -> None:
    core = PoolCore(0, 2)
    core.start()
    core.wait(Waiter(lambda: None, 1), 0.0)
    core.wait(Waiter(lambda: None, 2), 0.0)
    core.granted([1, 2])
    core.opened(connection(1))
    core.wait(Waiter(lambda: None, 3), 0.0)
    core.resized(1)
    core.disown([1])
    effects = core.open_failed(2, OSError("no answer"), permanent=False)
    assert effects.give_back == [2]


def test_leases_go_back_at_once_where_nothing_may_be_opened_under_them() -> None:
    core = PoolCore(0, BUDGET, check_after=0.5)
    core.start()
    core.wait(Waiter(lambda: None), 0.0)
    core.granted([1])
    effects = core.not_allowed(1)
    assert effects.give_back == [1]
    assert not core.held
    assert core.resume().tell  # it asks for another one


def test_nobody_probes_where_nothing_can_be_opened() -> None:
    core = PoolCore(0, 1, fail_fast=True)
    core.start()
    core.wait(Waiter(lambda: None, 1), 0.0)
    core.granted([1])
    core.open_failed(1, OSError("no answer"), permanent=False, given_up=True)
    core.try_again()
    late = Waiter(lambda: None, 2)
    effects = core.wait(late, 0.0)
    assert effects is not None
    assert effects.wake == [late]
    assert isinstance(late.error, OSError)


def test_what_was_being_opened_when_all_were_to_be_replaced_is_replaced_too() -> None:
    core = PoolCore(0, 3)
    core.start()
    for owner in (1, 2):
        core.wait(Waiter(lambda: None, owner), 0.0)
    core.granted([1, 2])
    core.opened(connection(1))
    core.retire_all()
    later = connection(2)
    core.opened(later)
    assert later.retire
    core.wait(Waiter(lambda: None, 3), 0.0)
    core.granted([3])
    after = connection(3)
    core.opened(after)
    assert not after.retire
