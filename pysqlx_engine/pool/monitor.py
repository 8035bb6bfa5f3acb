"""The monitor of a pool: what has to be looked at now and then, because no event tells of it."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from ..log_config import part
from .core import OURSELVES

if TYPE_CHECKING:
    from .runtime import PoolRuntime

logger = part("pool")

LOST_AFTER = 0.1
"""Seconds in use after which it is asked whether anybody still has a connection."""


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
            report_leaks(pool)
            if pause == interval or time.monotonic() >= due:
                due = time.monotonic() + interval
                look_after(pool)
                take_back_what_nobody_has(pool)
    finally:
        logger.debug("Worker: Worker-1-ConnectionMonitor finishing.")
        logger.info("Monitor: Stopped monitoring the pool.")
        logger.debug("%sStopping %s: ConnectionMonitor", how[1], how[0])


def look_after(pool: PoolRuntime) -> None:
    """Retire what is too old or was not needed for long, remove what is known to be dead, refill to `min_size`. Nothing
    is retired while no lease could be had for what replaces it."""
    config, budget, now = pool.config, pool._budget, time.monotonic()
    retires = budget is not None and budget.answers()
    with pool._lock:
        core = pool.core
        idle = core.idle[: config.monitor_batch_size]
        for conn in core.in_use:
            conn.retire = conn.retire or (retires and conn.expires_at < now)
        surplus = core.size - core.min_size
    for conn in idle:
        unused = surplus > 0 and conn.last_used < now - config.max_idle
        dead = not conn.engine.connected or not conn.engine.is_healthy() or not conn.session.seems_alive()
        if dead or (retires and (unused or conn.retire or conn.expires_at < now)):
            surplus -= 1
            pool._counters.found_dead += dead
            pool._decide(pool.core.discard_idle, conn)
    pool._decide(pool.core.replenish)


def take_back_what_nobody_has(pool: PoolRuntime) -> None:
    """Take back connections that nobody can give back: their check-out is gone (a signal's handler interrupted its
    end, or its user never came to it), and nobody refers to them any more."""
    now, references = time.monotonic(), 2 if pool._threads else 3  # `ConnInfo.face`, `ConnInfo.engine`, and here
    with pool._lock:
        lost = [
            (conn, conn.checkout)
            for conn in pool.core.in_use
            if conn.holder != OURSELVES
            and now - conn.checked_out_at > LOST_AFTER
            and sys.getrefcount(conn.face) <= references
        ]
    for conn, checkout in lost:
        logger.warning(
            "Pool: %s: %s was never given back, and nobody refers to it any more: it is taken back.",
            pool.config.name, conn,
        )  # fmt: skip
        pool.reclaim(checkout)


def report_leaks(pool: PoolRuntime) -> None:
    """Tell, once for each check-out, who holds a connection for longer than `leak_threshold`."""
    threshold = pool.config.leak_threshold
    if threshold is None:
        return
    now = time.monotonic()
    with pool._lock:
        leaks = [
            conn
            for conn in pool.core.in_use
            if conn.stack and conn.holder != OURSELVES and now - conn.checked_out_at >= threshold
        ]
        reports = [(conn, conn.stack) for conn in leaks]
        for conn in leaks:
            conn.stack = None
    for conn, stack in reports:
        logger.warning(
            "Pool: %s: %s has been in use for %.1f s (leak_threshold is %.1f s); it was checked out here:\n%s",
            pool.config.name, conn, now - conn.checked_out_at, threshold, "".join(stack.format()),
        )  # fmt: skip
