"""Database URIs: which database one names, what the driver wants to be given, and what may be shown of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from ..errors import ConnectError
from ..masking import mask_uri

Provider = Literal["postgresql", "mysql", "sqlserver", "sqlite"]

INVALID_URI = "PYSQLX006"
"""The code of the ConnectError for a URI that cannot be used, whatever the server does."""

_ACCEPTED = (
    "accepted are postgresql://USER:PASSWORD@HOST:PORT/DATABASE (also postgres://), "
    "mysql://USER:PASSWORD@HOST:PORT/DATABASE (also mariadb://), "
    "sqlserver://HOST:PORT;user=USER;password=PASSWORD;database=DATABASE and sqlite:PATH (also file:PATH)"
)
_PROVIDERS: dict[str, Provider] = {
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "mysql": "mysql",
    "mariadb": "mysql",
    "sqlserver": "sqlserver",
    "sqlite": "sqlite",
    "file": "sqlite",
}
_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "sqlserver": 1433}
_LOOPBACK = "127.0.0.1"
_LOOPBACK_NAMES = frozenset({"", "localhost", "::1", "0.0.0.0", "::"})


@dataclass(frozen=True, slots=True)
class DatabaseURI:
    """A parsed URI.

    `identity` names the database, however its URI is written: it is what a budget belongs to. None for a database in
    memory, which is each connection's own. `masked` is the only form that may be shown; `driver_uri` is what the
    driver takes and contains the password. `host` and `port` are where the server listens (None for SQLite and, the
    port, for a named SQL Server instance), `path` is the absolute path of an SQLite file.
    """

    provider: Provider
    driver_uri: str = field(repr=False)
    identity: str | None
    masked: str
    host: str | None = None
    port: int | None = None
    path: str | None = None


def parse_uri(uri: str) -> DatabaseURI:
    """Parse a database URI as the user wrote it. Raises ConnectError when no database can be meant by it."""
    if not isinstance(uri, str):
        raise ConnectError(INVALID_URI, f"the database URI must be a str, not {type(uri).__name__}: {_ACCEPTED}")
    text = uri.strip()
    if not text:
        raise ConnectError(INVALID_URI, f"the database URI is empty: {_ACCEPTED}")
    if not text.isprintable():
        raise ConnectError(INVALID_URI, f"the database URI {mask_uri(text)!r} contains unprintable characters")
    scheme, colon, rest = text.removeprefix("jdbc:").partition(":")
    provider = _PROVIDERS.get(scheme.lower())
    if not colon or provider is None:
        raise ConnectError(INVALID_URI, f"unknown database provider in the URI {mask_uri(text)!r}: {_ACCEPTED}")
    if provider == "sqlite":
        return _sqlite(text, rest)
    if not rest.startswith("//"):
        raise _invalid(text, f"{scheme}: must be followed by //")
    return _sqlserver(text, rest) if provider == "sqlserver" else _url(provider, text, rest)


def with_option(uri: DatabaseURI, key: str, value: str) -> DatabaseURI:
    """The same database with one connection option more, unless the user's URI states that option itself."""
    if uri.provider == "sqlserver":
        _, properties = _split_properties(uri.driver_uri)
        if key.lower() in properties:
            return uri
        return replace(uri, driver_uri=f"{uri.driver_uri.rstrip(';')};{key}={_brace(value)}")
    base, _, query = uri.driver_uri.partition("?")
    if key in _options(query):
        return uri
    options = f"{query}&" if query else ""
    return replace(uri, driver_uri=f"{base}?{options}{key}={quote(value, safe='')}")


# A password that begins with digits looks like a port, up to the / or ? or # in it. After a ?, an @ may be in an
# option, as long as no path follows.
_CUT_PASSWORD = re.compile(r"//[^/?#@]*:\d*(?:/[^?#@]*@|[/?#][^=@]*@|#[^@]*@|\?[^@]*@[^@?#]*/)")


def _invalid(text: str, reason: str) -> ConnectError:
    return ConnectError(
        INVALID_URI,
        f"the database URI {mask_uri(text)!r} cannot be used: {reason} "
        "(in a user name or password, write / ? # @ : as %2F %3F %23 %40 %3A)",
    )


