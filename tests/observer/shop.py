"""A shop at work, for the pictures of the documentation: four workers, too few connections at times, jobs that fail.

pysqlx-run -w 4 --max-size 12 --name shop --dashboard tests/observer/shop.py
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time

from pysqlx_engine import PySQLXEngine, PySQLXEnginePool
from pysqlx_engine.errors import PoolTimeoutError
from pysqlx_engine.workers import Backoff, JobQueue

queue = JobQueue(queues={"default": 1, "mail": 3, "reports": 1}, concurrency=3)
WORKER = int(os.environ.get("PYSQLX_WORKER_ID", "0"))


class CarrierError(Exception):
    """The parcel service has not answered as it should."""


@queue.task(queue="mail", max_attempts=5, backoff=Backoff(1.0, most=20.0))
async def send_receipt(order_id: int, address: str) -> None:
    await asyncio.sleep(random.uniform(0.02, 0.2))
    if order_id % 9 == 0:
        raise ConnectionRefusedError(f"smtp.example.org:587 refused the receipt of order {order_id}")


@queue.task(max_attempts=2, backoff=Backoff(2.0))
async def book_parcel(order_id: int, kilograms: float) -> None:
    await asyncio.sleep(random.uniform(0.05, 0.3))
    if order_id % 4 == 0:
        ask_the_carrier(order_id, kilograms)


def ask_the_carrier(order_id: int, kilograms: float) -> None:
    try:
        raise TimeoutError("api.carrier.example: no answer within 5.0 s")
    except TimeoutError as error:
        raise CarrierError(f"order {order_id} ({kilograms} kg) was not booked") from error


@queue.task(max_attempts=3)
async def update_stock(conn: PySQLXEngine, sku: str, count: int) -> None:
    await conn.query_as_dict("SELECT pg_sleep(0.2)::text AS slept")


@queue.task(queue="reports")
async def monthly_report(month: str) -> None:
    await asyncio.sleep(4)


async def serve_requests(pool: PySQLXEnginePool) -> None:
    """Requests whose number comes and goes; worker 2 is the one with the slow query."""

    async def request() -> None:
        try:
            async with pool.connection() as connection:
                seconds = random.uniform(0.05, 0.3) * (3 if WORKER == 2 else 1)
                await connection.query_as_dict(f"SELECT pg_sleep({seconds:.3f})::text AS slept")
        except PoolTimeoutError:
            pass

    running: set[asyncio.Task[None]] = set()
    while True:
        tide = 0.5 - 0.5 * math.cos(time.time() / 240 * 2 * math.pi)
        rate = 0.1 + 0.7 * tide * (1.5 if WORKER == 2 else 1)
        for _ in range(round(random.expovariate(1 / rate))):
            task = asyncio.ensure_future(request())
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.sleep(0.1)


async def enqueue() -> None:
    for month in range(1, 7):
        await monthly_report.options(delay=900 * month).enqueue(month=f"2026-{month:02}")
    order = 1000
    while True:
        order += 1
        await send_receipt.enqueue(order_id=order, address=f"customer{order}@example.org")
        if order % 3 == 0:
            await book_parcel.enqueue(order_id=order, kilograms=round(random.uniform(0.2, 30), 1))
        if order % 2 == 0:
            await update_stock.enqueue(sku=f"A-{order % 97:03}", count=-1)
        await asyncio.sleep(random.uniform(0.1, 0.6))


async def main() -> None:
    async with PySQLXEnginePool(min_size=1, conn_timeout=4.0, name="requests") as pool:
        serving = asyncio.ensure_future(serve_requests(pool))
        ordering = asyncio.ensure_future(enqueue() if WORKER == 0 else asyncio.sleep(0))
        try:
            await queue.serve()
        finally:
            serving.cancel()
            ordering.cancel()


if __name__ == "__main__":
    asyncio.run(main())
