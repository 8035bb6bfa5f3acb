"""Who may see the page and press its buttons. Decided by what the request says alone.

- On loopback everybody of this machine may, unless a token was given. Elsewhere nobody without the token.
- A web page of somebody else, open in the same browser, may not: it would come with our cookie, or by a name that its
  owner has pointed to 127.0.0.1. So the Host has to be one that we are known by, and what changes something has to come
  from our own page.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

_LOOPBACK_NAMES = frozenset({"localhost"})


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in _LOOPBACK_NAMES


@dataclass(frozen=True)
class Request:
    """What is looked at of a request."""

    host: str
    """The header Host."""
    changes: bool
    origin: str | None = None
    """The header Origin."""
    token: str | None = field(default=None, repr=False)
    """That of the header Authorization, of the cookie, or of the address."""


@dataclass(frozen=True)
class Access:
    host: str
    """What we listen on."""
    token: str | None = field(repr=False)
    """Without it nobody may; None: everybody on loopback may."""

    def refusal(self, request: Request) -> tuple[int, str] | None:
        """None: it may. Else an HTTP status, and why."""
        if self.token is None and not is_loopback(_name(request.host)):
            return 403, "this page is for this machine alone: ask for it as localhost"
        if self.token is not None and not hmac.compare_digest((request.token or "").encode(), self.token.encode()):
            return 401, "a token is needed: open the address that was printed when the page was started"
        if request.changes and request.origin is not None and request.origin.partition("://")[2] != request.host:
            return 403, "only this page itself may change something"
        return None


def cookie_for(host: str) -> str:
    """What the cookie with the token is called. Cookies know no ports, and another page may be at another one."""
    # The end of an IPv6 address without a port, or whatever else a Host says: names of cookies have no brackets.
    return "pysqlx_token_" + "".join(re.findall(r"[a-zA-Z0-9.]", host.rpartition(":")[2]))


def cookie_value(token: str) -> str:
    """`token_of` reads it: a token may have signs that a cookie may not."""
    return quote(token, safe="")


def token_of(headers: Mapping[str, str], cookies: Mapping[str, str], query: Mapping[str, str]) -> str | None:
    """The first that is there."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    cookie = cookies.get(cookie_for(headers.get("host", "")))
    return query.get("token") or (None if cookie is None else unquote(cookie))


def _name(host: str) -> str:
    """A Host without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] or host
