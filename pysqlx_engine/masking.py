"""What may be shown of a text that holds a database URI: all but its passwords.

All of it takes time in proportion to the text: it runs in event loops, on texts of others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote

__all__ = ["mask_uri", "mask_uris"]

_OPTION = re.compile(r"[?&]([^=&?]*)=")
_OPTION_VALUE = re.compile(r"[^&]*")
_SECRET = re.compile(r"(?i)password|passwd|passphrase|sslpass|pwd|secret|token|odbc_connect|^key$")
_PROPERTY = re.compile(r";([^=;]*)=")
_PROPERTY_VALUE = re.compile(r"(?:\s*+\{(?:[^}]|\}\})*+\}?)?[^;]*")
_SECRET_PROPERTY = re.compile(r"(?i)password|pwd|secret|token")

_IPV6 = r"\[[\da-fA-F:.%]*\]"
# Punctuation may follow: a sentence goes on behind a URI. *** is what was masked before.
_PORT = r"(?:\d{1,5}|\*\*\*)\s*[.:!)\]}]*(?:[/?#;,\\\x1b]|$)"
_NO_PORT = re.compile(rf"((?:{_IPV6}|[^:/?#;])*+:)(?!{_PORT}|\s*$).*?(?=;[^=;]*=|$)", re.DOTALL)
"""A server with something else for its port, up to SQL Server's properties."""


def mask_uri(text: str) -> str:
    """`text`, a URI or what was meant to be one, with *** for every password in it.

    It would rather hide too much than too little: where a password's end cannot be told (an unescaped / or ? or @ in
    it), everything up to the last @ is hidden; where there is no @, what stands in the port's place and is no number.
    """
    return _mask_password(_mask_values(text))  # in a value's place an @ is part of it


def _mask_password(text: str) -> str:
    """All but the values of options and properties."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    if scheme.lower() in ("sqlite", "file") or text.lower().removeprefix("jdbc:").startswith(("sqlite:", "file:")):
        return text
    credentials, at, server = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    if colon:
        credentials = f"{user}:***"
    elif scheme.lower() not in ("http", "https"):
        server = _NO_PORT.sub(r"\1***", server, count=1) if _NO_PORT.match(server) else server
    return f"{scheme}{separator}{credentials}{at}{server}"


def _mask_values(text: str) -> str:
    text = _mask_each(text, _OPTION, lambda key: _SECRET.search(unquote(key)) is not None, _OPTION_VALUE)
    return _mask_each(text, _PROPERTY, lambda key: _SECRET_PROPERTY.search(key) is not None, _PROPERTY_VALUE)


def _mask_each(text: str, key: re.Pattern[str], is_secret: Callable[[str], bool], value: re.Pattern[str]) -> str:
    shown, end = [], 0
    for found in key.finditer(text):
        if found.start() >= end and is_secret(found[1]):
            shown += [text[end : found.end()], "***"]
            masked = value.match(text, found.end())
            end = masked.end() if masked else found.end()
    return "".join([*shown, text[end:]])


# -- within a text ----------------------------------------------------------------------------------------------------

_LONGEST = 4096
"""Characters of a URI within a text. Nothing of a longer one is shown."""
_LONGEST_SCHEME = 30
_SCHEME = re.compile(r"(?i)(?:jdbc:)?[a-z][a-z0-9+.-]*\Z")

_RUN = r"(?:\{[^}\n]{0,200}\}|[^\s'\"`<>])"
"""What a URI consists of, as long as all is well."""
_URI = re.compile(rf"{_RUN}*")
# A blank or a quotation mark ends it. Where a single word with an @ follows, both are rather a password.
_PORT_IN_TEXT = rf"(?!\d{{0,5}}[ \t'\"`<>]+[^\s@]{{0,100}}@)(?:{_PORT}|(?:\d{{1,5}}|\*\*\*)[.:!)\]}}]*[\s'\"`<>]|\s|$)"
_ODD = re.compile(
    rf"(?:{_IPV6}|[^:/?#;'\"`<>]){{0,100}}+:(?!\*\*\*@|{_PORT_IN_TEXT})(?:[^@]|@(?![\w\[{{%/:])){{0,400}}+@{_RUN}*"
)
"""One with a blank or a quotation mark in its user or password."""
# Directly behind a colon it ends no URI in a program's text: the password is put there. Nor does an apostrophe.
_CLOSING = {quote: re.compile(rf"(?<!:){quote}(?![\w@])") for quote in "'\"`"}
_WEB_CREDENTIALS = re.compile(r"([^\s'\"`<>/?#]*)@")


def mask_uris(text: str) -> str:
    """`text`, of which any part may be a URI, with *** for every password in one, whatever it is a URI of. What only a
    web server understands is left alone, such as the token with which people are to open a page."""
    shown, end = [], 0
    while (separator := text.find("://", end)) >= 0:
        begin = _scheme_begins(text, end, separator)
        shown.append(text[end:begin])
        is_web = text[begin:separator].lower() in ("http", "https")
        masked, end = (_mask_web if is_web else _mask_database)(text, begin, separator + 3)
        shown.append(masked)
    return "".join([*shown, text[end:]])


def _scheme_begins(text: str, after: int, separator: int) -> int:
    scheme = _SCHEME.search(text, max(after, separator - _LONGEST_SCHEME), separator)
    return scheme.start() if scheme else separator


def _mask_web(text: str, begin: int, host: int) -> tuple[str, int]:
    """What is shown of a URI up to its server, and where that begins in the text."""
    found = _WEB_CREDENTIALS.match(text, host)
    if found is None:
        return text[begin:host], host
    user, colon, _ = found[1].partition(":")
    return text[begin:host] + (f"{user}:***@" if colon else "***@"), found.end()


def _mask_database(text: str, begin: int, host: int) -> tuple[str, int]:
    """What is shown from a URI on to the end of its line, or to where it certainly ends, and where that is."""
    end = _end(_URI.match(text, host), host)
    following = text.find("://", end)
    limit = len(text) if following < 0 else _scheme_begins(text, end, following)
    newline = text.find("\n", end, limit)
    limit = limit if newline < 0 else newline
    closing = _CLOSING.get(text[max(begin - 1, 0) : begin])
    found = closing.search(text, host, limit) if closing else None
    limit = found.start() if found else limit
    line = text[begin:limit].rstrip()
    shown = _mask_values(line)
    end = max(_end(pattern.match(shown, host - begin), 0) for pattern in (_URI, _ODD))
    uri = shown[:end] if end <= _LONGEST else f"{text[begin:host]}***"
    return _mask_password(uri) + shown[end:], begin + len(line)


def _end(found: re.Match[str] | None, otherwise: int) -> int:
    return found.end() if found else otherwise
