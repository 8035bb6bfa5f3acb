"""How much one sender may have the coordinator do, joined or not, and how much others can have it log."""

from __future__ import annotations

from dataclasses import dataclass

from .messages import Attach, FromProcess, Hello, PoolClaim, shown

RATE = 10_000.0
"""Points that a sender gets a second; as many can be saved up."""
BYTES = 200
"""Bytes of a message that count as much as a message itself."""
HELLO = 100.0
POOL = 10.0
"""Points for a `Hello`, and for each pool that is stated; a lease of it is one."""
SAID = 0.25
"""Points for each message in a packet."""
LINES = 20.0
"""Lines of one kind that are logged at once."""
LINE_EVERY = 10.0
"""Seconds after which one more is."""
SENDERS = 20_000
"""Senders that are remembered, before those that have saved up all they can are forgotten."""


@dataclass(slots=True)
class _Bucket:
    points: float
    at: float
    told: bool = False


class RateBound:
    """A bucket of points for each sender. A message costs one, and one for each `BYTES` of it, before it is read. What
    is in it, see `work`, is charged after that, and may leave the bucket in debt."""

    def __init__(self) -> None:
        self._buckets: dict[bytes, _Bucket] = {}

    def allows(self, sender: bytes, size: int, now: float) -> bool:
        """Whether a message of `size` bytes may be read now; it is paid for then."""
        bucket = self._buckets.get(sender)
        if bucket is None:
            self._forget(now)
            bucket = self._buckets[sender] = _Bucket(RATE, now)
        bucket.points = min(RATE, bucket.points + (now - bucket.at) * RATE)
        bucket.at = now
        cost = 1 + size / BYTES
        if bucket.points < cost and bucket.points < RATE:  # what costs more than anybody can save up is for one in full
            return False
        bucket.points -= cost
        return True

    def charge(self, sender: bytes, points: float) -> None:
        """For what a message that was allowed has made us do."""
        self._buckets[sender].points -= points

    def first_refusal(self, sender: bytes) -> bool:
        """Whether this sender is refused for the first time: said once, not as often as it is refused."""
        bucket = self._buckets[sender]
        first, bucket.told = not bucket.told, True
        return first

    def _forget(self, now: float) -> None:
        if len(self._buckets) < SENDERS:
            return
        for sender, bucket in list(self._buckets.items()):
            if bucket.points + (now - bucket.at) * RATE >= RATE:
                del self._buckets[sender]


def claims(message: FromProcess) -> bool:
    """Whether it states what pools hold."""
    return isinstance(message, Hello) or any(isinstance(said, Attach) for said in message.messages)


def work(message: FromProcess) -> float:
    """Points for what is to be done about `message`, beyond reading it."""
    if isinstance(message, Hello):
        return HELLO + sum(_of_claim(claim) for claim in message.pools)
    return sum(_of_claim(said.claim) if isinstance(said, Attach) else SAID for said in message.messages)


def _of_claim(claim: PoolClaim) -> float:
    return POOL + len(claim.leases)


class LogBound:
    """How many lines of one kind are logged: what others send could fill the disk with what we say of it."""

    def __init__(self) -> None:
        self._lines = LINES
        self._at = 0.0
        self._left_out = 0

    def line(self, text: str, now: float) -> str | None:
        """`text` as it is to be logged, or None: there were too many."""
        self._lines = min(LINES, self._lines + max(0.0, now - self._at) / LINE_EVERY)
        self._at = now
        if self._lines < 1:
            self._left_out += 1
            return None
        self._lines -= 1
        left_out, self._left_out = self._left_out, 0
        return shown(text) + (f" ({left_out} lines like this one were left out)" if left_out else "")
