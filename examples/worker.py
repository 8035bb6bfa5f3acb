"""The README's example: `python examples/worker.py`, or `pysqlx-run -w 8 examples/worker.py`."""

import asyncio

from pysqlx_engine import PySQLXEnginePool


async def square(pool: PySQLXEnginePool, number: int) -> None:
    async with pool.connection() as conn:
        row = await conn.query_first("SELECT :number AS number, :number * :number AS square", {"number": number})
        print(row)


async def main() -> None:
    async with PySQLXEnginePool(uri="sqlite:./dev.db", min_size=2, max_size=30) as pool:
        await asyncio.gather(*(square(pool, number) for number in range(3)))


asyncio.run(main())
