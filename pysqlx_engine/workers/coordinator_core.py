"""What a coordinator does with what it hears, in which order: fleet, ledger, orphans and journal together.

No socket, no clock, no thread: `coordinator` is the process around it. Whatever happens is told by an event; then
`flush` writes the journal and gives what has to be sent, in this order and no other.
"""

from __future__ import annotations

from typing import Protocol

from ..log_config import part
from .fleet import TERM, Fleet, Member
from .journal import Journal
from .journal import Member as Remembered
from .ledger import Ledger, MemberId
from .messages import MOST_LEASES, VERSION, FromCoordinator, FromProcess, Hello
from .orphans import Kernel, Orphans
from .rates import LogBound

logger = part("coordinator")

JOURNAL_AGAIN = 0.2
"""Seconds between two attempts to write the journal, while the disk is full."""


class Host(Kernel, Protocol):
    """The host that the coordinator runs on."""

    @property
    def identity(self) -> str:
        """As `Hello.host` has it: whoever says the same is a process that `watch` can find."""

    def watch(self, name: MemberId, pid: int, started: int) -> bool:
        """Have the kernel tell when the process dies. False if it is dead, or the pid is somebody else's by now. Raises
        OSError where that cannot be told now."""

    def forget(self, name: MemberId) -> None:
        """Watch it no more."""

    def bind(self, name: MemberId, sender: str) -> None:
        """What is said to `name` goes to this sender from now on, and what comes from it is of `name`."""

    def unbind(self, name: MemberId) -> None:
        """Nobody has this name any more."""


