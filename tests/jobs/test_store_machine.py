"""A job's life on every database against the model: whatever happens in whatever order, the rows are what the pure
state machine says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pysqlx_engine import PySQLXEngine
from pysqlx_engine.engine.driving import drive
from pysqlx_engine.workers.jobs.dialects import dialect_of
from pysqlx_engine.workers.jobs.life import FINAL, Event, Life, State, after, born
from pysqlx_engine.workers.jobs.schema import migrate
from pysqlx_engine.workers.jobs.store import Claimed, Ended, NewJob, Postponed, Store
from tests.servers import Database

DAY = 86_400_000_000
EXAMPLES = 25
some = st.integers(0, 10**6)


@dataclass
class Modelled:
    life: Life
    key: str | None
    priority: int


class JobMachine(RuleBasedStateMachine):
    def __init__(self, connection: PySQLXEngine) -> None:
        super().__init__()
        self.connection = connection
        self.store = Store(dialect_of(connection))
        self.jobs: dict[int, Modelled] = {}
        self.attempts: list[Claimed] = []
        """Every attempt that there ever was."""
        self.owners = 0
        for table in ("pysqlx_jobs", "pysqlx_jobs_ended", "pysqlx_job_errors"):
            drive(connection.execute(f"DELETE FROM {table}"))

    def step(self, id_: int, event: Event, attempt: int = 0, owner: int | None = None) -> bool:
        """Have `event` happen in the model; whether it changed anything."""
        job = self.jobs[id_]
        life = job.life
        job.life = after(life, event, attempt=attempt, owner=owner)
        return job.life != life

    def transaction(self, act: Callable[[], object]) -> object:
        drive(self.connection.begin())
        result = act()
        drive(self.connection.commit())
        return result

    def pick(self, number: int) -> int | None:
        return list(self.jobs)[number % len(self.jobs)] if self.jobs else None

    # -- what happens -------------------------------------------------------------------------------------------------

    @rule(
        later=st.booleans(),
        max_attempts=st.integers(1, 3),
        key=st.sampled_from([None, None, "a", "b"]),
        priority=st.integers(-1, 1),
    )
    def enqueued(self, later: bool, max_attempts: int, key: str | None, priority: int) -> None:
        job = NewJob(
            queue="q",
            task="t",
            args="{}",
            delay=DAY if later else 0,
            max_attempts=max_attempts,
            unique_key=key,
            priority=priority,
        )
        (id_,) = drive(self.store.enqueue(self.connection, [job]))
        same = [other for other, one in self.jobs.items() if key and one.key == key and one.life.state not in FINAL]
        if same:
            assert [id_] == same
        else:
            assert id_ not in self.jobs
            self.jobs[id_] = Modelled(born(due=not later, max_attempts=max_attempts), key, priority)

    @rule(most=st.integers(1, 3))
    def claimed(self, most: int) -> None:
        self.owners += 1
        owner = self.owners
        found = self.transaction(lambda: drive(self.store.claim(self.connection, "q", most, owner)))
        assert isinstance(found, list)
        available = sum(job.life.state is State.AVAILABLE for job in self.jobs.values())
        assert len(found) == min(most, available)
        for job in found:
            assert self.step(job.id, Event.CLAIM, owner=owner)
            assert (job.attempt, job.owner) == (self.jobs[job.id].life.attempt, owner)
        left = [job.priority for job in self.jobs.values() if job.life.state is State.AVAILABLE]
        assert not found or not left or min(job.priority for job in found) >= max(left)
        self.attempts += found

    @rule(
        which=some,
        event=st.sampled_from([Event.COMPLETE, Event.FAIL, Event.SNOOZE, Event.GIVE_BACK, Event.ABANDON]),
    )
    def an_attempt_is_over(self, which: int, event: Event) -> None:
        """Any that ever was: most of them are late."""
        if not self.attempts:
            return
        late = which % 3 == 0
        one = self.attempts[which % len(self.attempts)] if late else self.attempts[-1]
        self.over(one, event)

    def over(self, one: Claimed, event: Event) -> None:
        changed = self.step(one.id, event, one.attempt, one.owner)
        # What the one who ran it decides, from what it was told when it claimed.
        then = after(
            Life(State.RUNNING, one.attempt, one.max_attempts, one.owner), event, attempt=one.attempt, owner=one.owner
        )
        said = {"id": one.id, "attempt": one.attempt, "owner": one.owner, "state": then.state}
        if then.state in FINAL:
            ended = Ended(**said)  # type: ignore[arg-type]
            count = self.transaction(lambda: drive(self.store.end(self.connection, [ended])))
        else:
            wait = None if event is Event.GIVE_BACK else DAY
            postponed = Postponed(**said, attempt_after=then.attempt, wait=wait)  # type: ignore[arg-type]
            count = self.transaction(lambda: drive(self.store.postpone(self.connection, [postponed])))
        assert count == changed

    @rule(which=some)
    def its_time_has_come(self, which: int) -> None:
        id_ = self.pick(which)
        if id_ is None:
            return
        change = f"UPDATE pysqlx_jobs SET run_at = 1 WHERE id = {id_} AND state IN ('scheduled', 'retrying')"
        drive(self.connection.execute(change))
        assert drive(self.store.release(self.connection, 10)) == self.step(id_, Event.DUE)

    @rule(which=some)
    def cancelled(self, which: int) -> None:
        id_ = self.pick(which)
        if id_ is None:
            return
        runs = self.jobs[id_].life.state is State.RUNNING
        changed = self.step(id_, Event.CANCEL)
        assert self.transaction(lambda: drive(self.store.cancel(self.connection, [id_]))) == (changed, runs)

    @rule(which=some)
    def revived(self, which: int) -> None:
        id_ = self.pick(which)
        if id_ is None:
            return
        job = self.jobs[id_]
        taken = job.life.state in FINAL and any(
            job.key and other.key == job.key and other.life.state not in FINAL for other in self.jobs.values()
        )
        changed = not taken and self.step(id_, Event.REVIVE)
        assert self.transaction(lambda: drive(self.store.revive(self.connection, [id_]))) == changed

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def the_rows_are_what_the_model_says(self) -> None:
        columns = "id, state, attempt, max_attempts, owner"
        rows = drive(self.connection.query_as_dict(f"SELECT {columns} FROM pysqlx_jobs"))
        ended = drive(self.connection.query_as_dict(f"SELECT {columns} FROM pysqlx_jobs_ended"))
        assert all(row["state"] not in FINAL for row in rows)
        assert all(row["state"] in FINAL for row in ended)
        found = {
            row["id"]: Life(
                State(row["state"]), row["attempt"], row["max_attempts"], row["owner"] if row in rows else None
            )
            for row in rows + ended
        }
        assert len(found) == len(rows) + len(ended), "a job is in both tables"
        assert found == {id_: job.life for id_, job in self.jobs.items()}


@pytest.mark.timeout(300)
def test_the_rows_are_what_the_model_says_whatever_happens(database: Database) -> None:
    connection = PySQLXEngine(database.uri)
    drive(connection.connect())
    try:
        drive(migrate(connection))
        run_state_machine_as_test(
            lambda: JobMachine(connection),
            settings=settings(
                max_examples=EXAMPLES, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
    finally:
        drive(connection.close())
