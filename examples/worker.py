import asyncio

from pysqlx_engine import PySQLXEnginePool


async def main():
    async with PySQLXEnginePool(uri="sqlite:./dev.db", min_size=2, max_size=30) as pool:
        async with pool.connection() as conn:
            print(await conn.query_first("SELECT :n + 1 AS answer", {"n": 41}))


asyncio.run(main())
