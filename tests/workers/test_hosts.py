"""Processes of other hosts, in network namespaces, join over tcp:// with keys: the budget holds, whatever happens to
the link and to them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pysqlx_engine.workers.control import Json, ask
from pysqlx_engine.workers.keys import write_keys
from tests.proxy import FaultProxy
from tests.servers import Database, free_port, postgresql_database

from .hosts import Host, NoNamespacesError, Site, site
from .runs import CTL, nobody_has_joined, run_environment
from .sampling import Samples, watching

pytestmark = pytest.mark.timeout(45)

TERM = 2.0
BUDGET = 5
"""One of it is kept in reserve while there are processes of other hosts."""

MEMBER = """
import asyncio, sys
from pysqlx_engine import PySQLXEnginePool

async def main():
    async with PySQLXEnginePool(uri=sys.argv[1], min_size=1, conn_timeout=30) as pool:
        print("started", flush=True)
        while line := (await asyncio.to_thread(sys.stdin.readline)).split():
            try:
                print(await COMMANDS[line[0]](pool, int(line[1])), flush=True)
            except Exception as error:
                print("error", type(error).__name__, error, flush=True)

async def use(pool, count):
    # So many connections at the same time, each of which works.
    together = asyncio.Barrier(count)
    async def one():
        async with pool.connection() as conn:
            await conn.query_first("SELECT 1 AS a")
            await together.wait()
    await asyncio.gather(*(one() for _ in range(count)))
    return f"used {count}"

async def work(pool, seconds):
    # Eight users for so long. What was in flight may fail when its session is ended.
    done, failed = 0, []
    until = asyncio.get_running_loop().time() + seconds
    async def one():
        nonlocal done
        while asyncio.get_running_loop().time() < until:
            async with pool.connection() as conn:
                try:
                    await conn.query_first("SELECT pg_sleep(0.005)::text AS a")
                except Exception as error:
                    failed.append(error)
            done += 1
    await asyncio.gather(*(one() for _ in range(8)))
    return f"worked {done} {len(failed)}"