class CoordinatorCore:
    """`supervised`: no process of this host can have joined before who is not in the journal. `remote`: processes of
    other hosts may join; they outlive a coordinator, a supervisor and a journal. `term`: what those are told."""

    def __init__(
        self,
        epoch: int,
        operator_size: int | None,
        journal: Journal,
        host: Host,
        now: float,
        *,
        supervised: bool,
        remote: bool,
        term: float = TERM,
    ) -> None:
        self.ledger = Ledger(operator_size, epoch << 31)
        self.fleet = Fleet(epoch, self.ledger, term)
        self.orphans = Orphans(self.ledger, host)
        self._journal = journal
        self._host = host
        self._watched: set[MemberId] = set()
        self._notices = LogBound()
        self._journal_due: float | None = None
        """When to try again; None while the journal can be written."""
        self.now = now
        self._learning = journal.lost and (remote or not supervised)
        """Whether anybody may be there whom we do not know of, and who is waited for."""
        self._recover(unknown=self._learning, remote=remote)
        self._remember()  # whatever becomes of us

    @property
    def now(self) -> float:
        return self.fleet.now

    @now.setter
    def now(self, now: float) -> None:
        """To be set before each event."""
        self.fleet.now = now

    # -- events ---------------------------------------------------------------------------------------------------

    def received(self, sender: str, message: FromProcess, peer: int | None = None) -> None:
        """`sender`: the name of the member that it is bound to, else any that is no member's. `peer`: its pid, where
        the kernel says it."""
        if isinstance(message, Hello):
            self._hello(sender, message, peer)
        else:
            self.fleet.packet(sender, message)

    def _hello(self, sender: str, hello: Hello, peer: int | None) -> None:
        fleet, name = self.fleet, hello.name
        if hello.version != VERSION:
            self.refuse_version(sender, hello.version)
            return
        if hello.epoch != fleet.epoch:
            fleet.tell_epoch(sender, hello.session)
            return
        local = hello.host == self._host.identity
        if local and peer is not None and peer != hello.pid:
            fleet.refuse(sender, f"the coordinator sees that this is process {peer}, and not {hello.pid} as it says")
            return
        member = fleet.members.get(name)
        if member is not None and not _is_same(member, hello, peer):
            fleet.refuse(sender, f"the name {name} is another process's")
            return
        if sum(len(claim.leases) for claim in hello.pools) > MOST_LEASES:
            fleet.refuse(sender, f"no process may hold more than {MOST_LEASES} leases")
            return
        if local and name not in self._watched:
            try:
                watched = self._host.watch(name, hello.pid, hello.started)
            except OSError as error:
                fleet.notices.append(f"process {hello.pid} cannot be watched: {error.strerror}; it has to wait")
                return  # without an answer: it will say hello again
            if not watched:
                fleet.refuse(sender, f"the coordinator sees no process {hello.pid} that started when this one did")
                return
            self._watched.add(name)
        if fleet.hello(name, hello, local=local, peer=peer):
            self._host.bind(name, sender)

    def refuse_version(self, sender: str, version: int) -> None:
        self.fleet.refuse(sender, f"the coordinator speaks version {VERSION} of the protocol, this process {version}")

    def missed(self, name: MemberId) -> None:
        """What `flush` gave for this process could not be sent, or something that it said was not read."""
        self.fleet.missed(name)

    def died(self, name: MemberId) -> None:
        """The kernel says that a process is dead."""
        self.fleet.died(name)
        self._forget(name)
        self.orphans.more(self.now)

    def _forget(self, name: MemberId) -> None:
        if name in self._watched:
            self._watched.discard(name)
            self._host.forget(name)

    def due(self) -> float | None:
        """When `tick` has to be called although nothing happens."""
        times = (self.fleet.due(), self.orphans.due, self._journal_due)
        return min((time for time in times if time is not None), default=None)

    def tick(self) -> None:
        """What time brings about. To be called after each event as well, or after several that came at once."""
        self.fleet.tick()
        if self.ledger.has_orphans and self.orphans.due is None:
            self.orphans.more(self.now)
        if self.orphans.due is not None and self.now >= self.orphans.due:
            self.orphans.look(self.now)

    # -- what comes of them ---------------------------------------------------------------------------------------

    def flush(self) -> list[tuple[MemberId, FromCoordinator]]:
        """First remember, then say: gives what has to be sent. What cannot be remembered waits with all that would be
        said after it."""
        fleet, ledger = self.fleet, self.ledger
        ledger.decide()  # what `tick` has brought about
        if self._learning and ledger.granting:
            self._learning = False
            self._journal.learning(False)
        for name, member in fleet.joined:
            self._journal.joined(name, _remembered(member))
        for name in fleet.left:
            self._journal.left(name)
            self._forget(name)
            self._host.unbind(name)
        self._journal.write(ledger.records)
        for notice in (*fleet.notices, *ledger.notices):
            line = self._notices.line(notice, self.now)
            if line is not None:
                logger.warning("%s", line)
        for told in (fleet.joined, fleet.left, fleet.notices, ledger.records, ledger.notices):
            told.clear()
        if not self._remember():
            fleet.wait_to_say()
            return []
        return fleet.say()

    def _remember(self) -> bool:
        """Write the journal; False when it cannot be written now."""
        if self._journal_due is not None and self.now < self._journal_due:
            return False
        try:
            self._journal.flush()
        except OSError as error:
            if self._journal_due is None:
                logger.warning(
                    "cannot write the journal in %s: %s; open connections go on working, growth waits until it can be "
                    "written",
                    self._journal.path.parent, error.strerror,
                )  # fmt: skip
            self._journal_due = self.now + JOURNAL_AGAIN
            return False
        if self._journal_due is not None:
            logger.warning("the journal can be written again")
            self._journal_due = None
        return True

    # -- the start ------------------------------------------------------------------------------------------------

    def _recover(self, *, unknown: bool, remote: bool) -> None:
        """Learn from the journal who may hold what. The living report by themselves; the dead left orphans."""
        recovered, now = self._journal.recovered, self.now
        for database, (size, stated_by) in list(recovered.sizes.items()):
            self.ledger.recover_size(database, size, stated_by)
        alive: dict[MemberId, Member] = {}
        for name, process in list(recovered.members.items()):
            if process.remote:
                term = process.term or self.fleet.term
                alive[name] = Member(process.pid, process.started, local=False, heard=now, joined=now, term=term)
            elif self._host.watch(name, process.pid, process.started):
                self._watched.add(name)
                alive[name] = Member(process.pid, process.started, local=True, heard=now, joined=now)
            else:
                self._journal.left(name)
        dead = set()
        for (key, database), leases in recovered.held.items():
            local = key[0] not in recovered.remote
            self.ledger.recover(database, key, f"pool {key[1]} of {key[0]}", leases.values(), local=local)
            if key[0] not in alive:
                dead.add(key[0])
        for name in dead:
            self.ledger.dead(name, local=name not in recovered.remote)
        self.fleet.learn(alive.items(), unknown=unknown, remote=remote)
        self._journal.learning(unknown)


def _is_same(member: Member, hello: Hello, peer: int | None) -> bool:
    """Whether a hello is of the process that has joined under this name. Of one that the journal names we know only who
    it says it is."""
    if (member.pid, member.started) != (hello.pid, hello.started):
        return False
    return member.peer is None or peer is None or member.peer == peer


def _remembered(member: Member) -> Remembered:
    return (
        Remembered(member.pid, member.started)
        if member.local
        else Remembered(member.pid, member.started, remote=True, term=member.term)
    )
