"""The monitor of a pool: what has to be looked at now and then, because no event tells of it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .runtime import PoolRuntime

logger = logging.getLogger("pysqlx_engine")


async def run_monitor(pool: PoolRuntime, *, threads: bool) -> None:
    """Look after `pool` every `check_interval` until cancelled, or until its users' event loop is closed. Runs in the
    background loop."""
    how = ("thread", "") if threads else ("task", "Async -> ")
    logger.debug("%sStarting %s: ConnectionMonitor", how[1], how[0])
    logger.debug("%sRunning %s: ConnectionMonitor", how[1], how[0])
    logger.info("Monitor: Started monitoring the pool.")
    interval, leak_threshold = pool.config.check_interval, pool.config.leak_threshold
    pause = interval if leak_threshold is None else min(interval, leak_threshold / 2)
    due = time.monotonic() + interval
    try:
        while True:
            await asyncio.sleep(pause)
            if pool.owner_loop is not None and pool.owner_loop.is_closed():
                pool.abandon()
                return
            pool.report_leaks()
            if pause == interval or time.monotonic() >= due:
                due = time.monotonic() + interval
                pool.look_after()
    finally:
        logger.debug("Worker: Worker-1-ConnectionMonitor finishing.")
        logger.info("Monitor: Stopped monitoring the pool.")
        logger.debug("%sStopping %s: ConnectionMonitor", how[1], how[0])
