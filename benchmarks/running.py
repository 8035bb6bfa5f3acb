"""Runs everybody in turn: round 1 of all, round 2 of all, ... so that a slow minute of the machine hits all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pysqlx_engine.workers.progress import Report

from .cases import Case
from .peers import PEERS, Peer, PeerError
from .servers import Servers

FAILURES_ALLOWED = 1
"""Rounds of a peer in a case that may fail before it is given up there: a worker that hangs does so for minutes."""


@dataclass
class Series:
    """The figures of one peer in one case, round by round; a round that gave none is missing."""

    case: Case
    peer: Peer
    rounds: int
    """How many there are to be."""
    figures: dict[int, float] = field(default_factory=dict)
    beside: dict[int, dict[str, int]] = field(default_factory=dict)
    """What has to be seen beside each figure: jobs that were lost, connections that were used, ..."""
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    cases: Sequence[Case]
    rounds: int
    slow_rounds: int
    durable_rounds: int
    seconds: float
    """How long one figure is measured, without start and warming up."""

    def series(self) -> list[Series]:
        return [Series(case, PEERS[peer], self._rounds(case, peer)) for case in self.cases for peer in case.peers]

    def _rounds(self, case: Case, peer: str) -> int:
        if case.durable:
            return self.durable_rounds
        if not case.slow:
            return self.rounds
        return self.slow_rounds if peer == "ours" else 1


def install(series: Sequence[Series], report: Report) -> dict[str, dict[str, str]]:
    """Build what the peers need. Returns the versions installed; who could not be installed has that as its failure."""
    versions: dict[str, dict[str, str]] = {}
    problems: dict[str, str] = {}
    peers = {one.peer.environment: one.peer for one in series}
    for done, peer in enumerate(peers.values()):
        report(f"installing {peer.environment}", done, len(peers))
        try:
            peer.install()
            versions[peer.environment] = peer.versions()
        except PeerError as error:
            problems[peer.environment] = f"not installed: {error}"
    for one in series:
        problem = problems.get(one.peer.environment)
        try:
            versions.setdefault(one.peer.environment, {}).update(one.peer.find_program())
        except PeerError as error:
            problem = str(error)
        if problem is not None:
            one.failures = [problem] * (FAILURES_ALLOWED + 1)
    return versions


def run(plan: Plan, series: Sequence[Series], servers: Servers, report: Report) -> None:
    """Fill `series`. A case's peers follow each other closely, a different one first in each round."""
    rounds = max(one.rounds for one in series)
    done, total = 0, sum(one.rounds for one in series)
    for number in range(rounds):
        for case in plan.cases:
            if case.name == "import":
                _warm_imports(series)
            for one in _rotated([one for one in series if one.case is case], number):
                if number >= one.rounds:
                    continue
                done += 1
                if len(one.failures) > FAILURES_ALLOWED:
                    continue
                report(f"round {number + 1} of {rounds}, {case.name}, {one.peer.name}", done - 1, total)
                try:
                    with servers.database(case) as uri:
                        one.figures[number], one.beside[number] = one.peer.measure(case, uri, plan.seconds)
                except PeerError as error:
                    one.failures.append(f"round {number + 1}: {error}")


def _warm_imports(series: Sequence[Series]) -> None:
    """Have byte code written and files cached, the sources may just have changed; what fails will fail again."""
    for one in series:
        if one.case.name == "import" and not one.failures:
            try:
                one.peer.measure(one.case, "", 0.0)
            except PeerError:
                continue


def _rotated(series: list[Series], by: int) -> Iterator[Series]:
    start = by % len(series)
    yield from series[start:]
    yield from series[:start]
