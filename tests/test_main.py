"""`python -m pysqlx_engine`: what people put into a bug report."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version

import pytest

from pysqlx_engine import __main__ as command


def test_it_shows_the_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["pysqlx-engine"] == version("pysqlx-engine")
    assert lines["pysqlx-core"] == version("pysqlx-core")
    assert lines["python"].startswith("CPython 3.")


def test_it_says_how_to_install_what_is_optional(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_there(name: str) -> str:
        if name == "watchfiles":
            raise PackageNotFoundError
        return version(name)

    monkeypatch.setattr(command, "version", not_there)
    assert command.main([]) == 0
    assert "pip install 'pysqlx-engine[reload]'" in capsys.readouterr().out
    assert command.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["optional"]["watchfiles"] is None
    assert found["versions"]["pyzmq"] == version("pyzmq")
