"""How many jobs come from which queue, where a dispatcher serves several."""

from __future__ import annotations

from collections.abc import Collection, Mapping


class Shares:
    """Gives each queue its part of what is claimed, by its weight. What does not divide is made up for the next time,
    so that the parts are right in the long run, also of ones."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = dict(weights)
        self._due = dict.fromkeys(weights, 0.0)

    def split(self, jobs: int, queues: Collection[str]) -> dict[str, int]:
        """So many jobs among those `queues` that have some, the one with the largest claim first."""
        weights = {queue: self._weights[queue] for queue in queues}
        if not weights or jobs <= 0:
            return {}
        total = sum(weights.values())
        due = {queue: self._due[queue] + jobs * weight / total for queue, weight in weights.items()}
        parts = {queue: max(0, int(part)) for queue, part in due.items()}
        order = sorted(weights, key=lambda queue: due[queue] - parts[queue], reverse=True)
        left = jobs - sum(parts.values())
        while left > 0:
            for queue in order[:left]:
                parts[queue] += 1
            left = jobs - sum(parts.values())
        for queue in sorted(parts, key=lambda queue: parts[queue], reverse=True):
            if left < 0:  # old claims that came together
                taken = min(parts[queue], -left)
                parts[queue] -= taken
                left += taken
        for queue in weights:
            self._due[queue] = min(1.0, max(-1.0, due[queue] - parts[queue]))
        return {queue: parts[queue] for queue in sorted(weights, key=lambda queue: -parts[queue]) if parts[queue]}
