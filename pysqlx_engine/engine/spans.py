"""What a span may say of a database and of a statement: nothing that is secret, and no values."""

from __future__ import annotations

import functools
import os
import re

from ..tracing import Target, Value
from .transactions import first_word
from .uri import DatabaseURI, Provider

_CACHED_LENGTH = 2000
_LONGEST_TEXT = 10_000
"""Characters of a statement without parameters that are looked through: what is longer is mostly data."""

_COMMENT = r"--[^\n]*|/\*(?:(?!/\*).)*?\*/"
_DIGITS = r"\d[\d_]*"
_NUMBER = (
    rf"(?<![\w$@.])(?:0[xbo][\da-f_]+|{_DIGITS}(?:\.(?:{_DIGITS})?)?(?:e[+-]?{_DIGITS})?|\.{_DIGITS}(?:e[+-]?{_DIGITS})?)"
    r"(?!\w)"
)
_STRING = r"'(?:[^']|'')*'"
_QUOTED = r'"(?:[^"]|"")*"'
_NAME = r"`[^`]*`"
_BRACKETED = r"\[[^\]]*\]"
_BRACKETED_DOUBLY = r"\[(?:[^\]]|\]\])*+\]"
"""With ]] for a bracket within the name."""
_OPEN = r"""['"`]|/\*|\*/|\$\w*\$"""
"""What begins or ends something, and here does not: nothing behind it can be told."""


def _pattern(comment: str, value: str, name: str, opens: str = _OPEN) -> re.Pattern[str]:
    return re.compile(
        f"(?P<comment>{comment})|(?P<value>{value}|{_STRING}|{_NUMBER})|(?P<name>{name}|{_NAME})|(?P<open>{opens})",
        re.DOTALL | re.IGNORECASE,
    )


# Double quotes are around texts on MySQL, and on SQLite where they are not around a name that it knows.
_PARTS: dict[Provider, re.Pattern[str]] = {
    "postgresql": _pattern(_COMMENT, r"\$(?P<tag>\w*)\$.*?\$(?P=tag)\$", _QUOTED),
    # Where -- stands for twice minus, unless a blank or a control character follows.
    "mysql": _pattern(_COMMENT.replace("--", r"--(?=[\x00-\x20\x7f]|$)") + r"|\#[^\n]*", _QUOTED, _NAME),
    "sqlite": _pattern(_COMMENT, _QUOTED, _BRACKETED, rf"{_OPEN}|\["),
    "sqlserver": _pattern(_COMMENT, r"\$\d[\d,]*(?:\.\d*)?", rf"{_QUOTED}|{_BRACKETED_DOUBLY}", rf"{_OPEN}|\["),
}
_SYSTEMS = {"sqlserver": "microsoft.sql_server"}


def text_of(provider: Provider, sql: str, *, parameters: bool) -> str | None:
    """A statement as it is sent, with the names of its parameters in place of their values. One without parameters may
    have values in its text: they become `?`; None where it cannot be told what is a value."""
    if parameters:
        return sql
    if len(sql) > _LONGEST_TEXT:
        return None
    return _cached_text(provider, sql) if len(sql) <= _CACHED_LENGTH else _without_values(provider, sql)


def _without_values(provider: Provider, sql: str) -> str | None:
    if "\\'" in sql or '\\"' in sql:  # whether a text ends there depends on the server's settings
        return None
    shown, end = [], 0
    for part in _PARTS[provider].finditer(sql):
        if part["open"] is not None:
            return None
        shown += [sql[end : part.start()], part["name"] or ("?" if part["comment"] is None else " ")]
        end = part.end()
    shown.append(sql[end:])
    return "".join(shown).strip()


_cached_text = functools.lru_cache(maxsize=1024)(_without_values)


def operation_of(sql: str) -> str | None:
    """Its first keyword; None where it does not begin with one."""
    return _cached_operation(sql) if len(sql) <= _CACHED_LENGTH else first_word(sql)


_cached_operation = functools.lru_cache(maxsize=1024)(first_word)


def target_of(uri: DatabaseURI) -> Target:
    """The database that `uri` names."""
    system = _SYSTEMS.get(uri.provider, uri.provider)
    if uri.provider == "mysql" and uri.masked.lower().removeprefix("jdbc:").startswith("mariadb:"):
        system = "mariadb"
    attributes: dict[str, Value] = {"db.system.name": system}
    if uri.provider == "sqlite":
        path = uri.path or ":memory:"
        attributes["db.namespace"] = path
        return Target(os.path.basename(path), attributes)  # not where it is: there may be one for each user
    attributes["db.namespace"] = database = (uri.identity or "").partition("://")[2].partition("/")[2]
    if uri.host is not None:
        attributes["server.address"] = uri.host
    if uri.port is not None:
        attributes["server.port"] = uri.port
    return Target(database, attributes)
