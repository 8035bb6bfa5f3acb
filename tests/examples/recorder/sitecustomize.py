"""Imported by every interpreter that has this directory on its PYTHONPATH: records what `random.uniform` draws.

So a script is run as its user runs it, unchanged, and the time that it may take can be computed from the sleeps that it
drew. Each draw appends a line to the file PYSQLX_TEST_DRAWS: the moment, on the monotonic clock that all processes
share, and the value.
"""

import os
import random
import time

_uniform = random.uniform


def _recorded(a: float, b: float) -> float:
    value = _uniform(a, b)
    os.write(_file, f"{time.monotonic()} {value}\n".encode())  # one call a line: threads and processes do not mix
    return value


if "PYSQLX_TEST_DRAWS" in os.environ:
    _file = os.open(os.environ["PYSQLX_TEST_DRAWS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    random.uniform = _recorded
