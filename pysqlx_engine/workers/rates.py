"""How much one sender may have the coordinator do. Counted before a message is read, joined or not."""

from __future__ import annotations

from dataclasses import dataclass

RATE = 10_000.0
"""Points that a sender gets a second; as many can be saved up."""
BYTES = 200
"""Bytes of a message that count as much as a message itself."""
SENDERS = 20_000
"""Senders that are remembered, before those that have saved up all they can are forgotten."""


@dataclass(slots=True)
class _Bucket:
    points: float
    at: float
    told: bool = False


class RateBound:
    """A bucket of points for each sender. A message costs one, and one for each `BYTES` of it."""

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
