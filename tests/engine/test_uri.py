"""What a database URI means, what the driver gets, and what is shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pysqlx_engine.engine.uri import parse_uri, with_option
from pysqlx_engine.errors import ConnectError
from pysqlx_engine.masking import mask_uri


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://root@127.0.0.1:5432/test",
        "postgres://other:secret@localhost/test",
        "postgresql://root@[::1]:5432/test?schema=x&application_name=y",
        "POSTGRESQL://root@LOCALHOST./test",
        "postgresql://root@127.0.0.5/te%73t#fragment",
        "postgresql://root@anything/test?host=/var/run/postgresql",
        "postgresql://root@%2Fvar%2Frun%2Fpostgresql/test",
        "  postgresql://root@127.0.0.1:5432/test\n",
        "postgresql:///test",
    ],
)
def test_one_postgresql_database_has_one_identity_however_it_is_written(uri: str) -> None:
    assert parse_uri(uri).identity == "postgresql://127.0.0.1:5432/test"


@pytest.mark.parametrize(
    ("uri", "identity"),
    [
        ("postgresql://root@db.example.com:6000/a", "postgresql://db.example.com:6000/a"),
        ("postgresql://root@db/b", "postgresql://db:5432/b"),
        ("postgresql://root@db/", "postgresql://db:5432/root"),
        ("postgresql://root@db", "postgresql://db:5432/postgres"),
        ("postgresql://root@x/b?host=db", "postgresql://db:5432/b"),
        ("postgresql://root@[2001:db8::1]/b", "postgresql://[2001:db8::1]:5432/b"),
        ("mysql://root:pw@Localhost/shop", "mysql://127.0.0.1:3306/shop"),
        ("mariadb://root@db:3307/shop", "mysql://db:3307/shop"),
        ("mysql://root@x/shop?socket=/run/mysqld/mysqld.sock", "mysql://127.0.0.1:3306/shop"),
        ("mysql://root@db", "mysql://db:3306/mysql"),
        ("postgresql://db:1/b?application_name=me@here", "postgresql://db:1/b"),
        ("postgresql://db:1/b?sslrootcert=/home/me@here/ca.pem", "postgresql://db:1/b"),
        ("postgresql://db:1?application_name=me@here", "postgresql://db:1/postgres"),
        ("postgresql://me:1234@db/a@b", "postgresql://db:5432/a@b"),
        ("sqlserver://db;database=shop;user=sa;password=x", "sqlserver://db:1433/shop"),
        ("jdbc:sqlserver://db:1444;initial catalog=shop", "sqlserver://db:1444/shop"),
        ("sqlserver://localhost\\SQL2019;password={a;b}}c}", "sqlserver://127.0.0.1\\sql2019/master"),
    ],
)
def test_identity_is_provider_host_port_and_database(uri: str, identity: str) -> None:
    assert parse_uri(uri).identity == identity


def test_an_sqlite_file_is_known_by_its_real_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.db").symlink_to("dev.db")
    real = os.path.realpath(tmp_path / "dev.db")
    for uri in ("sqlite:dev.db", "sqlite:./dev.db", f"sqlite:{tmp_path}/dev.db", f"sqlite://{tmp_path}/dev.db"):
        assert parse_uri(uri).identity == f"sqlite:{real}"
    assert parse_uri("file:link.db?socket_timeout=5").identity == f"sqlite:{real}"
    assert parse_uri("sqlite:dev.db").driver_uri == f"file:{tmp_path}/dev.db"


def test_a_database_in_memory_has_no_identity() -> None:
    assert parse_uri("sqlite::memory:").identity is None


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "  ",
        "foo://host/db",
        "dev.db",
        "postgresql:db",
        "mysql://u:p@/db",
        "sqlite:",
        "sqlite://dev.db",
        None,
        7,
        "postgresql://u@h:port/db",
        "postgresql://u@h:99999/db",
        "sqlserver://h:x;database=d",
        "sqlserver://h:65536;database=d",
        "sqlite:a\x00b",
    ],
)
def test_what_names_no_database_is_refused_for_good(uri: object) -> None:
    with pytest.raises(ConnectError) as refused:
        parse_uri(uri)  # type: ignore[arg-type]
    assert refused.value.permanent
    assert refused.value.code == "PYSQLX006"


def test_an_unknown_provider_is_told_what_is_accepted() -> None:
    with pytest.raises(ConnectError, match=r"postgresql://.*mysql://.*sqlserver://.*sqlite:PATH"):
        parse_uri("oracle://scott:tiger@db/x")


SECRET = "hunter2"
DIGITS = "567890"
WITH_SECRETS = [
    f"postgresql://me:{SECRET}@db/x",
    f"postgresql://me:a/{SECRET}@db/x",
    f"postgresql://me:a@{SECRET}@db:99999/x",
    f"postgresql://me:a?{SECRET}@db/x",
    f"postgresql://me@server:{SECRET}@db/x",
    f"postgresql:me:{SECRET}@db/x",
    f"me:{SECRET}@db/x",
    f"oracle://me:{SECRET}@db/x",
    f"postgresql://me@db/x?sslpassword={SECRET}&schema=s",
    f"postgresql://me@db/x?sslpassword=a;{SECRET}",
    f"mysql://me:{SECRET}@db:port/x",
    f"sqlserver://db;user=sa;password={SECRET};database=x",
    f"sqlserver://db;user=sa;PWD={{a;{SECRET}}}}};b}};database=x",
    f"jdbc:sqlserver://db:x;password={SECRET}",
    f"sqlserver://db:{SECRET};database=x",
    f"postgresql://me@db/x?p%61ssword={SECRET}",
    f"sqlite:./x.db?password={SECRET}",
    f"sqlite::memory:?password={SECRET}",
    f"file:x.db?key={SECRET}",
    *(f"{scheme}://me:1234{cut}{DIGITS}@db:5432/x" for scheme in ("postgresql", "mysql") for cut in "/?#"),
    f"postgresql://me:1234/5?{DIGITS}@db/x",
    f"postgresql://me:1234/{DIGITS}=@db:5432/x",
    f"mysql://me:77/{DIGITS}==@db/x",
    f"postgresql://me:12?a={DIGITS}@db/x",
    f"postgresql://me:12#a={DIGITS}@db/x",
    f"sqlserver://sa:{DIGITS};database=x",
]


@pytest.mark.parametrize("uri", WITH_SECRETS)
def test_no_form_of_a_uri_that_may_be_shown_contains_the_password(uri: str) -> None:
    shown = [mask_uri(uri)]
    try:
        parsed = parse_uri(uri)
        shown += [repr(parsed), parsed.masked, parsed.identity or ""]
    except ConnectError as error:
        shown += [str(error), repr(error)]
    assert not [text for text in shown if SECRET in text or DIGITS in text]
    assert any("***" in text for text in shown)


def test_what_is_no_secret_stays_readable() -> None:
    for uri in ("postgresql://me@db:5432/x?schema=s", "sqlite:/data/a:b@c.db", "sqlserver://db;database=x;user=sa"):
        assert mask_uri(uri) == uri
    assert mask_uri("mysql://me:pw@db:3306/x?socket=/s") == "mysql://me:***@db:3306/x?socket=/s"


def test_an_option_is_added_unless_the_user_states_it() -> None:
    plain = parse_uri("postgresql://me@db/x")
    assert with_option(plain, "application_name", "a b&c").driver_uri.endswith("/x?application_name=a%20b%26c")
    stated = parse_uri("postgresql://me@db/x?application_name=mine")
    assert with_option(stated, "application_name", "ours") is stated
    more = with_option(with_option(plain, "a", "1"), "b", "2")
    assert more.driver_uri.endswith("?a=1&b=2")
    assert more.identity == plain.identity
    server = with_option(parse_uri("sqlserver://db;database=x"), "ApplicationName", "a;b}")
    assert server.driver_uri.endswith(";ApplicationName={a;b}}}")
