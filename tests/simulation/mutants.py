"""Each rule that keeps the budget is broken once, on purpose, in a copy of the source; the simulation has to notice.

    python -m tests.simulation.mutants             all of them
    python -m tests.simulation.mutants NAME ...    these

A mutant that lives means that the simulation does not look where that rule matters.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
EVENTS = 2_000_000
"""After so many events without a failure a mutant counts as alive."""


@dataclass(frozen=True)
class Mutant:
    name: str
    """What is not so any more."""
    file: str
    old: str
    new: str
    weather: str | None = None
    """Where it matters most, for less time to be spent until it is noticed."""

    def apply(self, directory: Path) -> None:
        """Patch the copy of the source in `directory`. Raises AssertionError when the source is not as expected."""
        path = directory / "pysqlx_engine" / self.file
        source = path.read_text()
        assert source.count(self.old) == 1, f"{self.name}: {source.count(self.old)} places in {self.file}"
        path.write_text(source.replace(self.old, self.new))


MUTANTS = (
    # 1: the budget
    Mutant(
        "never more is granted than is free",
        "workers/ledger.py",
        "for _ in range(count):",
        "for _ in range(count + 1):",
    ),
    Mutant(
        "what is in quarantine is charged",
        "workers/ledger.py",
        "return self.held + len(self.quarantined)",
        "return self.held",
    ),
    Mutant(
        "a lease is charged until its connection is closed, not until it is being closed",
        "workers/ledger.py",
        "            pool.closing[held.lease] = self.now\n            _settle(pool)",
        "            budget.release(pool, held.lease)\n            _settle(pool)",
    ),
    Mutant(
        "a lease is for one connection",
        "pool/core.py",
        "return self._plan(Effects(give_back=[conn.lease]))",
        "self.spare.append(conn.lease)\n        return self._plan()",
    ),
    Mutant(
        "a dead process's leases wait for the server",
        "workers/ledger.py",
        "budget.quarantine(Orphan(held, key, self.now, local))",
        "self._record_returned(budget, key, [held])",
    ),
    Mutant(
        "what was granted and not named yet is looked for",
        "workers/orphans.py",
        "verdict = Verdict.HELD if unnamed else Verdict.RESET",
        "verdict = Verdict.GONE",
    ),
    Mutant(
        "what a lost host was granted and has not named is waited for",
        "workers/orphans.py",
        "now - orphan.since >= UNNAMED",
        "now - orphan.since >= 0",
        "slow",
    ),
    # the wire
    Mutant(
        "the same packet is taken once by a process",
        "workers/membership.py",
        "or packet.number <= self._taken:\n"
        "            return  # late, of a coordinator that is no more, or a copy\n"
        "        if packet.number > self._taken + 1:\n"
        "            self._hello_again()  # what is between was perhaps a lease\n"
        "            return\n"
        "        self._taken = packet.number\n",
        "or packet.number < 0:\n"
        "            return\n"
        "        if packet.number > self._taken + 1:\n"
        "            self._hello_again()\n"
        "            return\n"
        "        self._taken = max(self._taken, packet.number)\n",
        "copies",
    ),
    Mutant(
        "an old hello is not taken",
        "workers/fleet.py",
        "if hello.session <= last:",
        "if hello.session < 0:",
        "storm",
    ),
    Mutant(
        "what was to be said before a hello is not said after it",
        "workers/fleet.py",
        "self.ledger.outbox = [(to, message) for to, message in self.ledger.outbox if to != name]",
        "pass",
    ),
    Mutant(
        "the same packet is taken once by the coordinator",
        "workers/fleet.py",
        "or packet.number <= member.taken:\n"
        "            self.dropped += 1  # late, or a copy\n"
        "        elif packet.number > member.taken + 1:\n"
        "            self.dropped += 1\n"
        "            self._lost(name, member, packet.session)\n"
        "        else:\n"
        "            member.taken = packet.number\n",
        "or packet.number < 0:\n"
        "            self.dropped += 1\n"
        "        elif packet.number > member.taken + 1:\n"
        "            self.dropped += 1\n"
        "            self._lost(name, member, packet.session)\n"
        "        else:\n"
        "            member.taken = max(member.taken, packet.number)\n",
        "copies",
    ),
    Mutant(
        "a packet of an earlier session is not taken by a process",
        "workers/membership.py",
        "or packet.session != self._session or",
        "or",
        "storm",
    ),
    Mutant(
        "a hello to a former coordinator is not taken",
        "workers/coordinator_core.py",
        "if hello.epoch != fleet.epoch:",
        "if False:",
    ),
    # the term
    Mutant(
        "nothing is opened after the term",
        "workers/leased_budget.py",
        "if not self._link.may_open():",
        "if False:",
        "slow",
    ),
    Mutant(
        "what the coordinator has not heard of is closed when the term is over",
        "workers/leased_budget.py",
        "        if unnamed:\n",
        "        if False:\n",
        "slow",
    ),
    # 2: nothing lost
    Mutant(
        "a process that misses a packet says hello again",
        "workers/membership.py",
        "            self._hello_again()  # what is between was perhaps a lease\n            return\n",
        "            pass\n",
        "slow",
    ),
    Mutant(
        "a hello without an answer is said again",
        "workers/membership.py",
        "self._hello_at = now + self._pause * self._chance.uniform(0.5, 1)",
        "self._hello_at = None",
    ),
    Mutant(
        "the sessions of a lost host are ended through a process that lives",
        "workers/orphans.py",
        "self._ledger.have_ended(budget, due)",
        "pass",
    ),
    # 3: progress
    Mutant(
        "first come, first served",
        "pool/core.py",
        "waiter = next(iter(self.waiters))",
        "waiter = next(reversed(self.waiters))",
    ),
    Mutant(
        "leases are asked back",
        "workers/ledger.py",
        "            if pool.ceiling != target:\n",
        "            if pool.ceiling != target and target >= pool.held:\n",
    ),
    Mutant(
        "who does not yield is passed over",
        "workers/ledger.py",
        "if pool.owes_since is not None and self._took_long(pool.owes_since)}",
        "if False}",
    ),
    # 5: the coordinator's outage
    Mutant(
        "what a silent process held stays charged",
        "workers/coordinator_core.py",
        "            self.ledger.recover(database, key,",
        "            if key[0] not in alive:\n                self.ledger.recover(database, key,",
    ),
    Mutant(
        "nothing is granted before it is known who holds what, where the journal is lost",
        "workers/fleet.py",
        "if self.expected or unknown:",
        "if self.expected:",
        "forgetful",
    ),
    Mutant(
        "a grant is in the journal",
        "workers/ledger.py",
        '            self.records.append(Record("granted", budget.database, pool.key, held))\n',
        "",
    ),
    Mutant(
        "the journal is written before anything is said",
        "workers/coordinator_core.py",
        "        if not self._remember():\n",
        "        self._late = getattr(self, '_late', 0) + 1\n"
        "        if self._late % 3 == 0 and not self._remember():\n",
    ),
    Mutant(
        "what is claimed in a hello is charged",
        "workers/ledger.py",
        "            pool.leases[held.lease] = held\n            if held.state is LeaseState.CLOSING:",
        "            if held.state is LeaseState.CLOSING:\n                pool.leases[held.lease] = held",
    ),
)


def survives(mutant: Mutant) -> str | None:
    """None when the simulation notices; else what it printed."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for part in ("pysqlx_engine", "tests/simulation"):
            shutil.copytree(ROOT / part, directory / part, ignore=shutil.ignore_patterns("__pycache__"))
        (directory / "tests" / "__init__.py").touch()
        mutant.apply(directory)
        command = [
            sys.executable,
            "-m",
            "tests.simulation",
            "--first",
            "1",
            "--events",
            str(EVENTS),
            "--processes",
            "1",
        ]
        if mutant.weather is not None:
            command += ["--weather", mutant.weather]
        environment = os.environ | {"PYTHONPATH": name}
        done = subprocess.run(command, cwd=name, env=environment, capture_output=True, text=True, check=False)
        return None if done.returncode == 1 and "BROKEN" in done.stdout else done.stdout + done.stderr


def survivors(mutants: tuple[Mutant, ...]) -> Iterator[tuple[Mutant, str | None]]:
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        yield from zip(mutants, executor.map(survives, mutants), strict=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a mutant, or a part of its name")
    options = parser.parse_args()
    chosen = tuple(one for one in MUTANTS if not options.names or any(name in one.name for name in options.names))
    alive = 0
    for mutant, output in survivors(chosen):
        print(f"{'noticed' if output is None else 'ALIVE  '}  {mutant.name}", flush=True)
        if output is not None:
            alive += 1
            print(output)
    return int(bool(alive))


if __name__ == "__main__":
    sys.exit(main())
