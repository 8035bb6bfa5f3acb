"""Whether a statement leaves a transaction open, or a lock or mode that outlives transactions.

The driver does not show transaction state, so it is read off the statement: from its first keyword, and where that
does not tell, the statement counts as one that may have opened one. A mistake in that direction costs one ROLLBACK when
the connection goes back to its pool; a mistake in the other would hand out somebody's open transaction. What a ROLLBACK
does not undo, such as LOCK TABLES, costs the connection.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache


class Effect(Enum):
    """What a statement does to the connection."""

    NONE = "leaves it as it is"
    OPENS = "opens one"
    MAY_OPEN = "may open one"
    ENDS = "ends it when it succeeds"
    TAINTS = "may leave what ROLLBACK does not undo: table locks, or a mode that opens transactions"


# Blanks, comments and opening brackets, then the first word. No match for what is executed by MySQL, /*! ... */ and
# /*M! ... */, nor for a comment in a comment, which ends at another place in each database.
_FIRST_WORD = re.compile(
    r"(?:[\s(;]+|--[^\n]*(?:\n|$)|#[^\n]*(?:\n|$)|/\*(?!M?!)(?:(?!/\*).)*?\*/)*([A-Za-z]+)", re.DOTALL
)
_BEGINS = re.compile(r"\b(?:BEGIN|START\s+TRANSACTION)\b", re.IGNORECASE)
_ENDS = frozenset({"COMMIT", "ROLLBACK", "END", "ABORT"})
# ROLLBACK TO goes back inside the transaction, AND CHAIN opens the next one, PREPARED ends one that is not this one's.
_DOES_NOT_END = re.compile(r"\b(?:TO|PREPARED)\b|\b(?<!\bNO\s)CHAIN\b", re.IGNORECASE)
# MySQL's table locks say READ or WRITE; PostgreSQL's LOCK says neither and ends with its transaction. With MySQL's
# completion_type every ROLLBACK may open the next transaction, with SQL Server's ANSI_DEFAULTS every statement. DISCARD
# ALL and DEALLOCATE ALL take away the statements that the driver has prepared, and does not prepare again.
_OUTLIVES = re.compile(
    r"AUTOCOMMIT|COMPLETION_TYPE|IMPLICIT_TRANSACTIONS|ANSI_DEFAULTS|LOCKING_MODE"
    r"|\b(?:DISCARD|DEALLOCATE)\b.*\bALL\b"
    r"|\bLOCK\b.*\b(?:READ|WRITE|INSTANCE)\b|\bREAD\s+LOCK\b|\bFOR\s+EXPORT\b|\bHANDLER\b|\bBACKUP\s+(?:LOCK|STAGE)\b",
    re.IGNORECASE | re.DOTALL,
)
# Statements with these words open no transaction and leave nothing that outlives one. Any other word is not trusted.
_PLAIN = re.compile(
    "SELECT|INSERT|UPDATE|DELETE|REPLACE|MERGE|VALUES|TABLE|WITH|CREATE|DROP|ALTER|TRUNCATE|COMMENT|GRANT|REVOKE|ANALYZE"
    "|VACUUM|REINDEX|CLUSTER|OPTIMIZE|EXPLAIN|SHOW|DESCRIBE|USE|ATTACH|DETACH|LISTEN|UNLISTEN|NOTIFY|COPY"
    "|KILL|UNLOCK"
)
# With these, it depends on what follows: RESET ALL takes away what a pool has set, and sets again with a ROLLBACK.
_SETTINGS = frozenset({"SET", "RESET", "DISCARD", "DEALLOCATE", "PRAGMA", "FLUSH"})
_UNSETS = re.compile(r"\bALL\b|CLIENT_CONNECTION_CHECK_INTERVAL", re.IGNORECASE)
_CACHED_LENGTH = 2000


def effect_of(sql: str) -> Effect:
    """The effect of one statement sent by `query*` or `execute`, which the server takes one at a time."""
    # Statements are few and come again and again; the long ones are mostly data, and not worth keeping.
    return _cached_effect(sql) if len(sql) <= _CACHED_LENGTH else _effect(sql)


def effect_of_command(sql: str) -> Effect:
    """The effect of what `raw_cmd` sends: it may be several statements, so only a single known one is trusted."""
    single = ";" not in sql.rstrip().rstrip(";")
    effect = effect_of(sql)
    if effect is Effect.TAINTS or (not single and _OUTLIVES.search(sql)):
        return Effect.TAINTS
    return effect if single else Effect.MAY_OPEN


def first_word(sql: str) -> str | None:
    match = _FIRST_WORD.match(sql)
    return match[1].upper() if match else None


def _effect(sql: str) -> Effect:
    word = first_word(sql)
    if word is not None and _PLAIN.fullmatch(word):
        return Effect.NONE
    if _OUTLIVES.search(sql):
        return Effect.TAINTS
    if word in _ENDS:
        return Effect.MAY_OPEN if _DOES_NOT_END.search(sql) else Effect.ENDS
    if word in {"BEGIN", "START"} and _BEGINS.search(sql):
        return Effect.OPENS
    return Effect.NONE if word in _SETTINGS and not _UNSETS.search(sql) else Effect.MAY_OPEN


_cached_effect = lru_cache(maxsize=1024)(_effect)
