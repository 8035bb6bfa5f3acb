"""What is shown of a text with URIs in it: all but their passwords."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable

import pytest

from pysqlx_engine.masking import mask_uri, mask_uris


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no URI: a@b, x:y@z", "no URI: a@b, x:y@z"),
        ("at 'postgresql://me:pw@h/db' and mysql://u:p%40w@h", "at 'postgresql://me:***@h/db' and mysql://u:***@h"),
        ("postgresql+asyncpg://me:p@w@h/db: refused", "postgresql+asyncpg://me:***@h/db: refused"),
        ("postgresql://me:it's mine@h/db", "postgresql://me:***@h/db"),
        ('f("postgresql://me:" + word + "@h/db")', 'f("postgresql://me:***@h/db")'),
        ("postgresql://h:5432/db of bob@example.org", "postgresql://h:5432/db of bob@example.org"),
        (
            "sqlserver://h:1433;user=sa;password={a b};x=1 away",
            "sqlserver://h:1433;user=sa;password=***;x=1 away",
        ),
        ("postgresql://h/db?user=me&password=pw&a=b", "postgresql://h/db?user=me&password=***&a=b"),
        ("redis://:pw@h:6379/0, http://x.org/@me:too?a=b@c", "redis://:***@h:6379/0, http://x.org/@me:too?a=b@c"),
        ("http://127.0.0.1:8787/?token=abc", "http://127.0.0.1:8787/?token=abc"),
        ("\x1b[31mpostgresql://u:pw@h/db", "\x1b[31mpostgresql://u:***@h/db"),
        ("x_postgresql://u:pw@h 1postgresql://u:pw@h", "x_postgresql://u:***@h 1postgresql://u:***@h"),
        (r"'...\npostgresql://u:p/w@h'", r"'...\npostgresql://u:***@h'"),
        ("redis://:p/w@h", "redis://:***@h"),
        ("amqp://u:p#w@h", "amqp://u:***@h"),
        ("mongodb://u:p?w@h", "mongodb://u:***@h"),
        ("mssql+pyodbc://u:p/w@h, oracle://u:p/w@h", "mssql+pyodbc://u:***@h, oracle://u:***@h"),
        ("redis://:it's mine@h", "redis://:***@h"),
        ("https://u:p@w@h/a@b", "https://u:***@h/a@b"),
        ("https://ghp_pw@github.com/a", "https://***@github.com/a"),
        ("http://h/?to=postgresql://u:pw@h", "http://h/?to=postgresql://u:***@h"),
        ("redis://h?password=pw, redis://h?a?password=pw", "redis://h?password=*** redis://h?a?password=***"),
        ("mssql+pyodbc:///?odbc_connect=A%3BPWD%3Dpw&b=c", "mssql+pyodbc:///?odbc_connect=***&b=c"),
        ("postgresql://u:12345 6@h", "postgresql://u:***@h"),
        ("postgresql://u:1'2@h postgresql://u:1+ 2@h", "postgresql://u:***@h postgresql://u:***@h"),
        ("postgresql://u:a b@c@h by bob@h", "postgresql://u:***@h by bob@h"),
        ("'postgresql://h:5432', bob@h", "'postgresql://h:5432', bob@h"),
        ("sqlserver://h:pw;a=b sqlserver://[::1]:1433;a=b", "sqlserver://h:***;a=b sqlserver://[::1]:1433;a=b"),
        ("postgresql://u:" + "p" * 5000 + "@h away", "postgresql://*** away"),
    ],
)
def test_passwords_are_masked_wherever_in_a_text_a_uri_stands(text: str, shown: str) -> None:
    assert mask_uris(text) == shown
    assert mask_uris(shown) == shown


@pytest.mark.parametrize(
    ("before", "repeated", "after"),
    [
        ("", "mysql://a:b ", ""), ("", "mysql://u:p' ", ""), ("mysql://", "a:", ""), ("", "a-", "://"),
        ("", "mysql://{", ""), ("postgres://h/", "?", ""), ("mysql://h/db:values(", "?,", ")"),
        ("sqlserver://", ":", "]"), ("sqlserver://h;", "pwd", ""), ("sqlserver://h;pwd={", "}}", ""),
        ("redis://h?", "&token=", ""), ("http://", "a", ""), ("http://", "@:", ""), ("", "http://u", ""),
        ("", "://", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mask", [mask_uri, mask_uris])
def test_masking_takes_time_in_proportion_to_the_text(
    mask: Callable[[str], str], before: str, repeated: str, after: str
) -> None:
    def seconds(length: int) -> float:
        text = before + repeated * (length // len(repeated)) + after
        return min(timeit.repeat(lambda: mask(text), number=1, repeat=3, timer=time.process_time))

    seconds(1000)
    assert seconds(80_000) < 10 * max(seconds(20_000), 0.005)  # four times as long, and not sixteen times
