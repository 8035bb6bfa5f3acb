"""What may be shown of a text that holds a database URI: all but its passwords."""

from __future__ import annotations

import re
from urllib.parse import unquote

__all__ = ["mask_uri", "mask_uris"]

_OPTION = re.compile(r"([?&])([^=&]*)=([^&]*)")
_SECRET = re.compile(r"(?i)password|passwd|pwd|secret|token|^key$")
_SECRET_PROPERTY = re.compile(r"(?i)(;[^=;]*(?:password|pwd|secret|token)[^=;]*=)(?:\s*\{(?:[^}]|\}\})*\}?|[^;]*)")
# What stands for a SQL Server's port and is no number may be a password, e.g. of a URI written as for PostgreSQL.
_NO_PORT = re.compile(r"(?i)^((?:jdbc:)?sqlserver://[^;]*?:)(?!\d{1,5}\s*(?:;|$))[^;\]]+(?=;|$)")


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
    shown = _NO_PORT.sub(r"\1***", f"{scheme}{separator}{rest}")
    return _SECRET_PROPERTY.sub(r"\1***", _OPTION.sub(_mask_option, shown))


def _mask_option(option: re.Match[str]) -> str:
    before, key, value = option.groups()
    return f"{before}{key}={'***' if _SECRET.search(unquote(key)) else value}"


_DATABASE = r"(?:postgres(?:ql)?|mysql|mariadb|sqlserver)(?:\+\w+)?"
_IN_TEXT = re.compile(r"(?i)\b(?:jdbc:)?([a-z][a-z0-9+.-]{0,30})://(?:\{[^}\n]{0,200}\}|[^\s'\"`<>])+")
_DATABASE_SCHEME = re.compile(rf"(?i){_DATABASE}")
_CREDENTIALS = re.compile(r"(://[^/?#:@]*):[^/?#@]*@")
# A blank or a quotation mark in a password is where a URI would end. What looks like a port is none.
_ODD_PASSWORD = re.compile(
    rf"(?i)\b({_DATABASE}://[^:/?#\s@'\"]{{0,100}}:)(?!\d{{1,5}}(?!\w))(?!\*\*\*@)[^\n@]{{0,200}}[\s'\"`<>][^\n@]{{0,200}}@"
)


def mask_uris(text: str) -> str:
    """`text`, of which any part may be a URI, with *** for every password in one, whatever it is a URI of. What only a
    web server understands is left alone, such as the token with which people are to open a page."""
    if "://" not in text:
        return text
    return _IN_TEXT.sub(_mask_found, _ODD_PASSWORD.sub(r"\1***@", text))


def _mask_found(found: re.Match[str]) -> str:
    if _DATABASE_SCHEME.fullmatch(found[1]):
        return mask_uri(found[0])
    return _CREDENTIALS.sub(r"\1:***@", found[0])
