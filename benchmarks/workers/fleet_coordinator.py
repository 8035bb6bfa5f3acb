"""A coordinator without a supervisor: `python -m workers.fleet_coordinator DIRECTORY MAX_SIZE LEADER`."""

from __future__ import annotations

import resource
import sys
from typing import Any

from pysqlx_engine.workers.coordinator import CoordinatorConfig, main

from .fleet import join


class Ready:
    """In the place of a supervisor's pipe: the leader hears of the coordinator when it can be reached."""

    def __init__(self, path: str) -> None:
        self._path = path

    def send_bytes(self, data: bytes) -> None:
        self._leader = join(self._path)

    def close(self) -> None:
        pass


if __name__ == "__main__":
    directory, max_size, path = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # two for each process that joins
    ready: Any = Ready(path)
    main(CoordinatorConfig(directory, int(max_size), "bench"), ready)
