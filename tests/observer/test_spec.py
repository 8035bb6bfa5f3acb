"""Where the observer listens."""

from __future__ import annotations

import contextlib
import socket

import pytest

from pysqlx_engine.errors import SettingsError
from pysqlx_engine.workers.observer.spec import listen


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return socket.has_dualstack_ipv6()


pytestmark = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize("host", ["*", "[::]", "[0::0]"])
def test_who_listens_everywhere_is_reached_by_both_protocols(host: str) -> None:
    listening = listen(f"{host}:0", None, None)
    with contextlib.closing(listening):
        assert listening.dashboard is not None
        port = listening.dashboard.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), timeout=20).close()


def test_an_address_of_one_interface_is_looked_for_at_this_interface() -> None:
    (_, interface), *_ = socket.if_nameindex()
    # Without the interface the system would say that this is no address at all.
    with pytest.raises(SettingsError, match="Cannot assign requested address"):
        listen(None, f"[fe80::fefe%{interface}]:0", None)
