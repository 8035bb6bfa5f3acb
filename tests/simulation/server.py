"""The database servers: what they have, and that it is never more than the budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysqlx_engine.engine.sockets import Endpoints
from pysqlx_engine.engine.uri import DatabaseURI, parse_uri
from pysqlx_engine.pool.budget import Lease

if TYPE_CHECKING:
    from .process import Process
    from .world import World


class Broken(AssertionError):
    """An invariant does not hold."""


class Session:
    """What a server has for one connection."""

    __slots__ = ("address", "ended", "lease", "process", "server_id")

    def __init__(self, server_id: int, process: Process, address: Endpoints, lease: Lease) -> None:
        self.server_id, self.process, self.address, self.lease = server_id, process, address, lease
        self.ended = False


class Server:
    """One database server. It counts, and nobody else does."""

    def __init__(self, world: World, number: int, size: int) -> None:
        self.world, self.size = world, size
        uri = parse_uri(f"postgresql://user@db{number}.example:5432/shop")
        assert uri.identity is not None
        self.uri: DatabaseURI = uri
        self.identity: str = uri.identity
        self.sessions: dict[Endpoints, Session] = {}
        self.down = False

    def connect(self, session: Session) -> None:
        self.sessions[session.address] = session
        self.world.count("connect")
        if len(self.sessions) > self.size:
            raise Broken(f"{len(self.sessions)} sessions at {self.identity}, a budget of {self.size}")
        if session.lease in self.world.coordinator.freed:
            raise Broken(
                f"{session.process.name} opens a connection under lease {session.lease}, which was free before"
            )
        charged = self.world.coordinator.charged(self.identity)
        for one in self.sessions.values() if charged is not None else ():
            if one.lease not in charged:
                raise Broken(
                    f"a session of {one.process.name} at {self.identity} under a lease that nobody is charged with"
                )

    def end(self, session: Session) -> None:
        session.ended = True
        if self.sessions.pop(session.address, None) is not None:
            self.world.count("session ends")
