"""The driver, imported quietly.

It writes every lost connection to stderr on its own account, besides raising it. What is raised is enough, so its log
is off unless RUST_LOG says otherwise. It reads that variable once, when it is imported.
"""

from __future__ import annotations

import os

_say_nothing = "RUST_LOG" not in os.environ
if _say_nothing:
    os.environ["RUST_LOG"] = "off"

import pysqlx_core  # noqa: E402

if _say_nothing:
    del os.environ["RUST_LOG"]  # it is meant for this process's driver, not for what the process starts

__all__ = ["pysqlx_core"]
