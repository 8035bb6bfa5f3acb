"""Seconds of the first import, in a process that has imported nothing of it. Run as a script text, with `-I -c`.

Whoever runs this lets it run once before, so that the byte code is written.
"""

import time

started = time.perf_counter()
from pysqlx_engine import LOG_CONFIG, BaseRow, PySQLXEnginePool  # noqa: E402, F401

print(f'{{"figure": {time.perf_counter() - started}}}')
