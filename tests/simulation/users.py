"""Whoever wants connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pool import SimPool
    from .server import Server
    from .world import World


class User:
    """Somebody who wants a connection to `server` again and again, mostly in one process."""

    def __init__(self, world: World, server: Server) -> None:
        self.world, self.server = world, server
        self.pool: SimPool | None = None

    def think(self) -> None:
        """Until the next time."""
        self.world.at(self.world.now + self.world.chance.expovariate(1 / self.world.weather.think), self.ask)

    def ask(self) -> None:
        world, pool = self.world, self.pool
        if world.calm:
            return
        if pool is None or not pool.is_open or world.chance.random() < 0.03:
            able = world.pools(self.server)
            pool = self.pool = world.chance.choice(able) if able else None
        if pool is None:
            self.think()
        else:
            pool.process.run(lambda: pool.arrive(self))


class Greedy(User):
    """Somebody who wants a connection of one pool so many times, without a pause."""

    def __init__(self, world: World, pool: SimPool, times: float = float("inf"), holds: float = 0.0) -> None:
        super().__init__(world, pool.server)
        self.pool: SimPool = pool
        self.times = times
        self.holds = holds
        self.served = False
        self.think()

    def think(self) -> None:
        self.world.at(self.world.now + 0.001, self.ask)

    def ask(self) -> None:
        if self.times > 0:
            self.times -= 1
            self.pool.process.run(lambda: self.pool.arrive(self))
