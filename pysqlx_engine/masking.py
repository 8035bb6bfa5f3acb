"""What may be shown of a text that holds a database URI: all but its passwords.

All of it takes time in proportion to the text: it runs in event loops, on texts of others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote

__all__ = ["mask_uri", "mask_uris"]

_LONGEST = 4096
"""Characters of a URI within a text. Nothing of a longer one is shown."""

_OPTION = re.compile(r"[?&]([^=&?]*)=")
_OPTION_VALUE = re.compile(r"[^&]*")
_SECRET = re.compile(r"(?i)password|passwd|pwd|secret|token|odbc_connect|^key$")
_PROPERTY = re.compile(r";([^=;]*)=")
_PROPERTY_VALUE = re.compile(r"\s*+\{(?:[^}]|\}\})*+\}?|[^;]*")
_SECRET_PROPERTY = re.compile(r"(?i)password|pwd|secret|token")
_SQL_SERVER = re.compile(r"(?i)(?:jdbc:)?[a-z0-9+.-]{0,30}sqlserver://")
_PORT = re.compile(r"\d{1,5}\s*")


def mask_uri(text: str) -> str:
    """`text`, a URI or what was meant to be one, with *** for every password in it.

    It would rather hide too much than too little: where a password's end cannot be told (an unescaped / or ? or @ in
    it), everything up to the last @ is hidden.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    if scheme.lower() not in ("sqlite", "file") and not text.lower().startswith(("sqlite:", "file:")):
        credentials, at, server = rest.rpartition("@")
        user, colon, _ = credentials.partition(":")
        if at and colon:
            rest = f"{user}:***@{server}"
    shown = _mask_no_port(f"{scheme}{separator}{rest}")
    shown = _mask_values(shown, _OPTION, lambda key: _SECRET.search(unquote(key)) is not None, _OPTION_VALUE)
    return _mask_values(shown, _PROPERTY, lambda key: _SECRET_PROPERTY.search(key) is not None, _PROPERTY_VALUE)


def _mask_no_port(text: str) -> str:
    """What stands for a SQL Server's port and is no number may be a password, e.g. of a URI written as for
    PostgreSQL."""
    if not _SQL_SERVER.match(text):
        return text
    head, semicolon, properties = text.partition(";")
    begin = head.index("://") + 3
    colon = head.find(":", max(begin, head.rfind("]")))  # those of an address of IPv6 are in brackets
    if colon < 0 or colon + 1 == len(head) or _PORT.fullmatch(head, colon + 1):
        return text
    return f"{head[: colon + 1]}***{semicolon}{properties}"


def _mask_values(text: str, key: re.Pattern[str], is_secret: Callable[[str], bool], value: re.Pattern[str]) -> str:
    shown, end = [], 0
    for found in key.finditer(text):
        if found.start() >= end and is_secret(found[1]):
            shown += [text[end : found.end()], "***"]
            masked = value.match(text, found.end())
            end = masked.end() if masked else found.end()
    return "".join([*shown, text[end:]])


_URI = re.compile(r"://(?:\{[^}\n]{0,200}\}|[^\s'\"`<>])+")
_SCHEME = re.compile(r"(?i)[a-z0-9+.-]+$")
_LONGEST_SCHEME = 30
# Of what a web server is asked for, only the credentials are hidden.
_WEB_CREDENTIALS = re.compile(r"(?i)(https?://)([^\s'\"`<>/?#]*)@")
# A blank or a quotation mark in a password is where a URI would end. What looks like a port is none.
_DATABASE = (
    r"(?:postgres(?:ql)?|cockroachdb|mysql|mariadb|sqlserver|mssql|oracle|rediss?|mongodb|amqps?)(?:\+\w{1,30})?"
)
_PORT_IN_TEXT = r"\d{1,5}(?:[/?,;:.)\]}>\n]|['\"`](?!\w)|$)"
_ODD_PASSWORD = re.compile(
    rf"(?i)({_DATABASE}://[^:/?#\s@'\"]{{0,100}}:)(?!{_PORT_IN_TEXT})(?!\*\*\*@)"
    r"([^\n@]{0,400}(?:@[^\s'\"`<>]{0,400})?)@"
)
_ODD = re.compile(r"[\s'\"`<>]")


def mask_uris(text: str) -> str:
    """`text`, of which any part may be a URI, with *** for every password in one, whatever it is a URI of. What only a
    web server understands is left alone, such as the token with which people are to open a page."""
    if "://" not in text:
        return text
    text = _WEB_CREDENTIALS.sub(_mask_web, _ODD_PASSWORD.sub(_mask_odd, text))
    shown, end = [], 0
    separator = text.find("://")
    while separator >= 0:
        scheme = _SCHEME.search(text, max(end, separator - _LONGEST_SCHEME), separator)
        begin = scheme.start() if scheme else separator
        is_web = text[begin:separator].lower().endswith(("http", "https"))
        uri = None if is_web else _URI.match(text, separator)
        past = separator + 3
        if uri is not None:
            past = uri.end()
            found = text[begin:past] if past - begin <= _LONGEST else f"{text[begin:separator]}://***"
            shown += [text[end:begin], mask_uri(found)]
            end = past
        separator = text.find("://", past)
    return "".join([*shown, text[end:]])


def _mask_web(found: re.Match[str]) -> str:
    user, colon, _ = found[2].partition(":")
    return f"{found[1]}{user}:***@" if colon else f"{found[1]}***@"


def _mask_odd(found: re.Match[str]) -> str:
    return f"{found[1]}***@" if _ODD.search(found[2]) else found[0]
