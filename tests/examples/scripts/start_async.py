import asyncio
from pysqlx_engine import PySQLXEnginePool

async def main():
    pool = PySQLXEnginePool(uri="sqlite:./dev.db", min_size=5)
    await pool.start() # Start the pool

asyncio.run(main())
