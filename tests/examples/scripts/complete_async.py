import asyncio
from pysqlx_engine import PySQLXEnginePool

async def main():
    pool = PySQLXEnginePool(uri="sqlite:./dev.db", min_size=5)
    await pool.start() # Start the pool

    async with pool.connection() as conn:
        # Use the connection
        resp = await conn.query_first("SELECT 1 as a")
        print(resp) # Output: BaseRow(a=1)

    await pool.stop() # Stop the pool

asyncio.run(main())
