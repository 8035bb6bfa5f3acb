"""The ledger's invariants, whatever happens in whatever order: a model of the processes beside it, and after every step
they have to agree about every lease."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pysqlx_engine.pool.budget import Demand, Lease
from pysqlx_engine.workers.journal import Recovered, _apply, _Line
from pysqlx_engine.workers.ledger import PATIENCE, Budget, Ledger, PoolKey
from pysqlx_engine.workers.messages import End, Granted, HeldLease, LeaseState, PoolClaim, Refused

DATABASES = ("postgresql://db:5432/a", "postgresql://db:5432/b")
LOCAL, REMOTE = ("near", "nearer"), ("far",)
STATES = [LeaseState.GRANTED, LeaseState.CONNECTING, LeaseState.OPEN, LeaseState.CLOSING]

some = st.integers(0, 10**6)
few = st.integers(0, 4)


@dataclass
class Pool:
    """A pool, as its process knows it."""

    database: str
    size: int | None
    """What its script states."""
    leases: dict[Lease, HeldLease] = field(default_factory=dict)
    received: int = 0
    asked: set[Lease] = field(default_factory=set)
    """Whose sessions it was asked to end."""


@dataclass
class Process:
    local: bool
    joined: bool = False
    """Whether this coordinator has heard its hello, and has not taken it for dead since."""
    lost: bool = False
    """Whether it was taken for dead."""
    pools: dict[int, Pool] = field(default_factory=dict)


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.processes = {name: Process(name in LOCAL) for name in LOCAL + REMOTE}
        self.orphans: dict[str, dict[Lease, PoolKey]] = {database: {} for database in DATABASES}
        self.journal = Recovered()
        self.epoch = 0
        self.operator_size: int | None = None
        self.ledger = Ledger(None, 0)

    @initialize(size=st.sampled_from([None, None, 1, 3, 6]))
    def begin(self, size: int | None) -> None:
        self.operator_size = size
        self.ledger = Ledger(size, 0)
        for who, number in ((0, 1), (0, 2), (2, 1)):
            self.attach(who, number, DATABASES[0], 4)

    # -- what is said, and what comes of it ---------------------------------------------------------------------------

    def settle(self, *, decide: bool = True) -> set[PoolKey]:
        """Write the journal, deliver what is said. Gives the pools that were refused. Not to `decide` is as if more
        came at once."""
        ledger, refused = self.ledger, set()
        if decide:
            ledger.decide()
        written = {record.held.lease for record in ledger.records if record.held and record.kind == "granted"}
        for record in ledger.records:
            line = _Line(record.kind, *record.key, record.database, record.held, size=record.size, leases=record.leases)
            _apply(self.journal, line)
        ledger.records.clear()
        messages, ledger.outbox = ledger.outbox, []
        ledger.notices.clear()
        for name, message in messages:
            pool = self.processes[name].pools[message.pool]
            if isinstance(message, Granted):
                assert ledger.granting, "granted before it is known who holds what"
                assert written.issuperset(message.leases), "granted, and not in the journal"
                budget = ledger.budgets[pool.database]
                assert message.leased <= budget.size, "granted beyond the size"
                for lease in message.leases:
                    assert lease not in pool.leases
                    pool.leases[lease] = HeldLease(lease)
                pool.received += len(message.leases)
            elif isinstance(message, End):
                pool.asked |= {held.lease for held in message.sessions}
            elif isinstance(message, Refused):
                refused.add((name, message.pool))
        return refused

    def claim(self, key: PoolKey, leases: list[HeldLease]) -> PoolClaim:
        pool = self.processes[key[0]].pools[key[1]]
        stated = pool.size is not None
        return PoolClaim(key[1], f"{key[1]} of {key[0]}", pool.database, 2, pool.size or 10, stated, leases)

    def heard(self) -> list[PoolKey]:
        """The pools that can say something to this coordinator."""
        return [(name, pool) for name, process in self.processes.items() if process.joined for pool in process.pools]

    def somebody(self, number: int) -> tuple[str, Process]:
        return list(self.processes.items())[number % len(self.processes)]

    def pick(self, number: int) -> tuple[PoolKey, Pool]:
        keys = self.heard()
        key = keys[number % len(keys)]
        return key, self.processes[key[0]].pools[key[1]]

    def forget(self, keys: set[PoolKey]) -> None:
        for name, pool in keys:
            del self.processes[name].pools[pool]

    # -- pools come and go --------------------------------------------------------------------------------------------

    @rule(
        who=some,
        number=st.integers(1, 2),
        database=st.sampled_from(DATABASES[:1] * 3 + DATABASES),
        size=st.sampled_from([None, 1, 4, 4, 4]),
        alone=st.booleans(),
    )
    def attach(self, who: int, number: int, database: str, size: int | None, alone: bool = True) -> None:
        name, process = self.somebody(who)
        if number in process.pools or process.lost or (process.pools and not process.joined):
            return
        process.joined = True
        process.pools[number] = Pool(database, size)
        self.ledger.attach(name, self.claim((name, number), []), local=process.local)
        self.forget(self.settle(decide=alone))

    @precondition(lambda self: self.heard())
    @rule(number=some, alone=st.booleans())
    def detach(self, number: int, alone: bool) -> None:
        key, _ = self.pick(number)
        self.forget({key})
        self.ledger.detach(key)
        self.settle(decide=alone)

    @rule(who=some, keep=some, alone=st.booleans())
    def says_hello(self, who: int, keep: int, alone: bool) -> None:
        """It states what it holds: what it had given back meanwhile is missing."""
        name, process = self.somebody(who)
        claims = []
        for number, pool in process.pools.items():
            pool.leases = {lease: held for at, (lease, held) in enumerate(pool.leases.items()) if keep >> at % 16 & 1}
            pool.received, pool.asked = 0, set()
            claims.append(self.claim((name, number), list(pool.leases.values())))
        for of_one in self.orphans.values():
            for lease in [lease for lease, key in of_one.items() if key[0] == name]:
                del of_one[lease]
        process.joined, process.lost = True, False
        self.ledger.rejoined(name, claims, local=process.local)
        self.forget(self.settle(decide=alone))

    @rule(who=some, alone=st.booleans())
    def is_dead(self, who: int, alone: bool) -> None:
        name, process = self.somebody(who)
        known = self.ledger._homes
        for number, pool in process.pools.items():
            if (name, number) in known:
                self.orphans[pool.database] |= dict.fromkeys(pool.leases, (name, number))
        process.joined = False
        if process.local:
            del self.processes[name]
            self.processes[f"{name}'"] = Process(local=True)
        else:
            process.lost = True  # it may come back, with all that it thinks it has
        self.ledger.dead(name, local=process.local)
        self.settle(decide=alone)

    # -- what a pool says ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.heard())
    @rule(
        number=some,
        in_use=few,
        idle=few,
        waiting=few,
        want=st.integers(0, 2),
        on_its_way=st.integers(0, 1),
        alone=st.booleans(),
    )
    def report(
        self, number: int, in_use: int, idle: int, waiting: int, want: int, on_its_way: int, alone: bool
    ) -> None:
        key, pool = self.pick(number)
        received = max(0, pool.received - on_its_way)
        self.ledger.report(key, received, Demand(in_use, idle, in_use, waiting, want))
        self.settle(decide=alone)

    @precondition(lambda self: self.heard())
    @rule(number=some)
    def waits(self, number: int) -> None:
        key, pool = self.pick(number)
        self.ledger.report(key, pool.received, Demand(len(pool.leases), 0, len(pool.leases), 3, 2))
        self.settle()

    @precondition(lambda self: self.heard())
    @rule(number=some, which=some, state=st.sampled_from([*STATES, LeaseState.QUARANTINED]), alone=st.booleans())
    def moves(self, number: int, which: int, state: LeaseState, alone: bool) -> None:
        key, pool = self.pick(number)
        if not pool.leases:
            return
        lease = list(pool.leases)[which % len(pool.leases)]
        held = HeldLease(lease, state, lease, (f"10.0.0.1:{lease}", "10.0.0.2:5432"))
        if pool.leases[lease].state < state is not LeaseState.QUARANTINED:
            pool.leases[lease] = held
        self.ledger.moved(key, held)
        self.settle(decide=alone)

    @precondition(lambda self: self.heard())
    @rule(number=some, which=some, again=st.booleans(), alone=st.booleans())
    def gives_back(self, number: int, which: int, again: bool, alone: bool) -> None:
        key, pool = self.pick(number)
        back = [lease for at, lease in enumerate(pool.leases) if which >> at % 16 & 1]
        for lease in back:
            del pool.leases[lease]
        for _ in range(1 + again):
            self.ledger.returned(key, back)
        self.settle(decide=alone)

    @precondition(lambda self: self.heard())
    @rule(number=some, lease=st.integers(0, 60))
    def talks_of_what_it_does_not_have(self, number: int, lease: Lease) -> None:
        key, pool = self.pick(number)
        if lease not in pool.leases:
            self.ledger.returned(key, [lease])
            self.ledger.moved(key, HeldLease(lease, LeaseState.CLOSING))
            if lease not in pool.asked:
                self.ledger.ended(key, [lease])
            self.settle()

    # -- the dead -----------------------------------------------------------------------------------------------------

    @rule(database=st.sampled_from(DATABASES), which=some)
    def the_server_lets_go(self, database: str, which: int) -> None:
        orphans = self.orphans[database]
        if orphans:
            lease = list(orphans)[which % len(orphans)]
            del orphans[lease]
            self.ledger.gone(database, lease)
        self.ledger.gone(database, -1)
        self.settle()

    @rule(database=st.sampled_from(DATABASES))
    def somebody_is_asked_to_end_sessions(self, database: str) -> None:
        budget = self.ledger.budgets.get(database)
        if budget is not None and budget.quarantined:
            self.ledger.have_ended(budget, list(budget.quarantined.values()))
            self.settle()

    @precondition(lambda self: self.heard())
    @rule(number=some)
    def sessions_are_ended(self, number: int) -> None:
        key, pool = self.pick(number)
        if pool.asked:
            for lease in pool.asked:
                self.orphans[pool.database].pop(lease, None)
            self.ledger.ended(key, pool.asked)
            self.settle()

    # -- time, and other coordinators ---------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.01, PATIENCE * 2, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.ledger.now += seconds
        self.ledger.look_again()
        self.settle()
        for budget in self.ledger.budgets.values() if self.ledger.granting else ():
            self.check_progress(budget)

    @rule(size=st.integers(1, 6), alone=st.booleans())
    def the_operator_has_another_size(self, size: int, alone: bool) -> None:
        self.operator_size = size  # also of the next coordinator
        self.ledger.resize(size)
        self.settle(decide=alone)

    @rule()
    def relax(self) -> None:
        self.settle()  # as the fleet does: whether anybody waits is known when what is free has been granted
        self.ledger.relax()
        self.settle()
        assert not self.ledger.relaxable

    @rule(journal_is_lost=st.sampled_from([False, False, False, True]))
    def another_coordinator(self, journal_is_lost: bool) -> None:
        self.epoch += 1
        now, self.ledger = self.ledger.now, Ledger(self.operator_size, self.epoch << 10)
        self.ledger.now = now
        if journal_is_lost:
            self.journal = Recovered()
            for of_one in self.orphans.values():
                of_one.clear()
        for database, (size, stated_by) in self.journal.sizes.items():
            self.ledger.recover_size(database, size, stated_by)
        for (key, database), leases in self.journal.held.items():
            self.ledger.recover(database, key, "recovered", leases.values(), local=key[0] not in REMOTE)
        for name, process in self.processes.items():
            process.joined = False
            for pool in process.pools.values():
                pool.asked.clear()
            if process.lost:
                self.ledger.dead(name, local=process.local)
        for name in {key[0] for key, _ in self.journal.held} - self.processes.keys():
            self.ledger.dead(name, local=True)
        self.ledger.granting = False
        self.settle()

    @precondition(lambda self: not self.ledger.granting)
    @rule()
    def it_has_learnt(self) -> None:
        self.ledger.start_granting()
        self.settle()

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def what_is_charged_is_what_is_held(self) -> None:
        for budget in self.ledger.budgets.values():
            places = [lease for pool in budget.pools.values() for lease in pool.leases]
            assert budget.held == len(places)
            assert budget.charged == len(places) + len(budget.quarantined)
            places += budget.quarantined
            assert len(places) == len(set(places)), "a lease in two places"
            assert budget.holders.keys() == set(places)
            assert budget.remote == sum(not pool.local for pool in budget.pools.values())
            assert budget.lost == sum(not orphan.local for orphan in budget.quarantined.values())
            assert budget.wanting.keys() | budget.ceilings.keys() <= budget.pools.keys()
            assert all(pool.closing.keys() <= pool.leases.keys() for pool in budget.pools.values())

    @invariant()
    def the_ledger_knows_what_the_processes_hold(self) -> None:
        for name, process in self.processes.items():
            for number, pool in process.pools.items():
                budget = self.ledger.budgets.get(pool.database)
                known = budget.pools.get((name, number)) if budget is not None else None
                if process.joined or known is not None:
                    assert known is not None
                    assert known.leases == pool.leases
        for database, orphans in self.orphans.items():
            budget = self.ledger.budgets.get(database)
            assert orphans.keys() == (budget.quarantined.keys() if budget is not None else set())

    @invariant()
    def the_journal_knows_it_too(self) -> None:
        found: dict[tuple[PoolKey, str], set[Lease]] = {}
        for budget in self.ledger.budgets.values():
            for key, pool in budget.pools.items():
                found.setdefault((key, budget.database), set()).update(pool.leases)
            for lease, orphan in budget.quarantined.items():
                found.setdefault((orphan.key, budget.database), set()).add(lease)
        written = {key: set(leases) for key, leases in self.journal.held.items()}
        assert written == {key: leases for key, leases in found.items() if leases}

    @invariant()
    def the_targets_are_fair(self) -> None:
        for budget in self.ledger.budgets.values():
            helper = self.ledger._helper(budget)
            targets = self.ledger._targets(budget, helper)
            slow = {
                key
                for key in targets
                if (since := budget.pools[key].owes_since) is not None and self.ledger.now >= since + PATIENCE
            }
            # Who ends the sessions of a lost host has what it takes for that besides its part.
            rest = [budget.pools[key] for key in targets if key not in slow and budget.pools[key] is not helper]
            assert sum(targets[pool.key] for pool in rest) <= max(0, budget.usable - len(budget.quarantined))
            for poor in rest:
                if targets[poor.key] < poor.claimed:
                    assert all(targets[rich.key] <= targets[poor.key] + 1 for rich in rest)

    @invariant()
    def no_budget_is_left_that_nobody_uses(self) -> None:
        if self.ledger.granting:
            assert all(budget.pools or budget.quarantined for budget in self.ledger.budgets.values())

    def check_progress(self, budget: Budget) -> None:
        """Nobody waits who could be served; and where somebody has to wait, everybody knows how much is his."""
        targets = self.ledger._targets(budget, self.ledger._helper(budget))
        for pool in budget.pools.values():
            if pool.demand.waiting and pool.lacks and not pool.silent:
                assert budget.free <= 0 or pool.held >= targets[pool.key]
                if budget.free <= 0:
                    assert budget.ceilings.keys() == {key for key, one in budget.pools.items() if not one.silent}

    def teardown(self) -> None:
        """Everything comes back, and nothing is remembered."""
        self.ledger.start_granting()
        self.settle()
        for name in {*self.processes, *(key[0] for key in self.ledger._homes)}:
            self.ledger.dead(name, local=True)
            self.settle()
        for budget, orphan in list(self.ledger.orphans()):
            self.ledger.gone(budget.database, orphan.held.lease)
        self.settle()
        assert self.ledger.budgets == {}
        assert (self.journal.held, self.journal.sizes) == ({}, {})


LedgerMachine.TestCase.settings = settings(
    max_examples=500, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLedger = LedgerMachine.TestCase
