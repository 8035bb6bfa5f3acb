"""The coordinator's side of every membership: who has joined, what of theirs is heard, and who is taken for dead.

A state machine around the ledger, without I/O, clock or thread: `coordinator` is its shell, which tells it the time,
what arrived and which process died, and sends what it says once the journal has it.

What makes bad input harmless is here: a packet counts only if it is of this epoch, of its sender's present session and
the next in it. Whatever is late, doubled, out of order or made up is dropped, and who has really missed something is
asked to say `Hello` again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .ledger import Ledger, MemberId
from .membership import MARGIN
from .messages import (
    Ask,
    Ceiling,
    CoordinatorPacket,
    Denied,
    End,
    FromCoordinator,
    Hello,
    Lost,
    ProcessPacket,
    ToPool,
    Unwelcome,
    Welcome,
)

TERM = 6.0
"""Seconds without a sign of life after which a process that the kernel does not tell us about counts as dead, unless
the settings say otherwise."""
LEARNING = 2.0
"""Seconds that a restarted coordinator waits for a member that lives but does not report, before it grants to others.
What the journal says of the silent one stays charged."""
RELAX = 0.05
"""Seconds that ceilings stay after the last waiter was served: moving a connection costs a close and a connect."""
LOST_AGAIN = 0.2
"""Seconds between two requests to say `Hello` again: more would be answered as often."""
LISTENS = 0.5
"""Seconds after which time is looked at again while anybody's silence would mean something. When twice as many have
passed, the coordinator was not running: what was said to it meanwhile waits to be read."""
STRANGERS = 1_000
"""Senders that are no members, whose last answer is remembered."""
MOST_MESSAGES = 500
"""In one packet, so that it stays below the size that is accepted."""


@dataclass(slots=True)
class Member:
    """A process that joined, or that the journal names."""

    pid: int
    started: int
    local: bool
    """Whether the kernel tells us of its death. Else it has a term."""
    heard: float
    """When it gave its last sign of life."""
    joined: float
    session: int = 0
    """0 until it has said hello to this coordinator."""
    taken: int = 0
    sent: int = 0
    """Numbers of the last packets of this session."""
    worker: int | None = None
    restarts: int = 0
    lost_at: float = float("-inf")
    peer: int | None = None
    """The pid that the kernel says is at the other end of its connection, where it says so."""
    missed: bool = False
    """Whether something was dropped that was said to it, or by it: it has to say hello again."""
    term: float = TERM
    """The term that it goes by, perhaps still a former coordinator's: so long it may believe that it can open
    connections."""


@dataclass(slots=True)
class Fleet:
    epoch: int
    ledger: Ledger
    term: float = TERM
    members: dict[MemberId, Member] = field(default_factory=dict)
    expected: set[MemberId] = field(default_factory=set)
    """Members that the journal names, that may live, and that have not said hello yet."""
    joined: list[tuple[MemberId, Member]] = field(default_factory=list)
    left: list[MemberId] = field(default_factory=list)
    """For the journal, in this order, before the ledger's records."""
    notices: list[str] = field(default_factory=list)
    dropped: int = 0
    """Packets that were not taken."""
    _now: float = 0.0
    _outbox: list[tuple[MemberId, FromCoordinator]] = field(default_factory=list)
    _waits: bool = False
    """Whether, while we learn, anybody may be there whom we do not know of."""
    _relax_due: float | None = None
    _learning_due: float | None = None
    _term_due: float | None = None
    """Before that no member's term ends: signs of life only move it further."""
    _ticked: float = float("-inf")
    _deaf_until: float = 0.0
    """Before that nobody's silence says anything."""
    _unanswered: dict[MemberId, None] = field(default_factory=dict)
    """Members of other hosts that have to hear that they were heard."""
    _missing: dict[MemberId, int] = field(default_factory=dict)
    """Members whose session lacks a packet, and that are to be told so a moment after the last time."""
    _answered: dict[MemberId, float] = field(default_factory=dict)
    """When somebody who is no member got an answer."""
    _expired: dict[MemberId, int] = field(default_factory=dict)
    """The last session of members that were taken for dead, as long as leases of theirs are quarantined."""

    # -- time -----------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        self._now = self.ledger.now = now

    def due(self) -> float | None:
        """When `tick` has something to do; call it after each event as well. To be asked when all has been decided."""
        times = [self._relax_due, self.ledger.look_at]
        if self._relax_due is None and self.ledger.relaxable:
            times.append(self._now)
        times += [self.members[name].lost_at + LOST_AGAIN for name in self._missing]
        ends = [time for time in (self._learning_due, self._term_due) if time is not None]
        if ends:
            times += [max(min(ends), self._deaf_until), self._ticked + LISTENS]
        return min((time for time in times if time is not None), default=None)

    def tick(self) -> None:
        """What events have led to, and what time alone brings about."""
        now, ledger = self._now, self.ledger
        ledger.decide()  # whether anybody waits is known when what is free has been granted
        if now - self._ticked > 2 * LISTENS:
            self._deaf_until = now + MARGIN
        self._ticked = now
        if self._learning_due is not None and (
            now >= max(self._learning_due, self._deaf_until) or not (self.expected or self._waits)
        ):
            for silent in ledger.silent_members():
                self.notices.append(f"process {silent} has not reported; what it held stays charged")
            self._learning_due = None
            ledger.start_granting()
        if self._term_due is not None and now >= max(self._term_due, self._deaf_until):
            self._end_terms()
        for name, session in list(self._missing.items()):
            self._lost(name, self.members[name], session)
        ledger.look_again()
        if not ledger.relaxable:
            self._relax_due = None
        elif self._relax_due is None:
            self._relax_due = now + RELAX
        elif now >= self._relax_due:
            self._relax_due = None
            ledger.relax()
        if self._expired and not ledger.has_orphans:
            self._expired.clear()

    def _end_terms(self) -> None:
        for name, member in list(self.members.items()):
            if not member.local and self._now >= _term_ends(member):
                self.notices.append(
                    f"process {name} was not heard for {self._now - member.heard:.1f} s; counted as dead"
                )
                self.died(name)
        ends = [_term_ends(member) for member in self.members.values() if not member.local]
        self._term_due = min(ends, default=None)

    def _watch_term(self, member: Member) -> None:
        if not member.local:  # terms differ: it may end before those of who was here already
            ends = _term_ends(member)
            self._term_due = ends if self._term_due is None else min(self._term_due, ends)

    # -- a new coordinator ----------------------------------------------------------------------------------------

    def learn(self, members: Iterable[tuple[MemberId, Member]], *, unknown: bool, remote: bool) -> None:
        """Grant nothing before it is known who holds what. `members` are those that the journal names and that may
        live; the ledger was told what they held. `unknown`: there may be others, because the journal may be lost;
        `remote`: also on other hosts."""
        for name, member in members:
            self.members[name] = member
            self.expected.add(name)
            self._watch_term(member)
        self._waits, self._ticked = unknown, self._now
        if self.expected or unknown:
            self.ledger.granting = False
            self._learning_due = self._now + (self.term + MARGIN if unknown and remote else LEARNING)
        else:
            self.ledger.start_granting()  # of what the journal says, this forgets the budgets that nobody uses any more

    # -- members come and go --------------------------------------------------------------------------------------

    def hello(self, name: MemberId, hello: Hello, *, local: bool, peer: int | None = None) -> bool:
        """A process joins, or says anew all that it holds. `local`: its death will be told by `died`. False: it is
        late, or a copy."""
        member = self.members.get(name)
        last = member.session if member is not None else self._expired.get(name, 0)
        if hello.session <= last:
            self.dropped += 1
            return False
        if member is None:
            member = self.members[name] = Member(hello.pid, hello.started, local, self._now, self._now, term=self.term)
            self._answered.pop(name, None)
            self.joined.append((name, member))
            if local:
                # A process has one link. That its pid has another member means that it has replaced itself (execv): the
                # connections of its former image are closed, and no death will tell.
                for other, its in list(self.members.items()):
                    if other != name and its.local and (its.pid, its.started) == (hello.pid, hello.started):
                        self.died(other)
        elif member.term < self.term:  # a former coordinator's was shorter; a longer one counts until it has our answer
            self._tell_term(name, member)
        self._expired.pop(name, None)
        member.session, member.taken, member.sent = hello.session, 0, 0
        member.heard = self._now
        self._watch_term(member)
        self._missing.pop(name, None)
        member.peer, member.missed = peer, False
        member.worker, member.restarts = hello.worker, hello.restarts
        self.expected.discard(name)
        # What could not be said yet is of before: what it claims now is what it holds.
        self.ledger.outbox = [(to, message) for to, message in self.ledger.outbox if to != name]
        self._outbox = [(to, message) for to, message in self._outbox if to != name]
        self._outbox.append((name, Welcome(self.epoch, hello.session, None if member.local else self.term)))
        self.ledger.rejoined(name, hello.pools, local=member.local)
        return True

    def tell_epoch(self, name: MemberId, session: int) -> None:
        """Somebody said hello with another epoch than ours. It may be an old one, said to a coordinator that is no
        more: whoever said it now will say it again."""
        if self._may_answer(name):
            self._outbox.append((name, Lost(self.epoch, session)))

    def _tell_term(self, name: MemberId, member: Member) -> None:
        member.term = self.term
        if self._term_due is not None:  # it may be over earlier now
            self._term_due = min(self._term_due, _term_ends(member))
        if not member.local:
            self.joined.append((name, member))  # for the journal, which has it with a former coordinator's term

    def refuse(self, name: MemberId, reason: str) -> None:
        if self._may_answer(name):
            self._outbox.append((name, Unwelcome(self.epoch, reason)))

    def _may_answer(self, name: MemberId) -> bool:
        """Whether one who is no member gets an answer now: what is sent to one who never reads stays with us."""
        if self._now - self._answered.get(name, float("-inf")) < LOST_AGAIN:
            return False
        if len(self._answered) >= STRANGERS:
            self._answered.clear()
        self._answered[name] = self._now
        return True

    def missed(self, name: MemberId) -> None:
        """Something was not sent to a process, because so much waits for it already, or something of it was not heard,
        because it said too much. It is asked to say `Hello` until it does, and told nothing else before: the next
        packet, which would show what is missing, may never come."""
        member = self.members.get(name)
        if member is not None:
            member.missed = True
            self._missing[name] = member.session

    def died(self, name: MemberId) -> None:
        """The kernel says that a process is dead, or its term has ended."""
        member = self.members.pop(name, None)
        if member is None:
            return
        self.left.append(name)
        self._missing.pop(name, None)
        self.expected.discard(name)
        if not member.local:
            self._expired[name] = member.session
        self.ledger.dead(name, local=member.local)

    # -- what they say --------------------------------------------------------------------------------------------

    def packet(self, name: MemberId, packet: ProcessPacket) -> None:
        member = self.members.get(name)
        if member is None or not member.session or packet.session > member.session or member.missed:
            self.dropped += 1  # its hello did not reach us
            self._lost(name, member, packet.session)
        elif packet.epoch != self.epoch or packet.session < member.session or packet.number <= member.taken:
            self.dropped += 1  # late, or a copy
        elif packet.number > member.taken + 1:
            self.dropped += 1
            self._lost(name, member, packet.session)
        else:
            member.taken = packet.number
            member.heard = self._now
            if member.term > self.term:
                self._tell_term(name, member)
            if not member.local:
                self._unanswered[name] = None
            for message in packet.messages:
                self.ledger.take(name, message, local=member.local)

    def _lost(self, name: MemberId, member: Member | None, session: int) -> None:
        if member is not None:
            if self._now - member.lost_at < LOST_AGAIN:
                self._missing[name] = session
                return
            member.lost_at = self._now
            if not member.missed:  # else again and again: perhaps it does not read yet
                self._missing.pop(name, None)
        elif not self._may_answer(name):
            return
        self._outbox.append((name, Lost(self.epoch, session)))

    def wait_to_say(self) -> None:
        """Nothing can be said for now. What a later word makes void, or is asked for again, is left out: it could
        become more without end."""
        last: dict[object, int] = {
            (to, type(message), message.pool): place
            for place, (to, message) in enumerate(self.ledger.outbox)
            if isinstance(message, (Ask, Ceiling, Denied))
        }
        self.ledger.outbox = [
            (to, message)
            for place, (to, message) in enumerate(self.ledger.outbox)
            if last.get((to, type(message), message.pool), place) == place and not isinstance(message, End)
        ]
        self._outbox = list({(to, type(message)): (to, message) for to, message in self._outbox}.values())

    # -- what is said to them -------------------------------------------------------------------------------------

    def say(self) -> list[tuple[MemberId, FromCoordinator]]:
        """What has to be sent, in order, after the journal was written."""
        said, self._outbox = self._outbox, []
        messages: dict[MemberId, list[ToPool]] = {name: [] for name in self._unanswered}
        self._unanswered.clear()
        for name, message in self.ledger.outbox:
            messages.setdefault(name, []).append(message)
        self.ledger.outbox = []
        for name, of_one in messages.items():
            member = self.members.get(name)
            if member is None or not member.session or member.missed:
                continue  # it is dead, or will state what it holds
            for start in range(0, len(of_one) or 1, MOST_MESSAGES):
                member.sent += 1
                part = of_one[start : start + MOST_MESSAGES]
                said.append((name, CoordinatorPacket(self.epoch, member.session, member.sent, member.taken, part)))
        return said


def _term_ends(member: Member) -> float:
    return member.heard + member.term + MARGIN
