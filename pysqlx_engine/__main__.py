"""`python -m pysqlx_engine`: which versions are installed, which optional parts, and what the system lacks."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from .system import missing

_NEEDED = ("pysqlx-engine", "pysqlx-core", "pydantic", "pydantic-settings", "msgspec", "pyzmq", "multiprocess")
_OPTIONAL = {
    "uvloop": ("uvloop", "a faster event loop"),
    "watchfiles": ("reload", "pysqlx-run --reload"),
    "starlette": ("dashboard", "pysqlx-run --dashboard, pysqlx-ctl dashboard"),
    "uvicorn": ("dashboard", "the same"),
    "prometheus-client": ("metrics", "pysqlx-run --metrics"),
    "opentelemetry-api": ("otel", "spans of check-outs, queries and jobs"),
}
"""Distributions, each with the extra that installs it and what it is for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pysqlx_engine",
        description="Show the versions that are installed and the optional parts, for a bug report.",
        epilog="The commands are pysqlx-run (run workers) and pysqlx-ctl (look at what runs, and change it).",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    versions, optional = ({name: _version(name) for name in names} for names in (_NEEDED, _OPTIONAL))
    if options.json:
        found = {
            "python": python,
            "platform": platform.platform(),
            "versions": versions,
            "optional": optional,
            "missing": [facility.name for facility in missing()],
        }
        text = json.dumps(found, indent=2)
    else:
        lines = [_line("python", f"{python} on {platform.platform()}")]
        lines += [_line(name, number or "not installed as a package") for name, number in versions.items()]
        lines += [_line(name, number or _how_to_install(name)) for name, number in optional.items()]
        lines += [_line(facility.name, f"not on this system; instead: {facility.stands_in}") for facility in missing()]
        text = "\n".join(lines)
    print(text)  # noqa: T201 - this is the command's voice
    return 0


def _line(name: str, what: str) -> str:
    return f"{name:18} {what}"


def _how_to_install(name: str) -> str:
    extra, purpose = _OPTIONAL[name]
    return f"not installed; for {purpose}: pip install 'pysqlx-engine[{extra}]'"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