def _url(provider: Provider, text: str, rest: str) -> DatabaseURI:
    """PostgreSQL and MySQL."""
    if _CUT_PASSWORD.match(rest):
        raise _invalid(text, "its password ends too soon")
    rest = rest.partition("#")[0]  # the driver drops a fragment as well
    try:
        parts = urlsplit(f"{provider}:{rest}")
        host, port = unquote(parts.hostname or ""), parts.port
    except ValueError:  # its text would show part of an unescaped password
        raise _invalid(text, "its host or port is not readable") from None
    if not host and "@" in parts.netloc:
        raise _invalid(text, "there is no host after the @")
    options = _options(parts.query)
    # A Unix socket is stated in an option; the host of the URI is not used then.
    socket = options.get("host" if provider == "postgresql" else "socket", "")
    if socket and provider == "postgresql" and not socket.startswith("/"):
        host, socket = socket, ""
    if socket or host.startswith("/"):
        host = _LOOPBACK
    host, port = _same_host(host), port or _DEFAULT_PORTS[provider]
    database = unquote(parts.path.removeprefix("/").partition("/")[0])
    if not database:
        # What the driver does: without any path its own default, with an empty path the server's, the user's name.
        database = {"postgresql": "postgres", "mysql": "mysql"}[provider]
        if provider == "postgresql" and parts.path:
            database = unquote(parts.username or "")
    return DatabaseURI(
        provider=provider,
        driver_uri=f"{provider}:{rest}",
        identity=f"{provider}://{_in_uri(host)}:{port}/{database}",
        masked=mask_uri(text),
        host=host,
        port=port,
    )


def _sqlserver(text: str, rest: str) -> DatabaseURI:
    address, properties = _split_properties(rest.removeprefix("//"))
    host, backslash, instance = (address or properties.get("servername", "")).partition("\\")
    port: int | None = None
    if not backslash:
        host, _, number = host.rpartition(":") if ":" in host and not host.endswith("]") else (host, "", "")
        number = number or properties.get("port", properties.get("portnumber", ""))
        if number and (not number.isdecimal() or int(number) > 65535):
            raise _invalid(text, "its port is not a number up to 65535")  # it may be a password in the wrong place
        port = int(number) if number else _DEFAULT_PORTS["sqlserver"]
    host = _same_host(host.strip("[]"))
    database = "master"
    for name in ("databasename", "initial catalog", "initialcatalog", "database"):
        database = properties.get(name, database)
    place = f"{_in_uri(host)}:{port}" if port else f"{_in_uri(host)}\\{instance.lower()}"
    return DatabaseURI(
        provider="sqlserver",
        driver_uri=f"sqlserver:{rest}",
        identity=f"sqlserver://{place}/{database}",
        masked=mask_uri(text),
        host=host,
        port=port,
    )


def _sqlite(text: str, rest: str) -> DatabaseURI:
    path, question, options = rest.partition("?")
    if path.startswith("//"):
        # sqlite:///absolute is common; sqlite://dev.db would be /dev.db to the driver and dev.db to its reader.
        if not path.startswith("///"):
            raise _invalid(text, "write sqlite:dev.db for a relative path, sqlite:/data/dev.db for an absolute one")
        path = path[2:]
    if not path:
        raise _invalid(text, "it names no file; write sqlite:dev.db, or sqlite::memory: for a database in memory")
    suffix = question + options
    if path == ":memory:":
        return DatabaseURI("sqlite", f"file::memory:{suffix}", None, mask_uri(text))
    # Absolute from here on: the working directory may change between now and the next connection.
    absolute = os.path.abspath(path)
    identity = f"sqlite:{os.path.realpath(absolute)}"
    return DatabaseURI("sqlite", f"file:{absolute}{suffix}", identity, mask_uri(text), path=absolute)


def _options(query: str) -> dict[str, str]:
    pairs = (option.partition("=") for option in query.split("&") if option)
    return {unquote(key): unquote(value.replace("+", " ")) for key, _, value in pairs}


def _same_host(host: str) -> str:
    """One name for one server: lower case, without the dot of a fully qualified name, loopback names alike."""
    name = host.lower().rstrip(".")
    return _LOOPBACK if name in _LOOPBACK_NAMES or re.fullmatch(r"127(\.\d+){3}", name) else name


def _in_uri(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _split_properties(text: str) -> tuple[str, dict[str, str]]:
    """`HOST:PORT;key=value;key={va;lue}` as the address and the properties, keys in lower case."""
    address, _, rest = text.partition(";")
    found = re.findall(r"([^=;]+)=(\{(?:[^}]|\}\})*\}|[^;]*)", rest)
    return address, {key.strip().lower(): _unbrace(value.strip()) for key, value in found}


def _brace(value: str) -> str:
    return "{" + value.replace("}", "}}") + "}"


def _unbrace(value: str) -> str:
    return value[1:-1].replace("}}", "}") if value.startswith("{") and value.endswith("}") else value
