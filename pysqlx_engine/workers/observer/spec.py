"""What an observer is started with. Light: the supervisor imports it."""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
from dataclasses import dataclass, field

from ...errors import SettingsError
from ..logs import LogSpec
from ..rundir import RunDirectory
from .access import Access, is_loopback

DEFAULT = "127.0.0.1:8787"
"""Where the page is when nobody says where."""


@dataclass(frozen=True)
class Listening:
    """Sockets that are bound already: what cannot be had is found out before anything starts, and whoever connects
    while the observer is started again waits instead of being refused."""

    dashboard: socket.socket | None
    metrics: socket.socket | None
    access: Access
    generated: bool = False
    """Whether the token is one that nobody knows yet."""

    def close(self) -> None:
        """Nobody serves them any more: who connects is to be refused."""
        for bound in (self.dashboard, self.metrics):
            if bound is not None:
                bound.close()

    @property
    def url(self) -> str:
        """Where the page is, with the token if it has to be told."""
        assert self.dashboard is not None
        base = f"http://{shown(self.dashboard)}/"
        return f"{base}?token={self.access.token}" if self.generated else base


@dataclass(frozen=True)
class ObserverSpec:
    supervisor: int
    run: RunDirectory
    listening: Listening
    environment: dict[str, str] = field(repr=False)
    logs: LogSpec = field(default_factory=LogSpec)


def check_installed(*, dashboard: bool, metrics: bool) -> None:
    """Raises SettingsError where an extra of this package is needed and not there."""
    for wanted, extra, modules in (
        (dashboard, "dashboard", ("starlette", "uvicorn")),
        (metrics, "metrics", ("starlette", "uvicorn", "prometheus_client")),
    ):
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if wanted and missing:
            raise SettingsError(
                f"--{extra}: {' and '.join(missing)} not installed; install with: pip install 'pysqlx-engine[{extra}]'"
            )


def listen(dashboard: str | None, metrics: str | None, token: str | None, option: str = "--dashboard") -> Listening:
    """Bind what is wanted, as HOST:PORT; `option` is how the page's address was said. Raises SettingsError."""
    page = _bound(option, dashboard) if dashboard is not None else None
    numbers = page if metrics == dashboard else _bound("--metrics", metrics) if metrics is not None else None
    host = (dashboard or DEFAULT).rpartition(":")[0].strip("[]")
    generated = page is not None and token is None and not is_loopback(host)
    return Listening(
        page,
        None if numbers is page else numbers,
        Access(host, secrets.token_urlsafe(24) if generated else token),
        generated,
    )


def _bound(option: str, address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        if host == "*" and socket.has_dualstack_ipv6():
            host = "::"
        family, _, _, _, where = socket.getaddrinfo(
            None if host == "*" else host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # `create_server` has an IPv6 address for IPv6 alone, unless it is told otherwise.
        both = where[0] == "::" and socket.has_dualstack_ipv6()
        bound = socket.create_server(where, family=family, backlog=128, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that is longer than names may be
        # `create_server` adds the address to the text, which stands in front already.
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or error
        raise SettingsError(f"{option} {address}: cannot listen there: {reason}") from None
    bound.setblocking(False)
    return bound


def shown(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
