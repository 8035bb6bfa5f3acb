"""Who may see the page and press its buttons."""

from __future__ import annotations

import pytest

from pysqlx_engine.workers.observer.access import Access, Request, cookie_for, is_loopback, token_of
from pysqlx_engine.workers.observer.spec import Listening

LOCAL = Access("127.0.0.1", None)
GUARDED = Access("0.0.0.0", "secret")


@pytest.mark.parametrize("host", ["localhost", "localhost:8787", "127.0.0.1:8787", "127.9.9.9", "[::1]:8787"])
def test_this_machine_may_ask_for_itself(host: str) -> None:
    assert LOCAL.refusal(Request(host=host, changes=False)) is None


@pytest.mark.parametrize(
    "host", ["", "evil.example:8787", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::2]:1"]
)
def test_a_name_that_somebody_else_points_here_is_refused(host: str) -> None:
    refusal = LOCAL.refusal(Request(host=host, changes=False))
    assert refusal is not None
    assert refusal[0] == 403
    assert "localhost" in refusal[1]


@pytest.mark.parametrize("token", [None, "", "Secret", "secret ", "geheim\N{SNOWMAN}"])
def test_without_the_token_nobody_may(token: str | None) -> None:
    for host in ("localhost", "shop.example"):
        refusal = GUARDED.refusal(Request(host=host, changes=False, token=token))
        assert refusal is not None
        assert refusal[0] == 401


def test_with_the_token_the_name_does_not_matter() -> None:
    assert GUARDED.refusal(Request(host="shop.example", changes=False, token="secret")) is None
    assert Access("127.0.0.1", "secret").refusal(Request(host="127.0.0.1", changes=False)) is not None, "also here"


@pytest.mark.parametrize(
    ("origin", "may"),
    [
        (None, True),  # no browser
        ("http://localhost:8787", True),
        ("https://localhost:8787", True),  # behind a proxy that speaks TLS
        ("http://localhost:9999", False),
        ("http://evil.example", False),
        ("null", False),
    ],
)
def test_only_the_page_itself_may_change_something(origin: str | None, may: bool) -> None:
    for rule, token in ((LOCAL, None), (GUARDED, "secret")):
        asked = Request(host="localhost:8787", changes=True, origin=origin, token=token)
        assert (rule.refusal(asked) is None) is may
        assert rule.refusal(Request(host="localhost:8787", changes=False, origin=origin, token=token)) is None


def test_a_token_is_taken_from_the_header_then_the_address_then_the_cookie() -> None:
    header, cookie, query = (
        {"authorization": "Bearer one"},
        {"pysqlx_token_8787": "three", "pysqlx_token_9000": "another page"},
        {"token": "two"},
    )
    assert token_of(header, cookie, query) == "one"
    assert token_of({"authorization": "bearer  one "}, {}, {}) == "one"
    assert token_of({"authorization": "Basic one"}, cookie, query) == "two"
    assert token_of({"host": "localhost:8787"}, cookie, {}) == "three"  # cookies know no ports
    assert token_of({"host": "localhost:80"}, cookie, {}) is None
    assert token_of({}, {}, {}) is None


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost:8787", "pysqlx_token_8787"),
        ("shop.example", "pysqlx_token_shop.example"),
        ("[fd00::5]", "pysqlx_token_5"),
        ("[fd00::5]:8787", "pysqlx_token_8787"),
        ('";=\N{SNOWMAN}\xe9,', "pysqlx_token_"),
    ],
)
def test_the_cookies_name_is_one_whatever_the_host_says(host: str, name: str) -> None:
    assert cookie_for(host) == name


def test_a_token_is_in_no_log() -> None:
    assert "secret" not in repr(GUARDED)
    assert "secret" not in repr(Listening(None, None, GUARDED))
    assert "secret" not in repr(Request("localhost", changes=False, token="secret"))


@pytest.mark.parametrize(
    ("host", "is_"), [("::1", True), ("127.1.2.3", True), ("localhost", True), ("0.0.0.0", False), ("a", False)]
)
def test_loopback(host: str, is_: bool) -> None:
    assert is_loopback(host) is is_
