"""Many worlds, one after the other and side by side, until there were enough events, or one is broken."""

from __future__ import annotations

import collections
import multiprocessing
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from .weather import COPIES, FORGETFUL, SLOW, STORM, Weather
from .world import World, quiet

RAM = Path("/dev/shm")


@dataclass
class Outcome:
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    worlds: int = 0
    served: int = 0
    broken: dict[int, str] = field(default_factory=dict)
    """What was wrong, by seed."""

    @property
    def events(self) -> int:
        return sum(self.counts.values())

    def add(self, other: Outcome) -> None:
        self.counts += other.counts
        self.worlds += other.worlds
        self.served += other.served
        self.broken |= other.broken

    def table(self) -> str:
        lines = [f"{kind:<40}{count:>12,}" for kind, count in sorted(self.counts.items(), key=lambda item: -item[1])]
        return "\n".join(
            [*lines, f"{'events':<40}{self.events:>12,}", f"{self.worlds:,} worlds, {self.served:,} users served"]
        )


WEATHERS = {"slow": (0, SLOW), "forgetful": (3, FORGETFUL), "storm": (5, STORM), "copies": (7, COPIES)}
"""Of the seeds that end with this digit."""


def run_one(seed: int) -> Outcome:
    """The world of this seed."""
    quiet()
    weather = dict(WEATHERS.values()).get(seed % 10, Weather())
    with tempfile.TemporaryDirectory(dir=RAM if RAM.is_dir() else None) as directory:
        outcome = Outcome(worlds=1)
        world: World | None = None
        try:
            world = World(seed, Path(directory) / "journal", weather)
            world.run()
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            outcome.broken[seed] = f"{type(error).__name__} in {frame.name}: {error}"
        if world is not None:
            outcome.counts, outcome.served = world.counts, world.served
        return outcome


def run_many(
    first_seed: int, *, events: int, processes: int = 1, until: float = float("inf"), weather: str | None = None
) -> Outcome:
    """Seed after seed from `first_seed` on, until there were so many `events`, the clock shows `until`, or a world is
    broken. `weather`: only those with this one."""
    total, seed, step = Outcome(), first_seed, 1
    if weather is not None:
        seed, step = first_seed // 10 * 10 + WEATHERS[weather][0], 10
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pending: collections.deque[multiprocessing.pool.AsyncResult[Outcome]] = collections.deque()
        while total.events < events and time.monotonic() < until and not total.broken:
            while len(pending) < 2 * processes:
                pending.append(pool.apply_async(run_one, (seed,)))
                seed += step
            total.add(pending.popleft().get())
    return total
