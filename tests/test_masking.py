"""What is shown of a text with URIs in it: all but their passwords."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable

import pytest

from pysqlx_engine.engine.uri import parse_uri
from pysqlx_engine.errors import ConnectError
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
        ("redis://h?sslpass=pw&passfile=.pgpass", "redis://h?sslpass=***&passfile=.pgpass"),
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
    ("uri", "shown"),
    [
        ("postgresql://me:geheim/db", "postgresql://me:***"),
        ("mysql://me:geheim", "mysql://me:***"),
        ("postgresql://me:ge/heim", "postgresql://me:***"),
        ("postgresql://me:ge;heim/db", "postgresql://me:***"),
        ("postgresql://me:12 geheim/db", "postgresql://me:***"),
        ("postgresql://me@srv:geheim", "postgresql://me@srv:***"),
        ("postgresql:me:geheim/db", "postgresql:***"),
        ("db:543210", "db:***"),
        ("sqlserver://me:geheim;database=a", "sqlserver://me:***;database=a"),
    ],
)
def test_without_an_at_what_is_no_port_may_be_a_password(uri: str, shown: str) -> None:
    assert mask_uri(uri) == shown
    assert mask_uri(shown) == shown
    if "://" in uri and " " not in uri:
        assert mask_uris(f"'{uri}' cannot be used, ask bob@h") == f"'{shown}' cannot be used, ask bob@h"


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://db:5432/app?schema=s", "postgresql://me@db:5432/app", "postgresql://[::1]:5432/app", "mysql://[::1]",
        "mongodb://h1:27017,h2:27017/db", r"sqlserver://h\sql:1433;database=a:b", "sqlserver://h:1433 ;database=a",
        "redis://h:6379", "redis://h:6379?db=1", "redis://h:", "http://h:x/y", "sqlite:///data/a:b", "jdbc:sqlite:a:b",
        "file:C:x.db", "localhost:5432/db",
    ],
)  # fmt: skip
def test_a_server_and_its_port_are_shown(uri: str) -> None:
    assert mask_uri(uri) == uri
    assert mask_uris(f"at {uri}") == f"at {uri}"


@pytest.mark.parametrize(
    "text",
    [
        "redis://cache:6379 is down; ask bob@example.org",
        "connected to postgresql://db:5432 as app@shop, 3 pools",
        "INFO postgresql://db:5432 up. mail ops@x.org",
        "postgresql://db: connection refused, mail ops@x.org",
        "kafka://h:9092: no broker; ask bob@h",
        "amqp://h:5672... again, says bob@h",
        "mongodb://h1:27017,h2:27017/db as bob@h",
        "redis://[::1]:6379 for bob@h",
        "redis://cache failed for user: app, then for app@shop",
        "\x1b[1mredis://h:6379\x1b[0m up, says bob@h",
        r"\'redis://h:6379\' failed for bob@h",
        r"'redis://h:6379\nsays bob@h'",
        '{"uri": "redis://h:6379/0", "user": "bob@h"}',
        "(redis://h:6379), bob@h",
        "redis://h:6379\nbob@h",
        "see http://127.0.0.1:8787/?token=abc",
        "redis://h/0?a=b c; d=e & f=g",
        "connected to postgresql://db:5432 as app@shop:5432",
        "redis://cache:6379 is down; see wiki@example.org/runbook",
        "mysql://h/db?passive=true, retried 5 times",
        "GET http://localhost:{port}/a@b http://[fe80::1%25eth0]:80/a@b http://h:8000,http://g:8000/@vite/client",
    ],
)
def test_the_text_around_a_uri_without_a_password_is_left_alone(text: str) -> None:
    assert mask_uris(text) == text


@pytest.mark.parametrize(
    ("uri", "shown", "reason"),
    [
        ("postgresql://db:543210/app", "postgresql://db:***", "its host or port is not readable (in a user name"),
        ("mysql://it's geheim:x/app", "mysql://it's geheim:***", "its host or port is not readable (in a user name"),
        ("jdbc:sqlserver://h:x;pwd=pw", "jdbc:sqlserver://h:***;pwd=***", "its port is not a number up to"),
        ("sqlserver://h:x;password=it's geheim", "sqlserver://h:***;password=***", "its port is not a number up to"),
        ("postgresql://u:a b@h:x/d", "postgresql://u:***@h:x/d", "its host or port is not readable (in a user name"),
    ],
)  # fmt: skip
def test_of_what_we_say_about_a_uri_the_reason_stays(uri: str, shown: str, reason: str) -> None:
    with pytest.raises(ConnectError) as refused:
        parse_uri(uri)
    text = f"pysqlx-run: s.py: ConnectError: {refused.value.message}"
    assert f"{shown!r} cannot be used: {reason}" in text
    assert mask_uris(text) == text


def test_so_does_all_that_is_accepted() -> None:
    with pytest.raises(ConnectError) as refused:
        parse_uri("oracle://db:543210/app")
    shown = mask_uris(refused.value.message)
    for accepted in ("postgresql://USER:***@HOST:PORT/DATABASE", "mysql://USER:***@", "sqlserver://", "sqlite:PATH"):
        assert accepted in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "sqlserver://h:1433;database=shop;applicationName=my app;user=sa;password=geheim",
            "sqlserver://h:1433;database=shop;applicationName=my app;user=sa;password=***",
        ),
        ("sqlserver://h:1433;user=sa;password=P@ssword", "sqlserver://h:1433;user=sa;password=***"),
        ("mysql://me:geheim@h/db?token=x@y&a=b", "mysql://me:***@h/db?token=***&a=b"),
        ("sqlserver://h;password=correct horse;x=1 a@b", "sqlserver://h;password=***;x=1 a@b"),
        ("sqlserver://h;password={a}} geheim};x=1", "sqlserver://h;password=***;x=1"),
        ("sqlserver://h;password={a}geheim;x=1", "sqlserver://h;password=***;x=1"),
        ("postgresql://h/my db?user=me&password=geheim", "postgresql://h/my db?user=me&password=***"),
        ("postgresql://h/my db?user=me&password=it's geheim", "postgresql://h/my db?user=me&password=***"),
        ("postgresql://h/db?password=it's geheim\nthe next", "postgresql://h/db?password=***\nthe next"),
        ("'sqlserver://h;password=it is geheim' is refused", "'sqlserver://h;password=***' is refused"),
        ('{"uri": "redis://h?token=a b&c=d", "e": 1}', '{"uri": "redis://h?token=***&c=d", "e": 1}'),
        ("redis://h?token=a b redis://h:6379", "redis://h?token=*** redis://h:6379"),
        ("clickhouse+http://h/db?password=geheim", "clickhouse+http://h/db?password=***"),
    ],
)
def test_the_value_of_a_secret_option_may_have_blanks_and_more(text: str, shown: str) -> None:
    assert mask_uris(text) == shown
    assert mask_uris(shown) == shown


@pytest.mark.parametrize(
    "scheme", ["clickhouse", "cockroach", "redshift+psycopg2", "neo4j+s", "nats", "ldap", "x+http", "https+x", "MySQL"]
)
@pytest.mark.parametrize(
    "credentials",
    [
        "u:it's geheim", "us er:geheim", "us er:ge heim", "me@srv:p geheim", "me@srv:geheim", ":it's geheim",
        "u:a b@geheim", "u:12345 geheim", "u: geheim", "u:12'geheim", "u:ge @ heim", "u:  geheim", "u: @geheim",
        "u:// geheim",
    ],
)  # fmt: skip
def test_odd_users_and_passwords_are_those_of_any_database(scheme: str, credentials: str) -> None:
    user = credentials.rpartition(":")[0]
    for before, after in (("", " by bob@h"), ("'", "' by bob@h"), ('at "', '", by bob@h')):
        shown = f"{before}{scheme}://{user}:***@db.example:5432/app{after}"
        assert mask_uris(f"{before}{scheme}://{credentials}@db.example:5432/app{after}") == shown
        assert mask_uris(shown) == shown


@pytest.mark.parametrize(
    ("before", "repeated", "after"),
    [
        ("", "mysql://a:b ", ""), ("", "mysql://u:p' ", ""), ("mysql://", "a:", ""), ("", "a-", "://"),
        ("", "mysql://{", ""), ("postgres://h/", "?", ""), ("mysql://h/db:values(", "?,", ")"),
        ("sqlserver://", ":", "]"), ("sqlserver://h;", "pwd", ""), ("sqlserver://h;pwd={", "}}", ""),
        ("redis://h?", "&token=", ""), ("http://", "a", ""), ("http://", "@:", ""), ("", "http://u", ""),
        ("", "://", ""), ("", "'mysql://", ""), ("", "mysql://u:5 ", ""), ("mysql://u:", "@ ", ""),
        ("mysql://u:", "[:", ""), ("mysql://u:p", ";", ""), ("mysql://u:p", ";a", "="), ("", "'mysql://:a' ", ""),
        ("mysql://h?token=", " ", "x"), ("", "mysql://h?token=a b ", ""), ("mysql://u:5", " ", ""),
        ("mysql://u:5", ".", "x"), ("'mysql://h/", "'a", ""),
        ("mysql://u:5", " a", "@"), ("", "https://u:p/", ""), ("https://u:", "{a}", ""), ("https://", "u:p@", "/"),
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
