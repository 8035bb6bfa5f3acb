"""When a pool tries again to connect, and what it says of a server that it cannot connect to."""

from __future__ import annotations

import pytest

from pysqlx_engine.pool.outage import BACKOFF, LIMIT_PAUSE, Outage


def around(seconds: float) -> object:
    return pytest.approx(seconds, rel=0.21)  # the jitter


def test_the_pauses_double_up_to_the_longest() -> None:
    outage = Outage(reconnect_timeout=1e9)
    pauses = []
    for _ in range(8):
        pauses.append(outage.failed(0.0, suffered=True).retry_in)
        outage.tried_again(needed=True)
    first, most = BACKOFF
    assert pauses == [around(min(most, first * 2**number)) for number in range(8)]


def test_of_two_that_fail_at_once_one_is_tried_again() -> None:
    outage = Outage(reconnect_timeout=1e9)
    assert outage.failed(0.0, suffered=True).retry_in is not None
    assert outage.failed(0.0, suffered=True).retry_in is None
    outage.tried_again(needed=True)
    assert outage.failed(0.1, suffered=True).retry_in == around(2 * BACKOFF[0])


def test_a_success_ends_it() -> None:
    outage = Outage(reconnect_timeout=1.0)
    assert outage.failed(0.0, suffered=True).first
    outage.tried_again(needed=True)
    assert not outage.failed(0.5, suffered=True).first
    outage.succeeded(at_limit=False)
    outage.tried_again(needed=True)
    again = outage.failed(5.0, suffered=True)
    assert (again.first, again.lost) == (True, False)
    assert again.retry_in == around(BACKOFF[0])


def test_its_length_is_told_once() -> None:
    outage = Outage(reconnect_timeout=1.0)
    lost = []
    for moment in (0.0, 0.5, 1.0, 1.5, 9.0):
        lost.append(outage.failed(moment, suffered=True).lost)
        outage.tried_again(needed=True)
    assert lost == [False, False, True, False, False]


@pytest.mark.parametrize("how", ["nobody needs it", "the pool has some"])
def test_what_nobody_suffers_is_no_outage(how: str) -> None:
    outage = Outage(reconnect_timeout=1.0)
    assert not outage.failed(0.0, suffered=how != "the pool has some").lost
    outage.tried_again(needed=how != "nobody needs it")
    assert not outage.failed(9.0, suffered=True).lost


def test_a_server_that_is_full_is_asked_less_and_less_until_it_takes_more() -> None:
    outage = Outage(reconnect_timeout=1e9)
    first, most = LIMIT_PAUSE
    assert [outage.refused() for _ in range(3)] == [
        (around(first), True), (around(2 * first), False), (around(4 * first), False)
    ]  # fmt: skip
    outage.succeeded(at_limit=True)
    assert outage.refused() == (around(8 * first), False)
    assert outage.refused() == (around(most), False)
    outage.succeeded(at_limit=False)
    assert outage.refused() == (around(first), True)
