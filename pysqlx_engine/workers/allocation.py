"""How many connections each pool may have while somebody waits: integer max-min fairness over demand.

What holds of `allocate(size, claims)`, and is tested property by property:

- bounded: the targets add up to at most `size`, and none is negative;
- work-conserving: when the demands add up to `size` or more, the targets add up to exactly `size`; otherwise every
  pool's target covers its demand;
- max-min fair: nobody gets less than its demand while somebody else gets more than one above it;
- lazy: what is left over stays where it is, the richest giving first; nothing moves that nobody needs;
- deterministic: it depends on nothing but its arguments, and not on the order of the claims;
- stable: once every pool holds its target, asking again with the same demands changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Claim(NamedTuple):
    key: tuple[str, int]
    """Identifies the pool; breaks ties, so that the outcome does not depend on the order of the claims."""
    demand: int
    """Connections in use, and waiters."""
    held: int
    """Leases that it holds."""
    since: int
    """Grows with every pool that begins to wait: the smallest has waited longest."""


def allocate(size: int, claims: Sequence[Claim]) -> dict[tuple[str, int], int]:
    """The number of leases each pool should hold, out of `size`."""
    demands = {claim.key: claim.demand for claim in claims}
    fair = _fill(size, demands, _remainder_first(size, claims))
    left = size - sum(fair.values())
    # Only where demand is below the size is anything left. It stays with those that hold more than they need.
    surplus = {claim.key: max(0, claim.held - fair[claim.key]) for claim in claims}
    kept = _fill(left, surplus, lambda key: (-surplus[key], key))
    return {key: fair[key] + kept[key] for key in fair}


def _fill(
    size: int, wants: dict[tuple[str, int], int], first: Callable[[tuple[str, int]], object]
) -> dict[tuple[str, int], int]:
    """Raise everybody's level together until `size` is used up or the wants are met; what does not divide goes one by
    one in the order of `first`."""
    filled = dict.fromkeys(wants, 0)
    open_ = [key for key, want in wants.items() if want > 0]
    left = max(0, size)
    while open_ and left >= len(open_):
        step = min(left // len(open_), *(wants[key] - filled[key] for key in open_))
        for key in open_:
            filled[key] += step
        left -= step * len(open_)
        open_ = [key for key in open_ if filled[key] < wants[key]]
    for key in sorted(open_, key=first)[:left]:  # type: ignore[arg-type]
        filled[key] += 1
    return filled


def _remainder_first(size: int, claims: Sequence[Claim]) -> Callable[[tuple[str, int]], object]:
    """Who gets one of the connections that do not divide evenly.

    Those who hold more already, so that nothing moves back and forth. But when there is not even one for everybody,
    that rule would let the others starve for ever: then those come first who hold nothing, the longest waiting first,
    and the connections go round.
    """
    by_key = {claim.key: claim for claim in claims}
    if size < sum(1 for claim in claims if claim.demand > 0):
        return lambda key: (by_key[key].held > 0, by_key[key].since, key)
    return lambda key: (-by_key[key].held, by_key[key].since, key)