COMMANDS = {"use": use, "work": work}
asyncio.run(main())
"""


class Member:
    """A process with a pool."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self, command: str) -> Callable[[], str]:
        """Have it do something; what is returned waits for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self.line

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(20) == 0


class Fleet:
    """A coordinator, and members here and there."""

    def __init__(self, site: Site, directory: Path, keys: tuple[Path, Path], database: str) -> None:
        self.site, self.home, self.keys = site, directory, keys
        self.directory = nobody_has_joined(directory, "hosts")
        self.uri = site.uri(database)
        self.port = free_port()
        self._stack = ExitStack()

    @contextmanager
    def running(self, term: float) -> Iterator[None]:
        options = ["--name", "hosts", "--max-size", str(BUDGET), "--term", str(term)]
        options += ["--bind", f"tcp://{self.site.talk.ip}:{self.port}", "--curve-keys", str(self.keys[0])]
        with subprocess.Popen(
            [*CTL, "coordinator", *options],
            env=run_environment(self.home, {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as self._coordinator:
            try:
                with self._stack:
                    yield
            finally:
                self._coordinator.terminate()
                assert self._coordinator.wait(10) == 0
                assert self._coordinator.stderr is not None
                self.last_words = self._coordinator.stderr.read()

    def member(self, host: Host | None = None, port: int | None = None) -> Member:
        """A process on `host`, or on the coordinator's own. It may have to be waited for: `line()` gives "started"."""
        settings = {"PYSQLX_COORDINATOR": f"ipc://{self.directory}/coordinator.sock"}
        if host is not None:
            address = f"tcp://{self.site.talk.ip}:{port or self.port}"
            settings = {"PYSQLX_COORDINATOR": address, "PYSQLX_CURVE_KEYS": str(self.keys[1])}
        process = subprocess.Popen(
            [*(host.command if host is not None else []), sys.executable, "-c", MEMBER, self.uri],
            env=run_environment(self.home, settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(_end, process)
        return Member(process)

    def members(self, host: Host, port: int | None = None) -> tuple[Member, Member]:
        """One on the coordinator's own host and one on `host`, which have started."""
        here, remote = self.member(), self.member(host, port)
        assert (here.line(), remote.line()) == ("started", "started")
        return here, remote

    def send(self, number: signal.Signals) -> None:
        """To the coordinator."""
        self._coordinator.send_signal(number)

    def said(self, text: str) -> str:
        """The coordinator's next line with `text` in it; waits for it."""
        assert self._coordinator.stderr is not None
        for line in self._coordinator.stderr:
            if text in line:
                return line
        raise AssertionError(f"the coordinator ended without saying {text!r}")

    def status(self) -> Json:
        return ask(self.directory / "control.sock", {"op": "status"})


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait(10)
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()


@pytest.fixture(scope="module")
def place() -> Iterator[Site]:
    with ExitStack() as stack:
        try:
            found = stack.enter_context(site(hosts=2))
        except NoNamespacesError as error:
            pytest.skip(str(error))
        yield found


@pytest.fixture
def database(place: Site, tmp_path: Path) -> Iterator[Database]:
    with postgresql_database(place.server, f"hosts_{tmp_path.name[-20:].lower()}") as fresh:
        yield fresh


@contextmanager
def fleet(place: Site, directory: Path, database: Database, term: float = TERM) -> Iterator[tuple[Fleet, Samples]]:
    """A coordinator, and how many sessions the server has at every moment."""
    keys = write_keys(directory / "keys")
    made = Fleet(place, directory, keys, database.uri.rpartition("/")[2])
    with watching(database) as samples:
        with made.running(term):
            yield made, samples
    assert samples.most <= BUDGET, samples


def test_processes_of_three_hosts_share_one_budget(place: Site, database: Database, tmp_path: Path) -> None:
    with fleet(place, tmp_path, database) as (hosts, samples):
        members = [hosts.member(), *(hosts.member(host) for host in place.hosts)]
        assert [member.line() for member in members] == ["started"] * 3
        budget = hosts.status()["budgets"]
        assert [(one["size"], one["reserved"]) for one in budget] == [(BUDGET, 1)]  # one database, named alike by all
        answers = [member.ask("work 2") for member in members]
        for answer in answers:
            word, done, failed = answer().split()
            assert (word, failed) == ("worked", "0")
            assert int(done) > 50
        assert members[1].ask("use 4")() == "used 4"  # what the others have is recalled over the network
        for member in members:
            member.leave()
        samples.wait_for(0)
        assert samples.seen[4] > 0, samples


def test_while_its_link_is_cut_a_process_loses_its_connections_to_others_and_comes_back_by_itself(
    place: Site, database: Database, tmp_path: Path
) -> None:
    there = place.hosts[0]
    with fleet(place, tmp_path, database) as (hosts, samples):
        here, remote = hosts.members(there)
        assert remote.ask("use 3")() == "used 3"  # and they stay with it, idle
        there.cut(there.talk)
        try:
            wants_all = here.ask("use 5")
            hosts.said("counted as dead")
            assert wants_all() == "used 5"  # through its first connection the others' sessions were ended
            # It still reaches the database, and may open nothing: who wants a connection waits.
            waits = remote.ask("use 2")
            assert here.ask("use 5")() == "used 5"
        finally:
            there.heal(there.talk)
        assert waits() == "used 2"
        assert samples.most == BUDGET, samples
        assert {worker["pid"] for worker in hosts.status()["workers"]} == {here.process.pid, remote.process.pid}
        here.leave()
        remote.leave()


def test_a_cut_that_nobody_else_can_act_on_costs_nothing(place: Site, database: Database, tmp_path: Path) -> None:
    there = place.hosts[0]
    with fleet(place, tmp_path, database) as (hosts, samples):
        remote = hosts.member(there)
        assert remote.line() == "started"
        assert remote.ask("use 4")() == "used 4"
        there.cut(there.talk)
        try:
            hosts.said("counted as dead")
            assert hosts.status()["budgets"][0]["quarantined"] == 4
            assert remote.ask("use 4")() == "used 4"  # nobody was there to end its sessions
        finally:
            there.heal(there.talk)
        newcomer = hosts.member()
        assert newcomer.line() == "started"
        assert newcomer.ask("use 4")() == "used 4"
        assert samples.most <= BUDGET, samples
        newcomer.leave()
        remote.leave()


def test_under_load_no_cut_makes_the_server_see_more_than_the_budget(
    place: Site, database: Database, tmp_path: Path
) -> None:
    first, second = place.hosts
    with fleet(place, tmp_path, database) as (hosts, samples):
        members = [hosts.member(), hosts.member(first), hosts.member(second)]
        assert [member.line() for member in members] == ["started"] * 3
        answers = [member.ask("work 6") for member in members]
        first.cut(first.talk)
        second.cut(second.talk, second.data)
        try:
            hosts.said("counted as dead")
            hosts.said("counted as dead")
        finally:
            first.heal(first.talk)
            second.heal(second.talk, second.data)
        for member, answer in zip(members, answers, strict=True):
            word, done, failed = answer().split()
            assert word == "worked"
            assert int(done) > 50
            # Only what was in flight when its session was ended.
            assert int(failed) <= (0 if member is members[0] else 4), (members.index(member), done, failed)
        assert samples.most <= BUDGET, samples
        for member in members:
            member.leave()


def test_leases_of_killed_processes_come_back_after_the_term(place: Site, database: Database, tmp_path: Path) -> None:
    first, second = place.hosts
    with fleet(place, tmp_path, database) as (hosts, samples):
        here, killed, lost = hosts.member(), hosts.member(first), hosts.member(second)
        assert [member.line() for member in (here, killed, lost)] == ["started"] * 3
        assert killed.ask("use 2")() == "used 2"
        second.cut(second.talk, second.data)  # the server is not told that this one's connection ends
        try:
            began = time.monotonic()
            killed.process.send_signal(signal.SIGKILL)
            lost.process.send_signal(signal.SIGKILL)
            assert here.ask("use 5")() == "used 5"
            assert time.monotonic() - began < TERM + 1 + 5
            assert hosts.status()["budgets"][0]["quarantined"] == 0
        finally:
            second.heal(second.talk, second.data)
        here.leave()
        samples.wait_for(BUDGET)


def test_a_process_that_was_stopped_for_longer_than_its_term_goes_on_without_an_error(
    place: Site, database: Database, tmp_path: Path
) -> None:
    with fleet(place, tmp_path, database) as (hosts, samples):
        here, remote = hosts.members(place.hosts[0])
        assert remote.ask("use 3")() == "used 3"
        remote.process.send_signal(signal.SIGSTOP)
        try:
            assert here.ask("use 5")() == "used 5"  # with those of the stopped one
            answer = remote.ask("use 4")  # the first that it reads when it goes on
        finally:
            remote.process.send_signal(signal.SIGCONT)
        assert answer() == "used 4"
        assert samples.most == BUDGET, samples
        here.leave()
        remote.leave()


def test_a_coordinator_that_was_stopped_for_longer_than_the_term_takes_nobody_for_dead(
    place: Site, database: Database, tmp_path: Path
) -> None:
    with fleet(place, tmp_path, database) as (hosts, samples):
        here, remote = hosts.members(place.hosts[0])
        assert remote.ask("use 3")() == "used 3"
        hosts.send(signal.SIGSTOP)
        try:
            answers = [remote.ask("work 6"), here.ask("work 4")]
            assert answers.pop()().endswith(" 0")
        finally:
            hosts.send(signal.SIGCONT)
        assert answers.pop()().endswith(" 0")
        assert here.ask("use 4")() == "used 4"  # all that is not kept in reserve: it grants again
        here.leave()
        remote.leave()
    assert "counted as dead" not in hosts.last_words
    assert samples.most <= BUDGET, samples


@pytest.mark.thorough
def test_a_slow_link_makes_growth_slow_and_nothing_else(place: Site, database: Database, tmp_path: Path) -> None:
    with fleet(place, tmp_path, database, term=3.0) as (hosts, samples):
        with FaultProxy(hosts.port, place.talk.ip) as proxy:
            proxy.delay = 0.2
            here, remote = hosts.members(place.hosts[0], proxy.port)
            began = time.monotonic()
            assert remote.ask("use 4")() == "used 4"
            grown = time.monotonic()
            assert remote.ask("use 4")() == "used 4"
            again = time.monotonic()
            assert grown - began > 0.4  # there and back
            assert again - grown < 0.2  # what it has needs no message
            answers = [member.ask("work 2") for member in (here, remote)]
            for answer in answers:
                word, done, failed = answer().split()
                assert (word, failed) == ("worked", "0")
                assert int(done) > 20
            here.leave()
            remote.leave()
        assert samples.most <= BUDGET, samples
