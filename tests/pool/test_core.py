"""The pool's decisions, in every order of events that can happen."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pysqlx_engine.engine.session import ServerSession
from pysqlx_engine.errors import PoolClosedError
from pysqlx_engine.pool.core import MAX_OPENING, ConnInfo, Effects, PoolCore, State, Waiter

BUDGET = 6


def connection(lease: int) -> ConnInfo:
    return ConnInfo(f"conn-{lease}", lease, None, None, ServerSession(None, None), 0.0)


class PoolMachine(RuleBasedStateMachine):
    """A core, a budget that is a set of free leases, and whatever the effects left to be done."""

    def __init__(self) -> None:
        super().__init__()
        self.core = PoolCore(min_size=2, budget_size=BUDGET)
        self.free = list(range(BUDGET))
        self.to_open: list[int] = []
        self.to_close: list[ConnInfo] = []
        self.users: list[ConnInfo] = []
        self.queue: list[Waiter] = []
        """Those that wait, in order of arrival."""
        self.told = False
        self.perform(self.core.start())

    def perform(self, effects: Effects | None) -> None:
        if effects is None:
            return
        for waiter in effects.wake:
            assert (waiter.conn is None) != (waiter.error is None)
            assert waiter is self.queue.pop(0), "not first come, first served"
            if waiter.conn is not None:
                self.users.append(waiter.conn)
        self.to_open += effects.open
        self.to_close += effects.close
        self.free += effects.give_back
        if effects.tell:
            self.told = True

    @rule()
    def check_out(self) -> None:
        if self.core.state is not State.OPEN:
            with pytest.raises(PoolClosedError):
                self.core.check_out()
            return
        conn = self.core.check_out()
        if conn is not None:
            self.users.append(conn)
            return
        waiter = Waiter(lambda: None)
        self.queue.append(waiter)
        self.perform(self.core.wait(waiter))

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
        self.perform(self.core.check_in(conn, reusable=reusable))

    @precondition(lambda self: self.to_open)
    @rule(data=st.data(), ending=st.sampled_from(["ok", "error", "permanent"]))
    def open_ends(self, data: st.DataObject, ending: str) -> None:
        lease = self.to_open.pop(data.draw(st.integers(0, len(self.to_open) - 1)))
        if ending == "ok":
            self.perform(self.core.opened(connection(lease)))
        else:
            self.perform(self.core.open_failed(lease, OSError("no server"), permanent=ending == "permanent"))

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
        leases = [self.free.pop() for _ in range(min(want, len(self.free)))]
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
        self.perform(self.core.close() if by_force else self.core.drain())

    @invariant()
    def every_lease_is_somewhere(self) -> None:
        core = self.core
        assert core.held + len(self.free) == BUDGET
        leases = [*core.spare, *core.opening, *self.free]
        leases += [conn.lease for conn in (*core.idle, *core.in_use, *core.closing)]
        assert sorted(leases) == list(range(BUDGET))

    @invariant()
    def what_is_open_is_where_the_core_says(self) -> None:
        assert set(self.to_open) == self.core.opening
        assert set(self.to_close) == self.core.closing
        assert len(self.core.opening) <= MAX_OPENING

    @invariant()
    def nobody_waits_beside_an_idle_connection(self) -> None:
        assert list(self.core.waiters) == self.queue
        assert not (self.core.waiters and self.core.idle)

    @invariant()
    def nobody_waits_without_something_on_its_way(self) -> None:
        """Somebody uses a connection, one is being opened or closed, or the budget knows that one is wanted."""
        core = self.core
        if core.waiters and not core.backing_off and not core.in_use and not core.opening and not core.closing:
            assert self.told or core._told.want > 0 or core.ceiling is not None

    def teardown(self) -> None:
        """Whatever happened before: after a close everything comes back."""
        self.perform(self.core.close())
        self.users.clear()
        while self.to_open:
            self.perform(self.core.opened(connection(self.to_open.pop())))
        while self.to_close:
            self.perform(self.core.closed(self.to_close.pop()))
        assert sorted(self.free) == list(range(BUDGET))
        assert not self.queue


TestPoolMachine = PoolMachine.TestCase
